//! The presented tree: names from the swap folder, bytes from the engine.
//!
//! [`Volume`] is what a transport serves. It answers with plain values and knows no transport; calls
//! that may have to wait take a closure for their answer and never block on a transfer.
#![doc = include_str!("volume/DESIGN.md")]

mod control;
mod directories;
mod metrics;
mod partitions;
mod privilege;
mod request;
mod rights;
mod walk;
mod walks;
mod xattr;

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use parking_lot::Mutex;

use crate::aio::device::BackingFile;
use crate::aio::file::DiskFile;
use crate::engine::{Engine, FileKey, HandleId, Overlay, Reply};
use crate::error::{Errno, Result};
use crate::file_clock;
use crate::fs::{
    Access, Attributes, Caller, Entry, FileKind, Forgotten, Gone, RenameKind, TimeChange, Tree,
};
use crate::ledger::Ledger;
use crate::metrics::{Watch, Wear};
use crate::shares::User;

use directories::Directories;
use walks::Walks;

pub use control::{CONTROL_NAME, ControlNode};
pub use metrics::metric_definitions;
pub use request::{FOLDER_REQUESTS, PARTITION_REQUESTS, ROOT_REQUESTS};
pub use rights::Asker;
pub use xattr::{
    CAPABILITY_NAME, PARTITION_NAMES, REQUEST_NAME, ROOT_NAMES, SWAP_PREFIX, WAIT_NAME, XattrAnswer,
};

/// How a volume presents itself, fixed at start.
#[derive(Debug, Clone)]
pub struct VolumeOptions {
    /// Absolute path of the swap folder.
    pub swap_folder: PathBuf,
    /// Absolute path of the mountpoint.
    pub mountpoint: PathBuf,
    /// Whether the backing files can be opened with O_DIRECT.
    pub direct: bool,
    /// Partitions smaller than this many bytes count as not swappable.
    pub min_swap_size: u64,
    /// `user.swap.*` names appear in listxattr.
    pub list_xattr: bool,
    /// close waits until everything is in the swap folder.
    pub close_wait: bool,
    /// The configuration in force, for `config.json`.
    pub config: serde_json::Value,
}

/// What st_blksize recommends for partitions: programs that size their buffers by it then make one
/// request where they would make thirty-two.
const PREFERRED_IO_BYTES: u32 = 128 * 1024;

/// What of a node the kernel is to forget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stale {
    /// Its attributes. Waits for nothing: may be told while a request is answered.
    Attributes,
    /// Its pages too. Waits for the node's lock and writeback: not to be told where requests are answered.
    Everything,
}

/// Makes the kernel forget what it has cached of a node.
pub type Forgetting = Box<dyn Fn(u64, Stale) + Send + Sync>;

struct Invalidate(Forgetting);

impl std::fmt::Debug for Invalidate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Invalidate")
    }
}

/// A mounted swap folder.
#[derive(Debug)]
pub struct Volume {
    /// The names.
    pub tree: Tree,
    /// The bytes.
    pub engine: Arc<Engine>,
    /// What clients ask for.
    pub watch: Arc<Watch>,
    /// What is known of the bytes in the swap folder, where that is kept.
    pub ledger: Option<Arc<Ledger>>,
    options: VolumeOptions,
    directories: Directories,
    /// What the swap folder's device was written to; set once, at start.
    wear: OnceLock<Wear>,
    /// Tells the kernel to forget what it has cached of a node.
    invalidate: OnceLock<Invalidate>,
    /// Why names and records could not be stored, when that was tried last.
    unsynchronized: Mutex<Option<Errno>>,
    /// Requests on folders under way.
    walks: Arc<Walks>,
}

/// An answer that may come later, on another thread.
pub type Answer<T> = Box<dyn FnOnce(Result<T>) + Send>;

