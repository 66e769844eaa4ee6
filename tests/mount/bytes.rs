//! Bytes: what is written is read again, on the mount and in the swap folder.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::place::{Mount, is_done};
use crate::support::{
    KIB, MIB, Random, errno, is_pattern, occupied, pattern, same, set_xattr, wait_until,
    write_pattern,
};

/// A file for reading and writing, made when missing.
pub(crate) fn open(path: &Path) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true);
    options.open(path).unwrap()
}

fn open_with(path: &Path, flags: i32) -> File {
    let mut options = File::options();
    options.read(true).write(true).create(true);
    options.custom_flags(flags).open(path).unwrap()
}

fn stream(options: &str, length: u64) {
    let mount = Mount::new(options);
    let (path, backing) = (mount.at("stream"), mount.backing("stream"));
    let file = open(&path);
    write_pattern(&file, length, 1_234_567);
    is_pattern(&path, length);
    file.sync_all().unwrap();
    is_pattern(&backing, length);
    // Odd pieces over what is there: every block is a mixture afterwards.
    let mut at = 3001;
    while at < length {
        let bytes = pattern(at, 70_001.min((length - at) as usize));
        file.write_all_at(&bytes, at).unwrap();
        at += 1_500_007;
    }
    drop(file);
    mount.remount(options);
    is_pattern(&backing, length);
    is_pattern(&path, length);
}

/// "same bytes, same size … once synchronized": far more than the pool holds.
#[test]
fn a_stream_in_odd_pieces_arrives() {
    stream("pool_size=16m", 300 * MIB + 123);
}

/// Memory for `length` bytes, `skew` bytes behind the beginning of a page.
fn skewed(length: usize, skew: usize) -> (Vec<u8>, usize) {
    let memory = vec![0; length + 8192];
    let start = memory.as_ptr().align_offset(4096) + skew;
    (memory, start)
}

/// Large calls from memory that begins anywhere arrive, beside others that begin elsewhere and requests with long names;
/// over what is in the pool, over what is not, and behind the end.
#[test]
fn calls_from_memory_that_begins_anywhere_arrive() {
    const CALL: u64 = 12 * MIB;
    let mount = Mount::new("pool_size=48m");
    let ended = std::sync::atomic::AtomicBool::new(false);
    let write = |name: &str, flags: i32, first: u64, skew: usize| {
        let file = open_with(&mount.at(name), flags);
        let (mut memory, start) = skewed(CALL as usize, skew);
        for call in 0..6 {
            let at = first + call * CALL;
            memory[start..][..CALL as usize].copy_from_slice(&pattern(at, CALL as usize));
            file.write_all_at(&memory[start..][..CALL as usize], at).unwrap();
        }
        drop(file);
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let long = "n".repeat(200);
            while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                assert_eq!(
                    File::open(mount.at(&long)).unwrap_err().raw_os_error(),
                    Some(libc::ENOENT)
                );
                std::fs::write(mount.at(&format!("{long}-there")), &long).unwrap();
                assert_eq!(
                    std::fs::read(mount.at(&format!("{long}-there"))).unwrap(),
                    long.as_bytes()
                );
            }
        });
        for round in 0..3 {
            for (name, flags, first, skew) in [
                ("bytes", 0, 0, 48),
                ("odd", 0, 10_007, 2000),
                ("direct", libc::O_DIRECT, 0, 0),
                ("half", 0, MIB / 2, 4095),
            ] {
                write(name, flags, first, skew);
                if round == 1 {
                    set_xattr(&mount.at(name), "user.swap.request", b"release").unwrap();
                }
            }
            std::thread::scope(|writers| {
                writers.spawn(|| write("bytes", 0, 0, 48));
                writers.spawn(|| write("direct", libc::O_DIRECT, 0, 0));
                writers.spawn(|| write("odd", 0, 10_007, 48));
            });
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    for (name, first) in [("bytes", 0), ("odd", 10_007), ("direct", 0), ("half", MIB / 2)] {
        for path in [mount.at(name), mount.backing(name)] {
            let file = open(&path);
            file.sync_all().unwrap();
            let mut bytes = vec![0; (first + 6 * CALL) as usize];
            file.read_exact_at(&mut bytes, 0).unwrap();
            assert_eq!(file.metadata().unwrap().len(), bytes.len() as u64);
            assert!(bytes[..first as usize].iter().all(|byte| *byte == 0), "{name}: a hole");
            same(&bytes[first as usize..], &pattern(first, (6 * CALL) as usize));
        }
    }
}

