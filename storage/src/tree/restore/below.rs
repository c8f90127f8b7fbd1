//! What is done to names of a directory that is open.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, RenameFlags};
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

/// Names that are held in memory of a directory that may have any number of them.
pub(super) const SOME: usize = 4096;

/// The first names in a directory that are wanted, at most so many.
pub(super) fn list(
    directory: impl AsFd,
    most: usize,
    mut is_wanted: impl FnMut(&[u8]) -> bool,
) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." && is_wanted(name) {
            names.push(name.to_vec());
        }
        if names.len() >= most {
            break;
        }
    }
    Ok(names)
}

/// Removes an entry with all that is below it, however deep, without following anything.
pub(super) fn remove(directory: &OwnedFd, name: &[u8]) -> io::Result<()> {
    remove_and_tell(directory, name, &mut || {})
}

/// Removes an entry as [`remove`] does, and tells of each step, of which there may be many.
pub(super) fn remove_and_tell(
    directory: &OwnedFd,
    name: &[u8],
    on_step: &mut impl FnMut(),
) -> io::Result<()> {
    match unlink(directory, name)? {
        Unlinked::Gone => Ok(()),
        Unlinked::IsDirectory => remove_directory(directory, name, on_step),
    }
}

/// Removes a directory. One below it is first moved up here, so that no depth needs more than two
/// open directories.
fn remove_directory(above: &OwnedFd, name: &[u8], on_step: &mut impl FnMut()) -> io::Result<()> {
    let directory = open_directory(above, name)?;
    metadata::open_up(directory.as_fd());
    let mut moved = 0_u64;
    loop {
        let names = list(&directory, SOME, |_| true)?;
        if names.is_empty() {
            break;
        }
        for name in &names {
            on_step();
            if unlink(&directory, name)? == Unlinked::Gone {
                continue;
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
                let names = list(&inner, SOME, |_| true)?;
                if names.is_empty() {
                    break;
                }
                for name in names {
                    on_step();
                    if unlink(&inner, &name)? == Unlinked::IsDirectory {
                        move_up(&inner, &name, &directory, &mut moved)?;
                    }
                }
            }
        }
    }
    Ok(rustix::fs::unlinkat(above, name, AtFlags::REMOVEDIR)?)
}

/// Moves a directory to a name of its own in the one above it. `tried` counts the names.
fn move_up(inner: &OwnedFd, name: &[u8], above: &OwnedFd, tried: &mut u64) -> io::Result<()> {
    loop {
        let up = format!(".volferry-removed-{tried}");
        *tried += 1;
        match rustix::fs::renameat(inner, name, above, up) {
            // A removal that was cut has left something there, perhaps the very `inner`.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            answer => return Ok(answer?),
        }
    }
}

/// What became of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Unlinked {
    Gone,
    IsDirectory,
}

/// Removes a name, unless it is a directory's.
fn unlink(directory: &OwnedFd, name: &[u8]) -> io::Result<Unlinked> {
    match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(Unlinked::Gone),
        Err(Errno::ISDIR) => Ok(Unlinked::IsDirectory),
        // That is what POSIX says of a directory, and Linux of a file that is immutable.
        Err(Errno::PERM) if is_directory(directory, name) => Ok(Unlinked::IsDirectory),
        Err(errno) => Err(errno.into()),
    }
}

fn is_directory(directory: &OwnedFd, name: &[u8]) -> bool {
    let stat = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::fs::File;

    use super::*;

    #[test]
    fn a_removal_that_was_cut_is_done_again() {
        let root = tempfile::tempdir().unwrap();
        // As it is left in the middle: what was moved up isn't empty, and holds others like it.
        let left = root.path().join("extra/.volferry-removed-0");
        fs::create_dir_all(left.join("a/b/c")).unwrap();
        fs::create_dir_all(left.join(".volferry-removed-1/d")).unwrap();
        fs::create_dir_all(root.path().join("extra/e/f/g")).unwrap();
        fs::write(root.path().join("extra/.volferry-removed-2"), "a file").unwrap();
        let directory = OwnedFd::from(File::open(root.path()).unwrap());
        let mut steps = 0;
        remove_and_tell(&directory, b"extra", &mut || steps += 1).unwrap();
        assert!(list(&directory, 1, |_| true).unwrap().is_empty());
        assert!(steps >= 9, "{steps} steps");
    }

    #[test]
    fn what_is_not_there_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let directory = OwnedFd::from(File::open(root.path()).unwrap());
        remove(&directory, b"nothing").unwrap();
    }
}
