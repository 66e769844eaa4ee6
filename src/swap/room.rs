//! Making room: who waits for buffers, what is written out and evicted for them.

use super::actions::Actions;
use super::block::{BufferIndex, NONE};
use super::engine::Engine;
use super::op::Op;
use super::state::State;

impl Engine {
    /// Parks an operation until it can have `count` buffers.
    pub(crate) fn wait_for_buffers(&self, st: &mut State, op: Op, count: usize) {
        st.stats.buffer_waits += 1;
        st.waiting.push_back((op, count));
    }

    /// Serves those who wait for buffers, in order, and starts what it takes to go on.
    pub(crate) fn pump(&self, st: &mut State, actions: &mut Actions) {
        while let Some((mut op, mut count)) = st.waiting.pop_front() {
            let idle_before = idle_blocks(st);
            if let Op::Read(op) = &mut op {
                // What it found in the pool when it began to wait may have gone or come; what is there
                // now stays until it goes on.
                let last = op.offset + op.length - 1;
                let indices = st.shape.block_of(op.offset)..=st.shape.block_of(last);
                let blocks = (indices.end() - indices.start() + 1) as usize;
                op.pinned = self.pin_present(st, op.partition, indices);
                count = blocks - op.pinned.len();
            }
            let held = idle_before - idle_blocks(st);
            let have = op.granted().map_or(0, |granted| granted.len());
            let need = count.saturating_sub(have);
            if st.obtainable(held) < need && !self.make_room(st, need, held, actions) {
                if let Op::Read(op) = &mut op {
                    self.unpin(st, std::mem::take(&mut op.pinned));
                }
                st.waiting.push_front((op, count));
                return;
            }
            if let Some(granted) = op.granted() {
                let mut granted_now = std::mem::take(granted);
                st.grant(&mut granted_now, count, actions);
                *op.granted().expect("it had some above") = granted_now;
            }
            actions.ready.push(op);
        }
    }

    /// Starts writing out the oldest dirty blocks so that `need` buffers become clean. True when they
    /// are available at once. `held` blocks are idle but for whom the room is made.
    fn make_room(&self, st: &mut State, need: usize, held: usize, actions: &mut Actions) -> bool {
        let wanted = need.max(self.options.writeback_batch);
        while st.writes_inflight < wanted && st.dirty.head != NONE {
            self.flush_block(st, st.dirty.head, actions);
        }
        // Everything else is reading, being copied or being written: its end comes back here.
        let all_idle = idle_blocks(st) + held == st.blocks.len();
        let nothing_moves = st.inflight_blocks == 0 && st.dirty.length == 0 && all_idle;
        while nothing_moves && st.obtainable(held) < need && st.failed.head != NONE {
            self.drop_failed(st, st.failed.head, actions);
        }
        st.obtainable(held) >= need
    }

    /// Gives up the bytes of a failed write-out, because the room is needed and nothing else gives it.
    fn drop_failed(&self, st: &mut State, buffer: BufferIndex, actions: &mut Actions) {
        let block = &st.blocks[buffer as usize];
        let (id, start) = (block.partition, block.index * st.shape.block_size);
        let (unit, pages) = (st.shape.unit, st.shape.pages());
        let mut at = 0;
        while let Some(run) = st.blocks[buffer as usize].dirty.run(at..pages) {
            at = run.end;
            let bytes = start + run.start as u64 * unit..start + run.end as u64 * unit;
            st.part(id).lost.insert(bytes);
        }
        log::error!(
            "bytes of {} at {start} that could not be written were dropped: the pool has no other room",
            super::actions::label(&*st.part(id).file)
        );
        st.detach(buffer, actions);
    }

    /// Keeps the number of partitions that only wait for their blocks to be used again, and so the
    /// number of descriptors, within its limit.
    pub(crate) fn trim(&self, st: &mut State, actions: &mut Actions) {
        let idle = st.partitions.len().saturating_sub(st.handles.len());
        if idle <= self.options.idle_partitions_max {
            return;
        }
        let mut buffer = st.clean.head;
        while buffer != NONE {
            let block = &st.blocks[buffer as usize];
            let (id, next) = (block.partition, block.next);
            let part = st.part(id);
            if part.handles == 0 && part.pending_blocks == 0 && part.dirty_pages == 0 {
                let buffers: Vec<_> = part.blocks.values().copied().collect();
                if buffers.iter().all(|b| st.blocks[*b as usize].idle()) {
                    for buffer in buffers {
                        st.detach(buffer, actions);
                    }
                    return;
                }
            }
            buffer = next;
        }
    }
}

/// Blocks that are not busy in a way that will end by itself.
fn idle_blocks(st: &State) -> usize {
    let listed = st.failed.length + st.clean.length + st.kept.length;
    listed + st.free.len() + st.holding + st.lent.len()
}
