//! Reading a tree: several threads walk it, depth first each, and make packs and pieces of it.
//!
//! A directory is opened from the one above it, which is open, so that no path is too long and no
//! renamed directory leads elsewhere. Directories that wait are few: when there are enough of them,
//! a thread goes down itself instead of leaving more. A large file is offered to all threads piece
//! by piece. What belongs together in a thread's way is packed together.
//!
//! Everything is looked at before and after it was read. What changed meanwhile is read again, a few
//! times, and then told.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Mode, OFlags, Stat};
use rustix::io::Errno;
use volferry_protocol::compression::Compressed;
use volferry_protocol::digest::Digest;
use volferry_protocol::tree::fidelity::{FidelityClass, FidelityReport, Loss};
use volferry_protocol::tree::file_digest::PIECE_LEN;
use volferry_protocol::tree::links::LinkGroups;
use volferry_protocol::tree::offer::Stamp;
use volferry_protocol::tree::path::{Name, show};
use volferry_protocol::tree::record::Metadata;
use volferry_protocol::tree::session::{TreeSummary, TreeTerms};
use volferry_protocol::tree::set_digest::TreeDigest;
use volferry_protocol::zero_map::ZeroMap;

use super::metadata::{self, Handle as MetadataHandle};
use super::names::Batch;
use super::{TreeError, allow_open_files};
use crate::buffer::{Buffer, BufferPool};
use crate::error::{Operation, StorageError};
use crate::sys::ReadQueue;

mod directory;
mod file;
mod inode;
mod large;
mod offers;
mod pack;
mod together;

use directory::{Directory, Listing, Waiting};
use large::LargeFile;
pub use offers::Unasked;
use offers::{Asked, Offers, Questions};
use pack::Pack;

/// How often something that changes is read before it is told as changed.
const ATTEMPTS: u32 = 3;

/// Zeros to hash where a file has a hole.
pub(super) static ZEROS: [u8; PIECE_LEN as usize] = [0; PIECE_LEN as usize];

/// A directory to be cloned.
#[derive(Clone, Debug)]
pub struct TreeSource {
    root: Arc<OwnedFd>,
    path: PathBuf,
}

impl TreeSource {
    /// Opens the directory at `path`.
    ///
    /// # Errors
    /// When it can't be opened, or is no directory.
    pub fn open(path: &Path) -> Result<Self, TreeError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| StorageError::io(Operation::Open, path)(errno.into()))?;
        Ok(Self {
            root: Arc::new(root),
            path: path.to_owned(),
        })
    }

    /// The directory that is open already.
    pub(super) const fn of_open(root: Arc<OwnedFd>, path: PathBuf) -> Self {
        Self { root, path }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// How a tree is read.
#[derive(Clone, Copy, Debug)]
pub struct WalkOptions {
    /// What has to be kept.
    pub terms: TreeTerms,
    /// Read past the page cache where the filesystem lets us.
    pub direct: bool,
    /// Offer files before they are sent.
    pub offer: bool,
    /// Read what the target says to hold, and compare.
    pub compare: bool,
    /// Which of the clone's sessions it is: no number of a file comes twice.
    pub epoch: u64,
    /// Read back what a clone has made: from the storage, and without what it keeps for itself.
    pub read_back: bool,
}

/// What a walk makes of a tree, to be sent.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a zero map is small beside the piece it describes"
)]
pub enum Outgoing {
    /// Records.
    Pack {
        /// Which of the walk's packs.
        number: u64,
        /// The digest of the records.
        digest: Digest,
        /// The records.
        bytes: Buffer,
        /// How they stand in `bytes`, once they were compressed.
        compressed: Option<Compressed>,
    },
    /// A piece of a large file that holds data.
    Piece {
        /// The file.
        file: u64,
        /// Which of its pieces.
        index: u64,
        /// The piece's chaining value.
        digest: Digest,
        /// Which of its blocks hold only zeros.
        zero_map: ZeroMap,
        /// The piece.
        bytes: Buffer,
        /// How its payload stands in `bytes`, once it was compressed.
        compressed: Option<Compressed>,
    },
    /// Pieces of a large file that hold only zeros.
    ZeroPieces {
        /// The file.
        file: u64,
        /// The first of them.
        index: u64,
        /// How many.
        count: u32,
        /// Bytes of the last of them.
        last_len: u32,
    },
    /// A large file is about to come in pieces.
    Begin {
        /// The file.
        file: u64,
        /// Bytes of its content.
        size: u64,
        /// Which state of the file it is.
        stamp: Stamp,
        /// As much of its path as is sent for messages.
        path: Vec<u8>,
    },
    /// What pieces of a large file the target holds is asked for.
    Probe {
        /// The file.
        file: u64,
        /// The first of them.
        index: u64,
        /// How many.
        count: u32,
    },
    /// Pieces of a large file that the target holds as they should be.
    SamePieces {
        /// The file.
        file: u64,
        /// The first of them.
        index: u64,
        /// How many.
        count: u32,
    },
}

