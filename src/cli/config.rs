//! `swapfs config`.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde_json::Value as Json;

use super::watch::read_json;
use super::{ConfigArgs, Failure, print, print_json, table};
use crate::config::{Config, Row};
use crate::streams::tell;

/// The commands about the configuration.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// The configuration that a mount with these arguments would have, with the origin of each value.
    Show(ShowArgs),
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
            Self::Default { .. } => print_json(&Config::default().to_template()),
            Self::Show(arguments) => arguments.run(),
        }
    }
}

impl ShowArgs {
    fn run(self) -> Result<(), Failure> {
        let (json, rows) = match &self.mountpoint {
            Some(mountpoint) => of_mount(mountpoint)?,
            None => {
                let config = self.config.settings(0)?.build()?;
                warn(&config);
                (config.to_json(), config.rows().into_iter().map(columns).collect())
            }
        };
        if self.json {
            return print_json(&json);
        }
        let mut table = table(&["KEY", "VALUE", "ORIGIN"]);
        table.add_rows(rows);
        print(&table.trim_fmt())
    }
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
fn of_mount(mountpoint: &Path) -> Result<(Json, Vec<[String; 3]>), Failure> {
    let json = read_json(mountpoint, "config.json")?;
    let text = |value: &Json| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let entries = json.as_object().into_iter().flatten();
    let rows = entries
        .map(|(key, entry)| [key.clone(), text(&entry["value"]), text(&entry["origin"])])
        .collect();
    Ok((json, rows))
}
