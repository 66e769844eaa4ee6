//! When swapfs had the swap folder: `.swapfs/session`.
//!
//! A change of a file's inode at a time when swapfs had the folder is swapfs's own, any other is somebody
//! else's. Times are those of the swap folder's own clock: change times of the session file itself.

use std::fs::File;
use std::io::{self, Read, Write};
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{
    AtFlags, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, openat, renameat, statat, unlinkat,
};
use serde::{Deserialize, Serialize};

use super::stamp::Stamp;
use super::table::Header;

const NAME: &str = "session";
const NEW_NAME: &str = "session.new";

/// The file's length is a multiple of this.
const FILE_STEP: usize = 4096;

/// Sessions whose times are remembered.
const SESSIONS_MAX: usize = 64;

/// What the file holds, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stored {
    /// The running kernel's boot.
    boot_id: String,
    /// When the session began, in nanoseconds since 1970.
    start_ns: i64,
    /// When it ended, with everything on stable storage and recorded.
    end_ns: Option<i64>,
    /// Bytes of a block: no write is longer.
    block_size: u64,
    /// Earlier sessions that ended so: start and end.
    earlier: Vec<(i64, i64)>,
}

/// How the last session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LastEnd {
    /// There was none, or everything was recorded.
    Clean,
    /// The daemon died; the machine went on, so what was handed to the kernel is not lost.
    Killed,
    /// The machine stopped.
    PowerCut,
}

/// What has happened to a partition since its record was settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Since {
    /// Nothing that concerns its bytes.
    Same,
    /// Others have changed it.
    Changed,
    /// It was changed in the session that ended by a power cut, and that is not on record.
    Suspect,
}

/// The sessions of a swap folder, as far as they matter.
#[derive(Debug)]
pub(super) struct Sessions {
    control: OwnedFd,
    stored: Stored,
    pub(super) last_end: LastEnd,
    /// The last session, when it did not end well: its start and its block size.
    crashed: Option<(i64, u64)>,
    /// When the machine booted, when the last session ended by a power cut.
    boot_ns: i64,
    /// There is a session now, since then.
    now_from_ns: Option<i64>,
}

impl Sessions {
    /// What is known of the last one. With `block_size` a new session begins, which is on record at once.
    pub(super) fn open(control: BorrowedFd<'_>, block_size: Option<u64>) -> io::Result<Self> {
        let control = control.try_clone_to_owned()?;
        let last = read(control.as_fd());
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned();
        let mut earlier = last.as_ref().map_or_else(Vec::new, |last| last.earlier.clone());
        let mut last_end = LastEnd::Clean;
        let mut crashed = None;
        if let Some(last) = &last {
            match last.end_ns {
                Some(end) => earlier.push((last.start_ns, end)),
                None => {
                    crashed = Some((last.start_ns, last.block_size));
                    last_end = match last.boot_id == boot_id {
                        true => LastEnd::Killed,
                        false => LastEnd::PowerCut,
                    };
                }
            }
        }
        let excess = earlier.len().saturating_sub(SESSIONS_MAX);
        earlier.drain(..excess);
        let stored = Stored {
            boot_id,
            start_ns: 0,
            end_ns: None,
            block_size: block_size.unwrap_or(1 << 20),
            earlier,
        };
        let boot_ns = boot_time_ns();
        let mut sessions = Self { control, stored, last_end, crashed, boot_ns, now_from_ns: None };
        if block_size.is_some() {
            sessions.begin()?;
        }
        Ok(sessions)
    }

    /// Notes the time, but leaves the last session's end on record until [`Sessions::begun`].
    fn begin(&mut self) -> io::Result<()> {
        let now = self.now()?;
        self.stored.start_ns = now;
        self.now_from_ns = Some(now);
        Ok(())
    }

    /// From here on a crash is this session's.
    pub(super) fn begun(&self) -> io::Result<()> {
        self.write()
    }

