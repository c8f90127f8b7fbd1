//! What chunks hold, by numbers, and the digests of it by the definition.

use std::sync::LazyLock;

use volferry_protocol::digest::Digest;
use volferry_protocol::geometry::{BLOCK_SIZE, ChunkIndex, ChunkSize, Geometry};

use crate::rng::Rng;
use crate::tag::Tag;

/// A volume of `count` chunks, a third of them zero, and each other content unlike any before.
pub(crate) fn random(rng: &mut Rng, count: usize) -> Vec<Tag> {
    let tag = |rng: &mut Rng| {
        if rng.chance(30) {
            0
        } else {
            (rng.u64() >> 1).max(1)
        }
    };
    (0..count).map(|_| tag(rng)).collect()
}

/// The digest of the chunk at `index` with this content: that of its number stands for that of its
/// bytes, but for zeros, which the tree knows.
pub(crate) fn digest(geometry: &Geometry, index: usize, tag: Tag) -> Digest {
    static WHOLE: LazyLock<Digest> =
        LazyLock::new(|| Digest::of_zero_chunk(ChunkSize::MIN.bytes()));
    if tag != 0 {
        return Digest::of_chunk(&tag.to_be_bytes());
    }
    match geometry.chunk_len(ChunkIndex(index as u64)) {
        len if len == ChunkSize::MIN.bytes() => *WHOLE,
        len => Digest::of_zero_chunk(len),
    }
}

/// Bytes in blocks that hold data.
pub(crate) fn data_len(geometry: &Geometry, index: usize, tag: Tag) -> u32 {
    if tag == 0 {
        return 0;
    }
    let blocks = (tag % 16) as u32 + 1;
    (blocks * BLOCK_SIZE).min(geometry.chunk_len(ChunkIndex(index as u64)))
}

pub(crate) fn volume_digest(geometry: &Geometry, content: &[Tag]) -> Digest {
    let leaves: Vec<_> = content
        .iter()
        .enumerate()
        .map(|(index, tag)| digest(geometry, index, *tag))
        .collect();
    let size = geometry.volume_size().to_be_bytes();
    let chunk_size = geometry.chunk_size().bytes().to_be_bytes();
    let root = (!leaves.is_empty()).then(|| root(&leaves).0);
    let root = root.as_ref().map_or(&[][..], |root| root);
    derive("volferry 2026-11-21 volume v1", &[&size, &chunk_size, root])
}

fn root(leaves: &[Digest]) -> Digest {
    if let [leaf] = leaves {
        return *leaf;
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    derive(
        "volferry 2026-11-21 node v1",
        &[&root(left).0, &root(right).0],
    )
}

fn derive(context: &str, parts: &[&[u8]]) -> Digest {
    Digest(blake3::derive_key(context, &parts.concat()))
}
