//! Sizes, holes and space.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, seek, statvfs};
use rustix::io::Errno;

use crate::bytes::open;
use crate::place::Mount;
use crate::support::{KIB, MIB, is_pattern, occupied, pattern, same, wait_until, write_pattern};

/// "truncate": what is cut off is gone, what is added is zero, in the middle of a block too.
#[test]
fn truncating_cuts_and_growing_adds_zeros() {
    let mount = Mount::new("pool_size=8m");
    let (path, backing) = (mount.at("file"), mount.backing("file"));
    let file = open(&path);
    let mut expected = pattern(0, 3 * MIB as usize + 99);
    file.write_all_at(&expected, 0).unwrap();
    let sizes = [2 * MIB + 1, 2 * MIB + 5000, 4097, 4 * MIB, 100, 101, 0, MIB];
    for (number, size) in sizes.into_iter().enumerate() {
        file.set_len(size).unwrap();
        expected.resize(size as usize, 0);
        assert_eq!(file.metadata().unwrap().len(), size);
        same(&fs::read(&path).unwrap(), &expected);
        if number % 2 == 1 {
            file.sync_all().unwrap();
            same(&fs::read(&backing).unwrap(), &expected);
        }
    }
    drop(file);
    // Without an open handle.
    nix::unistd::truncate(&path, 12_345).unwrap();
    expected.resize(12_345, 0);
    same(&fs::read(&path).unwrap(), &expected);
    mount.unmount();
    same(&fs::read(&backing).unwrap(), &expected);
}

/// "fallocate (also KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE)"; the other modes are refused.
#[test]
fn fallocate_does_what_its_modes_say() {
    let mount = Mount::new("pool_size=8m");
    let (path, backing) = (mount.at("file"), mount.backing("file"));
    let file = open(&path);
    write_pattern(&file, 100_000, 100_000);
    let mut expected = pattern(0, 100_000);
    let none = FallocateFlags::empty();
    fallocate(&file, none, 50_000, MIB).unwrap();
    expected.resize(50_000 + MIB as usize, 0);
    same(&fs::read(&path).unwrap(), &expected);
    let keep = FallocateFlags::KEEP_SIZE;
    fallocate(&file, keep, 0, 6 * MIB).unwrap();
    assert_eq!(file.metadata().unwrap().len(), expected.len() as u64);
    assert!(occupied(&path) >= 6 * MIB, "{}", occupied(&path));
    fallocate(&file, keep | FallocateFlags::PUNCH_HOLE, 5000, 60_001).unwrap();
    expected[5000..65_001].fill(0);
    same(&fs::read(&path).unwrap(), &expected);
    fallocate(&file, FallocateFlags::ZERO_RANGE, 90_000, 3 * MIB).unwrap();
    expected[90_000..].fill(0);
    expected.resize(90_000 + 3 * MIB as usize, 0);
    same(&fs::read(&path).unwrap(), &expected);
    fallocate(&file, keep | FallocateFlags::ZERO_RANGE, 10, 4 * MIB).unwrap();
    expected[10..].fill(0);
    same(&fs::read(&path).unwrap(), &expected);
    for refused in [FallocateFlags::COLLAPSE_RANGE, FallocateFlags::INSERT_RANGE] {
        assert_eq!(fallocate(&file, refused, 0, 4096), Err(Errno::OPNOTSUPP));
    }
    drop(file);
    mount.unmount();
    same(&fs::read(&backing).unwrap(), &expected);
    assert!(occupied(&backing) >= 6 * MIB, "what the user reserved is kept");
}

/// A hole that was punched takes no space any more.
#[test]
fn a_punched_hole_gives_its_space_back() {
    let mount = Mount::new("pool_size=8m");
    let file = open(&mount.at("file"));
    write_pattern(&file, 6 * MIB, 1 << 20);
    file.sync_all().unwrap();
    let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&file, flags, MIB, 4 * MIB).unwrap();
    file.sync_all().unwrap();
    drop(file);
    let backing = mount.backing("file");
    wait_until("the space of the hole", || occupied(&backing) <= 2 * MIB + 64 * KIB);
}

