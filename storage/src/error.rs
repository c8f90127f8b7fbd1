//! What can go wrong with a volume, and what to do about it.
//!
//! An error names the volume, the operation and the place; it doesn't say whether the volume is the
//! source or the target, since only the agent that opened it knows.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use volferry_protocol::geometry::ByteRange;

/// Why a volume could not be opened, prepared, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    /// The kernel refused an operation on the volume as a whole.
    #[error("could not {operation} {}", path.display())]
    Io {
        /// What was tried.
        operation: Operation,
        /// The volume.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel refused an operation on some bytes of the volume.
    #[error("could not {operation} bytes {range} of {}", path.display())]
    IoAt {
        /// What was tried.
        operation: Operation,
        /// The volume.
        path: PathBuf,
        /// The bytes that were not yet done; the first of them is where it failed.
        range: ByteRange,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The path names something that is no volume.
    #[error("{} {kind}", path.display())]
    UnsupportedKind {
        /// The path as given.
        path: PathBuf,
        /// What it names.
        kind: UnsupportedKind,
    },
    /// The directory that should hold the new target file isn't there.
    #[error("the directory {} does not exist", parent.display())]
    MissingParent {
        /// The directory.
        parent: PathBuf,
    },
    /// The target file exists and nobody allowed to overwrite it.
    #[error("{} exists already", path.display())]
    TargetExists {
        /// The file.
        path: PathBuf,
    },
    /// Somebody else uses the target.
    #[error("{} is in use: {by}", path.display())]
    InUse {
        /// The target.
        path: PathBuf,
        /// How it is used.
        by: InUseBy,
    },
    /// The target can't be written.
    #[error("{} is read-only", path.display())]
    ReadOnly {
        /// The target.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The target device is smaller than the volume.
    #[error("{} holds {capacity} bytes, but the volume has {needed}", path.display())]
    TargetTooSmall {
        /// The device.
        path: PathBuf,
        /// Bytes of the device.
        capacity: u64,
        /// Bytes of the volume.
        needed: u64,
    },
    /// The filesystem can't hold the target file once all of it is allocated.
    #[error(
        "the filesystem of {} has {available} bytes left, but the target file needs {needed} more",
        path.display()
    )]
    NotEnoughSpace {
        /// The target file.
        path: PathBuf,
        /// Bytes left.
        available: u64,
        /// Bytes that are not allocated yet.
        needed: u64,
    },
    /// A read met the volume's end too early: the volume shrank after it was opened.
    #[error("{} ended at byte {offset}, but it had {expected} bytes when it was opened", path.display())]
    EndedEarly {
        /// The volume.
        path: PathBuf,
        /// Where a byte was missing.
        offset: u64,
        /// Bytes of the volume when it was opened.
        expected: u64,
    },
    /// The volume changed its size after it was opened.
    #[error("{} has {actual} bytes, but it had {expected} when it was opened", path.display())]
    Resized {
        /// The volume.
        path: PathBuf,
        /// Bytes of the volume when it was opened.
        expected: u64,
        /// Bytes of the volume now.
        actual: u64,
    },
    /// The caller asked for bytes outside the volume.
    #[error("bytes {range} lie outside {}, which has {size} bytes", path.display())]
    OutOfBounds {
        /// The volume.
        path: PathBuf,
        /// The bytes asked for.
        range: ByteRange,
        /// Bytes of the volume.
        size: u64,
    },
    /// An earlier write-back failed, so no later flush can vouch for what was written before it.
    #[error("an earlier flush of {} failed and may have lost writes", path.display())]
    WritesLost {
        /// The target.
        path: PathBuf,
    },
}

impl StorageError {
    /// Wraps the kernel's answer to an operation on all of `path`.
    pub(crate) fn io(operation: Operation, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            operation,
            path,
            source,
        }
    }

    /// Wraps the kernel's answer to an operation on `range` of `path`.
    pub(crate) fn at(
        operation: Operation,
        path: &Path,
        range: ByteRange,
    ) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::IoAt {
            operation,
            path,
            range,
            source,
        }
    }

    /// What the user can do about it, as a sentence without full stop; `None` where the kernel's
    /// answer says all there is to say.
    #[must_use]
    pub fn remedy(&self) -> Option<&'static str> {
        match self {
            _ if self.is_no_space() => {
                Some("free space, raise the quota, or choose a larger target")
            }
            _ if self.is_device_error() => {
                Some("look at the kernel log; the device or its connection is failing")
            }
            Self::Io { .. } | Self::IoAt { .. } | Self::NotEnoughSpace { .. } => None,
            Self::UnsupportedKind { .. } => Some("name a block device or a regular file"),
            Self::MissingParent { .. } => Some("create the directory, or correct the path"),
            Self::TargetExists { .. } => Some("choose another path, or allow overwriting"),
            Self::InUse { .. } => Some("stop what uses it, or choose another target"),
            Self::ReadOnly { .. } => Some("make it writable, or choose another target"),
            Self::TargetTooSmall { .. } => Some("choose a target at least as large as the source"),
            Self::EndedEarly { .. } | Self::Resized { .. } => {
                Some("stop what resizes the source, then clone it again")
            }
            Self::OutOfBounds { .. } => Some("report this as a bug"),
            Self::WritesLost { .. } => Some("look at the kernel log, then clone again"),
        }
    }

    /// Whether the target is full, or its owner's quota is used up.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NotEnoughSpace { .. })
            || matches!(self.errno(), Some(Errno::NOSPC | Errno::DQUOT))
    }

    /// Whether the volume can't be written.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        matches!(self, Self::ReadOnly { .. }) || self.errno() == Some(Errno::ROFS)
    }

    /// Whether the device under the volume failed.
    #[must_use]
    pub fn is_device_error(&self) -> bool {
        self.errno() == Some(Errno::IO)
    }

    /// The kernel's error number, where the kernel was asked.
    /// Whether there is no room, on the filesystem or by a quota.
    pub(crate) fn is_full(&self) -> bool {
        matches!(self.errno(), Some(Errno::NOSPC | Errno::DQUOT))
    }

    pub(crate) fn errno(&self) -> Option<Errno> {
        match self {
            Self::Io { source, .. } | Self::IoAt { source, .. } | Self::ReadOnly { source, .. } => {
                Errno::from_io_error(source)
            }
            _ => None,
        }
    }
}

