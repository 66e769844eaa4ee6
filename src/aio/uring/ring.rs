//! One ring and its thread: takes transfers from the lane, submits, reaps, delivers.
//!
//! A transfer is in the table before its entry is published and until its completion is reaped, so the
//! memory and the descriptor that the kernel uses stay valid whatever happens in between.
//!
//! A ring breaks when the kernel has no memory for its submissions for seconds, or when the sink panics. (The other
//! errors of io_uring_enter are about arguments that are never given: EBADF, EBADFD, EEXIST, EFAULT, EINVAL,
//! EOPNOTSUPP; about a polling kernel thread, which there is not: EOWNERDEAD; or about completions lost for
//! want of room, and the queue has room for every slot: EBADR.) Then everything that the kernel has not seen is
//! answered with EIO, and what it has seen is waited for as before. What has no completion after a while is
//! answered with EIO too: its pages get other memory first, so that nothing which the kernel still does
//! reaches anybody's bytes. Where that cannot be, it stays in the table without an answer (see [`Table`]'s drop).

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use io_uring::{IoUring, opcode, squeue, types};
use nix::poll::{PollFd, PollFlags, PollTimeout};

use super::super::device::{Action, Completion, CompletionSink, Geometry, Transfer, refused};
use super::super::file::disk_file;
use super::super::settings::AioSettings;
use super::super::tail;
use super::entry::{entry, fetch_events, registered_buffer};
use super::files::FileTable;
use super::lane::{Inbox, Lane, Rest};
use super::setup::NewRing;
use super::table::{Room, SYNCS_MAX, Table, Tail};
use crate::error::{Errno, Result, errno_of};
use crate::pool::Arena;

/// `user_data` of the poll of the lane's wake.
const WAKE: u64 = u64::MAX;

/// The wake's mark in `staged`, where transfers are slot indices.
const WAKE_STAGED: u32 = u32::MAX;

/// Times that io_uring_enter is tried again, 1 ms apart, when the kernel is short of memory.
const SHORTAGES_MAX: u32 = 5000;

/// How long a broken ring's completions are still waited for.
const BURIAL_PATIENCE: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 10_000 });

/// How often a broken ring is looked at while it has transfers in flight, in milliseconds.
const BURIAL_TICK_MS: u16 = 100;

pub(super) struct Ring {
    // First: the ring is closed before the arena whose memory it knows may be unmapped.
    ring: IoUring,
    arena: Option<Arc<Arena>>,
    disabled: bool,
    files: FileTable,
    table: Table,
    lane: Arc<Lane>,
    sink: Arc<OnceLock<Arc<dyn CompletionSink>>>,
    single_submit: bool,
    overlap_events: bool,
    geometry: Geometry,
    /// Whether submitters claim memory by pages, not by bytes: whatever is transferred, all of its pages are theirs.
    whole_pages: bool,
    /// Whether the kernel has a flag for writes that leave nothing in the page cache (Linux 6.14).
    uncached_writes: bool,
    /// Entries published and not yet consumed by the kernel, in order.
    staged: VecDeque<u32>,
    /// How many of `staged`, from the front, the counters already show as submitted.
    counted: usize,
    /// Whether a poll of the wake is published or in flight.
    polling: bool,
    inbox: Inbox,
    reaped: Vec<(u64, i32)>,
    done: Vec<Completion>,
}

impl Ring {
    pub(super) fn new(
        new: NewRing, settings: &AioSettings, lane: Arc<Lane>,
        sink: Arc<OnceLock<Arc<dyn CompletionSink>>>, geometry: Geometry,
    ) -> Self {
        let depth = (settings.queue_depth + SYNCS_MAX) as usize;
        Self {
            ring: new.ring,
            arena: new.arena,
            disabled: new.disabled,
            files: FileTable::new(new.files),
            table: Table::new(settings.queue_depth),
            lane,
            sink,
            single_submit: settings.single_submit,
            overlap_events: settings.overlap_events,
            geometry,
            // With an alignment of 1 the submitter's own bytes may lie beside others in a page.
            whole_pages: geometry.alignment > 1,
            uncached_writes: true,
            staged: VecDeque::with_capacity(depth + 1),
            counted: 0,
            polling: false,
            inbox: Inbox::with_capacity(depth),
            reaped: Vec::with_capacity(depth + 1),
            done: Vec::with_capacity(2 * depth),
        }
    }

    /// The thread: returns when the lane is closed.
    pub(super) fn run(mut self) {
        let outcome = catch_unwind(AssertUnwindSafe(|| self.work()));
        match outcome {
            Ok(Ok(())) => self.unregister(),
            Ok(Err(errno)) => {
                log::error!("io_uring failed for good, its transfers fail with EIO: {errno}");
                self.fail_all();
            }
            Err(_) => {
                log::error!("an aio thread panicked, its transfers fail with EIO");
                self.fail_all();
            }
        }
    }

