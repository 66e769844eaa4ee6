//! Another user's partitions: what the kernel would not let one do to the backing file, one cannot do to the
//! partition. The judge is the kernel itself, asked about a file of the same owner, mode and ACL.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW};
use rustix::io::Errno;

use crate::bytes::open;
use crate::owners::{ACCESS, GROUP_OBJ, MASK, NOBODY, OTHER, USER, USER_OBJ, acl};
use crate::place::Mount;
use crate::requests::{ask, request, settled};
use crate::support::{
    MIB, User, as_user, is_root, pattern, same, set_xattr, swap_xattr, user, write_pattern, xattr,
};

/// A second group of the member's, and of none of the others.
const GROUP: u32 = 4321;
const OWNER: User = user(1233);
const STRANGER: User = user(1234);
const MEMBER: User = User { groups: &[77, GROUP], ..user(1235) };
const NAMED: User = user(1236);

const LENGTH: u64 = MIB + 77;

/// How a partition is protected: mode, and an ACL's `(tag, permissions, id)`.
type Guard = (u32, Option<&'static [(u16, u16, u32)]>);

const GUARDS: [(&str, Guard); 12] = [
    ("closed", (0o600, None)),
    ("nobodys", (0o000, None)),
    ("group-reads", (0o640, None)),
    ("group-writes", (0o660, None)),
    ("group-excluded", (0o606, None)),
    ("all-read", (0o644, None)),
    ("all-write", (0o666, None)),
    ("write-only", (0o622, None)),
    ("named-reads", (0o600, Some(&[(USER, 4, 1236), (GROUP_OBJ, 0, NOBODY), (MASK, 6, NOBODY)]))),
    ("named-writes", (0o600, Some(&[(USER, 6, 1236), (GROUP_OBJ, 0, NOBODY), (MASK, 6, NOBODY)]))),
    ("named-masked", (0o600, Some(&[(USER, 6, 1236), (GROUP_OBJ, 4, NOBODY), (MASK, 0, NOBODY)]))),
    (
        "named-excluded",
        (0o666, Some(&[(USER, 0, 1236), (GROUP_OBJ, 6, NOBODY), (MASK, 6, NOBODY)])),
    ),
];

fn guard(path: &Path, (mode, entries): Guard) {
    chown(path, Some(OWNER.uid), Some(GROUP)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    if let Some(entries) = entries {
        let others = (mode & 0o7) as u16;
        let all: Vec<_> = std::iter::once((USER_OBJ, 6, NOBODY))
            .chain(entries.iter().copied())
            .chain([(OTHER, others, NOBODY)])
            .collect();
        set_xattr(path, ACCESS, &acl(&all)).unwrap();
    }
}

/// What the kernel lets this thread do to a plain file.
fn judged(plain: &Path) -> (bool, bool) {
    (File::open(plain).is_ok(), File::options().write(true).open(plain).is_ok())
}

fn listed(path: &Path) -> Vec<String> {
    crate::support::xattr_names(path)
}

const READ_NAMES: [&str; 11] = [
    "status",
    "size",
    "aligned_size",
    "resident",
    "dirty",
    "inflight",
    "swappable",
    "path",
    "direct",
    "wait",
    "error",
];

/// What `who` may do to `path` is what it may do to `plain`, which is guarded alike.
fn check(who: &str, path: &Path, plain: &Path) {
    let (may_read, may_write) = judged(plain);
    let what = format!("{who} on {}: reads {may_read}, writes {may_write}", path.display());
    let denied = |errno: Option<Errno>, allowed: bool, action: &str| {
        let expected = if allowed { None } else { Some(Errno::ACCESS) };
        assert_eq!(errno, expected, "{action}, {what}");
    };
    let of = |result: std::io::Result<()>| {
        result.err().map(|error| Errno::from_io_error(&error).unwrap())
    };
    // Read it, its status and its error.
    denied(of(File::open(path).map(drop)), may_read, "open for reading");
    for name in READ_NAMES {
        // (It has one when this begins.)
        denied(xattr(path, &format!("user.swap.{name}")).err(), may_read, name);
    }
    let error_listed = listed(path).contains(&"user.swap.error".to_owned());
    assert_eq!(error_listed, may_read, "the error in the list, {what}");
    assert!(!listed(path).iter().any(|name| name.starts_with("trusted.")), "{what}");
    // Steer it and release it.
    for verb in ["swap_out", "swap_in", "release", "reserve 4096"] {
        denied(request(path, verb).err(), may_write, verb);
    }
    denied(set_xattr(path, "user.theirs", b"x").err(), may_write, "setxattr");
    let file = File::options().write(true).open(path);
    denied(of(file.map(drop)), may_write, "open for writing");
    let file = rustix::fs::open(
        path,
        rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::CLOEXEC,
        rustix::fs::Mode::empty(),
    );
    if let Ok(file) = file {
        // Whoever may write may change bytes: the same ones.
        File::from(file).write_all_at(&pattern(5, 100), 5).unwrap();
    }
    // Not even by way of a truncate, or of times.
    let path_name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a C string.
    let cut = unsafe { libc::truncate(path_name.as_ptr(), LENGTH as i64) };
    let errno = (cut != 0).then(|| Errno::from_io_error(&std::io::Error::last_os_error()).unwrap());
    denied(errno, may_write, "truncate");
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let times = Timestamps { last_access: now, last_modification: now };
    denied(rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).err(), may_write, "touch");
    for attempt in [
        fs::set_permissions(path, Permissions::from_mode(0o777)),
        chown(path, Some(STRANGER.uid), None),
    ] {
        assert_eq!(of(attempt), Some(Errno::PERM), "{what}");
    }
}

/// Makes the partition's last transfer fail: its bytes are taken away beneath the mount for a moment.
fn fail(mount: &Mount, name: &str) {
    let path = mount.at(name);
    File::open(&path).unwrap().sync_all().unwrap();
    ask(&path, "release");
    assert_eq!(settled(&path), "not_available");
    let file = File::open(&path).unwrap();
    let backing = File::options().write(true).open(mount.backing(name)).unwrap();
    backing.set_len(0).unwrap();
    let mut bytes = vec![0; 4096];
    assert_eq!(crate::support::errno(file.read_at(&mut bytes, 8192)), Errno::IO);
    backing.write_all_at(&pattern(0, LENGTH as usize), 0).unwrap();
    assert_eq!(swap_xattr(&path, "error"), "EIO");
}

/// "another user can neither read, steer, release nor see the error of a partition that its mode denies",
/// ACLs included.
#[test]
fn another_user_can_do_what_the_kernel_allows_and_no_more() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=32m,open_swap_in=none,allow_other,list_xattr");
    // Where the same users meet the same guards without swapfs.
    let plain = mount.scratch.path().join("plain");
    fs::create_dir(&plain).unwrap();
    for folder in [mount.scratch.path(), &plain, &mount.mnt] {
        fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    }
    for (name, how) in GUARDS {
        let path = mount.at(name);
        let file = open(&path);
        write_pattern(&file, LENGTH, 1 << 20);
        file.sync_all().unwrap();
        drop(file);
        set_xattr(&mount.backing(name), "trusted.secret", b"x").unwrap();
        fs::write(plain.join(name), "x").unwrap();
        guard(&path, how);
        guard(&plain.join(name), how);
    }
    let users = [("the stranger", STRANGER), ("the member", MEMBER), ("the named", NAMED)];
    for (name, _) in GUARDS {
        for (who, user) in users {
            fail(&mount, name);
            as_user(mount.scratch.path(), user, || {
                check(who, &PathBuf::from("mnt").join(name), &PathBuf::from("plain").join(name));
            });
        }
        let bytes = fs::read(mount.at(name)).unwrap();
        same(&bytes, &pattern(0, LENGTH as usize));
    }
}
