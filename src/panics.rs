//! Threads that outlive their panics: those that no read or write of a client needs.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

/// How long a thread rests after a panic, so that one that comes again and again costs next to nothing.
const REST: Duration = Duration::from_secs(1);

/// Calls `work` until it returns; after a panic, again. The panic itself is logged by the daemon's hook.
pub(crate) fn outlive<T>(mut work: impl FnMut() -> T) -> T {
    loop {
        if let Ok(result) = catch_unwind(AssertUnwindSafe(&mut work)) {
            return result;
        }
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        log::error!("thread {name} goes on after a panic");
        std::thread::sleep(REST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_goes_on_after_a_panic() {
        let mut calls = 0;
        let result = outlive(|| {
            calls += 1;
            assert!(calls > 1, "on purpose");
            calls
        });
        assert_eq!(result, 2);
    }
}
