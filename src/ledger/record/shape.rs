//! Changes of a backing file that no transfer makes: truncate, holes, zeros, times.
//!
//! A page of which such a change leaves some bytes goes through it as through a write: its sums from before and after
//! are on record meanwhile. The pages within are as before, or zero.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::Record;
use crate::error::Result;
use crate::ledger::entry::{Entry, PAGE_BYTES, Seen, WRITTEN, pages_of};
use crate::ledger::page::Page;
use crate::ledger::stamp::Stamp;
use crate::ledger::table::{ACTIVE, COMPLETE, HAS_TORN, PADDED, Place, SHAPING, SUSPECT, TIMED};

/// A page of which a change leaves some bytes.
#[derive(Debug, Clone, Copy)]
pub(in crate::ledger) struct Edge {
    pub(in crate::ledger) page: u64,
    /// Its sums.
    pub(in crate::ledger) before: u32,
    pub(in crate::ledger) after: u32,
}

impl Edge {
    /// Page number `page` of a file, of which `bytes` are to become zeros, or to go.
    pub(in crate::ledger) fn new(page: u64, mut found: Page, bytes: &Range<u64>) -> Self {
        let before = found.sum();
        found.clear(page, bytes);
        Self { page, before, after: found.sum() }
    }
}

/// The pages of which a change of these bytes leaves some.
fn edges(bytes: &Range<u64>, size: u64) -> Vec<u64> {
    let first = (!bytes.start.is_multiple_of(PAGE_BYTES)).then_some(bytes.start / PAGE_BYTES);
    let is_within = bytes.end < size && !bytes.end.is_multiple_of(PAGE_BYTES);
    let last = is_within.then_some(bytes.end / PAGE_BYTES);
    let mut edges: Vec<u64> = first.into_iter().chain(last).collect();
    edges.dedup();
    edges
}

/// What is known of an edge after the change: the sum that it has, when that is one of the two that it could have. Else
/// its bytes were damaged before, and stay so.
fn settled(entry: Entry, seen: Option<Seen>) -> Entry {
    match seen {
        _ if entry == Entry::default() => entry,
        seen if entry.is_torn() => Entry::torn(seen),
        Some(Seen { sum, .. }) if sum == entry.new || sum == entry.previous => Entry::both(sum),
        Some(Seen { sum, .. }) if !entry.has_sum() => Entry::both(sum),
        _ => entry,
    }
}

impl Record {
    /// Times, space or end of the backing file are about to be changed, and none of its bytes. [`Record::end_change`] is
    /// to follow.
    pub(in crate::ledger) fn begin_change(&self) -> Result<()> {
        self.begin(|_| self.note_change(ACTIVE, None))
    }

    /// As [`Record::begin_change`], for a modification time that the file is about to get.
    pub(in crate::ledger) fn begin_timing(&self, modified_ns: i64) -> Result<()> {
        let next = Some(modified_ns.cast_unsigned());
        self.begin(|_| self.note_change(ACTIVE | TIMED, next))
    }

    /// As [`Record::begin_change`]: these bytes are about to become zeros, or to go.
    pub(in crate::ledger) fn begin_shaping(
        &self, bytes: &Range<u64>, edges: &[Edge],
    ) -> Result<()> {
        // The kernel begins none while a write(2) is under way.
        self.end_piece(pages_of(bytes))?;
        self.begin(|slot| {
            self.shared.table.set_change(slot, bytes)?;
            self.note_change(ACTIVE | SHAPING, None)?;
            let Some(place) = self.state.lock().place() else { return Ok(()) };
            for edge in edges {
                self.change_entry(&place, edge.page, |entry| {
                    let is_whole = entry.has_sum() && !entry.in_flight();
                    match is_whole && entry.new == edge.before {
                        true => Entry { new: edge.after, previous: edge.before },
                        // What it looks like is found out again afterwards.
                        false if entry.is_torn() => Entry::torn(None),
                        false => entry,
                    }
                })?;
            }
            Ok(())
        })
    }

    fn begin(&self, note: impl FnOnce(u32) -> Result<()>) -> Result<()> {
        let slot = {
            let mut state = self.state.lock();
            state.changes += 1;
            state.slot.filter(|_| state.stored.is_some())
        };
        let begun = slot.map_or(Ok(()), note);
        if begun.is_err() {
            self.state.lock().changes -= 1;
        }
        begun
    }

    fn note_change(&self, flags: u32, next: Option<u64>) -> Result<()> {
        let written = self.change(|state| {
            let header = &mut state.header;
            header.session = self.shared.session;
            header.flags |= flags;
            header.next = next.unwrap_or(header.next);
        })?;
        // Whatever the file's time becomes, it is not much later than this.
        if !written {
            self.shared.table.pulse();
        }
        Ok(())
    }

    /// The change that was begun has been made, or has failed; `look` tells what the file is like now.
    pub(in crate::ledger) fn end_change(&self, look: impl Fn() -> Option<Stamp>) {
        self.note(|state| {
            state.changes -= 1;
            state.ended += 1;
            // Else it goes with what is recorded below.
            if state.changes == 0 && state.writes > 0 {
                state.header.flags &= !SHAPING;
            }
        });
        self.settle(look);
    }

