//! Several openers of one file, many files at once, and what the machine pays for it.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::bytes::open;
use crate::place::Mount;
use crate::support::{KIB, MIB, Map, is_pattern, pattern, same, sync_all, write_pattern};

/// What one opener has written, every other reads at once.
#[test]
fn openers_see_each_others_bytes_at_once() {
    let mount = Mount::new("pool_size=4m,block_size=64k");
    let path = mount.at("file");
    let (writer, reader) = (open(&path), File::open(&path).unwrap());
    let direct = File::options().read(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let written = AtomicU64::new(0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut at = 0;
            for number in 0..1500_u64 {
                let bytes = pattern(at, 1 + (number * 7919 % 30_000) as usize);
                writer.write_all_at(&bytes, at).unwrap();
                at += bytes.len() as u64;
                written.store(at, Ordering::SeqCst);
            }
            written.store(at | 1 << 63, Ordering::SeqCst);
        });
        loop {
            let now = written.load(Ordering::SeqCst);
            let end = now & !(1 << 63);
            let from = end.saturating_sub(20_000);
            for file in [&reader, &direct] {
                let mut bytes = vec![0; (end - from) as usize];
                file.read_exact_at(&mut bytes, from).unwrap();
                same(&bytes, &pattern(from, bytes.len()));
            }
            if now != end {
                break;
            }
        }
    });
}

/// Writers of different parts of one file do not disturb each other, nor those who read.
#[test]
fn many_writers_fill_one_file() {
    let mount = Mount::new("pool_size=2m,block_size=64k");
    let path = mount.at("file");
    let file = open(&path);
    let (threads, each) = (6_u64, 3 * MIB + 1001);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let file = &file;
            scope.spawn(move || {
                let start = thread * each;
                let mut at = start;
                while at < start + each {
                    let length = 50_003.min(start + each - at) as usize;
                    file.write_all_at(&pattern(at, length), at).unwrap();
                    at += length as u64;
                    let mut bytes = vec![0; length];
                    file.read_exact_at(&mut bytes, at - length as u64).unwrap();
                    same(&bytes, &pattern(at - length as u64, length));
                }
            });
        }
    });
    is_pattern(&path, threads * each);
    file.sync_all().unwrap();
    is_pattern(&mount.backing("file"), threads * each);
}

/// "Thousands of descriptors may be open."
#[test]
fn two_thousand_files_are_open_at_once() {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    if hard < 4096 {
        eprintln!("left out: {hard} descriptors are not enough");
        return;
    }
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(4096), hard).unwrap();
    let mount = Mount::new("pool_size=4m,block_size=64k");
    let name = |number: usize| format!("{number}");
    let count = 2000;
    let files: Vec<File> = (0..count).map(|number| open(&mount.at(&name(number)))).collect();
    let bytes = |number: usize| pattern(number as u64 * 4321, 1000 + number * 3);
    for (number, file) in files.iter().enumerate() {
        file.write_all_at(&bytes(number), number as u64).unwrap();
    }
    for (number, file) in files.iter().enumerate().rev() {
        let mut found = vec![0; bytes(number).len()];
        file.read_exact_at(&mut found, number as u64).unwrap();
        same(&found, &bytes(number));
    }
    sync_all(&mount.mnt);
    for number in 0..count {
        let found = fs::read(mount.backing(&name(number))).unwrap();
        same(&found[number..], &bytes(number));
    }
    drop(files);
    mount.unmount();
}

/// "every transfer to the swap folder is aligned O_DIRECT": nothing of it is cached twice.
#[test]
fn the_page_cache_holds_nothing_of_the_backing_file() {
    let mount = Mount::new("pool_size=8m");
    let (path, backing) = (mount.at("file"), mount.backing("file"));
    let length = 20 * MIB + 12;
    let file = open(&path);
    write_pattern(&file, length, 300_001);
    file.sync_all().unwrap();
    let cached = || {
        let backing = File::open(&backing).unwrap();
        Map::new(&backing, length as usize, true, false).cached_pages()
    };
    assert_eq!(cached(), 0, "pages after writing");
    is_pattern(&path, length);
    assert_eq!(cached(), 0, "pages after reading");
    file.write_all_at(b"x", 5 * MIB + 1).unwrap();
    file.sync_all().unwrap();
    drop(file);
    mount.remount("pool_size=8m");
    is_same_but_for_one(&path, length);
    assert_eq!(cached(), 0, "pages after mounting again");
}

fn is_same_but_for_one(path: &std::path::Path, length: u64) {
    let mut expected = pattern(0, length as usize);
    expected[5 * MIB as usize + 1] = b'x';
    same(&fs::read(path).unwrap(), &expected);
}

/// "the daemon's memory … stays within pool_size + 64 MiB".
#[test]
fn the_daemon_keeps_its_memory_bound() {
    let mount = Mount::new("pool_size=32m");
    let path = mount.at("big");
    let length = 1024 * MIB;
    write_pattern(&open(&path), length, 4 << 20);
    is_pattern(&path, length);
    let used = most_memory(&mount);
    assert!(used <= 96 * MIB, "{} MiB", used / MIB);
    fs::remove_file(path).unwrap();
}

/// The same while the kernel writes a mapping back, with as many requests at once as it makes.
#[test]
fn a_mapping_written_back_keeps_the_memory_bound() {
    let mount = Mount::new("pool_size=16m");
    let path = mount.at("mapped");
    let length = 384 * MIB;
    let file = open(&path);
    file.set_len(length).unwrap();
    let map = Map::new(&file, length as usize, true, true);
    for round in 0..2 {
        for at in (0..length).step_by(16 << 20) {
            map.write(at as usize, &pattern(at + round, 16 << 20));
        }
        file.sync_all().unwrap();
    }
    same(&map.read(48 << 20, 1 << 20), &pattern(48 * MIB + 1, 1 << 20));
    let used = most_memory(&mount);
    assert!(used <= 80 * MIB, "{} MiB", used / MIB);
}

/// Names that the kernel remembers cost at most 512 bytes each, beyond the first 30,000; small partitions among them, which
/// stay in the pool while it has room.
#[test]
#[ignore = "needs minutes for 300,000 files: tests/suites/tools.sh"]
fn names_cost_a_bounded_amount_of_memory() {
    const NAMES: u64 = 300_000;
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let mount = Mount::lasting(Duration::from_secs(900), parent, "pool_size=256m");
    std::thread::scope(|scope| {
        for folder in 0..4 {
            let at = mount.at(&folder.to_string());
            scope.spawn(move || {
                fs::create_dir(&at).unwrap();
                for number in 0..NAMES / 4 {
                    let name = at.join(format!("partition_{number:08}.tensor.swp"));
                    let file = File::create(name).unwrap();
                    if number % 2 == 0 {
                        file.write_all_at(&[7; 4096], 0).unwrap();
                    }
                }
            });
        }
    });
    let bound = (256 + 64) * MIB + (NAMES - 30_000) * 512;
    let used = most_memory(&mount);
    assert!(used <= bound, "{} of {} MiB", used / MIB, bound / MIB);
    for folder in 0..4 {
        fs::remove_dir_all(mount.at(&folder.to_string())).unwrap();
    }
    let used = most_memory(&mount);
    assert!(used <= bound, "after they were removed: {} of {} MiB", used / MIB, bound / MIB);
}

/// The most that the daemon had of memory, huge pages included.
fn most_memory(mount: &Mount) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon())).unwrap();
    let bytes = |key: &str| {
        let line = status.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * KIB
    };
    bytes("VmHWM:") + bytes("HugetlbPages:")
}
