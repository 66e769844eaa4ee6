//! `MOUNTPOINT/.swapfs/`: what the daemon tells about itself, as files made at the moment of reading.

use std::ffi::OsStr;
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use serde_json::json;

use super::Volume;
use crate::fs::{Attributes, FileKind};

/// The control folder's name in the root; readdir does not list it.
pub const CONTROL_NAME: &str = ".swapfs";

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
}

/// Ids beyond any inode number a filesystem gives out.
const FIRST_ID: u64 = u64::MAX - 16;

impl ControlNode {
    /// The files of the folder.
    pub const FILES: [ControlNode; 3] =
        [ControlNode::Stats, ControlNode::Metrics, ControlNode::Config];

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
            1 => Some(ControlNode::Stats),
            2 => Some(ControlNode::Metrics),
            3 => Some(ControlNode::Config),
            _ => None,
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
        }
    }

    /// The file of this name in the folder.
    #[must_use]
    pub fn of_name(name: &OsStr) -> Option<ControlNode> {
        ControlNode::FILES.into_iter().find(|node| name == node.name())
    }
}

impl Volume {
    /// What a control file holds now; empty for the folder.
    #[must_use]
    pub fn control_content(&self, node: ControlNode) -> String {
        let pretty = |value: serde_json::Value| format!("{value:#}\n");
        match node {
            ControlNode::Folder => String::new(),
            ControlNode::Stats => pretty(self.stats()),
            ControlNode::Metrics => super::metrics::text(&self.stats()),
            ControlNode::Config => pretty(self.options.config.clone()),
        }
    }

    /// The attributes of a control node: readable by everyone, of the size it has now.
    #[must_use]
    pub fn control_attributes(&self, node: ControlNode) -> Attributes {
        let now = SystemTime::now();
        let folder = node == ControlNode::Folder;
        Attributes {
            ino: node.id(),
            size: self.control_content(node).len() as u64,
            blocks: 0,
            block_size: 4096,
            atime: now,
            mtime: now,
            ctime: now,
            kind: if folder { FileKind::Directory } else { FileKind::Regular },
            mode: if folder { 0o555 } else { 0o444 },
            nlink: if folder { 2 } else { 1 },
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            rdev: 0,
        }
    }

    /// The object of `stats.json`: counts, never names.
    #[must_use]
    pub fn stats(&self) -> serde_json::Value {
        let requests = &self.requests;
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        json!({
            "mount": {
                "pid": std::process::id(),
                "pid_namespace": crate::sys_process::pid_namespace(),
                "version": env!("CARGO_PKG_VERSION"),
                "mountpoint": self.options.mountpoint.to_string_lossy(),
                "swap_folders": [self.options.swap_folder.to_string_lossy()],
            },
            "pool": self.engine.pool(),
            "aio": self.engine.device_stats(),
            "cache": self.engine.cache_stats(),
            "fuse": {
                "requests": load(&requests.all),
                "reads": load(&requests.reads),
                "writes": load(&requests.writes),
                "errors": load(&requests.errors),
            },
            "partitions": self.engine.partitions(),
        })
    }
}
