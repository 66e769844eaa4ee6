//! Who has which buffer: what is available, what is evicted for whom, and how blocks get their places.
//!
//! # Order of eviction
//!
//! 1. Clean blocks of large partitions, oldest use first.
//! 2. Trays of small partitions, oldest use first; a tray goes as a whole.
//! 3. What was swapped in on request.
//!
//! The second are *spared* as long as something of the first kind is moving, and so about to become
//! clean, and the third as long as anything is: those who need buffers wait for that instead, but not longer
//! than [`SPARE_MS`]. A quarter of the pool is never defended by small partitions: with fewer buffers a large
//! stream would crawl.
//!
//! # Why nobody waits for ever
//!
//! An operation that waits for buffers holds none (it gets all it needs at once), has no lease on a byte,
//! and pins no block whose room it needs itself: a block that has outgrown its slot counts as absent, so
//! that its tray can be written out and evicted for the very operation that wants to move it. What keeps a
//! buffer from being evicted is thus one of
//!
//! - a transfer or a copy: it ends by itself, and its end comes back here;
//! - dirty bytes: whoever waits at the head of the queue has the oldest written out, of a tray all of them;
//! - a failed write-out: dropped when nothing else is left;
//! - a tray in which one slot is any of these, which ends with it;
//! - a holder ([`super::hold`]), of the block itself or of another slot of its tray, or a borrower
//!   (same module): these end when somebody likes, so nobody may count on it.
//!
//! So at the latest when all but the last is still, every buffer within the limit that is neither held nor
//! lent is obtainable. Of these there are always enough for the largest request: holders and borrowers
//! together have no more buffers than the budget ([`super::budget`]) has tokens, which is the pool less that
//! number, for every held block and every lent buffer takes a token and binds at most one buffer; and the
//! limit grows by what is held or lent, so that a reservation does not eat into the rest. A failed write-out
//! beside a held slot is not dropped: it would give no room. Those who hold some of the blocks they need
//! and wait for the others are no exception: their tokens were taken all at once, so the others are
//! obtainable as for everybody.
//!
//! All need not become still, though: the slots of a tray may be rewritten in turn without end, so that it
//! is never clean as a whole. That is why sparing ends after a while for whoever waits first. A vacant slot
//! may be taken without a buffer, but not past those who wait.
//!
//! Making room: who waits for buffers, what is written out and evicted for them.

use std::time::Instant;

use super::actions::{Actions, Note};
use super::block::{Block, ListKind};
use super::ids::{BlockId, BufferId, HandleId, PartitionId};
use super::locked::Locked;
use super::op::{Granted, Op};
use super::partition::Handle;
use super::state::State;
use super::trays::{Occupant, Place, Weight};
use super::waiting::Waiter;
use crate::shares::User;

/// How long the first of those who wait does so for the sake of what is spared.
pub(crate) const SPARE_MS: u64 = 5000;

/// What is bound and will become clean by itself.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Moving {
    /// A block that has a buffer of its own, which then goes first.
    plain: bool,
    /// That, or a tray.
    any: bool,
}

impl State {
    /// Buffers that may be in use: all but the reserved ones, and always enough, besides those that are
    /// held or lent, for the largest request to go on.
    fn limit(&self) -> usize {
        let least = self.shape.buffers_moving() + self.held() + self.lent.len();
        (self.buffers - self.reserved).max(least).min(self.buffers)
    }

    /// Buffers that somebody holds, whole or in part: whatever goes on with them, they give no room.
    fn held(&self) -> usize {
        self.plain.held as usize + self.trays.held()
    }

    /// Buffers that are neither reserved nor lent out.
    pub(crate) fn in_circulation(&self) -> u64 {
        self.buffers.saturating_sub(self.reserved + self.lent.len()) as u64
    }

    /// Buffers in use that no eviction can give.
    fn bound(&self) -> usize {
        let evictable = self.clean.length + self.kept.length + self.trays.evictable();
        self.buffers - self.free.len() - evictable
    }

