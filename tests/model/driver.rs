//! Random operations on a few files, several under way at once as long as they do not touch the same
//! bytes, and what each of them must answer.

mod answers;
mod calls;
mod requests;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use swapfs::engine::HandleId;

use swapfs::engine::PartitionStatus;
use swapfs::error::{Errno, Result};

use super::plain::Plain;
use super::rig::{Failures, Kind, Pending, Rng, TestFile, World};

pub(crate) const SIZE_MAX: u64 = 1_500_000;

/// Of files of which there are many.
pub(crate) const SMALL_MAX: u64 = 40_000;
const FLIGHTS_MAX: usize = 8;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

/// An open handle and whether it has reported an error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handle {
    pub(crate) id: HandleId,
    write: bool,
    /// Failures before it was opened, if none of them was still on its way to the engine then.
    pub(crate) failures_before: Option<Failures>,
    pub(crate) failures_at_open: Failures,
    pub(crate) reported: bool,
}

/// A file, or a range of one, and what it must hold.
pub(crate) struct Slot {
    pub(crate) file: Arc<TestFile>,
    pub(crate) base: u64,
    /// Only a range of the file is this slot's; its size stays.
    pub(crate) shared: bool,
    pub(crate) plain: Plain,
    pub(crate) handles: Vec<Handle>,
    /// Where a sequential writer goes on, and in what steps.
    stream: (u64, u64),
    /// Space beyond the end was asked for.
    pub(crate) kept: bool,
    /// It does not become larger.
    size_max: u64,
}

impl Slot {
    pub(crate) fn own(world: &World, rng: &mut Rng, size_max: u64) -> Slot {
        let file = Arc::new(TestFile::new(world));
        let mut plain = Plain::default();
        if rng.percent(40) && world.kind != Kind::Full {
            let length =
                rng.pick(&[100, 4096, 9000, 33_000, 65_536, 70_001, 300_000]).min(size_max);
            plain.write(0, &rng.bytes(length));
            file.fill(&plain.bytes);
        }
        Slot {
            file,
            base: 0,
            shared: false,
            plain,
            handles: Vec::new(),
            stream: (0, 3000),
            kept: false,
            size_max,
        }
    }

    pub(crate) fn region(file: Arc<TestFile>, base: u64, length: u64) -> Slot {
        let mut plain = Plain::default();
        plain.resize(length);
        Slot {
            file,
            base,
            shared: true,
            plain,
            handles: Vec::new(),
            stream: (0, 3000),
            kept: false,
            size_max: length,
        }
    }

    /// Its bytes in the swap folder.
    pub(crate) fn stored(&self) -> Vec<u8> {
        let mut bytes = self.file.file.bytes();
        if self.shared {
            bytes.drain(..self.base as usize);
            bytes.truncate(self.plain.bytes.len());
        }
        bytes
    }
}

/// An operation under way.
struct Flight {
    slot: usize,
    handle: Option<HandleId>,
    /// Bytes it depends on or changes, from the slot's start.
    range: Range<u64>,
    changes: bool,
    what: String,
    outcome: Outcome,
}

enum Outcome {
    Read(Pending<Result<Vec<u8>>>, u64, Vec<u8>, Vec<Range<u64>>),
    Write(Pending<Result<usize>>, u64, Vec<u8>, bool),
    Change(Pending<Result<()>>, Effect),
    Sync(Pending<Result<()>>),
    All(Pending<Vec<String>>),
    Idle(Pending<Result<()>>),
}

#[derive(Clone, Copy)]
enum Effect {
    Resize(u64),
    Zero(u64, u64),
    /// Zeroes from the first to the second, at least that long afterwards.
    ZeroAndGrow(u64, u64),
    Grow(u64),
    None,
}

/// The bytes that a call touches which makes the file longer when it ends beyond the end.
fn growing(offset: u64, length: u64) -> impl Fn(u64) -> Range<u64> {
    move |size| {
        if offset + length > size { offset.min(size)..u64::MAX } else { offset..offset + length }
    }
}

pub(crate) struct Driver {
    pub(crate) world: Arc<World>,
    rng: Rng,
    pub(crate) slots: Vec<Slot>,
    flights: Vec<Flight>,
    log: Vec<String>,
    /// Others use the engine too.
    together: bool,
}

impl Drop for Driver {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let from = self.log.len().saturating_sub(40);
            eprintln!("the last operations:\n{}", self.log[from..].join("\n"));
        }
    }
}

impl Driver {
    pub(crate) fn new(world: Arc<World>, rng: Rng, slots: Vec<Slot>, together: bool) -> Driver {
        Driver { world, rng, slots, flights: Vec::new(), log: Vec::new(), together }
    }

    fn note(&mut self, text: &str) {
        self.log.push(text.to_owned());
    }

