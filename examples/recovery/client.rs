//! One client: changes its files in every way, and notes each call in the model before it makes it.

use std::fs::{File, OpenOptions, Permissions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use rustix::fs::{FallocateFlags, XattrFlags};
use rustix::mm::{MapFlags, MsyncFlags, ProtFlags};

use crate::chance::Random;
use crate::model::{Change, Failure, FileModel, Kind, Mode, PAGE};
use crate::place::{Stop, trouble};
use crate::world::{NameOp, Reading, Tracked, World, read_pages};

/// No file becomes longer, in bytes.
const LENGTH_MAX: u64 = 3 << 20;

/// Longest call in bytes: from most memory the kernel sends it in two requests, which meet within a page.
const CALL_MAX: u64 = (3 << 19) + 512;

/// What the kernel sends in one request, from any memory.
const REQUEST_MAX: u64 = (1 << 20) - PAGE as u64;

/// Names that a client has.
const NAMES: std::ops::Range<usize> = 3..7;

/// What a client does at this moment, for whoever waits for it.
#[derive(Debug)]
pub(crate) struct Watch(Mutex<(String, Instant)>);

impl Watch {
    pub(crate) fn new() -> Watch {
        Watch(Mutex::new((String::new(), Instant::now())))
    }

    fn tell(&self, what: &str) {
        if let Ok(mut told) = self.0.lock() {
            *told = (what.to_owned(), Instant::now());
        }
    }

    /// What it has been doing for longer than `patience`.
    pub(crate) fn stuck(&self, patience: Duration) -> Option<String> {
        let told = self.0.lock().ok()?;
        (told.1.elapsed() > patience).then(|| told.0.clone())
    }
}

/// An open file.
struct Handle {
    id: usize,
    file: File,
    append: bool,
    /// Writes are on stable storage when they return.
    stable: bool,
}

/// A client, for as long as one session lasts.
pub(crate) struct Client<'a> {
    pub(crate) world: &'a mut World,
    random: &'a mut Random,
    reading: Reading<'a>,
    mode: Mode,
    read_only: bool,
    any_strained: bool,
    watch: &'a Watch,
    clock: Option<&'a AtomicU64>,
    handles: Vec<Handle>,
    memory: Vec<u8>,
    /// Carries bytes into mappings: a page that is gone is an error of read there, and no signal.
    carrier: File,
    pub(crate) calls: u64,
}

/// What a client needs beside its world.
pub(crate) struct Scene<'a> {
    pub(crate) reading: Reading<'a>,
    pub(crate) mode: Mode,
    pub(crate) read_only: bool,
    /// Some file, of any client, has pages that cannot be read, or had.
    pub(crate) any_strained: bool,
    pub(crate) watch: &'a Watch,
    /// Moments of the disk, when its power is to be cut.
    pub(crate) clock: Option<&'a AtomicU64>,
}

/// How a call is noted.
#[derive(Clone, Copy)]
struct How<'a> {
    mode: Mode,
    stable: bool,
    clock: Option<&'a AtomicU64>,
}

/// Makes a call that is noted, and finds out what became of it when it fails where it may.
fn change(
    file: &mut Tracked, change: &Change, how: How, reading: &Reading, handle: &File,
    call: impl FnOnce() -> io::Result<bool>,
) -> Result<(), Stop> {
    let How { mode, stable, clock } = how;
    let model = &mut file.model;
    model.strained |= !model.pages_are_known();
    // What failed before may be told by a write that waits for stable storage.
    let may_refuse = model.may_refuse(change) || (stable && model.strained);
    model.begin(change, mode);
    let error = match call() {
        Ok(true) => {
            file.remember(clock.filter(|_| stable));
            file.model.commit(change, stable);
            return Ok(());
        }
        Ok(false) => "a short count".to_owned(),
        Err(error) => error.to_string(),
    };
    if reading.daemon.is_killed() {
        return Err(Stop::Gone);
    }
    if !may_refuse {
        return Err(trouble(format!("a call failed that may not: {error}")).into());
    }
    let size = reading.unless_gone(handle.metadata(), "fstat after a failed call")?.len();
    let model = &mut file.model;
    model.resolve_size(size)?;
    for index in model.pending() {
        read_pages(handle, index..index + 1, size, 1, reading, |index, found| {
            model.resolve(index, found)
        })?;
    }
    Ok(())
}