    fn work(&mut self) -> Result<()> {
        if self.disabled {
            self.ring.submitter().register_enable_rings().map_err(|error| errno_of(&error))?;
        }
        loop {
            let drained = self.take()?;
            if !self.done.is_empty() {
                // The device works on while the sink does.
                if !self.staged.is_empty() {
                    self.enter(0)?;
                }
                self.deliver();
                continue;
            }
            if drained && self.table.len() == 0 {
                if self.lane.close() {
                    return Ok(());
                }
                continue;
            }
            self.poll_wake();
            let wanted = if self.overlap_events { 1 } else { self.table.len().max(1) };
            self.enter(wanted)?;
            self.reap(true);
        }
    }

    /// What may be taken now.
    fn room(&self) -> Room {
        if self.overlap_events || self.table.len() == 0 { self.table.room() } else { Room::NONE }
    }

    /// Takes from the lane and publishes entries; one system call each with `single_submit`.
    /// Returns whether shutdown began and nothing waits.
    fn take(&mut self) -> Result<bool> {
        // Awake while there are completions to deliver, and while only a completion can make room:
        // a full queue, or a batch under way.
        let (room, deliver_next) = (self.room(), !self.done.is_empty());
        let batch_under_way = room == Room::NONE;
        let rest = |left: Room, taken: bool| match self.overlap_events {
            _ if deliver_next => Rest::Awake,
            true if left.transfers.min(left.slots) > 0 => Rest::ForAll,
            true if left.slots > 0 => Rest::ForSyncs,
            false if !taken && !batch_under_way => Rest::ForAll,
            _ => Rest::Awake,
        };
        let drained = self.lane.take(room, rest, &mut self.inbox);
        self.answer_inbox(Errno::ENODEV);
        // Each transfer moves into the table or to `done` before anything can fail; what is still in
        // the inbox then is answered by `fail_all`.
        self.inbox.transfers.reverse();
        while let Some(transfer) = self.inbox.transfers.pop() {
            self.accept(transfer);
            if self.single_submit && !self.staged.is_empty() {
                self.enter(0)?;
            }
        }
        Ok(drained)
    }

    /// Gives up dropped files, refuses what came too late.
    fn answer_inbox(&mut self, errno: Errno) {
        for id in self.inbox.forgotten.drain(..) {
            self.files.forget(&self.ring.submitter(), id);
        }
        let late = self.inbox.late.drain(..);
        self.done.extend(late.map(|transfer| refused(transfer, errno)));
    }

    fn accept(&mut self, transfer: Transfer) {
        if transfer.file.descriptor().is_none() {
            self.done.push(refused(transfer, Errno::EBADF));
            return;
        }
        if tail::is_tail(&transfer, self.geometry) {
            return self.accept_tail(transfer);
        }
        let registered = disk_file(&transfer.file)
            .and_then(|file| self.files.acquire(&self.ring.submitter(), &self.lane, file));
        let index = self.table.insert(transfer, registered, None);
        self.stage(index);
    }

    fn accept_tail(&mut self, transfer: Transfer) {
        match transfer.file.descriptor().map(tail::open_buffered) {
            Some(Ok(buffered)) => {
                let tail = Tail { buffered, is_stored: false };
                let index = self.table.insert(transfer, None, Some(tail));
                self.stage(index);
            }
            // The rare file that its own daemon may not open again: this thread waits for the device.
            Some(Err(Errno::EACCES)) => {
                self.lane.counters.submitted(1, self.table.transfers() as u64);
                let result = tail::store(&transfer);
                self.done.push(Completion { transfer, result });
            }
            Some(Err(errno)) => self.done.push(refused(transfer, errno)),
            None => self.done.push(refused(transfer, Errno::EBADF)),
        }
    }

    /// Publishes the entry of a slot.
    fn stage(&mut self, index: u32) {
        let (entry, fixed) = self.entry(index);
        let entry = entry.user_data(index.into());
        self.table.get_mut(index).fixed = fixed;
        // SAFETY: push needs the entry's memory and descriptor to stay valid until its completion.
        // Both are owned by the table's slot (lease and file), which is emptied only when the
        // completion is reaped, or when the kernel has not consumed the entry and never will
        // (`fail_all`), and which leaks what it holds otherwise. A registered file's entry is not
        // replaced while a slot uses it (`FileTable::evict`), registered memory is kept by `arena`.
        unsafe { self.ring.submission().push(&entry) }
            .expect("the ring has an entry for each slot and the wake");
        self.staged.push_back(index);
    }

