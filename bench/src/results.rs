//! The report as data: what `results.json` holds. README.md explains every field.

use serde::{Deserialize, Serialize};

use crate::floor::Floor;
use crate::peer;
use crate::process::Cost;
use crate::size::gib;
use volferry_benchmark::machine::Machine;
use volferry_benchmark::stats::Summary;

/// Raised when a field changes its meaning.
pub(crate) const SCHEMA: u32 = 1;

/// One run of the harness.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Results {
    /// [`SCHEMA`] of the writer.
    pub schema: u32,
    /// When the run began, RFC 3339.
    pub date: String,
    /// Where it ran.
    pub machine: Machine,
    /// Seed of the generated volumes.
    pub seed: u64,
    /// How often every peer cloned every volume.
    pub repeats: u32,
    /// Whether the source was in the page cache; else there were no caches.
    #[serde(default)]
    pub warm: bool,
    /// Who took part, and who could not.
    pub peers: Vec<PeerFacts>,
    /// One entry for each kind of volume.
    pub rows: Vec<RowResults>,
}

/// A peer, as it was found on the machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PeerFacts {
    /// The peer's name.
    pub name: String,
    /// What its programs say about themselves.
    pub version: String,
    /// How it is run.
    pub how: String,
    /// Why it was skipped.
    pub skipped: Option<String>,
}

/// What came of one kind of volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RowResults {
    /// The row's name.
    pub name: String,
    /// Why the row was skipped; then the rest is empty.
    pub skipped: Option<String>,
    /// Size of the volume.
    pub size_bytes: u64,
    /// Bytes of it that are allocated at the source. Rates count these.
    pub data_bytes: u64,
    /// Names in the tree; 0 for a volume.
    #[serde(default)]
    pub entries: u64,
    /// What the disk gives; only for rows on a disk. For trees: what a bare loop needs that makes the
    /// same directories and files, as large, with as many threads, and nothing else.
    pub floor: Option<Floor>,
    /// Who cloned it, in the order of the report.
    pub contenders: Vec<Contender>,
}

/// A peer in one row, perhaps under limits.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Contender {
    /// The peer's name.
    pub peer: String,
    /// Limits of each of its processes, such as `600MB, 0.75 CPU`.
    pub limit: Option<String>,
    /// Why it can't clone this volume.
    pub skipped: Option<String>,
    /// Every repeat.
    pub runs: Vec<Run>,
}

/// One clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// Place in the order of this repeat, from 0.
    pub order: usize,
    /// From the start of the first process until the target was flushed.
    pub wall_seconds: f64,
    /// Processor time of the whole machine in that time: kernel threads and bystanders included.
    pub machine_busy_seconds: f64,
    /// Processor time that the hypervisor gave to others.
    pub machine_stolen_seconds: f64,
    /// What each process cost.
    pub processes: Vec<Cost>,
    /// Bytes that the target occupies.
    pub allocated_bytes: u64,
    /// Whether the target's logical bytes are the source's.
    pub is_identical: bool,
    /// Processes killed for want of memory.
    pub killed: u64,
    /// Why the clone failed; then the other figures say little.
    pub failure: Option<String>,
}

impl Run {
    /// Seconds of processor time of all of the peer's processes.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let costs = self.processes.iter();
        costs
            .map(|cost| cost.user_seconds + cost.system_seconds)
            .sum()
    }

    /// Peak memory of all processes, as if their peaks fell together.
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.processes.iter().map(|cost| cost.peak_bytes).sum()
    }

    /// Whether the clone is complete and right.
    pub(crate) const fn is_good(&self) -> bool {
        self.failure.is_none() && self.is_identical
    }
}

impl Contender {
    /// Name and limit.
    pub(crate) fn label(&self) -> String {
        let limit = self.limit.as_ref().map(|limit| format!(" ({limit})"));
        format!("{}{}", self.peer, limit.unwrap_or_default())
    }

    /// Whether it may be the best peer of those under `limit`: somebody else's, and right every time.
    fn is_rival(&self, limit: Option<&str>) -> bool {
        !peer::is_volferry(&self.peer)
            && self.limit.as_deref() == limit
            && !self.runs.is_empty()
            && self.runs.iter().all(Run::is_good)
    }

    /// Summarizes a figure over the clones that succeeded.
    pub(crate) fn summary(&self, figure: impl Fn(&Run) -> f64) -> Option<Summary> {
        let complete = self.runs.iter().filter(|run| run.failure.is_none());
        Summary::of(complete.map(figure))
    }
}

