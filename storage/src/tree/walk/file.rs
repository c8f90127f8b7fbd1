//! What a name leads to that is no directory: small files and what has no content. A file that is
//! larger goes on in [`large`](super::large).

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{Advice, FileType, Stat, major, minor};
use volferry_protocol::geometry::ByteRange;
use volferry_protocol::tree::fidelity::FidelityClass;
use volferry_protocol::tree::file_digest;
use volferry_protocol::tree::links::{InodeKey, Met};
use volferry_protocol::tree::path::{PATH_LEN_MAX, join};
use volferry_protocol::tree::record::{DeviceNumber, Entry, Metadata, Record, Special};
use volferry_protocol::tree::set_digest::{Content, NameSum};
use volferry_protocol::zero_map::ZeroMap;

use super::super::metadata::Handle as MetadataHandle;
use super::directory::Directory;
use super::inode::{is_changed, is_large, key_of, open_for_reading, read_up_to, size_of};
use super::offers::stamp_of;
use super::{ATTEMPTS, Stop, WalkEnd, Worker, lock, name_of};
use crate::error::Operation;
use crate::handle::{advise, set_direct};

/// The number and the key of an inode among those with several names.
pub(super) type Group = Option<(u64, InodeKey)>;

/// A regular file that is open and was not read yet.
pub(super) struct Opened<'a> {
    pub(super) directory: &'a Arc<Directory>,
    pub(super) name: &'a [u8],
    pub(super) path: Vec<u8>,
    pub(super) file: File,
    pub(super) stat: Stat,
    /// Once it was met.
    pub(super) group: Group,
    /// How often it is read, this time included.
    pub(super) attempt: u32,
}

impl<End: WalkEnd> Worker<'_, End> {
    /// Opens what was a regular file when it was listed. `None` when it can't be read, which is
    /// noted.
    pub(super) fn open_file<'b>(
        &mut self,
        directory: &'b Arc<Directory>,
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
            directory,
            name,
            path,
            file,
            stat,
            group: None,
            attempt: 1,
        }))
    }

    /// Reads files one after the other, as long as somebody wants more.
    pub(super) fn read_in_turn(&mut self, files: Vec<Opened<'_>>) -> Result<(), Stop> {
        for file in files {
            self.read_file(file)?;
            if self.walk.is_stopped.load(Ordering::Relaxed) {
                return Err(Stop::Unwanted);
            }
        }
        Ok(())
    }

    pub(super) fn read_file(&mut self, mut opened: Opened<'_>) -> Result<(), Stop> {
        if is_large(&opened.stat) {
            // Others were read since it was opened, which may have taken long.
            opened.stat = self.stat(&opened.file, &opened.path)?;
        }
        let Opened {
            directory,
            name,
            path,
            stat,
            ..
        } = &opened;
        let Some(group) = self.meet(directory, name, path, stat)? else {
            return Ok(());
        };
        opened.group = group;
        self.read_opened(opened)
    }

    /// Reads a file that was met.
    pub(super) fn read_opened(&mut self, opened: Opened<'_>) -> Result<(), Stop> {
        match is_large(&opened.stat) {
            true => self.begin_large(opened),
            false => self.read_small(opened),
        }
    }

    /// Meets a name of an inode. `None` when the inode was met before: then its link is on its way.
    pub(super) fn meet(
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
    pub(super) fn add(
        &mut self,
        path: &[u8],
        content: &Content<'_>,
        metadata: &Metadata,
        group: Group,
    ) {
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

    fn read_small(&mut self, mut opened: Opened<'_>) -> Result<(), Stop> {
        let mut content = std::mem::take(&mut self.content);
        let metadata = loop {
            let Opened {
                path, file, stat, ..
            } = &opened;
            let metadata = self.metadata(stat, MetadataHandle::Open(file.as_fd()), path)?;
            // One byte more than it should have: a file that grew shows.
            let size = usize::try_from(size_of(stat)).unwrap_or(usize::MAX);
            content.resize(size.saturating_add(1), 0);
            let len = read_up_to(file, &mut content)
                .map_err(|error| self.error(Operation::Read, path, error))?;
            content.resize(size, 0);
            if let Some(missing) = content.get_mut(len..) {
                missing.fill(0);
            }
            let after = self.stat(file, path)?;
            if len == size && !is_changed(stat, &after) {
                break metadata;
            }
            if opened.attempt == ATTEMPTS {
                self.found.changed.note(path);
                break metadata;
            }
            opened.attempt += 1;
            opened.stat = after;
            if is_large(&opened.stat) {
                self.content = content;
                return self.begin_large(opened);
            }
        };
        let sent = self.send_small(opened, metadata, &mut content);
        self.content = content;
        sent
    }

    /// Takes in a file with one name, whose content was just read.
    pub(super) fn take_small(
        &mut self,
        opened: Opened<'_>,
        content: &mut [u8],
    ) -> Result<(), Stop> {
        let Opened {
            path, file, stat, ..
        } = &opened;
        let metadata = self.metadata(stat, MetadataHandle::Open(file.as_fd()), path)?;
        let after = self.stat(file, path)?;
        match is_changed(stat, &after) {
            true => self.read_again(opened),
            false => self.send_small(opened, metadata, content),
        }
    }

    /// Reads a file for which reading it together with others wasn't enough.
    pub(super) fn read_again(&mut self, mut opened: Opened<'_>) -> Result<(), Stop> {
        // A buffer of any length and place is not for direct transfers.
        set_direct(&opened.file, false)
            .map_err(|error| self.error(Operation::Read, &opened.path, error))?;
        opened.attempt += 1;
        opened.stat = self.stat(&opened.file, &opened.path)?;
        self.read_file(opened)
    }

    /// Sends a small file.
    fn send_small(
        &mut self,
        opened: Opened<'_>,
        metadata: Metadata,
        content: &mut [u8],
    ) -> Result<(), Stop> {
        let Opened {
            directory,
            name,
            path,
            stat,
            group,
            ..
        } = opened;
        let digest = file_digest::of_bytes(content);
        let zero_map = ZeroMap::scan(content);
        let data_len = zero_map.data_len();
        let size = u64::from(zero_map.chunk_len());
        self.walk.bytes_seen.fetch_add(size, Ordering::Relaxed);
        for bytes in [&self.walk.data_bytes, &self.walk.sent_bytes] {
            bytes.fetch_add(u64::from(data_len), Ordering::Relaxed);
        }
        squeeze(content, &zero_map);
        self.add(&path, &Content::File { size, digest }, &metadata, group);
        self.walk.end.file(&path, digest);
        let record = Record::File {
            entry: entry_of(name, group, metadata),
            stamp: stamp_of(&path, &stat),
            digest,
            zero_map,
            data: content.get(..data_len as usize).unwrap_or_default(),
        };
        self.emit(&directory.path, &record)
    }

    /// Reads what is neither a directory nor a regular file, without opening it.
    pub(super) fn read_special(
        &mut self,
        directory: &Arc<Directory>,
        name: &[u8],
    ) -> Result<(), Stop> {
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
        let handle = MetadataHandle::Name(directory.fd.as_fd(), name);
        let metadata = self.metadata(&stat, handle, &path)?;
        self.add(&path, &Content::Special(&special), &metadata, group);
        let entry = entry_of(name, group, metadata);
        self.emit(&directory.path, &Record::Special { entry, special })
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

/// What a record says of a name, beside its content.
pub(super) fn entry_of(name: &[u8], group: Group, metadata: Metadata) -> Entry<'_> {
    Entry {
        name: name_of(name),
        group: group.map_or(0, |(group, _)| group),
        metadata,
    }
}
