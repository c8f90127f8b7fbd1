//! Directories that wait to be looked at, the last one first. However many lie beside each other, few
//! are in memory: the others are in a file.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, OFlags};
use volferry_protocol::tree::path::TreePath;

use super::super::{PRIVATE, create};

/// The file of the staging directory; it loses its name at once.
const WAITING: &[u8] = b"waiting";

/// Bytes of paths in memory.
const HELD_LEN: usize = 1 << 20;

/// What each path costs besides its bytes.
const PATH_COST: usize = 64;

#[derive(Debug)]
pub(super) struct Waiting {
    held: Vec<TreePath>,
    held_len: usize,
    /// Paths that came before, each followed by its length.
    file: File,
    file_len: u64,
}

impl Waiting {
    pub(super) fn create(staging: &OwnedFd) -> io::Result<Self> {
        let file = create(staging, WAITING, OFlags::RDWR, PRIVATE)?;
        rustix::fs::unlinkat(staging, WAITING, AtFlags::empty())?;
        Ok(Self {
            held: Vec::new(),
            held_len: 0,
            file: file.into(),
            file_len: 0,
        })
    }

    pub(super) fn push(&mut self, path: TreePath) -> io::Result<()> {
        self.held_len += path.as_bytes().len() + PATH_COST;
        self.held.push(path);
        if self.held_len <= HELD_LEN {
            return Ok(());
        }
        let mut bytes = Vec::with_capacity(self.held_len);
        for path in self.held.drain(..) {
            let path = path.as_bytes();
            bytes.extend_from_slice(path);
            bytes.extend((path.len() as u64).to_le_bytes());
        }
        self.held_len = 0;
        self.file.write_all_at(&bytes, self.file_len)?;
        self.file_len += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn pop(&mut self) -> io::Result<Option<TreePath>> {
        if let Some(path) = self.held.pop() {
            self.held_len -= path.as_bytes().len() + PATH_COST;
            return Ok(Some(path));
        }
        let mut len = [0; 8];
        let Some(len_at) = self.file_len.checked_sub(len.len() as u64) else {
            return Ok(None);
        };
        self.file.read_exact_at(&mut len, len_at)?;
        let len = u64::from_le_bytes(len);
        let damaged = || io::Error::from(io::ErrorKind::InvalidData);
        self.file_len = len_at.checked_sub(len).ok_or_else(damaged)?;
        let mut path = vec![0; usize::try_from(len).map_err(|_beyond| damaged())?];
        self.file.read_exact_at(&mut path, self.file_len)?;
        self.file.set_len(self.file_len)?;
        TreePath::new(&path).map(Some).map_err(|_bad| damaged())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_one_goes_first_and_few_are_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        let staging = OwnedFd::from(File::open(dir.path()).unwrap());
        let mut waiting = Waiting::create(&staging).unwrap();
        let path = |number: u64| match number {
            0 => TreePath::ROOT,
            _ => TreePath::new(format!("{number}/{}", "d".repeat(200)).as_bytes()).unwrap(),
        };
        // Down and up again, so that it is written, read and written over.
        let mut model = Vec::new();
        for (more, less) in [(20_000, 15_000), (9000, 3000), (100, 11_100)] {
            for number in 0..more {
                waiting.push(path(number)).unwrap();
                model.push(number);
                assert!(waiting.held_len <= HELD_LEN);
            }
            for _ in 0..less {
                assert_eq!(waiting.pop().unwrap(), model.pop().map(path));
            }
        }
        assert_eq!(waiting.pop().unwrap(), None);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
