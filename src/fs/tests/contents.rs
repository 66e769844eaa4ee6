//! Descriptors for bytes, attributes that change, extended attributes.

use std::io::{Read, Seek, Write};
use std::time::{Duration, UNIX_EPOCH};

use super::super::{Access, TimeChange, XattrMode};
use super::*;

#[test]
fn creating_is_exclusive_when_asked() {
    let swap = Swap::new();
    let name = OsStr::new("a");
    let first = swap.tree.create(ROOT_ID, name, &own(), 0o600, false, false).unwrap();
    assert!(first.is_new);
    File::from(first.descriptor).write_all(b"data").unwrap();
    let second = swap.tree.create(ROOT_ID, name, &own(), 0o644, false, false).unwrap();
    assert!(!second.is_new);
    assert_eq!(second.entry.id, first.entry.id);
    assert_eq!((second.entry.attributes.mode, second.entry.attributes.size), (0o600, 4));
    assert_eq!(swap.lookups(first.entry.id), 2);
    let third = swap.tree.create(ROOT_ID, name, &own(), 0o600, true, false);
    assert_eq!(third.map(|_| ()), Err(Errno::EEXIST));
    swap.mkdir(ROOT_ID, "d");
    let on_directory = swap.tree.create(ROOT_ID, OsStr::new("d"), &own(), 0o600, false, false);
    assert_eq!(on_directory.map(|_| ()), Err(Errno::EISDIR));
    assert_eq!(swap.lookups(swap.look("d").unwrap().id), 2, "the failed one is not counted");
}

#[test]
fn a_created_file_is_writable_whatever_its_mode() {
    let swap = Swap::new();
    let created = swap.tree.create(ROOT_ID, OsStr::new("a"), &own(), 0o000, true, false).unwrap();
    let mut file = File::from(created.descriptor);
    file.write_all(b"data").unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), created.entry.attributes.mode), ("data", 0));
}

#[test]
fn direct_is_passed_on() {
    let swap = Swap::new();
    let is_direct = |descriptor: &std::os::fd::OwnedFd| {
        rustix::fs::fcntl_getfl(descriptor).unwrap().contains(rustix::fs::OFlags::DIRECT)
    };
    match swap.tree.create(ROOT_ID, OsStr::new("a"), &own(), 0o600, true, true) {
        Ok(created) => {
            assert!(is_direct(&created.descriptor));
            let again = swap.tree.open_file(created.entry.id, Access::ReadOnly, true).unwrap();
            assert!(is_direct(&again));
            let plain = swap.tree.open_file(created.entry.id, Access::ReadWrite, false).unwrap();
            assert!(!is_direct(&plain));
        }
        Err(error) => assert_eq!(error, Errno::EINVAL, "no O_DIRECT here"),
    }
}

#[test]
fn an_unlinked_file_lives_while_it_is_known() {
    let swap = Swap::with(Options { descriptors_max: 1, ..Options::default() });
    let file = swap.make(ROOT_ID, "a");
    swap.tree.unlink(User::OWN, ROOT_ID, OsStr::new("a")).unwrap().unwrap();
    // Others take the only descriptor there is.
    for name in ["b", "c", "d"] {
        swap.make(ROOT_ID, name);
    }
    let attributes = swap.tree.attributes(file.id).unwrap();
    assert_eq!((attributes.ino, attributes.nlink), (file.id, 0));
    let descriptor = swap.tree.open_file(file.id, Access::ReadWrite, false).unwrap();
    File::from(descriptor).write_all(b"still here").unwrap();
    assert_eq!(swap.tree.attributes(file.id).unwrap().size, 10);
    swap.tree.set_mode(file.id, 0o600).unwrap();
    assert_eq!(swap.tree.backing_path(file.id).unwrap(), PathBuf::new());
    assert_eq!(swap.tree.link(file.id, ROOT_ID, OsStr::new("back")), Err(Errno::ENOENT));
    assert!(swap.tree.forget(file.id, 1).is_some());
    assert_eq!(swap.tree.attributes(file.id), Err(Errno::ESTALE));
}

#[test]
fn modes_and_owners_change() {
    let swap = Swap::new();
    let file = swap.make(ROOT_ID, "a");
    swap.tree.set_mode(file.id, 0o6751).unwrap();
    assert_eq!(swap.tree.attributes(file.id).unwrap().mode, 0o6751);
    let target = OsStr::new("a");
    let link = swap.tree.symlink(ROOT_ID, OsStr::new("link"), &own(), target).unwrap();
    assert_eq!(swap.tree.set_mode(link.id, 0o600), Err(Errno::EOPNOTSUPP));
    assert_eq!(swap.tree.set_owner(file.id, Some(u32::MAX), None), Err(Errno::EINVAL));
    if !is_root("modes_and_owners_change") {
        return;
    }
    swap.tree.set_owner(file.id, Some(1000), None).unwrap();
    let attributes = swap.tree.attributes(file.id).unwrap();
    assert_eq!((attributes.uid, attributes.gid, attributes.mode), (1000, 0, 0o751));
    swap.tree.set_owner(link.id, None, Some(7)).unwrap();
    let attributes = swap.tree.attributes(link.id).unwrap();
    assert_eq!((attributes.uid, attributes.gid), (0, 7));
    assert_eq!(swap.tree.attributes(file.id).unwrap().gid, 0, "the link is not followed");
}

