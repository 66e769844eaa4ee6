//! A record and its file after a crash, or after others have had the file: which marks stay, and which are made.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::atomic::Ordering;

use super::{Record, State};
use crate::aio::device::BackingFile;
use crate::error::Result;
use crate::ledger::entry::{
    Entry, PAGE_BYTES, Seen, TORN, UNKNOWN, Verdict, WRITTEN, ZEROS, joined, pages_of, sum,
    verdict_of,
};
use crate::ledger::stamp::Stamp;
use crate::ledger::table::{
    ACTIVE, COMPLETE, HAS_TORN, Header, PADDED, Place, SHAPING, SUSPECT, TIMED,
};
use crate::ledger::verdict::{Decision, Meaning};

/// Marks the block of a page that is decided alone.
const ALONE: u64 = 1 << 63;

/// Pages of one block that were being written, or are torn.
struct Group {
    block: u64,
    is_torn: bool,
    pages: Vec<(u64, Entry)>,
}

/// Pages of an interrupted change of shape that are looked at. Of more than these no sums are kept: a mount does not wait
/// for the reading of a large file.
const CHANGING_MAX: u64 = (256 << 20) / PAGE_BYTES;

/// What the file is like, for [`Record::reconcile`].
pub(in crate::ledger) struct Look<'a> {
    pub(in crate::ledger) decision: Decision,
    pub(in crate::ledger) stamp: Stamp,
    /// Bytes of a block when it was written: no write is longer.
    pub(in crate::ledger) block_size: u64,
    /// Looks at a page as it is now; `None` for one that cannot be read.
    pub(in crate::ledger) read: &'a mut dyn FnMut(u64) -> Option<Seen>,
    /// Without it nothing is put on record; what is torn is remembered in memory.
    pub(in crate::ledger) write: bool,
}

impl Record {
    /// Brings the record in line with its file, which nobody else uses. Only entries and header change, never the
    /// file; doing it again changes nothing more. Answers the ranges of bytes that are torn.
    pub(in crate::ledger) fn reconcile(&self, mut found: Look<'_>) -> Result<Vec<Range<u64>>> {
        let (place, header) = {
            let state = self.state.lock();
            (state.place(), state.header)
        };
        let Some(place) = place else { return Ok(Vec::new()) };
        let changing = match header.has(SHAPING) {
            true => pages_of(&self.shared.table.noted_change(place.slot)?),
            false => 0..0,
        };
        let groups = self.groups(&place, &changing, &mut found)?;
        let mut torn: Vec<Range<u64>> = Vec::new();
        let mut decisions = BTreeMap::new();
        for group in groups {
            let decided = decide(&group, &mut found);
            for ((page, entry), now) in group.pages.iter().zip(decided) {
                if now.is_torn() {
                    torn.push(page * PAGE_BYTES..(page + 1) * PAGE_BYTES);
                }
                if now != *entry && found.write {
                    self.shared.table.write_entries(&place, *page, &[now])?;
                } else if now != *entry {
                    decisions.insert(*page, now);
                }
            }
        }
        torn.sort_by_key(|range| range.start);
        let torn = joined(torn);
        match found.write {
            true => {
                // Before the header, which says that all of it was dealt with.
                if let Some(sums) = &place.sums {
                    sums.sync(true)?;
                }
                self.unsynced.store(true, Ordering::Release);
                let session = self.shared.session;
                self.change(|state| {
                    state.header = reconciled(state.header, &found, !torn.is_empty());
                    state.header.session = session;
                })?;
            }
            false => {
                let mut state = self.state.lock();
                state.torn.clone_from(&torn);
                state.decided = decisions;
                state.changing = changing;
                state.header = reconciled(state.header, &found, state.header.has(HAS_TORN));
                if found.decision.meaning == Meaning::Others {
                    let State { slot, sums, .. } = &mut *state;
                    (*slot, *sums) = (None, None);
                }
            }
        }
        Ok(torn)
    }

    /// What is to be decided. On the way, what others' changes or an interrupted change of shape have made
    /// meaningless is forgotten.
    fn groups(
        &self, place: &Place, changing: &Range<u64>, found: &mut Look<'_>,
    ) -> Result<Vec<Group>> {
        let block_pages = (found.block_size / PAGE_BYTES).max(1);
        let mut groups: Vec<Group> = Vec::new();
        let (mut next, mut looked_at) = (0, 0);
        while let Some(pages) = self.shared.table.known_pages(place, next, u64::MAX / PAGE_BYTES) {
            next = pages.end;
            self.each_batch(place, pages, |first, entries| {
                let mut changed = false;
                for (page, entry) in (first..).zip(entries) {
                    if page * PAGE_BYTES >= found.stamp.size {
                        changed |= *entry != Entry::default();
                        *entry = Entry::default();
                        continue;
                    }
                    let is_changing = changing.contains(&page);
                    if entry.is_torn() || entry.in_flight() {
                        // Each edge of a change is done or not.
                        let block = if is_changing { page | ALONE } else { page / block_pages };
                        add(&mut groups, page, block, *entry);
                        continue;
                    }
                    let now = match found.decision.meaning {
                        Meaning::Others => Entry::default(),
                        _ if is_changing && entry.has_sum() => {
                            looked_at += 1;
                            perhaps_cleared(*entry, page, looked_at, found)
                        }
                        _ => *entry,
                    };
                    changed |= now != *entry;
                    *entry = now;
                }
                changed && found.write
            })?;
        }
        Ok(groups)
    }
}

