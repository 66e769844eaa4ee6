//! Writes whose bytes a transport has received in an intake: taken in by exchange where that can be.

use crate::error::{Errno, Result};
use std::ops::Range;

use super::core::Engine;
use super::ids::{BlockId, HandleId};
use super::intake::{Intake, Payload};
use super::op::{Manner, WriteOp, WriteReply};
use super::pages::PageSet;
use super::state::State;
use super::trays::Place;
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