    /// The entry of a slot, and whether it names its memory by registration.
    fn entry(&self, index: u32) -> (squeue::Entry, bool) {
        let slot = self.table.get(index);
        let transfer = &slot.transfer;
        let (number, flags) = match slot.registered {
            Some(place) => (place.cast_signed(), squeue::Flags::FIXED_FILE),
            None => {
                (transfer.file.descriptor().expect("checked by accept"), squeue::Flags::empty())
            }
        };
        if let Some(tail) = &slot.tail {
            return self.tail_entry(transfer, tail);
        }
        let buffer = registered_buffer(self.arena.as_ref(), &transfer.action);
        let entry = entry(&transfer.action, types::Fd(number), transfer.offset, buffer, 0);
        (entry.flags(flags), buffer.is_some())
    }

    /// The entry that stores the end of a file, or pushes it to the device, and whether it names its memory by
    /// registration.
    fn tail_entry(&self, transfer: &Transfer, tail: &Tail) -> (squeue::Entry, bool) {
        let Transfer { action, offset, .. } = transfer;
        let file = types::Fd(tail.buffered.as_raw_fd());
        if tail.is_stored {
            let length = u32::try_from(action.length()).expect("less than a page");
            let push = opcode::SyncFileRange::new(file, length).offset(*offset);
            return (push.flags(tail::PUSH_FLAGS).build(), false);
        }
        let flags = if self.uncached_writes { libc::RWF_DONTCACHE } else { 0 };
        let buffer = registered_buffer(self.arena.as_ref(), action);
        (entry(action, file, *offset, buffer, flags), buffer.is_some())
    }

    /// Takes what one step of storing a file's end came to. Returns the transfer's result, or `None` when another step
    /// follows.
    fn tail_step(&mut self, index: u32, result: i32) -> Option<i32> {
        let slot = self.table.get_mut(index);
        let Some(tail) = &mut slot.tail else { return Some(result) };
        let length = i32::try_from(slot.transfer.action.length()).expect("less than a page");
        match (tail.is_stored, result) {
            (false, result) if result == length => tail.is_stored = true,
            (false, result) if self.uncached_writes && result == -libc::EOPNOTSUPP => {
                self.uncached_writes = false;
            }
            (true, 0..) => return Some(length),
            _ => return Some(result),
        }
        None
    }

    fn poll_wake(&mut self) {
        if self.polling {
            return;
        }
        let events = PollFlags::POLLIN.bits().cast_unsigned().into();
        let file = types::Fd(self.lane.wake.raw());
        let entry = opcode::PollAdd::new(file, events).build().user_data(WAKE);
        // SAFETY: push needs valid arguments until completion; a poll has no memory, and the
        // descriptor belongs to `self.lane`, which outlives `self.ring`'s use of it.
        unsafe { self.ring.submission().push(&entry) }
            .expect("the ring has an entry for each slot and the wake");
        self.staged.push_back(WAKE_STAGED);
        self.polling = true;
    }

    /// Submits what is staged and waits for `wanted` completions. An error is for good.
    fn enter(&mut self, wanted: usize) -> Result<()> {
        self.count_staged();
        let mut shortages = 0;
        loop {
            let result = self.system_call(wanted);
            self.drop_consumed();
            match result {
                Ok(()) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOMEM) if shortages < SHORTAGES_MAX => {
                    shortages += 1;
                    if wanted > 0 && !self.ring.completion().is_empty() {
                        return Ok(());
                    }
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(errno) => return Err(errno),
            }
        }
    }

    fn system_call(&self, wanted: usize) -> Result<()> {
        #[cfg(test)]
        if self.lane.broken.load(std::sync::atomic::Ordering::Relaxed) {
            return Err(Errno::EBADF);
        }
        self.ring.submit_and_wait(wanted).map(drop).map_err(|error| errno_of(&error))
    }

    /// Shows what the next call submits in the counters, before it blocks.
    fn count_staged(&mut self) {
        let Self { staged, table, .. } = self;
        let new = staged.iter().skip(self.counted);
        let transfers = new.filter(|index| **index != WAKE_STAGED && table.is_new(**index)).count();
        self.lane.counters.submitted(transfers as u64, self.table.transfers() as u64);
        self.counted = self.staged.len();
    }

    /// Takes out of `staged` what the kernel has consumed, all but always everything.
    fn drop_consumed(&mut self) {
        let left = self.ring.submission().len();
        let consumed = self.staged.len().checked_sub(left).expect("staged has every entry");
        self.staged.drain(..consumed);
        self.counted = left;
    }

