//! The table of swapfs's own mount options, and how one value of each kind is read and printed.

use std::fmt;
use std::net::SocketAddr;

use serde_json::json;

use super::json::whole;
use crate::units::{EXAMPLES, KIB, MIB, TIB, format_exact, parse_size};

/// What values an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Bytes, with units, within the limits.
    Size {
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
        /// Only powers of two.
        power_of_two: bool,
    },
    /// A whole number within the limits.
    Count {
        /// Smallest.
        min: u32,
        /// Largest.
        max: u32,
    },
    /// On or off.
    Switch,
    /// One of these words.
    Choice(&'static [&'static str]),
    /// Where to listen: a port of this machine's own, or an address with a port; or `off`.
    Address,
    /// An absolute path; or `off`.
    Path,
    /// A log filter: a level, or `module=level` parts with commas between.
    LogFilter,
}

/// One mount option: everything there is to say about it.
#[derive(Debug, Clone, Copy)]
pub struct OptionDefinition {
    /// The name in `-o`, in the file under `swapfs`, and (with `-` for `_`) as a flag.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The built-in value; empty where it is computed from others.
    pub default: &'static str,
    /// One line for `--help`.
    pub help: &'static str,
    /// Its names inside the file's `aio` block; of several the last one given there counts.
    pub aio_keys: &'static [&'static str],
}

/// Upper limit of any size, so that sums of sizes stay far from overflow.
pub(super) const SIZE_MAX: u64 = 64 * TIB;

/// The value that turns an address or a path off.
const OFF: &str = "off";

const fn size(min: u64, max: u64) -> Kind {
    Kind::Size { min, max, power_of_two: false }
}

const fn option(
    name: &'static str, kind: Kind, default: &'static str, help: &'static str,
) -> OptionDefinition {
    OptionDefinition { name, kind, default, help, aio_keys: &[] }
}

impl OptionDefinition {
    const fn in_aio(mut self, keys: &'static [&'static str]) -> Self {
        self.aio_keys = keys;
        self
    }
}

/// Every mount option of swapfs.
pub const OPTIONS: [OptionDefinition; 23] = [
    option("pool_size", size(KIB, SIZE_MAX), "1 GiB", "Bytes of the buffer pool"),
    option(
        "block_size",
        Kind::Size { min: 64 * KIB, max: 16 * MIB, power_of_two: true },
        "1 MiB",
        "Bytes per block and buffer, a power of two from 64 KiB to 16 MiB",
    )
    .in_aio(&["block_size"]),
    option(
        "queue_depth",
        Kind::Count { min: 1, max: 4096 },
        "8",
        "Transfers in flight per aio thread",
    )
    .in_aio(&["queue_depth"]),
    option("thread_count", Kind::Count { min: 1, max: 64 }, "1", "Aio threads")
        // DeepSpeed's first name for it, its tuner's, and the one it reads now.
        .in_aio(&["thread_count", "num_threads", "intra_op_parallelism"]),
    option("single_submit", Kind::Switch, "false", "One submission per call")
        .in_aio(&["single_submit"]),
    option("overlap_events", Kind::Switch, "true", "Reap completions while submitting")
        .in_aio(&["overlap_events"]),
    option(
        "min_swap_size",
        size(0, SIZE_MAX),
        "1 MiB",
        "Smaller partitions stay resident while the pool has room",
    ),
    option("pin_memory", Kind::Switch, "true", "Lock the pool in memory"),
    option("fuse_threads", Kind::Count { min: 1, max: 64 }, "4", "FUSE request threads"),
    option(
        "read_ahead",
        size(0, SIZE_MAX),
        "",
        "Bytes kept in flight ahead of a sequential reader \
         [default: queue_depth x block_size, at most an eighth of the pool]",
    ),
    option(
        "open_swap_in",
        Kind::Choice(&["none", "ahead", "all"]),
        "ahead",
        "What opening for reading starts: nothing, the first read_ahead bytes, or all",
    ),
    option(
        "checksum",
        Kind::Choice(&["crc32c", "writes", "none"]),
        "writes",
        "A checksum for each 4 KiB, verified on every swap-in; writes: only what is being written is recorded, and torn after a crash",
    ),
    option(
        "list_xattr",
        Kind::Switch,
        "off",
        "List the user.swap.* names, for getfattr -d: copies then take them along",
    ),
    option("allow_other", Kind::Switch, "off", "Let other users use the mount"),
    option("ro", Kind::Switch, "off", "Mount read-only"),
    option(
        "close_wait",
        Kind::Switch,
        "off",
        "close(2) waits until the partition is written to the swap folder",
    ),
    option(
        "metrics_listen",
        Kind::Address,
        OFF,
        "Show the metrics over HTTP at PORT of this machine's own, or at ADDRESS:PORT",
    ),
    option(
        "metrics_public",
        Kind::Switch,
        "off",
        "Let metrics_listen take an address that others can reach",
    ),
    option(
        "metrics_file",
        Kind::Path,
        OFF,
        "Write the metrics to this file every 15 s, for node_exporter's textfile collector",
    ),
    option(
        "stall_timeout",
        Kind::Count { min: 0, max: 86_400 },
        "30",
        "Seconds without an answer of the device after which a transfer counts as stalled; 0: never",
    ),
    option(
        "keep_awake",
        Kind::Switch,
        "on",
        "Keep idle processors awake while a client makes one small call after the other",
    ),
    option(
        "sandbox",
        Kind::Choice(&["full", "none"]),
        "full",
        "Once mounted, give up all rights, files and system calls that serving does not take; none: keep them",
    ),
    option(
        "log",
        Kind::LogFilter,
        "info",
        "Log filter: off, error, warn, info, debug, trace, or module=level,...",
    ),
];

