//! Changes that must be alone with a partition: truncate, fallocate, and settling the backing file.
//!
//! A change closes the partition's gate: operations that arrive later queue behind it, those already
//! inside finish, transfers drain. Then the metadata call runs on a job thread, what is in the pool is
//! brought in line with it, and the gate opens.
//!
//! Settling: the backing file gets the logical size and time, and what was reserved and never written is given back.

use crate::error::{Errno, Result};
use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use super::actions::label;
use super::core::{Engine, PAGE_SIZE};
use super::ids::{BlockId, HandleId, PartitionId};
use super::info::ChangeTime;
use super::locked::Locked;
use super::op::{BarrierOp, Change, Op, Reply};
use super::partition::Partition;
use super::shape::OFFSET_MAX;
use super::space::is_full;
use crate::aio::device::BackingFile;

const KEEP_SIZE: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH_HOLE: i32 = libc::FALLOC_FL_PUNCH_HOLE;
const ZERO_RANGE: i32 = libc::FALLOC_FL_ZERO_RANGE;

impl Change {
    fn excludes_reads(&self) -> bool {
        !matches!(self, Change::Settle { .. } | Change::Reserve(_))
    }
}

/// From where on nothing is reserved any more in a file that was cut to `size`. The filesystem keeps
/// whole blocks of its own; a page may be larger.
pub(super) fn beyond(size: u64, unit: u64) -> u64 {
    size.next_multiple_of(PAGE_SIZE) / unit * unit
}

impl Engine {
    /// Sets a partition's size, as ftruncate(2). Bytes beyond it are dropped, dirty or not; truncating
    /// to zero clears the partition's error. Fails with EFBIG beyond what off_t can address.
    pub fn truncate(&self, handle: HandleId, size: u64, reply: Reply) {
        if size > OFFSET_MAX {
            return reply(Err(Errno::EFBIG));
        }
        self.change(handle, Change::Truncate(size), reply);
    }

    /// fallocate(2) on a partition: allocation, KEEP_SIZE, PUNCH_HOLE and ZERO_RANGE; other modes fail
    /// with EOPNOTSUPP.
    pub fn allocate(&self, handle: HandleId, mode: i32, offset: u64, length: u64, reply: Reply) {
        let known = [0, KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE];
        let end = offset.checked_add(length).filter(|end| *end <= OFFSET_MAX);
        if !known.contains(&mode) {
            return reply(Err(Errno::EOPNOTSUPP));
        }
        if end.is_none() {
            return reply(Err(Errno::EFBIG));
        }
        self.change(handle, Change::Allocate { mode, offset, length }, reply);
    }

    pub(crate) fn change(&self, handle: HandleId, change: Change, reply: Reply) {
        self.with(|locked| match locked.state.partition_of(handle) {
            Ok(partition) => {
                // The kernel lets none in while a write(2) is under way.
                locked.close_all_seams(partition);
                let op = BarrierOp::new(partition, change, Some(reply));
                locked.enter_barrier(op);
            }
            Err(errno) => locked.actions.answer(Some(reply), Err(errno)),
        });
    }
}

