//! What is swept: lists of values, and all their combinations.

use std::fmt;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use crate::config::{Kind, OPTIONS, Value, nearest, read_object, shown};
use crate::units::{MIB, format_exact};

/// Combinations of a sweep at most.
const COMBINATIONS_MAX: usize = 100_000;

/// The keys of a sweep file, with the mount option of each: DeepSpeed's names, and its configuration's.
const KEYS: [(&str, &str); 8] = [
    ("block_size", "block_size"),
    ("queue_depth", "queue_depth"),
    ("io_parallel", "thread_count"),
    ("intra_op_parallelism", "thread_count"),
    ("thread_count", "thread_count"),
    ("single_submit", "single_submit"),
    ("sequential_requests", "overlap_events"),
    ("overlap_events", "overlap_events"),
];

/// The settings of one measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Combination {
    /// Bytes.
    pub block_size: u64,
    /// Transfers in flight per thread.
    pub queue_depth: u64,
    /// One system call per transfer.
    pub single_submit: bool,
    /// Keep the queue topped up.
    pub overlap_events: bool,
    /// Threads.
    pub intra_op_parallelism: u64,
}

impl Combination {
    /// `single` or `block`, DeepSpeed's words.
    #[must_use]
    pub fn submit(&self) -> &'static str {
        if self.single_submit { "single" } else { "block" }
    }

    /// `overlap` or `sequential`, DeepSpeed's words.
    #[must_use]
    pub fn events(&self) -> &'static str {
        if self.overlap_events { "overlap" } else { "sequential" }
    }
}

impl fmt::Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { queue_depth, intra_op_parallelism: threads, .. } = self;
        let block = format_exact(self.block_size);
        let (submit, events) = (self.submit(), self.events());
        let plural = if *threads == 1 { "" } else { "s" };
        write!(
            f,
            "{block} blocks, depth {queue_depth}, {threads} thread{plural}, {submit}, {events}"
        )
    }
}

/// Lists of values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sweep {
    block_size: Vec<u64>,
    queue_depth: Vec<u64>,
    single_submit: Vec<bool>,
    overlap_events: Vec<bool>,
    intra_op_parallelism: Vec<u64>,
}

impl Default for Sweep {
    /// DeepSpeed's: 64 combinations.
    fn default() -> Self {
        Self {
            block_size: vec![MIB, 8 * MIB],
            queue_depth: vec![32, 128],
            single_submit: vec![false, true],
            overlap_events: vec![false, true],
            intra_op_parallelism: vec![1, 2, 4, 8],
        }
    }
}

impl Sweep {
    /// Reads a file in the form of DeepSpeed's tuner: an object of lists. What is not in it has one value: block_size
    /// 1 MiB, queue_depth 1, one thread, block submission, overlapped.
    ///
    /// # Errors
    /// One line that names the file, the key and the value.
    pub fn read(path: &Path) -> Result<Self, String> {
        let named = |why: String| format!("{}: {why}", path.display());
        let object = read_object(path).map_err(named)?;
        Self::from_object(&object).map_err(named)
    }

    fn from_object(object: &Map<String, Json>) -> Result<Self, String> {
        // Their defaults for what a sweep file leaves out.
        let mut sweep = Self {
            block_size: vec![MIB],
            queue_depth: vec![1],
            single_submit: vec![false],
            overlap_events: vec![true],
            intra_op_parallelism: vec![1],
        };
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for (key, value) in object {
            if let "threads" | "multi_process" = key.as_str() {
                one_process(key, value)?;
                continue;
            }
            let Some((name, option)) = KEYS.into_iter().find(|(name, _)| name == key) else {
                let names = || KEYS.iter().map(|(name, _)| *name);
                return Err(match nearest(key, names()) {
                    Some(name) => {
                        format!("{key}: no such setting to sweep; the nearest is {name}")
                    }
                    None => {
                        let all: Vec<_> = names().collect();
                        let all = all.join(", ");
                        format!("{key}: no such setting to sweep; accepted are {all}")
                    }
                });
            };
            if let Some((other, _)) = seen.iter().find(|(_, known)| *known == option) {
                return Err(format!("{other} and {name} are the same setting; give one of them"));
            }
            seen.push((name, option));
            sweep.set(name, option, value)?;
        }
        let lists = [sweep.block_size.len(), sweep.queue_depth.len(), sweep.single_submit.len()];
        let rest = [sweep.overlap_events.len(), sweep.intra_op_parallelism.len()];
        let count = lists.into_iter().chain(rest).try_fold(1_usize, usize::checked_mul);
        match count {
            Some(1..=COMBINATIONS_MAX) => Ok(sweep),
            _ => Err(format!("more than {COMBINATIONS_MAX} combinations")),
        }
    }

    fn set(&mut self, key: &str, option: &str, value: &Json) -> Result<(), String> {
        let several = std::slice::from_ref(value);
        let values = value.as_array().map_or(several, Vec::as_slice);
        if values.is_empty() {
            return Err(format!("{key}: the list is empty"));
        }
        for (index, value) in values.iter().enumerate() {
            let refused = |accepted: &str| {
                format!("{key}: {} is not accepted; give {accepted}", shown(value))
            };
            match option {
                "block_size" | "queue_depth" | "thread_count" => {
                    // Wider than what a mount takes: that is left out later, and said.
                    let wide = Kind::Size { min: 1, max: 1 << 40, power_of_two: false };
                    let Some(Value::Size(number)) = wide.parse_json(value) else {
                        return Err(refused("a number above 0 (of bytes: units k, m, g)"));
                    };
                    let list = match option {
                        "block_size" => &mut self.block_size,
                        "queue_depth" => &mut self.queue_depth,
                        _ => &mut self.intra_op_parallelism,
                    };
                    keep(list, number, index == 0);
                }
                _ => {
                    let Some(Value::Switch(on)) = Kind::Switch.parse_json(value) else {
                        return Err(refused("true or false"));
                    };
                    let (list, on) = match key {
                        "single_submit" => (&mut self.single_submit, on),
                        "sequential_requests" => (&mut self.overlap_events, !on),
                        _ => (&mut self.overlap_events, on),
                    };
                    keep(list, on, index == 0);
                }
            }
        }
        Ok(())
    }

