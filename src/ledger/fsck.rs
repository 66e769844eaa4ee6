//! Verifying a swap folder that is not mounted.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::SeekFrom;
use serde::Serialize;

use super::entry::PAGE_BYTES;
use super::page::see;
use super::pulse::Pulse;
use super::record::{Look, Record, Shared};
use super::recover::{block_size, padding};
use super::session::Sessions;
use super::stamp::Stamp;
use super::table::Table;
use super::verdict::{Meaning, decide};
use super::walk::{Found, walk};
use super::{Checksum, Counters, identity_of};
use crate::error::{Errno, errno_of};
use crate::paths::{plain, shortened};

/// Bytes read at a time.
const CHUNK_BYTES: u64 = 1 << 20;

/// What is wrong with a range of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Damage {
    /// It is not what was written.
    Damaged,
    /// A write of it was interrupted: it is neither the old nor the new bytes.
    Torn,
    /// It cannot be read.
    Unreadable,
}

/// A range of a partition that is not whole.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Bad {
    /// What is wrong.
    pub damage: Damage,
    /// First byte.
    pub offset: u64,
    /// Bytes; whole pages of 4 KiB.
    pub length: u64,
}

/// A partition with something to tell.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Below the swap folder. One that is longer than any call takes is cut in its middle.
    #[serde(with = "crate::paths::exact")]
    pub path: PathBuf,
    /// What is not whole of it.
    pub bad: Vec<Bad>,
    /// Padding at its end, in bytes, that a crash of an early version left; the next mount cuts it.
    pub padding: u64,
}

/// What was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Partitions with a record that speaks of their bytes.
    pub checked: u64,
    /// Bytes of them that were read.
    pub bytes: u64,
    /// Partitions without a record: written by others, or before there were any.
    pub unknown: u64,
    /// Partitions that others have changed since: read as they are, and unverified.
    pub changed: u64,
    /// Which they are.
    #[serde(with = "crate::paths::exact_list")]
    pub changed_paths: Vec<PathBuf>,
    /// Records of files that are gone. Not counted, and kept, while any directory was left out.
    pub gone: u64,
    /// Directories that could not be read.
    pub left_out: u64,
    /// Partitions that are damaged, torn, or padded.
    pub findings: Vec<Finding>,
    /// What was found was repaired.
    pub repaired: bool,
}

impl Report {
    /// Partitions with bytes that are not whole.
    #[must_use]
    pub fn damaged(&self) -> usize {
        self.findings.iter().filter(|finding| !finding.bad.is_empty()).count()
    }
}

/// Told while it runs.
pub trait Listener {
    /// So many bytes are to be read.
    fn begin(&mut self, bytes: u64);
    /// So many more were read, of this partition.
    fn read(&mut self, path: &Path, bytes: u64);
    /// Whether to stop.
    fn is_stopped(&mut self) -> bool;
}

struct Check<'a> {
    shared: Arc<Shared>,
    sessions: Sessions,
    repair: bool,
    report: Report,
    seen: HashSet<u32>,
    listener: &'a mut dyn Listener,
}

/// Reads every partition of the swap folder `folder`, whose control folder is `control`, and compares it with
/// its record. The caller holds the folder's lock. With `repair`, the bytes of what is damaged or torn are accepted
/// as they are, and the records of files that are gone or were changed are removed; no byte of a partition, and no
/// length, is ever changed. `None` when stopped.
///
/// # Errors
/// What reading the ledger fails with.
pub fn check(
    folder: BorrowedFd<'_>, control: BorrowedFd<'_>, repair: bool, listener: &mut dyn Listener,
) -> io::Result<Option<Report>> {
    let Some(table) = Table::open(control, repair)? else { return Ok(Some(Report::default())) };
    let sessions = Sessions::open(control, &table, None)?;
    if repair {
        sessions.keep_alive_time()?;
    }
    let table = Arc::new(table);
    let shared = Shared {
        pulse: Pulse::start(table.clone())?,
        table,
        counters: Counters::default(),
        checksum: Checksum::Crc32c,
        session: sessions.number(),
        is_short: false.into(),
    };
    let mut total = 0;
    walk(folder, &mut |found| {
        if let Ok(file) = found.open(false) {
            total += Stamp::of(file)?.size;
        }
        Ok(true)
    })?;
    listener.begin(total);
    let mut check = Check {
        shared: Arc::new(shared),
        sessions,
        repair,
        report: Report::default(),
        seen: HashSet::new(),
        listener,
    };
    let mut stopped = false;
    check.report.left_out = walk(folder, &mut |found| {
        stopped = !check.partition(found)?;
        Ok(!stopped)
    })?;
    if stopped {
        return Ok(None);
    }
    for (_, slot) in check.shared.table.all() {
        // Where not everything was seen, what was not may be there.
        if check.report.left_out == 0 && !check.seen.contains(&slot) {
            check.report.gone += 1;
            if let (true, Ok(header)) = (repair, check.shared.table.header(slot)) {
                check.shared.table.give_back(&header, slot);
            }
        }
    }
    if repair {
        check.shared.table.sync()?;
        check.sessions.mended()?;
        check.report.repaired = true;
    }
    Ok(Some(check.report))
}

