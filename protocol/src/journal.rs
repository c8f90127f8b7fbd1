//! The journal: what a target keeps on stable storage of how far a clone is.
//!
//! ```text
//! journal    = "VFJRNL" 0 1 | record*
//! record     = body length (4) | body | check (32)
//! check      = BLAKE3-derive-key("volferry 2026-11-21 journal v1", body)
//! body       = clone id (16) | volume size (8) | chunk size (4) | epoch (8)
//!            | data bytes (8) | taken bytes (8) | matched bytes (8) | target mark (8)
//!            | generation length (2) | generation
//!            | witnesses (2) | (chunk index (8) | digest (32))*
//!            | subtrees (4)  | (start (8) | level (1) | digest (32))*
//!            | [shut out (2) | instance (16)* | [holder (16)]]
//! ```
//!
//! with numbers big-endian; the last line is left out where nobody is remembered, and the holder where
//! nobody held the session. A record is appended after each flush and says all that is durable by
//! then, so that the last whole record counts and whatever follows it is a torn write. The digest
//! tree sums up what is durable in a handful of subtrees: a record has a few KiB, whatever the
//! volume's size, and the file is written anew before it reaches [`JOURNAL_LEN_MAX`].
//!
//! A [`Checkpoint`] is the content of a record. As JSON it travels in `/progress`, so that a
//! controller can carry it to a new pod.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::codec::{Reader, Truncated};
use crate::digest::{Digest, Subtree};
use crate::geometry::{ChunkIndex, ChunkSize};
use crate::session::fence::{Remembered, SHUT_OUT_MAX};

/// The first bytes of a journal; the last is the version.
pub const JOURNAL_MAGIC: [u8; 8] = *b"VFJRNL\0\x01";

/// Bytes that a journal may grow to before it is written anew with its last record alone.
pub const JOURNAL_LEN_MAX: usize = 512 << 10;

/// Subtrees that a checkpoint may hold; what is durable beyond them is sent again. In normal order
/// there are some dozens. Bounds a record at 200 KiB, and the `Welcome` that carries them as JSON.
pub const SUBTREES_MAX: usize = 4096;

/// Witnesses that a checkpoint may hold.
pub const WITNESSES_MAX: usize = 16;

/// Bytes that a source's generation may have.
pub const GENERATION_LEN_MAX: usize = 4096;

const CHECK_CONTEXT: &str = "volferry 2026-11-21 journal v1";
const CHECK_LEN: usize = 32;

/// A chunk that is known to be durable, by its own digest: read again, it shows whether the volume
/// is the one that the checkpoint speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Witness {
    /// Which chunk.
    pub index: ChunkIndex,
    /// Its digest.
    pub digest: Digest,
}

/// How far a clone is: what a later session goes on from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The clone.
    pub clone_id: Uuid,
    /// Bytes of the source volume.
    pub volume_size: u64,
    /// Bytes of a chunk.
    pub chunk_size: ChunkSize,
    /// The source's generation, as the source agent made it up.
    pub generation: String,
    /// The session that wrote it; the next has a larger one.
    pub epoch: u64,
    /// Bytes in blocks that hold data, of what is durable.
    pub data_bytes: u64,
    /// Bytes of data that the target took in, in all sessions, those that came twice twice.
    pub taken_bytes: u64,
    /// Bytes of data in chunks that the target held already.
    pub matched_bytes: u64,
    /// What tells the target file from others, made of its inode and the time of its making; 0 for a
    /// device.
    #[serde(default)]
    pub target_mark: u64,
    /// Some chunks that hold data.
    pub witnesses: Vec<Witness>,
    /// What is durable.
    pub durable: Vec<Subtree>,
    /// Runs of the source agent that may not come back.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shut_out: Vec<Uuid>,
    /// The run of the source agent that held the session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Uuid>,
}

