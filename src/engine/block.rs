//! One block: which bytes of which partition it holds and who is busy with them.
//!
//! Per page (4 KiB, or the device's alignment when larger):
//!
//! | set | meaning | who may touch the page |
//! | --- | --- | --- |
//! | `valid` | holds the partition's current bytes | readers, writers |
//! | `dirty` | newer than the swap folder | |
//! | `reading` | a transfer fills it | nobody |
//! | `writing` | a transfer stores it | readers |
//! | `copying` | a client's bytes are being copied in | nobody |
//! | `shared` | its bytes are being copied out to clients | readers |
//!
//! A page that is dirty but not valid is *partial*: a [`Partial`] says which of its bytes are new; the
//! others still are in the swap folder and are filled in before the page is read or written out, unless
//! a sequential writer completes it first.

use std::ops::Range;

use smallvec::SmallVec;

use super::ids::{BlockId, PartitionId};
use super::op::Op;
use super::pages::PageSet;
use super::seam::Seams;
use super::trays::{Place, Weight};
use crate::error::Errno;
use crate::shares::Share;

/// Partial pages a block may have before a write must wait for one to be filled.
pub(crate) const PARTIALS_MAX: usize = 8;

/// The new bytes of a page whose other bytes were never read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partial {
    pub(crate) page: usize,
    /// First new byte, from the page's start.
    pub(crate) start: usize,
    /// End of the new bytes.
    pub(crate) end: usize,
}

/// Which list a block is linked into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ListKind {
    None,
    /// May be evicted, oldest use first.
    Clean,
    /// As clean, but swapped in on request: evicted only when no clean one is left.
    Kept,
    /// As clean or kept, in a slot: evicted with its tray. Not linked to others.
    Slot,
    /// Dirty, not held, and not asked to be written yet, oldest write first.
    Dirty,
    /// Its write failed; waits for a retry.
    Failed,
}

impl ListKind {
    /// Of blocks that can be evicted.
    pub(crate) fn evictable(self) -> bool {
        matches!(self, ListKind::Clean | ListKind::Kept | ListKind::Slot)
    }
}

/// What a block adds to its partition's and the pool's counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) valid: u64,
    pub(crate) dirty: u64,
    pub(crate) inflight: u64,
    /// Under transfer, or asked to be.
    pub(crate) pending: bool,
    pub(crate) failed: bool,
    pub(crate) epoch_dirty: Option<u64>,
    pub(crate) epoch_writing: Option<u64>,
}

/// The state of one block.
#[derive(Debug)]
pub(crate) struct Block {
    pub(crate) partition: PartitionId,
    pub(crate) index: u64,
    /// Where its bytes are.
    pub(crate) place: Place,
    /// Pages that have room there.
    pub(crate) pages: usize,
    /// What its place was last told of it.
    pub(crate) told: Weight,
    pub(crate) valid: PageSet,
    pub(crate) dirty: PageSet,
    pub(crate) reading: PageSet,
    pub(crate) writing: PageSet,
    pub(crate) copying: PageSet,
    pub(crate) shared: PageSet,
    /// Copies out under way; `shared` is cleared when the last one ends.
    pub(crate) readers: u32,
    pub(crate) partials: SmallVec<[Partial; 2]>,
    /// Pages that may wait for the rest of a write.
    pub(crate) seams: Seams,
    /// Since when, in milliseconds, it waits for that, and whether somebody waits for it.
    pub(crate) waits_since: Option<(u64, bool)>,
    /// Operations that need the block to stay resident while they wait for the device.
    pub(crate) pins: u32,
    /// Those of the pins that end when their owner likes, not when something has moved.
    pub(crate) holds: u32,
    /// Transfers under way.
    pub(crate) transfers: u32,
    /// Operations to try again when anything here changes.
    pub(crate) waiters: Vec<Op>,
    /// Writing out was asked for (a full block, close, fsync, age, pressure) and is not done.
    pub(crate) flush: bool,
    /// Swapped in on request; stays until released. It takes a share of whoever asked.
    pub(crate) kept: Option<Share>,
    /// Dropped as soon as it is clean and idle.
    pub(crate) release: bool,
    /// The errno of the last write-out, when it failed.
    pub(crate) failed: Option<Errno>,
    /// The errno of the last failed read into it.
    pub(crate) read_error: Option<Errno>,
    pub(crate) epoch_dirty: u64,
    pub(crate) epoch_writing: u64,
    /// When a client last wrote to it, in milliseconds since the engine's start.
    pub(crate) written_ms: u64,
    pub(crate) list: ListKind,
    pub(crate) previous: BlockId,
    pub(crate) next: BlockId,
}

