//! The aio handle: operations on whole files all at once, or on blocks as many as the depth allows.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;

use super::{Block, Result, blocks};
use crate::bench::case::{Access, Order};
use crate::bench::protocol::Job;
use crate::deepspeed::handle::{Operation, Refused};
use crate::deepspeed::{Handle, LockedTensor};
use crate::sys_process::reason;

/// Whole files: begun all together, then waited for, as DeepSpeed swaps partitions. Shuffled blocks: as
/// many under way as the handle's depth.
pub(super) fn many_at_once(
    handle: &Handle, job: &Job, memory: LockedTensor,
) -> Result<LockedTensor> {
    if job.order == Order::Random {
        return shuffled(handle, job, memory);
    }
    let each = bytes_each(job)?;
    let mut rest = memory;
    let mut under_way = Vec::with_capacity(job.files.len());
    for path in &job.files {
        let (part, tail) = rest.split_at(each);
        rest = tail;
        let operation = match job.access {
            Access::Read => handle.async_pread(part, path, 0),
            Access::Write | Access::Mixed => handle.async_pwrite(part, path, 0),
        };
        under_way.push(operation.map_err(refused)?);
    }
    let mut parts = Vec::with_capacity(under_way.len() + 1);
    for operation in under_way {
        parts.push(finish(operation)?);
    }
    parts.push(rest);
    handle.wait().map_err(|error| error.to_string())?;
    join(parts)
}

/// One blocking operation after the other: a whole file each, or a block of the shuffled ones.
pub(super) fn one_by_one(
    handle: &Handle, job: &Job, mut memory: LockedTensor,
) -> Result<LockedTensor> {
    let each = bytes_each(job)?;
    if job.order == Order::Random {
        let file = open(job)?;
        for Block { start, end, write } in blocks(job, each, handle.get_block_size()) {
            let (part, offset) = (memory.narrow(start..end), start as u64);
            let moved = match write {
                true => handle.pwrite_fd(part, &file, offset),
                false => handle.pread_fd(part, &file, offset),
            };
            moved.map_err(|error| error.to_string())?;
        }
        return Ok(memory);
    }
    for (index, path) in job.files.iter().enumerate() {
        let part = memory.narrow(index * each..(index + 1) * each);
        let moved = match job.access {
            Access::Read => handle.read(part, path, false, 0),
            Access::Write | Access::Mixed => handle.write(part, path, false, 0),
        };
        moved.map_err(|error| error.to_string())?;
    }
    Ok(memory)
}

fn shuffled(handle: &Handle, job: &Job, memory: LockedTensor) -> Result<LockedTensor> {
    let file = open(job)?;
    let block = handle.get_block_size();
    let mut parts: Vec<Option<LockedTensor>> = Vec::new();
    let mut rest = memory;
    while rest.len() > block && parts.len() * block < bytes_each(job)? {
        let (part, tail) = rest.split_at(block);
        parts.push(Some(part));
        rest = tail;
    }
    parts.push(Some(rest));
    let window = handle.get_queue_depth() as usize * handle.get_intra_op_parallelism() as usize;
    let mut under_way: VecDeque<(usize, Operation<LockedTensor>)> = VecDeque::new();
    for Block { start, write, .. } in blocks(job, bytes_each(job)?, block) {
        if under_way.len() >= window
            && let Some((index, operation)) = under_way.pop_front()
        {
            parts[index] = Some(finish(operation)?);
        }
        let index = start / block;
        let part = parts[index].take().ok_or("a block came twice")?;
        let operation = match write {
            true => handle.async_pwrite_fd(part, &file, start as u64),
            false => handle.async_pread_fd(part, &file, start as u64),
        };
        under_way.push_back((index, operation.map_err(refused)?));
    }
    for (index, operation) in under_way {
        parts[index] = Some(finish(operation)?);
    }
    handle.wait().map_err(|error| error.to_string())?;
    join(parts.into_iter().flatten().collect())
}

/// The job's only file, past the page cache where that is possible.
fn open(job: &Job) -> Result<File> {
    let path = job.files.first().ok_or("a job without files")?;
    let mut options = OpenOptions::new();
    options.read(job.access != Access::Write).write(job.access != Access::Read);
    let direct = options.clone().custom_flags(libc::O_DIRECT).open(path);
    let opened = match direct {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => options.open(path),
        other => other,
    };
    opened.map_err(|error| format!("{}: {}", path.display(), reason(&error)))
}

fn bytes_each(job: &Job) -> Result<usize> {
    usize::try_from(job.each).map_err(|error| error.to_string())
}

fn refused(refused: Refused<LockedTensor>) -> String {
    refused.error.to_string()
}

fn finish(operation: Operation<LockedTensor>) -> Result<LockedTensor> {
    let finished = operation.finish();
    match finished.result {
        Ok(_) => Ok(finished.buffer),
        Err(error) => Err(error.to_string()),
    }
}

/// The one memory that the parts were cut from, in order.
fn join(parts: Vec<LockedTensor>) -> Result<LockedTensor> {
    let joined = parts.into_iter().map(Ok::<_, String>).reduce(|front, back| {
        front?.join(back?).map_err(|_| "the parts of the memory do not fit".to_owned())
    });
    joined.unwrap_or_else(|| Err("no memory".to_owned()))
}
