//! The plain BLAKE3 digest of a large file, from pieces that are hashed in any order on any thread.
//!
//! BLAKE3 is a tree: the left half of a tree is the largest power of two of 1 KiB chunks below its
//! size. So an aligned piece of 1 MiB is a subtree of its own, whose *chaining value* depends on
//! nothing but its bytes and its place. A piece travels under its chaining value, which is checked
//! where it is written, and the chaining values of a file make its plain digest, the one that
//! `b3sum` prints. Each byte is hashed once at each end.

use std::collections::BTreeMap;

use blake3::hazmat::{HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

use super::offer::Part;
use crate::digest::Digest;

/// Bytes of a piece; only the last of a file may be shorter.
pub const PIECE_LEN: u32 = 1 << 20;

/// The plain digest of `bytes`.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> Digest {
    Digest(*blake3::hash(bytes).as_bytes())
}

/// A piece that was hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceDigest {
    /// What the piece is within its file.
    pub chaining_value: Digest,
    /// The plain digest, where the piece may be the whole file: that of the first one.
    whole: Option<Digest>,
}

impl PieceDigest {
    /// Hashes the piece `index` of a file.
    ///
    /// # Panics
    /// When it is empty or longer than [`PIECE_LEN`]: no file has such a piece.
    #[must_use]
    pub fn of(index: u64, bytes: &[u8]) -> Self {
        assert!(
            !bytes.is_empty() && bytes.len() <= PIECE_LEN as usize,
            "a piece has 1 byte to {PIECE_LEN}"
        );
        let mut hasher = blake3::Hasher::new();
        if index > 0 {
            hasher.set_input_offset(index.saturating_mul(u64::from(PIECE_LEN)));
        }
        hasher.update(bytes);
        Self {
            chaining_value: Digest(hasher.finalize_non_root()),
            whole: (index == 0).then(|| Digest(*hasher.finalize().as_bytes())),
        }
    }
}

/// The pieces of one file, folded as they come.
#[derive(Clone, Debug, Default)]
pub struct FileDigest {
    /// Complete subtrees: first piece, and how many pieces (a power of two). One that starts at the
    /// first piece is never folded into a larger one, since the larger might be the whole file,
    /// which is folded in another way.
    nodes: BTreeMap<u64, (u64, Digest)>,
    /// The plain digest, should the first piece be all.
    whole: Option<Digest>,
    pieces: u64,
}

impl FileDigest {
    /// Takes in the piece `index`.
    ///
    /// # Errors
    /// When it was taken in before; gives its index back.
    pub fn insert(&mut self, index: u64, piece: PieceDigest) -> Result<(), u64> {
        if self.contains(index) {
            return Err(index);
        }
        self.pieces = self.pieces.saturating_add(1);
        if index == 0 {
            self.whole = piece.whole;
        }
        let (mut start, mut count, mut digest) = (index, 1_u64, piece.chaining_value);
        loop {
            // Complete subtrees are aligned to their size, and so are their parents.
            let is_right = start & count != 0;
            let sibling = if is_right {
                start.checked_sub(count)
            } else {
                start.checked_add(count)
            };
            let Some(sibling) = sibling.filter(|sibling| start != 0 && *sibling != 0) else {
                break;
            };
            match self.nodes.get(&sibling) {
                Some((same, other)) if *same == count => {
                    let (left, right) = if is_right {
                        (*other, digest)
                    } else {
                        (digest, *other)
                    };
                    self.nodes.remove(&sibling);
                    digest = merge(left, right);
                    start = start.min(sibling);
                    count = count.saturating_mul(2);
                }
                _ => break,
            }
        }
        self.nodes.insert(start, (count, digest));
        Ok(())
    }

    /// What was taken in, as complete subtrees in their order.
    #[must_use]
    pub fn parts(&self) -> Vec<Part> {
        let part = |(start, (count, digest)): (&u64, &(u64, Digest))| Part {
            start: *start,
            count: *count,
            digest: *digest,
        };
        self.nodes.iter().map(part).collect()
    }

