//! The `swapfs` command.
fn main() {}
