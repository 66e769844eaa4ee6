//! The files of a benchmark: made, brought into the state that a case begins with, and never somebody else's.
//!
//! A file is written to only when the benchmark created it (`O_EXCL`), or when it carries the mark
//! ([`MARK_XATTR`]) that an earlier benchmark put on it, with `--keep` or by being killed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, XattrFlags};

use super::case::Start;
use super::cleanup::{Cleanup, Made};
use super::worker::fill;
use super::{BenchError, Result};
use crate::sys_process::{reason, text_xattr};

/// On every file that a benchmark made: the number of its process.
pub const MARK_XATTR: &str = "user.swapfs.bench";

/// Bytes written or read at once when a state is made.
const STEP_BYTES: usize = 1 << 20;

fn failed(path: &Path, error: &io::Error) -> BenchError {
    BenchError::Failed(format!("{}: {}", path.display(), reason(error)))
}

/// One file.
#[derive(Debug)]
pub(super) struct BenchFile {
    pub(super) path: PathBuf,
    bytes: u64,
    /// `None` for a file that was there before, which is read only.
    made: Option<Made>,
}

impl BenchFile {
    /// A file that is there, to be read: at least `bytes` long.
    pub(super) fn existing(path: &Path, bytes: u64) -> Result<Self> {
        let found = std::fs::metadata(path).map_err(|error| failed(path, &error))?;
        let shown = path.display();
        if !found.is_file() {
            return Err(BenchError::Failed(format!("{shown}: not a regular file")));
        }
        if found.len() < bytes {
            let size = found.len();
            return Err(BenchError::Failed(format!(
                "{shown} has {size} bytes, fewer than the {bytes} to be read"
            )));
        }
        Ok(Self { path: path.to_owned(), bytes, made: None })
    }

    /// A file for reading: one of this name and size that is there is used and left, else it is made.
    pub(super) fn for_reading(cleanup: &Cleanup, path: PathBuf, bytes: u64) -> Result<Self> {
        match std::fs::symlink_metadata(&path) {
            Ok(found) if found.is_file() && found.len() == bytes => Self::existing(&path, bytes),
            _ => {
                let file = Self::for_writing(cleanup, path, bytes)?;
                file.fill()?;
                Ok(file)
            }
        }
    }

    /// A file to be written, empty.
    pub(super) fn for_writing(cleanup: &Cleanup, path: PathBuf, bytes: u64) -> Result<Self> {
        let made = claim(cleanup, &path)?;
        Ok(Self { path, bytes, made: Some(made) })
    }

    fn fill(&self) -> Result<()> {
        let write = || -> io::Result<()> {
            let mut file = File::options().write(true).open(&self.path)?;
            let mut block = vec![0; STEP_BYTES];
            fill(&mut block, self.bytes | 1);
            let mut left = self.bytes;
            while left > 0 {
                let count = left.min(STEP_BYTES as u64);
                // Not the same twice, for devices that would notice.
                block[..8].copy_from_slice(&left.to_le_bytes());
                file.write_all(&block[..usize::try_from(count).unwrap_or(STEP_BYTES)])?;
                left -= count;
            }
            file.sync_all()
        };
        write().map_err(|error| failed(&self.path, &error))
    }

    /// Brings it into the state that a round begins with.
    pub(super) fn begin(&self, start: Start) -> Result<()> {
        if let Some(made) = &self.made {
            match start {
                Start::New => self.renew(made)?,
                Start::Cold | Start::Warm if self.length()? < self.bytes => self.fill()?,
                Start::Cold | Start::Warm => {}
            }
        }
        let result = match start {
            Start::New => Ok(()),
            Start::Cold => cool(&self.path),
            Start::Warm => cool(&self.path).and_then(|()| read_through(&self.path)),
        };
        result.map_err(|error| failed(&self.path, &error))
    }

    fn length(&self) -> Result<u64> {
        Ok(std::fs::metadata(&self.path).map_err(|error| failed(&self.path, &error))?.len())
    }

