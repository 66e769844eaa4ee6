//! Where in a block the next large write will begin.
//!
//! The kernel cuts a call at the pages of its memory, so what a client writes from memory that begins anywhere comes in
//! requests that begin anywhere in a block, one like the other. Received where they will lie in their blocks, they need
//! no second copy. A wrong guess costs what not guessing costs: the bytes are copied.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::fuse::session::REQUEST_BYTES_MAX;

/// Shorter writes say nothing, and gain nothing.
const LENGTH_MIN: usize = REQUEST_BYTES_MAX as usize / 2;

/// Writes that must have begun at the same place, less those that did not, before the next one is expected there.
const AGREED_MIN: u64 = 4;
/// More are not counted, so that a stream of another kind is soon noticed.
const AGREED_MAX: u64 = 8;

/// What a write that began elsewhere takes away: two streams that take turns agree on nothing.
const DISAGREED: u64 = 2;

/// How many writes agree, and on which place.
#[derive(Debug, Default)]
pub(super) struct Aim(AtomicU64);

impl Aim {
    /// Bytes into a block at which the next write is expected.
    pub(super) fn start(&self) -> usize {
        let (agreed, start) = parts(self.0.load(Ordering::Relaxed));
        if agreed >= AGREED_MIN { start as usize } else { 0 }
    }

    /// A write has begun at `offset`. Threads that note one at the same time may overwrite each other's note.
    pub(super) fn saw(&self, offset: u64, length: usize) {
        if length < LENGTH_MIN {
            return;
        }
        let seen = offset % u64::from(REQUEST_BYTES_MAX);
        let (agreed, start) = parts(self.0.load(Ordering::Relaxed));
        let (agreed, start) = match seen == start {
            true => ((agreed + 1).min(AGREED_MAX), start),
            false if agreed > DISAGREED => (agreed - DISAGREED, start),
            false => (1, seen),
        };
        self.0.store(agreed << 32 | start, Ordering::Relaxed);
    }
}

/// How many agree, and the place.
fn parts(both: u64) -> (u64, u64) {
    (both >> 32, both & u64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// What was expected of each write of a call of so many MiB, from memory 48 bytes behind a page's beginning.
    fn call(aim: &Aim, start: u64, mib: u64) -> usize {
        let mut right = 0;
        let mut at = start;
        while at < start + mib * MIB {
            let length = if at == start { MIB - 48 } else { MIB.min(start + mib * MIB - at) };
            right += usize::from(length > 48 && aim.start() as u64 == at % MIB);
            aim.saw(at, length as usize);
            at += length;
        }
        right
    }

    #[test]
    fn calls_from_anywhere_are_met_but_for_their_beginning() {
        let aim = Aim::default();
        call(&aim, 0, 16);
        for number in 1..5 {
            assert_eq!(call(&aim, number * 16 * MIB, 16), 15);
        }
        // These all begin with a block.
        call(&aim, 0, 1);
        for number in 0..9 {
            call(&aim, number * MIB, 1);
        }
        assert_eq!((aim.start(), call(&aim, 0, 1)), (0, 1));
    }

    #[test]
    fn streams_that_take_turns_are_not_guessed() {
        let aim = Aim::default();
        for number in 0..100 {
            aim.saw(number * MIB, 1 << 20);
            aim.saw(number * MIB + 4096, 1 << 20);
            assert_eq!(aim.start(), 0);
        }
    }
}
