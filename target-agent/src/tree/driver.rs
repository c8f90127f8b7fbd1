//! The owner of a session that clones a tree, at the target. It mirrors the owner of a block
//! session: wait for the next event, apply it to the state machine, do what the machine asks for.

use std::sync::Arc;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use volferry_agent::conversation::{Conversation, Heard};
use volferry_agent::failure;
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::message::{Hello, Message};
use volferry_protocol::tree::frame::PACK_LEN_MAX;
use volferry_protocol::tree::session::{
    TreeSummary, TreeTargetAction, TreeTargetSession, TreeTerms,
};
use volferry_storage::BufferPool;
use volferry_storage::tree::{Restore, TreeError, TreeTarget};

use super::data::DataConnection;
use super::writers::{Incoming, Writers};
use crate::TargetConfig;
use crate::driver::is_of_peer;
use crate::greeter::{Greeted, Greeter, Purpose, refuse};
use crate::intake::{Intake, new_token};

/// How a session ended.
pub(super) enum TreeEnd {
    /// The clone is proven, or it failed.
    Over(Box<Outcome>),
    /// The session ended before the directory was touched.
    Untouched(TreeTarget, Failure),
}

/// Applied frames on their way to the owner's books.
const APPLIED_QUEUE_LEN: usize = 64;

/// Runs one session over `control`; its data connections come through `greeter`.
pub(super) async fn run<S>(
    config: &TargetConfig,
    context: &Context,
    target: TreeTarget,
    hello: Hello,
    epoch: u64,
    control: S,
    greeter: &mut Greeter<S>,
) -> TreeEnd
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let agent = volferry_agent::agent_name("volferry-target");
    let clone_id = context.progress.clone_id();
    let (applied_sender, applied) = mpsc::channel(APPLIED_QUEUE_LEN);
    let mut machine = TreeTargetSession::new(
        Instant::now(),
        clone_id,
        epoch,
        agent.clone(),
        config.streams_max,
        config.terms,
    );
    machine.handle_message(Instant::now(), Message::Hello(hello));
    let session = Session {
        config,
        context,
        greeter,
        machine,
        agent,
        target: Some(target),
        preparing: None,
        conversation: Conversation::with_source(control, context),
        transfer: None,
        completing: None,
        refusals: JoinSet::new(),
        applied_sender,
        applied,
    };
    session.run().await
}

struct Session<'a, S> {
    config: &'a TargetConfig,
    context: &'a Context,
    greeter: &'a mut Greeter<S>,
    machine: TreeTargetSession,
    agent: String,
    /// Until it is prepared.
    target: Option<TreeTarget>,
    preparing: Option<oneshot::Receiver<Result<Box<Restore>, TreeError>>>,
    conversation: Conversation,
    /// From the welcome on.
    transfer: Option<Transfer>,
    /// When all came.
    completing: Option<oneshot::Receiver<Result<TreeSummary, TreeError>>>,
    /// Goodbyes to those who came too late.
    refusals: JoinSet<()>,
    applied_sender: mpsc::Sender<Result<(), TreeError>>,
    applied: mpsc::Receiver<Result<(), TreeError>>,
}

/// What makes the tree.
struct Transfer {
    intake: Intake,
    restore: Arc<Restore>,
    /// Until the last frame was applied.
    writers: Option<Writers>,
    pool: BufferPool,
    queue: async_channel::Sender<Incoming>,
}

/// Whatever can happen to a session.
enum Event<S> {
    Heard(Heard),
    Greeted(Result<Greeted<S>, Failure>),
    Prepared(Result<Box<Restore>, TreeError>),
    Applied(Result<(), TreeError>),
    Completed(Result<TreeSummary, TreeError>),
    ThreadDied,
}

