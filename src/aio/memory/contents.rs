//! A sparse file's bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::time::SystemTime;

use super::super::random::Random;
use super::file::MemoryFolder;
use crate::error::{Errno, Result};

const PAGE: u64 = 4096;

type Page = Box<[u8; 4096]>;

#[derive(Debug)]
pub(super) struct Contents {
    /// Allocated pages by number; `None` for those reserved and not written.
    pages: BTreeMap<u64, Option<Page>>,
    pub(super) size: u64,
    pub(super) modified: SystemTime,
    pub(super) links: u64,
    folder: MemoryFolder,
    /// What a power cut leaves for certain, if that is kept.
    stable: Option<Stable>,
}

/// A file as it was when it was last synchronized.
#[derive(Debug, Clone, Default)]
struct Stable {
    pages: BTreeMap<u64, Option<Page>>,
    size: u64,
}

/// What a device writes wholly or not at all, in bytes.
const SECTOR: usize = 512;

impl Drop for Contents {
    fn drop(&mut self) {
        self.folder.release(self.allocated());
    }
}

/// The parts of `[offset, offset + length)` in single pages: page number, first byte in it, bytes.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    let end = offset + length;
    let mut next = offset;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let (page, start) = (next / PAGE, next % PAGE);
        let count = (PAGE - start).min(end - next);
        next += count;
        Some((page, to_usize(start), to_usize(count)))
    })
}

fn to_usize(value: u64) -> usize {
    usize::try_from(value).expect("64-bit addresses")
}

impl Contents {
    pub(super) fn new(folder: MemoryFolder) -> Self {
        let modified = SystemTime::now();
        Self { pages: BTreeMap::new(), size: 0, modified, links: 1, folder, stable: None }
    }

    /// From here on a power cut can be acted out; what is there now survives one.
    pub(super) fn keep_stable(&mut self) {
        self.stable = Some(Stable { pages: self.pages.clone(), size: self.size });
    }

    /// Everything is on stable storage.
    pub(super) fn synchronized(&mut self) {
        if self.stable.is_some() {
            self.keep_stable();
        }
    }

    /// What a power cut leaves: of each sector the synchronized bytes or the present ones, one of the lengths
    /// from the one to the other.
    pub(super) fn after_power_cut(&self, random: &mut Random) -> Self {
        let before = self.stable.clone().unwrap_or_default();
        let mut after = Contents::new(self.folder.clone());
        let (least, most) = (before.size.min(self.size), before.size.max(self.size));
        after.size = match random.below(3) {
            0 => before.size,
            1 => self.size,
            _ => least + random.below(most - least + 1),
        };
        let numbers: BTreeSet<u64> =
            self.pages.keys().chain(before.pages.keys()).copied().collect();
        let end = after.size;
        for number in numbers.into_iter().take_while(|number| number * PAGE < end) {
            let mut page = [0; 4096];
            for sector in (0..page.len()).step_by(SECTOR) {
                let from = if random.chance(0.5) { &before.pages } else { &self.pages };
                if let Some(Some(bytes)) = from.get(&number) {
                    let range = sector..sector + SECTOR;
                    page[range.clone()].copy_from_slice(&bytes[range]);
                }
            }
            after.hold(number).expect("a folder without a limit");
            after.pages.insert(number, Some(Box::new(page)));
        }
        after.zero(end, end.next_multiple_of(PAGE) - end);
        after
    }

    pub(super) fn allocated(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    /// Bytes read: up to the end of the file.
    pub(super) fn read(&self, offset: u64, buffer: &mut [u8]) -> usize {
        let length = self.size.saturating_sub(offset).min(buffer.len() as u64);
        let mut rest = &mut buffer[..to_usize(length)];
        for (page, start, count) in parts(offset, length) {
            let (now, later) = rest.split_at_mut(count);
            match self.pages.get(&page) {
                Some(Some(bytes)) => now.copy_from_slice(&bytes[start..start + count]),
                Some(None) | None => now.fill(0),
            }
            rest = later;
        }
        to_usize(length)
    }

    /// Bytes written: fewer than asked when space runs out on the way.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) -> Result<usize> {
        check_range(offset, bytes.len() as u64)?;
        let mut written = 0;
        for (page, start, count) in parts(offset, bytes.len() as u64) {
            match self.hold(page) {
                Err(error) if written == 0 => return Err(error),
                Err(_) => break,
                Ok(()) => {}
            }
            let held = self.pages.get_mut(&page).expect("held above");
            let target = held.get_or_insert_with(|| Box::new([0; 4096]));
            target[start..start + count].copy_from_slice(&bytes[written..written + count]);
            written += count;
        }
        self.size = self.size.max(offset + written as u64);
        self.modified = SystemTime::now();
        Ok(written)
    }

    fn hold(&mut self, page: u64) -> Result<()> {
        if !self.pages.contains_key(&page) {
            self.folder.acquire(PAGE)?;
            self.pages.insert(page, None);
        }
        Ok(())
    }

    /// Holds all pages of the range, or none more than before.
    pub(super) fn reserve(&mut self, offset: u64, length: u64) -> Result<()> {
        check_range(offset, length)?;
        let missing = || parts(offset, length).filter(|part| !self.pages.contains_key(&part.0));
        let new: Vec<u64> = missing().map(|part| part.0).collect();
        self.folder.acquire(new.len() as u64 * PAGE)?;
        self.pages.extend(new.into_iter().map(|page| (page, None)));
        Ok(())
    }

