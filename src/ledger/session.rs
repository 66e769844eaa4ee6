//! When swapfs had the swap folder, and how each time ended: `.swapfs/session`.
//!
//! Times are those of the swap folder's own clock: change times of the session file itself.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, OFlags, Timespec, Timestamps, UTIME_NOW, renameat, statat, unlinkat};
use serde::{Deserialize, Serialize};

use super::entry::crc;
use super::stamp::Stamp;
use super::table::Table;
use super::witness;
use crate::file_clock;
use crate::trust;

const NAME: &str = "session";
const NEW_NAME: &str = "session.new";

/// The file's length is a multiple of this.
const FILE_STEP: usize = 4096;

/// Bytes of the file that are read at most.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// So much of it is searched for a flipped bit: more than any has.
const MENDED_BYTES_MAX: usize = 16384;

/// Sessions that ended well, and that did not, whose times are remembered.
const SESSIONS_MAX: usize = 64;

/// The doubt of sessions in the first format, whose daemons said nothing while they wrote, in nanoseconds.
const FIRST_DOUBT_NS: i64 = 40_000_000;

/// Bytes of the largest block; no write is longer.
const BLOCK_BYTES_MAX: u64 = 16 << 20;

/// What the file holds, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    /// Sessions are numbered from 1 on; 0 in the first format.
    #[serde(default)]
    number: u32,
    /// The running kernel's boot.
    boot_id: String,
    /// When the session began, in nanoseconds since 1970.
    start_ns: i64,
    /// When it ended, with everything on stable storage and recorded.
    end_ns: Option<i64>,
    /// Bytes of a block: no write is longer.
    block_size: u64,
    /// A file may have been changed so long after the daemon was last seen alive, in nanoseconds.
    #[serde(default)]
    doubt_ns: i64,
    /// A file that kept its modification time was not written to.
    #[serde(default, skip_serializing_if = "is_false")]
    fine_times: bool,
    /// When the daemon was last seen alive, by who found that it had died and was about to change the records.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    alive_ns: Option<i64>,
    /// Earlier sessions that ended so: start and end.
    earlier: Vec<(i64, i64)>,
    /// Earlier sessions that did not.
    #[serde(default)]
    crashed: Vec<Crash>,
    /// The crc of this text with a sum of 0. The first format had none.
    #[serde(default)]
    sum: Option<u32>,
}

/// How a session ended that did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Fall {
    /// The daemon died; the machine went on, so what was handed to the kernel is not lost.
    Killed,
    /// The machine stopped, or nobody knows.
    PowerCut,
}

/// A session that did not end well.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Crash {
    pub(super) number: u32,
    pub(super) fall: Fall,
    pub(super) start_ns: i64,
    /// The daemon was alive then, and at most so long after.
    pub(super) alive_ns: i64,
    pub(super) doubt_ns: i64,
    /// When the machine was started again, where that is known.
    pub(super) boot_ns: Option<i64>,
    pub(super) block_size: u64,
    /// A file that kept its modification time was not written to.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(super) fine_times: bool,
}

/// What is left out of a file is not in the sum of files from before it was known.
#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_false(value: &bool) -> bool {
    !value
}

impl Crash {
    /// One of which nothing is known.
    pub(super) fn unknown(number: u32, alive_ns: i64) -> Self {
        let (fall, boot_ns) = (Fall::PowerCut, None);
        let (doubt_ns, block_size) = (FIRST_DOUBT_NS, BLOCK_BYTES_MAX);
        let (start_ns, fine_times) = (0, false);
        Self { number, fall, start_ns, alive_ns, doubt_ns, boot_ns, block_size, fine_times }
    }
}

/// The sessions of a swap folder, as far as they matter.
#[derive(Debug)]
pub(super) struct Sessions {
    control: OwnedFd,
    stored: Stored,
    /// There is a session now, since then.
    now_from_ns: Option<i64>,
    /// The last session did not end well, or nobody knows.
    fell: bool,
    /// When the daemon that had the folder last was alive.
    alive_ns: i64,
    /// What is on record of the session that fell.
    fallen: Option<Stored>,
}

