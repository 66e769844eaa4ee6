//! After a daemon or a machine that stopped in the middle: which bytes are whole.

use std::collections::HashMap;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::entry::{PAGE_BYTES, UNKNOWN, sum};
use super::record::Record;
use super::session::{LastEnd, Sessions, Since};
use super::stamp::Stamp;
use super::table::{ACTIVE, Header, PADDED};
use super::walk::walk;
use super::{Ledger, identity_of};
use crate::error::{Result, errno_of};

/// The backing file is cut to multiples of no more than this.
const ALIGNMENT_MAX: u64 = 4096;

/// What was found and done.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    checked: u64,
    cut: u64,
    torn: u64,
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { checked, cut, torn } = self;
        write!(
            f,
            "{checked} partitions were being written or changed, {cut} had padding cut from their end, \
             {torn} have torn blocks, which read EIO until they are written again"
        )
    }
}

/// Brings all records in line with the files that the last session left.
pub(super) fn recover(
    ledger: &Ledger, sessions: &Sessions, folder: BorrowedFd<'_>,
) -> io::Result<Recovered> {
    let mut wanted: HashMap<u64, Vec<u32>> = HashMap::new();
    let all = ledger.table.all();
    let left = all.len();
    for ((ino, _), slot) in all {
        wanted.entry(ino).or_default().push(slot);
    }
    let mut recovered = Recovered::default();
    if left == 0 {
        return Ok(recovered);
    }
    walk(folder, &mut |found| {
        if !wanted.contains_key(&found.ino) {
            return Ok(true);
        }
        let file = match found.open(true) {
            Ok(file) => File::from(file),
            Err(error) => {
                log::warn!("{}: {error}", found.path.display());
                return Ok(true);
            }
        };
        let identity = identity_of(&file, found.ino);
        if let Some(slot) = ledger.table.find(identity)
            && let Ok(header) = ledger.table.header(slot)
        {
            let known = Some((slot, header));
            let (table, counters) = (ledger.table.clone(), ledger.counters.clone());
            let stamp = Stamp::of(&file)?;
            let record = Record::new(identity, table, counters, ledger.checksum, stamp.size, known);
            let record = match record {
                Ok(record) => record,
                Err(errno) => {
                    log::error!(
                        "ledger: record {slot}: {}; its checksums are dropped",
                        errno.desc()
                    );
                    ledger.table.give_back(&header, slot);
                    return Ok(true);
                }
            };
            let done = one(&record, &header, sessions, &file, &found.path, &mut recovered);
            if let Err(errno) = done {
                log::error!("{}: after the crash: {}", found.path.display(), errno.desc());
            }
        }
        Ok(true)
    })?;
    ledger.table.sync()?;
    Ok(recovered)
}

fn one(
    record: &Record, header: &Header, sessions: &Sessions, file: &File, path: &Path,
    recovered: &mut Recovered,
) -> Result<()> {
    let stamp = Stamp::of(file)?;
    let since = sessions.since(header, stamp, false);
    let power_cut = sessions.last_end == LastEnd::PowerCut;
    let suspect = header.has(ACTIVE) || since == Since::Suspect;
    if !suspect {
        let renamed = since == Since::Same && stamp.changed_ns != header.changed_ns;
        return if renamed { record.recovered(stamp, false, false) } else { Ok(()) };
    }
    recovered.checked += 1;
    let size = match true_size(header, stamp, file, power_cut)? {
        Some(size) if size < stamp.size => {
            file.set_len(size).map_err(|error| errno_of(&error))?;
            recovered.cut += 1;
            log::warn!("{}: padding cut, {size} bytes", path.display());
            size
        }
        _ => stamp.size,
    };
    let block_size = sessions.crashed_block_size();
    let torn =
        record.resolve(stamp.size.max(size), block_size, true, |page| readable_sum(file, page))?;
    if !torn.is_empty() {
        recovered.torn += 1;
        log::error!("{}: torn, not whole since the crash: {}", path.display(), listed(&torn));
    }
    // A daemon that was killed has recorded every write: what matches nothing else is damaged.
    record.recovered(Stamp::of(file)?, power_cut, !torn.is_empty())
}

/// As [`page_sum`]; a page that cannot be read matches nothing.
fn readable_sum(file: &File, page: u64) -> Result<u32> {
    Ok(page_sum(file, page).unwrap_or(UNKNOWN))
}

/// The length that a file is to have, when its end may be padding.
pub(super) fn true_size(
    header: &Header, stamp: Stamp, file: &File, power_cut: bool,
) -> Result<Option<u64>> {
    if header.has(PADDED) {
        return Ok((stamp.size > header.true_size).then_some(header.true_size));
    }
    // After a power cut the record may be from before the padded write: the length that was on stable storage,
    // rounded up, with nothing but zeros at its end, is that length.
    let padded = header.size.next_multiple_of(ALIGNMENT_MAX);
    if !power_cut || stamp.size <= header.size || stamp.size > padded {
        return Ok(None);
    }
    let mut tail = vec![0; (stamp.size - header.size) as usize];
    file.read_exact_at(&mut tail, header.size).map_err(|error| errno_of(&error))?;
    Ok(tail.iter().all(|byte| *byte == 0).then_some(header.size))
}

/// The sum of a page as it is in the file; what lies beyond the end is zero.
pub(super) fn page_sum(file: &File, page: u64) -> Result<u32> {
    let mut bytes = [0; PAGE_BYTES as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        match file.read_at(&mut bytes[filled..], page * PAGE_BYTES + filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(errno_of(&error)),
        }
    }
    Ok(sum(&bytes))
}

/// Byte ranges for people.
pub(super) fn listed(ranges: &[Range<u64>]) -> String {
    let shown: Vec<String> =
        ranges.iter().take(8).map(|range| format!("{}-{}", range.start, range.end)).collect();
    match ranges.len().saturating_sub(8) {
        0 => format!("bytes {}", shown.join(", ")),
        more => format!("bytes {} and {more} more ranges", shown.join(", ")),
    }
}
