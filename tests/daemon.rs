//! The daemon's life with a filesystem that has nothing in it but what the tests need: start, readiness,
//! failures while starting, signals, unmounts.
//!
//! The daemon forks, which a process with the many threads of a test harness must not; so each test
//! starts this very program again as the `swapfs` command with a fake filesystem ([`main`]).

mod asking;
mod fake;
mod place;
mod terminal;

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixDatagram;
use std::process::{Child, ExitCode, Stdio};
use std::time::{Duration, Instant};

use asking::{
    each_request_is_waited_for_until_it_is_done,
    ten_thousand_partitions_are_asked_by_one_request_and_waited_for,
    what_fails_or_takes_too_long_is_named,
    what_is_refused_is_one_clear_line_each_and_the_others_are_asked,
};
use place::{ARGUMENTS, Place, assert_done, assert_failed, command, complaint, wait_until};

/// A test's name and body.
type Test = (&'static str, fn());

macro_rules! tests {
    ($($name:ident),* $(,)?) => { [$((stringify!($name), $name as fn())),*] };
}

const TESTS: [Test; 24] = tests![
    mount_returns_when_the_mount_answers_and_umount_when_the_daemon_is_gone,
    the_mount_carries_the_standard_options,
    the_daemons_own_line_reaches_the_user,
    a_daemon_that_dies_without_a_word_is_reported_and_leaves_no_mount,
    a_swap_folder_in_use_and_a_mountpoint_in_use_are_refused,
    a_folder_can_be_mounted_over_itself,
    a_deepspeed_file_alone_mounts_over_its_nvme_path,
    a_mountpoint_inside_the_swap_folder_is_refused,
    sigterm_synchronizes_unmounts_and_finishes,
    a_busy_mount_goes_for_new_users_and_ends_with_the_last_handle,
    after_a_raw_umount_the_next_mount_waits_for_the_daemon,
    partitions_that_are_not_stored_fail_the_umount,
    umount_keeps_its_timeout,
    a_panic_is_logged_and_the_daemon_goes_on,
    a_failed_allocation_is_logged,
    on_a_terminal_umount_shows_how_much_is_left,
    a_killed_daemon_leaves_a_dead_mount_that_is_named_and_cleared,
    in_the_foreground_the_command_is_the_daemon,
    a_service_manager_is_told_when_the_mount_answers_and_when_it_ends,
    status_shows_mounts_and_partitions,
    ten_thousand_partitions_are_asked_by_one_request_and_waited_for,
    each_request_is_waited_for_until_it_is_done,
    what_is_refused_is_one_clear_line_each_and_the_others_are_asked,
    what_fails_or_takes_too_long_is_named,
];

fn main() -> ExitCode {
    if let Ok(arguments) = std::env::var(ARGUMENTS) {
        let arguments = std::iter::once("swapfs").chain(arguments.lines()).map(Into::into);
        return swapfs::cli::run(arguments, &fake::FakeFactory);
    }
    // As libtest does: words are parts of names; flags it would know are skipped.
    let words: Vec<String> = std::env::args().skip(1).collect();
    if words.iter().any(|word| word == "--list") {
        TESTS.iter().for_each(|(name, _)| println!("{name}: test"));
        return ExitCode::SUCCESS;
    }
    let parts: Vec<&String> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let wanted = |name: &str| parts.is_empty() || parts.iter().any(|part| name.contains(*part));
    let running: Vec<_> = TESTS
        .into_iter()
        .filter(|(name, _)| wanted(name))
        .map(|(name, test)| {
            (name, std::thread::Builder::new().name(name.to_owned()).spawn(test).unwrap())
        })
        .collect();
    let mut failed = 0;
    for (name, test) in running {
        let passed = test.join().is_ok();
        println!("test {name} ... {}", if passed { "ok" } else { "FAILED" });
        failed += u32::from(!passed);
    }
    ExitCode::from(u8::from(failed > 0))
}

fn mount_returns_when_the_mount_answers_and_umount_when_the_daemon_is_gone() {
    let place = Place::new();
    assert_done(&place.mount("slow-init", &[]));
    assert!(place.is_mounted());
    assert_ne!(
        place.mnt().metadata().unwrap().dev(),
        place.folder.path().metadata().unwrap().dev()
    );
    let pid = place.state().pid;
    assert_ne!(pid, std::process::id().cast_signed());
    assert_eq!(
        nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid))).unwrap().as_raw(),
        pid,
        "in a session of its own"
    );
    assert_done(&place.umount());
    assert!(!place.is_mounted());
    let state = place.state();
    assert_eq!((state.pid, state.state), (pid, swapfs::daemon::Phase::Finished));
    assert!(place.log().contains("synchronized 1 times, finished"), "{}", place.log());
    assert_done(&place.mount("", &["--ro"]));
    assert_done(&place.umount());
}