/// What the file says of the last session.
enum Last {
    None,
    Damaged,
    Known(Stored),
}

impl Sessions {
    /// What is known of the last one. With `block_size` a new session begins, which is on record with
    /// [`Sessions::begun`].
    pub(super) fn open(
        control: BorrowedFd<'_>, table: &Table, block_size: Option<u64>,
    ) -> io::Result<Self> {
        let control = control.try_clone_to_owned()?;
        let boot_id = crate::machine::text(crate::machine::BOOT_ID)?;
        let alive_ns = table.alive_ns()?;
        let (newest, _) = table.last_known();
        let (mut earlier, mut crashed, mut number) = (Vec::new(), Vec::new(), newest);
        let mut fallen = None;
        let mut last = read(control.as_fd());
        let mut alive_ns = alive_ns;
        if let Last::Known(last) = &mut last
            && let Some(end_ns) = last.seen_end(control.as_fd())
        {
            (alive_ns, last.doubt_ns) = (end_ns, 0);
        }
        let fell = match last {
            Last::Known(last) if last.number >= newest || last.is_before_recovery(newest) => {
                earlier.clone_from(&last.earlier);
                crashed.clone_from(&last.crashed);
                number = last.number.max(newest);
                match last.end_ns {
                    Some(end) => earlier.push((last.start_ns, end)),
                    None => {
                        crashed.extend(last.crashes(&boot_id, alive_ns, newest));
                        fallen = Some(last);
                    }
                }
                fallen.is_some()
            }
            Last::None if table.len() == 0 => false,
            // Lost, damaged, or older than the records.
            _ => {
                crashed.push(Crash::unknown(newest, alive_ns));
                true
            }
        };
        keep_last(&mut earlier);
        keep_last(&mut crashed);
        let stored = Stored {
            number: number.saturating_add(1),
            boot_id,
            start_ns: 0,
            end_ns: None,
            block_size: block_size.unwrap_or(BLOCK_BYTES_MAX),
            doubt_ns: 0,
            fine_times: false,
            alive_ns: None,
            earlier,
            crashed,
            sum: None,
        };
        let alive_ns = fallen.as_ref().and_then(|fallen| fallen.alive_ns).unwrap_or(alive_ns);
        let mut sessions = Self { control, stored, now_from_ns: None, fell, alive_ns, fallen };
        if block_size.is_some() {
            sessions.begin()?;
        }
        Ok(sessions)
    }

    /// The number of the session that is now, or would be next.
    pub(super) fn number(&self) -> u32 {
        self.stored.number
    }

    /// Whether the last session did not end well.
    pub(super) fn fell(&self) -> bool {
        self.fell
    }

    /// When the daemon that had the folder last was alive.
    pub(super) fn alive_ns(&self) -> i64 {
        self.alive_ns
    }

    /// The session of this number, when it did not end well. Numbers were unknown in the first format: there it is the
    /// last one.
    pub(super) fn crash(&self, number: u32) -> Option<Crash> {
        self.stored.crashed.iter().rev().find(|crash| crash.number == number).copied()
    }

    /// The first session after this one that a power cut ended.
    pub(super) fn cut_after(&self, number: u32) -> Option<Crash> {
        let cuts = self.stored.crashed.iter().filter(|crash| crash.fall == Fall::PowerCut);
        cuts.filter(|crash| crash.number > number).min_by_key(|crash| crash.number).copied()
    }

    /// Whether any session ended by a power cut.
    pub(super) fn has_cuts(&self) -> bool {
        self.stored.crashed.iter().any(|crash| crash.fall == Fall::PowerCut)
    }

