//! What swapfs knows of the bytes in a swap folder, so that it never passes on others: a checksum for each
//! 4 KiB, which writes were under way, and what each backing file was like. Kept in `.swapfs/`.
//!
//! [`Checked`] is a device around the one that moves the bytes, [`Ledger::file`] makes backing files that
//! tell the ledger of every change of shape; the engine knows neither. [`fsck`] reads a folder that is not
//! mounted.
//!
//! # Threads and locks
//!
//! Entries are written by one thread, the record writer's, in the order in which the transfers went. Who submits a
//! transfer, takes a completion, or opens and closes a file, only tells it; who changes a file's shape is alone with
//! it, waits for the record writer, and then writes itself.
//!
//! In this order: one of `loading`, while a record is read; `live`, the table of records in use; one record's `room`,
//! while space is got for its entries; its `writing`, while its header is written; its state; the table's growth; its
//! slots. Nobody waits for anything with `live`, a state or the slots.
#![doc = include_str!("ledger/MODEL.md")]

mod checked;
mod entry;
mod file;
pub mod fsck;
mod page;
mod pulse;
mod record;
mod record_writer;
mod recover;
mod session;
mod stamp;
mod table;
#[cfg(test)]
mod tests;
mod verdict;
mod walk;
pub(crate) mod witness;

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::aio::device::BackingFile;
use crate::aio::file::DiskFile;
use crate::engine::FileKey;
use crate::error::Result;
pub use checked::Checked;
use file::LedgerFile;
use record::{Leaving, Record, Shared};
use record_writer::RecordWriter;
use session::Sessions;
use stamp::Stamp;
use table::{ACTIVE, HAS_TORN, Header, Identity, Table};
use verdict::{Decision, Meaning};

/// What is kept for each page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// CRC32C; verified whenever the page is read.
    Crc32c,
    /// Only whether the page is being written.
    Writes,
    /// The same, of those partitions alone that have a record from other mounts: so that it stays true.
    None,
}

/// Counters since the start, for `stats.json`.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    verified: AtomicU64,
    summed: AtomicU64,
    mismatches: AtomicU64,
    torn: AtomicU64,
    dropped: AtomicU64,
}

impl Counters {
    fn add(counter: &AtomicU64, count: u64) {
        counter.fetch_add(count, Ordering::Relaxed);
    }
}

/// A copy of the counters.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct LedgerStats {
    /// `crc32c`, `writes` or `none`.
    pub kind: &'static str,
    /// Pages that were read and looked up, whether a sum was known or not.
    pub verified_pages: u64,
    /// Pages that were written and recorded.
    pub written_pages: u64,
    /// Reads that did not match their checksums.
    pub mismatches: u64,
    /// Reads that met a torn page.
    pub torn: u64,
    /// Partitions whose checksums were dropped because others had changed them.
    pub dropped: u64,
}

/// A record in use, and the file that was opened last of its partition.
#[derive(Debug)]
struct Live {
    record: Weak<Record>,
    file: Weak<LedgerFile>,
}

/// The records of a mounted swap folder.
#[derive(Debug)]
pub struct Ledger {
    shared: Arc<Shared>,
    table_file: Arc<DiskFile>,
    live: Arc<Mutex<HashMap<Identity, Live>>>,
    /// Held while the record of an inode is read, by the inode's number.
    loading: [Mutex<()>; 16],
    sessions: Mutex<Sessions>,
    /// `None` where nothing is written.
    writer: Option<RecordWriter>,
}

impl Ledger {
    /// Opens the ledger of the swap folder `folder`, whose control folder `.swapfs` is `control`, for a mount
    /// with this block size in bytes; deals with what a crash has left, which may take a walk through the folder's
    /// names. Blocks. `None` where there are no records and none are to be made.
    ///
    /// # Errors
    /// What reading or writing the ledger's own files fails with.
    pub fn open(
        folder: BorrowedFd<'_>, control: BorrowedFd<'_>, checksum: Checksum, block_size: u64,
        writable: bool,
    ) -> io::Result<Option<Arc<Self>>> {
        let makes = writable && (checksum != Checksum::None || Table::is_there(control)?);
        let Some(table) = Table::open(control, makes)? else { return Ok(None) };
        let sessions = Sessions::open(control, &table, writable.then_some(block_size))?;
        let table_file = Arc::new(DiskFile::new(table.descriptor()?)?);
        let table = Arc::new(table);
        let shared = Shared {
            pulse: pulse::Pulse::start(table.clone())?,
            table,
            counters: Counters::default(),
            checksum,
            session: sessions.number(),
            is_short: AtomicBool::new(false),
        };
        let ledger = Arc::new(Self {
            shared: Arc::new(shared),
            table_file,
            live: Arc::default(),
            loading: Default::default(),
            sessions: Mutex::new(sessions),
            writer: writable.then(RecordWriter::start).transpose()?,
        });
        if writable {
            ledger.begin(folder)?;
        }
        Ok(Some(ledger))
    }

