//! What happens by itself: partial blocks go out after a while, waits end, clean files are settled, and what the
//! device does not answer is noticed.
//!
//! Transfers that the device does not answer: which partitions wait for one, and since when.
//!
//! A transfer's time counts from when it is among the oldest as many as the device works on at once, not
//! while it waits in the device's queue behind others that are being answered. Calls about a partition's
//! space and size, which a device that hangs holds up as well, count from their start.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::actions::{Stall, label};
use super::core::Engine;
use super::ids::{BlockId, PartitionId};
use super::locked::Locked;
use super::state::State;
use crate::aio::device::BackingFile;

/// How often the keeper looks.
const TICK: Duration = Duration::from_millis(50);
/// The same while blocks wait for the rest of a write.
const TICK_SEAMED: Duration = Duration::from_millis(5);

impl Engine {
    /// The keeper thread.
    pub(crate) fn keep(&self) {
        let linger = self.options.linger.as_millis() as u64;
        let (mut stop, mut tick) = (false, TICK);
        while !stop {
            (stop, tick) = self.with_after(tick, |locked| {
                let now_ms = self.now_ms();
                locked.look_for_stalls();
                while locked.state.dirty.head != BlockId::NONE
                    && locked.state.blocks[locked.state.dirty.head].written_ms + linger <= now_ms
                {
                    locked.flush_block(locked.state.dirty.head);
                }
                locked.retry_seamed();
                locked.finish_late();
                locked.begin_late_swap_ins();
                locked.state.trim(self.options.idle_partitions_max, locked.actions);
                locked.settle_unwritten(now_ms, linger);
                let now = Instant::now();
                for reply in expired(locked.state, now) {
                    locked.actions.answer(Some(reply), Ok(()));
                }
                (
                    locked.state.stopping,
                    if locked.state.seamed.is_empty() { TICK } else { TICK_SEAMED },
                )
            });
        }
    }
}

impl Locked<'_> {
    /// Settles the partitions that are clean and were not written to for `linger` milliseconds.
    fn settle_unwritten(&mut self, now_ms: u64, linger: u64) {
        let state = &mut *self.state;
        state.unsettled.retain(|id| {
            state.partitions.get(*id).is_some_and(super::partition::Partition::needs_settling)
        });
        let is_due = |id: &PartitionId| {
            let part = state.partitions.get(*id).expect("looked up just now");
            part.clean() && part.written_ms + linger <= now_ms
        };
        let due: Vec<PartitionId> = state.unsettled.iter().copied().filter(is_due).collect();
        for id in due {
            self.settle(id);
        }
    }
}

/// Takes out the replies of status waits whose time is up.
fn expired(st: &mut State, now: Instant) -> Vec<super::op::Reply> {
    let mut replies = Vec::new();
    let mut take = |waiters: &mut Vec<super::partition::StatusWaiter>| {
        let (over, left): (Vec<_>, Vec<_>) =
            std::mem::take(waiters).into_iter().partition(|waiter| waiter.deadline <= now);
        *waiters = left;
        replies.extend(over.into_iter().map(|waiter| waiter.reply));
    };
    for id in std::mem::take(&mut st.status_waits) {
        let Some(part) = st.partitions.get_mut(id) else { continue };
        take(&mut part.status_waiters);
        if !part.status_waiters.is_empty() {
            st.status_waits.insert(id);
        }
    }
    take(&mut st.idle_waiters);
    replies
}

/// Between two looks: a tenth of the timeout, within these.
const LOOK_MIN_MS: u64 = 50;
/// See [`LOOK_MIN_MS`].
const LOOK_MAX_MS: u64 = 1000;

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
