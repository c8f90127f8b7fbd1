//! The target's end of a session: takes chunks in, decides when to flush, tells what is durable,
//! and writes the receipt only when its own digest equals the source's.

use std::time::{Duration, Instant};

use uuid::Uuid;

use super::course::{Course, check_hello};
use super::streams::Streams;
use super::{Ledger, Stage, Standing, WATERMARK_INTERVAL};
use crate::digest::{ChunkRefused, Digest};
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::geometry::{ChunkIndex, ChunkRange, Geometry};
use crate::journal::{Checkpoint, GENERATION_LEN_MAX};
use crate::message::{FEATURES, Finish, Hello, Message, TokenText, Want, Watermark, Welcome};
use crate::range_set::ChunkSet;
use crate::receipt::{AgentStats, Receipt, Verified, limit_of_stats};
use crate::waits::Waits;

/// What the target agent has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum TargetAction {
    /// Make the volume ready to take what the geometry says, then call
    /// [`TargetSession::handle_prepared`].
    Prepare(Geometry),
    /// Flush the volume, then call [`TargetSession::handle_flushed`].
    Flush,
    /// Append this to the journal and make it durable, then call
    /// [`TargetSession::handle_journaled`].
    Journal(Box<Checkpoint>),
    /// Read the whole volume back from the storage, then call
    /// [`TargetSession::handle_read_back`].
    ReadBack,
    /// Take in the chunks of another round: those that the ledger does not hold. The data
    /// connections of the last one count no more; [`TargetSession::handle_drained`] is to be called
    /// when those of this round have come and ended.
    NextRound,
    /// All is durable and the digests agree: call [`TargetSession::seal`].
    Seal,
    /// The clone is proven.
    Done(Box<Receipt>),
    /// The session is over.
    Fail(Failure),
}

impl From<Failure> for TargetAction {
    fn from(failure: Failure) -> Self {
        Self::Fail(failure)
    }
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
    /// Whether there is a journal: then only what it has a record of is durable.
    pub has_journal: bool,
    /// How the content is verified.
    pub verify: Verified,
}

impl Default for TargetLimits {
    /// A flush every GiB or 2 s: often enough that little is sent again after a crash, seldom
    /// enough that its cost doesn't show.
    fn default() -> Self {
        Self {
            streams_max: 64,
            flush_bytes: 1 << 30,
            flush_interval: Duration::from_secs(2),
            has_journal: false,
            verify: Verified::Digest,
        }
    }
}

/// The target's state machine.
#[derive(Debug)]
pub struct TargetSession {
    clone_id: Uuid,
    agent: String,
    limits: TargetLimits,
    course: Course<TargetAction>,
    epoch: u64,
    hello: Option<Hello>,
    standing: Option<Standing>,
    /// What was granted.
    streams: Streams,
    /// The answer to the hello, until the journal says what it tells.
    welcome: Option<Welcome>,
    resumed_bytes: u64,
    data_bytes: u64,
    zero_bytes: u64,
    /// What this round must bring; offers that differ bring nothing.
    round: Round,
    finish: Option<Finish>,
    /// Whether no chunk of this round can come any more.
    is_drained: bool,
    /// How far the volume is durable, as far as it may be told: with a journal, the record is
    /// there.
    durable: Watermark,
    /// What may be told once the record that is being written is durable.
    journaling: Option<Watermark>,
    reading_back: ReadBack,
    repairs: u32,
    /// When the oldest unflushed change was made; making the volume ready counts as one.
    unflushed_since: Option<Instant>,
    /// Where this end's time went, as it is told.
    waits: Option<Waits>,
    /// Where an observer asked for one.
    bandwidth_limit: Option<u64>,
    told: Watermark,
    told_at: Instant,
}

/// What a round brings.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Round {
    /// Every chunk that was not durable.
    Send,
    /// The digest of every chunk that was not durable; those that differ are wanted next.
    Offer,
    /// These chunks.
    Wanted(ChunkSet),
}

/// How far the last verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReadBack {
    NotYet,
    Running,
    /// What was read is what was written.
    Well,
}

/// Ranges of one [`Want`]: bounds the message. More are asked for in the next round.
const WANT_RANGES_MAX: usize = 4096;

