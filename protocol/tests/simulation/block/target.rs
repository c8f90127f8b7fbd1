//! The target agent as its driver would be: one session at a time, a standing between them, and a
//! journal.

use std::collections::BTreeMap;

use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange};
use volferry_protocol::journal::{Checkpoint, JOURNAL_MAGIC, replay};
use volferry_protocol::message::{Hello, Message};
use volferry_protocol::range_set::ChunkSet;
use volferry_protocol::receipt::AgentStats;
use volferry_protocol::session::{
    Admission, Fence, Stage, Standing, TargetAction, TargetLimits, TargetSession,
};

use super::checker::{chunks_of, generation_of};
use super::content;
use super::world::{Frame, Payload, World};
use crate::fencing::{Checked, Violation, check};
use crate::intake::{Intake, Waiting, lost};
use crate::network::{ConnectionId, Side};
use crate::realm::{Broken, CLONE, Event};
use crate::tag::Tag;

/// Bytes after which the journal is written anew: small, so that it happens.
const REWRITE_LEN: usize = 2048;

/// What a run of the target agent knows.
#[derive(Debug, Default)]
pub(crate) struct TargetAgent {
    fence: Fence,
    standing: Option<Standing>,
    /// What the journal said when this run began.
    checkpoint: Option<Checkpoint>,
    /// By epoch; one runs, others may have work in flight.
    pub(crate) sessions: BTreeMap<u64, TargetEnd>,
    /// Was let in, and waits until the session before is over.
    waiting: Option<Waiting>,
    /// Writes that a thread has begun.
    writes: BTreeMap<u64, (u64, Tag)>,
    writes_count: u64,
}

/// A session at the target.
#[derive(Debug)]
pub(crate) struct TargetEnd {
    pub(crate) machine: TargetSession,
    intake: Intake,
    generation: usize,
    claims: ChunkSet,
    /// It read back wrong, and what was told holds no longer.
    is_repairing: bool,
    pub(crate) is_read_back: bool,
}

/// Work of a thread that is done.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Prepare,
    Write { index: u64, tag: Tag, id: u64 },
    Zero(ChunkRange),
    Compare { index: u64, digest: Digest },
    Flush,
    Journal,
    ReadBack,
}

impl World {
    /// A run of the target agent begins.
    pub(crate) fn run_target(&mut self) {
        self.realm.run_target();
        let checkpoint = self.journaled();
        let checkpoint = checkpoint.filter(|_| self.setting.has_journal);
        let fence = checkpoint
            .as_ref()
            .map_or_else(Fence::default, |checkpoint| {
                let mut remembered = checkpoint.remembered();
                self.setting.broken.forget(&mut remembered);
                Fence::after(checkpoint.epoch, &remembered)
            });
        self.target = TargetAgent {
            fence,
            checkpoint,
            ..TargetAgent::default()
        };
    }

    /// What the journal says now.
    fn journaled(&self) -> Option<Checkpoint> {
        let journal = replay(&self.journal.cached).ok();
        journal.and_then(|replay| replay.checkpoint)
    }

    /// The target agent is killed, with or without its host; another run begins later.
    pub(crate) fn crash_target(&mut self, has_power: bool, is_journal_lost: bool) -> Checked {
        if !self.realm.is_target_running {
            return Ok(());
        }
        self.target.sessions.clear();
        for (index, tag) in std::mem::take(&mut self.target.writes).into_values() {
            self.disk
                .write_in_part(&mut self.realm.rng, index as usize, tag);
        }
        self.disk.forget_flush();
        self.journal.crash(&mut self.realm.rng, has_power);
        if !has_power {
            self.disk.crash(&mut self.realm.rng);
        }
        if is_journal_lost {
            self.journal.lose();
        }
        let epoch = self.journaled().map_or(0, |checkpoint| checkpoint.epoch);
        self.checker.target_restarted(is_journal_lost, epoch);
        self.storage_changed()?;
        self.realm.stop_target(has_power);
        Ok(())
    }

