//! Reads: from the pool when resident, else by one transfer per missing run, with read-ahead for
//! sequential readers.

use smallvec::SmallVec;

use super::actions::Answer;
use super::core::{Engine, INLINE_BYTES_MAX};
use super::ids::{BlockId, HandleId, PartitionId};
use super::locked::Locked;
use super::op::{Granted, Op, ReadOp, ReadReply};
use super::pages::next_run;
use super::small::{Need, Room};
use crate::aio::device::Transfer;
use crate::error::{Errno, Result};
use crate::pool::ReadLease;

/// Bytes of one block that are being copied out.
struct Piece {
    block_id: BlockId,
    lease: ReadLease,
}

/// What a try at a read came to.
enum Step {
    /// Everything is resident and claimed.
    Copy(Box<ReadOp>, SmallVec<[Piece; 2]>),
    /// So many bytes were copied under the lock.
    Copied(Box<ReadOp>, usize),
    /// Answered or parked.
    Done,
}

/// Reads of no more bytes are copied under the lock.
const SMALL_BYTES: usize = 4096;

/// How far off a sequential reader's requests may come: one call's pieces arrive in any order.
const SEQUENTIAL_SLACK: u64 = 4;

/// Bytes of a read that is taken for a part of a sequential one when it begins near the end of the last;
/// of shorter ones it takes three.
const SEQUENTIAL_AT_ONCE: u64 = 128 * 1024;

impl Engine {
    /// Reads up to `length` bytes at `offset`; fewer at the end of the partition. `reply` is called once,
    /// here or later on another thread, with the bytes in consecutive runs.
    ///
    /// Fails with EIO where a transfer failed or bytes were lost, EBADF for an unknown handle, EINVAL for an
    /// offset that no file has. Never
    /// waits for the device itself.
    pub fn read(&self, handle: HandleId, offset: u64, length: u64, reply: ReadReply) {
        self.begin_read(handle, offset, length, None, reply);
    }

    /// As [`Engine::read`], but the transfers of a small read by itself are left in `batch`. The caller begins them at once
    /// or with those of a few more, and waits for them itself ([`Engine::inline_reader`]): that spares two wake-ups, which
    /// take longer than a small transfer.
    pub fn read_inline(
        &self, handle: HandleId, offset: u64, length: u64, batch: &mut Vec<Transfer>,
        reply: ReadReply,
    ) {
        match length <= INLINE_BYTES_MAX {
            true => self.begin_read(handle, offset, length, Some(batch), reply),
            false => self.read(handle, offset, length, reply),
        }
    }

    fn begin_read(
        &self, handle: HandleId, offset: u64, length: u64, batch: Option<&mut Vec<Transfer>>,
        reply: ReadReply,
    ) {
        if offset > i64::MAX as u64 {
            return reply(Err(Errno::EINVAL));
        }
        let op = Box::new(ReadOp {
            partition: PartitionId::NONE,
            handle: Some(handle),
            offset,
            length,
            entered: false,
            requested: false,
            sequential: false,
            pinned: SmallVec::new(),
            granted: Granted::new(),
            reply,
        });
        self.run_read(op, batch);
    }

    pub(crate) fn run_read(&self, mut op: Box<ReadOp>, batch: Option<&mut Vec<Transfer>>) {
        let mut room = [0; SMALL_BYTES];
        let is_small = op.length as usize <= SMALL_BYTES;
        let step = self.with_batch(batch, |locked| {
            let copied = if is_small { locked.copy_small(&mut op, &mut room) } else { None };
            match copied {
                Some(length) => Step::Copied(op, length),
                None => locked.read_step(op),
            }
        });
        let (op, pieces) = match step {
            Step::Copy(op, pieces) => (op, pieces),
            Step::Copied(op, length) => return (op.reply)(Ok(&[&room[..length]])),
            Step::Done => return,
        };
        let ReadOp { partition, reply, .. } = *op;
        let runs: SmallVec<[&[u8]; 4]> = pieces.iter().map(|piece| &*piece.lease).collect();
        reply(Ok(&runs));
        drop(runs);
        let block_ids: SmallVec<[BlockId; 4]> =
            pieces.into_iter().map(|piece| piece.block_id).collect();
        self.with(|locked| {
            for block_id in block_ids {
                locked.state.engage(block_id, |block| {
                    block.readers -= 1;
                    if block.readers == 0 {
                        block.shared.clear();
                    }
                });
                locked.state.touch(block_id);
                locked.state.wake(block_id, locked.actions);
            }
            locked.state.part(partition).active_reads -= 1;
            locked.quiet_down(partition);
            if locked.state.part(partition).gone() {
                locked.discard_unlinked(partition);
            }
            locked.state.drop_if_unused(partition, locked.actions);
        });
    }
}

