//! `swapfs stats`: a line about a mount every so often.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::Failure;
use super::columns::terminal_width;
use super::watch::{Rates, Sample, parse_seconds};
use crate::units::format_short;

/// Lines between two headers on a terminal.
const HEADER_EVERY: u64 = 20;

/// Arguments of `swapfs stats`.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Seconds between two lines, 0.1 at least.
    #[arg(long, value_name = "S", default_value = "1", value_parser = parse_seconds)]
    pub interval: Duration,
    /// End after so many lines.
    #[arg(long, value_name = "N", value_parser = super::whole::<u64>)]
    pub count: Option<u64>,
    /// Print a JSON object a line, rates in units per second.
    #[arg(long)]
    pub json: bool,
}

/// Columns between which a reader can choose: a title, and the width of what stands below it.
type Columns = [(&'static str, usize); 12];

/// The columns of wide terminals, and of lines that are kept.
const WIDE: Columns = [
    ("READ/s", 10),
    ("WRITE/s", 10),
    ("REQ/s", 8),
    ("HIT%", 5),
    ("READ ms", 8),
    ("WRITE ms", 8),
    ("DEV READ/s", 10),
    ("DEV WRITE/s", 11),
    ("DIRTY", 10),
    ("AVAIL", 10),
    ("WAITS/s", 7),
    ("ERRORS", 6),
];

/// The same for 80 letters: shorter titles and sizes, one blank between.
const NARROW: Columns = [
    ("READ/s", 7),
    ("WRITE/s", 7),
    ("REQ/s", 6),
    ("HIT", 3),
    ("RD ms", 5),
    ("WR ms", 5),
    ("DEV RD", 7),
    ("DEV WR", 7),
    ("DIRTY", 7),
    ("AVAIL", 7),
    ("WAITS", 5),
    ("ERR", 3),
];

/// How lines look.
#[derive(Debug, Clone, Copy)]
struct Style {
    columns: Columns,
    gap: &'static str,
    bytes: fn(u64) -> String,
}

impl Style {
    /// For a terminal of this width.
    fn new(width: Option<usize>) -> Self {
        let wide = Self { columns: WIDE, gap: "  ", bytes: format_short };
        match width {
            Some(width) if width < wide.width() => {
                Self { columns: NARROW, gap: " ", bytes: format_tight }
            }
            _ => wide,
        }
    }

    fn width(&self) -> usize {
        let columns: usize = self.columns.iter().map(|(_, width)| width).sum();
        columns + self.gap.len() * (self.columns.len() - 1)
    }

    fn header(&self) -> String {
        self.row(&self.columns.map(|(title, _)| title.to_owned()))
    }

    fn row(&self, cells: &[String; WIDE.len()]) -> String {
        let padded =
            cells.iter().zip(self.columns).map(|(cell, (_, width))| format!("{cell:>width$}"));
        padded.collect::<Vec<_>>().join(self.gap)
    }
}

impl StatsArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut before = Sample::take(&self.mountpoint)?;
        let terminal = terminal_width();
        let style = Style::new(terminal);
        let mut next = Instant::now();
        let mut line = 0;
        while self.count.is_none_or(|count| line < count) {
            next += self.interval;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let now = Sample::take(&self.mountpoint)?;
            let rates = now.since(&before);
            let header =
                !self.json && (line == 0 || (terminal.is_some() && line % HEADER_EVERY == 0));
            let mut text = String::new();
            if header {
                text = style.header() + "\n";
            }
            text += &match self.json {
                true => as_json(&now, &rates).to_string(),
                false => style.row(&cells(&now, &rates, style.bytes)),
            };
            if !super::print_on(&text)? {
                return Ok(());
            }
            before = now;
            line += 1;
        }
        Ok(())
    }
}

/// A size in at most seven letters: `3.2GiB`, `1023MiB`.
pub(super) fn format_tight(bytes: u64) -> String {
    let shown = format_short(bytes);
    let (number, unit) = shown.split_once(' ').unwrap_or((&shown, ""));
    // A tenth of what has three digits is too much.
    let whole = number.split_once('.').map_or(number, |(whole, _)| whole);
    match whole.len() {
        0..=2 => format!("{number}{unit}"),
        _ => format!("{whole}{unit}"),
    }
}

fn cells(now: &Sample, rates: &Rates, format: fn(u64) -> String) -> [String; WIDE.len()] {
    let bytes = |rate: f64| format(rate as u64);
    let time = |seconds: Option<f64>| match seconds.map(|seconds| seconds * 1e3) {
        None => "-".to_owned(),
        Some(ms) if ms >= 99.995 => format!("{ms:.0}"),
        Some(ms) => format!("{ms:.2}"),
    };
    let buffers = |name: &str| {
        let count = now.count(&format!("/pool/{name}"));
        format(count.saturating_mul(now.count("/pool/buffer_size")))
    };
    [
        bytes(rates.read_bytes),
        bytes(rates.written_bytes),
        format!("{:.0}", rates.requests),
        rates.hits.map_or_else(|| "-".to_owned(), |share| format!("{:.0}", share * 100.0)),
        time(rates.read_seconds),
        time(rates.write_seconds),
        bytes(rates.device_read_bytes),
        bytes(rates.device_written_bytes),
        buffers("dirty"),
        buffers("available"),
        format!("{:.0}", rates.waits),
        now.count("/cache/errors").to_string(),
    ]
}

fn as_json(now: &Sample, rates: &Rates) -> Value {
    let mut line = json!(rates);
    line["dirty"] = now.count("/pool/dirty").into();
    line["available"] = now.count("/pool/available").into();
    line["errors"] = now.count("/cache/errors").into();
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_fit_terminals_of_80_letters() {
        assert_eq!(Style::new(Some(80)).width(), 80);
        assert_eq!(Style::new(Some(100)).width(), 80);
        for width in [None, Some(160), Some(400)] {
            let wide = Style::new(width);
            assert!(wide.width() <= 160 && wide.header().contains("DEV WRITE/s"), "{width:?}");
        }
        let most = json!({
            "pool": {"buffer_size": 1 << 20, "dirty": 1023, "available": 99_999},
            "cache": {"errors": 999},
        });
        let now = Sample { at: Instant::now(), stats: most };
        let rates = Rates {
            read_bytes: 1023.99 * 1024.0 * 1024.0 * 1024.0,
            written_bytes: 99.96 * 1024.0 * 1024.0,
            requests: 999_999.0,
            waits: 99_999.0,
            hits: Some(1.0),
            read_seconds: Some(99.994e-3),
            write_seconds: Some(9.9),
            ..Rates::default()
        };
        for style in [Style::new(Some(80)), Style::new(Some(160))] {
            let line = style.row(&cells(&now, &rates, style.bytes));
            assert_eq!(line.chars().count(), style.width(), "{line}");
        }
    }

    #[test]
    fn sizes_are_short() {
        for (bytes, expected) in [
            (0, "0B"),
            (1023, "1023B"),
            (1536, "1.5KiB"),
            (99 << 20, "99MiB"),
            ((99 << 20) + (1 << 19), "99.5MiB"),
            ((1023 << 20) + (1 << 19), "1023MiB"),
            (3 << 30, "3GiB"),
        ] {
            assert_eq!(format_tight(bytes), expected);
        }
    }
}