fn the_mount_carries_the_standard_options() {
    let place = Place::new();
    let options = ["-o", "ro,noexec,noatime,suid,fsname=some name,allow_other,_netdev"];
    assert_done(&place.mount("", &options));
    let table = std::fs::read("/proc/self/mountinfo").unwrap();
    let table = String::from_utf8_lossy(&table);
    let mnt = place.mnt();
    let line = table.lines().find(|line| line.contains(mnt.to_str().unwrap())).unwrap();
    assert!(line.contains(" ro,nodev,noexec,noatime "), "{line}");
    assert!(line.contains(r"- fuse.swapfs some\040name ro,"), "{line}");
    assert!(line.contains("default_permissions,allow_other"), "{line}");
    assert_done(&place.umount());
}

fn the_daemons_own_line_reaches_the_user() {
    let place = Place::new();
    assert_failed(&place.mount("refuse", &[]), "the fake refuses");
    assert!(!place.is_mounted());
    assert_failed(
        &place.mount("serve-error", &[]),
        &format!("the session of {} failed: the fake's session", place.mnt().display()),
    );
    assert!(!place.is_mounted());
}

fn a_daemon_that_dies_without_a_word_is_reported_and_leaves_no_mount() {
    let place = Place::new();
    let output = place.mount("die", &[]);
    assert_failed(
        &output,
        "the daemon died before the mount answered (killed by SIGKILL; if that was for want of memory \
         (dmesg | tail), give the pool less: -o pool_size=SIZE)",
    );
    assert!(!place.is_mounted());
    let output = place.mount("exit", &[]);
    assert_failed(&output, "the daemon died before the mount answered (exit status 7)");
    assert_done(&place.mount("", &[]));
    assert_done(&place.umount());
}

fn a_swap_folder_in_use_and_a_mountpoint_in_use_are_refused() {
    let place = Place::new();
    assert_done(&place.mount("", &[]));
    let (swap, mnt) = (place.swap(), place.mnt());
    let (shown, pid) = (swap.display(), place.state().pid);
    let other = place.folder.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for at in [&other, &mnt] {
        let arguments = ["mount", swap.to_str().unwrap(), at.to_str().unwrap()];
        let (in_use, first) = (format!("is in use by swapfs pid {pid}"), mnt.display());
        assert_failed(
            &command("", &arguments).output().unwrap(),
            &format!("swap folder {shown} {in_use} (mounted at {first})"),
        );
    }
    let output = command("", &["mount", other.to_str().unwrap(), mnt.to_str().unwrap()]).output();
    let line =
        format!("{} is a swapfs mount already (of {shown}); unmount it first", mnt.display());
    assert_failed(&output.unwrap(), &line);
    assert_done(&place.umount());
}

fn a_folder_can_be_mounted_over_itself() {
    let place = Place::new();
    let swap = place.swap();
    let path = swap.to_str().unwrap();
    assert_done(&command("", &["mount", path, path]).output().unwrap());
    let again = command("", &["mount", path, path]).output().unwrap();
    let line = complaint(&again);
    assert!(
        line.starts_with(&format!("swapfs: swap folder {path} is in use by swapfs pid ")),
        "{line}"
    );
    assert_done(&command("", &["umount", path]).output().unwrap());
    assert_eq!(place.state().state, swapfs::daemon::Phase::Finished);
}

