//! Making room: who waits for buffers, what is written out and evicted for them.

use std::time::Instant;

use super::actions::Note;
use super::block::ListKind;
use super::buffers::{Moving, SPARE_MS};
use super::ids::{BlockId, HandleId, PartitionId};
use super::locked::Locked;
use super::op::Op;
use super::partition::Handle;
use super::state::State;
use super::trays::{Occupant, Place};
use super::waiting::Waiter;
use crate::shares::User;

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
    fn flush_buffer(&mut self, buffer: BlockId) {
        self.flush_block(buffer);
        let Place::Slot { tray, .. } = self.state.blocks[buffer].place else { return };
        for occupant in self.state.trays.occupants(tray) {
            if let Occupant::Block(other) = occupant
                && self.state.blocks[other].list == ListKind::Dirty
            {
                self.flush_block(other);
            }
        }
    }

    /// Gives up the bytes of a failed write-out, because the room is needed and nothing else gives it.
    fn drop_failed(&mut self, buffer: BlockId) {
        let block = &self.state.blocks[buffer];
        let (id, start) = (block.partition, block.index * self.state.shape.block_size);
        let (unit, pages) = (self.state.shape.unit, block.pages);
        let mut at = 0;
        while let Some(run) = self.state.blocks[buffer].dirty.run(at..pages) {
            at = run.end;
            let bytes = start + run.start as u64 * unit..start + run.end as u64 * unit;
            self.state.part(id).lost.insert(bytes);
        }
        self.actions.notes.push(Note::Dropped { file: self.state.file(id), offset: start });
        self.state.detach(buffer, self.actions);
    }

    /// Frees a buffer that was put to use and never got anything.
    pub(crate) fn drop_if_blank(&mut self, buffer: BlockId) {
        let block = &self.state.blocks[buffer];
        if block.partition != PartitionId::NONE
            && block.valid.is_empty()
            && block.dirty.is_empty()
            && block.idle()
        {
            // Its partition is kept by the handle or the activity of whoever held it.
            let id = block.partition;
            self.state.part(id).jobs += 1;
            self.state.detach(buffer, self.actions);
            self.state.part(id).jobs -= 1;
        }
    }
}

/// The oldest block with a failed write-out that gives room when dropped: not beside a slot that is held.
fn droppable(st: &State) -> Option<BlockId> {
    let mut buffer = st.failed.head;
    while buffer != BlockId::NONE {
        match st.blocks[buffer].place {
            Place::Slot { tray, .. } if st.trays.is_held(tray) => {}
            _ => return Some(buffer),
        }
        buffer = st.blocks[buffer].next;
    }
    None
}
