//! Injected faults: each kind happens, is counted, and leaves the transfer whole.

use std::time::Duration;

use swapfs::aio::device::{Action, BackingFile};
use swapfs::aio::fault::{FaultCounts, FaultDevice, FaultPlan};
use swapfs::aio::memory::{MemoryDevice, MemoryFile, MemoryOptions};
use swapfs::error::Errno;

use super::harness::{BUFFER, Harness, transfer};

fn faulty(plan: FaultPlan) -> (std::sync::Arc<FaultDevice>, Harness) {
    let inner = MemoryDevice::new(MemoryOptions::default()).unwrap();
    let device = FaultDevice::new(inner, 11, plan).unwrap();
    (device.clone(), Harness::over_memory(device))
}

#[test]
fn errors_come_back_without_anything_moved() {
    let plan =
        FaultPlan { read_error: 1.0, write_error: 1.0, sync_error: 1.0, ..FaultPlan::default() };
    let (device, harness) = faulty(plan);
    let file = harness.file();
    let write = harness.perform(&file, 0, Action::Write(harness.filled(0, 4096, 1)));
    assert_eq!(write.result, Err(Errno::EIO));
    drop(write);
    let read = harness.perform(&file, 0, Action::Read(harness.buffer(0, 4096)));
    assert_eq!(read.result, Err(Errno::EIO));
    assert_eq!(harness.perform(&file, 0, Action::Sync { data_only: true }).result, Err(Errno::EIO));
    assert_eq!(file.status().unwrap().size, 0);
    let mut counts =
        FaultCounts { read_error: 1, write_error: 1, sync_error: 1, ..FaultCounts::default() };
    assert_eq!(device.counts(), counts);

    device.set_plan(FaultPlan { write_no_space: 1.0, ..FaultPlan::default() });
    drop(read);
    let write = harness.perform(&file, 0, Action::Write(harness.filled(0, 4096, 1)));
    assert_eq!(write.result, Err(Errno::ENOSPC));
    counts.write_no_space = 1;
    assert_eq!(device.counts(), counts);
    drop(write);

    device.set_enabled(false);
    let write = harness.perform(&file, 0, Action::Write(harness.filled(0, 4096, 1)));
    assert_eq!(write.result, Ok(4096));
}

#[test]
fn short_transfers_move_an_aligned_prefix() {
    let (device, harness) =
        faulty(FaultPlan { short_read: 1.0, short_write: 1.0, ..FaultPlan::default() });
    let file = harness.file();
    for round in 0..50 {
        let offset = round * BUFFER as u64;
        let write = harness.perform(&file, offset, Action::Write(harness.filled(0, BUFFER, 9)));
        let written = write.result.unwrap();
        assert!(written > 0 && written < BUFFER && written.is_multiple_of(4096));
        let Action::Write(lease) = &write.transfer.action else { panic!("a write came in") };
        assert_eq!((lease.offset(), lease.len()), (0, BUFFER));
        assert_eq!(file.status().unwrap().size, offset + written as u64);
        drop(write);

        file.set_len(offset + BUFFER as u64).unwrap();
        let mut lease = harness.buffer(0, BUFFER);
        lease.fill(3);
        let read = harness.perform(&file, offset, Action::Read(lease));
        let count = read.result.unwrap();
        assert!(count > 0 && count < BUFFER && count.is_multiple_of(4096));
        let Action::Read(lease) = read.transfer.action else { panic!("a read came in") };
        assert_eq!(lease.len(), BUFFER);
        let expected = |at| match at {
            _ if at >= count => 3,
            _ if at < written => 9,
            _ => 0,
        };
        assert!((0..BUFFER).all(|at| lease[at] == expected(at)));
    }
    assert_eq!((device.counts().short_read, device.counts().short_write), (50, 50));
    // Too short to be cut.
    let write = harness.perform(&file, 0, Action::Write(harness.filled(0, 4096, 9)));
    assert_eq!(write.result, Ok(4096));
}

