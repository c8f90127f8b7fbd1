//! What has to hold of a tree after every step.

use std::collections::{BTreeMap, HashMap, HashSet};

use volferry_protocol::receipt::Receipt;
use volferry_protocol::tree::file_digest::PIECE_LEN;
use volferry_protocol::tree::offer::Stamp;

use super::disk::{At, Disk, Held, Inode};
use super::files::{FileState, Files, Name};
use super::restore::{Known, Reuse};
use crate::fencing::{Checked, Fencing, check};
use crate::journal_file::JournalFile;
use crate::tag::Tag;

/// What a session's source has read, by name.
pub(crate) type Read = BTreeMap<Name, Vec<Tag>>;

#[derive(Debug)]
pub(crate) struct Checker {
    pub(crate) fencing: Fencing,
    /// Every state that a source's file was in.
    states: HashMap<Stamp, (Name, FileState)>,
    /// What the journal says, as it would be read now and after a loss of power.
    known: [Known; 2],
    /// Bytes that a source was told to be durable.
    told_bytes: u64,
    /// Small files, and pieces of large ones, that the session which runs has found to be durable.
    kept: HashSet<(Stamp, u64)>,
    /// What each session's source has read.
    reads: HashMap<u64, Read>,
    /// The receipt that counts.
    proven: Option<Proven>,
}

/// A receipt, and the session that brought it about.
#[derive(Debug)]
struct Proven {
    receipt: Receipt,
    epoch: u64,
}

impl Checker {
    pub(crate) fn new(files: &Files) -> Self {
        let mut checker = Self {
            fencing: Fencing::default(),
            states: HashMap::new(),
            known: Default::default(),
            told_bytes: 0,
            kept: HashSet::new(),
            reads: HashMap::new(),
            proven: None,
        };
        checker.source_changed(files);
        checker
    }

    pub(crate) fn source_changed(&mut self, files: &Files) {
        for (name, file) in files {
            self.states.insert(file.stamp(*name), (*name, file.clone()));
        }
    }

    /// Whose stamps these are.
    pub(crate) fn names(&self) -> BTreeMap<Stamp, Name> {
        let names = self.states.iter();
        names.map(|(stamp, (name, _))| (*stamp, *name)).collect()
    }

    /// What was told holds no longer: the target lost it, or found it to be wrong.
    pub(crate) fn forget(&mut self) {
        self.told_bytes = 0;
    }

    /// The target agent runs anew, and what there is of a journal or a proof knows of sessions up to
    /// `epoch`.
    pub(crate) fn target_restarted(&mut self, has_journal: bool, has_proof: bool, epoch: u64) {
        let is_all_gone = !has_journal && !has_proof;
        self.fencing.target_restarted(is_all_gone, epoch);
        if !has_journal {
            self.forget();
        }
        self.proven.take_if(|_| !has_proof);
    }

    /// A session is about to note its receipt, and to conclude.
    pub(crate) fn proves(&mut self, receipt: &Receipt, epoch: u64) {
        let receipt = receipt.clone();
        self.proven = Some(Proven { receipt, epoch });
    }

    /// A session is about to write. What was proven is not written again, unless it is to be compared.
    pub(crate) fn begins_to_write(&mut self, compares: bool) -> Checked {
        let proven = self.proven.take();
        check(proven.is_none() || compares, || {
            "what was proven is written again".to_owned()
        })
    }

    /// A source is told a receipt, perhaps again.
    pub(crate) fn told_receipt(&self, receipt: &Receipt, disk: &Disk) -> Checked {
        let proven = self.proven.as_ref();
        let proven = proven.filter(|proven| proven.receipt == *receipt);
        let Some(proven) = proven else {
            return check(false, || "a receipt of nothing is told".to_owned());
        };
        self.check_held(proven.epoch, disk, true)
    }

    /// A session is about to welcome its source.
    pub(crate) fn prepared(&mut self, disk: &Disk, reuse: Reuse) {
        self.kept.clear();
        // Where all is compared, nothing is known before.
        if reuse == Reuse::Content {
            return;
        }
        for stamp in self.known[1].files.keys() {
            let (name, file) = &self.states[stamp];
            if disk.cached.like(*name, file).is_some() {
                let pieces = 0..file.pieces.len() as u64;
                self.kept.extend(pieces.map(|index| (*stamp, index)));
            }
        }
        for (stamp, part) in &self.known[1].parts {
            if disk.cached.at(At::Staged(part.file)).is_some() {
                let pieces = part
                    .parts
                    .iter()
                    .flat_map(|part| part.start..part.start + part.count);
                self.kept.extend(pieces.map(|index| (*stamp, index)));
            }
        }
    }

