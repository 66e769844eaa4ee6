//! Making names: in the caller's name, with the caller's mode.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Mode, OFlags};

use super::reach::{note_time, status_of};
use super::table::Hint;
use super::types::{Access, Caller, Entry, FileKind};
use super::{Tree, link_of};
use crate::error::{Errno, Result};
use crate::shares::{Full, User};
use crate::sys::{self, ActingAs, errno};

/// Set-group-id.
const SET_GROUP_ID: u32 = 0o2000;

/// Without it, set-group-id is no right of a program.
const GROUP_EXECUTES: u32 = 0o010;

/// How often a name may vanish between "it exists" and opening it, before the caller has to try
/// again.
const CREATE_ATTEMPTS_MAX: u32 = 16;

/// What [`Tree::create`] made or found.
#[derive(Debug)]
pub struct Created {
    /// Looked up once.
    pub entry: Entry,
    /// Open for reading and writing.
    pub descriptor: OwnedFd,
    /// The file did not exist before.
    pub is_new: bool,
}

impl Tree {
    /// Creates the file `name` in `parent` and opens it for reading and writing, whatever `mode`
    /// allows; with O_DIRECT if `direct`. A file that exists is opened instead unless `exclusive`;
    /// it is not truncated.
    ///
    /// # Errors
    /// EEXIST when `exclusive`; EISDIR, ELOOP or ENXIO when the name exists and is no regular file;
    /// EINVAL when `direct` and the filesystem has no O_DIRECT (a new file then stays); EPERM for
    /// the root's private name; ENOSPC, EDQUOT, EROFS and the like from the swap folder.
    pub fn create(
        &self, parent: u64, name: &OsStr, caller: &Caller, mode: u32, exclusive: bool, direct: bool,
    ) -> Result<Created> {
        self.check_new(parent, name)?;
        // Asked before: a file that was made and cannot be opened would stay.
        self.check_room()?;
        let directory = self.descriptor(parent)?;
        for _ in 0..CREATE_ATTEMPTS_MAX {
            {
                let _naming = self.moves.naming(parent);
                match self.create_new(directory.as_fd(), name, caller, mode) {
                    Ok(file) => {
                        note_time(&directory);
                        return self.created(file, Hint::new(parent, name), direct);
                    }
                    Err(Errno::EEXIST) if !exclusive => {}
                    Err(error) => return Err(error),
                }
            }
            match self.open_existing(parent, name, direct) {
                Err(Errno::ENOENT | Errno::ESTALE) => {}
                outcome => return outcome,
            }
        }
        Err(Errno::EAGAIN)
    }

    /// Creates a file without a name in the filesystem of `parent`, and opens it for reading and writing; with O_DIRECT
    /// if `direct`. Only one that is `linkable` can get a name.
    ///
    /// # Errors
    /// EOPNOTSUPP where the filesystem has no such files; ENOSPC, EDQUOT, EROFS and the like from the swap folder; EMFILE
    /// and ENFILE beyond the user's share of files without a name.
    pub fn create_unnamed(
        &self, user: User, parent: u64, caller: &Caller, mode: u32, linkable: bool, direct: bool,
    ) -> Result<Created> {
        self.check_room()?;
        let share = self.bounds.nameless.take(user, 1).map_err(Full::of_files)?;
        let directory = self.descriptor(parent)?;
        let mode = creation_mode(directory.as_fd(), caller, mode, FileKind::Regular)?;
        let mut flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::CLOEXEC;
        flags.set(OFlags::EXCL, !linkable);
        let descriptor = {
            let _acting = self.act_as(caller)?;
            rustix::fs::openat(&directory, c".", flags, mode).map_err(errno)?
        };
        if direct {
            rustix::fs::fcntl_setfl(&descriptor, OFlags::DIRECT).map_err(errno)?;
        }
        let (node, status) = self.identify(&descriptor)?;
        let place = OFlags::PATH | OFlags::CLOEXEC;
        let place = rustix::fs::openat(CWD, link_of(&descriptor), place, Mode::empty());
        let place = Arc::new(place.map_err(errno)?);
        let entry = self.enter(node, None, &status, Hint::new(parent, OsStr::new("")));
        // Bound to a name, so that what it closes is closed after the lock is gone.
        let _displaced = {
            let mut table = self.table.lock();
            let node = table.node(entry.id).cloned().ok_or(Errno::ESTALE)?;
            table.pin(&node, place, share)
        };
        Ok(Created { entry, descriptor, is_new: true })
    }

    /// Makes the directory `name` in `parent`.
    ///
    /// # Errors
    /// EEXIST; EPERM for the root's private name; else the swap folder's own.
    pub fn mkdir(&self, parent: u64, name: &OsStr, caller: &Caller, mode: u32) -> Result<Entry> {
        self.make(parent, name, |directory| {
            let mode = creation_mode(directory, caller, mode, FileKind::Directory)?;
            let _acting = self.act_as(caller)?;
            rustix::fs::mkdirat(directory, name, mode).map_err(errno)
        })
    }

    /// Makes an empty file, pipe, socket or device `name` in `parent`; `rdev` as in
    /// [`Attributes`](super::Attributes).
    ///
    /// # Errors
    /// EEXIST; EINVAL for a directory or symlink; EPERM for the root's private name; else the swap
    /// folder's own.
    pub fn mknod(
        &self, parent: u64, name: &OsStr, caller: &Caller, kind: FileKind, mode: u32, rdev: u32,
    ) -> Result<Entry> {
        if matches!(kind, FileKind::Directory | FileKind::Symlink) {
            return Err(Errno::EINVAL);
        }
        self.make(parent, name, |directory| {
            let mode = creation_mode(directory, caller, mode, kind)?;
            let _acting = self.act_as(caller)?;
            rustix::fs::mknodat(directory, name, kind.to_type(), mode, u64::from(rdev))
                .map_err(errno)
        })
    }