impl Locked<'_> {
    /// A new operation must queue.
    pub(crate) fn gate_closed(&mut self, id: PartitionId, write: bool) -> bool {
        self.state.part(id).barrier.as_ref().is_some_and(|op| write || op.change.excludes_reads())
    }

    /// Lets a change enter that was queued at the gate.
    pub(crate) fn enter_queued(&mut self, op: Box<BarrierOp>) {
        let id = op.partition;
        self.state.part(id).jobs -= 1;
        self.enter_barrier(op);
        self.state.drop_if_unused(id, self.actions);
    }

    pub(crate) fn enter_barrier(&mut self, op: Box<BarrierOp>) {
        let id = op.partition;
        if self.state.part(id).barrier.is_some() {
            self.state.part(id).gate_queue.push_back(Op::Barrier(op));
            return;
        }
        self.state.part(id).barrier = Some(op);
        self.try_barrier(id);
    }

    /// Runs the change that waits at the gate once it is alone.
    pub(crate) fn try_barrier(&mut self, id: PartitionId) {
        let part = self.state.part(id);
        let Some(barrier) = &part.barrier else { return };
        let flushes_first = barrier.change.wants_clean() && part.active_writes == 0;
        if flushes_first && !part.barrier_running && self.flushes_for_room(id) {
            return; // Comes back here when a transfer has ended.
        }
        let part = self.state.part(id);
        let Some(barrier) = &part.barrier else { return };
        let drained = part.active_writes == 0
            && part.writes == 0
            && (!barrier.change.excludes_reads() || (part.active_reads == 0 && part.reads == 0));
        if part.barrier_running || !drained {
            return;
        }
        if let Change::Allocate { mode, offset, length } = barrier.change
            && mode & (PUNCH_HOLE | ZERO_RANGE) != 0
        {
            match self.fill_edges(id, offset, offset + length) {
                Ok(false) => {}
                Ok(true) => return, // Comes back here when the edges are whole.
                Err(errno) => {
                    self.state.part(id).jobs += 1;
                    return self.end_barrier(id, Err(errno));
                }
            }
        }
        self.state.part(id).barrier_running = true;
        self.run_barrier(id);
    }

    /// Completes partial pages at the borders of a range. True when it had to start something; the
    /// errno when a page cannot be completed.
    fn fill_edges(&mut self, id: PartitionId, from: u64, to: u64) -> Result<bool> {
        let mut started = false;
        for offset in [from, to] {
            // A page that goes as a whole, and one beside, may stay as they are: perhaps they cannot be completed.
            if offset.is_multiple_of(self.state.shape.unit) {
                continue;
            }
            let index = self.state.shape.block_of(offset);
            let page = self.state.shape.pages_of(index, offset, offset + 1).start;
            let Some(block_id) = self.state.find(id, index) else {
                continue;
            };
            let block = &self.state.blocks[block_id];
            if block.partial(page).is_some() {
                if let Some(errno) = block.failed {
                    return Err(errno);
                }
                self.fill(block_id, page);
                started = true;
            }
        }
        Ok(started)
    }

    fn run_barrier(&mut self, id: PartitionId) {
        self.state.begin_call(id);
        let part = self.state.part(id);
        part.jobs += 1;
        let (file, old, disk_size) = (part.file.clone(), part.size, part.disk_size);
        let change = &part.barrier.as_ref().expect("the caller looked").change;
        match *change {
            Change::Truncate(size) => self.job(move |engine| {
                let mut result = file.set_len(size);
                // Growing the file gives back nothing of what lies beyond: nobody here made it longer.
                if result.is_ok() && disk_size < size && size <= old {
                    result = file.set_len(size);
                }
                drop(file);
                engine.with(|locked| {
                    if result.is_ok() {
                        locked.truncated(id, size);
                    }
                    locked.end_barrier(id, result);
                });
            }),
            Change::Allocate { mode, offset, length } => {
                // A file that is longer in the pool gets its length when its bytes get there, not one in between.
                let mode = if offset + length <= old { mode | KEEP_SIZE } else { mode };
                self.job(move |engine| {
                    let result = file.allocate(mode, offset, length);
                    drop(file);
                    engine.with(|locked| {
                        let range = offset..offset + length;
                        match result {
                            Ok(()) => locked.allocated(id, mode, range),
                            Err(errno) => locked.not_allocated(id, mode, range, errno),
                        }
                        locked.end_change(id, result);
                    });
                });
            }
            Change::Reserve(size) => self.job(move |engine| {
                let result = file.reserve(0, size);
                drop(file);
                engine.with(|locked| {
                    locked.space_reserved(id, size, result);
                    locked.end_change(id, result);
                });
            }),
            Change::Discard => {
                drop(file);
                self.discarded(id);
                self.end_barrier(id, Ok(()));
            }
            Change::Settle { .. } => self.run_settle(id, file),
        }
    }

    /// As [`Engine::end_barrier`], of one that needed space: it waits while files hold some ahead.
    fn end_change(&mut self, id: PartitionId, result: Result<()>) {
        let waits = self.state.part(id).barrier.as_ref().expect("it was running").space_waits;
        let is_refused = result.is_err_and(is_full);
        if !is_refused || !self.may_get_space(id, waits) {
            return self.end_barrier(id, result);
        }
        let mut op = self.open_gate(id);
        op.space_waits += 1;
        // As those that queue at the gate.
        self.state.part(id).jobs += 1;
        self.state.space.waiters.push(Op::Barrier(op));
        self.take_space_back();
        self.restart_flushes(id);
        self.quiet_down(id);
    }

    /// Lets those in who queue at the gate; the change that was inside is the caller's.
    fn open_gate(&mut self, id: PartitionId) -> Box<BarrierOp> {
        if self.state.part(id).barrier_running {
            self.state.end_call(id);
        }
        let part = self.state.part(id);
        part.barrier_running = false;
        part.jobs -= 1;
        let op = part.barrier.take().expect("it was running");
        let queued = std::mem::take(&mut part.gate_queue);
        // A change speaks of the partition itself, which must be there when it enters again; reads and
        // writes go through their handles.
        let changes = queued.iter().filter(|op| matches!(op, Op::Barrier(_)));
        part.jobs += changes.count() as u32;
        self.actions.ready.extend(queued);
        op
    }

    /// Opens the gate again.
    pub(super) fn end_barrier(&mut self, id: PartitionId, result: Result<()>) {
        let op = self.open_gate(id);
        self.actions.answer(op.reply, result);
        if let Change::Settle { then, for_room } = op.change {
            for op in then {
                self.after_transfers(op);
            }
            if for_room {
                self.gave_back(id);
            }
        }
        self.restart_flushes(id);
        self.quiet_down(id);
        self.state.drop_if_unused(id, self.actions);
    }

    /// Starts the write-outs that the change held back.
    fn restart_flushes(&mut self, id: PartitionId) {
        let blocks: Vec<BlockId> = self.state.part(id).blocks.values().copied().collect();
        for block_id in blocks {
            self.write_out(block_id);
        }
    }

    fn truncated(&mut self, id: PartitionId, size: u64) {
        let (unit, block_size) = (self.state.shape.unit, self.state.shape.block_size);
        let old = self.state.part(id).size;
        if size < old {
            self.drop_pages(id, size..u64::MAX);
        }
        self.state.part(id).size = size;
        self.state.resized(id, old);
        let part = self.state.part(id);
        let cut = size <= old || size <= part.disk_size;
        part.disk_size = size;
        part.written_end = part.written_end.min(size);
        part.written.remove(size.next_multiple_of(block_size)..u64::MAX);
        if cut {
            // Cutting a file gives back what lies beyond its new end, also when its size stays.
            let rest = beyond(size, unit)..u64::MAX;
            part.reserved.remove(rest.clone());
            part.ahead.remove(rest.clone());
            part.user.remove(rest);
        }
        if size < old {
            part.lost.remove(size.next_multiple_of(unit)..u64::MAX);
            part.unreadable.remove(size.next_multiple_of(unit)..u64::MAX);
        }
        part.shape_changed();
        let emptied: Vec<BlockId> =
            part.blocks.range(size.div_ceil(block_size)..).map(|(_, block_id)| *block_id).collect();
        for block_id in emptied {
            if self.state.blocks[block_id].idle() {
                self.state.detach(block_id, self.actions);
            }
        }
        let part = self.state.part(id);
        if size == 0 {
            part.error = None;
        }
        part.clear_error_if_mended();
    }

    /// Forgets what the pool holds of a byte range that now is zero in the swap folder; at its borders,
    /// zeroes the bytes of pages that stay.
    fn drop_pages(&mut self, id: PartitionId, range: Range<u64>) {
        let (unit, block_size) = (self.state.shape.unit, self.state.shape.block_size);
        let first = self.state.shape.block_of(range.start);
        let blocks: Vec<BlockId> =
            self.state.part(id).blocks.range(first..).map(|(_, block_id)| *block_id).collect();
        for block_id in blocks {
            let start = self.state.blocks[block_id].index * block_size;
            if start >= range.end {
                break;
            }
            let from = range.start.saturating_sub(start).min(block_size);
            let to = (range.end - start).min(block_size);
            let room = self.state.blocks[block_id].pages;
            let whole = from.div_ceil(unit) as usize..((to / unit) as usize).min(room);
            for edge in
                [from..to.min(from.next_multiple_of(unit)), (to / unit * unit).max(from)..to]
            {
                self.zero_edge(block_id, edge);
            }
            self.state.edit(block_id, |block| {
                if whole.start < whole.end {
                    block.valid.remove(whole.clone());
                    block.dirty.remove(whole.clone());
                    block.partials.retain(|p| !whole.contains(&p.page));
                }
                if block.dirty.is_empty() {
                    block.flush = false;
                    block.failed = None;
                }
            });
        }
    }

    /// Zeroes bytes within one page, if the pool holds it.
    fn zero_edge(&mut self, block_id: BlockId, bytes: Range<u64>) {
        if bytes.is_empty() || bytes.end - bytes.start >= self.state.shape.unit {
            return;
        }
        let page = (bytes.start / self.state.shape.unit) as usize;
        let block = &self.state.blocks[block_id];
        if block.valid.contains(page) {
            self.engine.memory.zero(self.state, block_id, bytes);
        } else if let Some(at) = block.partial(page) {
            // Only a truncate comes here: what is new beyond its end goes.
            let end = (bytes.start - page as u64 * self.state.shape.unit) as usize;
            self.state.edit(block_id, |block| {
                block.partials[at].end = block.partials[at].end.min(end);
                if block.partials[at].start >= block.partials[at].end {
                    block.partials.remove(at);
                    block.dirty.remove(page..page + 1);
                }
            });
        }
    }

    /// An allocation was refused; the filesystem keeps what it found until it ran out.
    fn not_allocated(&mut self, id: PartitionId, mode: i32, range: Range<u64>, errno: Errno) {
        if is_full(errno) && mode & PUNCH_HOLE == 0 {
            let unit = self.state.shape.unit;
            let part = self.state.part(id);
            let end = part.size.next_multiple_of(unit);
            part.hold_ahead(range.start / unit * unit..range.end.next_multiple_of(unit), end);
        }
    }

    fn allocated(&mut self, id: PartitionId, mode: i32, range: Range<u64>) {
        let unit = self.state.shape.unit;
        if mode & (PUNCH_HOLE | ZERO_RANGE) != 0 {
            self.drop_pages(id, range.clone());
            let whole = range.start.next_multiple_of(unit)..range.end / unit * unit;
            let part = self.state.part(id);
            part.lost.remove(whole.clone());
            part.unreadable.remove(whole);
            part.clear_error_if_mended();
        }
        let part = self.state.part(id);
        let outward = range.start / unit * unit..range.end.next_multiple_of(unit);
        if mode & PUNCH_HOLE != 0 {
            part.punched(range.clone(), outward, unit);
        } else {
            part.ahead.remove(outward.clone());
            part.user.insert(outward.clone());
            part.reserved.insert(outward);
        }
        if mode & KEEP_SIZE == 0 {
            let old = part.size;
            part.size = part.size.max(range.end);
            part.disk_size = part.disk_size.max(range.end);
            self.state.resized(id, old);
        }
        // The call has set the backing file's own time.
        let part = self.state.part(id);
        part.shape_changed();
    }
}

