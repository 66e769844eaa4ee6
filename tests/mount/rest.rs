//! Partitions at rest, of which the daemon keeps the bytes alone: whatever happens to the file, nobody reads
//! what was.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::bytes::open;
use crate::errors::SmallDisk;
use crate::place::Mount;
use crate::requests::{ask, settled};
use crate::support::{MIB, Random, errno, pattern, same, swap_xattr, sync_all, wait_until};

/// More than the daemon keeps descriptors for.
const FILLERS: u64 = 4300;
const TARGETS: u64 = 60;

fn stat(mount: &Mount, object: &str, name: &str) -> u64 {
    let stats = fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    stats[object][name].as_u64().unwrap()
}

/// The bytes of one target, of a length of its own.
fn bytes(number: u64) -> Vec<u8> {
    pattern(number * 7919, 3000 + number as usize * 37)
}

/// A mount with targets that rest: closed first, before more others than may keep a descriptor.
fn resting() -> (Mount, Vec<PathBuf>) {
    let mount = Mount::new("pool_size=32m,open_swap_in=none");
    let paths: Vec<PathBuf> = (0..TARGETS).map(|number| mount.at(&format!("t{number}"))).collect();
    for (number, path) in paths.iter().enumerate() {
        fs::write(path, bytes(number as u64)).unwrap();
    }
    fs::create_dir(mount.at("fill")).unwrap();
    (0..FILLERS).for_each(|i| fs::write(mount.at(&format!("fill/{i}")), b"filler").unwrap());
    assert_eq!(settled(&mount.mnt), "idle");
    wait_until("the rest", || stat(&mount, "partitions", "resting") >= TARGETS);
    let reads = stat(&mount, "aio", "reads");
    same(&fs::read(&paths[0]).unwrap(), &bytes(0));
    assert_eq!(stat(&mount, "aio", "reads"), reads, "it was at rest, with its bytes");
    (mount, paths)
}

fn is(path: &Path, expected: &[u8]) {
    same(&fs::read(path).unwrap(), expected);
    assert_eq!(fs::metadata(path).unwrap().len(), expected.len() as u64);
}

/// A request on a partition at rest does what it says.
fn is_asked_for(path: &Path, verb: &str) {
    assert_eq!(swap_xattr(path, "status"), "available");
    ask(path, verb);
    let dropped = ["release", "discard"].contains(&verb);
    let expected = if dropped { "not_available" } else { "available" };
    wait_until(verb, || settled(path) == expected);
}

/// Renamed over, removed and made anew, exchanged, linked, cut by path, rewritten in place, released, discarded,
/// synchronized.
#[test]
fn what_rests_is_never_stale() {
    let (mount, paths) = resting();
    let mut left = paths.into_iter().enumerate().map(|(number, path)| (number as u64, path));
    let mut next = || left.next().unwrap();
    next();
    // Replaced by a rename, of a file that was written and of one that rests itself.
    let (_, path) = next();
    fs::write(mount.at("fresh"), b"fresh").unwrap();
    fs::rename(mount.at("fresh"), &path).unwrap();
    is(&path, b"fresh");
    let ((_, over), (other, moved)) = (next(), next());
    fs::rename(&moved, &over).unwrap();
    is(&over, &bytes(other));
    let ((a, first), (b, second)) = (next(), next());
    renameat_with(CWD, &first, CWD, &second, RenameFlags::EXCHANGE).unwrap();
    is(&first, &bytes(b));
    is(&second, &bytes(a));
    // Removed, and made again under the same name with as many bytes.
    for _ in 0..10 {
        let (number, path) = next();
        let inode = fs::metadata(&path).unwrap().ino();
        fs::remove_file(&path).unwrap();
        let new = pattern(number + 99, bytes(number).len());
        fs::write(&path, &new).unwrap();
        is(&path, &new);
        let again = fs::metadata(&path).unwrap().ino() == inode;
        eprintln!("inode number used again: {again}");
    }
    // By path: cut, made longer, emptied.
    let (shorter, path) = next();
    let file = |path: &Path| File::options().write(true).open(path).unwrap();
    file(&path).set_len(100).unwrap();
    is(&path, &bytes(shorter)[..100]);
    let (longer, path) = next();
    let name = std::ffi::CString::new(path.as_os_str().as_encoded_bytes()).unwrap();
    // SAFETY: a C string.
    assert_eq!(unsafe { libc::truncate(name.as_ptr(), 20_000) }, 0);
    let mut expected = bytes(longer);
    expected.resize(20_000, 0);
    is(&path, &expected);
    let (_, path) = next();
    fs::write(&path, b"").unwrap();
    is(&path, b"");
    // Rewritten through a second name, while the first one rests.
    let (number_of_link, path) = next();
    fs::hard_link(&path, mount.at("link")).unwrap();
    file(&mount.at("link")).write_all_at(b"through the link", 5).unwrap();
    let mut expected = bytes(number_of_link);
    expected[5..21].copy_from_slice(b"through the link");
    is(&path, &expected);
    fs::remove_file(&path).unwrap();
    is(&mount.at("link"), &expected);
    for verb in ["release", "discard", "swap_out", "swap_in"] {
        let (number, path) = next();
        is_asked_for(&path, verb);
        is(&path, &bytes(number));
    }
    let (synced, path) = next();
    File::open(&path).unwrap().sync_all().unwrap();
    same(
        &fs::read(mount.backing(path.file_name().unwrap().to_str().unwrap())).unwrap(),
        &bytes(synced),
    );
    is(&path, &bytes(synced));
    // Attributes and times, without opening it.
    let (touched, path) = next();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    file(&path).set_times(fs::FileTimes::new().set_modified(time)).unwrap();
    is(&path, &bytes(touched));
    assert_eq!(fs::metadata(&path).unwrap().mtime(), 1_000_000_000);
    // All that is left, and after a remount what is in the swap folder.
    let rest: Vec<(u64, PathBuf)> = left.collect();
    rest.iter().for_each(|(number, path)| is(path, &bytes(*number)));
    mount.remount("pool_size=32m");
    rest.iter().for_each(|(number, path)| is(path, &bytes(*number)));
    is(&mount.at("link"), &expected);
}

