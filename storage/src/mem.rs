//! Volumes in memory, for tests: what was written but not flushed can be lost in a crash.
//!
//! A [`MemVolume`] keeps two images. Writes and zeros land in the volatile one, which reads show; a
//! flush carries them over to the durable one; [`MemVolume::crash`] goes back to it. Real devices
//! may keep any part of what was not flushed, so [`MemVolume::crash_keeping`] lets a test choose.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use volferry_protocol::geometry::{BLOCK_SIZE, ByteRange};
use volferry_protocol::zero_map::is_zero;

use crate::error::StorageError;
use crate::source::Generation;
use crate::{Sink, Source, check_within, range_within};

/// A volume in memory, source and sink at once. Clones are handles to the same volume.
#[derive(Clone, Debug)]
pub struct MemVolume {
    state: Arc<Mutex<State>>,
    size: u64,
    is_fresh: bool,
}

#[derive(Debug)]
struct State {
    volatile: Vec<u8>,
    durable: Vec<u8>,
    /// What was written since the last flush, in order; it may overlap.
    unflushed: Vec<ByteRange>,
    flush_count: u64,
}

impl MemVolume {
    /// A volume of `size` bytes that holds zeros, as a fresh file does.
    #[must_use]
    pub fn fresh(size: usize) -> Self {
        Self::new(vec![0; size], true)
    }

    /// A volume that durably holds `content`, as a device does; its zeros must be made.
    #[must_use]
    pub fn holding(content: Vec<u8>) -> Self {
        Self::new(content, false)
    }

    fn new(content: Vec<u8>, is_fresh: bool) -> Self {
        Self {
            size: content.len() as u64,
            is_fresh,
            state: Arc::new(Mutex::new(State {
                volatile: content.clone(),
                durable: content,
                unflushed: Vec::new(),
                flush_count: 0,
            })),
        }
    }

    /// Loses all that was not flushed.
    pub fn crash(&self) {
        self.crash_keeping(|_| false);
    }

    /// Loses those writes since the last flush for which `keep` says no, and makes the others
    /// durable. Of an overlapping write that was lost, a kept one carries what it covers.
    pub fn crash_keeping(&self, mut keep: impl FnMut(ByteRange) -> bool) {
        let mut state = self.state();
        let unflushed = std::mem::take(&mut state.unflushed);
        for range in unflushed.into_iter().filter(|range| keep(*range)) {
            state.harden(range);
        }
        state.volatile = state.durable.clone();
    }

    /// What reads show.
    #[must_use]
    pub fn content(&self) -> Vec<u8> {
        self.state().volatile.clone()
    }

    /// What a crash would leave.
    #[must_use]
    pub fn durable_content(&self) -> Vec<u8> {
        self.state().durable.clone()
    }

    /// How often the volume was flushed.
    #[must_use]
    pub fn flush_count(&self) -> u64 {
        self.state().flush_count
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Ranges are checked before the lock is taken, so no holder panics half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let range = range_within(Path::new(PATH), offset, buffer.len(), self.size)?;
        buffer.copy_from_slice(&self.state().volatile[indices(range)]);
        Ok(())
    }
}

impl State {
    fn harden(&mut self, range: ByteRange) {
        let range = indices(range);
        self.durable[range.clone()].copy_from_slice(&self.volatile[range]);
    }
}

impl Source for MemVolume {
    fn size(&self) -> u64 {
        self.size
    }

    /// The next run of blocks that hold data, as exact as a filesystem at its best.
    fn next_data(&self, from: u64) -> Result<Option<ByteRange>, StorageError> {
        if from >= self.size {
            return Ok(None);
        }
        let state = self.state();
        let block = u64::from(BLOCK_SIZE);
        let holds_data = |at: &u64| {
            let range = ByteRange::new(*at, (*at + block).min(self.size));
            !is_zero(&state.volatile[indices(range)])
        };
        let mut blocks = (from / block * block..self.size).step_by(BLOCK_SIZE as usize);
        let Some(first) = blocks.find(holds_data) else {
            return Ok(None);
        };
        let end = blocks.find(|at| !holds_data(at)).unwrap_or(self.size);
        Ok(Some(ByteRange::new(first.max(from), end)))
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.read(offset, buffer)
    }

