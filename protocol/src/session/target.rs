//! The target's end of a session: takes chunks in, decides when to flush, tells what is durable,
//! and writes the receipt only when its own digest equals the source's.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use uuid::Uuid;

use super::{Ledger, SILENCE_MAX, Stage, WATERMARK_INTERVAL};
use crate::digest::{ChunkRefused, Digest};
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::geometry::{ChunkIndex, ChunkRange, Geometry};
use crate::message::{FEATURES, Finish, Hello, Message, TokenText, Watermark, Welcome};
use crate::receipt::{AgentStats, Receipt, Verified};

/// What the target agent has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetAction {
    /// Make the volume ready to take what the geometry says, then call
    /// [`TargetSession::handle_prepared`].
    Prepare(Geometry),
    /// Flush the volume, then call [`TargetSession::handle_flushed`].
    Flush,
    /// All is durable and the digests agree: call [`TargetSession::seal`].
    Seal,
    /// The clone is proven.
    Done(Box<Receipt>),
    /// The session is over.
    Fail(Failure),
}

/// What bounds a session at the target.
#[derive(Clone, Copy, Debug)]
pub struct TargetLimits {
    /// Data connections that a session may have; at least 1.
    pub streams_max: u16,
    /// Written bytes after which a flush is due.
    pub flush_bytes: u64,
    /// Time after which written bytes are flushed, however few.
    pub flush_interval: Duration,
}

impl Default for TargetLimits {
    /// A flush every GiB or 2 s: often enough that little is sent again after a crash, seldom
    /// enough that its cost doesn't show.
    fn default() -> Self {
        Self {
            streams_max: 64,
            flush_bytes: 1 << 30,
            flush_interval: Duration::from_secs(2),
        }
    }
}

/// The target's state machine.
#[derive(Debug)]
pub struct TargetSession {
    clone_id: Uuid,
    agent: String,
    limits: TargetLimits,
    stage: Stage,
    epoch: u64,
    hello: Option<Hello>,
    ledger: Option<Ledger>,
    resumed_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
    finish: Option<Finish>,
    /// Whether no chunk can come any more.
    is_drained: bool,
    messages: VecDeque<Message>,
    actions: VecDeque<TargetAction>,
    started_at: Instant,
    heard_at: Instant,
    /// When the oldest unflushed change was made; making the volume ready counts as one.
    unflushed_since: Option<Instant>,
    told: Watermark,
    told_at: Instant,
}

impl TargetSession {
    /// A session that waits for a `Hello` of `clone_id`. `agent` is this end's name and version.
    #[must_use]
    pub fn new(
        now: Instant,
        clone_id: Uuid,
        epoch: u64,
        agent: String,
        limits: TargetLimits,
    ) -> Self {
        Self {
            clone_id,
            agent,
            limits,
            stage: Stage::Handshake,
            epoch,
            hello: None,
            ledger: None,
            resumed_bytes: 0,
            data_bytes: 0,
            zero_bytes: 0,
            finish: None,
            is_drained: false,
            messages: VecDeque::new(),
            actions: VecDeque::new(),
            started_at: now,
            heard_at: now,
            unflushed_since: None,
            told: Watermark::default(),
            told_at: now,
        }
    }

