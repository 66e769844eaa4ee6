//! What went wrong with an operation, in enough detail to act on it.

use std::fmt;
use std::path::PathBuf;

use crate::error::Errno;

/// Which way an operation moves bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// File to memory.
    Read,
    /// Memory to file.
    Write,
}

/// The file of an operation, as the caller named it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FileName {
    /// By path.
    Path(PathBuf),
    /// By the caller's own descriptor; its number when the operation was asked for.
    Descriptor(i32),
}

/// Why an operation failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// stat(2) of the file to read, or of the descriptor.
    #[error("stat: {0}")]
    Stat(Errno),
    /// open(2), or reopening the file for the part that is not aligned.
    #[error("open: {0}")]
    Open(Errno),
    /// The file ends before the bytes asked for. Found before anything was transferred.
    #[error("the file has {size} bytes, {needed} are needed")]
    FileTooShort {
        /// Bytes of the file.
        size: u64,
        /// Bytes it would have to have.
        needed: u64,
    },
    /// [`Handle::read`](super::Handle::read) wants a buffer of exactly the file's size.
    #[error("the file has {size} bytes and the buffer {buffer}")]
    SizeMismatch {
        /// Bytes of the file from the offset on.
        size: u64,
        /// Bytes of the buffer.
        buffer: u64,
    },
    /// A transfer failed.
    #[error("transfer at offset {at}: {errno}")]
    Transfer {
        /// Byte offset in the file of the transfer that failed.
        at: u64,
        /// What the kernel said.
        errno: Errno,
    },
    /// A transfer stopped and could not be continued: the file was cut short under a read.
    #[error("nothing more was transferred at offset {at}")]
    Short {
        /// Byte offset in the file of the first byte that is missing.
        at: u64,
    },
    /// `validate` was asked for, and the file could not be read for it.
    #[error("validation: {0}")]
    Validation(Errno),
    /// `validate` was asked for, and file and buffer differ.
    #[error("file and buffer differ at offset {at}")]
    Mismatch {
        /// Byte offset in the file of the first byte that differs.
        at: u64,
    },
}

/// What went wrong before an operation was under way.
#[derive(Debug)]
pub(super) struct Failure {
    /// Bytes that a write's edges moved.
    pub(super) moved: u64,
    pub(super) kind: ErrorKind,
}

impl From<ErrorKind> for Failure {
    fn from(kind: ErrorKind) -> Self {
        Self { moved: 0, kind }
    }
}

/// A failed operation. What a failed write leaves of its range in the file, and of the file's size, is
/// not said: its transfers complete in any order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Error {
    /// Read or write.
    pub direction: Direction,
    /// Of which file.
    pub file: FileName,
    /// Where the operation begins in the file, in bytes.
    pub offset: u64,
    /// Bytes the operation was to move.
    pub length: u64,
    /// Bytes of it that were moved, in any order.
    pub moved: u64,
    /// What happened first.
    pub kind: ErrorKind,
}

impl Error {
    /// The errno closest to what happened: that of the failed call; EIO for a mismatch or a transfer that
    /// stopped, EINVAL for a file too short or of another size than the buffer.
    #[must_use]
    pub fn errno(&self) -> Errno {
        match self.kind {
            ErrorKind::Stat(errno)
            | ErrorKind::Open(errno)
            | ErrorKind::Validation(errno)
            | ErrorKind::Transfer { errno, .. } => errno,
            ErrorKind::Short { .. } | ErrorKind::Mismatch { .. } => Errno::EIO,
            ErrorKind::FileTooShort { .. } | ErrorKind::SizeMismatch { .. } => Errno::EINVAL,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = match self.direction {
            Direction::Read => "reading",
            Direction::Write => "writing",
        };
        let Self { offset, length, moved, kind, .. } = self;
        match &self.file {
            FileName::Path(path) => write!(formatter, "{verb} {}", path.display())?,
            FileName::Descriptor(number) => write!(formatter, "{verb} descriptor {number}")?,
        }
        write!(formatter, ", {length} bytes at offset {offset}: {kind} ({moved} bytes moved)")
    }
}

impl std::error::Error for Error {}

/// What [`Handle::wait`](super::Handle::wait) returns when operations failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitError {
    /// Operations that completed since the last wait, failed ones included.
    pub completed: usize,
    /// The failed ones, in the order in which they were asked for. Never empty.
    pub failed: Vec<Error>,
}

impl fmt::Display for WaitError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, completed) = (self.failed.len(), self.completed);
        write!(formatter, "{count} of {completed} operations failed")?;
        match self.failed.first() {
            Some(first) => write!(formatter, ", first: {first}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for WaitError {}

/// An asynchronous operation that was not begun. Gives the buffer back; nothing is pending because of it.
pub struct Refused<B> {
    /// Why.
    pub error: Box<Error>,
    /// What was to be moved, or filled.
    pub buffer: B,
}

/// Without the buffer, which may be large.
impl<B> fmt::Debug for Refused<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Refused").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<B> fmt::Display for Refused<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(formatter)
    }
}

impl<B> std::error::Error for Refused<B> {}

impl<B> From<Refused<B>> for Error {
    fn from(refused: Refused<B>) -> Self {
        *refused.error
    }
}
