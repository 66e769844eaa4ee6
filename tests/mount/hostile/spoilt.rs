//! Partitions that their owner has spoilt beneath the mount: they fill no disk with log lines, and hold up nobody's unmount.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::io::Errno;

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{
    MIB, User, as_user, errno, is_pattern, is_root, set_xattr, swap_xattr, sync_all, user,
    wait_until, write_pattern,
};

const ATTACKER: User = user(1234);
const VICTIM: User = user(1235);

const OPTIONS: &str = "pool_size=16m,allow_other,checksum=crc32c,open_swap_in=none";

/// A mount with a folder for each of both users, which they reach beneath as well.
fn shared() -> Mount {
    let mount = Mount::new(OPTIONS);
    for path in [mount.scratch.path(), &mount.swap, &mount.mnt] {
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
    }
    fs::set_permissions(&mount.mnt, Permissions::from_mode(0o1777)).unwrap();
    for (user, name) in [(ATTACKER, "attacker"), (VICTIM, "victim")] {
        as_user(&mount.mnt, user, || fs::create_dir(name).unwrap());
    }
    mount
}

/// Makes a partition whose first page cannot be read any more: what lies beneath is not what was written.
fn spoil(mount: &Mount, name: &str) {
    let (path, beneath) = (mount.at(name), mount.backing(name));
    let file = File::create(&path).unwrap();
    write_pattern(&file, 8192, 8192);
    file.sync_all().unwrap();
    drop(file);
    set_xattr(&path, "user.swap.request", b"release").unwrap();
    wait_until("the release", || swap_xattr(&path, "resident") == "0");
    OpenOptions::new().write(true).open(beneath).unwrap().write_all_at(b"spoilt", 100).unwrap();
}

/// Writes into a part of the first page: nobody can say what the rest of it is.
fn write_part(path: &Path) -> File {
    let file = open(path);
    file.write_all_at(b"part", 2000).unwrap();
    file
}

fn log_length(mount: &Mount) -> u64 {
    // There is none for a moment while one is set aside.
    fs::metadata(mount.swap.join(".swapfs/log")).map_or(u64::MAX, |found| found.len())
}

fn metric(mount: &Mount, name: &str) -> u64 {
    let text = fs::read_to_string(mount.at(".swapfs/metrics")).unwrap();
    let line =
        text.lines().find_map(|line| line.strip_prefix(&format!("swapfs_log_{name}_total ")));
    line.unwrap_or_else(|| panic!("{name}: {text}")).parse().unwrap()
}

fn read_fails(path: &Path) {
    let file = File::open(path).unwrap();
    assert_eq!(errno(file.read_at(&mut [0; 4096], 0)), Errno::IO);
}

/// "The attacker makes his own partition unreadable beneath and reads in a loop: 6 MB of log a second." A few lines come of
/// it, others' lines are there, and what was left out is counted.
#[test]
fn reading_what_cannot_be_read_in_a_loop_fills_no_log() {
    if !is_root() {
        return;
    }
    let mount = shared();
    as_user(&mount.mnt, ATTACKER, || spoil(&mount, "attacker/file"));
    as_user(&mount.mnt, VICTIM, || spoil(&mount, "victim/file"));
    let before = log_length(&mount);
    let is_over = AtomicBool::new(false);
    let reads: u64 = std::thread::scope(|scope| {
        let read = || {
            as_user(&mount.mnt, ATTACKER, || {
                let mut count = 0;
                while !is_over.load(Ordering::Relaxed) {
                    let path = Path::new("attacker/file");
                    read_fails(path);
                    // So that the next one reads beneath again.
                    set_xattr(path, "user.swap.request", b"discard").unwrap();
                    count += 1;
                }
                count
            })
        };
        let readers = [scope.spawn(read), scope.spawn(read)];
        std::thread::sleep(Duration::from_secs(2));
        is_over.store(true, Ordering::Relaxed);
        readers.into_iter().map(|reader| reader.join().unwrap()).sum()
    });
    assert!(reads > 100, "{reads}");
    let left_out = metric(&mount, "left_out");
    assert!(left_out > 50, "{left_out} for {reads} reads");
    as_user(&mount.mnt, VICTIM, || read_fails(Path::new("victim/file")));
    wait_until("the victim's line", || mount.log().contains("victim/file failed"));
    let grown = log_length(&mount) - before;
    assert!(grown < 20_000, "{grown} bytes for {reads} reads");
    assert!(metric(&mount, "lines") < 200);
    mount.unmount();
    let log = mount.log();
    assert!(log.contains("lines like others before were left out"), "{log}");
}

