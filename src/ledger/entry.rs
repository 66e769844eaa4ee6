//! What is known of one page: two sums, the newest and the one before.

use std::ops::Range;

/// Bytes that have a sum of their own, whatever the block size.
pub(super) const PAGE_BYTES: u64 = 4096;

/// Bytes of an entry in a file.
pub(super) const ENTRY_BYTES: u64 = 8;

/// Entries handled at a time: the pages of a mebibyte.
pub(super) const BATCH: usize = 256;

/// Nothing is known of the page.
pub(super) const UNKNOWN: u32 = 0;

/// The page may be a mixture: unreadable until other bytes replace it. The entry's other half is the print of what was
/// found ([`Seen::print`]), or [`UNKNOWN`].
pub(super) const TORN: u32 = 0x0f0f_0f0f;

/// The page is being written, without a checksum.
pub(super) const WRITING: u32 = 0x3333_3333;

/// The page was written, without a checksum, or by others.
pub(super) const WRITTEN: u32 = 0x5555_5555;

/// Values with a meaning of their own. A flipped bit makes none of them another, nor a sum one of them.
const MARKS: [u32; 4] = [UNKNOWN, TORN, WRITING, WRITTEN];

/// How entries are encoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Format {
    /// Marks were 0 to 3, and torn pages had no sum.
    First,
    /// As described here.
    #[default]
    Second,
}

impl Format {
    fn decode(self, word: u32) -> u32 {
        match self {
            Format::First => match word {
                0..4 => MARKS[word as usize],
                sum => unmarked(sum),
            },
            Format::Second => {
                let near = MARKS.iter().find(|mark| (word ^ **mark).count_ones() <= 1);
                near.copied().unwrap_or(word)
            }
        }
    }

    fn encode(self, word: u32) -> u32 {
        match (self, MARKS.iter().position(|mark| *mark == word)) {
            (Format::First, Some(mark)) => mark as u32,
            _ => word,
        }
    }
}

/// A sum that cannot be mistaken for a mark, whichever bit of it flips.
fn unmarked(sum: u32) -> u32 {
    let is_near = MARKS.iter().any(|mark| (sum ^ mark).count_ones() <= 2);
    if is_near { !sum } else { sum }
}

/// A page that nobody has written.
pub(super) const ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

/// The CRC32C of a page, of which `bytes` are the beginning and zeros the rest. Never one of the values with a
/// meaning of their own.
pub(super) fn sum(bytes: &[u8]) -> u32 {
    let crc = |bytes: &[u8]| crc_fast::crc32_iscsi(bytes);
    let sum = match bytes.len() {
        length if length == PAGE_BYTES as usize => crc(bytes),
        length => {
            let mut page = ZEROS;
            page[..length].copy_from_slice(bytes);
            crc(&page)
        }
    };
    unmarked(sum)
}

/// CRC32C of anything else: headers.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// A page as it was found in its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) sum: u32,
    /// See `sys::place_on_device`.
    pub(super) place: u64,
}

impl Seen {
    /// Tells whether a page is still what it was: bytes that are the same but lie elsewhere were written again.
    pub(super) fn print(self) -> u32 {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.sum.to_le_bytes());
        bytes[4..].copy_from_slice(&self.place.to_le_bytes());
        unmarked(crc(&bytes))
    }
}

/// The sums of a page. While the page is written, its bytes are those of `new` or those of `previous`;
/// else both are equal.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) new: u32,
    pub(super) previous: u32,
}

impl Entry {
    pub(super) fn both(sum: u32) -> Self {
        Self { new: sum, previous: sum }
    }

    /// A page whose bytes may be a mixture, with what was found where it could be read.
    pub(super) fn torn(found: Option<Seen>) -> Self {
        Self { new: TORN, previous: found.map_or(UNKNOWN, Seen::print) }
    }

    pub(super) fn decode(bytes: [u8; ENTRY_BYTES as usize], format: Format) -> Self {
        let both = u64::from_le_bytes(bytes);
        let (new, previous) = ((both & u64::from(u32::MAX)) as u32, (both >> 32) as u32);
        Self { new: format.decode(new), previous: format.decode(previous) }
    }

    pub(super) fn encode(self, format: Format) -> [u8; ENTRY_BYTES as usize] {
        let (new, previous) = (format.encode(self.new), format.encode(self.previous));
        (u64::from(new) | u64::from(previous) << 32).to_le_bytes()
    }

