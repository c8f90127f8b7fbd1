//! What the target makes of a tree in a session, as the storage of the real one does: what it holds
//! of a file, what it goes on from, what it puts in its place.

use std::collections::btree_map::Entry as Slot;
use std::collections::{BTreeMap, BTreeSet};

use volferry_protocol::codec::Reader;
use volferry_protocol::digest::Digest;
use volferry_protocol::failure::FailureCode;
use volferry_protocol::session::fence::Remembered;
use volferry_protocol::tree::file_digest::{FileDigest, PIECE_LEN, PieceDigest, piece_count};
use volferry_protocol::tree::journal::{self, Entry, Finished, Partial};
use volferry_protocol::tree::offer::{Holding, Pieces, Stamp, Voucher, VoucherKey};
use volferry_protocol::tree::session::TreeSummary;
use volferry_protocol::tree::set_digest::TreeDigest;

use super::disk::{At, Disk, Inode};
use super::files::{self, FileState, Name};
use crate::realm::{Broken, CLONE};
use crate::tag::Tag;

/// What may be kept of what is in the target directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reuse {
    Journal,
    Times,
    Content,
}

/// What travels on data connections.
#[derive(Clone, Debug)]
pub(crate) enum Frame {
    Offers(u64, Vec<(Name, FileState)>),
    Small(Name, FileState),
    Keep {
        name: Name,
        version: u64,
        size: u64,
        digest: Digest,
        data_bytes: u64,
        voucher: Voucher,
    },
    Begin {
        file: u64,
        name: Name,
        state: FileState,
    },
    Piece {
        file: u64,
        index: u64,
        tag: Tag,
    },
    Probe {
        file: u64,
        index: u64,
        count: u32,
    },
    Same {
        file: u64,
        index: u64,
        count: u32,
    },
    End {
        file: u64,
        name: Name,
        version: u64,
        size: u64,
        digest: Digest,
    },
    Forget(u64),
}

/// What a frame leads to.
#[derive(Debug)]
pub(crate) enum Applied {
    Done,
    Answer(u64, Vec<Holding>),
    Pieces(Pieces),
}

/// What a journal says.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    pub(crate) epoch: u64,
    pub(crate) is_alone: Option<bool>,
    pub(crate) remembered: Remembered,
    pub(crate) files: BTreeMap<Stamp, Finished>,
    pub(crate) parts: BTreeMap<Stamp, Partial>,
    /// Where the last whole record ends.
    pub(crate) len: usize,
}

impl Known {
    /// What a journal of these bytes says; nothing when it is none.
    pub(crate) fn read(bytes: &[u8]) -> Self {
        let mut known = Self::default();
        if !bytes.starts_with(&journal::header(CLONE)) {
            return known;
        }
        known.len = journal::HEADER_LEN;
        while let Some((payload, end)) = record_at(bytes, known.len) {
            let mut reader = Reader::new(payload);
            while !reader.is_empty() {
                match Entry::decode(&mut reader).expect("an entry of this version") {
                    Entry::Session { epoch, is_alone } => {
                        known.epoch = known.epoch.max(epoch);
                        known.is_alone.get_or_insert(is_alone);
                        known.remembered = Remembered::default();
                    }
                    Entry::ShutOut(instance) => known.remembered.shut_out.push(instance),
                    Entry::Holder(instance) => known.remembered.holder = Some(instance),
                    Entry::File(file) => {
                        known.parts.remove(&file.stamp);
                        known.files.insert(file.stamp, file);
                    }
                    Entry::Part(part) => drop(known.parts.insert(part.stamp, part)),
                }
            }
            known.len = end;
        }
        known
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.files.is_empty() && self.parts.is_empty()
    }

    /// Bytes of the file with this stamp that are durable.
    fn bytes_of(&self, stamp: Stamp) -> u64 {
        let file = self.files.get(&stamp).map(|file| file.size);
        let part = self.parts.get(&stamp).map(Partial::durable_bytes);
        file.max(part).unwrap_or(0)
    }

    pub(crate) fn durable_bytes(&self) -> u64 {
        let files: u64 = self.files.values().map(|file| file.size).sum();
        let parts: u64 = self.parts.values().map(Partial::durable_bytes).sum();
        files + parts
    }
}

/// The payload of the record at `at`, and where that ends.
fn record_at(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let head = bytes.get(at..)?.first_chunk()?;
    let start = at + head.len();
    let end = start + journal::payload_len(*head)?;
    let payload = bytes.get(start..end)?;
    let check = bytes.get(end..end + journal::CHECK_LEN)?;
    let is_whole = check == journal::check(at as u64, payload);
    is_whole.then_some((payload, end + journal::CHECK_LEN))
}

