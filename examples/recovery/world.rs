//! The files of one client by name, and the check of all of them at a mount.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::chance::Random;
use crate::model::{Failure, FileModel, Kind, Mixture, PAGE, Verdict};
use crate::place::{Snapshot, Stop, trouble};
use crate::tracer::Daemon;

/// Lines kept of what happened to a file.
const TRACE: usize = 120;

/// A change of names that may be under way when the daemon is killed.
#[derive(Debug, Clone)]
pub(crate) enum NameOp {
    Create(String),
    Rename(String, String),
    Link(String, String),
    Unlink(String),
}

/// A file, whatever its names.
#[derive(Debug, Clone)]
pub(crate) struct Tracked {
    pub(crate) model: FileModel,
    pub(crate) ino: u64,
    trace: VecDeque<String>,
    /// What a power cut before this moment may leave.
    past: Vec<(u64, FileModel)>,
}

impl Tracked {
    /// To be called when something is on stable storage, before the model is told: a cut before that moment may have
    /// left what may be now.
    pub(crate) fn remember(&mut self, clock: Option<&AtomicU64>) {
        if let Some(clock) = clock {
            self.past.push((clock.load(Ordering::SeqCst), self.model.clone()));
        }
    }
}

/// What was counted.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Counts {
    pub(crate) certain: u64,
    pub(crate) old: u64,
    pub(crate) new: u64,
    pub(crate) refused: u64,
    pub(crate) sessions: u64,
    pub(crate) calls: u64,
    pub(crate) kills: u64,
    pub(crate) points: u64,
    pub(crate) others: u64,
    pub(crate) flips: u64,
    pub(crate) cuts: u64,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Counts) {
        self.certain += other.certain;
        self.old += other.old;
        self.new += other.new;
        self.refused += other.refused;
        self.sessions += other.sessions;
        self.calls += other.calls;
        self.kills += other.kills;
        self.points += other.points;
        self.others += other.others;
        self.flips += other.flips;
        self.cuts += other.cuts;
    }

    fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Certain => self.certain += 1,
            Verdict::Old => self.old += 1,
            Verdict::New => self.new += 1,
            Verdict::Refused => self.refused += 1,
        }
    }
}

/// A client's names and files.
#[derive(Debug, Clone)]
pub(crate) struct World {
    prefix: char,
    pub(crate) names: BTreeMap<String, usize>,
    pub(crate) files: BTreeMap<usize, Tracked>,
    made: usize,
    pub(crate) under_way: Option<NameOp>,
}

impl World {
    pub(crate) fn new(prefix: char) -> World {
        let (names, files) = (BTreeMap::new(), BTreeMap::new());
        World { prefix, names, files, made: 0, under_way: None }
    }

    pub(crate) fn fresh_name(&mut self) -> String {
        self.made += 1;
        format!("{}{}", self.prefix, self.made)
    }

    /// Takes in a file.
    pub(crate) fn adopt(&mut self, name: &str, ino: u64, model: FileModel) -> usize {
        self.made += 1;
        let id = self.made;
        self.files.insert(id, Tracked { model, ino, trace: VecDeque::new(), past: Vec::new() });
        self.names.insert(name.to_owned(), id);
        self.note(id, format!("made as {name}, inode {ino}"));
        id
    }

    pub(crate) fn file(&mut self, id: usize) -> &mut Tracked {
        self.files.get_mut(&id).expect("files with handles or names stay")
    }

    pub(crate) fn note(&mut self, id: usize, line: String) {
        let Some(file) = self.files.get_mut(&id) else { return };
        if file.trace.len() == TRACE {
            file.trace.pop_front();
        }
        file.trace.push_back(line);
    }

    pub(crate) fn note_all(&mut self, line: &str) {
        for id in self.files.keys().copied().collect::<Vec<_>>() {
            self.note(id, line.to_owned());
        }
    }

    /// A failure with the file's name and what happened to it.
    pub(crate) fn describe(&self, id: usize, failure: Failure) -> Failure {
        if failure.is_told {
            return failure;
        }
        let name = self.names.iter().find(|(_, named)| **named == id);
        let name = name.map_or("a file without a name", |(name, _)| name.as_str());
        let trace: Vec<&str> =
            self.files.get(&id).iter().flat_map(|file| &file.trace).map(String::as_str).collect();
        let text = format!("{name}: {}\n    {}", failure.text, trace.join("\n    "));
        Failure { text, is_told: true, ..failure }
    }

