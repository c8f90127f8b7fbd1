//! The order of everything: what is made, then rounds of ceilings and clones until the budget is
//! spent, then the roofline.
//!
//! Each round measures everything once, so that ceilings and clones meet the same machine, and a
//! budget that ends early cuts repeats instead of kinds.

use std::fs::{self, File};
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
use crate::place::Place;
use crate::profile::Profile;
use crate::report::{
    Budget, Ceiling, CloneResult, CloneRun, Noise, Report, SCHEMA, SCHEMA_VERSION, Volume,
};
use crate::roofline::Roofline;
use crate::settings::Settings;
use crate::shape::{self, Shape};
use crate::stop::Stop;

mod make;
mod noise;
mod plan;

use make::Shapes;
pub(crate) use noise::{noise, warnings};
use plan::{Step, Work, removing};

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
            own_volume: shapes.own_volume(),
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
                if !self.is_due(step, round) {
                    continue;
                }
                let since = Instant::now();
                let done = match step.work {
                    Work::Ceiling(at) => self.ceiling(&bench, &workbench, &session, at, round),
                    Work::Clone(at) => self.clone_shape(&shapes, at, round),
                };
                if let Err(failure) = done {
                    let reason = self.survive(step, failure)?;
                    self.leave_out(step, reason);
                }
                self.report.budget.spent_bytes += step.bytes;
                step.took = since.elapsed();
                if step.makes_tree {
                    self.removing += removing(self.report.files, step.took);
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

    /// Whether the step is to be run in this round. What the first can't afford no later one can.
    fn is_due(&mut self, step: &mut Step, round: u32) -> bool {
        if step.is_left_out {
            return false;
        }
        let Some(reason) = self.over(step, round) else {
            return true;
        };
        if round == 0 {
            self.leave_out(step, reason);
        }
        false
    }

    /// Why there is nothing of a step that failed, where what was measured of all else is worth having.
    fn survive(&self, step: &Step, failure: Failure) -> Result<String, Failure> {
        if failure.code == FailureCode::Cancelled {
            return Err(failure);
        }
        let ceiling = match step.work {
            Work::Ceiling(at) => self.report.ceilings.get(at).map(|ceiling| ceiling.kind),
            Work::Clone(_) => None,
        };
        match ceiling {
            // It may be written meanwhile, too large for the target, or not to be read by this user.
            None if step.is_own => Ok(format!("it can't be cloned: {failure}")),
            Some(_) if step.is_own => Ok(format!("it can't be measured: {failure}")),
            Some(Kind::Quic1 | Kind::QuicN) if failure.code.class() == FailureClass::Network => {
                Ok(format!("QUIC can't be had here: {failure}"))
            }
            _ => Err(failure),
        }
    }

    /// Notes why there is nothing of a step, or nothing more.
    fn leave_out(&mut self, step: &mut Step, reason: String) {
        step.is_left_out = true;
        let report = &mut *self.report;
        let (title, repeats, skipped) = match step.work {
            Work::Ceiling(at) => match report.ceilings.get_mut(at) {
                None => return,
                Some(one) => (one.title(), one.repeats.len(), &mut one.skipped),
            },
            Work::Clone(at) => match report.clones.get_mut(at) {
                None => return,
                Some(one) => (
                    format!("cloning {}", one.name),
                    one.repeats.len(),
                    &mut one.skipped,
                ),
            },
        };
        match repeats {
            0 => *skipped = Some(reason),
            _ => report
                .warnings
                .push(format!("{title}: not again, since {reason}")),
        }
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
                let mut all = bench.volumes.iter().chain(bench.own_volume);
                match all.find(|shape| Some(&shape.name) == volume.as_ref()) {
                    None => return Ok(()),
                    Some(shape) => {
                        self.cool(shape);
                        let is_own = shape.path == self.settings.source;
                        let beginning = is_own.then_some(self.report.size_bytes);
                        storage::read_and_write(bench, &shape.path, beginning)
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
        let measured = measured?;
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
        // the next tree would take longer. Only the user's own may be as large as all the space there is.
        if !target.is_dir() || shape.path == self.settings.source {
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
        let roofline = Roofline::of(report);
        let all = report.clones.iter().zip(shapes.all());
        // Also of what there was no time to clone: that is when it is wanted most.
        let predict = |(clone, (_, what)): (&CloneResult, _)| {
            roofline.predict(what?, &clone.name, &clone.facts)
        };
        let predictions: Vec<_> = all.map(predict).collect();
        for (clone, prediction) in report.clones.iter_mut().zip(predictions) {
            clone.prediction = prediction;
        }
        report.noise = noise(report);
        let warnings = warnings(report);
        report.warnings.extend(warnings);
    }
}

#[cfg(test)]
pub(crate) mod tests;
