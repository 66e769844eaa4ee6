//! Files without a name (O_TMPFILE), whiteouts, birth times, and what an overlay filesystem needs of its upper layer.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, Mode, OFlags, RenameFlags, fallocate, linkat, openat,
    renameat_with,
};
use rustix::io::Errno;

use crate::bytes::open;
use crate::owners::set_default_acl;
use crate::place::{Mount, is_done, swapfs};
use crate::support::{
    KIB, MIB, User, as_user, errno, is_pattern, is_root, occupied, swap_xattr, sync_all, user,
    wait_until, write_pattern,
};

fn unnamed(folder: &Path, flags: OFlags, mode: u32) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::CLOEXEC | flags;
    openat(CWD, folder, flags, Mode::from_raw_mode(mode)).map(File::from)
}

fn link(file: &File, to: &Path) -> Result<(), Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    linkat(CWD, path.as_str(), CWD, to, AtFlags::SYMLINK_FOLLOW)
}

/// Written without a name and linked, while dirty or afterwards; what a name leads to is whole, also at the next mount.
#[test]
fn a_file_without_a_name_gets_one_and_keeps_its_bytes() {
    for mode in ["writes", "crc32c", "none"] {
        let options = format!("pool_size=8m,checksum={mode}");
        let mount = Mount::new(&options);
        fs::create_dir(mount.at("dir")).unwrap();
        let lengths = [0, 7, 5000, MIB + 1, 20 * MIB + 4097];
        for (number, length) in lengths.into_iter().enumerate() {
            for synced in [false, true] {
                let path = mount.at(&format!("dir/{number}-{synced}"));
                let file = unnamed(&mount.at("dir"), OFlags::RDWR, 0o640).unwrap();
                write_pattern(&file, length, 70_000);
                let metadata = file.metadata().unwrap();
                assert_eq!((metadata.nlink(), metadata.len()), (0, length));
                if synced {
                    file.sync_all().unwrap();
                }
                link(&file, &path).unwrap();
                assert_eq!(errno(fs::hard_link(&path, &path)), Errno::EXIST);
                let metadata = file.metadata().unwrap();
                assert_eq!((metadata.nlink(), metadata.mode() & 0o7777), (1, 0o640));
                is_pattern(&path, length);
                drop(file);
                is_pattern(&path, length);
            }
        }
        sync_all(&mount.mnt);
        for (number, length) in lengths.into_iter().enumerate() {
            is_pattern(&mount.backing(&format!("dir/{number}-false")), length);
        }
        mount.remount(&options);
        for (number, length) in lengths.into_iter().enumerate() {
            is_pattern(&mount.at(&format!("dir/{number}-true")), length);
            is_pattern(&mount.at(&format!("dir/{number}-false")), length);
        }
    }
}

/// A name that is gone again, two names, and writes after the link.
#[test]
fn names_of_such_a_file_come_and_go() {
    let mount = Mount::new("pool_size=8m");
    let file = unnamed(&mount.mnt, OFlags::RDWR, 0o600).unwrap();
    write_pattern(&file, 3 * MIB, 70_000);
    link(&file, &mount.at("one")).unwrap();
    link(&file, &mount.at("two")).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 2);
    fs::remove_file(mount.at("one")).unwrap();
    write_pattern(&file, 5 * MIB + 3, 70_000);
    is_pattern(&mount.at("two"), 5 * MIB + 3);
    fs::remove_file(mount.at("two")).unwrap();
    file.write_all_at(b"still", 0).unwrap();
    let mut found = [0; 5];
    file.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(&found, b"still");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    drop(file);
    let nested = unnamed(&mount.mnt, OFlags::WRONLY, 0o600).unwrap();
    fallocate(&nested, FallocateFlags::empty(), 0, 100_000).unwrap();
    link(&nested, &mount.at("three")).unwrap();
    assert_eq!(fs::read(mount.at("three")).unwrap(), vec![0; 100_000]);
    assert_eq!(swap_xattr(&mount.at("three"), "size"), "100000");
    let kept = open(&mount.at("three"));
    fs::rename(mount.at("three"), mount.at("four")).unwrap();
    kept.write_all_at(b"bytes", 9).unwrap();
    drop((kept, nested));
    sync_all(&mount.mnt);
    assert_eq!(&fs::read(mount.backing("four")).unwrap()[9..14], b"bytes");
}

