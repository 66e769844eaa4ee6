//! The buffer pool's memory: one page-aligned, pinned mapping, leases on runs of its bytes, and buffers to
//! allocate from it.

mod arena;
mod borrowed;
mod buffers;
mod lease;
mod sole;

pub(crate) use arena::free_huge_bytes;
pub use arena::{Arena, ArenaOptions, HUGE_PAGE_BYTES};
pub(crate) use borrowed::with_lease;
pub use buffers::{BufferPool, PoolBuffer};
pub(crate) use buffers::{BufferSource, Loan};
pub use lease::{ReadLease, WriteLease};
pub use sole::SoleArena;