impl<S> Session<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn run(mut self) -> TreeEnd {
        let outcome = loop {
            if let Some(outcome) = self.settle() {
                break outcome;
            }
            let event = self.select().await;
            self.apply(event);
        };
        // Writers end when their queue is closed; connections and what waits are dropped.
        if let Some(transfer) = &self.transfer {
            transfer.pool.close();
            transfer.queue.close();
        }
        self.conversation.drop_connections().await;
        self.conversation.close().await;
        self.refusals.shutdown().await;
        match (self.target, outcome) {
            (Some(target), Err(failure)) if is_of_peer(&failure) => {
                TreeEnd::Untouched(target, failure)
            }
            (_, outcome) => TreeEnd::Over(Box::new(outcome)),
        }
    }

    /// The only wait.
    async fn select(&mut self) -> Event<S> {
        let wake_at = self.machine.poll_timeout();
        let prepared = wait_for(&mut self.preparing);
        let completed = wait_for(&mut self.completing);
        tokio::select! {
            // What was applied counts before the news that depend on it.
            biased;
            Some(applied) = self.applied.recv() => Event::Applied(applied),
            heard = self.conversation.next(wake_at) => Event::Heard(heard),
            prepared = prepared => prepared.map_or(Event::ThreadDied, Event::Prepared),
            completed = completed => completed.map_or(Event::ThreadDied, Event::Completed),
            greeted = self.greeter.next() => Event::Greeted(greeted),
        }
    }

    /// The only change.
    fn apply(&mut self, event: Event<S>) {
        let now = Instant::now();
        match event {
            Event::Heard(Heard::Message(message)) => self.machine.handle_message(now, message),
            Event::Heard(Heard::Drained(frames)) => self.end_connection(frames),
            Event::Heard(Heard::Fail(failure)) => self.machine.fail(failure),
            Event::Heard(Heard::End(failure)) => self.machine.end(failure),
            Event::Heard(Heard::Tick) => self.machine.handle_timeout(now),
            Event::Greeted(Ok(greeted)) => self.admit(greeted),
            Event::Greeted(Err(failure)) => self.machine.fail(failure),
            Event::Prepared(prepared) => {
                let started = prepared
                    .map_err(|error| failure::of_tree(End::Target, &error))
                    .and_then(|restore| self.greet(restore));
                if let Err(failure) = started {
                    self.machine.fail(failure);
                }
            }
            Event::Applied(Ok(())) => {
                self.machine.handle_written(now);
                self.end_frame();
            }
            Event::Completed(Ok(summary)) => self.machine.handle_completed(summary),
            Event::ThreadDied => self.machine.fail(internal("a thread died".to_owned())),
            Event::Applied(Err(error)) | Event::Completed(Err(error)) => {
                self.machine.fail(failure::of_tree(End::Target, &error));
            }
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
        let is_complete = transfer.is_some_and(|transfer| transfer.intake.is_complete());
        if is_complete && self.conversation.is_drained() {
            self.machine.handle_drained();
        }
    }

    /// Lets a data connection of this session in, and nobody else.
    fn admit(&mut self, greeted: Greeted<S>) {
        let Greeted {
            purpose,
            stream,
            peer_address,
        } = greeted;
        match purpose {
            Purpose::Control(_) => {
                tracing::warn!(%peer_address, "a second session was turned away");
                self.context.metrics.count_rejection("busy");
                let text =
                    "this target serves another session, which a tree is cloned in as a whole";
                let busy = Failure::new(FailureCode::Busy, text);
                self.refusals.spawn(refuse(stream, busy));
                while self.refusals.try_join_next().is_some() {}
            }
            Purpose::Data { number, token } => {
                let mut transfer = self.transfer.as_mut();
                let admit = |transfer: &mut &mut Transfer| transfer.intake.admit(number, token);
                let Some(transfer) = transfer.take_if(admit) else {
                    tracing::warn!(%peer_address, "a data connection of no session was turned away");
                    self.context.metrics.count_rejection("no_session");
                    return;
                };
                let connection = DataConnection {
                    pool: transfer.pool.clone(),
                    queue: transfer.queue.clone(),
                    progress: Arc::clone(&self.context.progress),
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
                TreeTargetAction::Done(receipt) => outcome = Some(Ok(*receipt)),
                TreeTargetAction::Fail(failure) => outcome = Some(Err(failure)),
            }
        }
        while let Some(message) = self.machine.poll_message() {
            if let Err(failure) = self.conversation.send(message) {
                self.machine.end(failure);
            }
        }
        let progress = &self.context.progress;
        progress.set_stage(self.machine.stage());
        if let Some(transfer) = &self.transfer {
            progress.set_entries(transfer.restore.names_written());
            progress.set_moved(transfer.restore.data_bytes(), 0);
        }
        let durable_bytes = self.machine.durable_bytes();
        if durable_bytes > 0 {
            progress.set_durable(durable_bytes);
        }
        outcome
    }

    /// Makes the directory ready on a thread of its own: removing what is there may take long.
    fn prepare(&mut self, terms: TreeTerms) {
        let Some(target) = self.target.take() else {
            return;
        };
        let clone_id = self.context.progress.clone_id().to_string();
        self.preparing = self.on_thread("target-prepare", move || {
            target.prepare(&clone_id, terms).map(Box::new)
        });
    }

    /// Runs `work` on a thread of its own.
    fn on_thread<T: Send + 'static>(
        &mut self,
        name: &str,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Option<oneshot::Receiver<T>> {
        let (sender, done) = oneshot::channel();
        let cpu = self.context.cpu.clone();
        let started = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _counted = cpu.count_this_thread();
            let _nobody_waits = sender.send(work());
        });
        match started {
            Ok(_joins_by_channel) => Some(done),
            Err(error) => {
                let text = format!("a thread can't be started: {error}");
                self.machine.fail(internal(text));
                None
            }
        }
    }

    fn greet(&mut self, restore: Box<Restore>) -> Result<(), Failure> {
        let restore: Arc<Restore> = restore.into();
        let pool = BufferPool::new(self.config.memory_bytes, PACK_LEN_MAX as usize)
            .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
        let (queue, queue_receiver) = async_channel::bounded(pool.buffer_count());
        tracing::info!(volume = %restore.path().display(), "the target directory is ready");
        let writers = Writers::start(
            &restore,
            &queue_receiver,
            &self.applied_sender,
            self.config.writers,
            &self.context.cpu,
        )
        .map_err(|error| internal(format!("threads can't be started: {error}")))?;
        let token = new_token()?;
        let streams = self.machine.handle_prepared(token);
        self.transfer = Some(Transfer {
            intake: Intake::new(token, streams),
            restore,
            writers: Some(writers),
            pool,
            queue,
        });
        Ok(())
    }

    /// Lets the writers end, and does what comes last on a thread of its own.
    fn complete(&mut self) {
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        transfer.queue.close();
        let restore = Arc::clone(&transfer.restore);
        let writers = transfer.writers.take();
        self.completing = self.on_thread("target-flush", move || {
            if let Some(writers) = writers {
                writers.join();
            }
            restore.complete()
        });
    }

    fn seal(&mut self) {
        let bytes = self.machine.durable_bytes();
        self.context.progress.set_size(bytes);
        let stats = self.context.stats(&self.agent);
        let unix_seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        self.machine.seal(Instant::now(), unix_seconds, stats);
    }
}

/// What a thread gives, when there is one; nothing when it died.
async fn wait_for<T>(done: &mut Option<oneshot::Receiver<T>>) -> Option<T> {
    let Some(receiver) = done else {
        return std::future::pending().await;
    };
    let value = receiver.await.ok();
    *done = None;
    value
}

fn internal(text: String) -> Failure {
    Failure::new(FailureCode::Internal, text)
}
