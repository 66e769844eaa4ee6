//! The one place where the engine turns page claims into access to the arena's bytes.
//!
//! Every lease is made from a claim that is recorded in the block's page sets under the engine's lock,
//! and the claim is only given up after the lease is gone. The assertions restate the claim.

use std::ops::Range;
use std::sync::Arc;

use super::block::Block;
use super::ids::{BlockId, BufferId, FrameId, Id};
use super::intake::{Around, Intake};
use super::shape::Shape;
use super::state::State;
use super::trays::Place;
use crate::pool::{Arena, ReadLease, WriteLease};

/// The arena, as frames for one buffer each, which hold a block or a tray, followed by scratch pages.
#[derive(Debug)]
pub(crate) struct Memory {
    arena: Arc<Arena>,
    shape: Shape,
    frames: usize,
    /// Bytes before the first buffer: an arena is aligned to small pages, a device may ask for more.
    skipped: usize,
}

impl Memory {
    /// The memory of `buffers` buffers, whose frames are the first ones, and that of `intakes`.
    pub(crate) fn new(
        arena: Arc<Arena>, shape: Shape, buffers: usize, intakes: usize,
    ) -> (Memory, Vec<Intake>) {
        let address = arena.base().as_ptr().addr();
        let skipped = address.next_multiple_of(shape.unit as usize) - address;
        let memory = Memory { skipped, arena, shape, frames: buffers + intakes };
        let intake = |frame: FrameId| {
            let (start, length) = (memory.frame_at(frame), shape.block_size as usize);
            // SAFETY: write_lease needs that nobody else touches these bytes while it lives. A frame is a
            // buffer's or an intake's: this one is no buffer's, and `exchange` alone changes that.
            let lease = unsafe { memory.arena.write_lease(start, length) };
            Intake { frame, lease, start: 0 }
        };
        let intakes = (buffers..buffers + intakes).map(FrameId::new).map(intake).collect();
        (memory, intakes)
    }

    fn frame_at(&self, frame: FrameId) -> usize {
        self.skipped + frame.place() * self.shape.block_size as usize
    }

    /// Where a byte of a block is in the arena.
    fn at(&self, st: &State, block_id: BlockId, bytes: &Range<u64>) -> usize {
        let block = &st.blocks[block_id];
        assert!(bytes.end <= block.pages as u64 * self.shape.unit, "within the block's room");
        self.start_of(st, block.place) + bytes.start as usize
    }

    fn start_of(&self, st: &State, place: Place) -> usize {
        let (number, within) = match place {
            Place::Buffer(number) => (number, 0),
            Place::Slot { tray, slot } => {
                (tray, slot as usize * st.trays.slot_pages(tray) * self.shape.unit as usize)
            }
            Place::Nowhere => unreachable!("blocks in use have a place"),
        };
        self.frame_at(st.frames[number]) + within
    }

    /// Gives a buffer the memory of an intake, and the intake the buffer's. One block has the whole buffer,
    /// and nobody is busy with it. The bytes `around` what the intake brings are made zero, or come from the buffer.
    pub(crate) fn exchange(
        &self, st: &mut State, block: BlockId, intake: &mut Intake,
        around: [(Range<u64>, Around); 2],
    ) {
        let Block { place, reading, writing, copying, shared, .. } = &st.blocks[block];
        let Place::Buffer(number) = *place else {
            unreachable!("a block that shares its block_id is not exchanged");
        };
        assert!(reading.is_empty() && writing.is_empty());
        assert!(copying.is_empty() && shared.is_empty());
        assert!(intake.lease.is_of(&self.arena), "intakes stay with their engine");
        for (bytes, what) in around {
            let (from, length) = (self.at(st, block, &bytes), (bytes.end - bytes.start) as usize);
            let target = &mut intake.lease[bytes.start as usize..bytes.end as usize];
            match what {
                Around::Zero => target.fill(0),
                Around::Stays => {
                    // SAFETY: nobody may write these bytes while the lease lives. The buffer is its one block's,
                    // which has no claims, and none can be made while the caller holds the lock.
                    target.copy_from_slice(&unsafe { self.arena.read_lease(from, length) });
                }
            }
        }
        let frame = std::mem::replace(&mut st.frames[number], intake.frame);
        intake.frame = frame;
        let (start, length) = (self.frame_at(frame), self.shape.block_size as usize);
        // SAFETY: write_lease needs that nobody else touches these bytes while it lives. The buffer is
        // its one block's, which had no claims, so no lease on its memory exists, and none can be made any
        // more: it refers to the intake's former memory now, the lease on which ends with this assignment,
        // under the lock.
        intake.lease = unsafe { self.arena.write_lease(start, length) };
    }

