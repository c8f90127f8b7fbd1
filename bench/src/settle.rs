//! Waiting for a quiet machine.

use std::time::{Duration, Instant};

use volferry_benchmark::machine::Processors;

use crate::error::Error;
use crate::signals;

/// Waits until the machine has been quiet for a second, for no longer than `patience`.
pub(crate) fn settle(patience: Duration) -> Result<(), Error> {
    /// Processors' worth of bystanders that don't disturb a measurement much.
    const QUIET: f64 = 0.1;
    let start = Instant::now();
    while start.elapsed() < patience {
        signals::check()?;
        let before = Processors::read();
        std::thread::sleep(Duration::from_secs(1));
        if Processors::read().since(before).busy_seconds < QUIET {
            break;
        }
    }
    Ok(())
}
