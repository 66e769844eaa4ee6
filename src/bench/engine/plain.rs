//! Plain read and write calls, one after the other, of a block each.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Block, Result, blocks};
use crate::bench::case::Access;
use crate::bench::protocol::Job;
use crate::deepspeed::LockedTensor;
use crate::sys_process::reason;

pub(super) fn run(job: &Job, mut memory: LockedTensor, block: usize) -> Result<LockedTensor> {
    let each = usize::try_from(job.each).map_err(|error| error.to_string())?;
    for (path, part) in job.files.iter().zip(memory.chunks_mut(each)) {
        let file = open(path, job.access)?;
        for Block { start, end, write } in blocks(job, part.len(), block) {
            let offset = start as u64;
            let (verb, result) = match write {
                true => ("writing", file.write_all_at(&part[start..end], offset)),
                false => ("reading", file.read_exact_at(&mut part[start..end], offset)),
            };
            result.map_err(|error| format!("{verb} {}: {}", path.display(), reason(&error)))?;
        }
    }
    Ok(memory)
}

fn open(path: &Path, access: Access) -> Result<File> {
    let (read, write) = (access != Access::Write, access != Access::Read);
    let opened = OpenOptions::new().read(read).write(write).open(path);
    opened.map_err(|error| format!("{}: {}", path.display(), reason(&error)))
}
