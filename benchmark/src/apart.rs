//! Ends that are pods of their own: each measures itself, then their agents clone, and what all of
//! them said becomes one report.
//!
//! A pod says what it measured in one line of its log ([`EndReport`]). The target's says it twice: before
//! it listens for the source, so that whoever watches knows that its storage is left alone from now on,
//! and when it is done.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tempfile::TempDir;
use volferry_agent::progress::End;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::receipt::{Receipt, limit_of_stats};
use volferry_transport::{CredentialsDir, Role, TransportChoice};

use crate::ceiling::cpu::Workbench;
use crate::ceiling::network::Filling;
use crate::ceiling::{Bench, CPU_TIME, Kind, Measured, network, storage, tree};
use crate::cost::Cost;
use crate::limits::Limits;
use crate::machine::Machine;
use crate::place::Place;
use crate::profile::Profile;
use crate::report::{
    Budget, Ceiling, CloneResult, CloneRun, Noise, PodEnd, Pods, Report, SCHEMA, SCHEMA_VERSION,
    Volume,
};
use crate::roofline::{Roofline, What, predict_apart};
use crate::run::{noise, now, warnings};
use crate::settings::{Settings, Tuning};
use crate::shape::{self, Facts, Shape};
use crate::stop::Stop;

/// What the line of a pod's log is called.
pub const END_SCHEMA: &str = "volferry-bench-end";

/// How long one pod waits for the other's streams: it may still be filling its volume.
const SOURCE_WAIT: Duration = Duration::from_secs(3600);

/// Files of the tree that the target makes to measure itself: they are in memory meanwhile.
const TARGET_FILES: u64 = 1000;

/// What a pod is told.
#[derive(Clone, Debug)]
pub struct EndSettings {
    /// Its volume, all of which may be lost: a block device, or a directory.
    pub volume: PathBuf,
    /// What the data is like.
    pub profile: Profile,
    /// What it follows from.
    pub seed: u64,
    /// Small files that fill a directory.
    pub files: u64,
    /// How often everything is measured.
    pub repeats: u32,
    /// Bytes that are read or written at most to measure that.
    pub bytes: u64,
    /// How the agents are set.
    pub tuning: Tuning,
    /// How the other pod is met; without, the network is not measured.
    pub peer: Option<Peer>,
}

/// How two pods meet.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Where the credentials of this end are.
    pub identity: PathBuf,
    /// Where the source dials, or the target listens.
    pub address: String,
}

/// What a pod measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndReport {
    /// [`END_SCHEMA`].
    pub schema: String,
    /// The version of the report that it becomes part of.
    pub schema_version: u32,
    /// Which end.
    pub end: End,
    /// Whether the network was measured, too, or won't be.
    pub is_complete: bool,
    /// The version of volferry that was measured.
    pub volferry: String,
    /// The node.
    pub machine: Machine,
    /// Within which walls.
    pub limits: Limits,
    /// The volume.
    pub volume: Volume,
    /// What the data is like.
    pub profile: String,
    /// What it follows from.
    pub seed: u64,
    /// How the agents are set.
    pub tuning: Tuning,
    /// What the source's volume holds; nothing is known of the target's.
    pub facts: Facts,
    /// What was measured.
    pub ceilings: Vec<Ceiling>,
}

