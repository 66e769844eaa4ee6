//! The engine under test with its devices, and how to wait for it.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use swapfs::engine::HandleId;

use parking_lot::{Condvar, Mutex};
use swapfs::aio::device::{
    Action, BackingFile, Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer,
};
use swapfs::aio::fault::{FaultDevice, FaultPlan};
use swapfs::aio::memory::{MemoryDevice, MemoryFile, MemoryFolder, MemoryOptions};
use swapfs::aio::whole::Whole;
use swapfs::engine::{
    Engine, EngineOptions, FileKey, Intake, Manner, OpenSwapIn, Request, WriteReply,
};
use swapfs::pool::{Arena, ArenaOptions};

pub(crate) const BLOCK: u64 = 64 * 1024;

/// A reply that takes longer never comes.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a case is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing fails.
    Sound,
    /// Transfers are short or late, which no client may notice.
    Awkward,
    /// Transfers fail.
    Faulty,
    /// The swap folder has little space.
    Full,
}

/// Which seeds to run.
pub(crate) struct Rounds {
    pub(crate) first: u64,
    pub(crate) count: u64,
}

impl Rounds {
    pub(crate) fn get(default: u64) -> Rounds {
        let number = |name: &str| -> Option<u64> {
            let text = std::env::var(name).ok()?;
            Some(text.parse().expect("a number"))
        };
        let seed = number("SWAPFS_SEED");
        let count = number("SWAPFS_ROUNDS").unwrap_or(if seed.is_some() { 1 } else { default });
        Rounds { first: seed.unwrap_or(1), count }
    }
}

/// Names the case when it fails.
pub(crate) struct SeedGuard {
    pub(crate) kind: Kind,
    pub(crate) seed: u64,
}

impl Drop for SeedGuard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed: {:?}, SWAPFS_SEED={}", self.kind, self.seed);
        }
    }
}

/// SplitMix64.
pub(crate) struct Rng(u64);

impl Rng {
    pub(crate) fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x1234_5678)
    }

    pub(crate) fn fork(&mut self) -> Rng {
        Rng(self.next())
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Below `bound`; 0 when that is 0.
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    pub(crate) fn between(&mut self, low: u64, high: u64) -> u64 {
        low + self.below(high - low + 1)
    }

    pub(crate) fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub(crate) fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// Bytes that are nowhere zero.
    pub(crate) fn bytes(&mut self, length: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length as usize + 8);
        while bytes.len() < length as usize {
            bytes.extend_from_slice(&(self.next() | 0x0101_0101_0101_0101).to_le_bytes());
        }
        bytes.truncate(length as usize);
        bytes
    }
}

/// A reply that may not have come yet.
pub(crate) struct Pending<T>(Arc<(Mutex<Option<T>>, Condvar)>);

impl<T: Send + 'static> Pending<T> {
    pub(crate) fn new() -> (Pending<T>, impl FnOnce(T) + Send + 'static) {
        let cell = Arc::new((Mutex::new(None), Condvar::new()));
        let other = cell.clone();
        let put = move |value| {
            let before = other.0.lock().replace(value);
            assert!(before.is_none(), "one reply");
            other.1.notify_all();
        };
        (Pending(cell), put)
    }

    pub(crate) fn ready(&self) -> bool {
        self.0.0.lock().is_some()
    }

    pub(crate) fn wait(&self, world: &World, what: &str) -> T {
        let end = Instant::now() + PATIENCE;
        let mut value = self.0.0.lock();
        while value.is_none() && !self.0.1.wait_until(&mut value, end).timed_out() {}
        match value.take() {
            Some(value) => value,
            None => panic!("no reply to {what}\n{}", world.dump()),
        }
    }
}

/// Transfers of a file that have failed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Failures {
    pub(crate) all: u64,
    /// Of these, of what was to be stored: a read may only have been one ahead, which nobody is told of.
    pub(crate) stores: u64,
}

/// Passes everything on, counts failures by file, and lets go of the engine at the end, which would
/// otherwise keep itself alive through its device.
#[derive(Debug)]
struct Tap {
    inner: Arc<dyn Device>,
    sink: Arc<TapSink>,
}

#[derive(Default)]
struct TapSink {
    engine: Mutex<Option<Arc<dyn CompletionSink>>>,
    failures: Mutex<HashMap<u64, Failures>>,
}

impl std::fmt::Debug for TapSink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "failures {:?}", self.failures.lock())
    }
}

impl CompletionSink for TapSink {
    fn complete(&self, done: &mut Vec<Completion>) {
        for completion in done.iter().filter(|done| done.result.is_err()) {
            let mut failures = self.failures.lock();
            let of_file = failures.entry(completion.transfer.file.id()).or_default();
            of_file.all += 1;
            let is_read = matches!(completion.transfer.action, Action::Read(_));
            of_file.stores += u64::from(!is_read);
        }
        let engine = self.engine.lock().clone();
        engine.expect("connected").complete(done);
    }
}

