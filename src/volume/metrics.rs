//! The metrics of a mount: one table, which `stats.json`, Prometheus' text and the manual follow.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use serde_json::{Map, Value as Json};

use super::Volume;
use crate::aio::device::DeviceStats;
use crate::engine::{CacheStats, PartitionCounts, PoolInfo, Times, Traffic};
use crate::ledger::LedgerStats;
use crate::metrics::lines::LINES;
use crate::metrics::text::{Label, Text};
use crate::metrics::{
    AccessLog, Kind, MetricDefinition, Operation, OperationCounts, Reading, Unit, Wear,
};

/// What the metrics are read from, all taken at one moment. A part is `None` where the mount does not have it.
#[derive(Debug)]
pub(super) struct Sources {
    pool: Option<PoolInfo>,
    aio: Option<DeviceStats>,
    cache: Option<CacheStats>,
    checksum: Option<LedgerStats>,
    partitions: Option<PartitionCounts>,
    /// Bytes written to the swap folder in all, and today.
    wear: Option<(u64, u64)>,
    access: Arc<AccessLog>,
    names: usize,
    times: Times,
    operations: Vec<OperationCounts>,
    /// By directory in the root; `None` where their names are not shown.
    directories: Option<Vec<(String, Traffic)>>,
}

/// Reads a metric; `None` where the mount does not have it.
type Read = fn(&Sources) -> Option<Reading>;

/// Makes the table. A row is `KIND UNIT object.measure`; `as` and its key in `stats.json` where that is not the measure,
/// empty where it is not there; `by` and its label; its help; and how it is read, where that is not the field of its
/// name in the [`Sources`].
macro_rules! metrics {
    ($($kind:ident $unit:ident $object:ident.$measure:ident $(as $key:literal)? $(by $label:literal)?
       : $help:literal $(= $read:expr)?;)*) => {
        &[$((
            MetricDefinition {
                kind: Kind::$kind,
                unit: Unit::$unit,
                object: stringify!($object),
                measure: stringify!($measure),
                key: metrics!(@or stringify!($measure) $(, $key)?),
                label: metrics!(@or "" $(, $label)?),
                help: $help,
            },
            metrics!(@or |sources| Some(sources.$object.as_ref()?.$measure.into()) $(, $read)?),
        )),*]
    };
    (@or $usual:expr) => { $usual };
    (@or $usual:expr, $given:expr) => { $given };
}

