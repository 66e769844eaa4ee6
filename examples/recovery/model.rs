//! What a file may hold: now, and after a crash at this moment.
//!
//! Of each page of 4 KiB there is a list of the states that it may be found in: that of the last moment that is
//! certain, and what each call since made of it. A write waits in the pool while a hole or a new length goes to the swap
//! folder at once, and so before it; a change of shape therefore adds to the list what it makes of each state there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether padding behind a file's end is no failure, nor a size on the way to another.
pub(crate) static LOOSE_SIZES: AtomicBool = AtomicBool::new(false);

/// Bytes of a page.
pub(crate) const PAGE: usize = 4096;

pub(crate) type Bytes = Arc<[u8; PAGE]>;

/// What a page reads as.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum State {
    Known(Bytes),
    /// As one of these, or with an error: others changed the file after a crash, or a record was damaged.
    Doubtful(Vec<Bytes>),
    /// With an error, until all of it is replaced.
    Torn,
}

/// One call's change.
#[derive(Debug, Clone)]
pub(crate) enum Change<'a> {
    Write {
        offset: u64,
        data: &'a [u8],
    },
    /// A new length.
    Resize(u64),
    /// Zeros; `extend`: the file is at least as long as their end then.
    Zero {
        start: u64,
        end: u64,
        extend: bool,
    },
    /// At least this length, by fallocate.
    Grow(u64),
}

/// How much of what a page has within the file is replaced.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Cover {
    Part,
    Whole,
    /// Up to the file's end by zeros: whether that makes it whole is nowhere said.
    Unclear,
}

/// What a change does to one page.
struct Touch<'a> {
    from: usize,
    to: usize,
    data: Option<&'a [u8]>,
    cover: Cover,
}

/// One page.
#[derive(Debug, Clone)]
pub(crate) struct Page {
    pub(crate) now: State,
    /// What the call under way makes of it.
    pending: Option<State>,
    /// What it may be after a crash.
    since: Vec<State>,
    /// Changed since the last certain moment, so that it may be refused.
    dirty: bool,
    /// Changed since then by a mount without records, so that it may be a mixture.
    unrecorded: bool,
    /// It has a checksum.
    summed: bool,
    /// What writes of parts, failed ones too, have brought of it since it was torn: together they may make it whole.
    pieces: Vec<Option<u8>>,
}

/// What a session promises of what it writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    Writes,
    Crc32c,
    None,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Mode::Writes => "writes",
            Mode::Crc32c => "crc32c",
            Mode::None => "none",
        }
    }
}

/// What a page that was read turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Certain,
    Old,
    New,
    Refused,
}

/// Which promise is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Bytes,
    Size,
    Mark,
    Others,
    Other,
}

/// A broken promise.
#[derive(Debug, Clone)]
pub(crate) struct Failure {
    pub(crate) kind: Kind,
    pub(crate) text: String,
    /// With the story of its file.
    pub(crate) is_told: bool,
}

impl Failure {
    pub(crate) fn new(kind: Kind, text: impl Into<String>) -> Failure {
        Failure { kind, text: text.into(), is_told: false }
    }
}

/// How much of a page can be a mixture of its states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mixture {
    Never,
    /// Where nothing was recorded.
    Unrecorded,
    /// After a power cut.
    Anywhere,
}

/// A file.
#[derive(Debug, Clone)]
pub(crate) struct FileModel {
    pages: Vec<Page>,
    pub(crate) size: u64,
    pending_size: Option<u64>,
    sizes: Vec<u64>,
    /// Stores to a mapping may still be in the page cache.
    pub(crate) mapped: bool,
    /// A page was refused since the mount, which an fsync may tell.
    pub(crate) strained: bool,
}

fn zeros() -> Bytes {
    Arc::new([0; PAGE])
}

fn start_of(index: usize) -> u64 {
    (index * PAGE) as u64
}

/// The page of `bytes` number `index`, zeros behind their end.
fn page_of(bytes: &[u8], index: usize) -> Bytes {
    let mut page = [0; PAGE];
    let from = (index * PAGE).min(bytes.len());
    let to = (from + PAGE).min(bytes.len());
    page[..to - from].copy_from_slice(&bytes[from..to]);
    Arc::new(page)
}

impl State {
    fn zero(zero: &Bytes) -> State {
        State::Known(Arc::clone(zero))
    }