#[test]
fn late_completions_all_arrive_and_shutdown_waits_for_them() {
    let plan = FaultPlan { late: 1.0, late_max: Duration::from_millis(20), ..FaultPlan::default() };
    let (device, harness) = faulty(plan);
    let file = harness.file();
    harness.device.submit(&mut harness.writes(&file, 32));
    assert!(harness.sink.wait(32).iter().all(|done| done.result == Ok(BUFFER)));
    assert_eq!(device.counts().late, 32);
    device.set_plan(FaultPlan { late: 1.0, late_max: Duration::from_secs(60), ..plan });
    harness.device.submit(&mut harness.writes(&file, 8));
    harness.device.shutdown();
    assert_eq!(harness.sink.count(), 8);
}

#[test]
fn same_seed_same_faults() {
    let plan = FaultPlan {
        read_error: 0.2,
        write_error: 0.3,
        write_no_space: 0.2,
        short_read: 0.3,
        ..FaultPlan::default()
    };
    let run = || {
        let (_, harness) = faulty(plan);
        let file = harness.file();
        let outcome = |index: u64| {
            let action = match index % 2 {
                0 => Action::Write(harness.filled(0, BUFFER, 1)),
                _ => Action::Read(harness.buffer(0, BUFFER)),
            };
            harness.device.submit(&mut vec![transfer(index, &file, 0, action)]);
            harness.sink.wait(1).pop().unwrap().result
        };
        (0..100).map(outcome).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

fn memory(file: &std::sync::Arc<dyn BackingFile>) -> &MemoryFile {
    file.as_any().downcast_ref().expect("files of a memory device")
}

#[test]
fn wrong_bits_are_told_by_nobody() {
    let (device, harness) = faulty(FaultPlan { corrupt_write: 1.0, ..FaultPlan::default() });
    let file = harness.file();
    let write = harness.perform(&file, 0, Action::Write(harness.filled(0, BUFFER, 9)));
    assert_eq!(write.result, Ok(BUFFER));
    drop(write);
    let mut found = vec![0; BUFFER];
    assert_eq!(memory(&file).read_at(0, &mut found), Ok(BUFFER));
    assert_eq!(found.iter().map(|byte| (*byte ^ 9_u8).count_ones()).sum::<u32>(), 1);

    device.set_plan(FaultPlan { corrupt_read: 1.0, ..FaultPlan::default() });
    let read = harness.perform(&file, 0, Action::Read(harness.buffer(0, BUFFER)));
    assert_eq!(read.result, Ok(BUFFER));
    let Action::Read(lease) = read.transfer.action else { panic!("a read came in") };
    let wrong = lease.iter().zip(&found).map(|(a, b)| (a ^ b).count_ones()).sum::<u32>();
    assert_eq!(wrong, 1);
    assert_eq!((device.counts().corrupt_write, device.counts().corrupt_read), (1, 1));
}

#[test]
fn misdirected_transfers_say_they_went_where_they_should() {
    let (device, harness) = faulty(FaultPlan { misdirected_write: 1.0, ..FaultPlan::default() });
    let file = harness.file();
    let offset = 64 * BUFFER as u64;
    let write = harness.perform(&file, offset, Action::Write(harness.filled(0, 4096, 9)));
    assert_eq!((write.result, write.transfer.offset), (Ok(4096), offset));
    drop(write);
    let at = |bytes: &[u8]| bytes.iter().position(|byte| *byte == 9);
    assert_ne!(at(&memory(&file).bytes()), Some(offset as usize));
    assert!(at(&memory(&file).bytes()).is_some());

    device.set_plan(FaultPlan { misdirected_read: 1.0, ..FaultPlan::default() });
    memory(&file).write_at(0, &vec![1; 4096]).unwrap();
    let read = harness.perform(&file, 0, Action::Read(harness.buffer(0, 4096)));
    assert_eq!(read.transfer.offset, 0);
    let Action::Read(lease) = read.transfer.action else { panic!("a read came in") };
    assert!(lease.iter().all(|byte| *byte != 1));
    assert_eq!((device.counts().misdirected_write, device.counts().misdirected_read), (1, 1));
}