/// Closed without ever having had a name: its space comes back, in the swap folder and in the pool, and nothing of it
/// is on record.
#[test]
fn without_a_name_nothing_stays() {
    let mount = Mount::new("pool_size=16m,checksum=crc32c");
    let free = || swap_xattr(&mount.mnt, "pool.available");
    let before = free();
    let space = || rustix::fs::statvfs(&mount.swap).unwrap().f_bfree;
    let blocks = space();
    for length in [5000, 3 * MIB, 30 * MIB] {
        let file = unnamed(&mount.mnt, OFlags::RDWR, 0o600).unwrap();
        write_pattern(&file, length, 400_000);
        file.sync_all().unwrap();
        assert!(occupied(&mount.swap.join(".")) < MIB);
    }
    wait_until("the buffers", || free() == before);
    wait_until("the space", || space() + 4096 > blocks);
    assert_eq!(fs::read_dir(&mount.mnt).unwrap().count(), 0);
    mount.unmount();
    let report = swapfs(&["fsck", mount.swap.to_str().unwrap(), "--json"]);
    is_done(&report);
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((&report["checked"], &report["gone"]), (&0.into(), &0.into()), "{report}");
}

/// What one call after the other answers.
type Answers = Vec<Result<(u32, u32, u32, u64), Errno>>;

/// Makes files without a name by several users, modes and flags, and links them.
fn made_by_users(folder: &Path) -> Answers {
    let facts = |path: &Path| {
        let found = fs::symlink_metadata(path).unwrap();
        (found.mode(), found.uid(), found.gid(), found.nlink())
    };
    let mut answers = Answers::new();
    let makers = [
        user(1234),
        User { umask: 0o077, ..user(1235) },
        User { umask: 0, groups: &[4321], ..user(1236) },
    ];
    for (number, maker) in makers.into_iter().enumerate() {
        for dir in ["open", "setgid", "acl", "closed"] {
            for mode in [0o666, 0o600, 0o777, 0o2775, 0o4711, 0o2664] {
                let made = as_user(folder, maker, || {
                    let file = unnamed(Path::new(dir), OFlags::RDWR, mode)?;
                    let name = format!("{dir}/{number}-{mode:o}");
                    link(&file, Path::new(&name)).map(|()| name)
                });
                answers.push(made.map(|name| facts(&folder.join(name))));
                // As one that has a name from the beginning.
                let named = as_user(folder, maker, || {
                    let name = format!("{dir}/named-{number}-{mode:o}");
                    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR;
                    openat(CWD, name.as_str(), flags, Mode::from_raw_mode(mode)).map(|_| name)
                });
                answers.push(named.map(|name| facts(&folder.join(name))));
            }
        }
        // Never to have a name.
        answers.push(as_user(folder, maker, || {
            let file = unnamed(Path::new("open"), OFlags::RDWR | OFlags::EXCL, 0o600)?;
            link(&file, Path::new("open/exclusive")).map(|()| (0, 0, 0, 0))
        }));
    }
    for flags in [OFlags::RDONLY, OFlags::WRONLY, OFlags::RDWR | OFlags::SYNC] {
        answers.push(unnamed(&folder.join("open"), flags, 0o600).map(|_| (0, 0, 0, 0)));
    }
    answers.push(unnamed(&folder.join("nowhere"), OFlags::RDWR, 0o600).map(|_| (0, 0, 0, 0)));
    answers
}

