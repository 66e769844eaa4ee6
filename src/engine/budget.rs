//! How many buffers may be held or lent out, and who gets them.
//!
//! Held buffers do not give way, so two holders that each had a part of what they need would wait for
//! each other for ever. Everybody therefore takes all buffers of a call at once, as tokens, before it asks
//! the engine for the first; and waits only while others are under way to give enough back.

use std::sync::Arc;

use super::locked::assert_outside;
use crate::concurrent::{Condvar, Mutex};

/// The engine's buffers, less those that keep requests moving.
#[derive(Debug)]
pub(crate) struct Budget {
    total: usize,
    counts: Mutex<Counts>,
    changed: Condvar,
}

#[derive(Debug)]
struct Counts {
    free: usize,
    /// Taken, but given back as soon as a transfer ends.
    coming: usize,
}

/// Too few buffers, and none on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shortage {
    pub(crate) needed: usize,
    pub(crate) free: usize,
    pub(crate) total: usize,
}

impl Budget {
    pub(crate) fn new(total: usize) -> Arc<Budget> {
        let counts = Mutex::new(Counts { free: total, coming: 0 });
        Arc::new(Budget { total, counts, changed: Condvar::new() })
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// Free ones, of which `reserved` are out of circulation.
    pub(crate) fn free(&self, reserved: usize) -> usize {
        self.counts.lock().free.saturating_sub(reserved)
    }

    /// Takes `needed` at once. Waits as long as enough are coming.
    pub(crate) fn take(
        self: &Arc<Self>, needed: usize, reserved: usize,
    ) -> Result<Tokens, Shortage> {
        assert_outside("waiting for buffers");
        let mut counts = self.counts.lock();
        loop {
            let free = counts.free.saturating_sub(reserved);
            if needed <= free {
                counts.free -= needed;
                return Ok(Tokens { budget: self.clone(), count: needed, coming: false });
            }
            if needed > free + counts.coming {
                return Err(Shortage { needed, free, total: self.total });
            }
            self.changed.wait(&mut counts);
        }
    }

    /// Takes `needed` at once if they are free now. Never fewer for a moment, which others would miss.
    pub(crate) fn take_now(self: &Arc<Self>, needed: usize, reserved: usize) -> Option<Tokens> {
        let mut counts = self.counts.lock();
        if needed > counts.free.saturating_sub(reserved) {
            return None;
        }
        counts.free -= needed;
        Some(Tokens { budget: self.clone(), count: needed, coming: false })
    }

    /// Takes what is free now, `most` at most.
    pub(crate) fn take_free(self: &Arc<Self>, most: usize, reserved: usize) -> Tokens {
        let mut counts = self.counts.lock();
        let count = counts.free.saturating_sub(reserved).min(most);
        counts.free -= count;
        Tokens { budget: self.clone(), count, coming: false }
    }
}

/// The right to a number of buffers; given back when dropped.
#[derive(Debug)]
pub(crate) struct Tokens {
    budget: Arc<Budget>,
    count: usize,
    coming: bool,
}

impl Tokens {
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    /// `count` of them, as tokens of their own.
    pub(crate) fn split(&mut self, count: usize) -> Tokens {
        assert!(count <= self.count && !self.coming, "tokens that are there, and stay");
        self.count -= count;
        Tokens { budget: self.budget.clone(), count, coming: false }
    }

    /// Adds others of the same engine.
    pub(crate) fn merge(&mut self, mut other: Tokens) {
        assert!(!self.coming && !other.coming, "tokens that are there, and stay");
        self.count += std::mem::take(&mut other.count);
    }

    /// Others may wait for these from now on, or no longer.
    pub(crate) fn set_coming(&mut self, coming: bool) {
        if self.coming != coming {
            self.coming = coming;
            let mut counts = self.budget.counts.lock();
            if coming {
                counts.coming += self.count;
            } else {
                counts.coming -= self.count;
            }
            drop(counts);
            self.budget.changed.notify_all();
        }
    }
}

impl Drop for Tokens {
    fn drop(&mut self) {
        let mut counts = self.budget.counts.lock();
        counts.free += self.count;
        if self.coming {
            counts.coming -= self.count;
        }
        drop(counts);
        self.budget.changed.notify_all();
    }
}
