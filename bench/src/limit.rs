//! The walls of a small pod: a control group for each process, with a bound on memory, page cache
//! included, and a share of processor time.
//!
//! Both versions of the kernel's interface are served: version 1 has a tree for each controller,
//! version 2 has one tree in which the parent hands controllers down. A process enters by way of a
//! shell that writes its own id and then becomes the program, so that nothing runs outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::error::{At as _, Error};
use crate::size::Size;

/// What a process may use.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Limit {
    /// Bytes of memory, page cache included.
    pub memory: Option<Size>,
    /// Processors, such as 0.75.
    pub cpus: Option<f64>,
}

/// The control groups of one clone; removed when dropped.
#[derive(Debug)]
pub(crate) struct Limits {
    limit: Limit,
    groups: Vec<PathBuf>,
}

impl Limit {
    /// How the report names the limit.
    pub(crate) fn label(self) -> String {
        let memory = self.memory.map(|size| size.to_string());
        let cpus = self.cpus.map(|cpus| format!("{cpus} CPU"));
        memory
            .into_iter()
            .chain(cpus)
            .collect::<Vec<_>>()
            .join(", ")
    }
}

impl Limits {
    /// No group is made before the first process enters.
    pub(crate) fn new(limit: Limit) -> Self {
        Self {
            limit,
            groups: Vec::new(),
        }
    }

    /// `command` in a group of its own; `index` tells the processes of a clone apart.
    pub(crate) fn enter(&mut self, index: usize, command: &Command) -> Result<Command, Error> {
        let name = format!("volferry-bench-{}-{index}", std::process::id());
        let mut entered = Vec::new();
        for (group, settings) in self.plan(&name) {
            fs::create_dir_all(&group).at("create", &group)?;
            self.groups.push(group.clone());
            for (file, value) in settings {
                let file = group.join(file);
                fs::write(&file, value).at("write", &file)?;
            }
            entered.push(group.join("cgroup.procs"));
        }
        let mut shell = Command::new("sh");
        let enter = entered
            .iter()
            .map(|file| format!("echo $$ > {} && ", file.display()));
        shell
            .arg("-c")
            .arg(enter.collect::<String>() + "exec \"$0\" \"$@\"");
        shell.arg(command.get_program()).args(command.get_args());
        Ok(shell)
    }

    /// Processes that the kernel killed because a group was out of memory.
    pub(crate) fn killed(&self) -> u64 {
        let counts = self.groups.iter().flat_map(|group| {
            ["memory.oom_control", "memory.events"].map(|file| oom_kills(&group.join(file)))
        });
        counts.sum()
    }

    /// The groups to make: their directories, and what to write into which file.
    fn plan(&self, name: &str) -> Vec<(PathBuf, Vec<(&'static str, String)>)> {
        let root = Path::new("/sys/fs/cgroup");
        let memory = self.limit.memory.map(|size| size.0.to_string());
        let quota = self.limit.cpus.map(quota_micros);
        if root.join("cgroup.controllers").exists() {
            let memory = memory.map(|bytes| ("memory.max", bytes));
            let cpu = quota.map(|quota| ("cpu.max", format!("{quota} {PERIOD_MICROS}")));
            return vec![(root.join(name), memory.into_iter().chain(cpu).collect())];
        }
        let memory = memory.map(|bytes| {
            let settings = vec![("memory.limit_in_bytes", bytes)];
            (root.join("memory").join(name), settings)
        });
        let cpu = quota.map(|quota| {
            let period = ("cpu.cfs_period_us", PERIOD_MICROS.to_string());
            let settings = vec![period, ("cpu.cfs_quota_us", quota.to_string())];
            (root.join("cpu").join(name), settings)
        });
        memory.into_iter().chain(cpu).collect()
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        for group in &self.groups {
            // A group with a process still in it stays; the report has the process's failure.
            let _ = fs::remove_dir(group);
        }
    }
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the number of processors is small and not negative"
)]
fn quota_micros(cpus: f64) -> u64 {
    (cpus * PERIOD_MICROS as f64) as u64
}

fn oom_kills(file: &Path) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// The kernel's default, and that of container runtimes.
const PERIOD_MICROS: u32 = 100_000;
