//! `stats.json` as Prometheus text: every number becomes `swapfs_<object>_<key>`, and times become histograms.

use serde_json::Value;

use super::Volume;
use crate::metrics::OperationCounts;
use crate::metrics::text::{Kind, Label, Text};

/// Keys whose values go up and down; all other numbers only grow.
const GAUGES: [&str; 18] = [
    "names",
    "buffers",
    "available",
    "free",
    "trays",
    "reserved",
    "dirty",
    "inflight",
    "buffer_size",
    "known",
    "resting",
    "handles",
    "failed",
    "stalled",
    "batch_max",
    "inflight_max",
    "registered_buffers",
    "registered_files",
];

/// What is said of a number, where its name does not say it all.
const HELP: [(&str, &str); 46] = [
    ("pool_buffers", "Buffers of the pool."),
    ("pool_available", "Buffers that are free, or clean and can be dropped."),
    ("pool_free", "Buffers that hold nothing."),
    ("pool_trays", "Buffers cut into slots for small partitions."),
    ("pool_reserved", "Buffers out of circulation."),
    ("pool_dirty", "Buffers with bytes newer than the swap folder."),
    ("pool_inflight", "Buffers under transfer."),
    ("pool_buffer_size", "Bytes of one buffer."),
    ("aio_submit_calls", "Calls that handed transfers to the kernel."),
    ("aio_submitted", "Transfers handed to the kernel."),
    ("aio_batch_max", "Most transfers handed over by one call."),
    ("aio_inflight_max", "Most transfers under way at once, on one thread."),
    ("aio_completed", "Transfers completed, errors included."),
    ("aio_failed", "Transfers completed with an error."),
    ("aio_reads", "Reads completed."),
    ("aio_writes", "Writes completed."),
    ("aio_syncs", "Syncs completed."),
    ("aio_registered_buffers", "Whether the pool's memory is registered with the ring."),
    ("aio_registered_files", "Whether backing files are registered with the ring."),
    ("cache_moves", "Blocks of small partitions copied to another place."),
    ("cache_read_ahead_bytes", "Bytes asked for ahead of readers."),
    ("fuse_reads", "Reads answered."),
    ("fuse_writes", "Writes answered."),
    ("fuse_errors", "Requests answered with an error."),
    ("partitions_resting", "Small partitions that are known by their bytes alone."),
    ("partitions_dirty", "Partitions with bytes newer than the swap folder."),
    ("partitions_inflight", "Partitions under transfer, or queued for it."),
    ("aio_read_bytes", "Bytes read from the swap folder."),
    ("aio_written_bytes", "Bytes written to the swap folder."),
    ("cache_read_hits", "Reads answered wholly from the pool."),
    ("cache_read_misses", "Reads that waited for a transfer."),
    ("cache_read_bytes", "Bytes that clients have read."),
    ("cache_written_bytes", "Bytes that clients have written."),
    ("cache_evictions", "Blocks dropped to make room."),
    ("cache_buffer_waits", "Operations that had to wait for a buffer."),
    ("cache_edge_fills", "Pages completed by a read before they could be written or read."),
    ("cache_errors", "Failed transfers."),
    ("fuse_requests", "Requests answered."),
    ("fuse_names", "Names that the kernel remembers, by inode."),
    ("partitions_known", "Partitions that are open, resident or under transfer."),
    ("partitions_handles", "Open handles."),
    ("log_lines", "Lines of the daemon's log."),
    ("log_left_out", "Lines left out of the log because there were too many of their kind."),
    ("log_dropped", "Lines that the log file did not take."),
    ("log_rotations", "How often the log file was set aside for a new one."),
    ("partitions_failed", "Partitions with a transfer error that is not mended."),
];

/// The family of a number: base units, and `_total` for what only grows.
fn family(text: &mut Text, object: &str, key: &str, value: &str) {
    let gauge = GAUGES.contains(&key) && !(object == "aio" && key == "failed");
    let plain = format!("{object}_{key}");
    let help = HELP.iter().find(|(name, _)| *name == plain);
    let help = help.map_or_else(
        || format!("{} of the {object}.", key.replace('_', " ")),
        |(_, help)| (*help).to_owned(),
    );
    let unit = if key == "buffer_size" { "_bytes" } else { "" };
    let (name, kind) = match gauge {
        true => (format!("swapfs_{plain}{unit}"), Kind::Gauge),
        false => (format!("swapfs_{plain}{unit}_total"), Kind::Counter),
    };
    text.family(&name, &help, kind).sample(&[], value);
}

