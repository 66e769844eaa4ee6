//! Counting of transfers, shared by all devices. Relaxed: the numbers order nothing.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::device::{Action, Completion, DeviceStats};

/// The counters of one aio thread, or of a whole device.
#[derive(Debug, Default)]
pub(super) struct Counters {
    submit_calls: AtomicU64,
    submitted: AtomicU64,
    batch_max: AtomicU64,
    inflight_max: AtomicU64,
    completed: AtomicU64,
    failed: AtomicU64,
    reads: AtomicU64,
    read_bytes: AtomicU64,
    writes: AtomicU64,
    written_bytes: AtomicU64,
    syncs: AtomicU64,
}

impl Counters {
    /// One call handed `transfers` to the kernel; `inflight` are now under way.
    pub(super) fn submitted(&self, transfers: u64, inflight: u64) {
        if transfers == 0 {
            return;
        }
        self.submit_calls.fetch_add(1, Relaxed);
        self.submitted.fetch_add(transfers, Relaxed);
        self.batch_max.fetch_max(transfers, Relaxed);
        self.inflight_max.fetch_max(inflight, Relaxed);
    }

    /// One transfer is done. Counted before the sink hears of it.
    pub(super) fn completed(&self, completion: &Completion) {
        self.completed.fetch_add(1, Relaxed);
        let Ok(bytes) = completion.result else {
            self.failed.fetch_add(1, Relaxed);
            return;
        };
        let (count, total) = match completion.transfer.action {
            Action::Read(_) => (&self.reads, Some(&self.read_bytes)),
            Action::Write(_) => (&self.writes, Some(&self.written_bytes)),
            Action::Sync { .. } => (&self.syncs, None),
        };
        count.fetch_add(1, Relaxed);
        if let Some(total) = total {
            total.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// Adds these counters to `stats`.
    pub(super) fn add_to(&self, stats: &mut DeviceStats) {
        stats.submit_calls += self.submit_calls.load(Relaxed);
        stats.submitted += self.submitted.load(Relaxed);
        stats.batch_max = stats.batch_max.max(self.batch_max.load(Relaxed));
        stats.inflight_max = stats.inflight_max.max(self.inflight_max.load(Relaxed));
        stats.completed += self.completed.load(Relaxed);
        stats.failed += self.failed.load(Relaxed);
        stats.reads += self.reads.load(Relaxed);
        stats.read_bytes += self.read_bytes.load(Relaxed);
        stats.writes += self.writes.load(Relaxed);
        stats.written_bytes += self.written_bytes.load(Relaxed);
        stats.syncs += self.syncs.load(Relaxed);
    }
}
