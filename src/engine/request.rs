//! What users ask for by name: swap in, swap out, release, discard, reservations. Each returns at once;
//! waiting is asking for the status.

use std::ops::Range;
use std::sync::Arc;

use super::core::Engine;
use super::ids::{BlockId, HandleId, PartitionId};
use super::locked::Locked;
use super::op::{BarrierOp, Change, FetchOp, Granted, Op, Reply};
use super::partition::FileKey;
use super::small::{Need, Room};
use crate::error::{Errno, Result};
use crate::shares::User;

/// Blocks a swap-in asks for before it lets others have the lock.
const FETCH_BLOCKS: u64 = 64;

/// Partitions at rest that are dropped before others get the lock.
const RESTING_BATCH: usize = 256;

/// What can be asked of a partition that the engine knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Request {
    /// Write all dirty blocks, those whose write-out failed again.
    SwapOut,
    /// Write what is dirty, then drop the buffers.
    Release,
    /// Drop the buffers and the dirty bytes with them: the partition reads as in the swap folder.
    Discard,
}

impl Engine {
    /// Reads all blocks of a partition into the pool, where they stay until released, or until nothing
    /// else is left to evict. Returns at once; a failed transfer shows in the partition's error.
    ///
    /// # Errors
    /// ENOBUFS when the partition is larger than the pool less its reservations; EBADF.
    pub fn swap_in(&self, handle: HandleId) -> Result<()> {
        self.swap_in_for(User::OWN, handle)
    }

    /// As [`Engine::swap_in`], on behalf of a user: blocks beyond the user's share come in, but may be evicted as any others.
    ///
    /// # Errors
    /// As [`Engine::swap_in`].
    pub fn swap_in_for(&self, user: User, handle: HandleId) -> Result<()> {
        let user = user.looked_up();
        self.with(|locked| {
            let id = locked.state.partition_of(handle)?;
            let blocks = locked.state.part(id).size.div_ceil(locked.state.shape.block_size);
            if blocks > locked.state.in_circulation() {
                return Err(Errno::ENOBUFS);
            }
            let part = locked.state.part(id);
            part.queued += 1;
            part.jobs += 1;
            let op = FetchOp {
                partition: id,
                next: 0,
                user,
                releases: part.releases,
                granted: Granted::new(),
            };
            locked.state.queued += 1;
            locked.fetch_step(Box::new(op));
            Ok(())
        })
    }

    /// Bytes of the pool that a partition of `size` bytes takes when all of it is resident.
    #[must_use]
    pub fn footprint(&self, size: u64) -> u64 {
        match self.shape.slot_pages(size, 0) {
            Some(pages) if size <= self.shape.block_size => pages as u64 * self.shape.unit,
            _ => size.next_multiple_of(self.shape.block_size),
        }
    }

    /// Bytes of partitions that a swap-in may ask for: the pool less its reservations.
    #[must_use]
    pub fn swap_in_bytes_max(&self) -> u64 {
        self.with(|locked| locked.state.in_circulation() * locked.state.shape.block_size)
    }

    /// Counts as in flight for the whole pool until the guard is dropped: partitions are still being asked.
    #[must_use]
    pub fn asking(self: &Arc<Self>) -> Asking {
        self.with(|locked| locked.state.queued += 1);
        Asking { engine: self.clone() }
    }

    /// Does what is asked; nothing for a partition the engine does not know, whose bytes are all in the
    /// swap folder. Returns at once.
    pub fn request(&self, key: FileKey, request: Request) {
        self.with(|locked| match locked.state.keys.get(&key).copied() {
            Some(id) => locked.ask(id, request),
            None if request != Request::SwapOut => locked.state.forget_resting_key(key),
            None => {}
        });
    }

    /// As [`Engine::request`] with [`Request::Discard`], and answers when that has had its turn.
    pub fn discard(&self, key: FileKey, reply: Reply) {
        self.with(|locked| match locked.state.keys.get(&key).copied() {
            Some(id) => locked.ask_to_discard(id, Some(reply)),
            None => {
                locked.state.forget_resting_key(key);
                locked.actions.answer(Some(reply), Ok(()));
            }
        });
    }

