//! The loop: rows, repeats, contenders.

use std::fs;
use std::time::{Duration, Instant};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::args::Args;
use crate::error::{At as _, Error, chain};
use crate::floor::{self, Floor};
use crate::limit::Limit;
use crate::peer::{Job, PEERS, Peer};
use crate::pki::Pki;
use crate::process::Group;
use crate::results::{Contender, PeerFacts, Results, RowResults, Run, SCHEMA};
use crate::row::{self, Row, Stage};
use crate::size::MIB;
use crate::tools::Tools;
use crate::{input, output, settle, signals};
use volferry_benchmark::machine::{Machine, Processors};

/// Measures everything that `args` ask for. What was measured before an interruption is kept.
pub(crate) fn run(args: &Args) -> Result<(), Error> {
    signals::watch().at("listen for", "signals")?;
    fs::create_dir_all(&args.out).at("create", &args.out)?;
    let bench = Bench {
        args,
        tools: Tools::new(args.volferry.as_deref()),
        scratch: tempfile::tempdir().at("create", std::env::temp_dir())?,
    };
    let mut results = bench.facts();
    let outcome = bench.rows(&mut results);
    output::report(&results);
    output::save(&results, &args.out)?;
    outcome
}

struct Bench<'a> {
    args: &'a Args,
    tools: Tools,
    scratch: tempfile::TempDir,
}

/// A contender of a row while it is measured.
struct Entry<'a> {
    peer: &'a Peer,
    limit: Option<Limit>,
    result: Contender,
}

