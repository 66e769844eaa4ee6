//! The shapes of DeepSpeed's aio unit tests as plain libaio calls: each operation is divided among threads, each thread has a queue of
//! its own and sends its part in blocks, O_DIRECT, from memory that is aligned to 512 bytes only. The contents are compared with
//! those of a plain write after each step, and with the backing file after an fsync.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::place::Mount;
use crate::requests::{ask, settled};
use crate::support::{KIB, MIB, pattern, same};

/// `struct iocb` of linux/aio_abi.h, with the union's members for reads and writes.
#[repr(C)]
struct Control {
    data: u64,
    key_and_flags: u64,
    opcode: u16,
    priority: i16,
    descriptor: u32,
    memory: u64,
    length: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_descriptor: u32,
}

const PREAD: u16 = 0;
const PWRITE: u16 = 1;

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Event {
    data: u64,
    control: u64,
    result: i64,
    result2: i64,
}

/// How an operation is cut and sent.
#[derive(Clone, Copy)]
struct Shape {
    block: usize,
    depth: usize,
    threads: usize,
    /// One io_submit for each block.
    single_submit: bool,
    /// Keeps the queue topped up; else a batch has to be done before the next.
    overlap_events: bool,
    /// O_DIRECT, or 0.
    open_flags: i32,
}

/// What DeepSpeed's tests use.
const DEEPSPEED: Shape = Shape {
    block: KIB as usize,
    depth: 2,
    threads: 2,
    single_submit: false,
    overlap_events: false,
    open_flags: libc::O_DIRECT,
};

/// All ways to submit and to wait; the builds without O_DIRECT too.
fn shapes(test: impl Fn(Shape)) {
    for open_flags in [libc::O_DIRECT, 0] {
        for (single_submit, overlap_events) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            test(Shape { single_submit, overlap_events, open_flags, ..DEEPSPEED });
        }
    }
}

/// The bytes of an operation, or of a thread's part of it.
enum Bytes<'a> {
    Write(&'a [u8]),
    Read(&'a mut [u8]),
}

impl<'a> Bytes<'a> {
    fn length(&self) -> usize {
        match self {
            Self::Write(bytes) => bytes.len(),
            Self::Read(bytes) => bytes.len(),
        }
    }

    fn parts(self, count: usize) -> Vec<Bytes<'a>> {
        assert!(self.length().is_multiple_of(count), "DeepSpeed divides evenly or not at all");
        let length = self.length() / count;
        match self {
            Self::Write(bytes) => bytes.chunks(length).map(Bytes::Write).collect(),
            Self::Read(bytes) => bytes.chunks_mut(length).map(Bytes::Read).collect(),
        }
    }
}

/// A queue of the kernel's.
struct Queue(libc::c_ulong);

impl Queue {
    fn new(depth: usize) -> Self {
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes the context's number to a place that outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, depth, &raw mut context) };
        assert_eq!(result, 0, "io_setup: {}", std::io::Error::last_os_error());
        Self(context)
    }

    /// Submits all of them, by as many calls as it takes.
    fn submit(&self, controls: &[Control]) {
        let mut addresses: Vec<*const Control> = controls.iter().map(std::ptr::from_ref).collect();
        while !addresses.is_empty() {
            let (count, list) = (addresses.len(), addresses.as_ptr());
            // SAFETY: the list and the control blocks outlive the call, which copies them; the memory they
            // name is borrowed by `transfer`, which drops this queue, and so waits, before it returns.
            let done = unsafe { libc::syscall(libc::SYS_io_submit, self.0, count, list) };
            assert!(done > 0, "io_submit: {}", std::io::Error::last_os_error());
            addresses.drain(..done as usize);
        }
    }

    /// Waits for `least` of those in flight.
    fn events(&self, least: usize, most: usize) -> Vec<Event> {
        let mut events = vec![Event { data: 0, control: 0, result: 0, result2: 0 }; most];
        let (list, none) = (events.as_mut_ptr(), std::ptr::null::<libc::timespec>());
        // SAFETY: there is room for `most` events; without a timeout nothing else is read or written.
        let count =
            unsafe { libc::syscall(libc::SYS_io_getevents, self.0, least, most, list, none) };
        assert!(count >= least as i64, "io_getevents: {}", std::io::Error::last_os_error());
        events.truncate(count as usize);
        events
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        // SAFETY: takes the number of a context that io_setup made; it waits for what is in flight.
        let result = unsafe { libc::syscall(libc::SYS_io_destroy, self.0) };
        assert!(result == 0 || std::thread::panicking());
    }
}