fn a_deepspeed_file_alone_mounts_over_its_nvme_path() {
    let place = Place::new();
    let (file, swap) = (place.folder.path().join("ds.json"), place.swap());
    let (file, path) = (file.to_str().unwrap(), swap.to_str().unwrap());
    let text = format!(
        r#"{{"aio": {{"use_gds": true}}, "zero_optimization": {{"offload_param": {{
            "device": "nvme", "nvme_path": "{path}", "buffer_size": 1000000}}}}}}"#
    );
    std::fs::write(file, text).unwrap();
    let output = command("", &["mount", "--config", file]).output().unwrap();
    assert_done(&output);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        format!(
            "swap folder and mountpoint: {path}\n\
             pool_size 20 MiB from offload_param: 5 buffers of 1000000 elements of 4 bytes\n"
        )
    );
    let warned = complaint(&output);
    assert!(warned.contains("aio.use_gds: true is ignored"), "{warned}");
    let mounts = swapfs::mount::swapfs_mounts().unwrap();
    assert!(mounts.iter().any(|mount| mount.mountpoint == swap));
    let again = complaint(&command("", &["mount", "--config", file]).output().unwrap());
    assert!(again.contains("is in use by swapfs pid "), "{again}");
    assert_done(&command("", &["umount", path]).output().unwrap());
}

fn a_mountpoint_inside_the_swap_folder_is_refused() {
    let place = Place::new();
    let inner = place.swap().join("inner");
    std::fs::create_dir(&inner).unwrap();
    let swap = place.swap();
    let output = command("", &["mount", swap.to_str().unwrap(), inner.to_str().unwrap()]).output();
    let (inner, swap) = (inner.display(), swap.display());
    assert_failed(
        &output.unwrap(),
        &format!("mountpoint {inner} lies inside the swap folder {swap}"),
    );
}

fn sigterm_synchronizes_unmounts_and_finishes() {
    let place = Place::new();
    assert_done(&place.mount("", &[]));
    place.signal(nix::sys::signal::Signal::SIGTERM);
    place.wait_gone();
    assert!(!place.is_mounted());
    assert_eq!(place.state().state, swapfs::daemon::Phase::Finished);
    assert!(place.log().contains("synchronized 1 times, finished"), "{}", place.log());
}

fn a_busy_mount_goes_for_new_users_and_ends_with_the_last_handle() {
    let place = Place::new();
    assert_done(&place.mount("", &[]));
    let open = std::fs::File::open(place.mnt()).unwrap();
    let output = place.umount();
    assert_eq!(output.status.code(), Some(1));
    let line = complaint(&output);
    assert!(line.starts_with(&format!("swapfs: {} is busy", place.mnt().display())), "{line}");
    place.signal(nix::sys::signal::Signal::SIGINT);
    wait_until("the unmount", || !place.is_mounted());
    place.signal(nix::sys::signal::Signal::SIGTERM);
    wait_until("the second signal", || place.log().contains("stopping already"));
    assert_eq!(place.state().state, swapfs::daemon::Phase::Mounted);
    drop(open);
    place.wait_gone();
    assert_eq!(place.state().state, swapfs::daemon::Phase::Finished);
}

fn after_a_raw_umount_the_next_mount_waits_for_the_daemon() {
    let place = Place::new();
    assert_done(&place.mount("slow-finish", &[]));
    let first = place.state().pid;
    nix::mount::umount2(&place.mnt(), nix::mount::MntFlags::empty()).unwrap();
    let output = place.mount("", &[]);
    assert_done(&output);
    let line = complaint(&output);
    assert!(line.contains(&format!("waiting for swapfs pid {first} to finish")), "{line}");
    assert_ne!(place.state().pid, first);
    assert_done(&place.umount());
    assert_done(&place.mount("slow-finish", &[]));
    nix::mount::umount2(&place.mnt(), nix::mount::MntFlags::empty()).unwrap();
    let line = complaint(&place.mount("", &["--timeout", "0"]));
    assert!(line.contains("is still finishing after 0 s"), "{line}");
    place.wait_gone();
}

