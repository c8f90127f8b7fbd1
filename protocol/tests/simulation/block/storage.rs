//! The target's disk and its journal, each with what would be read now and what a loss of power
//! leaves.

use std::collections::BTreeSet;

use volferry_protocol::journal::{JOURNAL_MAGIC, replay};

use super::rng::Rng;

/// The content of a chunk, by a number: 0 is zeros.
pub(crate) type Tag = u64;

/// What no source ever holds: a chunk that was written in part.
const TORN: Tag = 1 << 63;

#[derive(Debug)]
pub(crate) struct Disk {
    durable: Vec<Tag>,
    /// Written since, and not flushed.
    cached: Vec<Option<Tag>>,
    /// What the flush that runs now will make durable.
    flushing: Option<Vec<Option<Tag>>>,
    /// Chunks that went bad by themselves, and were not written since.
    rotten: BTreeSet<usize>,
    torn_count: u64,
}

impl Disk {
    pub(crate) fn new(content: Vec<Tag>) -> Self {
        Self {
            cached: vec![None; content.len()],
            durable: content,
            flushing: None,
            rotten: BTreeSet::new(),
            torn_count: 0,
        }
    }

    pub(crate) fn read(&self, index: usize) -> Tag {
        self.cached[index].unwrap_or(self.durable[index])
    }

    pub(crate) fn durable(&self) -> &[Tag] {
        &self.durable
    }

    pub(crate) fn is_rotten(&self, index: usize) -> bool {
        self.rotten.contains(&index)
    }

    pub(crate) fn write(&mut self, index: usize, tag: Tag) {
        self.cached[index] = Some(tag);
    }

    /// A write that ends with the process that asked for it.
    pub(crate) fn write_in_part(&mut self, rng: &mut Rng, index: usize, tag: Tag) {
        match rng.below(3) {
            0 => {}
            1 => self.write(index, tag),
            _ => {
                let torn = self.torn(self.read(index), tag);
                self.write(index, torn);
            }
        }
    }

    /// Some sectors of each.
    fn torn(&mut self, before: Tag, after: Tag) -> Tag {
        if before == after {
            return after;
        }
        self.torn_count += 1;
        TORN | self.torn_count
    }

    /// Gives whether no other flush runs.
    pub(crate) fn begin_flush(&mut self) -> bool {
        self.flushing.replace(self.cached.clone()).is_none()
    }

    pub(crate) fn end_flush(&mut self) {
        let flushed = self.flushing.take().expect("a flush runs");
        for (index, tag) in flushed.into_iter().enumerate() {
            let Some(tag) = tag else { continue };
            self.durable[index] = tag;
            self.rotten.remove(&index);
            if self.cached[index] == Some(tag) {
                self.cached[index] = None;
            }
        }
    }

    /// The process that asked for a flush is gone; what it wrote is where it was.
    pub(crate) fn forget_flush(&mut self) {
        self.flushing = None;
    }

    /// The power fails: of what was not flushed, any part may be there.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        self.flushing = None;
        for index in 0..self.durable.len() {
            let Some(tag) = self.cached[index].take() else {
                continue;
            };
            self.durable[index] = match rng.below(4) {
                0 | 1 => self.durable[index],
                2 => tag,
                _ => self.torn(self.durable[index], tag),
            };
        }
    }

    /// A chunk that was flushed goes bad.
    pub(crate) fn rot(&mut self, index: usize) {
        self.torn_count += 1;
        self.durable[index] = TORN | self.torn_count;
        self.cached[index] = None;
        if let Some(flushing) = &mut self.flushing {
            flushing[index] = None;
        }
        self.rotten.insert(index);
    }
}

/// Bytes after which the journal is written anew: small, so that it happens.
const REWRITE_LEN: usize = 2048;

#[derive(Debug, Default)]
pub(crate) struct Journal {
    pub(crate) durable: Vec<u8>,
    pub(crate) cached: Vec<u8>,
    /// What is on its way to the cache: a record at the end, or a file in place of this one.
    writing: Option<Writing>,
}

#[derive(Debug)]
enum Writing {
    Append(Vec<u8>),
    /// Another file, which is flushed and renamed: there is the one or the other.
    Replace(Vec<u8>),
}

impl Journal {
    /// Gives whether no other record is being written.
    pub(crate) fn begin(&mut self, record: Vec<u8>) -> bool {
        let is_whole = replay(&self.cached).is_ok_and(|replay| replay.torn_len == 0);
        let writing = if is_whole && self.cached.len() < REWRITE_LEN {
            Writing::Append(record)
        } else {
            Writing::Replace([&JOURNAL_MAGIC[..], &record].concat())
        };
        self.writing.replace(writing).is_none()
    }

    /// The record is written and flushed.
    pub(crate) fn end(&mut self) {
        match self.writing.take().expect("a record is being written") {
            Writing::Append(record) => self.cached.extend(record),
            Writing::Replace(file) => self.cached = file,
        }
        self.durable.clone_from(&self.cached);
    }

    /// The process ends, and the power may fail.
    pub(crate) fn crash(&mut self, rng: &mut Rng, has_power: bool) {
        match self.writing.take() {
            Some(Writing::Append(mut record)) => {
                record.truncate(rng.index(record.len() + 1));
                if rng.chance(20) {
                    // The file grew, and the bytes didn't come.
                    let from = rng.index(record.len() + 1);
                    record[from..].fill(0);
                }
                self.cached.extend(record);
            }
            Some(Writing::Replace(file)) if rng.chance(50) => {
                self.cached.clone_from(&file);
                self.durable = file;
            }
            Some(Writing::Replace(_)) | None => {}
        }
        if !has_power {
            let kept = self.cached.len().saturating_sub(self.durable.len());
            let kept = self.durable.len() + rng.index(kept + 1);
            if self.cached.starts_with(&self.durable) {
                self.cached.truncate(kept);
                self.durable.clone_from(&self.cached);
            } else {
                self.cached.clone_from(&self.durable);
            }
        }
    }

    pub(crate) fn lose(&mut self) {
        *self = Self::default();
    }
}
