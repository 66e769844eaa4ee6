//! From a node id to a descriptor, and from a name to a node.

use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags, ResolveFlags, Statx};

use super::table::{Node, Reach};
use super::types::{FileKey, FileKind};
use super::{ITSELF, NAME_BYTES_MAX, PRIVATE_NAME, ROOT_ID, STATUS_MASK, Tree};
use crate::error::{Errno, Result};
use crate::file_clock;
use crate::sys::{self, errno};

/// How a node's own descriptor is opened: a place in the tree, without a right to its bytes.
const PLACE: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// An inode of the swap folder, open.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) node: Node,
    /// O_PATH.
    pub(super) descriptor: OwnedFd,
    pub(super) status: Statx,
}

impl Tree {
    /// A descriptor (O_PATH) of `id`'s inode.
    pub(super) fn descriptor(&self, id: u64) -> Result<Arc<OwnedFd>> {
        self.reach(id).map(|(_, descriptor)| descriptor)
    }

    /// `id`'s node and a descriptor (O_PATH) of its inode. Holding it keeps it open.
    pub(super) fn reach(&self, id: u64) -> Result<(Arc<Node>, Arc<OwnedFd>)> {
        let reach = self.table.lock().reach(id);
        match reach.ok_or(Errno::ESTALE)? {
            Reach::Open(node, descriptor) => Ok((node, descriptor)),
            Reach::Closed(node) => {
                let descriptor = match self.reopen(&node) {
                    Ok(descriptor) => Arc::new(descriptor),
                    Err(error) => return self.opened_meanwhile(id, error),
                };
                // Bound to a name, so that what it closes is closed after the lock is gone.
                let _displaced = self.table.lock().reopened(&node, descriptor.clone());
                Ok((node, descriptor))
            }
        }
    }

    /// `id`'s node and descriptor, if another thread has entered one since: an inode that loses its
    /// name is pinned, and no longer found by that name.
    fn opened_meanwhile(&self, id: u64, error: Errno) -> Result<(Arc<Node>, Arc<OwnedFd>)> {
        match self.table.lock().reach(id) {
            Some(Reach::Open(node, descriptor)) => Ok((node, descriptor)),
            Some(Reach::Closed(_)) | None => Err(error),
        }
    }

    /// Opens the inode of a node whose descriptor was closed. Never another one.
    fn reopen(&self, node: &Node) -> Result<OwnedFd> {
        if self.opens_handles
            && let Some(handle) = &node.handle
            && let Ok(descriptor) = sys::open_by_handle_at(&self.mount, handle, PLACE)
        {
            let status = status_of(&descriptor)?;
            if device_of(&status) == node.key.dev && status.stx_ino == node.key.ino {
                return Ok(descriptor);
            }
        }
        self.walk(node).map_err(|error| match error {
            // What stands in the way now is not what led to the inode.
            Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV => Errno::ESTALE,
            error => error,
        })
    }

    /// Opens a node's inode by the names it was last seen under.
    fn walk(&self, node: &Node) -> Result<OwnedFd> {
        let _still = self.moves.walking();
        let way = self.table.lock().way_to(node.id);
        let (start, names) = way.ok_or(Errno::ESTALE)?;
        let (last, directories) = names.split_last().ok_or(Errno::ESTALE)?;
        let mut directory: Option<OwnedFd> = None;
        for name in directories {
            let above = directory.as_ref().map_or(start.as_fd(), AsFd::as_fd);
            directory = Some(open_place(above, name)?);
        }
        let found = self.find(directory.as_ref().map_or(start.as_fd(), AsFd::as_fd), last)?;
        if found.node.is_same(node) { Ok(found.descriptor) } else { Err(Errno::ESTALE) }
    }

    /// Opens and examines what `name` is in `directory`.
    pub(super) fn find(&self, directory: BorrowedFd<'_>, name: &OsStr) -> Result<Found> {
        self.examine(open_place(directory, name)?)
    }

