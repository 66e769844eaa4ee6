//! What can be wrong with a configuration, one line each.

use std::path::PathBuf;

use crate::paths::plain;
use crate::units::format_exact;

/// A configuration that cannot be used; its text names what to change.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value of the wrong type or out of range.
    #[error("{place}: {value} is not accepted; give {accepted}")]
    Value {
        /// The source and the key, as in `-o queue_depth`.
        place: String,
        /// What was given.
        value: String,
        /// What can be given.
        accepted: String,
    },
    /// An `-o` name that is neither swapfs's nor mount(8)'s.
    #[error("-o {name}: no such mount option{}", nearest_hint(.nearest))]
    UnknownOption {
        /// The name as given.
        name: String,
        /// The nearest right name.
        nearest: Option<&'static str>,
    },
    /// `-o remount`.
    #[error(
        "-o remount: the options of a swapfs mount are fixed; unmount it and mount it again with the new \
         ones"
    )]
    Remount,
    /// A key inside `aio` or `swapfs` that means nothing.
    #[error("{}: {section}.{key}: no such key{}", .path.display(), nearest_hint(.nearest))]
    UnknownKey {
        /// The configuration file.
        path: PathBuf,
        /// `aio` or `swapfs`.
        section: &'static str,
        /// The key as given.
        key: String,
        /// The nearest right name.
        nearest: Option<&'static str>,
    },
    /// A file names a file to be replaced, and it is not its reader's own.
    #[error(
        "{}: swapfs.metrics_file: not from a DeepSpeed configuration, nor from a file that others own or may write; give \
         it as -o metrics_file=FILE",
        plain(.path)
    )]
    MetricsFile {
        /// The configuration file.
        path: PathBuf,
    },
    /// A file that cannot be read, or is no JSON object.
    #[error("{}: {reason}", .path.display())]
    File {
        /// The configuration file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// A pool of too few buffers.
    #[error(
        "pool_size: {} holds {} buffers of {} (block_size), at least {buffers_min} are needed; give at least {}",
        format_exact(*.pool_size), .pool_size / .block_size, format_exact(*.block_size),
        format_exact(.block_size * .buffers_min)
    )]
    PoolTooSmall {
        /// Bytes.
        pool_size: u64,
        /// Bytes.
        block_size: u64,
        /// Fewest buffers.
        buffers_min: u64,
    },
}

impl ConfigError {
    /// Whether the command line is wrong, and not a file.
    #[must_use]
    pub fn is_usage(&self) -> bool {
        match self {
            Self::UnknownOption { .. } => true,
            Self::Value { place, .. } => place.starts_with('-'),
            _ => false,
        }
    }
}

fn nearest_hint(nearest: &Option<&'static str>) -> String {
    match nearest {
        Some(name) => format!("; the nearest is {name}"),
        None => String::new(),
    }
}

/// Least likeness of a name that is worth naming, of 1.
const LIKENESS_MIN: f64 = 0.6;

/// The name most like `given`, when one is like it: a name that nobody can have meant helps nobody.
pub(crate) fn nearest(
    given: &str, names: impl Iterator<Item = &'static str>,
) -> Option<&'static str> {
    let given = given.to_ascii_lowercase().replace('-', "_");
    let is_like = |name: &&'static str| {
        let is_part = given.len() > 2 && (name.contains(&given) || given.contains(name));
        is_part || strsim::normalized_damerau_levenshtein(&given, name) >= LIKENESS_MIN
    };
    names
        .filter(is_like)
        .map(|name| (strsim::jaro_winkler(&given, name), name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::nearest;

    #[test]
    fn only_a_name_that_may_have_been_meant_is_named() {
        let names = ["pool_size", "queue_depth", "thread_count", "ro", "comment", "read_ahead"];
        for (given, expected) in [
            ("poolsize", Some("pool_size")),
            ("Pool-Size", Some("pool_size")),
            ("qeue_depth", Some("queue_depth")),
            ("thread", Some("thread_count")),
            ("readahead", Some("read_ahead")),
            ("compression", None),
            ("nonsense", None),
            ("x", None),
            ("cache_directory", None),
        ] {
            assert_eq!(nearest(given, names.into_iter()), expected, "{given}");
        }
    }
}