    pub(crate) fn step(&mut self) {
        let slot = self.rng.below(self.slots.len() as u64) as usize;
        if self.slots[slot].handles.is_empty() && !self.open(slot) {
            return;
        }
        match self.rng.below(100) {
            0..35 => self.write(slot),
            35..60 => self.read(slot),
            60..66 => self.truncate(slot),
            66..73 => self.allocate(slot),
            73..79 => self.sync(slot),
            79..82 => self.close(slot),
            82..86 => self.seek(slot),
            86..88 => self.sync_all(),
            88..91 => self.open_or_release(slot),
            91..93 => self.release_all(slot),
            93..94 => self.unlink(slot),
            94..95 => self.wait_idle(slot),
            95..98 => self.request(slot),
            _ => self.status(slot),
        }
        if self.rng.percent(40) {
            self.harvest();
        }
        if self.rng.percent(10) {
            self.drain();
        }
    }

    fn handle(&mut self, slot: usize, write: bool) -> Option<HandleId> {
        let handles: Vec<HandleId> = self.slots[slot]
            .handles
            .iter()
            .filter(|handle| handle.write || !write)
            .map(|handle| handle.id)
            .collect();
        (!handles.is_empty()).then(|| self.rng.pick(&handles))
    }

    fn open(&mut self, slot: usize) -> bool {
        let (read, write) =
            self.rng.pick(&[(true, true), (true, true), (true, false), (false, true)]);
        let at = &mut self.slots[slot];
        let failures = self.world.failures(&at.file);
        let info = self.world.engine.info(at.file.key);
        let quiet = info.is_none_or(|info| info.status != PartitionStatus::Inflight)
            && self.flights.iter().all(|flight| flight.slot != slot);
        match at.file.open(&self.world, read, write) {
            Ok(id) => {
                at.handles.push(Handle {
                    id,
                    write,
                    failures_before: quiet.then_some(failures),
                    failures_at_open: self.world.failures(&at.file),
                    reported: false,
                });
                self.note(&format!("slot {slot}: open {id:?} {read} {write}"));
                true
            }
            Err(errno) => {
                assert!(self.world.fails() && read && errno == Errno::EIO, "{errno}");
                false
            }
        }
    }

    fn release(&mut self, slot: usize, at: usize) {
        let id = self.slots[slot].handles[at].id;
        self.settle(|flight| flight.slot == slot && flight.handle == Some(id));
        self.slots[slot].handles.remove(at);
        self.note(&format!("slot {slot}: release {id:?}"));
        self.world.engine.release(id);
    }

    fn open_or_release(&mut self, slot: usize) {
        let count = self.slots[slot].handles.len() as u64;
        if count < 3 && self.rng.percent(60) {
            self.open(slot);
        } else {
            let at = self.rng.below(count) as usize;
            self.release(slot, at);
        }
    }

    /// The last handle gone, everything must end up in the swap folder by itself.
    fn release_all(&mut self, slot: usize) {
        self.settle(|flight| flight.slot == slot);
        while !self.slots[slot].handles.is_empty() {
            self.release(slot, 0);
        }
        if !self.world.fails() && !self.slots[slot].shared {
            let at = &self.slots[slot];
            let wait = || at.stored() == at.plain.bytes;
            self.world.until("written after the last release", wait);
        }
    }

    fn unlink(&mut self, slot: usize) {
        if self.slots[slot].shared {
            return;
        }
        self.settle(|flight| flight.slot == slot);
        let file = self.slots[slot].file.clone();
        self.note(&format!("slot {slot}: unlink"));
        file.file.set_links(0);
        file.unlinked.store(true, Relaxed);
        self.world.engine.unlinked(file.key, false);
        if self.rng.percent(50) {
            self.read(slot);
            self.write(slot);
            self.settle(|flight| flight.slot == slot);
        }
        while !self.slots[slot].handles.is_empty() {
            self.release(slot, 0);
        }
        let world = self.world.clone();
        world.until("forgotten", || world.engine.info(file.key).is_none());
        let mut rng = self.rng.fork();
        self.slots[slot] = Slot::own(&world, &mut rng, self.slots[slot].size_max);
    }

    /// Waits for what touches the same bytes, which depend on the file's size; returns them.
    fn clear(
        &mut self, slot: usize, changes: bool, what: &str, range: impl Fn(u64) -> Range<u64>,
    ) -> Range<u64> {
        while self.flights.len() >= FLIGHTS_MAX {
            let flight = self.flights.remove(0);
            self.land(flight);
        }
        loop {
            let now = range(self.slots[slot].plain.size());
            self.settle(|flight| {
                flight.slot == slot
                    && flight.range.start < now.end
                    && now.start < flight.range.end
                    && (changes || flight.changes)
            });
            if now == range(self.slots[slot].plain.size()) {
                self.note(&format!("slot {slot}: {what}"));
                return now;
            }
        }
    }
}

impl Flight {
    fn ready(&self) -> bool {
        match &self.outcome {
            Outcome::Read(pending, ..) => pending.ready(),
            Outcome::Write(pending, ..) => pending.ready(),
            Outcome::Change(pending, _) | Outcome::Sync(pending) | Outcome::Idle(pending) => {
                pending.ready()
            }
            Outcome::All(pending) => pending.ready(),
        }
    }
}
