//! What can be asked of the engine: statuses, sizes, counts. None of it waits for a transfer.
//!
//! What could not be stored, and whose it is: an end of the mount does not wait for what one user has spoilt.

use crate::aio::device::{BackingFile, DeviceStats, Geometry};
use crate::error::{Errno, Result};
use crate::shares::User;
use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::actions::label;
use super::core::Engine;
use super::ids::{BlockId, HandleId, Id, PartitionId};
use super::info::{
    CacheStats, Overlay, PartitionCounts, PartitionInfo, PartitionRow, PoolInfo, Times, Traffic,
};
use super::locked::Locked;
use super::op::Reply;
use super::pages::RangeSet;
use super::partition::{FileKey, Partition, StatusWaiter};
use super::state::State;

impl Engine {
    /// Where a partition is; `None` when nothing of it is in the pool and nobody has it open.
    #[must_use]
    pub fn info(&self, key: FileKey) -> Option<PartitionInfo> {
        self.with(|locked| match locked.state.keys.get(&key).copied() {
            Some(id) => Some(locked.info_of(id)),
            None => locked.state.resting.info(key),
        })
    }

    /// What stat must show for a file the engine knows.
    #[must_use]
    pub fn overlay(&self, key: FileKey) -> Option<Overlay> {
        self.with(|locked| {
            let id = *locked.state.keys.get(&key)?;
            let part = locked.state.part(id);
            let (size, modified, changed) = (part.size, part.modified, part.changed);
            Some(Overlay { size, modified, changed, excess: part.held_ahead() })
        })
    }

    /// Counts of buffers.
    #[must_use]
    pub fn pool(&self) -> PoolInfo {
        self.with(|locked| PoolInfo {
            buffers: locked.state.buffers as u64,
            available: locked.state.available() as u64,
            free: locked.state.free_buffers() as u64,
            trays: locked.state.trays.len() as u64,
            reserved: (locked.state.reserved + locked.state.lent.len()) as u64,
            dirty: locked.state.dirty_buffers() as u64,
            inflight: locked.state.inflight_buffers() as u64,
            buffer_size: locked.state.shape.block_size,
        })
    }

    /// Counts of partitions.
    #[must_use]
    pub fn partitions(&self) -> PartitionCounts {
        self.with(|locked| {
            let (handles, resting) =
                (locked.state.handles.len() as u64, locked.state.resting.len() as u64);
            let mut counts = PartitionCounts { handles, resting, ..PartitionCounts::default() };
            counts.known = resting;
            counts.stalled = locked.state.stalled_partitions();
            for (_, part) in locked.state.partitions.iter() {
                counts.known += 1;
                counts.dirty += u64::from(part.dirty_pages > 0);
                counts.inflight += u64::from(part.moving());
                counts.failed += u64::from(part.error.is_some());
            }
            counts
        })
    }

    /// Counters of clients' operations since the start.
    #[must_use]
    pub fn cache_stats(&self) -> CacheStats {
        self.with(|locked| locked.state.stats)
    }

    /// Counters of the device since the start.
    #[must_use]
    pub fn device_stats(&self) -> DeviceStats {
        self.device().stats()
    }

    /// The device's alignment and kind.
    #[must_use]
    pub fn device_geometry(&self) -> Geometry {
        self.device().geometry()
    }

    /// Runs work that may block on metadata calls on one of the engine's job threads.
    pub fn run_blocking(&self, work: Box<dyn FnOnce() + Send>) {
        self.queue_job(work);
    }

    /// Replies as soon as nothing of the partition is in flight or queued for it, at the latest after
    /// `time`. At once for a partition the engine does not know, and when the user has as many waiting as one may have.
    pub fn wait_idle(&self, user: User, key: FileKey, time: Duration, reply: Reply) {
        let Ok(share) = self.bounds().waiters.take(user, 1) else {
            return reply(Ok(()));
        };
        let waiter = StatusWaiter { deadline: Instant::now() + time, reply, _share: share };
        self.with(|locked| match locked.state.keys.get(&key).copied() {
            Some(id) if locked.state.part(id).moving() => {
                locked.state.part(id).status_waiters.push(waiter);
                locked.state.status_waits.insert(id);
            }
            _ => locked.actions.answer(Some(waiter.reply), Ok(())),
        });
    }

