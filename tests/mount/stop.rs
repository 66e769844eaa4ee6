//! Stopping: everything that was acknowledged is in the swap folder.

use std::fs;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use rustix::io::Errno;

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{MIB, errno, is_pattern, pattern, same, wait_until, write_pattern};

/// Leaves dirty bytes: full blocks under way, partial ones that wait.
fn make_dirty(mount: &Mount) {
    for name in ["a", "b", "c"] {
        let file = open(&mount.at(name));
        write_pattern(&file, 9 * MIB + 777, 3 << 20);
    }
}

fn is_complete(mount: &Mount) {
    for name in ["a", "b", "c"] {
        is_pattern(&mount.backing(name), 9 * MIB + 777);
    }
}

/// "SIGTERM, SIGINT: every partition on stable storage".
#[test]
fn a_signal_loses_nothing() {
    let mount = Mount::new("pool_size=64m");
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        make_dirty(&mount);
        mount.signal(signal);
        mount.wait_gone();
        assert!(!mount.is_mounted());
        is_complete(&mount);
        for name in ["a", "b", "c"] {
            fs::remove_file(mount.backing(name)).unwrap();
        }
        is_done(&mount.mount("pool_size=64m"));
    }
}

/// "`swapfs umount` …: every partition on stable storage"; while somebody uses the mount, it stays.
#[test]
fn umount_loses_nothing_and_refuses_while_in_use() {
    let mount = Mount::new("pool_size=64m");
    make_dirty(&mount);
    let file = open(&mount.at("open"));
    file.write_all_at(b"dirty", 0).unwrap();
    let output = swapfs(&["umount", mount.mnt.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(complaint(&output).contains("is busy"), "{output:?}");
    is_complete(&mount);
    same(&fs::read(mount.backing("open")).unwrap(), b"dirty");
    file.write_all_at(b"DIRTY", 0).unwrap();
    drop(file);
    mount.unmount();
    same(&fs::read(mount.backing("open")).unwrap(), b"DIRTY");
}

/// "A raw umount2 … returns early …; the daemon then finishes alone, and the next mount of that folder
/// waits for it".
#[test]
fn a_raw_unmount_loses_nothing() {
    let mount = Mount::new("pool_size=64m");
    for _ in 0..3 {
        make_dirty(&mount);
        let first = mount.daemon();
        // Another test that starts a command has our descriptors until its exec.
        wait_until("the unmount", || umount2(&mount.mnt, MntFlags::empty()).is_ok());
        is_done(&mount.mount("pool_size=64m"));
        assert_ne!(mount.daemon(), first);
        for name in ["a", "b", "c"] {
            is_pattern(&mount.at(name), 9 * MIB + 777);
        }
        is_complete(&mount);
        for name in ["a", "b", "c"] {
            fs::remove_file(mount.at(name)).unwrap();
        }
    }
}

/// A daemon that is killed leaves its clients an error at once, and what was synchronized in its place.
#[test]
fn a_killed_daemon_answers_with_errors_at_once() {
    let mount = Mount::new("pool_size=64m");
    let file = open(&mount.at("file"));
    write_pattern(&file, 3 * MIB, 1 << 20);
    file.sync_all().unwrap();
    // One client is waiting when it happens.
    let at = mount.mnt.clone();
    let client = std::thread::spawn(move || {
        let mut number = 0;
        loop {
            let name = format!("other-{number}");
            match fs::write(at.join(name), pattern(0, 1 << 20)) {
                Ok(()) => number += 1,
                Err(error) => return Errno::from_io_error(&error).unwrap(),
            }
        }
    });
    std::thread::sleep(Duration::from_millis(300));
    mount.signal(Signal::SIGKILL);
    mount.wait_gone();
    let start = Instant::now();
    let met = client.join().unwrap();
    assert!([Errno::NOTCONN, Errno::CONNABORTED].contains(&met), "{met}");
    // The kernel ends the connection when the last thread has gone, which may be after the process.
    wait_until("the end of the connection", || {
        let met = errno(file.read_at(&mut [0; 10], 0));
        assert!([Errno::NOTCONN, Errno::CONNABORTED].contains(&met), "{met}");
        met == Errno::NOTCONN
    });
    assert_eq!(errno(file.write_at(b"x", 0)), Errno::NOTCONN);
    assert_eq!(errno(file.sync_all()), Errno::NOTCONN);
    assert_eq!(errno(fs::metadata(mount.at("missing"))), Errno::NOTCONN);
    assert!(start.elapsed() < Duration::from_secs(5));
    drop(file);
    let refused = mount.mount("pool_size=64m");
    assert_eq!(refused.status.code(), Some(1), "{refused:?}");
    is_done(&mount.mount("pool_size=64m --replace"));
    is_pattern(&mount.at("file"), 3 * MIB);
}

/// fsck of a folder whose daemon was just killed waits until the kernel has closed what that had open.
#[test]
fn a_folder_is_verified_right_after_its_daemon_was_killed() {
    let mount = Mount::new("pool_size=64m,checksum=none");
    for _ in 0..5 {
        make_dirty(&mount);
        mount.signal(Signal::SIGKILL);
        is_done(&swapfs(&["fsck", mount.swap.to_str().unwrap()]));
        is_done(&mount.mount("pool_size=64m,checksum=none --replace"));
    }
}
