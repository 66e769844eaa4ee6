//! The errno of a failed call, and its name as users see it.

/// The error of a filesystem call. Printed with `{:?}` it reads as its name (`ENOSPC`).
pub use nix::errno::Errno;

/// The outcome of a call that fails with an errno.
pub type Result<T> = std::result::Result<T, Errno>;

/// The errno inside an [`std::io::Error`]; EIO when it carries none.
#[must_use]
pub fn errno_of(error: &std::io::Error) -> Errno {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code),
        None => match error.kind() {
            std::io::ErrorKind::InvalidInput => Errno::EINVAL,
            std::io::ErrorKind::NotFound => Errno::ENOENT,
            std::io::ErrorKind::PermissionDenied => Errno::EPERM,
            std::io::ErrorKind::Unsupported => Errno::EOPNOTSUPP,
            _ => Errno::EIO,
        },
    }
}