/// Owners, modes and refusals are those of the swap folder's filesystem: umask, set-group-id folders, default ACLs.
#[test]
fn they_are_made_as_anywhere() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=8m,allow_other");
    let own = mount.scratch.path().join("own");
    fs::create_dir(&own).unwrap();
    for folder in [own.as_path(), &mount.mnt] {
        for (name, mode) in [("open", 0o777), ("setgid", 0o2777), ("acl", 0o777), ("closed", 0o700)]
        {
            let path = folder.join(name);
            fs::create_dir(&path).unwrap();
            std::os::unix::fs::chown(&path, None, Some(4321)).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        set_default_acl(&folder.join("acl"), 1236, 6);
    }
    let (expected, found) = (made_by_users(&own), made_by_users(&mount.mnt));
    for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
        assert_eq!(found, expected, "call {number}");
    }
    assert_eq!(unnamed(&mount.at(".swapfs"), OFlags::RDWR, 0o600).err(), Some(Errno::PERM));
}

fn moved(from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, from, CWD, to, flags)
}

/// What renames with whiteouts answer, and what they leave behind.
fn whiteouts(folder: &Path) -> Vec<(String, Result<(), Errno>, Vec<String>)> {
    let mut found = Vec::new();
    let whiteout = RenameFlags::WHITEOUT;
    let (both, exchange) = (whiteout | RenameFlags::NOREPLACE, whiteout | RenameFlags::EXCHANGE);
    for (number, flags) in [whiteout, both, exchange].into_iter().enumerate() {
        for (case, from, to) in [
            ("new", "file", "new"),
            ("over a file", "file", "other"),
            ("a folder", "dir", "new"),
            ("a folder over an empty one", "dir", "empty"),
            ("a link", "link", "inner/new"),
            ("nothing", "nothing", "new"),
        ] {
            let within = folder.join(format!("{number}-{case}"));
            for name in ["", "dir", "empty", "inner"] {
                fs::create_dir(within.join(name)).unwrap();
            }
            for name in ["file", "other", "dir/below"] {
                fs::write(within.join(name), name).unwrap();
            }
            std::os::unix::fs::symlink("file", within.join("link")).unwrap();
            let answer = moved(&within.join(from), &within.join(to), flags);
            let mut names = Vec::new();
            for name in ["file", "other", "dir", "empty", "link", "new", "inner/new"] {
                if let Ok(metadata) = fs::symlink_metadata(within.join(name)) {
                    let device = metadata.file_type().is_char_device().then(|| metadata.rdev());
                    names.push(format!("{name}: {:o} {device:?}", metadata.mode()));
                }
            }
            found.push((format!("{case}, {flags:?}"), answer, names));
        }
    }
    found
}

/// RENAME_WHITEOUT leaves what it leaves on the swap folder's filesystem, and the moved file's bytes are whole.
#[test]
fn renames_leave_whiteouts() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=8m");
    let (own, folder) = (mount.scratch.path().join("own"), mount.at("all"));
    fs::create_dir(&own).unwrap();
    fs::create_dir(&folder).unwrap();
    let (expected, found) = (whiteouts(&own), whiteouts(&folder));
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(found, expected);
    }
    let file = open(&mount.at("dirty"));
    write_pattern(&file, 3 * MIB, 70_000);
    moved(&mount.at("dirty"), &mount.at("moved"), RenameFlags::WHITEOUT).unwrap();
    is_pattern(&mount.at("moved"), 3 * MIB);
    drop(file);
    fs::remove_file(mount.at("dirty")).unwrap();
    sync_all(&mount.mnt);
    is_pattern(&mount.backing("moved"), 3 * MIB);
}

