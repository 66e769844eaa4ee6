//! The clock that stamps changes of files.
//!
//! The kernel's filesystems stamp with the coarse clock, which ticks every few milliseconds. Since Linux 6.13 an inode
//! that somebody has looked at gets a finer time at its next change, and from then on no file of any filesystem gets an
//! earlier one. The kernel tells nobody how far that bound has come. So whoever looks at a file of the swap folder
//! reports the change time that it found, and what the daemon stamps itself is no older than the latest of them. It is
//! no newer than the kernel's bound either: what a filesystem stamps later is never older than what we have stamped.
//!
//! Some filesystems keep whole seconds only. Stamps are rounded down as they do it.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime};

use rustix::fs::{Timespec, Timestamps};
use rustix::time::{ClockId, clock_gettime};

/// The latest change time that was found, in nanoseconds since 1970.
static LATEST: AtomicI64 = AtomicI64::new(0);

/// What the swap folder's filesystem rounds times down to, in nanoseconds.
static STEP: AtomicI64 = AtomicI64::new(1);

/// The coarsest step that is believed: that of FAT.
const STEP_MAX: i64 = 2_000_000_000;

fn nanoseconds(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

fn clock(id: ClockId) -> i64 {
    let time = clock_gettime(id);
    nanoseconds(time.tv_sec, time.tv_nsec)
}

/// Reports a change time that the kernel has given to a file.
pub(crate) fn saw(seconds: i64, nanos: u32) {
    LATEST.fetch_max(nanoseconds(seconds, nanos.into()), Ordering::Relaxed);
}

/// The time for a change made now.
pub(crate) fn now() -> SystemTime {
    let now = at(clock(ClockId::RealtimeCoarse), LATEST.load(Ordering::Relaxed), || {
        clock(ClockId::Realtime)
    });
    let now = now - now.rem_euclid(STEP.load(Ordering::Relaxed));
    SystemTime::UNIX_EPOCH + Duration::from_nanos(now.unsigned_abs())
}

/// A time as the swap folder's filesystem keeps it.
pub(crate) fn rounded(time: SystemTime) -> SystemTime {
    rounded_to(time, STEP.load(Ordering::Relaxed))
}

fn rounded_to(time: SystemTime, step: i64) -> SystemTime {
    let step = step.unsigned_abs();
    let part = |duration: Duration| (duration.as_nanos() % u128::from(step)) as u64;
    let rounded = match time.duration_since(SystemTime::UNIX_EPOCH) {
        Ok(since) => time.checked_sub(Duration::from_nanos(part(since))),
        Err(before) => match part(before.duration()) {
            0 => Some(time),
            more => time.checked_sub(Duration::from_nanos(step - more)),
        },
    };
    rounded.unwrap_or(time)
}

/// Finds out what the filesystem of this file rounds times to.
///
/// # Errors
/// What setting and asking for times fails with.
pub(crate) fn measure(file: impl AsFd) -> rustix::io::Result<()> {
    let asked = Timespec { tv_sec: 1_000_000_001, tv_nsec: 999_999_999 };
    let times = Timestamps { last_access: asked, last_modification: asked };
    rustix::fs::futimens(&file, &times)?;
    let found = rustix::fs::fstat(&file)?;
    let lost = nanoseconds(asked.tv_sec, asked.tv_nsec)
        - nanoseconds(found.st_mtime, i64::try_from(found.st_mtime_nsec).unwrap_or(0));
    let step = lost.saturating_add(1);
    STEP.store(if (1..=STEP_MAX).contains(&step) { step } else { 1 }, Ordering::Relaxed);
    Ok(())
}

/// Whether every write gives a file that was looked at a later time, so that one that kept its time was not written to.
/// Writes to the file.
///
/// # Errors
/// What writing and asking for times fails with.
pub(crate) fn tells_every_write(file: impl AsFd) -> rustix::io::Result<bool> {
    let mut before = None;
    // A clock that ticks may do so between two of them.
    for _ in 0..8 {
        rustix::io::pwrite(&file, b"{", 0)?;
        let found = rustix::fs::fstat(&file)?;
        let time = (found.st_mtime, found.st_mtime_nsec);
        if before == Some(time) {
            return Ok(false);
        }
        before = Some(time);
    }
    Ok(true)
}

/// Chooses between the coarse clock and the latest time found. A time that is still to come was given before somebody
/// set the clock back.
fn at(coarse: i64, latest: i64, fine: impl FnOnce() -> i64) -> i64 {
    if latest > coarse && latest <= fine() { latest } else { coarse }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_as_late_as_the_latest_time_found() {
        assert_eq!(at(100, 90, || unreachable!()), 100);
        assert_eq!(at(100, 103, || 105), 103);
        assert_eq!(at(100, 105, || 105), 105);
        // The clock was set back.
        assert_eq!(at(100, 900, || 105), 100);
    }

    #[test]
    fn times_are_rounded_down_before_1970_too() {
        let at = |seconds: f64| match seconds < 0.0 {
            true => SystemTime::UNIX_EPOCH - Duration::from_secs_f64(-seconds),
            false => SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds),
        };
        for (time, step, rounded) in [
            (5.5, 1_000_000_000, 5.0),
            (5.0, 1_000_000_000, 5.0),
            (5.5, 2_000_000_000, 4.0),
            (5.5, 1, 5.5),
            (-5.5, 1_000_000_000, -6.0),
            (-6.0, 1_000_000_000, -6.0),
            (-5.5, 10_000_000, -5.5),
        ] {
            assert_eq!(rounded_to(at(time), step), at(rounded), "{time} by {step}");
        }
    }

    #[test]
    fn stamps_and_a_filesystems_own_never_go_backwards() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let mut before = i64::MIN;
        for round in 0..2000 {
            let time = match round % 2 {
                0 => {
                    file.set_len(round).unwrap();
                    let found = file.metadata().unwrap();
                    saw(found.ctime(), found.ctime_nsec() as u32);
                    nanoseconds(found.ctime(), found.ctime_nsec())
                }
                _ => {
                    let since = now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
                    nanoseconds(since.as_secs() as i64, since.subsec_nanos().into())
                }
            };
            assert!(time >= before, "round {round}: {time} after {before}");
            before = time;
        }
    }
}
