//! What takes a device that misbehaves: short transfers, transfers that fail, O_DIRECT refused late.

use std::path::Path;
use std::time::Duration;

use super::*;
use crate::aio::device::Geometry;
use crate::aio::fault::{FaultDevice, FaultPlan};
use crate::aio::threads::ThreadDevice;
use crate::aio::whole::Whole;
use crate::error::Errno;

const OPTIONS: HandleOptions = HandleOptions {
    block_size: 16 << 10,
    queue_depth: 4,
    single_submit: false,
    overlap_events: true,
    intra_op_parallelism: 2,
};

/// Short transfers are multiples of `alignment`.
fn faulty(alignment: usize, plan: FaultPlan) -> (Handle, Arc<FaultDevice>) {
    let settings = AioSettings::default();
    let geometry = Geometry { alignment, direct: true };
    let inner = ThreadDevice::new(&settings, geometry).unwrap();
    let device = FaultDevice::new(inner, 7, plan).unwrap();
    let bounce = Bounce::new(OPTIONS.block_size, OPTIONS.depth()).unwrap();
    let handle = Handle::over(OPTIONS, bounce, Whole::new(device.clone()), None);
    (handle, device)
}

fn short(probability: f64) -> FaultPlan {
    FaultPlan {
        short_read: probability,
        short_write: probability,
        late: 0.1,
        late_max: Duration::from_millis(2),
        ..FaultPlan::default()
    }
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 / 7) as u8).collect()
}

fn round_trip(handle: &Handle, path: &Path, length: usize, offset: u64) {
    let expected = bytes(length);
    let mut tensor = handle.new_cpu_locked_tensor(length).unwrap();
    tensor.copy_from_slice(&expected);
    let write = handle.pwrite_async(tensor, path, true, offset).unwrap();
    let plain = handle.async_pwrite(expected.clone(), path, offset + length as u64);
    assert_eq!(handle.wait(), Ok(2));
    assert_eq!(plain.unwrap().into_buffer(), expected);
    let mut tensor = write.into_buffer();
    tensor.fill(0);
    let read = handle.async_pread(tensor, path, offset).unwrap().finish();
    assert_eq!(read.result, Ok(length as u64));
    assert_eq!(*read.buffer, *expected);
    let mut plain = vec![0; length];
    handle.sync_pread(&mut plain, path, offset + length as u64).unwrap();
    assert_eq!(plain, expected);
    assert_eq!(handle.wait(), Ok(1));
}

#[test]
fn short_transfers_are_continued() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let (handle, device) = faulty(512, short(0.5));
    round_trip(&handle, &folder.path().join("file"), 1 << 20, 4096);
    let counts = device.counts();
    assert!(counts.short_read > 10 && counts.short_write > 10, "{counts:?}");
}

/// The rest of a transfer cut at an odd byte begins at the aligned one before.
#[test]
fn odd_remainders_are_moved_again() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    // As odd lengths are refused by O_DIRECT, this goes by way of the page cache too.
    let (handle, device) = faulty(1, short(0.2));
    for (length, offset) in [(300_001, 0), (299_999, 77), (1 << 18, 512)] {
        round_trip(&handle, &folder.path().join("file"), length, offset);
    }
    let counts = device.counts();
    assert!(counts.short_read > 5 && counts.short_write > 5, "{counts:?}");
}

#[test]
fn failed_transfers_are_named() {
    let folder = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    let path = folder.path().join("file");
    let plan = FaultPlan { read_error: 1.0, write_no_space: 0.1, ..FaultPlan::default() };
    let (handle, _device) = faulty(512, plan);
    let mut tensor = handle.new_cpu_locked_tensor(1 << 20).unwrap();
    let error = handle.sync_pwrite(&mut tensor, &path, 0).unwrap_err();
    assert_eq!(error.errno(), Errno::ENOSPC);
    assert!(error.moved < 1 << 20 && tensor.len() == 1 << 20);
    std::fs::write(&path, bytes(1 << 20)).unwrap();
    for _ in 0..3 {
        let read = handle.async_pread(tensor, &path, 0).unwrap();
        let plain = handle.async_pread(vec![0; 100_000], &path, 3).unwrap();
        let error = handle.wait().unwrap_err();
        assert_eq!((error.completed, error.failed.len()), (2, 2));
        assert_eq!(error.failed[1].errno(), Errno::EIO);
        assert_eq!((error.failed[1].offset, error.failed[1].moved), (3, 0));
        tensor = read.into_buffer();
        assert_eq!((tensor.len(), plain.into_buffer().len()), (1 << 20, 100_000));
        // Slices of this thread, too; all bounce buffers are back.
        assert!(handle.sync_pread(&mut [0; 70_000], &path, 1).is_err());
    }
}
