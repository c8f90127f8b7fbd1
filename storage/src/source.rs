//! Volumes to read: block devices and regular files.
//!
//! No lock is taken on a source: a shared lock would be seen by a virtual machine that tries to
//! lock its image for writing, and a reader must not disturb who owns the volume. A mounted device
//! can be read for the same reason; that its content stands still is for the caller to see to.

use std::fs::{self, File};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Advice, Mode, OFlags, SeekFrom};
use rustix::io::Errno;
use volferry_protocol::geometry::ByteRange;

use crate::error::{Operation, StorageError, UnsupportedKind};
use crate::handle::{Handle, advise, current_size};
use crate::{Source, range_within};

/// How to read a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceOptions {
    /// Read past the page cache where the volume lets us.
    pub direct: bool,
}

impl Default for SourceOptions {
    fn default() -> Self {
        Self { direct: true }
    }
}

/// A state of a volume: two that differ show different content, perhaps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Generation {
    /// Bytes of the volume.
    pub size: u64,
    /// What else a file has; `None` for a device, which tells nothing but its size.
    pub file: Option<FileIdentity>,
}

/// Which file it is, and when it changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileIdentity {
    /// The number of the filesystem's device.
    pub device: u64,
    /// The inode's number in its filesystem.
    pub inode: u64,
    /// When the content changed, in nanoseconds since 1970.
    pub mtime_ns: i64,
    /// When the content or the inode changed, in nanoseconds since 1970.
    pub ctime_ns: i64,
}

/// Opens the volume at `path` for reading.
///
/// # Errors
/// When the path names neither a regular file nor a block device, or can't be opened.
pub fn open_source(path: &Path, options: &SourceOptions) -> Result<Arc<dyn Source>, StorageError> {
    let metadata = fs::metadata(path).map_err(StorageError::io(Operation::Open, path))?;
    let kind = VolumeKind::of(path, &metadata)?;
    let main: File = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| StorageError::io(Operation::Open, path)(errno.into()))?
        .into();
    let size = current_size(&main).map_err(StorageError::io(Operation::Inspect, path))?;
    advise(&main, ByteRange::new(0, size), Advice::Sequential);
    let handle = Handle::new(path.to_owned(), main, OFlags::RDONLY, options.direct);
    Ok(Arc::new(VolumeSource { handle, kind, size }))
}

/// The kinds of volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VolumeKind {
    /// A regular file.
    File,
    /// A block device.
    Device,
}

impl VolumeKind {
    /// The kind of what is at `path`.
    ///
    /// # Errors
    /// [`StorageError::UnsupportedKind`] when it is no volume.
    pub(crate) fn of(path: &Path, metadata: &fs::Metadata) -> Result<Self, StorageError> {
        let file_type = metadata.file_type();
        let unsupported = |kind| StorageError::UnsupportedKind {
            path: path.to_owned(),
            kind,
        };
        if file_type.is_file() {
            Ok(Self::File)
        } else if file_type.is_block_device() {
            Ok(Self::Device)
        } else if file_type.is_dir() {
            Err(unsupported(UnsupportedKind::Directory))
        } else {
            Err(unsupported(UnsupportedKind::Special))
        }
    }
}

#[derive(Debug)]
struct VolumeSource {
    handle: Handle,
    kind: VolumeKind,
    size: u64,
}

impl Source for VolumeSource {
    fn size(&self) -> u64 {
        self.size
    }

    fn next_data(&self, from: u64) -> Result<Option<ByteRange>, StorageError> {
        if from >= self.size {
            return Ok(None);
        }
        let rest = ByteRange::new(from, self.size);
        if self.kind == VolumeKind::Device {
            return Ok(Some(rest));
        }
        // The file position is shared by all threads, but nothing here reads from it.
        let seek = |place| match rustix::fs::seek(self.handle.main(), place) {
            Err(Errno::NXIO) => Ok(self.size), // nothing of that kind follows
            answer => answer,
        };
        let found = seek(SeekFrom::Data(from)).and_then(|start| {
            let end = seek(SeekFrom::Hole(start.min(self.size)))?;
            Ok((start, end))
        });
        match found {
            Ok((start, end)) => {
                let data = ByteRange::new(start, end.max(start)).intersect(rest);
                Ok((!data.is_empty()).then_some(data))
            }
            Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(Some(rest)),
            Err(errno) => Err(StorageError::at(Operation::Seek, self.handle.path(), rest)(
                errno.into(),
            )),
        }
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<(), StorageError> {
        range_within(self.handle.path(), offset, buffer.len(), self.size)?;
        self.handle.read_at(offset, buffer, self.size)
    }

    fn check_size(&self) -> Result<(), StorageError> {
        let actual = self.handle.current_size()?;
        if actual == self.size {
            return Ok(());
        }
        Err(StorageError::Resized {
            path: self.handle.path().to_owned(),
            expected: self.size,
            actual,
        })
    }

    fn generation(&self) -> Result<Generation, StorageError> {
        let size = self.handle.current_size()?;
        let metadata = self
            .handle
            .main()
            .metadata()
            .map_err(StorageError::io(Operation::Inspect, self.handle.path()))?;
        let file = (self.kind == VolumeKind::File).then(|| FileIdentity {
            device: metadata.dev(),
            inode: metadata.ino(),
            mtime_ns: nanoseconds(metadata.mtime(), metadata.mtime_nsec()),
            ctime_ns: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        });
        Ok(Generation { size, file })
    }

    fn path(&self) -> &Path {
        self.handle.path()
    }

    fn reads_direct(&self) -> bool {
        self.handle.is_direct()
    }
}

/// Seconds and nanoseconds in one number; it saturates in the year 2262.
const fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds
        .saturating_mul(1_000_000_000)
        .saturating_add(nanoseconds)
}
