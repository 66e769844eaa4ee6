//! What to measure and how, and whether that can be done.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::case::{Case, Order};
use super::{BenchError, Result};
use crate::aio::AioSettings;
use crate::aio::probe::probe;
use crate::deepspeed::HandleOptions;
use crate::mount::entry_of_path;
use crate::sys_process::reason;
use crate::units::{MIB, format_short};

/// What moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Engine {
    /// The library's aio handle: asynchronous operations, O_DIRECT.
    Handle,
    /// The same handle, one blocking operation after the other.
    Basic,
    /// Plain read and write calls through a swapfs mount.
    Mount,
    /// Plain read and write calls in the folder.
    Posix,
    /// fio, O_DIRECT, io_uring.
    Fio,
    /// fio with its memory in huge pages.
    FioHuge,
    /// DeepSpeed's own aio handle, through python3.
    Deepspeed,
}

impl Engine {
    /// All of them.
    pub const ALL: [Engine; 7] = [
        Engine::Handle,
        Engine::Basic,
        Engine::Mount,
        Engine::Posix,
        Engine::Fio,
        Engine::FioHuge,
        Engine::Deepspeed,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Handle => "handle",
            Self::Basic => "basic",
            Self::Mount => "mount",
            Self::Posix => "posix",
            Self::Fio => "fio",
            Self::FioHuge => "fio-huge",
            Self::Deepspeed => "deepspeed",
        }
    }

    /// Whether transfers pass the page cache by, so that no read is ever warm.
    #[must_use]
    pub fn is_direct(self) -> bool {
        !matches!(self, Self::Mount | Self::Posix)
    }

    /// Whether fio does it.
    #[must_use]
    pub fn is_fio(self) -> bool {
        matches!(self, Self::Fio | Self::FioHuge)
    }

    /// Whether the case is within its reach: DeepSpeed's handle moves whole files only.
    #[must_use]
    pub fn can(self, case: Case) -> bool {
        self != Self::Deepspeed || case.order() == Order::Sequential
    }
}

/// A benchmark. The defaults are those of DeepSpeed's `ds_io`.
#[derive(Debug, Clone, Serialize)]
pub struct Settings {
    /// One folder for each process.
    #[serde(serialize_with = "crate::paths::shown_list")]
    pub folders: Vec<PathBuf>,
    /// Bytes that each process moves in a round.
    pub io_size: u64,
    /// Bytes of a transfer or call; a power of two.
    pub block_size: u64,
    /// Transfers in flight per thread.
    pub queue_depth: u32,
    /// One submission per call.
    pub single_submit: bool,
    /// Keep the queue topped up.
    pub overlap_events: bool,
    /// Threads of each operation.
    pub io_parallel: u32,
    /// The engines, which take turns.
    pub engines: Vec<Engine>,
    /// The cases, one after the other.
    pub cases: Vec<Case>,
    /// Files of the cases with many.
    pub files: u32,
    /// Rounds that count.
    pub loops: u32,
    /// Rounds before them.
    pub warmup_loops: u32,
    /// Count those too.
    pub include_warmup_time: bool,
    /// A file of its own for each round.
    pub different_file_each_iteration: bool,
    /// Compare files and memory after each round.
    pub validate: bool,
    /// Time includes fsync.
    pub sync: bool,
    /// Leave the files.
    pub keep: bool,
    /// Read this file, which is there.
    #[serde(serialize_with = "crate::paths::shown_option")]
    pub read_file: Option<PathBuf>,
    /// Write this file.
    #[serde(serialize_with = "crate::paths::shown_option")]
    pub write_file: Option<PathBuf>,
    /// The mountpoint for the engine `mount`; without it a temporary mount is made.
    #[serde(serialize_with = "crate::paths::shown_option")]
    pub mount: Option<PathBuf>,
    /// `-o` options of the temporary mount.
    pub mount_options: Vec<String>,
    /// The swapfs command, for processes and mounts; by default this process's own program, which must then
    /// hand `bench-worker`, `mount`, `umount` and `bench-null-mount` to [`cli::run`](crate::cli::run).
    pub program: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            folders: Vec::new(),
            io_size: 512 * MIB,
            block_size: MIB,
            queue_depth: 32,
            single_submit: false,
            overlap_events: true,
            io_parallel: 1,
            engines: vec![Engine::Handle],
            cases: vec![Case::FirstWrite, Case::Overwrite],
            files: 64,
            loops: 3,
            warmup_loops: 1,
            include_warmup_time: false,
            different_file_each_iteration: false,
            validate: false,
            sync: true,
            keep: false,
            read_file: None,
            write_file: None,
            mount: None,
            mount_options: Vec::new(),
            program: PathBuf::from("/proc/self/exe"),
        }
    }
}

