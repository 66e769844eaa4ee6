//! Reading directories.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom};

use super::reach::is_private;
use super::table::Node;
use super::types::{FileKey, FileKind};
use super::{ROOT_ID, Tree, id_of, link_of};
use crate::error::{Errno, Result};
use crate::shares::{Full, Openers, Share, Shares, User};
use crate::sys::errno;

/// What one getdents64(2) may return, in bytes: some hundreds of entries.
const BATCH_BYTES: usize = 32 << 10;

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Listed<'batch> {
    /// The name; "." and ".." are among them.
    pub name: &'batch OsStr,
    /// The node id it has, or would have when looked up.
    pub ino: u64,
    /// What it is.
    pub kind: FileKind,
    /// Where reading goes on behind it: the filesystem's own cookie, no number of entries.
    pub next_offset: u64,
}

/// An open directory: one handle.
#[derive(Debug)]
pub struct Directory {
    id: u64,
    root_ino: u64,
    user: User,
    open: Arc<OpenDirectory>,
    listings: Arc<Shares>,
    /// Lock 1 of the module's order.
    batch: Mutex<Batch>,
    _handle: Share,
}

/// A directory that all handles of it share.
#[derive(Debug)]
struct OpenDirectory {
    key: FileKey,
    id: u64,
    descriptor: OwnedFd,
    /// Where the kernel goes on, if that is known. Held while names are read.
    position: Mutex<Option<u64>>,
    openers: Mutex<Openers>,
    others: OpenDirectories,
}

/// The open directories, by node id.
#[derive(Clone, Debug, Default)]
pub(super) struct OpenDirectories(Arc<Mutex<HashMap<u64, Weak<OpenDirectory>>>>);

/// The entries that the last getdents64(2) gave, and how far they were taken.
#[derive(Debug, Default)]
struct Batch {
    entries: Vec<BatchEntry>,
    names: Vec<u8>,
    /// The first entry not taken yet.
    position: usize,
    /// What it takes while nothing is read from it.
    share: Option<Share>,
}

#[derive(Debug)]
struct BatchEntry {
    /// In the batch's `names`.
    name: Range<usize>,
    ino: u64,
    kind: Option<FileKind>,
    next_offset: u64,
}

impl OpenDirectories {
    fn find(&self, node: &Node) -> Option<Arc<OpenDirectory>> {
        let found = self.0.lock().get(&node.id).and_then(Weak::upgrade);
        // Outside of the lock, which the last one's end takes.
        found.filter(|open| open.key == node.key)
    }

    /// Enters one; or finds the one that another thread has entered meanwhile.
    fn enter(&self, new: Arc<OpenDirectory>) -> Arc<OpenDirectory> {
        // Declared first, so dropped after the lock.
        let other;
        let mut all = self.0.lock();
        other = all.get(&new.id).and_then(Weak::upgrade);
        match &other {
            Some(other) if other.key == new.key => other.clone(),
            _ => {
                all.insert(new.id, Arc::downgrade(&new));
                new
            }
        }
    }
}

impl Drop for OpenDirectory {
    fn drop(&mut self) {
        let mut all = self.others.0.lock();
        // Another one may have taken its place.
        if all.get(&self.id).is_some_and(|open| std::ptr::eq(open.as_ptr(), self)) {
            all.remove(&self.id);
        }
    }
}

impl Tree {
    /// Opens a directory for reading its names.
    ///
    /// # Errors
    /// ENOTDIR; EACCES where the daemon itself has no right; EMFILE and ENFILE beyond the user's share; ESTALE.
    pub fn open_dir(&self, user: User, id: u64) -> Result<Directory> {
        let handle = self.bounds.handles.take(user, 1).map_err(Full::of_files)?;
        let (node, place) = self.reach(id)?;
        if node.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let open = self.share_directory(user, &node, &place)?;
        Ok(Directory {
            id,
            root_ino: self.root_ino,
            user,
            open,
            listings: self.bounds.listings.clone(),
            batch: Mutex::default(),
            _handle: handle,
        })
    }

    /// The directory as others have it open, or opened for all to come; one handle more of this user.
    fn share_directory(
        &self, user: User, node: &Node, place: &OwnedFd,
    ) -> Result<Arc<OpenDirectory>> {
        let found = self.open_directories.find(node);
        if let Some(open) = found.as_ref().filter(|open| open.openers.lock().join(user)) {
            return Ok(open.clone());
        }
        let share = self.bounds.descriptors.take(user, 1).map_err(Full::of_files)?;
        let open = match found {
            Some(open) => open,
            None => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let descriptor =
                    rustix::fs::openat(CWD, link_of(place), flags, Mode::empty()).map_err(errno)?;
                self.open_directories.enter(Arc::new(OpenDirectory {
                    key: node.key,
                    id: node.id,
                    descriptor: self.keep(descriptor)?,
                    position: Mutex::new(None),
                    openers: Mutex::default(),
                    others: self.open_directories.clone(),
                }))
            }
        };
        open.openers.lock().enter(share);
        Ok(open)
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _share = self.open.openers.lock().leave(self.user);
    }
}