impl Checkpoint {
    /// What it keeps of the fence.
    #[must_use]
    pub fn remembered(&self) -> Remembered {
        Remembered {
            holder: self.holder,
            shut_out: self.shut_out.clone(),
        }
    }

    /// The record that is appended to a journal.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend(self.clone_id.as_bytes());
        body.extend(self.volume_size.to_be_bytes());
        body.extend(self.chunk_size.bytes().to_be_bytes());
        for number in [
            self.epoch,
            self.data_bytes,
            self.taken_bytes,
            self.matched_bytes,
            self.target_mark,
        ] {
            body.extend(number.to_be_bytes());
        }
        // A longer one is refused with its hello. Cut, it is no source's.
        let generation_len = self.generation.floor_char_boundary(GENERATION_LEN_MAX);
        let generation = self.generation.as_bytes();
        let generation = generation.get(..generation_len).unwrap_or(generation);
        body.extend(u16::try_from(generation.len()).unwrap_or(0).to_be_bytes());
        body.extend(generation);
        let witnesses = self
            .witnesses
            .get(..WITNESSES_MAX)
            .unwrap_or(&self.witnesses);
        body.extend(u16::try_from(witnesses.len()).unwrap_or(0).to_be_bytes());
        for witness in witnesses {
            body.extend(witness.index.0.to_be_bytes());
            body.extend(witness.digest.0);
        }
        let durable = self.durable.get(..SUBTREES_MAX).unwrap_or(&self.durable);
        body.extend(u32::try_from(durable.len()).unwrap_or(0).to_be_bytes());
        for subtree in durable {
            body.extend(subtree.start.0.to_be_bytes());
            body.push(u8::try_from(subtree.level).unwrap_or(u8::MAX));
            body.extend(subtree.digest.0);
        }
        if !self.shut_out.is_empty() || self.holder.is_some() {
            let shut_out = self.shut_out.get(..SHUT_OUT_MAX).unwrap_or(&self.shut_out);
            body.extend(u16::try_from(shut_out.len()).unwrap_or(0).to_be_bytes());
            shut_out
                .iter()
                .for_each(|instance| body.extend(instance.as_bytes()));
        }
        if let Some(holder) = &self.holder {
            body.extend(holder.as_bytes());
        }
        let mut record = Vec::with_capacity(body.len().saturating_add(4 + CHECK_LEN));
        record.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
        record.extend(&body);
        record.extend(check(&body));
        record
    }

    fn decode(body: &[u8]) -> Result<Self, BadRecord> {
        let mut reader = Reader::new(body);
        let clone_id = Uuid::from_bytes(reader.array()?);
        let volume_size = reader.u64()?;
        let chunk_size = ChunkSize::new(reader.u32()?).map_err(|_bad| BadRecord)?;
        let epoch = reader.u64()?;
        let data_bytes = reader.u64()?;
        let taken_bytes = reader.u64()?;
        let matched_bytes = reader.u64()?;
        let target_mark = reader.u64()?;
        let generation_len = usize::from(reader.u16()?);
        let generation = str::from_utf8(reader.bytes(generation_len)?).map_err(|_bad| BadRecord)?;
        let witnesses = (0..reader.u16()?)
            .map(|_| {
                Ok(Witness {
                    index: ChunkIndex(reader.u64()?),
                    digest: Digest(reader.array()?),
                })
            })
            .collect::<Result<_, Truncated>>()?;
        let durable = (0..reader.u32()?)
            .map(|_| {
                Ok(Subtree {
                    start: ChunkIndex(reader.u64()?),
                    level: u32::from(reader.u8()?),
                    digest: Digest(reader.array()?),
                })
            })
            .collect::<Result<_, Truncated>>()?;
        let shut_out_count = match reader.is_empty() {
            true => 0,
            false => reader.u16()?,
        };
        let shut_out = (0..shut_out_count)
            .map(|_| Ok(Uuid::from_bytes(reader.array()?)))
            .collect::<Result<_, Truncated>>()?;
        let holder = match reader.is_empty() {
            true => None,
            false => Some(Uuid::from_bytes(reader.array()?)),
        };
        if !reader.is_empty() {
            return Err(BadRecord);
        }
        Ok(Self {
            clone_id,
            volume_size,
            chunk_size,
            generation: generation.to_owned(),
            epoch,
            data_bytes,
            taken_bytes,
            matched_bytes,
            target_mark,
            witnesses,
            durable,
            shut_out,
            holder,
        })
    }
}

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replay {
    /// The last whole record; `None` where there is none.
    pub checkpoint: Option<Checkpoint>,
    /// Bytes behind it: a torn write, or damage.
    pub torn_len: usize,
}

