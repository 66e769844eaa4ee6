//! Files for results, which never replace anybody else's.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::document::KEY;
use super::plot::MARK;
use crate::aio::probe::create;
use crate::sys_process::reason;

/// A file that may be written: it is new, the tuner's own of an earlier run, or no regular file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
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
    pub fn prepare(path: &Path) -> Result<Self, String> {
        let failed = |why: &str| format!("{}: {why}", path.display());
        let kind = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kind::New,
            Err(error) => return Err(failed(&reason(&error))),
            Ok(metadata) if metadata.is_dir() => return Err(failed("Is a directory")),
            Ok(metadata) if !metadata.is_file() => Kind::Special,
            Ok(_) if is_ours(path).map_err(|error| failed(&reason(&error)))? => Kind::Ours,
            Ok(_) => return Err(failed("exists and was not made by swapfs tune; name another")),
        };
        if kind != Kind::Special {
            let folder = File::open(parent(path)).map_err(|error| failed(&reason(&error)))?;
            create(folder.as_fd(), OFlags::empty())
                .map_err(|error| failed(&reason(&error.into())))?;
        }
        Ok(Self { path: path.to_owned(), kind })
    }

    /// Where.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of it; a file of an earlier run stays whole until then.
    ///
    /// # Errors
    /// One line that names the path.
    pub fn write(&self, text: &str) -> Result<(), String> {
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

/// Whether the tuner made it: a configuration with its key, or a plot with its mark.
fn is_ours(path: &Path) -> io::Result<bool> {
    let text = std::fs::read(path)?;
    let text = String::from_utf8_lossy(&text);
    Ok(text.trim_end().ends_with(MARK)
        || serde_json::from_str::<serde_json::Value>(&text)
            .is_ok_and(|json| json.get(KEY).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_new_and_own_files_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        let ours = format!("{{\"{KEY}\": {{}}}}");
        let output = Output::prepare(&path).unwrap();
        output.write(&ours).unwrap();
        assert!(output.write(&ours).unwrap_err().contains("File exists"), "somebody was faster");
        Output::prepare(&path).unwrap().write(&format!("{ours}\n")).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), format!("{ours}\n"));
        std::fs::write(&path, "{\"aio\": {}}").unwrap();
        let error = Output::prepare(&path).unwrap_err();
        assert!(error.contains("was not made by swapfs tune"), "{error}");
        assert!(Output::prepare(folder.path()).is_err());
        assert!(Output::prepare(Path::new("/nonexistent/file")).is_err());
        Output::prepare(Path::new("/dev/null")).unwrap().write("x").unwrap();
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }
}
