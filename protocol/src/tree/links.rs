//! Which names are one file: the names of an inode add up to one [element](super::set_digest),
//! whichever of them was met first.

use std::hash::{BuildHasher, RandomState};

use hashbrown::HashTable;

use super::set_digest::NameSum;

/// What tells an inode from others, as long as a walk takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InodeKey {
    /// Its number.
    pub inode: u64,
    /// The number of the device that has it.
    pub device: u32,
}

/// The inodes with several names that were met, and are not yet done.
///
/// An inode leaves as soon as all of its names and its content have come; those with names outside
/// of the tree stay to the end. So what is held is bounded by the inodes of which some names were
/// met and some were not: [`GROUP_SIZE`] bytes for each, and five to eleven for where it is. The worst
/// is a tree of which every file has its other name far away, such as a row of backups.
#[derive(Debug, Default)]
pub struct LinkGroups {
    open: Vec<Group>,
    /// Where in `open` the group of a key is.
    places: HashTable<u32>,
    hasher: RandomState,
    /// The number of the last group; the first has 1.
    last_group: u64,
}

/// Bytes that an inode is remembered with while names of it are missing.
pub const GROUP_SIZE: usize = size_of::<Group>();
const _: () = assert!(GROUP_SIZE <= 64, "a million inodes take 64 MB");

/// An inode with several names, some of which were met.
#[derive(Clone, Copy, Debug)]
struct Group {
    sum: NameSum,
    number: u64,
    inode: u64,
    device: u32,
    /// Names that were not met, and the content if it did not come.
    parts_left: u32,
}

impl Group {
    const fn key(&self) -> InodeKey {
        let Self { inode, device, .. } = *self;
        InodeKey { inode, device }
    }
}

/// What a name turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// The first name: the content goes with it, and is owed to [`LinkGroups::add_content`].
    First {
        /// The number that the others will bear.
        group: u64,
    },
    /// Another name.
    Again {
        /// The number of the group.
        group: u64,
        /// The sum of the element, when nothing is owed any more.
        complete: Option<NameSum>,
    },
}

impl LinkGroups {
    /// A name of the inode `key`, which has `names` in all, was met. `sum` is that of the name.
    ///
    /// # Panics
    /// When names of more than four thousand million inodes are missing.
    pub fn meet(&mut self, key: InodeKey, names: u32, sum: NameSum) -> Met {
        if let Some((group, complete)) = self.add(key, &sum) {
            return Met::Again { group, complete };
        }
        self.last_group = self.last_group.saturating_add(1);
        #[expect(
            clippy::expect_used,
            reason = "so many groups take 256 GiB of memory, which fails before"
        )]
        let place = u32::try_from(self.open.len()).expect("fewer groups than a u32 counts");
        self.open.push(Group {
            sum,
            number: self.last_group,
            inode: key.inode,
            device: key.device,
            parts_left: names,
        });
        let (open, hasher) = (&self.open, &self.hasher);
        self.places
            .insert_unique(hasher.hash_one(key), place, |place| {
                hash_at(open, hasher, *place)
            });
        Met::First {
            group: self.last_group,
        }
    }

    /// The content of the inode `key`, whose first name was met, is `sum`. Gives the sum of the
    /// element when nothing is owed any more.
    pub fn add_content(&mut self, key: InodeKey, sum: &NameSum) -> Option<NameSum> {
        self.add(key, sum)?.1
    }

    /// How many inodes are remembered.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.open.len()
    }

    /// Whether no inode is remembered.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// The elements of inodes that have names elsewhere.
    pub fn drain(&mut self) -> impl Iterator<Item = NameSum> {
        self.places.clear();
        self.open.drain(..).map(|group| group.sum)
    }

    /// Adds a part to a group that is open; gives its number, and its sum when that was the last.
    fn add(&mut self, key: InodeKey, sum: &NameSum) -> Option<(u64, Option<NameSum>)> {
        let (open, hash) = (&mut self.open, self.hasher.hash_one(key));
        let is_it = |place: &u32| open.get(*place as usize).is_some_and(|it| it.key() == key);
        let found = self.places.find_entry(hash, is_it).ok()?;
        let place = *found.get();
        let group = open.get_mut(place as usize)?;
        group.sum.add(sum);
        group.parts_left = group.parts_left.saturating_sub(1);
        let (number, sum) = (group.number, group.sum);
        if group.parts_left > 0 {
            return Some((number, None));
        }
        found.remove();
        open.swap_remove(place as usize);
        if let Some(moved) = open.get(place as usize) {
            // The last group is in its place now.
            let hash = self.hasher.hash_one(moved.key());
            let last = u32::try_from(open.len()).ok();
            if let Some(moved) = self.places.find_mut(hash, |place| Some(*place) == last) {
                *moved = place;
            }
        }
        Some((number, Some(sum)))
    }
}

