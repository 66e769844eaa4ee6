//! Names: the mount's tree is the swap folder's.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::bytes::open;
use crate::place::Mount;
use crate::support::{MIB, errno, is_pattern, make_fifo, same, sync_all, write_pattern};

/// "`MOUNTPOINT/a/b` is `SWAP_FOLDER/a/b`, same bytes, same size, same mode, owner, times".
#[test]
fn the_mapping_is_one_to_one() {
    let mount = Mount::new("pool_size=8m");
    fs::create_dir_all(mount.at("a/b")).unwrap();
    write_pattern(&open(&mount.at("a/b/file")), MIB + 1, 1 << 20);
    symlink("b/file", mount.at("a/link")).unwrap();
    make_fifo(&mount.at("a/fifo"));
    let changed = |path: &Path| {
        let metadata = fs::symlink_metadata(path).unwrap();
        (metadata.ctime(), metadata.ctime_nsec())
    };
    let written = changed(&mount.at("a/b/file"));
    sync_all(&mount.mnt);
    // The filesystem counts the write-out as a change, and lets nobody say otherwise.
    assert_eq!(changed(&mount.at("a/b/file")), written);
    assert!(changed(&mount.backing("a/b/file")) >= written);
    is_pattern(&mount.backing("a/b/file"), MIB + 1);
    for name in ["", "a", "a/b", "a/b/file", "a/link", "a/fifo"] {
        let on_mount = fs::symlink_metadata(mount.at(name)).unwrap();
        let beneath = fs::symlink_metadata(mount.backing(name)).unwrap();
        let facts = |m: &fs::Metadata| {
            let changed = (!m.is_file()).then(|| (m.ctime(), m.ctime_nsec()));
            let times = (m.mtime(), m.mtime_nsec(), changed);
            (m.mode(), m.uid(), m.gid(), m.nlink(), m.len(), times)
        };
        assert_eq!(facts(&on_mount), facts(&beneath), "{name}");
        if !name.is_empty() {
            assert_eq!(on_mount.ino(), beneath.ino(), "{name}");
        }
    }
    assert!(fs::symlink_metadata(mount.at("a/fifo")).unwrap().file_type().is_fifo());
}

fn rename(from: &Path, to: &Path, flags: RenameFlags) -> Result<(), Errno> {
    renameat_with(CWD, from, CWD, to, flags)
}

/// "rename (also RENAME_NOREPLACE/EXCHANGE)", over an open file too.
#[test]
fn rename_replaces_refuses_and_exchanges() {
    let mount = Mount::new("pool_size=8m");
    fs::create_dir(mount.at("dir")).unwrap();
    let (a, b, c) = (mount.at("a"), mount.at("dir/b"), mount.at("c"));
    fs::write(&a, "bytes of a").unwrap();
    fs::write(&b, "bytes of b").unwrap();
    let none = RenameFlags::empty();
    assert_eq!(rename(&a, &b, RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename(&a, &c, RenameFlags::NOREPLACE).unwrap();
    assert!(!a.exists());
    rename(&c, &b, RenameFlags::EXCHANGE).unwrap();
    assert_eq!(
        (fs::read(&c).unwrap(), fs::read(&b).unwrap()),
        (b"bytes of b".into(), b"bytes of a".into())
    );
    assert_eq!(rename(&a, &b, RenameFlags::EXCHANGE), Err(Errno::NOENT));
    // Who has the replaced file open keeps it.
    let (replaced, moved) = (open(&b), open(&c));
    rename(&c, &b, none).unwrap();
    replaced.write_all_at(b"still", 0).unwrap();
    moved.write_all_at(b"moved", 0).unwrap();
    assert_eq!(replaced.metadata().unwrap().nlink(), 0);
    let mut bytes = [0; 10];
    replaced.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"still of a");
    assert_eq!(fs::read(&b).unwrap(), b"moved of b");
    drop((replaced, moved));
    rename(&mount.at("dir"), &mount.at("other"), none).unwrap();
    assert_eq!(errno(fs::rename(mount.at("other"), mount.at("other/below"))), Errno::INVAL);
    fs::create_dir(mount.at("full")).unwrap();
    fs::write(mount.at("full/x"), "").unwrap();
    assert_eq!(errno(fs::rename(mount.at("other"), mount.at("full"))), Errno::NOTEMPTY);
    mount.unmount();
    assert_eq!(fs::read(mount.backing("other/b")).unwrap(), b"moved of b");
    assert_eq!(fs::read_dir(mount.backing("other")).unwrap().count(), 1);
}

/// "link": both names are one file.
#[test]
fn hard_links_are_one_file() {
    let mount = Mount::new("pool_size=8m");
    let (first, second) = (mount.at("first"), mount.at("second"));
    let file = open(&first);
    file.write_all_at(b"dirty bytes", 0).unwrap();
    fs::hard_link(&first, &second).unwrap();
    let (a, b) = (fs::metadata(&first).unwrap(), fs::metadata(&second).unwrap());
    assert_eq!((a.ino(), a.nlink(), a.len()), (b.ino(), 2, 11));
    assert_eq!(a.nlink(), b.nlink());
    assert_eq!(fs::read(&second).unwrap(), b"dirty bytes");
    open(&second).write_all_at(b"DIRTY", 0).unwrap();
    assert_eq!(fs::read(&first).unwrap(), b"DIRTY bytes");
    fs::remove_file(&first).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 1);
    drop(file);
    assert_eq!(fs::read(&second).unwrap(), b"DIRTY bytes");
    assert_eq!(errno(fs::hard_link(&second, &second)), Errno::EXIST);
    mount.unmount();
    assert_eq!(fs::read(mount.backing("second")).unwrap(), b"DIRTY bytes");
}

