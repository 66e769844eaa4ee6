//! Reading directories.

use std::ffi::OsStr;
use std::mem::MaybeUninit;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use parking_lot::Mutex;
use rustix::fs::{CWD, Mode, OFlags, RawDir, SeekFrom};

use super::reach::is_private;
use super::types::FileKind;
use super::{ROOT_ID, Tree, id_of, link_of};
use crate::error::{Errno, Result};
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

/// An open directory.
#[derive(Debug)]
pub struct Directory {
    id: u64,
    root_ino: u64,
    descriptor: OwnedFd,
    /// Lock 1 of the module's order.
    batch: Mutex<Batch>,
}

/// The entries that the last getdents64(2) gave, and how far they were taken.
#[derive(Debug, Default)]
struct Batch {
    entries: Vec<BatchEntry>,
    names: Vec<u8>,
    /// The first entry not taken yet.
    position: usize,
    /// Where the kernel goes on, if it has not been moved since.
    kernel_offset: u64,
}

#[derive(Debug)]
struct BatchEntry {
    /// In the batch's `names`.
    name: Range<usize>,
    ino: u64,
    kind: Option<FileKind>,
    next_offset: u64,
}

impl Tree {
    /// Opens a directory for reading its names.
    ///
    /// # Errors
    /// ENOTDIR; EACCES where the daemon itself has no right; EMFILE; ESTALE.
    pub fn open_dir(&self, id: u64) -> Result<Directory> {
        let (node, place) = self.reach(id)?;
        if node.kind != FileKind::Directory {
            return Err(Errno::ENOTDIR);
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor =
            rustix::fs::openat(CWD, link_of(&place), flags, Mode::empty()).map_err(errno)?;
        let descriptor = self.keep(descriptor)?;
        Ok(Directory { id, root_ino: self.root_ino, descriptor, batch: Mutex::default() })
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
        batch.go_to(offset);
        let mut offset = offset;
        loop {
            if batch.position == batch.entries.len() && !self.refill(&mut batch, offset)? {
                return Ok(());
            }
            let entry = &batch.entries[batch.position];
            offset = entry.next_offset;
            if !self.hand_out(&batch, entry, &mut take) {
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
        rustix::fs::fsync(&self.descriptor).map_err(errno)
    }

    /// Reads the next entries from the kernel. False at the end.
    fn refill(&self, batch: &mut Batch, offset: u64) -> Result<bool> {
        // Seeking to the start is what makes a filesystem look again.
        if offset == 0 || batch.kernel_offset != offset {
            rustix::fs::seek(&self.descriptor, SeekFrom::Start(offset)).map_err(errno)?;
        }
        batch.clear(offset);
        let mut room = vec![MaybeUninit::uninit(); BATCH_BYTES];
        let mut kernel = RawDir::new(&self.descriptor, &mut room);
        while let Some(entry) = kernel.next() {
            let entry = entry.map_err(errno)?;
            let start = batch.names.len();
            batch.names.extend_from_slice(entry.file_name().to_bytes());
            batch.kernel_offset = entry.next_entry_cookie();
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
        rustix::fs::statat(self.descriptor.as_fd(), name, flags)
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
            _ => {
                let kernel_offset = self.kernel_offset;
                self.clear(kernel_offset);
            }
        }
    }

    fn clear(&mut self, kernel_offset: u64) {
        self.entries.clear();
        self.names.clear();
        self.position = 0;
        self.kernel_offset = kernel_offset;
    }
}