    fn check_size(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn generation(&self) -> Result<Generation, StorageError> {
        Ok(Generation {
            size: self.size,
            file: None,
        })
    }

    fn path(&self) -> &Path {
        Path::new(PATH)
    }

    fn reads_direct(&self) -> bool {
        true
    }
}

impl Sink for MemVolume {
    fn size(&self) -> u64 {
        self.size
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let range = range_within(Path::new(PATH), offset, bytes.len(), self.size)?;
        let mut state = self.state();
        state.volatile[indices(range)].copy_from_slice(bytes);
        state.unflushed.push(range);
        Ok(())
    }

    fn zero(&self, range: ByteRange) -> Result<(), StorageError> {
        let range = check_within(Path::new(PATH), range, self.size)?;
        let mut state = self.state();
        state.volatile[indices(range)].fill(0);
        state.unflushed.push(range);
        Ok(())
    }

    fn zeroes_for_free(&self) -> bool {
        self.is_fresh
    }

    fn flush(&self) -> Result<(), StorageError> {
        let mut state = self.state();
        for range in std::mem::take(&mut state.unflushed) {
            state.harden(range);
        }
        state.flush_count += 1;
        Ok(())
    }

    fn allocated_bytes(&self) -> Option<u64> {
        None
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        self.read(offset, buffer)
    }

    fn path(&self) -> &Path {
        Path::new(PATH)
    }

    fn mark(&self) -> u64 {
        0
    }

    fn writes_direct(&self) -> bool {
        true
    }
}

/// The place of a range that lies within the volume, whose size a `usize` holds.
fn indices(range: ByteRange) -> std::ops::Range<usize> {
    let index = |offset| usize::try_from(offset).unwrap_or(usize::MAX);
    index(range.start())..index(range.end())
}

const PATH: &str = "memory";

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = BLOCK_SIZE as u64;

    #[test]
    fn a_crash_loses_what_was_not_flushed() {
        let volume = MemVolume::fresh(8192);
        volume.write_at(0, b"kept").unwrap();
        volume.flush().unwrap();
        volume.write_at(0, b"lost").unwrap();
        volume.write_at(4096, b"torn").unwrap();
        volume.crash_keeping(|range| range.start() == 4096);
        assert_eq!(&volume.content()[..4], b"kept");
        assert_eq!(&volume.content()[4096..4100], b"torn");
        volume.zero(ByteRange::new(0, 8192)).unwrap();
        volume.crash();
        assert_eq!(&volume.content()[..4], b"kept", "zeros are lost too");
    }

    #[test]
    fn data_is_found_block_by_block() {
        let volume = MemVolume::fresh(10 * BLOCK_SIZE as usize + 3);
        volume.write_at(2 * BLOCK + 5, &[1]).unwrap();
        volume.write_at(10 * BLOCK + 2, &[1]).unwrap();
        let next = |from| volume.next_data(from).unwrap();
        assert_eq!(next(0), Some(ByteRange::new(2 * BLOCK, 3 * BLOCK)));
        assert_eq!(
            next(2 * BLOCK + 9),
            Some(ByteRange::new(2 * BLOCK + 9, 3 * BLOCK))
        );
        assert_eq!(
            next(3 * BLOCK),
            Some(ByteRange::new(10 * BLOCK, 10 * BLOCK + 3))
        );
        assert_eq!(next(10 * BLOCK + 3), None);
    }

    #[test]
    fn what_lies_outside_is_refused() {
        let volume = MemVolume::fresh(10);
        assert!(matches!(
            volume.write_at(9, b"ab"),
            Err(StorageError::OutOfBounds { .. })
        ));
        assert!(volume.zero(ByteRange::new(0, 11)).is_err());
        assert!(volume.write_at(u64::MAX, b"ab").is_err());
    }
}
