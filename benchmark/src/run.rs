//! The order of everything: what is made, then rounds of ceilings and clones until the budget is
//! spent, then the roofline.
//!
//! Each round measures everything once, so that ceilings and clones meet the same machine, and a
//! budget that ends early cuts repeats instead of kinds.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use volferry_agent::trace::Sample;
use volferry_protocol::failure::{Failure, FailureClass, FailureCode};
use volferry_protocol::receipt::limit_of_stats;
use volferry_transport::TransportChoice;

use crate::Cloner;
use crate::ceiling::cpu::Workbench;
use crate::ceiling::{Bench, CPU_TIME, Kind, Measured, NETWORK_TIME, network, storage, tree};
use crate::cost::Stopwatch;
use crate::limits::Limits;
use crate::machine::Machine;
use crate::place::{Place, is_empty};
use crate::profile::Profile;
use crate::report::{
    Budget, Ceiling, CloneResult, CloneRun, Noise, Report, SCHEMA, SCHEMA_VERSION, Volume,
};
use crate::roofline::{Roofline, What, granted_share};
use crate::settings::Settings;
use crate::shape::{self, Facts, Shape};
use crate::stats::Summary;
use crate::stop::Stop;

/// Bytes of a generated volume at most, where none were told.
const SIZE_MAX: u64 = 1 << 30;

/// And at least.
const SIZE_MIN: u64 = 64 << 20;

/// The part of the time that one pass over a volume may take.
const PASS_SHARE: f64 = 0.03;

/// The part of the time that is for measuring; the rest is for removing volumes and for what takes
/// longer than the last time.
const MEASURING_SHARE: f64 = 0.9;

/// Removing a tree takes such a part of the time of making it.
const REMOVING_SHARE: f64 = 0.5;

/// Bytes that are written to see how fast the storage is.
const PROBE_LEN: u64 = 64 << 20;

/// Files of the generated tree for each MiB of a volume, where none were told.
pub(crate) const FILES_PER_MIB: u64 = 5;

/// Names of a user's tree that are counted before it is left alone.
const NAMES_MAX: u64 = 1_000_000;

/// A spread, and shares of the processors, beyond which the machine counts as noisy.
const SPREAD_MAX_PERCENT: f64 = 20.0;
const OTHERS_MAX: f64 = 0.1;
const STOLEN_MAX: f64 = 0.02;

/// Measures everything, and tells `on_step` what is about to be done.
///
/// # Errors
/// When the target may not be written, something can't be made, a clone fails, or the end was asked
/// for. All that was made is gone then.
pub fn run(
    settings: &Settings,
    cloner: &dyn Cloner,
    stop: &Stop,
    mut on_step: impl FnMut(&str),
) -> Result<Report, Failure> {
    let begun = Instant::now();
    let mut report = begin(settings);
    let place = Place::claim(settings)?;
    report.scratch = Volume::look_at(place.scratch());
    on_step(&format!(
        "generated sources are made in {}",
        place.scratch().display()
    ));
    let mut runner = Runner {
        settings,
        cloner,
        stop,
        place: &place,
        begun,
        removing: Duration::ZERO,
        report: &mut report,
        on_step: &mut on_step,
    };
    let done = runner.run();
    let closed = place.close();
    done?;
    // What was measured is worth having all the same.
    report.warnings.extend(closed.err().map(|left| left.text));
    report.budget.spent_seconds = begun.elapsed().as_secs_f64();
    Ok(report)
}

/// The time, as in RFC 3339.
pub(crate) fn now() -> String {
    let now = OffsetDateTime::now_utc();
    now.format(&Rfc3339).unwrap_or_default()
}