    /// Deals with what a crash has left, and puts the new session on record.
    fn begin(&self, folder: BorrowedFd<'_>) -> io::Result<()> {
        let mut sessions = self.sessions.lock();
        if sessions.fell() {
            match sessions.keep_alive_time() {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                    log::warn!(
                        ".swapfs/session: {error}; a crash now would be decided less exactly"
                    );
                }
                kept => kept?,
            }
            let found = recover::recover(&self.shared, &sessions, folder)?;
            match found.is_whole() {
                true => log::info!("the last daemon of this folder did not end by itself: {found}"),
                false => log::warn!("the last mount of this folder did not end well: {found}"),
            }
        }
        match sessions.begun(self.shared.pulse.doubt_ns()) {
            // Its number in the records says that there was one.
            Err(error) if error.kind() == io::ErrorKind::StorageFull => {
                log::warn!(".swapfs/session: {error}; the next mount will look at everything");
                Ok(())
            }
            begun => begun,
        }
    }

    /// The number of the session that is now; `None` where nothing is written.
    pub(crate) fn session(&self) -> Option<u32> {
        self.writer.is_some().then_some(self.shared.session)
    }

    /// Whether a partition has a record.
    pub(crate) fn knows(&self, key: FileKey) -> bool {
        self.shared.table.find((key.ino, key.generation)).is_some()
    }

    /// Has `set` give a partition times of somebody's choice, its modification time to be `modified`, or now. Blocks.
    ///
    /// # Errors
    /// Those of [`Ledger::file`], and of `set`.
    pub(crate) fn timed(
        self: &Arc<Self>, key: FileKey, descriptor: OwnedFd, modified: Option<SystemTime>,
        set: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let file = self.file(key, descriptor)?;
        match LedgerFile::of(&*file) {
            Some(file) => file.timed(modified, set),
            None => set(),
        }
    }

    /// The change time to show of a partition whose backing file has this one, where it is not its own.
    pub(crate) fn shown_changed(&self, key: FileKey, backing: SystemTime) -> Option<SystemTime> {
        let identity = (key.ino, key.generation);
        let slot = self.shared.table.find(identity)?;
        let live = self.live.lock().get(&identity).and_then(|known| known.record.upgrade());
        let changed_ns = file::nanoseconds(backing);
        let shown = match live {
            Some(record) => record.shown_changed(changed_ns),
            None => self.shared.table.header(slot).ok()?.shown(changed_ns),
        };
        shown.map(file::system_time)
    }

    /// A backing file for a descriptor of the partition `key`.
    ///
    /// # Errors
    /// Those of [`DiskFile::new`], and of reading its record.
    pub fn file(
        self: &Arc<Self>, key: FileKey, descriptor: OwnedFd,
    ) -> Result<Arc<dyn BackingFile>> {
        let file = DiskFile::new(descriptor)?;
        let identity = (key.ino, key.generation);
        let in_use = |live: &HashMap<Identity, Live>| {
            live.get(&identity).and_then(|known| known.record.upgrade()).inspect(|it| it.join())
        };
        let found = in_use(&self.live.lock());
        let record = match found {
            Some(record) => record,
            None => {
                let _loading = self.loading[key.ino as usize % self.loading.len()].lock();
                // Somebody may have been quicker.
                let found = in_use(&self.live.lock());
                match found {
                    Some(record) => record,
                    None => {
                        let record = Arc::new(self.load(identity, &file)?);
                        record.join();
                        let known = Live { record: Arc::downgrade(&record), file: Weak::new() };
                        self.live.lock().insert(identity, known);
                        record
                    }
                }
            }
        };
        let weak = Arc::downgrade(&record);
        let file = Arc::new(LedgerFile::new(file, self.clone(), record));
        self.live.lock().insert(identity, Live { record: weak, file: Arc::downgrade(&file) });
        Ok(file)
    }

    /// The record of a file that has none in use, as far as it still speaks of the file's bytes.
    fn load(&self, identity: Identity, file: &DiskFile) -> Result<Record> {
        let stamp = Stamp::of(file)?;
        let table = &self.shared.table;
        let new = |known| Record::new(identity, self.shared.clone(), stamp, known);
        self.give_back_predecessor(identity);
        let Some(slot) = table.find(identity) else {
            let record = new(None)?;
            let has_cuts = self.sessions.lock().has_cuts();
            if has_cuts && self.sessions.lock().lost_birth(Stamp::birth_ns(file)?, stamp) {
                record.distrust();
            }
            return Ok(record);
        };
        let Ok(header) = table.header(slot) else { return new(None) };
        let loaded = new(Some((slot, header))).and_then(|record| {
            let decision = verdict::decide(&header, stamp, &*self.sessions.lock());
            let is_settled = decision.meaning == Meaning::Ours && !header.has(ACTIVE | HAS_TORN);
            if !is_settled {
                self.reconcile(&record, &header, decision, stamp, file)?;
            }
            Ok(record)
        });
        loaded.or_else(|errno| {
            log::error!(partition = slot; "ledger: record {slot}: {}; its checksums are dropped", errno.desc());
            self.give_back(header, slot);
            new(None)
        })
    }

    fn reconcile(
        &self, record: &Record, header: &Header, decision: Decision, stamp: Stamp, file: &DiskFile,
    ) -> Result<()> {
        let block_size = recover::block_size(&self.sessions.lock(), header);
        let write = self.shared.table.writable();
        let mut read = |page| page::see(file, page);
        let torn = record.reconcile(record::Look {
            decision,
            stamp,
            block_size,
            read: &mut read,
            write,
        })?;
        if decision.meaning == Meaning::Others {
            Counters::add(&self.shared.counters.dropped, 1);
            let name = crate::engine::label(file);
            log::warn!(
                partition = name.as_str();
                "{name} was changed by others while not mounted: it is read as it is, unverified"
            );
        }
        if !torn.is_empty() {
            let name = crate::engine::label(file);
            log::error!(partition = name.as_str(); "{name}: torn, not whole since the crash: {}", recover::listed(&torn));
        }
        Ok(())
    }

    /// A file that refers to the record is closed, and was so before.
    fn leave(&self, record: &Arc<Record>, stamp: Option<Stamp>) {
        let mut live = self.live.lock();
        match (record.leave(stamp), &self.writer) {
            (Leaving::Used, _) => {}
            (Leaving::Unrecorded, Some(writer)) => {
                let (live, record) = (self.live.clone(), record.clone());
                writer.later(move || closed(&live, &record, stamp));
            }
            (Leaving::Done | Leaving::Unrecorded, _) => {
                live.remove(&record.identity());
            }
        }
    }

    /// The last name of a file has gone: its record goes with it, or when its last user lets go of it.
    pub fn unlinked(&self, key: FileKey) {
        let identity = (key.ino, key.generation);
        let used = |live: &HashMap<Identity, Live>| {
            live.get(&identity).is_some_and(|live| live.record.strong_count() > 0)
        };
        if self.shared.table.find(identity).is_none() || used(&self.live.lock()) {
            return;
        }
        let (live, table) = (self.live.clone(), self.shared.table.clone());
        self.later(move || {
            let used =
                live.lock().get(&identity).is_some_and(|live| live.record.strong_count() > 0);
            if let (false, Some(slot)) = (used, table.find(identity))
                && let Ok(header) = table.header(slot)
            {
                table.give_back(&header, slot);
            }
        });
    }

    /// An inode that had this number before and was removed by others leaves a slot, and room for sums, to nobody.
    fn give_back_predecessor(&self, identity: Identity) {
        if let Some((gone, slot)) = self.shared.table.predecessor(identity)
            && !self.live.lock().contains_key(&gone)
            && let Ok(header) = self.shared.table.header(slot)
        {
            self.give_back(header, slot);
        }
    }

    /// Gives back a slot that speaks of bytes that are not there any more.
    fn give_back(&self, header: table::Header, slot: u32) {
        self.shared.table.disown((header.ino, header.generation), slot);
        let table = self.shared.table.clone();
        self.later(move || table.give_back(&header, slot));
    }

    /// Has the record writer do it after everything that was asked of it before; where nothing is written, nothing is done.
    fn later(&self, task: impl FnOnce() + Send + 'static) {
        if let Some(writer) = &self.writer {
            writer.later(task);
        }
    }

    /// Waits until the record writer has done all that was asked of it.
    fn catch_up(&self) {
        if let Some(writer) = &self.writer {
            writer.wait(|| ());
        }
    }

    /// As `later`, to a record.
    fn note(&self, record: &Arc<Record>, task: impl FnOnce(&Record) + Send + 'static) {
        let Some(writer) = &self.writer else { return };
        let record = record.clone();
        record.expect();
        writer.later(move || {
            task(&record);
            record.done();
        });
    }

    /// Whether anything may be put on record.
    fn is_written(&self) -> bool {
        self.writer.is_some()
    }

    /// Does something to the record of a partition that nothing is being written to, after what the record writer has still
    /// to do to it. Blocks.
    fn ordered(
        &self, record: &Arc<Record>, task: impl FnOnce(&Record) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        if record.is_quiet() {
            return task(record);
        }
        let record = record.clone();
        writer.wait(move || task(&record))
    }

    /// The table as a file that a device can sync.
    fn table_file(&self) -> Arc<DiskFile> {
        self.table_file.clone()
    }

    /// Puts a record on stable storage.
    fn sync(&self, record: &Record) -> Result<()> {
        if !record.has_news() {
            return Ok(());
        }
        self.catch_up();
        if !record.begin_sync() {
            return Ok(());
        }
        let sidecar = record.sidecar().map_or(Ok(()), |sidecar| sidecar.sync(true));
        let stored = sidecar.and_then(|()| self.table_file.sync(true));
        record.end_sync(stored.is_ok());
        stored
    }

    /// Hands the records in use to the kernel once more. After a device has failed a write that was the
    /// kernel's, not ours, what the kernel had is still to be read, but it will not write it again. Blocks.
    ///
    /// # Errors
    /// What reading and writing fails with.
    pub fn rewrite(&self) -> Result<()> {
        let Some(writer) = &self.writer else { return Ok(()) };
        let (live, table) = (self.live.clone(), self.shared.table.clone());
        writer.wait(move || {
            let records: Vec<Arc<Record>> =
                live.lock().values().filter_map(|live| live.record.upgrade()).collect();
            for sidecar in records.iter().filter_map(|record| record.sidecar()) {
                table::rewrite(&*sidecar)?;
            }
            table.rewrite()
        })
    }

    /// The mount has ended with everything on stable storage: says so for the next one, with what the
    /// files that are still open are like now. Blocks.
    ///
    /// # Errors
    /// What writing the ledger's files fails with.
    pub fn finish(&self) -> io::Result<()> {
        if !self.shared.table.writable() {
            return Ok(());
        }
        // Closing one takes the lock.
        let open: Vec<Arc<LedgerFile>> =
            self.live.lock().values().filter_map(|live| live.file.upgrade()).collect();
        for file in open {
            file.settle();
            self.note(file.record(), Record::end_all_pieces);
        }
        self.catch_up();
        self.shared.table.sync_all()?;
        self.sessions.lock().end()
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> LedgerStats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.shared.counters;
        LedgerStats {
            kind: match self.shared.checksum {
                Checksum::Crc32c => "crc32c",
                Checksum::Writes => "writes",
                Checksum::None => "none",
            },
            verified_pages: load(&counters.verified),
            written_pages: load(&counters.summed),
            mismatches: load(&counters.mismatches),
            torn: load(&counters.torn),
            dropped: load(&counters.dropped),
        }
    }
}

/// The last file of a record is closed; it may be in use again by now.
fn closed(live: &Mutex<HashMap<Identity, Live>>, record: &Record, stamp: Option<Stamp>) {
    if record.is_unused() {
        record.end_all_pieces();
    }
    match stamp {
        Some(Stamp { links: 0, .. }) if record.is_unused() => record.forget(),
        Some(stamp) if record.is_unused() => record.settle(|| Some(stamp)),
        // Whoever has it now looks at it in the end.
        Some(_) => {}
        None => {}
    }
    let mut live = live.lock();
    if record.is_unused() {
        live.remove(&record.identity());
    }
}

/// A partition's identity in the ledger; the same as the namespace gives it.
fn identity_of(file: impl AsFd, ino: u64) -> Result<Identity> {
    let handle = crate::sys::name_to_handle_at(&file).ok();
    let mask = rustix::fs::StatxFlags::BASIC_STATS | rustix::fs::StatxFlags::BTIME;
    let status = rustix::fs::statx(&file, c"", rustix::fs::AtFlags::EMPTY_PATH, mask)
        .map_err(crate::sys::errno)?;
    Ok((ino, crate::sys::generation(handle.as_ref(), &status)))
}
