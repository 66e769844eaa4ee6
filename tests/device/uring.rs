//! What the aio settings do, and what registration costs nobody.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use swapfs::aio::device::{Action, BackingFile};
use swapfs::aio::file::DiskFile;
use swapfs::aio::{AioSettings, Engine, open_device};

use super::harness::{ALIGNMENT, BUFFER, Harness, arena, eventually, transfer};

fn settings() -> AioSettings {
    AioSettings { queue_depth: 8, stripe: BUFFER as u64, ..Default::default() }
}

/// A file whose reads stay in flight until something is written to the other end.
fn stuck() -> (Arc<dyn BackingFile>, std::io::PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    (Arc::new(DiskFile::new(OwnedFd::from(reader)).unwrap()), writer)
}

/// Counters are those of one batch only if the thread sleeps when it is submitted.
fn settle(harness: &Harness, file: &Arc<dyn BackingFile>) {
    drop(harness.perform(file, 0, Action::Sync { data_only: true }));
    std::thread::sleep(std::time::Duration::from_millis(100));
}

#[test]
fn batches_are_submitted_by_one_call_and_waited_for_as_a_whole() {
    let harness = Harness::uring(&AioSettings { overlap_events: false, ..settings() });
    let file = harness.file();
    settle(&harness, &file);
    let before = harness.device.stats();
    harness.device.submit(&mut harness.writes(&file, 32));
    drop(harness.sink.wait(32));
    let after = harness.device.stats();
    assert_eq!(after.submit_calls - before.submit_calls, 4);
    assert_eq!((after.batch_max, after.inflight_max), (8, 8));
}

#[test]
fn single_submit_makes_a_call_for_each_transfer() {
    for overlap_events in [true, false] {
        let harness =
            Harness::uring(&AioSettings { single_submit: true, overlap_events, ..settings() });
        let file = harness.file();
        harness.device.submit(&mut harness.writes(&file, 32));
        drop(harness.sink.wait(32));
        let stats = harness.device.stats();
        assert_eq!((stats.submit_calls, stats.submitted, stats.batch_max), (32, 32, 1));
        assert!(stats.inflight_max <= 8);
    }
}

#[test]
fn overlap_events_keeps_submitting_while_a_transfer_is_in_flight() {
    let harness = Harness::uring(&settings());
    let file = harness.file();
    let (pipe, mut writer) = stuck();
    let read = Action::Read(harness.buffer(63, 4096));
    harness.device.submit(&mut vec![transfer(99, &pipe, 0, read)]);
    harness.device.submit(&mut harness.writes(&file, 32));
    assert!(harness.sink.wait(32).iter().all(|done| done.transfer.token != 99));
    writer.write_all(&[1; 100]).unwrap();
    assert_eq!(harness.sink.wait(1)[0].result, Ok(100));
    assert!(harness.device.stats().inflight_max <= 8);
}

#[test]
fn without_overlap_events_a_batch_ends_before_the_next_begins() {
    let harness = Harness::uring(&AioSettings { overlap_events: false, ..settings() });
    let file = harness.file();
    let (pipe, mut writer) = stuck();
    let read = Action::Read(harness.buffer(63, 4096));
    settle(&harness, &file);
    harness.device.submit(&mut vec![transfer(99, &pipe, 0, read)]);
    eventually("the read is in flight", || harness.device.stats().submitted == 2);
    harness.device.submit(&mut harness.writes(&file, 4));
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert_eq!((harness.sink.count(), harness.device.stats().submitted), (0, 2));
    writer.write_all(&[1; 100]).unwrap();
    drop(harness.sink.wait(5));
    assert_eq!(harness.device.stats().submitted, 6);
}

#[test]
fn no_more_than_the_queue_depth_is_in_flight() {
    for queue_depth in [1, 3, 16] {
        let harness = Harness::uring(&AioSettings { queue_depth, ..settings() });
        let file = harness.file();
        for _ in 0..4 {
            harness.device.submit(&mut harness.writes(&file, 48));
            drop(harness.sink.wait(48));
        }
        let stats = harness.device.stats();
        assert!(stats.inflight_max <= queue_depth.into(), "{stats:?}");
        assert!(stats.batch_max <= queue_depth.into(), "{stats:?}");
        assert_eq!(stats.submitted, 4 * 48);
    }
}

