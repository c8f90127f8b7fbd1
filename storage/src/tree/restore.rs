//! Making a tree again, below one root and nowhere else.
//!
//! What comes is hostile until it was checked. A name is checked where it is decoded. Every
//! directory is opened below the root, with flags that keep the kernel from following a link; every
//! file is created anew and never opened because it is there. So nothing that was written, by this
//! clone or by anybody before, decides where the next thing goes.
//!
//! Packs and pieces are applied in any order by several threads. What has to come last, links and
//! the metadata of directories, goes through a spool file, so that no tree is too large. The order
//! at the end:
//!
//! 1. links, which need what they link to;
//! 2. owner, mode, times and attributes of directories, which everything before changes;
//! 3. the staging directory is removed, and the root gets its metadata;
//! 4. the filesystem is flushed, once.
//!
//! A crash anywhere before leaves a tree without a receipt, and the staging directory with a journal
//! of what was durable: the next attempt goes on from there. What it can keep is the business of
//! `held`; what must go because the source doesn't have it, of `sweep`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, Dir, FileType, FlockOperation, Mode, OFlags, RenameFlags, makedev};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::rand::{GetRandomFlags, getrandom};
use uuid::Uuid;
use volferry_protocol::codec::Reader;
use volferry_protocol::digest::Digest;
use volferry_protocol::geometry::ByteRange;
use volferry_protocol::tree::fidelity::{FidelityClass, FidelityReport};
use volferry_protocol::tree::file_digest::{self, FileDigest, PIECE_LEN, PieceDigest};
use volferry_protocol::tree::journal::{Entry as JournalEntry, Finished};
use volferry_protocol::tree::offer::{Holding, OFFERS_MAX, Stamp, VoucherKey};
use volferry_protocol::tree::path::{Name, TreePath, join, show};
use volferry_protocol::tree::record::{Entry, Metadata, Record, Special};
use volferry_protocol::tree::session::{TreeSummary, TreeTerms};
use volferry_protocol::tree::set_digest::{Content, NameSum, TreeDigest};
use volferry_protocol::zero_map::ZeroMap;

use super::directories::{DirectoryCache, open_beneath, open_directory};
use super::group_sums::{self, GroupSums};
use super::journal::{JOURNAL, TreeJournal};
use super::metadata::{self, Handle as MetadataHandle, Terms};
use super::walk::{Outgoing, TreeSource, Walk, WalkEnd, WalkOptions};
use super::{LOST_AND_FOUND, Refusal, STAGING_PREFIX, TreeError, allow_open_files, is_staging};
use crate::buffer::BufferPool;
use crate::error::{Operation, StorageError};
use crate::handle::Handle;
use crate::zeroing::{Way, Zeroing};

mod held;
mod sweep;

pub use held::Reuse;
use sweep::{Names, Noted};

/// Large files that may be under way at once. An honest source has a few for each of its threads, and
/// those whose only piece is in flight: as many as both ends have buffers.
const LARGE_FILES_MAX: usize = 2048;

/// Files that may have been given up for another attempt. Each costs an honest source three
/// readings of a file that changes.
const FORGOTTEN_MAX: usize = 1 << 16;

/// Subtrees that the digest of a file may consist of. An honest source reads in order.
const NODES_MAX: usize = 1 << 14;

/// The directory of the staging directory that holds a name for each inode with several.
const LINKS: &[u8] = b"links";

/// The file of the staging directory that holds what comes last.
const SPOOL: &[u8] = b"spool";

/// The file of the staging directory that holds what is known of inodes with several names.
const GROUPS: &[u8] = b"groups";

/// The mode of what is nobody's business yet.
const PRIVATE: Mode = Mode::from_raw_mode(0o600);

/// Zeros to hash where a file has a hole.
static ZEROS: [u8; PIECE_LEN as usize] = [0; PIECE_LEN as usize];

/// How a target directory may be treated.
#[derive(Clone, Copy, Debug, Default)]
pub struct TreeTargetOptions {
    /// Write into a directory that holds something: what is sent replaces what is there.
    pub overwrite: bool,
    /// Remove what is there before, so that the target is exactly the source.
    pub delete_extra: bool,
    /// Write large files past the page cache where the filesystem lets us.
    pub direct: bool,
    /// What may be kept of what is there.
    pub reuse: Reuse,
    /// What is made will be read back as a whole.
    pub read_back: bool,
}

/// A directory that a tree is to be made in, claimed for as long as this lives.
#[derive(Debug)]
pub struct TreeTarget {
    root: Arc<OwnedFd>,
    path: PathBuf,
    clone_id: Uuid,
    options: TreeTargetOptions,
    /// Whether what an attempt of this clone left is there, to be gone on from.
    goes_on: bool,
    /// Whether nothing of that is durable: where it is all there is, it goes.
    is_blank: bool,
    /// Whether a session came to its end, and its journal is gone.
    is_concluded: bool,
    /// Bytes of data that were written since something read back wrong, when it did.
    repaired_bytes: Option<Arc<AtomicU64>>,
    /// Whether the directory held nothing else when the clone began, from the first session on.
    was_alone: Option<bool>,
    /// The last epoch that the journal knows of.
    epoch: u64,
    /// Runs of the source agent that it says to be shut out.
    shut_out: Vec<Uuid>,
}

impl TreeTarget {
    /// Claims the directory at `path` for the clone `clone_id`; it is made when it isn't there.
    ///
    /// # Errors
    /// When it can't be opened, is in use, or holds something that may not be overwritten.
    pub fn open(
        path: &Path,
        clone_id: Uuid,
        options: TreeTargetOptions,
    ) -> Result<Self, TreeError> {
        match rustix::fs::mkdir(path, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => {
                return Err(StorageError::io(Operation::Create, path)(errno.into()).into());
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|errno| StorageError::io(Operation::Open, path)(errno.into()))?;
        match rustix::fs::flock(&root, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::AGAIN) => {
                return Err(TreeError::InUse {
                    path: path.to_owned(),
                });
            }
            Err(errno) => {
                tracing::warn!(path = %path.display(), %errno, "the directory can't be locked")
            }
        }
        let mut target = Self {
            root: Arc::new(root),
            path: path.to_owned(),
            clone_id,
            options,
            goes_on: false,
            is_blank: false,
            is_concluded: false,
            repaired_bytes: None,
            was_alone: None,
            epoch: 0,
            shut_out: Vec::new(),
        };
        target.look_for_journal()?;
        let is_begun = exists(&target.root, &target.staging_name());
        if is_begun && options.reuse == Reuse::Times {
            // What an attempt wrote and could not flush looks the same and may be anything, whatever
            // became of its journal.
            target.options.reuse = Reuse::Content;
        }
        if !options.overwrite
            && !target.goes_on
            && !options.reuse.compares()
            && let Some(name) = target.first_entry()?
        {
            return Err(TreeError::NotEmpty {
                path: path.to_owned(),
                name: show(&name),
            });
        }
        Ok(target)
    }

    /// Finds what an attempt of this clone left.
    fn look_for_journal(&mut self) -> Result<(), TreeError> {
        let Ok(staging) = open_directory(&self.root, &self.staging_name()) else {
            return Ok(());
        };
        if self.options.reuse == Reuse::Nothing || !exists(&staging, JOURNAL) {
            return Ok(());
        }
        let journal = TreeJournal::open(&staging, self.clone_id)
            .map_err(StorageError::io(Operation::Read, &self.path))?;
        self.goes_on = journal.is_alone().is_some();
        self.was_alone = journal.is_alone();
        self.is_blank = self.goes_on && journal.is_empty();
        self.epoch = journal.epoch();
        self.shut_out = journal.shut_out().to_vec();
        Ok(())
    }