    /// As [`Engine::request`], of every partition.
    pub fn request_all(&self, request: Request) {
        // Others get the lock in between.
        let some = || self.with(|locked| locked.state.resting.some(RESTING_BATCH));
        let mut resting = if request == Request::SwapOut { Vec::new() } else { some() };
        while !resting.is_empty() {
            self.with(|locked| {
                resting.iter().for_each(|key| locked.state.forget_resting_key(*key));
            });
            resting = some();
        }
        let ids: Vec<PartitionId> =
            self.with(|locked| locked.state.partitions.iter().map(|(id, _)| id).collect());
        for id in ids {
            // One at a time: others get the lock in between, and a partition may go meanwhile.
            self.with(|locked| {
                if locked.state.partitions.get(id).is_some() {
                    locked.ask(id, request);
                }
            });
        }
    }

    /// Takes `count` more buffers out of circulation, until [`Engine::release_reserved_buffers`]. Those in
    /// use leave as they become clean. A few always keep reads and writes moving.
    ///
    /// # Errors
    /// ENOBUFS when fewer than `count` are unreserved; nothing changes then.
    pub fn reserve_buffers(&self, count: u64) -> Result<()> {
        self.with(|locked| {
            let left = locked.state.in_circulation();
            if count > left {
                return Err(Errno::ENOBUFS);
            }
            locked.state.reserved += count as usize;
            Ok(())
        })
    }

    /// Puts every reserved buffer back into circulation.
    pub fn release_reserved_buffers(&self) {
        self.with(|locked| locked.state.reserved = 0);
    }

    /// Allocates `size` bytes in the swap folder for a partition, from its start, without changing its size;
    /// kept until it is truncated. `reply` comes when the filesystem has answered.
    ///
    /// Fails with ENOSPC, EDQUOT, EFBIG, EBADF.
    pub fn reserve_space(&self, handle: HandleId, size: u64, reply: Reply) {
        if size == 0 || i64::try_from(size).is_err() {
            return reply(Err(if size == 0 { Errno::EINVAL } else { Errno::EFBIG }));
        }
        self.change(handle, Change::Reserve(size), reply);
    }
}

