//! The order in which waiting transfers are taken: reads before writes, without starving writes.

use std::collections::VecDeque;

use super::device::{Action, Transfer};

/// Reads taken in a row while a write waits. A swap-in stalls compute and a swap-out does not, but
/// a writer who waits for a buffer must get on.
const READS_IN_A_ROW_MAX: u32 = 8;

/// Transfers that no thread has taken yet. Syncs wait with the writes.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    reads: VecDeque<Transfer>,
    writes: VecDeque<Transfer>,
    reads_in_a_row: u32,
}

impl Waiting {
    /// Room for `capacity` waiting transfers of each kind before it grows.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            reads: VecDeque::with_capacity(capacity),
            writes: VecDeque::with_capacity(capacity),
            reads_in_a_row: 0,
        }
    }

    pub(super) fn push(&mut self, transfer: Transfer) {
        match transfer.action {
            Action::Read(_) => self.reads.push_back(transfer),
            Action::Write(_) | Action::Sync { .. } => self.writes.push_back(transfer),
        }
    }

    pub(super) fn pop(&mut self) -> Option<Transfer> {
        let write_waits = !self.writes.is_empty();
        if !(write_waits && self.reads_in_a_row >= READS_IN_A_ROW_MAX)
            && let Some(read) = self.reads.pop_front()
        {
            self.reads_in_a_row = if write_waits { self.reads_in_a_row + 1 } else { 0 };
            return Some(read);
        }
        self.reads_in_a_row = 0;
        self.writes.pop_front()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty() && self.writes.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::aio::memory::{MemoryFile, MemoryFolder};
    use crate::pool::{Arena, ArenaOptions};

    #[test]
    fn reads_go_first_but_writes_are_not_starved() {
        let options = ArenaOptions { size: 4096, pin_memory: false, huge_pages: false };
        let arena = Arena::new(options).unwrap();
        let file = Arc::new(MemoryFile::new(&MemoryFolder::unbounded()));
        let transfer = |token, action| Transfer { token, action, file: file.clone(), offset: 0 };
        let mut waiting = Waiting::with_capacity(4);
        waiting.push(transfer(100, Action::Sync { data_only: true }));
        waiting.push(transfer(101, Action::Sync { data_only: true }));
        for token in 0..20 {
            // SAFETY: an empty range overlaps nothing.
            let lease = unsafe { arena.write_lease(0, 0) };
            waiting.push(transfer(token, Action::Read(lease)));
        }
        let order: Vec<u64> =
            std::iter::from_fn(|| waiting.pop()).map(|transfer| transfer.token).collect();
        assert_eq!(order[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(order[8], 100);
        assert_eq!(order[17], 101);
        assert_eq!(order[21], 19);
        assert!(waiting.is_empty());
    }
}
