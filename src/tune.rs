//! Which aio settings suit a folder best: each combination of a sweep is measured there.
//!
//! The transfers are those of [`aio::Handle`](crate::deepspeed::Handle), past the page cache, between one locked buffer and
//! one file without a name, which is gone with the process, whatever ends it.

mod document;
mod logs;
mod measure;
mod plot;
mod sweep;

pub use document::{aio_block, document, is_document};
pub use logs::LogFolder;
pub use plot::{heat_map, is_heat_map};
pub use sweep::{Combination, Sweep};

use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::sys_process::is_on_tmpfs;
use crate::turns::Turns;
use measure::{Failure, Track};

/// How long a quick sweep may measure; what is left then is left out.
const QUICK_TIME: Duration = Duration::from_secs(70);

/// What a quick sweep's single measurements take together, about.
const QUICK_AIM: Duration = Duration::from_secs(42);

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where.
    pub folder: PathBuf,
    /// What.
    pub sweep: Sweep,
    /// Measure reads.
    pub read: bool,
    /// Measure writes.
    pub write: bool,
    /// Bytes of each measurement, a multiple of 4096; the most, when quick.
    pub io_size: u64,
    /// How often each combination is measured, in turns with the others.
    pub loops: u32,
    /// Take about a minute for all of it.
    pub quick: bool,
}

/// Bytes moved in a time.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rate {
    /// Bytes.
    pub bytes: u64,
    /// How long they took.
    pub time: Duration,
}

impl Rate {
    fn add(&mut self, other: Rate) {
        self.bytes += other.bytes;
        self.time += other.time;
    }

    /// Bytes per second; 0 when nothing was measured.
    #[must_use]
    pub fn speed(&self) -> f64 {
        match self.time.is_zero() {
            true => 0.0,
            false => self.bytes as f64 / self.time.as_secs_f64(),
        }
    }
}

/// A combination and what it does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Measured {
    /// The settings.
    pub combination: Combination,
    /// Nothing moved unless reads were wanted.
    pub read: Rate,
    /// Nothing moved unless writes were wanted.
    pub write: Rate,
}

impl Measured {
    /// Read and write speed together, which the best one for both has most of.
    #[must_use]
    pub fn both(&self) -> f64 {
        self.read.speed() + self.write.speed()
    }
}

/// How a sweep ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Everything was measured.
    Complete,
    /// Somebody stopped it.
    Stopped,
    /// A quick sweep's time was up.
    OutOfTime,
    /// A transfer failed.
    Failed(String),
}

/// What was measured.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// In the order of the sweep; those that were not reached are missing.
    pub measured: Vec<Measured>,
    /// Combinations that were to be measured.
    pub planned: usize,
    /// Bytes of each measurement.
    pub io_size: u64,
    /// How it ended.
    pub end: End,
    /// Lines about what was left out, and about io_uring where it is refused.
    pub notes: Vec<String>,
}

impl Outcome {
    /// The fastest by this figure; `None` when nothing was measured.
    #[must_use]
    pub fn best(&self, figure: impl Fn(&Measured) -> f64) -> Option<&Measured> {
        self.measured.iter().max_by(|a, b| figure(a).total_cmp(&figure(b)))
    }
}

/// Hears how a sweep goes on.
pub trait Listener {
    /// So many measurements are to come.
    fn begin(&mut self, measurements: u64);

    /// This one begins.
    fn next(&mut self, combination: &Combination);

    /// Whether somebody wants it to stop; asked before each measurement.
    fn is_stopped(&mut self) -> bool;
}

/// Measures. Blocks until it is done, or `listener` wants it to stop.
///
/// # Errors
/// One line, when nothing can be measured there at all: no folder, no O_DIRECT, no room, no memory.
pub fn run(plan: &Plan, listener: &mut dyn Listener) -> Result<Outcome, String> {
    let start = Instant::now();
    let mut track = Track::open(plan)?;
    let (combinations, mut notes) = plan.sweep.fitting(track.alignment());
    if combinations.is_empty() {
        return Err(format!("nothing is left to measure: {}", notes.join("; ")));
    }
    if is_on_tmpfs(&plan.folder) {
        let shown = plan.folder.display();
        notes.push(format!("{shown} is a tmpfs: memory is measured, not a device"));
    }
    let aim = plan.quick.then(|| {
        let directions = u32::from(plan.read) + u32::from(plan.write);
        let runs = u32::try_from(combinations.len()).unwrap_or(u32::MAX).saturating_mul(directions);
        QUICK_AIM / runs.saturating_mul(plan.loops)
    });
    notes.extend(track.fill(&combinations[0], aim)?);
    let deadline = plan.quick.then(|| start + QUICK_TIME);
    let fresh = |index| {
        let (read, write) = (Rate::default(), Rate::default());
        (index, Measured { combination: combinations[index], read, write })
    };
    let order = order(combinations.len(), plan.quick);
    let mut contestants: Vec<(usize, Measured)> = order.into_iter().map(fresh).collect();
    listener.begin(u64::from(plan.loops) * combinations.len() as u64);
    let turns = Turns { warmup: 0, rounds: plan.loops };
    let taken = turns.take(&mut contestants, |(_, sum), _| {
        if listener.is_stopped() {
            return Err(End::Stopped);
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(End::OutOfTime);
        }
        let combination = sum.combination;
        listener.next(&combination);
        match track.measure(&combination, plan.write, plan.read) {
            Ok((write, read)) => {
                sum.write.add(write);
                sum.read.add(read);
                Ok(Some(()))
            }
            Err(Failure::Refused(why)) => {
                notes.push(format!("{combination} is left out: {why}"));
                Ok(None)
            }
            Err(Failure::Transfer(why)) => Err(End::Failed(why)),
        }
    });
    let end = taken.err().unwrap_or(End::Complete);
    contestants.sort_unstable_by_key(|(index, _)| *index);
    let measured = contestants.into_iter().map(|(_, sum)| sum);
    Ok(Outcome {
        measured: measured.filter(|sum| sum.read.bytes + sum.write.bytes > 0).collect(),
        planned: combinations.len(),
        io_size: track.io_size(),
        end,
        notes,
    })
}

/// The order of measuring. A quick sweep may not reach all of them: then every value has its share.
fn order(count: usize, mixed: bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    if mixed {
        order.sort_by_key(|index| (*index as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_order_has_all() {
        for mixed in [false, true] {
            let mut order = order(64, mixed);
            assert_eq!(order.is_sorted(), !mixed);
            order.sort_unstable();
            assert_eq!(order, (0..64).collect::<Vec<_>>());
        }
    }

    #[test]
    fn speeds_are_of_all_loops_together() {
        let mut rate = Rate::default();
        assert!(rate.speed().abs() < f64::EPSILON);
        rate.add(Rate { bytes: 100, time: Duration::from_secs(1) });
        rate.add(Rate { bytes: 100, time: Duration::from_secs(3) });
        assert!((rate.speed() - 50.0).abs() < 1e-9);
    }
}
