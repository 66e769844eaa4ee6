//! How many lines of a kind are logged.
//!
//! Clients cause lines as often as they like: they read what cannot be read, and send what cannot be answered. So each kind of
//! message about each partition has a few lines at once and then one every half minute, and each kind has a limit for all
//! partitions together. How many were left out is told with the next line of their kind, and at the end.
//! A kind is a place in the sources; the partition is the record's value `partition`.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hash, RandomState};
use std::time::{Duration, Instant};

use crate::metrics::lines::{LINES, Lines};

/// A number of lines at once, and the time after which there is one more.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    burst: u32,
    every: Duration,
}

/// Of a kind about one partition.
const ABOUT_ONE: Allowance = Allowance { burst: 10, every: Duration::from_secs(30) };

/// Of a kind that is about no partition.
const ABOUT_NONE: Allowance = Allowance { burst: 30, every: Duration::from_secs(10) };

/// Of a kind about all partitions together.
const ABOUT_ALL: Allowance = Allowance { burst: 1000, every: Duration::from_secs(10) };

/// Kinds, with and without partitions, that are remembered. Further partitions share one allowance for each kind.
const REMEMBERED_MAX: usize = 2048;

/// Between two looks for kinds that can be forgotten.
const SWEEP_EVERY: Duration = Duration::from_secs(1);

/// Stands for all partitions that are not remembered; no path has it.
const OTHERS: &[u8] = b"\0";

/// The value of a record that says which partition it is about.
const PARTITION: &str = "partition";

/// What remains of an allowance.
#[derive(Debug)]
struct Rest {
    allowance: Allowance,
    lines: u32,
    since: Instant,
    left_out: u64,
}

impl Rest {
    fn new(allowance: Allowance, now: Instant) -> Self {
        Self { allowance, lines: allowance.burst, since: now, left_out: 0 }
    }

    fn refill(&mut self, now: Instant) {
        let Allowance { burst, every } = self.allowance;
        let passed = now.saturating_duration_since(self.since);
        let more = u32::try_from(passed.as_millis() / every.as_millis()).unwrap_or(u32::MAX);
        if self.lines.saturating_add(more) >= burst {
            (self.lines, self.since) = (burst, now);
        } else {
            self.lines += more;
            self.since += every * more;
        }
    }
}

/// What is to be done with a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Log it, and before it how many like it were left out.
    Log { left_out: u64 },
    /// Leave it out.
    LeaveOut,
}

/// The allowances of all kinds.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    rests: HashMap<u64, Rest>,
    /// Random, so that nobody chooses names that share an allowance with others.
    hasher: RandomState,
    /// Left out of kinds that are no longer remembered.
    forgotten: u64,
    swept: Option<Instant>,
}

impl Limiter {
    /// Judges a record. What is told at `debug` and `trace` was asked for, and is not limited.
    pub(super) fn decide(&mut self, record: &log::Record<'_>, now: Instant) -> Verdict {
        if record.level() > log::Level::Info {
            Lines::count(&LINES.lines);
            return Verdict::Log { left_out: 0 };
        }
        let partition = record.key_values().get(PARTITION.into()).map(|name| name.to_string());
        self.judge_kind((record.file(), record.line(), record.target()), partition.as_deref(), now)
    }

    /// Judges a line of a kind, about a partition or none.
    pub(super) fn judge_kind(
        &mut self, kind: impl Hash, partition: Option<&str>, now: Instant,
    ) -> Verdict {
        let kind = self.hasher.hash_one(kind);
        let verdict = match partition {
            None => self.take(kind, ABOUT_NONE, now),
            Some(name) => {
                let mut own = self.hasher.hash_one((kind, name));
                if !self.rests.contains_key(&own) && !self.has_room(now) {
                    own = self.hasher.hash_one((kind, OTHERS));
                }
                match self.take(own, ABOUT_ONE, now) {
                    Verdict::LeaveOut => Verdict::LeaveOut,
                    Verdict::Log { left_out } => self.take(kind, ABOUT_ALL, now).and(left_out),
                }
            }
        };
        match verdict {
            Verdict::Log { .. } => Lines::count(&LINES.lines),
            Verdict::LeaveOut => Lines::count(&LINES.left_out),
        }
        verdict
    }

    /// How many were left out that no line has told of; they are told by whoever asks.
    pub(super) fn untold(&mut self) -> u64 {
        let rests = self.rests.values_mut().map(|rest| std::mem::take(&mut rest.left_out));
        rests.sum::<u64>() + std::mem::take(&mut self.forgotten)
    }

