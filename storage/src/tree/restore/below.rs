//! What is done to names of a directory that is open.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, Mode, OFlags, RenameFlags};
use rustix::io::Errno;

use super::super::directories::{open_beneath, open_directory};
use super::super::metadata;

pub(super) fn exists(directory: &OwnedFd, name: &[u8]) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Creates a file that isn't there.
pub(super) fn create(
    directory: &OwnedFd,
    name: &[u8],
    access: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    let flags = access | OFlags::CREATE | OFlags::EXCL;
    open_beneath(directory, name, flags, mode)
}

pub(super) fn make_directory(directory: &OwnedFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(
        directory,
        name,
        Mode::from_raw_mode(0o700),
    )?)
}

/// Moves an entry to a name that isn't there.
pub(super) fn rename(from: &OwnedFd, name: &[u8], to: &OwnedFd, new_name: &[u8]) -> io::Result<()> {
    match rustix::fs::renameat_with(from, name, to, new_name, RenameFlags::NOREPLACE) {
        // A filesystem that can't promise it; a link can't replace anything either.
        Err(Errno::INVAL | Errno::NOSYS) => {
            rustix::fs::linkat(from, name, to, new_name, AtFlags::empty())?;
            Ok(rustix::fs::unlinkat(from, name, AtFlags::empty())?)
        }
        answer => Ok(answer?),
    }
}

/// The names in a directory, which is expected to hold a handful.
pub(super) fn list(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// Removes an entry with all that is below it, however deep, without following anything.
pub(super) fn remove(directory: &OwnedFd, name: &[u8]) -> io::Result<()> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        // Linux says the one, POSIX the other.
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    remove_directory(directory, name)
}

/// Removes a directory. One below it is first moved up here, so that no depth needs more than two
/// open directories.
fn remove_directory(above: &OwnedFd, name: &[u8]) -> io::Result<()> {
    let directory = open_directory(above, name)?;
    metadata::open_up(directory.as_fd());
    let mut moved = 0_u64;
    loop {
        let names = list_some(directory.as_fd())?;
        if names.is_empty() {
            break;
        }
        for name in &names {
            match rustix::fs::unlinkat(&directory, &**name, AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::ISDIR | Errno::PERM) => {}
                Err(errno) => return Err(errno.into()),
            }
            match rustix::fs::unlinkat(&directory, &**name, AtFlags::REMOVEDIR) {
                Ok(()) | Err(Errno::NOENT) => continue,
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return Err(errno.into()),
            }
            // What is in it goes up, into this one, and is met again.
            let inner = open_directory(&directory, name)?;
            metadata::open_up(inner.as_fd());
            loop {
                let names = list_some(inner.as_fd())?;
                if names.is_empty() {
                    break;
                }
                for name in names {
                    match rustix::fs::unlinkat(&inner, &*name, AtFlags::empty()) {
                        Ok(()) | Err(Errno::NOENT) => continue,
                        Err(Errno::ISDIR | Errno::PERM) => {}
                        Err(errno) => return Err(errno.into()),
                    }
                    let up = format!(".volferry-removed-{moved}");
                    moved += 1;
                    rustix::fs::renameat(&inner, &*name, &directory, up)?;
                }
            }
        }
    }
    Ok(rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)?)
}

/// Some of the names in a directory, however many there are.
fn list_some(directory: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    const SOME: usize = 4096;
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
        if names.len() == SOME {
            break;
        }
    }
    Ok(names)
}
