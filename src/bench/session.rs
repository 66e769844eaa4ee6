//! A benchmark under way: its processes, mounts and files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::case::Case;
use super::cleanup::{Cleanup, swapfs};
use super::crew::Crew;
use super::files::{BenchFile, synchronize};
use super::mounted::OwnMount;
use super::protocol::{Job, Setup};
use super::report::{Report, Row};
use super::round::{Round, Series};
use super::settings::{Engine, Settings};
use super::{BenchError, Result, fio};
use crate::paths::plain;
use crate::sys_process::is_on_tmpfs;
use crate::turns::Turns;

/// What DeepSpeed's processes run.
const DEEPSPEED: &str = include_str!("deepspeed.py");

/// Which files: on a mount or not, read or written, the number of the round, the number of files.
type FileKey = (bool, &'static str, u32, u32);

/// Everything a benchmark needs, made when it is first needed and gone when dropped.
pub struct Bench<'a> {
    settings: &'a Settings,
    cleanup: &'a Cleanup,
    // Dropped from here on down: processes, then files, then mounts.
    ours: Option<Crew>,
    deepspeed: Option<Crew>,
    /// For each process, its files.
    files: BTreeMap<FileKey, Vec<Vec<BenchFile>>>,
    /// By the folder that they lie in.
    mounts: BTreeMap<PathBuf, OwnMount>,
    existing_mount: Option<PathBuf>,
}

impl std::fmt::Debug for Bench<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Bench").field("settings", self.settings).finish_non_exhaustive()
    }
}

/// Measures every case with every engine, the engines taking turns. Blocks for all of it. `told` hears of
/// each round when it is over.
///
/// # Errors
///
/// Those of [`Bench::new`] and [`Bench::round`].
pub fn measure(settings: &Settings, cleanup: &Cleanup, mut told: impl FnMut()) -> Result<Report> {
    let mut bench = Bench::new(settings, cleanup)?;
    let mut rows = Vec::new();
    let turns = match settings.include_warmup_time {
        true => Turns { warmup: 0, rounds: settings.warmup_loops + settings.loops },
        false => Turns { warmup: settings.warmup_loops, rounds: settings.loops },
    };
    for case in &settings.cases {
        let taken = turns.take(&mut settings.engines.clone(), |engine, number| {
            bench.round(*engine, *case, number).map(Some).inspect(|_| told())
        })?;
        for (engine, rounds) in settings.engines.iter().zip(taken) {
            rows.push(Row::new(settings, *engine, *case, Series { rounds }));
        }
    }
    let notes = bench.notes();
    bench.finish();
    Ok(Report { settings: settings.clone(), rows, notes })
}

impl<'a> Bench<'a> {
    /// Checks the settings; nothing is made yet.
    ///
    /// # Errors
    ///
    /// Those of [`Settings::check`]; engines whose programs are missing; a `mount` that is none.
    pub fn new(settings: &'a Settings, cleanup: &'a Cleanup) -> Result<Self> {
        settings.check()?;
        let existing_mount = settings.existing_mount()?;
        for engine in settings.engines.iter().filter(|engine| engine.is_fio()) {
            fio::check(settings, *engine)?;
        }
        Ok(Self {
            settings,
            cleanup,
            ours: None,
            deepspeed: None,
            files: BTreeMap::new(),
            mounts: BTreeMap::new(),
            existing_mount,
        })
    }

    /// One round: brings the files into the case's state, then moves their bytes. Blocks for both; the
    /// latter is what the result tells. `number` is that of the round, for files of its own.
    ///
    /// # Errors
    ///
    /// Anything that fails on the way, with the file's name.
    pub fn round(&mut self, engine: Engine, case: Case, number: u32) -> Result<Round> {
        let jobs = self.jobs(engine, case, number)?;
        self.run(engine, &jobs).map_err(|error| self.named(error))
    }

    /// With the names of the files in place of the paths that lead to them.
    fn named(&self, error: BenchError) -> BenchError {
        let BenchError::Failed(mut line) = error else { return error };
        let files = self.files.values().flatten().flatten();
        let mut names: Vec<(String, String)> =
            files.map(|file| (file.path().display().to_string(), plain(&file.name))).collect();
        // One may begin with another.
        names.sort_by_key(|(path, _)| std::cmp::Reverse(path.len()));
        for (path, name) in names {
            line = line.replace(&path, &name);
        }
        BenchError::Failed(line)
    }

    fn run(&mut self, engine: Engine, jobs: &[Job]) -> Result<Round> {
        let round = match engine {
            Engine::Fio | Engine::FioHuge => fio::round(self.cleanup, self.settings, jobs),
            _ => self.crew(engine)?.round(jobs),
        }?;
        if !self.settings.sync {
            // Not in anybody's time, least of all in that of the next one's turn.
            jobs.iter().flat_map(|job| &job.files).try_for_each(|path| synchronize(path))?;
        }
        Ok(round)
    }

