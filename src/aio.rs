//! Moving bytes between the buffer pool and the swap folder.
//!
//! [`device`] is the seam: the swap engine hands [`device::Transfer`]s to a [`device::Device`] and is
//! called back with [`device::Completion`]s. Everything that knows io_uring, descriptors or O_DIRECT
//! is on this side of it.
//!
//! [`open_device`] chooses between the devices of production, [`uring`] and [`threads`], and puts [`whole`] around
//! it, which continues short transfers. [`null`] moves nothing, for
//! benchmarks. With the feature `testing` there are two more: `memory` has its files in memory, and `fault` makes
//! another device fail on purpose.

mod counters;
pub mod device;
#[cfg(feature = "testing")]
pub mod fault;
pub mod file;
#[cfg(feature = "testing")]
pub mod memory;
pub mod null;
mod open;
pub mod probe;
#[cfg(feature = "testing")]
mod random;
mod settings;
mod tail;
pub mod threads;
pub mod uring;
mod waiting;
pub mod whole;
mod worker;

pub use open::open_device;
pub(crate) use open::refusal;
pub use settings::{AioSettings, Engine};
