//! The model of recovery (`MODEL.md`) as a small program: a file that is an array, sessions that end in any way, others
//! who change it in between, and the real records. What the program knows of each page says what may be read.

use std::collections::HashMap;
use std::ops::Range;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::entry::{PAGE_BYTES, Seen, sum};
use super::record::{Edge, Look, Outcome, Record, Shared};
use super::session::{Crash, Fall};
use super::stamp::Stamp;
use super::table::{ACTIVE, HAS_TORN, Table};
use super::verdict::{Meaning, Past, decide};
use super::{Checksum, Counters, pulse::Pulse};
use crate::error::Errno;

const BLOCK_PAGES: u64 = 4;
const PAGES: u64 = 3 * BLOCK_PAGES;
const DOUBT_NS: i64 = 8_000_000;
const SECOND_NS: i64 = 1_000_000_000;

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % bound
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A page of the file.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Page {
    /// Which bytes it has; 0 are zeros.
    version: u64,
    /// Where they are on the device.
    place: u64,
    /// What its reader must get.
    truth: Truth,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Truth {
    /// Its bytes.
    Whole,
    /// An error: others' changes aside, it once was one and nothing has replaced it, or its bytes have flipped.
    Refused,
    /// Its bytes or an error.
    Either,
}

/// The sessions that went before.
#[derive(Default)]
struct History {
    number: u32,
    crashes: HashMap<u32, Crash>,
    good: Vec<Range<i64>>,
    from_ns: Option<i64>,
    alive_ns: i64,
}

impl Past for History {
    fn crash(&self, number: u32) -> Option<Crash> {
        self.crashes.get(&number).copied()
    }

    fn cut_after(&self, number: u32) -> Option<Crash> {
        let cuts = self.crashes.values().filter(|crash| crash.fall == Fall::PowerCut);
        cuts.filter(|crash| crash.number > number).min_by_key(|crash| crash.number).copied()
    }

    fn number(&self) -> u32 {
        self.number
    }

    fn had_it(&self, modified_ns: i64, changed_ns: i64) -> bool {
        let both = |range: &Range<i64>| range.contains(&modified_ns) && range.contains(&changed_ns);
        let now = self.from_ns.map(|from| from..i64::MAX);
        now.iter().chain(&self.good).any(both)
    }

    fn alive_ns(&self) -> i64 {
        self.alive_ns
    }
}

/// A partition and everything around it.
struct World {
    random: Random,
    checksum: Checksum,
    table: Arc<Table>,
    _folder: tempfile::TempDir,
    past: History,
    start_ns: i64,
    now_ns: i64,
    /// What the filesystem rounds times down to.
    tick_ns: i64,
    pages: Vec<Page>,
    stamp: Stamp,
    next: u64,
    /// What somebody has copied, and the copy's time.
    copy: Option<(Vec<u64>, i64)>,
}

/// The daemon is gone.
struct Killed;

impl World {
    fn new(seed: u64, checksum: Checksum) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let control = std::fs::File::open(folder.path()).expect("made above");
        let table = Table::open(control.as_fd(), true).expect("a table").expect("a new one");
        let page = |version| Page { version, place: version, truth: Truth::Whole };
        Self {
            random: Random(seed),
            checksum,
            table: Arc::new(table),
            _folder: folder,
            past: History::default(),
            start_ns: 0,
            now_ns: SECOND_NS,
            tick_ns: if seed.is_multiple_of(4) { 4_000_000 } else { 1 },
            pages: (1..=PAGES).map(page).collect(),
            stamp: Stamp { size: PAGES * PAGE_BYTES, modified_ns: 5, changed_ns: 5, links: 1 },
            next: PAGES + 1,
            copy: None,
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Somebody makes a copy of a file that is whole.
    fn copy(&mut self) {
        if self.random.chance(50) && self.pages.iter().all(|page| page.truth == Truth::Whole) {
            let versions = self.pages.iter().map(|page| page.version).collect();
            self.copy = Some((versions, self.stamp.modified_ns));
        }
    }

    /// Never the same twice.
    fn old_time(&mut self) -> i64 {
        1000 * self.fresh().cast_signed()
    }

    fn pass(&mut self, longest_ns: i64) {
        self.now_ns += 1 + self.random.below(longest_ns.cast_unsigned()).cast_signed();
    }

    /// A change of the file's bytes, or of what else changes its modification time.
    fn modify(&mut self) {
        self.pass(SECOND_NS / 1000);
        (self.stamp.modified_ns, self.stamp.changed_ns) = (self.clock(), self.clock());
    }

    /// The time that the filesystem gives to a change made now.
    fn clock(&self) -> i64 {
        self.now_ns - self.now_ns % self.tick_ns
    }

    fn bytes(version: u64) -> Vec<u8> {
        version.to_le_bytes().repeat(PAGE_BYTES as usize / 8)
    }

    fn seen(&self, page: u64) -> Option<Seen> {
        let page = self.pages[page as usize];
        Some(Seen { sum: sum(&Self::bytes(page.version)), place: page.place })
    }

    /// A session begins; its record is read as a mount does.
    fn load(&mut self) -> Record {
        self.pass(SECOND_NS);
        self.past.number += 1;
        (self.start_ns, self.past.from_ns) = (self.clock(), Some(self.clock()));
        let shared = Arc::new(Shared {
            pulse: Pulse::start(self.table.clone()).expect("a thread"),
            table: self.table.clone(),
            counters: Counters::default(),
            checksum: self.checksum,
            session: self.past.number,
            is_short: false.into(),
        });
        let found = self
            .table
            .find((7, 8))
            .map(|slot| (slot, self.table.header(slot).expect("it is there")));
        let record = Record::new((7, 8), shared, self.stamp, found).expect("it can be read");
        if let Some((_, header)) = found {
            let decision = decide(&header, self.stamp, &self.past);
            if decision.meaning != Meaning::Ours || header.has(ACTIVE | HAS_TORN) {
                let block_size = BLOCK_PAGES * PAGE_BYTES;
                let mut read = |page| self.seen(page);
                let stamp = self.stamp;
                let look = Look { decision, stamp, block_size, read: &mut read, write: true };
                record.reconcile(look).expect("it can be written");
            }
        }
        record
    }

    /// Reads every page; what is refused now stays so.
    fn check(&mut self, record: &Record, story: &str) {
        for at in 0..PAGES {
            let page = &mut self.pages[at as usize];
            let (right, wrong) = record.verify(at * PAGE_BYTES, &Self::bytes(page.version));
            let is_read = wrong.is_none() && right == PAGE_BYTES;
            match page.truth {
                Truth::Whole => assert!(is_read, "page {at} is refused ({wrong:?}): {story}"),
                Truth::Refused => assert!(!is_read, "page {at} is read: {story}"),
                Truth::Either => page.truth = if is_read { Truth::Whole } else { Truth::Refused },
            }
            assert!(matches!(wrong, None | Some(Errno::EUCLEAN | Errno::EBADMSG)), "{wrong:?}");
        }
    }

    /// Whether the daemon is killed here.
    fn dies(&mut self) -> Result<(), Killed> {
        if self.random.chance(12) { Err(Killed) } else { Ok(()) }
    }

    /// A block, or part of it, is written over.
    fn write(&mut self, record: &Record) -> Result<(), Killed> {
        let block = self.random.below(PAGES / BLOCK_PAGES) * BLOCK_PAGES;
        let first = block + self.random.below(BLOCK_PAGES);
        let end = first + 1 + self.random.below(block + BLOCK_PAGES - first);
        let versions: Vec<u64> = (first..end).map(|_| self.fresh()).collect();
        let data: Vec<u8> = versions.iter().flat_map(|version| Self::bytes(*version)).collect();
        record.begin_write(&record.prepare(first * PAGE_BYTES, &data)).expect("there is room");
        self.past.alive_ns = self.clock();
        // A kill may come before the kernel has any of it, or when it has some pages.
        let landed: Vec<bool> = (first..end).map(|_| self.random.chance(50)).collect();
        let fate = self.dies();
        let is_cut = fate.is_err();
        if !is_cut || landed.iter().any(|landed| *landed) {
            self.modify();
        }
        let before: Vec<Page> = self.pages[first as usize..end as usize].to_vec();
        for (i, version) in versions.iter().enumerate() {
            if !is_cut || landed[i] {
                let page = &mut self.pages[first as usize + i];
                (page.version, page.truth) = (*version, Truth::Whole);
            }
        }
        if is_cut {
            let all = landed.iter().all(|landed| *landed);
            let none = !landed.iter().any(|landed| *landed);
            let sums = self.checksum == Checksum::Crc32c;
            for (i, page) in self.pages[first as usize..end as usize].iter_mut().enumerate() {
                page.truth = match (sums, all || none) {
                    // Nobody can tell, so all of it is refused, unless the file's times tell; sums tell, where there were
                    // any before.
                    (false, _) if none => Truth::Either,
                    (false, _) => Truth::Refused,
                    (true, false) => Truth::Refused,
                    (true, true) if none && before[i].truth != Truth::Whole => Truth::Refused,
                    (true, true) => Truth::Either,
                };
            }
        }
        fate?;
        let bytes = first * PAGE_BYTES..end * PAGE_BYTES;
        let stamp = self.stamp;
        record.end_write(&bytes, Outcome::Stored, || Some(stamp));
        Ok(())
    }

    /// A hole is punched, of whole pages or of parts.
    fn punch(&mut self, record: &Record) -> Result<(), Killed> {
        let size = PAGES * PAGE_BYTES;
        let from = self.random.below(PAGES * 2) * PAGE_BYTES / 2;
        let to = from + (1 + self.random.below(6)) * PAGE_BYTES / 2;
        let bytes = from..to.min(size);
        // What each page is to become.
        let pages = bytes.start / PAGE_BYTES..bytes.end.div_ceil(PAGE_BYTES);
        let is_whole =
            |page| bytes.start <= page * PAGE_BYTES && (page + 1) * PAGE_BYTES <= bytes.end;
        let next: Vec<(u64, u64)> =
            pages.map(|page| (page, if is_whole(page) { 0 } else { self.fresh() })).collect();
        let edge = |(page, version): &(u64, u64)| {
            let before = self.seen(*page).expect("an array").sum;
            Edge { page: *page, before, after: sum(&Self::bytes(*version)) }
        };
        let left = record.changed_in_part(&bytes, size);
        let edges: Vec<Edge> =
            next.iter().filter(|(page, _)| left.contains(page)).map(edge).collect();
        record.begin_shaping(&bytes, &edges).expect("there is room");
        self.past.alive_ns = self.clock();
        let failed = self.random.chance(20);
        let is_late = self.random.chance(50);
        let fate = self.dies();
        if !failed && (fate.is_ok() || is_late) {
            self.modify();
            for (at, version) in next {
                let page = &mut self.pages[at as usize];
                page.version = version;
                if version == 0 {
                    page.place = 0;
                    // After a kill in its midst it may be taken for what it was before.
                    let was_whole = page.truth == Truth::Whole;
                    page.truth =
                        if fate.is_ok() || was_whole { Truth::Whole } else { Truth::Either };
                }
            }
        }
        fate?;
        let seen: Vec<_> = left.into_iter().map(|page| (page, self.seen(page))).collect();
        let noted = match failed {
            false => record.changed(&bytes, size, &seen),
            true => record.unchanged(&seen),
        };
        noted.expect("there is room");
        record.end_change(|| Some(self.stamp));
        Ok(())
    }

    /// Bits of a page flip on the device, where its sum tells.
    fn decay(&mut self, record: &Record) {
        let at = self.random.below(PAGES);
        let version = self.fresh();
        let is_told = record.verify(at * PAGE_BYTES, &Self::bytes(version)).1.is_some();
        let page = &mut self.pages[at as usize];
        if is_told && page.truth == Truth::Whole {
            (page.version, page.truth) = (version, Truth::Refused);
        }
    }

    /// Times of somebody's choice.
    fn touch(&mut self, record: &Record) -> Result<(), Killed> {
        self.pass(SECOND_NS);
        let time = if self.random.chance(50) { self.clock() } else { self.old_time() };
        record.begin_timing(time).expect("there is room");
        self.past.alive_ns = self.clock();
        if self.random.chance(6) {
            return Err(Killed);
        }
        (self.stamp.modified_ns, self.stamp.changed_ns) = (time, self.clock());
        self.dies()?;
        record.end_change(|| Some(self.stamp));
        Ok(())
    }

    fn work(&mut self, record: &Record) -> Result<(), Killed> {
        for _ in 0..self.random.below(6) {
            // Where times are coarse, several changes within one tick.
            self.pass(if self.tick_ns == 1 { SECOND_NS } else { self.tick_ns / 8 });
            self.copy();
            match self.random.below(9) {
                0..4 => self.write(record)?,
                4 | 5 => self.punch(record)?,
                6 | 7 => self.touch(record)?,
                _ => self.decay(record),
            }
        }
        Ok(())
    }

    fn end(&mut self, fate: Result<(), Killed>) {
        let number = self.past.number;
        self.past.from_ns = None;
        match fate {
            Ok(()) => {
                self.pass(SECOND_NS);
                self.past.good.push(self.start_ns..self.clock() + 1);
            }
            Err(Killed) => {
                let crash = Crash {
                    number,
                    fall: Fall::Killed,
                    start_ns: self.start_ns,
                    // It was alive when the last change began, and is seen so 2 ms later at the latest.
                    alive_ns: self.past.alive_ns,
                    doubt_ns: DOUBT_NS,
                    boot_ns: None,
                    block_size: BLOCK_PAGES * PAGE_BYTES,
                    fine_times: self.tick_ns == 1,
                };
                self.past.crashes.insert(number, crash);
            }
        }
    }

    /// Others have the file.
    fn others(&mut self, was_killed: bool) -> &'static str {
        self.now_ns += 2 * DOUBT_NS;
        match self.random.below(7) {
            0 => {
                // Names, modes, owners.
                self.pass(SECOND_NS);
                self.stamp.changed_ns = self.clock();
                "chmod"
            }
            1 => {
                // cp: cut and written again, with the same bytes here and there.
                self.modify();
                for at in 0..PAGES as usize {
                    let same = self.random.chance(50);
                    let version = if same { self.pages[at].version } else { self.fresh() };
                    // Of what was being written at the kill nobody knows where it lay: the same bytes in the same
                    // order of old and new are taken for what was left.
                    let is_doubtful = same && was_killed && self.pages[at].truth != Truth::Whole;
                    let truth = if is_doubtful { Truth::Either } else { Truth::Whole };
                    self.pages[at] = Page { version, place: self.fresh(), truth };
                }
                if self.random.chance(50) {
                    self.stamp.modified_ns = self.old_time();
                }
                "cp"
            }
            2 if self.copy.is_some() => {
                // cp -p: a copy that was made when nothing was written comes back, with its time.
                let (versions, modified_ns) = self.copy.clone().expect("looked above");
                // With the time that is on record anyway, nothing tells that a damaged page, whose rewriting may never
                // have begun, was replaced.
                let header = self.table.find((7, 8)).map(|slot| self.table.header(slot));
                let recorded = header.map(|header| header.expect("it is there").modified_ns);
                let is_recorded = recorded == Some(modified_ns);
                // Nor, where several changes get one time, which of them the copy is from.
                let is_coarse = is_recorded && self.tick_ns > 1;
                self.modify();
                for (at, version) in versions.into_iter().enumerate() {
                    let was_refused = self.pages[at].truth != Truth::Whole;
                    let is_doubtful = is_coarse || (is_recorded && was_killed && was_refused);
                    let truth = if is_doubtful { Truth::Either } else { Truth::Whole };
                    self.pages[at] = Page { version, place: self.fresh(), truth };
                }
                self.stamp.modified_ns = modified_ns;
                "cp -p"
            }
            3 => {
                self.modify();
                let at = self.random.below(PAGES) as usize;
                let sums = self.checksum == Checksum::Crc32c;
                self.pages[at] =
                    Page { version: self.fresh(), truth: Truth::Whole, ..self.pages[at] };
                // What was being written and is not replaced: nobody can tell, without sums.
                for page in self.pages.iter_mut().filter(|page| page.truth == Truth::Refused) {
                    page.truth = if sums { Truth::Either } else { page.truth };
                }
                "a page"
            }
            _ => "nothing",
        }
    }
}

fn run(seed: u64, checksum: Checksum) {
    let mut world = World::new(seed, checksum);
    let mut story = format!("seed {seed}, {checksum:?}");
    for _ in 0..6 {
        let record = world.load();
        world.check(&record, &story);
        let fate = world.work(&record);
        story += if fate.is_ok() { ", ended well" } else { ", killed" };
        let was_killed = fate.is_err();
        if fate.is_ok() {
            record.settle(|| Some(world.stamp));
            world.check(&record, &story);
        }
        world.end(fate);
        if world.random.chance(40) {
            let what = world.others(was_killed);
            story += &format!(", others: {what}");
            // Blocks that were being written at the kill are not told from what others left of them, without sums.
            if was_killed && what == "a page" {
                for page in world.pages.iter_mut().filter(|page| page.truth == Truth::Refused) {
                    page.truth = Truth::Either;
                }
            }
        }
    }
}

#[test]
fn whatever_happens_no_page_is_read_that_may_be_a_mixture() {
    let first = std::env::var("SWAPFS_SEED").map_or(1, |seed| seed.parse().expect("a number"));
    for seed in first..first + 400 {
        for checksum in [Checksum::Crc32c, Checksum::Writes] {
            run(seed, checksum);
        }
    }
}
