//! What could not be stored, and whose it is: an end of the mount does not wait for what one user has spoilt.

use std::collections::{BTreeMap, VecDeque};
use std::os::unix::fs::MetadataExt;

use super::core::Engine;
use super::ids::{Id, PartitionId};
use super::partition::Partition;
use super::state::State;
use crate::aio::device::BackingFile;
use crate::error::Errno;

/// Partitions looked at in one step under the lock.
const STEP: usize = 128;

/// Pairs of users and errors that are told apart; the partitions of further ones are nobody's.
const PAIRS_MAX: usize = 64;

/// Partitions that are not on stable storage because of an error.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unstored {
    /// Their owner; `None` when that is not known.
    pub uid: Option<u32>,
    /// The last error of each, by name.
    pub error: String,
    /// How many these are.
    pub partitions: u64,
}

impl Partition {
    /// The error of a partition with something that could not be stored, when it was tried last.
    fn unstored(&self) -> Option<Errno> {
        let is_unstored = self.failed_blocks > 0
            || !self.lost.is_empty()
            || self.settle_failed
            || self.sync_failed;
        (is_unstored && !self.unlinked).then(|| self.error.unwrap_or(self.last_errno))
    }
}

impl Engine {
    /// The partitions that could not be stored, by owner and error.
    #[must_use]
    pub fn unstored(&self) -> Vec<Unstored> {
        let mut counts: BTreeMap<(Option<u32>, String), u64> = BTreeMap::new();
        let mut from = 0;
        while let Some((files, next)) = self.with(|locked| some(locked.state, from)) {
            for (file, errno) in files {
                let mut pair = (owner(&*file), format!("{errno:?}"));
                if counts.len() >= PAIRS_MAX && !counts.contains_key(&pair) {
                    pair.0 = None;
                }
                *counts.entry(pair).or_default() += 1;
            }
            from = next;
        }
        let told = |((uid, error), partitions)| Unstored { uid, error, partitions };
        counts.into_iter().map(told).collect()
    }
}

type Files = Vec<(std::sync::Arc<dyn BackingFile>, Errno)>;

/// Those among the next partitions, and where to go on; `None` behind the last.
fn some(st: &mut State, from: usize) -> Option<(Files, usize)> {
    let end = st.partitions.places();
    let to = (from + STEP).min(end);
    let found = |id: PartitionId| Some((id, st.partitions.get(id)?.unstored()?));
    let ids: Vec<(PartitionId, Errno)> =
        (from..to).map(PartitionId::new).filter_map(found).collect();
    let files = ids.into_iter().map(|(id, errno)| (st.file(id), errno)).collect();
    (from < end).then_some((files, to))
}

/// The owner of a backing file. Asks the kernel.
pub(crate) fn owner(file: &dyn BackingFile) -> Option<u32> {
    super::locked::assert_outside("asking for an owner");
    let descriptor = file.descriptor()?;
    Some(std::fs::metadata(format!("/proc/self/fd/{descriptor}")).ok()?.uid())
}

/// The names, those of each user in turn: however many one has, the others' are among the first.
pub(crate) fn in_turns(named: Vec<(Option<u32>, String)>) -> Vec<String> {
    let mut users: BTreeMap<Option<u32>, VecDeque<String>> = BTreeMap::new();
    for (user, name) in named {
        users.entry(user).or_default().push_back(name);
    }
    let mut names = Vec::new();
    while !users.is_empty() {
        names.extend(users.values_mut().filter_map(VecDeque::pop_front));
        users.retain(|_, left| !left.is_empty());
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_is_named_before_the_others_end() {
        let many = (0..3).map(|number| (Some(7), format!("a{number}")));
        let named = many.chain([(Some(8), "b".to_owned()), (None, "c".to_owned())]).collect();
        assert_eq!(in_turns(named), ["c", "a0", "b", "a1", "a2"]);
        assert!(in_turns(Vec::new()).is_empty());
    }
}
