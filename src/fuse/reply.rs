//! The answer to one request.

use std::sync::Arc;

use zerocopy::{Immutable, IntoBytes};

use super::attr::client_errno;
use super::channel::Channel;
use crate::error::{Errno, Result};
use crate::metrics::Ticket;

/// The right, and the duty, to answer one request. Dropped without an answer it answers EIO, so that no client waits for
/// ever.
#[derive(Debug)]
pub(super) struct Reply {
    /// `None` once it was sent.
    channel: Option<Arc<Channel>>,
    unique: u64,
    /// `None` for requests that nobody counts.
    ticket: Option<Ticket>,
}

impl Reply {
    pub(super) fn new(channel: &Arc<Channel>, unique: u64, ticket: Option<Ticket>) -> Reply {
        Reply { channel: Some(channel.clone()), unique, ticket }
    }

    /// Returns false when nobody waits for the answer any more: the session has been aborted.
    fn send(&mut self, error: i32, payload: &[&[u8]]) -> bool {
        let Some(channel) = self.channel.take() else {
            return false;
        };
        let ticket = self.ticket.take();
        ticket.iter().for_each(|ticket| channel.watch.answering(ticket, error));
        let sent = channel.send(self.unique, error, payload);
        if let Some(ticket) = ticket {
            channel.watch.answered(ticket, error, payload.iter().map(|part| part.len()).sum());
        }
        match sent {
            Ok(()) => true,
            Err(Errno::ENOENT | Errno::ENODEV) => false,
            Err(errno) => {
                log::error!("an answer of {} parts was refused: {errno}", payload.len());
                // After a refused message the request still waits; one that failed half way has ended it.
                let _ = channel.send(self.unique, -libc::EIO, &[]);
                false
            }
        }
    }

    pub(super) fn error(mut self, errno: Errno) {
        self.send(-(client_errno(errno) as i32), &[]);
    }

    /// Answers with success or an error.
    pub(super) fn done(mut self, result: Result<()>) {
        match result {
            Ok(()) => {
                self.send(0, &[]);
            }
            Err(errno) => self.error(errno),
        }
    }

    /// A closure that answers with success or an error.
    pub(super) fn when_done(self) -> crate::engine::Reply {
        Box::new(move |result| self.done(result))
    }

    /// Answers with a structure or an error; false when nobody has received the structure.
    pub(super) fn result(self, result: Result<impl IntoBytes + Immutable>) -> bool {
        match result {
            Ok(value) => self.values(&[value.as_bytes()]),
            Err(errno) => {
                self.error(errno);
                false
            }
        }
    }

    /// Answers with bytes, sent from where they are.
    pub(super) fn bytes(mut self, runs: &[&[u8]]) {
        self.send(0, runs);
    }

    /// Answers with structures, one after the other; false when nobody has received them.
    pub(super) fn values(mut self, values: &[&[u8]]) -> bool {
        self.send(0, values)
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        self.send(-libc::EIO, &[]);
    }
}
