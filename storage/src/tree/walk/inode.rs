//! Opening what a name leads to, and telling one state of an inode from another.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, Stat, major, minor};
use volferry_protocol::tree::links::InodeKey;
use volferry_protocol::tree::record::INLINE_SIZE_MAX;

use super::super::directories::open_quietly;
use super::super::metadata;

/// Opens what should be a regular file. Whatever it became meanwhile, opening it waits for nobody.
pub(super) fn open_for_reading(directory: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let begun = Instant::now();
    loop {
        match open_quietly(directory, name, OFlags::RDONLY | OFlags::NONBLOCK) {
            // Somebody has a lease on it, of which the kernel is taking it (fcntl(2)).
            Err(error)
                if error.kind() == io::ErrorKind::WouldBlock && begun.elapsed() < LEASE_TIME =>
            {
                std::thread::sleep(LEASE_LOOK_INTERVAL);
            }
            answer => return answer,
        }
    }
}

/// How long a file is waited for on which somebody has a lease: longer than the kernel lets anybody
/// keep it (/proc/sys/fs/lease-break-time, 45 s).
const LEASE_TIME: Duration = Duration::from_secs(60);

/// Between two looks whether the lease has ended.
const LEASE_LOOK_INTERVAL: Duration = Duration::from_millis(50);

pub(super) fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// Whether a file is too large to stand in a record.
pub(super) fn is_large(stat: &Stat) -> bool {
    size_of(stat) > u64::from(INLINE_SIZE_MAX)
}

/// What tells an inode from others. Linux has device numbers of 12 and 20 bits.
pub(super) fn key_of(stat: &Stat) -> InodeKey {
    InodeKey {
        inode: stat.st_ino,
        device: major(stat.st_dev) << 20 | minor(stat.st_dev),
    }
}

/// Whether what was read in between may be a mixture.
pub(super) fn is_changed(before: &Stat, after: &Stat) -> bool {
    before.st_size != after.st_size
        || metadata::mtime(before) != metadata::mtime(after)
        || metadata::ctime(before) != metadata::ctime(after)
}

/// Reads until the buffer is full or the file ends.
pub(super) fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, done as u64) {
            Ok(0) => break,
            // A short read of a regular file is its end; a look at it afterwards finds out when not.
            Ok(len) if len < rest.len() => return Ok(done + len),
            Ok(len) => done += len,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