    fn staging_name(&self) -> Vec<u8> {
        [STAGING_PREFIX, self.clone_id.to_string().as_bytes()].concat()
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A session has concluded, and its source was lost before it heard of the receipt: the next one
    /// compares what is there.
    pub const fn set_concluded(&mut self) {
        self.is_concluded = true;
    }

    /// What was written reads back wrong: the next session compares all of it, and the journal
    /// vouches for nothing.
    ///
    /// # Errors
    /// When the journal can't be removed.
    pub fn begin_repair(&mut self) -> Result<(), TreeError> {
        self.repaired_bytes.get_or_insert_default();
        self.distrust()
    }

    /// What was written is not what was read: nothing of it is to be gone on from.
    ///
    /// # Errors
    /// When the journal can't be removed.
    pub fn distrust(&self) -> Result<(), TreeError> {
        let path = join(&self.staging_name(), JOURNAL);
        match open_directory(&self.root, &self.staging_name()) {
            Ok(staging) => remove(&staging, JOURNAL).map_err(|error| {
                StorageError::io(Operation::Remove, &self.path.join(show(&path)))(error).into()
            }),
            Err(_none) => Ok(()),
        }
    }

    /// The epoch of the last session that an attempt of this clone left word of; else 0.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// The runs of the source agent that an attempt of this clone has shut out.
    #[must_use]
    pub fn shut_out(&self) -> &[Uuid] {
        &self.shut_out
    }

    /// How much room its filesystem has.
    ///
    /// # Errors
    /// When the filesystem doesn't say.
    pub fn room(&self) -> Result<Room, TreeError> {
        let room = rustix::fs::fstatvfs(&self.root)
            .map_err(|errno| StorageError::io(Operation::Inspect, &self.path)(errno.into()))?;
        Ok(Room {
            total_bytes: room.f_blocks.saturating_mul(room.f_frsize),
            available_bytes: room.f_bavail.saturating_mul(room.f_frsize),
        })
    }

    fn first_entry(&self) -> Result<Option<Vec<u8>>, TreeError> {
        let names = list(&self.root)
            .map_err(|error| StorageError::io(Operation::List, &self.path)(error))?;
        let own = self.staging_name();
        let mut names = names.into_iter();
        Ok(names.find(|name| name != LOST_AND_FOUND && *name != own))
    }

    /// Makes the directory ready to take the tree in the session `epoch`, the first or a later one:
    /// everything that an earlier one wrote with has ended. `shut_out` are the runs of the source agent
    /// that may not come back, for a later run of this end.
    ///
    /// # Errors
    /// When what is in the way can't be removed, or the staging directory can't be made.
    pub fn prepare(
        &mut self,
        terms: TreeTerms,
        epoch: u64,
        shut_out: &[Uuid],
    ) -> Result<Restore, TreeError> {
        allow_open_files();
        let staging_name = self.staging_name();
        let reuse = match self.options.reuse {
            _ if self.repaired_bytes.is_some() => Reuse::Content,
            Reuse::Nothing | Reuse::Journal if self.is_concluded => Reuse::Times,
            reuse => reuse,
        };
        let compares = reuse.compares();
        // What was not durable would take the room of what comes.
        let is_own_only = self.is_blank && self.was_alone == Some(true);
        let keeps = self.goes_on && !self.is_blank || compares;
        let clears = !keeps && (self.options.delete_extra || is_own_only);
        // Whether there was anything but what the clone keeps for itself.
        let mut is_alone = true;
        for name in list(&self.root).map_err(StorageError::io(Operation::List, &self.path))? {
            let is_own = self.goes_on && name == staging_name;
            if name == LOST_AND_FOUND || is_own {
                continue;
            }
            // What another clone left goes in any case.
            if clears || is_staging(&name) {
                remove(&self.root, &name).map_err(StorageError::io(
                    Operation::Remove,
                    &self.path.join(show(&name)),
                ))?;
            } else {
                is_alone = false;
            }
        }
        metadata::open_up(self.root.as_fd());
        let staging = self
            .make_staging(&staging_name)
            .map_err(StorageError::io(Operation::Create, &self.path))?;
        let Staging {
            root: staging,
            links,
            spool,
            groups,
            mut journal,
        } = staging;
        let was_empty = is_alone;
        let is_alone = journal.is_alone().or(self.was_alone).unwrap_or(is_alone);
        self.was_alone = Some(is_alone);
        let session = JournalEntry::Session { epoch, is_alone };
        let shut_out = shut_out.iter().copied().map(JournalEntry::ShutOut);
        journal
            .append(std::iter::once(session).chain(shut_out))
            .map_err(StorageError::io(Operation::Write, &self.path))?;
        let is_dirty = self.goes_on && !clears || !was_empty;
        let sweeps = is_dirty && (is_alone || self.options.delete_extra);
        if self.options.read_back && is_dirty && !sweeps {
            return Err(TreeError::Merged {
                path: self.path.clone(),
            });
        }
        let names = is_dirty.then(|| Names::create(&staging));
        let names = names
            .transpose()
            .map_err(StorageError::io(Operation::Create, &self.path))?;
        self.goes_on = true;
        self.is_blank = false;
        self.epoch = epoch;
        Ok(Restore {
            is_dirty,
            direct: self.options.direct,
            owner: (geteuid().as_raw(), getegid().as_raw()),
            root: Arc::clone(&self.root),
            path: self.path.clone(),
            terms,
            epoch,
            reuse,
            repaired_bytes: self.repaired_bytes.clone(),
            offers: compares || !journal.is_empty(),
            staging_name,
            staging,
            links,
            spool: Mutex::new(Spool {
                file: BufWriter::with_capacity(64 << 10, File::from(spool)),
                record: Vec::new(),
            }),
            names: names.map(Mutex::new),
            sweeps,
            names_given_up: AtomicU64::new(0),
            directories_made: AtomicU64::new(0),
            key: VoucherKey::new(random()?),
            durable_bytes: AtomicU64::new(journal.durable_bytes()),
            journal: Mutex::new(journal),
            finished: Mutex::default(),
            large: Mutex::default(),
            groups: Mutex::new(GroupSums::new(File::from(groups))),
            data_bytes: AtomicU64::new(0),
            kept_data_bytes: AtomicU64::new(0),
            resumed_bytes: AtomicU64::new(0),
            matched_bytes: AtomicU64::new(0),
            checked_bytes: AtomicU64::new(0),
            is_stopped: AtomicBool::new(false),
            steps: AtomicU64::new(0),
            root_metadata: Mutex::default(),
            names_written: AtomicU64::new(0),
            zeroing: Zeroing::starting_with(Way::Punch),
            found: Mutex::default(),
        })
    }

    /// Makes the staging directory, or opens the one that an earlier session left: of that stay the
    /// journal, and the files that it says to be there in part.
    fn make_staging(&self, name: &[u8]) -> io::Result<Staging> {
        match make_directory(&self.root, name) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let root = open_directory(&self.root, name)?;
        let journal = TreeJournal::open(&root, self.clone_id)?;
        let parts: HashSet<_> = journal
            .parts()
            .map(|partial| partial.file.to_string().into_bytes())
            .collect();
        for name in list(&root)? {
            if name != JOURNAL && !parts.contains(&name) {
                remove(&root, &name)?;
            }
        }
        make_directory(&root, LINKS)?;
        let links = open_directory(&root, LINKS)?;
        let spool = create(&root, SPOOL, OFlags::RDWR, PRIVATE)?;
        let groups = create(&root, GROUPS, OFlags::RDWR, PRIVATE)?;
        Ok(Staging {
            root,
            links,
            spool,
            groups,
            journal,
        })
    }
}

/// What a clone keeps in the target directory for itself.
struct Staging {
    root: OwnedFd,
    links: OwnedFd,
    spool: OwnedFd,
    groups: OwnedFd,
    journal: TreeJournal,
}

/// The room of a filesystem.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Its size.
    pub total_bytes: u64,
    /// What is left for this agent.
    pub available_bytes: u64,
}

