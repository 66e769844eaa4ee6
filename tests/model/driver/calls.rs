//! The calls of clients: which bytes, and what they change.

use std::ops::Range;
use std::time::Duration;
use swapfs::engine::HandleId;

use swapfs::engine::Reply;
use swapfs::error::Result;
use swapfs::shares::User;

use super::{Driver, Effect, Flight, KEEP, Outcome, PUNCH, ZERO, growing};
use crate::rig::{BLOCK, Kind, Pending, World};

impl Driver {
    pub(super) fn position(&mut self, slot: usize) -> (u64, u64) {
        let size = self.slots[slot].plain.size();
        let length = match self.rng.below(5) {
            0 => self.rng.between(1, 20),
            1 => self.rng.between(1, 9000),
            2 => 4096 * self.rng.between(1, 20),
            3 => BLOCK * self.rng.between(1, 3),
            _ => self.rng.between(1, 200_000),
        };
        let length = length.min((self.world.options.pool_size / BLOCK - 1) * BLOCK);
        let length = length.min(self.slots[slot].size_max);
        let most = if self.slots[slot].shared {
            size
        } else {
            (size + 150_000).min(self.slots[slot].size_max)
        };
        let offset = match self.rng.below(4) {
            0 => self.rng.below(most + 1) / BLOCK * BLOCK,
            1 => self.rng.below(most + 1) / 4096 * 4096,
            2 => size.min(most).saturating_sub(self.rng.below(5000)),
            _ => self.rng.below(most + 1),
        };
        if self.slots[slot].shared {
            return (offset, length.min(size - offset));
        }
        (offset, length)
    }

    pub(super) fn write(&mut self, slot: usize) {
        let Some(handle) = self.handle(slot, true) else {
            return;
        };
        let (mut offset, mut length) = self.position(slot);
        let shared = self.slots[slot].shared;
        if self.rng.percent(40) {
            if self.rng.percent(10) {
                let piece = self.rng.pick(&[100, 3000, 4096, 65_521, 65_536, 20_000]);
                self.slots[slot].stream = (offset, piece);
            }
            (offset, length) = self.slots[slot].stream;
            let size = self.slots[slot].plain.size();
            let end = if shared { size } else { self.slots[slot].size_max };
            if offset + length > end {
                (offset, length) = (0, length.min(end));
            }
            self.slots[slot].stream.0 = offset + length;
        }
        if self.rng.percent(20) {
            let first = offset / BLOCK * BLOCK;
            let size = self.slots[slot].plain.size();
            if first + BLOCK <= if shared { size } else { self.slots[slot].size_max } {
                (offset, length) = (first, BLOCK);
            }
        }
        if length == 0 {
            return;
        }
        let stable = self.rng.percent(6);
        let what = format!("write {offset}+{length} through {handle:?}, stable {stable}");
        let range = self.clear(slot, true, &what, growing(offset, length));
        let data = self.rng.bytes(length);
        let (pending, reply) = Pending::new();
        let at = self.slots[slot].base + offset;
        // Most often as they will lie in their blocks.
        let start = match self.rng.below(4) {
            0 => 0,
            1 => self.rng.below(BLOCK),
            _ => at % BLOCK,
        };
        let lent = self.rng.percent(60).then_some(start);
        self.world.write(lent, handle, at, &data, stable, Box::new(reply));
        self.flights.push(Flight {
            slot,
            handle: Some(handle),
            range,
            changes: true,
            what,
            outcome: Outcome::Write(pending, offset, data, stable),
        });
    }

    pub(super) fn read(&mut self, slot: usize) {
        let Some(handle) = self.handle(slot, false) else {
            return;
        };
        let (offset, length) = self.position(slot);
        let what = format!("read {offset}+{length} through {handle:?}");
        let range = self.clear(slot, false, &what, |size| {
            if offset + length > size {
                offset.min(size)..u64::MAX
            } else {
                offset..offset + length
            }
        });
        let at = &self.slots[slot];
        let expected = at.plain.range(offset..offset + length);
        let open = at.plain.open.clone();
        let pending = self.start_read(handle, at.base + offset, length);
        self.flights.push(Flight {
            slot,
            handle: Some(handle),
            range,
            changes: false,
            what,
            outcome: Outcome::Read(pending, offset, expected, open),
        });
    }

    pub(crate) fn start_read(
        &self, handle: HandleId, offset: u64, length: u64,
    ) -> Pending<Result<Vec<u8>>> {
        let (pending, reply) = Pending::new();
        let reply = move |result: Result<&[&[u8]]>| reply(result.map(<[&[u8]]>::concat));
        self.world.engine.read(handle, offset, length, Box::new(reply));
        pending
    }

    pub(super) fn change(
        &mut self, slot: usize, what: String, effect: Effect, range: impl Fn(u64) -> Range<u64>,
        start: impl FnOnce(&World, HandleId, u64, Reply),
    ) {
        let Some(handle) = self.handle(slot, true) else {
            return;
        };
        let range = self.clear(slot, true, &what, range);
        let (pending, reply) = Pending::new();
        start(&self.world, handle, self.slots[slot].base, Box::new(reply));
        self.flights.push(Flight {
            slot,
            handle: Some(handle),
            range,
            changes: true,
            what,
            outcome: Outcome::Change(pending, effect),
        });
    }

