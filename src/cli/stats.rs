//! `swapfs stats`: a line about a mount every so often.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};

use super::Failure;
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
    #[arg(long, value_name = "N")]
    pub count: Option<u64>,
    /// Print a JSON object a line, rates in units per second.
    #[arg(long)]
    pub json: bool,
}

/// Titles of the columns, each as wide as what stands below it.
const COLUMNS: [(&str, usize); 12] = [
    ("READ/s", 10),
    ("WRITE/s", 10),
    ("REQ/s", 8),
    ("HIT%", 5),
    ("READ ms", 8),
    ("WRITE ms", 8),
    ("DEV READ/s", 10),
    ("DEV WRITE/s", 11),
    ("DIRTY", 6),
    ("AVAIL", 6),
    ("WAITS/s", 7),
    ("ERRORS", 6),
];

impl StatsArgs {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut before = Sample::take(&self.mountpoint)?;
        let terminal = std::io::stdout().is_terminal();
        let mut next = Instant::now();
        let mut line = 0;
        while self.count.is_none_or(|count| line < count) {
            next += self.interval;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
            let now = Sample::take(&self.mountpoint)?;
            let rates = now.since(&before);
            let header = !self.json && (line == 0 || (terminal && line % HEADER_EVERY == 0));
            let mut text = String::new();
            if header {
                text = row(&COLUMNS.map(|(title, _)| title.to_owned())) + "\n";
            }
            text += &match self.json {
                true => as_json(&now, &rates).to_string(),
                false => row(&cells(&now, &rates)),
            };
            // Whoever reads the lines may stop at any time.
            if writeln!(std::io::stdout().lock(), "{text}").is_err() {
                return Ok(());
            }
            before = now;
            line += 1;
        }
        Ok(())
    }
}

fn row(cells: &[String; COLUMNS.len()]) -> String {
    let padded = cells.iter().zip(COLUMNS).map(|(cell, (_, width))| format!("{cell:>width$}"));
    padded.collect::<Vec<_>>().join("  ")
}

fn cells(now: &Sample, rates: &Rates) -> [String; COLUMNS.len()] {
    let bytes = |rate: f64| format_short(rate as u64);
    let time = |seconds: Option<f64>| {
        seconds.map_or_else(|| "-".to_owned(), |seconds| format!("{:.2}", seconds * 1e3))
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
        now.count("/pool/dirty").to_string(),
        now.count("/pool/available").to_string(),
        format!("{:.0}", rates.waits),
        now.count("/cache/errors").to_string(),
    ]
}

fn as_json(now: &Sample, rates: &Rates) -> Value {
    json!({
        "seconds": rates.seconds,
        "read_bytes": rates.read_bytes,
        "written_bytes": rates.written_bytes,
        "requests": rates.requests,
        "hit_ratio": rates.hits,
        "read_latency": rates.read_seconds,
        "write_latency": rates.write_seconds,
        "device_read_bytes": rates.device_read_bytes,
        "device_written_bytes": rates.device_written_bytes,
        "buffer_waits": rates.waits,
        "dirty": now.count("/pool/dirty"),
        "available": now.count("/pool/available"),
        "errors": now.count("/cache/errors"),
    })
}