/// The option of that name.
pub(super) fn find(name: &str) -> Option<&'static OptionDefinition> {
    OPTIONS.iter().find(|option| option.name == name)
}

/// A checked value of one option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Bytes.
    Size(u64),
    /// A number.
    Count(u32),
    /// On or off.
    Switch(bool),
    /// A word or filter.
    Text(String),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Size(bytes) => f.write_str(&format_exact(*bytes)),
            Value::Count(count) => write!(f, "{count}"),
            Value::Switch(on) => f.write_str(if *on { "on" } else { "off" }),
            Value::Text(text) => f.write_str(text),
        }
    }
}

impl Value {
    /// The value as JSON; sizes as a number of bytes.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Value::Size(bytes) => json!(bytes),
            Value::Count(count) => json!(count),
            Value::Switch(on) => json!(on),
            Value::Text(text) => json!(text),
        }
    }

    /// The value as JSON for people to edit; sizes with their unit.
    pub(super) fn to_template(&self) -> serde_json::Value {
        match self {
            Value::Size(bytes) => json!(format_exact(*bytes)),
            other => other.to_json(),
        }
    }
}

/// The value of an option as text, of what a mount shows as JSON; as it is where this version has no such option.
#[must_use]
pub(crate) fn shown_value(name: &str, json: &serde_json::Value) -> String {
    match (find(name).and_then(|option| option.kind.parse_json(json)), json) {
        (Some(value), _) => value.to_string(),
        (None, serde_json::Value::String(text)) => text.clone(),
        (None, other) => other.to_string(),
    }
}