/// What is known of a page within an interrupted change of shape, which is as before or zero; what is neither is damaged.
fn perhaps_cleared(entry: Entry, page: u64, looked_at: u64, found: &mut Look<'_>) -> Entry {
    // Without a record each is looked at when it is read.
    if !found.write {
        return entry;
    }
    if looked_at > CHANGING_MAX {
        return Entry::both(WRITTEN);
    }
    match (found.read)(page) {
        Some(seen) if seen.sum == sum(&ZEROS) => Entry::default(),
        _ => entry,
    }
}

fn add(groups: &mut Vec<Group>, page: u64, block: u64, entry: Entry) {
    let is_torn = entry.is_torn();
    let recent = groups.iter_mut().rev().take(2);
    match recent.into_iter().find(|group| group.block == block && group.is_torn == is_torn) {
        Some(group) => group.pages.push((page, entry)),
        None => groups.push(Group { block, is_torn, pages: vec![(page, entry)] }),
    }
}

/// What becomes of a group's pages. What we have left stays decided by the record; of a file that others have changed,
/// only what is certainly still ours.
fn decide(group: &Group, found: &mut Look<'_>) -> Vec<Entry> {
    let entries: Vec<Entry> = group.pages.iter().map(|(_, entry)| *entry).collect();
    let Decision { meaning, is_touched, is_unwritten } = found.decision;
    let others = meaning == Meaning::Others;
    let is_complete = entries.iter().all(|entry| entry.is_decidable());
    // A change of shape may have replaced what was damaged.
    let is_alone = group.block & ALONE != 0;
    if group.is_torn && !others && !is_touched && !is_alone && is_complete {
        return entries;
    }
    let seen: Vec<Option<Seen>> = group.pages.iter().map(|(page, _)| (found.read)(*page)).collect();
    if group.is_torn {
        return entries
            .iter()
            .zip(&seen)
            .map(|(entry, seen)| mark(*entry, *seen, others))
            .collect();
    }
    match (others, is_complete) {
        (true, true) => left_by_others(&entries, &seen),
        (false, true) => resolved(&entries, &seen),
        (false, false) if is_unwritten => {
            let pairs = entries.iter().zip(&seen);
            pairs.map(|(entry, seen)| undone(*entry, *seen, is_touched)).collect()
        }
        (false, false) => resolved(&entries, &seen),
        (true, false) => vec![Entry::default(); entries.len()],
    }
}

/// What becomes of a mark of damage: it stays with the bytes that it speaks of. Which these are may be unknown: then
/// those of a file that others have changed are taken for theirs.
fn mark(entry: Entry, seen: Option<Seen>, others: bool) -> Entry {
    let is_known = entry.is_decidable();
    match seen {
        Some(seen) if is_known && entry.is_replaced_by(seen) => Entry::default(),
        _ if is_known => entry,
        _ if others => Entry::default(),
        _ => Entry::torn(seen),
    }
}

/// A page that was about to be written, and was not: it is what it was, unless others gave it other bytes and its old
/// time.
fn undone(entry: Entry, seen: Option<Seen>, is_touched: bool) -> Entry {
    let previous = Entry::both(entry.previous);
    let is_as_before = || seen.is_some_and(|seen| seen.sum == previous.new);
    match entry.previous {
        TORN => Entry::torn(seen),
        _ if is_touched && previous.has_sum() && !is_as_before() => Entry::default(),
        _ => previous,
    }
}

/// Pages that were being written, all of them as we have left them.
fn resolved(entries: &[Entry], seen: &[Option<Seen>]) -> Vec<Entry> {
    let sums: Vec<u32> = seen.iter().map(|seen| seen.map_or(UNKNOWN, |seen| seen.sum)).collect();
    match verdict_of(entries, &sums) {
        Verdict::New => entries.iter().map(|entry| Entry::both(entry.new)).collect(),
        Verdict::Old => entries.iter().map(|entry| Entry::both(entry.previous)).collect(),
        Verdict::Torn => seen.iter().map(|seen| Entry::torn(*seen)).collect(),
    }
}

/// The same, with pages among them that others have replaced: the rest is decided without these.
fn left_by_others(entries: &[Entry], seen: &[Option<Seen>]) -> Vec<Entry> {
    let is_left = |at: &usize| !seen[*at].is_some_and(|seen| entries[*at].is_replaced_by(seen));
    let left: Vec<usize> = (0..entries.len()).filter(is_left).collect();
    let (rest, rest_seen): (Vec<Entry>, Vec<Option<Seen>>) =
        left.iter().map(|at| (entries[*at], seen[*at])).unzip();
    let mut decided = vec![Entry::default(); entries.len()];
    for (at, entry) in left.into_iter().zip(resolved(&rest, &rest_seen)) {
        decided[at] = entry;
    }
    decided
}

fn reconciled(header: Header, found: &Look<'_>, has_torn: bool) -> Header {
    let mut header = header;
    header.flags &= !(ACTIVE | PADDED | TIMED | SHAPING | HAS_TORN);
    header.flags |= if has_torn { HAS_TORN } else { 0 };
    match found.decision.meaning {
        Meaning::Ours => {}
        Meaning::Uncertain => header.flags |= SUSPECT,
        Meaning::Others => header.flags &= !(SUSPECT | COMPLETE),
    }
    found.stamp.store(&mut header);
    header
}
