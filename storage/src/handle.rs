//! One volume, two descriptors: past the page cache where that works, through it where not.
//!
//! `O_DIRECT` wants offset, length and memory aligned, so what is not (the odd tail of a volume,
//! mostly) goes through a second, buffered descriptor. The two never share a page: direct transfers
//! come in whole units of at least a page, so that a buffered write can't bring back old bytes of a
//! page that a direct one has just replaced. For what remains the kernel keeps both views alike: a
//! direct transfer first writes back and drops the pages it passes by.
//!
//! The buffered descriptor is the main one. It holds the claim on a device or the lock on a file,
//! and a flush of it covers both, since what is flushed is the inode.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{Advice, AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use volferry_protocol::geometry::{BLOCK_SIZE, ByteRange};

use crate::error::{Operation, StorageError};
use crate::window::Window;

/// Bytes of a page, or of several: what callers align to, and what the page cache holds.
const PAGE: u64 = BLOCK_SIZE as u64;

/// An open volume.
#[derive(Debug)]
pub(crate) struct Handle {
    path: PathBuf,
    main: File,
    direct: Option<Direct>,
    window: Window,
    /// Set for good by the first flush that fails.
    lost_writes: AtomicBool,
}

/// The descriptor past the page cache, and what it asks for.
#[derive(Debug)]
struct Direct {
    file: File,
    alignment: Alignment,
    /// Set when a transfer was refused though it was aligned as the kernel wished.
    refused: AtomicBool,
}

/// What a direct transfer must be aligned to, in bytes; both are powers of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Alignment {
    /// For offset and length: at least a page, so that no page is reached both ways.
    unit: u64,
    /// For the memory.
    memory: usize,
}

/// The next piece of a transfer.
#[derive(Clone, Copy)]
struct Piece<'a> {
    file: &'a File,
    len: usize,
    /// The direct descriptor's flag, when it is the one to use.
    refused: Option<&'a AtomicBool>,
}

impl Handle {
    /// Wraps `main`, which was opened at `path` with `access`, and looks for a way past the page
    /// cache when `direct` asks for it.
    pub(crate) fn new(path: PathBuf, main: File, access: OFlags, direct: bool) -> Self {
        let direct = direct.then(|| open_direct(&main, access)).flatten();
        tracing::debug!(path = %path.display(), ?direct, "opened a volume");
        Self {
            path,
            window: Window::open(&main),
            main,
            direct,
            lost_writes: AtomicBool::new(false),
        }
    }

    /// The path it was opened at.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The buffered descriptor.
    pub(crate) const fn main(&self) -> &File {
        &self.main
    }

    /// Whether aligned transfers go past the page cache.
    pub(crate) fn is_direct(&self) -> bool {
        let usable = |direct: &Direct| !direct.refused.load(Ordering::Relaxed);
        self.direct.as_ref().is_some_and(usable)
    }

    /// Offsets and lengths in multiples of this many bytes suit every way to reach the volume.
    pub(crate) fn unit(&self) -> u64 {
        self.direct
            .as_ref()
            .map_or(PAGE, |direct| direct.alignment.unit)
    }

    /// The size now, in bytes, of a file as of a device.
    pub(crate) fn current_size(&self) -> Result<u64, StorageError> {
        current_size(&self.main).map_err(StorageError::io(Operation::Inspect, &self.path))
    }

