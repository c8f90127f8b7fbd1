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
use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, AtFlags, FileType, Mode, OFlags, RawDir, SeekFrom, Stat, major, minor};
use rustix::io::Errno;
use volferry_protocol::compression::Compressed;
use volferry_protocol::digest::Digest;
use volferry_protocol::geometry::ByteRange;
use volferry_protocol::tree::fidelity::{FidelityClass, FidelityReport, Loss};
use volferry_protocol::tree::file_digest::{self, FileDigest, PIECE_LEN, PieceDigest};
use volferry_protocol::tree::frame::{SHOWN_PATH_LEN_MAX, ZERO_PIECES_MAX, pack_digest};
use volferry_protocol::tree::links::{InodeKey, LinkGroups, Met};
use volferry_protocol::tree::offer::Stamp;
use volferry_protocol::tree::path::{Name, PATH_LEN_MAX, TreePath, join, show};
use volferry_protocol::tree::record::{
    DeviceNumber, Entry, INLINE_SIZE_MAX, Metadata, Record, Special,
};
use volferry_protocol::tree::session::{TreeSummary, TreeTerms};
use volferry_protocol::tree::set_digest::{Content, NameSum, TreeDigest};
use volferry_protocol::zero_map::ZeroMap;

use super::directories::open_beneath;
use super::metadata::{self, Handle as MetadataHandle};
use super::names::{Batch, Names};
use super::{LOST_AND_FOUND, TreeError, allow_open_files, is_staging};
use crate::buffer::{Buffer, BufferPool};
use crate::error::{Operation, StorageError};
use crate::handle::{Handle, advise};

mod offers;

pub use offers::Unasked;
use offers::{Asked, Offers, Questions, stamp_of};

/// How often something that changes is read before it is told as changed.
const ATTEMPTS: u32 = 3;

/// Directories that may wait for a thread; each holds the one above it open.
const WAITING_MAX: usize = 256;

/// How deep a thread goes down into a directory while it reads the one above. Below, more may wait:
/// they cost memory, which a deep and wide tree has to be paid with, but no stack.
const DEPTH_MAX: u32 = 40;

/// Batches of names that may wait for a thread.
const BATCHES_MAX: usize = 64;

/// Bytes of small files that a thread asks of the disk before it reads them.
const AHEAD_MAX: u64 = 2 << 20;

/// Bytes of names that are asked of the kernel at once.
const NAMES_LEN: usize = 32 << 10;

/// Records of large files that may wait in a pack. Their pieces have been sent, and the target holds
/// each of these files open until its record comes.
const LARGE_RECORDS_MAX: usize = 8;

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
    /// Read large files past the page cache where the filesystem lets us.
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
        if let Some(file) = self.files.front() {
            return Some(Task::Pieces(Arc::clone(file)));
        }
        if let Some((listing, batch)) = self.batches.pop_front() {
            return Some(Task::Names(listing, batch));
        }
        self.directories.pop().map(Task::Directory)
    }
}

/// A directory that was not entered yet.
#[derive(Debug)]
struct Waiting {
    /// What holds it; `None` for the root.
    above: Option<Arc<Directory>>,
    /// Its name there.
    name: Vec<u8>,
}

/// An open directory.
#[derive(Debug)]
struct Directory {
    fd: Arc<OwnedFd>,
    path: TreePath,
}

/// The number and the key of an inode among those with several names.
type Group = Option<(u64, InodeKey)>;

/// A directory whose names are read.
#[derive(Debug)]
struct Listing {
    directory: Arc<Directory>,
    /// What it was before it was listed.
    before: Stat,
    /// The batches and large files that are not done, and one more until all its names are known.
    left: AtomicUsize,
}

/// A regular file that is open and was not read yet.
struct Opened<'a> {
    name: &'a [u8],
    path: Vec<u8>,
    file: File,
    stat: Stat,
}

/// How a file that is read in pieces begins.
#[derive(Debug, Default)]
struct Begun {
    /// What its pieces bear.
    number: u64,
    /// The pieces that the target holds.
    digest: FileDigest,
    /// Bytes of these in blocks that hold data.
    data_bytes: u64,
    is_compared: bool,
}

