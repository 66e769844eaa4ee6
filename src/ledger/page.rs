//! One page of a backing file, as it is now.

use std::ops::Range;
use std::os::fd::AsFd;

use super::entry::{PAGE_BYTES, Seen, sum};

/// Memory as transfers past the page cache need it; zero beyond the end of the file.
#[repr(align(4096))]
pub(super) struct Page([u8; PAGE_BYTES as usize]);

impl Page {
    /// Reads a page of a file, which may be open with O_DIRECT. `None` when it cannot be read.
    pub(super) fn read(file: impl AsFd, page: u64) -> Option<Self> {
        let mut bytes = Self([0; PAGE_BYTES as usize]);
        let read = || rustix::io::pread(&file, &mut bytes.0[..], page * PAGE_BYTES);
        let count = rustix::io::retry_on_intr(read).ok()?;
        bytes.0[count..].fill(0);
        Some(bytes)
    }

    pub(super) fn sum(&self) -> u32 {
        sum(&self.0)
    }

    /// Makes those bytes of the file zero that lie in this page, which is page number `page`.
    pub(super) fn clear(&mut self, page: u64, bytes: &Range<u64>) {
        let start = page * PAGE_BYTES;
        let within = |at: u64| (at.max(start) - start).min(PAGE_BYTES) as usize;
        self.0[within(bytes.start)..within(bytes.end)].fill(0);
    }
}

/// Looks at a page of a file. `None` when it cannot be read.
pub(super) fn see(file: impl AsFd, page: u64) -> Option<Seen> {
    let bytes = Page::read(&file, page)?;
    let place = crate::sys::place_on_device(&file, page * PAGE_BYTES);
    Some(Seen { sum: bytes.sum(), place })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_beside_a_page_do_not_concern_it() {
        let zeros_after = |bytes: Range<u64>| {
            let mut page = Page([1; PAGE_BYTES as usize]);
            page.clear(2, &bytes);
            page.0.iter().filter(|byte| **byte == 0).count()
        };
        assert_eq!(zeros_after(0..8192), 0);
        assert_eq!(zeros_after(0..8193), 1);
        assert_eq!(zeros_after(12287..u64::MAX), 1);
        assert_eq!(zeros_after(12288..u64::MAX), 0);
        assert_eq!(zeros_after(9000..9100), 100);
        assert_eq!(zeros_after(0..u64::MAX), 4096);
    }
}
