//! The engine under schedules that are chosen, not met: shuttle runs one thread at a time and decides at every
//! lock, wait and message who goes on. After each step the engine checks its counters against its sets.
//!
//! A failure prints the schedule, which `shuttle::replay` repeats. `SWAPFS_ROUNDS=n` schedules of each kind
//! are tried, from `SWAPFS_SEED`, which is printed.

use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use swapfs::engine::HandleId;

use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::sync::mpsc;
use shuttle::thread;
use swapfs::aio::device::{
    BackingFile, Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer,
};
use swapfs::aio::memory::{MemoryDevice, MemoryFile, MemoryFolder, MemoryOptions};
use swapfs::engine::{Engine, EngineOptions, FileKey, OpenSwapIn, Request};
use swapfs::error::Errno;
use swapfs::pool::{Arena, ArenaOptions};

const BLOCK: u64 = 64 << 10;
const PAGE: u64 = 4096;

/// Lets go of the engine at the end, which would otherwise keep itself alive through its device; and fails
/// writes when it is told to.
#[derive(Debug)]
struct Tap {
    inner: Arc<MemoryDevice>,
    sink: Arc<Sink>,
}

#[derive(Default)]
struct Sink {
    engine: Mutex<Option<Arc<dyn CompletionSink>>>,
    /// Writes that fail from now on.
    failing: Mutex<u32>,
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} to fail", self.failing.lock())
    }
}

impl CompletionSink for Sink {
    fn complete(&self, done: &mut Vec<Completion>) {
        for completion in done.iter_mut() {
            let is_write =
                matches!(completion.transfer.action, swapfs::aio::device::Action::Write(_));
            let mut failing = self.failing.lock().unwrap();
            if is_write && *failing > 0 {
                *failing -= 1;
                completion.result = Err(Errno::EIO);
            }
        }
        let engine = self.engine.lock().unwrap().clone();
        engine.expect("connected").complete(done);
    }
}

impl Device for Tap {
    fn geometry(&self) -> Geometry {
        self.inner.geometry()
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        *self.sink.engine.lock().unwrap() = Some(sink);
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

/// An engine of few buffers over memory.
struct World {
    engine: Arc<Engine>,
    sink: Arc<Sink>,
    folder: MemoryFolder,
    files: Vec<Arc<MemoryFile>>,
}

impl World {
    fn new(buffers: u64, min_swap_size: u64) -> World {
        let options = EngineOptions {
            pool_size: buffers * BLOCK,
            block_size: BLOCK,
            read_ahead: BLOCK,
            open_swap_in: OpenSwapIn::Ahead,
            linger: Duration::from_millis(30),
            writeback_batch: 2,
            min_swap_size,
            idle_partitions_max: 1,
            intakes: 1,
        };
        let size = options.arena_size(PAGE as usize);
        let arena =
            Arena::new(ArenaOptions { size, pin_memory: false, huge_pages: false }).unwrap();
        let inner = MemoryDevice::new(MemoryOptions::default()).unwrap();
        let sink = Arc::new(Sink::default());
        let engine = Engine::start(options, arena, Arc::new(Tap { inner, sink: sink.clone() }));
        World { engine, sink, folder: MemoryFolder::unbounded(), files: Vec::new() }
    }

    /// One more file, of the given bytes.
    fn file(&mut self, bytes: &[u8]) -> usize {
        let file = Arc::new(MemoryFile::new(&self.folder));
        file.set_len(bytes.len() as u64).unwrap();
        if !bytes.is_empty() {
            file.write_at(0, bytes).unwrap();
        }
        self.files.push(file);
        self.files.len() - 1
    }

    fn client(&self, file: usize) -> Client {
        let backing: Arc<dyn BackingFile> = self.files[file].clone();
        let handle = self.engine.open(key(file), true, true, || Ok(backing)).unwrap();
        Client { engine: self.engine.clone(), handle }
    }

    /// Ends the engine; everything is in the files then, and nothing is left in the pool.
    fn end(self) -> Vec<Vec<u8>> {
        let (sender, receiver) = mpsc::channel();
        self.engine.sync_all(Box::new(move |failed| sender.send(failed).unwrap()));
        assert_eq!(receiver.recv().unwrap(), Vec::<String>::new());
        assert_eq!(self.engine.partitions().handles, 0);
        self.engine.request_all(Request::Release);
        while self.engine.pool().available < self.engine.pool().buffers || self.engine.inflight() {
            thread::yield_now();
        }
        self.engine.stop();
        *self.sink.engine.lock().unwrap() = None;
        self.files.iter().map(|file| file.bytes()).collect()
    }
}

fn key(file: usize) -> FileKey {
    FileKey { dev: 1, ino: 100 + file as u64, generation: 0 }
}

/// A handle, with calls that wait for their answer.
struct Client {
    engine: Arc<Engine>,
    handle: HandleId,
}

type Wait<T> = mpsc::Receiver<Result<T, Errno>>;

impl Client {
    fn ask(&self, call: impl FnOnce(&Engine, HandleId, swapfs::engine::Reply)) -> Wait<()> {
        let (sender, receiver) = mpsc::channel();
        call(&self.engine, self.handle, Box::new(move |answer| sender.send(answer).unwrap()));
        receiver
    }

    fn write(&self, offset: u64, bytes: &[u8], stable: bool) -> Result<usize, Errno> {
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |answer| sender.send(answer).unwrap());
        self.engine.write(self.handle, offset, bytes, stable, reply);
        // The answer goes with a job that nobody is left to do, when the engine has ended.
        receiver.recv().unwrap_or(Err(Errno::ENODEV))
    }

    fn read(&self, offset: u64, length: u64) -> Result<Vec<u8>, Errno> {
        let (sender, receiver) = mpsc::channel();
        let reply = Box::new(move |answer: Result<&[&[u8]], Errno>| {
            sender.send(answer.map(|runs| runs.concat())).unwrap();
        });
        self.engine.read(self.handle, offset, length, reply);
        receiver.recv().unwrap_or(Err(Errno::ENODEV))
    }

    fn sync(&self) -> Result<(), Errno> {
        self.ask(|engine, handle, reply| engine.sync(handle, false, reply))
            .recv()
            .unwrap_or(Err(Errno::ENODEV))
    }

    fn cut(&self, size: u64) -> Result<(), Errno> {
        self.ask(|engine, handle, reply| engine.truncate(handle, size, reply))
            .recv()
            .unwrap_or(Err(Errno::ENODEV))
    }

    fn close(self) -> Result<(), Errno> {
        self.ask(|engine, handle, reply| engine.close(handle, false, reply))
            .recv()
            .unwrap_or(Err(Errno::ENODEV))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.engine.release(self.handle);
    }
}

fn number(name: &str) -> Option<u64> {
    Some(std::env::var(name).ok()?.parse().expect("a number"))
}

/// Under random schedules, and under ones that hold one thread back for long (PCT).
fn check(default: u64, case: fn()) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    let seed = number("SWAPFS_SEED").unwrap_or(now);
    let rounds = number("SWAPFS_ROUNDS").unwrap_or(default) as usize;
    eprintln!("SWAPFS_SEED={seed}, twice {rounds} schedules");
    let mut config = shuttle::Config::new();
    config.stack_size = 1 << 20;
    let random = RandomScheduler::new_from_seed(seed, rounds);
    shuttle::Runner::new(random, config.clone()).run(case);
    shuttle::Runner::new(PctScheduler::new_from_seed(seed, 3, rounds), config).run(case);
}