    /// A piece of a file, or a small one as a whole, arrives that is to be written.
    pub(crate) fn arrives(&self, stamp: Stamp, index: u64) -> Checked {
        check(!self.kept.contains(&(stamp, index)), || {
            format!("piece {index} of {stamp:?} comes again, and was durable")
        })
    }

    /// A source is told of progress.
    pub(crate) fn told(&mut self, bytes: u64) -> Checked {
        let before = self.told_bytes;
        check(bytes >= before, || {
            format!("{bytes} bytes are told where {before} were before")
        })?;
        let durable = self.known[1].durable_bytes();
        check(bytes <= durable, || {
            format!("{bytes} bytes are told, and durable are {durable}")
        })?;
        self.told_bytes = bytes;
        Ok(())
    }

    pub(crate) fn journal_changed(&mut self, journal: &JournalFile) {
        self.known = [&journal.cached, &journal.durable].map(|bytes| Known::read(bytes));
    }

    /// Durable implies right: what the journal says of a file that the source has is there, where
    /// it looks as if it were.
    pub(crate) fn check_disk(&self, disk: &Disk, files: &Files) -> Checked {
        for (known, held) in self.known.iter().zip([&disk.cached, &disk.durable]) {
            for (name, file) in files {
                let stamp = file.stamp(*name);
                if known.files.contains_key(&stamp)
                    && let Some((inode, _)) = held.like(*name, file)
                {
                    check_pieces(disk, held, inode, file, 0..file.pieces.len() as u64)?;
                }
                let Some(part) = known.parts.get(&stamp) else {
                    continue;
                };
                if let Some((inode, _)) = held.at(At::Staged(part.file)) {
                    for part in &part.parts {
                        check_pieces(disk, held, inode, file, part.start..part.start + part.count)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// The source of a session begins to read. One that lost its journal counts anew.
    pub(crate) fn walks(&mut self, epoch: u64) {
        self.reads.insert(epoch, Read::new());
    }

    /// What the source of a session has read of a file.
    pub(crate) fn reads(&mut self, epoch: u64, name: Name, pieces: Vec<Tag>) {
        self.reads.entry(epoch).or_default().insert(name, pieces);
    }

    /// A receipt is the proof.
    pub(crate) fn check_receipt(
        &self,
        receipt: &Receipt,
        epoch: u64,
        disk: &Disk,
        is_exact: bool,
        trusts_times: bool,
    ) -> Checked {
        self.check_held(epoch, disk, trusts_times)?;
        let nothing = Read::new();
        let read = self.reads.get(&epoch).unwrap_or(&nothing);
        let count = disk.durable.names.len();
        check(!is_exact || count == read.len(), || {
            format!(
                "there is a receipt of {} files, and {count} are there",
                read.len()
            )
        })?;
        let come = receipt.sent_bytes + receipt.resumed_bytes + receipt.matched_bytes;
        check(come >= receipt.data_bytes, || {
            format!("{come} of {} bytes were sent or there", receipt.data_bytes)
        })
    }

    /// There is a receipt: the target holds what the source of that session has read, but for what went
    /// bad by itself where nobody looks.
    fn check_held(&self, epoch: u64, disk: &Disk, may_rot: bool) -> Checked {
        let nothing = Read::new();
        let read = self.reads.get(&epoch).unwrap_or(&nothing);
        check(disk.durable == disk.cached, || {
            "there is a receipt, and something is not durable".to_owned()
        })?;
        for (name, pieces) in read {
            let held = disk.durable.at(At::Place(*name));
            let is_same = held.is_some_and(|(inode, held)| {
                let is_right = |(index, tag): (usize, &Tag)| {
                    pieces.get(index) == Some(tag) || may_rot && disk.is_rotten(inode, index, *tag)
                };
                held.pieces.len() == pieces.len() && held.pieces.iter().enumerate().all(is_right)
            });
            check(is_same, || {
                format!("there is a receipt, and file {name} is {held:x?}, and was {pieces:x?}")
            })?;
        }
        Ok(())
    }
}

fn check_pieces(
    disk: &Disk,
    held: &Held,
    inode: Inode,
    file: &FileState,
    pieces: std::ops::Range<u64>,
) -> Checked {
    let content = held.inode(inode).map(|content| &content.pieces[..]);
    for index in pieces {
        let index = index as usize;
        let found = content.and_then(|content| content.get(index)).copied();
        let is_right = found == file.pieces.get(index).copied()
            || found.is_some_and(|tag| disk.is_rotten(inode, index, tag));
        check(is_right, || {
            let place = index as u64 * u64::from(PIECE_LEN);
            format!("byte {place} of {file:x?} was journaled as durable, and holds {found:x?}")
        })?;
    }
    Ok(())
}
