//! The mount options as flags, made from the one table of options.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::Error;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};

use super::Failure;
use crate::config::{Kind, OPTIONS, OptionDefinition, Settings, parse_switch};

/// Where a configuration comes from.
#[derive(Debug, Args)]
pub struct ConfigArgs {
    /// Read this JSON file; a DeepSpeed configuration will do.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Mount options, with commas between; may be given several times.
    #[arg(short = 'o', value_name = "OPT,...", action = ArgAction::Append)]
    pub options: Vec<String>,
    /// The same options as flags.
    #[command(flatten)]
    pub flags: OptionFlags,
}

impl ConfigArgs {
    /// Collects file, `-o` and flags. With `verbose`, the log filter is raised unless a flag sets it.
    pub fn settings(&self, verbose: u8) -> Result<Settings, Failure> {
        let mut settings = Settings::with_defaults()?;
        if let Some(path) = &self.config {
            settings.read_file(path)?;
        }
        for list in &self.options {
            settings.mount_options(list, false)?;
        }
        settings.raise_log(verbose);
        for (name, text) in &self.flags.chosen {
            settings.flag(name, text)?;
        }
        Ok(settings)
    }
}

/// The options given as `--long-name VALUE`.
#[derive(Debug, Default)]
pub struct OptionFlags {
    /// Name and text of each, in the table's order.
    pub chosen: Vec<(&'static str, String)>,
}

impl Args for OptionFlags {
    fn augment_args(command: Command) -> Command {
        OPTIONS.iter().fold(command, |command, option| command.arg(flag(option)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for OptionFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.chosen = OPTIONS
            .iter()
            .filter_map(|option| {
                let text = matches.get_one::<String>(option.name)?;
                Some((option.name, text.clone()))
            })
            .collect();
        Ok(())
    }
}

fn long_name(option: &OptionDefinition) -> String {
    option.name.replace('_', "-")
}

fn flag(option: &'static OptionDefinition) -> Arg {
    let arg = Arg::new(option.name)
        .long(long_name(option))
        .value_name(option.kind.form())
        .help(option.help_with_default())
        .help_heading("Mount options, also as -o name=value and in the configuration file")
        .overrides_with(option.name);
    match option.kind {
        // The value may be left out; see `join_switches`.
        Kind::Switch => arg.num_args(0..=1).require_equals(true).default_missing_value("on"),
        _ => arg,
    }
}

/// Spells the names of long options with dashes: `--io_size 1M`, as DeepSpeed's tools have it, is
/// `--io-size 1M`.
pub(super) fn dash_names(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut open = true;
    let spelt = arguments.into_iter().map(|argument| {
        open &= argument != "--";
        match argument.to_str().and_then(|text| text.strip_prefix("--")) {
            Some(rest) if open => match rest.split_once('=') {
                Some((name, value)) => format!("--{}={value}", name.replace('_', "-")).into(),
                None => format!("--{}", rest.replace('_', "-")).into(),
            },
            _ => argument,
        }
    });
    spelt.collect()
}

/// Turns `--switch VALUE` into `--switch=VALUE` where VALUE is a switch's value, so that the value may be
/// left out before a path (`--ro FOLDER`).
pub(super) fn join_switches(arguments: Vec<OsString>) -> Vec<OsString> {
    let is_switch = |argument: &OsString| {
        let name = argument.to_str().and_then(|text| text.strip_prefix("--"));
        name.is_some_and(|name| {
            OPTIONS.iter().any(|option| option.kind == Kind::Switch && long_name(option) == name)
        })
    };
    let mut joined: Vec<OsString> = Vec::with_capacity(arguments.len());
    let mut open = true;
    for argument in arguments {
        let is_value = argument.to_str().and_then(parse_switch).is_some();
        match joined.last_mut() {
            Some(last) if open && is_value && is_switch(last) => {
                last.push("=");
                last.push(argument);
            }
            _ => {
                open &= argument != "--";
                joined.push(argument);
            }
        }
    }
    joined
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joined(line: &str) -> String {
        let words = line.split(' ').map(OsString::from).collect();
        join_switches(words).join(std::ffi::OsStr::new(" ")).into_string().unwrap()
    }

    #[test]
    fn only_names_of_options_are_spelt_with_dashes() {
        let words = |line: &str| line.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (given, expected) in [
            ("tune --io_size 1_M a_b", "tune --io-size 1_M a_b"),
            ("--output=a_b.json --no_read", "--output=a_b.json --no-read"),
            ("-o pool_size=1g -- --a_b", "-o pool_size=1g -- --a_b"),
        ] {
            assert_eq!(dash_names(words(given)), words(expected));
        }
    }

    #[test]
    fn only_values_of_switches_are_joined() {
        assert_eq!(joined("mount --ro on a b"), "mount --ro=on a b");
        assert_eq!(joined("mount --ro a b"), "mount --ro a b");
        assert_eq!(
            joined("--pin-memory false --queue-depth 1"),
            "--pin-memory=false --queue-depth 1"
        );
        assert_eq!(joined("-- --ro on"), "-- --ro on");
    }
}