/// A report without measurements.
fn begin(settings: &Settings) -> Report {
    Report {
        schema: SCHEMA.into(),
        schema_version: SCHEMA_VERSION,
        date: now(),
        volferry: env!("CARGO_PKG_VERSION").into(),
        machine: Machine::read(),
        limits: Limits::read(),
        source: Volume::look_at(&settings.source),
        target: Volume::look_at(&settings.target),
        scratch: Volume::default(),
        seed: settings.seed,
        size_bytes: 0,
        files: 0,
        tuning: settings.tuning,
        drops_caches: settings.drop_caches,
        budget: Budget {
            seconds: settings.budget.as_secs_f64(),
            bytes: settings.budget_bytes,
            ..Budget::default()
        },
        ceilings: Vec::new(),
        clones: Vec::new(),
        pods: None,
        noise: Noise::default(),
        warnings: Vec::new(),
    }
}

struct Runner<'a> {
    settings: &'a Settings,
    cloner: &'a dyn Cloner,
    stop: &'a Stop,
    place: &'a Place,
    begun: Instant,
    /// How long it will take to remove the trees that were made.
    removing: Duration,
    report: &'a mut Report,
    on_step: &'a mut dyn FnMut(&str),
}

/// Something to measure again and again.
struct Step {
    work: Work,
    /// Bytes that it writes.
    bytes: u64,
    /// Whether it makes a tree, which stays until the end.
    makes_tree: bool,
    /// How long it took last.
    took: Duration,
}

#[derive(Clone, Copy)]
enum Work {
    /// The ceiling at this place of the report.
    Ceiling(usize),
    /// The clone at this place of the report, and of the shapes.
    Clone(usize),
}

/// What can be cloned.
struct Shapes {
    volumes: Vec<Shape>,
    tree: Option<Shape>,
    source: Option<(Shape, What)>,
}

impl Shapes {
    /// In the order of the report's clones.
    fn all(&self) -> Vec<(&Shape, Option<What>)> {
        let volumes = self.volumes.iter().map(|shape| (shape, Some(What::Volume)));
        let tree = self.tree.iter().map(|shape| (shape, Some(What::Tree)));
        // A tree of somebody else's has other files than ours: the ceilings say nothing of it.
        let source = self
            .source
            .iter()
            .map(|(shape, what)| (shape, Some(*what).filter(|what| *what != What::Tree)));
        volumes.chain(tree).chain(source).collect()
    }
}

