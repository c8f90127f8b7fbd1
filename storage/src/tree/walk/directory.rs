//! Directories of a walk: who enters one, who reads its names, and what is left for other threads.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FileType, OFlags, RawDir, Stat};
use volferry_protocol::tree::fidelity::FidelityClass;
use volferry_protocol::tree::path::{Name, TreePath, join, show};
use volferry_protocol::tree::record::Record;
use volferry_protocol::tree::set_digest::Content;

use super::super::directories::open_quietly;
use super::super::metadata::Handle as MetadataHandle;
use super::super::names::{Batch, Names};
use super::super::{LOST_AND_FOUND, TreeError, is_staging};
use super::inode::{is_changed, is_large};
use super::{Stop, WalkEnd, Worker, lock};
use crate::error::Operation;

/// Directories that may wait for a thread; each holds the one above it open.
const WAITING_MAX: usize = 256;

/// How deep a thread goes down into a directory while it reads the one above. Below, more may wait:
/// they cost memory, which a deep and wide tree has to be paid with, but no stack.
const DEPTH_MAX: u32 = 40;

/// Batches of names that may wait for a thread.
const BATCHES_MAX: usize = 64;

/// Bytes of names that are asked of the kernel at once.
const NAMES_LEN: usize = 32 << 10;

/// A directory that was not entered yet.
#[derive(Debug)]
pub(super) struct Waiting {
    /// What holds it; `None` for the root.
    pub(super) above: Option<Arc<Directory>>,
    /// Its name there.
    pub(super) name: Vec<u8>,
}

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: Arc<OwnedFd>,
    pub(super) path: TreePath,
}

/// A directory whose names are read.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) directory: Arc<Directory>,
    /// What it was before it was listed.
    pub(super) before: Stat,
    /// The batches and large files that are not done, and one more until all its names are known.
    pub(super) left: AtomicUsize,
}

/// Where a kind of name leads.
enum Kind {
    Directory,
    Regular,
    Other,
}

