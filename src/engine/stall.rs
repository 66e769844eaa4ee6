//! Transfers that the device does not answer: which partitions wait for one, and since when.
//!
//! A transfer's time counts from when it is among the oldest as many as the device works on at once, not
//! while it waits in the device's queue behind others that are being answered. Calls about a partition's
//! space and size, which a device that hangs holds up as well, count from their start.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::actions::label;
use super::core::Engine;
use super::ids::{Id, PartitionId, TransferId};
use super::locked::Locked;
use super::state::State;
use crate::aio::device::BackingFile;

/// Between two looks: a tenth of the timeout, within these.
const LOOK_MIN_MS: u64 = 50;
/// See [`LOOK_MIN_MS`].
const LOOK_MAX_MS: u64 = 1000;

/// A transfer that the device has.
#[derive(Debug, Clone, Copy)]
struct Underway {
    /// [`BlockId::NONE`] for a token that is free.
    partition: PartitionId,
    /// Its place in the order of submission.
    number: u64,
    /// Since when its answer is due, in milliseconds since the engine's start.
    since_ms: u64,
}

/// What the watch knows. Times are in milliseconds since the engine's start.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    /// The time, as exactly as the keeper looks at its clock.
    pub(crate) now_ms: u64,
    /// When the device last answered a transfer, or a call on the swap folder returned; or when the first of
    /// those now under way began.
    answered_ms: u64,
    submitted: u64,
    /// By token.
    underway: Vec<Underway>,
    /// How many of these are not free.
    count: usize,
    looked_ms: u64,
    /// Partitions with an overdue answer, and since when that is waited for.
    stalled: HashMap<PartitionId, u64>,
}

/// A change to be told in the log.
pub(crate) struct Stall {
    file: Arc<dyn BackingFile>,
    waited: Duration,
    ended: bool,
}

impl Stall {
    pub(crate) fn log(&self) {
        let (name, s) = (label(&*self.file), self.waited.as_secs());
        match self.ended {
            false => {
                log::error!(partition = name.as_str(); "{name}: the device has not answered for {s} s, still waiting");
            }
            true => {
                log::warn!(partition = name.as_str(); "{name}: the device answers again, after {s} s");
            }
        }
    }
}

impl Watch {
    /// Notes a transfer that is about to be submitted.
    pub(crate) fn begin(&mut self, token: TransferId, partition: PartitionId) {
        if self.count == 0 {
            self.answered_ms = self.now_ms;
        }
        self.submitted += 1;
        self.count += 1;
        let free = Underway { partition: PartitionId::NONE, number: 0, since_ms: 0 };
        let length = self.underway.len().max(token.place() + 1);
        self.underway.resize(length, free);
        let (number, since_ms) = (self.submitted, self.now_ms);
        self.underway[token.place()] = Underway { partition, number, since_ms };
    }

    /// It was answered.
    pub(crate) fn end(&mut self, token: TransferId) {
        self.answered_ms = self.now_ms;
        self.count -= 1;
        self.underway[token.place()].partition = PartitionId::NONE;
    }

    fn all(&self) -> impl Iterator<Item = &Underway> {
        self.underway.iter().filter(|under| under.partition != PartitionId::NONE)
    }

    /// Moves on when those transfers are due that the device cannot have begun: all but the `depth` oldest,
    /// as long as others are answered.
    fn put_off_queued(&mut self, depth: usize) {
        if self.count <= depth {
            return;
        }
        let mut numbers: Vec<u64> = self.all().map(|under| under.number).collect();
        let (_, first_queued, _) = numbers.select_nth_unstable(depth);
        for under in self.underway.iter_mut().filter(|under| under.number >= *first_queued) {
            under.since_ms = under.since_ms.max(self.answered_ms);
        }
    }
}

impl State {
    /// A call on the backing file begins, which may have to wait for the device.
    pub(crate) fn begin_call(&mut self, partition: PartitionId) {
        let now_ms = self.watch.now_ms;
        let part = self.part(partition);
        if part.calls == 0 {
            part.call_since_ms = now_ms;
        }
        part.calls += 1;
        self.calling.insert(partition);
    }

    /// It has returned.
    pub(crate) fn end_call(&mut self, partition: PartitionId) {
        let now_ms = self.watch.now_ms;
        let part = self.part(partition);
        part.calls -= 1;
        part.call_since_ms = now_ms;
        if part.calls == 0 {
            self.calling.remove(&partition);
        }
    }

    /// How long the partition's oldest overdue answer has been waited for.
    pub(crate) fn stalled(&self, partition: PartitionId) -> Option<Duration> {
        let since = *self.watch.stalled.get(&partition)?;
        Some(Duration::from_millis(self.watch.now_ms.saturating_sub(since)))
    }

