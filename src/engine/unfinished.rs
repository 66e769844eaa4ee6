//! Pages of writes that the kernel has cut: held back, or on record as torn, until their rest has come.

use std::ops::Range;

use super::block::{Seam, Seams, Unfinished};
use super::core::Engine;
use super::ids::{BlockId, HandleId, PartitionId};
use super::locked::Locked;
/// So long a page that went out before its rest has come is taken for torn.
const UNFINISHED_MS: u64 = 200;

/// Of a partition. Of more the oldest is taken for finished.
const UNFINISHED_MAX: usize = 32;

impl Locked<'_> {
    /// Whether a block is to wait for the rest of a write before it goes out. It is tried again.
    pub(crate) fn awaits_rest(&mut self, block_id: BlockId) -> bool {
        let block = &mut self.state.blocks[block_id];
        if block.seams.is_empty() {
            block.waits_since = None;
            return false;
        }
        let id = block.partition;
        let part = self.state.part(id);
        let asked =
            !part.sync_ops.is_empty() || part.barrier.is_some() || !self.state.waiting.is_empty();
        let now_ms = self.engine.now_ms();
        if !self.state.blocks[block_id].is_to_wait(asked, now_ms) {
            return false;
        }
        if !self.state.seamed.contains(&block_id) {
            self.state.seamed.push(block_id);
        }
        self.engine.tick.notify_one();
        true
    }

    /// A block goes out now, with the seams that it still has open.
    pub(crate) fn leave_unfinished(&mut self, block_id: BlockId) {
        let (unit, now_ms) = (self.state.shape.unit, self.engine.now_ms());
        let block = &mut self.state.blocks[block_id];
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
    pub(crate) fn take_unfinished(&mut self, block_id: BlockId, pages: &Range<usize>) {
        let unit = self.state.shape.unit;
        let block = &self.state.blocks[block_id];
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
        self.state.blocks[block_id].seams.extend(taken.into_iter().filter(is_edge));
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
            let blocks: Vec<BlockId> = self.state.part(id).blocks.values().copied().collect();
            for block_id in blocks {
                let seams = self.state.blocks[block_id].seams.iter_mut();
                for seam in seams.filter(|seam| seam.thread == thread && seam.is_cut) {
                    (seam.at_ms, seam.stable) = (0, true);
                }
            }
        }
        self.close_seams_of(id, |seam| seam.thread == thread && !seam.is_cut);
    }

    /// Tries those again that waited.
    pub(crate) fn retry_seamed(&mut self) {
        for block_id in std::mem::take(&mut self.state.seamed) {
            self.write_out(block_id);
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
        let blocks: Vec<BlockId> = self.state.part(id).blocks.values().copied().collect();
        for block_id in blocks {
            let seams = &mut self.state.blocks[block_id].seams;
            if seams.is_empty() {
                continue;
            }
            seams.retain(|seam| !which(seam));
            let is_left = !seams.is_empty();
            self.state.part(id).has_seams |= is_left;
            self.write_out(block_id);
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
