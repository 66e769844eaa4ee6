//! What `top` knows: the mount now, its partitions, and how both changed.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::path::Path;

use clap::ValueEnum;
use serde_json::Value;

use super::Wish;
use crate::cli::watch::{Rates, Sample};
use crate::paths::{plain, plain_text};

/// Throughputs that are remembered for the curves.
const HISTORY: usize = 240;

/// What the partitions are sorted by, the most first; names from the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Bytes read and written a second.
    Traffic,
    /// Bytes read a second.
    Read,
    /// Bytes written a second.
    Write,
    /// Bytes in the pool.
    Resident,
    /// Bytes newer than the swap folder.
    Dirty,
    /// Logical size.
    Size,
    /// Failed transfers.
    Errors,
    /// Path.
    Name,
}

impl Sort {
    /// By the key that chooses it.
    pub(super) fn of_key(key: char) -> Option<Sort> {
        Sort::value_variants().iter().copied().find(|sort| sort.key() == key)
    }

    /// The key that chooses it.
    pub(super) fn key(self) -> char {
        match self {
            Sort::Traffic => 't',
            Sort::Read => 'r',
            Sort::Write => 'w',
            Sort::Resident => 'm',
            Sort::Dirty => 'd',
            Sort::Size => 's',
            Sort::Errors => 'e',
            Sort::Name => 'n',
        }
    }
}

/// A partition's line. Sizes in bytes, rates in bytes a second.
#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    pub(super) path: String,
    pub(super) status: String,
    pub(super) size: u64,
    pub(super) resident: u64,
    pub(super) dirty: u64,
    pub(super) failures: u64,
    pub(super) error: Option<String>,
    pub(super) read_rate: f64,
    pub(super) write_rate: f64,
    read_bytes: u64,
    written_bytes: u64,
}

impl Row {
    fn new(value: &Value) -> Row {
        let text = |key: &str| value[key].as_str().map(str::to_owned);
        let number = |key: &str| value[key].as_u64().unwrap_or(0);
        Row {
            path: text("path").map(|path| plain_text(&path)).unwrap_or_default(),
            status: text("status").unwrap_or_default(),
            size: number("size"),
            resident: number("resident"),
            dirty: number("dirty"),
            failures: number("failures"),
            error: text("error"),
            read_bytes: number("read_bytes"),
            written_bytes: number("written_bytes"),
            ..Row::default()
        }
    }
}

/// Everything on the screen.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) mountpoint: String,
    pub(super) sample: Sample,
    pub(super) rates: Rates,
    pub(super) rows: Vec<Row>,
    pub(super) resting: u64,
    pub(super) sort: Sort,
    pub(super) reversed: bool,
    /// The marked line.
    pub(super) selected: usize,
    /// Bytes that clients moved a second, the latest last.
    pub(super) history: Vec<u64>,
    paused: bool,
}

impl Model {
    pub(super) fn new(mountpoint: &Path, sort: Sort, look: (Sample, Value)) -> Model {
        let (sample, partitions) = look;
        let mut model = Model {
            mountpoint: plain(mountpoint),
            rates: Rates::default(),
            rows: Vec::new(),
            resting: 0,
            sort,
            reversed: false,
            selected: 0,
            history: Vec::new(),
            paused: false,
            sample,
        };
        model.take(&partitions, 0.0);
        model
    }

    pub(super) fn is_paused(&self) -> bool {
        self.paused
    }

    /// Takes a new look in.
    pub(super) fn update(&mut self, sample: Sample, partitions: &Value) {
        self.rates = sample.since(&self.sample);
        self.sample = sample;
        self.history.push((self.rates.read_bytes + self.rates.written_bytes) as u64);
        let old = self.history.len().saturating_sub(HISTORY);
        self.history.drain(..old);
        self.take(partitions, self.rates.seconds);
    }

    /// The partitions now, `seconds` after the last look.
    fn take(&mut self, partitions: &Value, seconds: f64) {
        let before: HashMap<String, (u64, u64)> = self
            .rows
            .drain(..)
            .map(|row| (row.path, (row.read_bytes, row.written_bytes)))
            .collect();
        self.resting = partitions["resting"].as_u64().unwrap_or(0);
        self.rows =
            partitions["partitions"].as_array().into_iter().flatten().map(Row::new).collect();
        for row in &mut self.rows {
            // One that is new, or was forgotten and is known again, began to count at nothing.
            let (read, written) = before.get(&row.path).copied().unwrap_or_default();
            let new = |now: u64, before: u64| if now < before { now } else { now - before } as f64;
            if seconds > 0.0 {
                row.read_rate = new(row.read_bytes, read) / seconds;
                row.write_rate = new(row.written_bytes, written) / seconds;
            }
        }
        self.arrange();
    }

