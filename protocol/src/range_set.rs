//! A set of chunk indices, kept as the fewest disjoint ranges.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::geometry::{ChunkIndex, ChunkRange};

/// A set of chunks. Work is handed out in volume order, so it stays a handful of ranges.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<ChunkRange>", into = "Vec<ChunkRange>")]
pub struct ChunkSet {
    /// End by start; ranges are not empty, don't overlap and don't touch.
    ranges: BTreeMap<u64, u64>,
}

impl ChunkSet {
    /// Adds `chunks`; those already in the set stay. An empty range adds nothing.
    pub fn insert(&mut self, chunks: ChunkRange) {
        let (mut start, mut end) = (chunks.start.0, chunks.end.0);
        if start >= end {
            return;
        }
        if let Some((before, before_end)) = self.ranges.range(..=start).next_back()
            && *before_end >= start
        {
            start = *before;
            end = end.max(*before_end);
        }
        while let Some((next, next_end)) = self.ranges.range(start..=end).next() {
            let (next, next_end) = (*next, *next_end);
            end = end.max(next_end);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    /// Adds all of `other`.
    pub fn insert_all(&mut self, other: &Self) {
        for range in other.ranges() {
            self.insert(range);
        }
    }

    /// Whether the chunk at `index` is in the set.
    #[must_use]
    pub fn contains(&self, index: ChunkIndex) -> bool {
        self.ranges
            .range(..=index.0)
            .next_back()
            .is_some_and(|(_, end)| index.0 < *end)
    }

    /// Whether any of `chunks` is in the set.
    #[must_use]
    pub fn intersects(&self, chunks: ChunkRange) -> bool {
        let before_end = self.ranges.range(..chunks.end.0).next_back();
        chunks.start < chunks.end && before_end.is_some_and(|(_, end)| chunks.start.0 < *end)
    }

    /// The end of the range that holds the chunk at `index`; `None` when it is not in the set.
    #[must_use]
    pub fn range_end(&self, index: ChunkIndex) -> Option<ChunkIndex> {
        let (_, end) = self.ranges.range(..=index.0).next_back()?;
        (index.0 < *end).then_some(ChunkIndex(*end))
    }

    /// The first chunk at or behind `index` that is in the set.
    #[must_use]
    pub fn next_from(&self, index: ChunkIndex) -> Option<ChunkIndex> {
        if self.contains(index) {
            return Some(index);
        }
        self.ranges
            .range(index.0..)
            .next()
            .map(|(start, _)| ChunkIndex(*start))
    }

    /// The chunks of `all` that are not in the set.
    #[must_use]
    pub fn complement(&self, all: ChunkRange) -> Self {
        let mut rest = Self::default();
        let mut at = all.start;
        while at < all.end {
            let gap_end = self.next_from(at).map_or(all.end, |next| next.min(all.end));
            rest.insert(ChunkRange {
                start: at,
                end: gap_end,
            });
            at = self.range_end(gap_end).unwrap_or(all.end);
        }
        rest
    }

    /// The first run of `chunks` that is in the set.
    #[must_use]
    pub fn intersection(&self, chunks: ChunkRange) -> Option<ChunkRange> {
        let start = self
            .next_from(chunks.start)
            .filter(|start| *start < chunks.end)?;
        let end = self.range_end(start)?.min(chunks.end);
        Some(ChunkRange { start, end })
    }

    /// The chunks that are in both sets.
    #[must_use]
    pub fn common(&self, other: &Self) -> Self {
        let mut both = Self::default();
        for range in self.ranges() {
            let mut rest = range;
            while let Some(run) = other.intersection(rest) {
                both.insert(run);
                rest.start = run.end;
            }
        }
        both
    }

    /// The first `count` ranges of the set.
    #[must_use]
    pub fn first_ranges(&self, count: usize) -> Self {
        Self {
            ranges: self
                .ranges
                .iter()
                .take(count)
                .map(|(start, end)| (*start, *end))
                .collect(),
        }
    }

    /// How many chunks are in the set.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.ranges().map(ChunkRange::count).sum()
    }

    /// Whether the set holds no chunk.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The first chunk, from 0 on, that is not in the set.
    #[must_use]
    pub fn watermark(&self) -> ChunkIndex {
        ChunkIndex(self.ranges.get(&0).copied().unwrap_or(0))
    }

    /// The ranges, in order.
    pub fn ranges(&self) -> impl Iterator<Item = ChunkRange> + '_ {
        let range = |(start, end): (&u64, &u64)| ChunkRange {
            start: ChunkIndex(*start),
            end: ChunkIndex(*end),
        };
        self.ranges.iter().map(range)
    }
}

impl From<ChunkSet> for Vec<ChunkRange> {
    fn from(set: ChunkSet) -> Self {
        set.ranges().collect()
    }
}