    /// Whether a partition without a record was made in a session that ended by a power cut, and is as that left it: had
    /// it been synchronized, it would have a record.
    pub(super) fn lost_birth(&self, birth_ns: Option<i64>, stamp: Stamp) -> bool {
        let cuts = self.stored.crashed.iter().filter(|crash| crash.fall == Fall::PowerCut);
        birth_ns.is_some_and(|birth| {
            let is_within = |crash: &Crash| {
                let end = crash.boot_ns.unwrap_or(crash.alive_ns.saturating_add(crash.doubt_ns));
                crash.start_ns > 0 && birth >= crash.start_ns && stamp.modified_ns.max(birth) <= end
            };
            cuts.into_iter().any(is_within)
        })
    }

    /// Recovery is about to change the table, whose time tells when the daemon was last alive: should it be interrupted,
    /// the next one is to know.
    pub(super) fn keep_alive_time(&self) -> io::Result<()> {
        match &self.fallen {
            Some(fallen) if fallen.alive_ns.is_none() => {
                self.put(Stored { alive_ns: Some(self.alive_ns), ..fallen.clone() })
            }
            _ => Ok(()),
        }
    }

    /// Notes the time, but leaves the last session's end on record until [`Sessions::begun`].
    fn begin(&mut self) -> io::Result<()> {
        let now = self.now()?;
        // A full disk has no room for a file to try it with.
        let tried = self.new_file().map(|file| file_clock::tells_every_write(&file));
        self.stored.fine_times = matches!(tried, Ok(Ok(true)));
        self.stored.start_ns = now;
        self.now_from_ns = Some(now);
        Ok(())
    }

    /// From here on a crash is this session's, whose daemon says that it lives often enough for this doubt.
    pub(super) fn begun(&mut self, doubt_ns: i64) -> io::Result<()> {
        self.stored.doubt_ns = doubt_ns;
        self.write()
    }

    /// Everything is recorded and on stable storage.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.stored.end_ns = Some(self.now()?);
        self.write()
    }

    /// Everything that crashes have left was dealt with, without a mount.
    pub(super) fn mended(&mut self) -> io::Result<()> {
        self.stored.crashed.clear();
        self.begin()?;
        self.end()
    }

    /// Whether both times are of one session that ended well, or of the one that is now: then whatever was done to the
    /// file was done while swapfs had it.
    pub(super) fn had_it(&self, modified_ns: i64, changed_ns: i64) -> bool {
        let both = |from: i64, to: i64| {
            let within = from..=to;
            within.contains(&modified_ns) && within.contains(&changed_ns)
        };
        self.now_from_ns.is_some_and(|from| both(from, i64::MAX))
            || self.stored.earlier.iter().any(|(start, end)| both(*start, *end))
    }

    /// The swap folder's time.
    fn now(&self) -> io::Result<i64> {
        match self.time_of_a_new_file() {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => self.time_of_the_old_file(),
            time => time,
        }
    }

    fn time_of_the_old_file(&self) -> io::Result<i64> {
        let file = self.old_file()?;
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        let times = Timestamps { last_access: now, last_modification: now };
        rustix::fs::futimens(&file, &times)?;
        Ok(Stamp::of(&file)?.changed_ns)
    }

    /// That of a session before, on a full disk.
    fn old_file(&self) -> io::Result<File> {
        match trust::open_file(&self.control, NAME, OFlags::WRONLY) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(io::ErrorKind::StorageFull.into())
            }
            opened => opened,
        }
    }

    fn time_of_a_new_file(&self) -> io::Result<i64> {
        let mut file = self.new_file()?;
        file.write_all(b"{}")?;
        Ok(Stamp::of(&file)?.changed_ns)
    }

    fn write(&self) -> io::Result<()> {
        self.put(self.stored.clone())
    }

    fn put(&self, stored: Stored) -> io::Result<()> {
        let sum = Some(stored.computed_sum()?);
        let mut text = serde_json::to_vec(&Stored { sum, ..stored })?;
        // Room that is there when the disk is full.
        text.resize(text.len().next_multiple_of(FILE_STEP), b' ');
        match self.replace(&text) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => self.overwrite(&text),
            done => done,
        }
    }

    /// An empty one, beside the file that it is to replace.
    fn new_file(&self) -> io::Result<File> {
        let file = trust::open_file(&self.control, NEW_NAME, OFlags::WRONLY | OFlags::CREATE)?;
        file.set_len(0)?;
        Ok(file)
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let mut file = self.new_file()?;
        file.write_all(text)?;
        file.sync_all()?;
        renameat(&self.control, NEW_NAME, &self.control, NAME)?;
        Ok(rustix::fs::fsync(trust::open_folder(&self.control, ".")?)?)
    }

    /// A power cut in the middle of it leaves what makes no sense, which counts as a crash.
    fn overwrite(&self, text: &[u8]) -> io::Result<()> {
        let file = self.old_file()?;
        let _ = unlinkat(&self.control, NEW_NAME, AtFlags::empty());
        file.write_all_at(text, 0)?;
        file.set_len(text.len() as u64)?;
        file.sync_all()
    }
}