/// A file that is read in pieces.
#[derive(Debug)]
struct LargeFile {
    /// What its pieces bear.
    number: u64,
    attempt: u32,
    handle: Handle,
    directory: Arc<Directory>,
    name: Vec<u8>,
    path: Vec<u8>,
    stat: Stat,
    size: u64,
    group: Group,
    /// The directory that is looked at again when this file was read; none of one that was offered.
    listing: Option<Arc<Listing>>,
    /// The target holds something in its place, to be compared.
    is_compared: bool,
    /// The next piece that nobody has taken.
    next: AtomicU64,
    /// Pieces that are not done.
    left: AtomicU64,
    digest: Mutex<FileDigest>,
    data_bytes: AtomicU64,
    /// It ended before its size said so.
    is_torn: AtomicBool,
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

    /// How many threads the memory is enough for: each may hold a pack and a piece.
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
    /// The directory whose names are read.
    listing: Option<Arc<Listing>>,
    depth: u32,
    was_busy: bool,
}

/// A pack that is filled.
struct Pack {
    bytes: Buffer,
    len: usize,
    entered: Option<TreePath>,
    large_records: usize,
}

/// Where a kind of name leads.
enum Kind {
    Directory,
    Regular,
    Other,
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

    /// Reads a directory and what it holds, or leaves that to others.
    fn enter(&mut self, waiting: &Waiting) -> Result<(), Stop> {
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
        let mut metadata = metadata::of_stat(&before);
        metadata.xattrs = self.xattrs(MetadataHandle::Open(fd.as_fd()), path.as_bytes())?;
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
    fn end_part(&mut self, listing: &Listing) -> Result<(), Stop> {
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
    fn read_batch(&mut self, listing: &Arc<Listing>, batch: &Batch) -> Result<(), Stop> {
        let above = self.listing.replace(Arc::clone(listing));
        let read = self.read_names_of(listing, batch);
        self.listing = above;
        read
    }

    fn read_names_of(&mut self, listing: &Listing, batch: &Batch) -> Result<(), Stop> {
        let directory = &listing.directory;
        let mut opened = Vec::with_capacity(batch.len());
        let mut ahead_bytes = 0;
        for (name, is_regular) in batch.iter() {
            if !is_regular {
                self.read_special(directory, name)?;
                continue;
            }
            let Some(file) = self.open_file(directory, name)? else {
                continue;
            };
            let size = size_of(&file.stat);
            if size <= u64::from(INLINE_SIZE_MAX) && ahead_bytes < AHEAD_MAX && batch.len() > 1 {
                ahead_bytes += size;
                // A filesystem that doesn't read ahead reads when it is asked to.
                let _advice = rustix::fs::fadvise(&file.file, 0, None, Advice::WillNeed);
            }
            opened.push(file);
        }
        for file in opened {
            self.read_file(directory, file)?;
            if self.walk.is_stopped.load(Ordering::Relaxed) {
                return Err(Stop::Unwanted);
            }
        }
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

    /// Opens what was a regular file when it was listed. `None` when it can't be read, which is
    /// noted.
    fn open_file<'b>(
        &mut self,
        directory: &Directory,
        name: &'b [u8],
    ) -> Result<Option<Opened<'b>>, Stop> {
        let path = join(directory.path.as_bytes(), name);
        if path.len() > PATH_LEN_MAX {
            self.found.fidelity.note(FidelityClass::Unreadable, &path);
            return Ok(None);
        }
        let fd = match open_for_reading(&directory.fd, name) {
            Ok(fd) => fd,
            Err(error) => return self.cannot_open(&path, error).map(|()| None),
        };
        let stat = self.stat(&fd, &path)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            self.found.changed.note(&path);
            return Ok(None);
        }
        let file = File::from(fd);
        if self.walk.options.read_back {
            let all = ByteRange::new(0, size_of(&stat));
            advise(&file, all, Advice::DontNeed);
        }
        Ok(Some(Opened {
            name,
            path,
            file,
            stat,
        }))
    }

    fn read_file(&mut self, directory: &Arc<Directory>, opened: Opened<'_>) -> Result<(), Stop> {
        let Opened {
            name,
            path,
            file,
            mut stat,
        } = opened;
        if size_of(&stat) > u64::from(INLINE_SIZE_MAX) {
            // Others were read since it was opened, which may have taken long.
            stat = self.stat(&file, &path)?;
        }
        let Some(group) = self.meet(directory, name, &path, &stat)? else {
            return Ok(());
        };
        if size_of(&stat) > u64::from(INLINE_SIZE_MAX) {
            return self.begin_large(directory, name, path, file, stat, group, 1);
        }
        self.read_small(directory, name, path, file, stat, group)
    }