/// How a partition is created.
#[derive(Debug, Clone, Copy)]
pub struct Creation {
    /// Permission bits.
    pub mode: u32,
    /// Not one that is there already.
    pub exclusive: bool,
    /// Open for reading, too.
    pub read: bool,
}

/// What setattr may change; `None` leaves a value as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Changes {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Time of last access.
    pub atime: Option<TimeChange>,
    /// Time of last modification.
    pub mtime: Option<TimeChange>,
    /// With a size: the set-id bits go that do not stay for this asker, who has not CAP_FSETID.
    pub drop_privileges: Option<Asker>,
}

impl Changes {
    /// Returns true when more changes than the size.
    fn has_attributes(&self) -> bool {
        let owner_and_mode = self.uid.or(self.gid).or(self.mode);
        owner_and_mode.is_some() || self.atime.or(self.mtime).is_some()
    }
}

impl Volume {
    /// Joins names and bytes.
    #[must_use]
    pub fn new(
        tree: Tree, engine: Arc<Engine>, ledger: Option<Arc<Ledger>>, options: VolumeOptions,
    ) -> Arc<Volume> {
        Arc::new(Volume {
            tree,
            engine,
            watch: Arc::default(),
            ledger,
            options,
            directories: Directories::new(),
            wear: OnceLock::new(),
            invalidate: OnceLock::new(),
            unsynchronized: Mutex::new(None),
            walks: Arc::default(),
        })
    }

    /// Looks a name up and counts it, with the attributes as they are on the mount.
    ///
    /// # Errors
    /// As [`Tree::lookup`].
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Entry> {
        if let Some(node) = ControlNode::of_name(parent, name) {
            return node.map(|node| self.control_entry(node));
        }
        let mut entry = self.tree.lookup(parent, name)?;
        self.present(&mut entry);
        Ok(entry)
    }

    /// Corrects a fresh entry's attributes by what is only in the pool.
    pub fn present(&self, entry: &mut Entry) {
        if entry.attributes.kind == FileKind::Regular
            && let Ok(attributes) = self.attributes(entry.id)
        {
            entry.attributes = attributes;
        }
    }

    /// What stat(2) shows of any node, the control folder's included: size, blocks and time count what is only in the pool.
    ///
    /// # Errors
    /// ESTALE.
    pub fn attributes(&self, id: u64) -> Result<Attributes> {
        if let Some(node) = ControlNode::of_id(id) {
            return Ok(self.control_attributes(node));
        }
        let key = self.tree.key(id)?;
        // Asked before and after: what the engine settles in between is right in one of them.
        let before = self.engine.overlay(key);
        let mut attributes = self.tree.attributes(id)?;
        if attributes.kind != FileKind::Regular {
            return Ok(attributes);
        }
        prefer_large_io(&mut attributes);
        let mut changed = None;
        let after = self.engine.overlay(key).or(before);
        let has_time = |overlay: Option<Overlay>| overlay.is_some_and(|it| it.modified.is_some());
        if has_time(before) && !has_time(after) {
            // Settled in between: what was just read may still have the time of the last transfer.
            attributes = self.tree.attributes(id)?;
            prefer_large_io(&mut attributes);
        }
        if let Some(overlay) = after {
            attributes.size = overlay.size;
            attributes.blocks = attributes.blocks.saturating_sub(overlay.excess / 512);
            attributes.mtime = overlay.modified.unwrap_or(attributes.mtime);
            changed = overlay.changed;
        }
        attributes.ctime = match changed {
            Some(changed) => changed.of(attributes.ctime),
            None => self.shown_changed(key, attributes.ctime),
        };
        Ok(attributes)
    }

    /// The change time to show of a partition that the engine does not know better.
    fn shown_changed(&self, key: FileKey, backing: SystemTime) -> SystemTime {
        let ledger = self.ledger.as_ref();
        ledger.and_then(|ledger| ledger.shown_changed(key, backing)).unwrap_or(backing)
    }

