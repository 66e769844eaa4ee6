//! The engine while its lock is held. Every step of an operation runs on a [`Locked`]; what the step decides to
//! submit, answer or close is collected in its `actions` and done after the lock is free again.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::actions::Actions;
use super::core::Engine;
use super::lock::{Inside, assert_outside};
use super::state::State;
use crate::aio::device::Transfer;

/// The engine, its state, and what is to be done once the lock is free.
pub(crate) struct Locked<'a> {
    pub(crate) engine: &'a Engine,
    pub(crate) state: &'a mut State,
    pub(crate) actions: &'a mut Actions,
}

impl Engine {
    /// Runs `step` under the lock, then does what it collected.
    pub(crate) fn with<R>(&self, step: impl FnOnce(&mut Locked) -> R) -> R {
        let (result, actions) = self.collect(None, step);
        self.perform(actions);
        result
    }

    /// As [`Engine::with`], but leaves the transfers of a small read in `batch`.
    pub(crate) fn with_batch<R>(
        &self, batch: Option<&mut Vec<Transfer>>, step: impl FnOnce(&mut Locked) -> R,
    ) -> R {
        let (result, mut actions) = self.collect(None, step);
        if let Some(batch) = batch {
            actions.leave_to(batch);
        }
        self.perform(actions);
        result
    }

    /// Waits on `tick` for at most `time`, then runs `step` under the lock.
    pub(crate) fn with_after<R>(&self, time: Duration, step: impl FnOnce(&mut Locked) -> R) -> R {
        let (result, actions) = self.collect(Some(time), step);
        self.perform(actions);
        result
    }

    /// Does what a step collected. The lock is not held.
    pub(super) fn perform(&self, mut actions: Actions) {
        assert_outside("submitting and answering");
        if !actions.transfers.is_empty() {
            self.device().submit(&mut actions.transfers);
        }
        for failure in actions.failures {
            failure.log();
        }
        for note in actions.notes {
            note.log();
        }
        for stall in actions.stalls {
            stall.log();
        }
        for answer in actions.answers {
            answer.send();
        }
        for op in actions.ready {
            self.dispatch(op);
        }
        for job in actions.jobs {
            self.queue_job(job);
        }
    }

    /// Runs `step` under the lock and returns what is to be done afterwards.
    pub(super) fn collect<R>(
        &self, wait: Option<Duration>, step: impl FnOnce(&mut Locked) -> R,
    ) -> (R, Actions) {
        let mut actions = Actions::default();
        let _inside = Inside::enter();
        let mut state = self.state.lock();
        if let Some(time) = wait {
            self.tick.wait_for(&mut state, time);
        }
        #[cfg(feature = "lock-times")]
        let _held = self.lock_times.begin();
        let mut locked = Locked { engine: self, state: &mut state, actions: &mut actions };
        let result = step(&mut locked);
        locked.after();
        drop(state);
        (result, actions)
    }
}

impl Locked<'_> {
    /// What every step may have made possible.
    pub(super) fn after(&mut self) {
        if !self.state.released.is_empty() {
            self.drop_released();
        }
        self.pump();
        if self.engine.ended.load(Ordering::Relaxed) {
            self.refuse_parked();
        }
        self.state.shrink_to_limit(self.actions);
        #[cfg(any(test, feature = "shuttle", feature = "fuzz"))]
        self.state.check();
    }

    /// Has a job thread do `work`, which may block on metadata calls, once the lock is free.
    pub(super) fn job(&mut self, work: impl FnOnce(&Engine) + Send + 'static) {
        let engine = self.engine.shared();
        self.actions.jobs.push(Box::new(move || work(&engine)));
    }
}

#[cfg(feature = "lock-times")]
impl Engine {
    /// How often the lock was taken, and the nanoseconds that it was held.
    #[must_use]
    pub fn lock_times(&self) -> (u64, u64) {
        use std::sync::atomic::Ordering::Relaxed;
        (self.lock_times.taken.load(Relaxed), self.lock_times.held_ns.load(Relaxed))
    }
}
