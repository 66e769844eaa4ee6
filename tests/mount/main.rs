//! What a user of a mount may rely on, checked from outside: the real command, real mounts, real files.
//!
//! Each test's comment is the sentence it proves. Every wait is bounded: a mount that does not answer is
//! taken away from under its test (see [`place`]), which then fails.

mod bytes;
mod control;
mod disks;
mod errors;
mod exchange;
mod front;
mod group;
mod hostile;
mod integrity;
mod libaio;
mod life;
mod maps;
mod metrics;
mod names;
mod openers;
mod owners;
mod place;
mod polls;
mod processes;
mod processors;
mod prometheus;
mod recovery;
mod requests;
mod rest;
mod rights;
mod room;
mod rush;
mod setids;
mod small;
mod space;
mod sparse;
mod stall;
mod stop;
mod support;
#[path = "../terminal/mod.rs"]
mod terminal;
mod times;
mod told;
mod unmounts;
mod unnamed;
mod xattrs;
