//! The FUSE transport: decodes requests, calls the [`crate::volume::Volume`], replies.
//!
//! Threads (`readers`) receive requests from the kernel (`channel`), each into memory of its own (`request_buffer`).
//! What clients ask all day is answered by the `front`; the rest goes through a socket (`relay`) to fuser and its
//! `adapter`. [`crate::opcode`] lists which is which.
//!
//! Only here are FUSE and fuser known. Nothing in this layer decides anything about swapping. Replies that have to
//! wait travel into the engine as closures and are sent from its threads.

mod abi;
mod access_note;
mod adapter;
mod attr;
mod channel;
mod file_io;
mod front;
mod inline_reads;
mod namespace;
mod prune;
mod readers;
mod relay;
mod reply;
mod request_buffer;
mod session;
pub mod trial;
mod write_offset_guess;
mod xattrs;

pub(crate) use readers::CPU_LATENCY_REQUESTS;
pub use request_buffer::intakes;
pub use session::{Serving, serve};
