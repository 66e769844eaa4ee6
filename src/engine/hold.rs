//! Holding blocks: kept in the pool for as long as somebody wants them there, and shown to the holder where
//! they lie, without a copy.
//!
//! A [`Hold`] is made by an operation like any other: it passes the partition's gate, gets all missing
//! buffers at once or none, and waits for transfers by being parked with a block. What it then has are
//! pins (no eviction) and, unless it only keeps, a claim on the pages: `shared` to read them, `copying` to
//! change them. Both are what clients' reads and writes use, so everybody else waits as for those.
//!
//! A small partition that is in a slot is held there, and its tray with it; what a hold brings in gets a
//! buffer of its own, for which its holder has a token. The budget counts a buffer for every held block in
//! either case: a held slot may bind a whole buffer. A slot that is only kept may still be moved when somebody
//! outgrows it; one that the holder reads or changes is not before that ends.
//!
//! Buffers of the pool as plain memory: out of circulation until they are given back.

use std::ops::Range;
use std::sync::Arc;

use super::actions::Answer;
use super::budget::Tokens;
use super::core::Engine;
use super::ids::{BlockId, BufferId, HandleId, PartitionId};
use super::locked::Locked;
use super::op::{Access, Claim, Granted, HoldOp, Leases, LendOp, Op};
use super::state::State;
use super::trays::Place;
use crate::error::{Errno, Result};
use crate::pool::{BufferPool, BufferSource, Loan, ReadLease, WriteLease};

impl Engine {
    /// The engine's buffers as a pool to allocate from. What is allocated counts as reserved, and comes
    /// out of the same budget as what is held.
    #[must_use]
    pub fn buffer_pool(self: &Arc<Self>) -> BufferPool {
        BufferPool::over(Arc::new(Lender { engine: self.clone() }))
    }

    /// Takes buffers out of circulation for as many tokens. Waits for those that a transfer or a copy still
    /// uses.
    fn lend(&self, tokens: &Tokens) -> Vec<(BufferId, WriteLease)> {
        let count = tokens.count();
        if count == 0 {
            return Vec::new();
        }
        let (sender, receiver) = crate::concurrent::bounded(1);
        let reply = Box::new(move |buffers| {
            // The receiver waits below.
            let _ = sender.send(buffers);
        });
        let op = Box::new(LendOp { count, granted: Granted::new(), reply });
        self.with(|locked| locked.lend_step(op));
        receiver.recv().unwrap_or_default()
    }

    /// Puts a lent buffer back into circulation; its lease is gone.
    fn take_back(&self, buffer: BufferId) {
        self.with(|locked| {
            let known = locked.state.lent.remove(&buffer);
            assert!(known, "a buffer is given back once");
            locked.state.free.push(buffer);
        });
    }

    /// Buffers that are lent out now.
    pub(crate) fn lent(&self) -> usize {
        self.with(|locked| locked.state.lent.len())
    }

    /// Buffers that requests have taken out of circulation.
    pub(crate) fn reserved_on_request(&self) -> usize {
        self.with(|locked| locked.state.reserved)
    }
}

impl Locked<'_> {
    pub(crate) fn lend_step(&mut self, mut op: Box<LendOp>) {
        if !self.state.acquire(&mut op.granted, op.count, self.actions) {
            let count = op.count;
            return self.wait_for_buffers(Op::Lend(op), count);
        }
        let mut lent = Vec::with_capacity(op.count);
        for buffer in op.granted.drain(..) {
            self.state.lent.insert(buffer);
            lent.push((buffer, self.engine.memory.for_lending(self.state, buffer)));
        }
        let reply = op.reply;
        self.actions.answers.push(Answer::Empty(Box::new(move |_| reply(lent)), Ok(())));
    }

    /// Lends nothing.
    pub(crate) fn refuse_lend(&mut self, mut op: LendOp) {
        self.state.return_granted(&mut op.granted);
        let reply = op.reply;
        self.actions.answers.push(Answer::Empty(Box::new(move |_| reply(Vec::new())), Ok(())));
    }
}

