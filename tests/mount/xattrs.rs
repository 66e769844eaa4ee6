//! `user.swap.*`, and the attributes of others.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, removexattr, setxattr};
use rustix::io::Errno;

use crate::bytes::open;
use crate::place::Mount;
use crate::support::{
    MIB, make_fifo, pattern, set_xattr, swap_xattr, wait_until, write_pattern, xattr, xattr_names,
};

/// Names on a partition without a transfer error, in the order in which they are listed.
const NAMES: [&str; 9] = [
    "status",
    "size",
    "aligned_size",
    "resident",
    "dirty",
    "inflight",
    "swappable",
    "path",
    "direct",
];

fn full(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| format!("user.swap.{name}")).collect()
}

/// The table of section 3: every name and its value on a partition that is resident.
#[test]
fn a_partition_tells_where_it_is() {
    let mount = Mount::new("pool_size=16m,list_xattr");
    let path = mount.at("file");
    let length = 3 * MIB + 17;
    let file = open(&path);
    write_pattern(&file, length, 1 << 20);
    file.sync_all().unwrap();
    let aligned: u64 = swap_xattr(&path, "aligned_size").parse().unwrap();
    assert!([512, 4096].iter().any(|unit| aligned == length.next_multiple_of(*unit)), "{aligned}");
    let length = length.to_string();
    let backing = mount.backing("file");
    let expected = [
        ("status", "available"),
        ("size", &length),
        ("resident", &length),
        ("dirty", "0"),
        ("inflight", "0"),
        ("swappable", "1"),
        ("path", backing.to_str().unwrap()),
        ("direct", "1"),
    ];
    for (name, value) in expected {
        assert_eq!(swap_xattr(&path, name), value, "{name}");
    }
    assert_eq!(xattr(&path, "user.swap.error"), Err(Errno::NODATA));
    assert_eq!(xattr(&path, "user.swap.nonsense"), Err(Errno::NODATA));
    assert_eq!(xattr_names(&path), full(&NAMES));
    let mut short = [0; 3];
    let refused = rustix::fs::getxattr(&path, "user.swap.status", short.as_mut_slice());
    assert_eq!(refused, Err(Errno::RANGE));
}

/// "`dirty`: resident and newer than the swap folder"; small ones are not swappable.
#[test]
fn fresh_bytes_are_dirty_until_they_are_written() {
    let mount = Mount::new("pool_size=16m");
    let path = mount.at("small");
    let file = open(&path);
    file.write_all_at(&pattern(0, 1000), 0).unwrap();
    assert_eq!(swap_xattr(&path, "dirty"), "1000");
    assert_eq!(swap_xattr(&path, "resident"), "1000");
    assert_eq!(swap_xattr(&path, "status"), "available");
    assert_eq!(swap_xattr(&path, "swappable"), "0");
    file.sync_all().unwrap();
    assert_eq!(swap_xattr(&path, "dirty"), "0");
    assert_eq!(swap_xattr(&path, "resident"), "1000");
}

/// "`available`: all bytes resident …; `not_available`: else".
#[test]
fn a_partition_is_available_once_it_was_read() {
    let options = "pool_size=16m,open_swap_in=none";
    let mount = Mount::new(options);
    let (path, big, empty) = (mount.at("file"), mount.at("big"), mount.at("empty"));
    write_pattern(&open(&path), 5 * MIB + 1, 1 << 20);
    write_pattern(&open(&big), 40 * MIB, 1 << 20);
    drop(open(&empty));
    mount.remount(options);
    assert_eq!(swap_xattr(&path, "status"), "not_available");
    assert_eq!(swap_xattr(&path, "resident"), "0");
    assert_eq!(swap_xattr(&empty, "status"), "available");
    assert_eq!(swap_xattr(&path, "wait"), "not_available");
    fs::read(&path).unwrap();
    assert_eq!(swap_xattr(&path, "wait"), "available");
    assert_eq!(swap_xattr(&path, "resident"), (5 * MIB + 1).to_string());
    // Pushed out by another.
    fs::read(&big).unwrap();
    assert_eq!(swap_xattr(&path, "wait"), "not_available");
    assert_eq!(swap_xattr(&big, "wait"), "not_available");
    let resident: u64 = swap_xattr(&big, "resident").parse().unwrap();
    assert!(resident > 4 * MIB && resident <= 16 * MIB, "{resident}");
}