    /// Tells which inode an O_PATH descriptor is of.
    pub(super) fn examine(&self, descriptor: OwnedFd) -> Result<Found> {
        let (node, status) = self.identify(&descriptor)?;
        Ok(Found { node, descriptor, status })
    }

    /// Tells which inode a descriptor is of.
    pub(super) fn identify(&self, descriptor: &OwnedFd) -> Result<(Node, Statx)> {
        let status = status_of(descriptor)?;
        let dev = device_of(&status);
        if dev != self.root_dev {
            return Err(Errno::EXDEV);
        }
        let handle = match sys::name_to_handle_at(descriptor) {
            Ok(handle) => Some(handle),
            // Some filesystems have them for some inodes only.
            Err(Errno::EOPNOTSUPP | Errno::EOVERFLOW) => None,
            Err(_) if !self.has_handles => None,
            Err(error) => return Err(error),
        };
        // The same for every user of a swap folder, whether or not this daemon may open files by their handles.
        let generation = sys::generation(handle.as_ref(), &status);
        let handle = handle.filter(|_| self.has_handles);
        let node = Node {
            id: self.id_of(status.stx_ino),
            key: FileKey { dev, ino: status.stx_ino, generation },
            kind: FileKind::of_mode(u32::from(status.stx_mode)).ok_or(Errno::EIO)?,
            handle,
        };
        Ok((node, status))
    }

    /// Refuses names that cannot exist.
    pub(super) fn check_existing(&self, parent: u64, name: &OsStr) -> Result<()> {
        check_name(name)?;
        if is_private(parent, name) { Err(Errno::ENOENT) } else { Ok(()) }
    }

    /// Refuses names that cannot be made.
    pub(super) fn check_new(&self, parent: u64, name: &OsStr) -> Result<()> {
        check_name(name)?;
        if is_private(parent, name) { Err(Errno::EPERM) } else { Ok(()) }
    }
}

/// Whether it is the name of swapfs's own state.
pub(super) fn is_private(parent: u64, name: &OsStr) -> bool {
    parent == ROOT_ID && name == PRIVATE_NAME
}

/// Refuses what is not a single component of a path.
fn check_name(name: &OsStr) -> Result<()> {
    let bytes = name.as_bytes();
    if bytes.len() > NAME_BYTES_MAX {
        return Err(Errno::ENAMETOOLONG);
    }
    if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') || bytes.contains(&0) {
        return Err(Errno::EINVAL);
    }
    Ok(())
}

/// Opens one component below `directory` as a place.
fn open_place(directory: BorrowedFd<'_>, name: &OsStr) -> Result<OwnedFd> {
    // Crossing into a mounted filesystem is refused by the kernel, before anything is asked of that
    // filesystem: it might be this very daemon's.
    match rustix::fs::openat2(directory, name, PLACE, Mode::empty(), ResolveFlags::NO_XDEV) {
        // Older kernels, and sandboxes that do not know the call: examine() compares the devices.
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::PERM) => {
            rustix::fs::openat(directory, name, PLACE, Mode::empty())
        }
        outcome => outcome,
    }
    .map_err(errno)
}

/// statx(2) of the descriptor itself.
pub(super) fn status_of(descriptor: impl AsFd) -> Result<Statx> {
    let status = rustix::fs::statx(descriptor, c"", ITSELF, STATUS_MASK).map_err(errno)?;
    file_clock::saw(status.stx_ctime.tv_sec, status.stx_ctime.tv_nsec);
    Ok(status)
}

/// Has the clock that stamps writes know when this directory was changed: by us, just now.
pub(super) fn note_time(directory: impl AsFd) {
    let _ = status_of(directory);
}

/// The device number of the filesystem an inode is on.
pub(super) fn device_of(status: &Statx) -> u64 {
    rustix::fs::makedev(status.stx_dev_major, status.stx_dev_minor)
}