/// Drops the oldest beyond [`SESSIONS_MAX`].
fn keep_last<T>(sessions: &mut Vec<T>) {
    let excess = sessions.len().saturating_sub(SESSIONS_MAX);
    sessions.drain(..excess);
}

fn read(control: BorrowedFd<'_>) -> Last {
    if let Err(rustix::io::Errno::NOENT) = statat(control, NAME, AtFlags::SYMLINK_NOFOLLOW) {
        return Last::None;
    }
    match try_read(control) {
        Ok(last) => Last::Known(last),
        Err(error) => {
            log::error!(".swapfs/session: {error}: as if the last mount had ended by a power cut");
            Last::Damaged
        }
    }
}

fn try_read(control: BorrowedFd<'_>) -> io::Result<Stored> {
    let file = trust::open_file(control, NAME, OFlags::RDONLY)?;
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    parse(&text).or_else(|error| mended(&mut text).ok_or(error))
}

/// The file with one bit turned back, if that is what it lacks: the sum tells.
fn mended(text: &mut [u8]) -> Option<Stored> {
    let length = text.iter().rposition(|byte| *byte != b' ')? + 1;
    for bit in 0..length.min(MENDED_BYTES_MAX) * 8 {
        text[bit / 8] ^= 1 << (bit % 8);
        match parse(text) {
            Ok(stored) if stored.sum.is_some() => {
                log::warn!(".swapfs/session: a bit of byte {} had flipped", bit / 8);
                return Some(stored);
            }
            _ => text[bit / 8] ^= 1 << (bit % 8),
        }
    }
    None
}

fn parse(text: &[u8]) -> io::Result<Stored> {
    // What follows the text is room, whatever it holds.
    let mut texts = serde_json::Deserializer::from_slice(text).into_iter();
    let stored: Stored = texts.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    match stored.sum {
        Some(sum) if sum != stored.computed_sum()? => Err(io::Error::other("damaged")),
        // The first format.
        None if stored.number > 0 => Err(io::Error::other("damaged")),
        _ => Ok(stored),
    }
}

impl Stored {
    /// When it ended, not well, if anybody saw that. Once recovery has begun it is on record here.
    fn seen_end(&self, control: BorrowedFd<'_>) -> Option<i64> {
        let is_unknown = self.end_ns.is_none() && self.alive_ns.is_none();
        let seen = is_unknown.then(|| witness::end_ns(control, self.number)).flatten();
        seen.filter(|end| *end >= self.start_ns)
    }

    /// Whether it did not end well, and the recovery after it, of session `newest`, was interrupted.
    fn is_before_recovery(&self, newest: u32) -> bool {
        self.end_ns.is_none() && self.alive_ns.is_some() && newest == self.number + 1
    }

