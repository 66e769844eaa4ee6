//! More of everything than anybody opens on purpose.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::bytes::open;
use crate::place::{Mount, is_done};
use crate::support::{pattern, same, swap_xattr, wait_until};

/// "10,000 open files".
const FILES: u64 = 10_000;

fn stat(mount: &Mount, object: &str, name: &str) -> u64 {
    let stats = fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    stats[object][name].as_u64().unwrap()
}

fn bytes(number: u64) -> Vec<u8> {
    pattern(number * 7919, 100 + (number % 5000) as usize)
}

/// Ten thousand files open at once, all dirty: each has its bytes, nobody is refused, and afterwards nothing is
/// left of them but what is in the swap folder.
#[test]
fn ten_thousand_files_are_open_at_once() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < FILES + 500 {
        eprintln!("left out: {hard} descriptors are allowed, {} needed", FILES + 500);
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(FILES + 500), hard).unwrap();
    // Fewer buffers than files by far.
    let mount = Mount::new("pool_size=16m,open_swap_in=none");
    fs::create_dir(mount.at("dir")).unwrap();
    let files: Vec<File> = (0..FILES)
        .map(|number| {
            let file = open(&mount.at(&format!("dir/{number}")));
            file.write_all_at(&bytes(number), 0).unwrap();
            file
        })
        .collect();
    assert_eq!(stat(&mount, "partitions", "handles"), FILES);
    for (number, file) in files.iter().enumerate() {
        let expected = bytes(number as u64);
        let mut found = vec![0; expected.len() + 1];
        assert_eq!(file.read_at(&mut found, 0).unwrap(), expected.len(), "{number}");
        same(&found[..expected.len()], &expected);
    }
    // Others go on: by name, beside those.
    fs::write(mount.at("another"), "x").unwrap();
    assert_eq!(fs::read(mount.at("another")).unwrap(), b"x");
    assert_eq!(fs::read_dir(mount.at("dir")).unwrap().count() as u64, FILES);
    // Half of them lose their names while they are open.
    for number in (0..FILES).step_by(2) {
        fs::remove_file(mount.at(&format!("dir/{number}"))).unwrap();
    }
    let nameless = &files[4242];
    let mut found = vec![0; bytes(4242).len()];
    nameless.read_exact_at(&mut found, 0).unwrap();
    same(&found, &bytes(4242));
    drop(files);
    wait_until("the handles to go", || stat(&mount, "partitions", "handles") == 0);
    wait_until("the mount to rest", || swap_xattr(&mount.mnt, "wait") == "idle");
    for number in (1..FILES).step_by(2) {
        same(&fs::read(mount.backing(&format!("dir/{number}"))).unwrap(), &bytes(number));
    }
    assert_eq!(fs::read_dir(mount.backing("dir")).unwrap().count() as u64, FILES / 2);
    assert_eq!(swap_xattr(&mount.mnt, "pool.dirty"), "0");
}

/// A folder so deep that no path names its end: requests on its top reach the bottom, and removing it works.
#[test]
fn a_very_deep_folder_is_walked() {
    let mount = Mount::new("pool_size=16m,open_swap_in=none");
    let depth = 3000;
    let make = rustix::fs::Mode::from_raw_mode(0o755);
    // Processes that other tests start meanwhile must not keep them: the mount would stay busy.
    let flags = rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let mut dir: std::os::fd::OwnedFd = File::open(&mount.mnt).unwrap().into();
    for _ in 0..depth {
        rustix::fs::mkdirat(&dir, "d", make).unwrap();
        dir = rustix::fs::openat(&dir, "d", flags, make).unwrap();
    }
    let create =
        rustix::fs::OFlags::CREATE | rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let file: File = rustix::fs::openat(&dir, "file", create, make).unwrap().into();
    file.write_all_at(&pattern(0, 100_000), 0).unwrap();
    file.sync_all().unwrap();
    let status = || {
        let mut value = [0; 64];
        let count = rustix::fs::fgetxattr(&file, "user.swap.status", &mut value).unwrap();
        String::from_utf8(value[..count].to_vec()).unwrap()
    };
    assert_eq!(status(), "available");
    crate::requests::ask(&mount.at("d"), "release");
    wait_until("the release", || status() == "not_available");
    crate::requests::ask(&mount.at("d"), "swap_in");
    wait_until("the swap-in", || status() == "available");
    drop((file, dir));
    fs::remove_dir_all(mount.at("d")).unwrap();
    assert_eq!(fs::read_dir(&mount.swap).unwrap().count(), 1, "its own folder alone");
}

