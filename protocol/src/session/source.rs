//! The source's end of a session: says what there is to clone, keeps the digest of what was sent,
//! and believes only a receipt.

use std::time::Instant;

use super::Stage;
use super::course::{Course, Pulse};
use super::streams::Streams;
use crate::compression::Codecs;
use crate::digest::{ChunkRefused, Digest, DigestTree};
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::geometry::{ChunkIndex, ChunkRange, Geometry};
use crate::message::{Finish, Hello, Message, Sent, Want, Watermark, Welcome};
use crate::range_set::ChunkSet;
use crate::receipt::{AgentStats, Receipt};

/// What the source agent has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceAction {
    /// Open data connections, and send or offer what the target lacks.
    Transfer(Transfer),
    /// The clone is proven.
    Done(Box<Receipt>),
    /// The session is over.
    Fail(Failure),
}

impl From<Failure> for SourceAction {
    fn from(failure: Failure) -> Self {
        Self::Fail(failure)
    }
}

/// A round of a session: what to send, and how. Its data connections end with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// How the volume is cut.
    pub geometry: Geometry,
    /// What data connections show.
    pub token: SessionToken,
    /// How many data connections to open.
    pub streams: u16,
    /// How many the round may have, each of which [`SourceSession::handle_joined`] numbers.
    pub streams_max: u16,
    /// Chunks that need not be sent.
    pub skip: ChunkSet,
    /// Whether chunks are offered by their digest, instead of sent.
    pub offer: bool,
    /// How payloads may be compressed.
    pub codecs: Codecs,
}

/// The source's state machine.
#[derive(Debug)]
pub struct SourceSession {
    hello: Hello,
    course: Course<SourceAction>,
    /// From the welcome on.
    agreed: Option<Agreed>,
    /// In the first round, every chunk is seen once, and its digest goes into the tree.
    is_first_round: bool,
    sent: Sent,
    resumed_bytes: u64,
    watermark: Watermark,
    pulse: Pulse,
}

/// What the ends agreed on, and what was read since.
#[derive(Debug)]
struct Agreed {
    geometry: Geometry,
    tree: DigestTree,
    token: SessionToken,
    streams: Streams,
    codecs: Codecs,
}

impl SourceSession {
    /// A session that says `hello` first. `sent` is what this run of the agent sent in earlier
    /// sessions.
    #[must_use]
    pub fn new(now: Instant, hello: Hello, sent: Sent) -> Self {
        let mut course = Course::new(now, "target");
        course.say(Message::Hello(hello.clone()));
        Self {
            course,
            agreed: None,
            is_first_round: true,
            sent,
            resumed_bytes: 0,
            watermark: Watermark::default(),
            pulse: Pulse::new(now),
            hello,
        }
    }