    pub(crate) fn tell_target(&mut self, connection: ConnectionId, payload: Payload) -> Checked {
        match payload {
            Payload::Control(Message::Hello(hello)) => self.admit(connection, hello)?,
            Payload::Control(message) => {
                let now = self.realm.now();
                let mut sessions = self.target.sessions.iter();
                let epoch = sessions.find(|(_, session)| session.intake.is_led_by(connection));
                if let Some(epoch) = epoch.map(|(epoch, _)| *epoch) {
                    if let Some(session) = self.target.sessions.get_mut(&epoch) {
                        session.machine.handle_message(now, message);
                    }
                    self.check_drained_session(epoch);
                }
            }
            Payload::Preamble { number, token } => {
                let mut sessions = self.target.sessions.values_mut();
                if !sessions.any(|session| session.intake.join(connection, number, token)) {
                    self.realm.hang_up([connection], Side::Source);
                }
            }
            Payload::Lost => self.target_lost(connection),
            Payload::End { frames } => {
                if let Some((_, session)) = self.lane(connection)
                    && let Some(came) = session.intake.end(connection, frames)
                {
                    let text = format!("{came} frames of {frames}");
                    let failure = Failure::new(FailureCode::Protocol, text);
                    session.machine.fail(failure);
                }
                self.realm.send(connection, Side::Source, Payload::Closed);
                self.check_drained(connection);
            }
            Payload::Closed => {}
            Payload::Frame(frame) => self.data_frame(connection, frame)?,
        }
        self.settle_target()
    }

    fn session_of(&mut self, connection: ConnectionId) -> Option<&mut TargetEnd> {
        let mut sessions = self.target.sessions.values_mut();
        sessions.find(|session| session.intake.is_led_by(connection))
    }

    fn lane(&mut self, connection: ConnectionId) -> Option<(u64, &mut TargetEnd)> {
        let mut sessions = self.target.sessions.iter_mut();
        let found = sessions.find(|(_, session)| session.intake.is_open(connection));
        found.map(|(epoch, session)| (*epoch, session))
    }

    fn target_lost(&mut self, connection: ConnectionId) {
        if let Some(session) = self.session_of(connection) {
            session.machine.end(lost());
        } else if let Some((_, session)) = self.lane(connection) {
            session.machine.fail(lost());
        } else if let Some(waiting) = self
            .target
            .waiting
            .take_if(|waiting| waiting.control == connection)
        {
            self.target.fence.release(waiting.epoch);
        }
    }

    fn admit(&mut self, control: ConnectionId, hello: Hello) -> Checked {
        let admission = self.target.fence.admit(&hello);
        self.realm
            .trace(|| format!("target: {} is {admission:?}", hello.instance.as_u128()));
        let refusal = match admission {
            Admission::Busy => Some(FailureCode::Busy),
            Admission::Fenced => Some(FailureCode::Fenced),
            Admission::Granted(epoch) => {
                self.checker.fencing.granted(&hello)?;
                let waiting = Waiting {
                    control,
                    hello,
                    epoch,
                };
                let instance = waiting.hello.instance;
                if let Some(before) = self.target.waiting.replace(waiting) {
                    self.realm.refuse(before.control, FailureCode::Disconnected);
                }
                if self.setting.broken != Broken::Fence {
                    for session in self.target.sessions.values_mut() {
                        let code = if session.intake.instance == instance {
                            FailureCode::Disconnected
                        } else {
                            FailureCode::Fenced
                        };
                        session.machine.fail(Failure::new(code, ""));
                    }
                    self.settle_target()?;
                }
                None
            }
        };
        if let Some(code) = refusal {
            self.realm.refuse(control, code);
        }
        self.begin_waiting()
    }

