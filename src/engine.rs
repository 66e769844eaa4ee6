//! The swap engine: partitions, blocks, residency, eviction, errors. It knows neither FUSE nor io_uring.
//!
//! A partition's bytes live in blocks; a block that is in the pool has one buffer. Clients' reads and
//! writes copy from and to buffers; transfers move whole runs of pages between buffers and the swap
//! folder. Everything that waits is an operation parked with the event that lets it go on.
//!
//! A block has a buffer of its own or a slot of one (module `trays`); who is evicted for whom, and why
//! nobody waits for ever, is told in module `buffers`.
//!
//! # Locks
//!
//! One mutex guards all state (module `state`); steps under it take microseconds. Nothing is copied,
//! submitted, answered or waited for while it is held: a step collects what is to be done afterwards in
//! module `actions`. The device's own locks are only taken without it, except that a device may call
//! [`crate::aio::device::CompletionSink::complete`] on its threads while it holds none of its own.
//!
//! # States of a block
//!
//! Derived from its page sets, never stored: *absent* (no buffer), *reading*, *clean*, *dirty*,
//! *writing*, *writing and dirtied again*, *failed*.
//!
//! | event | absent | reading | clean | dirty | writing | failed |
//! | --- | --- | --- | --- | --- | --- | --- |
//! | client read | takes a buffer, reads the pages it needs | waits | copies | copies; completes partial pages first | copies | copies what is there |
//! | client write | takes a buffer | waits for those pages | copies, dirty | copies; a full block goes out | waits for those pages, others become dirty again | copies, tries again |
//! | transfer done | - | clean; wakes waiters | - | - | clean, or dirty | - |
//! | transfer failed | - | pages stay missing; waiters get the errno | - | - | failed, bytes kept | - |
//! | close, age, pressure | - | - | - | goes out, partial pages completed first | the rest follows | stays; dropped last when nothing else gives room |
//! | fsync | - | - | - | goes out | waits | tried again |
//! | room needed | - | - | evicted, oldest use first | goes out, oldest first | waits | see above |
//! | truncate, punch | - | after it | pages dropped, edges zeroed | the same, the rest stays dirty | after it | the same |
//! | last name and handle gone | - | after it | dropped | dropped unwritten | after it | dropped |
#![doc = include_str!("engine/DESIGN.md")]

mod actions;
mod block;
mod budget;
mod buffers;
#[cfg(any(test, feature = "shuttle", feature = "fuzz"))]
mod check;
mod core;
mod direct;
mod gate;
mod hold;
mod ids;
mod intake;
mod keeper;
mod lend;
mod locked;
mod memory;
mod op;
mod open;
mod pages;
mod partition;
mod read;
mod request;
mod resting;
mod room;
mod seam;
mod settle;

mod small;
mod space;
mod stall;
mod state;
mod status;
mod stop;
mod sync;
mod traffic;
mod transfer;
mod trays;
mod unstored;
mod waiting;
mod write;

pub(crate) use actions::label;
pub(crate) use budget::{Shortage, Tokens};
pub use core::{Engine, EngineOptions, OpenSwapIn, PAGE_SIZE};
pub(crate) use direct::{Outcome, Piece};
pub(crate) use hold::{Access, Hold};
pub use ids::HandleId;
pub use intake::Intake;
pub(crate) use locked::assert_outside;
pub use op::{ReadReply, Reply, WriteReply};
pub use open::{Admission, Moment};
pub use partition::{ChangeTime, FileKey, PartitionStatus};
pub use request::{Asking, Request};
pub use seam::{Caller, Manner};
pub use state::CacheStats;
pub(crate) use state::buffers_moving;
pub use status::{Overlay, PartitionCounts, PartitionInfo, PoolInfo};
pub use sync::FailedReply;
pub use traffic::{PartitionRow, Times, Traffic};
pub use unstored::Unstored;
