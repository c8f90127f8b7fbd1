//! The owner of a session at the target: waits for the next event, applies it to the state machine,
//! and does what the machine asks for.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use volferry_agent::conversation::{Conversation, Heard};
use volferry_agent::failure;
use volferry_agent::outcome::Outcome;
use volferry_agent::progress::End;
use volferry_agent::run::Context;
use volferry_protocol::compression::Codecs;
use volferry_protocol::failure::{Failure, FailureCode};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, Geometry};
use volferry_protocol::message::{Hello, Message};
use volferry_protocol::receipt::{Receipt, Verified};
use volferry_protocol::session::{
    Fence, Stage, Standing, TargetAction, TargetLimits, TargetSession,
};
use volferry_storage::{BufferPool, Sink, StorageError, TargetVolume};

use crate::TargetConfig;
use crate::data::{Buffers, Chunks, Claims, DataConnection};
use crate::greeter::{Greeted, Greeter, Purpose};
use crate::intake::{Intake, new_token};
use crate::journal::Journal;
use crate::readback::{self, ReadBack};
use crate::resume::{self, Begin, Known};
use crate::session::{Ask, Receiver, Remains, Rivals, SessionEnd, drain_in_time, turn_away_data};
use crate::work::Work;
use crate::writers::{Incoming, Job, Writers, Written};

/// Written chunks on their way to the owner's books.
const WRITTEN_QUEUE_LEN: usize = 64;

/// What outlives a session.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) volume: Volume,
    pub(crate) journal: Option<Arc<Mutex<Journal>>>,
    pub(crate) fence: Fence,
    /// What is known before the first session.
    pub(crate) known: Known,
    /// What is known after a session.
    pub(crate) standing: Option<Standing>,
    /// Bytes of data and of zeros taken in by earlier sessions.
    pub(crate) moved: (u64, u64),
    /// Whether the last session was cut while it compared, or repaired.
    pub(crate) holds_more: bool,
    /// The buffers of every session, from the first on.
    pub(crate) pool: Option<BufferPool>,
    /// Once the clone is proven.
    pub(crate) receipt: Option<Box<Receipt>>,
}

/// The target volume.
#[derive(Debug)]
pub(crate) enum Volume {
    /// Claimed, and not touched yet.
    Claimed(TargetVolume),
    /// Made ready.
    Ready(Arc<dyn Sink>),
    /// Being made ready, or lost in that.
    Away,
}

impl<S> Receiver<S> for Held
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    fn fence(&mut self) -> &mut Fence {
        &mut self.fence
    }

    fn unheard(&self) -> Option<&Receipt> {
        self.receipt.as_deref()
    }

    async fn receive(
        &mut self,
        config: &TargetConfig,
        context: &Context,
        ask: Ask<S>,
        greeter: &mut Greeter<S>,
    ) -> SessionEnd<S> {
        let agent = volferry_agent::agent_name("volferry-target");
        let limits = TargetLimits {
            streams_max: config.streams_max,
            has_journal: self.journal.is_some(),
            verify: config.verify,
            ..TargetLimits::default()
        };
        let clone_id = context.progress.clone_id();
        let now = Instant::now();
        let mut machine = TargetSession::new(now, clone_id, ask.epoch, agent.clone(), limits);
        machine.handle_message(now, Message::Hello(ask.hello));
        let (written_sender, written) = mpsc::channel(WRITTEN_QUEUE_LEN);
        let session = Session {
            config,
            context,
            greeter,
            machine,
            agent,
            held: self,
            epoch: ask.epoch,
            preparing: Work::default(),
            conversation: Conversation::with_source(ask.stream, context),
            transfer: None,
            read_back: Work::default(),
            rivals: Rivals::default(),
            volume_failure: None,
            written_sender: Some(written_sender),
            written,
        };
        session.run().await
    }
}