    fn arrange(&mut self) {
        let (sort, reversed) = (self.sort, self.reversed);
        self.rows.sort_by(|a, b| {
            let number = |of: fn(&Row) -> f64| of(b).total_cmp(&of(a));
            let first = match sort {
                Sort::Traffic => number(|row| row.read_rate + row.write_rate),
                Sort::Read => number(|row| row.read_rate),
                Sort::Write => number(|row| row.write_rate),
                Sort::Resident => number(|row| row.resident as f64),
                Sort::Dirty => number(|row| row.dirty as f64),
                Sort::Size => number(|row| row.size as f64),
                Sort::Errors => number(|row| row.failures as f64),
                Sort::Name => Ordering::Equal,
            };
            let order = first.then_with(|| a.path.cmp(&b.path));
            if reversed { order.reverse() } else { order }
        });
        self.selected = self.selected.min(self.rows.len().saturating_sub(1));
    }

    /// Does as a key wishes; false to end.
    pub(super) fn grant(&mut self, wish: Wish) -> bool {
        match wish {
            Wish::Quit => return false,
            Wish::Pause => self.paused = !self.paused,
            Wish::Sort(sort) => {
                (self.sort, self.reversed) = (sort, false);
                self.arrange();
            }
            Wish::Reverse => {
                self.reversed = !self.reversed;
                self.arrange();
            }
            Wish::Move(lines) => {
                let last = self.rows.len().saturating_sub(1);
                self.selected = self.selected.saturating_add_signed(lines as isize).min(last);
            }
            Wish::First => self.selected = 0,
            Wish::Last => self.selected = self.rows.len().saturating_sub(1),
        }
        true
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use serde_json::json;
    use std::time::{Duration, Instant};

    pub(in crate::cli::top) fn model(rows: usize) -> Model {
        let at = Instant::now();
        let stats = |bytes: u64| {
            json!({
                "mount": {"swap_folders": ["/nvme"], "pid": 7, "version": "1"},
                "pool": {"buffers": 10, "available": 4, "free": 1, "dirty": 3, "inflight": 1, "reserved": 2,
                    "buffer_size": 1048576},
                "cache": {"read_bytes": bytes, "errors": 1},
            })
        };
        let list = |scale: u64| {
            let rows = (0..rows as u64).map(|i| {
                json!({"path": format!("p{i}"), "status": "available", "size": 4096 << i,
                    "resident": 2048 << i, "dirty": 1024, "inflight": 0, "failures": i % 2,
                    "read_bytes": scale * i * 1000, "written_bytes": scale * (9 - i) * 500,
                    "error": if i == 3 { json!("EIO") } else { json!(null) }})
            });
            json!({"partitions": rows.collect::<Vec<_>>(), "resting": 5})
        };
        let sample =
            |seconds, bytes| Sample { at: at + Duration::from_secs(seconds), stats: stats(bytes) };
        let first = (sample(0, 0), list(1));
        let mut model = Model::new(Path::new("/mnt/x"), Sort::Traffic, first);
        model.update(sample(2, 8 << 20), &list(3));
        model
    }

    fn paths(model: &Model) -> Vec<&str> {
        model.rows.iter().map(|row| row.path.as_str()).collect()
    }

    #[test]
    fn rows_are_sorted_as_asked_and_stay_marked_within() {
        let mut model = model(5);
        assert_eq!((model.rates.read_bytes, model.resting), ((4 << 20) as f64, 5));
        assert_eq!(model.rows[0].read_rate, 4000.0);
        assert_eq!(paths(&model), ["p4", "p3", "p2", "p1", "p0"]);
        assert!(model.grant(Wish::Sort(Sort::Write)));
        assert_eq!(paths(&model), ["p0", "p1", "p2", "p3", "p4"]);
        assert!(model.grant(Wish::Reverse) && paths(&model)[0] == "p4");
        assert!(model.grant(Wish::Sort(Sort::Errors)));
        assert_eq!(paths(&model), ["p1", "p3", "p0", "p2", "p4"]);
        assert!(model.grant(Wish::Sort(Sort::Name)) && paths(&model)[0] == "p0");
        assert!(model.grant(Wish::Last) && model.selected == 4);
        assert!(model.grant(Wish::Move(3)) && model.selected == 4);
        assert!(model.grant(Wish::Move(-9)) && model.selected == 0);
        assert!(model.grant(Wish::Pause) && model.is_paused());
        assert!(!model.grant(Wish::Quit));
    }

    #[test]
    fn a_partition_that_begins_to_count_again_has_no_negative_rate() {
        let mut model = model(3);
        let list = json!({"partitions": [{"path": "p2", "read_bytes": 10}], "resting": 0});
        let mut sample = model.sample.clone();
        sample.at += Duration::from_secs(1);
        model.update(sample, &list);
        assert_eq!((paths(&model), model.rows[0].read_rate), (vec!["p2"], 10.0));
    }

    #[test]
    fn every_sort_has_a_key_of_its_own() {
        for sort in Sort::value_variants() {
            assert_eq!(Sort::of_key(sort.key()), Some(*sort));
            assert!(!"qpRkj ".contains(sort.key()), "{sort:?}");
        }
    }
}
