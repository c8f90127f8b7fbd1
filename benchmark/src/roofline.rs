//! How long a clone should take, from its parts.
//!
//! The stages of a clone run at once. So the slowest bounds it, and bandwidths don't add up; but all
//! stages share the processors, so that processor time does. What is left is the time of a clone of
//! almost nothing: handshakes, credentials, the last flush. It comes on top.

use serde::{Deserialize, Serialize};
use volferry_agent::progress::End;

use crate::ceiling::Kind;
use crate::report::{Ceiling, Report};
use crate::shape::Facts;
use crate::stats::Summary;

/// What the ceilings say of a clone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Seconds that it should take.
    pub seconds: f64,
    /// Processor seconds of both agents.
    pub cpu_seconds: f64,
    /// What binds it: the name of the slowest bound.
    pub binding: String,
    /// Every bound, the slowest first.
    pub bounds: Vec<Bound>,
    /// Where the processor time goes, the most first.
    pub cpu_parts: Vec<Bound>,
}

/// A time that a clone can't fall below, or a part of its processor time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// What takes it.
    pub name: String,
    /// How long.
    pub seconds: f64,
}

/// What is known of the parts.
#[derive(Clone, Copy, Debug)]
pub struct Roofline<'a> {
    /// The ceilings.
    pub ceilings: &'a [Ceiling],
    /// Processors of the machine that this process may use.
    pub cpus: usize,
    /// Whether clones run over QUIC.
    pub quic: bool,
    /// Bytes of chunks in flight at each end.
    pub memory_bytes: u64,
}

/// What is cloned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum What {
    /// A block volume.
    Volume,
    /// The generated tree.
    Tree,
}

impl<'a> Roofline<'a> {
    /// What a report of one process tells of the parts.
    #[must_use]
    pub const fn of(report: &'a Report) -> Self {
        Self {
            ceilings: report.ceilings.as_slice(),
            cpus: report.machine.cpus,
            quic: report.tuning.quic,
            memory_bytes: report.tuning.memory_bytes as u64,
        }
    }

    /// What a clone of the volume of this name should take; `None` where a ceiling is missing.
    #[must_use]
    pub fn predict(&self, what: What, name: &str, facts: &Facts) -> Option<Prediction> {
        let session = self.ceiling(Kind::Session)?;
        let session_seconds = session.seconds()?.median;
        let of_volume =
            |one: &&Ceiling| one.kind == Kind::ReadWrite && one.volume.as_deref() == Some(name);
        let both = match what {
            What::Volume => self.ceilings.iter().find(of_volume)?,
            What::Tree => self.ceiling(Kind::TreeReadWrite)?,
        };
        // Of a large volume of the user's only the beginning was read and written.
        let measured = both.repeats.first()?;
        let part = match what {
            What::Volume if measured.bytes > 0 => {
                (facts.read_bytes as f64 / measured.bytes as f64).max(1.0)
            }
            _ => 1.0,
        };
        let (alone, own) = (
            both.seconds()?.median * part,
            both.cpu_seconds()?.median * part,
        );
        // What is zeros, and doesn't travel, shows when it is read.
        let data = measured
            .data_bytes
            .map_or(f64::INFINITY, |data| data as f64 * part);
        let data = data.min(facts.data_bytes as f64);
        // What waits for the storage travels no faster than that, and is woken more often.
        let paced = self.ceiling(Kind::NetworkPaced);
        let paced = paced.or_else(|| self.ceiling(self.network()))?;
        let mut cpu_parts = vec![
            bound(BOTH, own),
            bound("network", paced.cpu_per_byte()? * data),
            bound("session", session.cpu_seconds()?.median),
        ];
        let cpu_seconds = cpu_parts.iter().map(|part| part.seconds).sum::<f64>();
        let processors = self.processors()?;
        let threads = both.threads.max(1) as f64;
        let mut bounds = vec![
            bound(
                BOTH,
                beside(alone, own / threads, own, cpu_seconds, processors),
            ),
            bound("network", data / self.rate(self.network())?),
            bound("processors", cpu_seconds / processors),
        ];
        for list in [&mut bounds, &mut cpu_parts] {
            list.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
        }
        let slowest = bounds.first()?;
        Some(Prediction {
            seconds: session_seconds + slowest.seconds,
            cpu_seconds,
            binding: slowest.name.clone(),
            bounds,
            cpu_parts,
        })
    }