/// Gives out an engine's buffers.
#[derive(Debug)]
struct Lender {
    engine: Arc<Engine>,
}

impl Lender {
    fn lend(&self, mut tokens: Tokens) -> Vec<Loan> {
        let lent = self.engine.lend(&tokens);
        let loan = |(buffer, lease): (BufferId, WriteLease)| Loan {
            index: buffer.0,
            lease,
            token: Box::new(tokens.split(1)),
        };
        lent.into_iter().map(loan).collect()
    }
}

impl BufferSource for Lender {
    fn buffer_size(&self) -> usize {
        self.engine.shape.block_size as usize
    }

    fn total(&self) -> usize {
        self.engine.budget.total()
    }

    fn free(&self) -> usize {
        self.engine.budget.free(self.engine.reserved_on_request())
    }

    fn take(&self, count: usize) -> Option<Vec<Loan>> {
        let reserved = self.engine.reserved_on_request();
        let tokens = self.engine.budget.take_now(count, reserved)?;
        let loans = self.lend(tokens);
        // Fewer than tokens only from an engine that was stopped.
        (loans.len() == count).then_some(loans)
    }

    fn take_all(&self) -> Vec<Loan> {
        let reserved = self.engine.reserved_on_request();
        self.lend(self.engine.budget.take_free(usize::MAX, reserved))
    }

    fn give_back(&self, index: u32, lease: WriteLease) {
        drop(lease);
        self.engine.take_back(BufferId(index));
    }
}

#[cfg(test)]
mod tests;

/// Blocks of a partition that stay in the pool until this is dropped, and its bytes in consecutive chunks.
#[derive(Debug)]
pub(crate) struct Hold {
    engine: Arc<Engine>,
    claim: Claim,
}

impl Hold {
    /// The bytes held, from the partition's start.
    pub(crate) fn range(&self) -> Range<u64> {
        self.claim.bytes.clone()
    }

    /// From now on the blocks leave the pool when they are given back, dirty ones once they are written.
    pub(crate) fn release_after(&mut self, release: bool) {
        self.claim.release = release;
    }

    /// The bytes, in chunks that end where a block ends. None for a hold that only keeps.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let (mut reads, mut writes) = (Default::default(), Default::default());
        match &self.claim.leases {
            Leases::None => {}
            Leases::Read(leases) => reads = leases.iter(),
            Leases::Write(leases) => writes = leases.iter(),
        }
        reads.map(|lease: &ReadLease| &**lease).chain(writes.map(|lease: &WriteLease| &**lease))
    }

    /// As [`Hold::chunks`], to be written to. None unless it was made for that.
    pub(crate) fn chunks_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let leases = match &mut self.claim.leases {
            Leases::Write(leases) => leases.iter_mut(),
            _ => Default::default(),
        };
        leases.map(|lease| &mut **lease)
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // No lease outlives its claim.
        self.claim.leases = Leases::None;
        self.engine.with(|locked| locked.end_hold(&self.claim));
    }
}

impl Engine {
    /// Takes the blocks of `bytes`, a range of whole pages that may end with the partition. `reply` is called
    /// once, here or later on another thread. The caller sees to it that the pool has room: what is held
    /// does not give way.
    ///
    /// Fails with what reading in met; ENODATA when the partition ends before the range does and is to
    /// be read; EIO for lost bytes; EINVAL for a range that is empty or begins within a page; EBADF.
    pub(crate) fn hold(
        self: &Arc<Self>, handle: HandleId, bytes: Range<u64>, access: Access,
        reply: impl FnOnce(Result<Hold>) + Send + 'static,
    ) {
        if bytes.is_empty() || !bytes.start.is_multiple_of(self.shape.unit) {
            return reply(Err(Errno::EINVAL));
        }
        let blocks = self.shape.block_of(bytes.start)..=self.shape.block_of(bytes.end - 1);
        let engine = self.clone();
        let reply = Box::new(move |claim: Result<Claim>| {
            reply(claim.map(|claim| Hold { engine, claim }));
        });
        let op = HoldOp {
            partition: PartitionId::NONE,
            handle,
            access,
            bytes,
            entered: false,
            requested: false,
            buffers: blocks.map(|_| None).collect(),
            granted: Granted::new(),
            reply,
        };
        self.with(|locked| locked.hold_step(Box::new(op)));
    }

