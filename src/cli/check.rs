//! `swapfs check`.

use std::path::PathBuf;

use clap::Args;
use indicatif::ProgressBar;
use serde_json::json;

use super::bar::bar;
use super::columns::{terminal_width, wrapped};
use super::interrupt::Interrupts;
use super::mount::default_places;
use super::{ConfigArgs, Failure, print};
use crate::check::{self, Finding, Place, Verdict};
use crate::paths::{plain, plain_text};
use crate::sys_process::{quoted, reason};

/// Width of the column of verdicts.
const VERDICT: usize = "VERDICT".len();

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
            print(&report(&findings, terminal_width()))?;
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
    let bar = bar("checking {spinner} {elapsed} of at most 10s");
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

/// A row for each finding, with the fix on a line of its own, whole, so that it can be copied. The folder stands above the
/// rows about it.
fn report(findings: &[Finding], width: Option<usize>) -> String {
    let items = findings.iter().map(|finding| finding.item.len()).max().unwrap_or(0);
    let row = |verdict: &str, item: &str| format!("{verdict:VERDICT$}  {item:items$}  ");
    let indent = VERDICT + 2;
    let beside = indent + items + 2;
    let mut lines = vec![row("VERDICT", "ITEM") + "FOUND"];
    let mut folder = None;
    for finding in findings {
        if finding.folder != folder {
            folder.clone_from(&finding.folder);
            lines.extend(folder.as_deref().map(|folder| format!("{}:", plain(folder))));
        }
        // Folded for people, and left in one line for programs.
        let found = plain_text(&finding.found);
        let found = match width {
            Some(width) => wrapped(&found, width.saturating_sub(beside)),
            None => vec![found],
        };
        let between = format!("\n{:beside$}", "");
        lines.push(row(finding.verdict.name(), finding.item) + &found.join(&between));
        if let Some(fix) = &finding.mend {
            lines.push(format!("{:indent$}fix: {}", "", plain_text(fix)));
        }
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(item: &'static str, folder: Option<&str>, mend: Option<&str>) -> Finding {
        Finding {
            verdict: if mend.is_some() { Verdict::Slow } else { Verdict::Ok },
            item,
            folder: folder.map(PathBuf::from),
            found: "a sentence that is longer than what a narrow terminal has in one line"
                .to_owned(),
            mend: mend.map(str::to_owned),
            values: serde_json::Map::new(),
        }
    }

    #[test]
    fn fixes_are_whole_lines_and_everything_else_fits() {
        let fix = "sysctl -w something.with.a.long.name=12345 && echo something.with.a.long.name >>/etc/file";
        let findings = [
            finding("fuse-device", None, None),
            finding("memory-lock", None, Some(fix)),
            finding("folder", Some("/one"), None),
            finding("async-direct-io", Some("/one"), Some("mkdir -p /one")),
            finding("folder", Some("/two"), None),
        ];
        for width in [80, 100, 160] {
            let text = report(&findings, Some(width));
            for line in text.lines().filter(|line| !line.contains("fix: ")) {
                assert!(line.len() <= width, "{width}: {line}");
            }
            assert!(text.contains(&format!("\n         fix: {fix}\n")), "{text}");
        }
        let text = report(&findings, None);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 1 + 5 + 2 + 2, "{text}");
        assert_eq!((lines[4], lines[8]), ("/one:", "/two:"));
        assert!(lines[2].starts_with("slow     memory-lock      a sentence"), "{text}");
    }
}