/// A tree that is being made: what the threads share.
#[derive(Debug)]
pub struct Restore {
    root: Arc<OwnedFd>,
    path: PathBuf,
    terms: TreeTerms,
    /// The root may hold what was there before.
    is_dirty: bool,
    direct: bool,
    /// User and group of what this process creates, mostly.
    owner: (u32, u32),
    epoch: u64,
    reuse: Reuse,
    /// Bytes of data that were written since something read back wrong, by all sessions.
    repaired_bytes: Option<Arc<AtomicU64>>,
    /// Whether there is anything that could be kept.
    offers: bool,
    staging_name: Vec<u8>,
    staging: OwnedFd,
    links: OwnedFd,
    spool: Mutex<Spool>,
    /// The names that came, where not all that is there was made by this session.
    names: Option<Mutex<Names>>,
    /// Whether what the source doesn't have is removed.
    sweeps: bool,
    /// Names that came and can't be made, which was told.
    names_given_up: AtomicU64,
    directories_made: AtomicU64,
    key: VoucherKey,
    journal: Mutex<TreeJournal>,
    /// Files that are in their place, and not in the journal, and the bytes of each that are news to
    /// it.
    finished: Mutex<Vec<(Finished, u64)>>,
    large: Mutex<LargeFiles>,
    groups: Mutex<GroupSums>,
    /// Bytes in blocks that hold data: written now, and kept.
    data_bytes: AtomicU64,
    kept_data_bytes: AtomicU64,
    /// Bytes of files, holes included.
    durable_bytes: AtomicU64,
    resumed_bytes: AtomicU64,
    /// Bytes in blocks that hold data, of what was found to be equal.
    matched_bytes: AtomicU64,
    checked_bytes: AtomicU64,
    /// Nobody asks any more what is held.
    is_stopped: AtomicBool,
    steps: AtomicU64,
    /// What the root gets at the very end.
    root_metadata: Mutex<Option<Metadata>>,
    names_written: AtomicU64,
    zeroing: Zeroing,
    found: Mutex<Found>,
}

#[derive(Debug, Default)]
struct Found {
    digest: TreeDigest,
    fidelity: FidelityReport,
}

/// What comes last, as records that each follow their length.
#[derive(Debug)]
struct Spool {
    file: BufWriter<File>,
    record: Vec<u8>,
}

impl Spool {
    fn write(&mut self, directory: &TreePath, record: &Record<'_>) -> io::Result<()> {
        self.record.clear();
        Record::Enter(directory.clone()).encode(&mut self.record);
        record.encode(&mut self.record);
        let len = u32::try_from(self.record.len()).unwrap_or(u32::MAX);
        self.file.write_all(&len.to_le_bytes())?;
        self.file.write_all(&self.record)
    }
}

#[derive(Debug, Default)]
struct LargeFiles {
    open: HashMap<u64, Arc<LargeFile>>,
    forgotten: HashSet<u64>,
    /// Files whose number this end has made up.
    begun_here: u64,
}

/// A file that comes in pieces.
#[derive(Debug)]
struct LargeFile {
    number: u64,
    handle: Handle,
    /// Its path, where it is in its place already; else it is in the staging directory.
    place: Option<Vec<u8>>,
    origin: Origin,
    state: Mutex<LargeState>,
}

impl LargeFile {
    fn piece_twice(&self, index: u64) -> TreeError {
        let piece = format!("piece {index} of file {}", self.number);
        Restore::refuse(piece.as_bytes(), Refusal::PieceTwice)
    }
}

/// What a large file began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    /// Nothing: what is not written is zero.
    Empty,
    /// Pieces that an earlier session brought.
    Part,
    /// What the target held, to be compared.
    Held,
}

#[derive(Debug, Default)]
struct LargeState {
    /// Which state of the source's file it is, and its size, once that is known.
    begun: Option<(Stamp, u64)>,
    /// What messages call it.
    shown_path: Vec<u8>,
    is_placed: bool,
    digest: FileDigest,
    data_bytes: u64,
    /// Bytes of this state of it of which the journal knows, under whatever number.
    noted_bytes: u64,
    /// Pieces that are being written.
    claimed: BTreeSet<u64>,
    /// Bytes of it that an earlier session brought, holes included.
    resumed_bytes: u64,
    /// Bytes in blocks that hold data, of what was found to be equal.
    matched_bytes: u64,
    /// Bytes in blocks that hold data, of what this session did not bring.
    kept_data_bytes: u64,
    /// Pieces that are held, of which the source was told.
    probed: BTreeMap<u64, (PieceDigest, u32)>,
    /// Its record, once that came.
    end: Option<LargeEnd>,
}

/// What the record of a large file says.
#[derive(Debug)]
struct LargeEnd {
    directory: TreePath,
    name: Vec<u8>,
    group: u64,
    metadata: Metadata,
    size: u64,
    digest: Digest,
}

impl Restore {
    /// Something that takes packs and pieces, for one thread.
    #[must_use]
    pub fn worker(self: &Arc<Self>) -> RestoreWorker {
        RestoreWorker {
            shared: Arc::clone(self),
            cache: DirectoryCache::default(),
            noted: Noted::default(),
            content: Vec::new(),
            found: Found::default(),
        }
    }

    /// Whether there is anything that could be kept: the source offers its files then.
    #[must_use]
    pub const fn offers(&self) -> bool {
        self.offers
    }

    /// Whether the source reads what is held here too, to compare it.
    #[must_use]
    pub fn compares(&self) -> bool {
        self.offers && self.reuse == Reuse::Content
    }

    /// Where the root is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names that were made so far.
    #[must_use]
    pub fn names_written(&self) -> u64 {
        self.names_written.load(Ordering::Relaxed)
    }

    /// Bytes of data that were written by this session so far.
    #[must_use]
    pub fn data_bytes(&self) -> u64 {
        self.data_bytes.load(Ordering::Relaxed)
    }

    fn note_written(&self, data_bytes: u64) {
        let counters = [Some(&self.data_bytes), self.repaired_bytes.as_deref()];
        for counter in counters.into_iter().flatten() {
            counter.fetch_add(data_bytes, Ordering::Relaxed);
        }
    }

