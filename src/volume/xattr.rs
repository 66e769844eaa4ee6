//! `user.swap.*`: status to read, names to list. Other names pass through to the swap folder.

use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;

use super::rights::{Asker, Rights};
use super::{Answer, ControlNode, Volume};
use crate::engine::{PartitionInfo, PartitionStatus};
use crate::error::{Errno, Result};
use crate::fs::{FileKind, ROOT_ID, XattrMode};
use crate::shares::User;

/// What all names of swapfs's own begin with.
pub const SWAP_PREFIX: &str = "user.swap.";

/// What names begin with that pass to the swap folder.
const USERS_PREFIX: &[u8] = b"user.";

/// A program's own rights. The kernel asks who sets it for a capability, and lets a write of the file take it away.
pub const CAPABILITY_NAME: &str = "security.capability";

/// The other names that pass to the swap folder.
const PASSED: [&[u8]; 3] =
    [b"system.posix_acl_access", b"system.posix_acl_default", CAPABILITY_NAME.as_bytes()];

/// The attribute that takes requests.
pub const REQUEST_NAME: &str = "user.swap.request";

/// How long reading `user.swap.wait` may take.
const WAIT_MAX: Duration = Duration::from_secs(1);

/// Longest value `user.swap.wait` can have: what a question for its length is answered with.
const WAIT_BYTES_MAX: usize = "not_available".len();

/// The attribute that answers when nothing is in flight; never listed.
pub const WAIT_NAME: &str = "user.swap.wait";

/// Names on a partition, without [`SWAP_PREFIX`], in the order they are listed; the last two only while there is
/// something to tell.
pub const PARTITION_NAMES: [&str; 11] = [
    "status",
    "size",
    "aligned_size",
    "resident",
    "dirty",
    "inflight",
    "swappable",
    "path",
    "direct",
    "error",
    "stalled",
];

/// Names on the root, without [`SWAP_PREFIX`].
pub const ROOT_NAMES: [&str; 6] = [
    "pool.buffers",
    "pool.available",
    "pool.reserved",
    "pool.dirty",
    "pool.inflight",
    "pool.buffer_size",
];

/// What asking for an attribute comes to.
#[derive(Debug)]
pub enum XattrAnswer {
    /// Its value.
    Value(Vec<u8>),
    /// The value comes when nothing is in flight: call [`Volume::wait`].
    Wait,
}

/// Refuses names that are neither the users' nor among those that the kernel itself answers for. Of `system.*` it leaves
/// the right to change them to the filesystem, and the swap folder's sees the daemon; `trusted.*` and `security.*` are
/// labels that others on the machine believe: overlayfs, IMA, SELinux. Setting them takes a right that the daemon gives up.
fn filter(name: &[u8]) -> Result<()> {
    match name.starts_with(USERS_PREFIX) || PASSED.contains(&name) {
        true => Ok(()),
        false => Err(Errno::EOPNOTSUPP),
    }
}

fn own_name(name: &OsStr) -> Option<&str> {
    name.to_str()?.strip_prefix(SWAP_PREFIX)
}

/// What changing a name of swapfs's own comes to: one that a copy may bring along, from a listing, is accepted and changes
/// nothing, so that the copy succeeds.
///
/// # Errors
/// EPERM for all other names.
fn ignore_change(own: &str) -> Result<()> {
    match PARTITION_NAMES.contains(&own) || ROOT_NAMES.contains(&own) {
        true => Ok(()),
        false => Err(Errno::EPERM),
    }
}

impl Volume {
    /// The value of an attribute. With `length_only`, a value that would have to be waited for is
    /// replaced by one of the greatest length it can have.
    ///
    /// # Errors
    /// ENODATA when there is none; what the swap folder fails with.
    pub fn xattr(&self, id: u64, name: &OsStr, length_only: bool) -> Result<XattrAnswer> {
        if ControlNode::of_id(id).is_some() {
            return Err(Errno::ENODATA);
        }
        filter(name.as_bytes())?;
        let Some(own) = own_name(name) else {
            if name == CAPABILITY_NAME && self.is_dirty(id) {
                return Err(Errno::ENODATA);
            }
            if name.as_bytes().starts_with(SWAP_PREFIX.as_bytes()) {
                return Err(Errno::ENODATA);
            }
            return self.tree.xattr(id, name).map(XattrAnswer::Value);
        };
        let regular = id != ROOT_ID && self.tree.attributes(id)?.kind == FileKind::Regular;
        match own {
            "wait" if !(regular || id == ROOT_ID) => Err(Errno::ENODATA),
            "wait" if length_only => Ok(XattrAnswer::Value(vec![b' '; WAIT_BYTES_MAX])),
            "wait" => Ok(XattrAnswer::Wait),
            _ if id == ROOT_ID => self.root_value(own).ok_or(Errno::ENODATA),
            _ if regular => self.partition_value(id, own)?.ok_or(Errno::ENODATA),
            _ => Err(Errno::ENODATA),
        }
    }

