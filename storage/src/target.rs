//! Opening a target in two steps.
//!
//! The target agent starts before it knows how large the volume is. So [`TargetVolume::open`]
//! refuses what can't be a target, and claims what can, when the agent starts; and
//! [`TargetVolume::prepare`] checks and sets the size once the source has told it. Neither destroys
//! anything: an existing file is never cut, for its content may be what a clone resumes from.

use std::fs::{self, File, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use rustix::fs::{Access, FallocateFlags, Mode, OFlags};
use rustix::io::Errno;
use volferry_protocol::geometry::ByteRange;

use crate::error::{InUseBy, Operation, StorageError, UnsupportedKind};
use crate::handle::{Handle, current_size, retry_interrupted};
use crate::in_use::claim_file;
use crate::sink::VolumeSink;
use crate::source::VolumeKind;
use crate::zeroing::{Way, Zeroing, fallocate, is_refusal};
use crate::{Sink, sysfs};

/// How to treat a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TargetOptions {
    /// Write into a regular file that exists, even an empty one. A device needs no leave.
    pub overwrite: bool,
    /// Make what lies behind the volume in a larger target read as zeros.
    pub zero_tail: bool,
    /// Allocate all of the volume's space beforehand, and keep it where zeros are.
    pub preallocate: bool,
    /// Write past the page cache where the volume lets us.
    pub direct: bool,
}

impl Default for TargetOptions {
    fn default() -> Self {
        Self {
            overwrite: false,
            zero_tail: false,
            preallocate: false,
            direct: true,
        }
    }
}

/// A target that was found fit and is claimed, but whose size is not settled yet.
#[derive(Debug)]
pub struct TargetVolume {
    path: PathBuf,
    options: TargetOptions,
    found: Found,
}

/// What was at the target's path.
#[derive(Debug)]
enum Found {
    Nothing,
    File(File),
    /// Made to share the source's blocks, and not prepared yet.
    Made(File, Created),
    Device {
        main: File,
        capacity: u64,
    },
}

impl TargetVolume {
    /// Looks at what is at `path`, and claims it. A file that isn't there is not created yet.
    ///
    /// # Errors
    /// When `path` names something that is no volume, exists and must not be overwritten, is in
    /// use, or can't be written; when the directory of a new file is missing or read-only.
    pub fn open(path: &Path, options: TargetOptions) -> Result<Self, StorageError> {
        let found = match fs::metadata(path) {
            Ok(metadata) => match VolumeKind::of(path, &metadata)? {
                VolumeKind::Device => open_device(path)?,
                VolumeKind::File if options.overwrite => open_file(path)?,
                VolumeKind::File => return Err(exists(path)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => check_parent(path)?,
            Err(error) => return Err(StorageError::io(Operation::Open, path)(error)),
        };
        Ok(Self {
            path: path.to_owned(),
            options,
            found,
        })
    }

    /// The most bytes a volume may have; `None` for a file, which grows.
    #[must_use]
    pub const fn capacity(&self) -> Option<u64> {
        match self.found {
            Found::Device { capacity, .. } => Some(capacity),
            Found::Nothing | Found::File(_) | Found::Made(..) => None,
        }
    }

    /// Has the target hold what the file `source` holds, by sharing its blocks: nothing is copied, and
    /// either file may change later without the other. A file that isn't there is created, and removed again
    /// if it is never prepared. Says why not, where the filesystem can't.
    ///
    /// What is there then proves nothing: `source` may change, or be another file by the time that it is
    /// cloned.
    ///
    /// # Errors
    /// When either file can't be opened, or sharing fails for a reason of another kind.
    pub fn share_blocks_of(self, source: &Path) -> Result<(Self, Option<io::Error>), StorageError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let opened = retry_interrupted(|| Ok(rustix::fs::open(source, flags, Mode::empty())?));
        let source = opened.map_err(StorageError::io(Operation::Open, source))?;
        let share = |main: &File| {
            let shared = retry_interrupted(|| Ok(rustix::fs::ioctl_ficlone(main, &source)?));
            match shared {
                Ok(()) => Ok(None),
                Err(error) if cannot_share(&error) => Ok(Some(error)),
                Err(error) => Err(StorageError::io(Operation::Share, &self.path)(error)),
            }
        };
        let (found, refusal) = match self.found {
            Found::File(main) => {
                let refusal = share(&main)?;
                (Found::File(main), refusal)
            }
            Found::Nothing => {
                let (main, created) = create(&self.path)?;
                match share(&main)? {
                    None => (Found::Made(main, created), None),
                    refusal => (Found::Nothing, refusal),
                }
            }
            other @ (Found::Made(..) | Found::Device { .. }) => {
                (other, Some(Errno::OPNOTSUPP.into()))
            }
        };
        Ok((Self { found, ..self }, refusal))
    }

    /// Makes the target ready for a volume of `volume_size` bytes. A larger target keeps its size.
    ///
    /// # Errors
    /// When the device is too small, the file is there by now, or its size or space can't be had. A
    /// file created here is removed again.
    pub fn prepare(self, volume_size: u64) -> Result<Arc<dyn Sink>, StorageError> {
        let Self {
            path,
            options,
            found,
        } = self;
        match found {
            Found::Device { capacity, .. } if capacity < volume_size => {
                Err(StorageError::TargetTooSmall {
                    path,
                    capacity,
                    needed: volume_size,
                })
            }
            Found::Device { main, capacity } => {
                let way = first_way(options.preallocate);
                let tail = ByteRange::new(volume_size, capacity);
                finish(path, main, options, way, volume_size, tail, Room::Device)
            }
            Found::File(main) => prepare_file(path, main, options, volume_size),
            Found::Made(main, created) => {
                let sink = prepare_file(path, main, options, volume_size)?;
                created.keep();
                Ok(sink)
            }
            Found::Nothing => {
                let (main, created) = create(&path)?;
                let sink = prepare_file(path, main, options, volume_size)?;
                created.keep();
                Ok(sink)
            }
        }
    }
}

/// Whether sharing blocks failed because these two files can't: no such filesystem, two of them, no regular
/// files, or ends that don't fit its blocks.
fn cannot_share(error: &io::Error) -> bool {
    matches!(
        Errno::from_io_error(error),
        Some(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL)
    )
}

/// Where a sink's bytes live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Room {
    /// A block device.
    Device,
    /// A regular file with content.
    DirtyFile,
    /// A regular file that held nothing before.
    FreshFile,
}

