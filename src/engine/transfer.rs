//! Starting transfers and taking their completions.

use std::ops::Range;
use std::time::Instant;

use super::actions::Failure;
use super::core::Engine;
use super::ids::{BlockId, PartitionId, TransferId};
use super::locked::Locked;
use super::pages::next_run;
use super::partition::for_clients;
use super::state::Purpose;
use crate::aio::device::{Action, Completion, Transfer};
use crate::error::{Errno, Result};

/// How much of a read has arrived.
#[derive(Clone, Copy)]
enum Taken {
    All,
    /// The first bytes; the rest has to be asked for again.
    Part(u64),
}

impl Locked<'_> {
    pub(crate) fn start_transfer(
        &mut self, id: PartitionId, purpose: Purpose, offset: u64, action: Action,
    ) {
        let file = self.state.file(id);
        let token = self.state.transfers.insert((purpose, Instant::now()));
        self.state.watch.begin(token, id);
        self.actions.transfers.push(Transfer { token: token.0, action, file, offset });
    }

    /// Starts reading every page of `pages` that is neither valid, nor partial, nor on its way. Pages
    /// of the backing file that nobody has written are zeroed at once. Returns the bytes asked of the device.
    pub(crate) fn read_pages(&mut self, block_id: BlockId, pages: Range<usize>) -> u64 {
        let (unit, block_size) = (self.state.shape.unit, self.state.shape.block_size);
        let (id, index) =
            (self.state.blocks[block_id].partition, self.state.blocks[block_id].index);
        let start = index * block_size;
        let part = self.state.part(id);
        let size = part.size;
        let written_end = match part.written.overlaps(&(start..start + block_size)) {
            true => part.disk_size.min(part.written_end),
            false => start,
        };
        // What it has no room for is not asked for: who needs it has it moved first.
        let room = self.state.blocks[block_id].pages;
        let end = self.state.shape.pages_of(index, start, size).end;
        let pages = pages.start..pages.end.min(end).min(room);
        let on_disk = self.state.shape.pages_of(index, start, written_end).end;
        let (mut at, mut asked) = (pages.start, 0);
        loop {
            let block = &self.state.blocks[block_id];
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
                self.engine.memory.zero(
                    self.state,
                    block_id,
                    run.start as u64 * unit..run.end as u64 * unit,
                );
                self.state.edit(block_id, |block| block.valid.insert(run.clone()));
                self.was_readable(block_id, &run);
                at = run.end;
                continue;
            }
            run.end = run.end.min(on_disk);
            at = run.end;
            asked += run.len() as u64 * unit;
            let stored = self.state.part(id).stored();
            self.read_run(block_id, run, 0, stored);
        }
        asked
    }

    fn read_run(&mut self, block_id: BlockId, pages: Range<usize>, done: u64, stored: u64) {
        let (unit, block_size) = (self.state.shape.unit, self.state.shape.block_size);
        if done == 0 {
            self.state.edit(block_id, |block| {
                block.reading.insert(pages.clone());
                block.transfers += 1;
            });
        }
        let block = &self.state.blocks[block_id];
        let (id, start) = (block.partition, block.index * block_size);
        if done == 0 {
            self.state.part(id).reads += 1;
        }
        let bytes = pages.start as u64 * unit + done..pages.end as u64 * unit;
        let lease = self.engine.memory.for_read(self.state, block_id, bytes.clone());
        let purpose = Purpose::Read { block_id, pages, done, stored };
        self.start_transfer(id, purpose, start + bytes.start, Action::Read(lease));
    }

    /// Starts completing a partial page from the swap folder, through a scratch page.
    pub(crate) fn fill(&mut self, block_id: BlockId, page: usize) {
        let block = &self.state.blocks[block_id];
        if block.reading.contains(page) || block.copying.contains(page) {
            return;
        }
        let (id, index) = (block.partition, block.index);
        self.state.stats.edge_fills += 1;
        self.state.edit(block_id, |block| {
            block.reading.insert(page..page + 1);
            block.transfers += 1;
        });
        self.state.part(id).reads += 1;
        match self.state.scratch.pop() {
            Some(scratch) => {
                let stored = self.state.part(id).stored();
                self.start_fill(block_id, page, scratch, stored);
            }
            None => self.state.fill_queue.push_back((block_id, index, page as u32)),
        }
    }

    fn start_fill(&mut self, block_id: BlockId, page: usize, scratch: usize, stored: u64) {
        let block = &self.state.blocks[block_id];
        let (id, start) = (block.partition, block.index * self.state.shape.block_size);
        let offset = start + page as u64 * self.state.shape.unit;
        let action = Action::Read(self.engine.memory.scratch(scratch));
        self.start_transfer(id, Purpose::Fill { block_id, page, scratch, stored }, offset, action);
    }

    /// Asks for a dirty block to be written out, and starts it when nothing is in the way.
    pub(crate) fn flush_block(&mut self, block_id: BlockId) {
        self.state.edit(block_id, |block| block.flush = !block.dirty.is_empty());
        self.write_out(block_id);
    }

    /// Starts the write-out that was asked for, unless something is in its way; whatever that is comes
    /// back here when it ends.
    pub(crate) fn write_out(&mut self, block_id: BlockId) {
        let block = &self.state.blocks[block_id];
        let id = block.partition;
        if !block.flush || !block.copying.is_empty() || self.state.part(id).writes_held() {
            return;
        }
        if self.awaits_rest(block_id) {
            return;
        }
        let block = &self.state.blocks[block_id];
        if !block.partials.is_empty() {
            let partial: Vec<usize> = block.partials.iter().map(|p| p.page).collect();
            for page in partial {
                self.fill(block_id, page);
            }
            return;
        }
        self.leave_unfinished(block_id);
        let block = &self.state.blocks[block_id];
        let (unit, pages) = (self.state.shape.unit, block.pages);
        let start = block.index * self.state.shape.block_size;
        // What is beyond the end of the file (a truncate came between) is not written.
        let end = self.state.part(id).size.saturating_sub(start);
        let mut at = 0;
        while let Some(mut run) = self.state.blocks[block_id].dirty.run(at..pages) {
            // The last page of a file goes alone where its length is no multiple of the alignment: without padding.
            let tail = (end / unit) as usize;
            if !end.is_multiple_of(self.state.shape.alignment)
                && (run.start + 1..run.end).contains(&tail)
            {
                run.end = tail;
            }
            at = run.end;
            let bytes = (run.end as u64 * unit).min(end) - run.start as u64 * unit;
            self.state.edit(block_id, |block| {
                if block.writing.is_empty() {
                    block.epoch_writing = block.epoch_dirty;
                }
                block.epoch_writing = block.epoch_writing.min(block.epoch_dirty);
                block.writing.insert(run.clone());
                block.dirty.remove(run.clone());
                block.transfers += 1;
            });
            self.state.part(id).writes += 1;
            self.state.writes_inflight += 1;
            self.write_run(block_id, run, bytes);
        }
        self.state.edit(block_id, |block| block.flush = false);
    }

    fn write_run(&mut self, block_id: BlockId, pages: Range<usize>, bytes: u64) {
        let block = &self.state.blocks[block_id];
        let (id, start) = (block.partition, block.index * self.state.shape.block_size);
        let from = pages.start as u64 * self.state.shape.unit;
        let block = start..start + self.state.shape.block_size;
        let part = self.state.part(id);
        part.written_end = part.written_end.max(start + from + bytes);
        part.written.insert(block);
        if !part.ahead.is_empty() {
            let unit = self.engine.shape.unit;
            part.ahead.remove(start + from..(start + from + bytes).next_multiple_of(unit));
        }
        // Whatever was noted: what gets bytes is not to be punched.
        if !part.ahead.is_empty() {
            part.ahead.remove(start + from..start + pages.end as u64 * self.engine.shape.unit);
        }
        let lease = self.engine.memory.for_write(self.state, block_id, from..from + bytes);
        let purpose = Purpose::Write { block_id, pages, bytes };
        self.start_transfer(id, purpose, start + from, Action::Write(lease));
    }

    /// Starts the device sync of `op`.
    pub(crate) fn start_sync(&mut self, op: super::op::SyncOp) {
        let id = op.partition;
        self.state.part(id).jobs += 1;
        self.state.part(id).unsynced = false;
        if !op.of_piece {
            // What is to be on stable storage now is not to be found torn, whatever may still come.
            self.finish_all(id);
        }
        let action = Action::Sync { data_only: op.data_only };
        self.start_transfer(id, Purpose::Sync(op), 0, action);
    }

    /// Takes one finished transfer. `length` is what the file of a failed write has now, where that is known.
    pub(crate) fn completed(&mut self, done: Completion, length: Option<u64>) {
        let Completion { transfer, result } = done;
        let (purpose, since) =
            self.state.transfers.remove(TransferId(transfer.token)).expect("completed once");
        self.state.watch.end(TransferId(transfer.token));
        self.engine.note_transfer(&transfer.action, since);
        match purpose {
            Purpose::Read { block_id, pages, done, stored } => {
                self.read_completed(block_id, pages, done, stored, transfer, result);
            }
            Purpose::Fill { block_id, page, scratch, stored } => {
                let outcome = match self.engine.taken(transfer, stored, result) {
                    Ok(Taken::All) => Ok(scratch),
                    Ok(Taken::Part(_)) => Err(Errno::EIO),
                    Err(errno) => Err(errno),
                };
                self.fill_completed(block_id, page, outcome);
                self.free_scratch(scratch);
            }
            Purpose::Write { block_id, pages, bytes } => {
                drop(transfer.action);
                self.write_completed(block_id, pages, bytes, result, length);
            }
            Purpose::Sync(op) => self.synced(op, result.map(drop)),
            Purpose::Direct(part) => self.direct_completed(part, transfer, result),
        }
    }

    fn read_completed(
        &mut self, block_id: BlockId, pages: Range<usize>, done: u64, stored: u64,
        transfer: Transfer, result: Result<usize>,
    ) {
        let id = self.state.blocks[block_id].partition;
        let outcome = match self.engine.taken(transfer, stored, result) {
            Ok(Taken::Part(step)) => {
                return self.read_run(block_id, pages, done + step, stored);
            }
            Ok(Taken::All) => Ok(()),
            Err(errno) => Err(errno),
        };
        // What came before the failure is there.
        let arrived = pages.start..pages.start + (done / self.state.shape.unit) as usize;
        self.state.edit(block_id, |block| {
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
        self.state.part(id).reads -= 1;
        match outcome {
            Ok(()) => self.was_readable(block_id, &pages),
            Err(errno) => {
                self.was_readable(block_id, &arrived);
                self.read_failed(block_id, &(arrived.end..pages.end), errno);
            }
        }
        self.transfer_ended(block_id);
    }

    /// Pages that could not be read before have been read now.
    fn was_readable(&mut self, block_id: BlockId, pages: &Range<usize>) {
        let block = &self.state.blocks[block_id];
        let (id, start) = (block.partition, block.index * self.state.shape.block_size);
        let unit = self.state.shape.unit;
        let part = self.state.part(id);
        if part.error.is_some() {
            let bytes = start + pages.start as u64 * unit..start + pages.end as u64 * unit;
            part.unreadable.remove(bytes);
            part.clear_error_if_mended();
        }
    }

    fn read_failed(&mut self, block_id: BlockId, pages: &Range<usize>, errno: Errno) {
        let block = &self.state.blocks[block_id];
        let (id, start) = (block.partition, block.index * self.state.shape.block_size);
        let unit = self.state.shape.unit;
        let bytes = start + pages.start as u64 * unit..start + pages.end as u64 * unit;
        // The device has cut the transfer before the first bad page: of the others nothing is known. Whoever asks
        // again for what is known to be damaged gets no second log line.
        let damaged = matches!(errno, Errno::EBADMSG | Errno::EUCLEAN);
        let bytes = if damaged { bytes.start..bytes.start + unit } else { bytes };
        if damaged && self.state.part(id).unreadable.overlaps(&bytes) {
            self.state.stats.errors += 1;
            self.state.part(id).note_failure(errno);
        } else {
            self.failure(id, "swap in", bytes.clone(), errno);
        }
        self.state.part(id).unreadable.insert(bytes);
    }

    pub(crate) fn failure(
        &mut self, id: PartitionId, operation: &'static str, bytes: Range<u64>, errno: Errno,
    ) {
        self.state.stats.errors += 1;
        self.state.part(id).note_failure(errno);
        let (file, length) = (self.state.file(id), bytes.end - bytes.start);
        self.actions.failures.push(Failure { operation, file, offset: bytes.start, length, errno });
    }

    fn fill_completed(&mut self, block_id: BlockId, page: usize, outcome: Result<usize>) {
        let id = self.state.blocks[block_id].partition;
        if let Ok(scratch) = outcome {
            let at =
                self.state.blocks[block_id].partial(page).expect("pages are filled while partial");
            let partial = self.state.blocks[block_id].partials[at];
            let lease = self.engine.memory.scratch(scratch);
            self.engine.memory.merge(
                self.state,
                block_id,
                page,
                partial.start..partial.end,
                &lease,
            );
        }
        self.state.edit(block_id, |block| {
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
        self.state.part(id).reads -= 1;
        let pages = page..page + 1;
        match outcome {
            Ok(_) => self.was_readable(block_id, &pages),
            Err(errno) => {
                self.read_failed(block_id, &pages, errno);
                // What was written of the page cannot be stored.
                self.state.part(id).owe_error(errno);
            }
        }
        self.transfer_ended(block_id);
    }

    /// Uses a freed scratch page for a fill that waits for one.
    fn free_scratch(&mut self, scratch: usize) {
        match self.state.fill_queue.pop_front() {
            Some((block_id, index, page)) => {
                assert_eq!(self.state.blocks[block_id].index, index, "a block being filled stays");
                let id = self.state.blocks[block_id].partition;
                let stored = self.state.part(id).stored();
                self.start_fill(block_id, page as usize, scratch, stored);
            }
            None => self.state.scratch.push(scratch),
        }
    }

    fn write_completed(
        &mut self, block_id: BlockId, pages: Range<usize>, bytes: u64, result: Result<usize>,
        length: Option<u64>,
    ) {
        let block = &self.state.blocks[block_id];
        let id = block.partition;
        let start =
            block.index * self.state.shape.block_size + pages.start as u64 * self.state.shape.unit;
        let outcome = match result {
            Ok(moved) if moved as u64 >= bytes => Ok(()),
            Ok(_) => Err(Errno::EIO),
            Err(errno) => Err(errno),
        };
        let part = self.state.part(id);
        part.writes -= 1;
        match outcome {
            Ok(()) => {
                part.disk_size = part.disk_size.max(start + bytes);
                part.unsynced = true;
                let landed = start..start + pages.len() as u64 * self.engine.shape.unit;
                part.lost.remove(landed.clone());
                part.unreadable.remove(landed);
            }
            Err(errno) => {
                if let Some(length) = length {
                    part.disk_size = part.disk_size.max(length.min(start + bytes));
                }
                self.failure(id, "swap out", start..start + bytes, errno);
                self.state.part(id).owe_error(errno);
            }
        }
        self.state.writes_inflight -= 1;
        self.state.edit(block_id, |block| {
            block.writing.remove(pages.clone());
            block.transfers -= 1;
            if let Err(errno) = outcome {
                block.dirty.insert(pages.clone());
                block.failed = Some(errno);
                block.flush = false;
            }
        });
        if outcome.is_ok() {
            self.state.part(id).clear_error_if_mended();
        }
        self.transfer_ended(block_id);
    }

    /// What the end of any transfer can let go on.
    fn transfer_ended(&mut self, block_id: BlockId) {
        let id = self.state.blocks[block_id].partition;
        self.state.wake(block_id, self.actions);
        // The partition may go with its last block; nothing below may touch it then.
        self.state.part(id).jobs += 1;
        self.write_out(block_id);
        self.quiet_down(id);
        // A discard that has waited for this transfer has taken the block already.
        let is_there = self.state.blocks[block_id].partition == id;
        if is_there && self.state.part(id).gone() {
            self.discard_block(block_id);
        }
        self.state.part(id).jobs -= 1;
        self.state.drop_if_unused(id, self.actions);
    }
}

impl Engine {
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
}
