//! Making what packs bring: names with their metadata, and small files with their content.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, makedev};
use rustix::io::Errno;
use volferry_protocol::codec::Reader;
use volferry_protocol::digest::Digest;
use volferry_protocol::tree::fidelity::FidelityClass;
use volferry_protocol::tree::journal::Finished;
use volferry_protocol::tree::offer::{Holding, OFFERS_MAX};
use volferry_protocol::tree::path::{TreePath, join, show};
use volferry_protocol::tree::record::{Entry, Metadata, Record, Special};
use volferry_protocol::tree::set_digest::{Content, NameSum};
use volferry_protocol::zero_map::ZeroMap;

use super::super::directories::{DirectoryCache, open_directory};
use super::super::metadata::{self, Handle as MetadataHandle, Terms};
use super::super::{Refusal, TreeError};
use super::below::{create, make_directory, remove};
use super::large::{digest_of, write_runs};
use super::sweep::Noted;
use super::{Found, Restore, is_full, lock};
use crate::error::Operation;

/// What one thread makes of a tree.
#[derive(Debug)]
pub struct RestoreWorker {
    pub(super) shared: Arc<Restore>,
    pub(super) cache: DirectoryCache,
    pub(super) noted: Noted,
    /// A piece of a file that is compared.
    pub(super) content: Vec<u8>,
    pub(super) found: Found,
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
pub(super) struct Entered {
    pub(super) path: TreePath,
    pub(super) fd: Arc<OwnedFd>,
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

    pub(super) fn apply(
        &mut self,
        directory: &Entered,
        record: Record<'_>,
    ) -> Result<(), TreeError> {
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

    pub(super) fn spool(&self, directory: &TreePath, record: &Record<'_>) -> Result<(), TreeError> {
        let spooled = lock(&self.shared.spool).write(directory, record);
        let staging = &self.shared.staging_name;
        spooled.map_err(|error| self.shared.io(Operation::Write, staging, error))
    }

    /// Opens a directory of the tree, and makes it and those above it where they aren't there yet.
    pub(super) fn enter(&mut self, path: &TreePath) -> Result<Arc<OwnedFd>, TreeError> {
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
    pub(super) fn make_anew<T>(
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

    pub(super) fn adorn(
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

    pub(super) fn adorn_directory(
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
    pub(super) fn add(
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
    pub(super) fn keep_for_links(
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
}
