//! The journal of a tree: a file in its staging directory, beside what it speaks of, so that it
//! goes wherever the volume goes.
//!
//! A record is written only after a flush that covers what it says. Of what is known at the start,
//! memory holds 16 bytes for each file; the rest is looked up in the file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags};
use uuid::Uuid;
use volferry_protocol::codec::Reader;
use volferry_protocol::session::fence::{Remembered, SHUT_OUT_MAX};
use volferry_protocol::tree::journal::{self, Entry, Finished, Partial};
use volferry_protocol::tree::offer::Stamp;

use super::directories::open_beneath;

/// The file of the staging directory that holds it.
pub(super) const JOURNAL: &[u8] = b"journal";

/// The journal of one clone.
#[derive(Debug)]
pub(super) struct TreeJournal {
    file: File,
    /// Where the next record begins.
    end: u64,
    known: Known,
}

/// What the journal said when it was opened.
#[derive(Debug, Default)]
struct Known {
    epoch: u64,
    /// Whether the target held nothing else before the first session.
    is_alone: Option<bool>,
    /// Who may not come back, and who held the last session.
    remembered: Remembered,
    /// The beginning of each file's stamp and where its entry is, in order.
    files: Vec<(u64, u64)>,
    parts: HashMap<Stamp, Partial>,
    durable_bytes: u64,
}

impl TreeJournal {
    /// Opens the journal of `clone_id` in its staging directory. One that is missing, torn at its
    /// beginning or another clone's is begun anew; what follows a torn record is cut off.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn open(staging: &OwnedFd, clone_id: Uuid) -> io::Result<Self> {
        let flags = OFlags::RDWR | OFlags::CREATE;
        let mode = Mode::from_raw_mode(0o600);
        let file = File::from(open_beneath(staging, JOURNAL, flags, mode)?);
        let header = journal::header(clone_id);
        let mut found = [0; journal::HEADER_LEN];
        let is_own = match file.read_exact_at(&mut found, 0) {
            Ok(()) => found == header,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            Err(error) => return Err(error),
        };
        let len = file.metadata()?.len();
        let mut known = Known::default();
        let end = if is_own {
            known.read(&file)?
        } else {
            if len > 0 {
                tracing::warn!(
                    "the journal in the target directory is none of this clone, or torn at its beginning: begun anew"
                );
            }
            file.set_len(0)?;
            file.write_all_at(&header, 0)?;
            header.len() as u64
        };
        if is_own && end < len {
            tracing::warn!(
                cut_bytes = len - end,
                "the journal in the target directory was torn: what comes behind its last whole record is left out"
            );
            file.set_len(end)?;
        }
        Ok(Self { file, end, known })
    }

    /// The epoch of the last session that it knows of.
    pub(super) const fn epoch(&self) -> u64 {
        self.known.epoch
    }

    /// Whether the target held nothing else before the clone began; `None` when no session is known.
    pub(super) const fn is_alone(&self) -> Option<bool> {
        self.known.is_alone
    }

    /// Who may not come back, and who held the last session.
    pub(super) const fn remembered(&self) -> &Remembered {
        &self.known.remembered
    }

    /// Bytes of files that it said to be durable when it was opened.
    pub(super) const fn durable_bytes(&self) -> u64 {
        self.known.durable_bytes
    }

    /// Whether it said anything to be durable when it was opened.
    pub(super) fn is_empty(&self) -> bool {
        self.known.files.is_empty() && self.known.parts.is_empty()
    }

    /// The files that are there in part.
    pub(super) fn parts(&self) -> impl Iterator<Item = &Partial> {
        self.known.parts.values()
    }

    /// What it said of the file with this stamp.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn find(&self, stamp: Stamp) -> io::Result<Option<Finished>> {
        let key = key_of(stamp);
        let from = self.known.files.partition_point(|(other, _)| *other < key);
        let nearest = self.known.files.get(from);
        let Some((_, offset)) = nearest.filter(|(other, _)| *other == key) else {
            return Ok(None);
        };
        let found = read_file(&self.file, *offset)?;
        Ok(found.filter(|file| file.stamp == stamp))
    }

    /// What it said of pieces of the file with this stamp.
    pub(super) fn part(&self, stamp: Stamp) -> Option<&Partial> {
        self.known.parts.get(&stamp)
    }

    /// Bytes that it said to be durable of the file with this stamp.
    ///
    /// # Errors
    /// When it can't be read.
    pub(super) fn bytes_of(&self, stamp: Stamp) -> io::Result<u64> {
        let part = self.part(stamp).map_or(0, Partial::durable_bytes);
        let file = self.find(stamp)?.map_or(0, |file| file.size);
        Ok(file.max(part))
    }

    /// Writes what a flush has covered, and makes it durable.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn append(&mut self, entries: impl Iterator<Item = Entry>) -> io::Result<()> {
        let mut payload = Vec::new();
        let mut entry_bytes = Vec::new();
        for entry in entries {
            entry_bytes.clear();
            entry.encode(&mut entry_bytes);
            if payload.len() + entry_bytes.len() > journal::PAYLOAD_LEN_MAX {
                self.write(&payload)?;
                payload.clear();
            }
            payload.extend_from_slice(&entry_bytes);
        }
        if !payload.is_empty() {
            self.write(&payload)?;
        }
        self.file.sync_data()
    }

    fn write(&mut self, payload: &[u8]) -> io::Result<()> {
        let record = journal::record(self.end, payload);
        self.file.write_all_at(&record, self.end)?;
        self.end += record.len() as u64;
        Ok(())
    }
}

