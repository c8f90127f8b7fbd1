//! Digests of chunks and of the whole volume.
//!
//! Every chunk has a BLAKE3 digest under a context of its own. The volume's digest is the root of
//! a binary Merkle tree over the chunk digests, shaped as in RFC 9162 section 2.1.1 (the left half
//! of a tree is the largest power of two below its size), bound to the volume's size and chunk
//! size:
//!
//! ```text
//! leaf(bytes)       = BLAKE3-derive-key("volferry 2026-11-21 chunk v1",  bytes)
//! node(left, right) = BLAKE3-derive-key("volferry 2026-11-21 node v1",   left | right)
//! volume            = BLAKE3-derive-key("volferry 2026-11-21 volume v1", size | chunk size | root)
//! ```
//!
//! with the size as 8 and the chunk size as 4 bytes, big-endian; an empty volume has no root.
//!
//! Why a tree and no flat list: the digest of chunks that arrive in any order is folded as they
//! come, so that both ends hold a few hundred bytes where a list for 10 TiB would take 320 MiB;
//! a range of zero chunks folds in logarithmic time; and what is durable is summed up by a handful
//! of nodes, which is all that a resumed session has to be told.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::geometry::{ChunkIndex, ChunkRange, Geometry};

const CHUNK_CONTEXT: &str = "volferry 2026-11-21 chunk v1";
const NODE_CONTEXT: &str = "volferry 2026-11-21 node v1";
const VOLUME_CONTEXT: &str = "volferry 2026-11-21 volume v1";

/// A BLAKE3 digest, 32 bytes; shown as 64 lower-case hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of a chunk's bytes.
    #[must_use]
    pub fn of_chunk(chunk: &[u8]) -> Self {
        static KEYED: LazyLock<blake3::Hasher> =
            LazyLock::new(|| blake3::Hasher::new_derive_key(CHUNK_CONTEXT));
        Self(*KEYED.clone().update(chunk).finalize().as_bytes())
    }

    /// The digest of a chunk of `len` zero bytes.
    #[must_use]
    pub fn of_zero_chunk(len: u32) -> Self {
        Self::of_chunk(&vec![0; len as usize])
    }

    fn of_node(left: Self, right: Self) -> Self {
        static KEYED: LazyLock<blake3::Hasher> =
            LazyLock::new(|| blake3::Hasher::new_derive_key(NODE_CONTEXT));
        Self(
            *KEYED
                .clone()
                .update(&left.0)
                .update(&right.0)
                .finalize()
                .as_bytes(),
        )
    }

    fn of_volume(geometry: &Geometry, root: Option<Self>) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(VOLUME_CONTEXT);
        hasher.update(&geometry.volume_size().to_be_bytes());
        hasher.update(&geometry.chunk_size().bytes().to_be_bytes());
        if let Some(root) = root {
            hasher.update(&root.0);
        }
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = BadDigest;

    fn from_str(text: &str) -> Result<Self, BadDigest> {
        blake3::Hash::from_hex(text)
            .map(|hash| Self(*hash.as_bytes()))
            .map_err(|_bad| BadDigest)
    }
}

impl TryFrom<String> for Digest {
    type Error = BadDigest;

    fn try_from(text: String) -> Result<Self, BadDigest> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// A text that is no digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest is 64 hexadecimal digits")]
pub struct BadDigest;

/// The Merkle tree of a volume, folded as chunk digests arrive in any order.
///
/// Only the roots of complete, aligned subtrees are kept: at most two for each level and run of
/// known chunks.
#[derive(Clone, Debug)]
pub struct DigestTree {
    geometry: Geometry,
    /// By first chunk: the root of the largest complete subtree that starts there.
    nodes: BTreeMap<u64, Node>,
    /// The root of a subtree of `2^level` whole zero chunks, by level.
    zero_roots: Vec<Digest>,
    /// The digest of the last chunk, should it be zero: it may be shorter than the others.
    last_zero: Digest,
}

/// A complete, aligned subtree of a volume's digest tree: what it spans, and its root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subtree {
    /// The first chunk, a multiple of `2^level`.
    pub start: ChunkIndex,
    /// The subtree spans `2^level` chunk indices, cut to the volume's end.
    pub level: u32,
    /// Its root.
    pub digest: Digest,
}

impl Subtree {
    /// The chunks that the subtree spans.
    #[must_use]
    pub fn chunks(&self, geometry: &Geometry) -> ChunkRange {
        let end = self
            .start
            .0
            .saturating_add(span(self.level))
            .min(geometry.chunk_count());
        ChunkRange {
            start: self.start,
            end: ChunkIndex(end),
        }
    }
}

