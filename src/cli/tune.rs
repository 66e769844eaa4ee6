//! `swapfs tune`.

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;

use super::bar::bar;
use super::interrupt::Interrupts;
use super::output::{Content, Output};
use super::{Failure, print, table};
use crate::streams::tell;
use crate::sys_process::reason;
use crate::tune::{self, Combination, End, Listener, LogFolder, Measured, Outcome, Plan, Sweep};
use crate::units::{EXAMPLES, GIB, KIB, MIB, TIB, parse_size};

const CONFIGURATION: Content =
    Content { name: "configuration", is_ours: tune::is_document, ending: None };

const HEAT_MAP: Content =
    Content { name: "heat map", is_ours: tune::is_heat_map, ending: Some("svg") };

/// Rows of the ranking, unless more is asked for.
const ROWS: usize = 10;

/// Arguments of `swapfs tune`; those of DeepSpeed's `ds_nvme_tune` are among them.
#[derive(Debug, Args)]
pub struct TuneArgs {
    /// A folder on the device to tune for, the swap folder say.
    #[arg(required_unless_present = "nvme_dir")]
    pub folder: Option<PathBuf>,
    /// The same under DeepSpeed's name.
    #[arg(long, value_name = "FOLDER", conflicts_with = "folder")]
    pub nvme_dir: Option<PathBuf>,
    /// Take about a minute: fewer bytes for each combination.
    #[arg(long)]
    pub quick: bool,
    /// Sweep what this JSON file lists for block_size, queue_depth, io_parallel, single_submit and
    /// sequential_requests, in the form of DeepSpeed's tuner.
    #[arg(long, value_name = "FILE")]
    pub sweep_config: Option<PathBuf>,
    /// Leave reads out.
    #[arg(long)]
    pub no_read: bool,
    /// Leave writes out.
    #[arg(long)]
    pub no_write: bool,
    /// Bytes of each measurement, and of the scratch file, a multiple of 4 KiB; with --quick, the most.
    #[arg(long, value_name = "SIZE", default_value = "400M")]
    pub io_size: String,
    /// How often each combination is measured, in turns with the others.
    #[arg(long, value_name = "N", default_value = "1")]
    pub loops: String,
    /// Write the best as a configuration file for --config and for DeepSpeed, instead of printing it.
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Draw a heat map.
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Write a log for each measurement, as DeepSpeed's tuner does, into this new folder.
    #[arg(long, value_name = "FOLDER")]
    pub log_dir: Option<PathBuf>,
    /// Print JSON with every figure, which is a configuration file too.
    #[arg(long)]
    pub json: bool,
    /// DeepSpeed's; there is no page cache to flush with O_DIRECT.
    #[arg(long, hide = true)]
    pub flush_page_cache: bool,
    /// DeepSpeed's; answered with what to do instead.
    #[arg(long, hide = true, alias = "gds")]
    pub gpu: bool,
}

/// The bytes of a measurement, from what was typed.
fn io_size(text: &str) -> Result<u64, Failure> {
    let fits = |bytes: &u64| (MIB..=TIB).contains(bytes) && bytes.is_multiple_of(4 * KIB);
    let accepted = format!("give a multiple of 4 KiB from 1 MiB to 1 TiB ({EXAMPLES})");
    parse_size(text).filter(fits).ok_or_else(|| not_accepted("--io-size", text, &accepted))
}

fn loops(text: &str) -> Result<u32, Failure> {
    let loops = text.parse().ok().filter(|loops| (1..=1000).contains(loops));
    loops.ok_or_else(|| not_accepted("--loops", text, "give a whole number from 1 to 1000"))
}

fn not_accepted(name: &str, text: &str, accepted: &str) -> Failure {
    Failure::Usage(format!("{name}: {text:?} is not accepted; {accepted}"))
}

impl TuneArgs {
    pub(super) fn run(self, verbose: u8) -> Result<(), Failure> {
        if self.gpu {
            return Err(Failure::Usage(
                "the GPU's memory is reached by way of pinned host memory: tune that, without --gpu \
                 and --gds"
                    .to_owned(),
            ));
        }
        let (io_size, loops) = (io_size(&self.io_size)?, loops(&self.loops)?);
        if self.no_read && self.no_write {
            return Err(Failure::Usage(
                "--no-read and --no-write together leave nothing to measure".to_owned(),
            ));
        }
        let sweep = self.sweep_config.as_deref().map(Sweep::read).transpose()?.unwrap_or_default();
        let prepare = |path: &Option<PathBuf>, content| {
            path.as_deref().map(|path| Output::prepare(path, content)).transpose()
        };
        let output = prepare(&self.output, CONFIGURATION)?;
        let plot = prepare(&self.plot, HEAT_MAP)?;
        if let (Some(output), Some(plot)) = (&output, &plot)
            && output.is_same_as(plot)
        {
            let line = "--output and --plot are the same file; name another for one of them";
            return Err(Failure::Usage(line.to_owned()));
        }
        let logs = self.log_dir.as_deref().map(LogFolder::prepare).transpose()?;
        let plan = Plan {
            folder: self.folder.or(self.nvme_dir).unwrap_or_default(),
            sweep,
            read: !self.no_read,
            write: !self.no_write,
            io_size,
            loops,
            quick: self.quick,
        };
        let interrupts =
            Interrupts::catch().map_err(|error| format!("signals: {}", reason(&error)))?;
        let mut progress = Progress { bar: ProgressBar::hidden(), interrupts };
        let outcome = tune::run(&plan, &mut progress)?;
        progress.bar.finish_and_clear();
        for note in &outcome.notes {
            tell!("{note}");
        }
        let report = Report { plan: &plan, outcome: &outcome };
        let mut kept = Vec::new();
        if let (Some(output), Some(document)) = (&output, tune::document(&plan, &outcome, false)) {
            output.write(&format!("{document:#}\n"))?;
            kept.push(output.path().display().to_string());
        }
        if let Some(plot) = plot.filter(|_| !outcome.measured.is_empty()) {
            plot.write(&tune::heat_map(&outcome.measured, &report.title())?)?;
            kept.push(plot.path().display().to_string());
        }
        if let Some(logs) = &logs {
            logs.write(&outcome.measured)?;
        }
        match self.json {
            true => report.print_json()?,
            false => report.print(verbose > 0, output.is_none())?,
        }
        report.end(&kept)
    }
}

