//! A ring of one thread, which begins small reads and waits for them itself.
//!
//! Handing a small read to another thread costs two wake-ups, which take longer than the transfer. Who receives many
//! requests hands all that wait to the kernel with one call, and takes with it what has completed. The ring is the
//! thread's own, so that the kernel may leave its work to that call and wakes the thread only for what it waits for.

use std::collections::VecDeque;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, types};
use parking_lot::{Condvar, Mutex};

use super::super::counters::Counters;
use super::super::device::{
    Action, Completion, CompletionSink, Geometry, InlineReader, Transfer, Wait,
};
use super::entry::{entry, fetch_events, registered_buffer};
use super::setup::{NewRing, make_ring};
use super::table::Table;
use crate::error::{Errno, errno_of};
use crate::pool::Arena;

/// Reads under way at once.
const DEPTH: u32 = 32;

/// Times that io_uring_enter is tried again when the kernel is short of memory.
const SHORTAGES_MAX: u32 = 1000;

/// How long it is given before it is asked again.
const SHORTAGE: Duration = Duration::from_millis(1);

/// What a device knows of the rings of its submitters.
#[derive(Debug)]
pub(super) struct RingReaders {
    /// A lock of the lowest level.
    state: Mutex<State>,
    idle: Condvar,
    pub(super) counters: Counters,
}

#[derive(Debug)]
struct State {
    /// A ring has reads under way. One at a time, so that no more than one thread is held up by a device that hangs.
    busy: bool,
    closed: bool,
    registered: Option<Registered>,
}

/// A ring, by a descriptor of its own, and the arena that is registered with it.
type Registered = (OwnedFd, Arc<Arena>);

impl RingReaders {
    /// Whose rings share what is registered with `ring`.
    pub(super) fn new(ring: Option<&NewRing>) -> Self {
        let registered =
            ring.and_then(|new| Some((new.another()?, Arc::clone(new.arena.as_ref()?))));
        let state = State { busy: false, closed: false, registered };
        Self { state: Mutex::new(state), idle: Condvar::new(), counters: Counters::default() }
    }

    /// Registers the arena with one more ring; `None` where that is not to be had.
    fn register(&self, ring: &IoUring) -> Option<Arc<Arena>> {
        let state = self.state.lock();
        let (first, arena) = state.registered.as_ref()?;
        // Linux 6.12. The pages are counted once.
        ring.submitter().register_buffers_clone(first.as_raw_fd()).ok()?;
        Some(Arc::clone(arena))
    }

    /// Waits for the reads under way, and lets no more begin.
    pub(super) fn close(&self) {
        let mut state = self.state.lock();
        state.closed = true;
        state.registered = None;
        while state.busy {
            self.idle.wait(&mut state);
        }
    }

    /// A ring is about to get its first read; false when it must not.
    fn begin(&self) -> bool {
        let mut state = self.state.lock();
        let may = !state.closed && !state.busy;
        state.busy |= may;
        may
    }

    /// A ring has no read under way any more.
    fn end(&self) {
        let mut state = self.state.lock();
        state.busy = false;
        self.idle.notify_all();
    }
}

/// See the module documentation.
pub(super) struct RingReader {
    /// First: closed before the table lets go of anything, and before the arena whose memory it knows.
    ring: IoUring,
    /// Registered with it.
    arena: Option<Arc<Arena>>,
    /// Owns every read from before its entry is published until its completion is reaped.
    table: Table,
    /// Entries published and not yet consumed by the kernel, in order.
    staged: VecDeque<u32>,
    /// Whether it is the one that is busy.
    busy: bool,
    /// The kernel takes no more.
    broken: bool,
    /// One read for each call.
    single_submit: bool,
    shared: Arc<RingReaders>,
    sink: Arc<dyn CompletionSink>,
    geometry: Geometry,
    reaped: Vec<(u64, i32)>,
    done: Vec<Completion>,
    /// The kernel lets no other thread enter the ring.
    of_one_thread: PhantomData<*const ()>,
}

impl std::fmt::Debug for RingReader {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("RingReader")
            .field("under_way", &self.table.len())
            .finish_non_exhaustive()
    }
}

impl RingReader {
    /// Of the calling thread; `None` where there is no ring to be had.
    pub(super) fn new(
        shared: Arc<RingReaders>, sink: Arc<dyn CompletionSink>, geometry: Geometry,
        single_submit: bool,
    ) -> Option<Self> {
        let (ring, disabled) = make_ring(DEPTH).ok()?;
        if !ring.params().is_feature_ext_arg()
            || (disabled && ring.submitter().register_enable_rings().is_err())
        {
            return None;
        }
        Some(Self {
            arena: shared.register(&ring),
            ring,
            table: Table::new(DEPTH),
            staged: VecDeque::with_capacity(DEPTH as usize),
            busy: false,
            broken: false,
            single_submit,
            shared,
            sink,
            geometry,
            reaped: Vec::with_capacity(DEPTH as usize),
            done: Vec::with_capacity(DEPTH as usize),
            of_one_thread: PhantomData,
        })
    }

    /// Publishes the entries of as many reads as there is room for; the others stay in `batch`.
    fn publish(&mut self, batch: &mut Vec<Transfer>) {
        if batch.is_empty() || self.broken {
            return;
        }
        if !self.busy {
            self.busy = self.shared.begin();
            if !self.busy {
                return;
            }
        }
        let (mut taken, mut at) = (0, 0);
        while at < batch.len() {
            batch[at].check(self.geometry);
            if self.table.room().transfers == 0 || descriptor(&batch[at]).is_none() {
                at += 1;
                continue;
            }
            let index = self.table.insert(batch.remove(at), None, None);
            self.stage(index);
            if self.single_submit {
                self.shared.counters.submitted(1, self.table.len() as u64);
                self.enter(0, None);
            } else {
                taken += 1;
            }
        }
        self.shared.counters.submitted(taken, self.table.len() as u64);
    }

