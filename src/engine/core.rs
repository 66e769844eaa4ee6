//! The engine: one lock over [`State`], threads that retry parked operations and run blocking jobs, and
//! the device.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use super::actions::Job;
use super::budget::Budget;
use super::ids::{BlockId, HandleId, PartitionId};
use super::locked::Locked;
use super::memory::Memory;
use super::op::Op;
use super::partition::{ChangeTime, FileKey};
use super::stall::Calls;
use super::state::{Shape, State};
use super::traffic::Meter;
use crate::aio::device::{Completion, CompletionSink, Device, PromptReads, Transfer};
use crate::concurrent::{self, Clock, Condvar, Mutex, Receiver, Sender, thread};
use crate::pool::Arena;
use crate::shares::{Bounds, descriptor_limit};
use crate::sys_process::touch_stack;

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

/// The swap engine. See the module documentation of [`crate::engine`].
pub struct Engine {
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
    pub(super) lock_times: super::locked::LockTimes,
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
        let engine = Arc::new(Engine {
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
            lock_times: super::locked::LockTimes::default(),
        });
        device.connect(engine.clone());
        engine.device.set(device).expect("set once, here");
        engine.start_threads();
        engine
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
                        engine.run_counted(|| job(&engine));
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

    pub(crate) fn device(&self) -> &Arc<dyn Device> {
        self.device.get().expect("set before anything runs")
    }

    /// A way for the calling thread to wait for small reads itself, see [`Engine::read_prompt`].
    #[must_use]
    pub fn prompt(&self) -> Option<Box<dyn PromptReads>> {
        self.device().prompt()
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

    /// Ends a handle. Dirty blocks are queued for writing; what an unlinked partition still has is
    /// dropped with its last handle.
    pub fn release(&self, handle: HandleId) {
        self.with(|locked| {
            let Some(handle) = locked.state.handles.remove(handle) else {
                return;
            };
            let id = handle.partition;
            locked.state.part(id).handles -= 1;
            let share = locked.state.part(id).openers.leave(handle.user());
            if locked.state.part(id).handles == 0 {
                locked.state.idle_clock += 1;
                locked.state.part(id).idle_since = locked.state.idle_clock;
                locked.state.idle.insert(locked.state.idle_clock, id);
                if locked.state.idle.len() > self.options.idle_partitions_max {
                    // Its descriptors stay open beyond what there is for such: they are its last user's until then.
                    locked.state.part(id).lingering.extend(share);
                }
            }
            if locked.state.part(id).gone() {
                locked.discard_unlinked(id);
            } else if !(locked.state.part(id).handles == 0 && locked.state.part(id).unlinked) {
                locked.flush_partition(id);
                locked.settle_if_due(id);
                locked.pack(id);
            }
            locked.state.drop_if_unused(id, locked.actions);
            locked.state.trim(self.options.idle_partitions_max, locked.actions);
        });
    }

    /// Tells the engine that the last name of a file is gone: without handles, its buffers and its
    /// space are given up at once, or if it is still `known` when it is [forgotten](Engine::forgotten).
    pub fn unlinked(&self, key: FileKey, known: bool) {
        self.with(|locked| {
            let Some(id) = locked.state.keys.get(&key).copied() else {
                return locked.state.forget_resting_key(key);
            };
            let part = locked.state.part(id);
            (part.unlinked, part.known) = (true, known);
            locked.drop_if_gone(id);
        });
    }

    /// A file has a name, the first one perhaps.
    pub fn linked(&self, key: FileKey) {
        self.with(|locked| {
            if let Some(id) = locked.state.keys.get(&key).copied() {
                let part = locked.state.part(id);
                (part.unlinked, part.known) = (false, false);
            }
        });
    }

    /// Nobody will open this file any more, if it has no name.
    pub fn forgotten(&self, key: FileKey) {
        self.with(|locked| {
            if let Some(id) = locked.state.keys.get(&key).copied() {
                locked.state.part(id).known = false;
                locked.drop_if_gone(id);
            }
        });
    }

    /// The user set a partition's modification time: neither writing out nor giving space back must
    /// change it. Kept for a clean partition too: a transfer that ended just now, or the end of a
    /// settling under way, may have changed the backing file's after the user's call.
    /// `changed` is the backing file's change time since.
    pub fn set_modified(&self, key: FileKey, time: SystemTime, changed: SystemTime) {
        self.with(|locked| {
            if let Some(id) = locked.state.keys.get(&key).copied() {
                let part = locked.state.part(id);
                part.modified = Some(time);
                part.changed = Some(ChangeTime { shown: changed, settled: None });
                locked.state.note_unsettled(id);
                locked.settle_if_due(id);
            }
        });
    }

    /// The user changed attributes of a partition, which gave its backing file this change time.
    pub fn attributes_changed(&self, key: FileKey, changed: SystemTime) {
        self.with(|locked| {
            if let Some(id) = locked.state.keys.get(&key).copied() {
                locked.state.part(id).attributes_changed(changed);
            }
        });
    }
}

impl Locked<'_> {
    /// What every step may have made possible.
    pub(super) fn after(&mut self) {
        if !self.state.released.is_empty() {
            self.drop_released();
        }
        self.pump();
        if self.engine.ended.load(Ordering::Relaxed) {
            self.refuse_parked();
        }
        self.state.shrink_to_limit(self.actions);
        #[cfg(any(test, feature = "shuttle", feature = "fuzz"))]
        self.state.check();
    }

    fn drop_if_gone(&mut self, id: PartitionId) {
        if self.state.part(id).gone() {
            self.discard_unlinked(id);
        }
        self.state.drop_if_unused(id, self.actions);
    }

    pub(crate) fn discard_unlinked(&mut self, id: PartitionId) {
        let buffers: Vec<_> = self.state.part(id).blocks.values().copied().collect();
        for buffer in buffers {
            self.discard_block(buffer);
        }
    }

    /// Drops one block of an unlinked partition as soon as nobody is busy with it.
    pub(crate) fn discard_block(&mut self, buffer: BlockId) {
        if self.state.blocks[buffer].idle() {
            // One handle's worth of reference keeps the partition while its blocks go.
            self.state.detach(buffer, self.actions);
        }
    }
}

impl CompletionSink for Engine {
    fn complete(&self, done: &mut Vec<Completion>) {
        let ((), mut actions) = self.collect(None, |locked| {
            for completion in done.drain(..) {
                locked.completed(completion);
            }
        });
        let ready = std::mem::take(&mut actions.ready);
        actions.run(self);
        for op in ready {
            match op {
                // Small ones go on here: handing them over would cost more than they do.
                Op::Read(op) if op.length <= INLINE_BYTES_MAX => self.run_read(op, None),
                op => self.dispatch(op),
            }
        }
    }
}
