//! One descriptor of the session: requests come out of it, and their answers go back into the same one.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::{readv, writev};
use smallvec::SmallVec;
use zerocopy::{FromZeros, Immutable, IntoBytes};

use super::abi::{InvalInodeOut, NOTIFY_INVAL_INODE, NOTIFY_PRUNE, OutHeader, PruneOut};
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

    /// Waits for a request. Its first [`HEADER_BYTES`] go into `headers` and the rest into `payload`, one part
    /// after the other, which together must hold at least the largest request. Returns its length, or `None` at the end of
    /// the session.
    pub(super) fn receive(
        &self, headers: &mut [u8; HEADER_BYTES], [first, second]: [&mut [u8]; 2],
    ) -> io::Result<Option<usize>> {
        loop {
            let mut parts =
                [IoSliceMut::new(headers), IoSliceMut::new(first), IoSliceMut::new(second)];
            match readv(&self.descriptor, &mut parts) {
                Ok(length) => return Ok(Some(length)),
                // ENOENT: the request was taken back while it was being handed over.
                Err(Errno::ENOENT | Errno::EINTR | Errno::EAGAIN) => {}
                Err(Errno::ENODEV) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// As [`Device::receive`], but returns 0 when there is no request. For a descriptor that
    /// [never waits](Device::impatient).
    pub(super) fn look(
        &self, headers: &mut [u8; HEADER_BYTES], [first, second]: [&mut [u8]; 2],
    ) -> io::Result<Option<usize>> {
        loop {
            let mut parts =
                [IoSliceMut::new(headers), IoSliceMut::new(first), IoSliceMut::new(second)];
            match readv(&self.descriptor, &mut parts) {
                Ok(length) => return Ok(Some(length)),
                Err(Errno::EAGAIN) => return Ok(Some(0)),
                Err(Errno::ENOENT | Errno::EINTR) => {}
                Err(Errno::ENODEV) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// As [`Device::look`], again and again until `end`; calls `meanwhile` each time there was none.
    pub(super) fn look_out(
        &self, headers: &mut [u8; HEADER_BYTES], [first, second]: [&mut [u8]; 2], end: Instant,
        meanwhile: impl Fn(),
    ) -> io::Result<Option<usize>> {
        loop {
            let received = self.look(headers, [&mut *first, &mut *second])?;
            if received != Some(0) || Instant::now() >= end {
                return Ok(received);
            }
            meanwhile();
            // The lock that was looked under is the one that the client needs.
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        }
    }

    /// One more descriptor as [`Device::another`] makes it, which never waits.
    pub(super) fn impatient(&self) -> io::Result<Arc<Device>> {
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

    /// A file that is gone is one that is not there: ESTALE is for handles of NFS.
    pub(super) fn error(mut self, errno: Errno) {
        let errno = if errno == Errno::ESTALE { Errno::ENOENT } else { errno };
        self.send(-(errno as i32), &[]);
    }

    pub(super) fn empty(mut self) {
        self.send(0, &[]);
    }

    /// Answers with bytes, sent from where they are.
    pub(super) fn bytes(mut self, runs: &[&[u8]]) {
        self.send(0, runs);
    }

    /// Answers with structures, one after the other; false when nobody has received them.
    pub(super) fn values(mut self, values: &[&[u8]]) -> bool {
        self.send(0, values)
    }

    /// Answers with a structure; false when nobody has received it.
    pub(super) fn value(mut self, value: &(impl IntoBytes + Immutable)) -> bool {
        self.send(0, &[value.as_bytes()])
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(-libc::EIO, &[]);
    }
}
