//! After a daemon or a machine that stopped in the middle: which bytes are whole.

use std::collections::HashSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use super::identity_of;
use super::page::see;
use super::record::{Look, Record, Shared};
use super::session::{Crash, Sessions};
use super::stamp::Stamp;
use super::table::{ACTIVE, Header, Identity, PADDED};
use super::verdict::{Decision, Meaning, Past, decide};
use super::walk::{Found, walk};
use crate::error::{Result, errno_of};
use crate::paths::plain;

/// The first format padded files to multiples of no more than this.
const ALIGNMENT_MAX: u64 = 4096;

/// What was found and done.
#[derive(Debug, Default)]
pub(super) struct Recovered {
    checked: u64,
    cut: u64,
    torn: u64,
    others: u64,
    left: u64,
}

impl fmt::Display for Recovered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { checked, cut, torn, others, left } = self;
        let counts = [
            (torn, "torn blocks, which read EIO until they are written again"),
            (others, "changes by others since, and are read as they are, unverified"),
            (cut, "padding that was cut from the end"),
            (left, "contents that could not be read: each is looked at when it is opened"),
        ];
        let said = counts.iter().filter(|(count, _)| **count > 0).map(|(count, what)| {
            let partitions = if **count == 1 { "partition has" } else { "partitions have" };
            format!("{count} {partitions} {what}")
        });
        match self.is_whole() {
            true => {
                write!(f, "nothing is damaged ({checked} partitions were being written or changed)")
            }
            false => f.write_str(&said.collect::<Vec<_>>().join("; ")),
        }
    }
}

impl Recovered {
    /// Returns true when every partition reads as it was left.
    pub(super) fn is_whole(&self) -> bool {
        self.cut + self.torn + self.others + self.left == 0
    }
}

impl Past for Sessions {
    fn crash(&self, number: u32) -> Option<Crash> {
        Sessions::crash(self, number)
    }

    fn cut_after(&self, number: u32) -> Option<Crash> {
        Sessions::cut_after(self, number)
    }

    fn number(&self) -> u32 {
        Sessions::number(self)
    }

    fn had_it(&self, modified_ns: i64, changed_ns: i64) -> bool {
        Sessions::had_it(self, modified_ns, changed_ns)
    }

    fn alive_ns(&self) -> i64 {
        Sessions::alive_ns(self)
    }
}

/// Bytes of a block of the session that wrote a record last.
pub(super) fn block_size(sessions: &Sessions, header: &Header) -> u64 {
    let crash = sessions.crash(header.session);
    crash.unwrap_or_else(|| Crash::unknown(header.session, 0)).block_size
}

/// Brings all records of what was being written in line with the files that the last session left. What cannot be
/// opened now is dealt with when somebody opens it.
pub(super) fn recover(
    shared: &Arc<Shared>, sessions: &Sessions, folder: BorrowedFd<'_>,
) -> io::Result<Recovered> {
    let mut recovered = Recovered::default();
    let (_, any) = shared.table.last_known();
    if !any {
        return Ok(recovered);
    }
    let is_active = |slot| shared.table.header(slot).is_ok_and(|header| header.has(ACTIVE));
    let active = shared.table.all().into_iter().filter(|(_, slot)| is_active(*slot));
    let mut wanted: HashSet<u64> = active.map(|((ino, _), _)| ino).collect();
    walk(folder, &mut |found| {
        if wanted.remove(&found.ino) {
            match partition(shared, sessions, found, &mut recovered) {
                Ok(()) => {}
                Err(error) => {
                    recovered.left += 1;
                    let name = plain(found.path);
                    log::warn!(partition = name.as_str(); "{name}: {error}");
                }
            }
        }
        Ok(!wanted.is_empty())
    })?;
    shared.table.sync()?;
    Ok(recovered)
}

fn partition(
    shared: &Arc<Shared>, sessions: &Sessions, found: &Found<'_>, recovered: &mut Recovered,
) -> io::Result<()> {
    let file = File::from(found.open(false)?);
    let identity: Identity = identity_of(&file, found.ino)?;
    let Some(slot) = shared.table.find(identity) else { return Ok(()) };
    let header = shared.table.header(slot)?;
    recovered.checked += 1;
    let mut stamp = Stamp::of(&file)?;
    if padding(&header, stamp, &file, sessions)? > 0 {
        let writable = File::from(found.open(true)?);
        writable.set_len(header.next)?;
        recovered.cut += 1;
        let name = plain(found.path);
        log::warn!(partition = name.as_str(); "{name}: padding cut, {} bytes", header.next);
        stamp = Stamp::of(&file)?;
    }
    let was_cut = stamp.size == header.next && header.has(PADDED);
    let ours = Decision { meaning: Meaning::Ours, is_touched: false, is_unwritten: false };
    let decision = if was_cut { ours } else { decide(&header, stamp, sessions) };
    let record = Record::new(identity, shared.clone(), stamp, Some((slot, header)))?;
    let mut read = |page| see(&file, page);
    let block_size = block_size(sessions, &header);
    let looked = Look { decision, stamp, block_size, read: &mut read, write: true };
    let torn = record.reconcile(looked)?;
    recovered.others += u64::from(decision.meaning == Meaning::Others);
    if !torn.is_empty() {
        recovered.torn += 1;
        let name = plain(found.path);
        log::error!(partition = name.as_str(); "{name}: torn, not whole since the crash: {}", listed(&torn));
    }
    Ok(())
}

/// The padding at the end of a file that is exactly as a daemon of the first format left it when it was killed; 0 for
/// any other.
pub(super) fn padding(
    header: &Header, stamp: Stamp, file: &File, sessions: &Sessions,
) -> Result<u64> {
    let Some(crash) = sessions.crash(header.session) else { return Ok(0) };
    let end = crash.alive_ns.saturating_add(crash.doubt_ns);
    let is_ours = (header.changed_ns..=end).contains(&stamp.modified_ns)
        && (header.changed_ns..=end).contains(&stamp.changed_ns);
    // It may be a time instead, of any year.
    let Some(padded) = header.next.checked_next_multiple_of(ALIGNMENT_MAX) else { return Ok(0) };
    if !header.has(PADDED) || header.generation == 0 || !is_ours || stamp.size != padded {
        return Ok(0);
    }
    let mut tail = vec![0; (padded - header.next) as usize];
    file.read_exact_at(&mut tail, header.next).map_err(|error| errno_of(&error))?;
    Ok(if tail.iter().all(|byte| *byte == 0) { tail.len() as u64 } else { 0 })
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
