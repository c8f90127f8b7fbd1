//! The world of a run: its clock, what happens when, and the faults.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;
use volferry_protocol::failure::FailureCode;
use volferry_protocol::geometry::{ChunkSize, Geometry};
use volferry_protocol::receipt::Verified;

use super::checker::{Checked, Checker, Violation, check};
use super::content;
use super::network::{Connection, ConnectionId, Payload, Purpose, Side};
use super::rng::Rng;
use super::source::SourceAgent;
use super::storage::{Disk, Journal};
use super::target::{TargetAgent, Work};

pub(crate) const CLONE: Uuid = Uuid::from_u128(1);

/// Sources give up then. Faults end long before, and everything heals.
pub(crate) const DEADLINE: Duration = Duration::from_secs(1800);

/// A run that is not over by then never ends.
const END: Duration = Duration::from_secs(2400);

/// Faults happen within this time of the start.
const FAULTS_END_MS: u64 = 20_000;

/// What a run is set to do.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    pub(crate) streams: u16,
    pub(crate) flush_bytes: u64,
    pub(crate) has_journal: bool,
    pub(crate) verify: Verified,
    /// Chunks are offered first.
    pub(crate) offer: bool,
    /// When the source changed, its chunks are offered; else it is refused.
    pub(crate) offers_changed: bool,
    /// Of a hundred offers, those that are damaged.
    pub(crate) corrupt_offers: u64,
    /// Of a hundred messages and frames, those that take long.
    pub(crate) slow_percent: u64,
    pace_ms: u64,
    pub(crate) broken: Broken,
}

/// What the target is made to do wrong: the checker has to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Broken {
    Nothing,
    /// It doesn't flush.
    Flush,
    /// It takes a record for durable that is not.
    Journal,
    /// It lets a session begin while another one runs.
    Fence,
}

#[derive(Clone, Debug)]
pub(crate) enum Event {
    Deliver(ConnectionId, Side, Payload),
    Dial(usize, u64),
    StartSource(usize),
    StartTarget,
    Read(usize, ConnectionId),
    WorkDone { run: u64, epoch: u64, work: Work },
    Fault(Fault),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    CutOne,
    CutAll,
    Partition,
    KillSource,
    KillTarget,
    LosePower,
    LosePowerAndJournal,
    KillBoth,
    PauseSource,
    StartSecondSource,
    ChangeSource,
    Rot,
}

/// Some more often than others.
const FAULTS: [Fault; 14] = [
    Fault::CutOne,
    Fault::CutAll,
    Fault::Partition,
    Fault::KillSource,
    Fault::KillTarget,
    Fault::LosePower,
    Fault::LosePowerAndJournal,
    Fault::KillBoth,
    Fault::PauseSource,
    Fault::StartSecondSource,
    Fault::ChangeSource,
    Fault::Rot,
    Fault::Rot,
    Fault::Rot,
];

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) rng: Rng,
    pub(crate) setting: Setting,
    pub(crate) geometry: Geometry,
    begin: Instant,
    pub(crate) time: Duration,
    /// By time, then in the order in which they came about.
    events: BTreeMap<(Duration, u64), Event>,
    events_count: u64,
    sessions_count: u64,
    pub(crate) connections: Vec<Connection>,
    pub(crate) partition_until: Duration,
    pub(crate) sources: Vec<SourceAgent>,
    pub(crate) target: TargetAgent,
    pub(crate) disk: Disk,
    pub(crate) journal: Journal,
    pub(crate) checker: Checker,
    pub(crate) is_disk_changed: bool,
    rot_count: usize,
    trace: Trace,
}

/// What happened, folded into a number.
#[derive(Debug)]
struct Trace {
    hash: u64,
    is_shown: bool,
}

/// How a run went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Story {
    pub(crate) trace: u64,
    pub(crate) receipts: usize,
    pub(crate) sessions: u64,
    pub(crate) steps: u64,
}

