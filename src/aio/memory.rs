//! The device without a disk, for tests of the engine: files in memory, transfers that complete in a
//! random but reproducible order.

mod contents;
mod file;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::device::{Action, BackingFile, Geometry, Transfer};
use super::random::Random;
use super::worker::{Order, Work, Workers};
use crate::error::{Errno, Result};

pub use file::{MemoryFile, MemoryFolder};

/// How a [`MemoryDevice`] behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryOptions {
    /// Same seed and same submissions, same order of completion.
    pub seed: u64,
    /// Longest pause before a completion; zero for none.
    pub delay_max: Duration,
    /// Bytes; see [`Geometry::alignment`].
    pub alignment: usize,
}

impl Default for MemoryOptions {
    fn default() -> Self {
        Self { seed: 1, delay_max: Duration::ZERO, alignment: 4096 }
    }
}

/// Moves bytes between leases and [`MemoryFile`]s on one thread of its own. Other files fail with
/// EBADF.
pub type MemoryDevice = Workers<Memory>;

/// What the thread of a [`MemoryDevice`] does.
#[derive(Debug)]
pub struct Memory(MemoryOptions);

/// Waiting transfers, taken in random order.
#[derive(Debug)]
pub struct Shuffled {
    waiting: Vec<Transfer>,
    random: Random,
}

impl MemoryDevice {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Those of creating a thread.
    pub fn new(options: MemoryOptions) -> io::Result<Arc<Self>> {
        assert!(options.alignment.is_power_of_two(), "an alignment of {}", options.alignment);
        let shuffled = Shuffled { waiting: Vec::new(), random: Random::new(options.seed) };
        Self::start(Memory(options), shuffled, ["swapfs-memory".to_owned()]).map(Arc::new)
    }
}

impl Order for Shuffled {
    type Job = Transfer;

    fn push(&mut self, transfer: Transfer) {
        self.waiting.push(transfer);
    }

    fn pop(&mut self) -> Option<Transfer> {
        if self.waiting.is_empty() {
            return None;
        }
        let index = self.random.below(self.waiting.len() as u64);
        Some(self.waiting.swap_remove(usize::try_from(index).expect("below a usize")))
    }

    fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

impl Work for Memory {
    type Order = Shuffled;

    const ENGINE: &'static str = "memory";

    fn geometry(&self) -> Geometry {
        Geometry { alignment: self.0.alignment, direct: true }
    }

    fn perform(&self, transfer: &mut Transfer) -> Result<usize> {
        if !self.0.delay_max.is_zero() {
            std::thread::sleep(Random::new(self.0.seed ^ transfer.token).delay(self.0.delay_max));
        }
        let file = transfer.file.as_any().downcast_ref::<MemoryFile>().ok_or(Errno::EBADF)?;
        match &mut transfer.action {
            Action::Read(lease) => file.read_at(transfer.offset, lease),
            Action::Write(lease) => file.write_at(transfer.offset, lease),
            Action::Sync { .. } => file.sync(true).map(|()| 0),
        }
    }
}
