//! Requests on open partitions, but for those that the front answers itself.

use std::sync::Arc;

use fuser::{ReplyEmpty, ReplyLseek};

use super::attr::errno;
use crate::engine::HandleId;
use crate::error::{Errno, Result};
use crate::volume::Volume;

/// A closure that answers a request without a payload.
pub(super) fn empty(reply: ReplyEmpty) -> Box<dyn FnOnce(Result<()>) + Send> {
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => reply.error(errno(error)),
    })
}

pub(super) fn lseek(
    volume: &Arc<Volume>, handle: u64, offset: i64, whence: i32, reply: ReplyLseek,
) {
    let (volume, engine) = (volume.clone(), volume.engine.clone());
    // Asks the backing file, which may wait for the filesystem's lock on it.
    engine.run_blocking(Box::new(move || {
        let found = match (u64::try_from(offset), whence) {
            (Ok(offset), libc::SEEK_DATA) => volume.engine.seek(HandleId(handle), offset, false),
            (Ok(offset), libc::SEEK_HOLE) => volume.engine.seek(HandleId(handle), offset, true),
            (Err(_), libc::SEEK_DATA | libc::SEEK_HOLE) => Err(Errno::ENXIO),
            _ => Err(Errno::EINVAL),
        };
        match found {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(errno(error)),
        }
    }));
}