    /// A call of the user's has changed attributes of a node in the swap folder.
    fn attributes_changed(&self, id: u64) {
        if let (Ok(key), Ok(now)) = (self.tree.key(id), self.tree.attributes(id)) {
            self.engine.attributes_changed(key, now.ctime);
        }
    }

    /// Opens a partition for a user and returns its handle.
    ///
    /// # Errors
    /// As [`Tree::open_file`]; EMFILE and ENFILE beyond the user's share; EIO when bytes of it were lost and `read` is asked for; ESTALE when it has
    /// neither a name nor a handle, and is not kept.
    pub fn open(&self, user: User, id: u64, read: bool, write: bool) -> Result<HandleId> {
        let key = self.tree.key(id)?;
        let mut is_new = false;
        let handle = self.engine.open_as(user, key, read, write, || {
            is_new = true;
            let access = if write { Access::ReadWrite } else { Access::ReadOnly };
            let descriptor = self.tree.open_file(id, access, self.options.direct)?;
            // What was dirty of it has been dropped.
            if self.tree.is_abandoned(id) && self.engine.info(key).is_none() {
                return Err(Errno::ESTALE);
            }
            self.backing_file(key, descriptor, write)
        })?;
        if is_new {
            self.count_for_directory(id, handle);
        }
        // Its last name may have gone before the engine knew it, and nobody would tell it again.
        if is_new && self.tree.attributes(id).is_ok_and(|now| now.nlink == 0) {
            self.lost_last_name(key, !self.tree.is_abandoned(id));
        }
        Ok(handle)
    }

    fn backing_file(
        &self, key: FileKey, descriptor: OwnedFd, writable: bool,
    ) -> Result<Arc<dyn BackingFile>> {
        match &self.ledger {
            Some(ledger) => ledger.file(key, descriptor),
            None => Ok(Arc::new(DiskFile::opened(descriptor, writable))),
        }
    }

    /// Creates a partition, or opens the one that is there unless `exclusive`; returns its handle and
    /// whether it is new.
    ///
    /// # Errors
    /// As [`Tree::create`]; EMFILE and ENFILE beyond the user's share.
    pub fn create(
        &self, user: User, parent: u64, name: &OsStr, caller: &Caller, how: Creation,
    ) -> Result<(Entry, HandleId, bool)> {
        ControlNode::refuse_name(parent, name)?;
        let Creation { mode, exclusive, read } = how;
        // Before anything is made.
        let admission = self.engine.admit(user)?;
        let moment = self.engine.moment();
        let made = self.tree.create(parent, name, caller, mode, exclusive, self.options.direct)?;
        let (mut entry, descriptor) = (made.entry, made.descriptor);
        let opened = self.tree.key(entry.id).and_then(|key| {
            let file = || self.backing_file(key, descriptor, true);
            match made.is_new {
                true => self.engine.open_new(admission, key, read, file()?, moment),
                false => self.engine.open_admitted(admission, key, read, true, file),
            }
        });
        match opened {
            Ok(handle) => {
                self.count_for_directory(entry.id, handle);
                match made.is_new {
                    true => prefer_large_io(&mut entry.attributes),
                    false => self.present(&mut entry),
                }
                Ok((entry, handle, made.is_new))
            }
            Err(errno) => {
                self.forget(entry.id, 1);
                Err(errno)
            }
        }
    }

    /// Makes a partition without a name and opens it; returns its handle, too. With `exclusive` it never gets a name.
    ///
    /// # Errors
    /// As [`Tree::create_unnamed`]; EMFILE and ENFILE beyond the user's share.
    pub fn create_unnamed(
        &self, user: User, parent: u64, caller: &Caller, how: Creation,
    ) -> Result<(Entry, HandleId)> {
        ControlNode::refuse(parent)?;
        let admission = self.engine.admit(user)?;
        let moment = self.engine.moment();
        let direct = self.options.direct;
        let made =
            self.tree.create_unnamed(user, parent, caller, how.mode, !how.exclusive, direct)?;
        let (mut entry, descriptor) = (made.entry, made.descriptor);
        let opened = self.tree.key(entry.id).and_then(|key| {
            let file = self.backing_file(key, descriptor, true)?;
            let handle = self.engine.open_new(admission, key, how.read, file, moment)?;
            self.engine.unlinked(key, true);
            Ok(handle)
        });
        match opened {
            Ok(handle) => {
                prefer_large_io(&mut entry.attributes);
                Ok((entry, handle))
            }
            Err(errno) => {
                self.forget(entry.id, 1);
                Err(errno)
            }
        }
    }

