//! swapfs: partitions of tensors as files, moved between memory and NVMe through one bounded buffer pool.
//!
//! [decisions]: #decisions
//! [engine design]: crate::engine
//! [volume design]: crate::volume
//! [daemon design]: crate::daemon
//! [recovery model]: crate::ledger
//! [methods]: crate::deepspeed
// The links above take the place of those at the end of ARCHITECTURE.md, which lead to files: the first definition of a link counts.
#![doc = ""]
#![doc = include_str!("ARCHITECTURE.md")]
#![doc = ""]
#![doc = include_str!("DECISIONS.md")]
// Those panic when nobody reads what they write: see `streams`.
#![warn(clippy::print_stdout, clippy::print_stderr)]

pub mod aio;
pub mod bench;
mod capabilities;
pub mod check;
pub mod cli;
mod concurrent;
pub mod config;
pub mod daemon;
pub mod deepspeed;
mod descent;
pub mod engine;
pub mod error;
mod file_clock;
pub mod fs;
pub mod fuse;
mod held;
pub mod install;
pub mod ledger;
mod machine;
pub mod memory;
pub mod metrics;
pub mod mount;
pub mod noise;
pub mod opcode;
mod panics;
mod paths;
pub mod plot;
pub mod pool;
mod sandbox;
pub mod service;
pub mod shares;
mod streams;
pub mod sys;
pub mod sys_process;
mod trust;
pub mod tune;
pub mod turns;
pub mod units;
pub mod volume;

pub use config::Config;

/// The version, and the revision of the sources where that is known: `0.1.0 (0123456789ab)`.
pub const VERSION: &str = env!("SWAPFS_VERSION");

// The programs in the README are compiled with the tests of the documentation.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
