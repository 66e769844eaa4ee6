//! Trays: buffers that are cut into slots of one size, for partitions that would waste a whole one.
//!
//! Pure bookkeeping: which slot is whose, which trays could be evicted, and what each of them adds to
//! the pool's counters. A tray whose slots are all idle and clean can be evicted and counts as available;
//! one that nobody uses any more is a free buffer again at once.
//!
//! A tray may have a single slot as long as the buffer: a partition that needs a whole buffer, and still
//! is small enough to be spared.

use std::collections::BTreeSet;

use super::ids::{BlockId, BufferId, Places, RestingId};
use super::pages::PageSet;

/// Where a block's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Nowhere: the block is unused.
    Nowhere,
    Buffer(BufferId),
    Slot {
        tray: BufferId,
        slot: u32,
    },
}

/// Who has a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Occupant {
    Nobody,
    Block(BlockId),
    /// The bytes of a partition that is known by nothing else.
    Resting(RestingId),
}

/// What a block means for the buffer it is in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Weight {
    /// It cannot be evicted now.
    pub(crate) busy: bool,
    /// It is idle, but its write-out failed; then it is `busy` too.
    pub(crate) failed: bool,
    /// Somebody holds it; then it is `busy` too, whatever else goes on with it.
    pub(crate) held: bool,
    pub(crate) kept: bool,
    pub(crate) dirty: bool,
    pub(crate) inflight: bool,
}

/// How many blocks of a kind there are, by what they mean.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Weights {
    pub(crate) busy: u32,
    pub(crate) failed: u32,
    pub(crate) held: u32,
    pub(crate) kept: u32,
    pub(crate) dirty: u32,
    pub(crate) inflight: u32,
}

impl Weights {
    pub(crate) fn change(&mut self, before: Weight, after: Weight) {
        let step = |count: &mut u32, before: bool, after: bool| {
            *count = (*count + u32::from(after))
                .checked_sub(u32::from(before))
                .expect("what leaves has been counted");
        };
        step(&mut self.busy, before.busy, after.busy);
        step(&mut self.failed, before.failed, after.failed);
        step(&mut self.held, before.held, after.held);
        step(&mut self.kept, before.kept, after.kept);
        step(&mut self.dirty, before.dirty, after.dirty);
        step(&mut self.inflight, before.inflight, after.inflight);
    }

    /// The same of a whole buffer.
    fn as_one(self) -> Weight {
        Weight {
            busy: self.busy > 0,
            failed: self.failed > 0 && self.failed == self.busy,
            held: self.held > 0,
            kept: self.kept > 0,
            dirty: self.dirty > 0,
            inflight: self.inflight > 0,
        }
    }
}

#[derive(Debug)]
struct Tray {
    /// Pages of a slot.
    pages: usize,
    occupants: Box<[Occupant]>,
    vacant: PageSet,
    occupied: u32,
    weights: Weights,
    /// When one of its slots was last used.
    used: u64,
}

impl Tray {
    fn full(&self) -> bool {
        self.occupied as usize == self.occupants.len()
    }
}

/// All trays of a pool.
#[derive(Debug)]
pub(crate) struct Trays {
    /// By buffer.
    trays: Places<BufferId, Option<Box<Tray>>>,
    buffer_pages: usize,
    /// Trays with a vacant slot, by pages of a slot.
    open: BTreeSet<(usize, BufferId)>,
    /// Those that can be evicted: kept ones last, then by time of use.
    evictable: BTreeSet<(bool, u64, BufferId)>,
    evictable_kept: usize,
    count: usize,
    /// Of all trays, each as one.
    weights: Weights,
    clock: u64,
}

impl Trays {
    pub(crate) fn new(buffers: usize, buffer_pages: usize) -> Trays {
        Trays {
            trays: Places::new((0..buffers).map(|_| None)),
            buffer_pages,
            open: BTreeSet::new(),
            evictable: BTreeSet::new(),
            evictable_kept: 0,
            count: 0,
            weights: Weights::default(),
            clock: 0,
        }
    }

