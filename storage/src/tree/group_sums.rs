//! What is known of inodes with several names while they come, in a file: a tree may hold millions
//! of them, and only at the end it is known that no name will follow.
//!
//! ```text
//! place (number × 64)   36 bytes  the sum of the names and of the content that came
//!                        1 byte   1 when the entry could not be made
//!                       27 bytes  zero
//! ```
//!
//! Numbers go up from 1, so the file is as long as there are groups. From a hostile source they are
//! anything, and the file is sparse. A place that was never written is zero, which is the sum of
//! nothing.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use volferry_protocol::tree::set_digest::NameSum;

/// The highest number of a group: more than a filesystem has inodes.
pub(super) const NUMBER_MAX: u64 = 1 << 36;

/// Bytes of a place. None crosses the end of a page, so holes begin and end between two of them.
const PLACE_LEN: usize = 64;

/// Where in a place it says that the entry could not be made.
const LOST_AT: usize = NameSum::ENCODED_LEN;

/// Inodes with several names, by the numbers of their groups, which are at most [`NUMBER_MAX`].
#[derive(Debug)]
pub(super) struct GroupSums {
    file: File,
}

impl GroupSums {
    /// Keeps them in `file`, which is empty.
    pub(super) const fn new(file: File) -> Self {
        Self { file }
    }

    /// Adds the sum of a name, or of a name and a content.
    pub(super) fn add(&mut self, number: u64, part: &NameSum) -> io::Result<()> {
        self.change(number, |place| {
            let mut sum = sum_of(place);
            sum.add(part);
            for (byte, encoded) in place.iter_mut().zip(sum.encode()) {
                *byte = encoded;
            }
        })
    }

    /// Notes that the entry could not be made.
    pub(super) fn lose(&mut self, number: u64) -> io::Result<()> {
        self.change(number, |place| {
            if let Some(is_lost) = place.get_mut(LOST_AT) {
                *is_lost = 1;
            }
        })
    }

    /// Whether the entry could not be made.
    pub(super) fn is_lost(&self, number: u64) -> io::Result<bool> {
        Ok(self.read(number)?.get(LOST_AT) == Some(&1))
    }

    /// Calls `take` for the sum of each group.
    pub(super) fn for_each(&self, mut take: impl FnMut(&NameSum)) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        let mut piece = vec![0; PLACE_LEN * 1024];
        let mut next = 0;
        while next < len {
            next = match rustix::fs::seek(&self.file, SeekFrom::Data(next)) {
                Ok(data) => data,
                Err(Errno::NXIO) => return Ok(()),
                Err(Errno::INVAL | Errno::OPNOTSUPP) => next,
                Err(errno) => return Err(errno.into()),
            };
            let piece_len =
                usize::try_from(len - next).map_or(piece.len(), |rest| rest.min(piece.len()));
            let (piece, _) = piece.split_at_mut(piece_len);
            self.file.read_exact_at(piece, next)?;
            for place in piece.chunks(PLACE_LEN) {
                let sum = sum_of(place);
                if sum != NameSum::default() {
                    take(&sum);
                }
            }
            next += piece_len as u64;
        }
        Ok(())
    }

    #[expect(
        clippy::needless_pass_by_ref_mut,
        reason = "nobody may change the place in between"
    )]
    fn change(&mut self, number: u64, make: impl FnOnce(&mut [u8])) -> io::Result<()> {
        let mut place = self.read(number)?;
        make(&mut place);
        self.file.write_all_at(&place, at(number))
    }

    fn read(&self, number: u64) -> io::Result<[u8; PLACE_LEN]> {
        let mut place = [0; PLACE_LEN];
        // Behind the end of the file there are none yet.
        match self.file.read_exact_at(&mut place, at(number)) {
            Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
            _ => Ok(place),
        }
    }
}

fn sum_of(place: &[u8]) -> NameSum {
    place
        .first_chunk()
        .map_or_else(NameSum::default, NameSum::decode)
}

fn at(number: u64) -> u64 {
    number.min(NUMBER_MAX) * PLACE_LEN as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_what_was_added() {
        let mut groups = GroupSums::new(tempfile::tempfile().unwrap());
        let (a, b) = (NameSum::of_name(b"a"), NameSum::of_name(b"b"));
        let mut both = a;
        both.add(&b);
        for number in [1, 2, 70_000, NUMBER_MAX] {
            groups.add(number, &a).unwrap();
        }
        groups.add(70_000, &b).unwrap();
        groups.lose(2).unwrap();
        groups.lose(3).unwrap();
        groups.add(3, &b).unwrap();
        for (number, is_lost) in [
            (1, false),
            (2, true),
            (3, true),
            (4, false),
            (1 << 20, false),
        ] {
            assert_eq!(groups.is_lost(number).unwrap(), is_lost, "{number}");
        }
        let mut sums = Vec::new();
        groups.for_each(|sum| sums.push(*sum)).unwrap();
        assert_eq!(sums, [a, a, b, both, a]);
    }
}
