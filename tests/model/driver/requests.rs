//! What users ask for by name: none of it changes a byte, but for a discard, after which the file is what
//! the swap folder holds.

use swapfs::aio::device::BackingFile;
use swapfs::engine::{PartitionStatus, Request};
use swapfs::error::Errno;

use super::{Driver, Effect};
use crate::plain::Plain;
use crate::rig::{BLOCK, Kind, Pending};

impl Driver {
    pub(super) fn request(&mut self, slot: usize) {
        let key = self.slots[slot].file.key;
        match self.rng.below(10) {
            0..2 => self.swap_in(slot),
            2 => {
                self.note(&format!("slot {slot}: swap out"));
                self.world.engine.request(key, Request::SwapOut);
            }
            3 => {
                self.note(&format!("slot {slot}: release blocks"));
                self.world.engine.request(key, Request::Release);
            }
            4 => self.release_alone(slot),
            5..7 => self.discard(slot),
            7 => self.reserve_space(slot),
            8 => {
                self.note("release all blocks");
                self.world.engine.request_all(Request::Release);
            }
            _ => self.reserve_buffers(),
        }
    }

    fn swap_in(&mut self, slot: usize) {
        let Some(handle) = self.handle(slot, false) else { return };
        let result = self.world.engine.swap_in(handle);
        self.note(&format!("slot {slot}: swap in -> {result:?}"));
        let at = &self.slots[slot];
        let (size, pool) = (at.plain.size(), self.world.options.pool_size);
        match result {
            Err(errno) => {
                assert_eq!(errno, Errno::ENOBUFS);
                let reserved = self.world.engine.pool().reserved > 0 || self.together;
                let changing = self.flights.iter().any(|flight| flight.slot == slot);
                assert!(reserved || changing || at.shared || size > pool, "{size} in {pool}");
            }
            // A quiet partition that fits twice is all there afterwards.
            Ok(()) if self.rng.percent(50) && !self.together && self.slots.len() == 1 => {
                self.settle(|flight| flight.slot == slot);
                let size = self.slots[slot].plain.size().next_multiple_of(BLOCK);
                let (world, key) = (self.world.clone(), self.slots[slot].file.key);
                let status = || world.engine.info(key).expect("it is open").status;
                world.until("swapped in", || status() != PartitionStatus::Inflight);
                let roomy = size * 2 <= pool && world.engine.pool().reserved == 0;
                if roomy && !world.fails() {
                    assert_eq!(status(), PartitionStatus::Available, "slot {slot}");
                }
            }
            Ok(()) => {}
        }
    }

    /// Without anybody inside, everything goes.
    fn release_alone(&mut self, slot: usize) {
        if self.slots[slot].shared || self.world.fails() {
            return;
        }
        self.settle(|flight| flight.slot == slot);
        self.note(&format!("slot {slot}: release blocks, and wait"));
        let (world, key) = (self.world.clone(), self.slots[slot].file.key);
        world.engine.request(key, Request::Release);
        world.until("released", || world.engine.info(key).is_none_or(|info| info.resident == 0));
    }

    fn discard(&mut self, slot: usize) {
        if self.slots[slot].shared || self.slots[slot].handles.is_empty() {
            return;
        }
        self.settle(|flight| flight.slot == slot);
        self.note(&format!("slot {slot}: discard"));
        let world = self.world.clone();
        let (pending, reply) = Pending::new();
        world.engine.discard(self.slots[slot].file.key, Box::new(reply));
        assert_eq!(pending.wait(&world, "discard"), Ok(()));
        let at = &mut self.slots[slot];
        let mut bytes = at.file.file.bytes();
        bytes.truncate(at.plain.bytes.len());
        at.plain = Plain { bytes, open: Vec::new() };
        let found = world.engine.info(at.file.key).expect("it is open");
        assert_eq!((found.size, found.dirty), (at.plain.size(), 0));
        assert!(found.error.is_none() || world.fails(), "{found:?}");
        self.read(slot);
    }

    fn reserve_space(&mut self, slot: usize) {
        if self.world.kind == Kind::Full || self.slots[slot].shared {
            return;
        }
        let size = self.rng.between(1, self.slots[slot].plain.size() + 200_000);
        self.slots[slot].kept = true;
        let what = format!("reserve space {size}");
        self.change(
            slot,
            what,
            Effect::None,
            |_| 0..u64::MAX,
            move |world, handle, _, reply| {
                world.engine.reserve_space(handle, size, reply);
            },
        );
        if self.rng.percent(50) {
            self.settle(|flight| flight.slot == slot);
            let status = self.slots[slot].file.file.status().expect("in memory");
            let cut = self.slots[slot].handles.iter().all(|handle| !handle.write);
            assert!(cut || status.allocated >= size, "{status:?} of {size}");
        }
    }

    fn reserve_buffers(&mut self) {
        let engine = &self.world.engine;
        if self.rng.percent(50) {
            engine.release_reserved_buffers();
            return self.note("release reserved buffers");
        }
        let pool = engine.pool();
        let count = self.rng.between(1, pool.buffers + 1);
        let result = engine.reserve_buffers(count);
        if !self.together {
            let left = pool.buffers - pool.reserved;
            assert_eq!(result.is_ok(), count <= left, "{count} of {left}");
        }
        self.note(&format!("reserve {count} buffers -> {result:?}"));
    }
}