impl Check<'_> {
    /// One partition; false when stopped.
    fn partition(&mut self, found: &Found<'_>) -> io::Result<bool> {
        let file = match found.open(false) {
            Ok(file) => File::from(file),
            Err(error) => {
                log::warn!("{}: {error}", plain(found.path));
                return Ok(true);
            }
        };
        let identity = identity_of(&file, found.ino)?;
        let stamp = Stamp::of(&file)?;
        let table = &self.shared.table;
        let Some(slot) = table.find(identity) else {
            self.report.unknown += 1;
            self.listener.read(found.path, stamp.size);
            return Ok(true);
        };
        self.seen.insert(slot);
        let header = table.header(slot)?;
        let decision = decide(&header, stamp, &self.sessions);
        let padding = padding(&header, stamp, &file, &self.sessions)?;
        let record = Record::new(identity, self.shared.clone(), stamp, Some((slot, header)))?;
        let mut read = |page| see(&file, page);
        let block_size = block_size(&self.sessions, &header);
        let write = self.repair;
        let looked = Look { decision, stamp, block_size, read: &mut read, write };
        let torn = record.reconcile(looked)?;
        let mut bad: Vec<(u64, Damage)> = Vec::new();
        for range in torn {
            bad.extend(pages_in(&range).map(|page| (page, Damage::Torn)));
        }
        match decision.meaning {
            // Of all else nothing is known.
            Meaning::Others => {
                self.report.changed += 1;
                self.report.changed_paths.push(shortened(found.path).into_owned());
                self.listener.read(found.path, stamp.size);
            }
            Meaning::Ours | Meaning::Uncertain => {
                self.report.checked += 1;
                if !self.verify(&record, &file, found.path, &mut bad)? {
                    return Ok(false);
                }
            }
        }
        if self.repair {
            for (page, _) in &bad {
                record.accept(*page)?;
            }
            record.absolve(Stamp::of(&file)?)?;
            if decision.meaning == Meaning::Others {
                self.shared.table.give_back(&self.shared.table.header(slot)?, slot);
            }
        }
        if !bad.is_empty() || padding > 0 {
            let path = shortened(found.path).into_owned();
            self.report.findings.push(Finding { path, bad: ranges(&bad), padding });
        }
        Ok(true)
    }

    /// Compares all bytes of a partition; false when stopped.
    fn verify(
        &mut self, record: &Record, file: &File, path: &Path, bad: &mut Vec<(u64, Damage)>,
    ) -> io::Result<bool> {
        let size = Stamp::of(file)?.size;
        let mut buffer = vec![0; CHUNK_BYTES as usize];
        let mut at = 0;
        while at < size {
            let data = next_data(file, at, size);
            if !self.verify_hole(record, at..data, path, bad)? {
                return Ok(false);
            }
            let end = if data < size { next_hole(file, data, size) } else { size };
            if !self.verify_data(record, file, data..end, path, &mut buffer, bad)? {
                return Ok(false);
            }
            at = end;
        }
        bad.sort_by_key(|(page, damage)| (*page, *damage != Damage::Torn));
        bad.dedup_by_key(|(page, _)| *page);
        Ok(true)
    }

    fn verify_data(
        &mut self, record: &Record, file: &File, bytes: Range<u64>, path: &Path, buffer: &mut [u8],
        bad: &mut Vec<(u64, Damage)>,
    ) -> io::Result<bool> {
        let mut at = bytes.start;
        while at < bytes.end {
            let chunk = &mut buffer[..CHUNK_BYTES.min(bytes.end - at) as usize];
            if self.listener.is_stopped() {
                return Ok(false);
            }
            match file.read_exact_at(chunk, at) {
                Ok(()) => bad_pages(record, at, chunk, bad),
                Err(error) if errno_of(&error) == Errno::EIO => {
                    let pages = pages_in(&(at..at + chunk.len() as u64));
                    bad.extend(pages.map(|page| (page, Damage::Unreadable)));
                }
                Err(error) => return Err(error),
            }
            at += chunk.len() as u64;
            self.report.bytes += chunk.len() as u64;
            self.listener.read(path, chunk.len() as u64);
        }
        Ok(true)
    }

    /// A hole reads as zeros, which need not be read; only pages of which something is known can be wrong.
    fn verify_hole(
        &mut self, record: &Record, bytes: Range<u64>, path: &Path, bad: &mut Vec<(u64, Damage)>,
    ) -> io::Result<bool> {
        let pages = pages_in(&bytes);
        let mut next = pages.start;
        while let Some(known) = record.known_pages(next..pages.end) {
            next = known.end;
            for first in known.clone().step_by(ZEROS_PAGES as usize) {
                if self.listener.is_stopped() {
                    return Ok(false);
                }
                let (from, to) = (first, known.end.min(first + ZEROS_PAGES));
                let (from, to) = (from * PAGE_BYTES, (to * PAGE_BYTES).min(bytes.end));
                bad_pages(record, from, &ZEROS[..(to - from) as usize], bad);
            }
        }
        if !bytes.is_empty() {
            self.listener.read(path, bytes.end - bytes.start);
        }
        Ok(!self.listener.is_stopped())
    }
}

