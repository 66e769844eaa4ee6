//! Owners, modes, permissions: several users of one mount.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::Path;

use rustix::io::Errno;

use crate::place::Mount;
use crate::support::{User, as_user, errno, is_root, same, set_xattr, sync_all, user, xattr};

/// A mount that other users may use, with a folder open to all.
fn shared() -> Mount {
    let mount = Mount::new("pool_size=8m,allow_other");
    fs::create_dir(mount.at("open")).unwrap();
    chmod(&mount.at("open"), 0o777);
    mount
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

fn facts(path: &Path) -> (u32, u32, u32) {
    let metadata = fs::symlink_metadata(path).unwrap();
    (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
}

/// "same mode, owner": what a user creates is the user's, less the umask.
#[test]
fn what_a_user_creates_is_the_users() {
    if !is_root() {
        return;
    }
    let mount = shared();
    as_user(&mount.mnt, user(1234), || {
        File::options().write(true).create_new(true).mode(0o666).open("open/file").unwrap();
        fs::create_dir("open/dir").unwrap();
        std::os::unix::fs::symlink("x", "open/link").unwrap();
        crate::support::make_fifo(Path::new("open/fifo"));
    });
    let umask = User { umask: 0o077, ..user(1235) };
    as_user(&mount.mnt, umask, || fs::write("open/closed", "x").unwrap());
    let expected = [
        ("file", (1234, 1234, 0o644)),
        ("dir", (1234, 1234, 0o755)),
        ("link", (1234, 1234, 0o777)),
        ("fifo", (1234, 1234, 0o644)),
        ("closed", (1235, 1235, 0o600)),
    ];
    for (name, expected) in expected {
        let name = format!("open/{name}");
        assert_eq!(facts(&mount.at(&name)), expected, "{name}");
        assert_eq!(facts(&mount.backing(&name)), expected, "{name} in the swap folder");
    }
}

/// "owner, group (setgid folders too)": a folder's group is inherited where its mode says so.
#[test]
fn a_setgid_folder_hands_its_group_down() {
    if !is_root() {
        return;
    }
    let mount = shared();
    let folder = mount.at("open/group");
    fs::create_dir(&folder).unwrap();
    chown(&folder, None, Some(4321)).unwrap();
    chmod(&folder, 0o2777);
    as_user(&mount.mnt, user(1234), || {
        fs::write("open/group/file", "x").unwrap();
        fs::create_dir("open/group/dir").unwrap();
    });
    assert_eq!(facts(&mount.at("open/group/file")), (1234, 4321, 0o644));
    assert_eq!(facts(&mount.at("open/group/dir")), (1234, 4321, 0o2755));
    assert_eq!(facts(&mount.backing("open/group/dir")), (1234, 4321, 0o2755));
}

/// "with `allow_other` the kernel enforces permissions".
#[test]
fn permissions_are_enforced() {
    if !is_root() {
        return;
    }
    let mount = shared();
    fs::write(mount.at("open/secret"), "secret").unwrap();
    chmod(&mount.at("open/secret"), 0o600);
    fs::write(mount.at("open/group"), "group").unwrap();
    chown(mount.at("open/group"), None, Some(77)).unwrap();
    chmod(&mount.at("open/group"), 0o640);
    fs::create_dir(mount.at("closed")).unwrap();
    chmod(&mount.at("closed"), 0o700);
    as_user(&mount.mnt, user(1234), || {
        assert_eq!(errno(File::open("open/secret")), Errno::ACCESS);
        assert_eq!(errno(File::open("open/group")), Errno::ACCESS);
        assert_eq!(errno(fs::write("open/secret", "x")), Errno::ACCESS);
        assert_eq!(
            errno(fs::set_permissions("open/secret", Permissions::from_mode(0o777))),
            Errno::PERM
        );
        assert_eq!(errno(chown("open/secret", Some(1234), None)), Errno::PERM);
        assert_eq!(errno(fs::metadata("closed/file")), Errno::ACCESS);
        assert_eq!(errno(fs::write("file", "x")), Errno::ACCESS);
    });
    let member = User { groups: &[77], ..user(1234) };
    as_user(&mount.mnt, member, || {
        assert_eq!(fs::read("open/group").unwrap(), b"group");
        assert_eq!(errno(fs::write("open/group", "x")), Errno::ACCESS);
    });
    // The sticky bit keeps others' files.
    chmod(&mount.at("open"), 0o1777);
    as_user(&mount.mnt, user(1234), || {
        assert_eq!(errno(fs::remove_file("open/secret")), Errno::PERM);
    });
}

/// Without `allow_other` the mount is its owner's alone.
#[test]
fn without_allow_other_others_are_kept_out() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=8m");
    fs::write(mount.at("file"), "x").unwrap();
    chmod(&mount.at("file"), 0o644);
    as_user(mount.scratch.path(), user(1234), || {
        assert_eq!(errno(File::open("mnt/file")), Errno::ACCESS);
    });
}

/// An ACL: `(tag, permissions, id)` of each entry.
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(permissions.to_le_bytes());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

pub(crate) const NOBODY: u32 = u32::MAX;
pub(crate) const USER_OBJ: u16 = 1;
pub(crate) const USER: u16 = 2;
pub(crate) const GROUP_OBJ: u16 = 4;
pub(crate) const MASK: u16 = 16;
pub(crate) const OTHER: u16 = 32;
pub(crate) const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn acl_for(id: u32, permissions: u16) -> Vec<u8> {
    acl(&[
        (USER_OBJ, 6, NOBODY),
        (USER, permissions, id),
        (GROUP_OBJ, 0, NOBODY),
        (MASK, permissions, NOBODY),
        (OTHER, 0, NOBODY),
    ])
}

/// Gives a folder a default ACL.
pub(crate) fn set_default_acl(path: &Path, id: u32, permissions: u16) {
    set_xattr(path, DEFAULT, &acl_for(id, permissions)).unwrap();
}

/// Set-group-id goes when an owner outside the group sets an ACL, and stays for all others, as on the swap folder: of
/// files and folders, by access ACLs and by default ones.
#[test]
fn an_acl_takes_set_group_id_as_anywhere() {
    if !is_root() {
        return;
    }
    let mount = shared();
    let own = mount.scratch.path().join("own");
    let outcomes = |folder: &Path| {
        let mut found = Vec::new();
        for (number, (owner, groups)) in
            [(1234, &[][..]), (1235, &[4321]), (1236, &[77, 4321]), (0, &[])]
                .into_iter()
                .enumerate()
        {
            for mode in [0o2775, 0o2755, 0o6771, 0o2664, 0o775] {
                for (kind, name) in [("file", ACCESS), ("dir", ACCESS), ("dir", DEFAULT)] {
                    let path = folder.join(format!("{kind}-{number}-{mode:o}-{name}"));
                    match kind {
                        "file" => drop(File::create(&path).unwrap()),
                        _ => fs::create_dir(&path).unwrap(),
                    }
                    chown(&path, Some(owner), Some(4321)).unwrap();
                    chmod(&path, mode);
                    // Looked at before, too, so that the kernel remembers the mode.
                    facts(&path);
                    let who = User { groups, ..user(owner) };
                    let set = as_user(folder, who, || {
                        set_xattr(Path::new(path.file_name().unwrap()), name, &acl_for(1236, 6))
                    });
                    found.push((format!("{owner} {mode:o} {kind} {name}"), set, facts(&path)));
                }
            }
        }
        found
    };
    fs::create_dir(&own).unwrap();
    chmod(&own, 0o777);
    let (expected, found) = (outcomes(&own), outcomes(&mount.at("open")));
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(found, expected, "modes in decimal");
    }
}