impl Partition {
    /// A hole was made, of which `outward` are the pages. Beyond its end a backing file keeps what it has: what is
    /// there of a file that is longer in the pool is given back when that has arrived.
    fn punched(&mut self, range: Range<u64>, outward: Range<u64>, unit: u64) {
        let whole = range.start.next_multiple_of(unit)..range.end.min(self.size) / unit * unit;
        let missed = self.disk_size.next_multiple_of(unit).max(whole.start)..whole.end;
        let kept: Vec<Range<u64>> = self.reserved.within(missed).collect();
        self.reserved.remove(outward);
        if whole.start < whole.end {
            self.ahead.remove(whole.clone());
            self.user.remove(whole);
        }
        for range in kept {
            self.reserved.insert(range.clone());
            self.ahead.insert(range);
        }
    }
}

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// What a settling does to the backing file.
struct Work {
    size: u64,
    /// The file gets its size, which gives back what lies beyond.
    cut: bool,
    /// Growing a file gives nothing back: what lies beyond its new end goes with a second call.
    twice: bool,
    /// What the user allocated beyond the end, and keeps.
    kept: Vec<Range<u64>>,
    /// Within the file.
    unwritten: Vec<Range<u64>>,
    modified: Option<SystemTime>,
    /// The change time to show, where it is not the backing file's.
    changed: Option<SystemTime>,
}

