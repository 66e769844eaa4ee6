//! What a file may hold after a crash, and the check that it does.
//!
//! One thread changes a file, one call after the other. What the last successful fsync covered is certain; of
//! the calls since, each part of the file may show any number of writes and any number of changes of shape, each in
//! their order.

use std::ops::Range;

/// Whether every unsynchronized block must be wholly old or wholly new. The daemon writes a block's changed
/// pages by several transfers, so this waits for records of what was under way; until then it holds for
/// each page.
const WHOLE_BLOCKS: bool = false;

/// One change of a file.
#[derive(Debug, Clone)]
pub(crate) enum Change {
    /// Bytes at an offset.
    Write(u64, Vec<u8>),
    /// A new length.
    Resize(u64),
    /// Zeros where there is something.
    Punch(Range<u64>),
}

/// A file since the last fsync that returned.
#[derive(Debug, Default, Clone)]
pub(crate) struct History {
    certain: Vec<u8>,
    since: Vec<Change>,
    /// How it is without a crash.
    now: Vec<u8>,
}

/// What was found, in parts of a file.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Found {
    /// Certain ones.
    pub(crate) certain: u64,
    /// As they were before the calls that nobody synchronized.
    pub(crate) old: u64,
    /// As some of those calls made them.
    pub(crate) new: u64,
    /// Refused with an error.
    pub(crate) refused: u64,
}

impl Found {
    pub(crate) fn add(&mut self, other: Found) {
        self.certain += other.certain;
        self.old += other.old;
        self.new += other.new;
        self.refused += other.refused;
    }
}

/// A file as it was read after the crash: `None` for parts that were refused.
pub(crate) struct Contents {
    pub(crate) length: u64,
    pub(crate) parts: Vec<Option<Vec<u8>>>,
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(offset, data) => {
                let (start, end) = (*offset as usize, *offset as usize + data.len());
                bytes.resize(bytes.len().max(end), 0);
                bytes[start..end].copy_from_slice(data);
            }
            Change::Resize(length) => bytes.resize(*length as usize, 0),
            Change::Punch(range) => {
                let end = (range.end as usize).min(bytes.len());
                if (range.start as usize) < end {
                    bytes[range.start as usize..end].fill(0);
                }
            }
        }
    }

    fn length_after(&self, before: u64) -> u64 {
        match self {
            Change::Write(offset, data) => before.max(offset + data.len() as u64),
            Change::Resize(length) => *length,
            Change::Punch(_) => before,
        }
    }

    /// What a part that begins at `start` becomes; bytes beyond a file's end count as zeros.
    fn apply_to_part(&self, start: u64, part: &mut [u8]) {
        let end = start + part.len() as u64;
        let within = |range: Range<u64>| {
            let (from, to) = (range.start.max(start), range.end.min(end));
            (from < to).then(|| (from - start) as usize..(to - start) as usize)
        };
        match self {
            Change::Write(offset, data) => {
                if let Some(to) = within(*offset..offset + data.len() as u64) {
                    let from = (start + to.start as u64 - offset) as usize;
                    part[to.clone()].copy_from_slice(&data[from..from + to.len()]);
                }
            }
            Change::Resize(length) => {
                if let Some(gone) = within(*length..u64::MAX) {
                    part[gone].fill(0);
                }
            }
            Change::Punch(range) => {
                if let Some(gone) = within(range.clone()) {
                    part[gone].fill(0);
                }
            }
        }
    }
}

impl History {
    /// What is refused after a crash is refused by pages of this many bytes.
    pub(crate) const PAGE: u64 = 4096;

    /// To be noted before the call is made: whether it was is not known when it fails.
    pub(crate) fn begin(&mut self, change: Change) {
        change.apply(&mut self.now);
        self.since.push(change);
    }

    /// An fsync returned that was called after everything noted so far.
    pub(crate) fn synchronized(&mut self) {
        self.certain.clone_from(&self.now);
        self.since.clear();
    }

    /// A write of these bytes returned that says they are on stable storage; others may not be.
    pub(crate) fn synchronized_range(&mut self, range: Range<u64>) {
        if self.since.iter().any(|change| !matches!(change, Change::Write(..))) {
            // What it means for a length that was not synchronized is nowhere promised.
            return;
        }
        let mut rest = Vec::new();
        for change in std::mem::take(&mut self.since) {
            let Change::Write(offset, data) = change else { unreachable!("looked at above") };
            let end = offset + data.len() as u64;
            for left in [offset..end.min(range.start), offset.max(range.end)..end] {
                if left.start < left.end {
                    let bytes = &data[(left.start - offset) as usize..(left.end - offset) as usize];
                    rest.push(Change::Write(left.start, bytes.to_vec()));
                }
            }
        }
        self.since = rest;
        let (start, end) = (range.start as usize, range.end as usize);
        self.certain.resize(self.certain.len().max(end), 0);
        self.certain[start..end].copy_from_slice(&self.now[start..end]);
    }