    /// As [`Engine::wait_idle`], for the whole pool.
    pub fn wait_all_idle(&self, user: User, time: Duration, reply: Reply) {
        let Ok(share) = self.bounds().waiters.take(user, 1) else {
            return reply(Ok(()));
        };
        let waiter = StatusWaiter { deadline: Instant::now() + time, reply, _share: share };
        self.with(|locked| {
            if locked.state.pending_blocks + locked.state.queued > 0 {
                locked.state.idle_waiters.push(waiter);
            } else {
                locked.actions.answer(Some(waiter.reply), Ok(()));
            }
        });
    }

    /// Whether anything of any partition is in flight or queued for it.
    #[must_use]
    pub fn inflight(&self) -> bool {
        self.with(|locked| locked.state.pending_blocks + locked.state.queued > 0)
    }

    /// lseek(2) with SEEK_DATA or, with `hole`, SEEK_HOLE; bytes that are only in the pool are data.
    ///
    /// # Errors
    /// ENXIO at or beyond the end, or when no data follows; EBADF.
    pub fn seek(&self, handle: HandleId, offset: u64, hole: bool) -> Result<u64> {
        let (file, size, dirty) = self.with(|locked| {
            let id = locked.state.partition_of(handle)?;
            Ok((locked.state.file(id), locked.state.part(id).size, locked.dirty_ranges(id)))
        })?;
        if offset >= size {
            return Err(Errno::ENXIO);
        }
        let on_disk = |at: u64, hole: bool| match file.seek(at, hole) {
            Ok(found) => Ok(Some(found.min(size))),
            Err(Errno::ENXIO) => Ok(None),
            Err(errno) => Err(errno),
        };
        if !hole {
            let disk = on_disk(offset, false)?;
            let found = match (disk, dirty.next_in(offset)) {
                (Some(a), Some(b)) => a.min(b),
                (a, b) => a.or(b).ok_or(Errno::ENXIO)?,
            };
            return if found < size { Ok(found) } else { Err(Errno::ENXIO) };
        }
        let mut at = offset;
        while at < size {
            let past_dirty = dirty.end_around(at);
            if past_dirty > at {
                at = past_dirty;
                continue;
            }
            match on_disk(at, false)? {
                Some(data) if data == at => at = on_disk(at, true)?.unwrap_or(size),
                _ => return Ok(at),
            }
        }
        Ok(size)
    }

    /// Where the partition's transfers failed, for messages: the first byte that was not written, or not
    /// read.
    pub(crate) fn first_failure(&self, handle: HandleId, write: bool) -> Option<u64> {
        self.with(|locked| {
            let id = locked.state.partition_of(handle).ok()?;
            if !write {
                return locked.state.part(id).unreadable.next_in(0);
            }
            let (unit, pages) = (locked.state.shape.unit, locked.state.shape.pages());
            let blocks: Vec<(u64, BlockId)> = locked
                .state
                .part(id)
                .blocks
                .iter()
                .map(|(index, block_id)| (*index, *block_id))
                .collect();
            let failed = blocks
                .into_iter()
                .find(|(_, block_id)| locked.state.blocks[*block_id].failed.is_some())?;
            let run = locked.state.blocks[failed.1].dirty.run(0..pages)?;
            Some(failed.0 * locked.state.shape.block_size + run.start as u64 * unit)
        })
    }
}

impl Locked<'_> {
    pub(crate) fn info_of(&mut self, id: PartitionId) -> PartitionInfo {
        let (unit, block_size) = (self.state.shape.unit, self.state.shape.block_size);
        let part = self.state.part(id);
        let size = part.size;
        // The last page counts for the bytes it has.
        let slack = size.next_multiple_of(unit) - size;
        let last = size.saturating_sub(1);
        let page = (last % block_size / unit) as usize;
        let counts = (part.valid_pages, part.dirty_pages, part.inflight_pages);
        let (status, error) = (part.status(unit), part.error);
        let tail = part.blocks.get(&(last / block_size)).copied();
        let in_tail = tail.map_or((false, false, false), |block_id| {
            let block = &self.state.blocks[block_id];
            let dirty = block.dirty.contains(page) || block.writing.contains(page);
            let inflight = block.reading.contains(page) || block.writing.contains(page);
            (block.valid.contains(page), dirty, inflight)
        });
        let bytes = |pages: u64, with_tail: bool| pages * unit - if with_tail { slack } else { 0 };
        PartitionInfo {
            status,
            size,
            resident: bytes(counts.0, in_tail.0),
            dirty: bytes(counts.1, in_tail.1),
            inflight: bytes(counts.2, in_tail.2),
            error,
            stalled: self.state.stalled(id),
        }
    }

    pub(super) fn dirty_ranges(&mut self, id: PartitionId) -> RangeSet {
        let unit = self.state.shape.unit;
        let size = self.state.part(id).size;
        let mut ranges = RangeSet::default();
        let blocks: Vec<(u64, BlockId)> =
            self.state.part(id).blocks.iter().map(|(i, b)| (*i, *b)).collect();
        for (index, block_id) in blocks {
            let start = index * self.state.shape.block_size;
            let block = &mut self.state.blocks[block_id];
            let mut all = block.dirty.clone();
            all.add_all(&block.writing);
            let mut at = 0;
            while let Some(run) = all.run(at..block.pages) {
                at = run.end;
                let end = (start + run.end as u64 * unit).min(size);
                ranges.insert(start + run.start as u64 * unit..end);
            }
        }
        ranges
    }
}

