//! The device that moves nothing: writes are discarded, reads are zeros (or left as they are). What is
//! measured over it is everything but a device.

use std::any::Any;
use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use super::device::{Action, BackingFile, FileStatus, Geometry, Transfer};
use super::file::next_id;
use super::waiting::Waiting;
use super::worker::{Work, Workers};
use crate::error::{Errno, Result};

/// How a [`NullDevice`] behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NullOptions {
    /// Bytes; see [`Geometry::alignment`].
    pub alignment: usize,
    /// Whether a read clears its memory. Without it the memory keeps what it held, whoever's that was: only
    /// for measurements whose clients may see all of the pool.
    pub clear: bool,
}

impl Default for NullOptions {
    fn default() -> Self {
        Self { alignment: 4096, clear: true }
    }
}

/// Completes everything at once and in full, on one thread of its own. Files of any kind will do. None gets any bytes; a
/// write beyond a file's end makes it longer, as on any device. A sync syncs nothing.
pub type NullDevice = Workers<Null>;

/// What the thread of a [`NullDevice`] does.
#[derive(Debug)]
pub struct Null(NullOptions);

impl NullDevice {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// EINVAL for an alignment that is no power of two; those of creating a thread.
    pub fn new(options: NullOptions) -> io::Result<Arc<Self>> {
        if !options.alignment.is_power_of_two() {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        Self::start(Null(options), Waiting::default(), ["swapfs-null".to_owned()]).map(Arc::new)
    }
}

impl Work for Null {
    type Order = Waiting;

    const ENGINE: &'static str = "null";

    const BATCH: usize = usize::MAX;

    fn geometry(&self) -> Geometry {
        Geometry { alignment: self.0.alignment, direct: true }
    }

    fn perform(&self, transfer: &mut Transfer) -> Result<usize> {
        match &mut transfer.action {
            Action::Read(lease) => {
                if self.0.clear {
                    lease.fill(0);
                }
                Ok(lease.len())
            }
            Action::Write(lease) => {
                let end = transfer.offset + lease.len() as u64;
                if transfer.file.status()?.size < end {
                    transfer.file.set_len(end)?;
                }
                Ok(lease.len())
            }
            Action::Sync { .. } => Ok(0),
        }
    }
}

/// A file with a length and nothing in it, for when there is no folder either. Space is never short.
#[derive(Debug)]
pub struct NullFile {
    id: u64,
    size: AtomicU64,
}

impl NullFile {
    /// A file of `size` bytes.
    #[must_use]
    pub fn new(size: u64) -> Self {
        Self { id: next_id(), size: AtomicU64::new(size) }
    }
}

impl BackingFile for NullFile {
    fn id(&self) -> u64 {
        self.id
    }

    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn writable(&self) -> bool {
        true
    }

    fn status(&self) -> Result<FileStatus> {
        let size = self.size.load(Ordering::Relaxed);
        let modified = SystemTime::UNIX_EPOCH;
        Ok(FileStatus { size, allocated: size, modified, changed: modified, links: 1 })
    }

    fn reserve(&self, _offset: u64, _length: u64) -> Result<()> {
        Ok(())
    }

    fn set_len(&self, size: u64) -> Result<()> {
        self.size.store(size, Ordering::Relaxed);
        Ok(())
    }

    fn set_times(&self, _modified: SystemTime, changed: SystemTime) -> Result<SystemTime> {
        Ok(changed)
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()> {
        if mode & libc::FALLOC_FL_KEEP_SIZE == 0 {
            let end = offset.checked_add(length).ok_or(Errno::EFBIG)?;
            self.size.fetch_max(end, Ordering::Relaxed);
        }
        Ok(())
    }

    fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        let size = self.size.load(Ordering::Relaxed);
        match offset < size {
            true => Ok(if hole { size } else { offset }),
            false => Err(Errno::ENXIO),
        }
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        Ok(())
    }
}
