//! Everything the engine's lock protects: partitions, blocks, lists, counters, waiting operations.
//!
//! All changes to a block go through [`State::edit`], which keeps the counters of its partition and of
//! the pool, and the list it is in, true to its page sets. Statuses are derived from those counters.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use super::actions::Actions;
use super::block::{Block, Counts, ListKind};
use super::ids::{
    BlockId, BufferId, FrameId, HandleId, Id, PartitionId, Places, Table, TransferId,
};
use super::info::{CacheStats, Traffic};
use super::intake::Intake;
use super::op::{DirectPart, SyncOp};
use super::partition::{FileKey, Handle, Partition, Resting, StatusWaiter};
use super::shape::Shape;
use super::trays::{Place, Trays, Weights};
use super::waiting::{Space, Waiting};
use super::watch::Watch;
use crate::aio::device::BackingFile;
use crate::error::{Errno, Result};

/// A list of blocks linked through their `previous` and `next`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct List {
    pub(crate) head: BlockId,
    pub(crate) tail: BlockId,
    pub(crate) length: usize,
}

impl List {
    const EMPTY: List = List { head: BlockId::NONE, tail: BlockId::NONE, length: 0 };
}

/// What a transfer under way is for. The file held at least `stored` bytes when it began, and what it holds beyond
/// is zero. A read is asked for again from `done` on where it was cut before a damaged page.
pub(crate) enum Purpose {
    Read {
        block_id: BlockId,
        pages: std::ops::Range<usize>,
        done: u64,
        stored: u64,
    },
    Fill {
        block_id: BlockId,
        page: usize,
        scratch: usize,
        stored: u64,
    },
    Write {
        block_id: BlockId,
        pages: std::ops::Range<usize>,
        bytes: u64,
    },
    Sync(SyncOp),
    /// Into memory that is not the pool's.
    Direct(DirectPart),
}

pub(crate) struct State {
    pub(crate) shape: Shape,
    /// Buffers of the pool.
    pub(crate) buffers: usize,
    /// The blocks that are in the pool, and unused places for more.
    pub(crate) blocks: Places<BlockId, Block>,
    pub(crate) unused: Vec<BlockId>,
    /// Buffers that are nobody's.
    pub(crate) free: Vec<BufferId>,
    /// The memory of each buffer. Buffers and intakes exchange theirs.
    pub(crate) frames: Places<BufferId, FrameId>,
    pub(crate) trays: Trays,
    /// What the blocks that have a buffer of their own add up to.
    pub(crate) plain: Weights,
    /// Intakes that nobody has.
    pub(crate) intakes: Vec<Intake>,
    pub(crate) clean: List,
    pub(crate) kept: List,
    pub(crate) dirty: List,
    pub(crate) failed: List,
    pub(crate) scratch: Vec<usize>,
    pub(crate) fill_queue: VecDeque<(BlockId, u64, u32)>,
    /// Blocks that are to go out and wait for the rest of a write.
    pub(crate) seamed: Vec<BlockId>,
    /// Partitions that have pages of unfinished writes on the device.
    pub(crate) unfinished: Vec<PartitionId>,
    pub(crate) partitions: Table<PartitionId, Partition>,
    pub(crate) keys: HashMap<FileKey, PartitionId>,
    /// Partitions without handles, by when the last was released.
    pub(crate) idle: BTreeMap<u64, PartitionId>,
    pub(crate) idle_clock: u64,
    /// Those of which only the bytes are kept.
    pub(crate) resting: Resting,
    /// Partitions forgotten so far.
    pub(crate) drops: u64,
    pub(crate) handles: Table<HandleId, Handle>,
    /// What each is for, and when it was asked for.
    pub(crate) transfers: Table<TransferId, (Purpose, Instant)>,
    pub(crate) watch: Watch,
    /// Operations waiting for buffers.
    pub(crate) waiting: Waiting,
    /// Since when, in milliseconds, the first of them waits.
    pub(crate) first_waits_since: Option<u64>,
    pub(crate) space: Space,
    pub(crate) writes_inflight: usize,
    /// Blocks under transfer or queued for it.
    pub(crate) pending_blocks: u64,
    /// Partitions whose backing file may not have the logical size, space or times yet; the keeper looks at these.
    pub(crate) unsettled: BTreeSet<PartitionId>,
    /// Partitions that have status waiters.
    pub(crate) status_waits: BTreeSet<PartitionId>,
    /// Partitions with a call on the backing file under way.
    pub(crate) calling: BTreeSet<PartitionId>,
    /// Those who wait until nothing of any partition is in flight.
    pub(crate) idle_waiters: Vec<StatusWaiter>,
    /// Buffers out of circulation.
    pub(crate) reserved: usize,
    /// Buffers that somebody has as plain memory.
    pub(crate) lent: BTreeSet<BufferId>,
    /// Swap-ins under way.
    pub(crate) queued: u64,
    /// Released blocks that have become clean and idle.
    pub(crate) released: Vec<BlockId>,
    pub(crate) stats: CacheStats,
    /// Handles whose swap-in starts later, and when they were opened.
    pub(crate) later: Vec<(HandleId, u64)>,
    /// By the number that [`Engine::set_group`](super::Engine::set_group) was given.
    pub(crate) groups: Vec<Traffic>,
    pub(crate) stopping: bool,
}

