//! The digest of a tree, added up in any order.
//!
//! A tree is a set of inodes, and an inode is its content with the set of its names. Both ends meet
//! them in the order in which threads and connections happen to deliver them, and neither could
//! hold, let alone sort, a list of all. So the digest is a sum:
//!
//! ```text
//! name(path)    = BLAKE3-derive-key("volferry 2026-11-21 tree name v1",    path)
//! content(…)    = BLAKE3-derive-key("volferry 2026-11-21 tree content v1", kind | metadata | …)
//! element       = BLAKE3-derive-key("volferry 2026-11-21 tree element v1", sum | names), 2048 bytes
//! tree          = BLAKE3-derive-key("volferry 2026-11-21 tree v1", left out | counts | lanes)
//! ```
//!
//! where `sum` adds the names of an inode and its content as 256-bit numbers, `names` says how many
//! names there are, and `lanes` are 1024 sums of 16 bits, each modulo 2^16, over all elements:
//! LtHash (Lewi, Kim, Maykov, Weis, "Securing update propagation with homomorphic hashing", 2019,
//! IACR ePrint 2019/227), whose collisions are as hard to find as short vectors in a lattice. Which
//! names belong to one inode rests on the smaller sum alone, which guards against faults, and less
//! against somebody who can make tens of thousands of links of one file in both of two trees.
//!
//! What the target was told that it need not keep is left out of the metadata at both ends.
//! Times of access never count: reading changes them.

use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::fidelity::{ClassSet, FidelityClass};
use super::record::{DeviceNumber, Metadata, Special, XattrKind};
use crate::digest::Digest;

const LANES: usize = 1024;

/// Setuid and setgid: they say something only together with the owner and the group.
const OWNER_BITS: u32 = 0o6000;

/// What an inode is, besides its metadata.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// A directory.
    Directory,
    /// A regular file.
    File {
        /// Its size in bytes.
        size: u64,
        /// The plain digest of its content.
        digest: Digest,
    },
    /// Anything else.
    Special(&'a Special<'a>),
}

impl Content<'_> {
    /// Whether a digest that leaves out `left_out` speaks of it.
    #[must_use]
    pub const fn is_covered(&self, left_out: ClassSet) -> bool {
        let is_device = matches!(
            self,
            Self::Special(Special::Character(_) | Special::Block(_))
        );
        !(is_device && left_out.contains(FidelityClass::Devices))
    }
}

/// A sum of names and of a content, and how many names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NameSum {
    /// A 256-bit number, its lowest part first.
    limbs: [u64; 4],
    names: u32,
}

impl NameSum {
    /// The sum of one name: the path below the root.
    #[must_use]
    pub fn of_name(path: &[u8]) -> Self {
        static KEYED: LazyLock<blake3::Hasher> =
            LazyLock::new(|| blake3::Hasher::new_derive_key("volferry 2026-11-21 tree name v1"));
        let hash = KEYED.clone().update(path).finalize();
        Self {
            limbs: limbs(hash.as_bytes()),
            names: 1,
        }
    }

    /// The sum of a content with its metadata, without what `left_out` names.
    #[must_use]
    pub fn of_content(content: &Content<'_>, metadata: &Metadata, left_out: ClassSet) -> Self {
        static KEYED: LazyLock<blake3::Hasher> =
            LazyLock::new(|| blake3::Hasher::new_derive_key("volferry 2026-11-21 tree content v1"));
        let mut bytes = Vec::with_capacity(128);
        let (kind, is_symlink) = match content {
            Content::Directory => (1, false),
            Content::File { .. } => (2, false),
            Content::Special(Special::Symlink(_)) => (3, true),
            Content::Special(Special::Fifo) => (4, false),
            Content::Special(Special::Socket) => (5, false),
            Content::Special(Special::Character(_)) => (6, false),
            Content::Special(Special::Block(_)) => (7, false),
        };
        bytes.push(kind);
        put_metadata(&mut bytes, metadata, is_symlink, left_out);
        match content {
            Content::Directory | Content::Special(Special::Fifo | Special::Socket) => {}
            Content::File { size, digest } => {
                bytes.extend(size.to_be_bytes());
                bytes.extend(digest.0);
            }
            Content::Special(Special::Symlink(target)) => bytes.extend_from_slice(target),
            Content::Special(Special::Character(device) | Special::Block(device)) => {
                let DeviceNumber { major, minor } = device;
                bytes.extend(major.to_be_bytes());
                bytes.extend(minor.to_be_bytes());
            }
        }
        let hash = KEYED.clone().update(&bytes).finalize();
        Self {
            limbs: limbs(hash.as_bytes()),
            names: 0,
        }
    }

