//! What is measured in a round, and what of it the budget bears.

use std::time::Duration;

use super::Runner;
use super::make::Shapes;
use crate::ceiling::Kind;
use crate::report::{Ceiling, CloneResult};
use crate::roofline::{Roofline, What};
use crate::shape;

/// The part of the time that is for measuring; the rest is for removing volumes and for what takes
/// longer than the last time.
const MEASURING_SHARE: f64 = 0.9;

/// Removing a tree takes such a part of the time of making it, where the disk limits both.
const REMOVING_SHARE: f64 = 0.5;

/// Files that are removed in a second, where making them was as fast as memory.
const REMOVED_PER_SECOND: f64 = 5000.0;

/// Bytes of a tree that is kept in memory to be written from there.
const TREE_IN_MEMORY_MAX: u64 = 512 << 20;

/// Something to measure again and again.
pub(super) struct Step {
    pub(super) work: Work,
    /// Bytes that it writes.
    pub(super) bytes: u64,
    /// Whether it makes a tree that stays until the end.
    pub(super) makes_tree: bool,
    /// What the ceilings tell of it, if it is a clone.
    what: Option<What>,
    /// Whether it reads what is the user's own.
    pub(super) is_own: bool,
    /// How long it took last.
    pub(super) took: Duration,
    /// Whether it is not run any more.
    pub(super) is_left_out: bool,
}

#[derive(Clone, Copy)]
pub(super) enum Work {
    /// The ceiling at this place of the report.
    Ceiling(usize),
    /// The clone at this place of the report, and of the shapes.
    Clone(usize),
}

/// How long it takes at most to remove a tree of so many files that was made in such a time.
pub(super) fn removing(files: u64, making: Duration) -> Duration {
    let each = Duration::from_secs_f64(files as f64 / REMOVED_PER_SECOND);
    making.mul_f64(REMOVING_SHARE).max(each)
}

