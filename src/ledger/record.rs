//! One partition's record: its sums, what of it is being written, and its true size.
//!
//! Nothing of a record is kept in memory but its header: the entries of pages are read from and written to the
//! page cache of the ledger's files, a few KiB for each transfer, so that memory stays bounded however
//! large the partitions are.
//!
//! What writes to the ledger's files is done by one thread at a time, the clerk's, in the order in which the
//! transfers went. The locks here are held for looking and noting down only; [`Record::reserve`] alone, which
//! may wait for the filesystem as whoever calls it does anyway, holds one of its own meanwhile.

mod pages;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;

use super::entry::{ENTRY_BYTES, PAGE_BYTES, pages_of};
use super::stamp::Stamp;
use super::table::{
    ACTIVE, HAS_TORN, Header, INLINE_PAGES, Identity, PADDED, SIDECAR, SUSPECT, Table, allocate,
};
use super::{Checksum, Counters};
use crate::aio::device::BackingFile;
use crate::aio::file::DiskFile;
use crate::error::{Errno, Result};
pub(super) use pages::{Outcome, Writing};

/// The record of a partition that the engine has a file of.
#[derive(Debug)]
pub(super) struct Record {
    identity: Identity,
    table: Arc<Table>,
    counters: Arc<Counters>,
    checksum: Checksum,
    /// Logical size, as the engine last said.
    size: AtomicU64,
    /// Something was recorded since the last sync began.
    unsynced: AtomicBool,
    /// Syncs of its records that are under way: who comes meanwhile may rely on none of them.
    syncing: AtomicU32,
    /// What the clerk is still to do to it.
    queued: AtomicU32,
    /// Entries that the file of entries has room for. Before `state`.
    room: Mutex<Range<u64>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    header: Header,
    /// The header that the table has; `None` for a slot that was never filled.
    stored: Option<Header>,
    /// `None` until something is recorded.
    slot: Option<u32>,
    /// Entries beyond the slot's own.
    sums: Option<Arc<DiskFile>>,
    /// Nothing is known of pages from this one on.
    known_pages: u64,
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

/// What is left to do when the last file of a record is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Others use it.
    Used,
    /// Nothing.
    Done,
    /// The clerk has to note it down.
    Unrecorded,
}

