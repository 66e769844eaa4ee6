//! What files occupy: what nobody wrote takes no space, and space that is held ahead of one file is no other's loss.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Barrier;

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::bytes::open;
use crate::errors::SmallDisk;
use crate::place::Mount;
use crate::support::{
    KIB, MIB, Random, errno, is_pattern, occupied, pattern, same, wait_until, write_pattern,
};

const KEEP: FallocateFlags = FallocateFlags::KEEP_SIZE;
const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// A call on an open file.
#[derive(Debug, Clone, Copy)]
enum Call {
    /// So many bytes of the pattern, in pieces of a mebibyte at most.
    Write(u64, u64),
    Resize(u64),
    Allocate(FallocateFlags, u64, u64),
    Sync,
}

use Call::{Allocate, Resize, Sync, Write};

fn make(file: &File, call: Call) {
    match call {
        Write(from, length) => {
            let mut at = from;
            while at < from + length {
                let bytes = pattern(at, (from + length - at).min(MIB) as usize);
                file.write_all_at(&bytes, at).unwrap();
                at += bytes.len() as u64;
            }
        }
        Resize(size) => file.set_len(size).unwrap(),
        Allocate(flags, from, length) => fallocate(file, flags, from, length).unwrap(),
        Sync => file.sync_all().unwrap(),
    }
}

/// Makes the calls on a file of the swap folder's filesystem and on one of the mount: each occupies the same then, while
/// open and afterwards, and holds the same bytes.
#[track_caller]
fn as_anywhere(mount: &Mount, name: &str, calls: &[Call]) {
    let (plain, path, backing) =
        (mount.scratch.path().join(name), mount.at(name), mount.backing(name));
    let (reference, file) = (open(&plain), open(&path));
    for call in calls {
        make(&reference, *call);
        make(&file, *call);
    }
    reference.sync_all().unwrap();
    file.sync_all().unwrap();
    let expected = occupied(&plain);
    // A map of extents more or less.
    let near = |found: u64| found.abs_diff(expected) <= 16 * KIB;
    let found = occupied(&path);
    assert!(near(found), "{name}: {found} instead of {expected} while it is open: {calls:?}");
    drop((reference, file));
    wait_until(&format!("{name}: {} to be {expected}", occupied(&backing)), || {
        near(occupied(&backing)) && near(occupied(&path))
    });
    let (one, other) = (File::open(&plain).unwrap(), File::open(&path).unwrap());
    let size = one.metadata().unwrap().len();
    assert_eq!(other.metadata().unwrap().len(), size, "{name}");
    let (mut expected, mut found) = (vec![0; 4 << 20], vec![0; 4 << 20]);
    // All of a short one, and of a long one the ends.
    for at in [0, 4 * MIB, 8 * MIB, size.saturating_sub(4 * MIB)] {
        let (a, b) = (one.read_at(&mut expected, at), other.read_at(&mut found, at));
        let (a, b) = (a.unwrap(), b.unwrap());
        same(&found[..b], &expected[..a]);
    }
    fs::remove_file(&plain).unwrap();
    fs::remove_file(&path).unwrap();
}

/// "Nothing that no one wrote may stay allocated inside a file": holes between writes, in any order.
#[test]
fn what_is_jumped_over_takes_no_space() {
    let mount = Mount::new("pool_size=16m");
    let spots: Vec<Call> = [100, 600, 1200, 1900].map(|at| Write(at * MIB, 1)).to_vec();
    as_anywhere(&mount, "grown first", &[&[Resize(2048 * MIB)], &spots[..]].concat());
    as_anywhere(&mount, "grown by writes", &spots);
    let each = |step: u64, length: u64| (0..14).map(move |i| Write(i * step, length));
    as_anywhere(&mount, "pages", &each(32 * MIB, 4096).collect::<Vec<_>>());
    as_anywhere(&mount, "pieces", &each(9 * MIB + 17, 100_000).collect::<Vec<_>>());
    as_anywhere(&mount, "backwards", &each(5 * MIB, 2 * MIB + 1).rev().collect::<Vec<_>>());
    // Two streams, a mebibyte of each in turn.
    let two = (0..12).flat_map(|i| [Write(i * MIB, MIB), Write(200 * MIB + i * MIB, MIB)]);
    as_anywhere(&mount, "two streams", &two.collect::<Vec<_>>());
    // Two small writes in a row look like a stream.
    let pairs = (0..20).flat_map(|i| [Write(i * 20 * MIB, 4096), Write(i * 20 * MIB + 4096, 4096)]);
    as_anywhere(&mount, "pairs", &pairs.collect::<Vec<_>>());
}