    fn root_value(&self, own: &str) -> Option<XattrAnswer> {
        let pool = self.engine.pool();
        let count = match own {
            "pool.buffers" => pool.buffers,
            "pool.available" => pool.available,
            "pool.reserved" => pool.reserved,
            "pool.dirty" => pool.dirty,
            "pool.inflight" => pool.inflight,
            "pool.buffer_size" => pool.buffer_size,
            _ => return None,
        };
        Some(XattrAnswer::Value(count.to_string().into_bytes()))
    }

    /// Where the bytes of a partition are; for one the engine does not know, all are in the swap folder.
    ///
    /// # Errors
    /// ESTALE.
    pub fn partition_info(&self, id: u64) -> Result<PartitionInfo> {
        if let Some(info) = self.engine.info(self.tree.key(id)?) {
            return Ok(info);
        }
        let size = self.attributes(id)?.size;
        let status =
            if size == 0 { PartitionStatus::Available } else { PartitionStatus::NotAvailable };
        let (error, stalled) = (None, None);
        Ok(PartitionInfo { status, size, resident: 0, dirty: 0, inflight: 0, error, stalled })
    }

    fn partition_value(&self, id: u64, own: &str) -> Result<Option<XattrAnswer>> {
        if !PARTITION_NAMES.contains(&own) {
            return Ok(None);
        }
        if own == "path" {
            let path = self.backing_path(id)?;
            return Ok(Some(XattrAnswer::Value(path.into_os_string().into_vec())));
        }
        let info = self.partition_info(id)?;
        let alignment = self.engine.device_geometry().alignment as u64;
        let flag = |on: bool| if on { "1" } else { "0" }.to_string();
        let value = match own {
            "status" => info.status.as_str().to_string(),
            "size" => info.size.to_string(),
            "aligned_size" => info.size.next_multiple_of(alignment).to_string(),
            "resident" => info.resident.to_string(),
            "dirty" => info.dirty.to_string(),
            "inflight" => info.inflight.to_string(),
            "swappable" => flag(info.size >= self.options.min_swap_size),
            "direct" => flag(self.options.direct),
            "error" => match info.error {
                Some(errno) => format!("{errno:?}"),
                None => return Ok(None),
            },
            "stalled" => match info.stalled {
                Some(waited) => waited.as_secs().to_string(),
                None => return Ok(None),
            },
            _ => unreachable!("the name is in the list"),
        };
        Ok(Some(XattrAnswer::Value(value.into_bytes())))
    }

    /// The absolute path of the backing file; empty when it lies beneath the mount.
    fn backing_path(&self, id: u64) -> Result<std::path::PathBuf> {
        let path = self.tree.backing_path(id)?;
        let hidden = path.starts_with(&self.options.mountpoint);
        Ok(if hidden { std::path::PathBuf::new() } else { path })
    }

    /// Answers with the status as soon as nothing is in flight, or after a second.
    pub fn wait(self: &Arc<Self>, user: User, id: u64, answer: Answer<Vec<u8>>) {
        let volume = self.clone();
        if id == ROOT_ID {
            let reply = move |_| {
                let value = if volume.engine.inflight() { "inflight" } else { "idle" };
                answer(Ok(value.into()));
            };
            return self.engine.wait_all_idle(user, WAIT_MAX, Box::new(reply));
        }
        match self.tree.key(id) {
            Ok(key) => self.engine.wait_idle(
                user,
                key,
                WAIT_MAX,
                Box::new(move |_| {
                    answer(volume.partition_info(id).map(|info| info.status.as_str().into()));
                }),
            ),
            Err(errno) => answer(Err(errno)),
        }
    }

