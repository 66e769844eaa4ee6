//! Can this machine and these folders do it? Everything is tried, nothing is left behind.
//!
//! Files of the trials have no name, so they are gone with the process, whatever ends it; the trial mount
//! is undone before anything else begins.

mod device;
mod folder;
mod fuse;
mod limits;
mod memory;
mod sandbox;
mod speed;
mod uring;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crossbeam_channel::{RecvTimeoutError, unbounded};
use serde::Serialize;
use serde_json::{Map, Value as Json};

use crate::config::Config;

/// Time for all folders together.
const FOLDERS_TIME: Duration = Duration::from_secs(7);

/// Time for one of many at least.
const FOLDER_TIME_MIN: Duration = Duration::from_millis(250);

/// Time that the transfers to one folder take.
const SPEED_TIME: Duration = Duration::from_secs(1);

/// Between two looks whether somebody wants it to stop.
const TICK: Duration = Duration::from_millis(50);

/// What a finding means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but costs speed or a guarantee about memory or space.
    Slow,
    /// It does not work.
    Fails,
}

impl Verdict {
    /// `ok`, `slow` or `fails`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Slow => "slow",
            Self::Fails => "fails",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    /// What it means.
    pub verdict: Verdict,
    /// What was looked at; a name for scripts, which stays.
    pub item: &'static str,
    /// The folder it is about; none for the machine.
    #[serde(serialize_with = "crate::paths::shown_option")]
    pub folder: Option<PathBuf>,
    /// What was found.
    pub found: String,
    /// What to do about it; never empty unless the verdict is [`Verdict::Ok`].
    pub mend: Option<String>,
    /// The figures behind `found`, in bytes and counts.
    #[serde(skip_serializing_if = "Map::is_empty")]
    pub values: Map<String, Json>,
}

impl Finding {
    fn ok(item: &'static str, found: impl Into<String>) -> Self {
        let (verdict, found) = (Verdict::Ok, found.into());
        Self { verdict, item, folder: None, found, mend: None, values: Map::new() }
    }

    fn slow(item: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Slow, mend: Some(mend.into()), ..Self::ok(item, found) }
    }

    fn fails(item: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { verdict: Verdict::Fails, mend: Some(mend.into()), ..Self::ok(item, found) }
    }

    /// With a figure for scripts.
    fn value(mut self, name: &str, value: impl Into<Json>) -> Self {
        self.values.insert(name.to_owned(), value.into());
        self
    }
}

/// A folder to look at.
#[derive(Debug, Clone)]
pub struct Place {
    /// The swap folder.
    pub path: PathBuf,
    /// Whether `swapfs mount` makes it when it is missing.
    pub made_by_mount: bool,
}

/// Somebody asked to stop before the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stopped;

/// Looks at the machine and at each folder for a mount with this configuration. Takes less than ten
/// seconds, about one for each folder, less when there are many; a folder that does not answer is a
/// finding too. `stopped` is asked all the time.
///
/// # Errors
///
/// [`Stopped`] when `stopped` said so.
pub fn run(
    places: &[Place], config: &Config, stopped: &dyn Fn() -> bool,
) -> Result<Vec<Finding>, Stopped> {
    let ask = || if stopped() { Err(Stopped) } else { Ok(()) };
    let mut findings = fuse::look(config);
    ask()?;
    let trial = memory::Trial::new(config);
    findings.extend(uring::look(config, &trial));
    findings.extend(memory::look(config, &trial));
    drop(trial);
    findings.extend(limits::look());
    findings.push(sandbox::look(config));
    ask()?;
    let deadline = Instant::now() + FOLDERS_TIME;
    for (place, left) in places.iter().zip((1..=places.len()).rev()) {
        // What one did not need is the others'.
        let left = u32::try_from(left).unwrap_or(u32::MAX);
        let time = deadline.saturating_duration_since(Instant::now());
        let share = (time / left).max(FOLDER_TIME_MIN);
        findings.extend(watch(place, config, share, stopped)?);
    }
    Ok(findings)
}

/// Looks at one folder on a thread of its own: a filesystem may never answer.
fn watch(
    place: &Place, config: &Config, time: Duration, stopped: &dyn Fn() -> bool,
) -> Result<Vec<Finding>, Stopped> {
    let deadline = Instant::now() + time;
    let speed_time = SPEED_TIME.min(time / 2);
    let (sender, receiver) = unbounded();
    let (worker_place, worker_config) = (place.clone(), config.clone());
    let worker = std::thread::Builder::new().name("swapfs-check".to_owned()).spawn(move || {
        let mut tell = |finding: Finding| {
            let _ = sender.send(finding);
        };
        folder::look(&worker_place, &worker_config, speed_time, &mut tell);
    });
    let mut findings = Vec::new();
    if let Err(error) = worker {
        let reason = crate::sys_process::reason(&error);
        findings.push(Finding::fails("folder", format!("no thread: {reason}"), "raise ulimit -u"));
        return Ok(named(findings, &place.path));
    }
    loop {
        match receiver.recv_timeout(TICK) {
            Ok(finding) => findings.push(finding),
            Err(RecvTimeoutError::Disconnected) => return Ok(named(findings, &place.path)),
            Err(RecvTimeoutError::Timeout) if stopped() => return Err(Stopped),
            Err(RecvTimeoutError::Timeout) if Instant::now() >= deadline => {
                findings.push(late(&findings, time));
                return Ok(named(findings, &place.path));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
    }
}

/// What is to be said when a folder takes too long.
fn late(findings: &[Finding], time: Duration) -> Finding {
    let found = format!("not done within {:.1} s", time.as_secs_f64());
    let mend = "look for errors of the device or the server: dmesg | tail";
    // Only the transfers come after the device.
    match findings.iter().any(|finding| finding.item == "device") {
        true => Finding::slow("speed", found, mend),
        false => Finding::fails("folder", found, mend),
    }
}

fn named(mut findings: Vec<Finding>, folder: &Path) -> Vec<Finding> {
    for finding in &mut findings {
        finding.folder = Some(folder.to_owned());
    }
    findings
}

/// The first line of a kernel's setting; `None` when there is none.
fn setting(path: impl AsRef<Path>) -> Option<String> {
    let text = std::fs::read_to_string(path).ok()?;
    Some(text.lines().next().unwrap_or_default().trim().to_owned())
}

/// A number in a kernel's setting.
fn number(path: impl AsRef<Path>) -> Option<u64> {
    setting(path)?.parse().ok()
}
