//! The machine's end in the middle of it all: of what was not synchronized any sector may be old or new, what
//! was is whole. And devices that tell nobody what they do wrong.

use std::fs::File;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;
use swapfs::engine::HandleId;

use swapfs::aio::AioSettings;
use swapfs::aio::device::{BackingFile, Geometry};
use swapfs::aio::fault::{FaultDevice, FaultPlan};
use swapfs::aio::memory::{MemoryFile, MemoryFolder, MemoryOptions};
use swapfs::aio::threads::ThreadDevice;
use swapfs::aio::whole::Whole;
use swapfs::engine::{EngineOptions, FileKey, OpenSwapIn, Request};
use swapfs::error::{Errno, Result};
use swapfs::ledger::{Checked, Checksum, Ledger};

use super::history::{Change, Contents, History};
use super::rig::{BLOCK, Kind, Pending, Rng, SeedGuard, World};

/// Calls of one case.
const CALLS: u64 = 40;
const LENGTH_MAX: u64 = 600_000;
const SECTOR: u64 = 512;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// One file, its history, and the only handle on it.
struct Subject {
    file: Arc<MemoryFile>,
    key: FileKey,
    history: History,
    handle: HandleId,
}

fn world(kind: Kind, seed: u64, rng: &mut Rng, plan: FaultPlan) -> Arc<World> {
    let options = options(rng);
    let delay_max = Duration::from_micros(rng.pick(&[0, 50, 500]));
    let memory = MemoryOptions { seed, delay_max, alignment: rng.pick(&[512, 4096]) };
    World::new(kind, options, memory, MemoryFolder::unbounded(), Some(plan))
}

fn options(rng: &mut Rng) -> EngineOptions {
    EngineOptions {
        pool_size: rng.between(4, 8) * BLOCK,
        block_size: BLOCK,
        read_ahead: rng.pick(&[0, BLOCK]),
        open_swap_in: rng.pick(&[OpenSwapIn::None, OpenSwapIn::Ahead]),
        linger: Duration::from_millis(rng.below(10)),
        writeback_batch: rng.between(1, 4) as usize,
        min_swap_size: rng.pick(&[0, 20_000, BLOCK, 1 << 20]),
        idle_partitions_max: 4,
        intakes: 2,
    }
}

fn subject(world: &World, number: u64, file: Arc<MemoryFile>) -> Subject {
    let key = FileKey { dev: 2, ino: number, generation: 0 };
    let opened: Arc<dyn BackingFile> = file.clone();
    let handle = world.engine.open(key, true, true, || Ok(opened)).expect("nothing is lost yet");
    Subject { file, key, history: History::default(), handle }
}

/// What a power cut leaves.
pub(crate) fn cut(kind: Kind, seed: u64) {
    let _guard = SeedGuard { kind, seed };
    let mut rng = Rng::new(seed);
    let chances = [0.0, 0.02, 0.2];
    let mut plan = FaultPlan {
        short_write: rng.pick(&[0.0, 0.3]),
        short_read: rng.pick(&[0.0, 0.3]),
        late: rng.pick(&[0.0, 0.3]),
        late_max: Duration::from_micros(500),
        ..FaultPlan::default()
    };
    if kind == Kind::Faulty {
        plan.write_error = rng.pick(&chances);
        plan.sync_error = rng.pick(&chances);
    }
    let first = world(kind, seed, &mut rng, plan);
    let mut subjects: Vec<Subject> = (0..rng.between(1, 3))
        .map(|number| {
            let file = Arc::new(MemoryFile::new(&first.folder));
            file.keep_stable();
            subject(&first, number, file)
        })
        .collect();
    for _ in 0..rng.between(1, CALLS) {
        let at = rng.below(subjects.len() as u64) as usize;
        // What fails leaves open what was done: the cut comes at once.
        if step(&first, &mut rng, &mut subjects[at]).is_err() {
            break;
        }
    }
    // Whatever is under way now is cut in two.
    let left: Vec<Arc<MemoryFile>> =
        subjects.iter().map(|subject| Arc::new(subject.file.after_power_cut(rng.next()))).collect();
    end(&first, &subjects);
    let second = world(kind, seed, &mut rng, FaultPlan::default());
    for (number, (subject, file)) in subjects.iter().zip(left).enumerate() {
        check(&second, number as u64, &subject.history, file);
    }
    second.end();
}