/// All that a report is made of.
#[derive(Clone, Debug, Deserialize)]
pub struct Inputs {
    /// The source's claim, as it was filled one time after the other; at least once.
    pub shapes: Vec<Shaped>,
    /// What the target's pod said.
    pub target: EndReport,
    /// The source's storage class.
    pub from_class: String,
    /// The target's storage class.
    pub to_class: String,
    /// The source pod's node.
    pub source_node: String,
    /// The target pod's node.
    pub target_node: String,
    /// What could be spent, and what was.
    pub budget: Budget,
    /// What else is to be known.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// The source's claim, filled and cloned.
#[derive(Clone, Debug, Deserialize)]
pub struct Shaped {
    /// What the source's pod said. Only the first met the target's.
    pub source: EndReport,
    /// The clones.
    pub clones: Vec<PodClone>,
}

/// A clone by the agents.
#[derive(Clone, Debug, Deserialize)]
pub struct PodClone {
    /// The proof.
    pub receipt: Receipt,
    /// Seconds from the making of the `VolumeClone` to its end.
    pub object_seconds: f64,
}

/// Fills the volume and measures the source's end.
///
/// # Errors
/// When the volume can't be written or read, or the end was asked for.
pub fn measure_source(
    settings: &EndSettings,
    stop: &Stop,
    on_step: &mut dyn FnMut(&str),
) -> Result<EndReport, Failure> {
    on_step("filling the volume");
    let EndSettings { profile, seed, .. } = *settings;
    let volume = &settings.volume;
    let filled = match volume.is_dir() {
        true => {
            shape::remove_tree(volume)?;
            shape::make_tree(volume, profile, settings.files, seed, stop)?
        }
        false => shape::fill_device(volume, profile, seed, settings.tuning.direct, stop)?,
    };
    let facts = filled.facts;
    let bench = EndBench::new(settings, End::Source, filled)?;
    let mut report = bench.begin(facts);
    let own = match volume.is_dir() {
        true => Kind::TreeRead,
        false => Kind::ScratchRead,
    };
    let kinds = [
        own,
        Kind::ZeroScan,
        Kind::DataScan,
        Kind::Hash,
        Kind::FreshMemory,
        Kind::TlsSeal,
    ];
    bench.measure(&kinds, &mut report, stop, on_step)?;
    bench.meet(&mut report, on_step)?;
    Ok(report)
}

/// Measures the target's end, and tells `on_storage_done` what it is before it meets the source.
///
/// # Errors
/// When the volume can't be written, or the end was asked for.
pub fn measure_target(
    settings: &EndSettings,
    stop: &Stop,
    on_step: &mut dyn FnMut(&str),
    on_storage_done: &mut dyn FnMut(&EndReport),
) -> Result<EndReport, Failure> {
    let is_tree = settings.volume.is_dir();
    let memory = tempdir()?;
    let shape = match is_tree {
        true => {
            let files = settings.files.min(TARGET_FILES);
            shape::make_tree(memory.path(), settings.profile, files, settings.seed, stop)?
        }
        false => Shape {
            name: settings.profile.to_string(),
            path: settings.volume.clone(),
            facts: Facts::default(),
        },
    };
    let bench = EndBench::new(settings, End::Target, shape)?;
    let mut report = bench.begin(Facts::default());
    let own = match is_tree {
        true => Kind::TreeWrite,
        false => Kind::TargetWrite,
    };
    let kinds = [own, Kind::Hash, Kind::FreshMemory, Kind::TlsOpen];
    bench.measure(&kinds, &mut report, stop, on_step)?;
    // What was made for measuring is gone before anybody clones to the volume.
    let EndBench { settings, rest, .. } = bench;
    rest.close()?;
    if settings.peer.is_some() {
        report.is_complete = false;
        on_storage_done(&report);
    }
    meet_source(settings, &mut report, on_step)?;
    Ok(report)
}

/// One end with what its ceilings are measured with.
struct EndBench<'a> {
    settings: &'a EndSettings,
    end: End,
    shape: Shape,
    full: Settings,
    cpu: Arc<Workbench>,
    rest: Rest,
}

/// What has to go again.
struct Rest {
    place: Place,
    _scratch: TempDir,
}

impl Rest {
    fn close(self) -> Result<(), Failure> {
        self.place.close()
    }
}

impl<'a> EndBench<'a> {
    fn new(settings: &'a EndSettings, end: End, shape: Shape) -> Result<Self, Failure> {
        let scratch = tempdir()?;
        // A source writes nothing but its volume.
        let target = match end {
            End::Source => scratch.path().join("none"),
            End::Target => settings.volume.clone(),
        };
        let full = Settings {
            source: settings.volume.clone(),
            target,
            scratch: Some(scratch.path().to_owned()),
            overwrite: true,
            profiles: vec![settings.profile],
            size: Some(settings.bytes),
            files: Some(settings.files),
            seed: settings.seed,
            repeats: settings.repeats,
            budget: Duration::MAX,
            budget_bytes: u64::MAX,
            drop_caches: false,
            tuning: settings.tuning,
        };
        let place = Place::claim(&full)?;
        // The pod has as much memory as an agent's, and chunks are held twice here: data and zeros.
        let half = Tuning {
            memory_bytes: settings.tuning.memory_bytes / 2,
            ..settings.tuning
        };
        Ok(Self {
            cpu: Arc::new(Workbench::new(half, settings.profile, settings.seed)?),
            settings,
            end,
            shape,
            full,
            rest: Rest {
                place,
                _scratch: scratch,
            },
        })
    }

    fn begin(&self, facts: Facts) -> EndReport {
        EndReport {
            schema: END_SCHEMA.to_owned(),
            schema_version: SCHEMA_VERSION,
            end: self.end,
            is_complete: true,
            volferry: env!("CARGO_PKG_VERSION").to_owned(),
            machine: Machine::read(),
            limits: Limits::read(),
            volume: Volume::look_at(&self.settings.volume),
            profile: self.settings.profile.to_string(),
            seed: self.settings.seed,
            tuning: self.settings.tuning,
            facts,
            ceilings: Vec::new(),
        }
    }

