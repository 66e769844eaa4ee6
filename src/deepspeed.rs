//! DeepSpeed's interfaces as a library: the partition swapper over an engine, and the aio handle over a device.
#![doc = include_str!("deepspeed/METHODS.md")]

pub mod handle;
pub mod swapper;

pub use handle::{Handle, HandleOptions, LockedTensor};
pub use swapper::{SwapError, Swapper, SwapperOptions};
