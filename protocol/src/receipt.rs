//! The stored outcome of a clone.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::digest::Digest;
use crate::geometry::ChunkSize;

/// The proof of a clone: what the target holds, how that is known, and what it took.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// The version of this form: 1.
    pub receipt_version: u32,
    /// The clone.
    pub clone_id: Uuid,
    /// The volume's digest: computed at the source, confirmed by what the target wrote.
    pub digest: Digest,
    /// Chunk size in bytes; the digest depends on it.
    pub chunk_size: ChunkSize,
    /// How the target's content was verified.
    pub verified: Verified,
    /// Bytes of the source volume.
    pub logical_bytes: u64,
    /// Bytes in blocks that hold data.
    pub data_bytes: u64,
    /// Bytes of the volume that are zero.
    pub zero_bytes: u64,
    /// Bytes that the sessions handed to the transport, headers included, before encryption.
    pub wire_bytes: u64,
    /// Bytes that were durable at the target before this session and not sent again.
    pub resumed_bytes: u64,
    /// Seconds from the target's first `Hello` to the last durable byte.
    pub seconds: f64,
    /// Logical bytes for each second.
    pub bytes_per_second: f64,
    /// When the clone was done, as seconds since 1970-01-01 UTC.
    pub finished_unix_seconds: u64,
    /// What the clone cost at the source.
    pub source: AgentStats,
    /// What the clone cost at the target.
    pub target: AgentStats,
}

impl Receipt {
    /// The version of the form that this version writes.
    pub const VERSION: u32 = 1;
}

/// How the content of the target was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    /// Every chunk was checked against the source's digest before it was written and flushed.
    Digest,
}

/// What a clone cost at one end.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AgentStats {
    /// Name and version of the agent.
    pub agent: String,
    /// Processor seconds of the agent's threads, user and system.
    pub cpu_seconds: f64,
    /// The largest resident size of the agent's process, in bytes. Two agents in one process share
    /// it.
    pub peak_memory_bytes: u64,
}
