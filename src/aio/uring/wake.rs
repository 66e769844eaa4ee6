//! An eventfd: how a submitter wakes a ring's thread.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

#[derive(Debug)]
pub(super) struct Wake {
    eventfd: OwnedFd,
}

impl Wake {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: eventfd takes two plain numbers and has no requirement on memory.
        let raw = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: from_raw_fd needs an open descriptor that nobody else closes: eventfd just
        // returned it.
        let eventfd = unsafe { OwnedFd::from_raw_fd(raw) };
        Ok(Self { eventfd })
    }

    /// Makes the descriptor readable.
    pub(super) fn ring(&self) {
        // EAGAIN would mean 2^64 - 2 unread wakes: readable all the same.
        let _ =
            rustix::io::retry_on_intr(|| rustix::io::write(&self.eventfd, &1_u64.to_ne_bytes()));
    }

    /// Makes the descriptor unreadable again.
    pub(super) fn drain(&self) {
        let mut count = [0; 8];
        let _ = rustix::io::retry_on_intr(|| rustix::io::read(&self.eventfd, &mut count));
    }

    pub(super) fn raw(&self) -> RawFd {
        self.eventfd.as_raw_fd()
    }
}

impl AsFd for Wake {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.eventfd.as_fd()
    }
}