/// Zeros to compare with the entries of pages in holes, so many pages at a time.
const ZEROS_PAGES: u64 = 16;
static ZEROS: [u8; (ZEROS_PAGES * PAGE_BYTES) as usize] = [0; (ZEROS_PAGES * PAGE_BYTES) as usize];

/// The start of the page with the first data from `at` on, or the end of the file. Where the filesystem cannot tell,
/// all is data.
fn next_data(file: &File, at: u64, size: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Data(at)) {
        Ok(data) => (data / PAGE_BYTES * PAGE_BYTES).clamp(at, size),
        Err(rustix::io::Errno::NXIO) => size,
        Err(_) => at,
    }
}

/// The end of the page with the last data before the next hole.
fn next_hole(file: &File, at: u64, size: u64) -> u64 {
    match rustix::fs::seek(file, SeekFrom::Hole(at)) {
        Ok(hole) if hole > at => hole.next_multiple_of(PAGE_BYTES).min(size),
        _ => size,
    }
}

fn pages_in(range: &Range<u64>) -> Range<u64> {
    super::entry::pages_of(range)
}

/// The pages of a chunk that do not match.
fn bad_pages(record: &Record, start: u64, chunk: &[u8], bad: &mut Vec<(u64, Damage)>) {
    let mut at = 0;
    while at < chunk.len() {
        let (right, wrong) = record.verify(start + at as u64, &chunk[at..]);
        let Some(errno) = wrong else { return };
        let damage = if errno == Errno::EUCLEAN { Damage::Torn } else { Damage::Damaged };
        at += right as usize;
        bad.push(((start + at as u64) / PAGE_BYTES, damage));
        at += PAGE_BYTES as usize;
    }
}

/// Joins pages of the same kind that follow each other.
fn ranges(bad: &[(u64, Damage)]) -> Vec<Bad> {
    let mut ranges: Vec<Bad> = Vec::new();
    for (page, damage) in bad {
        let offset = page * PAGE_BYTES;
        match ranges.last_mut() {
            Some(last) if last.damage == *damage && last.offset + last.length == offset => {
                last.length += PAGE_BYTES;
            }
            _ => ranges.push(Bad { damage: *damage, offset, length: PAGE_BYTES }),
        }
    }
    ranges
}
