//! The floor of a disk row: what fio gets from the same disk when one job reads the source while
//! another writes a second file, both past the page cache. No clone can be faster than the slower
//! of the two; one that comes close is bound by the disk and not by itself.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{At as _, Error};
use crate::tools::{self, Tools};

/// What the disk gives when it is read and written at once.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Floor {
    /// Seconds until both jobs were done.
    pub seconds: f64,
    /// Bytes that each job moved.
    pub bytes: u64,
}

/// The program that measures.
pub(crate) const PROGRAM: &str = "fio";

impl Floor {
    /// The one in the middle; of two in the middle the slower one.
    pub(crate) fn median(mut floors: Vec<Self>) -> Option<Self> {
        floors.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
        floors.get(floors.len() / 2).copied()
    }

    /// Reads `source` and writes `target`, `bytes` each.
    pub(crate) fn measure(
        source: &Path,
        target: &Path,
        bytes: u64,
        tools: &Tools,
    ) -> Result<Self, Error> {
        let mut fio = tools.command(PROGRAM);
        fio.args([
            "--output-format=json",
            "--direct=1",
            "--bs=1M",
            "--ioengine=libaio",
        ]);
        fio.args(["--iodepth=8", "--end_fsync=1"])
            .arg(format!("--size={bytes}"));
        fio.args(["--name=read", "--rw=read"]);
        fio.arg(format!("--filename={}", source.display()));
        fio.args(["--name=write", "--rw=write"]);
        fio.arg(format!("--filename={}", target.display()));
        let report = tools::run(&mut fio)?;
        fs::remove_file(target).at("remove", target)?;
        parse(&report).map(|seconds| Self { seconds, bytes })
    }
}

/// The longest run time of all jobs.
fn parse(report: &str) -> Result<f64, Error> {
    let missing = |what| Error::Output {
        program: PROGRAM,
        what,
    };
    let report: Value = serde_json::from_str(report).map_err(|_| missing("JSON"))?;
    let jobs = report["jobs"]
        .as_array()
        .ok_or_else(|| missing("the list of jobs"))?;
    let seconds = jobs.iter().filter_map(|job| job["job_runtime"].as_f64());
    let longest = seconds.fold(0.0, f64::max) / 1000.0;
    if longest > 0.0 {
        Ok(longest)
    } else {
        Err(missing("a run time"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slower_job_counts() {
        let report = r#"{"jobs":[{"job_runtime":1500},{"job_runtime":2500}]}"#;
        assert_eq!(parse(report).unwrap(), 2.5);
    }

    #[test]
    fn the_floor_of_several_repeats_is_one_of_them() {
        let floor = |seconds| Floor { seconds, bytes: 1 };
        let median = |all: &[f64]| Floor::median(all.iter().copied().map(floor).collect());
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(floor(2.0)));
        assert_eq!(median(&[2.0, 1.0]), Some(floor(2.0)));
    }

    #[test]
    fn a_report_without_jobs_is_an_error() {
        assert!(parse("{}").is_err());
        assert!(parse("fio: failed").is_err());
    }
}
