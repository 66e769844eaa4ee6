//! `swapfs bench`.

use std::path::{Path, PathBuf};

use clap::{ArgAction, Args};
use indicatif::ProgressBar;

use super::bar::bar;
use super::output::{Content, Output, parent};
use super::{Failure, print, table};
use crate::bench::roofline::{self, roofline};
use crate::bench::{BenchError, Case, Cleanup, Engine, Report, Roofline, Settings, measure};
use crate::config::{nearest, parse_switch};
use crate::mount::entry_of_path;
use crate::streams::tell;
use crate::sys_process::reason;
use crate::units::{EXAMPLES, parse_size};

const PLOT: Content = Content { name: "plot", is_ours: Report::is_svg, ending: Some("svg") };

/// Arguments of `swapfs bench`. Those of DeepSpeed's `ds_io` and `test_ds_aio` have their names and
/// meanings; underscores do for dashes.
#[derive(Debug, Args)]
pub struct BenchArgs {
    /// A folder to measure in, a mountpoint, or a file to read.
    #[arg(value_name = "FOLDER|MOUNTPOINT|FILE",
        conflicts_with_all = ["folder", "folder_to_device_mapping", "read_file", "write_file"])]
    pub path: Option<PathBuf>,
    /// Folder for all processes.
    #[arg(long, value_name = "FOLDER", conflicts_with = "folder_to_device_mapping")]
    pub folder: Option<PathBuf>,
    /// A folder for each process, with a device number that says nothing here.
    #[arg(long, value_name = "FOLDER:DEVICE", num_args = 1.., conflicts_with = "multi_process")]
    pub folder_to_device_mapping: Vec<String>,
    /// Read this file, which is there.
    #[arg(long, value_name = "FILE")]
    pub read_file: Option<PathBuf>,
    /// Write this file, which no one else may have made; with several processes, FILE.0, FILE.1, ...
    #[arg(long, value_name = "FILE")]
    pub write_file: Option<PathBuf>,
    /// Bytes that each process moves in a round [default: 512 MiB, or the file's size].
    #[arg(long, value_name = "SIZE", alias = "write-size")]
    pub io_size: Option<String>,
    /// Measure reads; without it (and without --case) writes, with a FOLDER alone both.
    #[arg(long)]
    pub read: bool,
    /// What to measure, with commas between: first-write, overwrite, cold-read, warm-read, random-write,
    /// random-read, mixed, many-write, many-read, or all.
    #[arg(long, value_name = "CASE,...", value_delimiter = ',', action = ArgAction::Append)]
    pub case: Vec<String>,
    /// What moves the bytes: handle, basic, mount, posix, fio, fio-huge, deepspeed; several, with commas
    /// between, take turns [default: handle].
    #[arg(long, value_name = "ENGINE,...", value_delimiter = ',', action = ArgAction::Append)]
    pub engine: Vec<String>,
    /// The same as --engine handle.
    #[arg(long, conflicts_with = "engine")]
    pub handle: bool,
    /// Bytes of a transfer, a power of two.
    #[arg(long, value_name = "SIZE", default_value = "1M")]
    pub block_size: String,
    /// Transfers in flight per thread.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = super::whole::<u32>)]
    pub queue_depth: u32,
    /// Processes that work at the same time.
    #[arg(long, value_name = "N", default_value_t = 1, alias = "threads", value_parser = super::whole::<u32>)]
    pub multi_process: u32,
    /// Threads of each operation.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = super::whole::<u32>)]
    pub io_parallel: u32,
    /// One submission per call.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on",
        default_value = "off", hide_default_value = true, value_parser = switch)]
    pub single_submit: bool,
    /// Keep the queue topped up, which is the default.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "on",
        default_value = "on", hide_default_value = true, value_parser = switch)]
    pub overlap_events: bool,
    /// Submit a batch, wait for all of it, repeat.
    #[arg(long)]
    pub sequential_requests: bool,
    /// Rounds that count.
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = super::whole::<u32>)]
    pub loops: u32,
    /// Rounds before them.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = super::whole::<u32>)]
    pub warmup_loops: u32,
    /// Count those too.
    #[arg(long)]
    pub include_warmup_time: bool,
    /// A file of its own for each round.
    #[arg(long)]
    pub different_file_each_iteration: bool,
    /// Files of the cases many-write and many-read, together as large as --io-size.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = super::whole::<u32>)]
    pub files: u32,
    /// Compare files and memory after each round, outside the time.
    #[arg(long)]
    pub validate: bool,
    /// Leave fsync out of the time.
    #[arg(long)]
    pub no_sync: bool,
    /// Leave the files there.
    #[arg(long)]
    pub keep: bool,
    /// The mountpoint for the engine mount, instead of a temporary mount.
    #[arg(long, value_name = "MOUNTPOINT")]
    pub mount: Option<PathBuf>,
    /// Mount options of the temporary mount.
    #[arg(short = 'o', value_name = "OPT,...", action = ArgAction::Append)]
    pub options: Vec<String>,
    /// Measure each layer between a program and the device alone, and all together.
    #[arg(long, conflicts_with_all = ["engine", "handle", "case", "read", "read_file", "write_file",
        "mount", "multi_process", "validate", "different_file_each_iteration"])]
    pub roofline: bool,
    /// Draw the rows, or the layers.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Device memory; says why not, and what to measure instead.
    #[arg(long, alias = "use-gds")]
    pub gpu: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// DeepSpeed's for torch, without effect here.
    #[arg(long, hide = true)]
    pub use_accelerator_pin_memory: bool,
    /// The same.
    #[arg(long, hide = true)]
    pub slow_bounce_buffer: bool,
    /// The same.
    #[arg(long, hide = true)]
    pub torch_legacy_save: bool,
    /// The same.
    #[arg(long, hide = true)]
    pub fast_io_size: Option<String>,
}