/// "symlink": the client follows it by its own rules; the daemon never does.
#[test]
fn symlinks_are_followed_by_the_client_alone() {
    let mount = Mount::new("pool_size=8m");
    let outside = mount.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "outside").unwrap();
    symlink(&outside, mount.at("absolute")).unwrap();
    symlink("../outside/file", mount.at("relative")).unwrap();
    symlink("nowhere", mount.at("dangling")).unwrap();
    let long = "x/".repeat(2000);
    symlink(&long, mount.at("long")).unwrap();
    for name in ["absolute", "relative", "dangling", "long"] {
        let target = fs::read_link(mount.at(name)).unwrap();
        assert_eq!(target, fs::read_link(mount.backing(name)).unwrap());
        assert!(fs::symlink_metadata(mount.at(name)).unwrap().is_symlink());
    }
    assert_eq!(fs::read(mount.at("absolute/file")).unwrap(), b"outside");
    assert_eq!(fs::read(mount.at("relative")).unwrap(), b"outside");
    assert_eq!(errno(File::open(mount.at("dangling"))), Errno::NOENT);
    // Changes to the link itself do not reach what it points to.
    std::os::unix::fs::lchown(mount.at("relative"), Some(1234), None).ok();
    fs::rename(mount.at("relative"), mount.at("renamed")).unwrap();
    fs::remove_file(mount.at("renamed")).unwrap();
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"outside");
    assert_ne!(fs::metadata(outside.join("file")).unwrap().uid(), 1234);
}

/// "directory … semantics of the backing filesystem": what must not be removed is refused.
#[test]
fn folders_with_something_in_them_stay() {
    let mount = Mount::new("pool_size=8m");
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "x").unwrap();
    assert_eq!(errno(fs::remove_dir(mount.at("dir"))), Errno::NOTEMPTY);
    assert_eq!(errno(fs::remove_file(mount.at("dir"))), Errno::ISDIR);
    assert_eq!(errno(fs::remove_dir(mount.at("dir/file"))), Errno::NOTDIR);
    assert_eq!(errno(fs::create_dir(mount.at("dir"))), Errno::EXIST);
    // Removed while open: the folder goes at once, nothing is left behind under another name.
    let file = open(&mount.at("dir/file"));
    fs::remove_dir_all(mount.at("dir")).unwrap();
    file.write_all_at(b"y", 0).unwrap();
    assert_eq!(fs::read_dir(&mount.mnt).unwrap().count(), 0);
    assert!(!mount.backing("dir").exists());
}

