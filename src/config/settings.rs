//! The values that were chosen, with where each was chosen.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::deepspeed::Offload;
use super::options::{OPTIONS, OptionDefinition, Value, find};
use super::{Config, ConfigError, MountFlags};
use crate::memory;

/// Where a value came from. Later ones override earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in default.
    BuiltIn,
    /// A key of this machine's defaults.
    Defaults(PathBuf),
    /// A variable of the environment, by its name.
    Variable(String),
    /// A key of the configuration file.
    File(PathBuf),
    /// What the file says about DeepSpeed's offloading.
    Offload {
        /// The configuration file.
        path: PathBuf,
        /// The section, and what was reckoned from it.
        from: String,
    },
    /// `-o name=value`.
    MountOption,
    /// `--name value`.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::BuiltIn => f.write_str("built-in"),
            Origin::Defaults(path) | Origin::File(path) => write!(f, "file {}", path.display()),
            Origin::Variable(name) => write!(f, "variable {name}"),
            Origin::Offload { path, from } => write!(f, "file {} ({from})", path.display()),
            Origin::MountOption => f.write_str("-o"),
            Origin::Flag => f.write_str("flag"),
        }
    }
}

impl Origin {
    /// The option as the user wrote it there, for error messages.
    pub(super) fn place(&self, name: &str) -> String {
        match self {
            Origin::BuiltIn => name.to_owned(),
            Origin::Variable(variable) => variable.clone(),
            Origin::Defaults(path) | Origin::File(path) | Origin::Offload { path, .. } => {
                format!("{}: {name}", path.display())
            }
            Origin::MountOption => format!("-o {name}"),
            Origin::Flag => format!("--{}", name.replace('_', "-")),
        }
    }
}

/// The defaults of this machine.
const DEFAULTS_FILE: &str = "/etc/swapfs/config.json";

/// What the names of variables begin with; the option's name follows, in capitals.
const VARIABLE_PREFIX: &str = "SWAPFS_";

/// How like an option's name that of a variable is that was meant for it.
const MEANT: f64 = 0.93;

/// Collects the sources of a configuration. Call in rising order of precedence: [`Settings::read_defaults`],
/// [`Settings::read_variables`], [`Settings::read_file`], [`Settings::mount_options`], [`Settings::flag`]; then
/// [`Settings::build`].
#[derive(Debug, Clone, Default)]
pub struct Settings {
    chosen: [Option<(Value, Origin)>; OPTIONS.len()],
    pub(super) mount: MountFlags,
    /// What the file says about DeepSpeed's offloading; `None` when there is no file.
    pub(super) offload: Option<Offload>,
    /// Lines for the user about what was understood and is ignored.
    pub(super) warnings: Vec<String>,
}

impl Settings {
    /// Nothing chosen yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With the defaults of this machine and those of the environment.
    pub fn with_defaults() -> Result<Self, ConfigError> {
        let mut settings = Self::new();
        settings.read_defaults(Path::new(DEFAULTS_FILE))?;
        settings.read_variables(std::env::vars_os())?;
        Ok(settings)
    }

    /// Takes over the `aio` and `swapfs` blocks of the defaults, where the file is there and is root's.
    pub fn read_defaults(&mut self, path: &Path) -> Result<(), ConfigError> {
        super::file::read_defaults(self, path)
    }

    /// Takes over variables such as `SWAPFS_POOL_SIZE`. An empty one is as if not set.
    pub fn read_variables(
        &mut self, variables: impl Iterator<Item = (OsString, OsString)>,
    ) -> Result<(), ConfigError> {
        for (variable, value) in variables {
            let variable = variable.to_string_lossy();
            let Some(name) = variable.strip_prefix(VARIABLE_PREFIX) else { continue };
            let name = name.to_ascii_lowercase();
            match find(&name) {
                Some(_) if value.is_empty() => {}
                Some(option) => {
                    let text = value.to_string_lossy();
                    self.set_text(option, &text, Origin::Variable(variable.into_owned()))?;
                }
                // Others have variables of that prefix too.
                None => {
                    let names = OPTIONS.iter().map(|option| option.name);
                    let meant = super::error::nearest(&name, names)
                        .filter(|meant| strsim::jaro_winkler(&name, meant) >= MEANT);
                    self.warnings.extend(meant.map(|meant| {
                        let (shown, meant) = (super::json::shown_key(&variable), meant.to_ascii_uppercase());
                        format!("{shown}: no such variable; the nearest is {VARIABLE_PREFIX}{meant}; ignored")
                    }));
                }
            }
        }
        Ok(())
    }

