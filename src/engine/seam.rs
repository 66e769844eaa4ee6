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

use std::ops::Range;

use smallvec::SmallVec;

use super::block::Block;
use super::core::Engine;
use super::ids::{BlockId, HandleId, PartitionId};
use super::locked::Locked;

/// A piece is followed by the next one at once, unless its client gets no processor: so long is waited while somebody
/// waits for the block, and while nobody does, in milliseconds.
const PATIENCE_ASKED_MS: u64 = 20;
const PATIENCE_MS: u64 = 1000;
/// So long a page that went out before its rest has come is taken for torn.
const UNFINISHED_MS: u64 = 200;

/// Seams of a block that are remembered: of more writers than these at a time the oldest is not.
const SEAMS_MAX: usize = 4;

/// Who sent a piece of a write.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Its thread, as the kernel numbers it.
    pub thread: u32,
    /// The pieces of a call may come in any order (O_DIRECT).
    pub parallel: bool,
    /// The piece is as long as one that the kernel cuts: of as many pages of memory as a request may have. More may come.
    pub is_cut: bool,
}

/// How a write is to be done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// It is answered when it is on stable storage.
    pub stable: bool,
    /// Whose call it may be a piece of.
    pub caller: Option<Caller>,
}

/// A page of which a piece has covered some bytes, and of which others were there before.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seam {
    page: usize,
    /// The bytes covered, from the page's start.
    start: u64,
    end: u64,
    thread: u32,
    at_ms: u64,
    /// The piece is as long as one that the kernel has cut.
    is_cut: bool,
    /// It is to be on stable storage before more comes.
    stable: bool,
}

/// Those of one block.
pub(crate) type Seams = SmallVec<[Seam; 1]>;

/// A page that went out with its seam open.
#[derive(Debug)]
pub(crate) struct Unfinished {
    /// The page's first byte in the file.
    at: u64,
    seam: Seam,
    /// It has been promised to be on stable storage.
    stable: bool,
    since_ms: u64,
}

