//! The configuration file: a JSON object whose `aio` and `swapfs` blocks are swapfs's. A DeepSpeed
//! configuration is such a file, and what it says about NVMe counts too; the rest is DeepSpeed's own.

use std::path::Path;

use serde_json::{Map, Value as Json};

use super::ConfigError;
use super::deepspeed;
use super::error::nearest;
use super::json::{given, read_file, shown, shown_key};
use super::options::{Kind, OPTIONS, OptionDefinition, Value, find};
use super::settings::{Origin, Settings};

/// What DeepSpeed's `aio` block has and a filesystem cannot do: transfers from and to the GPU.
const USE_GDS: &str = "use_gds";

/// Reads the file into `settings`. Blocks are applied in rising order of precedence.
pub(super) fn read(settings: &mut Settings, path: &Path) -> Result<(), ConfigError> {
    let (root, metadata) =
        read_file(path).map_err(|reason| ConfigError::File { path: path.to_owned(), reason })?;
    deepspeed::apply(settings, path, &root)?;
    apply_block(settings, path, &root, &AIO)?;
    apply_block(settings, path, &root, &OWN)?;
    let is_own = crate::trust::is_own(&metadata);
    match settings.get(METRICS_FILE) {
        (Some(Value::Text(name)), Origin::File(_)) if name.starts_with('/') => {
            // Whoever wrote the file would choose a file that the daemon replaces.
            match (is_own, deepspeed::is_one(&root)) {
                (true, false) => Ok(()),
                _ => Err(ConfigError::MetricsFile { path: path.to_owned() }),
            }
        }
        _ => Ok(()),
    }
}

/// The option whose value is a file that is replaced.
const METRICS_FILE: &str = "metrics_file";

/// A block of the file that is swapfs's to read.
struct Block {
    name: &'static str,
    /// The option that a key sets.
    option: fn(&str) -> Option<&'static OptionDefinition>,
    /// Every key, in the order in which they are applied.
    keys: fn() -> Vec<&'static str>,
    /// Switches that mean nothing here.
    ignored: &'static [&'static str],
}

const AIO: Block = Block {
    name: "aio",
    option: |key| OPTIONS.iter().find(|option| option.aio_keys.contains(&key)),
    keys: || OPTIONS.iter().flat_map(|option| option.aio_keys.iter().copied()).collect(),
    ignored: &[USE_GDS],
};

const OWN: Block = Block {
    name: "swapfs",
    option: find,
    keys: || OPTIONS.iter().map(|option| option.name).collect(),
    ignored: &[],
};

fn apply_block(
    settings: &mut Settings, path: &Path, root: &Map<String, Json>, block: &Block,
) -> Result<(), ConfigError> {
    let object = match given(root, block.name) {
        None => return Ok(()),
        Some(Json::Object(object)) => object,
        Some(other) => {
            return Err(ConfigError::Value {
                place: format!("{}: {}", path.display(), block.name),
                value: shown(other),
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
            key: shown_key(key),
            nearest: nearest(key, keys.iter().copied()),
        });
    }
    for key in keys {
        if let (Some(value), Some(option)) = (given(object, key), (block.option)(key)) {
            let parsed = parse(option.kind, value, path, block.name, key)?;
            settings.set(option, parsed, Origin::File(path.to_owned()));
        }
    }
    for key in block.ignored {
        if let Some(value) = given(object, key)
            && parse(Kind::Switch, value, path, block.name, key)? == Value::Switch(true)
        {
            settings.warnings.push(format!(
                "{}: {}.{key}: true is ignored, a filesystem cannot transfer from and to the GPU",
                path.display(),
                block.name
            ));
        }
    }
    Ok(())
}

fn parse(
    kind: Kind, value: &Json, path: &Path, block: &str, key: &str,
) -> Result<Value, ConfigError> {
    kind.parse_json(value).ok_or_else(|| ConfigError::Value {
        place: format!("{}: {block}.{key}", path.display()),
        value: shown(value),
        accepted: kind.accepted(),
    })
}
