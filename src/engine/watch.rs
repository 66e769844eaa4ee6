//! Transfers that the device has, and calls on the swap folder, by when their answers are due.

use std::collections::HashMap;

use super::ids::{Id, PartitionId, TransferId};

/// A transfer that the device has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Underway {
    /// [`BlockId::NONE`] for a token that is free.
    pub(super) partition: PartitionId,
    /// Its place in the order of submission.
    pub(super) number: u64,
    /// Since when its answer is due, in milliseconds since the engine's start.
    pub(super) since_ms: u64,
}

/// What the watch knows. Times are in milliseconds since the engine's start.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The time, as exactly as the keeper looks at its clock.
    pub(crate) now_ms: u64,
    /// When the device last answered a transfer, or a call on the swap folder returned; or when the first of
    /// those now under way began.
    pub(super) answered_ms: u64,
    pub(super) submitted: u64,
    /// By token.
    pub(super) underway: Vec<Underway>,
    /// How many of these are not free.
    pub(super) count: usize,
    pub(super) looked_ms: u64,
    /// Partitions with an overdue answer, and since when that is waited for.
    pub(super) stalled: HashMap<PartitionId, u64>,
}

impl Watch {
    /// Notes a transfer that is about to be submitted.
    pub(crate) fn begin(&mut self, token: TransferId, partition: PartitionId) {
        if self.count == 0 {
            self.answered_ms = self.now_ms;
        }
        self.submitted += 1;
        self.count += 1;
        let free = Underway { partition: PartitionId::NONE, number: 0, since_ms: 0 };
        let length = self.underway.len().max(token.place() + 1);
        self.underway.resize(length, free);
        let (number, since_ms) = (self.submitted, self.now_ms);
        self.underway[token.place()] = Underway { partition, number, since_ms };
    }

    /// It was answered.
    pub(crate) fn end(&mut self, token: TransferId) {
        self.answered_ms = self.now_ms;
        self.count -= 1;
        self.underway[token.place()].partition = PartitionId::NONE;
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Underway> {
        self.underway.iter().filter(|under| under.partition != PartitionId::NONE)
    }

    /// Moves on when those transfers are due that the device cannot have begun: all but the `depth` oldest,
    /// as long as others are answered.
    pub(super) fn put_off_queued(&mut self, depth: usize) {
        if self.count <= depth {
            return;
        }
        let mut numbers: Vec<u64> = self.all().map(|under| under.number).collect();
        let (_, first_queued, _) = numbers.select_nth_unstable(depth);
        for under in self.underway.iter_mut().filter(|under| under.number >= *first_queued) {
            under.since_ms = under.since_ms.max(self.answered_ms);
        }
    }
}

/// Calls on the swap folder that job threads make.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Calls {
    pub(super) running: usize,
    /// When the last one returned, in milliseconds since the engine's start.
    pub(super) returned_ms: u64,
}
