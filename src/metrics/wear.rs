//! How much a swap folder's device is written to, by day: what an SSD wears out by. Survives remounts in
//! `SWAP_FOLDER/.swapfs/wear.json`; days are UTC's.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use jiff::Timestamp;
use parking_lot::Mutex;
use rustix::fs::{OFlags, renameat};
use serde::{Deserialize, Serialize};

use crate::trust;

/// The file in the control folder, and the one it is made from.
const FILE: &str = "wear.json";
const FRESH: &str = "wear.json.new";

/// Days that are kept apart; older ones count in the total alone.
const DAYS_MAX: usize = 366;

/// Bytes of the file at most; a longer one is none of ours.
const FILE_BYTES_MAX: u64 = 64 << 10;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Record {
    /// Bytes written since swapfs has known the folder.
    total: u64,
    /// Of these by day, as `2026-11-21`.
    days: BTreeMap<String, u64>,
}

#[derive(Debug, Default)]
struct State {
    record: Record,
    /// What the device had written by the last look.
    seen: u64,
    /// The record is newer than the file.
    changed: bool,
}

/// A day and the bytes written on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Day {
    /// As `2026-11-21`.
    pub day: String,
    /// Bytes.
    pub written_bytes: u64,
}

/// The record of one swap folder.
#[derive(Debug)]
pub struct Wear {
    control: OwnedFd,
    state: Mutex<State>,
}

/// Today in UTC, as `2026-11-21`.
#[must_use]
pub fn today() -> String {
    let mut text = Timestamp::now().to_string();
    text.truncate("2026-11-21".len());
    text
}

impl Wear {
    /// Goes on with what the control folder has; with nothing where that cannot be read, which is logged.
    #[must_use]
    pub fn open(control: OwnedFd) -> Wear {
        let record = read(&control).unwrap_or_else(|error| {
            log::warn!(".swapfs/{FILE} cannot be read, counting anew: {error}");
            Record::default()
        });
        Wear { control, state: Mutex::new(State { record, ..State::default() }) }
    }

    /// The device has written so many bytes since the mount began: what is new is today's.
    pub fn note(&self, written_bytes: u64) {
        self.note_on(&today(), written_bytes);
    }

    fn note_on(&self, day: &str, written_bytes: u64) {
        let mut state = self.state.lock();
        let new = written_bytes.saturating_sub(state.seen);
        state.seen = written_bytes;
        if new == 0 {
            return;
        }
        state.changed = true;
        let record = &mut state.record;
        record.total = record.total.saturating_add(new);
        let bytes = record.days.entry(day.to_owned()).or_default();
        *bytes = bytes.saturating_add(new);
        while record.days.len() > DAYS_MAX {
            record.days.pop_first();
        }
    }

    /// Bytes written in all, and today.
    #[must_use]
    pub fn total_and_today(&self) -> (u64, u64) {
        let state = self.state.lock();
        let today = state.record.days.get(&today()).copied().unwrap_or(0);
        (state.record.total, today)
    }

    /// The last days with a write, oldest first.
    #[must_use]
    pub fn days(&self, count: usize) -> Vec<Day> {
        let state = self.state.lock();
        let days = state.record.days.iter().rev().take(count);
        let mut days: Vec<Day> =
            days.map(|(day, bytes)| Day { day: day.clone(), written_bytes: *bytes }).collect();
        days.reverse();
        days
    }

    /// Stores what is new. A crash loses what came since the last call.
    pub fn save(&self) {
        let record = {
            let mut state = self.state.lock();
            if !std::mem::take(&mut state.changed) {
                return;
            }
            state.record.clone()
        };
        if let Err(error) = write(&self.control, &record) {
            log::debug!(".swapfs/{FILE} cannot be written: {error}");
            self.state.lock().changed = true;
        }
    }
}

fn read(control: &OwnedFd) -> io::Result<Record> {
    let file = match trust::open_file(control, FILE, OFlags::RDONLY) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Record::default()),
        other => other?,
    };
    let mut text = Vec::new();
    file.take(FILE_BYTES_MAX).read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

fn write(control: &OwnedFd, record: &Record) -> io::Result<()> {
    let mut file = trust::open_file(control, FRESH, OFlags::WRONLY | OFlags::CREATE)?;
    file.set_len(0)?;
    file.write_all(&serde_json::to_vec(record)?)?;
    file.sync_data()?;
    Ok(renameat(control, FRESH, control, FILE)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    fn open(folder: &tempfile::TempDir) -> Wear {
        Wear::open(File::open(folder.path()).unwrap().into())
    }

    #[test]
    fn days_add_up_over_remounts() {
        let folder = tempfile::tempdir().unwrap();
        let wear = open(&folder);
        wear.note_on("2026-01-01", 100);
        wear.note_on("2026-01-01", 150);
        wear.note_on("2026-01-02", 160);
        wear.save();
        // The next mount's device begins at nothing again.
        let wear = open(&folder);
        wear.note_on("2026-01-02", 40);
        wear.note(45);
        assert_eq!(wear.total_and_today(), (205, 5));
        let days: Vec<u64> = wear.days(9).into_iter().map(|day| day.written_bytes).collect();
        assert_eq!(days, [150, 50, 5]);
        assert_eq!(wear.days(2)[0].day, "2026-01-02");
        assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_makes_no_sense_is_begun_anew_and_old_days_go() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        let wear = open(&folder);
        assert_eq!(wear.total_and_today(), (0, 0));
        for day in 0..DAYS_MAX as u64 + 5 {
            wear.note_on(&format!("{day:04}"), day + 1);
        }
        assert_eq!(wear.days(usize::MAX).len(), DAYS_MAX);
        assert_eq!(wear.total_and_today().0, DAYS_MAX as u64 + 5);
        wear.save();
        assert_eq!(open(&folder).total_and_today().0, DAYS_MAX as u64 + 5);
    }

    #[test]
    fn today_is_a_date() {
        let today = today();
        assert!(today.len() == 10 && today.starts_with("20"), "{today}");
        assert_eq!(today.as_bytes()[4], b'-');
    }
}
