//! Rounds, series of rounds, and taking turns.

use serde::Serialize;

use super::Result;

/// DeepSpeed's GB: 1024^3 bytes.
pub const GB: f64 = 1_073_741_824.0;

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

    /// GiB/s by the slowest process's own time.
    #[must_use]
    pub fn speed(&self) -> f64 {
        speed(self.bytes, most(&self.task))
    }
}

/// GiB/s; 0 for no time at all, as DeepSpeed has it.
fn speed(bytes: u64, seconds: f64) -> f64 {
    if seconds == 0.0 { 0.0 } else { bytes as f64 / seconds / GB }
}

fn most(seconds: &[f64]) -> f64 {
    seconds.iter().copied().fold(0.0, f64::max)
}

/// The least, the middle and the most of some figures.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub min: f64,
    /// The middle one; of an even number, the mean of the two in the middle.
    pub median: f64,
    /// The most.
    pub max: f64,
}

impl Spread {
    /// Of at least one figure.
    ///
    /// # Panics
    ///
    /// Without any.
    #[must_use]
    pub fn of(figures: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = figures.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let (count, half) = (sorted.len(), sorted.len() / 2);
        let median = match count % 2 {
            0 => (sorted[half - 1] + sorted[half]) / 2.0,
            _ => sorted[half],
        };
        Self { min: sorted[0], median, max: sorted[count - 1] }
    }
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

/// Lets contestants take turns, so that whatever changes on the machine meanwhile meets all of them:
/// `warmup` rounds of each, which are not counted, then `rounds` that are. `run` is told whose turn it is and
/// the number of the round, from 0.
///
/// # Errors
///
/// The first that `run` returns.
pub fn alternate<C>(
    contestants: &[C], warmup: u32, rounds: u32, mut run: impl FnMut(&C, u32) -> Result<Round>,
) -> Result<Vec<Series>> {
    let mut series = vec![Series::default(); contestants.len()];
    for number in 0..warmup + rounds {
        for (contestant, own) in contestants.iter().zip(&mut series) {
            let round = run(contestant, number)?;
            if number >= warmup {
                own.rounds.push(round);
            }
        }
    }
    Ok(series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contestants_take_turns_and_warmups_do_not_count() {
        let mut turns = Vec::new();
        let series = alternate(&["a", "b"], 1, 2, |name, number| {
            turns.push(format!("{name}{number}"));
            Ok(Round::single(f64::from(number), 1 << 30))
        })
        .unwrap();
        assert_eq!(turns, ["a0", "b0", "a1", "b1", "a2", "b2"]);
        assert_eq!(series[0].task(), (3.0, 2.0 / 3.0));
        assert_eq!(series[1].spread(), Spread { min: 0.5, median: 0.75, max: 1.0 });
    }

    #[test]
    fn latency_is_that_of_the_slowest_process() {
        let round =
            |task: [f64; 2]| Round { task: task.into(), e2e: vec![4.0, 4.0], bytes: 1 << 30 };
        let series = Series { rounds: vec![round([1.0, 3.0]), round([3.5, 0.5])] };
        assert_eq!(series.task(), (4.5, 2.0 / 4.5));
        assert_eq!(series.e2e(), (8.0, 0.25));
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).median, 2.0);
    }
}
