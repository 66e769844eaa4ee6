//! Lookups, identity, and what the creating and removing calls do.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;

use super::*;

#[test]
fn lookups_are_counted_and_forgotten() {
    let swap = Swap::new();
    swap.plant("a");
    let first = swap.look("a").unwrap();
    let second = swap.look("a").unwrap();
    assert_eq!((first.id, first.generation), (second.id, second.generation));
    assert_eq!(first.id, swap.path("a").metadata().unwrap().ino());
    assert_eq!(first.attributes.ino, first.id);
    assert_eq!(swap.lookups(first.id), 2);
    let key = swap.tree.key(first.id).unwrap();
    assert_eq!(swap.tree.id_of_key(&key), Some(first.id));
    assert_eq!(swap.tree.forget(first.id, 1), None);
    assert!(swap.tree.attributes(first.id).is_ok());
    assert_eq!(swap.tree.forget(first.id, 1), Some(key));
    assert_eq!(swap.tree.attributes(first.id), Err(Errno::ESTALE));
    assert_eq!(swap.tree.known_count(), 1);
    assert_eq!(swap.tree.table.lock().descriptor_count(), 0);
}

#[test]
fn the_root_is_1_and_is_never_forgotten() {
    let swap = Swap::new();
    assert_eq!(swap.tree.attributes(ROOT_ID).unwrap().ino, ROOT_ID);
    assert_eq!(swap.tree.attributes(ROOT_ID).unwrap().kind, FileKind::Directory);
    assert_eq!(swap.tree.forget(ROOT_ID, 5), None);
    assert!(swap.tree.attributes(ROOT_ID).is_ok());
    assert_eq!(super::super::id_of(77, 77), ROOT_ID);
    assert_eq!(super::super::id_of(77, 1), 77);
    assert_eq!(super::super::id_of(77, 5), 5);
}

#[test]
fn attributes_are_those_of_the_swap_folder() {
    let swap = Swap::new();
    swap.plant("a");
    let Attributes { size, blocks, block_size, nlink, uid, gid, mode, mtime, kind, .. } =
        swap.look("a").unwrap().attributes;
    let metadata = swap.path("a").metadata().unwrap();
    assert_eq!((size, blocks, u64::from(block_size)), (1, metadata.blocks(), metadata.blksize()));
    assert_eq!((u64::from(nlink), uid, gid), (1, metadata.uid(), metadata.gid()));
    assert_eq!((mode, kind), (metadata.mode() & 0o7777, FileKind::Regular));
    assert_eq!(mtime, metadata.modified().unwrap());
}

#[test]
fn names_that_are_no_single_component_are_refused() {
    let swap = Swap::new();
    let long = "x".repeat(256);
    for (name, errno) in [
        ("", Errno::EINVAL),
        (".", Errno::EINVAL),
        ("..", Errno::EINVAL),
        ("a/b", Errno::EINVAL),
        ("/", Errno::EINVAL),
        ("a\0b", Errno::EINVAL),
        (long.as_str(), Errno::ENAMETOOLONG),
        ("absent", Errno::ENOENT),
    ] {
        assert_eq!(swap.look(name), Err(errno), "{name:?}");
    }
    swap.make(ROOT_ID, &"x".repeat(255));
    assert_eq!(swap.tree.mkdir(ROOT_ID, OsStr::new(".."), &own(), 0o755), Err(Errno::EINVAL));
    let file = swap.make(ROOT_ID, "file");
    assert_eq!(swap.tree.lookup(file.id, OsStr::new("a")), Err(Errno::ENOTDIR));
    assert_eq!(swap.tree.lookup(424_242_424_242, OsStr::new("a")), Err(Errno::ESTALE));
}

#[test]
fn names_are_bytes() {
    let swap = Swap::new();
    for name in [&b"\xff\xfe invalid"[..], b"new\nline", b"\x01\x7f", b" "] {
        let name = OsStr::from_bytes(name);
        let made = swap.tree.mkdir(ROOT_ID, name, &own(), 0o755).unwrap();
        assert!(swap.path(name).is_dir());
        assert_eq!(swap.tree.lookup(ROOT_ID, name).unwrap().id, made.id);
        assert_eq!(swap.tree.backing_path(made.id).unwrap(), swap.path(name));
        swap.tree.rmdir(User::OWN, ROOT_ID, name).unwrap();
    }
}

