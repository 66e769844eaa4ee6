//! A realistic round of ZeRO-3 training, as far as its swap space is concerned, through a mount and beside it.
//!
//! `cargo run --release --example zero3_round -- FOLDER [--json]`
//!
//! Files have DeepSpeed's names and proportions: fp16 parameters, and for groups of them fp32 masters, exp_avg and exp_avg_sq; gradients
//! on top. After the first write a round reads the parameters in order (forward), again from the last to the first while gradients
//! are written (backward), then for each group reads states and gradients and rewrites states and parameters (step), always
//! with the next partitions on their way in. Every byte is checked when it comes in, and all files plainly at the end. A
//! phase ends when its writes are on the disk.

mod model;
mod round;
mod stores;
mod swapper;

use std::error::Error;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use rustix::fs::XattrFlags;
use tempfile::TempDir;

use model::Model;
use round::{Phase, Round};
use stores::{Aio, Files, Store, Threads};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// The pool's buffers are on their way within this, or something is wrong.
const RELEASE_LIMIT: Duration = Duration::from_secs(60);

/// A round of ZeRO-3 training through a swapfs mount, and on a folder without it.
#[derive(Debug, Parser)]
struct Arguments {
    /// A folder on the device to use; what is made there is removed.
    folder: PathBuf,
    /// MiB of parameters and optimizer states.
    #[arg(long, default_value_t = 4096, value_parser = clap::value_parser!(u32).range(32..))]
    mib: u32,
    /// MiB of the mount's or swapper's buffer pool; the ways without the latter read a quarter of it ahead, and may have as much on
    /// its way out.
    #[arg(long, default_value_t = 1024, value_parser = clap::value_parser!(u32).range(16..))]
    pool_mib: u32,
    /// Rounds after the first write.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Threads of the ways with plain calls.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    threads: u32,
    /// Ways to take, all by default.
    #[arg(long, value_delimiter = ',')]
    ways: Vec<Way>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// How the bytes get to the disk and back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Way {
    /// Plain calls on a mount
    Mount,
    /// O_DIRECT calls on a mount
    MountDirect,
    /// Plain calls on a folder, with all memory as page cache
    Folder,
    /// O_DIRECT calls on a folder
    FolderDirect,
    /// aio::Handle on a folder, depth 8
    FolderAio,
    /// deepspeed::Swapper on a folder, working in its pool
    Swapper,
}

impl Way {
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    fn is_mounted(self) -> bool {
        matches!(self, Self::Mount | Self::MountDirect)
    }
}

/// The folder that one way works in: a mount or not, gone at the end.
struct Place {
    root: TempDir,
    mounted: bool,
}

impl Place {
    fn new(arguments: &Arguments, way: Way) -> Outcome<Self> {
        swapfs::bench::check_place(&arguments.folder)?;
        let root = TempDir::with_prefix_in("swapfs-round-", &arguments.folder)?;
        for name in ["swap", "mnt"] {
            fs::create_dir(root.path().join(name))?;
        }
        let mut place = Self { root, mounted: false };
        if way.is_mounted() {
            let pool = format!("--pool-size={}m", arguments.pool_mib);
            let (swap, mnt) = (place.swap(), place.root.path().join("mnt"));
            command(&["mount".as_ref(), pool.as_ref(), swap.as_os_str(), mnt.as_os_str()])?;
            place.mounted = true;
        }
        Ok(place)
    }

    fn swap(&self) -> PathBuf {
        self.root.path().join("swap")
    }

    fn folder(&self) -> PathBuf {
        self.root.path().join(if self.mounted { "mnt" } else { "swap" })
    }

    /// Everything on the disk.
    fn settle(&self) -> Outcome<()> {
        let folder = File::open(self.folder())?;
        match self.mounted {
            true => folder.sync_all()?,
            false => rustix::fs::syncfs(&folder)?,
        }
        Ok(())
    }

    /// Nothing in memory: neither in the pool nor in the page cache.
    fn cool(&self, model: &Model) -> Outcome<()> {
        if self.mounted {
            let mnt = self.folder();
            rustix::fs::setxattr(&mnt, "user.swap.request", b"release", XattrFlags::empty())?;
            let started = Instant::now();
            let mut value = [0; 16];
            while rustix::fs::getxattr(&mnt, "user.swap.wait", &mut value[..])? != "idle".len() {
                if started.elapsed() > RELEASE_LIMIT {
                    return Err("the mount is in flight for ever".into());
                }
            }
            return Ok(());
        }
        for partition in model.partitions() {
            if let Ok(file) = File::open(self.folder().join(partition.path())) {
                rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
            }
        }
        Ok(())
    }

