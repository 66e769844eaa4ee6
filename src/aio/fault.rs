//! A device that makes another one fail, on purpose and reproducibly.
//!
//! The fault model: a read or write fails without moving anything (EIO, for writes also ENOSPC); a sync
//! fails; a transfer is short and really moves only a prefix, a multiple of the alignment and never
//! nothing; a completion comes late, after others that were submitted later; bytes are wrong, in memory or in the
//! file; a transfer goes to another place of its file. The last three are told by nobody, as by a real device.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::{Arc, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use super::device::{
    Action, BackingFile, Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer,
    refused,
};
use super::file::DiskFile;
use super::memory::MemoryFile;
use super::random::Random;
use super::threads::join;
use crate::error::Errno;
use crate::pool::{ReadLease, WriteLease};

/// How likely each fault is, from 0 (never) to 1 (always).
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct FaultPlan {
    /// A read fails with EIO.
    pub read_error: f64,
    /// A write fails with EIO.
    pub write_error: f64,
    /// A write fails with ENOSPC.
    pub write_no_space: f64,
    /// A sync fails with EIO.
    pub sync_error: f64,
    /// A read moves only a prefix.
    pub short_read: f64,
    /// A write moves only a prefix.
    pub short_write: f64,
    /// A completion comes late.
    pub late: f64,
    /// By how much at most.
    pub late_max: Duration,
    /// One bit of what was read is wrong.
    pub corrupt_read: f64,
    /// One bit of what was written is wrong. Of files in memory only.
    pub corrupt_write: f64,
    /// A read takes its bytes from another place of the file.
    pub misdirected_read: f64,
    /// A write goes to another place of the file.
    pub misdirected_write: f64,
}

/// How many faults were injected, by kind as in [`FaultPlan`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FaultCounts {
    /// Reads that failed with EIO.
    pub read_error: u64,
    /// Writes that failed with EIO.
    pub write_error: u64,
    /// Writes that failed with ENOSPC.
    pub write_no_space: u64,
    /// Syncs that failed with EIO.
    pub sync_error: u64,
    /// Reads cut short.
    pub short_read: u64,
    /// Writes cut short.
    pub short_write: u64,
    /// Completions held back.
    pub late: u64,
    /// Reads with a wrong bit.
    pub corrupt_read: u64,
    /// Writes with a wrong bit.
    pub corrupt_write: u64,
    /// Reads of another place.
    pub misdirected_read: u64,
    /// Writes to another place.
    pub misdirected_write: u64,
}

/// Decorates a device with faults. Its statistics are those of the device inside, which never sees
/// transfers that fail here.
#[derive(Debug)]
pub struct FaultDevice {
    inner: Arc<dyn Device>,
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    sink: OnceLock<Arc<dyn CompletionSink>>,
    alignment: usize,
}

struct State {
    random: Random,
    plan: FaultPlan,
    enabled: bool,
    counts: FaultCounts,
    /// What the device inside is working on; a transfer's token there is its index here.
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    late: BinaryHeap<Reverse<Late>>,
    sequence: u64,
    closing: bool,
}

struct Pending {
    token: u64,
    offset: u64,
    rest: Option<Rest>,
}

/// The end of a lease that a short transfer does not get.
enum Rest {
    Read(WriteLease),
    Write(ReadLease),
}

/// A completion held back; ordered by time, then by arrival.
struct Late {
    due: Instant,
    sequence: u64,
    completion: Completion,
}

impl PartialEq for Late {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Late {}

impl PartialOrd for Late {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Late {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.due, self.sequence).cmp(&(other.due, other.sequence))
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let state = self.state.lock();
        formatter
            .debug_struct("Shared")
            .field("plan", &state.plan)
            .field("enabled", &state.enabled)
            .field("counts", &state.counts)
            .finish_non_exhaustive()
    }
}

impl FaultDevice {
    /// Wraps a device that is not connected yet. The faults of `plan` are on; the same seed and the
    /// same order of submissions and completions give the same faults.
    ///
    /// # Errors
    ///
    /// Those of creating a thread.
    pub fn new(inner: Arc<dyn Device>, seed: u64, plan: FaultPlan) -> io::Result<Arc<Self>> {
        let state = State {
            random: Random::new(seed),
            plan,
            enabled: true,
            counts: FaultCounts::default(),
            pending: Vec::new(),
            free: Vec::new(),
            late: BinaryHeap::new(),
            sequence: 0,
            closing: false,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            sink: OnceLock::new(),
            alignment: inner.geometry().alignment,
        });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("swapfs-fault".to_owned())
            .spawn(move || worker.run())?;
        Ok(Arc::new(Self { inner, shared, thread: Mutex::new(Some(thread)) }))
    }

    /// Switches all faults on or off.
    pub fn set_enabled(&self, enabled: bool) {
        self.shared.state.lock().enabled = enabled;
    }

    /// Replaces the plan.
    pub fn set_plan(&self, plan: FaultPlan) {
        self.shared.state.lock().plan = plan;
    }

    /// Faults injected so far.
    #[must_use]
    pub fn counts(&self) -> FaultCounts {
        self.shared.state.lock().counts
    }
}