#[test]
fn the_private_name_is_hidden_in_the_root_only() {
    let swap = Swap::new();
    std::fs::create_dir(swap.path(".swapfs")).unwrap();
    let name = OsStr::new(".swapfs");
    assert_eq!(swap.look(".swapfs"), Err(Errno::ENOENT));
    assert_eq!(swap.tree.rmdir(User::OWN, ROOT_ID, name), Err(Errno::ENOENT));
    assert_eq!(swap.tree.mkdir(ROOT_ID, name, &own(), 0o755), Err(Errno::EPERM));
    let file = swap.make(ROOT_ID, "file");
    assert_eq!(swap.tree.link(file.id, ROOT_ID, name), Err(Errno::EPERM));
    let moved = swap.tree.rename(
        User::OWN,
        (ROOT_ID, OsStr::new("file")),
        (ROOT_ID, name),
        RenameKind::Replace,
    );
    assert_eq!(moved, Err(Errno::EPERM));
    let below = swap.mkdir(ROOT_ID, "below");
    assert!(swap.tree.mkdir(below.id, name, &own(), 0o755).is_ok());
}

#[test]
fn identity_survives_rename_and_hard_links() {
    let swap = Swap::new();
    let folder = swap.mkdir(ROOT_ID, "folder");
    let file = swap.make(ROOT_ID, "a");
    let key = swap.tree.key(file.id).unwrap();
    swap.rename((ROOT_ID, "a"), (folder.id, "b"));
    assert_eq!(swap.tree.key(file.id), Ok(key));
    assert_eq!(swap.tree.backing_path(file.id).unwrap(), swap.path("folder/b"));
    let linked = swap.tree.link(file.id, ROOT_ID, OsStr::new("c")).unwrap();
    assert_eq!((linked.id, linked.attributes.nlink), (file.id, 2));
    assert_eq!(swap.lookups(file.id), 2);
    // Two names of one inode: rename does nothing.
    swap.rename((ROOT_ID, "c"), (folder.id, "b"));
    assert!(swap.path("c").exists() && swap.path("folder/b").exists());
    assert_eq!(swap.tree.unlink(User::OWN, folder.id, OsStr::new("b")), Ok(None));
    let gone = swap.tree.unlink(User::OWN, ROOT_ID, OsStr::new("c")).unwrap().unwrap();
    assert_eq!((gone.key, gone.id, gone.kind), (key, Some(file.id), FileKind::Regular));
}

#[test]
fn rename_replaces_refuses_and_exchanges() {
    let swap = Swap::new();
    let (a, b) = (swap.make(ROOT_ID, "a"), swap.make(ROOT_ID, "b"));
    let rename = |kind| {
        swap.tree.rename(User::OWN, (ROOT_ID, OsStr::new("a")), (ROOT_ID, OsStr::new("b")), kind)
    };
    assert_eq!(rename(RenameKind::NoReplace), Err(Errno::EEXIST));
    assert_eq!(rename(RenameKind::Exchange), Ok(None));
    assert_eq!(swap.look("a").unwrap().id, b.id);
    assert_eq!(swap.look("b").unwrap().id, a.id);
    let gone = rename(RenameKind::Replace).unwrap().unwrap();
    assert_eq!(gone.id, Some(a.id));
    assert_eq!(swap.look("b").unwrap().id, b.id);
    assert_eq!(swap.tree.attributes(a.id).unwrap().nlink, 0);
    assert_eq!(rename(RenameKind::Replace), Err(Errno::ENOENT));
    assert_eq!(RenameKind::from_flags(2), Ok(RenameKind::Exchange));
    assert_eq!(RenameKind::from_flags(1), Ok(RenameKind::NoReplace));
    assert_eq!(RenameKind::from_flags(3), Err(Errno::EINVAL));
    assert_eq!(RenameKind::from_flags(4), Ok(RenameKind::Whiteout));
    assert_eq!(RenameKind::from_flags(5), Ok(RenameKind::NoReplaceWhiteout));
    for flags in [6, 7, 8, 12, u32::MAX] {
        assert_eq!(RenameKind::from_flags(flags), Err(Errno::EINVAL), "{flags}");
    }
}

#[test]
fn replacing_an_unknown_file_reports_it_without_an_id() {
    let swap = Swap::new();
    swap.plant("a");
    swap.plant("b");
    let key = swap.look("b").map(|entry| swap.tree.key(entry.id).unwrap()).unwrap();
    swap.tree.forget(key.ino, 1);
    let (a, b) = (OsStr::new("a"), OsStr::new("b"));
    let gone = swap
        .tree
        .rename(User::OWN, (ROOT_ID, a), (ROOT_ID, b), RenameKind::Replace)
        .unwrap()
        .unwrap();
    assert_eq!((gone.key, gone.id), (key, None));
}

