//! Pages that are stored in the midst of a write(2), whose rest is still to come.
//!
//! On record such a page is torn, and so it is found after a kill. The daemon itself knows better, and reads it.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Outcome, Record};
use crate::error::Result;
use crate::ledger::entry::{Entry, PAGE_BYTES, TORN, WRITING, WRITTEN, pages_of};

/// What has become of such a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unfinished {
    /// Its transfer is about to begin.
    Expected,
    /// It is being stored, with this sum.
    UnderWay(u32),
    /// It is stored.
    Stored,
}

impl Record {
    /// The next write of these bytes stores a page of which more is to come.
    pub(in crate::ledger) fn begin_piece(&self, bytes: &Range<u64>) {
        let mut state = self.state.lock();
        for page in pages_of(bytes) {
            state.unfinished.insert(page, Unfinished::Expected);
        }
    }

    /// What is to be recorded of a page that is about to be written: `entry`, unless more of the page is to come.
    pub(super) fn begun(&self, page: u64, entry: Entry) -> Entry {
        let mut state = self.state.lock();
        match state.unfinished.get(&page) {
            None => entry,
            // It is written again: whole, as far as anybody knows.
            Some(Unfinished::Stored) => {
                state.unfinished.remove(&page);
                state.decided.remove(&page);
                entry
            }
            Some(_) => {
                state.unfinished.insert(page, Unfinished::UnderWay(entry.new));
                Entry::torn(None)
            }
        }
    }

    /// The transfer of a page that is torn on record has ended. Once it is stored its readers get what is in it; after a
    /// failure it stays torn.
    pub(super) fn ended(&self, page: u64, outcome: Outcome) {
        let mut state = self.state.lock();
        match (outcome, state.unfinished.get(&page).copied()) {
            (Outcome::Failed, _) => {
                state.unfinished.remove(&page);
            }
            (_, Some(Unfinished::UnderWay(sum))) => {
                state.unfinished.insert(page, Unfinished::Stored);
                state.decided.insert(page, Entry::both(settled(sum)));
            }
            _ => {}
        }
    }

    /// What was to come of these pages has come, or never will: they are whole.
    pub(in crate::ledger) fn end_piece(&self, pages: Range<u64>) -> Result<()> {
        let (place, ended) = {
            let mut state = self.state.lock();
            let within = state.unfinished.range(pages).map(|(page, was)| (*page, *was));
            let ended: Vec<(u64, Unfinished)> = within.collect();
            for (page, _) in &ended {
                state.unfinished.remove(page);
            }
            (state.place(), ended)
        };
        let Some(place) = place else { return Ok(()) };
        for (page, was) in ended {
            let now = match was {
                Unfinished::Expected => continue,
                // Until it is stored it is still what it was, which nobody remembers.
                Unfinished::UnderWay(sum) => Entry { new: sum, previous: TORN },
                Unfinished::Stored => {
                    let decided = self.state.lock().decided.remove(&page);
                    decided.unwrap_or_default()
                }
            };
            self.each_batch(&place, page..page + 1, |_, entries| {
                entries[0] = if entries[0].is_torn() { now } else { entries[0] };
                true
            })?;
            self.unsynced.store(true, Ordering::Release);
        }
        Ok(())
    }

    /// Nobody writes to the file any more, so no write(2) has a rest to come.
    pub(in crate::ledger) fn end_all_pieces(&self) {
        if self.has_pieces() {
            self.end_pieces(0..u64::MAX / PAGE_BYTES);
        }
    }

    /// As [`Record::end_piece`], where nobody can be told of a failure.
    pub(in crate::ledger) fn end_pieces(&self, pages: Range<u64>) {
        if let Err(errno) = self.end_piece(pages) {
            let slot = self.state.lock().slot.unwrap_or_default();
            log::error!(partition = slot; "ledger: record {slot}: {}; a page stays torn on record", errno.desc());
        }
    }

    pub(super) fn has_pieces(&self) -> bool {
        !self.state.lock().unfinished.is_empty()
    }
}

/// The sum of a page that has been written.
fn settled(sum: u32) -> u32 {
    if sum == WRITING { WRITTEN } else { sum }
}