/// The same with a new partition each time, and by requests that are refused.
#[test]
fn many_partitions_and_refused_requests_fill_no_log() {
    if !is_root() {
        return;
    }
    let mount = shared();
    let before = log_length(&mount);
    let mut names = Vec::new();
    as_user(&mount.mnt, ATTACKER, || {
        for number in 0..1500 {
            let name = format!("attacker/{number}");
            let file = File::create(&name).unwrap();
            file.write_all_at(&[7; 5000], 0).unwrap();
            names.push(name);
        }
    });
    sync_all(&mount.mnt);
    is_done(&swapfs(&["release", "--wait", mount.mnt.to_str().unwrap()]));
    as_user(&mount.mnt, ATTACKER, || {
        for name in &names {
            let beneath = OpenOptions::new().write(true).open(mount.backing(name)).unwrap();
            beneath.write_all_at(&[8], 0).unwrap();
        }
        for name in &names {
            read_fails(Path::new(name));
        }
        for _ in 0..5000 {
            assert!(set_xattr(Path::new("attacker"), "user.swap.request", b"nonsense").is_err());
            assert!(File::open("attacker/nothing").is_err());
        }
    });
    wait_until("lines", || metric(&mount, "left_out") > 300);
    let lines = metric(&mount, "lines");
    assert!(lines < 1500, "{lines}");
    let grown = log_length(&mount) - before;
    assert!(grown < 500_000, "{grown}");
}

/// A log that is long is set aside while the daemon runs, with one file before it, and what is logged later is in the new one.
#[test]
fn a_long_log_is_set_aside_while_mounted() {
    if !is_root() {
        return;
    }
    let mount = shared();
    let control = mount.swap.join(".swapfs");
    let lengthen = || {
        let log = OpenOptions::new().write(true).open(control.join("log")).unwrap();
        log.set_len(16 * MIB).unwrap();
    };
    let names = || {
        let names = fs::read_dir(&control).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_str().unwrap().starts_with("log")).count()
    };
    for round in 1..=3 {
        let name = format!("attacker/{round}");
        as_user(&mount.mnt, ATTACKER, || spoil(&mount, &name));
        lengthen();
        as_user(&mount.mnt, ATTACKER, || read_fails(Path::new(&name)));
        wait_until("the new log", || log_length(&mount) < MIB);
        wait_until("the line", || mount.log().contains(&format!("{name} failed")));
        assert_eq!((names(), metric(&mount, "rotations")), (2, round));
        assert_eq!(fs::metadata(control.join("log")).unwrap().mode() & 0o777, 0o600);
    }
    // A link in its place is not followed, and nobody waits.
    let target = mount.scratch.path().join("target");
    fs::write(&target, "root's").unwrap();
    lengthen();
    fs::rename(control.join("log"), control.join("away")).unwrap();
    symlink(&target, control.join("log")).unwrap();
    as_user(&mount.mnt, ATTACKER, || spoil(&mount, "attacker/last"));
    as_user(&mount.mnt, ATTACKER, || read_fails(Path::new("attacker/last")));
    wait_until("the line to be dropped", || metric(&mount, "dropped") > 0);
    assert_eq!(fs::read(&target).unwrap(), b"root's");
    fs::remove_file(control.join("log")).unwrap();
    fs::remove_file(control.join("away")).unwrap();
    mount.unmount();
}

