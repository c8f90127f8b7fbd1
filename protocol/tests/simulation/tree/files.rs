//! The source's files, by numbers.

use std::collections::BTreeMap;

use volferry_protocol::digest::Digest;
use volferry_protocol::tree::file_digest::{FileDigest, PIECE_LEN, PieceDigest};
use volferry_protocol::tree::offer::Stamp;
use volferry_protocol::tree::record::{Metadata, Time};
use volferry_protocol::tree::set_digest::{Content, TreeDigest};

use crate::rng::Rng;
use crate::tag::Tag;

/// A file's name.
pub(crate) type Name = u8;

/// Files that there may be.
const NAMES: u64 = 12;

/// The most pieces of a file.
const PIECES_MAX: u64 = 6;

/// Bytes of a small file.
const SMALL_SIZE: u64 = 100;

/// A state of a file. No two have the same version, which stands for inode and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct FileState {
    pub(crate) version: u64,
    /// One is a small file.
    pub(crate) pieces: Vec<Tag>,
}

pub(crate) type Files = BTreeMap<Name, FileState>;

impl FileState {
    pub(crate) fn is_large(&self) -> bool {
        self.pieces.len() > 1
    }

    pub(crate) fn size(&self) -> u64 {
        size_of(self.pieces.len())
    }

    pub(crate) fn stamp(&self, name: Name) -> Stamp {
        Stamp::new(&[name], &[self.version])
    }

    pub(crate) fn data_bytes(&self) -> u64 {
        let data = self.pieces.iter().filter(|tag| **tag != 0).count();
        match self.is_large() {
            true => data as u64 * u64::from(PIECE_LEN),
            false => data as u64 * SMALL_SIZE,
        }
    }

    pub(crate) fn digest(&self) -> Digest {
        digest_of(&self.pieces)
    }
}

pub(crate) fn size_of(pieces: usize) -> u64 {
    match pieces {
        0 | 1 => SMALL_SIZE,
        pieces => pieces as u64 * u64::from(PIECE_LEN),
    }
}

pub(crate) fn digest_of(pieces: &[Tag]) -> Digest {
    if let [tag] = pieces {
        return Digest::of_chunk(&tag.to_be_bytes());
    }
    let mut digest = FileDigest::default();
    for (index, tag) in (0..).zip(pieces) {
        digest.insert(index, piece(index, *tag)).expect("each once");
    }
    let whole = digest.finish(size_of(pieces.len()));
    whole.unwrap_or(Digest([0; 32]))
}

/// The digest of a piece: that of its number stands for that of its bytes.
pub(crate) fn piece(index: u64, tag: Tag) -> PieceDigest {
    PieceDigest::of(index, &tag.to_be_bytes())
}

/// Adds a file to what an end made of the tree.
pub(crate) fn add(digest: &mut TreeDigest, name: Name, size: u64, content: Digest, version: u64) {
    let time = Time {
        seconds: version as i64,
        nanoseconds: 0,
    };
    let metadata = Metadata {
        uid: 0,
        gid: 0,
        mode: 0o644,
        atime: time,
        mtime: time,
        xattrs: vec![],
    };
    let content = Content::File {
        size,
        digest: content,
    };
    digest.add_entry(&[name], &content, &metadata, Default::default());
}

fn tag(rng: &mut Rng) -> Tag {
    if rng.chance(25) {
        0
    } else {
        (rng.u64() >> 1).max(1)
    }
}

fn state(rng: &mut Rng) -> FileState {
    let count = if rng.chance(50) {
        1
    } else {
        2 + rng.below(PIECES_MAX - 1)
    };
    FileState {
        version: rng.u64() >> 1,
        pieces: (0..count).map(|_| tag(rng)).collect(),
    }
}

pub(crate) fn random(rng: &mut Rng) -> Files {
    let count = rng.below(NAMES);
    (0..count)
        .map(|_| (rng.below(NAMES) as Name, state(rng)))
        .collect()
}

/// Some change, some go, some come.
pub(crate) fn change(rng: &mut Rng, files: &mut Files) {
    for _ in 0..1 + rng.below(4) {
        let name = rng.below(NAMES) as Name;
        match (rng.below(4), files.get_mut(&name)) {
            (0, _) => drop(files.remove(&name)),
            (1, Some(file)) => {
                file.version = rng.u64() >> 1;
                let index = rng.index(file.pieces.len());
                file.pieces[index] = tag(rng);
            }
            _ => drop(files.insert(name, state(rng))),
        }
    }
}