impl Runner<'_> {
    fn run(&mut self) -> Result<(), Failure> {
        let shapes = self.make()?;
        let profile = self.settings.profiles.first().copied();
        let profile = profile.unwrap_or(Profile::Random);
        let workbench = Workbench::new(self.settings.tuning, profile, self.settings.seed)?;
        let workbench = Arc::new(workbench);
        let bench = Bench {
            settings: self.settings,
            place: self.place,
            volumes: &shapes.volumes,
            tree: shapes.tree.as_ref(),
            cpu: &workbench,
            stop: self.stop,
        };
        let session = self.make_session()?;
        (self.on_step)("warming up");
        workbench.hash(CPU_TIME)?;
        self.clone_once(&session, "warm-up", &mut |_sample| {})?;

        let mut steps = self.plan(&shapes);
        for round in 0..self.settings.repeats {
            let mut ran = 0;
            for step in &mut steps {
                self.stop.check()?;
                if let Some(reason) = self.over(step, round) {
                    if round == 0 {
                        self.skip(step.work, reason);
                    }
                    continue;
                }
                let since = Instant::now();
                match step.work {
                    Work::Ceiling(at) => self.ceiling(&bench, &workbench, &session, at, round)?,
                    Work::Clone(at) => self.clone_shape(&shapes, at, round)?,
                }
                self.report.budget.spent_bytes += step.bytes;
                step.took = since.elapsed();
                if step.makes_tree {
                    self.removing += step.took.mul_f64(REMOVING_SHARE);
                }
                ran += 1;
            }
            if ran == 0 {
                break;
            }
        }
        self.conclude(&shapes);
        Ok(())
    }

    /// Why the step can't be afforded.
    fn over(&self, step: &Step, round: u32) -> Option<String> {
        let budget = self.report.budget;
        if budget.spent_bytes.saturating_add(step.bytes) > budget.bytes {
            return Some(format!("the budget of {} bytes is spent", budget.bytes));
        }
        let expected = match round {
            0 => self.guess(step.bytes),
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

    /// How long something takes that writes so much, as far as the storage alone is known.
    fn guess(&self, bytes: u64) -> Duration {
        let rate = self
            .report
            .ceiling(Kind::TargetWrite)
            .and_then(Ceiling::rate);
        let seconds = rate.map_or(0.0, |rate| bytes as f64 / rate.median);
        Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX)
    }

    fn skip(&mut self, work: Work, reason: String) {
        let skipped = match work {
            Work::Ceiling(at) => self.report.ceilings.get_mut(at).map(|one| &mut one.skipped),
            Work::Clone(at) => self.report.clones.get_mut(at).map(|one| &mut one.skipped),
        };
        if let Some(skipped) = skipped {
            *skipped = Some(reason);
        }
    }

    /// Makes what is to be cloned, and looks at the user's own.
    fn make(&mut self) -> Result<Shapes, Failure> {
        let settings = self.settings;
        let size = match settings.size {
            Some(size) => size,
            None => self.choose_size()?,
        };
        self.report.size_bytes = size;
        let files = match settings.files {
            _ if self.place.is_device() => 0,
            Some(files) => files,
            None => (size >> 20) * FILES_PER_MIB,
        };
        self.report.files = files;
        let mut volumes = Vec::new();
        for profile in &settings.profiles {
            (self.on_step)(&format!("making the volume {profile}"));
            let scratch = self.place.scratch();
            let shape = shape::make_volume(scratch, *profile, size, settings.seed, self.stop)?;
            self.report.budget.spent_bytes += shape.facts.read_bytes;
            volumes.push(shape);
        }
        // The densest first: with it the storage is measured.
        volumes.sort_by_key(|shape| std::cmp::Reverse(shape.facts.read_bytes));
        let tree = match files {
            0 => None,
            files => {
                (self.on_step)(&format!("making {files} small files"));
                let profile = settings.profiles.first().copied();
                let profile = profile.unwrap_or(Profile::Random);
                let scratch = self.place.scratch();
                let made = shape::make_tree(scratch, profile, files, settings.seed, self.stop)?;
                self.report.budget.spent_bytes += shape::tree_bytes(files);
                Some(made)
            }
        };
        let source = self.own_source()?;
        Ok(Shapes {
            volumes,
            tree,
            source,
        })
    }

    /// A size that the storage can bear within the budget.
    fn choose_size(&mut self) -> Result<u64, Failure> {
        (self.on_step)("seeing how fast the storage is");
        let path = self.place.scratch().join("probe");
        let failed = |error: std::io::Error| {
            let text = format!("{} can't be written: {error}", path.display());
            Failure::new(FailureCode::TargetWrite, text)
        };
        let since = Instant::now();
        let mut file = File::create_new(&path).map_err(failed)?;
        let mut left = PROBE_LEN;
        let piece = vec![0xa5; 1 << 20];
        while left > 0 && since.elapsed() < Duration::from_secs(5) {
            self.stop.check()?;
            file.write_all(&piece).map_err(failed)?;
            left = left.saturating_sub(piece.len() as u64);
        }
        file.sync_all().map_err(failed)?;
        let written = PROBE_LEN - left;
        let rate = written as f64 / since.elapsed().as_secs_f64();
        fs::remove_file(&path).map_err(failed)?;
        self.report.budget.spent_bytes += written;
        let affordable = rate * self.settings.budget.as_secs_f64() * PASS_SHARE;
        // A third of the bytes for what is made and written once in each of some rounds.
        let affordable = affordable.min(self.settings.budget_bytes as f64 / 12.0);
        let steps = (affordable / SIZE_MIN as f64).floor().max(1.0);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between one and a few thousand"
        )]
        let size = (steps as u64).saturating_mul(SIZE_MIN);
        Ok(size.min(SIZE_MAX))
    }

    /// The user's own source, where it is small enough.
    fn own_source(&self) -> Result<Option<(Shape, What)>, Failure> {
        let path = &self.settings.source;
        let metadata = fs::metadata(path).map_err(|error| {
            let text = format!("{} can't be looked at: {error}", path.display());
            Failure::new(FailureCode::SourceOpen, text)
        })?;
        let shape = |facts| Shape {
            name: "source".into(),
            path: path.clone(),
            facts,
        };
        if metadata.is_dir() {
            if self.place.is_device() || is_empty(path)? {
                return Ok(None);
            }
            let facts = shape::look_at_tree(path, NAMES_MAX, self.stop)?;
            return Ok(facts.map(|facts| (shape(facts), What::Tree)));
        }
        // What of it is data shows when it is cloned; until then all of it counts.
        let size = volferry_storage::open_source(path, &volferry_storage::SourceOptions::default())
            .map_err(|error| {
                volferry_agent::failure::of_storage(volferry_agent::progress::End::Source, &error)
            })?
            .size();
        let facts = Facts {
            logical_bytes: size,
            read_bytes: size,
            data_bytes: size,
            names: 0,
        };
        Ok(Some((shape(facts), What::Source)))
    }

    /// A volume that holds next to nothing.
    fn make_session(&self) -> Result<Shape, Failure> {
        let path = self.place.scratch().join("session.img");
        let size = u64::from(self.settings.tuning.chunk_size.bytes());
        File::create_new(&path)
            .and_then(|file| file.set_len(size))
            .map_err(|error| {
                let text = format!("{} can't be made: {error}", path.display());
                Failure::new(FailureCode::TargetWrite, text)
            })?;
        Ok(Shape {
            name: "session".into(),
            path,
            facts: Facts::default(),
        })
    }

    /// All steps of a round, with their places in the report.
    fn plan(&mut self, shapes: &Shapes) -> Vec<Step> {
        let tuning = self.settings.tuning;
        let tree_bytes = shapes
            .tree
            .as_ref()
            .map(|_| shape::tree_bytes(self.report.files));
        let densest = shapes.volumes.first().map(|shape| shape.facts.read_bytes);
        let mut steps = Vec::new();
        for kind in Kind::ALL {
            let skipped = match kind {
                Kind::SourceRead if !matches!(shapes.source, Some((_, What::Source))) => {
                    Some("the source is a directory")
                }
                Kind::ScratchRead | Kind::TargetWrite | Kind::ReadWrite | Kind::NetworkPaced
                    if densest.is_none() =>
                {
                    Some("no block volume is to be cloned")
                }
                Kind::TreeRead | Kind::TreeWrite | Kind::TreeReadWrite if tree_bytes.is_none() => {
                    Some("no tree is to be cloned")
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
                Kind::ReadWrite if skipped.is_none() => shapes.volumes.iter().map(Some).collect(),
                _ => vec![None],
            };
            for volume in each {
                if skipped.is_none() {
                    steps.push(Step {
                        work: Work::Ceiling(self.report.ceilings.len()),
                        bytes: match kind {
                            Kind::TargetWrite => densest.unwrap_or(0),
                            Kind::ReadWrite => volume.map_or(0, |shape| shape.facts.data_bytes),
                            Kind::TreeWrite | Kind::TreeReadWrite => tree_bytes.unwrap_or(0),
                            _ => 0,
                        },
                        makes_tree: matches!(kind, Kind::TreeWrite | Kind::TreeReadWrite),
                        took: Duration::ZERO,
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
                makes_tree: shape.facts.names > 0,
                took: Duration::ZERO,
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

    fn ceiling(
        &mut self,
        bench: &Bench<'_>,
        workbench: &Arc<Workbench>,
        session: &Shape,
        at: usize,
        round: u32,
    ) -> Result<(), Failure> {
        let Some(ceiling) = self.report.ceilings.get(at) else {
            return Ok(());
        };
        let (kind, volume) = (ceiling.kind, ceiling.volume.clone());
        (self.on_step)(&format!("round {}: {}", round + 1, ceiling.title()));
        let tuning = self.settings.tuning;
        let fill_at =
            |choice, streams, pace| network::fill(workbench, choice, streams, NETWORK_TIME, pace);
        let fill = |choice, streams| fill_at(choice, streams, None);
        let measured = match kind {
            Kind::SourceRead => storage::read(bench, &self.settings.source, self.report.size_bytes),
            Kind::ScratchRead => storage::read(bench, &bench.volume()?.path, u64::MAX),
            Kind::ZeroScan => workbench.scan_zeros(CPU_TIME),
            Kind::DataScan => workbench.scan_data(CPU_TIME),
            Kind::Hash => workbench.hash(CPU_TIME),
            Kind::FreshMemory => workbench.fresh_memory(),
            Kind::TlsSeal => workbench.records(CPU_TIME, false),
            Kind::TlsOpen => workbench.records(CPU_TIME, true),
            Kind::Tls1 => fill(TransportChoice::Tls, 1),
            Kind::TlsN => fill(TransportChoice::Tls, tuning.streams),
            Kind::Quic1 => fill(TransportChoice::Quic, 1),
            Kind::QuicN => fill(TransportChoice::Quic, tuning.streams),
            Kind::TargetWrite => storage::write(bench, bench.volume()?.facts.read_bytes),
            Kind::ReadWrite => {
                let mut volumes = bench.volumes.iter();
                match volumes.find(|shape| Some(&shape.name) == volume.as_ref()) {
                    None => return Ok(()),
                    Some(shape) => {
                        self.cool(shape);
                        storage::read_and_write(bench, &shape.path)
                    }
                }
            }
            Kind::NetworkPaced => {
                let paced = self.report.ceiling(Kind::ReadWrite).and_then(Ceiling::rate);
                let choice = match tuning.quic {
                    true => TransportChoice::Quic,
                    false => TransportChoice::Tls,
                };
                fill_at(choice, tuning.streams, paced.map(|rate| rate.median))
            }
            Kind::TreeRead | Kind::TreeWrite | Kind::TreeReadWrite => match bench.tree {
                None => return Ok(()),
                Some(tree) if kind == Kind::TreeWrite => tree::write(bench, tree, round),
                Some(tree) => {
                    self.cool(tree);
                    match kind {
                        Kind::TreeRead => tree::read(bench, tree),
                        _ => tree::read_and_write(bench, tree, round),
                    }
                }
            },
            Kind::Session => {
                let run = self.clone_once(session, &format!("session-{round}"), &mut |_sample| {});
                run.map(|run| Measured {
                    cost: run.cost,
                    ..Measured::default()
                })
            }
        };
        let measured = match measured {
            Err(failure)
                if matches!(kind, Kind::Quic1 | Kind::QuicN)
                    && failure.code.class() == FailureClass::Network =>
            {
                self.skip(
                    Work::Ceiling(at),
                    format!("QUIC can't be had here: {failure}"),
                );
                return Ok(());
            }
            measured => measured?,
        };
        if let Some(ceiling) = self.report.ceilings.get_mut(at) {
            ceiling.repeats.push(measured);
        }
        Ok(())
    }

    fn clone_shape(&mut self, shapes: &Shapes, at: usize, round: u32) -> Result<(), Failure> {
        let Some((shape, _what)) = shapes.all().get(at).copied() else {
            return Ok(());
        };
        (self.on_step)(&format!("round {}: cloning {}", round + 1, shape.name));
        self.cool(shape);
        let mut trace = Vec::new();
        let name = format!("clone-{}-{round}", shape.name);
        let run = self.clone_once(shape, &name, &mut |sample| trace.push(sample))?;
        if let Some(result) = self.report.clones.get_mut(at) {
            result.repeats.push(run);
            result.trace = trace;
        }
        Ok(())
    }

    /// Takes what is cached of a generated source out of memory, or all that is.
    fn cool(&mut self, shape: &Shape) {
        if shape.path.starts_with(self.place.scratch()) {
            match File::open(&shape.path) {
                Ok(file) if !shape.path.is_dir() => shape::evict(&file),
                _ => shape::evict_tree(&shape.path),
            }
        }
        if self.settings.drop_caches {
            rustix::fs::sync();
            // 3: the page cache, and names and inodes.
            if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
                let text = format!("the caches could not be dropped: {error}; it takes root");
                if !self.report.warnings.contains(&text) {
                    self.report.warnings.push(text);
                }
            }
        }
    }

    fn clone_once(
        &self,
        shape: &Shape,
        name: &str,
        on_sample: &mut dyn FnMut(Sample),
    ) -> Result<CloneRun, Failure> {
        let target: PathBuf = self.place.target(name);
        let watch = Stopwatch::start();
        let cloned = self.cloner.clone(&shape.path, &target, on_sample);
        let cost = watch.stop();
        // A tree stays until the end: ext4 passes over inodes that were freed a moment ago, so that
        // the next tree would take longer.
        if !target.is_dir() {
            self.place.remove(&target);
        }
        let receipt = cloned?;
        Ok(CloneRun {
            cost,
            source_cpu_seconds: receipt.source.cpu_seconds,
            target_cpu_seconds: receipt.target.cpu_seconds,
            digest: receipt.digest,
            limit: limit_of_stats(&receipt.source, &receipt.target),
            object_seconds: None,
        })
    }

    /// Predicts, and says what disturbed.
    fn conclude(&mut self, shapes: &Shapes) {
        let report = &mut *self.report;
        let roofline = Roofline {
            ceilings: &report.ceilings,
            cpus: report.machine.cpus,
            quic: report.tuning.quic,
            memory_bytes: report.tuning.memory_bytes as u64,
        };
        for (result, (_, what)) in report.clones.iter_mut().zip(shapes.all()) {
            let predict = |what| roofline.predict(what, &result.name, &result.facts);
            result.prediction = what
                .and_then(predict)
                .filter(|_| !result.repeats.is_empty());
        }
        report.noise = noise(report);
        let warnings = warnings(report);
        report.warnings.extend(warnings);
    }
}

/// What went on beside the measurements that are processor time only: there is no kernel thread of
/// ours in it.
pub(crate) fn noise(report: &Report) -> Noise {
    let quiet = [Kind::ZeroScan, Kind::DataScan, Kind::Hash, Kind::TlsSeal];
    let costs = || {
        let ceilings = report
            .ceilings
            .iter()
            .filter(|one| quiet.contains(&one.kind));
        ceilings
            .flat_map(|one| &one.repeats)
            .map(|repeat| repeat.cost)
    };
    let seconds: f64 = costs().map(|cost| cost.seconds).sum();
    let all = seconds * report.machine.cpus.max(1) as f64;
    if all <= 0.0 {
        return Noise::default();
    }
    let hash = report.ceiling(Kind::Hash);
    Noise {
        others_share: costs().map(|cost| cost.of_others()).sum::<f64>() / all,
        stolen_share: costs().map(|cost| cost.machine_stolen_seconds).sum::<f64>() / all,
        granted_share: hash.and_then(granted_share).unwrap_or(1.0),
    }
}

pub(crate) fn warnings(report: &Report) -> Vec<String> {
    let mut warnings = Vec::new();
    let percent = |share: f64| format!("{:.0} %", share * 100.0);
    let noise = report.noise;
    if noise.others_share > OTHERS_MAX {
        warnings.push(format!(
            "others used {} of the processors: compare processor time, or wait until the machine is quiet",
            percent(noise.others_share)
        ));
    }
    if noise.stolen_share > STOLEN_MAX {
        warnings.push(format!(
            "the hypervisor took {} of the processors away",
            percent(noise.stolen_share)
        ));
    }
    for clone in &report.clones {
        let spread = clone.seconds().map_or(0.0, Summary::spread_percent);
        if spread > SPREAD_MAX_PERCENT {
            warnings.push(format!(
                "the clones of {} lie {spread:.0} % apart: the machine was not quiet",
                clone.name
            ));
        }
        if clone.repeats.len() == 1 {
            warnings.push(format!(
                "{} was cloned once only: nothing tells how far that is off",
                clone.name
            ));
        }
        let mut digests = clone.repeats.iter().map(|run| run.digest);
        if let Some(first) = digests.next()
            && digests.any(|other| other != first)
        {
            warnings.push(format!("{} changed between its clones", clone.name));
        }
    }
    warnings
}

#[cfg(test)]
pub(crate) mod tests;