/// The same of a stream that stops, and of a file that becomes longer or shorter than what was held ahead of it.
#[test]
fn what_was_held_ahead_does_not_stay_within_the_file() {
    let mount = Mount::new("pool_size=16m");
    let stream = Write(0, 10 * MIB);
    as_anywhere(&mount, "grown", &[stream, Resize(100 * MIB + 1)]);
    as_anywhere(
        &mount,
        "grown and synchronized",
        &[stream, Resize(30 * MIB), Sync, Resize(90 * MIB)],
    );
    as_anywhere(&mount, "within it", &[stream, Write(12 * MIB, 5000), Resize(50 * MIB)]);
    as_anywhere(&mount, "up to its end", &[stream, Write(14 * MIB, 4096), Write(13 * MIB, MIB)]);
    as_anywhere(
        &mount,
        "cut and grown",
        &[stream, Resize(MIB), Resize(11 * MIB + 9), Write(11 * MIB, 5)],
    );
    as_anywhere(&mount, "grown and cut", &[stream, Resize(70 * MIB), Resize(15 * MIB + 1), Sync]);
    as_anywhere(
        &mount,
        "on and on",
        &[stream, Resize(12 * MIB), Write(12 * MIB, 4 * MIB), Resize(60 * MIB)],
    );
    as_anywhere(&mount, "a hole at once", &[Write(0, 6 * MIB), Allocate(PUNCH, MIB, 4 * MIB)]);
    as_anywhere(
        &mount,
        "an odd hole",
        &[Write(0, 700_001), Allocate(PUNCH, 5000, 600_000), Resize(MIB)],
    );
    as_anywhere(
        &mount,
        "a hole at its end",
        &[stream, Allocate(PUNCH, 9 * MIB, 20 * MIB), Resize(40 * MIB)],
    );
}

/// What the user allocated stays or goes as anywhere: a truncate to the same size or less gives back what lies beyond, one
/// to more does not.
#[test]
fn what_was_allocated_beyond_the_end_goes_when_it_does_anywhere() {
    let mount = Mount::new("pool_size=16m");
    let size = 3 * MIB + 123;
    let begin = [Write(0, size), Allocate(KEEP, 0, 16 * MIB)];
    let far = [Write(0, size), Allocate(KEEP, 40 * MIB, 2 * MIB)];
    let ends: [&[Call]; 9] = [
        &[],
        &[Resize(size)],
        &[Resize(size - 1)],
        &[Resize(MIB)],
        &[Resize(0)],
        &[Resize(size + 1)],
        &[Resize(20 * MIB), Resize(17 * MIB)],
        &[Write(size, 2 * MIB)],
        &[Resize(5 * MIB), Resize(5 * MIB)],
    ];
    for (number, end) in ends.into_iter().enumerate() {
        for (kind, begin) in [("near", begin), ("far", far)] {
            let name = |when: &str| format!("{kind} {number} {when}");
            as_anywhere(&mount, &name("at once"), &[&begin[..], end].concat());
            as_anywhere(&mount, &name("settled"), &[&begin[..], &[Sync], end].concat());
            let later = [&begin[..1], &[Sync], &begin[1..], end, &[Sync]].concat();
            as_anywhere(&mount, &name("later"), &later);
        }
    }
    // Held ahead by us, then beyond that by the user.
    let streamed = [Write(0, 9 * MIB), Allocate(KEEP, 80 * MIB, MIB), Write(9 * MIB, MIB)];
    as_anywhere(&mount, "after a stream", &streamed);
}

