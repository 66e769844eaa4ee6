//! The device for kernels that refuse io_uring: threads that block in pread(2) and pwrite(2).

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::device::{Action, BackingFile, Geometry, Transfer};
use super::file::uninterrupted;
use super::settings::AioSettings;
use super::tail;
use super::waiting::Waiting;
use super::worker::{Work, Workers};
use crate::error::{Errno, Result};

/// Threads at most; beyond that they only compete for the processors.
const THREADS_MAX: u32 = 16;

/// Moves bytes with blocking calls: `thread_count` × `queue_depth` threads, at most 16.
/// `single_submit` and `overlap_events` mean nothing here: each transfer is a call of its own, and
/// threads do not wait for one another. `inflight_max` counts all threads together.
pub type ThreadDevice = Workers<Blocking>;

/// What the threads of a [`ThreadDevice`] do.
#[derive(Debug)]
pub struct Blocking(Geometry);

impl ThreadDevice {
    /// Starts the threads.
    ///
    /// # Errors
    ///
    /// EINVAL for settings out of range; those of creating a thread.
    pub fn new(settings: &AioSettings, geometry: Geometry) -> io::Result<Arc<Self>> {
        if !settings.valid() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let count = settings.queue_depth.saturating_mul(settings.thread_count).min(THREADS_MAX);
        let names = (0..count).map(|index| format!("swapfs-aio-{index}"));
        Self::start(Blocking(geometry), Waiting::with_capacity(1024), names).map(Arc::new)
    }
}

impl Work for Blocking {
    type Order = Waiting;

    const ENGINE: &'static str = "threads";

    fn geometry(&self) -> Geometry {
        self.0
    }

    fn perform(&self, transfer: &mut Transfer) -> Result<usize> {
        if tail::is_tail(transfer, self.0) {
            return tail::store(transfer);
        }
        let raw = transfer.file.descriptor().ok_or(Errno::EBADF)?;
        let offset = transfer.offset;
        // SAFETY: borrow_raw needs a descriptor that stays open during the borrow: it belongs to
        // `transfer.file`, an `Arc` that outlives this function's use of it.
        let file = unsafe { BorrowedFd::borrow_raw(raw) };
        match &mut transfer.action {
            Action::Read(lease) => uninterrupted(|| rustix::io::pread(file, &mut **lease, offset)),
            Action::Write(lease) => uninterrupted(|| rustix::io::pwrite(file, lease, offset)),
            Action::Sync { data_only } => {
                BackingFile::sync(&*transfer.file, *data_only).map(|()| 0)
            }
        }
    }
}
