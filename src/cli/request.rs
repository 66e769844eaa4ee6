//! `swapfs swap-in`, `swap-out` and `release`: requests to a mount, and waiting until they are done.

mod targets;
mod wait;

use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use rustix::fs::XattrFlags;
use rustix::io::Errno;
use serde::Serialize;
use strum::IntoStaticStr;

use super::bar::byte_bar;
use super::below::{Below, Partition, files_below};
use super::watch::pool_count;
use super::{Failure, line_about, print_json};
use crate::paths::plain;
use crate::sys_process::reason;
use crate::units::format_short;
use targets::{Mounts, expand, listed};

/// The attribute that asks.
const REQUEST_XATTR: &str = "user.swap.request";

/// Arguments of `swapfs swap-in`, `swap-out` and `release`.
#[derive(Debug, Args)]
pub struct RequestArgs {
    /// Partitions, directories (for all below them), or patterns with *, ?, [ ] and **.
    #[arg(required_unless_present = "from_file", value_name = "PATH")]
    pub paths: Vec<PathBuf>,
    /// Take more of them from this file, one a line; - for standard input.
    #[arg(long, value_name = "LIST")]
    pub from_file: Option<PathBuf>,
    /// Wait until it is done, and fail for what failed.
    #[arg(long)]
    pub wait: bool,
    /// Seconds to wait at most; without it, as long as it takes.
    #[arg(long, value_name = "S", requires = "wait", value_parser = super::whole::<u64>)]
    pub timeout: Option<u64>,
    /// Print JSON, an object for each path.
    #[arg(long)]
    pub json: bool,
}

/// Most lines about failures.
const LINES_MAX: usize = 10;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, IntoStaticStr)]
#[serde(rename_all = "snake_case")]
#[strum(serialize_all = "kebab-case")]
pub(super) enum Request {
    SwapIn,
    SwapOut,
    Release,
}

impl Request {
    /// The value of `user.swap.request`.
    fn value(self) -> String {
        self.command().replace('-', "_")
    }

    /// The command's name.
    fn command(self) -> &'static str {
        self.into()
    }
}

/// A path after the expansion of patterns, and how it went.
#[derive(Debug)]
struct Target {
    path: PathBuf,
    /// Each a line that begins with the path that it is about.
    failures: Vec<String>,
    /// The mount's root; `None` when nothing was asked there.
    root: Option<PathBuf>,
}

/// The object of `--json` about a path; sizes in bytes, of a directory the sums over all below.
#[derive(Debug, Serialize)]
struct Report<'a> {
    #[serde(serialize_with = "crate::paths::shown")]
    path: &'a Path,
    request: Request,
    status: Option<&'static str>,
    resident: u64,
    size: u64,
    error: Option<String>,
}

impl RequestArgs {
    pub(super) fn run(self, request: Request) -> Result<(), Failure> {
        let start = Instant::now();
        let mounts = Mounts::read()?;
        let mut paths = self.paths;
        if let Some(list) = &self.from_file {
            paths.extend(listed(list)?);
        }
        let mut targets: Vec<Target> = paths
            .iter()
            .flat_map(|path| expand(path))
            .map(|expanded| ask(&mounts, expanded, request))
            .collect();
        if self.wait {
            let wait = wait::Wait {
                request,
                deadline: self.timeout.and_then(|seconds| {
                    let time = Duration::from_secs(seconds);
                    start.checked_add(time).map(|at| (at, seconds))
                }),
                bar: byte_bar(request.command()),
            };
            wait.run(&mut targets);
            wait.bar.finish_and_clear();
        }
        if self.json {
            let reports: Vec<Report> =
                targets.iter().map(|target| Report::of(target, request)).collect();
            print_json(&reports)?;
        }
        let mut lines: Vec<String> =
            targets.into_iter().flat_map(|target| target.failures).collect();
        if let Some(more @ 1..) = lines.len().checked_sub(LINES_MAX) {
            lines.truncate(LINES_MAX);
            lines
                .push(format!("{more} more failed; `swapfs status` shows which, --json names all"));
        }
        match lines.is_empty() {
            true => Ok(()),
            false => Err(Failure::Failed(lines.join("\nswapfs: "))),
        }
    }
}

/// How often a request that a busy mount refuses is sent again, and how long after.
const BUSY_TRIES: u32 = 600;
const BUSY_RETRY: Duration = Duration::from_millis(50);