    /// What [`Self::parts`] gave, of a file of more than one piece; `None` when it can't be that.
    #[must_use]
    pub fn of_parts(parts: &[Part]) -> Option<Self> {
        let mut digest = Self::default();
        let mut end = 0;
        for Part {
            start,
            count,
            digest: value,
        } in parts.iter().copied()
        {
            let is_aligned = count.is_power_of_two() && start.is_multiple_of(count);
            // What starts at the first piece is never folded.
            let is_folded_right = start > 0 || count == 1;
            if !is_aligned || !is_folded_right || start < end {
                return None;
            }
            end = start.checked_add(count)?;
            digest.pieces = digest.pieces.checked_add(count)?;
            digest.nodes.insert(start, (count, value));
        }
        Some(digest)
    }

    /// Whether the piece `index` was taken in.
    #[must_use]
    pub fn contains(&self, index: u64) -> bool {
        let before = self.nodes.range(..=index).next_back();
        before.is_some_and(|(start, (count, _))| index.saturating_sub(*start) < *count)
    }

    /// How many pieces were taken in.
    #[must_use]
    pub const fn pieces(&self) -> u64 {
        self.pieces
    }

    /// How much it holds, in subtrees: what bounds its memory.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    /// The plain digest of the file when it has `size` bytes; `None` while pieces are missing, or
    /// when there are more than it can have.
    #[must_use]
    pub fn finish(&self, size: u64) -> Option<Digest> {
        let count = piece_count(size);
        if self.pieces != count {
            return None;
        }
        match count {
            0 => Some(of_bytes(b"")),
            1 => self.whole.filter(|_| self.contains(0)),
            _ => {
                let left = left_count(count);
                let left_digest = self.fold(0, left)?;
                let right_digest = self.fold(left, count.saturating_sub(left))?;
                let root = merge_subtrees_root(&left_digest.0, &right_digest.0, Mode::Hash);
                Some(Digest(*root.as_bytes()))
            }
        }
    }

    /// The chaining value of `count` pieces from `start` on.
    fn fold(&self, start: u64, count: u64) -> Option<Digest> {
        match self.nodes.get(&start) {
            Some((same, digest)) if *same == count => return Some(*digest),
            _ if count < 2 => return None,
            _ => {}
        }
        let left = left_count(count);
        let right_start = start.checked_add(left)?;
        let left_digest = self.fold(start, left)?;
        let right_digest = self.fold(right_start, count.saturating_sub(left))?;
        Some(merge(left_digest, right_digest))
    }
}

/// How many pieces a file of `size` bytes has.
#[must_use]
pub fn piece_count(size: u64) -> u64 {
    size.div_ceil(u64::from(PIECE_LEN))
}

/// Bytes of the piece `index` of a file of `size` bytes; 0 behind its end.
#[must_use]
pub fn piece_len(size: u64, index: u64) -> u32 {
    let start = index.saturating_mul(u64::from(PIECE_LEN));
    u32::try_from(size.saturating_sub(start)).map_or(PIECE_LEN, |rest| rest.min(PIECE_LEN))
}

fn merge(left: Digest, right: Digest) -> Digest {
    Digest(merge_subtrees_non_root(&left.0, &right.0, Mode::Hash))
}