/// The numbers of `stats`.
fn numbers(text: &mut Text, stats: &Value) {
    let version = stats["mount"]["version"].as_str().unwrap_or_default();
    text.family("swapfs_build_info", "The running version.", Kind::Gauge)
        .sample(&[("version", version)], 1);
    for object in ["pool", "aio", "cache", "checksum", "fuse", "partitions", "log"] {
        for (key, value) in stats[object].as_object().into_iter().flatten() {
            match value {
                Value::Number(number) => family(text, object, key, &number.to_string()),
                Value::Bool(on) => family(text, object, key, if *on { "1" } else { "0" }),
                _ => {}
            }
        }
    }
}

/// Counts and times of the requests, by operation; times only of what has happened.
fn operations(text: &mut Text, counts: &[OperationCounts]) {
    let name = "swapfs_fuse_operations_total";
    text.family(name, "Requests answered, by operation.", Kind::Counter);
    for count in counts {
        text.sample(&[("operation", count.operation.name())], count.answered);
    }
    let name = "swapfs_fuse_operation_errors_total";
    text.family(name, "Requests answered with an error.", Kind::Counter);
    for count in counts {
        text.sample(&[("operation", count.operation.name())], count.errors);
    }
    let name = "swapfs_fuse_operation_seconds";
    let help = "From when a request was read until its answer was written.";
    text.family(name, help, Kind::Histogram);
    for count in counts.iter().filter(|count| count.answered > 0) {
        text.histogram(&[("operation", count.operation.name())], &count.times);
    }
}

impl Volume {
    /// The metrics as Prometheus text. Every sample gets the `labels`; with `names`, traffic is told by the
    /// directories of the root.
    #[must_use]
    pub fn metrics(&self, labels: &[Label<'_>], names: bool) -> String {
        let mut text = Text::new(labels);
        numbers(&mut text, &self.stats());
        let counts: Vec<OperationCounts> = self.watch.requests.counts().collect();
        operations(&mut text, &counts);
        let times = self.engine.times();
        let help = "From when a transfer was asked for until it was done, queues included.";
        text.family("swapfs_aio_transfer_seconds", help, Kind::Histogram);
        for (action, times) in
            [("read", &times.reads), ("write", &times.writes), ("sync", &times.syncs)]
        {
            text.histogram(&[("action", action)], times);
        }
        let help = "Waits for a buffer, of operations that had to.";
        text.family("swapfs_pool_wait_seconds", help, Kind::Histogram);
        text.histogram(&[], &times.waits);
        if let Some(wear) = self.wear() {
            let (total, today) = wear.total_and_today();
            let help =
                "Bytes written to the swap folder since swapfs has known it, over all mounts.";
            text.family("swapfs_wear_written_bytes_total", help, Kind::Counter).sample(&[], total);
            let help = "Bytes written to the swap folder today (UTC).";
            text.family("swapfs_wear_written_today_bytes", help, Kind::Gauge).sample(&[], today);
        }
        let access = &self.watch.access;
        let help = "Readers of the access log.";
        text.family("swapfs_accesslog_readers", help, Kind::Gauge).sample(&[], access.readers());
        let help = "Lines of the access log left out because a reader was too slow.";
        text.family("swapfs_accesslog_dropped_total", help, Kind::Counter)
            .sample(&[], access.dropped());
        if names {
            self.directories(&mut text);
        }
        text.finish()
    }

    fn directories(&self, text: &mut Text) {
        let groups = self.engine.groups();
        let names = self.directories.names();
        let lines: Vec<_> = names.iter().zip(&groups).collect();
        let help = "Bytes that clients have read, by directory in the root; / is the root itself.";
        text.family("swapfs_directory_read_bytes_total", help, Kind::Counter);
        for (name, traffic) in &lines {
            text.sample(&[("directory", name)], traffic.read_bytes);
        }
        let help = "Bytes that clients have written, by directory in the root.";
        text.family("swapfs_directory_written_bytes_total", help, Kind::Counter);
        for (name, traffic) in &lines {
            text.sample(&[("directory", name)], traffic.written_bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_flags_become_metrics_and_names_do_not() {
        let stats = serde_json::json!({
            "mount": {"version": "1.2.3", "pid": 7},
            "pool": {"buffers": 4, "buffer_size": 1048576, "wait": {"count": 1}},
            "aio": {"engine": "io_uring", "submitted": 9, "failed": 1, "registered_files": true},
        });
        let mut text = Text::default();
        numbers(&mut text, &stats);
        let text = text.finish();
        assert!(text.contains("swapfs_pool_buffers 4\n"));
        assert!(text.contains("swapfs_pool_buffer_size_bytes 1048576\n"));
        assert!(
            text.contains("# TYPE swapfs_aio_failed_total counter\nswapfs_aio_failed_total 1\n")
        );
        assert!(text.contains("swapfs_aio_registered_files 1\n"));
        assert!(!text.contains("io_uring") && !text.contains("swapfs_pool_wait"));
        assert!(text.contains("swapfs_build_info{version=\"1.2.3\"} 1\n"));
    }
}
