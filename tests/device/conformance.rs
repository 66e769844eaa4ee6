//! What every device does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use swapfs::aio::AioSettings;
use swapfs::aio::device::{Action, BackingFile, Completion, CompletionSink, Device, Transfer};
use swapfs::aio::fault::{FaultDevice, FaultPlan};
use swapfs::aio::memory::{MemoryDevice, MemoryOptions};
use swapfs::aio::threads::ThreadDevice;
use swapfs::aio::uring::UringDevice;
use swapfs::aio::whole::Whole;
use swapfs::error::Errno;

use super::harness::{
    ALIGNMENT, BUFFER, BUFFERS, GEOMETRY, Harness, Sequence, arena, eventually, transfer,
};

/// Instantiates the suite for one device.
macro_rules! suite {
    ($name:ident, $make:expr) => {
        mod $name {
            use super::*;

            #[test]
            fn bytes_read_back_with_many_in_flight() {
                random_transfers(&$make);
            }

            #[test]
            fn reads_at_the_end_are_short() {
                short_reads(&$make);
            }

            #[test]
            fn write_to_a_read_only_file_is_ebadf() {
                read_only(&$make);
            }

            #[test]
            fn sync_completes() {
                sync(&$make);
            }

            #[test]
            fn shutdown_drains_and_later_submissions_are_enodev() {
                shutdown(&$make);
            }

            #[test]
            fn transfers_may_be_submitted_from_a_completion() {
                chained($make);
            }

            #[test]
            fn many_threads_submit_at_once() {
                concurrent(&$make);
            }
        }
    };
}

fn settings() -> AioSettings {
    AioSettings { queue_depth: 8, thread_count: 2, stripe: BUFFER as u64, ..Default::default() }
}

suite!(memory, Harness::memory(MemoryOptions::default()));
suite!(
    memory_slow,
    Harness::memory(MemoryOptions {
        seed: 7,
        delay_max: Duration::from_millis(1),
        ..Default::default()
    })
);
suite!(threads, Harness::threads(&settings()));
suite!(uring, Harness::uring(&settings()));
suite!(uring_single, Harness::uring(&AioSettings { single_submit: true, ..settings() }));
suite!(uring_batches, Harness::uring(&AioSettings { overlap_events: false, ..settings() }));
suite!(
    uring_least,
    Harness::uring(&AioSettings {
        queue_depth: 1,
        thread_count: 1,
        single_submit: true,
        overlap_events: false,
        ..settings()
    })
);
suite!(fault_free, {
    let inner = MemoryDevice::new(MemoryOptions::default()).unwrap();
    let plan = FaultPlan { late: 0.5, late_max: Duration::from_millis(1), ..FaultPlan::default() };
    Harness::over_memory(FaultDevice::new(inner, 3, plan).unwrap())
});

/// Every transfer of more than one page is short, and so are most rests.
fn short() -> FaultPlan {
    let late_max = Duration::from_micros(100);
    FaultPlan { short_read: 1.0, short_write: 1.0, late: 0.1, late_max, ..FaultPlan::default() }
}

fn in_parts(inner: Arc<dyn Device>, harness: impl Fn(Arc<dyn Device>) -> Harness) -> Harness {
    let device = Whole::new(FaultDevice::new(inner, 5, short()).unwrap());
    let mut harness = harness(device);
    harness.in_parts = true;
    harness
}

suite!(whole_memory, {
    in_parts(MemoryDevice::new(MemoryOptions::default()).unwrap(), Harness::over_memory)
});
suite!(whole_threads, {
    let inner = ThreadDevice::new(&settings(), GEOMETRY).unwrap();
    in_parts(inner, |device| Harness::new(device, arena()))
});
suite!(whole_uring, {
    let arena = arena();
    let inner = UringDevice::new(&settings(), Some(arena.clone()), GEOMETRY, &[]).unwrap();
    in_parts(inner, |device| Harness::new(device, arena.clone()))
});

/// The byte that position `at` of the test file holds.
fn pattern(at: u64) -> u8 {
    (at / 512).wrapping_mul(31).wrapping_add(at) as u8
}

fn random_transfers(harness: &Harness) {
    let file = harness.file();
    let mut sequence = Sequence(42);
    for round in 0..4 {
        // The buffers in random order, as one file area each, in batches of random size.
        let mut lengths = [0; BUFFERS];
        let mut batch = Vec::new();
        for (index, length) in lengths.iter_mut().enumerate() {
            *length = (1 + sequence.below(BUFFER / ALIGNMENT)) * ALIGNMENT;
            let offset = ((round * BUFFERS + index) * BUFFER) as u64;
            let mut lease = harness.buffer(index, *length);
            for (at, byte) in lease.iter_mut().enumerate() {
                *byte = pattern(offset + at as u64);
            }
            let action = Action::Write(lease.downgrade());
            batch.push(transfer(index as u64, &file, offset, action));
            if sequence.below(7) == 0 {
                harness.device.submit(&mut batch);
                assert!(batch.is_empty());
            }
        }
        harness.device.submit(&mut batch);
        for done in harness.sink.wait(BUFFERS) {
            let index = done.transfer.token as usize;
            assert_eq!(done.result, Ok(lengths[index]));
        }
        for index in (0..BUFFERS).rev() {
            let offset = ((round * BUFFERS + index) * BUFFER) as u64;
            let mut lease = harness.buffer(index, lengths[index]);
            lease.fill(0xEE);
            batch.push(transfer(index as u64, &file, offset, Action::Read(lease)));
        }
        harness.device.submit(&mut batch);
        for done in harness.sink.wait(BUFFERS) {
            let (offset, length) = (done.transfer.offset, lengths[done.transfer.token as usize]);
            assert_eq!(done.result, Ok(length));
            let Action::Read(lease) = done.transfer.action else { panic!("a read came in") };
            let wrong = (0..length).find(|at| lease[*at] != pattern(offset + *at as u64));
            assert_eq!(wrong, None, "at {offset} in round {round}");
        }
    }
    let stats = harness.device.stats();
    assert_eq!(stats.read_bytes, stats.written_bytes);
    assert_eq!((stats.completed, stats.failed), (stats.reads + stats.writes, 0));
    let moves = 4 * BUFFERS as u64;
    if harness.in_parts {
        assert!(stats.reads > moves && stats.writes > moves, "{stats:?}");
    } else {
        assert_eq!((stats.reads, stats.writes), (moves, moves));
    }
    assert!(stats.submitted >= stats.completed);
}