#[test]
fn directories_lose_their_name_only_when_empty() {
    let swap = Swap::new();
    let folder = swap.mkdir(ROOT_ID, "folder");
    swap.make(folder.id, "file");
    let name = OsStr::new("folder");
    assert_eq!(swap.tree.rmdir(User::OWN, ROOT_ID, name), Err(Errno::ENOTEMPTY));
    assert_eq!(swap.tree.unlink(User::OWN, ROOT_ID, name), Err(Errno::EISDIR));
    assert_eq!(swap.tree.rmdir(User::OWN, folder.id, OsStr::new("file")), Err(Errno::ENOTDIR));
    swap.tree.unlink(User::OWN, folder.id, OsStr::new("file")).unwrap();
    swap.tree.rmdir(User::OWN, ROOT_ID, name).unwrap();
    assert!(swap.tree.attributes(folder.id).is_ok(), "known until forgotten");
    assert_eq!(
        swap.tree.mkdir(folder.id, OsStr::new("late"), &own(), 0o755),
        Err(Errno::ENOENT),
        "nothing is made in a removed directory"
    );
}

#[test]
fn symlinks_are_entries_and_never_followed() {
    let swap = Swap::new();
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("secret"), "x").unwrap();
    symlink(outside.path(), swap.path("escape")).unwrap();
    let escape = swap.look("escape").unwrap();
    assert_eq!(escape.attributes.kind, FileKind::Symlink);
    assert_eq!(swap.tree.readlink(escape.id).unwrap(), outside.path().as_os_str());
    assert_eq!(swap.tree.lookup(escape.id, OsStr::new("secret")), Err(Errno::ENOTDIR));
    assert_eq!(swap.tree.open_dir(User::OWN, escape.id).map(|_| ()), Err(Errno::ENOTDIR));
    let open = swap.tree.open_file(escape.id, super::super::Access::ReadOnly, false);
    assert_eq!(open.map(|_| ()), Err(Errno::ELOOP));
    let created =
        swap.tree.create(ROOT_ID, OsStr::new("escape"), &own(), 0o644, false, false).map(|_| ());
    assert_eq!(created, Err(Errno::ELOOP));
    let target = OsStr::from_bytes(b"any\xffwhere");
    let made = swap.tree.symlink(ROOT_ID, OsStr::new("made"), &own(), target).unwrap();
    assert_eq!(swap.tree.readlink(made.id).unwrap(), target);
    let linked = swap.tree.link(made.id, ROOT_ID, OsStr::new("again")).unwrap();
    assert_eq!((linked.id, linked.attributes.kind), (made.id, FileKind::Symlink));
    let file = swap.make(ROOT_ID, "file");
    assert_eq!(swap.tree.readlink(file.id), Err(Errno::EINVAL));
}

#[test]
fn special_files_are_made_but_not_opened() {
    let swap = Swap::new();
    let make = |name: &str, kind| {
        swap.tree.mknod(ROOT_ID, OsStr::new(name), &own(), kind, 0o640, 0).unwrap()
    };
    let pipe = make("pipe", FileKind::Pipe);
    assert_eq!((pipe.attributes.kind, pipe.attributes.mode), (FileKind::Pipe, 0o640));
    let open = swap.tree.open_file(pipe.id, super::super::Access::ReadOnly, false);
    assert_eq!(open.map(|_| ()), Err(Errno::ENXIO));
    assert_eq!(make("socket", FileKind::Socket).attributes.kind, FileKind::Socket);
    assert_eq!(make("file", FileKind::Regular).attributes.kind, FileKind::Regular);
    let device =
        swap.tree.mknod(ROOT_ID, OsStr::new("null"), &own(), FileKind::CharDevice, 0o600, 0x0103);
    // Containers may lack CAP_MKNOD.
    if let Ok(device) = device {
        assert_eq!(
            (device.attributes.kind, device.attributes.rdev),
            (FileKind::CharDevice, 0x0103)
        );
    }
    let directory =
        swap.tree.mknod(ROOT_ID, OsStr::new("d"), &own(), FileKind::Directory, 0o755, 0);
    assert_eq!(directory, Err(Errno::EINVAL));
}
