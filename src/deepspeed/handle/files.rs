//! Opening files as DeepSpeed does, and the two small things that are not for the device: a write's
//! unaligned edges, and validation.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, LazyLock, Weak};

use parking_lot::{Condvar, Mutex};
use rustix::fs::{FileType, Mode, OFlags};

use super::error::{Direction, ErrorKind, Failure};
use crate::aio::device::BackingFile;
use crate::aio::file::{DiskFile, errno, uninterrupted};
use crate::aio::probe::stated_alignment;
use crate::error::{Errno, Result};

/// Alignment of direct transfers where the filesystem does not say, and the largest that is dealt
/// with; what wants more is transferred through the page cache.
const ALIGNMENT: usize = 4096;

/// Bytes compared at once.
const COMPARED_BYTES: usize = 1 << 20;

/// A file of an operation.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) file: Arc<DiskFile>,
    /// Bytes; 1 when it is not open for direct transfers.
    pub(super) alignment: usize,
    /// Bytes of a regular file.
    pub(super) size: Option<u64>,
    inode: Inode,
}

impl Opened {
    fn new(descriptor: OwnedFd) -> Result<Self> {
        let stat = rustix::fs::fstat(&descriptor).map_err(errno)?;
        let direct = rustix::fs::fcntl_getfl(&descriptor).map_err(errno)?.contains(OFlags::DIRECT);
        let mut alignment = 1;
        let descriptor = match direct.then(|| stated_alignment(descriptor.as_fd())) {
            None => descriptor,
            Some(None) => {
                alignment = ALIGNMENT;
                descriptor
            }
            Some(Some((memory, offset))) if offset > 0 && memory.max(offset) <= ALIGNMENT => {
                alignment = memory.max(offset).max(512);
                descriptor
            }
            // The filesystem takes the flag but does no direct transfers, or needs too much for them.
            Some(Some(_)) => reopen(descriptor.as_fd(), OFlags::empty())?,
        };
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(Self {
            file: Arc::new(DiskFile::new(descriptor)?),
            alignment,
            size: regular.then(|| stat.st_size.cast_unsigned()),
            inode: (stat.st_dev, stat.st_ino),
        })
    }

    /// The same file through the page cache.
    pub(super) fn buffered(&self) -> Result<OwnedFd> {
        reopen(self.file.as_fd(), OFlags::empty())
    }

    /// Keeps edges off this file's pages.
    pub(super) fn keep_edges_off(&self) -> PageUser {
        PageUser::new(self.inode)
    }

    /// Writes the edges (each at its offset in the file) through the page cache: exactly these bytes,
    /// which neither pads the file nor reads what is around them. Waits until no direct transfer of
    /// this process is under way in the same pages.
    pub(super) fn write_edges(
        &self, edges: [(u64, &[u8]); 2],
    ) -> std::result::Result<u64, Failure> {
        if edges.iter().all(|(_, bytes)| bytes.is_empty()) {
            return Ok(0);
        }
        let file = self.buffered().map_err(ErrorKind::Open)?;
        let pages = Pages::of(self.inode);
        let mut users = pages.users.lock();
        while *users > 0 {
            pages.left.wait(&mut users);
        }
        let mut moved = 0;
        for (mut at, mut bytes) in edges {
            while !bytes.is_empty() {
                let kind = match uninterrupted(|| rustix::io::pwrite(&file, bytes, at)) {
                    Ok(0) => ErrorKind::Short { at },
                    Err(errno) => ErrorKind::Transfer { at, errno },
                    Ok(written) => {
                        bytes = &bytes[written..];
                        at += written as u64;
                        moved += written as u64;
                        continue;
                    }
                };
                return Err(Failure { moved, kind });
            }
        }
        Ok(moved)
    }
}

