//! Volumes and system calls: what the source end reads and what the target end writes.
//!
//! A [`Source`] tells where its data may be and reads it; a [`Sink`] takes data, makes ranges zero
//! and makes both durable. Both are blocking and meant for a few named threads at once. Behind the
//! two traits are block devices and regular files ([`open_source`], [`TargetVolume`]), memory
//! ([`mem`]), and a wrapper that fails on purpose ([`fault`]). The chunks in flight live in buffers
//! from one bounded [`BufferPool`].
//!
//! What the crate promises to the agents:
//!
//! - **A zero is a zero.** [`Sink::zero`] leaves zeros whatever the target held before.
//! - **A flush is a flush.** What was written before [`Sink::flush`] returned survives a power cut,
//!   and once a flush failed none succeeds again.
//! - **Nobody else's volume is touched.** A target that is mounted, claimed, locked, backing a loop
//!   device, swap, or simply there already is refused before a byte is written.
//! - **The page cache stays small.** Volumes are reached past it where possible, and in a bounded
//!   window where not.
//!
//! All `unsafe` of the project lives in the private module `sys`.

mod buffer;
mod error;
pub mod fault;
mod handle;
mod in_use;
pub mod mem;
mod priority;
mod same;
mod sink;
mod source;
mod sys;
mod sysfs;
mod target;
pub mod tree;
mod window;
mod zeroing;

use std::fmt::Debug;
use std::path::Path;

use volferry_protocol::geometry::ByteRange;

pub use buffer::{Buffer, BufferPool, PoolError};
pub use error::{InUseBy, Operation, StorageError, UnsupportedKind};
pub use priority::IoPriority;
pub use same::{SameReason, same_volume};
pub use source::{FileIdentity, Generation, SourceOptions, open_source};
pub use sys::keep_freed_memory;
pub use target::{TargetOptions, TargetVolume, file_mark};

/// A volume to read.
///
/// The content should stand still while it is cloned, and the trait helps to notice when it does
/// not: [`Source::generation`] before and after, [`Source::check_size`] at the end.
pub trait Source: Send + Sync + Debug {
    /// Bytes of the volume when it was opened.
    fn size(&self) -> u64;

    /// The next range at or after `from` that may hold data; it ends within the volume. `None` says
    /// that only zeros follow. What lies between `from` and the range reads as zeros.
    ///
    /// # Errors
    /// When the filesystem fails to tell; one that can't tell at all counts as holding data
    /// everywhere.
    fn next_data(&self, from: u64) -> Result<Option<ByteRange>, StorageError>;

    /// Fills `buffer` with the bytes at `offset`.
    ///
    /// # Errors
    /// When the range lies outside the volume, a read fails, or the volume ended early because it
    /// shrank.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError>;

    /// Checks that the volume still has the size it had when it was opened.
    ///
    /// # Errors
    /// [`StorageError::Resized`] when it has not.
    fn check_size(&self) -> Result<(), StorageError>;

    /// What distinguishes this state of the volume from others, as far as the system can tell.
    ///
    /// # Errors
    /// When the volume can't be inspected any more.
    fn generation(&self) -> Result<Generation, StorageError>;

    /// Where the volume is, for messages.
    fn path(&self) -> &Path;

    /// Whether reads go past the page cache.
    fn reads_direct(&self) -> bool;
}

/// A volume to write.
///
/// Ranges written or zeroed at the same time by different threads must not share a chunk.
pub trait Sink: Send + Sync + Debug {
    /// Bytes of the volume. The device or file behind it may be larger; what lies beyond is never
    /// touched.
    fn size(&self) -> u64;

    /// Writes `bytes` at `offset`. They are visible to reads at once, durable after a flush.
    ///
    /// # Errors
    /// When the range lies outside the volume or a write fails.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError>;

    /// Makes `range` read as zeros, whatever it held, and keeps it sparse where that was wanted and
    /// is possible.
    ///
    /// # Errors
    /// When the range lies outside the volume or writing fails.
    fn zero(&self, range: ByteRange) -> Result<(), StorageError>;

    /// Whether every range that was never written through this sink reads as zeros without
    /// [`Sink::zero`].
    fn zeroes_for_free(&self) -> bool;

    /// Makes everything that was written or zeroed before the call durable.
    ///
    /// # Errors
    /// When that failed. No later flush of this sink succeeds then: the kernel may have thrown away
    /// what it could not write, and says so once.
    fn flush(&self) -> Result<(), StorageError>;

    /// Bytes that the volume takes on its filesystem; `None` for a device.
    fn allocated_bytes(&self) -> Option<u64>;

    /// Fills `buffer` with the bytes at `offset` from the storage, past the page cache.
    ///
    /// # Errors
    /// As for [`Source::read_at`].
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError>;

    /// What tells a file from others, as [`file_mark`] makes it; 0 for what is none.
    fn mark(&self) -> u64;

    /// Where the volume is, for messages.
    fn path(&self) -> &Path;

    /// Whether writes go past the page cache.
    fn writes_direct(&self) -> bool;
}

/// The range of `len` bytes at `offset`, which must lie in the `size` bytes of the volume.
fn range_within(
    path: &Path,
    offset: u64,
    len: usize,
    size: u64,
) -> Result<ByteRange, StorageError> {
    let end = offset.saturating_add(len as u64);
    check_within(path, ByteRange::new(offset, end), size)
}

/// Passes `range` on when it lies in the `size` bytes of the volume.
fn check_within(path: &Path, range: ByteRange, size: u64) -> Result<ByteRange, StorageError> {
    if range.end() <= size {
        return Ok(range);
    }
    Err(StorageError::OutOfBounds {
        path: path.to_owned(),
        range,
        size,
    })
}
