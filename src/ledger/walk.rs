//! All regular files of a swap folder, by descriptors: no symbolic link leads out of it.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, FileType, Mode, OFlags, openat};

use crate::fs::PRIVATE_NAME;
use crate::paths::plain;

/// Opens the file that it is handed, for reading or for both.
pub(super) struct Found<'a> {
    folder: BorrowedFd<'a>,
    name: &'a OsStr,
    /// From the swap folder on.
    pub(super) path: PathBuf,
    pub(super) ino: u64,
}

impl Found<'_> {
    pub(super) fn open(&self, write: bool) -> io::Result<OwnedFd> {
        let access = if write { OFlags::RDWR } else { OFlags::RDONLY };
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        Ok(openat(self.folder, self.name, flags, Mode::empty())?)
    }
}

/// Calls `visit` once for each regular file below `root`, however many names it has. Folders that cannot be
/// read are said and left out; false from `visit` ends the walk.
pub(super) fn walk(
    root: BorrowedFd<'_>, visit: &mut dyn FnMut(&Found<'_>) -> io::Result<bool>,
) -> io::Result<()> {
    let mut seen = HashSet::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(path) = folders.pop() {
        let from = if path.as_os_str().is_empty() { Path::new(".") } else { &path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = rustix::fs::ResolveFlags::NO_SYMLINKS | rustix::fs::ResolveFlags::NO_XDEV;
        let folder = match rustix::fs::openat2(root, from, flags, Mode::empty(), resolve) {
            Ok(folder) => folder,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::XDEV) => continue,
            Err(error) => {
                log::warn!("{}: {error}", plain(&path));
                continue;
            }
        };
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            let private = path.as_os_str().is_empty() && name == PRIVATE_NAME;
            if name == "." || name == ".." || private {
                continue;
            }
            let kind = match entry.file_type() {
                FileType::Unknown => kind_of(folder.as_fd(), name)?,
                kind => kind,
            };
            match kind {
                FileType::Directory => folders.push(path.join(name)),
                FileType::RegularFile if seen.insert(entry.ino()) => {
                    let (ino, path) = (entry.ino(), path.join(name));
                    let found = Found { folder: folder.as_fd(), name, path, ino };
                    if !visit(&found)? {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
    }
    Ok(())
}

fn kind_of(folder: BorrowedFd<'_>, name: &OsStr) -> io::Result<FileType> {
    let status = rustix::fs::statat(folder, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(FileType::from_raw_mode(status.st_mode))
}
