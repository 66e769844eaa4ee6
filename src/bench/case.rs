//! What a round does to its files, and the state they are in when it begins.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whether bytes go to the files, come from them, or both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Files to memory.
    Read,
    /// Memory to files.
    Write,
    /// Half of the blocks each.
    Mixed,
}

impl Access {
    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Mixed => "mixed",
        }
    }
}

/// The order in which the blocks of a file are moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Order {
    /// From the first to the last.
    Sequential,
    /// Each once, shuffled.
    Random,
}

/// What the files are like when a round begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// Made just now, empty.
    New,
    /// Full, on stable storage, in no cache and no pool.
    Cold,
    /// Full, and read once just before.
    Warm,
}

/// One thing to measure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Case {
    /// A new file for each round.
    FirstWrite,
    /// A file that is there in full.
    Overwrite,
    /// A file in no cache.
    ColdRead,
    /// A file that was read just before.
    WarmRead,
    /// Blocks of a file that is there, shuffled.
    RandomWrite,
    /// Blocks of a file in no cache, shuffled.
    RandomRead,
    /// Blocks of a file that is there, shuffled, half of them read and half written.
    Mixed,
    /// New files, together as large as the one of the others.
    ManyWrite,
    /// Files in no cache, together as large as the one of the others.
    ManyRead,
}

impl Case {
    /// All of them, in the order in which they are run.
    pub const ALL: [Case; 9] = [
        Case::FirstWrite,
        Case::Overwrite,
        Case::ColdRead,
        Case::WarmRead,
        Case::RandomWrite,
        Case::RandomRead,
        Case::Mixed,
        Case::ManyWrite,
        Case::ManyRead,
    ];

    /// Its name on the command line and in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::FirstWrite => "first-write",
            Self::Overwrite => "overwrite",
            Self::ColdRead => "cold-read",
            Self::WarmRead => "warm-read",
            Self::RandomWrite => "random-write",
            Self::RandomRead => "random-read",
            Self::Mixed => "mixed",
            Self::ManyWrite => "many-write",
            Self::ManyRead => "many-read",
        }
    }

    /// Which way its bytes go.
    #[must_use]
    pub fn access(self) -> Access {
        match self {
            Self::FirstWrite | Self::Overwrite | Self::RandomWrite | Self::ManyWrite => {
                Access::Write
            }
            Self::ColdRead | Self::WarmRead | Self::RandomRead | Self::ManyRead => Access::Read,
            Self::Mixed => Access::Mixed,
        }
    }

    /// The order of its blocks.
    #[must_use]
    pub fn order(self) -> Order {
        match self {
            Self::RandomWrite | Self::RandomRead | Self::Mixed => Order::Random,
            _ => Order::Sequential,
        }
    }

    /// What its files are like before each round.
    #[must_use]
    pub fn start(self) -> Start {
        match self {
            Self::FirstWrite | Self::ManyWrite => Start::New,
            Self::WarmRead => Start::Warm,
            _ => Start::Cold,
        }
    }

    /// Whether it moves many files instead of one.
    #[must_use]
    pub fn is_many(self) -> bool {
        matches!(self, Self::ManyWrite | Self::ManyRead)
    }

    /// `read` or `write`, as file names have it: what is only read, and what is written.
    #[must_use]
    pub fn file_kind(self) -> &'static str {
        match self.access() {
            Access::Mixed => Access::Write.name(),
            access => access.name(),
        }
    }
}

impl fmt::Display for Case {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}
