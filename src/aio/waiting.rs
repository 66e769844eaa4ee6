//! The order in which waiting transfers are taken: syncs, then reads before writes, without starving writes.

use std::collections::VecDeque;

use super::device::{Action, Transfer};
use super::worker::Order;

/// Reads taken in a row while a write waits. A swap-in stalls compute and a swap-out does not, but
/// a writer who waits for a buffer must get on.
const READS_IN_A_ROW_MAX: u32 = 8;

/// Transfers that no thread has taken yet. A sync is submitted when what it is to store has been written, so it needs to
/// wait behind nothing.
#[derive(Debug, Default)]
pub struct Waiting {
    syncs: VecDeque<Transfer>,
    reads: VecDeque<Transfer>,
    writes: VecDeque<Transfer>,
    reads_in_a_row: u32,
}

impl Waiting {
    /// Room for `capacity` waiting transfers of each kind before it grows.
    pub(super) fn with_capacity(capacity: usize) -> Self {
        Self {
            syncs: VecDeque::with_capacity(capacity),
            reads: VecDeque::with_capacity(capacity),
            writes: VecDeque::with_capacity(capacity),
            reads_in_a_row: 0,
        }
    }

    pub(super) fn has_syncs(&self) -> bool {
        !self.syncs.is_empty()
    }

    pub(super) fn pop_sync(&mut self) -> Option<Transfer> {
        self.syncs.pop_front()
    }

    /// The next read or write.
    pub(super) fn pop_data(&mut self) -> Option<Transfer> {
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
}

impl Order for Waiting {
    type Job = Transfer;

    fn push(&mut self, transfer: Transfer) {
        match transfer.action {
            Action::Read(_) => self.reads.push_back(transfer),
            Action::Write(_) => self.writes.push_back(transfer),
            Action::Sync { .. } => self.syncs.push_back(transfer),
        }
    }

    fn pop(&mut self) -> Option<Transfer> {
        self.pop_sync().or_else(|| self.pop_data())
    }

    fn is_empty(&self) -> bool {
        self.syncs.is_empty() && self.reads.is_empty() && self.writes.is_empty()
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
        // SAFETY: an empty range overlaps nothing.
        let write = || Action::Write(unsafe { arena.read_lease(0, 0) });
        waiting.push(transfer(100, write()));
        waiting.push(transfer(101, write()));
        for token in 0..20 {
            // SAFETY: as above.
            let lease = unsafe { arena.write_lease(0, 0) };
            waiting.push(transfer(token, Action::Read(lease)));
        }
        assert!(waiting.pop_sync().is_none() && !waiting.has_syncs());
        waiting.push(transfer(200, Action::Sync { data_only: true }));
        assert!(waiting.has_syncs());
        assert_eq!(waiting.pop().unwrap().token, 200);
        let order: Vec<u64> =
            std::iter::from_fn(|| waiting.pop()).map(|transfer| transfer.token).collect();
        assert_eq!(order[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(order[8], 100);
        assert_eq!(order[17], 101);
        assert_eq!(order[21], 19);
        assert!(waiting.is_empty());
    }
}