/// "Opening a partition for reading starts its swap-in", as `open_swap_in` says.
#[test]
fn opening_for_reading_starts_the_swap_in() {
    let options = "pool_size=32m,open_swap_in=all";
    let mount = Mount::new(options);
    let path = mount.at("file");
    write_pattern(&open(&path), 9 * MIB + 1, 1 << 20);
    mount.remount(options);
    let _file = File::open(&path).unwrap();
    wait_until("the swap-in", || swap_xattr(&path, "status") == "available");
    let options = "pool_size=32m,read_ahead=2m";
    drop(_file);
    mount.remount(options);
    let _file = File::open(&path).unwrap();
    wait_until("its beginning", || swap_xattr(&path, "resident") == (2 * MIB).to_string());
    assert_eq!(swap_xattr(&path, "wait"), "not_available");
    drop(_file);
}

/// Whoever opens for both may be about to write over everything: the swap-in starts with the first read, or soon.
#[test]
fn opening_for_both_starts_the_swap_in_unless_it_is_written_to() {
    let options = "pool_size=32m,open_swap_in=all";
    let mount = Mount::new(options);
    let path = mount.at("file");
    write_pattern(&open(&path), 9 * MIB + 1, 1 << 20);
    let both = || File::options().read(true).write(true).open(&path).unwrap();
    let available = || swap_xattr(&path, "status") == "available";

    mount.remount(options);
    let file = both();
    wait_until("the swap-in by itself", available);
    drop(file);

    mount.remount(options);
    let file = both();
    file.read_exact_at(&mut [0; 10], 5 * MIB).unwrap();
    wait_until("the swap-in after a read", available);
    drop(file);

    // What is released right after stays released.
    mount.remount(options);
    let file = both();
    set_xattr(&path, "user.swap.request", b"release").unwrap();
    wait_until("the release", || swap_xattr(&path, "wait") == "not_available");
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(swap_xattr(&path, "resident"), "0");
    drop(file);

    // On a machine that is busy the write may come too late, but not each time.
    let spared = (0..20).any(|_| {
        mount.remount(options);
        let file = both();
        file.write_all_at(&pattern(0, 1 << 20), 0).unwrap();
        file.sync_all().unwrap();
        std::thread::sleep(Duration::from_millis(200));
        swap_xattr(&path, "resident") == MIB.to_string()
    });
    assert!(spared, "it was swapped in each time");
}

/// Writes a large file until told to stop.
fn keep_writing(mount: &Mount, stop: &AtomicBool) {
    let file = open(&mount.at("big"));
    let bytes = pattern(0, 4 << 20);
    let mut number = 0;
    while !stop.load(Ordering::SeqCst) {
        file.write_all_at(&bytes, number % 50 * (4 << 20)).unwrap();
        number += 1;
    }
}

/// "`inflight`: at least one block under transfer or queued for it"; `user.swap.wait` answers "as soon
/// as nothing of the partition is in flight, or after one second".
#[test]
fn transfers_are_seen_and_waited_for() {
    let mount = Mount::new("pool_size=16m");
    let path = mount.at("big");
    drop(open(&path));
    drop(open(&mount.at("other")));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| keep_writing(&mount, &stop));
        wait_until("a transfer", || swap_xattr(&path, "status") == "inflight");
        wait_until("a transfer's bytes", || swap_xattr(&path, "inflight") != "0");
        wait_until("a dirty buffer", || swap_xattr(&mount.mnt, "pool.dirty") != "0");
        for (path, values) in [
            (&path, ["inflight", "available", "not_available"].as_slice()),
            (&mount.mnt, ["inflight", "idle"].as_slice()),
            (&mount.at("other"), ["available"].as_slice()),
        ] {
            let start = Instant::now();
            let answer = swap_xattr(path, "wait");
            assert!(values.contains(&answer.as_str()), "{answer}");
            assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
        }
        stop.store(true, Ordering::SeqCst);
    });
    crate::support::sync_all(&mount.mnt);
    let start = Instant::now();
    assert_ne!(swap_xattr(&path, "wait"), "inflight");
    assert_eq!(swap_xattr(&mount.mnt, "wait"), "idle");
    assert!(start.elapsed() < Duration::from_millis(900), "{:?}", start.elapsed());
}

