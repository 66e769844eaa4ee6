//! Partitions at rest: small ones that nobody has open, whole in the pool and in the swap folder alike.
//!
//! Of these only the bytes and a few words are kept: no descriptor, no block, no partition. That is what
//! lets a pool hold tens of thousands of them. Who opens one brings the file along, as for a partition that
//! the engine has never seen, and finds the bytes in their slot. They cannot go stale meanwhile: all changes
//! of a file in the swap folder come through the engine, which forgets the bytes of a file that was unlinked.

use std::collections::HashMap;

use super::actions::{Actions, Note};
use super::block::ListKind;
use super::ids::{BufferId, PartitionId, RestingId, Table};
use super::partition::{FileKey, PartitionStatus};
use super::state::State;
use super::status::PartitionInfo;
use super::trays::{Occupant, Place, Weight};
use crate::shares::{Share, User};

/// Partitions at rest at most: with their 48 bytes each, their entry of 33 in a table that may be half
/// empty, and 8 for the slot, about 11 MiB.
const RESTING_MAX: usize = 114_688;

#[derive(Debug)]
struct AtRest {
    key: FileKey,
    size: u64,
    tray: BufferId,
    slot: u32,
    kept: bool,
}

/// All partitions at rest.
#[derive(Debug)]
pub(crate) struct Resting {
    files: Table<RestingId, AtRest>,
    keys: HashMap<FileKey, RestingId>,
    /// Whose shares those take that are kept, by number, where they take any.
    keepers: HashMap<RestingId, Share>,
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

impl State {
    /// Whether nothing of a partition is needed but its bytes, all of them in one slot.
    fn restable(&self, id: PartitionId) -> bool {
        let Some(part) = self.partitions.get(id) else { return false };
        let (Some((0, buffer)), 1) = (part.blocks.first_key_value(), part.blocks.len()) else {
            return false;
        };
        let block = &self.blocks[*buffer];
        let pages = part.size.div_ceil(self.shape.unit) as usize;
        let whole = pages <= block.pages && part.valid_pages as usize == pages;
        let swappable = part.size >= self.shape.min_swap_size;
        part.leavable() && !part.unlinked && !swappable && whole && block.list == ListKind::Slot
    }

    /// Puts a partition to rest if that can be. Its descriptor is closed outside the lock.
    pub(crate) fn rest(&mut self, id: PartitionId, actions: &mut Actions) -> bool {
        if !self.restable(id) {
            return false;
        }
        while self.resting.len() >= RESTING_MAX {
            match self.trays.oldest(true) {
                Some(tray) => self.evict_tray(tray, actions),
                None => return false,
            }
        }
        // The last tray may have been its own.
        if !self.restable(id) {
            return true;
        }
        let part = self.partitions.remove(id).expect("looked up just now");
        let buffer = part.blocks[&0];
        let block = &self.blocks[buffer];
        let Place::Slot { tray, slot } = block.place else { unreachable!("checked above") };
        let told = block.told;
        let keeper = self.block(buffer).kept.take();
        let kept = keeper.is_some();
        let at_rest = AtRest { key: part.key, size: part.size, tray, slot, kept };
        let number = self.resting.files.insert(at_rest);
        let keeper = keeper.filter(Share::is_counted).map(|share| (number, share));
        self.resting.keepers.extend(keeper);
        self.resting.keys.insert(part.key, number);
        self.trays.hand_over(tray, slot, Occupant::Resting(number));
        self.trays.weigh(tray, told, Weight { kept, ..Weight::default() });
        self.abandon(buffer);
        self.keys.remove(&part.key);
        self.idle.remove(&part.idle_since);
        self.drops += 1;
        actions.files.push(part.file);
        true
    }

    /// Gives a partition that has become known the bytes of its rest, if it had one. `size` is the
    /// file's.
    pub(crate) fn wake_up(&mut self, id: PartitionId, size: u64, actions: &mut Actions) {
        let key = self.part(id).key;
        let Some(number) = self.resting.keys.get(&key).copied() else { return };
        let at_rest = self.resting.files.get(number).expect("its key is known");
        if at_rest.size != size {
            let known = at_rest.size;
            actions.notes.push(Note::Changed { file: self.file(id), known, found: size });
            return self.forget_resting(number);
        }
        let AtRest { tray, slot, kept, .. } = *at_rest;
        // Vacated and taken again at once; the tray stays one although this may be its only slot.
        self.trays.weigh(tray, Weight { kept, ..Weight::default() }, Weight::default());
        let buffer = self.adopt(tray, slot, id);
        self.resting.files.remove(number);
        self.resting.keys.remove(&key);
        let keeper = self.resting.keepers.remove(&number);
        let pages = size.div_ceil(self.shape.unit) as usize;
        self.edit(buffer, |block| {
            block.valid.insert(0..pages);
            block.kept = kept.then(|| keeper.unwrap_or(Share::uncounted(User::OWN)));
        });
        self.touch(buffer);
    }

    /// Drops the bytes of a partition at rest.
    pub(crate) fn forget_resting(&mut self, number: RestingId) {
        let at_rest = self.resting.files.remove(number).expect("it rests");
        self.resting.keys.remove(&at_rest.key);
        self.resting.keepers.remove(&number);
        let weight = Weight { kept: at_rest.kept, ..Weight::default() };
        if self.trays.vacate(at_rest.tray, at_rest.slot, weight) {
            self.free.push(at_rest.tray);
        }
    }

    /// As [`State::forget_resting`], by key; nothing for one that does not rest.
    pub(crate) fn forget_resting_key(&mut self, key: FileKey) {
        if let Some(number) = self.resting.keys.get(&key).copied() {
            self.forget_resting(number);
        }
    }
}
