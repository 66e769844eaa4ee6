//! Making room: who waits for buffers, what is written out and evicted for them.

use std::time::Instant;

use super::actions::{Actions, Note};
use super::block::{BufferIndex, ListKind, NONE};
use super::buffers::{Moving, SPARE_MS};
use super::core::Engine;
use super::op::Op;
use super::partition::Handle;
use super::state::State;
use super::trays::{Occupant, Place};
use super::waiting::Waiter;
use crate::shares::User;

impl Engine {
    /// Parks an operation until it can have `count` buffers.
    pub(crate) fn wait_for_buffers(&self, st: &mut State, op: Op, count: usize) {
        st.stats.buffer_waits += 1;
        let of_handle = |handle: Option<u64>| st.handles.get(handle? as usize).map(Handle::user);
        let user = match &op {
            Op::Read(op) => of_handle(op.handle),
            Op::Write(op) => Some(op.user),
            Op::Fetch(op) => Some(op.user),
            _ => None,
        };
        let waiter = Waiter { op, count, since: Instant::now() };
        st.waiting.push(user.unwrap_or(User::OWN).uid(), waiter);
    }

    /// Serves those who wait for buffers, in turns by user, and starts what it takes to go on.
    pub(crate) fn pump(&self, st: &mut State, actions: &mut Actions) {
        while let Some(Waiter { mut op, mut count, since }) = st.waiting.take() {
            let now_ms = self.now_ms();
            let patient = st.first_waits_since.is_none_or(|since| since + SPARE_MS > now_ms);
            let moving = if patient { st.moving() } else { Moving::default() };
            let idle_before = st.idle_buffers();
            if let Op::Read(op) = &mut op {
                // What it found in the pool when it began to wait may have gone or come; what is there
                // now stays until it goes on.
                let bytes = op.offset..op.offset + op.length;
                let blocks = st.shape.blocks_of(&bytes);
                let blocks = (blocks.end() - blocks.start() + 1) as usize;
                op.pinned = self.pin_fitting(st, op.partition, &bytes);
                count = blocks - op.pinned.len();
            }
            let held = idle_before - st.idle_buffers();
            let have = op.granted().map_or(0, |granted| granted.len());
            let need = count.saturating_sub(have);
            if st.obtainable(moving) < need && !self.make_room(st, need, moving, held, actions) {
                if let Op::Read(op) = &mut op {
                    self.unpin(st, std::mem::take(&mut op.pinned));
                }
                st.waiting.put_back(Waiter { op, count, since });
                st.first_waits_since.get_or_insert(now_ms);
                return;
            }
            st.waiting.served();
            st.first_waits_since = None;
            self.meter.waits.record(since.elapsed());
            if let Some(granted) = op.granted() {
                let mut granted_now = std::mem::take(granted);
                st.grant(&mut granted_now, count, actions);
                *op.granted().expect("it had some above") = granted_now;
            }
            actions.ready.push(op);
        }
    }

    /// Starts writing out the oldest dirty blocks so that `need` buffers become clean. True when they
    /// are available at once. Something is `moving`, and `held` buffers are idle, but for whom the room
    /// is made.
    fn make_room(
        &self, st: &mut State, need: usize, moving: Moving, held: usize, actions: &mut Actions,
    ) -> bool {
        let wanted = need.max(self.options.writeback_batch);
        while st.writes_inflight < wanted && st.dirty.head != NONE {
            self.flush_buffer(st, st.dirty.head, actions);
        }
        // Everything else is reading, being copied or being written: its end comes back here.
        let all_idle = st.idle_buffers() + held == st.buffers;
        let nothing_moves = st.inflight_buffers() == 0 && st.dirty.length == 0 && all_idle;
        while nothing_moves
            && st.obtainable(moving) < need
            && let Some(failed) = droppable(st)
        {
            self.drop_failed(st, failed, actions);
        }
        st.obtainable(moving) >= need
    }

    /// Has a dirty block written out; one in a slot with all of its tray, which is no room before.
    fn flush_buffer(&self, st: &mut State, buffer: BufferIndex, actions: &mut Actions) {
        self.flush_block(st, buffer, actions);
        let Place::Slot { tray, .. } = st.blocks[buffer as usize].place else { return };
        for occupant in st.trays.occupants(tray) {
            if let Occupant::Block(other) = occupant
                && st.blocks[other as usize].list == ListKind::Dirty
            {
                self.flush_block(st, other, actions);
            }
        }
    }

    /// Gives up the bytes of a failed write-out, because the room is needed and nothing else gives it.
    fn drop_failed(&self, st: &mut State, buffer: BufferIndex, actions: &mut Actions) {
        let block = &st.blocks[buffer as usize];
        let (id, start) = (block.partition, block.index * st.shape.block_size);
        let (unit, pages) = (st.shape.unit, block.pages);
        let mut at = 0;
        while let Some(run) = st.blocks[buffer as usize].dirty.run(at..pages) {
            at = run.end;
            let bytes = start + run.start as u64 * unit..start + run.end as u64 * unit;
            st.part(id).lost.insert(bytes);
        }
        actions.notes.push(Note::Dropped { file: st.file(id), offset: start });
        st.detach(buffer, actions);
    }

    /// Frees a buffer that was put to use and never got anything.
    pub(crate) fn drop_if_blank(&self, st: &mut State, buffer: BufferIndex, actions: &mut Actions) {
        let block = &st.blocks[buffer as usize];
        if block.partition != NONE
            && block.valid.is_empty()
            && block.dirty.is_empty()
            && block.idle()
        {
            // Its partition is kept by the handle or the activity of whoever held it.
            let id = block.partition;
            st.part(id).jobs += 1;
            st.detach(buffer, actions);
            st.part(id).jobs -= 1;
        }
    }
}

/// The oldest block with a failed write-out that gives room when dropped: not beside a slot that is held.
fn droppable(st: &State) -> Option<BufferIndex> {
    let mut buffer = st.failed.head;
    while buffer != NONE {
        match st.blocks[buffer as usize].place {
            Place::Slot { tray, .. } if st.trays.is_held(tray) => {}
            _ => return Some(buffer),
        }
        buffer = st.blocks[buffer as usize].next;
    }
    None
}
