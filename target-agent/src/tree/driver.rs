//! The owner of a session that clones a tree, at the target. It mirrors the owner of a block
//! session: wait for the next event, apply it to the state machine, do what the machine asks for.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use volferry_agent::conversation::{Conversation, Heard};
use volferry_agent::failure;
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::compression::Codecs;
use volferry_protocol::failure::{Failure, FailureClass, FailureCode};
use volferry_protocol::message::{Hello, Message};
use volferry_protocol::receipt::{Receipt, Verified};
use volferry_protocol::session::Fence;
use volferry_protocol::tree::fidelity::FidelityClass;
use volferry_protocol::tree::frame::PACK_LEN_MAX;
use volferry_protocol::tree::proof::Proof;
use volferry_protocol::tree::session::{
    Earlier, TreeLimits, TreeSummary, TreeTargetAction, TreeTargetSession, TreeTerms,
};
use volferry_storage::BufferPool;
use volferry_storage::tree::{ReadBack, Restore, TreeError, TreeTarget, Walk};

use super::data::Files;
use super::proof::ProofFile;
use super::writers::{Applied, Incoming, Writers};
use crate::TargetConfig;
use crate::data::{Buffers, DataConnection};
use crate::greeter::{Greeted, Greeter, Purpose};
use crate::intake::{Intake, new_token};
use crate::session::{Ask, Receiver, Remains, Rivals, SessionEnd, drain_in_time, turn_away_data};
use crate::work::Work;

/// Applied frames on their way to the owner's books.
const APPLIED_QUEUE_LEN: usize = 64;

/// Between two flushes. Each makes all of the filesystem wait, and what was not flushed travels again
/// after a crash.
const CHECKPOINT_INTERVAL: Duration = Duration::from_secs(5);

/// How often what reads back wrong is compared and sent again.
const REPAIRS_MAX: u32 = 3;

/// What outlives a session.
#[derive(Debug)]
pub(crate) struct HeldTree {
    /// The directory; away while it is made ready, or when that was lost.
    pub(crate) target: Option<TreeTarget>,
    pub(crate) fence: Fence,
    pub(crate) earlier: Earlier,
    /// Sessions that ended since what was written read back wrong.
    pub(crate) repairs: u32,
    /// Where the proof is kept, should this run end before the source has heard of it.
    pub(crate) proofs: Option<Arc<ProofFile>>,
}

impl HeldTree {
    /// Refuses a tree where the directory holds something that may not be overwritten.
    pub(crate) fn check_free(&self) -> Result<(), Failure> {
        match &self.target {
            Some(target) => target.check_free(None).map_err(|error| of_tree(&error)),
            None => Ok(()),
        }
    }
}

impl<S> Receiver<S> for HeldTree
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn fence(&mut self) -> &mut Fence {
        &mut self.fence
    }

    fn unheard(&self) -> Option<&Receipt> {
        self.earlier.receipt.as_deref()
    }

    async fn receive(
        &mut self,
        config: &TargetConfig,
        context: &Context,
        ask: Ask<S>,
        greeter: &mut Greeter<S>,
    ) -> SessionEnd<S> {
        let agent = volferry_agent::agent_name("volferry-target");
        let clone_id = context.progress.clone_id();
        let (applied_sender, applied) = mpsc::channel(APPLIED_QUEUE_LEN);
        let limits = TreeLimits {
            streams_max: config.streams_max,
            terms: config.terms,
            verify: config.verify,
        };
        let now = Instant::now();
        let earlier = self.earlier.clone();
        let mut machine =
            TreeTargetSession::new(now, clone_id, ask.epoch, agent.clone(), limits, earlier);
        machine.handle_message(now, Message::Hello(ask.hello));
        let session = Session {
            config,
            context,
            greeter,
            machine,
            agent,
            held: self,
            epoch: ask.epoch,
            terms: config.terms,
            preparing: Work::default(),
            conversation: Conversation::with_source(ask.stream, context),
            transfer: None,
            checkpoint: Checkpoint::default(),
            completing: Work::default(),
            reading_back: None,
            concluding: Work::default(),
            rivals: Rivals::default(),
            applied_sender,
            applied,
        };
        session.run().await
    }
}

