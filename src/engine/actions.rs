//! What a step under the engine's lock leaves to be done after the lock is released.

use std::sync::Arc;

use super::op::{Op, ReadReply, Reply, WriteReply};
use super::report::{Failure, Note, Stall};
use crate::aio::device::{Action, BackingFile, Transfer};
use crate::error::Result;

/// Work that may block on metadata calls, done by a job thread.
pub(crate) type Job = Box<dyn FnOnce() + Send>;

/// An answer to send.
pub(crate) enum Answer {
    Empty(Reply, Result<()>),
    Read(ReadReply, crate::error::Errno),
    Nothing(ReadReply),
    Write(WriteReply, Result<usize>),
}

#[derive(Default)]
pub(crate) struct Actions {
    pub(crate) transfers: Vec<Transfer>,
    /// Whether `transfers` are a small read's, which may be left to who asked for it.
    pub(crate) prompt: bool,
    pub(crate) ready: Vec<Op>,
    pub(crate) jobs: Vec<Job>,
    pub(crate) answers: Vec<Answer>,
    /// Closed by being dropped.
    pub(crate) files: Vec<Arc<dyn BackingFile>>,
    /// Log lines of failures.
    pub(crate) failures: Vec<Failure>,
    /// Other log lines.
    pub(crate) notes: Vec<Note>,
    pub(crate) stalls: Vec<Stall>,
}

impl Answer {
    pub(super) fn send(self) {
        match self {
            Answer::Empty(reply, result) => reply(result),
            Answer::Read(reply, errno) => reply(Err(errno)),
            Answer::Nothing(reply) => reply(Ok(&[])),
            Answer::Write(reply, result) => reply(result),
        }
    }
}

impl Actions {
    pub(crate) fn answer(&mut self, reply: Option<Reply>, result: Result<()>) {
        if let Some(reply) = reply {
            self.answers.push(Answer::Empty(reply, result));
        }
    }

    /// Moves the transfers of a small read to `batch`, whose owner sees to them.
    pub(crate) fn leave_to(&mut self, batch: &mut Vec<Transfer>) {
        let is_read = |transfer: &Transfer| matches!(transfer.action, Action::Read(_));
        // Making room may have started others.
        if self.prompt && self.transfers.iter().all(is_read) {
            batch.append(&mut self.transfers);
        }
    }
}
