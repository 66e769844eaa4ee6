//! Moving bytes between the buffer pool and the swap folder.
//!
//! [`device`] is the seam: the swap engine hands [`device::Transfer`]s to a [`device::Device`] and is
//! called back with [`device::Completion`]s. Everything that knows io_uring, descriptors or O_DIRECT
//! is on this side of it.
//!
//! [`open_device`] chooses between the devices of production, [`uring`] and [`threads`]; [`memory`]
//! is the one without a disk, [`null`] the one without anything, and [`fault`] makes any of them fail on
//! purpose.

mod counters;
pub mod device;
pub mod fault;
pub mod file;
pub mod memory;
pub mod null;
mod open;
pub mod probe;
mod random;
mod settings;
mod tail;
pub mod threads;
pub mod uring;
mod waiting;

pub use open::open_device;
pub(crate) use open::refusal;
pub use settings::{AioSettings, Engine};
