//! One partition's record: its sums, what of it is being written, and what its backing file is like.
//!
//! Nothing of a record is kept in memory but its header: the entries of pages are read from and written to the
//! page cache of the ledger's files, a few KiB for each transfer, so that memory stays bounded however
//! large the partitions are.
//!
//! Entries are written by one thread at a time: the record writer's, in the order in which the transfers went, or whoever is
//! alone with the partition. The locks here are held for looking and noting down only, but for two that whoever calls
//! the filesystem anyway may hold meanwhile: [`Record::reserve`]'s and the one around the writing of a header.

mod pages;
mod reconcile;
mod shape;
mod unfinished;

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::Mutex;

use super::entry::{ENTRY_BYTES, Entry, pages_of};
use super::pulse::Pulse;
use super::stamp::Stamp;
use super::table::{
    ACTIVE, COMPLETE, HAS_TORN, Header, INLINE_PAGES, Identity, PADDED, Place, SHAPING, SHOWN,
    SIDECAR, SUSPECT, TIMED, Table, allocate,
};
use super::{Checksum, Counters};
use crate::aio::device::BackingFile;
use crate::aio::file::DiskFile;
use crate::error::{Errno, Result};
pub(super) use pages::{Outcome, Writing};
pub(super) use reconcile::Look;
pub(super) use shape::Edge;
use unfinished::Unfinished;

/// What all records of a ledger have in common.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) table: Arc<Table>,
    pub(super) counters: Counters,
    pub(super) checksum: Checksum,
    pub(super) pulse: Pulse,
    /// The number of the session that is now.
    pub(super) session: u32,
    /// Somebody was told that there is no room for records.
    pub(super) is_short: AtomicBool,
}

/// The record of a partition that the engine has a file of.
#[derive(Debug)]
pub(super) struct Record {
    identity: Identity,
    shared: Arc<Shared>,
    /// Something was recorded since the last sync began.
    unsynced: AtomicBool,
    /// Syncs of its records that are under way: who comes meanwhile may rely on none of them.
    syncing: AtomicU32,
    /// What the record writer is still to do to it.
    queued: AtomicU32,
    /// Entries that the file of entries has room for. Before `writing`.
    room: Mutex<Range<u64>>,
    /// Held while the header is written. Before `state`.
    writing: Mutex<()>,
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
    /// Changes of the backing file itself under way.
    changes: u32,
    /// How many of both have ended: a look at the file is worth nothing after the next end.
    ended: u64,
    /// The change time to show while the backing file has the second one. Both in nanoseconds since 1970.
    shown: Option<(i64, i64)>,
    /// Files that refer to the record.
    files: u32,
    /// Torn bytes that are not on record, because nothing may be written.
    torn: Vec<Range<u64>>,
    /// What became of pages that were being written, for the same reason.
    decided: BTreeMap<u64, Entry>,
    /// Pages of an interrupted change of shape, for the same reason: their sums may be those from before it.
    changing: Range<u64>,
    /// Pages that are stored before all of a write(2) has come.
    unfinished: BTreeMap<u64, Unfinished>,
}

/// What is left to do when the last file of a record is closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Others use it.
    Used,
    /// Nothing.
    Done,
    /// The record writer has to note it down.
    Unrecorded,
}

