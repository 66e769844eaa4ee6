//! The result as JSON: the `aio` block that a mount and DeepSpeed read, and what it was made from.

use serde_json::{Map, Value as Json, json};

use super::{Combination, End, Measured, Outcome, Plan};

/// The key beside `aio`, which mounts and DeepSpeed skip; files with it are the tuner's own.
const KEY: &str = "swapfs_tune";

/// Whether a text is a configuration that [`document`] made.
#[must_use]
pub fn is_document(text: &str) -> bool {
    serde_json::from_str::<Json>(text).is_ok_and(|json| json.get(KEY).is_some())
}

/// DeepSpeed's `aio` block.
#[must_use]
pub fn aio_block(combination: &Combination) -> Json {
    json!({
        "block_size": combination.block_size,
        "queue_depth": combination.queue_depth,
        "intra_op_parallelism": combination.intra_op_parallelism,
        "single_submit": combination.single_submit,
        "overlap_events": combination.overlap_events,
    })
}

/// The best for both as a configuration file, with the figures behind it; `all` adds those of every
/// combination. `None` when nothing was measured.
#[must_use]
pub fn document(plan: &Plan, outcome: &Outcome, all: bool) -> Option<Json> {
    let best = outcome.best(Measured::both)?;
    let mut tune = Map::new();
    let mut put = |key: &str, value: Json| tune.insert(key.to_owned(), value);
    put("version", env!("CARGO_PKG_VERSION").into());
    put("folder", plan.folder.display().to_string().into());
    put("complete", (outcome.end == End::Complete).into());
    put("combinations", outcome.planned.into());
    put("measured", outcome.measured.len().into());
    put("io_size", outcome.io_size.into());
    put("loops", plan.loops.into());
    put("best", speeds(best));
    if plan.read {
        put("best_read", outcome.best(|one| one.read.speed()).map(full).into());
    }
    if plan.write {
        put("best_write", outcome.best(|one| one.write.speed()).map(full).into());
    }
    if all {
        put("results", outcome.measured.iter().map(full).collect());
    }
    Some(json!({ "aio": aio_block(&best.combination), KEY: tune }))
}

/// Bytes per second, of what was measured.
fn speeds(measured: &Measured) -> Json {
    let mut speeds = Map::new();
    for (key, rate) in
        [("read_bytes_per_second", measured.read), ("write_bytes_per_second", measured.write)]
    {
        if rate.bytes > 0 {
            speeds.insert(key.to_owned(), (rate.speed() as u64).into());
        }
    }
    Json::Object(speeds)
}

fn full(measured: &Measured) -> Json {
    let (mut both, figures) = (aio_block(&measured.combination), speeds(measured));
    if let (Some(both), Json::Object(figures)) = (both.as_object_mut(), figures) {
        both.extend(figures);
    }
    both
}