/// Inode numbers that come again at once, with files of one size: nobody's bytes are another's.
#[test]
fn reused_inode_numbers_mean_new_bytes() {
    let (mount, _) = resting();
    let mut seen = std::collections::HashMap::new();
    let mut again = 0;
    for number in 0..3000_u64 {
        let path = mount.at(&format!("fill/{}", number % 50));
        fs::remove_file(&path).unwrap();
        let new = pattern(number * 13, 6);
        fs::write(&path, &new).unwrap();
        is(&path, &new);
        again += usize::from(seen.insert(fs::metadata(&path).unwrap().ino(), number).is_some());
    }
    eprintln!("{again} inode numbers came again");
}

/// Who opens, replaces, cuts and removes the same names at once, while they go to rest and wake up.
#[test]
fn a_rush_on_partitions_at_rest() {
    let (mount, paths) = resting();
    let end = std::time::Instant::now() + std::time::Duration::from_secs(3);
    let whole = |bytes: &[u8]| {
        // Each version is one letter, as often as its length says, or was cut.
        assert!(bytes.iter().all(|byte| *byte == bytes[0]), "{} bytes mixed", bytes.len());
    };
    paths[..20].iter().for_each(|path| fs::write(path, [b'a'; 5000]).unwrap());
    std::thread::scope(|scope| {
        for seed in 0..4 {
            let (mount, paths) = (&mount, &paths[..20]);
            scope.spawn(move || {
                let mut random = Random::new(seed + 1);
                let mut version = 0_u64;
                while std::time::Instant::now() < end {
                    let path = &paths[random.below(20) as usize];
                    version += 1;
                    let letter = b'b' + (version % 20) as u8;
                    match random.below(5) {
                        0 | 1 => {
                            let fresh = mount.at(&format!("fresh-{seed}"));
                            fs::write(&fresh, vec![letter; random.below(9000) as usize + 1])
                                .unwrap();
                            fs::rename(&fresh, path).unwrap();
                        }
                        2 => drop(fs::remove_file(path)),
                        3 => drop(crate::requests::request(path, "release")),
                        _ => {
                            if let Ok(bytes) = fs::read(path) {
                                whole(&bytes);
                            }
                        }
                    }
                }
            });
        }
        // Keeps others coming and going, so that these go to rest.
        let mount = &mount;
        scope.spawn(move || {
            let mut random = Random::new(77);
            while std::time::Instant::now() < end {
                let filler = mount.at(&format!("fill/{}", random.below(FILLERS)));
                assert_eq!(fs::read(filler).unwrap(), b"filler");
            }
        });
    });
    sync_all(&mount.mnt);
    for path in &paths[..20] {
        if let Ok(bytes) = fs::read(path) {
            whole(&bytes);
            let name = path.file_name().unwrap().to_str().unwrap();
            same(&fs::read(mount.backing(name)).unwrap(), &bytes);
        }
    }
}

/// "ENOSPC comes from here, at once": of small files too, many of which share a buffer; those that were taken
/// are whole.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_full_disk_refuses_small_files_one_by_one() {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, "pool_size=16m");
    let ballast = open(&mount.at("ballast"));
    rustix::fs::fallocate(&ballast, rustix::fs::FallocateFlags::empty(), 0, 35 * MIB).unwrap();
    let mut taken = Vec::new();
    let refused = (0..20_000_u64).find_map(|number| {
        let path = mount.at(&format!("{number}"));
        let bytes = pattern(number * 31, 6000);
        match File::create(&path).and_then(|file| file.write_all_at(&bytes, 0)) {
            Ok(()) => {
                taken.push((path, bytes));
                None
            }
            Err(error) => Some(error),
        }
    });
    assert_eq!(errno::<()>(Err(refused.expect("the disk is full"))), rustix::io::Errno::NOSPC);
    sync_all(&mount.mnt);
    taken.iter().for_each(|(path, bytes)| is(path, bytes));
    // Rewriting in place needs no room.
    for (path, bytes) in taken.iter().take(50) {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(bytes, 0).unwrap();
        file.sync_all().unwrap();
    }
    assert_eq!(stat(&mount, "partitions", "failed"), 0);
    drop(ballast);
    mount.unmount();
    for (path, bytes) in &taken {
        same(&fs::read(mount.backing(path.file_name().unwrap().to_str().unwrap())).unwrap(), bytes);
    }
}
