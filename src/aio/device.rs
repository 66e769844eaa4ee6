//! The seam between the swap engine and whatever moves the bytes.
//!
//! A transfer owns its memory from submission to completion: the lease travels into the device with
//! it and comes back with the completion, so nothing in flight can be freed or reused. A device never
//! blocks the submitter and never drops a transfer; a dead device completes everything with an error.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::error::{Errno, Result};
use crate::pool::{ReadLease, WriteLease};

/// What a transfer does, with the memory it needs.
#[derive(Debug)]
pub enum Action {
    /// Swap folder to memory: fill the leased bytes from `offset` on.
    Read(WriteLease),
    /// Memory to swap folder: store the leased bytes from `offset` on.
    Write(ReadLease),
    /// Put everything written to the file before on stable storage: fdatasync, or fsync.
    Sync {
        /// Leave out attributes that are not needed to read the data back.
        data_only: bool,
    },
}

impl Action {
    /// Bytes to move; 0 for a sync.
    #[must_use]
    pub fn length(&self) -> usize {
        match self {
            Action::Read(lease) => lease.len(),
            Action::Write(lease) => lease.len(),
            Action::Sync { .. } => 0,
        }
    }

    /// Where the memory is; 0 for a sync.
    pub(super) fn address(&self) -> usize {
        match self {
            Action::Read(lease) => lease.address().addr(),
            Action::Write(lease) => lease.address().addr(),
            Action::Sync { .. } => 0,
        }
    }

    /// Cuts a read or write in two: its first `length` bytes, and the rest.
    pub(super) fn split_front(self, length: usize) -> (Self, Self) {
        match self {
            Action::Read(lease) => {
                let (front, rest) = lease.split_front(length);
                (Action::Read(front), Action::Read(rest))
            }
            Action::Write(lease) => {
                let (front, rest) = lease.split_front(length);
                (Action::Write(front), Action::Write(rest))
            }
            Action::Sync { .. } => unreachable!("a sync has no bytes"),
        }
    }

    /// Undoes [`split_front`](Self::split_front).
    pub(super) fn join(self, rest: Self) -> Self {
        match (self, rest) {
            (Action::Read(front), Action::Read(rest)) => Action::Read(front.join(rest)),
            (Action::Write(front), Action::Write(rest)) => Action::Write(front.join(rest)),
            (front, rest) => unreachable!("{front:?} and {rest:?} are of two transfers"),
        }
    }
}

/// One operation on one backing file. Offset, length and memory of reads and writes are multiples of
/// the device's [`Geometry::alignment`], except for the length of a write of less than a page at the end of a file:
/// the device stores exactly these bytes.
#[derive(Debug)]
pub struct Transfer {
    /// Chosen by the submitter, handed back untouched.
    pub token: u64,
    /// What to do.
    pub action: Action,
    /// The file it is done to.
    pub file: Arc<dyn BackingFile>,
    /// Byte offset in the file.
    pub offset: u64,
}

/// What read(2) and write(2) move at most in one call (`MAX_RW_COUNT`), in whole pages.
const TRANSFER_BYTES_MAX: usize = 0x7FFF_F000;

impl Transfer {
    /// Asserts what the type promises.
    pub(super) fn check(&self, geometry: Geometry) {
        // Only the end of a write may lie anywhere.
        let (length, tail) = match &self.action {
            Action::Read(lease) => (lease.len(), false),
            Action::Write(lease) => (lease.len(), true),
            Action::Sync { .. } => return,
        };
        assert!(length > 0, "a transfer of no bytes");
        assert!(length <= TRANSFER_BYTES_MAX, "a transfer of {length} bytes");
        let mask = geometry.alignment - 1;
        debug_assert_eq!(self.action.address() & mask, 0, "memory of transfer {}", self.token);
        debug_assert!(tail || length & mask == 0, "length of transfer {}", self.token);
        debug_assert_eq!(self.offset & mask as u64, 0, "offset of transfer {}", self.token);
    }
}

/// A finished [`Transfer`].
#[derive(Debug)]
pub struct Completion {
    /// The transfer, its leases with it.
    pub transfer: Transfer,
    /// Bytes moved (0 for a sync). Fewer than asked is a short transfer. [`Whole`](super::whole::Whole) continues these,
    /// so that above it only reads that met the end of their file are short.
    pub result: Result<usize>,
}

/// Receives completions. Called on a device thread, which it must not block for long.
pub trait CompletionSink: Send + Sync {
    /// Takes finished transfers, in no particular order.
    fn complete(&self, done: &mut Vec<Completion>);
}

/// Fixed properties of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes; offset and length of every transfer are multiples of it, and nobody else writes the pages of 4 KiB
    /// that its memory lies in meanwhile, or touches those that it fills. A power of two, at least 512; or
    /// 1 where the submitter sees to each file's alignment itself ([`Handle`](crate::deepspeed::Handle)).
    pub alignment: usize,
    /// Whether transfers bypass the page cache.
    pub direct: bool,
}

