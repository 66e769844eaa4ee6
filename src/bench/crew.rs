//! The benchmark's processes, seen from outside.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use super::cleanup::{Cleanup, Process};
use super::protocol::{Job, MARK, Message, Reply, Setup};
use super::round::Round;
use super::{BenchError, Result};
use crate::sys_process::reason;

/// One process and its pipes.
struct Worker {
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    process: Process,
    /// How its command is called in messages.
    name: &'static str,
    notes: Vec<String>,
}

/// Processes that do a round together.
pub(super) struct Crew(Vec<Worker>);

impl Crew {
    /// Starts a process for each setup. Blocks until all have their memory.
    pub(super) fn start(
        cleanup: &Cleanup, name: &'static str, setups: &[Setup], command: impl Fn() -> Command,
    ) -> Result<Self> {
        let mut crew = Self(Vec::with_capacity(setups.len()));
        for setup in setups {
            let mut worker = Worker::start(cleanup, name, command())?;
            worker.send(&Message::Setup(setup.clone()))?;
            crew.0.push(worker);
        }
        crew.0.iter_mut().try_for_each(Worker::expect_ready)?;
        Ok(crew)
    }

    /// What the processes had to say about the figures, each thing once.
    pub(super) fn notes(&self) -> BTreeSet<String> {
        self.0.iter().flat_map(|worker| worker.notes.iter().cloned()).collect()
    }

    /// Gives each process its job, lets all begin at once, and waits until the last is done.
    pub(super) fn round(&mut self, jobs: &[Job]) -> Result<Round> {
        assert_eq!(jobs.len(), self.0.len(), "a job for each process");
        for (worker, job) in self.0.iter_mut().zip(jobs) {
            worker.send(&Message::Job(job.clone()))?;
        }
        self.0.iter_mut().try_for_each(Worker::expect_ready)?;
        self.0.iter_mut().try_for_each(|worker| worker.send(&Message::Go))?;
        for worker in &mut self.0 {
            match worker.receive()? {
                Reply::Done => {}
                other => return Err(worker.unexpected(&other)),
            }
        }
        self.0.iter_mut().try_for_each(|worker| worker.send(&Message::Release))?;
        let mut round = Round::default();
        for worker in &mut self.0 {
            match worker.receive()? {
                Reply::Finished { task, e2e } => round.add(task, e2e),
                other => return Err(worker.unexpected(&other)),
            }
        }
        round.bytes = jobs.iter().map(|job| job.each * job.files.len() as u64).sum();
        Ok(round)
    }
}

impl Worker {
    fn start(cleanup: &Cleanup, name: &'static str, mut command: Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = cleanup.process(&mut command).map_err(|error| {
            let program = command.get_program().to_string_lossy().into_owned();
            BenchError::Failed(format!("{name}: cannot start {program}: {}", reason(&error)))
        })?;
        let pipes = (process.child.stdin.take(), process.child.stdout.take());
        let (Some(input), Some(output)) = pipes else {
            return Err(BenchError::Failed(format!("{name}: a process without pipes")));
        };
        Ok(Self { input, output: BufReader::new(output), process, name, notes: Vec::new() })
    }

    fn send(&mut self, message: &Message) -> Result<()> {
        let text = serde_json::to_string(message)
            .map_err(|error| BenchError::Failed(format!("{}: {error}", self.name)))?;
        // A process that has gone says why on its way out, or by its status: see `receive`.
        let _ = writeln!(self.input, "{text}").and_then(|()| self.input.flush());
        Ok(())
    }

    fn receive(&mut self) -> Result<Reply> {
        loop {
            let mut line = String::new();
            let count = self.output.read_line(&mut line).map_err(|error| {
                BenchError::Failed(format!("{}: its output: {}", self.name, reason(&error)))
            })?;
            if count == 0 {
                let status = match self.process.wait() {
                    Ok(status) => status.to_string(),
                    Err(error) => reason(&error),
                };
                let name = self.name;
                return Err(BenchError::Failed(format!("{name}: a process ended early: {status}")));
            }
            let Some(text) = line.strip_prefix(MARK) else {
                log::debug!("{}: {}", self.name, line.trim_end());
                continue;
            };
            return match serde_json::from_str(text) {
                Ok(Reply::Note(line)) => {
                    self.notes.push(line);
                    continue;
                }
                Ok(Reply::Failed(line)) => Err(BenchError::Failed(line)),
                Ok(reply) => Ok(reply),
                Err(error) => Err(BenchError::Failed(format!("{}: {error}", self.name))),
            };
        }
    }

    fn expect_ready(&mut self) -> Result<()> {
        match self.receive()? {
            Reply::Ready => Ok(()),
            other => Err(self.unexpected(&other)),
        }
    }

    fn unexpected(&self, reply: &Reply) -> BenchError {
        BenchError::Failed(format!("{}: not expected: {reply:?}", self.name))
    }
}