fn short_reads(harness: &Harness) {
    let file = harness.file();
    let done = harness.perform(&file, 0, Action::Write(harness.filled(0, 8192, 5)));
    assert_eq!(done.result, Ok(8192));
    drop(done);
    file.set_len(5000).unwrap();
    assert_eq!(file.status().unwrap().size, 5000);
    for (offset, expected) in [(0, 5000), (4096, 904), (8192, 0)] {
        let done = harness.perform(&file, offset, Action::Read(harness.buffer(0, 8192)));
        assert_eq!(done.result, Ok(expected), "at {offset}");
    }
}

fn read_only(harness: &Harness) {
    let (_, file) = harness.files();
    assert!(!file.writable());
    let done = harness.perform(&file, 0, Action::Write(harness.filled(0, 4096, 5)));
    assert_eq!(done.result, Err(Errno::EBADF));
    assert_eq!(done.transfer.token, 0);
    assert_eq!(file.status().unwrap().size, 0);
}

fn sync(harness: &Harness) {
    let file = harness.file();
    drop(harness.perform(&file, 0, Action::Write(harness.filled(0, 4096, 5))));
    assert_eq!(harness.perform(&file, 0, Action::Sync { data_only: true }).result, Ok(0));
    assert_eq!(harness.device.stats().syncs, 1);
}

fn shutdown(harness: &Harness) {
    let file = harness.file();
    harness.device.submit(&mut harness.writes(&file, BUFFERS));
    harness.device.shutdown();
    let done = harness.sink.wait(0);
    assert_eq!(done.len(), BUFFERS, "shutdown waits for everything queued");
    // What is left of a transfer then comes too late.
    let may = |result| result == Ok(BUFFER) || harness.in_parts && result == Err(Errno::ENODEV);
    assert!(done.iter().all(|done| may(done.result)));
    drop(done);
    harness.device.shutdown();
    let done = harness.perform(&file, 0, Action::Read(harness.buffer(0, 4096)));
    assert_eq!(done.result, Err(Errno::ENODEV));
    assert_eq!(
        harness.perform(&file, 0, Action::Sync { data_only: true }).result,
        Err(Errno::ENODEV)
    );
}

/// Submits the rest of a chain each time a transfer completes.
struct Chain {
    device: Arc<dyn Device>,
    left: Mutex<u64>,
    spare: Mutex<Vec<Transfer>>,
}

impl CompletionSink for Chain {
    fn complete(&self, done: &mut Vec<Completion>) {
        for Completion { transfer, result } in done.drain(..) {
            assert_eq!(result, Ok(4096));
            let Transfer { token, action, file, offset } = transfer;
            let mut left = self.left.lock().unwrap();
            if *left > 0 {
                *left -= 1;
                let next = Transfer { token, action, file, offset: offset + 4096 };
                self.device.submit(&mut vec![next]);
            } else {
                self.spare.lock().unwrap().push(Transfer { token, action, file, offset });
            }
        }
    }
}

fn chained(harness: Harness) {
    let file = harness.file();
    let chain = Arc::new(Chain {
        device: Arc::clone(&harness.device),
        left: Mutex::new(200),
        spare: Mutex::new(Vec::new()),
    });
    harness.sink.redirect(chain.clone());
    let writes = (0..4).map(|index| {
        let lease = harness.filled(index, 4096, index as u8);
        transfer(index as u64, &file, (index as u64) << 30, Action::Write(lease))
    });
    harness.device.submit(&mut writes.collect());
    eventually("the chain ends", || chain.spare.lock().unwrap().len() == 4);
    harness.device.shutdown();
    assert_eq!(harness.device.stats().writes, 204);
}

fn concurrent(harness: &Harness) {
    let file = harness.file();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let file: &Arc<dyn BackingFile> = &file;
            scope.spawn(move || {
                for step in 0..16 {
                    let index = thread * 16 + step;
                    let lease = harness.filled(index, 4096, index as u8);
                    let offset = (index * BUFFER) as u64;
                    let action = Action::Write(lease);
                    harness.device.submit(&mut vec![transfer(index as u64, file, offset, action)]);
                }
            });
        }
    });
    let done = harness.sink.wait(64);
    assert!(done.iter().all(|done| done.result == Ok(4096)));
    let mut tokens: Vec<u64> = done.iter().map(|done| done.transfer.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..64).collect::<Vec<_>>());
}
