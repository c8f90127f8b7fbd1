//! The target's filesystem, as it would be read now and after a loss of power.

use std::collections::{BTreeMap, BTreeSet};

use volferry_protocol::digest::Digest;

use super::files;
use crate::rng::Rng;
use crate::tag::{TORN, Tag};

/// Where a file is: in its place, or in the staging directory by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum At {
    Place(files::Name),
    Staged(u64),
}

pub(crate) type Inode = u64;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Content {
    pub(crate) pieces: Vec<Tag>,
    pub(crate) mtime: u64,
}

/// What a filesystem holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Held {
    pub(crate) names: BTreeMap<At, Inode>,
    inodes: BTreeMap<Inode, Content>,
}

impl Held {
    pub(crate) fn at(&self, at: At) -> Option<(Inode, &Content)> {
        let inode = *self.names.get(&at)?;
        Some((inode, self.inodes.get(&inode)?))
    }

    pub(crate) fn inode(&self, inode: Inode) -> Option<&Content> {
        self.inodes.get(&inode)
    }

    fn tag(&self, inode: Inode, index: usize) -> Option<Tag> {
        self.inode(inode)?.pieces.get(index).copied()
    }

    /// The file in its place with the size and time that `file` has.
    pub(crate) fn like(
        &self,
        name: files::Name,
        file: &files::FileState,
    ) -> Option<(Inode, &Content)> {
        let found = self.at(At::Place(name));
        found.filter(|(_, content)| {
            content.mtime == file.version && content.pieces.len() == file.pieces.len()
        })
    }