    /// Meets a name of an inode. `None` when the inode was met before: then its link is on its way.
    fn meet(
        &mut self,
        directory: &Directory,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
    ) -> Result<Option<Group>, Stop> {
        let names = u32::try_from(stat.st_nlink).unwrap_or(u32::MAX);
        if names < 2 {
            return Ok(Some(None));
        }
        let key = key_of(stat);
        let met = lock(&self.walk.links).meet(key, names, NameSum::of_name(path));
        match met {
            Met::First { group } => Ok(Some(Some((group, key)))),
            Met::Again { group, complete } => {
                if let Some(sum) = complete {
                    self.found.digest.add(&sum);
                }
                self.found.digest.counts.note_link();
                let name = name_of(name);
                self.emit(&directory.path, &Record::Link { name, group })?;
                Ok(None)
            }
        }
    }

    /// Adds an inode to the digest whose content is known.
    fn add(&mut self, path: &[u8], content: &Content<'_>, metadata: &Metadata, group: Group) {
        let left_out = self.walk.options.terms.accept;
        let Some((_, key)) = group else {
            let digest = &mut self.found.digest;
            digest.add_entry(path, content, metadata, left_out);
            return;
        };
        let sum = NameSum::of_content(content, metadata, left_out);
        if let Some(sum) = lock(&self.walk.links).add_content(key, &sum) {
            self.found.digest.add(&sum);
        }
        self.found.digest.counts.note(content);
    }

    fn read_small(
        &mut self,
        directory: &Arc<Directory>,
        name: &[u8],
        path: Vec<u8>,
        file: File,
        mut stat: Stat,
        group: Group,
    ) -> Result<(), Stop> {
        let mut attempt = 1;
        let mut content = std::mem::take(&mut self.content);
        let metadata = loop {
            let mut metadata = metadata::of_stat(&stat);
            metadata.xattrs = self.xattrs(MetadataHandle::Open(file.as_fd()), &path)?;
            // One byte more than it should have: a file that grew shows.
            let size = usize::try_from(size_of(&stat)).unwrap_or(usize::MAX);
            content.resize(size.saturating_add(1), 0);
            let len = read_up_to(&file, &mut content)
                .map_err(|error| self.error(Operation::Read, &path, error))?;
            content.resize(size, 0);
            if let Some(missing) = content.get_mut(len..) {
                missing.fill(0);
            }
            let after = self.stat(&file, &path)?;
            if len == size && !is_changed(&stat, &after) {
                break metadata;
            }
            if attempt == ATTEMPTS {
                self.found.changed.note(&path);
                break metadata;
            }
            attempt += 1;
            stat = after;
            if size_of(&stat) > u64::from(INLINE_SIZE_MAX) {
                self.content = content;
                return self.begin_large(directory, name, path, file, stat, group, attempt);
            }
        };
        let digest = file_digest::of_bytes(&content);
        let zero_map = ZeroMap::scan(&content);
        let data_len = zero_map.data_len();
        let size = u64::from(zero_map.chunk_len());
        self.walk.bytes_seen.fetch_add(size, Ordering::Relaxed);
        self.walk
            .data_bytes
            .fetch_add(u64::from(data_len), Ordering::Relaxed);
        self.walk
            .sent_bytes
            .fetch_add(u64::from(data_len), Ordering::Relaxed);
        squeeze(&mut content, &zero_map);
        self.add(&path, &Content::File { size, digest }, &metadata, group);
        self.walk.end.file(&path, digest);
        let record = Record::File {
            entry: Entry {
                name: name_of(name),
                group: group.map_or(0, |(group, _)| group),
                metadata,
            },
            stamp: stamp_of(&path, &stat),
            digest,
            zero_map,
            data: content.get(..data_len as usize).unwrap_or_default(),
        };
        let emitted = self.emit(&directory.path, &record);
        self.content = content;
        emitted
    }