impl<'a> Client<'a> {
    pub(crate) fn new(
        world: &'a mut World, random: &'a mut Random, scene: Scene<'a>,
    ) -> Result<Client<'a>, Failure> {
        let made = rustix::fs::memfd_create("carrier", rustix::fs::MemfdFlags::CLOEXEC);
        let carrier = made.map_err(|errno| trouble(format!("memfd: {errno}")))?.into();
        Ok(Client {
            world,
            random,
            reading: scene.reading,
            mode: scene.mode,
            read_only: scene.read_only,
            any_strained: scene.any_strained,
            watch: scene.watch,
            clock: scene.clock,
            handles: Vec::new(),
            memory: vec![0; CALL_MAX as usize + 3 * PAGE],
            carrier,
            calls: 0,
        })
    }

    /// Makes so many calls, or as many as the daemon lives for.
    pub(crate) fn run(&mut self, steps: u64) -> Result<(), Failure> {
        let mut result = Ok(());
        for _ in 0..steps {
            result = if self.read_only { self.look() } else { self.step() };
            match &result {
                Ok(()) => self.calls += 1,
                Err(_) => break,
            }
        }
        self.handles.clear();
        self.world.forget_nameless(&[]);
        match result {
            Err(Stop::Failed(failure)) => Err(failure),
            _ => Ok(()),
        }
    }

    /// Files for a disk whose power is cut, with names that stay.
    pub(crate) fn prepare_files(&mut self) -> Result<(), Failure> {
        let result = (|| {
            for _ in 0..3 + self.random.below(3) {
                let name = self.world.fresh_name();
                self.create(&name)?;
                let at = self.handles.len() - 1;
                self.write_somewhere(at)?;
                self.synchronize(at)?;
            }
            self.synchronize_all()
        })();
        self.handles.clear();
        match result {
            Ok(()) => Ok(()),
            Err(Stop::Failed(failure)) => Err(failure),
            Err(Stop::Gone) => Err(trouble("the daemon is gone, though nobody killed it")),
        }
    }

    fn how(&self, stable: bool) -> How<'a> {
        How { mode: self.mode, stable, clock: self.clock }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.reading.mnt.join(name)
    }

    fn say(&mut self, id: usize, what: String) {
        self.watch.tell(&what);
        let at = self.clock.map(|clock| format!("@{} ", clock.load(Ordering::SeqCst)));
        self.world.note(id, at.unwrap_or_default() + &what);
    }

    /// Adds the file's story to a failure.
    fn told(&self, id: usize, result: Result<(), Stop>) -> Result<(), Stop> {
        match result {
            Err(Stop::Failed(failure)) => Err(self.world.describe(id, failure).into()),
            result => result,
        }
    }

    fn some_name(&mut self) -> (String, usize) {
        let at = self.random.below(self.world.names.len() as u64) as usize;
        let (name, id) = self.world.names.iter().nth(at).expect("there are names");
        (name.clone(), *id)
    }

    /// A handle of a file that has this name, or now and then any handle.
    fn some_handle(&mut self) -> Result<usize, Stop> {
        if !self.handles.is_empty() && self.random.chance(10) {
            return Ok(self.random.below(self.handles.len() as u64) as usize);
        }
        let (name, id) = self.some_name();
        let of_it: Vec<usize> =
            (0..self.handles.len()).filter(|&at| self.handles[at].id == id).collect();
        if of_it.is_empty() || (of_it.len() < 3 && self.random.chance(10)) {
            return self.open(&name, id);
        }
        Ok(self.random.pick(&of_it))
    }

    fn open(&mut self, name: &str, id: usize) -> Result<usize, Stop> {
        let kinds = [0, 0, 0, libc::O_DIRECT, libc::O_DSYNC, libc::O_APPEND];
        let mut flags = self.random.pick(&kinds) | self.random.pick(&kinds);
        if self.random.chance(8) {
            flags |= libc::O_TRUNC;
        }
        self.say(id, format!("open {name} with {flags:#o}"));
        let path = self.path(name);
        let open = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(flags & !libc::O_APPEND);
            options.append(flags & libc::O_APPEND != 0).open(&path)
        };
        let file = if flags & libc::O_TRUNC == 0 {
            self.reading.unless_gone(open(), "open")?
        } else {
            let change = Change::Resize(0);
            self.world.file(id).model.begin(&change, self.mode);
            let file = self.reading.unless_gone(open(), "open with O_TRUNC")?;
            self.world.file(id).model.commit(&change, false);
            file
        };
        let (append, stable) = (flags & libc::O_APPEND != 0, flags & libc::O_DSYNC != 0);
        self.handles.push(Handle { id, file, append, stable });
        Ok(self.handles.len() - 1)
    }

    fn step(&mut self) -> Result<(), Stop> {
        if self.world.names.len() < NAMES.start && self.clock.is_none() {
            let name = self.world.fresh_name();
            return self.create(&name);
        }
        let crowded = self.world.files.iter().find(|(_, file)| file.model.is_crowded());
        if let Some((&id, _)) = crowded
            && let Some(at) = self.handles.iter().position(|handle| handle.id == id)
        {
            return self.synchronize(at);
        }
        let what = self.random.below(100);
        match what {
            92..96 if self.clock.is_some() => return Ok(()),
            90..92 => return self.synchronize_all(),
            92..96 => return self.names(),
            96..98 => return self.ask(),
            _ => {}
        }
        let at = self.some_handle()?;
        let id = self.handles[at].id;
        let result = match what {
            0..30 => self.write_somewhere(at),
            30..35 => self.stream(at),
            35..40 => self.store(at),
            40..46 => self.resize(at),
            46..53 => self.shape(at),
            53..62 => self.read(at),
            62..73 => self.synchronize(at),
            73..78 => self.metadata(at),
            78..81 => self.metadata_by_name(),
            81..85 => self.flush(at),
            85..89 => {
                self.say(id, "close".to_owned());
                drop(self.handles.swap_remove(at));
                let held: Vec<usize> = self.handles.iter().map(|handle| handle.id).collect();
                self.world.forget_nameless(&held);
                Ok(())
            }
            _ => self.ask(),
        };
        self.told(id, result)
    }

    /// What can be done on a mount that only reads.
    fn look(&mut self) -> Result<(), Stop> {
        if self.world.names.is_empty() {
            return Ok(());
        }
        let (name, id) = self.some_name();
        self.say(id, format!("open {name} to read"));
        let file = self.reading.unless_gone(File::open(self.path(&name)), "open to read")?;
        if self.random.chance(10) {
            let refused = std::fs::set_permissions(self.path(&name), Permissions::from_mode(0o600));
            if refused.is_ok() {
                return Err(trouble("a mount that only reads takes a chmod").into());
            }
        }
        self.handles.push(Handle { id, file, append: false, stable: false });
        let result = self.read(self.handles.len() - 1);
        self.handles.clear();
        self.told(id, result)
    }

    /// Data in memory of any alignment; where it begins.
    fn prepare(&mut self, length: u64) -> std::ops::Range<usize> {
        let address = self.memory.as_ptr().addr();
        let odd = self.random.pick(&[0, 0, 1, 8, 512, 2048, 4095]);
        let start = address.next_multiple_of(PAGE) - address + odd;
        let range = start..start + length as usize;
        self.random.fill(&mut self.memory[range.clone()]);
        range
    }

    fn write(&mut self, at: usize, offset: u64, length: u64) -> Result<(), Stop> {
        let handle = &self.handles[at];
        let (id, append, stable) = (handle.id, handle.append, handle.stable);
        let size = self.world.file(id).model.size;
        let offset = if append { size } else { offset };
        // Of two requests that make a file longer one may have done so.
        let length = if offset + length > size { length.min(REQUEST_MAX) } else { length };
        let range = self.prepare(length);
        let zero = if self.memory[range.start] == 0 { " of zeros" } else { "" };
        let how = if stable { ", O_DSYNC" } else { "" };
        let memory = range.start as u64 + self.memory.as_ptr().addr() as u64;
        let memory = memory % PAGE as u64;
        self.say(id, format!("write {offset}+{length}{zero} from {memory}{how}"));
        let handle = &self.handles[at];
        let data = &self.memory[range];
        let wanted = Change::Write { offset, data };
        let how = self.how(stable);
        change(self.world.file(id), &wanted, how, &self.reading, &handle.file, || {
            Ok(handle.file.write_at(data, offset)? == data.len())
        })
    }

    fn some_length(&mut self) -> u64 {
        let most = self.random.pick(&[600, 9000, 9000, 100_000, CALL_MAX]);
        let length = 1 + self.random.below(most);
        match self.random.chance(40) {
            true => length.next_multiple_of(PAGE as u64).min(CALL_MAX),
            false => length,
        }
    }

    /// A place in the file, or now and then behind its end.
    fn some_offset(&mut self, at: usize, length: u64) -> u64 {
        let size = self.world.file(self.handles[at].id).model.size;
        let beyond = if self.random.chance(15) { 200_000 } else { 1 };
        let offset = self.random.below((size + beyond).min(LENGTH_MAX - length));
        match self.random.chance(50) {
            true => offset / PAGE as u64 * PAGE as u64,
            false => offset,
        }
    }

    fn write_somewhere(&mut self, at: usize) -> Result<(), Stop> {
        let length = self.some_length();
        let offset = self.some_offset(at, length);
        if self.handles[at].append
            && self.world.file(self.handles[at].id).model.size + length > LENGTH_MAX
        {
            return Ok(());
        }
        self.write(at, offset, length)
    }

    /// Several calls, one behind the other.
    fn stream(&mut self, at: usize) -> Result<(), Stop> {
        let length = self.random.pick(&[4096, 65_536, 262_144, CALL_MAX, 100_001]);
        let mut offset = self.world.file(self.handles[at].id).model.size;
        if offset + 4 * length > LENGTH_MAX {
            if self.handles[at].append {
                return Ok(());
            }
            offset = 0;
        }
        for _ in 0..4 {
            if offset + length <= LENGTH_MAX {
                self.write(at, offset, length)?;
            }
            offset += length;
        }
        Ok(())
    }

    /// Stores through a shared mapping, with msync most of the time.
    fn store(&mut self, at: usize) -> Result<(), Stop> {
        let id = self.handles[at].id;
        let size = self.world.file(id).model.size;
        let start = self.random.below(size.max(1));
        let length = (1 + self.random.below(60_000)).min(size.saturating_sub(start));
        let pages = start as usize / PAGE..((start + length) as usize).div_ceil(PAGE);
        let model = &self.world.file(id).model;
        if length == 0 || pages.clone().any(|index| !model.is_known(index)) {
            return Ok(());
        }
        let sync = self.random.chance(70);
        self.say(id, format!("store {start}+{length} in a mapping, msync {sync}"));
        let range = self.prepare(length);
        let data = &self.memory[range];
        let mapped = Mapping::new(&self.handles[at].file, &pages);
        let mapped = self.reading.unless_gone(mapped, "mmap")?;
        let carried = self.carrier.write_all_at(data, 0);
        self.reading.unless_gone(carried, "carrying bytes")?;
        let wanted = Change::Write { offset: start, data };
        let how = self.how(false);
        let tracked = self.world.file(id);
        tracked.model.mapped = true;
        let within = start as usize % PAGE;
        let (carrier, handle) = (&self.carrier, &self.handles[at].file);
        change(tracked, &wanted, how, &self.reading, handle, || {
            mapped.store(within, carrier, data.len())
        })?;
        if sync {
            if !self.make_stable(id, "msync", || mapped.synchronize())? {
                return Ok(());
            }
            let clock = self.clock;
            let file = self.world.file(id);
            file.remember(clock);
            file.model.synchronize_pages(pages);
        }
        Ok(())
    }

    fn resize(&mut self, at: usize) -> Result<(), Stop> {
        let id = self.handles[at].id;
        let size = self.world.file(id).model.size;
        let mut length = self.random.below(size * 5 / 4 + 5000).min(LENGTH_MAX);
        if self.random.chance(30) {
            length = length / PAGE as u64 * PAGE as u64;
        }
        self.say(id, format!("ftruncate {length}, from {size}"));
        let file = &self.handles[at].file;
        let wanted = Change::Resize(length);
        let how = self.how(false);
        change(self.world.file(id), &wanted, how, &self.reading, file, || {
            file.set_len(length).map(|()| true)
        })
    }

    /// A hole, zeros, or space.
    fn shape(&mut self, at: usize) -> Result<(), Stop> {
        let id = self.handles[at].id;
        let length = 1 + self.random.pick(&[3000, 20_000, 300_000]);
        let mut length = 1 + self.random.below(length);
        let start = self.some_offset(at, length);
        if self.random.chance(40) {
            length = length.next_multiple_of(PAGE as u64);
        }
        let end = (start + length).min(LENGTH_MAX);
        let (keep, zero) = (FallocateFlags::KEEP_SIZE, FallocateFlags::ZERO_RANGE);
        let (name, flags, wanted) = match self.random.below(6) {
            0..3 => (
                "punch",
                FallocateFlags::PUNCH_HOLE | keep,
                Change::Zero { start, end, extend: false },
            ),
            3 => ("zero and keep", zero | keep, Change::Zero { start, end, extend: false }),
            4 => ("zero", zero, Change::Zero { start, end, extend: true }),
            _ if self.random.chance(50) => ("allocate and keep", keep, Change::Grow(0)),
            _ => ("allocate", FallocateFlags::empty(), Change::Grow(end)),
        };
        if start >= end {
            return Ok(());
        }
        self.say(id, format!("{name} {start}..{end}"));
        let file = &self.handles[at].file;
        let how = self.how(false);
        change(self.world.file(id), &wanted, how, &self.reading, file, || {
            rustix::fs::fallocate(file, flags, start, end - start)?;
            Ok(true)
        })
    }

    fn read(&mut self, at: usize) -> Result<(), Stop> {
        let id = self.handles[at].id;
        let file = &self.handles[at].file;
        let size = self.reading.unless_gone(file.metadata(), "fstat")?.len();
        let model = &self.world.files[&id].model;
        if size != model.size {
            let text = format!("{size} bytes where {} belong, before any crash", model.size);
            return Err(Failure::new(Kind::Size, text).into());
        }
        let start = self.random.below(model.count() as u64 + 1) as usize;
        let end = (start + 1 + self.random.below(40) as usize).min(model.count());
        let chunk = self.random.pick(&[1, 16, 64]);
        self.watch.tell("reading");
        read_pages(file, start..end.max(start), size, chunk, &self.reading, |index, found| {
            model.check_now(index, found)
        })
    }

    /// Returns whether everything is on stable storage. Of a file with torn pages an fsync fails as long as bytes are
    /// dirty that share such a page.
    fn make_stable(
        &self, id: usize, what: &str, call: impl Fn() -> io::Result<()>,
    ) -> Result<bool, Stop> {
        let model = &self.world.files[&id].model;
        let strained = model.strained || !model.pages_are_known();
        match call() {
            Err(error) if strained && error.raw_os_error() == Some(libc::EIO) => match call() {
                Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
                result => self.reading.unless_gone(result, what).map(|()| true),
            },
            result => self.reading.unless_gone(result, what).map(|()| true),
        }
    }

    fn synchronize(&mut self, at: usize) -> Result<(), Stop> {
        let id = self.handles[at].id;
        let name = self.random.pick(&["fsync", "fdatasync"]);
        self.say(id, name.to_owned());
        let file = &self.handles[at].file;
        let is_stable = self.make_stable(id, name, || match name {
            "fsync" => file.sync_all(),
            _ => file.sync_data(),
        })?;
        if !is_stable {
            return Ok(());
        }
        let clock = self.clock;
        let file = self.world.file(id);
        file.remember(clock);
        file.model.synchronize();
        Ok(())
    }

    fn synchronize_all(&mut self) -> Result<(), Stop> {
        self.watch.tell("fsync of the root");
        let at = self.clock.map(|clock| format!("@{} ", clock.load(Ordering::SeqCst)));
        self.world.note_all(&(at.unwrap_or_default() + "fsync of the root"));
        let root = self.reading.unless_gone(File::open(self.reading.mnt), "open of the root")?;
        let strained = self.any_strained || self.world.is_strained();
        match root.sync_all() {
            Err(error) if error.raw_os_error() == Some(libc::EIO) && strained => {
                // Which file's error that was it does not say.
                return Ok(());
            }
            result => self.reading.unless_gone(result, "fsync of the root")?,
        }
        // What was stored through mappings the kernel still has.
        let files = self.world.files.values_mut().filter(|file| !file.model.mapped);
        for file in files {
            file.remember(self.clock);
            file.model.synchronize();
        }
        Ok(())
    }

    fn flush(&mut self, at: usize) -> Result<(), Stop> {
        let id = self.handles[at].id;
        self.say(id, "close of a dup".to_owned());
        let copy = self.handles[at].file.try_clone();
        let copy: OwnedFd = self.reading.unless_gone(copy, "dup")?.into();
        let result = nix::unistd::close(copy).map_err(io::Error::from);
        match result {
            Err(error) if error.raw_os_error() == Some(libc::EIO) && self.world.is_strained() => {
                Ok(())
            }
            result => self.reading.unless_gone(result, "close of a dup"),
        }
    }

    fn metadata(&mut self, at: usize) -> Result<(), Stop> {
        let id = self.handles[at].id;
        let file = &self.handles[at].file;
        let past = SystemTime::now() - Duration::from_secs(self.random.below(100_000_000));
        let owner = self.random.below(4) as u32;
        let mode = self.random.pick(&[0o644, 0o600, 0o444, 0]);
        let (name, result) = match self.random.below(4) {
            0 => ("fchmod", file.set_permissions(Permissions::from_mode(mode))),
            1 => ("fchown", std::os::unix::fs::fchown(file, Some(owner), None)),
            2 => ("futimens", file.set_modified(past)),
            _ => ("futimens now", file.set_modified(SystemTime::now())),
        };
        let result = self.reading.unless_gone(result, name);
        self.say(id, name.to_owned());
        result
    }

    fn metadata_by_name(&mut self) -> Result<(), Stop> {
        let (name, id) = self.some_name();
        let path = self.path(&name);
        let owner = self.random.below(4) as u32;
        let mode = self.random.pick(&[0o644, 0o600, 0o444, 0]);
        let past = rustix::fs::Timespec { tv_sec: self.random.below(1 << 30) as i64, tv_nsec: 7 };
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let touch = |time| {
            let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
            let flags = rustix::fs::AtFlags::empty();
            rustix::fs::utimensat(rustix::fs::CWD, &path, &times, flags).map_err(io::Error::from)
        };
        let (what, result) = match self.random.below(5) {
            0 => ("chmod", std::fs::set_permissions(&path, Permissions::from_mode(mode))),
            1 => ("chown", std::os::unix::fs::chown(&path, Some(owner), None)),
            2 => ("utimens", touch(past)),
            3 => ("touch", touch(now)),
            _ => {
                let flags = XattrFlags::empty();
                let set = rustix::fs::setxattr(&path, "user.foo", &owner.to_le_bytes(), flags);
                ("setxattr", set.map_err(io::Error::from))
            }
        };
        let result = self.reading.unless_gone(result, what);
        self.say(id, format!("{what} of {name}"));
        self.told(id, result)
    }

    /// A request to swapfs by user.swap.request.
    fn ask(&mut self) -> Result<(), Stop> {
        let (name, id) = self.some_name();
        let path = self.path(&name);
        let reserve = format!("reserve {}", self.random.below(LENGTH_MAX));
        let requests = ["swap_out", "swap_in", "release", "discard", &reserve, "wait"];
        let request = self.random.pick(&requests);
        let wholly = self.world.file(id).model.pages_are_known();
        let model = &self.world.file(id).model;
        // Which size it has after a discard of what makes it longer, and from when on, is nowhere said.
        if request == "discard" && (model.mapped || !model.size_is_certain()) {
            return Ok(());
        }
        self.say(id, format!("request {request} of {name}"));
        if request != "wait" {
            let flags = XattrFlags::empty();
            match rustix::fs::setxattr(&path, "user.swap.request", request.as_bytes(), flags) {
                Err(rustix::io::Errno::NOBUFS) => return Ok(()),
                Err(rustix::io::Errno::IO) if !wholly && !self.reading.daemon.is_killed() => {}
                result => self.reading.unless_gone(result.map_err(io::Error::from), request)?,
            }
        }
        if request == "discard" || request == "wait" || self.random.chance(20) {
            self.wait(&path)?;
        }
        match request {
            "discard" => {
                let result = self.rediscover(id, &path);
                self.told(id, result)
            }
            _ => Ok(()),
        }
    }

    fn wait(&self, path: &PathBuf) -> Result<(), Stop> {
        for _ in 0..60 {
            let mut status = [0u8; 32];
            let got = rustix::fs::getxattr(path, "user.swap.wait", &mut status[..]);
            let got = self.reading.unless_gone(got.map_err(io::Error::from), "user.swap.wait")?;
            if &status[..got] != b"inflight" {
                return Ok(());
            }
        }
        Err(trouble("a partition is in flight for a minute").into())
    }

    /// What a file is after a discard.
    fn rediscover(&mut self, id: usize, path: &PathBuf) -> Result<(), Stop> {
        let file = self.reading.unless_gone(File::open(path), "open after a discard")?;
        let size = self.reading.unless_gone(file.metadata(), "fstat after a discard")?.len();
        let model = &mut self.world.file(id).model;
        model.rediscover_size(size)?;
        read_pages(&file, 0..model.count(), size, 64, &self.reading, |index, found| {
            model.rediscover(index, found)
        })
    }

    fn create(&mut self, name: &str) -> Result<(), Stop> {
        let path = self.path(name);
        self.watch.tell("create");
        self.world.under_way = Some(NameOp::Create(name.to_owned()));
        let made = File::options().create_new(true).read(true).write(true).open(&path);
        let file = self.reading.unless_gone(made, "create")?;
        let ino = self.reading.unless_gone(file.metadata(), "fstat of a new file")?.ino();
        self.world.under_way = None;
        let id = self.world.adopt(name, ino, FileModel::new());
        self.handles.push(Handle { id, file, append: false, stable: false });
        Ok(())
    }

    /// A change of names.
    fn names(&mut self) -> Result<(), Stop> {
        let (name, id) = self.some_name();
        let (other, over) = self.some_name();
        let fresh = self.world.fresh_name();
        let few = self.world.names.len() < NAMES.end;
        match self.random.below(6) {
            0 => self.rename(&name, fresh),
            1 if over != id => self.rename(&name, other),
            2 if few => {
                let call = |from: PathBuf, to: PathBuf| std::fs::hard_link(from, to);
                self.two_names(NameOp::Link(name.clone(), fresh.clone()), &name, &fresh, call)
            }
            3 => self.unlink(&name),
            4 => {
                self.unlink(&name)?;
                self.create(&name)
            }
            _ if few => self.create(&fresh),
            _ => Ok(()),
        }
    }

    fn rename(&mut self, from: &str, to: String) -> Result<(), Stop> {
        let call = |from: PathBuf, to: PathBuf| std::fs::rename(from, to);
        self.two_names(NameOp::Rename(from.to_owned(), to.clone()), from, &to, call)
    }

    fn two_names(
        &mut self, operation: NameOp, from: &str, to: &str,
        call: impl FnOnce(PathBuf, PathBuf) -> io::Result<()>,
    ) -> Result<(), Stop> {
        self.watch.tell("a change of names");
        self.world.under_way = Some(operation.clone());
        let result = call(self.path(from), self.path(to));
        self.reading.unless_gone(result, "a change of names")?;
        self.world.under_way = None;
        self.world.done(&operation);
        Ok(())
    }

    fn unlink(&mut self, name: &str) -> Result<(), Stop> {
        self.watch.tell("unlink");
        let operation = NameOp::Unlink(name.to_owned());
        self.world.under_way = Some(operation.clone());
        self.reading.unless_gone(std::fs::remove_file(self.path(name)), "unlink")?;
        self.world.under_way = None;
        self.world.done(&operation);
        let held: Vec<usize> = self.handles.iter().map(|handle| handle.id).collect();
        self.world.forget_nameless(&held);
        Ok(())
    }
}

