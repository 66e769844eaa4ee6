//! What can be asked of the engine: statuses, sizes, counts. None of it waits for a transfer.

use std::time::{Duration, Instant, SystemTime};

use super::core::Engine;
use super::ids::{BlockId, HandleId, PartitionId};
use super::locked::Locked;
use super::op::Reply;
use super::pages::RangeSet;
use super::partition::{ChangeTime, FileKey, PartitionStatus, StatusWaiter};
use super::state::CacheStats;
use crate::aio::device::{DeviceStats, Geometry};
use crate::error::{Errno, Result};
use crate::shares::User;

/// Where a partition's bytes are. All sizes in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PartitionInfo {
    /// See [`PartitionStatus`].
    pub status: PartitionStatus,
    /// Logical size.
    pub size: u64,
    /// Bytes in the pool.
    pub resident: u64,
    /// Bytes newer than the swap folder, those being written included.
    pub dirty: u64,
    /// Bytes under transfer.
    pub inflight: u64,
    /// The last failed transfer's errno, until mended.
    pub error: Option<Errno>,
    /// How long an answer of the device has been waited for, once that is too long
    /// ([`Engine::watch_for_stalls`]).
    pub stalled: Option<Duration>,
}

/// What stat must show instead of the backing file's attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Overlay {
    /// Logical size in bytes.
    pub size: u64,
    /// Modification time, when the backing file's is not the logical one.
    pub modified: Option<SystemTime>,
    /// When it was changed last, where the backing file's change time does not tell.
    pub changed: Option<ChangeTime>,
    /// Bytes that are reserved and that nobody has written, which st_blocks must not count.
    pub excess: u64,
}

/// Counts of buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct PoolInfo {
    /// pool_size / block_size.
    pub buffers: u64,
    /// Free, or holding a clean block that can be dropped.
    pub available: u64,
    /// Of these, the ones that hold nothing.
    pub free: u64,
    /// Cut into slots for small partitions.
    pub trays: u64,
    /// Out of circulation: reserved on request, or lent out as plain memory.
    pub reserved: u64,
    /// Holding bytes newer than the swap folder.
    pub dirty: u64,
    /// Under transfer.
    pub inflight: u64,
    /// Bytes of one.
    pub buffer_size: u64,
}

/// Counts of partitions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct PartitionCounts {
    /// Known to the engine: open, resident or under transfer.
    pub known: u64,
    /// Of these, small ones that are only known by their bytes: they hold no descriptor.
    pub resting: u64,
    /// Open handles.
    pub handles: u64,
    /// With bytes newer than the swap folder.
    pub dirty: u64,
    /// With a transfer under way or queued.
    pub inflight: u64,
    /// With a transfer error that is not mended.
    pub failed: u64,
    /// With a transfer that the device does not answer.
    pub stalled: u64,
}

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
        self.queue_job(Box::new(move |_| work()));
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
                .map(|(index, buffer)| (*index, *buffer))
                .collect();
            let failed = blocks
                .into_iter()
                .find(|(_, buffer)| locked.state.blocks[*buffer].failed.is_some())?;
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
        let in_tail = tail.map_or((false, false, false), |buffer| {
            let block = &self.state.blocks[buffer];
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
        for (index, buffer) in blocks {
            let start = index * self.state.shape.block_size;
            let block = &mut self.state.blocks[buffer];
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