    /// Begins the session that waits, once nobody else can write.
    fn begin_waiting(&mut self) -> Checked {
        let is_free = self.target.sessions.is_empty() || self.setting.broken == Broken::Fence;
        let Some(Waiting {
            control,
            hello,
            epoch,
        }) = self.target.waiting.take_if(|_| is_free)
        else {
            return Ok(());
        };
        self.checker.fencing.session_begins(epoch)?;
        let limits = TargetLimits {
            flush_bytes: self.setting.flush_bytes,
            has_journal: self.setting.has_journal,
            verify: self.setting.verify,
            ..TargetLimits::default()
        };
        let intake = Intake::new(&mut self.realm.rng, control, hello.instance);
        let mut machine = TargetSession::new(self.realm.now(), CLONE, epoch, String::new(), limits);
        let generation = generation_of(&hello.generation);
        machine.handle_message(self.realm.now(), Message::Hello(hello));
        let session = TargetEnd {
            machine,
            intake,
            generation,
            claims: ChunkSet::default(),
            is_repairing: false,
            is_read_back: false,
        };
        self.target.sessions.insert(epoch, session);
        self.settle_target()
    }

    fn data_frame(&mut self, connection: ConnectionId, frame: Frame) -> Checked {
        let Some((epoch, session)) = self.lane(connection) else {
            return Ok(());
        };
        session.intake.receive(connection);
        let (chunks, work) = match frame {
            Frame::Chunk { index, tag } => {
                self.checker.arrives(index)?;
                self.target.writes_count += 1;
                let id = self.target.writes_count;
                (
                    ChunkRange::one(ChunkIndex(index)),
                    Work::Write { index, tag, id },
                )
            }
            Frame::Zero(chunks) => (chunks, Work::Zero(chunks)),
            Frame::Offer { index, digest } => (
                ChunkRange::one(ChunkIndex(index)),
                Work::Compare { index, digest },
            ),
        };
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        if session.claims.intersects(chunks) {
            let text = format!("chunks {chunks} came twice");
            session
                .machine
                .fail(Failure::new(FailureCode::Protocol, text));
            return Ok(());
        }
        session.claims.insert(chunks);
        if let Work::Write { index, tag, id } = work {
            self.target.writes.insert(id, (index, tag));
        }
        self.begin_work(epoch, work);
        Ok(())
    }

    fn begin_work(&mut self, epoch: u64, work: Work) {
        let time = if self.realm.rng.chance(1) {
            self.realm.rng.millis(1000, 25_000)
        } else {
            self.realm.rng.micros(100, 50_000)
        };
        if let Some(session) = self.target.sessions.get_mut(&epoch) {
            session.intake.in_flight += 1;
        }
        let run = self.realm.target_run;
        self.realm.after(time, Event::Done { run, epoch, work });
    }

    pub(crate) fn end_work(&mut self, epoch: u64, work: Work) -> Checked {
        let now = self.realm.now();
        let geometry = self.geometry;
        if matches!(work, Work::Write { .. } | Work::Zero(_)) {
            self.checker.fencing.session_writes(epoch)?;
        }
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        session.intake.in_flight -= 1;
        let is_over = session.intake.is_over;
        let is_frame = matches!(
            work,
            Work::Write { .. } | Work::Zero(_) | Work::Compare { .. }
        );
        match work {
            Work::Prepare if is_over => {}
            Work::Prepare => self.prepared(epoch)?,
            Work::Write { index, tag, id } => {
                self.target.writes.remove(&id);
                self.disk.write(index as usize, tag);
                if !is_over {
                    let digest = content::digest(&geometry, index as usize, tag);
                    let data_len = content::data_len(&geometry, index as usize, tag);
                    session
                        .machine
                        .handle_chunk(now, ChunkIndex(index), digest, data_len);
                    session.intake.done();
                }
            }
            Work::Zero(chunks) => {
                for index in chunks.start.0..chunks.end.0 {
                    self.disk.write(index as usize, 0);
                }
                if !is_over {
                    session.machine.handle_zero(now, chunks);
                    session.intake.done();
                }
            }
            Work::Compare { index, digest } => {
                let tag = self.disk.read(index as usize);
                if !is_over {
                    if content::digest(&geometry, index as usize, tag) == digest {
                        let data_len = content::data_len(&geometry, index as usize, tag);
                        session
                            .machine
                            .handle_match(now, ChunkIndex(index), digest, data_len);
                    }
                    session.intake.done();
                }
            }
            Work::Flush => {
                self.disk.end_flush();
                session.machine.handle_flushed(now);
            }
            Work::Journal => {
                self.journal.end();
                self.checker.journal_changed(&self.journal)?;
                if self.setting.broken != Broken::Journal {
                    session.machine.handle_journaled(now);
                }
            }
            Work::ReadBack => {
                let digest = content::volume_digest(&geometry, self.disk.durable());
                if !is_over {
                    session.is_read_back = true;
                    session.machine.handle_read_back(now, digest);
                    if digest != self.checker.digest(session.generation) {
                        session.is_repairing = true;
                        session.is_read_back = false;
                        self.checker.forget();
                    }
                }
            }
        }
        self.is_disk_changed = true;
        if is_frame {
            self.check_drained_session(epoch);
        }
        self.settle_target()?;
        self.bury(epoch)
    }

