//! The partitions below a path, by descriptors: what users have made there may be deeper than any path reaches.

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, fstat};
use rustix::io::Errno;

use crate::descent::{Entry, Met, descend};
use crate::paths::shortened;

/// A partition, open as a place: that begins no swap-in.
#[derive(Debug)]
pub(super) struct Partition(OwnedFd);

impl Partition {
    /// The text of an attribute; `None` when there is none.
    pub(super) fn text(&self, name: &str) -> io::Result<Option<String>> {
        // The link leads to the inode itself, whatever its path.
        let link = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        let mut value = [0_u8; 4096];
        match rustix::fs::getxattr(&*link, name, &mut value[..]) {
            Ok(length) => Ok(Some(String::from_utf8_lossy(&value[..length]).into_owned())),
            Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The number that an attribute is.
    pub(super) fn number(&self, name: &str) -> io::Result<Option<u64>> {
        Ok(self.text(name)?.and_then(|text| text.trim().parse().ok()))
    }

    /// Bytes.
    pub(super) fn size(&self) -> io::Result<u64> {
        Ok(u64::try_from(fstat(&self.0)?.st_size).unwrap_or(0))
    }
}

/// A name that leads to a partition.
#[derive(Debug)]
pub(super) struct FileBelow<'a> {
    pub(super) ino: u64,
    /// The path that was given.
    top: &'a Path,
    place: Place<'a>,
}

#[derive(Debug)]
enum Place<'a> {
    Below(&'a Entry<'a>),
    Itself(&'a OwnedFd),
}

impl FileBelow<'_> {
    /// Its path, which begins with the one that was given; for people.
    pub(super) fn path(&self) -> PathBuf {
        match self.place {
            Place::Below(entry) => shortened(&self.top.join(entry.path)).into_owned(),
            Place::Itself(_) => self.top.to_owned(),
        }
    }

    /// Opens it; `None` when it is gone.
    pub(super) fn open(&self) -> io::Result<Option<Partition>> {
        let opened = match self.place {
            Place::Below(entry) => entry.open(OFlags::PATH),
            Place::Itself(file) => file.try_clone(),
        };
        match opened {
            Ok(file) => Ok(Some(Partition(file))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// What is found below a path.
#[derive(Debug)]
pub(super) enum Below<'a> {
    Partition(FileBelow<'a>),
    /// A directory that is left out.
    LeftOut(PathBuf, io::Error),
}

/// Calls `visit` for the file itself, or for every regular file below a directory on the same mount, until it breaks.
///
/// # Errors
/// Those of opening the path.
pub(super) fn files_below<B>(
    path: &Path, visit: &mut dyn FnMut(Below<'_>) -> ControlFlow<B>,
) -> io::Result<ControlFlow<B>> {
    let top = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let status = fstat(&top)?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Directory {
        let (ino, place) = (status.st_ino, Place::Itself(&top));
        return Ok(visit(Below::Partition(FileBelow { ino, top: path, place })));
    }
    Ok(descend(top.as_fd(), "", &mut |met| match met {
        Met::Entry(entry) if entry.kind == FileType::RegularFile => {
            let (ino, place) = (entry.ino, Place::Below(&entry));
            visit(Below::Partition(FileBelow { ino, top: path, place }))
        }
        Met::Entry(_) => ControlFlow::Continue(()),
        Met::Refused(below, error) => {
            // No slash behind the path itself.
            let whole = path.components().chain(below.components()).collect::<PathBuf>();
            visit(Below::LeftOut(shortened(&whole).into_owned(), error))
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_regular_files_below_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir_all(at("a/b")).unwrap();
        for (name, text) in [("one", "1"), ("a/two", "22"), ("a/b/three", "333")] {
            std::fs::write(at(name), text).unwrap();
        }
        std::os::unix::fs::symlink("/etc", at("a/link")).unwrap();
        let sizes = |path: &Path| -> io::Result<Vec<u64>> {
            let mut sizes = Vec::new();
            let _ = files_below(path, &mut |found| {
                let Below::Partition(file) = found else { panic!("{found:?}") };
                assert!(file.path().is_file(), "{file:?}");
                sizes.push(file.open().unwrap().unwrap().size().unwrap());
                ControlFlow::<()>::Continue(())
            })?;
            sizes.sort_unstable();
            Ok(sizes)
        };
        assert_eq!(sizes(folder.path()).unwrap(), [1, 2, 3]);
        assert_eq!(sizes(&at("a/two")).unwrap(), [2]);
        assert!(sizes(&at("none")).is_err());
    }
}