impl Locked<'_> {
    /// Copies a small read of resident bytes under the lock: that takes less time than to claim them, and to give up the
    /// claim under the lock once more. `None` for every other read, of which nothing is changed.
    fn copy_small(&mut self, op: &mut ReadOp, room: &mut [u8]) -> Option<usize> {
        let handle = op.handle.filter(|_| !op.entered)?;
        let id = self.state.partition_of(handle).ok()?;
        if self.gate_closed(id, false) {
            return None;
        }
        let part = self.state.part(id);
        let length = op.length.min(part.size.saturating_sub(op.offset));
        let bytes = op.offset..op.offset + length;
        if length == 0 || part.lost_in(&bytes) {
            return None;
        }
        let index = self.state.shape.block_of(bytes.start);
        let pages = self.state.shape.pages_of(index, bytes.start, bytes.end);
        let block_id = self.state.find(id, index)?;
        let block = &self.state.blocks[block_id];
        let is_one_block = self.state.shape.block_of(bytes.end - 1) == index;
        let is_here = block.valid.all(pages.clone()) && !block.copying.any(pages);
        if !is_one_block || !is_here {
            return None;
        }
        (op.partition, op.length) = (id, length);
        let start = index * self.state.shape.block_size;
        let within = bytes.start - start..bytes.end - start;
        let into = &mut room[..length as usize];
        self.engine.memory.copy_out(self.state, block_id, within, into);
        self.state.stats.read_hits += 1;
        self.state.note_read(id, length);
        if self.state.blocks[block_id].release {
            self.state.engage(block_id, |block| block.release = false);
        }
        self.state.touch(block_id);
        op.sequential = self.note_position(handle, bytes.start, length);
        self.read_on(op);
        Some(length as usize)
    }

    /// Whether all bytes of a range are in the pool, and nobody writes to them.
    fn is_resident(
        &mut self, id: PartitionId, bytes: &std::ops::Range<u64>,
        mut indices: std::ops::RangeInclusive<u64>,
    ) -> bool {
        indices.all(|index| {
            let Some(block_id) = self.state.find(id, index) else { return false };
            let pages = self.state.shape.pages_of(index, bytes.start, bytes.end);
            let block = &self.state.blocks[block_id];
            block.valid.all(pages.clone()) && !block.copying.any(pages)
        })
    }

    fn read_step(&mut self, mut op: Box<ReadOp>) -> Step {
        if !op.entered {
            match self.enter_read(op) {
                Some(entered) => op = entered,
                None => return Step::Done,
            }
        }
        self.unpin(std::mem::take(&mut op.pinned));
        let (id, bytes) = (op.partition, op.offset..op.offset + op.length);
        if op.length == 0 || self.state.part(id).lost_in(&bytes) {
            return self.end_read(op);
        }
        let indices = self.state.shape.blocks_of(&bytes);
        if self.is_resident(id, &bytes, indices.clone()) {
            self.state.return_granted(&mut op.granted);
            return self.request_or_copy(op, indices);
        }
        if let Some(block_id) = self.copied_over(id, &bytes, indices.clone()) {
            // Unpinned while it waits: what it asked for may be evicted again without having failed.
            op.requested = false;
            self.state.return_granted(&mut op.granted);
            self.state.engage(block_id, |block| block.waiters.push(Op::Read(op)));
            return Step::Done;
        }
        // Room for one part must not be made by evicting another.
        let present = self.pin_fitting(id, &bytes);
        let room = self.room_for_read(&mut op, indices.clone());
        self.unpin(present);
        self.state.return_granted(&mut op.granted);
        match room {
            Ok(()) => self.request_or_copy(op, indices),
            Err(Room::Busy(block_id)) => {
                self.state.engage(block_id, |block| block.waiters.push(Op::Read(op)));
                Step::Done
            }
            Err(_) => {
                // Without what it had: two that each held a part of what they need could wait for each
                // other. How much it needs is counted anew when its turn comes.
                self.wait_for_buffers(Op::Read(op), 1);
                Step::Done
            }
        }
    }

    /// Gives all blocks of a read the room it needs, at once or not at all.
    fn room_for_read(
        &mut self, op: &mut ReadOp, indices: std::ops::RangeInclusive<u64>,
    ) -> std::result::Result<(), Room> {
        let (id, end) = (op.partition, op.offset + op.length);
        let size = self.state.part(id).size;
        let shape = self.state.shape;
        let need = |index| Need {
            partition: id,
            index,
            pages: shape.pages_of(index, op.offset, end).end,
            slot: shape.slot_pages(size, index),
        };
        let mut lacks: SmallVec<[Need; 2]> = SmallVec::new();
        for need in indices.map(need) {
            if self.state.fitting(id, need.index, need.pages).is_none() {
                lacks.push(need);
            }
        }
        if !lacks.is_empty() {
            op.requested = false;
        }
        let vacant = |need: &&Need| self.state.vacancy(&op.granted, need.slot).is_some();
        let buffers = lacks.len() - lacks.iter().filter(vacant).count();
        if !self.state.acquire(&mut op.granted, buffers, self.actions) {
            return Err(Room::Wait);
        }
        for need in lacks {
            match self.room_for(&mut op.granted, need) {
                Room::Here(_) => {}
                other => return Err(other),
            }
        }
        Ok(())
    }

    /// Lets a read through its partition's gate, cut to the partition's size; None when it was parked
    /// or answered.
    fn enter_read(&mut self, mut op: Box<ReadOp>) -> Option<Box<ReadOp>> {
        let handle = op.handle.expect("reads come through handles");
        let id = match self.state.partition_of(handle) {
            Ok(id) => id,
            Err(errno) => {
                self.actions.answers.push(Answer::Read(op.reply, errno));
                return None;
            }
        };
        op.partition = id;
        if self.gate_closed(id, false) {
            self.state.part(id).gate_queue.push_back(Op::Read(op));
            return None;
        }
        let part = self.state.part(id);
        part.active_reads += 1;
        op.entered = true;
        op.length = op.length.min(part.size.saturating_sub(op.offset));
        self.state.note_read(id, op.length);
        op.sequential = self.note_position(handle, op.offset, op.length);
        Some(op)
    }

    /// Remembers where a handle reads; true when it goes on from where it was.
    fn note_position(&mut self, handle: HandleId, offset: u64, length: u64) -> bool {
        let handle = self.state.handles.get_mut(handle).expect("checked on entry");
        let slack = length * SEQUENTIAL_SLACK;
        let sequential = offset <= handle.expected + slack && offset + slack >= handle.expected;
        if sequential {
            handle.expected = handle.expected.max(offset + length);
            handle.in_a_row += length;
        } else {
            handle.expected = offset + length;
            handle.ahead_to = 0;
            handle.in_a_row = 0;
        }
        // A random reader meets its own steps now and then.
        sequential && (handle.in_a_row > 2 * length || length >= SEQUENTIAL_AT_ONCE)
    }

    /// A block of the range into which a client's bytes are just being copied.
    fn copied_over(
        &mut self, id: PartitionId, bytes: &std::ops::Range<u64>,
        indices: std::ops::RangeInclusive<u64>,
    ) -> Option<BlockId> {
        for index in indices {
            if let Some(block_id) = self.state.find(id, index) {
                let pages = self.state.shape.pages_of(index, bytes.start, bytes.end);
                if self.state.blocks[block_id].copying.any(pages) {
                    return Some(block_id);
                }
            }
        }
        None
    }

    /// All blocks of the read are in place: asks for what is missing, or claims the bytes.
    fn request_or_copy(
        &mut self, mut op: Box<ReadOp>, indices: std::ops::RangeInclusive<u64>,
    ) -> Step {
        let (id, bytes) = (op.partition, op.offset..op.offset + op.length);
        let (mut busy, mut failed, mut narrows) = (None, None, false);
        for index in indices.clone() {
            let block_id = self.state.find(id, index).expect("attached above");
            let pages = self.state.shape.pages_of(index, bytes.start, bytes.end);
            if self.state.blocks[block_id].valid.all(pages.clone()) {
                continue;
            }
            if op.requested && self.missing(block_id, pages.clone()) {
                // Perhaps what failed is only what was read on behalf of later reads: once more without.
                narrows |= std::mem::take(&mut op.sequential);
                if !narrows {
                    failed = Some(self.state.blocks[block_id].read_error.unwrap_or(Errno::EIO));
                    break;
                }
            }
            let wanted =
                if op.sequential { pages.start..self.state.shape.pages() } else { pages.clone() };
            self.read_pages(block_id, wanted);
            self.fill_partials(block_id, pages.clone());
            if !self.state.blocks[block_id].valid.all(pages) {
                busy = Some(block_id);
            }
        }
        if let Some(errno) = failed {
            return self.fail_read(op, errno);
        }
        if let Some(block_id) = busy {
            if !op.requested {
                self.state.stats.read_misses += 1;
            }
            // Who reads on has others wait, for more than was asked for.
            self.actions.inline = !op.sequential;
            op.requested = true;
            op.pinned = self.pin_fitting(id, &bytes);
            self.read_on(&op);
            self.state.engage(block_id, |block| block.waiters.push(Op::Read(op)));
            return Step::Done;
        }
        if !op.requested {
            self.state.stats.read_hits += 1;
        }
        // Claimed first: reading ahead may evict whatever nobody is busy with.
        let pieces = indices.map(|index| self.claim_out(id, index, &bytes)).collect();
        self.read_on(&op);
        Step::Copy(op, pieces)
    }

    /// Keeps the blocks of a range that are in the pool there, until [`Locked::unpin`]; but not one that
    /// has outgrown its slot, whose room may be what is needed to move it.
    pub(crate) fn pin_fitting(
        &mut self, id: PartitionId, bytes: &std::ops::Range<u64>,
    ) -> SmallVec<[BlockId; 2]> {
        let shape = self.state.shape;
        let pages = |index| shape.pages_of(index, bytes.start, bytes.end).end;
        let present = shape.blocks_of(bytes).filter_map(|i| self.state.fitting(id, i, pages(i)));
        let present: SmallVec<[BlockId; 2]> = present.collect();
        for block_id in &present {
            self.state.engage(*block_id, |block| block.pins += 1);
        }
        present
    }

    pub(crate) fn unpin(&mut self, pinned: SmallVec<[BlockId; 2]>) {
        for block_id in pinned {
            self.state.engage(block_id, |block| block.pins -= 1);
        }
    }

    /// A page that was asked for is neither there nor on its way.
    pub(crate) fn missing(&self, block_id: BlockId, pages: std::ops::Range<usize>) -> bool {
        let block = &self.state.blocks[block_id];
        next_run(pages, |i| !(block.valid.word(i) | block.reading.word(i))).is_some()
    }

    pub(crate) fn fill_partials(&mut self, block_id: BlockId, pages: std::ops::Range<usize>) {
        let partial: SmallVec<[usize; 4]> = self.state.blocks[block_id]
            .partials
            .iter()
            .map(|p| p.page)
            .filter(|page| pages.contains(page))
            .collect();
        for page in partial {
            self.fill(block_id, page);
        }
    }

    fn claim_out(&mut self, id: PartitionId, index: u64, bytes: &std::ops::Range<u64>) -> Piece {
        let block_id = self.state.find(id, index).expect("attached above");
        let pages = self.state.shape.pages_of(index, bytes.start, bytes.end);
        self.state.engage(block_id, |block| {
            block.shared.insert(pages);
            block.readers += 1;
            block.release = false;
        });
        let start = index * self.state.shape.block_size;
        let within =
            bytes.start.saturating_sub(start)..(bytes.end - start).min(self.state.shape.block_size);
        Piece { block_id, lease: self.engine.memory.for_copy_out(self.state, block_id, within) }
    }

    /// Keeps `read_ahead` bytes in flight ahead of a sequential reader.
    fn read_on(&mut self, op: &ReadOp) {
        let Some(number) = op.handle else { return };
        if self.state.handles.get(number).is_some_and(|handle| handle.swap_in_due.is_some()) {
            self.begin_due_swap_in(number);
        }
        if !op.sequential {
            return;
        }
        let Some(handle) = self.state.handles.get_mut(number) else {
            return;
        };
        let from = handle.ahead_to.max(op.offset + op.length);
        let to = (handle.expected + self.engine.options.read_ahead)
            .next_multiple_of(self.engine.options.block_size)
            .min(self.state.partitions.get(op.partition).map_or(0, |part| part.size));
        // Topping up in steps of a block keeps this off the path of most requests.
        if from >= to
            || (to - from < self.engine.options.block_size
                && handle.ahead_to >= op.offset + op.length)
        {
            return;
        }
        let reached = self.fetch(op.partition, from, to - from);
        if let Some(handle) = self.state.handles.get_mut(number) {
            handle.ahead_to = reached;
        }
    }

    /// Starts reading whole blocks of a range into buffers that can be had without waiting. Returns
    /// how far it got.
    pub(crate) fn fetch(&mut self, id: PartitionId, from: u64, length: u64) -> u64 {
        // What is not in the backing file yet needs no transfer: it is in the pool, or zero however large.
        let end = from.saturating_add(length).min(self.state.part(id).stored());
        if from >= end || self.gate_closed(id, false) {
            return from;
        }
        let (block_size, size) = (self.state.shape.block_size, self.state.part(id).size);
        for index in self.state.shape.blocks_of(&(from..end)) {
            let mut found = self.state.find(id, index);
            if found.is_none() {
                let mut granted = Granted::new();
                let slot = self.state.shape.slot_pages(size, index);
                // Never evict for one reader what another has just asked for.
                let room = self.state.vacancy(&granted, slot).is_some()
                    || self.state.obtainable(self.state.moving()) > self.state.buffers / 8;
                if room {
                    found = self.state.place(&mut granted, id, index, slot, self.actions);
                }
            }
            let Some(block_id) = found else { return (index * block_size).max(from) };
            let pages = self.state.shape.pages_of(index, from, end);
            let asked = self.read_pages(block_id, pages);
            self.state.stats.read_ahead_bytes += asked;
        }
        end
    }

    fn fail_read(&mut self, op: Box<ReadOp>, errno: Errno) -> Step {
        self.finish_read(op, Err(errno))
    }

    fn end_read(&mut self, op: Box<ReadOp>) -> Step {
        let result = if op.length == 0 { Ok(()) } else { Err(Errno::EIO) };
        self.finish_read(op, result)
    }

    fn finish_read(&mut self, op: Box<ReadOp>, result: Result<()>) -> Step {
        let mut op = op;
        self.state.return_granted(&mut op.granted);
        let id = op.partition;
        self.state.part(id).active_reads -= 1;
        self.actions.answers.push(match result {
            Ok(()) => Answer::Nothing(op.reply),
            Err(errno) => Answer::Read(op.reply, errno),
        });
        self.quiet_down(id);
        self.state.drop_if_unused(id, self.actions);
        Step::Done
    }
}
