//! How long a clone should take, from its parts.
//!
//! The stages of a clone run at once. So the slowest bounds it, and bandwidths don't add up; but all
//! stages share the processors, so that processor time does. What is left is the time of a clone of
//! almost nothing: handshakes, credentials, the last flush. It comes on top.

use serde::{Deserialize, Serialize};
use volferry_agent::progress::End;

use crate::ceiling::Kind;
use crate::report::Ceiling;
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
    /// A generated block volume.
    Volume,
    /// The user's own block volume.
    Source,
    /// The generated tree.
    Tree,
}

impl Roofline<'_> {
    /// What a clone should take; `None` where a ceiling is missing.
    #[must_use]
    pub fn predict(&self, what: What, facts: &Facts) -> Option<Prediction> {
        let session = self.of(Kind::Session)?;
        let session_seconds = session.seconds()?.median;
        let (mut bounds, mut cpu_parts) = match what {
            What::Volume => self.of_volume(Kind::ScratchRead, facts)?,
            What::Source => self.of_volume(Kind::SourceRead, facts)?,
            What::Tree => self.of_tree(facts)?,
        };
        // In front of what binds the chunks pile up, behind it there are few: about one end touches
        // all of its memory, once.
        let fresh_bytes = facts.data_bytes.min(self.memory_bytes);
        let fresh = self.of(Kind::FreshMemory)?.cpu_per_byte()? * fresh_bytes as f64;
        cpu_parts.push(bound("fresh memory", fresh));
        cpu_parts.push(bound("session", session.cpu_seconds()?.median));
        let cpu_seconds = cpu_parts.iter().map(|part| part.seconds).sum::<f64>();
        bounds.push(bound("processors", cpu_seconds / self.processors()?));
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
        Some(granted_share(self.of(Kind::Hash)?)? * self.cpus as f64)
    }

    fn of_volume(&self, read: Kind, facts: &Facts) -> Option<(Vec<Bound>, Vec<Bound>)> {
        let (read_bytes, data) = (facts.read_bytes as f64, facts.data_bytes as f64);
        let zeros = (read_bytes - data).max(0.0);
        let network = self.network();
        let mut bounds = vec![
            bound("source read", read_bytes / self.rate(read)?),
            bound("network", data / self.rate(network)?),
            bound("target write", data / self.rate(Kind::TargetWrite)?),
        ];
        if read == Kind::ScratchRead
            && let Some(rate) = self.rate(Kind::ReadWrite)
        {
            bounds.push(bound("storage, read and written at once", data / rate));
        }
        let cpu =
            |name, kind, bytes: f64| Some(bound(name, self.of(kind)?.cpu_per_byte()? * bytes));
        let parts = vec![
            cpu("source read", read, read_bytes)?,
            cpu("zero scan", Kind::ZeroScan, zeros)?,
            cpu("data scan", Kind::DataScan, data)?,
            // At both ends.
            cpu("hash", Kind::Hash, 2.0 * data)?,
            cpu("network", network, data)?,
            cpu("target write", Kind::TargetWrite, data)?,
        ];
        Some((bounds, parts))
    }

    fn of_tree(&self, facts: &Facts) -> Option<(Vec<Bound>, Vec<Bound>)> {
        let (read, write) = (self.of(Kind::TreeRead)?, self.of(Kind::TreeWrite)?);
        let bytes = facts.data_bytes as f64;
        let network = self.network();
        let bounds = vec![
            bound("tree read", read.seconds()?.median),
            bound("tree write", write.seconds()?.median),
            bound("network", bytes / self.rate(network)?),
        ];
        let parts = vec![
            bound("tree read", read.cpu_seconds()?.median),
            bound("tree write", write.cpu_seconds()?.median),
            bound("network", self.of(network)?.cpu_per_byte()? * bytes),
        ];
        Some((bounds, parts))
    }

    /// What one of two ends in pods of their own can do: its processor time, in parts, and the bounds
    /// that it has to itself. Of a `tree` the ceilings were measured with another number of files.
    fn of_end(&self, end: End, what: What, facts: &Facts) -> Option<(Vec<Bound>, Vec<Bound>)> {
        let (read_bytes, data) = (facts.read_bytes as f64, facts.data_bytes as f64);
        let cpu = |name: &str, kind, bytes: f64| {
            Some(bound(name, self.of(kind)?.cpu_per_byte()? * bytes))
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
            let measured = self.of(storage)?;
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
        let carried = if self.of(network).is_some() {
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

    fn of(&self, kind: Kind) -> Option<&Ceiling> {
        self.ceilings
            .iter()
            .find(|ceiling| ceiling.kind == kind && !ceiling.repeats.is_empty())
    }

    fn rate(&self, kind: Kind) -> Option<f64> {
        let rate = self.of(kind)?.rate()?.median;
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

    fn predict(report: &crate::report::Report, what: What, facts: Facts) -> Prediction {
        let roofline = Roofline {
            ceilings: &report.ceilings,
            cpus: report.machine.cpus,
            quic: false,
            memory_bytes: GIB / 4,
        };
        roofline.predict(what, &facts).unwrap()
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
        let found = predict(&report, What::Volume, facts);
        // Reading 2, zeros 1, data 1, hashing twice 2, network 1, writing 1, a quarter of memory:
        // 8.25 halves.
        assert!((found.cpu_seconds - 4.175).abs() < 1e-9, "{found:?}");
        assert_eq!(found.binding, "processors");
        assert!((found.seconds - (0.1 + 4.175 / 2.0)).abs() < 1e-9);
        let sum: f64 = found.cpu_parts.iter().map(|part| part.seconds).sum();
        assert!((sum - found.cpu_seconds).abs() < 1e-9);
    }

    #[test]
    fn the_slowest_part_binds() {
        let mut report = example();
        for ceiling in &mut report.ceilings {
            for repeat in &mut ceiling.repeats {
                if ceiling.kind != Kind::Hash {
                    repeat.cost.cpu_seconds = 0.0;
                }
                if ceiling.kind == Kind::TargetWrite {
                    repeat.bytes /= 10;
                }
            }
        }
        let dense = Facts {
            logical_bytes: GIB,
            read_bytes: GIB,
            data_bytes: GIB,
            names: 0,
        };
        let found = predict(&report, What::Volume, dense);
        assert_eq!(found.binding, "target write");
        assert!((found.seconds - 10.1).abs() < 1e-6, "{found:?}");
        let tree = predict(&report, What::Tree, dense);
        assert!(tree.bounds.iter().any(|bound| bound.name == "tree read"));
    }

    #[test]
    fn ends_apart_share_no_processors_unless_they_share_a_node() {
        let report = example();
        let roofline = Roofline {
            ceilings: &report.ceilings,
            cpus: 2,
            quic: false,
            memory_bytes: GIB / 4,
        };
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
        let roofline = Roofline {
            ceilings: &report.ceilings,
            ..roofline
        };
        let tree = predict_apart(&roofline, &roofline, false, What::Tree, &tree).unwrap();
        let read = tree.bounds.iter().find(|bound| bound.name == "tree read");
        assert!((read.unwrap().seconds - 3.0).abs() < 1e-9, "{tree:?}");
    }

    #[test]
    fn without_a_ceiling_nothing_is_said() {
        let mut report = example();
        report.ceilings.retain(|ceiling| ceiling.kind != Kind::TlsN);
        let roofline = Roofline {
            ceilings: &report.ceilings,
            cpus: 2,
            quic: false,
            memory_bytes: 0,
        };
        assert_eq!(roofline.predict(What::Volume, &Facts::default()), None);
    }
}