    /// Buffers that are trays.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// Those of them that can be evicted.
    pub(crate) fn evictable(&self) -> usize {
        self.evictable.len()
    }

    /// Those of them in which nothing was swapped in on request.
    pub(crate) fn evictable_unkept(&self) -> usize {
        self.evictable.len() - self.evictable_kept
    }

    /// Those in which nobody is busy in a way that would make them evictable when it ends.
    pub(crate) fn idle(&self) -> usize {
        self.evictable.len() + self.failed() + self.held()
    }

    /// Those that only failed write-outs keep from being evicted.
    pub(crate) fn failed(&self) -> usize {
        self.weights.failed as usize
    }

    /// Those in which somebody holds a slot: none of it gives room before that ends.
    pub(crate) fn held(&self) -> usize {
        self.weights.held as usize
    }

    /// Whether a tray is one of those.
    pub(crate) fn is_held(&self, buffer: BufferId) -> bool {
        self.tray(buffer).weights.held > 0
    }

    /// Those with dirty bytes.
    pub(crate) fn dirty(&self) -> usize {
        self.weights.dirty as usize
    }

    /// Those with transfers under way.
    pub(crate) fn inflight(&self) -> usize {
        self.weights.inflight as usize
    }

    fn tray(&self, buffer: BufferId) -> &Tray {
        self.trays[buffer].as_ref().expect("the buffer is a tray")
    }

    fn tray_mut(&mut self, buffer: BufferId) -> &mut Tray {
        self.trays[buffer].as_mut().expect("the buffer is a tray")
    }

    /// Whether a buffer is cut into slots.
    pub(crate) fn is_tray(&self, buffer: BufferId) -> bool {
        self.trays[buffer].is_some()
    }

    /// Pages of a slot.
    pub(crate) fn slot_pages(&self, buffer: BufferId) -> usize {
        self.tray(buffer).pages
    }

    /// A vacant slot of `pages` pages.
    pub(crate) fn vacancy(&self, pages: usize) -> Option<Place> {
        let (_, tray) = *self.open.range((pages, BufferId(0))..(pages + 1, BufferId(0))).next()?;
        let vacant = &self.tray(tray).vacant;
        let slot = vacant.run(0..self.tray(tray).occupants.len()).expect("it is open").start;
        Some(Place::Slot { tray, slot: slot as u32 })
    }

    /// Cuts a buffer that is nobody's into slots of `pages` pages, and returns the first one.
    pub(crate) fn make(&mut self, buffer: BufferId, pages: usize) -> Place {
        assert!(pages.is_power_of_two() && pages <= self.buffer_pages);
        let slots = self.buffer_pages / pages;
        let mut vacant = PageSet::new(slots);
        vacant.insert(0..slots);
        let tray = Tray {
            pages,
            occupants: vec![Occupant::Nobody; slots].into(),
            vacant,
            occupied: 0,
            weights: Weights::default(),
            used: 0,
        };
        let before = self.trays[buffer].replace(Box::new(tray));
        assert!(before.is_none(), "a buffer is one tray");
        self.count += 1;
        self.open.insert((pages, buffer));
        Place::Slot { tray: buffer, slot: 0 }
    }

    /// Gives a vacant slot to somebody who means `weight`.
    pub(crate) fn occupy(&mut self, buffer: BufferId, slot: u32, who: Occupant, weight: Weight) {
        assert_eq!(self.tray(buffer).occupants[slot as usize], Occupant::Nobody);
        self.change(buffer, Weight::default(), weight, |tray| {
            tray.occupants[slot as usize] = who;
            tray.vacant.remove(slot as usize..slot as usize + 1);
            tray.occupied += 1;
        });
        if self.tray(buffer).full() {
            let pages = self.tray(buffer).pages;
            self.open.remove(&(pages, buffer));
        }
        self.touch(buffer);
    }

