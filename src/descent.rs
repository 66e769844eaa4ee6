//! Going through everything below a folder by descriptors, however deep it is.
//!
//! Depth and names are the users' choice: a path may be longer than the kernel takes, and a way down may have more levels
//! than a process may have descriptors. So each folder is opened by its own name below the descriptor of the one above,
//! and only the last levels of the way down stay open. A level that was closed is opened again by its names from the
//! nearest one that is open, and used only while it is the same inode. No symbolic link is followed and no other
//! filesystem entered.

use std::ffi::{OsStr, OsString};
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, fstat, openat, openat2, statat,
};
use rustix::io::Errno;

/// Levels of the way down that are open at once, besides the top.
const OPEN_MAX: usize = 128;

/// Levels below the top; deeper folders are refused. The way back to a level costs steps for all above it.
const DEPTH_MAX: usize = 16_384;

/// Something that was met on the way. Paths begin at the top.
#[derive(Debug)]
pub(crate) enum Met<'a> {
    /// Anything but a folder.
    Entry(Entry<'a>),
    /// A folder that could not be read, not to its end, or not any more.
    Refused(&'a Path, io::Error),
}

/// A name that leads to no folder.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    folder: BorrowedFd<'a>,
    name: &'a OsStr,
    pub(crate) path: &'a Path,
    pub(crate) ino: u64,
    pub(crate) kind: FileType,
}

impl Entry<'_> {
    /// Opens it, without following a symbolic link and without waiting.
    pub(crate) fn open(&self, access: OFlags) -> io::Result<OwnedFd> {
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(openat(self.folder, self.name, flags, Mode::empty())?)
    }
}

/// Calls `visit` for everything below `top` but the name `left_out` in it, until it breaks. What vanishes meanwhile may be
/// met or not.
pub(crate) fn descend<B>(
    top: BorrowedFd<'_>, left_out: &str, visit: &mut dyn FnMut(Met<'_>) -> ControlFlow<B>,
) -> ControlFlow<B> {
    let mut way = Way { path: PathBuf::new(), levels: Vec::new() };
    let opened = open_folder(top, OsStr::new("."));
    way.enter(opened, OsStr::new(left_out), visit)?;
    while let Some(name) = way.next(visit)? {
        let Some(above) = way.levels.last() else { break };
        let opened = match way.levels.len() > DEPTH_MAX {
            true => Err(Errno::NAMETOOLONG),
            false => open_folder(above.folder.as_ref().map_or(top, AsFd::as_fd), &name),
        };
        way.path.push(&name);
        way.enter(opened, OsStr::new(""), visit)?;
    }
    ControlFlow::Continue(())
}

/// A folder on the way down, which has been read.
struct Level {
    /// `None` while it is closed. The first level is never closed.
    folder: Option<OwnedFd>,
    /// Its device and inode.
    id: (u64, u64),
    /// Bytes of its path.
    path_length: usize,
    /// The folders in it that were not entered yet.
    below: Vec<OsString>,
}

struct Way {
    path: PathBuf,
    levels: Vec<Level>,
}