/// The hash of the group at `place`.
fn hash_at(open: &[Group], hasher: &RandomState, place: u32) -> u64 {
    open.get(place as usize)
        .map_or(0, |group| hasher.hash_one(group.key()))
}

#[cfg(test)]
mod tests {
    use super::super::path::TreePath;
    use super::*;

    fn name(path: &[u8]) -> NameSum {
        NameSum::of_name(TreePath::new(path).unwrap().as_bytes())
    }

    fn key(inode: u64) -> InodeKey {
        InodeKey { inode, device: 1 }
    }

    #[test]
    fn a_group_ends_with_its_last_part() {
        let content = name(b"stands for a content");
        let mut expected = name(b"a");
        [name(b"b"), name(b"c"), content]
            .iter()
            .for_each(|part| expected.add(part));

        let mut groups = LinkGroups::default();
        assert_eq!(groups.meet(key(7), 3, name(b"b")), Met::First { group: 1 });
        assert_eq!(groups.meet(key(8), 2, name(b"x")), Met::First { group: 2 });
        assert_eq!(
            groups.meet(key(7), 3, name(b"a")),
            Met::Again {
                group: 1,
                complete: None
            }
        );
        assert_eq!(groups.add_content(key(7), &content), None);
        let last = groups.meet(key(7), 3, name(b"c"));
        assert_eq!(
            last,
            Met::Again {
                group: 1,
                complete: Some(expected)
            }
        );
        assert_eq!(groups.drain().count(), 1, "one has a name elsewhere");

        let mut late = LinkGroups::default();
        let _first = late.meet(key(7), 3, name(b"c"));
        let _again = (
            late.meet(key(7), 3, name(b"b")),
            late.meet(key(7), 3, name(b"a")),
        );
        assert_eq!(
            late.add_content(key(7), &content),
            Some(expected),
            "content last"
        );
    }

    /// However many groups come and go, one is remembered for each inode with missing names, and
    /// room for as many at most twice.
    #[test]
    fn groups_leave_when_nothing_is_owed() {
        const OPEN_MAX: u64 = 1000;
        let mut groups = LinkGroups::default();
        let content = name(b"stands for a content");
        let mut expected = content;
        expected.add(&name(b"a"));
        expected.add(&name(b"b"));
        for inode in 0..20 * OPEN_MAX {
            let first = groups.meet(key(inode), 2, name(b"a"));
            assert_eq!(first, Met::First { group: inode + 1 });
            assert_eq!(groups.add_content(key(inode), &content), None);
            // One in the middle of those that are open ends, so that others take its place.
            if let Some(earlier) = inode.checked_sub(OPEN_MAX - 1) {
                let earlier = earlier ^ 1;
                let group = earlier + 1;
                let complete = Some(expected);
                let again = groups.meet(key(earlier), 2, name(b"b"));
                assert_eq!(again, Met::Again { group, complete }, "{earlier}");
            }
            assert!(groups.len() as u64 <= OPEN_MAX);
        }
        assert!(groups.open.capacity() as u64 <= 2 * OPEN_MAX);
        assert!(groups.places.capacity() as u64 <= 4 * OPEN_MAX);
        let left = groups.len();
        assert_eq!(groups.drain().count(), left);
        assert!(groups.is_empty());
    }

    #[test]
    fn the_same_number_on_two_devices_is_two_inodes() {
        let mut groups = LinkGroups::default();
        let there = InodeKey {
            device: 2,
            ..key(7)
        };
        assert_eq!(groups.meet(key(7), 2, name(b"a")), Met::First { group: 1 });
        assert_eq!(groups.meet(there, 2, name(b"b")), Met::First { group: 2 });
    }
}
