//! Buffers beyond the pool's, in which a transport receives what clients write.
//!
//! A write of a whole block is taken in by exchanging memory: the block's buffer gets the intake's, which holds
//! its new content, and the intake goes on with the buffer's. The number of buffers, and all that is counted
//! about them, does not change, so intakes have no part in who waits for which buffer
//! ([`super::buffers`]); and nobody waits for an intake: without one, bytes are copied. They are copied into
//! slots too, whose stretch holds others' bytes. A lent buffer ([`super::lend`]) is the opposite: out of
//! the pool's number, with the stretch that it has, until it is given back.

use std::ops::{Deref, DerefMut};

use super::engine::Engine;
use super::op::{WriteOp, WriteReply};
use super::state::State;
use crate::pool::WriteLease;

/// Index of a buffer's worth of the arena's memory.
pub(crate) type Stretch = u32;

/// Memory of one block, aligned as the pool's is, that belongs to whoever holds this. To be given back with
/// [`Engine::return_intake`]; dropped, it is gone until the engine stops.
#[derive(Debug)]
pub struct Intake {
    pub(super) stretch: Stretch,
    pub(super) lease: WriteLease,
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

    /// The bytes from `from` on, of a caller's `borrowed`.
    pub(crate) fn bytes<'a>(&'a self, borrowed: &'a [u8], from: usize) -> &'a [u8] {
        match self {
            Payload::Caller => &borrowed[from..],
            Payload::Lent(intake) | Payload::Kept(intake) => &intake[from..],
            Payload::Copied(bytes, first) => &bytes[from - first..],
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
        self.with(|st, _| st.intakes.pop())
    }

    /// Takes back what [`Engine::intake`] gave.
    pub fn return_intake(&self, intake: Intake) {
        self.with(|st, _| st.intakes.push(intake));
    }

    /// As [`Engine::write`], of the first `length` bytes of `intake`. Returns the intake for the next
    /// write: the same one, or another when its memory has become a block's, or its bytes have to wait.
    ///
    /// # Panics
    /// When `length` is more than the intake has, or the intake is another engine's.
    pub fn write_from(
        &self, handle: u64, offset: u64, intake: Intake, length: usize, stable: bool,
        reply: WriteReply,
    ) -> Intake {
        assert!(length <= intake.len(), "{length} bytes of {}", intake.len());
        let mut op = WriteOp::new(handle, offset, length, Payload::Lent(intake), reply);
        op.stable = stable;
        self.run_write(Box::new(op), &[]).expect("an intake comes back for the one that was lent")
    }

    /// Makes the payload of a write that has to wait last beyond the call. Returns the intake that its
    /// caller gets for one that is kept, or gets back for one that was copied.
    pub(super) fn make_stay(
        &self, payload: &mut Payload, borrowed: &[u8], bytes: std::ops::Range<usize>,
    ) -> Option<Intake> {
        match std::mem::replace(payload, Payload::Caller) {
            Payload::Lent(intake) => {
                let other = self.intake();
                if other.is_some() {
                    *payload = Payload::Kept(intake);
                    return other;
                }
                *payload = Payload::Copied(intake[bytes.clone()].to_vec(), bytes.start);
                Some(intake)
            }
            Payload::Caller => {
                *payload = Payload::Copied(borrowed[bytes.clone()].to_vec(), bytes.start);
                None
            }
            stays => {
                *payload = stays;
                None
            }
        }
    }
}
