//! The log file, `SWAP_FOLDER/.swapfs/log`. When it is long it becomes `log.1`, in place of the one before, and a new one is begun.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::fs::{OFlags, fstat, renameat};

use crate::daemon::SwapFolder;
use crate::metrics::lines::{LINES, Lines};
use crate::trust;

/// Bytes of a log file, but for the line that goes beyond.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// After a new file could not be begun, none is tried for so long.
const RETRY: Duration = Duration::from_secs(10);

const NAME: &str = "log";
const OLDER: &str = "log.1";

/// The file, and the folder that it is in.
#[derive(Debug)]
pub(super) struct LogFile {
    control: OwnedFd,
    file: File,
    refused: Option<Instant>,
}

impl LogFile {
    /// Opens the log of a swap folder; begins a new one when it is long.
    pub(super) fn open(swap: &SwapFolder) -> io::Result<Self> {
        let control = swap.control().try_clone_to_owned()?;
        let file = open(&control, OFlags::CREATE)?;
        let mut log = Self { control, file, refused: None };
        if log.is_long() {
            log.begin()?;
        }
        Ok(log)
    }

    /// The folder was opened anew.
    pub(super) fn move_to(&mut self, swap: &SwapFolder) -> io::Result<()> {
        self.control = swap.control().try_clone_to_owned()?;
        Ok(())
    }

    /// A descriptor of the present file.
    pub(super) fn file(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Writes a line; true when it begins a new file. A full disk takes no line, and there is nobody to tell.
    pub(super) fn write(&mut self, text: &[u8]) -> bool {
        let is_new = self.is_long();
        if is_new {
            if self.refused.is_some_and(|at| at.elapsed() < RETRY) || self.begin().is_err() {
                self.refused =
                    self.refused.filter(|at| at.elapsed() < RETRY).or(Some(Instant::now()));
                Lines::count(&LINES.dropped);
                return false;
            }
            self.refused = None;
            Lines::count(&LINES.rotations);
        }
        if self.file.write_all(text).is_err() {
            Lines::count(&LINES.dropped);
        }
        is_new
    }

    fn is_long(&self) -> bool {
        fstat(&self.file).is_ok_and(|status| status.st_size.cast_unsigned() >= LOG_BYTES_MAX)
    }

    /// Sets the file aside and makes a new one. Where the name leads to another file by now, that one is gone on with.
    fn begin(&mut self) -> io::Result<()> {
        let mut how = OFlags::CREATE;
        if trust::is_named(&self.control, NAME, &self.file)? {
            renameat(&self.control, NAME, &self.control, OLDER)?;
            how |= OFlags::EXCL;
        }
        self.file = open(&self.control, how)?;
        Ok(())
    }
}

fn open(control: &OwnedFd, how: OFlags) -> io::Result<File> {
    trust::open_file(control, NAME, OFlags::WRONLY | OFlags::APPEND | how)
}