    /// Copies bytes of a block to the same offset of `place`, which is to be its next and nobody's yet.
    pub(crate) fn copy(&self, st: &State, block_id: BlockId, place: Place, bytes: Range<u64>) {
        let length = (bytes.end - bytes.start) as usize;
        assert!(st.blocks[block_id].still());
        let (from, to) = (self.at(st, block_id, &bytes), self.start_of(st, place));
        // SAFETY: nobody may write these bytes while the lease lives: no transfer and no copy of the
        // block is under way, and none can begin while the caller holds the lock.
        let source = unsafe { self.arena.read_lease(from, length) };
        // SAFETY: nobody else may touch these: the place is vacant, or a buffer that was just granted,
        // and stays so while the caller holds the lock.
        let mut target = unsafe { self.arena.write_lease(to + bytes.start as usize, length) };
        target.copy_from_slice(&source);
    }

    /// Bytes that a transfer fills; their pages are in `reading`.
    pub(crate) fn for_read(&self, st: &State, block_id: BlockId, bytes: Range<u64>) -> WriteLease {
        let pages = self.shape.pages_of(0, bytes.start, bytes.end);
        let block = &st.blocks[block_id];
        assert!(block.reading.all(pages.clone()) && !block.shared.any(pages));
        // SAFETY: write_lease needs that nobody else touches these bytes while it lives. Their pages
        // are in `reading`: every other claim excludes such pages, and the pages leave the set only
        // when the completion has given the lease back.
        unsafe {
            self.arena
                .write_lease(self.at(st, block_id, &bytes), (bytes.end - bytes.start) as usize)
        }
    }

    /// Bytes that a transfer stores; their pages are in `writing`.
    pub(crate) fn for_write(&self, st: &State, block_id: BlockId, bytes: Range<u64>) -> ReadLease {
        let pages = self.shape.pages_of(0, bytes.start, bytes.end);
        let block = &st.blocks[block_id];
        assert!(block.writing.all(pages.clone()) && !block.copying.any(pages));
        // SAFETY: read_lease needs that nobody writes these bytes while it lives. Their pages are in
        // `writing`, which excludes `reading` and `copying`, until the completion gives the lease back.
        unsafe {
            self.arena.read_lease(self.at(st, block_id, &bytes), (bytes.end - bytes.start) as usize)
        }
    }

    /// Bytes that a client's data is copied into; their pages are in `copying`.
    pub(crate) fn for_copy_in(
        &self, st: &State, block_id: BlockId, bytes: Range<u64>,
    ) -> WriteLease {
        let pages = self.shape.pages_of(0, bytes.start, bytes.end);
        assert!(st.blocks[block_id].copying.all(pages));
        // SAFETY: as for_read, with `copying`: the pages leave the set after the lease is dropped.
        unsafe {
            self.arena
                .write_lease(self.at(st, block_id, &bytes), (bytes.end - bytes.start) as usize)
        }
    }

