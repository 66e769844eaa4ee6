//! What the engine knows of one partition while it is open, resident or under transfer.
//!
//! Partitions at rest: small ones that nobody has open, whole in the pool and in the swap folder alike.
//!
//! Of these only the bytes and a few words are kept: no descriptor, no block, no partition. That is what
//! lets a pool hold tens of thousands of them. Who opens one brings the file along, as for a partition that
//! the engine has never seen, and finds the bytes in their slot. They cannot go stale meanwhile: all changes
//! of a file in the swap folder come through the engine, which forgets the bytes of a file that was unlinked.

use crate::aio::device::BackingFile;
use crate::error::Errno;
use crate::file_clock;
use crate::shares::{Openers, Share, User};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use super::block::Unfinished;
use super::ids::{BlockId, BufferId, PartitionId, RestingId, Table};
use super::info::{ChangeTime, PartitionInfo, PartitionStatus, Traffic};
use super::op::{BarrierOp, Op, Reply, SyncOp};
use super::pages::RangeSet;

/// Identity of a file of the swap folder: device, inode and generation, so that a reused inode number
/// is another file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileKey {
    /// st_dev.
    pub dev: u64,
    /// st_ino.
    pub ino: u64,
    /// Tells apart files that had the same inode number one after the other; 0 when unknown.
    pub generation: u64,
}

/// Waits until nothing of a partition is in flight, or until its time is up.
pub(crate) struct StatusWaiter {
    pub(crate) deadline: Instant,
    pub(crate) reply: Reply,
    pub(crate) _share: Share,
}

pub(crate) struct Partition {
    pub(crate) key: FileKey,
    pub(crate) file: Arc<dyn BackingFile>,
    /// Logical size: what stat shows.
    pub(crate) size: u64,
    /// Length of the backing file now.
    pub(crate) disk_size: u64,
    /// Nothing from here on was ever written to the backing file: it reads as zeros, and need not be read.
    pub(crate) written_end: u64,
    /// Byte ranges, in whole blocks, that may have been written to the backing file; all others are holes.
    pub(crate) written: RangeSet,
    /// Byte ranges whose space is known to be allocated.
    pub(crate) reserved: RangeSet,
    /// Byte ranges, in whole pages, that we allocated, or tried to, and that nobody has written: to be given back.
    pub(crate) ahead: RangeSet,
    /// Byte ranges that the user allocated (fallocate); kept beyond the end, too.
    pub(crate) user: RangeSet,
    /// What it holds ahead is being given back, because somebody has no space.
    pub(crate) gives_back: bool,
    /// Modification time, while it differs from the backing file's.
    pub(crate) modified: Option<SystemTime>,
    /// When its user changed it last, where the backing file's change time tells of something else.
    pub(crate) changed: Option<ChangeTime>,
    pub(crate) blocks: BTreeMap<u64, BlockId>,
    pub(crate) handles: u32,
    /// Whose handles they are.
    pub(crate) openers: Openers,
    /// What its last openers still have of the descriptors: there are more idle partitions than there should be.
    pub(crate) lingering: smallvec::SmallVec<[Share; 1]>,
    /// When the last handle was released: its number among the idle ones; 0 when it has a handle.
    pub(crate) idle_since: u64,
    /// Jobs under way that will come back to this partition.
    pub(crate) jobs: u32,
    /// Its last name is gone.
    pub(crate) unlinked: bool,
    /// Without a name, but somebody has found it by one and may open it still.
    pub(crate) known: bool,
    pub(crate) active_reads: u32,
    pub(crate) active_writes: u32,
    /// The change that wants to be, or is, alone.
    pub(crate) barrier: Option<Box<BarrierOp>>,
    pub(crate) barrier_running: bool,
    /// Arrived behind the barrier.
    pub(crate) gate_queue: VecDeque<Op>,
    pub(crate) reads: u32,
    pub(crate) writes: u32,
    pub(crate) valid_pages: u64,
    pub(crate) dirty_pages: u64,
    pub(crate) inflight_pages: u64,
    pub(crate) pending_blocks: u64,
    pub(crate) failed_blocks: u64,
    /// The epoch of writes arriving now; an fsync ends it.
    pub(crate) epoch: u64,
    /// Blocks not written out yet, by the epoch of their oldest bytes.
    pub(crate) epochs: BTreeMap<u64, u64>,
    pub(crate) sync_ops: Vec<SyncOp>,
    /// A device sync is due: something was written since the last.
    pub(crate) unsynced: bool,
    /// The last device sync failed.
    pub(crate) sync_failed: bool,
    /// Errno of the last failed transfer, until rewritten.
    pub(crate) error: Option<Errno>,
    /// Failed transfers so far, in both directions.
    pub(crate) failures: u64,
    /// Errno of the last time that bytes could not be stored, mended or not, for handles that have not reported it yet.
    pub(crate) last_errno: Errno,
    /// Grows every time that bytes could not be stored; handles remember how far they have reported. What could not be
    /// read is not among them: its reader was counted, if there was one.
    pub(crate) error_count: u64,
    /// Pages whose bytes were dropped after a failed write, or could not be read.
    pub(crate) lost: RangeSet,
    pub(crate) unreadable: RangeSet,
    pub(crate) status_waiters: Vec<StatusWaiter>,
    /// Swap-ins under way.
    pub(crate) queued: u32,
    /// Requests to release it so far.
    pub(crate) releases: u64,
    pub(crate) written_ms: u64,
    /// Some block of it may have seams.
    pub(crate) has_seams: bool,
    /// Pages that went out with their seams open.
    pub(crate) unfinished: Vec<Unfinished>,
    pub(crate) settle_queued: bool,
    /// Settling failed; it waits for the next fsync.
    pub(crate) settle_failed: bool,
    pub(crate) traffic: Traffic,
    /// Whose traffic its own is, too.
    pub(crate) group: usize,
    /// Calls on the backing file under way that may have to wait for the device, and since when.
    pub(crate) calls: u32,
    pub(crate) call_since_ms: u64,
}