    /// The next message for the control connection.
    pub fn poll_message(&mut self, now: Instant) -> Option<Message> {
        let message = self.course.poll_message()?;
        self.pulse.said(now);
        Some(message)
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<SourceAction> {
        self.course.poll_action()
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` when the session is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let ping_at = self.pulse.due_at()?;
        Some(self.course.silent_at()?.min(ping_at))
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.course.goes_on(now) && self.pulse.is_due(now) {
            self.pulse.said(now);
            self.course.say(Message::Ping);
        }
    }

    /// The target said something.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.course.heard(now);
        match (self.course.stage, message) {
            (Stage::Done, _) => {}
            (_, Message::Error(told)) => self.course.end_as_told(&told),
            (Stage::Handshake, Message::Welcome(welcome)) => self.handle_welcome(&welcome),
            // The target doesn't know yet how far it is.
            (Stage::Handshake, Message::Watermark(_)) => {}
            (_, Message::Watermark(watermark)) => self.watermark = watermark,
            (Stage::Verify, Message::Want(want)) => self.handle_want(&want),
            (Stage::Verify, Message::Receipt(receipt)) => self.handle_receipt(receipt),
            (_, other) => self.course.fail_unexpected(&other),
        }
    }

    fn handle_welcome(&mut self, welcome: &Welcome) {
        match self.agree(welcome) {
            Ok(transfer) => {
                self.course.stage = Stage::Transfer;
                self.course.act(SourceAction::Transfer(transfer));
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn agree(&mut self, welcome: &Welcome) -> Result<Transfer, Failure> {
        let protocol = |text: String| Failure::new(FailureCode::Protocol, text);
        let streams = Streams::granted(&self.hello, welcome)?;
        if welcome.chunk_size != self.hello.chunk_size {
            // This version offers one size; the answer leaves room for a choice.
            let text = format!(
                "the target chose a chunk size of {}",
                welcome.chunk_size.bytes()
            );
            return Err(protocol(text));
        }
        let geometry = Geometry::new(self.hello.volume_size, welcome.chunk_size)
            .map_err(|error| Failure::new(FailureCode::Usage, error.to_string()))?;
        let mut tree = DigestTree::new(geometry);
        let mut durable = ChunkSet::default();
        for subtree in &welcome.durable {
            tree.insert_subtree(*subtree)
                .map_err(|error| protocol(format!("the target's durable set: {error}")))?;
            durable.insert(subtree.chunks(&geometry));
        }
        self.resumed_bytes = durable
            .ranges()
            .map(|chunks| geometry.bytes_of(chunks).len())
            .sum();
        self.watermark = Watermark {
            watermark: durable.watermark(),
            durable_bytes: self.resumed_bytes,
            ..Watermark::default()
        };
        let agreed = self.agreed.insert(Agreed {
            geometry,
            tree,
            token: welcome.token.token(),
            streams,
            codecs: self.hello.codecs().and(Codecs::among(&welcome.features)),
        });
        Ok(agreed.round(durable, welcome.offer))
    }

    /// The target needs more: another round.
    fn handle_want(&mut self, want: &Want) {
        let Some(agreed) = &mut self.agreed else {
            return;
        };
        let is_within = want
            .chunks
            .ranges()
            .all(|chunks| agreed.geometry.holds(chunks));
        if want.chunks.is_empty() || !is_within {
            let text = "the target wants chunks that the volume does not have";
            self.fail(Failure::new(FailureCode::Protocol, text));
            return;
        }
        let skip = want.chunks.complement(agreed.geometry.chunks());
        agreed.streams.next_round();
        let round = agreed.round(skip, want.offer);
        self.is_first_round = false;
        self.course.stage = Stage::Transfer;
        self.course.act(SourceAction::Transfer(round));
    }

    /// One more data connection was opened for the round: gives its number, where the round may still
    /// have it.
    pub fn handle_joined(&mut self) -> Option<u16> {
        let agreed = self.agreed.as_mut();
        let agreed = agreed.filter(|_| self.course.stage == Stage::Transfer)?;
        agreed.streams.open()
    }

    /// A chunk was read, and handed to the transport.
    pub fn handle_chunk(&mut self, index: ChunkIndex, digest: Digest, data_len: u32) {
        let chunks = ChunkRange::one(index);
        let Some(geometry) = self.fold(|tree| tree.insert(index, digest)) else {
            return;
        };
        let data_bytes = u64::from(data_len);
        self.sent.data_bytes = self.sent.data_bytes.saturating_add(data_bytes);
        let zero_bytes = geometry.bytes_of(chunks).len().saturating_sub(data_bytes);
        self.sent.zero_bytes = self.sent.zero_bytes.saturating_add(zero_bytes);
    }

    /// A chunk was read, and its digest handed to the transport.
    pub fn handle_offer(&mut self, index: ChunkIndex, digest: Digest) {
        let _geometry = self.fold(|tree| tree.insert(index, digest));
    }

    /// Chunks are zero, and the target was told so.
    pub fn handle_zero(&mut self, chunks: ChunkRange) {
        let Some(geometry) = self.fold(|tree| tree.insert_zero(chunks)) else {
            return;
        };
        let zero_bytes = geometry.bytes_of(chunks).len();
        self.sent.zero_bytes = self.sent.zero_bytes.saturating_add(zero_bytes);
    }

    /// Folds what was read into the volume's digest, unless an earlier round did.
    fn fold(
        &mut self,
        insert: impl FnOnce(&mut DigestTree) -> Result<(), ChunkRefused>,
    ) -> Option<Geometry> {
        let agreed = self.agreed.as_mut()?;
        if self.is_first_round
            && let Err(error) = insert(&mut agreed.tree)
        {
            let text = format!("while reading: {error}");
            self.fail(Failure::internal(text));
            return None;
        }
        Some(agreed.geometry)
    }

    fn volume_digest(&self) -> Option<Digest> {
        self.agreed
            .as_ref()
            .and_then(|agreed| agreed.tree.volume_digest())
    }

    /// Every data connection of the round has ended in order, with `wire_bytes` sent on all of them
    /// together.
    pub fn handle_drained(&mut self, wire_bytes: u64, source: AgentStats) {
        if self.course.stage != Stage::Transfer {
            return;
        }
        self.sent.wire_bytes = self.sent.wire_bytes.saturating_add(wire_bytes);
        let connections = self
            .agreed
            .as_ref()
            .and_then(|agreed| agreed.streams.told());
        if let Some(digest) = self.volume_digest() {
            self.course.stage = Stage::Verify;
            self.course.say(Message::Finish(Finish {
                digest,
                connections,
                sent: self.sent,
                source: Box::new(source),
                tree: None,
            }));
        } else {
            let text = "not every chunk was read before the connections ended";
            self.fail(Failure::internal(text));
        }
    }

    fn handle_receipt(&mut self, receipt: Box<Receipt>) {
        if Some(receipt.digest) != self.volume_digest() || receipt.clone_id != self.hello.clone_id {
            let text = format!("the target's receipt is for digest {}", receipt.digest);
            self.fail(Failure::new(FailureCode::Integrity, text));
            return;
        }
        self.course.finish(SourceAction::Done(receipt));
    }

    /// This end failed: tells the target, and ends.
    pub fn fail(&mut self, failure: Failure) {
        self.course.fail(failure);
    }

    /// The session is over, and the target knows or can't be told.
    pub fn end(&mut self, failure: Failure) {
        self.course.end(failure);
    }

    /// Where the session is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.course.stage
    }

    /// What the target said to be durable.
    #[must_use]
    pub const fn watermark(&self) -> Watermark {
        self.watermark
    }

    /// What this run of the agent has sent, in all its sessions.
    #[must_use]
    pub const fn sent(&self) -> Sent {
        self.sent
    }

    /// Bytes that were durable before this session.
    #[must_use]
    pub const fn resumed_bytes(&self) -> u64 {
        self.resumed_bytes
    }
}

impl Agreed {
    fn round(&self, skip: ChunkSet, offer: bool) -> Transfer {
        Transfer {
            geometry: self.geometry,
            token: self.token,
            streams: self.streams.first,
            streams_max: self.streams.most,
            skip,
            offer,
            codecs: self.codecs,
        }
    }
}
