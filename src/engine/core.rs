//! The engine: one lock over [`State`], threads that retry parked operations and run blocking jobs, and
//! the device.

use crate::metrics::Histogram;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use super::actions::Job;
use super::budget::Budget;
use super::memory::Memory;
use super::op::Op;
use super::shape::Shape;
use super::state::State;
use super::watch::Calls;
use crate::aio::device::{Action, Completion, CompletionSink, Device, InlineReader, Transfer};
use crate::concurrent::{self, Clock, Condvar, Mutex, Receiver, Sender, thread};
use crate::pool::{Arena, ArenaOptions, HUGE_PAGE_BYTES};
use crate::shares::{Bounds, descriptor_limit};
use crate::sys_process::touch_stack;
use crate::units::format_exact;

/// Bytes of a page of validity, unless the device's alignment is larger.
pub const PAGE_SIZE: u64 = 4096;

/// Scratch pages for completing partial pages; more fills than that wait for one.
const SCRATCH_PAGES: usize = 64;

/// Threads that go on with operations after a wait: replies copy, so one thread is not enough.
pub(crate) const OP_THREADS: usize = 2;

/// Threads for metadata calls on the swap folder that may block.
pub(crate) const JOB_THREADS: usize = 2;

/// Largest operation handled on the thread that completed its transfer; larger ones would keep that
/// thread from reaping.
pub(crate) const INLINE_BYTES_MAX: u64 = 64 * 1024;

/// What opening for reading starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenSwapIn {
    /// Nothing.
    None,
    /// The first `read_ahead` bytes.
    Ahead,
    /// As much of the partition as the pool can take.
    All,
}

/// Settings of an [`Engine`], fixed at start.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Bytes of the pool, a multiple of `block_size`.
    pub pool_size: u64,
    /// Bytes of a block, a power of two from 64 KiB to 16 MiB.
    pub block_size: u64,
    /// Bytes kept in flight ahead of a sequential reader.
    pub read_ahead: u64,
    /// See [`OpenSwapIn`].
    pub open_swap_in: OpenSwapIn,
    /// How long a partly filled dirty block waits for more before it is written out.
    pub linger: Duration,
    /// Blocks whose write-out is started at once when the pool is full.
    pub writeback_batch: usize,
    /// Partitions of fewer bytes share buffers and are evicted after others; 0 for none.
    pub min_swap_size: u64,
    /// Partitions without an open handle that are kept for what they have resident, and hold a
    /// descriptor each. Of more than that, small ones keep their bytes only, and others nothing.
    pub idle_partitions_max: usize,
    /// Blocks' worth of memory beyond the pool, see [`Intake`](super::Intake).
    pub intakes: usize,
}

impl EngineOptions {
    /// Bytes the arena must have: the pool, the intakes, the scratch pages, and what aligning them may
    /// cost.
    #[must_use]
    pub fn arena_size(&self, alignment: usize) -> usize {
        let unit = PAGE_SIZE.max(alignment as u64) as usize;
        let skipped_max = unit - PAGE_SIZE as usize;
        let intakes = self.intakes * self.block_size as usize;
        (self.pool_size as usize + intakes + SCRATCH_PAGES * unit + skipped_max)
            .next_multiple_of(PAGE_SIZE as usize)
    }
}

/// Times that the engine takes, beside the counters under its lock.
#[derive(Debug, Default)]
pub(crate) struct Meter {
    /// Of transfers: from when they were asked for until they were done, the device's queue included.
    pub(crate) reads: Histogram,
    pub(crate) writes: Histogram,
    pub(crate) syncs: Histogram,
    /// Of operations that had to wait for a buffer.
    pub(crate) waits: Histogram,
}

/// Why an engine could not be built.
pub(crate) enum BuildError<E> {
    /// Its memory cannot be had.
    Pool(std::io::Error),
    /// The device cannot be opened.
    Device(E),
}