/// "Reading on the root gives `user.swap.pool.buffers`, …".
#[test]
fn the_root_tells_about_the_pool() {
    let mount = Mount::new("pool_size=16m,block_size=64k,list_xattr");
    let names = ["buffers", "available", "reserved", "dirty", "inflight", "buffer_size"];
    let values = ["256", "256", "0", "0", "0", "65536"];
    for (name, value) in names.iter().zip(values) {
        assert_eq!(swap_xattr(&mount.mnt, &format!("pool.{name}")), value, "{name}");
    }
    let names: Vec<String> = names.iter().map(|name| format!("user.swap.pool.{name}")).collect();
    assert_eq!(xattr_names(&mount.mnt), names);
    assert_eq!(xattr(&mount.mnt, "user.swap.status"), Err(Errno::NODATA));
    fs::create_dir(mount.at("dir")).unwrap();
    make_fifo(&mount.at("fifo"));
    for name in ["dir", "fifo"] {
        assert_eq!(xattr_names(&mount.at(name)), Vec::<String>::new());
        assert_eq!(xattr(&mount.at(name), "user.swap.size"), Err(Errno::NODATA));
        assert_eq!(xattr(&mount.at(name), "user.swap.wait"), Err(Errno::NODATA));
    }
}

/// Our names are not listed unless `list_xattr` is on, and can be read all the same.
#[test]
fn what_copies_would_take_along_is_not_listed() {
    let mount = Mount::new("pool_size=16m");
    let path = mount.at("file");
    fs::write(&path, "x").unwrap();
    set_xattr(&path, "user.mine", b"kept").unwrap();
    assert_eq!(xattr_names(&path), ["user.mine"]);
    assert_eq!(xattr_names(&mount.mnt), Vec::<String>::new());
    assert_eq!(swap_xattr(&path, "size"), "1");
    assert_eq!(swap_xattr(&mount.mnt, "pool.buffers"), "16");
}

/// Names that a listing has are accepted with whatever values a copy brings, on whatever it copies to, and change
/// nothing. All other names below `user.swap.` are refused.
#[test]
fn our_names_cannot_be_changed() {
    let mount = Mount::new("pool_size=16m,list_xattr");
    let (file, folder) = (mount.at("file"), mount.at("folder"));
    fs::write(&file, "x").unwrap();
    // Its status is to stay what it is.
    fs::File::open(&file).unwrap().sync_all().unwrap();
    fs::create_dir(&folder).unwrap();
    let of_root = ["pool.buffers", "pool.available", "pool.buffer_size"];
    let listed = full(&NAMES).into_iter().chain(full(&["error", "stalled"])).chain(full(&of_root));
    for name in listed {
        for path in [&file, &folder, &mount.mnt] {
            let before = xattr(path, &name);
            for value in [b"".as_slice(), b"1", b"not_available", &[7; 4000]] {
                assert_eq!(set_xattr(path, &name, value), Ok(()), "{name}");
            }
            for flags in [XattrFlags::CREATE, XattrFlags::REPLACE] {
                assert_eq!(setxattr(path, &*name, b"1", flags), Ok(()), "{name}");
            }
            assert_eq!(removexattr(path, &*name), Ok(()), "{name}");
            assert_eq!(xattr(path, &name), before, "{name}");
        }
    }
    for name in full(&["wait", "nonsense", "requests", "status2", "", "pool"]) {
        for path in [&file, &folder, &mount.mnt] {
            assert_eq!(set_xattr(path, &name, b"1"), Err(Errno::PERM), "{name}");
            assert_eq!(removexattr(path, &*name), Err(Errno::PERM), "{name}");
        }
    }
    assert_eq!(set_xattr(&file, "user.swap.request", b"nonsense"), Err(Errno::INVAL));
    for name in ["file", "folder"] {
        assert_eq!(xattr_names(&mount.backing(name)), Vec::<String>::new());
    }
    assert_eq!(xattr_names(&mount.swap), Vec::<String>::new());
}

