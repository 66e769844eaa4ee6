//! What must hold between any two steps: counters, lists and places derived anew from the page sets. Only in
//! builds that look for mistakes, where every step ends with it.

use std::collections::{BTreeMap, BTreeSet};

use super::block::{Block, ListKind};
use super::ids::{BufferId, Id, PartitionId};
use super::pages::PageSet;
use super::state::State;
use super::trays::{Place, Weight, Weights};

fn meet(a: &PageSet, b: &PageSet) -> bool {
    a.union_count(b) < a.count() + b.count()
}

impl State {
    /// # Panics
    /// When something does not hold.
    pub(crate) fn check(&self) {
        let mut sums: BTreeMap<PartitionId, [u64; 5]> = BTreeMap::new();
        let mut lists = [0; 4];
        let mut plain = Weights::default();
        let mut taken: BTreeSet<BufferId> = BTreeSet::new();
        for number in self.blocks.ids() {
            let block = &self.blocks[number];
            if block.partition == PartitionId::NONE {
                assert_eq!(block.place, Place::Nowhere, "an unused block has no place");
                continue;
            }
            check_claims(block);
            assert_eq!(block.list, block.proper_list(), "{number:?} is in its list");
            assert_eq!(block.counted, block.weight(), "the place of {number:?} knows");
            let part = self.partitions.get(block.partition).expect("its partition is known");
            assert_eq!(part.blocks.get(&block.index), Some(&number));
            let counts = block.counts();
            let sum = sums.entry(block.partition).or_default();
            let more = [
                counts.valid,
                counts.dirty,
                counts.inflight,
                counts.pending.into(),
                counts.failed.into(),
            ];
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum += more);
            match block.list {
                ListKind::Clean => lists[0] += 1,
                ListKind::Kept => lists[1] += 1,
                ListKind::Dirty => lists[2] += 1,
                ListKind::Failed => lists[3] += 1,
                ListKind::None | ListKind::Slot => {}
            }
            match block.place {
                Place::Buffer(buffer) => {
                    plain.change(Weight::default(), block.counted);
                    assert!(taken.insert(buffer), "{buffer:?} is one block's");
                }
                Place::Slot { tray, .. } => assert!(self.trays.is_tray(tray)),
                Place::Nowhere => panic!("{number:?} has no place"),
            }
        }
        assert_eq!(plain, self.plain, "what the blocks with a buffer of their own add up to");
        let lengths = [&self.clean, &self.kept, &self.dirty, &self.failed].map(|list| list.length);
        assert_eq!(lists, lengths, "the lists' lengths");
        self.check_partitions(&sums);
        let trays =
            (0..self.buffers).map(BufferId::new).filter(|buffer| self.trays.is_tray(*buffer));
        for buffer in trays.chain(self.free.iter().copied()).chain(self.lent.iter().copied()) {
            assert!(taken.insert(buffer), "{buffer:?} has two holders");
        }
        let frames: BTreeSet<_> = self.frames.iter().collect();
        assert_eq!(frames.len(), self.buffers, "each buffer has memory of its own");
        assert!(self.reserved <= self.buffers);
    }

    fn check_partitions(&self, sums: &BTreeMap<PartitionId, [u64; 5]>) {
        let mut pending = 0;
        let mut handles: BTreeMap<PartitionId, u32> = BTreeMap::new();
        for (_, handle) in self.handles.iter() {
            *handles.entry(handle.partition).or_default() += 1;
        }
        for (id, part) in self.partitions.iter() {
            let found = [
                part.valid_pages,
                part.dirty_pages,
                part.inflight_pages,
                part.pending_blocks,
                part.failed_blocks,
            ];
            assert_eq!(found, sums.get(&id).copied().unwrap_or_default(), "{id:?}");
            assert_eq!(
                part.handles,
                handles.get(&id).copied().unwrap_or_default(),
                "handles of {id:?}"
            );
            assert_eq!(self.keys.get(&part.key), Some(&id));
            assert_eq!(part.idle_since != 0, self.idle.contains_key(&part.idle_since));
            assert!(!part.barrier_running || part.barrier.is_some());
            assert_eq!(part.calls > 0, self.calling.contains(&id), "calls on the file of {id:?}");
            assert!(part.status_waiters.is_empty() || self.status_waits.contains(&id));
            let at_rest = part.active_writes == 0 && part.jobs == 0 && part.pending_blocks == 0;
            let noted = !part.needs_settling() || self.unsettled.contains(&id);
            assert!(!at_rest || part.barrier.is_some() || noted, "{id:?} would never be settled");
            pending += part.pending_blocks;
        }
        assert_eq!(pending, self.pending_blocks, "blocks under transfer or queued for it");
        assert!(sums.keys().all(|id| self.partitions.get(*id).is_some()));
    }
}

/// Who may touch a page excludes who may not.
fn check_claims(block: &Block) {
    assert!(!meet(&block.reading, &block.copying), "read into and copied into");
    assert!(!meet(&block.reading, &block.shared), "read into and copied out");
    assert!(!meet(&block.copying, &block.shared), "copied into and out");
    assert!(!meet(&block.copying, &block.writing), "copied into and stored");
    assert!(!meet(&block.reading, &block.writing), "read into and stored");
    assert_eq!(block.readers == 0, block.shared.is_empty(), "readers have pages");
    assert!(block.transfers > 0 || (block.reading.is_empty() && block.writing.is_empty()));
    assert!(block.partials.iter().all(|partial| {
        block.dirty.contains(partial.page) || block.writing.contains(partial.page)
    }));
    assert!(block.partials.iter().all(|partial| partial.start < partial.end));
}
