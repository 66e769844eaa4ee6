//! The requests that the front answers itself: decode, call the volume, reply.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zerocopy::FromBytes;

use super::abi::{
    BatchForgetIn, FSYNC_FDATASYNC, ForgetIn, ForgetOne, GetXattrIn, GetXattrOut, HandleIn,
    InHeader, OpenIn, OpenOut, ReadIn, WRITE_CACHE, WRITE_KILL_SUIDGID, WriteIn, WriteOut,
};
use super::device::Reply;
use super::front::Front;
use super::kernel_attr;
use super::request_buffer::RequestBuffer;
use super::session;
use crate::aio::device::Transfer;
use crate::engine::{Caller, Manner, PAGE_SIZE};
use crate::error::{Errno, Result};
use crate::opcode::Opcode;
use crate::volume::XattrAnswer;

/// Inodes that may wait to be closed.
const FORGOTTEN_MAX: usize = 64;

/// The structure a request begins with.
pub(super) fn decode<T: FromBytes>(arguments: &[u8]) -> Result<(T, &[u8])> {
    T::read_from_prefix(arguments).map_err(|_| Errno::EINVAL)
}

/// A name, which ends with a NUL.
pub(super) fn name(bytes: &[u8]) -> Result<&OsStr> {
    match bytes.strip_suffix(&[0]) {
        Some(name) if !name.is_empty() && !name.contains(&0) => Ok(OsStr::from_bytes(name)),
        _ => Err(Errno::EINVAL),
    }
}

impl Front {
    /// Answers a request that [`Opcode::route`] leads here, other than WRITE. `reply` makes the right to answer it, for those
    /// that get an answer. What a small read has to have transferred is left in `batch`, where there is one.
    pub(super) fn answer(
        &self, header: &InHeader, arguments: &[u8], batch: Option<&mut Vec<Transfer>>,
        reply: &dyn Fn() -> Reply,
    ) {
        let (id, opcode) = (header.nodeid, Opcode::of(header.opcode));
        if matches!(opcode, Opcode::Forget | Opcode::BatchForget) {
            self.forget(opcode, id, arguments);
            if self.forgotten.lock().len() > FORGOTTEN_MAX {
                self.close_forgotten();
            }
            return;
        }
        let reply = reply();
        match opcode {
            Opcode::Lookup => self.lookup(id, arguments, reply),
            Opcode::GetAttr => match self.volume.attributes(id) {
                Ok(attributes) => {
                    reply.value(&kernel_attr::attributes(&attributes));
                }
                Err(errno) => reply.error(errno),
            },
            Opcode::Statx => match self.volume.attributes(id) {
                Ok(attributes) => {
                    reply.value(&kernel_attr::statx(&attributes));
                }
                Err(errno) => reply.error(errno),
            },
            Opcode::SetAttr => self.set_attributes(header, arguments, reply),
            Opcode::TmpFile => self.create_unnamed(header, arguments, reply),
            Opcode::SetXattr => self.set_xattr(header, arguments, reply),
            Opcode::Create => self.create(header, arguments, reply),
            Opcode::Unlink => self.unlink(header, arguments, reply),
            Opcode::Open => self.open(header, arguments, reply),
            Opcode::Read => self.read(arguments, batch, reply),
            Opcode::Release => match decode::<HandleIn>(arguments) {
                Ok((handle, _)) => {
                    self.volume.engine.release(handle.fh);
                    reply.empty();
                }
                Err(errno) => reply.error(errno),
            },
            Opcode::Fsync => match decode::<HandleIn>(arguments) {
                Ok((handle, _)) => {
                    let data_only = handle.flags & FSYNC_FDATASYNC != 0;
                    self.volume.engine.went_on(handle.fh, header.pid);
                    self.volume.engine.sync(handle.fh, data_only, Self::empty(reply));
                }
                Err(errno) => reply.error(errno),
            },
            Opcode::Flush => match decode::<HandleIn>(arguments) {
                Ok((handle, _)) => {
                    let wait = self.volume.close_wait();
                    self.volume.engine.went_on(handle.fh, header.pid);
                    self.volume.engine.close(handle.fh, wait, Self::empty(reply));
                }
                Err(errno) => reply.error(errno),
            },
            Opcode::GetXattr => self.get_xattr(header, arguments, reply),
            // The session itself ends when the device does.
            Opcode::Destroy => reply.empty(),
            _ => reply.error(Errno::ENOSYS),
        }
    }

    /// Closes forgotten inodes: while no request is there, so that none waits for it.
    pub(super) fn close_forgotten(&self) {
        let forgotten = std::mem::take(&mut *self.forgotten.lock());
        drop(forgotten);
    }

    fn forget(&self, opcode: Opcode, id: u64, arguments: &[u8]) {
        let forget = |id, lookups| {
            let forgotten = self.volume.forget(id, lookups);
            self.forgotten.lock().extend(forgotten);
        };
        if opcode == Opcode::Forget {
            if let Ok((node, _)) = decode::<ForgetIn>(arguments) {
                forget(id, node.lookups);
            }
            return;
        }
        let Ok((batch, mut rest)) = decode::<BatchForgetIn>(arguments) else {
            return;
        };
        for _ in 0..batch.count {
            let Ok((node, others)) = decode::<ForgetOne>(rest) else {
                return;
            };
            forget(node.nodeid, node.lookups);
            rest = others;
        }
    }