/// One thread's part of an operation. Every result is looked at, which DeepSpeed does not.
fn transfer(file: &File, bytes: Bytes<'_>, offset: u64, shape: Shape) {
    let length = bytes.length();
    let (opcode, memory) = match bytes {
        Bytes::Write(bytes) => (PWRITE, bytes.as_ptr().expose_provenance()),
        Bytes::Read(bytes) => (PREAD, bytes.as_mut_ptr().expose_provenance()),
    };
    let mut blocks = (0..length).step_by(shape.block).map(|at| Control {
        data: shape.block.min(length - at) as u64,
        key_and_flags: 0,
        opcode,
        priority: 0,
        descriptor: file.as_raw_fd() as u32,
        memory: (memory + at) as u64,
        length: shape.block.min(length - at) as u64,
        offset: offset as i64 + at as i64,
        reserved: 0,
        flags: 0,
        event_descriptor: 0,
    });
    let queue = Queue::new(shape.depth);
    let mut inflight = 0;
    loop {
        let room = if shape.overlap_events || inflight == 0 { shape.depth - inflight } else { 0 };
        let batch: Vec<Control> = blocks.by_ref().take(room).collect();
        inflight += batch.len();
        let calls = if shape.single_submit { 1 } else { shape.depth };
        batch.chunks(calls).for_each(|call| queue.submit(call));
        if inflight == 0 {
            return;
        }
        let least = if shape.overlap_events { 1 } else { inflight };
        for event in queue.events(least, inflight) {
            assert_eq!((event.result, event.result2), (event.data as i64, 0));
            inflight -= 1;
        }
    }
}

/// An operation on the caller's descriptor.
fn by_descriptor(file: &File, bytes: Bytes<'_>, offset: u64, shape: Shape) {
    let length = (bytes.length() / shape.threads) as u64;
    std::thread::scope(|scope| {
        for (number, part) in (0..).zip(bytes.parts(shape.threads)) {
            scope.spawn(move || transfer(file, part, offset + number * length, shape));
        }
    });
}

/// Opens as DeepSpeed does for writing, without O_TRUNC.
fn open_for_writing(path: &Path, shape: Shape) -> File {
    let mut options = File::options();
    options.write(true).create(true).truncate(false).mode(0o600);
    options.custom_flags(shape.open_flags).open(path).unwrap()
}

fn write(path: &Path, bytes: &[u8], offset: u64, shape: Shape) {
    let file = open_for_writing(path, shape);
    by_descriptor(&file, Bytes::Write(bytes), offset, shape);
}

/// Reads after a look at the size, which must be `size` bytes.
fn read(path: &Path, bytes: &mut [u8], offset: u64, size: u64, shape: Shape) {
    assert_eq!(fs::metadata(path).unwrap().len(), size);
    let file = File::options().read(true).custom_flags(shape.open_flags).open(path).unwrap();
    by_descriptor(&file, Bytes::Read(bytes), offset, shape);
}

/// Memory whose address is a multiple of 512 bytes and not of 1024.
struct Tensor {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl Tensor {
    fn new(bytes: &[u8]) -> Self {
        let mut memory = vec![0; bytes.len() + 8192];
        let start = memory.as_ptr().align_offset(4096) + 512;
        memory[start..start + bytes.len()].copy_from_slice(bytes);
        Self { memory, start, length: bytes.len() }
    }

    fn zeros(length: usize) -> Self {
        Self::new(&vec![0; length])
    }
}

impl std::ops::Deref for Tensor {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }
}

impl std::ops::DerefMut for Tensor {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// A file on the mount, and one beside it, written plainly, that it has to equal.
struct Pair<'a> {
    mount: &'a Mount,
    name: &'a str,
    plain: File,
}

impl<'a> Pair<'a> {
    fn new(mount: &'a Mount, name: &'a str) -> Self {
        let plain = mount.scratch.path().join(name);
        let plain = File::options().read(true).write(true).create_new(true).open(plain).unwrap();
        Self { mount, name, plain }
    }

    /// Writes plainly what was written by libaio, and compares: what a reader sees at once, and what the
    /// swap folder has after an fsync.
    #[track_caller]
    fn follows(&self, bytes: &[u8], offset: u64) {
        self.plain.write_all_at(bytes, offset).unwrap();
        let mut expected = vec![0; self.plain.metadata().unwrap().len() as usize];
        self.plain.read_exact_at(&mut expected, 0).unwrap();
        let path = self.mount.at(self.name);
        assert_eq!(fs::metadata(&path).unwrap().len(), expected.len() as u64);
        same(&fs::read(&path).unwrap(), &expected);
        File::open(&path).unwrap().sync_all().unwrap();
        same(&fs::read(self.mount.backing(self.name)).unwrap(), &expected);
    }
}

