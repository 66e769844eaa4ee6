//! The choice of engine.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use super::device::{Device, Geometry};
use super::settings::{AioSettings, Engine};
use super::threads::ThreadDevice;
use super::uring::UringDevice;
use super::whole::Whole;
use crate::pool::Arena;

/// Starts the device that `settings` ask for, with `arena`'s memory registered where the kernel
/// allows it. Its transfers are whole: see [`Whole`]. `alignment` (bytes) and `direct` are what the swap folder's probe found.
///
/// The files `kept` stay open until the last transfer has ended, even that of a process that was killed.
///
/// With [`Engine::Auto`] the second value tells why it is not io_uring, for the daemon's warning.
///
/// # Errors
///
/// EINVAL for settings out of range; with [`Engine::IoUring`] the kernel's refusal (EPERM or ENOSYS where
/// io_uring is switched off); those of creating threads.
pub fn open_device(
    settings: &AioSettings, arena: &Arc<Arena>, alignment: usize, direct: bool,
    kept: &[BorrowedFd<'_>],
) -> io::Result<(Arc<dyn Device>, Option<String>)> {
    let geometry = Geometry { alignment, direct };
    if settings.engine == Engine::Threads {
        return Ok((Whole::new(ThreadDevice::new(settings, geometry)?), None));
    }
    match UringDevice::new(settings, Some(Arc::clone(arena)), geometry, kept) {
        Ok(device) => Ok((Whole::new(device), None)),
        Err(error) if settings.engine == Engine::Auto && settings.valid() => {
            let why = refusal(&error);
            Ok((Whole::new(ThreadDevice::new(settings, geometry)?), Some(why)))
        }
        Err(error) => Err(error),
    }
}

/// Why io_uring is refused, with the likely cause.
pub(crate) fn refusal(error: &io::Error) -> String {
    let switch = crate::machine::text(crate::machine::IO_URING_DISABLED);
    match switch.as_deref() {
        Ok(value @ ("1" | "2")) => format!("{error} (sysctl kernel.io_uring_disabled is {value})"),
        _ => match error.raw_os_error() {
            Some(libc::EPERM | libc::ENOSYS) => {
                format!("{error} (a seccomp filter, as in containers, or a kernel without it)")
            }
            Some(libc::ENOMEM) => format!("{error} (RLIMIT_MEMLOCK may be too low)"),
            _ => error.to_string(),
        },
    }
}