impl Partition {
    pub(crate) fn new(key: FileKey, file: Arc<dyn BackingFile>) -> Partition {
        Partition {
            key,
            file,
            size: 0,
            disk_size: 0,
            written_end: 0,
            written: RangeSet::default(),
            reserved: RangeSet::default(),
            ahead: RangeSet::default(),
            user: RangeSet::default(),
            gives_back: false,
            modified: None,
            changed: None,
            blocks: BTreeMap::new(),
            handles: 0,
            openers: Openers::default(),
            lingering: smallvec::SmallVec::new(),
            idle_since: 0,
            jobs: 0,
            unlinked: false,
            known: false,
            active_reads: 0,
            active_writes: 0,
            barrier: None,
            barrier_running: false,
            gate_queue: VecDeque::new(),
            reads: 0,
            writes: 0,
            valid_pages: 0,
            dirty_pages: 0,
            inflight_pages: 0,
            pending_blocks: 0,
            failed_blocks: 0,
            epoch: 0,
            epochs: BTreeMap::new(),
            sync_ops: Vec::new(),
            unsynced: false,
            sync_failed: false,
            error: None,
            failures: 0,
            last_errno: Errno::EIO,
            error_count: 0,
            lost: RangeSet::default(),
            unreadable: RangeSet::default(),
            status_waiters: Vec::new(),
            queued: 0,
            releases: 0,
            written_ms: 0,
            has_seams: false,
            unfinished: Vec::new(),
            settle_queued: false,
            settle_failed: false,
            traffic: Traffic::default(),
            group: 0,
            calls: 0,
            call_since_ms: 0,
        }
    }

    /// Nothing refers to it and nothing of it is in the pool. Lost bytes are remembered as long as the
    /// file has a name, or their next reader would get stale ones.
    pub(crate) fn droppable(&self) -> bool {
        self.blocks.is_empty() && self.leavable()
    }

