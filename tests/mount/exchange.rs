//! Requests at work: of many at once while others read and write.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use rustix::io::Errno;

use crate::bytes::open;
use crate::place::Mount;
use crate::requests::{ask, request, settled};
use crate::support::{MIB, Random, pattern, same, swap_xattr, sync_all, wait_until};

pub(crate) const WORKERS: u64 = 8;
const FILES: u64 = 2;
const LENGTH: u64 = 3 * MIB + 1234;

/// One of those at work: its partitions are its own to write, and everybody's to ask for and to read.
pub(crate) struct Worker {
    mnt: PathBuf,
    number: u64,
    random: Random,
    /// Where in the pattern the bytes of each partition begin, which changes with each rewrite.
    begins: [u64; FILES as usize],
}

impl Worker {
    /// Makes a worker's folder and partitions. All have to be there before any starts to work.
    pub(crate) fn new(mnt: &Path, number: u64, seed: u64) -> Self {
        fs::create_dir(mnt.join(number.to_string())).unwrap();
        let random = Random::new(seed.wrapping_add(number));
        let begins = [0; FILES as usize];
        let mut worker = Self { mnt: mnt.to_owned(), number, random, begins };
        (0..FILES).for_each(|file| worker.rewrite(file));
        worker
    }

    fn path(&self, worker: u64, file: u64) -> PathBuf {
        self.mnt.join(format!("{worker}/{file}"))
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
        let (path, folder) = (self.path(worker, file), self.mnt.join(worker.to_string()));
        let requests = ["swap_in", "swap_in", "swap_out", "release", "reserve 4m"];
        let (path, value) = match self.random.below(20) {
            0 => (&self.mnt, "release"),
            1 => (&self.mnt, "synchronize_writes"),
            2 | 3 => (&self.mnt, "reserve_buffers 5"),
            4 | 5 => (&self.mnt, "release_reserved_buffers"),
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
    /// Works until then, and finds its own bytes at the end, on the mount and in the swap folder.
    pub(crate) fn work(&mut self, until: Instant, swap: &Path) {
        while Instant::now() < until {
            self.step();
        }
        for file in 0..FILES {
            let bytes = self.expected(file, 0, LENGTH);
            let path = self.path(self.number, file);
            same(&fs::read(&path).unwrap(), &bytes);
            open(&path).sync_all().unwrap();
            let backing = fs::read(swap.join(path.strip_prefix(&self.mnt).unwrap())).unwrap();
            same(&backing[..LENGTH as usize], &bytes);
        }
    }
}

/// A seed of this run's own, or the one that is asked for; printed.
pub(crate) fn seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let seed = std::env::var("SWAPFS_SEED")
        .map_or(now.as_micros() as u64, |seed| seed.parse().expect("a seed is a number"));
    println!("SWAPFS_SEED={seed}");
    seed
}

/// After the workers are gone: every buffer is to be had again, nothing failed on the way.
pub(crate) fn is_at_rest(mount: &Mount) {
    ask(&mount.mnt, "release_reserved_buffers");
    sync_all(&mount.mnt);
    assert_eq!(settled(&mount.mnt), "idle");
    let count = |name: &str| swap_xattr(&mount.mnt, &format!("pool.{name}"));
    wait_until("every buffer", || count("available") == count("buffers"));
    assert_eq!((count("dirty"), count("inflight")), ("0".into(), "0".into()));
    for (worker, file) in (0..WORKERS).flat_map(|worker| (0..FILES).map(move |file| (worker, file)))
    {
        let path = mount.at(&format!("{worker}/{file}"));
        let error = rustix::fs::getxattr(path, "user.swap.error", &mut [0; 64][..]);
        assert_eq!(error, Err(Errno::NODATA));
    }
}

/// Everything at once on a pool a third of what is asked for: nothing fails, hangs or gets lost.
fn stress(options: &str) {
    let seed = seed();
    let mount = Mount::new(options);
    let workers: Vec<Worker> =
        (0..WORKERS).map(|number| Worker::new(&mount.mnt, number, seed)).collect();
    let until = Instant::now() + Duration::from_secs(4);
    std::thread::scope(|scope| {
        for mut worker in workers {
            let swap = &mount.swap;
            scope.spawn(move || worker.work(until, swap));
        }
    });
    is_at_rest(&mount);
}

#[test]
fn requests_by_all_of_everything() {
    stress("pool_size=16m");
}

#[test]
fn requests_by_all_of_everything_in_small_blocks() {
    stress("pool_size=14m,block_size=64k,open_swap_in=none");
}
