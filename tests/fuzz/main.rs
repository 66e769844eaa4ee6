//! The short form of fuzzing: every input of the corpus once, and mutations of them from a seed that is printed.
//! The long form is `tests/suites/fuzz.sh`, where coverage guides the mutations (`guided.rs`).
//!
//! A target takes any bytes and asserts what must hold for all of them; a panic is a finding.
//! `SWAPFS_SEED=n` repeats a run, `SWAPFS_ROUNDS=n` mutates each input n times.

mod targets;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use targets::TARGETS;

/// Mutations of each input, unless told otherwise.
const ROUNDS: u64 = 20;

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{target}: {error}"));
    let mut inputs: Vec<_> = entries
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.clone(), std::fs::read(path).unwrap()))
        .collect();
    inputs.sort();
    inputs
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((mixed ^ (mixed >> 31)) % limit.max(1) as u64) as usize
    }

    /// One or a few changes of `input`: bits, bytes, numbers, pieces of it or of another.
    fn mutate(&mut self, input: &mut Vec<u8>, other: &[u8]) {
        for _ in 0..=self.below(3) {
            let at = self.below(input.len() + 1);
            let end = (at + self.below(9)).min(input.len());
            match self.below(8) {
                0 if at < input.len() => input[at] ^= 1 << self.below(8),
                1 if at < input.len() => input[at] = self.below(256) as u8,
                2 => drop(input.splice(at..end, [])),
                3 => {
                    let piece = input[at..end].to_vec();
                    input.splice(at..at, piece);
                }
                4 => {
                    let number =
                        [0, 1, u64::MAX, i64::MAX as u64, 1 << 32, 4096, 1 << 20][self.below(7)];
                    let bytes = &number.to_le_bytes()[..[1, 2, 4, 8][self.below(4)]];
                    let end = (at + bytes.len()).min(input.len());
                    input.splice(at..end, bytes.iter().copied());
                }
                5 if !other.is_empty() => {
                    let from = self.below(other.len());
                    let to = (from + 1 + self.below(40)).min(other.len());
                    input.splice(at..end, other[from..to].iter().copied());
                }
                6 => input.truncate(at),
                _ => input.insert(at, self.below(256) as u8),
            }
        }
    }
}

/// The corpus, then mutations of it.
fn replay(target: &str) {
    let run = TARGETS.iter().find(|(name, _)| *name == target).expect("a target's name").1;
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse().expect("a number"));
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros() as u64;
    let seed = number("SWAPFS_SEED").unwrap_or(now);
    let rounds = number("SWAPFS_ROUNDS").unwrap_or(ROUNDS);
    let inputs = corpus(target);
    assert!(!inputs.is_empty(), "{target} has no corpus");
    for (path, input) in &inputs {
        eprintln!("{}", path.display());
        run(input);
    }
    eprintln!("{target}: SWAPFS_SEED={seed}, {rounds} mutations of {} inputs", inputs.len());
    let mut random = Random(seed);
    for (_, input) in &inputs {
        for _ in 0..rounds {
            let mut input = input.clone();
            let other = &inputs[random.below(inputs.len())].1;
            random.mutate(&mut input, other);
            run(&input);
        }
    }
}

#[test]
fn requests() {
    replay("request");
}

#[test]
fn attributes() {
    replay("xattr");
}

#[test]
fn names() {
    replay("name");
}

#[test]
fn configurations() {
    replay("config");
}

#[test]
fn mount_options() {
    replay("options");
}

#[test]
fn sizes() {
    replay("size");
}

#[test]
fn mount_tables() {
    replay("mounts");
}

#[test]
fn control_folders() {
    replay("control");
}

#[test]
fn sessions() {
    replay("session");
}

#[test]
fn http_exchanges() {
    replay("http");
}

#[test]
fn ledgers() {
    replay("ledger");
}

#[test]
fn records_of_sessions() {
    replay("sessions");
}

#[test]
fn lock_files() {
    replay("state");
}

#[test]
fn records_of_wear() {
    replay("wear");
}

#[test]
fn folders_that_look_like_mounts() {
    replay("pretended");
}

/// Every target is run above.
#[test]
fn each_target_has_a_corpus() {
    assert_eq!(TARGETS.len(), 15);
    for (target, _) in TARGETS {
        assert!(!corpus(target).is_empty(), "{target}");
    }
}
