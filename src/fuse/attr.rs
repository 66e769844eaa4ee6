//! Plain values to fuser's.

use std::time::Duration;

use fuser::{FileAttr, FileType, INodeNo};

use crate::error::Errno;
use crate::fs::{Attributes, FileKind};

/// How long the kernel may keep names and attributes. It drops them itself when it changes something.
pub(super) const TTL: Duration = Duration::from_secs(1);

/// A file that is gone is one that is not there, as in the front.
pub(super) fn errno(errno: Errno) -> fuser::Errno {
    let errno = if errno == Errno::ESTALE { Errno::ENOENT } else { errno };
    fuser::Errno::from_i32(errno as i32)
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
