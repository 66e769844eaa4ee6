//! Partitions at rest: small ones that nobody has open, whole in the pool and in the swap folder alike.
//!
//! Of these only the bytes and a few words are kept: no descriptor, no block, no partition. That is what
//! lets a pool hold tens of thousands of them. Who opens one brings the file along, as for a partition that
//! the engine has never seen, and finds the bytes in their slot. They cannot go stale meanwhile: all changes
//! of a file in the swap folder come through the engine, which forgets the bytes of a file that was unlinked.

use std::collections::HashMap;

use super::ids::{BufferId, RestingId, Table};
use super::info::{PartitionInfo, PartitionStatus};
use super::partition::FileKey;
use crate::shares::Share;

#[derive(Debug)]
pub(super) struct AtRest {
    pub(super) key: FileKey,
    pub(super) size: u64,
    pub(super) tray: BufferId,
    pub(super) slot: u32,
    pub(super) kept: bool,
}

/// All partitions at rest.
#[derive(Debug)]
pub(crate) struct Resting {
    pub(super) files: Table<RestingId, AtRest>,
    pub(super) keys: HashMap<FileKey, RestingId>,
    /// Whose shares those take that are kept, by number, where they take any.
    pub(super) keepers: HashMap<RestingId, Share>,
}

impl Default for Resting {
    fn default() -> Resting {
        Resting { files: Table::new(), keys: HashMap::new(), keepers: HashMap::new() }
    }
}

impl Resting {
    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }

    /// As the partition that it would be if it were awake.
    pub(crate) fn info(&self, key: FileKey) -> Option<PartitionInfo> {
        let at_rest = self.files.get(*self.keys.get(&key)?)?;
        Some(PartitionInfo {
            status: PartitionStatus::Available,
            size: at_rest.size,
            resident: at_rest.size,
            dirty: 0,
            inflight: 0,
            error: None,
            stalled: None,
        })
    }

    /// Some of them, at most `count`.
    pub(crate) fn some(&self, count: usize) -> Vec<FileKey> {
        self.files.iter().take(count).map(|(_, at_rest)| at_rest.key).collect()
    }
}
