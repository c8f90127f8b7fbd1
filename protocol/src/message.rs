//! The messages of the control connection: JSON objects, told apart by their `type`.
//!
//! The schema can grow: fields that the reader doesn't know are ignored, and what must not be
//! ignored is named in `required_features`, which an older reader refuses.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::compression::Codecs;
use crate::digest::{Digest, Subtree};
use crate::failure::Failure;
use crate::geometry::{ChunkIndex, ChunkSize};
use crate::range_set::ChunkSet;
use crate::receipt::{AgentStats, Receipt};
use crate::tree::offer::{Answer, Pieces};
use crate::tree::session::{TreeFinish, TreeTerms};
use crate::waits::Waits;

/// Features that a peer may require of this version: none beyond the protocol's first.
pub const FEATURES: &[&str] = &[];

/// Features that a peer may require of a session that clones a tree.
pub const TREE_FEATURES: &[&str] = &["tree"];

/// A message of the control connection.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Message {
    /// Source: what is to be cloned.
    Hello(Hello),
    /// Target: how the session goes on.
    Welcome(Welcome),
    /// Source: still here.
    Ping,
    /// Target: what is durable by now; also the answer to a ping.
    Watermark(Watermark),
    /// Source: all was sent.
    Finish(Finish),
    /// Target: not all is right yet; these chunks are needed.
    Want(Want),
    /// Target: what it holds of files that were offered.
    Answer(Answer),
    /// Target: what pieces it holds of a file.
    Pieces(Pieces),
    /// Target: all is durable and proven.
    Receipt(Box<Receipt>),
    /// Either: the session is over.
    Error(Failure),
}

impl Message {
    /// The message's `type`, for error texts: its content may be large, or secret.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Hello(_) => "hello",
            Self::Welcome(_) => "welcome",
            Self::Ping => "ping",
            Self::Watermark(_) => "watermark",
            Self::Finish(_) => "finish",
            Self::Want(_) => "want",
            Self::Answer(_) => "answer",
            Self::Pieces(_) => "pieces",
            Self::Receipt(_) => "receipt",
            Self::Error(_) => "error",
        }
    }
}

/// The source's first message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The clone that the source works on.
    pub clone_id: Uuid,
    /// The run of the source agent: made up at its start, the same in all its sessions.
    #[serde(default)]
    pub instance: Uuid,
    /// How often this run of the source agent has connected for this clone, from 1.
    pub attempt: u32,
    /// Whether the source shuts out another run of the source agent that holds the session.
    #[serde(default)]
    pub take_over: bool,
    /// Bytes of the source volume.
    pub volume_size: u64,
    /// The chunk size that the source wants, in bytes.
    pub chunk_size: ChunkSize,
    /// How many data connections the source wants to open.
    pub streams: u16,
    /// How many it may come to want while the clone runs; no more than `streams` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams_max: Option<u16>,
    /// What tells whether the source is still the same, as the source agent made it up.
    pub generation: String,
    /// Features that the source knows.
    #[serde(default)]
    pub features: Vec<String>,
    /// Features without which the clone would be wrong.
    #[serde(default)]
    pub required_features: Vec<String>,
    /// Name and version of the source agent, for logs.
    #[serde(default)]
    pub agent: String,
    /// A tree is to be cloned, on these terms; without them, a block volume.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreeTerms>,
}

impl Hello {
    /// The codecs among the features: those that the source may use, and this version knows.
    #[must_use]
    pub fn codecs(&self) -> Codecs {
        Codecs::among(&self.features)
    }
}

/// The target's answer to a [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// Counts the sessions of this clone; an older one may no longer write.
    pub epoch: u64,
    /// What data connections have to show, as 64 hexadecimal digits.
    pub token: TokenText,
    /// The chunk size of this session, in bytes.
    pub chunk_size: ChunkSize,
    /// How many data connections the source opens at the beginning of each round.
    pub streams: u16,
    /// How many it may open in all; no more than `streams` where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub streams_max: Option<u16>,
    /// What is durable at the target already and must not be sent again.
    #[serde(default)]
    pub durable: Vec<Subtree>,
    /// Whether the source offers its chunks by digest first, or the files of its tree, instead of
    /// sending them.
    #[serde(default)]
    pub offer: bool,
    /// Whether the source reads the files that the target says to hold, to compare them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub compare: bool,
    /// Features that the session uses.
    #[serde(default)]
    pub features: Vec<String>,
    /// Name and version of the target agent, for logs.
    #[serde(default)]
    pub agent: String,
    /// The terms on which a tree is cloned.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreeTerms>,
}

/// A session token as text; its value is not shown in logs.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct TokenText(Digest);

impl TokenText {
    /// The text of `token`.
    #[must_use]
    pub const fn new(token: crate::frame::SessionToken) -> Self {
        Self(Digest(token.0))
    }

    /// The token.
    #[must_use]
    pub const fn token(&self) -> crate::frame::SessionToken {
        crate::frame::SessionToken(self.0.0)
    }
}

impl std::fmt::Debug for TokenText {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TokenText(…)")
    }
}

/// How far the target is. Only durable bytes are progress.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Watermark {
    /// The first chunk that is not durable.
    pub watermark: ChunkIndex,
    /// Bytes of the volume that are durable, zeros included.
    pub durable_bytes: u64,
    /// Bytes that the target has read of its own volume to compare or verify them; they are no
    /// progress, but a sign of life.
    #[serde(default)]
    pub checked_bytes: u64,
    /// Where the target's time went so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<Waits>,
    /// Bytes that the source's data connections may send each second from now on, 0 for no limit, where an
    /// observer of the clone asked for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bandwidth_limit: Option<u64>,
}

/// What the target needs beyond what it was sent: the source opens new data connections for it,
/// with the token of the `Welcome`, and finishes again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// The chunks; at least one.
    pub chunks: ChunkSet,
    /// Whether the source offers them by digest, instead of sending them.
    #[serde(default)]
    pub offer: bool,
}

/// The source has sent all that it was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finish {
    /// The volume's digest as the source computed it.
    pub digest: Digest,
    /// How many data connections the round had, where that is not the `streams` of the welcome.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections: Option<u16>,
    /// What this run of the source agent has sent, in all its sessions.
    pub sent: Sent,
    /// What the clone cost the source.
    pub source: Box<AgentStats>,
    /// What the source found, when it cloned a tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreeFinish>,
}

/// Bytes that a run of the source agent moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sent {
    /// Bytes in blocks that hold data.
    pub data_bytes: u64,
    /// Bytes of the volume that are zero and were not sent.
    pub zero_bytes: u64,
    /// Bytes handed to the transport, headers included, before encryption.
    pub wire_bytes: u64,
}
