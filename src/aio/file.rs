//! Backing files that are real files.

use std::any::Any;
use std::fmt::Debug;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rustix::fs::{FallocateFlags, OFlags, SeekFrom, Timespec, Timestamps, UTIME_OMIT};

use super::device::{BackingFile, FileStatus};
use crate::error::{Errno, Result};
use crate::file_clock;
use crate::sys::{ActingAs, act_as};

/// The next file's id; 0 is never one.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A number for a new backing file of any kind, unique within the process.
pub(super) fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// Something that keeps a second reference to an open file, such as a ring's table of registered
/// files, and gives it up when the [`DiskFile`] is dropped.
pub(super) trait Registrar: Send + Sync + Debug {
    /// Gives up the file with this id, soon and without waiting for it.
    fn forget(&self, id: u64);
}

/// A file of the swap folder. Dropping it closes the descriptor, and rings that registered it let
/// go of it at once: an unlinked file's space is free as soon as its last `DiskFile` is dropped.
#[derive(Debug)]
pub struct DiskFile {
    id: u64,
    writable: bool,
    /// A lock of the lowest level: nothing else is locked while it is held.
    registrars: Mutex<Vec<Weak<dyn Registrar>>>,
    descriptor: OwnedFd,
}

impl DiskFile {
    /// Takes over an open descriptor.
    ///
    /// # Errors
    ///
    /// Those of fcntl(2) F_GETFL.
    pub fn new(descriptor: OwnedFd) -> Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&descriptor).map_err(errno)?;
        let access = flags & OFlags::ACCMODE;
        let writable = access == OFlags::RDWR || access == OFlags::WRONLY;
        Ok(Self::opened(descriptor, writable))
    }

    /// Takes over a descriptor of which the caller knows whether writes are possible with it.
    #[must_use]
    pub fn opened(descriptor: OwnedFd, writable: bool) -> Self {
        Self { id: next_id(), writable, registrars: Mutex::new(Vec::new()), descriptor }
    }

    /// Remembers to tell `registrar` when this file is dropped. To be called before it registers.
    pub(super) fn registered_with(&self, registrar: Weak<dyn Registrar>) {
        let mut registrars = self.registrars.lock();
        if !registrars.iter().any(|known| known.ptr_eq(&registrar)) {
            registrars.push(registrar);
        }
    }
}

impl AsFd for DiskFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl Drop for DiskFile {
    fn drop(&mut self) {
        for registrar in self.registrars.get_mut().drain(..) {
            if let Some(registrar) = registrar.upgrade() {
                registrar.forget(self.id);
            }
        }
    }
}

impl BackingFile for DiskFile {
    fn id(&self) -> u64 {
        self.id
    }

    fn descriptor(&self) -> Option<RawFd> {
        Some(self.descriptor.as_raw_fd())
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn status(&self) -> Result<FileStatus> {
        let stat = rustix::fs::fstat(&self.descriptor).map_err(errno)?;
        let changed_nsec = u32::try_from(stat.st_ctime_nsec).unwrap_or(0);
        file_clock::saw(stat.st_ctime, changed_nsec);
        Ok(FileStatus {
            size: stat.st_size.cast_unsigned(),
            allocated: stat.st_blocks.cast_unsigned() * 512,
            modified: system_time(stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            changed: system_time(stat.st_ctime, changed_nsec),
            #[allow(clippy::useless_conversion, reason = "u32 on aarch64")]
            links: stat.st_nlink.into(),
        })
    }

    fn reserve(&self, offset: u64, length: u64) -> Result<()> {
        if length == 0 {
            return Ok(());
        }
        match allocate(&self.descriptor, FallocateFlags::KEEP_SIZE, offset, length) {
            Err(Errno::EOPNOTSUPP) => Ok(()),
            result => result,
        }
    }

    fn set_len(&self, size: u64) -> Result<()> {
        uninterrupted(|| rustix::fs::ftruncate(&self.descriptor, size))?;
        self.status().map(drop)
    }

    fn set_times(&self, modified: SystemTime, _changed: SystemTime) -> Result<SystemTime> {
        let omit = Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT };
        let times = Timestamps { last_access: omit, last_modification: timespec(modified) };
        rustix::fs::futimens(&self.descriptor, &times).map_err(errno)?;
        Ok(self.status()?.changed)
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()> {
        let flags = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        allocate(&self.descriptor, flags, offset, length)?;
        self.status().map(drop)
    }

    fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        let target = if hole { SeekFrom::Hole(offset) } else { SeekFrom::Data(offset) };
        rustix::fs::seek(&self.descriptor, target).map_err(errno)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        if data_only {
            uninterrupted(|| rustix::fs::fdatasync(&self.descriptor))
        } else {
            uninterrupted(|| rustix::fs::fsync(&self.descriptor))
        }
    }
}

/// fallocate(2) in the name of the file's owner: the blocks that a filesystem reserves for root are root's only.
fn allocate(file: &OwnedFd, flags: FallocateFlags, offset: u64, length: u64) -> Result<()> {
    let _as_owner = match rustix::process::geteuid().is_root() {
        true => as_owner(file)?,
        false => None,
    };
    uninterrupted(|| rustix::fs::fallocate(file, flags, offset, length))
}

fn as_owner(file: &OwnedFd) -> Result<Option<ActingAs>> {
    let owner = rustix::fs::fstat(file).map_err(errno)?;
    let (uid, gid) = (owner.st_uid, owner.st_gid);
    // Where the switch is refused there is no root to protect the blocks from.
    Ok(if uid == 0 { None } else { act_as(uid, gid).ok() })
}

/// The project's errno for rustix's.
pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Repeats a call that a signal interrupts.
pub(crate) fn uninterrupted<T>(call: impl FnMut() -> rustix::io::Result<T>) -> Result<T> {
    rustix::io::retry_on_intr(call).map_err(errno)
}

fn system_time(seconds: i64, nanoseconds: u32) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let base = if seconds < 0 { UNIX_EPOCH - whole } else { UNIX_EPOCH + whole };
    base + Duration::from_nanos(nanoseconds.into())
}