    /// As [`Partition::droppable`], but for what is in the pool.
    pub(crate) fn leavable(&self) -> bool {
        self.handles == 0
            && self.jobs == 0
            && self.active_reads + self.active_writes == 0
            && self.barrier.is_none()
            && self.gate_queue.is_empty()
            && self.sync_ops.is_empty()
            && self.status_waiters.is_empty()
            && ((self.unlinked && !self.known)
                || (!self.needs_settling() && self.lost.is_empty() && self.error.is_none()))
    }

    /// Returns true when nobody can reach it any more: it has neither a name nor a handle, and nobody will open it.
    pub(crate) fn gone(&self) -> bool {
        self.unlinked && !self.known && self.handles == 0
    }

    /// Its bytes were changed in the pool.
    pub(crate) fn changed_now(&mut self) {
        let now = file_clock::now();
        self.modified = Some(now);
        self.changed = Some(ChangeTime { shown: now, settled: None });
    }

    /// Bytes that end at `end` are new in the pool. `pages` are the bytes of the pages around them.
    pub(crate) fn written_in_pool(&mut self, end: u64, pages: Range<u64>, now_ms: u64) {
        self.size = self.size.max(end);
        self.changed_now();
        self.written_ms = now_ms;
        if !self.ahead.is_empty() {
            self.ahead.remove(pages.clone());
        }
        if !self.lost.is_empty() || !self.unreadable.is_empty() {
            self.lost.remove(pages.clone());
            self.unreadable.remove(pages);
        }
    }

    /// A call of the user's has changed the backing file, and its times with it: they stay, unless transfers are to
    /// come.
    pub(crate) fn shape_changed(&mut self) {
        (self.modified, self.changed) = (None, None);
        if !self.clean() {
            self.changed_now();
        }
    }

    /// A call of the user's has given the backing file this change time.
    pub(crate) fn attributes_changed(&mut self, backing: SystemTime) {
        if let Some(changed) = &mut self.changed {
            changed.shown = changed.shown.max(backing);
            changed.settled = changed.settled.map(|settled| settled.max(backing));
        }
    }

    /// Nothing waits to be written, or is being written.
    pub(crate) fn clean(&self) -> bool {
        self.dirty_pages == 0 && self.writes == 0
    }

    /// The backing file's size, allocation or time is not yet the logical one.
    pub(crate) fn needs_settling(&self) -> bool {
        self.disk_size != self.size || self.modified.is_some() || !self.ahead.is_empty()
    }

    /// No write-out may start: a change is running, or runs as soon as transfers have drained.
    pub(crate) fn writes_held(&self) -> bool {
        let Some(op) = &self.barrier else { return false };
        let is_alone = self.active_reads + self.active_writes == 0;
        self.barrier_running || (is_alone && !op.change.wants_clean())
    }

    pub(crate) fn account_epoch(&mut self, before: Option<u64>, after: Option<u64>) {
        if before == after {
            return;
        }
        if let Some(epoch) = after {
            *self.epochs.entry(epoch).or_insert(0) += 1;
        }
        if let Some(epoch) = before {
            let left = self.epochs.get_mut(&epoch).expect("an epoch counted before");
            *left -= 1;
            if *left == 0 {
                self.epochs.remove(&epoch);
            }
        }
    }

    /// Everything written in `epoch` or before is out of the pool's hands, or has failed.
    pub(crate) fn epoch_done(&self, epoch: u64) -> bool {
        self.epochs.first_key_value().is_none_or(|(oldest, _)| *oldest > epoch)
    }

    /// Something is under transfer, or queued for it.
    pub(crate) fn moving(&self) -> bool {
        self.pending_blocks > 0 || self.queued > 0
    }