/// The record with these entries, at the end of a journal of `len` bytes.
pub(crate) fn record(len: usize, entries: &[Entry]) -> Vec<u8> {
    let mut payload = Vec::new();
    entries.iter().for_each(|entry| entry.encode(&mut payload));
    journal::record(len as u64, &payload)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Empty,
    Part,
    Held,
}

/// A file that comes in pieces.
#[derive(Debug)]
struct Large {
    inode: Inode,
    place: Option<Name>,
    origin: Origin,
    begun: Option<(Stamp, u64)>,
    digest: FileDigest,
    data_bytes: u64,
    noted_bytes: u64,
    resumed_bytes: u64,
    matched_bytes: u64,
    kept_bytes: u64,
    probed: BTreeMap<u64, (PieceDigest, u64)>,
    end: Option<(Name, u64, u64, Digest)>,
}

impl Large {
    fn new(inode: Inode, place: Option<Name>, origin: Origin) -> Self {
        Self {
            inode,
            place,
            origin,
            begun: None,
            digest: FileDigest::default(),
            data_bytes: 0,
            noted_bytes: 0,
            resumed_bytes: 0,
            matched_bytes: 0,
            kept_bytes: 0,
            probed: BTreeMap::new(),
            end: None,
        }
    }
}

/// A tree that is being made.
#[derive(Debug)]
pub(crate) struct Restore {
    pub(crate) epoch: u64,
    pub(crate) sweeps: bool,
    pub(crate) reuse: Reuse,
    pub(crate) repairs: bool,
    pub(crate) known: Known,
    pub(crate) key: VoucherKey,
    pub(crate) broken: Broken,
    /// Whose stamps these are, for one that is broken.
    known_names: BTreeMap<Stamp, Name>,
    finished: Vec<(Finished, u64)>,
    large: BTreeMap<u64, Large>,
    forgotten: BTreeSet<u64>,
    begun_here: u64,
    came: BTreeSet<Name>,
    digest: TreeDigest,
    pub(crate) data_bytes: u64,
    kept_bytes: u64,
    resumed_bytes: u64,
    matched_bytes: u64,
    pub(crate) durable_bytes: u64,
}

type Refused = (FailureCode, String);

fn refuse<T>(text: String) -> Result<T, Refused> {
    Err((FailureCode::Protocol, text))
}

