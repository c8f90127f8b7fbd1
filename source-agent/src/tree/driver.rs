//! The owner of a session that clones a tree, at the source. It mirrors the owner of a block
//! session: wait for the next event, apply it to the state machine, do what the machine asks for.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use volferry_agent::conversation::{Conversation, Heard};
use volferry_agent::cpu::CpuMeter;
use volferry_agent::failure;
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::message::{Hello, Sent, Watermark};
use volferry_protocol::tree::fidelity::Loss;
use volferry_protocol::tree::file_digest::PIECE_LEN;
use volferry_protocol::tree::session::source::TreeTransfer;
use volferry_protocol::tree::session::{TreeSourceAction, TreeSourceSession};
use volferry_protocol::zero_map::ZeroMap;
use volferry_storage::BufferPool;
use volferry_storage::tree::{
    Outgoing, TreeError, TreeSource, Unasked, Walk, WalkEnd, WalkOptions, Walked,
};
use volferry_transport::Connector;

use super::manifest::TreeManifest;
use crate::compression::Compression;
use crate::streams::{self, Streams};
use crate::{Clones, SourceConfig, may_pass};

/// Frames that were sent, on their way to the owner, who only wants to know that something moves.
const SENT_QUEUE_LEN: usize = 64;

/// What outlives a session.
#[derive(Debug)]
pub(super) struct Standing {
    pub(super) source: TreeSource,
    /// What was sent in all sessions.
    pub(super) sent: Sent,
    /// The digest of what was read, where a session came that far.
    pub(super) digest: Option<Digest>,
}

impl<C: Connector + 'static> Clones<C> for Standing {
    async fn session(
        &mut self,
        config: &SourceConfig,
        context: &Context,
        connector: Arc<C>,
        control: C::Stream,
        hello: Hello,
    ) -> Outcome {
        let agent = hello.agent.clone();
        let conversation = Conversation::with_target(control, context).await?;
        let (sent_sender, sent) = mpsc::channel(SENT_QUEUE_LEN);
        let session = Session {
            config,
            context,
            connector,
            streams: None,
            agent,
            machine: TreeSourceSession::new(Instant::now(), hello, self.digest),
            standing: self,
            conversation,
            sent_sender,
            sent,
            reading: None,
            walked: None,
        };
        session.run().await
    }
}

struct Session<'a, C: Connector> {
    config: &'a SourceConfig,
    context: &'a Context,
    connector: Arc<C>,
    /// From the welcome on.
    streams: Option<Streams<Outgoing, C>>,
    standing: &'a mut Standing,
    agent: String,
    machine: TreeSourceSession,
    conversation: Conversation,
    sent_sender: mpsc::Sender<()>,
    sent: mpsc::Receiver<()>,
    /// From the welcome on.
    reading: Option<Reading>,
    /// What came of the walk, once all threads have ended.
    walked: Option<Walked>,
}

/// A walk under way.
struct Reading {
    walk: Arc<Walk<ToQueue>>,
    pool: BufferPool,
    queue: async_channel::Sender<Outgoing>,
    threads_left: usize,
    ended: mpsc::Receiver<Result<(), TreeError>>,
}

/// Whatever can happen to a session.
enum Event<S> {
    Heard(Heard),
    /// One more connection helps.
    Joined(S),
    Sent,
    WalkEnded(Result<(), TreeError>),
}

impl<C: Connector + 'static> Session<'_, C> {
    async fn run(mut self) -> Outcome {
        let outcome = loop {
            if let Some(outcome) = self.settle() {
                break outcome;
            }
            let event = self.select().await;
            self.apply(event);
        };
        // Readers end at their next buffer; connections and what waits in the queue are dropped.
        if let Some(reading) = &self.reading {
            reading.walk.stop();
            reading.pool.close();
            reading.queue.close();
        }
        self.conversation.drop_connections().await;
        // Threads that still read would read beside those of the next session, if there is one.
        if matches!(&outcome, Err(failure) if may_pass(failure, self.context)) {
            let context = self.context;
            let mut shutdown = context.shutdown.clone();
            tokio::select! {
                () = self.join_threads() => {}
                () = shutdown.requested() => {}
                _at_its_end = context.patience.exhausted() => {}
            }
        }
        self.standing.sent = self.sent();
        self.standing.digest = self.machine.digest();
        self.conversation.close().await;
        outcome
    }

    async fn join_threads(&mut self) {
        if let Some(reading) = &mut self.reading {
            while reading.threads_left > 0 && reading.ended.recv().await.is_some() {
                reading.threads_left -= 1;
            }
        }
    }

