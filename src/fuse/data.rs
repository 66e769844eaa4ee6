//! Requests on open partitions, but for those that the front answers itself.

use std::sync::Arc;

use fuser::{PollEvents, PollNotifier, ReplyEmpty, ReplyLseek, ReplyPoll};

use super::attr::errno;
use crate::error::{Errno, Result};
use crate::shares::User;
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
            (Ok(offset), libc::SEEK_DATA) => volume.engine.seek(handle, offset, false),
            (Ok(offset), libc::SEEK_HOLE) => volume.engine.seek(handle, offset, true),
            (Err(_), libc::SEEK_DATA | libc::SEEK_HOLE) => Err(Errno::ENXIO),
            _ => Err(Errno::EINVAL),
        };
        match found {
            Ok(offset) => reply.offset(offset as i64),
            Err(error) => reply.error(errno(error)),
        }
    }));
}

/// What a regular file always is.
pub(super) const ALWAYS_READY: PollEvents = PollEvents::POLLIN
    .union(PollEvents::POLLOUT)
    .union(PollEvents::POLLRDNORM)
    .union(PollEvents::POLLWRNORM);

/// POLLPRI tells that the partition's status has changed since the handle was told last.
pub(super) fn poll(
    volume: &Arc<Volume>, user: User, handle: u64, notifier: PollNotifier, events: PollEvents,
    notify: bool, reply: ReplyPoll,
) {
    if !events.contains(PollEvents::POLLPRI) {
        // Is not told, and stays to be told.
        return reply.poll(events & ALWAYS_READY);
    }
    let wake = notify.then(|| {
        Box::new(move |_| {
            // Fails when nobody polls any more.
            let _ = notifier.notify();
        }) as crate::swap::Reply
    });
    match volume.engine.poll_status(user, handle, wake) {
        Ok(true) => reply.poll((events & ALWAYS_READY) | PollEvents::POLLPRI),
        Ok(false) => reply.poll(events & ALWAYS_READY),
        Err(error) => reply.error(errno(error)),
    }
}
