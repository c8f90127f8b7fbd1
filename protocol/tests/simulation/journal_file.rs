//! A journal's file at the target, with what would be read now and what a loss of power leaves.

use super::rng::Rng;

#[derive(Debug, Default)]
pub(crate) struct JournalFile {
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

impl JournalFile {
    /// Begins to add a record. Gives whether no other one is being written.
    pub(crate) fn append(&mut self, record: Vec<u8>) -> bool {
        self.writing.replace(Writing::Append(record)).is_none()
    }

    /// Begins to write another file in place of this one.
    pub(crate) fn replace(&mut self, file: Vec<u8>) -> bool {
        self.writing.replace(Writing::Replace(file)).is_none()
    }

    /// The process ends or begins anew with what is there, cut to `len`.
    pub(crate) fn cut(&mut self, len: usize) {
        self.cached.truncate(len);
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
            let is_removed = self.cached.is_empty() && rng.chance(50);
            if is_removed {
                self.durable.clear();
            } else if self.cached.starts_with(&self.durable) {
                self.cached.truncate(kept);
                self.durable.clone_from(&self.cached);
            } else {
                self.cached.clone_from(&self.durable);
            }
        }
    }

    /// It is removed; a loss of power may bring it back.
    pub(crate) fn unlink(&mut self) {
        self.writing = None;
        self.cached.clear();
    }

    /// It is removed, at once.
    pub(crate) fn lose(&mut self) {
        *self = Self::default();
    }
}
