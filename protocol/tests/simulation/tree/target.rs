//! The target agent of a tree as its driver would be: one session at a time, a journal in the target
//! directory, a flush now and then.

use std::collections::BTreeMap;
use std::time::Duration;

use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::message::{Hello, Message};
use volferry_protocol::receipt::{AgentStats, Receipt, Verified};
use volferry_protocol::session::{Admission, Fence, Stage};
use volferry_protocol::tree::journal::{self, Entry};
use volferry_protocol::tree::offer::Answer;
use volferry_protocol::tree::proof::Proof;
use volferry_protocol::tree::session::{
    Earlier, TreeLimits, TreeSummary, TreeTargetAction, TreeTargetSession, TreeTerms,
};

use super::disk::At;
use super::restore::{Applied, Frame, Known, Restore, Reuse, read_back, record};
use super::world::{Payload, World};
use crate::fencing::{Checked, Violation, check};
use crate::intake::{Intake, Waiting, lost};
use crate::network::{ConnectionId, Side};
use crate::realm::{Broken, CLONE, Event};

const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);

/// How often what reads back wrong is compared and sent again.
pub(crate) const REPAIRS_MAX: u32 = 3;

/// What a run of the target agent knows.
#[derive(Debug)]
pub(crate) struct TargetAgent {
    fence: Fence,
    earlier: Earlier,
    repairs: u32,
    reuse: Reuse,
    /// Whether what an attempt of this clone left is there, to be gone on from.
    goes_on: bool,
    /// Whether nothing of that is durable.
    is_blank: bool,
    is_repairing: bool,
    was_alone: Option<bool>,
    /// By epoch; one runs, others may have work in flight.
    pub(crate) sessions: BTreeMap<u64, TargetEnd>,
    /// Was let in, and waits until the session before is over.
    waiting: Option<Waiting>,
    /// Frames that threads apply.
    applying: BTreeMap<u64, Frame>,
    applying_count: u64,
}

/// A session at the target.
#[derive(Debug)]
pub(crate) struct TargetEnd {
    pub(crate) machine: TreeTargetSession,
    intake: Intake,
    restore: Option<Restore>,
    checkpoint: Checkpoint,
    summary: Option<TreeSummary>,
    /// What it is going to tell, while it concludes.
    receipt: Option<Box<Receipt>>,
    /// Why it is over.
    code: Option<FailureCode>,
    is_drained: bool,
    pub(crate) is_read_back: bool,
}

/// Making durable what was finished.
#[derive(Debug, Default)]
struct Checkpoint {
    due_at: Option<Duration>,
    /// What the flush that runs covers.
    under_way: Option<(Vec<Entry>, u64)>,
    /// What comes last waits for it, or follows from it.
    is_last: bool,
}

/// Work of a thread that is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    Prepare,
    Apply(u64),
    Checkpoint,
    Flush,
    Journal,
    Complete,
    ReadBack,
    Prove,
    Conclude,
}

impl World {
    /// A run of the target agent begins, or the first of them is about to.
    pub(crate) fn new_target(known: &Known, reuse: Reuse, is_staged: bool) -> TargetAgent {
        let goes_on = known.is_alone.is_some();
        TargetAgent {
            fence: Fence::after(known.epoch, &known.remembered),
            earlier: Earlier::default(),
            repairs: 0,
            // What an attempt wrote and could not flush looks the same and may be anything.
            reuse: match reuse {
                Reuse::Times if goes_on || is_staged => Reuse::Content,
                reuse => reuse,
            },
            goes_on,
            is_blank: goes_on && known.is_empty(),
            is_repairing: false,
            was_alone: known.is_alone,
            sessions: BTreeMap::new(),
            waiting: None,
            applying: BTreeMap::new(),
            applying_count: 0,
        }
    }