    /// Counts a partition's traffic for its directory in the root from now on.
    fn count_for_directory(&self, id: u64, handle: HandleId) {
        let group = self.directories.group(self.tree.top_of(id).as_deref());
        self.engine.set_group(handle, group);
    }

    /// Names the record of what was written. Once, at start.
    pub fn set_wear(&self, wear: Wear) {
        let _ = self.wear.set(wear);
    }

    /// The record of what was written, up to now.
    #[must_use]
    pub fn wear(&self) -> Option<&Wear> {
        let wear = self.wear.get()?;
        wear.note(self.engine.device_stats().written_bytes);
        Some(wear)
    }

    /// Changes attributes; the answer holds them as they are afterwards. A size change waits for
    /// transfers of the partition, the rest does not.
    pub fn change(
        self: &Arc<Self>, user: User, id: u64, handle: Option<HandleId>, changes: Changes,
        answer: Answer<Attributes>,
    ) {
        let changed =
            ControlNode::refuse(id).and_then(|()| self.change_owner_and_mode(id, &changes));
        if let Err(errno) = changed {
            return answer(Err(errno));
        }
        let volume = self.clone();
        let finish = move |result: Result<()>| {
            let outcome = result
                .and_then(|()| volume.change_times(id, &changes))
                .inspect(|()| {
                    if changes.has_attributes() {
                        volume.attributes_changed(id);
                    }
                })
                .and_then(|()| volume.attributes(id));
            answer(outcome);
        };
        let Some(size) = changes.size else {
            return finish(Ok(()));
        };
        if let Some(asker) = changes.drop_privileges
            && let Err(errno) = self.drop_privileges(asker, id)
        {
            return finish(Err(errno));
        }
        match handle {
            Some(handle) => self.engine.truncate(handle, size, Box::new(finish)),
            None => self.truncate_unopened(user, id, size, Box::new(finish)),
        }
    }

    fn truncate_unopened(self: &Arc<Self>, user: User, id: u64, size: u64, reply: Reply) {
        match self.open(user, id, false, true) {
            Ok(handle) => {
                let engine = self.engine.clone();
                let done = move |result| {
                    engine.release(handle);
                    reply(result);
                };
                self.engine.truncate(handle, size, Box::new(done));
            }
            Err(errno) => reply(Err(errno)),
        }
    }

    fn change_owner_and_mode(&self, id: u64, changes: &Changes) -> Result<()> {
        if changes.uid.is_some() || changes.gid.is_some() {
            self.tree.set_owner(id, changes.uid, changes.gid)?;
        }
        match changes.mode {
            Some(mode) => self.tree.set_mode(id, mode & 0o7777),
            None => Ok(()),
        }
    }

    fn change_times(&self, id: u64, changes: &Changes) -> Result<()> {
        if changes.atime.is_none() && changes.mtime.is_none() {
            return Ok(());
        }
        let atime = changes.atime.unwrap_or(TimeChange::Keep);
        let mtime = changes.mtime.unwrap_or(TimeChange::Keep);
        self.set_times(id, atime, mtime)?;
        let (key, now) = (self.tree.key(id)?, self.tree.attributes(id)?);
        match mtime {
            TimeChange::Keep => {}
            // A settling under way may have given it an older modification time since, never an older change time.
            TimeChange::Now => self.engine.set_modified(key, now.ctime, now.ctime),
            TimeChange::At(time) => {
                self.engine.set_modified(key, file_clock::rounded(time), now.ctime);
            }
        }
        Ok(())
    }

