//! What the target holds already: the journal's files and pieces, and an older copy.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use volferry_protocol::digest::Digest;
use volferry_protocol::tree::file_digest::{FileDigest, PIECE_LEN, PieceDigest, piece_len};
use volferry_protocol::tree::journal::{Entry as JournalEntry, Finished, Partial};
use volferry_protocol::tree::offer::{Holding, Offer, PARTS_MAX, Pieces, Stamp, Voucher};
use volferry_protocol::tree::path::join;
use volferry_protocol::tree::record::{Entry, INLINE_SIZE_MAX, Time};
use volferry_protocol::tree::set_digest::Content;
use volferry_protocol::zero_map::ZeroMap;

use super::super::directories::open_beneath;
use super::super::metadata::{self, Handle as MetadataHandle};
use super::super::{Refusal, TreeError};
use super::large::{LARGE_FILES_MAX, LargeFile, LargeFiles, LargeState, Origin};
use super::{Entered, Restore, RestoreWorker, create, lock};
use crate::error::Operation;
use crate::handle::{Handle, reopen};

/// Numbers of files that the target begins have this bit; those of a source don't.
const TARGET_FILE: u64 = 1 << 63;

/// What may be kept of what is in the target directory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reuse {
    /// Nothing that was there before this run of the target agent.
    Nothing,
    /// What the journal of this clone vouches for.
    #[default]
    Journal,
    /// Also files of the same size and time of modification.
    Times,
    /// Also what is found to be equal when both ends read it.
    Content,
}

impl Reuse {
    /// Whether what is there is compared, whoever made it.
    pub(super) const fn compares(self) -> bool {
        matches!(self, Self::Times | Self::Content)
    }
}

/// A file of the target that was opened and looked at.
struct Opened {
    file: File,
    stat: Stat,
}

impl Restore {
    /// Makes durable what was finished since the last time, and notes it in the journal. Gives the
    /// bytes of files that are durable by now.
    ///
    /// # Errors
    /// When the filesystem can't be flushed, or the journal not be written.
    pub fn checkpoint(&self) -> Result<u64, TreeError> {
        // What is finished now is covered by the flush that follows.
        let finished = std::mem::take(&mut *lock(&self.finished));
        // Who puts a file in its place holds its state, and then asks for the list.
        let large: Vec<_> = lock(&self.large).open.values().map(Arc::clone).collect();
        let partial: Vec<_> = large.iter().filter_map(|file| file.partial()).collect();
        if finished.is_empty() && partial.is_empty() {
            return Ok(self.durable_bytes());
        }
        rustix::fs::syncfs(&*self.root)
            .map_err(|errno| self.io(Operation::Flush, b"", errno.into()))?;
        let news = finished.iter().map(|(_, news)| *news);
        let news = news.chain(partial.iter().map(|(_, news)| *news));
        let news = news.fold(0, u64::saturating_add);
        let files = finished
            .into_iter()
            .map(|(file, _)| JournalEntry::File(file));
        let partial = partial.into_iter().map(|(partial, _)| partial);
        let entries = files.chain(partial.map(JournalEntry::Part));
        lock(&self.journal)
            .append(entries)
            .map_err(|error| self.io(Operation::Write, &self.journal_path(), error))?;
        self.durable_bytes.fetch_add(news, Ordering::Relaxed);
        Ok(self.durable_bytes())
    }

