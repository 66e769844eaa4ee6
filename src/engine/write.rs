//! Writes: copied into the pool block by block and acknowledged there; a block goes out when it is full.
//!
//! Writes whose bytes a transport has received in an intake: taken in by exchange where that can be.

use std::ops::Range;

use super::actions::Answer;
use super::block::PARTIALS_MAX;
use super::core::Engine;
use super::ids::{BlockId, HandleId};
use super::intake::{Around, Intake, Payload};
use super::locked::Locked;
use super::op::{Manner, Op, SyncOp, WriteOp, WriteReply};
use super::pages::PageSet;
use super::partition::Handle;
use super::shape::OFFSET_MAX;
use super::small::{Need, Room};
use super::space::{Reservation, is_full};
use super::state::State;
use super::trays::Place;
use crate::error::{Errno, Result};
use crate::pool::WriteLease;
use crate::shares::User;

/// Where in a block the client's bytes go, or have gone.
pub(super) struct Target {
    block_id: BlockId,
    /// Bytes within the block.
    bytes: Range<u64>,
    /// The whole pages around them; what of these is zero or stays is in `zero_head`, `zero_tail`.
    pages: Range<usize>,
    zero_head: bool,
    zero_tail: bool,
}

/// A claimed run of one block that the client's bytes go into next.
pub(super) struct Plan {
    place: Target,
    lease: WriteLease,
}

/// What a try at a write came to.
pub(super) enum Step {
    Copy(Box<WriteOp>, Plan),
    /// It has to wait, but its bytes are still the caller's: copy them, then try again.
    Own(Box<WriteOp>),
    /// Space is needed, and nothing is under way that holds the file's lock: get it here.
    Reserve(Box<WriteOp>, Reservation),
    /// Answered or parked; with the intake that it was called with, if that was not kept.
    Done(Option<Intake>),
}

impl Engine {
    /// Writes `data` at `offset`. `reply` is called once, here or later on another thread, when all of
    /// it is in the pool and its space in the swap folder is reserved; with `stable`, when it is on
    /// stable storage.
    ///
    /// Fails with ENOSPC or EDQUOT when space cannot be reserved (nothing is stored then), EIO when it
    /// would leave a page half lost, EFBIG, EBADF. Waits for buffers, never for the device itself, by
    /// parking the operation with a copy of what is left of `data`.
    pub fn write(
        &self, handle: HandleId, offset: u64, data: &[u8], stable: bool, reply: WriteReply,
    ) {
        self.write_as(handle, offset, data, Manner { stable, caller: None }, reply);
    }

    /// As [`Engine::write`], of what may be a piece of somebody's call.
    pub fn write_as(
        &self, handle: HandleId, offset: u64, data: &[u8], manner: Manner, reply: WriteReply,
    ) {
        let mut op = WriteOp::new(handle, offset, data.len(), Payload::Caller, reply);
        op.manner = manner;
        self.run_write(Box::new(op), data);
    }

    /// Goes on with a write until it is answered or parked. Returns the intake that it was called with, or
    /// the one that its caller gets instead.
    pub(crate) fn run_write(&self, op: Box<WriteOp>, borrowed: &[u8]) -> Option<Intake> {
        let mut instead = None;
        let mut step = self.with(|locked| locked.write_step(op));
        loop {
            step = match step {
                Step::Done(intake) => return intake.or(instead),
                Step::Own(mut op) => match self.make_stay(&mut op, borrowed) {
                    Ok(intake) => {
                        instead = intake;
                        self.with(|locked| locked.write_step(op))
                    }
                    Err(errno) => self.with(|locked| locked.refuse_write(*op, errno)),
                },
                Step::Reserve(op, reservation) => {
                    let result = self.run_counted(|| reservation.run());
                    self.with(|locked| {
                        match locked.note_reserved(op.partition, reservation, result) {
                            Ok(()) => locked.write_step(op),
                            Err(errno) => locked.without_space(op, errno),
                        }
                    })
                }
                Step::Copy(mut op, mut plan) => {
                    let length = (plan.place.bytes.end - plan.place.bytes.start) as usize;
                    let pieces = op.payload.pieces(borrowed, op.done..op.done + length);
                    plan.copy(pieces, self.shape.unit);
                    op.done += length;
                    let Plan { place, lease } = plan;
                    self.with(|locked| {
                        // Before the claim that it was made from.
                        drop(lease);
                        locked.copied(&op, place);
                        locked.write_step(op)
                    })
                }
            };
        }
    }
}

