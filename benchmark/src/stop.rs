//! The end from outside: Ctrl-C and SIGTERM end the measurement that runs, and what was made is removed.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use volferry_agent::outcome::cancelled;
use volferry_agent::shutdown::signalled;
use volferry_protocol::failure::Failure;

/// Whether the benchmark has to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for signals from now on, on a thread of its own.
    ///
    /// # Errors
    /// When the thread can't be started.
    pub fn on_signal() -> Result<Self, Failure> {
        let stop = Self::default();
        let asked = stop.clone();
        let failed = |error: std::io::Error| {
            Failure::internal(format!("signals can't be listened for: {error}"))
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(failed)?;
        let signalled = {
            let _inside = runtime.enter();
            signalled()
        };
        std::thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                runtime.block_on(signalled);
                asked.request();
            })
            .map_err(failed)?;
        Ok(stop)
    }

    /// Asks for an end.
    pub fn request(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether an end was asked for.
    #[must_use]
    pub fn is_requested(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Fails once an end was asked for.
    ///
    /// # Errors
    /// That it was cancelled.
    pub fn check(&self) -> Result<(), Failure> {
        match self.is_requested() {
            true => Err(cancelled()),
            false => Ok(()),
        }
    }
}
