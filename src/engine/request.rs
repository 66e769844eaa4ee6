//! What users ask for by name: swap in, swap out, release, discard, reservations. Each returns at once;
//! waiting is asking for the status.

use std::ops::Range;
use std::sync::Arc;

use super::actions::Actions;
use super::block::BufferIndex;
use super::core::Engine;
use super::op::{BarrierOp, Change, FetchOp, Granted, Op, Reply};
use super::partition::FileKey;
use super::small::{Need, Room};
use super::state::State;
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
    pub fn swap_in(&self, handle: u64) -> Result<()> {
        self.swap_in_for(User::OWN, handle)
    }

    /// As [`Engine::swap_in`], on behalf of a user: blocks beyond the user's share come in, but may be evicted as any others.
    ///
    /// # Errors
    /// As [`Engine::swap_in`].
    pub fn swap_in_for(&self, user: User, handle: u64) -> Result<()> {
        let user = user.looked_up();
        self.with(|st, actions| {
            let id = Engine::partition_of(st, handle)?;
            let blocks = st.part(id).size.div_ceil(st.shape.block_size);
            if blocks > st.in_circulation() {
                return Err(Errno::ENOBUFS);
            }
            let part = st.part(id);
            part.queued += 1;
            part.jobs += 1;
            let op = FetchOp {
                partition: id,
                next: 0,
                user,
                releases: part.releases,
                granted: Granted::new(),
            };
            st.queued += 1;
            self.fetch_step(st, Box::new(op), actions);
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
        self.with(|st, _| st.in_circulation() * st.shape.block_size)
    }

    /// Goes on with a swap-in.
    pub(crate) fn fetch_step(&self, st: &mut State, mut op: Box<FetchOp>, actions: &mut Actions) {
        let id = op.partition;
        for _ in 0..FETCH_BLOCKS {
            let part = st.part(id);
            let end = part.size.div_ceil(self.shape.block_size);
            if op.next >= end || part.unlinked || part.releases != op.releases || st.stopping {
                return self.end_fetch(st, *op, actions);
            }
            if self.gate_closed(st, id, false) {
                // Who is inside may wait for the very buffer.
                st.return_granted(&mut op.granted);
                st.part(id).gate_queue.push_back(Op::Fetch(op));
                return;
            }
            let size = st.part(id).size;
            let need = Need {
                partition: id,
                index: op.next,
                pages: st.shape.pages_of(op.next, 0, size).end,
                slot: st.shape.slot_pages(size, op.next),
            };
            let buffer = match self.room_for(st, &mut op.granted, need, actions) {
                Room::Here(buffer) => buffer,
                Room::Busy(buffer) => {
                    st.return_granted(&mut op.granted);
                    return st.edit(buffer, |block| block.waiters.push(Op::Fetch(op)));
                }
                Room::Wait => return self.wait_for_buffers(st, Op::Fetch(op), 1),
            };
            let user = op.user;
            st.edit(buffer, |block| {
                if block.kept.is_none() {
                    block.kept = self.bounds().kept.take(user, 1).ok();
                }
                block.release = false;
            });
            let pages = 0..st.shape.pages();
            self.read_pages(st, buffer, pages.clone(), actions);
            self.fill_partials(st, buffer, pages, actions);
            op.next += 1;
        }
        actions.ready.push(Op::Fetch(op));
    }

    fn end_fetch(&self, st: &mut State, mut op: FetchOp, actions: &mut Actions) {
        st.return_granted(&mut op.granted);
        let id = op.partition;
        st.queued -= 1;
        st.part(id).queued -= 1;
        self.quiet_down(st, id, actions);
        st.part(id).jobs -= 1;
        st.drop_if_unused(id, actions);
    }

    /// Counts as in flight for the whole pool until the guard is dropped: partitions are still being asked.
    #[must_use]
    pub fn asking(self: &Arc<Self>) -> Asking {
        self.with(|st, _| st.queued += 1);
        Asking { engine: self.clone() }
    }

    /// Does what is asked; nothing for a partition the engine does not know, whose bytes are all in the
    /// swap folder. Returns at once.
    pub fn request(&self, key: FileKey, request: Request) {
        self.with(|st, actions| match st.keys.get(&key).copied() {
            Some(id) => self.ask(st, id, request, actions),
            None if request != Request::SwapOut => st.forget_resting_key(key),
            None => {}
        });
    }

    /// As [`Engine::request`] with [`Request::Discard`], and answers when that has had its turn.
    pub fn discard(&self, key: FileKey, reply: Reply) {
        self.with(|st, actions| match st.keys.get(&key).copied() {
            Some(id) => self.ask_to_discard(st, id, Some(reply), actions),
            None => {
                st.forget_resting_key(key);
                actions.answer(Some(reply), Ok(()));
            }
        });
    }

    fn ask_to_discard(&self, st: &mut State, id: u32, reply: Option<Reply>, actions: &mut Actions) {
        st.part(id).jobs += 1;
        st.part(id).releases += 1;
        let op = BarrierOp::new(id, Change::Discard, reply);
        self.enter_barrier(st, op, actions);
        self.quiet_down(st, id, actions);
        st.part(id).jobs -= 1;
        st.drop_if_unused(id, actions);
    }

    /// As [`Engine::request`], of every partition.
    pub fn request_all(&self, request: Request) {
        // Others get the lock in between.
        let some = || self.with(|st, _| st.resting.some(RESTING_BATCH));
        let mut resting = if request == Request::SwapOut { Vec::new() } else { some() };
        while !resting.is_empty() {
            self.with(|st, _| resting.iter().for_each(|key| st.forget_resting_key(*key)));
            resting = some();
        }
        let ids: Vec<u32> =
            self.with(|st, _| st.partitions.iter().map(|(id, _)| id as u32).collect());
        for id in ids {
            // One at a time: others get the lock in between, and a partition may go meanwhile.
            self.with(|st, actions| {
                if st.partitions.get(id as usize).is_some() {
                    self.ask(st, id, request, actions);
                }
            });
        }
    }

    fn ask(&self, st: &mut State, id: u32, request: Request, actions: &mut Actions) {
        st.part(id).jobs += 1;
        match request {
            Request::SwapOut => {
                let epoch = st.part(id).epoch;
                self.write_all(st, id, epoch, actions);
            }
            Request::Release => self.release_blocks(st, id, actions),
            Request::Discard => self.ask_to_discard(st, id, None, actions),
        }
        self.quiet_down(st, id, actions);
        st.part(id).jobs -= 1;
        st.drop_if_unused(id, actions);
    }

    /// Starts writing out everything dirty of a partition, failed blocks again as part of `epoch`.
    pub(crate) fn write_all(&self, st: &mut State, id: u32, epoch: u64, actions: &mut Actions) {
        if st.part(id).dirty_pages == 0 {
            return;
        }
        st.part(id).settle_failed = false;
        let buffers: Vec<BufferIndex> = st.part(id).blocks.values().copied().collect();
        for buffer in buffers {
            if st.blocks[buffer as usize].dirty.is_empty() {
                continue;
            }
            st.edit(buffer, |block| {
                if block.failed.take().is_some() {
                    block.epoch_dirty = epoch;
                }
            });
            self.flush_block(st, buffer, actions);
        }
    }

    fn release_blocks(&self, st: &mut State, id: u32, actions: &mut Actions) {
        st.part(id).releases += 1;
        let buffers: Vec<BufferIndex> = st.part(id).blocks.values().copied().collect();
        for buffer in buffers {
            st.edit(buffer, |block| {
                block.kept = None;
                block.release = true;
            });
        }
        let epoch = st.part(id).epoch;
        self.write_all(st, id, epoch, actions);
    }

    /// Drops blocks that were released, now that they are clean and idle.
    pub(crate) fn drop_released(&self, st: &mut State, actions: &mut Actions) {
        while let Some(buffer) = st.released.pop() {
            let block = &st.blocks[buffer as usize];
            let free = block.partition == super::block::NONE;
            if !free && block.release && block.dirty.is_empty() && block.idle() {
                st.detach(buffer, actions);
            }
        }
    }

    /// After a discard's turn has come: nothing is in flight and nobody inside.
    pub(crate) fn discarded(&self, st: &mut State, id: u32, actions: &mut Actions) {
        // What was reserved for the dropped bytes is given back.
        let dropped = self.dirty_ranges(st, id);
        let unit = st.shape.unit;
        let part = st.part(id);
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
        let buffers: Vec<BufferIndex> = part.blocks.values().copied().collect();
        for buffer in buffers {
            // Blocks with waiters stay for them, empty.
            st.edit(buffer, |block| {
                block.valid.clear();
                block.dirty.clear();
                block.partials.clear();
                block.flush = false;
                block.failed = None;
                block.kept = None;
            });
            if st.blocks[buffer as usize].idle() {
                st.detach(buffer, actions);
            }
        }
    }

    /// Takes `count` more buffers out of circulation, until [`Engine::release_reserved_buffers`]. Those in
    /// use leave as they become clean. A few always keep reads and writes moving.
    ///
    /// # Errors
    /// ENOBUFS when fewer than `count` are unreserved; nothing changes then.
    pub fn reserve_buffers(&self, count: u64) -> Result<()> {
        self.with(|st, _| {
            let left = st.in_circulation();
            if count > left {
                return Err(Errno::ENOBUFS);
            }
            st.reserved += count as usize;
            Ok(())
        })
    }

    /// Puts every reserved buffer back into circulation.
    pub fn release_reserved_buffers(&self) {
        self.with(|st, _| st.reserved = 0);
    }

    /// Allocates `size` bytes in the swap folder for a partition, from its start, without changing its size;
    /// kept until it is truncated. `reply` comes when the filesystem has answered.
    ///
    /// Fails with ENOSPC, EDQUOT, EFBIG, EBADF.
    pub fn reserve_space(&self, handle: u64, size: u64, reply: Reply) {
        if size == 0 || i64::try_from(size).is_err() {
            return reply(Err(if size == 0 { Errno::EINVAL } else { Errno::EFBIG }));
        }
        self.change(handle, Change::Reserve(size), reply);
    }

    /// After a reservation of space has had its turn.
    pub(crate) fn space_reserved(&self, st: &mut State, id: u32, size: u64, result: Result<()>) {
        let unit = st.shape.unit;
        let part = st.part(id);
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
        self.engine.with(|st, actions| {
            st.queued -= 1;
            if st.pending_blocks + st.queued == 0 {
                for waiter in st.idle_waiters.drain(..) {
                    actions.answer(Some(waiter.reply), Ok(()));
                }
            }
        });
    }
}
