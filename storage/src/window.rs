//! The bounded window of buffered writing.
//!
//! Left alone, the kernel lets dirty pages pile up to a share of the machine's memory, and charges
//! them to the pod. So write-back is started every [`WINDOW_BYTES`], and the batch before it is
//! waited for and dropped from the page cache: at any time about two windows are dirty or on their
//! way. The thread that fills a window does the waiting, which is the back-pressure.

use std::fs::File;
use std::io;
use std::mem;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{Advice, OFlags};
use rustix::io::Errno;
use volferry_protocol::geometry::ByteRange;

use crate::handle::{advise, reopen, retry_interrupted};
use crate::sys;

/// Bytes written between two write-backs: enough for a device to work in large requests, little
/// beside a pod's memory.
const WINDOW_BYTES: u64 = 8 << 20;

/// What was written through the page cache and may not have left it.
#[derive(Debug)]
pub(crate) struct Window {
    /// An opening of its own: the kernel reports a failed write-back once to each, so that an error
    /// seen here is still there for the flush. `None` where the file can't be opened twice; then
    /// the flusher alone bounds what is dirty.
    file: Option<File>,
    batches: Mutex<Batches>,
}

#[derive(Debug, Default)]
struct Batches {
    /// Written since the last write-back was started.
    filling: Batch,
    /// Being written back.
    draining: Batch,
}

/// Some writes and the range that holds them all. Writers work in volume order, so the range is
/// hardly longer than the writes; pages between them that are clean cost nothing.
#[derive(Clone, Copy, Debug, Default)]
struct Batch {
    written_bytes: u64,
    hull: Option<ByteRange>,
}

impl Batch {
    fn add(&mut self, range: ByteRange) {
        self.written_bytes += range.len();
        self.hull = Some(self.hull.map_or(range, |hull| {
            ByteRange::new(hull.start().min(range.start()), hull.end().max(range.end()))
        }));
    }
}

impl Window {
    /// The window of the file that `main` has open.
    pub(crate) fn open(main: &File) -> Self {
        Self {
            file: reopen(main, OFlags::RDONLY).ok(),
            batches: Mutex::default(),
        }
    }

    /// Notes a write, and moves the window on when it is full.
    ///
    /// # Errors
    /// When write-back failed, of these bytes or of earlier ones.
    pub(crate) fn wrote(&self, range: ByteRange) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let Some((full, before)) = self.advance(range) else {
            return Ok(());
        };
        if let Some(hull) = full.hull {
            tolerant(|| sys::start_writeback(file, hull))?;
        }
        before.hull.map_or(Ok(()), |hull| self.settle(hull))
    }

    /// Writes back `range`, waits for it, and drops it from the page cache.
    ///
    /// # Errors
    /// When write-back failed.
    pub(crate) fn settle(&self, range: ByteRange) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        tolerant(|| sys::wait_for_writeback(file, range))?;
        advise(file, range, Advice::DontNeed);
        Ok(())
    }

    /// Adds a write; once the window is full, gives the batch to start and the one to wait for.
    fn advance(&self, range: ByteRange) -> Option<(Batch, Batch)> {
        // Nothing in here panics half-way, so what a poisoned lock holds is whole.
        let mut batches = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        batches.filling.add(range);
        if batches.filling.written_bytes < WINDOW_BYTES {
            return None;
        }
        let full = mem::take(&mut batches.filling);
        Some((full, mem::replace(&mut batches.draining, full)))
    }
}

/// Runs `call`; that the kernel can't write back ranges of this file is no failure of the file.
fn tolerant(call: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    retry_interrupted(call).or_else(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOSYS | Errno::OPNOTSUPP | Errno::SPIPE | Errno::INVAL) => Ok(()),
        _ => Err(error),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_spans_its_writes() {
        let mut batch = Batch::default();
        batch.add(ByteRange::new(8192, 12288));
        batch.add(ByteRange::new(0, 4096));
        assert_eq!(batch.hull, Some(ByteRange::new(0, 12288)));
        assert_eq!(batch.written_bytes, 8192, "the gap was not written");
    }

    #[test]
    fn the_window_moves_on_when_it_is_full() {
        let window = Window::open(&tempfile::tempfile().unwrap());
        let first = ByteRange::new(0, WINDOW_BYTES);
        let second = ByteRange::new(first.end(), first.end() + WINDOW_BYTES);
        assert!(window.advance(ByteRange::new(0, 4096)).is_none());
        let (full, before) = window.advance(ByteRange::new(4096, first.end())).unwrap();
        assert_eq!((full.hull, before.hull), (Some(first), None));
        let (full, before) = window.advance(second).unwrap();
        assert_eq!((full.hull, before.hull), (Some(second), Some(first)));
    }

    #[test]
    fn a_missing_call_is_tolerated_and_a_failing_device_is_not() {
        assert!(tolerant(|| Err(Errno::OPNOTSUPP.into())).is_ok());
        assert!(tolerant(|| Err(Errno::IO.into())).is_err());
    }
}