    /// What of all that is bound will become clean, and can be evicted before what is spared.
    pub(crate) fn moving(&self) -> Moving {
        let trays = self.trays.len() - self.trays.evictable();
        let still = (self.plain.failed + self.plain.held) as usize + self.lent.len();
        let plain = self.bound() - trays > still;
        Moving { plain, any: plain || trays > self.trays.failed() + self.trays.held() }
    }

    /// Free buffers and those that can be had by evicting, less the reserved ones.
    pub(crate) fn available(&self) -> usize {
        (self.buffers - self.reserved).saturating_sub(self.bound())
    }

    /// Buffers that hold nothing, less the reserved ones.
    pub(crate) fn free_buffers(&self) -> usize {
        self.free.len().saturating_sub(self.reserved).min(self.available())
    }

    /// Buffers with bytes newer than the swap folder.
    pub(crate) fn dirty_buffers(&self) -> usize {
        self.plain.dirty as usize + self.trays.dirty()
    }

    /// Buffers under transfer.
    pub(crate) fn inflight_buffers(&self) -> usize {
        self.plain.inflight as usize + self.trays.inflight()
    }

    /// Buffers that nobody is busy with in a way that will end by itself and give room.
    pub(crate) fn idle_buffers(&self) -> usize {
        let still = (self.plain.failed + self.plain.held) as usize + self.lent.len();
        self.free.len() + self.clean.length + self.kept.length + still + self.trays.idle()
    }

    /// Buffers that an operation can have at once, those that keep a reserved pool moving included; not
    /// what is spared while something else is `moving`.
    pub(crate) fn obtainable(&self, moving: Moving) -> usize {
        let unkept = self.trays.evictable_unkept();
        let bespoken = self.trays.len() + self.plain.held as usize + self.lent.len();
        let undefended = (self.buffers / 4).saturating_sub(self.buffers - bespoken);
        let trays = if moving.plain { unkept - undefended.min(unkept) } else { 0 };
        let kept = self.kept.length + self.trays.evictable() - unkept;
        let spared = trays + if moving.any { kept } else { 0 };
        self.limit().saturating_sub(self.bound() + spared)
    }

    /// Makes one buffer free, in the order that the module's documentation names.
    fn evict(&mut self, actions: &mut Actions) -> bool {
        if self.clean.head != BlockId::NONE {
            self.stats.evictions += 1;
            self.detach(self.clean.head, actions);
            return true;
        }
        if let Some(tray) = self.trays.oldest(false) {
            self.evict_tray(tray, actions);
            return true;
        }
        if self.kept.head != BlockId::NONE {
            self.stats.evictions += 1;
            self.detach(self.kept.head, actions);
            return true;
        }
        self.trays.oldest(true).is_some_and(|tray| {
            self.evict_tray(tray, actions);
            true
        })
    }

    /// Drops everything in a tray, which is idle and clean.
    pub(crate) fn evict_tray(&mut self, tray: BufferId, actions: &mut Actions) {
        for occupant in self.trays.occupants(tray) {
            self.stats.evictions += 1;
            match occupant {
                Occupant::Block(buffer) => self.detach(buffer, actions),
                Occupant::Resting(number) => self.forget_resting(number),
                Occupant::Nobody => {}
            }
        }
    }

    fn take_buffer(&mut self, actions: &mut Actions) -> Option<BufferId> {
        while self.free.is_empty() || self.buffers - self.free.len() >= self.limit() {
            if !self.evict(actions) {
                return None;
            }
        }
        self.free.pop()
    }

    /// Gives up what is in use beyond the limit, after a reservation.
    pub(crate) fn shrink_to_limit(&mut self, actions: &mut Actions) {
        while self.reserved > 0 && self.buffers - self.free.len() > self.limit() {
            if !self.evict(actions) {
                return;
            }
        }
    }

    /// Takes `count` buffers at once, or none. Those who wait already come first.
    pub(crate) fn acquire(
        &mut self, granted: &mut Granted, count: usize, actions: &mut Actions,
    ) -> bool {
        if granted.len() >= count {
            return true;
        }
        if !self.waiting.is_empty() || self.obtainable(self.moving()) < count - granted.len() {
            return false;
        }
        self.grant(granted, count, actions);
        true
    }