    fn measure(
        &self,
        kinds: &[Kind],
        report: &mut EndReport,
        stop: &Stop,
        on_step: &mut dyn FnMut(&str),
    ) -> Result<(), Failure> {
        let tuning = self.settings.tuning;
        report.ceilings.extend(kinds.iter().map(|kind| {
            let threads = match kind {
                Kind::TargetWrite | Kind::TreeWrite => tuning.writers,
                Kind::TreeRead => tuning.tree_readers,
                _ => tuning.readers,
            };
            Ceiling::new(*kind, threads)
        }));
        let bench = Bench {
            settings: &self.full,
            place: &self.rest.place,
            volumes: std::slice::from_ref(&self.shape),
            own_volume: None,
            tree: Some(&self.shape),
            cpu: &self.cpu,
            stop,
        };
        for round in 0..self.settings.repeats {
            for ceiling in &mut report.ceilings {
                stop.check()?;
                on_step(&format!("round {}: {}", round + 1, ceiling.kind.sentence()));
                let path = &self.shape.path;
                let measured = match ceiling.kind {
                    Kind::ScratchRead => storage::read(&bench, path, self.settings.bytes),
                    Kind::TargetWrite => storage::write(&bench, self.settings.bytes),
                    Kind::TreeRead => {
                        shape::evict_tree(path);
                        tree::read(&bench, &self.shape)
                    }
                    Kind::TreeWrite => tree::write(&bench, &self.shape, round),
                    Kind::ZeroScan => self.cpu.scan_zeros(CPU_TIME),
                    Kind::DataScan => self.cpu.scan_data(CPU_TIME),
                    Kind::FreshMemory => self.cpu.fresh_memory(),
                    Kind::TlsSeal => self.cpu.records(CPU_TIME, false),
                    Kind::TlsOpen => self.cpu.records(CPU_TIME, true),
                    // Streams have an order of their own, and the rest takes both ends.
                    _ => self.cpu.hash(CPU_TIME),
                };
                ceiling.repeats.push(measured?);
            }
        }
        Ok(())
    }

    /// Dials the target.
    fn meet(&self, report: &mut EndReport, on_step: &mut dyn FnMut(&str)) -> Result<(), Failure> {
        let Some(peer) = &self.settings.peer else {
            return Ok(());
        };
        on_step("filling streams to the other pod");
        let credentials = CredentialsDir::new(&peer.identity, Role::Source);
        let streams = streams(self.settings.tuning);
        let fillings = streams.map(|(_kind, filling)| filling);
        let filled = network::send_to(&peer.address, &credentials, &self.cpu, &fillings)?;
        note(report, streams, filled);
        Ok(())
    }
}

/// Listens for the source.
fn meet_source(
    settings: &EndSettings,
    report: &mut EndReport,
    on_step: &mut dyn FnMut(&str),
) -> Result<(), Failure> {
    let Some(peer) = &settings.peer else {
        return Ok(());
    };
    on_step("waiting for streams of the other pod");
    let address: SocketAddr = peer.address.parse().map_err(|error| {
        let text = format!("{:?} is no address to listen at: {error}", peer.address);
        Failure::new(FailureCode::Usage, text)
    })?;
    let credentials = CredentialsDir::new(&peer.identity, Role::Target);
    let streams = streams(settings.tuning);
    let fillings = streams.map(|(_kind, filling)| filling);
    let filled = network::receive_at(
        address,
        credentials,
        settings.tuning,
        &fillings,
        SOURCE_WAIT,
    )?;
    note(report, streams, filled);
    report.is_complete = true;
    Ok(())
}

/// The kinds of streams, in the order in which both ends go through them.
const fn streams(tuning: Tuning) -> [(Kind, Filling); 4] {
    [
        (Kind::Tls1, (TransportChoice::Tls, 1)),
        (Kind::TlsN, (TransportChoice::Tls, tuning.streams)),
        (Kind::Quic1, (TransportChoice::Quic, 1)),
        (Kind::QuicN, (TransportChoice::Quic, tuning.streams)),
    ]
}

/// Notes what became of the streams. One that can't be had is left out: a policy may be in the way.
fn note(
    report: &mut EndReport,
    streams: [(Kind, Filling); 4],
    filled: Vec<Result<Measured, Failure>>,
) {
    for ((kind, (_choice, count)), filled) in streams.into_iter().zip(filled) {
        report.ceilings.push(Ceiling {
            skipped: filled.as_ref().err().map(ToString::to_string),
            repeats: filled.into_iter().collect(),
            ..Ceiling::new(kind, usize::from(count))
        });
    }
}