    fn changed(&self, touch: &Touch) -> State {
        let over = |bytes: &Bytes| {
            let mut page = **bytes;
            match touch.data {
                Some(data) => page[touch.from..touch.to].copy_from_slice(data),
                None => page[touch.from..touch.to].fill(0),
            }
            Arc::new(page)
        };
        match (touch.cover, self) {
            (Cover::Whole, _) => State::Known(over(&zeros())),
            (_, State::Known(bytes)) => State::Known(over(bytes)),
            (_, State::Doubtful(all)) => State::Doubtful(all.iter().map(over).collect()),
            (Cover::Part, State::Torn) => State::Torn,
            (Cover::Unclear, State::Torn) => State::Doubtful(vec![zeros()]),
        }
    }

    /// Whether it can read as these bytes, which are all of the page that is within the file.
    fn reads_as(&self, found: &[u8]) -> bool {
        self.all().iter().any(|bytes| &bytes[..found.len()] == found)
    }

    fn all(&self) -> &[Bytes] {
        match self {
            State::Known(bytes) => std::slice::from_ref(bytes),
            State::Doubtful(all) => all,
            State::Torn => &[],
        }
    }

    fn is_known(&self) -> bool {
        matches!(self, State::Known(_))
    }
}

impl Page {
    fn new(zero: &Bytes) -> Page {
        Page::certain(State::zero(zero))
    }

    fn certain(state: State) -> Page {
        Page {
            since: vec![state.clone()],
            now: state,
            pending: None,
            dirty: false,
            unrecorded: false,
            summed: false,
            pieces: Vec::new(),
        }
    }

    /// What it is after a change. `valid` bytes of it are within the file then.
    fn after(&mut self, touch: &Touch, valid: usize) -> State {
        if self.now != State::Torn || touch.cover != Cover::Part {
            self.pieces.clear();
            return self.now.changed(touch);
        }
        let Some(data) = touch.data else { return State::Torn };
        self.pieces.resize(PAGE, None);
        for (piece, byte) in self.pieces[touch.from..touch.to].iter_mut().zip(data) {
            *piece = Some(*byte);
        }
        if self.pieces[..valid].iter().any(Option::is_none) {
            return State::Torn;
        }
        let bytes: Vec<u8> = self.pieces.iter().map(|piece| piece.unwrap_or(0)).collect();
        State::Doubtful(vec![page_of(&bytes, 0)])
    }

    fn add(&mut self, state: State) {
        if !self.since.contains(&state) {
            self.since.push(state);
        }
    }

    /// Whether an error is no failure after a crash.
    fn may_fail(&self) -> bool {
        self.dirty || !self.since.iter().all(State::is_known)
    }

    fn synchronize(&mut self) {
        self.since.clear();
        self.since.push(self.now.clone());
        self.pending = None;
        self.dirty = false;
        self.unrecorded = false;
    }

    /// Whether each piece of `size` bytes comes from one of the states.
    fn is_mixture(&self, found: &[u8], size: usize) -> bool {
        found.chunks(size).enumerate().all(|(index, piece)| {
            let from = index * size;
            let same = |bytes: &Bytes| &bytes[from..from + piece.len()] == piece;
            self.since.iter().any(|state| state.all().iter().any(same))
        })
    }

    /// Takes what was read after a crash or a clean end; it is certain from then on.
    fn settle(&mut self, found: Option<&[u8]>, mixture: Mixture) -> Result<Verdict, Failure> {
        let Some(found) = found else {
            if !self.may_fail() {
                return Err(Failure::new(Kind::Bytes, "is refused, though nothing changed it"));
            }
            let doubts: Vec<Bytes> = (self.since.iter())
                .filter(|state| matches!(state, State::Doubtful(_)))
                .flat_map(|state| state.all().to_vec())
                .collect();
            let state = if doubts.is_empty() { State::Torn } else { State::Doubtful(doubts) };
            *self = Page { summed: self.summed && !self.dirty, ..Page::certain(state) };
            return Ok(Verdict::Refused);
        };
        let at = self.since.iter().position(|state| state.reads_as(found));
        let mixed = match mixture {
            Mixture::Never => false,
            Mixture::Unrecorded => self.unrecorded && self.is_mixture(found, 1),
            Mixture::Anywhere => self.dirty && self.is_mixture(found, 512),
        };
        if at.is_none() && !mixed {
            return Err(self.wrong(found));
        }
        let verdict = match at {
            _ if !self.dirty && self.since.len() == 1 => Verdict::Certain,
            Some(0) => Verdict::Old,
            _ => Verdict::New,
        };
        let mut bytes = [0; PAGE];
        bytes[..found.len()].copy_from_slice(found);
        let bytes = Arc::new(bytes);
        let state = match at.map(|at| &self.since[at]) {
            Some(State::Doubtful(_)) => State::Doubtful(vec![bytes]),
            _ => State::Known(bytes),
        };
        *self = Page { summed: self.summed && !self.dirty, ..Page::certain(state) };
        Ok(verdict)
    }