    /// Bytes of files that are durable by now.
    #[must_use]
    pub fn durable_bytes(&self) -> u64 {
        self.durable_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of the target's own files that were read to compare them.
    #[must_use]
    pub fn checked_bytes(&self) -> u64 {
        self.checked_bytes.load(Ordering::Relaxed)
    }

    /// Bytes of a state of a file of which the journal knows: they are no news, however they came again.
    pub(super) fn noted_bytes(&self, stamp: Stamp) -> Result<u64, TreeError> {
        let noted = lock(&self.journal).bytes_of(stamp);
        noted.map_err(|error| self.io(Operation::Read, &self.journal_path(), error))
    }

    /// Copies what holds data, within the kernel where that can be. Whether all was: not when the session
    /// has ended meanwhile.
    fn copy_data(&self, from: &File, to: &File, size: u64) -> io::Result<bool> {
        const STEP: u64 = 64 << 20;
        to.set_len(size)?;
        let mut at = 0;
        while at < size {
            let data_at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(data_at) => data_at,
                Err(Errno::NXIO) => break,
                Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS) => at,
                Err(errno) => return Err(errno.into()),
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(data_at)).unwrap_or(size);
            let end = end.min(size).min(data_at.saturating_add(STEP));
            if self.is_stopped.load(Ordering::Relaxed) {
                return Ok(false);
            }
            rustix::fs::seek(to, SeekFrom::Start(data_at))?;
            rustix::fs::seek(from, SeekFrom::Start(data_at))?;
            let copied = io::copy(&mut from.take(end.saturating_sub(data_at)), &mut { to })?;
            if copied == 0 {
                break; // it became shorter, and is compared all the same
            }
            self.steps.fetch_add(1, Ordering::Relaxed);
            at = data_at + copied;
        }
        Ok(true)
    }

    /// Notes that a file is in its place. `noted_bytes` of it are in the journal already.
    pub(super) fn note_finished(&self, finished: Finished, noted_bytes: u64) {
        let news = finished.size.saturating_sub(noted_bytes);
        lock(&self.finished).push((finished, news));
    }
}

impl LargeFile {
    /// What of it the journal would go on from, and how many bytes more that are than before; `None`
    /// when that is nothing, or was noted before.
    fn partial(&self) -> Option<(Partial, u64)> {
        let mut state = lock(&self.state);
        let (stamp, size) = state.begun?;
        let is_useful = size > u64::from(PIECE_LEN) && state.digest.node_count() <= PARTS_MAX;
        // What is patched in its place is compared again.
        if !is_useful || state.is_placed || self.place.is_some() {
            return None;
        }
        let partial = Partial {
            stamp,
            file: self.number,
            size,
            data_bytes: state.data_bytes,
            parts: state.digest.parts(),
        };
        let news = partial.durable_bytes().saturating_sub(state.noted_bytes);
        state.noted_bytes += news;
        (news > 0).then_some((partial, news))
    }
}

impl RestoreWorker {
    /// What the target holds of a file that the source has.
    pub(super) fn holding(
        &mut self,
        directory: &Entered,
        offer: &Offer<'_>,
    ) -> Result<Holding, TreeError> {
        let name = offer.name.as_bytes();
        if self.shared.is_reserved(&directory.path, name) {
            return Err(Restore::refuse(name, Refusal::Reserved));
        }
        if self.shared.is_stopped.load(Ordering::Relaxed) {
            return Ok(Holding::Nothing); // nobody will be told
        }
        if let Some(holding) = self.part(offer)? {
            return Ok(holding);
        }
        let path = join(directory.path.as_bytes(), name);
        // Where content is compared, no journal vouches for it.
        let journaled = match self.shared.reuse {
            Reuse::Content => Ok(None),
            _ => lock(&self.shared.journal).find(offer.stamp),
        };
        let journaled = journaled.map_err(|error| {
            let path = self.shared.journal_path();
            self.shared.io(Operation::Read, &path, error)
        })?;
        // A file whose pieces are known, and which is not where they were kept, was put in its place
        // and not noted any more.
        let was_placed = lock(&self.shared.journal).part(offer.stamp).is_some();
        let compares = self.shared.reuse.compares();
        if journaled.is_none() && !compares && !was_placed {
            return Ok(Holding::Nothing);
        }
        let Some(opened) = self.open_held(directory, name, &path)? else {
            return Ok(Holding::Nothing);
        };
        let is_large = offer.size > u64::from(INLINE_SIZE_MAX);
        // Another of its names may stand for a file of its own by now, or be no business of this
        // clone: it is not touched.
        let has_names = opened.stat.st_nlink > 1;
        if has_names && !is_large {
            return Ok(Holding::Nothing);
        }
        let size = u64::try_from(opened.stat.st_size).unwrap_or(0);
        let has_size = size == offer.size;
        let looks_same = has_size && has_time(&opened.stat, offer.mtime);
        if has_names {
            return match looks_same || compares && size > 0 {
                true => self.copy_of(&opened.file, size, &path),
                false => Ok(Holding::Nothing),
            };
        }
        if let Some(finished) = journaled.filter(|_| looks_same) {
            return Ok(self.all(&path, size, finished.digest, finished.data_bytes, true));
        }
        if was_placed && looks_same {
            return self.other(&opened.file, &path);
        }
        match self.shared.reuse {
            Reuse::Times if looks_same => {}
            Reuse::Content if has_size && !is_large => {}
            Reuse::Times | Reuse::Content if is_large && size > 0 => {
                return self.other(&opened.file, &path);
            }
            _ => return Ok(Holding::Nothing),
        }
        let Some((digest, data_bytes)) = self.read_held(&opened.file, size, &path)? else {
            return Ok(Holding::Nothing); // nobody will be told
        };
        Ok(self.all(&path, size, digest, data_bytes, false))
    }