    /// The only wait.
    async fn select(&mut self) -> Event<C::Stream> {
        let wake_at = self.machine.poll_timeout();
        let joined = streams::next_of(&mut self.streams, self.machine.watermark().waits);
        let walk_ended = async {
            match &mut self.reading {
                Some(reading) => reading.ended.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // Causes before their effects: a failed read before the connections that end because
            // of it.
            biased;
            Some(ended) = walk_ended => Event::WalkEnded(ended),
            heard = self.conversation.next(wake_at) => Event::Heard(heard),
            Some(()) = self.sent.recv() => Event::Sent,
            stream = joined => Event::Joined(stream),
        }
    }

    /// The only change.
    fn apply(&mut self, event: Event<C::Stream>) {
        let now = Instant::now();
        match event {
            Event::Heard(Heard::Message(message)) => self.machine.handle_message(now, message),
            Event::Heard(Heard::Drained(_wire_bytes)) => self.check_drained(),
            Event::Heard(Heard::Fail(failure)) => self.machine.fail(failure),
            Event::Heard(Heard::End(failure)) => self.machine.end(failure),
            Event::Heard(Heard::Tick) => self.machine.handle_timeout(now),
            Event::Joined(stream) => self.join(stream),
            Event::Sent => {}
            Event::WalkEnded(Ok(())) => self.thread_ended(),
            Event::WalkEnded(Err(error)) => {
                self.machine.fail(failure::of_tree(End::Source, &error));
            }
        }
    }

    fn join(&mut self, stream: C::Stream) {
        let number = self.machine.handle_joined();
        if let (Some(streams), Some(number)) = (&mut self.streams, number) {
            streams.join(&mut self.conversation, number, stream);
        }
    }

    fn thread_ended(&mut self) {
        let Some(reading) = &mut self.reading else {
            return;
        };
        reading.threads_left -= 1;
        if reading.threads_left > 0 {
            return;
        }
        // What waits in the queue still travels; then the connections end.
        reading.queue.close();
        let walked = reading.walk.finish();
        let manifest = lock(&reading.walk.end().manifest).take();
        if let Err(failure) = manifest.map_or(Ok(()), TreeManifest::finish) {
            self.machine.fail(failure);
        } else if walked.changed != Loss::default() && !self.config.allow_changed {
            self.machine.fail(changed_failure(&walked.changed));
        } else if walked.is_complete {
            let bytes = walked.summary.counts.bytes;
            self.context.progress.set_size(bytes);
            self.walked = Some(walked);
            self.check_drained();
        }
    }

    fn check_drained(&mut self) {
        if !self.conversation.is_drained() {
            return;
        }
        if let Some(streams) = &mut self.streams {
            streams.end_round();
        }
        if let Some(walked) = self.walked.take() {
            let stats = self.context.stats(&self.agent);
            let sent = self.sent();
            self.machine.handle_drained(walked.summary, sent, stats);
        }
    }

    /// What was sent in all sessions.
    fn sent(&self) -> Sent {
        let before = self.standing.sent;
        let seen = self
            .reading
            .as_ref()
            .map(|reading| reading.walk.seen())
            .unwrap_or_default();
        Sent {
            data_bytes: before.data_bytes + seen.sent_bytes,
            zero_bytes: before.zero_bytes + seen.bytes.saturating_sub(seen.data_bytes),
            wire_bytes: self.context.progress.wire_bytes.sum(),
        }
    }

    /// Does what the machine asks for, and tells the world. Gives the outcome at the end.
    fn settle(&mut self) -> Option<Outcome> {
        let mut outcome = None;
        while let Some(action) = self.machine.poll_action() {
            match action {
                TreeSourceAction::Transfer(transfer) => {
                    if let Err(failure) = self.start_transfer(&transfer) {
                        self.machine.fail(failure);
                    }
                }
                TreeSourceAction::Answer(answer) => {
                    let walk = self.reading.as_ref().map(|reading| &reading.walk);
                    let taken = walk.map_or(Err(Unasked), |walk| walk.answer(answer));
                    self.check_answer(taken);
                }
                TreeSourceAction::Pieces(pieces) => {
                    let walk = self.reading.as_ref().map(|reading| &reading.walk);
                    let taken = walk.map_or(Err(Unasked), |walk| walk.answer_pieces(pieces));
                    self.check_answer(taken);
                }
                TreeSourceAction::Done(receipt) => {
                    self.context.progress.set_size(receipt.logical_bytes);
                    self.context.progress.set_durable(receipt.logical_bytes);
                    outcome = Some(Ok(*receipt));
                }
                TreeSourceAction::Fail(failure) => outcome = Some(Err(failure)),
            }
        }
        while let Some(message) = self.machine.poll_message(Instant::now()) {
            if let Err(failure) = self.conversation.send(message) {
                self.machine.end(failure);
            }
        }
        let progress = &self.context.progress;
        progress.set_stage(self.machine.stage());
        if let Some(reading) = &self.reading {
            let seen = reading.walk.seen();
            progress.set_entries(seen.names);
            // What the target held already did not move.
            let sent = self.sent();
            progress.set_moved(sent.data_bytes, sent.zero_bytes);
        }
        let watermark = self.machine.watermark();
        if watermark != Watermark::default() {
            progress.set_durable(watermark.durable_bytes);
            progress.set_checked(watermark.checked_bytes);
            progress.throttle.heed(watermark.bandwidth_limit);
        }
        outcome
    }

    fn check_answer(&mut self, taken: Result<(), Unasked>) {
        if let Err(unasked) = taken {
            let failure = Failure::new(FailureCode::Protocol, unasked.to_string());
            self.machine.fail(failure);
        }
    }

    fn start_transfer(&mut self, transfer: &TreeTransfer) -> Result<(), Failure> {
        // How large the tree is, and what of it is durable, is told later.
        let durable_bytes = self.context.progress.durable_bytes();
        self.context.progress.set_volume(0, durable_bytes);
        let pool = new_pool(self.config.memory_bytes)?;
        let manifest = self.config.manifest.as_deref();
        let manifest = manifest.map(TreeManifest::create).transpose()?;
        let (queue_sender, queue) = async_channel::bounded(pool.buffer_count());
        let (first, most) = (transfer.streams, transfer.streams_max);
        let (connector, sent) = (&self.connector, &self.sent_sender);
        let mut streams = Streams::new(self.context, connector, transfer.token, sent, first, most);
        streams.begin_round(&mut self.conversation, queue, first);
        self.streams = Some(streams);
        let end = ToQueue {
            queue: queue_sender.clone(),
            manifest: Mutex::new(manifest),
            compression: Compression::new(
                self.config.compression,
                transfer.codecs,
                &self.context.progress,
            ),
        };
        let options = WalkOptions {
            terms: transfer.terms,
            direct: self.config.direct,
            offer: transfer.offer,
            compare: transfer.compare,
            epoch: transfer.epoch,
            read_back: false,
        };
        let source = self.standing.source.clone();
        let walk = Arc::new(Walk::new(source, options, pool.clone(), end));
        let (ended_sender, ended) = mpsc::channel(self.config.readers.max(1));
        let threads_left =
            start_threads(&walk, self.config.readers, &self.context.cpu, ended_sender)?;
        self.reading = Some(Reading {
            walk,
            pool,
            queue: queue_sender,
            threads_left,
            ended,
        });
        Ok(())
    }
}

/// Where a walk puts what is to be sent.
#[derive(Debug)]
struct ToQueue {
    queue: async_channel::Sender<Outgoing>,
    manifest: Mutex<Option<TreeManifest>>,
    compression: Compression,
}

impl WalkEnd for ToQueue {
    fn put(&self, mut outgoing: Outgoing) -> bool {
        match &mut outgoing {
            Outgoing::Pack {
                bytes, compressed, ..
            } => {
                let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                *compressed = self.compression.compress(&ZeroMap::all_data(len), bytes);
            }
            Outgoing::Piece {
                zero_map,
                bytes,
                compressed,
                ..
            } => *compressed = self.compression.compress(zero_map, bytes),
            _ => {}
        }
        self.queue.send_blocking(outgoing).is_ok()
    }

