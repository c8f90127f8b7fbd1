//! What a target keeps of a tree that is proven, until its source has heard of it: the journal, which
//! lies within the tree, has to go before.
//!
//! ```text
//! proof  = "VFPROOF" 1 | body length (4) | body | check (32)
//! check  = BLAKE3-derive-key("volferry 2026-11-21 tree proof v1", body)
//! body   = witness (32) | epoch (8)
//!        | shut out (2) | instance (16)* | holders (2) | instance (16)*
//!        | root length (4) | root | receipt
//! ```
//!
//! Numbers are big-endian. The root is a record of a directory, as in a pack, with the metadata that
//! the root of the tree gets at the very end, or nothing. The receipt is JSON, as it is sent; its clone
//! id says whose proof it is. There is at most one holder.

use uuid::Uuid;

use super::record::{Metadata, Record};
use crate::codec::{Reader, Truncated};
use crate::digest::Digest;
use crate::receipt::Receipt;
use crate::session::fence::Remembered;

/// The first bytes of a proof; the last is the version.
const MAGIC: [u8; 8] = *b"VFPROOF\x01";

/// Bytes of a proof, at most: far above what the longest lists of losses take.
pub const PROOF_LEN_MAX: usize = 16 << 20;

const CHECK_CONTEXT: &str = "volferry 2026-11-21 tree proof v1";
const CHECK_LEN: usize = 32;

/// A tree that is proven.
#[derive(Clone, Debug, PartialEq)]
pub struct Proof {
    /// The receipt that its source is to hear.
    pub receipt: Receipt,
    /// Shows whether a directory is the one that was proven.
    pub witness: Digest,
    /// What the root gets at the very end.
    pub root: Option<Metadata>,
    /// The session that proved it.
    pub epoch: u64,
    /// What is known of the runs of the source agent.
    pub remembered: Remembered,
}

impl Proof {
    /// The form in the file.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(self.witness.0);
        body.extend(self.epoch.to_be_bytes());
        let Remembered { holder, shut_out } = &self.remembered;
        for instances in [shut_out, holder.as_slice()] {
            let count = u16::try_from(instances.len()).unwrap_or(u16::MAX);
            body.extend(count.to_be_bytes());
            for instance in instances.iter().take(usize::from(count)) {
                body.extend(instance.as_bytes());
            }
        }
        let mut root = Vec::new();
        if let Some(metadata) = &self.root {
            Record::Directory(metadata.clone()).encode(&mut root);
        }
        body.extend(u32::try_from(root.len()).unwrap_or(u32::MAX).to_be_bytes());
        body.extend(root);
        // Numbers and texts only: there is nothing in it that JSON can't say.
        body.extend(serde_json::to_vec(&self.receipt).unwrap_or_default());
        let mut proof = MAGIC.to_vec();
        proof.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
        proof.extend(&body);
        proof.extend(check(&body));
        proof
    }

    /// Reads the form in the file.
    ///
    /// # Errors
    /// When the bytes are no whole proof of this version.
    pub fn decode(bytes: &[u8]) -> Result<Self, NoProof> {
        let mut reader = Reader::new(bytes);
        if reader.array()? != MAGIC {
            return Err(NoProof);
        }
        let len = usize::try_from(reader.u32()?).map_err(|_large| NoProof)?;
        let body = reader.bytes(len)?;
        if reader.array::<CHECK_LEN>()? != check(body) || !reader.is_empty() {
            return Err(NoProof);
        }
        let mut reader = Reader::new(body);
        let witness = Digest(reader.array()?);
        let epoch = reader.u64()?;
        let shut_out = instances(&mut reader)?;
        let holder = instances(&mut reader)?.first().copied();
        let root_len = usize::try_from(reader.u32()?).map_err(|_large| NoProof)?;
        let root = match reader.bytes(root_len)? {
            [] => None,
            bytes => match Record::decode(&mut Reader::new(bytes)) {
                Ok(Record::Directory(metadata)) => Some(metadata),
                _ => return Err(NoProof),
            },
        };
        let receipt = reader.bytes(reader.remaining())?;
        Ok(Self {
            receipt: serde_json::from_slice(receipt).map_err(|_no_receipt| NoProof)?,
            witness,
            root,
            epoch,
            remembered: Remembered { holder, shut_out },
        })
    }
}

