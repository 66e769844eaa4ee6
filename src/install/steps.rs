//! One item at a time: what is there now, and the change.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use super::record::Record;
use super::{Done, InstallError, Item, Outcome};

/// An item with what is to become of it.
#[derive(Debug)]
pub(super) struct Step<'a> {
    item: &'a Item,
    target: PathBuf,
    outcome: Outcome,
    note: Option<String>,
    /// The line that is ours and no longer right.
    pub(super) replaces: Option<String>,
}

/// A path of the installed system below `prefix`.
pub(super) fn under(prefix: &Path, path: &Path) -> PathBuf {
    prefix.join(path.strip_prefix("/").unwrap_or(path))
}

/// The nearest folder above `file` that exists.
pub(super) fn existing_parent(file: &Path) -> PathBuf {
    let exists = |folder: &&Path| folder.symlink_metadata().is_ok();
    file.ancestors().skip(1).find(exists).unwrap_or(Path::new("/")).to_owned()
}

pub(super) fn failed(path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    move |error| InstallError::Io(path.to_owned(), error)
}

impl<'a> Step<'a> {
    /// Looks at what is there. What an earlier install put there may be replaced, nothing else.
    pub(super) fn plan(
        prefix: &Path, item: &'a Item, record: &Record,
    ) -> Result<Self, InstallError> {
        let target = under(prefix, item.path());
        let mut step = Self { item, target, outcome: Outcome::Created, note: None, replaces: None };
        let found = step.target.symlink_metadata();
        match (item, found) {
            (Item::Line { line, key, create, .. }, found) => {
                step.note = Some(line.clone());
                match found {
                    Ok(_) => step.plan_line(line, *key, record)?,
                    Err(_) if *create => {}
                    Err(_) => {
                        step.outcome = Outcome::LeftAlone;
                        step.note = Some("there is no such file here".to_owned());
                    }
                }
            }
            (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
            (_, Err(error)) => return Err(InstallError::Io(step.target, error)),
            (_, Ok(_)) if step.is_as_it_should_be()? => step.outcome = Outcome::Unchanged,
            (_, Ok(_)) if record.has(item) => step.outcome = Outcome::Replaced,
            (_, Ok(_)) => {
                return Err(InstallError::InTheWay(format!(
                    "{} is there already, and not by `swapfs install`; move it away",
                    step.target.display()
                )));
            }
        }
        Ok(step)
    }

    fn is_as_it_should_be(&self) -> Result<bool, InstallError> {
        let found = self.target.symlink_metadata().map_err(failed(&self.target))?;
        match self.item {
            Item::File { content, mode, .. } => Ok(found.is_file()
                && found.permissions().mode() & 0o7777 == *mode
                && found.len() == content.len() as u64
                && std::fs::read(&self.target).map_err(failed(&self.target))? == *content),
            Item::Link { target, .. } => {
                Ok(std::fs::read_link(&self.target).is_ok_and(|leads_to| leads_to == *target))
            }
            Item::Line { .. } => unreachable!("lines are looked at by plan_line"),
        }
    }

    fn plan_line(&mut self, line: &str, key: usize, record: &Record) -> Result<(), InstallError> {
        let text = std::fs::read_to_string(&self.target).map_err(failed(&self.target))?;
        let subject = |line: &str| line.split_whitespace().nth(key).map(str::to_owned);
        let same_subject = |(_, other): &(usize, &str)| {
            !other.trim_start().starts_with('#') && subject(other) == subject(line)
        };
        match text.lines().enumerate().find(same_subject) {
            None => {}
            Some((_, other)) if other == line => self.outcome = Outcome::Unchanged,
            Some((_, other)) if record.has_line(self.item.path(), other) => {
                self.outcome = Outcome::Replaced;
                self.replaces = Some(other.to_owned());
            }
            Some((number, other)) => {
                return Err(InstallError::InTheWay(format!(
                    "{}, line {}, is about the same already: {other}",
                    self.target.display(),
                    number + 1
                )));
            }
        }
        Ok(())
    }

    pub(super) fn changes(&self) -> bool {
        matches!(self.outcome, Outcome::Created | Outcome::Replaced)
    }

    pub(super) fn target(&self) -> &Path {
        &self.target
    }

    pub(super) fn item(&self) -> &Item {
        self.item
    }

    pub(super) fn done(self) -> Done {
        Done { outcome: self.outcome, path: self.target, note: self.note }
    }

    pub(super) fn carry_out(&self) -> Result<(), InstallError> {
        if !self.changes() {
            return Ok(());
        }
        make_folder(&self.target).map_err(failed(&self.target))?;
        match self.item {
            Item::File { content, mode, .. } => replace(&self.target, content, *mode),
            Item::Link { target, .. } => {
                let new = beside(&self.target);
                let _ = std::fs::remove_file(&new);
                std::os::unix::fs::symlink(target, &new)
                    .and_then(|()| std::fs::rename(&new, &self.target))
            }
            Item::Line { line, .. } => edit(&self.target, |text| {
                let mut text = match &self.replaces {
                    Some(old) => without_line(text, old),
                    None => text.to_owned(),
                };
                if !text.is_empty() && !text.ends_with('\n') {
                    text.push('\n');
                }
                text.push_str(line);
                text.push('\n');
                text
            }),
        }
        .map_err(failed(&self.target))
    }
}

/// Makes the folder of a file, for nobody else to write.
pub(super) fn make_folder(file: &Path) -> io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("/"));
    DirBuilder::new().recursive(true).mode(0o755).create(folder)
}

/// The text without that line.
pub(super) fn without_line(text: &str, line: &str) -> String {
    let others = text.split_inclusive('\n').filter(|other| other.trim_end_matches('\n') != line);
    others.collect()
}

/// Changes a text that others use too; what it has of owner and mode stays.
pub(super) fn edit(path: &Path, change: impl FnOnce(&str) -> String) -> io::Result<()> {
    // The file itself, should the path be a link to it.
    let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let (text, found) = match std::fs::read_to_string(&path) {
        Ok(text) => (text, Some(path.metadata()?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (String::new(), None),
        Err(error) => return Err(error),
    };
    let mode = found.as_ref().map_or(0o644, |found| found.mode() & 0o7777);
    put(&path, change(&text).as_bytes(), mode, |file| match &found {
        Some(found) => fchown(file, Some(found.uid()), Some(found.gid())),
        None => Ok(()),
    })
}

/// Puts a whole file in place of another or of none.
pub(super) fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    put(path, content, mode, |_| Ok(()))
}

fn put(
    path: &Path, content: &[u8], mode: u32, prepare: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let new = beside(path);
    let _ = std::fs::remove_file(&new);
    let written = (|| {
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(&new)?;
        file.write_all(content)?;
        prepare(&file)?;
        file.set_permissions(Permissions::from_mode(mode))?;
        // A crash leaves the old file or the new one, never an empty /etc/fstab.
        file.sync_all()?;
        std::fs::rename(&new, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&new);
    }
    written
}

/// A name for the new file until it is whole.
fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}", std::process::id()))
}
