//! Keeps what is known about a name in step with the name itself.
//!
//! Looking a name up and entering what it is are two steps, as are removing it and entering that.
//! Between them no other call of this tree may change the same directory: else an inode could lose
//! its last name unnoticed, and with it the descriptor that it lives by. The kernel's directory
//! locks say as much for what comes through a mount; these hold for everyone. Two directories
//! rarely share one.

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

/// Enough for the threads that a mount has.
const STRIPE_COUNT: usize = 64;

/// The locks 2 and 3 of the [module's](super) order.
#[derive(Debug)]
pub(super) struct Moves {
    /// By directory.
    stripes: [RwLock<()>; STRIPE_COUNT],
    /// For nodes opened again by name: a way leads through many directories.
    walks: RwLock<()>,
    /// Whether nodes are opened again by name at all.
    has_walks: bool,
}

/// While it lives, nobody else names anything in one or two directories.
#[derive(Debug)]
#[must_use = "names may change as soon as it is dropped"]
pub(super) struct Moving<'moves> {
    _walks: Option<RwLockWriteGuard<'moves, ()>>,
    _second: Option<RwLockWriteGuard<'moves, ()>>,
    _first: RwLockWriteGuard<'moves, ()>,
}

impl Moves {
    pub(super) fn new(has_walks: bool) -> Self {
        Self {
            stripes: [const { RwLock::new(()) }; STRIPE_COUNT],
            walks: RwLock::new(()),
            has_walks,
        }
    }

    /// For looking up or making a name in `directory`: nobody takes one away meanwhile. Not to be
    /// taken twice by one thread, nor while opening a node again.
    pub(super) fn naming(&self, directory: u64) -> RwLockReadGuard<'_, ()> {
        self.stripes[stripe_of(directory)].read()
    }

    /// For taking a name away from `from`, and to `to` perhaps.
    pub(super) fn moving(&self, from: u64, to: u64) -> Moving<'_> {
        let (from, to) = (stripe_of(from), stripe_of(to));
        // In ascending order, so that two threads never wait for each other.
        let _first = self.stripes[from.min(to)].write();
        let _second = (from != to).then(|| self.stripes[from.max(to)].write());
        let _walks = self.has_walks.then(|| self.walks.write());
        Moving { _walks, _second, _first }
    }

    /// For following names through any number of directories.
    pub(super) fn walking(&self) -> RwLockReadGuard<'_, ()> {
        self.walks.read()
    }
}

fn stripe_of(directory: u64) -> usize {
    (directory % STRIPE_COUNT as u64) as usize
}