fn instances(reader: &mut Reader<'_>) -> Result<Vec<Uuid>, Truncated> {
    (0..reader.u16()?)
        .map(|_| Ok(Uuid::from_bytes(reader.array()?)))
        .collect()
}

fn check(body: &[u8]) -> [u8; CHECK_LEN] {
    blake3::derive_key(CHECK_CONTEXT, body)
}

/// Bytes that are no whole proof of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is torn, or none of this version")]
pub struct NoProof;

impl From<Truncated> for NoProof {
    fn from(_: Truncated) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::ChunkSize;
    use crate::receipt::{AgentStats, TreeReceipt, Verified};
    use crate::tree::record::Time;

    fn proof() -> Proof {
        let stats = AgentStats {
            agent: "an agent".to_owned(),
            cpu_seconds: 0.1,
            ..AgentStats::default()
        };
        Proof {
            receipt: Receipt {
                receipt_version: Receipt::VERSION,
                clone_id: Uuid::from_u128(7),
                digest: Digest([7; 32]),
                chunk_size: ChunkSize::DEFAULT,
                verified: Verified::Digest,
                logical_bytes: 1,
                data_bytes: 2,
                zero_bytes: 3,
                wire_bytes: 4,
                resumed_bytes: 5,
                sent_bytes: 6,
                resent_bytes: 7,
                matched_bytes: 8,
                repaired_bytes: 9,
                sessions: 10,
                seconds: 1.0 / 3.0,
                bytes_per_second: 2.0 / 3.0,
                finished_unix_seconds: 11,
                source: stats.clone(),
                target: stats,
                limit: None,
                tree: Some(TreeReceipt::default()),
            },
            witness: Digest([8; 32]),
            root: Some(Metadata {
                uid: 1,
                gid: 2,
                mode: 0o750,
                atime: Time::default(),
                mtime: Time::default(),
                xattrs: vec![],
            }),
            epoch: 12,
            remembered: Remembered {
                holder: Some(Uuid::from_u128(8)),
                shut_out: vec![Uuid::from_u128(9), Uuid::from_u128(10)],
            },
        }
    }

    #[test]
    fn a_proof_survives_its_file() {
        let whole = proof();
        let bare = Proof {
            root: None,
            remembered: Remembered::default(),
            ..proof()
        };
        for proof in [whole, bare] {
            assert_eq!(Proof::decode(&proof.encode()), Ok(proof));
        }
    }

    /// Cut at any byte, turned over at any byte, or with something behind it.
    #[test]
    fn a_proof_that_is_not_whole_is_none() {
        let whole = proof().encode();
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            assert_eq!(Proof::decode(&broken), Err(NoProof), "byte {at}");
            assert_eq!(Proof::decode(&whole[..at]), Err(NoProof), "byte {at}");
        }
        assert_eq!(Proof::decode(&[whole, vec![0]].concat()), Err(NoProof));
    }

    /// The bytes that come before what may grow.
    #[test]
    fn the_form_stays() {
        let bytes = proof().encode();
        let mut wanted = b"VFPROOF\x01".to_vec();
        wanted.extend(u32::try_from(bytes.len() - 44).unwrap().to_be_bytes());
        wanted.extend([8; 32]);
        wanted.extend([0, 0, 0, 0, 0, 0, 0, 12, 0, 2]);
        wanted.extend(Uuid::from_u128(9).as_bytes());
        wanted.extend(Uuid::from_u128(10).as_bytes());
        wanted.extend([0, 1]);
        wanted.extend(Uuid::from_u128(8).as_bytes());
        assert!(bytes.starts_with(&wanted));
        assert!(bytes.windows(13).any(|part| part == b"\"verified\":\"d"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
            bytes.extend(&body);
            bytes.extend(check(&body));
            prop_assert_eq!(Proof::decode(&bytes), Err(NoProof));
        }
    }
}
