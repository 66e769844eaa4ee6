//! The device for kernels that refuse io_uring: threads that block in pread(2) and pwrite(2).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use super::counters::Counters;
use super::device::{
    Action, BackingFile, Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer,
    refused,
};
use super::file::uninterrupted;
use super::settings::AioSettings;
use super::tail;
use super::waiting::Waiting;
use crate::error::{Errno, Result};

/// Threads at most; beyond that they only compete for the processors.
const THREADS_MAX: u32 = 16;

/// Moves bytes with blocking calls: `thread_count` × `queue_depth` threads, at most 16.
/// `single_submit` and `overlap_events` mean nothing here: each transfer is a call of its own, and
/// threads do not wait for one another. `inflight_max` counts all threads together.
#[derive(Debug)]
pub struct ThreadDevice {
    shared: Arc<Shared>,
    /// Held while the threads are joined, so that a second `shutdown` waits for the first.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    sink: OnceLock<Arc<dyn CompletionSink>>,
    counters: Counters,
    geometry: Geometry,
}

#[derive(Debug)]
struct State {
    waiting: Waiting,
    inflight: u64,
    phase: Phase,
    /// Submitted after `shutdown`; a thread answers them so that the submitter's stack does not.
    refused: Vec<Transfer>,
}

impl State {
    fn next(&mut self) -> Option<Transfer> {
        self.waiting.pop_sync().or_else(|| self.waiting.pop())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Draining,
    /// No thread may still be there.
    Closed,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Shared").field("counters", &self.counters).finish_non_exhaustive()
    }
}

impl ThreadDevice {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// EINVAL for settings out of range; those of creating a thread.
    pub fn new(settings: &AioSettings, geometry: Geometry) -> io::Result<Arc<Self>> {
        if !settings.valid() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let state = State {
            waiting: Waiting::with_capacity(1024),
            inflight: 0,
            phase: Phase::Open,
            refused: Vec::new(),
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            sink: OnceLock::new(),
            counters: Counters::default(),
            geometry,
        });
        // Made first: dropping it ends the threads that started when a later one cannot.
        let device = Arc::new(Self { shared, threads: Mutex::new(Vec::new()) });
        let count = settings.queue_depth.saturating_mul(settings.thread_count).min(THREADS_MAX);
        for index in 0..count {
            let shared = Arc::clone(&device.shared);
            let thread = std::thread::Builder::new()
                .name(format!("swapfs-aio-{index}"))
                .spawn(move || shared.run())?;
            device.threads.lock().push(thread);
        }
        Ok(device)
    }
}

impl Device for ThreadDevice {
    fn geometry(&self) -> Geometry {
        self.shared.geometry
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        assert!(self.shared.sink.set(sink).is_ok(), "connect is called once");
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        if batch.is_empty() {
            return;
        }
        for transfer in batch.iter() {
            check(transfer, self.shared.geometry);
        }
        let count = batch.len();
        let mut state = self.shared.state.lock();
        match state.phase {
            Phase::Open => batch.drain(..).for_each(|transfer| state.waiting.push(transfer)),
            Phase::Draining => state.refused.append(batch),
            Phase::Closed => {
                drop(state);
                let mut done: Vec<_> =
                    batch.drain(..).map(|transfer| refused(transfer, Errno::ENODEV)).collect();
                self.shared.deliver(&mut done);
                return;
            }
        }
        drop(state);
        if count == 1 {
            self.shared.work.notify_one();
        } else {
            self.shared.work.notify_all();
        }
    }

    fn stats(&self) -> DeviceStats {
        let mut stats = DeviceStats { engine: "threads", ..DeviceStats::default() };
        self.shared.counters.add_to(&mut stats);
        stats
    }

    fn shutdown(&self) {
        let mut threads = self.threads.lock();
        {
            let mut state = self.shared.state.lock();
            if state.phase == Phase::Open {
                state.phase = Phase::Draining;
            }
        }
        self.shared.work.notify_all();
        join(threads.drain(..));
        let left = {
            let mut state = self.shared.state.lock();
            state.phase = Phase::Closed;
            std::mem::take(&mut state.refused)
        };
        let mut done: Vec<_> =
            left.into_iter().map(|transfer| refused(transfer, Errno::ENODEV)).collect();
        self.shared.deliver(&mut done);
    }
}

impl Drop for ThreadDevice {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Joins device threads, except the one it runs on: the last handle of a device may be dropped from
/// inside a completion, and that thread ends by itself.
pub(super) fn join(threads: impl Iterator<Item = JoinHandle<()>>) {
    for thread in threads {
        if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
            log::error!("an aio thread panicked");
        }
    }
}

/// Asserts what [`Transfer`] promises.
pub(super) fn check(transfer: &Transfer, geometry: Geometry) {
    let (address, length, tail) = match &transfer.action {
        Action::Read(lease) => (lease.address().addr(), lease.len(), false),
        // Only its end may lie anywhere.
        Action::Write(lease) => (lease.address().addr(), lease.len(), true),
        Action::Sync { .. } => return,
    };
    assert!(length > 0, "a transfer of no bytes");
    assert!(length <= TRANSFER_BYTES_MAX, "a transfer of {length} bytes");
    let mask = geometry.alignment - 1;
    debug_assert_eq!(address & mask, 0, "memory of transfer {}", transfer.token);
    debug_assert!(tail || length & mask == 0, "length of transfer {}", transfer.token);
    debug_assert_eq!(transfer.offset & mask as u64, 0, "offset of transfer {}", transfer.token);
}

/// What read(2) and write(2) move at most in one call (`MAX_RW_COUNT`), in whole pages.
const TRANSFER_BYTES_MAX: usize = 0x7FFF_F000;

impl Shared {
    fn run(&self) {
        let mut done = Vec::with_capacity(1);
        let mut state = self.state.lock();
        loop {
            if let Some(transfer) = state.refused.pop() {
                done.push(refused(transfer, Errno::ENODEV));
            } else if let Some(mut transfer) = state.next() {
                state.inflight += 1;
                self.counters.submitted(1, state.inflight);
                drop(state);
                let result = perform(&mut transfer, self.geometry);
                done.push(Completion { transfer, result });
                state = self.state.lock();
                state.inflight -= 1;
            } else if state.phase != Phase::Open {
                return;
            } else {
                self.work.wait(&mut state);
                continue;
            }
            drop(state);
            self.deliver(&mut done);
            state = self.state.lock();
        }
    }

    fn deliver(&self, done: &mut Vec<Completion>) {
        if done.is_empty() {
            return;
        }
        done.iter().for_each(|completion| self.counters.completed(completion));
        self.sink.get().expect("connect comes before the first submission").complete(done);
        debug_assert!(done.is_empty(), "a sink takes all completions");
        done.clear();
    }
}

fn perform(transfer: &mut Transfer, geometry: Geometry) -> Result<usize> {
    if tail::is_tail(transfer, geometry) {
        return tail::store(transfer);
    }
    let raw = transfer.file.descriptor().ok_or(Errno::EBADF)?;
    let offset = transfer.offset;
    // SAFETY: borrow_raw needs a descriptor that stays open during the borrow: it belongs to
    // `transfer.file`, an `Arc` that outlives this function's use of it.
    let file = unsafe { BorrowedFd::borrow_raw(raw) };
    match &mut transfer.action {
        Action::Read(lease) => uninterrupted(|| rustix::io::pread(file, &mut **lease, offset)),
        Action::Write(lease) => uninterrupted(|| rustix::io::pwrite(file, lease, offset)),
        Action::Sync { data_only } => BackingFile::sync(&*transfer.file, *data_only).map(|()| 0),
    }
}