    fn file(&self, path: &[u8], digest: Digest) {
        if let Some(manifest) = lock(&self.manifest).as_mut() {
            manifest.record(path, digest);
        }
    }
}

/// The buffers of a walk: each holds a pack or a piece.
pub(super) fn new_pool(memory_bytes: usize) -> Result<BufferPool, Failure> {
    BufferPool::new(memory_bytes, PIECE_LEN as usize)
        .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))
}

/// Starts `count` threads of a walk, or as many as its memory is enough for, and gives how many.
/// Each tells how it ended.
pub(super) fn start_threads<E: WalkEnd + 'static>(
    walk: &Arc<Walk<E>>,
    count: usize,
    cpu: &CpuMeter,
    ended: mpsc::Sender<Result<(), TreeError>>,
) -> Result<usize, Failure> {
    let count = count.clamp(1, walk.threads_max());
    for number in 0..count {
        let (walk, ended) = (Arc::clone(walk), ended.clone());
        let _told_by_channel = cpu.spawn(format!("source-read-{number}"), move || {
            // There is room for all.
            let _nobody_waits = ended.try_send(walk.run());
        })?;
    }
    Ok(count)
}

/// A tree that was written while it was read has no state that the clone could equal.
pub(super) fn changed_failure(changed: &Loss) -> Failure {
    const SHOWN_MAX: usize = 20;
    let shown: Vec<_> = changed.paths.iter().take(SHOWN_MAX).cloned().collect();
    for path in &changed.paths {
        tracing::warn!(%path, "it changed while it was read");
    }
    let text = format!(
        "source tree: {} entries changed, appeared or vanished while they were read: {}{}; stop what \
         writes to them, clone a snapshot, or allow it with --allow-changed",
        changed.count,
        shown.join(", "),
        if changed.count > SHOWN_MAX as u64 {
            " and more"
        } else {
            ""
        },
    );
    Failure::new(FailureCode::SourceChanged, text)
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
