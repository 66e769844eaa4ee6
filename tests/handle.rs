//! The aio handle: the shapes of DeepSpeed's own unit tests, and what those leave out.

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use swapfs::aio::Engine;
use swapfs::deepspeed::handle::{Direction, ErrorKind, FileName, Operation};
use swapfs::deepspeed::{Handle, HandleOptions, LockedTensor};
use swapfs::error::Errno;
use tempfile::TempDir;

#[path = "handle/beyond.rs"]
mod beyond;

const KIB: usize = 1024;

/// What DeepSpeed's tests use.
const DEEPSPEED: HandleOptions = HandleOptions {
    block_size: KIB,
    queue_depth: 2,
    single_submit: false,
    overlap_events: false,
    intra_op_parallelism: 2,
};

/// On the disk of the build folder, where O_DIRECT is to be had on most machines.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn both_engines(test: impl Fn(Engine)) {
    test(Engine::Auto);
    test(Engine::Threads);
}

/// All four of single_submit and overlap_events, on both engines.
fn deepspeed_handles(test: impl Fn(&Handle)) {
    for (single_submit, overlap_events) in
        [(false, false), (false, true), (true, false), (true, true)]
    {
        let options = HandleOptions { single_submit, overlap_events, ..DEEPSPEED };
        both_engines(|engine| test(&Handle::with_engine(options, engine).unwrap()));
    }
}

struct Random(u64);

impl Random {
    fn seeded() -> Self {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().unwrap(),
            Err(_) => std::time::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64,
        };
        println!("SEED={seed}");
        Self(seed | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 8
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Often a round number or next to one.
    fn uneven(&mut self, bound: usize) -> usize {
        let unit = [1, 512, 4096][self.below(3)];
        let near = (self.below(bound) / unit * unit + self.below(3)).saturating_sub(1);
        if self.below(2) == 0 { near.min(bound - 1) } else { self.below(bound) / unit * unit }
    }

    fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

fn tensor(handle: &Handle, bytes: &[u8]) -> LockedTensor {
    let mut tensor = handle.new_cpu_locked_tensor(bytes.len()).unwrap();
    tensor.copy_from_slice(bytes);
    tensor
}

fn open_direct(path: &Path, options: &mut OpenOptions) -> File {
    match options.custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            options.custom_flags(0).open(path).unwrap()
        }
        result => result.unwrap(),
    }
}

#[test]
fn settings_are_echoed() {
    let options = HandleOptions::default();
    assert_eq!((options.block_size, options.queue_depth), (1_048_576, 128));
    assert!(!options.single_submit && !options.overlap_events);
    assert_eq!(options.intra_op_parallelism, 1);
    deepspeed_handles(|handle| {
        assert_eq!(handle.get_block_size(), KIB);
        assert_eq!(handle.get_queue_depth(), 2);
        assert_eq!(handle.get_intra_op_parallelism(), 2);
        assert_eq!(handle.get_alignment(), 1024);
    });
    let one = Handle::new(HandleOptions { single_submit: true, overlap_events: true, ..options })
        .unwrap();
    assert!(one.get_single_submit() && one.get_overlap_events());
    assert_eq!(one.get_alignment(), 512);
    for (wrong, name) in [
        (HandleOptions { block_size: 0, ..options }, "block_size"),
        (HandleOptions { queue_depth: 0, ..options }, "queue_depth"),
        (HandleOptions { intra_op_parallelism: 65, ..options }, "intra_op_parallelism"),
    ] {
        let error = Handle::new(wrong).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::InvalidInput);
        assert!(error.to_string().starts_with(name), "{error}");
    }
}

#[test]
fn deepspeed_parallel_read_and_write() {
    let folder = folder();
    let expected = Random::seeded().bytes(4 * KIB);
    let (source, copy) = (folder.path().join("source"), folder.path().join("copy"));
    std::fs::write(&source, &expected).unwrap();
    deepspeed_handles(|handle| {
        let mut buffer = handle.new_cpu_locked_tensor(4 * KIB).unwrap();
        handle.sync_pread(&mut buffer, &source, 0).unwrap();
        assert_eq!(*buffer, *expected);
        // Memory that is not a tensor's.
        let mut plain = vec![0; 4 * KIB];
        handle.sync_pread(&mut plain, &source, 0).unwrap();
        assert_eq!(plain, expected);

        buffer.fill(0);
        let read = handle.async_pread(buffer, &source, 0).unwrap();
        assert_eq!(handle.wait(), Ok(1));
        let mut buffer = read.into_buffer();
        assert_eq!(*buffer, *expected);

        handle.sync_pwrite(&mut buffer, &copy, 0).unwrap();
        assert_eq!(std::fs::read(&copy).unwrap(), expected);
        std::fs::remove_file(&copy).unwrap();
        let write = handle.async_pwrite(plain, &copy, 0).unwrap();
        assert_eq!(handle.wait(), Ok(1));
        assert_eq!(write.into_buffer(), expected);
        assert_eq!(std::fs::read(&copy).unwrap(), expected);
        assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
        std::fs::remove_file(&copy).unwrap();
        handle.free_cpu_locked_tensor(buffer);
    });
}

