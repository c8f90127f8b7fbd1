//! The target's disk, with what would be read now and what a loss of power leaves.

use std::collections::BTreeSet;

use crate::rng::Rng;
use crate::tag::{TORN, Tag};

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