/// Where a walk puts what it makes.
pub trait WalkEnd: Send + Sync {
    /// Takes what is to be sent. Gives false when nobody wants more: the walk ends then.
    fn put(&self, outgoing: Outgoing) -> bool;

    /// A regular file was read whole. One with several names is told once.
    fn file(&self, _path: &[u8], _digest: Digest) {}
}

/// What came of a walk.
#[derive(Debug)]
pub struct Walked {
    /// What was read.
    pub summary: TreeSummary,
    /// What changed while it was read.
    pub changed: Loss,
    /// Whether all was read; else nobody wanted more.
    pub is_complete: bool,
}

/// What a walk has seen so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// Names.
    pub names: u64,
    /// Bytes of files that were read, holes included.
    pub bytes: u64,
    /// Bytes in blocks that hold data.
    pub data_bytes: u64,
    /// Of these, bytes that were sent.
    pub sent_bytes: u64,
}

/// A walk under way: what its threads share.
pub struct Walk<End> {
    source: TreeSource,
    options: WalkOptions,
    pool: BufferPool,
    end: End,
    work: Mutex<Work>,
    is_stopped: AtomicBool,
    /// Small files can't be read together.
    reads_alone: AtomicBool,
    /// There is work, or there will be none.
    news: Condvar,
    links: Mutex<LinkGroups>,
    next_pack: AtomicU64,
    next_file: AtomicU64,
    /// Names that were read so far, and bytes of files, for progress.
    names_seen: AtomicU64,
    bytes_seen: AtomicU64,
    data_bytes: AtomicU64,
    sent_bytes: AtomicU64,
    found: Mutex<Found>,
}

impl<End> std::fmt::Debug for Walk<End> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

/// What threads that have ended found.
#[derive(Debug, Default)]
struct Found {
    digest: TreeDigest,
    fidelity: FidelityReport,
    changed: Loss,
}

#[derive(Debug, Default)]
struct Work {
    /// The last one goes first: depth first keeps few waiting.
    directories: Vec<Waiting>,
    files: VecDeque<Arc<LargeFile>>,
    /// The first one goes first, so that few directories are under way.
    batches: VecDeque<(Arc<Listing>, Batch)>,
    questions: Questions,
    /// Threads that may find more work.
    busy: usize,
}

impl Work {
    /// What is to be done first of what there is.
    fn next_task(&mut self) -> Option<Task> {
        if let Some(asked) = self.questions.next_task() {
            return Some(Task::Asked(asked));
        }
        if let Some((listing, batch)) = self.batches.pop_front() {
            return Some(Task::Names(listing, batch));
        }
        if let Some(waiting) = self.directories.pop() {
            return Some(Task::Directory(waiting));
        }
        // Last: whoever met a large file reads it, while others keep the processors busy with small ones.
        self.files
            .front()
            .map(|file| Task::Pieces(Arc::clone(file)))
    }
}

/// What a thread does next.
#[derive(Debug)]
enum Task {
    Directory(Waiting),
    Pieces(Arc<LargeFile>),
    Names(Arc<Listing>, Batch),
    Asked(Asked),
}

/// Why a thread ends early.
enum Stop {
    /// Nobody wants more.
    Unwanted,
    Failed(TreeError),
}

impl From<TreeError> for Stop {
    fn from(error: TreeError) -> Self {
        Self::Failed(error)
    }
}

impl From<StorageError> for Stop {
    fn from(error: StorageError) -> Self {
        Self::Failed(error.into())
    }
}