/// What was tried on a volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Opening it.
    Open,
    /// Creating it.
    Create,
    /// Asking for its size, its times or its place.
    Inspect,
    /// Locking it against other programs.
    Lock,
    /// Setting its size.
    Resize,
    /// Allocating its space beforehand.
    Allocate,
    /// Having it share the blocks of another file.
    Share,
    /// Finding its next data.
    Seek,
    /// Reading from it.
    Read,
    /// Writing to it.
    Write,
    /// Making a range of it zero.
    Zero,
    /// Making it durable.
    Flush,
    /// Reading the names of a directory.
    List,
    /// Giving an entry another name.
    Link,
    /// Moving an entry into its place.
    Rename,
    /// Removing an entry.
    Remove,
    /// Setting owner, mode, times or attributes.
    Adorn,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open",
            Self::Create => "create",
            Self::Inspect => "inspect",
            Self::Lock => "lock",
            Self::Resize => "resize",
            Self::Allocate => "allocate",
            Self::Share => "share blocks with",
            Self::Seek => "find the data in",
            Self::Read => "read",
            Self::Write => "write",
            Self::Zero => "zero",
            Self::Flush => "flush",
            Self::List => "list",
            Self::Link => "link",
            Self::Rename => "rename",
            Self::Remove => "remove",
            Self::Adorn => "set the metadata of",
        })
    }
}

/// What a path can name that is no volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnsupportedKind {
    /// A directory.
    Directory,
    /// A symbolic link that leads nowhere.
    DanglingLink,
    /// A pipe, a socket or a character device.
    Special,
}

impl fmt::Display for UnsupportedKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Directory => "is a directory where a block device or a file is expected",
            Self::DanglingLink => "is a symbolic link that leads nowhere",
            Self::Special => "is neither a regular file nor a block device",
        })
    }
}

/// How a target is used by somebody else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InUseBy {
    /// The block device is mounted, or another program or kernel part claimed it.
    Holder,
    /// The file is the backing file of this loop device.
    LoopDevice(PathBuf),
    /// The file is swap space.
    Swap,
    /// Another process holds a lock on the file; a virtual machine does on its images.
    Lock,
    /// A program is running from the file.
    Running,
}

impl fmt::Display for InUseBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holder => f.write_str("it is mounted, or another program claimed it"),
            Self::LoopDevice(device) => {
                write!(f, "it is the backing file of {}", device.display())
            }
            Self::Swap => f.write_str("it is swap space"),
            Self::Lock => f.write_str("another process holds a lock on it"),
            Self::Running => f.write_str("a program is running from it"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write_error(errno: Errno) -> StorageError {
        let range = ByteRange::new(4096, 8192);
        StorageError::at(Operation::Write, Path::new("/dev/vdb"), range)(errno.into())
    }

    #[test]
    fn names_operation_place_and_volume() {
        assert_eq!(
            write_error(Errno::IO).to_string(),
            "could not write bytes 4096..8192 of /dev/vdb"
        );
        let directory = StorageError::UnsupportedKind {
            path: "/mnt".into(),
            kind: UnsupportedKind::Directory,
        };
        assert_eq!(
            directory.to_string(),
            "/mnt is a directory where a block device or a file is expected"
        );
    }

    #[test]
    fn full_disks_and_used_up_quotas_are_told_from_failing_ones() {
        assert!(write_error(Errno::NOSPC).is_no_space());
        assert!(write_error(Errno::DQUOT).is_no_space());
        assert!(!write_error(Errno::IO).is_no_space());
        assert!(write_error(Errno::IO).is_device_error());
        assert!(write_error(Errno::ROFS).is_read_only());
        assert!(write_error(Errno::NOSPC).remedy().is_some());
        assert!(write_error(Errno::AGAIN).remedy().is_none());
    }
}
