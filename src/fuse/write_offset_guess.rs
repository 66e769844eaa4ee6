//! Guesses where in a block the next large write will begin.
//!
//! The kernel cuts a call at the pages of the client's memory. Requests of a client whose memory begins within a page
//! therefore all begin at the same offset in a block. Received at that offset, their bytes need no second copy. After a
//! wrong guess the bytes are copied, as they are without any guess.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::fuse::session::REQUEST_BYTES_MAX;

/// Shorter writes are ignored: they repeat no offset, and a copy of them costs little.
const LENGTH_MIN: usize = REQUEST_BYTES_MAX as usize / 2;

/// Writes at the same offset, less [`DISAGREED`] for each at another one, after which the next one is expected there.
const AGREED_MIN: u64 = 4;
/// More are not counted, so that the guess soon follows a new stream.
const AGREED_MAX: u64 = 8;

/// What a write at another offset takes away. More than one, so that two streams that take turns give no guess.
const DISAGREED: u64 = 2;

/// The offset of the last large writes, and how many of them agree on it.
#[derive(Debug, Default)]
pub(super) struct WriteOffsetGuess(AtomicU64);

impl WriteOffsetGuess {
    /// Where in a block the next write is expected to begin; 0 without a guess.
    pub(super) fn get(&self) -> usize {
        let (agreed, offset) = parts(self.0.load(Ordering::Relaxed));
        if agreed >= AGREED_MIN { offset as usize } else { 0 }
    }

    /// Learns from a write that began at `offset`. Of two threads that do so at the same time one may be ignored.
    pub(super) fn learn(&self, offset: u64, length: usize) {
        if length < LENGTH_MIN {
            return;
        }
        let seen = offset % u64::from(REQUEST_BYTES_MAX);
        let (agreed, offset) = parts(self.0.load(Ordering::Relaxed));
        let (agreed, offset) = match seen == offset {
            true => ((agreed + 1).min(AGREED_MAX), offset),
            false if agreed > DISAGREED => (agreed - DISAGREED, offset),
            false => (1, seen),
        };
        self.0.store(agreed << 32 | offset, Ordering::Relaxed);
    }
}

/// How many writes agree, and the offset.
fn parts(both: u64) -> (u64, u64) {
    (both >> 32, both & u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// How many writes of one call of so many MiB begin where they were expected; its memory begins 48 bytes into a page.
    fn call(guess: &WriteOffsetGuess, start: u64, mib: u64) -> usize {
        let mut right = 0;
        let mut at = start;
        while at < start + mib * MIB {
            let length = if at == start { MIB - 48 } else { MIB.min(start + mib * MIB - at) };
            right += usize::from(length > 48 && guess.get() as u64 == at % MIB);
            guess.learn(at, length as usize);
            at += length;
        }
        right
    }

    #[test]
    fn calls_from_anywhere_are_met_but_for_their_beginning() {
        let guess = WriteOffsetGuess::default();
        call(&guess, 0, 16);
        for number in 1..5 {
            assert_eq!(call(&guess, number * 16 * MIB, 16), 15);
        }
        // These all begin with a block.
        call(&guess, 0, 1);
        for number in 0..9 {
            call(&guess, number * MIB, 1);
        }
        assert_eq!((guess.get(), call(&guess, 0, 1)), (0, 1));
    }

    #[test]
    fn streams_that_take_turns_are_not_guessed() {
        let guess = WriteOffsetGuess::default();
        for number in 0..100 {
            guess.learn(number * MIB, 1 << 20);
            guess.learn(number * MIB + 4096, 1 << 20);
            assert_eq!(guess.get(), 0);
        }
    }
}