/// Another description of an open file with the same access, without O_DIRECT and O_APPEND unless in
/// `extra`.
pub(super) fn reopen(file: BorrowedFd<'_>, extra: OFlags) -> Result<OwnedFd> {
    let flags = rustix::fs::fcntl_getfl(file).map_err(errno)?;
    let access = flags & OFlags::ACCMODE;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    open(Path::new(&path), access | extra)
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd> {
    let mode = Mode::RUSR | Mode::WUSR;
    uninterrupted(|| rustix::fs::open(path, flags | OFlags::CLOEXEC, mode))
}

/// Opens by path: a file to write is created with mode 0600 and never truncated, one to read is looked at
/// first. With O_DIRECT, and without where that is EINVAL.
pub(super) fn open_path(
    path: &Path, direction: Direction,
) -> std::result::Result<Opened, ErrorKind> {
    let flags = match direction {
        Direction::Write => OFlags::WRONLY | OFlags::CREATE,
        Direction::Read => {
            let stat = uninterrupted(|| rustix::fs::stat(path)).map_err(ErrorKind::Stat)?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                return Err(ErrorKind::Open(Errno::EISDIR));
            }
            OFlags::RDONLY
        }
    };
    let descriptor = match open(path, flags | OFlags::DIRECT) {
        Err(Errno::EINVAL) => open(path, flags),
        result => result,
    };
    descriptor.and_then(Opened::new).map_err(ErrorKind::Open)
}

/// A second descriptor of the caller's file, direct if that is.
pub(super) fn open_descriptor(
    descriptor: BorrowedFd<'_>, direction: Direction,
) -> std::result::Result<Opened, ErrorKind> {
    let flags =
        rustix::fs::fcntl_getfl(descriptor).map_err(|error| ErrorKind::Stat(errno(error)))?;
    let access = flags & OFlags::ACCMODE;
    let wrong = match direction {
        Direction::Read => OFlags::WRONLY,
        Direction::Write => OFlags::RDONLY,
    };
    if access == wrong || flags.contains(OFlags::PATH) {
        return Err(ErrorKind::Open(Errno::EBADF));
    }
    // With O_APPEND the kernel would put each transfer at the end, whatever its offset.
    let second = if flags.contains(OFlags::APPEND) {
        reopen(descriptor, flags & OFlags::DIRECT)
    } else {
        descriptor.try_clone_to_owned().map_err(|error| crate::error::errno_of(&error))
    };
    second.and_then(Opened::new).map_err(ErrorKind::Open)
}

/// Reads the file through the page cache and compares. Blocks.
pub(super) fn validate(
    path: &Path, offset: u64, bytes: &[u8],
) -> std::result::Result<(), ErrorKind> {
    let file = open(path, OFlags::RDONLY).map_err(ErrorKind::Validation)?;
    let mut block = vec![0; COMPARED_BYTES.min(bytes.len())];
    let mut at = offset;
    let mut left = bytes;
    while !left.is_empty() {
        let wanted = block.len().min(left.len());
        let read = uninterrupted(|| rustix::io::pread(&file, &mut block[..wanted], at))
            .map_err(ErrorKind::Validation)?;
        let same = block[..read].iter().zip(left).take_while(|(one, other)| one == other).count();
        if read == 0 || same < read {
            let at = at + same as u64;
            return Err(ErrorKind::Mismatch { at });
        }
        left = &left[read..];
        at += read as u64;
    }
    Ok(())
}

/// Direct transfers of a file that may lie in the same pages as edges of other operations. The two must
/// not meet: writing the page back would undo the direct one.
#[derive(Debug, Default)]
struct Pages {
    users: Mutex<usize>,
    left: Condvar,
}

/// Device and inode.
type Inode = (u64, u64);

/// Of the whole process.
static PAGES: LazyLock<Mutex<HashMap<Inode, Weak<Pages>>>> = LazyLock::new(Mutex::default);

impl Pages {
    fn of(inode: Inode) -> Arc<Self> {
        let mut all = PAGES.lock();
        if let Some(pages) = all.get(&inode).and_then(Weak::upgrade) {
            return pages;
        }
        all.retain(|_, pages| pages.strong_count() > 0);
        let pages = Arc::new(Self::default());
        all.insert(inode, Arc::downgrade(&pages));
        pages
    }
}

/// One operation with such transfers, as long as it exists.
#[derive(Debug)]
pub(super) struct PageUser(Arc<Pages>);

impl PageUser {
    fn new(inode: Inode) -> Self {
        let pages = Pages::of(inode);
        *pages.users.lock() += 1;
        Self(pages)
    }
}

impl Drop for PageUser {
    fn drop(&mut self) {
        *self.0.users.lock() -= 1;
        self.0.left.notify_all();
    }
}

impl Opened {
    /// For the device.
    pub(super) fn backing(&self) -> Arc<dyn BackingFile> {
        Arc::clone(&self.file) as Arc<dyn BackingFile>
    }
}