    pub(crate) fn places(&self) -> impl Iterator<Item = files::Name> {
        self.names.keys().filter_map(|at| match at {
            At::Place(name) => Some(*name),
            At::Staged(_) => None,
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Disk {
    pub(crate) durable: Held,
    /// With what was not flushed.
    pub(crate) cached: Held,
    /// What the flush that runs now will make durable.
    flushing: Option<Held>,
    /// Pieces that went bad by themselves, and were not written since.
    rotten: BTreeSet<(Inode, usize)>,
    count: u64,
}

impl Disk {
    pub(crate) fn new(files: &files::Files) -> Self {
        let mut disk = Self::default();
        for (name, file) in files {
            let inode = disk.create(At::Place(*name), file.pieces.len());
            let content = disk.content(inode);
            content.pieces.clone_from(&file.pieces);
            content.mtime = file.version;
        }
        disk.durable.clone_from(&disk.cached);
        disk
    }

    fn count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    fn content(&mut self, inode: Inode) -> &mut Content {
        self.cached.inodes.entry(inode).or_default()
    }

    /// Makes a file of so many pieces of zeros, in place of what is there.
    pub(crate) fn create(&mut self, at: At, pieces: usize) -> Inode {
        let inode = self.count();
        let mtime = self.time();
        self.cached.names.insert(at, inode);
        let content = self.content(inode);
        content.pieces = vec![0; pieces];
        content.mtime = mtime;
        inode
    }

    /// A time at which no source's file was modified.
    fn time(&mut self) -> u64 {
        TORN | self.count()
    }

    pub(crate) fn remove(&mut self, at: At) {
        self.cached.names.remove(&at);
    }

    pub(crate) fn rename(&mut self, from: At, to: At) {
        if let Some(inode) = self.cached.names.remove(&from) {
            self.cached.names.insert(to, inode);
        }
    }

    pub(crate) fn write(&mut self, inode: Inode, index: usize, tag: Tag) {
        let mtime = self.time();
        let content = self.content(inode);
        if content.pieces.len() <= index {
            content.pieces.resize(index + 1, 0);
        }
        content.pieces[index] = tag;
        content.mtime = mtime;
    }

    pub(crate) fn resize(&mut self, inode: Inode, pieces: usize) {
        self.content(inode).pieces.resize(pieces, 0);
    }

    pub(crate) fn set_time(&mut self, inode: Inode, mtime: u64) {
        self.content(inode).mtime = mtime;
    }

    /// A write that ends with the process that asked for it.
    pub(crate) fn write_in_part(&mut self, rng: &mut Rng, inode: Inode, index: usize, tag: Tag) {
        match rng.below(3) {
            0 => {}
            1 => self.write(inode, index, tag),
            _ => {
                let torn = self.time();
                self.write(inode, index, torn);
            }
        }
    }

    /// What a look at it shows: names, sizes and times.
    pub(crate) fn witness(&self) -> Digest {
        let mut seen = Vec::new();
        for name in self.cached.places() {
            if let Some((_, content)) = self.cached.at(At::Place(name)) {
                seen.extend(format!("{name} {} {} ", content.pieces.len(), content.mtime).bytes());
            }
        }
        Digest::of_chunk(&seen)
    }

    /// Gives whether no other flush runs.
    pub(crate) fn begin_flush(&mut self) -> bool {
        self.flushing.replace(self.cached.clone()).is_none()
    }

    pub(crate) fn end_flush(&mut self) {
        self.durable = self.flushing.take().expect("a flush runs");
        let durable = &self.durable;
        self.rotten.retain(|(inode, index)| {
            durable
                .tag(*inode, *index)
                .is_some_and(|tag| tag & TORN != 0)
        });
    }

    /// The process that asked for a flush is gone; what it wrote is where it was.
    pub(crate) fn forget_flush(&mut self) {
        self.flushing = None;
    }

    /// The power fails: of what was not flushed, any part may be there.
    pub(crate) fn crash(&mut self, rng: &mut Rng) {
        self.flushing = None;
        let (before, after) = (&self.durable, &self.cached);
        let mut left = Held::default();
        let inodes: BTreeSet<_> = before.inodes.keys().chain(after.inodes.keys()).collect();
        let mut torn_count = self.count;
        for inode in inodes {
            // Moving a file is one step.
            let names = if rng.chance(50) { before } else { after };
            let names = names.names.iter().filter(|(_, named)| *named == inode);
            left.names.extend(names.map(|(at, inode)| (*at, *inode)));
            let nothing = Content::default();
            let old = before.inodes.get(inode).unwrap_or(&nothing);
            let new = after.inodes.get(inode).unwrap_or(&nothing);
            let mut tag = |old: Option<&Tag>, new: Option<&Tag>| {
                let (old, new) = (old.copied().unwrap_or(0), new.copied().unwrap_or(0));
                match rng.below(4) {
                    _ if old == new => new,
                    0 | 1 => old,
                    2 => new,
                    _ => {
                        torn_count += 1;
                        TORN | torn_count
                    }
                }
            };
            let pieces = old.pieces.len().max(new.pieces.len());
            let pieces = (0..pieces).map(|at| tag(old.pieces.get(at), new.pieces.get(at)));
            let mut pieces: Vec<_> = pieces.collect();
            let [size, mtime] = [0, 1].map(|_| if rng.chance(50) { old } else { new });
            pieces.truncate(size.pieces.len());
            let mtime = mtime.mtime;
            left.inodes.insert(*inode, Content { pieces, mtime });
        }
        self.count = torn_count;
        self.durable.clone_from(&left);
        self.cached = left;
    }

    /// A piece that was flushed goes bad. Gives whether there was one.
    pub(crate) fn rot(&mut self, rng: &mut Rng) -> bool {
        let named: Vec<_> = self.durable.names.values().copied().collect();
        if named.is_empty() {
            return false;
        }
        let inode = named[rng.index(named.len())];
        let Some(content) = self.durable.inodes.get(&inode) else {
            return false;
        };
        let index = rng.index(content.pieces.len().max(1));
        let torn = self.time();
        let flushing = self.flushing.as_mut();
        let views = [&mut self.durable, &mut self.cached]
            .into_iter()
            .chain(flushing);
        for content in views.filter_map(|held| held.inodes.get_mut(&inode)) {
            if let Some(tag) = content.pieces.get_mut(index) {
                *tag = torn;
            }
        }
        self.rotten.insert((inode, index))
    }

    /// Whether the piece, which holds `tag`, went bad by itself.
    pub(crate) fn is_rotten(&self, inode: Inode, index: usize, tag: Tag) -> bool {
        tag & TORN != 0 && self.rotten.contains(&(inode, index))
    }
}
