//! What a DeepSpeed configuration says about offloading to NVMe, `zero_optimization.offload_param` and
//! `.offload_optimizer`: where it writes, and how much it wants in memory at once.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value as Json};

use super::ConfigError;
use super::POOL_BUFFERS_MIN;
use super::json::{given, shown, whole};
use super::kind::{Kind, SIZE_MAX, Value};
use super::options::Key;
use super::settings::{Origin, Settings};

/// The block that the sections stand in.
const ZERO: &str = "zero_optimization";

/// A section, and whether its `buffer_size` has a default. The optimizer's buffers have the size of the
/// largest sub-group, which only the run knows.
const SECTIONS: [(&str, u64, Option<u64>); 2] =
    [("offload_param", 5, Some(100_000_000)), ("offload_optimizer", 4, None)];

/// Largest count and size that are taken; their product has room in 128 bits.
const NUMBER_MAX: u64 = 1 << 48;

/// The sections of one file whose device is nvme.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Offload {
    file: PathBuf,
    sections: Vec<Section>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Section {
    name: &'static str,
    nvme_path: Option<PathBuf>,
    pin_memory: Option<bool>,
    buffers: Option<Buffers>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buffers {
    count: u64,
    elements: u64,
    element_size: u64,
}

/// Reads the sections into `settings`.
pub(super) fn apply(
    settings: &mut Settings, path: &Path, root: &Map<String, Json>,
) -> Result<(), ConfigError> {
    let offload = Offload::read(path, root)?;
    let pinned = |wanted| {
        let mut sections = offload.sections.iter();
        sections.find(|section| section.pin_memory == Some(wanted))
    };
    if let Some(section) = pinned(true).or_else(|| pinned(false)) {
        let origin =
            Origin::Offload { path: path.to_owned(), from: format!("{}.pin_memory", section.name) };
        let value = Value::Switch(section.pin_memory == Some(true));
        settings.set(Key::pin_memory, value, origin);
    }
    settings.offload = Some(offload);
    Ok(())
}

/// Returns true for a configuration of DeepSpeed's.
pub(super) fn is_one(root: &Map<String, Json>) -> bool {
    root.contains_key(ZERO) || root.keys().any(|key| key.starts_with("train_"))
}

impl Offload {
    fn read(path: &Path, root: &Map<String, Json>) -> Result<Self, ConfigError> {
        let mut offload = Self { file: path.to_owned(), sections: Vec::new() };
        let zero = match given(root, ZERO) {
            // Once a switch.
            None | Some(Json::Bool(_)) => return Ok(offload),
            Some(zero) => object(path, ZERO, zero)?,
        };
        for (name, count, elements) in SECTIONS {
            let place = format!("{ZERO}.{name}");
            let Some(section) = given(zero, name) else {
                continue;
            };
            let fields = Fields { path, object: object(path, &place, section)?, place };
            let device = fields.value("device", Kind::Choice(&["none", "cpu", "nvme"]))?;
            if device != Some(Value::Text("nvme".to_owned())) {
                continue;
            }
            let count = fields.number("buffer_count")?.unwrap_or(count);
            let elements = fields.number("buffer_size")?.or(elements);
            let element_size = element_size(path, root)?;
            offload.sections.push(Section {
                name,
                nvme_path: fields.path("nvme_path")?,
                pin_memory: match fields.value("pin_memory", Kind::Switch)? {
                    Some(Value::Switch(on)) => Some(on),
                    _ => None,
                },
                buffers: elements.map(|elements| Buffers { count, elements, element_size }),
            });
        }
        Ok(offload)
    }

    /// The configuration file.
    pub(super) fn file(&self) -> &Path {
        &self.file
    }

    /// The directory that DeepSpeed writes to.
    ///
    /// # Errors
    /// None is named, or two.
    pub(super) fn nvme_path(&self) -> Result<PathBuf, ConfigError> {
        let fail = |reason: String| ConfigError::File { path: self.file.clone(), reason };
        if self.sections.is_empty() {
            return Err(fail(format!(
                "neither {ZERO}.offload_param nor .offload_optimizer has the device nvme; give \
                 SWAP_FOLDER and MOUNTPOINT"
            )));
        }
        let mut named = Vec::new();
        for section in &self.sections {
            let place = format!("{ZERO}.{}.nvme_path", section.name);
            let Some(path) = &section.nvme_path else {
                return Err(fail(format!(
                    "{place} is missing; name a directory there, or give SWAP_FOLDER and MOUNTPOINT"
                )));
            };
            named.push((place, path));
        }
        match &named[..] {
            [(here, param), (there, optimizer)] if !is_same(param, optimizer) => {
                let (a, b) = (param.display(), optimizer.display());
                let file = self.file.display();
                Err(fail(format!(
                    "{here} is {a} and {there} is {b}: two mounts, `swapfs mount --config {file} \
                     {a} {a}` and `swapfs mount --config {file} {b} {b}`"
                )))
            }
            _ => Ok(named[0].1.clone()),
        }
    }

    /// The pool that holds all buffers, and how it was reckoned; `None` when no size is known.
    /// `free` is the machine's free memory in bytes, when that is known.
    pub(super) fn pool(&self, block_size: u64, free: Option<u64>) -> Option<(u64, Origin)> {
        let known = |section: &Section| section.buffers.map(|buffers| (section.name, buffers));
        let buffers: Vec<_> = self.sections.iter().filter_map(known).collect();
        if buffers.is_empty() {
            return None;
        }
        let wanted: u128 = buffers.iter().map(|(_, buffers)| buffers.bytes()).sum();
        let blocks = wanted.div_ceil(u128::from(block_size));
        let most = free.map_or(SIZE_MAX, |free| free / 2).min(SIZE_MAX) / block_size;
        let kept = u64::try_from(blocks).unwrap_or(u64::MAX).min(most);
        let from: Vec<String> =
            buffers.iter().map(|(name, buffers)| format!("{name}: {}", buffers.text())).collect();
        let mut from = from.join(" and ");
        if kept < POOL_BUFFERS_MIN {
            from.push_str(", raised to the smallest pool");
        } else if u128::from(kept) < blocks {
            from.push_str(match free {
                Some(_) => ", cut to half of the free memory",
                None => ", cut to the largest pool",
            });
        }
        let origin = Origin::Offload { path: self.file.clone(), from };
        Some((kept.max(POOL_BUFFERS_MIN) * block_size, origin))
    }
}

impl Buffers {
    fn bytes(&self) -> u128 {
        u128::from(self.count) * u128::from(self.elements) * u128::from(self.element_size)
    }

    fn text(&self) -> String {
        format!(
            "{} buffers of {} elements of {} bytes",
            self.count, self.elements, self.element_size
        )
    }
}

/// Whether two paths lead to one directory.
fn is_same(a: &Path, b: &Path) -> bool {
    a == b
        || match (std::fs::canonicalize(a), std::fs::canonicalize(b)) {
            (Ok(a), Ok(b)) => a == b,
            _ => false,
        }
}

/// Bytes per element: 2 when the run is in fp16 or bf16.
fn element_size(path: &Path, root: &Map<String, Json>) -> Result<u64, ConfigError> {
    for name in ["fp16", "bf16", "bfloat16"] {
        let Some(block) = given(root, name) else {
            continue;
        };
        let fields = Fields { path, object: object(path, name, block)?, place: name.to_owned() };
        if fields.value("enabled", Kind::Switch)? == Some(Value::Switch(true)) {
            return Ok(2);
        }
    }
    Ok(4)
}

fn object<'a>(
    path: &Path, place: &str, value: &'a Json,
) -> Result<&'a Map<String, Json>, ConfigError> {
    value.as_object().ok_or_else(|| ConfigError::Value {
        place: format!("{}: {place}", path.display()),
        value: shown(value),
        accepted: "a JSON object".to_owned(),
    })
}

