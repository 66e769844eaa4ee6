//! Leases: the rights through which the arena's bytes are touched.
//!
//! Who may hold which lease is decided by the swap engine's page claims. A lease keeps the mapping
//! alive, so memory that a device still works on cannot be unmapped.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use super::arena::Arena;

impl Arena {
    /// Leases `length` bytes from `offset` on for reading.
    ///
    /// # Panics
    ///
    /// When the range does not lie in the arena.
    ///
    /// # Safety
    ///
    /// While the lease, or a part split from it, lives, nobody writes these bytes: no [`WriteLease`]
    /// overlaps them. (The engine's page claims guarantee it.)
    #[must_use]
    pub unsafe fn read_lease(self: &Arc<Self>, offset: usize, length: usize) -> ReadLease {
        ReadLease { run: self.run(offset, length) }
    }

    /// Leases `length` bytes from `offset` on for reading and writing.
    ///
    /// # Panics
    ///
    /// When the range does not lie in the arena.
    ///
    /// # Safety
    ///
    /// While the lease, or a part split from it, lives, nobody else reads or writes these bytes: no
    /// other lease overlaps them. (The engine's page claims guarantee it.)
    #[must_use]
    pub unsafe fn write_lease(self: &Arc<Self>, offset: usize, length: usize) -> WriteLease {
        WriteLease { run: self.run(offset, length) }
    }

    fn run(self: &Arc<Self>, offset: usize, length: usize) -> Run {
        let end = offset.checked_add(length).expect("the end of a lease fits an address");
        assert!(
            end <= self.size(),
            "lease of {offset}..{end} in an arena of {} bytes",
            self.size()
        );
        Run { arena: Arc::clone(self), offset, length }
    }
}

/// A run of an arena's bytes; what both kinds of lease are made of.
#[derive(Debug)]
struct Run {
    arena: Arc<Arena>,
    offset: usize,
    length: usize,
}

impl Run {
    fn address(&self) -> *mut u8 {
        // `Arena::run` and `split` keep the offset within the mapping.
        self.arena.base().as_ptr().wrapping_add(self.offset)
    }

    fn split(self, length: usize) -> (Self, Self) {
        assert!(length <= self.length, "split at {length} of {} bytes", self.length);
        let (offset, rest) = (self.offset + length, self.length - length);
        let tail = Self { arena: Arc::clone(&self.arena), offset, length: rest };
        (Self { length, ..self }, tail)
    }

    fn join(self, tail: Self) -> Self {
        assert!(Arc::ptr_eq(&self.arena, &tail.arena), "leases of one arena");
        assert_eq!(self.offset + self.length, tail.offset, "adjacent leases");
        let length = self.length + tail.length;
        Self { length, ..self }
    }
}

/// A shared right to read a run of the arena's bytes: nobody writes them while it exists.
#[derive(Debug)]
pub struct ReadLease {
    run: Run,
}

/// The sole right to a run of the arena's bytes while it exists.
#[derive(Debug)]
pub struct WriteLease {
    run: Run,
}

macro_rules! lease_methods {
    () => {
        /// Where the run begins in the arena, in bytes.
        #[must_use]
        pub fn offset(&self) -> usize {
            self.run.offset
        }

        /// Bytes.
        #[must_use]
        #[expect(clippy::len_without_is_empty, reason = "the slice it derefs to has is_empty")]
        pub fn len(&self) -> usize {
            self.run.length
        }

        /// Whether the run lies in `arena`.
        #[must_use]
        pub fn is_of(&self, arena: &Arc<Arena>) -> bool {
            Arc::ptr_eq(&self.run.arena, arena)
        }

        /// Cuts the lease in two: its first `length` bytes, and the rest. Either may be empty.
        ///
        /// # Panics
        ///
        /// When `length` is more than the lease has.
        #[must_use]
        pub fn split_front(self, length: usize) -> (Self, Self) {
            let (head, tail) = self.run.split(length);
            (Self { run: head }, Self { run: tail })
        }

        /// Undoes [`split_front`](Self::split_front).
        ///
        /// # Panics
        ///
        /// When `tail` does not begin where this lease ends.
        #[must_use]
        pub fn join(self, tail: Self) -> Self {
            Self { run: self.run.join(tail.run) }
        }
    };
}

impl ReadLease {
    lease_methods!();

    /// The first byte, for system calls. Valid for reads of `len()` bytes while the lease lives.
    #[must_use]
    pub fn address(&self) -> *const u8 {
        self.run.address()
    }
}

impl WriteLease {
    lease_methods!();

    /// The first byte, for system calls. Valid for reads and writes of `len()` bytes while the lease
    /// lives; nobody may use it while a reference from the lease's `Deref` is alive.
    #[must_use]
    pub fn address(&self) -> *mut u8 {
        self.run.address()
    }

    /// Gives up the right to write, as when a filled buffer goes to the device.
    #[must_use]
    pub fn downgrade(self) -> ReadLease {
        ReadLease { run: self.run }
    }
}

impl Deref for ReadLease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: from_raw_parts needs initialised memory of one object that is not written during
        // the borrow. `Arena::run` checked the range, the `Arc` keeps the zero-filled mapping, and
        // the contract of `read_lease` (or of `write_lease`, after `downgrade`) excludes writers.
        unsafe { std::slice::from_raw_parts(self.run.address(), self.run.length) }
    }
}

impl Deref for WriteLease {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: as for `ReadLease`; the contract of `write_lease` excludes everybody else, and the
        // borrow of `self` excludes `deref_mut`.
        unsafe { std::slice::from_raw_parts(self.run.address(), self.run.length) }
    }
}

impl DerefMut for WriteLease {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: from_raw_parts_mut needs exclusive access to initialised memory of one object:
        // `Arena::run` checked the range, the contract of `write_lease` makes this lease the only
        // one on it, and `&mut self` makes this the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.run.address(), self.run.length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pool::ArenaOptions;

    fn arena(size: usize, pin_memory: bool, huge_pages: bool) -> Arc<Arena> {
        Arena::new(ArenaOptions { size, pin_memory, huge_pages }).unwrap()
    }

    #[test]
    fn split_leases_join_again() {
        let arena = arena(8192, false, false);
        // SAFETY: the only lease of this arena.
        let lease = unsafe { arena.write_lease(512, 4096) };
        let (mut head, mut tail) = lease.split_front(512);
        head.fill(1);
        tail.fill(2);
        assert_eq!((tail.offset(), tail.len()), (1024, 3584));
        let lease = head.join(tail);
        assert_eq!((lease.offset(), lease.len()), (512, 4096));
        assert_eq!((lease[511], lease[512]), (1, 2));
    }

    #[test]
    #[should_panic(expected = "in an arena of 4096 bytes")]
    fn lease_beyond_the_end_panics() {
        let arena = arena(4096, false, false);
        // SAFETY: never created, the bounds check panics.
        drop(unsafe { arena.read_lease(4000, 97) });
    }

    #[test]
    fn lease_outlives_the_arena_handle() {
        let arena = arena(4096, false, false);
        // SAFETY: the only lease of this arena.
        let mut lease = unsafe { arena.write_lease(0, 4096) };
        drop(arena);
        lease[4095] = 3;
        assert_eq!(lease[4095], 3);
    }
}
