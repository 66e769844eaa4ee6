//! The device that moves nothing.

use std::sync::Arc;

use swapfs::aio::device::{Action, BackingFile};
use swapfs::aio::null::{NullDevice, NullFile, NullOptions};
use swapfs::error::Errno;

use super::harness::{Harness, arena, transfer};

#[test]
fn everything_completes_and_reads_are_zeros() {
    let device = NullDevice::new(NullOptions { alignment: 512, clear: true }).unwrap();
    let harness = Harness::new(device, arena());
    let file: Arc<dyn BackingFile> = Arc::new(NullFile::new(8192));
    let mut front = harness.buffer(0, 4096);
    front.fill(7);
    harness.device.submit(&mut vec![
        transfer(1, &file, 6144, Action::Read(front)),
        transfer(2, &file, 6144, Action::Write(harness.filled(1, 4096, 7))),
        transfer(3, &file, 6144, Action::Sync { data_only: true }),
    ]);
    let mut done = harness.sink.wait(3);
    done.sort_by_key(|done| done.transfer.token);
    for (done, expected) in done.into_iter().zip([(1, 4096), (2, 4096), (3, 0)]) {
        assert_eq!((done.transfer.token, done.result), (expected.0, Ok(expected.1)));
        if let Action::Read(lease) = done.transfer.action {
            assert!(lease.iter().all(|byte| *byte == 0));
        }
    }
    assert_eq!(harness.device.stats().read_bytes, 4096);
    assert_eq!(file.status().unwrap().size, 6144 + 4096, "as long as what was written");
    harness.device.shutdown();
    let late = harness.perform(&file, 0, Action::Sync { data_only: true });
    assert_eq!(late.result, Err(Errno::ENODEV));
}