    /// Moves finished transfers from the table to `done`. With `again`, those that need another attempt, or have another
    /// step, are staged.
    fn reap(&mut self, again: bool) {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (user_data, result) in reaped.drain(..) {
            if user_data == WAKE {
                self.polling = false;
                self.lane.wake.drain();
                continue;
            }
            let index = u32::try_from(user_data).expect("user_data is a slot");
            let ended = match again {
                true if self.table.retry(index, result) => None,
                true => self.tail_step(index, result),
                false => Some(result),
            };
            match ended {
                Some(result) => self.finish(index, result),
                None => self.stage(index),
            }
        }
        self.reaped = reaped;
    }

    fn finish(&mut self, index: u32, result: i32) {
        let slot = self.table.remove(index);
        if let Some(registered) = slot.registered {
            self.files.release(registered);
        }
        let result = usize::try_from(result).map_err(|_| Errno::from_raw(-result));
        self.done.push(Completion { transfer: slot.transfer, result });
    }

    fn deliver(&mut self) {
        self.done.iter().for_each(|completion| self.lane.counters.completed(completion));
        let sink = self.sink.get().expect("connect comes before the first submission");
        sink.complete(&mut self.done);
        debug_assert!(self.done.is_empty(), "a sink takes all completions");
        self.done.clear();
    }

    /// Gives up files and memory now; closing the ring would do so some time later.
    fn unregister(&self) {
        assert_eq!(self.table.len(), 0, "nothing is in flight when a lane closes");
        let submitter = self.ring.submitter();
        if self.files.size() > 0
            && let Err(error) = submitter.unregister_files()
        {
            log::warn!("io_uring: unregistering files: {error}");
        }
        if self.arena.is_some()
            && let Err(error) = submitter.unregister_buffers()
        {
            log::warn!("io_uring: unregistering the pool: {error}");
        }
    }

    /// After the ring broke: answers with EIO until the lane is closed.
    fn fail_all(&mut self) {
        // These entries are published, but nobody calls io_uring_enter any more and there is no
        // kernel thread that polls the queue, so the kernel never consumes them.
        while let Some(index) = self.staged.pop_front() {
            if index != WAKE_STAGED {
                self.finish(index, -libc::EIO);
            }
        }
        let end = Instant::now() + BURIAL_PATIENCE;
        let mut abandoned = false;
        loop {
            self.answer_inbox(Errno::EIO);
            let transfers = self.inbox.transfers.drain(..);
            self.done.extend(transfers.map(|transfer| refused(transfer, Errno::EIO)));
            if !abandoned {
                self.fetch_events();
                self.reap(false);
                if self.table.len() > 0 && Instant::now() >= end {
                    self.abandon();
                    abandoned = true;
                }
            }
            if !self.done.is_empty() {
                self.deliver();
            }
            let patient = self.table.len() > 0 && !abandoned;
            let drained = self.lane.take(Room::ENDLESS, |_, _| Rest::ForAll, &mut self.inbox);
            if drained && self.inbox.is_empty() && !patient && self.lane.close() {
                return;
            }
            if self.inbox.is_empty() && (patient || !drained) {
                self.wait_buried(patient);
            }
        }
    }

    /// Has the kernel show what has completed.
    fn fetch_events(&self) {
        #[cfg(test)]
        if self.lane.silent.load(std::sync::atomic::Ordering::Relaxed) {
            return;
        }
        if let Err(error) = fetch_events(&self.ring) {
            log::debug!("the broken io_uring gives no completions: {error}");
        }
    }

    /// Answers what has no completion, where nothing that the kernel may still do is seen by anybody. Completions
    /// are not taken any more after this.
    fn abandon(&mut self) {
        for index in self.table.used() {
            let slot = self.table.get(index);
            let out_of_reach = match (&slot.transfer.action, &self.arena) {
                (Action::Sync { .. }, _) => true,
                (Action::Read(lease), Some(arena)) if slot.fixed && self.whole_pages => {
                    // SAFETY: replace needs a lease that shares its pages with nobody: this one, whose
                    // submitter's units are whole pages.
                    unsafe { arena.replace(lease.offset(), lease.len(), false) }.is_ok()
                }
                (Action::Write(lease), Some(arena)) if slot.fixed && self.whole_pages => {
                    // SAFETY: as above; others may have leases for reading.
                    unsafe { arena.replace(lease.offset(), lease.len(), true) }.is_ok()
                }
                _ => false,
            };
            if out_of_reach {
                self.finish(index, -libc::EIO);
            }
        }
    }

    fn wait_buried(&self, patient: bool) {
        let timeout = if patient { PollTimeout::from(BURIAL_TICK_MS) } else { PollTimeout::NONE };
        let mut polled = [PollFd::new(self.lane.wake.as_fd(), PollFlags::POLLIN)];
        // EINTR is as good as a wake.
        let _ = nix::poll::poll(&mut polled, timeout);
        self.lane.wake.drain();
    }
}