static METRICS: &[(MetricDefinition, Read)] = metrics! {
    Gauge Count build.info by "version": "The running version."
        = |_| Some(Reading::By(vec![(env!("CARGO_PKG_VERSION").to_owned(), Reading::Number(1))]));
    Gauge Count pool.buffers: "Buffers of the pool.";
    Gauge Count pool.available: "Buffers that are free, or clean and can be dropped.";
    Gauge Count pool.free: "Buffers that hold nothing.";
    Gauge Count pool.trays: "Buffers cut into slots for small partitions.";
    Gauge Count pool.reserved: "Buffers that are reserved on request, or lent out as plain memory.";
    Gauge Count pool.dirty: "Buffers with bytes newer than the swap folder.";
    Gauge Count pool.inflight: "Buffers under transfer.";
    Gauge Bytes pool.buffer_size: "Size of one buffer.";
    Histogram Seconds pool.wait: "Time that operations waited for a buffer, of those that had to wait."
        = |sources| Some(Reading::Times(sources.times.waits));
    Counter Count aio.submit_calls: "Calls that handed transfers to the kernel.";
    Counter Count aio.submitted: "Transfers handed to the kernel.";
    Gauge Count aio.batch_max: "Most transfers handed over by one call.";
    Gauge Count aio.inflight_max: "Most transfers under way at once, on one thread.";
    Counter Count aio.completed: "Transfers completed, errors included.";
    Counter Count aio.failed: "Transfers completed with an error.";
    Counter Count aio.reads: "Reads completed.";
    Counter Bytes aio.read_bytes: "Bytes read from the swap folder.";
    Counter Count aio.writes: "Writes completed.";
    Counter Bytes aio.written_bytes: "Bytes written to the swap folder.";
    Counter Count aio.syncs: "Syncs completed.";
    Gauge Flag aio.registered_buffers: "Whether the pool's memory is registered with the ring.";
    Gauge Flag aio.registered_files: "Whether backing files are registered with the ring.";
    Histogram Seconds aio.transfer as "latency" by "action":
        "From when a transfer was asked for until it was done, queues included."
        = |sources| Some(Reading::By(sources.transfers()));
    Counter Count cache.read_hits: "Reads answered wholly from the pool.";
    Counter Count cache.read_misses: "Reads that waited for a transfer.";
    Counter Bytes cache.read_bytes: "Bytes that clients have read.";
    Counter Bytes cache.written_bytes: "Bytes that clients have written.";
    Counter Count cache.evictions: "Blocks dropped to make room.";
    Counter Count cache.moves: "Blocks of small partitions copied to another place.";
    Counter Bytes cache.read_ahead_bytes: "Bytes asked for ahead of readers.";
    Counter Count cache.buffer_waits: "Operations that had to wait for a buffer.";
    Counter Count cache.edge_fills: "Pages completed by a read before they could be written or read.";
    Counter Count cache.errors: "Failed transfers.";
    Counter Count checksum.verified_pages: "Pages of 4 KiB that were read and looked up.";
    Counter Count checksum.written_pages: "Pages of 4 KiB that were written and recorded.";
    Counter Count checksum.mismatches: "Reads that did not match their checksums.";
    Counter Count checksum.torn: "Reads of a page whose write was interrupted.";
    Counter Count checksum.dropped: "Partitions whose checksums were dropped because others had changed them.";
    Counter Count fuse.requests: "Requests answered."
        = |sources| sources.total(|count| count.answered);
    Counter Count fuse.reads: "Reads answered."
        = |sources| sources.answered(Operation::READ);
    Counter Count fuse.writes: "Writes answered."
        = |sources| sources.answered(Operation::WRITE);
    Counter Count fuse.errors: "Requests answered with an error."
        = |sources| sources.total(|count| count.errors);
    Gauge Count fuse.names: "Names that the kernel remembers, by inode."
        = |sources| Some((sources.names as u64).into());
    Counter Count fuse.operations as "" by "operation": "Requests answered, by operation."
        = |sources| sources.by_operation(|_| true, |count| Reading::Number(count.answered));
    Counter Count fuse.operation_errors as "" by "operation": "Requests answered with an error, by operation."
        = |sources| sources.by_operation(|_| true, |count| Reading::Number(count.errors));
    Histogram Seconds fuse.operation as "" by "operation":
        "From when a request was read until its answer was written, of operations that have happened."
        = |sources| sources.by_operation(OperationCounts::happened, |count| Reading::Times(count.times));
    Gauge Count partitions.known: "Partitions that are open, resident or under transfer.";
    Gauge Count partitions.resting: "Small partitions that are whole in the pool and not open; they hold no descriptor.";
    Gauge Count partitions.handles: "Open handles.";
    Gauge Count partitions.dirty: "Partitions with bytes newer than the swap folder.";
    Gauge Count partitions.inflight: "Partitions under transfer, or queued for it.";
    Gauge Count partitions.failed: "Partitions with a transfer error that is not mended.";
    Gauge Count partitions.stalled: "Partitions with a transfer that the device does not answer.";
    Counter Count log.lines: "Lines of the daemon's log."
        = |_| Some(LINES.lines.load(Relaxed).into());
    Counter Count log.left_out: "Lines left out of the log because there were too many of their kind."
        = |_| Some(LINES.left_out.load(Relaxed).into());
    Counter Count log.dropped: "Lines that the log file did not take."
        = |_| Some(LINES.dropped.load(Relaxed).into());
    Counter Count log.rotations: "How often the log file was set aside for a new one."
        = |_| Some(LINES.rotations.load(Relaxed).into());
    Counter Bytes wear.written_bytes: "Bytes written to the swap folder since swapfs has known it, over all mounts."
        = |sources| Some(sources.wear?.0.into());
    Gauge Bytes wear.written_today as "today_bytes": "Bytes written to the swap folder today (UTC)."
        = |sources| Some(sources.wear?.1.into());
    Gauge Count accesslog.readers: "Readers of the access log."
        = |sources| Some((sources.access.readers() as u64).into());
    Counter Count accesslog.dropped: "Lines of the access log left out because a reader was too slow."
        = |sources| Some(sources.access.dropped().into());
    Counter Bytes directory.read_bytes by "directory":
        "Bytes that clients have read, by directory in the root; / is the root itself."
        = |sources| sources.by_directory(|traffic| traffic.read_bytes);
    Counter Bytes directory.written_bytes by "directory": "Bytes that clients have written, by directory in the root."
        = |sources| sources.by_directory(|traffic| traffic.written_bytes);
};

/// What is said of every metric, in the order of Prometheus' text.
pub fn metric_definitions() -> impl Iterator<Item = &'static MetricDefinition> {
    METRICS.iter().map(|(definition, _)| definition)
}

impl Sources {
    /// Takes all readings of `volume`; those by directory only with `names`.
    pub(super) fn take(volume: &Volume, names: bool) -> Self {
        let engine = &volume.engine;
        Self {
            pool: Some(engine.pool()),
            aio: Some(engine.device_stats()),
            cache: Some(engine.cache_stats()),
            checksum: volume.ledger.as_ref().map(|ledger| ledger.stats()),
            partitions: Some(engine.partitions()),
            wear: volume.wear().map(Wear::total_and_today),
            access: volume.watch.access.clone(),
            names: volume.tree.known_count(),
            times: engine.times(),
            operations: volume.watch.requests.counts().collect(),
            directories: names
                .then(|| volume.directories.names().into_iter().zip(engine.groups()).collect()),
        }
    }

    fn total(&self, count: fn(&OperationCounts) -> u64) -> Option<Reading> {
        Some(self.operations.iter().map(count).sum::<u64>().into())
    }

