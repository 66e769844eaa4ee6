//! Several processes on one mount: this program again, each time in another role.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bytes::open;
use crate::exchange::{WORKERS, Worker, is_at_rest, seed};
use crate::place::Mount;
use crate::requests::{ask, settled};
use crate::support::{MIB, Random, pattern, same, swap_xattr, wait_until};

/// What a process is there for; unset where the test itself runs.
const ROLE: &str = "SWAPFS_TEST_ROLE";
/// The folder of its mount and swap folder.
const FOLDER: &str = "SWAPFS_TEST_FOLDER";
/// How long it works, in milliseconds.
const WORK: &str = "SWAPFS_TEST_WORK";
/// What its random numbers begin with.
const SEED: &str = "SWAPFS_TEST_SEED";

/// What the workers may take to begin and to end.
const MORE: Duration = Duration::from_secs(60);

fn given<T: std::str::FromStr<Err: std::fmt::Debug>>(name: &str) -> Option<T> {
    Some(std::env::var(name).ok()?.parse().unwrap())
}

/// A process in a role; killed if it is still there at the end.
struct Process {
    role: String,
    child: Child,
}

impl Process {
    /// Runs a test of this program again, as `role`.
    fn start(test: &str, role: &str, mount: &Mount, seed: u64, work: Duration) -> Self {
        let child = Command::new(std::env::current_exe().unwrap())
            .args([test, "--exact", "--nocapture"])
            .env(ROLE, role)
            .env(FOLDER, mount.mnt.parent().unwrap())
            .env(SEED, seed.to_string())
            .env(WORK, work.as_millis().to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        Self { role: role.into(), child }
    }

    fn ends_well(mut self, until: Instant) {
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < until, "{} takes too long", self.role);
            std::thread::sleep(Duration::from_millis(10));
        };
        assert!(status.success(), "{}: {status}", self.role);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The role of this process, and its mount and swap folder.
fn role() -> Option<(String, PathBuf, PathBuf)> {
    let (role, folder) = (given::<String>(ROLE)?, given::<PathBuf>(FOLDER)?);
    Some((role, folder.join("mnt"), folder.join("swap")))
}

const PARTS: u64 = 4;
const TURNS: u64 = 3;
const LENGTH: u64 = 6 * MIB + 99;

/// The bytes that one turn puts in one partition.
fn bytes_of(turn: u64, part: u64) -> Vec<u8> {
    pattern((turn * PARTS + part) * 77_777, LENGTH as usize)
}

/// A word from one process to the other: an empty file beside the partitions.
fn note(mnt: &Path, turn: u64, part: u64, word: &str) -> PathBuf {
    mnt.join(format!("{turn}-{part}.{word}"))
}

/// Writes the partitions, and rewrites each as soon as the other process has seen it.
fn write(mnt: &Path) {
    let mut random = Random::new(given(SEED).unwrap());
    for (turn, part) in (0..TURNS).flat_map(|turn| (0..PARTS).map(move |part| (turn, part))) {
        if turn > 0 {
            wait_until("the watcher", || note(mnt, turn - 1, part, "seen").exists());
        }
        let (file, bytes) = (open(&mnt.join(part.to_string())), bytes_of(turn, part));
        let mut at = 0;
        while at < bytes.len() {
            let end = (at + random.below(2 * MIB) as usize + 1).min(bytes.len());
            file.write_all_at(&bytes[at..end], at as u64).unwrap();
            at = end;
        }
        drop(file);
        File::create(note(mnt, turn, part, "written")).unwrap();
    }
}

/// Knows the partitions by name and status alone; moves them out and in, and checks the bytes.
fn watch(mnt: &Path, swap: &Path) {
    for (turn, part) in (0..TURNS).flat_map(|turn| (0..PARTS).map(move |part| (turn, part))) {
        let path = mnt.join(part.to_string());
        wait_until("the partition", || path.exists());
        let written = note(mnt, turn, part, "written");
        let mut looks = 0;
        wait_until("its bytes", || {
            let status = swap_xattr(&path, "status");
            assert!(["available", "inflight", "not_available"].contains(&status.as_str()));
            looks += 1;
            // To those who still write it this makes no difference.
            ask(&path, ["swap_out", "release"][looks % 2]);
            written.exists()
        });
        ask(&path, "release");
        assert_eq!(settled(&path), "not_available");
        assert_eq!((swap_xattr(&path, "resident"), swap_xattr(&path, "dirty")), zeros());
        let bytes = bytes_of(turn, part);
        let backing = fs::read(swap.join(part.to_string())).unwrap();
        same(&backing[..LENGTH as usize], &bytes);
        ask(&path, "swap_in");
        assert_eq!(settled(&path), "available");
        assert_eq!(swap_xattr(&path, "resident"), LENGTH.to_string());
        same(&fs::read(&path).unwrap(), &bytes);
        File::create(note(mnt, turn, part, "seen")).unwrap();
    }
}

fn zeros() -> (String, String) {
    ("0".into(), "0".into())
}

/// One process writes partitions; another, which knows only their names, watches their status, has them
/// released, waits, has them swapped in, waits, and finds them available with the right bytes.
#[test]
fn one_process_writes_and_another_watches() {
    const THIS: &str = "processes::one_process_writes_and_another_watches";
    match role() {
        Some((role, mnt, _)) if role == "writer" => return write(&mnt),
        Some((_, mnt, swap)) => return watch(&mnt, &swap),
        None => {}
    }
    let seed = seed();
    let mount = Mount::new("pool_size=16m,open_swap_in=none");
    let start = |role| Process::start(THIS, role, &mount, seed, Duration::ZERO);
    let (writer, watcher) = (start("writer"), start("watcher"));
    let until = Instant::now() + MORE;
    writer.ends_well(until);
    watcher.ends_well(until);
    assert_eq!(settled(&mount.mnt), "idle");
}

/// Eight processes ask, read and rewrite at random more than the pool holds: nothing fails, nothing
/// hangs, and in the end every buffer is available. For 5 s, or `SWAPFS_REQUESTS_SECONDS`, on the
/// filesystem of `SWAPFS_REQUESTS_FOLDER`.
#[test]
fn eight_processes_ask_for_everything() {
    const THIS: &str = "processes::eight_processes_ask_for_everything";
    if let Some((role, mnt, swap)) = role() {
        let mut worker = Worker::new(&mnt, role.parse().unwrap(), given(SEED).unwrap());
        File::create(mnt.join(format!("{role}.ready"))).unwrap();
        wait_until("the others", || {
            (0..WORKERS).all(|number| mnt.join(format!("{number}.ready")).exists())
        });
        let work = Duration::from_millis(given(WORK).unwrap());
        return worker.work(Instant::now() + work, &swap);
    }
    let seed = seed();
    let work = Duration::from_secs(given("SWAPFS_REQUESTS_SECONDS").unwrap_or(5));
    let folder = given("SWAPFS_REQUESTS_FOLDER")
        .unwrap_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")));
    let mount = Mount::lasting(work, &folder, "pool_size=16m");
    let workers: Vec<Process> = (0..WORKERS)
        .map(|number| Process::start(THIS, &number.to_string(), &mount, seed, work))
        .collect();
    let until = Instant::now() + work + MORE;
    workers.into_iter().for_each(|worker| worker.ends_well(until));
    is_at_rest(&mount);
}
