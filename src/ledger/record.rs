//! One partition's record: its sums, what of it is being written, and its true size.
//!
//! Nothing of a record is kept in memory but its header: the entries of pages are read from and written to the
//! page cache of the ledger's files, a few KiB for each transfer, so that memory stays bounded however
//! large the partitions are.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::entry::{
    BATCH, ENTRY_BYTES, Entry, PAGE_BYTES, TORN, Verdict, WRITING, first_bad, joined, judge,
    pages_of, sum,
};
use super::stamp::Stamp;
use super::table::{
    ACTIVE, HAS_TORN, Header, INLINE_PAGES, Identity, PADDED, SIDECAR, SUSPECT, Table, allocate,
};
use super::{Checksum, Counters};
use crate::aio::device::BackingFile;
use crate::aio::file::DiskFile;
use crate::error::{Errno, Result};

/// Pages that entries are forgotten of one by one; more are forgotten by cutting.
const VOID_PAGES_MAX: u64 = 1 << 16;

/// The record of a partition that the engine has a file of.
#[derive(Debug)]
pub(super) struct Record {
    identity: Identity,
    table: Arc<Table>,
    counters: Arc<Counters>,
    checksum: Checksum,
    /// Logical size, as the engine last said.
    size: AtomicU64,
    /// Something was recorded since the last sync.
    pub(super) unsynced: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    header: Header,
    /// `None` until something is recorded.
    slot: Option<u32>,
    /// Entries beyond the slot's own.
    sums: Option<Arc<DiskFile>>,
    /// Entries that the sidecar has room for.
    room: Range<u64>,
    /// Writes under way.
    writes: u32,
    /// Files that refer to the record.
    files: u32,
}

/// Where a record's entries are.
struct Place {
    slot: u32,
    sums: Option<Arc<DiskFile>>,
}

impl Place {
    /// Pages from the first on that something can be known of: what lies beyond is not even recorded.
    fn known_pages(&self) -> Result<u64> {
        let Some(sums) = &self.sums else { return Ok(INLINE_PAGES) };
        Ok((sums.status()?.size / ENTRY_BYTES).max(INLINE_PAGES))
    }
}

