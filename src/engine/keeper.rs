//! What happens by itself: partial blocks go out after a while, waits end, clean files are settled, and what the
//! device does not answer is noticed.

use std::time::{Duration, Instant};

use super::core::Engine;
use super::ids::{BlockId, PartitionId};
use super::locked::Locked;
use super::state::State;

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