/// "st_size, st_blocks, SEEK_DATA and SEEK_HOLE count what is only in the pool".
#[test]
fn bytes_in_the_pool_are_data_and_what_is_between_them_holes() {
    let mount = Mount::new("pool_size=16m");
    let path = mount.at("file");
    let file = open(&path);
    file.set_len(10 * MIB).unwrap();
    file.write_all_at(&pattern(0, 5000), 4 * MIB).unwrap();
    file.write_all_at(b"end", 10 * MIB - 3).unwrap();
    let check = |file: &File| {
        let at = |from: SeekFrom| seek(file, from);
        assert_eq!(at(SeekFrom::Data(0)), Ok(4 * MIB));
        assert_eq!(at(SeekFrom::Data(4 * MIB + 100)), Ok(4 * MIB + 100));
        assert_eq!(at(SeekFrom::Hole(0)), Ok(0));
        assert_eq!(at(SeekFrom::Hole(4 * MIB)), Ok(4 * MIB + 8192));
        assert_eq!(at(SeekFrom::Data(5 * MIB)), Ok(10 * MIB - 4096));
        assert_eq!(at(SeekFrom::Hole(10 * MIB - 1)), Ok(10 * MIB));
        assert_eq!(at(SeekFrom::Data(10 * MIB)), Err(Errno::NXIO));
        assert_eq!(at(SeekFrom::Hole(10 * MIB)), Err(Errno::NXIO));
    };
    check(&file);
    file.sync_all().unwrap();
    check(&file);
    check(&File::open(mount.backing("file")).unwrap());
}

/// As above: stat is right before anything was written out, and the same afterwards.
#[test]
fn stat_counts_what_is_only_in_the_pool() {
    let mount = Mount::new("pool_size=16m");
    for (name, length) in [("small", 1), ("odd", 700_001), ("large", 3 * MIB + 17)] {
        let path = mount.at(name);
        let file = open(&path);
        write_pattern(&file, length, 100_000);
        let before = file.metadata().unwrap();
        assert_eq!(before.len(), length);
        let blocks = before.blocks() * 512;
        assert!(blocks >= length.next_multiple_of(512), "{name}: {blocks} of {length}");
        assert!(blocks <= length.next_multiple_of(4096) + 4096, "{name}: {blocks} of {length}");
        file.sync_all().unwrap();
        let after = file.metadata().unwrap();
        assert_eq!((after.len(), after.blocks() * 512), (length, blocks), "{name}");
        drop(file);
        assert_eq!(fs::metadata(mount.backing(name)).unwrap().len(), length);
    }
}

/// Space that was reserved ahead of a growing file is given back when it is closed.
#[test]
fn what_was_reserved_ahead_is_given_back() {
    let mount = Mount::new("pool_size=16m");
    let file = open(&mount.at("file"));
    write_pattern(&file, 20 * MIB + 1, 300_000);
    drop(file);
    let backing = mount.backing("file");
    wait_until("the space", || {
        fs::metadata(&backing).unwrap().len() == 20 * MIB + 1
            && occupied(&backing) <= 20 * MIB + 64 * KIB
    });
    is_pattern(&mount.at("file"), 20 * MIB + 1);
}

fn free(at: &Path) -> u64 {
    let space = statvfs(at).unwrap();
    space.f_bfree * space.f_frsize
}

/// "unlink while open": the file lives on without a name, and its space comes back with the last handle.
#[test]
fn the_last_handle_of_a_nameless_file_gives_its_space_back() {
    let mount = Mount::new("pool_size=16m");
    let (path, length) = (mount.at("file"), 64 * MIB);
    let file = open(&path);
    write_pattern(&file, length, 1 << 20);
    file.sync_all().unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    file.write_all_at(b"still here", MIB + 1).unwrap();
    let mut bytes = [0; 10];
    file.read_exact_at(&mut bytes, MIB + 1).unwrap();
    assert_eq!(bytes, *b"still here");
    let before = free(&mount.mnt);
    drop(file);
    // Others use the disk too; most of it must come back.
    wait_until("the space", || free(&mount.mnt) > before + length / 2);
}