impl Locked<'_> {
    fn write_step(&mut self, mut op: Box<WriteOp>) -> Step {
        if !op.entered {
            match self.enter_write(op) {
                Ok(entered) => op = entered,
                Err(step) => return step,
            }
        }
        if op.done == op.length {
            return self.finish_write(*op, Ok(()));
        }
        let id = op.partition;
        let from = op.offset + op.done as u64;
        let index = self.state.shape.block_of(from);
        let to = (op.offset + op.length as u64).min((index + 1) * self.state.shape.block_size);
        let pages = self.state.shape.pages_of(index, from, to);
        let aligned =
            self.state.shape.unit * (from / self.state.shape.unit)..self.state.shape.round_up(to);
        if !self.state.part(id).reserved.covers(&aligned) {
            return self.reserve_for(op);
        }
        // What outgrows its slot goes on growing, more often than not.
        let whole = self.state.find(id, index).map(|_| self.state.shape.pages());
        let size = self.state.part(id).size.max(to);
        let slot = self.state.shape.slot_pages(size, index);
        let slot = slot.map(|pages| whole.unwrap_or(pages));
        let need = Need { partition: id, index, pages: pages.end, slot };
        match self.room_for(&mut op.granted, need) {
            Room::Here(block_id) => self.claim(op, block_id, from..to, pages),
            _ if !op.payload.stays() => Step::Own(op),
            Room::Busy(block_id) => {
                self.state.return_granted(&mut op.granted);
                self.state.edit(block_id, |block| block.waiters.push(Op::Write(op)));
                Step::Done(None)
            }
            Room::Wait => {
                self.wait_for_buffers(Op::Write(op), 1);
                Step::Done(None)
            }
        }
    }

    /// Lets a write through its partition's gate.
    fn enter_write(&mut self, mut op: Box<WriteOp>) -> std::result::Result<Box<WriteOp>, Step> {
        let handle = op.handle.expect("writes come through handles");
        let refusal = match self.state.partition_of(handle) {
            Ok(id) => {
                op.partition = id;
                op.user = self.state.handles.get(handle).map_or(User::OWN, Handle::user);
                let end = op.offset.checked_add(op.length as u64);
                end.is_none_or(|end| end > OFFSET_MAX).then_some(Errno::EFBIG)
            }
            Err(errno) => Some(errno),
        };
        if let Some(errno) = refusal {
            return Err(self.refuse_write(*op, errno));
        }
        if self.gate_closed(op.partition, true) {
            if !op.payload.stays() {
                return Err(Step::Own(op));
            }
            let id = op.partition;
            self.state.part(id).gate_queue.push_back(Op::Write(op));
            return Err(Step::Done(None));
        }
        self.state.part(op.partition).active_writes += 1;
        op.errors_before = self.state.part(op.partition).error_count;
        op.entered = true;
        Ok(op)
    }

    /// Gets space for the write: here, or by a job when transfers of the partition are under way,
    /// because fallocate then may wait for the filesystem's lock on the file.
    pub(super) fn reserve_for(&mut self, op: Box<WriteOp>) -> Step {
        let (id, unit) = (op.partition, self.state.shape.unit);
        let is_tight = self.engine.now_ms() < self.state.space.tight_until_ms;
        let part = self.state.part(id);
        let need = op.offset / unit * unit..(op.offset + op.length as u64).next_multiple_of(unit);
        let mut wish = need.clone();
        if !is_tight {
            wish.end += part.step_ahead(&need);
        }
        let here = part.writes == 0;
        if !here && !op.payload.stays() {
            return Step::Own(op);
        }
        let end = part.size.next_multiple_of(unit);
        let asks_ahead = wish != need;
        let reservation = Reservation { file: part.file.clone(), need, wish, end };
        part.jobs += 1;
        self.state.space.asked_ahead += u32::from(asks_ahead);
        self.state.begin_call(id);
        if here {
            return Step::Reserve(op, reservation);
        }
        self.job(move |engine| {
            let result = reservation.run();
            engine.with(|locked| match locked.note_reserved(id, reservation, result) {
                Ok(()) => locked.actions.ready.push(Op::Write(op)),
                Err(errno) => {
                    locked.without_space(op, errno);
                }
            });
        });
        Step::Done(None)
    }

    /// A write was refused its space. It waits while files hold some ahead.
    pub(super) fn without_space(&mut self, mut op: Box<WriteOp>, errno: Errno) -> Step {
        let id = op.partition;
        if !is_full(errno) || !self.may_get_space(id, op.space_waits) {
            return self.finish_write(*op, Err(errno));
        }
        if !op.payload.stays() {
            return Step::Own(op);
        }
        // It enters again: its own partition may have to be alone to give something back.
        op.space_waits += 1;
        op.entered = false;
        self.state.return_granted(&mut op.granted);
        self.state.part(id).active_writes -= 1;
        self.state.space.waiters.push(Op::Write(op));
        self.take_space_back();
        self.quiet_down(id);
        self.state.drop_if_unused(id, self.actions);
        Step::Done(None)
    }

    /// Claims the pages of the next run, unless somebody is busy with them.
    fn claim(
        &mut self, mut op: Box<WriteOp>, block_id: BlockId, bytes: Range<u64>, pages: Range<usize>,
    ) -> Step {
        let (id, unit) = (op.partition, self.state.shape.unit);
        let block = &self.state.blocks[block_id];
        let busy = block.is_claimed(&pages);
        let (index, start) = (block.index, block.index * self.state.shape.block_size);
        let mut fill = None;
        let mut half_lost = false;
        let (mut zero_head, mut zero_tail) = (false, false);
        if !busy {
            for (page, is_head) in [(pages.start, true), (pages.end - 1, false)] {
                let first = start + page as u64 * unit;
                let covered = bytes.start.max(first) - first..bytes.end.min(first + unit) - first;
                match self.edge(block_id, page, first, covered) {
                    Edge::Plain => {}
                    Edge::Zero if is_head => zero_head = true,
                    Edge::Zero => zero_tail = true,
                    Edge::Fill(page) => fill = Some(page),
                    Edge::Lost => half_lost = true,
                }
            }
        }
        if half_lost && !self.state.part(id).lost.is_empty() {
            return self.finish_write(*op, Err(Errno::EIO));
        }
        if busy || fill.is_some() {
            if !op.payload.stays() {
                return Step::Own(op);
            }
            if let Some(page) = fill {
                let block = &self.state.blocks[block_id];
                let ended = !block.reading.contains(page);
                let errno = block.read_error.unwrap_or(Errno::EIO);
                let errors = self.state.part(id).error_count;
                // It may also have been completed, evicted and written to in part again meanwhile.
                let failed = |(i, p, before)| (i, p) == (index, page) && errors > before;
                if ended && op.filling.is_some_and(failed) {
                    return self.finish_write(*op, Err(errno));
                }
                self.fill(block_id, page);
                let filling = self.state.blocks[block_id].reading.contains(page);
                op.filling = filling.then_some((index, page, errors));
            }
            self.state.return_granted(&mut op.granted);
            self.state.edit(block_id, |block| block.waiters.push(Op::Write(op)));
            return Step::Done(None);
        }
        let place = |bytes: Range<u64>, pages| {
            let bytes = bytes.start - start..bytes.end - start;
            Target { block_id, bytes, pages, zero_head, zero_tail }
        };
        if let Some(intake) = self.state.to_exchange(&mut op, block_id, &bytes, &pages) {
            let place = place(bytes, pages);
            self.engine.memory.exchange(self.state, block_id, intake, place.around(unit));
            op.done = op.length;
            self.copied(&op, place);
            return self.write_step(op);
        }
        self.state.edit(block_id, |block| block.copying.insert(pages.clone()));
        let lease = self.engine.memory.for_copy_in(
            self.state,
            block_id,
            pages.start as u64 * unit..pages.end as u64 * unit,
        );
        Step::Copy(op, Plan { place: place(bytes, pages), lease })
    }

    /// What a write to bytes `covered` of a page means for the page's other bytes.
    fn edge(&mut self, block_id: BlockId, page: usize, first: u64, covered: Range<u64>) -> Edge {
        let unit = self.state.shape.unit;
        let id = self.state.blocks[block_id].partition;
        if covered == (0..unit) {
            return Edge::Plain;
        }
        let part = self.state.part(id);
        let known = part.size.saturating_sub(first);
        let nothing_stays = known == 0 || (covered.start == 0 && covered.end >= known);
        // What was read back of a lost page is out of date: that it is in the pool does not help.
        let lost = part.lost_in(&(first..first + unit));
        if lost && !nothing_stays {
            return Edge::Lost;
        }
        let block = &self.state.blocks[block_id];
        if block.valid.contains(page) && !lost {
            return Edge::Plain;
        }
        if nothing_stays {
            // Nothing of the page exists, or nothing that stays: the rest is zero.
            return Edge::Zero;
        }
        match block.partial(page).map(|at| block.partials[at]) {
            Some(partial) => {
                let touches =
                    covered.start <= partial.end as u64 && covered.end >= partial.start as u64;
                if touches { Edge::Plain } else { Edge::Fill(page) }
            }
            None if block.partials.len() >= PARTIALS_MAX => Edge::Fill(block.partials[0].page),
            None => Edge::Plain,
        }
    }

    /// The client's bytes are in the block: the pages become dirty, the partition may have grown.
    fn copied(&mut self, op: &WriteOp, place: Target) {
        let Target { block_id, bytes, pages, zero_head, zero_tail } = place;
        let (id, unit) = (op.partition, self.state.shape.unit);
        let start = self.state.blocks[block_id].index * self.state.shape.block_size;
        let now_ms = self.engine.now_ms();
        let part = self.state.part(id);
        let old = part.size;
        // Of lost pages none stays partial: that was refused before.
        let new = start + pages.start as u64 * unit..start + pages.end as u64 * unit;
        part.written_in_pool(start + bytes.end, new, now_ms);
        let (epoch, size) = (part.epoch, part.size);
        self.state.note_written(id, bytes.end - bytes.start);
        if !self.state.part(id).unfinished.is_empty() {
            self.take_unfinished(block_id, &pages);
            if op.manner.caller.is_some_and(|caller| !caller.parallel) {
                self.finish_others(id, &(op.offset..op.offset + op.length as u64));
            }
        }
        self.state.edit(block_id, |block| {
            block.copying.remove(pages.clone());
            for page in [pages.start, pages.end - 1] {
                let first = page as u64 * unit;
                let covered = (bytes.start.max(first) - first) as usize
                    ..(bytes.end.min(first + unit) - first) as usize;
                let zeroed =
                    (page == pages.start && zero_head) || (page + 1 == pages.end && zero_tail);
                let end = (size - start).saturating_sub(first).min(unit);
                let bytes = covered.start as u64..covered.end as u64;
                block.note_seam(page, bytes, end, op.manner.caller, now_ms);
                block.note_edge(page, covered, end as usize, zeroed, unit as usize);
            }
            if pages.len() > 2 {
                block.make_valid(pages.start + 1..pages.end - 1);
            }
            block.mark_dirty(pages.clone(), epoch, now_ms);
        });
        self.state.touch(block_id);
        self.state.resized(id, old);
        self.state.part(id).has_seams |= !self.state.blocks[block_id].seams.is_empty();
        let block = &self.state.blocks[block_id];
        let whole = block.pages == self.state.shape.pages();
        // What ends in the last page may go on there: a stream of odd pieces would wait for its own transfers.
        let ended = size >= start + self.state.shape.block_size;
        let full = whole
            && ended
            && block.partials.is_empty()
            && block.seams.is_empty()
            && block.dirty.all(0..block.pages);
        if full || block.flush {
            self.flush_block(block_id);
        }
        self.state.wake(block_id, self.actions);
    }

    /// Ends a write that was to wait.
    fn refuse_write(&mut self, op: WriteOp, errno: Errno) -> Step {
        if op.entered {
            return self.finish_write(op, Err(errno));
        }
        self.actions.answers.push(Answer::Write(op.reply, Err(errno)));
        Step::Done(self.state.put_away(op.payload))
    }

    pub(super) fn finish_write(&mut self, mut op: WriteOp, result: Result<()>) -> Step {
        self.state.return_granted(&mut op.granted);
        let id = op.partition;
        self.state.part(id).active_writes -= 1;
        let WriteOp { reply, done, manner, handle, errors_before, payload, .. } = op;
        let intake = self.state.put_away(payload);
        match result {
            // Some of it was taken before it failed: that much was written.
            Err(errno) if done == 0 => self.actions.answers.push(Answer::Write(reply, Err(errno))),
            _ if manner.stable && done > 0 => {
                // The next piece is sent when this one is stored.
                if let Some(caller) = manner.caller {
                    self.store_piece(id, caller.thread);
                }
                let reply = Box::new(move |outcome: Result<()>| reply(outcome.map(|()| done)));
                let epoch = self.state.part(id).epoch;
                let op = SyncOp {
                    partition: id,
                    handle,
                    epoch,
                    errors_before,
                    data_only: true,
                    written_only: false,
                    of_piece: true,
                    reply,
                };
                self.start_sync_op(op);
            }
            _ => self.actions.answers.push(Answer::Write(reply, Ok(done))),
        }
        self.quiet_down(id);
        self.state.drop_if_unused(id, self.actions);
        Step::Done(intake)
    }
}