    pub(crate) fn length(&self) -> u64 {
        self.now.len() as u64
    }

    /// How it is without a crash.
    pub(crate) fn now(&self) -> &[u8] {
        &self.now
    }

    /// From here on what was found is what is certain.
    pub(crate) fn settle(&mut self, bytes: Vec<u8>) {
        *self = History { now: bytes.clone(), certain: bytes, since: Vec::new() };
    }

    /// The size of the parts to be read and compared, in bytes.
    pub(crate) fn part_length(block_size: u64, sectors: bool) -> u64 {
        match (WHOLE_BLOCKS, sectors) {
            (true, _) => block_size,
            (false, true) => 512,
            (false, false) => 4096,
        }
    }

    /// Checks the length: one of those that it had, or what it grew through on the way there, with at most `padding`
    /// bytes more.
    fn check_length(&self, length: u64, padding: u64) -> Result<(), String> {
        let mut lengths = vec![self.certain.len() as u64];
        for change in &self.since {
            lengths.push(change.length_after(lengths[lengths.len() - 1]));
        }
        let (least, most) = (lengths.iter().min(), lengths.iter().max());
        let (least, most) = (*least.expect("one at least"), *most.expect("one at least"));
        // While it grows the swap folder's file has each length up to the new one.
        let padded = |had: &u64| (*had..=had + padding).contains(&length);
        match (least..=most).contains(&length)
            || (!self.since.is_empty() && lengths.iter().any(padded))
        {
            true => Ok(()),
            false => Err(format!("{length} bytes where {least} to {most} belong")),
        }
    }

    /// Whether what was found may be; else the first thing that may not. Where nothing is on record, up to `padding` bytes
    /// behind the end may be left.
    pub(crate) fn check(
        &self, found: &Contents, part_length: u64, padding: u64,
    ) -> Result<Found, String> {
        self.check_length(found.length, padding)?;
        let mut counts = Found::default();
        for (index, bytes) in found.parts.iter().enumerate() {
            let start = index as u64 * part_length;
            let length = part_length.min(found.length - start) as usize;
            let at = (start as usize).min(self.certain.len());
            let end = (start as usize + length).min(self.certain.len());
            let mut state = self.certain[at..end].to_vec();
            state.resize(length, 0);
            let touched: Vec<&Change> =
                self.since.iter().filter(|change| change.touches(start, length as u64)).collect();
            let Some(bytes) = bytes else {
                let page = start / Self::PAGE * Self::PAGE;
                let page_touched = self
                    .since
                    .iter()
                    .any(|change| change.touches(page, Self::PAGE.max(part_length)));
                if !page_touched {
                    return Err(format!("the synchronized bytes at {start} cannot be read"));
                }
                counts.refused += 1;
                continue;
            };
            let old = state == *bytes;
            let allowed = old || is_reachable(start, &state, &touched, bytes);
            match (allowed, touched.is_empty()) {
                (false, certain) => return Err(self.describe(start, bytes, certain)),
                (true, true) => counts.certain += 1,
                (true, false) if old => counts.old += 1,
                (true, false) => counts.new += 1,
            }
        }
        Ok(counts)
    }

    fn describe(&self, start: u64, bytes: &[u8], certain: bool) -> String {
        let what = if certain { "synchronized" } else { "unsynchronized" };
        let zero = if bytes.iter().all(|byte| *byte == 0) { ", all zero" } else { "" };
        format!(
            "the {what} {} bytes at {start} are neither old nor new{zero} ({} calls since the last fsync)",
            bytes.len(),
            self.since.len()
        )
    }
}

/// Whether a part can have become `found`: by the first writes of those that touch it, and the first changes of
/// shape. A write waits in the pool while a hole or a new length goes to the swap folder at once, and so before it.
fn is_reachable(start: u64, certain: &[u8], touched: &[&Change], found: &[u8]) -> bool {
    (0..=touched.len()).any(|writes| {
        let mut state = certain.to_vec();
        touched.iter().enumerate().any(|(index, change)| {
            if index < writes || !matches!(change, Change::Write(..)) {
                change.apply_to_part(start, &mut state);
            }
            state == found
        })
    })
}

impl Change {
    fn touches(&self, start: u64, length: u64) -> bool {
        let (from, to) = match self {
            Change::Write(offset, data) => (*offset, offset + data.len() as u64),
            Change::Resize(length) => (*length, u64::MAX),
            Change::Punch(range) => (range.start, range.end),
        };
        from < start + length && start < to
    }
}
