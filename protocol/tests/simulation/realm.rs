//! What a simulated world stands on, whatever is cloned in it: chance, the clock, what happens when,
//! how agents live and die, and the faults.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use uuid::Uuid;
use volferry_protocol::failure::FailureCode;
use volferry_protocol::message::Hello;
use volferry_protocol::receipt::Receipt;
use volferry_protocol::session::fence::Remembered;

use super::fencing::{Checked, Violation, check};
use super::network::{Carried, Connection, ConnectionId, Purpose, Side};
use super::rng::Rng;

pub(crate) const CLONE: Uuid = Uuid::from_u128(1);

/// Sources give up then. Faults end long before, and everything heals.
pub(crate) const DEADLINE: Duration = Duration::from_secs(1800);

/// A run that is not over by then never ends.
const END: Duration = Duration::from_secs(2400);

/// Faults happen within this time of the start.
const FAULTS_END_MS: u64 = 20_000;

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
    /// Restarted, it has forgotten who was shut out.
    Forget,
    /// Restarted, it has forgotten who held the session last.
    ForgetHolder,
    /// It knows pieces of a file by its path, whatever state of it they are of.
    Stamp,
    /// It keeps its journal when what was written reads back wrong.
    Distrust,
    /// It notes also what was finished while the flush ran.
    Early,
    /// Restarted, it doesn't look for a proof.
    Proof,
}

impl Broken {
    /// Takes from what a target remembers what one that is broken like this does not.
    pub(crate) fn forget(self, remembered: &mut Remembered) {
        match self {
            Self::Forget => remembered.shut_out.clear(),
            Self::ForgetHolder => remembered.holder = None,
            _ => {}
        }
    }
}

