//! The way to fuser: requests that the front does not answer itself go through a socket to an
//! unmodified session of fuser, and what that answers comes back.
//!
//! A packet socket keeps messages whole, as the device does. Its packets are limited in size, so
//! requests that ask for long answers are made to ask for less before they are passed on.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use dashmap::DashMap;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, getsockopt, recv, sendmsg, setsockopt, socketpair,
    sockopt,
};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::abi::{InHeader, OutHeader};
use super::device::{Device, HEADER_BYTES, Reply};
use crate::metrics::Ticket;
use crate::opcode::Opcode;

/// Most bytes that a listing, or a read of the control folder, may answer with.
const LISTING_BYTES_MAX: u32 = 64 * 1024;

/// The largest message in either direction: an extended attribute's value of 64 KiB with names and headers.
const MESSAGE_BYTES_MAX: usize = 80 * 1024;

/// What the kernel adds to a packet's size when it compares it with the buffer's (`unix_dgram_sendmsg`).
const PACKET_OVERHEAD: usize = 32;

/// Where in a READ, READDIR or READDIRPLUS the size stands: the third field of `fuse_read_in`.
const READ_SIZE_AT: std::ops::Range<usize> = 56..60;

/// The descriptor that a request came from: its answer has to go there. And what counts it.
type Origin = (Arc<Device>, Option<Ticket>);

/// Our end of the socket.
#[derive(Debug)]
pub(super) struct Relay {
    socket: OwnedFd,
    /// Of the requests that are on their way.
    origins: DashMap<u64, Origin>,
}

impl Relay {
    /// Makes the socket; the second end is fuser's.
    ///
    /// # Errors
    /// When the system's limits do not let the longest message through.
    pub(super) fn new() -> io::Result<(Relay, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        for end in [&ours, &theirs] {
            widen(end)?;
        }
        Ok((Relay { socket: ours, origins: DashMap::new() }, theirs))
    }

    /// Passes a request on. Its answer will be sent to `device`.
    ///
    /// # Errors
    /// When it cannot be passed: nobody will answer it then.
    pub(super) fn pass(
        &self, device: &Arc<Device>, header: &InHeader, headers: &mut [u8; HEADER_BYTES],
        rest: &[u8], ticket: Option<Ticket>,
    ) -> Result<(), Errno> {
        let length = header.len as usize;
        if length > MESSAGE_BYTES_MAX {
            return Err(Errno::E2BIG);
        }
        let opcode = Opcode::of(header.opcode);
        if opcode.has_answer_size()
            && let Ok(size) = u32::read_from_bytes(&headers[READ_SIZE_AT])
        {
            headers[READ_SIZE_AT].copy_from_slice(size.min(LISTING_BYTES_MAX).as_bytes());
        }
        self.origins.insert(header.unique, (device.clone(), ticket));
        let parts = [IoSlice::new(&headers[..length.min(HEADER_BYTES)]), IoSlice::new(rest)];
        self.send(&parts).inspect_err(|_| {
            self.origins.remove(&header.unique);
        })
    }

