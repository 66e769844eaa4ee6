//! Buffers beyond the pool's, in which a transport receives what clients write.
//!
//! A write of a whole block is taken in by exchanging memory: the block's buffer gets the intake's, which holds
//! its new content, and the intake goes on with the buffer's. So is one that brings most of a block of which nothing
//! else is here: it is received where it will be in its block ([`Intake::begin_at`]), which for a write across a border
//! means that its first bytes lie at the intake's end; those are copied. The number of buffers, and all that is counted
//! about them, does not change, so intakes have no part in who waits for which buffer
//! ([`super::buffers`]); and nobody waits for an intake: without one, bytes are copied. They are copied into
//! slots too, whose frame holds others' bytes. A lent buffer ([`super::hold`]) is the opposite: out of
//! the pool's number, with the frame that it has, until it is given back.

use std::ops::{Deref, DerefMut, Range};

use super::ids::FrameId;
use crate::pool::WriteLease;

/// Memory of one block, aligned as the pool's is, that belongs to whoever holds this. To be given back with
/// [`Engine::return_intake`](super::Engine::return_intake); dropped, it is gone until the engine stops.
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
    pub(super) fn pieces(&self, bytes: Range<usize>) -> [&[u8]; 2] {
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
