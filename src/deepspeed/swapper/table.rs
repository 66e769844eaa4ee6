//! What the swapper knows of its partitions, and of what is under way.
//!
//! The table's lock is never held while the engine is called, nor while anything that holds buffers is
//! dropped: either may answer somebody, and answers take this lock.

use std::collections::{BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use super::error::{Result, SwapError, TransferFailure};
use super::given::SwapInBuffer;
use super::id::PartitionId;
use crate::engine::Engine;
use crate::engine::FileKey;
use crate::engine::HandleId;
use crate::engine::Hold;
use crate::engine::PartitionStatus;
use crate::engine::Tokens;
use crate::engine::assert_outside;

/// What to do about a partition in flight.
pub(super) const UNDER_WAY: &str = "call synchronize_reads or synchronize_writes first";

/// What to do about one that others hold for us.
pub(super) const GIVEN: &str = "its bytes are in the caller's buffer: take_buffer gives that back";

/// An open file of the swap folder, known to the engine.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) engine: Arc<Engine>,
    pub(super) handle: HandleId,
    pub(super) key: FileKey,
    pub(super) path: PathBuf,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.engine.release(self.handle);
    }
}

/// A partition, or a part of one, in the pool. Dropped in the order of its fields.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) hold: Hold,
    pub(super) open: Arc<Open>,
    pub(super) tokens: Tokens,
    /// Changed since it was swapped in or out.
    pub(super) changed: AtomicBool,
    /// A view to change it exists. Set under the table's lock.
    pub(super) viewed: AtomicBool,
}

impl Held {
    pub(super) fn new(hold: Hold, open: Arc<Open>, tokens: Tokens, changed: bool) -> Held {
        let (changed, viewed) = (AtomicBool::new(changed), AtomicBool::new(false));
        Held { hold, open, tokens, changed, viewed }
    }

    pub(super) fn is_viewed(&self) -> bool {
        self.viewed.load(Ordering::Acquire)
    }

    pub(super) fn is_changed(&self) -> bool {
        self.changed.load(Ordering::Acquire)
    }

    pub(super) fn set_changed(&self, changed: bool) {
        self.changed.store(changed, Ordering::Release);
    }

    /// Gives the buffers back; the bytes are in the swap folder.
    pub(super) fn release(mut self) {
        self.hold.release_after(true);
    }

    /// Gives the buffers back, and up what is not in the swap folder.
    pub(super) fn discard(self) {
        let Held { mut hold, open, tokens, .. } = self;
        hold.release_after(true);
        drop(hold);
        // Closing the file would write out what is dirty: it stays open until that is gone.
        let (engine, key) = (open.engine.clone(), open.key);
        let gone = move |_: crate::error::Result<()>| {
            drop(open);
            drop(tokens);
        };
        engine.discard(key, Box::new(gone));
    }
}

/// Where a partition is.
#[derive(Debug)]
pub(super) enum Place {
    /// In the swap folder, or nowhere yet.
    Absent,
    /// A call or a transfer has it.
    Busy,
    /// Swapped in, and not synchronized: status changes only then.
    Arrived(Box<Place>),
    Held(Arc<Held>),
    /// In memory of the caller's.
    Given(Arc<SwapInBuffer>),
}

impl Place {
    pub(super) fn status(&self) -> PartitionStatus {
        match self {
            Place::Absent => PartitionStatus::NotAvailable,
            Place::Busy | Place::Arrived(_) => PartitionStatus::Inflight,
            Place::Held(_) | Place::Given(_) => PartitionStatus::Available,
        }
    }
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) numel: u64,
    pub(super) place: Place,
}

/// The partitions, and what else a lock must guard.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) entries: HashMap<PartitionId, Entry>,
    /// Asynchronous swap-ins that have ended.
    pub(super) arrived: Vec<PartitionId>,
    /// Callers' buffers whose swap-in failed, oldest first.
    pub(super) returned: Vec<(PartitionId, SwapInBuffer)>,
    /// Buffers set aside for `swap_out_partitioned_params`.
    pub(super) staging: Option<Tokens>,
    /// Reservations made and given back so far: one that was in use meanwhile is not put back.
    pub(super) stagings: u64,
}

impl Table {
    pub(super) fn entry(&mut self, id: &PartitionId) -> Result<&mut Entry> {
        self.entries.get_mut(id).ok_or_else(|| SwapError::Unknown { id: id.clone() })
    }