struct Session<'a, S> {
    config: &'a TargetConfig,
    context: &'a Context,
    greeter: &'a mut Greeter<S>,
    machine: TargetSession,
    agent: String,
    held: &'a mut Held,
    epoch: u64,
    preparing: Work<Prepared>,
    conversation: Conversation,
    /// From the welcome on.
    transfer: Option<Transfer>,
    read_back: Work<ReadBack>,
    /// Sources that come meanwhile.
    rivals: Rivals<S>,
    /// What failed at this end's volume or journal.
    volume_failure: Option<Failure>,
    /// Until the writers have theirs.
    written_sender: Option<mpsc::Sender<Written>>,
    written: mpsc::Receiver<Written>,
}

/// A volume that was made ready.
#[derive(Debug)]
struct Prepared {
    geometry: Geometry,
    sink: Result<Arc<dyn Sink>, Failure>,
    /// Where the session begins on it.
    begin: Option<Result<Begin, Failure>>,
}

/// A volume on its way to be made ready.
#[derive(Debug)]
enum Unprepared {
    Claimed(TargetVolume),
    Ready(Arc<dyn Sink>),
}

impl Unprepared {
    fn prepare(self, known: &Known, geometry: &Geometry) -> Result<Arc<dyn Sink>, Failure> {
        match self {
            Self::Ready(sink) => Ok(sink),
            Self::Claimed(volume) => {
                known.check_file()?;
                volume
                    .prepare(geometry.volume_size())
                    .map_err(|error| failure::of_storage(End::Target, &error))
            }
        }
    }
}

/// What moves chunks.
#[derive(Debug)]
struct Transfer {
    intake: Intake,
    geometry: Geometry,
    sink: Arc<dyn Sink>,
    is_fresh: Arc<AtomicBool>,
    checked_bytes: Arc<AtomicU64>,
    claims: Arc<Claims>,
    pool: BufferPool,
    queue: async_channel::Sender<Incoming>,
    jobs: async_channel::Sender<Job>,
}

