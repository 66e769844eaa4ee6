//! A second of real transfers: written, put on stable storage, read back, compared.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, OFlags, fadvise, fdatasync};
use rustix::io::Errno;

use super::Finding;
use super::folder::is_full;
use crate::aio::probe::create;
use crate::config::Config;
use crate::deepspeed::handle::{Error, Handle, HandleOptions, LockedTensor, Operation};
use crate::noise::fill;
use crate::sys_process::reason;
use crate::units::{GIB, MIB};

/// Bytes of a piece.
const PIECE_MIN: u64 = 8 * MIB;
const PIECE_MAX: u64 = 32 * MIB;

/// Bytes written at most.
const FILE_MAX: u64 = 1024 * MIB;

/// A drive for swapping moves more, in bytes per second.
const NVME_MIN: f64 = 5e8;

/// Pieces under way at once.
const UNDER_WAY: usize = 2;

/// Each page begins with its number, so that no page passes for another.
const PAGE_BYTES: usize = 4096;

/// Bytes per second, each way.
struct Speeds {
    write: f64,
    read: f64,
    bytes: u64,
    /// Bytes under way at once.
    under_way: u64,
    direct: bool,
}

enum Failure {
    Io(io::Error),
    /// Other bytes came back; the offset of the page.
    Differs(u64),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Io(error.errno().into())
    }
}

impl From<Errno> for Failure {
    fn from(error: Errno) -> Self {
        Self::Io(error.into())
    }
}

pub(super) fn look(folder: &File, room: u64, config: &Config, time: Duration) -> Finding {
    let item = "speed";
    match measure(folder, room, config, time) {
        Ok(speeds) => {
            let (write, read) = (speeds.write / GIB as f64, speeds.read / GIB as f64);
            let (mib, transfers) = (speeds.bytes / MIB, speeds.under_way / MIB);
            let cached = if speeds.direct { "" } else { ", through the page cache" };
            let found = format!(
                "writes {write:.2} GiB/s, reads {read:.2} GiB/s ({mib} MiB of a new file, on stable storage, \
                 {transfers} MiB at a time, verified{cached}; `swapfs tune` and `bench` rewrite what is there, which \
                 most devices do faster)"
            );
            let finding = match speeds.write.min(speeds.read) < NVME_MIN {
                true => Finding::slow(
                    item,
                    format!("{found}, less than an NVMe drive does"),
                    "use a folder on an NVMe drive, and check again while nothing else uses it",
                ),
                false => Finding::ok(item, found),
            };
            finding
                .value("write_bytes_per_second", speeds.write as u64)
                .value("read_bytes_per_second", speeds.read as u64)
                .value("bytes", speeds.bytes)
        }
        Err(Failure::Differs(at)) => Finding::fails(
            item,
            format!("what was read near offset {at} is not what was written"),
            "do not use this device; look for its errors: dmesg | tail, smartctl -a",
        ),
        Err(Failure::Io(error)) if is_full(&error) => {
            Finding::fails(item, reason(&error), "make room, or raise the quota")
        }
        Err(Failure::Io(error)) => {
            Finding::fails(item, reason(&error), "look for errors of the device: dmesg | tail")
        }
    }
}

fn measure(folder: &File, room: u64, config: &Config, time: Duration) -> Result<Speeds, Failure> {
    let (file, direct) = open(folder)?;
    let queue = u64::from(config.queue_depth) * u64::from(config.thread_count) * config.block_size;
    // A quarter of what is free at most; pages are the least that is moved.
    let largest = (room / 4).clamp(PAGE_BYTES as u64, PIECE_MAX) & !(PAGE_BYTES as u64 - 1);
    let piece = queue.clamp(PIECE_MIN, PIECE_MAX).min(largest);
    let mut track = Track::new(config, file, piece)?;
    let pieces_max = (FILE_MAX.min(room / 2) / piece).max(1);
    let (written, writing) = track.write(pieces_max, time / 2)?;
    if !direct {
        fadvise(&track.file, 0, None, Advice::DontNeed)?;
    }
    let (read, reading) = track.read(written, time)?;
    let speed = |pieces: u64, time: Duration| {
        (pieces * piece) as f64 / time.as_secs_f64().max(f64::MIN_POSITIVE)
    };
    Ok(Speeds {
        write: speed(written, writing),
        read: speed(read, reading),
        bytes: read * piece,
        under_way: UNDER_WAY as u64 * piece,
        direct,
    })
}

