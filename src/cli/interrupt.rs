//! Signals that end a command which has something to clean up first.

use std::io;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGINT, SIGTERM and SIGHUP wait here from [`Interrupts::catch`] on, until somebody asks.
#[derive(Debug)]
pub(super) struct Interrupts {
    signals: SignalFd,
}

impl Interrupts {
    /// To be called before threads start: they inherit that the signals are blocked.
    pub(super) fn catch() -> io::Result<Self> {
        let mut mask = SigSet::empty();
        for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
            mask.add(signal);
        }
        mask.thread_block()?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self { signals: SignalFd::with_flags(&mask, flags)? })
    }

    /// Whether a signal has come since the last call.
    pub(super) fn arrived(&self) -> bool {
        matches!(self.signals.read_signal(), Ok(Some(_)))
    }
}
