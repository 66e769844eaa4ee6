//! Operations on partitions, from arrival to reply. An operation that cannot go on is parked, by value,
//! where the event that lets it go on will find it; it is then tried again from where it stopped.

use crate::concurrent::Mutex;
use crate::error::{Errno, Result};
use crate::pool::{ReadLease, WriteLease};
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::Arc;

use super::ids::{BlockId, BufferId, HandleId, PartitionId};
use super::intake::Payload;
use crate::shares::{Share, User};

/// Receives a read's bytes, as consecutive runs that are valid during the call, or its errno.
pub type ReadReply = Box<dyn FnOnce(Result<&[&[u8]]>) + Send>;

/// Receives the number of bytes that a write stored, or its errno.
pub type WriteReply = Box<dyn FnOnce(Result<usize>) + Send>;

/// Receives the outcome of everything else.
pub type Reply = Box<dyn FnOnce(Result<()>) + Send>;

/// Who sent a piece of a write.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// Its thread, as the kernel numbers it.
    pub thread: u32,
    /// The pieces of a call may come in any order (O_DIRECT).
    pub parallel: bool,
    /// The piece is as long as one that the kernel cuts: of as many pages of memory as a request may have. More may come.
    pub is_cut: bool,
}

/// How a write is to be done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Manner {
    /// It is answered when it is on stable storage.
    pub stable: bool,
    /// Whose call it may be a piece of.
    pub caller: Option<Caller>,
}

/// Buffers that were handed to an operation and hold nothing yet.
pub(crate) type Granted = SmallVec<[BufferId; 2]>;

pub(crate) struct ReadOp {
    pub(crate) partition: PartitionId,
    pub(crate) handle: Option<HandleId>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    /// It has passed the partition's gate and counts as active.
    pub(crate) entered: bool,
    /// Its missing pages were asked for; what is missing now has failed.
    pub(crate) requested: bool,
    pub(crate) sequential: bool,
    pub(crate) pinned: SmallVec<[BlockId; 2]>,
    pub(crate) granted: Granted,
    pub(crate) reply: ReadReply,
}

pub(crate) struct WriteOp {
    pub(crate) partition: PartitionId,
    pub(crate) handle: Option<HandleId>,
    pub(crate) offset: u64,
    pub(crate) length: usize,
    pub(crate) done: usize,
    pub(crate) payload: Payload,
    pub(crate) entered: bool,
    pub(crate) granted: Granted,
    /// The page it waits for to be completed, by block and page, and the partition's failed transfers
    /// when it began to.
    pub(crate) filling: Option<(u64, usize, u64)>,
    /// Failed transfers of the partition before it entered.
    pub(crate) errors_before: u64,
    /// How often it has waited for space.
    pub(crate) space_waits: u8,
    /// Whose handle it came through.
    pub(crate) user: User,
    /// What it takes while it waits with its bytes.
    pub(crate) parked: Option<(Share, Option<Share>)>,
    pub(crate) manner: Manner,
    pub(crate) reply: WriteReply,
}

impl WriteOp {
    pub(crate) fn new(
        handle: HandleId, offset: u64, length: usize, payload: Payload, reply: WriteReply,
    ) -> WriteOp {
        WriteOp {
            partition: PartitionId::NONE,
            handle: Some(handle),
            offset,
            length,
            done: 0,
            payload,
            entered: false,
            granted: Granted::new(),
            filling: None,
            errors_before: u64::MAX,
            space_waits: 0,
            user: User::OWN,
            parked: None,
            manner: Manner::default(),
            reply,
        }
    }
}

/// A swap-in under way: asks for a partition's blocks one after the other.
pub(crate) struct FetchOp {
    pub(crate) partition: PartitionId,
    /// The next block.
    pub(crate) next: u64,
    /// Who asked for it.
    pub(crate) user: User,
    /// Releases of the partition when it began: a later one ends it.
    pub(crate) releases: u64,
    pub(crate) granted: Granted,
}

/// A change that must be alone with the partition.
pub(crate) enum Change {
    Truncate(u64),
    Allocate {
        mode: i32,
        offset: u64,
        length: u64,
    },
    /// Get space from the file's start on; not while the file is cut.
    Reserve(u64),
    /// Forget what the pool holds.
    Discard,
    /// Make the backing file's size, space and time the logical ones; excludes writes only.
    Settle {
        then: Vec<SyncOp>,
        /// Somebody needs the space that is held ahead: what is dirty goes out first.
        for_room: bool,
    },
}

impl Change {
    /// It runs when nothing is dirty any more.
    pub(crate) fn wants_clean(&self) -> bool {
        matches!(self, Change::Settle { for_room: true, .. })
    }
}

pub(crate) struct BarrierOp {
    pub(crate) partition: PartitionId,
    pub(crate) change: Change,
    /// How often it has waited for space.
    pub(crate) space_waits: u8,
    pub(crate) reply: Option<Reply>,
}

impl BarrierOp {
    pub(crate) fn new(
        partition: PartitionId, change: Change, reply: Option<Reply>,
    ) -> Box<BarrierOp> {
        Box::new(BarrierOp { partition, change, space_waits: 0, reply })
    }
}

