//! The stored outcome of a clone.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::digest::Digest;
use crate::geometry::ChunkSize;
use crate::tree::fidelity::{ClassSet, FidelityReport};
use crate::tree::set_digest::TreeCounts;
use crate::waits::{Limit, Limited, Waits, limit_of_both};

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
    /// Bytes that the source handed to the transport in all its sessions, headers included, before
    /// encryption.
    pub wire_bytes: u64,
    /// Bytes, zeros included, that were durable at the target before the last session and not sent
    /// again.
    pub resumed_bytes: u64,
    /// Bytes in blocks that hold data, as sent in all sessions that either end knows of.
    #[serde(default)]
    pub sent_bytes: u64,
    /// Of these, bytes that were sent again: they were not durable when a session ended, or had to
    /// be repaired.
    #[serde(default)]
    pub resent_bytes: u64,
    /// Bytes in blocks that hold data, of chunks that the target held already, as their digests
    /// showed.
    #[serde(default)]
    pub matched_bytes: u64,
    /// Bytes of chunks that read back wrong after they were flushed, and were sent and written again.
    #[serde(default)]
    pub repaired_bytes: u64,
    /// How many sessions the clone took.
    #[serde(default)]
    pub sessions: u64,
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
    /// What held the clone up most, over all of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<Limited>,
    /// What was cloned, where that was a tree.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreeReceipt>,
}

/// What a receipt says of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeReceipt {
    /// What it holds.
    #[serde(flatten)]
    pub counts: TreeCounts,
    /// Classes that were allowed to be lost; the digest says nothing of them.
    pub accepted: ClassSet,
    /// Whether SELinux labels were cloned.
    pub selinux: bool,
    /// What was lost.
    pub fidelity: FidelityReport,
    /// Entries that changed while they were read, which was allowed.
    pub changed: u64,
}

impl Receipt {
    /// The version of the form that this version writes.
    pub const VERSION: u32 = 1;
}

/// How the content of the target was verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verified {
    /// Not at all at the target: the digest is the source's, and TLS alone kept the bytes right.
    None,
    /// Every chunk was checked against the source's digest before it was written and flushed.
    Digest,
    /// Also, the whole volume was read back from the storage after the last flush, and compared.
    Readback,
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
    /// What the last session ran over, and why.
    #[serde(flatten)]
    pub transport: TransportStats,
    /// What compression saved.
    #[serde(flatten)]
    pub compression: CompressionStats,
    /// Where the time of its data connections and threads went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits: Option<Waits>,
}

/// What held a clone up most, where both ends tell where their time went.
#[must_use]
pub fn limit_of_stats(source: &AgentStats, target: &AgentStats) -> Option<Limited> {
    let waits = source.waits.as_ref().zip(target.waits.as_ref());
    let limited = waits.map(|(source, target)| limit_of_both(source, target));
    limited.filter(|limited| limited.limit != Limit::Unknown)
}

/// What a session runs over, as one end tells it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransportStats {
    /// `tls` or `quic`; absent before the ends have met.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport: Option<String>,
    /// What decided for it, in words; only at the source, which decides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transport_why: Option<String>,
    /// The most data connections that this end had at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connections_max: Option<u16>,
}

/// What compression saved, as one end tells it; absent where nothing was compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CompressionStats {
    /// Payload bytes that travelled compressed, as they were.
    #[serde(default, skip_serializing_if = "is_none")]
    pub compressed_bytes: u64,
    /// What they had become.
    #[serde(default, skip_serializing_if = "is_none")]
    pub compressed_to_bytes: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for it")]
const fn is_none(bytes: &u64) -> bool {
    *bytes == 0
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Both ends hold the same receipt, to the last digit, though it travels as text.
        #[test]
        fn a_receipt_survives_the_wire(seconds in 0.0..1e6f64, bytes_per_second in 0.0..1e12f64) {
            let stats = AgentStats {
                agent: "an agent".to_owned(),
                cpu_seconds: seconds / 3.0,
                peak_memory_bytes: 1,
                transport: TransportStats {
                    transport: Some("tls".to_owned()),
                    transport_why: None,
                    connections_max: Some(7),
                },
                compression: CompressionStats {
                    compressed_bytes: u64::MAX >> 12,
                    compressed_to_bytes: 1,
                },
                waits: Some(Waits {
                    peer_wait_seconds: seconds / 7.0,
                    ..Waits::default()
                }),
            };
            let receipt = Receipt {
                receipt_version: Receipt::VERSION,
                clone_id: Uuid::nil(),
                digest: Digest([7; 32]),
                chunk_size: ChunkSize::DEFAULT,
                verified: Verified::Digest,
                logical_bytes: 1,
                data_bytes: 1,
                zero_bytes: 0,
                wire_bytes: 1,
                resumed_bytes: 0,
                sent_bytes: 1,
                resent_bytes: 0,
                matched_bytes: 0,
                repaired_bytes: 0,
                sessions: 1,
                seconds,
                bytes_per_second,
                finished_unix_seconds: 1,
                limit: limit_of_stats(&stats, &stats),
                source: stats.clone(),
                target: stats,
                tree: None,
            };
            let text = serde_json::to_string(&receipt).unwrap();
            let read: Receipt = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(read, receipt);
        }
    }
}
