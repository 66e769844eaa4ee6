//! mmap.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use crate::bytes::open;
use crate::place::Mount;
use crate::support::{MIB, Map, pattern, same, write_pattern};

/// "mmap shared …, readable and writable, coherent with read/write on the same mount".
#[test]
fn a_shared_mapping_is_coherent_with_read_and_write() {
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    let (file, other) = (open(&path), open(&path));
    write_pattern(&file, 4 * MIB, 1 << 20);
    let map = Map::new(&file, 4 << 20, true, true);
    let mut expected = pattern(0, 4 << 20);
    same(&map.read(0, 4 << 20), &expected);
    for number in 0..60_usize {
        let (offset, length) = (number * 61_813, 1 + number * 97);
        let bytes = pattern(number as u64 * 13, length);
        if number % 2 == 0 {
            map.write(offset, &bytes);
            let mut found = vec![0; length];
            other.read_exact_at(&mut found, offset as u64).unwrap();
            same(&found, &bytes);
        } else {
            other.write_all_at(&bytes, offset as u64).unwrap();
            same(&map.read(offset, length), &bytes);
        }
        expected[offset..offset + length].copy_from_slice(&bytes);
    }
    same(&map.read(0, 4 << 20), &expected);
    same(&fs::read(&path).unwrap(), &expected);
    drop((map, file, other));
    mount.unmount();
    same(&fs::read(mount.backing("file")).unwrap(), &expected);
}

/// "`msync`: on stable storage".
#[test]
fn msync_puts_a_mapping_into_the_swap_folder() {
    let mount = Mount::new("pool_size=8m");
    let file = open(&mount.at("file"));
    file.set_len(2 * MIB + 100).unwrap();
    let map = Map::new(&file, 2 * MIB as usize + 100, true, true);
    let bytes = pattern(5, 100_000);
    map.write(MIB as usize - 7, &bytes);
    map.sync();
    let found = fs::read(mount.backing("file")).unwrap();
    assert_eq!(found.len() as u64, 2 * MIB + 100);
    same(&found[MIB as usize - 7..][..bytes.len()], &bytes);
}

/// Bytes of a mapping that a truncation cuts off are gone, also when the file grows again.
#[test]
fn truncating_a_mapped_file_cuts_its_mapping() {
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    let file = open(&path);
    write_pattern(&file, 2 * MIB, 1 << 20);
    let map = Map::new(&file, 2 << 20, true, true);
    map.write(MIB as usize, b"mapped");
    file.set_len(MIB + 3).unwrap();
    file.set_len(2 * MIB).unwrap();
    let mut expected = pattern(0, MIB as usize);
    expected.extend(b"map");
    expected.resize(2 << 20, 0);
    same(&map.read(0, 2 << 20), &expected);
    same(&fs::read(&path).unwrap(), &expected);
    map.write(2 * MIB as usize - 4, b"end");
    drop(map);
    file.sync_all().unwrap();
    expected[2 * MIB as usize - 4..][..3].copy_from_slice(b"end");
    same(&fs::read(mount.backing("file")).unwrap(), &expected);
}

/// "mmap … private": changes stay with the process that made them.
#[test]
fn a_private_mapping_changes_nothing() {
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    write_pattern(&open(&path), MIB, 1 << 20);
    let file = File::open(&path).unwrap();
    let map = Map::new(&file, 1 << 20, false, true);
    map.write(1000, b"private");
    assert_eq!(map.read(1000, 7), b"private");
    same(&map.read(2000, 500_000), &pattern(2000, 500_000));
    same(&fs::read(&path).unwrap(), &pattern(0, 1 << 20));
    // Mapped for reading only, with the file closed.
    let map = Map::new(&file, 1 << 20, true, false);
    drop(file);
    same(&map.read(0, 1 << 20), &pattern(0, 1 << 20));
}

/// Mapped bytes are written out in the order of time, not of paths: the later write wins.
#[test]
fn a_write_after_a_mapped_one_wins() {
    let mount = Mount::new("pool_size=4m,block_size=64k");
    let path = mount.at("file");
    let file = open(&path);
    file.set_len(8 * MIB).unwrap();
    let map = Map::new(&file, 8 << 20, true, true);
    map.write(0, &vec![1; 8 << 20]);
    let direct = pattern(0, 3 << 20);
    file.write_all_at(&direct, MIB + 11).unwrap();
    map.write(2 << 20, b"last");
    drop(map);
    let mut expected = vec![1; 8 << 20];
    expected[MIB as usize + 11..][..direct.len()].copy_from_slice(&direct);
    expected[2 << 20..][..4].copy_from_slice(b"last");
    same(&fs::read(&path).unwrap(), &expected);
    file.sync_all().unwrap();
    same(&fs::read(mount.backing("file")).unwrap(), &expected);
}
