//! A log for each measurement, in the names and words of DeepSpeed's tuner, for scripts that read those.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use super::{Measured, Rate};
use crate::sys_process::reason;
use crate::units::{GIB, KIB, MIB};

/// An empty folder for logs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFolder {
    path: PathBuf,
}

impl LogFolder {
    /// Makes the folder, unless it is there and empty.
    ///
    /// # Errors
    /// One line that names the path.
    pub fn prepare(path: &Path) -> Result<Self, String> {
        let failed = |why: &str| format!("{}: {why}", path.display());
        std::fs::create_dir_all(path).map_err(|error| failed(&reason(&error)))?;
        let mut entries = std::fs::read_dir(path).map_err(|error| failed(&reason(&error)))?;
        match entries.next() {
            None => Ok(Self { path: path.to_owned() }),
            Some(_) => Err(failed("the log folder is not empty; name another")),
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
        let folder = self.path.join(format!("_aio_bench_{operation}_logs"));
        let combination = &one.combination;
        let file = folder.join(format!(
            "{operation}_{}_{}_ftd1_d{}_bs{}_p{}.txt",
            combination.submit(),
            combination.events(),
            combination.queue_depth,
            size(combination.block_size),
            combination.intra_op_parallelism,
        ));
        let (latency, speed) = (rate.time.as_secs_f64(), rate.speed() / GIB as f64);
        let mut text = String::new();
        for kind in ["Task", "E2E"] {
            text.push_str(&format!("{kind} {word} Latency = {latency} sec\n"));
            text.push_str(&format!("{kind} {word} Speed = {speed} GB/sec\n"));
        }
        let written = std::fs::create_dir_all(&folder)
            .and_then(|()| File::create_new(&file))
            .and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|error| format!("{}: {}", file.display(), reason(&error)))
    }
}

/// A size as DeepSpeed's names have it.
fn size(bytes: u64) -> String {
    match bytes {
        _ if bytes.is_multiple_of(MIB) => format!("{}M", bytes / MIB),
        _ => format!("{}K", bytes / KIB),
    }
}