impl Record {
    /// A record of a file of `size` bytes that nothing is known of; or of what is in `slot`.
    pub(super) fn new(
        identity: Identity, table: Arc<Table>, counters: Arc<Counters>, checksum: Checksum,
        size: u64, known: Option<(u32, Header)>,
    ) -> Result<Self> {
        let (ino, generation) = identity;
        let header = Header { ino, generation, size, ..Header::default() };
        let mut state = State {
            header,
            stored: None,
            slot: None,
            sums: None,
            known_pages: 0,
            writes: 0,
            files: 0,
        };
        if let Some((slot, header)) = known {
            (state.slot, state.header, state.stored) = (Some(slot), header, Some(header));
            state.known_pages = INLINE_PAGES;
            if header.has(SIDECAR) {
                match table.sidecar(slot, false) {
                    Ok(sums) => {
                        state.known_pages = INLINE_PAGES.max(sums.status()?.size / ENTRY_BYTES);
                        state.sums = Some(Arc::new(sums));
                    }
                    // A power cut came between the two.
                    Err(Errno::ENOENT) => state.header.flags &= !SIDECAR,
                    Err(errno) => return Err(errno),
                }
            }
        }
        Ok(Self {
            identity,
            table,
            counters,
            checksum,
            size: AtomicU64::new(size),
            unsynced: AtomicBool::new(false),
            syncing: AtomicU32::new(0),
            queued: AtomicU32::new(0),
            room: Mutex::new(0..0),
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

    /// Whether no file refers to it.
    pub(super) fn is_unused(&self) -> bool {
        self.state.lock().files == 0
    }

    /// The clerk is to do something to it, and will call [`Record::done`].
    pub(super) fn expect(&self) {
        self.queued.fetch_add(1, Ordering::AcqRel);
    }

    /// It has.
    pub(super) fn done(&self) {
        self.queued.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether there is, or will be, anything to put on stable storage with the partition's bytes.
    pub(super) fn has_news(&self) -> bool {
        !self.is_quiet()
            || self.syncing.load(Ordering::Acquire) > 0
            || self.unsynced.load(Ordering::Acquire)
    }

    /// Begins a sync of its records, when there is anything to be put on stable storage;
    /// [`Record::end_sync`] is to follow.
    pub(super) fn begin_sync(&self) -> bool {
        let others = self.syncing.fetch_add(1, Ordering::AcqRel) > 0;
        let wanted = self.unsynced.swap(false, Ordering::AcqRel) || others;
        if !wanted {
            self.syncing.fetch_sub(1, Ordering::AcqRel);
        }
        wanted
    }

    /// A sync of its records has ended.
    pub(super) fn end_sync(&self, stored: bool) {
        if !stored {
            self.unsynced.store(true, Ordering::Release);
        }
        self.syncing.fetch_sub(1, Ordering::AcqRel);
    }

    /// Whether what is on record of its pages may change before what was asked of the clerk so far is done, and
    /// matters to a reader.
    pub(super) fn is_unsettled(&self) -> bool {
        let minds = || self.checksum == Checksum::Crc32c || self.state.lock().header.has(HAS_TORN);
        !self.is_quiet() && minds()
    }

    /// Whether the clerk has nothing more to do to it.
    fn is_quiet(&self) -> bool {
        self.queued.load(Ordering::Acquire) == 0
    }

    /// Counts one file less.
    pub(super) fn leave(&self, stamp: Option<Stamp>) -> Leaving {
        let mut state = self.state.lock();
        state.files -= 1;
        if state.files > 0 {
            return Leaving::Used;
        }
        let Some(slot) = state.slot else { return Leaving::Done };
        let blank = state.stored.is_none() && !state.header.has(SIDECAR);
        if blank && self.is_quiet() {
            state.slot = None;
            drop(state);
            self.table.release(self.identity, slot);
            return Leaving::Done;
        }
        match stamp {
            Some(stamp) if stamp.links > 0 && self.is_quiet() => match state.settled(stamp) {
                Some(settled) if Some(settled) == state.stored => Leaving::Done,
                None if Some(state.header) == state.stored => Leaving::Done,
                _ => Leaving::Unrecorded,
            },
            Some(_) => Leaving::Unrecorded,
            None => Leaving::Done,
        }
    }

    /// Forgets everything: the file has no name left, and nobody has it open.
    pub(super) fn forget(&self) {
        let (slot, header) = {
            let mut state = self.state.lock();
            (state.slot.take(), state.header)
        };
        if let (Some(slot), true) = (slot, self.table.writable()) {
            self.table.give_back(&header, slot);
        }
    }

    /// Records size and times of the backing file, unless something is being written: who finds others
    /// knows that the file was changed without swapfs.
    pub(super) fn settle(&self, stamp: Stamp) {
        self.note(|state| {
            if let Some(settled) = state.settled(stamp) {
                state.header = settled;
            }
        });
    }

    /// Changes the header, and writes it when that makes a difference.
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<()> {
        let (slot, header, stored) = {
            let mut state = self.state.lock();
            change(&mut state);
            (state.slot, state.header, state.stored)
        };
        let Some(slot) = slot else { return Ok(()) };
        match stored {
            Some(stored) if stored == header => return Ok(()),
            Some(_) => self.table.set_header(slot, &header)?,
            None => self.table.fill(slot, &header)?,
        }
        self.unsynced.store(true, Ordering::Release);
        self.state.lock().stored = Some(header);
        Ok(())
    }

    /// As [`Record::change`], where nobody can be told of a failure. The next change writes it again.
    fn note(&self, change: impl FnOnce(&mut State)) {
        if !self.table.writable() {
            return;
        }
        if let Err(errno) = self.change(change) {
            let slot = self.state.lock().slot.unwrap_or_default();
            log::error!("ledger: record {slot}: {}", errno.desc());
        }
    }

    /// What has to be on stable storage with the partition's bytes, besides the table.
    pub(super) fn sidecar(&self) -> Option<Arc<DiskFile>> {
        self.state.lock().sums.clone()
    }

    /// Makes room for the entries of a range of bytes, which is to be written.
    pub(super) fn reserve(&self, bytes: &Range<u64>) -> Result<()> {
        self.make_room(&pages_of(bytes)).map(drop)
    }

    fn make_room(&self, pages: &Range<u64>) -> Result<Place> {
        let beyond = pages.end > INLINE_PAGES;
        let mut room = self.room.lock();
        let covered = !beyond || (room.start <= pages.start && pages.end <= room.end);
        let (slot, sums) = {
            let state = self.state.lock();
            (state.slot, state.sums.clone())
        };
        let slot = match slot {
            Some(slot) => slot,
            None => {
                let slot = self.table.take(self.identity)?;
                self.state.lock().slot = Some(slot);
                slot
            }
        };
        if covered {
            return Ok(Place { slot, sums });
        }
        let sums = match sums {
            Some(sums) => sums,
            None => match self.table.sidecar(slot, true) {
                Ok(sums) => {
                    let sums = Arc::new(sums);
                    let mut state = self.state.lock();
                    state.sums = Some(sums.clone());
                    state.header.flags |= SIDECAR;
                    sums
                }
                // There may be room for bytes where there is none for another file.
                Err(Errno::ENOSPC | Errno::EDQUOT) => return Ok(Place { slot, sums: None }),
                Err(errno) => return Err(errno),
            },
        };
        let from = pages.start * ENTRY_BYTES;
        allocate(&*sums, from, pages.end * ENTRY_BYTES - from)?;
        let touches = pages.start <= room.end && room.start <= pages.end;
        *room = match touches {
            true => room.start.min(pages.start)..room.end.max(pages.end),
            false => pages.clone(),
        };
        Ok(Place { slot, sums: Some(sums) })
    }

    /// Whether [`Record::cut`] to this length would forget anything.
    pub(super) fn knows_beyond(&self, size: u64) -> bool {
        !self.is_quiet() || self.first_cut(size) < self.state.lock().known_pages
    }

    /// The first page that nothing is known of once the file has this length. Beyond the logical size there are
    /// only zeros, which the sum of the last page counts.
    fn first_cut(&self, size: u64) -> u64 {
        match size >= self.size.load(Ordering::Relaxed) {
            true => size.div_ceil(PAGE_BYTES),
            false => size / PAGE_BYTES,
        }
    }

    /// The file is about to get this length: forgets what lies beyond it, and the page that is cut within.
    pub(super) fn cut(&self, size: u64) -> Result<()> {
        let first = self.first_cut(size);
        {
            let mut room = self.room.lock();
            room.end = room.end.min(first).max(room.start);
        }
        let place = {
            let mut state = self.state.lock();
            state.known_pages = state.known_pages.min(first);
            state.place()
        };
        let Some(place) = place else { return Ok(()) };
        self.unsynced.store(true, Ordering::Release);
        self.table.cut_entries(place.slot, place.sums.as_deref(), first)
    }

    /// The file has this length now, exactly.
    pub(super) fn was_cut(&self, size: u64) {
        self.note(|state| {
            state.header.flags &= !PADDED;
            if size == 0 {
                state.header.flags &= !(SUSPECT | HAS_TORN);
            }
        });
    }

    /// Whether [`Record::was_cut`] would change anything.
    pub(super) fn minds_cut(&self, size: u64) -> bool {
        let state = self.state.lock();
        let minded = if size == 0 { PADDED | SUSPECT | HAS_TORN } else { PADDED };
        !self.is_quiet() || state.header.has(minded)
    }

    /// After a crash: the record speaks of the file as it is now, and mismatches in it are torn writes.
    pub(super) fn recovered(&self, stamp: Stamp, suspect: bool, torn: bool) -> Result<()> {
        self.change(|state| {
            let header = &mut state.header;
            header.flags &= !(ACTIVE | PADDED);
            header.flags |= if suspect { SUSPECT } else { 0 } | if torn { HAS_TORN } else { 0 };
            stamp.store(header);
        })
    }

    /// No page of it is torn, and nothing is suspect any more.
    pub(super) fn absolve(&self, stamp: Stamp) -> Result<()> {
        self.change(|state| {
            state.header.flags &= !(ACTIVE | PADDED | SUSPECT | HAS_TORN);
            stamp.store(&mut state.header);
        })
    }
}

impl State {
    fn place(&self) -> Option<Place> {
        Some(Place { slot: self.slot?, sums: self.sums.clone() })
    }

    /// The header of a partition that is not being written, with the backing file's size and times.
    fn settled(&self, stamp: Stamp) -> Option<Header> {
        let mut header = self.header;
        // What was written behind the padding since has covered it.
        let padded = header.has(PADDED) && stamp.size > header.true_size;
        if self.slot.is_none() || self.writes > 0 || padded {
            return None;
        }
        header.flags &= !(ACTIVE | PADDED);
        stamp.store(&mut header);
        Some(header)
    }
}

#[cfg(test)]
mod tests;