/// Any name that the swap folder takes is a name on the mount.
#[test]
fn odd_names_work_and_long_ones_are_refused() {
    let mount = Mount::new("pool_size=8m");
    let longest = [b'n'; 255];
    let odd: [&[u8]; 6] =
        [b"new\nline", b"\xff\xfe invalid", b" ", b"...", b"a\\b\t\x01", &longest];
    for name in odd {
        let name = OsStr::from_bytes(name);
        fs::write(mount.mnt.join(name), name.as_bytes()).unwrap();
        same(&fs::read(mount.mnt.join(name)).unwrap(), name.as_bytes());
    }
    let too_long = mount.at(&"n".repeat(256));
    assert_eq!(errno(File::create(&too_long)), Errno::NAMETOOLONG);
    assert_eq!(errno(fs::create_dir(&too_long)), Errno::NAMETOOLONG);
    assert_eq!(errno(fs::metadata(&too_long)), Errno::NAMETOOLONG);
    let mut listed: Vec<_> =
        fs::read_dir(&mount.mnt).unwrap().map(|e| e.unwrap().file_name()).collect();
    let mut expected: Vec<_> = odd.iter().map(|name| OsStr::from_bytes(name).to_owned()).collect();
    listed.sort();
    expected.sort();
    assert_eq!(listed, expected);
    mount.unmount();
    for name in odd {
        same(&fs::read(mount.swap.join(OsStr::from_bytes(name))).unwrap(), name);
    }
}

/// A listing has every name once, however many there are and whatever is removed meanwhile.
#[test]
fn five_thousand_names_are_listed_once_each() {
    let mount = Mount::new("pool_size=8m");
    fs::create_dir(mount.at("many")).unwrap();
    for number in 0..5000 {
        // Half of them are older than the mount's idea of them.
        let folder = if number % 2 == 0 { mount.at("many") } else { mount.backing("many") };
        fs::write(folder.join(format!("name-{number}")), "").unwrap();
    }
    let mut listed = BTreeSet::new();
    for entry in fs::read_dir(mount.at("many")).unwrap() {
        let entry = entry.unwrap();
        assert!(entry.metadata().unwrap().is_file());
        assert!(listed.insert(entry.file_name()), "{:?} is listed twice", entry.file_name());
    }
    assert_eq!(listed.len(), 5000);
    // Removing while listing, as rm -r does.
    for entry in fs::read_dir(mount.at("many")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    fs::remove_dir(mount.at("many")).unwrap();
    assert!(!mount.backing("many").exists());
}

/// "fcntl and flock locks": taken by one opener, they keep another out.
#[test]
fn locks_keep_others_out() {
    let mount = Mount::new("pool_size=8m");
    let (first, second) = (open(&mount.at("file")), open(&mount.at("file")));
    first.lock().unwrap();
    assert!(matches!(second.try_lock(), Err(fs::TryLockError::WouldBlock)));
    first.unlock().unwrap();
    second.try_lock().unwrap();
    second.unlock().unwrap();
    let lock = libc::flock {
        l_type: libc::F_WRLCK as i16,
        l_whence: libc::SEEK_SET as i16,
        l_start: 10,
        l_len: 5,
        l_pid: 0,
    };
    let set = nix::fcntl::FcntlArg::F_OFD_SETLK(&lock);
    nix::fcntl::fcntl(&first, set).unwrap();
    let set = nix::fcntl::FcntlArg::F_OFD_SETLK(&lock);
    assert_eq!(nix::fcntl::fcntl(&second, set), Err(nix::errno::Errno::EAGAIN));
    drop(first);
    let set = nix::fcntl::FcntlArg::F_OFD_SETLK(&lock);
    nix::fcntl::fcntl(&second, set).unwrap();
}

/// A file without a name that somebody has open can be opened again, as /proc does it.
#[test]
fn a_nameless_file_is_opened_again() {
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    fs::write(&path, "bytes").unwrap();
    let reader = File::open(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&reader));
    let writer = File::options().write(true).open(&again).unwrap();
    writer.write_all_at(b"BY", 0).unwrap();
    drop(writer);
    let mut bytes = [0; 5];
    reader.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(&bytes, b"BYtes");
}

/// How long names are replaced and remade in a test.
const UNREST: std::time::Duration = std::time::Duration::from_secs(3);

