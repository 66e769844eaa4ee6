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
use super::op::Caller;

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
