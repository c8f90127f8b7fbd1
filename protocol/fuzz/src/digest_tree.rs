//! The tree agrees with the definition of a digest, whatever comes in whatever order: it takes what
//! is new and inside, refuses the rest without a trace, and hands over what it knows.

use volferry_protocol::digest::{ChunkRefused, Digest, DigestTree, Subtree};
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, ChunkSize, Geometry};

use super::input::Input;
use super::model;

/// Chunks of the largest volume.
const CHUNKS_MAX: u8 = 40;

pub fn run(data: &[u8]) {
    let mut input = Input::new(data);
    let whole = input.below(CHUNKS_MAX) * u64::from(ChunkSize::MIN.bytes());
    let cut = u64::from(u16::from_be_bytes(input.array()));
    let geometry = Geometry::new(whole.saturating_sub(cut), ChunkSize::MIN).expect("a few MiB");
    let mut world = World {
        geometry,
        tree: DigestTree::new(geometry),
        leaves: vec![None; usize::try_from(geometry.chunk_count()).expect("few chunks")],
    };
    while !input.is_empty() {
        match input.below(4) {
            0 => world.insert(input.below(CHUNKS_MAX), model::leaf(input.below(4))),
            1 => world.insert_zero(model::chunks(input.range(CHUNKS_MAX, CHUNKS_MAX))),
            2 => world.insert_subtree(input.below(CHUNKS_MAX), input.below(8)),
            _ => world.hand_over(),
        }
        world.check();
    }
}

/// The tree and its model: the digest of each chunk, once known.
struct World {
    geometry: Geometry,
    tree: DigestTree,
    leaves: Vec<Option<Digest>>,
}

impl World {
    fn insert(&mut self, index: u64, digest: Digest) {
        let expected = self.expected(ChunkRange::one(ChunkIndex(index)));
        assert_eq!(self.tree.insert(ChunkIndex(index), digest), expected);
        if expected.is_ok() {
            self.leaves[index as usize] = Some(digest);
        }
    }

    fn insert_zero(&mut self, chunks: ChunkRange) {
        let expected = self.expected(chunks);
        assert_eq!(self.tree.insert_zero(chunks), expected);
        if expected.is_ok() {
            for index in chunks.start.0..chunks.end.0 {
                let zero = model::zero_leaf(&self.geometry, index);
                self.leaves[index as usize] = Some(zero);
            }
        }
    }

    fn insert_subtree(&mut self, start: u64, level: u64) {
        let count = self.geometry.chunk_count();
        let end = (start + (1 << level)).min(count);
        let leaves: Vec<_> = (start..end).map(model::leaf).collect();
        let subtree = Subtree {
            start: ChunkIndex(start),
            level: level as u32,
            digest: if leaves.is_empty() {
                model::leaf(0)
            } else {
                model::root(&leaves)
            },
        };
        let is_subtree =
            start.is_multiple_of(1 << level) && (1 << level) <= count.next_power_of_two();
        let is_new = self.expected(subtree.chunks(&self.geometry)).is_ok();
        let taken = self.tree.insert_subtree(subtree).is_ok();
        assert_eq!(taken, is_subtree && is_new, "{subtree:?}");
        if taken {
            let known = &mut self.leaves[start as usize..end as usize];
            known
                .iter_mut()
                .zip(leaves)
                .for_each(|(known, leaf)| *known = Some(leaf));
        }
    }

    /// Goes on with a tree that was told what this one knows, as a resumed session does.
    fn hand_over(&mut self) {
        let mut next = DigestTree::new(self.geometry);
        for subtree in self.tree.subtrees() {
            next.insert_subtree(subtree)
                .expect("a tree's own subtrees are taken");
        }
        assert!(next.subtrees().eq(self.tree.subtrees()));
        self.tree = next;
    }

    fn expected(&self, chunks: ChunkRange) -> Result<(), ChunkRefused> {
        if !self.geometry.holds(chunks) {
            return Err(ChunkRefused::Outside(chunks));
        }
        let known = &self.leaves[chunks.start.0 as usize..chunks.end.0 as usize];
        if known.iter().any(Option::is_some) {
            return Err(ChunkRefused::Known(chunks));
        }
        Ok(())
    }

    fn check(&self) {
        for (index, known) in self.leaves.iter().enumerate() {
            assert_eq!(
                self.tree.contains(ChunkIndex(index as u64)),
                known.is_some()
            );
        }
        let all: Option<Vec<_>> = self.leaves.iter().copied().collect();
        let expected = all.map(|leaves| model::volume_digest(&self.geometry, &leaves));
        assert_eq!(self.tree.volume_digest(), expected);
        let runs = self.leaves.chunk_by(|a, b| a.is_some() == b.is_some());
        let nodes_max = runs.filter(|run| run[0].is_some()).count() * 2 * 6;
        assert!(
            self.tree.node_count() <= nodes_max,
            "memory stays logarithmic"
        );
    }
}