fn transfers(mount: &Mount, kind: &str) -> u64 {
    let stats = std::fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    stats["aio"][kind].as_u64().unwrap()
}

/// Python's bytes do not begin with a page, so the kernel cuts them just before the end of each block: that went
/// out filled up with zeros, and once more with its last bytes.
#[test]
fn blocks_that_a_stream_has_not_filled_wait_for_the_rest() {
    let mount = Mount::new("pool_size=64m");
    let file = open(&mount.at("odd"));
    let mut at = 0;
    while at < 16 * MIB {
        let length = (MIB - if at == 0 { 48 } else { 0 }).min(16 * MIB - at);
        file.write_all_at(&pattern(at, length as usize), at).unwrap();
        at += length;
    }
    file.sync_all().unwrap();
    // One for each block, and some for those that waited for a second on a busy machine; it was two.
    assert!((16..24).contains(&transfers(&mount, "writes")));
    drop(file);
    is_pattern(&mount.backing("odd"), 16 * MIB);
}

/// What was never written of a file is zero without asking the device, wherever it lies before what was.
#[test]
fn holes_are_not_read() {
    let mount = Mount::new("pool_size=16m");
    let file = open(&mount.at("sparse"));
    for at in [64 * MIB - 1, 20 * MIB + 5] {
        file.write_all_at(b"x", at).unwrap();
    }
    file.sync_all().unwrap();
    let before = transfers(&mount, "reads");
    let mut bytes = vec![1; 64 * MIB as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    let found: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
    assert_eq!(found, [20 * MIB as usize + 5, 64 * MIB as usize - 1]);
    // Two blocks hold data, and may have left the pool.
    assert!(transfers(&mount, "reads") - before <= 4);
    file.set_len(10 * MIB).unwrap();
    file.set_len(64 * MIB).unwrap();
    file.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
}

/// "`block_size` … a power of two from 64 KiB".
#[test]
fn a_stream_through_the_smallest_blocks_arrives() {
    stream("pool_size=4m,block_size=64k", 40 * MIB + 1);
}

/// "`block_size` … to 16 MiB".
#[test]
fn a_stream_through_the_largest_blocks_arrives() {
    stream("pool_size=128m,block_size=16m", 200 * MIB + 4097);
}

/// A file and what must be in it.
struct Model {
    file: File,
    direct: File,
    bytes: Vec<u8>,
    random: Random,
}

/// Bytes a model's file has at most.
const MODEL_MAX: u64 = 12 * MIB;

impl Model {
    fn new(path: &Path) -> Self {
        Self {
            file: open(path),
            direct: open_with(path, libc::O_DIRECT),
            bytes: Vec::new(),
            random: Random::new(42),
        }
    }

    fn range(&mut self) -> (u64, usize) {
        let offset = self.random.below(MODEL_MAX - MIB);
        let limit = [100, 5000, 300_000, MIB][self.random.below(4) as usize];
        (offset, self.random.below(limit) as usize + 1)
    }

    fn step(&mut self, number: u64) {
        let (offset, length) = self.range();
        let end = offset as usize + length;
        match self.random.below(16) {
            0..6 => {
                let bytes = pattern(offset + number * 7919, length);
                let file = if number.is_multiple_of(3) { &self.direct } else { &self.file };
                file.write_all_at(&bytes, offset).unwrap();
                self.bytes.resize(self.bytes.len().max(end), 0);
                self.bytes[offset as usize..end].copy_from_slice(&bytes);
            }
            6..12 => self.check(offset, length, number.is_multiple_of(2)),
            12 => {
                self.file.set_len(offset).unwrap();
                self.bytes.resize(offset as usize, 0);
            }
            13 => {
                let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&self.file, flags, offset, length as u64).unwrap();
                let end = end.min(self.bytes.len());
                let start = end.min(offset as usize);
                self.bytes[start..end].fill(0);
            }
            14 => {
                fallocate(&self.file, FallocateFlags::ZERO_RANGE, offset, length as u64).unwrap();
                self.bytes.resize(self.bytes.len().max(end), 0);
                self.bytes[offset as usize..end].fill(0);
            }
            _ => self.file.sync_data().unwrap(),
        }
        assert_eq!(self.file.metadata().unwrap().len(), self.bytes.len() as u64);
    }

    fn check(&self, offset: u64, length: usize, direct: bool) {
        let mut found = vec![0; length];
        let file = if direct { &self.direct } else { &self.file };
        let mut count = 0;
        while count < length {
            match file.read_at(&mut found[count..], offset + count as u64).unwrap() {
                0 => break,
                more => count += more,
            }
        }
        let start = self.bytes.len().min(offset as usize);
        let end = self.bytes.len().min(offset as usize + length);
        same(&found[..count], &self.bytes[start..end]);
    }
}

