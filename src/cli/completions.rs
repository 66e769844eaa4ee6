//! `swapfs completions`.

use clap::CommandFactory;

use super::{Cli, Failure, print};

pub(super) fn run(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "swapfs", &mut script);
    print(String::from_utf8_lossy(&script).trim_end())
}