    /// Everything is recorded and on stable storage.
    pub(super) fn end(&mut self) -> io::Result<()> {
        self.stored.end_ns = Some(self.now()?);
        self.write()
    }

    /// Everything that a crash has left was dealt with, without a mount.
    pub(super) fn mended(&mut self) -> io::Result<()> {
        self.begin()?;
        self.end()
    }

    /// Bytes of a block of the session that crashed.
    pub(super) fn crashed_block_size(&self) -> u64 {
        self.crashed.map_or(1 << 20, |(_, block_size)| block_size)
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
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        match openat(&self.control, NAME, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => Err(io::ErrorKind::StorageFull.into()),
            opened => Ok(opened?.into()),
        }
    }

    fn time_of_a_new_file(&self) -> io::Result<i64> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = openat(&self.control, NEW_NAME, flags, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(file);
        file.set_len(0)?;
        file.write_all(b"{}")?;
        Ok(Stamp::of(&file)?.changed_ns)
    }

    fn write(&self) -> io::Result<()> {
        let mut text = serde_json::to_vec(&self.stored)?;
        // Room that is there when the disk is full.
        text.resize(text.len().next_multiple_of(FILE_STEP), b' ');
        match self.replace(&text) {
            Err(error) if error.kind() == io::ErrorKind::StorageFull => self.overwrite(&text),
            done => done,
        }
    }

    fn replace(&self, text: &[u8]) -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file =
            openat(&self.control, NEW_NAME, flags | OFlags::NOFOLLOW, Mode::RUSR | Mode::WUSR)?;
        let mut file = File::from(file);
        file.write_all(text)?;
        file.sync_all()?;
        renameat(&self.control, NEW_NAME, &self.control, NAME)?;
        let folder = openat(&self.control, c".", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(rustix::fs::fsync(folder)?)
    }

    /// A power cut in the middle of it leaves what makes no sense: then records of files that were changed count for
    /// nothing.
    fn overwrite(&self, text: &[u8]) -> io::Result<()> {
        let file = self.old_file()?;
        let _ = unlinkat(&self.control, NEW_NAME, AtFlags::empty());
        file.write_all_at(text, 0)?;
        file.set_len(text.len() as u64)?;
        file.sync_all()
    }

    /// Whether a change at this time was made through swapfs, in a session that is on record as whole.
    fn ours(&self, time_ns: i64) -> bool {
        let within =
            |(start, end): &(i64, i64)| RangeInclusive::new(*start, *end).contains(&time_ns);
        self.now_from_ns.is_some_and(|from| time_ns >= from)
            || self.stored.earlier.iter().any(within)
    }

    /// What the file's stamp says against its record. `recovered`: crashes of the last session have been
    /// dealt with.
    pub(super) fn since(&self, header: &Header, stamp: Stamp, recovered: bool) -> Since {
        let same_bytes = (header.size, header.modified_ns) == (stamp.size, stamp.modified_ns);
        if same_bytes && header.changed_ns == stamp.changed_ns {
            return Since::Same;
        }
        if let (Some((start, _)), false) = (self.crashed, recovered)
            && stamp.changed_ns >= start
        {
            match self.last_end {
                LastEnd::PowerCut if stamp.changed_ns <= self.boot_ns => return Since::Suspect,
                // A daemon that was killed has recorded every write; names and modes may have changed.
                LastEnd::Killed if same_bytes => return Since::Same,
                _ => {}
            }
        }
        // Names, modes and times change it too. A modification time from between two sessions is not ours.
        let modified_by_us = stamp.modified_ns == header.modified_ns
            || stamp.modified_ns <= header.changed_ns
            || self.ours(stamp.modified_ns);
        match self.ours(stamp.changed_ns) && modified_by_us {
            true => Since::Same,
            false => Since::Changed,
        }
    }
}

