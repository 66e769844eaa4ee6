//! What only the inside can bring about: a full file table, a broken ring.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Condvar;

use super::*;
use crate::aio::device::{Action, BackingFile, Wait};
use crate::aio::file::DiskFile;
use crate::pool::ArenaOptions;

#[derive(Default)]
struct Collector {
    done: Mutex<Vec<Completion>>,
    arrived: Condvar,
}

impl CompletionSink for Collector {
    fn complete(&self, done: &mut Vec<Completion>) {
        self.done.lock().append(done);
        self.arrived.notify_all();
    }
}

impl Collector {
    fn wait(&self, count: usize) -> Vec<Completion> {
        let end = Instant::now() + Duration::from_secs(60);
        let mut done = self.done.lock();
        while done.len() < count {
            assert!(!self.arrived.wait_until(&mut done, end).timed_out(), "{} done", done.len());
        }
        std::mem::take(&mut *done)
    }
}

fn device() -> (Arc<UringDevice>, Arc<Arena>, Arc<Collector>) {
    let options = ArenaOptions { size: 64 << 10, pin_memory: false, huge_pages: false };
    let arena = Arena::new(options).unwrap();
    let geometry = Geometry { alignment: 512, direct: false };
    let device =
        UringDevice::new(&AioSettings::default(), Some(Arc::clone(&arena)), geometry, &[]).unwrap();
    let sink = Arc::new(Collector::default());
    device.connect(Arc::clone(&sink) as Arc<dyn CompletionSink>);
    (device, arena, sink)
}

fn file() -> Arc<dyn BackingFile> {
    Arc::new(
        DiskFile::new(tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap().into()).unwrap(),
    )
}

fn write(arena: &Arc<Arena>, file: &Arc<dyn BackingFile>, index: usize) -> Transfer {
    // SAFETY: each test uses every page of the arena once at a time.
    let mut lease = unsafe { arena.write_lease(index * 4096, 4096) };
    lease.fill(index as u8 + 1);
    let action = Action::Write(lease.downgrade());
    Transfer { token: index as u64, action, file: Arc::clone(file), offset: 0 }
}

#[test]
fn files_beyond_the_table_are_replaced() {
    let (device, arena, sink) = device();
    let files: Vec<_> = (0..12).map(|_| file()).collect();
    for round in 0..3 {
        let mut batch: Vec<_> =
            files.iter().enumerate().map(|(index, file)| write(&arena, file, index)).collect();
        if round == 1 {
            batch.reverse();
        }
        device.submit(&mut batch);
        assert!(sink.wait(12).iter().all(|done| done.result == Ok(4096)));
    }
    for (index, file) in files.iter().enumerate() {
        let file = file.as_any().downcast_ref::<DiskFile>().unwrap();
        let mut bytes = [0; 4096];
        assert_eq!(rustix::io::pread(file, &mut bytes, 0), Ok(4096));
        assert_eq!(bytes, [index as u8 + 1; 4096]);
    }
    drop(files);
    // Dropped files leave their places to new ones.
    for index in 0..8 {
        device.submit(&mut vec![write(&arena, &file(), index)]);
        assert_eq!(sink.wait(1)[0].result, Ok(4096));
    }
}

/// A pipe that is empty, as a file, and its other end.
fn pipe() -> (Arc<dyn BackingFile>, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Arc::new(DiskFile::new(OwnedFd::from(reader)).unwrap()), writer)
}

fn read(arena: &Arc<Arena>, file: &Arc<dyn BackingFile>, index: usize) -> Transfer {
    // SAFETY: each test uses every page of the arena once at a time.
    let mut lease = unsafe { arena.write_lease(index * 4096, 4096) };
    lease.fill(77);
    Transfer { token: 99, action: Action::Read(lease), file: Arc::clone(file), offset: 0 }
}

fn reading(arena: &Arc<Arena>, file: &Arc<dyn BackingFile>, index: usize) -> Transfer {
    // SAFETY: as in `write`.
    let lease = unsafe { arena.write_lease(index * 4096, 4096) };
    Transfer { token: index as u64, action: Action::Read(lease), file: file.clone(), offset: 0 }
}