enum Edge {
    /// Fully covered, already valid, or a partial page that stays one run.
    Plain,
    /// The bytes around are zero.
    Zero,
    /// This page must be completed first.
    Fill(usize),
    /// The bytes around are lost.
    Lost,
}

impl Target {
    /// The bytes of its first and last page that are not the client's, and what becomes of them.
    fn around(&self, unit: u64) -> [(Range<u64>, Around); 2] {
        let what = |zero| if zero { Around::Zero } else { Around::Stays };
        let head = self.pages.start as u64 * unit..self.bytes.start;
        let tail = self.bytes.end..self.pages.end as u64 * unit;
        [(head, what(self.zero_head)), (tail, what(self.zero_tail))]
    }
}

impl Plan {
    fn copy(&mut self, [first, second]: [&[u8]; 2], unit: u64) {
        let base = self.place.pages.start as u64 * unit;
        for (bytes, what) in self.place.around(unit) {
            if what == Around::Zero {
                self.lease[(bytes.start - base) as usize..(bytes.end - base) as usize].fill(0);
            }
        }
        let at = (self.place.bytes.start - base) as usize;
        let border = at + first.len();
        self.lease[at..border].copy_from_slice(first);
        self.lease[border..border + second.len()].copy_from_slice(second);
    }
}

