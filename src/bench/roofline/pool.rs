//! The pool alone: the swap engine as a mount starts it, over a device and a file that hold nothing.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, unbounded};
use parking_lot::Mutex;

use crate::aio::null::NullFile;
use crate::aio::probe::Probe;
use crate::bench::case::Access;
use crate::bench::mounted::mount_options;
use crate::bench::round::Round;
use crate::bench::settings::Settings;
use crate::bench::{BenchError, Result};
use crate::config;
use crate::engine::HandleId;
use crate::engine::{Engine, FileKey, Request};
use crate::error::Errno;
use crate::noise::fill;
use crate::service::{open_null, start_engine};

/// The largest request that FUSE makes; larger calls come in pieces of it.
const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// The one partition.
const KEY: FileKey = FileKey { dev: 1, ino: 1, generation: 0 };

type Done = std::result::Result<(), Errno>;

/// An engine with one partition, and a client's memory.
pub(super) struct Pool {
    engine: Arc<Engine>,
    handle: HandleId,
    memory: Arc<Mutex<Vec<u8>>>,
    answers: (Sender<Done>, Receiver<Done>),
    bytes: u64,
    request: u64,
}

fn failed(what: impl std::fmt::Display) -> BenchError {
    BenchError::Failed(format!("the pool alone: {what}"))
}

impl Pool {
    pub(super) fn new(settings: &Settings) -> Result<Self> {
        let mut chosen = config::Settings::new();
        for list in mount_options(settings) {
            chosen.mount_options(&list, false).map_err(failed)?;
        }
        let config = chosen.build().map_err(failed)?;
        let probe =
            Probe { direct: true, memory_alignment: 4096, offset_alignment: 4096, stated: false };
        let engine = start_engine(&config, &probe, |config, arena, probe| {
            open_null(config, arena, probe, &[])
        })
        .map_err(failed)?;
        let opened = engine.open(KEY, true, true, || Ok(Arc::new(NullFile::new(settings.io_size))));
        let handle = opened.map_err(|errno| failed(errno.desc()))?;
        let request = settings.block_size.min(REQUEST_BYTES_MAX);
        let mut memory = vec![0; usize::try_from(request).unwrap_or(0)];
        fill(&mut memory, 1);
        let memory = Arc::new(Mutex::new(memory));
        Ok(Self { engine, handle, memory, answers: unbounded(), bytes: settings.io_size, request })
    }

    /// Moves the partition's bytes once, a request after the other, as one client does.
    pub(super) fn round(&mut self, access: Access, sync: bool) -> Result<Round> {
        self.release()?;
        let started = Instant::now();
        let mut offset = 0;
        while offset < self.bytes {
            let length = self.request.min(self.bytes - offset);
            match access {
                Access::Write => self.write(offset, length)?,
                Access::Read | Access::Mixed => self.read(offset, length)?,
            }
            offset += length;
        }
        if sync && access == Access::Write {
            self.engine.sync(self.handle, true, self.reply());
            self.wait()?;
        }
        Ok(Round::single(started.elapsed().as_secs_f64(), self.bytes))
    }

    /// Nothing of the partition is resident.
    fn release(&self) -> Result<()> {
        self.engine.sync(self.handle, false, self.reply());
        self.wait()?;
        self.engine.request(KEY, Request::Release);
        while self.engine.info(KEY).is_some_and(|info| info.inflight > 0 || info.resident > 0) {
            std::thread::yield_now();
        }
        Ok(())
    }

    fn reply(&self) -> crate::engine::Reply {
        let sender = self.answers.0.clone();
        Box::new(move |result| {
            let _ = sender.send(result);
        })
    }

    fn wait(&self) -> Result<()> {
        let answer = self.answers.1.recv().map_err(failed)?;
        answer.map_err(|errno| failed(errno.desc()))
    }

    fn write(&self, offset: u64, length: u64) -> Result<()> {
        let sender = self.answers.0.clone();
        let reply = Box::new(move |result: crate::error::Result<usize>| {
            let _ = sender.send(result.map(drop));
        });
        let memory = self.memory.lock();
        let bytes = &memory[..usize::try_from(length).unwrap_or(0)];
        self.engine.write(self.handle, offset, bytes, false, reply);
        drop(memory);
        self.wait()
    }

    fn read(&self, offset: u64, length: u64) -> Result<()> {
        let (sender, memory) = (self.answers.0.clone(), Arc::clone(&self.memory));
        let reply = Box::new(move |result: crate::error::Result<&[&[u8]]>| {
            let copied = result.map(|runs| {
                // The client gets a copy, as through FUSE.
                let mut memory = memory.lock();
                let mut at = 0;
                for run in runs {
                    memory[at..at + run.len()].copy_from_slice(run);
                    at += run.len();
                }
            });
            let _ = sender.send(copied);
        });
        self.engine.read(self.handle, offset, length, reply);
        self.wait()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.engine.release(self.handle);
        self.engine.stop();
    }
}
