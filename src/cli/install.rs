//! `swapfs install`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::json;

use super::completions::script;
use super::{Failure, print};
use crate::config::{Config, Settings};
use crate::daemon::stop_time;
use crate::install::{
    Content, Done, FstabEntry, InstallError, Layout, Outcome, Wanted, install, items, uninstall,
};
use crate::mount::swapfs_mounts;
use crate::sys_process::{quoted, reason};

/// Arguments of `swapfs install`.
#[derive(Debug, Args)]
pub struct InstallArgs {
    /// Put everything below this folder, as below the root of another system.
    #[arg(long, value_name = "DIR", default_value = "/")]
    pub prefix: PathBuf,
    /// Put the unit swapfs@.service there too, for `systemctl enable --now swapfs@NAME`.
    #[arg(long)]
    pub systemd: bool,
    /// Put a line into /etc/fstab that mounts FOLDER at MOUNTPOINT.
    #[arg(long, num_args = 2, value_names = ["FOLDER", "MOUNTPOINT"])]
    pub fstab: Vec<PathBuf>,
    /// Mount options of that line; pool_size also for the unit's times.
    #[arg(short = 'o', value_name = "OPT,...")]
    pub options: Vec<String>,
    /// For building a package: below DIR/usr, nothing in other packages' files, no record.
    #[arg(long, requires = "prefix", conflicts_with_all = ["fstab", "uninstall"])]
    pub package: bool,
    /// Take away what was put there.
    #[arg(long, conflicts_with_all = ["systemd", "fstab", "options"])]
    pub uninstall: bool,
    /// Only say what would be done.
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl InstallArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let prefix = std::path::absolute(&self.prefix)
            .map_err(|error| format!("--prefix {}: {}", quoted(&self.prefix), reason(&error)))?;
        let done = match self.uninstall {
            true => uninstall(&prefix, self.dry_run)?,
            false => {
                let wanted = self.wanted()?;
                install(&prefix, wanted.layout, &items(&wanted, content()?), self.dry_run)?
            }
        };
        let notes = self.notes(&prefix, &done);
        if self.json {
            let report = json!({ "dry_run": self.dry_run, "done": done, "notes": notes });
            return super::print_json(&report);
        }
        for Done { outcome, path, note } in &done {
            let note = note.as_ref().map_or_else(String::new, |note| format!(": {note}"));
            print(&format!("{:<10}  {}{note}", outcome.name(), path.display()))?;
        }
        notes.iter().try_for_each(|note| print(note))
    }

    fn wanted(&self) -> Result<Wanted, Failure> {
        if !self.options.is_empty() && self.fstab.is_empty() && !self.systemd {
            return Err(Failure::Usage("-o says nothing without --fstab or --systemd".to_owned()));
        }
        let config = self.config()?;
        let fstab = match &self.fstab[..] {
            [swap_folder, mountpoint] => Some(FstabEntry {
                swap_folder: for_fstab(swap_folder)?,
                mountpoint: for_fstab(mountpoint)?,
                options: self.options.clone(),
                stop_time: stop_time(config.pool_size),
            }),
            _ => None,
        };
        let memory = || {
            let found = rustix::system::sysinfo();
            found.totalram.checked_mul(u64::from(found.mem_unit))
        };
        Ok(Wanted {
            layout: if self.package { Layout::Package } else { Layout::Local },
            systemd: self.systemd,
            fstab,
            pool_size: config.pool_size,
            memory: if self.package { None } else { memory() },
        })
    }

    /// What the options say; wrong ones are told before they stand in a file.
    fn config(&self) -> Result<Config, Failure> {
        let mut settings = Settings::new();
        self.options.iter().try_for_each(|list| settings.mount_options(list, false))?;
        Ok(settings.build()?)
    }

    /// What remains to be done, and what is different from now on.
    fn notes(&self, prefix: &Path, done: &[Done]) -> Vec<String> {
        let mut notes = Vec::new();
        let changed = |part: &str| {
            let changes = [Outcome::Created, Outcome::Replaced, Outcome::Removed];
            let named = |done: &&Done| done.path.to_string_lossy().ends_with(part);
            done.iter().filter(named).any(|done| changes.contains(&done.outcome))
        };
        if self.dry_run {
            notes.push("nothing was changed (--dry-run)".to_owned());
        } else if prefix != Path::new("/") || self.package {
            return notes;
        } else if changed("swapfs@.service") || changed("/etc/fstab") {
            notes.push("then: systemctl daemon-reload".to_owned());
        }
        if self.uninstall && !self.dry_run {
            let mounts = swapfs_mounts().unwrap_or_default();
            notes.extend(mounts.iter().map(|mount| {
                let at = quoted(&mount.mountpoint);
                format!("still mounted, and umount(8) no longer synchronizes it first: {at}")
            }));
            return notes;
        }
        if self.systemd {
            notes.push(
                "then: SWAP_FOLDER=, MOUNTPOINT= and OPTIONS= in /etc/swapfs/NAME.conf, and \
                 systemctl enable --now swapfs@NAME"
                    .to_owned(),
            );
        }
        if let [swap_folder, mountpoint] = &self.fstab[..] {
            for path in [swap_folder, mountpoint].into_iter().filter(|path| !path.is_dir()) {
                notes.push(format!("then: mkdir -p {}", quoted(path)));
            }
            notes.push(format!("then: mount {}", quoted(mountpoint)));
        }
        notes
    }
}

fn for_fstab(path: &Path) -> Result<PathBuf, Failure> {
    let path = std::path::absolute(path)
        .map_err(|error| format!("--fstab {}: {}", quoted(path), reason(&error)))?;
    match path.to_str() {
        Some(_) => Ok(path),
        None => Err(Failure::Usage(format!(
            "--fstab {}: a path in /etc/fstab has to be text (UTF-8)",
            quoted(&path)
        ))),
    }
}

fn content() -> Result<Content, Failure> {
    use clap_complete::Shell;
    let program = std::fs::read("/proc/self/exe")
        .map_err(|error| format!("/proc/self/exe: {}", reason(&error)))?;
    let completions = [Shell::Bash, Shell::Zsh, Shell::Fish].map(script);
    Ok(Content { program, completions })
}
