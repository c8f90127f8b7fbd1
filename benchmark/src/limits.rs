//! The walls around this process: what its control group lets it have.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Limits of this process' control group and of those above it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// Bytes of memory, page cache included; absent without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
    /// Processors, such as 0.75; absent without a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<f64>,
}

impl Limits {
    /// Reads them from the kernel, in either version of its interface.
    #[must_use]
    pub fn read() -> Self {
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        Self::of(Path::new("/sys/fs/cgroup"), &groups)
    }

    /// The same of the tree at `root`, in the groups that `/proc/self/cgroup` names.
    fn of(root: &Path, groups: &str) -> Self {
        let read = |path: PathBuf| fs::read_to_string(path).ok();
        let number = |text: String| text.trim().parse::<f64>().ok();
        let mut limits = Self::default();
        for group in groups.lines() {
            let mut parts = group.splitn(3, ':').skip(1);
            let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else {
                continue;
            };
            let tree = match controllers {
                "" => root.to_owned(),
                named => root.join(named),
            };
            let below = Path::new(path.trim_start_matches('/'));
            // Within a container the own group is the root, and its path outside leads nowhere.
            for ancestor in below.ancestors() {
                let group = tree.join(ancestor);
                let memory = read(group.join("memory.max"))
                    .or_else(|| read(group.join("memory.limit_in_bytes")));
                limits.lower_memory(memory.and_then(|text| text.trim().parse().ok()));
                let cpus = match read(group.join("cpu.max")) {
                    Some(text) => {
                        let mut words = text.split_whitespace().map(str::parse::<f64>);
                        words
                            .next()
                            .and_then(Result::ok)
                            .zip(words.next().and_then(Result::ok))
                    }
                    None => {
                        let of = |name| read(group.join(name)).and_then(number);
                        of("cpu.cfs_quota_us").zip(of("cpu.cfs_period_us"))
                    }
                };
                limits.lower_cpus(cpus.map(|(quota, period)| quota / period));
            }
        }
        limits
    }

    fn lower_memory(&mut self, bytes: Option<u64>) {
        /// The kernel's way to say "none" in version 1: as many pages as there can be.
        const NONE: u64 = 1 << 60;
        let bytes = bytes.filter(|bytes| *bytes < NONE);
        self.memory_bytes = self.memory_bytes.into_iter().chain(bytes).min();
    }

    fn lower_cpus(&mut self, cpus: Option<f64>) {
        let cpus = cpus.filter(|cpus| *cpus > 0.0 && cpus.is_finite());
        self.cpus = self.cpus.into_iter().chain(cpus).reduce(f64::min);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lowest_wall_counts_in_both_versions() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(
            Limits::of(root.path(), "0::/pod/agent\n"),
            Limits::default()
        );
        write("pod/agent/memory.max", "max\n");
        write("pod/memory.max", "629145600\n");
        write("pod/agent/cpu.max", "75000 100000\n");
        write("pod/cpu.max", "max 100000\n");
        let limits = Limits::of(root.path(), "0::/pod/agent\n");
        assert_eq!(
            (limits.memory_bytes, limits.cpus),
            (Some(629_145_600), Some(0.75))
        );

        write("memory/old/memory.limit_in_bytes", "9223372036854771712\n");
        write("cpu,cpuacct/old/cpu.cfs_quota_us", "-1\n");
        write("cpu,cpuacct/old/cpu.cfs_period_us", "100000\n");
        let groups = "3:cpu,cpuacct:/old\n2:memory:/old\nnonsense\n";
        assert_eq!(Limits::of(root.path(), groups), Limits::default());
        write("cpu,cpuacct/old/cpu.cfs_quota_us", "50000\n");
        assert_eq!(Limits::of(root.path(), groups).cpus, Some(0.5));
    }
}
