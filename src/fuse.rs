//! The FUSE transport: decodes requests, calls the [`crate::volume::Volume`], replies.
//!
//! Only here is fuser known. Nothing in this layer decides anything about swapping; replies that have to
//! wait travel into the engine as closures and are sent from its threads.

mod adapter;
mod attr;
mod control;
mod data;
mod front;
mod opened;
mod session;
pub mod trial;

pub(crate) use front::WAKE_REQUESTS;
pub use front::intakes;
pub use session::{Serving, serve};