/// A call on a path, by what it is.
type PathCall = (&'static str, fn(&Path) -> std::io::Result<()>);

const PATH_CALLS: [PathCall; 9] = [
    ("open to read", |path| File::open(path).map(drop)),
    ("open to write", |path| File::options().write(true).open(path).map(drop)),
    ("stat", |path| fs::metadata(path).map(drop)),
    ("truncate", |path| Ok(nix::unistd::truncate(path, 3)?)),
    ("chmod", |path| {
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644))
    }),
    ("utimes", |path| {
        let times = fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
        File::options().write(true).open(path)?.set_times(times)
    }),
    ("getxattr", |path| match crate::support::xattr(path, "user.none") {
        Err(Errno::NODATA) => Ok(()),
        other => Ok(other.map(drop)?),
    }),
    ("access", |path| Ok(rustix::fs::access(path, rustix::fs::Access::READ_OK)?)),
    ("status", |path| Ok(crate::support::xattr(path, "user.swap.status").map(drop)?)),
];

/// Makes path calls while `unrest` goes on in threads of its own; returns how many there were.
fn calls_during(path: &Path, may_be_missing: bool, unrest: &[&(dyn Fn() + Sync)]) -> u64 {
    let end = std::time::Instant::now() + UNREST;
    let going = || std::time::Instant::now() < end;
    std::thread::scope(|scope| {
        for work in unrest {
            scope.spawn(move || {
                while going() {
                    work();
                }
            });
        }
        let mut count = 0;
        while going() {
            for (name, call) in PATH_CALLS {
                match call(path) {
                    Ok(()) => {}
                    Err(error)
                        if may_be_missing && error.kind() == std::io::ErrorKind::NotFound => {}
                    Err(error) => panic!("{name} after {count} calls: {error}"),
                }
                count += 1;
            }
        }
        count
    })
}

/// "Path calls on names that others replace or remove answer with success or ENOENT, never ESTALE": a name that is
/// replaced always exists.
#[test]
fn a_name_that_others_replace_is_always_there() {
    let mount = Mount::new("pool_size=16m");
    let path = mount.at("name");
    fs::write(&path, "first").unwrap();
    let replace = |number: u32| {
        let (own, path) = (mount.at(&format!("own{number}")), path.clone());
        move || {
            fs::write(&own, vec![number as u8; 5000]).unwrap();
            fs::rename(&own, &path).unwrap();
        }
    };
    let (first, second, third) = (replace(1), replace(2), replace(3));
    let count = calls_during(&path, false, &[&first, &second, &third]);
    assert!(count > 100, "{count} calls");
}

/// As above, for names that are removed and made again.
#[test]
fn a_name_that_others_remake_is_there_or_not() {
    let mount = Mount::new("pool_size=16m");
    let path = mount.at("name");
    let remake = || {
        // Another one may have removed it.
        let _ = fs::write(&path, [7; 9000]);
        let _ = fs::remove_file(&path);
    };
    calls_during(&path, true, &[&remake, &remake]);
}

/// As above, for a folder on the way.
#[test]
fn a_folder_that_others_remake_is_there_or_not() {
    let mount = Mount::new("pool_size=16m");
    let (folder, aside) = (mount.at("folder"), mount.at("aside"));
    let path = folder.join("name");
    let remake = || {
        fs::create_dir(&folder).unwrap();
        fs::write(&path, "bytes").unwrap();
        fs::rename(&folder, &aside).unwrap();
        fs::remove_dir_all(&aside).unwrap();
    };
    calls_during(&path, true, &[&remake]);
}

/// As above, for two names that change places.
#[test]
fn names_that_change_places_are_always_there() {
    let mount = Mount::new("pool_size=16m");
    let (one, other) = (mount.at("one"), mount.at("other"));
    fs::write(&one, "one").unwrap();
    fs::write(&other, "other").unwrap();
    let exchange = || renameat_with(CWD, &one, CWD, &other, RenameFlags::EXCHANGE).unwrap();
    calls_during(&one, false, &[&exchange]);
}