    pub(crate) fn grant(&mut self, granted: &mut Granted, count: usize, actions: &mut Actions) {
        while granted.len() < count {
            granted.push(self.take_buffer(actions).expect("availability was checked"));
        }
    }

    /// Returns buffers that an operation was given and did not need.
    pub(crate) fn return_granted(&mut self, granted: &mut Granted) {
        self.free.extend(granted.drain(..));
    }

    /// A vacant slot of that many pages, which takes no buffer. Those who wait for buffers come first.
    pub(crate) fn vacancy(&self, granted: &Granted, slot: Option<usize>) -> Option<Place> {
        let pages = slot?;
        let turn = !granted.is_empty() || self.waiting.is_empty();
        turn.then(|| self.trays.vacancy(pages)).flatten()
    }

    /// Makes one of the granted buffers a block's place, or the first slot of it.
    pub(crate) fn claim_buffer(&mut self, granted: &mut Granted, slot: Option<usize>) -> Place {
        let buffer = granted.pop().expect("one was acquired");
        match slot {
            Some(pages) => self.trays.make(buffer, pages),
            None => Place::Buffer(buffer),
        }
    }

    /// Finds a place for a block that is absent: a slot of that many pages, or a buffer. `None` when one
    /// has to wait for a buffer.
    pub(crate) fn place(
        &mut self, granted: &mut Granted, partition: PartitionId, index: u64, slot: Option<usize>,
        actions: &mut Actions,
    ) -> Option<BlockId> {
        let place = match self.vacancy(granted, slot) {
            Some(place) => place,
            None if self.acquire(granted, 1, actions) => self.claim_buffer(granted, slot),
            None => return None,
        };
        Some(self.attach(place, partition, index))
    }

    /// Puts an empty place to use for block `index` of a partition.
    pub(crate) fn attach(&mut self, place: Place, partition: PartitionId, index: u64) -> BlockId {
        let block_id = self.new_block(partition, index);
        self.enter(block_id, place);
        block_id
    }

    /// Makes block 0 of a partition of a slot that is somebody's who means nothing.
    pub(crate) fn adopt(&mut self, tray: BufferId, slot: u32, partition: PartitionId) -> BlockId {
        let buffer = self.new_block(partition, 0);
        self.trays.hand_over(tray, slot, Occupant::Block(buffer));
        let pages = self.trays.slot_pages(tray);
        let block = self.block(buffer);
        block.place = Place::Slot { tray, slot };
        block.set_pages(pages);
        self.relist(buffer);
        buffer
    }

    fn new_block(&mut self, partition: PartitionId, index: u64) -> BlockId {
        let block_id = self.unused.pop().unwrap_or_else(|| self.blocks.push(Block::new()));
        let block = self.block(block_id);
        assert_eq!(block.partition, PartitionId::NONE, "a block has one holder at a time");
        block.partition = partition;
        block.index = index;
        let before = self.part(partition).blocks.insert(index, block_id);
        assert!(before.is_none(), "a block has one place");
        block_id
    }

    /// Gives a block that has none its place.
    fn enter(&mut self, block_id: BlockId, place: Place) {
        let pages = match place {
            Place::Slot { tray, slot } => {
                let who = Occupant::Block(block_id);
                self.trays.occupy(tray, slot, who, Weight::default());
                self.trays.slot_pages(tray)
            }
            _ => self.shape.pages(),
        };
        let block = self.block(block_id);
        block.place = place;
        block.set_pages(pages);
        self.relist(block_id);
    }

    /// Takes a block's place away.
    fn leave(&mut self, block_id: BlockId) {
        self.unlink(block_id);
        let block = self.block(block_id);
        let counted = std::mem::take(&mut block.counted);
        match std::mem::replace(&mut block.place, Place::Nowhere) {
            Place::Buffer(number) => {
                self.plain.change(counted, Weight::default());
                self.free.push(number);
            }
            Place::Slot { tray, slot } => {
                if self.trays.vacate(tray, slot, counted) {
                    self.free.push(tray);
                }
            }
            Place::Nowhere => {}
        }
    }