    /// Puts a partition somewhere; what was there before is the caller's to drop.
    #[must_use]
    pub(super) fn place(&mut self, id: &PartitionId, place: Place) -> Option<Place> {
        let entry = self.entries.get_mut(id)?;
        Some(std::mem::replace(&mut entry.place, place))
    }

    /// Refuses ids that are unknown or named twice.
    pub(super) fn check_ids(&mut self, operation: &'static str, ids: &[PartitionId]) -> Result<()> {
        let mut seen = BTreeSet::new();
        for id in ids {
            self.entry(id)?;
            if !seen.insert(id) {
                return Err(SwapError::Twice { operation, id: id.clone() });
            }
        }
        Ok(())
    }

    /// Takes partitions that are not available for `operation`; all or none.
    pub(super) fn take_absent(
        &mut self, operation: &'static str, ids: &[PartitionId],
    ) -> Result<()> {
        self.check_ids(operation, ids)?;
        for id in ids {
            let hint = match &self.entry(id)?.place {
                Place::Absent => continue,
                Place::Busy | Place::Arrived(_) => UNDER_WAY,
                Place::Held(_) | Place::Given(_) => "it can be used as it is",
            };
            return Err(self.wrong(operation, id, hint));
        }
        for id in ids {
            self.entry(id)?.place = Place::Busy;
        }
        Ok(())
    }

    /// Takes available partitions out of the table for `operation`; all or none.
    pub(super) fn take_held(
        &mut self, operation: &'static str, ids: &[PartitionId],
    ) -> Result<Vec<(PartitionId, Held)>> {
        self.check_ids(operation, ids)?;
        for id in ids {
            let hint = match &self.entry(id)?.place {
                Place::Held(held) if Arc::strong_count(held) == 1 => continue,
                Place::Held(_) => return Err(SwapError::InUse { operation, id: id.clone() }),
                Place::Given(_) => GIVEN,
                Place::Absent => "call swap_in or get_buffer first",
                Place::Busy | Place::Arrived(_) => UNDER_WAY,
            };
            return Err(self.wrong(operation, id, hint));
        }
        let mut taken = Vec::with_capacity(ids.len());
        for id in ids {
            // A count of one under this lock stays one: references are made from the table's.
            if let Some(Place::Held(held)) = self.place(id, Place::Busy)
                && let Some(held) = Arc::into_inner(held)
            {
                taken.push((id.clone(), held));
            }
        }
        Ok(taken)
    }

    fn wrong(
        &mut self, operation: &'static str, id: &PartitionId, hint: &'static str,
    ) -> SwapError {
        let status = self.entries.get(id).map(|entry| entry.place.status());
        let status = status.unwrap_or(PartitionStatus::NotAvailable);
        SwapError::Status { operation, id: id.clone(), status, hint }
    }
}

/// Operations under way, and what became of those that have ended.
#[derive(Debug, Default)]
pub(super) struct Batch {
    state: Mutex<BatchState>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct BatchState {
    next: u64,
    pending: BTreeSet<u64>,
    completed: usize,
    failures: Vec<TransferFailure>,
}

impl Batch {
    /// Counts one more; the number is to be given to [`Batch::end`].
    pub(super) fn begin(&self) -> u64 {
        let mut state = self.state.lock();
        let number = state.next;
        state.next += 1;
        state.pending.insert(number);
        number
    }

    pub(super) fn end(&self, number: u64, failure: Option<TransferFailure>) {
        let mut state = self.state.lock();
        state.pending.remove(&number);
        match failure {
            Some(failure) => state.failures.push(failure),
            None => state.completed += 1,
        }
        drop(state);
        self.ended.notify_all();
    }

    /// Waits for all that have begun before this call. The number of those that were done, this once.
    pub(super) fn wait(&self) -> Result<usize> {
        assert_outside("waiting for transfers");
        let mut state = self.state.lock();
        let before = state.next;
        while state.pending.first().is_some_and(|oldest| *oldest < before) {
            self.ended.wait(&mut state);
        }
        let completed = std::mem::take(&mut state.completed);
        let failures = std::mem::take(&mut state.failures);
        if failures.is_empty() { Ok(completed) } else { Err(SwapError::Transfers(failures)) }
    }
}