/// Whoever has found a file by its name opens it after the name was removed or replaced, with all bytes that were
/// written to it, wherever they are.
#[test]
fn a_file_that_was_found_is_opened_after_its_name_is_gone() {
    let mount = Mount::new("pool_size=16m");
    for (length, replaced, synced) in [
        (5_u64, true, false),
        (100_001, false, false),
        (3 * MIB + 7, true, false),
        (8 * MIB, false, true),
        (0, true, true),
    ] {
        let path = mount.at("name");
        let writer = open(&path);
        write_pattern(&writer, length, 70_000);
        if synced {
            writer.sync_all().unwrap();
        }
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let found = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
        match replaced {
            true => {
                fs::write(mount.at("new"), "new").unwrap();
                fs::rename(mount.at("new"), &path).unwrap();
            }
            false => fs::remove_file(&path).unwrap(),
        }
        drop(writer);
        let again = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&found));
        for _ in 0..2 {
            is_pattern(Path::new(&again), length);
        }
        File::options().write(true).open(&again).unwrap().write_all_at(b"more", length).unwrap();
        assert_eq!(fs::metadata(&again).unwrap().len(), length + 4);
        drop(found);
        let _ = fs::remove_file(&path);
    }
    // Nothing of them stays in the pool once they are forgotten.
    crate::support::wait_until("their buffers", || {
        let pool = |name| crate::support::swap_xattr(&mount.mnt, name);
        pool("pool.dirty") == "0" && pool("pool.inflight") == "0"
    });
}

/// The inode numbers of "." and ".." as getdents(2) gives them, from the start and from behind the first entry: the kernel
/// asks the daemon in two ways.
fn dots(folder: &Path) -> Vec<(String, u64)> {
    let list = |skip: bool| {
        let descriptor = File::open(folder).unwrap();
        let mut room = [std::mem::MaybeUninit::uninit(); 4096];
        let mut cookie = None;
        if skip {
            let mut entries = rustix::fs::RawDir::new(&descriptor, &mut room);
            cookie = Some(entries.next().unwrap().unwrap().next_entry_cookie());
        }
        let again = File::open(folder).unwrap();
        if let Some(cookie) = cookie {
            rustix::fs::seek(&again, rustix::fs::SeekFrom::Start(cookie)).unwrap();
        }
        let mut entries = rustix::fs::RawDir::new(&again, &mut room);
        let mut found = Vec::new();
        while let Some(entry) = entries.next() {
            let entry = entry.unwrap();
            let name = entry.file_name().to_string_lossy().into_owned();
            if name.starts_with('.') {
                found.push((name, entry.ino()));
            }
        }
        found
    };
    [list(false), list(true)].concat()
}

/// The folder above has its own number in every listing.
#[test]
fn listings_show_the_number_of_the_folder_above() {
    let mount = Mount::new("pool_size=8m");
    fs::create_dir_all(mount.at("a/b/c")).unwrap();
    fs::write(mount.at("a/b/file"), "bytes").unwrap();
    for (name, above) in [("", ""), ("a", ""), ("a/b", "a"), ("a/b/c", "a/b"), (".swapfs", "")] {
        let path = mount.at(name);
        let (own, above) =
            (fs::metadata(&path).unwrap().ino(), fs::metadata(mount.at(above)).unwrap().ino());
        let found = dots(&path);
        assert!(found.iter().any(|(dot, _)| dot == ".."), "{name}: {found:?}");
        for (dot, ino) in found {
            assert_eq!(ino, if dot == "." { own } else { above }, "{dot} of {name:?}");
        }
    }
}

/// st_blksize is the same from the first stat on, however the file came to be.
#[test]
fn the_preferred_size_of_requests_does_not_change() {
    let mount = Mount::new("pool_size=8m");
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    let created = File::create_new(mount.at("created")).unwrap();
    rustix::fs::mknodat(CWD, mount.at("made"), rustix::fs::FileType::RegularFile, mode, 0).unwrap();
    let unnamed = rustix::fs::openat(
        CWD,
        &mount.mnt,
        rustix::fs::OFlags::TMPFILE | rustix::fs::OFlags::RDWR,
        mode,
    );
    let unnamed = File::from(unnamed.unwrap());
    fs::hard_link(mount.at("created"), mount.at("linked")).unwrap();
    let sizes = || {
        let named = ["created", "made", "linked"].map(|name| fs::metadata(mount.at(name)).unwrap());
        let open = [created.metadata().unwrap(), unnamed.metadata().unwrap()];
        named.iter().chain(&open).map(MetadataExt::blksize).collect::<Vec<_>>()
    };
    let first = sizes();
    assert_eq!(first, [128 * 1024; 5]);
    write_pattern(&created, 100_000, 5000);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(sizes(), first);
}
