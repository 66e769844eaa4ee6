//! The table of swapfs's own mount options. Flags, `-o`, the keys of the configuration file and its schema, variables,
//! the fields of [`Config`] and `swapfs config show` are made from it, and the manual is compared with it.

use std::net::SocketAddr;
use std::path::PathBuf;

use strum::VariantNames;

use super::kind::{Kind, SIZE_MAX, Value, size};
use super::{Checksum, MountFlags, OpenSwapIn, Sandbox, Settings};
use crate::units::{KIB, MIB};

/// One mount option: everything there is to say about it.
#[derive(Debug, Clone, Copy)]
pub struct OptionDefinition {
    /// Its place in the table.
    pub(super) key: Key,
    /// The name in `-o`, in the file under `swapfs`, and (with `-` for `_`) as a flag.
    pub name: &'static str,
    /// What it takes.
    pub kind: Kind,
    /// The built-in value; in words where it is computed from others.
    pub default: &'static str,
    /// One line for `--help`; the manual's text begins with it.
    pub help: &'static str,
    /// Its names inside the file's `aio` block; of several the last one given there counts.
    pub aio_keys: &'static [&'static str],
}

/// Makes the table, the key of each option, and the configuration with a field for each.
macro_rules! options {
    ($($name:ident: $type:ty = $default:literal, $kind:expr, $help:literal $(, aio: $aio_keys:expr)?;)*) => {
        /// An option, by its name.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[expect(non_camel_case_types, reason = "these are the options' names")]
        pub(super) enum Key {
            $($name,)*
        }

        /// Every mount option of swapfs.
        pub const OPTIONS: [OptionDefinition; [$(Key::$name),*].len()] = [$(
            OptionDefinition {
                key: Key::$name,
                name: stringify!($name),
                kind: $kind,
                default: $default,
                help: $help,
                aio_keys: options!(@keys $($aio_keys)?),
            },
        )*];

        /// A checked configuration. [`Config::default`] is the built-in one.
        ///
        /// The fields are what the daemon works with; [`Config::to_json`] and [`Config::rows`] report the same
        /// values with where each came from.
        #[derive(Debug, Clone)]
        pub struct Config {
            $(#[doc = $help] pub $name: $type,)*
            /// The standard options of mount(8).
            pub mount: MountFlags,
            pub(super) settings: Settings,
        }

        impl Config {
            /// Reads values that fit together.
            pub(super) fn read(settings: Settings) -> Self {
                Self {
                    $($name: settings.field(Key::$name),)*
                    mount: settings.mount.clone(),
                    settings,
                }
            }
        }
    };
    (@keys) => { &[] };
    (@keys $aio_keys:expr) => { &$aio_keys };
}

options! {
    pool_size: u64 = "1 GiB", size(KIB, SIZE_MAX), "Bytes of the buffer pool";
    block_size: u64 = "1 MiB", Kind::Size { min: 64 * KIB, max: 16 * MIB, power_of_two: true },
        "Bytes per block and buffer, a power of two from 64 KiB to 16 MiB", aio: ["block_size"];
    queue_depth: u32 = "8", Kind::Count { min: 1, max: 4096 }, "Transfers in flight per aio thread", aio: ["queue_depth"];
    // DeepSpeed's first name for it, its tuner's, and the one it reads now.
    thread_count: u32 = "1", Kind::Count { min: 1, max: 64 }, "Aio threads",
        aio: ["thread_count", "num_threads", "intra_op_parallelism"];
    single_submit: bool = "false", Kind::Switch, "One submission per call", aio: ["single_submit"];
    overlap_events: bool = "true", Kind::Switch, "Reap completions while submitting", aio: ["overlap_events"];
    min_swap_size: u64 = "1 MiB", size(0, SIZE_MAX), "Smaller partitions stay resident while the pool has room";
    pin_memory: bool = "true", Kind::Switch, "Lock the pool in memory";
    fuse_threads: u32 = "4", Kind::Count { min: 1, max: 64 }, "FUSE request threads";
    read_ahead: u64 = "queue_depth x block_size, at most an eighth of the pool", size(0, SIZE_MAX),
        "Bytes kept in flight ahead of a sequential reader";
    open_swap_in: OpenSwapIn = "ahead", Kind::Choice(OpenSwapIn::VARIANTS),
        "What opening for reading starts: nothing, the first read_ahead bytes, or all";
    checksum: Checksum = "writes", Kind::Choice(Checksum::VARIANTS),
        "What is recorded of each 4 KiB: crc32c, a checksum, verified on every swap-in; \
         writes, only whether a write of it was interrupted; none, nothing";
    list_xattr: bool = "off", Kind::Switch, "List the user.swap.* names, for getfattr -d: copies then take them along";
    allow_other: bool = "off", Kind::Switch, "Let other users use the mount";
    ro: bool = "off", Kind::Switch, "Mount read-only";
    close_wait: bool = "off", Kind::Switch, "close(2) waits until the partition is written to the swap folder";
    metrics_listen: Option<SocketAddr> = "off", Kind::Address,
        "Show the metrics over HTTP at PORT of this machine's own, or at ADDRESS:PORT";
    metrics_public: bool = "off", Kind::Switch, "Let metrics_listen take an address that others can reach";
    metrics_file: Option<PathBuf> = "off", Kind::Path,
        "Write the metrics to this file every 15 s, for node_exporter's textfile collector";
    stall_timeout: u32 = "30", Kind::Count { min: 0, max: 86_400 },
        "Seconds without an answer of the device after which a transfer counts as stalled; 0: never";
    keep_awake: bool = "on", Kind::Switch, "Keep idle processors awake while a client makes one small call after the other";
    sandbox: Sandbox = "full", Kind::Choice(Sandbox::VARIANTS),
        "Once mounted, give up all rights, files and system calls that serving does not take; none: keep them";
    log: String = "info", Kind::LogFilter, "Log filter: off, error, warn, info, debug, trace, or module=level,...";
}

impl OptionDefinition {
    /// The help with the default.
    #[must_use]
    pub fn help_with_default(&self) -> String {
        format!("{} [default: {}]", self.help, self.default)
    }

    /// The built-in value; `None` where it is computed from others.
    #[must_use]
    pub fn built_in(&self) -> Option<Value> {
        self.kind.parse_text(self.default)
    }
}

/// The option of that name.
pub(super) fn find(name: &str) -> Option<&'static OptionDefinition> {
    OPTIONS.iter().find(|option| option.name == name)
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
