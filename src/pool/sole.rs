//! Memory with one owner: an arena whose leases all descend from one.

use std::io;
use std::sync::Arc;

use super::arena::{Arena, ArenaOptions};
use super::lease::{ReadLease, WriteLease};

/// The other half of the lease that [`SoleArena::new`] gives out. With it, a part of that lease that was
/// given up to a write ([`WriteLease::downgrade`]) can be had back for writing, without a promise to make.
#[derive(Debug)]
pub struct SoleArena {
    arena: Arc<Arena>,
}

impl SoleArena {
    /// Allocates an arena and leases all of it. Blocks as [`Arena::new`] does.
    ///
    /// # Errors
    ///
    /// Those of [`Arena::new`].
    pub fn new(options: ArenaOptions) -> io::Result<(Self, WriteLease)> {
        let arena = Arena::new(options)?;
        // SAFETY: write_lease needs that no other lease overlaps: the arena was made just now.
        let lease = unsafe { arena.write_lease(0, arena.size()) };
        Ok((Self { arena }, lease))
    }

    /// The memory behind the leases, to register it with a device. A lease taken from it directly is
    /// the taker's promise, against all leases that descend from the first.
    #[must_use]
    pub fn arena(&self) -> &Arc<Arena> {
        &self.arena
    }

    /// Undoes [`WriteLease::downgrade`].
    ///
    /// # Panics
    ///
    /// When the lease is not of this arena.
    #[must_use]
    pub fn reclaim(&self, lease: ReadLease) -> WriteLease {
        assert!(lease.is_of(&self.arena), "a lease of this arena");
        let (offset, length) = (lease.offset(), lease.len());
        drop(lease);
        // SAFETY: write_lease needs that no other lease overlaps. All leases of this arena descend from
        // the one of `new` by splitting, joining, downgrading and this function, none of which makes
        // two leases of one byte, and leases cannot be copied: the one just dropped was alone.
        unsafe { self.arena.write_lease(offset, length) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_can_be_written_again() {
        let options = ArenaOptions { size: 8192, pin_memory: false, huge_pages: false };
        let (sole, lease) = SoleArena::new(options).unwrap();
        let (mut head, tail) = lease.split_front(4096);
        head.fill(1);
        let mut head = sole.reclaim(head.downgrade());
        head[0] = 2;
        let whole = head.join(tail);
        assert_eq!((whole[0], whole[1], whole.len()), (2, 1, 8192));
    }

    #[test]
    #[should_panic(expected = "a lease of this arena")]
    fn foreign_leases_are_refused() {
        let options = ArenaOptions { size: 4096, pin_memory: false, huge_pages: false };
        let (sole, _lease) = SoleArena::new(options).unwrap();
        let (_other, lease) = SoleArena::new(options).unwrap();
        drop(sole.reclaim(lease.downgrade()));
    }
}