struct Session<'a, S> {
    config: &'a TargetConfig,
    context: &'a Context,
    greeter: &'a mut Greeter<S>,
    machine: TreeTargetSession,
    agent: String,
    held: &'a mut HeldTree,
    epoch: u64,
    /// What both ends agreed on, from the greeting on.
    terms: TreeTerms,
    preparing: Work<Prepared>,
    conversation: Conversation,
    /// From the welcome on.
    transfer: Option<Transfer>,
    checkpoint: Checkpoint,
    /// When all came.
    completing: Work<Result<TreeSummary, TreeError>>,
    /// While what was made is read back.
    reading_back: Option<ReadingBack>,
    /// When all is proven.
    concluding: Work<Result<(), Failure>>,
    /// Sources that come meanwhile.
    rivals: Rivals<S>,
    applied_sender: mpsc::Sender<Result<Applied, TreeError>>,
    applied: mpsc::Receiver<Result<Applied, TreeError>>,
}

/// A directory that was made ready, with what is to be written into it.
type Prepared = (TreeTarget, Result<Box<Restore>, Failure>);

/// What makes the tree.
struct Transfer {
    intake: Intake,
    restore: Arc<Restore>,
    /// Until the last frame was applied.
    writers: Option<Writers>,
    pool: BufferPool,
    queue: async_channel::Sender<Incoming>,
}

/// Making durable what was finished, now and then.
#[derive(Default)]
struct Checkpoint {
    due_at: Option<Instant>,
    under_way: Work<Result<u64, TreeError>>,
    /// All came meanwhile: what comes last waits for it.
    is_last: bool,
}

/// Reading back what was made.
struct ReadingBack {
    walk: Arc<Walk<ReadBack>>,
    threads_left: usize,
    ended: mpsc::Receiver<Result<(), TreeError>>,
    written: TreeSummary,
}

/// Whatever can happen to a session.
enum Event<S> {
    Heard(Heard),
    Greeted(Result<Greeted<S>, Failure>),
    Prepared(Prepared),
    Applied(Result<Applied, TreeError>),
    Checkpointed(Result<u64, TreeError>),
    Completed(Result<TreeSummary, TreeError>),
    ReadBack(Result<(), TreeError>),
    Concluded(Result<(), Failure>),
    ThreadDied(Failure),
}

