//! A backing file whose changes the ledger is told.

use std::any::Any;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::sync::Arc;
use std::time::SystemTime;

use super::Ledger;
use super::entry::{Seen, pages_of};
use super::page::{Page, see};
use super::record::{Edge, Record};
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
        self.record.settle(|| self.look());
    }

    /// What the file is like now.
    pub(super) fn look(&self) -> Option<Stamp> {
        Stamp::of(&self.inner).ok()
    }
}

impl LedgerFile {
    /// Makes a change of the backing file that no transfer makes, of these bytes or of none: on record before, and
    /// as it is afterwards.
    fn change(
        &self, bytes: Option<Range<u64>>, change: impl FnOnce(&DiskFile) -> Result<()>,
    ) -> Result<()> {
        let bytes = bytes.filter(|bytes| self.record.knows_of(bytes));
        let about = bytes.clone().map(|bytes| {
            let edges = self.edges(&bytes);
            (bytes, edges)
        });
        self.noted(bytes.is_some(), move |record| match about {
            Some((bytes, edges)) => record.begin_shaping(&bytes, &edges),
            None => record.begin_change(),
        })?;
        self.finish(bytes, change(&self.inner))
    }

    /// The pages of which a change of these bytes leaves some, as they are and as they are going to be.
    fn edges(&self, bytes: &Range<u64>) -> Vec<Edge> {
        let size = self.look().map_or(u64::MAX, |stamp| stamp.size);
        let pages = self.record.changed_in_part(bytes, size);
        let edge = |page| Some(Edge::new(page, Page::read(&self.inner, page)?, bytes));
        pages.into_iter().filter_map(edge).collect()
    }

    /// Has `set` change the file's modification time, to `time` or to now.
    pub(super) fn timed(
        &self, time: Option<SystemTime>, set: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let modified_ns = time.map(nanoseconds);
        self.noted(false, move |record| match modified_ns {
            Some(modified_ns) => record.begin_timing(modified_ns),
            None => record.begin_change(),
        })?;
        self.finish(None, set())
    }

    /// Notes something: about pages, whose entries the record writer may have to write first, or about the file alone.
    fn noted(
        &self, about_pages: bool, note: impl FnOnce(&Record) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        match (self.ledger.is_written(), about_pages) {
            (false, _) => Ok(()),
            (true, true) => self.ledger.ordered(&self.record, note),
            (true, false) => note(&self.record),
        }
    }

    fn finish(&self, bytes: Option<Range<u64>>, outcome: Result<()>) -> Result<()> {
        let stamp = Stamp::of(&self.inner).ok();
        let size = stamp.map_or(u64::MAX, |stamp| stamp.size);
        let edges = bytes.as_ref().map(|bytes| self.record.changed_in_part(bytes, size));
        let seen: Vec<(u64, Option<Seen>)> =
            edges.into_iter().flatten().map(|page| (page, see(&self.inner, page))).collect();
        let changed = outcome.is_ok();
        let noted = match bytes {
            Some(bytes) => self.noted(true, move |record| match changed {
                true => record.changed(&bytes, size, &seen),
                false => record.unchanged(&seen),
            }),
            None => Ok(()),
        };
        if self.ledger.is_written() {
            // What could not be forgotten is still noted as being changed.
            self.record.end_change(|| self.look().filter(|_| noted.is_ok()));
        }
        outcome.and(noted)
    }
}

/// Since 1970.
pub(super) fn nanoseconds(time: SystemTime) -> i64 {
    let clamped =
        |duration: std::time::Duration| i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX);
    match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => clamped(since),
        Err(before) => -clamped(before.duration()),
    }
}

/// The time so many nanoseconds after 1970.
pub(super) fn system_time(nanoseconds: i64) -> SystemTime {
    let apart = std::time::Duration::from_nanos(nanoseconds.unsigned_abs());
    let time = match nanoseconds < 0 {
        true => SystemTime::UNIX_EPOCH.checked_sub(apart),
        false => SystemTime::UNIX_EPOCH.checked_add(apart),
    };
    time.unwrap_or(SystemTime::UNIX_EPOCH)
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

    fn writable(&self) -> bool {
        self.inner.writable()
    }

    fn status(&self) -> Result<FileStatus> {
        let mut status = self.inner.status()?;
        if let Some(shown) = self.record.shown_changed(nanoseconds(status.changed)) {
            status.changed = system_time(shown);
        }
        Ok(status)
    }

    fn reserve(&self, offset: u64, length: u64) -> Result<()> {
        // First the little that the record needs: a large step may take all the room that is left.
        self.record.reserve(&(offset..offset + length))?;
        self.change(None, |file| file.reserve(offset, length))
    }

    fn set_len(&self, size: u64) -> Result<()> {
        let is_cut = size < self.inner.status()?.size;
        let bytes = is_cut.then_some(size..u64::MAX);
        self.change(bytes, |file| file.set_len(size))
    }

    fn set_times(&self, modified: SystemTime, changed: SystemTime) -> Result<SystemTime> {
        let mut settled = changed;
        self.timed(Some(modified), || {
            settled = self.inner.set_times(modified, changed)?;
            self.record.show_changed(nanoseconds(changed), nanoseconds(settled));
            Ok(())
        })?;
        Ok(settled)
    }

    fn allocate(&self, mode: i32, offset: u64, length: u64) -> Result<()> {
        let clears = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        let bytes = clears.then_some(offset..offset + length);
        self.change(bytes, |file| file.allocate(mode, offset, length))
    }

    fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        self.inner.seek(offset, hole)
    }

    fn sync(&self, data_only: bool) -> Result<()> {
        self.inner.sync(data_only)?;
        self.ledger.sync(&self.record)
    }

    fn begin_piece(&self, bytes: Range<u64>) {
        if self.ledger.is_written() {
            self.record.begin_piece(&bytes);
        }
    }

    fn end_piece(&self, bytes: Range<u64>, stable: bool) {
        let ledger = self.ledger.clone();
        self.ledger.note(&self.record, move |record| {
            record.end_pieces(pages_of(&bytes));
            if stable && let Err(errno) = ledger.sync(record) {
                log::error!(
                    "ledger: record of bytes {bytes:?}: {}; a page stays torn on record",
                    errno.desc()
                );
            }
        });
    }
}