impl State {
    /// The intake of a write whose next run is `bytes`, in these pages of a block, when that is to be taken in by
    /// exchange: it is the last of the write and most of the block, lies in the intake where it will lie in
    /// the block, and nothing else of the block is here, nor on its way.
    pub(crate) fn to_exchange<'a>(
        &self, op: &'a mut WriteOp, block_id: BlockId, bytes: &Range<u64>, pages: &Range<usize>,
    ) -> Option<&'a mut Intake> {
        let size = self.shape.block_size;
        let block = &self.blocks[block_id];
        let last = bytes.end == op.offset + op.length as u64;
        if !last || bytes.end - bytes.start < size / 2 || !matches!(block.place, Place::Buffer(_)) {
            return None;
        }
        let still = [&block.reading, &block.writing, &block.copying, &block.shared];
        let free = still.into_iter().all(PageSet::is_empty)
            && [&block.valid, &block.dirty]
                .into_iter()
                .all(|set| !set.any(0..pages.start) && !set.any(pages.end..block.pages));
        let begins_at = (op.offset % size) as usize;
        op.payload.intake().filter(|intake| free && intake.start == begins_at)
    }

    /// Puts away what an ended write had; returns an intake that its caller is to be given back.
    pub(crate) fn put_away(&mut self, payload: Payload) -> Option<Intake> {
        match payload {
            Payload::Lent(intake) => Some(intake),
            Payload::Kept(intake) => {
                self.intakes.push(intake);
                None
            }
            Payload::Caller | Payload::Copied(..) => None,
        }
    }
}