    /// How this session, and a recovery after it, were interrupted; the table was written last at `alive_ns`.
    fn crashes(&self, boot_id: &str, alive_ns: i64, newest: u32) -> Vec<Crash> {
        let same_boot = self.boot_id == boot_id;
        // A machine that was started before the session, or a clock that was set, tells nothing.
        let boot_ns = Some(boot_time_ns()).filter(|boot| !same_boot && *boot > self.start_ns);
        let crash = Crash {
            number: self.number,
            fall: if same_boot { Fall::Killed } else { Fall::PowerCut },
            start_ns: self.start_ns,
            alive_ns: self.alive_ns.unwrap_or(alive_ns),
            doubt_ns: if self.number == 0 { FIRST_DOUBT_NS } else { self.doubt_ns },
            boot_ns,
            block_size: self.block_size,
            fine_times: self.fine_times,
        };
        // Recovery changes no file.
        let recovery = Crash { number: newest, start_ns: i64::MAX, ..crash };
        let is_recovery = self.is_before_recovery(newest);
        [Some(crash), is_recovery.then_some(recovery)].into_iter().flatten().collect()
    }

    fn computed_sum(&self) -> io::Result<u32> {
        let plain = Self { sum: Some(0), ..self.clone() };
        Ok(crc(&serde_json::to_vec(&plain)?))
    }
}