fn follow_model(options: &str, steps: u64) {
    let mount = Mount::new(options);
    let mut model = Model::new(&mount.at("file"));
    for number in 0..steps {
        model.step(number);
    }
    model.check(0, MODEL_MAX as usize, false);
    model.file.sync_all().unwrap();
    same(&std::fs::read(mount.backing("file")).unwrap(), &model.bytes);
    let bytes = std::mem::take(&mut model.bytes);
    drop(model);
    mount.remount(options);
    same(&std::fs::read(mount.at("file")).unwrap(), &bytes);
}

/// "Any offset and length works with no alignment duty for the user", "O_DIRECT at any alignment".
#[test]
fn random_operations_leave_what_they_would_anywhere() {
    follow_model("pool_size=8m", 600);
}

/// The same where every operation crosses blocks, and hardly any stays in the pool.
#[test]
fn random_operations_on_the_smallest_blocks() {
    follow_model("pool_size=2m,block_size=64k", 500);
}

/// The same within a single block.
#[test]
fn random_operations_on_the_largest_blocks() {
    follow_model("pool_size=128m,block_size=16m", 500);
}

/// "O_APPEND": every write goes to the end as it is then, whoever made it grow.
#[test]
fn appends_of_several_openers_follow_each_other() {
    let mount = Mount::new("pool_size=16m");
    let path = mount.at("log");
    let open = || OpenOptions::new().append(true).create(true).open(&path).unwrap();
    let mut files = [open(), open(), open()];
    let mut expected = Vec::new();
    for number in 0..300_usize {
        let bytes = pattern(number as u64 * 31, 1 + number * 7);
        files[number % 3].write_all(&bytes).unwrap();
        expected.extend(bytes);
    }
    same(&std::fs::read(&path).unwrap(), &expected);
    files[0].sync_all().unwrap();
    same(&std::fs::read(mount.backing("log")).unwrap(), &expected);
}

/// "O_TRUNC", "O_EXCL".
#[test]
fn opening_can_empty_a_file_and_refuse_one_that_exists() {
    let mount = Mount::new("pool_size=16m");
    let path = mount.at("file");
    write_pattern(&open(&path), 3 * MIB + 5, 100_000);
    let new = File::options().write(true).create_new(true).open(&path);
    assert_eq!(errno(new), Errno::EXIST);
    is_pattern(&path, 3 * MIB + 5);
    let file = File::create(&path).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 0);
    file.write_all_at(b"new", 1).unwrap();
    same(&std::fs::read(&path).unwrap(), b"\0new");
    file.sync_all().unwrap();
    same(&std::fs::read(mount.backing("file")).unwrap(), b"\0new");
}

/// "sparse files": offsets beyond 4 GiB work, holes read zero and take no space.
#[test]
fn a_sparse_file_beyond_4_gib_stays_sparse() {
    let mount = Mount::new("pool_size=16m");
    let (path, backing) = (mount.at("sparse"), mount.backing("sparse"));
    let far = 5 * 1024 * MIB + 77;
    let file = open(&path);
    file.write_all_at(b"far", far).unwrap();
    file.write_all_at(b"near", 123).unwrap();
    let check = |path: &Path| {
        let file = File::open(path).unwrap();
        assert_eq!(file.metadata().unwrap().len(), far + 3);
        let mut bytes = vec![1; 200];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes[123..127], *b"near");
        assert!(bytes[..123].iter().chain(&bytes[127..]).all(|byte| *byte == 0));
        for at in [MIB - 50, 2048 * MIB, 4096 * MIB - 100] {
            file.read_exact_at(&mut bytes, at).unwrap();
            assert!(bytes.iter().all(|byte| *byte == 0), "at {at}");
        }
        let mut end = vec![1; 10];
        assert_eq!(file.read_at(&mut end, far - 2).unwrap(), 5);
        assert_eq!(end[..5], *b"\0\0far");
        assert!(occupied(path) < 4 * MIB, "{} occupied", occupied(path));
    };
    check(&path);
    file.sync_all().unwrap();
    check(&backing);
    drop(file);
    mount.remount("pool_size=16m");
    check(&path);
    check(&backing);
}