#[test]
fn who_reads_promptly_takes_the_completions() {
    let (device, arena, sink) = device();
    let file = file();
    device.submit(&mut vec![write(&arena, &file, 3)]);
    sink.wait(1);
    let mut reader = device.inline_reader().unwrap();
    let wait = Wait::For(Duration::from_secs(60));
    for count in [1, 2, 12] {
        let mut batch: Vec<_> = (0..count).map(|at| reading(&arena, &file, at)).collect();
        reader.advance(&mut batch, Wait::No);
        assert!(batch.is_empty());
        while reader.under_way() > 0 {
            reader.advance(&mut batch, wait);
        }
        let mut done = std::mem::take(&mut *sink.done.lock());
        done.sort_by_key(|done| done.transfer.token);
        assert_eq!(done.len(), count);
        for (at, Completion { transfer, result }) in done.iter().enumerate() {
            let Action::Read(lease) = &transfer.action else { panic!("{transfer:?}") };
            assert_eq!((transfer.token, *result), (at as u64, Ok(4096)));
            assert!(lease.iter().all(|byte| *byte == 4));
        }
    }
    let stats = device.stats();
    assert_eq!((stats.reads, stats.batch_max), (15, 12));
    let mut batch = vec![write(&arena, &file, 6), reading(&arena, &file, 7)];
    reader.advance(&mut batch, wait);
    assert!(matches!(batch[..], [Transfer { token: 6, .. }]), "only reads are waited for");
    device.shutdown();
    let mut batch = vec![reading(&arena, &file, 5)];
    reader.advance(&mut batch, wait);
    assert_eq!(batch.len(), 1, "nothing begins after the end");
}

#[test]
fn one_submission_per_call_holds_for_inline_reads() {
    let (_, arena, _) = device();
    let geometry = Geometry { alignment: 512, direct: false };
    let settings = AioSettings { single_submit: true, ..AioSettings::default() };
    let device = UringDevice::new(&settings, None, geometry, &[]).unwrap();
    let sink = Arc::new(Collector::default());
    device.connect(sink.clone());
    let (file, mut reader) = (file(), device.inline_reader().unwrap());
    let mut batch: Vec<_> = (0..5).map(|at| reading(&arena, &file, at)).collect();
    while reader.under_way() + batch.len() > 0 {
        reader.advance(&mut batch, Wait::Ever);
    }
    assert_eq!(sink.wait(5).len(), 5);
    let stats = device.stats();
    assert_eq!((stats.submit_calls, stats.submitted, stats.batch_max), (5, 5, 1));
}

#[test]
fn more_than_a_ring_holds_is_left_to_others() {
    let options = ArenaOptions { size: 256 << 10, pin_memory: false, huge_pages: false };
    let arena = Arena::new(options).unwrap();
    let (device, _, sink) = device();
    let ((pipe, mut writer), mut reader) = (pipe(), device.inline_reader().unwrap());
    let mut batch: Vec<_> = (0..40).map(|at| reading(&arena, &pipe, at)).collect();
    reader.advance(&mut batch, Wait::No);
    assert_eq!((reader.under_way(), batch.len(), batch[0].token), (32, 8, 32));
    device.submit(&mut batch);
    std::thread::scope(|scope| {
        // The pipe holds less than all.
        scope.spawn(|| (1..=40).for_each(|round| writer.write_all(&[round; 4096]).unwrap()));
        while reader.under_way() > 0 {
            reader.advance(&mut batch, Wait::Ever);
        }
    });
    assert!(sink.wait(40).iter().all(|done| done.result == Ok(4096)));
}

