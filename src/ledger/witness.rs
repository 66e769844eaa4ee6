//! When the daemon of a session ended, as told by a process that outlives it: `.swapfs/ended`.
//!
//! What the daemon says itself while it lives (`pulse`) is some milliseconds old when it is killed, or older where it got
//! no processor. The other process sees the daemon's descriptors closed, after which none of its threads changes a
//! file. Where it was killed too, nothing is told.

use std::fs::File;
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{OFlags, Timespec, Timestamps, UTIME_NOW};
use rustix::time::{ClockId, clock_gettime};

use super::entry::crc;
use super::stamp::Stamp;
use crate::trust;

const NAME: &str = "ended";

/// Bytes of the file: its text, and spaces.
const LENGTH: usize = 64;

/// Opens the file, with room in it for the text, whatever the disk has left later.
pub(crate) fn open(control: BorrowedFd<'_>) -> io::Result<File> {
    let file = trust::open_file(control, NAME, OFlags::RDWR | OFlags::CREATE)?;
    file.write_all_at(&[b' '; LENGTH], 0)?;
    Ok(file)
}

/// Writes down that the daemon of this session has changed its last file by now.
pub(crate) fn note(file: &File, session: u32) -> io::Result<()> {
    let text = text(session, last_time(file)?);
    file.write_all_at(format!("{text:LENGTH$}").as_bytes(), 0)
}

/// The latest time that a file may have which was changed before now, in nanoseconds since 1970.
fn last_time(file: &File) -> io::Result<i64> {
    let clock = |id| {
        let time = clock_gettime(id);
        time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec)
    };
    let touch = || {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        rustix::fs::futimens(file, &Timestamps { last_access: now, last_modification: now })
    };
    // Where times are as fine as need be, the first one may be that of a file that was changed just before. With a look
    // between them, the second is later than all.
    touch()?;
    Stamp::of(file)?;
    let before = clock(ClockId::RealtimeCoarse);
    touch()?;
    let time = Stamp::of(file)?.changed_ns;
    // What is changed from now on has a later time than before, but perhaps this very one.
    let is_fine =
        time > before && time < clock(ClockId::Realtime) && time != clock(ClockId::RealtimeCoarse);
    Ok(time - i64::from(is_fine))
}

fn text(session: u32, time: i64) -> String {
    let text = format!("{session} {time}");
    format!("{text} {:08x}", crc(text.as_bytes()))
}

/// When the daemon of this session ended, if anybody saw it.
pub(super) fn end_ns(control: BorrowedFd<'_>, session: u32) -> Option<i64> {
    let file = trust::open_file(control, NAME, OFlags::RDONLY).ok()?;
    let mut bytes = [0; LENGTH];
    file.read_exact_at(&mut bytes, 0).ok()?;
    let told = std::str::from_utf8(&bytes).ok()?.trim_end();
    let time = told.split(' ').nth(1)?.parse().ok()?;
    (told == text(session, time)).then_some(time)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_noted_is_read_for_its_session_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let control = File::open(folder.path()).unwrap();
        assert_eq!(end_ns(control.as_fd(), 7), None);
        let file = open(control.as_fd()).unwrap();
        assert_eq!(end_ns(control.as_fd(), 7), None);
        let path = folder.path().join("partition");
        std::fs::write(&path, "before").unwrap();
        let before = Stamp::of(File::open(&path).unwrap()).unwrap().changed_ns;
        note(&file, 7).unwrap();
        let end = end_ns(control.as_fd(), 7).unwrap();
        assert!((before..before + 60_000_000_000).contains(&end), "{before} {end}");
        assert_eq!((end_ns(control.as_fd(), 6), end_ns(control.as_fd(), 8)), (None, None));
        drop(open(control.as_fd()).unwrap());
        assert_eq!(end_ns(control.as_fd(), 7), None);
    }

    /// On filesystems whose times are finer than the clock's ticks, what is changed next is later.
    #[test]
    fn what_is_changed_at_once_is_later() {
        let folder = tempfile::tempdir().unwrap();
        let control = File::open(folder.path()).unwrap();
        let file = open(control.as_fd()).unwrap();
        let path = folder.path().join("partition");
        let (mut later, mut fine) = (0, 0);
        for session in 1..=50 {
            note(&file, session).unwrap();
            std::fs::write(&path, "after").unwrap();
            let changed = Stamp::of(File::open(&path).unwrap()).unwrap().changed_ns;
            let end = end_ns(control.as_fd(), session).unwrap();
            assert!(changed >= end);
            later += u32::from(changed > end);
            fine += u32::from(Stamp::of(&file).unwrap().changed_ns % 1_000_000 != 0);
        }
        println!("{later} of 50 later, {fine} with a fine time");
    }

    /// Another file may have got a fine time just before, which every file gets from then on.
    #[test]
    fn what_was_changed_just_before_is_not_later() {
        let folder = tempfile::tempdir().unwrap();
        let control = File::open(folder.path()).unwrap();
        let file = open(control.as_fd()).unwrap();
        let partition = File::create(folder.path().join("partition")).unwrap();
        for session in 1..=200 {
            for length in 0..3 {
                partition.set_len(length).unwrap();
                Stamp::of(&partition).unwrap();
            }
            let changed = Stamp::of(&partition).unwrap().changed_ns;
            note(&file, session).unwrap();
            let end = end_ns(control.as_fd(), session).unwrap();
            assert!(end >= changed, "session {session}: {end} is {} ns earlier", changed - end);
        }
    }

    #[test]
    fn a_flipped_bit_tells_no_time() {
        let folder = tempfile::tempdir().unwrap();
        let control = File::open(folder.path()).unwrap();
        let file = open(control.as_fd()).unwrap();
        note(&file, 7).unwrap();
        let path = folder.path().join(NAME);
        let good = std::fs::read(&path).unwrap();
        let end = end_ns(control.as_fd(), 7);
        for bit in 0..LENGTH * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&path, &bad).unwrap();
            let told = end_ns(control.as_fd(), 7);
            assert!(told.is_none() || told == end, "bit {bit}: {told:?}");
        }
    }
}
