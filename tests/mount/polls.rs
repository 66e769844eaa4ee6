//! poll(2) on partitions.

use std::fs::File;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};

use crate::bytes::open;
use crate::place::Mount;
use crate::requests::{ask, settled};
use crate::support::{MIB, swap_xattr, write_pattern};

/// What poll(2) reports within so many milliseconds.
fn poll(file: &File, events: PollFlags, time: u16) -> PollFlags {
    let mut set = [PollFd::new(file.as_fd(), events)];
    nix::poll::poll(&mut set, PollTimeout::from(time)).unwrap();
    set[0].revents().unwrap()
}

const READY: PollFlags = PollFlags::POLLIN.union(PollFlags::POLLOUT);
const PRI: PollFlags = PollFlags::POLLPRI;
const NONE: PollFlags = PollFlags::empty();

/// Takes note of all changes so far.
fn drain(file: &File) {
    while poll(file, PRI, 0) == PRI {}
}

/// POLLIN and POLLOUT always; POLLPRI once for each change of the status that was not told yet.
#[test]
fn poll_tells_of_changes_of_the_status() {
    let mount = Mount::new("pool_size=32m,open_swap_in=none");
    let path = mount.at("file");
    write_pattern(&open(&path), 8 * MIB, 1 << 20);
    settled(&path);
    let (file, other) = (open(&path), File::open(&path).unwrap());
    assert_eq!(poll(&file, READY | PRI, 0), READY);
    assert_eq!(poll(&other, READY, 10_000), READY);
    assert_eq!(poll(&file, PRI, 300), NONE);
    ask(&path, "release");
    assert_eq!(settled(&path), "not_available");
    // Who does not ask for it is not told, and does not lose it by that.
    assert_eq!(poll(&file, READY, 0), READY);
    assert_eq!(poll(&file, READY | PRI, 0), READY | PRI);
    assert_eq!(poll(&file, READY | PRI, 0), READY);
    // Each handle is told for itself.
    assert_eq!(poll(&other, PRI, 10_000), PRI);
    assert_eq!(poll(&other, PRI, 300), NONE);
}

/// A poll that waits is woken when a swap-in starts, and again when it ends.
#[test]
fn a_waiting_poll_is_woken() {
    let mount = Mount::new("pool_size=96m,open_swap_in=none");
    let path = mount.at("file");
    for length in [MIB, 64 * MIB, 80 * MIB] {
        write_pattern(&open(&path), length, 1 << 20);
        let file = open(&path);
        for _ in 0..10 {
            ask(&path, "release");
            assert_eq!(settled(&path), "not_available");
            drain(&file);
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    std::thread::sleep(Duration::from_millis(50));
                    ask(&path, "swap_in");
                });
                let start = Instant::now();
                assert_eq!(poll(&file, PRI, 10_000), PRI);
                assert!(start.elapsed() >= Duration::from_millis(40));
            });
            while swap_xattr(&path, "status") == "inflight" {
                assert_eq!(poll(&file, PRI, 10_000), PRI, "not told of the end");
            }
            assert_eq!(swap_xattr(&path, "status"), "available");
        }
    }
}

/// Growing and truncating change the status without a transfer.
#[test]
fn a_waiting_poll_is_woken_by_a_new_size() {
    let mount = Mount::new("pool_size=16m,open_swap_in=none");
    let path = mount.at("file");
    write_pattern(&open(&path), 4 * MIB, 1 << 20);
    ask(&path, "release");
    assert_eq!(settled(&path), "not_available");
    let file = open(&path);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(100));
            file.set_len(0).unwrap();
        });
        assert_eq!(poll(&file, PRI, 10_000), PRI);
    });
    assert_eq!(settled(&path), "available");
}