/// Claims a device. The kernel grants the claim to one opener, and not while it is mounted.
fn open_device(path: &Path) -> Result<Found, StorageError> {
    let flags = OFlags::RDWR | OFlags::EXCL | OFlags::CLOEXEC;
    let main = open_existing(path, flags)?;
    let metadata = main
        .metadata()
        .map_err(StorageError::io(Operation::Inspect, path))?;
    // Such a device opens for writing like any other; only the writes are refused.
    if sysfs::is_read_only(metadata.rdev()) {
        return Err(read_only(path, Errno::ROFS.into()));
    }
    let capacity = current_size(&main).map_err(StorageError::io(Operation::Inspect, path))?;
    Ok(Found::Device { main, capacity })
}

fn open_file(path: &Path) -> Result<Found, StorageError> {
    let main = open_existing(path, OFlags::RDWR | OFlags::CLOEXEC)?;
    claim_file(path, &main)?;
    Ok(Found::File(main))
}

fn open_existing(path: &Path, flags: OFlags) -> Result<File, StorageError> {
    let in_use = |by| StorageError::InUse {
        path: path.to_owned(),
        by,
    };
    let opened = retry_interrupted(|| Ok(rustix::fs::open(path, flags, Mode::empty())?));
    opened
        .map(File::from)
        .map_err(|error| match Errno::from_io_error(&error) {
            Some(Errno::BUSY) => in_use(InUseBy::Holder),
            Some(Errno::TXTBSY) => in_use(InUseBy::Running),
            Some(Errno::ROFS) => read_only(path, error),
            _ => StorageError::io(Operation::Open, path)(error),
        })
}

/// Checks that a file can be created at `path`.
fn check_parent(path: &Path) -> Result<Found, StorageError> {
    if fs::symlink_metadata(path).is_ok() {
        return Err(StorageError::UnsupportedKind {
            path: path.to_owned(),
            kind: UnsupportedKind::DanglingLink,
        });
    }
    let parent = parent(path);
    if !parent.is_dir() {
        return Err(StorageError::MissingParent {
            parent: parent.to_owned(),
        });
    }
    // It is opened for reading when its new name is made durable.
    let wanted = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
    match rustix::fs::access(parent, wanted) {
        Ok(()) => Ok(Found::Nothing),
        Err(errno @ Errno::ROFS) => Err(read_only(path, errno.into())),
        Err(errno) => Err(StorageError::io(Operation::Create, path)(errno.into())),
    }
}

/// The directory that holds `path`.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Creates the file, readable for its owner only: it will hold somebody's disk.
fn create(path: &Path) -> Result<(File, Created), StorageError> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    let main: File = retry_interrupted(|| Ok(rustix::fs::open(path, flags, mode)?))
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => exists(path),
            _ => StorageError::io(Operation::Create, path)(error),
        })?
        .into();
    let created = Created(Some(path.to_owned()));
    claim_file(path, &main)?;
    Ok((main, created))
}