impl Engine {
    /// Memory to receive writes in, for [`Engine::write_from`]: as long as a block, aligned to a page and
    /// to the device. `None` when all of [`EngineOptions::intakes`](super::EngineOptions::intakes) are out.
    #[must_use]
    pub fn intake(&self) -> Option<Intake> {
        self.with(|locked| locked.state.intakes.pop())
    }

    /// Takes back what [`Engine::intake`] gave.
    pub fn return_intake(&self, intake: Intake) {
        self.with(|locked| locked.state.intakes.push(intake));
    }

    /// As [`Engine::write_as`], of the first `length` bytes that `intake` received. Returns the intake for the next
    /// write: the same one, or another when its memory has become a block's, or its bytes have to wait.
    ///
    /// # Panics
    /// When `length` is more than the intake has, or the intake is another engine's.
    pub fn write_from(
        &self, handle: HandleId, offset: u64, intake: Intake, length: usize, manner: Manner,
        reply: WriteReply,
    ) -> Intake {
        assert!(length <= intake.len(), "{length} bytes of {}", intake.len());
        let mut op = WriteOp::new(handle, offset, length, Payload::Lent(intake), reply);
        op.manner = manner;
        self.run_write(Box::new(op), &[]).expect("an intake comes back for the one that was lent")
    }