    fn wrong(&self, found: &[u8]) -> Failure {
        let zero = if found.iter().all(|byte| *byte == 0) { ", all zero" } else { "" };
        if self.since.contains(&State::Torn) {
            let text = format!("was torn and is read without an error{zero}");
            return Failure::new(Kind::Mark, text);
        }
        let what = if self.dirty { "unsynchronized" } else { "certain" };
        let (count, sectors) = (self.since.len(), self.sectors(found));
        let text = format!("is {what} and none of its {count} states{zero}; by sectors {sectors}");
        Failure::new(Kind::Bytes, text)
    }

    /// Which states each 512 bytes can come from: of zeros, of none, or by number.
    fn sectors(&self, found: &[u8]) -> String {
        let mut names = Vec::new();
        for (index, piece) in found.chunks(512).enumerate() {
            let from = index * 512;
            let same = |state: &&State| {
                state.all().iter().any(|bytes| &bytes[from..from + piece.len()] == piece)
            };
            let of: Vec<String> = (0..self.since.len())
                .filter(|&at| same(&&self.since[at]))
                .map(|at| at.to_string())
                .collect();
            let zero = if piece.iter().all(|byte| *byte == 0) { "z" } else { "" };
            let of = if of.is_empty() { "?".to_owned() } else { of.join("+") };
            names.push(format!("{zero}{of}"));
        }
        names.join(" ")
    }

    /// Checks what was read while nothing crashed.
    fn check_now(&self, found: Option<&[u8]>) -> Result<(), Failure> {
        match (found, &self.now) {
            (None, State::Torn | State::Doubtful(_)) => Ok(()),
            (None, State::Known(_)) => {
                Err(Failure::new(Kind::Bytes, "cannot be read, though it is whole"))
            }
            (Some(_), State::Torn) => {
                Err(Failure::new(Kind::Mark, "was torn and is read without an error"))
            }
            (Some(found), state) if state.reads_as(found) => Ok(()),
            (Some(found), state) => {
                let bytes = &state.all()[0];
                let first = bytes.iter().zip(found).position(|(one, other)| one != other);
                let text = format!("reads as other bytes before any crash, from {first:?} on");
                Err(Failure::new(Kind::Bytes, text))
            }
        }
    }
}

impl Change<'_> {
    /// What it does to page `index` of a file of `size` bytes.
    fn touch(&self, index: usize, size: u64) -> Option<Touch<'_>> {
        let start = start_of(index);
        let page = PAGE as u64;
        let within = |from: u64, to: u64| {
            let (from, to) = (from.max(start), to.min(start + page));
            (from < to).then(|| ((from - start) as usize, (to - start) as usize))
        };
        let valid = size.saturating_sub(start).min(page) as usize;
        match *self {
            Change::Write { offset, data } => {
                let (from, to) = within(offset, offset + data.len() as u64)?;
                let whole = from == 0 && to >= valid;
                let at = (start + from as u64 - offset) as usize;
                let cover = if whole { Cover::Whole } else { Cover::Part };
                Some(Touch { from, to, data: Some(&data[at..at + to - from]), cover })
            }
            Change::Resize(length) => {
                let (from, to) = within(length, u64::MAX)?;
                let cover = if from == 0 { Cover::Whole } else { Cover::Part };
                Some(Touch { from, to, data: None, cover })
            }
            Change::Zero { start, end, .. } => {
                let (from, to) = within(start, end)?;
                let cover = match (from, to) {
                    (0, PAGE) => Cover::Whole,
                    (0, to) if to >= valid => Cover::Unclear,
                    _ => Cover::Part,
                };
                Some(Touch { from, to, data: None, cover })
            }
            Change::Grow(_) => None,
        }
    }

    fn size_after(&self, size: u64) -> u64 {
        match *self {
            Change::Write { offset, data } => size.max(offset + data.len() as u64),
            Change::Resize(length) => length,
            Change::Zero { end, extend: true, .. } => size.max(end),
            Change::Zero { .. } => size,
            Change::Grow(end) => size.max(end),
        }
    }

    /// The pages that it may touch, of `count` that there are.
    fn pages(&self, count: usize) -> std::ops::Range<usize> {
        let (from, to) = match *self {
            Change::Write { offset, data } => (offset, offset + data.len() as u64),
            Change::Resize(length) => (length, start_of(count)),
            Change::Zero { start, end, .. } => (start, end.min(start_of(count))),
            Change::Grow(_) => (0, 0),
        };
        from as usize / PAGE..(to as usize).div_ceil(PAGE)
    }
}

