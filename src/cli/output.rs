//! Files for results, which never replace anybody else's.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};

use crate::sys_process::reason;

/// What a file has, and how it is known again: only such a file is replaced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    /// As in "is no ... that swapfs made".
    pub(super) name: &'static str,
    /// Whether a text is one that swapfs made.
    pub(super) is_ours: fn(&str) -> bool,
}

/// A file that may be written: it is new, our own of an earlier run, or no regular file.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    New,
    Ours,
    /// A device, a pipe.
    Special,
}

impl Output {
    /// Looks whether `path` may be written, before there is anything to write.
    ///
    /// # Errors
    /// One line that names the path.
    pub(super) fn prepare(path: &Path, content: Content) -> Result<Self, String> {
        let failed = |why: &str| format!("{}: {why}", path.display());
        let kind = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kind::New,
            Err(error) => return Err(failed(&reason(&error))),
            Ok(metadata) if metadata.is_dir() => return Err(failed("Is a directory")),
            Ok(metadata) if !metadata.is_file() => Kind::Special,
            Ok(_) => {
                let bytes = std::fs::read(path).map_err(|error| failed(&reason(&error)))?;
                if !(content.is_ours)(&String::from_utf8_lossy(&bytes)) {
                    let name = content.name;
                    return Err(failed(&format!(
                        "exists and is no {name} that swapfs made; name another"
                    )));
                }
                Kind::Ours
            }
        };
        if kind != Kind::Special {
            access(parent(path), Access::WRITE_OK)
                .map_err(|error| failed(&reason(&error.into())))?;
        }
        Ok(Self { path: path.to_owned(), kind })
    }

    /// Where.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether one of them would replace the other.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let place = |output: &Self| {
            let folder = std::fs::canonicalize(parent(&output.path)).ok();
            (folder, output.path.file_name().map(std::ffi::OsStr::to_owned))
        };
        self.kind != Kind::Special && place(self) == place(other)
    }

    /// Writes all of it; a file of an earlier run stays whole until then.
    ///
    /// # Errors
    /// One line that names the path.
    pub(super) fn write(&self, text: &str) -> Result<(), String> {
        let written = match self.kind {
            Kind::Special => {
                File::options().write(true).open(&self.path).and_then(|file| fill(file, text))
            }
            Kind::New => File::create_new(&self.path).and_then(|file| fill(file, text)),
            Kind::Ours => self.replace(text),
        };
        written.map_err(|error| format!("{}: {}", self.path.display(), reason(&error)))
    }

    fn replace(&self, text: &str) -> io::Result<()> {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}", std::process::id()));
        let fresh = self.path.with_file_name(name);
        let written = File::create_new(&fresh)
            .and_then(|file| fill(file, text))
            .and_then(|()| std::fs::rename(&fresh, &self.path));
        if written.is_err() {
            let _ = std::fs::remove_file(&fresh);
        }
        written
    }
}

fn fill(mut file: File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())
}

fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_and_own_files_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        let prepare = |path: &Path| {
            Output::prepare(path, Content { name: "list", is_ours: |text| text == "ours" })
        };
        let output = prepare(&path).unwrap();
        output.write("ours").unwrap();
        assert!(output.write("ours").unwrap_err().contains("File exists"), "somebody was faster");
        prepare(&path).unwrap().write("other").unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "other");
        let error = prepare(&path).unwrap_err();
        assert!(error.ends_with("exists and is no list that swapfs made; name another"), "{error}");
        let (new, null) = (folder.path().join("new"), Path::new("/dev/null"));
        let same = |a: &Path, b: &Path| prepare(a).unwrap().is_same_as(&prepare(b).unwrap());
        assert!(same(&new, &folder.path().join(".").join("new")));
        assert!(!same(&new, &folder.path().join("newer")) && !same(null, null));
        assert!(prepare(folder.path()).is_err());
        assert!(prepare(Path::new("/nonexistent/file")).is_err());
        prepare(null).unwrap().write("x").unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }
}