impl<End: WalkEnd> Walk<End> {
    /// A walk through `source`, with packs and pieces in buffers of `pool`, which are put into
    /// `end`.
    ///
    /// # Panics
    /// When the buffers can't hold a piece.
    pub fn new(source: TreeSource, options: WalkOptions, pool: BufferPool, end: End) -> Self {
        assert!(
            pool.buffer_size() >= PIECE_LEN as usize,
            "a buffer holds a piece"
        );
        allow_open_files();
        let root = Waiting {
            above: None,
            name: Vec::new(),
        };
        let work = Work {
            directories: vec![root],
            ..Work::default()
        };
        Self {
            source,
            options,
            pool,
            end,
            work: Mutex::new(work),
            is_stopped: AtomicBool::new(false),
            reads_alone: AtomicBool::new(false),
            news: Condvar::new(),
            links: Mutex::default(),
            next_pack: AtomicU64::new(0),
            next_file: AtomicU64::new(first_file(options.epoch)),
            names_seen: AtomicU64::new(0),
            bytes_seen: AtomicU64::new(0),
            data_bytes: AtomicU64::new(0),
            sent_bytes: AtomicU64::new(0),
            found: Mutex::default(),
        }
    }

    /// How many threads the memory is enough for: each may hold a pack, files that it reads together, and a piece.
    #[must_use]
    pub fn threads_max(&self) -> usize {
        (self.pool.buffer_count() / 3).max(1)
    }

    /// What was seen so far.
    #[must_use]
    pub fn seen(&self) -> Seen {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Seen {
            names: load(&self.names_seen),
            bytes: load(&self.bytes_seen),
            data_bytes: load(&self.data_bytes),
            sent_bytes: load(&self.sent_bytes),
        }
    }

    /// Where the walk puts what it makes.
    #[must_use]
    pub const fn end(&self) -> &End {
        &self.end
    }

    /// Works until the tree is read, nobody wants more, or an error. To be called on every thread
    /// of the walk.
    ///
    /// # Errors
    /// When something can't be read that its owner should be able to read.
    pub fn run(&self) -> Result<(), TreeError> {
        let _stops = StopOnPanic(self);
        let mut worker = Worker::new(self);
        let result = worker.work();
        if result.is_err() {
            self.stop();
        }
        let Worker { found, .. } = worker;
        let mut all = lock(&self.found);
        all.digest.merge(&found.digest);
        all.fidelity.add(&found.fidelity);
        all.changed.add(&found.changed);
        match result {
            Ok(()) | Err(Stop::Unwanted) => Ok(()),
            Err(Stop::Failed(error)) => Err(error),
        }
    }

    /// Lets every thread end soon.
    pub fn stop(&self) {
        // Under the lock, so that nobody goes to sleep in between.
        let _work = lock(&self.work);
        self.is_stopped.store(true, Ordering::Relaxed);
        self.news.notify_all();
    }

    /// What came of it, once every thread has ended.
    pub fn finish(&self) -> Walked {
        let mut found = std::mem::take(&mut *lock(&self.found));
        for sum in lock(&self.links).drain() {
            found.digest.add(&sum);
        }
        Walked {
            summary: TreeSummary {
                digest: found.digest.finish(self.options.terms.accept),
                counts: found.digest.counts,
                fidelity: found.fidelity,
                changed: found.changed.count,
                data_bytes: self.data_bytes.load(Ordering::Relaxed),
                resumed_bytes: 0,
                matched_bytes: 0,
                repaired_bytes: 0,
            },
            changed: found.changed,
            is_complete: !self.is_stopped.load(Ordering::Relaxed),
        }
    }

    /// The next piece of work; `None` when there will be none.
    fn next_task(&self, was_busy: &mut bool, mut idle: impl FnMut() -> bool) -> Option<Task> {
        let mut is_flushed = false;
        let mut work = lock(&self.work);
        loop {
            if self.is_stopped.load(Ordering::Relaxed) {
                return None;
            }
            if let Some(task) = work.next_task() {
                work.busy += usize::from(!std::mem::replace(was_busy, true));
                return Some(task);
            }
            if !is_flushed {
                // What this thread has packed travels while it waits, and may be answered.
                drop(work);
                is_flushed = true;
                if !idle() {
                    return None;
                }
                work = lock(&self.work);
                continue;
            }
            // Only now: what this thread asked for may have brought work.
            work.busy -= usize::from(std::mem::take(was_busy));
            if work.busy == 0 && work.questions.is_empty() {
                self.news.notify_all();
                return None;
            }
            work = self.news.wait(work).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() {
            return self.source.path.clone();
        }
        self.source.path.join(show(path))
    }
}

/// The other threads would wait for a thread that panicked.
struct StopOnPanic<'a, End: WalkEnd>(&'a Walk<End>);