impl FileModel {
    pub(crate) fn new() -> FileModel {
        FileModel::holding(&[])
    }

    /// A file that others made.
    pub(crate) fn holding(bytes: &[u8]) -> FileModel {
        let count = bytes.len().div_ceil(PAGE);
        let pages =
            (0..count).map(|index| Page::certain(State::Known(page_of(bytes, index)))).collect();
        let size = bytes.len() as u64;
        FileModel {
            pages,
            size,
            pending_size: None,
            sizes: vec![size],
            mapped: false,
            strained: false,
        }
    }

    /// Pages within the file.
    pub(crate) fn count(&self) -> usize {
        (self.size as usize).div_ceil(PAGE)
    }

    fn reach(&mut self, count: usize) {
        if count > self.pages.len() {
            let zero = zeros();
            self.pages.resize_with(count, || Page::new(&zero));
        }
    }

    /// Notes a call before it is made: after a crash it may have had its effect, on each page by itself.
    pub(crate) fn begin(&mut self, change: &Change, mode: Mode) {
        let size = self.size;
        let shape = !matches!(change, Change::Write { .. });
        let range = change.pages(self.pages.len());
        self.reach(range.end);
        let size_after = change.size_after(size);
        for index in range {
            let Some(touch) = change.touch(index, size) else { continue };
            let page = &mut self.pages[index];
            let valid = size_after.saturating_sub(start_of(index)).min(PAGE as u64) as usize;
            let after = page.after(&touch, valid);
            if shape {
                for state in page.since.clone() {
                    page.add(state.changed(&touch));
                }
            }
            page.add(after.clone());
            page.pending = Some(after);
            page.dirty = true;
            page.unrecorded |= mode == Mode::None;
            page.summed = mode == Mode::Crc32c && !shape;
        }
        self.pending_size = Some(size_after);
        if !self.sizes.contains(&size_after) {
            self.sizes.push(size_after);
        }
    }

    /// The call returned. `stable`: what it wrote is on stable storage then.
    pub(crate) fn commit(&mut self, change: &Change, stable: bool) {
        let size = self.size;
        for index in change.pages(self.pages.len()) {
            let page = &mut self.pages[index];
            if let Some(state) = page.pending.take() {
                page.now = state;
            }
            let Some(touch) = change.touch(index, size).filter(|_| stable) else { continue };
            for state in std::mem::take(&mut page.since) {
                page.add(state.changed(&touch));
            }
            page.dirty = false;
            page.unrecorded = false;
        }
        self.size = self.pending_size.take().unwrap_or(size);
        self.reach(self.count());
        if stable {
            for size in std::mem::take(&mut self.sizes) {
                let size = change.size_after(size);
                if !self.sizes.contains(&size) {
                    self.sizes.push(size);
                }
            }
        }
    }

    /// Whether the call may fail: it replaces part of a page that cannot be read.
    pub(crate) fn may_refuse(&self, change: &Change) -> bool {
        let range = change.pages(self.pages.len());
        (range.start..range.end.min(self.pages.len())).any(|index| {
            !self.pages[index].now.is_known()
                && change.touch(index, self.size).is_some_and(|touch| touch.cover != Cover::Whole)
        })
    }

    /// Pages of a call that failed, whose effect is to be looked at.
    pub(crate) fn pending(&self) -> Vec<usize> {
        (0..self.pages.len()).filter(|&index| self.pages[index].pending.is_some()).collect()
    }

    /// What a page reads as after a call that failed: as before it, or as after it.
    pub(crate) fn resolve(&mut self, index: usize, found: Option<&[u8]>) -> Result<(), Failure> {
        let Some(pending) = self.pages[index].pending.take() else { return Ok(()) };
        let page = &mut self.pages[index];
        let matches = |state: &State| match found {
            Some(found) => state.reads_as(found),
            None => !state.is_known(),
        };
        let state = match (matches(&pending), matches(&page.now)) {
            (true, _) => pending,
            (false, true) => page.now.clone(),
            _ => return page.check_now(found).map_err(|failure| located(failure, index)),
        };
        page.now = match (found, state) {
            (Some(found), State::Known(_)) => State::Known(page_of(found, 0)),
            (Some(found), _) => State::Doubtful(vec![page_of(found, 0)]),
            (None, state) => state,
        };
        Ok(())
    }