/// `None` when there was no session before, or its file makes no sense: then nobody wrote anything either.
fn read(control: BorrowedFd<'_>) -> Option<Stored> {
    statat(control, NAME, AtFlags::SYMLINK_NOFOLLOW).ok()?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = openat(control, NAME, flags, Mode::empty()).ok()?;
    let mut text = String::new();
    File::from(file).read_to_string(&mut text).ok()?;
    let parsed = serde_json::from_str(&text);
    if let Err(error) = &parsed {
        log::warn!(".swapfs/session: {error}");
    }
    parsed.ok()
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
    use super::*;

    fn stamp(size: u64, modified_ns: i64, changed_ns: i64) -> Stamp {
        Stamp { size, modified_ns, changed_ns, links: 1 }
    }

    fn header(stamp: Stamp) -> Header {
        let mut header = Header::default();
        stamp.store(&mut header);
        header
    }

    /// Sessions from 100 to 200 and 300 to 400, and one now since 500.
    fn sessions(control: OwnedFd, crashed: Option<(i64, u64)>, last_end: LastEnd) -> Sessions {
        let stored = Stored {
            boot_id: String::new(),
            start_ns: 500,
            end_ns: None,
            block_size: 1 << 20,
            earlier: vec![(100, 200), (300, 400)],
        };
        Sessions { control, stored, last_end, crashed, boot_ns: 480, now_from_ns: Some(500) }
    }

    #[test]
    fn changes_between_sessions_are_somebody_elses() {
        let control: OwnedFd = tempfile::tempfile().unwrap().into();
        let sessions = sessions(control, None, LastEnd::Clean);
        let since = |now| sessions.since(&header(stamp(10, 150, 160)), now, true);
        assert_eq!(since(stamp(10, 150, 160)), Since::Same);
        // A rename or a mode, in this session or one before.
        assert_eq!(since(stamp(10, 150, 190)), Since::Same);
        assert_eq!(since(stamp(10, 150, 350)), Since::Same);
        assert_eq!(since(stamp(10, 150, 600)), Since::Same);
        // Times of the user's choice, set through the mount.
        assert_eq!(since(stamp(10, 7, 600)), Since::Same);
        // A bit flipped beneath the mount: to be found by its sum.
        assert_eq!(since(stamp(10, 600, 600)), Since::Same);
        // Written between two sessions, and the same with a mode set later.
        assert_eq!(since(stamp(10, 250, 250)), Since::Changed);
        assert_eq!(since(stamp(10, 450, 600)), Since::Changed);
        assert_eq!(since(stamp(10, 150, 450)), Since::Changed);
    }

    #[test]
    fn after_a_crash_what_is_not_on_record_is_suspect() {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let crashed = Some((420, 1 << 20));
        let cut = sessions(file(), crashed, LastEnd::PowerCut);
        let known = header(stamp(10, 150, 160));
        assert_eq!(cut.since(&known, stamp(10, 430, 430), false), Since::Suspect);
        assert_eq!(cut.since(&known, stamp(10, 490, 490), false), Since::Changed);
        let killed = sessions(file(), crashed, LastEnd::Killed);
        assert_eq!(killed.since(&known, stamp(10, 150, 430), false), Since::Same);
        assert_eq!(killed.since(&known, stamp(10, 430, 430), false), Since::Changed);
    }

    #[test]
    fn a_session_without_an_end_is_a_crash() {
        let folder = tempfile::tempdir().unwrap();
        let control = File::open(folder.path()).unwrap();
        let mut first = Sessions::open(control.as_fd(), Some(65536)).unwrap();
        assert_eq!(first.last_end, LastEnd::Clean);
        first.begun().unwrap();
        let second = Sessions::open(control.as_fd(), None).unwrap();
        assert_eq!((second.last_end, second.crashed_block_size()), (LastEnd::Killed, 65536));
        first.end().unwrap();
        let third = Sessions::open(control.as_fd(), None).unwrap();
        assert_eq!((third.last_end, third.stored.earlier.len()), (LastEnd::Clean, 1));
    }
}
