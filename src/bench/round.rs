//! Rounds and series of rounds, with speed and latency as DeepSpeed reckons them.

use serde::Serialize;

use crate::turns::Spread;
use crate::units::GIB;

/// What one round took, for each process.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Round {
    /// Seconds of each process's own work.
    pub task: Vec<f64>,
    /// The same until the slowest process was done.
    pub e2e: Vec<f64>,
    /// Bytes moved by all processes together.
    pub bytes: u64,
}

impl Round {
    /// A round of one process.
    #[must_use]
    pub fn single(seconds: f64, bytes: u64) -> Self {
        Self { task: vec![seconds], e2e: vec![seconds], bytes }
    }

    pub(super) fn add(&mut self, task: f64, e2e: f64) {
        self.task.push(task);
        self.e2e.push(e2e);
    }

    /// Seconds of the slowest process's own work.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        self.task.iter().copied().fold(0.0, f64::max)
    }

    /// GiB/s by the slowest process's own time.
    #[must_use]
    pub fn speed(&self) -> f64 {
        speed(self.bytes, self.seconds())
    }
}

/// GiB/s, which DeepSpeed calls GB/sec; 0 for no time at all, as DeepSpeed has it.
fn speed(bytes: u64, seconds: f64) -> f64 {
    if seconds == 0.0 { 0.0 } else { bytes as f64 / seconds / GIB as f64 }
}

/// The rounds of one contestant that count.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Series {
    /// In the order in which they were run.
    pub rounds: Vec<Round>,
}

impl Series {
    /// GiB/s over the rounds.
    #[must_use]
    pub fn spread(&self) -> Spread {
        Spread::of(self.rounds.iter().map(Round::speed))
    }

    /// Median, least and most, as tables have them.
    pub(super) fn cells(&self) -> [String; 3] {
        let Spread { min, median, max } = self.spread();
        [median, min, max].map(|speed| format!("{speed:.2}"))
    }

    /// DeepSpeed's latency: the sum over the rounds, of the process for which that is largest.
    fn latency(&self, times: impl Fn(&Round) -> &[f64]) -> f64 {
        let processes = self.rounds.first().map_or(0, |round| times(round).len());
        let sums = (0..processes)
            .map(|process| self.rounds.iter().map(|round| times(round)[process]).sum());
        sums.fold(0.0, f64::max)
    }

    /// Latency in seconds and speed in GiB/s as DeepSpeed reports them, of the work alone.
    #[must_use]
    pub fn task(&self) -> (f64, f64) {
        let latency = self.latency(|round| &round.task);
        (latency, speed(self.bytes(), latency))
    }

    /// The same until the slowest process was done.
    #[must_use]
    pub fn e2e(&self) -> (f64, f64) {
        let latency = self.latency(|round| &round.e2e);
        (latency, speed(self.bytes(), latency))
    }

    /// Bytes moved.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.rounds.iter().map(|round| round.bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latency_is_that_of_the_slowest_process() {
        let round =
            |task: [f64; 2]| Round { task: task.into(), e2e: vec![4.0, 4.0], bytes: 1 << 30 };
        let series = Series { rounds: vec![round([1.0, 3.0]), round([3.5, 0.5])] };
        assert_eq!(series.task(), (4.5, 2.0 / 4.5));
        assert_eq!(series.e2e(), (8.0, 0.25));
    }
}