#[test]
fn a_sync_does_not_wait_for_a_full_queue() {
    let harness = Harness::uring(&AioSettings { queue_depth: 1, ..settings() });
    let file = harness.file();
    let (pipe, mut writer) = stuck();
    let read = Action::Read(harness.buffer(63, 4096));
    harness.device.submit(&mut vec![transfer(99, &pipe, 0, read)]);
    eventually("the read is in flight", || harness.device.stats().submitted == 1);
    // A transfer does wait, and wakes nobody.
    harness.device.submit(&mut harness.writes(&file, 1));
    for token in 200..210 {
        let sync = transfer(token, &file, 0, Action::Sync { data_only: true });
        harness.device.submit(&mut vec![sync]);
    }
    let mut synced: Vec<u64> = Vec::new();
    while synced.len() < 10 {
        synced.extend(harness.sink.wait(1).iter().map(|done| done.transfer.token));
    }
    synced.sort_unstable();
    assert_eq!(synced, (200..210).collect::<Vec<u64>>());
    assert_eq!(harness.sink.count(), 0, "the queue is still full");
    writer.write_all(&[1; 100]).unwrap();
    drop(harness.sink.wait(2));
    assert_eq!(harness.device.stats().inflight_max, 1);
}

#[test]
fn reads_overtake_waiting_writes() {
    let harness = Harness::uring(&AioSettings { queue_depth: 1, ..settings() });
    let file = harness.file();
    let (pipe, mut writer) = stuck();
    let read = Action::Read(harness.buffer(63, 4096));
    harness.device.submit(&mut vec![transfer(99, &pipe, 0, read)]);
    eventually("the read is in flight", || harness.device.stats().submitted == 1);
    let mut batch = harness.writes(&file, 4);
    let reads = (10..14).map(|index: usize| {
        transfer(index as u64, &file, 0, Action::Read(harness.buffer(index, ALIGNMENT)))
    });
    batch.extend(reads);
    harness.device.submit(&mut batch);
    writer.write_all(&[1]).unwrap();
    let done = harness.sink.wait(9);
    let order: Vec<u64> = done.iter().map(|done| done.transfer.token).collect();
    assert_eq!(order, [99, 10, 11, 12, 13, 0, 1, 2, 3]);
}

#[test]
fn pool_and_files_are_registered() {
    let harness = Harness::uring(&AioSettings { thread_count: 3, ..settings() });
    let stats = harness.device.stats();
    assert_eq!(stats.engine, "io_uring");
    assert!(stats.registered_files);
    assert!(stats.registered_buffers, "needs CAP_IPC_LOCK or RLIMIT_MEMLOCK of 8 MiB");
}

#[test]
fn memory_of_another_arena_is_transferred_too() {
    let harness = Harness::uring(&settings());
    let file = harness.file();
    let other = arena();
    // SAFETY: the only lease of this arena.
    let mut lease = unsafe { other.write_lease(0, BUFFER) };
    lease.fill(4);
    let done = harness.perform(&file, 0, Action::Write(lease.downgrade()));
    assert_eq!(done.result, Ok(BUFFER));
}

#[test]
fn dropped_unlinked_file_gives_its_space_back_though_registered() {
    const SPACE: u64 = 2 << 30;
    let harness = Harness::uring(&AioSettings { thread_count: 2, ..settings() });
    let free = || {
        let stat = rustix::fs::statvfs(harness.folder.path()).unwrap();
        stat.f_bfree * stat.f_frsize
    };
    // `files` leaves the file without a name.
    let file = harness.file();
    assert_eq!(file.status().unwrap().links, 0);
    file.reserve(0, SPACE).unwrap();
    harness.device.submit(&mut harness.writes(&file, 16));
    drop(harness.sink.wait(16));
    let full = free();
    drop(file);
    // Others use the disk as well, hence the half.
    eventually("the space is free", || free() > full + SPACE / 2);
}

#[test]
fn engines_are_chosen() {
    let arena = arena();
    let open = |engine| {
        let settings = AioSettings { engine, ..settings() };
        open_device(&settings, &arena, ALIGNMENT, true, &[]).unwrap()
    };
    let (device, why) = open(Engine::Threads);
    assert_eq!((device.stats().engine, why), ("threads", None));
    let (device, why) = open(Engine::IoUring);
    assert_eq!((device.stats().engine, why), ("io_uring", None));
    assert_eq!((device.geometry().alignment, device.geometry().direct), (ALIGNMENT, true));
    let wrong = AioSettings { queue_depth: 0, ..settings() };
    assert!(open_device(&wrong, &arena, ALIGNMENT, true, &[]).is_err());
}
