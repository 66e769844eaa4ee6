//! The values that were chosen, with where each was chosen.

use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

use super::deepspeed::Offload;
use super::kind::{Field, Value};
use super::options::{Key, OPTIONS, OptionDefinition, find};
use super::{ConfigError, MountFlags};

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

    /// Raises the log filter for `-v` (1) and `-vv`.
    pub fn raise_log(&mut self, verbose: u8) {
        let level = match verbose {
            0 => return,
            1 => "debug",
            _ => "trace",
        };
        self.set(Key::log, Value::Text(level.to_owned()), Origin::Flag);
    }

    /// The value and origin of an option; no value where it is computed from others.
    pub(super) fn get(&self, key: Key) -> (Option<Value>, Origin) {
        match &self.chosen[key as usize] {
            Some((value, origin)) => (Some(value.clone()), origin.clone()),
            None => (OPTIONS[key as usize].built_in(), Origin::BuiltIn),
        }
    }

    /// The value of an option that has one.
    pub(super) fn field<T: Field>(&self, key: Key) -> T {
        let (value, _) = self.get(key);
        let field = value.as_ref().and_then(T::of);
        field.unwrap_or_else(|| unreachable!("{key:?} is {value:?}, which is not of its type"))
    }

    pub(super) fn set(&mut self, key: Key, value: Value, origin: Origin) {
        self.chosen[key as usize] = Some((value, origin));
    }

    pub(super) fn set_text(
        &mut self, option: &OptionDefinition, text: &str, origin: Origin,
    ) -> Result<(), ConfigError> {
        let value = option.kind.parse_text(text).ok_or_else(|| ConfigError::Value {
            place: origin.place(option.name),
            value: format!("{text:?}"),
            accepted: option.kind.accepted(),
        })?;
        self.set(option.key, value, origin);
        Ok(())
    }
}