impl RowResults {
    /// A row without any result yet.
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            skipped: None,
            size_bytes: 0,
            data_bytes: 0,
            entries: 0,
            floor: None,
            contenders: Vec::new(),
        }
    }

    /// GiB of data, and never nothing: empty files have no rate, but clones of them can be compared.
    fn data_gib(&self) -> f64 {
        gib(self.data_bytes.max(1))
    }

    /// GiB of data per second, of each clone that succeeded.
    pub(crate) fn rate(&self, contender: &Contender) -> Option<Summary> {
        contender.summary(|run| self.data_gib() / run.wall_seconds)
    }

    /// Seconds of processor time of the peer's processes for a GiB of data.
    pub(crate) fn cpu_per_gib(&self, contender: &Contender) -> Option<Summary> {
        contender.summary(|run| run.cpu_seconds() / self.data_gib())
    }

    /// Seconds of processor time of the whole machine for a GiB of data.
    pub(crate) fn machine_per_gib(&self, contender: &Contender) -> Option<Summary> {
        contender.summary(|run| run.machine_busy_seconds / self.data_gib())
    }

    /// The product itself without limits: as two processes, which come last, where
    /// that was measured.
    pub(crate) fn own(&self) -> Option<&Contender> {
        let mut own = self.contenders.iter().filter(|contender| {
            peer::is_volferry(&contender.peer)
                && contender.limit.is_none()
                && !contender.runs.is_empty()
        });
        own.next_back()
    }

    /// Those under `limit` (its label; `None` without one) that may be the best peer.
    fn rivals(&self, limit: Option<&str>) -> impl Iterator<Item = &Contender> {
        let contenders = self.contenders.iter();
        contenders.filter(move |contender| contender.is_rival(limit))
    }

    /// The fastest rival under `limit` and its rate.
    pub(crate) fn fastest_rival(&self, limit: Option<&str>) -> Option<(&Contender, f64)> {
        let rivals = self.rivals(limit);
        let rates = rivals.filter_map(|rival| Some((rival, self.rate(rival)?.median)));
        rates.max_by(|one, other| one.1.total_cmp(&other.1))
    }

    /// The rival under `limit` that needs the least processor time, and how much.
    pub(crate) fn thriftiest_rival(&self, limit: Option<&str>) -> Option<(&Contender, f64)> {
        let rivals = self.rivals(limit);
        let costs = rivals.filter_map(|rival| Some((rival, self.cpu_per_gib(rival)?.median)));
        costs.min_by(|one, other| one.1.total_cmp(&other.1))
    }
}

/// Results with two peers in one row, for the tests of what is made from results.
#[cfg(test)]
pub(crate) fn example() -> Results {
    let run = |wall_seconds: f64| Run {
        order: 0,
        wall_seconds,
        machine_busy_seconds: 4.0,
        machine_stolen_seconds: 0.0,
        processes: vec![Cost {
            program: "program".into(),
            user_seconds: 1.0,
            system_seconds: wall_seconds,
            peak_bytes: 32 << 20,
        }],
        allocated_bytes: 2 << 30,
        is_identical: true,
        killed: 0,
        failure: None,
    };
    let contender = |peer: &str, wall| Contender {
        peer: peer.into(),
        limit: None,
        skipped: None,
        runs: vec![run(wall), run(wall)],
    };
    Results {
        schema: SCHEMA,
        date: "2026-01-01T00:00:00Z".into(),
        machine: Machine::read(),
        seed: 1,
        repeats: 2,
        warm: false,
        peers: Vec::new(),
        rows: vec![RowResults {
            name: "dense-disk".into(),
            skipped: None,
            size_bytes: 2 << 30,
            data_bytes: 2 << 30,
            entries: 0,
            floor: Some(Floor {
                seconds: 0.5,
                bytes: 2 << 30,
            }),
            contenders: vec![contender("volferry", 1.0), contender("nbdcopy", 2.0)],
        }],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_survive_json() {
        let results = example();
        let text = serde_json::to_string(&results).unwrap();
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
    }

    #[test]
    fn rates_count_the_data_of_the_volume() {
        let row = &example().rows[0];
        assert_eq!(row.rate(&row.contenders[0]).unwrap().median, 2.0);
        assert_eq!(row.cpu_per_gib(&row.contenders[1]).unwrap().median, 1.5);
    }

    #[test]
    fn a_wrong_clone_is_no_rival() {
        let mut row = example().rows.remove(0);
        assert_eq!(row.fastest_rival(None).unwrap().0.peer, "nbdcopy");
        row.contenders[1].runs[1].is_identical = false;
        assert!(row.fastest_rival(None).is_none());
        assert!(row.thriftiest_rival(None).is_none());
    }
}