/// A bar on a terminal; signals that stop the sweep.
struct Progress {
    bar: ProgressBar,
    interrupts: Interrupts,
}

impl Listener for Progress {
    fn begin(&mut self, measurements: u64) {
        self.bar = bar("{bar:30} {pos}/{len}, {per_sec}, {left} left: {msg}");
        self.bar.set_length(measurements);
    }

    fn next(&mut self, combination: &Combination) {
        // The first is under way, not done.
        if !self.bar.message().is_empty() {
            self.bar.inc(1);
        }
        self.bar.set_message(combination.to_string());
    }

    fn is_stopped(&mut self) -> bool {
        self.interrupts.arrived()
    }
}

/// What is told about a sweep.
struct Report<'a> {
    plan: &'a Plan,
    outcome: &'a Outcome,
}

impl Report<'_> {
    fn title(&self) -> String {
        let times = match self.plan.loops {
            1 => "once".to_owned(),
            loops => format!("{loops} times"),
        };
        format!(
            "swapfs tune {}: {} of {} combinations, {} MiB each, {times}, over bytes that are there, fsync not included",
            self.plan.folder.display(),
            self.outcome.measured.len(),
            self.outcome.planned,
            self.outcome.io_size / MIB,
        )
    }

    fn print_json(&self) -> Result<(), Failure> {
        match tune::document(self.plan, self.outcome, true) {
            Some(document) => super::print_json(&document),
            None => Ok(()),
        }
    }

    /// The ranking, the best ones, and, `with_json`, the configuration.
    fn print(&self, all: bool, with_json: bool) -> Result<(), Failure> {
        let Some(document) = tune::document(self.plan, self.outcome, false) else {
            return Ok(());
        };
        print(&self.title())?;
        let mut ranking: Vec<&Measured> = self.outcome.measured.iter().collect();
        ranking.sort_by(|a, b| b.both().total_cmp(&a.both()));
        let rows = if all { ranking.len() } else { ROWS };
        let header =
            ["BLOCK", "DEPTH", "THREADS", "SUBMIT", "EVENTS", "WRITE GiB/s", "READ GiB/s", "BOTH"];
        let mut table = table(&header);
        table.add_rows(ranking.iter().take(rows).map(|one| columns(one)));
        print(&table.trim_fmt())?;
        if ranking.len() > rows {
            print(&format!(" and {} more: -v shows them", ranking.len() - rows))?;
        }
        for (wanted, name, figure) in [
            (self.plan.write, "write", (|one| one.write.speed()) as fn(&Measured) -> f64),
            (self.plan.read, "read", |one| one.read.speed()),
            (self.plan.write && self.plan.read, "both", Measured::both),
        ] {
            if let Some(best) = self.outcome.best(figure).filter(|_| wanted) {
                let speed = figure(best) / GIB as f64;
                print(&format!("best for {name}: {speed:.2} GiB/s with {}", best.combination))?;
            }
        }
        match with_json {
            true => {
                let aio = serde_json::json!({ "aio": document["aio"] });
                super::print_json(&aio)
            }
            false => Ok(()),
        }
    }

    /// Success, or the line about what is missing.
    fn end(&self, kept: &[String]) -> Result<(), Failure> {
        let (measured, planned) = (self.outcome.measured.len(), self.outcome.planned);
        let place = match kept {
            [] => String::new(),
            _ => format!(", kept in {}", kept.join(" and ")),
        };
        let line = match &self.outcome.end {
            End::Complete if measured > 0 => return Ok(()),
            End::Complete => "nothing could be measured".to_owned(),
            End::OutOfTime if measured > 0 => {
                tell!(
                    "a minute was enough for {measured} of {planned} combinations; without \
                     --quick all are measured"
                );
                return Ok(());
            }
            End::OutOfTime => "a minute was not enough for any combination".to_owned(),
            End::Stopped => {
                format!("stopped: {measured} of {planned} combinations were measured{place}")
            }
            End::Failed(why) => format!("{why}; {measured} of {planned} were measured{place}"),
        };
        Err(Failure::Failed(line))
    }
}

fn columns(one: &Measured) -> [String; 8] {
    let combination = &one.combination;
    let speed = |speed: f64| match speed > 0.0 {
        true => format!("{:.2}", speed / GIB as f64),
        false => "-".to_owned(),
    };
    [
        crate::units::format_exact(combination.block_size),
        combination.queue_depth.to_string(),
        combination.intra_op_parallelism.to_string(),
        combination.submit().to_owned(),
        combination.events().to_owned(),
        speed(one.write.speed()),
        speed(one.read.speed()),
        speed(one.both()),
    ]
}