/// How often a volume that reads back wrong is repaired. Storage that loses what it acknowledged
/// three times in a row will do so again.
const REPAIRS_MAX: u32 = 3;

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
            course: Course::new(now, "source"),
            clone_id,
            agent,
            limits,
            epoch,
            hello: None,
            standing: None,
            streams: Streams::default(),
            welcome: None,
            resumed_bytes: 0,
            data_bytes: 0,
            zero_bytes: 0,
            round: Round::Send,
            finish: None,
            is_drained: false,
            durable: Watermark::default(),
            journaling: None,
            reading_back: ReadBack::NotYet,
            repairs: 0,
            unflushed_since: None,
            waits: None,
            bandwidth_limit: None,
            told: Watermark::default(),
            told_at: now,
        }
    }

    /// The next message for the control connection.
    pub fn poll_message(&mut self) -> Option<Message> {
        self.course.poll_message()
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<TargetAction> {
        self.course.poll_action()
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` when the session is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let silence_at = self.course.silent_at()?;
        let flush_at = self.flush_at().unwrap_or(silence_at);
        let tell_at = self.tell_at().unwrap_or(silence_at);
        Some(silence_at.min(flush_at).min(tell_at))
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.course.goes_on(now) {
            self.settle(now);
        }
    }

    /// The source said something.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.course.heard(now);
        match (self.course.stage, message) {
            (Stage::Done, _) => {}
            (_, Message::Error(told)) => self.course.end_as_told(&told),
            (Stage::Handshake, Message::Hello(hello)) if self.hello.is_none() => {
                self.handle_hello(hello);
            }
            (_, Message::Ping) => self.tell(now),
            (Stage::Transfer, Message::Finish(finish)) => match self.streams.finish(&finish) {
                Ok(()) => {
                    self.course.stage = Stage::Verify;
                    self.finish = Some(finish);
                    self.settle(now);
                }
                Err(failure) => self.fail(failure),
            },
            (_, other) => self.course.fail_unexpected(&other),
        }
    }

    fn handle_hello(&mut self, hello: Hello) {
        match self.check_hello(&hello) {
            Ok(geometry) => {
                self.hello = Some(hello);
                self.course.act(TargetAction::Prepare(geometry));
            }
            Err(failure) => self.fail(failure),
        }
    }

    /// Checks that a session for what `hello` wants can be.
    ///
    /// # Errors
    /// Why it can't.
    pub fn check_hello(&self, hello: &Hello) -> Result<Geometry, Failure> {
        let mode = match hello.tree {
            None => Ok(()),
            Some(_) => {
                Err("the source brings a tree, and the target is no directory; name a directory")
            }
        };
        check_hello(hello, self.clone_id, mode, FEATURES)?;
        if hello.generation.len() > GENERATION_LEN_MAX {
            let text = format!(
                "the source's generation has {} bytes, more than {GENERATION_LEN_MAX}",
                hello.generation.len()
            );
            return Err(Failure::new(FailureCode::Protocol, text));
        }
        Geometry::new(hello.volume_size, hello.chunk_size)
            .map_err(|error| Failure::new(FailureCode::Protocol, error.to_string()))
    }

    /// The volume is ready: greets the source. `standing` is what is known of it. With `offer`, the
    /// source offers its chunks by digest first. Gives the number of data connections that the
    /// source may open in each round.
    ///
    /// With a journal, its record comes first, even of a volume of which nothing is known. What the
    /// source is told may have come from elsewhere, or from a session that was cut before its last
    /// record. And a record of an earlier source must not vouch for chunks that this one is about
    /// to overwrite.
    pub fn handle_prepared(
        &mut self,
        now: Instant,
        token: SessionToken,
        standing: Standing,
        offer: bool,
    ) -> u16 {
        let Some(hello) = self
            .hello
            .as_ref()
            .filter(|_| self.course.stage == Stage::Handshake && self.standing.is_none())
        else {
            return 0;
        };
        let streams = Streams::grant(hello, self.limits.streams_max);
        let ledger = &standing.ledger;
        let welcome = Welcome {
            epoch: self.epoch,
            token: TokenText::new(token),
            chunk_size: ledger.geometry().chunk_size(),
            streams: streams.first,
            streams_max: streams.most_told(hello),
            durable: ledger.durable().collect(),
            offer,
            compare: false,
            features: hello.codecs().features().collect(),
            agent: self.agent.clone(),
            tree: None,
        };
        self.resumed_bytes = ledger.watermark().durable_bytes;
        self.round = if offer { Round::Offer } else { Round::Send };
        self.standing = Some(standing);
        self.welcome = Some(welcome);
        self.streams = streams;
        self.journal(now);
        streams.most
    }

    fn greet(&mut self, now: Instant, welcome: Welcome) {
        self.course.stage = Stage::Transfer;
        self.course.say(Message::Welcome(welcome));
        self.told_at = now;
        self.unflushed_since = Some(now);
    }

    /// A chunk whose digest was checked was written.
    pub fn handle_chunk(&mut self, now: Instant, index: ChunkIndex, digest: Digest, data_len: u32) {
        let is_repair = self.repairs > 0;
        let taken = self.account(now, ChunkRange::one(index), data_len, |ledger| {
            ledger.write(index, digest, data_len)
        });
        if let Some((standing, bytes)) = taken {
            standing.taken_bytes = standing.taken_bytes.saturating_add(u64::from(data_len));
            if is_repair {
                standing.repaired_bytes = standing.repaired_bytes.saturating_add(bytes);
            }
        }
        self.settle(now);
    }

    /// A chunk was offered, and the volume holds it already.
    pub fn handle_match(&mut self, now: Instant, index: ChunkIndex, digest: Digest, data_len: u32) {
        self.account(now, ChunkRange::one(index), data_len, |ledger| {
            ledger.keep(index, digest, data_len)
        });
        self.settle(now);
    }

    /// Chunks were made zero.
    pub fn handle_zero(&mut self, now: Instant, chunks: ChunkRange) {
        self.account(now, chunks, 0, |ledger| ledger.zero(chunks));
        self.settle(now);
    }

    /// Gives the standing, and the bytes of `chunks`, when the ledger took them.
    fn account(
        &mut self,
        now: Instant,
        chunks: ChunkRange,
        data_len: u32,
        take: impl FnOnce(&mut Ledger) -> Result<(), ChunkRefused>,
    ) -> Option<(&mut Standing, u64)> {
        // Chunks are as good a sign of life as messages.
        self.course.heard(now);
        let taken = take(&mut self.standing.as_mut()?.ledger);
        if let Err(error) = taken {
            // The bytes are on the volume by now, over what the ledger believes to be there.
            self.standing = None;
            self.course
                .fail_protocol(format!("the source sent {error}"));
            return None;
        }
        let standing = self.standing.as_mut()?;
        let bytes = standing.ledger.geometry().bytes_of(chunks).len();
        let data_bytes = u64::from(data_len);
        self.data_bytes = self.data_bytes.saturating_add(data_bytes);
        self.zero_bytes = self
            .zero_bytes
            .saturating_add(bytes.saturating_sub(data_bytes));
        self.unflushed_since.get_or_insert(now);
        Some((standing, bytes))
    }

    /// The flush that [`TargetAction::Flush`] asked for has returned well.
    pub fn handle_flushed(&mut self, now: Instant) {
        let Some(standing) = self
            .standing
            .as_mut()
            .filter(|standing| standing.ledger.is_flushing())
        else {
            return;
        };
        match standing.ledger.end_flush() {
            // In a repair, what matches was sent in this clone.
            Ok(_) if self.repairs > 0 => {}
            Ok(bytes) => standing.matched_bytes = standing.matched_bytes.saturating_add(bytes),
            Err(error) => {
                let text = format!("the ledger holds {error}");
                self.fail(Failure::internal(text));
                return;
            }
        }
        self.journal(now);
    }

    /// Has the journal say what is durable. Only then it is.
    fn journal(&mut self, now: Instant) {
        let Some(standing) = &self.standing else {
            return;
        };
        if !self.limits.has_journal {
            self.acknowledge(now, standing.ledger.watermark());
        } else if self.course.stage != Stage::Done {
            let checkpoint = standing.checkpoint(self.clone_id, self.epoch);
            self.journaling = Some(standing.ledger.watermark_of(&checkpoint));
            self.course.act(TargetAction::Journal(Box::new(checkpoint)));
        }
    }

    /// The record that [`TargetAction::Journal`] asked for is durable.
    pub fn handle_journaled(&mut self, now: Instant) {
        if let Some(durable) = self.journaling.take() {
            self.acknowledge(now, durable);
        }
    }

    fn acknowledge(&mut self, now: Instant, durable: Watermark) {
        // A repair starts its books anew, but what was told is not taken back.
        if durable.durable_bytes >= self.durable.durable_bytes {
            self.durable = Watermark {
                checked_bytes: self.durable.checked_bytes,
                ..durable
            };
        }
        if self.course.stage == Stage::Handshake
            && let Some(welcome) = self.welcome.take()
        {
            self.greet(now, welcome);
        }
        self.settle(now);
    }

    /// The volume was read so far, to compare or verify it; `bytes` since the session began.
    pub const fn set_checked(&mut self, bytes: u64) {
        self.durable.checked_bytes = bytes;
    }

    /// This end's time went there so far.
    pub const fn set_waits(&mut self, waits: Waits) {
        self.waits = Some(waits);
    }

    /// What the source may send each second, in bytes, 0 for no limit: told with what is told next, where
    /// it is known.
    pub const fn set_bandwidth_limit(&mut self, limit: Option<u64>) {
        self.bandwidth_limit = limit;
    }

    /// How many data connections the round had, once the source has told.
    #[must_use]
    pub fn connections_due(&self) -> Option<u16> {
        self.finish.as_ref().map(|_| self.streams.opened)
    }

    /// Every data connection of the round ([`Self::connections_due`]) has ended in order, and all that
    /// came on them was written or compared.
    pub fn handle_drained(&mut self, now: Instant) {
        self.is_drained = true;
        self.settle(now);
    }

    /// The whole volume was read back: its digest is this.
    pub fn handle_read_back(&mut self, now: Instant, digest: Digest) {
        if self.course.stage != Stage::Verify || self.reading_back != ReadBack::Running {
            return;
        }
        let (Some(finish), Some(standing)) = (&self.finish, &mut self.standing) else {
            return;
        };
        if digest == finish.digest {
            self.reading_back = ReadBack::Well;
            self.settle(now);
            return;
        }
        if self.repairs >= REPAIRS_MAX {
            let text = format!(
                "the volume was repaired {REPAIRS_MAX} times and still reads back as digest {digest} \
                 where {} was written: the target's storage loses writes; take other storage",
                finish.digest
            );
            self.fail(Failure::new(FailureCode::Integrity, text));
            return;
        }
        // Which chunks are wrong shows when the source offers them all again.
        self.repairs = self.repairs.saturating_add(1);
        self.reading_back = ReadBack::NotYet;
        let geometry = standing.ledger.geometry();
        standing.ledger = Ledger::new(geometry);
        let mut all = ChunkSet::default();
        all.insert(geometry.chunks());
        self.want(now, Round::Offer, all);
        // The journal must not go on to vouch for what is wrong.
        self.journal(now);
    }

    fn want(&mut self, now: Instant, round: Round, chunks: ChunkSet) {
        let offer = round == Round::Offer;
        self.round = round;
        self.is_drained = false;
        self.finish = None;
        self.course.stage = Stage::Transfer;
        self.unflushed_since.get_or_insert(now);
        self.course.act(TargetAction::NextRound);
        self.course.say(Message::Want(Want { chunks, offer }));
    }

    /// Decides what follows from the state: flush, tell, compare.
    fn settle(&mut self, now: Instant) {
        if self.course.stage == Stage::Done {
            return;
        }
        if self.flush_at().is_some_and(|flush_at| flush_at <= now) {
            if let Some(standing) = &mut self.standing {
                standing.ledger.begin_flush();
            }
            self.unflushed_since = None;
            self.course.act(TargetAction::Flush);
        }
        if self.tell_at().is_some_and(|tell_at| tell_at <= now) {
            self.tell(now);
        }
        if self.course.stage == Stage::Verify && self.is_drained {
            self.end_round(now);
        }
        if self.course.stage == Stage::Verify {
            self.prove();
        }
    }

    /// The round has ended: what it should have brought is there, or is wanted.
    fn end_round(&mut self, now: Instant) {
        let Some(standing) = &self.standing else {
            return;
        };
        let ledger = &standing.ledger;
        if ledger.is_written() {
            return;
        }
        let missing = ledger.written().complement(ledger.geometry().chunks());
        let due = match &self.round {
            Round::Send => missing.ranges().next(),
            Round::Offer => None,
            Round::Wanted(wanted) => wanted
                .ranges()
                .find_map(|chunks| missing.intersection(chunks)),
        };
        if let Some(chunks) = due {
            let index = chunks.start;
            self.course
                .fail_protocol(format!("the source finished, and chunk {index} never came"));
            return;
        }
        let wanted = missing.first_ranges(WANT_RANGES_MAX);
        self.want(now, Round::Wanted(wanted.clone()), wanted);
    }

    /// All is durable: compares the digests, and has the volume read back if that is wanted.
    fn prove(&mut self) {
        let (Some(standing), Some(finish)) = (&self.standing, &self.finish) else {
            return;
        };
        let ledger = &standing.ledger;
        let is_flushed =
            self.unflushed_since.is_none() && !ledger.is_flushing() && self.journaling.is_none();
        if !ledger.is_durable() || !is_flushed {
            return;
        }
        if !self.is_proven() {
            let text = format!(
                "the source read a volume of digest {}, the chunks that arrived make another; start \
                 anew, or compare what is there (--resume digest)",
                finish.digest
            );
            self.fail(Failure::new(FailureCode::Integrity, text));
            return;
        }
        match self.reading_back {
            // A repair is a round of its own: the one before it has to be over.
            ReadBack::NotYet if self.limits.verify == Verified::Readback => {
                if self.is_drained {
                    self.reading_back = ReadBack::Running;
                    self.course.act(TargetAction::ReadBack);
                }
            }
            ReadBack::Running => {}
            ReadBack::NotYet | ReadBack::Well => self.course.act(TargetAction::Seal),
        }
    }

    /// When the next flush is due; `None` while one runs or there is nothing to flush.
    fn flush_at(&self) -> Option<Instant> {
        let ledger = &self.standing.as_ref()?.ledger;
        let is_idle = !ledger.is_flushing() && self.journaling.is_none();
        let since = self.unflushed_since.filter(|_| is_idle)?;
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
        let is_news = self.standing.is_some() && self.durable != self.told;
        is_news.then(|| self.told_at.checked_add(WATERMARK_INTERVAL))?
    }

    fn tell(&mut self, now: Instant) {
        self.told = self.durable;
        self.told_at = now;
        self.course.say(Message::Watermark(Watermark {
            waits: self.waits,
            bandwidth_limit: self.bandwidth_limit,
            ..self.durable
        }));
    }

    /// Whether all is durable, and its digest is the one that the source computed. The ledger has
    /// a digest only when all is durable.
    fn is_proven(&self) -> bool {
        let own = self
            .standing
            .as_ref()
            .and_then(|standing| standing.ledger.volume_digest());
        let read = self.finish.as_ref().map(|finish| finish.digest);
        own.is_some() && own == read
    }

    /// Writes the receipt, for which [`TargetAction::Seal`] asked, and sends it.
    /// `unix_seconds` is the time of day. Does nothing before the clone is proven.
    pub fn seal(&mut self, now: Instant, unix_seconds: u64, target: AgentStats) {
        if self.course.stage != Stage::Verify || !self.is_proven() {
            return;
        }
        let (Some(standing), Some(finish)) = (&self.standing, self.finish.take()) else {
            return;
        };
        let geometry = standing.ledger.geometry();
        let seconds = now
            .saturating_duration_since(standing.started_at)
            .as_secs_f64();
        let logical_bytes = geometry.volume_size();
        let data_bytes = standing.ledger.data_bytes();
        // Either end may have started anew and forgotten what it counted.
        let sent_bytes = finish.sent.data_bytes.max(standing.taken_bytes);
        // A repair that was cut is finished by offering all once more: what had matched before
        // matches again.
        let matched_bytes = standing.matched_bytes.min(data_bytes);
        let needed_bytes = data_bytes.saturating_sub(matched_bytes);
        let receipt = Receipt {
            receipt_version: Receipt::VERSION,
            clone_id: self.clone_id,
            digest: finish.digest,
            chunk_size: geometry.chunk_size(),
            verified: self.limits.verify,
            logical_bytes,
            data_bytes,
            zero_bytes: logical_bytes.saturating_sub(data_bytes),
            wire_bytes: finish.sent.wire_bytes,
            resumed_bytes: self.resumed_bytes,
            sent_bytes,
            resent_bytes: sent_bytes.saturating_sub(needed_bytes),
            matched_bytes,
            repaired_bytes: standing.repaired_bytes,
            sessions: self.epoch,
            seconds,
            bytes_per_second: if seconds > 0.0 {
                logical_bytes as f64 / seconds
            } else {
                0.0
            },
            finished_unix_seconds: unix_seconds,
            limit: limit_of_stats(&finish.source, &target),
            source: *finish.source,
            target,
            tree: None,
        };
        self.course.say(Message::Receipt(Box::new(receipt.clone())));
        self.course.finish(TargetAction::Done(Box::new(receipt)));
    }

    /// This end failed: tells the source, and ends.
    pub fn fail(&mut self, failure: Failure) {
        self.course.fail(failure);
    }

    /// The session is over, and the source knows or can't be told.
    pub fn end(&mut self, failure: Failure) {
        self.course.end(failure);
    }

    /// The session has ended, and its writes too: begins to make durable what they wrote. Says
    /// whether there is anything.
    pub fn begin_last_flush(&mut self) -> bool {
        let Some(standing) = &mut self.standing else {
            return false;
        };
        // A flush that ended meanwhile still lacks its record.
        let is_due = standing.ledger.unflushed_bytes() > 0 || self.limits.has_journal;
        if standing.ledger.is_flushing() || !is_due {
            return false;
        }
        standing.ledger.begin_flush();
        true
    }

    /// What [`Self::begin_last_flush`] began has ended well. Gives the record for the journal, if
    /// there is one.
    pub fn end_last_flush(&mut self) -> Option<Checkpoint> {
        let standing = self.standing.as_mut()?;
        if standing.ledger.end_flush().is_err() {
            // Taken in twice: nothing is known for sure.
            self.standing = None;
            return None;
        }
        self.checkpoint().filter(|_| self.limits.has_journal)
    }

    /// What is durable, for a journal or another run of the agent.
    #[must_use]
    pub fn checkpoint(&self) -> Option<Checkpoint> {
        let standing = self.standing.as_ref()?;
        Some(standing.checkpoint(self.clone_id, self.epoch))
    }

    /// What is known of the volume after the session, for the next one; `None` when nothing is.
    #[must_use]
    pub fn into_standing(self) -> Option<Standing> {
        self.standing.map(|standing| Standing {
            ledger: standing.ledger.into_durable(),
            ..standing
        })
    }

    /// Where the session is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.course.stage
    }

    /// What is known of the volume now.
    #[must_use]
    pub const fn standing(&self) -> Option<&Standing> {
        self.standing.as_ref()
    }

    /// Whether the volume is being compared, or repaired: it holds more than the ledger knows.
    #[must_use]
    pub const fn is_comparing(&self) -> bool {
        self.repairs > 0 || !matches!(self.round, Round::Send)
    }

    /// What the source said first.
    #[must_use]
    pub const fn hello(&self) -> Option<&Hello> {
        self.hello.as_ref()
    }

    /// How far the volume is durable.
    #[must_use]
    pub const fn watermark(&self) -> Watermark {
        self.durable
    }

    /// What may come in this round, as the ledger has it: what is written may not.
    #[must_use]
    pub fn written(&self) -> Option<&ChunkSet> {
        self.standing
            .as_ref()
            .map(|standing| standing.ledger.written())
    }

    /// How the volume is cut, once it is agreed.
    #[must_use]
    pub fn geometry(&self) -> Option<Geometry> {
        self.standing
            .as_ref()
            .map(|standing| standing.ledger.geometry())
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
