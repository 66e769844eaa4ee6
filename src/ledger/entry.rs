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

/// The page is a mixture: unreadable until it is written again.
pub(super) const TORN: u32 = 1;

/// The page is being written, without a checksum.
pub(super) const WRITING: u32 = 2;

/// The page was written, without a checksum, or by others.
pub(super) const WRITTEN: u32 = 3;

const ZEROS: [u8; PAGE_BYTES as usize] = [0; PAGE_BYTES as usize];

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
    if sum <= WRITTEN { sum | 1 << 31 } else { sum }
}

/// CRC32C of anything else: headers.
pub(super) fn crc(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
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

    pub(super) fn decode(bytes: [u8; ENTRY_BYTES as usize]) -> Self {
        let both = u64::from_le_bytes(bytes);
        Self { new: (both & u64::from(u32::MAX)) as u32, previous: (both >> 32) as u32 }
    }

    pub(super) fn encode(self) -> [u8; ENTRY_BYTES as usize] {
        (u64::from(self.new) | u64::from(self.previous) << 32).to_le_bytes()
    }

    /// A write of the page was begun and did not end.
    pub(super) fn in_flight(self) -> bool {
        self.new != self.previous
    }

    /// Whether a page with this sum can be what was there before the write. Of a page that nothing was known
    /// of, only zeros are: it was beyond the end of the file, or in a hole.
    pub(super) fn matches_previous(self, found: u32) -> bool {
        match self.previous {
            UNKNOWN => found == sum(&ZEROS),
            TORN | WRITING | WRITTEN => false,
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
pub(super) fn judge(entries: &[Entry], found: &[u32]) -> Verdict {
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
        if entry.new == TORN {
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
    let mixed = compare && judge(&flying, &found) == Verdict::Torn;
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
        assert!(sum(&ZEROS) > WRITTEN);
    }

    #[test]
    fn entries_survive_their_encoding() {
        for (new, previous) in [(0, 0), (1, u32::MAX), (u32::MAX, 7)] {
            let entry = Entry { new, previous };
            assert_eq!(Entry::decode(entry.encode()), entry);
        }
    }

    #[test]
    fn interrupted_writes_are_new_or_old_or_torn() {
        let entries = [Entry { new: 10, previous: 20 }, Entry { new: 11, previous: 21 }];
        assert_eq!(judge(&entries, &[10, 11]), Verdict::New);
        assert_eq!(judge(&entries, &[20, 21]), Verdict::Old);
        assert_eq!(judge(&entries, &[10, 21]), Verdict::Torn);
        assert_eq!(judge(&entries, &[10, 99]), Verdict::Torn);
        let fresh = [Entry { new: 10, previous: UNKNOWN }, Entry { new: 11, previous: UNKNOWN }];
        assert_eq!(judge(&fresh, &[sum(&ZEROS), sum(&ZEROS)]), Verdict::Old);
        assert_eq!(judge(&fresh, &[10, sum(&ZEROS)]), Verdict::Torn);
        // Without checksums nobody can tell.
        let marked = [Entry { new: WRITING, previous: UNKNOWN }];
        assert_eq!(judge(&marked, &[77]), Verdict::Torn);
        // Zeros were there before only where nothing was.
        let mut bytes = [Entry { new: 10, previous: WRITTEN }];
        assert_eq!(judge(&bytes, &[sum(&ZEROS)]), Verdict::Torn);
        bytes[0].previous = UNKNOWN;
        assert_eq!(judge(&bytes, &[sum(&ZEROS)]), Verdict::Old);
    }
}