/// "POSIX ACLs": they let in whom they name, and nobody else.
#[test]
fn an_access_acl_is_honoured() {
    if !is_root() {
        return;
    }
    let mount = shared();
    let path = mount.at("open/file");
    fs::write(&path, "for 1234").unwrap();
    chmod(&path, 0o600);
    let blob = acl_for(1234, 4);
    set_xattr(&path, ACCESS, &blob).unwrap();
    same(&xattr(&path, ACCESS).unwrap(), &blob);
    same(&xattr(&mount.backing("open/file"), ACCESS).unwrap(), &blob);
    // The mask is where stat shows the group's permissions.
    assert_eq!(facts(&path), (0, 0, 0o640));
    as_user(&mount.mnt, user(1234), || {
        assert_eq!(fs::read("open/file").unwrap(), b"for 1234");
        assert_eq!(errno(fs::write("open/file", "x")), Errno::ACCESS);
    });
    as_user(&mount.mnt, user(1235), || {
        assert_eq!(errno(File::open("open/file")), Errno::ACCESS);
    });
    // chmod takes it away again by the mask.
    chmod(&path, 0o600);
    as_user(&mount.mnt, user(1234), || {
        assert_eq!(errno(File::open("open/file")), Errno::ACCESS);
    });
    let refused = set_xattr(&mount.backing("open/file"), ACCESS, b"nonsense");
    assert_eq!(set_xattr(&path, ACCESS, b"nonsense"), refused);
    rustix::fs::removexattr(&path, ACCESS).unwrap();
    assert_eq!(xattr(&path, ACCESS), Err(Errno::NODATA));
}

