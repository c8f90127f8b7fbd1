//! Files that travel in pieces, which any thread may read.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use rustix::fs::{OFlags, SeekFrom, Stat};
use rustix::io::Errno;
use volferry_protocol::digest::Digest;
use volferry_protocol::tree::file_digest::{self, FileDigest, PIECE_LEN, PieceDigest};
use volferry_protocol::tree::frame::{SHOWN_PATH_LEN_MAX, ZERO_PIECES_MAX};
use volferry_protocol::tree::record::Record;
use volferry_protocol::tree::set_digest::Content;
use volferry_protocol::zero_map::ZeroMap;

use super::super::metadata::Handle as MetadataHandle;
use super::directory::{Directory, Listing};
use super::file::{Group, Opened, entry_of};
use super::inode::{is_changed, size_of};
use super::offers::stamp_of;
use super::{ATTEMPTS, Outgoing, Stop, WalkEnd, Worker, ZEROS, lock};
use crate::buffer::Buffer;
use crate::error::{Operation, StorageError};
use crate::handle::Handle;

/// Records of large files that may wait in a pack. Their pieces have been sent, and the target holds
/// each of these files open until its record comes.
const LARGE_RECORDS_MAX: usize = 8;

/// How a file that is read in pieces begins.
#[derive(Debug, Default)]
pub(super) struct Begun {
    /// What its pieces bear.
    pub(super) number: u64,
    /// The pieces that the target holds.
    pub(super) digest: FileDigest,
    /// Bytes of these in blocks that hold data.
    pub(super) data_bytes: u64,
    pub(super) is_compared: bool,
}

/// A file that is read in pieces.
#[derive(Debug)]
pub(super) struct LargeFile {
    /// What its pieces bear.
    pub(super) number: u64,
    pub(super) attempt: u32,
    pub(super) handle: Handle,
    pub(super) directory: Arc<Directory>,
    pub(super) name: Vec<u8>,
    pub(super) path: Vec<u8>,
    pub(super) stat: Stat,
    pub(super) size: u64,
    pub(super) group: Group,
    /// The directory that is looked at again when this file was read; none of one that was offered.
    pub(super) listing: Option<Arc<Listing>>,
    /// The target holds something in its place, to be compared.
    pub(super) is_compared: bool,
    /// The next piece that nobody has taken.
    pub(super) next: AtomicU64,
    /// Pieces that are not done.
    pub(super) left: AtomicU64,
    pub(super) digest: Mutex<FileDigest>,
    pub(super) data_bytes: AtomicU64,
    /// It ended before its size said so.
    pub(super) is_torn: AtomicBool,
}

impl<End: WalkEnd> Worker<'_, End> {
    /// Sends a file in pieces.
    pub(super) fn begin_large(&mut self, opened: Opened<'_>) -> Result<(), Stop> {
        let begun = Begun {
            number: self.walk.next_file.fetch_add(1, Ordering::Relaxed),
            ..Begun::default()
        };
        self.begin(opened, begun)
    }

    /// Offers a file to all threads, piece by piece, and begins with it.
    pub(super) fn begin(&mut self, opened: Opened<'_>, begun: Begun) -> Result<(), Stop> {
        let Opened {
            directory,
            name,
            path,
            file,
            stat,
            group,
            attempt,
        } = opened;
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
    pub(super) fn read_pieces(&mut self, file: &Arc<LargeFile>) -> Result<(), Stop> {
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
    pub(super) fn end_pieces(&mut self, file: &Arc<LargeFile>, done: u64) -> Result<(), Stop> {
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
    pub(super) fn load_piece(&self, file: &LargeFile, index: u64) -> Result<Option<Buffer>, Stop> {
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

    pub(super) fn send_piece(
        &self,
        file: &LargeFile,
        index: u64,
        bytes: Buffer,
    ) -> Result<(), Stop> {
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
    pub(super) fn note_piece(
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
                return self.begin_large(Opened {
                    directory: &file.directory,
                    name: &file.name,
                    path: file.path.clone(),
                    file: again,
                    stat: after,
                    group: file.group,
                    attempt: file.attempt + 1,
                });
            }
            self.found.changed.note(&file.path);
        }
        let handle = MetadataHandle::Open(main.as_fd());
        let metadata = self.metadata(&file.stat, handle, &file.path)?;
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
            entry: entry_of(&file.name, file.group, metadata),
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
