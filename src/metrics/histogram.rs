//! Times, counted by their magnitude.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Buckets with an upper bound: 1.024 µs, and twice as much each; the last ends at 34.4 s.
const BOUNDED: usize = 26;

/// Those, and one for what takes longer.
const BUCKETS: usize = BOUNDED + 1;

/// The upper bound of the first bucket, as a power of two of nanoseconds: 1.024 µs.
const FIRST_BITS: u32 = 10;

/// Times of many events. Recording is two relaxed additions.
#[derive(Debug, Default)]
pub struct Histogram {
    counts: [AtomicU64; BUCKETS],
    nanoseconds: AtomicU64,
}

/// What a [`Histogram`] held at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Snapshot {
    counts: [u64; BUCKETS],
    nanoseconds: u64,
}

/// The bucket of a time: bounds belong to the bucket that they end.
fn bucket(nanoseconds: u64) -> usize {
    let steps = u64::BITS - (nanoseconds.saturating_sub(1) >> FIRST_BITS).leading_zeros();
    (steps as usize).min(BOUNDED)
}

/// The upper bound of a bounded bucket.
fn bound(bucket: usize) -> Duration {
    Duration::from_nanos(1 << (FIRST_BITS as usize + bucket))
}

impl Histogram {
    /// Counts one event.
    pub fn record(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap_or(u64::MAX >> 1);
        self.counts[bucket(nanoseconds)].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(nanoseconds, Relaxed);
    }

    /// What was recorded so far.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            counts: std::array::from_fn(|i| self.counts[i].load(Relaxed)),
            nanoseconds: self.nanoseconds.load(Relaxed),
        }
    }
}

impl Snapshot {
    /// Adds the events of another.
    pub fn add(&mut self, other: &Snapshot) {
        for (sum, count) in self.counts.iter_mut().zip(other.counts) {
            *sum += count;
        }
        self.nanoseconds = self.nanoseconds.wrapping_add(other.nanoseconds);
    }

    /// How many events.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// What all of them took together, in seconds.
    #[must_use]
    pub fn seconds(&self) -> f64 {
        Duration::from_nanos(self.nanoseconds).as_secs_f64()
    }

    /// An upper bound of what the given share of the events took at most, in seconds; at most a factor of two
    /// above it. `None` without events. What takes longer than the last bucket counts as twice that.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Option<f64> {
        let count = self.count();
        let wanted = ((count as f64 * share).ceil() as u64).clamp(1, count.max(1));
        let mut seen = 0;
        let found = self.counts.iter().position(|here| {
            seen += here;
            seen >= wanted
        })?;
        Some(bound(found).as_secs_f64())
    }

    /// Each bucket's upper bound in seconds with the number of events up to it; the last has no bound.
    pub fn cumulative(&self) -> impl Iterator<Item = (Option<f64>, u64)> {
        let mut seen = 0;
        self.counts.into_iter().enumerate().map(move |(i, count)| {
            seen += count;
            ((i < BOUNDED).then(|| bound(i).as_secs_f64()), seen)
        })
    }

    /// For `stats.json`: `count`, `seconds` in all, and the bounds `p50` and `p99` in seconds.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        serde_json::json!({
            "count": self.count(),
            "seconds": self.seconds(),
            "p50": self.quantile(0.5),
            "p99": self.quantile(0.99),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_belong_to_the_bucket_that_they_end() {
        for (nanoseconds, expected) in
            [(0, 0), (1, 0), (1024, 0), (1025, 1), (2048, 1), (2049, 2), (4096, 2), (4097, 3)]
        {
            assert_eq!(bucket(nanoseconds), expected, "{nanoseconds}");
        }
        let last = bound(BOUNDED - 1).as_nanos() as u64;
        assert_eq!((bucket(last), bucket(last + 1)), (BOUNDED - 1, BOUNDED));
        assert_eq!(bucket(u64::MAX), BOUNDED);
    }

    #[test]
    fn counts_and_quantiles_are_those_of_the_events() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().quantile(0.5), None);
        for _ in 0..98 {
            histogram.record(Duration::from_micros(5));
        }
        for _ in 0..2 {
            histogram.record(Duration::from_millis(3));
        }
        let mut found = histogram.snapshot();
        assert_eq!(found.count(), 100);
        assert!((found.seconds() - 0.006_49).abs() < 1e-9, "{}", found.seconds());
        let p50 = found.quantile(0.5).unwrap();
        assert!((5e-6..=10e-6).contains(&p50), "{p50}");
        let p99 = found.quantile(0.99).unwrap();
        assert!((3e-3..=6e-3).contains(&p99), "{p99}");
        let buckets: Vec<_> = found.cumulative().collect();
        assert_eq!(buckets.last(), Some(&(None, 100)));
        assert!(buckets.windows(2).all(|pair| pair[0].1 <= pair[1].1));
        found.add(&histogram.snapshot());
        assert_eq!(found.count(), 200);
    }
}
