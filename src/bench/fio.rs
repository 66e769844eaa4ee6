//! fio as a peer: the same files, block size, depth and final fsync, measured by fio itself.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use serde_json::Value;

use super::case::{Access, Order};
use super::cleanup::Cleanup;
use super::protocol::Job;
use super::round::Round;
use super::settings::{Engine, Settings};
use super::{BenchError, Result};
use crate::pool::free_huge_bytes;
use crate::sys_process::reason;
use crate::units::MIB;

fn failed(line: impl Into<String>) -> BenchError {
    BenchError::Failed(line.into())
}

/// Whether fio can be started.
#[must_use]
pub fn is_installed() -> bool {
    let mut command = Command::new("fio");
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// What the engine needs and this machine may not have.
pub(super) fn check(settings: &Settings, engine: Engine) -> Result<()> {
    if !is_installed() {
        return Err(failed(format!(
            "engine {}: fio is not installed (the package is called fio)",
            engine.name()
        )));
    }
    if engine == Engine::FioHuge { check_huge_pages(settings) } else { Ok(()) }
}

fn check_huge_pages(settings: &Settings) -> Result<()> {
    let free = free_huge_pages();
    let needed = huge_pages_needed(settings);
    if free < needed {
        return Err(failed(format!(
            "engine fio-huge: {needed} huge pages of 2 MiB are needed, {free} are free; reserve more: \
             sysctl vm.nr_hugepages={needed}"
        )));
    }
    Ok(())
}

/// Huge pages for all of fio's jobs.
pub(super) fn huge_pages_needed(settings: &Settings) -> u64 {
    let jobs = settings.processes() as u64 * u64::from(settings.io_parallel);
    huge_pages(jobs, settings.block_size.saturating_mul(u64::from(settings.queue_depth)))
}

/// Huge pages of 2 MiB for so many of fio's jobs, each with `buffers` bytes of memory, and two more each: it rounds up
/// twice, and falls over where they do not reach.
#[must_use]
pub fn huge_pages(jobs: u64, buffers: u64) -> u64 {
    jobs.saturating_mul(buffers.div_ceil(2 * MIB) + 2)
}

/// Huge pages of 2 MiB that are there for the taking.
pub(super) fn free_huge_pages() -> u64 {
    free_huge_bytes() / (2 * MIB)
}

/// One round by one run of fio, a job of its own for each process.
pub(super) fn round(cleanup: &Cleanup, settings: &Settings, jobs: &[Job]) -> Result<Round> {
    let Some(first) = jobs.first() else { return Ok(Round::default()) };
    if first.engine == Engine::FioHuge {
        // Somebody may have taken them since the beginning, we ourselves among them.
        check_huge_pages(settings)?;
    }
    let mut command = command_of(settings, first);
    for (index, job) in jobs.iter().enumerate() {
        for (offset, size) in slices(settings, job) {
            command.arg(format!("--name=p{index}")).arg(file_names(job));
            command.arg(format!("--offset={offset}")).arg(format!("--size={size}"));
        }
    }
    let output =
        cleanup.output(&mut command).map_err(|error| failed(format!("fio: {}", reason(&error))))?;
    // File names may be no text.
    let [text, complaint] =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let status = output.status;
    if !status.success() {
        if first.engine == Engine::FioHuge && status.signal().is_some() {
            // fio does not survive a huge page that somebody else was faster to get.
            return Err(failed(format!(
                "fio: {status}; other programs may have taken its huge pages"
            )));
        }
        let lines = complaint.lines().chain(text.lines());
        let line = lines.map(str::trim).find(|line| line.starts_with("fio:"));
        let line = line.map_or_else(|| format!("fio: {status}"), str::to_owned);
        return Err(failed(line));
    }
    read_report(&text, jobs)
}

/// A run of fio that reports in JSON, still without files.
#[must_use]
pub fn command(rw: &str, block: u64, depth: u32, fsync: bool) -> Command {
    let mut command = Command::new("fio");
    command.args(["--output-format=json", "--fallocate=none", "--file_service_type=sequential"]);
    // The state of caches is made before, and the same for all.
    command.arg("--invalidate=0").arg(format!("--rw={rw}")).arg(format!("--bs={block}"));
    command.arg(format!("--iodepth={depth}"));
    command.arg(format!("--end_fsync={}", u8::from(fsync)));
    command
}

/// What a job of a report has moved: for each direction the report's figures, the bytes, and the seconds.
pub fn moved(job: &Value) -> impl Iterator<Item = (&Value, u64, f64)> {
    [&job["read"], &job["write"]].into_iter().filter_map(|figures| {
        let (bytes, rate) = (figures["io_bytes"].as_u64()?, figures["bw_bytes"].as_f64()?);
        Some((figures, bytes, if rate > 0.0 { bytes as f64 / rate } else { 0.0 }))
    })
}

fn command_of(settings: &Settings, job: &Job) -> Command {
    let rw = match (job.order, job.access) {
        (Order::Sequential, Access::Read) => "read",
        (Order::Sequential, Access::Write) => "write",
        (Order::Sequential, Access::Mixed) => "rw",
        (Order::Random, Access::Read) => "randread",
        (Order::Random, Access::Write) => "randwrite",
        (Order::Random, Access::Mixed) => "randrw",
    };
    let (depth, fsync) = (settings.queue_depth, job.sync && job.access != Access::Read);
    let mut command = command(rw, block_size(settings, job), depth, fsync);
    command.args(["--direct=1", "--ioengine=io_uring", "--thread"]);
    if !settings.overlap_events {
        command.arg(format!("--iodepth_batch={depth}"));
        command.arg(format!("--iodepth_batch_complete_min={depth}"));
    }
    if job.engine == Engine::FioHuge {
        command.arg("--iomem=mmaphuge");
    }
    command
}

/// fio moves whole blocks only, and nothing of a file that is smaller.
fn block_size(settings: &Settings, job: &Job) -> u64 {
    settings.block_size.min(job.each / 512 * 512).max(512)
}

/// Offset and length for each thread of a process: one file in as many parts, several files in one.
fn slices(settings: &Settings, job: &Job) -> Vec<(u64, u64)> {
    let total = job.each * job.files.len() as u64;
    if job.files.len() > 1 {
        return vec![(0, total)];
    }
    let block = block_size(settings, job);
    let slice = total.div_ceil(u64::from(settings.io_parallel)).next_multiple_of(block);
    let starts = (0..u64::from(settings.io_parallel)).map(|thread| thread * slice);
    let parts = starts.map(|start| (start, slice.min(total.saturating_sub(start))));
    parts.filter(|(_, size)| *size >= block).collect()
}

/// fio takes several names with colons in between.
fn file_names(job: &Job) -> OsString {
    let mut argument = b"--filename=".to_vec();
    for (index, path) in job.files.iter().enumerate() {
        if index > 0 {
            argument.push(b':');
        }
        let path = std::path::absolute(path).unwrap_or_else(|_| path.clone());
        for byte in path.as_os_str().as_bytes() {
            if matches!(byte, b'\\' | b':') {
                argument.push(b'\\');
            }
            argument.push(*byte);
        }
    }
    OsString::from_vec(argument)
}

fn read_report(text: &str, jobs: &[Job]) -> Result<Round> {
    let wrong = |what: &str| failed(format!("fio: its report has {what}"));
    // fio repeats names as they are.
    let text = text.replace(char::is_control, " ");
    let start = text.find('{').ok_or_else(|| wrong("no JSON"))?;
    let report: Value =
        serde_json::from_str(&text[start..]).map_err(|error| wrong(&error.to_string()))?;
    let rows = report["jobs"].as_array().ok_or_else(|| wrong("no jobs"))?;
    let mut round = Round::default();
    for index in 0..jobs.len() {
        let name = format!("p{index}");
        let mut seconds = 0.0_f64;
        for row in rows.iter().filter(|row| row["jobname"] == name.as_str()) {
            if row["error"].as_i64() != Some(0) {
                let code = row["error"].as_i64().and_then(|code| i32::try_from(code).ok());
                let errno = nix::errno::Errno::from_raw(code.unwrap_or(0));
                return Err(failed(format!("fio: {}", errno.desc())));
            }
            for (_, bytes, took) in moved(row) {
                round.bytes += bytes;
                seconds = seconds.max(took);
            }
        }
        round.add(seconds, seconds);
    }
    let most = round.seconds();
    round.e2e.fill(most);
    match round.bytes {
        0 => Err(wrong("no bytes")),
        _ => Ok(round),
    }
}