fn switch(text: &str) -> Result<bool, String> {
    parse_switch(text).ok_or_else(|| "give on or off".to_owned())
}

impl From<BenchError> for Failure {
    fn from(error: BenchError) -> Self {
        match error {
            BenchError::Usage(line) => Self::Usage(line),
            BenchError::Failed(line) => Self::Failed(line),
        }
    }
}

/// What a path on the command line turned out to be.
enum Target {
    Folder,
    Mount,
    File,
}

impl BenchArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        if self.gpu {
            return Err(Failure::Failed(
                "--gpu: transfers to and from a GPU go through pinned host memory, which is what this \
                 measures without --gpu; measure the copy from there with `nvbandwidth -t \
                 host_to_device_memcpy_ce`"
                    .to_owned(),
            ));
        }
        self.say_what_is_ignored();
        let settings = self.settings()?;
        // Told now rather than after the measurement.
        let plot = self.plot.as_deref().map(|path| Output::prepare(path, PLOT)).transpose()?;
        let cleanup = Cleanup::new();
        cleanup.watch_signals().map_err(|error| format!("signals: {}", reason(&error)))?;
        if self.roofline {
            let progress = progress(roofline::rounds(&settings));
            let found = roofline(&settings, &cleanup, || progress.inc(1));
            progress.finish_and_clear();
            return self.print_roofline(&found?, plot.as_ref());
        }
        let rows = settings.cases.len() * settings.engines.len();
        let rounds = u64::from(settings.warmup_loops + settings.loops);
        let progress = progress(rows as u64 * rounds);
        let report = measure(&settings, &cleanup, || progress.inc(1));
        progress.finish_and_clear();
        let report = report?;
        if let Some(plot) = &plot {
            plot.write(&report.to_svg()?)?;
        }
        self.print(&report)
    }

    fn say_what_is_ignored(&self) {
        for (given, name) in [
            (self.use_accelerator_pin_memory, "--use-accelerator-pin-memory"),
            (self.slow_bounce_buffer, "--slow-bounce-buffer"),
            (self.torch_legacy_save, "--torch-legacy-save"),
            (self.fast_io_size.is_some(), "--fast-io-size"),
        ] {
            if given {
                tell!("{name} is about torch and has no effect here");
            }
        }
    }

    fn print(&self, report: &Report) -> Result<(), Failure> {
        if self.json {
            return super::print_json(&report.to_json());
        }
        let (header, lines) = report.table();
        let mut shown = table(&header);
        shown.add_rows(lines);
        print(&report.heading())?;
        print(&shown.to_string())?;
        report.notes.iter().try_for_each(|note| print(&format!("note: {note}")))?;
        report.lines().iter().try_for_each(|line| print(line))
    }

    fn print_roofline(&self, found: &Roofline, plot: Option<&Output>) -> Result<(), Failure> {
        if let Some(plot) = plot {
            plot.write(&found.to_svg()?)?;
        }
        if self.json {
            return super::print_json(&found.to_json());
        }
        let (header, lines) = found.table();
        let mut shown = table(&header);
        shown.add_rows(lines);
        print(&format!("{}\n{shown}", found.heading()))?;
        print(&found.limits())
    }

    /// Options that no mount would take are told before anything is mounted.
    fn check_mount_options(&self) -> Result<(), Failure> {
        let mut options = crate::config::Settings::new();
        self.options.iter().try_for_each(|list| options.mount_options(list, false))?;
        Ok(())
    }

    fn settings(&self) -> Result<Settings, Failure> {
        self.check_mount_options()?;
        let target = self.path.as_deref().map(look_at).transpose()?;
        let mut read_file = self.read_file.clone();
        let mut mount = self.mount.clone();
        match (&self.path, &target) {
            (Some(path), Some(Target::File)) => read_file = Some(path.clone()),
            (Some(path), Some(Target::Mount)) if mount.is_none() => mount = Some(path.clone()),
            _ => {}
        }
        let engines = self.engines(mount.is_some())?;
        if mount.is_none()
            && engines.contains(&Engine::Mount)
            && let Some(folder) = &self.folder
            && let Ok(Some(_)) = entry_of_path(folder)
        {
            mount = Some(folder.clone());
        }
        let io_size = match (&self.io_size, &read_file) {
            (Some(text), _) => size("--io-size", text)?,
            (None, Some(path)) => file_size(path)?,
            (None, None) => Settings::default().io_size,
        };
        Ok(Settings {
            folders: self.folders(read_file.as_deref(), mount.as_deref())?,
            io_size,
            block_size: size("--block-size", &self.block_size)?,
            queue_depth: self.queue_depth,
            single_submit: self.single_submit,
            overlap_events: self.overlap_events && !self.sequential_requests,
            io_parallel: self.io_parallel,
            cases: self.cases(&engines, read_file.is_some(), target.as_ref())?,
            engines,
            files: self.files,
            loops: self.loops,
            warmup_loops: self.warmup_loops,
            include_warmup_time: self.include_warmup_time,
            different_file_each_iteration: self.different_file_each_iteration,
            validate: self.validate,
            sync: !self.no_sync,
            keep: self.keep,
            read_file,
            write_file: self.write_file.clone(),
            mount,
            mount_options: self.options.clone(),
            ..Settings::default()
        })
    }

    fn folders(
        &self, read_file: Option<&Path>, mount: Option<&Path>,
    ) -> Result<Vec<PathBuf>, Failure> {
        if !self.folder_to_device_mapping.is_empty() {
            let folder = |text: &String| match text.rsplit_once(':') {
                Some((folder, device)) if !folder.is_empty() && device.parse::<u32>().is_ok() => {
                    Ok(PathBuf::from(folder))
                }
                _ => Err(Failure::Usage(format!(
                    "--folder-to-device-mapping: \"{text}\" is not accepted; give FOLDER:DEVICE, such as \
                     /nvme0:0"
                ))),
            };
            return self.folder_to_device_mapping.iter().map(folder).collect();
        }
        // A file of one's own to be written counts most: that is where bytes go.
        let folder = (self.folder.clone())
            .or_else(|| self.write_file.as_deref().map(parent).map(Path::to_owned))
            .or_else(|| read_file.map(parent).map(Path::to_owned))
            .or_else(|| self.path.clone())
            .or_else(|| mount.map(Path::to_owned));
        let Some(folder) = folder else {
            return Err(Failure::Usage(
                "no folder to measure in; give one: swapfs bench FOLDER".to_owned(),
            ));
        };
        match self.multi_process {
            1..=4096 => Ok(vec![folder; self.multi_process as usize]),
            other => Err(Failure::Usage(format!(
                "--multi-process: {other} is not accepted; give 1 to 4096"
            ))),
        }
    }

    fn engines(&self, has_mount: bool) -> Result<Vec<Engine>, Failure> {
        if self.engine.is_empty() {
            let usual = if has_mount && !self.handle { Engine::Mount } else { Engine::Handle };
            return Ok(vec![usual]);
        }
        let names: Vec<&str> = Engine::ALL.iter().map(|engine| engine.name()).collect();
        let parse = |text: &String| {
            // ds_io's own names for the two that it shares with us.
            let name = match text.replace('_', "-").as_str() {
                "aio-handle" => "handle".to_owned(),
                "aio-basic" => "basic".to_owned(),
                other => other.to_owned(),
            };
            let found = Engine::ALL.into_iter().find(|engine| engine.name() == name);
            found.ok_or_else(|| unknown("--engine", "engine", text, &names))
        };
        self.engine.iter().map(parse).collect()
    }

    fn cases(
        &self, engines: &[Engine], has_read_file: bool, target: Option<&Target>,
    ) -> Result<Vec<Case>, Failure> {
        if self.case.iter().any(|text| text == "all") {
            return Ok(Case::ALL.to_vec());
        }
        if !self.case.is_empty() {
            let names: Vec<&str> =
                Case::ALL.iter().map(|case| case.name()).chain(["all"]).collect();
            let parse = |text: &String| {
                let name = text.replace('_', "-");
                let found = Case::ALL.into_iter().find(|case| case.name() == name);
                found.ok_or_else(|| unknown("--case", "case", text, &names))
            };
            return self.case.iter().map(parse).collect();
        }
        let both = matches!(target, Some(Target::Folder | Target::Mount)) && !self.read;
        let reads = self.read || has_read_file || both;
        let writes = !self.read && (!has_read_file || self.write_file.is_some());
        let mut cases = Vec::new();
        if writes {
            cases.extend([Case::FirstWrite, Case::Overwrite]);
        }
        if reads {
            cases.push(Case::ColdRead);
        }
        if reads && engines.iter().any(|engine| !engine.is_direct()) {
            cases.push(Case::WarmRead);
        }
        Ok(cases)
    }
}

