//! Prometheus' text format (0.0.4): metrics with help, type and samples.

use std::borrow::Cow;
use std::fmt::Write;

use super::definition::{MetricDefinition, Reading};
use crate::paths::{is_plain, plain_lines};

/// A label's name and value.
pub type Label<'a> = (&'a str, &'a str);

/// Puts a text together. Each metric is added once.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
    /// Labels of every sample, as they are written.
    common: String,
}

impl Text {
    /// A text whose samples all have these labels.
    #[must_use]
    pub fn new(common: &[Label<'_>]) -> Text {
        Text { common: labels(common), ..Text::default() }
    }

    /// Adds a metric: its help, its kind and what it is now.
    pub fn metric(&mut self, definition: &MetricDefinition, reading: &Reading) {
        let (name, kind) = (definition.name(), definition.kind.as_ref());
        let help = definition.help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        match reading {
            Reading::By(readings) => {
                for (value, reading) in readings {
                    self.samples(&name, &labels(&[(definition.label, value)]), reading);
                }
            }
            reading => self.samples(&name, "", reading),
        }
    }

    fn samples(&mut self, name: &str, with: &str, reading: &Reading) {
        match reading {
            Reading::Number(number) => self.line(name, with, number),
            Reading::Flag(flag) => self.line(name, with, u8::from(*flag)),
            Reading::Times(times) => {
                let and = if with.is_empty() { "" } else { "," };
                for (bound, count) in times.cumulative() {
                    let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| bound.to_string());
                    let with = format!("{with}{and}le=\"{bound}\"");
                    self.line(&format!("{name}_bucket"), &with, count);
                }
                self.line(&format!("{name}_sum"), with, times.seconds());
                self.line(&format!("{name}_count"), with, times.count());
            }
            Reading::By(_) => debug_assert!(false, "{name} has two labels"),
        }
    }

    fn line(&mut self, name: &str, with: &str, value: impl std::fmt::Display) {
        let (out, common) = (&mut self.out, &self.common);
        let _ = match (common.is_empty(), with.is_empty()) {
            (true, true) => writeln!(out, "{name} {value}"),
            (false, false) => writeln!(out, "{name}{{{common},{with}}} {value}"),
            _ => writeln!(out, "{name}{{{common}{with}}} {value}"),
        };
    }

    /// All of it.
    #[must_use]
    pub fn finish(self) -> String {
        self.out
    }
}

/// A value with escapes for letters that steer a terminal or are not seen. Different values stay different: one that has
/// escapes, or looks like it, has its backslashes doubled.
fn visible(value: &str) -> Cow<'_, str> {
    let is_odd = |letter: char| letter != '\n' && !is_plain(letter);
    match value.contains(is_odd) || value.contains("\\u{") {
        true => plain_lines(&value.replace('\\', "\\\\")).into(),
        false => value.into(),
    }
}

fn labels(with: &[Label<'_>]) -> String {
    let escaped = |value: &str| {
        visible(value).replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
    };
    let parts = with.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value)));
    parts.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Histogram, Kind, Unit};
    use std::time::Duration;

    fn metric(kind: Kind, unit: Unit, label: &'static str) -> MetricDefinition {
        let (object, measure, help) = ("a", "b", "One\nline.");
        MetricDefinition { kind, unit, object, measure, key: "", label, help }
    }

    fn by(values: &[&str], reading: &Reading) -> Reading {
        Reading::By(values.iter().map(|value| ((*value).to_owned(), reading.clone())).collect())
    }

    #[test]
    fn metrics_have_help_type_and_escaped_labels() {
        let mut text = Text::new(&[("mountpoint", "/a \"b\"")]);
        let definition = metric(Kind::Counter, Unit::Count, "directory");
        text.metric(&definition, &Reading::Number(3));
        text.metric(&definition, &by(&["c\\d\ne"], &Reading::Flag(true)));
        let head = "# HELP swapfs_a_b_total One\\nline.\n# TYPE swapfs_a_b_total counter\n";
        assert_eq!(
            text.finish(),
            format!(
                "{head}swapfs_a_b_total{{mountpoint=\"/a \\\"b\\\"\"}} 3\n\
                 {head}swapfs_a_b_total{{mountpoint=\"/a \\\"b\\\"\",directory=\"c\\\\d\\ne\"}} 1\n"
            )
        );
    }

    /// "ESC reaches the metrics' label."
    #[test]
    fn labels_have_no_letter_that_steers_and_stay_different() {
        let names = ["a\u{1b}[2J", r"a\u{1b}[2J", r"a\\u{1b}[2J", "a\u{202e}", r"a\b", "a\tb", "a"];
        let mut all = std::collections::HashSet::new();
        for name in names {
            let mut text = Text::default();
            let definition = metric(Kind::Counter, Unit::Count, "directory");
            text.metric(&definition, &by(&[name], &Reading::Number(1)));
            let line = text.finish().lines().last().unwrap().to_owned();
            assert!(line.chars().all(|letter| is_plain(letter) || letter == '\t'), "{line:?}");
            assert!(all.insert(line), "{name:?}");
        }
        assert!(all.contains(r#"swapfs_a_b_total{directory="a\\u{1b}[2J"} 1"#), "{all:?}");
        assert!(all.contains(r#"swapfs_a_b_total{directory="a\\b"} 1"#), "{all:?}");
    }

    #[test]
    fn histograms_end_with_infinity_sum_and_count() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(1));
        histogram.record(Duration::from_secs(100));
        let mut text = Text::default();
        let times = Reading::Times(histogram.snapshot());
        text.metric(&metric(Kind::Histogram, Unit::Seconds, "operation"), &by(&["read"], &times));
        let text = text.finish();
        let first = "swapfs_a_b_seconds_bucket{operation=\"read\",le=\"0.000001024\"} 1\n";
        assert!(text.contains(first), "{text}");
        let end = "swapfs_a_b_seconds_bucket{operation=\"read\",le=\"+Inf\"} 2\n\
                   swapfs_a_b_seconds_sum{operation=\"read\"} 100.000001\n\
                   swapfs_a_b_seconds_count{operation=\"read\"} 2\n";
        assert!(text.ends_with(end), "{text}");
    }
}
