//! How a starting daemon reaches the user: on standard error in the foreground, else through a pipe to
//! the process that the user started, which waits for the word that the mount answers.

use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};

use nix::sys::signal::Signal;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::paths::plain_text;
use crate::streams::tell;

/// First letters of the pipe's lines.
const NOTE: char = 'N';
const FAILED: char = 'E';
const READY: char = 'R';

/// The daemon's side.
#[derive(Debug)]
pub(super) enum Reporter {
    /// In the foreground.
    Terminal,
    /// In the background, until the mount answers.
    Parent(PipeWriter),
    /// In the background; nobody listens any more but the log.
    Log,
}

impl Reporter {
    /// For a child process. Its standard input and output are let go at once, so that nobody waits for
    /// their end; standard error stays the user's until the mount answers.
    pub(super) fn to_parent(writer: PipeWriter) -> Self {
        if let Some(null) = open_null() {
            let _ = nix::unistd::dup2_stdin(&null);
            let _ = nix::unistd::dup2_stdout(&null);
        }
        Self::Parent(writer)
    }

    pub(super) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal)
    }

    /// A line for the user that is no error.
    pub(super) fn note(&mut self, line: &str) {
        match self {
            Self::Terminal => tell!("{line}"),
            Self::Parent(writer) => send(writer, NOTE, line),
            Self::Log => log::info!("{line}"),
        }
    }

    /// The mount answers: a background daemon leaves the terminal's session.
    pub(super) fn ready(&mut self) {
        let Self::Parent(writer) = self else { return };
        let _ = nix::unistd::setsid();
        if let Some(null) = open_null() {
            let _ = nix::unistd::dup2_stderr(&null);
        }
        super::logger::started();
        send(writer, READY, "");
        *self = Self::Log;
    }

    /// The last line of a daemon that failed. In the foreground the caller prints it.
    pub(super) fn failed(&mut self, line: &str) {
        match self {
            Self::Terminal => {}
            Self::Parent(writer) => send(writer, FAILED, line),
            Self::Log => log::error!("{line}"),
        }
    }
}

fn open_null() -> Option<File> {
    File::options().read(true).write(true).open("/dev/null").ok()
}

/// Sends a line; when the parent is gone there is nobody to tell.
fn send(writer: &mut PipeWriter, kind: char, line: &str) {
    let _ = writeln!(writer, "{kind}{}", line.replace('\n', " "));
}

/// Why a daemon did not get as far as answering.
#[derive(Debug)]
pub(super) enum StartFailure {
    /// Its own line.
    Reported(String),
    /// It died without a word.
    Died(String),
}

impl fmt::Display for StartFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reported(line) => f.write_str(line),
            Self::Died(how) => write!(f, "the daemon died before the mount answered ({how})"),
        }
    }
}

/// The parent's side: returns when the mount answers or the daemon has failed.
pub(super) fn wait_until_ready(reader: PipeReader, child: Pid) -> Result<(), StartFailure> {
    for line in BufReader::new(reader).lines().map_while(Result::ok) {
        let mut letters = line.chars();
        match letters.next() {
            Some(READY) => return Ok(()),
            Some(FAILED) => {
                let _ = waitpid(child, None);
                return Err(StartFailure::Reported(letters.as_str().to_owned()));
            }
            _ => tell!("{}", plain_text(letters.as_str())),
        }
    }
    Err(StartFailure::Died(match waitpid(child, None) {
        Ok(WaitStatus::Exited(_, status)) => format!("exit status {status}"),
        Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)) => {
            "killed by SIGKILL; if that was for want of memory (dmesg | tail), give the pool less: -o pool_size=SIZE".to_owned()
        }
        Ok(WaitStatus::Signaled(_, signal, _)) => format!("killed by {signal}"),
        other => format!("{other:?}"),
    }))
}
