//! What only the inside can bring about: a full file table, a broken ring.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use parking_lot::Condvar;

use super::*;
use crate::aio::device::{Action, BackingFile};
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
        UringDevice::new(&AioSettings::default(), Some(Arc::clone(&arena)), geometry).unwrap();
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
fn a_read_that_is_waited_for_is_there_when_the_call_returns() {
    let (device, arena, sink) = device();
    let file = file();
    device.submit(&mut vec![write(&arena, &file, 3)]);
    sink.wait(1);
    for _ in 0..100 {
        device.read_now(reading(&arena, &file, 5)).unwrap();
        let done = std::mem::take(&mut *sink.done.lock());
        let [Completion { transfer, result: Ok(4096) }] = &done[..] else { panic!("{done:?}") };
        let Action::Read(lease) = &transfer.action else { panic!("{transfer:?}") };
        assert!(lease.iter().all(|byte| *byte == 4) && transfer.token == 5);
    }
    assert_eq!(device.stats().reads, 100);
    let refused = device.read_now(write(&arena, &file, 6)).unwrap_err();
    assert_eq!(refused.token, 6, "only reads are waited for");
    drop(refused);
    device.shutdown();
    assert!(device.read_now(reading(&arena, &file, 5)).is_err());
}

#[test]
fn a_slow_device_does_not_hold_up_who_waits() {
    let (device, arena, sink) = device();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let pipe: Arc<dyn BackingFile> = Arc::new(DiskFile::new(OwnedFd::from(reader)).unwrap());
    device.read_now(reading(&arena, &pipe, 1)).unwrap();
    assert!(sink.done.lock().is_empty());
    let refused = device.read_now(reading(&arena, &pipe, 2)).unwrap_err();
    assert_eq!(refused.token, 2, "one is waited for at a time");
    writer.write_all(&[7; 4096]).unwrap();
    let done = sink.wait(1);
    assert_eq!((done[0].result, done[0].transfer.token), (Ok(4096), 1));
    assert!(device.read_now(refused).is_err(), "a slow device is given a rest");
    device.shutdown();
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
    // The ring gave up its own reference, and the answered read its lease.
    assert_eq!(Arc::strong_count(&arena), holders.0 - 2);
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
    let device = UringDevice::new(&AioSettings::default(), None, geometry).unwrap();
    let sink = Arc::new(Panics(Collector::default(), false.into()));
    device.connect(sink.clone());
    let file = file();
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.0.wait(1)[0].result, Ok(4096));
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.0.wait(1)[0].result, Err(Errno::EIO));
}