impl Work {
    fn of(part: &Partition, unit: u64) -> Work {
        let size = part.size;
        let end = size.next_multiple_of(unit);
        let is_clean = part.clean();
        let has_more = part.ahead.end() > beyond(size, unit);
        // With dirty bytes left the file still grows. Without, it may be too short: bytes at its end were punched or
        // lost before they were written.
        let cut = part.disk_size > size || (is_clean && (has_more || part.disk_size < size));
        // Beyond the file's end there is nothing to punch; its last page goes as a whole.
        let reach = if cut || part.disk_size == size {
            end
        } else {
            part.disk_size.min(size) / unit * unit
        };
        Work {
            size,
            cut,
            twice: has_more && part.disk_size < size,
            kept: part.user.within(size..u64::MAX).collect(),
            unwritten: part.ahead.within(0..reach).collect(),
            modified: part.modified.filter(|_| is_clean && part.failed_blocks == 0),
            changed: part.changed.map(|changed| changed.shown),
        }
    }

    /// Returns the change times to show and of the backing file, where its times were set.
    fn run(&self, file: &dyn BackingFile, is_stored: bool) -> Result<Option<ChangeTime>> {
        let shapes = self.cut || !self.unwritten.is_empty();
        // A file that nobody has changed keeps its time.
        let before = (shapes && is_stored).then(|| file.status()).transpose()?;
        if self.cut {
            file.set_len(self.size)?;
            if self.twice {
                file.set_len(self.size)?;
            }
            for range in &self.kept {
                file.reserve(range.start, range.end - range.start)?;
            }
        }
        for range in &self.unwritten {
            match file.allocate(PUNCH, range.start, range.end - range.start) {
                // It could not have been reserved either, or is lent for ever.
                Err(Errno::EOPNOTSUPP) => {}
                result => result?,
            }
        }
        let Some(modified) = self.modified.or(before.map(|status| status.modified)) else {
            return Ok(None);
        };
        let shown = self.changed.or(before.map(|status| status.changed)).unwrap_or(modified);
        let settled = file.set_times(modified, shown)?;
        Ok(Some(ChangeTime { shown, settled: Some(settled) }))
    }
}