    pub(crate) fn status(&self, unit: u64) -> PartitionStatus {
        if self.moving() {
            PartitionStatus::Inflight
        } else if self.valid_pages == self.size.div_ceil(unit) {
            PartitionStatus::Available
        } else {
            PartitionStatus::NotAvailable
        }
    }

    /// The end of what a read must find in the backing file: what lies beyond the logical size may be cut
    /// meanwhile, and the file may grow.
    pub(crate) fn stored(&self) -> u64 {
        self.disk_size.min(self.size)
    }

    /// A transfer has failed.
    pub(crate) fn note_failure(&mut self, errno: Errno) {
        self.error = Some(errno);
        self.failures += 1;
    }

    /// Something could not be stored: every handle has to report it.
    pub(crate) fn record_error(&mut self, errno: Errno) {
        self.note_failure(errno);
        self.owe_error(errno);
    }

    /// As [`Partition::record_error`], of a failure that is noted already.
    pub(crate) fn owe_error(&mut self, errno: Errno) {
        self.last_errno = for_clients(errno);
        self.error_count += 1;
    }

    /// Forgets the error once nothing is left that it speaks of.
    pub(crate) fn clear_error_if_mended(&mut self) {
        let whole = self.lost.is_empty() && self.unreadable.is_empty();
        if self.failed_blocks == 0 && whole && !self.sync_failed && !self.settle_failed {
            self.error = None;
        }
    }

    pub(crate) fn lost_in(&self, bytes: &Range<u64>) -> bool {
        !self.lost.is_empty() && self.lost.overlaps(bytes)
    }
}

/// What the calls of clients fail with: damaged and torn blocks are EIO to them.
pub(crate) fn for_clients(errno: Errno) -> Errno {
    match errno {
        Errno::EBADMSG | Errno::EUCLEAN => Errno::EIO,
        errno => errno,
    }
}

impl Handle {
    /// Who opened it.
    pub(crate) fn user(&self) -> User {
        self.share.user()
    }
}

/// An open file: what it may do and what it has been told.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) partition: PartitionId,
    /// Whose it is, and what it takes.
    pub(crate) share: Share,
    /// Errors of the partition this handle has reported, or that are older than it.
    pub(crate) errors_seen: u64,
    /// Where a sequential reader would go on.
    pub(crate) expected: u64,
    /// Bytes that it has read without a jump since the last one.
    pub(crate) in_a_row: u64,
    /// Read-ahead has been asked for up to here.
    pub(crate) ahead_to: u64,
    /// Opened for reading and writing, and has not started its swap-in yet: how often the partition had been released.
    pub(crate) swap_in_due: Option<u64>,
}

#[derive(Debug)]
pub(super) struct AtRest {
    pub(super) key: FileKey,
    pub(super) size: u64,
    pub(super) tray: BufferId,
    pub(super) slot: u32,
    pub(super) kept: bool,
}

/// All partitions at rest.
#[derive(Debug)]
pub(crate) struct Resting {
    pub(super) files: Table<RestingId, AtRest>,
    pub(super) keys: HashMap<FileKey, RestingId>,
    /// Whose shares those take that are kept, by number, where they take any.
    pub(super) keepers: HashMap<RestingId, Share>,
}

impl Default for Resting {
    fn default() -> Resting {
        Resting { files: Table::new(), keys: HashMap::new(), keepers: HashMap::new() }
    }
}

impl Resting {
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// As the partition that it would be if it were awake.
    pub(crate) fn info(&self, key: FileKey) -> Option<PartitionInfo> {
        let at_rest = self.files.get(*self.keys.get(&key)?)?;
        Some(PartitionInfo {
            status: PartitionStatus::Available,
            size: at_rest.size,
            resident: at_rest.size,
            dirty: 0,
            inflight: 0,
            error: None,
            stalled: None,
        })
    }

    /// Some of them, at most `count`.
    pub(crate) fn some(&self, count: usize) -> Vec<FileKey> {
        self.files.iter().take(count).map(|(_, at_rest)| at_rest.key).collect()
    }
}
