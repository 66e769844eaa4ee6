//! Reads a JSON object from a file, or what DeepSpeed's reader takes in its place ([`hjson`]). A key that stands twice in
//! one object is an error, as it is in DeepSpeed, and nothing that a file may contain takes memory or time without end.

use std::fmt;
use std::fs::{File, Metadata};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value as Json};

use super::hjson;
use crate::paths::{is_plain, plain_json, plain_text};

/// No configuration is larger than this many bytes.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// Letters of a value that a message repeats.
const SHOWN_MAX: usize = 60;

/// The object that the file consists of; the error is the reason alone, without the file's name.
pub(crate) fn read_object(path: &Path) -> Result<Map<String, Json>, String> {
    Ok(read_file(path)?.0)
}

/// As [`read_object`], with what the file is like.
pub(super) fn read_file(path: &Path) -> Result<(Map<String, Json>, Metadata), String> {
    let (file, metadata) = open(path)?;
    Ok((read(file)?, metadata))
}

fn failed(error: std::io::Error) -> String {
    crate::sys_process::reason(&error)
}

/// Opens a file for [`read`]. A FIFO or a device, which may never end, is refused.
pub(super) fn open(path: &Path) -> Result<(File, Metadata), String> {
    let mut options = File::options();
    let file = options.read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() && !metadata.is_dir() {
        return Err("not a regular file; name another".to_owned());
    }
    Ok((file, metadata))
}

/// The object that an open file consists of.
pub(super) fn read(file: File) -> Result<Map<String, Json>, String> {
    let mut bytes = Vec::new();
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(format!(
            "larger than {}, which no configuration is",
            crate::units::format_exact(FILE_BYTES_MAX)
        ));
    }
    let text = std::str::from_utf8(&bytes)
        .map_err(|error| format!("not UTF-8 text (byte {})", error.valid_up_to()))?;
    match serde_json::from_str(text) {
        Ok(Strict(Json::Object(root))) => Ok(root),
        Ok(Strict(_)) => Err("the file is not a JSON object".to_owned()),
        Err(error) if error.is_data() => Err(error.to_string()),
        // DeepSpeed's reader takes more, and JSON means the same to it.
        Err(_) => {
            hjson::parse(text).map_err(|fault| format!("neither valid JSON nor Hjson: {fault}"))
        }
    }
}

/// The value when it was given: `null` and DeepSpeed's `"auto"` are as if absent.
pub(super) fn given<'a>(object: &'a Map<String, Json>, key: &str) -> Option<&'a Json> {
    object.get(key).filter(|value| !value.is_null() && value.as_str() != Some("auto"))
}

/// A value for a message, cut when it is long.
pub(crate) fn shown(value: &Json) -> String {
    // JSON escapes the control characters below the blank alone.
    cut(&plain_json(&value.to_string()))
}

/// A key for a message: without line breaks, cut when it is long.
pub(super) fn shown_key(key: &str) -> String {
    match key.chars().all(is_plain) {
        true => cut(key),
        false => cut(&format!("\"{}\"", plain_text(key))),
    }
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(SHOWN_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// The number when it is whole; people write `1e8` too.
pub(super) fn whole(number: &serde_json::Number) -> Option<u64> {
    /// Every whole number up to this one is exact as a float.
    const EXACT_MAX: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
    number.as_u64().or_else(|| {
        let float = number.as_f64()?;
        let exact = (0.0..=EXACT_MAX).contains(&float) && float.fract() == 0.0;
        exact.then_some(float as u64)
    })
}

/// JSON without double keys.
struct Strict(Json);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(StrictVisitor).map(Self)
    }
}

struct StrictVisitor;

impl<'de> Visitor<'de> for StrictVisitor {
    type Value = Json;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Json, E> {
        Ok(Json::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Json, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Json, A::Error> {
        let mut array = Vec::new();
        while let Some(Strict(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Json::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Json, A::Error> {
        let mut object = Map::new();
        while let Some(key) = entries.next_key::<String>()? {
            if object.contains_key(&key) {
                let key = shown_key(&key);
                return Err(de::Error::custom(format_args!("the key {key} stands twice")));
            }
            let Strict(value) = entries.next_value()?;
            object.insert(key, value);
        }
        Ok(Json::Object(object))
    }
}

#[cfg(test)]
mod tests;