impl Block {
    /// One that is unused.
    pub(crate) fn new() -> Block {
        let set = || PageSet::new(0);
        Block {
            partition: PartitionId::NONE,
            index: 0,
            place: Place::Nowhere,
            pages: 0,
            told: Weight::default(),
            valid: set(),
            dirty: set(),
            reading: set(),
            writing: set(),
            copying: set(),
            shared: set(),
            readers: 0,
            partials: SmallVec::new(),
            seams: Seams::new(),
            waits_since: None,
            pins: 0,
            holds: 0,
            transfers: 0,
            waiters: Vec::new(),
            flush: false,
            kept: None,
            release: false,
            failed: None,
            read_error: None,
            epoch_dirty: 0,
            epoch_writing: 0,
            written_ms: 0,
            list: ListKind::None,
            previous: BlockId::NONE,
            next: BlockId::NONE,
        }
    }

    /// Nobody is busy with it.
    pub(crate) fn idle(&self) -> bool {
        self.pins == 0
            && self.transfers == 0
            && self.readers == 0
            && self.copying.is_empty()
            && self.waiters.is_empty()
    }

    /// The list it belongs into.
    pub(crate) fn proper_list(&self) -> ListKind {
        if self.partition == PartitionId::NONE {
            ListKind::None
        } else if self.failed.is_some() {
            if self.idle() { ListKind::Failed } else { ListKind::None }
        } else if !self.dirty.is_empty() {
            // Writing out what is held would give no room, and its holder says when it is to go out.
            if self.flush || self.holds > 0 { ListKind::None } else { ListKind::Dirty }
        } else if self.idle() {
            match self.place {
                Place::Slot { .. } => ListKind::Slot,
                _ if self.kept.is_some() => ListKind::Kept,
                _ => ListKind::Clean,
            }
        } else {
            ListKind::None
        }
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            valid: self.valid.count(),
            dirty: self.dirty.union_count(&self.writing),
            inflight: self.reading.union_count(&self.writing),
            pending: self.transfers > 0 || self.flush,
            failed: self.failed.is_some(),
            epoch_dirty: (!self.dirty.is_empty() && self.failed.is_none())
                .then_some(self.epoch_dirty),
            epoch_writing: (!self.writing.is_empty()).then_some(self.epoch_writing),
        }
    }

    /// What it means for its place, once it is in its list.
    pub(crate) fn weight(&self) -> Weight {
        if self.partition == PartitionId::NONE {
            return Weight::default();
        }
        Weight {
            busy: !self.list.evictable(),
            failed: self.list == ListKind::Failed,
            held: self.holds > 0,
            kept: self.kept.is_some(),
            dirty: !self.dirty.is_empty() || !self.writing.is_empty(),
            inflight: self.transfers > 0,
        }
    }

    /// Nobody has a lease on its bytes: they may move.
    pub(crate) fn still(&self) -> bool {
        self.transfers == 0 && self.readers == 0 && self.copying.is_empty()
    }

    /// Has room for `pages` pages from now on; what it holds lies within.
    pub(crate) fn set_pages(&mut self, pages: usize) {
        assert!(!self.valid.any(pages..self.pages) && !self.dirty.any(pages..self.pages));
        self.pages = pages;
        for set in [
            &mut self.valid,
            &mut self.dirty,
            &mut self.reading,
            &mut self.writing,
            &mut self.copying,
            &mut self.shared,
        ] {
            set.set_pages(pages);
        }
    }

    pub(crate) fn partial(&self, page: usize) -> Option<usize> {
        self.partials.iter().position(|p| p.page == page)
    }

    /// The bytes of these pages are all here.
    pub(crate) fn make_valid(&mut self, pages: Range<usize>) {
        if !self.partials.is_empty() {
            self.partials.retain(|p| !pages.contains(&p.page));
        }
        self.valid.insert(pages);
    }

    /// Notes that bytes `covered` of `page` are new. `end` is where the partition ends within the page;
    /// `zeroed` says that the bytes around were made zero.
    pub(crate) fn note_edge(
        &mut self, page: usize, covered: Range<usize>, end: usize, zeroed: bool, unit: usize,
    ) {
        if self.valid.contains(page) {
            return;
        }
        if zeroed || covered == (0..unit) {
            self.make_valid(page..page + 1);
            return;
        }
        let mut run = covered;
        if let Some(at) = self.partial(page) {
            let old = self.partials.remove(at);
            run = run.start.min(old.start)..run.end.max(old.end);
        }
        // Complete only when the last page's tail needs no zeroes: those come with a fill.
        if run.start == 0 && run.end == unit && end <= unit {
            self.valid.insert(page..page + 1);
        } else {
            self.partials.push(Partial { page, start: run.start, end: run.end });
        }
    }

    /// Back to an unused block; the caller has checked that it is idle.
    pub(crate) fn reset(&mut self) {
        assert!(self.idle(), "a buffer in use is never freed");
        assert!(self.reading.is_empty() && self.writing.is_empty());
        self.partition = PartitionId::NONE;
        self.kept = None;
        self.valid.clear();
        self.dirty.clear();
        self.shared.clear();
        self.partials.clear();
        self.seams.clear();
        self.waits_since = None;
        self.flush = false;
        self.release = false;
        self.failed = None;
        self.read_error = None;
    }
}