    /// The next message for the control connection.
    pub fn poll_message(&mut self) -> Option<Message> {
        self.messages.pop_front()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<TargetAction> {
        self.actions.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` when the session is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.stage == Stage::Done {
            return None;
        }
        let silence_at = self.heard_at.checked_add(SILENCE_MAX)?;
        let flush_at = self.flush_at().unwrap_or(silence_at);
        let tell_at = self.tell_at().unwrap_or(silence_at);
        Some(silence_at.min(flush_at).min(tell_at))
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.stage == Stage::Done {
            return;
        }
        if now.saturating_duration_since(self.heard_at) >= SILENCE_MAX {
            let seconds = SILENCE_MAX.as_secs();
            let text = format!("the source agent said nothing for {seconds} s");
            self.end(Failure::new(FailureCode::Silent, text));
            return;
        }
        self.settle(now);
    }

    /// The source said something.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.heard_at = now;
        match (self.stage, message) {
            (Stage::Done, _) => {}
            (_, Message::Error(told)) => self.end(Failure::told_by("source", &told)),
            (Stage::Handshake, Message::Hello(hello)) if self.hello.is_none() => {
                self.handle_hello(now, hello);
            }
            (_, Message::Ping) => self.tell(now),
            (Stage::Transfer, Message::Finish(finish)) => {
                self.stage = Stage::Verify;
                self.finish = Some(finish);
                self.settle(now);
            }
            (stage, other) => {
                let what = other.name();
                self.fail_protocol(format!(
                    "the source sent {what} in the stage {}",
                    stage.label()
                ));
            }
        }
    }

    fn handle_hello(&mut self, now: Instant, hello: Hello) {
        self.started_at = now;
        match self.check_hello(&hello) {
            Ok(geometry) => {
                self.hello = Some(hello);
                self.actions.push_back(TargetAction::Prepare(geometry));
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn check_hello(&self, hello: &Hello) -> Result<Geometry, Failure> {
        if hello.clone_id != self.clone_id {
            let text = format!(
                "the source works on clone {}, this target belongs to clone {}",
                hello.clone_id, self.clone_id
            );
            return Err(Failure::new(FailureCode::WrongClone, text));
        }
        if hello.tree.is_some() {
            let text = "the source brings a tree, and the target is no directory; name a directory";
            return Err(Failure::new(FailureCode::Unsupported, text));
        }
        let unknown = hello
            .required_features
            .iter()
            .find(|name| !FEATURES.contains(&name.as_str()));
        if let Some(feature) = unknown {
            let text =
                format!("the source requires the feature {feature:?}: update the target agent");
            return Err(Failure::new(FailureCode::Unsupported, text));
        }
        if hello.streams == 0 {
            return Err(Failure::new(
                FailureCode::Protocol,
                "the source wants no data connection",
            ));
        }
        Geometry::new(hello.volume_size, hello.chunk_size)
            .map_err(|error| Failure::new(FailureCode::Protocol, error.to_string()))
    }

    /// The volume is ready: greets the source. `ledger` is what is known of an earlier session.
    /// Gives the number of data connections that the source may open.
    pub fn handle_prepared(&mut self, now: Instant, token: SessionToken, ledger: Ledger) -> u16 {
        let Some(hello) = self
            .hello
            .as_ref()
            .filter(|_| self.stage == Stage::Handshake)
        else {
            return 0;
        };
        let streams = hello.streams.min(self.limits.streams_max);
        let welcome = Welcome {
            epoch: self.epoch,
            token: TokenText::new(token),
            chunk_size: ledger.geometry().chunk_size(),
            streams,
            durable: ledger.durable().collect(),
            features: FEATURES.iter().map(ToString::to_string).collect(),
            agent: self.agent.clone(),
            tree: None,
        };
        self.resumed_bytes = ledger.watermark().durable_bytes;
        self.ledger = Some(ledger);
        self.stage = Stage::Transfer;
        self.messages.push_back(Message::Welcome(welcome));
        self.told_at = now;
        self.unflushed_since = Some(now);
        streams
    }

    /// A chunk whose digest was checked was written.
    pub fn handle_chunk(&mut self, now: Instant, index: ChunkIndex, digest: Digest, data_len: u32) {
        let chunks = ChunkRange::one(index);
        self.account(now, chunks, u64::from(data_len), |ledger| {
            ledger.write(index, digest)
        });
    }

    /// Chunks were made zero.
    pub fn handle_zero(&mut self, now: Instant, chunks: ChunkRange) {
        self.account(now, chunks, 0, |ledger| ledger.zero(chunks));
    }

    fn account(
        &mut self,
        now: Instant,
        chunks: ChunkRange,
        data_bytes: u64,
        take: impl FnOnce(&mut Ledger) -> Result<(), ChunkRefused>,
    ) {
        // Chunks are as good a sign of life as messages.
        self.heard_at = now;
        let Some(ledger) = &mut self.ledger else {
            return;
        };
        if let Err(error) = take(ledger) {
            // The bytes are on the volume by now, over what the ledger believes to be there.
            self.ledger = None;
            self.fail_protocol(format!("the source sent {error}"));
            return;
        }
        let bytes = ledger.geometry().bytes_of(chunks).len();
        self.data_bytes = self.data_bytes.saturating_add(data_bytes);
        self.zero_bytes = self
            .zero_bytes
            .saturating_add(bytes.saturating_sub(data_bytes));
        self.unflushed_since.get_or_insert(now);
        self.settle(now);
    }

    /// The flush that [`TargetAction::Flush`] asked for has returned well.
    pub fn handle_flushed(&mut self, now: Instant) {
        let Some(ledger) = self.ledger.as_mut().filter(|ledger| ledger.is_flushing()) else {
            return;
        };
        if let Err(error) = ledger.end_flush() {
            self.fail(Failure::new(
                FailureCode::Internal,
                format!("the ledger holds {error}"),
            ));
            return;
        }
        self.settle(now);
    }

    /// Every data connection that was granted has ended in order, and all that came on them was
    /// written.
    pub fn handle_drained(&mut self, now: Instant) {
        self.is_drained = true;
        self.settle(now);
    }

    /// Decides what follows from the state: flush, tell, compare.
    fn settle(&mut self, now: Instant) {
        if self.stage == Stage::Done {
            return;
        }
        if self.flush_at().is_some_and(|flush_at| flush_at <= now) {
            if let Some(ledger) = &mut self.ledger {
                ledger.begin_flush();
            }
            self.unflushed_since = None;
            self.actions.push_back(TargetAction::Flush);
        }
        if self.tell_at().is_some_and(|tell_at| tell_at <= now) {
            self.tell(now);
        }
        let (Some(ledger), Some(finish)) = (&self.ledger, &self.finish) else {
            return;
        };
        if let Some(index) = ledger.first_missing().filter(|_| self.is_drained) {
            self.fail_protocol(format!("the source finished, and chunk {index} never came"));
            return;
        }
        let is_flushed = self.unflushed_since.is_none() && !ledger.is_flushing();
        if self.stage != Stage::Verify || !ledger.is_durable() || !is_flushed {
            return;
        }
        if self.is_proven() {
            self.actions.push_back(TargetAction::Seal);
        } else {
            let text = format!(
                "the source read a volume of digest {}, the chunks that arrived make another",
                finish.digest
            );
            self.fail(Failure::new(FailureCode::Integrity, text));
        }
    }

    /// When the next flush is due; `None` while one runs or there is nothing to flush.
    fn flush_at(&self) -> Option<Instant> {
        let ledger = self.ledger.as_ref()?;
        let since = self.unflushed_since.filter(|_| !ledger.is_flushing())?;
        let is_last = self.finish.is_some() && ledger.is_written();
        let is_full = ledger.unflushed_bytes() >= self.limits.flush_bytes;
        if is_last || is_full {
            Some(since)
        } else {
            since.checked_add(self.limits.flush_interval)
        }
    }

    /// When the source is to be told of progress; `None` when there is none.
    fn tell_at(&self) -> Option<Instant> {
        let ledger = self.ledger.as_ref()?;
        let is_news = ledger.watermark() != self.told;
        is_news.then(|| self.told_at.checked_add(WATERMARK_INTERVAL))?
    }

    fn tell(&mut self, now: Instant) {
        let watermark = self.watermark();
        self.told = watermark;
        self.told_at = now;
        self.messages.push_back(Message::Watermark(watermark));
    }

    /// Whether all is durable, and its digest is the one that the source computed. The ledger has
    /// a digest only when all is durable.
    fn is_proven(&self) -> bool {
        let own = self.ledger.as_ref().and_then(Ledger::volume_digest);
        let read = self.finish.as_ref().map(|finish| finish.digest);
        own.is_some() && own == read
    }

    /// Writes the receipt, for which [`TargetAction::Seal`] asked, and sends it.
    /// `unix_seconds` is the time of day. Does nothing before the clone is proven.
    pub fn seal(&mut self, now: Instant, unix_seconds: u64, target: AgentStats) {
        if self.stage != Stage::Verify || !self.is_proven() {
            return;
        }
        let (Some(ledger), Some(finish)) = (&self.ledger, self.finish.take()) else {
            return;
        };
        let geometry = ledger.geometry();
        let seconds = now.saturating_duration_since(self.started_at).as_secs_f64();
        let receipt = Receipt {
            receipt_version: Receipt::VERSION,
            clone_id: self.clone_id,
            digest: finish.digest,
            chunk_size: geometry.chunk_size(),
            verified: Verified::Digest,
            logical_bytes: geometry.volume_size(),
            data_bytes: self.data_bytes,
            zero_bytes: self.zero_bytes,
            wire_bytes: finish.sent.wire_bytes,
            resumed_bytes: self.resumed_bytes,
            seconds,
            bytes_per_second: if seconds > 0.0 {
                geometry.volume_size() as f64 / seconds
            } else {
                0.0
            },
            finished_unix_seconds: unix_seconds,
            source: finish.source,
            target,
            tree: None,
        };
        self.stage = Stage::Done;
        self.messages
            .push_back(Message::Receipt(Box::new(receipt.clone())));
        self.actions
            .push_back(TargetAction::Done(Box::new(receipt)));
    }

    fn fail_protocol(&mut self, text: String) {
        self.fail(Failure::new(FailureCode::Protocol, text));
    }

    /// This end failed: tells the source, and ends.
    pub fn fail(&mut self, failure: Failure) {
        if self.stage != Stage::Done {
            self.messages.push_back(Message::Error(failure.clone()));
            self.end(failure);
        }
    }

    /// The session is over, and the source knows or can't be told.
    pub fn end(&mut self, failure: Failure) {
        if self.stage != Stage::Done {
            self.stage = Stage::Done;
            self.actions.push_back(TargetAction::Fail(failure));
        }
    }

    /// What is known of the volume after the session, for the next one.
    #[must_use]
    pub fn into_ledger(self) -> Option<Ledger> {
        self.ledger.map(Ledger::into_durable)
    }

    /// Where the session is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// How far the volume is durable.
    #[must_use]
    pub fn watermark(&self) -> Watermark {
        self.ledger
            .as_ref()
            .map(Ledger::watermark)
            .unwrap_or_default()
    }

    /// How the volume is cut, once it is agreed.
    #[must_use]
    pub fn geometry(&self) -> Option<Geometry> {
        self.ledger.as_ref().map(Ledger::geometry)
    }

    /// Bytes in blocks that held data, as taken in this session.
    #[must_use]
    pub const fn data_bytes(&self) -> u64 {
        self.data_bytes
    }

    /// Bytes that were zero, as taken in this session.
    #[must_use]
    pub const fn zero_bytes(&self) -> u64 {
        self.zero_bytes
    }
}
