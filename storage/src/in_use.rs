//! Whether a target file is used by somebody else.
//!
//! A block device is claimed with `O_EXCL`, and the kernel knows who else did. For regular files
//! there is no such claim, so each way to use one is asked for by itself.

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::error::{InUseBy, Operation, StorageError};
use crate::handle::retry_interrupted;
use crate::same::Bytes;
use crate::{sys, sysfs};

/// Refuses a regular file that somebody uses, and locks it for as long as `file` stays open.
///
/// # Errors
/// [`StorageError::InUse`], or what the kernel said to one of the questions.
pub(crate) fn claim_file(path: &Path, file: &File) -> Result<(), StorageError> {
    lock(path, file)?;
    let in_use = |by| StorageError::InUse {
        path: path.to_owned(),
        by,
    };
    if is_swap(path, file)? {
        return Err(in_use(InUseBy::Swap));
    }
    match loop_device_over(path, file)? {
        Some(device) => Err(in_use(InUseBy::LoopDevice(device))),
        None => Ok(()),
    }
}

/// Locks `file` against other agents and against whoever locks its images.
fn lock(path: &Path, file: &File) -> Result<(), StorageError> {
    let Err(error) = retry_interrupted(|| sys::lock_whole_file(file)) else {
        return Ok(());
    };
    match Errno::from_io_error(&error) {
        Some(Errno::AGAIN | Errno::ACCESS) => Err(StorageError::InUse {
            path: path.to_owned(),
            by: InUseBy::Lock,
        }),
        // Refusing here would exclude whole classes of network filesystems.
        Some(Errno::NOLCK | Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
            tracing::warn!(
                path = %path.display(),
                %error,
                "the filesystem has no locks: nothing keeps others from writing this file"
            );
            Ok(())
        }
        _ => Err(StorageError::io(Operation::Lock, path)(error)),
    }
}

/// Whether the kernel swaps to `file`.
///
/// Such a file opens like any other, only changing it is refused. A hole punched behind the end
/// changes nothing, but meets that refusal.
fn is_swap(path: &Path, file: &File) -> Result<bool, StorageError> {
    let size = file
        .metadata()
        .map_err(StorageError::io(Operation::Inspect, path))?
        .len();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    let answer =
        retry_interrupted(|| rustix::fs::fallocate(file, punch, size, 1).map_err(io::Error::from));
    // Any other refusal shows itself when it matters.
    let refusal = answer.err().as_ref().and_then(Errno::from_io_error);
    Ok(refusal == Some(Errno::TXTBSY))
}

/// The loop device that shows the bytes of `file`.
fn loop_device_over(path: &Path, file: &File) -> Result<Option<std::path::PathBuf>, StorageError> {
    let metadata = file
        .metadata()
        .map_err(StorageError::io(Operation::Inspect, path))?;
    let bytes = Some(Bytes::of(&metadata));
    // A backing file that can't be inspected lies out of reach, so it isn't this one.
    let over = sysfs::loop_devices()
        .find(|device| Bytes::at(&device.backing).ok().flatten() == bytes)
        .map(|device| device.device);
    Ok(over)
}