    fn prepared(&mut self, epoch: u64) -> Checked {
        let now = self.realm.now();
        let geometry = self.geometry;
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        let hello = session.machine.hello().expect("it was greeted").clone();
        let known = match (&self.target.standing, &self.target.checkpoint) {
            (Some(standing), _) => Some(
                standing
                    .check_source(geometry, &hello)
                    .map(|()| standing.clone()),
            ),
            (None, Some(checkpoint)) => Some(Standing::resume(now, geometry, &hello, checkpoint)),
            (None, None) => None,
        };
        let mut offer = self.setting.offer;
        let is_borne_out = known
            .as_ref()
            .is_some_and(|known| matches!(known, Ok(standing) if self.disk_bears_out(standing)));
        let session = self.target.sessions.get_mut(&epoch).expect("it runs");
        let standing = match known {
            Some(Ok(standing)) if is_borne_out => standing,
            Some(Err(refused)) => {
                check(refused.is_source_changed(), || refused.to_string())?;
                if !self.setting.offers_changed {
                    let text = refused.to_string();
                    session
                        .machine
                        .fail(Failure::new(FailureCode::SourceChanged, text));
                    return Ok(());
                }
                offer = true;
                self.checker.forget();
                Standing::new(now, geometry, &hello)
            }
            Some(Ok(_)) => {
                self.checker.forget();
                Standing::new(now, geometry, &hello)
            }
            None => Standing::new(now, geometry, &hello),
        };
        let standing = Standing {
            remembered: self.target.fence.remembered(),
            ..standing
        };
        let session = self.target.sessions.get_mut(&epoch).expect("it runs");
        session.claims = chunks_of(&geometry, &standing.ledger.durable().collect::<Vec<_>>());
        self.target.standing = None;
        self.target.checkpoint = None;
        session.intake.streams =
            session
                .machine
                .handle_prepared(now, session.intake.token, standing, offer);
        Ok(())
    }

    /// Whether what is known of the volume is known of this one.
    fn disk_bears_out(&self, standing: &Standing) -> bool {
        standing.ledger.witnesses().all(|witness| {
            let index = witness.index.0 as usize;
            content::digest(&self.geometry, index, self.disk.read(index)) == witness.digest
        })
    }

    fn check_drained(&mut self, connection: ConnectionId) {
        let sessions = self.target.sessions.iter();
        let epoch = sessions
            .filter(|(_, session)| session.intake.has(connection))
            .map(|(epoch, _)| *epoch)
            .next();
        if let Some(epoch) = epoch {
            self.check_drained_session(epoch);
        }
    }