    /// Processors' worth of time that threads get that want all of it.
    #[must_use]
    pub fn processors(&self) -> Option<f64> {
        Some(granted_share(self.ceiling(Kind::Hash)?)? * self.cpus as f64)
    }

    /// What one of two ends in pods of their own can do: its processor time, in parts, and the bounds
    /// that it has to itself. Of a `tree` the ceilings were measured with another number of files.
    fn of_end(&self, end: End, what: What, facts: &Facts) -> Option<(Vec<Bound>, Vec<Bound>)> {
        let (read_bytes, data) = (facts.read_bytes as f64, facts.data_bytes as f64);
        let cpu = |name: &str, kind, bytes: f64| {
            Some(bound(name, self.ceiling(kind)?.cpu_per_byte()? * bytes))
        };
        let is_tree = what == What::Tree;
        let (storage_name, storage) = match (end, is_tree) {
            (End::Source, false) => ("source read", Kind::ScratchRead),
            (End::Source, true) => ("tree read", Kind::TreeRead),
            (End::Target, false) => ("target write", Kind::TargetWrite),
            (End::Target, true) => ("tree write", Kind::TreeWrite),
        };
        let mut bounds = Vec::new();
        let mut parts = Vec::new();
        if is_tree {
            // Names are what a small file costs.
            let measured = self.ceiling(storage)?;
            let names = measured.repeats.first()?.names.max(1) as f64;
            let scale = facts.names as f64 / names;
            bounds.push(bound(storage_name, measured.seconds()?.median * scale));
            parts.push(bound(storage_name, measured.cpu_seconds()?.median * scale));
        } else {
            let bytes = if end == End::Source { read_bytes } else { data };
            bounds.push(bound(storage_name, bytes / self.rate(storage)?));
            parts.push(cpu(storage_name, storage, bytes)?);
            parts.push(cpu("hash", Kind::Hash, data)?);
            if end == End::Source {
                parts.push(cpu(
                    "zero scan",
                    Kind::ZeroScan,
                    (read_bytes - data).max(0.0),
                )?);
                parts.push(cpu("data scan", Kind::DataScan, data)?);
                let fresh = facts.data_bytes.min(self.memory_bytes) as f64;
                parts.push(cpu("fresh memory", Kind::FreshMemory, fresh)?);
            }
        }
        // Where the pods could not reach each other, what encryption takes is known all the same.
        let network = self.network();
        let sealed = match end {
            End::Source => Kind::TlsSeal,
            End::Target => Kind::TlsOpen,
        };
        let carried = if self.ceiling(network).is_some() {
            network
        } else {
            sealed
        };
        parts.push(cpu("network", carried, data)?);
        if end == End::Source
            && let Some(rate) = self.rate(network)
        {
            bounds.push(bound("network", data / rate));
        }
        Some((bounds, parts))
    }

    const fn network(&self) -> Kind {
        match self.quic {
            true => Kind::QuicN,
            false => Kind::TlsN,
        }
    }

    fn ceiling(&self, kind: Kind) -> Option<&Ceiling> {
        self.ceilings
            .iter()
            .find(|ceiling| ceiling.kind == kind && !ceiling.repeats.is_empty())
    }

    fn rate(&self, kind: Kind) -> Option<f64> {
        let rate = self.ceiling(kind)?.rate()?.median;
        (rate > 0.0).then_some(rate)
    }
}

/// What a clone should take whose ends are pods of their own; `None` where a ceiling is missing. On
/// `one_node` they share its processors. Handshakes are not in it: they take as long as Kubernetes.
#[must_use]
pub fn predict_apart(
    source: &Roofline<'_>,
    target: &Roofline<'_>,
    one_node: bool,
    what: What,
    facts: &Facts,
) -> Option<Prediction> {
    let (mut bounds, mut cpu_parts) = (Vec::new(), Vec::new());
    let mut cpu_seconds = 0.0;
    for (end, roofline) in [(End::Source, source), (End::Target, target)] {
        let (own, parts) = roofline.of_end(end, what, facts)?;
        bounds.extend(own);
        let seconds: f64 = parts.iter().map(|part| part.seconds).sum();
        let name = format!("processors of the {}", end.label());
        bounds.push(bound(&name, seconds / roofline.processors()?));
        cpu_seconds += seconds;
        cpu_parts.extend(parts.into_iter().map(|part| Bound {
            name: format!("{}: {}", end.label(), part.name),
            ..part
        }));
    }
    if one_node {
        let shared = cpu_seconds / source.cpus.max(1) as f64;
        bounds.push(bound("processors of the node", shared));
    }
    for list in [&mut bounds, &mut cpu_parts] {
        list.sort_by(|one, other| other.seconds.total_cmp(&one.seconds));
    }
    let slowest = bounds.first()?;
    Some(Prediction {
        seconds: slowest.seconds,
        cpu_seconds,
        binding: slowest.name.clone(),
        bounds,
        cpu_parts,
    })
}