fn end(world: &World, subjects: &[Subject]) {
    world.fault.as_ref().expect("with faults").set_enabled(false);
    for subject in subjects {
        // The first may tell what failed before; the second has nothing left to fail.
        let _ = sync(world, subject.handle, false);
        assert_eq!(sync(world, subject.handle, false), Ok(()));
        world.engine.release(subject.handle);
    }
    world.end();
}

fn write(world: &World, handle: HandleId, offset: u64, data: &[u8], stable: bool) -> Result<()> {
    let (pending, reply) = Pending::new();
    world.engine.write(handle, offset, data, stable, Box::new(reply));
    match pending.wait(world, "write")? {
        count if count == data.len() => Ok(()),
        _ => Err(Errno::EIO),
    }
}

fn sync(world: &World, handle: HandleId, data_only: bool) -> Result<()> {
    let (pending, reply) = Pending::new();
    world.engine.sync(handle, data_only, Box::new(reply));
    pending.wait(world, "sync")
}

fn read(world: &World, handle: HandleId, offset: u64, length: u64) -> Result<Vec<u8>> {
    let (pending, reply) = Pending::new();
    let reply = move |result: Result<&[&[u8]]>| reply(result.map(<[&[u8]]>::concat));
    world.engine.read(handle, offset, length, Box::new(reply));
    pending.wait(world, "read")
}

/// One call and what it makes certain.
fn step(world: &World, rng: &mut Rng, subject: &mut Subject) -> Result<()> {
    let size = subject.history.length();
    match rng.below(100) {
        0..55 => {
            let length = 1 + rng.pick(&[100, 5000, 70_000, BLOCK]).min(1 + rng.below(100_000));
            let offset = rng.below(size.min(LENGTH_MAX - length) + 1);
            let offset = if rng.percent(50) { offset / 4096 * 4096 } else { offset };
            let (data, stable) = (rng.bytes(length), rng.percent(10));
            subject.history.begin(Change::Write(offset, data.clone()));
            write(world, subject.handle, offset, &data, stable)?;
            if stable && is_sound(world, subject) {
                subject.history.synchronized_range(offset..offset + length);
            }
        }
        55..62 => {
            let length = rng.below(LENGTH_MAX);
            subject.history.begin(Change::Resize(length));
            let (pending, reply) = Pending::new();
            world.engine.truncate(subject.handle, length, Box::new(reply));
            pending.wait(world, "truncate")?;
        }
        62..68 => {
            let (start, length) = (rng.below(size + 1), 1 + rng.below(100_000));
            subject.history.begin(Change::Punch(start..start + length));
            let (pending, reply) = Pending::new();
            world.engine.allocate(subject.handle, PUNCH, start, length, Box::new(reply));
            pending.wait(world, "punch")?;
        }
        68..80 => {
            let from = rng.below(size + 1);
            let length = rng.below(50_000).min(size - from);
            let found = read(world, subject.handle, from, length)?;
            let expected = &subject.history.now()[from as usize..(from + length) as usize];
            assert!(found == expected, "wrong bytes at {from} before the cut");
        }
        _ => {
            if sync(world, subject.handle, rng.percent(50)).is_ok() && is_sound(world, subject) {
                subject.history.synchronized();
            }
        }
    }
    Ok(())
}

/// Whether nothing of it has failed and was not mended: an error is told once to each handle.
fn is_sound(world: &World, subject: &Subject) -> bool {
    world.engine.info(subject.key).expect("it is open").error.is_none()
}

/// What is found afterwards may be.
fn check(world: &World, number: u64, history: &History, file: Arc<MemoryFile>) {
    let opened = subject(world, number, file);
    let length = world.engine.overlay(opened.key).expect("it is open").size;
    let mut bytes = Vec::new();
    while (bytes.len() as u64) < length {
        let (at, left) = (bytes.len() as u64, length - bytes.len() as u64);
        bytes.extend(read(world, opened.handle, at, left.min(BLOCK)).expect("a sound device"));
    }
    assert_eq!(bytes.len() as u64, length);
    let parts = bytes.chunks(SECTOR as usize).map(|part| Some(part.to_vec())).collect();
    let found = history.check(&Contents { length, parts }, SECTOR, 4095);
    assert!(found.is_ok(), "file {number}: {found:?}");
    world.engine.release(opened.handle);
}

