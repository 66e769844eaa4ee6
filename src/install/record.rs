//! The record of what was put in place: one line each, in `PREFIX/usr/local/share/swapfs/installed`.

use std::io;
use std::path::{Path, PathBuf};

use super::places::Layout;
use super::steps::{Step, edit, failed, replace, under, without_line};
use super::{Done, InstallError, Item, Outcome};

const HEADER: &str =
    "# Put in place by `swapfs install`; `swapfs install --uninstall` takes it away.\n";

/// Where the record is.
const PLACE: &str = "/usr/local/share/swapfs/installed";

/// One line of the record, with a path as the installed system sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Entry {
    /// A folder that was made.
    Folder(PathBuf),
    File(PathBuf),
    Link(PathBuf),
    Line(PathBuf, String),
}

/// All of it, in the order in which it was put.
#[derive(Debug)]
pub(super) struct Record {
    place: PathBuf,
    entries: Vec<Entry>,
}

impl Record {
    /// The record below `prefix`, or an empty one.
    pub(super) fn read(prefix: &Path, layout: Layout) -> Result<Self, InstallError> {
        let place = under(prefix, Path::new(PLACE));
        let text = match std::fs::read_to_string(&place) {
            Ok(text) if layout == Layout::Local => text,
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(InstallError::Io(place, error));
            }
            _ => String::new(),
        };
        Ok(Self { place, entries: text.lines().filter_map(Entry::parse).collect() })
    }

    pub(super) fn path(&self) -> PathBuf {
        self.place.clone()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    pub(super) fn has(&self, item: &Item) -> bool {
        self.entries.contains(&Entry::of(item))
    }

    pub(super) fn has_line(&self, path: &Path, line: &str) -> bool {
        self.entries.contains(&Entry::Line(path.to_owned(), line.to_owned()))
    }

    pub(super) fn add(&mut self, item: &Item) {
        self.push(Entry::of(item));
    }

    fn push(&mut self, entry: Entry) {
        if !self.entries.contains(&entry) {
            self.entries.push(entry);
        }
    }

    /// Adds the folders that have to be made for `file`, the outermost first.
    pub(super) fn add_folders(&mut self, prefix: &Path, file: &Path) {
        let missing =
            file.ancestors().skip(1).take_while(|folder| folder.symlink_metadata().is_err());
        let missing: Vec<&Path> = missing.collect();
        for folder in missing.into_iter().rev() {
            if let Ok(inner) = folder.strip_prefix(prefix) {
                self.push(Entry::Folder(Path::new("/").join(inner)));
            }
        }
    }

    /// Lines that others have taken the place of are not ours any more.
    pub(super) fn forget_replaced(&mut self, steps: &[Step<'_>]) {
        for step in steps {
            if let Some(line) = &step.replaces {
                let old = Entry::Line(step.item().path().to_owned(), line.clone());
                self.entries.retain(|entry| *entry != old);
            }
        }
    }

    pub(super) fn write(&self) -> Result<(), InstallError> {
        let lines = self.entries.iter().map(Entry::to_text);
        let text = HEADER.to_owned() + &lines.collect::<String>();
        super::steps::make_folder(&self.place)
            .and_then(|()| replace(&self.place, text.as_bytes(), 0o644))
            .map_err(failed(&self.place))
    }

    pub(super) fn remove(&self) -> Result<(), InstallError> {
        std::fs::remove_file(&self.place).map_err(failed(&self.place))
    }
}

impl Entry {
    fn of(item: &Item) -> Self {
        match item {
            Item::File { path, .. } => Self::File(path.clone()),
            Item::Link { path, .. } => Self::Link(path.clone()),
            Item::Line { path, line, .. } => Self::Line(path.clone(), line.clone()),
        }
    }

    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Folder(path) | Self::File(path) | Self::Link(path) | Self::Line(path, _) => path,
        }
    }

    /// `KIND PATH`, for a line ` LINE` after it. All paths are swapfs's own, without spaces.
    fn to_text(&self) -> String {
        match self {
            Self::Folder(path) => format!("folder {}\n", path.display()),
            Self::File(path) => format!("file {}\n", path.display()),
            Self::Link(path) => format!("link {}\n", path.display()),
            Self::Line(path, line) => format!("line {} {line}\n", path.display()),
        }
    }

    fn parse(line: &str) -> Option<Self> {
        let (kind, rest) = line.split_once(' ')?;
        match kind {
            "folder" => Some(Self::Folder(rest.into())),
            "file" => Some(Self::File(rest.into())),
            "link" => Some(Self::Link(rest.into())),
            "line" => rest.split_once(' ').map(|(path, line)| Self::Line(path.into(), line.into())),
            _ => None,
        }
    }

    /// Takes away what this entry stands for, unless it is something else by now.
    pub(super) fn take_away(&self, prefix: &Path, dry_run: bool) -> Result<Done, InstallError> {
        let path = under(prefix, self.path());
        let mut note = None;
        let outcome = match (self, path.symlink_metadata()) {
            (_, Err(error)) if error.kind() == io::ErrorKind::NotFound => Outcome::Missing,
            (_, Err(error)) => return Err(InstallError::Io(path, error)),
            (Self::Line(_, line), Ok(_)) => {
                note = Some(line.clone());
                let text = std::fs::read_to_string(&path).map_err(failed(&path))?;
                match text.lines().any(|other| other == line) {
                    true => Outcome::Removed,
                    false => Outcome::Missing,
                }
            }
            (Self::Link(_), Ok(found)) if found.is_symlink() => Outcome::Removed,
            (Self::File(_), Ok(found)) if found.is_file() => Outcome::Removed,
            _ => {
                note = Some("it is not what was put there".to_owned());
                Outcome::LeftAlone
            }
        };
        if outcome == Outcome::Removed && !dry_run {
            let removed = match self {
                Self::Line(_, line) => edit(&path, |text| without_line(text, line)),
                _ => std::fs::remove_file(&path),
            };
            removed.map_err(failed(&path))?;
        }
        Ok(Done { outcome, path, note })
    }
}
