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
//! 3. the filesystem is flushed, and what was made is compared with what was read;
//! 4. the staging directory is removed, the root gets its metadata, and the filesystem is flushed again.
//!
//! A crash anywhere before leaves a tree without a receipt, and the staging directory with a journal
//! of what was durable: the next attempt goes on from there.
//!
//! Here the directory is claimed, made ready, and made durable. `worker` makes what packs bring,
//! `large` the files that come in pieces, `last` what comes last. What an attempt can keep is the
//! business of `held`; what must go because the source doesn't have it, of `sweep`; the end, of
//! `conclusion`. `below` is all that is done to names of an open directory.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{getegid, geteuid};
use rustix::rand::{GetRandomFlags, getrandom};
use uuid::Uuid;
use volferry_protocol::session::fence::Remembered;
use volferry_protocol::tree::fidelity::FidelityReport;
use volferry_protocol::tree::journal::{Entry as JournalEntry, Finished};
use volferry_protocol::tree::offer::VoucherKey;
use volferry_protocol::tree::path::{TreePath, join, show};
use volferry_protocol::tree::record::{Metadata, Record};
use volferry_protocol::tree::session::{TreeSummary, TreeTerms};
use volferry_protocol::tree::set_digest::{NameSum, TreeDigest};

use super::directories::{DirectoryCache, open_directory};
use super::group_sums::{self, GroupSums};
use super::journal::{JOURNAL, TreeJournal};
use super::metadata;
use super::walk::{Outgoing, TreeSource, Walk, WalkEnd, WalkOptions};
use super::{LOST_AND_FOUND, Refusal, STAGING_PREFIX, TreeError, allow_open_files, is_staging};
use crate::buffer::BufferPool;
use crate::error::{Operation, StorageError};
use crate::zeroing::{Way, Zeroing};

mod below;
mod conclusion;
mod held;
mod large;
mod last;
mod sweep;
mod worker;

pub use held::Reuse;
pub use worker::RestoreWorker;

use below::{SOME, create, exists, list, make_directory, remove};
use large::LargeFiles;
use sweep::{Names, Noted};
use worker::Entered;

/// The directory of the staging directory that holds a name for each inode with several.
const LINKS: &[u8] = b"links";

/// The file of the staging directory that holds what comes last.
const SPOOL: &[u8] = b"spool";

/// The file of the staging directory that holds what is known of inodes with several names.
const GROUPS: &[u8] = b"groups";

