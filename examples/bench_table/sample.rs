//! What one run of one contestant came to, and the processor time and memory of the daemon behind it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use swapfs::turns::Spread;

use crate::Outcome;

/// What moves, or is asked, in one run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Of the work alone; fsync is part of it where something is written.
    pub(crate) seconds: f64,
    pub(crate) bytes: u64,
    /// Calls.
    pub(crate) count: u64,
    /// Processor seconds of the client, in its own code and in the kernel.
    pub(crate) client_cpu: Option<f64>,
    /// Microseconds of one call, where calls were timed.
    pub(crate) p50: Option<f64>,
    pub(crate) p99: Option<f64>,
    /// Processor seconds of the daemon.
    pub(crate) daemon_cpu: Option<f64>,
    /// The most memory that the daemon had, huge pages included.
    pub(crate) daemon_peak: Option<u64>,
    /// Bytes of the files that were in the page cache afterwards.
    pub(crate) cached: Option<u64>,
}

/// What a row compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Unit {
    /// 10^6 bytes a second.
    Throughput,
    /// Calls a second.
    CallRate,
    /// Microseconds, the middle one of all calls.
    Latency,
    Seconds,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Throughput => "MB/s",
            Self::CallRate => "IOPS",
            Self::Latency => "µs",
            Self::Seconds => "s",
        }
    }

    /// Whether more is better.
    pub(crate) fn is_rate(self) -> bool {
        matches!(self, Self::Throughput | Self::CallRate)
    }

    pub(crate) fn of(self, sample: &Sample) -> f64 {
        match self {
            Self::Throughput => sample.bytes as f64 / sample.seconds / 1e6,
            Self::CallRate => sample.count as f64 / sample.seconds,
            Self::Latency => sample.p50.unwrap_or(f64::NAN),
            Self::Seconds => sample.seconds,
        }
    }
}

/// The runs of one contestant.
#[derive(Debug, Clone)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) unit: Unit,
    pub(crate) samples: Vec<Sample>,
}

impl Series {
    pub(crate) fn spread(&self) -> Spread {
        Spread::of(self.samples.iter().map(|sample| self.unit.of(sample)))
    }

    /// The middle one of what the runs have; nothing where they have nothing.
    pub(crate) fn median(&self, figure: impl Fn(&Sample) -> Option<f64>) -> Option<f64> {
        let figures: Vec<f64> = self.samples.iter().filter_map(figure).collect();
        (!figures.is_empty()).then(|| Spread::of(figures).median)
    }

    pub(crate) fn daemon_cpu_per_gib(&self) -> Option<f64> {
        self.median(|sample| per_gib(sample.daemon_cpu?, sample.bytes))
    }

    pub(crate) fn client_cpu_per_gib(&self) -> Option<f64> {
        self.median(|sample| per_gib(sample.client_cpu?, sample.bytes))
    }

    pub(crate) fn peak(&self) -> Option<u64> {
        self.samples.iter().filter_map(|sample| sample.daemon_peak).max()
    }

    pub(crate) fn to_json(&self) -> Value {
        let Spread { min, median, max } = self.spread();
        json!({
            "name": self.name,
            "unit": self.unit.name(),
            "min": min,
            "median": median,
            "max": max,
            "p50_us": self.median(|sample| sample.p50),
            "p99_us": self.median(|sample| sample.p99),
            "client_cpu_s_per_gib": self.client_cpu_per_gib(),
            "daemon_cpu_s_per_gib": self.daemon_cpu_per_gib(),
            "daemon_peak_bytes": self.peak(),
            "samples": self.samples,
        })
    }
}

/// Nothing where too few bytes moved for a meaning.
fn per_gib(seconds: f64, bytes: u64) -> Option<f64> {
    (bytes >= 16 << 20).then(|| seconds * (1_u64 << 30) as f64 / bytes as f64)
}

/// Figure `percent` of sorted ones.
pub(crate) fn percentile(sorted: &[f64], percent: usize) -> Option<f64> {
    let last = sorted.len().checked_sub(1)?;
    Some(sorted[last * percent / 100])
}

/// A daemon, seen from outside.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Daemon(Pid);

impl Daemon {
    /// The one behind a mountpoint.
    pub(crate) fn of(mountpoint: &Path) -> Outcome<Self> {
        let stats = fs::read_to_string(mountpoint.join(".swapfs/stats.json"))?;
        let stats: Value = serde_json::from_str(&stats)?;
        let pid = stats["mount"]["pid"].as_i64().ok_or("stats.json names no pid")?;
        Ok(Self(Pid::from_raw(i32::try_from(pid)?)))
    }

    /// Processor time of all its threads until now.
    pub(crate) fn cpu(self) -> Outcome<Duration> {
        Ok(clock_getcpuclockid(self.0)?.now()?.into())
    }

    /// From now on the most memory counts anew. Without the right to say so, it counts from the start.
    pub(crate) fn forget_peak(self) {
        let _ = fs::write(format!("/proc/{}/clear_refs", self.0), "5");
    }

    /// The most memory since then, in bytes.
    pub(crate) fn peak(self) -> Outcome<u64> {
        Ok(self.status(&["VmHWM:", "HugetlbPages:"])?)
    }

    /// Memory now, in bytes.
    pub(crate) fn resident(self) -> Outcome<u64> {
        Ok(self.status(&["VmRSS:", "HugetlbPages:"])?)
    }

    fn status(self, keys: &[&str]) -> std::io::Result<u64> {
        let text = fs::read_to_string(format!("/proc/{}/status", self.0))?;
        let kibibytes = |line: &str| line.split_whitespace().nth(1)?.parse::<u64>().ok();
        let lines = text.lines().filter(|line| keys.iter().any(|key| line.starts_with(key)));
        Ok(lines.filter_map(kibibytes).sum::<u64>() << 10)
    }
}
