//! The table as text, and the limits that hold for all rows.

use serde::Serialize;
use swapfs::turns::Spread;
use swapfs::units::{GIB, MIB};

use crate::group::{Goal, Measured, Verdict};
use crate::sample::{Series, Unit};

/// Daemon's processor seconds per GiB, in either direction.
const CPU_MOST: f64 = 0.25;
/// Memory of the daemon beyond its pool.
const MEMORY_MOST: u64 = 64 * MIB;

/// Above the rows.
pub(crate) fn header() -> String {
    format!(
        "{:<1} {:<50} {:>8} {:>15} {:<34} {:>8} {:>15} {:>8} {:>7} {:<6} {:>8} {:>15} {:>6} {:>17}",
        "",
        "",
        "ours",
        "(least-most)",
        "reference",
        "",
        "(least-most)",
        "ratio",
        "goal",
        "",
        "daemon",
        "client s/GiB",
        "MiB",
        "p99 µs"
    )
}

/// A line for each comparison.
pub(crate) fn lines(measured: &Measured) -> Vec<String> {
    measured.verdicts().map(|verdict| line(measured, verdict)).collect()
}

fn line(measured: &Measured, verdict: Verdict<'_>) -> String {
    let digits = match measured.unit {
        Unit::Throughput | Unit::CallRate => 0,
        Unit::Latency => 1,
        Unit::Seconds => 2,
    };
    let figures = |series: &Series| {
        let Spread { min, median, max } = series.spread();
        (format!("{median:.digits$}"), format!("({min:.digits$}-{max:.digits$})"))
    };
    let pair = |one: Option<f64>, other: Option<f64>, digits: usize| {
        let show = |figure: Option<f64>| figure.map_or("-".to_owned(), |f| format!("{f:.digits$}"));
        format!("{} / {}", show(one), show(other))
    };
    let (ours, reference) = (verdict.ours, verdict.reference);
    let ((own, own_spread), (other, other_spread)) = (figures(ours), figures(reference));
    let compared = match measured.unit {
        Unit::Latency => format!("{:+.1} µs", ours.spread().median - reference.spread().median),
        _ => format!("{:.2}", verdict.ratio),
    };
    format!(
        "{:<1} {:<50} {own:>8} {own_spread:>15} {:<34} {other:>8} {other_spread:>15} {compared:>8} {:>7} \
         {:<6} {:>8} {:>15} {:>6} {:>17}",
        measured.place,
        format!("{}, {}", measured.title, measured.unit.name()),
        reference.name,
        verdict.goal.map_or("-".to_owned(), Goal::text),
        match verdict.met {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        },
        ours.daemon_cpu_per_gib().map_or("-".to_owned(), |seconds| format!("{seconds:.2}")),
        pair(ours.client_cpu_per_gib(), reference.client_cpu_per_gib(), 2),
        ours.peak().map_or("-".to_owned(), |bytes| (bytes / MIB).to_string()),
        pair(ours.median(|s| s.p99), reference.median(|s| s.p99), 0),
    )
}

/// A promise about all rows of a place.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Limit {
    pub(crate) place: String,
    pub(crate) what: &'static str,
    pub(crate) most: f64,
    pub(crate) found: f64,
    /// Where the most was found.
    pub(crate) row: &'static str,
    pub(crate) met: bool,
}

impl Limit {
    pub(crate) fn line(&self) -> String {
        let verdict = if self.met { "met" } else { "MISSED" };
        format!(
            "{} {}: {:.2}, at most {:.2}: {verdict} (the most of all rows: {})",
            self.place, self.what, self.found, self.most, self.row
        )
    }
}

/// Processor time, memory, and what lies in the page cache.
pub(crate) fn limits(rows: &[Measured], pool_bytes: u64) -> Vec<Limit> {
    let mut limits = Vec::new();
    for place in ['A', 'B'] {
        let rows: Vec<&Measured> = rows.iter().filter(|row| row.place == place).collect();
        let most = |figure: &dyn Fn(&Measured) -> Option<f64>| {
            let found = rows.iter().filter_map(|row| Some((row.id, figure(row)?)));
            found.max_by(|(_, one), (_, other)| one.total_cmp(other))
        };
        let cpu = |row: &Measured| {
            (row.unit == Unit::Throughput).then(|| row.series[0].daemon_cpu_per_gib())?
        };
        let memory = |row: &Measured| {
            let beyond = row.series[0].peak()?.saturating_sub(pool_bytes);
            Some(beyond as f64 / MIB as f64)
        };
        let cached = |row: &Measured| {
            let bytes = row.series[0].samples.iter().filter_map(|sample| sample.cached).max()?;
            Some(bytes as f64 / MIB as f64)
        };
        let mut add = |what, limit: f64, found: Option<(&'static str, f64)>| {
            if let Some((row, found)) = found {
                let met = found <= limit;
                limits.push(Limit { place: place.to_string(), what, most: limit, found, row, met });
            }
        };
        add("daemon's processor seconds per GiB", CPU_MOST, most(&cpu));
        add("daemon's MiB beyond the pool", MEMORY_MOST as f64 / MIB as f64, most(&memory));
        add("MiB in the page cache after plain and direct calls", 0.0, most(&cached));
    }
    limits
}

/// What the machine was doing, as uptime(1) says.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Machine {
    kernel: String,
    processors: usize,
    memory_gib: f64,
    /// Running programs, over one, five and fifteen minutes.
    load: String,
}

impl Machine {
    pub(crate) fn now() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        let load = read("/proc/loadavg");
        let load: Vec<&str> = load.split_whitespace().take(3).collect();
        let memory = read("/proc/meminfo");
        let kibibytes = memory.split_whitespace().nth(1).and_then(|text| text.parse::<u64>().ok());
        Self {
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            processors: std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
            memory_gib: (kibibytes.unwrap_or(0) << 10) as f64 / GIB as f64,
            load: load.join(" "),
        }
    }

    pub(crate) fn line(&self) -> String {
        format!(
            "Linux {}, {} processors, {:.0} GiB; load {}",
            self.kernel, self.processors, self.memory_gib, self.load
        )
    }
}
