//! Buffers beyond the pool's, in which a transport receives what clients write.
//!
//! A write of a whole block is taken in by exchanging memory: the block's buffer gets the intake's, which holds
//! its new content, and the intake goes on with the buffer's. So is one that brings most of a block of which nothing
//! else is here: it is received where it will be in its block ([`Intake::begin_at`]), which for a write across a border
//! means that its first bytes lie at the intake's end; those are copied. The number of buffers, and all that is counted
//! about them, does not change, so intakes have no part in who waits for which buffer
//! ([`super::buffers`]); and nobody waits for an intake: without one, bytes are copied. They are copied into
//! slots too, whose frame holds others' bytes. A lent buffer ([`super::lend`]) is the opposite: out of
//! the pool's number, with the frame that it has, until it is given back.

use std::ops::{Deref, DerefMut, Range};

use super::core::Engine;
use super::ids::{BlockId, FrameId, HandleId};
use super::op::{WriteOp, WriteReply};
use super::pages::PageSet;
use super::seam::Manner;
use super::state::State;
use super::trays::Place;
use crate::error::{Errno, Result};
use crate::pool::WriteLease;

/// Index of a buffer's worth of the arena's memory.

/// Memory of one block, aligned as the pool's is, that belongs to whoever holds this. To be given back with
/// [`Engine::return_intake`]; dropped, it is gone until the engine stops.
#[derive(Debug)]
pub struct Intake {
    pub(super) frame: FrameId,
    pub(super) lease: WriteLease,
    /// Where what is received begins.
    pub(super) start: usize,
}

impl Intake {
    /// What is received begins `start` bytes into the memory from now on, and goes on at its beginning when it comes to
    /// the end. Bytes that are there stay where they are.
    ///
    /// # Panics
    /// When `start` lies beyond the memory.
    pub fn begin_at(&mut self, start: usize) {
        assert!(start < self.lease.len(), "{start} of {}", self.lease.len());
        self.start = start;
    }

    /// All of the memory, in the order in which it is to be filled.
    pub fn parts(&mut self) -> [&mut [u8]; 2] {
        let (second, first) = self.lease.split_at_mut(self.start);
        [first, second]
    }

    /// Those bytes of what was received.
    fn pieces(&self, bytes: Range<usize>) -> [&[u8]; 2] {
        let (second, first) = self.lease.split_at(self.start);
        let at = |bound: usize| (bound.min(first.len()), bound.saturating_sub(first.len()));
        let (start, end) = (at(bytes.start), at(bytes.end));
        [&first[start.0..end.0], &second[start.1..end.1]]
    }

    /// The first `length` bytes of what was received, brought together.
    pub fn straighten(&mut self, length: usize) -> &mut [u8] {
        if self.start + length > self.lease.len() {
            self.lease.rotate_left(self.start);
            self.start = 0;
        }
        &mut self.lease[self.start..self.start + length]
    }
}

/// What becomes of bytes beside those that a write brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Around {
    Zero,
    Stays,
}

impl Deref for Intake {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.lease
    }
}

impl DerefMut for Intake {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.lease
    }
}

/// Where the bytes of a write are.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Not here: good for the length of the call.
    Caller,
    /// In the caller's intake, which the call gives back.
    Lent(Intake),
    /// In an intake that the operation keeps; the caller has been given another one.
    Kept(Intake),
    /// Copied: those from the number on.
    Copied(Vec<u8>, usize),
}

impl Payload {
    /// Whether an operation may be parked with it.
    pub(crate) fn stays(&self) -> bool {
        matches!(self, Payload::Kept(_) | Payload::Copied(..))
    }

    /// Those bytes of it, of a caller's `borrowed`; they may lie in two places.
    pub(crate) fn pieces<'a>(&'a self, borrowed: &'a [u8], bytes: Range<usize>) -> [&'a [u8]; 2] {
        match self {
            Payload::Caller => [&borrowed[bytes], &[]],
            Payload::Lent(intake) | Payload::Kept(intake) => intake.pieces(bytes),
            Payload::Copied(copy, first) => [&copy[bytes.start - first..bytes.end - first], &[]],
        }
    }

    pub(crate) fn intake(&mut self) -> Option<&mut Intake> {
        match self {
            Payload::Lent(intake) | Payload::Kept(intake) => Some(intake),
            Payload::Caller | Payload::Copied(..) => None,
        }
    }
}

