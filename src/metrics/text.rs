//! Prometheus' text format: families with help, type and samples.

use std::borrow::Cow;
use std::fmt::Write;

use super::histogram::Snapshot;
use crate::paths::{is_plain, plain_lines};

/// A label's name and value.
pub type Label<'a> = (&'a str, &'a str);

/// What may be done with a family's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts in buckets.
    Histogram,
}

/// Puts a text together. Each family is begun once and then gets its samples.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
    name: String,
    /// Labels of every sample, as they are written.
    common: String,
}

impl Text {
    /// A text whose samples all have these labels.
    #[must_use]
    pub fn new(common: &[Label<'_>]) -> Text {
        Text { common: labels(common), ..Text::default() }
    }

    /// Begins a family.
    pub fn family(&mut self, name: &str, help: &str, kind: Kind) -> &mut Text {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(self.out, "# HELP {name} {help}\n# TYPE {name} {kind}");
        name.clone_into(&mut self.name);
        self
    }

    /// A sample of the family.
    pub fn sample(&mut self, with: &[Label<'_>], value: impl std::fmt::Display) -> &mut Text {
        self.line("", &labels(with), value);
        self
    }

    /// A sample of a family of histograms, in seconds.
    pub fn histogram(&mut self, with: &[Label<'_>], times: &Snapshot) {
        let with = labels(with);
        for (bound, count) in times.cumulative() {
            let bound = bound.map_or_else(|| "+Inf".to_owned(), |bound| format!("{bound}"));
            let and = if with.is_empty() { "" } else { "," };
            self.line("_bucket", &format!("{with}{and}le=\"{bound}\""), count);
        }
        self.line("_sum", &with, times.seconds());
        self.line("_count", &with, times.count());
    }

    fn line(&mut self, suffix: &str, with: &str, value: impl std::fmt::Display) {
        let (out, name, common) = (&mut self.out, &self.name, &self.common);
        let _ = match (common.is_empty(), with.is_empty()) {
            (true, true) => writeln!(out, "{name}{suffix} {value}"),
            (false, false) => writeln!(out, "{name}{suffix}{{{common},{with}}} {value}"),
            _ => writeln!(out, "{name}{suffix}{{{common}{with}}} {value}"),
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
    use crate::metrics::Histogram;
    use std::time::Duration;

    #[test]
    fn families_have_help_type_and_escaped_labels() {
        let mut text = Text::new(&[("mountpoint", "/a \"b\"")]);
        text.family("x_total", "One\nline.", Kind::Counter)
            .sample(&[], 3)
            .sample(&[("directory", "c\\d\ne")], 4);
        assert_eq!(
            text.finish(),
            "# HELP x_total One\\nline.\n# TYPE x_total counter\n\
             x_total{mountpoint=\"/a \\\"b\\\"\"} 3\n\
             x_total{mountpoint=\"/a \\\"b\\\"\",directory=\"c\\\\d\\ne\"} 4\n"
        );
    }

    /// "ESC reaches the metrics' label."
    #[test]
    fn labels_have_no_letter_that_steers_and_stay_different() {
        let names = ["a\u{1b}[2J", r"a\u{1b}[2J", r"a\\u{1b}[2J", "a\u{202e}", r"a\b", "a\tb", "a"];
        let mut all = std::collections::HashSet::new();
        for name in names {
            let mut text = Text::default();
            text.family("x_total", "X.", Kind::Counter).sample(&[("directory", name)], 1);
            let line = text.finish().lines().last().unwrap().to_owned();
            assert!(line.chars().all(|letter| is_plain(letter) || letter == '\t'), "{line:?}");
            assert!(all.insert(line), "{name:?}");
        }
        assert!(all.contains(r#"x_total{directory="a\\u{1b}[2J"} 1"#), "{all:?}");
        assert!(all.contains(r#"x_total{directory="a\\b"} 1"#), "{all:?}");
    }

    #[test]
    fn histograms_end_with_infinity_sum_and_count() {
        let histogram = Histogram::default();
        histogram.record(Duration::from_micros(1));
        histogram.record(Duration::from_secs(100));
        let mut text = Text::default();
        text.family("x_seconds", "Times.", Kind::Histogram);
        text.histogram(&[("operation", "read")], &histogram.snapshot());
        let text = text.finish();
        let first = "x_seconds_bucket{operation=\"read\",le=\"0.000001024\"} 1\n";
        assert!(text.contains(first), "{text}");
        let end = "x_seconds_bucket{operation=\"read\",le=\"+Inf\"} 2\n\
                   x_seconds_sum{operation=\"read\"} 100.000001\n\
                   x_seconds_count{operation=\"read\"} 2\n";
        assert!(text.ends_with(end), "{text}");
    }
}
