//! The namespace: which names exist, which inode each means, and everything stat(2) tells about it.
//!
//! All of it is the swap folder's own. A [`Tree`] gives the folder's inodes numbers that stay the
//! same across rename and hard links, and reaches them through O_PATH descriptors, one name at a
//! time, never through a path: no symlink, mount or rename by someone else can lead out of the
//! folder. Bytes are not its business: [`Tree::open_file`] and [`Tree::create`] hand out
//! descriptors for them.
//!
//! # Descriptors
//!
//! At most `descriptors_max` inodes keep theirs, the ones used last. The others are opened again on
//! use: by file handle where the kernel allows it, else by the name they were last seen under. An
//! inode that could not be opened again (the root, one without a name) is pinned: its descriptor
//! stays, within the share of the user who removed it. All handles of a directory have one descriptor. Some descriptors of the process are spared for calls that need one for a moment: files and directories
//! are not opened with them, and no inode keeps one.
//!
//! # Locks
//!
//! 1. [`Directory`]'s position, held while its entries are handed out, then its descriptor's, held while names are read;
//! 2. the stripes of [`Tree`]'s `moves`, in ascending order: held from finding a name to entering
//!    what it is, and around what takes a name away;
//! 3. the walks of `moves`, held while a node is sought by its names, and around what changes them;
//! 4. [`Tree`]'s node table, held for lookups in memory only: no system call is made and no
//!    descriptor closed (closing the last one of a deleted file frees its blocks) under it;
//! 5. the table of open directories, and who has each of them open.
//!
//! In this order. The last two are never held while another of these is taken.

mod access_check;
mod change;
mod create;
mod directory;
mod moves;
mod reach;
mod remove;
mod table;
#[cfg(test)]
mod tests;
mod types;
mod xattr;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;
use rustix::fs::{AtFlags, Mode, OFlags, Statx, StatxFlags};

use crate::error::{Errno, Result};
use crate::shares::Bounds;
use crate::sys::{self, errno};
use directory::OpenDirectories;
use moves::Moves;
use reach::Found;
use table::{Hint, Node, Table};

pub use access_check::AccessCheck;
pub use create::Created;
pub use directory::{Directory, Listed};
pub use remove::{Gone, RenameKind};
pub use table::Forgotten;
pub use types::{Access, Attributes, Caller, Entry, FileKey, FileKind, Space, TimeChange};
pub use xattr::XattrMode;

/// The node id of the swap folder itself.
pub const ROOT_ID: u64 = 1;

/// The name in the root that is not part of the presented tree: swapfs keeps its own state there.
pub const PRIVATE_NAME: &str = ".swapfs";

/// The longest name, in bytes (NAME_MAX).
const NAME_BYTES_MAX: usize = 255;

/// Descriptors of the process that what stays open may not take: every call needs one or two for a moment, and without
/// any nobody could remove or rename a file.
const SPARE_DESCRIPTORS: u64 = 64;

/// What [`Tree::new`] lets one choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// How many inodes may keep a descriptor open while nobody uses them.
    pub descriptors_max: usize,
    /// Inodes are opened again by file handle where the kernel allows it. Off: by name only.
    pub handles: bool,
    /// What each user may have open.
    pub bounds: Arc<Bounds>,
}

impl Default for Options {
    fn default() -> Self {
        let bounds = Bounds::new(1 << 20, 0);
        Self { descriptors_max: 4000, handles: true, bounds }
    }
}

/// The swap folder as a tree of numbered inodes.
///
/// Every call may be made from any thread at any time. Ids come from [`Tree::lookup`] and the
/// creating calls, each of which counts one lookup, and stay known until [`Tree::forget`] has taken
/// as many back. An id that is not known, or whose inode is gone from the swap folder, fails with
/// ESTALE in every call.
#[derive(Debug)]
pub struct Tree {
    /// Not an O_PATH descriptor: open_by_handle_at and fsync refuse those.
    mount: OwnedFd,
    root_dev: u64,
    root_ino: u64,
    /// The filesystem gives file handles: they tell a reused inode number from the old one.
    has_handles: bool,
    /// Handles can be opened again: the filesystem and this process's capabilities allow it.
    opens_handles: bool,
    /// The user and group this process creates files for by itself, when it may create them for
    /// others too.
    switches_owner_from: Option<(u32, u32)>,
    /// Where the spare descriptors begin. The kernel gives the lowest free number: whoever gets this one or a higher
    /// one has taken a spare one.
    spare_from: RawFd,
    bounds: Arc<Bounds>,
    /// Directories that are open; lock 5 of the module's order.
    open_directories: OpenDirectories,
    /// Locks 2 and 3 of the module's order.
    moves: Moves,
    /// Lock 4 of the module's order.
    table: Mutex<Table>,
}