impl State {
    pub(crate) fn new(
        shape: Shape, buffers: usize, intakes: Vec<Intake>, scratch_pages: usize,
    ) -> State {
        State {
            shape,
            buffers,
            blocks: Places::new([]),
            unused: Vec::new(),
            free: (0..buffers).rev().map(BufferId::new).collect(),
            frames: Places::new((0..buffers).map(FrameId::new)),
            trays: Trays::new(buffers, shape.pages()),
            plain: Weights::default(),
            intakes,
            clean: List::EMPTY,
            kept: List::EMPTY,
            dirty: List::EMPTY,
            failed: List::EMPTY,
            scratch: (0..scratch_pages).collect(),
            fill_queue: VecDeque::new(),
            seamed: Vec::new(),
            unfinished: Vec::new(),
            partitions: Table::new(),
            keys: HashMap::new(),
            idle: BTreeMap::new(),
            idle_clock: 0,
            resting: Resting::default(),
            drops: 0,
            handles: Table::new(),
            transfers: Table::new(),
            watch: Watch::default(),
            waiting: Waiting::default(),
            first_waits_since: None,
            space: Space::default(),
            writes_inflight: 0,
            pending_blocks: 0,
            unsettled: BTreeSet::new(),
            status_waits: BTreeSet::new(),
            calling: BTreeSet::new(),
            idle_waiters: Vec::new(),
            reserved: 0,
            lent: BTreeSet::new(),
            queued: 0,
            released: Vec::new(),
            later: Vec::new(),
            stats: CacheStats::default(),
            groups: vec![Traffic::default()],
            stopping: false,
        }
    }

    /// The partition that a handle belongs to.
    pub(crate) fn partition_of(&self, handle: HandleId) -> Result<PartitionId> {
        self.handles.get(handle).map(|handle| handle.partition).ok_or(Errno::EBADF)
    }

    /// The partition at `id`, which somebody still refers to.
    pub(crate) fn part(&mut self, id: PartitionId) -> &mut Partition {
        self.partitions.get_mut(id).expect("a referenced partition stays in the table")
    }

    pub(crate) fn block(&mut self, block_id: BlockId) -> &mut Block {
        &mut self.blocks[block_id]
    }

    /// Changes a block, then brings counters and lists up to date.
    pub(crate) fn edit<R>(&mut self, block_id: BlockId, change: impl FnOnce(&mut Block) -> R) -> R {
        let block = &mut self.blocks[block_id];
        let before = block.counts();
        let result = change(block);
        let after = block.counts();
        let partition = block.partition;
        if before != after {
            self.account(partition, before, after);
        }
        self.relist(block_id);
        result
    }

    /// As [`State::edit`], for changes of who is busy with a block, which no counter depends on: these are the most
    /// frequent.
    pub(crate) fn engage<R>(
        &mut self, block_id: BlockId, change: impl FnOnce(&mut Block) -> R,
    ) -> R {
        let block = &mut self.blocks[block_id];
        let before = cfg!(debug_assertions).then(|| block.counts());
        let result = change(block);
        debug_assert!(before.is_none_or(|before| before == block.counts()));
        self.relist(block_id);
        result
    }

