//! The daemon's own side of the session: answers what clients ask all day, and passes the rest on to fuser.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use zerocopy::FromBytes;

use super::abi::{InHeader, InitIn, MAJOR, MINOR_MIN};
use super::device::{Device, HEADER_BYTES, Reply, header};
use super::relay::Relay;
use super::request_buffer::RequestBuffer;
use super::session::Agreed;
use super::write_offset::WriteOffset;
use crate::fs::Forgotten;
use crate::opcode::Opcode;
use crate::volume::{Forgetting, Volume};

/// What answers requests, whichever thread has received them.
#[derive(Debug)]
pub(super) struct Front {
    pub(super) volume: Arc<Volume>,
    pub(super) relay: Relay,
    /// The descriptor that was mounted.
    pub(super) device: Arc<Device>,
    pub(super) write_offset: WriteOffset,
    /// Inodes whose descriptors are still to be closed.
    pub(super) forgotten: Mutex<Vec<Forgotten>>,
    pub(super) agreed: Arc<Agreed>,
}

impl Front {
    /// Takes the kernel's first request and leads it to whoever sits at the returned descriptor, before
    /// [`Front::answer_init`] brings the answer back.
    ///
    /// # Errors
    /// When the kernel's protocol is too old, or the mount is gone already.
    pub(super) fn begin(
        volume: Arc<Volume>, device: OwnedFd, agreed: Arc<Agreed>,
    ) -> io::Result<(Front, OwnedFd)> {
        let (relay, theirs) = Relay::new()?;
        let device = Device::new(device, volume.watch.clone());
        let (mut headers, mut buffer) = ([0; HEADER_BYTES], RequestBuffer::own());
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "unmounted while starting");
        let received = device.wait(&mut headers, buffer.parts())?;
        let (header, rest) = header(&headers, received.ok_or_else(gone)?)?;
        let rest = buffer.bytes(rest);
        let version = InitIn::read_from_prefix(&headers[size_of::<InHeader>()..]);
        match version {
            Ok((version, _)) if Opcode::of(header.opcode) == Opcode::Init => {
                if version.major != MAJOR || version.minor < MINOR_MIN {
                    Reply::new(&device, header.unique, None).error(nix::errno::Errno::EPROTO);
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
        relay.pass(&device, &header, &mut headers, rest, None)?;
        let (write_offset, forgotten) = (WriteOffset::default(), Mutex::default());
        Ok((Front { volume, relay, device, write_offset, forgotten, agreed }, theirs))
    }

    /// Brings the answer to the first request back to the kernel.
    pub(super) fn answer_init(&self) -> io::Result<()> {
        self.relay.carry_waiting(&self.device)?;
        Ok(())
    }

    /// What makes the kernel forget a node's pages and attributes.
    pub(super) fn invalidator(&self) -> Forgetting {
        let device = self.device.clone();
        Box::new(move |nodeid, what| {
            // Fails when the kernel does not know the node: then it has nothing to forget.
            let _ = device.invalidate(nodeid, what);
        })
    }
}