    /// Sends a file in pieces.
    fn begin_large(
        &mut self,
        directory: &Arc<Directory>,
        name: &[u8],
        path: Vec<u8>,
        file: File,
        stat: Stat,
        group: Group,
        attempt: u32,
    ) -> Result<(), Stop> {
        let begun = Begun {
            number: self.walk.next_file.fetch_add(1, Ordering::Relaxed),
            ..Begun::default()
        };
        self.begin(directory, name, path, file, stat, group, attempt, begun)
    }

    /// Offers a file to all threads, piece by piece, and begins with it.
    fn begin(
        &mut self,
        directory: &Arc<Directory>,
        name: &[u8],
        path: Vec<u8>,
        file: File,
        stat: Stat,
        group: Group,
        attempt: u32,
        begun: Begun,
    ) -> Result<(), Stop> {
        let size = size_of(&stat);
        self.put(Outgoing::Begin {
            file: begun.number,
            size,
            stamp: stamp_of(&path, &stat),
            path: path
                .get(..SHOWN_PATH_LEN_MAX as usize)
                .unwrap_or(&path)
                .to_vec(),
        })?;
        let at = self.walk.at(&path);
        let held = begun.digest.pieces();
        let file = Arc::new(LargeFile {
            number: begun.number,
            attempt,
            handle: Handle::new(at, file, OFlags::RDONLY, self.walk.options.direct),
            directory: Arc::clone(directory),
            name: name.to_vec(),
            path,
            stat,
            size,
            group,
            listing: self.listing.clone(),
            is_compared: begun.is_compared,
            next: AtomicU64::new(0),
            left: AtomicU64::new(file_digest::piece_count(size).saturating_sub(held)),
            digest: Mutex::new(begun.digest),
            data_bytes: AtomicU64::new(begun.data_bytes),
            is_torn: AtomicBool::new(false),
        });
        if let Some(listing) = &file.listing {
            listing.left.fetch_add(1, Ordering::AcqRel);
        }
        if file.left.load(Ordering::Relaxed) == 0 {
            return self.end_large(&file);
        }
        if file.is_compared {
            self.begin_comparing(&file);
            return Ok(());
        }
        lock(&self.walk.work).files.push_back(Arc::clone(&file));
        self.walk.news.notify_all();
        self.read_pieces(&file)
    }

    /// Reads pieces of a file until none is left to take.
    fn read_pieces(&mut self, file: &Arc<LargeFile>) -> Result<(), Stop> {
        let count = file_digest::piece_count(file.size);
        loop {
            let index = file.next.fetch_add(1, Ordering::Relaxed);
            if index >= count {
                // The first who finds nothing left takes it from the list.
                let mut work = lock(&self.walk.work);
                work.files.retain(|other| !Arc::ptr_eq(other, file));
                return Ok(());
            }
            if self.walk.is_stopped.load(Ordering::Relaxed) {
                return Err(Stop::Unwanted);
            }
            if lock(&file.digest).contains(index) {
                continue; // the target holds it
            }
            let done = self.read_piece(file, index, count)?;
            self.end_pieces(file, done)?;
        }
    }

    /// So many pieces of a file are done.
    fn end_pieces(&mut self, file: &Arc<LargeFile>, done: u64) -> Result<(), Stop> {
        if file.left.fetch_sub(done, Ordering::AcqRel) == done {
            self.end_large(file)?;
        }
        Ok(())
    }

    /// Reads the piece `index`, or finds that it and some behind it are a hole. Gives how many
    /// pieces are done.
    fn read_piece(&self, file: &LargeFile, index: u64, count: u64) -> Result<u64, Stop> {
        let start = index * u64::from(PIECE_LEN);
        let len = file_digest::piece_len(file.size, index);
        let data_at = next_data(file.handle.main(), start, file.size)
            .map_err(|error| self.error(Operation::Seek, &file.path, error))?;
        if data_at >= start + u64::from(len) {
            let mut zero_count = 1;
            let hole_end = match data_at {
                _ if data_at >= file.size => count,
                _ => data_at / u64::from(PIECE_LEN),
            };
            let wanted = hole_end.min(index + u64::from(ZERO_PIECES_MAX));
            // Those that the target holds are not told again.
            let held = lock(&file.digest);
            let wanted = (index + 1..wanted)
                .find(|index| held.contains(*index))
                .unwrap_or(wanted);
            drop(held);
            // The pieces behind are this thread's too, if nobody has taken one of them.
            let taken = file.next.compare_exchange(
                index + 1,
                wanted.max(index + 1),
                Ordering::Relaxed,
                Ordering::Relaxed,
            );
            if taken.is_ok() {
                zero_count = wanted.max(index + 1) - index;
            }
            return self.put_zeros(file, index, zero_count);
        }
        let Some(bytes) = self.load_piece(file, index)? else {
            return Err(Stop::Unwanted);
        };
        self.send_piece(file, index, bytes)?;
        Ok(1)
    }

