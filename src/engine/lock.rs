//! The rule of the engine's lock, and how long it is held.

use std::cell::Cell;

use crate::concurrent::thread_local;

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Marks this thread as one that has the lock, or is about to take it.
#[derive(Debug)]
pub(super) struct Inside(());

impl Inside {
    /// To be called before the lock is taken: taking it twice would wait for ever.
    pub(super) fn enter() -> Inside {
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
    pub(super) taken: std::sync::atomic::AtomicU64,
    pub(super) held_ns: std::sync::atomic::AtomicU64,
}

#[cfg(feature = "lock-times")]
pub(crate) struct Held<'a>(&'a LockTimes, std::time::Instant);

#[cfg(feature = "lock-times")]
impl LockTimes {
    pub(super) fn begin(&self) -> Held<'_> {
        Held(self, std::time::Instant::now())
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