fn look_at(path: &Path) -> Result<Target, Failure> {
    let failed = |error| Failure::Failed(format!("{}: {}", path.display(), reason(&error)));
    let found = std::fs::metadata(path).map_err(failed)?;
    if !found.is_dir() {
        return Ok(Target::File);
    }
    match entry_of_path(path).map_err(failed)? {
        Some(_) => Ok(Target::Mount),
        None => Ok(Target::Folder),
    }
}

fn file_size(path: &Path) -> Result<u64, Failure> {
    match std::fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            Err(Failure::Failed(format!("{}: not a regular file", path.display())))
        }
        Ok(found) if found.len() == 0 => {
            Err(Failure::Failed(format!("{}: an empty file, nothing to read", path.display())))
        }
        Ok(found) => Ok(found.len()),
        Err(error) => Err(Failure::Failed(format!("{}: {}", path.display(), reason(&error)))),
    }
}

fn size(name: &str, text: &str) -> Result<u64, Failure> {
    parse_size(text).ok_or_else(|| {
        Failure::Usage(format!("{name}: \"{text}\" is not accepted; give a size ({EXAMPLES})"))
    })
}

/// The line about a name that is none, with the nearest one that is.
fn unknown(flag: &str, what: &str, text: &str, names: &[&'static str]) -> Failure {
    let list = names.join(", ");
    let hint = match nearest(text, names.iter().copied()) {
        Some(name) => format!("the nearest is {name}, all are {list}"),
        None => format!("accepted are {list}"),
    };
    Failure::Usage(format!("{flag}: \"{text}\" is no {what}; {hint}"))
}

/// A bar on a terminal, one step a round.
fn progress(rounds: u64) -> ProgressBar {
    let bar = bar("measuring {bar:40} {pos}/{len} rounds, {per_sec}, {eta} left");
    bar.set_length(rounds);
    bar.tick();
    bar
}
