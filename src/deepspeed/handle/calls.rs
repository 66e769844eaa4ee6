//! The operations of a handle, by path and by descriptor, synchronous and not.

use std::os::fd::AsFd;
use std::path::Path;

use super::begin::Request;
use super::buffer::{Buffer, Source, Target};
use super::error::{Direction, Refused};
use super::operation::Operation;
use super::{Handle, Result};

impl Handle {
    /// Fills `buffer` from the file, from byte `file_offset` on, undivided (one slice) and blocking.
    /// The file must end where the buffer does. With `validate` the file is then read once more, through
    /// the page cache, and compared. DeepSpeed: `read`, which returns -1 or ends the process where this
    /// returns an error.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](super::ErrorKind); [`SizeMismatch`](super::ErrorKind::SizeMismatch) for a file of another size.
    pub fn read<'a>(
        &self, buffer: impl Into<Target<'a>>, path: impl AsRef<Path>, validate: bool,
        file_offset: u64,
    ) -> Result<()> {
        let request = Request {
            slices: 1,
            exact: true,
            ..self.by_path(Direction::Read, path.as_ref(), validate, file_offset)
        };
        self.read_now(request, buffer.into())
    }

    /// Writes `buffer` to the file, from byte `file_offset` on, undivided (one slice) and blocking. The
    /// file is created (mode 0600) if need be and never truncated. With `validate` it is then read
    /// through the page cache and compared. DeepSpeed: `write`.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](super::ErrorKind).
    pub fn write<'a>(
        &self, buffer: impl Into<Source<'a>>, path: impl AsRef<Path>, validate: bool,
        file_offset: u64,
    ) -> Result<()> {
        let request = Request {
            slices: 1,
            ..self.by_path(Direction::Write, path.as_ref(), validate, file_offset)
        };
        self.write_now(request, buffer.into())
    }

    /// Fills `buffer` from the file, from byte `file_offset` on, divided over the threads; blocks until it
    /// is done. The file may be longer. Waits for this operation only. DeepSpeed: `pread` with `async=False`,
    /// which waits for all of the handle's.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](super::ErrorKind); [`FileTooShort`](super::ErrorKind::FileTooShort) when the file ends before the buffer is full.
    pub fn pread<'a>(
        &self, buffer: impl Into<Target<'a>>, path: impl AsRef<Path>, validate: bool,
        file_offset: u64,
    ) -> Result<()> {
        let request = self.by_path(Direction::Read, path.as_ref(), validate, file_offset);
        self.read_now(request, buffer.into())
    }

    /// Writes `buffer` to the file as [`write`](Self::write) does, but divided over the threads; blocks
    /// until it is done. DeepSpeed: `pwrite` with `async=False`.
    ///
    /// # Errors
    ///
    /// See [`ErrorKind`](super::ErrorKind).
    pub fn pwrite<'a>(
        &self, buffer: impl Into<Source<'a>>, path: impl AsRef<Path>, validate: bool,
        file_offset: u64,
    ) -> Result<()> {
        let request = self.by_path(Direction::Write, path.as_ref(), validate, file_offset);
        self.write_now(request, buffer.into())
    }

    /// [`pread`](Self::pread) without validation. DeepSpeed: `sync_pread`.
    ///
    /// # Errors
    ///
    /// Those of [`pread`](Self::pread).
    pub fn sync_pread<'a>(
        &self, buffer: impl Into<Target<'a>>, path: impl AsRef<Path>, file_offset: u64,
    ) -> Result<()> {
        self.pread(buffer, path, false, file_offset)
    }

    /// [`pwrite`](Self::pwrite) without validation. DeepSpeed: `sync_pwrite`.
    ///
    /// # Errors
    ///
    /// Those of [`pwrite`](Self::pwrite).
    pub fn sync_pwrite<'a>(
        &self, buffer: impl Into<Source<'a>>, path: impl AsRef<Path>, file_offset: u64,
    ) -> Result<()> {
        self.pwrite(buffer, path, false, file_offset)
    }

    /// Begins to fill `buffer` as [`pread`](Self::pread) does. Blocks for stat and open only. The buffer comes
    /// back from the [`Operation`]. Validation is done by whoever waits for it. DeepSpeed: `pread` with
    /// `async=True`.
    ///
    /// # Errors
    ///
    /// Those of looking at the file and opening it, with the buffer; nothing is pending then. Others come
    /// from [`wait`](Self::wait) or [`Operation::finish`].
    pub fn pread_async<B: Buffer>(
        &self, buffer: B, path: impl AsRef<Path>, validate: bool, file_offset: u64,
    ) -> std::result::Result<Operation<B>, Refused<B>> {
        let request = self.by_path(Direction::Read, path.as_ref(), validate, file_offset);
        self.later(request, buffer)
    }

    /// Begins to write `buffer` as [`pwrite`](Self::pwrite) does. Blocks for open, and for unaligned edges
    /// (see the [module](super)). The buffer comes back from the [`Operation`]. DeepSpeed: `pwrite` with
    /// `async=True`.
    ///
    /// # Errors
    ///
    /// As for [`pread_async`](Self::pread_async), and those of writing the edges.
    pub fn pwrite_async<B: Buffer>(
        &self, buffer: B, path: impl AsRef<Path>, validate: bool, file_offset: u64,
    ) -> std::result::Result<Operation<B>, Refused<B>> {
        let request = self.by_path(Direction::Write, path.as_ref(), validate, file_offset);
        self.later(request, buffer)
    }

    /// [`pread_async`](Self::pread_async) without validation. DeepSpeed: `async_pread`.
    ///
    /// # Errors
    ///
    /// Those of [`pread_async`](Self::pread_async).
    pub fn async_pread<B: Buffer>(
        &self, buffer: B, path: impl AsRef<Path>, file_offset: u64,
    ) -> std::result::Result<Operation<B>, Refused<B>> {
        self.pread_async(buffer, path, false, file_offset)
    }

    /// [`pwrite_async`](Self::pwrite_async) without validation. DeepSpeed: `async_pwrite`.
    ///
    /// # Errors
    ///
    /// Those of [`pwrite_async`](Self::pwrite_async).
    pub fn async_pwrite<B: Buffer>(
        &self, buffer: B, path: impl AsRef<Path>, file_offset: u64,
    ) -> std::result::Result<Operation<B>, Refused<B>> {
        self.pwrite_async(buffer, path, false, file_offset)
    }

    /// [`sync_pread`](Self::sync_pread) from an open file, which stays the caller's: transfers are direct if it
    /// was opened with O_DIRECT, with any alignment.
    ///
    /// # Errors
    ///
    /// Those of [`pread`](Self::pread); EBADF for a descriptor that cannot be read.
    pub fn pread_fd<'a>(
        &self, buffer: impl Into<Target<'a>>, descriptor: impl AsFd, file_offset: u64,
    ) -> Result<()> {
        let request = self.by_descriptor(Direction::Read, descriptor.as_fd(), file_offset);
        self.read_now(request, buffer.into())
    }

    /// [`sync_pwrite`](Self::sync_pwrite) to an open file, which stays the caller's: transfers are direct
    /// if it was opened with O_DIRECT, with any alignment. `file_offset` counts with O_APPEND as well.
    ///
    /// # Errors
    ///
    /// Those of [`pwrite`](Self::pwrite); EBADF for a descriptor that cannot be written.
    pub fn pwrite_fd<'a>(
        &self, buffer: impl Into<Source<'a>>, descriptor: impl AsFd, file_offset: u64,
    ) -> Result<()> {
        let request = self.by_descriptor(Direction::Write, descriptor.as_fd(), file_offset);
        self.write_now(request, buffer.into())
    }

    /// [`async_pread`](Self::async_pread) from an open file, see [`pread_fd`](Self::pread_fd). The operation
    /// has a duplicate of the descriptor: the caller may close it at any time, and nobody else does.
    /// (Closing a duplicate drops the process's POSIX record locks on the file, as always.)
    ///
    /// # Errors
    ///
    /// Those of [`pread_async`](Self::pread_async); EBADF for a descriptor that cannot be read.
    pub fn async_pread_fd<B: Buffer>(
        &self, buffer: B, descriptor: impl AsFd, file_offset: u64,
    ) -> std::result::Result<Operation<B>, Refused<B>> {
        let request = self.by_descriptor(Direction::Read, descriptor.as_fd(), file_offset);
        self.later(request, buffer)
    }

    /// [`async_pwrite`](Self::async_pwrite) to an open file, see [`pwrite_fd`](Self::pwrite_fd) and
    /// [`async_pread_fd`](Self::async_pread_fd). DeepSpeed: `async_pwrite` with a descriptor.
    ///
    /// # Errors
    ///
    /// Those of [`pwrite_async`](Self::pwrite_async); EBADF for a descriptor that cannot be written.
    pub fn async_pwrite_fd<B: Buffer>(
        &self, buffer: B, descriptor: impl AsFd, file_offset: u64,
    ) -> std::result::Result<Operation<B>, Refused<B>> {
        let request = self.by_descriptor(Direction::Write, descriptor.as_fd(), file_offset);
        self.later(request, buffer)
    }
}
