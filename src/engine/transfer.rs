//! Starting transfers and taking their completions.

use std::ops::Range;
use std::time::Instant;

use super::actions::{Actions, Failure};
use super::block::BufferIndex;
use super::core::Engine;
use super::pages::next_run;
use super::partition::for_clients;
use super::state::{Purpose, State};
use crate::aio::device::{Action, Completion, Transfer};
use crate::error::{Errno, Result};

/// How much of a read has arrived.
#[derive(Clone, Copy)]
enum Taken {
    All,
    /// The first bytes; the rest has to be asked for again.
    Part(u64),
}

impl Engine {
    pub(crate) fn start_transfer(
        &self, st: &mut State, id: u32, purpose: Purpose, offset: u64, action: Action,
        actions: &mut Actions,
    ) {
        let file = st.file(id);
        let token = st.transfers.insert((purpose, Instant::now())) as u64;
        st.watch.begin(token, id);
        actions.transfers.push(Transfer { token, action, file, offset });
    }

    /// Starts reading every page of `pages` that is neither valid, nor partial, nor on its way. Pages
    /// of the backing file that nobody has written are zeroed at once. Returns the bytes asked of the device.
    pub(crate) fn read_pages(
        &self, st: &mut State, buffer: BufferIndex, pages: Range<usize>, actions: &mut Actions,
    ) -> u64 {
        let (unit, block_size) = (st.shape.unit, st.shape.block_size);
        let (id, index) = (st.blocks[buffer as usize].partition, st.blocks[buffer as usize].index);
        let start = index * block_size;
        let part = st.part(id);
        let size = part.size;
        let written_end = match part.written.overlaps(&(start..start + block_size)) {
            true => part.disk_size.min(part.written_end),
            false => start,
        };
        // What it has no room for is not asked for: who needs it has it moved first.
        let room = st.blocks[buffer as usize].pages;
        let end = st.shape.pages_of(index, start, size).end;
        let pages = pages.start..pages.end.min(end).min(room);
        let on_disk = st.shape.pages_of(index, start, written_end).end;
        let (mut at, mut asked) = (pages.start, 0);
        loop {
            let block = &st.blocks[buffer as usize];
            // Exclude `copying` too: a page being overwritten needs no reading.
            let missing = |i: usize| {
                !(block.valid.word(i)
                    | block.reading.word(i)
                    | block.dirty.word(i)
                    | block.copying.word(i))
            };
            let Some(mut run) = next_run(at..pages.end.max(at), missing) else {
                break;
            };
            if run.start >= on_disk {
                self.memory.zero(st, buffer, run.start as u64 * unit..run.end as u64 * unit);
                st.edit(buffer, |block| block.valid.insert(run.clone()));
                self.was_readable(st, buffer, &run);
                at = run.end;
                continue;
            }
            run.end = run.end.min(on_disk);
            at = run.end;
            asked += run.len() as u64 * unit;
            let stored = st.part(id).stored();
            self.read_run(st, buffer, run, 0, stored, actions);
        }
        asked
    }

    fn read_run(
        &self, st: &mut State, buffer: BufferIndex, pages: Range<usize>, done: u64, stored: u64,
        actions: &mut Actions,
    ) {
        let (unit, block_size) = (st.shape.unit, st.shape.block_size);
        if done == 0 {
            st.edit(buffer, |block| {
                block.reading.insert(pages.clone());
                block.transfers += 1;
            });
        }
        let block = &st.blocks[buffer as usize];
        let (id, start) = (block.partition, block.index * block_size);
        if done == 0 {
            st.part(id).reads += 1;
        }
        let bytes = pages.start as u64 * unit + done..pages.end as u64 * unit;
        let lease = self.memory.for_read(st, buffer, bytes.clone());
        let purpose = Purpose::Read { buffer, pages, done, stored };
        self.start_transfer(st, id, purpose, start + bytes.start, Action::Read(lease), actions);
    }

