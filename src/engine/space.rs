//! Space in the swap folder: reserved before a write is accepted, some of it ahead of one that goes on at the
//! file's end, and taken back from there before anybody is refused any.
//!
//! What is held ahead of writers is in [`Partition::ahead`]. Whoever finds no space leaves the partition, so that
//! nobody waits for it, and is tried again when all partitions that hold some have given it back. For a while
//! nothing is reserved ahead then.

use std::ops::Range;
use std::sync::Arc;

use super::actions::Actions;
use super::ids::PartitionId;
use super::locked::Locked;
use super::op::{BarrierOp, Change};
use super::partition::Partition;
use super::waiting::Space;
use crate::aio::device::BackingFile;
use crate::error::{Errno, Result};

/// Space is reserved this much ahead of a growing file, at least and at most.
const RESERVE_STEP_MIN: u64 = 64 * 1024;
/// See [`RESERVE_STEP_MIN`].
const RESERVE_STEP_MAX: u64 = 64 * 1024 * 1024;

/// Nothing is reserved ahead for so long after the filesystem had no space.
pub(super) const TIGHT_MS: u64 = 10_000;

/// How often one operation waits for space. Twice is enough but for those that came in between.
pub(super) const WAITS_MAX: u8 = 3;

/// Space to get from the filesystem: what is needed, and what would serve the next writes too.
pub(super) struct Reservation {
    pub(super) file: Arc<dyn BackingFile>,
    pub(super) need: Range<u64>,
    pub(super) wish: Range<u64>,
    /// The file ended here when it was asked for, rounded up to a page.
    pub(super) end: u64,
}

impl Reservation {
    pub(super) fn run(&self) -> Result<Range<u64>> {
        let reserve = |range: &Range<u64>| self.file.reserve(range.start, range.end - range.start);
        match reserve(&self.wish) {
            Ok(()) => Ok(self.wish.clone()),
            Err(_) if self.wish != self.need => reserve(&self.need).map(|()| self.need.clone()),
            Err(errno) => Err(errno),
        }
    }
}

pub(super) fn is_full(errno: Errno) -> bool {
    matches!(errno, Errno::ENOSPC | Errno::EDQUOT)
}

impl Partition {
    /// How much to reserve beyond what a write needs. One that goes on at the end gets as much as has been written
    /// there without a gap; one that jumps over a hole, or lies within the file, nothing.
    pub(super) fn step_ahead(&self, need: &Range<u64>) -> u64 {
        let Some(last) = self.reserved.last() else { return 0 };
        let goes_on = need.start <= last.end && last.end < need.end && self.size < need.end;
        if !goes_on || self.user.end() > self.size {
            return 0;
        }
        let gap = self.ahead.within(0..need.start).last().map_or(0, |gap| gap.end);
        let run = last.start.max(gap).min(need.start);
        (need.end - run).clamp(RESERVE_STEP_MIN, RESERVE_STEP_MAX)
    }

    /// Notes what an attempt to get space may have allocated, all of it or some before it failed. Not what may have
    /// bytes: only what lies beyond `end`, where the file ended before, or in blocks that nobody ever wrote to.
    pub(super) fn hold_ahead(&mut self, tried: Range<u64>, end: u64) {
        for new in self.reserved.gaps(tried) {
            let border = end.clamp(new.start, new.end);
            for hole in self.written.gaps(new.start..border) {
                self.ahead.insert(hole);
            }
            self.ahead.insert(border..new.end);
        }
    }

    /// Bytes that are held ahead for certain.
    pub(crate) fn held_ahead(&self) -> u64 {
        let held = |range: Range<u64>| -> u64 {
            self.reserved.within(range).map(|part| part.end - part.start).sum()
        };
        self.ahead.within(0..u64::MAX).map(held).sum()
    }
}