    /// Takes a line from the allowance behind `key`.
    fn take(&mut self, key: u64, allowance: Allowance, now: Instant) -> Verdict {
        let rest = self.rests.entry(key).or_insert_with(|| Rest::new(allowance, now));
        rest.refill(now);
        match rest.lines.checked_sub(1) {
            Some(lines) => {
                rest.lines = lines;
                Verdict::Log { left_out: std::mem::take(&mut rest.left_out) }
            }
            None => {
                rest.left_out += 1;
                Verdict::LeaveOut
            }
        }
    }

    /// Whether one more kind can be remembered; those of which nothing came for long are forgotten for it.
    fn has_room(&mut self, now: Instant) -> bool {
        if self.rests.len() < REMEMBERED_MAX {
            return true;
        }
        if self.swept.is_some_and(|swept| now.saturating_duration_since(swept) < SWEEP_EVERY) {
            return false;
        }
        self.swept = Some(now);
        let forgotten = &mut self.forgotten;
        self.rests.retain(|_, rest| {
            rest.refill(now);
            let is_whole = rest.lines == rest.allowance.burst;
            if is_whole {
                *forgotten += rest.left_out;
            }
            !is_whole
        });
        self.rests.len() < REMEMBERED_MAX
    }
}

impl Verdict {
    /// With so many more that were left out before.
    fn and(self, more: u64) -> Self {
        match self {
            Self::Log { left_out } => Self::Log { left_out: left_out + more },
            Self::LeaveOut => Self::LeaveOut,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(
        limiter: &mut Limiter, kind: u32, name: Option<&str>, now: Instant, times: u64,
    ) -> u64 {
        let judged = (0..times).map(|_| limiter.judge_kind(kind, name, now));
        judged.filter(|verdict| *verdict != Verdict::LeaveOut).count() as u64
    }

    #[test]
    fn each_partition_and_kind_has_its_own_and_the_rest_is_told() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let mut at = |kind, name, now| decide(&mut limiter, kind, Some(name), now, 1000);
        for (kind, name) in [(1, "a"), (1, "b"), (2, "a")] {
            assert_eq!(at(kind, name, now), u64::from(ABOUT_ONE.burst));
            assert_eq!(at(kind, name, now), 0);
        }
        let later = now + ABOUT_ONE.every;
        assert_eq!(limiter.judge_kind(1, Some("a"), later), Verdict::Log { left_out: 1990 });
        assert_eq!(limiter.judge_kind(1, Some("a"), later), Verdict::LeaveOut);
        assert_eq!(limiter.untold(), 1 + 2 * 1990);
        assert_eq!(limiter.untold(), 0);
        let much_later = now + ABOUT_ONE.every * 1000;
        assert_eq!(decide(&mut limiter, 1, Some("a"), much_later, 99), u64::from(ABOUT_ONE.burst));
        assert_eq!(decide(&mut limiter, 3, None, now, 99), u64::from(ABOUT_NONE.burst));
    }

    #[test]
    fn many_partitions_share_and_no_more_are_remembered() {
        let (mut limiter, now) = (Limiter::default(), Instant::now());
        let logged: u64 = (0..100_000)
            .map(|number| decide(&mut limiter, 1, Some(&format!("{number}")), now, 1))
            .sum();
        assert_eq!(logged, u64::from(ABOUT_ALL.burst));
        assert!(limiter.rests.len() <= REMEMBERED_MAX + 2, "{}", limiter.rests.len());
        // Others are heard, and what was left out is not lost.
        assert_eq!(decide(&mut limiter, 2, Some("x"), now, 5), 5);
        let later = now + ABOUT_ALL.every * 3;
        assert_eq!(decide(&mut limiter, 1, Some("another"), later, 5), 3);
        let told = limiter.untold();
        assert!((90_000..=100_000).contains(&told), "{told}");
    }

    #[test]
    fn what_was_asked_for_is_not_limited() {
        let mut limiter = Limiter::default();
        let mut decide = |level| {
            let record = log::Record::builder().level(level).args(format_args!("x")).build();
            (0..100)
                .filter(|_| limiter.decide(&record, Instant::now()) != Verdict::LeaveOut)
                .count()
        };
        assert_eq!(decide(log::Level::Debug), 100);
        assert_eq!(decide(log::Level::Info), ABOUT_NONE.burst as usize);
    }
}
