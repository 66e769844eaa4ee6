//! The configuration of a mount: what can be set, from where, and what is in force.
//!
//! One table ([`OPTIONS`]) has every option once: `-o name=value`, `--name value`, variables, the keys of the
//! configuration file and the fields of [`Config`] follow from it. [`Settings`] collects the sources in rising order of
//! precedence (built-in, the machine's defaults, variables, file, `-o`, flag) and [`Settings::build`] turns them into a
//! checked [`Config`].

mod build;
mod deepspeed;
mod error;
mod file;
mod hjson;
mod json;
mod kind;
mod mount_options;
mod options;
mod schema;
mod settings;

pub use error::ConfigError;
pub(crate) use error::nearest;
pub(crate) use json::{read_object, shown};
pub(crate) use kind::parse_switch;
pub use kind::{Kind, Value};
pub use mount_options::{MountFlags, standard_options};
pub(crate) use options::shown_value;
pub use options::{Config, OPTIONS, OptionDefinition};
pub use schema::schema;
pub use settings::{Origin, Settings};

use std::path::PathBuf;

use serde_json::{Map, json};
use strum::{EnumString, VariantNames};

/// Fewest buffers a pool may have: below that, reads and writes would wait for each other all the time.
pub const POOL_BUFFERS_MIN: u64 = 8;

/// Smallest pool in bytes: a read needs all its blocks at once, and the kernel asks for up to 1 MiB,
/// which may begin and end within a block.
pub const POOL_SIZE_MIN: u64 = 2 << 20;

/// A read-ahead that nobody chose takes at most this fraction of the pool.
const READ_AHEAD_POOL_SHARE: u64 = 8;

/// What opening a partition for reading starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantNames, EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum OpenSwapIn {
    /// Nothing: the first read does.
    None,
    /// The first `read_ahead` bytes.
    Ahead,
    /// The whole partition.
    All,
}

/// What is kept for each 4 KiB of a partition, to verify it when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantNames, EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Checksum {
    /// Its CRC32C.
    Crc32c,
    /// Nothing but whether it is being written.
    Writes,
    /// Nothing.
    None,
}

/// What the daemon gives up once it is mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, VariantNames, EnumString)]
#[strum(serialize_all = "snake_case")]
pub enum Sandbox {
    /// All that serving does not take, and can be given up.
    Full,
    /// Nothing.
    None,
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
        match self.settings.get(options::Key::pool_size) {
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

    /// The smallest pool that this configuration could have, in bytes.
    #[must_use]
    pub fn pool_size_min(&self) -> u64 {
        buffers_min(self.block_size) * self.block_size
    }

    fn in_force(&self) -> impl Iterator<Item = (&'static OptionDefinition, Value, Origin)> {
        OPTIONS.iter().map(|option| {
            let (value, origin) = self.settings.get(option.key);
            (option, value.expect("computed when it was built"), origin)
        })
    }
}

fn buffers_min(block_size: u64) -> u64 {
    POOL_BUFFERS_MIN.max(POOL_SIZE_MIN / block_size)
}

#[cfg(test)]
mod tests;