    /// Reads the piece `index`; `None` when nobody wants more.
    fn load_piece(&self, file: &LargeFile, index: u64) -> Result<Option<Buffer>, Stop> {
        let start = index * u64::from(PIECE_LEN);
        let Some(mut bytes) = self.walk.pool.checkout_blocking() else {
            return Ok(None);
        };
        bytes.set_len(file_digest::piece_len(file.size, index) as usize);
        match file.handle.read_at(start, &mut bytes, file.size) {
            Ok(()) => {}
            Err(StorageError::EndedEarly { offset, .. }) => {
                file.is_torn.store(true, Ordering::Relaxed);
                let kept = usize::try_from(offset.saturating_sub(start)).unwrap_or(0);
                bytes.get_mut(kept..).unwrap_or_default().fill(0);
            }
            Err(error) => return Err(error.into()),
        }
        Ok(Some(bytes))
    }

    fn send_piece(&self, file: &LargeFile, index: u64, bytes: Buffer) -> Result<(), Stop> {
        let zero_map = ZeroMap::scan(&bytes);
        if zero_map.is_all_zero() {
            drop(bytes);
            self.put_zeros(file, index, 1)?;
            return Ok(());
        }
        let digest = PieceDigest::of(index, &bytes);
        let data_len = u64::from(zero_map.data_len());
        self.note_piece(file, index, digest, bytes.len() as u64, data_len);
        self.walk.sent_bytes.fetch_add(data_len, Ordering::Relaxed);
        self.put(Outgoing::Piece {
            file: file.number,
            index,
            digest: digest.chaining_value,
            zero_map,
            bytes,
            compressed: None,
        })
    }

    /// A piece was read.
    fn note_piece(
        &self,
        file: &LargeFile,
        index: u64,
        digest: PieceDigest,
        len: u64,
        data_len: u64,
    ) {
        let _new = lock(&file.digest).insert(index, digest);
        file.data_bytes.fetch_add(data_len, Ordering::Relaxed);
        self.walk.bytes_seen.fetch_add(len, Ordering::Relaxed);
    }

    fn put_zeros(&self, file: &LargeFile, index: u64, count: u64) -> Result<u64, Stop> {
        for index in index..index + count {
            let len = file_digest::piece_len(file.size, index);
            let digest = PieceDigest::of(index, &ZEROS[..len as usize]);
            self.note_piece(file, index, digest, u64::from(len), 0);
        }
        self.put(Outgoing::ZeroPieces {
            file: file.number,
            index,
            count: u32::try_from(count).unwrap_or(ZERO_PIECES_MAX),
            last_len: file_digest::piece_len(file.size, index + count - 1),
        })?;
        Ok(count)
    }

    /// All pieces of a file were read.
    fn end_large(&mut self, file: &Arc<LargeFile>) -> Result<(), Stop> {
        // What is begun anew belongs to the same directory.
        let own = std::mem::replace(&mut self.listing, file.listing.clone());
        let sent = self.send_large(file);
        self.listing = own;
        sent?;
        match &file.listing {
            Some(listing) => self.end_part(listing),
            None => Ok(()),
        }
    }