impl World {
    pub(crate) fn new(seed: u64, broken: Broken, is_shown: bool) -> Self {
        let mut rng = Rng::new(seed);
        let count = if rng.chance(10) {
            rng.below(3)
        } else {
            rng.below(41)
        };
        // A last chunk of one byte.
        let size = count * u64::from(ChunkSize::MIN.bytes());
        let size = size.saturating_sub(rng.below(2) * u64::from(ChunkSize::MIN.bytes() - 1));
        let geometry = Geometry::new(size, ChunkSize::MIN).expect("a small volume");
        let count = geometry.chunk_count() as usize;
        let setting = Setting {
            streams: 1 + rng.below(4) as u16,
            flush_bytes: (1 + rng.below(8)) * u64::from(ChunkSize::MIN.bytes()),
            has_journal: rng.chance(70),
            verify: if rng.chance(40) {
                Verified::Readback
            } else {
                Verified::Digest
            },
            offer: rng.chance(30),
            offers_changed: rng.chance(60),
            corrupt_offers: if rng.chance(20) { 20 } else { 0 },
            slow_percent: if rng.chance(30) { 8 } else { 0 },
            pace_ms: 1 + rng.below(400),
            broken,
        };
        let source = content::random(&mut rng, count);
        // What the target holds: nothing, something else, or an older copy.
        let before = match rng.below(3) {
            0 => vec![0; count],
            1 => content::random(&mut rng, count),
            _ => {
                let mut older = source.clone();
                for tag in &mut older {
                    if rng.chance(20) {
                        *tag = rng.u64() >> 1;
                    }
                }
                older
            }
        };
        let sources = (0..2).map(|_| SourceAgent::new(rng.chance(50))).collect();
        let checker = Checker::new(geometry, setting.has_journal, source);
        let mut world = Self {
            rng,
            geometry,
            begin: Instant::now(),
            time: Duration::ZERO,
            events: BTreeMap::new(),
            events_count: 0,
            sessions_count: 0,
            connections: vec![],
            partition_until: Duration::ZERO,
            sources,
            target: TargetAgent::default(),
            disk: Disk::new(before),
            journal: Journal::default(),
            checker,
            is_disk_changed: false,
            rot_count: 0,
            trace: Trace {
                hash: 0xcbf2_9ce4_8422_2325,
                is_shown,
            },
            setting,
        };
        world.plan_faults();
        world
    }

    fn plan_faults(&mut self) {
        for _ in 0..self.rng.below(9) {
            let fault = FAULTS[self.rng.index(FAULTS.len())];
            let at = self.rng.millis(0, FAULTS_END_MS);
            // A volume that goes bad is found out by reading it back, and by nothing else.
            if !matches!(fault, Fault::Rot) || self.setting.verify == Verified::Readback {
                self.at(at, Event::Fault(fault));
            }
        }
        let late = self.rng.millis(0, 2000);
        self.at(Duration::ZERO, Event::StartTarget);
        self.at(late, Event::StartSource(0));
    }

    pub(crate) fn run(&mut self) -> Result<Story, Violation> {
        self.trace(|| "begins".to_owned());
        let setting = self.setting.clone();
        let geometry = self.geometry;
        self.trace(|| format!("{setting:?} {geometry:?}"));
        let mut steps = 0;
        while !self.is_over() {
            steps += 1;
            self.step()?;
            if std::mem::take(&mut self.is_disk_changed) {
                self.checker.check_disk(&self.disk)?;
            }
            check(self.time < END && steps < 200_000, || {
                let outcomes: Vec<_> = self.sources.iter().map(|agent| &agent.outcome).collect();
                format!("the run does not end: {outcomes:?}")
            })?;
        }
        self.check_outcomes()?;
        let receipts = self.sources.iter();
        Ok(Story {
            trace: self.trace.hash,
            receipts: receipts
                .filter(|agent| matches!(agent.outcome, Some(Ok(_))))
                .count(),
            sessions: self.sessions_count,
            steps,
        })
    }

    fn is_over(&self) -> bool {
        let is_begun = self.sources[0].run > 0;
        let mut sources = self.sources.iter();
        is_begun && sources.all(|agent| agent.outcome.is_some() || agent.run == 0)
    }

