//! What brings a file into a state: full, in no page cache, or read once.

use std::fs::File;
use std::io::{self, Read, Write};

use rustix::fs::Advice;

use crate::noise;

/// Bytes written or read at once.
const STEP_BYTES: usize = 1 << 20;

/// Writes `bytes` that no device can compress, and waits until they are on stable storage.
///
/// # Errors
///
/// Those of write(2) and fsync(2).
pub fn fill(mut file: File, bytes: u64) -> io::Result<()> {
    let mut block = vec![0; STEP_BYTES];
    noise::fill(&mut block, bytes);
    let mut left = bytes;
    while left > 0 {
        let count = left.min(STEP_BYTES as u64);
        // No two blocks are the same, for devices that would notice.
        block[..8].copy_from_slice(&left.to_le_bytes());
        file.write_all(&block[..usize::try_from(count).unwrap_or(STEP_BYTES)])?;
        left -= count;
    }
    file.sync_all()
}

/// Puts a file on stable storage, and out of the page cache.
///
/// # Errors
///
/// Those of fsync(2) and posix_fadvise(2).
pub fn forget(file: &File) -> io::Result<()> {
    file.sync_all()?;
    Ok(rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?)
}

/// Reads a file to its end.
///
/// # Errors
///
/// Those of read(2).
pub fn read_through(mut file: File) -> io::Result<()> {
    let mut block = vec![0; STEP_BYTES];
    while file.read(&mut block)? > 0 {}
    Ok(())
}