impl Tree {
    /// The tree below `root`, a descriptor of the swap folder (O_PATH or not). The process's umask
    /// must be 0 while the tree is in use: modes are complete when they get here.
    ///
    /// # Errors
    /// ENOTDIR when `root` is no directory, else what opening or examining it fails with.
    pub fn new(root: OwnedFd, options: Options) -> Result<Self> {
        let directory = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = |flags| rustix::fs::openat(&root, c".", directory | flags, Mode::empty());
        let mount = open(OFlags::RDONLY).map_err(errno)?;
        let path = open(OFlags::PATH).map_err(errno)?;
        let status = reach::status_of(&path)?;
        let handle = sys::name_to_handle_at(&path).ok();
        let opens_handles = options.handles
            && handle
                .as_ref()
                .is_some_and(|handle| sys::open_by_handle_at(&mount, handle, OFlags::PATH).is_ok());
        let root_dev = reach::device_of(&status);
        let spare_from = spare_from();
        let tree = Self {
            mount,
            root_dev,
            root_ino: status.stx_ino,
            has_handles: handle.is_some(),
            opens_handles,
            switches_owner_from: own_owner(),
            spare_from,
            bounds: options.bounds,
            open_directories: OpenDirectories::default(),
            moves: Moves::new(!opens_handles),
            table: Mutex::new(Table::new(options.descriptors_max, spare_from)),
        };
        let found = tree.examine(path)?;
        tree.table.lock().install_root(Arc::new(found.node), Arc::new(found.descriptor));
        Ok(tree)
    }