impl<S> Session<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn run(mut self) -> SessionEnd<S> {
        let outcome = loop {
            if let Some(outcome) = self.settle() {
                break outcome;
            }
            let event = self.select().await;
            self.apply(event);
        };
        self.conversation.drop_connections().await;
        let drained = match &outcome {
            Err(failure) => {
                let has_next = self.rivals.has_next();
                drain_in_time(self.context, failure, has_next, self.drain()).await
            }
            Ok(_) => Ok(()),
        };
        if let Some(transfer) = &self.transfer {
            transfer.pool.close();
            transfer.queue.close();
        }
        let is_heard = self.conversation.close().await;
        let next = self.rivals.close().await;
        self.held.fence.release(self.epoch);
        let was_proven = self.held.earlier.receipt.is_some();
        self.held.earlier = self.machine.into_earlier();
        let is_proven = !was_proven && self.held.earlier.receipt.is_some();
        if let (Err(failure), Some(target)) = (&outcome, &mut self.held.target) {
            let distrusted = match failure.code {
                FailureCode::Repair => target.begin_repair(),
                FailureCode::Integrity => target.distrust(),
                _ => Ok(()),
            };
            if let Err(error) = distrusted {
                return SessionEnd::Failed(of_tree(&error));
            }
        }
        match (outcome, drained) {
            (Ok(receipt), _) => SessionEnd::Proven {
                receipt: Box::new(receipt),
                is_heard,
            },
            (Err(_), Err(failure)) => SessionEnd::Failed(failure),
            // The source was lost while the clone was concluded: what it is told next is the receipt.
            (Err(failure), Ok(())) if is_proven => SessionEnd::Interrupted(failure, next),
            (Err(failure), Ok(())) => {
                let remains = Remains {
                    is_usable: self.held.target.is_some(),
                    is_untouched: self.transfer.is_none(),
                };
                SessionEnd::failed(failure, self.context, remains, next)
            }
        }
    }

    /// Ends in order what the session has begun: what was received is written, made durable and
    /// noted. Only then the next session may begin, so that no write of this one comes after it.
    async fn drain(&mut self) -> Result<(), Failure> {
        if let Some((target, prepared)) = self.preparing.finish().await? {
            self.held.target = Some(target);
            prepared?;
        }
        if let Some(transfer) = &self.transfer {
            transfer.restore.stop_reading();
        }
        // A flush that failed says so once: no later one vouches for what it lost.
        if let Some(Err(error)) = self.checkpoint.under_way.finish().await? {
            return Err(of_tree(&error));
        }
        if let Some(Err(error)) = self.completing.finish().await?
            && of_tree(&error).code.class() == FailureClass::Target
        {
            return Err(of_tree(&error));
        }
        if let Some(reading) = &mut self.reading_back {
            reading.walk.stop();
            while reading.threads_left > 0 && reading.ended.recv().await.is_some() {
                reading.threads_left -= 1;
            }
        }
        if let Some(concluded) = self.concluding.finish().await? {
            concluded?;
            self.machine.handle_concluded();
            return Ok(());
        }
        let Some(transfer) = &mut self.transfer else {
            return Ok(());
        };
        transfer.queue.close();
        let (restore, writers) = (Arc::clone(&transfer.restore), transfer.writers.take());
        let mut draining = Work::default();
        draining.begin(&self.context.cpu, "target-drain", move || {
            if let Some(writers) = writers {
                writers.join();
            }
            restore.checkpoint()
        })?;
        let mut applied = Ok(());
        let durable_bytes = loop {
            tokio::select! {
                biased;
                Some(one) = self.applied.recv() => applied = applied.and_then(|()| one.map(drop)),
                durable = draining.done() => break durable?.map_err(|error| of_tree(&error))?,
            }
        };
        applied.map_err(|error| of_tree(&error))?;
        self.machine.handle_durable(durable_bytes);
        self.context.progress.set_durable(durable_bytes);
        Ok(())
    }

    /// The only wait.
    async fn select(&mut self) -> Event<S> {
        let checkpoint_at = self.checkpoint.due_at;
        let wake_at = self
            .machine
            .poll_timeout()
            .into_iter()
            .chain(checkpoint_at)
            .min();
        let read_back = async {
            match &mut self.reading_back {
                Some(reading) => reading.ended.recv().await,
                None => std::future::pending().await,
            }
        };
        let died = Event::ThreadDied;
        tokio::select! {
            // What was applied counts before the news that depend on it.
            biased;
            Some(applied) = self.applied.recv() => Event::Applied(applied),
            heard = self.conversation.next(wake_at) => Event::Heard(heard),
            done = self.preparing.done() => done.map_or_else(died, Event::Prepared),
            done = self.checkpoint.under_way.done() => done.map_or_else(died, Event::Checkpointed),
            done = self.completing.done() => done.map_or_else(died, Event::Completed),
            read = read_back => {
                let died = || died(Failure::internal("a thread that reads back died"));
                read.map_or_else(died, Event::ReadBack)
            }
            done = self.concluding.done() => done.map_or_else(died, Event::Concluded),
            greeted = self.greeter.next() => Event::Greeted(greeted),
        }
    }

    /// The only change.
    fn apply(&mut self, event: Event<S>) {
        let now = Instant::now();
        match event {
            Event::Heard(Heard::Message(message)) => {
                self.machine.handle_message(now, message);
                self.check_drained();
            }
            Event::Heard(Heard::Drained(frames)) => self.end_connection(frames),
            Event::Heard(Heard::Fail(failure)) => self.machine.fail(failure),
            Event::Heard(Heard::End(failure)) => self.machine.end(failure),
            Event::Heard(Heard::Tick) => {
                self.machine.handle_timeout(now);
                if self.checkpoint.due_at.is_some_and(|at| at <= now) {
                    self.begin_checkpoint();
                }
            }
            Event::Greeted(Ok(greeted)) => self.admit(greeted),
            Event::Greeted(Err(failure)) => self.machine.fail(failure),
            Event::Prepared((target, prepared)) => {
                self.held.target = Some(target);
                let started = prepared.and_then(|restore| self.greet(restore));
                if let Err(failure) = started {
                    self.machine.fail(failure);
                }
            }
            Event::Applied(Ok(applied)) => {
                self.machine.handle_written(now);
                match applied {
                    Applied::Done => {}
                    Applied::Answer(answer) => self.machine.handle_answer(answer),
                    Applied::Pieces(pieces) => self.machine.handle_pieces(pieces),
                }
                self.end_frame();
            }
            Event::Checkpointed(Ok(durable_bytes)) => {
                self.machine.handle_durable(durable_bytes);
                self.context.progress.set_durable(durable_bytes);
                self.checkpoint.due_at = Some(now + CHECKPOINT_INTERVAL);
                if std::mem::take(&mut self.checkpoint.is_last) {
                    self.complete();
                }
            }
            Event::Completed(Ok(summary)) => match self.config.verify {
                Verified::Readback => self.read_back(summary),
                _ => self.machine.handle_completed(summary),
            },
            Event::ReadBack(Ok(())) => self.end_reading(),
            Event::Concluded(Ok(())) => self.end_conclusion(),
            Event::Concluded(Err(failure)) | Event::ThreadDied(failure) => {
                self.machine.fail(failure)
            }
            Event::Applied(Err(error))
            | Event::Checkpointed(Err(error))
            | Event::Completed(Err(error))
            | Event::ReadBack(Err(error)) => self.machine.fail(of_tree(&error)),
        }
    }

    /// A data connection has ended, and handed so many frames to the writers.
    fn end_connection(&mut self, frames: u64) {
        if let Some(transfer) = &mut self.transfer {
            transfer.intake.receive(frames);
        }
        self.check_drained();
    }

    /// The writers are done with a frame.
    fn end_frame(&mut self) {
        if let Some(transfer) = &mut self.transfer {
            transfer.intake.done();
        }
        self.check_drained();
    }

    /// Tells the machine when nothing more can come in this round.
    fn check_drained(&mut self) {
        let transfer = self.transfer.as_ref();
        let due = self.machine.connections_due();
        let is_complete = transfer.is_some_and(|transfer| transfer.intake.is_complete(due));
        if is_complete && self.conversation.is_drained() {
            self.machine.handle_drained();
        }
    }

    /// Lets a data connection of this session in; decides what becomes of another source.
    fn admit(&mut self, greeted: Greeted<S>) {
        let Greeted {
            purpose,
            stream,
            peer_address,
        } = greeted;
        match purpose {
            Purpose::Control(hello) => {
                let checked = self.machine.check_hello(&hello);
                let rival = (*hello, stream, peer_address);
                let (fence, held) = (&mut self.held.fence, self.machine.hello());
                let end = self.rivals.admit(self.context, fence, held, checked, rival);
                if let Some(end) = end {
                    self.apply(Event::Heard(end));
                }
            }
            Purpose::Data { number, token } => {
                let mut transfer = self.transfer.as_mut();
                let admit = |transfer: &mut &mut Transfer| transfer.intake.admit(number, token);
                let Some(transfer) = transfer.take_if(admit) else {
                    turn_away_data(self.context, peer_address);
                    return;
                };
                let connection = DataConnection {
                    carried: Files {
                        codecs: self.machine.hello().map_or(Codecs::NONE, Hello::codecs),
                    },
                    queue: transfer.queue.clone(),
                    buffers: Buffers {
                        pool: transfer.pool.clone(),
                        progress: Arc::clone(&self.context.progress),
                    },
                };
                self.conversation.add(connection.run(stream));
            }
        }
    }

    /// Does what the machine asks for, and tells the world. Gives the outcome at the end.
    fn settle(&mut self) -> Option<Outcome> {
        let mut outcome = None;
        while let Some(action) = self.machine.poll_action() {
            match action {
                TreeTargetAction::Prepare(terms) => self.prepare(terms),
                TreeTargetAction::Complete => self.complete(),
                TreeTargetAction::Seal => self.seal(),
                TreeTargetAction::Conclude(receipt) => self.conclude(*receipt),
                TreeTargetAction::Done(receipt) => outcome = Some(Ok(*receipt)),
                TreeTargetAction::Fail(failure) => outcome = Some(Err(failure)),
            }
        }
        if let Some(transfer) = &self.transfer {
            let restore = &transfer.restore;
            let progress = &self.context.progress;
            progress.queued.set(transfer.queue.len());
            progress.set_entries(restore.names_written());
            let taken_bytes = restore.data_bytes();
            progress.set_moved(self.held.earlier.taken_bytes + taken_bytes, 0);
            self.machine.set_taken(taken_bytes);
            let reading = self.reading_back.as_ref();
            let read_bytes = reading.map_or(0, |reading| reading.walk.seen().bytes);
            let checked_bytes = restore.checked_bytes() + restore.steps() + read_bytes;
            progress.set_checked(checked_bytes);
            self.machine.set_checked(checked_bytes);
            self.machine.set_waits(progress.waits());
            let asked = progress.throttle.asked();
            self.machine.set_bandwidth_limit(asked);
        }
        while let Some(message) = self.machine.poll_message() {
            if let Err(failure) = self.conversation.send(message) {
                self.machine.end(failure);
            }
        }
        let progress = &self.context.progress;
        progress.set_stage(self.machine.stage());
        outcome
    }

    /// Makes the directory ready on a thread of its own: removing what is there may take long.
    fn prepare(&mut self, terms: TreeTerms) {
        self.terms = terms;
        let Some(mut target) = self.held.target.take() else {
            self.machine
                .fail(Failure::internal("the target directory is away".to_owned()));
            return;
        };
        let (epoch, remembered) = (self.epoch, self.held.fence.remembered());
        let proofs = self.held.proofs.clone();
        let begun = (self.preparing).begin(&self.context.cpu, "target-prepare", move || {
            // What an earlier run has proven is no longer so once this one writes.
            let removed = proofs.as_deref().map_or(Ok(()), ProofFile::remove);
            let prepared = removed.and_then(|()| {
                let prepared = target.prepare(terms, epoch, &remembered);
                prepared.map(Box::new).map_err(|error| of_tree(&error))
            });
            (target, prepared)
        });
        self.check_begun(begun);
    }

    fn check_begun(&mut self, begun: Result<(), Failure>) {
        if let Err(failure) = begun {
            self.machine.fail(failure);
        }
    }

    fn greet(&mut self, restore: Box<Restore>) -> Result<(), Failure> {
        let restore: Arc<Restore> = restore.into();
        let pool = BufferPool::new(self.config.memory_bytes, PACK_LEN_MAX as usize)
            .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
        let (queue, queue_receiver) = async_channel::bounded(pool.buffer_count());
        let durable_bytes = restore.durable_bytes();
        tracing::info!(
            volume = %restore.path().display(),
            durable_bytes,
            "the target directory is ready"
        );
        let writers = Writers::start(
            &restore,
            &queue_receiver,
            &self.applied_sender,
            self.config.writers,
            &self.context.cpu,
        )?;
        let token = new_token()?;
        let streams = self.machine.handle_prepared(
            token,
            durable_bytes,
            restore.offers(),
            restore.compares(),
        );
        // How large the tree is, nobody knows yet.
        self.context.progress.set_volume(0, durable_bytes);
        self.checkpoint.due_at = Some(Instant::now() + CHECKPOINT_INTERVAL);
        self.transfer = Some(Transfer {
            intake: Intake::new(token, streams),
            restore,
            writers: Some(writers),
            pool,
            queue,
        });
        Ok(())
    }

    fn begin_checkpoint(&mut self) {
        self.checkpoint.due_at = None;
        if self.completing.is_under_way() || self.concluding.is_under_way() {
            return;
        }
        if let Some(transfer) = &self.transfer {
            let restore = Arc::clone(&transfer.restore);
            let flush = move || restore.checkpoint();
            let under_way = &mut self.checkpoint.under_way;
            let begun = under_way.begin(&self.context.cpu, "target-flush", flush);
            self.check_begun(begun);
        }
    }

    /// Lets the writers end, and does what comes last on a thread of its own.
    fn complete(&mut self) {
        if self.checkpoint.under_way.is_under_way() {
            self.checkpoint.is_last = true;
            return;
        }
        self.checkpoint.due_at = None;
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        transfer.queue.close();
        let restore = Arc::clone(&transfer.restore);
        let writers = transfer.writers.take();
        let begun = (self.completing).begin(&self.context.cpu, "target-flush", move || {
            if let Some(writers) = writers {
                writers.join();
            }
            restore.complete()
        });
        self.check_begun(begun);
    }

    /// Reads what was made back from the storage, with as many threads as wrote it.
    fn read_back(&mut self, written: TreeSummary) {
        let Some(transfer) = &self.transfer else {
            return;
        };
        tracing::info!("all is durable; reading the tree back");
        let walk = Arc::new(transfer.restore.read_back(transfer.pool.clone()));
        let count = self.config.writers.clamp(1, walk.threads_max());
        let (sender, ended) = mpsc::channel(count);
        for number in 0..count {
            let (walk, sender) = (Arc::clone(&walk), sender.clone());
            // There is room for all.
            let work = move || drop(sender.try_send(walk.run()));
            let started = self
                .context
                .cpu
                .spawn(format!("target-verify-{number}"), work);
            if let Err(failure) = started {
                self.machine.fail(failure);
                return;
            }
        }
        self.reading_back = Some(ReadingBack {
            walk,
            threads_left: count,
            ended,
            written,
        });
    }

    fn end_reading(&mut self) {
        if let Some(reading) = &mut self.reading_back {
            reading.threads_left -= 1;
        }
        let Some(reading) = self
            .reading_back
            .take_if(|reading| reading.threads_left == 0)
        else {
            return;
        };
        let read = reading.walk.finish().summary;
        // What can't be read can't be compared, though its loss was accepted.
        let hides = |class| matches!(class, FidelityClass::Unreadable | FidelityClass::Mounts);
        let accepted = self.terms.accept.iter().filter(|class| !hides(*class));
        if let Some(complaint) = read.fidelity.complaint(accepted.collect()) {
            let text = format!(
                "the target tree can't be read back: {complaint}; leave out --verify readback"
            );
            self.machine.fail(Failure::new(FailureCode::Fidelity, text));
            return;
        }
        if read.digest == reading.written.digest {
            self.machine.handle_completed(reading.written);
            return;
        }
        let (path, digest) = (self.config.volume.display(), read.digest);
        let failure = if self.held.repairs < REPAIRS_MAX {
            self.held.repairs += 1;
            tracing::warn!(%digest, "the tree reads back wrong: all of it is compared");
            let text = format!(
                "the target tree {path} reads back wrong; a new session compares all of it"
            );
            Failure::new(FailureCode::Repair, text)
        } else {
            let text = format!(
                "the target tree {path} reads back wrong after {REPAIRS_MAX} repairs: its storage does not keep \
                 what it is given; look at the kernel log, and choose another target"
            );
            Failure::new(FailureCode::Integrity, text)
        };
        self.machine.fail(failure);
    }

    fn seal(&mut self) {
        let stats = self.context.stats(&self.agent);
        let unix_seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        self.machine.seal(Instant::now(), unix_seconds, stats);
    }

    /// Does the end of a clone that is proven, in this order:
    ///
    /// 1. the proof, where there is a place for it: from here on a later run can do the rest;
    /// 2. the journal goes, with all that the clone kept in the directory, and the root gets its metadata;
    /// 3. a flush, after which the source is told.
    ///
    /// A crash before the first costs the session, which goes on from the journal; one behind it, nothing.
    /// Without a place for the proof, one behind the first step leaves a directory without a journal.
    fn conclude(&mut self, receipt: Receipt) {
        let Some(transfer) = &self.transfer else {
            return;
        };
        let restore = Arc::clone(&transfer.restore);
        let proofs = self.held.proofs.clone();
        let (epoch, remembered) = (self.epoch, self.held.fence.remembered());
        let begun = (self.concluding).begin(&self.context.cpu, "target-flush", move || {
            if let Some(proofs) = proofs {
                proofs.write(&Proof {
                    receipt,
                    witness: restore.witness().map_err(|error| of_tree(&error))?,
                    root: restore.root_metadata(),
                    epoch,
                    remembered,
                })?;
            }
            restore.conclude().map_err(|error| of_tree(&error))
        });
        self.check_begun(begun);
    }

    fn end_conclusion(&mut self) {
        self.machine.handle_concluded();
        let bytes = self.machine.durable_bytes();
        let progress = &self.context.progress;
        progress.set_size(bytes);
        progress.set_durable(bytes);
    }
}

fn of_tree(error: &TreeError) -> Failure {
    failure::of_tree(End::Target, error)
}