/// Bytes that are not what was written come back as an error, never as data: a device that flips bits and goes
/// astray, over real files with checksums.
pub(crate) fn corrupt(kind: Kind, seed: u64) -> u64 {
    let _guard = SeedGuard { kind, seed };
    let mut rng = Rng::new(seed);
    let chances = [0.0, 0.05, 0.3];
    let plan = FaultPlan {
        corrupt_read: rng.pick(&chances),
        corrupt_write: rng.pick(&chances),
        misdirected_read: rng.pick(&chances),
        misdirected_write: rng.pick(&chances),
        short_read: rng.pick(&chances),
        short_write: rng.pick(&chances),
        ..FaultPlan::default()
    };
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a scratch folder");
    let control = folder.path().join(".swapfs");
    std::fs::create_dir(&control).expect("a folder");
    let (place, control) = (File::open(folder.path()), File::open(control));
    let (place, control) = (place.expect("made above"), control.expect("made above"));
    let kept = Checksum::Crc32c;
    let ledger = Ledger::open(place.as_fd(), control.as_fd(), kept, BLOCK, true);
    let ledger = ledger.expect("it can be made").expect("it may be written");
    let geometry = Geometry { alignment: rng.pick(&[512, 4096]), direct: false };
    let threads = ThreadDevice::new(&AioSettings::default(), geometry).expect("threads");
    let fault = FaultDevice::new(threads, seed, plan).expect("threads");
    let device = Arc::new(Checked::new(Whole::new(fault.clone()), ledger.clone()));
    let memory = MemoryFolder::unbounded();
    let world = World::around(kind, options(&mut rng), device, memory, Some(fault));
    let key = FileKey { dev: 2, ino: 1, generation: 0 };
    let open = || {
        let path = folder.path().join("file");
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
        ledger.file(key, file.expect("a file").into())
    };
    let handle = world.engine.open(key, true, true, open).expect("it is new");
    let mut bytes: Vec<u8> = Vec::new();
    let mut refused = 0;
    for _ in 0..CALLS {
        let size = bytes.len() as u64;
        if rng.percent(40) || size == 0 {
            let length = 1 + rng.below(100_000);
            let (offset, data) = (rng.below(size + 1), rng.bytes(length));
            if write(&world, handle, offset, &data, false).is_err() {
                // What of it was taken in, nobody knows.
                refused += 1;
                break;
            }
            let end = (offset + length) as usize;
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset as usize..end].copy_from_slice(&data);
        } else {
            let from = rng.below(size);
            let length = 1 + rng.below(50_000).min(size - from - 1);
            match read(&world, handle, from, length) {
                Ok(found) => {
                    let expected = &bytes[from as usize..(from + length) as usize];
                    let wrong = found.iter().zip(expected).position(|(found, byte)| found != byte);
                    assert!(
                        wrong.is_none(),
                        "wrong bytes at {from}, of {length}: from {wrong:?} on, size {size}, {:?}",
                        world.fault
                    );
                }
                Err(_) => refused += 1,
            }
        }
        // Out of the pool, so that it is read from the device.
        let _ = sync(&world, handle, true);
        world.engine.request_all(Request::Release);
    }
    mend(&world, handle, &bytes);
    world.engine.release(handle);
    world.end();
    refused
}

/// What was damaged can be used again once it is written.
fn mend(world: &World, handle: HandleId, bytes: &[u8]) {
    world.fault.as_ref().expect("with faults").set_enabled(false);
    for (at, part) in bytes.chunks(BLOCK as usize).enumerate() {
        write(world, handle, at as u64 * BLOCK, part, false).expect("a sound device");
    }
    let _ = sync(world, handle, false);
    assert_eq!(sync(world, handle, false), Ok(()));
    world.engine.request_all(Request::Release);
    for (at, part) in bytes.chunks(BLOCK as usize).enumerate() {
        let found = read(world, handle, at as u64 * BLOCK, part.len() as u64);
        assert!(found.expect("all of it is whole") == part, "wrong bytes in block {at}");
    }
}
