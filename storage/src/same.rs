//! Whether two paths lead to the same bytes, in which case cloning one to the other would eat it.

use std::fmt;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::Dev;

use crate::error::{Operation, StorageError};
use crate::sysfs;

/// In what way two paths lead to the same bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameReason {
    /// Both are the same file: the same path, or a link to it, symbolic or hard.
    File,
    /// Both are the same device, perhaps by two device nodes.
    Device,
    /// One shows bytes of the other: a loop device and its backing file, or a partition and its
    /// disk.
    Within,
}

impl fmt::Display for SameReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::File => "both paths lead to the same file",
            Self::Device => "both paths lead to the same device",
            Self::Within => "one shows bytes of the other",
        })
    }
}

/// Tells whether `a` and `b` share bytes; a path that leads nowhere shares none.
///
/// Mappings by device-mapper or RAID are not looked through: their devices claim what they use, so
/// that [`TargetVolume::open`](crate::TargetVolume::open) refuses it.
///
/// # Errors
/// When one of the paths can't be inspected.
pub fn same_volume(a: &Path, b: &Path) -> Result<Option<SameReason>, StorageError> {
    let (Some(a), Some(b)) = (Bytes::at(a)?, Bytes::at(b)?) else {
        return Ok(None);
    };
    Ok(match (a, b) {
        (Bytes::File { .. }, Bytes::File { .. }) if a == b => Some(SameReason::File),
        (Bytes::Device(_), Bytes::Device(_)) if a == b => Some(SameReason::Device),
        _ if a.shows(b) || b.shows(a) => Some(SameReason::Within),
        _ => None,
    })
}

/// What holds a volume's bytes, in the kernel's own terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// An inode of a filesystem.
    File { device: Dev, inode: u64 },
    /// A block device by its number, wherever its node is.
    Device(Dev),
}

impl Bytes {
    /// What `path` leads to; `None` when it leads nowhere.
    pub(crate) fn at(path: &Path) -> Result<Option<Self>, StorageError> {
        match fs::metadata(path) {
            Ok(metadata) => Ok(Some(Self::of(&metadata))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(StorageError::io(Operation::Inspect, path)(error)),
        }
    }

    /// What `metadata` describes.
    pub(crate) fn of(metadata: &Metadata) -> Self {
        if metadata.file_type().is_block_device() {
            Self::Device(metadata.rdev())
        } else {
            Self::File {
                device: metadata.dev(),
                inode: metadata.ino(),
            }
        }
    }

    /// Whether these bytes are those of `other`, seen through partitions and loop devices.
    fn shows(self, other: Self) -> bool {
        let beneath = |bytes: &Self| bytes.beneath();
        std::iter::successors(self.beneath(), beneath)
            .take(DEPTH_MAX)
            .any(|bytes| bytes == other)
    }

    /// What lies directly under a partition or a loop device.
    fn beneath(self) -> Option<Self> {
        let Self::Device(device) = self else {
            return None;
        };
        if let Some(disk) = sysfs::disk_of_partition(device) {
            return Some(Self::Device(disk));
        }
        fs::metadata(sysfs::loop_backing(device)?)
            .ok()
            .map(|metadata| Self::of(&metadata))
    }
}

/// Loop devices stack; no sane stack is higher than this, and a bound ends any odd one.
const DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_same_file_and_copies_do_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::write(path("a"), "x").unwrap();
        fs::write(path("b"), "x").unwrap();
        fs::hard_link(path("a"), path("hard")).unwrap();
        std::os::unix::fs::symlink(path("a"), path("soft")).unwrap();
        let check = |b: &str, expected| {
            assert_eq!(same_volume(&path("a"), &path(b)).unwrap(), expected, "{b}");
        };
        check("a", Some(SameReason::File));
        check("hard", Some(SameReason::File));
        check("soft", Some(SameReason::File));
        check("b", None);
        check("missing", None);
    }
}
