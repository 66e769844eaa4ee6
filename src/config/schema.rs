//! The JSON Schema of a configuration file, made from the one table of options.

use serde_json::{Map, Value as Json, json};

use super::kind::Kind;
use super::options::{OPTIONS, OptionDefinition};

/// A size as text: what [`crate::units::parse_size`] takes.
const SIZE_PATTERN: &str = r"^\s*[0-9]+(\.[0-9]{1,15})?\s*([bB]|[kKmMgGtT]([iI]?[bB]?)?)?\s*$";

/// The schema of a configuration file. It describes JSON; DeepSpeed's other forms (Hjson) mean the same.
#[must_use]
pub fn schema() -> Json {
    let own = OPTIONS.iter().map(|option| (option.name.to_owned(), of_option(option)));
    let aio = OPTIONS.iter().flat_map(|option| {
        option.aio_keys.iter().map(|key| ((*key).to_owned(), of_option(option)))
    });
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "swapfs configuration",
        "description": "A file for `swapfs mount --config` and /etc/swapfs/config.json; a DeepSpeed configuration is one too.",
        "type": "object",
        "properties": {
            "swapfs": {
                "description": "swapfs's own keys",
                "type": ["object", "null"],
                "properties": Json::Object(own.collect()),
                "additionalProperties": false,
            },
            "aio": {
                "description": "DeepSpeed's keys of asynchronous I/O; unknown ones are ignored with a warning",
                "type": ["object", "null"],
                "properties": Json::Object(aio.collect()),
            },
            "zero_optimization": {
                "description": "where DeepSpeed offloads to, and how much it has in memory",
                "properties": { "offload_param": offload(), "offload_optimizer": offload() },
            },
        },
    })
}

fn of_option(option: &OptionDefinition) -> Json {
    let mut accepted = of_kind(option.kind);
    accepted.extend([json!({ "const": "auto" }), json!({ "type": "null" })]);
    let mut schema = Map::new();
    match option.built_in() {
        Some(_) => {
            schema.insert("description".to_owned(), option.help.into());
            schema.insert("default".to_owned(), option.default.into());
        }
        None => {
            schema.insert("description".to_owned(), option.help_with_default().into());
        }
    }
    schema.insert("anyOf".to_owned(), accepted.into());
    schema.into()
}

fn of_kind(kind: Kind) -> Vec<Json> {
    match kind {
        Kind::Size { min, max, power_of_two } => {
            let number = match power_of_two {
                true => {
                    json!({ "enum": (min.ilog2()..=max.ilog2()).map(|power| 1_u64 << power).collect::<Vec<_>>() })
                }
                false => json!({ "type": "integer", "minimum": min, "maximum": max }),
            };
            vec![number, json!({ "type": "string", "pattern": SIZE_PATTERN })]
        }
        Kind::Count { min, max } => vec![
            json!({ "type": "integer", "minimum": min, "maximum": max }),
            json!({ "type": "string", "pattern": r"^\s*[0-9]+\s*$" }),
        ],
        Kind::Switch => vec![
            json!({ "type": "boolean" }),
            json!({ "enum": [0, 1] }),
            json!({ "type": "string", "pattern": "^([oO][nN]|[oO][fF][fF]|[tT][rR][uU][eE]|[fF][aA][lL][sS][eE])$" }),
        ],
        Kind::Choice(words) => vec![json!({ "enum": words })],
        Kind::Address => vec![
            json!({ "type": "integer", "minimum": 0, "maximum": u16::MAX }),
            json!({ "type": "string" }),
        ],
        Kind::Path => vec![json!({ "type": "string", "pattern": "^(off$|/)" })],
        Kind::LogFilter => vec![json!({ "type": "string", "minLength": 1 })],
    }
}

fn offload() -> Json {
    json!({
        "properties": {
            "device": { "enum": ["none", "cpu", "nvme", "auto", null] },
            "nvme_path": { "description": "what `swapfs mount --config FILE` mounts over", "type": ["string", "null"] },
            "buffer_count": { "description": "with buffer_size, the pool's size" },
            "buffer_size": { "description": "in elements" },
            "pin_memory": { "description": "lock the pool in memory" },
        },
    })
}
