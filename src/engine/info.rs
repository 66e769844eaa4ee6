//! What the engine tells of itself and of partitions.

use std::time::{Duration, SystemTime};

use crate::error::Errno;
use crate::metrics::Snapshot;

/// Where one partition's bytes are: DeepSpeed's three statuses, and the same strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PartitionStatus {
    /// All bytes are resident and nothing is in flight.
    Available,
    /// Not all bytes are resident, and nothing is in flight.
    NotAvailable,
    /// At least one block is under transfer or queued for it.
    Inflight,
}

impl PartitionStatus {
    /// The value of `user.swap.status`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            PartitionStatus::Available => "available",
            PartitionStatus::NotAvailable => "not_available",
            PartitionStatus::Inflight => "inflight",
        }
    }
}

/// When a partition was changed by its user. The backing file's own change time moves with each transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ChangeTime {
    /// What stat shows.
    pub shown: SystemTime,
    /// The backing file's own change time after the last change that we made of it; `None` while more are to come.
    pub settled: Option<SystemTime>,
}

impl ChangeTime {
    /// What stat shows of a backing file with this change time. A later one than ours is somebody else's.
    #[must_use]
    pub fn of(self, backing: SystemTime) -> SystemTime {
        match self.settled {
            Some(settled) if backing > settled => backing,
            _ => self.shown,
        }
    }
}

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
    /// ([`Engine::watch_for_stalls`](super::Engine::watch_for_stalls)).
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

/// Counters of what clients met, for `stats.json`.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct CacheStats {
    /// Read requests answered wholly from the pool.
    pub read_hits: u64,
    /// Read requests that waited for a transfer.
    pub read_misses: u64,
    /// Bytes read and written by clients.
    pub read_bytes: u64,
    /// See `read_bytes`.
    pub written_bytes: u64,
    /// Blocks dropped to make room.
    pub evictions: u64,
    /// Blocks of small partitions that were copied to a larger or smaller place.
    pub moves: u64,
    /// Bytes asked for ahead of readers.
    pub read_ahead_bytes: u64,
    /// Operations that had to wait for a buffer.
    pub buffer_waits: u64,
    /// Pages completed by a read before they could be written or read.
    pub edge_fills: u64,
    /// Failed transfers.
    pub errors: u64,
}

/// Bytes that clients have moved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Traffic {
    /// Read.
    pub read_bytes: u64,
    /// Written.
    pub written_bytes: u64,
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
