//! Taking names away and moving them.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use rustix::fs::{AtFlags, RenameFlags};

use super::Tree;
use super::reach::{Found, note_time, status_of};
use super::table::{Displaced, Hint};
use super::types::{FileKey, FileKind};
use crate::error::{Errno, Result};
use crate::shares::User;
use crate::sys::errno;

/// An inode (no directory) that has lost its last name. It lives on while it is open or known.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Gone {
    /// Which one.
    pub key: FileKey,
    /// What it is.
    pub kind: FileKind,
    /// Its node id, if it is known and can still be reached by it.
    pub id: Option<u64>,
}

/// What [`Tree::rename`] does about a target that exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RenameKind {
    /// Replaces it.
    Replace,
    /// Fails with EEXIST.
    NoReplace,
    /// Gives it the source's name; ENOENT when there is none.
    Exchange,
    /// Replaces it, and leaves a whiteout, a device of number 0, under the source's name.
    Whiteout,
    /// Fails with EEXIST, else as [`RenameKind::Whiteout`].
    NoReplaceWhiteout,
}

impl RenameKind {
    /// The kind that renameat2(2) flags ask for.
    ///
    /// # Errors
    /// EINVAL for flags that there are not, and for RENAME_EXCHANGE with another.
    pub fn from_flags(flags: u32) -> Result<Self> {
        match RenameFlags::from_bits_retain(flags) {
            RenameFlags::NOREPLACE => Ok(Self::NoReplace),
            RenameFlags::EXCHANGE => Ok(Self::Exchange),
            RenameFlags::WHITEOUT => Ok(Self::Whiteout),
            flags if flags == RenameFlags::NOREPLACE | RenameFlags::WHITEOUT => {
                Ok(Self::NoReplaceWhiteout)
            }
            flags if flags.is_empty() => Ok(Self::Replace),
            _ => Err(Errno::EINVAL),
        }
    }

    fn flags(self) -> RenameFlags {
        match self {
            Self::Replace => RenameFlags::empty(),
            Self::NoReplace => RenameFlags::NOREPLACE,
            Self::Exchange => RenameFlags::EXCHANGE,
            Self::Whiteout => RenameFlags::WHITEOUT,
            Self::NoReplaceWhiteout => RenameFlags::NOREPLACE | RenameFlags::WHITEOUT,
        }
    }
}

impl Tree {
    /// Removes the name of a file. When it was the inode's last one, tells which inode that was.
    ///
    /// # Errors
    /// ENOENT; EISDIR; EXDEV for a mount point; else the swap folder's own.
    pub fn unlink(&self, user: User, parent: u64, name: &OsStr) -> Result<Option<Gone>> {
        self.remove(user, parent, name, AtFlags::empty())
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// ENOENT; ENOTDIR; ENOTEMPTY; EXDEV for a mount point; else the swap folder's own.
    pub fn rmdir(&self, user: User, parent: u64, name: &OsStr) -> Result<()> {
        self.remove(user, parent, name, AtFlags::REMOVEDIR).map(|_| ())
    }

    /// Moves a name in a directory to one in another. When that takes the last name of an
    /// inode, tells which inode that was.
    ///
    /// # Errors
    /// ENOENT; EEXIST; ENOTEMPTY; EISDIR; ENOTDIR; EINVAL for a directory into itself; EPERM for
    /// the root's private name as a target; EXDEV for a mount point; else the swap folder's own.
    pub fn rename(
        &self, user: User, from: (u64, &OsStr), to: (u64, &OsStr), kind: RenameKind,
    ) -> Result<Option<Gone>> {
        let ((parent, name), (new_parent, new_name)) = (from, to);
        self.check_existing(parent, name)?;
        self.check_new(new_parent, new_name)?;
        let directory = self.descriptor(parent)?;
        let new_directory = self.descriptor(new_parent)?;
        // Declared first, so dropped last: closing a removed file may take long.
        let _displaced;
        let _moving = self.moves.moving(parent, new_parent);
        // Both are opened first: afterwards their names no longer lead to them.
        let source = self.find(directory.as_fd(), name)?;
        let target = match self.find(new_directory.as_fd(), new_name) {
            Ok(found) => Some(found),
            Err(Errno::ENOENT) => None,
            Err(error) => return Err(error),
        };
        rustix::fs::renameat_with(&directory, name, &new_directory, new_name, kind.flags())
            .map_err(errno)?;
        note_time(&directory);
        note_time(&new_directory);
        if target.as_ref().is_some_and(|target| target.node.is_same(&source.node)) {
            // Two names of one inode: POSIX leaves both.
            return Ok(None);
        }
        let (old, new) = (Hint::new(parent, name), Hint::new(new_parent, new_name));
        self.table.lock().renamed(&source.node, new.clone());
        match (kind, target) {
            (RenameKind::Exchange, Some(target)) => {
                self.table.lock().renamed(&target.node, old);
                Ok(None)
            }
            (_, Some(target)) => {
                let gone;
                (gone, _displaced) = self.lost_name(user, target, &new)?;
                Ok(gone)
            }
            (_, None) => Ok(None),
        }
    }

    fn remove(
        &self, user: User, parent: u64, name: &OsStr, flags: AtFlags,
    ) -> Result<Option<Gone>> {
        self.check_existing(parent, name)?;
        let directory = self.descriptor(parent)?;
        // Declared first, so dropped last: closing a removed file may take long.
        let _displaced;
        let _moving = self.moves.moving(parent, parent);
        // Opened first: it may have to live on without a name.
        let found = self.find(directory.as_fd(), name)?;
        rustix::fs::unlinkat(&directory, name, flags).map_err(errno)?;
        note_time(&directory);
        let gone;
        (gone, _displaced) = self.lost_name(user, found, &Hint::new(parent, name))?;
        Ok(gone)
    }

    /// `found` is no longer reached by `hint`, by the doing of `user`. Returns what to drop after `moves`, too.
    fn lost_name(
        &self, user: User, found: Found, hint: &Hint,
    ) -> Result<(Option<Gone>, Displaced)> {
        let Found { node, descriptor, .. } = found;
        // Asked again: it may have other names.
        let links = status_of(&descriptor)?.stx_nlink;
        // Some filesystems do not count a directory's links.
        let is_directory = node.kind == FileKind::Directory;
        let is_gone = links == 0 || is_directory;
        // Before the lock, though it may not be needed.
        let share = self.bounds.nameless.take(user, 1).ok();
        let mut table = self.table.lock();
        let is_known = table.knows(&node);
        let is_unnamed = table.unnamed(&node, hint);
        // With its handle it can be opened again as long as it has a name anywhere, or is open.
        let keeps = is_known && (is_gone || (is_unnamed && !self.opens_handles));
        let mut stays = false;
        let displaced = match share.filter(|_| keeps) {
            Some(share) => {
                stays = true;
                table.pin(&node, Arc::new(descriptor), share)
            }
            None => Displaced::of(descriptor),
        };
        if links == 0 && !stays {
            table.abandon(&node);
        }
        drop(table);
        let gone = Gone { key: node.key, kind: node.kind, id: stays.then_some(node.id) };
        Ok(((links == 0 && !is_directory).then_some(gone), displaced))
    }
}