    /// Does what has to come last but for the root's own metadata, and makes all of it durable. Every
    /// worker has ended by then, and [`Self::conclude`] follows when the tree is proven.
    ///
    /// # Errors
    /// When something never came, or the kernel refuses.
    pub fn complete(self: &Arc<Self>) -> Result<TreeSummary, TreeError> {
        let incomplete = lock(&self.large).open.values().next().cloned();
        if let Some(file) = incomplete {
            let state = lock(&file.state);
            let path = state
                .end
                .as_ref()
                .map(|end| join(end.directory.as_bytes(), &end.name));
            return Err(TreeError::Refused {
                path: path.map_or_else(|| format!("file {}", file.number), |path| show(&path)),
                refusal: Refusal::Incomplete,
            });
        }
        let mut worker = self.worker();
        worker.make_links()?;
        worker.sweep()?;
        let root_metadata = worker.finish_directories()?;
        // Once now, so that what can't be kept shows, and once more when nothing changes any more.
        if let Some(root) = &root_metadata {
            worker.adorn_directory(&self.root, b"", root)?;
        }
        *lock(&self.root_metadata) = root_metadata;
        drop(worker);
        self.checkpoint()?;
        self.flush()?;
        let mut found = std::mem::take(&mut *lock(&self.found));
        let summed = lock(&self.groups).for_each(|sum| found.digest.add(sum));
        summed.map_err(|error| self.io(Operation::Read, &self.staging_name, error))?;
        Ok(TreeSummary {
            digest: found.digest.finish(self.terms.accept),
            counts: found.digest.counts,
            fidelity: found.fidelity,
            changed: 0,
            data_bytes: self.data_bytes() + self.kept_data_bytes.load(Ordering::Relaxed),
            resumed_bytes: self.resumed_bytes.load(Ordering::Relaxed),
            matched_bytes: self.matched_bytes.load(Ordering::Relaxed),
            repaired_bytes: self
                .repaired_bytes
                .as_ref()
                .map_or(0, |bytes| bytes.load(Ordering::Relaxed)),
        })
    }

    /// A walk through what was made, as the storage has it, to be compared by its digest.
    #[must_use]
    pub fn read_back(&self, pool: BufferPool) -> Walk<ReadBack> {
        let source = TreeSource::of_open(Arc::clone(&self.root), self.path.clone());
        let options = WalkOptions {
            terms: self.terms,
            direct: true,
            offer: false,
            compare: false,
            epoch: 0,
            read_back: true,
        };
        Walk::new(source, options, pool, ReadBack)
    }

    /// The tree is proven: removes what the clone kept for itself, gives the root its metadata, and
    /// makes that durable.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn conclude(self: &Arc<Self>) -> Result<(), TreeError> {
        // What it was given may not let its owner in.
        metadata::open_up(self.root.as_fd());
        self.remove_staging()?;
        if let Some(root) = lock(&self.root_metadata).take() {
            let mut worker = self.worker();
            worker.adorn_directory(&self.root, b"", &root)?;
        }
        self.flush()
    }

    /// The session has ended: what is held is not read any more, what was received is still written.
    pub fn stop_reading(&self) {
        self.is_stopped.store(true, Ordering::Relaxed);
    }

    /// What was done besides writing: a sign of life.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.load(Ordering::Relaxed)
    }

    fn flush(&self) -> Result<(), TreeError> {
        rustix::fs::syncfs(&*self.root)
            .map_err(|errno| self.io(Operation::Flush, b"", errno.into()))
    }

    fn journal_path(&self) -> Vec<u8> {
        join(&self.staging_name, JOURNAL)
    }

    /// Adds a part of an inode with several names.
    fn add_to_group(&self, group: u64, part: &NameSum, path: &[u8]) -> Result<(), TreeError> {
        if group > group_sums::NUMBER_MAX {
            return Err(Self::refuse(path, Refusal::TooManyGroups));
        }
        let added = lock(&self.groups).add(group, part);
        added.map_err(|error| self.io(Operation::Write, path, error))
    }

    /// What mode a file is created with. One that is its owner's at once can have its own, which
    /// then needs no call of its own, where the process's mask allows it.
    fn mode_of_new(&self, metadata: &Metadata) -> Mode {
        match (metadata.uid, metadata.gid) == self.owner {
            true => Mode::from_raw_mode(metadata.mode & 0o777),
            false => PRIVATE,
        }
    }

    fn remove_staging(&self) -> Result<(), TreeError> {
        remove(&self.root, &self.staging_name)
            .map_err(|error| self.io(Operation::Remove, &self.staging_name, error))
    }

    fn at(&self, path: &[u8]) -> PathBuf {
        if path.is_empty() {
            return self.path.clone();
        }
        self.path.join(show(path))
    }

    fn io(&self, operation: Operation, path: &[u8], error: io::Error) -> TreeError {
        self.io_of(operation, path, 0, error)
    }

    /// The error of an entry with a content of `needed` bytes.
    fn io_of(&self, operation: Operation, path: &[u8], needed: u64, error: io::Error) -> TreeError {
        if !is_full(&error) {
            return StorageError::io(operation, &self.at(path))(error).into();
        }
        let room = rustix::fs::fstatvfs(&*self.root);
        let available = room.map_or(0, |room| room.f_bavail.saturating_mul(room.f_frsize));
        TreeError::NoSpace {
            path: self.at(path),
            needed,
            available,
            source: error,
        }
    }

    /// Does `work`, and once more when it found the filesystem full and something could be given up.
    fn with_room<T, E>(
        &self,
        is_full: impl FnOnce(&E) -> bool,
        mut work: impl FnMut() -> Result<T, E>,
    ) -> Result<T, E> {
        match work() {
            Err(error) if is_full(&error) && self.give_up_parts() => work(),
            answer => answer,
        }
    }

    /// Removes what is there in part of files that the source has not asked for: it may not have them
    /// any more. Says whether there was anything.
    fn give_up_parts(&self) -> bool {
        let parts: Vec<_> = lock(&self.journal).parts().map(|part| part.file).collect();
        let large = lock(&self.large);
        let removed = parts.into_iter().filter(|number| {
            let name = number.to_string();
            !large.open.contains_key(number)
                && rustix::fs::unlinkat(&self.staging, &*name, AtFlags::empty()).is_ok()
        });
        let count = removed.count();
        if count > 0 {
            tracing::warn!(
                count,
                "the filesystem is full: files were given up that an earlier session brought in part"
            );
        }
        count > 0
    }

    fn refuse(path: &[u8], refusal: Refusal) -> TreeError {
        TreeError::Refused {
            path: show(path),
            refusal,
        }
    }

    /// Whether the name belongs to the clone or to the filesystem.
    fn is_reserved(&self, directory: &TreePath, name: &[u8]) -> bool {
        directory.is_root() && (name == self.staging_name || name == LOST_AND_FOUND)
    }
}

/// Where what is read back goes: nowhere, once it was hashed.
#[derive(Debug)]
pub struct ReadBack;

impl WalkEnd for ReadBack {
    fn put(&self, _read: Outgoing) -> bool {
        true
    }
}

/// What one thread makes of a tree.
#[derive(Debug)]
pub struct RestoreWorker {
    shared: Arc<Restore>,
    cache: DirectoryCache,
    noted: Noted,
    /// A piece of a file that is compared.
    content: Vec<u8>,
    found: Found,
}

impl Drop for RestoreWorker {
    fn drop(&mut self) {
        self.write_names();
        let mut all = lock(&self.shared.found);
        all.digest.merge(&self.found.digest);
        all.fidelity.add(&self.found.fidelity);
    }
}

/// A directory that a record entered.
#[derive(Clone, Debug)]
struct Entered {
    path: TreePath,
    fd: Arc<OwnedFd>,
}