fn bytes(letter: u8, length: u64) -> Vec<u8> {
    vec![letter; length as usize]
}

/// Two writers and a reader of one file that the pool cannot hold, and whose ranges meet within pages.
fn sharing() {
    let mut world = World::new(3, 0);
    let file = world.file(&bytes(b'.', 5 * BLOCK));
    let (first, second, reader) = (world.client(file), world.client(file), world.client(file));
    let meeting = 2 * BLOCK + 1234;
    let writer = |client: Client, letter, from: u64, to: u64| {
        thread::spawn(move || {
            let mut at = from;
            while at < to {
                let length = (to - at).min(BLOCK - 777);
                assert_eq!(client.write(at, &bytes(letter, length), false), Ok(length as usize));
                at += length;
            }
            client.close().unwrap();
        })
    };
    let threads = [
        writer(first, b'1', 100, meeting),
        writer(second, b'2', meeting, 5 * BLOCK - 100),
        thread::spawn(move || {
            for at in [0, meeting - 50, 4 * BLOCK] {
                let found = reader.read(at, 3000).unwrap();
                assert_eq!(found.len(), 3000);
                for (offset, byte) in (at..).zip(found) {
                    let mine = if offset < meeting { b'1' } else { b'2' };
                    assert!(byte == b'.' || byte == mine, "{byte} at {offset}");
                }
            }
        }),
    ];
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let mut expected = bytes(b'1', meeting);
    expected.extend(bytes(b'2', 5 * BLOCK - meeting));
    expected[..100].fill(b'.');
    expected[(5 * BLOCK - 100) as usize..].fill(b'.');
    assert_eq!(world.end()[0], expected);
}

