//! Without the right to lock memory everything works, unlocked and unregistered.

use std::os::unix::process::CommandExt;
use std::process::Command;

use swapfs::aio::{AioSettings, open_device};
use swapfs::pool::{Arena, ArenaOptions};

use super::harness::{ALIGNMENT, BUFFER, Harness};

const CHILD: &str = "SWAPFS_TEST_MEMLOCK_CHILD";
const CAP_IPC_LOCK: libc::c_ulong = 14;

/// Runs a test of this file once more, in a process that may lock `limit` bytes only.
fn in_child(test: &str, limit: u64) {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", test, "--nocapture"]);
    child.env(CHILD, "1");
    // SAFETY: pre_exec needs a closure that is safe between fork and exec: two system calls on
    // plain numbers, no allocation.
    unsafe { child.pre_exec(move || limit_memory_lock(limit)) };
    let output = child.output().unwrap();
    let said = [output.stdout.as_slice(), output.stderr.as_slice()].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"));
}

fn limit_memory_lock(limit: u64) -> std::io::Result<()> {
    // Fails for users who have no such capability to lose; their limit holds anyway.
    // SAFETY: this prctl takes plain numbers.
    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) };
    let limit = rustix::process::Rlimit { current: Some(limit), maximum: Some(limit) };
    rustix::process::setrlimit(rustix::process::Resource::Memlock, limit)?;
    Ok(())
}

#[test]
fn refused_memory_lock_is_survived() {
    if std::env::var_os(CHILD).is_some() {
        unlocked();
    } else {
        in_child("memlock::refused_memory_lock_is_survived", 64 << 10);
    }
}

#[test]
fn rings_share_registered_memory_where_the_kernel_lets_them() {
    if std::env::var_os(CHILD).is_none() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: the limit is the user's, and the other tests use it up");
            return;
        }
        // Enough for the harness's 4 MiB once, not for each of three rings.
        in_child("memlock::rings_share_registered_memory_where_the_kernel_lets_them", 6 << 20);
        return;
    }
    let harness = Harness::uring(&AioSettings { thread_count: 3, ..Default::default() });
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < (6, 12) {
        println!("skipped: Linux {release} cannot share registered memory (6.12 can)");
        return;
    }
    assert!(harness.device.stats().registered_buffers);
    let file = harness.file();
    harness.device.submit(&mut harness.writes(&file, 16));
    assert!(harness.sink.wait(16).iter().all(|done| done.result == Ok(BUFFER)));
}

fn unlocked() {
    let arena =
        Arena::new(ArenaOptions { size: 4 << 20, pin_memory: true, huge_pages: true }).unwrap();
    assert!(!arena.locked());
    let reason = arena.lock_refusal().expect("a reason");
    assert!(reason.contains("RLIMIT_MEMLOCK is 64 KiB"), "{reason}");
    // Newer kernels count the rings themselves, per user, so even they may be refused.
    let arena = super::harness::arena();
    let settings = AioSettings { thread_count: 2, ..Default::default() };
    let (device, why) = open_device(&settings, &arena, ALIGNMENT, true, &[]).unwrap();
    assert_eq!(why.is_some(), device.stats().engine == "threads");
    let harness = Harness::new(device, arena);
    assert!(!harness.device.stats().registered_buffers);
    let file = harness.file();
    harness.device.submit(&mut harness.writes(&file, 16));
    assert!(harness.sink.wait(16).iter().all(|done| done.result == Ok(BUFFER)));
}