/// Reads a journal: the last whole record counts.
///
/// # Errors
/// When the bytes are no journal of this version.
pub fn replay(journal: &[u8]) -> Result<Replay, NoJournal> {
    let mut reader = Reader::new(journal);
    match reader.array() {
        Ok(JOURNAL_MAGIC) => {}
        _ => return Err(NoJournal),
    }
    let mut checkpoint = None;
    let mut whole_len = JOURNAL_MAGIC.len();
    while let Ok(record) = read_record(&mut reader) {
        whole_len = whole_len.saturating_add(record.len);
        checkpoint = Some(record.checkpoint);
    }
    Ok(Replay {
        checkpoint,
        torn_len: journal.len().saturating_sub(whole_len),
    })
}

struct Record {
    checkpoint: Checkpoint,
    len: usize,
}

fn read_record(reader: &mut Reader<'_>) -> Result<Record, BadRecord> {
    let body_len = usize::try_from(reader.u32()?).map_err(|_large| BadRecord)?;
    let body = reader.bytes(body_len)?;
    if reader.array::<CHECK_LEN>()? != check(body) {
        return Err(BadRecord);
    }
    Ok(Record {
        checkpoint: Checkpoint::decode(body)?,
        len: body_len.saturating_add(4 + CHECK_LEN),
    })
}

fn check(body: &[u8]) -> [u8; CHECK_LEN] {
    let mut hasher = blake3::Hasher::new_derive_key(CHECK_CONTEXT);
    *hasher.update(body).finalize().as_bytes()
}

/// Bytes that are no whole record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct BadRecord;

impl From<Truncated> for BadRecord {
    fn from(_: Truncated) -> Self {
        Self
    }
}