/// The keys of one object of the file.
struct Fields<'a> {
    path: &'a Path,
    /// The dotted path to the object.
    place: String,
    object: &'a Map<String, Json>,
}

impl Fields<'_> {
    /// A value that `read` makes of what was given.
    fn field<T>(
        &self, key: &str, accepted: impl FnOnce() -> String, read: impl FnOnce(&Json) -> Option<T>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = given(self.object, key) else {
            return Ok(None);
        };
        let refused = || ConfigError::Value {
            place: format!("{}: {}.{key}", self.path.display(), self.place),
            value: shown(value),
            accepted: accepted(),
        };
        read(value).map(Some).ok_or_else(refused)
    }

    fn value(&self, key: &str, kind: Kind) -> Result<Option<Value>, ConfigError> {
        self.field(key, || kind.accepted(), |value| kind.parse_json(value))
    }

    fn number(&self, key: &str) -> Result<Option<u64>, ConfigError> {
        let read = |value: &Json| match value {
            Json::Number(number) => whole(number),
            Json::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        self.field(
            key,
            || format!("a whole number from 0 to {NUMBER_MAX}"),
            |value| read(value).filter(|number| *number <= NUMBER_MAX),
        )
    }

    fn path(&self, key: &str) -> Result<Option<PathBuf>, ConfigError> {
        let is_path = |text: &&str| !text.is_empty() && !text.contains('\0');
        self.field(
            key,
            || "the path of a directory".to_owned(),
            |value| value.as_str().filter(is_path).map(PathBuf::from),
        )
    }
}

#[cfg(test)]
mod tests;
