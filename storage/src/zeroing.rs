//! Making a range zero, by the cheapest way that the volume knows.
//!
//! There are three ways, from the best to the one that always works:
//!
//! 1. Punch a hole: the space is given back. A block device deallocates, and promises zeros.
//! 2. Zero the range: the space stays allocated, but no zeros travel.
//! 3. Write zeros.
//!
//! A way that was refused once is not tried again on the same volume.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;
use volferry_protocol::geometry::ByteRange;

use crate::error::{Operation, StorageError};
use crate::handle::{Handle, retry_interrupted};

/// The best way that is left, for one volume.
#[derive(Debug)]
pub(crate) struct Zeroing(AtomicU8);

/// One of the three ways; a refusal leads to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Way {
    /// Give the space back.
    Punch = 0,
    /// Keep the space.
    ZeroRange = 1,
    /// Write zeros.
    Write = 2,
}

impl Zeroing {
    /// Begins with the way `first`.
    pub(crate) const fn starting_with(first: Way) -> Self {
        Self(AtomicU8::new(first as u8))
    }

    /// Makes `range` of the volume zero.
    ///
    /// Only whole units are handed to the kernel: a device refuses others, a filesystem would
    /// write the edges by itself. Here the edges are always written.
    pub(crate) fn zero(&self, handle: &Handle, range: ByteRange) -> Result<(), StorageError> {
        let unit = handle.unit();
        let inner_start = range.start().next_multiple_of(unit).min(range.end());
        let inner_end = (range.end() / unit * unit).max(inner_start);
        write_zeros(handle, ByteRange::new(range.start(), inner_start))?;
        self.zero_units(handle, ByteRange::new(inner_start, inner_end))?;
        write_zeros(handle, ByteRange::new(inner_end, range.end()))
    }

    fn zero_units(&self, handle: &Handle, range: ByteRange) -> Result<(), StorageError> {
        if range.is_empty() {
            return Ok(());
        }
        loop {
            let way = self.best();
            let flags = match way {
                Way::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                Way::ZeroRange => FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE,
                Way::Write => return write_zeros(handle, range),
            };
            match fallocate(handle.main(), flags, range) {
                Err(error) if is_refusal(&error) => {
                    tracing::debug!(path = %handle.path().display(), ?way, %error, "can't zero so");
                    self.0.fetch_max(way as u8 + 1, Ordering::Relaxed);
                }
                answer => {
                    return answer.map_err(StorageError::at(Operation::Zero, handle.path(), range));
                }
            }
        }
    }

    fn best(&self) -> Way {
        match self.0.load(Ordering::Relaxed) {
            0 => Way::Punch,
            1 => Way::ZeroRange,
            _ => Way::Write,
        }
    }
}

/// Calls fallocate(2), again when a signal interrupts it.
pub(crate) fn fallocate(file: &File, flags: FallocateFlags, range: ByteRange) -> io::Result<()> {
    retry_interrupted(|| {
        Ok(rustix::fs::fallocate(
            file,
            flags,
            range.start(),
            range.len(),
        )?)
    })
}

/// Whether the volume doesn't know this way, as opposed to failing at it. A storage target that
/// claims a way and then refuses it answers with `EREMOTEIO`.
pub(crate) fn is_refusal(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL | Errno::REMOTEIO)
    )
}

/// Writes zeros over `range`.
pub(crate) fn write_zeros(handle: &Handle, range: ByteRange) -> Result<(), StorageError> {
    let mut at = range.start();
    while at < range.end() {
        let left = usize::try_from(range.end() - at).unwrap_or(usize::MAX);
        let zeros = &ZEROS.0[..left.min(ZEROS.0.len())];
        handle.write_at(at, zeros)?;
        at += zeros.len() as u64;
    }
    Ok(())
}

/// Zeros to write from, aligned as direct I/O likes it.
#[repr(align(4096))]
struct Zeros([u8; 128 << 10]);

static ZEROS: Zeros = Zeros([0; 128 << 10]);
