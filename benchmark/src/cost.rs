//! What a piece of work cost: time, processor time, and what the rest of the machine did meanwhile.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use crate::machine::Processors;

/// The cost of one measurement.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// Seconds that passed.
    pub seconds: f64,
    /// Processor seconds of this process, user and system.
    pub cpu_seconds: f64,
    /// Processor seconds of the whole machine, this process and kernel threads included.
    pub machine_busy_seconds: f64,
    /// Processor seconds that the hypervisor gave to others.
    pub machine_stolen_seconds: f64,
}

/// Runs from when it is started.
#[derive(Debug)]
pub struct Stopwatch {
    since: Instant,
    cpu_seconds: f64,
    machine: Processors,
}

impl Stopwatch {
    /// Starts.
    #[must_use]
    pub fn start() -> Self {
        let machine = Processors::read();
        Self {
            cpu_seconds: process_seconds(),
            machine,
            since: Instant::now(),
        }
    }

    /// The cost so far.
    #[must_use]
    pub fn stop(&self) -> Cost {
        let seconds = self.since.elapsed().as_secs_f64();
        let machine = Processors::read().since(self.machine);
        Cost {
            seconds,
            cpu_seconds: process_seconds() - self.cpu_seconds,
            machine_busy_seconds: machine.busy_seconds,
            machine_stolen_seconds: machine.stolen_seconds,
        }
    }
}

impl Cost {
    /// Processor seconds of others: other processes, and kernel threads.
    #[must_use]
    pub fn of_others(&self) -> f64 {
        (self.machine_busy_seconds - self.cpu_seconds).max(0.0)
    }
}

/// Processor seconds of this process so far.
fn process_seconds() -> f64 {
    let used = clock_gettime(ClockId::ProcessCPUTime);
    used.tv_sec as f64 + used.tv_nsec as f64 / 1e9
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_costs_time_and_processor_time() {
        let watch = Stopwatch::start();
        let mut sum = 0_u64;
        while watch.stop().cpu_seconds < 0.01 {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        let cost = watch.stop();
        assert!(cost.seconds > 0.0 && cost.cpu_seconds >= 0.01, "{cost:?}");
        assert!(cost.of_others() >= 0.0);
    }
}