/// Two partitions of the shapes that DeepSpeed's tests of offsets use: (offset, length) in units.
const PARTITIONS: [[(usize, usize); 3]; 3] =
    [[(0, 1), (1, 1), (2, 2)], [(0, 2), (2, 1), (3, 1)], [(3, 1), (1, 2), (0, 1)]];

#[test]
fn deepspeed_offset_write() {
    let folder = folder();
    let bytes = Random::seeded().bytes(4 * KIB);
    let path = folder.path().join("partitions");
    for unit in [512, KIB] {
        for order in PARTITIONS {
            deepspeed_handles(|handle| {
                let mut model = vec![];
                for (offset, length) in order.map(|(offset, length)| (offset * unit, length * unit))
                {
                    let part = &bytes[offset..offset + length];
                    let write =
                        handle.async_pwrite(tensor(handle, part), &path, offset as u64).unwrap();
                    assert_eq!(handle.wait(), Ok(1));
                    drop(write);
                    model.resize(model.len().max(offset + length), 0);
                    model[offset..offset + length].copy_from_slice(part);
                    assert_eq!(std::fs::read(&path).unwrap(), model);
                }
                assert_eq!(model, bytes[..4 * unit]);
                std::fs::remove_file(&path).unwrap();
            });
        }
    }
}

#[test]
fn deepspeed_offset_read() {
    let folder = folder();
    let bytes = Random::seeded().bytes(4 * KIB);
    let path = folder.path().join("partitions");
    std::fs::write(&path, &bytes).unwrap();
    for unit in [512, KIB] {
        for order in PARTITIONS {
            deepspeed_handles(|handle| {
                let reads = order.map(|(offset, length)| {
                    let buffer = handle.new_cpu_locked_tensor(length * unit).unwrap();
                    handle.async_pread(buffer, &path, (offset * unit) as u64).unwrap()
                });
                assert_eq!(handle.wait(), Ok(3));
                for (read, (offset, length)) in reads.into_iter().zip(order) {
                    let expected = &bytes[offset * unit..(offset + length) * unit];
                    assert_eq!(*read.into_buffer(), *expected);
                }
            });
        }
    }
}

#[test]
fn deepspeed_fd_write() {
    let folder = folder();
    let bytes = Random::seeded().bytes(4 * KIB);
    let path = folder.path().join("partitions");
    deepspeed_handles(|handle| {
        let mut options = OpenOptions::new();
        options.write(true).create(true);
        let file = open_direct(&path, &mut options);
        for (offset, length) in [(0, 1), (1, 1), (2, 2)].map(|(at, long)| (at * 512, long * 512)) {
            let part = tensor(handle, &bytes[offset..offset + length]);
            let write = handle.async_pwrite_fd(part, &file, offset as u64).unwrap();
            assert_eq!(handle.wait(), Ok(1));
            assert_eq!(*write.into_buffer(), bytes[offset..offset + length]);
            assert_eq!(std::fs::read(&path).unwrap(), bytes[..offset + length]);
        }
        std::fs::remove_file(&path).unwrap();
    });
}