/// A default ACL is inherited, and replaces the umask.
#[test]
fn a_default_acl_is_inherited() {
    if !is_root() {
        return;
    }
    let mount = shared();
    set_xattr(&mount.at("open"), DEFAULT, &acl_for(1236, 6)).unwrap();
    let creator = User { umask: 0o077, ..user(1234) };
    as_user(&mount.mnt, creator, || {
        fs::write("open/file", "inherited").unwrap();
        fs::create_dir("open/dir").unwrap();
    });
    as_user(&mount.mnt, user(1236), || {
        assert_eq!(fs::read("open/file").unwrap(), b"inherited");
        fs::write("open/file", "changed").unwrap();
    });
    as_user(&mount.mnt, user(1235), || {
        assert_eq!(errno(File::open("open/file")), Errno::ACCESS);
    });
    assert_eq!(facts(&mount.at("open/file")), (1234, 1234, 0o660));
    let inherited = xattr(&mount.at("open/dir"), DEFAULT).unwrap();
    same(&inherited, &acl_for(1236, 6));
    same(&xattr(&mount.backing("open/dir"), DEFAULT).unwrap(), &inherited);
}

/// "chmod/chown/utimens": root's changes and the owner's reach the swap folder at once.
#[test]
fn changes_of_mode_owner_and_time_arrive() {
    if !is_root() {
        return;
    }
    let mount = shared();
    let (path, backing) = (mount.at("open/file"), mount.backing("open/file"));
    fs::write(&path, "x").unwrap();
    chown(&path, Some(1234), Some(1234)).unwrap();
    chmod(&path, 0o4711);
    assert_eq!(facts(&backing), (1234, 1234, 0o4711));
    assert_eq!(facts(&path), facts(&backing));
    as_user(&mount.mnt, user(1234), || {
        chmod(Path::new("open/file"), 0o6755);
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::options().write(true).open("open/file").unwrap().set_times(times).unwrap();
    });
    assert_eq!(facts(&backing).2, 0o6755);
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 0);
    // A write by an ordinary user clears the set-id bits.
    as_user(&mount.mnt, user(1234), || {
        fs::write("open/file", "y").unwrap();
    });
    assert_eq!(facts(&path).2, 0o755);
    assert_eq!(facts(&backing).2, 0o755);
    sync_all(&mount.mnt);
    assert_eq!(fs::read(&backing).unwrap(), b"y");
}

/// "`fsync` of the mount's root directory … open to every user".
#[test]
fn any_user_may_synchronize_the_mount() {
    if !is_root() {
        return;
    }
    let mount = shared();
    let file = crate::bytes::open(&mount.at("dirty"));
    crate::support::write_pattern(&file, 3_000_001, 1 << 20);
    as_user(&mount.mnt, user(1234), || {
        File::open(".").unwrap().sync_all().unwrap();
    });
    crate::support::is_pattern(&mount.backing("dirty"), 3_000_001);
}

/// "statfs": the swap folder's filesystem.
#[test]
fn statfs_is_the_swap_folders() {
    let mount = Mount::new("pool_size=8m");
    let facts = |path: &Path| {
        let s = rustix::fs::statvfs(path).unwrap();
        (s.f_blocks * s.f_frsize, s.f_files, s.f_namemax, s.f_bsize)
    };
    assert_eq!(facts(&mount.mnt), facts(&mount.swap));
    let free = |path: &Path| rustix::fs::statvfs(path).unwrap().f_bavail;
    assert!(free(&mount.mnt).abs_diff(free(&mount.swap)) < free(&mount.swap) / 20);
}
