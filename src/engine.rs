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
//! One mutex guards all state (module `state`); steps under it take microseconds. Nothing larger than a page is copied,
//! and nothing submitted, answered or waited for, while it is held: a step collects what is to be done afterwards in
//! module `actions`. The device's own locks are only taken without it, except that a device may call
//! [`crate::aio::device::CompletionSink::complete`] on its threads while it holds none of its own.
//!
//! # Files
//!
//! A file imports only from those before it in this list; a test sees to that.
//!
//! - What there is: `lock` (the lock's rule), `ids` (numbers and tables), `pages` (sets of pages), `shape` (sizes),
//!   `intake`, `op` (operations as data), `trays`, `block`, `info` (what is counted), `partition`, `waiting`, `watch`,
//!   `actions`, `state`, `check` (its invariants), `memory`.
//! - The engine itself: `budget`, `core` (threads and queues), `locked` (a step's context).
//! - Steps: `buffers` and `small` (room and eviction), `transfer`, `unfinished` (writes that the kernel cut), `open`,
//!   `read`, `direct`, `space`, `write`, `request` (swap-in, release, discard), `hold` (pins and loans), `gate` (changes of
//!   shape), `status`, `sync`, `keeper` (what is due by time), `stop`.
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
mod info;
mod intake;
mod keeper;
mod lock;
mod locked;
mod memory;
mod op;
mod open;
mod pages;
mod partition;
mod read;
mod request;
mod shape;
mod watch;

mod small;
mod space;
mod state;
mod status;
mod stop;
mod sync;
mod transfer;
mod trays;
mod unfinished;
mod waiting;
mod write;

pub(crate) use actions::label;
pub(crate) use budget::{Shortage, Tokens};
pub(crate) use core::BuildError;
pub use core::{Engine, EngineOptions, OpenSwapIn, PAGE_SIZE};
pub(crate) use hold::Hold;
pub use ids::HandleId;
pub use info::{
    CacheStats, ChangeTime, Overlay, PartitionCounts, PartitionInfo, PartitionRow, PartitionStatus,
    PoolInfo, Times, Traffic,
};
pub use intake::Intake;
pub(crate) use lock::assert_outside;
pub(crate) use op::Access;
pub use op::{Caller, Manner, ReadReply, Reply, WriteReply};
pub(crate) use op::{Outcome, Piece};
pub use open::{Admission, Moment};
pub use partition::FileKey;
pub use request::{Asking, Request};
pub(crate) use shape::buffers_moving;
pub use status::Unstored;
pub use sync::FailedReply;