impl<End: WalkEnd> Worker<'_, End> {
    /// Reads a directory and what it holds, or leaves that to others.
    pub(super) fn enter(&mut self, waiting: &Waiting) -> Result<(), Stop> {
        let walk = self.walk;
        let path = match &waiting.above {
            None => TreePath::ROOT,
            Some(above) => match Name::new(&waiting.name).and_then(|name| above.path.join(name)) {
                Ok(path) => path,
                Err(_too_long) => {
                    let path = join(above.path.as_bytes(), &waiting.name);
                    self.found.fidelity.note(FidelityClass::Unreadable, &path);
                    return Ok(());
                }
            },
        };
        // The root is opened anew too: a descriptor remembers how far it was listed, and a tree is
        // walked again when its session was lost.
        let (above, name) = match &waiting.above {
            None => (&walk.source.root, &b"."[..]),
            Some(above) => (&above.fd, &waiting.name[..]),
        };
        let fd = match open_quietly(above, name, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => Arc::new(fd),
            Err(error) => return self.cannot_open(path.as_bytes(), error),
        };
        let before = self.stat(&fd, path.as_bytes())?;
        let handle = MetadataHandle::Open(fd.as_fd());
        let metadata = self.metadata(&before, handle, path.as_bytes())?;
        let left_out = walk.options.terms.accept;
        let content = Content::Directory;
        let digest = &mut self.found.digest;
        digest.add_entry(path.as_bytes(), &content, &metadata, left_out);
        self.emit(&path, &Record::Directory(metadata))?;
        let listing = Arc::new(Listing {
            directory: Arc::new(Directory { fd, path }),
            before,
            left: AtomicUsize::new(1),
        });
        self.read_directory(&listing)?;
        self.end_part(&listing)
    }

    /// A batch or a large file of a directory, or its listing, is done. After the last it is looked at
    /// again.
    pub(super) fn end_part(&mut self, listing: &Listing) -> Result<(), Stop> {
        if listing.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let Directory { fd, path } = &*listing.directory;
            let after = self.stat(fd, path.as_bytes())?;
            if is_changed(&listing.before, &after) {
                self.found.changed.note(path.as_bytes());
            }
        }
        Ok(())
    }

    fn read_directory(&mut self, listing: &Arc<Listing>) -> Result<(), Stop> {
        let directory = &listing.directory;
        let mut names = Names::default();
        let mut buffer: Vec<MaybeUninit<u8>> = vec![MaybeUninit::uninit(); NAMES_LEN];
        let mut entries = RawDir::new(&*directory.fd, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(|errno| {
                self.error(Operation::List, directory.path.as_bytes(), errno.into())
            })?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if Name::new(name).is_err() {
                // FUSE, vfat and others have names of more than 255 bytes, and ext4 and xfs don't.
                let path = join(directory.path.as_bytes(), name);
                self.found.fidelity.note(FidelityClass::Unreadable, &path);
                continue;
            }
            if directory.path.is_root() {
                if name == LOST_AND_FOUND && entry.file_type() == FileType::Directory {
                    continue;
                }
                if is_staging(name) && self.walk.options.read_back {
                    continue;
                }
                if is_staging(name) {
                    return Err(Stop::Failed(TreeError::Leftover {
                        path: self.walk.source.path.clone(),
                        name: show(name),
                    }));
                }
            }
            self.walk.names_seen.fetch_add(1, Ordering::Relaxed);
            let kind = match entry.file_type() {
                FileType::Directory => Kind::Directory,
                FileType::RegularFile => Kind::Regular,
                FileType::Unknown => match self.kind_of(directory, name)? {
                    Some(kind) => kind,
                    None => continue,
                },
                _ => Kind::Other,
            };
            match kind {
                Kind::Directory => {
                    if let Some(waiting) = self.leave(directory, name) {
                        // What was listed so far is not kept at each step of the way down.
                        self.read_names(listing, std::mem::take(&mut names))?;
                        self.depth += 1;
                        let entered = self.enter(&waiting);
                        self.depth -= 1;
                        entered?;
                    }
                }
                Kind::Regular if self.walk.options.offer => self.offer(directory, name)?,
                Kind::Regular => names.add(entry.ino(), name, true),
                Kind::Other => names.add(entry.ino(), name, false),
            }
            if self.walk.is_stopped.load(Ordering::Relaxed) {
                return Err(Stop::Unwanted);
            }
            if names.is_full() {
                self.read_names(listing, std::mem::take(&mut names))?;
            }
        }
        self.read_names(listing, names)
    }

    /// Reads names of a directory, or leaves some to threads that would have nothing to do.
    fn read_names(&mut self, listing: &Arc<Listing>, names: Names) -> Result<(), Stop> {
        let mut batches = names.into_batches();
        while let Some(batch) = batches.next() {
            listing.left.fetch_add(1, Ordering::AcqRel);
            self.share(listing, &mut batches);
            self.read_batch(listing, &batch)?;
        }
        Ok(())
    }

    /// Leaves batches for other threads, as long as no directory waits for them: those of one
    /// directory are best made by one thread of the target too.
    fn share(&self, listing: &Arc<Listing>, batches: &mut impl Iterator<Item = Batch>) {
        let mut work = lock(&self.walk.work);
        if !work.directories.is_empty() {
            return;
        }
        let room = BATCHES_MAX.saturating_sub(work.batches.len());
        for batch in batches.take(room) {
            listing.left.fetch_add(1, Ordering::AcqRel);
            work.batches.push_back((Arc::clone(listing), batch));
            self.walk.news.notify_one();
        }
    }

    /// Reads what some names of a directory lead to.
    pub(super) fn read_batch(&mut self, listing: &Arc<Listing>, batch: &Batch) -> Result<(), Stop> {
        let above = self.listing.replace(Arc::clone(listing));
        let read = self.read_names_of(listing, batch);
        self.listing = above;
        read
    }

    fn read_names_of(&mut self, listing: &Listing, batch: &Batch) -> Result<(), Stop> {
        let directory = &listing.directory;
        let (mut small, mut large) = (Vec::with_capacity(batch.len()), Vec::new());
        for (name, is_regular) in batch.iter() {
            if !is_regular {
                self.read_special(directory, name)?;
                continue;
            }
            let Some(file) = self.open_file(directory, name)? else {
                continue;
            };
            match is_large(&file.stat) {
                true => large.push(file),
                false => small.push(file),
            }
        }
        self.read_small_files(small)?;
        self.read_in_turn(large)?;
        self.end_part(listing)
    }

    /// Leaves a directory for any thread, or gives it back when enough wait.
    fn leave(&self, directory: &Arc<Directory>, name: &[u8]) -> Option<Waiting> {
        let waiting = Waiting {
            above: Some(Arc::clone(directory)),
            name: name.to_vec(),
        };
        let mut work = lock(&self.walk.work);
        if work.directories.len() >= WAITING_MAX && self.depth < DEPTH_MAX {
            return Some(waiting);
        }
        work.directories.push(waiting);
        self.walk.news.notify_one();
        None
    }

    /// What a name is where the filesystem doesn't say it beside the name; `None` when it went.
    fn kind_of(&mut self, directory: &Directory, name: &[u8]) -> Result<Option<Kind>, Stop> {
        let path = join(directory.path.as_bytes(), name);
        let Some(stat) = self.stat_name(directory, name, &path)? else {
            return Ok(None);
        };
        Ok(Some(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Directory,
            FileType::RegularFile => Kind::Regular,
            _ => Kind::Other,
        }))
    }
}