    /// Whether it has a sum, not only a mark.
    pub(super) fn has_sum(self) -> bool {
        !MARKS.contains(&self.new)
    }

    pub(super) fn is_torn(self) -> bool {
        self.new == TORN
    }

    /// A write of the page was begun and did not end.
    pub(super) fn in_flight(self) -> bool {
        self.new != self.previous && !self.is_torn()
    }

    /// Returns whether the page's bytes tell what became of it. Without sums nobody can say.
    pub(super) fn is_decidable(self) -> bool {
        let known = |sum: u32| !MARKS.contains(&sum);
        match self.is_torn() {
            true => known(self.previous),
            false => known(self.new) && (known(self.previous) || self.previous == UNKNOWN),
        }
    }

    /// Returns whether the page is certainly not one that the marked write has left: neither the new bytes nor those
    /// from before.
    pub(super) fn is_replaced_by(self, found: Seen) -> bool {
        let is_left = match self.is_torn() {
            // A bit of the print may have flipped.
            true => (self.previous ^ found.print()).count_ones() <= 1,
            false => self.new == found.sum || self.matches_previous(found.sum),
        };
        self.is_decidable() && !is_left
    }

    /// Whether a page that was about to be cleared, whole or in part, when the daemon was killed is as it was, or as it
    /// was to be.
    pub(super) fn is_before_or_after_clearing(self, bytes: &[u8]) -> bool {
        let found = sum(bytes);
        !self.is_torn()
            && (found == sum(&ZEROS) || found == self.new || self.matches_previous(found))
    }

    /// Whether a page with this sum can be what was there before the write. Of a page that nothing was known
    /// of, only zeros are: it was beyond the end of the file, or in a hole.
    pub(super) fn matches_previous(self, found: u32) -> bool {
        match self.previous {
            UNKNOWN => found == sum(&ZEROS),
            mark if MARKS.contains(&mark) => false,
            previous => found == previous,
        }
    }
}

/// What became of pages whose write was interrupted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// All of them hold the new bytes.
    New,
    /// All of them hold the bytes from before.
    Old,
    /// Neither: a mixture.
    Torn,
}

/// Judges the pages of one interrupted write by what their sums are now.
pub(super) fn verdict_of(entries: &[Entry], found: &[u32]) -> Verdict {
    let pairs = || entries.iter().zip(found);
    if pairs().all(|(entry, found)| entry.new == *found) {
        Verdict::New
    } else if pairs().all(|(entry, found)| entry.matches_previous(*found)) {
        Verdict::Old
    } else {
        Verdict::Torn
    }
}

/// The pages that hold bytes of a range.
pub(super) fn pages_of(bytes: &Range<u64>) -> Range<u64> {
    bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES)
}

/// The first page that is not as its entry says, and whether it is torn. Of pages whose write failed, all are
/// the new ones or all the old.
pub(super) fn first_bad<'a>(
    entries: &[Entry], pages: impl Iterator<Item = &'a [u8]>, compare: bool,
) -> Option<(usize, bool)> {
    let (mut flying, mut found) = (Vec::new(), Vec::new());
    let mut first_flying = 0;
    for (i, (entry, page)) in entries.iter().zip(pages).enumerate() {
        if entry.is_torn() {
            return Some((i, true));
        }
        if entry.in_flight() {
            if flying.is_empty() {
                first_flying = i;
            }
            flying.push(*entry);
            found.push(if compare { sum(page) } else { UNKNOWN });
        } else if compare
            && !matches!(entry.new, UNKNOWN | WRITING | WRITTEN)
            && sum(page) != entry.new
        {
            return Some((i, false));
        }
    }
    let mixed = compare && verdict_of(&flying, &found) == Verdict::Torn;
    mixed.then_some((first_flying, true))
}

