//! The engine while its lock is held. Every step of an operation runs on a [`Locked`]; what the step decides to
//! submit, answer or close is collected in its `actions` and done after the lock is free again.

use std::cell::Cell;
use std::time::Duration;

use super::actions::Actions;
use super::core::Engine;
use super::state::State;
use crate::aio::device::Transfer;
use crate::concurrent::thread_local;

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
        actions.run(self);
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
        actions.run(self);
        result
    }

    /// Waits on `tick` for at most `time`, then runs `step` under the lock.
    pub(crate) fn with_after<R>(&self, time: Duration, step: impl FnOnce(&mut Locked) -> R) -> R {
        let (result, actions) = self.collect(Some(time), step);
        actions.run(self);
        result
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

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as one that has the lock, or is about to take it.
#[derive(Debug)]
struct Inside(());

impl Inside {
    /// To be called before the lock is taken: taking it twice would wait for ever.
    fn enter() -> Inside {
        assert_outside("taking the engine's lock");
        IS_INSIDE.with(|inside| inside.set(true));
        Inside(())
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        IS_INSIDE.with(|inside| inside.set(false));
    }
}

/// Asserts the rule that nothing waits, submits, answers or logs under the engine's lock.
///
/// # Panics
/// When this thread has an engine's lock: `what` may take long, or take that lock itself.
pub(crate) fn assert_outside(what: &str) {
    assert!(!IS_INSIDE.with(Cell::get), "{what} under the engine's lock");
}

/// How long the lock was held, and how often: one divided by the time per operation is the most that any number of
/// processors can reach.
#[cfg(feature = "lock-times")]
#[derive(Debug, Default)]
pub(crate) struct LockTimes {
    taken: std::sync::atomic::AtomicU64,
    held_ns: std::sync::atomic::AtomicU64,
}

#[cfg(feature = "lock-times")]
pub(crate) struct Held<'a>(&'a LockTimes, std::time::Instant);

#[cfg(feature = "lock-times")]
impl LockTimes {
    fn begin(&self) -> Held<'_> {
        Held(self, std::time::Instant::now())
    }
}

#[cfg(feature = "lock-times")]
impl Engine {
    /// How often the lock was taken, and the nanoseconds that it was held.
    pub(crate) fn lock_times(&self) -> (u64, u64) {
        use std::sync::atomic::Ordering::Relaxed;
        (self.lock_times.taken.load(Relaxed), self.lock_times.held_ns.load(Relaxed))
    }
}

#[cfg(feature = "lock-times")]
impl Drop for Held<'_> {
    fn drop(&mut self) {
        use std::sync::atomic::Ordering::Relaxed;
        self.0.taken.fetch_add(1, Relaxed);
        self.0.held_ns.fetch_add(self.1.elapsed().as_nanos() as u64, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_must_not_happen_inside_is_noticed() {
        assert_outside("nothing");
        let inside = Inside::enter();
        assert!(std::panic::catch_unwind(|| assert_outside("waiting")).is_err());
        assert!(std::panic::catch_unwind(Inside::enter).is_err());
        std::thread::spawn(|| assert_outside("another thread")).join().unwrap();
        drop(inside);
        assert_outside("afterwards");
    }
}