impl RestoreWorker {
    /// Applies the records of a pack, whose digest was checked. Gives what is held of the files that
    /// it offered, in their order.
    ///
    /// # Errors
    /// When one of them is none, must not be applied, or the kernel refuses.
    pub fn apply_pack(&mut self, pack: &[u8]) -> Result<Vec<Holding>, TreeError> {
        let mut holdings = Vec::new();
        let mut reader = Reader::new(pack);
        let mut entered: Option<Entered> = None;
        while !reader.is_empty() {
            let record = Record::decode(&mut reader)?;
            if let Record::Enter(path) = record {
                let fd = self.enter(&path)?;
                entered = Some(Entered { path, fd });
                continue;
            }
            let Some(directory) = &entered else {
                return Err(Restore::refuse(b"", Refusal::NotEntered));
            };
            match record {
                Record::Offer(_) if holdings.len() >= OFFERS_MAX => {
                    return Err(Restore::refuse(b"", Refusal::TooManyOffers));
                }
                Record::Offer(offer) => holdings.push(self.holding(directory, &offer)?),
                record => self.apply(directory, record)?,
            }
        }
        Ok(holdings)
    }

    fn apply(&mut self, directory: &Entered, record: Record<'_>) -> Result<(), TreeError> {
        let name = match &record {
            Record::File { entry, .. }
            | Record::LargeFile { entry, .. }
            | Record::Special { entry, .. }
            | Record::Keep { entry, .. } => Some(entry.name),
            Record::Link { name, .. } => Some(*name),
            Record::Enter(_) | Record::Directory(_) | Record::Forget { .. } | Record::Offer(_) => {
                None
            }
        };
        if let Some(name) = name {
            if self.shared.is_reserved(&directory.path, name.as_bytes()) {
                return Err(Restore::refuse(name.as_bytes(), Refusal::Reserved));
            }
            self.shared.names_written.fetch_add(1, Ordering::Relaxed);
            if self.shared.names.is_some() {
                self.note_name(&join(directory.path.as_bytes(), name.as_bytes()));
            }
        }
        match record {
            // Both were taken before.
            Record::Enter(_) | Record::Offer(_) => Ok(()),
            Record::Directory(metadata) => {
                let left_out = self.shared.terms.accept;
                let path = directory.path.as_bytes();
                let content = Content::Directory;
                let digest = &mut self.found.digest;
                digest.add_entry(path, &content, &metadata, left_out);
                self.note_name(path);
                self.spool(&directory.path, &Record::Directory(metadata))
            }
            Record::File {
                entry,
                stamp,
                digest,
                zero_map,
                data,
            } => {
                self.make_file(directory, &entry, digest, &zero_map, data)?;
                let finished = Finished {
                    stamp,
                    digest,
                    size: u64::from(zero_map.chunk_len()),
                    data_bytes: data.len() as u64,
                };
                let noted_bytes = self.shared.noted_bytes(stamp)?;
                self.shared.note_finished(finished, noted_bytes);
                Ok(())
            }
            Record::Keep {
                entry,
                size,
                digest,
                data_bytes,
                voucher,
            } => self.keep(directory, &entry, size, digest, data_bytes, voucher),
            Record::LargeFile {
                entry,
                file,
                size,
                digest,
            } => self.end_large(directory, entry, file, size, digest),
            Record::Special { entry, special } => self.make_special(directory, &entry, &special),
            Record::Link { name, group } => {
                self.found.digest.counts.note_link();
                let path = join(directory.path.as_bytes(), name.as_bytes());
                self.shared
                    .add_to_group(group, &NameSum::of_name(&path), &path)?;
                self.spool(&directory.path, &Record::Link { name, group })
            }
            Record::Forget { file } => self.forget(file),
        }
    }

    fn spool(&self, directory: &TreePath, record: &Record<'_>) -> Result<(), TreeError> {
        let spooled = lock(&self.shared.spool).write(directory, record);
        let staging = &self.shared.staging_name;
        spooled.map_err(|error| self.shared.io(Operation::Write, staging, error))
    }

    /// Opens a directory of the tree, and makes it and those above it where they aren't there yet.
    fn enter(&mut self, path: &TreePath) -> Result<Arc<OwnedFd>, TreeError> {
        let bytes = path.as_bytes();
        if bytes.is_empty() {
            return Ok(Arc::clone(&self.shared.root));
        }
        if let Some(fd) = self.cache.find(bytes) {
            return Ok(fd);
        }
        let first = bytes.split(|byte| *byte == b'/').next().unwrap_or_default();
        if self.shared.is_reserved(&TreePath::ROOT, first) {
            return Err(Restore::refuse(first, Refusal::Reserved));
        }
        let above = self.cache.find_above(bytes);
        let (mut fd, mut at) = above.unwrap_or_else(|| (Arc::clone(&self.shared.root), 0));
        if !self.shared.is_dirty
            && let Ok(opened) = open_directory(&fd, &bytes[at..])
        {
            let opened = Arc::new(opened);
            self.cache.insert(bytes, &opened);
            return Ok(opened);
        }
        while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
            let len = rest
                .iter()
                .position(|byte| *byte == b'/')
                .unwrap_or(rest.len());
            let name = &rest[..len];
            let opened = self.open_or_make(&fd, name);
            let opened = opened.map_err(|error| {
                let path = &bytes[..at + len];
                match Errno::from_io_error(&error) {
                    Some(Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => {
                        Restore::refuse(path, Refusal::NotADirectory)
                    }
                    _ => self.shared.io(Operation::Create, path, error),
                }
            })?;
            fd = Arc::new(opened);
            at = (at + len + 1).min(bytes.len());
            if self.shared.is_dirty {
                metadata::open_up(fd.as_fd());
                self.cache.insert(&bytes[..at.min(bytes.len())], &fd);
            }
        }
        self.cache.insert(bytes, &fd);
        Ok(fd)
    }

    /// Opens or makes the directory `name`. What is in the way and was there before goes.
    fn open_or_make(&self, directory: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
        /// Other threads may do the same at the same time.
        const TRIES: usize = 8;
        let mut last = io::Error::from(Errno::NOTDIR);
        for _ in 0..TRIES {
            match open_directory(directory, name) {
                Ok(opened) => return Ok(opened),
                Err(error) => match Errno::from_io_error(&error) {
                    Some(Errno::NOENT) => {
                        match make_directory(directory, name) {
                            Ok(()) => {
                                let made = &self.shared.directories_made;
                                made.fetch_add(1, Ordering::Relaxed);
                            }
                            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                            Err(error) => return Err(error),
                        }
                        last = error;
                    }
                    Some(Errno::NOTDIR | Errno::LOOP) if self.shared.is_dirty => {
                        match rustix::fs::unlinkat(directory, name, AtFlags::empty()) {
                            Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => last = error,
                            Err(errno) => return Err(errno.into()),
                        }
                    }
                    _ => return Err(error),
                },
            }
        }
        Err(last)
    }