    /// The next event, or a timer that is due before.
    fn step(&mut self) -> Checked {
        let event_at = self.events.keys().next().map_or(Duration::MAX, |key| key.0);
        let since_begin = |at: Instant| at.saturating_duration_since(self.begin);
        let source_at = |agent: &SourceAgent| {
            let at = agent.session.as_ref()?.machine.poll_timeout()?;
            Some(since_begin(at).max(agent.paused_until))
        };
        let sources = self.sources.iter().map(source_at).enumerate();
        let due = sources.filter_map(|(source, at)| Some((at?, source))).min();
        let target = self.target.sessions.values();
        let target_at = target
            .filter_map(|session| session.machine.poll_timeout())
            .map(since_begin)
            .min()
            .unwrap_or(Duration::MAX);
        let (source_at, source) = due.unwrap_or((Duration::MAX, 0));
        if source_at < event_at && source_at <= target_at {
            self.advance(source_at, 1, source);
            return self.source_timeout(source);
        }
        if target_at < event_at {
            self.advance(target_at, 2, 0);
            return self.target_timeout();
        }
        let Some(((at, _), event)) = self.events.pop_first() else {
            return Err(Violation("nothing happens any more".to_owned()));
        };
        self.advance(at, 3, 0);
        self.apply(event)
    }

    fn advance(&mut self, at: Duration, kind: u64, detail: usize) {
        self.time = self.time.max(at);
        self.fold(self.time.as_nanos() as u64);
        self.fold(kind << 32 | detail as u64);
    }

    fn fold(&mut self, number: u64) {
        self.trace.hash = (self.trace.hash ^ number).wrapping_mul(0x0100_0000_01b3);
    }

    fn apply(&mut self, event: Event) -> Checked {
        // A source that is paused sees everything later.
        let addressee = match &event {
            Event::Deliver(id, Side::Source, _) => Some(self.connections[*id].source),
            Event::Dial(source, _) | Event::Read(source, _) => Some(*source),
            _ => None,
        };
        let paused_until = addressee.map(|source| self.sources[source].paused_until);
        if let Some(until) = paused_until.filter(|until| *until > self.time) {
            self.at(until, event);
            return Ok(());
        }
        match event {
            Event::Deliver(id, side, payload) => {
                if self.arrives(id, side, &payload) {
                    self.deliver(id, side, payload)?;
                }
                Ok(())
            }
            Event::Dial(source, run) => {
                let agent = &self.sources[source];
                if agent.is_running && agent.run == run {
                    self.dial(source)?;
                }
                Ok(())
            }
            Event::StartSource(source) => {
                self.trace(|| format!("source {source} starts"));
                self.start_source(source)
            }
            Event::StartTarget => {
                self.trace(|| "target starts".to_owned());
                self.start_target()
            }
            Event::Read(source, connection) => self.read(source, connection),
            Event::WorkDone { run, epoch, work } => {
                if self.target.is_running && self.target.run == run {
                    self.work_done(epoch, work)?;
                }
                Ok(())
            }
            Event::Fault(fault) => self.strike(fault),
        }
    }

    fn deliver(&mut self, id: ConnectionId, side: Side, payload: Payload) -> Checked {
        let connection = &self.connections[id];
        let source = connection.source;
        match side {
            Side::Source => {
                let agent = &self.sources[source];
                if agent.is_running && agent.run == connection.source_run {
                    return self.source_receives(source, id, payload);
                }
            }
            Side::Target if !self.target.is_running => {}
            Side::Target if self.target.run == connection.target_run => {
                return self.target_receives(id, payload);
            }
            // A new run knows nothing of the connection, and says so.
            Side::Target => self.send(id, Side::Source, Payload::Lost),
        }
        Ok(())
    }

