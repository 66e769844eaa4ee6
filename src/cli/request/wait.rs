//! Waiting until requests are done.
//!
//! A request on a directory returns before the mount has come to the last partition below, so a
//! partition that is not in flight need not be done: it may not have had its turn. The rounds over what
//! is left therefore end only when every partition is as asked, or when nothing moves any more.

use std::collections::HashMap;
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::{Request, Target};
use crate::cli::below::{Below, FileBelow, Partition, files_below};
use crate::cli::line_about;
use crate::paths::plain;
use crate::sys_process::text_xattr;
use crate::units::format_short;

/// Nothing of the mount in flight and no partition changed for this long: the rest will not be done.
const IDLE_PATIENCE: Duration = Duration::from_secs(2);

/// The same while the mount is busy, perhaps with work of others.
const BUSY_PATIENCE: Duration = Duration::from_secs(60);

/// Between two rounds.
const PAUSE: Duration = Duration::from_millis(20);

/// The same at most, where a round takes long.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Partitions named below one path; the others are counted.
const NAMES_MAX: usize = 100;

/// How to wait.
pub(super) struct Wait {
    pub(super) request: Request,
    /// When to give up, and after how many seconds that is.
    pub(super) deadline: Option<(Instant, u64)>,
    pub(super) bar: ProgressBar,
}

/// A partition that is waited for. It has no descriptor, and no path that would have to be short: each round finds it again
/// below what was asked for.
struct Pending {
    size: u64,
    last: Look,
    /// It was met in this round.
    is_met: bool,
}

/// The partitions that are waited for below one path, by inode.
type PendingBelow = HashMap<u64, Pending>;

/// What a partition looked like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Look {
    status: String,
    resident: u64,
    dirty: u64,
    error: Option<String>,
}

