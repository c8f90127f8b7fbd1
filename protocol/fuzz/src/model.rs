//! The digest of a volume as the documentation defines it: slow, obvious, and a second
//! implementation that shares nothing with the first but BLAKE3.

use std::ops::Range;
use std::sync::LazyLock;

use volferry_protocol::digest::Digest;
use volferry_protocol::geometry::{ChunkIndex, ChunkRange, ChunkSize, Geometry};

/// The digest of a made-up chunk.
pub fn leaf(name: u64) -> Digest {
    Digest::of_chunk(&name.to_be_bytes())
}

/// The digest of the chunk at `index` when it is zero.
pub fn zero_leaf(geometry: &Geometry, index: u64) -> Digest {
    static WHOLE: LazyLock<Digest> =
        LazyLock::new(|| Digest::of_zero_chunk(ChunkSize::MIN.bytes()));
    match geometry.chunk_len(ChunkIndex(index)) {
        len if len == ChunkSize::MIN.bytes() => *WHOLE,
        len => Digest::of_zero_chunk(len),
    }
}

/// The root over `leaves`, of which there is at least one.
pub fn root(leaves: &[Digest]) -> Digest {
    if let [leaf] = leaves {
        return *leaf;
    }
    let (left, right) = leaves.split_at(leaves.len().next_power_of_two() / 2);
    derive(
        "volferry 2026-11-21 node v1",
        &[&root(left).0, &root(right).0],
    )
}

/// The digest of a volume of `geometry` with these chunks.
pub fn volume_digest(geometry: &Geometry, leaves: &[Digest]) -> Digest {
    let size = geometry.volume_size().to_be_bytes();
    let chunk_size = geometry.chunk_size().bytes().to_be_bytes();
    let root = (!leaves.is_empty()).then(|| root(leaves).0);
    let root = root.as_ref().map_or(&[][..], |root| root);
    derive("volferry 2026-11-21 volume v1", &[&size, &chunk_size, root])
}

/// The chunks from `start` to before `end`.
pub fn chunks(range: Range<u64>) -> ChunkRange {
    ChunkRange {
        start: ChunkIndex(range.start),
        end: ChunkIndex(range.end),
    }
}

fn derive(context: &str, parts: &[&[u8]]) -> Digest {
    Digest(blake3::derive_key(context, &parts.concat()))
}
