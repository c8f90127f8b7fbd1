//! The source's end of a session: says what there is to clone, keeps the digest of what was sent,
//! and believes only a receipt.

use std::collections::VecDeque;
use std::time::Instant;

use super::{PING_INTERVAL, SILENCE_MAX, Stage};
use crate::digest::{ChunkRefused, Digest, DigestTree};
use crate::failure::{Failure, FailureCode};
use crate::frame::SessionToken;
use crate::geometry::{ChunkIndex, ChunkRange, Geometry};
use crate::message::{Finish, Hello, Message, Sent, Watermark, Welcome};
use crate::range_set::ChunkSet;
use crate::receipt::{AgentStats, Receipt};

/// What the source agent has to do next.
#[derive(Clone, Debug, PartialEq)]
pub enum SourceAction {
    /// Open the data connections and send every chunk that is not durable at the target yet.
    Transfer(Transfer),
    /// The clone is proven.
    Done(Box<Receipt>),
    /// The session is over.
    Fail(Failure),
}

/// What a session agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transfer {
    /// How the volume is cut.
    pub geometry: Geometry,
    /// What data connections show.
    pub token: SessionToken,
    /// How many data connections to open.
    pub streams: u16,
    /// Chunks that need not be sent.
    pub durable: ChunkSet,
}

/// The source's state machine.
#[derive(Debug)]
pub struct SourceSession {
    hello: Hello,
    stage: Stage,
    /// From the welcome on.
    tree: Option<DigestTree>,
    geometry: Option<Geometry>,
    sent: Sent,
    resumed_bytes: u64,
    watermark: Watermark,
    messages: VecDeque<Message>,
    actions: VecDeque<SourceAction>,
    heard_at: Instant,
    said_at: Instant,
}

impl SourceSession {
    /// A session that says `hello` first.
    #[must_use]
    pub fn new(now: Instant, hello: Hello) -> Self {
        Self {
            stage: Stage::Handshake,
            tree: None,
            geometry: None,
            sent: Sent::default(),
            resumed_bytes: 0,
            watermark: Watermark::default(),
            messages: VecDeque::from([Message::Hello(hello.clone())]),
            actions: VecDeque::new(),
            heard_at: now,
            said_at: now,
            hello,
        }
    }

    /// The next message for the control connection.
    pub fn poll_message(&mut self, now: Instant) -> Option<Message> {
        let message = self.messages.pop_front()?;
        self.said_at = now;
        Some(message)
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<SourceAction> {
        self.actions.pop_front()
    }

    /// When [`Self::handle_timeout`] wants to be called; `None` when the session is over.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let ping_at = self.said_at.checked_add(PING_INTERVAL)?;
        let silence_at = self.heard_at.checked_add(SILENCE_MAX)?;
        (self.stage != Stage::Done).then(|| ping_at.min(silence_at))
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.stage == Stage::Done {
            return;
        }
        if now.saturating_duration_since(self.heard_at) >= SILENCE_MAX {
            let seconds = SILENCE_MAX.as_secs();
            let text = format!("the target agent said nothing for {seconds} s");
            self.end(Failure::new(FailureCode::Silent, text));
        } else if now.saturating_duration_since(self.said_at) >= PING_INTERVAL {
            self.said_at = now;
            self.messages.push_back(Message::Ping);
        }
    }

    /// The target said something.
    pub fn handle_message(&mut self, now: Instant, message: Message) {
        self.heard_at = now;
        match (self.stage, message) {
            (Stage::Done, _) => {}
            (_, Message::Error(told)) => self.end(Failure::told_by("target", &told)),
            (Stage::Handshake, Message::Welcome(welcome)) => self.handle_welcome(&welcome),
            (_, Message::Watermark(watermark)) => self.watermark = watermark,
            (Stage::Verify, Message::Receipt(receipt)) => self.handle_receipt(receipt),
            (stage, other) => self.fail(Failure::new(
                FailureCode::Protocol,
                format!(
                    "the target sent {} in the stage {}",
                    other.name(),
                    stage.label()
                ),
            )),
        }
    }

