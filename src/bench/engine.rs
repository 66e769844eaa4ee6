//! The engines that run inside the benchmark's processes.

mod asynchronous;
mod plain;

use std::collections::VecDeque;
use std::fs::File;

use super::case::{Access, Order};
use super::protocol::{Job, Setup};
use super::settings::Engine;
use crate::deepspeed::{Handle, HandleOptions, LockedTensor};
use crate::noise::Noise;
use crate::sys_process::reason;

type Result<T> = std::result::Result<T, String>;

/// All engines of one process, over one memory; the handle is made when it is first needed.
pub(super) struct Engines {
    options: HandleOptions,
    handle: Option<Handle>,
}

impl Engines {
    pub(super) fn new(setup: &Setup) -> Self {
        let options = HandleOptions {
            block_size: usize::try_from(setup.block_size).unwrap_or(usize::MAX),
            queue_depth: setup.queue_depth,
            single_submit: setup.single_submit,
            overlap_events: setup.overlap_events,
            intra_op_parallelism: setup.io_parallel,
        };
        Self { options, handle: None }
    }

    /// What is not to be timed. Says, once, why the handle works without `io_uring`, if it does.
    pub(super) fn prepare(&mut self, job: &Job) -> Result<Option<String>> {
        if !job.engine.is_direct() || self.handle.is_some() {
            return Ok(None);
        }
        let new = Handle::new(self.options)
            .map_err(|error| format!("the aio handle: {}", reason(&error)))?;
        let refusal = new.engine_refusal().map(str::to_owned);
        self.handle = Some(new);
        Ok(refusal)
    }

    /// Moves the bytes of one round; the memory comes back.
    pub(super) fn run(&self, job: &Job, memory: LockedTensor) -> Result<LockedTensor> {
        let block = self.options.block_size;
        let memory = match (job.engine, &self.handle) {
            (Engine::Handle, Some(handle)) => asynchronous::many_at_once(handle, job, memory)?,
            (Engine::Basic, Some(handle)) => asynchronous::one_by_one(handle, job, memory)?,
            (Engine::Mount | Engine::Posix, _) => plain::run(job, memory, block)?,
            (other, _) => return Err(format!("the engine {} has no process", other.name())),
        };
        if job.sync && job.access != Access::Read {
            for path in &job.files {
                let failed = |error| format!("fsync of {}: {}", path.display(), reason(&error));
                File::open(path).and_then(|file| file.sync_data()).map_err(failed)?;
            }
        }
        Ok(memory)
    }
}

/// A block of a job's only file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Block {
    start: usize,
    end: usize,
    write: bool,
}

/// The blocks of one file in the job's order, with what is done to each.
fn blocks(job: &Job, length: usize, block: usize) -> VecDeque<Block> {
    let mut noise = Noise::new(job.seed);
    let mut next = move || noise.number() >> 11;
    let mut list: Vec<Block> = (0..length.div_ceil(block))
        .map(|index| Block {
            start: index * block,
            end: length.min((index + 1) * block),
            write: match job.access {
                Access::Read => false,
                Access::Write => true,
                Access::Mixed => next() % 2 == 0,
            },
        })
        .collect();
    if job.order == Order::Random {
        for last in (1..list.len()).rev() {
            let other = (next() % (last as u64 + 1)) as usize;
            list.swap(last, other);
        }
    }
    list.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffled_blocks_are_each_there_once() {
        let mut job = Job {
            engine: Engine::Handle,
            files: vec!["file".into()],
            each: 10_000,
            access: Access::Mixed,
            order: Order::Random,
            seed: 3,
            sync: false,
            validate: false,
        };
        let shuffled = blocks(&job, 10_000, 64);
        assert!(shuffled.iter().any(|block| block.write) && shuffled.iter().any(|b| !b.write));
        let mut sorted = Vec::from(shuffled.clone());
        sorted.sort_by_key(|block| block.start);
        assert_ne!(Vec::from(shuffled), sorted);
        job.order = Order::Sequential;
        let plain = Vec::from(blocks(&job, 10_000, 64));
        assert_eq!(plain.len(), 157);
        assert_eq!((plain[156].start, plain[156].end), (9984, 10_000));
        assert!(sorted.iter().zip(&plain).all(|(a, b)| (a.start, a.end) == (b.start, b.end)));
    }
}