impl Settings {
    /// Processes.
    #[must_use]
    pub fn processes(&self) -> usize {
        self.folders.len()
    }

    /// Bytes of each file of a case.
    #[must_use]
    pub fn bytes_each(&self, case: Case) -> u64 {
        match case.is_many() {
            // Whole pages, so that each begins aligned in memory.
            true => self.io_size / u64::from(self.files) / 4096 * 4096,
            false => self.io_size,
        }
    }

    /// Files of a case, for each process.
    #[must_use]
    pub fn files_of(&self, case: Case) -> u32 {
        if case.is_many() { self.files } else { 1 }
    }

    /// Looks at everything that can be known before the first transfer.
    ///
    /// # Errors
    ///
    /// One line: [`BenchError::Usage`] for values that are never accepted, [`BenchError::Failed`] for what
    /// these folders or this machine do not have.
    pub fn check(&self) -> Result<()> {
        self.check_values()?;
        self.check_folders()?;
        self.check_memory()
    }

    fn check_values(&self) -> Result<()> {
        let usage = |line: String| Err(BenchError::Usage(line));
        if self.io_size == 0 {
            return usage(
                "--io-size: 0 bytes cannot be measured; give a size such as 1G".to_owned(),
            );
        }
        let most = HandleOptions::BLOCK_SIZE_MAX as u64;
        if !self.block_size.is_power_of_two() || !(512..=most).contains(&self.block_size) {
            return usage(format!(
                "--block-size: {} is not accepted; give a power of two from 512 to 1 GiB",
                self.block_size
            ));
        }
        for (name, value, most) in [
            ("--queue-depth", self.queue_depth, AioSettings::QUEUE_DEPTH_MAX),
            ("--io-parallel", self.io_parallel, AioSettings::THREAD_COUNT_MAX),
            ("--loops", self.loops, 1_000_000),
            ("--files", self.files, 100_000),
        ] {
            if !(1..=most).contains(&value) {
                return usage(format!("{name}: {value} is not accepted; give 1 to {most}"));
            }
        }
        for case in &self.cases {
            if self.bytes_each(*case) == 0 {
                let (size, files) = (format_short(self.io_size), self.files);
                return usage(format!("{case}: {size} in {files} files is less than 4 KiB a file"));
            }
            if let Some(engine) = self.engines.iter().find(|engine| !engine.can(*case)) {
                let name = engine.name();
                return usage(format!("{case}: the engine {name} moves whole files only"));
            }
            self.check_deepspeed(*case)?;
        }
        Ok(())
    }

    /// DeepSpeed's handle gives each of its threads an equal part of a file, and looks at no transfer's
    /// result: the figures of parts that O_DIRECT refuses would be those of nothing at all.
    fn check_deepspeed(&self, case: Case) -> Result<()> {
        let unit = 4096 * u64::from(self.io_parallel);
        let (each, name) = (self.bytes_each(case), Engine::Deepspeed.name());
        if !self.engines.contains(&Engine::Deepspeed) || each.is_multiple_of(unit) {
            return Ok(());
        }
        Err(BenchError::Usage(format!(
            "{case}: the engine {name} moves files of a multiple of {unit} bytes (4 KiB for each of \
             --io-parallel), not of {each}; give another --io-size"
        )))
    }

    fn check_folders(&self) -> Result<()> {
        for folder in &self.folders {
            let shown = folder.display();
            let opened = std::fs::File::open(folder)
                .map_err(|error| BenchError::Failed(format!("{shown}: {}", reason(&error))))?;
            if !opened.metadata().is_ok_and(|found| found.is_dir()) {
                return Err(BenchError::Failed(format!("{shown}: Not a directory")));
            }
            let direct = self.engines.iter().any(|engine| engine.is_direct());
            if direct && self.is_writing() {
                use std::os::fd::AsFd;
                let found = probe(opened.as_fd()).map_err(|errno| {
                    BenchError::Failed(format!(
                        "{shown}: cannot store files there: {}",
                        errno.desc()
                    ))
                })?;
                let alignment = found.alignment() as u64;
                if found.direct && !self.block_size.is_multiple_of(alignment) {
                    return Err(BenchError::Failed(format!(
                        "--block-size: {} is no multiple of {alignment}, the alignment of direct \
                         transfers in {shown}",
                        self.block_size
                    )));
                }
            }
        }
        self.check_space()
    }

    /// Whether files are made: always, but for reading a file that is there.
    fn is_writing(&self) -> bool {
        !self.made().is_empty()
    }