/// statx tells when something was made, as the swap folder's filesystem does.
#[test]
fn birth_times_are_the_swap_folders() {
    let mount = Mount::new("pool_size=8m");
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("file"), "bytes").unwrap();
    write_pattern(&open(&mount.at("long")), 9 * MIB, 400_000);
    std::os::unix::fs::symlink("file", mount.at("link")).unwrap();
    crate::support::make_fifo(&mount.at("fifo"));
    fs::rename(mount.at("file"), mount.at("renamed")).unwrap();
    let born = |path: &Path| {
        let created = fs::symlink_metadata(path).unwrap().created();
        created.map_err(|error| error.kind())
    };
    for name in ["", "dir", "renamed", "long", "link", "fifo"] {
        let expected = born(&mount.backing(name));
        assert_eq!(born(&mount.at(name)), expected, "{name}");
        if let Ok(born) = expected {
            let now = std::time::SystemTime::now();
            assert!(born <= now, "{name}");
        }
    }
    // The control folder has none, and asking for one leaves the others theirs.
    assert!(fs::metadata(mount.at(".swapfs/stats.json")).unwrap().created().is_err());
    assert_eq!(born(&mount.at("dir")), born(&mount.backing("dir")));
}

/// An overlay whose upper layer is a mount; gone at the end.
struct Overlay<'a>(&'a Path);

impl Drop for Overlay<'_> {
    fn drop(&mut self) {
        let _ = umount2(self.0, MntFlags::MNT_DETACH);
    }
}

/// An overlay filesystem takes the mount as its upper layer: copies up, whiteouts, opaque folders, files without a name.
#[test]
fn an_overlay_takes_the_mount_as_its_upper_layer() {
    if !is_root() {
        return;
    }
    let below = Mount::new("pool_size=16m,allow_other");
    let (lower, merged) = (below.scratch.path().join("lower"), below.scratch.path().join("merged"));
    fs::create_dir_all(lower.join("dir/inner")).unwrap();
    fs::create_dir(&merged).unwrap();
    for name in ["upper", "work"] {
        fs::create_dir(below.at(name)).unwrap();
    }
    write_pattern(&open(&lower.join("long")), 3 * MIB + 5, 400_000);
    for name in ["kept", "gone", "changed", "dir/file", "dir/inner/file"] {
        fs::write(lower.join(name), name).unwrap();
    }
    let data = format!(
        "lowerdir={},upperdir={},workdir={},userxattr",
        lower.display(),
        below.at("upper").display(),
        below.at("work").display()
    );
    let (flags, data) = (MsFlags::empty(), Some(data.as_str()));
    mount(Some("overlay"), &merged, Some("overlay"), flags, data).unwrap();
    let overlay = Overlay(&merged);
    let at = |name: &str| merged.join(name);
    // Not quietly mounted read-only for want of something.
    fs::write(at("new"), "new").unwrap();
    fs::remove_file(at("gone")).unwrap();
    open(&at("changed")).write_all_at(b"CHANGED", 0).unwrap();
    open(&at("long")).write_all_at(b"x", 2 * MIB).unwrap();
    fs::remove_dir_all(at("dir")).unwrap();
    fs::create_dir(at("dir")).unwrap();
    fs::rename(at("kept"), at("dir/moved")).unwrap();
    link(&unnamed(&merged, OFlags::RDWR, 0o600).unwrap(), &at("linked")).unwrap();
    let expected = [("new", "new"), ("changed", "CHANGED"), ("dir/moved", "kept"), ("linked", "")];
    let look = |when: &str| {
        for (name, bytes) in expected {
            assert_eq!(fs::read_to_string(at(name)).unwrap(), bytes, "{name} {when}");
        }
        assert!(!at("gone").exists() && !at("dir/file").exists() && !at("kept").exists());
        assert_eq!(fs::read(at("long")).unwrap()[2 * MIB as usize], b'x');
        assert_eq!(fs::metadata(at("long")).unwrap().len(), 3 * MIB + 5);
    };
    look("at once");
    drop(overlay);
    let gone = fs::symlink_metadata(below.at("upper/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert!(occupied(&below.at("upper/long")) >= 3 * MIB - 64 * KIB);
    mount(Some("overlay"), &merged, Some("overlay"), flags, data).unwrap();
    let overlay = Overlay(&merged);
    look("mounted again");
    drop(overlay);
    is_pattern(&lower.join("long"), 3 * MIB + 5);
}