/// Copies the attributes as `rsync -X` and `cp -a` do: all that the source lists, and what only the copy lists goes.
fn copy_attributes(from: &std::path::Path, to: &std::path::Path) {
    for name in xattr_names(from) {
        set_xattr(to, &name, &xattr(from, &name).unwrap()).unwrap();
    }
    let kept = xattr_names(from);
    for name in xattr_names(to).iter().filter(|name| !kept.contains(name)) {
        removexattr(to, name.as_str()).unwrap();
    }
}

/// Copies with attributes succeed in every direction, and take nothing of ours along unless the source lists it.
#[test]
fn copies_with_attributes_succeed() {
    for (first, second) in [("off", "off"), ("on", "off"), ("off", "on"), ("on", "on")] {
        let options = |list| format!("pool_size=8m,list_xattr={list}");
        let (from, to) = (Mount::new(&options(first)), Mount::new(&options(second)));
        let plain = tempfile::tempdir_in(to.swap.parent().unwrap()).unwrap();
        for folder in [&from.mnt, &to.mnt, &plain.path().to_owned()] {
            fs::write(folder.join("file"), "bytes").unwrap();
            fs::create_dir(folder.join("folder")).unwrap();
        }
        for name in ["file", "folder"] {
            set_xattr(&from.at(name), "user.mine", b"kept").unwrap();
            set_xattr(&to.at(name), "user.old", b"goes").unwrap();
            copy_attributes(&from.at(name), &to.at(name));
            copy_attributes(&from.at(name), &plain.path().join(name));
            // And back again: what an archive took along.
            copy_attributes(&plain.path().join(name), &to.at(name));
            assert_eq!(xattr(&to.at(name), "user.mine").unwrap(), b"kept");
            assert_eq!(xattr(&to.at(name), "user.old"), Err(Errno::NODATA));
            assert_eq!(xattr_names(&to.backing(name)), ["user.mine"]);
            let taken = xattr_names(&plain.path().join(name));
            let ours = taken.iter().any(|name| name.starts_with("user.swap."));
            assert_eq!(ours, first == "on" && name == "file", "{taken:?}");
        }
        copy_attributes(&from.mnt, &to.mnt);
        copy_attributes(&from.mnt, &to.at("folder"));
        assert_eq!(swap_xattr(&to.at("file"), "size"), "5");
    }
}

/// The programs themselves: to the mount, from it, and within it, twice, with nothing said and nothing of ours taken along.
#[test]
#[ignore = "needs rsync and tar: tests/suites/tools.sh"]
fn rsync_tar_and_cp_copy_with_attributes() {
    for list in ["off", "on"] {
        let mount = Mount::new(&format!("pool_size=8m,list_xattr={list}"));
        let plain = tempfile::tempdir_in(mount.swap.parent().unwrap()).unwrap();
        let source = plain.path().join("source");
        fs::create_dir(&source).unwrap();
        for name in ["a", "b"] {
            fs::write(source.join(name), vec![1; 70_000]).unwrap();
            set_xattr(&source.join(name), "user.mine", b"kept").unwrap();
            set_xattr(&source.join(name), "user.swap.status", b"inflight").unwrap();
        }
        let script = "set -eu
            for round in 1 2; do
                rsync -aX $1/source/ $2/rsync
                rsync -aX --delete $2/rsync/ $2/again
                rsync -aX $2/rsync/ $1/rsync
                cp -a $1/source/. $2/cp
                cp -a $2/cp/. $1/cp
                cp --preserve=all -r $2/cp/. $2/cp2
                tar -C $1/source --xattrs -cf - . | tar -C $2 --xattrs -xf -
                tar -C $2/rsync --xattrs -cf $1/tar.$round .
                mkdir -p $2/untar && tar -C $2/untar --xattrs -xf $1/tar.$round
            done
            mv $2/cp2 $1/mv
            mv $1/mv $2/mv";
        let run = std::process::Command::new("bash")
            .args(["-c", script, "copies"])
            .args([plain.path(), &mount.mnt])
            .output()
            .unwrap();
        assert!(run.status.success() && run.stderr.is_empty(), "{list}: {run:?}");
        for copy in ["rsync/a", "again/a", "cp/a", "a", "untar/b", "mv/a"] {
            assert_eq!(xattr_names(&mount.backing(copy)), ["user.mine"], "{list}: {copy}");
        }
        if list == "off" {
            assert_eq!(xattr_names(&plain.path().join("rsync/a")), ["user.mine"]);
        }
    }
}