    /// Makes the payload of a write that has to wait last beyond the call. Returns the intake that its
    /// caller gets for one that is kept, or gets back for one that was copied.
    ///
    /// ENOBUFS when the user has as many writes waiting as one may have; the payload stays as it is then.
    pub(super) fn make_stay(&self, op: &mut WriteOp, borrowed: &[u8]) -> Result<Option<Intake>> {
        let bytes = op.done..op.length;
        if op.payload.stays() {
            return Ok(None);
        }
        let parked = self.bounds().parked.take(op.user, 1).map_err(|_| Errno::ENOBUFS)?;
        let payload = &mut op.payload;
        let Payload::Lent(intake) = std::mem::replace(payload, Payload::Caller) else {
            *payload = Payload::Copied(borrowed[bytes.clone()].to_vec(), bytes.start);
            op.parked = Some((parked, None));
            return Ok(None);
        };
        // One user's leave some for others, whose bytes would have to be copied.
        let share = self.bounds().intakes.take(op.user, 1).ok();
        match share.and_then(|share| Some((share, self.intake()?))) {
            Some((share, other)) => {
                *payload = Payload::Kept(intake);
                op.parked = Some((parked, Some(share)));
                Ok(Some(other))
            }
            None => {
                let copy = intake.pieces(bytes.clone()).concat();
                *payload = Payload::Copied(copy, bytes.start);
                op.parked = Some((parked, None));
                Ok(Some(intake))
            }
        }
    }
}