    /// Runs `make`, which creates `name` and fails when it is there. What was there before goes.
    fn make_anew<T>(
        &self,
        directory: &Entered,
        name: &[u8],
        needed: u64,
        mut make: impl FnMut() -> io::Result<T>,
    ) -> Result<T, TreeError> {
        let shared = &self.shared;
        let path = || join(directory.path.as_bytes(), name);
        match shared.with_room(is_full, &mut make) {
            Ok(made) => return Ok(made),
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(shared.io_of(Operation::Create, &path(), needed, error));
            }
            Err(_there) if !shared.is_dirty => {
                return Err(Restore::refuse(&path(), Refusal::Twice));
            }
            Err(_there) => {}
        }
        remove(&directory.fd, name)
            .map_err(|error| shared.io(Operation::Remove, &path(), error))?;
        make().map_err(|error| shared.io_of(Operation::Create, &path(), needed, error))
    }

    fn make_file(
        &mut self,
        directory: &Entered,
        entry: &Entry<'_>,
        digest: Digest,
        zero_map: &ZeroMap,
        data: &[u8],
    ) -> Result<(), TreeError> {
        let name = entry.name.as_bytes();
        let size = u64::from(zero_map.chunk_len());
        let path = join(directory.path.as_bytes(), name);
        if digest_of(zero_map, data) != digest {
            return Err(TreeError::Corrupt { path: show(&path) });
        }
        let mode = self.shared.mode_of_new(&entry.metadata);
        let file = self.make_anew(directory, name, size, || {
            create(&directory.fd, name, OFlags::WRONLY, mode)
        })?;
        let file = File::from(file);
        self.shared
            .with_room(is_full, || write_runs(&file, 0, zero_map, data))
            .map_err(|error| self.shared.io_of(Operation::Write, &path, size, error))?;
        self.shared.note_written(data.len() as u64);
        let handle = MetadataHandle::Open(file.as_fd());
        self.adorn(handle, &path, &entry.metadata, false, false)?;
        if entry.group != 0 {
            self.keep_for_links(&directory.fd, name, entry.group, &path)?;
        }
        let content = Content::File { size, digest };
        self.add(&path, &content, &entry.metadata, entry.group)?;
        Ok(())
    }

    /// Makes what is neither a directory nor a regular file.
    fn make_special(
        &mut self,
        directory: &Entered,
        entry: &Entry<'_>,
        special: &Special<'_>,
    ) -> Result<(), TreeError> {
        let name = entry.name.as_bytes();
        let path = join(directory.path.as_bytes(), name);
        let node = |file_type, device| {
            let mode = Mode::from_raw_mode(0o600);
            Ok(rustix::fs::mknodat(
                &directory.fd,
                name,
                file_type,
                mode,
                device,
            )?)
        };
        let made = self.make_anew(directory, name, 0, || match special {
            Special::Symlink(target) => Ok(rustix::fs::symlinkat(*target, &directory.fd, name)?),
            Special::Fifo => node(FileType::Fifo, 0),
            Special::Socket => node(FileType::Socket, 0),
            Special::Character(device) => node(
                FileType::CharacterDevice,
                makedev(device.major, device.minor),
            ),
            Special::Block(device) => {
                node(FileType::BlockDevice, makedev(device.major, device.minor))
            }
        });
        let is_device = matches!(special, Special::Character(_) | Special::Block(_));
        match made {
            Ok(()) => {}
            Err(TreeError::Storage(error))
                if is_device && matches!(error.errno(), Some(Errno::PERM | Errno::INVAL)) =>
            {
                self.found.fidelity.note(FidelityClass::Devices, &path);
                self.shared.names_given_up.fetch_add(1, Ordering::Relaxed);
                let content = Content::Special(special);
                self.add(&path, &content, &entry.metadata, entry.group)?;
                if entry.group != 0 {
                    let lost = lock(&self.shared.groups).lose(entry.group);
                    lost.map_err(|error| self.shared.io(Operation::Write, &path, error))?;
                }
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let is_symlink = matches!(special, Special::Symlink(_));
        let handle = MetadataHandle::Name(directory.fd.as_fd(), name);
        self.adorn(handle, &path, &entry.metadata, is_symlink, false)?;
        if entry.group != 0 {
            self.keep_for_links(&directory.fd, name, entry.group, &path)?;
        }
        let content = Content::Special(special);
        self.add(&path, &content, &entry.metadata, entry.group)
    }

    fn adorn(
        &mut self,
        handle: MetadataHandle<'_>,
        path: &[u8],
        wanted: &Metadata,
        is_symlink: bool,
        is_dirty: bool,
    ) -> Result<(), TreeError> {
        let terms = Terms {
            selinux: self.shared.terms.selinux,
            is_dirty,
            is_symlink,
        };
        let fidelity = &mut self.found.fidelity;
        metadata::adorn(handle, wanted, terms, |class| fidelity.note(class, path))
            .map_err(|error| self.shared.io(Operation::Adorn, path, error))
    }

    fn adorn_directory(
        &mut self,
        fd: &OwnedFd,
        path: &[u8],
        wanted: &Metadata,
    ) -> Result<(), TreeError> {
        // The root was there in any case.
        let is_dirty = self.shared.is_dirty || path.is_empty();
        self.adorn(
            MetadataHandle::Open(fd.as_fd()),
            path,
            wanted,
            false,
            is_dirty,
        )
    }

    /// Adds an inode to the digest that was made.
    fn add(
        &mut self,
        path: &[u8],
        content: &Content<'_>,
        metadata: &Metadata,
        group: u64,
    ) -> Result<(), TreeError> {
        let left_out = self.shared.terms.accept;
        if group == 0 {
            let digest = &mut self.found.digest;
            digest.add_entry(path, content, metadata, left_out);
            return Ok(());
        }
        let mut sum = NameSum::of_name(path);
        sum.add(&NameSum::of_content(content, metadata, left_out));
        self.found.digest.counts.note(content);
        self.shared.add_to_group(group, &sum, path)
    }

    /// Gives an inode with several names one more, which the others are made from.
    fn keep_for_links(
        &self,
        directory: &OwnedFd,
        name: &[u8],
        group: u64,
        path: &[u8],
    ) -> Result<(), TreeError> {
        let links = &self.shared.links;
        let kept = group.to_string();
        match rustix::fs::linkat(directory, name, links, kept, AtFlags::empty()) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => Err(Restore::refuse(path, Refusal::GroupTwice)),
            Err(errno) => Err(self.shared.io(Operation::Link, path, errno.into())),
        }
    }

    /// The file that comes under this number; `None` for one that was given up.
    fn large_file(&self, number: u64) -> Result<Option<Arc<LargeFile>>, TreeError> {
        let shared = &self.shared;
        let mut large = lock(&shared.large);
        if large.forgotten.contains(&number) {
            return Ok(None);
        }
        if let Some(file) = large.open.get(&number) {
            return Ok(Some(Arc::clone(file)));
        }
        let name = number.to_string();
        if large.open.len() >= LARGE_FILES_MAX {
            return Err(Restore::refuse(name.as_bytes(), Refusal::TooManyFiles));
        }
        let path = join(&shared.staging_name, name.as_bytes());
        let made =
            create(&shared.staging, name.as_bytes(), OFlags::RDWR, PRIVATE).map_err(|error| {
                match error.kind() {
                    // It was put into its place, or is given up, and was begun again.
                    io::ErrorKind::AlreadyExists => {
                        Restore::refuse(name.as_bytes(), Refusal::Twice)
                    }
                    _ => shared.io(Operation::Create, &path, error),
                }
            })?;
        let at = shared.at(&path);
        let file = Arc::new(LargeFile {
            number,
            handle: Handle::new(at, File::from(made), OFlags::RDWR, shared.direct),
            place: None,
            origin: Origin::Empty,
            state: Mutex::default(),
        });
        large.open.insert(number, Arc::clone(&file));
        Ok(Some(file))
    }

    /// Writes a piece of a large file, unless it is not what the source read.
    ///
    /// # Errors
    /// When it is not, came twice, or the kernel refuses.
    pub fn write_piece(
        &mut self,
        number: u64,
        index: u64,
        digest: Digest,
        zero_map: &ZeroMap,
        bytes: &[u8],
    ) -> Result<(), TreeError> {
        let Some(file) = self.large_file(number)? else {
            return Ok(());
        };
        let piece = PieceDigest::of(index, bytes);
        if piece.chaining_value != digest {
            return Err(TreeError::Corrupt {
                path: format!("piece {index} of file {number}"),
            });
        }
        self.claim(&file, index, 1)?;
        let start = index.saturating_mul(u64::from(PIECE_LEN));
        for run in zero_map.runs() {
            let range = ByteRange::new(start + u64::from(run.start), start + u64::from(run.end));
            let write = || {
                if run.is_zero {
                    return self.zero(&file, range);
                }
                let part = bytes.get(run.indices()).unwrap_or_default();
                file.handle.write_at(range.start(), part)
            };
            let written = self.shared.with_room(StorageError::is_full, write);
            written.map_err(|error| self.of_write(&file, error, range.len()))?;
        }
        let data_len = u64::from(zero_map.data_len());
        self.shared.note_written(data_len);
        self.take_in(&file, [(index, piece)].into_iter(), data_len)
    }

    /// Takes pieces for this thread to write: one that came before, or is being written, is not written
    /// again.
    fn claim(&self, file: &LargeFile, index: u64, count: u64) -> Result<(), TreeError> {
        let mut state = lock(&file.state);
        for at in index..index.saturating_add(count) {
            if state.digest.contains(at) || !state.claimed.insert(at) {
                return Err(file.piece_twice(at));
            }
        }
        Ok(())
    }

    /// Makes a range of a file zero where it may hold something.
    fn zero(&self, file: &LargeFile, range: ByteRange) -> Result<(), StorageError> {
        match file.origin {
            Origin::Empty => Ok(()),
            Origin::Part | Origin::Held => self.shared.zeroing.zero(&file.handle, range),
        }
    }

    /// Makes pieces of a large file zero.
    ///
    /// # Errors
    /// When a piece came twice, or the kernel refuses.
    pub fn zero_pieces(
        &mut self,
        number: u64,
        index: u64,
        count: u32,
        last_len: u32,
    ) -> Result<(), TreeError> {
        let Some(file) = self.large_file(number)? else {
            return Ok(());
        };
        let last = index.saturating_add(u64::from(count)).saturating_sub(1);
        let piece_len = u64::from(PIECE_LEN);
        let start = index.saturating_mul(piece_len);
        let end = last.saturating_mul(piece_len) + u64::from(last_len);
        self.claim(&file, index, u64::from(count))?;
        let zeroed = self.zero(&file, ByteRange::new(start, end));
        zeroed.map_err(|error| self.of_write(&file, error, end - start))?;
        let pieces = (index..=last).map(|index| {
            let len = if index == last { last_len } else { PIECE_LEN };
            let zeros = ZEROS.get(..len as usize).unwrap_or(&ZEROS);
            (index, PieceDigest::of(index, zeros))
        });
        self.take_in(&file, pieces, 0)
    }

    /// An error of a handle as one of the tree: a full disk is told with what was missing.
    fn of_write(&self, file: &LargeFile, error: StorageError, needed: u64) -> TreeError {
        let StorageError::IoAt {
            operation, source, ..
        } = error
        else {
            return error.into();
        };
        let path = lock(&file.state).shown_path.clone();
        let path = match path.is_empty() {
            true => join(
                &self.shared.staging_name,
                file.number.to_string().as_bytes(),
            ),
            false => path,
        };
        self.shared.io_of(operation, &path, needed, source)
    }

    fn take_in(
        &mut self,
        file: &LargeFile,
        pieces: impl Iterator<Item = (u64, PieceDigest)>,
        data_len: u64,
    ) -> Result<(), TreeError> {
        let mut state = lock(&file.state);
        for (index, piece) in pieces {
            state.claimed.remove(&index);
            let inserted = state.digest.insert(index, piece);
            inserted.map_err(|index| file.piece_twice(index))?;
        }
        if state.digest.node_count() > NODES_MAX {
            let number = format!("file {}", file.number);
            return Err(Restore::refuse(number.as_bytes(), Refusal::TooScattered));
        }
        state.data_bytes += data_len;
        self.place(file, &mut state)
    }

    /// The record of a large file came. Its pieces may still be on their way.
    fn end_large(
        &mut self,
        directory: &Entered,
        entry: Entry<'_>,
        number: u64,
        size: u64,
        digest: Digest,
    ) -> Result<(), TreeError> {
        let path = join(directory.path.as_bytes(), entry.name.as_bytes());
        let Some(file) = self.large_file(number)? else {
            return Err(Restore::refuse(&path, Refusal::Incomplete));
        };
        let mut state = lock(&file.state);
        if state.end.is_some() {
            return Err(Restore::refuse(&path, Refusal::Twice));
        }
        state.end = Some(LargeEnd {
            directory: directory.path.clone(),
            name: entry.name.as_bytes().to_vec(),
            group: entry.group,
            metadata: entry.metadata,
            size,
            digest,
        });
        self.place(&file, &mut state)
    }

    /// Puts a large file into its place when all of it has come.
    fn place(&mut self, file: &LargeFile, state: &mut LargeState) -> Result<(), TreeError> {
        let (Some(size), Some((stamp, begun_size))) =
            (state.end.as_ref().map(|end| end.size), state.begun)
        else {
            return Ok(());
        };
        if state.digest.pieces() < file_digest::piece_count(size) {
            return Ok(());
        }
        let Some(end) = state.end.take() else {
            return Ok(());
        };
        let path = join(end.directory.as_bytes(), &end.name);
        if begun_size != size || file.place.as_ref().is_some_and(|place| *place != path) {
            return Err(Restore::refuse(&path, Refusal::Incomplete));
        }
        if state.digest.finish(size) != Some(end.digest) {
            return Err(TreeError::Corrupt { path: show(&path) });
        }
        let shared = Arc::clone(&self.shared);
        let main = file.handle.main();
        main.set_len(size)
            .map_err(|error| shared.io_of(Operation::Resize, &path, size, error))?;
        let handle = MetadataHandle::Open(main.as_fd());
        self.adorn(handle, &path, &end.metadata, false, file.place.is_some())?;
        let fd = self.enter(&end.directory)?;
        let staged = file.number.to_string();
        let directory = Entered {
            path: end.directory,
            fd,
        };
        if file.place.is_none() {
            self.make_anew(&directory, &end.name, size, || {
                rename(&shared.staging, staged.as_bytes(), &directory.fd, &end.name)
            })?;
        }
        if end.group != 0 {
            self.keep_for_links(&directory.fd, &end.name, end.group, &path)?;
        }
        let content = Content::File {
            size,
            digest: end.digest,
        };
        self.add(&path, &content, &end.metadata, end.group)?;
        state.is_placed = true;
        lock(&shared.large).open.remove(&file.number);
        let finished = Finished {
            stamp,
            digest: end.digest,
            size,
            data_bytes: state.data_bytes,
        };
        shared.note_finished(finished, state.noted_bytes);
        for (sum, bytes) in [
            (&shared.resumed_bytes, state.resumed_bytes),
            (&shared.matched_bytes, state.matched_bytes),
            (&shared.kept_data_bytes, state.kept_data_bytes),
        ] {
            sum.fetch_add(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// The source gives a file up, to send it again under another number.
    fn forget(&self, number: u64) -> Result<(), TreeError> {
        let mut large = lock(&self.shared.large);
        let name = number.to_string();
        if large.forgotten.len() >= FORGOTTEN_MAX {
            return Err(Restore::refuse(name.as_bytes(), Refusal::TooManyFiles));
        }
        large.forgotten.insert(number);
        let removed = large.open.remove(&number);
        if removed.is_some_and(|file| file.place.is_none()) {
            let removed = rustix::fs::unlinkat(&self.shared.staging, &*name, AtFlags::empty());
            let path = join(&self.shared.staging_name, name.as_bytes());
            removed.map_err(|errno| self.shared.io(Operation::Remove, &path, errno.into()))?;
        }
        Ok(())
    }

    /// Reads the spool from its beginning, and calls `apply` for every record in it.
    fn replay(
        &mut self,
        mut apply: impl FnMut(&mut Self, TreePath, Record<'_>) -> Result<(), TreeError>,
    ) -> Result<(), TreeError> {
        let shared = Arc::clone(&self.shared);
        let failed = |error| shared.io(Operation::Read, &shared.staging_name, error);
        let mut spool = lock(&shared.spool);
        spool.file.flush().map_err(failed)?;
        let mut file = spool.file.get_ref().try_clone().map_err(failed)?;
        file.rewind().map_err(failed)?;
        let mut file = BufReader::with_capacity(64 << 10, file);
        let mut bytes = Vec::new();
        loop {
            let mut len = [0; 4];
            match file.read_exact(&mut len) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                Err(error) => return Err(failed(error)),
            }
            bytes.resize(u32::from_le_bytes(len) as usize, 0);
            file.read_exact(&mut bytes).map_err(failed)?;
            let mut reader = Reader::new(&bytes);
            shared.steps.fetch_add(1, Ordering::Relaxed);
            if let Record::Enter(path) = Record::decode(&mut reader)? {
                apply(self, path, Record::decode(&mut reader)?)?;
            }
        }
    }

    fn make_links(&mut self) -> Result<(), TreeError> {
        self.replay(|worker, path, record| match record {
            Record::Link { name, group } => worker.make_link(path, name, group),
            _ => Ok(()),
        })
    }

    fn make_link(&mut self, path: TreePath, name: Name<'_>, group: u64) -> Result<(), TreeError> {
        let shared = Arc::clone(&self.shared);
        let fd = self.enter(&path)?;
        let directory = Entered { path, fd };
        let name = name.as_bytes();
        let path = join(directory.path.as_bytes(), name);
        let is_lost = lock(&shared.groups).is_lost(group);
        if is_lost.map_err(|error| shared.io(Operation::Read, &path, error))? {
            self.found.fidelity.note(FidelityClass::Devices, &path);
            self.shared.names_given_up.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let kept = group.to_string();
        let made = self.make_anew(&directory, name, 0, || {
            let (links, fd) = (&shared.links, &directory.fd);
            match rustix::fs::linkat(links, &*kept, fd, name, AtFlags::empty()) {
                // The name that is kept is one too many for the filesystem: it becomes the last.
                Err(Errno::MLINK) => rename(links, kept.as_bytes(), fd, name),
                answer => Ok(answer?),
            }
        });
        made.map_err(|error| match error {
            TreeError::Storage(error) if error.errno() == Some(Errno::NOENT) => {
                Restore::refuse(&path, Refusal::UnknownGroup)
            }
            other => other,
        })
    }

    /// Gives directories their metadata; that of the root is given back, for it has to come last.
    fn finish_directories(&mut self) -> Result<Option<Metadata>, TreeError> {
        let mut root = None;
        let mut closed = Vec::new();
        self.replay(|worker, path, record| {
            let Record::Directory(mut metadata) = record else {
                return Ok(());
            };
            if path.is_root() {
                root = Some(metadata);
                return Ok(());
            }
            let fd = worker.enter(&path)?;
            if metadata.mode & 0o100 == 0 {
                // Nothing below it could be opened any more, even by root without its capabilities: it is closed
                // when all are done.
                closed.push((path.as_bytes().len(), path.clone(), metadata.mode));
                metadata.mode |= 0o100;
            }
            worker.adorn_directory(&fd, path.as_bytes(), &metadata)
        })?;
        // Those below before those above.
        closed.sort_unstable_by_key(|(len, ..)| std::cmp::Reverse(*len));
        for (_, path, mode) in closed {
            let fd = self.enter(&path)?;
            rustix::fs::fchmod(&*fd, Mode::from_raw_mode(mode)).map_err(|errno| {
                self.shared
                    .io(Operation::Adorn, path.as_bytes(), errno.into())
            })?;
        }
        Ok(root)
    }
}

/// Whether there is no room, on the filesystem or by a quota.
fn is_full(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOSPC | Errno::DQUOT))
}

fn exists(directory: &OwnedFd, name: &[u8]) -> bool {
    rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW).is_ok()
}

/// Bytes that nobody can guess.
fn random() -> Result<[u8; 32], TreeError> {
    let mut bytes = [0; 32];
    // getrandom(2) fills up to 256 bytes at once.
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|errno| StorageError::io(Operation::Read, Path::new("getrandom"))(errno.into()))?;
    Ok(bytes)
}