    /// Fills `buffer` from `offset`; `expected_size` is only for the error's text.
    pub(crate) fn read_at(
        &self,
        offset: u64,
        buffer: &mut [u8],
        expected_size: u64,
    ) -> Result<(), StorageError> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let piece = self.next_piece(at, rest.as_ptr().addr(), rest.len());
            let left = ByteRange::new(at, at + rest.len() as u64);
            match piece.file.read_at(&mut rest[..piece.len], at) {
                Ok(0) => {
                    return Err(StorageError::EndedEarly {
                        path: self.path.clone(),
                        offset: at,
                        expected: expected_size,
                    });
                }
                Ok(len) => {
                    done += len;
                    if piece.refused.is_none() {
                        self.drop_pages(ByteRange::new(at, at + len as u64));
                    }
                }
                Err(error) => self.may_go_on(piece, error).map_err(StorageError::at(
                    Operation::Read,
                    &self.path,
                    left,
                ))?,
            }
        }
        Ok(())
    }

    /// Writes all of `bytes` at `offset`.
    pub(crate) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), StorageError> {
        let mut done = 0;
        while let Some(rest) = bytes.get(done..).filter(|rest| !rest.is_empty()) {
            let at = offset + done as u64;
            let piece = self.next_piece(at, rest.as_ptr().addr(), rest.len());
            let left = ByteRange::new(at, at + rest.len() as u64);
            match piece.file.write_at(&rest[..piece.len], at) {
                Ok(0) => {
                    let nothing = io::ErrorKind::WriteZero.into();
                    return Err(StorageError::at(Operation::Write, &self.path, left)(
                        nothing,
                    ));
                }
                Ok(len) => {
                    done += len;
                    if piece.refused.is_none() {
                        let written = ByteRange::new(at, at + len as u64);
                        self.window.wrote(written).map_err(StorageError::at(
                            Operation::Write,
                            &self.path,
                            written,
                        ))?;
                    }
                }
                Err(error) => self.may_go_on(piece, error).map_err(StorageError::at(
                    Operation::Write,
                    &self.path,
                    left,
                ))?,
            }
        }
        Ok(())
    }

    /// Writes back and drops what the page cache holds of `range`, so that the next read asks the
    /// storage.
    pub(crate) fn forget(&self, range: ByteRange) -> Result<(), StorageError> {
        self.window
            .settle(range)
            .map_err(StorageError::at(Operation::Flush, &self.path, range))
    }

    /// Makes everything written so far survive a power cut; `metadata` adds what a file needs
    /// beyond its content and size.
    ///
    /// The kernel reports a failed write-back once and forgets the pages, so a second flush would
    /// succeed and vouch for bytes that are gone. Here the first failure is the last word.
    pub(crate) fn flush(&self, metadata: bool) -> Result<(), StorageError> {
        if self.lost_writes.load(Ordering::Acquire) {
            return Err(StorageError::WritesLost {
                path: self.path.clone(),
            });
        }
        let flush = || match metadata {
            true => self.main.sync_all(),
            false => self.main.sync_data(),
        };
        retry_interrupted(flush)
            .inspect_err(|_| self.lose_writes())
            .map_err(StorageError::io(Operation::Flush, &self.path))
    }

    /// Lets every later flush fail.
    pub(crate) fn lose_writes(&self) {
        self.lost_writes.store(true, Ordering::Release);
    }

    /// The piece to transfer next: what is aligned goes directly, what is not goes through the page
    /// cache up to the next unit.
    fn next_piece(&self, offset: u64, address: usize, len: usize) -> Piece<'_> {
        let buffered = |len| Piece {
            file: &self.main,
            len,
            refused: None,
        };
        let Some(direct) = &self.direct else {
            return buffered(len);
        };
        let Alignment { unit, memory } = direct.alignment;
        let Ok(unit_len) = usize::try_from(unit) else {
            return buffered(len);
        };
        if direct.refused.load(Ordering::Relaxed) {
            return buffered(len);
        }
        let past_boundary = usize::try_from(offset % unit).unwrap_or(0);
        if past_boundary != 0 {
            return buffered(len.min(unit_len - past_boundary));
        }
        let whole_units = len - len % unit_len;
        if whole_units == 0 || !address.is_multiple_of(memory) {
            return buffered(len);
        }
        Piece {
            file: &direct.file,
            len: whole_units,
            refused: Some(&direct.refused),
        }
    }

    /// Decides whether a failed transfer is worth another try: after a signal, always; after a
    /// refusal of the direct way, by the other way, from now on for all.
    fn may_go_on(&self, piece: Piece<'_>, error: io::Error) -> io::Result<()> {
        if error.kind() == io::ErrorKind::Interrupted {
            return Ok(());
        }
        match piece.refused {
            Some(refused) if Errno::from_io_error(&error) == Some(Errno::INVAL) => {
                refused.store(true, Ordering::Relaxed);
                tracing::debug!(path = %self.path.display(), "direct I/O refused, going buffered");
                Ok(())
            }
            _ => Err(error),
        }
    }

    /// Lets the page cache go of what was just read: it would push out pages that the pod needs.
    fn drop_pages(&self, range: ByteRange) {
        advise(&self.main, range, Advice::DontNeed);
    }
}