/// Counters of a device since its start, for `stats.json` and for tests of the aio settings.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct DeviceStats {
    /// `io_uring` or `threads` (or what a test device calls itself).
    pub engine: &'static str,
    /// Calls that submitted at least one transfer to the kernel.
    pub submit_calls: u64,
    /// Transfers handed to the kernel.
    pub submitted: u64,
    /// Most transfers handed over by one call.
    pub batch_max: u64,
    /// Most transfers under way at once, on one thread.
    pub inflight_max: u64,
    /// Completions taken, errors included.
    pub completed: u64,
    /// Completions that carried an error.
    pub failed: u64,
    /// Completed reads and their bytes.
    pub reads: u64,
    /// See `reads`.
    pub read_bytes: u64,
    /// Completed writes and their bytes.
    pub writes: u64,
    /// See `writes`.
    pub written_bytes: u64,
    /// Completed syncs.
    pub syncs: u64,
    /// Whether the pool's memory is registered with the ring.
    pub registered_buffers: bool,
    /// Whether backing files are registered with the ring.
    pub registered_files: bool,
}

/// How long [`InlineReader::advance`] waits for one of the reads under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    No,
    /// No longer than this.
    For(Duration),
    /// However long it takes.
    Ever,
}

/// Small reads that one thread begins and waits for itself: who receives them, so that nobody has to be woken. Nobody
/// else takes their completions, so the thread does little else while there are some. Dropped, it waits for them.
pub trait InlineReader: Debug {
    /// Reads that have begun and are not delivered.
    fn under_way(&self) -> usize;

    /// Begins the reads in `batch`, waits for one that is under way, and delivers what has completed. What cannot be
    /// begun this way stays in `batch`: it is to be submitted to the device.
    fn advance(&mut self, batch: &mut Vec<Transfer>, wait: Wait);
}

/// Moves bytes. See the module documentation for its duties.
pub trait Device: Send + Sync + Debug {
    /// Alignment and kind.
    fn geometry(&self) -> Geometry;

    /// Names the receiver of all completions. Called once, before the first submission.
    fn connect(&self, sink: Arc<dyn CompletionSink>);

    /// Takes every transfer out of `batch` and queues it. Never blocks on the device. May be called
    /// from any thread, also from inside [`CompletionSink::complete`].
    fn submit(&self, batch: &mut Vec<Transfer>);

    /// A way for the calling thread to begin reads that it waits for itself; `None` where there is none.
    fn inline_reader(&self) -> Option<Box<dyn InlineReader>> {
        None
    }

    /// Counters since the start.
    fn stats(&self) -> DeviceStats;

    /// Waits until everything queued has completed, then ends the device's threads. Later submissions
    /// complete with ENODEV. Idempotent. Must not be called from a device thread.
    fn shutdown(&self);
}

/// What [`BackingFile::status`] reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileStatus {
    /// Length in bytes.
    pub size: u64,
    /// Allocated bytes (512 × st_blocks).
    pub allocated: u64,
    /// Time of last modification.
    pub modified: SystemTime,
    /// Time of last change, as its user made it: that of transfers does not count where it is known.
    pub changed: SystemTime,
    /// Hard links left.
    pub links: u64,
}

/// One file of the swap folder, open for transfers. All calls here are synchronous metadata calls that
/// may take the filesystem's locks; the engine makes them outside its own.
pub trait BackingFile: Send + Sync + Debug {
    /// Tells files apart within the process, for registration tables. Never reused.
    fn id(&self) -> u64;

    /// The open descriptor; `None` for files that live in memory.
    fn descriptor(&self) -> Option<std::os::fd::RawFd>;

    /// Itself, for devices that only know one kind of file.
    fn as_any(&self) -> &dyn std::any::Any;

    /// Itself, where it stands around the file that [`as_any`](Self::as_any) gives.
    fn wrapper(&self) -> Option<&dyn std::any::Any> {
        None
    }

    /// Whether writes are possible with this descriptor.
    fn writable(&self) -> bool;

    /// Size, allocation, times.
    fn status(&self) -> Result<FileStatus>;

    /// Guarantees space for `[offset, offset + length)` without changing the size. Where the
    /// filesystem cannot (EOPNOTSUPP) it succeeds without a guarantee.
    fn reserve(&self, offset: u64, length: u64) -> Result<()>;

    /// Sets the length; gives back space beyond it.
    fn set_len(&self, size: u64) -> Result<()>;

    /// Sets the time of last modification, and notes the time of last change that is to be shown. Returns the file's
    /// own change time, which no call sets.
    fn set_times(&self, modified: SystemTime, changed: SystemTime) -> Result<SystemTime>;

    /// fallocate(2) with the caller's mode, on the exact byte range.
    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()>;

    /// The first offset at or after `offset` that holds data (`hole` false) or lies in a hole (`hole`
    /// true), as lseek(2) SEEK_DATA and SEEK_HOLE. ENXIO beyond the end or when there is none.
    fn seek(&self, offset: u64, hole: bool) -> Result<u64>;

    /// fdatasync (`data_only`) or fsync, waiting for it.
    fn sync(&self, data_only: bool) -> Result<()>;

    /// The next write of these bytes stores what has come of a write(2), in the midst of a page, and more is to come: a
    /// crash before [`end_piece`](Self::end_piece) leaves torn bytes. Takes no lock of the filesystem.
    fn begin_piece(&self, _bytes: std::ops::Range<u64>) {}

    /// No more is to come, or it is there already. With `stable` that is put on stable storage too, some time later.
    fn end_piece(&self, _bytes: std::ops::Range<u64>, _stable: bool) {}
}

/// Builds the completion of a transfer that never reached a device.
#[must_use]
pub fn refused(transfer: Transfer, errno: Errno) -> Completion {
    Completion { transfer, result: Err(errno) }
}
