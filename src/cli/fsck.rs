//! `swapfs fsck`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;

use super::bar::bar;
use super::columns::{Listing, terminal_width};
use super::interrupt::Interrupts;
use super::{Failure, print, print_json};
use crate::daemon::SwapFolder;
use crate::ledger::fsck::{self, Damage, Finding, Listener, Report};
use crate::paths::plain;
use crate::sys_process::{quoted, reason};
use crate::units::{format_exact, format_short};

/// Partitions changed by others that are named.
const CHANGED_MAX: usize = 20;

/// Arguments of `swapfs fsck`.
#[derive(Debug, Args)]
pub struct FsckArgs {
    /// A swap folder that is not mounted.
    #[arg(value_name = "SWAP_FOLDER")]
    pub folder: PathBuf,
    /// Accept damaged and torn bytes as they are, and remove the records of files that are gone or were changed
    /// by others. No byte of a partition, and no size, is changed.
    #[arg(long)]
    pub repair: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl FsckArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let interrupts =
            Interrupts::catch().map_err(|error| format!("signals: {}", reason(&error)))?;
        let swap = SwapFolder::lock_for_check(&self.folder)?;
        let mut progress = Progress { bar: ProgressBar::hidden(), interrupts };
        let checked = fsck::check(swap.folder(), swap.control(), self.repair, &mut progress);
        progress.bar.finish_and_clear();
        let report = checked
            .map_err(|error| format!("{}: {}", self.folder.display(), reason(&error)))?
            .ok_or_else(|| "interrupted before everything was verified".to_owned())?;
        if self.json {
            print_json(&report)?;
        } else {
            print_report(&report)?;
        }
        match report.damaged() {
            0 => Ok(()),
            _ if self.repair => Ok(()),
            1 => Err(Failure::Failed("1 partition is damaged".to_owned())),
            count => Err(Failure::Failed(format!("{count} partitions are damaged"))),
        }
    }
}

fn print_report(report: &Report) -> Result<(), Failure> {
    if !report.findings.is_empty() {
        let header = ["PARTITION", "CONDITION", "OFFSET", "LENGTH"];
        let rows = report.findings.iter().flat_map(rows).collect();
        print(&Listing { header: &header, names: 1, rows }.layout(terminal_width()))?;
    }
    for path in report.changed_paths.iter().take(CHANGED_MAX) {
        print(&format!("changed by others: {}", quoted(path)))?;
    }
    if let Some(more @ 1..) = report.changed_paths.len().checked_sub(CHANGED_MAX) {
        print(&format!("changed by others: {more} more, --json names all"))?;
    }
    let Report { checked, bytes, unknown, changed, gone, left_out, .. } = report;
    let size = format_short(*bytes);
    let mut line = format!("{checked} partitions verified ({size}), {} damaged", report.damaged());
    for (count, what) in [
        (unknown, "without a record"),
        (changed, "changed by others"),
        (gone, "records of files that are gone"),
        (left_out, "directories that could not be read"),
    ] {
        if *count > 0 {
            line.push_str(&format!(", {count} {what}"));
        }
    }
    print(&line)?;
    if report.repaired { print(&repairs(report)) } else { Ok(()) }
}

/// What a repair has changed: records, and no file.
fn repairs(report: &Report) -> String {
    let bad = || report.findings.iter().flat_map(|finding| &finding.bad);
    let (ranges, bytes) = (bad().count(), bad().map(|bad| bad.length).sum());
    let removed = report.changed + report.gone;
    let mut done = Vec::new();
    if ranges > 0 {
        let plural = if ranges == 1 { "" } else { "s" };
        let size = format_short(bytes);
        done.push(format!("{size} in {ranges} damaged or torn range{plural} read as they are now"));
    }
    if removed > 0 {
        let records = if removed == 1 { "record was" } else { "records were" };
        done.push(format!("{removed} {records} removed"));
    }
    match done.is_empty() {
        true => "repaired: nothing had to be changed".to_owned(),
        false => format!("repaired: {}; no file was changed", done.join(", ")),
    }
}

/// A row for each range that is not whole, offsets in bytes.
fn rows(finding: &Finding) -> Vec<Vec<String>> {
    let path = quoted(&finding.path);
    let mut rows = Vec::new();
    for bad in &finding.bad {
        let condition = match bad.damage {
            Damage::Damaged => "damaged",
            Damage::Torn => "torn",
            Damage::Unreadable => "unreadable",
        };
        let offset = format_exact(bad.offset);
        rows.push(vec![path.clone(), condition.to_owned(), offset, format_exact(bad.length)]);
    }
    if finding.padding > 0 {
        let length = format!("{} B", finding.padding);
        rows.push(vec![path, "padded".to_owned(), "-".to_owned(), length]);
    }
    rows
}

/// A bar on a terminal; signals that stop it.
struct Progress {
    bar: ProgressBar,
    interrupts: Interrupts,
}

impl Listener for Progress {
    fn begin(&mut self, bytes: u64) {
        self.bar = bar("{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {left} left: {wide_msg}");
        self.bar.set_length(bytes);
        self.bar.enable_steady_tick(Duration::from_millis(200));
    }

    fn read(&mut self, path: &Path, bytes: u64) {
        self.bar.inc(bytes);
        self.bar.set_message(plain(path));
    }

    fn is_stopped(&mut self) -> bool {
        self.interrupts.arrived()
    }
}
