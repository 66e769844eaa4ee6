//! A channel to the kernel: a descriptor of /dev/fuse, from which requests are read and to which their answers are written.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::{readv, writev};
use smallvec::SmallVec;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::abi::{InHeader, InvalInodeOut, NOTIFY_INVAL_INODE, NOTIFY_PRUNE, OutHeader, PruneOut};
use super::session::REQUEST_BYTES_MAX;
use crate::metrics::Watch;
use crate::volume::Stale;

/// Bytes before the payload of a WRITE: `fuse_in_header` and `fuse_write_in`.
pub(super) const HEADER_BYTES: usize = 80;

/// Pauses of the processor between two polls for a request.
const PAUSES: u32 = 16;

/// A descriptor of /dev/fuse.
#[derive(Debug)]
pub(super) struct Channel {
    descriptor: OwnedFd,
    /// Counts what is answered.
    pub(super) watch: Arc<Watch>,
}

impl Channel {
    pub(super) fn new(descriptor: OwnedFd, watch: Arc<Watch>) -> Arc<Channel> {
        Arc::new(Channel { descriptor, watch })
    }

    /// One more channel of the same session. The kernel takes the answer to a request only from the channel that read it.
    pub(super) fn duplicate(&self) -> io::Result<Arc<Channel>> {
        Ok(Channel::new(crate::sys::clone_fuse_device(&self.descriptor)?, self.watch.clone()))
    }

    /// Receives a request without waiting, if the channel is a [`Channel::nonblocking`] one. Its first
    /// [`HEADER_BYTES`] go into `headers`, the rest into the two parts of the payload, one after the other, which together
    /// must hold the largest request. Returns its length, or `None` at the end of the session.
    pub(super) fn poll(
        &self, headers: &mut [u8; HEADER_BYTES], [first, second]: [&mut [u8]; 2],
    ) -> io::Result<Poll<Option<usize>>> {
        loop {
            let mut parts =
                [IoSliceMut::new(headers), IoSliceMut::new(first), IoSliceMut::new(second)];
            match readv(&self.descriptor, &mut parts) {
                Ok(length) => return Ok(Poll::Ready(Some(length))),
                Err(Errno::EAGAIN) => return Ok(Poll::Pending),
                // ENOENT: the request was interrupted while it was being handed over.
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(Errno::ENODEV) => return Ok(Poll::Ready(None)),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for a request and receives it as [`Channel::poll`] does.
    pub(super) fn wait(
        &self, headers: &mut [u8; HEADER_BYTES], [first, second]: [&mut [u8]; 2],
    ) -> io::Result<Option<usize>> {
        loop {
            if let Poll::Ready(received) = self.poll(headers, [&mut *first, &mut *second])? {
                return Ok(received);
            }
        }
    }

    /// Polls again and again until `end`; calls `meanwhile` each time there was no request.
    pub(super) fn poll_until(
        &self, headers: &mut [u8; HEADER_BYTES], [first, second]: [&mut [u8]; 2], end: Instant,
        meanwhile: impl Fn(),
    ) -> io::Result<Poll<Option<usize>>> {
        loop {
            let received = self.poll(headers, [&mut *first, &mut *second])?;
            if received.is_ready() || Instant::now() >= end {
                return Ok(received);
            }
            meanwhile();
            // Each poll takes the lock that the client needs to send its request.
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
    }

    /// One more channel, from which reads never wait.
    pub(super) fn nonblocking(&self) -> io::Result<Arc<Channel>> {
        let channel = self.duplicate()?;
        fcntl(&channel.descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(channel)
    }

    /// Writes one message as it is: an answer or a notification, header included.
    pub(super) fn send_raw(&self, parts: &[IoSlice<'_>]) -> nix::Result<()> {
        writev(&self.descriptor, parts).map(drop)
    }

    /// Sends the answer to a request, or a notification when `unique` is 0.
    pub(super) fn send(&self, unique: u64, error: i32, payload: &[&[u8]]) -> nix::Result<()> {
        let mut header = OutHeader::new_zeroed();
        let bytes: usize = payload.iter().map(|part| part.len()).sum();
        header.len = (size_of::<OutHeader>() + bytes) as u32;
        (header.error, header.unique) = (error, unique);
        let mut parts: SmallVec<[IoSlice<'_>; 4]> = SmallVec::new();
        parts.push(IoSlice::new(header.as_bytes()));
        parts.extend(payload.iter().map(|part| IoSlice::new(part)));
        self.send_raw(&parts)
    }

    /// Makes the kernel forget what it has cached of a node.
    pub(super) fn invalidate(&self, nodeid: u64, what: Stale) -> nix::Result<()> {
        // A negative offset spares the pages.
        let offset = if what == Stale::Attributes { -1 } else { 0 };
        let node = InvalInodeOut { ino: nodeid, offset, length: 0 };
        self.send(0, NOTIFY_INVAL_INODE, &[node.as_bytes()])
    }

    /// Asks the kernel to forget these nodes, as far as nobody uses them.
    pub(super) fn prune(&self, nodes: &[u64]) -> nix::Result<()> {
        let prune = PruneOut { count: nodes.len() as u32, padding: 0, spare: 0 };
        self.send(0, NOTIFY_PRUNE, &[prune.as_bytes(), nodes.as_bytes()])
    }
}

/// Decodes the header of a request of `length` bytes, and says how many of these lie in the payload.
///
/// # Errors
/// When the header claims another length.
pub(super) fn header(headers: &[u8; HEADER_BYTES], length: usize) -> io::Result<(InHeader, usize)> {
    let rest = length.saturating_sub(HEADER_BYTES);
    match InHeader::read_from_prefix(headers) {
        Ok((header, _))
            if header.len as usize == length
                && length >= size_of::<InHeader>()
                && rest <= REQUEST_BYTES_MAX as usize =>
        {
            Ok((header, rest))
        }
        _ => {
            let what = format!("a request of {length} bytes does not say so");
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_lie_about_their_length_are_refused() {
        let mut headers = [0; HEADER_BYTES];
        let most = HEADER_BYTES as u32 + REQUEST_BYTES_MAX;
        for (says, length, accepted) in [
            (40, 40, true),
            (39, 39, false),
            (40, 41, false),
            (most, most as usize, true),
            (most + 1, most as usize + 1, false),
        ] {
            headers[..4].copy_from_slice(&u32::to_ne_bytes(says));
            let outcome = header(&headers, length);
            assert_eq!(outcome.is_ok(), accepted, "{says} {length}");
            if let Ok((header, rest)) = outcome {
                assert_eq!((header.len, rest), (says, length.saturating_sub(HEADER_BYTES)));
            }
        }
    }
}