impl Device for Tap {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        *self.sink.engine.lock() = Some(sink);
        self.inner.connect(self.sink.clone());
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        self.inner.submit(batch);
    }

    fn stats(&self) -> DeviceStats {
        self.inner.stats()
    }

    fn shutdown(&self) {
        self.inner.shutdown();
    }
}

/// One backing file, its identity and the descriptors the engine may get.
pub(crate) struct TestFile {
    pub(crate) key: FileKey,
    pub(crate) file: Arc<MemoryFile>,
    read_only: Arc<MemoryFile>,
    pub(crate) unlinked: AtomicBool,
}

static NEXT_INO: AtomicU64 = AtomicU64::new(1);

impl TestFile {
    pub(crate) fn new(world: &World) -> TestFile {
        let file = Arc::new(MemoryFile::new(&world.folder));
        TestFile {
            key: FileKey { dev: 1, ino: NEXT_INO.fetch_add(1, Relaxed), generation: 0 },
            read_only: Arc::new(file.reopen(false)),
            file,
            unlinked: AtomicBool::new(false),
        }
    }

    /// Gives it contents behind the engine's back, before that knows it.
    pub(crate) fn fill(&self, bytes: &[u8]) {
        self.file.set_len(bytes.len() as u64).expect("writable");
        if bytes.iter().any(|byte| *byte != 0) {
            self.file.write_at(0, bytes).expect("there is space");
        }
    }

    pub(crate) fn open(
        &self, world: &World, read: bool, write: bool,
    ) -> swapfs::error::Result<swapfs::engine::HandleId> {
        let file = if write { &self.file } else { &self.read_only };
        let file: Arc<dyn BackingFile> = file.clone();
        world.engine.open(self.key, read, write, || Ok(file))
    }
}

/// Puts bytes into an intake as a transport does, from a place on.
pub(crate) fn receive(intake: &mut Intake, start: usize, data: &[u8]) {
    intake.begin_at(start);
    let [first, second] = intake.parts();
    let border = data.len().min(first.len());
    first[..border].copy_from_slice(&data[..border]);
    second[..data.len() - border].copy_from_slice(&data[border..]);
}

/// The engine and what is around it.
pub(crate) struct World {
    pub(crate) kind: Kind,
    pub(crate) engine: Arc<Engine>,
    pub(crate) options: EngineOptions,
    pub(crate) alignment: usize,
    pub(crate) folder: MemoryFolder,
    pub(crate) fault: Option<Arc<FaultDevice>>,
    tap: Arc<TapSink>,
}

impl World {
    /// Writes; with `lent`, from an intake if one can be had and it is long enough, received from that place on.
    pub(crate) fn write(
        &self, lent: Option<u64>, handle: HandleId, offset: u64, data: &[u8], stable: bool,
        reply: WriteReply,
    ) {
        let lent = lent.filter(|_| data.len() <= BLOCK as usize);
        let Some((mut intake, start)) = lent.and_then(|start| Some((self.engine.intake()?, start)))
        else {
            return self.engine.write(handle, offset, data, stable, reply);
        };
        receive(&mut intake, start as usize, data);
        let mut next = self.engine.write_from(
            handle,
            offset,
            intake,
            data.len(),
            Manner { stable, caller: None },
            reply,
        );
        // Nothing of what was written may be in there any more.
        next.fill(0xEE);
        self.engine.return_intake(next);
    }

    pub(crate) fn random(kind: Kind, seed: u64, rng: &mut Rng) -> Arc<World> {
        let blocks = rng.between(4, 16);
        let options = EngineOptions {
            pool_size: blocks * BLOCK,
            block_size: BLOCK,
            read_ahead: rng.pick(&[0, BLOCK, 2 * BLOCK, 8 * BLOCK]),
            open_swap_in: rng.pick(&[OpenSwapIn::None, OpenSwapIn::Ahead, OpenSwapIn::All]),
            linger: Duration::from_millis(rng.below(51)),
            writeback_batch: rng.between(1, 8) as usize,
            min_swap_size: rng.pick(&[0, 4096, 20_000, BLOCK, 300_000, 1 << 20]),
            idle_partitions_max: rng.between(0, 3) as usize,
            intakes: rng.between(1, 3) as usize,
        };
        let alignment = if kind == Kind::Full {
            rng.pick(&[512, 4096])
        } else {
            rng.pick(&[512, 4096, 4096, 8192])
        };
        let delay = if rng.percent(30) { rng.below(2000) } else { 0 };
        let plan = match kind {
            Kind::Sound | Kind::Full => None,
            Kind::Awkward => Some(awkward(rng)),
            Kind::Faulty => Some(faulty(rng)),
        };
        let space = rng.between(100_000, 1_500_000);
        let folder = match kind {
            Kind::Full => MemoryFolder::new(space),
            Kind::Sound | Kind::Awkward | Kind::Faulty => MemoryFolder::unbounded(),
        };
        let memory = MemoryOptions { seed, delay_max: Duration::from_micros(delay), alignment };
        World::new(kind, options, memory, folder, plan)
    }

