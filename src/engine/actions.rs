//! What a step under the engine's lock leaves to be done after the lock is released.
//!
//! Lines for the log: made under the lock, written after it is free.

use crate::aio::device::{Action, BackingFile, Transfer};
use crate::error::Result;
use crate::paths::plain;
use std::sync::Arc;
use std::time::Duration;

use super::lock::assert_outside;
use super::op::{Op, ReadReply, Reply, WriteReply};

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
    pub(crate) inline: bool,
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
        if self.inline && self.transfers.iter().all(is_read) {
            batch.append(&mut self.transfers);
        }
    }
}

/// Something for the log that is no failed transfer.
pub(crate) enum Note {
    /// Bytes from `offset` on that could not be written were given up.
    Dropped { file: Arc<dyn BackingFile>, offset: u64 },
    /// A file of `known` bytes now has `found`, although nobody changed it through the mount.
    Changed { file: Arc<dyn BackingFile>, known: u64, found: u64 },
}

impl Note {
    pub(super) fn log(&self) {
        match self {
            Note::Dropped { file, offset } => {
                let name = label(&**file);
                log::error!(
                    partition = name.as_str();
                    "bytes of {name} at {offset} that could not be written were dropped: the pool has no other room"
                );
            }
            Note::Changed { file, known, found } => {
                let name = label(&**file);
                log::warn!(
                    partition = name.as_str();
                    "{name} was changed beneath the mount: {known} bytes became {found}"
                );
            }
        }
    }
}

/// A failed transfer, for its log line.
pub(crate) struct Failure {
    pub(crate) operation: &'static str,
    pub(crate) file: Arc<dyn BackingFile>,
    pub(crate) offset: u64,
    pub(crate) length: u64,
    pub(crate) errno: crate::error::Errno,
}

impl Failure {
    pub(super) fn log(&self) {
        let name = label(&*self.file);
        log::error!(
            partition = name.as_str();
            "{} of {name} failed: offset {}, length {}: {:?} ({})",
            self.operation,
            self.offset,
            self.length,
            self.errno,
            self.errno.desc()
        );
    }
}

/// A change to be told in the log.
pub(crate) struct Stall {
    pub(super) file: Arc<dyn BackingFile>,
    pub(super) waited: Duration,
    pub(super) ended: bool,
}

impl Stall {
    pub(crate) fn log(&self) {
        let (name, s) = (label(&*self.file), self.waited.as_secs());
        match self.ended {
            false => {
                log::error!(partition = name.as_str(); "{name}: the device has not answered for {s} s, still waiting");
            }
            true => {
                log::warn!(partition = name.as_str(); "{name}: the device answers again, after {s} s");
            }
        }
    }
}

/// The backing file's path for messages. Asks the kernel.
pub(crate) fn label(file: &dyn BackingFile) -> String {
    assert_outside("naming a file");
    file.descriptor()
        .and_then(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok())
        .map_or_else(|| format!("partition #{}", file.id()), |path| plain(&path))
}