impl Way {
    /// Takes a folder in, whose path has been set: visits what is in it and remembers the folders.
    fn enter<B>(
        &mut self, opened: Result<OwnedFd, Errno>, left_out: &OsStr,
        visit: &mut dyn FnMut(Met<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B> {
        let path_length = self.path.as_os_str().len();
        let entered = opened.and_then(|folder| Ok((id_of(&folder)?, folder)));
        match entered {
            Ok((id, folder)) => {
                let below = read(&folder, &mut self.path, left_out, visit)?;
                self.levels.push(Level { folder: Some(folder), id, path_length, below });
                let count = self.levels.len();
                if count > OPEN_MAX + 1 {
                    self.levels[count - 1 - OPEN_MAX].folder = None;
                }
                ControlFlow::Continue(())
            }
            // Gone, or no folder of this filesystem any more.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV) => self.back(),
            Err(error) => {
                visit(Met::Refused(&self.path, error.into()))?;
                self.back()
            }
        }
    }

    /// Sets the path back to that of the last level.
    fn back<B>(&mut self) -> ControlFlow<B> {
        cut(&mut self.path, self.levels.last().map_or(0, |level| level.path_length));
        ControlFlow::Continue(())
    }

    /// The next folder to enter, below the last level, which is open then. `None` when there is none.
    fn next<B>(
        &mut self, visit: &mut dyn FnMut(Met<'_>) -> ControlFlow<B>,
    ) -> ControlFlow<B, Option<OsString>> {
        while let Some(level) = self.levels.last_mut() {
            if level.below.is_empty() {
                self.levels.pop();
                self.back()?;
            } else if level.folder.is_some() {
                return ControlFlow::Continue(level.below.pop());
            } else {
                self.reopen(visit)?;
            }
        }
        ControlFlow::Continue(None)
    }

    /// Opens the last levels again. Those that are not where they were are left, and said.
    fn reopen<B>(&mut self, visit: &mut dyn FnMut(Met<'_>) -> ControlFlow<B>) -> ControlFlow<B> {
        for index in 1..self.levels.len() {
            match self.reopened(index) {
                Ok(folder) => self.levels[index].folder = Some(folder),
                Err(error) => {
                    cut(&mut self.path, self.levels[index].path_length);
                    self.levels.truncate(index);
                    visit(Met::Refused(&self.path, error))?;
                    return self.back();
                }
            }
            if index > 1 && index + OPEN_MAX <= self.levels.len() {
                self.levels[index - 1].folder = None;
            }
        }
        ControlFlow::Continue(())
    }

    /// Opens one level, below the one above, which is open.
    fn reopened(&self, index: usize) -> io::Result<OwnedFd> {
        let (above, level) = (&self.levels[index - 1], &self.levels[index]);
        let name = &self.path.as_os_str().as_bytes()[above.path_length..level.path_length];
        let name = OsStr::from_bytes(name.strip_prefix(b"/").unwrap_or(name));
        let moved = || io::Error::other("moved while it was read");
        let from = above.folder.as_ref().ok_or_else(moved)?;
        let folder = open_folder(from.as_fd(), name)?;
        if id_of(&folder)? == level.id { Ok(folder) } else { Err(moved()) }
    }
}

/// Shortens a path to so many bytes.
fn cut(path: &mut PathBuf, length: usize) {
    let mut bytes = std::mem::take(path).into_os_string().into_encoded_bytes();
    bytes.truncate(length);
    *path = OsString::from_vec(bytes).into();
}

/// Visits what is in a folder; the folders in it come back.
fn read<B>(
    folder: &OwnedFd, path: &mut PathBuf, left_out: &OsStr,
    visit: &mut dyn FnMut(Met<'_>) -> ControlFlow<B>,
) -> ControlFlow<B, Vec<OsString>> {
    let mut below = Vec::new();
    let mut refused = None;
    // Not by the flags of a descriptor that is only a place.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    match openat(folder, c".", flags, Mode::empty()).and_then(Dir::new) {
        Err(error) => refused = Some(error),
        Ok(entries) => {
            for entry in entries {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(error) => {
                        refused = Some(error);
                        break;
                    }
                };
                let name = OsStr::from_bytes(entry.file_name().to_bytes());
                if name == "." || name == ".." || name == left_out {
                    continue;
                }
                match kind_of(folder.as_fd(), name, entry.file_type()) {
                    None => {}
                    Some(FileType::Directory) => below.push(name.to_owned()),
                    Some(kind) => {
                        let length = path.as_os_str().len();
                        path.push(name);
                        let (folder, ino) = (folder.as_fd(), entry.ino());
                        visit(Met::Entry(Entry { folder, name, path, ino, kind }))?;
                        cut(path, length);
                    }
                }
            }
        }
    }
    if let Some(error) = refused {
        visit(Met::Refused(path, error.into()))?;
    }
    ControlFlow::Continue(below)
}

/// What a name leads to; `None` when it has gone.
fn kind_of(folder: BorrowedFd<'_>, name: &OsStr, told: FileType) -> Option<FileType> {
    match told {
        FileType::Unknown => {
            let status = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()?;
            Some(FileType::from_raw_mode(status.st_mode))
        }
        told => Some(told),
    }
}

/// Opens a folder as a place to start from; reading it opens it once more.
fn open_folder(above: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    openat2(above, name, flags, Mode::empty(), resolve)
}

fn id_of(folder: &OwnedFd) -> Result<(u64, u64), Errno> {
    fstat(folder).map(|status| (status.st_dev, status.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};

    /// All paths that are met, and those that are refused.
    fn met(top: &Path, left_out: &str) -> (Vec<String>, Vec<String>) {
        let (mut paths, mut refused) = (Vec::new(), Vec::new());
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let ended = descend(File::open(top).unwrap().as_fd(), left_out, &mut |met| {
            match met {
                Met::Entry(entry) => paths.push(text(entry.path)),
                Met::Refused(path, error) => refused.push(format!("{}: {error}", text(path))),
            }
            ControlFlow::<()>::Continue(())
        });
        assert!(ended.is_continue());
        paths.sort();
        (paths, refused)
    }

    #[test]
    fn everything_is_met_once_and_no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["a/b", "c", "left", "a/left"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        for name in ["one", "a/two", "a/b/three", "left/four", "a/left/five"] {
            fs::write(at(name), "").unwrap();
        }
        std::os::unix::fs::symlink("/etc", at("a/link")).unwrap();
        let (paths, refused) = met(folder.path(), "left");
        assert_eq!(paths, ["a/b/three", "a/left/five", "a/link", "a/two", "one"]);
        assert!(refused.is_empty(), "{refused:?}");
        let first = descend(File::open(folder.path()).unwrap().as_fd(), "", &mut |met| match met {
            Met::Entry(entry) => ControlFlow::Break(entry.open(OFlags::RDONLY).is_ok()),
            Met::Refused(..) => ControlFlow::Continue(()),
        });
        assert!(first.is_break());
    }

    /// A chain of folders that is deeper than what is open at once, with a folder of files beside each step.
    fn chain(top: &Path, depth: usize) -> usize {
        let mut folder: OwnedFd = File::open(top).unwrap().into();
        let name = "n".repeat(255);
        for level in 0..depth {
            rustix::fs::mkdirat(&folder, "beside", Mode::RWXU).unwrap();
            rustix::fs::mkdirat(&folder, &*name, Mode::RWXU).unwrap();
            let beside = open_folder(folder.as_fd(), OsStr::new("beside")).unwrap();
            let made = OFlags::CREATE | OFlags::WRONLY;
            openat(beside, format!("file{level}"), made, Mode::RWXU).unwrap();
            folder = open_folder(folder.as_fd(), OsStr::new(&name)).unwrap();
        }
        depth
    }

    #[test]
    fn more_levels_than_are_open_and_longer_paths_than_the_kernel_takes() {
        let folder = tempfile::tempdir().unwrap();
        let count = chain(folder.path(), 3 * OPEN_MAX + 7);
        let (paths, refused) = met(folder.path(), "");
        assert_eq!((paths.len(), refused.len()), (count, 0), "{refused:?}");
    }

    #[test]
    fn what_is_moved_meanwhile_is_said_and_the_rest_is_met() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("top")).unwrap();
        for name in ["other", "another"] {
            fs::write(folder.path().join("top").join(name), "").unwrap();
        }
        chain(&folder.path().join("top"), 2 * OPEN_MAX);
        fs::create_dir(folder.path().join("away")).unwrap();
        let first = format!("top/{}", "n".repeat(255));
        let (mut met, mut refused, mut is_moved) = (0, Vec::new(), false);
        let _ = descend(File::open(folder.path()).unwrap().as_fd(), "", &mut |found| {
            match found {
                Met::Entry(entry) => {
                    met += 1;
                    // At the deepest level, so that the upper ones are closed.
                    if !is_moved && entry.path.as_os_str().len() > 255 * (2 * OPEN_MAX - 2) {
                        is_moved = true;
                        let (from, to) = (folder.path().join(&first), folder.path().join("away/x"));
                        fs::rename(from, to).unwrap();
                    }
                }
                Met::Refused(path, _) => refused.push(path.to_owned()),
            }
            ControlFlow::<()>::Continue(())
        });
        assert!(is_moved && met >= 2, "{met}");
        assert!(refused.is_empty() || refused == [Path::new(&first)], "{refused:?}");
    }
}