/// The swap engine. See the module documentation of [`crate::engine`].
pub struct Engine {
    this: Weak<Engine>,
    pub(crate) options: EngineOptions,
    pub(crate) shape: Shape,
    pub(crate) memory: Memory,
    /// Buffers that may be held or lent; the others keep requests moving.
    pub(crate) budget: Arc<Budget>,
    /// Taken by [`Engine::with`] and its like alone.
    pub(super) state: Mutex<State>,
    bounds: Arc<Bounds>,
    device: OnceLock<Arc<dyn Device>>,
    clock: Clock,
    pub(crate) meter: Meter,
    /// `None` ends one thread.
    pub(crate) ops: (Sender<Option<Op>>, Receiver<Option<Op>>),
    pub(crate) jobs: (Sender<Option<Job>>, Receiver<Option<Job>>),
    pub(crate) threads: Mutex<Vec<thread::JoinHandle<()>>>,
    pub(crate) tick: Condvar,
    /// All its threads are gone. Set under the lock.
    pub(crate) ended: AtomicBool,
    /// Milliseconds without an answer after which a transfer counts as stalled; 0 for never.
    pub(crate) stall_ms: AtomicU64,
    /// A lock of the lowest level.
    pub(crate) calls: Mutex<Calls>,
    #[cfg(feature = "lock-times")]
    pub(super) lock_times: super::lock::LockTimes,
}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Engine {
    /// Starts an engine over `arena` (of at least [`EngineOptions::arena_size`] bytes) and `device`.
    ///
    /// # Panics
    /// When the options contradict each other or the arena is too small; the configuration checks both.
    #[must_use]
    pub fn start(
        options: EngineOptions, arena: Arc<Arena>, device: Arc<dyn Device>,
    ) -> Arc<Engine> {
        let alignment = device.geometry().alignment;
        assert!(options.block_size.is_power_of_two() && options.block_size >= 64 * 1024);
        assert!(options.pool_size.is_multiple_of(options.block_size));
        assert!(arena.size() >= options.arena_size(alignment));
        let shape = Shape {
            unit: PAGE_SIZE.max(alignment as u64),
            block_size: options.block_size,
            alignment: alignment as u64,
            min_swap_size: options.min_swap_size,
        };
        let buffers = (options.pool_size / options.block_size) as usize;
        let (memory, intakes) = Memory::new(arena, shape, buffers, options.intakes);
        let engine = Arc::new_cyclic(|this| Engine {
            this: this.clone(),
            options,
            shape,
            memory,
            budget: Budget::new(buffers.saturating_sub(shape.buffers_moving())),
            state: Mutex::new(State::new(shape, buffers, intakes, SCRATCH_PAGES)),
            bounds: Bounds::new(descriptor_limit(), buffers),
            device: OnceLock::new(),
            clock: Clock::start(),
            meter: Meter::default(),
            ops: concurrent::unbounded(),
            jobs: concurrent::unbounded(),
            threads: Mutex::new(Vec::new()),
            tick: Condvar::new(),
            ended: AtomicBool::new(false),
            stall_ms: AtomicU64::new(0),
            calls: Mutex::default(),
            #[cfg(feature = "lock-times")]
            lock_times: super::lock::LockTimes::default(),
        });
        device.connect(engine.clone());
        engine.device.set(device).expect("set once, here");
        engine.start_threads();
        engine
    }

    /// Makes the pool, the device over its memory with `open`, and the engine over both. Takes seconds for a pool of
    /// many GiB. `pin_memory` locks the pool in memory; where that is refused, the log says so.
    ///
    /// # Errors
    /// Those of the memory, and those of `open`.
    pub(crate) fn build<E>(
        options: EngineOptions, alignment: usize, pin_memory: bool,
        open: impl FnOnce(&Arc<Arena>) -> std::result::Result<Arc<dyn Device>, E>,
    ) -> std::result::Result<Arc<Engine>, BuildError<E>> {
        let arena = Arena::new(ArenaOptions {
            size: options.arena_size(alignment).next_multiple_of(HUGE_PAGE_BYTES),
            pin_memory,
            huge_pages: true,
        })
        .map_err(BuildError::Pool)?;
        if let Some(refusal) = arena.lock_refusal() {
            log::warn!("the buffer pool is not locked in memory: {refusal}");
        }
        let device = open(&arena).map_err(BuildError::Device)?;
        log::info!(
            "pool of {} (huge pages: {}, locked: {}), {} transfers, alignment {alignment}",
            format_exact(options.pool_size),
            arena.huge(),
            arena.locked(),
            device.stats().engine,
        );
        Ok(Engine::start(options, arena, device))
    }

    fn start_threads(self: &Arc<Self>) {
        let spawn = |name: String, work: Box<dyn FnOnce(Arc<Engine>) + Send>| {
            let engine = self.clone();
            thread::Builder::new()
                .name(name)
                .spawn(move || {
                    touch_stack();
                    work(engine);
                })
                .expect("threads can be started at start-up")
        };
        let mut threads = self.threads.lock();
        for i in 0..OP_THREADS {
            threads.push(spawn(
                format!("swap-op-{i}"),
                Box::new(|engine| {
                    while let Ok(Some(op)) = engine.ops.1.recv() {
                        engine.resume(op);
                    }
                }),
            ));
        }
        for i in 0..JOB_THREADS {
            threads.push(spawn(
                format!("swap-job-{i}"),
                Box::new(|engine| {
                    while let Ok(Some(job)) = engine.jobs.1.recv() {
                        engine.run_counted(job);
                    }
                }),
            ));
        }
        threads.push(spawn("swap-keeper".into(), Box::new(|engine| engine.keep())));
    }

    /// What each user may have of the engine, and of the mount that it is part of.
    #[must_use]
    pub fn bounds(&self) -> &Arc<Bounds> {
        &self.bounds
    }

    /// The engine, for work that outlives a call.
    pub(super) fn shared(&self) -> Arc<Engine> {
        self.this.upgrade().expect("a method runs on it")
    }

    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        self.device.get().expect("set before anything runs")
    }

    /// A way for the calling thread to wait for small reads itself, see [`Engine::read_inline`].
    #[must_use]
    pub fn inline_reader(&self) -> Option<Box<dyn InlineReader>> {
        self.device().inline_reader()
    }

    /// Hands over to the device what is in `batch`.
    pub fn submit(&self, batch: &mut Vec<Transfer>) {
        if !batch.is_empty() {
            self.device().submit(batch);
        }
    }

    /// Milliseconds since the start.
    pub(crate) fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Queues a parked operation to be tried again. Never runs it here: the caller may be in the
    /// middle of something.
    pub(crate) fn dispatch(&self, op: Op) {
        self.ops.0.send(Some(op)).expect("the engine holds the receiver");
        self.refuse_queued();
    }

    pub(crate) fn queue_job(&self, job: Job) {
        self.jobs.0.send(Some(job)).expect("the engine holds the receiver");
        self.refuse_queued();
    }

    /// Goes on with an operation that was parked.
    fn resume(&self, op: Op) {
        match op {
            Op::Read(op) => self.run_read(op, None),
            Op::Write(op) => {
                self.run_write(op, &[]);
            }
            Op::Fetch(op) => self.with(|locked| locked.fetch_step(op)),
            Op::Barrier(op) => self.with(|locked| locked.enter_queued(op)),
            Op::Hold(op) => self.with(|locked| locked.hold_step(op)),
            Op::Direct(op) => self.with(|locked| locked.direct_step(op)),
            Op::Lend(op) => self.with(|locked| locked.lend_step(op)),
        }
    }
}

impl CompletionSink for Engine {
    fn complete(&self, done: &mut Vec<Completion>) {
        // Looked up without the lock: a filesystem may have to be waited for. Nothing is allocated when no write failed.
        let mut lengths = done
            .iter()
            .filter(|completion| is_failed_write(completion))
            .map(|failed| failed.transfer.file.status().ok().map(|status| status.size))
            .collect::<Vec<_>>()
            .into_iter();
        let ((), mut actions) = self.collect(None, |locked| {
            for completion in done.drain(..) {
                let is_failed = is_failed_write(&completion);
                let length = if is_failed { lengths.next().flatten() } else { None };
                locked.completed(completion, length);
            }
        });
        let ready = std::mem::take(&mut actions.ready);
        self.perform(actions);
        for op in ready {
            match op {
                // Small ones go on here: handing them over would cost more than they do.
                Op::Read(op) if op.length <= INLINE_BYTES_MAX => self.run_read(op, None),
                op => self.dispatch(op),
            }
        }
    }
}

/// Returns true for a write that failed. Its first bytes may have landed, and have made the file longer.
fn is_failed_write(completion: &Completion) -> bool {
    matches!(completion.transfer.action, Action::Write(_)) && completion.result.is_err()
}
