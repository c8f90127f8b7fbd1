//! The owner of a session at the target: waits for the next event, applies it to the state machine,
//! and does what the machine asks for.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use volferry_agent::control::{Control, LAST_WORD_TIMEOUT};
use volferry_agent::failure;
use volferry_agent::outcome::{Outcome, cancelled};
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::failure::{Failure, FailureClass, FailureCode};
use volferry_protocol::frame::SessionToken;
use volferry_protocol::geometry::{ChunkRange, Geometry};
use volferry_protocol::message::Message;
use volferry_protocol::session::{Ledger, TargetAction, TargetLimits, TargetSession};
use volferry_storage::{BufferPool, Sink, StorageError, TargetVolume};

use crate::TargetConfig;
use crate::data::{Claims, DataConnection};
use crate::greeter::{Greeted, Greeter, Purpose};
use crate::writers::{Incoming, Writers, Written};

/// Written chunks on their way to the owner's books.
const WRITTEN_QUEUE_LEN: usize = 64;

/// How a session ended.
#[derive(Debug)]
pub(crate) enum SessionEnd<Volume> {
    /// The clone is proven, or it failed.
    Over(Outcome),
    /// The session ended before the volume was touched.
    Untouched(Volume, Failure),
}

impl<Volume> SessionEnd<Volume> {
    /// How it ended, from the outcome and the volume where that is still untouched.
    pub(crate) fn of(volume: Option<Volume>, outcome: Outcome) -> Self {
        match (volume, outcome) {
            (Some(volume), Err(failure)) if is_of_peer(&failure) => {
                Self::Untouched(volume, failure)
            }
            (_, outcome) => Self::Over(outcome),
        }
    }
}

/// Runs one session over `control`; its data connections come through `greeter`.
pub(crate) async fn run<S>(
    config: &TargetConfig,
    context: &Context,
    volume: TargetVolume,
    control: S,
    greeter: &mut Greeter<S>,
    epoch: u64,
) -> SessionEnd<TargetVolume>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let agent = volferry_agent::agent_name("volferry-target");
    let limits = TargetLimits {
        streams_max: config.streams_max,
        ..TargetLimits::default()
    };
    let clone_id = context.progress.clone_id();
    let (written_sender, written) = mpsc::channel(WRITTEN_QUEUE_LEN);
    let session = Session {
        config,
        context,
        greeter,
        machine: TargetSession::new(Instant::now(), clone_id, epoch, agent.clone(), limits),
        agent,
        volume: Some(volume),
        preparing: None,
        control: Control::start(control, End::Source),
        transfer: None,
        connections: JoinSet::new(),
        lost: None,
        refusals: JoinSet::new(),
        written_sender,
        written,
    };
    session.run().await
}

struct Session<'a, S> {
    config: &'a TargetConfig,
    context: &'a Context,
    greeter: &'a mut Greeter<S>,
    machine: TargetSession,
    agent: String,
    /// Until it is prepared.
    volume: Option<TargetVolume>,
    preparing: Option<Preparing>,
    control: Control,
    /// From the welcome on.
    transfer: Option<Transfer>,
    /// Each gives the number of frames that it handed to the writers.
    connections: JoinSet<Result<u64, Failure>>,
    /// A data connection that broke, and when that counts as the cause: until then the source may
    /// still say what was.
    lost: Option<(Instant, Failure)>,
    /// Goodbyes to those who came too late.
    refusals: JoinSet<()>,
    written_sender: mpsc::Sender<Written>,
    written: mpsc::Receiver<Written>,
}

/// A volume that is being made ready.
#[derive(Debug)]
struct Preparing {
    geometry: Geometry,
    done: oneshot::Receiver<Result<Arc<dyn Sink>, StorageError>>,
}

