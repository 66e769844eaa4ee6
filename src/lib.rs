//! swapfs: partitions of tensors as files, moved between memory and NVMe through one bounded buffer pool.

pub mod aio;
pub mod error;
pub mod fs;
pub mod fuse;
pub mod pool;
pub mod swap;
pub mod sys;
pub mod volume;
