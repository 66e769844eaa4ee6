//! Settling: the backing file gets the logical size and time, and what was reserved and never written is given back.

use std::ops::Range;
use std::sync::Arc;
use std::time::SystemTime;

use super::actions::label;
use super::gate::beyond;
use super::ids::PartitionId;
use super::locked::Locked;
use super::op::{BarrierOp, Change};
use super::partition::{ChangeTime, Partition};
use crate::aio::device::BackingFile;
use crate::error::{Errno, Result};

const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;

/// What a settling does to the backing file.
struct Work {
    size: u64,
    /// The file gets its size, which gives back what lies beyond.
    cut: bool,
    /// Growing a file gives nothing back: what lies beyond its new end goes with a second call.
    twice: bool,
    /// What the user allocated beyond the end, and keeps.
    kept: Vec<Range<u64>>,
    /// Within the file.
    unwritten: Vec<Range<u64>>,
    modified: Option<SystemTime>,
    /// The change time to show, where it is not the backing file's.
    changed: Option<SystemTime>,
}

impl Work {
    fn of(part: &Partition, unit: u64) -> Work {
        let size = part.size;
        let end = size.next_multiple_of(unit);
        let is_clean = part.clean();
        let has_more = part.ahead.end() > beyond(size, unit);
        // With dirty bytes left the file still grows. Without, it may be too short: bytes at its end were punched or
        // lost before they were written.
        let cut = part.disk_size > size || (is_clean && (has_more || part.disk_size < size));
        // Beyond the file's end there is nothing to punch; its last page goes as a whole.
        let reach = if cut || part.disk_size == size {
            end
        } else {
            part.disk_size.min(size) / unit * unit
        };
        Work {
            size,
            cut,
            twice: has_more && part.disk_size < size,
            kept: part.user.within(size..u64::MAX).collect(),
            unwritten: part.ahead.within(0..reach).collect(),
            modified: part.modified.filter(|_| is_clean && part.failed_blocks == 0),
            changed: part.changed.map(|changed| changed.shown),
        }
    }

    /// Returns the change times to show and of the backing file, where its times were set.
    fn run(&self, file: &dyn BackingFile, is_stored: bool) -> Result<Option<ChangeTime>> {
        let shapes = self.cut || !self.unwritten.is_empty();
        // A file that nobody has changed keeps its time.
        let before = (shapes && is_stored).then(|| file.status()).transpose()?;
        if self.cut {
            file.set_len(self.size)?;
            if self.twice {
                file.set_len(self.size)?;
            }
            for range in &self.kept {
                file.reserve(range.start, range.end - range.start)?;
            }
        }
        for range in &self.unwritten {
            match file.allocate(PUNCH, range.start, range.end - range.start) {
                // It could not have been reserved either, or is lent for ever.
                Err(Errno::EOPNOTSUPP) => {}
                result => result?,
            }
        }
        let Some(modified) = self.modified.or(before.map(|status| status.modified)) else {
            return Ok(None);
        };
        let shown = self.changed.or(before.map(|status| status.changed)).unwrap_or(modified);
        let settled = file.set_times(modified, shown)?;
        Ok(Some(ChangeTime { shown, settled: Some(settled) }))
    }
}

impl Locked<'_> {
    /// Makes the backing file's size and modification time the logical ones, and gives back space that
    /// was reserved ahead of a writer.
    pub(super) fn run_settle(&mut self, id: PartitionId, file: Arc<dyn BackingFile>) {
        let unit = self.state.shape.unit;
        let part = self.state.part(id);
        let work = Work::of(part, unit);
        let is_stored = part.modified.is_none();
        self.actions.jobs.push(Box::new(move |engine| {
            let result = work.run(&*file, is_stored);
            if let Err(errno) = &result {
                let name = label(&*file);
                log::error!(partition = name.as_str(); "setting size or time of {name} failed: {errno:?} ({})", errno.desc());
            }
            drop(file);
            engine.with(|locked| {
                let part = locked.state.part(id);
                part.settle_queued = false;
                match result {
                    Ok(changed) => part.settled(&work, unit, changed),
                    Err(errno) => {
                        part.record_error(errno);
                        part.settle_failed = true;
                    }
                }
                locked.end_barrier(id, result.map(drop));
            });
        }));
    }

    /// Settles a partition that nobody has open, as soon as it is clean.
    pub(crate) fn settle_if_due(&mut self, id: PartitionId) {
        let part = self.state.part(id);
        if part.handles == 0 && !part.unlinked {
            self.settle(id);
        }
    }

    /// Settles a partition unless it has something to write first.
    pub(crate) fn settle(&mut self, id: PartitionId) {
        let part = self.state.part(id);
        let due = part.clean() && part.needs_settling() && part.failed_blocks == 0;
        if due && !part.settle_queued && !part.settle_failed {
            part.settle_queued = true;
            let change = Change::Settle { then: Vec::new(), for_room: false };
            self.enter_barrier(BarrierOp::new(id, change, None));
        }
    }
}

impl Partition {
    fn settled(&mut self, work: &Work, unit: u64, changed: Option<ChangeTime>) {
        for range in &work.unwritten {
            self.reserved.remove(range.clone());
            self.ahead.remove(range.clone());
        }
        if work.cut {
            let rest = beyond(work.size, unit)..u64::MAX;
            self.disk_size = work.size;
            self.reserved.remove(rest.clone());
            self.ahead.remove(rest);
            for range in &work.kept {
                self.reserved.insert(range.start.next_multiple_of(unit)..range.end / unit * unit);
            }
        }
        if work.modified.is_some() && self.modified == work.modified {
            self.modified = None;
        }
        let has_nothing_else = self.disk_size == self.size && self.modified.is_none();
        if self.clean() && self.size == work.size && has_nothing_else {
            // What is left now would be left by every other settling too.
            self.ahead.remove(0..u64::MAX);
        }
        if self.modified.is_none()
            && let Some(set) = changed
        {
            // Its user may have changed attributes meanwhile.
            let known = self.changed.get_or_insert(set);
            known.settled = known.settled.max(set.settled);
        }
    }
}