fn partitions_that_are_not_stored_fail_the_umount() {
    let place = Place::new();
    assert_done(&place.mount("fsync-fails", &[]));
    let output = place.umount();
    assert_failed(
        &output,
        &format!(
            "cannot synchronize {}: I/O error (2 partitions are not on stable storage); still mounted",
            place.mnt().display()
        ),
    );
    assert!(place.is_mounted());
    place.signal(nix::sys::signal::Signal::SIGTERM);
    place.wait_gone();
    assert_done(&place.mount("finish-fails", &[]));
    assert_failed(&place.umount(), "unmounted, but not on stable storage: a/b, c");
    assert!(place.log().contains("not on stable storage: a/b, c"));
}

fn umount_keeps_its_timeout() {
    let place = Place::new();
    assert_done(&place.mount("fsync-hangs", &[]));
    let start = Instant::now();
    let mnt = place.mnt();
    let output = command("", &["umount", mnt.to_str().unwrap(), "--timeout", "1"]).output();
    assert_failed(
        &output.unwrap(),
        &format!(
            "cannot synchronize {}: not done after 1 s, 3 buffers are not on stable storage yet; \
             still mounted",
            mnt.display()
        ),
    );
    assert!(start.elapsed() < Duration::from_secs(10));
    wait_until("the fsync's end", || {
        nix::mount::umount2(&mnt, nix::mount::MntFlags::empty()).is_ok()
    });
    place.wait_gone();
}

/// Buffers in flight are among the dirty ones, and nothing is known of the time while nothing moves.
fn a_panic_is_logged_and_the_daemon_goes_on() {
    let place = Place::new();
    assert_done(&place.mount("panic-once", &[]));
    place.signal(nix::sys::signal::Signal::SIGTERM);
    wait_until("the panic's line", || place.log().contains("goes on after a panic"));
    let log = place.log();
    let line = log.lines().find(|line| line.contains("panicked")).expect("a line");
    assert!(line.contains(" ERROR swapfs] thread main panicked at tests/fake/mod.rs:"), "{line}");
    assert!(line.ends_with(": the fake panics"), "one line: {log}");
    assert!(place.is_mounted());
    place.signal(nix::sys::signal::Signal::SIGTERM);
    place.wait_gone();
    assert_eq!(place.state().state, swapfs::daemon::Phase::Finished);
}

fn a_failed_allocation_is_logged() {
    let place = Place::new();
    assert_done(&place.mount("no-memory", &[]));
    place.signal(nix::sys::signal::Signal::SIGTERM);
    place.wait_gone();
    // Other lines may come between the pieces that the runtime prints it in.
    let log = place.log();
    let pieces = ["memory allocation of ", "99999999999999", " bytes failed"];
    assert!(pieces.iter().all(|piece| log.contains(piece)), "{log}");
}

fn on_a_terminal_umount_shows_how_much_is_left() {
    let place = Place::new();
    assert_done(&place.mount("fsync-hangs", &[]));
    let mnt = place.mnt();
    let umount = &mut command("", &["umount", mnt.to_str().unwrap(), "--timeout", "20"]);
    let terminal = terminal::Terminal::new(umount);
    wait_until("the bar", || terminal.shown().contains(" 0 B/3.00 MiB, 0 B/s, ? left"));
    let (status, shown) = terminal.finish();
    assert!(status.success(), "{shown}");
    assert!(shown.contains("synchronizing "), "{shown}");
    place.wait_gone();
}

