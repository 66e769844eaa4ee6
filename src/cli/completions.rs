//! `swapfs completions`.

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Cli, Failure, print};

pub(super) fn run(shell: Shell) -> Result<(), Failure> {
    print(String::from_utf8_lossy(&script(shell)).trim_end())
}

/// The completion script of a shell.
pub(super) fn script(shell: Shell) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "swapfs", &mut script);
    script
}