/// The attacker has written into parts of pages that he has spoilt, and the victim has not synchronized.
fn with_unstorable() -> (Mount, Vec<File>) {
    let mount = shared();
    let held = as_user(&mount.mnt, ATTACKER, || {
        let spoilt = (0..3).map(|number| {
            let name = format!("attacker/{number}");
            spoil(&mount, &name);
            write_part(Path::new(&name))
        });
        spoilt.collect()
    });
    as_user(&mount.mnt, VICTIM, || {
        write_pattern(&open(Path::new("victim/file")), 3 * MIB + 5, 100_000);
    });
    (mount, held)
}

/// All but the attacker's partitions is stored, and the attacker's are named.
#[track_caller]
fn ended(mount: &Mount, output: &Output) {
    let said = complaint(output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("unmounted, but not on stable storage: "), "{said}");
    for number in 0..3 {
        assert!(said.contains(&format!("attacker/{number}: ")), "{said}");
    }
    assert!(!said.contains("victim"), "{said}");
    mount.wait_gone();
    assert!(!mount.is_mounted());
    is_pattern(&mount.backing("victim/file"), 3 * MIB + 5);
}

fn umount(mount: &Mount, more: &[&str]) -> Output {
    let arguments = [&["umount", mount.mnt.to_str().unwrap()], more].concat();
    let (start, mut output) = (Instant::now(), swapfs(&arguments));
    while complaint(&output).contains("is busy") && start.elapsed() < Duration::from_secs(20) {
        output = swapfs(&arguments);
    }
    output
}

/// "It refused once: three partitions not on stable storage." Root's `umount` stores what is everybody else's, and ends.
#[test]
fn what_a_user_has_spoilt_of_his_own_holds_up_no_unmount() {
    if !is_root() {
        return;
    }
    let (mount, held) = with_unstorable();
    assert_eq!(errno(held[0].sync_all()), Errno::IO);
    assert_eq!(errno(File::open(&mount.mnt).unwrap().sync_all()), Errno::IO);
    // While it is mounted the victim works on.
    as_user(&mount.mnt, VICTIM, || open(Path::new("victim/file")).sync_all().unwrap());
    drop(held);
    ended(&mount, &umount(&mount, &[]));
    // The next mount is as any.
    is_done(&mount.mount(OPTIONS));
    is_pattern(&mount.at("victim/file"), 3 * MIB + 5);
    mount.unmount();
}

/// A signal ends it as well, with the names in the log.
#[test]
fn what_a_user_has_spoilt_of_his_own_holds_up_no_signal() {
    if !is_root() {
        return;
    }
    let (mount, held) = with_unstorable();
    drop(held);
    mount.signal(Signal::SIGTERM);
    mount.wait_gone();
    assert!(!mount.is_mounted());
    is_pattern(&mount.backing("victim/file"), 3 * MIB + 5);
    let log = mount.log();
    let line = log.lines().rfind(|line| line.contains("not on stable storage")).unwrap();
    assert!(line.contains("attacker/2: ") && !line.contains("victim"), "{line}");
}

/// What is root's own is not given up, unless root says so; and then it is named.
#[test]
fn an_unmount_waits_for_what_is_its_askers_own() {
    if !is_root() {
        return;
    }
    let (mount, held) = with_unstorable();
    drop(held);
    spoil(&mount, "own");
    drop(write_part(&mount.at("own")));
    let output = umount(&mount, &[]);
    assert_eq!(output.status.code(), Some(1));
    let said = complaint(&output);
    assert!(said.contains("are not on stable storage); still mounted"), "{said}");
    assert!(mount.is_mounted());
    // Written as a whole, it can be stored.
    write_pattern(&open(&mount.at("own")), 8192, 8192);
    ended(&mount, &umount(&mount, &[]));
    is_pattern(&mount.backing("own"), 8192);

    let (mount, held) = with_unstorable();
    drop(held);
    spoil(&mount, "own");
    drop(write_part(&mount.at("own")));
    let output = umount(&mount, &["--force"]);
    assert!(complaint(&output).contains("/own: "), "{output:?}");
    ended(&mount, &output);
}
