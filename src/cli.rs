//! The command line: what can be typed, and what each command does with it.
//!
//! [`run`] parses and executes; the result is the exit status: 0 done, 1 failed with one line on
//! standard error, 2 wrong usage.

mod bar;
mod below;
mod bench;
mod check;
mod columns;
mod completions;
mod config;
mod debug;
mod fsck;
mod helpers;
mod install;
mod interrupt;
mod mount;
mod options;
mod output;
mod profile;
mod request;
mod stats;
mod status;
mod top;
mod tune;
mod umount;
mod watch;

pub use bench::BenchArgs;
pub use check::CheckArgs;
pub use config::ConfigCommand;
pub use debug::DebugArgs;
pub use fsck::FsckArgs;
pub use helpers::{MountHelper, UmountHelper};
pub use install::InstallArgs;
pub use mount::MountArgs;
pub use options::{ConfigArgs, OptionFlags};
pub use profile::ProfileArgs;
pub use request::RequestArgs;
pub use stats::StatsArgs;
pub use status::StatusArgs;
pub use top::TopArgs;
pub use tune::TuneArgs;
pub use umount::UmountArgs;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::{ArgAction, Parser, Subcommand};

use crate::config::ConfigError;
use crate::daemon::Factory;
use crate::paths::{plain, plain_json, plain_lines};
use crate::streams::{tell, write_report};
use request::Request;

/// A FUSE filesystem that moves tensors between memory and NVMe through one bounded buffer pool.
#[derive(Debug, Parser)]
#[command(name = "swapfs", version = crate::VERSION, max_term_width = 100)]
pub struct Cli {
    /// Say more; twice for everything.
    #[arg(short, long, action = ArgAction::Count, global = true)]
    pub verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount a swap folder; returns when the mount answers.
    Mount(MountArgs),
    /// Synchronize, unmount, and wait until the daemon has gone.
    Umount(UmountArgs),
    /// Can this machine and these folders do it? What fails or is slow is named, with the mend.
    Check(CheckArgs),
    /// Verify a swap folder that is not mounted against its checksums.
    Fsck(FsckArgs),
    /// Measure which aio settings suit a folder best, and write them for --config and for DeepSpeed.
    Tune(TuneArgs),
    /// Show the mounts, or the partitions of a mount.
    Status(StatusArgs),
    /// Show what a mount does, a line every so often.
    Stats(StatsArgs),
    /// Show a mount and its partitions by traffic on the whole screen.
    Top(TopArgs),
    /// Sum up an access log: what took how long, by operation, path, process or user.
    Profile(ProfileArgs),
    /// Put what somebody who helps needs to know into one archive: no contents, and no names unless asked.
    Debug(DebugArgs),
    /// Read partitions into the pool, where they stay until they are released.
    SwapIn(RequestArgs),
    /// Write what the pool has of partitions to the swap folder.
    SwapOut(RequestArgs),
    /// Write what is dirty, then drop the partitions' buffers.
    Release(RequestArgs),
    /// Measure reading and writing: the library, a mount, and their peers on the same files.
    Bench(Box<BenchArgs>),
    /// A process of `bench`.
    #[command(hide = true)]
    BenchWorker,
    /// A mount without a device, for `bench`.
    #[command(hide = true)]
    BenchNullMount(MountArgs),
    /// Show the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Put manual pages, completions and the helpers of mount(8) in place, or take them away.
    Install(InstallArgs),
    /// Print the completion script of a shell.
    Completions {
        /// Which shell.
        shell: clap_complete::Shell,
    },
}

/// Why a command did not do what it was asked to.
#[derive(Debug)]
pub enum Failure {
    /// It could not: exit status 1, of a mount helper 32.
    Failed(String),
    /// It was called wrongly: exit status 2, of a mount helper 1.
    Usage(String),
    /// The same in clap's words, or the help that was asked for (0).
    Parse(clap::Error),
}

impl From<String> for Failure {
    fn from(line: String) -> Self {
        Self::Failed(line)
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        match error.is_usage() {
            true => Self::Usage(error.to_string()),
            false => Self::Failed(error.to_string()),
        }
    }
}

