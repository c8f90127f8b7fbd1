//! What a target may hold already, and how the two ends speak of it.
//!
//! When the target holds something of the tree, from an earlier session or from an older copy, the
//! source doesn't send files but offers them, many in a pack, and the target answers what it holds
//! of each. Only the target needs memory for that, and the source no more than for what is
//! unanswered.
//!
//! ```text
//! source                                       target
//!   pack of Offer records            ═══════►
//!                                    ◄───────  Answer: a Holding for each, in order
//!   Keep, or File, or pieces         ═══════►
//! ```

use serde::{Deserialize, Serialize};

use super::path::Name;
use super::record::Time;
use crate::digest::Digest;

/// The most files that are offered in one pack: an answer is one message.
pub const OFFERS_MAX: usize = 128;

/// The most of these that are large enough to come in pieces: the target opens a file for each.
pub const LARGE_OFFERS_MAX: usize = 4;

/// The most packs of offers, and of questions for pieces, that may be unanswered.
pub const QUESTIONS_MAX: usize = 8;

/// The most pieces of a file whose chaining values are asked for at once.
pub const PROBE_PIECES_MAX: u32 = 64;

/// The most subtrees of a file that is under way of which the target tells.
pub const PARTS_MAX: usize = 1024;

const STAMP_CONTEXT: &str = "volferry 2026-11-21 tree file stamp v1";

/// What tells a state of a file from all others, as the source's filesystem has it. To the target
/// it is a name like any other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub [u8; Self::LEN]);

impl Stamp {
    /// Bytes of a stamp.
    pub const LEN: usize = 16;

    /// The stamp of the file at `path` with these marks: whatever changes with every change of the
    /// file, such as its inode, its size and its times.
    #[must_use]
    pub fn new(path: &[u8], marks: &[u64]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(STAMP_CONTEXT);
        for mark in marks {
            hasher.update(&mark.to_be_bytes());
        }
        hasher.update(path);
        let mut stamp = [0; Self::LEN];
        hasher.finalize_xof().fill(&mut stamp);
        Self(stamp)
    }
}

/// What a target made up for an answer, and takes back with what is made of it: nobody else can.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Voucher(pub Digest);

/// What a target makes vouchers with, made up for one session.
#[derive(Clone)]
pub struct VoucherKey([u8; 32]);

impl VoucherKey {
    /// A key of bytes that nobody can guess.
    #[must_use]
    pub const fn new(random: [u8; 32]) -> Self {
        Self(random)
    }

    /// The voucher for a file that is kept. `is_journaled` says whether the journal vouches for it.
    #[must_use]
    pub fn voucher(
        &self,
        path: &[u8],
        size: u64,
        digest: Digest,
        data_bytes: u64,
        is_journaled: bool,
    ) -> Voucher {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(&[u8::from(is_journaled)]);
        hasher.update(&size.to_be_bytes());
        hasher.update(&data_bytes.to_be_bytes());
        hasher.update(&digest.0);
        hasher.update(path);
        Voucher(Digest(*hasher.finalize().as_bytes()))
    }

    /// A short mark of a path: nobody else can choose two paths with the same.
    #[must_use]
    pub fn mark(&self, path: &[u8]) -> u64 {
        let mut mark = [0; 8];
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        hasher.update(path);
        hasher.finalize_xof().fill(&mut mark);
        u64::from_le_bytes(mark)
    }
}

impl std::fmt::Debug for VoucherKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("VoucherKey(…)")
    }
}

/// A regular file that the source has, without its content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer<'a> {
    /// Its name.
    pub name: Name<'a>,
    /// Bytes of its content.
    pub size: u64,
    /// When it was modified.
    pub mtime: Time,
    /// Which state of it this is.
    pub stamp: Stamp,
}

/// What a target holds of a file that was offered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "holds", rename_all = "snake_case")]
pub enum Holding {
    /// Nothing that is of use.
    Nothing,
    /// All of it, in its place.
    All {
        /// The plain digest of what it holds.
        digest: Digest,
        /// Bytes in blocks that hold data.
        data_bytes: u64,
        /// To be brought back.
        voucher: Voucher,
    },
    /// Pieces of it, not in its place yet.
    Part {
        /// What its pieces bear from now on.
        file: u64,
        /// What it holds.
        parts: Vec<Part>,
        /// Bytes in blocks of these that hold data.
        data_bytes: u64,
    },
    /// A file in its place that may be like it, to be compared by pieces.
    Other {
        /// What its pieces bear from now on.
        file: u64,
    },
}

/// A complete subtree of a file: pieces that follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The first piece, a multiple of `count`.
    pub start: u64,
    /// How many: a power of two.
    pub count: u64,
    /// Their chaining value.
    pub digest: Digest,
}

/// The target's answer to a pack of offers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// Which of the session's packs.
    pub pack: u64,
    /// What it holds of each file, in the order of the offers.
    pub holdings: Vec<Holding>,
}

/// The target's answer to a probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pieces {
    /// The file.
    pub file: u64,
    /// The first piece that was asked for.
    pub index: u64,
    /// The chaining values of what the target holds, fewer than were asked for where it ends.
    pub digests: Vec<Digest>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_mark_makes_another_stamp() {
        let stamp = Stamp::new(b"a/b", &[1, 2, 3]);
        assert_eq!(stamp, Stamp::new(b"a/b", &[1, 2, 3]));
        for other in [
            Stamp::new(b"a/c", &[1, 2, 3]),
            Stamp::new(b"a/b", &[1, 2, 4]),
            Stamp::new(b"a/b", &[1, 3, 2]),
        ] {
            assert_ne!(stamp, other);
        }
    }

    #[test]
    fn a_voucher_is_for_one_file_of_one_session() {
        let key = VoucherKey::new([1; 32]);
        let digest = Digest([2; 32]);
        let voucher = key.voucher(b"a", 5, digest, 4, true);
        assert_eq!(voucher, key.voucher(b"a", 5, digest, 4, true));
        for other in [
            key.voucher(b"b", 5, digest, 4, true),
            key.voucher(b"a", 6, digest, 4, true),
            key.voucher(b"a", 5, Digest([3; 32]), 4, true),
            key.voucher(b"a", 5, digest, 5, true),
            key.voucher(b"a", 5, digest, 4, false),
            VoucherKey::new([2; 32]).voucher(b"a", 5, digest, 4, true),
        ] {
            assert_ne!(voucher, other);
        }
        assert_ne!(key.mark(b"a"), key.mark(b"b"));
    }

    /// Whatever a target holds, its answer is one control frame.
    #[test]
    fn the_longest_answer_is_a_message() {
        let part = Part {
            start: u64::MAX,
            count: u64::MAX,
            digest: Digest([0xff; 32]),
        };
        let all = Holding::All {
            digest: part.digest,
            data_bytes: u64::MAX,
            voucher: Voucher(part.digest),
        };
        let mut holdings = vec![all; OFFERS_MAX];
        for holding in holdings.iter_mut().take(LARGE_OFFERS_MAX) {
            *holding = Holding::Part {
                file: u64::MAX,
                parts: vec![part; PARTS_MAX],
                data_bytes: u64::MAX,
            };
        }
        let answer = crate::message::Message::Answer(Answer {
            pack: u64::MAX,
            holdings,
        });
        assert!(crate::frame::ControlFrame::encode(&answer).is_ok());
    }
}
