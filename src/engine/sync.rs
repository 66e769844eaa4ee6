//! Getting written: close, fsync, O_SYNC and the whole mount.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::actions::label;
use super::core::Engine;
use super::ids::{BlockId, HandleId, PartitionId};
use super::locked::Locked;
use super::op::{BarrierOp, Change, Reply, SyncOp};
use super::status::{in_turns, owner};
use crate::concurrent::Mutex;
use crate::error::Result;

impl Engine {
    /// close(2): queues every dirty block for writing and reports a transfer error the handle has not
    /// reported yet. With `wait`, replies only when everything is in the swap folder.
    pub fn close(&self, handle: HandleId, wait: bool, reply: Reply) {
        self.with(|locked| {
            let id = match locked.state.partition_of(handle) {
                Ok(id) => id,
                Err(errno) => return locked.actions.answer(Some(reply), Err(errno)),
            };
            if wait {
                let handle = Some(handle);
                let op = SyncOp {
                    partition: id,
                    handle,
                    epoch: 0,
                    errors_before: u64::MAX,
                    data_only: true,
                    written_only: true,
                    of_piece: false,
                    reply,
                };
                return locked.start_sync_op(op);
            }
            locked.flush_partition(id);
            let result = locked.take_error(id, Some(handle));
            locked.actions.answer(Some(reply), result);
        });
    }

    /// fsync(2), or fdatasync with `data_only`: replies when everything written before is on stable
    /// storage, the size with it, or with the error that a transfer of it met. Blocks that failed before
    /// are tried again.
    pub fn sync(&self, handle: HandleId, data_only: bool, reply: Reply) {
        self.with(|locked| match locked.state.partition_of(handle) {
            Ok(partition) => {
                // The kernel lets none in while a write(2) is under way.
                locked.close_all_seams(partition);
                let handle = Some(handle);
                let op = SyncOp {
                    partition,
                    handle,
                    epoch: 0,
                    errors_before: u64::MAX,
                    data_only,
                    written_only: false,
                    of_piece: false,
                    reply,
                };
                locked.start_sync_op(op);
            }
            Err(errno) => locked.actions.answer(Some(reply), Err(errno)),
        });
    }

    /// Writes out every partition and waits for stable storage; `reply` gets the backing paths of those
    /// that could not be. Names and attributes are the caller's to synchronize.
    pub fn sync_all(&self, reply: FailedReply) {
        let group = Arc::new(Group {
            left: AtomicUsize::new(1),
            failed: Mutex::new(Vec::new()),
            reply: Mutex::new(Some(reply)),
        });
        self.with(|locked| {
            let due: Vec<PartitionId> = locked
                .state
                .partitions
                .iter()
                .filter(|(_, part)| {
                    let open = part.needs_settling() || part.failed_blocks > 0 || part.writes > 0;
                    let unsynced = part.unsynced || !part.unfinished.is_empty();
                    !part.unlinked && (part.dirty_pages > 0 || unsynced || open)
                })
                .map(|(id, _)| id)
                .collect();
            group.left.fetch_add(due.len(), Ordering::AcqRel);
            for partition in due {
                let (group, file) = (group.clone(), locked.state.file(partition));
                let reply = Box::new(move |result: Result<()>| {
                    if let Err(errno) = result {
                        let name = format!("{}: {errno:?}", label(&*file));
                        group.failed.lock().push((owner(&*file), name));
                    }
                    group.end_one();
                });
                let (handle, epoch, errors_before) = (None, 0, u64::MAX);
                let op = SyncOp {
                    partition,
                    handle,
                    epoch,
                    errors_before,
                    data_only: false,
                    written_only: false,
                    of_piece: false,
                    reply,
                };
                locked.start_sync_op(op);
            }
        });
        group.end_one();
    }
}

