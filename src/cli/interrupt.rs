//! Signals that end a command which has something to clean up first.

use std::io;

use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::sys_process::ending_signals;

/// SIGINT, SIGTERM and SIGHUP (unless ignored) wait here from [`Interrupts::catch`] on, until somebody asks.
#[derive(Debug)]
pub(super) struct Interrupts {
    signals: SignalFd,
}

impl Interrupts {
    /// To be called before threads start: they inherit that the signals are blocked.
    pub(super) fn catch() -> io::Result<Self> {
        let mask = ending_signals();
        mask.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self { signals: SignalFd::with_flags(&mask, flags)? })
    }

    /// Whether a signal has come since the last call.
    pub(super) fn arrived(&self) -> bool {
        matches!(self.signals.read_signal(), Ok(Some(_)))
    }
}
