//! Holding the names that came against those that are there, in a directory that held something
//! before. What the source doesn't have, of an earlier session or of an older copy, is removed where
//! that is wanted. And every name that came has to be there: a filesystem that takes two names for
//! one shows in no other way, since what is in the way of a name goes.
//!
//! Which names came is noted on disk, 8 bytes for each. At the end as many of them as a bounded
//! memory takes are held against the tree, and then the next, until all are through.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, OFlags, RawDir};
use volferry_protocol::tree::path::{Name, TreePath, join, show};

use super::super::{TreeError, is_staging};
use super::below::{create, remove_and_tell};
use super::{Restore, RestoreWorker, lock};
use crate::error::Operation;

mod waiting;

use waiting::Waiting;

/// The file of the staging directory that holds the names that came.
const NAMES: &[u8] = b"names";

/// Names that are held in memory at once, at 8 bytes each.
const HELD_MAX: u64 = 4 << 20;

/// Names that a thread notes before they are written.
const NOTED_MAX: usize = 4096;

/// Names of a directory that are removed before it is listed once more.
const EXTRAS_MAX: usize = 4096;

/// Bytes of names that are asked of the kernel at once.
const LISTED_LEN: usize = 32 << 10;

/// The names that came.
#[derive(Debug)]
pub(super) struct Names {
    file: File,
    count: u64,
    /// Why some are missing.
    failure: Option<io::Error>,
}

/// Names that one thread has noted.
#[derive(Debug, Default)]
pub(super) struct Noted(Vec<u8>);

impl Names {
    pub(super) fn create(staging: &std::os::fd::OwnedFd) -> io::Result<Self> {
        Ok(Self {
            file: File::from(create(staging, NAMES, OFlags::RDWR, super::PRIVATE)?),
            count: 0,
            failure: None,
        })
    }

    /// Takes over what a thread has noted.
    fn write(&mut self, noted: &mut Noted) {
        self.count += (noted.0.len() / 8) as u64;
        if let Err(error) = self.file.write_all(&noted.0) {
            self.failure.get_or_insert(error);
        }
        noted.0.clear();
    }

    /// The names of one share of `shares`, in order.
    fn read(&mut self, share: u64, shares: u64) -> io::Result<Vec<u64>> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        self.file.rewind()?;
        let mut input = BufReader::with_capacity(1 << 20, &self.file);
        let mut names = Vec::new();
        for _ in 0..self.count {
            let mut bytes = [0; 8];
            input.read_exact(&mut bytes)?;
            let name = u64::from_le_bytes(bytes);
            if name % shares == share {
                names.push(name);
            }
        }
        names.sort_unstable();
        Ok(names)
    }
}

impl RestoreWorker {
    /// Notes that a name came, where that will be asked.
    pub(super) fn note_name(&mut self, path: &[u8]) {
        if self.shared.names.is_some() {
            let mark = self.shared.key.mark(path);
            self.noted.0.extend(mark.to_le_bytes());
            if self.noted.0.len() >= 8 * NOTED_MAX {
                self.write_names();
            }
        }
    }

    /// Hands over what this thread has noted.
    pub(super) fn write_names(&mut self) {
        if let Some(names) = &self.shared.names {
            lock(names).write(&mut self.noted);
        }
    }

    /// Removes every entry whose name did not come, with all that is below it, where that is wanted;
    /// then every name that came has to be there.
    pub(super) fn sweep(&mut self) -> Result<(), TreeError> {
        let shared = Arc::clone(&self.shared);
        let Some(names) = &shared.names else {
            // All that is there was made anew, so that two names can only be one directory.
            let came = lock(&shared.found).digest.counts.directories;
            let made = shared.directories_made.load(Ordering::Relaxed);
            return shared.check_names(came, made + 1);
        };
        let count = lock(names).count;
        let shares = count.div_ceil(HELD_MAX).max(1);
        let mut there = shared.names_given_up.load(Ordering::Relaxed);
        for share in 0..shares {
            let failed = |error| shared.io(Operation::Read, &shared.staging_name, error);
            let came = lock(names).read(share, shares).map_err(failed)?;
            let came = |path: &[u8]| {
                let mark = shared.key.mark(path);
                match mark % shares == share {
                    true if came.binary_search(&mark).is_ok() => Came::Yes,
                    true => Came::No,
                    false => Came::InAnotherShare,
                }
            };
            there += u64::from(came(b"") == Came::Yes);
            let mut waiting = Waiting::create(&shared.staging).map_err(failed)?;
            waiting.push(TreePath::ROOT).map_err(failed)?;
            while let Some(path) = waiting.pop().map_err(failed)? {
                there += self.sweep_directory(&path, &came, &mut waiting)?;
            }
        }
        shared.check_names(count, there)
    }

    /// Gives how many of the names that came are in the directory.
    fn sweep_directory(
        &mut self,
        path: &TreePath,
        came: &impl Fn(&[u8]) -> Came,
        waiting: &mut Waiting,
    ) -> Result<u64, TreeError> {
        let shared = Arc::clone(&self.shared);
        shared.steps.fetch_add(1, Ordering::Relaxed);
        let fd = self.enter(path)?;
        let at = path.as_bytes();
        let failed = |operation, error: io::Error| shared.io(operation, at, error);
        let mut there = 0;
        let mut is_listed = false;
        loop {
            let mut extras = Vec::new();
            let mut buffer = Vec::with_capacity(LISTED_LEN);
            let listing =
                super::open_directory(&fd, b"").map_err(|error| failed(Operation::Open, error))?;
            let mut entries = RawDir::new(&listing, buffer.spare_capacity_mut());
            while let Some(entry) = entries.next() {
                let entry = entry.map_err(|errno| failed(Operation::List, errno.into()))?;
                let name = entry.file_name().to_bytes();
                let is_own = path.is_root() && (shared.is_reserved(path, name) || is_staging(name));
                if name == b"." || name == b".." || is_own {
                    continue;
                }
                let came = came(&join(at, name));
                if came == Came::No {
                    if shared.sweeps && extras.len() < EXTRAS_MAX {
                        extras.push(name.to_vec());
                    }
                } else if !is_listed {
                    there += u64::from(came == Came::Yes);
                    if matches!(entry.file_type(), FileType::Directory | FileType::Unknown)
                        && let Ok(below) = Name::new(name).and_then(|name| path.join(name))
                        && super::open_directory(&fd, name).is_ok()
                    {
                        let pushed = waiting.push(below);
                        pushed.map_err(|error| failed(Operation::Write, error))?;
                    }
                }
            }
            is_listed = true;
            for name in &extras {
                tracing::debug!(path = %show(&join(at, name)), "the source does not have it: removed");
                let mut on_step = || {
                    shared.steps.fetch_add(1, Ordering::Relaxed);
                };
                remove_and_tell(&fd, name, &mut on_step)
                    .map_err(|error| shared.io(Operation::Remove, &join(at, name), error))?;
            }
            if extras.len() < EXTRAS_MAX {
                return Ok(there);
            }
        }
    }
}

impl Restore {
    fn check_names(&self, came: u64, there: u64) -> Result<(), TreeError> {
        if there >= came {
            return Ok(());
        }
        Err(TreeError::NamesMissing {
            path: self.path.clone(),
            count: came - there,
        })
    }
}

/// What a share of the names says of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    Yes,
    No,
    InAnotherShare,
}
