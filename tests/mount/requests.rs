//! `user.swap.request`: what each request does, and to whom it listens.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;

use crate::bytes::open;
use crate::errors::SmallDisk;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{
    KIB, MIB, Map, as_user, errno, is_pattern, is_root, make_fifo, occupied, pattern, same,
    set_xattr, swap_xattr, sync_all, user, wait_until, write_pattern,
};

const OPTIONS: &str = "pool_size=16m,open_swap_in=none";

pub(crate) fn request(path: &Path, value: &str) -> Result<(), Errno> {
    set_xattr(path, "user.swap.request", value.as_bytes())
}

#[track_caller]
pub(crate) fn ask(path: &Path, value: &str) {
    request(path, value).unwrap_or_else(|errno| panic!("{value}: {errno}"));
}

/// Waits as users do, and returns the status at the end.
pub(crate) fn settled(path: &Path) -> String {
    let mut status = swap_xattr(path, "wait");
    wait_until("nothing in flight", || {
        status = swap_xattr(path, "wait");
        status != "inflight"
    });
    status
}

/// Asks and waits.
#[track_caller]
fn ends(path: &Path, value: &str, status: &str) {
    ask(path, value);
    assert_eq!(settled(path), status, "after {value}");
}

fn count(mount: &Mount, name: &str) -> u64 {
    swap_xattr(&mount.mnt, &format!("pool.{name}")).parse().unwrap()
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

/// A partition with the pattern, all of it written out.
fn filled(mount: &Mount, name: &str, length: u64) -> std::path::PathBuf {
    let path = mount.at(name);
    let file = open(&path);
    write_pattern(&file, length, 1 << 20);
    file.sync_all().unwrap();
    path
}

/// The swap folder has the pattern; while somebody has the file open, padded to the alignment.
#[track_caller]
pub(crate) fn is_backed(mount: &Mount, name: &str, length: u64) {
    let bytes = fs::read(mount.backing(name)).unwrap();
    assert!(bytes.len() as u64 <= length.next_multiple_of(4096));
    same(&bytes[..length as usize], &pattern(0, length as usize));
}

/// "`swap_in`: read all blocks into the pool; they stay until `release`": the status goes over
/// `inflight`, and other readers push out each other, not these.
#[test]
fn what_was_swapped_in_stays() {
    let mount = Mount::new(OPTIONS);
    let length = 9 * MIB + 5;
    let (path, big) = (filled(&mount, "file", length), filled(&mount, "big", 40 * MIB));
    // A fast disk may have done it before the first look.
    let seen = (0..50).any(|_| {
        ends(&path, "release", "not_available");
        ask(&path, "swap_in");
        swap_xattr(&path, "status") == "inflight"
    });
    assert!(seen, "never in flight");
    assert_eq!(settled(&path), "available");
    is_pattern(&big, 40 * MIB);
    assert_eq!(swap_xattr(&path, "wait"), "available");
    assert_eq!(swap_xattr(&path, "resident"), length.to_string());
    is_pattern(&path, length);
    // Again, with nothing to do; then others get the room.
    ends(&path, "swap_in", "available");
    ends(&path, "release", "not_available");
    is_pattern(&big, 40 * MIB);
}

/// "or until nothing else is left to evict": what stays does not keep others from working.
#[test]
fn a_pool_full_of_swapped_in_partitions_serves_others() {
    let mount = Mount::new(OPTIONS);
    let (first, second) = (filled(&mount, "1", 16 * MIB), filled(&mount, "2", 16 * MIB));
    ends(&first, "swap_in", "available");
    ends(&second, "swap_in", "available");
    filled(&mount, "other", 20 * MIB);
    for path in [&first, &second, &mount.at("other")] {
        is_pattern(path, fs::metadata(path).unwrap().len());
    }
}

/// "a swap-in larger than the pool less its reservations with ENOBUFS; neither changes anything".
#[test]
fn a_swap_in_that_cannot_fit_is_refused() {
    let mount = Mount::new(OPTIONS);
    fs::create_dir(mount.at("dir")).unwrap();
    let (big, fits) = (filled(&mount, "big", 16 * MIB + 1), filled(&mount, "dir/fits", 9 * MIB));
    filled(&mount, "dir/more", 8 * MIB);
    ends(&mount.mnt, "release", "idle");
    assert_eq!(request(&big, "swap_in"), Err(Errno::NOBUFS));
    assert_eq!(request(&mount.at("dir"), "swap_in"), Err(Errno::NOBUFS));
    ask(&mount.mnt, "reserve_buffers 8");
    assert_eq!(request(&fits, "swap_in"), Err(Errno::NOBUFS));
    for path in [&big, &fits, &mount.at("dir/more")] {
        assert_eq!(swap_xattr(path, "status"), "not_available");
        assert_eq!(swap_xattr(path, "resident"), "0");
    }
    ask(&mount.mnt, "release_reserved_buffers");
    ends(&fits, "swap_in", "available");
}

/// "`swap_out`: write all dirty blocks"; they stay in the pool.
#[test]
fn swapped_out_bytes_are_in_the_swap_folder_and_in_the_pool() {
    let mount = Mount::new(OPTIONS);
    let (path, length) = (mount.at("file"), 3 * MIB + 1000);
    let file = open(&path);
    write_pattern(&file, length, 1 << 20);
    assert_ne!(swap_xattr(&path, "dirty"), "0");
    ends(&path, "swap_out", "available");
    assert_eq!(swap_xattr(&path, "dirty"), "0");
    assert_eq!(swap_xattr(&path, "resident"), length.to_string());
    is_backed(&mount, "file", length);
    // Through another handle, and with nothing dirty.
    rustix::fs::fsetxattr(
        File::open(&path).unwrap(),
        "user.swap.request",
        b"swap_out",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    assert_eq!(settled(&path), "available");
    drop(file);
    let size = || fs::metadata(mount.backing("file")).unwrap().len();
    wait_until("the size", || size() == length);
}

/// "`release`: write what is dirty, then drop the buffers: ends `not_available`".
#[test]
fn released_bytes_are_in_the_swap_folder_alone() {
    let mount = Mount::new(OPTIONS);
    let (path, length) = (mount.at("file"), 5 * MIB + 123);
    let file = open(&path);
    write_pattern(&file, length, 300_000);
    ends(&path, "release", "not_available");
    for name in ["resident", "dirty", "inflight"] {
        assert_eq!(swap_xattr(&path, name), "0", "{name}");
    }
    assert_eq!(count(&mount, "available"), 16);
    is_backed(&mount, "file", length);
    is_pattern(&path, length);
    // A partition that nobody has open, and one without bytes.
    drop(file);
    ends(&path, "release", "not_available");
    drop(open(&mount.at("empty")));
    ends(&mount.at("empty"), "release", "available");
}

/// "`discard`: … the partition reads as in the swap folder": by calls, mappings and stat.
#[test]
fn discarded_bytes_were_never_there() {
    let mount = Mount::new(OPTIONS);
    let length = 2 * MIB + 777;
    let path = filled(&mount, "file", length);
    let file = open(&path);
    let map = Map::new(&file, length as usize, true, false);
    file.write_all_at(b"unwritten", MIB + 5).unwrap();
    file.write_all_at(b"beyond", length + 4000).unwrap();
    same(&map.read(MIB as usize + 5, 9), b"unwritten");
    assert_eq!(file.metadata().unwrap().len(), length + 4006);
    ask(&path, "discard");
    wait_until("the old size", || file.metadata().unwrap().len() == length);
    wait_until("the old bytes", || map.read(MIB as usize + 5, 9) == pattern(MIB + 5, 9));
    is_pattern(&path, length);
    assert_eq!(swap_xattr(&path, "dirty"), "0");
    // The partition goes on as any other.
    file.write_all_at(&pattern(length, 3000), length).unwrap();
    file.sync_all().unwrap();
    is_pattern(&mount.backing("file"), length + 3000);
    // One that never was in the swap folder.
    let fresh = open(&mount.at("fresh"));
    fresh.write_all_at(&pattern(0, 500), 0).unwrap();
    ask(&mount.at("fresh"), "discard");
    wait_until("an empty file", || fresh.metadata().unwrap().len() == 0);
    assert_eq!(fs::read(mount.at("fresh")).unwrap(), b"");
    fresh.write_all_at(&pattern(0, 40), 0).unwrap();
    fresh.sync_all().unwrap();
    is_pattern(&mount.backing("fresh"), 40);
}

/// Bytes of the last page that were never written, and are discarded, leave a file that is settled once, and an unmount
/// that ends.
#[test]
fn a_discarded_end_is_settled_once() {
    for length in [70_062, 100, 4096 * 5 + 1, MIB + 4095] {
        let mount = Mount::new(OPTIONS);
        let file = open(&mount.at("file"));
        file.set_len(length).unwrap();
        file.sync_all().unwrap();
        file.write_all_at(b"unwritten", length - 20).unwrap();
        ask(&mount.at("file"), "discard");
        drop(file);
        wait_until("a clean file", || swap_xattr(&mount.at("file"), "dirty") == "0");
        std::thread::sleep(std::time::Duration::from_millis(300));
        let before = mount.processor_ticks();
        std::thread::sleep(std::time::Duration::from_millis(500));
        let ticks = mount.processor_ticks() - before;
        assert!(ticks < 20, "{length}: {ticks} ticks of 10 ms in half a second");
        mount.remount(OPTIONS);
        assert_eq!(fs::read(mount.at("file")).unwrap(), vec![0; length as usize]);
    }
}

/// "`reserve SIZE`: allocate SIZE bytes in the swap folder": not bytes of the file, and for good.
#[test]
fn reserved_space_stays_reserved() {
    let mount = Mount::new(OPTIONS);
    let (path, backing) = (mount.at("file"), mount.backing("file"));
    let file = open(&path);
    file.write_all_at(b"five!", 0).unwrap();
    for (value, bytes) in [
        ("reserve 3000000", 3_000_000),
        ("reserve 4m", 4 * MIB),
        ("reserve 5MiB", 5 * MIB),
        ("reserve 64K", 5 * MIB),
    ] {
        ask(&path, value);
        assert!(occupied(&backing) >= bytes, "{value}");
        assert!(occupied(&path) >= bytes, "{value}");
        assert_eq!(file.metadata().unwrap().len(), 5);
    }
    file.sync_all().unwrap();
    drop(file);
    ends(&path, "release", "not_available");
    assert_eq!(fs::read(&path).unwrap(), b"five!");
    mount.remount(OPTIONS);
    assert!(occupied(&backing) >= 5 * MIB, "{}", occupied(&backing));
    assert_eq!(fs::metadata(&backing).unwrap().len(), 5);
    fs::write(&path, "x").unwrap();
    wait_until("the space", || occupied(&backing) < 64 * KIB);
    for value in ["reserve", "reserve 0", "reserve -1", "reserve 1 2", "reserve x", "reserve "] {
        assert_eq!(request(&path, value), Err(Errno::INVAL), "{value}");
    }
}

/// A disk that has not as much refuses, and keeps what it has.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn space_that_is_not_there_cannot_be_reserved() {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, OPTIONS);
    let path = filled(&mount, "file", MIB);
    assert_eq!(request(&path, "reserve 200m"), Err(Errno::NOSPC));
    ask(&path, "reserve 20m");
    assert_eq!(request(&path, "reserve 200m"), Err(Errno::NOSPC));
    is_pattern(&path, MIB);
    filled(&mount, "other", 10 * MIB);
    drop(mount);
    drop(disk);
}

/// "on a directory, `swap_in`, `swap_out`, `release` mean all below".
#[test]
fn a_request_on_a_folder_means_all_below() {
    let mount = Mount::new(OPTIONS);
    fs::create_dir_all(mount.at("dir/deep/deeper")).unwrap();
    make_fifo(&mount.at("dir/fifo"));
    std::os::unix::fs::symlink("../other", mount.at("dir/link")).unwrap();
    let names = ["dir/a", "dir/deep/b", "dir/deep/deeper/c"];
    let below: Vec<_> = names.iter().map(|name| filled(&mount, name, MIB + 1)).collect();
    let other = filled(&mount, "other", MIB);
    let all = |status: &str| below.iter().all(|path| settled(path) == status);
    ask(&mount.at("dir"), "release");
    wait_until("the release", || all("not_available"));
    assert_eq!(settled(&other), "available");
    ends(&other, "release", "not_available");
    ask(&mount.at("dir"), "swap_in");
    wait_until("the swap-in", || all("available"));
    assert_eq!(settled(&other), "not_available");
    for path in &below {
        open(path).write_all_at(b"changed", 3).unwrap();
    }
    ask(&mount.at("dir"), "swap_out");
    wait_until("the swap-out", || below.iter().all(|path| swap_xattr(path, "dirty") == "0"));
    for name in names {
        assert_eq!(fs::read(mount.backing(name)).unwrap()[3..10], *b"changed");
    }
    for value in ["discard", "reserve 1m", "reserve_buffers 1", "synchronize_writes", ""] {
        assert_eq!(request(&mount.at("dir"), value), Err(Errno::INVAL), "{value}");
    }
    assert!(request(&mount.at("dir/fifo"), "release").is_err());
}

/// How deep folders are nested is up to whoever makes them.
#[test]
fn a_request_goes_as_deep_as_there_are_folders() {
    use rustix::fs::{Mode, OFlags, mkdirat, openat};
    let mount = Mount::new(OPTIONS);
    fs::create_dir(mount.at("dir")).unwrap();
    let mut folder = File::open(mount.at("dir")).unwrap();
    for _ in 0..6000 {
        mkdirat(&folder, "d", Mode::RWXU).unwrap();
        folder = openat(&folder, "d", OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .unwrap()
            .into();
    }
    let flags = OFlags::CREATE | OFlags::RDWR | OFlags::CLOEXEC;
    let leaf = File::from(openat(&folder, "leaf", flags, Mode::RWXU).unwrap());
    write_pattern(&leaf, 5000, 5000);
    let resident = || {
        let mut value = [0_u8; 32];
        let length = rustix::fs::fgetxattr(&leaf, "user.swap.resident", &mut value).unwrap();
        String::from_utf8(value[..length].to_vec()).unwrap()
    };
    assert_eq!(resident(), "5000");
    ask(&mount.at("dir"), "release");
    wait_until("the release", || resident() == "0");
    ask(&mount.at("dir"), "swap_in");
    wait_until("the swap-in", || resident() == "5000");
    drop((leaf, folder));
    // The standard library would go down there on its stack.
    let removed = std::process::Command::new("rm").arg("-rf").arg(mount.backing("dir")).status();
    assert!(removed.unwrap().success());
}

/// "it needs write permission": below a folder, too, and on a handle opened for reading.
#[test]
fn what_others_may_not_write_is_left_alone() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=16m,open_swap_in=none,allow_other");
    fs::create_dir_all(mount.at("dir/hidden")).unwrap();
    let mode = |name: &str, mode| {
        let path = filled(&mount, name, MIB);
        chmod(&path, mode);
        path
    };
    let theirs = [mode("dir/a", 0o666), mode("dir/b", 0o602)];
    let not_theirs = [mode("dir/closed", 0o644), mode("dir/hidden/file", 0o666)];
    chmod(&mount.at("dir/hidden"), 0o700);
    chmod(&mount.at("dir"), 0o777);
    chmod(&mount.mnt, 0o777);
    as_user(&mount.mnt, user(1234), || {
        ask(Path::new("dir"), "release");
        assert_eq!(request(Path::new("dir/closed"), "release"), Err(Errno::ACCESS));
        let file = File::open("dir/closed").unwrap();
        let flags = rustix::fs::XattrFlags::empty();
        let refused = rustix::fs::fsetxattr(&file, "user.swap.request", b"release", flags);
        assert_eq!(refused, Err(Errno::ACCESS));
        for value in ["reserve_buffers 1", "release_reserved_buffers"] {
            assert_eq!(request(Path::new("."), value), Err(Errno::PERM), "{value}");
        }
        ask(Path::new("."), "synchronize_writes");
        ask(Path::new("."), "release");
    });
    wait_until("their release", || theirs.iter().all(|path| settled(path) == "not_available"));
    std::thread::sleep(std::time::Duration::from_millis(300));
    for path in &not_theirs {
        assert_eq!(settled(path), "available", "{}", path.display());
    }
    assert_eq!(count(&mount, "reserved"), 0);
}

/// "On the mount's root directory": everything at once, and buffers for a named use.
#[test]
fn the_root_takes_requests_for_all() {
    let mount = Mount::new(OPTIONS);
    let files: Vec<File> = (0..3).map(|n| open(&mount.at(&format!("{n}")))).collect();
    files.iter().for_each(|file| write_pattern(file, 700_000, 100_000));
    ask(&mount.mnt, "synchronize_writes");
    wait_until("all written", || count(&mount, "dirty") == 0);
    (0..3).for_each(|n| is_backed(&mount, &format!("{n}"), 700_000));
    assert_eq!(swap_xattr(&mount.at("1"), "status"), "available");
    ask(&mount.mnt, "release");
    wait_until("all released", || {
        (0..3).all(|n| swap_xattr(&mount.at(&format!("{n}")), "status") == "not_available")
    });
    for value in [
        "discard",
        "reserve 1m",
        "reserve_buffers",
        "reserve_buffers -1",
        "reserve_buffers 1.5",
        "release_reserved_buffers 3",
        "swapin",
    ] {
        assert_eq!(request(&mount.mnt, value), Err(Errno::INVAL), "{value}");
    }
}

/// "With every one reserved, a few buffers more … keep reads and writes moving."
#[test]
fn a_wholly_reserved_pool_works() {
    let mount = Mount::new(OPTIONS);
    let file = filled(&mount, "file", 20 * MIB);
    ask(&mount.mnt, "reserve_buffers 6");
    assert_eq!(count(&mount, "reserved"), 6);
    assert_eq!(count(&mount, "available"), 10);
    for value in ["reserve_buffers 11", "reserve_buffers 18446744073709551615"] {
        assert_eq!(request(&mount.mnt, value), Err(Errno::NOBUFS));
    }
    ask(&mount.mnt, "reserve_buffers 10");
    assert_eq!(count(&mount, "reserved"), 16);
    assert_eq!(count(&mount, "available"), 0);
    assert_eq!(request(&mount.mnt, "reserve_buffers 1"), Err(Errno::NOBUFS));
    is_pattern(&file, 20 * MIB);
    std::thread::scope(|scope| {
        for number in 0..6 {
            let mount = &mount;
            scope.spawn(move || {
                let path = filled(mount, &format!("{number}"), 5 * MIB + number);
                is_pattern(&path, 5 * MIB + number);
            });
        }
    });
    assert_eq!(count(&mount, "buffers"), 16);
    ask(&mount.mnt, "release_reserved_buffers");
    assert_eq!(count(&mount, "reserved"), 0);
    wait_until("all of them", || count(&mount, "available") == 16);
    ends(&mount.at("0"), "swap_in", "available");
}

/// "An unknown value fails with EINVAL" and changes nothing.
#[test]
fn unknown_requests_are_refused() {
    let mount = Mount::new(OPTIONS);
    let path = filled(&mount, "file", MIB);
    let long = "swap_in".repeat(65_536 / 7);
    for value in [
        "",
        "nonsense",
        "SWAP_IN",
        " swap_in",
        "swap_in ",
        "release now",
        "\0swap_in",
        "swap\0_in",
        "synchronize_writes",
        "reserve_buffers 1",
        &long,
    ] {
        assert_eq!(request(&path, value), Err(Errno::INVAL), "{:?}", value.get(..30));
    }
    let set = |value: &[u8]| set_xattr(&path, "user.swap.request", value);
    assert_eq!(set(&[b'x'; 65_536]), Err(Errno::INVAL));
    assert_eq!(set(&[0xff, 0xfe]), Err(Errno::INVAL));
    assert_eq!(set(b"release\xff"), Err(Errno::INVAL));
    assert_eq!(set(&[0; 100]), Err(Errno::INVAL));
    assert_eq!(swap_xattr(&path, "wait"), "available");
    // C's strings may come with their end.
    ends(&path, "release\0", "not_available");
    ends(&path, "swap_in\0\0", "available");
    assert_eq!(errno(fs::metadata(mount.backing("nonsense"))), Errno::NOENT);
}

/// A mount that is only for reading takes none.
#[test]
fn a_read_only_mount_takes_no_requests() {
    let mount = Mount::new(OPTIONS);
    let path = filled(&mount, "file", MIB);
    mount.remount("ro,pool_size=16m");
    assert_eq!(request(&path, "swap_in"), Err(Errno::ROFS));
    assert_eq!(request(&mount.mnt, "release"), Err(Errno::ROFS));
}

/// A discard waits for transfers under way; the file may lose its name meanwhile, and all that is known of it.
#[test]
fn files_that_go_out_are_discarded_and_removed_at_once() {
    let mount = Mount::new("pool_size=16m");
    let lengths = [20_000, 4096, 100_001, 2 * MIB, 1];
    for round in 0..200 {
        let path = mount.at(&format!("file{}", round % 3));
        let file = open(&path);
        write_pattern(&file, lengths[round % lengths.len()], 1 << 20);
        drop(file);
        for request in ["swap_out", "discard", "release", "discard"] {
            ask(&path, request);
        }
        fs::remove_file(&path).unwrap();
    }
    let path = mount.at("after");
    write_pattern(&open(&path), MIB, 1 << 20);
    sync_all(&mount.mnt);
    is_pattern(&mount.backing("after"), MIB);
}

/// `swap-in --from-file LIST`: paths one a line, from a file or standard input, any bytes but line ends in them.
#[test]
fn a_list_of_partitions_is_swapped_in() {
    let mount = Mount::new("pool_size=32m,open_swap_in=none");
    let names: [&OsStr; 4] =
        ["a".as_ref(), " b*[".as_ref(), OsStr::from_bytes(b"\xff"), "c".as_ref()];
    let paths: Vec<PathBuf> = names.iter().map(|name| mount.mnt.join(name)).collect();
    for path in &paths {
        write_pattern(&open(path), MIB + 5, 1 << 20);
    }
    sync_all(&mount.mnt);
    let (list, mnt) = (mount.scratch.path().join("list"), mount.mnt.to_str().unwrap());
    let text: Vec<u8> = paths[..3]
        .iter()
        .flat_map(|path| [path.as_os_str().as_bytes(), b"\n\n"].concat())
        .collect();
    std::fs::write(&list, &text).unwrap();
    let list = list.to_str().unwrap();
    let are = |status: &str| paths[..3].iter().all(|path| settled(path) == status);
    for from in [list, "-"] {
        is_done(&swapfs(&["release", "--wait", mnt]));
        assert!(are("not_available"));
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_swapfs"));
        command.args(["swap-in", "--wait", "--from-file", from]);
        command.stdin(File::open(list).unwrap());
        is_done(&command.output().unwrap());
        assert!(are("available"), "{from}");
        assert_eq!(settled(&paths[3]), "not_available", "it is not in the list");
    }
    is_done(&swapfs(&["release", "--wait", "--from-file", list, paths[3].to_str().unwrap()]));
    assert!(are("not_available"));
    for (text, line) in
        [("", "the list is empty; give one path a line"), ("\n\n", "the list is empty")]
    {
        std::fs::write(list, text).unwrap();
        let output = swapfs(&["swap-in", "--from-file", list]);
        assert_eq!(output.status.code(), Some(1));
        assert!(complaint(&output).contains(line), "{output:?}");
    }
    let output = swapfs(&["swap-in", "--from-file", "/nonexistent/list"]);
    assert_eq!(complaint(&output), "swapfs: /nonexistent/list: No such file or directory");
}
