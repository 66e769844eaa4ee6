//! Random operations on a few files, several under way at once as long as they do not touch the same
//! bytes, and what each of them must answer.

mod answers;

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use swapfs::error::{Errno, Result};
use swapfs::swap::{PartitionStatus, Reply};

use super::plain::Plain;
use super::rig::{BLOCK, Kind, Pending, Rng, TestFile, World};

const SIZE_MAX: u64 = 1_500_000;
const FLIGHTS_MAX: usize = 8;
const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;

/// An open handle and whether it has reported an error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Handle {
    pub(crate) id: u64,
    write: bool,
    /// Failures before it was opened, if none of them was still on its way to the engine then.
    pub(crate) failures_before: Option<u64>,
    pub(crate) failures_at_open: u64,
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
}

impl Slot {
    pub(crate) fn own(world: &World, rng: &mut Rng) -> Slot {
        let file = Arc::new(TestFile::new(world));
        let mut plain = Plain::default();
        if rng.percent(40) && world.kind != Kind::Full {
            let length = rng.pick(&[100, 4096, 65_536, 70_001, 300_000]);
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
    handle: Option<u64>,
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
    pub(crate) fn new(world: Arc<World>, rng: Rng, slots: Vec<Slot>) -> Driver {
        Driver { world, rng, slots, flights: Vec::new(), log: Vec::new() }
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
            94..96 => self.wait_idle(slot),
            _ => self.status(slot),
        }
        if self.rng.percent(40) {
            self.harvest();
        }
        if self.rng.percent(10) {
            self.drain();
        }
    }

    fn handle(&mut self, slot: usize, write: bool) -> Option<u64> {
        let handles: Vec<u64> = self.slots[slot]
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
                self.note(&format!("slot {slot}: open {id} {read} {write}"));
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
        self.note(&format!("slot {slot}: release {id}"));
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
        self.world.engine.unlinked(file.key);
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
        self.slots[slot] = Slot::own(&world, &mut rng);
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

    fn position(&mut self, slot: usize) -> (u64, u64) {
        let size = self.slots[slot].plain.size();
        let length = match self.rng.below(5) {
            0 => self.rng.between(1, 20),
            1 => self.rng.between(1, 9000),
            2 => 4096 * self.rng.between(1, 20),
            3 => BLOCK * self.rng.between(1, 3),
            _ => self.rng.between(1, 200_000),
        };
        let length = length.min((self.world.options.pool_size / BLOCK - 1) * BLOCK);
        let most = if self.slots[slot].shared { size } else { (size + 150_000).min(SIZE_MAX) };
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

    fn write(&mut self, slot: usize) {
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
            let end = if shared { size } else { SIZE_MAX };
            if offset + length > end {
                (offset, length) = (0, length.min(end));
            }
            self.slots[slot].stream.0 = offset + length;
        }
        if length == 0 {
            return;
        }
        let stable = self.rng.percent(6);
        let what = format!("write {offset}+{length} through {handle}, stable {stable}");
        let range = self.clear(slot, true, &what, growing(offset, length));
        let data = self.rng.bytes(length);
        let (pending, reply) = Pending::new();
        let at = self.slots[slot].base + offset;
        self.world.engine.write(handle, at, &data, stable, Box::new(reply));
        self.flights.push(Flight {
            slot,
            handle: Some(handle),
            range,
            changes: true,
            what,
            outcome: Outcome::Write(pending, offset, data, stable),
        });
    }

    fn read(&mut self, slot: usize) {
        let Some(handle) = self.handle(slot, false) else {
            return;
        };
        let (offset, length) = self.position(slot);
        let what = format!("read {offset}+{length} through {handle}");
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
        &self, handle: u64, offset: u64, length: u64,
    ) -> Pending<Result<Vec<u8>>> {
        let (pending, reply) = Pending::new();
        let reply = move |result: Result<&[&[u8]]>| reply(result.map(<[&[u8]]>::concat));
        self.world.engine.read(handle, offset, length, Box::new(reply));
        pending
    }

    fn change(
        &mut self, slot: usize, what: String, effect: Effect, range: impl Fn(u64) -> Range<u64>,
        start: impl FnOnce(&World, u64, u64, Reply),
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

    fn truncate(&mut self, slot: usize) {
        if self.slots[slot].shared {
            return self.read(slot);
        }
        let old = self.slots[slot].plain.size();
        let size = match self.rng.below(6) {
            0 => 0,
            1 => self.rng.below(SIZE_MAX),
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

    fn allocate(&mut self, slot: usize) {
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

    fn sync(&mut self, slot: usize) {
        let Some(handle) = self.handle(slot, false) else {
            return;
        };
        let alone = self.rng.percent(60);
        if alone {
            self.settle(|flight| flight.slot == slot);
        }
        let data_only = self.rng.percent(50);
        self.note(&format!("slot {slot}: sync {data_only} through {handle}"));
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

    fn close(&mut self, slot: usize) {
        let Some(handle) = self.handle(slot, false) else {
            return;
        };
        let wait = self.rng.percent(50);
        self.note(&format!("slot {slot}: close {handle} {wait}"));
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

    fn sync_all(&mut self) {
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

    fn wait_idle(&mut self, slot: usize) {
        let (pending, reply) = Pending::new();
        let time = Duration::from_millis(self.rng.below(100));
        if self.rng.percent(50) {
            let key = self.slots[slot].file.key;
            self.world.engine.wait_idle(key, time, Box::new(reply));
        } else {
            self.world.engine.wait_all_idle(time, Box::new(reply));
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
