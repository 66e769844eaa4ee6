//! `MOUNTPOINT/.swapfs/`: what the daemon tells about itself, as files made at the moment of reading.

use std::ffi::OsStr;
use std::time::SystemTime;

use serde_json::{Value as Json, json};

use super::metrics::Sources;
use super::{Asker, Volume};
use crate::engine::Unstored;
use crate::error::{Errno, Result};
use crate::fs::{Attributes, Entry, FileKind, PRIVATE_NAME, ROOT_ID};
use crate::paths::plain_json;

/// The control folder's name in the root; readdir does not list it.
pub const CONTROL_NAME: &str = PRIVATE_NAME;

/// Days of writing that `stats.json` lists.
const DAYS_SHOWN: usize = 30;

/// A node of the control folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlNode {
    /// The folder itself.
    Folder,
    /// `stats.json`.
    Stats,
    /// `metrics`.
    Metrics,
    /// `config.json`.
    Config,
    /// `partitions.json`.
    Partitions,
    /// `accesslog`, which has no content but what comes while it is read.
    AccessLog,
}

/// Ids beyond any inode number a filesystem gives out.
const FIRST_ID: u64 = u64::MAX - 16;

impl ControlNode {
    /// The files of the folder.
    pub const FILES: [ControlNode; 5] = [
        ControlNode::Stats,
        ControlNode::Metrics,
        ControlNode::Config,
        ControlNode::Partitions,
        ControlNode::AccessLog,
    ];

    /// Its node id.
    #[must_use]
    pub fn id(self) -> u64 {
        FIRST_ID + self as u64
    }

    /// The node with this id.
    #[must_use]
    pub fn of_id(id: u64) -> Option<ControlNode> {
        match id.checked_sub(FIRST_ID)? {
            0 => Some(ControlNode::Folder),
            place => ControlNode::FILES.get(place as usize - 1).copied(),
        }
    }

