//! The entries of a record's pages: marked before a write, settled after it, compared with what is read.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Place, Record};
use crate::aio::device::BackingFile;
use crate::error::{Errno, Result};
use crate::ledger::entry::{
    BATCH, ENTRY_BYTES, Entry, PAGE_BYTES, TORN, UNKNOWN, Verdict, WRITING, WRITTEN, first_bad,
    joined, judge, pages_of, sum,
};
use crate::ledger::table::{ACTIVE, HAS_TORN, INLINE_PAGES, PADDED, SUSPECT};
use crate::ledger::{Checksum, Counters};

/// Pages that entries are forgotten of one by one; more are forgotten by cutting.
const VOID_PAGES_MAX: u64 = 1 << 16;

/// What is to be recorded of a write before it is handed on.
#[derive(Debug)]
pub(in crate::ledger) struct Writing {
    bytes: Range<u64>,
    /// The pages that begin in it.
    pages: Range<u64>,
    /// Their sums; none without checksums.
    sums: Vec<u32>,
    /// The partition's logical size.
    size: u64,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ledger) enum Outcome {
    /// All of it is in the file.
    Stored,
    /// The first bytes are, and the rest is asked for again.
    Part(u64),
    /// Nobody knows what of it is: those pages are torn until they are written again.
    Failed,
    /// There is no device any more. What of it is in the file is found out at the next mount.
    Gone,
}

impl Place {
    /// Pages from the first on that something can be known of: what lies beyond is not even recorded.
    fn known_pages(&self) -> Result<u64> {
        let Some(sums) = &self.sums else { return Ok(INLINE_PAGES) };
        Ok((sums.status()?.size / ENTRY_BYTES).max(INLINE_PAGES))
    }
}

impl Record {
    /// What there will be to record of `bytes` that are about to be stored at `offset`. Touches no file.
    pub(in crate::ledger) fn prepare(&self, offset: u64, bytes: &[u8]) -> Writing {
        let end = offset + bytes.len() as u64;
        // A transfer that goes on within a page: that page was recorded with what came before.
        let skipped = (offset.next_multiple_of(PAGE_BYTES) - offset).min(bytes.len() as u64);
        let sums = match self.checksum {
            Checksum::Crc32c => {
                bytes[skipped as usize..].chunks(PAGE_BYTES as usize).map(sum).collect()
            }
            Checksum::None => Vec::new(),
        };
        let first = offset.div_ceil(PAGE_BYTES);
        let pages = first..end.div_ceil(PAGE_BYTES).max(first);
        Writing { bytes: offset..end, pages, sums, size: self.size.load(Ordering::Relaxed) }
    }

    /// Records that a write is about to be handed on.
    pub(in crate::ledger) fn begin_write(&self, writing: &Writing) -> Result<()> {
        let Writing { bytes, pages, sums, size } = writing;
        let place = self.make_room(pages)?;
        let mut settled = 0;
        self.change(|state| {
            state.header.flags |= ACTIVE;
            if bytes.end > *size {
                state.header.flags |= PADDED;
                state.header.true_size = *size;
            }
            state.known_pages = state.known_pages.max(pages.end);
            settled = state.header.size;
        })?;
        let recorded = self.each_batch(&place, pages.clone(), |first, entries| {
            for (page, entry) in (first..).zip(entries) {
                let new = sums.get((page - pages.start) as usize).copied().unwrap_or(WRITING);
                // Of bytes that were there before there was a record, nobody can tell that they are still there.
                let foreign = entry.new == UNKNOWN && page * PAGE_BYTES < settled;
                *entry = Entry { new, previous: if foreign { WRITTEN } else { entry.new } };
            }
            true
        });
        self.unsynced.store(true, Ordering::Release);
        recorded?;
        self.state.lock().writes += 1;
        Ok(())
    }

    /// A write that [`Record::begin_write`] knows of has ended.
    pub(in crate::ledger) fn end_write(&self, bytes: &Range<u64>, outcome: Outcome) {
        if outcome == Outcome::Gone {
            // Still under way, as far as the record goes.
            return;
        }
        // Not before: with these bytes still under way the file is to be cut where it ended.
        let end = bytes.end.min(self.size.load(Ordering::Relaxed));
        self.note(|state| {
            state.writes = state.writes.saturating_sub(1);
            let header = &mut state.header;
            match outcome {
                Outcome::Stored if header.has(PADDED) && end > header.true_size => {
                    header.true_size = end;
                }
                Outcome::Failed => header.flags |= HAS_TORN,
                _ => {}
            }
        });
        // A page that was begun by the transfer before ends with this one.
        let pages = match outcome {
            Outcome::Part(moved) => bytes.start / PAGE_BYTES..(bytes.start + moved) / PAGE_BYTES,
            _ => pages_of(bytes),
        };
        let Some(place) = self.state.lock().place() else { return };
        let ended = self.each_batch(&place, pages.clone(), |_, entries| {
            for entry in entries {
                *entry = match (outcome, entry.new) {
                    (Outcome::Failed, _) => Entry::both(TORN),
                    (_, WRITING) => Entry::both(WRITTEN),
                    (_, sum) => Entry::both(sum),
                };
            }
            true
        });
        if let Err(errno) = ended {
            log::error!("ledger: record {}: {}", place.slot, errno.desc());
        }
        if outcome != Outcome::Failed {
            Counters::add(&self.counters.summed, pages.end - pages.start);
        }
    }