    /// Sets times in the swap folder, so that a record of the partition stays true.
    fn set_times(&self, id: u64, atime: TimeChange, mtime: TimeChange) -> Result<()> {
        let key = self.tree.key(id)?;
        let set = || self.tree.set_times(id, atime, mtime);
        let ledger = self.ledger.as_ref().filter(|ledger| ledger.knows(key));
        let modified = match mtime {
            TimeChange::Keep => return set(),
            TimeChange::Now => None,
            TimeChange::At(time) => Some(time),
        };
        match ledger
            .map(|ledger| (ledger, self.tree.open_file(id, Access::ReadOnly, self.options.direct)))
        {
            Some((ledger, Ok(descriptor))) => ledger.timed(key, descriptor, modified, set),
            // A file that the daemon may not read has no record, or one that was not read either.
            _ => set(),
        }
    }

    /// Removes a name; the space of a partition that has lost its last one comes back at once.
    ///
    /// # Errors
    /// As [`Tree::unlink`].
    pub fn unlink(&self, user: User, parent: u64, name: &OsStr) -> Result<()> {
        ControlNode::refuse_name(parent, name)?;
        let gone = self.tree.unlink(user, parent, name)?;
        self.forget_bytes(gone);
        Ok(())
    }

    /// Gives an inode one name more.
    ///
    /// # Errors
    /// As [`Tree::link`].
    pub fn link(&self, id: u64, parent: u64, name: &OsStr) -> Result<Entry> {
        ControlNode::refuse(id)?;
        ControlNode::refuse_name(parent, name)?;
        let mut entry = self.tree.link(id, parent, name)?;
        if let Ok(key) = self.tree.key(id) {
            self.engine.linked(key);
        }
        self.attributes_changed(id);
        self.present(&mut entry);
        Ok(entry)
    }

    /// Makes an empty file, pipe, socket or device.
    ///
    /// # Errors
    /// As [`Tree::mknod`].
    pub fn mknod(
        &self, parent: u64, name: &OsStr, caller: &Caller, kind: FileKind, mode: u32, rdev: u32,
    ) -> Result<Entry> {
        ControlNode::refuse_name(parent, name)?;
        let mut entry = self.tree.mknod(parent, name, caller, kind, mode, rdev)?;
        prefer_large_io(&mut entry.attributes);
        Ok(entry)
    }

