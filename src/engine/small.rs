//! Small partitions: from slot to slot, and to rest.
//!
//! A partition smaller than `min_swap_size` gets a slot of the next power of two of its size when it is
//! first written or read; above half a block it gets a tray of a single slot. A writer that outgrows its
//! slot is moved straight to a whole buffer, so that a stream is copied once at most; when nobody has the
//! partition open any more and it is clean, it is packed into a slot that fits. `min_swap_size` 0 turns all of
//! this off.

use super::actions::Actions;
use super::ids::{BlockId, PartitionId};
use super::locked::Locked;
use super::op::Granted;
use super::state::State;
use super::trays::Place;

/// Idle partitions that are let go at once, at most, and how many are looked at for it: under the lock.
const TRIM_MAX: usize = 64;

/// What looking for a block's room came to.
pub(crate) enum Room {
    /// It is in the pool, with room for all that was asked for.
    Here(BlockId),
    /// It has to move, and somebody has a lease on its bytes: whose end wakes those who wait for it.
    Busy(BlockId),
    /// A buffer has to be waited for.
    Wait,
}

/// A block of a partition, and the room it needs.
#[derive(Clone, Copy)]
pub(crate) struct Need {
    pub(crate) partition: PartitionId,
    pub(crate) index: u64,
    /// From its start.
    pub(crate) pages: usize,
    /// The slot to take if it has none; `None` for a buffer of its own.
    pub(crate) slot: Option<usize>,
}

impl State {
    /// Whether a block is in the pool with room for `pages` pages.
    pub(crate) fn fitting(
        &mut self, partition: PartitionId, index: u64, pages: usize,
    ) -> Option<BlockId> {
        self.find(partition, index).filter(|buffer| self.blocks[*buffer].pages >= pages)
    }

    /// To be called where a partition's size has changed from `old`. One that is large now gives up its
    /// single slots for buffers of its own, which are not spared.
    pub(crate) fn resized(&mut self, partition: PartitionId, old: u64) {
        let small = self.shape.min_swap_size;
        if old >= small || self.part(partition).size < small {
            return;
        }
        let pages = self.shape.pages();
        let buffers: Vec<BlockId> = self.part(partition).blocks.values().copied().collect();
        for buffer in buffers {
            let block = &self.blocks[buffer];
            if block.pages == pages && matches!(block.place, Place::Slot { .. }) {
                self.recast(buffer, None);
            }
        }
    }

    /// Lets go of the partitions that nobody has had open for the longest time, as long as there are more
    /// than `max` and so their descriptors: small ones are put to rest, of others the blocks are dropped.
    pub(crate) fn trim(&mut self, max: usize, actions: &mut Actions) {
        let mut looked = 0;
        let mut from = 0;
        while self.idle.len() > max && looked < TRIM_MAX {
            let Some((since, id)) = self.idle.range(from..).next().map(|(s, id)| (*s, *id)) else {
                return;
            };
            (from, looked) = (since + 1, looked + 1);
            let part = self.part(id);
            if !part.leavable() || part.unlinked {
                continue;
            }
            let buffers: Vec<BlockId> = part.blocks.values().copied().collect();
            let evictable = |buffer: &BlockId| self.blocks[*buffer].list.evictable();
            if buffers.iter().all(evictable) && !self.rest(id, actions) {
                for buffer in buffers {
                    self.detach(buffer, actions);
                }
            }
        }
    }
}

impl Locked<'_> {
    /// Finds or makes room for a block.
    pub(crate) fn room_for(&mut self, granted: &mut Granted, need: Need) -> Room {
        let Need { partition, index, pages, slot } = need;
        let Some(buffer) = self.state.find(partition, index) else {
            let placed = self.state.place(granted, partition, index, slot, self.actions);
            return placed.map_or(Room::Wait, Room::Here);
        };
        if self.state.blocks[buffer].pages >= pages {
            return Room::Here(buffer);
        }
        if !self.state.blocks[buffer].still() {
            return Room::Busy(buffer);
        }
        let place = match self.state.vacancy(granted, slot) {
            Some(place) => place,
            None if self.state.acquire(granted, 1, self.actions) => {
                self.state.claim_buffer(granted, slot)
            }
            None => return Room::Wait,
        };
        // The room may have been made by evicting the block itself.
        if self.state.find(partition, index).is_none() {
            return Room::Here(self.state.attach(place, partition, index));
        }
        self.move_block(buffer, place);
        Room::Here(buffer)
    }

    /// Copies what a block holds to another place, under the lock: half a block at most, and rarely.
    pub(crate) fn move_block(&mut self, buffer: BlockId, place: Place) {
        let block = &self.state.blocks[buffer];
        let (unit, pages) = (self.state.shape.unit, block.pages);
        let mut used = block.valid.clone();
        used.add_all(&block.dirty);
        let mut at = 0;
        while let Some(run) = used.run(at..pages) {
            at = run.end;
            self.engine.memory.copy(
                self.state,
                buffer,
                place,
                run.start as u64 * unit..run.end as u64 * unit,
            );
        }
        self.state.stats.moves += 1;
        self.state.moved(buffer, place);
    }

    /// Packs a small partition that nobody uses into a slot that fits: a vacant one, or the first of a tray
    /// made of the buffer that it has.
    pub(crate) fn pack(&mut self, id: PartitionId) {
        let part = self.state.part(id);
        let (size, unused) = (part.size, part.handles == 0 && !part.unlinked);
        let (Some((0, buffer)), 1) = (part.blocks.first_key_value(), part.blocks.len()) else {
            return;
        };
        let buffer = *buffer;
        let Some(pages) = self.state.shape.slot_pages(size, 0) else { return };
        let block = &self.state.blocks[buffer];
        let plain = matches!(block.place, Place::Buffer(_));
        let roomy = block.pages > pages || plain;
        if !unused || !roomy || !block.list.evictable() || block.valid.any(pages..block.pages) {
            return;
        }
        match self.state.trays.vacancy(pages) {
            Some(place) => self.move_block(buffer, place),
            None if block.pages == self.state.shape.pages() => {
                self.state.recast(buffer, Some(pages))
            }
            None => {}
        }
    }
}
