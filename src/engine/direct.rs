//! Swapping in past the pool: transfers from the swap folder into memory of the caller's.
//!
//! What of the range is in the pool, in whatever state, may be newer than the swap folder or about to
//! become so: such blocks are left out and counted, and the caller reads them like any other client. The
//! rest is read as it lies in the swap folder. A write that ended before is in either of the two; one
//! that runs meanwhile may be seen or not, as with any two calls at once. A change of shape waits, or is
//! waited for, at the gate.

use std::ops::Range;
use std::sync::Arc;

use super::actions::{Actions, Answer};
use super::core::Engine;
use super::ids::{HandleId, PartitionId};
use super::locked::Locked;
use super::op::{DirectJob, DirectOp, DirectPart, DirectReply, Op, Outcome, Piece};
use super::state::Purpose;
use crate::aio::device::{Action, Transfer};
use crate::concurrent::Mutex;
use crate::error::{Errno, Result};
use crate::pool::WriteLease;

impl DirectOp {
    /// Gives the memory back unread.
    pub(crate) fn refuse(self, errno: Errno, actions: &mut Actions) {
        let DirectOp { offset, lease, reply, .. } = self;
        answer(reply, vec![Piece { offset, lease, outcome: Outcome::Failed(errno) }], actions);
    }
}

impl Engine {
    /// Reads from `offset` on into `lease`; offset, length and memory are multiples of the device's
    /// alignment. `reply` gets the memory back in pieces of at most a block, in order, with what became of
    /// each.
    pub(crate) fn read_direct(
        &self, handle: HandleId, offset: u64, lease: WriteLease, reply: DirectReply,
    ) {
        let op = Box::new(DirectOp { handle, offset, lease, reply });
        self.with(|locked| locked.direct_step(op));
    }
}

impl Locked<'_> {
    /// Goes on with a direct read.
    pub(crate) fn direct_step(&mut self, op: Box<DirectOp>) {
        let id = match self.state.partition_of(op.handle) {
            Ok(id) => id,
            Err(errno) => return op.refuse(errno, self.actions),
        };
        if self.gate_closed(id, false) {
            self.state.part(id).gate_queue.push_back(Op::Direct(op));
            return;
        }
        self.state.part(id).active_reads += 1;
        let DirectOp { offset, lease, reply, .. } = *op;
        self.state.note_read(id, lease.len() as u64);
        let job = DirectJob { partition: id, left: 0, pieces: Vec::new(), reply: Some(reply) };
        let job = Arc::new(Mutex::new(job));
        let (mut offset, mut lease) = (offset, lease);
        while !lease.is_empty() {
            let block_end = (self.state.shape.block_of(offset) + 1) * self.state.shape.block_size;
            let length = (block_end - offset).min(lease.len() as u64);
            let (piece, rest) = lease.split_front(length as usize);
            lease = rest;
            self.direct_piece(&job, offset, piece);
            offset += length;
        }
        if job.lock().left == 0 {
            self.end_direct(&job);
        }
    }

    fn direct_piece(&mut self, job: &Arc<Mutex<DirectJob>>, offset: u64, lease: WriteLease) {
        let id = job.lock().partition;
        let bytes = offset..offset + lease.len() as u64;
        let present = self.state.find(id, self.state.shape.block_of(offset)).is_some();
        let part = self.state.part(id);
        let outcome = if present || part.disk_size <= offset {
            Outcome::Resident
        } else if part.lost_in(&bytes) {
            Outcome::Failed(Errno::EIO)
        } else {
            let stored = part.stored();
            job.lock().left += 1;
            let part = DirectPart { job: job.clone(), offset, stored };
            let purpose = Purpose::Direct(part);
            return self.start_transfer(id, purpose, offset, Action::Read(lease));
        };
        job.lock().pieces.push(Piece { offset, lease, outcome });
    }

    /// A transfer of a direct read has ended.
    pub(crate) fn direct_completed(
        &mut self, part: DirectPart, transfer: Transfer, result: Result<usize>,
    ) {
        let Transfer { action: Action::Read(mut lease), offset, .. } = transfer else {
            unreachable!("it was a read")
        };
        let id = part.job.lock().partition;
        let asked = lease.len() as u64;
        let expected = part.stored.saturating_sub(offset).min(asked);
        let mut outcome = Outcome::Done;
        match result {
            Ok(moved) if moved as u64 >= expected => lease[moved.min(asked as usize)..].fill(0),
            // Cut before a damaged page: whoever reads it through the pool gets the rest, and the error.
            Ok(_) => outcome = Outcome::Resident,
            Err(errno) => outcome = Outcome::Failed(errno),
        }
        let bytes = offset..offset + asked;
        match outcome {
            Outcome::Failed(errno) => self.direct_failed(id, bytes, errno),
            Outcome::Done if self.state.part(id).error.is_some() => {
                self.state.part(id).unreadable.remove(bytes);
                self.state.part(id).clear_error_if_mended();
            }
            _ => {}
        }
        let ended = {
            let mut job = part.job.lock();
            job.pieces.push(Piece { offset: part.offset, lease, outcome });
            job.left -= 1;
            job.left == 0
        };
        if ended {
            self.end_direct(&part.job);
        }
    }

    fn direct_failed(&mut self, id: PartitionId, bytes: Range<u64>, errno: Errno) {
        self.failure(id, "swap in", bytes.clone(), errno);
        self.state.part(id).unreadable.insert(bytes);
    }

    fn end_direct(&mut self, job: &Mutex<DirectJob>) {
        let (id, reply, mut pieces) = {
            let mut job = job.lock();
            (job.partition, job.reply.take(), std::mem::take(&mut job.pieces))
        };
        pieces.sort_by_key(|piece| piece.offset);
        answer(reply.expect("ended once"), pieces, self.actions);
        self.state.part(id).active_reads -= 1;
        self.quiet_down(id);
        if self.state.part(id).gone() {
            self.discard_unlinked(id);
        }
        self.state.drop_if_unused(id, self.actions);
    }
}

fn answer(reply: DirectReply, pieces: Vec<Piece>, actions: &mut Actions) {
    actions.answers.push(Answer::Empty(Box::new(move |_| reply(pieces)), Ok(())));
}
