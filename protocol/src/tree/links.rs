//! Which names are one file: the names of an inode add up to one [element](super::set_digest),
//! whichever of them was met first.

use std::collections::HashMap;

use super::set_digest::NameSum;

/// The inodes with several names that were met, and are not yet done.
///
/// An inode leaves as soon as all of its names and its content have come; those with names outside
/// of the tree stay to the end. So what is held is bounded by the links that are open at a time.
#[derive(Debug)]
pub struct LinkGroups<Key> {
    open: HashMap<Key, Group>,
    next_group: u64,
}

/// An inode with several names, some of which were met.
#[derive(Clone, Copy, Debug)]
struct Group {
    number: u64,
    /// Names that were not met, and the content if it did not come.
    parts_left: u32,
    sum: NameSum,
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

impl<Key> Default for LinkGroups<Key> {
    fn default() -> Self {
        Self {
            open: HashMap::new(),
            next_group: 1,
        }
    }
}

impl<Key: Eq + std::hash::Hash> LinkGroups<Key> {
    /// A name of the inode `key`, which has `names` in all, was met. `sum` is that of the name.
    pub fn meet(&mut self, key: Key, names: u32, sum: NameSum) -> Met {
        if let Some(group) = self.open.get(&key) {
            let group = group.number;
            let complete = self.add(&key, &sum);
            return Met::Again { group, complete };
        }
        let number = self.next_group;
        self.next_group = self.next_group.saturating_add(1);
        let group = Group {
            number,
            parts_left: names,
            sum,
        };
        self.open.insert(key, group);
        Met::First { group: number }
    }

    /// The content of the inode `key`, whose first name was met, is `sum`. Gives the sum of the
    /// element when nothing is owed any more.
    pub fn add_content(&mut self, key: &Key, sum: &NameSum) -> Option<NameSum> {
        self.add(key, sum)
    }

    fn add(&mut self, key: &Key, sum: &NameSum) -> Option<NameSum> {
        let group = self.open.get_mut(key)?;
        group.sum.add(sum);
        group.parts_left = group.parts_left.saturating_sub(1);
        let sum = (group.parts_left == 0).then_some(group.sum)?;
        self.open.remove(key);
        Some(sum)
    }

    /// The elements of inodes that have names elsewhere.
    pub fn drain(&mut self) -> impl Iterator<Item = NameSum> {
        self.open.drain().map(|(_, group)| group.sum)
    }
}

#[cfg(test)]
mod tests {
    use super::super::path::TreePath;
    use super::*;

    fn name(path: &[u8]) -> NameSum {
        NameSum::of_name(TreePath::new(path).unwrap().as_bytes())
    }

    #[test]
    fn a_group_ends_with_its_last_part() {
        let content = name(b"stands for a content");
        let mut expected = name(b"a");
        [name(b"b"), name(b"c"), content]
            .iter()
            .for_each(|part| expected.add(part));

        let mut groups = LinkGroups::default();
        assert_eq!(groups.meet(7, 3, name(b"b")), Met::First { group: 1 });
        assert_eq!(groups.meet(8, 2, name(b"x")), Met::First { group: 2 });
        assert_eq!(
            groups.meet(7, 3, name(b"a")),
            Met::Again {
                group: 1,
                complete: None
            }
        );
        assert_eq!(groups.add_content(&7, &content), None);
        let last = groups.meet(7, 3, name(b"c"));
        assert_eq!(
            last,
            Met::Again {
                group: 1,
                complete: Some(expected)
            }
        );
        assert_eq!(groups.drain().count(), 1, "one has a name elsewhere");

        let mut late = LinkGroups::default();
        let _first = late.meet(7, 3, name(b"c"));
        let _again = (late.meet(7, 3, name(b"b")), late.meet(7, 3, name(b"a")));
        assert_eq!(
            late.add_content(&7, &content),
            Some(expected),
            "content last"
        );
    }
}
