//! The owner of a session at the source: waits for the next event, applies it to the state machine,
//! and does what the machine asks for.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use volferry_agent::control::{Control, LAST_WORD_TIMEOUT};
use volferry_agent::failure;
use volferry_agent::outcome::{Outcome, cancelled};
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::frame::Preamble;
use volferry_protocol::message::{Hello, Message};
use volferry_protocol::session::source::Transfer;
use volferry_protocol::session::{SourceAction, SourceSession};
use volferry_storage::{BufferPool, Generation, Source, StorageError};
use volferry_transport::{Connector, TransportError};

use crate::SourceConfig;
use crate::cursor::Cursor;
use crate::data::{DataConnection, Sent};
use crate::manifest::ManifestFile;
use crate::readers::Readers;

/// Chunks on their way to the owner's books; a few for each connection.
const SENT_QUEUE_LEN: usize = 64;

/// Runs one session on `control`, a fresh connection to the target.
pub(crate) async fn run<C>(
    config: &SourceConfig,
    context: &Context,
    connector: Arc<C>,
    mut control: C::Stream,
    hello: Hello,
    source: Arc<dyn Source>,
    generation: Generation,
) -> Outcome
where
    C: Connector + 'static,
{
    let agent = hello.agent.clone();
    control
        .write_all(&Preamble::Control.encode())
        .await
        .map_err(|error| {
            failure::of_transport(&TransportError::from_io("greeting the target", error))
        })?;
    let (sent_sender, sent) = mpsc::channel(SENT_QUEUE_LEN);
    let (failed_sender, read_failed) = mpsc::channel(1);
    let session = Session {
        config,
        context,
        connector,
        source,
        generation,
        agent,
        machine: SourceSession::new(Instant::now(), hello),
        control: Control::start(control, End::Target),
        connections: JoinSet::new(),
        lost: None,
        wire_bytes: 0,
        sent_sender,
        sent,
        failed_sender,
        read_failed,
        pool: None,
        manifest: None,
    };
    session.run().await
}

struct Session<'a, C> {
    config: &'a SourceConfig,
    context: &'a Context,
    connector: Arc<C>,
    source: Arc<dyn Source>,
    /// The source as it was when the session began.
    generation: Generation,
    agent: String,
    machine: SourceSession,
    control: Control,
    connections: JoinSet<Result<u64, Failure>>,
    /// A data connection that broke, and when that counts as the cause: until then the target may
    /// still say what was.
    lost: Option<(Instant, Failure)>,
    /// What the data connections that have ended sent.
    wire_bytes: u64,
    sent_sender: mpsc::Sender<Sent>,
    sent: mpsc::Receiver<Sent>,
    failed_sender: mpsc::Sender<StorageError>,
    read_failed: mpsc::Receiver<StorageError>,
    pool: Option<BufferPool>,
    /// From the welcome on, where one was asked for.
    manifest: Option<ManifestFile>,
}