/// A file without a name; whether it is open with O_DIRECT.
fn open(folder: &File) -> Result<(OwnedFd, bool), Errno> {
    match create(folder.as_fd(), OFlags::DIRECT) {
        Err(Errno::INVAL) => Ok((create(folder.as_fd(), OFlags::empty())?, false)),
        result => Ok((result?, true)),
    }
}

/// The file, and the memory that goes back and forth.
struct Track {
    handle: Handle,
    file: OwnedFd,
    /// Bytes of a piece.
    piece: u64,
    pattern: Vec<u8>,
    free: Vec<LockedTensor>,
    /// With their offsets, oldest first.
    under_way: VecDeque<(u64, Operation<LockedTensor>)>,
}

impl Track {
    fn new(config: &Config, file: OwnedFd, piece: u64) -> Result<Self, Failure> {
        let handle = Handle::new(HandleOptions {
            block_size: usize::try_from(config.block_size).expect("a few MiB"),
            queue_depth: config.queue_depth,
            single_submit: config.single_submit,
            overlap_events: config.overlap_events,
            intra_op_parallelism: config.thread_count,
        })?;
        let bytes = usize::try_from(piece).expect("at most 32 MiB");
        let mut pattern = vec![0; bytes];
        fill(&mut pattern, 1);
        let mut free = Vec::new();
        // One more than are under way: that one is filled or compared meanwhile.
        for _ in 0..=UNDER_WAY {
            let mut tensor = handle.new_cpu_locked_tensor(bytes)?;
            tensor.copy_from_slice(&pattern);
            free.push(tensor);
        }
        Ok(Self { handle, file, piece, pattern, free, under_way: VecDeque::new() })
    }

    /// Writes pieces until the time is up, and puts them on stable storage.
    fn write(&mut self, pieces_max: u64, time: Duration) -> Result<(u64, Duration), Failure> {
        let start = Instant::now();
        let mut pieces = 0;
        while pieces < pieces_max && (pieces == 0 || start.elapsed() < time) {
            let at = pieces * self.piece;
            let mut tensor = self.free.pop().expect("one is never under way");
            for (number, page) in (at / PAGE_BYTES as u64..).zip(tensor.chunks_mut(PAGE_BYTES)) {
                page[..8].copy_from_slice(&number.to_le_bytes());
            }
            let begun = self.handle.async_pwrite_fd(tensor, &self.file, at);
            let operation = begun.map_err(|refused| *refused.error)?;
            self.under_way.push_back((at, operation));
            pieces += 1;
            if self.under_way.len() >= UNDER_WAY {
                self.finish_oldest()?;
            }
        }
        while !self.under_way.is_empty() {
            self.finish_oldest()?;
        }
        fdatasync(&self.file)?;
        Ok((pieces, start.elapsed()))
    }

    /// Reads and compares pieces, all of them or as many as the time allows.
    fn read(&mut self, written: u64, time: Duration) -> Result<(u64, Duration), Failure> {
        let start = Instant::now();
        let mut pieces = 0;
        while pieces < written && (pieces == 0 || start.elapsed() < time) {
            let at = pieces * self.piece;
            let mut tensor = self.free.pop().expect("one is never under way");
            // What was written must come from the file.
            tensor.fill(0);
            let begun = self.handle.async_pread_fd(tensor, &self.file, at);
            let operation = begun.map_err(|refused| *refused.error)?;
            self.under_way.push_back((at, operation));
            pieces += 1;
            if self.under_way.len() >= UNDER_WAY {
                let at = self.finish_oldest()?;
                self.compare(at)?;
            }
        }
        while !self.under_way.is_empty() {
            let at = self.finish_oldest()?;
            self.compare(at)?;
        }
        Ok((pieces, start.elapsed()))
    }

    /// Waits for the oldest operation; its memory is the last free one then.
    fn finish_oldest(&mut self) -> Result<u64, Failure> {
        let (at, operation) = self.under_way.pop_front().expect("one is under way");
        let finished = operation.finish();
        self.free.push(finished.buffer);
        finished.result?;
        Ok(at)
    }

    fn compare(&self, at: u64) -> Result<(), Failure> {
        let read = self.free.last().expect("just finished");
        let pages = read.chunks(PAGE_BYTES).zip(self.pattern.chunks(PAGE_BYTES));
        for (number, (page, expected)) in (at / PAGE_BYTES as u64..).zip(pages) {
            if page[..8] != number.to_le_bytes() || page[8..] != expected[8..] {
                return Err(Failure::Differs(number * PAGE_BYTES as u64));
            }
        }
        Ok(())
    }
}
