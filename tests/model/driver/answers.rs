//! What the answers must be, and what the model makes of them.

use std::ops::Range;
use swapfs::engine::HandleId;

use swapfs::aio::device::BackingFile;
use swapfs::engine::PartitionStatus;
use swapfs::error::{Errno, Result};

use super::{Driver, Effect, Flight, Outcome};
use crate::plain::{Plain, compare};
use crate::rig::Kind;

impl Driver {
    pub(super) fn check_stored(&self, slot: usize, after: &str) {
        if self.world.fails() {
            return;
        }
        let at = &self.slots[slot];
        if let Err(text) = compare(&at.stored(), &at.plain.bytes, 0, &[]) {
            panic!("slot {slot}, swap folder after {after}: {text}");
        }
    }

    pub(super) fn status(&mut self, slot: usize) {
        let at = &self.slots[slot];
        let stable_size = !self
            .flights
            .iter()
            .any(|flight| flight.slot == slot && flight.range.end == u64::MAX && flight.changes);
        if let Some(info) = self.world.engine.info(at.file.key) {
            assert!(info.resident <= info.size, "{info:?}");
            assert!(info.dirty <= info.size, "{info:?}");
            assert!(info.inflight <= info.size, "{info:?}");
            if info.status == PartitionStatus::Available {
                assert!(info.resident == info.size && info.inflight == 0, "{info:?}");
            }
            if info.inflight > 0 {
                assert_eq!(info.status, PartitionStatus::Inflight, "{info:?}");
            }
            if !self.world.fails() {
                assert_eq!(info.error, None);
            }
        }
        let pool = self.world.engine.pool();
        assert!(pool.available <= pool.buffers && pool.dirty <= pool.buffers, "{pool:?}");
        assert!(pool.free <= pool.available, "{pool:?}");
        assert!(pool.inflight <= pool.buffers, "{pool:?}");
        if stable_size && !at.shared && at.plain.open.is_empty() {
            let overlay = self.world.engine.overlay(at.file.key);
            let size = overlay.map_or_else(
                || at.file.file.status().expect("in memory").size,
                |overlay| overlay.size,
            );
            assert_eq!(size, at.plain.size(), "slot {slot}: {overlay:?}");
        }
    }

    /// Walks through data and holes.
    pub(super) fn seek(&mut self, slot: usize) {
        self.settle(|flight| flight.slot == slot);
        let Some(handle) = self.handle(slot, false) else {
            return;
        };
        if self.slots[slot].shared || self.world.fails() {
            let _ = self.world.engine.seek(handle, 0, self.rng.percent(50));
            return;
        }
        self.note(&format!("slot {slot}: seek"));
        let plain = &self.slots[slot].plain;
        let (engine, size) = (&self.world.engine, plain.size());
        let zeros = |range: Range<u64>| plain.range(range).iter().all(|byte| *byte == 0);
        assert_eq!(engine.seek(handle, size, true), Err(Errno::ENXIO));
        let mut at = self.rng.below(size + 1);
        while at < size {
            let data = match engine.seek(handle, at, false) {
                Ok(data) => data,
                Err(errno) => {
                    assert_eq!(errno, Errno::ENXIO);
                    size
                }
            };
            assert!(data >= at && data <= size, "data at {data} from {at}");
            assert!(zeros(at..data), "data in the hole {at} to {data}");
            if data == size {
                break;
            }
            let hole = engine.seek(handle, data, true).expect("the end at the latest");
            assert!(hole > data && hole <= size, "hole at {hole} from {data}");
            at = hole;
        }
    }

    /// Takes the answers that have come.
    pub(super) fn harvest(&mut self) {
        self.settle(|flight| flight.ready());
    }

    pub(crate) fn drain(&mut self) {
        self.settle(|_| true);
    }

    pub(super) fn settle(&mut self, which: impl Fn(&Flight) -> bool) {
        let flights = std::mem::take(&mut self.flights);
        let (due, left) = flights.into_iter().partition(|flight| which(flight));
        self.flights = left;
        let due: Vec<Flight> = due;
        for flight in due {
            self.land(flight);
        }
    }

