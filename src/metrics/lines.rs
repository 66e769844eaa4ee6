//! Counts of the lines of the daemon's log.

use std::sync::atomic::{AtomicU64, Ordering};

/// What has become of the lines. One process has one log.
#[derive(Debug)]
pub(crate) struct Lines {
    /// Lines that were logged.
    pub(crate) lines: AtomicU64,
    /// Lines that were left out because there were too many of their kind.
    pub(crate) left_out: AtomicU64,
    /// Lines that the file did not take.
    pub(crate) dropped: AtomicU64,
    /// How often the file was set aside for a new one.
    pub(crate) rotations: AtomicU64,
}

pub(crate) static LINES: Lines = Lines {
    lines: AtomicU64::new(0),
    left_out: AtomicU64::new(0),
    dropped: AtomicU64::new(0),
    rotations: AtomicU64::new(0),
};

impl Lines {
    /// One more.
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}
