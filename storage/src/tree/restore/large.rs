//! Files that come in pieces.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use rustix::fs::{AtFlags, OFlags};
use volferry_protocol::digest::Digest;
use volferry_protocol::geometry::ByteRange;
use volferry_protocol::tree::file_digest::{self, FileDigest, PIECE_LEN, PieceDigest};
use volferry_protocol::tree::journal::Finished;
use volferry_protocol::tree::offer::Stamp;
use volferry_protocol::tree::path::{TreePath, join, show};
use volferry_protocol::tree::record::{Entry, Metadata};
use volferry_protocol::tree::set_digest::Content;
use volferry_protocol::zero_map::ZeroMap;

use super::super::metadata::Handle as MetadataHandle;
use super::super::walk::ZEROS;
use super::super::{Refusal, TreeError};
use super::below::{create, rename};
use super::worker::{Entered, RestoreWorker};
use super::{PRIVATE, Restore, lock};
use crate::error::{Operation, StorageError};
use crate::handle::Handle;

/// Large files that may be under way at once. An honest source has a few for each of its threads, and
/// those whose only piece is in flight: as many as both ends have buffers.
pub(super) const LARGE_FILES_MAX: usize = 2048;

/// Files that may have been given up for another attempt. Each costs an honest source three
/// readings of a file that changes.
const FORGOTTEN_MAX: usize = 1 << 16;

/// Subtrees that the digest of a file may consist of. An honest source reads in order.
const NODES_MAX: usize = 1 << 14;

#[derive(Debug, Default)]
pub(super) struct LargeFiles {
    pub(super) open: HashMap<u64, Arc<LargeFile>>,
    pub(super) forgotten: HashSet<u64>,
    /// Files whose number this end has made up.
    pub(super) begun_here: u64,
}

/// A file that comes in pieces.
#[derive(Debug)]
pub(super) struct LargeFile {
    pub(super) number: u64,
    pub(super) handle: Handle,
    /// Its path, where it is in its place already; else it is in the staging directory.
    pub(super) place: Option<Vec<u8>>,
    pub(super) origin: Origin,
    pub(super) state: Mutex<LargeState>,
}

impl LargeFile {
    fn piece_twice(&self, index: u64) -> TreeError {
        let piece = format!("piece {index} of file {}", self.number);
        Restore::refuse(piece.as_bytes(), Refusal::PieceTwice)
    }
}

/// What a large file began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Nothing: what is not written is zero.
    Empty,
    /// Pieces that an earlier session brought.
    Part,
    /// What the target held, to be compared.
    Held,
}

#[derive(Debug, Default)]
pub(super) struct LargeState {
    /// Which state of the source's file it is, and its size, once that is known.
    pub(super) begun: Option<(Stamp, u64)>,
    /// What messages call it.
    pub(super) shown_path: Vec<u8>,
    pub(super) is_placed: bool,
    pub(super) digest: FileDigest,
    pub(super) data_bytes: u64,
    /// Bytes of this state of it of which the journal knows, under whatever number.
    pub(super) noted_bytes: u64,
    /// Pieces that are being written.
    pub(super) claimed: BTreeSet<u64>,
    /// Bytes of it that an earlier session brought, holes included.
    pub(super) resumed_bytes: u64,
    /// Bytes in blocks that hold data, of what was found to be equal.
    pub(super) matched_bytes: u64,
    /// Bytes in blocks that hold data, of what this session did not bring.
    pub(super) kept_data_bytes: u64,
    /// Pieces that are held, of which the source was told.
    pub(super) probed: BTreeMap<u64, (PieceDigest, u32)>,
    /// Its record, once that came.
    pub(super) end: Option<LargeEnd>,
}

/// What the record of a large file says.
#[derive(Debug)]
pub(super) struct LargeEnd {
    pub(super) directory: TreePath,
    pub(super) name: Vec<u8>,
    pub(super) group: u64,
    pub(super) metadata: Metadata,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

impl RestoreWorker {
    /// The file that comes under this number; `None` for one that was given up.
    pub(super) fn large_file(&self, number: u64) -> Result<Option<Arc<LargeFile>>, TreeError> {
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
            // It comes, so it is not what was held.
            state.probed.remove(&at);
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

    pub(super) fn take_in(
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
    pub(super) fn end_large(
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
    pub(super) fn place(
        &mut self,
        file: &LargeFile,
        state: &mut LargeState,
    ) -> Result<(), TreeError> {
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
    pub(super) fn forget(&self, number: u64) -> Result<(), TreeError> {
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
}

/// The plain digest of a content without its zero blocks.
pub(super) fn digest_of(zero_map: &ZeroMap, data: &[u8]) -> Digest {
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
pub(super) fn write_runs(
    file: &File,
    start: u64,
    zero_map: &ZeroMap,
    data: &[u8],
) -> io::Result<()> {
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
