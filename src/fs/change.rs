//! Changing what stat(2) tells, and opening what is behind a node.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{
    AtFlags, CWD, Gid, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT, Uid,
};

use super::reach::status_of;
use super::types::{Access, FileKind, TimeChange};
use super::{ITSELF, Tree, link_of};
use crate::error::{Errno, Result};
use crate::sys::errno;

impl Tree {
    /// Sets the permission bits, set-user-id, set-group-id and sticky included; other bits are
    /// ignored.
    ///
    /// # Errors
    /// EOPNOTSUPP for a symbolic link; ESTALE; EPERM; EROFS.
    pub fn set_mode(&self, id: u64, mode: u32) -> Result<()> {
        let (node, descriptor) = self.reach(id)?;
        if node.kind == FileKind::Symlink {
            return Err(Errno::EOPNOTSUPP);
        }
        let mode = Mode::from_raw_mode(mode & 0o7777);
        rustix::fs::chmodat(CWD, link_of(&descriptor), mode, AtFlags::empty()).map_err(errno)
    }

    /// Sets owner and group; `None` leaves one as it is. Set-user-id and set-group-id go as the
    /// swap folder's filesystem has it.
    ///
    /// # Errors
    /// EINVAL for the id -1; EPERM; ESTALE; EROFS.
    pub fn set_owner(&self, id: u64, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
        if uid == Some(u32::MAX) || gid == Some(u32::MAX) {
            return Err(Errno::EINVAL);
        }
        let descriptor = self.descriptor(id)?;
        let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
        rustix::fs::chownat(&descriptor, c"", uid, gid, ITSELF).map_err(errno)
    }

    /// Sets the timestamps, of a symbolic link its own.
    ///
    /// # Errors
    /// ESTALE; EPERM; EROFS.
    pub fn set_times(&self, id: u64, atime: TimeChange, mtime: TimeChange) -> Result<()> {
        let descriptor = self.descriptor(id)?;
        let times = Timestamps { last_access: timespec(atime), last_modification: timespec(mtime) };
        rustix::fs::utimensat(&descriptor, c"", &times, ITSELF).map_err(errno)
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// EINVAL when it is none; ESTALE.
    pub fn readlink(&self, id: u64) -> Result<OsString> {
        let (node, descriptor) = self.reach(id)?;
        if node.kind != FileKind::Symlink {
            return Err(Errno::EINVAL);
        }
        let target = rustix::fs::readlinkat(&descriptor, c"", Vec::new()).map_err(errno)?;
        Ok(OsString::from_vec(target.into_bytes()))
    }

    /// Opens the bytes of a regular file, with O_DIRECT if `direct`. Never truncates, never
    /// appends.
    ///
    /// # Errors
    /// EISDIR, ELOOP (a symbolic link) or ENXIO when it is no regular file; EINVAL when `direct`
    /// and the filesystem has no O_DIRECT; EACCES where the daemon itself has no right; ESTALE.
    pub fn open_file(&self, id: u64, access: Access, direct: bool) -> Result<OwnedFd> {
        let (node, descriptor) = self.reach(id)?;
        match node.kind {
            FileKind::Regular => {}
            FileKind::Directory => return Err(Errno::EISDIR),
            FileKind::Symlink => return Err(Errno::ELOOP),
            // Opening a pipe would wait for its other end, opening a device would work it.
            FileKind::Pipe | FileKind::Socket | FileKind::BlockDevice | FileKind::CharDevice => {
                return Err(Errno::ENXIO);
            }
        }
        let mut flags = OFlags::CLOEXEC;
        flags |= match access {
            Access::ReadOnly => OFlags::RDONLY,
            Access::ReadWrite => OFlags::RDWR,
        };
        if direct {
            flags |= OFlags::DIRECT;
        }
        self.keep(
            rustix::fs::openat(CWD, link_of(&descriptor), flags, Mode::empty()).map_err(errno)?,
        )
    }

    /// The absolute path of the inode in the swap folder, for messages and `user.swap.path`; empty
    /// when it has none that is known. Whether something is mounted over it cannot be told from
    /// here: who knows the mountpoint can.
    ///
    /// # Errors
    /// ESTALE.
    pub fn backing_path(&self, id: u64) -> Result<PathBuf> {
        let (node, descriptor) = self.reach(id)?;
        if status_of(&descriptor)?.stx_nlink == 0 {
            return Ok(PathBuf::new());
        }
        if node.kind == FileKind::Directory {
            return Ok(path_of(&descriptor));
        }
        // The kernel knows a file opened by handle by no name, and one with several by any of them,
        // so the name comes from here and the path of its directory from the kernel.
        let hint = self.table.lock().hint(id).cloned();
        if let Some(hint) = hint
            && let Ok(directory) = self.descriptor(hint.parent)
            && let Ok(found) = self.find(directory.as_fd(), &hint.name)
            && found.node.is_same(&node)
        {
            let path = path_of(&directory);
            let is_known = !path.as_os_str().is_empty();
            return Ok(if is_known { path.join(&hint.name) } else { path });
        }
        let path = path_of(&descriptor);
        let is_usable =
            path.file_name().is_some_and(|name| !name.as_bytes().ends_with(b" (deleted)"));
        Ok(if is_usable { path } else { PathBuf::new() })
    }
}

/// The kernel's path of an open inode; empty when it has none below the process's root.
fn path_of(descriptor: impl AsFd) -> PathBuf {
    match rustix::fs::readlink(link_of(descriptor), Vec::new()) {
        Ok(path) if path.to_bytes().starts_with(b"/") => {
            PathBuf::from(OsStr::from_bytes(path.to_bytes()))
        }
        _ => PathBuf::new(),
    }
}

fn timespec(change: TimeChange) -> Timespec {
    match change {
        TimeChange::Keep => Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        TimeChange::Now => Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
        TimeChange::At(time) => since_epoch(time),
    }
}

/// Seconds since 1970, negative before, and nanoseconds that always count forward.
fn since_epoch(time: SystemTime) -> Timespec {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => Timespec {
            tv_sec: i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: i64::from(after.subsec_nanos()),
        },
        Err(error) => {
            let before = error.duration();
            let seconds = i64::try_from(before.as_secs()).unwrap_or(i64::MAX);
            match i64::from(before.subsec_nanos()) {
                0 => Timespec { tv_sec: -seconds, tv_nsec: 0 },
                nanoseconds => {
                    Timespec { tv_sec: -seconds - 1, tv_nsec: 1_000_000_000 - nanoseconds }
                }
            }
        }
    }
}