    fn handle_welcome(&mut self, welcome: &Welcome) {
        match self.agree(welcome) {
            Ok(transfer) => {
                self.stage = Stage::Transfer;
                self.actions.push_back(SourceAction::Transfer(transfer));
            }
            Err(failure) => self.fail(failure),
        }
    }

    fn agree(&mut self, welcome: &Welcome) -> Result<Transfer, Failure> {
        let protocol = |text: String| Failure::new(FailureCode::Protocol, text);
        if welcome.streams == 0 || welcome.streams > self.hello.streams {
            let text = format!("the target grants {} streams", welcome.streams);
            return Err(protocol(text));
        }
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
        self.tree = Some(tree);
        self.geometry = Some(geometry);
        Ok(Transfer {
            geometry,
            token: welcome.token.token(),
            streams: welcome.streams,
            durable,
        })
    }

    /// A chunk was read, and handed to the transport.
    pub fn handle_chunk(&mut self, index: ChunkIndex, digest: Digest, data_len: u32) {
        let chunks = ChunkRange::one(index);
        self.account(chunks, u64::from(data_len), |tree| {
            tree.insert(index, digest)
        });
    }

    /// Chunks are zero, and the target was told so.
    pub fn handle_zero(&mut self, chunks: ChunkRange) {
        self.account(chunks, 0, |tree| tree.insert_zero(chunks));
    }

    fn account(
        &mut self,
        chunks: ChunkRange,
        data_bytes: u64,
        insert: impl FnOnce(&mut DigestTree) -> Result<(), ChunkRefused>,
    ) {
        let (Some(tree), Some(geometry)) = (&mut self.tree, &self.geometry) else {
            return;
        };
        let bytes = geometry.bytes_of(chunks).len();
        if let Err(error) = insert(tree) {
            self.fail(Failure::new(
                FailureCode::Internal,
                format!("while reading: {error}"),
            ));
            return;
        }
        self.sent.data_bytes = self.sent.data_bytes.saturating_add(data_bytes);
        let zero_bytes = bytes.saturating_sub(data_bytes);
        self.sent.zero_bytes = self.sent.zero_bytes.saturating_add(zero_bytes);
    }

    /// Every data connection has ended in order, with `wire_bytes` sent on all of them together.
    pub fn handle_drained(&mut self, wire_bytes: u64, source: AgentStats) {
        if self.stage != Stage::Transfer {
            return;
        }
        self.sent.wire_bytes = wire_bytes;
        let digest = self.tree.as_ref().and_then(DigestTree::volume_digest);
        if let Some(digest) = digest {
            self.stage = Stage::Verify;
            self.messages.push_back(Message::Finish(Finish {
                digest,
                sent: self.sent,
                source,
                tree: None,
            }));
        } else {
            let text = "not every chunk was read before the connections ended";
            self.fail(Failure::new(FailureCode::Internal, text));
        }
    }

    fn handle_receipt(&mut self, receipt: Box<Receipt>) {
        let digest = self.tree.as_ref().and_then(DigestTree::volume_digest);
        if Some(receipt.digest) != digest || receipt.clone_id != self.hello.clone_id {
            let text = format!("the target's receipt is for digest {}", receipt.digest);
            self.fail(Failure::new(FailureCode::Integrity, text));
            return;
        }
        self.stage = Stage::Done;
        self.actions.push_back(SourceAction::Done(receipt));
    }

    /// This end failed: tells the target, and ends.
    pub fn fail(&mut self, failure: Failure) {
        if self.stage != Stage::Done {
            self.messages.push_back(Message::Error(failure.clone()));
            self.end(failure);
        }
    }

    /// The session is over, and the target knows or can't be told.
    pub fn end(&mut self, failure: Failure) {
        if self.stage != Stage::Done {
            self.stage = Stage::Done;
            self.actions.push_back(SourceAction::Fail(failure));
        }
    }

    /// Where the session is.
    #[must_use]
    pub const fn stage(&self) -> Stage {
        self.stage
    }

    /// What the target said to be durable.
    #[must_use]
    pub const fn watermark(&self) -> Watermark {
        self.watermark
    }

    /// What was sent in this session.
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
