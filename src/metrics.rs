//! Counting and watching: what costs next to nothing while work goes on, and what shows it to others.
//!
//! On the way of a request there are a few relaxed additions to memory that belongs to a few threads
//! ([`Requests`]) and two looks at the clock; no lock, no allocation. Histograms have fixed buckets, powers of
//! two ([`Histogram`]). The [`AccessLog`] costs one load while nobody reads it. Everything else here runs when
//! somebody asks, or a few times a minute.

mod access;
mod definition;
mod histogram;
pub mod http;
pub(crate) mod lines;
mod listener;
mod recorder;
mod requests;
pub mod text;
mod textfile;
mod wear;

pub use access::{AccessLog, LineReply, READERS_MAX};
pub use definition::{Kind, MetricDefinition, Reading, Unit};
pub use histogram::{Histogram, Snapshot};
pub use listener::Listener;
pub use recorder::Recorder;
pub use requests::{Note, Operation, OperationCounts, Requests, Ticket, Watch};
pub use textfile::write_textfile;
pub use wear::{Day, Wear, today};