    /// [`Engine::hold`], waiting for it.
    pub(crate) fn hold_now(
        self: &Arc<Self>, handle: HandleId, bytes: Range<u64>, access: Access,
    ) -> Result<Hold> {
        let (sender, receiver) = crate::concurrent::bounded(1);
        self.hold(handle, bytes, access, move |hold| {
            // The receiver waits below.
            let _ = sender.send(hold);
        });
        receiver.recv().unwrap_or(Err(Errno::ENODEV))
    }

    /// The operation's blocks with the pages of each that it is about.
    fn pieces(&self, op: &HoldOp) -> Vec<(BlockId, Range<usize>)> {
        let first = self.shape.block_of(op.bytes.start);
        let pages =
            |at: usize| self.shape.pages_of(first + at as u64, op.bytes.start, op.bytes.end);
        let pinned = op.buffers.iter().enumerate();
        pinned.map(|(at, block_id)| (block_id.expect("pinned above"), pages(at))).collect()
    }
}

impl Locked<'_> {
    /// Goes on with a hold.
    pub(crate) fn hold_step(&mut self, mut op: Box<HoldOp>) {
        if !op.entered {
            match self.enter_hold(op) {
                Some(entered) => op = entered,
                None => return,
            }
        }
        let id = op.partition;
        if op.access.swaps_in() {
            let part = self.state.part(id);
            let short = part.size < op.bytes.end;
            if short || part.lost_in(&op.bytes) {
                let errno = if short { Errno::ENODATA } else { Errno::EIO };
                return self.fail_hold(*op, errno);
            }
        }
        let Some(op) = self.pin_all(op) else { return };
        let Some(op) = self.fill_hold(op) else { return };
        self.claim_hold(op);
    }

    fn enter_hold(&mut self, mut op: Box<HoldOp>) -> Option<Box<HoldOp>> {
        match self.state.partition_of(op.handle) {
            Ok(id) => op.partition = id,
            Err(errno) => {
                self.refuse_hold(*op, errno);
                return None;
            }
        }
        if self.gate_closed(op.partition, op.access.writes()) {
            let id = op.partition;
            self.state.part(id).gate_queue.push_back(Op::Hold(op));
            return None;
        }
        *active(self.state, op.partition, op.access) += 1;
        op.entered = true;
        Some(op)
    }

    /// Pins every block, those that are not in the pool in buffers that come all at once. Each has a buffer
    /// of its own then, or has been in a slot that is long enough; one in a shorter slot counts as absent.
    fn pin_all(&mut self, mut op: Box<HoldOp>) -> Option<Box<HoldOp>> {
        let (id, first) = (op.partition, self.state.shape.block_of(op.bytes.start));
        for at in 0..op.buffers.len() {
            let index = first + at as u64;
            let pages = self.state.shape.pages_of(index, op.bytes.start, op.bytes.end).end;
            if op.buffers[at].is_none()
                && let Some(block_id) = self.state.fitting(id, index, pages)
            {
                pin(self.state, block_id);
                op.buffers[at] = Some(block_id);
            }
        }
        let absent = op.buffers.iter().filter(|block_id| block_id.is_none()).count();
        if !self.state.acquire(&mut op.granted, absent, self.actions) {
            self.state.return_granted(&mut op.granted);
            self.wait_for_buffers(Op::Hold(op), absent);
            return None;
        }
        let mut leased = None;
        for at in 0..op.buffers.len() {
            let index = first + at as u64;
            let present = self.state.find(id, index);
            if op.buffers[at].is_some() {
                continue;
            }
            if present.is_some_and(|block_id| !self.state.blocks[block_id].still()) {
                leased = present;
                continue;
            }
            let place = Place::Buffer(op.granted.pop().expect("as many as are absent"));
            let block_id = match present {
                Some(block_id) => {
                    self.move_block(block_id, place);
                    block_id
                }
                None => self.state.attach(place, id, index),
            };
            pin(self.state, block_id);
            op.buffers[at] = Some(block_id);
        }
        self.state.return_granted(&mut op.granted);
        let Some(block_id) = leased else { return Some(op) };
        // It moves when those who have leases on its bytes are done.
        self.state.edit(block_id, |block| block.waiters.push(Op::Hold(op)));
        None
    }

    /// Asks for what is missing, and goes on when it is there.
    fn fill_hold(&mut self, mut op: Box<HoldOp>) -> Option<Box<HoldOp>> {
        if !op.access.swaps_in() {
            return Some(op);
        }
        let pieces = self.engine.pieces(&op);
        let copied_over = |(block_id, pages): &&(BlockId, Range<usize>)| {
            self.state.blocks[*block_id].copying.any(pages.clone())
        };
        if let Some((block_id, _)) = pieces.iter().find(copied_over) {
            op.requested = false;
            self.state.edit(*block_id, |block| block.waiters.push(Op::Hold(op)));
            return None;
        }
        let mut busy = None;
        for (block_id, pages) in pieces {
            if self.state.blocks[block_id].valid.all(pages.clone()) {
                continue;
            }
            if op.requested && self.missing(block_id, pages.clone()) {
                let errno = self.state.blocks[block_id].read_error.unwrap_or(Errno::EIO);
                self.fail_hold(*op, errno);
                return None;
            }
            self.read_pages(block_id, pages.clone());
            self.fill_partials(block_id, pages.clone());
            if !self.state.blocks[block_id].valid.all(pages) {
                busy = Some(block_id);
            }
        }
        let Some(block_id) = busy else { return Some(op) };
        op.requested = true;
        self.state.edit(block_id, |block| block.waiters.push(Op::Hold(op)));
        None
    }

    /// Claims the pages of all blocks once nobody is busy with any of them, and answers.
    fn claim_hold(&mut self, op: Box<HoldOp>) {
        let pieces = self.engine.pieces(&op);
        if op.access.writes() {
            let taken = |(block_id, pages): &&(BlockId, Range<usize>)| {
                self.state.blocks[*block_id].is_claimed(pages)
            };
            if let Some((block_id, _)) = pieces.iter().find(taken) {
                self.state.edit(*block_id, |block| block.waiters.push(Op::Hold(op)));
                return;
            }
        }
        let unit = self.state.shape.unit;
        let within = |pages: &Range<usize>| pages.start as u64 * unit..pages.end as u64 * unit;
        let leases = match op.access {
            Access::Keep | Access::Blank => Leases::None,
            Access::Read => Leases::Read(
                pieces
                    .iter()
                    .map(|(block_id, pages)| {
                        self.state.edit(*block_id, |block| {
                            block.shared.insert(pages.clone());
                            block.readers += 1;
                        });
                        self.engine.memory.for_copy_out(self.state, *block_id, within(pages))
                    })
                    .collect(),
            ),
            Access::Update | Access::Fill => Leases::Write(
                pieces
                    .iter()
                    .map(|(block_id, pages)| {
                        self.state.edit(*block_id, |block| block.copying.insert(pages.clone()));
                        self.engine.memory.for_copy_in(self.state, *block_id, within(pages))
                    })
                    .collect(),
            ),
        };
        let HoldOp { partition, access, bytes, reply, .. } = *op;
        if matches!(leases, Leases::None) {
            self.leave(partition, access);
        }
        let buffers = pieces.into_iter().map(|(block_id, _)| block_id).collect();
        let to_the_end = self.state.part(partition).size <= bytes.end;
        let claim = Claim { partition, access, bytes, buffers, leases, to_the_end, release: false };
        self.actions.answers.push(Answer::Empty(Box::new(move |_| reply(Ok(claim))), Ok(())));
    }

    pub(crate) fn fail_hold(&mut self, mut op: HoldOp, errno: Errno) {
        self.state.return_granted(&mut op.granted);
        for block_id in op.buffers.iter().flatten() {
            unpin(self.state, *block_id);
            self.state.wake(*block_id, self.actions);
            self.drop_if_blank(*block_id);
        }
        self.leave(op.partition, op.access);
        let reply = op.reply;
        self.actions.answers.push(Answer::Empty(Box::new(move |_| reply(Err(errno))), Ok(())));
    }

    /// Gives back claims and pins; the leases are gone.
    fn end_hold(&mut self, hold: &Claim) {
        let (id, access) = (hold.partition, hold.access);
        let first = self.state.shape.block_of(hold.bytes.start);
        if access.writes() {
            self.note_update(hold);
        }
        for (at, block_id) in hold.buffers.iter().enumerate() {
            let pages =
                self.state.shape.pages_of(first + at as u64, hold.bytes.start, hold.bytes.end);
            match access {
                Access::Keep | Access::Blank => {}
                Access::Read => self.state.edit(*block_id, |block| {
                    block.readers -= 1;
                    if block.readers == 0 {
                        block.shared.clear();
                    }
                }),
                Access::Update | Access::Fill => self.updated(hold, *block_id, pages),
            }
            if hold.release {
                self.state.edit(*block_id, |block| {
                    block.kept = None;
                    block.release = true;
                });
            }
            unpin(self.state, *block_id);
            self.state.touch(*block_id);
            if self.state.blocks[*block_id].flush {
                self.flush_block(*block_id);
            }
            self.state.wake(*block_id, self.actions);
            self.drop_if_blank(*block_id);
        }
        if matches!(access, Access::Keep | Access::Blank) {
            self.state.drop_if_unused(id, self.actions);
        } else {
            self.leave(id, access);
        }
    }

    /// The holder has changed the partition.
    fn note_update(&mut self, hold: &Claim) {
        let unit = self.state.shape.unit;
        let now_ms = self.engine.now_ms();
        self.state.note_written(hold.partition, hold.bytes.end - hold.bytes.start);
        let part = self.state.part(hold.partition);
        let old = part.size;
        let whole = hold.bytes.start..hold.bytes.end.next_multiple_of(unit);
        part.written_in_pool(hold.bytes.end, whole, now_ms);
        self.state.resized(hold.partition, old);
    }

    fn updated(&mut self, hold: &Claim, block_id: BlockId, pages: Range<usize>) {
        let id = self.state.blocks[block_id].partition;
        let room = pages.end as u64 * self.state.shape.unit;
        let end = hold.bytes.end - self.state.blocks[block_id].index * self.state.shape.block_size;
        let (epoch, now_ms) = (self.state.part(id).epoch, self.engine.now_ms());
        self.state.edit(block_id, |block| {
            block.copying.remove(pages.clone());
            block.partials.retain(|partial| !pages.contains(&partial.page));
            block.valid.insert(pages.clone());
            block.mark_dirty(pages, epoch, now_ms);
        });
        if end < room && hold.to_the_end {
            // The chunks reach to the page's end, the partition does not: who makes it longer finds zeroes.
            self.engine.memory.zero(self.state, block_id, end..room);
        }
    }

    /// An operation has left the partition.
    fn leave(&mut self, id: PartitionId, access: Access) {
        *active(self.state, id, access) -= 1;
        self.quiet_down(id);
        if self.state.part(id).gone() {
            self.discard_unlinked(id);
        }
        self.state.drop_if_unused(id, self.actions);
    }
}

/// The partition's counter of operations that this one is counted in.
fn active(st: &mut State, id: PartitionId, access: Access) -> &mut u32 {
    let part = st.part(id);
    if access.writes() { &mut part.active_writes } else { &mut part.active_reads }
}

fn pin(st: &mut State, block_id: BlockId) {
    st.edit(block_id, |block| {
        block.pins += 1;
        block.holds += 1;
        block.release = false;
    });
}

fn unpin(st: &mut State, block_id: BlockId) {
    st.edit(block_id, |block| {
        block.pins -= 1;
        block.holds -= 1;
    });
}
