//! What to read next: the volume's chunks in order, holes left out.
//!
//! Where the filesystem knows of a hole, its chunks become one zero range without any read. Chunks
//! that the target holds already are passed over, or read for their digest alone where a manifest
//! wants it.

use std::sync::Arc;

use volferry_protocol::geometry::{ByteRange, ChunkIndex, ChunkRange, Geometry};
use volferry_protocol::range_set::ChunkSet;
use volferry_storage::{Source, StorageError};

/// The most chunks in one zero range. The target zeroes it in pieces, but has to take it in whole.
const ZERO_RANGE_MAX: u64 = 4096;

/// A piece of work for a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Work {
    /// Read this chunk: it may hold data.
    Read(ChunkIndex),
    /// These chunks are a hole.
    Zero(ChunkRange),
    /// Read this chunk for its digest: the target has it, the manifest not yet.
    Digest(ChunkIndex),
}

/// Hands out the volume, once, in order.
#[derive(Debug)]
pub(crate) struct Cursor {
    source: Arc<dyn Source>,
    geometry: Geometry,
    /// Not to be sent.
    skip: ChunkSet,
    /// Of these, not even to be read.
    known: ChunkSet,
    next: ChunkIndex,
    /// The data that was found last; chunks before its start are a hole.
    data: Option<ByteRange>,
}

impl Cursor {
    /// Hands out what is not in `skip`, and for its digest what is in `skip` but not in `known`.
    pub(crate) fn new(
        source: Arc<dyn Source>,
        geometry: Geometry,
        skip: ChunkSet,
        known: ChunkSet,
    ) -> Self {
        Self {
            source,
            geometry,
            skip,
            known,
            next: ChunkIndex(0),
            data: None,
        }
    }

    /// The next piece of work; `None` at the end of the volume.
    pub(crate) fn next(&mut self) -> Result<Option<Work>, StorageError> {
        loop {
            while let Some(end) = self.known.range_end(self.next) {
                self.next = end;
            }
            let at = self.next;
            if at >= self.geometry.chunks().end {
                return Ok(None);
            }
            let hole_end = self.hole_end(at)?;
            let skip_end = self.skip.range_end(at);
            let work = match (hole_end > at, skip_end) {
                (true, Some(skip_end)) => {
                    // No manifest speaks of zeros.
                    self.next = hole_end.min(skip_end);
                    continue;
                }
                (true, None) => {
                    let skip_at = self.skip.next_from(at).unwrap_or(hole_end);
                    let end = hole_end
                        .min(skip_at)
                        .min(ChunkIndex(at.0.saturating_add(ZERO_RANGE_MAX)));
                    self.next = end;
                    Work::Zero(ChunkRange { start: at, end })
                }
                (false, skip_end) => {
                    self.next = ChunkRange::one(at).end;
                    skip_end.map_or(Work::Read(at), |_| Work::Digest(at))
                }
            };
            return Ok(Some(work));
        }
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
        let mut cursor = Cursor::new(source, geometry, set.clone(), set);
        std::iter::from_fn(|| cursor.next().unwrap()).collect()
    }

    #[test]
    fn what_a_manifest_lacks_is_read_for_its_digest() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(8 * CHUNK).unwrap();
        let bytes = vec![1; 4 * 65536];
        std::os::unix::fs::FileExt::write_all_at(file.as_file(), &bytes, 0).unwrap();
        let source = open_source(file.path(), &SourceOptions::default()).unwrap();
        let geometry = Geometry::new(8 * CHUNK, ChunkSize::MIN).unwrap();
        let (mut skip, mut known) = (ChunkSet::default(), ChunkSet::default());
        skip.insert(range(0, 3));
        skip.insert(range(5, 8));
        known.insert(range(1, 2));
        let mut cursor = Cursor::new(source, geometry, skip, known);
        let work: Vec<_> = std::iter::from_fn(|| cursor.next().unwrap()).collect();
        assert_eq!(
            work,
            [
                Work::Digest(ChunkIndex(0)),
                Work::Digest(ChunkIndex(2)),
                Work::Read(ChunkIndex(3)),
                Work::Zero(range(4, 5))
            ]
        );
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
