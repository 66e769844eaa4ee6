//! Size, times and names of a backing file: what tells whether others have changed it.

use std::os::fd::AsFd;

use super::table::Header;
use crate::error::Result;
use crate::file_clock;
use crate::sys::errno;

/// Of one moment. Times in nanoseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Stamp {
    pub(super) size: u64,
    pub(super) modified_ns: i64,
    pub(super) changed_ns: i64,
    /// Names left.
    pub(super) links: u64,
}

impl Stamp {
    pub(super) fn of(descriptor: impl AsFd) -> Result<Self> {
        let status = rustix::fs::fstat(descriptor).map_err(errno)?;
        file_clock::saw(status.st_ctime, u32::try_from(status.st_ctime_nsec).unwrap_or(0));
        let nanoseconds =
            |s: i64, ns: u64| s.saturating_mul(1_000_000_000).saturating_add_unsigned(ns);
        Ok(Self {
            size: status.st_size.cast_unsigned(),
            modified_ns: nanoseconds(status.st_mtime, status.st_mtime_nsec),
            changed_ns: nanoseconds(status.st_ctime, status.st_ctime_nsec),
            #[allow(clippy::useless_conversion, reason = "u32 on aarch64")]
            links: status.st_nlink.into(),
        })
    }

    /// When the inode was made, in nanoseconds since 1970; `None` where the filesystem does not tell.
    pub(super) fn birth_ns(descriptor: impl AsFd) -> Result<Option<i64>> {
        let flags = rustix::fs::AtFlags::EMPTY_PATH;
        let mask = rustix::fs::StatxFlags::BTIME;
        let status = rustix::fs::statx(descriptor, c"", flags, mask).map_err(errno)?;
        let birth = status.stx_btime;
        let is_told = status.stx_mask & mask.bits() != 0;
        let seconds = birth.tv_sec.saturating_mul(1_000_000_000);
        Ok(is_told.then(|| seconds.saturating_add(birth.tv_nsec.into())))
    }

    pub(super) fn store(&self, header: &mut Header) {
        header.size = self.size;
        header.modified_ns = self.modified_ns;
        header.changed_ns = self.changed_ns;
    }
}
