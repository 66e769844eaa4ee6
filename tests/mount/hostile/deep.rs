//! Folders that are deeper than any path reaches, and than there are descriptors: everybody's commands go on, and find what
//! is there.

use std::fs::{self, File, Permissions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::fs::{AtFlags, Dir, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;
use serde_json::Value;

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{
    MIB, User, as_user, is_pattern, is_root, same, sync_all, user, wait_until, write_pattern,
};

const ATTACKER: User = user(1234);
const VICTIM: User = user(1235);

/// "4,000 nested folders with long names".
const DEPTH: usize = 4000;

/// Levels between two that have a partition beside the folder.
const EVERY: usize = 500;

/// Bytes of each of these partitions.
const BYTES: usize = 5000;

fn name() -> String {
    "n".repeat(255)
}

fn folder(above: impl AsFd, name: &str) -> OwnedFd {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(above, name, flags, Mode::empty()).unwrap()
}

/// Makes the folders in the working directory, with partitions in some of them and in the deepest; how many comes back.
fn dig(depth: usize) -> usize {
    let (name, mut at) = (name(), File::open(".").unwrap().into());
    let mut count = 0;
    for level in 1..=depth {
        mkdirat(&at, &*name, Mode::RWXU).unwrap();
        at = folder(&at, &name);
        if level % EVERY == 0 || level == depth {
            let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
            let file = File::from(openat(&at, "partition", flags, Mode::RWXU).unwrap());
            file.write_all_at(&vec![7; BYTES], 0).unwrap();
            count += 1;
        }
    }
    count
}

/// The deepest folder below the working directory.
fn deepest(depth: usize) -> OwnedFd {
    let name = name();
    (0..depth).fold(File::open(".").unwrap().into(), |at: OwnedFd, _| folder(&at, &name))
}

/// Removes the folders level by level: what is deeper is moved up first.
fn fill_up(top: &Path) {
    let (top, name) = (File::open(top).unwrap(), name());
    loop {
        let first = match openat(&top, &*name, OFlags::DIRECTORY, Mode::empty()) {
            Ok(first) => first,
            Err(Errno::NOENT) => return,
            Err(error) => panic!("{error}"),
        };
        for entry in Dir::read_from(&first).unwrap() {
            let entry = entry.unwrap();
            let found = entry.file_name().to_str().unwrap();
            if found == name {
                renameat(&first, &*name, &top, "next").unwrap();
            } else if found == "beside" {
                unlinkat(&first, found, AtFlags::REMOVEDIR).unwrap();
            } else if !found.starts_with('.') {
                unlinkat(&first, found, AtFlags::empty()).unwrap();
            }
        }
        unlinkat(&top, &*name, AtFlags::REMOVEDIR).unwrap();
        match renameat(&top, "next", &top, &*name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

/// A folder of the swap folder whose depths are filled up at the end, whatever happens: nothing else could remove them.
struct Deep(PathBuf);

impl Drop for Deep {
    fn drop(&mut self) {
        fill_up(&self.0);
    }
}

fn run(arguments: &[&str], path: &Path) -> std::process::Output {
    let start = Instant::now();
    let output = swapfs(&[arguments, &[path.to_str().unwrap()]].concat());
    assert!(start.elapsed() < Duration::from_secs(30), "{arguments:?}: {:?}", start.elapsed());
    output
}

/// The rows of `swapfs status --json`, and those of them whose paths are shortened.
fn rows(path: &Path) -> (Vec<Value>, usize) {
    let output = run(&["status", "--json"], path);
    is_done(&output);
    let rows: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let is_deep = |row: &&Value| row["path"].as_str().unwrap().contains("bytes left out]");
    let deep = rows.iter().filter(is_deep).count();
    (rows, deep)
}

/// A mount for both users, each with a folder; the attacker's is dug up.
fn dug(depth: usize) -> (Mount, Deep, usize) {
    let work = Duration::from_secs(100);
    let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mount = Mount::lasting(work, place, "pool_size=16m,allow_other,checksum=crc32c");
    fs::set_permissions(mount.scratch.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&mount.mnt, Permissions::from_mode(0o1777)).unwrap();
    for (user, name) in [(ATTACKER, "attacker"), (VICTIM, "victim")] {
        as_user(&mount.mnt, user, || fs::create_dir(name).unwrap());
    }
    let deep = Deep(mount.backing("attacker"));
    let count = as_user(&mount.at("attacker"), ATTACKER, || dig(depth));
    as_user(&mount.mnt, VICTIM, || write_pattern(&open(Path::new("victim/file")), MIB, 1 << 20));
    (mount, deep, count)
}

/// "Break root's `status` and `release` of the whole mount": they concern the partitions in the deepest folder and everybody
/// else's, and so do requests on folders, `umount`, a mount with recovery and `fsck`.
#[test]
fn folders_deeper_than_any_path_break_nobodys_commands() {
    if !is_root() {
        return;
    }
    let (mount, deep, count) = dug(DEPTH);
    let (found, shortened) = rows(&mount.mnt);
    assert_eq!((found.len(), shortened), (count + 1, count));
    let output = run(&["status"], &mount.mnt);
    is_done(&output);
    assert!(output.stdout.len() < 100_000, "{} bytes", output.stdout.len());

    let resident =
        |rows: &[Value]| rows.iter().map(|row| row["resident"].as_u64().unwrap()).sum::<u64>();
    let all = MIB + (count * BYTES) as u64;
    assert_eq!(resident(&found), all);
    is_done(&run(&["release", "--wait"], &mount.at("attacker")));
    is_done(&run(&["swap-in", "--wait"], &mount.mnt));
    assert_eq!(resident(&rows(&mount.mnt).0), all);
    let reports = run(&["release", "--wait", "--json"], &mount.mnt);
    let reports: Value = serde_json::from_slice(&reports.stdout).unwrap();
    assert_eq!(reports[0]["size"].as_u64(), Some(all));
    assert_eq!(resident(&rows(&mount.mnt).0), 0);
    // The attacker himself as well.
    let theirs =
        as_user(&mount.at("attacker"), ATTACKER, || run(&["release", "--wait"], Path::new(".")));
    is_done(&theirs);

    recovers(&mount, count);
    drop(deep);
    assert_eq!(fs::read_dir(mount.backing("attacker")).unwrap().count(), 0);
}

/// The daemon is killed while the deepest partition has changed; the next mount looks there, and so does fsck.
fn recovers(mount: &Mount, count: usize) {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    let write = || {
        let below = deepest(DEPTH);
        let file = File::from(openat(&below, "partition", flags, Mode::empty()).unwrap());
        file.write_all_at(&vec![9; BYTES], 0).unwrap();
        file
    };
    let held = as_user(&mount.at("attacker"), ATTACKER, write);
    sync_all(&mount.mnt);
    // Its record says that it is being written until it is closed.
    held.write_all_at(&[9], 0).unwrap();
    sync_all(&mount.mnt);
    mount.signal(Signal::SIGKILL);
    mount.wait_gone();
    drop(held);
    is_done(&swapfs(&[
        "mount",
        mount.swap.to_str().unwrap(),
        mount.mnt.to_str().unwrap(),
        "--replace",
        "-o",
        "pool_size=16m,allow_other,checksum=crc32c",
    ]));
    let read = || {
        let file = File::from(openat(deepest(DEPTH), "partition", flags, Mode::empty()).unwrap());
        let mut bytes = vec![0; BYTES];
        file.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    };
    same(&as_user(&mount.at("attacker"), ATTACKER, read), &vec![9; BYTES]);
    is_pattern(&mount.at("victim/file"), MIB);
    mount.unmount();
    let log = mount.log();
    assert!(!log.contains("left out") && log.len() < 100_000, "{} bytes", log.len());
    let output = run(&["fsck", "--json"], &mount.swap);
    is_done(&output);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["checked"].as_u64(), Some(count as u64 + 1), "{report}");
    assert_eq!((report["gone"].as_u64(), report["left_out"].as_u64()), (Some(0), Some(0)));
}

/// Ends the attack, also when the test fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The middle of the way down is moved to and fro while root's commands go through it: they end, and find all that is the
/// other user's.
#[test]
fn folders_that_move_while_they_are_gone_through_hide_nothing_of_others() {
    if !is_root() {
        return;
    }
    let depth = DEPTH / 3;
    let (mount, _deep, count) = dug(depth);
    let is_over = AtomicBool::new(false);
    let moves = std::thread::scope(|scope| {
        let over = Over(&is_over);
        let attack = scope.spawn(|| {
            as_user(&mount.at("attacker"), ATTACKER, || {
                let (name, other) = (name(), "away".to_owned());
                let middle = deepest(depth / 2);
                let top = File::open(".").unwrap();
                let mut moves = 0;
                while !is_over.load(Ordering::Relaxed) {
                    renameat(&middle, &*name, &top, &*other).unwrap();
                    std::thread::sleep(Duration::from_millis(3));
                    renameat(&top, &*other, &middle, &*name).unwrap();
                    std::thread::sleep(Duration::from_millis(3));
                    moves += 1;
                }
                moves
            })
        });
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(2) {
            let output = run(&["status", "--json"], &mount.mnt);
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            assert!(text.contains("victim/file"), "{output:?}");
            let said = complaint(&output);
            assert!(output.status.success() || said.contains("moved while it was read"), "{said}");
            is_done(&run(&["release"], &mount.mnt));
            is_done(&run(&["release", "--wait"], &mount.at("victim")));
        }
        drop(over);
        attack.join().unwrap()
    });
    assert!(moves > 10, "{moves}");
    wait_until("all to be there again", || rows(&mount.mnt).0.len() == count + 1);
    mount.unmount();
    changed(&mount, depth, count);
}

/// What others have changed in the deepest partition meanwhile is noticed there.
fn changed(mount: &Mount, depth: usize, count: usize) {
    as_user(&mount.backing("attacker"), ATTACKER, || {
        let below = deepest(depth);
        let file = openat(&below, "partition", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
        File::from(file.unwrap()).write_all_at(&[8], 100).unwrap();
    });
    let output = run(&["fsck", "--json"], &mount.swap);
    is_done(&output);
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let told = |key: &str| report[key].as_u64();
    assert_eq!((told("checked"), told("changed")), (Some(count as u64), Some(1)), "{report}");
    assert_eq!((told("gone"), told("left_out")), (Some(0), Some(0)), "{report}");
}
