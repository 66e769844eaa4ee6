//! The programs that move the bytes: fio, the client that is this program again, Python, the ZeRO-3 round.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;
use swapfs::bench::{Cleanup, Made, fio};
use swapfs::units::MIB;

use crate::Outcome;
use crate::client::Task;
use crate::place::PROGRAM;
use crate::sample::Sample;

/// Python's part of the rows.
const PYTHON: &str = include_str!("client.py");
/// How huge pages are counted and asked for.
const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";
const FREE_HUGE_PAGES: &str = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";

/// A run of fio: direct and asynchronous as a rule, a job for each file, all beginning together.
#[derive(Debug, Clone)]
pub(crate) struct Fio {
    /// `read`, `write`, or `randread`.
    pub(crate) rw: &'static str,
    pub(crate) block: u64,
    /// For each job.
    pub(crate) depth: u32,
    /// Bytes of each file.
    pub(crate) bytes: u64,
    pub(crate) pace: Pace,
    /// Its memory is in huge pages.
    pub(crate) huge: bool,
    /// How many jobs share the files, each in a process of its own.
    pub(crate) jobs: usize,
    pub(crate) calls: Calls,
}

/// Which calls it makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Calls {
    /// Direct ones by libaio.
    Direct,
    /// One buffered call after the other.
    Plain,
    /// Buffered ones by io_uring.
    Uring,
}

/// When it ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// When every file is through.
    Once,
    /// The same, or after so many seconds.
    AtMost(u32),
    /// After so many seconds, the files being moved again and again.
    For(u32),
}

impl Fio {
    /// Blocks of 1 MiB past the page cache, each file once.
    pub(crate) fn direct(rw: &'static str, depth: u32, bytes: u64) -> Self {
        let (block, pace, calls) = (MIB, Pace::Once, Calls::Direct);
        Self { rw, block, depth, bytes, pace, huge: false, jobs: 1, calls }
    }

    /// Runs it on files that are in the right state.
    pub(crate) fn run(&self, cleanup: &Cleanup, files: &[PathBuf]) -> Outcome<Sample> {
        let mut command = fio::command(self.rw, self.block, self.depth, self.rw == "write");
        command.args(match self.calls {
            Calls::Direct => ["--ioengine=libaio", "--direct=1"].as_slice(),
            // Of one piece, as the memory of other clients is.
            Calls::Plain => &["--ioengine=psync", "--direct=0", "--iomem=mmap"],
            Calls::Uring => &["--ioengine=io_uring", "--direct=0", "--iomem=mmap"],
        });
        // Times are from the call on, not from its return.
        command.args(["--randrepeat=1", "--clat_percentiles=0", "--lat_percentiles=1"]);
        match self.pace {
            Pace::Once => &mut command,
            Pace::AtMost(seconds) => command.arg(format!("--runtime={seconds}")),
            Pace::For(seconds) => command.arg(format!("--runtime={seconds}")).arg("--time_based"),
        };
        // For no longer than that: other programs' memory would come from them.
        let pages = if self.huge {
            command.arg("--iomem=mmaphuge");
            let wanted = fio::huge_pages(self.jobs as u64, u64::from(self.depth) * self.block);
            Some(huge_pages(cleanup, wanted).ok_or("there are no huge pages to be had")?)
        } else {
            None
        };
        for (index, share) in files.chunks(files.len().div_ceil(self.jobs.max(1))).enumerate() {
            let names: Vec<String> = share.iter().map(|path| fio_name(path)).collect();
            // The list has a limit that whole paths would soon reach.
            if let Some(folder) = share[0].parent() {
                command.current_dir(folder);
            }
            command.arg(format!("--name=p{index}")).arg(format!("--filename={}", names.join(":")));
            command.arg(format!("--size={}", self.bytes * share.len() as u64));
        }
        let text = output(cleanup, &mut command)?;
        drop(pages);
        let start = text.find('{').ok_or("fio printed no JSON")?;
        read_report(&serde_json::from_str(&text[start..])?)
    }
}

/// The file's own name; colons are between names.
fn fio_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().replace('\\', "\\\\").replace(':', "\\:")
}

