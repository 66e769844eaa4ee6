//! Waiting until requests are done.
//!
//! A request on a directory returns before the mount has come to the last partition below, so a
//! partition that is not in flight need not be done: it may not have had its turn. The rounds over what
//! is left therefore end only when every partition is as asked, or when nothing moves any more.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::targets::{files_below, line_about};
use super::{Request, Target, number};
use crate::paths::plain;
use crate::sys_process::text_xattr;
use crate::units::format_short;

/// Nothing of the mount in flight and no partition changed for this long: the rest will not be done.
const IDLE_PATIENCE: Duration = Duration::from_secs(2);

/// The same while the mount is busy, perhaps with work of others.
const BUSY_PATIENCE: Duration = Duration::from_secs(60);

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(20);

/// Partitions named below one path; the others are counted.
const NAMES_MAX: usize = 100;

/// How to wait.
pub(super) struct Wait {
    pub(super) request: Request,
    /// When to give up, and after how many seconds that is.
    pub(super) deadline: Option<(Instant, u64)>,
    pub(super) bar: ProgressBar,
}

/// A partition that is waited for.
struct Pending {
    path: PathBuf,
    target: usize,
    size: u64,
    last: Look,
}

/// What a partition looked like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Look {
    status: String,
    resident: u64,
    dirty: u64,
    error: Option<String>,
}

impl Look {
    /// Waits until the partition is not in flight, for a second at most; `None` when it is gone.
    fn wait(path: &Path) -> Result<Option<Self>, String> {
        let status = match text_xattr(path, "user.swap.wait") {
            Ok(Some(status)) => status,
            Ok(None) => {
                return Err(format!("{}: no partition of a swapfs mount", plain(path)));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(line_about(path, &error)),
        };
        Ok(Some(Self {
            status,
            resident: number(path, "user.swap.resident").unwrap_or(0),
            dirty: number(path, "user.swap.dirty").unwrap_or(0),
            error: text_xattr(path, "user.swap.error").ok().flatten(),
        }))
    }

    fn is_done(&self, request: Request) -> bool {
        let as_asked = match request {
            Request::SwapIn => self.status == "available",
            Request::SwapOut => self.dirty == 0,
            Request::Release => self.dirty == 0 && self.resident == 0,
        };
        as_asked && self.error.is_none() && self.status != "inflight"
    }

    /// Bytes of `size` that are done.
    fn progress(&self, request: Request, size: u64) -> u64 {
        match request {
            Request::SwapIn => self.resident.min(size),
            Request::SwapOut => size.saturating_sub(self.dirty),
            Request::Release => size.saturating_sub(self.resident),
        }
    }

    /// The line about a partition that stays as it is; `None` when that is nobody's failure.
    fn failure(&self, path: &Path, request: Request, size: u64) -> Option<String> {
        let (shown, command) = (plain(path), request.command());
        if let Some(errno) = &self.error {
            return Some(format!("{shown}: {command} failed: {errno}"));
        }
        let of_size = |bytes| format!("{} of {}", format_short(bytes), format_short(size));
        match request {
            Request::SwapIn => Some(format!(
                "{shown}: {command} failed: {} are resident, the rest found or kept no room",
                of_size(self.resident)
            )),
            _ if self.dirty > 0 => Some(format!(
                "{shown}: {command} failed: {} are not written out",
                of_size(self.dirty)
            )),
            // Released, and used again by somebody.
            _ => None,
        }
    }
}

/// What a round came to.
#[derive(Default)]
struct Round {
    moved: bool,
    inflight: bool,
}

impl Wait {
    /// Waits for all that was asked, and adds the failures to the targets.
    pub(super) fn run(&self, targets: &mut [Target]) {
        let mut pending = collect(targets);
        let total: u64 = pending.iter().map(|file| file.size).sum();
        self.bar.set_length(total);
        let mut still_since = Instant::now();
        while !pending.is_empty() && !self.is_over() {
            let round = self.round(&mut pending, targets);
            let left: u64 = pending.iter().map(|file| self.left(file)).sum();
            self.bar.set_position(total.saturating_sub(left));
            // What is in flight is under way, however long it takes.
            if round.moved || round.inflight {
                still_since = Instant::now();
            }
            let still = still_since.elapsed();
            if still >= BUSY_PATIENCE || (still >= IDLE_PATIENCE && !is_busy(&pending, targets)) {
                break;
            }
            if !pending.is_empty() {
                std::thread::sleep(PAUSE);
            }
        }
        self.give_up(&pending, targets);
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|(at, _)| Instant::now() >= at)
    }

