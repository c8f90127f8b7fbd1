//! Sizes, indices and ranges, each a type of its own so that one can't be taken for another.
//!
//! A volume of `volume_size` bytes is cut into chunks of one [`ChunkSize`]; only the last chunk may
//! be shorter. A chunk is the unit of digest, resume and repair. Inside a chunk, a block of
//! [`BLOCK_SIZE`] bytes is the grain of zero detection.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of a block, the grain of zero detection.
pub const BLOCK_SIZE: u32 = 4096;

/// The largest volume, in bytes: what `off_t` can address, cut to whole blocks.
pub const VOLUME_SIZE_MAX: u64 = (i64::MAX as u64) & !(BLOCK_SIZE as u64 - 1);

/// A half-open range of bytes, `start..end`, with `start <= end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteRange {
    start: u64,
    end: u64,
}

impl ByteRange {
    /// The range `start..end`.
    ///
    /// # Panics
    /// When `start > end`: the caller computed nonsense. Numbers from outside go through
    /// [`ByteRange::checked`].
    #[must_use]
    pub const fn new(start: u64, end: u64) -> Self {
        assert!(start <= end, "a range starts before it ends");
        Self { start, end }
    }

    /// The range of `len` bytes at `start`, or `None` when its end overflows.
    #[must_use]
    pub const fn checked(start: u64, len: u64) -> Option<Self> {
        match start.checked_add(len) {
            Some(end) => Some(Self { start, end }),
            None => None,
        }
    }

    /// The first byte's offset.
    #[must_use]
    pub const fn start(self) -> u64 {
        self.start
    }

    /// The offset behind the last byte.
    #[must_use]
    pub const fn end(self) -> u64 {
        self.end
    }

    /// How many bytes the range holds.
    #[must_use]
    pub const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// Whether the range holds no byte.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// What both ranges hold; empty where they don't meet.
    #[must_use]
    pub fn intersect(self, other: Self) -> Self {
        let start = self.start.max(other.start);
        let end = self.end.min(other.end).max(start);
        Self { start, end }
    }
}

impl fmt::Display for ByteRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// Bytes of a chunk: a power of two from 64 KiB to 8 MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct ChunkSize(u32);

impl ChunkSize {
    /// 64 KiB: below, headers and digests would outweigh what they describe.
    pub const MIN: Self = Self(64 << 10);
    /// 1 MiB, unless told otherwise.
    pub const DEFAULT: Self = Self(1 << 20);
    /// 8 MiB: above, few buffers fit into an agent's memory.
    pub const MAX: Self = Self(8 << 20);

    /// A chunk size of `bytes`.
    ///
    /// # Errors
    /// When `bytes` is no power of two or out of range.
    pub fn new(bytes: u32) -> Result<Self, BadChunkSize> {
        let in_range = (Self::MIN.0..=Self::MAX.0).contains(&bytes);
        if bytes.is_power_of_two() && in_range {
            Ok(Self(bytes))
        } else {
            Err(BadChunkSize(bytes))
        }
    }

    /// The size in bytes.
    #[must_use]
    pub const fn bytes(self) -> u32 {
        self.0
    }

    /// How many blocks a whole chunk holds.
    #[must_use]
    pub const fn blocks(self) -> u32 {
        self.0 / BLOCK_SIZE
    }
}

impl TryFrom<u32> for ChunkSize {
    type Error = BadChunkSize;

    fn try_from(bytes: u32) -> Result<Self, BadChunkSize> {
        Self::new(bytes)
    }
}

impl From<ChunkSize> for u32 {
    fn from(size: ChunkSize) -> Self {
        size.0
    }
}

/// A chunk size that can't be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("chunk size {0} is not a power of two from 65536 to 8388608 bytes")]
pub struct BadChunkSize(pub u32);

/// The place of a chunk in its volume, counted from 0.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct ChunkIndex(pub u64);