/// The largest power of two below `count`, which is more than 1.
fn left_count(count: u64) -> u64 {
    let below = count.saturating_sub(1).max(1);
    1 << below.ilog2()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PIECE: usize = PIECE_LEN as usize;

    fn content(size: usize) -> Vec<u8> {
        (0..size)
            .map(|at| (at % 251) as u8 ^ (at >> 20) as u8)
            .collect()
    }

    fn folded(content: &[u8], order: &[usize]) -> FileDigest {
        let pieces: Vec<_> = content.chunks(PIECE).collect();
        let mut digest = FileDigest::default();
        for index in order {
            let piece = PieceDigest::of(*index as u64, pieces[*index]);
            digest.insert(*index as u64, piece).unwrap();
        }
        digest
    }

    /// Sizes around every kind of boundary, forwards and backwards: what `b3sum` would say.
    #[test]
    fn pieces_make_the_plain_digest() {
        let all = content(9 * PIECE + 5);
        let mut sizes = vec![0, 1, 1024, 1025, PIECE - 1];
        for pieces in 1..=9 {
            sizes.extend([pieces * PIECE, pieces * PIECE + 1]);
        }
        for size in sizes {
            let content = &all[..size];
            let mut order: Vec<_> = (0..size.div_ceil(PIECE)).collect();
            for _ in 0..2 {
                let digest = folded(content, &order);
                assert_eq!(
                    digest.finish(size as u64),
                    Some(of_bytes(content)),
                    "{size}"
                );
                order.reverse();
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]
        #[test]
        fn any_order_makes_the_same(
            pieces in 1usize..20,
            cut in 0usize..PIECE,
            keys in prop::collection::vec(any::<u32>(), 20),
        ) {
            let content = content(pieces * PIECE - cut);
            let mut order: Vec<_> = (0..pieces).collect();
            order.sort_by_key(|index| keys[*index]);
            let digest = folded(&content, &order);
            prop_assert_eq!(digest.finish(content.len() as u64), Some(of_bytes(&content)));
        }
    }

    #[test]
    fn a_digest_goes_on_from_its_parts() {
        let all = content(7 * PIECE + 9);
        let begun = folded(&all, &[0, 1, 3, 4, 5]);
        let mut digest = FileDigest::of_parts(&begun.parts()).unwrap();
        assert_eq!(digest.pieces(), 5);
        assert!(digest.contains(4) && !digest.contains(2) && !digest.contains(6));
        for index in [7, 2, 6] {
            let piece = &all[index * PIECE..all.len().min((index + 1) * PIECE)];
            digest
                .insert(index as u64, PieceDigest::of(index as u64, piece))
                .unwrap();
        }
        assert_eq!(digest.finish(all.len() as u64), Some(of_bytes(&all)));
    }

    #[test]
    fn parts_that_can_not_be_are_none() {
        let part = |start, count| Part {
            start,
            count,
            digest: Digest([7; 32]),
        };
        for bad in [
            &[part(0, 0)][..],
            &[part(0, 2)],
            &[part(2, 3)],
            &[part(1, 2)],
            &[part(2, 2), part(3, 1)],
            &[part(2, 1), part(2, 1)],
            &[part(4, 1), part(2, 1)],
            &[part(1 << 63, 1 << 63)],
        ] {
            assert!(FileDigest::of_parts(bad).is_none(), "{bad:?}");
        }
        assert!(FileDigest::of_parts(&[part(0, 1), part(1, 1), part(2, 2)]).is_some());
    }

    #[test]
    fn what_is_missing_or_too_much_has_no_digest() {
        let all = content(5 * PIECE);
        let digest = folded(&all, &[0, 1, 3, 4]);
        for size in 0..=6 {
            assert_eq!(digest.finish(size * u64::from(PIECE_LEN)), None);
        }
        let mut digest = folded(&all, &[0, 1, 2, 3, 4]);
        assert_eq!(digest.finish(4 * u64::from(PIECE_LEN)), None);
        let again = PieceDigest::of(3, &all[..PIECE]);
        assert_eq!(digest.insert(3, again), Err(3));
        assert_eq!(
            folded(&all, &[1]).finish(5),
            None,
            "the first piece is missing"
        );
    }

    /// A file that is read in order costs a handful of nodes, however long it is.
    #[test]
    fn memory_is_logarithmic() {
        let piece = PieceDigest {
            chaining_value: Digest([1; 32]),
            whole: None,
        };
        let mut digest = FileDigest::default();
        for index in 0..100_000 {
            digest.insert(index, piece).unwrap();
            assert!(digest.node_count() <= 40);
        }
        assert!(digest.finish(100_000 * u64::from(PIECE_LEN)).is_some());
    }
}
