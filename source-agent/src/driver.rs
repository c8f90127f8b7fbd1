//! The owner of a session at the source: waits for the next event, applies it to the state machine,
//! and does what the machine asks for.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::sync::mpsc;
use volferry_agent::conversation::{Conversation, Heard};
use volferry_agent::failure;
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::ChunkIndex;
use volferry_protocol::message::{self, Hello, Watermark};
use volferry_protocol::session::source::Transfer;
use volferry_protocol::session::{SourceAction, SourceSession};
use volferry_storage::{BufferPool, Generation, Source, StorageError};
use volferry_transport::Connector;

use crate::compression::Compression;
use crate::cursor::Cursor;
use crate::data::Sent;
use crate::digest::check_unchanged;
use crate::manifest::ManifestFile;
use crate::readers::{Outgoing, Readers};
use crate::streams::{self, Streams};
use crate::{Clones, SourceConfig};

/// Chunks on their way to the owner's books; a few for each connection.
const SENT_QUEUE_LEN: usize = 64;

/// What outlives a session.
#[derive(Debug)]
pub(crate) struct Standing {
    pub(crate) source: Arc<dyn Source>,
    /// The source as it was when the agent started.
    pub(crate) generation: Generation,
    /// From the first welcome on, where one was asked for.
    pub(crate) manifest: Option<ManifestFile>,
    /// What was sent in all sessions.
    pub(crate) sent: message::Sent,
    /// The buffers of every session, from the first on.
    pub(crate) pool: Option<BufferPool>,
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
        let unchanged = check_unchanged(&*self.source, &self.generation);
        // A target that was never spoken to is left as it is.
        if hello.attempt == 1 {
            unchanged.clone()?;
        }
        let agent = hello.agent.clone();
        let conversation = Conversation::with_target(control, context).await?;
        let (sent_sender, sent) = mpsc::channel(SENT_QUEUE_LEN);
        let (failed_sender, read_failed) = mpsc::channel(1);
        let mut session = Session {
            config,
            context,
            connector,
            streams: None,
            agent,
            machine: SourceSession::new(Instant::now(), hello, self.sent),
            standing: self,
            conversation,
            wire_bytes: 0,
            sent_sender,
            sent,
            failed_sender,
            read_failed,
            is_first_round: true,
            queue: None,
            compression: None,
        };
        // The target is told, and does not wait for another session.
        if let Err(failure) = unchanged {
            session.machine.fail(failure);
        }
        session.run().await
    }
}

struct Session<'a, C: Connector> {
    config: &'a SourceConfig,
    context: &'a Context,
    connector: Arc<C>,
    /// From the welcome on.
    streams: Option<Streams<Outgoing, C>>,
    agent: String,
    machine: SourceSession,
    standing: &'a mut Standing,
    conversation: Conversation,
    /// What the data connections of this round that have ended sent.
    wire_bytes: u64,
    sent_sender: mpsc::Sender<Sent>,
    sent: mpsc::Receiver<Sent>,
    failed_sender: mpsc::Sender<StorageError>,
    read_failed: mpsc::Receiver<StorageError>,
    is_first_round: bool,
    /// What was read in this round and waits for a connection.
    queue: Option<async_channel::Receiver<Outgoing>>,
    /// From the welcome on.
    compression: Option<Arc<Compression>>,
}

