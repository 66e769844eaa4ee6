//! What the benchmark and its processes say to each other: one JSON value a line, over pipes.
//!
//! A round is `Job`, answered `Ready` by each process; then `Go` to all at once, answered `Done` by each
//! when its own work is done; then `Release`, the barrier, answered `Finished`. Replies begin with
//! [`MARK`], so that whatever libraries print in between is passed over.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::case::{Access, Order};
use super::settings::Engine;

/// First byte of a reply's line.
pub(super) const MARK: char = '@';

/// To a process, once.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Setup {
    pub(super) memory: u64,
    pub(super) block_size: u64,
    pub(super) queue_depth: u32,
    pub(super) single_submit: bool,
    pub(super) overlap_events: bool,
    pub(super) io_parallel: u32,
    pub(super) seed: u64,
}

/// To a process, for each round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    pub(super) engine: Engine,
    #[serde(with = "crate::paths::exact_list")]
    pub(super) files: Vec<PathBuf>,
    /// Bytes of each file.
    pub(super) each: u64,
    pub(super) access: Access,
    pub(super) order: Order,
    pub(super) seed: u64,
    pub(super) sync: bool,
    pub(super) validate: bool,
}

/// To a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "order", content = "with")]
pub(super) enum Message {
    Setup(Setup),
    Job(Job),
    Go,
    Release,
}

/// From a process.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", tag = "reply", content = "with")]
pub(super) enum Reply {
    Ready,
    Done,
    /// Seconds: of the work alone, and with the barrier.
    Finished {
        task: f64,
        e2e: f64,
    },
    /// Something that the user should know about the figures; may come before any other reply.
    Note(String),
    /// One line for the user.
    Failed(String),
}