/// Waits for everything written before its epoch, then for stable storage.
pub(crate) struct SyncOp {
    pub(crate) partition: PartitionId,
    pub(crate) handle: Option<HandleId>,
    pub(crate) epoch: u64,
    /// Failed transfers of the partition before it began: it reports what came since, whoever else has.
    pub(crate) errors_before: u64,
    pub(crate) data_only: bool,
    /// Stop after the transfers: the data is in the swap folder, not yet on stable storage.
    pub(crate) written_only: bool,
    /// It stores a piece of a write(2), after which the next one comes.
    pub(crate) of_piece: bool,
    pub(crate) reply: Reply,
}

/// What a holder wants of the blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    /// Swapped in, and kept in the pool. Others read and write them meanwhile.
    Keep,
    /// As `Keep`, without swapping in: what is not there is about to be filled.
    Blank,
    /// Swapped in, and not changed by anybody while held.
    Read,
    /// Swapped in, and the holder's alone; dirty when given back.
    Update,
    /// As `Update`, without swapping in: the holder overwrites every byte. What they hold until then is
    /// what the buffers held before.
    Fill,
}

impl Access {
    pub(super) fn swaps_in(self) -> bool {
        matches!(self, Access::Keep | Access::Read | Access::Update)
    }

    pub(super) fn writes(self) -> bool {
        matches!(self, Access::Update | Access::Fill)
    }
}

/// Receives the hold, or the errno of what it met.
pub(crate) type HoldReply = Box<dyn FnOnce(Result<Claim>) + Send>;

/// A hold being made.
pub(crate) struct HoldOp {
    pub(crate) partition: PartitionId,
    pub(super) handle: HandleId,
    pub(super) access: Access,
    pub(super) bytes: Range<u64>,
    /// It has passed the gate and counts as active.
    pub(crate) entered: bool,
    /// Its missing pages were asked for; what is missing now has failed.
    pub(super) requested: bool,
    /// The buffers of its blocks, in order; pinned.
    pub(super) buffers: Vec<Option<BlockId>>,
    pub(crate) granted: Granted,
    pub(crate) reply: HoldReply,
}

/// The claims of a hold.
#[derive(Debug)]
pub(crate) enum Leases {
    None,
    Read(Vec<ReadLease>),
    Write(Vec<WriteLease>),
}

/// The blocks of a hold that was made: pinned, and claimed unless it only keeps.
#[derive(Debug)]
pub(crate) struct Claim {
    pub(super) partition: PartitionId,
    pub(super) access: Access,
    pub(super) bytes: Range<u64>,
    pub(super) buffers: Vec<BlockId>,
    pub(super) leases: Leases,
    /// The partition did not reach beyond when it was claimed.
    pub(super) to_the_end: bool,
    /// Drop the blocks when they are given back; dirty ones once they are written out.
    pub(super) release: bool,
}

/// What became of one block's worth of a direct read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The memory holds the bytes.
    Done,
    /// In the pool: to be read from there.
    Resident,
    Failed(Errno),
}

/// A block's worth of a direct read, given back.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) offset: u64,
    pub(crate) lease: WriteLease,
    pub(crate) outcome: Outcome,
}

pub(crate) type DirectReply = Box<dyn FnOnce(Vec<Piece>) + Send>;

/// A direct read that has not passed the gate.
pub(crate) struct DirectOp {
    pub(crate) handle: HandleId,
    pub(super) offset: u64,
    pub(super) lease: WriteLease,
    pub(super) reply: DirectReply,
}

/// One that has.
pub(super) struct DirectJob {
    pub(super) partition: PartitionId,
    pub(super) left: usize,
    pub(super) pieces: Vec<Piece>,
    pub(super) reply: Option<DirectReply>,
}

/// A transfer of a job.
pub(crate) struct DirectPart {
    pub(super) job: Arc<Mutex<DirectJob>>,
    /// Where the piece begins.
    pub(super) offset: u64,
    /// The file held at least this much when it began.
    pub(super) stored: u64,
}

pub(crate) type LendReply = Box<dyn FnOnce(Vec<(BufferId, WriteLease)>) + Send>;

/// Buffers being taken out of circulation.
pub(crate) struct LendOp {
    pub(crate) count: usize,
    pub(crate) granted: Granted,
    pub(super) reply: LendReply,
}

/// A parked operation.
pub(crate) enum Op {
    Read(Box<ReadOp>),
    Write(Box<WriteOp>),
    Barrier(Box<BarrierOp>),
    Fetch(Box<FetchOp>),
    Hold(Box<HoldOp>),
    Direct(Box<DirectOp>),
    Lend(Box<LendOp>),
}

impl std::fmt::Debug for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Op::Read(op) => write!(f, "Read({:?}, {}+{})", op.partition, op.offset, op.length),
            Op::Write(op) => write!(f, "Write({:?}, {}+{})", op.partition, op.offset, op.length),
            Op::Fetch(op) => write!(f, "Fetch({:?}, {})", op.partition, op.next),
            Op::Barrier(op) => write!(f, "Barrier({:?})", op.partition),
            Op::Hold(op) => write!(f, "Hold({:?})", op.partition),
            Op::Direct(op) => write!(f, "Direct({:?})", op.handle),
            Op::Lend(op) => write!(f, "Lend({})", op.count),
        }
    }
}

impl Op {
    pub(crate) fn granted(&mut self) -> Option<&mut Granted> {
        match self {
            Op::Read(op) => Some(&mut op.granted),
            Op::Write(op) => Some(&mut op.granted),
            Op::Fetch(op) => Some(&mut op.granted),
            Op::Hold(op) => Some(&mut op.granted),
            Op::Lend(op) => Some(&mut op.granted),
            Op::Barrier(_) | Op::Direct(_) => None,
        }
    }
}