impl TryFrom<Vec<ChunkRange>> for ChunkSet {
    type Error = BadChunkSet;

    /// Takes ranges from outside: they must be in order, not empty, and apart from each other.
    fn try_from(ranges: Vec<ChunkRange>) -> Result<Self, BadChunkSet> {
        let mut set = Self::default();
        let mut before_end = None;
        for range in ranges {
            let apart = before_end.is_none_or(|end| end < range.start.0);
            if range.start >= range.end || !apart {
                return Err(BadChunkSet);
            }
            before_end = Some(range.end.0);
            set.ranges.insert(range.start.0, range.end.0);
        }
        Ok(set)
    }
}

/// Ranges that are empty, out of order, or touch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("ranges of a chunk set must be in order, not empty, and apart from each other")]
pub struct BadChunkSet;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64) -> ChunkRange {
        ChunkRange {
            start: ChunkIndex(start),
            end: ChunkIndex(end),
        }
    }

    proptest! {
        /// The set says what a bitmap says, in as few ranges as there are.
        #[test]
        fn agrees_with_a_bitmap(inserts in prop::collection::vec((0u64..64, 0u64..20), 0..30)) {
            let mut set = ChunkSet::default();
            let mut bitmap = [false; 96];
            for (start, len) in inserts {
                set.insert(range(start, start + len));
                bitmap[start as usize..(start + len) as usize].fill(true);
            }
            for (index, is_in) in bitmap.iter().enumerate() {
                let at = ChunkIndex(index as u64);
                prop_assert_eq!(set.contains(at), *is_in);
                let next = bitmap[index..].iter().position(|is_in| *is_in);
                prop_assert_eq!(set.next_from(at), next.map(|gap| ChunkIndex((index + gap) as u64)));
                let end = bitmap[index..].iter().position(|is_in| !is_in).unwrap_or(0);
                prop_assert_eq!(set.range_end(at), is_in.then_some(ChunkIndex((index + end) as u64)));
            }
            for (start, end) in [(0, 96), (3, 3), (10, 20), (63, 64), (5, 6)] {
                let any = bitmap[start..end].contains(&true);
                prop_assert_eq!(set.intersects(range(start as u64, end as u64)), any);
            }
            for (start, end) in [(0, 96), (3, 3), (10, 20), (63, 64), (5, 6), (90, 200)] {
                let within = |index: u64| bitmap.get(index as usize).copied().unwrap_or(false);
                let all = range(start, end);
                let rest = set.complement(all);
                for index in 0..210 {
                    let is_due = (start..end).contains(&index) && !within(index);
                    prop_assert_eq!(rest.contains(ChunkIndex(index)), is_due, "{} of {}", index, all);
                }
                let first = (start..end).find(|index| within(*index));
                let run = first.map(|first| {
                    let past = (first..end).find(|index| !within(*index)).unwrap_or(end);
                    range(first, past)
                });
                prop_assert_eq!(set.intersection(all), run);
            }
            let mut other = ChunkSet::default();
            for (start, end) in [(2, 9), (20, 21), (33, 60)] {
                other.insert(range(start, end));
            }
            let both = set.common(&other);
            for index in (0..96).map(ChunkIndex) {
                let is_in_both = set.contains(index) && other.contains(index);
                prop_assert_eq!(both.contains(index), is_in_both);
            }
            for count in 0..5 {
                let first = set.first_ranges(count);
                prop_assert!(first.ranges().eq(set.ranges().take(count)));
            }
            prop_assert_eq!(set.count(), bitmap.iter().filter(|is_in| **is_in).count() as u64);
            let first_gap = bitmap.iter().position(|is_in| !is_in).unwrap() as u64;
            prop_assert_eq!(set.watermark(), ChunkIndex(first_gap));
            let runs = bitmap.chunk_by(|a, b| a == b).filter(|run| run[0]).count();
            prop_assert_eq!(set.ranges().count(), runs);
            prop_assert_eq!(ChunkSet::try_from(set.ranges().collect::<Vec<_>>()), Ok(set));
        }
    }

    #[test]
    fn ranges_from_outside_are_checked() {
        let check = |ranges: &[(u64, u64)], good: bool| {
            let ranges: Vec<_> = ranges
                .iter()
                .map(|(start, end)| range(*start, *end))
                .collect();
            assert_eq!(
                ChunkSet::try_from(ranges.clone()).is_ok(),
                good,
                "{ranges:?}"
            );
        };
        check(&[], true);
        check(&[(0, 1), (2, 3)], true);
        check(&[(0, 1), (1, 3)], false);
        check(&[(2, 3), (0, 1)], false);
        check(&[(5, 5)], false);
        check(&[(5, 4)], false);
    }
}
