//! A log for each measurement, in the names and words of DeepSpeed's tuner, for scripts that read those.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Dir, Mode, OFlags, mkdirat, openat};
use rustix::io::Errno;

use super::{Measured, Rate};
use crate::sys_process::reason;
use crate::units::{GIB, KIB, MIB};

/// An empty folder for logs, which stays behind its first descriptor.
#[derive(Debug, Clone)]
pub struct LogFolder {
    path: PathBuf,
    folder: Arc<OwnedFd>,
}

impl LogFolder {
    /// Makes the folder, unless it is there and empty.
    ///
    /// # Errors
    /// One line that names the path.
    pub fn prepare(path: &Path) -> Result<Self, String> {
        let failed = |why: &str| format!("{}: {why}", path.display());
        std::fs::create_dir_all(path).map_err(|error| failed(&reason(&error)))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(path, flags, Mode::empty())
            .map_err(|error| failed(&reason(&error.into())))?;
        let entries = Dir::read_from(&folder).map_err(|error| failed(&reason(&error.into())))?;
        let mut names = entries.filter_map(Result::ok).map(|entry| entry.file_name().to_owned());
        match names.any(|name| &*name != c"." && &*name != c"..") {
            false => Ok(Self { path: path.to_owned(), folder: Arc::new(folder) }),
            true => Err(failed("the log folder is not empty; name another")),
        }
    }

    /// Writes the logs of everything measured.
    ///
    /// # Errors
    /// One line that names the file.
    pub fn write(&self, measured: &[Measured]) -> Result<(), String> {
        for one in measured {
            for (operation, word, rate) in
                [("read", "Read", one.read), ("write", "Write", one.write)]
            {
                if rate.bytes > 0 {
                    self.write_one(one, operation, word, rate)?;
                }
            }
        }
        Ok(())
    }

    fn write_one(
        &self, one: &Measured, operation: &str, word: &str, rate: Rate,
    ) -> Result<(), String> {
        let folder = format!("_aio_bench_{operation}_logs");
        let combination = &one.combination;
        let file = format!(
            "{operation}_{}_{}_ftd1_d{}_bs{}_p{}.txt",
            combination.submit(),
            combination.events(),
            combination.queue_depth,
            size(combination.block_size),
            combination.intra_op_parallelism,
        );
        let (latency, speed) = (rate.time.as_secs_f64(), rate.speed() / GIB as f64);
        let mut text = String::new();
        for kind in ["Task", "E2E"] {
            text.push_str(&format!("{kind} {word} Latency = {latency} sec\n"));
            text.push_str(&format!("{kind} {word} Speed = {speed} GB/sec\n"));
        }
        let written =
            self.create(&folder, &file).and_then(|mut file| file.write_all(text.as_bytes()));
        let shown = self.path.join(folder).join(file);
        written.map_err(|error| format!("{}: {}", shown.display(), reason(&error)))
    }

    /// Creates a file in a folder of this one, which is made when it is not there.
    fn create(&self, folder: &str, file: &str) -> io::Result<File> {
        match mkdirat(&*self.folder, folder, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(&*self.folder, folder, flags, Mode::empty())?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o666);
        Ok(openat(folder, file, flags | OFlags::CLOEXEC, mode)?.into())
    }
}

/// A size as DeepSpeed's names have it.
fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(MIB) => format!("{}M", bytes / MIB),
        _ => format!("{}K", bytes / KIB),
    }
}