    pub(super) fn set_len(&mut self, size: u64) {
        if size <= self.size {
            let gone = self.pages.split_off(&size.div_ceil(PAGE));
            self.folder.release(gone.len() as u64 * PAGE);
            self.zero(size, size.next_multiple_of(PAGE) - size);
        }
        self.size = size;
        self.modified = SystemTime::now();
    }

    /// Writes zeros to what is written of the range.
    fn zero(&mut self, offset: u64, length: u64) {
        for (page, start, count) in parts(offset, length) {
            if let Some(Some(bytes)) = self.pages.get_mut(&page) {
                bytes[start..start + count].fill(0);
            }
        }
    }

    pub(super) fn allocate(&mut self, mode: i32, offset: u64, length: u64) -> Result<()> {
        if length == 0 {
            return Err(Errno::EINVAL);
        }
        check_range(offset, length)?;
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => self.reserve(offset, length)?,
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => self.punch(offset, length),
            libc::FALLOC_FL_ZERO_RANGE => {
                self.reserve(offset, length)?;
                self.zero(offset, length);
            }
            _ => return Err(Errno::EOPNOTSUPP),
        }
        if !keep_size {
            self.size = self.size.max(offset + length);
        }
        Ok(())
    }

    fn punch(&mut self, offset: u64, length: u64) {
        for (page, start, count) in parts(offset, length) {
            if count as u64 == PAGE {
                if self.pages.remove(&page).is_some() {
                    self.folder.release(PAGE);
                }
            } else if let Some(Some(bytes)) = self.pages.get_mut(&page) {
                bytes[start..start + count].fill(0);
            }
        }
    }

    pub(super) fn seek(&self, offset: u64, hole: bool) -> Result<u64> {
        if offset >= self.size {
            return Err(Errno::ENXIO);
        }
        let written = |page: &u64| matches!(self.pages.get(page), Some(Some(_)));
        let first = offset / PAGE;
        let found = if hole {
            // At the latest the page behind the last one is none.
            (first..=self.size / PAGE + 1).find(|page| !written(page))
        } else {
            self.pages.range(first..).map(|(page, _)| *page).find(written)
        };
        let position = found.map(|page| (page * PAGE).max(offset)).ok_or(Errno::ENXIO)?;
        match (hole, position >= self.size) {
            (true, _) => Ok(position.min(self.size)),
            (false, false) => Ok(position),
            (false, true) => Err(Errno::ENXIO),
        }
    }
}

fn check_range(offset: u64, length: u64) -> Result<()> {
    match offset.checked_add(length) {
        Some(end) if i64::try_from(end).is_ok() => Ok(()),
        _ => Err(Errno::EFBIG),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_back_and_holes_are_zeros() {
        let mut contents = Contents::new(MemoryFolder::unbounded());
        assert_eq!(contents.write(4090, &[7; 20]), Ok(20));
        assert_eq!(contents.size, 4110);
        let mut buffer = [1; 32];
        assert_eq!(contents.read(4085, &mut buffer), 25);
        assert_eq!(buffer[..5], [0; 5]);
        assert_eq!(buffer[5..25], [7; 20]);
        assert_eq!(contents.read(4110, &mut buffer), 0);
        contents.set_len(4095);
        contents.set_len(8192);
        assert_eq!(contents.read(4090, &mut buffer), 32);
        assert_eq!(buffer[..5], [7; 5]);
        assert_eq!(buffer[5..], [0; 27]);
    }

    #[test]
    fn space_is_counted_and_runs_out() {
        let folder = MemoryFolder::new(4 * PAGE);
        let mut contents = Contents::new(folder.clone());
        contents.reserve(0, 2 * PAGE).unwrap();
        assert_eq!((contents.size, folder.used()), (0, 2 * PAGE));
        assert_eq!(contents.reserve(PAGE, 4 * PAGE), Err(Errno::ENOSPC));
        assert_eq!(folder.used(), 2 * PAGE);
        assert_eq!(contents.write(0, &[1; 5 * 4096]), Ok(4 * 4096));
        assert_eq!(contents.write(4 * PAGE, &[1; 4096]), Err(Errno::ENOSPC));
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        contents.allocate(punch, 100, 2 * PAGE).unwrap();
        assert_eq!(folder.used(), 3 * PAGE);
        contents.set_len(10);
        assert_eq!(folder.used(), PAGE);
        drop(contents);
        assert_eq!(folder.used(), 0);
    }

    #[test]
    fn data_and_holes_are_found() {
        let mut contents = Contents::new(MemoryFolder::unbounded());
        contents.set_len(10 * PAGE);
        contents.reserve(0, 10 * PAGE).unwrap();
        contents.write(3 * PAGE, &[1; 8192]).unwrap();
        assert_eq!(contents.seek(0, false), Ok(3 * PAGE));
        assert_eq!(contents.seek(3 * PAGE + 5, false), Ok(3 * PAGE + 5));
        assert_eq!(contents.seek(3 * PAGE + 5, true), Ok(5 * PAGE));
        assert_eq!(contents.seek(5 * PAGE, false), Err(Errno::ENXIO));
        contents.write(9 * PAGE, &[1; 4096]).unwrap();
        assert_eq!(contents.seek(9 * PAGE, true), Ok(10 * PAGE));
        assert_eq!(contents.seek(10 * PAGE, true), Err(Errno::ENXIO));
    }
}