#[test]
fn descriptors_stay_the_callers() {
    let folder = folder();
    let path = folder.path().join("file");
    let handle = Handle::new(DEEPSPEED).unwrap();
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true);
    for flags in [0, libc::O_DIRECT, libc::O_APPEND, libc::O_APPEND | libc::O_DIRECT] {
        let file = options.custom_flags(flags).open(&path).unwrap();
        let bytes = Random::seeded().bytes(3001);
        handle.pwrite_fd(&bytes[..], &file, 7).unwrap();
        let mut read = vec![0; 3001];
        handle.pread_fd(&mut read, &file, 7).unwrap();
        assert_eq!(read, bytes);
        // Closed by the caller before it is done.
        let write = handle.async_pwrite_fd(tensor(&handle, &bytes), &file, 9).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 1);
        drop(file);
        assert_eq!(write.finish().result, Ok(3001));
        let file = File::open(&path).unwrap();
        let read = handle.async_pread_fd(vec![0; 3001], &file, 9).unwrap();
        assert_eq!(read.finish().buffer, bytes);
        let refused = handle.async_pwrite_fd(vec![1], &file, 0).unwrap_err();
        assert_eq!(refused.error.kind, ErrorKind::Open(Errno::EBADF));
        assert_eq!(refused.error.file, FileName::Descriptor(file.as_raw_fd()));
        assert_eq!(file.metadata().unwrap().len(), 3010);
        std::fs::remove_file(&path).unwrap();
    }
    assert_eq!(handle.wait(), Ok(8));
}

#[test]
fn read_and_write_on_the_calling_thread() {
    let folder = folder();
    let path = folder.path().join("file");
    let bytes = Random::seeded().bytes(100_000);
    both_engines(|engine| {
        let handle = Handle::with_engine(DEEPSPEED, engine).unwrap();
        handle.write(&bytes, &path, true, 0).unwrap();
        let mut tensor = handle.new_cpu_locked_tensor(100_000).unwrap();
        handle.read(&mut tensor, &path, true, 0).unwrap();
        assert_eq!(*tensor, *bytes);
        handle.read(tensor.narrow(10..1000), &path, false, 99_010).unwrap();
        assert_eq!(tensor[10..1000], bytes[99_010..]);
        let error = handle.read(&mut [0; 99_999], &path, false, 0).unwrap_err();
        let (size, buffer) = (100_000, 99_999);
        assert_eq!(error.kind, ErrorKind::SizeMismatch { size, buffer });
        assert_eq!(error.errno(), Errno::EINVAL);
        assert!(handle.read(&mut [0; 100_001], &path, false, 0).is_err());
        // The parallel form takes less than the file.
        handle.pread(&mut [0; 99_999], &path, false, 0).unwrap();
        assert_eq!(handle.wait(), Ok(0));
    });
}

#[test]
fn validation_finds_a_difference() {
    let folder = folder();
    let path = folder.path().join("file");
    let bytes = Random::seeded().bytes(2_500_001);
    let handle = Handle::new(DEEPSPEED).unwrap();
    handle.pwrite(&bytes, &path, true, 3).unwrap();
    let write = handle.pwrite_async(tensor(&handle, &bytes), &path, true, 3).unwrap();
    assert_eq!(handle.wait(), Ok(1));
    let mut read = handle.pread_async(write.into_buffer(), &path, true, 3).unwrap().finish();
    assert_eq!(read.result, Ok(2_500_001));
    assert_eq!(handle.wait(), Ok(1));
    handle.pread(&mut read.buffer, &path, true, 3).unwrap();
    // Changed between transfer and validation: validation is the waiter's.
    for at in [0, 1_500_000, 2_500_000] {
        let write = handle.pwrite_async(read.buffer, &path, true, 3).unwrap();
        while !write.is_finished() {
            std::thread::yield_now();
        }
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_at(&[!bytes[at]], at as u64 + 3).unwrap();
        let error = handle.wait().unwrap_err();
        assert_eq!((error.completed, error.failed.len()), (1, 1));
        assert_eq!(error.failed[0].kind, ErrorKind::Mismatch { at: at as u64 + 3 });
        read.buffer = write.into_buffer();
    }
}

#[test]
fn wait_with_nothing_pending() {
    let handle = Handle::new(DEEPSPEED).unwrap();
    assert_eq!(handle.wait(), Ok(0));
    assert_eq!(handle.wait(), Ok(0));
}

