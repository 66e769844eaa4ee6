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
//!
//! Where a write was cut within a page.
//!
//! The kernel sends a long write(2) in pieces: of as many pages of the client's memory as a request may have. From memory
//! that is not aligned as the file is, or of many small vectors, a piece ends within a page of the file, and the next
//! one goes on there. Such a page waits for its rest before it goes out: were the daemon killed in between, the swap
//! folder would have a page half new, half old, of a write that was answered as done.
//!
//! Whether a piece is the last one nobody says. A seam is closed by the bytes that go on there, by another call of the same
//! thread, and by time: less where somebody waits for the block, and never more than that in all, however many pieces
//! follow. Where the piece is as long as one that the kernel has cut, a page that goes out
//! with its seam open is torn on record until it is closed.

use smallvec::SmallVec;
use std::ops::Range;

use super::ids::{BlockId, PartitionId};
use super::op::{Caller, Op};
use super::pages::PageSet;
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
    pub(crate) counted: Weight,
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
            counted: Weight::default(),
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

    /// Returns true while one of these pages is read from or written to the swap folder, or copied: nobody may write to it.
    pub(crate) fn is_claimed(&self, pages: &Range<usize>) -> bool {
        let claims = [&self.reading, &self.writing, &self.copying, &self.shared];
        claims.into_iter().any(|set| set.any(pages.clone()))
    }

    /// These pages are newer than the swap folder from now on.
    pub(crate) fn mark_dirty(&mut self, pages: Range<usize>, epoch: u64, now_ms: u64) {
        if self.dirty.is_empty() || self.failed.is_some() {
            self.epoch_dirty = epoch;
        }
        self.failed = None;
        self.dirty.insert(pages);
        self.release = false;
        self.written_ms = now_ms;
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
        assert!(self.idle(), "a block_id in use is never freed");
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

/// A piece is followed by the next one at once, unless its client gets no processor: so long is waited while somebody
/// waits for the block, and while nobody does, in milliseconds.
const PATIENCE_ASKED_MS: u64 = 20;
const PATIENCE_MS: u64 = 1000;

/// Seams of a block that are remembered: of more writers than these at a time the oldest is not.
const SEAMS_MAX: usize = 4;

/// A page of which a piece has covered some bytes, and of which others were there before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seam {
    pub(super) page: usize,
    /// The bytes covered, from the page's start.
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) thread: u32,
    pub(super) at_ms: u64,
    /// The piece is as long as one that the kernel has cut.
    pub(super) is_cut: bool,
    /// It is to be on stable storage before more comes.
    pub(super) stable: bool,
}

/// Those of one block.
pub(crate) type Seams = SmallVec<[Seam; 1]>;

/// A page that went out with its seam open.
#[derive(Debug)]
pub(crate) struct Unfinished {
    /// The page's first byte in the file.
    pub(super) at: u64,
    pub(super) seam: Seam,
    /// It has been promised to be on stable storage.
    pub(super) stable: bool,
    pub(super) since_ms: u64,
}

impl Block {
    /// Bytes `start..end` of a page were written, which has `known` bytes.
    pub(crate) fn note_seam(
        &mut self, page: usize, covered: Range<u64>, known: u64, caller: Option<Caller>,
        now_ms: u64,
    ) {
        let (mut start, mut end) = (covered.start, covered.end);
        let touches = |seam: &Seam| seam.page == page && start <= seam.end && end >= seam.start;
        let before = self.seams.iter().position(touches).map(|at| self.seams.remove(at));
        if let Some(seam) = before {
            (start, end) = (start.min(seam.start), end.max(seam.end));
        }
        if start == 0 && end >= known {
            return;
        }
        let Some(Caller { thread, parallel, is_cut }) = caller else { return };
        if before.is_some() || end < known || (parallel && start > 0) {
            if self.seams.len() == SEAMS_MAX {
                self.seams.remove(0);
            }
            // What begins within a page may be the beginning of its write.
            let is_cut = is_cut && end < known;
            self.seams.push(Seam {
                page,
                start,
                end,
                thread,
                at_ms: now_ms,
                is_cut,
                stable: false,
            });
        }
    }