#[test]
fn times_change_one_by_one() {
    let swap = Swap::new();
    let file = swap.make(ROOT_ID, "a");
    let early = UNIX_EPOCH - Duration::new(5, 250);
    let late = UNIX_EPOCH + Duration::new(2_000_000_000, 999_999_999);
    swap.tree.set_times(file.id, TimeChange::At(early), TimeChange::At(late)).unwrap();
    let attributes = swap.tree.attributes(file.id).unwrap();
    assert_eq!((attributes.atime, attributes.mtime), (early, late));
    swap.tree.set_times(file.id, TimeChange::Keep, TimeChange::Now).unwrap();
    let attributes = swap.tree.attributes(file.id).unwrap();
    assert_eq!(attributes.atime, early);
    assert!(attributes.mtime.elapsed().is_ok_and(|age| age < Duration::from_secs(60)));
    let target = OsStr::new("a");
    let link = swap.tree.symlink(ROOT_ID, OsStr::new("link"), &own(), target).unwrap();
    swap.tree.set_times(link.id, TimeChange::Keep, TimeChange::At(late)).unwrap();
    assert_eq!(swap.tree.attributes(link.id).unwrap().mtime, late);
    assert_ne!(swap.tree.attributes(file.id).unwrap().mtime, late);
}

#[test]
fn xattrs_pass_through() {
    let swap = Swap::new();
    let file = swap.make(ROOT_ID, "a");
    let name = OsStr::new("user.colour");
    let set = |value: &[u8], mode| swap.tree.set_xattr(file.id, name, value, mode);
    assert_eq!(swap.tree.xattr(file.id, name), Err(Errno::ENODATA));
    assert_eq!(set(b"red", XattrMode::Replace), Err(Errno::ENODATA));
    set(b"red\0\xff", XattrMode::Create).unwrap();
    assert_eq!(set(b"blue", XattrMode::Create), Err(Errno::EEXIST));
    assert_eq!(swap.tree.xattr(file.id, name).unwrap(), b"red\0\xff");
    set(b"", XattrMode::Any).unwrap();
    assert_eq!(swap.tree.xattr(file.id, name).unwrap(), b"");
    assert_eq!(swap.tree.list_xattrs(file.id).unwrap(), b"user.colour\0");
    swap.tree.remove_xattr(file.id, name).unwrap();
    assert_eq!(swap.tree.remove_xattr(file.id, name), Err(Errno::ENODATA));
    let unknown = swap.tree.set_xattr(file.id, OsStr::new("nowhere.a"), b"x", XattrMode::Any);
    assert_eq!(unknown, Err(Errno::EOPNOTSUPP));
    assert_eq!(XattrMode::from_flags(3), Err(Errno::EINVAL));
}

#[test]
fn xattrs_of_a_symlink_are_its_own() {
    let swap = Swap::new();
    let file = swap.make(ROOT_ID, "a");
    let (name, target) = (OsStr::new("user.a"), OsStr::new("a"));
    let link = swap.tree.symlink(ROOT_ID, OsStr::new("link"), &own(), target).unwrap();
    swap.tree.set_xattr(file.id, name, b"file's", XattrMode::Any).unwrap();
    assert_eq!(swap.tree.xattr(link.id, name), Err(Errno::ENODATA));
    assert_eq!(swap.tree.set_xattr(link.id, name, b"x", XattrMode::Any), Err(Errno::EPERM));
    assert_eq!(swap.tree.list_xattrs(link.id).unwrap(), b"");
}

#[test]
fn the_largest_value_comes_back_whole() {
    let swap = Swap::in_folder(tempfile::tempdir_in("/dev/shm").unwrap(), Options::default());
    let file = swap.make(ROOT_ID, "a");
    let value = vec![7; 60_000];
    match swap.tree.set_xattr(file.id, OsStr::new("user.large"), &value, XattrMode::Any) {
        Ok(()) => assert_eq!(swap.tree.xattr(file.id, OsStr::new("user.large")).unwrap(), value),
        Err(error) => eprintln!("skipped the_largest_value_comes_back_whole: {error:?}"),
    }
}

#[test]
fn space_is_that_of_the_filesystem() {
    let swap = Swap::new();
    let space = swap.tree.space().unwrap();
    assert!(space.blocks >= space.blocks_free && space.blocks_free >= space.blocks_available);
    assert!(space.block_size >= 512 && space.fragment_size >= 512 && space.name_bytes_max == 255);
    swap.tree.synchronize().unwrap();
}