    fn strike(&mut self, fault: Fault) -> Checked {
        self.trace(|| format!("fault: {fault:?}"));
        let source = self.rng.index(self.sources.len());
        match fault {
            Fault::CutOne => {
                let purpose = if self.rng.chance(50) {
                    Purpose::Control
                } else {
                    Purpose::Data
                };
                let open = self.open_connections(Some(purpose));
                if !open.is_empty() {
                    let id = open[self.rng.index(open.len())];
                    self.cut(id);
                }
            }
            Fault::CutAll => self.cut_all(),
            Fault::Partition => {
                self.cut_all();
                self.partition_until = self.time + self.rng.millis(100, 40_000);
            }
            Fault::KillSource => self.kill_source(source),
            Fault::KillTarget => self.kill_target(true, false)?,
            Fault::LosePower => self.kill_target(false, false)?,
            Fault::LosePowerAndJournal => self.kill_target(false, true)?,
            Fault::KillBoth => {
                self.kill_source(source);
                let has_power = self.rng.chance(50);
                self.kill_target(has_power, false)?;
            }
            Fault::PauseSource => {
                let time = self.rng.millis(500, 90_000);
                let agent = &mut self.sources[source];
                // What waits for its end waits in order.
                if agent.paused_until < self.time {
                    agent.paused_until = self.time + time;
                }
            }
            Fault::StartSecondSource => {
                if self.sources[1].run == 0 {
                    self.start_source(1)?;
                }
            }
            Fault::ChangeSource => {
                let mut content = self.checker.content().to_vec();
                for tag in &mut content {
                    if self.rng.chance(30) {
                        *tag = if self.rng.chance(30) {
                            0
                        } else {
                            self.rng.u64() >> 1
                        };
                    }
                }
                self.checker.source_changed(content);
            }
            Fault::Rot => {
                let count = self.disk.durable().len();
                let mut sessions = self.target.sessions.values();
                let is_read = sessions.any(|session| session.is_read_back);
                if count > 0 && !is_read {
                    let index = self.rng.index(count);
                    self.disk.rot(index);
                    self.rot_count += 1;
                    self.is_disk_changed = true;
                }
            }
        }
        Ok(())
    }

    fn cut_all(&mut self) {
        for id in self.open_connections(None) {
            self.cut(id);
        }
    }

    pub(crate) fn storage_changed(&mut self) -> Checked {
        self.is_disk_changed = true;
        self.checker.journal_changed(&self.journal)
    }

    /// No source fails but for a reason.
    fn check_outcomes(&self) -> Checked {
        let has_changed = self.checker.generation() > 0;
        for (source, agent) in self.sources.iter().enumerate() {
            let Some(Err(code)) = &agent.outcome else {
                continue;
            };
            let other = &self.sources[1 - source];
            let is_expected = match code {
                FailureCode::Fenced => other.run > 0 && other.take_over,
                FailureCode::SourceChanged => has_changed && !self.setting.offers_changed,
                FailureCode::Integrity => self.rot_count > 3,
                _ => false,
            };
            check(is_expected, || format!("source {source} ends with {code}"))?;
        }
        Ok(())
    }

    pub(crate) fn now(&self) -> Instant {
        self.begin + self.time
    }

    pub(crate) fn at(&mut self, at: Duration, event: Event) {
        self.events_count += 1;
        self.events.insert((at, self.events_count), event);
    }

    pub(crate) fn after(&mut self, time: Duration, event: Event) {
        self.at(self.time + time, event);
    }

    /// How long a source takes for a chunk.
    pub(crate) fn pace(&mut self) -> Duration {
        self.rng.millis(0, self.setting.pace_ms)
    }

    pub(crate) fn can_dial(&self) -> bool {
        self.target.is_running && self.time >= self.partition_until
    }

    pub(crate) fn count_session(&mut self) {
        self.sessions_count += 1;
    }

    #[expect(
        clippy::print_stdout,
        reason = "a seed that is replayed tells its story"
    )]
    pub(crate) fn trace(&mut self, line: impl FnOnce() -> String) {
        self.fold(self.events_count);
        if self.trace.is_shown {
            println!("{:>12.6} {}", self.time.as_secs_f64(), line());
        }
    }
}