    /// Compares what was read at `offset` with its sums; zeros follow beyond the end of the file. Answers how
    /// many bytes from the start are right, with what is wrong behind them.
    pub(in crate::ledger) fn verify(&self, offset: u64, bytes: &[u8]) -> (u64, Option<Errno>) {
        let (place, header) = {
            let state = self.state.lock();
            (state.place(), state.header)
        };
        let Some(place) = place else { return (bytes.len() as u64, None) };
        let compare = self.checksum == Checksum::Crc32c;
        if !compare && !header.has(HAS_TORN) {
            return (bytes.len() as u64, None);
        }
        let mut wrong = None;
        let mut at = 0;
        let read = self.each_batch(
            &place,
            pages_of(&(offset..offset + bytes.len() as u64)),
            |_, entries| {
                if wrong.is_some() {
                    return false;
                }
                let end = (at + entries.len() * PAGE_BYTES as usize).min(bytes.len());
                let pages = bytes[at..end].chunks(PAGE_BYTES as usize);
                let bad = first_bad(entries, pages, compare);
                if let Some((page, torn)) = bad {
                    wrong = Some((at + page * PAGE_BYTES as usize, torn));
                }
                at = end;
                false
            },
        );
        if let Err(errno) = read {
            return (0, Some(errno));
        }
        Counters::add(&self.counters.verified, at as u64 / PAGE_BYTES);
        match wrong {
            None => (bytes.len() as u64, None),
            Some((right, torn)) if torn || header.has(SUSPECT) => {
                Counters::add(&self.counters.torn, 1);
                (right as u64, Some(Errno::EUCLEAN))
            }
            Some((right, _)) => {
                Counters::add(&self.counters.mismatches, 1);
                (right as u64, Some(Errno::EBADMSG))
            }
        }
    }

    /// Forgets what is known of pages whose bytes are about to change without passing here.
    pub(in crate::ledger) fn void(&self, bytes: &Range<u64>) -> Result<()> {
        let Some(place) = self.state.lock().place() else { return Ok(()) };
        let pages = pages_of(bytes);
        self.unsynced.store(true, Ordering::Release);
        if pages.end - pages.start > VOID_PAGES_MAX {
            *self.room.lock() = 0..0;
            return self.table.cut_entries(place.slot, place.sums.as_deref(), pages.start);
        }
        let end = pages.end.min(place.known_pages()?);
        self.each_batch(&place, pages.start.min(end)..end, |_, entries| {
            entries.fill(Entry::default());
            true
        })
    }

    /// Whether [`Record::void`] of these bytes would forget anything.
    pub(in crate::ledger) fn knows_of(&self, bytes: &Range<u64>) -> bool {
        !self.is_quiet() || pages_of(bytes).start < self.state.lock().known_pages
    }

    /// Accepts a page as it is: nothing is known of it any more.
    pub(in crate::ledger) fn accept(&self, bytes: &Range<u64>) -> Result<()> {
        self.void(bytes)
    }

    /// Lets `change` see, and with `true` change, the entries of pages, a batch at a time.
    fn each_batch(
        &self, place: &Place, pages: Range<u64>, mut change: impl FnMut(u64, &mut [Entry]) -> bool,
    ) -> Result<()> {
        let mut entries = [Entry::default(); BATCH];
        let mut first = pages.start;
        while first < pages.end {
            let entries = &mut entries[..BATCH.min((pages.end - first) as usize)];
            let sums = place.sums.as_deref();
            self.table.read_entries(place.slot, sums, first, entries)?;
            if change(first, entries) {
                self.table.write_entries(place.slot, sums, first, entries)?;
            }
            first += entries.len() as u64;
        }
        Ok(())
    }

    /// Decides by content what became of the writes that were under way when the daemon ended: `read`
    /// gives the sum of a page as it is now. A write's pages lie within one block of `block` bytes.
    /// Answers the ranges that are torn.
    pub(in crate::ledger) fn resolve(
        &self, size: u64, block: u64, repair: bool, mut read: impl FnMut(u64) -> Result<u32>,
    ) -> Result<Vec<Range<u64>>> {
        let Some(place) = self.state.lock().place() else { return Ok(Vec::new()) };
        let mut torn: Vec<Range<u64>> = Vec::new();
        let mut run: Vec<(u64, Entry)> = Vec::new();
        let block_pages = (block / PAGE_BYTES).max(1);
        let mut flying: Vec<Vec<(u64, Entry)>> = Vec::new();
        let pages = size.div_ceil(PAGE_BYTES).min(place.known_pages()?);
        self.each_batch(&place, 0..pages, |first, entries| {
            for (page, entry) in (first..).zip(entries.iter()) {
                if !entry.in_flight() {
                    continue;
                }
                let goes_on =
                    run.last().is_some_and(|(last, _)| last / block_pages == page / block_pages);
                if !goes_on && !run.is_empty() {
                    flying.push(std::mem::take(&mut run));
                }
                run.push((page, *entry));
            }
            false
        })?;
        flying.extend((!run.is_empty()).then_some(run));
        for run in flying {
            let entries: Vec<Entry> = run.iter().map(|(_, entry)| *entry).collect();
            let found: Result<Vec<u32>> = run.iter().map(|(page, _)| read(*page)).collect();
            let verdict = judge(&entries, &found?);
            if verdict == Verdict::Torn {
                torn.extend(run.iter().map(|(page, _)| page * PAGE_BYTES..(page + 1) * PAGE_BYTES));
            }
            if !repair {
                continue;
            }
            for (page, entry) in run {
                let decided = match verdict {
                    Verdict::New => Entry::both(entry.new),
                    Verdict::Old => Entry::both(entry.previous),
                    Verdict::Torn => Entry::both(TORN),
                };
                self.table.write_entries(place.slot, place.sums.as_deref(), page, &[decided])?;
            }
        }
        Ok(joined(torn))
    }
}
