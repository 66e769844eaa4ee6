//! Small partitions: many to a buffer, resident while there is room.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use crate::bytes::open;
use crate::place::Mount;
use crate::requests::{ask, settled};
use crate::support::{
    KIB, MIB, Random, is_pattern, pattern, same, swap_xattr, wait_until, write_pattern,
};

fn count(mount: &Mount, name: &str) -> u64 {
    swap_xattr(&mount.mnt, &format!("pool.{name}")).parse().unwrap()
}

fn stat(mount: &Mount, object: &str, name: &str) -> u64 {
    let stats = fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    stats[object][name].as_u64().unwrap()
}

/// Most are short: together they fit, as one to a buffer they would not by far.
fn length(number: u64, random: &mut Random) -> usize {
    let most = if number.is_multiple_of(20) { 64 * KIB } else { 8 * KIB };
    random.below(most) as usize + 1
}

/// Each file has bytes of its own.
fn bytes(number: u64, length: usize) -> Vec<u8> {
    pattern(number * 7919, length)
}

fn fill(mount: &Mount, files: u64) -> Vec<(PathBuf, Vec<u8>)> {
    let mut random = Random::new(5);
    let mut made = Vec::new();
    for number in 0..files {
        let path = mount.at(&format!("small-{number}"));
        let bytes = bytes(number, length(number, &mut random));
        fs::write(&path, &bytes).unwrap();
        made.push((path, bytes));
    }
    assert_eq!(settled(&mount.mnt), "idle");
    made
}

#[track_caller]
fn are(files: &[(PathBuf, Vec<u8>)], status: &str) {
    let other = files.iter().filter(|(path, _)| swap_xattr(path, "status") != status);
    assert_eq!(other.count(), 0, "of {} not {status}", files.len());
}

/// "`0` for a partition smaller than `min_swap_size`, which stays resident while the pool has room": five
/// thousand of them, closed, while a file four times the pool is written and read through it; their
/// bytes are there, here and after a remount, and `release` gives every buffer back.
#[test]
fn thousands_of_small_partitions_stay() {
    let mount = Mount::new("pool_size=64m");
    let files = fill(&mount, 5000);
    are(&files, "available");
    assert_eq!((count(&mount, "buffers"), count(&mount, "available")), (64, 64));
    assert_eq!((count(&mount, "dirty"), count(&mount, "inflight")), (0, 0));
    assert_eq!(swap_xattr(&files[0].0, "swappable"), "0");
    let big = mount.at("big");
    let moves = stat(&mount, "cache", "moves");
    let file = open(&big);
    write_pattern(&file, 256 * MIB, 1 << 20);
    file.sync_all().unwrap();
    is_pattern(&big, 256 * MIB);
    drop(file);
    assert_eq!(stat(&mount, "cache", "moves"), moves, "the first request was no small one");
    are(&files, "available");
    let before = stat(&mount, "aio", "reads");
    for (path, bytes) in &files {
        same(&fs::read(path).unwrap(), bytes);
    }
    assert_eq!(stat(&mount, "aio", "reads"), before, "nothing was read from the swap folder");
    ask(&mount.mnt, "release");
    wait_until("the release", || stat(&mount, "partitions", "known") == 0);
    are(&files, "not_available");
    assert_eq!(count(&mount, "available"), 64);
    mount.remount("pool_size=64m");
    for (path, bytes) in &files {
        same(&fs::read(path).unwrap(), bytes);
    }
    are(&files, "available");
    fs::remove_file(&big).unwrap();
    files.iter().for_each(|(path, _)| fs::remove_file(path).unwrap());
    wait_until("the partitions to be forgotten", || stat(&mount, "partitions", "known") == 0);
    assert_eq!(count(&mount, "available"), 64);
}

/// A stream of small requests is copied once, when it outgrows its first slot.
#[test]
fn a_stream_is_no_small_partition() {
    let mount = Mount::new("pool_size=16m");
    let file = open(&mount.at("stream"));
    write_pattern(&file, 64 * MIB, 100_000);
    assert_eq!((stat(&mount, "cache", "moves"), stat(&mount, "pool", "trays")), (1, 0));
    drop(file);
    is_pattern(&mount.at("stream"), 64 * MIB);
    assert_eq!((stat(&mount, "cache", "moves"), stat(&mount, "pool", "trays")), (1, 0));
}