    /// A new file under the old name: it stays ours in between, the name is on the list of what is made.
    fn renew(&self, made: &Made) -> Result<()> {
        let new = || -> io::Result<()> {
            use std::os::unix::fs::OpenOptionsExt;
            std::fs::remove_file(&self.path)?;
            let file = File::options().write(true).create_new(true).mode(0o600).open(&self.path)?;
            mark(&file);
            file.sync_all()
        };
        made.renew(new).map_err(|error| failed(&self.path, &error))
    }

    /// Leaves it there, still marked.
    pub(super) fn keep(self) {
        if let Some(made) = self.made {
            // Nobody's: the next benchmark may have it.
            if let Ok(file) = File::options().write(true).open(&self.path) {
                let _ = rustix::fs::fsetxattr(&file, MARK_XATTR, b"0", XattrFlags::empty());
            }
            made.keep();
        }
    }
}

/// Puts the mark on a file. Where there are no attributes, the file is never taken over, only created.
fn mark(file: &File) {
    let pid = std::process::id().to_string();
    if let Err(error) = rustix::fs::fsetxattr(file, MARK_XATTR, pid.as_bytes(), XattrFlags::empty())
    {
        log::debug!("{MARK_XATTR}: {error}");
    }
}

/// Creates a file, or takes over one with the mark of a benchmark that is over.
fn claim(cleanup: &Cleanup, path: &Path) -> Result<Made> {
    let (file, made) = match cleanup.file(path, false) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => take_over(cleanup, path)?,
        other => other.map_err(|error| failed(path, &error))?,
    };
    mark(&file);
    Ok(made)
}

fn take_over(cleanup: &Cleanup, path: &Path) -> Result<(File, Made)> {
    let shown = path.display();
    let mark = text_xattr(path, MARK_XATTR).ok().flatten();
    let holder = mark.as_deref().map(|text| text.trim().parse::<u32>().unwrap_or(0));
    match holder {
        None => Err(BenchError::Failed(format!(
            "{shown} exists and no benchmark made it, so it is not overwritten; remove it, or choose \
             another folder or --write-file"
        ))),
        Some(pid) if pid != 0 && pid != std::process::id() && is_benchmark(pid) => {
            Err(BenchError::Failed(format!("{shown} is in use by another benchmark, pid {pid}")))
        }
        Some(_) => {
            let (file, made) = cleanup.file(path, true).map_err(|error| failed(path, &error))?;
            // Somebody's hard link to it would change with it.
            match file.metadata().map(|found| (found.is_file(), found.nlink())) {
                Ok((true, 1)) => {}
                _ => {
                    made.keep();
                    return Err(BenchError::Failed(format!("{shown} has other names; remove it")));
                }
            }
            file.set_len(0).map_err(|error| failed(path, &error))?;
            Ok((file, made))
        }
    }
}

/// Whether a process of that number runs the same program as this one.
fn is_benchmark(pid: u32) -> bool {
    let program = |pid: &str| std::fs::read_link(format!("/proc/{pid}/exe")).ok();
    let theirs = program(&pid.to_string());
    theirs.is_some() && theirs == program("self")
}

/// On stable storage.
pub(super) fn synchronize(path: &Path) -> Result<()> {
    let synchronized = File::open(path).and_then(|file| file.sync_all());
    synchronized.map_err(|error| failed(path, &error))
}

/// On stable storage, in no page cache, and in no buffer pool.
fn cool(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    file.sync_all()?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    let Some(backing) = text_xattr(path, "user.swap.path")? else {
        return Ok(());
    };
    rustix::fs::setxattr(path, "user.swap.request", b"release", XattrFlags::empty())?;
    while text_xattr(path, "user.swap.wait")?.is_some_and(|status| status.trim() == "inflight") {}
    // Where the swap folder has no O_DIRECT, its page cache has the bytes.
    if let Ok(file) = File::open(backing) {
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(())
}

fn read_through(path: &Path) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut block = vec![0; STEP_BYTES];
    while file.read(&mut block)? > 0 {}
    Ok(())
}