    pub(super) fn land(&mut self, flight: Flight) {
        let Flight { slot, handle, what, .. } = flight;
        let world = self.world.clone();
        let what = format!("slot {slot}: {what}");
        let grows = flight.range.end == u64::MAX;
        match flight.outcome {
            Outcome::Read(pending, offset, expected, open) => match pending.wait(&world, &what) {
                Ok(found) => {
                    if let Err(text) = compare(&found, &expected, offset, &open) {
                        panic!("{what}: {text}\n{}", world.dump());
                    }
                }
                Err(errno) => self.check_error(errno, &what),
            },
            Outcome::Write(pending, offset, data, stable) => {
                let (result, length) = (pending.wait(&world, &what), data.len() as u64);
                self.note(&format!("{what} -> {result:?}"));
                self.written(slot, (offset, data), stable, result, &what);
                if stable && result.is_err() && world.fails() {
                    self.reported(slot, handle);
                    self.half_written(slot, offset, length, grows);
                }
            }
            Outcome::Change(pending, effect) => match pending.wait(&world, &what) {
                Ok(()) => self.changed(slot, effect),
                Err(Errno::ENOSPC) if world.kind == Kind::Full => {}
                Err(errno) => self.check_error(errno, &what),
            },
            Outcome::Sync(pending) => {
                if let Err(errno) = pending.wait(&world, &what) {
                    self.check_error(errno, &what);
                    self.reported(slot, handle);
                }
            }
            Outcome::All(pending) => {
                let failed = pending.wait(&world, &what);
                assert!(failed.is_empty() || world.fails(), "{failed:?}");
            }
            Outcome::Idle(pending) => pending.wait(&world, &what).expect("no errors"),
        }
    }

    pub(super) fn reported(&mut self, slot: usize, handle: Option<HandleId>) {
        for at in &mut self.slots[slot].handles {
            at.reported |= Some(at.id) == handle;
        }
    }

    pub(super) fn check_error(&self, errno: Errno, what: &str) {
        assert!(
            self.world.fails() && [Errno::EIO, Errno::ENOSPC].contains(&errno),
            "{what}: {errno:?}\n{}",
            self.world.dump()
        );
    }

    pub(super) fn written(
        &mut self, slot: usize, (offset, data): (u64, Vec<u8>), stable: bool,
        result: Result<usize>, what: &str,
    ) {
        let length = data.len();
        match result {
            Ok(count) => {
                let may_be_short = self.world.fails() || self.world.kind == Kind::Full;
                assert!(count == length || (may_be_short && count > 0 && count < length), "{what}");
                let at = &mut self.slots[slot];
                at.plain.write(offset, &data[..count]);
                if stable {
                    let mut stored = vec![0; count];
                    let found = at.file.file.read_at(at.base + offset, &mut stored);
                    assert_eq!(found, Ok(count), "{what}");
                    if let Err(text) = compare(&stored, &data[..count], offset, &[]) {
                        panic!("{what}: not on stable storage: {text}");
                    }
                }
            }
            Err(Errno::ENOSPC) if self.world.kind == Kind::Full => {}
            Err(errno) => {
                self.check_error(errno, what);
            }
        }
    }

    /// A stable write failed: the bytes may have been taken all the same.
    pub(super) fn half_written(&mut self, slot: usize, offset: u64, length: u64, grows: bool) {
        let at = &mut self.slots[slot];
        if grows {
            let size = self.world.engine.overlay(at.file.key).expect("it is open").size;
            let old = at.plain.size();
            assert!(size >= old && size <= old.max(offset + length));
            at.plain.bytes.resize(size as usize, 0);
        }
        let end = (offset + length).min(at.plain.size());
        if offset < end {
            at.plain.open.push(offset..end);
        }
    }

    pub(super) fn changed(&mut self, slot: usize, effect: Effect) {
        let at = &mut self.slots[slot];
        let grow = |plain: &mut Plain, end: u64| {
            if end > plain.size() {
                plain.bytes.resize(end as usize, 0);
            }
        };
        match effect {
            Effect::Resize(size) => at.plain.resize(size),
            Effect::Zero(from, to) => at.plain.zero(from..to),
            Effect::ZeroAndGrow(from, to) => {
                grow(&mut at.plain, to);
                at.plain.zero(from..to);
            }
            Effect::Grow(to) => grow(&mut at.plain, to),
            Effect::None => {}
        }
    }
}
