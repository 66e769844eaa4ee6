//! Requests on open partitions: bytes, locks on them left to the kernel.

use std::cell::RefCell;
use std::sync::Arc;

use fuser::{PollEvents, PollNotifier, ReplyData, ReplyEmpty, ReplyLseek, ReplyPoll, ReplyWrite};

use super::attr::errno;
use crate::error::{Errno, Result};
use crate::volume::{RequestCounts, Volume};

thread_local! {
    /// Joins a read's runs when it has several: the reply takes one slice.
    static JOINED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn failed(volume: &Volume) {
    RequestCounts::count(&volume.requests.errors);
}

/// A closure that answers a request without a payload.
pub(super) fn empty(volume: &Arc<Volume>, reply: ReplyEmpty) -> Box<dyn FnOnce(Result<()>) + Send> {
    let volume = volume.clone();
    Box::new(move |result| match result {
        Ok(()) => reply.ok(),
        Err(error) => {
            failed(&volume);
            reply.error(errno(error));
        }
    })
}

pub(super) fn read(volume: &Arc<Volume>, handle: u64, offset: u64, size: u32, reply: ReplyData) {
    RequestCounts::count(&volume.requests.reads);
    let counts = volume.clone();
    let answer = Box::new(move |result: Result<&[&[u8]]>| match result {
        Ok([]) => reply.data(&[]),
        Ok([run]) => reply.data(run),
        Ok(runs) => JOINED.with_borrow_mut(|joined| {
            joined.clear();
            runs.iter().for_each(|run| joined.extend_from_slice(run));
            reply.data(joined);
        }),
        Err(error) => {
            failed(&counts);
            reply.error(errno(error));
        }
    });
    volume.engine.read(handle, offset, u64::from(size), answer);
}

pub(super) fn write(
    volume: &Arc<Volume>, handle: u64, offset: u64, data: &[u8], stable: bool, reply: ReplyWrite,
) {
    RequestCounts::count(&volume.requests.writes);
    let counts = volume.clone();
    let answer = Box::new(move |result: Result<usize>| match result {
        Ok(count) => reply.written(count as u32),
        Err(error) => {
            failed(&counts);
            reply.error(errno(error));
        }
    });
    volume.engine.write(handle, offset, data, stable, answer);
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
    volume: &Arc<Volume>, handle: u64, notifier: PollNotifier, events: PollEvents, notify: bool,
    reply: ReplyPoll,
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
    match volume.engine.poll_status(handle, wake) {
        Ok(true) => reply.poll((events & ALWAYS_READY) | PollEvents::POLLPRI),
        Ok(false) => reply.poll(events & ALWAYS_READY),
        Err(error) => reply.error(errno(error)),
    }
}