/// Reads `on`, `off` and their common synonyms.
#[must_use]
pub(crate) fn parse_switch(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

/// Whether a file may write a switch so.
fn is_switch_word(text: &str) -> bool {
    let words = ["on", "off", "true", "false"];
    words.iter().any(|word| text.eq_ignore_ascii_case(word))
}

impl Kind {
    /// What can be given, for error messages: "a size from …".
    #[must_use]
    pub fn accepted(&self) -> String {
        match *self {
            Kind::Size { min, max, power_of_two } => {
                let what = if power_of_two { "a power of two" } else { "a size" };
                let (min, max) = (format_exact(min), format_exact(max));
                format!("{what} from {min} to {max} ({EXAMPLES})")
            }
            Kind::Count { min, max } => format!("a whole number from {min} to {max}"),
            Kind::Switch => "on, off, true or false".to_owned(),
            Kind::Choice(words) => format!("one of {}", words.join(", ")),
            Kind::Address => "off, PORT, or ADDRESS:PORT with the address in numbers".to_owned(),
            Kind::Path => "off, or an absolute path".to_owned(),
            Kind::LogFilter => {
                "off, error, warn, info, debug, trace, or module=level parts".to_owned()
            }
        }
    }

    /// Reads a value from the text of a flag or of `-o`; `None` when it is not accepted.
    #[must_use]
    pub fn parse_text(&self, text: &str) -> Option<Value> {
        match *self {
            Kind::Size { .. } => self.limit_size(parse_size(text)?),
            Kind::Count { .. } => self.limit_count(text.trim().parse().ok()?),
            Kind::Switch => parse_switch(text).map(Value::Switch),
            Kind::Choice(words) => words.contains(&text).then(|| Value::Text(text.to_owned())),
            Kind::Address => parse_address(text).map(|_| Value::Text(text.to_owned())),
            Kind::Path => {
                (text == OFF || text.starts_with('/')).then(|| Value::Text(text.to_owned()))
            }
            Kind::LogFilter => is_log_filter(text).then(|| Value::Text(text.to_owned())),
        }
    }

    /// Reads a value from the configuration file; `None` when type or value are not accepted.
    #[must_use]
    pub fn parse_json(&self, value: &serde_json::Value) -> Option<Value> {
        use serde_json::Value as Json;
        match (self, value) {
            (Kind::Size { .. }, Json::Number(number)) => self.limit_size(whole(number)?),
            (Kind::Count { .. }, Json::Number(number)) => self.limit_count(whole(number)?),
            (Kind::Switch, Json::Bool(on)) => Some(Value::Switch(*on)),
            (Kind::Switch, Json::Number(number)) => match whole(number)? {
                0 => Some(Value::Switch(false)),
                1 => Some(Value::Switch(true)),
                _ => None,
            },
            // DeepSpeed's tuner writes its switches as words.
            (Kind::Switch, Json::String(text)) if is_switch_word(text) => self.parse_text(text),
            (Kind::Switch, _) => None,
            (Kind::Address, Json::Number(number)) => self.parse_text(&number.to_string()),
            (_, Json::String(text)) => self.parse_text(text),
            _ => None,
        }
    }

    /// The value nearest to a number that is out of bounds; `None` for what is no number of anything.
    pub(super) fn nearest_json(&self, value: &serde_json::Value) -> Option<Value> {
        let number = whole(value.as_number()?).filter(|number| *number > 0)?;
        match *self {
            Kind::Size { min, max, power_of_two } => {
                let bytes = number.clamp(min, max);
                Some(Value::Size(if power_of_two { 1 << bytes.ilog2() } else { bytes }))
            }
            Kind::Count { min, max } => {
                let count = number.clamp(min.into(), max.into());
                u32::try_from(count).ok().map(Value::Count)
            }
            _ => None,
        }
    }

    fn limit_size(&self, bytes: u64) -> Option<Value> {
        let Kind::Size { min, max, power_of_two } = *self else {
            return None;
        };
        let fits = (min..=max).contains(&bytes) && (!power_of_two || bytes.is_power_of_two());
        fits.then_some(Value::Size(bytes))
    }

    fn limit_count(&self, count: u64) -> Option<Value> {
        let Kind::Count { min, max } = *self else {
            return None;
        };
        let count = u32::try_from(count).ok()?;
        (min..=max).contains(&count).then_some(Value::Count(count))
    }
}

/// Where to listen; `Some(None)` for nowhere. A port alone is one of this machine's own.
pub(super) fn parse_address(text: &str) -> Option<Option<SocketAddr>> {
    if text == OFF {
        return Some(None);
    }
    let own = text.parse().map(|port: u16| SocketAddr::from(([127, 0, 0, 1], port)));
    own.or_else(|_| text.parse()).ok().map(Some)
}

fn is_log_filter(text: &str) -> bool {
    let is_level = |word: &str| word.parse::<log::LevelFilter>().is_ok();
    !text.is_empty()
        && text.split(',').all(|part| match part.split_once('=') {
            Some((module, level)) => !module.is_empty() && is_level(level),
            None => is_level(part),
        })
}
