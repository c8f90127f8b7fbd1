//! A look at a directory that tells whether it is the one that was proven: names, kinds, sizes and
//! times of modification of what lies nearest to its root. No file is opened.
//!
//! Owners, modes and times of change are left out: whoever mounts a volume for a pod may set them anew.

use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use volferry_protocol::digest::Digest;
use volferry_protocol::tree::path::join;

use super::directories::open_quietly;
use super::{LOST_AND_FOUND, is_staging, metadata};

/// How many names are looked at: some milliseconds, and enough for a directory that was exchanged, set
/// back or worked in to show.
const NAMES_MAX: usize = 4096;

/// Looks at the directory. What clones keep for themselves and what belongs to the filesystem is left
/// out, and so is what can't be opened.
///
/// # Errors
/// When the root can't be read.
pub(super) fn witness(root: &OwnedFd) -> io::Result<Digest> {
    let mut seen = Vec::new();
    let mut left = NAMES_MAX;
    let mut waiting = VecDeque::from([Vec::new()]);
    while let Some(path) = waiting.pop_front().filter(|_| left > 0) {
        let is_root = path.is_empty();
        let place: &[u8] = if is_root { b"." } else { &path };
        let directory = match open_quietly(root, place, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(directory) => directory,
            Err(error) if is_root => return Err(error),
            Err(_closed) => continue,
        };
        for name in first_names(directory.try_clone()?, is_root, left)? {
            let Ok(stat) = rustix::fs::statat(&directory, &*name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            left -= 1;
            let kind = FileType::from_raw_mode(stat.st_mode);
            let size = match kind {
                FileType::RegularFile => stat.st_size,
                _ => 0,
            };
            let mtime = metadata::mtime(&stat);
            let path = join(&path, &name);
            seen.extend(path.len().to_be_bytes());
            seen.extend(&path);
            seen.extend(kind.as_raw_mode().to_be_bytes());
            seen.extend(size.to_be_bytes());
            seen.extend(mtime.seconds.to_be_bytes());
            seen.extend(mtime.nanoseconds.to_be_bytes());
            if kind == FileType::Directory {
                waiting.push_back(path);
            }
        }
    }
    Ok(Digest::of_chunk(&seen))
}

/// The first names of a directory in their order, which its filesystem does not give them in; at most
/// so many.
fn first_names(directory: OwnedFd, is_root: bool, count: usize) -> io::Result<Vec<Vec<u8>>> {
    let mut names = BinaryHeap::new();
    for entry in Dir::new(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        let is_own = is_root && (name == LOST_AND_FOUND || is_staging(name));
        if is_own || name == b"." || name == b".." {
            continue;
        }
        names.push(name.to_vec());
        if names.len() > count {
            let _last = names.pop();
        }
    }
    Ok(names.into_sorted_vec())
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::Path;
    use std::time::SystemTime;

    use super::*;

    fn of(path: &Path) -> Digest {
        witness(&File::open(path).unwrap().into()).unwrap()
    }

    #[test]
    fn what_is_there_shows_and_what_a_mount_may_change_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        fs::create_dir_all(root.join("a/b")).unwrap();
        fs::write(root.join("a/b/file"), "content").unwrap();
        symlink("nowhere", root.join("link")).unwrap();
        let before = of(root);

        fs::set_permissions(root.join("a"), Permissions::from_mode(0o2770)).unwrap();
        fs::create_dir(root.join("lost+found")).unwrap();
        let staging = root.join(format!(".volferry-{}", uuid::Uuid::nil()));
        fs::create_dir(&staging).unwrap();
        fs::write(staging.join("journal"), "x").unwrap();
        assert_eq!(of(root), before);

        let file = File::options().write(true).open(root.join("a/b/file"));
        let file = file.unwrap();
        let modified = file.metadata().unwrap().modified().unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_ne!(of(root), before, "another time");
        file.set_modified(modified).unwrap();
        assert_eq!(of(root), before);
        file.set_len(3).unwrap();
        file.set_modified(modified).unwrap();
        assert_ne!(of(root), before, "another size");
        let empty = tempfile::tempdir().unwrap();
        assert_ne!(of(empty.path()), before, "another directory");
    }

    /// Of very many names the first are looked at, whatever order they come in.
    #[test]
    fn a_look_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        for number in 0..NAMES_MAX + 10 {
            File::create(root.join(format!("{number:05}"))).unwrap();
        }
        let before = of(root);
        fs::remove_file(root.join(format!("{:05}", NAMES_MAX + 1))).unwrap();
        assert_eq!(of(root), before);
        fs::remove_file(root.join("00007")).unwrap();
        assert_ne!(of(root), before);
    }
}