    pub(crate) fn new(
        kind: Kind, options: EngineOptions, memory: MemoryOptions, folder: MemoryFolder,
        plan: Option<FaultPlan>,
    ) -> Arc<World> {
        let device: Arc<dyn Device> = MemoryDevice::new(memory).expect("threads");
        let fault =
            plan.map(|plan| FaultDevice::new(device.clone(), memory.seed, plan).expect("threads"));
        let inner = match &fault {
            Some(fault) => fault.clone() as Arc<dyn Device>,
            None => device,
        };
        World::around(kind, options, Whole::new(inner), folder, fault)
    }

    /// An engine on this device, which has `fault` somewhere within.
    pub(crate) fn around(
        kind: Kind, options: EngineOptions, inner: Arc<dyn Device>, folder: MemoryFolder,
        fault: Option<Arc<FaultDevice>>,
    ) -> Arc<World> {
        let alignment = inner.geometry().alignment;
        let tap = Arc::new(TapSink::default());
        let sink = tap.clone();
        let arena = Arena::new(ArenaOptions {
            size: options.arena_size(alignment),
            pin_memory: false,
            huge_pages: false,
        })
        .expect("memory");
        let engine = Engine::start(options, arena, Arc::new(Tap { inner, sink }));
        Arc::new(World { kind, engine, options, alignment, folder, fault, tap })
    }

    /// Whether transfers may fail in this case.
    pub(crate) fn fails(&self) -> bool {
        self.kind == Kind::Faulty
    }

    /// Failed transfers of a file so far.
    pub(crate) fn failures(&self, file: &TestFile) -> Failures {
        let failures = self.tap.failures.lock();
        let of = |id: u64| failures.get(&id).copied().unwrap_or_default();
        let (one, other) = (of(file.file.id()), of(file.read_only.id()));
        Failures { all: one.all + other.all, stores: one.stores + other.stores }
    }

    pub(crate) fn dump(&self) -> String {
        format!(
            "{:?}\nalignment {}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}",
            self.options,
            self.alignment,
            self.engine.pool(),
            self.engine.partitions(),
            self.engine.cache_stats(),
            self.fault,
            self.tap,
        )
    }

    /// Waits until `reached` holds.
    pub(crate) fn until(&self, what: &str, mut reached: impl FnMut() -> bool) {
        let end = Instant::now() + PATIENCE;
        while !reached() {
            assert!(Instant::now() < end, "never {what}\n{}", self.dump());
            std::thread::sleep(Duration::from_micros(300));
        }
    }

    /// Checks that nothing is left and ends the engine.
    pub(crate) fn end(&self) {
        let left = || (self.engine.pool(), self.engine.partitions());
        let pool = left().0.buffers;
        self.until("all buffers available, nothing dirty", || {
            let (pool, partitions) = left();
            pool.available == pool.buffers
                && pool.dirty == 0
                && pool.inflight == 0
                && partitions.inflight == 0
                && !self.engine.inflight()
        });
        assert_eq!(left().1.handles, 0);
        self.engine.request_all(Request::Release);
        self.until("released", || left().1.resting == 0 && left().0.available == pool);
        if self.kind != Kind::Faulty {
            assert_eq!(left().1.failed, 0, "{}", self.dump());
            assert_eq!(self.engine.cache_stats().errors, 0);
        }
        self.engine.stop();
        *self.tap.engine.lock() = None;
    }
}

fn awkward(rng: &mut Rng) -> FaultPlan {
    FaultPlan {
        short_read: rng.pick(&[0.0, 0.2, 0.7]),
        short_write: rng.pick(&[0.0, 0.2, 0.7]),
        late: rng.pick(&[0.0, 0.1, 0.5]),
        late_max: Duration::from_micros(rng.between(1, 3000)),
        ..FaultPlan::default()
    }
}

fn faulty(rng: &mut Rng) -> FaultPlan {
    let chances = [0.0, 0.0, 0.02, 0.1, 0.4];
    FaultPlan {
        read_error: rng.pick(&chances),
        write_error: rng.pick(&chances),
        write_no_space: rng.pick(&chances),
        sync_error: rng.pick(&chances),
        ..awkward(rng)
    }
}
