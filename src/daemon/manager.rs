//! What a daemon in the foreground tells the service manager that started it (systemd's `Type=notify`).
//! Without one, nothing.

use std::path::Path;
use std::time::Duration;

use sd_notify::NotifyState;

use crate::sys_process::{quoted, reason};
use crate::units::MIB;

/// A swap folder that takes less than this many bytes a second in large transfers is broken rather than slow.
const SLOWEST_BYTES_PER_S: u64 = 50 * MIB;

/// What the end takes beside the pool's transfers: the device's cache, names, the kernel.
const STOP_TIME_MIN: Duration = Duration::from_secs(60);

/// How long the end of a mount may take: its whole pool may have to be written.
#[must_use]
pub fn stop_time(pool_size: u64) -> Duration {
    STOP_TIME_MIN + Duration::from_secs(pool_size.div_ceil(SLOWEST_BYTES_PER_S))
}

/// The service manager, if there is one.
#[derive(Debug)]
pub(super) struct Manager {
    foreground: bool,
    stop_time: Duration,
}

impl Manager {
    /// A daemon in the background is nobody's main process, and tells nothing.
    pub(super) fn new(foreground: bool, pool_size: u64) -> Self {
        Self { foreground, stop_time: stop_time(pool_size) }
    }

    /// The mount answers.
    pub(super) fn ready(&self, swap_folder: &Path, mountpoint: &Path) {
        // Quoted names are one line: what follows another would be taken for a message.
        let status = format!("{} mounted at {}", quoted(swap_folder), quoted(mountpoint));
        self.tell(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// The end begins; it may take as long as this pool needs, whatever the unit says.
    pub(super) fn stopping(&self) {
        let extend = format!("EXTEND_TIMEOUT_USEC={}", self.stop_time.as_micros());
        self.tell(&[
            NotifyState::Stopping,
            NotifyState::Custom(&extend),
            NotifyState::Status("putting everything on stable storage"),
        ]);
    }

    fn tell(&self, states: &[NotifyState<'_>]) {
        if self.foreground
            && let Err(error) = sd_notify::notify(states)
        {
            log::warn!("the service manager's socket: {}", reason(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    #[test]
    fn a_larger_pool_may_take_longer() {
        assert_eq!(stop_time(0), Duration::from_secs(60));
        assert_eq!(stop_time(GIB), Duration::from_secs(60 + 21));
        assert_eq!(stop_time(50 * GIB), Duration::from_secs(60 + 1024));
    }
}
