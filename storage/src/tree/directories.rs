//! Opening what is below a root, and nothing else.
//!
//! Every path is opened from a directory that is open already, with `openat2` and flags that keep
//! the kernel from following a symbolic link, from leaving the directory, and from crossing into
//! another filesystem. A path may be longer than the kernel takes at once: then it is opened in
//! pieces, each below the one before.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// The longest path that is given to the kernel at once; it takes 4095 bytes.
const PATH_PIECE_MAX: usize = 4000;

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// Opens `path` below `directory`.
///
/// # Errors
/// `ELOOP` or `ENOTDIR` where a component is a symbolic link or a file, `EXDEV` where it lies on
/// another filesystem.
pub(super) fn open_beneath(
    directory: impl AsFd,
    path: &[u8],
    flags: OFlags,
    mode: Mode,
) -> io::Result<OwnedFd> {
    const RESOLVE: ResolveFlags = ResolveFlags::BENEATH
        .union(ResolveFlags::NO_SYMLINKS)
        .union(ResolveFlags::NO_MAGICLINKS)
        .union(ResolveFlags::NO_XDEV);
    loop {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat2(&directory, path, flags, mode, RESOLVE) {
            Err(Errno::INTR) => {}
            answer => return Ok(answer?),
        }
    }
}

/// Opens the directory `path` below `directory`, at whatever depth.
///
/// # Errors
/// As [`open_beneath`].
pub(super) fn open_directory(directory: &OwnedFd, path: &[u8]) -> io::Result<OwnedFd> {
    let mut opened: Option<OwnedFd> = None;
    let mut rest = path;
    while !rest.is_empty() {
        let (piece, behind) = split(rest);
        let from = opened.as_ref().unwrap_or(directory);
        opened = Some(open_beneath(from, piece, DIRECTORY, Mode::empty())?);
        rest = behind;
    }
    match opened {
        Some(opened) => Ok(opened),
        None => open_beneath(directory, b".", DIRECTORY, Mode::empty()),
    }
}

/// Opens without leaving a trace in the time of access, where that is allowed.
///
/// # Errors
/// As [`open_beneath`].
pub(super) fn open_quietly(directory: &OwnedFd, path: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let quietly = flags | OFlags::NOATIME;
    match open_beneath(directory, path, quietly, Mode::empty()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
            open_beneath(directory, path, flags, Mode::empty())
        }
        answer => answer,
    }
}

/// As much of `path` as goes to the kernel at once, and what is behind it.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let Some((head, _)) = path.split_at_checked(PATH_PIECE_MAX) else {
        return (path, b"");
    };
    // A name is shorter than a piece, so there is a slash.
    let at = head
        .iter()
        .rposition(|byte| *byte == b'/')
        .unwrap_or(head.len());
    (&path[..at], path.get(at + 1..).unwrap_or_default())
}

/// Directories that were opened lately, each by its path; the last used one comes first.
#[derive(Debug, Default)]
pub(super) struct DirectoryCache {
    entries: Vec<(Vec<u8>, Arc<OwnedFd>)>,
}

impl DirectoryCache {
    /// Enough for the directories that the packs of a depth-first walk alternate between.
    const LEN_MAX: usize = 32;

    pub(super) fn find(&mut self, path: &[u8]) -> Option<Arc<OwnedFd>> {
        let at = self.entries.iter().position(|(known, _)| known == path)?;
        self.entries[..=at].rotate_right(1);
        self.entries.first().map(|(_, fd)| Arc::clone(fd))
    }

    /// The deepest known directory above `path`, and how many bytes of `path` lead there, the slash
    /// behind included.
    pub(super) fn find_above(&self, path: &[u8]) -> Option<(Arc<OwnedFd>, usize)> {
        let above = self.entries.iter().filter(|(known, _)| {
            !known.is_empty() && path.starts_with(known) && path.get(known.len()) == Some(&b'/')
        });
        let (known, fd) = above.max_by_key(|(known, _)| known.len())?;
        Some((Arc::clone(fd), known.len() + 1))
    }

    pub(super) fn insert(&mut self, path: &[u8], fd: &Arc<OwnedFd>) {
        self.entries.truncate(Self::LEN_MAX - 1);
        self.entries.insert(0, (path.to_vec(), Arc::clone(fd)));
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn root(path: &std::path::Path) -> OwnedFd {
        std::fs::File::open(path).unwrap().into()
    }

    #[test]
    fn nothing_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("root/inner")).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        symlink("../outside", dir.path().join("root/out")).unwrap();
        symlink("inner", dir.path().join("root/in")).unwrap();
        symlink("/proc/self/root", dir.path().join("root/magic")).unwrap();
        let root = root(&dir.path().join("root"));
        assert!(open_directory(&root, b"inner").is_ok());
        assert!(open_directory(&root, b"").is_ok());
        for path in [
            &b".."[..],
            b"out",
            b"in",
            b"magic",
            b"/",
            b"inner/../../outside",
            b"out/x",
        ] {
            assert!(open_directory(&root, path).is_err(), "{path:?}");
        }
    }

    #[test]
    fn long_paths_are_opened_in_pieces() {
        let dir = tempfile::tempdir().unwrap();
        let root = root(dir.path());
        let name = [b'n'; 200];
        let mut at = open_directory(&root, b"").unwrap();
        for _ in 0..50 {
            rustix::fs::mkdirat(&at, &name[..], Mode::from_raw_mode(0o700)).unwrap();
            at = open_directory(&at, &name).unwrap();
        }
        let path = [name; 50].map(|name| name.to_vec()).join(&b'/');
        assert!(path.len() > 10_000);
        assert!(open_directory(&root, &path).is_ok());
        // The temporary directory can't remove what it can't name.
        let _removed = std::process::Command::new("rm")
            .arg("-rf")
            .arg(dir.path())
            .status();
    }
}