/// The root of a complete subtree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    /// The subtree spans `2^level` chunk indices, of which the last may lie behind the volume.
    level: u32,
    digest: Digest,
}

impl DigestTree {
    /// The tree of a volume of which nothing is known yet.
    #[must_use]
    pub fn new(geometry: Geometry) -> Self {
        let whole_chunk = Digest::of_zero_chunk(geometry.chunk_size().bytes());
        let levels = height(geometry.chunk_count()).saturating_add(1) as usize;
        let doubled = |zero: &Digest| Some(Digest::of_node(*zero, *zero));
        let zero_roots = std::iter::successors(Some(whole_chunk), doubled)
            .take(levels)
            .collect();
        let last = ChunkIndex(geometry.chunk_count().saturating_sub(1));
        let last_zero = Digest::of_zero_chunk(geometry.chunk_len(last));
        Self {
            geometry,
            nodes: BTreeMap::new(),
            zero_roots,
            last_zero,
        }
    }

    /// Adds the digest of the chunk at `index`.
    ///
    /// # Errors
    /// When the chunk is known already or lies outside the volume; the tree is then unchanged.
    pub fn insert(&mut self, index: ChunkIndex, digest: Digest) -> Result<(), ChunkRefused> {
        self.check_new(ChunkRange::one(index))?;
        self.fold(index.0, Node { level: 0, digest });
        Ok(())
    }

    /// Adds `chunks`, all of them zero, in time logarithmic in their count.
    ///
    /// # Errors
    /// When any of them is known already or lies outside the volume; the tree is then unchanged.
    pub fn insert_zero(&mut self, chunks: ChunkRange) -> Result<(), ChunkRefused> {
        self.check_new(chunks)?;
        let last = self.geometry.chunk_count().saturating_sub(1);
        let whole_end = chunks.end.0.min(last);
        let mut at = chunks.start.0;
        while at < whole_end {
            // The largest aligned subtree that starts here and fits.
            let fits = whole_end.saturating_sub(at).ilog2();
            let level = at.trailing_zeros().min(fits);
            let Some(digest) = self.zero_roots.get(level as usize).copied() else {
                break;
            };
            self.fold(at, Node { level, digest });
            at = at.saturating_add(span(level));
        }
        if chunks.end.0 > last {
            self.fold(
                last,
                Node {
                    level: 0,
                    digest: self.last_zero,
                },
            );
        }
        Ok(())
    }

    /// Adds a complete subtree that another tree of the same volume gave out.
    ///
    /// # Errors
    /// When it is no subtree of this volume, or some of its chunks are known already; the tree is
    /// then unchanged.
    pub fn insert_subtree(&mut self, subtree: Subtree) -> Result<(), ChunkRefused> {
        let chunks = subtree.chunks(&self.geometry);
        let aligned = subtree.start.0.checked_rem(span(subtree.level)) == Some(0);
        if !aligned || subtree.level > height(self.geometry.chunk_count()) {
            return Err(ChunkRefused::Outside(chunks));
        }
        self.check_new(chunks)?;
        self.fold(
            subtree.start.0,
            Node {
                level: subtree.level,
                digest: subtree.digest,
            },
        );
        Ok(())
    }

    /// What is known, as the fewest complete subtrees, in volume order.
    pub fn subtrees(&self) -> impl Iterator<Item = Subtree> + '_ {
        self.nodes.iter().map(|(start, node)| Subtree {
            start: ChunkIndex(*start),
            level: node.level,
            digest: node.digest,
        })
    }

    /// Whether the digest of the chunk at `index` is known.
    #[must_use]
    pub fn contains(&self, index: ChunkIndex) -> bool {
        let before = self.nodes.range(..=index.0).next_back();
        before.is_some_and(|(start, node)| index.0.saturating_sub(*start) < span(node.level))
    }

    /// The volume's digest, once every chunk is known.
    #[must_use]
    pub fn volume_digest(&self) -> Option<Digest> {
        let count = self.geometry.chunk_count();
        if count == 0 {
            return Some(Digest::of_volume(&self.geometry, None));
        }
        let root = self.nodes.get(&0)?;
        let complete = root.level == height(count);
        complete.then(|| Digest::of_volume(&self.geometry, Some(root.digest)))
    }

    /// How many subtree roots are held: the tree's memory, for tests and metrics.
    #[must_use]
    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    fn check_new(&self, chunks: ChunkRange) -> Result<(), ChunkRefused> {
        if !self.geometry.holds(chunks) {
            return Err(ChunkRefused::Outside(chunks));
        }
        let next = self.nodes.range(chunks.start.0..chunks.end.0).next();
        if self.contains(chunks.start) || next.is_some() {
            return Err(ChunkRefused::Known(chunks));
        }
        Ok(())
    }

    /// Puts a complete subtree in, and merges it with its sibling as far up as it goes.
    fn fold(&mut self, start: u64, node: Node) {
        let count = self.geometry.chunk_count();
        let top = height(count);
        let (mut start, mut node) = (start, node);
        while node.level < top {
            let sibling = start ^ span(node.level);
            if sibling >= count {
                // The right half lies behind the volume: the left half stands for both.
                node.level = node.level.saturating_add(1);
                continue;
            }
            let complete = self
                .nodes
                .get(&sibling)
                .is_some_and(|other| other.level == node.level);
            if !complete {
                break;
            }
            let Some(other) = self.nodes.remove(&sibling) else {
                break;
            };
            let (left, right) = if sibling < start {
                (other.digest, node.digest)
            } else {
                (node.digest, other.digest)
            };
            node = Node {
                level: node.level.saturating_add(1),
                digest: Digest::of_node(left, right),
            };
            start = start.min(sibling);
        }
        self.nodes.insert(start, node);
    }
}

