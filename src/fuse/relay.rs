//! The relay to fuser: a socket through which rare requests reach an unmodified session of fuser, and its answers come
//! back.
//!
//! A packet socket keeps messages whole, as /dev/fuse does. Its packets are limited in size, so requests that ask for long
//! answers are made to ask for less before they are passed on.

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
use super::channel::{Channel, HEADER_BYTES};
use super::reply::Reply;
use crate::metrics::Ticket;
use crate::opcode::Opcode;

/// Bytes of the longest answer to a listing, or to a read of a control file.
const LISTING_BYTES_MAX: u32 = 64 * 1024;

/// The largest message in either direction: an extended attribute's value of 64 KiB with names and headers.
const MESSAGE_BYTES_MAX: usize = 80 * 1024;

/// Bytes that the kernel adds to a packet when it compares its size with the buffer's (`unix_dgram_sendmsg`).
const PACKET_OVERHEAD: usize = 32;

/// Where the size stands in a request with a `fuse_read_in`: its third field.
const READ_SIZE_AT: std::ops::Range<usize> = 56..60;

/// The channel that a request came from, which its answer has to go to, and the ticket that counts it.
type Origin = (Arc<Channel>, Option<Ticket>);

/// The front's end of the socket.
#[derive(Debug)]
pub(super) struct Relay {
    socket: OwnedFd,
    /// The origins of the requests that fuser has not answered yet, by their unique ids.
    origins: DashMap<u64, Origin>,
}

impl Relay {
    /// Makes the socket. The second end returned is fuser's.
    ///
    /// # Errors
    /// When the system's limits do not let the longest message through.
    pub(super) fn new() -> io::Result<(Relay, OwnedFd)> {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        for end in [&ours, &theirs] {
            enlarge_buffer(end)?;
        }
        Ok((Relay { socket: ours, origins: DashMap::new() }, theirs))
    }

    /// Passes a request on to fuser. Its answer will be sent to `channel`.
    ///
    /// # Errors
    /// When it cannot be passed on. Nobody else answers it then.
    pub(super) fn pass(
        &self, channel: &Arc<Channel>, header: &InHeader, headers: &mut [u8; HEADER_BYTES],
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
        self.origins.insert(header.unique, (channel.clone(), ticket));
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

    /// Ends fuser's session. Each of its threads ends when it takes one such message.
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

    /// Carries answers and notifications back until fuser's end has been closed. Notifications go to `channel`.
    pub(super) fn carry_back(&self, channel: &Arc<Channel>) {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        loop {
            match self.carry_one(channel, &mut buffer, MsgFlags::empty()) {
                Ok(true) => {}
                Ok(false) => return,
                Err(errno) => {
                    return log::error!("answers cannot be received any more: {errno}");
                }
            }
        }
    }

    /// Carries one message back if there is one.
    pub(super) fn carry_waiting(&self, channel: &Arc<Channel>) -> Result<bool, Errno> {
        self.carry_one(channel, &mut vec![0; MESSAGE_BYTES_MAX], MsgFlags::MSG_DONTWAIT)
    }

    /// Carries one message back. Returns false when there will be no more.
    fn carry_one(
        &self, channel: &Arc<Channel>, buffer: &mut [u8], flags: MsgFlags,
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
        // A notification has the id 0 and a kind. The answer to a message of `end` has neither an origin nor a kind.
        let channel = match (&origin, header.unique) {
            (Some(origin), _) => origin,
            (None, 0) if header.error != 0 => channel,
            (None, _) => return Ok(true),
        };
        ticket.iter().for_each(|ticket| channel.watch.answering(ticket, header.error));
        let sent = channel.send_raw(&[IoSlice::new(message)]);
        if let Some(ticket) = ticket {
            channel.watch.answered(ticket, header.error, length - size_of::<OutHeader>());
        }
        match sent {
            Ok(()) | Err(Errno::ENOENT | Errno::ENODEV) => {}
            Err(errno) => {
                log::error!("an answer of {length} bytes was refused: {errno}");
                if header.unique != 0 {
                    // The request still waits, and nobody else answers it.
                    Reply::new(channel, header.unique, None).error(Errno::EIO);
                }
            }
        }
        Ok(true)
    }
}

/// Makes the buffer large enough for the longest message.
fn enlarge_buffer(end: &OwnedFd) -> io::Result<()> {
    let buffer = |end: &OwnedFd| getsockopt(end, sockopt::SndBuf);
    let needed = MESSAGE_BYTES_MAX + PACKET_OVERHEAD;
    if buffer(end)? < needed {
        // The first is limited by a setting, the second needs a privilege.
        setsockopt(end, sockopt::SndBuf, &needed)?;
        if buffer(end)? < needed {
            let _ = setsockopt(&end.as_fd(), sockopt::SndBufForce, &needed);
        }
    }
    if buffer(end)? < needed {
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
        let channel = Channel::new(null.into(), Arc::default());
        let mut header = InHeader::new_zeroed();
        header.unique = 6;
        for (length, expected) in
            [(40, Ok(())), (MESSAGE_BYTES_MAX, Ok(())), (MESSAGE_BYTES_MAX + 1, Err(Errno::E2BIG))]
        {
            header.len = length as u32;
            let rest = vec![1; length.saturating_sub(HEADER_BYTES)];
            let passed = relay.pass(&channel, &header, &mut [0; HEADER_BYTES], &rest, None);
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
        let channel =
            Channel::new(std::fs::File::open("/dev/null").unwrap().into(), Arc::default());
        let mut header = InHeader::new_zeroed();
        (header.len, header.opcode) = (80, Opcode::ReadDir.number());
        for (asked, passed) in [(4096, 4096), (1 << 20, LISTING_BYTES_MAX)] {
            let mut headers = [0; HEADER_BYTES];
            headers[READ_SIZE_AT].copy_from_slice(u32::as_bytes(&asked));
            relay.pass(&channel, &header, &mut headers, &[], None).unwrap();
            let mut taken = [0; HEADER_BYTES];
            assert_eq!(recv(theirs.as_raw_fd(), &mut taken, MsgFlags::empty()), Ok(80));
            assert_eq!(u32::read_from_bytes(&taken[READ_SIZE_AT]), Ok(passed));
        }
    }
}