impl Bench<'_> {
    /// Results without rows.
    fn facts(&self) -> Results {
        let wanted = PEERS.iter().filter(|peer| self.args.wants(peer.name));
        let peers = wanted.map(|peer| {
            let skipped = self.tools.missing(peer.programs);
            let version = skipped.is_none().then(|| peer.version(&self.tools));
            PeerFacts {
                name: peer.name.into(),
                version: version.unwrap_or_default(),
                how: peer.how.into(),
                skipped,
            }
        });
        Results {
            schema: SCHEMA,
            date: OffsetDateTime::now_utc()
                .format(&Rfc3339)
                .unwrap_or_default(),
            machine: Machine::read(),
            seed: input::SEED,
            repeats: self.args.repeats,
            warm: self.args.warm,
            peers: peers.collect(),
            rows: Vec::new(),
        }
    }

    fn rows(&self, results: &mut Results) -> Result<(), Error> {
        let credentials = self.scratch.path().join("pki");
        fs::create_dir(&credentials).at("create", &credentials)?;
        let pki = Pki::mint(&credentials)?;
        for row in &self.args.rows {
            signals::check()?;
            let mut result = RowResults::new(row.name());
            let outcome = self.row(*row, &pki, &mut result);
            results.rows.push(result);
            output::save(results, &self.args.out)?;
            outcome?;
        }
        Ok(())
    }

    fn row(&self, row: Row, pki: &Pki, result: &mut RowResults) -> Result<(), Error> {
        result.skipped = row.refusal(self.args, &self.tools);
        if result.skipped.is_some() {
            return Ok(());
        }
        output::progress(&format!("{}: making the volume", row.name()));
        let place = self.scratch.path().join(row.name());
        fs::create_dir(&place).at("create", &place)?;
        let stage = row.stage(self.args, &place, &self.tools)?;
        (result.size_bytes, result.data_bytes) = (stage.size_bytes, stage.data_bytes);
        if row == Row::DenseDisk && self.tools.find(floor::PROGRAM).is_some() {
            result.floor = Some(self.floor(&stage)?);
        }
        if let Some((facts, _)) = &stage.tree {
            result.entries = facts.entries;
        }
        let mut entries = self.entries(&stage);
        let mut floors = Vec::new();
        let outcome = self.repeats(&stage, pki, &mut entries, &mut floors);
        result.floor = result.floor.or_else(|| Floor::median(floors));
        result.contenders = entries.into_iter().map(|entry| entry.result).collect();
        outcome
    }

    /// The bare loop of a tree, as it is now: it takes part in each repeat, since a machine is not the
    /// same from one minute to the next.
    fn bare_loop(&self, stage: &Stage) -> Result<Option<Floor>, Error> {
        let Some((facts, place)) = &stage.tree else {
            return Ok(None);
        };
        place.make(facts, &self.tools)?;
        row::drop_caches()?;
        settle::settle(Duration::from_secs(self.args.settle))?;
        let floor = facts.floor(&stage.source, &stage.target)?;
        let (row, seconds) = (stage.row.name(), floor.seconds);
        output::progress(&format!("{row} bare loop: {seconds:.2} s"));
        Ok(Some(floor))
    }

    fn floor(&self, stage: &Stage) -> Result<Floor, Error> {
        output::progress("dense-disk: measuring the floor");
        row::drop_caches()?;
        let beside = self.args.out.join("floor.img");
        Floor::measure(&stage.source, &beside, stage.size_bytes, &self.tools)
    }

    /// Who takes part in the row, each once for each limit.
    fn entries(&self, stage: &Stage) -> Vec<Entry<'static>> {
        let wanted = PEERS.iter().filter(|peer| self.args.wants(peer.name));
        let present = wanted.filter(|peer| self.tools.missing(peer.programs).is_none());
        let limits = self.args.limits();
        let entry = |peer: &'static Peer, limit: Option<Limit>| Entry {
            peer,
            limit,
            result: Contender {
                peer: peer.name.into(),
                limit: limit.map(Limit::label),
                skipped: (peer.refusal)(stage).map(str::to_owned),
                runs: Vec::new(),
            },
        };
        let entries = present.flat_map(|peer| limits.iter().map(move |limit| entry(peer, *limit)));
        entries.collect()
    }

    fn repeats(
        &self,
        stage: &Stage,
        pki: &Pki,
        entries: &mut [Entry<'_>],
        floors: &mut Vec<Floor>,
    ) -> Result<(), Error> {
        for repeat in 0..self.args.repeats as usize {
            floors.extend(self.bare_loop(stage)?);
            let count = entries.len();
            for order in 0..count {
                let entry = &mut entries[(order + repeat) % count];
                if entry.result.skipped.is_some() {
                    continue;
                }
                let run = self.clone_once(stage, pki, entry, order)?;
                output::progress(&format!(
                    "{} {}/{} {}: {:.2} s{}",
                    stage.row.name(),
                    repeat + 1,
                    self.args.repeats,
                    entry.result.label(),
                    run.wall_seconds,
                    run.failure
                        .as_ref()
                        .map(|why| format!(", {why}"))
                        .unwrap_or_default(),
                ));
                entry.result.runs.push(run);
            }
        }
        Ok(())
    }

    /// One run. A peer's failure is part of the result; only an interruption, or a failure of the
    /// harness itself, is an error.
    fn clone_once(
        &self,
        stage: &Stage,
        pki: &Pki,
        entry: &Entry<'_>,
        order: usize,
    ) -> Result<Run, Error> {
        let place = tempfile::tempdir_in(self.scratch.path()).at("create", self.scratch.path())?;
        stage.prepare_target(&self.tools)?;
        row::drop_caches()?;
        if self.args.warm {
            stage.read_source()?;
        }
        settle::settle(Duration::from_secs(self.args.settle))?;

        let job = Job {
            stage,
            pki,
            scratch: place.path(),
            tools: &self.tools,
        };
        let busy = Processors::read();
        let start = Instant::now();
        let mut group = Group::new(place.path(), entry.limit, time_limit(stage));
        let outcome = (entry.peer.run)(&job, &mut group).and_then(|()| stage.flush_target());
        let wall_seconds = start.elapsed().as_secs_f64();
        let busy = Processors::read().since(busy);

        signals::check()?;
        let killed = group.killed();
        let processes = group.finish()?;
        Ok(Run {
            order,
            wall_seconds,
            machine_busy_seconds: busy.busy_seconds,
            machine_stolen_seconds: busy.stolen_seconds,
            processes,
            allocated_bytes: stage.allocated_bytes()?,
            is_identical: outcome.is_ok() && stage.is_identical(&self.tools)?,
            killed,
            failure: outcome.err().map(|error| chain(&error)),
        })
    }
}

/// After this long a peer counts as stuck: a slow disk would have been done.
fn time_limit(stage: &Stage) -> Duration {
    const START: u64 = 60;
    const SLOWEST_PER_SECOND: u64 = 20 * MIB;
    const FEWEST_NAMES_PER_SECOND: u64 = 400;
    let names = stage.tree.as_ref().map_or(0, |(facts, _)| facts.entries);
    let seconds = stage.size_bytes / SLOWEST_PER_SECOND + names / FEWEST_NAMES_PER_SECOND;
    Duration::from_secs(START + seconds)
}
