//! Open partitions: OPEN, READ, WRITE, FSYNC, FLUSH, RELEASE.

use super::abi::{
    FSYNC_FDATASYNC, HandleIn, InHeader, OpenIn, OpenOut, ReadIn, WRITE_CACHE, WRITE_KILL_SUIDGID,
    WriteIn, WriteOut, decode,
};
use super::front::Front;
use super::reply::Reply;
use super::request_buffer::RequestBuffer;
use super::session;
use crate::aio::device::Transfer;
use crate::engine::{Caller, HandleId, Manner, PAGE_SIZE};
use crate::error::{Errno, Result};

impl Front {
    pub(super) fn open(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        let opened = decode::<OpenIn>(arguments).and_then(|(open, _)| {
            let mode = open.flags as i32 & libc::O_ACCMODE;
            let (read, write) = (mode != libc::O_WRONLY, mode != libc::O_RDONLY);
            Ok((self.volume.open(header.user(), header.nodeid, read, write)?, open.flags))
        });
        match opened {
            Ok((handle, flags)) => {
                let open_flags = session::open_flags(flags as i32).bits();
                if !reply.result(Ok(OpenOut { fh: handle.0, open_flags, backing_id: 0 })) {
                    self.volume.engine.release(handle);
                }
            }
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn read(&self, arguments: &[u8], batch: Option<&mut Vec<Transfer>>, reply: Reply) {
        let read = match decode::<ReadIn>(arguments) {
            // A read of more than was negotiated would need more buffers than there are for it.
            Ok((read, _)) if read.size <= session::REQUEST_BYTES_MAX => read,
            Ok(_) => return reply.error(Errno::EINVAL),
            Err(errno) => return reply.error(errno),
        };
        let answer = Box::new(move |result: Result<&[&[u8]]>| match result {
            Ok(runs) => reply.bytes(runs),
            Err(errno) => reply.error(errno),
        });
        let (engine, fh, length) = (&self.volume.engine, HandleId(read.fh), u64::from(read.size));
        match batch {
            Some(batch) => engine.read_inline(fh, read.offset, length, batch, answer),
            None => engine.read(fh, read.offset, length, answer),
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
        // The kernel writes a mapping's pages back in no write call, so O_SYNC says nothing of them: msync(2) does.
        let cached = write.write_flags & WRITE_CACHE != 0;
        let stable = !cached && write.flags as i32 & (libc::O_SYNC | libc::O_DSYNC) != 0;
        let answer = Box::new(move |result: Result<usize>| {
            reply.result(result.map(|count| WriteOut { size: count as u32, padding: 0 }));
        });
        let (engine, fh, offset) = (&self.volume.engine, HandleId(write.fh), write.offset);
        let parallel = write.flags as i32 & libc::O_DIRECT != 0;
        let is_cut = length > session::REQUEST_BYTES_MAX as usize - PAGE_SIZE as usize;
        let caller = (!cached).then_some(Caller { thread: header.pid, parallel, is_cut });
        let manner = Manner { stable, caller };
        self.write_offset_guess.learn(offset, length);
        if let RequestBuffer::Intake(intake) = buffer {
            let next = engine.write_from(fh, offset, intake, length, manner, answer);
            return RequestBuffer::Intake(next);
        }
        engine.write_as(fh, offset, buffer.bytes(length), manner, answer);
        buffer
    }

    pub(super) fn fsync(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        match decode::<HandleIn>(arguments) {
            Ok((handle, _)) => {
                let data_only = handle.flags & FSYNC_FDATASYNC != 0;
                self.volume.engine.went_on(HandleId(handle.fh), header.pid);
                self.volume.engine.sync(HandleId(handle.fh), data_only, reply.when_done());
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// Answers FLUSH, which the kernel sends for each close(2) of a handle.
    pub(super) fn flush(&self, header: &InHeader, arguments: &[u8], reply: Reply) {
        match decode::<HandleIn>(arguments) {
            Ok((handle, _)) => {
                let wait = self.volume.close_wait();
                self.volume.engine.went_on(HandleId(handle.fh), header.pid);
                self.volume.engine.close(HandleId(handle.fh), wait, reply.when_done());
            }
            Err(errno) => reply.error(errno),
        }
    }

    pub(super) fn release(&self, arguments: &[u8], reply: Reply) {
        reply.done(
            decode::<HandleIn>(arguments)
                .map(|(handle, _)| self.volume.engine.release(HandleId(handle.fh))),
        );
    }
}
