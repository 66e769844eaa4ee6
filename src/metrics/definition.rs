//! What a metric is: its definition gives its name in Prometheus, its place in `stats.json` and its entry in the manual.

use serde_json::{Value as Json, json};
use strum::AsRefStr;

use super::histogram::Snapshot;

/// How a metric's values change, by Prometheus' names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, AsRefStr)]
#[strum(serialize_all = "snake_case")]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts times in buckets.
    Histogram,
}

/// What a metric's values count, by the manual's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, AsRefStr)]
#[strum(serialize_all = "snake_case")]
pub enum Unit {
    /// Things, which the help names.
    #[strum(serialize = "")]
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
    /// 1 for yes, 0 for no.
    #[strum(serialize = "0 or 1")]
    Flag,
}

/// One metric: everything there is to say about it.
#[derive(Debug, Clone, Copy)]
pub struct MetricDefinition {
    /// How its values change.
    pub kind: Kind,
    /// What its values count.
    pub unit: Unit,
    /// The part of the mount that it is about, and the object of `stats.json` that it stands in.
    pub object: &'static str,
    /// What is measured. Prometheus' name is made of object, measure, unit and kind.
    pub measure: &'static str,
    /// Its key in the object of `stats.json`; empty when it is not there.
    pub key: &'static str,
    /// The label that tells its values apart; empty when it has one value.
    pub label: &'static str,
    /// One sentence or two.
    pub help: &'static str,
}

impl MetricDefinition {
    /// Its name in Prometheus.
    #[must_use]
    pub fn name(&self) -> String {
        let Self { object, measure, .. } = self;
        let unit = match self.unit {
            Unit::Count | Unit::Flag => String::new(),
            unit if measure.ends_with(unit.as_ref()) => String::new(),
            unit => format!("_{}", unit.as_ref()),
        };
        let total = if self.kind == Kind::Counter { "_total" } else { "" };
        format!("swapfs_{object}_{measure}{unit}{total}")
    }
}

/// What a metric is at one moment.
#[derive(Debug, Clone)]
pub enum Reading {
    /// A number.
    Number(u64),
    /// Whether something is so.
    Flag(bool),
    /// Times of events.
    Times(Snapshot),
    /// A reading for each value of the metric's label.
    By(Vec<(String, Reading)>),
}

impl From<u64> for Reading {
    fn from(number: u64) -> Self {
        Self::Number(number)
    }
}

impl From<bool> for Reading {
    fn from(flag: bool) -> Self {
        Self::Flag(flag)
    }
}

impl Reading {
    /// The value for `stats.json`.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match self {
            Self::Number(number) => json!(number),
            Self::Flag(flag) => json!(flag),
            Self::Times(times) => times.to_json(),
            Self::By(readings) => {
                readings.iter().map(|(value, reading)| (value.clone(), reading.to_json())).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_with_unit_and_total_once() {
        let name = |kind, unit, measure| {
            let (object, key, label, help) = ("pool", "", "", "");
            MetricDefinition { kind, unit, object, measure, key, label, help }.name()
        };
        assert_eq!(name(Kind::Gauge, Unit::Count, "free"), "swapfs_pool_free");
        assert_eq!(name(Kind::Gauge, Unit::Bytes, "buffer_size"), "swapfs_pool_buffer_size_bytes");
        assert_eq!(name(Kind::Counter, Unit::Bytes, "read_bytes"), "swapfs_pool_read_bytes_total");
        assert_eq!(name(Kind::Histogram, Unit::Seconds, "wait"), "swapfs_pool_wait_seconds");
    }
}