    /// Bytes of a sum that is kept outside of memory.
    pub const ENCODED_LEN: usize = 36;

    /// The bytes of this sum.
    #[must_use]
    pub fn encode(&self) -> [u8; Self::ENCODED_LEN] {
        let mut bytes = [0; Self::ENCODED_LEN];
        let numbers = self.limbs.iter().flat_map(|limb| limb.to_le_bytes());
        let numbers = numbers.chain(self.names.to_le_bytes());
        for (byte, number) in bytes.iter_mut().zip(numbers) {
            *byte = number;
        }
        bytes
    }

    /// The sum that was encoded. Zeros are the sum of nothing.
    #[must_use]
    pub fn decode(bytes: &[u8; Self::ENCODED_LEN]) -> Self {
        let (sum, names) = bytes.split_at(32);
        Self {
            limbs: sum.first_chunk().map_or([0; 4], limbs),
            names: names
                .first_chunk()
                .map_or(0, |names| u32::from_le_bytes(*names)),
        }
    }

    /// Adds another sum.
    pub fn add(&mut self, other: &Self) {
        let mut carry = false;
        for (limb, more) in self.limbs.iter_mut().zip(other.limbs) {
            let (sum, over) = limb.overflowing_add(more);
            let (sum, over_again) = sum.overflowing_add(u64::from(carry));
            *limb = sum;
            carry = over | over_again;
        }
        self.names = self.names.saturating_add(other.names);
    }
}

/// Appends what of the metadata counts.
fn put_metadata(bytes: &mut Vec<u8>, metadata: &Metadata, is_symlink: bool, left_out: ClassSet) {
    let keeps = |class| !left_out.contains(class);
    let owners = if keeps(FidelityClass::Ownership) {
        [metadata.uid, metadata.gid]
    } else {
        [0, 0]
    };
    let mode = match () {
        // Linux has none for symbolic links.
        () if is_symlink || !keeps(FidelityClass::Modes) => 0,
        () if keeps(FidelityClass::Ownership) => metadata.mode,
        () => metadata.mode & !OWNER_BITS,
    };
    for number in [owners[0], owners[1], mode] {
        bytes.extend(number.to_be_bytes());
    }
    let mtime = if keeps(FidelityClass::Times) {
        metadata.mtime
    } else {
        Default::default()
    };
    bytes.extend(mtime.seconds.to_be_bytes());
    bytes.extend(mtime.nanoseconds.to_be_bytes());
    for xattr in &metadata.xattrs {
        let class = match XattrKind::of(&xattr.name) {
            Some(XattrKind::Plain) => FidelityClass::Xattrs,
            Some(XattrKind::Acl) => FidelityClass::Acls,
            Some(XattrKind::Label) => FidelityClass::Labels,
            None => continue,
        };
        if keeps(class) {
            for text in [&xattr.name, &xattr.value] {
                bytes.extend((text.len() as u64).to_be_bytes());
                bytes.extend_from_slice(text);
            }
        }
    }
    // A length that no name has ends the list.
    bytes.extend(u64::MAX.to_be_bytes());
}

fn limbs(hash: &[u8; 32]) -> [u64; 4] {
    let mut limbs = [0; 4];
    for (limb, bytes) in limbs.iter_mut().zip(hash.as_chunks::<8>().0) {
        *limb = u64::from_le_bytes(*bytes);
    }
    limbs
}

/// How much a tree holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TreeCounts {
    /// Regular files; one with several names counts once.
    pub files: u64,
    /// Directories, the root included.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Named pipes, sockets and devices.
    pub specials: u64,
    /// Names beyond the first of an inode: hard links.
    pub links: u64,
    /// Bytes of the regular files, holes included.
    pub bytes: u64,
}

impl TreeCounts {
    /// Counts an inode.
    pub fn note(&mut self, content: &Content<'_>) {
        let count = match content {
            Content::Directory => &mut self.directories,
            Content::File { size, .. } => {
                self.bytes = self.bytes.saturating_add(*size);
                &mut self.files
            }
            Content::Special(Special::Symlink(_)) => &mut self.symlinks,
            Content::Special(_) => &mut self.specials,
        };
        *count = count.saturating_add(1);
    }

    /// Counts another name of an inode.
    pub fn note_link(&mut self) {
        self.links = self.links.saturating_add(1);
    }