    pub(crate) fn run_target(&mut self) -> Checked {
        self.realm.run_target();
        let mut known = Known::read(&self.journal.cached);
        self.setting.broken.forget(&mut known.remembered);
        self.target = Self::new_target(&known, self.setting.reuse, self.is_staged);
        let proof = self.proven();
        let Some(mut proof) = proof.filter(|_| self.setting.broken != Broken::Proof) else {
            return Ok(());
        };
        check(proof.witness == self.disk.witness(), || {
            "the proof is of another tree".to_owned()
        })?;
        self.setting.broken.forget(&mut proof.remembered);
        self.target.fence = Fence::after(proof.epoch, &proof.remembered);
        let holder = proof.remembered.holder;
        self.target.earlier = Earlier {
            receipt: Some(Box::new(proof.receipt)),
            receipt_for: holder.filter(|_| self.setting.reuse != Reuse::Journal),
            ..Earlier::default()
        };
        self.target.goes_on = false;
        self.target.is_blank = false;
        self.target.was_alone = None;
        self.conclude()
    }

    /// The proof that the state directory holds now.
    fn proven(&self) -> Option<Proof> {
        Proof::decode(&self.proof.cached).ok()
    }

    /// What the clone kept for itself goes, and that becomes durable.
    fn conclude(&mut self) -> Checked {
        self.journal.lose();
        self.is_staged = false;
        let staged: Vec<_> = self.disk.cached.names.keys().copied().collect();
        for at in staged.into_iter().filter(|at| matches!(at, At::Staged(_))) {
            self.disk.remove(at);
        }
        let is_alone = self.disk.begin_flush();
        check(is_alone, || "two sessions flush".to_owned())?;
        self.disk.end_flush();
        self.storage_changed();
        Ok(())
    }

    /// The target agent is killed, with or without its host; another run begins later.
    pub(crate) fn crash_target(&mut self, has_power: bool, is_journal_lost: bool) {
        if !self.realm.is_target_running {
            return;
        }
        let rng = &mut self.realm.rng;
        let restore = self
            .target
            .sessions
            .values()
            .find_map(|session| session.restore.as_ref());
        for frame in std::mem::take(&mut self.target.applying).into_values() {
            match frame {
                Frame::Piece { file, index, tag } => {
                    if let Some(inode) = restore.and_then(|restore| restore.inode(file)) {
                        self.disk.write_in_part(rng, inode, index as usize, tag);
                    }
                }
                Frame::Small(name, file) if rng.chance(50) => {
                    let inode = self.disk.create(At::Place(name), 1);
                    self.disk.write_in_part(rng, inode, 0, file.pieces[0]);
                }
                _ => {}
            }
        }
        self.target.sessions.clear();
        self.disk.forget_flush();
        self.journal.crash(rng, has_power);
        if !has_power {
            self.disk.crash(rng);
        }
        self.proof.crash(rng, has_power);
        if is_journal_lost {
            self.journal.lose();
            self.proof.lose();
        }
        // With a tree that is proven goes its journal. Without a proof, who comes too late for the receipt
        // begins anew.
        let has_journal = !self.journal.cached.is_empty();
        let proof = self.proven();
        let known = Known::read(&self.journal.cached);
        let epoch = proof.as_ref().map_or(known.epoch, |proof| proof.epoch);
        let has_proof = proof.is_some();
        self.checker.target_restarted(has_journal, has_proof, epoch);
        self.storage_changed();
        self.realm.stop_target(has_power);
    }