/// Random orders of all of that.
#[test]
fn any_order_of_calls_occupies_what_it_would_anywhere() {
    let mount = Mount::new("pool_size=16m");
    for seed in 0..12 {
        let mut random = Random::new(seed);
        let mut calls = Vec::new();
        let mut end = 0;
        for _ in 0..40 {
            let at = random.below(24 * MIB) & !4095;
            calls.push(match random.below(10) {
                0..4 => {
                    let length = 1 + random.below(2 * MIB);
                    let from = if random.below(2) == 0 { end } else { at };
                    end = from + length;
                    Write(from, length)
                }
                4..6 => Resize(random.below(32 * MIB)),
                6 => Allocate(KEEP, at, 4096 * (1 + random.below(700))),
                // Beyond the end of a file filesystems differ.
                7 => Allocate(PUNCH, at, 4096 * (1 + random.below(700))),
                8 => Allocate(FallocateFlags::empty(), at, 4096 * (1 + random.below(300))),
                _ => Sync,
            });
        }
        as_anywhere(&mount, &format!("seed {seed}"), &calls);
    }
}

/// Writes on until there is no space; returns where.
fn fill(file: &File, from: u64) -> u64 {
    let mut at = from;
    loop {
        match file.write_at(&pattern(at, 300_000), at) {
            Ok(count) => at += count as u64,
            Err(error) => {
                assert_eq!(Errno::from_io_error(&error), Some(Errno::NOSPC), "at {at}");
                return at;
            }
        }
    }
}

fn free(at: &Path) -> u64 {
    let space = statvfs(at).unwrap();
    space.f_bavail * space.f_frsize
}

/// "Space held ahead by open files is taken back before anyone gets ENOSPC."
fn others_have_what_is_held_ahead(disk: &SmallDisk) {
    let mount = Mount::within(&disk.at, "pool_size=8m");
    // Each has as much ahead as it is long.
    let streams = ["a", "b", "c"].map(|name| (mount.at(name), open(&mount.at(name))));
    for (_, file) in &streams {
        write_pattern(file, 6 * MIB, 1 << 20);
    }
    let other = open(&mount.at("other"));
    let taken = fill(&other, 0);
    assert!(taken > 30 * MIB, "{taken}, of 64 MiB less 18");
    assert!(free(&disk.at) < 2 * MIB, "{} are free still", free(&disk.at));
    for (path, file) in &streams {
        file.sync_all().unwrap();
        is_pattern(path, 6 * MIB);
    }
    other.sync_all().unwrap();
    is_pattern(&mount.backing("other"), taken);
    // What was refused holds nothing: as much again fits when it is gone.
    drop(other);
    fs::remove_file(mount.at("other")).unwrap();
    wait_until("the space", || free(&disk.at) > 30 * MIB);
    allocations_have_it_too(&mount, &disk.at);
}

fn allocations_have_it_too(mount: &Mount, disk: &Path) {
    let one = open(&mount.at("one"));
    write_pattern(&one, 8 * MIB, 1 << 20);
    let two = open(&mount.at("two"));
    let all = (free(disk) - MIB).min(24 * MIB);
    fallocate(&two, FallocateFlags::empty(), 0, all).unwrap();
    assert_eq!(two.metadata().unwrap().len(), all);
    assert_eq!(fallocate(&two, KEEP, 0, 900 * MIB), Err(Errno::NOSPC));
    drop(two);
    fs::remove_file(mount.at("two")).unwrap();
    wait_until("the space", || free(disk) > 20 * MIB);
    // Several at once, each with something ahead, all of them whole.
    let (names, start) = (["d", "e", "f", "g"], Barrier::new(4));
    let taken = std::thread::scope(|scope| {
        let writers = names.map(|name| {
            let (file, start) = (open(&mount.at(name)), &start);
            scope.spawn(move || {
                start.wait();
                let taken = fill(&file, 0);
                file.sync_all().unwrap();
                taken
            })
        });
        writers.map(|writer| writer.join().unwrap())
    });
    assert!(free(disk) < 2 * MIB, "{} are free still: {taken:?}", free(disk));
    for (name, taken) in names.into_iter().zip(taken) {
        is_pattern(&mount.backing(name), taken);
    }
    assert_eq!(errno(one.write_at(&[1; 8 << 20], 100 * MIB)), Errno::NOSPC);
    one.sync_all().unwrap();
    is_pattern(&mount.at("one"), 8 * MIB);
}

#[test]
fn space_held_ahead_is_no_others_loss() {
    others_have_what_is_held_ahead(&SmallDisk::in_memory());
}

#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn space_held_ahead_is_no_others_loss_on_ext4() {
    others_have_what_is_held_ahead(&SmallDisk::ext4());
}