    /// Partitions that wait for an overdue answer.
    pub(crate) fn stalled_partitions(&self) -> u64 {
        self.watch.stalled.len() as u64
    }
}

impl Engine {
    /// Watches for transfers without an answer for `timeout`; zero watches no longer.
    pub fn watch_for_stalls(&self, timeout: Duration) {
        self.stall_ms.store(timeout.as_millis() as u64, Ordering::Relaxed);
    }

    /// How long nothing at all has been answered, neither by the device nor by a call on the swap folder,
    /// although something is under way; zero when nothing is.
    #[must_use]
    pub fn unanswered(&self) -> Duration {
        let calls = *self.calls.lock();
        self.with(|locked| {
            let waits = locked.state.watch.count > 0 || calls.running > 0;
            let last_ms = locked.state.watch.answered_ms.max(calls.returned_ms);
            let waited_ms = if waits { self.now_ms().saturating_sub(last_ms) } else { 0 };
            Duration::from_millis(waited_ms)
        })
    }

    /// The backing paths of the partitions that have bytes which may not be on stable storage.
    #[must_use]
    pub fn not_stored(&self) -> Vec<String> {
        let files: Vec<Arc<dyn BackingFile>> = self.with(|locked| {
            let open = |part: &super::partition::Partition| {
                let moving = part.writes > 0 || part.calls > 0 || !part.sync_ops.is_empty();
                part.dirty_pages > 0 || part.unsynced || part.needs_settling() || moving
            };
            let parts = locked.state.partitions.iter().map(|(_, part)| part);
            parts
                .filter(|part| !part.unlinked && open(part))
                .map(|part| part.file.clone())
                .collect()
        });
        files.iter().map(|file| label(&**file)).collect()
    }

    /// Runs a call that may have to wait for the device, on a thread that may.
    pub(crate) fn run_counted<T>(&self, call: impl FnOnce() -> T) -> T {
        {
            let mut calls = self.calls.lock();
            if calls.running == 0 {
                calls.returned_ms = self.now_ms();
            }
            calls.running += 1;
        }
        let result = call();
        let mut calls = self.calls.lock();
        calls.running -= 1;
        calls.returned_ms = self.now_ms();
        result
    }
}

impl Locked<'_> {
    /// The keeper's look at what is under way.
    pub(crate) fn look_for_stalls(&mut self) {
        let now_ms = self.engine.now_ms();
        self.state.watch.now_ms = now_ms;
        let timeout_ms = self.engine.stall_ms.load(Ordering::Relaxed);
        let period_ms = (timeout_ms / 10).clamp(LOOK_MIN_MS, LOOK_MAX_MS);
        let idle = timeout_ms == 0 && self.state.watch.stalled.is_empty();
        if idle || self.state.watch.looked_ms + period_ms > now_ms {
            return;
        }
        self.state.watch.looked_ms = now_ms;
        // Reads and writes wait in queues of their own; each may fill the device alone.
        self.state.watch.put_off_queued(2 * self.engine.options.writeback_batch.max(1));
        let since = |id: &PartitionId| Some((*id, self.state.partitions.get(*id)?.call_since_ms));
        let calls = self.state.calling.iter().filter_map(since);
        let transfers = self.state.watch.all().map(|under| (under.partition, under.since_ms));
        let mut stalled = HashMap::new();
        for (id, since_ms) in transfers.chain(calls) {
            if timeout_ms > 0 && since_ms + timeout_ms <= now_ms {
                let oldest = stalled.entry(id).or_insert(since_ms);
                *oldest = since_ms.min(*oldest);
            }
        }
        let before = std::mem::replace(&mut self.state.watch.stalled, stalled);
        let mut tell = |file, since: u64, ended| {
            let waited = Duration::from_millis(now_ms.saturating_sub(since));
            self.actions.stalls.push(Stall { file, waited, ended });
        };
        for (id, since) in &self.state.watch.stalled {
            if !before.contains_key(id)
                && let Some(part) = self.state.partitions.get(*id)
            {
                tell(part.file.clone(), *since, false);
            }
        }
        for (id, since) in before {
            if !self.state.watch.stalled.contains_key(&id)
                && let Some(part) = self.state.partitions.get(id)
            {
                tell(part.file.clone(), since, true);
            }
        }
    }
}

/// Calls on the swap folder that job threads make.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Calls {
    running: usize,
    /// When the last one returned, in milliseconds since the engine's start.
    returned_ms: u64,
}
