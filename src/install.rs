//! `swapfs install`: puts what mount(8), man(1), shells and systemd look for in their places, and takes it
//! away again.
//!
//! [`items`] says what belongs where; [`install`] looks at all of it before it changes anything, writes down
//! what it is about to put (in `record`), and then puts each thing there whole or not at all. [`uninstall`]
//! takes away what is written down and nothing else.

mod fstab;
mod places;
mod record;
mod steps;

pub use fstab::FstabEntry;
pub use places::{Content, Layout, Wanted, items, unit};

use std::io;
use std::path::{Path, PathBuf};

use record::{Entry, Record};
use steps::Step;

use crate::trust;

/// One thing to put in place; paths as the installed system sees them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// A file of its own.
    File {
        /// Where.
        path: PathBuf,
        /// Its bytes.
        content: Vec<u8>,
        /// Permission bits.
        mode: u32,
    },
    /// A symbolic link.
    Link {
        /// Where.
        path: PathBuf,
        /// What it leads to.
        target: PathBuf,
    },
    /// A line in a file that others use too.
    Line {
        /// The file.
        path: PathBuf,
        /// The line, without its end.
        line: String,
        /// Which of the line's words says what the line is about: a second line with the same one would
        /// contradict it.
        key: usize,
        /// Whether the file may be made; else the line is left out where there is none.
        create: bool,
    },
}

impl Item {
    /// The path it is at.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::File { path, .. } | Self::Link { path, .. } | Self::Line { path, .. } => path,
        }
    }
}

/// What became of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was not there.
    Created,
    /// An older one was there.
    Replaced,
    /// It was there as it should be.
    Unchanged,
    /// It is gone.
    Removed,
    /// It was gone already.
    Missing,
    /// It has no place here, or is not as it was put.
    LeftAlone,
}

impl Outcome {
    /// As it is printed.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Replaced => "replaced",
            Self::Unchanged => "unchanged",
            Self::Removed => "removed",
            Self::Missing => "missing",
            Self::LeftAlone => "left alone",
        }
    }
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Done {
    /// What became of it.
    pub outcome: Outcome,
    /// The path, prefix included.
    pub path: PathBuf,
    /// The line in it, when the item is one; why it was left alone.
    pub note: Option<String>,
}

/// Why nothing was changed, or how far it came.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// Something of somebody else's is in the way.
    #[error("{0}; nothing was changed")]
    InTheWay(String),
    /// Folders that this user may not write to.
    #[error(
        "no permission to write to {}; nothing was changed: run it as root, or give --prefix DIR",
        .0.join(", ")
    )]
    NotPermitted(Vec<String>),
    /// There is no record to go by.
    #[error("{}: there is no record of an install here", .0.display())]
    NoRecord(PathBuf),
    /// A call failed.
    #[error("{}: {}", .0.display(), crate::sys_process::reason(.1))]
    Io(PathBuf, io::Error),
}

/// Puts `items` below `prefix`. With `dry_run` only says what would be done. A package keeps no record of its
/// own: the package manager does.
///
/// # Errors
/// [`InstallError`]; before anything is changed unless it is [`InstallError::Io`], after which the same call can
/// be repeated, or undone by [`uninstall`].
pub fn install(
    prefix: &Path, layout: Layout, items: &[Item], dry_run: bool,
) -> Result<Vec<Done>, InstallError> {
    let mut record = Record::read(prefix, layout)?;
    let steps: Vec<Step<'_>> =
        items.iter().map(|item| Step::plan(prefix, item, &record)).collect::<Result<_, _>>()?;
    refuse_unwritable(&steps, &record)?;
    refuse_exchangeable(prefix, &steps)?;
    if !dry_run && steps.iter().any(Step::changes) {
        // Before the first change: what is interrupted can be undone.
        for step in steps.iter().filter(|step| step.changes()) {
            record.add_folders(prefix, step.target());
            record.add(step.item());
        }
        if layout == Layout::Local {
            record.add_folders(prefix, &record.path());
            record.write()?;
        }
        steps.iter().try_for_each(Step::carry_out)?;
        record.forget_replaced(&steps);
        if layout == Layout::Local {
            record.write()?;
        }
    }
    Ok(steps.into_iter().map(Step::done).collect())
}

/// Refuses a prefix below which somebody else could exchange what is put there.
fn refuse_exchangeable(prefix: &Path, steps: &[Step<'_>]) -> Result<(), InstallError> {
    if prefix == Path::new("/") {
        return Ok(());
    }
    for step in steps.iter().filter(|step| step.changes()) {
        let there = step.target().ancestors().skip(1).find(|folder| folder.is_dir());
        trust::refuse_exchangeable(there.unwrap_or(prefix))
            .map_err(|error| InstallError::InTheWay(error.to_string()))?;
    }
    Ok(())
}

/// Takes away what [`install`] put below `prefix`.
///
/// # Errors
/// [`InstallError`].
pub fn uninstall(prefix: &Path, dry_run: bool) -> Result<Vec<Done>, InstallError> {
    let record = Record::read(prefix, Layout::Local)?;
    if record.is_empty() {
        return Err(InstallError::NoRecord(record.path()));
    }
    refuse(record.entries().iter().filter_map(|entry| {
        let path = steps::under(prefix, entry.path());
        matches!(path.symlink_metadata(), Ok(found) if !found.is_dir()).then_some(path)
    }))?;
    let mut done = Vec::new();
    let (folders, others): (Vec<&Entry>, Vec<&Entry>) =
        record.entries().iter().rev().partition(|entry| matches!(entry, Entry::Folder(_)));
    for entry in others {
        done.push(entry.take_away(prefix, dry_run)?);
    }
    if !dry_run {
        record.remove()?;
        for folder in folders {
            // Others may have put something there since; then it stays.
            let _ = std::fs::remove_dir(steps::under(prefix, folder.path()));
        }
    }
    Ok(done)
}

fn refuse_unwritable(steps: &[Step<'_>], record: &Record) -> Result<(), InstallError> {
    let changing = steps.iter().filter(|step| step.changes()).map(|step| step.target().to_owned());
    let mut changing: Vec<PathBuf> = changing.collect();
    if !changing.is_empty() {
        changing.push(record.path());
    }
    refuse(changing.into_iter())
}

/// Files are replaced as a whole, which takes the right to write to their folders.
fn refuse(files: impl Iterator<Item = PathBuf>) -> Result<(), InstallError> {
    let mut refused: Vec<String> = files
        .filter_map(|file| {
            let folder = steps::existing_parent(&file);
            let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
            let flags = rustix::fs::AtFlags::EACCESS;
            rustix::fs::accessat(rustix::fs::CWD, &folder, access, flags)
                .is_err()
                .then(|| folder.display().to_string())
        })
        .collect();
    refused.sort();
    refused.dedup();
    if refused.is_empty() { Ok(()) } else { Err(InstallError::NotPermitted(refused)) }
}

#[cfg(test)]
mod tests;