/// As above, when the pool cannot hold them: the oldest go, and nothing is lost.
#[test]
fn small_partitions_that_do_not_fit_go_oldest_first() {
    let mount = Mount::new("pool_size=8m");
    let files = fill(&mount, 2000);
    let here = |(path, _): &&(PathBuf, Vec<u8>)| swap_xattr(path, "status") == "available";
    let (old, new) = files.split_at(1000);
    let (old, new) = (old.iter().filter(here).count(), new.iter().filter(here).count());
    assert!(old < new / 2 && new > 300, "{old} of the older half, {new} of the other");
    for (path, bytes) in &files {
        same(&fs::read(path).unwrap(), bytes);
        same(&fs::read(mount.backing(path.file_name().unwrap().to_str().unwrap())).unwrap(), bytes);
    }
}

/// A partition may grow through every size of slot, shrink, get holes, and is right all the time; at rest
/// it takes no more than it needs.
#[test]
fn a_small_partition_grows_and_shrinks() {
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    let mut expected = Vec::new();
    let mut random = Random::new(11);
    while expected.len() < 3 * MIB as usize {
        // Appended by an open, a write and a close each, as logs are.
        let more = pattern(expected.len() as u64, random.below(90_000) as usize + 1);
        let file = open(&path);
        file.write_all_at(&more, expected.len() as u64).unwrap();
        drop(file);
        expected.extend_from_slice(&more);
        same(&fs::read(&path).unwrap(), &expected);
        if random.below(3) == 0 {
            assert_eq!(settled(&path), "available");
        }
    }
    let file = open(&path);
    for length in [900_000_u64, 300_001, 20_000, 130_000, 4096, 100, 700_000] {
        file.set_len(length).unwrap();
        expected.resize(length as usize, 0);
        let at = random.below(length);
        let patch = pattern(at, (length - at).min(5000) as usize);
        file.write_all_at(&patch, at).unwrap();
        expected[at as usize..][..patch.len()].copy_from_slice(&patch);
        same(&fs::read(&path).unwrap(), &expected);
        ask(&path, "release");
        // The last reader may still be on its way out, which is no transfer.
        wait_until("the release", || settled(&path) == "not_available");
        same(&fs::read(&path).unwrap(), &expected);
    }
    drop(file);
    mount.unmount();
    same(&fs::read(mount.backing("file")).unwrap(), &expected);
}

/// What was swapped in on request is the last to go, small or not, and a folder of more partitions than
/// there are buffers can be swapped in when they fit as they are packed.
#[test]
fn a_folder_of_small_partitions_is_swapped_in() {
    let mount = Mount::new("pool_size=8m");
    fs::create_dir(mount.at("dir")).unwrap();
    let mut paths = Vec::new();
    for number in 0..200 {
        let path = mount.at(&format!("dir/{number}"));
        fs::write(&path, bytes(number, 9000)).unwrap();
        paths.push((path, bytes(number, 9000)));
    }
    assert_eq!(settled(&mount.mnt), "idle");
    ask(&mount.mnt, "release");
    wait_until("the release", || stat(&mount, "partitions", "known") == 0);
    ask(&mount.at("dir"), "swap_in");
    assert_eq!(settled(&mount.mnt), "idle");
    are(&paths, "available");
    let others = fill(&mount, 2000);
    are(&paths, "available");
    drop(others);
}

/// `min_swap_size=0`: no partition is small, each takes whole buffers.
#[test]
fn without_a_least_size_nothing_is_packed() {
    let mount = Mount::new("pool_size=8m,min_swap_size=0");
    let files = fill(&mount, 100);
    let here = files.iter().filter(|(path, _)| swap_xattr(path, "status") == "available").count();
    assert!(here <= 8, "{here} in eight buffers");
    assert_eq!(swap_xattr(&files[0].0, "swappable"), "1");
    for (path, bytes) in &files {
        same(&fs::read(path).unwrap(), bytes);
        let mut file = vec![0; bytes.len()];
        File::open(path).unwrap().read_exact_at(&mut file, 0).unwrap();
    }
}
