//! A device that makes another one fail, on purpose and reproducibly.
//!
//! The fault model: a read or write fails without moving anything (EIO, for writes also ENOSPC); a sync
//! fails; a transfer is short and really moves only a prefix, a multiple of the alignment and never
//! nothing; a completion comes late, after others that were submitted later; bytes are wrong, in memory or in the
//! file; a transfer goes to another place of its file. The last three are told by nobody, as by a real device.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::device::{
    Action, BackingFile, Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer,
    refused,
};
use super::file::DiskFile;
use super::memory::MemoryFile;
use super::random::Random;
use super::worker::{Job, Order, Work, Workers};
use crate::error::{Errno, Result};

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
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    workers: Workers<Deliver>,
}

#[derive(Debug)]
struct State {
    random: Random,
    plan: FaultPlan,
    enabled: bool,
    counts: FaultCounts,
    /// What the device inside is working on; a transfer's token there is its index here.
    pending: Vec<Option<Pending>>,
    free: Vec<usize>,
    /// Late completions so far.
    sequence: u64,
    closing: bool,
}

#[derive(Debug)]
struct Pending {
    token: u64,
    offset: u64,
    /// The end that a short transfer does not get.
    rest: Option<Action>,
}

/// A completion held back, until when, and its number, which keeps those of one moment in order.
type Late = ((Instant, u64), Completion);

/// Late completions by their time. When shutdown begins it has come for all.
#[derive(Debug, Default)]
struct LateQueue {
    late: BTreeMap<(Instant, u64), Completion>,
    closing: bool,
}

impl Job for Late {
    fn complete(self, _result: Result<usize>) -> Completion {
        self.1
    }
}

impl Order for LateQueue {
    type Job = Late;

    fn push(&mut self, (due, completion): Late) {
        self.late.insert(due, completion);
    }

    fn pop(&mut self) -> Option<Late> {
        let ((due, _), _) = self.late.first_key_value()?;
        if self.closing || *due <= Instant::now() { self.late.pop_first() } else { None }
    }

    fn is_empty(&self) -> bool {
        self.late.is_empty()
    }

    fn pause(&self) -> Option<Duration> {
        let ((due, _), _) = self.late.first_key_value()?;
        Some(due.saturating_duration_since(Instant::now()))
    }

    fn drain(&mut self) {
        self.closing = true;
    }
}

/// Delivers what is held back.
#[derive(Debug)]
struct Deliver(Geometry);

impl Work for Deliver {
    type Order = LateQueue;

    const ENGINE: &'static str = "fault";

    const BATCH: usize = usize::MAX;

    fn geometry(&self) -> Geometry {
        self.0
    }

    fn perform(&self, _late: &mut Late) -> Result<usize> {
        Ok(0)
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
            sequence: 0,
            closing: false,
        };
        let (work, late) = (Deliver(inner.geometry()), LateQueue::default());
        let workers = Workers::start(work, late, ["swapfs-fault".to_owned()])?;
        let shared = Arc::new(Shared { state: Mutex::new(state), workers });
        Ok(Arc::new(Self { inner, shared }))
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
        self.shared.workers.connect(sink);
        self.inner.connect(Arc::clone(&self.shared) as Arc<dyn CompletionSink>);
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        let (mut passed, mut failed) = (Vec::with_capacity(batch.len()), Vec::new());
        {
            let mut state = self.shared.state.lock();
            for transfer in batch.drain(..) {
                match state.failure(&transfer) {
                    Some(errno) => {
                        failed.push(state.late(refused(transfer, errno), Duration::ZERO));
                    }
                    None => passed.push(state.pass(transfer, self.geometry().alignment)),
                }
            }
        }
        self.shared.workers.push(&mut failed);
        self.inner.submit(&mut passed);
    }

    fn stats(&self) -> DeviceStats {
        self.inner.stats()
    }

    fn shutdown(&self) {
        // First the device inside: its completions may still be held back.
        self.inner.shutdown();
        self.shared.state.lock().closing = true;
        self.shared.workers.shutdown();
    }
}

impl Drop for FaultDevice {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl CompletionSink for Shared {
    fn complete(&self, done: &mut Vec<Completion>) {
        let (mut now, mut late) = (Vec::with_capacity(done.len()), Vec::new());
        {
            let mut state = self.state.lock();
            for completion in done.drain(..) {
                let completion = state.restore(completion);
                let plan = state.plan;
                if state.active() && state.random.chance(plan.late) {
                    state.counts.late += 1;
                    let delay = state.random.delay(plan.late_max);
                    late.push(state.late(completion, delay));
                } else {
                    now.push(completion);
                }
            }
        }
        self.workers.push(&mut late);
        self.workers.shared.deliver(&mut now);
    }
}

impl State {
    /// Returns true when faults are injected. None are while closing: nobody would deliver what is held back.
    fn active(&self) -> bool {
        self.enabled && !self.closing
    }

    /// The error a transfer gets instead of being done.
    fn failure(&mut self, transfer: &Transfer) -> Option<Errno> {
        if !self.active() {
            return None;
        }
        let State { plan, counts, random, .. } = self;
        let faults: &mut [(f64, &mut u64, Errno)] = match transfer.action {
            Action::Read(_) => &mut [(plan.read_error, &mut counts.read_error, Errno::EIO)],
            Action::Write(_) => &mut [
                (plan.write_error, &mut counts.write_error, Errno::EIO),
                (plan.write_no_space, &mut counts.write_no_space, Errno::ENOSPC),
            ],
            Action::Sync { .. } => &mut [(plan.sync_error, &mut counts.sync_error, Errno::EIO)],
        };
        let fault = faults.iter_mut().find(|(probability, ..)| random.chance(*probability));
        let (_, count, errno) = fault?;
        **count += 1;
        Some(*errno)
    }

    /// What the device inside gets to do: a prefix, if the transfer is to be short.
    fn pass(&mut self, transfer: Transfer, alignment: usize) -> Transfer {
        let Transfer { token, action, file, offset } = transfer;
        let (action, rest) = match self.prefix(&action, alignment) {
            Some(length) => {
                let (front, rest) = action.split_front(length);
                (front, Some(rest))
            }
            None => (action, None),
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
    fn prefix(&mut self, action: &Action, alignment: usize) -> Option<usize> {
        let units = action.length() / alignment;
        if !self.active() || units < 2 {
            return None;
        }
        let (probability, count) = match action {
            Action::Read(_) => (self.plan.short_read, &mut self.counts.short_read),
            _ => (self.plan.short_write, &mut self.counts.short_write),
        };
        if !self.random.chance(probability) {
            return None;
        }
        *count += 1;
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
        let action = match pending.rest {
            Some(rest) => action.join(rest),
            None => action,
        };
        let transfer = Transfer { token: pending.token, action, file, offset: pending.offset };
        Completion { transfer, result }
    }

    fn late(&mut self, completion: Completion, delay: Duration) -> Late {
        self.sequence += 1;
        ((Instant::now() + delay, self.sequence), completion)
    }
}
