//! One descriptor of the session: requests come out of it, and their answers go back into the same one.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::{readv, writev};
use smallvec::SmallVec;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes};

use super::abi::{InHeader, InvalInodeOut, NOTIFY_INVAL_INODE, NOTIFY_PRUNE, OutHeader, PruneOut};
use super::attr::told;
use super::session::REQUEST_BYTES_MAX;
use crate::error::Result;
use crate::metrics::{Ticket, Watch};
use crate::volume::Stale;

/// Bytes that a WRITE has before its payload: `fuse_in_header` and `fuse_write_in`.
pub(super) const HEADER_BYTES: usize = 80;

/// Pauses of the processor between two looks for a request.
const PAUSES: u32 = 16;

/// A descriptor of /dev/fuse.
#[derive(Debug)]
pub(super) struct Device {
    descriptor: OwnedFd,
    /// Counts what is answered.
    pub(super) watch: Arc<Watch>,
}

impl Device {
    pub(super) fn new(descriptor: OwnedFd, watch: Arc<Watch>) -> Arc<Device> {
        Arc::new(Device { descriptor, watch })
    }

    /// One more descriptor of the same session, with a queue of its own for what it has read.
    pub(super) fn another(&self) -> io::Result<Arc<Device>> {
        Ok(Device::new(crate::sys::clone_fuse_device(&self.descriptor)?, self.watch.clone()))
    }

    /// Receives a request without waiting, from a descriptor that [never waits](Device::polling). Its first
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
                // ENOENT: the request was taken back while it was being handed over.
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(Errno::ENODEV) => return Ok(Poll::Ready(None)),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits for a request and receives it as [`Device::poll`] does.
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
            // Each look takes the lock that the client needs to send its request.
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
    }

    /// One more descriptor as [`Device::another`] makes it, which never waits.
    pub(super) fn polling(&self) -> io::Result<Arc<Device>> {
        let device = self.another()?;
        fcntl(&device.descriptor, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok(device)
    }

    /// Writes one message as it is: an answer or a notification, header included.
    pub(super) fn send_raw(&self, parts: &[IoSlice<'_>]) -> nix::Result<()> {
        writev(&self.descriptor, parts).map(drop)
    }

    fn send(&self, unique: u64, error: i32, payload: &[&[u8]]) -> nix::Result<()> {
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

    /// Makes the kernel forget those of these nodes that nobody uses.
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

/// The right, and the duty, to answer one request. Dropped unused it answers EIO: no client waits for
/// ever because something was lost on the way.
#[derive(Debug)]
pub(super) struct Reply {
    /// `None` once it was sent.
    device: Option<Arc<Device>>,
    unique: u64,
    /// `None` for what nobody counts.
    ticket: Option<Ticket>,
}

impl Reply {
    pub(super) fn new(device: &Arc<Device>, unique: u64, ticket: Option<Ticket>) -> Reply {
        Reply { device: Some(device.clone()), unique, ticket }
    }

    /// False when nobody waits for the answer any more: the session has been aborted.
    fn send(&mut self, error: i32, payload: &[&[u8]]) -> bool {
        let Some(device) = self.device.take() else {
            return false;
        };
        let ticket = self.ticket.take();
        ticket.iter().for_each(|ticket| device.watch.answering(ticket, error));
        let sent = device.send(self.unique, error, payload);
        if let Some(ticket) = ticket {
            device.watch.answered(ticket, error, payload.iter().map(|part| part.len()).sum());
        }
        match sent {
            Ok(()) => true,
            Err(Errno::ENOENT | Errno::ENODEV) => false,
            Err(errno) => {
                log::error!("an answer of {} parts was refused: {errno}", payload.len());
                // A refused message leaves the request waiting; one that failed on the way has ended it.
                let _ = device.send(self.unique, -libc::EIO, &[]);
                false
            }
        }
    }

    pub(super) fn error(mut self, errno: Errno) {
        self.send(-(told(errno) as i32), &[]);
    }

    /// Answers with success or an error.
    pub(super) fn done(mut self, result: Result<()>) {
        match result {
            Ok(()) => {
                self.send(0, &[]);
            }
            Err(errno) => self.error(errno),
        }
    }

    /// A closure that answers with success or an error.
    pub(super) fn when_done(self) -> crate::engine::Reply {
        Box::new(move |result| self.done(result))
    }

    /// Answers with a structure or an error; false when nobody has received the structure.
    pub(super) fn result(self, result: Result<impl IntoBytes + Immutable>) -> bool {
        match result {
            Ok(value) => self.values(&[value.as_bytes()]),
            Err(errno) => {
                self.error(errno);
                false
            }
        }
    }

    /// Answers with bytes, sent from where they are.
    pub(super) fn bytes(mut self, runs: &[&[u8]]) {
        self.send(0, runs);
    }

    /// Answers with structures, one after the other; false when nobody has received them.
    pub(super) fn values(mut self, values: &[&[u8]]) -> bool {
        self.send(0, values)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(-libc::EIO, &[]);
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