    pub(super) fn truncate(&mut self, slot: usize) {
        if self.slots[slot].shared {
            return self.read(slot);
        }
        let old = self.slots[slot].plain.size();
        let size = match self.rng.below(6) {
            0 => 0,
            1 => self.rng.below(self.slots[slot].size_max),
            2 => self.rng.below(old + 1) / 4096 * 4096,
            3 => old + self.rng.below(10_000),
            _ => self.rng.below(old + 1),
        };
        let effect = Effect::Resize(size);
        let what = format!("truncate {old} to {size}");
        let range = |now: u64| now.min(size)..u64::MAX;
        self.change(slot, what, effect, range, |world, handle, _, reply| {
            world.engine.truncate(handle, size, reply);
        });
    }

    pub(super) fn allocate(&mut self, slot: usize) {
        let (offset, length) = self.position(slot);
        if length == 0 {
            return;
        }
        let mode = if self.slots[slot].shared {
            self.rng.pick(&[PUNCH, ZERO | KEEP, PUNCH])
        } else if self.world.kind == Kind::Full {
            // Space kept beyond the end is given back and taken again when a file is cut, and may be
            // somebody else's then.
            self.rng.pick(&[0, PUNCH, ZERO, PUNCH])
        } else {
            self.rng.pick(&[0, KEEP, PUNCH, ZERO, ZERO | KEEP, PUNCH])
        };
        let end = offset + length;
        let effect = match mode {
            0 => Effect::Grow(end),
            ZERO => Effect::ZeroAndGrow(offset, end),
            KEEP => Effect::None,
            _ => Effect::Zero(offset, end),
        };
        let range = |size: u64| {
            if mode & KEEP == 0 { growing(offset, length)(size) } else { offset..end }
        };
        self.slots[slot].kept |= mode & KEEP != 0 && mode != PUNCH;
        let what = format!("allocate {mode:#x} {offset}+{length}");
        self.change(slot, what, effect, range, |world, handle, base, reply| {
            world.engine.allocate(handle, mode, base + offset, length, reply);
        });
    }

    pub(super) fn sync(&mut self, slot: usize) {
        let Some(handle) = self.handle(slot, false) else {
            return;
        };
        let alone = self.rng.percent(60);
        if alone {
            self.settle(|flight| flight.slot == slot);
        }
        let data_only = self.rng.percent(50);
        self.note(&format!("slot {slot}: sync {data_only} through {handle:?}"));
        let (pending, reply) = Pending::new();
        self.world.engine.sync(handle, data_only, Box::new(reply));
        self.flights.push(Flight {
            slot,
            handle: Some(handle),
            range: 0..0,
            changes: false,
            what: "sync".to_owned(),
            outcome: Outcome::Sync(pending),
        });
        if alone {
            self.settle(|flight| flight.slot == slot);
            self.check_stored(slot, "sync");
        }
    }

    pub(super) fn close(&mut self, slot: usize) {
        let Some(handle) = self.handle(slot, false) else {
            return;
        };
        let wait = self.rng.percent(50);
        self.note(&format!("slot {slot}: close {handle:?} {wait}"));
        let (pending, reply) = Pending::new();
        self.world.engine.close(handle, wait, Box::new(reply));
        self.flights.push(Flight {
            slot,
            handle: Some(handle),
            range: 0..0,
            changes: false,
            what: "close".to_owned(),
            outcome: Outcome::Sync(pending),
        });
    }

    pub(super) fn sync_all(&mut self) {
        let alone = self.rng.percent(50);
        if alone {
            self.drain();
        }
        self.note("sync_all");
        let (pending, reply) = Pending::new();
        self.world.engine.sync_all(Box::new(reply));
        self.flights.push(Flight {
            slot: 0,
            handle: None,
            range: 0..0,
            changes: false,
            what: "sync_all".to_owned(),
            outcome: Outcome::All(pending),
        });
        if alone {
            self.drain();
            for slot in 0..self.slots.len() {
                if !self.slots[slot].handles.is_empty() {
                    self.check_stored(slot, "sync_all");
                }
            }
        }
    }

    pub(super) fn wait_idle(&mut self, slot: usize) {
        let (pending, reply) = Pending::new();
        let time = Duration::from_millis(self.rng.below(100));
        if self.rng.percent(50) {
            let key = self.slots[slot].file.key;
            self.world.engine.wait_idle(User::OWN, key, time, Box::new(reply));
        } else {
            self.world.engine.wait_all_idle(User::OWN, time, Box::new(reply));
        }
        self.flights.push(Flight {
            slot,
            handle: None,
            range: 0..0,
            changes: false,
            what: "wait_idle".to_owned(),
            outcome: Outcome::Idle(pending),
        });
    }
}
