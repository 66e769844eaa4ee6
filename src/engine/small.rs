//! Small partitions: from slot to slot, and to rest.
//!
//! A partition smaller than `min_swap_size` gets a slot of the next power of two of its size when it is
//! first written or read; above half a block it gets a tray of a single slot. A writer that outgrows its
//! slot is moved straight to a whole buffer, so that a stream is copied once at most; when nobody has the
//! partition open any more and it is clean, it is packed into a slot that fits. `min_swap_size` 0 turns all of
//! this off.

use super::actions::{Actions, Note};
use super::block::ListKind;
use super::ids::{BlockId, PartitionId, RestingId};
use super::locked::Locked;
use super::op::Granted;
use super::partition::{AtRest, FileKey};
use super::state::State;
use super::trays::{Occupant, Place, Weight};
use crate::shares::{Share, User};

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
        self.find(partition, index).filter(|block_id| self.blocks[*block_id].pages >= pages)
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
        for block_id in buffers {
            let block = &self.blocks[block_id];
            if block.pages == pages && matches!(block.place, Place::Slot { .. }) {
                self.recast(block_id, None);
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
            let evictable = |block_id: &BlockId| self.blocks[*block_id].list.evictable();
            if buffers.iter().all(evictable) && !self.rest(id, actions) {
                for block_id in buffers {
                    self.detach(block_id, actions);
                }
            }
        }
    }
}

/// Partitions at rest at most: with their 48 bytes each, their entry of 33 in a table that may be half
/// empty, and 8 for the slot, about 11 MiB.
const RESTING_MAX: usize = 114_688;

impl State {
    /// Whether nothing of a partition is needed but its bytes, all of them in one slot.
    fn restable(&self, id: PartitionId) -> bool {
        let Some(part) = self.partitions.get(id) else { return false };
        let (Some((0, block_id)), 1) = (part.blocks.first_key_value(), part.blocks.len()) else {
            return false;
        };
        let block = &self.blocks[*block_id];
        let pages = part.size.div_ceil(self.shape.unit) as usize;
        let whole = pages <= block.pages && part.valid_pages as usize == pages;
        let swappable = part.size >= self.shape.min_swap_size;
        part.leavable() && !part.unlinked && !swappable && whole && block.list == ListKind::Slot
    }

    /// Puts a partition to rest if that can be. Its descriptor is closed outside the lock.
    pub(crate) fn rest(&mut self, id: PartitionId, actions: &mut Actions) -> bool {
        if !self.restable(id) {
            return false;
        }
        while self.resting.len() >= RESTING_MAX {
            match self.trays.oldest(true) {
                Some(tray) => self.evict_tray(tray, actions),
                None => return false,
            }
        }
        // The last tray may have been its own.
        if !self.restable(id) {
            return true;
        }
        let part = self.partitions.remove(id).expect("looked up just now");
        let block_id = part.blocks[&0];
        let block = &self.blocks[block_id];
        let Place::Slot { tray, slot } = block.place else { unreachable!("checked above") };
        let counted = block.counted;
        let keeper = self.block(block_id).kept.take();
        let kept = keeper.is_some();
        let at_rest = AtRest { key: part.key, size: part.size, tray, slot, kept };
        let number = self.resting.files.insert(at_rest);
        let keeper = keeper.filter(Share::is_counted).map(|share| (number, share));
        self.resting.keepers.extend(keeper);
        self.resting.keys.insert(part.key, number);
        self.trays.hand_over(tray, slot, Occupant::Resting(number));
        self.trays.reweigh(tray, counted, Weight { kept, ..Weight::default() });
        self.abandon(block_id);
        self.keys.remove(&part.key);
        self.idle.remove(&part.idle_since);
        self.drops += 1;
        actions.files.push(part.file);
        true
    }

    /// Gives a partition that has become known the bytes of its rest, if it had one. `size` is the
    /// file's.
    pub(crate) fn wake_up(&mut self, id: PartitionId, size: u64, actions: &mut Actions) {
        let key = self.part(id).key;
        let Some(number) = self.resting.keys.get(&key).copied() else { return };
        let at_rest = self.resting.files.get(number).expect("its key is known");
        if at_rest.size != size {
            let known = at_rest.size;
            actions.notes.push(Note::Changed { file: self.file(id), known, found: size });
            return self.forget_resting(number);
        }
        let AtRest { tray, slot, kept, .. } = *at_rest;
        // Vacated and taken again at once; the tray stays one although this may be its only slot.
        self.trays.reweigh(tray, Weight { kept, ..Weight::default() }, Weight::default());
        let block_id = self.adopt(tray, slot, id);
        self.resting.files.remove(number);
        self.resting.keys.remove(&key);
        let keeper = self.resting.keepers.remove(&number);
        let pages = size.div_ceil(self.shape.unit) as usize;
        self.edit(block_id, |block| {
            block.valid.insert(0..pages);
            block.kept = kept.then(|| keeper.unwrap_or(Share::uncounted(User::OWN)));
        });
        self.touch(block_id);
    }

    /// Drops the bytes of a partition at rest.
    pub(crate) fn forget_resting(&mut self, number: RestingId) {
        let at_rest = self.resting.files.remove(number).expect("it rests");
        self.resting.keys.remove(&at_rest.key);
        self.resting.keepers.remove(&number);
        let weight = Weight { kept: at_rest.kept, ..Weight::default() };
        if self.trays.vacate(at_rest.tray, at_rest.slot, weight) {
            self.free.push(at_rest.tray);
        }
    }

    /// As [`State::forget_resting`], by key; nothing for one that does not rest.
    pub(crate) fn forget_resting_key(&mut self, key: FileKey) {
        if let Some(number) = self.resting.keys.get(&key).copied() {
            self.forget_resting(number);
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
    pub(crate) fn move_block(&mut self, block_id: BlockId, place: Place) {
        let block = &self.state.blocks[block_id];
        let (unit, pages) = (self.state.shape.unit, block.pages);
        let mut used = block.valid.clone();
        used.add_all(&block.dirty);
        let mut at = 0;
        while let Some(run) = used.run(at..pages) {
            at = run.end;
            self.engine.memory.copy(
                self.state,
                block_id,
                place,
                run.start as u64 * unit..run.end as u64 * unit,
            );
        }
        self.state.stats.moves += 1;
        self.state.moved(block_id, place);
    }

    /// Packs a small partition that nobody uses into a slot that fits: a vacant one, or the first of a tray
    /// made of the buffer that it has.
    pub(crate) fn pack(&mut self, id: PartitionId) {
        let part = self.state.part(id);
        let (size, unused) = (part.size, part.handles == 0 && !part.unlinked);
        let (Some((0, block_id)), 1) = (part.blocks.first_key_value(), part.blocks.len()) else {
            return;
        };
        let block_id = *block_id;
        let Some(pages) = self.state.shape.slot_pages(size, 0) else { return };
        let block = &self.state.blocks[block_id];
        let plain = matches!(block.place, Place::Buffer(_));
        let roomy = block.pages > pages || plain;
        if !unused || !roomy || !block.list.evictable() || block.valid.any(pages..block.pages) {
            return;
        }
        match self.state.trays.vacancy(pages) {
            Some(place) => self.move_block(block_id, place),
            None if block.pages == self.state.shape.pages() => {
                self.state.recast(block_id, Some(pages));
            }
            None => {}
        }
    }
}