    /// Finds `name` in the directory `parent` and counts one lookup of what it is.
    ///
    /// # Errors
    /// ENOENT; EINVAL for "", ".", ".." and names with a slash; ENAMETOOLONG; EXDEV for a
    /// filesystem mounted inside the swap folder; ENOTDIR.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Entry> {
        self.check_existing(parent, name)?;
        let directory = self.descriptor(parent)?;
        let _naming = self.moves.naming(parent);
        let found = self.find(directory.as_fd(), name)?;
        Ok(self.adopt(found, Hint::new(parent, name)))
    }

    /// Takes `count` lookups of `id` back. With the last one the id becomes unknown, and its
    /// inode's identity is returned. The root stays.
    pub fn forget(&self, id: u64, count: u64) -> Option<FileKey> {
        self.forget_for_now(id, count).map(|forgotten| forgotten.node.key)
    }

    /// As [`Tree::forget`], but the inode's descriptor is closed with the result: the last one of a removed file
    /// frees its blocks, which takes longer than a small request.
    pub fn forget_for_now(&self, id: u64, count: u64) -> Option<Forgotten> {
        self.table.lock().forget(id, count)
    }

    /// What stat(2) tells about `id`, from the swap folder.
    ///
    /// # Errors
    /// ESTALE.
    pub fn attributes(&self, id: u64) -> Result<Attributes> {
        self.attributes_of(self.descriptor(id)?.as_fd())
    }

    /// What a name means in the swap folder now, and when that inode was changed last. Counts no lookup.
    ///
    /// # Errors
    /// ENOENT; ESTALE; EXDEV.
    pub fn glance(&self, parent: u64, name: &OsStr) -> Result<(FileKey, SystemTime)> {
        let found = self.find(self.descriptor(parent)?.as_fd(), name)?;
        let ctime = Attributes::new(&found.status, found.node.id).ctime;
        Ok((found.node.key, ctime))
    }

    /// What fstat(2) tells about an open file of this tree.
    ///
    /// # Errors
    /// What statx(2) fails with.
    pub fn attributes_of(&self, descriptor: impl AsFd) -> Result<Attributes> {
        let status = reach::status_of(descriptor)?;
        Ok(Attributes::new(&status, self.id_of(status.stx_ino)))
    }

    /// The identity of `id`'s inode in the swap folder.
    ///
    /// # Errors
    /// ESTALE.
    pub fn key(&self, id: u64) -> Result<FileKey> {
        self.table.lock().node(id).map(|node| node.key).ok_or(Errno::ESTALE)
    }

    /// The id under which the inode with this identity is known now.
    #[must_use]
    pub fn id_of_key(&self, key: &FileKey) -> Option<u64> {
        let id = self.id_of(key.ino);
        self.table.lock().node(id).filter(|node| node.key == *key).map(|_| id)
    }

    /// Returns true for an inode that has lost its last name and that nobody had a share left to keep: what was known
    /// of it is gone.
    #[must_use]
    pub fn is_abandoned(&self, id: u64) -> bool {
        self.table.lock().is_abandoned(id)
    }

    /// The path of an id below the swap folder, by the names it was last seen under: for messages, not to
    /// reach it. Empty for the root; `#ID` stands for what has no name.
    #[must_use]
    pub fn path_of(&self, id: u64) -> PathBuf {
        let names = self.table.lock().names_to(id);
        names.map_or_else(|| format!("#{id}").into(), |names| names.into_iter().collect())
    }

    /// The directory in the root that an id lies below, by the names it was last seen under; `None` for what
    /// lies in the root itself, or has no name.
    #[must_use]
    pub fn top_of(&self, id: u64) -> Option<OsString> {
        self.table.lock().top_of(id)
    }

    /// How many inodes are known now, the root included.
    #[must_use]
    pub fn known_count(&self) -> usize {
        self.table.lock().len()
    }

    /// Some inodes that are known now, at most `count`; each time the next ones.
    #[must_use]
    pub fn some(&self, count: usize) -> Vec<u64> {
        if count == 0 { Vec::new() } else { self.table.lock().some(count) }
    }

    /// The room in the swap folder's filesystem.
    ///
    /// # Errors
    /// What fstatvfs(3) fails with.
    pub fn space(&self) -> Result<Space> {
        rustix::fs::fstatvfs(&self.mount).map(|status| Space::new(&status)).map_err(errno)
    }

    /// Waits until everything the swap folder's filesystem holds in memory is on stable storage
    /// (syncfs(2)).
    ///
    /// # Errors
    /// EIO and its like, when some of it could not be written.
    pub fn synchronize(&self) -> Result<()> {
        rustix::fs::syncfs(&self.mount).map_err(errno)
    }

    /// A descriptor that is to stay open.
    ///
    /// EMFILE for a spare one.
    fn keep(&self, descriptor: OwnedFd) -> Result<OwnedFd> {
        match descriptor.as_raw_fd() < self.spare_from {
            true => Ok(descriptor),
            false => Err(Errno::EMFILE),
        }
    }

    /// Fails as [`keep`](Self::keep) would with the next descriptor.
    fn check_room(&self) -> Result<()> {
        let next = rustix::io::fcntl_dupfd_cloexec(&self.mount, 0).map_err(errno)?;
        self.keep(next).map(drop)
    }

    fn id_of(&self, ino: u64) -> u64 {
        id_of(self.root_ino, ino)
    }

    /// Enters what a lookup found into the table; its lookup count grows by one.
    fn adopt(&self, found: Found, hint: Hint) -> Entry {
        let Found { node, descriptor, status } = found;
        self.enter(node, Some(Arc::new(descriptor)), &status, hint)
    }

    /// As [`Tree::adopt`]; without a descriptor the inode is opened when it is first reached.
    fn enter(
        &self, node: Node, descriptor: Option<Arc<OwnedFd>>, status: &Statx, hint: Hint,
    ) -> Entry {
        let id = node.id;
        let generation = node.key.generation;
        let attributes = Attributes::new(status, id);
        // Bound to a name, so that what it closes is closed after the lock is gone.
        let _displaced = self.table.lock().adopt(node, descriptor, hint, status.stx_nlink);
        Entry { id, generation, attributes }
    }
}

/// See [`Tree`]'s field of this name.
fn spare_from() -> RawFd {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    // With very few there is nothing to spare.
    let limit = limit.filter(|limit| *limit >= 4 * SPARE_DESCRIPTORS);
    let from = limit.and_then(|limit| RawFd::try_from(limit - SPARE_DESCRIPTORS).ok());
    from.unwrap_or(RawFd::MAX)
}

/// The node id that goes with an inode number: the same, but the root's is always 1.
fn id_of(root_ino: u64, ino: u64) -> u64 {
    match ino {
        ino if ino == root_ino => ROOT_ID,
        ROOT_ID => root_ino,
        ino => ino,
    }
}

/// This process's user and group, if it is root's and so may act as others.
fn own_owner() -> Option<(u32, u32)> {
    let uid = rustix::process::geteuid();
    uid.is_root().then(|| (uid.as_raw(), rustix::process::getegid().as_raw()))
}

/// The magic link that stands for an open descriptor: calls that want a path, or a descriptor that
/// is not an O_PATH one, reach the very same inode through it.
fn link_of(descriptor: impl AsFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}

/// What statx(2) is asked for: everything that stat(2) tells.
const STATUS_MASK: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME);

/// With an empty path: the descriptor itself.
const ITSELF: AtFlags = AtFlags::EMPTY_PATH;
