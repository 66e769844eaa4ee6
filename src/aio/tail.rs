//! Storing the last bytes of a file whose length is not a multiple of the alignment.
//!
//! O_DIRECT cannot store them without padding, and padding would have to be cut off again: a crash in between would
//! leave a file of the wrong length. So these bytes, less than a page of 4 KiB, go through the page cache, by a
//! second descriptor, and are then pushed to the device, so that a failure is found here and not at the next fsync.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};

use rustix::fs::{CWD, Mode, OFlags};

use super::device::{Action, Geometry, Transfer};
use super::file::{errno, uninterrupted};
use crate::error::{Errno, Result};

/// sync_file_range(2): wait for earlier write-outs, write out, wait for the end.
pub(super) const PUSH_FLAGS: u32 = libc::SYNC_FILE_RANGE_WAIT_BEFORE
    | libc::SYNC_FILE_RANGE_WRITE
    | libc::SYNC_FILE_RANGE_WAIT_AFTER;

/// Returns whether a transfer stores the end of a file and cannot be done with O_DIRECT.
pub(super) fn is_tail(transfer: &Transfer, geometry: Geometry) -> bool {
    match &transfer.action {
        Action::Write(lease) => geometry.direct && !lease.len().is_multiple_of(geometry.alignment),
        Action::Read(_) | Action::Sync { .. } => false,
    }
}

/// Opens the file once more for writing, without O_DIRECT.
///
/// # Errors
/// EACCES where a daemon that is not root may not write a file that it has open for writing; those of open(2).
pub(super) fn open_buffered(file: RawFd) -> Result<OwnedFd> {
    let link = format!("/proc/self/fd/{file}");
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, link, flags, Mode::empty()).map_err(errno)
}

/// Does a transfer for which [`is_tail`] is true, and waits until the device has the bytes. Blocks.
///
/// # Errors
/// EBADF for a file in memory; those of pwrite(2) and sync_file_range(2).
pub(super) fn store(transfer: &Transfer) -> Result<usize> {
    let Action::Write(bytes) = &transfer.action else { return Err(Errno::EINVAL) };
    let raw = transfer.file.descriptor().ok_or(Errno::EBADF)?;
    let offset = transfer.offset;
    // SAFETY: borrow_raw needs a descriptor that stays open during the borrow: it belongs to `transfer.file`, which
    // outlives this call.
    let file = unsafe { BorrowedFd::borrow_raw(raw) };
    match open_buffered(raw) {
        Ok(buffered) => store_buffered(&buffered, bytes, offset),
        // Nobody else may open it, but this descriptor can do without O_DIRECT for a moment; other transfers that
        // begin meanwhile go through the page cache, which is as good.
        Err(Errno::EACCES) => {
            let flags = rustix::fs::fcntl_getfl(file).map_err(errno)?;
            rustix::fs::fcntl_setfl(file, flags - OFlags::DIRECT).map_err(errno)?;
            let stored = store_buffered(file, bytes, offset);
            rustix::fs::fcntl_setfl(file, flags).map_err(errno)?;
            stored
        }
        Err(errno) => Err(errno),
    }
}

fn store_buffered(file: impl AsFd, bytes: &[u8], offset: u64) -> Result<usize> {
    let file = file.as_fd();
    let count = uninterrupted(|| rustix::io::pwrite(file, bytes, offset))?;
    crate::sys::sync_file_range(file, offset, bytes.len() as u64, PUSH_FLAGS)?;
    Ok(count)
}