/// One report of what the pods and their clones said; `None` when the source was never filled.
#[must_use]
pub fn join(inputs: Inputs) -> Option<Report> {
    let Inputs { shapes, target, .. } = inputs;
    let source = shapes.first()?.source.clone();
    let of = |end: &EndReport, kinds: &[Kind]| -> Vec<Ceiling> {
        let wanted = |ceiling: &&Ceiling| kinds.contains(&ceiling.kind);
        end.ceilings.iter().filter(wanted).cloned().collect()
    };
    let mut ceilings = source.ceilings.clone();
    let only_target = [Kind::TargetWrite, Kind::TreeWrite, Kind::TlsOpen];
    ceilings.extend(of(&target, &only_target));
    ceilings.sort_by_key(|ceiling| ceiling.kind);
    let (facts, is_tree) = (source.facts, source.facts.names > 0);
    let one_node = inputs.source_node == inputs.target_node;
    let met = of(&source, &streams(source.tuning).map(|(kind, _)| kind));
    let results = shapes.into_iter().enumerate().map(|(number, mut shape)| {
        if number > 0 {
            shape.source.ceilings.extend(met.iter().cloned());
        }
        clone_result(&shape, &target, one_node)
    });
    let clones = results.collect();
    let mut report = Report {
        schema: SCHEMA.to_owned(),
        schema_version: SCHEMA_VERSION,
        date: now(),
        volferry: source.volferry.clone(),
        machine: source.machine.clone(),
        limits: source.limits,
        source: source.volume.clone(),
        target: target.volume.clone(),
        scratch: source.volume.clone(),
        seed: source.seed,
        size_bytes: facts.logical_bytes,
        files: if is_tree { facts.names } else { 0 },
        tuning: source.tuning,
        drops_caches: false,
        budget: inputs.budget,
        ceilings,
        clones,
        pods: Some(Pods {
            from_class: inputs.from_class,
            to_class: inputs.to_class,
            mode: if is_tree { "filesystem" } else { "block" }.to_owned(),
            source: pod_end(source, inputs.source_node),
            target: pod_end(target, inputs.target_node),
        }),
        noise: Noise::default(),
        warnings: inputs.warnings,
    };
    report.noise = noise(&report);
    let more = warnings(&report);
    report.warnings.extend(more);
    Some(report)
}

/// The clones of what the source's pod made, and what the ends' ceilings say of them.
fn clone_result(shape: &Shaped, target: &EndReport, one_node: bool) -> CloneResult {
    let source = &shape.source;
    let facts = source.facts;
    let (name, what) = match facts.names > 0 {
        true => ("files", What::Tree),
        false => (&*source.profile, What::Volume),
    };
    let prediction = predict_apart(&line(source), &line(target), one_node, what, &facts);
    let repeats: Vec<_> = shape.clones.iter().map(clone_run).collect();
    CloneResult {
        name: name.to_owned(),
        facts,
        skipped: repeats.is_empty().then(|| "no clone was made".to_owned()),
        prediction: prediction.filter(|_| !repeats.is_empty()),
        repeats,
        trace: Vec::new(),
    }
}

fn line(end: &EndReport) -> Roofline<'_> {
    Roofline {
        ceilings: &end.ceilings,
        cpus: end.machine.cpus,
        quic: end.tuning.quic,
        memory_bytes: end.tuning.memory_bytes as u64,
    }
}

fn clone_run(clone: &PodClone) -> CloneRun {
    let receipt = &clone.receipt;
    let [source, target] = [receipt.source.cpu_seconds, receipt.target.cpu_seconds];
    CloneRun {
        cost: Cost {
            seconds: receipt.seconds,
            cpu_seconds: source + target,
            ..Cost::default()
        },
        source_cpu_seconds: source,
        target_cpu_seconds: target,
        digest: receipt.digest,
        limit: limit_of_stats(&receipt.source, &receipt.target),
        object_seconds: Some(clone.object_seconds),
    }
}

fn pod_end(end: EndReport, node: String) -> PodEnd {
    PodEnd {
        node,
        machine: end.machine,
        limits: end.limits,
        ceilings: end.ceilings,
    }
}

fn tempdir() -> Result<TempDir, Failure> {
    tempfile::tempdir().map_err(|error| {
        let text = format!("no directory can be made for what is temporary: {error}");
        Failure::new(FailureCode::TargetOpen, text)
    })
}

#[cfg(test)]
mod tests;