    /// Makes the symbolic link `name` in `parent`, leading to `target`.
    ///
    /// # Errors
    /// EEXIST; ENAMETOOLONG; ENOENT for an empty target; EPERM for the root's private name; else
    /// the swap folder's own.
    pub fn symlink(
        &self, parent: u64, name: &OsStr, caller: &Caller, target: &OsStr,
    ) -> Result<Entry> {
        self.make(parent, name, |directory| {
            let _acting = self.act_as(caller)?;
            rustix::fs::symlinkat(target, directory, name).map_err(errno)
        })
    }

    /// Gives `id`'s inode one name more.
    ///
    /// # Errors
    /// EEXIST; EPERM for a directory and for the root's private name; EMLINK; ENOENT when the inode
    /// has no name left; ESTALE.
    pub fn link(&self, id: u64, parent: u64, name: &OsStr) -> Result<Entry> {
        let descriptor = self.descriptor(id)?;
        self.make(parent, name, |directory| {
            let link = link_of(&descriptor);
            rustix::fs::linkat(CWD, link, directory, name, AtFlags::SYMLINK_FOLLOW).map_err(errno)
        })
    }

    /// Makes `name` in `parent` by calling `make`, and looks it up.
    fn make(
        &self, parent: u64, name: &OsStr, make: impl FnOnce(BorrowedFd<'_>) -> Result<()>,
    ) -> Result<Entry> {
        self.check_new(parent, name)?;
        let directory = self.descriptor(parent)?;
        let _naming = self.moves.naming(parent);
        make(directory.as_fd())?;
        note_time(&directory);
        let found = self.find(directory.as_fd(), name)?;
        Ok(self.adopt(found, Hint::new(parent, name)))
    }

    fn create_new(
        &self, directory: BorrowedFd<'_>, name: &OsStr, caller: &Caller, mode: u32,
    ) -> Result<OwnedFd> {
        let mode = creation_mode(directory, caller, mode, FileKind::Regular)?;
        let flags =
            OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let _acting = self.act_as(caller)?;
        rustix::fs::openat(directory, name, flags, mode).map_err(errno)
    }

    /// Enters a file just created. Its name may mean another one by now, so the descriptor tells
    /// which it is.
    fn created(&self, descriptor: OwnedFd, hint: Hint, direct: bool) -> Result<Created> {
        if direct {
            rustix::fs::fcntl_setfl(&descriptor, OFlags::DIRECT).map_err(errno)?;
        }
        let (node, status) = self.identify(&descriptor)?;
        let place = match &node.handle {
            // Opened by it when it is needed: most files are written, closed, and perhaps removed, and a descriptor
            // makes all of that slower.
            Some(_) if self.opens_handles => None,
            _ => {
                let flags = OFlags::PATH | OFlags::CLOEXEC;
                let place = rustix::fs::openat(CWD, link_of(&descriptor), flags, Mode::empty());
                Some(Arc::new(place.map_err(errno)?))
            }
        };
        let entry = self.enter(node, place, &status, hint);
        Ok(Created { entry, descriptor, is_new: true })
    }

    fn open_existing(&self, parent: u64, name: &OsStr, direct: bool) -> Result<Created> {
        let entry = self.lookup(parent, name)?;
        match self.open_file(entry.id, Access::ReadWrite, direct) {
            Ok(descriptor) => Ok(Created { entry, descriptor, is_new: false }),
            Err(error) => {
                self.forget(entry.id, 1);
                Err(error)
            }
        }
    }

    /// Until the result is dropped, this thread creates for `caller`.
    fn act_as(&self, caller: &Caller) -> Result<Option<ActingAs>> {
        let Some((uid, gid)) = self.switches_owner_from else {
            return Ok(None);
        };
        if (uid, gid) == (caller.uid, caller.gid) {
            return Ok(None);
        }
        sys::act_as(caller.uid, caller.gid).map(Some)
    }
}

fn has_default_acl(directory: BorrowedFd<'_>) -> bool {
    let name = c"system.posix_acl_default";
    match sys::has_xattr(directory, name) {
        Ok(has) => has,
        // Before Linux 6.13, and in sandboxes that do not know the call.
        Err(_) => rustix::fs::getxattr_query(link_of(directory), name).is_ok(),
    }
}

/// The mode for the call that creates something in `directory`.
fn creation_mode(
    directory: BorrowedFd<'_>, caller: &Caller, mode: u32, kind: FileKind,
) -> Result<Mode> {
    let mut mode = mode & 0o7777;
    // The daemon may make set-group-id programs of groups its caller is not in; most callers may not.
    let is_program = mode & SET_GROUP_ID != 0 && mode & GROUP_EXECUTES != 0;
    if is_program && kind != FileKind::Directory && !caller.keeps_set_group_id {
        let status = status_of(directory)?;
        let inherits_group = u32::from(status.stx_mode) & SET_GROUP_ID != 0;
        if inherits_group && status.stx_gid != caller.gid {
            mode &= !SET_GROUP_ID;
        }
    }
    // With a default ACL the filesystem computes the mode from it, and the umask has no say
    // (acl(5)).
    if !has_default_acl(directory) {
        mode &= !caller.umask;
    }
    Ok(Mode::from_raw_mode(mode))
}