/// What moves chunks.
#[derive(Debug)]
struct Transfer {
    token: SessionToken,
    /// Numbers of the data connections that were let in.
    numbers: BTreeSet<u16>,
    streams: u16,
    /// Frames that the data connections handed to the writers before they ended.
    frames_received: u64,
    /// Frames of any data connection that were written.
    frames_written: u64,
    geometry: Geometry,
    claims: Arc<Claims>,
    pool: BufferPool,
    queue: async_channel::Sender<Incoming>,
    flush: async_channel::Sender<()>,
}

impl Transfer {
    /// Whether a data connection that shows this may join.
    fn admits(&self, number: u16, token: SessionToken) -> bool {
        token == self.token && number < self.streams && !self.numbers.contains(&number)
    }
}

/// Whatever can happen to a session.
enum Event<S> {
    Message(Result<Message, Failure>),
    Greeted(Result<Greeted<S>, Failure>),
    Prepared(Result<Arc<dyn Sink>, StorageError>),
    Written(Written),
    ConnectionEnded(Result<u64, Failure>),
    Timeout,
    Shutdown,
}

impl<S> Session<'_, S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn run(mut self) -> SessionEnd<TargetVolume> {
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
        self.connections.shutdown().await;
        self.control.close().await;
        self.refusals.shutdown().await;
        SessionEnd::of(self.volume, outcome)
    }

    /// The only wait.
    async fn select(&mut self) -> Event<S> {
        let lost_at = self.lost.as_ref().map(|(at, _)| *at);
        let timeout = self.machine.poll_timeout().into_iter().chain(lost_at).min();
        let sleep = async {
            match timeout {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => std::future::pending().await,
            }
        };
        let prepared = async {
            match &mut self.preparing {
                Some(preparing) => (&mut preparing.done).await,
                None => std::future::pending().await,
            }
        };
        let mut shutdown = self.context.shutdown.clone();
        tokio::select! {
            // What was written counts before the news that depend on it.
            biased;
            Some(written) = self.written.recv() => Event::Written(written),
            message = self.control.receive() => Event::Message(message),
            Ok(prepared) = prepared => Event::Prepared(prepared),
            greeted = self.greeter.next() => Event::Greeted(greeted),
            Some(ended) = self.connections.join_next() => Event::ConnectionEnded(
                ended.unwrap_or_else(|error| Err(internal(error.to_string()))),
            ),
            () = sleep => Event::Timeout,
            () = shutdown.requested() => Event::Shutdown,
        }
    }

    /// The only change.
    fn apply(&mut self, event: Event<S>) {
        let now = Instant::now();
        match event {
            Event::Message(Ok(message)) => self.machine.handle_message(now, message),
            // A peer that can't be understood is still there to be told.
            Event::Message(Err(failure)) if failure.code == FailureCode::Protocol => {
                self.machine.fail(failure);
            }
            Event::Message(Err(failure)) => self.machine.end(failure),
            Event::Greeted(Ok(greeted)) => self.admit(greeted),
            Event::Greeted(Err(failure)) => self.machine.fail(failure),
            Event::Prepared(prepared) => self.start_transfer(now, prepared),
            Event::Written(written) => self.apply_written(now, written),
            Event::ConnectionEnded(Ok(frames)) => self.count_frames(now, frames, 0),
            Event::ConnectionEnded(Err(failure)) if failure.code == FailureCode::Disconnected => {
                self.lost.get_or_insert((now + LAST_WORD_TIMEOUT, failure));
            }
            Event::ConnectionEnded(Err(failure)) => self.machine.fail(failure),
            Event::Timeout => {
                if let Some((_, failure)) = self.lost.take_if(|(at, _)| *at <= now) {
                    self.machine.fail(failure);
                }
                self.machine.handle_timeout(now);
            }
            Event::Shutdown => self.machine.fail(cancelled()),
        }
    }

    fn apply_written(&mut self, now: Instant, written: Written) {
        match written {
            Written::Chunk {
                index,
                digest,
                data_len,
            } => {
                self.machine.handle_chunk(now, index, digest, data_len);
                self.count_frames(now, 0, 1);
            }
            Written::Zero(chunks) => {
                self.machine.handle_zero(now, chunks);
                self.count_frames(now, 0, 1);
            }
            Written::Flushed => self.machine.handle_flushed(now),
            Written::Corrupt(index) => {
                let range = self
                    .machine
                    .geometry()
                    .map(|geometry| geometry.bytes_of(ChunkRange::one(index)));
                let place = range
                    .map(|range| format!(" (bytes {range})"))
                    .unwrap_or_default();
                let text = format!(
                    "chunk {index}{place} arrived with other bytes than the source read; it was not \
                     written. Memory or a processor of one of the two nodes is failing"
                );
                self.machine
                    .fail(Failure::new(FailureCode::Integrity, text));
            }
            Written::Failed(error) => {
                self.machine.fail(failure::of_storage(End::Target, &error));
            }
        }
    }

    /// Counts frames, and tells the machine when nothing more can come. A data connection that is
    /// still on its way can bring chunks, so all that were granted must have come and gone.
    fn count_frames(&mut self, now: Instant, received: u64, written: u64) {
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        transfer.frames_received += received;
        transfer.frames_written += written;
        let all_came = transfer.numbers.len() == usize::from(transfer.streams);
        let all_ended = self.connections.is_empty() && self.lost.is_none();
        let all_written = transfer.frames_received == transfer.frames_written;
        if all_came && all_ended && all_written {
            self.machine.handle_drained(now);
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
            Purpose::Control => {
                tracing::warn!(%peer_address, "a second session was turned away");
                self.context.metrics.count_rejection("busy");
                self.refusals.spawn(refuse_busy(stream));
                while self.refusals.try_join_next().is_some() {}
            }
            Purpose::Data { number, token } => {
                let transfer = self.transfer.as_mut();
                let Some(transfer) = transfer.filter(|transfer| transfer.admits(number, token))
                else {
                    tracing::warn!(%peer_address, "a data connection of no session was turned away");
                    self.context.metrics.count_rejection("no_session");
                    return;
                };
                transfer.numbers.insert(number);
                let connection = DataConnection {
                    geometry: transfer.geometry,
                    claims: Arc::clone(&transfer.claims),
                    pool: transfer.pool.clone(),
                    queue: transfer.queue.clone(),
                    progress: Arc::clone(&self.context.progress),
                };
                self.connections.spawn(connection.run(stream));
            }
        }
    }

    /// Does what the machine asks for, and tells the world. Gives the outcome at the end.
    fn settle(&mut self) -> Option<Outcome> {
        let mut outcome = None;
        while let Some(action) = self.machine.poll_action() {
            match action {
                TargetAction::Prepare(geometry) => self.prepare(geometry),
                TargetAction::Flush => {
                    // There is room: the machine asks for one flush at a time.
                    let asked = self
                        .transfer
                        .as_ref()
                        .map(|transfer| transfer.flush.try_send(()));
                    debug_assert!(matches!(asked, Some(Ok(()))), "one flush at a time");
                }
                TargetAction::Seal => self.seal(),
                TargetAction::Done(receipt) => outcome = Some(Ok(*receipt)),
                TargetAction::Fail(failure) => outcome = Some(Err(failure)),
            }
        }
        while let Some(message) = self.machine.poll_message() {
            if let Err(failure) = self.control.send(message) {
                self.machine.end(failure);
            }
        }
        let progress = &self.context.progress;
        progress.set_stage(self.machine.stage());
        progress.set_moved(self.machine.data_bytes(), self.machine.zero_bytes());
        progress.set_durable(self.machine.watermark().durable_bytes);
        outcome
    }

    /// Makes the volume ready on a thread of its own: allocating or zeroing may take long.
    fn prepare(&mut self, geometry: Geometry) {
        let Some(volume) = self.volume.take_if(|volume| fits(volume, &geometry)) else {
            let Some(volume) = &self.volume else { return };
            let error = StorageError::TargetTooSmall {
                path: self.config.volume.clone(),
                capacity: volume.capacity().unwrap_or(0),
                needed: geometry.volume_size(),
            };
            self.machine.fail(failure::of_storage(End::Target, &error));
            return;
        };
        let (sender, done) = oneshot::channel();
        let cpu = self.context.cpu.clone();
        let started = thread::Builder::new()
            .name("target-prepare".to_owned())
            .spawn(move || {
                let _counted = cpu.count_this_thread();
                let _nobody_waits = sender.send(volume.prepare(geometry.volume_size()));
            });
        match started {
            Ok(_joins_by_channel) => self.preparing = Some(Preparing { geometry, done }),
            Err(error) => self
                .machine
                .fail(internal(format!("a thread can't be started: {error}"))),
        }
    }

    fn start_transfer(&mut self, now: Instant, prepared: Result<Arc<dyn Sink>, StorageError>) {
        let Some(Preparing { geometry, .. }) = self.preparing.take() else {
            return;
        };
        let started = prepared
            .map_err(|error| failure::of_storage(End::Target, &error))
            .and_then(|sink| self.greet(now, geometry, sink));
        if let Err(failure) = started {
            self.machine.fail(failure);
        }
    }

    fn greet(
        &mut self,
        now: Instant,
        geometry: Geometry,
        sink: Arc<dyn Sink>,
    ) -> Result<(), Failure> {
        let chunk_size = geometry.chunk_size().bytes() as usize;
        let pool = BufferPool::new(self.config.memory_bytes, chunk_size)
            .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
        let (queue, queue_receiver) = async_channel::bounded(pool.buffer_count());
        tracing::info!(
            volume = %sink.path().display(),
            bytes = geometry.volume_size(),
            direct = sink.writes_direct(),
            "the target volume is ready"
        );
        let writers = Writers {
            sink,
            geometry,
            queue: queue_receiver,
            written: self.written_sender.clone(),
        };
        let flush = writers
            .start(self.config.writers, &self.context.cpu)
            .map_err(|error| internal(format!("threads can't be started: {error}")))?;
        let token = new_token()?;
        let ledger = Ledger::new(geometry);
        let claims = Arc::new(Claims::of(&ledger));
        let resumed_bytes = ledger.watermark().durable_bytes;
        self.context
            .progress
            .set_volume(geometry.volume_size(), resumed_bytes);
        let streams = self.machine.handle_prepared(now, token, ledger);
        self.transfer = Some(Transfer {
            token,
            numbers: BTreeSet::new(),
            streams,
            frames_received: 0,
            frames_written: 0,
            geometry,
            claims,
            pool,
            queue,
            flush,
        });
        Ok(())
    }

    fn seal(&mut self) {
        let stats = self.context.stats(&self.agent);
        let unix_seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        self.machine.seal(Instant::now(), unix_seconds, stats);
    }
}

/// Tells a source that came too late, and waits for a moment until it has heard.
pub(crate) async fn refuse_busy<S>(stream: S)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    let control = Control::start(stream, End::Source);
    let busy = Failure::new(FailureCode::Busy, "this target serves another session");
    if control.send(Message::Error(busy)).is_ok() {
        control.close().await;
    }
}

fn fits(volume: &TargetVolume, geometry: &Geometry) -> bool {
    volume
        .capacity()
        .is_none_or(|capacity| capacity >= geometry.volume_size())
}

/// Whether the peer or the way to it failed, not this end or its volume.
fn is_of_peer(failure: &Failure) -> bool {
    matches!(
        failure.code.class(),
        FailureClass::Network | FailureClass::Identity
    )
}

pub(crate) fn new_token() -> Result<SessionToken, Failure> {
    let mut token = [0; 32];
    let filled = getrandom(&mut token, GetRandomFlags::empty());
    match filled {
        // getrandom(2) fills up to 256 bytes at once.
        Ok(32) => Ok(SessionToken(token)),
        other => Err(internal(format!(
            "the kernel gives no random bytes: {other:?}"
        ))),
    }
}

fn internal(text: String) -> Failure {
    Failure::new(FailureCode::Internal, text)
}
