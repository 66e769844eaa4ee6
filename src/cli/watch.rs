//! What `stats`, `top` and `debug` read of a mount, and what changed between two looks.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::Failure;
use crate::mount::{self, Disbelief};
use crate::paths::plain;
use crate::sys_process::{reason, text_xattr};

/// Shortest time between two looks.
const INTERVAL_MIN: f64 = 0.1;

/// Longest, a day.
const INTERVAL_MAX: f64 = 86_400.0;

/// Reads a time in seconds from a command line.
pub(super) fn parse_seconds(text: &str) -> Result<Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (INTERVAL_MIN..=INTERVAL_MAX).contains(&seconds) => {
            Ok(Duration::from_secs_f64(seconds))
        }
        _ => Err(format!("seconds from {INTERVAL_MIN} to {INTERVAL_MAX} are accepted")),
    }
}

/// Reads a file of a mount's control folder.
pub(super) fn read_control(mountpoint: &Path, name: &str) -> Result<String, Failure> {
    let bytes = mount::read_control(mountpoint, name)
        .map_err(|refusal| control_failure(mountpoint, name, &refusal))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The line about a control file that cannot be read.
pub(super) fn control_failure(mountpoint: &Path, name: &str, refusal: &Disbelief) -> Failure {
    let shown = plain(mountpoint);
    Failure::Failed(match refusal {
        Disbelief::Io(error) if mount::is_dead(error) => mount::dead_mount_line(mountpoint),
        Disbelief::Io(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            format!("{shown}: only the owner of the mount and root may read .swapfs/{name}")
        }
        Disbelief::Io(error) => format!("{shown}: {}", reason(error)),
        refusal => refusal.to_string(),
    })
}

/// Reads a control file that is a JSON object.
pub(super) fn read_json(mountpoint: &Path, name: &str) -> Result<Value, Failure> {
    let text = read_control(mountpoint, name)?;
    let unreadable = |error| format!("{}: .swapfs/{name}: {error}", mountpoint.display());
    Ok(serde_json::from_str(&text).map_err(unreadable)?)
}

/// A count of the pool's buffers, by the attribute of the mount's root.
pub(super) fn pool_count(root: &Path, name: &str) -> Option<u64> {
    let name = format!("user.swap.pool.{name}");
    text_xattr(root, &name).ok()??.trim().parse().ok()
}

/// `stats.json` at one moment.
#[derive(Debug, Clone)]
pub(super) struct Sample {
    pub(super) at: Instant,
    pub(super) stats: Value,
}

/// What happened in a second, in the mean of the time between two samples.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(super) struct Rates {
    /// Between the samples.
    pub(super) seconds: f64,
    pub(super) read_bytes: f64,
    pub(super) written_bytes: f64,
    pub(super) requests: f64,
    #[serde(skip)]
    pub(super) errors: f64,
    #[serde(rename = "buffer_waits")]
    pub(super) waits: f64,
    pub(super) device_read_bytes: f64,
    pub(super) device_written_bytes: f64,
    /// Share of the reads that were answered from the pool alone; `None` without reads.
    #[serde(rename = "hit_ratio")]
    pub(super) hits: Option<f64>,
    /// What a read or write took in the mean; `None` without any.
    #[serde(rename = "read_latency")]
    pub(super) read_seconds: Option<f64>,
    #[serde(rename = "write_latency")]
    pub(super) write_seconds: Option<f64>,
}

impl Sample {
    pub(super) fn take(mountpoint: &Path) -> Result<Self, Failure> {
        let stats = read_json(mountpoint, "stats.json")?;
        Ok(Self { at: Instant::now(), stats })
    }

    /// A number of the statistics by its pointer; 0 where there is none.
    pub(super) fn count(&self, pointer: &str) -> u64 {
        self.stats.pointer(pointer).and_then(Value::as_u64).unwrap_or(0)
    }

    fn seconds(&self, pointer: &str) -> f64 {
        self.stats.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0)
    }

    /// What changed since an earlier sample. After a remount, which counts from nothing again, there is nothing.
    pub(super) fn since(&self, before: &Sample) -> Rates {
        let seconds = self.at.duration_since(before.at).as_secs_f64().max(1e-3);
        let new = |pointer: &str| self.count(pointer).saturating_sub(before.count(pointer)) as f64;
        let rate = |pointer: &str| new(pointer) / seconds;
        let (hits, misses) = (new("/cache/read_hits"), new("/cache/read_misses"));
        let mean = |operation: &str| {
            let count = new(&format!("/fuse/operations/{operation}/count"));
            let pointer = format!("/fuse/operations/{operation}/seconds");
            let took = (self.seconds(&pointer) - before.seconds(&pointer)).max(0.0);
            (count > 0.0).then(|| took / count)
        };
        Rates {
            seconds,
            read_bytes: rate("/cache/read_bytes"),
            written_bytes: rate("/cache/written_bytes"),
            requests: rate("/fuse/requests"),
            errors: rate("/fuse/errors"),
            waits: rate("/cache/buffer_waits"),
            device_read_bytes: rate("/aio/read_bytes"),
            device_written_bytes: rate("/aio/written_bytes"),
            hits: (hits + misses > 0.0).then(|| hits / (hits + misses)),
            read_seconds: mean("read"),
            write_seconds: mean("write"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn rates_are_differences_and_a_remount_is_no_negative_rate() {
        let at = Instant::now();
        let sample = |seconds, stats| Sample { at: at + Duration::from_secs(seconds), stats };
        let before = sample(0, json!({"cache": {"read_bytes": 100, "read_hits": 1}}));
        let stats = json!({
            "cache": {"read_bytes": 300, "read_hits": 4, "read_misses": 1},
            "fuse": {"operations": {"read": {"count": 4, "seconds": 0.008}}},
        });
        let now = sample(2, stats);
        let rates = now.since(&before);
        assert_eq!((rates.seconds, rates.read_bytes), (2.0, 100.0));
        assert_eq!((rates.hits, rates.read_seconds), (Some(0.75), Some(0.002)));
        assert_eq!(rates.write_seconds, None);
        let remounted = sample(4, json!({"cache": {"read_bytes": 5}})).since(&now);
        assert_eq!((remounted.read_bytes, remounted.hits), (0.0, None));
    }

    #[test]
    fn times_are_limited() {
        assert_eq!(parse_seconds("0.5"), Ok(Duration::from_millis(500)));
        for bad in ["0", "-1", "nan", "x", "1e9", "inf"] {
            assert!(parse_seconds(bad).is_err(), "{bad}");
        }
    }
}
