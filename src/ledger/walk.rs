//! All regular files of a swap folder, by descriptors: no symbolic link leads out of it.

use std::collections::HashSet;
use std::io;
use std::ops::ControlFlow;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, OFlags};

use crate::descent::{Entry, Met, descend};
use crate::fs::PRIVATE_NAME;
use crate::paths::plain;
use crate::sys_process::reason;

/// A regular file that was found.
pub(super) struct Found<'a> {
    entry: &'a Entry<'a>,
    /// From the swap folder on.
    pub(super) path: &'a Path,
    pub(super) ino: u64,
}

impl Found<'_> {
    /// Opens the file, for reading or for both.
    pub(super) fn open(&self, write: bool) -> io::Result<OwnedFd> {
        self.entry.open(if write { OFlags::RDWR } else { OFlags::RDONLY })
    }
}

/// Calls `visit` once for each regular file below `root`, however many names it has; false from `visit` ends the walk.
/// Folders that cannot be read are said and left out; how many these are comes back.
pub(super) fn walk(
    root: BorrowedFd<'_>, visit: &mut dyn FnMut(&Found<'_>) -> io::Result<bool>,
) -> io::Result<u64> {
    let (mut seen, mut refused) = (HashSet::new(), 0);
    let ended = descend(root, PRIVATE_NAME, &mut |met| match met {
        Met::Entry(entry) if entry.kind == FileType::RegularFile && seen.insert(entry.ino) => {
            let found = Found { entry: &entry, path: entry.path, ino: entry.ino };
            match visit(&found) {
                Ok(true) => ControlFlow::Continue(()),
                Ok(false) => ControlFlow::Break(Ok(())),
                Err(error) => ControlFlow::Break(Err(error)),
            }
        }
        Met::Entry(_) => ControlFlow::Continue(()),
        Met::Refused(path, error) => {
            refused += 1;
            let name = plain(path);
            log::warn!(partition = name.as_str(); "{name}: left out: {}", reason(&error));
            ControlFlow::Continue(())
        }
    });
    match ended {
        ControlFlow::Break(Err(error)) => Err(error),
        _ => Ok(refused),
    }
}
