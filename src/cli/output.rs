//! Files for results, which never replace anybody else's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, Mode, OFlags, accessat, fcntl_setfl, fstat, fstatfs, openat, renameat,
    unlinkat,
};
use rustix::io::Errno;

use crate::sys_process::reason;
use crate::trust::{is_named, own_user};

/// What a file has, and how it is known again: only such a file is replaced.
#[derive(Debug, Clone, Copy)]
pub(super) struct Content {
    /// As in "is no ... that swapfs made".
    pub(super) name: &'static str,
    /// Whether a text is one that swapfs made.
    pub(super) is_ours: fn(&str) -> bool,
    /// How the names of such files end, where others would mislead: `svg`.
    pub(super) ending: Option<&'static str>,
}

/// A file that may be written: it is new, our own of an earlier run, or no regular file. Its folder, and what is no regular
/// file, is opened once: names may be exchanged by others until there is something to write.
#[derive(Debug)]
pub(super) struct Output {
    path: PathBuf,
    folder: OwnedFd,
    name: OsString,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    New,
    /// The file that is to be replaced.
    Ours(File),
    /// A device, a pipe.
    Special(File),
}

impl Output {
    /// Looks whether `path` may be written, before there is anything to write.
    ///
    /// # Errors
    /// One line that names the path.
    pub(super) fn prepare(path: &Path, content: Content) -> Result<Self, String> {
        let failed = |why: &str| format!("{}: {why}", path.display());
        let why = |error: io::Error| failed(&reason(&error));
        let name = path.file_name().ok_or_else(|| failed("Is a directory"))?.to_owned();
        if let (Some(ending), Some(given)) = (content.ending, path.extension())
            && !given.eq_ignore_ascii_case(ending)
        {
            let what = content.name;
            return Err(failed(&format!(
                "the {what} is written as {ending}; give a name that ends in .{ending}"
            )));
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(parent(path), flags, Mode::empty())
            .map_err(|error| why(error.into()))?;
        let kind = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Kind::New,
            Err(error) => return Err(why(error)),
            Ok(metadata) if metadata.is_dir() => return Err(failed("Is a directory")),
            Ok(metadata) if !metadata.is_file() => Kind::Special(open_special(path).map_err(why)?),
            Ok(_) => {
                let file = open_regular(&folder, &name).map_err(why)?;
                let mut bytes = Vec::new();
                let read = (&file).take(LENGTH_MAX).read_to_end(&mut bytes);
                read.map_err(why)?;
                if !(content.is_ours)(&String::from_utf8_lossy(&bytes)) {
                    let name = content.name;
                    return Err(failed(&format!(
                        "exists and is no {name} that swapfs made; name another"
                    )));
                }
                Kind::Ours(file)
            }
        };
        if !matches!(kind, Kind::Special(_)) {
            accessat(&folder, c".", Access::WRITE_OK, AtFlags::empty())
                .map_err(|error| why(error.into()))?;
        }
        Ok(Self { path: path.to_owned(), folder, name, kind })
    }

    /// Where.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Whether one of them would replace the other.
    pub(super) fn is_same_as(&self, other: &Self) -> bool {
        let place = |output: &Self| {
            let folder = fstat(&output.folder).ok().map(|found| (found.st_dev, found.st_ino));
            (folder, output.name.clone())
        };
        !matches!(self.kind, Kind::Special(_)) && place(self) == place(other)
    }

    /// Writes all of it; a file of an earlier run stays whole until then.
    ///
    /// # Errors
    /// One line that names the path.
    pub(super) fn write(&self, text: &str) -> Result<(), String> {
        let written = match &self.kind {
            Kind::Special(file) => fill(file, text),
            Kind::New => self.create(&self.name).and_then(|file| fill(&file, text)),
            Kind::Ours(before) => self.replace(before, text),
        };
        written.map_err(|error| format!("{}: {}", self.path.display(), reason(&error)))
    }

    fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::from_raw_mode(0o666);
        Ok(openat(&self.folder, name, flags | OFlags::CLOEXEC, mode)?.into())
    }

    fn replace(&self, before: &File, text: &str) -> io::Result<()> {
        let mut fresh = self.name.clone();
        fresh.push(format!(".{}", std::process::id()));
        let file = self.create(&fresh)?;
        let written = fill(&file, text).and_then(|()| {
            // Both names may be others' by now.
            let is_same = is_named(&self.folder, &self.name, before)?
                && is_named(&self.folder, &fresh, &file)?;
            match is_same {
                true => Ok(renameat(&self.folder, &fresh, &self.folder, &self.name)?),
                false => Err(io::Error::other("was replaced meanwhile; name another")),
            }
        });
        if written.is_err() && is_named(&self.folder, &fresh, &file).unwrap_or(false) {
            let _ = unlinkat(&self.folder, &fresh, AtFlags::empty());
        }
        written
    }
}

/// Bytes of a file that are read to know it again.
const LENGTH_MAX: u64 = 64 << 20;

/// The filesystem of pipes without names.
const PIPEFS: i64 = 0x5049_5045;

/// Opens what is no regular file, for writing; a pipe has to have a reader.
fn open_special(path: &Path) -> io::Result<File> {
    let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    let found = file.metadata()?;
    if found.is_file() {
        return Err(io::Error::other("was replaced meanwhile; name another"));
    }
    // Whoever has put it there decides how long writing takes. A shell's pipe is nobody's, whoever opened it.
    let is_named = found.file_type().is_fifo() && fstatfs(&file)?.f_type != PIPEFS;
    if is_named && ![0, own_user()].contains(&found.uid()) {
        return Err(io::Error::other("is a pipe of somebody else's; name another"));
    }
    fcntl_setfl(&file, OFlags::empty())?;
    Ok(file)
}

/// Opens a regular file, for reading. A symbolic link is none.
fn open_regular(folder: &OwnedFd, name: &OsStr) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match openat(folder, name, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::LOOP) => return Err(io::Error::other("is a symbolic link; name another")),
        Err(error) => return Err(error.into()),
    };
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("was replaced meanwhile; name another")),
    }
}

fn fill(mut file: &File, text: &str) -> io::Result<()> {
    file.write_all(text.as_bytes())
}

/// The folder that a file is in.
pub(super) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_does_not_say_another_kind() {
        let folder = tempfile::tempdir().unwrap();
        let content = Content { name: "picture", is_ours: |_| true, ending: Some("svg") };
        for (name, is_taken) in [
            ("x.svg", true),
            ("x.SVG", true),
            ("x", true),
            (".hidden", true),
            ("a.b.svg", true),
            ("x.png", false),
            ("x.svg.pdf", false),
            ("x.jpeg", false),
        ] {
            let found = Output::prepare(&folder.path().join(name), content);
            assert_eq!(found.is_ok(), is_taken, "{name}");
            let told =
                found.err().is_none_or(|line| line.ends_with("give a name that ends in .svg"));
            assert!(told, "{name}");
        }
        Output::prepare(Path::new("/dev/null"), content).unwrap();
    }

    #[test]
    fn only_new_and_own_files_are_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tuned.json");
        let prepare = |path: &Path| {
            Output::prepare(
                path,
                Content { name: "list", is_ours: |text| text == "ours", ending: None },
            )
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