impl Record {
    /// A record of a file that is now as `stamp` says: one that nothing is known of, or what is in a slot.
    pub(super) fn new(
        identity: Identity, shared: Arc<Shared>, stamp: Stamp, known: Option<(u32, Header)>,
    ) -> Result<Self> {
        let (ino, generation) = identity;
        let flags = if stamp.size == 0 { COMPLETE } else { 0 };
        let session = shared.session;
        let mut header = Header { ino, generation, flags, session, ..Header::default() };
        stamp.store(&mut header);
        let mut state = State {
            header,
            stored: None,
            slot: None,
            sums: None,
            known_pages: 0,
            writes: 0,
            changes: 0,
            ended: 0,
            shown: None,
            files: 0,
            torn: Vec::new(),
            decided: BTreeMap::new(),
            changing: 0..0,
            unfinished: BTreeMap::new(),
        };
        if let Some((slot, header)) = known {
            (state.slot, state.header, state.stored) = (Some(slot), header, Some(header));
            state.known_pages = INLINE_PAGES;
            if header.has(SIDECAR) {
                match shared.table.sidecar(slot, false) {
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
            shared,
            unsynced: AtomicBool::new(false),
            syncing: AtomicU32::new(0),
            queued: AtomicU32::new(0),
            room: Mutex::new(0..0),
            writing: Mutex::new(()),
            state: Mutex::new(state),
        })
    }

    /// The partition was made in a session that ended by a power cut, and never synchronized: what of it is not zero may
    /// be a mixture.
    pub(super) fn distrust(&self) {
        self.state.lock().header.flags |= COMPLETE | SUSPECT;
    }

    pub(super) fn identity(&self) -> Identity {
        self.identity
    }

    /// Counts one file more that refers to it.
    pub(super) fn join(&self) {
        self.state.lock().files += 1;
    }

    /// Whether no file refers to it.
    pub(super) fn is_unused(&self) -> bool {
        self.state.lock().files == 0
    }

    /// Whether writes are recorded: with `checksum=none`, only those of partitions that have a record already.
    pub(super) fn is_kept(&self) -> bool {
        self.shared.checksum != Checksum::None || self.state.lock().slot.is_some()
    }

    /// The record writer is to do something to it, and will call [`Record::done`].
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

    /// Whether what is on record of its pages may change before what was asked of the record writer so far is done, and
    /// matters to a reader.
    pub(super) fn is_unsettled(&self) -> bool {
        let minds = || self.compares() || self.state.lock().header.has(HAS_TORN);
        !self.is_quiet() && minds()
    }

    fn compares(&self) -> bool {
        self.shared.checksum == Checksum::Crc32c
    }

    /// Whether the record writer has nothing more to do to it.
    pub(super) fn is_quiet(&self) -> bool {
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
        if !state.unfinished.is_empty() && stamp.is_some() {
            return Leaving::Unrecorded;
        }
        let blank = state.stored.is_none() && !state.header.has(SIDECAR);
        if blank && self.is_quiet() {
            state.slot = None;
            drop(state);
            self.shared.table.release(self.identity, slot);
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
        if let (Some(slot), true) = (slot, self.shared.table.writable()) {
            self.shared.table.give_back(&header, slot);
        }
    }

    /// Records what the backing file is like, unless it is being written or changed: who finds another knows that the
    /// file was changed without swapfs. What ends between the look and the record makes it look again.
    pub(super) fn settle(&self, look: impl Fn() -> Option<Stamp>) {
        loop {
            let since = {
                let state = self.state.lock();
                if state.writes + state.changes > 0 {
                    return;
                }
                state.ended
            };
            let Some(stamp) = look() else { return };
            let mut is_old = false;
            self.note(|state| {
                is_old = state.ended != since;
                if let Some(settled) = state.settled(stamp).filter(|_| !is_old) {
                    state.header = Header { session: self.shared.session, ..settled };
                }
            });
            if !is_old {
                return;
            }
        }
    }

    /// The backing file has got its change time `settled_ns` by our own doing: `shown_ns` is to be shown instead.
    pub(super) fn show_changed(&self, shown_ns: i64, settled_ns: i64) {
        self.state.lock().shown = Some((shown_ns, settled_ns));
    }

    /// The change time to show of a backing file that has this one, where it is not its own.
    pub(super) fn shown_changed(&self, changed_ns: i64) -> Option<i64> {
        let state = self.state.lock();
        let set = state.shown.filter(|(_, settled)| *settled == changed_ns);
        set.map(|(shown, _)| shown).or_else(|| state.header.shown(changed_ns))
    }

    /// Changes the header, and writes it when that makes a difference. Returns whether it was written.
    fn change(&self, change: impl FnOnce(&mut State)) -> Result<bool> {
        let _writing = self.writing.lock();
        let (slot, header, stored) = {
            let mut state = self.state.lock();
            change(&mut state);
            (state.slot, state.header, state.stored)
        };
        let Some(slot) = slot else { return Ok(false) };
        match stored {
            Some(stored) if stored == header => return Ok(false),
            Some(_) => self.shared.table.set_header(slot, &header)?,
            None => self.shared.table.fill(slot, &header)?,
        }
        self.unsynced.store(true, Ordering::Release);
        self.state.lock().stored = Some(header);
        Ok(true)
    }

    /// As [`Record::change`], where nobody can be told of a failure. The next change writes it again.
    fn note(&self, change: impl FnOnce(&mut State)) {
        if !self.shared.table.writable() {
            return;
        }
        if let Err(errno) = self.change(change) {
            let slot = self.state.lock().slot.unwrap_or_default();
            log::error!(partition = slot; "ledger: record {slot}: {}", errno.desc());
        }
    }

    /// What has to be on stable storage with the partition's bytes, besides the table.
    pub(super) fn sidecar(&self) -> Option<Arc<DiskFile>> {
        self.state.lock().sums.clone()
    }

    /// Makes room for the entries of a range of bytes, which is to be written, as far as there is any.
    pub(super) fn reserve(&self, bytes: &Range<u64>) -> Result<()> {
        if !self.is_kept() {
            return Ok(());
        }
        self.make_room(&pages_of(bytes)).map(drop)
    }

    /// Gets room for the entries of pages that are to be written. A full disk is no reason to refuse a write that needs
    /// no space itself: then there is no place, or one without room for these pages.
    fn make_room(&self, pages: &Range<u64>) -> Result<Option<Place>> {
        let mut room = self.room.lock();
        let (slot, sums, format) = {
            let state = self.state.lock();
            (state.slot, state.sums.clone(), state.header.format)
        };
        let slot = match slot {
            Some(slot) => slot,
            None => match self.shared.table.take(self.identity) {
                Ok(slot) => {
                    self.state.lock().slot = Some(slot);
                    slot
                }
                Err(errno) => return self.is_short(errno).map(|()| None),
            },
        };
        let covered = room.start <= pages.start && pages.end <= room.end;
        if pages.end <= INLINE_PAGES || covered {
            return Ok(Some(Place { slot, sums, format }));
        }
        let sums = match sums {
            Some(sums) => sums,
            None => match self.shared.table.sidecar(slot, true) {
                Ok(sums) => {
                    let sums = Arc::new(sums);
                    let mut state = self.state.lock();
                    state.sums = Some(sums.clone());
                    state.header.flags |= SIDECAR;
                    sums
                }
                // There may be room for bytes where there is none for another file.
                Err(errno) => {
                    return self.is_short(errno).map(|()| Some(Place { slot, sums: None, format }));
                }
            },
        };
        let from = pages.start * ENTRY_BYTES;
        match allocate(&*sums, from, pages.end * ENTRY_BYTES - from) {
            Ok(()) => {
                let touches = pages.start <= room.end && room.start <= pages.end;
                *room = match touches {
                    true => room.start.min(pages.start)..room.end.max(pages.end),
                    false => pages.clone(),
                };
            }
            Err(errno) => self.is_short(errno)?,
        }
        Ok(Some(Place { slot, sums: Some(sums), format }))
    }

    /// Goes on without a record where there is no room for one, and says so once.
    fn is_short(&self, errno: Errno) -> Result<()> {
        match errno {
            Errno::ENOSPC | Errno::EDQUOT => {
                if !self.shared.is_short.swap(true, Ordering::Relaxed) {
                    log::warn!(
                        "the swap folder is full: writes go on without a record, and what a crash interrupts of \
                         them is not known to be torn"
                    );
                }
                self.state.lock().header.flags &= !COMPLETE;
                Ok(())
            }
            errno => Err(errno),
        }
    }
}

impl State {
    fn place(&self) -> Option<Place> {
        Some(Place { slot: self.slot?, sums: self.sums.clone(), format: self.header.format })
    }

    /// The header of a partition that is not being written or changed, with what the backing file is like. `None` for
    /// one that is, and for an old look at the file.
    fn settled(&self, stamp: Stamp) -> Option<Header> {
        let mut header = self.header;
        let is_old = stamp.changed_ns < header.changed_ns;
        if self.writes + self.changes > 0 || is_old {
            return None;
        }
        header.flags &= !(ACTIVE | PADDED | TIMED | SHAPING);
        match self.shown {
            Some((shown, settled)) if settled == stamp.changed_ns => {
                header.flags |= SHOWN;
                header.next = shown.cast_unsigned();
            }
            _ if header.changed_ns == stamp.changed_ns && !self.header.has(TIMED | PADDED) => {}
            _ => header.flags &= !SHOWN,
        }
        stamp.store(&mut header);
        Some(header)
    }
}

#[cfg(test)]
mod tests;
