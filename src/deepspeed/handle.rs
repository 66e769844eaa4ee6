//! DeepSpeed's aio handle over swapfs's devices: whole buffers to and from files, past the page cache.
//!
//! A [`Handle`] is `deepspeed.ops.op_builder.AsyncIOBuilder().load().aio_handle(...)` with `io_uring` in
//! place of libaio: the same settings, the same division of an operation over threads and blocks, the
//! same way of opening files. What DeepSpeed leaves to chance or ends the process for is different:
//!
//! - Every completion is looked at. A failed or short transfer is an [`Error`] that names the file, the offset and
//!   the errno. Nothing asserts: not [`wait`](Handle::wait) with nothing pending, not a file shorter than the
//!   read, not dropping the handle with operations pending (which waits for them).
//! - Any size, and any alignment of memory, offset and length. Aligned bytes of a [`LockedTensor`] go straight
//!   between file and memory by O_DIRECT; unaligned edges of a read and any other memory go by way of a fixed
//!   number of bounce buffers, waiting for one when all are in use. A write with an unaligned end sends
//!   its whole pages (4096 bytes) directly and the edges, less than a page each, through the page cache:
//!   exactly its bytes, so the file ends where the write ends and neighbours are not rewritten. Those edges
//!   are written before the call returns, in asynchronous operations too.
//! - Memory is safe: an asynchronous operation takes the buffer and gives it back, see [`Operation`].
//!
//! As in DeepSpeed, a write promises no durability: fsync the file for that. Operations are not
//! ordered: whoever reads what is being written, or writes twice in one place, waits in between. A file is
//! closed when its operation is done; the rings, which know it too, let go of it a moment later. Files
//! without O_DIRECT (EINVAL) are transferred through the page cache.
//!
//! Offsets and lengths are in bytes. `tests/handle.rs` has a test for each row:
//!
//! | DeepSpeed | here | test |
//! | --- | --- | --- |
//! | `aio_handle(block_size, queue_depth, single_submit, overlap_events, intra_op_parallelism)` | [`Handle::new`], [`HandleOptions`] | `settings_are_echoed` |
//! | `get_block_size`, `get_queue_depth`, `get_single_submit`, `get_overlap_events`, `get_intra_op_parallelism`, `get_alignment` | the same | `settings_are_echoed` |
//! | `read`, `write` | [`Handle::read`], [`Handle::write`] | `read_and_write_on_the_calling_thread` |
//! | `pread`, `pwrite` with `async=False` | [`Handle::pread`], [`Handle::pwrite`] | `validation_finds_a_difference` |
//! | `pread`, `pwrite` with `async=True` | [`Handle::pread_async`], [`Handle::pwrite_async`] | `validation_finds_a_difference` |
//! | `sync_pread`, `sync_pwrite` | the same | `deepspeed_parallel_read_and_write` |
//! | `async_pread`, `async_pwrite` | the same | `deepspeed_parallel_read_and_write` |
//! | `file_offset=` | the parameter `file_offset` | `deepspeed_offset_write`, `deepspeed_offset_read` |
//! | `async_pwrite(buffer, fd)` | [`Handle::async_pwrite_fd`]; also [`async_pread_fd`](Handle::async_pread_fd), [`pwrite_fd`](Handle::pwrite_fd), [`pread_fd`](Handle::pread_fd) | `deepspeed_fd_write`, `descriptors_stay_the_callers` |
//! | `wait` | [`Handle::wait`] | `one_of_three_fails`, `wait_with_nothing_pending` |
//! | `new_cpu_locked_tensor`, `free_cpu_locked_tensor` | the same, [`LockedTensor`] | `locked_tensors_and_views` |
//! | `is_pinned` | [`Handle::is_pinned`] | `locked_tensors_and_views` |

mod begin;
mod bounce;
mod buffer;
mod calls;
mod error;
mod files;
mod operation;
mod plan;
mod router;
mod tensor;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::Arc;

pub use buffer::{Buffer, Source, Target};
pub use error::{Direction, Error, ErrorKind, FileName, Refused, WaitError};
pub use operation::{Finished, Operation};
pub(crate) use tensor::Region;
pub use tensor::{LockedTensor, Narrow};

use crate::aio::device::{Device, DeviceStats};
use crate::aio::open_device;
use crate::aio::{AioSettings, Engine};
use bounce::Bounce;
use operation::Ledger;
use router::Router;

