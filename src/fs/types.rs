//! The plain values that go in and out of the namespace.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType, StatVfs, Statx, StatxFlags, StatxTimestamp};

/// On whose behalf something is created.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Caller {
    /// Owner of what is created.
    pub uid: u32,
    /// Group of what is created, unless the directory gives its own.
    pub gid: u32,
    /// Taken out of the mode, unless the directory has a default ACL.
    pub umask: u32,
    /// The caller may make set-group-id files of the directory's group.
    pub keeps_set_group_id: bool,
}

/// What kind of inode it is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum FileKind {
    /// A regular file: a partition.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Pipe,
    /// A socket.
    Socket,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
}

impl FileKind {
    /// The kind in an `st_mode`; `None` when its type bits mean none.
    #[must_use]
    pub fn of_mode(mode: u32) -> Option<Self> {
        Self::of_type(FileType::from_raw_mode(mode))
    }

    pub(super) fn of_type(file_type: FileType) -> Option<Self> {
        match file_type {
            FileType::RegularFile => Some(Self::Regular),
            FileType::Directory => Some(Self::Directory),
            FileType::Symlink => Some(Self::Symlink),
            FileType::Fifo => Some(Self::Pipe),
            FileType::Socket => Some(Self::Socket),
            FileType::BlockDevice => Some(Self::BlockDevice),
            FileType::CharacterDevice => Some(Self::CharDevice),
            FileType::Unknown => None,
        }
    }

    /// The type bits of an `st_mode`.
    #[must_use]
    pub fn to_mode(self) -> u32 {
        self.to_type().as_raw_mode()
    }

    pub(super) fn to_type(self) -> FileType {
        match self {
            Self::Regular => FileType::RegularFile,
            Self::Directory => FileType::Directory,
            Self::Symlink => FileType::Symlink,
            Self::Pipe => FileType::Fifo,
            Self::Socket => FileType::Socket,
            Self::BlockDevice => FileType::BlockDevice,
            Self::CharDevice => FileType::CharacterDevice,
        }
    }
}

/// What stat(2) tells.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Attributes {
    /// The node id.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// Room taken, in units of 512 bytes.
    pub blocks: u64,
    /// The best transfer size, in bytes.
    pub block_size: u32,
    /// Last access.
    pub atime: SystemTime,
    /// Last change of the content.
    pub mtime: SystemTime,
    /// Last change of content or attributes.
    pub ctime: SystemTime,
    /// When it was made, where the filesystem tells.
    pub birth: Option<SystemTime>,
    /// What it is.
    pub kind: FileKind,
    /// Permission bits, with set-user-id, set-group-id and sticky; no type bits.
    pub mode: u32,
    /// Names it has.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device it stands for, as the kernel packs it into 32 bits.
    pub rdev: u32,
}

impl Attributes {
    pub(super) fn new(status: &Statx, id: u64) -> Self {
        let mode = u32::from(status.stx_mode);
        let rdev = rustix::fs::makedev(status.stx_rdev_major, status.stx_rdev_minor);
        Self {
            ino: id,
            size: status.stx_size,
            blocks: status.stx_blocks,
            block_size: status.stx_blksize,
            atime: time_of(status.stx_atime),
            mtime: time_of(status.stx_mtime),
            ctime: time_of(status.stx_ctime),
            birth: (status.stx_mask & StatxFlags::BTIME.bits() != 0)
                .then(|| time_of(status.stx_btime)),
            // No filesystem has inodes of another type; examine() refuses them.
            kind: FileKind::of_mode(mode).unwrap_or(FileKind::Regular),
            mode: mode & 0o7777,
            nlink: status.stx_nlink,
            uid: status.stx_uid,
            gid: status.stx_gid,
            // 12 bits of major and 20 of minor number: the low half is the kernel's new_encode_dev.
            rdev: (rdev & u64::from(u32::MAX)) as u32,
        }
    }
}

/// A name's inode, as found by a lookup.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Entry {
    /// Node id: the inode number, 1 for the root.
    pub id: u64,
    /// Differs between two inodes that had the same number one after the other; 0 where that cannot
    /// be told.
    pub generation: u64,
    /// What stat(2) tells about it.
    pub attributes: Attributes,
}

pub use crate::engine::FileKey;

/// How a file is opened.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Access {
    /// For reading.
    ReadOnly,
    /// For reading and writing.
    ReadWrite,
}

/// A new value for a timestamp.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TimeChange {
    /// As it is (UTIME_OMIT).
    Keep,
    /// The filesystem's present time (UTIME_NOW).
    Now,
    /// This time.
    At(SystemTime),
}

/// The room in a filesystem, as statvfs(3) tells it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Space {
    /// In units of `fragment_size`.
    pub blocks: u64,
    /// Free, root's reserve included.
    pub blocks_free: u64,
    /// Free for everyone.
    pub blocks_available: u64,
    /// Inodes.
    pub files: u64,
    /// Free inodes.
    pub files_free: u64,
    /// The best transfer size, in bytes.
    pub block_size: u32,
    /// The unit of the counts, in bytes.
    pub fragment_size: u32,
    /// The longest name, in bytes.
    pub name_bytes_max: u32,
}

impl Space {
    pub(super) fn new(status: &StatVfs) -> Self {
        let narrow = |value: u64| u32::try_from(value).unwrap_or(u32::MAX);
        Self {
            blocks: status.f_blocks,
            blocks_free: status.f_bfree,
            blocks_available: status.f_bavail,
            files: status.f_files,
            files_free: status.f_ffree,
            block_size: narrow(status.f_bsize),
            fragment_size: narrow(status.f_frsize),
            name_bytes_max: narrow(status.f_namemax),
        }
    }
}

/// A kernel timestamp, which may lie before 1970: then its nanoseconds still count forward.
fn time_of(timestamp: StatxTimestamp) -> SystemTime {
    let seconds = Duration::from_secs(timestamp.tv_sec.unsigned_abs());
    let start = if timestamp.tv_sec < 0 {
        UNIX_EPOCH.checked_sub(seconds)
    } else {
        UNIX_EPOCH.checked_add(seconds)
    };
    let nanoseconds = Duration::from_nanos(u64::from(timestamp.tv_nsec));
    start.and_then(|start| start.checked_add(nanoseconds)).unwrap_or(UNIX_EPOCH)
}