/// Joins ranges that touch.
pub(super) fn joined(ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    let mut joined: Vec<Range<u64>> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => joined.push(range),
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_crc32c_and_never_marks() {
        assert_eq!(crc(b"123456789"), 0xE306_9283);
        let page: Vec<u8> = (0..4096).map(|i| (i % 251) as u8).collect();
        let mut padded = page[..1000].to_vec();
        padded.resize(4096, 0);
        assert_eq!(sum(&page[..1000]), sum(&padded));
        assert_ne!(sum(&page), sum(&padded));
        for near in MARKS.into_iter().flat_map(|mark| (0..32).map(move |bit| mark ^ 1 << bit)) {
            assert!(MARKS.iter().all(|mark| (unmarked(near) ^ mark).count_ones() > 2), "{near:x}");
        }
    }

    #[test]
    fn entries_survive_their_encoding() {
        for format in [Format::First, Format::Second] {
            for (new, previous) in [(0, 0), (TORN, unmarked(u32::MAX)), (WRITTEN, WRITING)] {
                let entry = Entry { new, previous };
                assert_eq!(Entry::decode(entry.encode(format), format), entry);
            }
        }
        let first = [1, 0, 0, 0, 3, 0, 0, 0];
        assert_eq!(Entry::decode(first, Format::First), Entry { new: TORN, previous: WRITTEN });
    }

    #[test]
    fn a_flipped_bit_makes_no_mark_another() {
        let sums = [sum(&[1; 4096]), sum(&[2; 4096])];
        for entry in [
            Entry::torn(Some(Seen { sum: sums[0], place: 7 })),
            Entry::default(),
            Entry::both(WRITTEN),
            Entry { new: WRITING, previous: WRITTEN },
            Entry { new: WRITING, previous: UNKNOWN },
        ] {
            for bit in 0..64 {
                let bytes =
                    (u64::from_le_bytes(entry.encode(Format::Second)) ^ 1 << bit).to_le_bytes();
                let found = Entry::decode(bytes, Format::Second);
                assert_eq!(found.new, entry.new, "{entry:?}, bit {bit}");
                assert_eq!(found.in_flight(), entry.in_flight(), "{entry:?}, bit {bit}");
            }
        }
        // A page with a sum still has the other half to be compared with.
        for bit in 0..64 {
            let bytes = u64::from_le_bytes(Entry::both(sums[1]).encode(Format::Second)) ^ 1 << bit;
            let entry = Entry::decode(bytes.to_le_bytes(), Format::Second);
            assert!(
                entry.in_flight() && verdict_of(&[entry], &[sums[1]]) != Verdict::Torn,
                "{bit}"
            );
            assert!(verdict_of(&[entry], &[sums[0]]) == Verdict::Torn, "{bit}");
        }
    }

    #[test]
    fn interrupted_writes_are_new_or_old_or_torn() {
        let sums: Vec<u32> = (0..5).map(|byte| sum(&[byte; 4096])).collect();
        let entry = |new, previous| Entry { new, previous };
        let entries = [entry(sums[1], sums[2]), entry(sums[3], sums[4])];
        assert_eq!(verdict_of(&entries, &[sums[1], sums[3]]), Verdict::New);
        assert_eq!(verdict_of(&entries, &[sums[2], sums[4]]), Verdict::Old);
        assert_eq!(verdict_of(&entries, &[sums[1], sums[4]]), Verdict::Torn);
        assert_eq!(verdict_of(&entries, &[sums[1], sums[0]]), Verdict::Torn);
        let fresh = [entry(sums[1], UNKNOWN), entry(sums[3], UNKNOWN)];
        assert_eq!(verdict_of(&fresh, &[sums[0], sums[0]]), Verdict::Old);
        assert_eq!(verdict_of(&fresh, &[sums[1], sums[0]]), Verdict::Torn);
        // Without checksums nobody can tell.
        assert_eq!(verdict_of(&[entry(WRITING, UNKNOWN)], &[77]), Verdict::Torn);
        // Zeros were there before only where nothing was.
        assert_eq!(verdict_of(&[entry(sums[1], WRITTEN)], &[sums[0]]), Verdict::Torn);
        assert_eq!(verdict_of(&[entry(sums[1], UNKNOWN)], &[sums[0]]), Verdict::Old);
        // What is neither was written by others.
        let seen = |at: usize| Seen { sum: sums[at], place: 7 };
        assert!(entries[0].is_replaced_by(seen(0)) && !entries[0].is_replaced_by(seen(2)));
        let torn = Entry::torn(Some(seen(1)));
        assert!(torn.is_replaced_by(seen(2)) && !torn.is_replaced_by(seen(1)));
        assert!(torn.is_replaced_by(Seen { place: 8, ..seen(1) }), "the same bytes elsewhere");
        assert!(!Entry::torn(None).is_replaced_by(seen(1)));
        assert!(!entry(WRITING, WRITTEN).is_replaced_by(seen(1)));
        assert!(!entry(sums[1], WRITTEN).is_replaced_by(seen(2)), "it may be from before");
    }
}
