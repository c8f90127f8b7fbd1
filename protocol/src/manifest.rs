//! The manifest of a block volume: the digest of each of its chunks, so that a damaged copy can be
//! told chunk by chunk.
//!
//! A text: one line that says what volume it is of, then a line for each chunk that holds data, in
//! any order. Chunks without a line are zero.
//!
//! ```text
//! volferry-manifest 1 <volume size> <chunk size>
//! <chunk index> <chunk digest>
//! ```

use std::collections::BTreeMap;

use crate::digest::{Digest, DigestTree};
use crate::geometry::{ChunkIndex, ChunkRange, ChunkSize, Geometry};

/// The digests of the chunks of a volume that hold data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    geometry: Geometry,
    chunks: BTreeMap<ChunkIndex, Digest>,
}

/// The first line of the manifest of a volume of `geometry`, with its line feed.
#[must_use]
pub fn first_line(geometry: &Geometry) -> String {
    format!(
        "{MAGIC} {} {}\n",
        geometry.volume_size(),
        geometry.chunk_size().bytes()
    )
}

/// The line of a chunk, with its line feed.
#[must_use]
pub fn chunk_line(index: ChunkIndex, digest: Digest) -> String {
    format!("{index} {digest}\n")
}

const MAGIC: &str = "volferry-manifest 1";

impl Manifest {
    /// Reads a manifest, line by line.
    ///
    /// # Errors
    /// When a line is none of a manifest.
    pub fn parse<Line: AsRef<str>>(
        mut lines: impl Iterator<Item = Line>,
    ) -> Result<Self, BadManifest> {
        let geometry = lines
            .next()
            .and_then(|line| parse_first_line(line.as_ref()))
            .ok_or(BadManifest { line: 1 })?;
        let mut chunks = BTreeMap::new();
        for (number, line) in lines.enumerate() {
            let bad = BadManifest {
                line: number.saturating_add(2),
            };
            let (index, digest) = parse_chunk_line(line.as_ref()).ok_or(bad)?;
            let is_new = chunks.insert(index, digest).is_none();
            if !is_new || !geometry.holds(ChunkRange::one(index)) {
                return Err(bad);
            }
        }
        Ok(Self { geometry, chunks })
    }

    /// How the volume is cut.
    #[must_use]
    pub const fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// The digest of the chunk at `index`; `None` when it is zero.
    #[must_use]
    pub fn chunk(&self, index: ChunkIndex) -> Option<Digest> {
        self.chunks.get(&index).copied()
    }

    /// The volume's digest: a manifest that was cut short doesn't have the receipt's.
    #[must_use]
    pub fn volume_digest(&self) -> Option<Digest> {
        let mut tree = DigestTree::new(self.geometry);
        let mut at = ChunkIndex(0);
        for (index, digest) in &self.chunks {
            if at < *index {
                tree.insert_zero(ChunkRange {
                    start: at,
                    end: *index,
                })
                .ok()?;
            }
            tree.insert(*index, *digest).ok()?;
            at = ChunkRange::one(*index).end;
        }
        let end = self.geometry.chunks().end;
        if at < end {
            tree.insert_zero(ChunkRange { start: at, end }).ok()?;
        }
        tree.volume_digest()
    }
}

fn parse_first_line(line: &str) -> Option<Geometry> {
    let (size, chunk_size) = line
        .strip_prefix(MAGIC)?
        .strip_prefix(' ')?
        .split_once(' ')?;
    let chunk_size = ChunkSize::new(chunk_size.parse().ok()?).ok()?;
    Geometry::new(size.parse().ok()?, chunk_size).ok()
}

fn parse_chunk_line(line: &str) -> Option<(ChunkIndex, Digest)> {
    let (index, digest) = line.split_once(' ')?;
    Some((ChunkIndex(index.parse().ok()?), digest.parse().ok()?))
}

/// A line that is none of a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} is none of a manifest")]
pub struct BadManifest {
    /// The line's number, from 1.
    pub line: usize,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry() -> Geometry {
        Geometry::new(5 * 65536 + 1, ChunkSize::MIN).unwrap()
    }

    #[test]
    fn a_manifest_has_the_volumes_digest() {
        let leaf = |index: u64| Digest::of_chunk(&index.to_be_bytes());
        let mut text = first_line(&geometry());
        let mut tree = DigestTree::new(geometry());
        for index in [4, 1] {
            text += &chunk_line(ChunkIndex(index), leaf(index));
            tree.insert(ChunkIndex(index), leaf(index)).unwrap();
        }
        for index in [0, 2, 3, 5] {
            tree.insert_zero(ChunkRange::one(ChunkIndex(index)))
                .unwrap();
        }
        let manifest = Manifest::parse(text.lines()).unwrap();
        assert_eq!(manifest.volume_digest(), tree.volume_digest());
        assert_eq!(manifest.chunk(ChunkIndex(4)), Some(leaf(4)));
        assert_eq!(manifest.chunk(ChunkIndex(0)), None);
        let cut = Manifest::parse(text.lines().take(2)).unwrap();
        assert_ne!(cut.volume_digest(), tree.volume_digest());
    }

    #[test]
    fn other_texts_are_refused_with_their_line() {
        let head = first_line(&geometry());
        let line = chunk_line(ChunkIndex(1), Digest([0; 32]));
        let outside = chunk_line(ChunkIndex(6), Digest([0; 32]));
        let check = |text: String, line: usize| {
            assert_eq!(
                Manifest::parse(text.lines()),
                Err(BadManifest { line }),
                "{text}"
            );
        };
        check(String::new(), 1);
        check("volferry-manifest 2 1 65536\n".into(), 1);
        check("volferry-manifest 1 1 3\n".into(), 1);
        check(format!("{head}{line}{line}"), 3);
        check(format!("{head}{outside}"), 2);
        check(format!("{head}1 abc\n"), 2);
        check(format!("{head}\n"), 2);
    }
}
