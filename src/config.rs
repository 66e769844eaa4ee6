//! The configuration of a mount: what can be set, from where, and what is in force.
//!
//! One table ([`OPTIONS`]) names every option once; `-o name=value`, `--name value` and the keys of the
//! configuration file are all read by it. [`Settings`] collects the sources in rising order of
//! precedence (built-in, the machine's defaults, variables, file, `-o`, flag) and [`Settings::build`] turns them into a checked [`Config`].

mod deepspeed;
mod error;
mod file;
mod hjson;
mod json;
mod mount_options;
mod options;
mod schema;
mod settings;

pub use error::ConfigError;
pub(crate) use error::nearest;
pub(crate) use json::{read_object, shown};
pub use mount_options::{MountFlags, standard_options};
pub use options::{Kind, OPTIONS, OptionDefinition, Value};
pub(crate) use options::{parse_switch, shown_value};
pub use schema::schema;
pub use settings::{Origin, Settings};

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::{Map, json};

/// Fewest buffers a pool may have: below that, reads and writes would wait for each other all the time.
pub const POOL_BUFFERS_MIN: u64 = 8;

/// Smallest pool in bytes: a read needs all its blocks at once, and the kernel asks for up to 1 MiB,
/// which may begin and end within a block.
pub const POOL_SIZE_MIN: u64 = 2 << 20;

/// A read-ahead that nobody chose takes at most this fraction of the pool.
const READ_AHEAD_POOL_SHARE: u64 = 8;

/// What opening a partition for reading starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OpenSwapIn {
    /// Nothing: the first read does.
    None,
    /// The first `read_ahead` bytes.
    Ahead,
    /// The whole partition.
    All,
}

/// What is kept for each 4 KiB of a partition, to verify it when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Its CRC32C.
    Crc32c,
    /// Nothing but whether it is being written.
    Writes,
    /// Nothing.
    None,
}

/// What the daemon gives up once it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sandbox {
    /// All that serving does not take, and can be given up.
    Full,
    /// Nothing.
    None,
}

/// A checked configuration. [`Config::default`] is the built-in one.
///
/// The fields are what the daemon works with; [`Config::to_json`] and [`Config::rows`] report the same
/// values with where each came from.
#[derive(Debug, Clone)]
pub struct Config {
    /// Bytes of the buffer pool; at least [`POOL_BUFFERS_MIN`] blocks and [`POOL_SIZE_MIN`].
    pub pool_size: u64,
    /// Bytes per block and buffer, a power of two from 64 KiB to 16 MiB.
    pub block_size: u64,
    /// Transfers in flight per aio thread.
    pub queue_depth: u32,
    /// Aio threads.
    pub thread_count: u32,
    /// One submission per call.
    pub single_submit: bool,
    /// Reap while submitting.
    pub overlap_events: bool,
    /// Bytes; smaller partitions stay resident while the pool has room.
    pub min_swap_size: u64,
    /// Lock the pool in memory.
    pub pin_memory: bool,
    /// FUSE request threads.
    pub fuse_threads: u32,
    /// Bytes kept in flight ahead of a sequential reader; at most `pool_size`.
    pub read_ahead: u64,
    /// What opening for reading starts.
    pub open_swap_in: OpenSwapIn,
    /// What is kept for each 4 KiB of a partition.
    pub checksum: Checksum,
    /// Whether listxattr names `user.swap.*`.
    pub list_xattr: bool,
    /// Other users than the mount's owner may use it.
    pub allow_other: bool,
    /// Mounted read-only.
    pub ro: bool,
    /// `close` waits until the partition is written to the swap folder.
    pub close_wait: bool,
    /// Where the metrics are shown over HTTP.
    pub metrics_listen: Option<SocketAddr>,
    /// The file that the metrics are written to.
    pub metrics_file: Option<PathBuf>,
    /// Seconds without an answer after which a transfer counts as stalled; 0 for never.
    pub stall_timeout: u32,
    /// Idle processors are kept awake while a client makes one small call after the other.
    pub keep_awake: bool,
    /// What the daemon gives up once it is mounted.
    pub sandbox: Sandbox,
    /// env_logger filter.
    pub log: String,
    /// The standard options of mount(8).
    pub mount: MountFlags,
    settings: Settings,
}