/// "User xattrs outside `user.swap.` pass through to the swap folder."
#[test]
fn other_attributes_pass_through() {
    let mount = Mount::new("pool_size=16m");
    for name in ["file", "dir"] {
        let (path, backing) = (mount.at(name), mount.backing(name));
        match name {
            "dir" => fs::create_dir(&path).unwrap(),
            _ => fs::write(&path, "x").unwrap(),
        }
        set_xattr(&path, "user.foo", b"bar").unwrap();
        assert_eq!(xattr(&backing, "user.foo").unwrap(), b"bar");
        set_xattr(&backing, "user.swapped", &[0, 255, 10]).unwrap();
        assert_eq!(xattr(&path, "user.swapped").unwrap(), [0, 255, 10]);
        assert_eq!(xattr_names(&path)[..2], ["user.foo", "user.swapped"]);
        let exists = setxattr(&path, "user.foo", b"x", XattrFlags::CREATE);
        assert_eq!(exists, Err(Errno::EXIST));
        let missing = setxattr(&path, "user.missing", b"x", XattrFlags::REPLACE);
        assert_eq!(missing, Err(Errno::NODATA));
        set_xattr(&path, "user.large", &[7; 2000]).unwrap();
        assert_eq!(xattr(&path, "user.large").unwrap(), [7; 2000]);
        removexattr(&path, "user.foo").unwrap();
        assert_eq!(xattr(&backing, "user.foo"), Err(Errno::NODATA));
        assert_eq!(removexattr(&path, "user.foo"), Err(Errno::NODATA));
    }
}

/// "`user.swap.*` values stored in the swap folder by a copy are ignored and shadowed."
#[test]
fn stored_values_under_our_names_are_shadowed() {
    let mount = Mount::new("pool_size=16m,list_xattr");
    let (path, backing) = (mount.at("file"), mount.backing("file"));
    fs::write(&path, "x").unwrap();
    for name in ["size", "error", "copied"] {
        set_xattr(&backing, &format!("user.swap.{name}"), b"stale").unwrap();
    }
    assert_eq!(swap_xattr(&path, "size"), "1");
    assert_eq!(xattr(&path, "user.swap.error"), Err(Errno::NODATA));
    assert_eq!(xattr(&path, "user.swap.copied"), Err(Errno::NODATA));
    assert_eq!(xattr_names(&path), full(&NAMES));
}

/// What others on the machine believe (overlayfs, IMA, SELinux) is not to be set through the daemon, by nobody, nor read.
#[test]
fn labels_of_others_do_not_pass() {
    if !crate::support::is_root() {
        return;
    }
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    fs::write(&path, "text").unwrap();
    for path in [&path, &mount.mnt] {
        for name in [
            "trusted.x",
            "trusted.overlay.opaque",
            "security.ima",
            "security.evm",
            "security.capabilityx",
            "security.x",
            "users.x",
            "osx.x",
        ] {
            assert_eq!(set_xattr(path, name, b"1"), Err(Errno::OPNOTSUPP), "{name}");
            assert_eq!(xattr(path, name), Err(Errno::OPNOTSUPP), "{name}");
            assert_eq!(removexattr(path, name), Err(Errno::OPNOTSUPP), "{name}");
        }
    }
    // Nor what is there already.
    for name in ["trusted.x", "trusted.overlay.opaque"] {
        set_xattr(&mount.backing("file"), name, b"1").unwrap();
        assert_eq!(xattr(&path, name), Err(Errno::OPNOTSUPP), "{name}");
        assert!(!xattr_names(&path).contains(&name.to_owned()));
        assert_eq!(xattr(&mount.backing("file"), name).unwrap(), b"1");
    }
}