#[test]
fn one_of_three_fails() {
    let folder = folder();
    let path = folder.path().join("file");
    std::fs::write(&path, vec![5; 64 * KIB]).unwrap();
    both_engines(|engine| {
        let handle = Handle::with_engine(DEEPSPEED, engine).unwrap();
        let full = PathBuf::from("/dev/full");
        let good = handle.async_pread(vec![0; 64 * KIB], &path, 0).unwrap();
        let bad = handle.async_pwrite(vec![0; 10_000], &full, 0).unwrap();
        let also_good =
            handle.async_pread(handle.new_cpu_locked_tensor(1000).unwrap(), &path, 77).unwrap();
        let error = handle.wait().unwrap_err();
        assert_eq!((error.completed, error.failed.len()), (3, 1));
        let failed = &error.failed[0];
        assert_eq!(failed.errno(), Errno::ENOSPC);
        assert_eq!(failed.direction, Direction::Write);
        assert_eq!(failed.file, FileName::Path(full));
        assert_eq!((failed.offset, failed.length, failed.moved), (0, 10_000, 0));
        let text = error.to_string();
        assert!(text.contains("1 of 3 operations failed"), "{text}");
        assert!(text.contains("/dev/full") && text.contains("ENOSPC"), "{text}");
        assert_eq!(good.into_buffer(), vec![5; 64 * KIB]);
        assert_eq!(*also_good.into_buffer(), [5; 1000]);
        assert_eq!(bad.into_buffer().len(), 10_000);
        assert_eq!(handle.wait(), Ok(0));
    });
}

#[test]
fn failures_are_typed() {
    let folder = folder();
    let handle = Handle::new(DEEPSPEED).unwrap();
    let missing = folder.path().join("missing");
    let refused = handle.async_pread(vec![7; 10], &missing, 0).unwrap_err();
    assert_eq!(refused.error.kind, ErrorKind::Stat(Errno::ENOENT));
    assert_eq!(refused.buffer, [7; 10]);
    let error = handle.sync_pwrite(&[1], missing.join("below"), 0).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Open(Errno::ENOENT));
    let error = handle.sync_pread(&mut [1; 3], folder.path(), 0).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Open(Errno::EISDIR));
    let error = handle.sync_pwrite(&[1; 3], folder.path(), 0).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Open(Errno::EISDIR));
    let short = folder.path().join("short");
    std::fs::write(&short, [3; 1000]).unwrap();
    let mut buffer = handle.new_cpu_locked_tensor(1001).unwrap();
    for offset in [0, 500, 1001, 1 << 50] {
        let error = handle.sync_pread(&mut buffer, &short, offset).unwrap_err();
        let needed = offset + 1001;
        assert_eq!(error.kind, ErrorKind::FileTooShort { size: 1000, needed });
    }
    let error = handle.sync_pwrite(&mut buffer, &short, u64::MAX - 5).unwrap_err();
    assert_eq!(error.errno(), Errno::EFBIG);
    assert_eq!(handle.wait(), Ok(0));
    // A file without a size, which ends: the read is short.
    let (reader, writer) = std::io::pipe().unwrap();
    drop(writer);
    let error = handle.pread_fd(&mut buffer, &reader, 0).unwrap_err();
    println!("{error}");
    assert!(matches!(error.kind, ErrorKind::Short { .. } | ErrorKind::Transfer { .. }));
    // Nothing to move is no failure, and creates the file.
    handle.sync_pwrite(&[], folder.path().join("empty"), 0).unwrap();
    handle.read(&mut [], folder.path().join("empty"), true, 0).unwrap();
}

#[test]
fn locked_tensors_and_views() {
    let folder = folder();
    let path = folder.path().join("file");
    let handle = Handle::new(HandleOptions::default()).unwrap();
    let bytes = Random::seeded().bytes(1 << 20);
    let whole = tensor(&handle, &bytes);
    assert_eq!(whole.as_ptr().addr() % 4096, 0);
    assert_eq!(whole.is_locked(), whole.lock_refusal().is_none());
    assert!(handle.is_pinned(&whole) && handle.is_pinned(&whole[77..78]));
    assert!(!handle.is_pinned(&bytes));
    // Parts of one memory, in operations of their own, one of them at an odd address.
    let (front, back) = whole.split_at(300_001);
    let writes = [
        handle.async_pwrite(front, &path, 0).unwrap(),
        handle.async_pwrite(back, &path, 300_001).unwrap(),
    ];
    assert_eq!(handle.wait(), Ok(2));
    let [front, back] = writes.map(Operation::into_buffer);
    let mut whole = front.join(back).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
    whole.fill(0);
    handle.sync_pread(whole.narrow(4096..8192), &path, 4096).unwrap();
    assert_eq!(whole[4096..8192], bytes[4096..8192]);
    assert!(whole[..4096].iter().all(|byte| *byte == 0));
    assert!(whole[8192..].iter().all(|byte| *byte == 0));
    handle.free_cpu_locked_tensor(whole);
}
