//! The front: answers what clients ask all day. The rest is passed on to fuser.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use zerocopy::FromBytes;

use super::abi::{InHeader, InitIn, MAJOR, MINOR_MIN};
use super::attr;
use super::channel::{Channel, HEADER_BYTES, header};
use super::relay::Relay;
use super::reply::Reply;
use super::request_buffer::RequestBuffer;
use super::session::Negotiated;
use super::write_offset_guess::WriteOffsetGuess;
use crate::aio::device::Transfer;
use crate::error::Errno;
use crate::fs::Forgotten;
use crate::opcode::Opcode;
use crate::volume::{Forgetting, Volume};

/// What answers requests, whichever thread has received them.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) volume: Arc<Volume>,
    pub(super) relay: Relay,
    /// Of the descriptor that was mounted.
    pub(super) channel: Arc<Channel>,
    pub(super) write_offset_guess: WriteOffsetGuess,
    /// Inodes whose descriptors are still to be closed.
    pub(super) forgotten: Mutex<Vec<Forgotten>>,
    pub(super) negotiated: Arc<Negotiated>,
}

impl Front {
    /// Receives the kernel's first request and passes it on to fuser, whose end of the relay is returned.
    /// [`Front::answer_init`] brings the answer back.
    ///
    /// # Errors
    /// When the kernel's protocol is too old, or the mount is gone already.
    pub(super) fn begin(
        volume: Arc<Volume>, descriptor: OwnedFd, negotiated: Arc<Negotiated>,
    ) -> io::Result<(Front, OwnedFd)> {
        let (relay, theirs) = Relay::new()?;
        let channel = Channel::new(descriptor, volume.watch.clone());
        let (mut headers, mut buffer) = ([0; HEADER_BYTES], RequestBuffer::own());
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "unmounted while starting");
        let received = channel.wait(&mut headers, buffer.parts())?;
        let (header, rest) = header(&headers, received.ok_or_else(gone)?)?;
        let rest = buffer.bytes(rest);
        let version = InitIn::read_from_prefix(&headers[size_of::<InHeader>()..]);
        match version {
            Ok((version, _)) if Opcode::of(header.opcode) == Opcode::Init => {
                if version.major != MAJOR || version.minor < MINOR_MIN {
                    Reply::new(&channel, header.unique, None).error(Errno::EPROTO);
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        format!(
                            "the kernel speaks FUSE {}.{}, {MAJOR}.{MINOR_MIN} at least is needed",
                            version.major, version.minor
                        ),
                    ));
                }
            }
            _ => {
                let what = format!("the kernel began with request {}", header.opcode);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        relay.pass(&channel, &header, &mut headers, rest, None)?;
        let (write_offset_guess, forgotten) = (WriteOffsetGuess::default(), Mutex::default());
        let front = Front { volume, relay, channel, write_offset_guess, forgotten, negotiated };
        Ok((front, theirs))
    }

    /// Brings the answer to the first request back to the kernel.
    pub(super) fn answer_init(&self) -> io::Result<()> {
        self.relay.carry_waiting(&self.channel)?;
        Ok(())
    }

    /// A closure that makes the kernel forget a node's pages and attributes.
    pub(super) fn invalidator(&self) -> Forgetting {
        let channel = self.channel.clone();
        Box::new(move |nodeid, what| {
            // Fails when the kernel does not know the node, and so has nothing to forget.
            let _ = channel.invalidate(nodeid, what);
        })
    }

    /// Answers a request that [`Opcode::route`] leads here, other than WRITE. `reply` makes the right to answer it, for those
    /// that get an answer. What a small read has to have transferred is left in `batch`, where there is one.
    pub(super) fn answer(
        &self, header: &InHeader, arguments: &[u8], batch: Option<&mut Vec<Transfer>>,
        reply: &dyn Fn() -> Reply,
    ) {
        let (id, opcode) = (header.nodeid, Opcode::of(header.opcode));
        if matches!(opcode, Opcode::Forget | Opcode::BatchForget) {
            return self.forget_all(opcode, id, arguments);
        }
        let reply = reply();
        match opcode {
            Opcode::Lookup => self.lookup(id, arguments, reply),
            Opcode::GetAttr => {
                reply.result(self.volume.attributes(id).map(|found| attr::attr_out(&found)));
            }
            Opcode::Statx => {
                reply.result(self.volume.attributes(id).map(|found| attr::statx_out(&found)));
            }
            Opcode::SetAttr => self.set_attributes(header, arguments, reply),
            Opcode::Create => self.create(header, arguments, reply),
            Opcode::TmpFile => self.create_unnamed(header, arguments, reply),
            Opcode::Unlink => self.unlink(header, arguments, reply),
            Opcode::Open => self.open(header, arguments, reply),
            Opcode::Read => self.read(arguments, batch, reply),
            Opcode::Fsync => self.fsync(header, arguments, reply),
            Opcode::Flush => self.flush(header, arguments, reply),
            Opcode::Release => self.release(arguments, reply),
            Opcode::GetXattr => self.get_xattr(header, arguments, reply),
            Opcode::ListXattr => self.list_xattrs(header, arguments, reply),
            Opcode::SetXattr => self.set_xattr(header, arguments, reply),
            Opcode::RemoveXattr => self.remove_xattr(header, arguments, reply),
            // The session itself ends when the mount does.
            Opcode::Destroy => reply.done(Ok(())),
            _ => reply.error(Errno::ENOSYS),
        }
    }
}
