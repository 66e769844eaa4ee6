//! Sets of pages of one block, as bits. The unit of validity, dirtiness and claims.

use std::ops::Range;

use smallvec::{SmallVec, smallvec};

/// Pages of one block, by index within the block. Those that it has no room for are never members, and may
/// be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PageSet {
    // Four words cover the default block of 256 pages without an allocation.
    words: SmallVec<[u64; 4]>,
}

/// Calls `f` with each word index that `range` touches and the mask of its bits in that word.
fn each_word(range: Range<usize>, mut f: impl FnMut(usize, u64)) {
    let mut at = range.start;
    while at < range.end {
        let (word, bit) = (at / 64, at % 64);
        let count = (64 - bit).min(range.end - at);
        let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << bit };
        f(word, mask);
        at += count;
    }
}

impl PageSet {
    pub(crate) fn new(pages: usize) -> PageSet {
        PageSet { words: smallvec![0; pages.div_ceil(64)] }
    }

    /// Makes room for `pages` pages; none beyond them is a member.
    pub(crate) fn set_pages(&mut self, pages: usize) {
        self.words.resize(pages.div_ceil(64), 0);
    }

    pub(crate) fn insert(&mut self, range: Range<usize>) {
        each_word(range, |i, mask| self.words[i] |= mask);
    }

    pub(crate) fn remove(&mut self, range: Range<usize>) {
        each_word(range, |i, mask| {
            if let Some(word) = self.words.get_mut(i) {
                *word &= !mask;
            }
        });
    }

    pub(crate) fn any(&self, range: Range<usize>) -> bool {
        let mut found = 0;
        each_word(range, |i, mask| found |= self.word(i) & mask);
        found != 0
    }

    pub(crate) fn all(&self, range: Range<usize>) -> bool {
        let mut missing = 0;
        each_word(range, |i, mask| missing |= !self.word(i) & mask);
        missing == 0
    }

    pub(crate) fn contains(&self, page: usize) -> bool {
        self.word(page / 64) >> (page % 64) & 1 == 1
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.words.iter().all(|w| *w == 0)
    }

    pub(crate) fn clear(&mut self) {
        self.words.fill(0);
    }

    pub(crate) fn count(&self) -> u64 {
        self.words.iter().map(|w| u64::from(w.count_ones())).sum()
    }

    pub(crate) fn union_count(&self, other: &PageSet) -> u64 {
        self.words.iter().zip(&other.words).map(|(a, b)| u64::from((a | b).count_ones())).sum()
    }

    pub(crate) fn add_all(&mut self, other: &PageSet) {
        for (a, b) in self.words.iter_mut().zip(&other.words) {
            *a |= b;
        }
    }

    /// Word `i` of the set, for [`next_run`].
    pub(crate) fn word(&self, i: usize) -> u64 {
        self.words.get(i).copied().unwrap_or(0)
    }

    /// The first run of members within `range`.
    pub(crate) fn run(&self, range: Range<usize>) -> Option<Range<usize>> {
        next_run(range, |i| self.word(i))
    }
}

/// The first run of set bits within `range`, of bits computed word by word.
pub(crate) fn next_run(range: Range<usize>, word: impl Fn(usize) -> u64) -> Option<Range<usize>> {
    let bit = |at: usize| word(at / 64) >> (at % 64) & 1 == 1;
    let mut start = range.start;
    while start < range.end && !bit(start) {
        let rest = word(start / 64) >> (start % 64);
        start += if rest == 0 { 64 - start % 64 } else { rest.trailing_zeros() as usize };
    }
    if start >= range.end {
        return None;
    }
    let mut end = start;
    while end < range.end && bit(end) {
        let rest = !(word(end / 64) >> (end % 64));
        end += (rest.trailing_zeros() as usize).min(64 - end % 64);
    }
    Some(start..end.min(range.end))
}

/// Ranges of a file (bytes or pages), disjoint, merged and sorted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RangeSet {
    ranges: Vec<Range<u64>>,
}

impl RangeSet {
    pub(crate) fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    pub(crate) fn end(&self) -> u64 {
        self.ranges.last().map_or(0, |r| r.end)
    }

    pub(crate) fn insert(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        let first = self.ranges.partition_point(|r| r.end < range.start);
        let last = self.ranges.partition_point(|r| r.start <= range.end);
        let merged =
            match (self.ranges.get(first), last.checked_sub(1).and_then(|i| self.ranges.get(i))) {
                (Some(a), Some(b)) if first < last => {
                    range.start.min(a.start)..range.end.max(b.end)
                }
                _ => range,
            };
        self.ranges.splice(first..last, [merged]);
    }