impl Device for FaultDevice {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        assert!(self.shared.sink.set(sink).is_ok(), "connect is called once");
        self.inner.connect(Arc::clone(&self.shared) as Arc<dyn CompletionSink>);
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        let mut passed = Vec::with_capacity(batch.len());
        {
            let mut state = self.shared.state.lock();
            for transfer in batch.drain(..) {
                match state.failure(&transfer) {
                    Some(errno) => state.hold_back(refused(transfer, errno), Duration::ZERO),
                    None => passed.push(state.pass(transfer, self.shared.alignment)),
                }
            }
        }
        self.shared.work.notify_one();
        self.inner.submit(&mut passed);
    }

    fn stats(&self) -> DeviceStats {
        self.inner.stats()
    }

    fn shutdown(&self) {
        let mut thread = self.thread.lock();
        // First the device inside: its completions may still be held back.
        self.inner.shutdown();
        self.shared.state.lock().closing = true;
        self.shared.work.notify_one();
        join(thread.take().into_iter());
    }
}

impl Drop for FaultDevice {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl CompletionSink for Shared {
    fn complete(&self, done: &mut Vec<Completion>) {
        let mut now = Vec::with_capacity(done.len());
        {
            let mut state = self.state.lock();
            for completion in done.drain(..) {
                let completion = state.restore(completion);
                let plan = state.plan;
                if state.active() && state.random.chance(plan.late) {
                    state.counts.late += 1;
                    let delay = state.random.delay(plan.late_max);
                    state.hold_back(completion, delay);
                } else {
                    now.push(completion);
                }
            }
        }
        self.work.notify_one();
        self.deliver(&mut now);
    }
}

impl Shared {
    /// Delivers what was held back when its time comes, at once while closing.
    fn run(&self) {
        let mut due = Vec::new();
        let mut state = self.state.lock();
        loop {
            let now = Instant::now();
            while let Some(Reverse(late)) = state.late.peek()
                && (late.due <= now || state.closing)
            {
                let Reverse(late) = state.late.pop().expect("peeked");
                due.push(late.completion);
            }
            if !due.is_empty() {
                drop(state);
                self.deliver(&mut due);
                state = self.state.lock();
            } else if let Some(next) = state.late.peek().map(|Reverse(late)| late.due) {
                self.work.wait_until(&mut state, next);
            } else if state.closing {
                return;
            } else {
                self.work.wait(&mut state);
            }
        }
    }

    fn deliver(&self, done: &mut Vec<Completion>) {
        if !done.is_empty() {
            self.sink.get().expect("connect comes before the first submission").complete(done);
            done.clear();
        }
    }
}

impl State {
    /// Whether faults are injected. Not while closing: nobody would deliver what is held back.
    fn active(&self) -> bool {
        self.enabled && !self.closing
    }

    /// The error a transfer gets instead of being done.
    fn failure(&mut self, transfer: &Transfer) -> Option<Errno> {
        if !self.active() {
            return None;
        }
        let plan = self.plan;
        match transfer.action {
            Action::Read(_) if self.random.chance(plan.read_error) => {
                self.counts.read_error += 1;
                Some(Errno::EIO)
            }
            Action::Write(_) if self.random.chance(plan.write_error) => {
                self.counts.write_error += 1;
                Some(Errno::EIO)
            }
            Action::Write(_) if self.random.chance(plan.write_no_space) => {
                self.counts.write_no_space += 1;
                Some(Errno::ENOSPC)
            }
            Action::Sync { .. } if self.random.chance(plan.sync_error) => {
                self.counts.sync_error += 1;
                Some(Errno::EIO)
            }
            Action::Read(_) | Action::Write(_) | Action::Sync { .. } => None,
        }
    }