    /// Takes over the values of a JSON file.
    pub fn read_file(&mut self, path: &Path) -> Result<(), ConfigError> {
        super::file::read(self, path)
    }

    /// Takes over a comma-separated `-o` list: swapfs's own options and those of mount(8). With
    /// `sloppy`, unknown names are skipped, as mount(8)'s `-s` asks.
    pub fn mount_options(&mut self, list: &str, sloppy: bool) -> Result<(), ConfigError> {
        super::mount_options::apply(self, list, sloppy)
    }

    /// Takes over the value of a flag; `name` is the option's, with underscores.
    pub fn flag(&mut self, name: &str, text: &str) -> Result<(), ConfigError> {
        let option = find(name).ok_or_else(|| ConfigError::UnknownOption {
            name: super::json::shown_key(name),
            nearest: super::error::nearest(name, OPTIONS.iter().map(|option| option.name)),
        })?;
        self.set_text(option, text, Origin::Flag)
    }

    /// The checked configuration.
    pub fn build(mut self) -> Result<Config, ConfigError> {
        self.size_pool();
        self.round_pool();
        Config::from_settings(self)
    }

    /// A pool is whole buffers: what is over is left out, and not shown as if it were there.
    fn round_pool(&mut self) {
        let (size, block_size) = (self.number("pool_size"), self.number("block_size"));
        if !size.is_multiple_of(block_size) {
            let option = find("pool_size").expect("pool_size is in the table");
            let origin = self.get("pool_size").1;
            self.set(option, Value::Size(size / block_size * block_size), origin);
        }
    }

    /// Unless a size was chosen, the pool follows DeepSpeed's buffers where the file has them.
    fn size_pool(&mut self) {
        let Some(offload) = &self.offload else { return };
        let chosen = self.get("pool_size").1;
        let is_default =
            matches!(chosen, Origin::BuiltIn | Origin::Defaults(_) | Origin::Variable(_));
        if is_default
            && let Some((bytes, origin)) =
                offload.pool(self.number("block_size"), memory::available())
        {
            let option = find("pool_size").expect("pool_size is in the table");
            self.set(option, Value::Size(bytes), origin);
        }
    }

    /// The value and origin of an option; no value where it is computed from others.
    pub(super) fn get(&self, name: &str) -> (Option<Value>, Origin) {
        let index = OPTIONS.iter().position(|option| option.name == name);
        let index = index.unwrap_or_else(|| unreachable!("{name} is not in the table"));
        match &self.chosen[index] {
            Some((value, origin)) => (Some(value.clone()), origin.clone()),
            None => (OPTIONS[index].kind.parse_text(OPTIONS[index].default), Origin::BuiltIn),
        }
    }

    pub(super) fn set(&mut self, option: &OptionDefinition, value: Value, origin: Origin) {
        let index = OPTIONS.iter().position(|other| other.name == option.name);
        self.chosen[index.expect("definitions come from the table")] = Some((value, origin));
    }

    pub(super) fn set_text(
        &mut self, option: &OptionDefinition, text: &str, origin: Origin,
    ) -> Result<(), ConfigError> {
        let value = option.kind.parse_text(text).ok_or_else(|| ConfigError::Value {
            place: origin.place(option.name),
            value: format!("{text:?}"),
            accepted: option.kind.accepted(),
        })?;
        self.set(option, value, origin);
        Ok(())
    }

    /// A size, which has a default that is not computed.
    pub(super) fn number(&self, name: &str) -> u64 {
        match self.get(name).0 {
            Some(Value::Size(bytes)) => bytes,
            other => unreachable!("{name} is {other:?}, not a size"),
        }
    }

    pub(super) fn count(&self, name: &str) -> u32 {
        match self.get(name).0 {
            Some(Value::Count(count)) => count,
            other => unreachable!("{name} is {other:?}, not a count"),
        }
    }

    pub(super) fn switch(&self, name: &str) -> bool {
        match self.get(name).0 {
            Some(Value::Switch(on)) => on,
            other => unreachable!("{name} is {other:?}, not a switch"),
        }
    }

    pub(super) fn text(&self, name: &str) -> String {
        match self.get(name).0 {
            Some(Value::Text(text)) => text,
            other => unreachable!("{name} is {other:?}, not a text"),
        }
    }
}