/// The mode of what is nobody's business yet.
const PRIVATE: Mode = Mode::from_raw_mode(0o600);

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
    /// Bytes of data that were written since something read back wrong, when it did.
    repaired_bytes: Option<Arc<AtomicU64>>,
    /// Whether the directory held nothing else when the clone began, from the first session on.
    was_alone: Option<bool>,
    /// The last epoch that the journal knows of.
    epoch: u64,
    /// Who may not come back, and who held the last session, as it says.
    remembered: Remembered,
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
        let target = Self::claim(path, clone_id, options)?;
        target.check_free(None)?;
        Ok(target)
    }

    /// Claims the directory as [`Self::open`] does, whatever it holds.
    ///
    /// # Errors
    /// When it can't be opened, or is in use.
    pub fn claim(
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
            repaired_bytes: None,
            was_alone: None,
            epoch: 0,
            remembered: Remembered::default(),
        };
        target.look_for_journal()?;
        let is_begun = exists(&target.root, &target.staging_name());
        if is_begun && options.reuse == Reuse::Times {
            // What an attempt wrote and could not flush looks the same and may be anything, whatever
            // became of its journal.
            target.options.reuse = Reuse::Content;
        }
        Ok(target)
    }

    /// Refuses a directory that holds something beside `expected`, unless the clone goes on in it or that
    /// may be overwritten.
    ///
    /// # Errors
    /// When there is something, or nobody can say.
    pub fn check_free(&self, expected: Option<&str>) -> Result<(), TreeError> {
        if self.options.overwrite || self.goes_on || self.options.reuse.compares() {
            return Ok(());
        }
        let own = self.staging_name();
        let is_foreign = |name: &[u8]| {
            let is_expected = expected.is_some_and(|expected| expected.as_bytes() == name);
            name != LOST_AND_FOUND && name != own && !is_expected
        };
        let found = list(&self.root, 1, is_foreign)
            .map_err(|error| StorageError::io(Operation::List, &self.path)(error))?;
        match found.into_iter().next() {
            None => Ok(()),
            Some(name) => Err(TreeError::NotEmpty {
                path: self.path.clone(),
                name: show(&name),
            }),
        }
    }

    /// Finds what an attempt of this clone left.
    fn look_for_journal(&mut self) -> Result<(), TreeError> {
        let Ok(staging) = open_directory(&self.root, &self.staging_name()) else {
            return Ok(());
        };
        if !exists(&staging, JOURNAL) {
            return Ok(());
        }
        let journal = TreeJournal::open(&staging, self.clone_id)
            .map_err(StorageError::io(Operation::Read, &self.path))?;
        // Who was shut out stays so, whatever is gone on from.
        self.epoch = journal.epoch();
        self.remembered = journal.remembered().clone();
        if self.options.reuse != Reuse::Nothing {
            self.goes_on = journal.is_alone().is_some();
            self.was_alone = journal.is_alone();
            self.is_blank = self.goes_on && journal.is_empty();
        }
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

    /// Which runs of the source agent an attempt of this clone has shut out, and which held the last
    /// session.
    #[must_use]
    pub const fn remembered(&self) -> &Remembered {
        &self.remembered
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

    /// Makes the directory ready to take the tree in the session `epoch`, the first or a later one:
    /// everything that an earlier one wrote with has ended. `remembered` is what a later run of this end
    /// has to know of the runs of the source agent.
    ///
    /// # Errors
    /// When what is in the way can't be removed, or the staging directory can't be made.
    pub fn prepare(
        &mut self,
        terms: TreeTerms,
        epoch: u64,
        remembered: &Remembered,
    ) -> Result<Restore, TreeError> {
        allow_open_files();
        let staging_name = self.staging_name();
        let reuse = match self.options.reuse {
            _ if self.repaired_bytes.is_some() => Reuse::Content,
            reuse => reuse,
        };
        let compares = reuse.compares();
        // What was not durable would take the room of what comes.
        let is_own_only = self.is_blank && self.was_alone == Some(true);
        let keeps = self.goes_on && !self.is_blank || compares;
        let clears = !keeps && (self.options.delete_extra || is_own_only);
        // Whether there was anything but what the clone keeps for itself.
        let mut is_alone = true;
        loop {
            let goes = |name: &[u8]| {
                let is_own = self.goes_on && name == staging_name;
                if name == LOST_AND_FOUND || is_own {
                    return false;
                }
                // What another clone left goes in any case.
                let goes = clears || is_staging(name);
                is_alone &= goes;
                goes
            };
            let names = list(&self.root, SOME, goes)
                .map_err(StorageError::io(Operation::List, &self.path))?;
            for name in &names {
                remove(&self.root, name).map_err(StorageError::io(
                    Operation::Remove,
                    &self.path.join(show(name)),
                ))?;
            }
            if names.len() < SOME {
                break;
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
        journal
            .append(JournalEntry::of_session(epoch, is_alone, remembered).into_iter())
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
        // A handful: what a session keeps beside its files, and those that came in part.
        let is_left = |name: &[u8]| name != JOURNAL && !parts.contains(name);
        for name in list(&root, usize::MAX, is_left)? {
            remove(&root, &name)?;
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
        // Held to the end, as by who asks for a part: it is gone, or it is open.
        let journal = lock(&self.journal);
        let large = lock(&self.large);
        let removed = journal.parts().filter(|part| {
            let name = part.file.to_string();
            !large.open.contains_key(&part.file)
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

/// Whether there is no room, on the filesystem or by a quota.
fn is_full(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::NOSPC | Errno::DQUOT))
}

/// Bytes that nobody can guess.
fn random() -> Result<[u8; 32], TreeError> {
    let mut bytes = [0; 32];
    // getrandom(2) fills up to 256 bytes at once.
    getrandom(&mut bytes, GetRandomFlags::empty())
        .map_err(|errno| StorageError::io(Operation::Read, Path::new("getrandom"))(errno.into()))?;
    Ok(bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A thread that panicked takes the clone with it: no receipt is written over its remains.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