/// When the machine was booted, in nanoseconds since 1970.
fn boot_time_ns() -> i64 {
    let nanoseconds = |clock| {
        let time = rustix::time::clock_gettime(clock);
        time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
    };
    nanoseconds(rustix::time::ClockId::Realtime) - nanoseconds(rustix::time::ClockId::Boottime)
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn control() -> (tempfile::TempDir, File) {
        let folder = tempfile::tempdir().unwrap();
        // Whatever the umask.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o700)).unwrap();
        let control = File::open(folder.path()).unwrap();
        (folder, control)
    }

    fn put(path: &std::path::Path, bytes: &[u8]) {
        std::fs::write(path, bytes).unwrap();
        std::fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
    }

    fn open(control: &File, block_size: Option<u64>) -> Sessions {
        let table = Table::open(control.as_fd(), true).unwrap().unwrap();
        Sessions::open(control.as_fd(), &table, block_size).unwrap()
    }

    #[test]
    fn a_session_without_an_end_is_a_crash() {
        let (_folder, control) = control();
        let mut first = open(&control, Some(65536));
        assert_eq!((first.fell(), first.number()), (false, 1));
        first.begun(5).unwrap();
        let second = open(&control, None);
        let crash = second.crash(1).unwrap();
        assert_eq!((second.fell(), second.number(), crash.fall), (true, 2, Fall::Killed));
        assert_eq!((crash.block_size, crash.boot_ns), (65536, None));
        first.end().unwrap();
        let third = open(&control, None);
        assert_eq!((third.fell(), third.stored.earlier.len(), third.crash(1)), (false, 1, None));
    }

    /// Recovery writes to the table, whose time says when the daemon that fell was alive.
    #[test]
    fn an_interrupted_recovery_hides_no_time_and_no_crash() {
        let (_folder, control) = control();
        let header = |session| super::super::table::Header {
            ino: 3,
            generation: 4,
            session,
            ..Default::default()
        };
        let table = Table::open(control.as_fd(), true).unwrap().unwrap();
        open(&control, Some(65536)).begun(5).unwrap();
        let slot = table.take((3, 4)).unwrap();
        table.fill(slot, &header(1)).unwrap();
        let alive_ns = table.alive_ns().unwrap();
        let recovering = open(&control, Some(65536));
        recovering.keep_alive_time().unwrap();
        for interrupted in 0..2 {
            std::thread::sleep(std::time::Duration::from_millis(20));
            table.pulse();
            let next = open(&control, Some(65536));
            next.keep_alive_time().unwrap();
            assert_eq!(next.crash(1).map(|crash| crash.alive_ns), Some(alive_ns));
            assert_eq!((next.fell(), next.alive_ns(), next.number()), (true, alive_ns, 2));
            assert!(table.alive_ns().unwrap() > alive_ns, "{interrupted}");
        }
        // With a record of its own.
        table.set_header(slot, &header(2)).unwrap();
        let mut next = open(&control, Some(65536));
        assert_eq!(next.crash(1).map(|crash| crash.alive_ns), Some(alive_ns));
        assert_eq!((next.crash(2).map(|crash| crash.fall), next.number()), (Some(Fall::Killed), 3));
        next.begun(5).unwrap();
        assert!(open(&control, None).crash(3).is_some_and(|crash| crash.alive_ns > alive_ns));
    }

    /// Whoever saw the daemon end tells the time; a recovery that is interrupted forgets it no more than that of the table.
    #[test]
    fn the_end_that_somebody_saw_counts() {
        let (_folder, control) = control();
        let table = Table::open(control.as_fd(), true).unwrap().unwrap();
        table.fill(table.take((3, 4)).unwrap(), &Default::default()).unwrap();
        let first = open(&control, Some(65536));
        let number = first.number();
        { first }.begun(8_000_000).unwrap();
        let file = witness::open(control.as_fd()).unwrap();
        let known = || open(&control, None).crash(number).unwrap();
        assert_eq!((known().alive_ns, known().doubt_ns), (table.alive_ns().unwrap(), 8_000_000));
        std::thread::sleep(std::time::Duration::from_millis(20));
        witness::note(&file, number + 1).unwrap();
        assert_eq!(known().doubt_ns, 8_000_000);
        witness::note(&file, number).unwrap();
        let end_ns = witness::end_ns(control.as_fd(), number).unwrap();
        assert!(end_ns > table.alive_ns().unwrap());
        assert_eq!((known().alive_ns, known().doubt_ns), (end_ns, 0));
        open(&control, Some(65536)).keep_alive_time().unwrap();
        drop(witness::open(control.as_fd()).unwrap());
        table.pulse();
        assert_eq!((known().alive_ns, known().doubt_ns), (end_ns, 0));
    }

    /// "One flipped bit in the session's file never hides a crash."
    #[test]
    fn a_flipped_bit_makes_no_crash_a_good_end() {
        let (folder, control) = control();
        open(&control, Some(65536)).begun(5).unwrap();
        let path = folder.path().join(NAME);
        let good = std::fs::read(&path).unwrap();
        let table = Table::open(control.as_fd(), true).unwrap().unwrap();
        let slot = table.take((3, 4)).unwrap();
        let header =
            super::super::table::Header { ino: 3, generation: 4, session: 1, ..Default::default() };
        table.fill(slot, &header).unwrap();
        let length = good.iter().rposition(|byte| *byte == b'}').unwrap() + 1;
        let flipped = |bit: usize, bytes: &[u8]| {
            let mut bytes = bytes.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            put(&path, &bytes);
        };
        for bit in 0..(length + 4) * 8 {
            flipped(bit, &good);
            let next = open(&control, None);
            assert!(next.fell() && next.crash(1).is_some(), "bit {bit}");
        }
        put(&path, &good);
        // Nor a good end a crash.
        open(&control, Some(65536)).end().unwrap();
        let good = std::fs::read(&path).unwrap();
        for bit in (0..(length + 4) * 8).step_by(7) {
            flipped(bit, &good);
            assert!(!open(&control, None).fell(), "bit {bit}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(open(&control, None).crash(1).is_some());
    }

    #[test]
    fn the_first_format_is_understood() {
        let (folder, control) = control();
        let text =
            r#"{"boot_id":"x","start_ns":5,"end_ns":null,"block_size":4096,"earlier":[[1,2]]}"#;
        put(&folder.path().join(NAME), text.as_bytes());
        let next = open(&control, None);
        assert_eq!(
            next.crash(0).map(|crash| (crash.fall, crash.block_size)),
            Some((Fall::PowerCut, 4096))
        );
        assert!(next.had_it(1, 2) && !next.had_it(1, 3));
    }
}
