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

#[test]
fn broken_ring_answers_eio_and_keeps_what_is_in_flight() {
    let (device, arena, sink) = device();
    let (reader, mut writer) = std::io::pipe().unwrap();
    let pipe: Arc<dyn BackingFile> = Arc::new(DiskFile::new(OwnedFd::from(reader)).unwrap());
    // SAFETY: the last page, which no other lease of this test touches.
    let lease = unsafe { arena.write_lease(15 * 4096, 4096) };
    let stuck = Transfer { token: 99, action: Action::Read(lease), file: pipe, offset: 0 };
    device.submit(&mut vec![stuck]);
    // Once a later transfer is done, the kernel has the read.
    let file = file();
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.wait(1)[0].result, Ok(4096));
    let holders = Arc::strong_count(&arena);
    device.lanes[0].broken.store(true, Relaxed);

    device.submit(&mut (0..12).map(|index| write(&arena, &file, index)).collect());
    let done = sink.wait(12);
    assert!(done.iter().all(|done| done.result == Err(Errno::EIO)), "{done:?}");
    drop(done);
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.wait(1)[0].result, Err(Errno::EIO));
    assert_eq!(device.stats().failed, 13);

    device.shutdown();
    device.submit(&mut vec![write(&arena, &file, 0)]);
    assert_eq!(sink.wait(1)[0].result, Err(Errno::ENODEV));
    // The ring gave up its own reference, the lost lease keeps the memory mapped.
    assert_eq!(Arc::strong_count(&arena), holders - 1);
    writer.write_all(&[1; 100]).unwrap();
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