/// What gives an entry its length.
const NOTHING: Finished = Finished {
    stamp: Stamp([0; Stamp::LEN]),
    digest: volferry_protocol::digest::Digest([0; 32]),
    size: 0,
    data_bytes: 0,
};

/// Reads the entry of a file.
fn read_file(journal: &File, offset: u64) -> io::Result<Option<Finished>> {
    let mut bytes = Vec::new();
    Entry::File(NOTHING).encode(&mut bytes);
    journal.read_exact_at(&mut bytes, offset)?;
    Ok(match Entry::decode(&mut Reader::new(&bytes)) {
        Ok(Entry::File(file)) => Some(file),
        _ => None,
    })
}

fn key_of(Stamp(bytes): Stamp) -> u64 {
    let (key, _) = bytes.split_first_chunk().unwrap_or((&[0; 8], &[]));
    u64::from_be_bytes(*key)
}

impl Known {
    /// Reads all records, and gives where the last whole one ends.
    fn read(&mut self, file: &File) -> io::Result<u64> {
        let mut at = journal::HEADER_LEN as u64;
        let mut input = io::BufReader::with_capacity(1 << 20, file);
        io::copy(&mut input.by_ref().take(at), &mut io::sink())?;
        let mut record = Vec::new();
        loop {
            let mut head = [0; journal::RECORD_HEAD_LEN];
            if !read_whole(&mut input, &mut head)? {
                break;
            }
            let Some(len) = journal::payload_len(head) else {
                break;
            };
            record.resize(len + journal::CHECK_LEN, 0);
            if !read_whole(&mut input, &mut record)? {
                break;
            }
            let (payload, check) = record.split_at(len);
            if check != journal::check(at, payload) {
                break;
            }
            let payload_at = at + head.len() as u64;
            if !self.take(payload, payload_at) {
                break;
            }
            at = payload_at + record.len() as u64;
        }
        // A file that came twice counts once, as it came last.
        let order = |(key, offset): &(u64, u64)| (*key, std::cmp::Reverse(*offset));
        self.files.sort_unstable_by_key(order);
        let mut twice = Vec::new();
        self.files.dedup_by(|(key, offset), (before, _)| {
            let is_same = key == before;
            if is_same {
                twice.push(*offset);
            }
            is_same
        });
        for offset in twice {
            let size = read_file(file, offset)?.map_or(0, |file| file.size);
            self.durable_bytes = self.durable_bytes.saturating_sub(size);
        }
        let parts = self.parts.values().map(Partial::durable_bytes);
        self.durable_bytes = parts.fold(self.durable_bytes, u64::saturating_add);
        Ok(at)
    }

    /// Takes in the payload of a record. Gives false when it is none of this version.
    fn take(&mut self, payload: &[u8], payload_at: u64) -> bool {
        let mut reader = Reader::new(payload);
        while !reader.is_empty() {
            let offset = payload_at + (payload.len() - reader.remaining()) as u64;
            match Entry::decode(&mut reader) {
                Ok(Entry::Session { epoch, is_alone }) => {
                    self.epoch = self.epoch.max(epoch);
                    self.is_alone.get_or_insert(is_alone);
                    // Each session says all of it.
                    self.remembered = Remembered::default();
                }
                Ok(Entry::ShutOut(instance)) => {
                    if self.remembered.shut_out.len() < SHUT_OUT_MAX {
                        self.remembered.shut_out.push(instance);
                    }
                }
                Ok(Entry::Holder(instance)) => self.remembered.holder = Some(instance),
                Ok(Entry::File(file)) => {
                    self.files.push((key_of(file.stamp), offset));
                    self.durable_bytes = self.durable_bytes.saturating_add(file.size);
                    self.parts.remove(&file.stamp);
                }
                Ok(Entry::Part(partial)) => {
                    self.parts.insert(partial.stamp, partial);
                }
                Err(_unknown) => return false,
            }
        }
        true
    }
}

