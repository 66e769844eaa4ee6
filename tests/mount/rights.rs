//! Requests on a folder, as to what below it they concern: what the kernel would let the asker write.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use crate::bytes::open;
use crate::owners::{ACCESS, GROUP_OBJ, MASK, NOBODY, OTHER, USER, USER_OBJ, acl};
use crate::place::Mount;
use crate::requests::{ask, settled};
use crate::support::{
    MIB, User, as_user, is_root, set_xattr, swap_xattr, user, wait_until, write_pattern,
};

/// A group of the asker's that is not its primary one.
const GROUP: u32 = 4321;
const ASKER: User = User { groups: &[77, GROUP], ..user(1234) };

fn file(mount: &Mount, name: &str, group: u32, mode: u32) -> PathBuf {
    let path = mount.at(name);
    let handle = open(&path);
    write_pattern(&handle, MIB, 1 << 20);
    handle.sync_all().unwrap();
    owned(&path, group, mode);
    path
}

fn folder(mount: &Mount, name: &str, group: u32, mode: u32) {
    fs::create_dir(mount.at(name)).unwrap();
    owned(&mount.at(name), group, mode);
}

fn owned(path: &Path, group: u32, mode: u32) {
    chown(path, None, Some(group)).unwrap();
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// What `user` is given, the owner's group, and the mask, which stat shows in the group's place.
fn set_acl(path: &Path, user: u32, permissions: u16, group: u16) {
    let entries = [
        (USER_OBJ, 6, NOBODY),
        (USER, permissions, user),
        (GROUP_OBJ, group, NOBODY),
        (MASK, 6, NOBODY),
        (OTHER, 0, NOBODY),
    ];
    set_xattr(path, ACCESS, &acl(&entries)).unwrap();
}

/// By supplementary groups and ACLs too, and against them.
#[test]
fn a_request_on_a_folder_concerns_what_the_kernel_lets_one_write() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=32m,open_swap_in=none,allow_other");
    folder(&mount, "all", 0, 0o777);
    folder(&mount, "all/group", GROUP, 0o750);
    folder(&mount, "all/closed", 0, 0o700);
    let by_acl = file(&mount, "all/by_acl", 0, 0o600);
    set_acl(&by_acl, 1234, 6, 0);
    let theirs = [
        file(&mount, "all/by_group", GROUP, 0o660),
        file(&mount, "all/group/file", 0, 0o666),
        by_acl,
    ];
    // The mode alone would let them in: its group bits are the ACL's mask.
    let masked = [file(&mount, "all/masked", 1234, 0o600), file(&mount, "all/named", GROUP, 0o600)];
    set_acl(&masked[0], 9999, 6, 4);
    set_acl(&masked[1], 1234, 4, 6);
    assert_eq!(fs::metadata(&masked[0]).unwrap().permissions().mode() & 0o777, 0o660);
    let not_theirs = [
        file(&mount, "all/other_group", 4322, 0o660),
        file(&mount, "all/closed/file", 0, 0o666),
        // A group's bits count before the others'.
        file(&mount, "all/less_for_the_group", GROUP, 0o606),
    ];
    for path in theirs.iter().chain(&masked).chain(&not_theirs) {
        assert_eq!(settled(path), "available");
    }
    as_user(&mount.mnt, ASKER, || ask(Path::new("all"), "release"));
    wait_until("their release", || theirs.iter().all(|path| settled(path) == "not_available"));
    assert_eq!(settled(&mount.mnt), "idle");
    for path in masked.iter().chain(&not_theirs) {
        assert_eq!(swap_xattr(path, "status"), "available", "{}", path.display());
    }
    // The same who without that group.
    theirs.iter().for_each(|path| ask(path, "swap_in"));
    assert!(theirs.iter().all(|path| settled(path) == "available"));
    as_user(&mount.mnt, user(1234), || ask(Path::new("all"), "release"));
    wait_until("the release by ACL", || settled(&theirs[2]) == "not_available");
    assert_eq!(settled(&mount.mnt), "idle");
    assert!(theirs[..2].iter().all(|path| swap_xattr(path, "status") == "available"));
    // Root may everything.
    ask(&mount.at("all"), "release");
    let all = || theirs.iter().chain(&masked).chain(&not_theirs);
    wait_until("root's release", || all().all(|path| settled(path) == "not_available"));
}
