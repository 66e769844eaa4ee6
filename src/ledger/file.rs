//! A backing file whose changes the ledger is told.

use std::any::Any;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::SystemTime;

use super::Ledger;
use super::record::Record;
use super::stamp::Stamp;
use crate::aio::device::{BackingFile, FileStatus};
use crate::aio::file::DiskFile;
use crate::error::Result;

/// A file of the swap folder with its record. To a device it is the [`DiskFile`] within.
#[derive(Debug)]
pub(super) struct LedgerFile {
    inner: DiskFile,
    ledger: Arc<Ledger>,
    record: Arc<Record>,
}

impl LedgerFile {
    /// The record has counted this file in already.
    pub(super) fn new(inner: DiskFile, ledger: Arc<Ledger>, record: Arc<Record>) -> Self {
        Self { inner, ledger, record }
    }

    /// The ledger's view of any backing file; `None` for one that it does not know.
    pub(super) fn of(file: &dyn BackingFile) -> Option<&LedgerFile> {
        file.wrapper()?.downcast_ref()
    }

    pub(super) fn record(&self) -> &Arc<Record> {
        &self.record
    }

    /// Records size and times, unless something is being written.
    pub(super) fn settle(&self) {
        if let Ok(stamp) = Stamp::of(&self.inner) {
            self.ledger.settle(&self.record, stamp);
        }
    }
}

impl AsFd for LedgerFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl Drop for LedgerFile {
    fn drop(&mut self) {
        self.ledger.leave(&self.record, Stamp::of(&self.inner).ok());
    }
}

impl BackingFile for LedgerFile {
    fn id(&self) -> u64 {
        self.inner.id()
    }

    fn descriptor(&self) -> Option<RawFd> {
        self.inner.descriptor()
    }

    fn as_any(&self) -> &dyn Any {
        self.inner.as_any()
    }

    fn wrapper(&self) -> Option<&dyn Any> {
        Some(self)
    }

    fn tell_size(&self, size: u64) {
        self.record.set_size(size);
    }

    fn writable(&self) -> bool {
        self.inner.writable()
    }

    fn status(&self) -> Result<FileStatus> {
        self.inner.status()
    }

    fn reserve(&self, offset: u64, length: u64) -> Result<()> {
        // First the little that the record needs: a large step may take all the room that is left.
        self.record.reserve(&(offset..offset + length))?;
        self.inner.reserve(offset, length)
    }

    fn set_len(&self, size: u64) -> Result<()> {
        if self.record.knows_beyond(size) {
            self.ledger.wait(&self.record, move |record| record.cut(size))?;
        }
        self.inner.set_len(size)?;
        self.record.set_size(size);
        if self.record.minds_cut(size) {
            self.ledger.note(&self.record, move |record| record.was_cut(size));
        }
        Ok(())
    }

    fn set_modified(&self, time: SystemTime) -> Result<()> {
        self.inner.set_modified(time)
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()> {
        if mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0 {
            let bytes = offset..offset + length;
            if self.record.knows_of(&bytes) {
                self.ledger.wait(&self.record, move |record| record.void(&bytes))?;
            }
        }
        self.inner.allocate(mode, offset, length)
    }

    fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        self.inner.seek(offset, hole)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        self.inner.sync(data_only)?;
        self.ledger.sync(&self.record)
    }
}