fn read_report(report: &Value) -> Outcome<Sample> {
    let (mut sample, mut cpu) = (Sample::default(), 0.0);
    for job in report["jobs"].as_array().ok_or("fio reported no jobs")? {
        let milliseconds = job["job_runtime"].as_f64().unwrap_or(0.0);
        let busy = job["usr_cpu"].as_f64().unwrap_or(0.0) + job["sys_cpu"].as_f64().unwrap_or(0.0);
        cpu += busy / 100.0 * milliseconds / 1e3;
        for (moved, bytes, seconds) in fio::moved(job) {
            sample.seconds = sample.seconds.max(seconds);
            sample.bytes += bytes;
            sample.count += moved["total_ios"].as_u64().unwrap_or(0);
            let percentile = |name: &str| {
                let found = moved["lat_ns"]["percentile"][name].as_f64()?;
                Some(found / 1e3)
            };
            // Of several jobs, the slowest one's.
            let most = |so_far: Option<f64>, name| match (so_far, percentile(name)) {
                (Some(one), Some(other)) => Some(one.max(other)),
                (one, other) => one.or(other),
            };
            sample.p50 = most(sample.p50, "50.000000");
            sample.p99 = most(sample.p99, "99.000000");
        }
    }
    if sample.bytes == 0 || sample.seconds == 0.0 {
        return Err("fio moved nothing".into());
    }
    sample.client_cpu = Some(cpu);
    Ok(sample)
}

/// Runs the client.
pub(crate) fn client(cleanup: &Cleanup, task: &Task) -> Outcome<Sample> {
    let mut command = Command::new(PROGRAM);
    command.arg0(crate::client::NAME).arg(serde_json::to_string(task)?);
    Ok(serde_json::from_str(&output(cleanup, &mut command)?)?)
}

/// Runs one of the actions of `client.py`.
pub(crate) fn python(cleanup: &Cleanup, action: &str, path: &Path, bytes: u64) -> Outcome<Sample> {
    let mut command = Command::new("python3");
    command.arg("-c").arg(PYTHON).arg(action).arg(path).arg(bytes.to_string());
    Ok(serde_json::from_str(&output(cleanup, &mut command)?)?)
}

/// Whether python3 is there and has a module.
pub(crate) fn python_has(module: &str) -> bool {
    let mut command = Command::new("python3");
    command.arg("-c").arg(format!("import {module}"));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// A ZeRO-3 round in a folder, in one of the ways of the example of that name; all of its phases.
pub(crate) fn zero3(
    cleanup: &Cleanup, folder: &Path, way: &str, mib: u64, pool_mib: u64,
) -> Outcome<Sample> {
    let mut command = Command::new(PROGRAM);
    command.arg0(crate::ZERO3).arg(folder).args(["--ways", way, "--json"]);
    command.arg(format!("--mib={mib}")).arg(format!("--pool-mib={pool_mib}"));
    let report: Value = serde_json::from_str(&output(cleanup, &mut command)?)?;
    let phases = report["ways"][0]["phases"].as_array().ok_or("the round has no phases")?;
    let mut sample = Sample::default();
    for phase in phases {
        sample.seconds += phase["seconds"].as_f64().ok_or("a phase has no time")?;
        for key in ["read_bytes", "written_bytes"] {
            sample.bytes += phase[key].as_u64().unwrap_or(0);
        }
    }
    Ok(sample)
}

/// Empties the page cache of all files, where that is allowed: those of a run are dropped one by one before it.
pub(crate) fn drop_caches() {
    rustix::fs::sync();
    let _ = std::fs::write("/proc/sys/vm/drop_caches", "1");
}

/// Runs a program to its end, and gives what it printed; what it complained of is the error.
fn output(cleanup: &Cleanup, command: &mut Command) -> Outcome<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = cleanup.output(command).map_err(|error| format!("{name}: {error}"))?;
    let [text, complaint] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    if output.status.success() {
        return Ok(text);
    }
    let lines = || complaint.lines().chain(text.lines()).map(str::trim);
    // fio goes on to print a report after what it complains of.
    let line = lines()
        .find(|line| line.starts_with("fio:"))
        .or_else(|| complaint.lines().map(str::trim).rfind(|line| !line.is_empty()));
    Err(format!("{name}: {}", line.unwrap_or(&output.status.to_string())).into())
}

/// Sees to it that as many huge pages of 2 MiB are free for the peers that use them; the number is as before when the guard is
/// dropped. `None` without the right or the memory.
pub(crate) fn huge_pages(cleanup: &Cleanup, wanted: u64) -> Option<Made> {
    let number = |path: &str| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let before = number(HUGE_PAGES)?;
    let missing = wanted.saturating_sub(number(FREE_HUGE_PAGES)?);
    let raise = || match missing {
        0 => Ok(()),
        _ => std::fs::write(HUGE_PAGES, (before + missing).to_string()),
    };
    let restore = move || {
        if missing > 0 {
            let _ = std::fs::write(HUGE_PAGES, before.to_string());
        }
    };
    let ((), made) = cleanup.make_with(raise, restore).ok()?;
    (number(FREE_HUGE_PAGES)? >= wanted).then_some(made)
}
