//! Everything at once: what threads do to the same files leaves nothing that none of them did.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate};

use crate::bytes::open;
use crate::place::Mount;
use crate::support::{MIB, Map, Random, pattern, same, sync_all, wait_until};

/// Every byte is its offset's, or zero because it was cut off or never written.
fn is_pattern_or_zero(bytes: &[u8], offset: u64) {
    let expected = pattern(offset, bytes.len());
    let wrong = bytes.iter().zip(&expected).position(|(found, byte)| *found != 0 && found != byte);
    assert_eq!(wrong, None, "at {offset}+");
}

/// What one thread does again and again.
type Act = fn(&File, &mut Random);

const END: u64 = 6 * MIB;

fn range(random: &mut Random) -> (u64, usize) {
    (random.below(END), random.below(400_000) as usize + 1)
}

fn write(file: &File, random: &mut Random) {
    let (offset, length) = range(random);
    file.write_all_at(&pattern(offset, length), offset).unwrap();
}

fn read(file: &File, random: &mut Random) {
    let (offset, length) = range(random);
    let mut bytes = vec![0; length];
    let count = file.read_at(&mut bytes, offset).unwrap();
    is_pattern_or_zero(&bytes[..count], offset);
}

fn cut(file: &File, random: &mut Random) {
    let (offset, length) = range(random);
    match random.below(4) {
        0 => file.set_len(offset).unwrap(),
        1 => file.sync_all().unwrap(),
        number => {
            let flags = match number {
                2 => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
                _ => FallocateFlags::ZERO_RANGE,
            };
            fallocate(file, flags, offset, length as u64).unwrap();
        }
    }
    std::thread::sleep(Duration::from_millis(5));
}

/// Writers, readers, truncation, holes and fsync on one file; the swap folder has the outcome.
fn rush(options: &str) {
    let mount = Mount::new(options);
    let path = mount.at("file");
    let file = open(&path);
    let direct =
        File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let stop = AtomicBool::new(false);
    let work: [(&File, Act); 6] = [
        (&file, write),
        (&direct, write),
        (&file, write),
        (&file, read),
        (&direct, read),
        (&file, cut),
    ];
    std::thread::scope(|scope| {
        for (seed, (file, act)) in work.into_iter().enumerate() {
            let stop = &stop;
            scope.spawn(move || {
                let mut random = Random::new(seed as u64 + 1);
                while !stop.load(Ordering::SeqCst) {
                    act(file, &mut random);
                }
            });
        }
        std::thread::sleep(Duration::from_secs(3));
        stop.store(true, Ordering::SeqCst);
    });
    file.sync_all().unwrap();
    let bytes = fs::read(&path).unwrap();
    is_pattern_or_zero(&bytes, 0);
    same(&fs::read(mount.backing("file")).unwrap(), &bytes);
    drop((file, direct));
    mount.remount(options);
    same(&fs::read(&path).unwrap(), &bytes);
}

/// "Full POSIX … file semantics", under load.
#[test]
fn a_rush_on_one_file() {
    rush("pool_size=8m");
}

/// The same where everything is evicted all the time.
#[test]
fn a_rush_on_one_file_of_small_blocks() {
    rush("pool_size=2m,block_size=64k");
}

fn replace(folder: &Path, number: u64, random: &mut Random) {
    let (fresh, name) = (folder.join(format!("fresh-{number}")), random.below(5));
    let target = folder.join(format!("{name}"));
    let length = random.below(200_000) as usize;
    fs::write(&fresh, pattern(0, length)).unwrap();
    fs::rename(&fresh, &target).unwrap();
    match random.below(4) {
        0 => drop(fs::remove_file(&target)),
        1 => drop(fs::hard_link(&target, folder.join("linked"))),
        2 => drop(fs::remove_file(folder.join("linked"))),
        _ => {}
    }
}

/// Files that are replaced whole, as checkpoints are, are never seen half: not here, and not beneath.
#[test]
fn a_rush_of_replaced_files() {
    let mount = Mount::new("pool_size=4m,block_size=64k");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (stop, mnt) = (&stop, &mount.mnt);
            scope.spawn(move || {
                let mut random = Random::new(seed + 10);
                let mut number = seed;
                while !stop.load(Ordering::SeqCst) {
                    replace(mnt, number, &mut random);
                    number += 3;
                }
            });
        }
        let (stop, mnt) = (&stop, &mount.mnt);
        scope.spawn(move || {
            let mut random = Random::new(99);
            while !stop.load(Ordering::SeqCst) {
                if let Ok(bytes) = fs::read(mnt.join(format!("{}", random.below(5)))) {
                    same(&bytes, &pattern(0, bytes.len()));
                }
            }
        });
        std::thread::sleep(Duration::from_secs(3));
        stop.store(true, Ordering::SeqCst);
    });
    sync_all(&mount.mnt);
    for entry in fs::read_dir(&mount.mnt).unwrap() {
        let name = entry.unwrap().file_name();
        let bytes = fs::read(mount.mnt.join(&name)).unwrap();
        same(&bytes, &pattern(0, bytes.len()));
        same(&fs::read(mount.swap.join(&name)).unwrap(), &bytes);
    }
    // Nothing of what was replaced is kept.
    for entry in fs::read_dir(&mount.mnt).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let known = || {
        let stats = fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        stats["partitions"]["known"].as_u64().unwrap()
    };
    wait_until("the partitions to be forgotten", || known() == 0);
}

/// Copying by the kernel's own means (copy_file_range, sendfile) copies the right bytes.
#[test]
fn the_kernels_copies_are_right() {
    let mount = Mount::new("pool_size=8m");
    let (path, outside) = (mount.at("file"), mount.scratch.path().join("outside"));
    let length = 12 * MIB + 5;
    fs::write(&outside, pattern(0, length as usize)).unwrap();
    assert_eq!(fs::copy(&outside, &path).unwrap(), length);
    assert_eq!(fs::copy(&path, mount.at("copy")).unwrap(), length);
    assert_eq!(fs::copy(mount.at("copy"), &outside).unwrap(), length);
    same(&fs::read(&outside).unwrap(), &pattern(0, length as usize));
    mount.unmount();
    for name in ["file", "copy"] {
        let found = fs::read(mount.backing(name)).unwrap();
        same(&found, &pattern(0, length as usize));
    }
}

/// Mapped pages and calls of several threads on one file do not lose each other's bytes.
#[test]
fn a_rush_of_mapped_and_written_bytes() {
    let mount = Mount::new("pool_size=4m,block_size=64k");
    let path = mount.at("file");
    let file = open(&path);
    file.set_len(END).unwrap();
    // Even stripes are mapped, odd ones written; they share no page, but blocks and requests.
    let stripe = 12 * 1024;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let map = Map::new(&file, END as usize, true, true);
            for number in (0..END / stripe).step_by(2) {
                map.write((number * stripe) as usize, &pattern(number * stripe, stripe as usize));
            }
        });
        scope.spawn(|| {
            for number in (1..END / stripe).step_by(2) {
                let bytes = pattern(number * stripe, stripe as usize);
                file.write_all_at(&bytes, number * stripe).unwrap();
            }
        });
        scope.spawn(|| {
            let mut random = Random::new(3);
            (0..200).for_each(|_| read(&file, &mut random));
        });
    });
    let bytes = pattern(0, END as usize);
    same(&fs::read(&path).unwrap(), &bytes);
    file.sync_all().unwrap();
    drop(file);
    mount.unmount();
    same(&fs::read(mount.backing("file")).unwrap(), &bytes);
}