#[test]
fn a_slow_device_does_not_hold_up_who_waits() {
    let (device, arena, sink) = device();
    let ((slow, mut writer), file) = (pipe(), file());
    device.submit(&mut vec![write(&arena, &file, 3)]);
    sink.wait(1);
    let mut reader = device.inline_reader().unwrap();
    let mut batch = vec![reading(&arena, &slow, 1)];
    reader.advance(&mut batch, Wait::For(Duration::from_millis(2)));
    assert!(sink.done.lock().is_empty() && reader.under_way() == 1);
    let mut other = vec![reading(&arena, &file, 3)];
    device.inline_reader().unwrap().advance(&mut other, Wait::Ever);
    assert_eq!(other.len(), 1, "one thread waits at a time");
    let mut batch = vec![reading(&arena, &file, 2)];
    while reader.under_way() + batch.len() > 1 {
        reader.advance(&mut batch, Wait::For(Duration::from_secs(60)));
    }
    assert_eq!(sink.wait(1)[0].transfer.token, 2, "the slow one holds nobody up");
    writer.write_all(&[7; 4096]).unwrap();
    drop(reader);
    let done = std::mem::take(&mut *sink.done.lock());
    assert_eq!((done[0].result, done[0].transfer.token), (Ok(4096), 1), "dropped, it waits");
    device.shutdown();
}

#[test]
fn the_end_waits_for_inline_reads() {
    let (device, arena, sink) = device();
    let (slow, mut writer) = pipe();
    let mut reader = device.inline_reader().unwrap();
    reader.advance(&mut vec![reading(&arena, &slow, 1)], Wait::No);
    std::thread::scope(|scope| {
        let end = scope.spawn(|| device.shutdown());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!end.is_finished());
        writer.write_all(&[7; 4096]).unwrap();
        while reader.under_way() > 0 {
            reader.advance(&mut Vec::new(), Wait::For(Duration::from_secs(60)));
        }
        end.join().unwrap();
    });
    assert_eq!(sink.wait(1)[0].result, Ok(4096));
}

#[test]
fn broken_ring_answers_eio_and_takes_its_memory_out_of_reach() {
    let (device, arena, sink) = device();
    assert!(device.stats().registered_buffers, "needs RLIMIT_MEMLOCK");
    let options = ArenaOptions { size: 4096, pin_memory: false, huge_pages: false };
    let foreign = Arena::new(options).unwrap();
    let ((registered, _writer), (unregistered, mut writer)) = (pipe(), pipe());
    device.submit(&mut vec![read(&arena, &registered, 15), read(&foreign, &unregistered, 0)]);
    // Once a later transfer is done, the kernel has the reads.
    let file = file();
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.wait(1)[0].result, Ok(4096));
    let holders = (Arc::strong_count(&arena), Arc::strong_count(&foreign));
    device.lanes[0].silent.store(true, Relaxed);
    device.lanes[0].broken.store(true, Relaxed);

    device.submit(&mut (0..12).map(|index| write(&arena, &file, index)).collect());
    let done = sink.wait(12);
    assert!(done.iter().all(|done| done.result == Err(Errno::EIO) && done.transfer.token != 99));
    drop(done);
    assert!(!arena.is_replaced());
    // The one whose memory is the kernel's by registration is answered; nothing of its page is left.
    let abandoned = sink.wait(1).remove(0);
    assert_eq!((abandoned.transfer.token, abandoned.result), (99, Err(Errno::EIO)));
    let Action::Read(lease) = abandoned.transfer.action else { panic!("a read came in") };
    assert!(arena.is_replaced() && lease.is_of(&arena) && lease.iter().all(|byte| *byte == 0));
    drop((lease, abandoned.transfer.file));
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.wait(1)[0].result, Err(Errno::EIO));
    assert_eq!(device.stats().failed, 14);

    device.shutdown();
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.wait(1)[0].result, Err(Errno::ENODEV));
    // The ring gave up its own reference, as did what rings of other threads share, and the answered read its lease.
    assert_eq!(Arc::strong_count(&arena), holders.0 - 3);
    // The other lease is lost: it keeps the memory mapped.
    assert_eq!(Arc::strong_count(&foreign), holders.1);
    writer.write_all(&[1; 100]).unwrap();
}

