//! Whose files are made, with which mode.

use std::os::unix::fs::PermissionsExt;

use super::*;

fn set_mode(path: &std::path::Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn what_is_made_belongs_to_its_caller() {
    if !is_root("what_is_made_belongs_to_its_caller") {
        return;
    }
    let swap = Swap::new();
    let folder = swap.mkdir(ROOT_ID, "closed");
    // The kernel has checked the caller's permission; here only root may write, and the call still
    // succeeds.
    set_mode(&swap.path("closed"), 0o700);
    let user = caller(1000, 1001, 0o022);
    let owner = |entry: Entry| (entry.attributes.uid, entry.attributes.gid);
    let file = swap.tree.create(folder.id, OsStr::new("f"), &user, 0o666, true, false).unwrap();
    assert_eq!(owner(file.entry), (1000, 1001));
    assert_eq!(file.entry.attributes.mode, 0o644);
    let directory = swap.tree.mkdir(folder.id, OsStr::new("d"), &user, 0o1777).unwrap();
    assert_eq!((owner(directory), directory.attributes.mode), ((1000, 1001), 0o1755));
    let link = swap.tree.symlink(folder.id, OsStr::new("l"), &user, OsStr::new("x")).unwrap();
    assert_eq!(owner(link), (1000, 1001));
    let pipe = swap.tree.mknod(folder.id, OsStr::new("p"), &user, FileKind::Pipe, 0o666, 0);
    assert_eq!(owner(pipe.unwrap()), (1000, 1001));
    // This thread is root again.
    assert_eq!(owner(swap.make(folder.id, "r")), (0, 0));
    assert!(crate::sys::act_as(u32::MAX - 1, 5).is_ok());
    assert_eq!(owner(swap.make(folder.id, "s")), (0, 0));
}

#[test]
fn set_group_id_folders_give_their_group() {
    if !is_root("set_group_id_folders_give_their_group") {
        return;
    }
    let swap = Swap::new();
    let folder = swap.mkdir(ROOT_ID, "shared");
    swap.tree.set_owner(folder.id, Some(0), Some(2000)).unwrap();
    swap.tree.set_mode(folder.id, 0o2777).unwrap();
    let user = caller(1000, 1000, 0);
    let file = swap.tree.create(folder.id, OsStr::new("f"), &user, 0o666, true, false).unwrap();
    assert_eq!((file.entry.attributes.uid, file.entry.attributes.gid), (1000, 2000));
    let directory = swap.tree.mkdir(folder.id, OsStr::new("d"), &user, 0o777).unwrap();
    assert_eq!((directory.attributes.gid, directory.attributes.mode), (2000, 0o2777));
    // A set-group-id program of a group that its maker is not in would lend him that group.
    let program = swap.tree.create(folder.id, OsStr::new("p"), &user, 0o2755, true, false).unwrap();
    assert_eq!((program.entry.attributes.gid, program.entry.attributes.mode), (2000, 0o755));
    let member = caller(1000, 2000, 0);
    let program = swap.tree.create(folder.id, OsStr::new("q"), &member, 0o2755, true, false);
    assert_eq!(program.unwrap().entry.attributes.mode, 0o2755);
}

#[test]
fn a_default_acl_takes_the_place_of_the_umask() {
    let swap = Swap::new();
    let folder = swap.mkdir(ROOT_ID, "acl");
    // u::rwx,g::rwx,o::r-x, as the kernel stores it.
    let mut acl = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions) in [(1_u16, 7_u16), (4, 7), (0x20, 5)] {
        acl.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        acl.extend(u32::MAX.to_le_bytes());
    }
    let none = rustix::fs::XattrFlags::empty();
    if let Err(error) =
        rustix::fs::setxattr(swap.path("acl"), "system.posix_acl_default", &acl, none)
    {
        assert_eq!(error, rustix::io::Errno::OPNOTSUPP);
        eprintln!("skipped a_default_acl_takes_the_place_of_the_umask: no ACLs here");
        return;
    }
    let owner = Caller { umask: 0o077, ..own() };
    let make = |parent, name: &str| {
        let created = swap.tree.create(parent, OsStr::new(name), &owner, 0o666, true, false);
        created.unwrap().entry.attributes.mode
    };
    assert_eq!(make(folder.id, "with"), 0o664);
    assert_eq!(make(ROOT_ID, "without"), 0o600);
    let below = swap.tree.mkdir(folder.id, OsStr::new("below"), &owner, 0o777).unwrap();
    assert_eq!(below.attributes.mode, 0o775);
    assert_eq!(make(below.id, "inherited"), 0o664);
}