    /// A change of names is done.
    pub(crate) fn done(&mut self, operation: &NameOp) {
        match operation {
            NameOp::Create(_) => {}
            NameOp::Rename(from, to) => {
                if let Some(id) = self.names.remove(from) {
                    self.names.insert(to.clone(), id);
                    self.note(id, format!("renamed {from} to {to}"));
                }
            }
            NameOp::Link(from, to) => {
                if let Some(&id) = self.names.get(from) {
                    self.names.insert(to.clone(), id);
                    self.note(id, format!("linked {from} as {to}"));
                }
            }
            NameOp::Unlink(name) => {
                self.names.remove(name);
            }
        }
    }

    /// Drops what has neither a name nor anybody who holds it.
    pub(crate) fn forget_nameless(&mut self, held: &[usize]) {
        let named: BTreeSet<usize> = self.names.values().copied().collect();
        self.files.retain(|id, _| named.contains(id) || held.contains(id));
    }

    /// After a kill: whether the change of names that was under way was made.
    pub(crate) fn look_at_names(&mut self, swap: &Path) {
        let Some(operation) = self.under_way.take() else { return };
        let found = |name: &str| std::fs::symlink_metadata(swap.join(name)).ok();
        match &operation {
            NameOp::Create(name) => {
                if let Some(metadata) = found(name) {
                    self.adopt(name, metadata.ino(), FileModel::new());
                }
            }
            NameOp::Rename(from, _) | NameOp::Unlink(from) => {
                if found(from).is_none() {
                    self.done(&operation);
                }
            }
            NameOp::Link(_, to) => {
                if found(to).is_some() {
                    self.done(&operation);
                }
            }
        }
    }

    /// Whether a file has pages that cannot be read, or had.
    pub(crate) fn is_strained(&self) -> bool {
        let strained = |model: &FileModel| model.strained || !model.pages_are_known();
        self.files.values().any(|file| strained(&file.model))
    }

    /// After a clean end everything is certain.
    pub(crate) fn synchronize(&mut self) {
        self.files.values_mut().for_each(|file| file.model.synchronize());
    }

    /// The same, for power cuts after this moment.
    pub(crate) fn synchronize_at(&mut self, moment: u64) {
        for file in self.files.values_mut() {
            file.remember(Some(&AtomicU64::new(moment)));
            file.model.synchronize();
        }
        self.note_all("clean umount");
    }

    /// What a power cut at this moment may leave.
    pub(crate) fn at(&self, moment: u64) -> World {
        let mut world = self.clone();
        for file in world.files.values_mut() {
            let past = std::mem::take(&mut file.past);
            if let Some((_, model)) = past.into_iter().find(|(until, _)| *until > moment) {
                file.model = model;
            }
        }
        world
    }

    /// Whether names and inodes in the swap folder are as they should be.
    pub(crate) fn check_names(&self, swap: &Path) -> Result<(), Failure> {
        let listed = std::fs::read_dir(swap).map_err(|error| trouble(error.to_string()))?;
        let found: BTreeSet<String> = listed
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with(self.prefix))
            .collect();
        let wanted: BTreeSet<String> = self.names.keys().cloned().collect();
        if found != wanted {
            return Err(trouble(format!("the names are {found:?}, not {wanted:?}")));
        }
        for (name, id) in &self.names {
            let ino = std::fs::symlink_metadata(swap.join(name)).map(|metadata| metadata.ino());
            if ino.as_ref().ok() != Some(&self.files[id].ino) {
                return Err(trouble(format!(
                    "{name} is inode {ino:?}, not {}",
                    self.files[id].ino
                )));
            }
        }
        Ok(())
    }

    /// One name of each file.
    pub(crate) fn one_name_each(&self) -> BTreeMap<usize, String> {
        self.names.iter().map(|(name, id)| (*id, name.clone())).collect()
    }

    /// Checks what is certain in the swap folder, without a mount.
    pub(crate) fn check_raw(&self, swap: &Path, raw: &Snapshot) -> Result<(), Failure> {
        for (id, name) in self.one_name_each() {
            let Some(bytes) = raw.get(&swap.join(&name)) else {
                return Err(trouble(format!("{name} is not in the swap folder")));
            };
            let checked = self.files[&id].model.check_raw(bytes);
            checked.map_err(|failure| self.describe(id, failure))?;
        }
        Ok(())
    }

    /// Reads every file and compares it with what it may be; what was found is certain from then on.
    pub(crate) fn verify(
        &mut self, scene: &Reading, random: &mut Random, counts: &mut Counts,
    ) -> Result<(), Stop> {
        for (id, name) in self.one_name_each() {
            self.note(id, format!("read and compared as {name}"));
            match self.verify_file(id, &name, scene, random, counts) {
                Err(Stop::Failed(failure)) => return Err(self.describe(id, failure).into()),
                result => result?,
            }
        }
        Ok(())
    }

    fn verify_file(
        &mut self, id: usize, name: &str, scene: &Reading, random: &mut Random, counts: &mut Counts,
    ) -> Result<(), Stop> {
        let flags = random.pick(&[0, 0, libc::O_DIRECT]);
        let opened = File::options().read(true).custom_flags(flags).open(scene.mnt.join(name));
        let file = scene.unless_gone(opened, "open to compare")?;
        let size = scene.unless_gone(file.metadata(), "fstat to compare")?.len();
        let model = &mut self.file(id).model;
        model.settle_size(size)?;
        let mut refused = 0;
        let chunk = random.pick(&[1, 16, 64, 256]);
        read_pages(&file, 0..model.count(), size, chunk, scene, |index, found| {
            let verdict = model.settle(index, found, scene.mixture)?;
            counts.count(verdict);
            refused += u64::from(found.is_none());
            Ok(())
        })?;
        if refused > 0 {
            check_reason(&file, scene)?;
            self.note(id, format!("{refused} pages are refused"));
        }
        Ok(())
    }
}