    /// Hands a slot over to another way of knowing the same bytes.
    pub(crate) fn hand_over(&mut self, buffer: BufferId, slot: u32, who: Occupant) {
        let at = &mut self.tray_mut(buffer).occupants[slot as usize];
        assert_ne!(*at, Occupant::Nobody);
        *at = who;
    }

    /// Ends the use of a slot by one who means `weight`. True when that was the tray's last: the buffer
    /// is nobody's then.
    pub(crate) fn vacate(&mut self, buffer: BufferId, slot: u32, weight: Weight) -> bool {
        assert_ne!(self.tray(buffer).occupants[slot as usize], Occupant::Nobody);
        self.change(buffer, weight, Weight::default(), |tray| {
            tray.occupants[slot as usize] = Occupant::Nobody;
            tray.vacant.insert(slot as usize..slot as usize + 1);
            tray.occupied -= 1;
        });
        let pages = self.tray(buffer).pages;
        if self.tray(buffer).occupied > 0 {
            self.open.insert((pages, buffer));
            return false;
        }
        self.open.remove(&(pages, buffer));
        self.trays[buffer] = None;
        self.count -= 1;
        true
    }

    /// One of a tray's occupants means something else now.
    pub(crate) fn reweigh(&mut self, buffer: BufferId, before: Weight, after: Weight) {
        self.change(buffer, before, after, |_| {});
    }

    fn change(
        &mut self, buffer: BufferId, before: Weight, after: Weight, edit: impl FnOnce(&mut Tray),
    ) {
        let tray = self.trays[buffer].as_mut().expect("the buffer is a tray");
        let old = (tray.weights.as_one(), tray.occupied > 0);
        tray.weights.change(before, after);
        edit(tray);
        let (new, used) = ((tray.weights.as_one(), tray.occupied > 0), tray.used);
        if old == new {
            return;
        }
        self.weights.change(old.0, new.0);
        let evictable = |(weight, occupied): (Weight, bool)| occupied && !weight.busy;
        if evictable(old) {
            self.evictable.remove(&(old.0.kept, used, buffer));
            self.evictable_kept -= usize::from(old.0.kept);
        }
        if evictable(new) {
            self.evictable.insert((new.0.kept, used, buffer));
            self.evictable_kept += usize::from(new.0.kept);
        }
    }

    /// Marks a tray as just used.
    pub(crate) fn touch(&mut self, buffer: BufferId) {
        self.clock += 1;
        let clock = self.clock;
        let tray = self.tray_mut(buffer);
        let (used, kept) = (std::mem::replace(&mut tray.used, clock), tray.weights.kept > 0);
        if self.evictable.remove(&(kept, used, buffer)) {
            self.evictable.insert((kept, clock, buffer));
        }
    }

    /// The tray to evict first; one in which something was swapped in on request only if `kept`.
    pub(crate) fn oldest(&self, kept: bool) -> Option<BufferId> {
        self.evictable.first().filter(|(is_kept, ..)| kept || !is_kept).map(|(.., tray)| *tray)
    }