    fn send_large(&mut self, file: &Arc<LargeFile>) -> Result<(), Stop> {
        let main = file.handle.main();
        let after = self.stat(main, &file.path)?;
        let is_torn = file.is_torn.load(Ordering::Relaxed);
        if is_torn || is_changed(&file.stat, &after) {
            if file.attempt < ATTEMPTS {
                let file_number = Record::Forget { file: file.number };
                self.emit(&file.directory.path, &file_number)?;
                let again = main
                    .try_clone()
                    .map_err(|error| self.error(Operation::Open, &file.path, error))?;
                let (path, name) = (file.path.clone(), file.name.clone());
                let (directory, attempt) = (&file.directory, file.attempt + 1);
                return self.begin_large(directory, &name, path, again, after, file.group, attempt);
            }
            self.found.changed.note(&file.path);
        }
        let mut metadata = metadata::of_stat(&file.stat);
        metadata.xattrs = self.xattrs(MetadataHandle::Open(main.as_fd()), &file.path)?;
        let digest = lock(&file.digest).finish(file.size);
        let digest = digest.unwrap_or(Digest([0; 32])); // every piece was counted
        self.walk
            .data_bytes
            .fetch_add(file.data_bytes.load(Ordering::Relaxed), Ordering::Relaxed);
        let size = file.size;
        let content = Content::File { size, digest };
        self.add(&file.path, &content, &metadata, file.group);
        self.walk.end.file(&file.path, digest);
        let record = Record::LargeFile {
            entry: Entry {
                name: name_of(&file.name),
                group: file.group.map_or(0, |(group, _)| group),
                metadata,
            },
            file: file.number,
            size,
            digest,
        };
        self.emit(&file.directory.path, &record)?;
        let Some(pack) = &mut self.pack else {
            return Ok(());
        };
        pack.large_records += 1;
        match pack.large_records {
            LARGE_RECORDS_MAX.. => self.send_pack(),
            _ => Ok(()),
        }
    }

    /// Reads what is neither a directory nor a regular file, without opening it.
    fn read_special(&mut self, directory: &Arc<Directory>, name: &[u8]) -> Result<(), Stop> {
        let path = join(directory.path.as_bytes(), name);
        if path.len() > PATH_LEN_MAX {
            self.found.fidelity.note(FidelityClass::Unreadable, &path);
            return Ok(());
        }
        let Some(stat) = self.stat_name(directory, name, &path)? else {
            return Ok(());
        };
        let mut target = Vec::new();
        let device = || DeviceNumber {
            major: major(stat.st_rdev),
            minor: minor(stat.st_rdev),
        };
        let special = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => match rustix::fs::readlinkat(&directory.fd, name, Vec::new()) {
                Ok(read) => {
                    target.extend(read.to_bytes());
                    Special::Symlink(&target)
                }
                Err(errno) => return self.cannot_open(&path, errno.into()),
            },
            FileType::Fifo => Special::Fifo,
            FileType::Socket => Special::Socket,
            FileType::CharacterDevice => Special::Character(device()),
            FileType::BlockDevice => Special::Block(device()),
            _ => {
                self.found.changed.note(&path);
                return Ok(());
            }
        };
        let left_out = self.walk.options.terms.accept;
        let is_covered = Content::Special(&special).is_covered(left_out);
        let group = match is_covered {
            true => self.meet(directory, name, &path, &stat)?,
            // Links of what a digest does not speak of would make it speak.
            false => Some(None),
        };
        let Some(group) = group else {
            return Ok(());
        };
        let mut metadata = metadata::of_stat(&stat);
        let handle = MetadataHandle::Name(directory.fd.as_fd(), name);
        metadata.xattrs = self.xattrs(handle, &path)?;
        self.add(&path, &Content::Special(&special), &metadata, group);
        let entry = Entry {
            name: name_of(name),
            group: group.map_or(0, |(group, _)| group),
            metadata,
        };
        self.emit(&directory.path, &Record::Special { entry, special })
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

    fn xattrs(
        &mut self,
        handle: MetadataHandle<'_>,
        path: &[u8],
    ) -> Result<Vec<volferry_protocol::tree::record::Xattr>, Stop> {
        let fidelity = &mut self.found.fidelity;
        let selinux = self.walk.options.terms.selinux;
        match metadata::read_xattrs(handle, selinux, |class| fidelity.note(class, path)) {
            Ok(xattrs) => Ok(xattrs),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(self.error(Operation::Inspect, path, error)),
        }
    }

    fn error(&self, operation: Operation, path: &[u8], error: io::Error) -> Stop {
        Stop::Failed(StorageError::io(operation, &self.walk.at(path))(error).into())
    }