fn a_killed_daemon_leaves_a_dead_mount_that_is_named_and_cleared() {
    let place = Place::new();
    assert_done(&place.mount("", &[]));
    place.signal(nix::sys::signal::Signal::SIGKILL);
    place.wait_gone();
    let mnt = place.mnt();
    let shown = mnt.display();
    let line = complaint(&place.mount("", &[]));
    assert!(line.contains(&format!("`umount -l {shown}`")), "{line}");
    let output = command("", &["status"]).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stdout).contains(" dead "), "{output:?}");
    assert_done(&place.mount("", &["--replace"]));
    place.signal(nix::sys::signal::Signal::SIGKILL);
    place.wait_gone();
    let line = complaint(&place.umount());
    assert!(line.contains(&format!("{shown} was a dead mount and is unmounted now")), "{line}");
    assert!(!place.is_mounted());
}

fn in_the_foreground_the_command_is_the_daemon() {
    let place = Place::new();
    let (swap, mnt) = (place.swap(), place.mnt());
    let arguments = ["mount", "-f", swap.to_str().unwrap(), mnt.to_str().unwrap()];
    let mut child: Child =
        command("", &arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the mount", || {
        swapfs::daemon::read_state(&swap)
            .is_some_and(|state| state.state == swapfs::daemon::Phase::Mounted)
    });
    assert_eq!(place.state().pid, child.id().cast_signed());
    place.signal(nix::sys::signal::Signal::SIGINT);
    assert!(child.wait().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(log.contains("SIGINT received") && log.contains("synchronized 1 times"), "{log}");
    assert!(place.log().is_empty());
}

fn a_service_manager_is_told_when_the_mount_answers_and_when_it_ends() {
    let place = Place::new();
    let (swap, mnt) = (place.swap(), place.mnt());
    let (from, at) = (swap.to_str().unwrap(), mnt.to_str().unwrap());
    let path = place.folder.path().join("manager");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let told = || {
        let mut message = [0; 4096];
        let length = socket.recv(&mut message).expect("a message in time");
        String::from_utf8(message[..length].to_vec()).unwrap()
    };
    // A daemon in the background is not the manager's process; the first message is another's.
    let mut background = command("", &["mount", from, at]);
    assert_done(&background.env("NOTIFY_SOCKET", &path).output().unwrap());
    assert_done(&place.umount());
    let arguments = ["mount", "-f", "-o", "pool_size=5g", from, at];
    let mut child = command("slow-init", &arguments)
        .env("NOTIFY_SOCKET", &path)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert_eq!(told(), format!("READY=1\nSTATUS={from} mounted at {at}\n"));
    assert!(place.is_mounted(), "told when the mount answers, not before");
    place.signal(nix::sys::signal::Signal::SIGTERM);
    let stopping = told();
    let lines: Vec<&str> = stopping.lines().collect();
    // 60 s, and 5 GiB at 50 MiB a second.
    assert_eq!(lines[..2], ["STOPPING=1", "EXTEND_TIMEOUT_USEC=163000000"], "{stopping}");
    assert!(child.wait().unwrap().success());
}

fn status_shows_mounts_and_partitions() {
    let place = Place::new();
    assert_done(&place.mount("", &[]));
    let stdout = |arguments: &[&str]| {
        let output = command("", arguments).output().unwrap();
        assert_done(&output);
        String::from_utf8(output.stdout).unwrap()
    };
    let mnt = place.mnt();
    let path = mnt.to_str().unwrap();
    let mounts = stdout(&["status"]);
    let row = mounts.lines().find(|line| line.contains(path)).expect("a row");
    let pid = place.state().pid.to_string();
    let columns: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(columns[2..], [pid.as_str(), "16", "MiB", "11", "MiB", "3", "MiB", "2", "MiB"]);
    let partitions = stdout(&["status", path]);
    assert!(partitions.contains("inflight  1.5 MiB"), "{partitions}");
    let json = stdout(&["status", "--json", mnt.join("partition").to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json[0]["size"], 1_572_864);
    assert_eq!(json[0]["status"], "inflight");
    assert_eq!(json[0]["error"], serde_json::Value::Null);
    assert_done(&place.umount());
    let output = command("", &["status", path]).output().unwrap();
    assert_failed(&output, &format!("{path} is not on a swapfs mount"));
}