impl Locked<'_> {
    /// Makes the backing file's size and modification time the logical ones, and gives back space that
    /// was reserved ahead of a writer.
    pub(super) fn run_settle(&mut self, id: PartitionId, file: Arc<dyn BackingFile>) {
        let unit = self.state.shape.unit;
        let part = self.state.part(id);
        let work = Work::of(part, unit);
        let is_stored = part.modified.is_none();
        self.job(move |engine| {
            let result = work.run(&*file, is_stored);
            if let Err(errno) = &result {
                let name = label(&*file);
                log::error!(partition = name.as_str(); "setting size or time of {name} failed: {errno:?} ({})", errno.desc());
            }
            drop(file);
            engine.with(|locked| {
                let part = locked.state.part(id);
                part.settle_queued = false;
                match result {
                    Ok(changed) => part.settled(&work, unit, changed),
                    Err(errno) => {
                        part.record_error(errno);
                        part.settle_failed = true;
                    }
                }
                locked.end_barrier(id, result.map(drop));
            });
        });
    }

    /// Settles a partition that nobody has open, as soon as it is clean.
    pub(crate) fn settle_if_due(&mut self, id: PartitionId) {
        let part = self.state.part(id);
        if part.handles == 0 && !part.unlinked {
            self.settle(id);
        }
    }

    /// Settles a partition unless it has something to write first.
    pub(crate) fn settle(&mut self, id: PartitionId) {
        let part = self.state.part(id);
        let due = part.clean() && part.needs_settling() && part.failed_blocks == 0;
        if due && !part.settle_queued && !part.settle_failed {
            part.settle_queued = true;
            let change = Change::Settle { then: Vec::new(), for_room: false };
            self.enter_barrier(BarrierOp::new(id, change, None));
        }
    }
}

impl Partition {
    fn settled(&mut self, work: &Work, unit: u64, changed: Option<ChangeTime>) {
        for range in &work.unwritten {
            self.reserved.remove(range.clone());
            self.ahead.remove(range.clone());
        }
        if work.cut {
            let rest = beyond(work.size, unit)..u64::MAX;
            self.disk_size = work.size;
            self.reserved.remove(rest.clone());
            self.ahead.remove(rest);
            for range in &work.kept {
                self.reserved.insert(range.start.next_multiple_of(unit)..range.end / unit * unit);
            }
        }
        if work.modified.is_some() && self.modified == work.modified {
            self.modified = None;
        }
        let has_nothing_else = self.disk_size == self.size && self.modified.is_none();
        if self.clean() && self.size == work.size && has_nothing_else {
            // What is left now would be left by every other settling too.
            self.ahead.remove(0..u64::MAX);
        }
        if self.modified.is_none()
            && let Some(set) = changed
        {
            // Its user may have changed attributes meanwhile.
            let known = self.changed.get_or_insert(set);
            known.settled = known.settled.max(set.settled);
        }
    }
}