/// A program's capabilities are for the bytes that they were given to: any write takes them away, at once, and a write-out
/// of older bytes does not.
#[test]
fn capabilities_of_a_file_last_until_it_is_written() {
    if !crate::support::is_root() {
        return;
    }
    // VFS_CAP_REVISION_2, effective, CAP_NET_RAW.
    let capability: Vec<u8> = [0x0200_0001_u32, 1 << 13, 0, 0, 0].map(u32::to_le_bytes).concat();
    let name = "security.capability";
    let mount = Mount::new("pool_size=8m");
    for (round, bytes) in [5, 5000, 3 << 20].into_iter().enumerate() {
        let file = format!("file{round}");
        let (path, backing) = (mount.at(&file), mount.backing(&file));
        let handle = File::create_new(&path).unwrap();
        handle.write_all_at(&vec![7; bytes], 0).unwrap();
        set_xattr(&path, name, &capability).unwrap();
        assert_eq!(xattr(&path, name).unwrap(), capability, "{bytes}");
        assert!(xattr_names(&path).contains(&name.to_owned()));
        handle.sync_all().unwrap();
        drop(handle);
        assert_eq!(xattr(&path, name).unwrap(), capability, "{bytes}");
        assert_eq!(xattr(&backing, name).unwrap(), capability, "{bytes}");
        let handle = File::options().write(true).open(&path).unwrap();
        for way in ["write", "truncate", "chown"] {
            match way {
                "write" => handle.write_all_at(b"x", 1).unwrap(),
                "truncate" => handle.set_len(3).unwrap(),
                _ => std::os::unix::fs::fchown(&handle, Some(1234), None).unwrap(),
            }
            assert_eq!(xattr(&path, name), Err(Errno::NODATA), "{way} of {bytes}");
            assert!(!xattr_names(&path).contains(&name.to_owned()));
            handle.sync_all().unwrap();
            assert_eq!(xattr(&backing, name), Err(Errno::NODATA), "{way} of {bytes}");
            set_xattr(&path, name, &capability).unwrap();
            assert_eq!(xattr(&path, name).unwrap(), capability);
        }
        removexattr(&path, name).unwrap();
        assert_eq!(xattr(&backing, name), Err(Errno::NODATA));
    }
}

/// "`system.*` attributes other than ACLs are passed to the swap folder as root": they are refused to everybody, for the
/// kernel leaves the right to change them to the filesystem.
#[test]
fn attributes_of_the_filesystem_itself_are_refused() {
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    fs::write(&path, "text").unwrap();
    for path in [&path, &mount.mnt] {
        for name in [
            "system.nfs4_acl",
            "system.ntfs_attrib",
            "system.advise",
            "system.posix_acl_accessx",
            "system.x",
        ] {
            assert_eq!(set_xattr(path, name, b"1"), Err(Errno::OPNOTSUPP), "{name}");
            assert_eq!(xattr(path, name), Err(Errno::OPNOTSUPP), "{name}");
            assert_eq!(removexattr(path, name), Err(Errno::OPNOTSUPP), "{name}");
        }
        assert!(!xattr_names(path).iter().any(|name| name.starts_with("system.")));
    }
    let acl = crate::owners::acl(&[
        (crate::owners::USER_OBJ, 6, crate::owners::NOBODY),
        (crate::owners::USER, 4, 1234),
        (crate::owners::GROUP_OBJ, 0, crate::owners::NOBODY),
        (crate::owners::MASK, 4, crate::owners::NOBODY),
        (crate::owners::OTHER, 0, crate::owners::NOBODY),
    ]);
    set_xattr(&path, crate::owners::ACCESS, &acl).unwrap();
    assert_eq!(xattr(&path, crate::owners::ACCESS).unwrap(), acl);
    assert!(xattr_names(&path).contains(&crate::owners::ACCESS.to_owned()));
}
