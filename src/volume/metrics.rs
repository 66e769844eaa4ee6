//! `stats.json` as Prometheus text: every number becomes `swapfs_<object>_<key>`.

use std::fmt::Write;

use serde_json::Value;

/// Keys whose values go up and down; all other numbers only grow.
const GAUGES: [&str; 16] = [
    "buffers",
    "available",
    "trays",
    "reserved",
    "dirty",
    "inflight",
    "buffer_size",
    "known",
    "resting",
    "handles",
    "failed",
    "batch_max",
    "inflight_max",
    "registered_buffers",
    "registered_files",
    "pid",
];

/// The name a value goes by: base units, and `_total` for what only grows.
fn name_of(object: &str, key: &str) -> (String, &'static str) {
    let gauge = GAUGES.contains(&key) && !(object == "aio" && key == "failed");
    let key = if key == "buffer_size" { "buffer_size_bytes" } else { key };
    if gauge {
        (format!("swapfs_{object}_{key}"), "gauge")
    } else {
        (format!("swapfs_{object}_{key}_total"), "counter")
    }
}

/// The text for the objects of `stats`.
pub(super) fn text(stats: &Value) -> String {
    let mut out = String::new();
    let version = stats["mount"]["version"].as_str().unwrap_or_default();
    out.push_str("# HELP swapfs_build_info The running version.\n# TYPE swapfs_build_info gauge\n");
    let _ = writeln!(out, "swapfs_build_info{{version=\"{version}\"}} 1");
    for object in ["pool", "aio", "cache", "fuse", "partitions"] {
        let Some(values) = stats[object].as_object() else {
            continue;
        };
        for (key, value) in values {
            let number = match value {
                Value::Number(number) => number.to_string(),
                Value::Bool(on) => u8::from(*on).to_string(),
                _ => continue,
            };
            let (name, kind) = name_of(object, key);
            let _ = writeln!(out, "# HELP {name} {} of the {object}.", key.replace('_', " "));
            let _ = writeln!(out, "# TYPE {name} {kind}\n{name} {number}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_flags_become_metrics_and_names_do_not() {
        let stats = serde_json::json!({
            "mount": {"version": "1.2.3", "pid": 7},
            "pool": {"buffers": 4, "buffer_size": 1048576},
            "aio": {"engine": "io_uring", "submitted": 9, "failed": 1, "registered_files": true},
        });
        let text = text(&stats);
        assert!(text.contains("swapfs_pool_buffers 4\n"));
        assert!(text.contains("swapfs_pool_buffer_size_bytes 1048576\n"));
        assert!(
            text.contains("# TYPE swapfs_aio_failed_total counter\nswapfs_aio_failed_total 1\n")
        );
        assert!(text.contains("swapfs_aio_registered_files 1\n"));
        assert!(!text.contains("io_uring"));
        assert!(text.contains("swapfs_build_info{version=\"1.2.3\"} 1\n"));
    }
}
