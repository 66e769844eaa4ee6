//! The device without a disk, for tests of the engine: files in memory, transfers that complete in a
//! random but reproducible order.

mod contents;
mod file;

use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::counters::Counters;
use super::device::{
    Action, BackingFile, Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer,
    refused,
};
use super::random::Random;
use super::threads::check;
use crate::concurrent::{Condvar, Mutex, thread};
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
pub struct MemoryDevice {
    shared: Arc<Shared>,
    thread: Mutex<Option<thread::JoinHandle<()>>>,
    options: MemoryOptions,
}

struct Shared {
    state: Mutex<State>,
    work: Condvar,
    sink: OnceLock<Arc<dyn CompletionSink>>,
    counters: Counters,
}

struct State {
    waiting: Vec<Transfer>,
    refused: Vec<Transfer>,
    /// Shutdown began.
    draining: bool,
    /// The thread is gone or about to go.
    closed: bool,
}

impl std::fmt::Debug for MemoryDevice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("MemoryDevice")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl MemoryDevice {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Those of creating a thread.
    pub fn new(options: MemoryOptions) -> io::Result<Arc<Self>> {
        assert!(options.alignment.is_power_of_two(), "an alignment of {}", options.alignment);
        let state =
            State { waiting: Vec::new(), refused: Vec::new(), draining: false, closed: false };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            work: Condvar::new(),
            sink: OnceLock::new(),
            counters: Counters::default(),
        });
        let worker = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("swapfs-memory".to_owned())
            .spawn(move || worker.run(options))?;
        Ok(Arc::new(Self { shared, thread: Mutex::new(Some(thread)), options }))
    }
}

impl Device for MemoryDevice {
    fn geometry(&self) -> Geometry {
        Geometry { alignment: self.options.alignment, direct: true }
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        assert!(self.shared.sink.set(sink).is_ok(), "connect is called once");
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        for transfer in batch.iter() {
            check(transfer, self.geometry());
        }
        let mut state = self.shared.state.lock();
        if state.closed {
            drop(state);
            let late = batch.drain(..).map(|transfer| refused(transfer, Errno::ENODEV));
            let mut done: Vec<_> = late.collect();
            self.shared.deliver(&mut done);
            return;
        }
        if state.draining {
            state.refused.append(batch);
        } else {
            state.waiting.append(batch);
        }
        self.shared.work.notify_one();
    }

    fn stats(&self) -> DeviceStats {
        let mut stats = DeviceStats { engine: "memory", ..DeviceStats::default() };
        self.shared.counters.add_to(&mut stats);
        stats
    }

    fn shutdown(&self) {
        let mut thread = self.thread.lock();
        self.shared.state.lock().draining = true;
        self.shared.work.notify_one();
        // The last handle may be dropped from inside a completion: the thread then ends by itself.
        if let Some(thread) = thread.take()
            && thread.thread().id() != thread::current().id()
            && thread.join().is_err()
        {
            log::error!("the memory device's thread panicked");
        }
    }
}

impl Drop for MemoryDevice {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl Shared {
    fn run(&self, options: MemoryOptions) {
        let mut random = Random::new(options.seed);
        let mut done = Vec::with_capacity(1);
        loop {
            let Some((transfer, late)) = self.next(&mut random) else {
                return;
            };
            if late {
                done.push(refused(transfer, Errno::ENODEV));
            } else {
                if !options.delay_max.is_zero() {
                    std::thread::sleep(random.delay(options.delay_max));
                }
                done.push(perform(transfer));
            }
            self.deliver(&mut done);
        }
    }

    /// The next transfer, and whether it came too late; `None` at the end.
    fn next(&self, random: &mut Random) -> Option<(Transfer, bool)> {
        let mut state = self.state.lock();
        loop {
            if let Some(transfer) = state.refused.pop() {
                return Some((transfer, true));
            }
            if !state.waiting.is_empty() {
                let count = state.waiting.len();
                let index = usize::try_from(random.below(count as u64)).expect("below a usize");
                self.counters.submitted(1, 1);
                return Some((state.waiting.swap_remove(index), false));
            }
            if state.draining {
                state.closed = true;
                return None;
            }
            self.work.wait(&mut state);
        }
    }

    fn deliver(&self, done: &mut Vec<Completion>) {
        if done.is_empty() {
            return;
        }
        done.iter().for_each(|completion| self.counters.completed(completion));
        self.sink.get().expect("connect comes before the first submission").complete(done);
        debug_assert!(done.is_empty(), "a sink takes all completions");
        done.clear();
    }
}

fn perform(mut transfer: Transfer) -> Completion {
    let Some(file) = transfer.file.as_any().downcast_ref::<MemoryFile>() else {
        return refused(transfer, Errno::EBADF);
    };
    let result: Result<usize> = match &mut transfer.action {
        Action::Read(lease) => file.read_at(transfer.offset, lease),
        Action::Write(lease) => file.write_at(transfer.offset, lease),
        Action::Sync { .. } => file.sync(true).map(|()| 0),
    };
    Completion { transfer, result }
}