/// What fails is submitting; what is under way ends as it would have.
#[test]
fn broken_ring_waits_for_what_is_in_flight() {
    let (device, arena, sink) = device();
    let (pipe, mut writer) = pipe();
    let file = file();
    device.submit(&mut vec![read(&arena, &pipe, 15), write(&arena, &file, 0)]);
    assert_eq!(sink.wait(1)[0].result, Ok(4096));
    device.lanes[0].broken.store(true, Relaxed);
    device.submit(&mut vec![write(&arena, &file, 1)]);
    assert_eq!(sink.wait(1)[0].result, Err(Errno::EIO));
    writer.write_all(&[5; 4096]).unwrap();
    let done = sink.wait(1).remove(0);
    assert_eq!((done.transfer.token, done.result), (99, Ok(4096)));
    let Action::Read(lease) = done.transfer.action else { panic!("a read came in") };
    assert!(!arena.is_replaced() && lease.iter().all(|byte| *byte == 5));
    device.shutdown();
}

#[test]
fn panicking_sink_does_not_hang_submitters() {
    struct Panics(Collector, std::sync::atomic::AtomicBool);
    impl CompletionSink for Panics {
        fn complete(&self, done: &mut Vec<Completion>) {
            assert!(self.1.swap(true, Relaxed), "a test's panic");
            self.0.complete(done);
        }
    }
    let options = ArenaOptions { size: 64 << 10, pin_memory: false, huge_pages: false };
    let arena = Arena::new(options).unwrap();
    let geometry = Geometry { alignment: 512, direct: false };
    let device = UringDevice::new(&AioSettings::default(), None, geometry, &[]).unwrap();
    let sink = Arc::new(Panics(Collector::default(), false.into()));
    device.connect(sink.clone());
    let file = file();
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.0.wait(1)[0].result, Ok(4096));
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.0.wait(1)[0].result, Err(Errno::EIO));
}

/// A lock that is kept goes with the last transfer, however its owner ends.
#[test]
fn what_is_kept_stays_open_until_the_rings_end() {
    use rustix::fs::{FlockOperation, flock};
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lock");
    let open = || std::fs::File::options().create(true).append(true).open(&path).unwrap();
    let try_lock = |file: &std::fs::File| flock(file, FlockOperation::NonBlockingLockExclusive);
    let lock = open();
    try_lock(&lock).unwrap();
    let geometry = Geometry { alignment: 512, direct: false };
    let settings = AioSettings { thread_count: 2, ..AioSettings::default() };
    let device = UringDevice::new(&settings, None, geometry, &[lock.as_fd()]).unwrap();
    device.connect(Arc::new(Collector::default()));
    drop(lock);
    let other = open();
    assert_eq!(try_lock(&other), Err(rustix::io::Errno::WOULDBLOCK));
    device.shutdown();
    drop(device);
    let end = Instant::now() + Duration::from_secs(10);
    while try_lock(&other).is_err() {
        assert!(Instant::now() < end, "it is kept");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The end of a file goes out in two steps, and is one transfer.
#[test]
fn a_tail_counts_once() {
    let options = ArenaOptions { size: 64 << 10, pin_memory: false, huge_pages: false };
    let arena = Arena::new(options).unwrap();
    let geometry = Geometry { alignment: 512, direct: true };
    let device =
        UringDevice::new(&AioSettings::default(), Some(Arc::clone(&arena)), geometry, &[]).unwrap();
    let sink = Arc::new(Collector::default());
    device.connect(sink.clone());
    let file = file();
    // SAFETY: nobody else uses the arena.
    let mut lease = unsafe { arena.write_lease(0, 100) };
    lease.fill(3);
    let action = Action::Write(lease.downgrade());
    device.submit(&mut vec![Transfer { token: 1, action, file, offset: 512 }]);
    assert_eq!(sink.wait(1)[0].result, Ok(100));
    let stats = device.stats();
    assert_eq!((stats.submitted, stats.completed), (1, 1));
}
