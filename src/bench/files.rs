//! The files of a benchmark: made, brought into the state that a case begins with, and never somebody else's.
//!
//! A file is written to only when the benchmark created it (`O_EXCL`), or when it carries the mark
//! ([`MARK_XATTR`]) that an earlier benchmark of the same user put on it, with `--keep` or by being killed.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, XattrFlags};

use super::case::Start;
use super::cleanup::{Cleanup, Made};
use super::{BenchError, Result, state};
use crate::held::{Folder, Held};
use crate::mount::swapfs_mounts;
use crate::sys_process::reason;

/// On every file that a benchmark made: the number of its process.
pub const MARK_XATTR: &str = "user.swapfs.bench";

fn failed(path: &Path, error: &io::Error) -> BenchError {
    BenchError::Failed(format!("{}: {}", path.display(), reason(error)))
}

/// One file.
#[derive(Debug)]
pub(super) struct BenchFile {
    /// Its name, for people.
    pub(super) name: PathBuf,
    held: Held,
    bytes: u64,
    /// `None` for a file that was there before, which is read only.
    made: Option<Made>,
}

impl BenchFile {
    /// A file that is there, to be read: at least `bytes` long.
    pub(super) fn existing(path: &Path, bytes: u64) -> Result<Self> {
        let opened = Folder::of(path).and_then(|(folder, name)| Held::to_read(folder, name));
        let (file, held) = opened.map_err(|error| failed(path, &error))?;
        let found = file.metadata().map_err(|error| failed(path, &error))?;
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
        Ok(Self { name: path.to_owned(), held, bytes, made: None })
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
        let (held, made) = claim(cleanup, &path)?;
        Ok(Self { name: path, held, bytes, made: Some(made) })
    }

    /// Leads to the file, whatever its name leads to, for this process and those that it starts.
    pub(super) fn path(&self) -> PathBuf {
        self.held.path()
    }

    fn fill(&self) -> Result<()> {
        let opened = self.held.open(File::options().write(true));
        let filled = opened.and_then(|file| state::fill(file, self.bytes));
        filled.map_err(|error| failed(&self.name, &error))
    }

    /// Brings it into the state that a round begins with. fio is to find a file of its size: else it would make one of its
    /// own under the name.
    pub(super) fn begin(&self, start: Start, is_for_fio: bool) -> Result<()> {
        if let Some(made) = &self.made {
            match start {
                Start::New => self.renew(made, is_for_fio)?,
                Start::Cold | Start::Warm if self.length()? < self.bytes => self.fill()?,
                Start::Cold | Start::Warm => {}
            }
        }
        let result = match start {
            Start::New => Ok(()),
            Start::Cold => self.cool(),
            Start::Warm => self.cool().and_then(|()| self.read_through()),
        };
        result.map_err(|error| failed(&self.name, &error))
    }

    fn length(&self) -> Result<u64> {
        let found = std::fs::metadata(self.path());
        Ok(found.map_err(|error| failed(&self.name, &error))?.len())
    }

    /// A new file under the old name: it stays ours in between, the name is on the list of what is made.
    fn renew(&self, made: &Made, is_for_fio: bool) -> Result<()> {
        let new = || -> io::Result<()> {
            let file = self.held.renew()?;
            mark(&file);
            if is_for_fio {
                file.set_len(self.bytes)?;
            }
            file.sync_all()
        };
        made.renew(new).map_err(|error| failed(&self.name, &error))
    }

    /// Leaves it there, still marked.
    pub(super) fn keep(self) {
        if let Some(made) = self.made {
            // Nobody's: the next benchmark may have it.
            if let Ok(file) = self.held.open(File::options().write(true)) {
                let _ = rustix::fs::fsetxattr(&file, MARK_XATTR, b"0", XattrFlags::empty());
            }
            made.keep();
        }
    }

    /// Puts it on stable storage, and out of the page cache and the buffer pool.
    fn cool(&self) -> io::Result<()> {
        let file = self.held.open(File::options().read(true))?;
        state::forget(&file)?;
        // Anybody can give a file such attributes: a mount's are asked for on a mount alone.
        if !is_on_a_mount(&file) {
            return Ok(());
        }
        let text = |name: &str| -> io::Result<Option<Vec<u8>>> {
            let mut value = [0; 4096];
            match rustix::fs::fgetxattr(&file, name, &mut value[..]) {
                Ok(length) => Ok(Some(value[..length].to_vec())),
                Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
                Err(error) => Err(error.into()),
            }
        };
        rustix::fs::fsetxattr(&file, "user.swap.request", b"release", XattrFlags::empty())?;
        while text("user.swap.wait")?.is_some_and(|status| status.trim_ascii() == b"inflight") {}
        // Where the swap folder has no O_DIRECT, its page cache has the bytes.
        if let Some(backing) = text("user.swap.path")?.filter(|backing| !backing.is_empty()) {
            let mut options = File::options();
            options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW);
            if let Ok(file) = options.open(OsStr::from_bytes(&backing)) {
                let _ = rustix::fs::fadvise(&file, 0, None, Advice::DontNeed);
            }
        }
        Ok(())
    }

    fn read_through(&self) -> io::Result<()> {
        state::read_through(self.held.open(File::options().read(true))?)
    }
}

/// Whether a file is on a swapfs mount that is believed.
fn is_on_a_mount(file: &File) -> bool {
    let device = file.metadata().map(|found| found.dev());
    let mounts = swapfs_mounts().unwrap_or_default();
    device.is_ok_and(|device| {
        mounts.iter().any(|mount| mount.device == device && mount.check().is_ok())
    })
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
fn claim(cleanup: &Cleanup, path: &Path) -> Result<(Held, Made)> {
    let (folder, name) = Folder::of(path).map_err(|error| failed(path, &error))?;
    let ((file, held), made) = match cleanup.file(|| Held::create(&folder, &name)) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            take_over(cleanup, path, &folder, &name)?
        }
        other => other.map_err(|error| failed(path, &error))?,
    };
    mark(&file);
    Ok((held, made))
}

/// Takes over what an earlier benchmark of this user's has left, and nobody else could have changed.
fn take_over(
    cleanup: &Cleanup, path: &Path, folder: &Folder, name: &OsStr,
) -> Result<((File, Held), Made)> {
    let shown = path.display();
    let foreign = || {
        BenchError::Failed(format!(
            "{shown} exists and no benchmark made it, so it is not overwritten; remove it, or choose \
             another folder or --write-file"
        ))
    };
    let opened = cleanup.file(|| Held::take_over(folder, name));
    let (found, made) = opened.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            BenchError::Failed(format!("{shown} is not overwritten: {}", reason(&error)))
        }
        _ => failed(path, &error),
    })?;
    let mut value = [0; 32];
    let mark = rustix::fs::fgetxattr(&found.0, MARK_XATTR, &mut value[..]).ok();
    let holder = mark.map(|length| {
        let text = String::from_utf8_lossy(&value[..length]);
        text.trim().parse::<u32>().unwrap_or(0)
    });
    let refusal = match holder {
        None => foreign(),
        Some(pid) if pid != 0 && pid != std::process::id() && is_benchmark(pid) => {
            BenchError::Failed(format!("{shown} is in use by another benchmark, pid {pid}"))
        }
        Some(_) => match found.0.set_len(0) {
            Ok(()) => return Ok((found, made)),
            Err(error) => failed(path, &error),
        },
    };
    made.keep();
    Err(refusal)
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