/// Why a chunk's digest was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChunkRefused {
    /// The chunks don't lie in the volume, or there are none.
    #[error("chunks {0} lie outside the volume")]
    Outside(ChunkRange),
    /// At least one of the chunks came before.
    #[error("chunks {0} came twice")]
    Known(ChunkRange),
}

/// Chunk indices that a complete subtree of `level` spans.
fn span(level: u32) -> u64 {
    1_u64.checked_shl(level).unwrap_or(u64::MAX)
}

/// The level of the root over `count` leaves.
fn height(count: u64) -> u32 {
    count
        .checked_next_power_of_two()
        .map_or(63, u64::trailing_zeros)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::geometry::ChunkSize;

    const CHUNK: u64 = 65536;

    fn geometry(volume_size: u64) -> Geometry {
        Geometry::new(volume_size, ChunkSize::MIN).unwrap()
    }

    fn range(start: u64, end: u64) -> ChunkRange {
        ChunkRange {
            start: ChunkIndex(start),
            end: ChunkIndex(end),
        }
    }

    /// The definition, as the module's prose states it: slow and obvious.
    fn model(geometry: &Geometry, leaves: &[Digest]) -> Digest {
        fn root(leaves: &[Digest]) -> Digest {
            if let [leaf] = leaves {
                return *leaf;
            }
            let half = leaves.len().next_power_of_two() / 2;
            Digest::of_node(root(&leaves[..half]), root(&leaves[half..]))
        }
        Digest::of_volume(geometry, (!leaves.is_empty()).then(|| root(leaves)))
    }

    fn leaf(index: u64) -> Digest {
        Digest::of_chunk(&index.to_be_bytes())
    }

    proptest! {
        /// Chunks in any order give the digest that the definition gives.
        #[test]
        fn order_does_not_matter(order in (1usize..80).prop_flat_map(|n| Just((0..n as u64).collect::<Vec<_>>()).prop_shuffle())) {
            let geometry = geometry(order.len() as u64 * CHUNK);
            let mut tree = DigestTree::new(geometry);
            for (known, index) in order.iter().enumerate() {
                prop_assert_eq!(tree.volume_digest(), None, "after {} of {}", known, order.len());
                prop_assert!(!tree.contains(ChunkIndex(*index)));
                tree.insert(ChunkIndex(*index), leaf(*index)).unwrap();
                prop_assert!(tree.contains(ChunkIndex(*index)));
            }
            let leaves: Vec<_> = (0..order.len() as u64).map(leaf).collect();
            prop_assert_eq!(tree.volume_digest(), Some(model(&geometry, &leaves)));
            prop_assert_eq!(tree.node_count(), 1);
        }

        /// What one tree gives out, another takes, and goes on from there.
        #[test]
        fn subtrees_carry_what_is_known(count in 1u64..80, known in prop::collection::hash_set(0u64..80, 0..80)) {
            let geometry = geometry(count * CHUNK);
            let mut first = DigestTree::new(geometry);
            for index in known.iter().filter(|index| **index < count) {
                first.insert(ChunkIndex(*index), leaf(*index)).unwrap();
            }
            let mut second = DigestTree::new(geometry);
            for subtree in first.subtrees() {
                second.insert_subtree(subtree).unwrap();
                prop_assert!(second.insert_subtree(subtree).is_err(), "twice");
            }
            for index in (0..count).map(ChunkIndex) {
                prop_assert_eq!(first.contains(index), second.contains(index));
                if !second.contains(index) {
                    second.insert(index, leaf(index.0)).unwrap();
                }
            }
            let leaves: Vec<_> = (0..count).map(leaf).collect();
            prop_assert_eq!(second.volume_digest(), Some(model(&geometry, &leaves)));
        }

        /// A range of zeros equals its zero chunks one by one, the short last chunk included.
        #[test]
        fn zero_ranges_equal_zero_chunks(count in 1u64..200, cut in 0u64..CHUNK, a in 0u64..200, b in 0u64..200) {
            let geometry = geometry(count * CHUNK - cut);
            let (start, end) = (a.min(b).min(count - 1), a.max(b).min(count));
            prop_assume!(start < end);
            let mut leaves: Vec<_> = (0..count).map(leaf).collect();
            let mut tree = DigestTree::new(geometry);
            tree.insert_zero(range(start, end)).unwrap();
            for (index, leaf) in leaves.iter_mut().enumerate() {
                let index = ChunkIndex(index as u64);
                if (start..end).contains(&index.0) {
                    prop_assert!(tree.contains(index));
                    *leaf = Digest::of_zero_chunk(geometry.chunk_len(index));
                } else {
                    tree.insert(index, *leaf).unwrap();
                }
            }
            prop_assert_eq!(tree.volume_digest(), Some(model(&geometry, &leaves)));
        }
    }

    #[test]
    fn a_chunk_is_taken_once_and_only_inside() {
        let mut tree = DigestTree::new(geometry(10 * CHUNK));
        tree.insert_zero(range(4, 8)).unwrap();
        for twice in [range(4, 5), range(7, 9), range(0, 5), range(0, 10)] {
            assert_eq!(tree.insert_zero(twice), Err(ChunkRefused::Known(twice)));
        }
        assert_eq!(
            tree.insert(ChunkIndex(7), leaf(7)),
            Err(ChunkRefused::Known(range(7, 8)))
        );
        for outside in [
            range(10, 11),
            range(8, 11),
            range(3, 3),
            range(u64::MAX, u64::MAX),
        ] {
            assert_eq!(
                tree.insert_zero(outside),
                Err(ChunkRefused::Outside(outside))
            );
        }
        assert_eq!(tree.node_count(), 1, "a refused chunk leaves no trace");
    }

    #[test]
    fn a_subtree_of_another_shape_is_refused() {
        let mut tree = DigestTree::new(geometry(10 * CHUNK));
        for (start, level) in [
            (1, 1),
            (8, 5),
            (10, 0),
            (0, 5),
            (0, 64),
            (0, u32::MAX),
            (16, 4),
        ] {
            let subtree = Subtree {
                start: ChunkIndex(start),
                level,
                digest: leaf(0),
            };
            assert!(tree.insert_subtree(subtree).is_err(), "{subtree:?}");
        }
        assert_eq!(tree.node_count(), 0);
    }

    #[test]
    fn a_hole_of_exbibytes_costs_a_handful_of_nodes() {
        let geometry = geometry(crate::geometry::VOLUME_SIZE_MAX);
        let mut tree = DigestTree::new(geometry);
        tree.insert(ChunkIndex(12345), leaf(0)).unwrap();
        tree.insert_zero(range(0, 12345)).unwrap();
        tree.insert_zero(range(12346, geometry.chunk_count()))
            .unwrap();
        assert_eq!(tree.node_count(), 1);
        assert!(tree.volume_digest().is_some());
    }

    /// Receipts outlive releases: what a digest says must never change. The values were computed
    /// from the definition above by another implementation of BLAKE3.
    #[test]
    fn digests_never_change() {
        let check = |volume: &[u8], expected: &str| {
            let geometry = geometry(volume.len() as u64);
            let mut tree = DigestTree::new(geometry);
            for (index, chunk) in volume.chunks(CHUNK as usize).enumerate() {
                tree.insert(ChunkIndex(index as u64), Digest::of_chunk(chunk))
                    .unwrap();
            }
            assert_eq!(tree.volume_digest().unwrap().to_string(), expected);
        };
        check(
            b"",
            "8c9abbd7fb2d442f30212d68fa114f26d224bbdde2b3d6aa24ca9bb8c13b0811",
        );
        check(
            b"volferry",
            "b7cccae4e3e400b717989de10f3729b6c09ea0d8783a7d22df1589aae07606bd",
        );
        check(
            &[7; 3 * 65536 + 1],
            "2a464a0c3183792fc90fe0131dbc65eb3fe1917f789ceb7a212d5034a37e17ec",
        );
    }

    #[test]
    fn text_survives() {
        let digest = leaf(3);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert_eq!("00".parse::<Digest>(), Err(BadDigest));
    }
}