    /// Bytes that are copied out to a client; their pages are in `shared`.
    pub(crate) fn for_copy_out(
        &self, st: &State, block_id: BlockId, bytes: Range<u64>,
    ) -> ReadLease {
        let pages = self.shape.pages_of(0, bytes.start, bytes.end);
        let block = &st.blocks[block_id];
        assert!(block.shared.all(pages) && block.readers > 0);
        // SAFETY: as for_write, with `shared`, which is only cleared when the last reader has ended.
        unsafe {
            self.arena.read_lease(self.at(st, block_id, &bytes), (bytes.end - bytes.start) as usize)
        }
    }

    /// Copies bytes of valid pages that no client writes to. The engine's lock is held meanwhile.
    pub(crate) fn copy_out(
        &self, st: &State, block_id: BlockId, bytes: Range<u64>, into: &mut [u8],
    ) {
        let pages = self.shape.pages_of(0, bytes.start, bytes.end);
        let block = &st.blocks[block_id];
        assert!(block.valid.all(pages.clone()) && !block.copying.any(pages.clone()));
        assert!(!block.reading.any(pages));
        // SAFETY: read_lease needs that nobody writes to these bytes while it lives. Whoever writes to them has the
        // pages in `copying` or `reading` first, which takes the lock; `st` says that it is held until this returns.
        let lease = unsafe {
            self.arena.read_lease(self.at(st, block_id, &bytes), (bytes.end - bytes.start) as usize)
        };
        into.copy_from_slice(&lease);
    }

    /// A whole buffer as plain memory, while it is lent out.
    pub(crate) fn for_lending(&self, st: &State, buffer: BufferId) -> WriteLease {
        assert!(st.lent.contains(&buffer) && !st.trays.is_tray(buffer));
        let start = self.start_of(st, Place::Buffer(buffer));
        // SAFETY: write_lease needs that nobody else touches these bytes while it lives. The buffer is
        // in `lent` and nobody's: it was taken out of the free list, which it joins when its last block or
        // slot is gone, so nobody can put it to use and make a claim, and it leaves `lent` only after
        // the lease is dropped.
        unsafe { self.arena.write_lease(start, self.shape.block_size as usize) }
    }

    /// Zeroes bytes of pages that nobody else may touch now; the lock stays held meanwhile.
    pub(crate) fn zero(&self, st: &State, block_id: BlockId, bytes: Range<u64>) {
        let pages = self.shape.pages_of(0, bytes.start, bytes.end);
        let block = &st.blocks[block_id];
        assert!(!block.copying.any(pages.clone()) && !block.shared.any(pages.clone()));
        assert!(!block.writing.any(pages.clone()) && !block.reading.any(pages));
        // SAFETY: no claim on these pages exists, none can be made while the caller holds the lock
        // (`st` is borrowed from it), and the lease ends before that.
        let mut lease = unsafe {
            self.arena
                .write_lease(self.at(st, block_id, &bytes), (bytes.end - bytes.start) as usize)
        };
        lease.fill(0);
    }

    fn scratch_at(&self, scratch: usize) -> usize {
        self.frame_at(FrameId::new(self.frames)) + scratch * self.shape.unit as usize
    }

    /// A scratch page, owned by the transfer that fills it.
    pub(crate) fn scratch(&self, scratch: usize) -> WriteLease {
        let (start, length) = (self.scratch_at(scratch), self.shape.unit as usize);
        // SAFETY: the scratch index was taken out of the free list and returns to it only after the
        // completion has given the lease back, so nobody else has it; one fill has one transfer, and
        // its end asks for the page again.
        unsafe { self.arena.write_lease(start, length) }
    }

    /// Copies the bytes around `kept` of a filled scratch page into its page, which is in `reading`.
    pub(crate) fn merge(
        &self, st: &State, block_id: BlockId, page: usize, kept: Range<usize>, filled: &[u8],
    ) {
        let unit = self.shape.unit;
        let start = page as u64 * unit;
        let mut lease = self.for_read(st, block_id, start..start + unit);
        lease[..kept.start].copy_from_slice(&filled[..kept.start]);
        lease[kept.end..].copy_from_slice(&filled[kept.end..]);
    }
}