    /// Publishes the entry of a slot.
    fn stage(&mut self, index: u32) {
        let transfer = &self.table.get(index).transfer;
        let descriptor = descriptor(transfer).expect("looked at by publish");
        let (file, action) = (types::Fd(descriptor), &transfer.action);
        let buffer = registered_buffer(self.arena.as_ref(), action);
        let entry = entry(action, file, transfer.offset, buffer, 0).user_data(index.into());
        // SAFETY: push needs the entry's memory and descriptor to stay valid until its completion. Both are owned
        // by the table's slot (lease and file), which is emptied only when the completion is reaped, or when the
        // kernel has not consumed the entry and never will (`give_up`), and which leaks what it holds otherwise.
        // Registered memory is kept by `arena`.
        unsafe { self.ring.submission().push(&entry) }
            .expect("the ring has an entry for each slot");
        self.staged.push_back(index);
    }

    /// Submits what is published, and waits for `wanted` completions, no longer than `time`.
    fn enter(&mut self, wanted: usize, time: Option<Duration>) {
        let mut shortages = 0;
        while !self.broken {
            let result = match time.map(types::Timespec::from) {
                Some(time) if wanted > 0 => {
                    let arguments = types::SubmitArgs::new().timespec(&time);
                    self.ring.submitter().submit_with_args(wanted, &arguments)
                }
                _ => self.ring.submit_and_wait(wanted),
            };
            let left = self.ring.submission().len();
            let consumed = self.staged.len().checked_sub(left).expect("staged has every entry");
            self.staged.drain(..consumed);
            match result.map_err(|error| errno_of(&error)) {
                // Taken or not, time is up.
                Ok(_) | Err(Errno::ETIME | Errno::EINTR) if self.staged.is_empty() => return,
                Ok(_) | Err(Errno::ETIME | Errno::EINTR) => {}
                Err(Errno::EAGAIN | Errno::EBUSY | Errno::ENOMEM) if shortages < SHORTAGES_MAX => {
                    shortages += 1;
                    if !self.ring.completion().is_empty() {
                        return;
                    }
                    std::thread::sleep(SHORTAGE);
                }
                Err(errno) => {
                    log::warn!("io_uring takes no small reads any more: {errno}");
                    self.broken = true;
                }
            }
        }
        // What is under way can still be waited for; nothing is submitted, which is what failed.
        if wanted > 0 && self.ring.completion().is_empty() {
            std::thread::sleep(SHORTAGE);
        }
        let _ = fetch_events(&self.ring);
    }

    /// What the kernel has not seen of a broken ring, and never will.
    fn give_up(&mut self, batch: &mut Vec<Transfer>) {
        while self.broken
            && let Some(index) = self.staged.pop_front()
        {
            batch.push(self.table.remove(index).transfer);
        }
    }

    /// Moves finished reads from the table to `done`.
    fn reap(&mut self) {
        let mut reaped = std::mem::take(&mut self.reaped);
        reaped.extend(self.ring.completion().map(|entry| (entry.user_data(), entry.result())));
        for (user_data, result) in reaped.drain(..) {
            let index = u32::try_from(user_data).expect("user_data is a slot");
            if !self.broken && self.table.retry(index, result) {
                self.stage(index);
                continue;
            }
            let transfer = self.table.remove(index).transfer;
            let result = usize::try_from(result).map_err(|_| Errno::from_raw(-result));
            let completion = Completion { transfer, result };
            self.shared.counters.completed(&completion);
            self.done.push(completion);
        }
        self.reaped = reaped;
    }

    fn deliver(&mut self) {
        if !self.done.is_empty() {
            self.sink.complete(&mut self.done);
            self.done.clear();
        }
        if self.busy && self.table.len() == 0 {
            self.busy = false;
            self.shared.end();
        }
    }
}

impl InlineReader for RingReader {
    fn under_way(&self) -> usize {
        self.table.len()
    }

    fn advance(&mut self, batch: &mut Vec<Transfer>, wait: Wait) {
        self.publish(batch);
        let wanted = usize::from(self.table.len() > 0);
        match wait {
            Wait::No if self.staged.is_empty() => {}
            Wait::No => self.enter(0, None),
            Wait::For(time) => self.enter(wanted, Some(time)),
            Wait::Ever => self.enter(wanted, None),
        }
        self.give_up(batch);
        self.reap();
        self.deliver();
    }
}

impl Drop for RingReader {
    fn drop(&mut self) {
        let mut batch = Vec::new();
        while self.table.len() > 0 {
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                self.advance(&mut batch, Wait::For(Duration::from_secs(1)));
            }));
            let given_up = batch.drain(..);
            self.done.extend(given_up.map(|it| super::refused(it, Errno::EIO)));
            // The panic was shown; here is nobody to take it.
            if outcome.is_err() {
                self.done.clear();
            }
        }
        let _ = catch_unwind(AssertUnwindSafe(|| self.deliver()));
    }
}

/// Where a read comes from; `None` of everything else.
fn descriptor(transfer: &Transfer) -> Option<RawFd> {
    let Action::Read(_) = transfer.action else { return None };
    transfer.file.descriptor()
}