impl Look {
    /// Waits until the partition is not in flight, for a second at most; the error is the line for the user.
    fn wait(file: &FileBelow<'_>, partition: &Partition) -> Result<Option<Self>, String> {
        let status = match partition.text("user.swap.wait") {
            Ok(Some(status)) => status,
            Ok(None) => {
                return Err(format!("{}: no partition of a swapfs mount", plain(&file.path())));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(line_about(&file.path(), &error)),
        };
        let number = |name: &str| partition.number(name).ok().flatten().unwrap_or(0);
        Ok(Some(Self {
            status,
            resident: number("user.swap.resident"),
            dirty: number("user.swap.dirty"),
            error: partition.text("user.swap.error").ok().flatten(),
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
        let mut pending: Vec<PendingBelow> = targets.iter_mut().map(collect).collect();
        let all = |pending: &[PendingBelow], bytes: &dyn Fn(&Pending) -> u64| -> u64 {
            pending.iter().flat_map(HashMap::values).map(bytes).sum()
        };
        let total = all(&pending, &|file| file.size);
        self.bar.set_length(total);
        let mut still_since = Instant::now();
        while pending.iter().any(|below| !below.is_empty()) && !self.is_over() {
            let started = Instant::now();
            let mut round = Round::default();
            for (target, below) in targets.iter_mut().zip(&mut pending) {
                self.round(target, below, &mut round);
            }
            self.bar.set_position(total.saturating_sub(all(&pending, &|file| self.left(file))));
            // What is in flight is under way, however long it takes.
            if round.moved || round.inflight {
                still_since = Instant::now();
            }
            let still = still_since.elapsed();
            if still >= BUSY_PATIENCE || (still >= IDLE_PATIENCE && !is_busy(&pending, targets)) {
                break;
            }
            // Finding what is left among much else takes no more than half of the time.
            let pause = PAUSE.max(started.elapsed()).min(PAUSE_MAX);
            if pending.iter().any(|below| !below.is_empty()) {
                std::thread::sleep(pause);
            }
        }
        self.give_up(&mut pending, targets);
    }

    fn is_over(&self) -> bool {
        self.deadline.is_some_and(|(at, _)| Instant::now() >= at)
    }

    fn left(&self, file: &Pending) -> u64 {
        file.size - file.last.progress(self.request, file.size).min(file.size)
    }

    /// Looks at each partition below one path once; keeps those that are not done.
    fn round(&self, target: &mut Target, below: &mut PendingBelow, round: &mut Round) {
        if below.is_empty() {
            return;
        }
        let mut is_whole = true;
        let Target { path, failures, .. } = target;
        let walked = files_below(path, &mut |found| {
            let Below::Partition(file) = found else {
                is_whole = false;
                return ControlFlow::Continue(());
            };
            let Some(waiting) = below.get_mut(&file.ino).filter(|_| !self.is_over()) else {
                return if self.is_over() {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                };
            };
            match self.look(&file, waiting, round) {
                Ok(true) => waiting.is_met = true,
                Ok(false) => drop(below.remove(&file.ino)),
                Err(line) => {
                    failures.push(line);
                    below.remove(&file.ino);
                }
            }
            ControlFlow::Continue(())
        });
        match walked {
            // All others are gone.
            Ok(ControlFlow::Continue(())) if is_whole => {
                below.retain(|_, file| std::mem::take(&mut file.is_met));
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => below.clear(),
            Err(error) => {
                failures.push(line_about(path, &error));
                below.clear();
            }
        }
    }

    /// Looks at one partition; false when it is done or gone.
    fn look(
        &self, file: &FileBelow<'_>, waiting: &mut Pending, round: &mut Round,
    ) -> Result<bool, String> {
        let opened = file.open().map_err(|error| line_about(&file.path(), &error))?;
        let Some(partition) = opened else { return Ok(false) };
        let Some(look) = Look::wait(file, &partition)? else { return Ok(false) };
        let is_done = look.is_done(self.request);
        round.inflight |= look.status == "inflight";
        round.moved |= is_done || look != waiting.last;
        let before = self.left(waiting);
        waiting.last = look;
        self.bar.inc(before - self.left(waiting).min(before));
        Ok(!is_done)
    }

    /// Says what is not done.
    fn give_up(&self, pending: &mut [PendingBelow], targets: &mut [Target]) {
        let over = self.deadline.filter(|_| self.is_over());
        for (target, below) in targets.iter_mut().zip(pending) {
            let slow = below.values().filter(|file| file.last.error.is_none()).count();
            let Target { path, failures, .. } = target;
            let _ = files_below(path, &mut |found| {
                if let Below::Partition(file) = found
                    && let Some(waiting) = below.remove(&file.ino)
                {
                    let line = waiting.last.failure(&file.path(), self.request, waiting.size);
                    failures
                        .extend(line.filter(|_| over.is_none() || waiting.last.error.is_some()));
                }
                ControlFlow::<()>::Continue(())
            });
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

/// The partitions below what was asked for; directories that cannot be read are failures.
fn collect(target: &mut Target) -> PendingBelow {
    let mut pending = HashMap::new();
    if target.root.is_none() {
        return pending;
    }
    let Target { path, failures, .. } = target;
    let walked = files_below(path, &mut |found| {
        match found {
            Below::LeftOut(folder, error) => failures.push(line_about(&folder, &error)),
            Below::Partition(file) => {
                let partition = file.open().ok().flatten();
                if let Some(size) = partition.and_then(|partition| partition.size().ok()) {
                    let last = Look::default();
                    pending.insert(file.ino, Pending { size, last, is_met: false });
                }
            }
        }
        ControlFlow::<()>::Continue(())
    });
    if let Err(error) = walked {
        failures.push(line_about(path, &error));
    }
    pending
}

/// Whether a mount with something left has anything in flight.
fn is_busy(pending: &[PendingBelow], targets: &[Target]) -> bool {
    let left = targets.iter().zip(pending).filter(|(_, below)| !below.is_empty());
    let mut roots: Vec<&Path> = left.filter_map(|(target, _)| target.root.as_deref()).collect();
    roots.sort_unstable();
    roots.dedup();
    let state = |root: &Path| text_xattr(root, "user.swap.wait").ok().flatten();
    roots.into_iter().any(|root| state(root).as_deref() == Some("inflight"))
}