/// A request on a folder with more below it than is read at once, at every depth: each name is met, though those of
/// the outer folders are given up on the way down and read again.
#[test]
fn a_request_meets_every_name_of_a_wide_and_deep_tree() {
    const LEVELS: usize = 24;
    const FOLDERS: usize = 600;
    let mount = Mount::prepared(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")));
    let mut top = mount.backing("top");
    let mut files = Vec::new();
    for level in 0..LEVELS {
        fs::create_dir(&top).unwrap();
        for number in 0..FOLDERS {
            let folder = top.join(format!("{number}"));
            fs::create_dir(&folder).unwrap();
            if number % 8 == level % 8 {
                fs::write(folder.join("file"), "x").unwrap();
                files.push(folder.join("file"));
            }
        }
        // Longer than a batch of names, so that the last level ends in one.
        for number in 0..if level + 1 == LEVELS { 1000 } else { 10 } {
            let file = top.join(format!("file-{number}"));
            fs::write(&file, "x").unwrap();
            files.push(file);
        }
        // Among the others, wherever the filesystem has it.
        top = top.join("7");
        fs::remove_dir_all(&top).unwrap();
        files.retain(|file| !file.starts_with(&top));
    }
    is_done(&mount.mount("pool_size=64m,open_swap_in=none"));
    crate::requests::ask(&mount.at("top"), "swap_in");
    wait_until("the swap-in", || swap_xattr(&mount.mnt, "wait") == "idle");
    for file in &files {
        let name = file.strip_prefix(&mount.swap).unwrap();
        assert_eq!(swap_xattr(&mount.mnt.join(name), "status"), "available", "{name:?}");
    }
}

/// "descriptors used up by one user": who opens files until there is no descriptor left keeps others from opening, but
/// neither from removing and renaming nor from what they have open, and nothing is half made.
#[test]
fn whoever_takes_all_descriptors_leaves_some_to_others() {
    let mount = Mount::prepared(std::path::Path::new(env!("CARGO_TARGET_TMPDIR")));
    let limited = ["prlimit", "--nofile=600:600"];
    is_done(&mount.mount_by(&limited, "pool_size=16m,checksum=none"));
    let mine = open(&mount.at("mine"));
    (0..200).for_each(|number| fs::write(mount.at(&format!("{number}")), "x").unwrap());
    let mut taken = Vec::new();
    let refusal = loop {
        let name = mount.at(&format!("taken-{}", taken.len()));
        match File::options().create_new(true).write(true).open(name) {
            Ok(file) => taken.push(file),
            Err(error) => break error,
        }
    };
    assert_eq!(refusal.raw_os_error(), Some(libc::EMFILE), "{refusal}");
    assert!(!mount.at(&format!("taken-{}", taken.len())).exists(), "nothing is half made");
    // Names that were never looked up since, in folders too; each may stay known.
    for number in 0..200 {
        let name = mount.at(&format!("{number}"));
        assert_eq!(fs::metadata(&name).unwrap().len(), 1);
        assert_eq!(swap_xattr(&name, "size"), "1");
        if number % 3 == 0 {
            fs::rename(&name, mount.at(&format!("renamed-{number}"))).unwrap();
        }
    }
    fs::create_dir(mount.at("dir")).unwrap();
    mine.write_all_at(&pattern(5, 100_000), 0).unwrap();
    mine.sync_all().unwrap();
    let mut found = vec![0; 100_000];
    mine.read_exact_at(&mut found, 0).unwrap();
    same(&found, &pattern(5, 100_000));
    let error = fs::read(mount.at("1")).err().and_then(|error| error.raw_os_error());
    assert!([None, Some(libc::EMFILE)].contains(&error), "{error:?}");
    for number in 0..10 {
        fs::remove_file(mount.at(&format!("taken-{number}"))).unwrap();
    }
    taken.clear();
    wait_until("room for others", || fs::write(mount.at("new"), "y").is_ok());
    assert_eq!(fs::read(mount.at("1")).unwrap(), b"x");
}