    /// What each process makes for a round: files on a mount or not, to be read or written, how many.
    fn made(&self) -> BTreeSet<(bool, &'static str, u32)> {
        let pairs = self
            .cases
            .iter()
            .flat_map(|case| self.engines.iter().map(move |engine| (case, engine)));
        let sets = pairs.map(|(case, engine)| {
            (*engine == Engine::Mount, case.file_kind(), self.files_of(*case))
        });
        let is_there =
            |set: &(bool, &str, u32)| self.read_file.is_some() && matches!(set, (false, "read", 1));
        sets.filter(|set| !is_there(set)).collect()
    }

    /// Whether the files lie on a swapfs mount already.
    pub(super) fn is_on_mount(&self) -> bool {
        self.folders.iter().any(|folder| entry_of_path(folder).is_ok_and(|entry| entry.is_some()))
    }

    /// Bytes of files on each filesystem, with a folder that is there.
    fn space_needed(&self) -> Result<Vec<(PathBuf, u128)>> {
        let rounds = match self.different_file_each_iteration {
            true => u128::from(self.loops) + u128::from(self.warmup_loops),
            false => 1,
        };
        let mut needed: BTreeMap<u64, (PathBuf, u128)> = BTreeMap::new();
        let made = self.made();
        for folder in &self.folders {
            for (on_mount, _, _) in &made {
                let place = self.mount.as_ref().filter(|_| *on_mount).unwrap_or(folder);
                let found = std::fs::metadata(place).map_err(|error| {
                    BenchError::Failed(format!("{}: {}", place.display(), reason(&error)))
                })?;
                let (_, bytes) = needed.entry(found.dev()).or_insert_with(|| (place.clone(), 0));
                *bytes += u128::from(self.io_size) * rounds;
            }
        }
        Ok(needed.into_values().collect())
    }

    fn check_space(&self) -> Result<()> {
        for (folder, needed) in self.space_needed()? {
            let shown = folder.display();
            let found = rustix::fs::statvfs(&folder).map_err(|error| {
                BenchError::Failed(format!("{shown}: {}", reason(&error.into())))
            })?;
            let free = u128::from(found.f_bavail) * u128::from(found.f_frsize);
            if needed > free {
                let show = |bytes: u128| format_short(u64::try_from(bytes).unwrap_or(u64::MAX));
                return Err(BenchError::Failed(format!(
                    "{shown}: {} of files do not fit in the {} free there; give a smaller --io-size",
                    show(needed),
                    show(free)
                )));
            }
        }
        Ok(())
    }

    fn check_memory(&self) -> Result<()> {
        let needed = u128::from(self.io_size) * self.processes() as u128;
        let available = crate::memory::available().unwrap_or(u64::MAX);
        if needed > u128::from(available) / 10 * 9 {
            let count = self.processes();
            return Err(BenchError::Failed(format!(
                "{count} process{} of {} each do not fit in the {} of memory available; give a \
                 smaller --io-size or fewer with --multi-process",
                if count == 1 { "" } else { "es" },
                format_short(self.io_size),
                format_short(available)
            )));
        }
        Ok(())
    }

    /// The mountpoint that the engine `mount` was told to use, checked.
    pub(super) fn existing_mount(&self) -> Result<Option<PathBuf>> {
        let Some(path) = &self.mount else { return Ok(None) };
        let shown = path.display();
        let entry = entry_of_path(path)
            .map_err(|error| BenchError::Failed(format!("{shown}: {}", reason(&error))))?;
        match entry {
            Some(_) => Ok(Some(path.clone())),
            None => Err(BenchError::Failed(format!("{shown} is not on a swapfs mount"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn space_is_counted_for_every_file_and_filesystem() {
        let (first, second) =
            (tempfile::tempdir().unwrap(), tempfile::tempdir_in("/dev/shm").unwrap());
        let mut settings = Settings {
            folders: vec![first.path().into(), second.path().into(), first.path().into()],
            io_size: 10,
            ..Settings::default()
        };
        let needed = |settings: &Settings| {
            let places = settings.space_needed().unwrap();
            let of = |folder: &std::path::Path| {
                places.iter().find(|(place, _)| place == folder).map(|(_, bytes)| *bytes)
            };
            (of(first.path()), of(second.path()))
        };
        assert_eq!(needed(&settings), (Some(20), Some(10)));
        // One file written and one read, many written and many read, in the folder and on a mount.
        settings.cases = Case::ALL.to_vec();
        settings.engines = vec![Engine::Handle, Engine::Posix, Engine::Mount];
        assert_eq!(needed(&settings), (Some(160), Some(80)));
        settings.read_file = Some("model".into());
        settings.cases = vec![Case::ColdRead, Case::WarmRead];
        assert_eq!(needed(&settings), (Some(20), Some(10)));
        settings.engines = vec![Engine::Handle];
        assert_eq!(needed(&settings), (None, None));
        assert!(!settings.is_writing());
    }
}