/// Fills `bytes`; false when the file ends before.
fn read_whole(input: &mut impl Read, bytes: &mut [u8]) -> io::Result<bool> {
    match input.read_exact(bytes) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use volferry_protocol::digest::Digest;
    use volferry_protocol::tree::offer::Part;

    use super::*;

    const ID: Uuid = Uuid::from_u128(7);

    fn finished(byte: u8) -> Finished {
        Finished {
            stamp: Stamp([byte; 16]),
            digest: Digest([byte; 32]),
            size: u64::from(byte),
            data_bytes: 1,
        }
    }

    fn partial(byte: u8, count: u64) -> Partial {
        Partial {
            stamp: Stamp([byte; 16]),
            file: 3,
            size: 5 << 20,
            data_bytes: 0,
            parts: vec![Part {
                start: 0,
                count,
                digest: Digest([1; 32]),
            }],
        }
    }

    fn open(dir: &tempfile::TempDir) -> TreeJournal {
        let staging = OwnedFd::from(File::open(dir.path()).unwrap());
        TreeJournal::open(&staging, ID).unwrap()
    }

    #[test]
    fn what_was_written_is_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = open(&dir);
        assert!(journal.is_empty());
        let remembered = Remembered {
            holder: Some(Uuid::from_u128(8)),
            shut_out: vec![ID],
        };
        // Of an earlier session nothing counts any more.
        let before = Remembered {
            holder: Some(Uuid::from_u128(9)),
            shut_out: vec![Uuid::from_u128(9)],
        };
        let before = Entry::of_session(3, true, &before);
        let session = Entry::of_session(4, true, &remembered);
        let files = (1..=200).map(|byte| Entry::File(finished(byte)));
        journal
            .append(before.into_iter().chain(session).chain(files))
            .unwrap();
        let parts = [partial(9, 1), partial(201, 1), partial(202, 1)];
        journal.append(parts.into_iter().map(Entry::Part)).unwrap();
        journal
            .append(
                [
                    Entry::Part(partial(201, 2)),
                    Entry::File(finished(202)),
                    Entry::File(finished(7)), // once more
                ]
                .into_iter(),
            )
            .unwrap();
        let journal = open(&dir);
        assert_eq!((journal.epoch(), journal.is_alone()), (4, Some(true)));
        for byte in (1..=200).chain([202]) {
            let found = journal.find(Stamp([byte; 16])).unwrap();
            assert_eq!(found, Some(finished(byte)));
        }
        assert_eq!(journal.find(Stamp([201; 16])).unwrap(), None);
        assert_eq!(journal.part(Stamp([201; 16])), Some(&partial(201, 2)));
        assert_eq!(journal.part(Stamp([202; 16])), None, "it is whole by now");
        assert_eq!(journal.remembered(), &remembered);
        let sizes: u64 = (1..=200).sum::<u64>() + 202;
        assert_eq!(journal.durable_bytes(), sizes + (2 << 20) + (1 << 20));
    }

    /// Cut at every byte, and broken at every byte: what is before stays, what is behind is gone, and
    /// the journal goes on.
    #[test]
    fn a_torn_journal_is_cut() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = open(&dir);
        journal
            .append([Entry::File(finished(1))].into_iter())
            .unwrap();
        let first = fs::read(&path).unwrap().len();
        journal
            .append([Entry::File(finished(2))].into_iter())
            .unwrap();
        let whole = fs::read(&path).unwrap();
        for at in 0..whole.len() {
            let mut broken = whole.clone();
            broken[at] ^= 1;
            for bytes in [&whole[..at], &broken] {
                fs::write(&path, bytes).unwrap();
                let mut journal = open(&dir);
                let has = |journal: &TreeJournal, byte| {
                    journal.find(Stamp([byte; 16])).unwrap().is_some()
                };
                assert_eq!(has(&journal, 1), at >= first, "byte {at}");
                assert!(!has(&journal, 2), "byte {at}");
                journal
                    .append([Entry::File(finished(3))].into_iter())
                    .unwrap();
                let journal = open(&dir);
                assert_eq!((has(&journal, 1), has(&journal, 3)), (at >= first, true));
            }
        }
    }

    #[test]
    fn the_journal_of_another_clone_is_none() {
        let dir = tempfile::tempdir().unwrap();
        open(&dir)
            .append([Entry::File(finished(1))].into_iter())
            .unwrap();
        let staging = OwnedFd::from(File::open(dir.path()).unwrap());
        let other = TreeJournal::open(&staging, Uuid::from_u128(8)).unwrap();
        assert!(other.is_empty());
        assert!(open(&dir).is_empty(), "it was begun anew");
    }
}