/// Bytes that are no journal of this version.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it does not start as a journal of this version")]
pub struct NoJournal;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn checkpoint(epoch: u64) -> Checkpoint {
        let digest = Digest::of_chunk(&epoch.to_be_bytes());
        Checkpoint {
            clone_id: Uuid::from_u128(7),
            volume_size: 1 << 44,
            chunk_size: ChunkSize::DEFAULT,
            generation: "size=1 inode=2".into(),
            epoch,
            data_bytes: 3,
            taken_bytes: 4,
            matched_bytes: 5,
            target_mark: 8,
            witnesses: vec![Witness {
                index: ChunkIndex(6),
                digest,
            }],
            durable: vec![Subtree {
                start: ChunkIndex(0),
                level: 24,
                digest,
            }],
            shut_out: vec![Uuid::from_u128(9), Uuid::from_u128(10)],
            holder: Some(Uuid::from_u128(11)),
        }
    }

    fn journal(epochs: std::ops::Range<u64>) -> Vec<u8> {
        let mut bytes = JOURNAL_MAGIC.to_vec();
        epochs.for_each(|epoch| bytes.extend(checkpoint(epoch).encode()));
        bytes
    }

    /// A record without anybody is as it was before anybody was remembered, and one without a holder
    /// as it was before that was.
    #[test]
    fn who_was_shut_out_and_who_held_the_session_stand_at_the_end_of_a_record() {
        let held = checkpoint(1);
        let some = Checkpoint {
            holder: None,
            ..held.clone()
        };
        let none = Checkpoint {
            shut_out: vec![],
            ..some.clone()
        };
        let bytes = |checkpoint: &Checkpoint| {
            let record = checkpoint.encode();
            record[4..record.len() - CHECK_LEN].to_vec()
        };
        let mut wanted = bytes(&none);
        wanted.extend([0, 2]);
        for instance in &some.shut_out {
            wanted.extend(instance.as_bytes());
        }
        assert_eq!(bytes(&some), wanted);
        assert_eq!(Checkpoint::decode(&wanted), Ok(some));
        wanted.extend(held.holder.unwrap().as_bytes());
        assert_eq!(bytes(&held), wanted);
        assert_eq!(Checkpoint::decode(&wanted), Ok(held.clone()));
        let alone = Checkpoint {
            shut_out: vec![],
            ..held
        };
        let mut wanted = bytes(&none);
        wanted.extend([0, 0]);
        wanted.extend(alone.holder.unwrap().as_bytes());
        assert_eq!(bytes(&alone), wanted);
        assert_eq!(Checkpoint::decode(&bytes(&none)), Ok(none));
        assert_eq!(Checkpoint::decode(&wanted), Ok(alone));
    }

    #[test]
    fn the_last_whole_record_counts_wherever_the_file_is_torn() {
        let whole = journal(1..4);
        let record = checkpoint(1).encode().len();
        for len in JOURNAL_MAGIC.len()..=whole.len() {
            let replay = replay(&whole[..len]).unwrap();
            let records = (len - JOURNAL_MAGIC.len()) / record;
            let last = (records > 0).then(|| checkpoint(records as u64));
            assert_eq!(replay.checkpoint, last, "torn at {len}");
            assert_eq!(replay.torn_len, (len - JOURNAL_MAGIC.len()) % record);
        }
    }

    #[test]
    fn what_is_no_journal_is_told() {
        for bytes in [&b""[..], b"VFJRNL\0\x02", b"VFJRNL", b"something else"] {
            assert_eq!(replay(bytes), Err(NoJournal));
        }
    }

    #[test]
    fn sixteen_tebibytes_in_order_fit_far_below_the_bound() {
        let mut full = checkpoint(1);
        let of = |start| Subtree {
            start: ChunkIndex(start),
            level: 3,
            digest: Digest([1; 32]),
        };
        full.durable = (0..64).map(of).collect();
        assert!(full.encode().len() < 4096);
        assert!(serde_json::to_vec(&full).unwrap().len() < 8192);
        full.durable = (0..100_000).map(of).collect();
        assert!(
            full.encode().len() < JOURNAL_LEN_MAX,
            "what is over is left out"
        );
    }

    #[test]
    fn a_generation_that_is_too_long_is_cut_between_two_characters() {
        let long = Checkpoint {
            generation: "\u{20ac}".repeat(2000),
            ..checkpoint(1)
        };
        let mut journal = JOURNAL_MAGIC.to_vec();
        journal.extend(long.encode());
        let kept = replay(&journal).unwrap().checkpoint.unwrap();
        assert_eq!(kept.generation.len(), 4095);
    }

    proptest! {
        #[test]
        fn a_damaged_byte_costs_the_records_from_there_on(at in 8usize..600, flip in 1u8..) {
            let mut bytes = journal(1..4);
            let at = at.min(bytes.len() - 1);
            bytes[at] ^= flip;
            let replay = replay(&bytes).unwrap();
            let intact = (at - JOURNAL_MAGIC.len()) / checkpoint(1).encode().len();
            let last = (intact > 0).then(|| checkpoint(intact as u64));
            prop_assert_eq!(replay.checkpoint, last);
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut journal = JOURNAL_MAGIC.to_vec();
            journal.extend(bytes);
            prop_assert!(replay(&journal).unwrap().torn_len <= journal.len());
        }
    }
}