    fn all(
        &self,
        path: &[u8],
        size: u64,
        digest: Digest,
        data_bytes: u64,
        is_journaled: bool,
    ) -> Holding {
        let shared = &self.shared;
        Holding::All {
            digest,
            data_bytes,
            voucher: shared
                .key
                .voucher(path, size, digest, data_bytes, is_journaled),
        }
    }

    /// Pieces of it that an earlier session brought, which are registered to be gone on with.
    fn part(&self, offer: &Offer<'_>) -> Result<Option<Holding>, TreeError> {
        let shared = &self.shared;
        let journal = lock(&shared.journal);
        let known = journal.part(offer.stamp);
        let Some(partial) = known.filter(|partial| partial.size == offer.size) else {
            return Ok(None);
        };
        let Some(digest) = FileDigest::of_parts(&partial.parts) else {
            return Ok(None);
        };
        let name = partial.file.to_string();
        let opened = open_beneath(
            &shared.staging,
            name.as_bytes(),
            OFlags::RDWR,
            Mode::empty(),
        );
        let Some(opened) = opened.ok().filter(is_plain) else {
            return Ok(None);
        };
        if shared.reuse == Reuse::Content {
            let staged = join(&shared.staging_name, name.as_bytes());
            let state = LargeState::default();
            self.register(partial.file, &staged, opened, Origin::Held, state, None)?;
            return Ok(Some(Holding::Other { file: partial.file }));
        }
        let state = LargeState {
            resumed_bytes: partial.durable_bytes(),
            kept_data_bytes: partial.data_bytes,
            digest,
            data_bytes: partial.data_bytes,
            ..LargeState::default()
        };
        let staged = join(&shared.staging_name, name.as_bytes());
        self.register(partial.file, &staged, opened, Origin::Part, state, None)?;

        Ok(Some(Holding::Part {
            file: partial.file,
            parts: partial.parts.clone(),
            data_bytes: partial.data_bytes,
        }))
    }

    /// A file in its place that is to be compared by pieces, and written where it differs.
    fn other(&self, file: &File, path: &[u8]) -> Result<Holding, TreeError> {
        // The very file that was looked at, whatever has its name by now.
        let opened = reopen(file, OFlags::RDWR).map(OwnedFd::from);
        let Some(opened) = opened.ok().filter(is_plain) else {
            return Ok(Holding::Nothing);
        };
        let number = self.next_number();
        let place = Some(path.to_vec());
        let state = LargeState::default();
        self.register(number, path, opened, Origin::Held, state, place)?;
        Ok(Holding::Other { file: number })
    }

    /// A file with several names: a copy of it is compared, and takes its place.
    fn copy_of(&self, file: &File, size: u64, path: &[u8]) -> Result<Holding, TreeError> {
        let shared = &self.shared;
        let number = self.next_number();
        let name = number.to_string();
        let staged = join(&shared.staging_name, name.as_bytes());
        let failed = |error| shared.io_of(Operation::Write, path, size, error);
        let copy = create(
            &shared.staging,
            name.as_bytes(),
            OFlags::RDWR,
            super::PRIVATE,
        )
        .map_err(failed)?;
        let copy = File::from(copy);
        if !shared.copy_data(file, &copy, size).map_err(failed)? {
            return Ok(Holding::Nothing); // nobody will be told
        }
        let state = LargeState::default();
        self.register(number, &staged, copy.into(), Origin::Held, state, None)?;
        Ok(Holding::Other { file: number })
    }

    fn next_number(&self) -> u64 {
        let mut large = lock(&self.shared.large);
        large.begun_here += 1;
        TARGET_FILE | (self.shared.epoch & 0x7fff_ffff) << 32 | large.begun_here
    }

