//! What to read next: the volume's chunks in order, holes left out.
//!
//! Where the filesystem knows of a hole, its chunks become one zero range without any read. Chunks
//! that are durable at the target already are passed over.

use std::sync::Arc;

use volferry_protocol::geometry::{ByteRange, ChunkIndex, ChunkRange, Geometry};
use volferry_protocol::range_set::ChunkSet;
use volferry_storage::{Source, StorageError};

/// The most chunks in one zero range: the target zeroes a range in one call, and between two calls
/// it tells its progress and can be ended.
const ZERO_RANGE_MAX: u64 = 4096;

/// A piece of work for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Read this chunk: it may hold data.
    Read(ChunkIndex),
    /// These chunks are a hole.
    Zero(ChunkRange),
}

/// Hands out the volume, once, in order.
#[derive(Debug)]
pub(crate) struct Cursor {
    source: Arc<dyn Source>,
    geometry: Geometry,
    durable: ChunkSet,
    next: ChunkIndex,
    /// The data that was found last; chunks before its start are a hole.
    data: Option<ByteRange>,
}

impl Cursor {
    pub(crate) fn new(source: Arc<dyn Source>, geometry: Geometry, durable: ChunkSet) -> Self {
        Self {
            source,
            geometry,
            durable,
            next: ChunkIndex(0),
            data: None,
        }
    }

    /// The next piece of work; `None` at the end of the volume.
    pub(crate) fn next(&mut self) -> Result<Option<Work>, StorageError> {
        while let Some(end) = self.durable.range_end(self.next) {
            self.next = end;
        }
        let at = self.next;
        if at >= self.geometry.chunks().end {
            return Ok(None);
        }
        let hole_end = self.hole_end(at)?;
        let work = if hole_end > at {
            let durable_at = self.durable.next_from(at).unwrap_or(hole_end);
            let end = hole_end
                .min(durable_at)
                .min(ChunkIndex(at.0.saturating_add(ZERO_RANGE_MAX)));
            self.next = end;
            Work::Zero(ChunkRange { start: at, end })
        } else {
            self.next = ChunkRange::one(at).end;
            Work::Read(at)
        };
        Ok(Some(work))
    }

    /// The first chunk at or behind `at` that may hold data.
    fn hole_end(&mut self, at: ChunkIndex) -> Result<ChunkIndex, StorageError> {
        let start = self.geometry.bytes_of(ChunkRange::one(at)).start();
        if self.data.is_none_or(|data| data.end() <= start) {
            let behind = ByteRange::new(self.geometry.volume_size(), self.geometry.volume_size());
            self.data = Some(self.source.next_data(start)?.unwrap_or(behind));
        }
        let end = match self.data {
            Some(data) if !data.is_empty() => self.geometry.chunk_at(data.start()),
            _ => self.geometry.chunks().end,
        };
        // The device or file may be larger than the volume.
        let end = end.min(self.geometry.chunks().end);
        Ok(end.max(at))
    }
}

#[cfg(test)]
mod tests {
    use volferry_protocol::geometry::ChunkSize;
    use volferry_storage::{SourceOptions, open_source};

    use super::*;

    const CHUNK: u64 = 65536;

    fn range(start: u64, end: u64) -> ChunkRange {
        ChunkRange {
            start: ChunkIndex(start),
            end: ChunkIndex(end),
        }
    }

    /// What the cursor hands out for a file with data in these bytes.
    fn work(size: u64, data: &[(u64, u64)], durable: &[ChunkRange]) -> Vec<Work> {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(size).unwrap();
        for (start, end) in data {
            let bytes = vec![1; usize::try_from(end - start).unwrap()];
            std::os::unix::fs::FileExt::write_all_at(file.as_file(), &bytes, *start).unwrap();
        }
        let source = open_source(file.path(), &SourceOptions::default()).unwrap();
        let geometry = Geometry::new(size, ChunkSize::MIN).unwrap();
        let mut set = ChunkSet::default();
        durable.iter().for_each(|range| set.insert(*range));
        let mut cursor = Cursor::new(source, geometry, set);
        std::iter::from_fn(|| cursor.next().unwrap()).collect()
    }

    #[test]
    fn holes_are_not_read() {
        let read = |index| Work::Read(ChunkIndex(index));
        let zero = |start, end| Work::Zero(range(start, end));
        assert_eq!(work(0, &[], &[]), []);
        assert_eq!(work(10 * CHUNK, &[], &[]), [zero(0, 10)]);
        assert_eq!(work(CHUNK + 1, &[(0, 1)], &[]), [read(0), zero(1, 2)]);
        let islands = [(5 * CHUNK, 6 * CHUNK), (8 * CHUNK + 4096, 9 * CHUNK + 4096)];
        assert_eq!(
            work(20 * CHUNK, &islands, &[]),
            [
                zero(0, 5),
                read(5),
                zero(6, 8),
                read(8),
                read(9),
                zero(10, 20)
            ]
        );
    }

    #[test]
    fn what_is_durable_is_passed_over() {
        let read = |index| Work::Read(ChunkIndex(index));
        let zero = |start, end| Work::Zero(range(start, end));
        let islands = [(5 * CHUNK, 8 * CHUNK)];
        assert_eq!(
            work(
                10 * CHUNK,
                &islands,
                &[range(0, 1), range(2, 4), range(6, 7), range(9, 10)]
            ),
            [zero(1, 2), zero(4, 5), read(5), read(7), zero(8, 9)]
        );
        assert_eq!(work(4 * CHUNK, &[], &[range(0, 4)]), []);
    }

    #[test]
    fn a_large_hole_comes_in_pieces() {
        let pieces = work(10_000 * CHUNK, &[], &[]);
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces.last(), Some(&Work::Zero(range(8192, 10_000))));
    }
}
