//! Leases on memory that a caller lends for the length of a call.

use std::ptr::NonNull;
use std::sync::Arc;
use std::time::Duration;

use super::arena::Arena;
use super::lease::WriteLease;

/// How long to sleep between two looks at whether the last lease is gone.
const LOOK_AGAIN: Duration = Duration::from_micros(200);

/// Calls `work` with the sole lease on `bytes`, so that a device can fill them. Returns, or unwinds, only when
/// that lease and every part of it is dropped, wherever `work` has sent them: whoever keeps one for ever
/// blocks the caller for ever.
pub(crate) fn with_lease<T>(bytes: &mut [u8], work: impl FnOnce(WriteLease) -> T) -> T {
    let base = NonNull::from(&mut *bytes).cast::<u8>();
    // SAFETY: of_foreign needs memory that stays and is touched through its leases only. `bytes` is
    // borrowed exclusively until this function ends, by returning or by unwinding, and `Lent` does not let it end
    // before the arena is this function's alone, that is, without a lease.
    let mut lent = Lent { arena: unsafe { Arena::of_foreign(base, bytes.len()) } };
    // SAFETY: write_lease needs that no other lease overlaps: the arena was made just now.
    let lease = unsafe { lent.arena.write_lease(0, bytes.len()) };
    let outcome = work(lease);
    lent.wait();
    outcome
}

struct Lent {
    arena: Arc<Arena>,
}

impl Lent {
    /// Waits until nobody else refers to the arena.
    fn wait(&mut self) {
        // get_mut synchronizes with the threads that have dropped theirs.
        while Arc::get_mut(&mut self.arena).is_none() {
            std::thread::sleep(LOOK_AGAIN);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_when_the_last_part_is_gone() {
        let mut bytes = [0_u8; 64];
        let thread = with_lease(&mut bytes, |lease| {
            let (mut front, back) = lease.split_front(16);
            front.fill(1);
            std::thread::spawn(move || {
                let mut back = back;
                std::thread::sleep(Duration::from_millis(50));
                back.fill(2);
            })
        });
        assert_eq!((bytes[15], bytes[16], bytes[63]), (1, 2, 2));
        thread.join().unwrap();
    }

    #[test]
    fn a_panic_waits_too() {
        let mut bytes = [0_u8; 8];
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            with_lease(&mut bytes, |lease| {
                std::thread::spawn(move || {
                    let mut lease = lease;
                    std::thread::sleep(Duration::from_millis(50));
                    lease.fill(3);
                });
                panic!("on purpose");
            });
        }));
        assert!(outcome.is_err());
        assert_eq!(bytes, [3; 8]);
    }
}