    /// Adds what another thread counted.
    pub fn add(&mut self, other: &Self) {
        let Self {
            files,
            directories,
            symlinks,
            specials,
            links,
            bytes,
        } = other;
        for (count, more) in [
            (&mut self.files, files),
            (&mut self.directories, directories),
            (&mut self.symlinks, symlinks),
            (&mut self.specials, specials),
            (&mut self.links, links),
            (&mut self.bytes, bytes),
        ] {
            *count = count.saturating_add(*more);
        }
    }

    /// Names in all, the root's included.
    #[must_use]
    pub fn entries(&self) -> u64 {
        let counts = [
            self.files,
            self.directories,
            self.symlinks,
            self.specials,
            self.links,
        ];
        counts.into_iter().fold(0, u64::saturating_add)
    }
}

/// The sum over the inodes of a tree, or of a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TreeDigest {
    lanes: Box<[u16; LANES]>,
    /// What was counted.
    pub counts: TreeCounts,
}

impl Default for TreeDigest {
    fn default() -> Self {
        Self {
            lanes: Box::new([0; LANES]),
            counts: TreeCounts::default(),
        }
    }
}

impl TreeDigest {
    /// Adds an inode, all of whose names and content `sum` holds.
    pub fn add(&mut self, sum: &NameSum) {
        static KEYED: LazyLock<blake3::Hasher> =
            LazyLock::new(|| blake3::Hasher::new_derive_key("volferry 2026-11-21 tree element v1"));
        let mut hasher = KEYED.clone();
        for limb in sum.limbs {
            hasher.update(&limb.to_le_bytes());
        }
        hasher.update(&sum.names.to_be_bytes());
        let mut element = [0; LANES * 2];
        hasher.finalize_xof().fill(&mut element);
        for (lane, more) in self.lanes.iter_mut().zip(element.as_chunks::<2>().0) {
            *lane = lane.wrapping_add(u16::from_be_bytes(*more));
        }
    }

    /// Adds the inode with the one name `path`, and counts it.
    pub fn add_entry(
        &mut self,
        path: &[u8],
        content: &Content<'_>,
        metadata: &Metadata,
        left_out: ClassSet,
    ) {
        if content.is_covered(left_out) {
            let mut sum = NameSum::of_name(path);
            sum.add(&NameSum::of_content(content, metadata, left_out));
            self.add(&sum);
            self.counts.note(content);
        }
    }

    /// Adds what another thread added up.
    pub fn merge(&mut self, other: &Self) {
        for (lane, more) in self.lanes.iter_mut().zip(other.lanes.iter()) {
            *lane = lane.wrapping_add(*more);
        }
        self.counts.add(&other.counts);
    }