    fn left(&self, file: &Pending) -> u64 {
        file.size - file.last.progress(self.request, file.size).min(file.size)
    }

    /// Looks at each partition once; keeps those that are not done.
    fn round(&self, pending: &mut Vec<Pending>, targets: &mut [Target]) -> Round {
        let mut round = Round::default();
        pending.retain_mut(|file| {
            if self.is_over() {
                return true;
            }
            let look = match Look::wait(&file.path) {
                Ok(Some(look)) => look,
                Ok(None) => return false,
                Err(line) => {
                    targets[file.target].failures.push(line);
                    return false;
                }
            };
            let is_done = look.is_done(self.request);
            round.inflight |= look.status == "inflight";
            round.moved |= is_done || look != file.last;
            let before = self.left(file);
            file.last = look;
            self.bar.inc(before - self.left(file).min(before));
            !is_done
        });
        round
    }

    /// Says what is not done.
    fn give_up(&self, pending: &[Pending], targets: &mut [Target]) {
        let over = self.deadline.filter(|_| self.is_over());
        for (index, target) in targets.iter_mut().enumerate() {
            let own = || pending.iter().filter(|file| file.target == index);
            let failure = |file: &Pending| {
                let line = file.last.failure(&file.path, self.request, file.size);
                line.filter(|_| over.is_none() || file.last.error.is_some())
            };
            let lines: Vec<String> = own().filter_map(failure).collect();
            target.failures.extend(lines);
            let slow = own().filter(|file| file.last.error.is_none()).count();
            if let Some((_, seconds)) = over.filter(|_| slow > 0) {
                let (shown, command) = (plain(&target.path), self.request.command());
                target.failures.push(match slow {
                    1 => format!("{shown}: {command} not done after {seconds} s"),
                    _ => format!(
                        "{shown}: {command} not done after {seconds} s, {slow} partitions are left"
                    ),
                });
            }
            let more = target.failures.len().saturating_sub(NAMES_MAX);
            if more > 0 {
                target.failures.truncate(NAMES_MAX);
                let shown = plain(&target.path);
                target.failures.push(format!("{shown}: {more} more failed"));
            }
        }
    }
}

/// The partitions below everything that was asked.
fn collect(targets: &mut [Target]) -> Vec<Pending> {
    let mut pending = Vec::new();
    for (index, target) in targets.iter_mut().enumerate() {
        if target.root.is_none() {
            continue;
        }
        match files_below(&target.path) {
            Ok(files) => pending.extend(files.into_iter().map(|file| Pending {
                path: file.path,
                target: index,
                size: file.size,
                last: Look::default(),
            })),
            Err(line) => target.failures.push(line),
        }
    }
    pending
}

/// Whether a mount with something left has anything in flight.
fn is_busy(pending: &[Pending], targets: &[Target]) -> bool {
    let root = |file: &Pending| targets[file.target].root.as_deref();
    let mut roots: Vec<&Path> = pending.iter().filter_map(root).collect();
    roots.sort_unstable();
    roots.dedup();
    let state = |root: &Path| text_xattr(root, "user.swap.wait").ok().flatten();
    roots.into_iter().any(|root| state(root).as_deref() == Some("inflight"))
}