impl Drop for Pair<'_> {
    fn drop(&mut self) {
        let _ = fs::remove_file(self.mount.at(self.name));
        let _ = fs::remove_file(self.mount.scratch.path().join(self.name));
    }
}

/// 4 KiB by two threads in blocks of 1 KiB, from and to whole files.
#[test]
fn whole_files_by_two_threads() {
    let mount = Mount::new("pool_size=16m");
    let bytes = pattern(0, 4096);
    let source = mount.at("source");
    fs::write(&source, &bytes).unwrap();
    shapes(|shape| {
        for residence in ["swap_in", "release"] {
            ask(&source, residence);
            settled(&source);
            let mut tensor = Tensor::zeros(4096);
            read(&source, &mut tensor, 0, 4096, shape);
            same(&tensor, &bytes);
        }
        let (path, pair) = (mount.at("copy"), Pair::new(&mount, "copy"));
        for turn in 0..2 {
            let tensor = Tensor::new(&pattern(turn * 5000, 4096));
            write(&path, &tensor, 0, shape);
            let mut found = Tensor::zeros(4096);
            read(&path, &mut found, 0, 4096, shape);
            same(&found, &tensor);
            pair.follows(&tensor, 0);
        }
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    });
}

/// Partitions of one, one and two units, as (offset, length); in order, and in others that leave holes.
const PARTITIONS: [[(usize, usize); 3]; 3] =
    [[(0, 1), (1, 1), (2, 2)], [(2, 2), (0, 1), (1, 1)], [(3, 1), (1, 2), (0, 1)]];

/// Partitions of 1 KiB and two threads: 512 bytes at offsets of 512 bytes, by path.
#[test]
fn partitions_of_a_file_by_path() {
    let mount = Mount::new("pool_size=16m");
    shapes(|shape| {
        for order in PARTITIONS {
            for unit in [512, 1024] {
                let pair = Pair::new(&mount, "partitions");
                for (at, length) in order.map(|(at, length)| (at * unit, length * unit)) {
                    let tensor = Tensor::new(&pattern(at as u64, length));
                    write(&mount.at("partitions"), &tensor, at as u64, shape);
                    pair.follows(&tensor, at as u64);
                }
            }
        }
    });
}

/// The same on one descriptor of the caller's, which stays open from the first to the last.
#[test]
fn partitions_of_a_file_by_descriptor() {
    let mount = Mount::new("pool_size=16m");
    shapes(|shape| {
        for order in PARTITIONS {
            let pair = Pair::new(&mount, "partitions");
            let file = open_for_writing(&mount.at("partitions"), shape);
            for (at, length) in order.map(|(at, length)| (at * 1024, length * 1024)) {
                let tensor = Tensor::new(&pattern(at as u64, length));
                by_descriptor(&file, Bytes::Write(&tensor), at as u64, shape);
                pair.follows(&tensor, at as u64);
            }
        }
    });
}

/// Three reads at once, each by its own threads at its own offset; resident or not.
#[test]
fn partitions_of_a_file_are_read() {
    let mount = Mount::new("pool_size=16m,open_swap_in=none");
    let path = mount.at("file");
    fs::write(&path, pattern(0, 4096)).unwrap();
    shapes(|shape| {
        for order in PARTITIONS {
            ask(&path, "release");
            std::thread::scope(|scope| {
                for (at, length) in order.map(|(at, length)| (at * 1024, length * 1024)) {
                    let path = &path;
                    scope.spawn(move || {
                        let mut tensor = Tensor::zeros(length);
                        read(path, &mut tensor, at as u64, 4096, shape);
                        same(&tensor, &pattern(at as u64, length));
                    });
                }
            });
        }
    });
}

/// The first write of a new file at depth 8 in blocks of 1 MiB, its rewriting, and its reading from the disk: four times what the
/// pool holds.
#[test]
fn a_new_file_at_depth_eight() {
    let mount = Mount::new("pool_size=16m,open_swap_in=none");
    let (length, path) = (64 * MIB as usize, mount.at("file"));
    for threads in [1, 2] {
        let shape = Shape { block: MIB as usize, depth: 8, threads, ..DEEPSPEED };
        for overlap_events in [false, true] {
            let shape = Shape { overlap_events, ..shape };
            let pair = Pair::new(&mount, "file");
            for turn in 0..2 {
                let tensor = Tensor::new(&pattern(turn * 5000, length));
                write(&path, &tensor, 0, shape);
                pair.follows(&tensor, 0);
                ask(&path, "release");
                assert_eq!(settled(&path), "not_available");
                let mut found = Tensor::zeros(length);
                read(&path, &mut found, 0, length as u64, shape);
                same(&found, &tensor);
            }
        }
    }
}
