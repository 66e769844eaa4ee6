//! The configuration file: a JSON object whose `aio` and `swapfs` blocks are swapfs's. A DeepSpeed
//! configuration is such a file; everything else in it is DeepSpeed's own.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::ConfigError;
use super::error::nearest;
use super::options::{OPTIONS, OptionDefinition, find};
use super::settings::{Origin, Settings};

/// Keys that DeepSpeed knows inside `aio` and that mean nothing to a filesystem.
const AIO_KEYS_WITHOUT_MEANING: [&str; 1] = ["use_gds"];

/// Reads the file into `settings`. Blocks are applied in rising order of precedence.
pub(super) fn read(settings: &mut Settings, path: &Path) -> Result<(), ConfigError> {
    let fail = |reason: String| ConfigError::File {
        path: path.to_owned(),
        reason,
    };
    let text = std::fs::read(path).map_err(|error| fail(crate::sys_process::reason(&error)))?;
    let json: Json = serde_json::from_slice(&text).map_err(|error| fail(error.to_string()))?;
    let Json::Object(root) = json else {
        return Err(fail("the file is not a JSON object".to_owned()));
    };
    apply_block(settings, path, &root, &AIO)?;
    apply_block(settings, path, &root, &OWN)
}

/// A block of the file that is swapfs's to read.
struct Block {
    name: &'static str,
    /// The option that a key sets.
    option: fn(&str) -> Option<&'static OptionDefinition>,
    /// Every key, in the order in which they are applied.
    keys: fn() -> Vec<&'static str>,
    ignored: &'static [&'static str],
}

const AIO: Block = Block {
    name: "aio",
    option: |key| OPTIONS.iter().find(|option| option.aio_keys.contains(&key)),
    keys: || {
        OPTIONS
            .iter()
            .flat_map(|option| option.aio_keys.iter().copied())
            .collect()
    },
    ignored: &AIO_KEYS_WITHOUT_MEANING,
};

const OWN: Block = Block {
    name: "swapfs",
    option: find,
    keys: || OPTIONS.iter().map(|option| option.name).collect(),
    ignored: &[],
};

fn apply_block(
    settings: &mut Settings,
    path: &Path,
    root: &Map<String, Json>,
    block: &Block,
) -> Result<(), ConfigError> {
    let object = match root.get(block.name) {
        None | Some(Json::Null) => return Ok(()),
        Some(Json::Object(object)) => object,
        Some(other) => {
            return Err(ConfigError::Value {
                place: format!("{}: {}", path.display(), block.name),
                value: other.to_string(),
                accepted: "a JSON object".to_owned(),
            });
        }
    };
    let keys = (block.keys)();
    let known = |key: &str| keys.contains(&key) || block.ignored.contains(&key);
    if let Some(key) = object.keys().find(|key| !known(key)) {
        return Err(ConfigError::UnknownKey {
            path: path.to_owned(),
            section: block.name,
            key: key.clone(),
            nearest: nearest(key, keys.iter().copied()),
        });
    }
    for key in keys {
        let value = object.get(key).filter(|value| !value.is_null());
        if let (Some(value), Some(option)) = (value, (block.option)(key)) {
            set_json(settings, option, value, path, block.name, key)?;
        }
    }
    Ok(())
}

fn set_json(
    settings: &mut Settings,
    option: &'static OptionDefinition,
    value: &Json,
    path: &Path,
    block: &str,
    key: &str,
) -> Result<(), ConfigError> {
    let parsed = option
        .kind
        .parse_json(value)
        .ok_or_else(|| ConfigError::Value {
            place: format!("{}: {block}.{key}", path.display()),
            value: value.to_string(),
            accepted: option.kind.accepted(),
        })?;
    settings.set(option, parsed, Origin::File(path.to_owned()));
    Ok(())
}