impl Directory {
    /// Hands the entries from `offset` on to `take`, until it refuses one by returning false or
    /// there are no more. `offset` is 0 for the start (which looks at the directory afresh) or the
    /// `next_offset` of an entry, at any time later. The root's private name is left out.
    ///
    /// `take` may call the [`Tree`], but not this directory.
    ///
    /// # Errors
    /// ENOENT when the directory was removed; EINVAL for an offset the filesystem never gave; EIO.
    pub fn read(&self, offset: u64, mut take: impl FnMut(Listed<'_>) -> bool) -> Result<()> {
        let mut batch = self.batch.lock();
        let read = self.read_through(&mut batch, offset, &mut take);
        // Whoever has many directories open has their names read again instead of remembered.
        if batch.share.is_none() && !batch.entries.is_empty() {
            batch.share = self.listings.take(self.user, 1).ok();
        }
        if batch.share.is_none() || batch.entries.is_empty() {
            *batch = Batch::default();
        }
        read
    }

    fn read_through(
        &self, batch: &mut Batch, offset: u64, take: &mut impl FnMut(Listed<'_>) -> bool,
    ) -> Result<()> {
        batch.go_to(offset);
        let mut offset = offset;
        loop {
            if batch.position == batch.entries.len() && !self.refill(batch, offset)? {
                return Ok(());
            }
            let entry = &batch.entries[batch.position];
            offset = entry.next_offset;
            if !self.hand_out(batch, entry, take) {
                return Ok(());
            }
            batch.position += 1;
        }
    }

    /// Waits until the directory's names are on stable storage.
    ///
    /// # Errors
    /// EIO and its like.
    pub fn synchronize(&self) -> Result<()> {
        rustix::fs::fsync(&self.open.descriptor).map_err(errno)
    }

    /// Reads the next entries from the kernel. False at the end.
    fn refill(&self, batch: &mut Batch, offset: u64) -> Result<bool> {
        let mut position = self.open.position.lock();
        // Seeking to the start is what makes a filesystem look again.
        if offset == 0 || *position != Some(offset) {
            rustix::fs::seek(&self.open.descriptor, SeekFrom::Start(offset)).map_err(errno)?;
        }
        *position = None;
        batch.clear();
        let mut room = vec![MaybeUninit::uninit(); BATCH_BYTES];
        let mut kernel = RawDir::new(&self.open.descriptor, &mut room);
        while let Some(entry) = kernel.next() {
            let entry = entry.map_err(errno)?;
            let start = batch.names.len();
            batch.names.extend_from_slice(entry.file_name().to_bytes());
            batch.entries.push(BatchEntry {
                name: start..batch.names.len(),
                ino: entry.ino(),
                kind: FileKind::of_type(entry.file_type()),
                next_offset: entry.next_entry_cookie(),
            });
            // The next call would ask the kernel again.
            if kernel.is_buffer_empty() {
                break;
            }
        }
        *position = Some(batch.entries.last().map_or(offset, |entry| entry.next_offset));
        Ok(!batch.entries.is_empty())
    }

    /// Returns what `take` says; true for an entry that is not shown.
    fn hand_out(
        &self, batch: &Batch, entry: &BatchEntry, take: &mut impl FnMut(Listed<'_>) -> bool,
    ) -> bool {
        let name = OsStr::from_bytes(&batch.names[entry.name.clone()]);
        if is_private(self.id, name) {
            return true;
        }
        let is_root_itself = self.id == ROOT_ID && name == "..";
        let ino = if is_root_itself { ROOT_ID } else { id_of(self.root_ino, entry.ino) };
        let kind = entry.kind.unwrap_or_else(|| self.kind_of(name));
        take(Listed { name, ino, kind, next_offset: entry.next_offset })
    }

    /// The kind of a name where the filesystem does not list it.
    fn kind_of(&self, name: &OsStr) -> FileKind {
        let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::statat(self.open.descriptor.as_fd(), name, flags)
            .ok()
            .and_then(|status| FileKind::of_mode(status.st_mode))
            .unwrap_or(FileKind::Regular)
    }
}

impl Batch {
    /// Moves to the entry at `offset` if it is here, else empties the batch.
    fn go_to(&mut self, offset: u64) {
        let before = self.position.checked_sub(1).and_then(|last| self.entries.get(last));
        // First where reading stopped: filesystems whose cookies are hashes may give one cookie
        // twice.
        if before.is_some_and(|entry| entry.next_offset == offset) && offset != 0 {
            return;
        }
        let index = self.entries.iter().position(|entry| entry.next_offset == offset);
        match index {
            Some(index) if offset != 0 => self.position = index + 1,
            _ => self.clear(),
        }
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.names.clear();
        self.position = 0;
    }
}