impl fmt::Display for ChunkIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A half-open range of chunk indices, `start..end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ChunkRange {
    /// The first chunk.
    pub start: ChunkIndex,
    /// The chunk behind the last.
    pub end: ChunkIndex,
}

impl ChunkRange {
    /// The range that holds just `index`.
    #[must_use]
    pub const fn one(index: ChunkIndex) -> Self {
        Self {
            start: index,
            end: ChunkIndex(index.0.saturating_add(1)),
        }
    }

    /// How many chunks the range holds.
    #[must_use]
    pub const fn count(self) -> u64 {
        self.end.0.saturating_sub(self.start.0)
    }
}

impl fmt::Display for ChunkRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.start, self.end)
    }
}

/// How a volume is cut into chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    volume_size: u64,
    chunk_size: ChunkSize,
}

impl Geometry {
    /// The geometry of a volume of `volume_size` bytes.
    ///
    /// # Errors
    /// When the volume is larger than [`VOLUME_SIZE_MAX`].
    pub fn new(volume_size: u64, chunk_size: ChunkSize) -> Result<Self, VolumeTooLarge> {
        if volume_size > VOLUME_SIZE_MAX {
            return Err(VolumeTooLarge(volume_size));
        }
        Ok(Self {
            volume_size,
            chunk_size,
        })
    }

    /// Bytes of the volume.
    #[must_use]
    pub const fn volume_size(&self) -> u64 {
        self.volume_size
    }

    /// Bytes of each chunk but, perhaps, the last.
    #[must_use]
    pub const fn chunk_size(&self) -> ChunkSize {
        self.chunk_size
    }

    /// How many chunks the volume has; 0 for an empty one.
    #[must_use]
    pub fn chunk_count(&self) -> u64 {
        self.volume_size
            .div_ceil(u64::from(self.chunk_size.bytes()))
    }

    /// All chunks of the volume.
    #[must_use]
    pub fn chunks(&self) -> ChunkRange {
        ChunkRange {
            start: ChunkIndex(0),
            end: ChunkIndex(self.chunk_count()),
        }
    }

    /// Whether all of `chunks` lie in the volume, and there is at least one.
    #[must_use]
    pub fn holds(&self, chunks: ChunkRange) -> bool {
        chunks.start < chunks.end && chunks.end.0 <= self.chunk_count()
    }

    /// The bytes of `chunks`, cut to the volume's end; empty for what lies outside.
    #[must_use]
    pub fn bytes_of(&self, chunks: ChunkRange) -> ByteRange {
        let at = |index: ChunkIndex| {
            index
                .0
                .saturating_mul(u64::from(self.chunk_size.bytes()))
                .min(self.volume_size)
        };
        let start = at(chunks.start);
        ByteRange::new(start, at(chunks.end).max(start))
    }

    /// Bytes of the chunk at `index`: the chunk size but for the last chunk; 0 outside the volume.
    #[must_use]
    pub fn chunk_len(&self, index: ChunkIndex) -> u32 {
        let len = self.bytes_of(ChunkRange::one(index)).len();
        u32::try_from(len)
            .unwrap_or(u32::MAX)
            .min(self.chunk_size.bytes())
    }

    /// The chunk that holds the byte at `offset`.
    #[must_use]
    pub fn chunk_at(&self, offset: u64) -> ChunkIndex {
        ChunkIndex(
            offset
                .checked_div(u64::from(self.chunk_size.bytes()))
                .unwrap_or(0),
        )
    }
}

/// A volume beyond what a file offset can address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a volume of {0} bytes is larger than 2^63 bytes, the most a file offset can address")]
pub struct VolumeTooLarge(pub u64);

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(volume_size: u64) -> Geometry {
        Geometry::new(volume_size, ChunkSize::MIN).unwrap()
    }

    #[test]
    fn the_last_chunk_is_the_short_one() {
        let check = |size: u64, count: u64, last_len: u32| {
            let geometry = geometry(size);
            assert_eq!(geometry.chunk_count(), count, "volume of {size} bytes");
            if let Some(last) = count.checked_sub(1) {
                assert_eq!(
                    geometry.chunk_len(ChunkIndex(last)),
                    last_len,
                    "volume of {size} bytes"
                );
            }
            assert_eq!(geometry.chunk_len(ChunkIndex(count)), 0, "behind the end");
        };
        check(0, 0, 0);
        check(1, 1, 1);
        check(65535, 1, 65535);
        check(65536, 1, 65536);
        check(65537, 2, 1);
        check(VOLUME_SIZE_MAX, VOLUME_SIZE_MAX.div_ceil(65536), 61440);
    }

    #[test]
    fn ranges_outside_the_volume_are_not_held() {
        let geometry = geometry(3 * 65536);
        let range = |start, end| ChunkRange {
            start: ChunkIndex(start),
            end: ChunkIndex(end),
        };
        assert!(geometry.holds(range(0, 3)));
        assert!(!geometry.holds(range(0, 4)));
        assert!(!geometry.holds(range(2, 2)), "an empty range names nothing");
        assert!(!geometry.holds(range(2, 1)));
        assert!(!geometry.holds(range(u64::MAX, u64::MAX)));
        assert_eq!(
            geometry.bytes_of(range(1, u64::MAX)),
            ByteRange::new(65536, 3 * 65536)
        );
    }

    #[test]
    fn chunk_sizes_are_bounded_powers_of_two() {
        for bad in [0, 1, 4096, 65535, 65537, 3 << 16, 16 << 20, u32::MAX] {
            assert_eq!(ChunkSize::new(bad), Err(BadChunkSize(bad)));
        }
        assert_eq!(ChunkSize::new(1 << 20), Ok(ChunkSize::DEFAULT));
    }
}
