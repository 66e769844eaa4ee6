//! What can go wrong with a swap, and what to do about it.

use std::fmt;
use std::path::PathBuf;

use super::id::PartitionId;
use crate::engine::PartitionStatus;
use crate::error::Errno;

/// The outcome of a swapper's call.
pub type Result<T> = std::result::Result<T, SwapError>;

/// Which way bytes were to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Swap folder to memory.
    SwapIn,
    /// Memory to swap folder.
    SwapOut,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::SwapIn => "swap in",
            Direction::SwapOut => "swap out",
        })
    }
}

/// One partition whose transfer failed, or ended early and could not be continued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{direction} of {id} ({}): {errno:?} ({}) at offset {offset}", .path.display(), .errno.desc())]
pub struct TransferFailure {
    /// Which.
    pub id: PartitionId,
    /// Its file.
    pub path: PathBuf,
    /// Which way.
    pub direction: Direction,
    /// Byte offset in the file of the first byte known not to have been moved.
    pub offset: u64,
    /// What the device said; EIO for a transfer that moved nothing more, ENODATA for a file that has become
    /// shorter than its partition.
    pub errno: Errno,
}

/// Why a swapper's call did not do what it was asked. A call that fails before its transfers has changed
/// nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SwapError {
    /// Transfers failed; all others of the call have been done. What could not be written is still in its
    /// buffers and can be tried again; what could not be read is not available.
    #[error("{}", list(.0))]
    Transfers(Vec<TransferFailure>),
    /// Nothing is known of this partition.
    #[error(
        "partition {id} is unknown: call get_buffer or track with its number of elements first"
    )]
    Unknown {
        /// Which.
        id: PartitionId,
    },
    /// It is in another status than the call needs.
    #[error("{operation} of {id}: it is {}; {hint}", .status.as_str())]
    Status {
        /// The call.
        operation: &'static str,
        /// Which.
        id: PartitionId,
        /// What it is.
        status: PartitionStatus,
        /// What to call first.
        hint: &'static str,
    },
    /// It was changed and not swapped out since.
    #[error(
        "{operation} of {id}: it was changed and not swapped out; call swap_out_and_release, or discard"
    )]
    Unwritten {
        /// The call.
        operation: &'static str,
        /// Which.
        id: PartitionId,
    },
    /// Somebody looks at its bytes.
    #[error("{operation} of {id}: a view of it is in use; drop that first")]
    InUse {
        /// The call.
        operation: &'static str,
        /// Which.
        id: PartitionId,
    },
    /// Named twice in one call.
    #[error("{operation}: {id} is named twice")]
    Twice {
        /// The call.
        operation: &'static str,
        /// Which.
        id: PartitionId,
    },
    /// Too few buffers, and nothing in flight will give enough of them back.
    #[error(
        "{needed} buffers are needed, {available} are available and {held} held or reserved: release \
         partitions (swap_out_and_release, remove_partition_and_release_buffers), or choose a larger \
         pool_size"
    )]
    NoBuffers {
        /// Buffers for all partitions of the call.
        needed: usize,
        /// Free ones.
        available: usize,
        /// Held by available partitions, or reserved.
        held: usize,
    },
    /// More than the pool has.
    #[error(
        "{needed} buffers are needed and the pool has {total}: use swap_into_buffer, which takes any \
         size, or choose a larger pool_size"
    )]
    LargerThanPool {
        /// Buffers for all partitions of the call.
        needed: usize,
        /// All buffers.
        total: usize,
    },
    /// Another number of elements than the partition is known with.
    #[error("{id} has {known} elements, not {given}: forget it first to give it another size")]
    Numel {
        /// Which.
        id: PartitionId,
        /// What it is known with.
        known: u64,
        /// What was said now.
        given: u64,
    },
    /// No elements, or more than a file can hold.
    #[error("{id} cannot have {numel} elements: accepted is 1 to what a file can hold")]
    BadNumel {
        /// Which.
        id: PartitionId,
        /// What was asked for.
        numel: u64,
    },
    /// A name that cannot be a file's.
    #[error("{id:?} makes no file name: at most 255 bytes without '/'")]
    BadName {
        /// Which.
        id: PartitionId,
    },
    /// The file has another size than the partition.
    #[error(
        "{}: the file has {found} bytes, the partition {expected}: another number of elements, another \
         thread_count or a write that was cut short", .path.display()
    )]
    FileSize {
        /// The file.
        path: PathBuf,
        /// Its size in bytes.
        found: u64,
        /// Aligned size of the partition in bytes.
        expected: u64,
    },
    /// A caller's memory does not fit.
    #[error("{id}: the buffer has {found} bytes, {expected} are needed")]
    BufferLength {
        /// Which.
        id: PartitionId,
        /// Bytes given.
        found: u64,
        /// Bytes needed; for a destination of swap_into_buffer the aligned size is accepted too.
        expected: u64,
    },
    /// Not one buffer, or source, for each partition.
    #[error("{operation}: {partitions} partitions and {buffers} buffers")]
    Count {
        /// The call.
        operation: &'static str,
        /// Partitions named.
        partitions: usize,
        /// Buffers or sources given.
        buffers: usize,
    },
    /// The bytes do not divide into elements of the type asked for.
    #[error(
        "a view in elements of {size} bytes: the bytes are not aligned to that or no multiple of it"
    )]
    Elements {
        /// Bytes of the element asked for.
        size: usize,
    },
    /// Reserved buffers have not come back.
    #[error(
        "{count} reserved buffers are still out: drop them, or take them back with take_buffer"
    )]
    ReservedOut {
        /// How many.
        count: usize,
    },
    /// The engine, which belongs to somebody else, was stopped before.
    #[error("the engine was stopped: nothing can be swapped; make another swapper")]
    Stopped,
    /// Another swapper has the folder.
    #[error("{}: another swapper uses this folder (same dtype and rank)", .0.display())]
    FolderInUse(PathBuf),
    /// A call on the swap folder, or on a file before its transfers.
    #[error("{operation} {}: {errno:?} ({})", .path.display(), .errno.desc())]
    File {
        /// The call.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// What it said.
        errno: Errno,
    },
    /// A value of the options that cannot be.
    #[error("{name} is {value}, accepted is {accepted}")]
    Option {
        /// The option.
        name: &'static str,
        /// Its value.
        value: u64,
        /// What it may be.
        accepted: &'static str,
    },
    /// The pool or the device could not be made.
    #[error("{what}: {source}")]
    Start {
        /// Which.
        what: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

fn list(failures: &[TransferFailure]) -> String {
    match failures {
        [] => "no transfer failed".to_owned(),
        [only] => only.to_string(),
        [first, rest @ ..] => format!("{first}, and {} more", rest.len()),
    }
}