/// Pages of a file in memory.
struct Mapping {
    start: *mut std::ffi::c_void,
    length: usize,
}

impl Mapping {
    fn new(file: &File, pages: &std::ops::Range<usize>) -> io::Result<Mapping> {
        let length = pages.len() * PAGE;
        let (access, offset) = (ProtFlags::READ | ProtFlags::WRITE, (pages.start * PAGE) as u64);
        let null = std::ptr::null_mut();
        // SAFETY: a new mapping at a place of the kernel's choice; only the kernel ever touches its bytes.
        let start =
            unsafe { rustix::mm::mmap(null, length, access, MapFlags::SHARED, file, offset) }?;
        Ok(Mapping { start, length })
    }

    /// Copies the first bytes of `carrier` to `within` of the mapping: whether all of them.
    fn store(&self, within: usize, carrier: &File, length: usize) -> io::Result<bool> {
        assert!(within + length <= self.length, "it is within the mapping");
        let to = self.start.wrapping_byte_add(within);
        // SAFETY: the bytes lie within the mapping, to which no reference exists; a page that cannot be had is an error.
        let got = unsafe { libc::pread(carrier.as_raw_fd(), to, length, 0) };
        match got {
            -1 => Err(io::Error::last_os_error()),
            got => Ok(got as usize == length),
        }
    }

    fn synchronize(&self) -> io::Result<()> {
        // SAFETY: the range is this mapping.
        Ok(unsafe { rustix::mm::msync(self.start, self.length, MsyncFlags::SYNC) }?)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this mapping, which nobody uses from here on.
        let _ = unsafe { rustix::mm::munmap(self.start, self.length) };
    }
}