impl Restore {
    pub(crate) fn new(
        epoch: u64,
        sweeps: bool,
        reuse: Reuse,
        repairs: bool,
        known: Known,
        broken: Broken,
        known_names: BTreeMap<Stamp, Name>,
    ) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&epoch.to_be_bytes());
        Self {
            epoch,
            sweeps,
            reuse,
            repairs,
            key: VoucherKey::new(key),
            broken,
            known_names,
            finished: vec![],
            large: BTreeMap::new(),
            forgotten: BTreeSet::new(),
            begun_here: 0,
            came: BTreeSet::new(),
            digest: TreeDigest::default(),
            data_bytes: 0,
            kept_bytes: 0,
            resumed_bytes: 0,
            matched_bytes: 0,
            durable_bytes: known.durable_bytes(),
            known,
        }
    }

    pub(crate) fn offers(&self) -> bool {
        self.reuse != Reuse::Journal || !self.known.is_empty()
    }

    pub(crate) fn compares(&self) -> bool {
        self.offers() && self.reuse == Reuse::Content
    }

    /// What a piece would be written to, should the process end now.
    pub(crate) fn inode(&self, file: u64) -> Option<Inode> {
        self.large.get(&file).map(|file| file.inode)
    }

    /// The state of a file that comes under this number, once that is known.
    pub(crate) fn stamp(&self, file: u64) -> Option<Stamp> {
        let (stamp, _) = self.large.get(&file)?.begun?;
        Some(stamp)
    }

    pub(crate) fn apply(&mut self, disk: &mut Disk, frame: Frame) -> Result<Applied, Refused> {
        match frame {
            Frame::Offers(pack, offers) => {
                let offers = offers.into_iter();
                let holdings = offers.map(|(name, file)| self.holding(disk, name, &file));
                let holdings = holdings.collect::<Result<_, _>>()?;
                return Ok(Applied::Answer(pack, holdings));
            }
            Frame::Small(name, file) => self.make_small(disk, name, &file),
            Frame::Keep {
                name,
                version,
                size,
                digest,
                data_bytes,
                voucher,
            } => self.keep(disk, name, version, size, digest, data_bytes, voucher)?,
            Frame::Begin { file, name, state } => {
                let stamp = state.stamp(name);
                let size = state.size();
                let noted_bytes = self.known.bytes_of(stamp);
                if let Some(large) = self.large(disk, file)? {
                    if large.begun.replace((stamp, size)).is_some() {
                        return refuse(format!("file {file} begins twice"));
                    }
                    large.noted_bytes = noted_bytes;
                    self.place(disk, file)?;
                }
            }
            Frame::Piece { file, index, tag } => {
                if let Some(large) = self.large(disk, file)? {
                    let inode = large.inode;
                    if large
                        .digest
                        .insert(index, files::piece(index, tag))
                        .is_err()
                    {
                        return refuse(format!("piece {index} of {file} came twice"));
                    }
                    disk.write(inode, index as usize, tag);
                    let data_len = if tag == 0 { 0 } else { u64::from(PIECE_LEN) };
                    large.data_bytes += data_len;
                    self.data_bytes += data_len;
                    self.place(disk, file)?;
                }
            }
            Frame::Probe { file, index, count } => {
                let pieces = self.probe(disk, file, index, count)?;
                return Ok(Applied::Pieces(pieces));
            }
            Frame::Same { file, index, count } => {
                if self.forgotten.contains(&file) {
                    return Ok(Applied::Done);
                }
                let large = self.held(file)?;
                for at in index..index + u64::from(count) {
                    let Some((piece, data_bytes)) = large.probed.remove(&at) else {
                        return refuse(format!("piece {at} of {file} was not asked for"));
                    };
                    large.matched_bytes += data_bytes;
                    large.kept_bytes += data_bytes;
                    large.data_bytes += data_bytes;
                    if large.digest.insert(at, piece).is_err() {
                        return refuse(format!("piece {at} of {file} came twice"));
                    }
                }
                self.place(disk, file)?;
            }
            Frame::End {
                file,
                name,
                version,
                size,
                digest,
            } => {
                self.came.insert(name);
                let Some(large) = self.large(disk, file)? else {
                    return refuse(format!("file {file} was given up, and ends"));
                };
                large.end = Some((name, version, size, digest));
                self.place(disk, file)?;
            }
            Frame::Forget(file) => {
                self.forgotten.insert(file);
                if self
                    .large
                    .remove(&file)
                    .is_some_and(|large| large.place.is_none())
                {
                    disk.remove(At::Staged(file));
                }
            }
        }
        Ok(Applied::Done)
    }

    fn holding(&mut self, disk: &Disk, name: Name, file: &FileState) -> Result<Holding, Refused> {
        let stamp = file.stamp(name);
        if let Some(holding) = self.part(disk, stamp, name, file)? {
            return Ok(holding);
        }
        let journaled = match self.reuse {
            Reuse::Content => None,
            _ => self.known.files.get(&stamp).copied(),
        };
        let was_placed = self.known.parts.contains_key(&stamp);
        if journaled.is_none() && self.reuse == Reuse::Journal && !was_placed {
            return Ok(Holding::Nothing);
        }
        let Some((inode, content)) = disk.cached.at(At::Place(name)) else {
            return Ok(Holding::Nothing);
        };
        let has_size = files::size_of(content.pieces.len()) == file.size();
        let looks_same = has_size && content.mtime == file.version;
        if let Some(finished) = journaled.filter(|_| looks_same) {
            return Ok(self.all(
                name,
                file.size(),
                finished.digest,
                finished.data_bytes,
                true,
            ));
        }
        let is_large = file.is_large();
        if was_placed && looks_same {
            return self.other(inode, name);
        }
        match self.reuse {
            Reuse::Times if looks_same => {}
            Reuse::Content if has_size && !is_large => {}
            Reuse::Times | Reuse::Content if is_large => return self.other(inode, name),
            _ => return Ok(Holding::Nothing),
        }
        let held = FileState {
            version: content.mtime,
            pieces: content.pieces.clone(),
        };
        Ok(self.all(name, file.size(), held.digest(), held.data_bytes(), false))
    }

    fn all(
        &self,
        name: Name,
        size: u64,
        digest: Digest,
        data_bytes: u64,
        is_journaled: bool,
    ) -> Holding {
        let voucher = self
            .key
            .voucher(&[name], size, digest, data_bytes, is_journaled);
        Holding::All {
            digest,
            data_bytes,
            voucher,
        }
    }

    fn part(
        &mut self,
        disk: &Disk,
        stamp: Stamp,
        name: Name,
        file: &FileState,
    ) -> Result<Option<Holding>, Refused> {
        let mut parts = self.known.parts.iter();
        let known = match self.broken {
            // Any state of a file of that name will do.
            Broken::Stamp => parts
                .find(|(stamp, _)| self.known_names.get(*stamp) == Some(&name))
                .map(|(_, part)| part),
            _ => self.known.parts.get(&stamp),
        };
        let Some(part) = known.filter(|part| part.size == file.size()).cloned() else {
            return Ok(None);
        };
        let Some((inode, _)) = disk.cached.at(At::Staged(part.file)) else {
            return Ok(None);
        };
        if self.reuse == Reuse::Content {
            self.register(part.file, Large::new(inode, None, Origin::Held))?;
            return Ok(Some(Holding::Other { file: part.file }));
        }
        let Some(digest) = FileDigest::of_parts(&part.parts) else {
            return Ok(None);
        };
        let large = Large {
            digest,
            data_bytes: part.data_bytes,
            resumed_bytes: part.durable_bytes(),
            kept_bytes: part.data_bytes,
            ..Large::new(inode, None, Origin::Part)
        };
        self.register(part.file, large)?;
        Ok(Some(Holding::Part {
            file: part.file,
            parts: part.parts,
            data_bytes: part.data_bytes,
        }))
    }

    fn other(&mut self, inode: Inode, name: Name) -> Result<Holding, Refused> {
        self.begun_here += 1;
        let file = 1 << 63 | self.epoch << 32 | self.begun_here;
        self.register(file, Large::new(inode, Some(name), Origin::Held))?;
        Ok(Holding::Other { file })
    }

    fn register(&mut self, file: u64, large: Large) -> Result<(), Refused> {
        match self.large.insert(file, large) {
            None => Ok(()),
            Some(_) => refuse(format!("file {file} is there")),
        }
    }

    /// The file that comes under this number; `None` for one that was given up.
    fn large(&mut self, disk: &mut Disk, file: u64) -> Result<Option<&mut Large>, Refused> {
        if self.forgotten.contains(&file) {
            return Ok(None);
        }
        let large = match self.large.entry(file) {
            Slot::Occupied(large) => large.into_mut(),
            Slot::Vacant(_) if disk.cached.at(At::Staged(file)).is_some() => {
                return refuse(format!("file {file} is there"));
            }
            Slot::Vacant(slot) => {
                let inode = disk.create(At::Staged(file), 0);
                slot.insert(Large::new(inode, None, Origin::Empty))
            }
        };
        Ok(Some(large))
    }

    fn held(&mut self, file: u64) -> Result<&mut Large, Refused> {
        let large = self.large.get_mut(&file);
        match large.filter(|large| large.origin == Origin::Held) {
            Some(large) => Ok(large),
            None => refuse(format!("file {file} is not held")),
        }
    }

    fn probe(&mut self, disk: &Disk, file: u64, index: u64, count: u32) -> Result<Pieces, Refused> {
        let large = self.held(file)?;
        let held = disk.cached.inode(large.inode);
        let mut digests = vec![];
        for at in index..index + u64::from(count) {
            let Some(tag) = held.and_then(|held| held.pieces.get(at as usize)) else {
                break;
            };
            let piece = files::piece(at, *tag);
            let data_len = if *tag == 0 { 0 } else { u64::from(PIECE_LEN) };
            digests.push(piece.chaining_value);
            large.probed.insert(at, (piece, data_len));
        }
        Ok(Pieces {
            file,
            index,
            digests,
        })
    }

    fn make_small(&mut self, disk: &mut Disk, name: Name, file: &FileState) {
        self.came.insert(name);
        let inode = disk.create(At::Place(name), 1);
        disk.write(inode, 0, file.pieces[0]);
        disk.set_time(inode, file.version);
        self.data_bytes += file.data_bytes();
        files::add(
            &mut self.digest,
            name,
            file.size(),
            file.digest(),
            file.version,
        );
        let finished = Finished {
            stamp: file.stamp(name),
            digest: file.digest(),
            size: file.size(),
            data_bytes: file.data_bytes(),
        };
        let noted_bytes = self.known.bytes_of(finished.stamp);
        self.note_finished(finished, noted_bytes);
    }

    fn note_finished(&mut self, finished: Finished, noted_bytes: u64) {
        let news = finished.size.saturating_sub(noted_bytes);
        self.finished.push((finished, news));
    }

    fn keep(
        &mut self,
        disk: &mut Disk,
        name: Name,
        version: u64,
        size: u64,
        digest: Digest,
        data_bytes: u64,
        voucher: Voucher,
    ) -> Result<(), Refused> {
        self.came.insert(name);
        let made = |is_journaled| {
            self.key
                .voucher(&[name], size, digest, data_bytes, is_journaled)
        };
        let is_journaled = voucher == made(true);
        if !is_journaled && voucher != made(false) {
            return refuse(format!("{name} was not said to be held"));
        }
        let held = disk.cached.at(At::Place(name));
        let held = held.filter(|(_, content)| files::size_of(content.pieces.len()) == size);
        let Some((inode, _)) = held else {
            return refuse(format!("{name} is not held"));
        };
        disk.set_time(inode, version);
        files::add(&mut self.digest, name, size, digest, version);
        self.kept_bytes += data_bytes;
        match is_journaled {
            true => self.resumed_bytes += size,
            false => self.matched_bytes += data_bytes,
        }
        Ok(())
    }

    /// Puts a large file into its place when all of it has come.
    fn place(&mut self, disk: &mut Disk, file: u64) -> Result<(), Refused> {
        let Some(large) = self.large.get_mut(&file) else {
            return Ok(());
        };
        let (Some((name, version, size, digest)), Some((stamp, begun_size))) =
            (large.end, large.begun)
        else {
            return Ok(());
        };
        if large.digest.pieces() < piece_count(size) {
            return Ok(());
        }
        if begun_size != size || large.place.is_some_and(|place| place != name) {
            return refuse(format!("file {file} ends as another"));
        }
        if large.digest.finish(size) != Some(digest) {
            return Err((FailureCode::Integrity, format!("file {file} is another")));
        }
        let Some(large) = self.large.remove(&file) else {
            return Ok(());
        };
        disk.resize(large.inode, piece_count(size) as usize);
        disk.set_time(large.inode, version);
        if large.place.is_none() {
            disk.rename(At::Staged(file), At::Place(name));
        }
        files::add(&mut self.digest, name, size, digest, version);
        self.resumed_bytes += large.resumed_bytes;
        self.matched_bytes += large.matched_bytes;
        self.kept_bytes += large.kept_bytes;
        let finished = Finished {
            stamp,
            digest,
            size,
            data_bytes: large.data_bytes,
        };
        self.note_finished(finished, large.noted_bytes);
        Ok(())
    }

    /// What was finished since the last time, and how many bytes of it are news to the journal: to be
    /// taken before the flush that makes it durable.
    pub(crate) fn finished(&mut self) -> (Vec<Entry>, u64) {
        let mut entries = vec![];
        let mut all_news = 0;
        for (finished, news) in std::mem::take(&mut self.finished) {
            entries.push(Entry::File(finished));
            all_news += news;
        }
        for (number, large) in &mut self.large {
            let Some((stamp, size)) = large.begun.filter(|_| large.place.is_none()) else {
                continue;
            };
            let partial = Partial {
                stamp,
                file: *number,
                size,
                data_bytes: large.data_bytes,
                parts: large.digest.parts(),
            };
            let news = partial.durable_bytes().saturating_sub(large.noted_bytes);
            large.noted_bytes += news;
            all_news += news;
            if news > 0 {
                entries.push(Entry::Part(partial));
            }
        }
        (entries, all_news)
    }

    /// Removes what the source doesn't have; gives what was made, or why it is not complete.
    pub(crate) fn complete(&self, disk: &mut Disk) -> Result<TreeSummary, Refused> {
        if let Some(file) = self.large.keys().next() {
            return refuse(format!("file {file} never came to its end"));
        }
        if self.sweeps {
            let places: Vec<_> = disk.cached.places().collect();
            for name in places.into_iter().filter(|name| !self.came.contains(name)) {
                disk.remove(At::Place(name));
            }
        }
        Ok(TreeSummary {
            digest: self.digest.finish(Default::default()),
            counts: self.digest.counts,
            fidelity: Default::default(),
            changed: 0,
            data_bytes: self.data_bytes + self.kept_bytes,
            resumed_bytes: self.resumed_bytes,
            matched_bytes: self.matched_bytes,
            repaired_bytes: if self.repairs { self.data_bytes } else { 0 },
        })
    }
}

/// The digest of the tree as the storage has it.
pub(crate) fn read_back(disk: &Disk) -> Digest {
    let mut digest = TreeDigest::default();
    for name in disk.durable.places() {
        if let Some((_, content)) = disk.durable.at(At::Place(name)) {
            let size = files::size_of(content.pieces.len());
            let content_digest = files::digest_of(&content.pieces);
            files::add(&mut digest, name, size, content_digest, content.mtime);
        }
    }
    digest.finish(Default::default())
}