impl<End: WalkEnd> Drop for StopOnPanic<'_, End> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.stop();
        }
    }
}

/// One thread of a walk.
struct Worker<'a, End> {
    walk: &'a Walk<End>,
    found: Found,
    pack: Option<Pack>,
    /// A record on its way into the pack.
    record: Vec<u8>,
    content: Vec<u8>,
    offers: Offers,
    /// Made when it is needed first.
    queue: Option<ReadQueue>,
    /// The directory whose names are read.
    listing: Option<Arc<Listing>>,
    depth: u32,
    was_busy: bool,
}

impl<'a, End: WalkEnd> Worker<'a, End> {
    fn new(walk: &'a Walk<End>) -> Self {
        Self {
            walk,
            found: Found::default(),
            pack: None,
            record: Vec::new(),
            content: Vec::new(),
            offers: Offers::default(),
            queue: None,
            listing: None,
            depth: 0,
            was_busy: false,
        }
    }

    fn work(&mut self) -> Result<(), Stop> {
        loop {
            let walk = self.walk;
            let mut was_busy = self.was_busy;
            let mut sent = Ok(());
            let task = walk.next_task(&mut was_busy, || {
                sent = self.ask().and_then(|()| self.send_pack());
                sent.is_ok()
            });
            self.was_busy = was_busy;
            sent?;
            match task {
                Some(Task::Directory(waiting)) => self.enter(&waiting)?,
                Some(Task::Pieces(file)) => self.read_pieces(&file)?,
                Some(Task::Names(listing, batch)) => self.read_batch(&listing, &batch)?,
                Some(Task::Asked(asked)) => self.go_on(asked)?,
                None => break,
            }
        }
        self.send_pack()
    }

    /// Notes why something that was there can't be opened, or fails.
    fn cannot_open(&mut self, path: &[u8], error: io::Error) -> Result<(), Stop> {
        match Errno::from_io_error(&error) {
            Some(Errno::ACCESS | Errno::PERM) => {
                self.found.fidelity.note(FidelityClass::Unreadable, path);
            }
            Some(Errno::XDEV) => self.found.fidelity.note(FidelityClass::Mounts, path),
            // It went, or became something else.
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::STALE) => {
                self.found.changed.note(path);
            }
            _ => return Err(self.error(Operation::Open, path, error)),
        }
        Ok(())
    }

    fn stat(&self, fd: &impl AsFd, path: &[u8]) -> Result<Stat, Stop> {
        rustix::fs::fstat(fd).map_err(|errno| self.error(Operation::Inspect, path, errno.into()))
    }

    fn stat_name(
        &mut self,
        directory: &Directory,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<Stat>, Stop> {
        match rustix::fs::statat(&directory.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => {
                self.found.changed.note(path);
                Ok(None)
            }
            Err(errno) => Err(self.error(Operation::Inspect, path, errno.into())),
        }
    }

    /// Everything about an inode but its content. Notes what can't be read.
    fn metadata(
        &mut self,
        stat: &Stat,
        handle: MetadataHandle<'_>,
        path: &[u8],
    ) -> Result<Metadata, Stop> {
        let mut metadata = metadata::of_stat(stat);
        let fidelity = &mut self.found.fidelity;
        let selinux = self.walk.options.terms.selinux;
        match metadata::read_xattrs(handle, selinux, |class| fidelity.note(class, path)) {
            Ok(xattrs) => metadata.xattrs = xattrs,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(self.error(Operation::Inspect, path, error)),
        }
        Ok(metadata)
    }

    fn error(&self, operation: Operation, path: &[u8], error: io::Error) -> Stop {
        Stop::Failed(StorageError::io(operation, &self.walk.at(path))(error).into())
    }

    fn put(&self, outgoing: Outgoing) -> Result<(), Stop> {
        match self.walk.end.put(outgoing) {
            true => Ok(()),
            false => Err(Stop::Unwanted),
        }
    }
}

/// A name that was listed.
fn name_of(name: &[u8]) -> Name<'_> {
    #[expect(clippy::expect_used, reason = "a directory's listing leaves them out")]
    Name::new(name).expect("a name without slashes, of at most 255 bytes")
}

/// The first number of a file that is read in the session `epoch`.
const fn first_file(epoch: u64) -> u64 {
    ((epoch & 0x7fff_ffff) << 32) | 1
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters and lists: what a panic elsewhere leaves is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
