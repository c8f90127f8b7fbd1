//! The form of the journal of a tree: which files, and which pieces of a file that is under way, are
//! durable.
//!
//! ```text
//! header   magic: 8, clone id: 16, check: 16
//! record   payload length: 4, payload, check: 16         nothing follows one that is not whole
//! payload  entries, each behind a byte that says what it is:
//! session  1  epoch: 8, alone: 1
//! file     2  stamp: 16, digest: 32, size: 8, data bytes: 8
//! part     3  stamp: 16, file number: 8, size: 8, data bytes: 8,
//!             count: 4, count × (start: 8, count: 8, chaining value: 32)
//! shut out 4  instance: 16
//! holder   5  instance: 16
//! ```
//!
//! Numbers are big-endian. A check is the beginning of a BLAKE3 digest of what is before it in the
//! file's header, or of the record's place and payload: a record that was torn, or stands where it
//! was not written, is none.

use uuid::Uuid;

use super::file_digest::PIECE_LEN;
use super::offer::{PARTS_MAX, Part, Stamp};
use crate::codec::{Reader, Truncated};
use crate::digest::Digest;
use crate::session::fence::Remembered;

/// Bytes of the header.
pub const HEADER_LEN: usize = 40;

/// Bytes before a record's payload.
pub const RECORD_HEAD_LEN: usize = 4;

/// Bytes behind a record's payload.
pub const CHECK_LEN: usize = 16;

/// The longest payload of a record.
pub const PAYLOAD_LEN_MAX: usize = 1 << 20;

const MAGIC: &[u8; 8] = b"vfytree1";
const HEADER_CONTEXT: &str = "volferry 2026-11-21 tree journal header v1";
const RECORD_CONTEXT: &str = "volferry 2026-11-21 tree journal record v1";

/// What a journal says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A session began.
    Session {
        /// Its epoch.
        epoch: u64,
        /// Whether the target held nothing else before the clone began.
        is_alone: bool,
    },
    /// A run of the source agent was shut out.
    ShutOut(Uuid),
    /// A run of the source agent holds the session.
    Holder(Uuid),
    /// A file is durable, in its place.
    File(Finished),
    /// Pieces of a file are durable. Of two entries for one stamp, the later one counts.
    Part(Partial),
}

/// A file that is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// Which state of the source's file it is.
    pub stamp: Stamp,
    /// The plain digest of its content.
    pub digest: Digest,
    /// Bytes of its content.
    pub size: u64,
    /// Bytes in blocks that hold data.
    pub data_bytes: u64,
}

/// A file of which pieces are durable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Which state of the source's file it is.
    pub stamp: Stamp,
    /// The number under which its pieces came, and are kept.
    pub file: u64,
    /// Bytes of its content, when all is there.
    pub size: u64,
    /// Bytes of the pieces that are there, in blocks that hold data.
    pub data_bytes: u64,
    /// The pieces that are there.
    pub parts: Vec<Part>,
}

impl Partial {
    /// Bytes of the pieces that are there.
    #[must_use]
    pub fn durable_bytes(&self) -> u64 {
        let pieces = self.parts.iter().map(|part| part.count);
        let pieces = pieces.fold(0, u64::saturating_add);
        pieces.saturating_mul(u64::from(PIECE_LEN)).min(self.size)
    }
}

const SESSION: u8 = 1;
const FILE: u8 = 2;
const PART: u8 = 3;
const SHUT_OUT: u8 = 4;
const HOLDER: u8 = 5;

impl Entry {
    /// What a session begins with in the journal. Of what earlier ones said, `remembered` holds all
    /// that still counts.
    #[must_use]
    pub fn of_session(epoch: u64, is_alone: bool, remembered: &Remembered) -> Vec<Self> {
        let session = Self::Session { epoch, is_alone };
        let shut_out = remembered.shut_out.iter().copied().map(Self::ShutOut);
        let holder = remembered.holder.map(Self::Holder);
        [session]
            .into_iter()
            .chain(shut_out)
            .chain(holder)
            .collect()
    }

    /// Appends the form in the file.
    pub fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Session { epoch, is_alone } => {
                out.push(SESSION);
                out.extend(epoch.to_be_bytes());
                out.push(u8::from(*is_alone));
            }
            Self::ShutOut(instance) => {
                out.push(SHUT_OUT);
                out.extend(instance.as_bytes());
            }
            Self::Holder(instance) => {
                out.push(HOLDER);
                out.extend(instance.as_bytes());
            }
            Self::File(file) => {
                out.push(FILE);
                out.extend(file.stamp.0);
                out.extend(file.digest.0);
                out.extend(file.size.to_be_bytes());
                out.extend(file.data_bytes.to_be_bytes());
            }
            Self::Part(partial) => {
                out.push(PART);
                out.extend(partial.stamp.0);
                for number in [partial.file, partial.size, partial.data_bytes] {
                    out.extend(number.to_be_bytes());
                }
                let count = u32::try_from(partial.parts.len()).unwrap_or(u32::MAX);
                out.extend(count.to_be_bytes());
                for part in &partial.parts {
                    out.extend(part.start.to_be_bytes());
                    out.extend(part.count.to_be_bytes());
                    out.extend(part.digest.0);
                }
            }
        }
    }

    /// Takes the next entry of a payload.
    ///
    /// # Errors
    /// When the bytes are none.
    pub fn decode(reader: &mut Reader<'_>) -> Result<Self, BadJournal> {
        Ok(match reader.u8()? {
            SESSION => Self::Session {
                epoch: reader.u64()?,
                is_alone: reader.u8()? == 1,
            },
            SHUT_OUT => Self::ShutOut(Uuid::from_bytes(reader.array()?)),
            HOLDER => Self::Holder(Uuid::from_bytes(reader.array()?)),
            FILE => Self::File(Finished {
                stamp: Stamp(reader.array()?),
                digest: Digest(reader.array()?),
                size: reader.u64()?,
                data_bytes: reader.u64()?,
            }),
            PART => {
                let stamp = Stamp(reader.array()?);
                let (file, size, data_bytes) = (reader.u64()?, reader.u64()?, reader.u64()?);
                let count = usize::try_from(reader.u32()?).unwrap_or(usize::MAX);
                if count > PARTS_MAX {
                    return Err(BadJournal);
                }
                let mut part = || {
                    Ok(Part {
                        start: reader.u64()?,
                        count: reader.u64()?,
                        digest: Digest(reader.array()?),
                    })
                };
                let parts = (0..count)
                    .map(|_| part())
                    .collect::<Result<_, BadJournal>>()?;
                Self::Part(Partial {
                    stamp,
                    file,
                    size,
                    data_bytes,
                    parts,
                })
            }
            _ => return Err(BadJournal),
        })
    }
}