/// The nearest time that the call takes: the filesystem has narrower limits of its own.
fn timespec(time: SystemTime) -> Timespec {
    let (tv_sec, nanoseconds) = match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (i64::try_from(since.as_secs()).unwrap_or(i64::MAX), since.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            let borrow = i64::from(before.subsec_nanos() > 0);
            let seconds = (before.as_secs() as i64).wrapping_neg().saturating_sub(borrow);
            (seconds, (1_000_000_000 - before.subsec_nanos()) % 1_000_000_000)
        }
    };
    Timespec { tv_sec, tv_nsec: nanoseconds.into() }
}

/// What a device needs of a file to hand it to the kernel; `None` for files in memory.
pub(super) fn disk_file(file: &Arc<dyn BackingFile>) -> Option<&DiskFile> {
    file.as_any().downcast_ref()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file() -> DiskFile {
        DiskFile::new(tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap().into()).unwrap()
    }

    #[test]
    fn size_space_and_times_are_reported() {
        let file = file();
        assert!(file.writable());
        file.reserve(0, 1 << 20).unwrap();
        let status = file.status().unwrap();
        assert_eq!((status.size, status.links), (0, 0));
        assert!(status.allocated >= 1 << 20);
        // Growing keeps what is reserved beyond the end, any other length gives it back.
        file.set_len(5000).unwrap();
        assert!(file.status().unwrap().allocated >= 1 << 20);
        file.set_len(5000).unwrap();
        assert!(file.status().unwrap().allocated < 1 << 20);
        assert_eq!(file.status().unwrap().size, 5000);
        file.sync(true).unwrap();
        file.sync(false).unwrap();
        for time in [
            UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789),
            UNIX_EPOCH - Duration::new(3, 250_000_000),
            UNIX_EPOCH - Duration::new(3, 0),
        ] {
            file.set_times(time, time).unwrap();
            assert_eq!(file.status().unwrap().modified, time);
        }
        // Whatever the filesystem makes of it, it is no failure.
        file.set_times(UNIX_EPOCH - Duration::from_secs(1 << 63), UNIX_EPOCH).unwrap();
        file.set_times(UNIX_EPOCH + Duration::from_secs((1 << 63) - 1), UNIX_EPOCH).unwrap();
    }

    #[test]
    fn holes_are_found() {
        let file = file();
        file.set_len(1 << 20).unwrap();
        assert_eq!(file.seek(0, false), Err(Errno::ENXIO));
        assert_eq!(file.seek(0, true), Ok(0));
        file.allocate(0, 1 << 20, 4096).unwrap();
        assert_eq!(file.status().unwrap().size, (1 << 20) + 4096);
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        file.allocate(punch, 0, 1 << 20).unwrap();
        assert_eq!(file.allocate(0, 0, 0), Err(Errno::EINVAL));
        assert_eq!(file.seek(2 << 20, true), Err(Errno::ENXIO));
    }

    #[test]
    fn read_only_descriptor_refuses_writes() {
        let file = DiskFile::new(std::fs::File::open("Cargo.toml").unwrap().into()).unwrap();
        assert!(!file.writable());
        assert!(file.set_len(0).is_err());
        assert!(file.reserve(0, 4096).is_err());
    }
}