/// Parses the arguments (the first is the program's name) and runs the command. `factory` makes the
/// filesystem that `mount` serves.
pub fn run(arguments: impl IntoIterator<Item = OsString>, factory: &dyn Factory) -> ExitCode {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let program = arguments.first().map(Path::new).and_then(Path::file_name);
    let (result, statuses) = match program.and_then(OsStr::to_str) {
        Some(name) if helpers::MOUNT_NAMES.contains(&name) => {
            (parse::<MountHelper>(&arguments).and_then(|call| call.run(factory)), HELPER)
        }
        Some(helpers::UMOUNT_NAME) => {
            (parse::<UmountHelper>(&arguments).and_then(UmountHelper::run), HELPER)
        }
        _ => {
            let arguments = options::join_switches(options::dash_names(arguments));
            (parse::<Cli>(&arguments).and_then(|cli| cli.run(factory)), COMMAND)
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(line)) => {
            tell!("{}", plain_lines(&line));
            ExitCode::from(statuses.failed)
        }
        Err(Failure::Usage(line)) => {
            tell!("{}", plain_lines(&line));
            ExitCode::from(statuses.usage)
        }
        Err(Failure::Parse(error)) => {
            let is_wrong = error.use_stderr();
            match error.print() {
                Err(error) if !is_wrong && error.kind() != std::io::ErrorKind::BrokenPipe => {
                    tell!("standard output: {}", crate::sys_process::reason(&error));
                    ExitCode::from(statuses.failed)
                }
                _ => ExitCode::from(if is_wrong { statuses.usage } else { 0 }),
            }
        }
    }
}

/// What a failure's exit status is.
struct Statuses {
    failed: u8,
    usage: u8,
}

const COMMAND: Statuses = Statuses { failed: 1, usage: 2 };

/// As mount(8) defines them: 32 is a mount or unmount that failed, 1 a wrong call.
const HELPER: Statuses = Statuses { failed: 32, usage: 1 };

fn parse<P: Parser>(arguments: &[OsString]) -> Result<P, Failure> {
    P::try_parse_from(arguments).map_err(Failure::Parse)
}

impl Cli {
    fn run(self, factory: &dyn Factory) -> Result<(), Failure> {
        match self.command {
            Command::Mount(arguments) => arguments.run(self.verbose, factory),
            Command::Umount(arguments) => arguments.run(),
            Command::Check(arguments) => arguments.run(self.verbose),
            Command::Fsck(arguments) => arguments.run(),
            Command::Tune(arguments) => arguments.run(self.verbose),
            Command::Status(arguments) => arguments.run(),
            Command::Stats(arguments) => arguments.run(),
            Command::Top(arguments) => arguments.run(),
            Command::Profile(arguments) => arguments.run(),
            Command::Debug(arguments) => arguments.run(),
            Command::SwapIn(arguments) => arguments.run(Request::SwapIn),
            Command::SwapOut(arguments) => arguments.run(Request::SwapOut),
            Command::Release(arguments) => arguments.run(Request::Release),
            Command::Bench(arguments) => arguments.run(),
            Command::BenchWorker => match crate::bench::worker::work() {
                // The benchmark was killed.
                Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
                other => Ok(other.map_err(|error| crate::sys_process::reason(&error))?),
            },
            Command::BenchNullMount(arguments) => {
                arguments.run(self.verbose, &crate::service::NullFactory)
            }
            Command::Config(command) => command.run(),
            Command::Install(arguments) => arguments.run(),
            Command::Completions { shell } => completions::run(shell),
        }
    }
}

/// Writes a report to standard output; a reader that has gone away is no error. Whatever names are in it, it does not
/// steer the terminal.
fn print(text: &str) -> Result<(), Failure> {
    print_on(text).map(|_| ())
}

/// The same for reports that go on: false when nobody reads them any more.
fn print_on(text: &str) -> Result<bool, Failure> {
    write_report(&plain_lines(text)).map_err(|error| {
        Failure::Failed(format!("standard output: {}", crate::sys_process::reason(&error)))
    })
}

/// Reads a whole number from a command line.
fn whole<T: std::str::FromStr<Err = std::num::ParseIntError>>(text: &str) -> Result<T, String> {
    use std::num::IntErrorKind::PosOverflow;
    text.parse().map_err(|error: std::num::ParseIntError| match error.kind() {
        PosOverflow => "give a smaller number".to_owned(),
        _ => "give a whole number".to_owned(),
    })
}

/// The line about a path that cannot be looked at.
fn line_about(path: &Path, error: &std::io::Error) -> String {
    match crate::mount::is_dead(error) {
        true => crate::mount::dead_mount_line(path),
        false => format!("{}: {}", plain(path), crate::sys_process::reason(error)),
    }
}

/// Writes a report as JSON.
fn print_json(value: &(impl serde::Serialize + ?Sized)) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| error.to_string())?;
    print(&plain_json(&text))
}

/// A table without lines, for people and `awk` alike.
fn table(header: &[&str]) -> comfy_table::Table {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING).set_header(header.to_vec());
    table
}
