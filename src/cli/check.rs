//! `swapfs check`.

use std::io::IsTerminal;
use std::path::PathBuf;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::json;

use super::interrupt::Interrupts;
use super::mount::default_places;
use super::{ConfigArgs, Failure, print, table};
use crate::check::{self, Finding, Place, Verdict};
use crate::sys_process::{quoted, reason};

/// Arguments of `swapfs check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Swap folders; without any, the nvme_path of the --config FILE, or where a mount without
    /// arguments has its swap folder.
    #[arg(value_name = "FOLDER")]
    pub folders: Vec<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// The configuration of the mount that is to be, which the limits are compared with.
    #[command(flatten)]
    pub config: ConfigArgs,
}

impl CheckArgs {
    pub(super) fn run(self, verbose: u8) -> Result<(), Failure> {
        let config = self.config.settings(verbose)?.build()?;
        let explicit = |path| Place { path, made_by_mount: false };
        let places: Vec<Place> = match config.nvme_path() {
            _ if !self.folders.is_empty() => self.folders.into_iter().map(explicit).collect(),
            Ok(Some(path)) => vec![explicit(path)],
            Ok(None) => vec![Place { path: default_places()?.0, made_by_mount: true }],
            Err(error) => return Err(error.into()),
        };
        let interrupts =
            Interrupts::catch().map_err(|error| format!("signals: {}", reason(&error)))?;
        let waiting = waiting();
        let findings = check::run(&places, &config, &|| interrupts.arrived())
            .map_err(|check::Stopped| "interrupted before everything was checked".to_owned());
        waiting.finish_and_clear();
        let findings = findings?;
        if self.json {
            super::print_json(&to_json(&findings))?;
        } else {
            print_table(&findings)?;
        }
        let failing: Vec<String> = findings
            .iter()
            .filter(|finding| finding.verdict == Verdict::Fails)
            .map(|finding| match &finding.folder {
                Some(folder) => format!("{} of {}", finding.item, quoted(folder)),
                None => finding.item.to_owned(),
            })
            .collect();
        match failing.is_empty() {
            true => Ok(()),
            false => Err(Failure::Failed(format!("fails: {}", failing.join(", ")))),
        }
    }
}

/// How long it has taken so far, on a terminal.
fn waiting() -> ProgressBar {
    let target = match std::io::stderr().is_terminal() {
        true => ProgressDrawTarget::stderr(),
        false => ProgressDrawTarget::hidden(),
    };
    let style = ProgressStyle::with_template("checking {spinner} {elapsed} of at most 10s")
        .unwrap_or_else(|_| ProgressStyle::default_spinner());
    let bar = ProgressBar::with_draw_target(None, target).with_style(style);
    bar.enable_steady_tick(std::time::Duration::from_millis(100));
    bar
}

fn to_json(findings: &[Finding]) -> serde_json::Value {
    let kernel = rustix::system::uname();
    json!({
        "usable": findings.iter().all(|finding| finding.verdict != Verdict::Fails),
        "version": env!("CARGO_PKG_VERSION"),
        "kernel": kernel.release().to_string_lossy(),
        "findings": findings,
    })
}

fn print_table(findings: &[Finding]) -> Result<(), Failure> {
    let mut table = table(&["VERDICT", "ITEM", "FOLDER", "FOUND", "MEND"]);
    for finding in findings {
        let folder = finding.folder.as_deref().map(quoted);
        table.add_row([
            finding.verdict.name(),
            finding.item,
            folder.as_deref().unwrap_or("-"),
            &finding.found,
            finding.mend.as_deref().unwrap_or("-"),
        ]);
    }
    // Long cells are folded for people, and left in one line for programs.
    if let Ok(size) = rustix::termios::tcgetwinsize(std::io::stdout())
        && std::io::stdout().is_terminal()
    {
        table.set_width(size.ws_col.max(60));
        table.set_content_arrangement(comfy_table::ContentArrangement::Dynamic);
    }
    print(&table.trim_fmt())
}