    /// Makes a directory.
    ///
    /// # Errors
    /// As [`Tree::mkdir`].
    pub fn mkdir(&self, parent: u64, name: &OsStr, caller: &Caller, mode: u32) -> Result<Entry> {
        ControlNode::refuse_name(parent, name)?;
        self.tree.mkdir(parent, name, caller, mode)
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// As [`Tree::rmdir`].
    pub fn rmdir(&self, user: User, parent: u64, name: &OsStr) -> Result<()> {
        ControlNode::refuse_name(parent, name)?;
        self.tree.rmdir(user, parent, name)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`Tree::symlink`].
    pub fn symlink(
        &self, parent: u64, name: &OsStr, caller: &Caller, target: &OsStr,
    ) -> Result<Entry> {
        ControlNode::refuse_name(parent, name)?;
        self.tree.symlink(parent, name, caller, target)
    }

    /// Moves a name; see [`RenameKind`] for what happens to one that is there already.
    ///
    /// # Errors
    /// As [`Tree::rename`].
    pub fn rename(
        &self, user: User, from: (u64, &OsStr), to: (u64, &OsStr), kind: RenameKind,
    ) -> Result<()> {
        ControlNode::refuse_name(from.0, from.1)?;
        ControlNode::refuse_name(to.0, to.1)?;
        let gone = self.tree.rename(user, from, to, kind)?;
        self.forget_bytes(gone);
        for (parent, name) in [to, from] {
            if parent == to.0 && name == to.1 || kind == RenameKind::Exchange {
                let _ = self
                    .tree
                    .glance(parent, name)
                    .map(|(key, changed)| self.engine.attributes_changed(key, changed));
            }
        }
        Ok(())
    }

    fn forget_bytes(&self, gone: Option<Gone>) {
        if let Some(gone) = gone {
            self.lost_last_name(gone.key, gone.id.is_some());
            if let Some(ledger) = &self.ledger {
                ledger.unlinked(gone.key);
            }
        }
    }

    /// A file has no name any more. One that is still known may be opened until it is forgotten: by somebody who has
    /// looked it up before its name was removed or replaced.
    fn lost_last_name(&self, key: FileKey, known: bool) {
        self.engine.unlinked(key, known);
        // It may have been forgotten before the engine was told that it is known.
        if known && self.tree.id_of_key(&key).is_none() {
            self.engine.forgotten(key);
        }
    }

    /// Takes lookups back, as [`Tree::forget_for_now`] does. The bytes of a file without a name go with the last one.
    pub fn forget(&self, id: u64, count: u64) -> Option<Forgotten> {
        if ControlNode::of_id(id).is_some() {
            return None;
        }
        let forgotten = self.tree.forget_for_now(id, count)?;
        if let Some(key) = forgotten.nameless() {
            self.engine.forgotten(key);
            if let Some(ledger) = &self.ledger {
                ledger.unlinked(key);
            }
        }
        Some(forgotten)
    }

    /// Everything on stable storage, names included; answers with what could not be written.
    pub fn synchronize(self: &Arc<Self>, answer: Box<dyn FnOnce(Vec<String>) + Send>) {
        let volume = self.clone();
        self.engine.sync_all(Box::new(move |mut failed| {
            let engine = volume.engine.clone();
            engine.run_blocking(Box::new(move || {
                let synchronized = volume.synchronize_folder();
                *volume.unsynchronized.lock() = synchronized.err();
                if let Err(errno) = synchronized {
                    failed.push(format!("{}: {errno:?}", volume.options.swap_folder.display()));
                }
                answer(failed);
            }));
        }));
    }

    /// Puts names and records on stable storage. A device that failed for a while may have lost records that
    /// the kernel was writing: those are written once more.
    fn synchronize_folder(&self) -> Result<()> {
        match (self.tree.synchronize(), &self.ledger) {
            (Err(_), Some(ledger)) => {
                ledger.rewrite()?;
                self.tree.synchronize()
            }
            (result, _) => result,
        }
    }

    /// Names what makes the kernel forget its pages and attributes of a node. Once, at start.
    pub fn set_invalidate(&self, invalidate: Forgetting) {
        let _ = self.invalidate.set(Invalidate(invalidate));
    }

    /// Makes the kernel forget what it has cached of a node.
    fn invalidate(&self, id: u64, what: Stale) {
        if let Some(invalidate) = self.invalidate.get() {
            (invalidate.0)(id, what);
        }
    }

    /// Absolute path of the swap folder.
    #[must_use]
    pub fn swap_folder(&self) -> &std::path::Path {
        &self.options.swap_folder
    }

    /// Whether close waits for the swap folder.
    #[must_use]
    pub fn close_wait(&self) -> bool {
        self.options.close_wait
    }
}

/// Recommends large requests for a partition.
fn prefer_large_io(attributes: &mut Attributes) {
    if attributes.kind == FileKind::Regular {
        attributes.block_size = attributes.block_size.max(PREFERRED_IO_BYTES);
    }
}

/// EIO unless nothing failed: what fsync of the root answers.
///
/// # Errors
/// EIO when `failed` names anything.
pub fn outcome(failed: &[String]) -> Result<()> {
    if failed.is_empty() { Ok(()) } else { Err(Errno::EIO) }
}
