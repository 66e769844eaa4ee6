//! A file as it is read page by page, and what is to be expected of it later.

use std::fs::{self, File};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::io::Errno;

use super::PAGE;
use crate::support::xattr;

/// Pages of a file: the bytes of each, or the error that user.swap.error names.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// The whole file's length.
    pub(super) length: u64,
    /// The first page that was looked at.
    first: u64,
    pages: Vec<Result<Vec<u8>, String>>,
    /// Pages that may be refused or read.
    unsure: Vec<u64>,
}

impl Seen {
    /// Looks at the pages of a part of a file, as far as the file goes.
    pub(super) fn look(path: &Path, part: Range<u64>) -> Self {
        let length = fs::metadata(path).unwrap().len();
        let file = File::open(path).unwrap();
        let first = part.start / PAGE;
        let last = part.end.min(length).div_ceil(PAGE);
        let page = |page: u64| {
            let at = page * PAGE;
            let mut bytes = vec![0; (length - at).min(PAGE) as usize];
            match file.read_exact_at(&mut bytes, at) {
                Ok(()) => Ok(bytes),
                Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => {
                    let name = xattr(path, "user.swap.error").unwrap_or_default();
                    Err(String::from_utf8(name).unwrap())
                }
                Err(error) => panic!("{} at {at}: {error}", path.display()),
            }
        };
        Self { length, first, pages: (first..last).map(page).collect(), unsure: Vec::new() }
    }

    /// The torn pages.
    pub(super) fn torn(&self) -> Vec<u64> {
        let pages = (self.first..).zip(&self.pages);
        pages.filter(|(_, page)| is_torn(page)).map(|(number, _)| number).collect()
    }

    /// A torn page with torn ones on both sides, as far as there is one.
    pub(super) fn midst(&self) -> u64 {
        let torn = self.torn();
        let inner = torn
            .iter()
            .find(|page| torn.contains(&page.wrapping_sub(1)) && torn.contains(&(*page + 1)));
        *inner.unwrap_or(&torn[torn.len() / 2])
    }

    /// A page's bytes, if they could be read.
    pub(super) fn page(&self, number: u64) -> Option<&[u8]> {
        self.pages[(number - self.first) as usize].as_deref().ok()
    }

    /// From now on these bytes are expected; a torn page is whole again when they are all of it.
    pub(super) fn put(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        self.length = self.length.max(end);
        let length = self.length;
        for (number, page) in (self.first..).zip(&mut self.pages) {
            let (start, stop) = (number * PAGE, ((number + 1) * PAGE).min(length));
            let (from, to) = (at.max(start), end.min(stop));
            if from >= to {
                continue;
            }
            let new = &bytes[(from - at) as usize..(to - at) as usize];
            match page {
                Ok(old) => {
                    old.resize((stop - start) as usize, 0);
                    old[(from - start) as usize..(to - start) as usize].copy_from_slice(new);
                }
                Err(_) if (from, to) == (start, stop) => *page = Ok(new.to_vec()),
                Err(_) => {}
            }
        }
    }

    /// The same for bytes that others put into the swap folder: nobody can tell whether a torn page of which they wrote a
    /// part is whole now, and of the other pages they vouch for all.
    pub(super) fn put_by_others(&mut self, at: u64, bytes: &[u8]) {
        let end = at + bytes.len() as u64;
        self.put(at, bytes);
        for (number, page) in (self.first..).zip(&self.pages) {
            let touched = at < (number + 1) * PAGE && number * PAGE < end;
            if page.is_err() && (touched || !is_torn(page)) {
                self.unsure.push(number);
            }
        }
    }

    pub(super) fn zero(&mut self, at: u64, length: u64) {
        self.put(at, &vec![0; length as usize]);
    }

    /// From now on the file is so long.
    pub(super) fn resize(&mut self, length: u64) {
        self.length = length;
        let left = length.div_ceil(PAGE).saturating_sub(self.first) as usize;
        self.pages.truncate(left);
        for (number, page) in (self.first..).zip(&mut self.pages) {
            if let Ok(bytes) = page {
                bytes.resize((length - number * PAGE).min(PAGE) as usize, 0);
            }
        }
    }

    /// Whether what was torn is refused still; of the rest nothing is said.
    pub(super) fn is_torn_still(&self, path: &Path) -> Result<(), String> {
        let end = (self.first + self.pages.len() as u64) * PAGE;
        let found = Self::look(path, self.first * PAGE..end);
        let torn = self.torn();
        let read: Vec<u64> =
            torn.iter().copied().filter(|page| found.page(*page).is_some()).collect();
        match read.first() {
            None => Ok(()),
            Some(first) => {
                Err(format!("{} of {} torn pages read, the first {first}", read.len(), torn.len()))
            }
        }
    }

    /// Whether a file is as it was seen: what could not be read still cannot, everything else has its bytes.
    pub(super) fn is_still(&self, path: &Path) -> Result<(), String> {
        let end = (self.first + self.pages.len() as u64) * PAGE;
        let found = Self::look(path, self.first * PAGE..end);
        if found.length != self.length {
            return Err(format!("{} bytes, not {}", found.length, self.length));
        }
        let (mut mended, mut lost, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
        for (number, (before, now)) in (self.first..).zip(self.pages.iter().zip(&found.pages)) {
            if self.unsure.contains(&number) {
                continue;
            }
            match (before, now) {
                (Ok(before), Ok(now)) if before != now => wrong.push(number),
                (Err(_), Ok(_)) => mended.push(number),
                (Ok(_), Err(_)) => lost.push(number),
                _ => {}
            }
        }
        let told = [("torn, but read", mended), ("not read", lost), ("with wrong bytes", wrong)];
        let told = told.iter().filter(|(_, pages)| !pages.is_empty()).map(|(what, pages)| {
            format!("{} pages {what}, from {} to {}", pages.len(), pages[0], pages[pages.len() - 1])
        });
        let told: Vec<String> = told.collect();
        if told.is_empty() { Ok(()) } else { Err(told.join("; ")) }
    }
}

fn is_torn(page: &Result<Vec<u8>, String>) -> bool {
    page.as_ref().is_err_and(|error| error == "EUCLEAN")
}