    /// Nothing more can come once all data connections have come and gone.
    fn check_drained_session(&mut self, epoch: u64) {
        let now = self.realm.now();
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return;
        };
        let due = session.machine.connections_due();
        if session.intake.is_drained(due) {
            session.machine.handle_drained(now);
        }
    }

    pub(crate) fn wake_target(&mut self) -> Checked {
        let now = self.realm.now();
        for session in self.target.sessions.values_mut() {
            session.machine.handle_timeout(now);
        }
        self.settle_target()
    }

    fn settle_target(&mut self) -> Checked {
        let epochs: Vec<_> = self.target.sessions.keys().copied().collect();
        for epoch in epochs {
            while self.settle_session(epoch)? {}
            self.bury(epoch)?;
        }
        Ok(())
    }

    /// Does the next thing that a session wants; gives whether there was one.
    fn settle_session(&mut self, epoch: u64) -> Result<bool, Violation> {
        let now = self.realm.now();
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(false);
        };
        // The last word is said before the connection ends.
        if let Some(message) = session.machine.poll_message() {
            let control = session.intake.control;
            match &message {
                Message::Welcome(welcome) => {
                    let generation = session.generation;
                    self.checker.welcomed(epoch, generation, &welcome.durable)?;
                }
                Message::Watermark(told) if session.machine.stage() != Stage::Handshake => {
                    let ledger = session
                        .machine
                        .standing()
                        .map(|standing| standing.ledger.durable().collect::<Vec<_>>())
                        .filter(|_| !session.is_repairing)
                        .map(|durable| chunks_of(&self.geometry, &durable));
                    self.checker.told(*told, ledger)?;
                }
                _ => {}
            }
            self.realm
                .trace(|| format!("target says {} in {epoch}", message.name()));
            self.realm
                .send(control, Side::Source, Payload::Control(message));
            return Ok(true);
        }
        let Some(action) = session.machine.poll_action() else {
            return Ok(false);
        };
        match action {
            TargetAction::Prepare(_) => self.begin_work(epoch, Work::Prepare),
            TargetAction::Flush if self.setting.broken == Broken::Flush => {
                session.machine.handle_flushed(now);
            }
            TargetAction::Flush => {
                let is_alone = self.disk.begin_flush();
                check(is_alone, || "two sessions flush".to_owned())?;
                self.begin_work(epoch, Work::Flush);
            }
            TargetAction::Journal(checkpoint) => {
                let is_alone = self.begin_record(checkpoint.encode());
                check(is_alone, || "two sessions journal".to_owned())?;
                let session = self.target.sessions.get_mut(&epoch).expect("it runs");
                if self.setting.broken == Broken::Journal {
                    session.machine.handle_journaled(now);
                }
                self.begin_work(epoch, Work::Journal);
            }
            TargetAction::ReadBack => self.begin_work(epoch, Work::ReadBack),
            TargetAction::NextRound => {
                session.intake.next_round();
                session.claims = session.machine.written().cloned().unwrap_or_default();
            }
            TargetAction::Seal => session.machine.seal(now, 0, AgentStats::default()),
            TargetAction::Done(receipt) => {
                let generation = session.generation;
                self.realm.trace(|| format!("target is done in {epoch}"));
                self.checker
                    .check_receipt(&receipt, generation, &self.disk)?;
                self.hang_up_target(epoch);
            }
            TargetAction::Fail(failure) => {
                self.realm
                    .trace(|| format!("target fails in {epoch}: {failure}"));
                self.hang_up_target(epoch);
            }
        }
        Ok(true)
    }

    /// Begins to write a record, into a new file when this one is torn or long. Gives whether no other
    /// one is being written.
    fn begin_record(&mut self, record: Vec<u8>) -> bool {
        let is_whole = replay(&self.journal.cached).is_ok_and(|replay| replay.torn_len == 0);
        if is_whole && self.journal.cached.len() < REWRITE_LEN {
            self.journal.append(record)
        } else {
            self.journal.replace([&JOURNAL_MAGIC[..], &record].concat())
        }
    }

    fn hang_up_target(&mut self, epoch: u64) {
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return;
        };
        let connections = session.intake.close();
        self.realm.hang_up(connections, Side::Source);
    }

    /// A session that is over, and of which no thread works any more, leaves what it knows.
    fn bury(&mut self, epoch: u64) -> Checked {
        let over = self
            .target
            .sessions
            .get(&epoch)
            .is_some_and(|session| session.intake.is_over && session.intake.in_flight == 0);
        if !over {
            return Ok(());
        }
        let Some(session) = self.target.sessions.remove(&epoch) else {
            return Ok(());
        };
        if let Some(standing) = session.machine.into_standing() {
            self.target.standing = Some(standing);
        }
        self.target.fence.release(epoch);
        self.begin_waiting()
    }
}