    fn register(
        &self,
        number: u64,
        path: &[u8],
        opened: OwnedFd,
        origin: Origin,
        state: LargeState,
        place: Option<Vec<u8>>,
    ) -> Result<(), TreeError> {
        let shared = &self.shared;
        let at = shared.at(path);
        let file = LargeFile {
            number,
            handle: Handle::new(at, File::from(opened), OFlags::RDWR, shared.direct),
            place,
            origin,
            state: Mutex::new(state),
        };
        let LargeFiles { open, .. } = &mut *lock(&shared.large);
        if open.len() >= LARGE_FILES_MAX {
            return Err(Restore::refuse(path, Refusal::TooManyFiles));
        }
        if open.insert(number, Arc::new(file)).is_some() {
            return Err(Restore::refuse(path, Refusal::Twice));
        }
        Ok(())
    }

    /// Opens a file that is there, if it is a regular one.
    fn open_held(
        &self,
        directory: &Entered,
        name: &[u8],
        path: &[u8],
    ) -> Result<Option<Opened>, TreeError> {
        let failed = |errno: Errno| self.shared.io(Operation::Open, path, errno.into());
        // What it is comes first: opening a device may do something.
        match rustix::fs::statat(&directory.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile => {}
            Ok(_) | Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(failed(errno)),
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = match open_beneath(&directory.fd, name, flags, Mode::empty()) {
            Ok(opened) => File::from(opened),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::IO) => return Err(failed(Errno::IO)),
                _ => return Ok(None),
            },
        };
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        let is_regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(is_regular.then_some(Opened { file, stat }))
    }

    /// Reads a file of the target: its plain digest, and bytes in blocks that hold data. `None` when the
    /// session has ended meanwhile.
    fn read_held(
        &mut self,
        file: &File,
        size: u64,
        path: &[u8],
    ) -> Result<Option<(Digest, u64)>, TreeError> {
        let mut digest = FileDigest::default();
        let mut data_bytes = 0;
        let mut index = 0;
        loop {
            let len = piece_len(size, index);
            if len == 0 {
                break;
            }
            if self.shared.is_stopped.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let piece =
                self.read_held_piece(index, len, |bytes, start| file.read_exact_at(bytes, start));
            let (piece, data_len) =
                piece.map_err(|error| self.shared.io(Operation::Read, path, error))?;
            data_bytes += u64::from(data_len);
            // In order, and each once.
            let _new = digest.insert(index, piece);
            index += 1;
        }
        let digest = digest.finish(size).unwrap_or(Digest([0; 32]));
        Ok(Some((digest, data_bytes)))
    }

    fn read_held_piece<E>(
        &mut self,
        index: u64,
        len: u32,
        read: impl FnOnce(&mut [u8], u64) -> Result<(), E>,
    ) -> Result<(PieceDigest, u32), E> {
        self.content.resize(PIECE_LEN as usize, 0);
        let bytes = self.content.get_mut(..len as usize).unwrap_or_default();
        read(bytes, index.saturating_mul(u64::from(PIECE_LEN)))?;
        let checked = &self.shared.checked_bytes;
        checked.fetch_add(u64::from(len), Ordering::Relaxed);
        Ok((
            PieceDigest::of(index, bytes),
            ZeroMap::scan(bytes).data_len(),
        ))
    }

    /// Keeps a file that is in its place: only its metadata may be another.
    pub(super) fn keep(
        &mut self,
        directory: &Entered,
        entry: &Entry<'_>,
        size: u64,
        digest: Digest,
        data_bytes: u64,
        voucher: Voucher,
    ) -> Result<(), TreeError> {
        let shared = Arc::clone(&self.shared);
        let name = entry.name.as_bytes();
        let path = join(directory.path.as_bytes(), name);
        let made = |is_journaled| {
            shared
                .key
                .voucher(&path, size, digest, data_bytes, is_journaled)
        };
        let is_journaled = match voucher {
            _ if voucher == made(true) => true,
            _ if voucher == made(false) => false,
            _ => return Err(Restore::refuse(&path, Refusal::NotHeld)),
        };
        let opened = self.open_held(directory, name, &path)?;
        let is_held = |opened: &Opened| {
            u64::try_from(opened.stat.st_size) == Ok(size) && opened.stat.st_nlink == 1
        };
        let Some(Opened { file, .. }) = opened.filter(is_held) else {
            return Err(Restore::refuse(&path, Refusal::NotHeld));
        };
        let handle = MetadataHandle::Open(file.as_fd());
        self.adorn(handle, &path, &entry.metadata, false, true)?;
        if entry.group != 0 {
            self.keep_for_links(&directory.fd, name, entry.group, &path)?;
        }
        let content = Content::File { size, digest };
        self.add(&path, &content, &entry.metadata, entry.group)?;
        let (counter, bytes) = if is_journaled {
            (&shared.resumed_bytes, size)
        } else {
            (&shared.matched_bytes, data_bytes)
        };
        counter.fetch_add(bytes, Ordering::Relaxed);
        shared
            .kept_data_bytes
            .fetch_add(data_bytes, Ordering::Relaxed);
        Ok(())
    }

    /// A large file is about to come in pieces; `path` is what messages call it.
    ///
    /// # Errors
    /// When it was begun before, or can't be.
    pub fn begin_file(
        &mut self,
        number: u64,
        size: u64,
        stamp: Stamp,
        path: &[u8],
    ) -> Result<(), TreeError> {
        let Some(file) = self.large_file(number)? else {
            return Ok(());
        };
        let noted_bytes = self.shared.noted_bytes(stamp)?;
        let mut state = lock(&file.state);
        state.shown_path = path.to_vec();
        state.noted_bytes = noted_bytes;
        if state.begun.replace((stamp, size)).is_some() {
            let number = format!("file {number}");
            return Err(Restore::refuse(number.as_bytes(), Refusal::Twice));
        }
        self.place(&file, &mut state)
    }

    /// The chaining values of pieces of a file in its place, which the source will compare.
    ///
    /// # Errors
    /// When it is no such file, or can't be read.
    pub fn probe(&mut self, number: u64, index: u64, count: u32) -> Result<Pieces, TreeError> {
        let file = self.held_file(number)?;
        let size = file.handle.current_size()?;
        let mut digests = Vec::new();
        for at in index..index.saturating_add(u64::from(count)) {
            let len = piece_len(size, at);
            if len == 0 {
                break;
            }
            let read = self.read_held_piece(at, len, |bytes, start| {
                file.handle.read_at(start, bytes, size)
            });
            let (piece, data_len) = read?;
            digests.push(piece.chaining_value);
            lock(&file.state).probed.insert(at, (piece, data_len));
        }
        Ok(Pieces {
            file: number,
            index,
            digests,
        })
    }

    /// Pieces that were asked for are as they should be.
    ///
    /// # Errors
    /// When they were not asked for.
    pub fn same_pieces(&mut self, number: u64, index: u64, count: u32) -> Result<(), TreeError> {
        if lock(&self.shared.large).forgotten.contains(&number) {
            return Ok(()); // it changed while it was compared, and comes again
        }
        let file = self.held_file(number)?;
        let mut data_bytes = 0;
        let mut pieces = Vec::new();
        let mut state = lock(&file.state);
        for at in index..index.saturating_add(u64::from(count)) {
            let Some((piece, data_len)) = state.probed.remove(&at) else {
                let piece = format!("piece {at} of file {number}");
                return Err(Restore::refuse(piece.as_bytes(), Refusal::NotHeld));
            };
            data_bytes += u64::from(data_len);
            pieces.push((at, piece));
        }
        state.matched_bytes += data_bytes;
        state.kept_data_bytes += data_bytes;
        drop(state);
        self.take_in(&file, pieces.into_iter(), data_bytes)
    }

    /// A file that is compared in its place.
    fn held_file(&self, number: u64) -> Result<Arc<LargeFile>, TreeError> {
        let open = lock(&self.shared.large).open.get(&number).cloned();
        let held = open.filter(|file| file.origin == Origin::Held);
        held.ok_or_else(|| {
            let number = format!("file {number}");
            Restore::refuse(number.as_bytes(), Refusal::NotHeld)
        })
    }
}

/// Whether it is a regular file without another name.
fn is_plain(file: &OwnedFd) -> bool {
    rustix::fs::fstat(file).is_ok_and(|stat| {
        FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_nlink == 1
    })
}

/// Whether a file was modified at that time, as precisely as its filesystem can tell.
fn has_time(stat: &Stat, wanted: Time) -> bool {
    let time = metadata::mtime(stat);
    time.seconds == wanted.seconds
        && (time.nanoseconds == wanted.nanoseconds || time.nanoseconds == 0)
}
