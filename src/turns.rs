//! Contestants that take turns, and how far their figures vary: the one way in which the tools measure.

use serde::Serialize;

/// How often each contestant has its turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    /// Rounds before those that count, so that files and code are there.
    pub warmup: u32,
    /// Rounds that count.
    pub rounds: u32,
}

impl Turns {
    /// Lets contestants take turns, so that whatever changes on the machine meanwhile meets all of them. `run` is told
    /// whose turn it is and the number of the round, from 0. A contestant for which it returns `None` has no more turns.
    /// The result has the samples of each contestant; one that left has none.
    ///
    /// # Errors
    ///
    /// The first that `run` returns.
    pub fn take<C, T, E>(
        self, contestants: &mut [C], mut run: impl FnMut(&mut C, u32) -> Result<Option<T>, E>,
    ) -> Result<Vec<Vec<T>>, E> {
        let mut lanes: Vec<_> = contestants.iter_mut().map(|one| Some((one, Vec::new()))).collect();
        for number in 0..self.warmup + self.rounds {
            for lane in &mut lanes {
                let Some((contestant, samples)) = lane else { continue };
                match run(contestant, number)? {
                    Some(sample) if number >= self.warmup => samples.push(sample),
                    Some(_) => {}
                    None => *lane = None,
                }
            }
        }
        Ok(lanes
            .into_iter()
            .map(|lane| lane.map(|(_, samples)| samples).unwrap_or_default())
            .collect())
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contestants_take_turns_and_warmups_do_not_count() {
        let mut seen = Vec::new();
        let taken = Turns { warmup: 1, rounds: 2 }.take(&mut ["a", "b"], |name, number| {
            seen.push(format!("{name}{number}"));
            Ok::<_, ()>(Some(number))
        });
        assert_eq!(seen, ["a0", "b0", "a1", "b1", "a2", "b2"]);
        assert_eq!(taken, Ok(vec![vec![1, 2]; 2]));
    }

    #[test]
    fn who_leaves_has_no_more_turns_and_an_error_ends_all() {
        let turns = Turns { warmup: 0, rounds: 3 };
        let mut counts = [0, 0];
        let leaves_at_2 = |count: &mut i32, number| {
            *count += 1;
            Ok::<_, ()>((number < 1).then_some(number))
        };
        assert_eq!(turns.take(&mut counts[..1], leaves_at_2), Ok(vec![vec![]]));
        assert_eq!(counts, [2, 0]);
        let fails = |count: &mut i32, number| {
            *count += 10;
            if number == 1 { Err("ended") } else { Ok(Some(())) }
        };
        assert_eq!(turns.take(&mut counts, fails), Err("ended"));
        assert_eq!(counts, [22, 10]);
    }

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(Spread::of([3.0, 1.0, 2.0]).median, 2.0);
        assert_eq!(Spread::of([1.0, 0.5]), Spread { min: 0.5, median: 0.75, max: 1.0 });
    }
}
