//! What the machine is, and how busy it was.

use std::fs;

use serde::{Deserialize, Serialize};

/// Facts without which numbers can't be compared.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model name of the first processor.
    pub cpu_model: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Memory in bytes.
    pub memory_bytes: u64,
    /// Release of the running kernel.
    pub kernel: String,
    /// Name of the operating system.
    pub system: String,
    /// One-minute load average when the run began: a quiet machine says 0.
    pub load_before: f64,
}

/// Processor time of the whole machine since it booted.
#[derive(Clone, Copy, Debug)]
pub struct Processors {
    /// Seconds in which processes, kernel threads or interrupts ran.
    pub busy_seconds: f64,
    /// Seconds in which the hypervisor gave the processor to others.
    pub stolen_seconds: f64,
}

impl Machine {
    /// Reads the facts from the kernel; what it doesn't tell stays empty.
    #[must_use]
    pub fn read() -> Self {
        let text = |path| fs::read_to_string(path).unwrap_or_default();
        let value = |path, key| value_of(&text(path), key).unwrap_or_default().to_owned();
        let load = text("/proc/loadavg");
        Self {
            cpu_model: value("/proc/cpuinfo", "model name"),
            cpus: std::thread::available_parallelism().map_or(0, usize::from),
            memory_bytes: memory("MemTotal"),
            kernel: text("/proc/sys/kernel/osrelease").trim().to_owned(),
            system: value("/etc/os-release", "PRETTY_NAME").replace('"', ""),
            load_before: load
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

impl Processors {
    /// Reads the counters; all zero where the kernel doesn't tell.
    #[must_use]
    pub fn read() -> Self {
        parse_stat(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    /// What passed since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            busy_seconds: self.busy_seconds - earlier.busy_seconds,
            stolen_seconds: self.stolen_seconds - earlier.stolen_seconds,
        }
    }
}

/// Bytes that a new process could get without swapping.
#[must_use]
pub fn available_memory() -> u64 {
    memory("MemAvailable")
}

fn memory(key: &str) -> u64 {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let value = value_of(&meminfo, key).and_then(|value| value.strip_suffix(" kB"));
    value.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// The value of the first `key: value` or `key=value` line.
fn value_of<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (name, value) = line.split_once([':', '='])?;
        (name.trim() == key).then(|| value.trim())
    })
}

fn parse_stat(stat: &str) -> Processors {
    /// The kernel's USER_HZ, which is 100 on every architecture that we know.
    const TICKS_PER_SECOND: f64 = 100.0;
    let ticks: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|ticks| ticks.parse().ok())
        .collect();
    let sum = |fields: &[usize]| -> f64 {
        let ticks = fields.iter().filter_map(|field| ticks.get(*field));
        ticks.sum::<f64>() / TICKS_PER_SECOND
    };
    Processors {
        busy_seconds: sum(&[0, 1, 2, 5, 6]), // user, nice, system, irq, softirq
        stolen_seconds: sum(&[7]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_leaves_out_idle_waiting_and_stolen_time() {
        let read = parse_stat("cpu  100 200 300 9000 800 10 20 50 0 0\ncpu0 1 1\n");
        assert!((read.busy_seconds - 6.3).abs() < 1e-9);
        assert!((read.stolen_seconds - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_value_is_found_by_its_key() {
        let text = "MemFree:  1 kB\nMemAvailable:   24 kB\n";
        assert_eq!(value_of(text, "MemAvailable"), Some("24 kB"));
        assert_eq!(value_of(text, "Mem"), None);
    }
}
