//! The buffer pool's memory: one page-aligned, pinned mapping, and leases on runs of its bytes.

mod arena;
mod lease;
mod sole;

pub use arena::{Arena, ArenaOptions};
pub use lease::{ReadLease, WriteLease};
pub use sole::SoleArena;