    /// What the device inside gets to do: a prefix, if the transfer is to be short.
    fn pass(&mut self, transfer: Transfer, alignment: usize) -> Transfer {
        let Transfer { token, action, file, offset } = transfer;
        let (action, rest) = match action {
            Action::Read(lease) => {
                match self.prefix(self.plan.short_read, lease.len(), alignment) {
                    Some(length) => {
                        self.counts.short_read += 1;
                        let (front, rest) = lease.split_front(length);
                        (Action::Read(front), Some(Rest::Read(rest)))
                    }
                    None => (Action::Read(lease), None),
                }
            }
            Action::Write(lease) => {
                match self.prefix(self.plan.short_write, lease.len(), alignment) {
                    Some(length) => {
                        self.counts.short_write += 1;
                        let (front, rest) = lease.split_front(length);
                        (Action::Write(front), Some(Rest::Write(rest)))
                    }
                    None => (Action::Write(lease), None),
                }
            }
            Action::Sync { .. } => (Action::Sync { data_only: true }, None),
        };
        let index = self.free.pop().unwrap_or_else(|| {
            self.pending.push(None);
            self.pending.len() - 1
        });
        self.pending[index] = Some(Pending { token, offset, rest });
        let offset = self.direct(&action, offset, alignment);
        Transfer { token: index as u64, action, file, offset }
    }

    /// Where a transfer really goes: nearby, if it is to be misdirected.
    fn direct(&mut self, action: &Action, offset: u64, alignment: usize) -> u64 {
        let (probability, count) = match action {
            Action::Read(_) => (self.plan.misdirected_read, &mut self.counts.misdirected_read),
            Action::Write(_) => (self.plan.misdirected_write, &mut self.counts.misdirected_write),
            Action::Sync { .. } => return offset,
        };
        if !(self.enabled && !self.closing && self.random.chance(probability)) {
            return offset;
        }
        *count += 1;
        let steps = 1 + self.random.below(8);
        let (ahead, behind) = (steps * alignment as u64, self.random.chance(0.5));
        match offset.checked_sub(ahead) {
            Some(before) if behind => before,
            _ => offset + ahead,
        }
    }

    /// Turns one bit of what a transfer has moved.
    fn corrupt(&mut self, action: &mut Action, file: &dyn BackingFile, offset: u64, moved: usize) {
        if !self.active() || moved == 0 {
            return;
        }
        let at = usize::try_from(self.random.below(moved as u64)).expect("less than a length");
        let bit = 1 << self.random.below(8);
        match action {
            Action::Read(lease) if self.random.chance(self.plan.corrupt_read) => {
                self.counts.corrupt_read += 1;
                lease[at] ^= bit;
            }
            Action::Write(lease) if self.random.chance(self.plan.corrupt_write) => {
                let (offset, wrong) = (offset + at as u64, [lease[at] ^ bit]);
                let file = file.as_any();
                let stored = if let Some(file) = file.downcast_ref::<MemoryFile>() {
                    file.write_at(offset, &wrong).is_ok()
                } else if let Some(file) = file.downcast_ref::<DiskFile>() {
                    rustix::io::pwrite(file, &wrong, offset).is_ok()
                } else {
                    false
                };
                self.counts.corrupt_write += u64::from(stored);
            }
            Action::Read(_) | Action::Write(_) | Action::Sync { .. } => {}
        }
    }

    /// The length of a short transfer; `None` to do it whole.
    fn prefix(&mut self, probability: f64, length: usize, alignment: usize) -> Option<usize> {
        let units = length / alignment;
        if !self.active() || units < 2 || !self.random.chance(probability) {
            return None;
        }
        let kept = 1 + self.random.below(units as u64 - 1);
        Some(usize::try_from(kept).expect("less than a length") * alignment)
    }

    /// The submitter's own transfer again, whole.
    fn restore(&mut self, completion: Completion) -> Completion {
        let Completion { transfer: Transfer { token, mut action, file, offset }, result } =
            completion;
        if let Ok(moved) = result {
            self.corrupt(&mut action, &*file, offset, moved);
        }
        let index = usize::try_from(token).expect("an index");
        let pending = self.pending[index].take().expect("a transfer passed on before");
        self.free.push(index);
        let action = match (action, pending.rest) {
            (Action::Read(front), Some(Rest::Read(rest))) => Action::Read(front.join(rest)),
            (Action::Write(front), Some(Rest::Write(rest))) => Action::Write(front.join(rest)),
            (action, None) => action,
            (action, Some(_)) => unreachable!("{action:?} came back as another action"),
        };
        let transfer = Transfer { token: pending.token, action, file, offset: pending.offset };
        Completion { transfer, result }
    }

    fn hold_back(&mut self, completion: Completion, delay: Duration) {
        self.sequence += 1;
        let (due, sequence) = (Instant::now() + delay, self.sequence);
        self.late.push(Reverse(Late { due, sequence, completion }));
    }
}