    /// Starts completing a partial page from the swap folder, through a scratch page.
    pub(crate) fn fill(
        &self, st: &mut State, buffer: BufferIndex, page: usize, actions: &mut Actions,
    ) {
        let block = &st.blocks[buffer as usize];
        if block.reading.contains(page) || block.copying.contains(page) {
            return;
        }
        let (id, index) = (block.partition, block.index);
        st.stats.edge_fills += 1;
        st.edit(buffer, |block| {
            block.reading.insert(page..page + 1);
            block.transfers += 1;
        });
        st.part(id).reads += 1;
        match st.scratch.pop() {
            Some(scratch) => {
                let stored = st.part(id).stored();
                self.start_fill(st, buffer, page, scratch, 0, stored, actions);
            }
            None => st.fill_queue.push_back((buffer, index, page as u32)),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a transfer's parts")]
    fn start_fill(
        &self, st: &mut State, buffer: BufferIndex, page: usize, scratch: usize, done: u64,
        stored: u64, actions: &mut Actions,
    ) {
        let block = &st.blocks[buffer as usize];
        let (id, start) = (block.partition, block.index * st.shape.block_size);
        let offset = start + page as u64 * st.shape.unit + done;
        let action = Action::Read(self.memory.scratch(scratch, done));
        self.start_transfer(
            st,
            id,
            Purpose::Fill { buffer, page, scratch, done, stored },
            offset,
            action,
            actions,
        );
    }

    /// Asks for a dirty block to be written out, and starts it when nothing is in the way.
    pub(crate) fn flush_block(&self, st: &mut State, buffer: BufferIndex, actions: &mut Actions) {
        st.edit(buffer, |block| block.flush = !block.dirty.is_empty());
        self.write_out(st, buffer, actions);
    }

    /// Starts the write-out that was asked for, unless something is in its way; whatever that is comes
    /// back here when it ends.
    pub(crate) fn write_out(&self, st: &mut State, buffer: BufferIndex, actions: &mut Actions) {
        let block = &st.blocks[buffer as usize];
        let id = block.partition;
        if !block.flush || !block.copying.is_empty() || st.part(id).writes_held() {
            return;
        }
        if self.awaits_rest(st, buffer) {
            return;
        }
        let block = &st.blocks[buffer as usize];
        if !block.partials.is_empty() {
            let partial: Vec<usize> = block.partials.iter().map(|p| p.page).collect();
            for page in partial {
                self.fill(st, buffer, page, actions);
            }
            return;
        }
        self.leave_unfinished(st, buffer);
        let block = &st.blocks[buffer as usize];
        let (unit, pages) = (st.shape.unit, block.pages);
        let start = block.index * st.shape.block_size;
        // What is beyond the end of the file (a truncate came between) is not written.
        let end = st.part(id).size.saturating_sub(start);
        let mut at = 0;
        while let Some(mut run) = st.blocks[buffer as usize].dirty.run(at..pages) {
            // The last page of a file goes alone where its length is no multiple of the alignment: without padding.
            let tail = (end / unit) as usize;
            if !end.is_multiple_of(st.shape.alignment) && (run.start + 1..run.end).contains(&tail) {
                run.end = tail;
            }
            at = run.end;
            let bytes = (run.end as u64 * unit).min(end) - run.start as u64 * unit;
            st.edit(buffer, |block| {
                if block.writing.is_empty() {
                    block.epoch_writing = block.epoch_dirty;
                }
                block.epoch_writing = block.epoch_writing.min(block.epoch_dirty);
                block.writing.insert(run.clone());
                block.dirty.remove(run.clone());
                block.transfers += 1;
            });
            st.part(id).writes += 1;
            st.writes_inflight += 1;
            self.write_run(st, buffer, run, bytes, 0, actions);
        }
        st.edit(buffer, |block| block.flush = false);
    }

    fn write_run(
        &self, st: &mut State, buffer: BufferIndex, pages: Range<usize>, bytes: u64, done: u64,
        actions: &mut Actions,
    ) {
        let block = &st.blocks[buffer as usize];
        let (id, start) = (block.partition, block.index * st.shape.block_size);
        let from = pages.start as u64 * st.shape.unit;
        let block = start..start + st.shape.block_size;
        let part = st.part(id);
        part.written_end = part.written_end.max(start + from + bytes);
        part.written.insert(block);
        if !part.ahead.is_empty() {
            let unit = self.shape.unit;
            part.ahead.remove(start + from..(start + from + bytes).next_multiple_of(unit));
        }
        // Whatever was noted: what gets bytes is not to be punched.
        if !part.ahead.is_empty() {
            part.ahead.remove(start + from..start + pages.end as u64 * self.shape.unit);
        }
        let lease = self.memory.for_write(st, buffer, from + done..from + bytes);
        let purpose = Purpose::Write { buffer, pages, bytes, done };
        self.start_transfer(st, id, purpose, start + from + done, Action::Write(lease), actions);
    }

    /// Starts the device sync of `op`.
    pub(crate) fn start_sync(&self, st: &mut State, op: super::op::SyncOp, actions: &mut Actions) {
        let id = op.partition;
        st.part(id).jobs += 1;
        st.part(id).unsynced = false;
        if !op.of_piece {
            // What is to be on stable storage now is not to be found torn, whatever may still come.
            self.finish_all(st, id);
        }
        let action = Action::Sync { data_only: op.data_only };
        self.start_transfer(st, id, Purpose::Sync(op), 0, action, actions);
    }

    /// Takes one finished transfer.
    pub(crate) fn completed(&self, st: &mut State, done: Completion, actions: &mut Actions) {
        let Completion { transfer, result } = done;
        let (purpose, since) =
            st.transfers.remove(transfer.token as usize).expect("completed once");
        st.watch.end(transfer.token);
        self.note_transfer(&transfer.action, since);
        match purpose {
            Purpose::Read { buffer, pages, done, stored } => {
                self.read_completed(st, buffer, pages, done, stored, transfer, result, actions);
            }
            Purpose::Fill { buffer, page, scratch, done, stored } => {
                let moved = self.taken(transfer, stored, result);
                match moved {
                    Ok(Taken::Part(step)) => {
                        let done = done + step;
                        self.start_fill(st, buffer, page, scratch, done, stored, actions);
                    }
                    Ok(Taken::All) => self.fill_completed(st, buffer, page, Ok(scratch), actions),
                    Err(errno) => self.fill_completed(st, buffer, page, Err(errno), actions),
                }
                if !matches!(moved, Ok(Taken::Part(_))) {
                    self.free_scratch(st, scratch, actions);
                }
            }
            Purpose::Write { buffer, pages, bytes, done } => {
                drop(transfer.action);
                self.write_completed(st, buffer, pages, bytes, done, result, actions);
            }
            Purpose::Sync(op) => self.synced(st, op, result.map(drop), actions),
            Purpose::Direct(part) => self.direct_completed(st, part, transfer, result, actions),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a completion's parts")]
    fn read_completed(
        &self, st: &mut State, buffer: BufferIndex, pages: Range<usize>, done: u64, stored: u64,
        transfer: Transfer, result: Result<usize>, actions: &mut Actions,
    ) {
        let id = st.blocks[buffer as usize].partition;
        let outcome = match self.taken(transfer, stored, result) {
            Ok(Taken::Part(step)) => {
                return self.read_run(st, buffer, pages, done + step, stored, actions);
            }
            Ok(Taken::All) => Ok(()),
            Err(errno) => Err(errno),
        };
        // What came before the failure is there.
        let arrived = pages.start..pages.start + (done / st.shape.unit) as usize;
        st.edit(buffer, |block| {
            block.reading.remove(pages.clone());
            block.transfers -= 1;
            if outcome.is_err() {
                block.valid.insert(arrived.clone());
            }
            match outcome {
                Ok(()) => block.valid.insert(pages.clone()),
                Err(errno) => block.read_error = Some(for_clients(errno)),
            }
        });
        st.part(id).reads -= 1;
        match outcome {
            Ok(()) => self.was_readable(st, buffer, &pages),
            Err(errno) => {
                self.was_readable(st, buffer, &arrived);
                self.read_failed(st, buffer, &(arrived.end..pages.end), errno, actions);
            }
        }
        self.transfer_ended(st, buffer, actions);
    }

    /// What has arrived of a read of a file that holds at least `stored` bytes. It may end within the
    /// pages: what lies beyond its end is zero.
    fn taken(&self, transfer: Transfer, stored: u64, result: Result<usize>) -> Result<Taken> {
        let Action::Read(mut lease) = transfer.action else { unreachable!("it was a read") };
        let (moved, asked) = (result?, lease.len());
        let expected = stored.saturating_sub(transfer.offset).min(asked as u64) as usize;
        if moved >= expected {
            lease[moved.min(asked)..].fill(0);
            return Ok(Taken::All);
        }
        match moved as u64 / self.shape.alignment * self.shape.alignment {
            0 => Err(Errno::EIO),
            step => Ok(Taken::Part(step)),
        }
    }

    /// Pages that could not be read before have been read now.
    fn was_readable(&self, st: &mut State, buffer: BufferIndex, pages: &Range<usize>) {
        let block = &st.blocks[buffer as usize];
        let (id, start) = (block.partition, block.index * st.shape.block_size);
        let unit = st.shape.unit;
        let part = st.part(id);
        if part.error.is_some() {
            let bytes = start + pages.start as u64 * unit..start + pages.end as u64 * unit;
            part.unreadable.remove(bytes);
            part.clear_error_if_mended();
        }
    }

    fn read_failed(
        &self, st: &mut State, buffer: BufferIndex, pages: &Range<usize>, errno: Errno,
        actions: &mut Actions,
    ) {
        let block = &st.blocks[buffer as usize];
        let (id, start) = (block.partition, block.index * st.shape.block_size);
        let unit = st.shape.unit;
        let bytes = start + pages.start as u64 * unit..start + pages.end as u64 * unit;
        // The device has cut the transfer before the first bad page: of the others nothing is known. Whoever asks
        // again for what is known to be damaged gets no second log line.
        let damaged = matches!(errno, Errno::EBADMSG | Errno::EUCLEAN);
        let bytes = if damaged { bytes.start..bytes.start + unit } else { bytes };
        if damaged && st.part(id).unreadable.overlaps(&bytes) {
            st.stats.errors += 1;
            st.part(id).note_failure(errno);
        } else {
            self.failure(st, id, "swap in", bytes.clone(), errno, actions);
        }
        st.part(id).unreadable.insert(bytes);
    }

    pub(crate) fn failure(
        &self, st: &mut State, id: u32, operation: &'static str, bytes: Range<u64>, errno: Errno,
        actions: &mut Actions,
    ) {
        st.stats.errors += 1;
        st.part(id).note_failure(errno);
        let (file, length) = (st.file(id), bytes.end - bytes.start);
        actions.failures.push(Failure { operation, file, offset: bytes.start, length, errno });
    }

    fn fill_completed(
        &self, st: &mut State, buffer: BufferIndex, page: usize, outcome: Result<usize>,
        actions: &mut Actions,
    ) {
        let id = st.blocks[buffer as usize].partition;
        if let Ok(scratch) = outcome {
            let at =
                st.blocks[buffer as usize].partial(page).expect("pages are filled while partial");
            let partial = st.blocks[buffer as usize].partials[at];
            let lease = self.memory.scratch(scratch, 0);
            self.memory.merge(st, buffer, page, partial.start..partial.end, &lease);
        }
        st.edit(buffer, |block| {
            block.reading.remove(page..page + 1);
            block.transfers -= 1;
            match outcome {
                Ok(_) => {
                    block.partials.retain(|p| p.page != page);
                    block.valid.insert(page..page + 1);
                }
                Err(errno) => {
                    let errno = for_clients(errno);
                    block.read_error = Some(errno);
                    // The block cannot go out without the rest of this page.
                    block.failed = Some(errno);
                    block.flush = false;
                }
            }
        });
        st.part(id).reads -= 1;
        let pages = page..page + 1;
        match outcome {
            Ok(_) => self.was_readable(st, buffer, &pages),
            Err(errno) => {
                self.read_failed(st, buffer, &pages, errno, actions);
                // What was written of the page cannot be stored.
                st.part(id).owe_error(errno);
            }
        }
        self.transfer_ended(st, buffer, actions);
    }

    /// Uses a freed scratch page for a fill that waits for one.
    fn free_scratch(&self, st: &mut State, scratch: usize, actions: &mut Actions) {
        match st.fill_queue.pop_front() {
            Some((buffer, index, page)) => {
                assert_eq!(st.blocks[buffer as usize].index, index, "a block being filled stays");
                let id = st.blocks[buffer as usize].partition;
                let stored = st.part(id).stored();
                self.start_fill(st, buffer, page as usize, scratch, 0, stored, actions);
            }
            None => st.scratch.push(scratch),
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a completion's parts")]
    fn write_completed(
        &self, st: &mut State, buffer: BufferIndex, pages: Range<usize>, bytes: u64, done: u64,
        result: Result<usize>, actions: &mut Actions,
    ) {
        let block = &st.blocks[buffer as usize];
        let id = block.partition;
        let start = block.index * st.shape.block_size + pages.start as u64 * st.shape.unit;
        let outcome = match result {
            Ok(moved) if moved as u64 >= bytes - done => Ok(()),
            Ok(moved) => {
                let step = moved as u64 / st.shape.alignment * st.shape.alignment;
                if step > 0 {
                    let part = st.part(id);
                    part.disk_size = part.disk_size.max(start + done + step);
                    return self.write_run(st, buffer, pages, bytes, done + step, actions);
                }
                Err(Errno::EIO)
            }
            Err(errno) => Err(errno),
        };
        let part = st.part(id);
        part.writes -= 1;
        match outcome {
            Ok(()) => {
                part.disk_size = part.disk_size.max(start + bytes);
                part.unsynced = true;
                let landed = start..start + pages.len() as u64 * self.shape.unit;
                part.lost.remove(landed.clone());
                part.unreadable.remove(landed);
            }
            Err(errno) => {
                self.failure(st, id, "swap out", start..start + bytes, errno, actions);
                st.part(id).owe_error(errno);
            }
        }
        st.writes_inflight -= 1;
        st.edit(buffer, |block| {
            block.writing.remove(pages.clone());
            block.transfers -= 1;
            if let Err(errno) = outcome {
                block.dirty.insert(pages.clone());
                block.failed = Some(errno);
                block.flush = false;
            }
        });
        if outcome.is_ok() {
            st.part(id).clear_error_if_mended();
        }
        self.transfer_ended(st, buffer, actions);
    }

    /// What the end of any transfer can let go on.
    fn transfer_ended(&self, st: &mut State, buffer: BufferIndex, actions: &mut Actions) {
        let id = st.blocks[buffer as usize].partition;
        st.wake(buffer, actions);
        // The partition may go with its last block; nothing below may touch it then.
        st.part(id).jobs += 1;
        self.write_out(st, buffer, actions);
        self.quiet_down(st, id, actions);
        // A discard that has waited for this transfer has taken the block already.
        let is_there = st.blocks[buffer as usize].partition == id;
        if is_there && st.part(id).gone() {
            self.discard_block(st, buffer, actions);
        }
        st.part(id).jobs -= 1;
        st.drop_if_unused(id, actions);
    }
}
