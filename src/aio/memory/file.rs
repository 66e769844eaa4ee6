//! Backing files in memory, and the folder whose space they share.

use std::any::Any;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::SystemTime;

use parking_lot::Mutex;

use super::super::device::{BackingFile, FileStatus};
use super::super::file::next_id;
use super::super::random::Random;
use super::contents::Contents;
use crate::error::{Errno, Result};

/// A filesystem's space: files made with it share its capacity. Cloning makes another handle.
#[derive(Debug, Clone)]
pub struct MemoryFolder {
    space: Arc<Space>,
}

#[derive(Debug)]
struct Space {
    capacity: AtomicU64,
    used: AtomicU64,
}

impl MemoryFolder {
    /// A folder with `capacity` bytes, of which files take whole 4 KiB pages.
    #[must_use]
    pub fn new(capacity: u64) -> Self {
        let (capacity, used) = (AtomicU64::new(capacity), AtomicU64::new(0));
        Self { space: Arc::new(Space { capacity, used }) }
    }

    /// A folder that is never full.
    #[must_use]
    pub fn unbounded() -> Self {
        Self::new(u64::MAX)
    }

    /// Bytes that files hold, reserved ones included.
    #[must_use]
    pub fn used(&self) -> u64 {
        self.space.used.load(Relaxed)
    }

    /// Changes the capacity, in bytes; what is held beyond it stays held.
    pub fn set_capacity(&self, capacity: u64) {
        self.space.capacity.store(capacity, Relaxed);
    }

    pub(super) fn acquire(&self, bytes: u64) -> Result<()> {
        let capacity = self.space.capacity.load(Relaxed);
        let add = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= capacity);
        match self.space.used.try_update(Relaxed, Relaxed, add) {
            Ok(_) => Ok(()),
            Err(_) => Err(Errno::ENOSPC),
        }
    }

    pub(super) fn release(&self, bytes: u64) {
        let before = self.space.used.fetch_sub(bytes, Relaxed);
        assert!(before >= bytes, "released no more than acquired");
    }
}

/// An open file whose bytes live in memory, sparse in pages of 4 KiB.
#[derive(Debug)]
pub struct MemoryFile {
    id: u64,
    writable: bool,
    contents: Arc<Mutex<Contents>>,
}

impl MemoryFile {
    /// A new, empty, writable file with one link.
    #[must_use]
    pub fn new(folder: &MemoryFolder) -> Self {
        let contents = Arc::new(Mutex::new(Contents::new(folder.clone())));
        Self { id: next_id(), writable: true, contents }
    }

    /// The same file opened once more, with an id of its own.
    #[must_use]
    pub fn reopen(&self, writable: bool) -> Self {
        Self { id: next_id(), writable, contents: Arc::clone(&self.contents) }
    }

    /// Sets the number of links that [`BackingFile::status`] reports; 0 for an unlinked file.
    pub fn set_links(&self, links: u64) {
        self.contents.lock().links = links;
    }

    /// A copy of all its bytes, holes as zeros.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        let contents = self.contents.lock();
        let mut bytes = vec![0; usize::try_from(contents.size).expect("a file that fits memory")];
        contents.read(0, &mut bytes);
        bytes
    }

    /// From here on [`MemoryFile::after_power_cut`] knows what was synchronized; what is there now counts as that.
    pub fn keep_stable(&self) {
        self.contents.lock().keep_stable();
    }

    /// Another file, as this one would be after a power cut at this moment: what was synchronized last is whole,
    /// and of every sector that was written since either the old or the new bytes are there.
    #[must_use]
    pub fn after_power_cut(&self, seed: u64) -> Self {
        let after = self.contents.lock().after_power_cut(&mut Random::new(seed));
        Self { id: next_id(), writable: true, contents: Arc::new(Mutex::new(after)) }
    }

    /// Reads as pread(2).
    ///
    /// # Errors
    ///
    /// None; the type is that of its twin.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        Ok(self.contents.lock().read(offset, buffer))
    }

    /// Writes as pwrite(2).
    ///
    /// # Errors
    ///
    /// EBADF when not writable, EFBIG beyond 2^63, ENOSPC when not even one page fits.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<usize> {
        self.check_writable()?;
        self.contents.lock().write(offset, bytes)
    }

    fn check_writable(&self) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Errno::EBADF) }
    }
}

impl BackingFile for MemoryFile {
    fn id(&self) -> u64 {
        self.id
    }

    fn descriptor(&self) -> Option<RawFd> {
        None
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn writable(&self) -> bool {
        self.writable
    }

    fn status(&self) -> Result<FileStatus> {
        let contents = self.contents.lock();
        Ok(FileStatus {
            size: contents.size,
            allocated: contents.allocated(),
            modified: contents.modified,
            changed: contents.modified,
            links: contents.links,
        })
    }

    fn reserve(&self, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        self.contents.lock().reserve(offset, length)
    }

    fn set_len(&self, size: u64) -> Result<()> {
        if !self.writable {
            return Err(Errno::EINVAL);
        }
        self.contents.lock().set_len(size);
        Ok(())
    }

    fn set_times(&self, modified: SystemTime, changed: SystemTime) -> Result<SystemTime> {
        self.contents.lock().modified = modified;
        Ok(changed)
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()> {
        self.check_writable()?;
        self.contents.lock().allocate(mode, offset, length)
    }

    fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        self.contents.lock().seek(offset, hole)
    }

    fn sync(&self, _data_only: bool) -> Result<()> {
        self.contents.lock().synchronized();
        Ok(())
    }
}