    pub(crate) fn resolve_size(&mut self, found: u64) -> Result<(), Failure> {
        let pending = self.pending_size.take();
        if found == self.size || pending == Some(found) {
            self.size = found;
            self.reach(self.count());
            return Ok(());
        }
        let text = format!("{found} bytes after a failed call on {} bytes", self.size);
        Err(Failure::new(Kind::Size, text))
    }

    /// After a discard each page that was dirty reads as one of the states that the swap folder may have.
    pub(crate) fn rediscover(&mut self, index: usize, found: Option<&[u8]>) -> Result<(), Failure> {
        self.reach(index + 1);
        let page = &mut self.pages[index];
        let matches = |state: &&State| match found {
            Some(found) => state.reads_as(found),
            None => !state.is_known(),
        };
        match (page.since.iter().find(matches), found) {
            (Some(State::Known(_)), Some(found)) => {
                page.now = State::Known(page_of(found, 0));
                Ok(())
            }
            (Some(state), _) => {
                page.now = state.clone();
                Ok(())
            }
            (None, _) => page.check_now(found).map_err(|failure| located(failure, index)),
        }
    }

    pub(crate) fn rediscover_size(&mut self, found: u64) -> Result<(), Failure> {
        self.check_size(found)?;
        self.size = found;
        self.reach(self.count());
        // What lies behind the end comes back as zeros.
        let change = Change::Resize(found);
        for index in change.pages(self.pages.len()) {
            let Some(touch) = change.touch(index, found) else { continue };
            let page = &mut self.pages[index];
            page.now = page.now.changed(&touch);
            page.add(page.now.clone());
        }
        Ok(())
    }

    /// A call returned before which all of it was put on stable storage.
    pub(crate) fn synchronize(&mut self) {
        self.pages.truncate(self.count());
        self.pages.iter_mut().for_each(Page::synchronize);
        self.pending_size = None;
        self.sizes = vec![self.size];
        self.mapped = false;
    }

    /// The same for these pages only, and for the size as far as they need it.
    pub(crate) fn synchronize_pages(&mut self, range: std::ops::Range<usize>) {
        let least = self.size.min(start_of(range.end));
        for page in &mut self.pages[range] {
            page.synchronize();
        }
        for size in std::mem::take(&mut self.sizes) {
            let size = size.max(least);
            if !self.sizes.contains(&size) {
                self.sizes.push(size);
            }
        }
    }

    /// Whether so much is uncertain that it should be synchronized.
    pub(crate) fn is_crowded(&self) -> bool {
        self.sizes.len() > 40 || self.pages.iter().any(|page| page.since.len() > 24)
    }

    fn check_size(&self, found: u64) -> Result<(), Failure> {
        if self.sizes.contains(&found) {
            return Ok(());
        }
        let (least, most) = (self.sizes.iter().min(), self.sizes.iter().max());
        // Of a file that grew, whole blocks were written out.
        if found.is_multiple_of(PAGE as u64) && least < Some(&found) && Some(&found) < most {
            return Ok(());
        }
        if LOOSE_SIZES.load(Ordering::Relaxed)
            && least.is_some_and(|least| found >= *least)
            && most.is_some_and(|most| found < most + PAGE as u64)
        {
            return Ok(());
        }
        let text = format!("{found} bytes where one of {:?} belongs", self.sizes);
        Err(Failure::new(Kind::Size, text))
    }

    /// Takes the size that was found at a mount.
    pub(crate) fn settle_size(&mut self, found: u64) -> Result<(), Failure> {
        self.check_size(found)?;
        self.strained = false;
        self.cut(found);
        Ok(())
    }

    /// Takes a size as it is.
    fn cut(&mut self, size: u64) {
        self.pending_size = None;
        self.size = size;
        self.sizes = vec![size];
        let change = Change::Resize(size);
        let range = change.pages(self.pages.len());
        self.reach((size as usize).div_ceil(PAGE).max(range.end));
        for index in range {
            let Some(touch) = change.touch(index, size) else { continue };
            let page = &mut self.pages[index];
            page.now = page.now.changed(&touch);
            for state in std::mem::take(&mut page.since) {
                page.add(state.changed(&touch));
            }
        }
        self.pages.truncate((size as usize).div_ceil(PAGE));
    }