/// The part of a processor that each thread got that wanted all of it.
#[must_use]
pub fn granted_share(hash: &Ceiling) -> Option<f64> {
    let each = hash
        .repeats
        .iter()
        .map(|repeat| repeat.cost.cpu_seconds / (repeat.cost.seconds * hash.threads.max(1) as f64));
    Summary::of(each).map(|share| share.median.clamp(f64::MIN_POSITIVE, 1.0))
}

/// What binds most clones.
const BOTH: &str = "reading and writing at once";

/// How long work takes with others on the processors that took `alone` seconds without: each of its threads
/// used a processor for `each` seconds of that and all of them for `own`, and with the others all use them for `all` seconds.
///
/// Whoever wants one of `processors` that are busy for a share ρ of the time has it for itself one time in
/// 1 / (1 - ρ^processors) that it needs: all have to be busy for it to wait (the usual approximation for a
/// queue with several servers). The longer the work takes the less busy they are, so the time is where both agree.
fn beside(alone: f64, each: f64, own: f64, all: f64, processors: f64) -> f64 {
    /// Processors that are busier than that are what binds.
    const BUSY_MAX: f64 = 0.95;
    let stretch = |cpu: f64, seconds: f64| {
        let busy = (cpu / (seconds * processors).max(f64::MIN_POSITIVE)).min(BUSY_MAX);
        1.0 / (1.0 - busy.powf(processors))
    };
    let longer = |seconds| alone + each * (stretch(all, seconds) - stretch(own, alone)).max(0.0);
    let (mut low, mut high) = (alone, longer(alone));
    for _halving in 0..50 {
        let middle = f64::midpoint(low, high);
        match longer(middle) > middle {
            true => low = middle,
            false => high = middle,
        }
    }
    high
}