/// What reading needs.
pub(crate) struct Reading<'a> {
    pub(crate) daemon: &'a Daemon,
    pub(crate) mnt: &'a Path,
    pub(crate) mixture: Mixture,
}

impl Reading<'_> {
    /// An error means nothing when the daemon is being killed.
    pub(crate) fn unless_gone<T>(&self, result: io::Result<T>, what: &str) -> Result<T, Stop> {
        match result {
            Ok(value) => Ok(value),
            Err(_) if self.daemon.is_killed() => Err(Stop::Gone),
            Err(error) => Err(trouble(format!("{what}: {error}")).into()),
        }
    }
}

/// The error that a refused page has to have.
fn check_reason(file: &File, scene: &Reading) -> Result<(), Stop> {
    let mut name = [0u8; 64];
    let got = rustix::fs::fgetxattr(file, "user.swap.error", &mut name[..]);
    let length =
        scene.unless_gone(got.map_err(io::Error::from), "user.swap.error of a torn file")?;
    match &name[..length] {
        b"EUCLEAN" | b"EBADMSG" => Ok(()),
        other => {
            let text = format!("a page is refused with {}", String::from_utf8_lossy(other));
            Err(Failure::new(Kind::Other, text).into())
        }
    }
}

/// Reads pages, `chunk` at a time, one by one where that fails, and hands over each: none when it is refused.
pub(crate) fn read_pages(
    file: &File, pages: std::ops::Range<usize>, size: u64, chunk: usize, scene: &Reading,
    mut each: impl FnMut(usize, Option<&[u8]>) -> Result<(), Failure>,
) -> Result<(), Stop> {
    let mut bytes = vec![0; chunk * PAGE];
    let mut at = pages.start;
    while at < pages.end {
        let count = chunk.min(pages.end - at);
        let start = (at * PAGE) as u64;
        let length = size.saturating_sub(start).min((count * PAGE) as u64) as usize;
        if file.read_exact_at(&mut bytes[..length], start).is_ok() {
            for index in 0..count {
                let from = (index * PAGE).min(length);
                each(at + index, Some(&bytes[from..(from + PAGE).min(length)]))?;
            }
        } else {
            for index in at..at + count {
                read_one(file, index, size, scene, &mut each)?;
            }
        }
        at += count;
    }
    Ok(())
}

fn read_one(
    file: &File, index: usize, size: u64, scene: &Reading,
    each: &mut impl FnMut(usize, Option<&[u8]>) -> Result<(), Failure>,
) -> Result<(), Stop> {
    let start = (index * PAGE) as u64;
    let mut bytes = [0; PAGE];
    let bytes = &mut bytes[..size.saturating_sub(start).min(PAGE as u64) as usize];
    match file.read_exact_at(bytes, start) {
        Ok(()) => Ok(each(index, Some(bytes))?),
        Err(_) if scene.daemon.is_killed() => Err(Stop::Gone),
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(each(index, None)?),
        Err(error) => Err(trouble(format!("reading the page at {start}: {error}")).into()),
    }
}