    /// What the user should know about the figures.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let crews = self.ours.iter().chain(&self.deepspeed);
        let mut notes: BTreeSet<String> = crews.flat_map(Crew::notes).collect();
        for folder in &self.settings.folders {
            if is_on_tmpfs(folder) {
                let shown = folder.display();
                notes.insert(format!(
                    "{shown} is a tmpfs: nothing there is ever cold, or on a device"
                ));
            }
        }
        if self.settings.validate && self.settings.engines.iter().any(|engine| engine.is_fio()) {
            notes.insert("what fio moved was not validated".to_owned());
        }
        notes.into_iter().collect()
    }

    /// Ends it; with `keep` the files stay.
    pub fn finish(mut self) {
        (self.ours, self.deepspeed) = (None, None);
        if self.settings.keep {
            let files = std::mem::take(&mut self.files);
            files.into_values().flatten().flatten().for_each(BenchFile::keep);
        }
    }

    /// The processes of the library's engines, or of DeepSpeed's.
    fn crew(&mut self, engine: Engine) -> Result<&mut Crew> {
        let (crew, name) = match engine {
            Engine::Deepspeed => (&mut self.deepspeed, "engine deepspeed"),
            _ => (&mut self.ours, "bench-worker"),
        };
        if let Some(crew) = crew {
            return Ok(crew);
        }
        let command = || {
            if engine != Engine::Deepspeed {
                return swapfs(&self.settings.program, name);
            }
            let mut python = Command::new("python3");
            python.arg("-c").arg(DEEPSPEED);
            python
        };
        let setups = setups(self.settings);
        Ok(crew.insert(Crew::start(self.cleanup, name, &setups, command)?))
    }

    /// The jobs of a round, one for each process, their files ready.
    pub(super) fn jobs(&mut self, engine: Engine, case: Case, number: u32) -> Result<Vec<Job>> {
        let settings = self.settings;
        let on_mount = engine == Engine::Mount;
        let file_number = if settings.different_file_each_iteration { number } else { 0 };
        let key = (on_mount, case.file_kind(), file_number, settings.files_of(case));
        if !self.files.contains_key(&key) {
            let folders = self.folders(on_mount)?;
            let each = settings.bytes_each(case);
            let files: Result<Vec<_>> = folders
                .iter()
                .enumerate()
                .map(|(process, folder)| self.make_files(folder, process, &key, each))
                .collect();
            self.files.insert(key, files?);
        }
        let files = &self.files[&key];
        for file in files.iter().flatten() {
            file.begin(case.start(), engine.is_fio())?;
        }
        let job = |(process, files): (usize, &Vec<BenchFile>)| Job {
            engine,
            files: files.iter().map(|file| file.path()).collect(),
            each: settings.bytes_each(case),
            access: case.access(),
            order: case.order(),
            seed: u64::from(number) << 16 | process as u64,
            sync: settings.sync,
            validate: settings.validate && !engine.is_fio(),
        };
        Ok(files.iter().enumerate().map(job).collect())
    }

    /// The folder of each process.
    fn folders(&mut self, on_mount: bool) -> Result<Vec<PathBuf>> {
        if !on_mount {
            return Ok(self.settings.folders.clone());
        }
        if let Some(mount) = &self.existing_mount {
            return Ok(vec![mount.clone(); self.settings.processes()]);
        }
        // One for each folder, however many processes share it.
        for folder in &self.settings.folders {
            if !self.mounts.contains_key(folder) {
                let mount = OwnMount::new(self.cleanup, self.settings, folder, "mount")?;
                self.mounts.insert(folder.clone(), mount);
            }
        }
        let mount_of = |folder| self.mounts[folder].mountpoint.clone();
        Ok(self.settings.folders.iter().map(mount_of).collect())
    }

    fn make_files(
        &self, folder: &Path, process: usize, key: &FileKey, each: u64,
    ) -> Result<Vec<BenchFile>> {
        let (on_mount, kind, number, count) = *key;
        let named = match kind {
            "read" => &self.settings.read_file,
            _ => &self.settings.write_file,
        };
        let make = |index: u32| {
            if let (Some(path), false, 1) = (named, on_mount, count) {
                return match kind {
                    "read" => BenchFile::existing(path, each),
                    _ => {
                        let path = numbered(path, process, self.settings.processes(), number);
                        BenchFile::for_writing(self.cleanup, path, each)
                    }
                };
            }
            let mut name = format!("_aio_{kind}_{each}.pt.{process}_{number}");
            if count > 1 {
                name.push_str(&format!("_{index}"));
            }
            let path = folder.join(name);
            match kind {
                "read" => BenchFile::for_reading(self.cleanup, path, each),
                _ => BenchFile::for_writing(self.cleanup, path, each),
            }
        };
        (0..count).map(make).collect()
    }
}

fn setups(settings: &Settings) -> Vec<Setup> {
    let setup = |seed: usize| Setup {
        memory: settings.io_size,
        block_size: settings.block_size,
        queue_depth: settings.queue_depth,
        single_submit: settings.single_submit,
        overlap_events: settings.overlap_events,
        io_parallel: settings.io_parallel,
        seed: seed as u64 + 1,
    };
    (0..settings.processes()).map(setup).collect()
}

/// The name of a process's `--write-file`: itself for one process, else with the process's number.
fn numbered(path: &Path, process: usize, processes: usize, number: u32) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    if processes > 1 {
        name.push(format!(".{process}"));
    }
    if number > 0 {
        name.push(format!("_{number}"));
    }
    name.into()
}