    /// A closure that answers a request without a payload.
    pub(super) fn empty(reply: Reply) -> crate::engine::Reply {
        Box::new(move |result| match result {
            Ok(()) => reply.empty(),
            Err(errno) => reply.error(errno),
        })
    }

    fn lookup(&self, parent: u64, arguments: &[u8], reply: Reply) {
        match name(arguments).and_then(|name| self.volume.lookup(parent, name)) {
            Ok(entry) => {
                if !reply.value(&kernel_attr::entry(&entry)) {
                    // The kernel has not counted this lookup and will not forget it.
                    self.volume.forget(entry.id, 1);
                }
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let opened = decode::<OpenIn>(arguments).and_then(|(open, _)| {
            let mode = open.flags as i32 & libc::O_ACCMODE;
            let (read, write) = (mode != libc::O_WRONLY, mode != libc::O_RDONLY);
            Ok((self.volume.open(header.user(), header.nodeid, read, write)?, open.flags))
        });
        match opened {
            Ok((handle, flags)) => {
                let open_flags = session::open_flags(flags as i32).bits();
                if !reply.value(&OpenOut { fh: handle, open_flags, backing_id: 0 }) {
                    self.volume.engine.release(handle);
                }
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn read(&self, arguments: &[u8], batch: Option<&mut Vec<Transfer>>, reply: Reply) {
        let read = match decode::<ReadIn>(arguments) {
            // More than was negotiated would need more buffers than there may be.
            Ok((read, _)) if read.size <= session::REQUEST_BYTES_MAX => read,
            Ok(_) => return reply.error(Errno::EINVAL),
            Err(errno) => return reply.error(errno),
        };
        let answer = Box::new(move |result: Result<&[&[u8]]>| match result {
            Ok(runs) => reply.bytes(runs),
            Err(errno) => reply.error(errno),
        });
        let (engine, length) = (&self.volume.engine, u64::from(read.size));
        match batch {
            Some(batch) => engine.read_prompt(read.fh, read.offset, length, batch, answer),
            None => engine.read(read.fh, read.offset, length, answer),
        }
    }

    /// Answers a WRITE of the first `length` bytes in `buffer`. Returns the buffer for the next request.
    pub(super) fn write(
        &self, header: &InHeader, arguments: &[u8], mut buffer: RequestBuffer, length: usize,
        reply: Reply,
    ) -> RequestBuffer {
        let write = match decode::<WriteIn>(arguments) {
            Ok((write, _)) if write.size as usize == length => write,
            _ => {
                reply.error(Errno::EINVAL);
                return buffer;
            }
        };
        if write.write_flags & WRITE_KILL_SUIDGID != 0
            && let Err(errno) = self.volume.drop_privileges(header.asker(), header.nodeid)
        {
            reply.error(errno);
            return buffer;
        }
        // Pages written back from a mapping are no write call: msync asks for stability itself.
        let cached = write.write_flags & WRITE_CACHE != 0;
        let stable = !cached && write.flags as i32 & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let answer = Box::new(move |result: Result<usize>| match result {
            Ok(count) => {
                reply.value(&WriteOut { size: count as u32, padding: 0 });
            }
            Err(errno) => reply.error(errno),
        });
        let (engine, fh, offset) = (&self.volume.engine, write.fh, write.offset);
        let parallel = write.flags as i32 & libc::O_DIRECT != 0;
        let is_cut = length > session::REQUEST_BYTES_MAX as usize - PAGE_SIZE as usize;
        let caller = (!cached).then_some(Caller { thread: header.pid, parallel, is_cut });
        let manner = Manner { stable, caller };
        self.write_offset.learn(offset, length);
        if let RequestBuffer::Intake(intake) = buffer {
            let next = engine.write_from(fh, offset, intake, length, manner, answer);
            return RequestBuffer::Intake(next);
        }
        engine.write_as(fh, offset, buffer.bytes(length), manner, answer);
        buffer
    }

    fn get_xattr(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let id = header.nodeid;
        let asked = decode::<GetXattrIn>(arguments)
            .and_then(|(asked, rest)| Ok((asked.size, name(rest)?)))
            .and_then(|(size, name)| Ok((size, self.volume.xattr(id, name, size == 0)?)));
        match asked {
            Ok((size, XattrAnswer::Value(value))) => answer_xattr(&value, size, reply),
            Ok((size, XattrAnswer::Wait)) => self.volume.wait(
                header.user(),
                id,
                Box::new(move |result| match result {
                    Ok(value) => answer_xattr(&value, size, reply),
                    Err(errno) => reply.error(errno),
                }),
            ),
            Err(errno) => reply.error(errno),
        }
    }
}

/// Answers with a value, its length (`size` 0), or ERANGE.
fn answer_xattr(value: &[u8], size: u32, reply: Reply) {
    if size == 0 {
        reply.value(&GetXattrOut { size: value.len() as u32, padding: 0 });
    } else if value.len() > size as usize {
        reply.error(Errno::ERANGE);
    } else {
        reply.bytes(&[value]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_with_one_nul() {
        assert_eq!(name(b"a\0"), Ok(OsStr::new("a")));
        for bad in [&b""[..], b"\0", b"a", b"a\0b\0", b"a\0\0"] {
            assert_eq!(name(bad), Err(Errno::EINVAL), "{bad:?}");
        }
    }

    #[test]
    fn short_structures_are_refused() {
        assert!(decode::<ReadIn>(&[0; 39]).is_err());
        let (read, rest) = decode::<ReadIn>(&[1; 41]).unwrap();
        assert_eq!((read.size, rest), (0x0101_0101, &[1][..]));
    }
}
