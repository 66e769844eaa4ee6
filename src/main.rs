//! The `swapfs` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    swapfs::cli::run(std::env::args_os(), &swapfs::service::SwapFactory)
}