/// Partitions looked at in one step under the lock.
const STEP: usize = 128;

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

/// Pairs of users and errors that are told apart; the partitions of further ones are nobody's.
const PAIRS_MAX: usize = 64;

/// Partitions that are not on stable storage because of an error.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unstored {
    /// Their owner; `None` when that is not known.
    pub uid: Option<u32>,
    /// The last error of each, by name.
    pub error: String,
    /// How many these are.
    pub partitions: u64,
}

impl Partition {
    /// The error of a partition with something that could not be stored, when it was tried last.
    fn unstored(&self) -> Option<Errno> {
        let is_unstored = self.failed_blocks > 0
            || !self.lost.is_empty()
            || self.settle_failed
            || self.sync_failed;
        (is_unstored && !self.unlinked).then(|| self.error.unwrap_or(self.last_errno))
    }
}

impl Engine {
    /// The partitions that could not be stored, by owner and error.
    #[must_use]
    pub fn unstored(&self) -> Vec<Unstored> {
        let mut counts: BTreeMap<(Option<u32>, String), u64> = BTreeMap::new();
        let mut from = 0;
        while let Some((files, next)) = self.with(|locked| some(locked.state, from)) {
            for (file, errno) in files {
                let mut pair = (owner(&*file), format!("{errno:?}"));
                if counts.len() >= PAIRS_MAX && !counts.contains_key(&pair) {
                    pair.0 = None;
                }
                *counts.entry(pair).or_default() += 1;
            }
            from = next;
        }
        let counted = |((uid, error), partitions)| Unstored { uid, error, partitions };
        counts.into_iter().map(counted).collect()
    }
}

type Files = Vec<(std::sync::Arc<dyn BackingFile>, Errno)>;

/// Those among the next partitions, and where to go on; `None` behind the last.
fn some(st: &mut State, from: usize) -> Option<(Files, usize)> {
    let end = st.partitions.places();
    let to = (from + STEP).min(end);
    let found = |id: PartitionId| Some((id, st.partitions.get(id)?.unstored()?));
    let ids: Vec<(PartitionId, Errno)> =
        (from..to).map(PartitionId::new).filter_map(found).collect();
    let files = ids.into_iter().map(|(id, errno)| (st.file(id), errno)).collect();
    (from < end).then_some((files, to))
}

/// The owner of a backing file. Asks the kernel.
pub(crate) fn owner(file: &dyn BackingFile) -> Option<u32> {
    super::lock::assert_outside("asking for an owner");
    let descriptor = file.descriptor()?;
    Some(std::fs::metadata(format!("/proc/self/fd/{descriptor}")).ok()?.uid())
}

/// The names, those of each user in turn: however many one has, the others' are among the first.
pub(crate) fn in_turns(named: Vec<(Option<u32>, String)>) -> Vec<String> {
    let mut users: BTreeMap<Option<u32>, VecDeque<String>> = BTreeMap::new();
    for (user, name) in named {
        users.entry(user).or_default().push_back(name);
    }
    let mut names = Vec::new();
    while !users.is_empty() {
        names.extend(users.values_mut().filter_map(VecDeque::pop_front));
        users.retain(|_, left| !left.is_empty());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_is_named_before_the_others_end() {
        let many = (0..3).map(|number| (Some(7), format!("a{number}")));
        let named = many.chain([(Some(8), "b".to_owned()), (None, "c".to_owned())]).collect();
        assert_eq!(in_turns(named), ["c", "a0", "b", "a1", "a2"]);
        assert!(in_turns(Vec::new()).is_empty());
    }
}