    /// All combinations that can be measured where direct transfers are aligned so (bytes) and that a
    /// mount takes; and lines about the values that are left out.
    pub(super) fn fitting(&self, alignment: u64) -> (Vec<Combination>, Vec<String>) {
        let mut notes = Vec::new();
        let mut fits = |name: &str, values: &[u64]| -> Vec<u64> {
            let option = OPTIONS.iter().find(|option| option.name == name);
            let kind = option.map(|option| option.kind).expect("a name of the table");
            let fit = |value: &u64| {
                let why = if kind.parse_json(&json!(value)).is_none() {
                    format!("a mount takes {}", kind.accepted())
                } else if name == "block_size" && !value.is_multiple_of(alignment) {
                    format!("direct transfers here are aligned to {alignment} bytes")
                } else {
                    return true;
                };
                notes.push(format!("{name} {value} is left out: {why}"));
                false
            };
            values.iter().copied().filter(fit).collect()
        };
        let block_sizes = fits("block_size", &self.block_size);
        let depths = fits("queue_depth", &self.queue_depth);
        let threads = fits("thread_count", &self.intra_op_parallelism);
        let mut combinations = Vec::new();
        for &block_size in &block_sizes {
            for &queue_depth in &depths {
                for &overlap_events in &self.overlap_events {
                    for &single_submit in &self.single_submit {
                        for &intra_op_parallelism in &threads {
                            combinations.push(Combination {
                                block_size,
                                queue_depth,
                                single_submit,
                                overlap_events,
                                intra_op_parallelism,
                            });
                        }
                    }
                }
            }
        }
        (combinations, notes)
    }
}

/// Adds a value unless it is there already; the first one of a file replaces the default.
fn keep<T: PartialEq>(list: &mut Vec<T>, value: T, is_first: bool) {
    if is_first {
        list.clear();
    }
    if !list.contains(&value) {
        list.push(value);
    }
}

/// DeepSpeed's older sweeps also list numbers of processes.
fn one_process(key: &str, value: &Json) -> Result<(), String> {
    let several = std::slice::from_ref(value);
    let values = value.as_array().map_or(several, Vec::as_slice);
    match values.iter().all(|value| value.as_u64() == Some(1)) {
        true => Ok(()),
        false => Err(format!("{key}: processes are not swept; give 1, or leave it out")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Sweep, String> {
        Sweep::from_object(serde_json::from_str::<Json>(text).unwrap().as_object().unwrap())
    }

    #[test]
    fn the_default_has_64_combinations_and_all_fit() {
        let (combinations, notes) = Sweep::default().fitting(4096);
        assert_eq!((combinations.len(), notes.len()), (64, 0));
        let distinct: std::collections::HashSet<_> = combinations.iter().collect();
        assert_eq!(distinct.len(), 64);
    }

    #[test]
    fn their_shape_is_read() {
        let sweep = parse(
            r#"{"block_size": ["128K", "1M", "128K"], "queue_depth": [4], "io_parallel": [1, 8],
                "sequential_requests": [true, false], "single_submit": [false], "threads": [1]}"#,
        );
        let (combinations, notes) = sweep.unwrap().fitting(512);
        assert_eq!((combinations.len(), notes.len()), (8, 0));
        assert!(combinations.iter().all(|one| one.queue_depth == 4 && !one.single_submit));
        assert_eq!(combinations.iter().filter(|one| one.overlap_events).count(), 4);
        assert_eq!(combinations[0].block_size, 128 << 10);
        let (combinations, _) = parse(r#"{"overlap_events": "false"}"#).unwrap().fitting(512);
        assert_eq!(combinations.len(), 1);
        assert!(!combinations[0].overlap_events);
    }

    #[test]
    fn what_a_mount_or_the_folder_does_not_take_is_left_out_and_said() {
        let sweep = parse(r#"{"block_size": [65536, "3M", "32M"], "queue_depth": [1, 5000]}"#);
        let (combinations, notes) = sweep.unwrap().fitting(512);
        assert_eq!(combinations.len(), 1);
        assert_eq!(notes.len(), 3, "{notes:?}");
        assert!(notes[0].starts_with("block_size 3145728 is left out: a mount takes"), "{notes:?}");
        let (combinations, notes) = parse("{}").unwrap().fitting(2 << 20);
        assert!(combinations.is_empty());
        assert!(notes[0].contains("aligned to 2097152 bytes"), "{notes:?}");
    }

    #[test]
    fn nonsense_is_named() {
        for (text, expected) in [
            (r#"{"block_size": ["many"]}"#, r#"block_size: "many" is not accepted"#),
            (r#"{"block_size": [0]}"#, "block_size: 0 is not accepted"),
            (r#"{"queue_depth": []}"#, "queue_depth: the list is empty"),
            (r#"{"queue_dept": [1]}"#, "the nearest is queue_depth"),
            (r#"{"single_submit": [2]}"#, "single_submit: 2 is not accepted; give true or false"),
            (r#"{"threads": [1, 2]}"#, "threads: processes are not swept"),
            (
                r#"{"sequential_requests": [true], "overlap_events": [true]}"#,
                "are the same setting",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