/// The plain digest of a content without its zero blocks.
fn digest_of(zero_map: &ZeroMap, data: &[u8]) -> Digest {
    if zero_map.data_len() == zero_map.chunk_len() {
        return file_digest::of_bytes(data);
    }
    let mut content = vec![0; zero_map.chunk_len() as usize];
    let mut rest = data;
    for run in zero_map.runs().filter(|run| !run.is_zero) {
        let (head, tail) = rest.split_at(rest.len().min(run.len() as usize));
        if let Some(part) = content.get_mut(run.indices()) {
            part[..head.len()].copy_from_slice(head);
        }
        rest = tail;
    }
    file_digest::of_bytes(&content)
}

/// Writes the blocks that hold data into a new file, and gives it its size.
fn write_runs(file: &File, start: u64, zero_map: &ZeroMap, data: &[u8]) -> io::Result<()> {
    let mut rest = data;
    let mut end = start;
    for run in zero_map.runs().filter(|run| !run.is_zero) {
        let (head, tail) = rest.split_at(rest.len().min(run.len() as usize));
        file.write_all_at(head, start + u64::from(run.start))?;
        end = start + u64::from(run.end);
        rest = tail;
    }
    let size = start + u64::from(zero_map.chunk_len());
    if end != size {
        file.set_len(size)?;
    }
    Ok(())
}

/// Creates a file that isn't there.
fn create(directory: &OwnedFd, name: &[u8], access: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let flags = access | OFlags::CREATE | OFlags::EXCL;
    open_beneath(directory, name, flags, mode)
}

fn make_directory(directory: &OwnedFd, name: &[u8]) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(
        directory,
        name,
        Mode::from_raw_mode(0o700),
    )?)
}

/// Moves an entry to a name that isn't there.
fn rename(from: &OwnedFd, name: &[u8], to: &OwnedFd, new_name: &[u8]) -> io::Result<()> {
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
fn list(directory: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
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
fn remove(directory: &OwnedFd, name: &[u8]) -> io::Result<()> {
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

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked takes the clone with it: no receipt is written over its remains.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