/// Truncation, fsync and requests while others write and read.
fn changing() {
    let mut world = World::new(3, 0);
    let file = world.file(&bytes(b'.', 3 * BLOCK));
    let clients: Vec<Client> = (0..4).map(|_| world.client(file)).collect();
    let engine = world.engine.clone();
    let [writer, cutter, syncer, reader] = clients.try_into().unwrap_or_else(|_| unreachable!());
    let threads = [
        thread::spawn(move || {
            for at in [0, BLOCK + 10, 2 * BLOCK - 5000] {
                assert_eq!(writer.write(at, &bytes(b'w', 20_000), at == 0), Ok(20_000));
            }
        }),
        thread::spawn(move || {
            cutter.cut(BLOCK + 3).unwrap();
            cutter.cut(3 * BLOCK).unwrap();
        }),
        thread::spawn(move || {
            syncer.sync().unwrap();
            engine.request(key(file), Request::Release);
            engine.swap_in(syncer.handle).unwrap();
            syncer.sync().unwrap();
        }),
        thread::spawn(move || {
            for at in [2 * BLOCK - 6000, 0] {
                let found = reader.read(at, 8000).unwrap();
                assert!(found.iter().all(|byte| [b'.', b'w', 0].contains(byte)));
            }
        }),
    ];
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let left = world.end();
    assert_eq!(left[0].len() as u64, 3 * BLOCK);
    assert!(left[0].iter().all(|byte| [b'.', b'w', 0].contains(byte)));
}

/// Small partitions that go to rest, wake up, grow and lose their names, in fewer buffers than there are of them.
fn resting() {
    let mut world = World::new(3, 40_000);
    let files: Vec<usize> = (0..4_u8)
        .map(|number| world.file(&bytes(b'a' + number, 5000 * u64::from(number) + 9)))
        .collect();
    let world = Arc::new(world);
    let visit = |mine: [usize; 3]| {
        let world = world.clone();
        thread::spawn(move || {
            for file in mine {
                let client = world.client(file);
                let letter = b'a' + file as u8;
                let found = client.read(0, 70_000).unwrap();
                assert!(found.iter().all(|byte| *byte == letter), "{file}");
                if file == mine[1] {
                    let end = found.len() as u64;
                    client.write(end, &bytes(letter, 3000), false).unwrap();
                }
            }
        })
    };
    let threads = [visit([0, 1, 2]), visit([2, 3, 0]), visit([1, 0, 3])];
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // Nobody has it open: what the pool has of it goes, and whoever comes later starts anew.
    world.engine.unlinked(key(files[3]), false);
    let world = Arc::try_unwrap(world).unwrap_or_else(|_| panic!("all threads have ended"));
    for (file, left) in world.end().into_iter().enumerate().take(3) {
        assert!(left.iter().all(|byte| *byte == b'a' + file as u8), "{file}");
        assert!(left.len() >= 5000 * file + 9, "{file}");
    }
}

/// Writes that fail once: who synchronizes is told, tries again, and nothing is lost.
fn failing() {
    let mut world = World::new(3, 0);
    let file = world.file(b"");
    *world.sink.failing.lock().unwrap() = 1;
    let (writer, syncer) = (world.client(file), world.client(file));
    let threads = [
        thread::spawn(move || {
            for at in 0..3 {
                assert_eq!(
                    writer.write(at * BLOCK, &bytes(b'w', BLOCK), false),
                    Ok(BLOCK as usize)
                );
            }
            let told = writer.sync();
            assert!(told.is_ok() || told == Err(Errno::EIO), "{told:?}");
        }),
        thread::spawn(move || {
            let told = syncer.sync();
            assert!(told.is_ok() || told == Err(Errno::EIO), "{told:?}");
        }),
    ];
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let last = world.client(file);
    last.sync().unwrap();
    drop(last);
    assert_eq!(world.end()[0], bytes(b'w', 3 * BLOCK));
}

/// An engine that is stopped while others work: everybody gets an answer.
fn stopping() {
    let mut world = World::new(3, 20_000);
    let file = world.file(&bytes(b'.', 4 * BLOCK));
    let (writer, reader) = (world.client(file), world.client(file));
    let threads = [
        thread::spawn(move || {
            for at in 0..4 {
                let told = writer.write(at * BLOCK + 9, &bytes(b'w', BLOCK), false);
                assert!(matches!(told, Ok(_) | Err(Errno::ENODEV | Errno::EIO)), "{told:?}");
            }
            let told = writer.sync();
            assert!(matches!(told, Ok(()) | Err(Errno::ENODEV | Errno::EIO)), "{told:?}");
        }),
        thread::spawn(move || {
            for at in 0..4 {
                let told = reader.read(at * BLOCK, 5000);
                assert!(matches!(told, Ok(_) | Err(Errno::ENODEV | Errno::EIO)), "{told:?}");
            }
        }),
    ];
    world.engine.stop();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    *world.sink.engine.lock().unwrap() = None;
}

#[test]
fn writers_and_a_reader_share_a_file() {
    check(150, sharing);
}

#[test]
fn changes_of_shape_come_between() {
    check(150, changing);
}

#[test]
fn small_partitions_rest_and_wake_up() {
    check(150, resting);
}

#[test]
fn failed_writes_are_told_and_tried_again() {
    check(150, failing);
}

#[test]
fn a_stopped_engine_answers_everybody() {
    check(150, stopping);
}
