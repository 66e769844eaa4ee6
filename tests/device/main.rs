//! The devices: one conformance suite over all of them, and what is particular to each.

mod conformance;
mod fault;
mod harness;
mod memlock;
mod null;
mod uring;
mod whole;