/// Gives the kernel a hint; one that it refuses costs nothing but the hint.
pub(crate) fn advise(file: &File, range: ByteRange, advice: Advice) {
    let start = range.start() / PAGE * PAGE; // a page named in part is kept whole
    let end = range.end().next_multiple_of(PAGE);
    if let Some(len) = std::num::NonZeroU64::new(end - start) {
        let _ = rustix::fs::fadvise(file, start, Some(len), advice);
    }
}

/// The size of a file or device, in bytes.
pub(crate) fn current_size(file: &File) -> io::Result<u64> {
    Ok(rustix::fs::seek(file, rustix::fs::SeekFrom::End(0))?)
}

/// Runs `call` until no signal interrupts it.
pub(crate) fn retry_interrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            answer => return answer,
        }
    }
}

/// Opens the same inode again. The way through /proc can't be misled when somebody replaces the
/// file at the path.
pub(crate) fn reopen(main: &File, flags: OFlags) -> io::Result<File> {
    let path = format!("/proc/self/fd/{}", main.as_raw_fd());
    Ok(rustix::fs::open(path, flags | OFlags::CLOEXEC, Mode::empty())?.into())
}

/// Has the transfers of an open file pass the page cache from now on, or not any more.
///
/// # Errors
/// `EINVAL` where the filesystem doesn't offer it.
pub(crate) fn set_direct(file: &File, is_direct: bool) -> io::Result<()> {
    let mut flags = rustix::fs::fcntl_getfl(file)?;
    flags.set(OFlags::DIRECT, is_direct);
    Ok(rustix::fs::fcntl_setfl(file, flags)?)
}

/// Opens the same inode past the page cache; `None` where the filesystem doesn't offer it.
fn open_direct(main: &File, access: OFlags) -> Option<Direct> {
    let alignment = alignment(main)?;
    Some(Direct {
        file: reopen(main, access | OFlags::DIRECT).ok()?,
        alignment,
        refused: AtomicBool::new(false),
    })
}

/// What direct transfers must be aligned to; `None` when the kernel says that there are none.
///
/// Where it says nothing (before Linux 6.1, and on some filesystems), the logical block size of a
/// device is right, and for a file a page is the best guess: a refusal is met by going buffered.
fn alignment(file: &File) -> Option<Alignment> {
    let known = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN)
        .ok()
        .filter(|stat| StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::DIOALIGN));
    let (offset, memory) = match known {
        Some(stat) if stat.stx_dio_offset_align == 0 => return None,
        Some(stat) => (stat.stx_dio_offset_align, stat.stx_dio_mem_align),
        None => {
            let sector = rustix::fs::ioctl_blksszget(file).unwrap_or(BLOCK_SIZE);
            (sector, sector)
        }
    };
    Some(Alignment {
        unit: u64::from(offset).max(PAGE).next_power_of_two(),
        memory: usize::try_from(memory).ok()?.next_power_of_two(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handle() -> Handle {
        let main = tempfile::tempfile().unwrap();
        Handle::new("file".into(), main, OFlags::RDWR, true)
    }

    #[test]
    fn a_refused_direct_write_goes_buffered_and_stays_so() {
        let mut handle = handle();
        let Some(direct) = &mut handle.direct else {
            return; // tests of real filesystems say where there is no direct I/O
        };
        direct.alignment = Alignment { unit: 1, memory: 1 }; // more than the kernel allows
        handle.write_at(1, b"odd").unwrap();
        assert!(!handle.is_direct());
        let mut read = [0; 4];
        handle.read_at(0, &mut read, 4).unwrap();
        assert_eq!(&read, b"\0odd");
    }

    #[test]
    fn no_flush_succeeds_after_one_failed() {
        let handle = handle();
        handle.flush(true).unwrap();
        handle.lose_writes();
        let refused = handle.flush(false).unwrap_err();
        assert!(matches!(refused, StorageError::WritesLost { .. }));
    }
}