impl State {
    /// The intake of a write whose next run is `bytes`, in these pages of a block, when that is to be taken in by
    /// exchange: it is the last of the write and most of the block, lies in the intake where it will lie in
    /// the block, and nothing else of the block is here, nor on its way.
    pub(crate) fn to_exchange<'a>(
        &self, op: &'a mut WriteOp, buffer: BlockId, bytes: &Range<u64>, pages: &Range<usize>,
    ) -> Option<&'a mut Intake> {
        let size = self.shape.block_size;
        let block = &self.blocks[buffer];
        let last = bytes.end == op.offset + op.length as u64;
        if !last || bytes.end - bytes.start < size / 2 || !matches!(block.place, Place::Buffer(_)) {
            return None;
        }
        let still = [&block.reading, &block.writing, &block.copying, &block.shared];
        let free = still.into_iter().all(PageSet::is_empty)
            && [&block.valid, &block.dirty]
                .into_iter()
                .all(|set| !set.any(0..pages.start) && !set.any(pages.end..block.pages));
        let begins_at = (op.offset % size) as usize;
        op.payload.intake().filter(|intake| free && intake.start == begins_at)
    }

    /// Puts away what an ended write had; returns an intake that its caller is to be given back.
    pub(crate) fn put_away(&mut self, payload: Payload) -> Option<Intake> {
        match payload {
            Payload::Lent(intake) => Some(intake),
            Payload::Kept(intake) => {
                self.intakes.push(intake);
                None
            }
            Payload::Caller | Payload::Copied(..) => None,
        }
    }
}

impl Engine {
    /// Memory to receive writes in, for [`Engine::write_from`]: as long as a block, aligned to a page and
    /// to the device. `None` when all of [`EngineOptions::intakes`](super::EngineOptions::intakes) are out.
    #[must_use]
    pub fn intake(&self) -> Option<Intake> {
        self.with(|locked| locked.state.intakes.pop())
    }

    /// Takes back what [`Engine::intake`] gave.
    pub fn return_intake(&self, intake: Intake) {
        self.with(|locked| locked.state.intakes.push(intake));
    }

    /// As [`Engine::write_as`], of the first `length` bytes that `intake` received. Returns the intake for the next
    /// write: the same one, or another when its memory has become a block's, or its bytes have to wait.
    ///
    /// # Panics
    /// When `length` is more than the intake has, or the intake is another engine's.
    pub fn write_from(
        &self, handle: HandleId, offset: u64, intake: Intake, length: usize, manner: Manner,
        reply: WriteReply,
    ) -> Intake {
        assert!(length <= intake.len(), "{length} bytes of {}", intake.len());
        let mut op = WriteOp::new(handle, offset, length, Payload::Lent(intake), reply);
        op.manner = manner;
        self.run_write(Box::new(op), &[]).expect("an intake comes back for the one that was lent")
    }

    /// Makes the payload of a write that has to wait last beyond the call. Returns the intake that its
    /// caller gets for one that is kept, or gets back for one that was copied.
    ///
    /// ENOBUFS when the user has as many writes waiting as one may have; the payload stays as it is then.
    pub(super) fn make_stay(&self, op: &mut WriteOp, borrowed: &[u8]) -> Result<Option<Intake>> {
        let bytes = op.done..op.length;
        if op.payload.stays() {
            return Ok(None);
        }
        let parked = self.bounds().parked.take(op.user, 1).map_err(|_| Errno::ENOBUFS)?;
        let payload = &mut op.payload;
        let Payload::Lent(intake) = std::mem::replace(payload, Payload::Caller) else {
            *payload = Payload::Copied(borrowed[bytes.clone()].to_vec(), bytes.start);
            op.parked = Some((parked, None));
            return Ok(None);
        };
        // One user's leave some for others, whose bytes would have to be copied.
        let share = self.bounds().intakes.take(op.user, 1).ok();
        match share.and_then(|share| Some((share, self.intake()?))) {
            Some((share, other)) => {
                *payload = Payload::Kept(intake);
                op.parked = Some((parked, Some(share)));
                Ok(Some(other))
            }
            None => {
                let copy = intake.pieces(bytes.clone()).concat();
                *payload = Payload::Copied(copy, bytes.start);
                op.parked = Some((parked, None));
                Ok(Some(intake))
            }
        }
    }
}