fn bound(name: &str, seconds: f64) -> Bound {
    Bound {
        name: name.to_owned(),
        seconds,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::tests::example;

    const GIB: u64 = 1 << 30;

    fn line(report: &Report) -> Roofline<'_> {
        Roofline {
            memory_bytes: GIB / 4,
            ..Roofline::of(report)
        }
    }

    fn predict(report: &Report, what: What, facts: Facts) -> Prediction {
        line(report).predict(what, "random", &facts).unwrap()
    }

    #[test]
    fn bandwidths_do_not_add_up_and_processor_time_does() {
        // All ceilings of the example: 1 GiB/s, half a processor second for each GiB; two processors,
        // all granted; a session of 0.1 s and 0.05 processor seconds; a quarter of a GiB for chunks.
        let report = example();
        let facts = Facts {
            logical_bytes: 4 * GIB,
            read_bytes: 2 * GIB,
            data_bytes: GIB,
            names: 0,
        };
        // Both at once were measured with a GiB of the two that are read: twice half a processor second; half of one
        // for the network.
        let found = predict(&report, What::Volume, facts);
        assert!((found.cpu_seconds - 1.55).abs() < 1e-9, "{found:?}");
        assert_eq!(found.binding, BOTH);
        assert!(
            found.seconds > 2.1 && found.seconds < 2.2,
            "twice a second: {found:?}"
        );
        let sum: f64 = found.cpu_parts.iter().map(|part| part.seconds).sum();
        assert!((sum - found.cpu_seconds).abs() < 1e-9);
    }

    #[test]
    fn the_slowest_part_binds() {
        let mut report = example();
        let facts = Facts {
            logical_bytes: 2 * GIB,
            read_bytes: GIB,
            data_bytes: GIB / 2,
            names: 0,
        };
        // Both at once took a second for what it was measured with, whatever that holds.
        for what in [What::Volume, What::Tree] {
            let found = predict(&report, what, facts);
            assert_eq!(found.binding, "reading and writing at once");
            assert!((found.cpu_seconds - (0.5 + 0.25 + 0.05)).abs() < 1e-9);
            // And a little more, since the network wants the processors, too.
            assert!(found.seconds > 1.1 && found.seconds < 1.15, "{found:?}");
        }
        for ceiling in &mut report.ceilings {
            for repeat in &mut ceiling.repeats {
                if ceiling.kind == Kind::TlsN {
                    repeat.bytes /= 4;
                }
            }
        }
        let found = predict(&report, What::Volume, facts);
        assert_eq!(found.binding, "network");
        assert!((found.seconds - 2.1).abs() < 1e-6, "{found:?}");
    }

    #[test]
    fn zeros_of_the_beginning_stand_for_those_of_the_rest() {
        let mut report = example();
        for ceiling in &mut report.ceilings {
            for repeat in &mut ceiling.repeats {
                if ceiling.kind == Kind::ReadWrite {
                    repeat.data_bytes = Some(GIB / 8);
                }
                if ceiling.kind == Kind::TlsN {
                    repeat.cost.seconds *= 4.0;
                }
            }
        }
        // A device: nobody knows what of it is zeros before it is read.
        let facts = |data_bytes| Facts {
            logical_bytes: 10 * GIB,
            read_bytes: 10 * GIB,
            data_bytes,
            names: 0,
        };
        let network = |data_bytes| {
            let found = predict(&report, What::Volume, facts(data_bytes));
            assert_eq!(found.binding, BOTH);
            let network = found
                .bounds
                .into_iter()
                .find(|bound| bound.name == "network");
            network.unwrap().seconds
        };
        // An eighth of 10 GiB at a quarter of a GiB a second, and no more than what is no hole.
        assert!((network(10 * GIB) - 5.0).abs() < 1e-9);
        assert!((network(GIB) - 4.0).abs() < 1e-9);
    }

    #[test]
    fn who_shares_processors_waits_for_them() {
        let close = |found: f64, wanted: f64| assert!((found - wanted).abs() < 1e-3, "{found}");
        // Nobody else wants them.
        close(beside(2.0, 0.5, 1.0, 1.0, 2.0), 2.0);
        // One processor, half of the time for each: ρ = 2 / t, t = 2 + 1 / (1 - ρ) - 1 / (1 - 0.5).
        let found = beside(2.0, 1.0, 1.0, 2.0, 1.0);
        close(found, 1.0 / (1.0 - 2.0 / found));
        close(found, 3.0);
        // With many there is always one.
        close(beside(2.0, 1.0, 1.0, 2.0, 64.0), 2.0);
        // Without end even where they can't do it.
        assert!(beside(1.0, 1.0, 1.0, 100.0, 1.0).is_finite());
    }

    #[test]
    fn a_volume_is_told_from_what_was_measured_with_itself() {
        let report = example();
        let roofline = line(&report);
        assert_eq!(
            roofline.predict(What::Volume, "vm", &Facts::default()),
            None
        );
    }

    #[test]
    fn ends_apart_share_no_processors_unless_they_share_a_node() {
        let report = example();
        let roofline = line(&report);
        let facts = Facts {
            logical_bytes: 4 * GIB,
            read_bytes: 4 * GIB,
            data_bytes: 2 * GIB,
            names: 0,
        };
        let predict =
            |one_node| predict_apart(&roofline, &roofline, one_node, What::Volume, &facts).unwrap();
        // Source: reading 4, zeros 2, data 2, hashing 2, network 2, a quarter of memory, in halves;
        // target: hashing, network, writing 2 each.
        let apart = predict(false);
        assert!(
            (apart.cpu_seconds - (6.125 + 3.0)).abs() < 1e-9,
            "{apart:?}"
        );
        assert_eq!(apart.binding, "source read");
        assert!((apart.seconds - 4.0).abs() < 1e-9);
        assert_eq!(predict(true).binding, "processors of the node");

        let tree = Facts {
            names: 300,
            ..facts
        };
        let mut report = report.clone();
        for ceiling in &mut report.ceilings {
            for repeat in &mut ceiling.repeats {
                repeat.names = 100;
            }
        }
        let roofline = line(&report);
        let tree = predict_apart(&roofline, &roofline, false, What::Tree, &tree).unwrap();
        let read = tree.bounds.iter().find(|bound| bound.name == "tree read");
        assert!((read.unwrap().seconds - 3.0).abs() < 1e-9, "{tree:?}");
    }

    #[test]
    fn without_a_ceiling_nothing_is_said() {
        let mut report = example();
        report.ceilings.retain(|ceiling| ceiling.kind != Kind::TlsN);
        let roofline = line(&report);
        assert_eq!(
            roofline.predict(What::Volume, "random", &Facts::default()),
            None
        );
    }
}