    /// The digest of the whole tree, which says nothing of what `left_out` names.
    #[must_use]
    pub fn finish(&self, left_out: ClassSet) -> Digest {
        let TreeCounts {
            files,
            directories,
            symlinks,
            specials,
            links,
            bytes,
        } = self.counts;
        let mut hasher = blake3::Hasher::new_derive_key("volferry 2026-11-21 tree v1");
        hasher.update(&left_out.bits().to_be_bytes());
        for count in [files, directories, symlinks, specials, links, bytes] {
            hasher.update(&count.to_be_bytes());
        }
        for lane in self.lanes.iter() {
            hasher.update(&lane.to_be_bytes());
        }
        Digest(*hasher.finalize().as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::{Time, Xattr};
    use super::*;

    fn file(byte: u8) -> Content<'static> {
        Content::File {
            size: u64::from(byte),
            digest: Digest([byte; 32]),
        }
    }

    fn metadata() -> Metadata {
        let xattr = |name: &str| Xattr {
            name: name.into(),
            value: b"value".to_vec(),
        };
        Metadata {
            uid: 1,
            gid: 2,
            mode: 0o4755,
            atime: Time::default(),
            mtime: Time {
                seconds: 3,
                nanoseconds: 4,
            },
            xattrs: vec![
                xattr("security.selinux"),
                xattr("system.posix_acl_access"),
                xattr("user.a"),
            ],
        }
    }

    fn digest_of(content: &Content<'_>, metadata: &Metadata, left_out: ClassSet) -> Digest {
        let mut digest = TreeDigest::default();
        digest.add_entry(b"path", content, metadata, left_out);
        digest.finish(left_out)
    }

    proptest! {
        /// Neither the order nor who adds what changes the digest.
        #[test]
        fn order_does_not_matter(paths in prop::collection::vec("[a-c]{1,3}", 1..30), cut in 0usize..30) {
            let mut one = TreeDigest::default();
            for path in &paths {
                one.add_entry(path.as_bytes(), &file(1), &metadata(), ClassSet::NONE);
            }
            let cut = cut.min(paths.len());
            let (mut left, mut right) = (TreeDigest::default(), TreeDigest::default());
            for path in paths[cut..].iter().rev() {
                left.add_entry(path.as_bytes(), &file(1), &metadata(), ClassSet::NONE);
            }
            for path in &paths[..cut] {
                right.add_entry(path.as_bytes(), &file(1), &metadata(), ClassSet::NONE);
            }
            left.merge(&right);
            prop_assert_eq!(left.finish(ClassSet::NONE), one.finish(ClassSet::NONE));
        }
    }

    /// Whatever is different shows, unless its class was left out.
    #[test]
    fn every_difference_shows() {
        type Change = fn(&mut Metadata);
        let changes: [(FidelityClass, Change); 9] = [
            (FidelityClass::Ownership, |m| m.uid = 9),
            (FidelityClass::Ownership, |m| m.gid = 9),
            (FidelityClass::Ownership, |m| m.mode = 0o755),
            (FidelityClass::Modes, |m| m.mode = 0o4711),
            (FidelityClass::Times, |m| m.mtime.nanoseconds = 9),
            (FidelityClass::Times, |m| m.mtime.seconds = -9),
            (FidelityClass::Labels, |m| m.xattrs[0].value.push(0)),
            (FidelityClass::Acls, |m| m.xattrs[1].value.push(0)),
            (FidelityClass::Xattrs, |m| m.xattrs[2].name.push(b'b')),
        ];
        for (class, change) in changes {
            let mut changed = metadata();
            change(&mut changed);
            for left_out in [ClassSet::NONE, ClassSet::from_iter([class])] {
                let before = digest_of(&file(1), &metadata(), left_out);
                let after = digest_of(&file(1), &changed, left_out);
                assert_eq!(before == after, !left_out.is_empty(), "{class}");
            }
        }
        let mut read = metadata();
        read.atime.seconds = 99;
        let none = ClassSet::NONE;
        assert_eq!(
            digest_of(&file(1), &metadata(), none),
            digest_of(&file(1), &read, none)
        );
        let device = |minor| Special::Character(DeviceNumber { major: 1, minor });
        let (null, zero) = (device(3), device(5));
        let contents = [
            Content::Directory,
            file(1),
            file(2),
            Content::Special(&Special::Fifo),
            Content::Special(&Special::Socket),
            Content::Special(&Special::Symlink(b"a")),
            Content::Special(&Special::Symlink(b"b")),
            Content::Special(&null),
            Content::Special(&zero),
        ];
        let digests: std::collections::BTreeSet<_> = contents
            .iter()
            .map(|content| digest_of(content, &metadata(), none).0)
            .collect();
        assert_eq!(digests.len(), contents.len());
    }

    /// The same names with the same contents, and other ones of them the same file.
    #[test]
    fn which_names_are_one_file_shows() {
        let group = |names: [&str; 2]| {
            let mut sum = NameSum::of_content(&file(1), &metadata(), ClassSet::NONE);
            names
                .iter()
                .for_each(|name| sum.add(&NameSum::of_name(name.as_bytes())));
            sum
        };
        let digest = |groups: [[&str; 2]; 2]| {
            let mut digest = TreeDigest::default();
            groups.iter().for_each(|names| digest.add(&group(*names)));
            digest.finish(ClassSet::NONE)
        };
        assert_eq!(
            digest([["a", "b"], ["c", "d"]]),
            digest([["d", "c"], ["b", "a"]])
        );
        assert_ne!(
            digest([["a", "b"], ["c", "d"]]),
            digest([["a", "c"], ["b", "d"]])
        );
    }

    /// Receipts outlive releases: what a digest says must never change.
    #[test]
    fn digests_never_change() {
        assert_eq!(
            TreeDigest::default().finish(ClassSet::NONE).to_string(),
            EMPTY
        );
        assert_eq!(
            digest_of(&file(1), &metadata(), ClassSet::NONE).to_string(),
            ONE_FILE
        );
    }

    const EMPTY: &str = "0f602657540a49d682934750adf62a9660c247ccab34f76c6186246d3688ba58";
    const ONE_FILE: &str = "53baa5a6e10bd0552e99f1db4b59402ab1249bb255d46882e20cdf91af59c28f";
}