    /// All names that pass, each followed by a NUL. Values that a copy left in the swap folder
    /// under our names are shadowed. The kernel lets everybody list who finds the file: that a transfer of it
    /// failed is told to those alone who may read it.
    ///
    /// # Errors
    /// What the swap folder fails with.
    pub fn list_xattrs(&self, id: u64, asker: Asker) -> Result<Vec<u8>> {
        if ControlNode::of_id(id).is_some() {
            return Ok(Vec::new());
        }
        let mut names = Vec::new();
        for name in self.tree.list_xattrs(id)?.split_inclusive(|byte| *byte == 0) {
            let bare = name.strip_suffix(b"\0").unwrap_or(name);
            let hidden = name.starts_with(SWAP_PREFIX.as_bytes()) || filter(bare).is_err();
            let is_lost = || bare == CAPABILITY_NAME.as_bytes() && self.is_dirty(id);
            if !hidden && !is_lost() {
                names.extend_from_slice(name);
            }
        }
        let mut hidden: SmallVec<[&str; 2]> = SmallVec::new();
        let own: &[&str] = if !self.options.list_xattr {
            &[]
        } else if id == ROOT_ID {
            &ROOT_NAMES
        } else if self.tree.attributes(id)?.kind == FileKind::Regular {
            let info = self.partition_info(id)?;
            let told = |there: bool| there && self.may_read(id, asker);
            if !told(info.error.is_some()) {
                hidden.push("error");
            }
            if !told(info.stalled.is_some()) {
                hidden.push("stalled");
            }
            &PARTITION_NAMES
        } else {
            &[]
        };
        for name in own.iter().filter(|name| !hidden.contains(name)) {
            names.extend_from_slice(SWAP_PREFIX.as_bytes());
            names.extend_from_slice(name.as_bytes());
            names.push(0);
        }
        Ok(names)
    }

    /// Whether who asks could open the partition for reading. Asked on a thread of its own, as [`Rights`]
    /// demand.
    fn may_read(&self, id: u64, asker: Asker) -> bool {
        let (tree, member) = (&self.tree, asker.member());
        let ask = move || {
            let attributes = tree.attributes(id);
            attributes.is_ok_and(|found| Rights::of(member).may_read(tree, &found))
        };
        std::thread::scope(|scope| {
            let asking =
                std::thread::Builder::new().name("access-check".into()).spawn_scoped(scope, ask);
            asking.is_ok_and(|asking| asking.join().unwrap_or(false))
        })
    }

    /// Sets an attribute of the user's. Names that swapfs lists keep their values.
    ///
    /// # Errors
    /// EPERM for names of swapfs's own that it never lists ([`REQUEST_NAME`] is [`Volume::request`]'s); what
    /// the swap folder fails with.
    pub fn set_xattr(&self, id: u64, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        ControlNode::refuse(id)?;
        filter(name.as_bytes())?;
        if name.as_bytes().starts_with(SWAP_PREFIX.as_bytes()) {
            return ignore_change(own_name(name).unwrap_or_default());
        }
        self.tree.set_xattr(id, name, value, mode)?;
        self.attributes_changed(id);
        Ok(())
    }

    /// Sets [`CAPABILITY_NAME`], after everything that was written before is in the swap folder, with the size: the write-out
    /// and the settling would take it away again. Until then, and after any later write, the file has none.
    pub fn set_capability(
        self: &Arc<Self>, id: u64, value: &[u8], mode: XattrMode, answer: Answer<()>,
    ) {
        if let Err(errno) = ControlNode::refuse(id) {
            return answer(Err(errno));
        }
        let kind = self.tree.attributes(id).map(|attributes| attributes.kind);
        if kind != Ok(FileKind::Regular) {
            return answer(self.tree.set_xattr(id, OsStr::new(CAPABILITY_NAME), value, mode));
        }
        let handle = match self.open(User::OWN, id, false, true) {
            Ok(handle) => handle,
            Err(errno) => return answer(Err(errno)),
        };
        let (volume, value) = (self.clone(), value.to_vec());
        let written = move |result: Result<()>| {
            volume.engine.release(handle);
            let engine = volume.engine.clone();
            engine.run_blocking(Box::new(move || {
                let name = OsStr::new(CAPABILITY_NAME);
                let set = result.and_then(|()| volume.tree.set_xattr(id, name, &value, mode));
                volume.attributes_changed(id);
                answer(set);
            }));
        };
        self.engine.sync(handle, false, Box::new(written));
    }

    /// Returns true when the pool has bytes of the partition that the swap folder has not.
    fn is_dirty(&self, id: u64) -> bool {
        let info = self.tree.key(id).ok().and_then(|key| self.engine.info(key));
        info.is_some_and(|info| info.dirty > 0)
    }

    /// Removes an attribute of the user's. Names that swapfs lists stay.
    ///
    /// # Errors
    /// EPERM for names of swapfs's own that it never lists; ENODATA.
    pub fn remove_xattr(&self, id: u64, name: &OsStr) -> Result<()> {
        ControlNode::refuse(id)?;
        filter(name.as_bytes())?;
        if name.as_bytes().starts_with(SWAP_PREFIX.as_bytes()) {
            return ignore_change(own_name(name).unwrap_or_default());
        }
        self.tree.remove_xattr(id, name)?;
        self.attributes_changed(id);
        Ok(())
    }
}