    /// Whether anything may be known of these bytes.
    pub(in crate::ledger) fn knows_of(&self, bytes: &Range<u64>) -> bool {
        let state = self.state.lock();
        state.slot.is_some() && (!self.is_quiet() || pages_of(bytes).start < state.known_pages)
    }

    /// The pages of which such a change leaves some bytes, where their sums are to be known.
    pub(in crate::ledger) fn changed_in_part(&self, bytes: &Range<u64>, size: u64) -> Vec<u64> {
        if self.compares() || self.state.lock().header.has(HAS_TORN) {
            edges(bytes, size)
        } else {
            Vec::new()
        }
    }

    /// The bytes of this range have changed: what was known of pages within is forgotten, damage too. Damage of pages
    /// of which some bytes stay is kept; else they are what was `seen` of them. `size` is the file's.
    pub(in crate::ledger) fn changed(
        &self, bytes: &Range<u64>, size: u64, seen: &[(u64, Option<Seen>)],
    ) -> Result<()> {
        let Some(place) = self.state.lock().place() else { return Ok(()) };
        self.unsynced.store(true, Ordering::Release);
        let to_end = bytes.end >= size;
        let end = if to_end { u64::MAX / PAGE_BYTES } else { bytes.end / PAGE_BYTES };
        let whole = bytes.start.div_ceil(PAGE_BYTES)..end;
        if whole.start < whole.end {
            let mut room = self.room.lock();
            if room.end > whole.start {
                *room = room.start.min(whole.start)..whole.start;
            }
            drop(room);
            self.shared.table.forget_entries(&place, &whole)?;
        }
        let seen = |page| seen.iter().find(|(edge, _)| *edge == page).and_then(|(_, seen)| *seen);
        for page in edges(bytes, size) {
            self.change_entry(&place, page, |entry| {
                let has_no_sum = entry.is_torn() || entry == Entry::default();
                match has_no_sum || self.compares() {
                    true => settled(entry, seen(page)),
                    false => Entry::both(WRITTEN),
                }
            })?;
        }
        if to_end {
            let mut state = self.state.lock();
            state.known_pages = state.known_pages.min(bytes.start.div_ceil(PAGE_BYTES));
            if size == 0 {
                state.header.flags &= !(HAS_TORN | SUSPECT);
            }
        }
        Ok(())
    }

    /// The change has failed: its edges are what was `seen` of them.
    pub(in crate::ledger) fn unchanged(&self, seen: &[(u64, Option<Seen>)]) -> Result<()> {
        let Some(place) = self.state.lock().place() else { return Ok(()) };
        for (page, seen) in seen {
            self.change_entry(&place, *page, |entry| match entry.in_flight() || entry.is_torn() {
                true => settled(entry, *seen),
                false => entry,
            })?;
        }
        Ok(())
    }

    fn change_entry(
        &self, place: &Place, page: u64, change: impl Fn(Entry) -> Entry,
    ) -> Result<()> {
        if self.shared.table.known_pages(place, page, page + 1).is_none() {
            return Ok(());
        }
        self.each_batch(place, page..page + 1, |_, entries| {
            let now = change(entries[0]);
            let is_new = now != entries[0];
            entries[0] = now;
            is_new
        })
    }

    /// No page of it is torn, and nothing is suspect any more: the file is accepted as it is.
    pub(in crate::ledger) fn absolve(&self, stamp: Stamp) -> Result<()> {
        let flags = ACTIVE | PADDED | SUSPECT | HAS_TORN | TIMED | SHAPING | COMPLETE;
        self.change(|state| {
            state.header.flags &= !flags;
            state.header.session = self.shared.session;
            stamp.store(&mut state.header);
        })
        .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::entry::sum;

    #[test]
    fn an_edge_gets_the_sum_that_it_could_have() {
        let sums = [1, 2, 3].map(|byte| sum(&[byte; 4096]));
        let seen = |at: usize| Some(Seen { sum: sums[at], place: 7 });
        let under_way = Entry { new: sums[0], previous: sums[1] };
        assert_eq!(settled(under_way, seen(0)), Entry::both(sums[0]));
        assert_eq!(settled(under_way, seen(1)), Entry::both(sums[1]));
        for entry in [under_way, Entry::both(sums[1])] {
            assert_eq!(settled(entry, seen(2)), entry, "damaged before");
            assert_eq!(settled(entry, None), entry);
        }
        assert_eq!(settled(Entry::both(WRITTEN), seen(2)), Entry::both(sums[2]));
        assert_eq!(settled(Entry::default(), seen(2)), Entry::default());
        assert_eq!(settled(Entry::torn(None), seen(2)), Entry::torn(seen(2)));
        assert_eq!(edges(&(0..4097), 9000), [1]);
        assert_eq!(edges(&(5000..9000), 9000), [1]);
        assert_eq!(edges(&(5000..6000), 9000), [1]);
        assert_eq!(edges(&(5000..u64::MAX), 5000), [1]);
        assert_eq!(edges(&(4096..8192), 9000), [0_u64; 0]);
    }
}