    fn answered(&self, operation: Operation) -> Option<Reading> {
        let mut counts = self.operations.iter().filter(|count| count.operation == operation);
        Some(counts.next()?.answered.into())
    }

    fn transfers(&self) -> Vec<(String, Reading)> {
        let Times { reads, writes, syncs, .. } = self.times;
        let named = [("read", reads), ("write", writes), ("sync", syncs)];
        named.map(|(action, times)| (action.to_owned(), Reading::Times(times))).to_vec()
    }

    fn by_operation(
        &self, is_shown: fn(&OperationCounts) -> bool, read: fn(&OperationCounts) -> Reading,
    ) -> Option<Reading> {
        let shown = self.operations.iter().filter(|count| is_shown(count));
        let named = shown.map(|count| (count.operation.name().to_owned(), read(count)));
        Some(Reading::By(named.collect()))
    }

    fn by_directory(&self, read: fn(&Traffic) -> u64) -> Option<Reading> {
        let named = self.directories.as_ref()?.iter();
        Some(Reading::By(
            named.map(|(name, traffic)| (name.clone(), Reading::Number(read(traffic)))).collect(),
        ))
    }

    /// An object of `stats.json`: a key whose value is a word, where it has one, and the metrics; null when the mount
    /// does not have that part.
    pub(super) fn object(&self, name: &str, word: Option<(&str, &str)>) -> Json {
        let mut object = Map::new();
        object.extend(word.map(|(key, word)| (key.to_owned(), word.into())));
        for (definition, read) in METRICS {
            if definition.object == name
                && !definition.key.is_empty()
                && let Some(reading) = read(self)
            {
                object.insert(definition.key.to_owned(), reading.to_json());
            }
        }
        if object.is_empty() { Json::Null } else { object.into() }
    }

    /// The device's kind, and that of the checksums.
    pub(super) fn engine(&self) -> Option<(&'static str, &'static str)> {
        Some(("engine", self.aio.as_ref()?.engine))
    }

    pub(super) fn checksum(&self) -> Option<(&'static str, &'static str)> {
        Some(("kind", self.checksum?.kind))
    }

    /// The operations that have happened, for `stats.json`.
    pub(super) fn operations(&self) -> Json {
        let happened = self.operations.iter().filter(|count| count.happened());
        let shown = happened.map(|count| {
            let mut shown = count.times.to_json();
            shown["count"] = count.answered.into();
            shown["errors"] = count.errors.into();
            (count.operation.name().to_owned(), shown)
        });
        shown.collect()
    }

    /// The metrics as Prometheus text. Every sample gets the `labels`.
    fn text(&self, labels: &[Label<'_>]) -> String {
        let mut text = Text::new(labels);
        for (definition, read) in METRICS {
            if let Some(reading) = read(self) {
                text.metric(definition, &reading);
            }
        }
        text.finish()
    }
}

impl Volume {
    /// The metrics as Prometheus text. Every sample gets the `labels`; with `names`, traffic is told by the
    /// directories of the root.
    #[must_use]
    pub fn metrics(&self, labels: &[Label<'_>], names: bool) -> String {
        Sources::take(self, names).text(labels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_name_and_a_place_are_one_metrics() {
        let names: HashSet<_> = metric_definitions().map(MetricDefinition::name).collect();
        let places = metric_definitions().filter(|definition| !definition.key.is_empty());
        let places: HashSet<_> = places.map(|place| (place.object, place.key)).collect();
        let unplaced = metric_definitions().filter(|definition| definition.key.is_empty());
        assert_eq!(names.len(), METRICS.len());
        assert_eq!(places.len() + unplaced.count(), METRICS.len());
    }

    /// The example's dashboard asks for metrics that exist, and for the rates of counters.
    #[test]
    fn the_dashboard_asks_for_what_there_is() {
        let dashboard: Json =
            serde_json::from_str(include_str!("../../examples/grafana.json")).unwrap();
        let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| {
            panel["targets"].as_array().unwrap().iter().map(|target| target["expr"].as_str())
        });
        let mut asked = 0;
        for expression in targets.map(Option::unwrap) {
            let is_part = |letter: char| letter.is_ascii_alphanumeric() || letter == '_';
            let words = expression.split(|letter| !is_part(letter));
            for word in words.filter(|word| word.starts_with("swapfs_")) {
                let metric = metric_definitions().find(|metric| {
                    let suffix = word.strip_prefix(&metric.name());
                    let is_part = metric.kind == Kind::Histogram
                        && suffix.is_some_and(|end| ["_bucket", "_sum", "_count"].contains(&end));
                    suffix == Some("") || is_part
                });
                let metric = metric.unwrap_or_else(|| panic!("{word} of {expression}"));
                let in_rate = expression.contains("rate(") || expression.contains("increase(");
                assert!(metric.kind != Kind::Counter || in_rate, "{expression} says nothing");
                asked += 1;
            }
        }
        assert!(asked > 20, "{asked}");
    }
}
