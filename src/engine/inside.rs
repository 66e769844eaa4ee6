//! Checks the rule that nothing waits, submits, answers or logs under the engine's lock: a thread knows
//! whether it is inside, and what must not happen there asserts that it is not.

use std::cell::Cell;

use crate::concurrent::thread_local;

thread_local! {
    static IS_INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, this thread has the lock, or is about to take it.
#[derive(Debug)]
pub(crate) struct Inside(());

impl Inside {
    /// To be called before the lock is taken: taking it twice would wait for ever.
    pub(crate) fn enter() -> Inside {
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

/// # Panics
/// When this thread has an engine's lock: `what` may take long, or take that lock itself.
pub(crate) fn assert_outside(what: &str) {
    assert!(!IS_INSIDE.with(Cell::get), "{what} under the engine's lock");
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