/// Of a partition. Of more the oldest is taken for finished.
const UNFINISHED_MAX: usize = 32;

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
    fn is_to_wait(&mut self, asked: bool, now_ms: u64) -> bool {
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

impl Locked<'_> {
    /// Whether a block is to wait for the rest of a write before it goes out. It is tried again.
    pub(crate) fn awaits_rest(&mut self, buffer: BlockId) -> bool {
        let block = &mut self.state.blocks[buffer];
        if block.seams.is_empty() {
            block.waits_since = None;
            return false;
        }
        let id = block.partition;
        let part = self.state.part(id);
        let asked =
            !part.sync_ops.is_empty() || part.barrier.is_some() || !self.state.waiting.is_empty();
        let now_ms = self.engine.now_ms();
        if !self.state.blocks[buffer].is_to_wait(asked, now_ms) {
            return false;
        }
        if !self.state.seamed.contains(&buffer) {
            self.state.seamed.push(buffer);
        }
        self.engine.tick.notify_one();
        true
    }

    /// A block goes out now, with the seams that it still has open.
    pub(crate) fn leave_unfinished(&mut self, buffer: BlockId) {
        let (unit, now_ms) = (self.state.shape.unit, self.engine.now_ms());
        let block = &mut self.state.blocks[buffer];
        if block.seams.is_empty() {
            return;
        }
        let start = block.index * self.engine.shape.block_size;
        let id = block.partition;
        let left = std::mem::take(&mut block.seams).into_iter().filter(|seam| seam.is_cut);
        for seam in left {
            let at = start + seam.page as u64 * unit;
            let part = self.state.part(id);
            part.file.begin_piece(at..at + unit);
            if part.unfinished.len() == UNFINISHED_MAX {
                let Unfinished { at, stable, .. } = part.unfinished.remove(0);
                part.file.end_piece(at..at + unit, stable);
            }
            let stable = seam.stable;
            part.unfinished.push(Unfinished { at, seam, stable, since_ms: now_ms });
            part.has_seams = true;
            if !self.state.unfinished.contains(&id) {
                self.state.unfinished.push(id);
            }
        }
    }

    /// Bytes of these pages have come: what they had of a write is theirs again.
    pub(crate) fn take_unfinished(&mut self, buffer: BlockId, pages: &Range<usize>) {
        let unit = self.state.shape.unit;
        let block = &self.state.blocks[buffer];
        let (id, start) = (block.partition, block.index * self.engine.shape.block_size);
        let bytes = start + pages.start as u64 * unit..start + pages.end as u64 * unit;
        let part = self.state.part(id);
        let mut taken = Seams::new();
        part.unfinished.retain(|it| {
            let is_taken = bytes.contains(&it.at);
            if is_taken {
                taken.push(it.seam);
            }
            !is_taken
        });
        let is_edge = |seam: &Seam| seam.page == pages.start || seam.page + 1 == pages.end;
        self.state.blocks[buffer].seams.extend(taken.into_iter().filter(is_edge));
    }

    /// Nothing more comes of the pages of which this is true.
    fn finish(&mut self, id: PartitionId, which: impl Fn(&Unfinished) -> bool) {
        let unit = self.state.shape.unit;
        let part = self.state.part(id);
        let file = part.file.clone();
        part.unfinished.retain(|it| {
            let is_over = which(it);
            if is_over {
                file.end_piece(it.at..it.at + unit, it.stable);
            }
            !is_over
        });
    }

    /// As far as anybody knows all pages of a partition are whole.
    pub(crate) fn finish_all(&mut self, id: PartitionId) {
        if !self.state.part(id).unfinished.is_empty() {
            self.finish(id, |_| true);
        }
    }

    /// A write(2) of these bytes is alone with the partition: all others have ended.
    pub(crate) fn finish_others(&mut self, id: PartitionId, bytes: &Range<u64>) {
        let unit = self.state.shape.unit;
        self.finish(id, |it| it.at >= bytes.end || it.at + unit <= bytes.start);
    }

    /// No write(2) to the partition is under way: what waits for such is whole.
    pub(crate) fn close_all_seams(&mut self, id: PartitionId) {
        self.close_seams_of(id, |_| true);
    }

    /// What has waited long enough is whole.
    pub(crate) fn finish_late(&mut self) {
        let now_ms = self.engine.now_ms();
        for id in std::mem::take(&mut self.state.unfinished) {
            if self.state.partitions.get(id).is_none() {
                continue;
            }
            self.finish(id, |it| it.since_ms + UNFINISHED_MS <= now_ms);
            if !self.state.part(id).unfinished.is_empty() {
                self.state.unfinished.push(id);
            }
        }
    }

    /// A piece is to be on stable storage before the next one is sent: its page goes out as it is.
    pub(crate) fn store_piece(&mut self, id: PartitionId, thread: u32) {
        if self.state.part(id).has_seams {
            let buffers: Vec<BlockId> = self.state.part(id).blocks.values().copied().collect();
            for buffer in buffers {
                let seams = self.state.blocks[buffer].seams.iter_mut();
                for seam in seams.filter(|seam| seam.thread == thread && seam.is_cut) {
                    (seam.at_ms, seam.stable) = (0, true);
                }
            }
        }
        self.close_seams_of(id, |seam| seam.thread == thread && !seam.is_cut);
    }

    /// Tries those again that waited.
    pub(crate) fn retry_seamed(&mut self) {
        for buffer in std::mem::take(&mut self.state.seamed) {
            self.write_out(buffer);
        }
    }

    /// The seams of a thread's writes to a partition are none.
    pub(crate) fn close_seams(&mut self, id: PartitionId, thread: u32) {
        self.close_seams_of(id, |seam| seam.thread == thread);
    }

    fn close_seams_of(&mut self, id: PartitionId, which: impl Fn(&Seam) -> bool) {
        if !std::mem::take(&mut self.state.part(id).has_seams) {
            return;
        }
        self.finish(id, |it| which(&it.seam));
        self.state.part(id).has_seams = !self.state.part(id).unfinished.is_empty();
        let buffers: Vec<BlockId> = self.state.part(id).blocks.values().copied().collect();
        for buffer in buffers {
            let seams = &mut self.state.blocks[buffer].seams;
            if seams.is_empty() {
                continue;
            }
            seams.retain(|seam| !which(seam));
            let is_left = !seams.is_empty();
            self.state.part(id).has_seams |= is_left;
            self.write_out(buffer);
        }
    }
}

impl Engine {
    /// A thread makes another call on the file: its writes before have ended.
    pub fn went_on(&self, handle: HandleId, thread: u32) {
        self.with(|locked| {
            if let Ok(id) = locked.state.partition_of(handle) {
                locked.close_seams(id, thread);
            }
        });
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