impl Record {
    /// A record of a file of `size` bytes that nothing is known of; or of what is in `slot`.
    pub(super) fn new(
        identity: Identity, table: Arc<Table>, counters: Arc<Counters>, checksum: Checksum,
        size: u64, known: Option<(u32, Header)>,
    ) -> Result<Self> {
        let (ino, generation) = identity;
        let fresh = Header { ino, generation, size, ..Header::default() };
        let (slot, header) = known.map_or((None, fresh), |(slot, header)| (Some(slot), header));
        let mut state = State { header, slot, sums: None, room: 0..0, writes: 0, files: 0 };
        if let Some(slot) = slot
            && header.has(SIDECAR)
        {
            state.open_sidecar(&table, slot, false)?;
        }
        Ok(Self {
            identity,
            table,
            counters,
            checksum,
            size: AtomicU64::new(size),
            unsynced: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// The engine's idea of the size.
    pub(super) fn set_size(&self, size: u64) {
        self.size.store(size, Ordering::Relaxed);
    }

    /// Counts one file more that refers to it.
    pub(super) fn join(&self) {
        self.state.lock().files += 1;
    }

    /// Counts one less; the last settles the record by `stamp`, and forgets that of a file without a name.
    /// True for the last.
    pub(super) fn leave(&self, stamp: Option<Stamp>) -> bool {
        let mut state = self.state.lock();
        state.files -= 1;
        if state.files > 0 {
            return false;
        }
        match stamp {
            Some(Stamp { links: 0, .. }) => {
                if let Some(slot) = state.slot.take()
                    && self.table.writable()
                {
                    self.table.give_back(&state.header, slot);
                }
            }
            Some(stamp) => self.settle_in(&mut state, stamp),
            None => {}
        }
        true
    }

    /// Records size and times of the backing file, unless something is being written: who finds others
    /// knows that the file was changed without swapfs.
    pub(super) fn settle(&self, stamp: Stamp) {
        self.settle_in(&mut self.state.lock(), stamp);
    }

    fn settle_in(&self, state: &mut State, stamp: Stamp) {
        let Some(slot) = state.slot else { return };
        let mut header = state.header;
        // What was written behind the padding since has covered it.
        let padded = header.has(PADDED) && stamp.size > header.true_size;
        if !self.table.writable() || state.writes > 0 || padded {
            return;
        }
        header.flags &= !(ACTIVE | PADDED);
        stamp.store(&mut header);
        if header != state.header && self.save(slot, &header) {
            state.header = header;
        }
    }

    fn save(&self, slot: u32, header: &Header) -> bool {
        let saved = self.table.set_header(slot, header);
        if let Err(errno) = saved {
            log::error!("ledger: record {slot}: {}", errno.desc());
        }
        self.unsynced.store(true, Ordering::Release);
        saved.is_ok()
    }

    /// What has to be on stable storage with the partition's bytes, besides the table.
    pub(super) fn sidecar(&self) -> Option<Arc<DiskFile>> {
        self.state.lock().sums.clone()
    }

    /// Makes room for the entries of a range of bytes, which is to be written.
    pub(super) fn reserve(&self, bytes: &Range<u64>) -> Result<()> {
        let pages = pages_of(bytes);
        let mut state = self.state.lock();
        if state.slot.is_none() {
            state.slot = Some(self.table.take(&state.header)?);
        }
        self.make_room(&mut state, &pages)
    }

    fn make_room(&self, state: &mut State, pages: &Range<u64>) -> Result<()> {
        let slot = state.slot.ok_or(Errno::EUCLEAN)?;
        if pages.end <= INLINE_PAGES {
            return Ok(());
        }
        if state.sums.is_none() {
            match state.open_sidecar(&self.table, slot, true) {
                // There may be room for bytes where there is none for another file.
                Err(Errno::ENOSPC | Errno::EDQUOT) => return Ok(()),
                opened => opened?,
            }
            state.header.flags |= SIDECAR;
            self.table.set_header(slot, &state.header)?;
        }
        let covered = state.room.start <= pages.start && pages.end <= state.room.end;
        let sums = state.sums.as_ref().expect("opened above");
        if !covered {
            let from = pages.start * ENTRY_BYTES;
            allocate(&**sums, from, pages.end * ENTRY_BYTES - from)?;
            let touches = pages.start <= state.room.end && state.room.start <= pages.end;
            state.room = match touches {
                true => state.room.start.min(pages.start)..state.room.end.max(pages.end),
                false => pages.clone(),
            };
        }
        Ok(())
    }

    /// Records that `bytes` are about to be stored at `offset`.
    pub(super) fn begin_write(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset + bytes.len() as u64;
        // A transfer that goes on within a page: that page was recorded with what came before.
        let skipped = (offset.next_multiple_of(PAGE_BYTES) - offset).min(bytes.len() as u64);
        let pages = pages_of(&(offset + skipped..end));
        let place = self.enter_write(&pages, end)?;
        let mut data = bytes[skipped as usize..].chunks(PAGE_BYTES as usize);
        let recorded = self.each_batch(&place, pages, |_, entries| {
            for entry in entries {
                let page = data.next().expect("as many pages as entries");
                let new = match self.checksum {
                    Checksum::Crc32c => sum(page),
                    Checksum::None => WRITING,
                };
                *entry = Entry { new, previous: entry.new };
            }
            true
        });
        if recorded.is_err() {
            self.state.lock().writes -= 1;
        }
        self.unsynced.store(true, Ordering::Release);
        recorded
    }

    /// Counts a write in, with what the header has to say of it.
    fn enter_write(&self, pages: &Range<u64>, end: u64) -> Result<Place> {
        let size = self.size.load(Ordering::Relaxed);
        let mut state = self.state.lock();
        let slot = match state.slot {
            Some(slot) => slot,
            None => self.table.take(&state.header)?,
        };
        state.slot = Some(slot);
        self.make_room(&mut state, pages)?;
        let mut header = state.header;
        header.flags |= ACTIVE;
        if end > size {
            header.flags |= PADDED;
            header.true_size = size;
        }
        if header != state.header {
            self.table.set_header(slot, &header)?;
            state.header = header;
        }
        state.writes += 1;
        Ok(Place { slot, sums: state.sums.clone() })
    }

    /// A write that [`Record::begin_write`] knows of has ended; `stored` when all of it is in the file.
    pub(super) fn end_write(&self, offset: u64, length: u64, stored: bool) {
        let place = {
            let mut state = self.state.lock();
            state.writes = state.writes.saturating_sub(1);
            // Not before: with these bytes still under way the file is to be cut where it ended.
            let end = (offset + length).min(self.size.load(Ordering::Relaxed));
            let mut header = state.header;
            if stored && header.has(PADDED) && end > header.true_size {
                header.true_size = end;
                if let Some(slot) = state.slot
                    && self.save(slot, &header)
                {
                    state.header = header;
                }
            }
            state.place()
        };
        let (Some(place), true) = (place, stored) else { return };
        let first = offset.next_multiple_of(PAGE_BYTES).min(offset + length);
        let ended = self.each_batch(&place, pages_of(&(first..offset + length)), |_, entries| {
            for entry in entries {
                *entry = match self.checksum {
                    Checksum::Crc32c => Entry::both(entry.new),
                    Checksum::None => Entry::default(),
                };
            }
            true
        });
        if let Err(errno) = ended {
            log::error!("ledger: record {}: {}", place.slot, errno.desc());
        }
        Counters::add(&self.counters.summed, length.div_ceil(PAGE_BYTES));
    }

    /// Compares what was read at `offset` with its sums; zeros follow beyond the end of the file. Answers how
    /// many bytes from the start are right, with what is wrong behind them.
    pub(super) fn verify(&self, offset: u64, bytes: &[u8]) -> (u64, Option<Errno>) {
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
    pub(super) fn void(&self, bytes: &Range<u64>) -> Result<()> {
        let Some(place) = self.state.lock().place() else { return Ok(()) };
        let pages = pages_of(bytes);
        self.unsynced.store(true, Ordering::Release);
        if pages.end - pages.start > VOID_PAGES_MAX {
            self.state.lock().room = 0..0;
            return self.table.cut_entries(place.slot, place.sums.as_deref(), pages.start);
        }
        let end = pages.end.min(place.known_pages()?);
        self.each_batch(&place, pages.start.min(end)..end, |_, entries| {
            entries.fill(Entry::default());
            true
        })
    }

    /// The file is about to get this length: forgets what lies beyond it, and the page that is cut within.
    pub(super) fn cut(&self, size: u64) -> Result<()> {
        // Beyond the logical size there are only zeros, which the sum of the last page counts.
        let keeps_tail = size >= self.size.load(Ordering::Relaxed);
        let first = if keeps_tail { size.div_ceil(PAGE_BYTES) } else { size / PAGE_BYTES };
        let mut state = self.state.lock();
        let Some(place) = state.place() else { return Ok(()) };
        state.room.end = state.room.end.min(first).max(state.room.start);
        self.unsynced.store(true, Ordering::Release);
        self.table.cut_entries(place.slot, place.sums.as_deref(), first)
    }

    /// The file has this length now, exactly.
    pub(super) fn was_cut(&self, size: u64) {
        self.set_size(size);
        let mut state = self.state.lock();
        let mut header = state.header;
        header.flags &= !PADDED;
        if size == 0 {
            header.flags &= !(SUSPECT | HAS_TORN);
        }
        if let (Some(slot), true) = (state.slot, header != state.header)
            && self.save(slot, &header)
        {
            state.header = header;
        }
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
    pub(super) fn resolve(
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

    /// After a crash: the record speaks of the file as it is now, and mismatches in it are torn writes.
    pub(super) fn recovered(&self, stamp: Stamp, suspect: bool, torn: bool) -> Result<()> {
        let mut state = self.state.lock();
        let Some(slot) = state.slot else { return Ok(()) };
        state.header.flags &= !(ACTIVE | PADDED);
        state.header.flags |= if suspect { SUSPECT } else { 0 } | if torn { HAS_TORN } else { 0 };
        stamp.store(&mut state.header);
        self.table.set_header(slot, &state.header)
    }

    /// Accepts a page as it is: nothing is known of it any more.
    pub(super) fn accept(&self, bytes: &Range<u64>) -> Result<()> {
        self.void(bytes)
    }

    /// No page of it is torn, and nothing is suspect any more.
    pub(super) fn absolve(&self, stamp: Stamp) -> Result<()> {
        let mut state = self.state.lock();
        let Some(slot) = state.slot else { return Ok(()) };
        state.header.flags &= !(ACTIVE | PADDED | SUSPECT | HAS_TORN);
        stamp.store(&mut state.header);
        self.table.set_header(slot, &state.header)
    }
}

impl State {
    fn place(&self) -> Option<Place> {
        Some(Place { slot: self.slot?, sums: self.sums.clone() })
    }

    fn open_sidecar(&mut self, table: &Table, slot: u32, new: bool) -> Result<()> {
        self.sums = Some(Arc::new(table.sidecar(slot, new)?));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