/// Whatever can happen to a session.
#[derive(Debug)]
enum Event {
    Message(Result<Message, Failure>),
    Sent(Sent),
    ConnectionEnded(Result<u64, Failure>),
    ReadFailed(StorageError),
    Timeout,
    Shutdown,
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
        if let Some(pool) = &self.pool {
            pool.close();
        }
        self.connections.shutdown().await;
        self.control.close().await;
        outcome
    }

    /// The only wait.
    async fn select(&mut self) -> Event {
        let lost_at = self.lost.as_ref().map(|(at, _)| *at);
        let timeout = self.machine.poll_timeout().into_iter().chain(lost_at).min();
        let sleep = async {
            match timeout {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let mut shutdown = self.context.shutdown.clone();
        tokio::select! {
            // Causes before their effects: what was sent counts before its connection ends, and a
            // failed read before the connections that end because of it.
            biased;
            Some(sent) = self.sent.recv() => Event::Sent(sent),
            message = self.control.receive() => Event::Message(message),
            Some(error) = self.read_failed.recv() => Event::ReadFailed(error),
            Some(ended) = self.connections.join_next() => Event::ConnectionEnded(
                ended.unwrap_or_else(|error| Err(Failure::new(FailureCode::Internal, error.to_string()))),
            ),
            () = sleep => Event::Timeout,
            () = shutdown.requested() => Event::Shutdown,
        }
    }

    /// The only change.
    fn apply(&mut self, event: Event) {
        let now = Instant::now();
        match event {
            Event::Message(Ok(message)) => self.machine.handle_message(now, message),
            // A peer that can't be understood is still there to be told.
            Event::Message(Err(failure)) if failure.code == FailureCode::Protocol => {
                self.machine.fail(failure);
            }
            Event::Message(Err(failure)) => self.machine.end(failure),
            Event::Sent(Sent::Chunk {
                index,
                digest,
                data_len,
            }) => {
                self.machine.handle_chunk(index, digest, data_len);
                let recorded = self
                    .manifest
                    .as_mut()
                    .map(|manifest| manifest.record(index, digest));
                if let Some(Err(failure)) = recorded {
                    self.machine.fail(failure);
                }
            }
            Event::Sent(Sent::Zero(chunks)) => self.machine.handle_zero(chunks),
            Event::ConnectionEnded(Ok(wire_bytes)) => self.connection_drained(wire_bytes),
            Event::ConnectionEnded(Err(failure)) if failure.code == FailureCode::Disconnected => {
                self.lost.get_or_insert((now + LAST_WORD_TIMEOUT, failure));
            }
            Event::ConnectionEnded(Err(failure)) => self.machine.fail(failure),
            Event::ReadFailed(error) => {
                self.machine.fail(failure::of_storage(End::Source, &error));
            }
            Event::Timeout => {
                if let Some((_, failure)) = self.lost.take_if(|(at, _)| *at <= now) {
                    self.machine.fail(failure);
                }
                self.machine.handle_timeout(now);
            }
            Event::Shutdown => self.machine.fail(cancelled()),
        }
    }

    fn connection_drained(&mut self, wire_bytes: u64) {
        self.wire_bytes += wire_bytes;
        if self.lost.is_some() || !self.connections.is_empty() {
            return;
        }
        let complete = self.manifest.take().map_or(Ok(()), ManifestFile::finish);
        let complete = complete.and_then(|()| check_unchanged(&*self.source, &self.generation));
        if let Err(failure) = complete {
            self.machine.fail(failure);
            return;
        }
        let stats = self.context.stats(&self.agent);
        self.machine.handle_drained(self.wire_bytes, stats);
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
            if let Err(failure) = self.control.send(message) {
                self.machine.end(failure);
            }
        }
        let progress = &self.context.progress;
        progress.set_stage(self.machine.stage());
        let sent = self.machine.sent();
        progress.set_moved(sent.data_bytes, sent.zero_bytes);
        progress.set_durable(self.machine.watermark().durable_bytes);
        outcome
    }

    fn start_transfer(&mut self, transfer: Transfer) -> Result<(), Failure> {
        let internal = |text: String| Failure::new(FailureCode::Internal, text);
        let chunk_size = transfer.geometry.chunk_size().bytes() as usize;
        let pool = BufferPool::new(self.config.memory_bytes, chunk_size)
            .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
        if let Some(path) = &self.config.manifest {
            self.manifest = Some(ManifestFile::create(path, &transfer.geometry)?);
        }
        let volume_size = transfer.geometry.volume_size();
        self.context
            .progress
            .set_volume(volume_size, self.machine.resumed_bytes());
        let (queue_sender, queue) = async_channel::bounded(pool.buffer_count());
        for number in 0..transfer.streams {
            let connection = DataConnection {
                preamble: Preamble::Data {
                    number,
                    token: transfer.token,
                },
                queue: queue.clone(),
                sent: self.sent_sender.clone(),
                progress: Arc::clone(&self.context.progress),
            };
            self.connections
                .spawn(connection.run(Arc::clone(&self.connector)));
        }
        self.pool = Some(pool.clone());
        let readers = Readers {
            source: Arc::clone(&self.source),
            geometry: transfer.geometry,
            cursor: Mutex::new(Cursor::new(
                Arc::clone(&self.source),
                transfer.geometry,
                transfer.durable,
            )),
            pool,
            queue: queue_sender,
            failed: self.failed_sender.clone(),
        };
        readers
            .start(self.config.readers, &self.context.cpu)
            .map_err(|error| internal(format!("threads can't be started: {error}")))
    }
}

/// A source that was written while it was read has no state that the clone could equal.
fn check_unchanged(source: &dyn Source, before: &Generation) -> Result<(), Failure> {
    let after = source
        .generation()
        .map_err(|error| failure::of_storage(End::Source, &error))?;
    let mtime = |generation: &Generation| generation.file.map(|file| file.mtime_ns);
    if after.size == before.size && mtime(&after) == mtime(before) {
        return Ok(());
    }
    let text = format!(
        "source volume: {} was written while it was read; stop what writes to it, or clone a snapshot",
        source.path().display()
    );
    Err(Failure::new(FailureCode::SourceChanged, text))
}