    fn umount(&mut self) -> Outcome<()> {
        if std::mem::take(&mut self.mounted) {
            command(&["umount".as_ref(), self.root.path().join("mnt").as_os_str()])?;
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = self.umount() {
            eprintln!("zero3_round: {error}");
        }
    }
}

fn command(arguments: &[&std::ffi::OsStr]) -> Outcome<()> {
    let this = std::env::current_exe()?;
    let status = Command::new(this).arg0("swapfs").args(arguments).status()?;
    if status.success() { Ok(()) } else { Err(format!("swapfs {arguments:?}: {status}").into()) }
}

/// What a way came to.
struct Report {
    way: Way,
    phases: Vec<Phase>,
    /// Of each partition after the last round.
    checksums: Vec<u64>,
}

fn run(arguments: &Arguments, model: &Model, way: Way) -> Outcome<Report> {
    let place = Place::new(arguments, way)?;
    for folder in ["float16params", "optimizer"] {
        fs::create_dir_all(place.folder().join("zero_stage_3").join(folder).join("rank0"))?;
    }
    let (folder, ahead) = (place.folder(), (arguments.pool_mib as usize) << 18);
    let threads = |direct| Threads::new(arguments.threads as usize, direct);
    match way {
        Way::Mount | Way::Folder => {
            rounds(arguments, model, way, Files::new(&folder, ahead, threads(false)), place)
        }
        Way::MountDirect | Way::FolderDirect => {
            rounds(arguments, model, way, Files::new(&folder, ahead, threads(true)), place)
        }
        Way::FolderAio => {
            rounds(arguments, model, way, Files::new(&folder, ahead, Aio::new(8)?), place)
        }
        Way::Swapper => {
            let pool_size = u64::from(arguments.pool_mib) << 20;
            rounds(arguments, model, way, swapper::Pool::new(&folder, pool_size)?, place)
        }
    }
}

fn rounds(
    arguments: &Arguments, model: &Model, way: Way, store: impl Store, mut place: Place,
) -> Outcome<Report> {
    let mut round = Round::new(model, store);
    let mut phases = vec![round.measure("first write", Round::fill, || place.settle())?];
    for _ in 0..arguments.rounds {
        place.cool(model)?;
        phases.push(round.measure("forward", Round::forward, || Ok(()))?);
        phases.push(round.measure("backward", Round::backward, || place.settle())?);
        phases.push(round.measure("step", Round::step, || place.settle())?);
    }
    let checksums = std::mem::take(&mut round.checksums);
    drop(round);
    place.umount()?;
    verify(model, &checksums, &place.swap())?;
    Ok(Report { way, phases, checksums })
}

/// The files themselves, read plainly without anything of swapfs.
fn verify(model: &Model, checksums: &[u64], folder: &Path) -> Outcome<()> {
    for partition in model.partitions() {
        let path = folder.join(partition.path());
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => vec![],
            read => read?,
        };
        let expected = checksums[partition.number];
        let written = expected != 0;
        let right = bytes.len() == if written { partition.length } else { 0 };
        if !right || (written && model::checksum([&bytes[..]]) != expected) {
            return Err(format!("{}: other bytes are on the disk", path.display()).into());
        }
    }
    Ok(())
}

fn print(arguments: &Arguments, model: &Model, reports: &[Report]) {
    let mib = |bytes: u64| bytes as f64 / 1_048_576.0;
    if arguments.json {
        let reports = reports.iter().map(|report| {
            let phases = report.phases.iter().map(|phase| {
                serde_json::json!({
                    "phase": phase.name, "seconds": phase.seconds, "waited_seconds": phase.waited,
                    "read_bytes": phase.read, "written_bytes": phase.written, "gb_per_s": phase.gb_per_s(),
                })
            });
            serde_json::json!({"way": report.way.name(), "phases": phases.collect::<Vec<_>>()})
        });
        let report = serde_json::json!({
            "bytes": model.bytes(), "pool_mib": arguments.pool_mib, "rounds": arguments.rounds,
            "partitions": model.count, "verified": true, "ways": reports.collect::<Vec<_>>(),
        });
        println!("{report:#}");
        return;
    }
    println!(
        "{:.0} MiB of parameters and states, {} partitions with gradients, pool of {} MiB; all bytes \
         verified",
        mib(model.bytes()),
        model.count,
        arguments.pool_mib
    );
    println!(
        "{:<14} {:<12} {:>8} {:>10} {:>12} {:>8} {:>9}",
        "", "", "read MiB", "written", "seconds", "GB/s", "waited s"
    );
    for report in reports {
        for phase in &report.phases {
            println!(
                "{:<14} {:<12} {:>8.0} {:>10.0} {:>12.2} {:>8.2} {:>9.2}",
                report.way.name(),
                phase.name,
                mib(phase.read),
                mib(phase.written),
                phase.seconds,
                phase.gb_per_s(),
                phase.waited
            );
        }
    }
}

fn all(arguments: &Arguments) -> Outcome<()> {
    let model = Model::new((arguments.mib as usize) << 20, (arguments.pool_mib as usize) << 20);
    let ways = match &arguments.ways[..] {
        [] => Way::value_variants(),
        ways => ways,
    };
    let mut reports: Vec<Report> = Vec::new();
    for way in ways {
        let report =
            run(arguments, &model, *way).map_err(|error| format!("{}: {error}", way.name()))?;
        if let Some(first) = reports.first()
            && first.checksums != report.checksums
        {
            let (one, other) = (first.way.name(), way.name());
            return Err(format!("{one} and {other} came to different bytes").into());
        }
        reports.push(report);
    }
    print(arguments, &model, &reports);
    Ok(())
}

pub(crate) fn main() -> ExitCode {
    // Its mounts are made by this program again, under the command's name.
    if std::env::args_os().next().is_some_and(|name| name == "swapfs") {
        return swapfs::cli::run(std::env::args_os(), &swapfs::service::SwapFactory);
    }
    match all(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("zero3_round: {error}");
            ExitCode::FAILURE
        }
    }
}