impl Locked<'_> {
    /// Goes on with a swap-in.
    pub(crate) fn fetch_step(&mut self, mut op: Box<FetchOp>) {
        let id = op.partition;
        for _ in 0..FETCH_BLOCKS {
            let part = self.state.part(id);
            let end = part.size.div_ceil(self.engine.shape.block_size);
            if op.next >= end
                || part.unlinked
                || part.releases != op.releases
                || self.state.stopping
            {
                return self.end_fetch(*op);
            }
            if self.gate_closed(id, false) {
                // Who is inside may wait for the very buffer.
                self.state.return_granted(&mut op.granted);
                self.state.part(id).gate_queue.push_back(Op::Fetch(op));
                return;
            }
            let size = self.state.part(id).size;
            let need = Need {
                partition: id,
                index: op.next,
                pages: self.state.shape.pages_of(op.next, 0, size).end,
                slot: self.state.shape.slot_pages(size, op.next),
            };
            let block_id = match self.room_for(&mut op.granted, need) {
                Room::Here(block_id) => block_id,
                Room::Busy(block_id) => {
                    self.state.return_granted(&mut op.granted);
                    return self.state.edit(block_id, |block| block.waiters.push(Op::Fetch(op)));
                }
                Room::Wait => return self.wait_for_buffers(Op::Fetch(op), 1),
            };
            let user = op.user;
            self.state.edit(block_id, |block| {
                if block.kept.is_none() {
                    block.kept = self.engine.bounds().kept.take(user, 1).ok();
                }
                block.release = false;
            });
            let pages = 0..self.state.shape.pages();
            self.read_pages(block_id, pages.clone());
            self.fill_partials(block_id, pages);
            op.next += 1;
        }
        self.actions.ready.push(Op::Fetch(op));
    }

    fn end_fetch(&mut self, mut op: FetchOp) {
        self.state.return_granted(&mut op.granted);
        let id = op.partition;
        self.state.queued -= 1;
        self.state.part(id).queued -= 1;
        self.quiet_down(id);
        self.state.part(id).jobs -= 1;
        self.state.drop_if_unused(id, self.actions);
    }

    fn ask_to_discard(&mut self, id: PartitionId, reply: Option<Reply>) {
        self.state.part(id).jobs += 1;
        self.state.part(id).releases += 1;
        let op = BarrierOp::new(id, Change::Discard, reply);
        self.enter_barrier(op);
        self.quiet_down(id);
        self.state.part(id).jobs -= 1;
        self.state.drop_if_unused(id, self.actions);
    }

    fn ask(&mut self, id: PartitionId, request: Request) {
        self.state.part(id).jobs += 1;
        match request {
            Request::SwapOut => {
                let epoch = self.state.part(id).epoch;
                self.write_all(id, epoch);
            }
            Request::Release => self.release_blocks(id),
            Request::Discard => self.ask_to_discard(id, None),
        }
        self.quiet_down(id);
        self.state.part(id).jobs -= 1;
        self.state.drop_if_unused(id, self.actions);
    }

    /// Starts writing out everything dirty of a partition, failed blocks again as part of `epoch`.
    pub(crate) fn write_all(&mut self, id: PartitionId, epoch: u64) {
        if self.state.part(id).dirty_pages == 0 {
            return;
        }
        self.state.part(id).settle_failed = false;
        let blocks: Vec<BlockId> = self.state.part(id).blocks.values().copied().collect();
        for block_id in blocks {
            if self.state.blocks[block_id].dirty.is_empty() {
                continue;
            }
            self.state.edit(block_id, |block| {
                if block.failed.take().is_some() {
                    block.epoch_dirty = epoch;
                }
            });
            self.flush_block(block_id);
        }
    }

    fn release_blocks(&mut self, id: PartitionId) {
        self.state.part(id).releases += 1;
        let blocks: Vec<BlockId> = self.state.part(id).blocks.values().copied().collect();
        for block_id in blocks {
            self.state.edit(block_id, |block| {
                block.kept = None;
                block.release = true;
            });
        }
        let epoch = self.state.part(id).epoch;
        self.write_all(id, epoch);
    }

    /// Drops blocks that were released, now that they are clean and idle.
    pub(crate) fn drop_released(&mut self) {
        while let Some(block_id) = self.state.released.pop() {
            let block = &self.state.blocks[block_id];
            let free = block.partition == PartitionId::NONE;
            if !free && block.release && block.dirty.is_empty() && block.idle() {
                self.state.detach(block_id, self.actions);
            }
        }
    }

    /// After a discard's turn has come: nothing is in flight and nobody inside.
    pub(crate) fn discarded(&mut self, id: PartitionId) {
        // What was reserved for the dropped bytes is given back.
        let dropped = self.dirty_ranges(id);
        let unit = self.state.shape.unit;
        let part = self.state.part(id);
        part.size = part.size.min(part.disk_size);
        // The last page has bytes, though the file may end before half of it.
        let rest = part.size.next_multiple_of(unit)..u64::MAX;
        let whole = |bytes: Range<u64>| bytes.start / unit * unit..bytes.end.next_multiple_of(unit);
        let holes = dropped.within(0..rest.start).flat_map(|bytes| part.written.gaps(whole(bytes)));
        let unwritten: Vec<Range<u64>> = holes.chain(part.reserved.within(rest)).collect();
        for bytes in unwritten.into_iter().flat_map(|bytes| part.user.gaps(bytes)) {
            part.ahead.insert(bytes);
        }
        part.modified = None;
        part.changed = None;
        part.error = None;
        part.lost = super::pages::RangeSet::default();
        part.unreadable = super::pages::RangeSet::default();
        let blocks: Vec<BlockId> = part.blocks.values().copied().collect();
        for block_id in blocks {
            // Blocks with waiters stay for them, empty.
            self.state.edit(block_id, |block| {
                block.valid.clear();
                block.dirty.clear();
                block.partials.clear();
                block.flush = false;
                block.failed = None;
                block.kept = None;
            });
            if self.state.blocks[block_id].idle() {
                self.state.detach(block_id, self.actions);
            }
        }
    }

    /// After a reservation of space has had its turn.
    pub(crate) fn space_reserved(&mut self, id: PartitionId, size: u64, result: Result<()>) {
        let unit = self.state.shape.unit;
        let part = self.state.part(id);
        if result.is_ok() {
            part.reserved.insert(0..size / unit * unit);
            part.user.insert(0..size.next_multiple_of(unit));
            part.ahead.remove(0..size.next_multiple_of(unit));
        } else {
            // Some filesystems keep what they found until they ran out.
            let end = part.size.next_multiple_of(unit);
            part.hold_ahead(0..size.next_multiple_of(unit), end);
        }
    }
}

/// A request that is still going through the partitions it means.
#[derive(Debug)]
pub struct Asking {
    engine: Arc<Engine>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.engine.with(|locked| {
            locked.state.queued -= 1;
            if locked.state.pending_blocks + locked.state.queued == 0 {
                for waiter in locked.state.idle_waiters.drain(..) {
                    locked.actions.answer(Some(waiter.reply), Ok(()));
                }
            }
        });
    }
}
