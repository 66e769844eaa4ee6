//! What is left when the daemon, or the machine, ends in the midst of its work, and what others do to the swap
//! folder before it is mounted again.
//!
//! Each case of a table is named in what its test complains of, and no case keeps the others from being tried.

mod disks;
mod marks;
mod modes;
mod others;
mod power;
mod seam;
mod seen;
mod shape;
mod sizes;
mod tear;

use std::collections::BTreeMap;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use rustix::fs::{FallocateFlags, fallocate};

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done};
use crate::support::{MIB, is_root, pattern, wait_until};

/// The modes that keep records.
const MODES: [&str; 2] = ["writes", "crc32c"];

const PAGE: u64 = 4096;

/// The change times of two moments so far apart differ.
const TICK: Duration = Duration::from_millis(30);

/// Small blocks and one transfer at a time: much is on its way at any moment.
fn options(mode: &str) -> String {
    format!("pool_size=8m,block_size=64k,queue_depth=1,open_swap_in=none,checksum={mode}")
}

/// A swap folder on the build folder's filesystem, mounted in this mode.
fn mounted(mode: &str) -> Mount {
    Mount::lasting(Duration::from_secs(200), Path::new(env!("CARGO_TARGET_TMPDIR")), &options(mode))
}

/// Does this for each mode, also for the second when the first has failed.
fn in_each_of(modes: &[&'static str], work: impl Fn(&'static str) + Sync) {
    if !is_root() {
        return;
    }
    let failed: Vec<&str> = modes
        .iter()
        .copied()
        .filter(|mode| std::thread::scope(|scope| scope.spawn(|| work(mode)).join().is_err()))
        .collect();
    assert!(failed.is_empty(), "failed with checksum={}", failed.join(" and checksum="));
}

fn in_both_modes(work: impl Fn(&'static str) + Sync) {
    in_each_of(&MODES, work);
}

/// The daemon ends as by `kill -9`, and nothing is mounted any more.
fn kill(mount: &Mount) {
    // Process 0 would be all of this test's own group.
    assert!(mount.daemon().as_raw() > 0, "the mount has been taken away");
    mount.signal(Signal::SIGKILL);
    mount.wait_gone();
    let _ = umount2(&mount.mnt, MntFlags::MNT_DETACH);
}

/// Mounts; a killed process lets go of its lock only when its transfers have ended.
fn start(mount: &Mount, options: &str) {
    let mut output = mount.mount(options);
    wait_until("the lock", || {
        let locked = !output.status.success() && complaint(&output).contains("in use");
        if locked {
            output = mount.mount(options);
        }
        !locked
    });
    is_done(&output);
}

/// The end by `kill -9`, and a new beginning.
fn crash(mount: &Mount, mode: &str) {
    kill(mount);
    start(mount, &options(mode));
}

/// What went wrong, in all of a table's cases.
#[derive(Debug, Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn note(&mut self, case: &str, result: Result<(), String>) {
        if let Err(what) = result {
            self.0.push(format!("{case}: {what}"));
        }
    }

    #[track_caller]
    fn none(self) {
        let Self(all) = self;
        assert!(all.is_empty(), "{} complaints:\n{}", all.len(), all.join("\n"));
    }
}

/// Whether a file holds exactly these bytes.
fn holds(path: &Path, expected: &[u8]) -> Result<(), String> {
    let length = fs::metadata(path).map_err(|error| format!("its size: {error}"))?.len();
    if length != expected.len() as u64 {
        return Err(format!("{length} bytes, not {}", expected.len()));
    }
    let file = File::open(path).map_err(|error| format!("opened: {error}"))?;
    let mut found = vec![0; expected.len()];
    for (index, piece) in found.chunks_mut(65_536).enumerate() {
        let at = index as u64 * 65_536;
        file.read_exact_at(piece, at).map_err(|error| format!("read at {at}: {error}"))?;
    }
    match found.iter().zip(expected).position(|(found, expected)| found != expected) {
        None => Ok(()),
        Some(at) => Err(format!("the byte at {at} of {length} is wrong")),
    }
}

/// A file with the pattern in one part of it, on stable storage.
fn store(mount: &Mount, name: &str, start: u64, length: u64) {
    let file = open(&mount.at(name));
    file.write_all_at(&pattern(start, length as usize), start).unwrap();
    file.sync_all().unwrap();
}

/// Changes bytes as a device does that fails: size and times stay.
fn rot(path: &Path, offset: u64, change: impl FnOnce(&mut [u8]), length: usize) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let before = file.metadata().unwrap();
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).unwrap();
    change(&mut bytes);
    file.write_all_at(&bytes, offset).unwrap();
    let times = FileTimes::new().set_accessed(before.accessed().unwrap());
    file.set_times(times.set_modified(before.modified().unwrap())).unwrap();
    file.sync_all().unwrap();
}

/// One bit of a file, flipped by its device.
fn flip(path: &Path, offset: u64) {
    rot(path, offset, |byte| byte[0] ^= 8, 1);
}

fn long_ago() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)
}

fn punch(file: &File, offset: u64, length: u64) {
    fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length)
        .unwrap();
}

fn zero_range(file: &File, offset: u64, length: u64) {
    fallocate(file, FallocateFlags::ZERO_RANGE, offset, length).unwrap();
}

fn allocate(file: &File, offset: u64, length: u64) {
    fallocate(file, FallocateFlags::empty(), offset, length).unwrap();
}

/// Every file of a swap folder but swapfs's own, with its bytes.
fn everything(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() && entry.file_name() != ".swapfs" {
                folders.push(entry.path());
            } else if kind.is_file() {
                found.insert(entry.path(), fs::read(entry.path()).unwrap());
            }
        }
    }
    found
}

/// Whether nothing of it has another size or other bytes than before.
fn is_unchanged(folder: &Path, before: &BTreeMap<PathBuf, Vec<u8>>) -> Result<(), String> {
    let now = everything(folder);
    let mut changed = Vec::new();
    for (path, bytes) in before {
        let name = path.file_name().unwrap().display();
        match now.get(path) {
            Some(found) if found == bytes => {}
            Some(found) => {
                changed.push(format!("{name} ({} bytes, before {})", found.len(), bytes.len()));
            }
            None => changed.push(format!("{name} is gone")),
        }
    }
    match changed.is_empty() && now.len() == before.len() {
        true => Ok(()),
        false => {
            Err(format!("changed: {}; {} files of {}", changed.join(", "), now.len(), before.len()))
        }
    }
}

/// The usual file to be torn: 1 MiB in the midst of 3.
const LENGTH: u64 = 3 * MIB;
const PART: std::ops::Range<u64> = MIB..2 * MIB;