/// "`write` (O_SYNC, O_DSYNC, RWF_DSYNC) … on stable storage": in the swap folder when it returns.
#[test]
fn synchronous_writes_are_in_the_swap_folder_when_they_return() {
    let mount = Mount::new("pool_size=16m");
    let backing = mount.backing("file");
    let path = mount.at("file");
    let mut expected = Vec::new();
    for (number, flags) in
        [libc::O_SYNC, libc::O_DSYNC, libc::O_DSYNC | libc::O_DIRECT, 0].into_iter().enumerate()
    {
        let file = open_with(&path, flags);
        let bytes = pattern(expected.len() as u64, 5001 + number);
        if flags == 0 {
            let flags = rustix::io::ReadWriteFlags::DSYNC;
            let slices = [std::io::IoSlice::new(&bytes)];
            let count = rustix::io::pwritev2(&file, &slices, expected.len() as u64, flags);
            assert_eq!(count, Ok(bytes.len()));
        } else {
            file.write_all_at(&bytes, expected.len() as u64).unwrap();
        }
        expected.extend(bytes);
        same(&std::fs::read(&backing).unwrap(), &expected);
    }
}

/// Vectors of odd pieces at odd places arrive in order.
#[test]
fn vectored_writes_arrive() {
    let mount = Mount::new("pool_size=4m,block_size=64k");
    let file = open(&mount.at("file"));
    let mut at = 0;
    for number in 0..200_u64 {
        let pieces: Vec<Vec<u8>> = (0..5)
            .scan(at, |at, piece| {
                let bytes = pattern(*at, 1 + ((number * 131 + piece * 977) % 3000) as usize);
                *at += bytes.len() as u64;
                Some(bytes)
            })
            .collect();
        let slices: Vec<_> = pieces.iter().map(|piece| std::io::IoSlice::new(piece)).collect();
        let length: usize = pieces.iter().map(Vec::len).sum();
        assert_eq!(rustix::io::pwritev(&file, &slices, at), Ok(length));
        at += length as u64;
    }
    is_pattern(&mount.at("file"), at);
    file.sync_data().unwrap();
    is_pattern(&mount.backing("file"), at);
}

/// "Nothing dirty lingers: a full block goes out at once, a partial one on close, fsync, or after a
/// second without a write to it."
#[test]
fn nothing_dirty_lingers() {
    let mount = Mount::new("pool_size=16m");
    let (path, backing) = (mount.at("file"), mount.backing("file"));
    let file = open(&path);
    file.write_all_at(&pattern(0, (MIB + 100) as usize), 0).unwrap();
    let has = |length: u64| {
        std::fs::read(&backing).is_ok_and(|bytes| {
            bytes.len() as u64 >= length && bytes[..length as usize] == pattern(0, length as usize)
        })
    };
    wait_until("the full block", || has(MIB));
    wait_until("the partial block", || has(MIB + 100));
    drop(file);
    let mut file = File::create(mount.at("closed")).unwrap();
    file.write_all(&pattern(0, 1000)).unwrap();
    drop(file);
    wait_until("what was closed", || {
        std::fs::read(mount.backing("closed")).is_ok_and(|bytes| bytes == pattern(0, 1000))
    });
}

/// "With `-o close_wait`: written to the swap folder."
#[test]
fn close_can_wait_for_the_swap_folder() {
    let mount = Mount::new("pool_size=32m,close_wait");
    for length in [1, 4096, 300 * KIB + 7, 20 * MIB + 1] {
        let file = open(&mount.at("file"));
        write_pattern(&file, length, 500_000);
        nix::unistd::close(file).unwrap();
        is_pattern(&mount.backing("file"), length);
        std::fs::remove_file(mount.at("file")).unwrap();
    }
}

/// "A swap folder filled … by other means can be mounted": also one that holds everything unaligned.
#[test]
fn what_was_there_before_is_read_and_changed() {
    let place = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    std::fs::create_dir(place.backing("a")).unwrap();
    let lengths = [0, 1, 511, 4095, 4096, 4097, MIB - 1, MIB, 9 * MIB + 13];
    for length in lengths {
        write_pattern(&open(&place.backing(&format!("a/{length}"))), length, 1 << 20);
    }
    is_done(&place.mount("pool_size=8m"));
    for length in lengths {
        let path = place.at(&format!("a/{length}"));
        is_pattern(&path, length);
        let mut file = OpenOptions::new().append(true).open(&path).unwrap();
        file.write_all(&pattern(length, 4321)).unwrap();
        let mut bytes = Vec::new();
        File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
        same(&bytes, &pattern(0, length as usize + 4321));
    }
    place.unmount();
    for length in lengths {
        is_pattern(&place.backing(&format!("a/{length}")), length + 4321);
    }
}