/// Whatever can happen to a session.
enum Event<S> {
    Heard(Heard),
    /// One more connection helps.
    Joined(S),
    Sent(Sent),
    ReadFailed(StorageError),
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
        self.conversation.drop_connections().await;
        // Readers end at their next chunk; what waits goes back to the pool, for the next session.
        if let Some(queue) = self.queue.take() {
            queue.close();
            while queue.try_recv().is_ok() {}
        }
        self.standing.sent = self.machine.sent();
        // With what a round that was cut has sent.
        self.standing.sent.wire_bytes = self.context.progress.wire_bytes.sum();
        self.conversation.close().await;
        outcome
    }

    /// The only wait.
    async fn select(&mut self) -> Event<C::Stream> {
        let wake_at = self.machine.poll_timeout();
        let joined = streams::next_of(&mut self.streams, self.machine.watermark().waits);
        tokio::select! {
            // Causes before their effects: what was sent counts before its connection ends, and a
            // failed read before the connections that end because of it.
            biased;
            Some(sent) = self.sent.recv() => Event::Sent(sent),
            Some(error) = self.read_failed.recv() => Event::ReadFailed(error),
            heard = self.conversation.next(wake_at) => Event::Heard(heard),
            stream = joined => Event::Joined(stream),
        }
    }

    /// The only change.
    fn apply(&mut self, event: Event<C::Stream>) {
        let now = Instant::now();
        match event {
            Event::Heard(Heard::Message(message)) => self.machine.handle_message(now, message),
            Event::Heard(Heard::Drained(wire_bytes)) => self.connection_drained(wire_bytes),
            Event::Heard(Heard::Fail(failure)) => self.machine.fail(failure),
            Event::Heard(Heard::End(failure)) => self.machine.end(failure),
            Event::Heard(Heard::Tick) => self.machine.handle_timeout(now),
            Event::Joined(stream) => self.join(stream),
            Event::Sent(Sent::Chunk {
                index,
                digest,
                data_len,
            }) => {
                self.machine.handle_chunk(index, digest, data_len);
                self.context.progress.count_chunk(index, data_len);
                self.record(index, digest);
            }
            Event::Sent(Sent::Offer { index, digest }) => {
                self.machine.handle_offer(index, digest);
                self.record(index, digest);
            }
            Event::Sent(Sent::Known { index, digest }) => self.record(index, digest),
            Event::Sent(Sent::Zero(chunks)) => self.machine.handle_zero(chunks),
            Event::ReadFailed(error) => {
                self.machine.fail(failure::of_storage(End::Source, &error));
            }
        }
    }

    fn join(&mut self, stream: C::Stream) {
        let number = self.machine.handle_joined();
        if let (Some(streams), Some(number)) = (&mut self.streams, number) {
            streams.join(&mut self.conversation, number, stream);
        }
    }

    fn record(&mut self, index: ChunkIndex, digest: Digest) {
        let manifest = self.standing.manifest.as_mut();
        if let Some(Err(failure)) = manifest.map(|manifest| manifest.record(index, digest)) {
            self.machine.fail(failure);
        }
    }

    fn connection_drained(&mut self, wire_bytes: u64) {
        self.wire_bytes += wire_bytes;
        if !self.conversation.is_drained() {
            return;
        }
        if let Some(streams) = &mut self.streams {
            streams.end_round();
        }
        let manifest = self.standing.manifest.as_mut();
        let complete = manifest
            .map_or(Ok(()), ManifestFile::finish)
            .and_then(|()| check_unchanged(&*self.standing.source, &self.standing.generation));
        if let Err(failure) = complete {
            self.machine.fail(failure);
            return;
        }
        let stats = self.context.stats(&self.agent);
        self.machine
            .handle_drained(std::mem::take(&mut self.wire_bytes), stats);
    }

    /// Does what the machine asks for, and tells the world. Gives the outcome at the end.
    fn settle(&mut self) -> Option<Outcome> {
        let mut outcome = None;
        while let Some(action) = self.machine.poll_action() {
            match action {
                SourceAction::Transfer(transfer) => {
                    if let Err(failure) = self.start_transfer(transfer) {
                        self.machine.fail(failure);
                    }
                }
                SourceAction::Done(receipt) => outcome = Some(Ok(*receipt)),
                SourceAction::Fail(failure) => outcome = Some(Err(failure)),
            }
        }
        while let Some(message) = self.machine.poll_message(Instant::now()) {
            if let Err(failure) = self.conversation.send(message) {
                self.machine.end(failure);
            }
        }
        let progress = &self.context.progress;
        progress.set_stage(self.machine.stage());
        let sent = self.machine.sent();
        progress.set_moved(sent.data_bytes, sent.zero_bytes);
        let watermark = self.machine.watermark();
        if watermark != Watermark::default() {
            progress.set_durable(watermark.durable_bytes);
            progress.set_checked(watermark.checked_bytes);
            progress.throttle.heed(watermark.bandwidth_limit);
        }
        outcome
    }

    fn start_transfer(&mut self, transfer: Transfer) -> Result<(), Failure> {
        let geometry = transfer.geometry;
        let chunk_size = geometry.chunk_size().bytes() as usize;
        if std::mem::take(&mut self.is_first_round) {
            let resumed_bytes = self.machine.resumed_bytes();
            self.context
                .progress
                .set_volume(geometry.volume_size(), resumed_bytes);
            if resumed_bytes > 0 {
                tracing::info!(
                    resumed_bytes,
                    "the target goes on from what is durable there"
                );
            }
        }
        // What an earlier session still holds counts too.
        let pool = match &self.standing.pool {
            Some(pool) => pool.clone(),
            None => BufferPool::new(self.config.memory_bytes, chunk_size)
                .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?,
        };
        self.standing.pool = Some(pool.clone());
        let manifest = &mut self.standing.manifest;
        if let (Some(path), None) = (&self.config.manifest, &manifest) {
            *manifest = Some(ManifestFile::create(path, &geometry)?);
        }
        // What the manifest lacks is read even where it is not sent.
        let known = manifest.as_ref().map_or_else(
            || transfer.skip.clone(),
            |manifest| manifest.recorded().common(&transfer.skip),
        );
        let (queue_sender, queue) = async_channel::bounded(pool.buffer_count());
        let streams = self.streams.get_or_insert_with(|| {
            let (first, most) = (transfer.streams, transfer.streams_max);
            let (connector, sent) = (&self.connector, &self.sent_sender);
            Streams::new(self.context, connector, transfer.token, sent, first, most)
        });
        streams.begin_round(&mut self.conversation, queue.clone(), transfer.streams);
        self.queue = Some(queue);
        let compression = self.compression.get_or_insert_with(|| {
            let progress = &self.context.progress;
            let wanted = self.config.compression;
            Arc::new(Compression::new(wanted, transfer.codecs, progress))
        });
        let source = &self.standing.source;
        let cursor = Cursor::new(Arc::clone(source), geometry, transfer.skip, known);
        let readers = Readers {
            source: Arc::clone(source),
            geometry,
            cursor: Mutex::new(cursor),
            offer: transfer.offer,
            pool,
            queue: queue_sender,
            effort: Arc::clone(&self.context.progress.effort),
            compression: Some(Arc::clone(compression)),
            failed: self.failed_sender.clone(),
        };
        readers.start(self.config.readers, &self.context.cpu)
    }
}