    /// Brings what its place counts up to date with a block.
    pub(crate) fn recount(&mut self, block_id: BlockId) {
        let block = self.block(block_id);
        let now = block.weight();
        let counted = std::mem::replace(&mut block.counted, now);
        if counted != now {
            match block.place {
                Place::Slot { tray, .. } => self.trays.reweigh(tray, counted, now),
                _ => self.plain.change(counted, now),
            }
        }
    }

    /// A block has another place from now on; its bytes were copied there.
    pub(crate) fn moved(&mut self, block_id: BlockId, place: Place) {
        assert!(self.blocks[block_id].still(), "nobody has a lease on what moves");
        self.leave(block_id);
        self.enter(block_id, place);
    }

    /// Lets a block that has a whole buffer, as one or as a tray's only slot, keep its bytes where they
    /// are, at the start of it: in the first slot of `pages` pages, or with a buffer of its own.
    pub(crate) fn recast(&mut self, block_id: BlockId, pages: Option<usize>) {
        assert_eq!(self.blocks[block_id].pages, self.shape.pages());
        assert!(self.blocks[block_id].still() || pages.is_none());
        self.leave(block_id);
        let number = self.free.pop().expect("its own was freed last");
        let place = match pages {
            Some(pages) => self.trays.make(number, pages),
            None => Place::Buffer(number),
        };
        self.enter(block_id, place);
    }

    /// Drops an idle block with whatever it holds; its room becomes free.
    pub(crate) fn detach(&mut self, block_id: BlockId, actions: &mut Actions) {
        self.edit(block_id, |block| {
            block.valid.clear();
            block.dirty.clear();
            block.partials.clear();
            block.flush = false;
            block.failed = None;
        });
        let (partition, index) = self.forget_block(block_id);
        self.part(partition).blocks.remove(&index);
        self.drop_if_unused(partition, actions);
    }

    fn forget_block(&mut self, block_id: BlockId) -> (PartitionId, u64) {
        self.leave(block_id);
        let block = self.block(block_id);
        let owner = (block.partition, block.index);
        block.reset();
        self.unused.push(block_id);
        owner
    }

    /// Ends a block whose slot somebody else has taken over.
    pub(crate) fn abandon(&mut self, block_id: BlockId) {
        self.unlink(block_id);
        let block = self.block(block_id);
        block.place = Place::Nowhere;
        block.counted = Weight::default();
        self.forget_block(block_id);
    }
}

