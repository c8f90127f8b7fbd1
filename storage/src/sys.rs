//! The system calls that no safe crate offers. All `unsafe` of the project is here.

#![expect(
    unsafe_code,
    reason = "locks of open file descriptions and write-back of ranges have no safe wrapper"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use volferry_protocol::geometry::ByteRange;

/// Takes the exclusive lock over all of `file`, without waiting.
///
/// The lock belongs to the open file description: it goes when the last descriptor of this very
/// opening is closed, not, as a classic POSIX lock would, when any descriptor of the file is. It
/// meets the byte locks that QEMU holds on its images.
///
/// # Errors
/// `EAGAIN` or `EACCES` when somebody else holds a lock; `ENOLCK`, `EOPNOTSUPP` or `EINVAL` where
/// the filesystem or kernel has no such locks.
#[expect(clippy::cast_possible_truncation, reason = "the constants are small")]
pub(crate) fn lock_whole_file(file: &File) -> io::Result<()> {
    let lock = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0, // to the end, wherever it will be
        l_pid: 0, // must be zero for this kind of lock
    };
    // SAFETY: the descriptor is open, for `file` is borrowed, and `lock` outlives the call, which
    // only reads it.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, &raw const lock) };
    check(answer)
}

/// Asks the kernel to start writing the dirty pages of `range`, and doesn't wait for them.
///
/// # Errors
/// When the kernel can't start it.
pub(crate) fn start_writeback(file: &File, range: ByteRange) -> io::Result<()> {
    sync_file_range(file, range, libc::SYNC_FILE_RANGE_WRITE)
}

/// Writes the dirty pages of `range` and waits for them. Neither metadata nor the device's own
/// cache is flushed: this bounds memory, it makes nothing durable.
///
/// # Errors
/// When a page could not be written. The kernel reports such an error once, so the caller must
/// remember it.
pub(crate) fn wait_for_writeback(file: &File, range: ByteRange) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WAIT_BEFORE
        | libc::SYNC_FILE_RANGE_WRITE
        | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    sync_file_range(file, range, flags)
}

fn sync_file_range(file: &File, range: ByteRange, flags: libc::c_uint) -> io::Result<()> {
    if range.is_empty() {
        return Ok(()); // a length of 0 would mean all that follows
    }
    let offset = signed(range.start())?;
    let len = signed(range.len())?;
    // SAFETY: the descriptor is open, for `file` is borrowed; the call takes no pointers.
    let answer = unsafe { libc::sync_file_range(file.as_raw_fd(), offset, len, flags) };
    check(answer)
}

fn signed(number: u64) -> io::Result<libc::off64_t> {
    libc::off64_t::try_from(number).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn check(answer: libc::c_int) -> io::Result<()> {
    if answer == -1 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