    fn account(&mut self, partition: PartitionId, before: Counts, after: Counts) {
        let delta = |counter: &mut u64, before: u64, after: u64| {
            *counter =
                (*counter + after).checked_sub(before).expect("a counter never goes negative");
        };
        let part = self.part(partition);
        delta(&mut part.valid_pages, before.valid, after.valid);
        delta(&mut part.dirty_pages, before.dirty, after.dirty);
        delta(&mut part.inflight_pages, before.inflight, after.inflight);
        delta(&mut part.pending_blocks, before.pending.into(), after.pending.into());
        delta(&mut part.failed_blocks, before.failed.into(), after.failed.into());
        part.account_epoch(before.epoch_dirty, after.epoch_dirty);
        part.account_epoch(before.epoch_writing, after.epoch_writing);
        delta(&mut self.pending_blocks, before.pending.into(), after.pending.into());
    }

    fn list(&mut self, kind: ListKind) -> &mut List {
        match kind {
            ListKind::Clean => &mut self.clean,
            ListKind::Kept => &mut self.kept,
            ListKind::Dirty => &mut self.dirty,
            ListKind::Failed => &mut self.failed,
            ListKind::None | ListKind::Slot => unreachable!("no list for blocks in none"),
        }
    }

    pub(crate) fn unlink(&mut self, block_id: BlockId) {
        let block = &mut self.blocks[block_id];
        let (kind, previous, next) = (block.list, block.previous, block.next);
        block.list = ListKind::None;
        if matches!(kind, ListKind::None | ListKind::Slot) {
            return;
        }
        if previous != BlockId::NONE {
            self.block(previous).next = next;
        }
        if next != BlockId::NONE {
            self.block(next).previous = previous;
        }
        let list = self.list(kind);
        list.length -= 1;
        if list.head == block_id {
            list.head = next;
        }
        if list.tail == block_id {
            list.tail = previous;
        }
    }

    fn append(&mut self, block_id: BlockId, kind: ListKind) {
        if matches!(kind, ListKind::None | ListKind::Slot) {
            self.block(block_id).list = kind;
            return;
        }
        let list = self.list(kind);
        let tail = std::mem::replace(&mut list.tail, block_id);
        list.length += 1;
        if tail == BlockId::NONE {
            list.head = block_id;
        } else {
            self.block(tail).next = block_id;
        }
        let block = self.block(block_id);
        block.list = kind;
        block.previous = tail;
        block.next = BlockId::NONE;
    }

    pub(crate) fn relist(&mut self, block_id: BlockId) {
        let block = &self.blocks[block_id];
        let proper = block.proper_list();
        if block.list != proper {
            self.unlink(block_id);
            self.append(block_id, proper);
        }
        let block = &self.blocks[block_id];
        if block.release && proper.evictable() {
            self.released.push(block_id);
        }
        self.recount(block_id);
    }

    /// Marks a block as just used.
    pub(crate) fn touch(&mut self, block_id: BlockId) {
        let kind = self.blocks[block_id].list;
        self.unlink(block_id);
        self.append(block_id, kind);
        if let Place::Slot { tray, .. } = self.blocks[block_id].place {
            self.trays.touch(tray);
        }
    }

    /// The block of a partition with this number, if it is in the pool.
    pub(crate) fn find(&mut self, partition: PartitionId, index: u64) -> Option<BlockId> {
        self.part(partition).blocks.get(&index).copied()
    }

    /// Lets the keeper settle a partition if it has to be.
    pub(crate) fn note_unsettled(&mut self, id: PartitionId) {
        if self.part(id).needs_settling() {
            self.unsettled.insert(id);
        }
    }

    /// Forgets a partition that nothing refers to any more; its descriptor is closed outside the lock.
    pub(crate) fn drop_if_unused(&mut self, partition: PartitionId, actions: &mut Actions) {
        if self.partitions.get(partition).is_some_and(Partition::droppable) {
            let part = self.partitions.remove(partition).expect("looked up just now");
            self.keys.remove(&part.key);
            self.idle.remove(&part.idle_since);
            self.drops += 1;
            actions.files.push(part.file);
        }
    }

    /// Hands everyone who waits for a change of this block back to be tried again.
    pub(crate) fn wake(&mut self, block_id: BlockId, actions: &mut Actions) {
        if !self.blocks[block_id].waiters.is_empty() {
            let waiters = std::mem::take(&mut self.block(block_id).waiters);
            actions.ready.extend(waiters);
            self.relist(block_id);
        }
    }

    pub(crate) fn file(&mut self, partition: PartitionId) -> Arc<dyn BackingFile> {
        self.part(partition).file.clone()
    }
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