/// Removes the file that was created, unless it is kept.
#[derive(Debug)]
struct Created(Option<PathBuf>);

impl Created {
    fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Created {
    fn drop(&mut self) {
        let Some(path) = self.0.take() else { return };
        if let Err(error) = fs::remove_file(&path) {
            tracing::warn!(path = %path.display(), %error, "could not remove an unfinished target");
        }
    }
}

/// Gives the file its size, and its space if wanted.
fn prepare_file(
    path: PathBuf,
    main: File,
    options: TargetOptions,
    volume_size: u64,
) -> Result<Arc<dyn Sink>, StorageError> {
    let old_size = current_size(&main).map_err(StorageError::io(Operation::Inspect, &path))?;
    if old_size < volume_size {
        retry_interrupted(|| main.set_len(volume_size))
            .map_err(StorageError::io(Operation::Resize, &path))?;
    }
    let mut room = match old_size {
        0 => Room::FreshFile,
        _ => Room::DirtyFile,
    };
    let mut way = first_way(options.preallocate);
    if options.preallocate && !preallocate(&path, &main, volume_size)? {
        // Written zeros allocate too, as long as none is left out.
        (room, way) = (Room::DirtyFile, Way::Write);
    }
    let tail = ByteRange::new(volume_size, old_size.max(volume_size));
    finish(path, main, options, way, volume_size, tail, room)
}

/// Allocates the volume's space, keeping what the file holds. Says whether the filesystem can.
fn preallocate(path: &Path, main: &File, volume_size: u64) -> Result<bool, StorageError> {
    if volume_size == 0 {
        return Ok(true);
    }
    check_space(path, main, volume_size)?;
    match fallocate(
        main,
        FallocateFlags::empty(),
        ByteRange::new(0, volume_size),
    ) {
        Ok(()) => Ok(true),
        Err(error) if is_refusal(&error) => Ok(false),
        Err(error) => Err(StorageError::io(Operation::Allocate, path)(error)),
    }
}

/// Looks whether the space is there before any is taken: a failing allocation leaves the filesystem
/// full for everybody until it is undone.
fn check_space(path: &Path, main: &File, volume_size: u64) -> Result<(), StorageError> {
    let inspect = |errno: Errno| StorageError::io(Operation::Inspect, path)(errno.into());
    let stat = rustix::fs::fstatvfs(main).map_err(inspect)?;
    let available = stat.f_bavail.saturating_mul(stat.f_frsize);
    let needed = volume_size.saturating_sub(allocated_bytes(main).unwrap_or(0));
    if needed <= available {
        return Ok(());
    }
    Err(StorageError::NotEnoughSpace {
        path: path.to_owned(),
        available,
        needed,
    })
}

/// What tells a file from others on its filesystem: its inode number, and when it was made, since
/// the number of a removed file is soon another's. Where the filesystem keeps no such time, the
/// number alone.
#[must_use]
pub fn file_mark(metadata: &Metadata) -> u64 {
    /// Odd, so that no two times become one.
    const SPREAD: u64 = 0x9e37_79b9_7f4a_7c15;
    let made_at = metadata.created().ok();
    let since = made_at.and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let nanos = since.map_or(0, |time| time.as_nanos());
    let low = u64::try_from(nanos & u128::from(u64::MAX)).unwrap_or(0);
    metadata.ino() ^ low.wrapping_mul(SPREAD)
}

/// Bytes that `file` takes on its filesystem.
pub(crate) fn allocated_bytes(file: &File) -> Option<u64> {
    /// What st_blocks counts in, whatever the filesystem's blocks are.
    const STAT_BLOCK: u64 = 512;
    Some(file.metadata().ok()?.blocks().saturating_mul(STAT_BLOCK))
}

const fn first_way(preallocate: bool) -> Way {
    if preallocate {
        Way::ZeroRange
    } else {
        Way::Punch
    }
}

fn finish(
    path: PathBuf,
    main: File,
    options: TargetOptions,
    way: Way,
    volume_size: u64,
    tail: ByteRange,
    room: Room,
) -> Result<Arc<dyn Sink>, StorageError> {
    let handle = Handle::new(path, main, OFlags::RDWR, options.direct);
    let zeroing = Zeroing::starting_with(way);
    if options.zero_tail {
        zeroing.zero(&handle, tail)?;
    }
    Ok(Arc::new(VolumeSink::new(
        handle,
        zeroing,
        volume_size,
        room,
    )))
}

fn exists(path: &Path) -> StorageError {
    StorageError::TargetExists {
        path: path.to_owned(),
    }
}

fn read_only(path: &Path, source: io::Error) -> StorageError {
    StorageError::ReadOnly {
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests;