    /// Takes a page that was read at a mount, as far as it is within the file.
    pub(crate) fn settle(
        &mut self, index: usize, found: Option<&[u8]>, mixture: Mixture,
    ) -> Result<Verdict, Failure> {
        self.pages[index].settle(found, mixture).map_err(|failure| located(failure, index))
    }

    /// Checks what was read while nothing crashed.
    pub(crate) fn check_now(&self, index: usize, found: Option<&[u8]>) -> Result<(), Failure> {
        self.pages[index].check_now(found).map_err(|failure| located(failure, index))
    }

    /// Whether a crash leaves its size.
    pub(crate) fn size_is_certain(&self) -> bool {
        self.sizes.len() == 1
    }

    pub(crate) fn pages_are_known(&self) -> bool {
        self.pages.iter().all(|page| page.now.is_known())
    }

    pub(crate) fn is_known(&self, index: usize) -> bool {
        self.pages.get(index).is_none_or(|page| page.now.is_known())
    }

    /// Checks what the swap folder has, without a mount, of what is certain.
    pub(crate) fn check_raw(&self, raw: &[u8]) -> Result<(), Failure> {
        self.check_size(raw.len() as u64)?;
        for (index, piece) in raw.chunks(PAGE).enumerate() {
            let Some(page) = self.pages.get(index) else { continue };
            if !page.may_fail() && page.since.len() == 1 && !page.now.reads_as(piece) {
                let failure = page.wrong(piece);
                let text = format!("{} in the swap folder", failure.text);
                return Err(located(Failure { text, ..failure }, index));
            }
        }
        Ok(())
    }

    /// Others changed it from `before` to `after`; these bytes of it are all new.
    pub(crate) fn changed_by_others(
        &mut self, before: &[u8], after: &[u8], replaced: std::ops::Range<u64>,
    ) {
        let (was, end) = (std::mem::take(&mut self.pages), after.len() as u64);
        *self = FileModel::holding(after);
        for (index, page) in self.pages.iter_mut().enumerate() {
            let may_fail = was.get(index).is_some_and(Page::may_fail);
            let (from, to) = (start_of(index), (start_of(index) + PAGE as u64).min(end));
            let covered = replaced.start <= from && replaced.end >= to;
            let differs = page_of(before, index) != page_of(after, index);
            let surely_replaced = covered && differs;
            if may_fail && !surely_replaced {
                *page = Page::certain(State::Doubtful(vec![page_of(after, index)]));
            }
        }
    }

    /// What cannot be read was accepted as it is.
    pub(crate) fn accepted(&mut self, raw: &[u8], surely: bool) {
        if !self.pages.iter().any(Page::may_fail) && self.sizes.len() == 1 {
            return;
        }
        self.cut(raw.len() as u64);
        for (index, page) in self.pages.iter_mut().enumerate() {
            if page.may_fail() {
                let bytes = page_of(raw, index);
                let doubtful = !surely || matches!(page.now, State::Doubtful(_));
                let state =
                    if doubtful { State::Doubtful(vec![bytes]) } else { State::Known(bytes) };
                *page = Page::certain(state);
            }
        }
    }

    /// A record was damaged: each page may be refused.
    pub(crate) fn doubt(&mut self) {
        let doubt = |state: &mut State| {
            if let State::Known(bytes) = state {
                *state = State::Doubtful(vec![Arc::clone(bytes)]);
            }
        };
        for page in &mut self.pages {
            doubt(&mut page.now);
            page.since.iter_mut().for_each(doubt);
            page.summed = false;
        }
    }

    /// Pages in which a flipped bit has to be found.
    pub(crate) fn flippable(&self) -> Vec<usize> {
        let fits = |page: &Page| {
            page.summed && !page.dirty && page.since.len() == 1 && page.now.is_known()
        };
        (0..self.count().min(self.pages.len())).filter(|&index| fits(&self.pages[index])).collect()
    }

    pub(crate) fn flipped(&mut self, index: usize) {
        self.pages[index] = Page { summed: true, ..Page::certain(State::Torn) };
    }
}

/// Says where.
fn located(failure: Failure, index: usize) -> Failure {
    let text = format!("the page at {} {}", index * PAGE, failure.text);
    Failure { text, ..failure }
}