/// Sends the request for one path.
fn ask(mounts: &Mounts, expanded: Result<PathBuf, (PathBuf, String)>, request: Request) -> Target {
    let (path, root) = match expanded {
        Ok(path) => {
            let located = mounts.locate(&path);
            let root = located
                .and_then(|(file, root)| send(&path, file.as_fd(), request, &root).map(|()| root));
            (path, root)
        }
        Err((path, line)) => (path, Err(line)),
    };
    match root {
        Ok(root) => Target { path, failures: Vec::new(), root: Some(root) },
        Err(line) => Target { path, failures: vec![line], root: None },
    }
}

/// Sets the attribute; the error is the line for the user.
fn send(path: &Path, file: BorrowedFd<'_>, request: Request, root: &Path) -> Result<(), String> {
    let value = request.value();
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let mut tries = 0;
    let refusal = loop {
        match rustix::fs::setxattr(&link, REQUEST_XATTR, value.as_bytes(), XattrFlags::empty()) {
            Ok(()) => return Ok(()),
            // As many requests on folders are under way as the user, or all, may have.
            Err(Errno::BUSY) if tries < BUSY_TRIES => tries += 1,
            Err(refusal) => break refusal,
        }
        std::thread::sleep(BUSY_RETRY);
    };
    let (shown, command) = (plain(path), request.command());
    let why = reason(&refusal.into());
    Err(match refusal {
        Errno::NOBUFS => no_room(path, root),
        Errno::ACCESS | Errno::PERM => format!("{shown}: {why}; {command} needs write permission"),
        Errno::ROFS => format!("{shown}: {why}; {command} needs a mount without ro"),
        Errno::INVAL => format!("{shown}: the mount does not take {command} requests here"),
        _ => format!("{shown}: {why}"),
    })
}

/// The line about a swap-in that the pool can never hold, with figures.
fn no_room(path: &Path, root: &Path) -> String {
    let mut size = 0_u64;
    let _ = files_below(path, &mut |found| {
        if let Below::Partition(file) = found
            && let Ok(Some(partition)) = file.open()
        {
            size = size.saturating_add(partition.size().unwrap_or(0));
        }
        ControlFlow::<()>::Continue(())
    });
    let (shown, size) = (plain(path), format_short(size));
    let count = |name: &str| pool_count(root, name);
    let figures = || {
        let (buffers, reserved) = (count("buffers")?, count("reserved")?);
        let free = buffers.saturating_sub(reserved);
        let buffer_size = format_short(count("buffer_size")?);
        Some(format!(", {free} of {buffer_size} ({buffers} less {reserved} reserved)"))
    };
    let figures = figures().unwrap_or_default();
    format!("{shown}: {size} are more than the pool's free buffers hold{figures}")
}

impl<'a> Report<'a> {
    fn of(target: &'a Target, request: Request) -> Self {
        let mut report = Self {
            path: &target.path,
            request,
            status: None,
            resident: 0,
            size: 0,
            error: (!target.failures.is_empty()).then(|| target.failures.join("; ")),
        };
        if target.root.is_none() {
            return report;
        }
        // Of a directory: `inflight` when anything is, `available` when everything is.
        let mut status = "available";
        let walked = files_below(&target.path, &mut |found| {
            match found {
                Below::Partition(file) => {
                    // Others were removed meanwhile.
                    if let Ok(Some(partition)) = file.open() {
                        report.add(&partition, &mut status);
                    }
                }
                Below::LeftOut(folder, error) => {
                    report.error.get_or_insert_with(|| line_about(&folder, &error));
                }
            }
            ControlFlow::<()>::Continue(())
        });
        if let Err(error) = walked {
            report.error.get_or_insert_with(|| line_about(&target.path, &error));
            return report;
        }
        report.status = Some(status);
        report
    }

    fn add(&mut self, partition: &Partition, status: &mut &'static str) {
        match partition.text("user.swap.status").ok().flatten().as_deref() {
            Some("inflight") => *status = "inflight",
            Some("not_available") if *status == "available" => *status = "not_available",
            _ => {}
        }
        let resident = partition.number("user.swap.resident").ok().flatten();
        self.resident += resident.unwrap_or(0);
        self.size += partition.size().unwrap_or(0);
        if self.error.is_none() {
            self.error = partition.text("user.swap.error").ok().flatten();
        }
    }
}
