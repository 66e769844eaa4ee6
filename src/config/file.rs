//! The configuration file: a JSON object whose `aio` and `swapfs` blocks are swapfs's. A DeepSpeed
//! configuration is such a file, and what it says about NVMe counts too; the rest is DeepSpeed's own.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::ConfigError;
use super::deepspeed;
use super::error::nearest;
use super::json::{self, given, read_file, shown, shown_key};
use super::kind::{Kind, Value};
use super::options::{Key, OPTIONS, OptionDefinition, find};
use super::settings::{Origin, Settings};

/// What DeepSpeed's `aio` block has and a filesystem cannot do: transfers from and to the GPU.
const USE_GDS: &str = "use_gds";

/// Reads the file into `settings`. Blocks are applied in rising order of precedence.
pub(super) fn read(settings: &mut Settings, path: &Path) -> Result<(), ConfigError> {
    let (root, metadata) =
        read_file(path).map_err(|reason| ConfigError::File { path: path.to_owned(), reason })?;
    deepspeed::apply(settings, path, &root)?;
    let origin = Origin::File(path.to_owned());
    apply_block(settings, path, &root, &AIO, &origin)?;
    apply_block(settings, path, &root, &OWN, &origin)?;
    let is_own = crate::trust::is_own(&metadata);
    match settings.get(Key::metrics_file) {
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

/// Reads the defaults of this machine, where there are any: the same two blocks. What it says about DeepSpeed's offloading
/// is of no run.
pub(super) fn read_defaults(settings: &mut Settings, path: &Path) -> Result<(), ConfigError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        _ => {}
    }
    let failed = |reason| ConfigError::File { path: path.to_owned(), reason };
    let (file, metadata) = json::open(path).map_err(failed)?;
    if metadata.uid() != 0 || metadata.mode() & 0o022 != 0 {
        // Everybody's mounts would follow whoever may write it.
        settings.warnings.push(format!(
            "{}: ignored, it has to be root's and not to be written by others: chown root {0}; chmod 644 {0}",
            path.display()
        ));
        return Ok(());
    }
    let root = json::read(file).map_err(failed)?;
    let origin = Origin::Defaults(path.to_owned());
    apply_block(settings, path, &root, &AIO, &origin)?;
    apply_block(settings, path, &root, &OWN, &origin)
}

/// A block of the file that is swapfs's to read.
struct Block {
    name: &'static str,
    /// The option that a key sets.
    option: fn(&str) -> Option<&'static OptionDefinition>,
    /// Every key, in the order in which they are applied.
    keys: fn() -> Vec<&'static str>,
    /// Switches that mean nothing here.
    ignored: &'static [&'static str],
    /// It is DeepSpeed's block: keys that DeepSpeed would not read either, and values that only a mount cannot use, are
    /// warned of.
    is_foreign: bool,
}

const AIO: Block = Block {
    name: "aio",
    option: |key| OPTIONS.iter().find(|option| option.aio_keys.contains(&key)),
    keys: || OPTIONS.iter().flat_map(|option| option.aio_keys.iter().copied()).collect(),
    ignored: &[USE_GDS],
    is_foreign: true,
};

const OWN: Block = Block {
    name: "swapfs",
    option: find,
    keys: || OPTIONS.iter().map(|option| option.name).collect(),
    ignored: &[],
    is_foreign: false,
};

fn apply_block(
    settings: &mut Settings, path: &Path, root: &Map<String, Json>, block: &Block, origin: &Origin,
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
    for key in object.keys().filter(|key| !known(key)) {
        let unknown = ConfigError::UnknownKey {
            path: path.to_owned(),
            section: block.name,
            key: shown_key(key),
            nearest: nearest(key, keys.iter().copied()),
        };
        match block.is_foreign {
            true => settings.warnings.push(format!("{unknown}; ignored")),
            false => return Err(unknown),
        }
    }
    for key in keys {
        if let (Some(value), Some(option)) = (given(object, key), (block.option)(key)) {
            let near = option.kind.nearest_json(value).filter(|_| block.is_foreign);
            let parsed = match (parse(option.kind, value, path, block.name, key), near) {
                (Err(refusal), Some(near)) => {
                    settings.warnings.push(format!("{refusal}; {near} is used"));
                    near
                }
                (parsed, _) => parsed?,
            };
            settings.set(option.key, parsed, origin.clone());
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