    /// Puts a record into the pack, which is sent when it is full.
    fn emit(&mut self, directory: &TreePath, record: &Record<'_>) -> Result<(), Stop> {
        for _ in 0..2 {
            self.record.clear();
            let entered = self.pack.as_ref().and_then(|pack| pack.entered.as_ref());
            if entered != Some(directory) {
                Record::Enter(directory.clone()).encode(&mut self.record);
            }
            record.encode(&mut self.record);
            if self.pack.is_none() {
                let Some(bytes) = self.walk.pool.checkout_blocking() else {
                    return Err(Stop::Unwanted);
                };
                self.pack = Some(Pack {
                    bytes,
                    len: 0,
                    entered: None,
                    large_records: 0,
                });
            }
            let Some(pack) = &mut self.pack else { continue };
            let end = pack.len + self.record.len();
            let end_max = pack.bytes.capacity().min(PIECE_LEN as usize);
            if end <= end_max {
                pack.bytes.set_len(end);
                pack.bytes[pack.len..end].copy_from_slice(&self.record);
                pack.len = end;
                pack.entered = Some(directory.clone());
                return Ok(());
            }
            self.send_pack()?;
        }
        // A record is at most a path, attributes and an inline content: that fits an empty pack.
        unreachable!("every record fits an empty pack")
    }

    fn send_pack(&mut self) -> Result<(), Stop> {
        let Some(Pack { mut bytes, len, .. }) = self.pack.take() else {
            return Ok(());
        };
        bytes.set_len(len);
        self.put(Outgoing::Pack {
            number: self.walk.next_pack.fetch_add(1, Ordering::Relaxed),
            digest: pack_digest(&bytes),
            bytes,
            compressed: None,
        })
    }

    fn put(&self, outgoing: Outgoing) -> Result<(), Stop> {
        match self.walk.end.put(outgoing) {
            true => Ok(()),
            false => Err(Stop::Unwanted),
        }
    }
}

/// The largest record: a path, attributes, a content with its map, and what is fixed.
const RECORD_LEN_MAX: usize = PATH_LEN_MAX
    + volferry_protocol::tree::record::XATTRS_LEN_MAX
    + INLINE_SIZE_MAX as usize
    + (96 << 10);
const _: () = assert!(
    RECORD_LEN_MAX <= PIECE_LEN as usize,
    "every record fits an empty pack"
);

/// A name that was listed.
fn name_of(name: &[u8]) -> Name<'_> {
    #[expect(clippy::expect_used, reason = "a directory's listing leaves them out")]
    Name::new(name).expect("a name without slashes, of at most 255 bytes")
}

/// Opens what should be a regular file. Whatever it became meanwhile, opening it waits for nobody.
fn open_for_reading(directory: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
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

/// Opens without leaving a trace in the time of access, where that is allowed.
fn open_quietly(directory: &OwnedFd, name: &[u8], flags: OFlags) -> io::Result<OwnedFd> {
    let quietly = flags | OFlags::NOATIME;
    match open_beneath(directory, name, quietly, Mode::empty()) {
        Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => {
            open_beneath(directory, name, flags, Mode::empty())
        }
        answer => answer,
    }
}

fn size_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// What tells an inode from others. Linux has device numbers of 12 and 20 bits.
fn key_of(stat: &Stat) -> InodeKey {
    InodeKey {
        inode: stat.st_ino,
        device: major(stat.st_dev) << 20 | minor(stat.st_dev),
    }
}

/// Whether what was read in between may be a mixture.
fn is_changed(before: &Stat, after: &Stat) -> bool {
    before.st_size != after.st_size
        || metadata::mtime(before) != metadata::mtime(after)
        || metadata::ctime(before) != metadata::ctime(after)
}

/// The first number of a file that is read in the session `epoch`.
const fn first_file(epoch: u64) -> u64 {
    ((epoch & 0x7fff_ffff) << 32) | 1
}

/// Reads until the buffer is full or the file ends.
fn read_up_to(file: &File, buffer: &mut [u8]) -> io::Result<usize> {
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

/// Where data may begin at or behind `from`; `size` when none follows.
fn next_data(file: &File, from: u64, size: u64) -> io::Result<u64> {
    match rustix::fs::seek(file, SeekFrom::Data(from)) {
        Ok(at) => Ok(at),
        Err(Errno::NXIO) => Ok(size),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => Ok(from),
        Err(errno) => Err(errno.into()),
    }
}

/// Moves the blocks that hold data to the front.
fn squeeze(content: &mut [u8], zero_map: &ZeroMap) {
    let mut at = 0;
    for run in zero_map.runs().filter(|run| !run.is_zero) {
        content.copy_within(run.indices(), at);
        at += run.len() as usize;
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Counters and lists: what a panic elsewhere leaves is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
