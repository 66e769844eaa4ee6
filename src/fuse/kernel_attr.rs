//! Plain values to what the kernel reads.

use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::StatxFlags;

use super::abi::{Attr, AttrOut, EntryOut, Statx, StatxOut, StatxTime};
use super::attr::TTL;
use crate::fs::{Attributes, Entry};

/// Seconds since 1970, rounded down, and the nanoseconds above them.
fn seconds(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            // Users may set any time, the earliest one that 64 bits hold included.
            let whole = (before.as_secs() as i64).wrapping_neg();
            match before.subsec_nanos() {
                0 => (whole, 0),
                nanos => (whole.saturating_sub(1), 1_000_000_000 - nanos),
            }
        }
    }
}

fn attr(attributes: &Attributes) -> Attr {
    let (atime, atimensec) = seconds(attributes.atime);
    let (mtime, mtimensec) = seconds(attributes.mtime);
    let (ctime, ctimensec) = seconds(attributes.ctime);
    Attr {
        ino: attributes.ino,
        size: attributes.size,
        blocks: attributes.blocks,
        atime,
        mtime,
        ctime,
        atimensec,
        mtimensec,
        ctimensec,
        mode: attributes.kind.to_mode() | attributes.mode & 0o7777,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: attributes.block_size,
        flags: 0,
    }
}

pub(super) fn attributes(attributes: &Attributes) -> AttrOut {
    AttrOut {
        attr_valid: TTL.as_secs(),
        attr_valid_nsec: TTL.subsec_nanos(),
        padding: 0,
        attr: attr(attributes),
    }
}

pub(super) fn statx(attributes: &Attributes) -> StatxOut {
    let time = |time| {
        let (seconds, nanoseconds) = seconds(time);
        StatxTime { seconds, nanoseconds, reserved: 0 }
    };
    let birth = attributes.birth.map(time);
    let mut mask = StatxFlags::BASIC_STATS;
    mask.set(StatxFlags::BTIME, birth.is_some());
    let device = u64::from(attributes.rdev);
    let stat = Statx {
        mask: mask.bits(),
        blksize: attributes.block_size,
        attributes: 0,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        mode: (attributes.kind.to_mode() | attributes.mode & 0o7777) as u16,
        spare: 0,
        ino: attributes.ino,
        size: attributes.size,
        blocks: attributes.blocks,
        attributes_mask: 0,
        atime: time(attributes.atime),
        btime: birth.unwrap_or_default(),
        ctime: time(attributes.ctime),
        mtime: time(attributes.mtime),
        rdev_major: rustix::fs::major(device),
        rdev_minor: rustix::fs::minor(device),
        dev_major: 0,
        dev_minor: 0,
        spare2: [0; 14],
    };
    StatxOut {
        attr_valid: TTL.as_secs(),
        attr_valid_nsec: TTL.subsec_nanos(),
        flags: 0,
        spare: [0; 2],
        stat,
    }
}

pub(super) fn entry(entry: &Entry) -> EntryOut {
    EntryOut {
        nodeid: entry.attributes.ino,
        generation: entry.generation,
        entry_valid: TTL.as_secs(),
        attr_valid: TTL.as_secs(),
        entry_valid_nsec: TTL.subsec_nanos(),
        attr_valid_nsec: TTL.subsec_nanos(),
        attr: attr(&entry.attributes),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times_before_1970_round_down() {
        let at = |nanos| UNIX_EPOCH - Duration::from_nanos(nanos);
        assert_eq!(seconds(UNIX_EPOCH + Duration::from_millis(1500)), (1, 500_000_000));
        assert_eq!(seconds(UNIX_EPOCH), (0, 0));
        assert_eq!(seconds(at(1)), (-1, 999_999_999));
        assert_eq!(seconds(at(1_000_000_000)), (-1, 0));
        assert_eq!(seconds(at(1_500_000_000)), (-2, 500_000_000));
        let first = UNIX_EPOCH - Duration::from_secs(1 << 63);
        assert_eq!(seconds(first), (i64::MIN, 0));
        assert_eq!(seconds(first + Duration::from_nanos(7)), (i64::MIN, 7));
    }
}