impl Locked<'_> {
    /// Parks an operation until it can have `count` buffers.
    pub(crate) fn wait_for_buffers(&mut self, op: Op, count: usize) {
        self.state.stats.buffer_waits += 1;
        let of_handle =
            |handle: Option<HandleId>| self.state.handles.get(handle?).map(Handle::user);
        let user = match &op {
            Op::Read(op) => of_handle(op.handle),
            Op::Write(op) => Some(op.user),
            Op::Fetch(op) => Some(op.user),
            _ => None,
        };
        let waiter = Waiter { op, count, since: Instant::now() };
        self.state.waiting.push(user.unwrap_or(User::OWN).uid(), waiter);
    }

    /// Serves those who wait for buffers, in turns by user, and starts what it takes to go on.
    pub(crate) fn pump(&mut self) {
        while let Some(Waiter { mut op, mut count, since }) = self.state.waiting.take() {
            let now_ms = self.engine.now_ms();
            let patient =
                self.state.first_waits_since.is_none_or(|since| since + SPARE_MS > now_ms);
            let moving = if patient { self.state.moving() } else { Moving::default() };
            let idle_before = self.state.idle_buffers();
            if let Op::Read(op) = &mut op {
                // What it found in the pool when it began to wait may have gone or come; what is there
                // now stays until it goes on.
                let bytes = op.offset..op.offset + op.length;
                let blocks = self.state.shape.blocks_of(&bytes);
                let blocks = (blocks.end() - blocks.start() + 1) as usize;
                op.pinned = self.pin_fitting(op.partition, &bytes);
                count = blocks - op.pinned.len();
            }
            let held = idle_before - self.state.idle_buffers();
            let have = op.granted().map_or(0, |granted| granted.len());
            let need = count.saturating_sub(have);
            if self.state.obtainable(moving) < need && !self.make_room(need, moving, held) {
                if let Op::Read(op) = &mut op {
                    self.unpin(std::mem::take(&mut op.pinned));
                }
                self.state.waiting.put_back(Waiter { op, count, since });
                self.state.first_waits_since.get_or_insert(now_ms);
                return;
            }
            self.state.waiting.served();
            self.state.first_waits_since = None;
            self.engine.meter.waits.record(since.elapsed());
            if let Some(granted) = op.granted() {
                let mut granted_now = std::mem::take(granted);
                self.state.grant(&mut granted_now, count, self.actions);
                *op.granted().expect("it had some above") = granted_now;
            }
            self.actions.ready.push(op);
        }
    }

    /// Starts writing out the oldest dirty blocks so that `need` buffers become clean. True when they
    /// are available at once. Something is `moving`, and `held` buffers are idle, but for whom the room
    /// is made.
    fn make_room(&mut self, need: usize, moving: Moving, held: usize) -> bool {
        let wanted = need.max(self.engine.options.writeback_batch);
        while self.state.writes_inflight < wanted && self.state.dirty.head != BlockId::NONE {
            self.flush_buffer(self.state.dirty.head);
        }
        // Everything else is reading, being copied or being written: its end comes back here.
        let all_idle = self.state.idle_buffers() + held == self.state.buffers;
        let nothing_moves =
            self.state.inflight_buffers() == 0 && self.state.dirty.length == 0 && all_idle;
        while nothing_moves
            && self.state.obtainable(moving) < need
            && let Some(failed) = droppable(self.state)
        {
            self.drop_failed(failed);
        }
        self.state.obtainable(moving) >= need
    }

    /// Has a dirty block written out; one in a slot with all of its tray, which is no room before.
    fn flush_buffer(&mut self, block_id: BlockId) {
        self.flush_block(block_id);
        let Place::Slot { tray, .. } = self.state.blocks[block_id].place else { return };
        for occupant in self.state.trays.occupants(tray) {
            if let Occupant::Block(other) = occupant
                && self.state.blocks[other].list == ListKind::Dirty
            {
                self.flush_block(other);
            }
        }
    }

    /// Gives up the bytes of a failed write-out, because the room is needed and nothing else gives it.
    fn drop_failed(&mut self, block_id: BlockId) {
        let block = &self.state.blocks[block_id];
        let (id, start) = (block.partition, block.index * self.state.shape.block_size);
        let (unit, pages) = (self.state.shape.unit, block.pages);
        let mut at = 0;
        while let Some(run) = self.state.blocks[block_id].dirty.run(at..pages) {
            at = run.end;
            let bytes = start + run.start as u64 * unit..start + run.end as u64 * unit;
            self.state.part(id).lost.insert(bytes);
        }
        self.actions.notes.push(Note::Dropped { file: self.state.file(id), offset: start });
        self.state.detach(block_id, self.actions);
    }

    /// Frees a buffer that was put to use and never got anything.
    pub(crate) fn drop_if_blank(&mut self, block_id: BlockId) {
        let block = &self.state.blocks[block_id];
        if block.partition != PartitionId::NONE
            && block.valid.is_empty()
            && block.dirty.is_empty()
            && block.idle()
        {
            // Its partition is kept by the handle or the activity of whoever held it.
            let id = block.partition;
            self.state.part(id).jobs += 1;
            self.state.detach(block_id, self.actions);
            self.state.part(id).jobs -= 1;
        }
    }
}

/// The oldest block with a failed write-out that gives room when dropped: not beside a slot that is held.
fn droppable(st: &State) -> Option<BlockId> {
    let mut block_id = st.failed.head;
    while block_id != BlockId::NONE {
        match st.blocks[block_id].place {
            Place::Slot { tray, .. } if st.trays.is_held(tray) => {}
            _ => return Some(block_id),
        }
        block_id = st.blocks[block_id].next;
    }
    None
}