    /// Its name in its parent.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ControlNode::Folder => CONTROL_NAME,
            ControlNode::Stats => "stats.json",
            ControlNode::Metrics => "metrics",
            ControlNode::Config => "config.json",
            ControlNode::Partitions => "partitions.json",
            ControlNode::AccessLog => "accesslog",
        }
    }

    /// The node that a name in a folder stands for, ENOENT included; `None` when it is none of the control folder's.
    pub(super) fn of_name(parent: u64, name: &OsStr) -> Option<Result<ControlNode>> {
        if parent == ROOT_ID && name == CONTROL_NAME {
            return Some(Ok(ControlNode::Folder));
        }
        ControlNode::of_id(parent)?;
        let mut files = ControlNode::FILES.into_iter();
        Some(files.find(|node| name == node.name()).ok_or(Errno::ENOENT))
    }

    /// Refuses to change a node of the control folder.
    pub(super) fn refuse(id: u64) -> Result<()> {
        if ControlNode::of_id(id).is_some() { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Refuses to change the name of a node of the control folder, or to make one there.
    pub(super) fn refuse_name(parent: u64, name: &OsStr) -> Result<()> {
        if ControlNode::of_name(parent, name).is_some() { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Whether only the mount's owner and root may read it: it names partitions.
    #[must_use]
    pub fn is_private(self) -> bool {
        matches!(self, ControlNode::Partitions | ControlNode::AccessLog)
    }
}

impl Volume {
    /// What a control file holds now for `asker`; empty for the folder and the access log.
    #[must_use]
    pub fn control_content(&self, node: ControlNode, asker: Asker) -> String {
        self.content(node, || asker.reads_all())
    }

    /// What a control file holds for somebody who may or may not read what names others' partitions.
    fn content(&self, node: ControlNode, reads_all: impl FnOnce() -> bool) -> String {
        let pretty = |value: Json| plain_json(&format!("{value:#}\n"));
        match node {
            ControlNode::Folder | ControlNode::AccessLog => String::new(),
            ControlNode::Stats => pretty(self.counted_stats()),
            ControlNode::Metrics => self.metrics(&[], self.root_is_public() || reads_all()),
            ControlNode::Config => pretty(self.options.config.clone()),
            ControlNode::Partitions => pretty(self.partition_list()),
        }
    }

    /// Whether everybody may list the root, and so see the names of its directories.
    #[must_use]
    pub fn root_is_public(&self) -> bool {
        self.tree.attributes(ROOT_ID).is_ok_and(|root| root.mode & 0o005 == 0o005)
    }

    /// What looking a control node up finds.
    pub(super) fn control_entry(&self, node: ControlNode) -> Entry {
        Entry { id: node.id(), generation: 0, attributes: self.control_attributes(node) }
    }

    /// The attributes of a control node: of the size it has now, but for what only its owner may read, which
    /// has none, as files of proc(5).
    pub(super) fn control_attributes(&self, node: ControlNode) -> Attributes {
        let now = SystemTime::now();
        let folder = node == ControlNode::Folder;
        // Being user 0 is not enough to read root's: with this mode the kernel asks for a capability.
        let private = if rustix::process::geteuid().is_root() { 0o000 } else { 0o400 };
        Attributes {
            ino: node.id(),
            size: if node.is_private() { 0 } else { self.content(node, || true).len() as u64 },
            blocks: 0,
            block_size: 4096,
            atime: now,
            mtime: now,
            ctime: now,
            birth: None,
            kind: if folder { FileKind::Directory } else { FileKind::Regular },
            mode: if folder { 0o555 } else { if node.is_private() { private } else { 0o444 } },
            nlink: if folder { 2 } else { 1 },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
        }
    }

    /// With how long the engine's lock was held, where the program counts that.
    fn counted_stats(&self) -> serde_json::Value {
        #[cfg_attr(not(feature = "lock-times"), expect(unused_mut, reason = "nothing is added"))]
        let mut stats = self.stats();
        #[cfg(feature = "lock-times")]
        {
            let (taken, held_ns) = self.engine.lock_times();
            stats["lock"] = json!({ "taken": taken, "held_ns": held_ns });
        }
        stats
    }

    /// The object of `stats.json`: counts, never names.
    #[must_use]
    pub fn stats(&self) -> Json {
        let sources = Sources::take(self, false);
        let mut fuse = sources.object("fuse", None);
        fuse["operations"] = sources.operations();
        let mut wear = sources.object("wear", None);
        if let Some(days) = self.wear().map(|wear| wear.days(DAYS_SHOWN)) {
            wear["days"] = json!(days);
        }
        json!({
            "mount": {
                "pid": std::process::id(),
                "pid_namespace": crate::sys_process::pid_namespace(),
                "version": env!("CARGO_PKG_VERSION"),
                "mountpoint": self.options.mountpoint.to_string_lossy(),
                "swap_folders": [self.options.swap_folder.to_string_lossy()],
            },
            "sandbox": crate::sandbox::State::own(),
            "pool": sources.object("pool", None),
            "aio": sources.object("aio", sources.engine()),
            "cache": sources.object("cache", None),
            "checksum": sources.object("checksum", sources.checksum()),
            "fuse": fuse,
            "partitions": sources.object("partitions", None),
            "unstored": self.unstored(),
            "log": sources.object("log", None),
            "wear": wear,
        })
    }

    /// What could not be stored; names and records are nobody's.
    fn unstored(&self) -> Vec<Unstored> {
        let mut unstored = self.engine.unstored();
        let folder = *self.unsynchronized.lock();
        unstored.extend(folder.map(|errno| Unstored {
            uid: None,
            error: format!("{errno:?}"),
            partitions: 0,
        }));
        unstored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_control_folder_cannot_be_changed() {
        let folder = ControlNode::Folder.id();
        for (parent, name, expected) in [
            (ROOT_ID, ".swapfs", Err(Errno::EPERM)),
            (ROOT_ID, "swapfs", Ok(())),
            (folder, "x", Err(Errno::EPERM)),
            (ControlNode::Stats.id(), "x", Err(Errno::EPERM)),
            (77, ".swapfs", Ok(())),
        ] {
            assert_eq!(ControlNode::refuse_name(parent, OsStr::new(name)), expected, "{name}");
        }
        assert_eq!(ControlNode::refuse(folder), Err(Errno::EPERM));
        assert_eq!(ControlNode::refuse(ROOT_ID), Ok(()));
    }

    #[test]
    fn names_and_ids_mean_the_same_node() {
        for node in ControlNode::FILES {
            assert_eq!(ControlNode::of_id(node.id()), Some(node));
            let found = ControlNode::of_name(ControlNode::Folder.id(), OsStr::new(node.name()));
            assert_eq!(found, Some(Ok(node)));
            assert_eq!(ControlNode::of_name(ROOT_ID, OsStr::new(node.name())), None);
        }
        let lock = ControlNode::of_name(ControlNode::Folder.id(), OsStr::new("lock"));
        assert_eq!(lock, Some(Err(Errno::ENOENT)));
    }
}