impl Locked<'_> {
    /// Ends the current epoch of a partition and writes everything of it out, failed blocks again.
    pub(crate) fn start_sync_op(&mut self, mut op: SyncOp) {
        let id = op.partition;
        op.epoch = self.state.part(id).epoch;
        op.errors_before = op.errors_before.min(self.state.part(id).error_count);
        self.state.part(id).epoch += 1;
        self.state.part(id).settle_failed = false;
        self.state.part(id).sync_ops.push(op);
        let epoch = self.state.part(id).epoch - 1;
        self.write_all(id, epoch);
        self.quiet_down(id);
        self.state.drop_if_unused(id, self.actions);
    }

    /// Queues a partition's dirty blocks for writing, except those that failed: fsync tries these again.
    pub(crate) fn flush_partition(&mut self, id: PartitionId) {
        if self.state.part(id).dirty_pages == 0 {
            return;
        }
        let blocks: Vec<BlockId> = self.state.part(id).blocks.values().copied().collect();
        for block_id in blocks {
            let block = &self.state.blocks[block_id];
            if !block.dirty.is_empty() && block.failed.is_none() {
                self.flush_block(block_id);
            }
        }
    }

    /// What `op` has to report: as [`Engine::take_error`], and what failed since it began even when its
    /// handle has reported that to another call meanwhile.
    fn outcome(&mut self, op: &SyncOp) -> Result<()> {
        let seen = self.take_error(op.partition, op.handle);
        let part = self.state.part(op.partition);
        match seen {
            Ok(()) if part.error_count > op.errors_before && op.handle.is_some() => {
                Err(part.last_errno)
            }
            seen => seen,
        }
    }

    /// The error that `handle` still has to report, or that any handle would.
    fn take_error(&mut self, id: PartitionId, handle: Option<HandleId>) -> Result<()> {
        let part = self.state.part(id);
        let (count, errno) = (part.error_count, part.last_errno);
        let unwritten = part.failed_blocks > 0 || !part.lost.is_empty() || part.settle_failed;
        match handle.and_then(|handle| self.state.handles.get_mut(handle)) {
            Some(handle) if handle.errors_seen < count => {
                handle.errors_seen = count;
                Err(errno)
            }
            Some(_) => Ok(()),
            None if unwritten => Err(errno),
            None => Ok(()),
        }
    }

    /// Lets go on whatever waited for this partition's transfers or operations to end.
    pub(crate) fn quiet_down(&mut self, id: PartitionId) {
        self.state.part(id).jobs += 1; // Keeps it while its last users are answered.
        if self.state.part(id).barrier.is_some() {
            self.try_barrier(id);
        }
        if !self.state.part(id).sync_ops.is_empty() {
            self.advance_syncs(id);
        }
        self.state.note_unsettled(id);
        let part = self.state.part(id);
        if !part.moving() {
            for waiter in part.status_waiters.drain(..) {
                self.actions.answer(Some(waiter.reply), Ok(()));
            }
        }
        self.settle_if_due(id);
        self.pack(id);
        self.state.part(id).jobs -= 1;
        if self.state.pending_blocks + self.state.queued == 0 {
            for waiter in self.state.idle_waiters.drain(..) {
                self.actions.answer(Some(waiter.reply), Ok(()));
            }
        }
    }

    fn advance_syncs(&mut self, id: PartitionId) {
        let part = self.state.part(id);
        let ops = std::mem::take(&mut part.sync_ops);
        let (done, waiting): (Vec<_>, Vec<_>) =
            ops.into_iter().partition(|op| part.epoch_done(op.epoch));
        part.sync_ops = waiting;
        let mut settle = Vec::new();
        for op in done {
            let part = self.state.part(id);
            let inexact = part.disk_size > part.size
                || (part.clean() && part.disk_size < part.size)
                || (!op.data_only
                    && part.clean()
                    && part.needs_settling()
                    && part.failed_blocks == 0);
            if inexact && !part.unlinked {
                settle.push(op);
            } else {
                self.after_transfers(op);
            }
        }
        if !settle.is_empty() {
            let change = Change::Settle { then: settle, for_room: false };
            self.enter_barrier(BarrierOp::new(id, change, None));
        }
    }

    /// Goes on with one whose transfers are done and whose backing file has its size.
    pub(crate) fn after_transfers(&mut self, op: SyncOp) {
        if op.written_only {
            let result = self.outcome(&op);
            self.actions.answer(Some(op.reply), result);
        } else {
            self.start_sync(op);
        }
    }

    /// A device sync has ended.
    pub(crate) fn synced(&mut self, op: SyncOp, result: Result<()>) {
        let id = op.partition;
        self.state.part(id).jobs -= 1;
        if let Err(errno) = result {
            self.state.stats.errors += 1;
            let part = self.state.part(id);
            part.unsynced = true;
            part.sync_failed = true;
            part.record_error(errno);
            let file = self.state.file(id);
            let failure =
                super::actions::Failure { operation: "sync", file, offset: 0, length: 0, errno };
            self.actions.failures.push(failure);
        } else if !self.state.part(id).unsynced {
            let part = self.state.part(id);
            part.sync_failed = false;
            part.clear_error_if_mended();
        }
        let seen = self.outcome(&op);
        let outcome = match (result, seen) {
            (Err(errno), _) | (Ok(()), Err(errno)) => Err(errno),
            (Ok(()), Ok(())) => Ok(()),
        };
        self.actions.answer(Some(op.reply), outcome);
        self.quiet_down(id);
        self.state.drop_if_unused(id, self.actions);
    }
}

/// Receives the backing paths of the partitions that could not be put on stable storage, those of each owner in turn.
pub type FailedReply = Box<dyn FnOnce(Vec<String>) + Send>;

/// The partitions of one [`Engine::sync_all`].
struct Group {
    left: AtomicUsize,
    /// With their owners.
    failed: Mutex<Vec<(Option<u32>, String)>>,
    reply: Mutex<Option<FailedReply>>,
}

impl Group {
    fn end_one(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        // In statements of their own, so that neither lock is held while the answer is given.
        let reply = self.reply.lock().take();
        let failed = std::mem::take(&mut *self.failed.lock());
        if let Some(reply) = reply {
            reply(in_turns(failed));
        }
    }
}