    /// Whether it waits for the rest of a write, `asked` if somebody waits for the block. From then on its time runs anew:
    /// what was waited before says nothing of the piece that came last.
    pub(super) fn is_to_wait(&mut self, asked: bool, now_ms: u64) -> bool {
        let patience = if asked { PATIENCE_ASKED_MS } else { PATIENCE_MS };
        let since = match self.waits_since {
            Some((since, was_asked)) if was_asked == asked => since,
            _ => now_ms,
        };
        let is_open = |seam: &Seam| seam.at_ms + patience > now_ms;
        let waits = since + patience > now_ms && self.seams.iter().any(is_open);
        self.waits_since = waits.then_some((since, asked));
        waits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: Option<Caller> = Some(Caller { thread: 7, parallel: false, is_cut: false });

    #[test]
    fn a_seam_is_there_until_its_page_is_whole() {
        let mut block = Block::new();
        block.note_seam(3, 0..3392, 4096, PIECE, 1);
        assert_eq!(block.seams.len(), 1);
        block.note_seam(3, 3392..4000, 4096, PIECE, 2);
        assert_eq!((block.seams.len(), block.seams[0].end), (1, 4000));
        block.note_seam(3, 4000..4096, 4096, PIECE, 3);
        assert!(block.seams.is_empty());
    }

    #[test]
    fn what_ends_with_the_file_or_begins_within_a_page_has_none() {
        let mut block = Block::new();
        block.note_seam(3, 0..100, 100, PIECE, 1);
        block.note_seam(4, 100..4096, 4096, PIECE, 1);
        block.note_seam(5, 10..20, 4096, None, 1);
        assert!(block.seams.is_empty());
        // The pieces of one call may come in any order.
        let parallel = Some(Caller { thread: 7, parallel: true, is_cut: false });
        block.note_seam(4, 100..4096, 4096, parallel, 1);
        assert_eq!(block.seams.len(), 1);
        block.note_seam(4, 0..100, 4096, parallel, 1);
        assert!(block.seams.is_empty());
    }

    const ASKED: u64 = PATIENCE_ASKED_MS;

    /// A block in which a piece ends at this time.
    fn with_piece(block: &mut Block, page: usize, now_ms: u64) {
        block.note_seam(page, 0..100, 4096, PIECE, now_ms);
    }

    #[test]
    fn a_piece_waits_less_where_somebody_waits_for_the_block() {
        for (asked, patience) in [(true, PATIENCE_ASKED_MS), (false, PATIENCE_MS)] {
            let mut block = Block::new();
            assert!(!block.is_to_wait(asked, 0));
            with_piece(&mut block, 3, 5000);
            assert!(block.is_to_wait(asked, 5000 + patience - 1));
            assert!(!block.is_to_wait(asked, 5000 + patience));
        }
    }

    #[test]
    fn pieces_without_end_hold_it_up_no_longer() {
        for (asked, patience) in [(true, PATIENCE_ASKED_MS), (false, PATIENCE_MS)] {
            let mut block = Block::new();
            for now_ms in 5000..5000 + patience {
                with_piece(&mut block, now_ms as usize % 200, now_ms);
                assert!(block.is_to_wait(asked, now_ms), "{now_ms}");
            }
            assert!(!block.is_to_wait(asked, 5000 + patience));
        }
    }

    /// A piece whose rest is on its way does not pay for others before it.
    #[test]
    fn the_time_runs_anew_when_somebody_asks() {
        let mut block = Block::new();
        for now_ms in 5000..5000 + 10 * ASKED {
            with_piece(&mut block, now_ms as usize % 200, now_ms);
            assert!(block.is_to_wait(false, now_ms));
        }
        let now_ms = 5000 + 10 * ASKED;
        with_piece(&mut block, 1, now_ms);
        assert!(block.is_to_wait(true, now_ms) && block.is_to_wait(true, now_ms + ASKED - 1));
        assert!(!block.is_to_wait(true, now_ms + ASKED));
    }
}
