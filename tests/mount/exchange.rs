//! Requests at work: of another process, and of many at once while others read and write.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use crate::bytes::open;
use crate::place::Mount;
use crate::requests::{ask, is_backed, request, settled};
use crate::support::{MIB, Random, is_pattern, pattern, same, swap_xattr, sync_all, wait_until};

/// One process writes partitions; another, which knows only their names, moves them out and in.
#[test]
fn two_processes_share_partitions_by_their_status() {
    let mount = Mount::new("pool_size=32m,open_swap_in=none");
    let source = mount.scratch.path().join("source");
    let length = 6 * MIB + 99;
    fs::write(&source, pattern(0, length as usize)).unwrap();
    let script = "for i in 0 1 2 3; do cp \"$0\" \"$1/part\"; mv \"$1/part\" \"$1/$i\"; done";
    let mut writer =
        Command::new("sh").args(["-c", script]).args([&source, &mount.mnt]).spawn().unwrap();
    for number in 0..4 {
        let path = mount.at(&format!("{number}"));
        wait_until("the partition", || path.exists());
        let status = swap_xattr(&path, "status");
        assert!(["available", "inflight"].contains(&status.as_str()), "{status}");
        ask(&path, "release");
        assert_eq!(settled(&path), "not_available");
        is_backed(&mount, &format!("{number}"), length);
        ask(&path, "swap_in");
        assert_eq!(settled(&path), "available");
        is_pattern(&path, length);
    }
    assert!(writer.wait().unwrap().success());
    assert_eq!(settled(&mount.mnt), "idle");
}

const WORKERS: u64 = 8;
const FILES: u64 = 2;
const LENGTH: u64 = 3 * MIB + 1234;

/// One of those at work: its partitions are its own to write, and everybody's to ask for and to read.
struct Worker<'a> {
    mount: &'a Mount,
    number: u64,
    random: Random,
    /// Where in the pattern the bytes of each partition begin, which changes with each rewrite.
    begins: [u64; FILES as usize],
}

impl Worker<'_> {
    fn path(&self, worker: u64, file: u64) -> std::path::PathBuf {
        self.mount.at(&format!("{worker}/{file}"))
    }

    fn expected(&self, file: u64, offset: u64, length: u64) -> Vec<u8> {
        pattern(self.begins[file as usize] + offset, length as usize)
    }

    fn rewrite(&mut self, file: u64) {
        self.begins[file as usize] = self.random.below(1 << 40);
        let handle = open(&self.path(self.number, file));
        let piece = self.random.below(MIB) + 1000;
        let mut at = 0;
        while at < LENGTH {
            let length = piece.min(LENGTH - at);
            let bytes = self.expected(file, at, length);
            handle.write_all_at(&bytes, at).unwrap();
            at += length;
        }
        if self.random.below(3) == 0 {
            // What is on the disk cannot be discarded.
            handle.sync_all().unwrap();
            ask(&self.path(self.number, file), "discard");
        }
    }

    fn read(&mut self, file: u64) {
        let handle = File::open(self.path(self.number, file)).unwrap();
        let offset = self.random.below(LENGTH);
        let length = (self.random.below(2 * MIB) + 1).min(LENGTH - offset);
        let mut bytes = vec![0; length as usize];
        handle.read_exact_at(&mut bytes, offset).unwrap();
        same(&bytes, &self.expected(file, offset, length));
    }

    /// Asks something of anybody's.
    fn ask(&mut self) {
        let (worker, file) = (self.random.below(WORKERS), self.random.below(FILES));
        let (path, folder) = (self.path(worker, file), self.mount.at(&worker.to_string()));
        let requests = ["swap_in", "swap_in", "swap_out", "release", "reserve 4m"];
        let (path, value) = match self.random.below(20) {
            0 => (&self.mount.mnt, "release"),
            1 => (&self.mount.mnt, "synchronize_writes"),
            2 | 3 => (&self.mount.mnt, "reserve_buffers 5"),
            4 | 5 => (&self.mount.mnt, "release_reserved_buffers"),
            6 => (&folder, "swap_in"),
            7 => (&folder, "release"),
            number => (&path, requests[number as usize % requests.len()]),
        };
        let done = request(path, value);
        assert!(matches!(done, Ok(()) | Err(Errno::NOBUFS)), "{value}: {done:?}");
        if *path != folder && self.random.below(8) == 0 {
            settled(path);
        }
    }

    fn step(&mut self) {
        let file = self.random.below(FILES);
        match self.random.below(10) {
            0 => self.rewrite(file),
            1..6 => self.read(file),
            _ => self.ask(),
        }
    }
}

/// Everything at once on a pool a third of what is asked for: nothing fails, hangs or gets lost.
fn stress(options: &str) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = std::env::var("SWAPFS_SEED")
        .map_or(now.as_micros() as u64, |seed| seed.parse().expect("a seed is a number"));
    println!("SWAPFS_SEED={seed}");
    let mount = Mount::new(options);
    let stop = AtomicBool::new(false);
    let workers: Vec<Worker<'_>> = (0..WORKERS)
        .map(|number| {
            fs::create_dir(mount.at(&number.to_string())).unwrap();
            let mut worker = Worker {
                mount: &mount,
                number,
                random: Random::new(seed.wrapping_add(number)),
                begins: [0; FILES as usize],
            };
            (0..FILES).for_each(|file| worker.rewrite(file));
            worker
        })
        .collect();
    std::thread::scope(|scope| {
        for mut worker in workers {
            let (mount, stop, number) = (&mount, &stop, worker.number);
            scope.spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    worker.step();
                }
                for file in 0..FILES {
                    let bytes = worker.expected(file, 0, LENGTH);
                    let name = format!("{number}/{file}");
                    same(&fs::read(mount.at(&name)).unwrap(), &bytes);
                    open(&mount.at(&name)).sync_all().unwrap();
                    let backing = fs::read(mount.backing(&name)).unwrap();
                    same(&backing[..LENGTH as usize], &bytes);
                }
            });
        }
        std::thread::sleep(Duration::from_secs(4));
        stop.store(true, Ordering::SeqCst);
    });
    ask(&mount.mnt, "release_reserved_buffers");
    sync_all(&mount.mnt);
    assert_eq!(settled(&mount.mnt), "idle");
    let count = |name: &str| swap_xattr(&mount.mnt, &format!("pool.{name}"));
    wait_until("every buffer", || count("available") == count("buffers"));
    assert_eq!((count("dirty"), count("inflight")), ("0".into(), "0".into()));
    let errors =
        |file: &str| rustix::fs::getxattr(mount.at(file), "user.swap.error", &mut [0; 64][..]);
    assert_eq!(errors("0/0"), Err(Errno::NODATA));
}

#[test]
fn requests_by_all_of_everything() {
    stress("pool_size=16m");
}

#[test]
fn requests_by_all_of_everything_in_small_blocks() {
    stress("pool_size=14m,block_size=64k,open_swap_in=none");
}