    pub(crate) fn tell_target(&mut self, connection: ConnectionId, payload: Payload) -> Checked {
        let now = self.realm.now();
        match payload {
            Payload::Control(Message::Hello(hello)) => self.admit(connection, hello)?,
            Payload::Control(message) => {
                if let Some(session) = self.session_of(connection) {
                    session.machine.handle_message(now, message);
                }
                self.check_drained();
            }
            Payload::Preamble { number, token } => {
                let mut sessions = self.target.sessions.values_mut();
                if !sessions.any(|session| session.intake.join(connection, number, token)) {
                    self.realm.hang_up([connection], Side::Source);
                }
            }
            Payload::Lost => self.target_lost(connection),
            Payload::End { frames } => {
                if let Some((_, session)) = self.lane(connection) {
                    let came = session.intake.end(connection, frames);
                    check(came.is_none(), || format!("{came:?} frames of {frames}"))?;
                }
                self.realm.send(connection, Side::Source, Payload::Closed);
                self.check_drained();
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
        match admission {
            Admission::Busy => self.realm.refuse(control, FailureCode::Busy),
            Admission::Fenced => self.realm.refuse(control, FailureCode::Fenced),
            Admission::Granted(epoch) => {
                self.checker.fencing.granted(&hello)?;
                let instance = hello.instance;
                let waiting = Waiting {
                    control,
                    hello,
                    epoch,
                };
                if let Some(before) = self.target.waiting.replace(waiting) {
                    self.realm.refuse(before.control, FailureCode::Disconnected);
                }
                if self.setting.broken != Broken::Fence {
                    for session in self.target.sessions.values_mut() {
                        let code = match session.intake.instance == instance {
                            true => FailureCode::Disconnected,
                            false => FailureCode::Fenced,
                        };
                        session.machine.fail(Failure::new(code, ""));
                    }
                    self.settle_target()?;
                }
            }
        }
        self.begin_waiting()
    }

    /// Begins the session that waits, once nobody else can write.
    fn begin_waiting(&mut self) -> Checked {
        let is_free = self.target.sessions.is_empty() || self.setting.broken == Broken::Fence;
        let waiting = self.target.waiting.take_if(|_| is_free);
        let Some(Waiting {
            control,
            hello,
            epoch,
        }) = waiting
        else {
            return Ok(());
        };
        self.checker.fencing.session_begins(epoch)?;
        let intake = Intake::new(&mut self.realm.rng, control, hello.instance);
        let limits = TreeLimits {
            streams_max: 4,
            terms: TreeTerms::default(),
            verify: self.setting.verify,
        };
        let earlier = self.target.earlier.clone();
        let now = self.realm.now();
        let mut machine = TreeTargetSession::new(now, CLONE, epoch, String::new(), limits, earlier);
        machine.handle_message(now, Message::Hello(hello));
        let session = TargetEnd {
            machine,
            intake,
            restore: None,
            checkpoint: Checkpoint::default(),
            summary: None,
            receipt: None,
            code: None,
            is_drained: false,
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
        self.target.applying_count += 1;
        let id = self.target.applying_count;
        self.target.applying.insert(id, frame);
        self.begin_work(epoch, Work::Apply(id));
        Ok(())
    }

    fn begin_work(&mut self, epoch: u64, work: Work) {
        let rng = &mut self.realm.rng;
        let time = match work {
            _ if rng.chance(1) => rng.millis(1000, 25_000),
            Work::Flush => rng.millis(1, 3000),
            _ => rng.micros(100, 50_000),
        };
        if let Some(session) = self.target.sessions.get_mut(&epoch) {
            session.intake.in_flight += 1;
        }
        self.after_work(time, epoch, work);
    }

    fn after_work(&mut self, time: Duration, epoch: u64, work: Work) {
        let run = self.realm.target_run;
        self.realm.after(time, Event::Done { run, epoch, work });
    }

    pub(crate) fn end_work(&mut self, epoch: u64, work: Work) -> Checked {
        let time = self.realm.time;
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        if let Work::Checkpoint = work {
            // Another one may have been planned since.
            let is_due = session.checkpoint.due_at.is_some_and(|at| at <= time);
            return match is_due && session.summary.is_none() {
                true => self.checkpoint(epoch),
                false => Ok(()),
            };
        }
        session.intake.in_flight -= 1;
        let is_over = session.intake.is_over;
        match work {
            Work::Prepare if is_over => {}
            Work::Prepare => self.prepared(epoch)?,
            Work::Apply(id) => self.apply(epoch, id)?,
            Work::Checkpoint => {}
            Work::Flush => {
                if self.setting.broken != Broken::Flush {
                    self.disk.end_flush();
                }
                self.flushed(epoch)?;
            }
            Work::Journal => {
                self.journal.end();
                self.checker.journal_changed(&self.journal);
                self.checkpointed(epoch)?;
            }
            Work::Complete => {
                let completed = session
                    .restore
                    .as_ref()
                    .map(|restore| restore.complete(&mut self.disk));
                match completed {
                    Some(Ok(summary)) => {
                        session.summary = Some(summary);
                        if !is_over {
                            session.checkpoint.is_last = true;
                            self.checkpoint(epoch)?;
                        }
                    }
                    Some(Err((code, text))) => session.machine.fail(Failure::new(code, text)),
                    None => {}
                }
            }
            Work::ReadBack => {
                if let Some(summary) = session.summary.take().filter(|_| !is_over) {
                    self.end_reading(epoch, summary);
                }
            }
            Work::Prove => {
                self.proof.end();
                self.begin_work(epoch, Work::Conclude);
            }
            Work::Conclude => {
                if !self.setting.has_state_dir {
                    self.checker.fencing.journal_removed();
                }
                self.conclude()?;
                self.concluded(epoch)?;
            }
        }
        self.is_storage_changed = true;
        self.check_drained();
        self.settle_target()?;
        self.bury(epoch)
    }

    fn concluded(&mut self, epoch: u64) -> Checked {
        let is_exact = self.setting.delete_extra || self.target.was_alone == Some(true);
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        session.machine.handle_concluded();
        if let (Some(receipt), Some(restore)) = (&session.receipt, &session.restore) {
            let trusts_times = restore.reuse == Reuse::Times;
            self.checker
                .check_receipt(receipt, epoch, &self.disk, is_exact, trusts_times)?;
        }
        Ok(())
    }

    /// As the storage makes a target directory ready.
    fn prepared(&mut self, epoch: u64) -> Checked {
        let target = &mut self.target;
        let reuse = match target.reuse {
            _ if target.is_repairing => Reuse::Content,
            reuse => reuse,
        };
        let compares = reuse != Reuse::Journal;
        self.checker.begins_to_write(compares)?;
        self.proof.lose();
        let is_own_only = target.is_blank && target.was_alone == Some(true);
        let keeps = target.goes_on && !target.is_blank || compares;
        let clears = !keeps && (self.setting.delete_extra || is_own_only);
        let mut is_alone = true;
        let places: Vec<_> = self.disk.cached.places().collect();
        for name in places {
            match clears {
                true => self.disk.remove(At::Place(name)),
                false => is_alone = false,
            }
        }
        let was_empty = is_alone;
        let known = Known::read(&self.journal.cached);
        let is_alone = known.is_alone.or(target.was_alone).unwrap_or(is_alone);
        target.was_alone = Some(is_alone);
        let numbers: Vec<_> = known.parts.values().map(|part| part.file).collect();
        let names: Vec<_> = self.disk.cached.names.keys().copied().collect();
        for at in names {
            if matches!(at, At::Staged(number) if !numbers.contains(&number)) {
                self.disk.remove(at);
            }
        }
        let is_dirty = target.goes_on && !clears || !was_empty;
        let sweeps = is_dirty && (is_alone || self.setting.delete_extra);
        target.goes_on = true;
        target.is_blank = false;
        self.is_staged = true;
        // What comes behind the last whole record is cut off; a file that is none begins anew.
        let entries = Entry::of_session(epoch, is_alone, &target.fence.remembered());
        let is_alone = match known.len {
            0 => {
                let record = record(journal::HEADER_LEN, &entries);
                self.journal
                    .replace([&journal::header(CLONE)[..], &record].concat())
            }
            len => {
                self.journal.cut(len);
                self.journal.append(record(len, &entries))
            }
        };
        check(is_alone, || "two sessions journal".to_owned())?;
        self.journal.end();
        self.checker.journal_changed(&self.journal);
        self.checker.fencing.welcomed(epoch, true)?;
        self.checker.prepared(&self.disk, reuse);
        let restore = Restore::new(
            epoch,
            sweeps,
            reuse,
            self.target.is_repairing,
            known,
            self.setting.broken,
            self.checker.names(),
        );
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        session.intake.streams = session.machine.handle_prepared(
            session.intake.token,
            restore.durable_bytes,
            restore.offers(),
            restore.compares(),
        );
        self.checker.told(restore.durable_bytes)?;
        session.restore = Some(restore);
        self.plan_checkpoint(epoch);
        Ok(())
    }

    fn plan_checkpoint(&mut self, epoch: u64) {
        let due_at = self.realm.time + CHECKPOINT_INTERVAL;
        if let Some(session) = self.target.sessions.get_mut(&epoch) {
            session.checkpoint.due_at = Some(due_at);
            self.after_work(CHECKPOINT_INTERVAL, epoch, Work::Checkpoint);
        }
    }

    fn apply(&mut self, epoch: u64, id: u64) -> Checked {
        let now = self.realm.now();
        self.checker.fencing.session_writes(epoch)?;
        let frame = self.target.applying.remove(&id);
        let session = self.target.sessions.get_mut(&epoch);
        let (Some(frame), Some(session)) = (frame, session) else {
            return Ok(());
        };
        session.intake.done();
        let Some(restore) = &mut session.restore else {
            return Ok(());
        };
        match &frame {
            Frame::Small(name, file) => self.checker.arrives(file.stamp(*name), 0)?,
            Frame::Piece { file, index, .. } => {
                if let Some(stamp) = restore.stamp(*file) {
                    self.checker.arrives(stamp, *index)?;
                }
            }
            _ => {}
        }
        let applied = restore.apply(&mut self.disk, frame);
        let taken_bytes = restore.data_bytes;
        if session.intake.is_over {
            return Ok(());
        }
        session.machine.set_taken(taken_bytes);
        session.machine.handle_written(now);
        match applied {
            Ok(Applied::Done) => {}
            Ok(Applied::Answer(pack, holdings)) => {
                session.machine.handle_answer(Answer { pack, holdings });
            }
            Ok(Applied::Pieces(pieces)) => session.machine.handle_pieces(pieces),
            Err((code, text)) => session.machine.fail(Failure::new(code, text)),
        }
        Ok(())
    }

    /// Begins to make durable what was finished.
    fn checkpoint(&mut self, epoch: u64) -> Checked {
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        if session.checkpoint.under_way.is_some() || session.receipt.is_some() {
            return Ok(());
        }
        let Some(restore) = &mut session.restore else {
            return Ok(());
        };
        session.checkpoint.due_at = None;
        session.checkpoint.under_way = Some(restore.finished());
        if self.setting.broken != Broken::Flush {
            let is_alone = self.disk.begin_flush();
            check(is_alone, || "two sessions flush".to_owned())?;
        }
        self.begin_work(epoch, Work::Flush);
        Ok(())
    }

    fn flushed(&mut self, epoch: u64) -> Checked {
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        if let (Broken::Early, Some(restore)) = (self.setting.broken, &mut session.restore)
            && let Some((entries, news)) = &mut session.checkpoint.under_way
        {
            let (more, more_news) = restore.finished();
            entries.extend(more);
            *news += more_news;
        }
        let Some((entries, _)) = &session.checkpoint.under_way else {
            return Ok(());
        };
        if entries.is_empty() {
            return self.checkpointed(epoch);
        }
        let is_alone = self
            .journal
            .append(record(self.journal.cached.len(), entries));
        check(is_alone, || "two sessions journal".to_owned())?;
        if self.setting.broken == Broken::Journal {
            let news = session
                .checkpoint
                .under_way
                .as_ref()
                .map_or(0, |(_, news)| *news);
            let bytes = session
                .restore
                .as_ref()
                .map_or(0, |restore| restore.durable_bytes + news);
            session.machine.handle_durable(bytes);
        }
        self.begin_work(epoch, Work::Journal);
        Ok(())
    }

    fn checkpointed(&mut self, epoch: u64) -> Checked {
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        let Some((_, news)) = session.checkpoint.under_way.take() else {
            return Ok(());
        };
        let Some(restore) = &mut session.restore else {
            return Ok(());
        };
        restore.durable_bytes += news;
        session.machine.handle_durable(restore.durable_bytes);
        if session.intake.is_over {
            session.is_drained = true;
            return Ok(());
        }
        if !session.checkpoint.is_last {
            self.plan_checkpoint(epoch);
            return Ok(());
        }
        match session.summary.take() {
            None => {
                session.checkpoint.is_last = false;
                self.begin_work(epoch, Work::Complete);
            }
            Some(summary) if self.setting.verify == Verified::Readback => {
                session.summary = Some(summary);
                self.begin_work(epoch, Work::ReadBack);
            }
            Some(summary) => session.machine.handle_completed(summary),
        }
        Ok(())
    }

    fn end_reading(&mut self, epoch: u64, written: TreeSummary) {
        let digest: Digest = read_back(&self.disk);
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return;
        };
        if digest == written.digest {
            session.is_read_back = true;
            session.machine.handle_completed(written);
            return;
        }
        let code = if self.target.repairs < REPAIRS_MAX {
            self.target.repairs += 1;
            FailureCode::Repair
        } else {
            FailureCode::Integrity
        };
        session
            .machine
            .fail(Failure::new(code, "it reads back wrong"));
    }

    /// Nothing more can come once all data connections have come and gone.
    fn check_drained(&mut self) {
        for session in self.target.sessions.values_mut() {
            let due = session.machine.connections_due();
            if session.intake.is_drained(due) {
                session.machine.handle_drained();
            }
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
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(false);
        };
        // The last word is said before the connection ends.
        if let Some(message) = session.machine.poll_message() {
            let control = session.intake.control;
            if let Message::Watermark(told) = &message
                && session.machine.stage() != Stage::Handshake
            {
                self.checker.told(told.durable_bytes)?;
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
            TreeTargetAction::Prepare(_) => self.begin_work(epoch, Work::Prepare),
            TreeTargetAction::Complete => {
                let is_under_way = session.checkpoint.under_way.is_some();
                session.checkpoint.is_last = is_under_way;
                session.checkpoint.due_at = None;
                if !is_under_way {
                    self.begin_work(epoch, Work::Complete);
                }
            }
            TreeTargetAction::Seal => {
                let now = self.realm.now();
                session.machine.seal(now, 0, AgentStats::default());
            }
            TreeTargetAction::Conclude(receipt) => {
                session.receipt = Some(receipt.clone());
                self.checker.proves(&receipt, epoch);
                if !self.setting.has_state_dir {
                    self.begin_work(epoch, Work::Conclude);
                    return Ok(true);
                }
                let proof = Proof {
                    receipt: *receipt,
                    witness: self.disk.witness(),
                    root: None,
                    epoch,
                    remembered: self.target.fence.remembered(),
                };
                let is_alone = self.proof.replace(proof.encode());
                check(is_alone, || "two sessions write a proof".to_owned())?;
                self.begin_work(epoch, Work::Prove);
            }
            TreeTargetAction::Done(receipt) => {
                self.realm.trace(|| format!("target is done in {epoch}"));
                session.is_drained = true;
                self.checker.told_receipt(&receipt, &self.disk)?;
                self.hang_up_target(epoch);
            }
            TreeTargetAction::Fail(failure) => {
                self.realm
                    .trace(|| format!("target fails in {epoch}: {failure}"));
                session.code = Some(failure.code);
                self.hang_up_target(epoch);
            }
        }
        Ok(true)
    }

    fn hang_up_target(&mut self, epoch: u64) {
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return;
        };
        let connections = session.intake.close();
        self.realm.hang_up(connections, Side::Source);
    }

    /// What was written is not what was read: nothing of it is to be gone on from.
    fn distrust(&mut self) {
        self.journal.unlink();
        self.checker.fencing.journal_removed();
        self.checker.forget();
    }

    /// A session that is over, and of which no thread works any more, makes durable what it brought,
    /// and leaves what it knows.
    fn bury(&mut self, epoch: u64) -> Checked {
        let Some(session) = self.target.sessions.get_mut(&epoch) else {
            return Ok(());
        };
        if !session.intake.is_over || session.intake.in_flight > 0 {
            return Ok(());
        }
        let has_more =
            session.restore.is_some() && !session.is_drained && session.receipt.is_none();
        if has_more {
            return self.checkpoint(epoch);
        }
        let Some(session) = self.target.sessions.remove(&epoch) else {
            return Ok(());
        };
        self.target.earlier = session.machine.into_earlier();
        match session.code {
            Some(FailureCode::Repair) if self.setting.broken == Broken::Distrust => {}
            Some(FailureCode::Repair) => {
                self.target.is_repairing = true;
                self.distrust();
            }
            Some(FailureCode::Integrity) => self.distrust(),
            _ => {}
        }
        self.checker.journal_changed(&self.journal);
        self.target.fence.release(epoch);
        self.begin_waiting()
    }
}
