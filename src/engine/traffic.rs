//! How many bytes clients move, by partition and by group: plain numbers under the engine's lock.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::actions::label;
use super::core::Engine;
use super::ids::{HandleId, Id, PartitionId};
use super::locked::Locked;
use super::partition::PartitionStatus;
use super::state::State;
use crate::error::Errno;
use crate::metrics::{Histogram, Snapshot};

/// Partitions looked at in one step under the lock.
const STEP: usize = 128;

/// Bytes that clients have moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Read.
    pub read_bytes: u64,
    /// Written.
    pub written_bytes: u64,
}

/// Times that the engine takes, beside the counters under its lock.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Of transfers: from when they were asked for until they were done, the device's queue included.
    pub(crate) reads: Histogram,
    pub(crate) writes: Histogram,
    pub(crate) syncs: Histogram,
    /// Of operations that had to wait for a buffer.
    pub(crate) waits: Histogram,
}

/// What is told of the engine's times.
#[derive(Debug, Clone, Copy, Default)]
pub struct Times {
    /// Transfers from the swap folder, from being asked for until done.
    pub reads: Snapshot,
    /// Transfers to it.
    pub writes: Snapshot,
    /// Syncs of the device.
    pub syncs: Snapshot,
    /// Waits for a buffer, by those who had to.
    pub waits: Snapshot,
}

/// A partition among others. Sizes in bytes.
#[derive(Debug, Clone)]
pub struct PartitionRow {
    /// Its backing file's path, as the kernel has it now.
    pub path: String,
    /// See [`PartitionStatus`].
    pub status: PartitionStatus,
    /// Logical size.
    pub size: u64,
    /// In the pool.
    pub resident: u64,
    /// Newer than the swap folder.
    pub dirty: u64,
    /// Under transfer.
    pub inflight: u64,
    /// What clients have moved of it since it became known.
    pub traffic: Traffic,
    /// Open handles.
    pub handles: u32,
    /// Transfers of it that failed.
    pub failures: u64,
    /// The last failed transfer's errno, until mended.
    pub error: Option<Errno>,
}

impl State {
    /// A client reads `bytes` of a partition.
    pub(crate) fn note_read(&mut self, id: PartitionId, bytes: u64) {
        self.stats.read_bytes += bytes;
        let part = self.part(id);
        part.traffic.read_bytes += bytes;
        let group = part.group;
        self.groups[group].read_bytes += bytes;
    }

    /// A client has written `bytes` of a partition.
    pub(crate) fn note_written(&mut self, id: PartitionId, bytes: u64) {
        self.stats.written_bytes += bytes;
        let part = self.part(id);
        part.traffic.written_bytes += bytes;
        let group = part.group;
        self.groups[group].written_bytes += bytes;
    }
}

impl Engine {
    /// Counts what the partition of `handle` moves from now on to the group with this number, too. Group 0
    /// is everybody's who was not put into another.
    pub fn set_group(&self, handle: HandleId, group: usize) {
        self.with(|locked| {
            if let Ok(id) = locked.state.partition_of(handle) {
                if locked.state.groups.len() <= group {
                    locked.state.groups.resize(group + 1, Traffic::default());
                }
                locked.state.part(id).group = group;
            }
        });
    }

    /// What each group has moved so far.
    #[must_use]
    pub fn groups(&self) -> Vec<Traffic> {
        self.with(|locked| locked.state.groups.clone())
    }

    /// Times of transfers and waits so far.
    #[must_use]
    pub fn times(&self) -> Times {
        Times {
            reads: self.meter.reads.snapshot(),
            writes: self.meter.writes.snapshot(),
            syncs: self.meter.syncs.snapshot(),
            waits: self.meter.waits.snapshot(),
        }
    }

    /// The partitions that are known by more than their bytes, a few at a time under the lock: what changes
    /// meanwhile may be there as it was before or after.
    #[must_use]
    pub fn rows(&self) -> Vec<PartitionRow> {
        let mut rows = Vec::new();
        let mut from = 0;
        loop {
            let (part, next) = self.with(|locked| locked.some_rows(from));
            // Their paths are the kernel's to say, without the lock.
            rows.extend(
                part.into_iter().map(|(file, row)| PartitionRow { path: label(&*file), ..row }),
            );
            match next {
                Some(next) if !self.ended.load(Ordering::Relaxed) => from = next,
                _ => return rows,
            }
        }
    }

    /// A transfer is done that was asked for at `since`.
    pub(crate) fn note_transfer(&self, action: &crate::aio::device::Action, since: Instant) {
        use crate::aio::device::Action;
        let times = match action {
            Action::Read(_) => &self.meter.reads,
            Action::Write(_) => &self.meter.writes,
            Action::Sync { .. } => &self.meter.syncs,
        };
        times.record(since.elapsed());
    }
}

impl Locked<'_> {
    #[expect(clippy::type_complexity, reason = "a row beside the file that names it")]
    fn some_rows(
        &mut self, from: usize,
    ) -> (Vec<(std::sync::Arc<dyn crate::aio::device::BackingFile>, PartitionRow)>, Option<usize>)
    {
        let end = self.state.partitions.places();
        let to = (from + STEP).min(end);
        let ids: Vec<PartitionId> = (from..to)
            .map(PartitionId::new)
            .filter(|id| self.state.partitions.get(*id).is_some())
            .collect();
        let rows = ids.into_iter().map(|id| {
            let info = self.info_of(id);
            let part = self.state.part(id);
            let row = PartitionRow {
                path: String::new(),
                status: info.status,
                size: info.size,
                resident: info.resident,
                dirty: info.dirty,
                inflight: info.inflight,
                traffic: part.traffic,
                handles: part.handles,
                failures: part.failures,
                error: info.error,
            };
            (part.file.clone(), row)
        });
        (rows.collect(), (to < end).then_some(to))
    }
}
