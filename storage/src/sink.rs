//! A prepared target: a block device or a regular file.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::io::Errno;
use volferry_protocol::geometry::ByteRange;

use crate::error::{Operation, StorageError};
use crate::handle::{Handle, retry_interrupted};
use crate::target::{Room, allocated_bytes, file_mark, parent};
use crate::zeroing::Zeroing;
use crate::{Sink, check_within, range_within};

#[derive(Debug)]
pub(crate) struct VolumeSink {
    handle: Handle,
    zeroing: Zeroing,
    size: u64,
    room: Room,
    /// The directory of a file until its entry is known to be durable. Also that of a file which
    /// was there before: an earlier attempt may have created it and died before its first flush.
    unflushed_parent: Mutex<Option<PathBuf>>,
}

impl VolumeSink {
    pub(crate) fn new(handle: Handle, zeroing: Zeroing, size: u64, room: Room) -> Self {
        let parent = (room != Room::Device).then(|| parent(handle.path()).to_owned());
        Self {
            handle,
            zeroing,
            size,
            room,
            unflushed_parent: Mutex::new(parent),
        }
    }
}

impl Sink for VolumeSink {
    fn size(&self) -> u64 {
        self.size
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        range_within(self.path(), offset, bytes.len(), self.size)?;
        self.handle.write_at(offset, bytes)
    }

    fn zero(&self, range: ByteRange) -> Result<(), StorageError> {
        check_within(self.path(), range, self.size)?;
        self.zeroing.zero(&self.handle, range)
    }

    fn zeroes_for_free(&self) -> bool {
        self.room == Room::FreshFile
    }

    /// The first flush of a file makes durable, in this order, its content with its metadata and
    /// its entry in the directory. A crash between the two leaves a file that nobody can name,
    /// which is as good as none: nothing was promised yet.
    fn flush(&self) -> Result<(), StorageError> {
        // Held throughout: a second flusher must not return before the entry is durable.
        let mut unflushed_parent = self
            .unflushed_parent
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        self.handle.flush(unflushed_parent.is_some())?;
        if let Some(parent) = unflushed_parent.as_deref() {
            flush_directory(parent).inspect_err(|_| self.handle.lose_writes())?;
        }
        *unflushed_parent = None;
        Ok(())
    }

    fn allocated_bytes(&self) -> Option<u64> {
        match self.room {
            Room::Device => None,
            Room::DirtyFile | Room::FreshFile => allocated_bytes(self.handle.main()),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        let range = range_within(self.path(), offset, buffer.len(), self.size)?;
        self.handle.forget(range)?;
        self.handle.read_at(offset, buffer, self.size)
    }

    fn mark(&self) -> u64 {
        match self.room {
            Room::Device => 0,
            Room::DirtyFile | Room::FreshFile => self
                .handle
                .main()
                .metadata()
                .map_or(0, |metadata| file_mark(&metadata)),
        }
    }

    fn path(&self) -> &Path {
        self.handle.path()
    }

    fn writes_direct(&self) -> bool {
        self.handle.is_direct()
    }
}

/// Makes the entries of a directory durable. A filesystem that can't flush a directory by itself
/// refuses, and leaves nothing more to do.
fn flush_directory(path: &Path) -> Result<(), StorageError> {
    let flush = || File::open(path)?.sync_all();
    retry_interrupted(flush).or_else(|error| match Errno::from_io_error(&error) {
        Some(Errno::INVAL | Errno::OPNOTSUPP) => Ok(()),
        _ => Err(StorageError::io(Operation::Flush, path)(error)),
    })
}