impl Default for Config {
    fn default() -> Self {
        Settings::new().build().expect("the built-in values are valid")
    }
}

/// One line of `swapfs config show`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Row {
    /// The option's name.
    pub key: &'static str,
    /// Its value as text, the way `-o` takes it.
    pub value: String,
    /// Where the value came from.
    pub origin: String,
}

impl Config {
    /// Buffers in the pool.
    #[must_use]
    pub fn buffers(&self) -> u64 {
        self.pool_size / self.block_size
    }

    /// Lines for the user about what the file says and is ignored.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.settings.warnings
    }

    /// How the pool's size was reckoned from a DeepSpeed configuration, when it was.
    #[must_use]
    pub fn pool_note(&self) -> Option<String> {
        match self.settings.get("pool_size") {
            (Some(value), Origin::Offload { from, .. }) => {
                Some(format!("pool_size {value} from {from}"))
            }
            _ => None,
        }
    }

    /// The directory that the file's DeepSpeed run writes to; `None` when there is no file.
    ///
    /// # Errors
    /// The file names no such directory, or two.
    pub fn nvme_path(&self) -> Result<Option<PathBuf>, ConfigError> {
        let offload = self.settings.offload.as_ref();
        offload.map(deepspeed::Offload::nvme_path).transpose()
    }

    /// The configuration in force as `.swapfs/config.json` shows it: each key with `value` and `origin`.
    #[must_use]
    pub fn to_json(&self) -> serde_json::Value {
        let mut keys = Map::new();
        for (option, value, origin) in self.in_force() {
            let entry = json!({ "value": value.to_json(), "origin": origin.to_string() });
            keys.insert(option.name.to_owned(), entry);
        }
        serde_json::Value::Object(keys)
    }

    /// Every option with its value and origin, in the table's order.
    #[must_use]
    pub fn rows(&self) -> Vec<Row> {
        self.in_force()
            .map(|(option, value, origin)| Row {
                key: option.name,
                value: value.to_string(),
                origin: origin.to_string(),
            })
            .collect()
    }

    /// What `swapfs mount --config FILE` without paths would mount, as a row; `None` without a file. The second is why that
    /// would be refused.
    #[must_use]
    pub fn place(&self) -> Option<(Row, Option<String>)> {
        let offload = self.settings.offload.as_ref()?;
        let (value, refusal) = match offload.nvme_path() {
            Ok(path) => (path.display().to_string(), None),
            Err(error) => (String::new(), Some(error.to_string())),
        };
        let origin = Origin::File(offload.file().to_owned()).to_string();
        Some((Row { key: "nvme_path", value, origin }, refusal))
    }

    /// The configuration as a file for `--config`: `aio` with DeepSpeed's keys, the rest under `swapfs`.
    #[must_use]
    pub fn to_template(&self) -> serde_json::Value {
        let (mut aio, mut own) = (Map::new(), Map::new());
        for (option, value, _) in self.in_force() {
            match option.aio_keys.last() {
                Some(key) => aio.insert((*key).to_owned(), value.to_json()),
                None => own.insert(option.name.to_owned(), value.to_template()),
            };
        }
        json!({ "aio": aio, "swapfs": own })
    }

    fn in_force(&self) -> impl Iterator<Item = (&'static OptionDefinition, Value, Origin)> {
        OPTIONS.iter().map(|option| {
            let (value, origin) = self.settings.get(option.name);
            // The one default that depends on other options.
            let value = value.unwrap_or(Value::Size(self.read_ahead));
            (option, value, origin)
        })
    }

    /// Reads the collected values into the typed fields and checks what one option alone cannot tell.
    fn from_settings(settings: Settings) -> Result<Self, ConfigError> {
        let s = &settings;
        let mut config = Self {
            pool_size: s.number("pool_size"),
            block_size: s.number("block_size"),
            queue_depth: s.count("queue_depth"),
            thread_count: s.count("thread_count"),
            single_submit: s.switch("single_submit"),
            overlap_events: s.switch("overlap_events"),
            min_swap_size: s.number("min_swap_size"),
            pin_memory: s.switch("pin_memory"),
            fuse_threads: s.count("fuse_threads"),
            read_ahead: 0,
            open_swap_in: match s.text("open_swap_in").as_str() {
                "none" => OpenSwapIn::None,
                "all" => OpenSwapIn::All,
                _ => OpenSwapIn::Ahead,
            },
            checksum: match s.text("checksum").as_str() {
                "none" => Checksum::None,
                "writes" => Checksum::Writes,
                _ => Checksum::Crc32c,
            },
            list_xattr: s.switch("list_xattr"),
            allow_other: s.switch("allow_other"),
            ro: s.switch("ro"),
            close_wait: s.switch("close_wait"),
            metrics_listen: options::parse_address(&s.text("metrics_listen")).flatten(),
            metrics_file: match s.text("metrics_file") {
                path if path.starts_with('/') => Some(path.into()),
                _ => None,
            },
            stall_timeout: s.count("stall_timeout"),
            keep_awake: s.switch("keep_awake"),
            sandbox: match s.text("sandbox").as_str() {
                "none" => Sandbox::None,
                _ => Sandbox::Full,
            },
            log: s.text("log"),
            mount: s.mount.clone(),
            settings,
        };
        config.check_pool()?;
        config.check_listen()?;
        config.read_ahead = config.resolve_read_ahead()?;
        Ok(config)
    }

    /// The smallest pool that this configuration could have, in bytes.
    #[must_use]
    pub fn pool_size_min(&self) -> u64 {
        self.buffers_min() * self.block_size
    }

    fn buffers_min(&self) -> u64 {
        POOL_BUFFERS_MIN.max(POOL_SIZE_MIN / self.block_size)
    }

    fn check_pool(&self) -> Result<(), ConfigError> {
        let buffers_min = self.buffers_min();
        if self.buffers() >= buffers_min {
            return Ok(());
        }
        Err(ConfigError::PoolTooSmall {
            pool_size: self.pool_size,
            block_size: self.block_size,
            buffers_min,
        })
    }

    /// Others are only shown the metrics where that was said.
    fn check_listen(&self) -> Result<(), ConfigError> {
        match self.metrics_listen {
            Some(address)
                if !address.ip().is_loopback() && !self.settings.switch("metrics_public") =>
            {
                Err(ConfigError::Value {
                    place: self.settings.get("metrics_listen").1.place("metrics_listen"),
                    value: address.to_string(),
                    accepted: "a port, or an address of this machine's own as 127.0.0.1:9550; \
                               any with metrics_public"
                        .to_owned(),
                })
            }
            _ => Ok(()),
        }
    }

    fn resolve_read_ahead(&self) -> Result<u64, ConfigError> {
        match self.settings.get("read_ahead") {
            (Some(Value::Size(bytes)), origin) if bytes > self.pool_size => {
                Err(ConfigError::Value {
                    place: origin.place("read_ahead"),
                    value: crate::units::format_exact(bytes),
                    accepted: format!(
                        "at most the pool_size ({})",
                        crate::units::format_exact(self.pool_size)
                    ),
                })
            }
            (Some(Value::Size(bytes)), _) => Ok(bytes),
            _ => {
                let wanted = u64::from(self.queue_depth) * self.block_size;
                Ok(wanted.min(self.pool_size / READ_AHEAD_POOL_SHARE))
            }
        }
    }
}

#[cfg(test)]
mod tests;