/// The header of the journal of `clone_id`.
#[must_use]
pub fn header(clone_id: Uuid) -> [u8; HEADER_LEN] {
    let mut header = [0; HEADER_LEN];
    let (head, check) = header.split_at_mut(HEADER_LEN.saturating_sub(CHECK_LEN));
    let (magic, id) = head.split_at_mut(MAGIC.len());
    magic.copy_from_slice(MAGIC);
    id.copy_from_slice(clone_id.as_bytes());
    let digest = blake3::derive_key(HEADER_CONTEXT, head);
    check.copy_from_slice(digest.split_at(CHECK_LEN).0);
    header
}

/// The record that holds `payload` and begins at byte `offset` of the journal.
#[must_use]
pub fn record(offset: u64, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap_or(u32::MAX);
    let mut record = Vec::with_capacity(payload.len().saturating_add(RECORD_HEAD_LEN + CHECK_LEN));
    record.extend(len.to_be_bytes());
    record.extend(payload);
    record.extend(check(offset, payload));
    record
}

/// Bytes of a payload with this head; `None` when there is no such record.
#[must_use]
pub fn payload_len(head: [u8; RECORD_HEAD_LEN]) -> Option<usize> {
    let len = usize::try_from(u32::from_be_bytes(head)).ok()?;
    (1..=PAYLOAD_LEN_MAX).contains(&len).then_some(len)
}

/// The check of the record at `offset`.
#[must_use]
pub fn check(offset: u64, payload: &[u8]) -> [u8; CHECK_LEN] {
    let mut hasher = blake3::Hasher::new_derive_key(RECORD_CONTEXT);
    hasher.update(&offset.to_be_bytes());
    hasher.update(payload);
    let mut check = [0; CHECK_LEN];
    hasher.finalize_xof().fill(&mut check);
    check
}

/// Bytes that are no entry of a journal, though their check is right: another version wrote them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the journal holds an entry that this version does not know")]
pub struct BadJournal;

impl From<Truncated> for BadJournal {
    fn from(_: Truncated) -> Self {
        Self
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn entries_survive_and_nothing_panics(
            numbers in any::<[u64; 4]>(),
            stamp in any::<[u8; 16]>(),
            count in 0usize..5,
            bytes in prop::collection::vec(any::<u8>(), 0..200),
        ) {
            let [epoch, file, size, data_bytes] = numbers;
            let (stamp, digest) = (Stamp(stamp), Digest([5; 32]));
            let part = Part { start: file, count: size, digest };
            let entries = [
                Entry::Session { epoch, is_alone: count > 2 },
                Entry::File(Finished { stamp, digest, size, data_bytes }),
                Entry::ShutOut(Uuid::from_bytes(stamp.0)),
                Entry::Holder(Uuid::from_bytes(digest.0[..16].try_into().unwrap())),
                Entry::Part(Partial { stamp, file, size, data_bytes, parts: vec![part; count] }),
            ];
            let mut payload = Vec::new();
            entries.iter().for_each(|entry| entry.encode(&mut payload));
            let mut reader = Reader::new(&payload);
            for entry in &entries {
                prop_assert_eq!(&Entry::decode(&mut reader).unwrap(), entry);
            }
            prop_assert!(reader.is_empty());
            for bytes in [&bytes[..], &payload[..payload.len() / 2]] {
                let mut reader = Reader::new(bytes);
                while Entry::decode(&mut reader).is_ok() {}
            }
        }
    }

    #[test]
    fn a_record_is_bound_to_its_place() {
        let record = record(40, b"payload");
        assert_eq!(payload_len(*record.first_chunk().unwrap()), Some(7));
        assert_eq!(record[11..], check(40, b"payload"));
        assert_ne!(record[11..], check(41, b"payload"));
        assert_eq!(payload_len([0; 4]), None);
        assert_eq!(payload_len([0xff; 4]), None);
    }

    #[test]
    fn a_header_names_its_clone() {
        let header = header(Uuid::from_u128(7));
        assert!(header.starts_with(MAGIC));
        assert_ne!(header, super::header(Uuid::from_u128(8)));
    }
}
