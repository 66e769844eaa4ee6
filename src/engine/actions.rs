//! What a step under the engine's lock leaves to be done after the lock is released.

use std::sync::Arc;

use super::core::Engine;
use super::locked::assert_outside;
use super::op::{Op, ReadReply, Reply, WriteReply};
use super::stall::Stall;
use crate::aio::device::{Action, BackingFile, Transfer};
use crate::error::Result;
use crate::paths::plain;

/// Work that may block on metadata calls, done by a job thread.
pub(crate) type Job = Box<dyn FnOnce(&Arc<Engine>) + Send>;

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

/// Something for the log that is no failed transfer.
pub(crate) enum Note {
    /// Bytes from `offset` on that could not be written were given up.
    Dropped { file: Arc<dyn BackingFile>, offset: u64 },
    /// A file of `known` bytes now has `found`, although nobody changed it through the mount.
    Changed { file: Arc<dyn BackingFile>, known: u64, found: u64 },
}

impl Note {
    fn log(&self) {
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
    fn log(&self) {
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

/// The backing file's path for messages. Asks the kernel.
pub(crate) fn label(file: &dyn BackingFile) -> String {
    assert_outside("naming a file");
    file.descriptor()
        .and_then(|fd| std::fs::read_link(format!("/proc/self/fd/{fd}")).ok())
        .map_or_else(|| format!("partition #{}", file.id()), |path| plain(&path))
}

impl Answer {
    fn send(self) {
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

    /// Does everything that was left. The lock is not held.
    pub(crate) fn run(mut self, engine: &Engine) {
        assert_outside("submitting and answering");
        if !self.transfers.is_empty() {
            engine.device().submit(&mut self.transfers);
        }
        for failure in self.failures {
            failure.log();
        }
        for note in self.notes {
            note.log();
        }
        for stall in self.stalls {
            stall.log();
        }
        for answer in self.answers {
            answer.send();
        }
        for op in self.ready {
            engine.dispatch(op);
        }
        for job in self.jobs {
            engine.queue_job(job);
        }
    }
}
