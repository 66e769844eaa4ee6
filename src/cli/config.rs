//! `swapfs config`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::{Value as Json, json};

use super::watch::read_json;
use super::{ConfigArgs, Failure, print, print_json, table};
use crate::config::{Config, Row, shown_value};
use crate::streams::tell;

/// The commands about the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// The configuration that a mount with these arguments would have, with the origin of each value.
    Show(ShowArgs),
    /// The JSON Schema of a configuration file, for editors and checkers.
    Schema {
        /// JSON, which it is anyway.
        #[arg(long)]
        json: bool,
    },
    /// The template of a configuration file with all defaults.
    Default {
        /// JSON, which it is anyway.
        #[arg(long)]
        json: bool,
    },
}

/// Arguments of `swapfs config show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// Show the configuration in force on this mount instead.
    pub mountpoint: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
    /// The configuration's sources.
    #[command(flatten)]
    pub config: ConfigArgs,
}

impl ConfigCommand {
    pub(super) fn run(self) -> Result<(), Failure> {
        match self {
            Self::Schema { .. } => print_json(&crate::config::schema()),
            Self::Default { .. } => print_json(&Config::default().to_template()),
            Self::Show(arguments) => arguments.run(),
        }
    }
}

impl ShowArgs {
    fn run(self) -> Result<(), Failure> {
        let shown = match &self.mountpoint {
            Some(mountpoint) => of_mount(mountpoint)?,
            None => self.of_sources()?,
        };
        if self.json {
            return print_json(&shown.json);
        }
        let mut table = table(&["KEY", "VALUE", "ORIGIN"]);
        table.add_rows(shown.rows);
        print(&table.trim_fmt())?;
        shown.note.map_or(Ok(()), |note| print(&format!("\n{note}")))
    }

    /// What a mount with these arguments would have.
    fn of_sources(&self) -> Result<Shown, Failure> {
        let config = self.config.settings(0)?.build()?;
        warn(&config);
        let mut json = config.to_json();
        let mut rows: Vec<_> = config.rows().into_iter().map(columns).collect();
        let mut note = None;
        if let Some((row, refusal)) = config.place() {
            let path = (!row.value.is_empty()).then(|| row.value.clone());
            json[row.key] = json!({"value": path, "origin": row.origin, "refusal": refusal});
            note = Some(match (&path, refusal) {
                (Some(path), _) => format!(
                    "Without SWAP_FOLDER and MOUNTPOINT, {path} would be both: mounted over itself."
                ),
                (None, refusal) => {
                    let why = refusal.unwrap_or_default();
                    format!("Without SWAP_FOLDER and MOUNTPOINT nothing would be mounted: {why}")
                }
            });
            rows.extend(path.map(|_| columns(row)));
        }
        Ok(Shown { json, rows, note })
    }
}

/// A configuration to be printed.
struct Shown {
    json: Json,
    rows: Vec<[String; 3]>,
    /// A line about it.
    note: Option<String>,
}

/// Says what the configuration file asks for in vain.
pub(super) fn warn(config: &Config) {
    for line in config.warnings() {
        tell!("{line}");
    }
}

fn columns(row: Row) -> [String; 3] {
    [row.key.to_owned(), row.value, row.origin]
}

/// The JSON that a mount shows, and its rows.
fn of_mount(mountpoint: &Path) -> Result<Shown, Failure> {
    let json = read_json(mountpoint, "config.json")?;
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let entries = json.as_object().into_iter().flatten();
    let rows = entries
        .map(|(key, entry)| {
            [key.clone(), shown_value(key, &entry["value"]), text(&entry["origin"])]
        })
        .collect();
    Ok(Shown { json, rows, note: None })
}
