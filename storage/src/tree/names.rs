//! Names that a directory was found to hold, on their way to be read: in the order of their inodes,
//! a batch at a time.
//!
//! A directory lists its names in the order of a hash, or of their age. Inodes lie side by side in
//! the order of their numbers, and so, mostly, does what they hold: that is the order in which a
//! disk gives most of them at once.

use std::ops::Range;
use std::sync::Arc;

/// How many files a thread has open at once, and asks the disk for at once where that works.
pub(super) const BATCH_LEN: u16 = 32;

/// Names that are put in order together. More of them would be in a better order, and take more
/// memory.
const COUNT_MAX: usize = 4096;

/// Bytes of those names.
const BYTES_MAX: usize = 128 << 10;

/// Names of one directory.
#[derive(Debug, Default)]
pub(super) struct Names {
    bytes: Vec<u8>,
    listed: Vec<Listed>,
}

/// A name that was listed.
#[derive(Clone, Copy, Debug)]
struct Listed {
    inode: u64,
    /// Where the name begins.
    start: u32,
    len: u16,
    is_regular: bool,
}

impl Names {
    /// Whether what is here should be read before more is added.
    pub(super) const fn is_full(&self) -> bool {
        self.listed.len() >= COUNT_MAX || self.bytes.len() >= BYTES_MAX
    }

    /// Adds a name that is no directory's.
    pub(super) fn add(&mut self, inode: u64, name: &[u8], is_regular: bool) {
        // A name has at most 255 bytes, and a full list is not added to.
        let start = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        let len = u16::try_from(name.len()).unwrap_or(u16::MAX);
        self.bytes.extend_from_slice(name);
        self.listed.push(Listed {
            inode,
            start,
            len,
            is_regular,
        });
    }

    /// Puts the names in order and cuts them into batches.
    pub(super) fn into_batches(mut self) -> impl Iterator<Item = Batch> {
        self.listed.sort_unstable_by_key(|listed| listed.inode);
        let names = Arc::new(self);
        let len = names.listed.len();
        (0..len).step_by(BATCH_LEN.into()).map(move |start| Batch {
            names: Arc::clone(&names),
            range: start..len.min(start + usize::from(BATCH_LEN)),
        })
    }
}

/// Some of the names of a directory.
#[derive(Debug)]
pub(super) struct Batch {
    names: Arc<Names>,
    range: Range<usize>,
}

impl Batch {
    /// The names, and whether each was a regular file when it was listed.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[u8], bool)> {
        let listed = self.names.listed.get(self.range.clone());
        listed.unwrap_or_default().iter().map(|listed| {
            let start = listed.start as usize;
            let name = self.names.bytes.get(start..start + usize::from(listed.len));
            (name.unwrap_or_default(), listed.is_regular)
        })
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.range.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_name_once_in_the_order_of_inodes() {
        let mut names = Names::default();
        let count = u64::from(BATCH_LEN) * 2 + 1;
        for inode in (0..count).rev() {
            names.add(inode, inode.to_string().as_bytes(), inode % 2 == 0);
        }
        let batches: Vec<_> = names.into_batches().collect();
        let lens: Vec<_> = batches.iter().map(Batch::len).collect();
        assert_eq!(lens, [usize::from(BATCH_LEN), usize::from(BATCH_LEN), 1]);
        let read = batches.iter().flat_map(Batch::iter);
        let expected: Vec<_> = (0..count)
            .map(|inode| (inode.to_string(), inode % 2 == 0))
            .collect();
        let read: Vec<_> = read
            .map(|(name, is_regular)| (String::from_utf8(name.to_vec()).unwrap(), is_regular))
            .collect();
        assert_eq!(read, expected);
    }

    #[test]
    fn a_list_is_full_by_count_or_by_bytes() {
        let check = |name: &[u8], expected: usize| {
            let mut names = Names::default();
            let mut count = 0;
            while !names.is_full() {
                names.add(count as u64, name, true);
                count += 1;
            }
            assert_eq!(count, expected);
        };
        check(b"n", COUNT_MAX);
        check(&[b'n'; 255], BYTES_MAX.div_ceil(255));
    }
}