    fn send(&self, parts: &[IoSlice<'_>]) -> Result<(), Errno> {
        let socket = self.socket.as_raw_fd();
        loop {
            match sendmsg::<()>(socket, parts, &[], MsgFlags::MSG_NOSIGNAL, None) {
                Err(Errno::EINTR) => {}
                sent => return sent.map(drop),
            }
        }
    }

    /// Ends fuser's session: each of its threads ends with the one such message that it takes.
    pub(super) fn end(&self, threads: usize) {
        let mut message = InHeader::new_zeroed();
        message.len = size_of::<InHeader>() as u32;
        message.opcode = Opcode::Destroy.number();
        for _ in 0..threads {
            if let Err(errno) = self.send(&[IoSlice::new(message.as_bytes())]) {
                log::debug!("ending the session: {errno}");
            }
        }
    }

    /// Carries answers and notifications back, until fuser's end has been closed. `device` is where
    /// notifications go.
    pub(super) fn carry_back(&self, device: &Arc<Device>) {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        loop {
            match self.carry_one(device, &mut buffer, MsgFlags::empty()) {
                Ok(true) => {}
                Ok(false) => return,
                Err(errno) => {
                    return log::error!("answers cannot be received any more: {errno}");
                }
            }
        }
    }

    /// Carries one message back if there is one.
    pub(super) fn carry_waiting(&self, device: &Arc<Device>) -> Result<bool, Errno> {
        self.carry_one(device, &mut vec![0; MESSAGE_BYTES_MAX], MsgFlags::MSG_DONTWAIT)
    }

    /// False when there will be no more.
    fn carry_one(
        &self, device: &Arc<Device>, buffer: &mut [u8], flags: MsgFlags,
    ) -> Result<bool, Errno> {
        let length = match recv(self.socket.as_raw_fd(), buffer, flags) {
            Ok(0) | Err(Errno::ECONNRESET) => return Ok(false),
            Ok(length) => length,
            Err(Errno::EINTR) => return Ok(true),
            Err(errno) => return Err(errno),
        };
        let message = &buffer[..length];
        let Ok((header, _)) = OutHeader::read_from_prefix(message) else {
            log::error!("a message of {length} bytes is no answer");
            return Ok(true);
        };
        let (origin, ticket) =
            self.origins.remove(&header.unique).map(|(_, origin)| origin).unzip();
        let ticket = ticket.flatten();
        // Notifications (0) belong to no request; so does the answer to the message that ends a session,
        // which is no notification because it has no kind.
        let device = match (&origin, header.unique) {
            (Some(origin), _) => origin,
            (None, 0) if header.error != 0 => device,
            (None, _) => return Ok(true),
        };
        ticket.iter().for_each(|ticket| device.watch.answering(ticket, header.error));
        let sent = device.send_raw(&[IoSlice::new(message)]);
        if let Some(ticket) = ticket {
            device.watch.answered(ticket, header.error, length - size_of::<OutHeader>());
        }
        match sent {
            Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => {}
            Err(errno) => {
                log::error!("an answer of {length} bytes was refused: {errno}");
                if header.unique != 0 {
                    // The request is still waiting, and nobody else will answer it.
                    Reply::new(device, header.unique, None).error(Errno::EIO);
                }
            }
        }
        Ok(true)
    }
}

/// Makes sure that the longest message fits.
fn widen(end: &OwnedFd) -> io::Result<()> {
    let room = |end: &OwnedFd| getsockopt(end, sockopt::SndBuf);
    let needed = MESSAGE_BYTES_MAX + PACKET_OVERHEAD;
    if room(end)? < needed {
        // The first is limited by a setting, the second needs a privilege.
        setsockopt(end, sockopt::SndBuf, &needed)?;
        if room(end)? < needed {
            let _ = setsockopt(&end.as_fd(), sockopt::SndBufForce, &needed);
        }
    }
    if room(end)? < needed {
        return Err(io::Error::other(format!(
            "net.core.wmem_max is too small: {needed} bytes are needed"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_message_passes_and_longer_ones_are_refused() {
        let (relay, theirs) = Relay::new().unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        let device = Device::new(null.into(), Arc::default());
        let mut header = InHeader::new_zeroed();
        header.unique = 6;
        for (length, expected) in
            [(40, Ok(())), (MESSAGE_BYTES_MAX, Ok(())), (MESSAGE_BYTES_MAX + 1, Err(Errno::E2BIG))]
        {
            header.len = length as u32;
            let rest = vec![1; length.saturating_sub(HEADER_BYTES)];
            let passed = relay.pass(&device, &header, &mut [0; HEADER_BYTES], &rest, None);
            assert_eq!(passed, expected, "{length}");
            if expected.is_ok() {
                let mut taken = vec![0; MESSAGE_BYTES_MAX + 1];
                let received = recv(theirs.as_raw_fd(), &mut taken, MsgFlags::empty()).unwrap();
                assert_eq!(received, length);
            }
        }
    }

    #[test]
    fn listings_are_asked_for_in_pieces_that_fit() {
        let (relay, theirs) = Relay::new().unwrap();
        let device = Device::new(std::fs::File::open("/dev/null").unwrap().into(), Arc::default());
        let mut header = InHeader::new_zeroed();
        (header.len, header.opcode) = (80, Opcode::ReadDir.number());
        for (asked, passed) in [(4096, 4096), (1 << 20, LISTING_BYTES_MAX)] {
            let mut headers = [0; HEADER_BYTES];
            headers[READ_SIZE_AT].copy_from_slice(u32::as_bytes(&asked));
            relay.pass(&device, &header, &mut headers, &[], None).unwrap();
            let mut taken = [0; HEADER_BYTES];
            assert_eq!(recv(theirs.as_raw_fd(), &mut taken, MsgFlags::empty()), Ok(80));
            assert_eq!(u32::read_from_bytes(&taken[READ_SIZE_AT]), Ok(passed));
        }
    }
}