/// The outcome of a synchronous operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Bytes that DeepSpeed wants partitions to be multiples of, for each thread.
const ALIGNMENT_PER_THREAD: usize = 512;

/// The settings of a [`Handle`], with the defaults of DeepSpeed's Python constructor (those of its JSON
/// configuration are [`AioSettings`]'s).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandleOptions {
    /// Bytes of a transfer, 1 to [`HandleOptions::BLOCK_SIZE_MAX`]; 1 MiB by default. Rounded up to the file's
    /// alignment where a transfer is direct.
    pub block_size: usize,
    /// Transfers in flight per thread, 1 to [`AioSettings::QUEUE_DEPTH_MAX`]; 128 by default.
    pub queue_depth: u32,
    /// One system call per transfer instead of one per batch; off by default.
    pub single_submit: bool,
    /// Keep the queue topped up; otherwise, by default, submit a batch, wait for all of it, repeat.
    pub overlap_events: bool,
    /// Threads, each with a ring, 1 to [`AioSettings::THREAD_COUNT_MAX`]; 1 by default.
    pub intra_op_parallelism: u32,
}

impl HandleOptions {
    /// Largest `block_size`, in bytes.
    pub const BLOCK_SIZE_MAX: usize = 1 << 30;

    /// Transfers in flight on all threads.
    fn depth(&self) -> usize {
        self.queue_depth as usize * self.intra_op_parallelism as usize
    }

    fn check(&self) -> io::Result<()> {
        let invalid = |name, value: usize, most: usize| {
            let text = format!("{name} is {value}, accepted are 1 to {most}");
            Err(io::Error::new(io::ErrorKind::InvalidInput, text))
        };
        for (name, value, most) in [
            ("block_size", self.block_size, Self::BLOCK_SIZE_MAX),
            ("queue_depth", self.queue_depth as usize, AioSettings::QUEUE_DEPTH_MAX as usize),
            (
                "intra_op_parallelism",
                self.intra_op_parallelism as usize,
                AioSettings::THREAD_COUNT_MAX as usize,
            ),
        ] {
            if !(1..=most).contains(&value) {
                return invalid(name, value, most);
            }
        }
        Ok(())
    }
}

impl Default for HandleOptions {
    fn default() -> Self {
        Self {
            block_size: 1 << 20,
            queue_depth: 128,
            single_submit: false,
            overlap_events: false,
            intra_op_parallelism: 1,
        }
    }
}

/// Reads and writes files; see the [module documentation](self). May be shared between threads.
/// Dropping it blocks until its operations are done.
#[derive(Debug)]
pub struct Handle {
    options: HandleOptions,
    device: Arc<dyn Device>,
    router: Arc<Router>,
    ledger: Arc<Ledger>,
    refusal: Option<String>,
}

impl Handle {
    /// Starts the threads, on `io_uring` where the kernel allows it and else on blocking calls (see
    /// [`engine_refusal`](Self::engine_refusal)), and allocates the bounce buffers: one block for each
    /// transfer in flight as far as 32 MiB reach, two at least, of at most 8 MiB each. They are locked where
    /// RLIMIT_MEMLOCK allows it. DeepSpeed: `aio_handle(...)`.
    ///
    /// # Errors
    ///
    /// `InvalidInput` for a setting out of range, with its name; ENOMEM; those of creating threads.
    pub fn new(options: HandleOptions) -> io::Result<Self> {
        Self::with_engine(options, Engine::Auto)
    }

    /// [`new`](Self::new) with a choice of engine.
    ///
    /// # Errors
    ///
    /// Those of [`new`](Self::new); with [`Engine::IoUring`] the kernel's refusal.
    pub fn with_engine(options: HandleOptions, engine: Engine) -> io::Result<Self> {
        options.check()?;
        let settings = AioSettings {
            queue_depth: options.queue_depth,
            thread_count: options.intra_op_parallelism,
            single_submit: options.single_submit,
            overlap_events: options.overlap_events,
            stripe: options.block_size as u64,
            engine,
        };
        let bounce = Bounce::new(options.block_size, options.depth())?;
        // Files of any filesystem may come, each with an alignment of its own; this side sees to it.
        let (device, refusal) = open_device(&settings, bounce.arena(), 1, true, &[])?;
        if let Some(refusal) = &refusal {
            log::warn!("an aio handle works without io_uring: {refusal}");
        }
        Ok(Self::over(options, bounce, device, refusal))
    }