#[derive(Clone, Debug)]
pub(crate) enum Event<P, Work> {
    Deliver(ConnectionId, Side, P),
    Dial(usize, u64),
    StartSource(usize),
    StartTarget,
    Fault(Fault),
    /// A data connection of a source is ready for more.
    Read(usize, ConnectionId),
    /// A thread of the target is done, of this run and this session.
    Done {
        run: u64,
        epoch: u64,
        work: Work,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

/// How a source agent fares, in all its runs.
#[derive(Debug, Default)]
pub(crate) struct Life {
    pub(crate) is_running: bool,
    /// Counts the runs.
    pub(crate) run: u64,
    pub(crate) take_over: bool,
    attempt: u32,
    /// How the last run ended.
    pub(crate) outcome: Option<Result<Receipt, FailureCode>>,
    pub(crate) paused_until: Duration,
}

impl Life {
    /// Greets as the next attempt of this run, with what the kind of clone adds to `hello`.
    pub(crate) fn greet(&mut self, source: usize, hello: Hello) -> Hello {
        self.attempt += 1;
        Hello {
            clone_id: CLONE,
            instance: Uuid::from_u128(u128::from(self.run) << 8 | source as u128),
            attempt: self.attempt,
            take_over: self.take_over,
            ..hello
        }
    }
}

#[derive(Debug)]
pub(crate) struct Realm<P, Work> {
    pub(crate) rng: Rng,
    begin: Instant,
    pub(crate) time: Duration,
    /// By time, then in the order in which they came about.
    events: BTreeMap<(Duration, u64), Event<P, Work>>,
    events_count: u64,
    sessions_count: u64,
    pub(crate) connections: Vec<Connection>,
    partition_until: Duration,
    /// Of a hundred messages and frames, those that take long.
    pub(crate) slow_percent: u64,
    pub(crate) lives: [Life; 2],
    pub(crate) is_target_running: bool,
    /// Counts the runs of the target agent.
    pub(crate) target_run: u64,
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

impl<P: Carried, Work> Realm<P, Work> {
    pub(crate) fn new(seed: u64, is_shown: bool) -> Self {
        let mut rng = Rng::new(seed);
        let slow_percent = if rng.chance(30) { 8 } else { 0 };
        let lives = std::array::from_fn(|_| Life {
            take_over: rng.chance(50),
            ..Life::default()
        });
        Self {
            rng,
            begin: Instant::now(),
            time: Duration::ZERO,
            events: BTreeMap::new(),
            events_count: 0,
            sessions_count: 0,
            connections: vec![],
            partition_until: Duration::ZERO,
            slow_percent,
            lives,
            is_target_running: false,
            target_run: 0,
            trace: Trace {
                hash: 0xcbf2_9ce4_8422_2325,
                is_shown,
            },
        }
    }

    /// Has the agents begin and faults happen. What goes bad by itself is found out by reading it
    /// back, and by nothing else.
    pub(crate) fn plan(&mut self, reads_back: bool) {
        for _ in 0..self.rng.below(9) {
            let fault = FAULTS[self.rng.index(FAULTS.len())];
            let at = self.rng.millis(0, FAULTS_END_MS);
            if fault != Fault::Rot || reads_back {
                self.at(at, Event::Fault(fault));
            }
        }
        let late = self.rng.millis(0, 2000);
        self.at(Duration::ZERO, Event::StartTarget);
        self.at(late, Event::StartSource(0));
    }

    pub(crate) fn now(&self) -> Instant {
        self.begin + self.time
    }

    pub(crate) fn at(&mut self, at: Duration, event: Event<P, Work>) {
        self.events_count += 1;
        self.events.insert((at, self.events_count), event);
    }

    pub(crate) fn after(&mut self, time: Duration, event: Event<P, Work>) {
        self.at(self.time + time, event);
    }

    fn advance(&mut self, at: Duration, kind: u64, detail: usize) {
        self.time = self.time.max(at);
        self.fold(self.time.as_nanos() as u64);
        self.fold(kind << 32 | detail as u64);
    }

    fn fold(&mut self, number: u64) {
        self.trace.hash = (self.trace.hash ^ number).wrapping_mul(0x0100_0000_01b3);
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

    /// Whether the network lets anybody connect now.
    pub(crate) fn is_partitioned(&self) -> bool {
        self.time < self.partition_until
    }

    /// Whether a session can begin now, which counts as one in any case.
    pub(crate) fn can_dial(&mut self) -> bool {
        self.sessions_count += 1;
        self.is_target_running && !self.is_partitioned()
    }

    /// A session ended with `code`: the next attempt, or the end of the run. `again` says whether
    /// whoever wants the clone starts the agent anew.
    pub(crate) fn dial_again(&mut self, source: usize, code: FailureCode, again: bool) {
        if again {
            self.lives[source].is_running = false;
            let later = self.rng.millis(50, 5000);
            self.after(later, Event::StartSource(source));
        } else if !code.is_retryable() || self.time >= DEADLINE {
            self.lives[source].outcome = Some(Err(code));
        } else {
            let backoff = self.rng.millis(50, 3000);
            let run = self.lives[source].run;
            self.after(backoff, Event::Dial(source, run));
        }
    }

    /// The target agent begins to run.
    pub(crate) fn run_target(&mut self) {
        self.is_target_running = true;
        self.target_run += 1;
    }

    /// The target agent is gone; it runs again later.
    pub(crate) fn stop_target(&mut self, says_so: bool) {
        self.is_target_running = false;
        self.cut_of_target(says_so);
        let later = self.rng.millis(50, 20_000);
        self.after(later, Event::StartTarget);
    }

    fn cut_all(&mut self) {
        for id in self.open_connections(None) {
            self.cut(id);
        }
    }

    fn is_over(&self) -> bool {
        let is_begun = self.lives[0].run > 0;
        let mut lives = self.lives.iter();
        is_begun && lives.all(|life| life.outcome.is_some() || life.run == 0)
    }
}

/// A world in which something is cloned.
pub(crate) trait Scene {
    type Payload: Carried;
    /// What a thread of the target does.
    type Work: Clone + std::fmt::Debug;

    fn realm(&mut self) -> &mut Realm<Self::Payload, Self::Work>;
    /// When a session of a source wants to be woken.
    fn source_due(&self, source: usize) -> Option<Instant>;
    /// When one of the target's does.
    fn target_due(&self) -> Option<Instant>;
    fn source_timeout(&mut self, source: usize) -> Checked;
    fn target_timeout(&mut self) -> Checked;
    fn source_receives(
        &mut self,
        source: usize,
        id: ConnectionId,
        payload: Self::Payload,
    ) -> Checked;
    fn target_receives(&mut self, id: ConnectionId, payload: Self::Payload) -> Checked;
    /// Begins a session, or tries again later.
    fn dial(&mut self, source: usize) -> Checked;
    /// A run of a source agent begins, or ended with all that it knew.
    fn forget_source(&mut self, source: usize);
    fn start_target(&mut self) -> Checked;
    /// The target agent is killed, with or without its host.
    fn kill_target(&mut self, has_power: bool, is_journal_lost: bool) -> Checked;
    /// A data connection of a source is ready for more.
    fn read(&mut self, source: usize, connection: ConnectionId) -> Checked;
    fn work_done(&mut self, epoch: u64, work: Self::Work) -> Checked;
    fn change_source(&mut self);
    fn rot(&mut self);
    /// What has to hold after every step.
    fn check_step(&mut self) -> Checked;
    /// Whether a source may end with `code`, beside being shut out.
    fn may_end_with(&self, code: FailureCode) -> bool;

    fn run(&mut self) -> Result<Story, Violation> {
        let mut steps = 0;
        while !self.realm().is_over() {
            steps += 1;
            self.step()?;
            self.check_step()?;
            let Realm { time, lives, .. } = self.realm();
            check(*time < END && steps < 200_000, || {
                let outcomes: Vec<_> = lives.iter().map(|life| &life.outcome).collect();
                format!("the run does not end: {outcomes:?}")
            })?;
        }
        self.check_outcomes()?;
        let realm = self.realm();
        let lives = realm.lives.iter();
        Ok(Story {
            trace: realm.trace.hash,
            receipts: lives
                .filter(|life| matches!(life.outcome, Some(Ok(_))))
                .count(),
            sessions: realm.sessions_count,
            steps,
        })
    }

    /// The next event, or a timer that is due before.
    fn step(&mut self) -> Checked {
        let dues = [self.source_due(0), self.source_due(1), self.target_due()];
        let realm = self.realm();
        let event_at = realm
            .events
            .keys()
            .next()
            .map_or(Duration::MAX, |key| key.0);
        let dues = dues.map(|at| at.map(|at| at.saturating_duration_since(realm.begin)));
        let sources = dues.iter().zip(&realm.lives).enumerate();
        let due = sources.filter_map(|(source, (at, life))| {
            let at = *at;
            Some((at?.max(life.paused_until), source))
        });
        let (source_at, source) = due.min().unwrap_or((Duration::MAX, 0));
        let target_at = dues[2].unwrap_or(Duration::MAX);
        if source_at < event_at && source_at <= target_at {
            realm.advance(source_at, 1, source);
            return self.source_timeout(source);
        }
        if target_at < event_at {
            realm.advance(target_at, 2, 0);
            return self.target_timeout();
        }
        let Some(((at, _), event)) = realm.events.pop_first() else {
            return Err(Violation("nothing happens any more".to_owned()));
        };
        realm.advance(at, 3, 0);
        self.happen(event)
    }

    fn happen(&mut self, event: Event<Self::Payload, Self::Work>) -> Checked {
        let realm = self.realm();
        // A source that is paused sees everything later.
        let addressee = match &event {
            Event::Deliver(id, Side::Source, _) => Some(realm.connections[*id].source),
            Event::Dial(source, _) | Event::Read(source, _) => Some(*source),
            _ => None,
        };
        let paused_until = addressee.map(|source| realm.lives[source].paused_until);
        if let Some(until) = paused_until.filter(|until| *until > realm.time) {
            realm.at(until, event);
            return Ok(());
        }
        match event {
            Event::Deliver(id, side, payload) => {
                if realm.arrives(id, side, &payload) {
                    self.deliver(id, side, payload)?;
                }
                Ok(())
            }
            Event::Dial(source, run) => {
                let life = &realm.lives[source];
                if life.is_running && life.run == run {
                    self.dial(source)?;
                }
                Ok(())
            }
            Event::StartSource(source) => self.start_source(source),
            Event::StartTarget => {
                realm.trace(|| "target starts".to_owned());
                self.start_target()
            }
            Event::Fault(fault) => self.strike(fault),
            Event::Read(source, connection) => self.read(source, connection),
            Event::Done { run, epoch, work } => {
                match realm.is_target_running && realm.target_run == run {
                    true => self.work_done(epoch, work),
                    false => Ok(()),
                }
            }
        }
    }

    fn deliver(&mut self, id: ConnectionId, side: Side, payload: Self::Payload) -> Checked {
        let realm = self.realm();
        let connection = &realm.connections[id];
        let source = connection.source;
        match side {
            Side::Source => {
                let life = &realm.lives[source];
                if life.is_running && life.run == connection.source_run {
                    return self.source_receives(source, id, payload);
                }
            }
            Side::Target if !realm.is_target_running => {}
            Side::Target if realm.target_run == connection.target_run => {
                return self.target_receives(id, payload);
            }
            // A new run knows nothing of the connection, and says so.
            Side::Target => realm.send(id, Side::Source, Self::Payload::LOST),
        }
        Ok(())
    }

    /// A run of a source agent begins.
    fn start_source(&mut self, source: usize) -> Checked {
        self.forget_source(source);
        let realm = self.realm();
        realm.trace(|| format!("source {source} starts"));
        let life = &mut realm.lives[source];
        life.is_running = true;
        life.run += 1;
        life.attempt = 0;
        life.outcome = None;
        life.paused_until = Duration::ZERO;
        self.dial(source)
    }

    /// A run of a source agent is killed; another begins later.
    fn kill_source(&mut self, source: usize) {
        let life = &mut self.realm().lives[source];
        if !life.is_running || life.outcome.is_some() {
            return;
        }
        life.is_running = false;
        self.forget_source(source);
        let realm = self.realm();
        let says_so = realm.rng.chance(80);
        realm.cut_of_source(source, says_so);
        let later = realm.rng.millis(50, 20_000);
        realm.after(later, Event::StartSource(source));
    }

    fn strike(&mut self, fault: Fault) -> Checked {
        let realm = self.realm();
        realm.trace(|| format!("fault: {fault:?}"));
        let source = realm.rng.index(realm.lives.len());
        match fault {
            Fault::CutOne => {
                let purpose = if realm.rng.chance(50) {
                    Purpose::Control
                } else {
                    Purpose::Data
                };
                let open = realm.open_connections(Some(purpose));
                if !open.is_empty() {
                    let id = open[realm.rng.index(open.len())];
                    realm.cut(id);
                }
            }
            Fault::CutAll => realm.cut_all(),
            Fault::Partition => {
                realm.cut_all();
                realm.partition_until = realm.time + realm.rng.millis(100, 40_000);
            }
            Fault::KillSource => self.kill_source(source),
            Fault::KillTarget => self.kill_target(true, false)?,
            Fault::LosePower => self.kill_target(false, false)?,
            Fault::LosePowerAndJournal => self.kill_target(false, true)?,
            Fault::KillBoth => {
                self.kill_source(source);
                let has_power = self.realm().rng.chance(50);
                self.kill_target(has_power, false)?;
            }
            Fault::PauseSource => {
                let time = realm.rng.millis(500, 90_000);
                let life = &mut realm.lives[source];
                // What waits for its end waits in order.
                if life.paused_until < realm.time {
                    life.paused_until = realm.time + time;
                }
            }
            Fault::StartSecondSource => {
                if realm.lives[1].run == 0 {
                    self.start_source(1)?;
                }
            }
            Fault::ChangeSource => self.change_source(),
            Fault::Rot => self.rot(),
        }
        Ok(())
    }

    /// No source fails but for a reason.
    fn check_outcomes(&mut self) -> Checked {
        for source in 0..2 {
            let lives = &self.realm().lives;
            let Some(Err(code)) = lives[source].outcome else {
                continue;
            };
            let other = &lives[1 - source];
            let is_shut_out = code == FailureCode::Fenced && other.run > 0 && other.take_over;
            check(is_shut_out || self.may_end_with(code), || {
                format!("source {source} ends with {code}")
            })?;
        }
        Ok(())
    }
}
