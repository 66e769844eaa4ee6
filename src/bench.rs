//! Measuring the library, a mount, and their peers on the same files.
//!
//! [`measure`] is `swapfs bench`: real processes that begin together ([`worker`]), engines that take turns
//! ([`turns`](crate::turns)), a state of files and caches that is made before each round ([`case`]), and a list of
//! what was made, so that nothing stays behind ([`cleanup`]). [`roofline`] measures the layers apart. Reports, with
//! DeepSpeed's result lines, are in [`report`].
//!
//! Other measurements are built from the same parts: [`Bench`] runs any engine and case for one round at
//! a time, [`Turns`](crate::turns::Turns) lets them take turns, [`Spread`](crate::turns::Spread) says how far they vary.

pub mod case;
pub mod cleanup;
mod crew;
mod engine;
mod files;
pub mod fio;
mod mounted;
mod plot;
mod protocol;
pub mod report;
pub mod roofline;
pub mod round;
mod session;
pub mod settings;
pub mod state;
pub mod worker;

use std::fmt;

pub use case::{Access, Case, Order, Start};
pub use cleanup::{Cleanup, Made, Process, check_place, swapfs};
pub use files::MARK_XATTR;
pub use report::{Report, Row};
pub use roofline::Roofline;
pub use round::{Round, Series};
pub use session::{Bench, measure};
pub use settings::{Engine, Settings};

/// Why there is no result: one line for the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BenchError {
    /// Something that is never accepted.
    Usage(String),
    /// Something that failed, or that this machine does not have.
    Failed(String),
}

/// What measuring returns.
pub type Result<T> = std::result::Result<T, BenchError>;

impl fmt::Display for BenchError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Usage(line) | Self::Failed(line) => formatter.write_str(line),
        }
    }
}

impl std::error::Error for BenchError {}
