//! Converts attributes and errors of the volume to what the kernel reads and to what fuser takes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo};
use rustix::fs::StatxFlags;

use super::abi::{Attr, AttrOut, EntryOut, Statx, StatxOut, StatxTime};
use crate::error::Errno;
use crate::fs::{Attributes, Entry, FileKind};

/// How long the kernel may cache names and attributes. It drops them itself when it changes them.
pub(super) const TTL: Duration = Duration::from_secs(1);

/// The errno that a client gets. ENOENT stands for ESTALE, which is for handles of NFS.
pub(super) fn client_errno(errno: Errno) -> Errno {
    if errno == Errno::ESTALE { Errno::ENOENT } else { errno }
}

/// The errno that a client gets, for fuser.
pub(super) fn errno(errno: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(client_errno(errno) as i32)
}

/// Seconds since 1970, rounded down, and the nanoseconds above them.
fn seconds(time: SystemTime) -> (i64, u32) {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
        Err(error) => {
            let before = error.duration();
            // A user may set any time, even the earliest that 64 bits hold.
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

/// The answer to GETATTR and SETATTR.
pub(super) fn attr_out(attributes: &Attributes) -> AttrOut {
    AttrOut {
        attr_valid: TTL.as_secs(),
        attr_valid_nsec: TTL.subsec_nanos(),
        padding: 0,
        attr: attr(attributes),
    }
}

/// The answer to STATX.
pub(super) fn statx_out(attributes: &Attributes) -> StatxOut {
    let time = |seconds, nanoseconds| StatxTime { seconds, nanoseconds, reserved: 0 };
    let attr = attr(attributes);
    let birth = attributes.birth.map(seconds);
    let mut mask = StatxFlags::BASIC_STATS;
    mask.set(StatxFlags::BTIME, birth.is_some());
    let device = u64::from(attr.rdev);
    let stat = Statx {
        mask: mask.bits(),
        blksize: attr.blksize,
        attributes: 0,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        mode: attr.mode as u16,
        spare: 0,
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        attributes_mask: 0,
        atime: time(attr.atime, attr.atimensec),
        btime: birth.map(|(seconds, nanoseconds)| time(seconds, nanoseconds)).unwrap_or_default(),
        ctime: time(attr.ctime, attr.ctimensec),
        mtime: time(attr.mtime, attr.mtimensec),
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

/// The answer to LOOKUP, and the first part of that to CREATE.
pub(super) fn entry_out(entry: &Entry) -> EntryOut {
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

pub(super) fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Pipe => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::BlockDevice => FileType::BlockDevice,
        FileKind::CharDevice => FileType::CharDevice,
    }
}

/// For listings with attributes, and for what fuser's replies call entries.
pub(super) fn file_attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.ino),
        size: attributes.size,
        blocks: attributes.blocks,
        atime: attributes.atime,
        mtime: attributes.mtime,
        ctime: attributes.ctime,
        crtime: attributes.ctime,
        kind: file_type(attributes.kind),
        perm: attributes.mode as u16,
        nlink: attributes.nlink,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.rdev,
        blksize: attributes.block_size,
        flags: 0,
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