/// Whatever can happen to a session.
enum Event<S> {
    Heard(Heard),
    Greeted(Result<Greeted<S>, Failure>),
    Prepared(Box<Prepared>),
    Written(Written),
    ReadBack(ReadBack),
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
            transfer.queue.close();
        }
        let is_heard = self.conversation.close().await;
        let next = self.rivals.close().await;
        let remains = Remains {
            is_usable: !matches!(self.held.volume, Volume::Away),
            is_untouched: self.machine.geometry().is_none(),
        };
        self.held.fence.release(self.epoch);
        self.held.moved.0 += self.machine.data_bytes();
        self.held.moved.1 += self.machine.zero_bytes();
        self.held.holds_more |= self.machine.is_comparing();
        let progress = &self.context.progress;
        if let Some(standing) = self.machine.into_standing() {
            let clone_id = progress.clone_id();
            progress.set_durable(standing.ledger.watermark().durable_bytes);
            progress.set_checkpoint(standing.checkpoint(clone_id, self.epoch));
            // Another source may have been let write over what was proven.
            let digest = standing.ledger.volume_digest();
            self.held
                .receipt
                .take_if(|receipt| Some(receipt.digest) != digest);
            self.held.standing = Some(standing);
        }
        match (outcome, drained) {
            (Ok(receipt), _) => {
                let receipt = Box::new(receipt);
                self.held.receipt.get_or_insert_with(|| receipt.clone());
                SessionEnd::Proven { receipt, is_heard }
            }
            (Err(_), Err(failure)) => SessionEnd::Failed(failure),
            (Err(failure), Ok(())) => SessionEnd::failed(failure, self.context, remains, next),
        }
    }

    /// Ends in order what the session has begun on the volume: what was received is written, made
    /// durable and journaled. Only then the next session may begin, so that no write of this one
    /// comes after it.
    async fn drain(&mut self) -> Result<(), Failure> {
        if let Some(prepared) = self.preparing.finish().await? {
            self.held.volume = Volume::Ready(prepared.sink?);
        }
        let Some(transfer) = self.transfer.take() else {
            return Ok(());
        };
        let Transfer { sink, geometry, .. } = &transfer;
        let (sink, geometry) = (Arc::clone(sink), *geometry);
        // The threads answer for each piece that waits, and end behind the last.
        transfer.queue.close();
        drop(transfer);
        self.written_sender = None;
        while let Some(written) = self.written.recv().await {
            self.apply_written(Instant::now(), written);
            if let Some(failure) = self.volume_failure.take() {
                return Err(failure);
            }
        }
        if !self.machine.begin_last_flush() {
            return Ok(());
        }
        let (written_sender, mut written) = mpsc::channel(1);
        let (_no_work, nothing) = async_channel::bounded(1);
        let crew = self.crew(sink, geometry, nothing, written_sender);
        let jobs = crew.start(0, &self.context.cpu)?;
        let mut job = Job::Flush;
        loop {
            // There is room: one job at a time.
            let _asked = jobs.try_send(job);
            match written.recv().await {
                Some(Written::Flushed) => match self.machine.end_last_flush() {
                    Some(checkpoint) => job = Job::Journal(Box::new(checkpoint)),
                    None => return Ok(()),
                },
                Some(Written::Failed(error)) => {
                    return Err(failure::of_storage(End::Target, &error));
                }
                Some(Written::JournalFailed(failure)) => return Err(failure),
                _ => return Ok(()),
            }
        }
    }

    /// The only wait.
    async fn select(&mut self) -> Event<S> {
        let wake_at = self.machine.poll_timeout();
        tokio::select! {
            // What was written counts before the news that depend on it.
            biased;
            Some(written) = self.written.recv() => Event::Written(written),
            heard = self.conversation.next(wake_at) => Event::Heard(heard),
            prepared = self.preparing.done() => {
                prepared.map_or_else(Event::ThreadDied, |done| Event::Prepared(Box::new(done)))
            }
            read = self.read_back.done() => read.map_or_else(Event::ThreadDied, Event::ReadBack),
            greeted = self.greeter.next() => Event::Greeted(greeted),
        }
    }

    /// The only change.
    fn apply(&mut self, event: Event<S>) {
        let now = Instant::now();
        match event {
            Event::Heard(Heard::Message(message)) => {
                self.machine.handle_message(now, message);
                self.check_drained(now);
            }
            Event::Heard(Heard::Drained(frames)) => self.end_connection(now, frames),
            Event::Heard(Heard::Fail(failure)) => self.machine.fail(failure),
            Event::Heard(Heard::End(failure)) => self.machine.end(failure),
            Event::Heard(Heard::Tick) => self.machine.handle_timeout(now),
            Event::Greeted(Ok(greeted)) => self.admit(greeted),
            Event::Greeted(Err(failure)) => self.machine.fail(failure),
            Event::Prepared(prepared) => self.apply_prepared(*prepared),
            Event::ReadBack(read_back) => self.apply_read_back(now, read_back),
            Event::Written(written) => self.apply_written(now, written),
            Event::ThreadDied(failure) => self.machine.fail(failure),
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
                self.context.progress.count_chunk(index, data_len);
                self.end_frame(now);
            }
            Written::Matched {
                index,
                digest,
                data_len,
            } => {
                self.machine.handle_match(now, index, digest, data_len);
                self.end_frame(now);
            }
            Written::Differs => self.end_frame(now),
            Written::Zero { chunks, is_last } => {
                self.machine.handle_zero(now, chunks);
                if is_last {
                    self.end_frame(now);
                }
            }
            Written::Flushed => self.machine.handle_flushed(now),
            Written::Journaled => self.machine.handle_journaled(now),
            Written::Corrupt(index) => self.machine.fail(self.corrupt(index)),
            Written::Failed(error) => {
                self.fail_volume(failure::of_storage(End::Target, &error));
            }
            Written::JournalFailed(failure) => self.fail_volume(failure),
        }
    }

    fn fail_volume(&mut self, failure: Failure) {
        self.volume_failure.get_or_insert_with(|| failure.clone());
        self.machine.fail(failure);
    }

    fn corrupt(&self, index: ChunkIndex) -> Failure {
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
        Failure::new(FailureCode::Integrity, text)
    }

    /// A data connection has ended, and handed so many frames to the writers.
    fn end_connection(&mut self, now: Instant, frames: u64) {
        if let Some(transfer) = &mut self.transfer {
            transfer.intake.receive(frames);
        }
        self.check_drained(now);
    }

    /// The writers are done with a frame.
    fn end_frame(&mut self, now: Instant) {
        if let Some(transfer) = &mut self.transfer {
            transfer.intake.done();
        }
        self.check_drained(now);
    }

    /// Tells the machine when nothing more can come in this round.
    fn check_drained(&mut self, now: Instant) {
        let transfer = self.transfer.as_ref();
        let due = self.machine.connections_due();
        let is_complete = transfer.is_some_and(|transfer| transfer.intake.is_complete(due));
        if is_complete && self.conversation.is_drained() {
            self.machine.handle_drained(now);
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
                    carried: Chunks {
                        geometry: transfer.geometry,
                        codecs: self.machine.hello().map_or(Codecs::NONE, Hello::codecs),
                        claims: Arc::clone(&transfer.claims),
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
                TargetAction::Prepare(geometry) => self.prepare(geometry),
                TargetAction::Flush => self.ask(Job::Flush),
                TargetAction::Journal(checkpoint) => self.ask(Job::Journal(checkpoint)),
                TargetAction::NextRound => self.next_round(),
                TargetAction::ReadBack => self.start_read_back(),
                TargetAction::Seal => self.seal(),
                TargetAction::Done(receipt) => outcome = Some(Ok(*receipt)),
                TargetAction::Fail(failure) => outcome = Some(Err(failure)),
            }
        }
        while let Some(message) = self.machine.poll_message() {
            if let Err(failure) = self.conversation.send(message) {
                self.machine.end(failure);
            }
        }
        let progress = &self.context.progress;
        progress.set_stage(self.machine.stage());
        let (data_bytes, zero_bytes) = self.held.moved;
        progress.set_moved(
            data_bytes + self.machine.data_bytes(),
            zero_bytes + self.machine.zero_bytes(),
        );
        if let Some(transfer) = &self.transfer {
            let checked = transfer.checked_bytes.load(Ordering::Relaxed);
            self.machine.set_checked(checked);
            self.machine.set_waits(progress.waits());
            let asked = progress.throttle.asked();
            self.machine.set_bandwidth_limit(asked);
            progress.set_checked(checked);
            progress.queued.set(transfer.queue.len());
        }
        let durable_bytes = self.machine.watermark().durable_bytes;
        // Before the welcome nothing is known, which is no step back.
        if self.machine.stage() != Stage::Handshake
            && progress.set_durable(durable_bytes)
            && let Some(checkpoint) = self.machine.checkpoint()
        {
            progress.set_checkpoint(checkpoint);
        }
        outcome
    }

    fn ask(&mut self, job: Job) {
        // There is room: the machine asks for one flush at a time, and for its record.
        let asked = self
            .transfer
            .as_ref()
            .is_some_and(|transfer| transfer.jobs.try_send(job).is_ok());
        if !asked {
            self.machine.fail(Failure::internal(
                "the flusher does not take its work".to_owned(),
            ));
        }
    }

    /// Lets data connections in anew, for what is not written.
    fn next_round(&mut self) {
        let Some(transfer) = &mut self.transfer else {
            return;
        };
        let written = self.machine.written().cloned().unwrap_or_default();
        transfer.intake.next_round();
        transfer.claims = Arc::new(Claims::of(written));
        // Between the zeros of a chunk may lie what it held before.
        transfer.is_fresh.store(false, Ordering::Relaxed);
        // A repair takes back what was vouched for.
        if let Some(checkpoint) = self.machine.checkpoint() {
            self.context.progress.set_checkpoint(checkpoint);
        }
    }

    fn start_read_back(&mut self) {
        let Some(transfer) = &self.transfer else {
            return;
        };
        tracing::info!("all is durable; reading the volume back");
        let started = readback::start(
            self.config.writers,
            &self.context.cpu,
            Arc::clone(&transfer.sink),
            transfer.geometry,
            transfer.pool.clone(),
            Arc::clone(&transfer.checked_bytes),
        );
        match started {
            Ok(read_back) => self.read_back = Work::told_on(read_back),
            Err(failure) => self.machine.fail(failure),
        }
    }

    fn apply_read_back(&mut self, now: Instant, read_back: ReadBack) {
        match read_back {
            Ok(digest) => {
                self.machine.handle_read_back(now, digest);
                if self.machine.stage() == Stage::Transfer {
                    tracing::warn!(%digest, "the volume reads back wrong, looking for the chunks");
                }
            }
            Err(error) => self.fail_volume(failure::of_storage(End::Target, &error)),
        }
    }

    /// Makes the volume ready on a thread of its own: allocating or zeroing may take long, and so may
    /// looking whether it is the one that the journal speaks of.
    fn prepare(&mut self, geometry: Geometry) {
        let Some(hello) = self.machine.hello().cloned() else {
            return;
        };
        let volume = match std::mem::replace(&mut self.held.volume, Volume::Away) {
            Volume::Ready(sink) => {
                self.held.volume = Volume::Ready(Arc::clone(&sink));
                if sink.size() != geometry.volume_size() {
                    self.machine.fail(resized(sink.size(), &geometry));
                    return;
                }
                if let Some(standing) = self.held.standing.take() {
                    self.go_on(geometry, &hello, sink, standing);
                    return;
                }
                // The session before was cut while the volume was made ready.
                Unprepared::Ready(sink)
            }
            Volume::Claimed(volume) if fits(&volume, &geometry) => Unprepared::Claimed(volume),
            Volume::Claimed(volume) => {
                let error = StorageError::TargetTooSmall {
                    path: self.config.volume.clone(),
                    capacity: volume.capacity().unwrap_or(0),
                    needed: geometry.volume_size(),
                };
                self.held.volume = Volume::Claimed(volume);
                self.machine.fail(failure::of_storage(End::Target, &error));
                return;
            }
            Volume::Away => {
                self.machine
                    .fail(Failure::internal("the target volume is away".to_owned()));
                return;
            }
        };
        let known = self.held.known.clone();
        let work = move || {
            let sink = volume.prepare(&known, &geometry);
            let ready = sink.as_deref().ok();
            let begin = ready.map(|sink| known.begin(geometry, &hello, sink));
            Prepared {
                geometry,
                sink,
                begin,
            }
        };
        let begun = (self.preparing).begin(&self.context.cpu, "target-prepare", work);
        if let Err(failure) = begun {
            self.machine.fail(failure);
        }
    }

    /// A later session: the volume is ready, and what is durable is known.
    fn go_on(
        &mut self,
        geometry: Geometry,
        hello: &Hello,
        sink: Arc<dyn Sink>,
        standing: Standing,
    ) {
        let kept = standing.clone();
        let (resume, holds_more) = (self.held.known.resume, self.held.holds_more);
        let begin = resume::go_on(resume, holds_more, standing, geometry, hello)
            .inspect_err(|_changed| self.held.standing = Some(kept));
        self.start_transfer(geometry, Ok(sink), begin, false);
    }

    fn apply_prepared(&mut self, prepared: Prepared) {
        let Prepared {
            geometry,
            sink,
            begin,
        } = prepared;
        if let Ok(sink) = &sink {
            self.held.volume = Volume::Ready(Arc::clone(sink));
        }
        let begin =
            begin.unwrap_or_else(|| Err(Failure::internal("no volume, no begin".to_owned())));
        self.start_transfer(geometry, sink, begin, true);
    }

    fn start_transfer(
        &mut self,
        geometry: Geometry,
        prepared: Result<Arc<dyn Sink>, Failure>,
        begin: Result<Begin, Failure>,
        is_first: bool,
    ) {
        let started = prepared.and_then(|sink| self.greet(geometry, sink, begin?, is_first));
        if let Err(failure) = started {
            self.machine.fail(failure);
        }
    }

    fn greet(
        &mut self,
        geometry: Geometry,
        sink: Arc<dyn Sink>,
        begin: Begin,
        is_first: bool,
    ) -> Result<(), Failure> {
        let Begin { standing, offer } = begin;
        let chunk_size = geometry.chunk_size().bytes() as usize;
        // What an earlier session still holds counts too.
        let pool = match &self.held.pool {
            Some(pool) if pool.buffer_size() == chunk_size => pool.clone(),
            _ => BufferPool::new(self.config.memory_bytes, chunk_size)
                .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?,
        };
        self.held.pool = Some(pool.clone());
        let (queue, queue_receiver) = async_channel::bounded(pool.buffer_count());
        let resumed_bytes = standing.ledger.watermark().durable_bytes;
        tracing::info!(
            volume = %sink.path().display(),
            bytes = geometry.volume_size(),
            resumed_bytes,
            compares = offer,
            direct = sink.writes_direct(),
            "the target volume is ready"
        );
        // An earlier run, or session, may have written what it could not vouch for.
        let is_fresh = is_first && resumed_bytes == 0 && sink.zeroes_for_free();
        let written_sender = self
            .written_sender
            .clone()
            .ok_or_else(|| Failure::internal("the session is at its end".to_owned()))?;
        let crew = self.crew(Arc::clone(&sink), geometry, queue_receiver, written_sender);
        crew.is_fresh.store(is_fresh, Ordering::Relaxed);
        let is_fresh = Arc::clone(&crew.is_fresh);
        let checked_bytes = Arc::clone(&crew.checked_bytes);
        let jobs = crew.start(self.config.writers, &self.context.cpu)?;
        let token = new_token()?;
        let claims = Arc::new(Claims::of(standing.ledger.written().clone()));
        self.context
            .progress
            .set_volume(geometry.volume_size(), resumed_bytes);
        let standing = Standing {
            remembered: self.held.fence.remembered(),
            ..standing
        };
        let streams = self
            .machine
            .handle_prepared(Instant::now(), token, standing, offer);
        self.transfer = Some(Transfer {
            intake: Intake::new(token, streams),
            geometry,
            sink,
            is_fresh,
            checked_bytes,
            claims,
            pool,
            queue,
            jobs,
        });
        Ok(())
    }

    fn crew(
        &self,
        sink: Arc<dyn Sink>,
        geometry: Geometry,
        queue: async_channel::Receiver<Incoming>,
        written: mpsc::Sender<Written>,
    ) -> Writers {
        Writers {
            sink,
            geometry,
            is_fresh: Arc::default(),
            verify: self.config.verify != Verified::None,
            journal: self.held.journal.clone(),
            effort: Arc::clone(&self.context.progress.effort),
            checked_bytes: Arc::default(),
            queue,
            written,
        }
    }

    fn seal(&mut self) {
        let stats = self.context.stats(&self.agent);
        let unix_seconds = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs());
        self.machine.seal(Instant::now(), unix_seconds, stats);
    }
}

fn fits(volume: &TargetVolume, geometry: &Geometry) -> bool {
    volume
        .capacity()
        .is_none_or(|capacity| capacity >= geometry.volume_size())
}

fn resized(before: u64, geometry: &Geometry) -> Failure {
    let text = format!(
        "the source has {} bytes, an earlier session of this target was for {before}; start the \
         target agent anew",
        geometry.volume_size()
    );
    Failure::new(FailureCode::SourceChanged, text)
}
