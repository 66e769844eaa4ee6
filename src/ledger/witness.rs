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
    let touch = || {
        let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
        rustix::fs::futimens(file, &Timestamps { last_access: now, last_modification: now })
    };
    touch()?;
    let time = Stamp::of(file)?.changed_ns;
    // Now that it was looked at, the next change has a later time, and so has every change after that: on filesystems that
    // do not wait for the clock's tick for it.
    touch()?;
    Ok(time)
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

    /// Of what is changed right before and right after, nothing is on the wrong side; on filesystems whose times are finer
    /// than the clock's ticks, what comes after is always later.
    #[test]
    fn what_is_changed_around_it_is_earlier_and_later() {
        let folder = tempfile::tempdir().unwrap();
        let control = File::open(folder.path()).unwrap();
        let file = open(control.as_fd()).unwrap();
        let path = folder.path().join("partition");
        let partition = File::create(&path).unwrap();
        let written = |bytes: &[u8]| {
            partition.write_all_at(bytes, 0).unwrap();
            Stamp::of(&partition).unwrap().changed_ns
        };
        // Linux 6.13, on a filesystem with such times.
        let is_fine = (0..100).all(|_| written(b"one") < written(b"two"));
        let mut later = 0;
        for session in 1..=200 {
            // Some of the times are fine ones, of files that were looked at.
            for _ in 0..session % 3 {
                written(b"before");
            }
            let before = Stamp::of(&partition).unwrap().changed_ns;
            note(&file, session).unwrap();
            let after = written(b"after");
            let end = end_ns(control.as_fd(), session).unwrap();
            assert!(before <= end && end <= after, "{before} {end} {after}");
            later += u32::from(after > end);
        }
        assert!(!is_fine || later == 200, "{later} of 200");
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