impl Runner<'_> {
    /// Why the step can't be afforded now.
    pub(super) fn over(&self, step: &Step, round: u32) -> Option<String> {
        let budget = self.report.budget;
        if budget.spent_bytes.saturating_add(step.bytes) > budget.bytes {
            return Some(format!("the budget of {} bytes is spent", budget.bytes));
        }
        // Where that can't be asked for, the step finds out.
        if let Ok(room) = self.place.room()
            && step.bytes > room
        {
            return Some(format!(
                "it takes {} bytes, and {room} are free",
                step.bytes
            ));
        }
        let expected = match round {
            0 => self.guess(step),
            _ => step.took,
        };
        let end = self
            .begun
            .elapsed()
            .saturating_add(expected)
            .saturating_add(self.removing);
        let is_late = end > self.settings.budget.mul_f64(MEASURING_SHARE);
        is_late.then(|| format!("the budget of {:.0} s is spent", budget.seconds))
    }

    /// How long a step takes that was not run yet: as long as it writes, or as the ceilings say of a clone.
    fn guess(&self, step: &Step) -> Duration {
        let rate = self
            .report
            .ceiling(Kind::TargetWrite)
            .and_then(Ceiling::rate)
            .filter(|rate| rate.median > 0.0); // nothing was written where all is holes
        let writing = rate.map_or(0.0, |rate| step.bytes as f64 / rate.median);
        let cloning = self.guess_clone(step).unwrap_or(0.0);
        Duration::try_from_secs_f64(writing.max(cloning)).unwrap_or(Duration::MAX)
    }

    /// Seconds of a clone; `None` where no ceiling tells.
    fn guess_clone(&self, step: &Step) -> Option<f64> {
        let Work::Clone(at) = step.work else {
            return None;
        };
        let clone = self.report.clones.get(at)?;
        if let Some(what) = step.what {
            let roofline = Roofline::of(self.report);
            let found = roofline.predict(what, &clone.name, &clone.facts)?;
            return Some(found.seconds);
        }
        // Of somebody else's tree only the names are like those that were measured. It is removed at once.
        let both = self.report.ceiling(Kind::TreeReadWrite)?;
        let each = both.seconds()?.median / both.repeats.first()?.names.max(1) as f64;
        Some(clone.facts.names as f64 * each * (1.0 + REMOVING_SHARE))
    }

    /// All steps of a round, with their places in the report.
    pub(super) fn plan(&mut self, shapes: &Shapes) -> Vec<Step> {
        let tuning = self.settings.tuning;
        let tree_bytes = shapes
            .tree
            .as_ref()
            .map(|_| shape::tree_bytes(self.report.files));
        let densest = shapes.volumes.first().map(|shape| shape.facts.read_bytes);
        let no_volume = match &shapes.source {
            Err(reason) if !self.settings.source.is_dir() => reason.as_str(),
            _ => "the source is a directory",
        };
        let mut steps = Vec::new();
        for kind in Kind::ALL {
            let skipped = match kind {
                Kind::SourceRead if shapes.own_volume().is_none() => Some(no_volume),
                Kind::ScratchRead | Kind::TargetWrite | Kind::ReadWrite | Kind::NetworkPaced
                    if densest.is_none() =>
                {
                    Some("no block volume is to be cloned")
                }
                Kind::TreeRead | Kind::TreeWrite | Kind::TreeReadWrite if tree_bytes.is_none() => {
                    Some("no tree is to be cloned")
                }
                Kind::TreeWrite if tree_bytes > Some(TREE_IN_MEMORY_MAX) => {
                    Some("the tree is too large to be kept in memory")
                }
                _ => None,
            };
            let threads = match kind {
                Kind::Tls1 | Kind::Quic1 => 1,
                Kind::TlsN | Kind::QuicN | Kind::NetworkPaced => usize::from(tuning.streams),
                Kind::ReadWrite => tuning.readers + tuning.writers,
                Kind::TreeReadWrite => tuning.tree_readers + tuning.writers,
                Kind::TargetWrite | Kind::TreeWrite => tuning.writers,
                Kind::TreeRead => tuning.tree_readers,
                _ => tuning.readers,
            };
            // What zeros and holes make of both at once depends on the volume.
            let each: Vec<_> = match kind {
                Kind::ReadWrite if skipped.is_none() => {
                    let all = shapes.volumes.iter().chain(shapes.own_volume());
                    all.map(Some).collect()
                }
                _ => vec![None],
            };
            for volume in each {
                if skipped.is_none() {
                    steps.push(Step {
                        work: Work::Ceiling(self.report.ceilings.len()),
                        bytes: match kind {
                            Kind::TargetWrite => densest.unwrap_or(0),
                            Kind::ReadWrite => volume.map_or(0, |shape| {
                                shape.facts.data_bytes.min(self.report.size_bytes)
                            }),
                            Kind::TreeWrite | Kind::TreeReadWrite => tree_bytes.unwrap_or(0),
                            _ => 0,
                        },
                        makes_tree: matches!(kind, Kind::TreeWrite | Kind::TreeReadWrite),
                        what: None,
                        is_own: *kind == Kind::SourceRead
                            || volume.is_some_and(|shape| shape.path == self.settings.source),
                        took: Duration::ZERO,
                        is_left_out: false,
                    });
                }
                self.report.ceilings.push(Ceiling {
                    volume: volume.map(|shape| shape.name.clone()),
                    skipped: skipped.map(str::to_owned),
                    ..Ceiling::new(*kind, threads)
                });
            }
        }
        for (shape, what) in shapes.all() {
            let is_tree = what == Some(What::Tree);
            steps.push(Step {
                work: Work::Clone(self.report.clones.len()),
                bytes: if is_tree {
                    tree_bytes.unwrap_or(0)
                } else {
                    shape.facts.data_bytes
                },
                makes_tree: is_tree,
                what,
                is_own: shape.path == self.settings.source,
                took: Duration::ZERO,
                is_left_out: false,
            });
            self.report.clones.push(CloneResult {
                name: shape.name.clone(),
                facts: shape.facts,
                skipped: None,
                repeats: Vec::new(),
                prediction: None,
                trace: Vec::new(),
            });
        }
        steps
    }
}
