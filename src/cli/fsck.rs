//! `swapfs fsck`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use indicatif::ProgressBar;

use super::bar::bar;
use super::interrupt::Interrupts;
use super::{Failure, print, print_json, table};
use crate::daemon::SwapFolder;
use crate::ledger::fsck::{self, Damage, Finding, Listener, Report};
use crate::paths::plain;
use crate::sys_process::{quoted, reason};

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
        let mut progress = Progress { bar: None, interrupts };
        let checked = fsck::check(swap.folder(), swap.control(), self.repair, &mut progress);
        progress.finish();
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
        let mut rows = table(&["PARTITION", "CONDITION", "OFFSET", "LENGTH"]);
        for finding in &report.findings {
            add_rows(&mut rows, finding);
        }
        print(&rows.to_string())?;
    }
    let Report { checked, bytes, unknown, changed, gone, left_out, .. } = report;
    let size = crate::units::format_exact(*bytes);
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
    if report.repaired {
        line.push_str("; repaired");
    }
    print(&line)
}

fn add_rows(rows: &mut comfy_table::Table, finding: &Finding) {
    let path = quoted(&finding.path);
    for bad in &finding.bad {
        let condition = match bad.damage {
            Damage::Damaged => "damaged",
            Damage::Torn => "torn",
            Damage::Unreadable => "unreadable",
        };
        let (offset, length) = (bad.offset.to_string(), bad.length.to_string());
        rows.add_row([path.clone(), condition.to_owned(), offset, length]);
    }
    if finding.padding > 0 {
        rows.add_row([path, "padded".to_owned(), String::new(), finding.padding.to_string()]);
    }
}

/// A bar on a terminal; signals that stop it.
struct Progress {
    bar: Option<ProgressBar>,
    interrupts: Interrupts,
}

impl Progress {
    fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

impl Listener for Progress {
    fn begin(&mut self, bytes: u64) {
        let bar = bar("{bar:30} {bytes}/{total_bytes}, {bytes_per_sec}, {left} left: {wide_msg}");
        bar.set_length(bytes);
        bar.enable_steady_tick(Duration::from_millis(200));
        self.bar = Some(bar);
    }

    fn read(&mut self, path: &Path, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
            bar.set_message(plain(path));
        }
    }

    fn is_stopped(&mut self) -> bool {
        self.interrupts.arrived()
    }
}