    /// Who has slots of a tray.
    pub(crate) fn occupants(&self, buffer: BufferId) -> Vec<Occupant> {
        let all = self.tray(buffer).occupants.iter();
        all.copied().filter(|who| *who != Occupant::Nobody).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::BufferId as B;
    use super::*;

    const BUSY: Weight = Weight { busy: true, dirty: true, inflight: true, ..IDLE };
    const IDLE: Weight = Weight {
        busy: false,
        failed: false,
        held: false,
        kept: false,
        dirty: false,
        inflight: false,
    };

    fn take(trays: &mut Trays, pages: usize, who: u32, weight: Weight) -> (BufferId, u32) {
        let Some(Place::Slot { tray, slot }) = trays.vacancy(pages) else { panic!("no vacancy") };
        trays.occupy(tray, slot, Occupant::Block(BlockId(who)), weight);
        (tray, slot)
    }

    #[test]
    fn slots_fill_and_empty() {
        let mut trays = Trays::new(4, 256);
        assert_eq!(trays.vacancy(1), None);
        assert_eq!(trays.make(B(2), 1), Place::Slot { tray: B(2), slot: 0 });
        for i in 0..256 {
            assert_eq!(take(&mut trays, 1, i, IDLE), (B(2), i));
        }
        assert_eq!(trays.vacancy(1), None);
        assert!(!trays.vacate(B(2), 77, IDLE) && !trays.vacate(B(2), 5, IDLE));
        assert_eq!(take(&mut trays, 1, 900, IDLE), (B(2), 5), "the first that is vacant");
        assert_eq!(trays.vacancy(2), None, "of that size only");
        assert_eq!((trays.len(), trays.evictable()), (1, 1));
        assert_eq!(trays.occupants(B(2)).len(), 255);
        for slot in (0..256).filter(|slot| *slot != 77) {
            assert_eq!(trays.vacate(B(2), slot, IDLE), slot == 255);
        }
        assert_eq!((trays.len(), trays.evictable(), trays.vacancy(1)), (0, 0, None));
        trays.make(B(2), 128);
        take(&mut trays, 128, 1, IDLE);
        assert_eq!(take(&mut trays, 128, 2, IDLE), (B(2), 1));
        assert_eq!(trays.vacancy(128), None);
    }

    #[test]
    fn trays_count_once_and_go_oldest_first() {
        let mut trays = Trays::new(4, 16);
        for buffer in 0..3 {
            trays.make(B(buffer), 8);
            trays.occupy(B(buffer), 0, Occupant::Block(BlockId(buffer)), BUSY);
        }
        trays.occupy(B(1), 1, Occupant::Resting(RestingId(0)), IDLE);
        assert_eq!(
            (trays.evictable(), trays.dirty(), trays.inflight(), trays.idle()),
            (0, 3, 3, 0)
        );
        for buffer in [1, 0, 2] {
            trays.reweigh(B(buffer), BUSY, IDLE);
        }
        assert_eq!(
            (trays.evictable(), trays.dirty(), trays.inflight(), trays.idle()),
            (3, 0, 0, 3)
        );
        assert_eq!(trays.oldest(false), Some(B(0)));
        trays.touch(B(0));
        assert_eq!(trays.oldest(false), Some(B(2)));
        trays.touch(B(2));
        let kept = Weight { kept: true, ..IDLE };
        trays.reweigh(B(1), IDLE, kept);
        assert_eq!((trays.oldest(false), trays.evictable_unkept()), (Some(B(0)), 2));
        assert!(trays.vacate(B(0), 0, IDLE) && trays.vacate(B(2), 0, IDLE));
        assert_eq!((trays.oldest(false), trays.oldest(true)), (None, Some(B(1))));
        let failed = Weight { busy: true, failed: true, ..IDLE };
        trays.reweigh(B(1), kept, failed);
        assert_eq!((trays.evictable(), trays.idle()), (0, 1), "idle, and cannot be evicted");
        trays.hand_over(B(1), 1, Occupant::Block(BlockId(7)));
        assert_eq!(
            trays.occupants(B(1)),
            [Occupant::Block(BlockId(1)), Occupant::Block(BlockId(7))]
        );
        assert!(!trays.vacate(B(1), 0, failed));
        assert_eq!(trays.evictable(), 1);
        let held = Weight { busy: true, held: true, ..IDLE };
        trays.reweigh(B(1), IDLE, held);
        assert_eq!((trays.evictable(), trays.held(), trays.failed(), trays.idle()), (0, 1, 0, 1));
        trays.occupy(B(1), 0, Occupant::Block(BlockId(8)), failed);
        assert_eq!((trays.held(), trays.failed()), (1, 0), "a held one counts as that alone");
        trays.reweigh(B(1), held, IDLE);
        assert_eq!((trays.held(), trays.failed(), trays.is_held(B(1))), (0, 1, false));
    }
}
