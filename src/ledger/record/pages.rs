//! The entries of a record's pages: marked before a write, settled after it, compared with what is read.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Record;
use crate::error::{Errno, Result};
use crate::ledger::entry::{
    BATCH, Entry, PAGE_BYTES, TORN, UNKNOWN, WRITING, WRITTEN, first_bad, pages_of, sum,
};
use crate::ledger::stamp::Stamp;
use crate::ledger::table::{ACTIVE, COMPLETE, HAS_TORN, Header, Place, SUSPECT};
use crate::ledger::{Checksum, Counters};

/// What is to be recorded of a write before it is handed on.
#[derive(Debug)]
pub(in crate::ledger) struct Writing {
    pages: Range<u64>,
    /// Their sums; none without checksums.
    sums: Vec<u32>,
}

/// What became of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::ledger) enum Outcome {
    /// All of it is in the file.
    Stored,
    /// Nobody knows what of it is: those pages are torn until they are written again.
    Failed,
    /// There is no device any more. What of it is in the file is found out at the next mount.
    Gone,
}

/// Whether entries of pages that were written may be missing.
fn lacks_entries(header: &Header) -> bool {
    header.has(SUSPECT) && header.has(COMPLETE)
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// How many bytes from the start are of pages that nobody has written.
fn written_without_entry(bytes: &[u8]) -> (u64, Option<Errno>) {
    match bytes.chunks(PAGE_BYTES as usize).position(|page| !is_zero(page)) {
        Some(page) => (page as u64 * PAGE_BYTES, Some(Errno::EUCLEAN)),
        None => (bytes.len() as u64, None),
    }
}

impl Record {
    /// What there will be to record of `bytes` that are about to be stored from `offset` on, where a page begins. Touches
    /// no file.
    pub(in crate::ledger) fn prepare(&self, offset: u64, bytes: &[u8]) -> Writing {
        debug_assert!(offset.is_multiple_of(PAGE_BYTES), "a write at {offset}, within a page");
        let sums = match self.shared.checksum {
            Checksum::Crc32c => bytes.chunks(PAGE_BYTES as usize).map(sum).collect(),
            Checksum::Writes | Checksum::None => Vec::new(),
        };
        let pages = pages_of(&(offset..offset + bytes.len() as u64));
        Writing { pages, sums }
    }

    /// Records that a write is about to be handed on.
    pub(in crate::ledger) fn begin_write(&self, writing: &Writing) -> Result<()> {
        let Some(place) = self.make_room(&writing.pages)? else {
            self.shared.pulse.begin();
            self.state.lock().writes += 1;
            return Ok(());
        };
        let recorded = self.record_write(&place, writing);
        self.unsynced.store(true, Ordering::Release);
        match recorded.or_else(|errno| self.is_short(errno)) {
            Ok(()) => self.shared.pulse.begin(),
            Err(errno) => {
                self.state.lock().writes -= 1;
                return Err(errno);
            }
        }
        Ok(())
    }

    fn record_write(&self, place: &Place, writing: &Writing) -> Result<()> {
        let Writing { pages, sums, .. } = writing;
        let (mut settled, mut has_pieces) = (0, false);
        self.change(|state| {
            has_pieces = state.unfinished.range(pages.clone()).next().is_some();
            state.header.flags |= if has_pieces { HAS_TORN } else { 0 };
            // Under way from here on: who ends a change of shape meanwhile must not record the file as settled.
            state.writes += 1;
            state.header.flags |= ACTIVE;
            state.header.session = self.shared.session;
            state.known_pages = state.known_pages.max(pages.end);
            settled = state.header.size;
        })?;
        self.each_batch(place, pages.clone(), |first, entries| {
            for (page, entry) in (first..).zip(entries) {
                let new = sums.get((page - pages.start) as usize).copied().unwrap_or(WRITING);
                // Of bytes that were there before there was a record, nobody can tell that they are still there.
                let foreign = entry.new == UNKNOWN && page * PAGE_BYTES < settled;
                let begun = Entry { new, previous: if foreign { WRITTEN } else { entry.new } };
                *entry = if has_pieces { self.begun(page, begun) } else { begun };
            }
            true
        })
    }

    /// A write that [`Record::begin_write`] knows of has ended; `look` tells what the file is like now.
    pub(in crate::ledger) fn end_write(
        &self, bytes: &Range<u64>, outcome: Outcome, look: impl Fn() -> Option<Stamp>,
    ) {
        if outcome == Outcome::Gone {
            // Still under way, as far as the record goes.
            return;
        }
        self.shared.pulse.end();
        let pages = pages_of(bytes);
        let place = self.state.lock().place();
        let ended = place.map_or(Ok(()), |place| {
            self.each_batch(&place, pages.clone(), |first, entries| {
                for (page, entry) in (first..).zip(entries) {
                    *entry = match (outcome, entry.new) {
                        (_, TORN) => {
                            self.ended(page, outcome);
                            *entry
                        }
                        (Outcome::Failed, _) => Entry::torn(None),
                        (_, WRITING) => Entry::both(WRITTEN),
                        (_, sum) => Entry::both(sum),
                    };
                }
                true
            })
        });
        if let Err(errno) = ended.or_else(|errno| self.is_short(errno)) {
            let slot = self.state.lock().slot.unwrap_or_default();
            log::error!(partition = slot; "ledger: record {slot}: {}", errno.desc());
        }
        if outcome != Outcome::Failed {
            Counters::add(&self.shared.counters.summed, pages.end - pages.start);
        }
        self.note(|state| {
            state.writes = state.writes.saturating_sub(1);
            state.ended += 1;
            if outcome == Outcome::Failed {
                state.header.flags |= HAS_TORN;
            }
        });
        // Last: a file that nothing is written to is as its record says.
        self.settle(look);
    }

    /// Compares what was read at `offset` with its sums; zeros follow beyond the end of the file. Answers how
    /// many bytes from the start are right, with what is wrong behind them.
    pub(in crate::ledger) fn verify(&self, offset: u64, bytes: &[u8]) -> (u64, Option<Errno>) {
        let all = bytes.len() as u64;
        let (place, header, torn) = {
            let state = self.state.lock();
            let asked = offset..offset + all;
            let torn =
                state.torn.iter().filter(|torn| torn.start < asked.end && asked.start < torn.end);
            (state.place(), state.header, torn.map(|torn| torn.start.max(offset) - offset).min())
        };
        let compare = self.compares();
        let checked = match place.filter(|_| compare || header.has(HAS_TORN)) {
            Some(place) => self.compare(&place, offset, bytes, &header),
            None if compare && lacks_entries(&header) => written_without_entry(bytes),
            None => (all, None),
        };
        match torn {
            Some(torn) if torn <= checked.0 => {
                Counters::add(&self.shared.counters.torn, 1);
                (torn, Some(Errno::EUCLEAN))
            }
            _ => checked,
        }
    }

    fn compare(
        &self, place: &Place, offset: u64, bytes: &[u8], header: &Header,
    ) -> (u64, Option<Errno>) {
        let all = bytes.len() as u64;
        let compare = self.compares();
        let counters = &self.shared.counters;
        let pages = pages_of(&(offset..offset + all));
        let (changing, decided) = {
            let state = self.state.lock();
            let decided = state.decided.range(pages.clone());
            (
                state.changing.clone(),
                decided.map(|(page, entry)| (*page, *entry)).collect::<Vec<_>>(),
            )
        };
        let (mut wrong, mut at) = (None, 0);
        let read = self.each_batch(place, pages, |first, entries| {
            if wrong.is_some() {
                return false;
            }
            for (page, entry) in &decided {
                if let Some(at) = page.checked_sub(first).filter(|at| *at < entries.len() as u64) {
                    entries[at as usize] = *entry;
                }
            }
            let end = (at + entries.len() * PAGE_BYTES as usize).min(bytes.len());
            let pages = || bytes[at..end].chunks(PAGE_BYTES as usize);
            if changing.start < changing.end {
                for ((page, entry), bytes) in (first..).zip(entries.iter_mut()).zip(pages()) {
                    if changing.contains(&page) && entry.is_before_or_after_clearing(bytes) {
                        *entry = Entry::default();
                    }
                }
            }
            let bad = first_bad(entries, pages(), compare);
            let lost = (compare && lacks_entries(header)).then(|| {
                let known = entries.iter().zip(pages());
                let is_lost =
                    |(entry, page): (&Entry, &[u8])| *entry == Entry::default() && !is_zero(page);
                known.into_iter().position(is_lost).map(|page| (page, true))
            });
            if let Some((page, torn)) = bad.into_iter().chain(lost.flatten()).min() {
                wrong = Some((at + page * PAGE_BYTES as usize, torn));
            }
            at = end;
            false
        });
        if let Err(errno) = read {
            return (0, Some(errno));
        }
        Counters::add(&counters.verified, at as u64 / PAGE_BYTES);
        match wrong {
            None => (all, None),
            Some((right, torn)) if torn || header.has(SUSPECT) => {
                Counters::add(&counters.torn, 1);
                (right as u64, Some(Errno::EUCLEAN))
            }
            Some((right, _)) => {
                Counters::add(&counters.mismatches, 1);
                (right as u64, Some(Errno::EBADMSG))
            }
        }
    }

    /// The first of these pages of which something may be known, and those that follow it; `None` when there are no more.
    pub(in crate::ledger) fn known_pages(&self, pages: Range<u64>) -> Option<Range<u64>> {
        let place = self.state.lock().place()?;
        self.shared.table.known_pages(&place, pages.start, pages.end)
    }

    /// Accepts a page as it is: nothing is known of it any more.
    pub(in crate::ledger) fn accept(&self, page: u64) -> Result<()> {
        let Some(place) = self.state.lock().place() else { return Ok(()) };
        self.unsynced.store(true, Ordering::Release);
        self.shared.table.forget_entries(&place, &(page..page + 1))
    }

    /// Lets `change` see, and with `true` change, the entries of pages, a batch at a time.
    pub(super) fn each_batch(
        &self, place: &Place, pages: Range<u64>, mut change: impl FnMut(u64, &mut [Entry]) -> bool,
    ) -> Result<()> {
        let mut entries = [Entry::default(); BATCH];
        let mut first = pages.start;
        while first < pages.end {
            let entries = &mut entries[..BATCH.min((pages.end - first) as usize)];
            self.shared.table.read_entries(place, first, entries)?;
            if change(first, entries) {
                self.shared.table.write_entries(place, first, entries)?;
            }
            first += entries.len() as u64;
        }
        Ok(())
    }
}