    pub(crate) fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() || !self.overlaps(&range) {
            return;
        }
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        let last = self.ranges.partition_point(|r| r.start < range.end);
        let mut rest: SmallVec<[Range<u64>; 2]> = SmallVec::new();
        if self.ranges[first].start < range.start {
            rest.push(self.ranges[first].start..range.start);
        }
        if self.ranges[last - 1].end > range.end {
            rest.push(range.end..self.ranges[last - 1].end);
        }
        self.ranges.splice(first..last, rest);
    }

    pub(crate) fn overlaps(&self, range: &Range<u64>) -> bool {
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        self.ranges.get(first).is_some_and(|r| r.start < range.end)
    }

    /// The first member at or after `at`.
    pub(crate) fn next_in(&self, at: u64) -> Option<u64> {
        let first = self.ranges.partition_point(|r| r.end <= at);
        self.ranges.get(first).map(|r| r.start.max(at))
    }

    /// The end of the range around `at`; `at` itself when it is no member.
    pub(crate) fn end_around(&self, at: u64) -> u64 {
        let first = self.ranges.partition_point(|r| r.end <= at);
        self.ranges.get(first).filter(|r| r.start <= at).map_or(at, |r| r.end)
    }

    /// The members within `range`.
    pub(crate) fn within(&self, range: Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        let here = self.ranges[first..].iter().take_while(move |r| r.start < range.end);
        let members = here.map(move |r| r.start.max(range.start)..r.end.min(range.end));
        members.filter(|r| !r.is_empty())
    }

    /// What of `range` is no member.
    pub(crate) fn gaps(&self, range: Range<u64>) -> SmallVec<[Range<u64>; 2]> {
        let mut gaps = SmallVec::new();
        let mut at = range.start;
        for member in self.within(range.clone()) {
            if at < member.start {
                gaps.push(at..member.start);
            }
            at = member.end;
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// The last of its ranges.
    pub(crate) fn last(&self) -> Option<Range<u64>> {
        self.ranges.last().cloned()
    }

    pub(crate) fn covers(&self, range: &Range<u64>) -> bool {
        let first = self.ranges.partition_point(|r| r.end <= range.start);
        range.is_empty()
            || self.ranges.get(first).is_some_and(|r| r.start <= range.start && range.end <= r.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(set: &RangeSet) -> Vec<(u64, u64)> {
        set.ranges.iter().map(|range| (range.start, range.end)).collect()
    }

    #[test]
    fn runs_cross_words() {
        let mut set = PageSet::new(256);
        set.insert(60..70);
        set.insert(128..256);
        assert_eq!(set.run(0..256), Some(60..70));
        assert_eq!(set.run(65..256), Some(65..70));
        assert_eq!(set.run(70..256), Some(128..256));
        assert_eq!(set.run(70..200), Some(128..200));
        assert_eq!(set.run(70..128), None);
        assert!(set.all(60..70) && !set.all(59..70) && set.any(0..61) && !set.any(70..128));
        set.remove(64..65);
        assert_eq!(set.run(60..256), Some(60..64));
        assert_eq!(set.count(), 137);
    }

    #[test]
    fn small_blocks_have_few_pages() {
        let mut set = PageSet::new(16);
        set.insert(0..16);
        assert_eq!(set.run(3..16), Some(3..16));
        assert_eq!(next_run(0..16, |i| !set.word(i)), None);
    }

    #[test]
    fn there_are_no_pages_beyond_the_room() {
        let mut set = PageSet::new(32);
        set.insert(30..32);
        assert!(!set.any(64..300) && set.any(0..300) && !set.all(30..300) && !set.contains(200));
        assert_eq!((set.run(0..256), set.run(100..256)), (Some(30..32), None));
        set.remove(31..256);
        set.set_pages(256);
        set.insert(200..256);
        assert_eq!((set.count(), set.all(200..256), set.contains(31)), (57, true, false));
    }

    #[test]
    fn ranges_merge_and_split() {
        let mut set = RangeSet::default();
        set.insert(10..20);
        set.insert(30..40);
        set.insert(20..30);
        assert_eq!(pairs(&set), [(10, 40)]);
        set.remove(15..16);
        assert_eq!(pairs(&set), [(10, 15), (16, 40)]);
        assert!(set.covers(&(16..40)) && !set.covers(&(14..17)) && set.overlaps(&(14..16)));
        assert!(!set.overlaps(&(15..16)) && !set.overlaps(&(40..50)));
        set.insert(0..100);
        assert_eq!(pairs(&set), [(0, 100)]);
        set.remove(0..100);
        assert!(set.is_empty());
    }

    #[test]
    fn members_and_gaps_make_up_a_range() {
        let mut set = RangeSet::default();
        set.insert(10..20);
        set.insert(30..40);
        let within: Vec<_> = set.within(15..35).collect();
        assert_eq!(within, [15..20, 30..35]);
        assert_eq!(set.gaps(0..50)[..], [0..10, 20..30, 40..50]);
        assert_eq!((set.gaps(12..18).len(), set.within(20..30).count()), (0, 0));
        let gaps = set.gaps(20..30);
        assert_eq!((gaps.first(), gaps.len()), (Some(&(20..30)), 1));
        assert_eq!(set.last(), Some(30..40));
    }
}
