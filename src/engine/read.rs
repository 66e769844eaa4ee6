//! Reads: from the pool when resident, else by one transfer per missing run, with read-ahead for
//! sequential readers.

use smallvec::SmallVec;

use super::actions::{Actions, Answer};
use super::block::BufferIndex;
use super::core::{Engine, INLINE_BYTES_MAX};
use super::op::{Granted, Op, ReadOp, ReadReply};
use super::pages::next_run;
use super::small::{Need, Room};
use super::state::State;
use crate::aio::device::Transfer;
use crate::error::{Errno, Result};
use crate::pool::ReadLease;

/// Bytes of one block that are being copied out.
struct Piece {
    buffer: BufferIndex,
    lease: ReadLease,
}

/// What a try at a read came to.
enum Step {
    /// Everything is resident and claimed.
    Copy(Box<ReadOp>, SmallVec<[Piece; 2]>),
    /// Answered or parked.
    Done,
}

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
    pub fn read(&self, handle: u64, offset: u64, length: u64, reply: ReadReply) {
        self.begin_read(handle, offset, length, None, reply);
    }

    /// As [`Engine::read`], but the transfers of a small read by itself are left in `batch`. The caller begins them at once
    /// or with those of a few more, and waits for them itself ([`Engine::prompt`]): that spares two wake-ups, which
    /// take longer than a small transfer.
    pub fn read_prompt(
        &self, handle: u64, offset: u64, length: u64, batch: &mut Vec<Transfer>, reply: ReadReply,
    ) {
        match length <= INLINE_BYTES_MAX {
            true => self.begin_read(handle, offset, length, Some(batch), reply),
            false => self.read(handle, offset, length, reply),
        }
    }

    fn begin_read(
        &self, handle: u64, offset: u64, length: u64, batch: Option<&mut Vec<Transfer>>,
        reply: ReadReply,
    ) {
        if offset > i64::MAX as u64 {
            return reply(Err(Errno::EINVAL));
        }
        let op = Box::new(ReadOp {
            partition: 0,
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

    pub(crate) fn run_read(&self, op: Box<ReadOp>, batch: Option<&mut Vec<Transfer>>) {
        let step = self.with_batch(batch, |st, actions| self.read_step(st, op, actions));
        let Step::Copy(op, pieces) = step else {
            return;
        };
        let ReadOp { partition, reply, .. } = *op;
        let runs: SmallVec<[&[u8]; 4]> = pieces.iter().map(|piece| &*piece.lease).collect();
        reply(Ok(&runs));
        drop(runs);
        let buffers: SmallVec<[BufferIndex; 4]> =
            pieces.into_iter().map(|piece| piece.buffer).collect();
        self.with(|st, actions| {
            for buffer in buffers {
                st.engage(buffer, |block| {
                    block.readers -= 1;
                    if block.readers == 0 {
                        block.shared.clear();
                    }
                });
                st.touch(buffer);
                st.wake(buffer, actions);
            }
            st.part(partition).active_reads -= 1;
            self.quiet_down(st, partition, actions);
            if st.part(partition).gone() {
                self.discard_unlinked(st, partition, actions);
            }
            st.drop_if_unused(partition, actions);
        });
    }

    fn read_step(&self, st: &mut State, mut op: Box<ReadOp>, actions: &mut Actions) -> Step {
        if !op.entered {
            match self.enter_read(st, op, actions) {
                Some(entered) => op = entered,
                None => return Step::Done,
            }
        }
        self.unpin(st, std::mem::take(&mut op.pinned));
        let (id, bytes) = (op.partition, op.offset..op.offset + op.length);
        if op.length == 0 || st.part(id).lost_in(&bytes) {
            return self.end_read(st, op, actions);
        }
        let indices = st.shape.blocks_of(&bytes);
        if let Some(buffer) = self.copied_over(st, id, &bytes, indices.clone()) {
            // Unpinned while it waits: what it asked for may be evicted again without having failed.
            op.requested = false;
            st.return_granted(&mut op.granted);
            st.engage(buffer, |block| block.waiters.push(Op::Read(op)));
            return Step::Done;
        }
        // Room for one part must not be made by evicting another.
        let present = self.pin_fitting(st, id, &bytes);
        let room = self.room_for_read(st, &mut op, indices.clone(), actions);
        self.unpin(st, present);
        st.return_granted(&mut op.granted);
        match room {
            Ok(()) => self.request_or_copy(st, op, indices, actions),
            Err(Room::Busy(buffer)) => {
                st.engage(buffer, |block| block.waiters.push(Op::Read(op)));
                Step::Done
            }
            Err(_) => {
                // Without what it had: two that each held a part of what they need could wait for each
                // other. How much it needs is counted anew when its turn comes.
                self.wait_for_buffers(st, Op::Read(op), 1);
                Step::Done
            }
        }
    }

    /// Gives all blocks of a read the room it needs, at once or not at all.
    fn room_for_read(
        &self, st: &mut State, op: &mut ReadOp, indices: std::ops::RangeInclusive<u64>,
        actions: &mut Actions,
    ) -> std::result::Result<(), Room> {
        let (id, end) = (op.partition, op.offset + op.length);
        let size = st.part(id).size;
        let shape = st.shape;
        let need = |index| Need {
            partition: id,
            index,
            pages: shape.pages_of(index, op.offset, end).end,
            slot: shape.slot_pages(size, index),
        };
        let lacking = |st: &mut State, index| {
            let need: Need = need(index);
            st.fitting(id, index, need.pages).is_none().then_some(need)
        };
        let lacks: SmallVec<[Need; 2]> = indices.filter_map(|index| lacking(st, index)).collect();
        if !lacks.is_empty() {
            op.requested = false;
        }
        let vacant = |need: &&Need| st.vacancy(&op.granted, need.slot).is_some();
        let buffers = lacks.len() - lacks.iter().filter(vacant).count();
        if !st.acquire(&mut op.granted, buffers, actions) {
            return Err(Room::Wait);
        }
        for need in lacks {
            match self.room_for(st, &mut op.granted, need, actions) {
                Room::Here(_) => {}
                other => return Err(other),
            }
        }
        Ok(())
    }

    /// Lets a read through its partition's gate, cut to the partition's size; None when it was parked
    /// or answered.
    fn enter_read(
        &self, st: &mut State, mut op: Box<ReadOp>, actions: &mut Actions,
    ) -> Option<Box<ReadOp>> {
        let handle = op.handle.expect("reads come through handles");
        let id = match Engine::partition_of(st, handle) {
            Ok(id) => id,
            Err(errno) => {
                actions.answers.push(Answer::Read(op.reply, errno));
                return None;
            }
        };
        op.partition = id;
        if self.gate_closed(st, id, false) {
            st.part(id).gate_queue.push_back(Op::Read(op));
            return None;
        }
        let part = st.part(id);
        part.active_reads += 1;
        op.entered = true;
        op.length = op.length.min(part.size.saturating_sub(op.offset));
        st.note_read(id, op.length);
        op.sequential = self.note_position(st, handle, op.offset, op.length);
        Some(op)
    }

    /// Remembers where a handle reads; true when it goes on from where it was.
    fn note_position(&self, st: &mut State, handle: u64, offset: u64, length: u64) -> bool {
        let handle = st.handles.get_mut(handle as usize).expect("checked on entry");
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
        &self, st: &mut State, id: u32, bytes: &std::ops::Range<u64>,
        indices: std::ops::RangeInclusive<u64>,
    ) -> Option<BufferIndex> {
        for index in indices {
            if let Some(buffer) = st.find(id, index) {
                let pages = st.shape.pages_of(index, bytes.start, bytes.end);
                if st.blocks[buffer as usize].copying.any(pages) {
                    return Some(buffer);
                }
            }
        }
        None
    }

    /// All blocks of the read are in place: asks for what is missing, or claims the bytes.
    fn request_or_copy(
        &self, st: &mut State, mut op: Box<ReadOp>, indices: std::ops::RangeInclusive<u64>,
        actions: &mut Actions,
    ) -> Step {
        let (id, bytes) = (op.partition, op.offset..op.offset + op.length);
        let (mut busy, mut failed, mut narrows) = (None, None, false);
        for index in indices.clone() {
            let buffer = st.find(id, index).expect("attached above");
            let pages = st.shape.pages_of(index, bytes.start, bytes.end);
            if st.blocks[buffer as usize].valid.all(pages.clone()) {
                continue;
            }
            if op.requested && self.missing(st, buffer, pages.clone()) {
                // Perhaps what failed is only what was read on behalf of later reads: once more without.
                narrows |= std::mem::take(&mut op.sequential);
                if !narrows {
                    failed = Some(st.blocks[buffer as usize].read_error.unwrap_or(Errno::EIO));
                    break;
                }
            }
            let wanted = if op.sequential { pages.start..st.shape.pages() } else { pages.clone() };
            self.read_pages(st, buffer, wanted, actions);
            self.fill_partials(st, buffer, pages.clone(), actions);
            if !st.blocks[buffer as usize].valid.all(pages) {
                busy = Some(buffer);
            }
        }
        if let Some(errno) = failed {
            return self.fail_read(st, op, errno, actions);
        }
        if let Some(buffer) = busy {
            if !op.requested {
                st.stats.read_misses += 1;
            }
            // Who reads on has others wait, for more than was asked for.
            actions.prompt = !op.sequential;
            op.requested = true;
            op.pinned = self.pin_fitting(st, id, &bytes);
            self.read_on(st, &op, actions);
            st.engage(buffer, |block| block.waiters.push(Op::Read(op)));
            return Step::Done;
        }
        if !op.requested {
            st.stats.read_hits += 1;
        }
        // Claimed first: reading ahead may evict whatever nobody is busy with.
        let pieces = indices.map(|index| self.claim_out(st, id, index, &bytes)).collect();
        self.read_on(st, &op, actions);
        Step::Copy(op, pieces)
    }

    /// Keeps the blocks of a range that are in the pool there, until [`Engine::unpin`]; but not one that
    /// has outgrown its slot, whose room may be what is needed to move it.
    pub(crate) fn pin_fitting(
        &self, st: &mut State, id: u32, bytes: &std::ops::Range<u64>,
    ) -> SmallVec<[BufferIndex; 2]> {
        let shape = st.shape;
        let pages = |index| shape.pages_of(index, bytes.start, bytes.end).end;
        let present = shape.blocks_of(bytes).filter_map(|i| st.fitting(id, i, pages(i)));
        let present: SmallVec<[BufferIndex; 2]> = present.collect();
        for buffer in &present {
            st.engage(*buffer, |block| block.pins += 1);
        }
        present
    }

    pub(crate) fn unpin(&self, st: &mut State, pinned: SmallVec<[BufferIndex; 2]>) {
        for buffer in pinned {
            st.engage(buffer, |block| block.pins -= 1);
        }
    }

    /// A page that was asked for is neither there nor on its way.
    pub(crate) fn missing(
        &self, st: &State, buffer: BufferIndex, pages: std::ops::Range<usize>,
    ) -> bool {
        let block = &st.blocks[buffer as usize];
        next_run(pages, |i| !(block.valid.word(i) | block.reading.word(i))).is_some()
    }

    pub(crate) fn fill_partials(
        &self, st: &mut State, buffer: BufferIndex, pages: std::ops::Range<usize>,
        actions: &mut Actions,
    ) {
        let partial: SmallVec<[usize; 4]> = st.blocks[buffer as usize]
            .partials
            .iter()
            .map(|p| p.page)
            .filter(|page| pages.contains(page))
            .collect();
        for page in partial {
            self.fill(st, buffer, page, actions);
        }
    }

    fn claim_out(
        &self, st: &mut State, id: u32, index: u64, bytes: &std::ops::Range<u64>,
    ) -> Piece {
        let buffer = st.find(id, index).expect("attached above");
        let pages = st.shape.pages_of(index, bytes.start, bytes.end);
        st.engage(buffer, |block| {
            block.shared.insert(pages);
            block.readers += 1;
            block.release = false;
        });
        let start = index * st.shape.block_size;
        let within =
            bytes.start.saturating_sub(start)..(bytes.end - start).min(st.shape.block_size);
        Piece { buffer, lease: self.memory.for_copy_out(st, buffer, within) }
    }

    /// Keeps `read_ahead` bytes in flight ahead of a sequential reader.
    fn read_on(&self, st: &mut State, op: &ReadOp, actions: &mut Actions) {
        let Some(number) = op.handle else { return };
        if st.handles.get(number as usize).is_some_and(|handle| handle.swap_in_due.is_some()) {
            self.begin_due_swap_in(st, number, actions);
        }
        if !op.sequential {
            return;
        }
        let Some(handle) = st.handles.get_mut(number as usize) else {
            return;
        };
        let from = handle.ahead_to.max(op.offset + op.length);
        let to = (handle.expected + self.options.read_ahead)
            .next_multiple_of(self.options.block_size)
            .min(st.partitions.get(op.partition as usize).map_or(0, |part| part.size));
        // Topping up in steps of a block keeps this off the path of most requests.
        if from >= to
            || (to - from < self.options.block_size && handle.ahead_to >= op.offset + op.length)
        {
            return;
        }
        let reached = self.fetch(st, op.partition, from, to - from, actions);
        if let Some(handle) = st.handles.get_mut(number as usize) {
            handle.ahead_to = reached;
        }
    }

    /// Starts reading whole blocks of a range into buffers that can be had without waiting. Returns
    /// how far it got.
    pub(crate) fn fetch(
        &self, st: &mut State, id: u32, from: u64, length: u64, actions: &mut Actions,
    ) -> u64 {
        // What is not in the backing file yet needs no transfer: it is in the pool, or zero however large.
        let end = from.saturating_add(length).min(st.part(id).stored());
        if from >= end || self.gate_closed(st, id, false) {
            return from;
        }
        let (block_size, size) = (st.shape.block_size, st.part(id).size);
        for index in st.shape.blocks_of(&(from..end)) {
            let mut found = st.find(id, index);
            if found.is_none() {
                let mut granted = Granted::new();
                let slot = st.shape.slot_pages(size, index);
                // Never evict for one reader what another has just asked for.
                let room = st.vacancy(&granted, slot).is_some()
                    || st.obtainable(st.moving()) > st.buffers / 8;
                if room {
                    found = st.place(&mut granted, id, index, slot, actions);
                }
            }
            let Some(buffer) = found else { return (index * block_size).max(from) };
            let pages = st.shape.pages_of(index, from, end);
            let asked = self.read_pages(st, buffer, pages, actions);
            st.stats.read_ahead_bytes += asked;
        }
        end
    }

    fn fail_read(
        &self, st: &mut State, op: Box<ReadOp>, errno: Errno, actions: &mut Actions,
    ) -> Step {
        self.finish_read(st, op, Err(errno), actions)
    }

    fn end_read(&self, st: &mut State, op: Box<ReadOp>, actions: &mut Actions) -> Step {
        let result = if op.length == 0 { Ok(()) } else { Err(Errno::EIO) };
        self.finish_read(st, op, result, actions)
    }

    fn finish_read(
        &self, st: &mut State, op: Box<ReadOp>, result: Result<()>, actions: &mut Actions,
    ) -> Step {
        let mut op = op;
        st.return_granted(&mut op.granted);
        let id = op.partition;
        st.part(id).active_reads -= 1;
        actions.answers.push(match result {
            Ok(()) => Answer::Nothing(op.reply),
            Err(errno) => Answer::Read(op.reply, errno),
        });
        self.quiet_down(st, id, actions);
        st.drop_if_unused(id, actions);
        Step::Done
    }
}
