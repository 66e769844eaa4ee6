//! A thread that does something every now and then, and once more at the end.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// The thread; it ends with this value.
#[derive(Debug)]
pub struct Ledger {
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Ledger {
    /// Calls `work` every `period`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(period: Duration, work: impl Fn() + Send + 'static) -> io::Result<Ledger> {
        let (sender, receiver) = channel();
        let thread =
            std::thread::Builder::new().name("swapfs-ledger".to_owned()).spawn(move || {
                while receiver.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                    work();
                }
                work();
            })?;
        Ok(Ledger { thread: Some((sender, thread)) })
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}
