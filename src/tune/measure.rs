//! One measurement: a buffer to a file or back, timed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fdatasync, fstatvfs};

use super::{Combination, Plan, Rate};
use crate::aio::probe::{create, probe};
use crate::deepspeed::handle::{Handle, HandleOptions, LockedTensor};
use crate::mount::entry_of_path;
use crate::noise::fill;
use crate::sys_process::reason;
use crate::units::{MIB, format_short};

/// Bytes of a quick measurement at least: enough for some blocks in flight.
const QUICK_BYTES_MIN: usize = 64 << 20;

/// Memory that is left to others.
const MEMORY_LEFT: u64 = 256 * MIB;

/// Why a combination was not measured.
pub(super) enum Failure {
    /// It cannot be set up on this machine.
    Refused(String),
    /// The transfer failed; so would others.
    Transfer(String),
}

/// A file without a name, and the buffer.
pub(super) struct Track {
    file: OwnedFd,
    tensor: LockedTensor,
    alignment: u64,
    /// Bytes of a measurement.
    io_size: usize,
}

impl Track {
    /// Opens both; the file has no bytes yet.
    pub(super) fn open(plan: &Plan) -> Result<Self, String> {
        let shown = plan.folder.display();
        let failed = |why: String| format!("{shown}: {why}");
        if let Ok(Some(entry)) = entry_of_path(&plan.folder) {
            let source = entry.source.display();
            return Err(failed(format!("lies on a swapfs mount; tune its swap folder, {source}")));
        }
        let folder = File::open(&plan.folder).map_err(|error| failed(reason(&error)))?;
        if !folder.metadata().is_ok_and(|metadata| metadata.is_dir()) {
            return Err(failed("Not a directory".to_owned()));
        }
        let found = probe(folder.as_fd()).map_err(|errno| failed(errno.desc().to_owned()))?;
        if !found.direct {
            let why = "no O_DIRECT there, only the page cache would be measured";
            return Err(failed(format!("{why}; use a folder on ext4 or xfs")));
        }
        let space = fstatvfs(&folder).map_err(|error| failed(reason(&error.into())))?;
        let (room, needed) = (space.f_bavail * space.f_frsize, format_short(plan.io_size));
        if room < plan.io_size {
            let room = format_short(room);
            return Err(failed(format!("{room} free, {needed} are needed; give less --io-size")));
        }
        if crate::memory::available().is_some_and(|free| free < plan.io_size + MEMORY_LEFT) {
            return Err(format!("no memory for a buffer of {needed}; give less --io-size"));
        }
        let file = create(folder.as_fd(), OFlags::DIRECT)
            .map_err(|error| failed(reason(&error.into())))?;
        let io_size = usize::try_from(plan.io_size).expect("less than the memory");
        // Any handle's buffers serve any other.
        let handle = Handle::new(HandleOptions { queue_depth: 1, ..HandleOptions::default() });
        let tensor = handle.and_then(|handle| handle.new_cpu_locked_tensor(io_size));
        let mut tensor =
            tensor.map_err(|error| format!("a buffer of {needed}: {}", reason(&error)))?;
        fill(&mut tensor, 1);
        Ok(Self { file, tensor, alignment: found.alignment() as u64, io_size })
    }

    /// Bytes.
    pub(super) fn alignment(&self) -> u64 {
        self.alignment
    }

    pub(super) fn io_size(&self) -> u64 {
        self.io_size as u64
    }

    /// Writes the whole file once, so that every measurement finds it as the others do; with `quick`, of
    /// fewer bytes, so that a measurement takes about that time. Lines about the machine come back.
    pub(super) fn fill(
        &mut self, combination: &Combination, quick: Option<Duration>,
    ) -> Result<Vec<String>, String> {
        let handle = handle(combination).map_err(|error| format!("aio: {}", reason(&error)))?;
        if let Some(aim) = quick {
            let most = self.io_size;
            self.io_size = most.min(QUICK_BYTES_MIN);
            self.write_once(&handle)?;
            self.io_size = self.enough(aim, most, combination)?;
        }
        self.write_once(&handle)?;
        let refusal = handle.engine_refusal();
        let threads =
            refusal.map(|why| format!("threads are measured, io_uring is refused: {why}"));
        let lock = self.tensor.lock_refusal();
        let unlocked = lock.map(|why| format!("the buffer is not locked in memory: {why}"));
        Ok(threads.into_iter().chain(unlocked).collect())
    }

    fn write_once(&mut self, handle: &Handle) -> Result<(), String> {
        let part = self.tensor.narrow(..self.io_size);
        handle.pwrite_fd(part, &self.file, 0).map_err(|error| error.to_string())?;
        self.settle().map_err(|error| reason(&error))
    }

    /// Bytes that take about this time, at most `most`.
    fn enough(
        &mut self, aim: Duration, most: usize, combination: &Combination,
    ) -> Result<usize, String> {
        let measured = self.measure(combination, true, true);
        let (write, read) = measured.map_err(|failure| match failure {
            Failure::Refused(why) | Failure::Transfer(why) => why,
        })?;
        let bytes = write.speed().min(read.speed()) * aim.as_secs_f64();
        let bytes = bytes as usize / (1 << 20) * (1 << 20);
        Ok(bytes.clamp(QUICK_BYTES_MIN.min(most), most))
    }

    /// Writes and reads, as wanted. What is not wanted has moved nothing.
    pub(super) fn measure(
        &mut self, combination: &Combination, write: bool, read: bool,
    ) -> Result<(Rate, Rate), Failure> {
        let handle = handle(combination).map_err(|error| Failure::Refused(reason(&error)))?;
        let transfer =
            |error: crate::deepspeed::handle::Error| Failure::Transfer(error.to_string());
        let bytes = self.io_size as u64;
        let mut rates = (Rate::default(), Rate::default());
        if write {
            let part = self.tensor.narrow(..self.io_size);
            let start = Instant::now();
            handle.pwrite_fd(part, &self.file, 0).map_err(transfer)?;
            rates.0 = Rate { bytes, time: start.elapsed() };
            // What the drive still has to do is not the next one's burden.
            self.settle().map_err(|error| Failure::Transfer(reason(&error)))?;
        }
        if read {
            let part = self.tensor.narrow(..self.io_size);
            let start = Instant::now();
            handle.pread_fd(part, &self.file, 0).map_err(transfer)?;
            rates.1 = Rate { bytes, time: start.elapsed() };
        }
        Ok(rates)
    }

    fn settle(&self) -> io::Result<()> {
        Ok(fdatasync(&self.file)?)
    }
}

fn handle(combination: &Combination) -> io::Result<Handle> {
    let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
    Handle::new(HandleOptions {
        block_size: usize::try_from(combination.block_size).unwrap_or(usize::MAX),
        queue_depth: narrow(combination.queue_depth),
        single_submit: combination.single_submit,
        overlap_events: combination.overlap_events,
        intra_op_parallelism: narrow(combination.intra_op_parallelism),
    })
}
