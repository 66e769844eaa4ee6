//! The kinds of values that options take: how a value is read, checked and printed.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;

use super::json::whole;
use super::{Checksum, OpenSwapIn, Sandbox};
use crate::units::{EXAMPLES, TIB, format_exact, parse_size};

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

/// Upper limit of any size, so that sums of sizes stay far from overflow.
pub(super) const SIZE_MAX: u64 = 64 * TIB;

/// The value that turns an address or a path off.
pub(super) const OFF: &str = "off";

pub(super) const fn size(min: u64, max: u64) -> Kind {
    Kind::Size { min, max, power_of_two: false }
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

/// A type that the values of an option have in [`Config`](super::Config).
pub(super) trait Field: Sized {
    /// The value; `None` when it is of another kind.
    fn of(value: &Value) -> Option<Self>;
}

/// Makes a type the field of the options whose values match a pattern.
macro_rules! fields {
    ($($type:ty: $value:pat => $read:expr;)*) => {
        $(impl Field for $type {
            fn of(value: &Value) -> Option<Self> {
                match value {
                    $value => $read,
                    _ => None,
                }
            }
        })*
    };
}

fields! {
    u64: Value::Size(bytes) => Some(*bytes);
    u32: Value::Count(count) => Some(*count);
    bool: Value::Switch(on) => Some(*on);
    String: Value::Text(text) => Some(text.clone());
    OpenSwapIn: Value::Text(word) => word.parse().ok();
    Checksum: Value::Text(word) => word.parse().ok();
    Sandbox: Value::Text(word) => word.parse().ok();
    Option<SocketAddr>: Value::Text(text) => parse_address(text);
    Option<PathBuf>: Value::Text(text) => Some((text != OFF).then(|| text.into()));
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
    /// The value's form, for the help of the command line.
    #[must_use]
    pub fn form(&self) -> String {
        match self {
            Kind::Size { .. } => "SIZE".to_owned(),
            Kind::Count { .. } => "N".to_owned(),
            Kind::Switch => "on|off".to_owned(),
            Kind::Choice(words) => words.join("|"),
            Kind::Address => "PORT|ADDRESS:PORT".to_owned(),
            Kind::Path => "FILE".to_owned(),
            Kind::LogFilter => "FILTER".to_owned(),
        }
    }

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
fn parse_address(text: &str) -> Option<Option<SocketAddr>> {
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