    fn over(
        options: HandleOptions, bounce: Bounce, device: Arc<dyn Device>, refusal: Option<String>,
    ) -> Self {
        // Twice the depth: the next batch waits in the device when one is done.
        let router = Router::new(bounce, 2 * options.depth());
        router.connect(&device);
        Self { options, device, router, ledger: Arc::default(), refusal }
    }

    /// Bytes of a transfer, as given. DeepSpeed: `get_block_size`.
    #[must_use]
    pub fn get_block_size(&self) -> usize {
        self.options.block_size
    }

    /// Transfers in flight per thread, as given. DeepSpeed: `get_queue_depth`.
    #[must_use]
    pub fn get_queue_depth(&self) -> u32 {
        self.options.queue_depth
    }

    /// As given. DeepSpeed: `get_single_submit`.
    #[must_use]
    pub fn get_single_submit(&self) -> bool {
        self.options.single_submit
    }

    /// As given. DeepSpeed: `get_overlap_events`.
    #[must_use]
    pub fn get_overlap_events(&self) -> bool {
        self.options.overlap_events
    }

    /// Threads, as given. DeepSpeed: `get_intra_op_parallelism`.
    #[must_use]
    pub fn get_intra_op_parallelism(&self) -> u32 {
        self.options.intra_op_parallelism
    }

    /// Bytes: 512 × threads, the sizes that DeepSpeed's handle divides evenly into aligned slices. This
    /// one accepts any size and any offset; multiples of 4096 (of 512 on most disks) need no copy.
    /// DeepSpeed: `get_alignment`.
    #[must_use]
    pub fn get_alignment(&self) -> usize {
        ALIGNMENT_PER_THREAD * self.options.intra_op_parallelism as usize
    }

    /// The device's counters, of transfers and bytes since the handle was made.
    #[must_use]
    pub fn stats(&self) -> DeviceStats {
        self.device.stats()
    }

    /// Why the handle works without `io_uring`; `None` when it has it.
    #[must_use]
    pub fn engine_refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// Allocates `bytes` bytes of zeros for transfers without a copy: page-aligned (4096), locked where
    /// RLIMIT_MEMLOCK allows it ([`LockedTensor::is_locked`]; DeepSpeed asserts). Blocks while the kernel
    /// clears them, about 0.1 to 0.3 s per GiB. Any handle may use them, also after this one is gone.
    /// DeepSpeed: `new_cpu_locked_tensor`, which takes a number of elements and an example for their type.
    ///
    /// # Errors
    ///
    /// ENOMEM.
    pub fn new_cpu_locked_tensor(&self, bytes: usize) -> io::Result<LockedTensor> {
        LockedTensor::new(bytes)
    }

    /// Frees a tensor; dropping it does the same. The memory is gone when the parts
    /// [split](LockedTensor::split_at) from it are. DeepSpeed: `free_cpu_locked_tensor`.
    pub fn free_cpu_locked_tensor(&self, tensor: LockedTensor) {
        drop(tensor);
    }

    /// Whether all of `bytes` lie in the memory of a [`LockedTensor`], any handle's; views count. Like
    /// DeepSpeed's `is_pinned` it answers from a table of the process: whether locking was refused is
    /// [`LockedTensor::is_locked`]'s to say.
    #[must_use]
    pub fn is_pinned(&self, bytes: &[u8]) -> bool {
        tensor::is_managed(bytes)
    }

    /// Blocks until all asynchronous operations are done and returns how many completed since the last
    /// wait; 0 with nothing pending (DeepSpeed ends the process). Those that
    /// [`Operation::finish`] has waited for are counted too. DeepSpeed: `wait`.
    ///
    /// # Errors
    ///
    /// When some failed: how many completed, and every failure, in the order of the calls. Buffers are
    /// to be had from the [`Operation`]s all the same.
    pub fn wait(&self) -> std::result::Result<usize, WaitError> {
        let (pending, finished) = self.ledger.take();
        let completed = finished + pending.len();
        let mut failed = Vec::new();
        for op in pending {
            op.wait();
            failed.extend(op.outcome().err());
        }
        if failed.is_empty() { Ok(completed) } else { Err(WaitError { completed, failed }) }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        for op in self.ledger.take().0 {
            op.wait();
            if let Err(error) = op.outcome() {
                log::error!("dropped with its aio handle: {error}");
            }
        }
        self.device.shutdown();
    }
}