impl Locked<'_> {
    /// Notes what was reserved.
    pub(super) fn note_reserved(
        &mut self, id: PartitionId, reservation: Reservation, result: Result<Range<u64>>,
    ) -> Result<()> {
        self.state.end_call(id);
        let Reservation { need, wish, end, .. } = reservation;
        self.state.space.asked_ahead -= u32::from(wish != need);
        if result != Ok(wish.clone()) {
            self.state.space.tight_until_ms = self.engine.now_ms() + TIGHT_MS;
        }
        let part = self.state.part(id);
        part.jobs -= 1;
        part.hold_ahead(wish, end);
        let outcome = result.map(|got| part.reserved.insert(got));
        if !self.state.space.waiters.is_empty() {
            // They wait for what was asked for ahead, too.
            self.take_space_back();
        }
        outcome
    }

    /// Whether there is space held ahead, or about to be. What its own attempts left behind counts once.
    pub(super) fn may_get_space(&self, id: PartitionId, waits: u8) -> bool {
        let holds = |(other, part): (PartitionId, &Partition)| {
            !part.ahead.is_empty() && (waits == 0 || other != id)
        };
        let moves = self.state.space.giving_back + self.state.space.asked_ahead > 0;
        waits < WAITS_MAX && (moves || self.state.partitions.iter().any(holds))
    }

    /// Has every partition give back what it holds ahead; then those who wait for space are tried again.
    pub(super) fn take_space_back(&mut self) {
        let holds =
            |(_, part): &(PartitionId, &Partition)| !part.ahead.is_empty() && !part.gives_back;
        let ids: Vec<PartitionId> =
            self.state.partitions.iter().filter(holds).map(|(id, _)| id).collect();
        for id in ids {
            self.state.part(id).gives_back = true;
            self.state.space.giving_back += 1;
            let change = Change::Settle { then: Vec::new(), for_room: true };
            self.enter_barrier(BarrierOp::new(id, change, None));
        }
        self.state.space.wake(self.actions);
    }

    /// A partition has given back what it held ahead.
    pub(super) fn gave_back(&mut self, id: PartitionId) {
        self.state.part(id).gives_back = false;
        self.state.space.giving_back -= 1;
        self.state.space.wake(self.actions);
    }

    /// Starts writing out what is dirty of a partition that is to give space back. True until that has ended.
    pub(super) fn flushes_for_room(&mut self, id: PartitionId) -> bool {
        self.flush_partition(id);
        let part = &self.state.partitions.get(id).expect("it is at the gate");
        let mut blocks = part.blocks.values();
        part.writes > 0 || blocks.any(|block_id| self.state.blocks[*block_id].flush)
    }
}

impl Space {
    fn wake(&mut self, actions: &mut Actions) {
        if self.giving_back + self.asked_ahead == 0 {
            actions.ready.append(&mut self.waiters);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::aio::memory::{MemoryFile, MemoryFolder};
    use crate::engine::FileKey;

    const MIB: u64 = 1 << 20;

    fn partition() -> Partition {
        let file = Arc::new(MemoryFile::new(&MemoryFolder::unbounded()));
        Partition::new(FileKey { dev: 1, ino: 1, generation: 0 }, file)
    }

    #[test]
    fn streams_have_space_ahead_and_jumps_have_none() {
        let mut part = partition();
        assert_eq!(part.step_ahead(&(0..MIB)), 0, "nobody knows what comes");
        part.reserved.insert(0..MIB);
        part.size = MIB;
        assert_eq!(part.step_ahead(&(MIB..2 * MIB)), 2 * MIB);
        assert_eq!(part.step_ahead(&(MIB + 4096..2 * MIB)), 0, "over a hole");
        assert_eq!(part.step_ahead(&(0..4096)), 0, "within");
        part.reserved.insert(0..500 * MIB);
        part.size = 500 * MIB;
        assert_eq!(part.step_ahead(&(500 * MIB..501 * MIB)), RESERVE_STEP_MAX);
        // After a hole it is a stream of its own.
        part.reserved.insert(600 * MIB..600 * MIB + 4096);
        part.size = 600 * MIB + 4096;
        let next = part.size..part.size + 4096;
        assert_eq!(part.step_ahead(&next), RESERVE_STEP_MIN);
        part.user.insert(700 * MIB..701 * MIB);
        assert_eq!(part.step_ahead(&next), 0, "the user sees to it");
    }

    #[test]
    fn what_is_held_ahead_is_nobodys() {
        let mut part = partition();
        part.size = 3 * MIB;
        part.written.insert(0..2 * MIB);
        part.reserved.insert(4 * MIB..5 * MIB);
        part.hold_ahead(MIB..8 * MIB, 3 * MIB);
        let held: Vec<_> = part.ahead.within(0..u64::MAX).collect();
        assert_eq!(held, [2 * MIB..4 * MIB, 5 * MIB..8 * MIB]);
        assert_eq!(part.held_ahead(), 0, "none of it for certain");
        part.reserved.insert(0..6 * MIB);
        assert_eq!(part.held_ahead(), 3 * MIB);
    }
}
