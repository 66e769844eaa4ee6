//! A thread that does something every now and then, and once more at the end, whatever becomes of it.

use std::io;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::panics::outlive;

/// The thread; it ends with this value.
#[derive(Debug)]
pub struct Recorder {
    thread: Option<(Sender<()>, JoinHandle<()>)>,
}

impl Recorder {
    /// Calls `work` every `period`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(period: Duration, work: impl Fn() + Send + 'static) -> io::Result<Recorder> {
        let (sender, receiver) = channel();
        let thread =
            std::thread::Builder::new().name("swapfs-record".to_owned()).spawn(move || {
                outlive(|| {
                    while receiver.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                        work();
                    }
                });
                work();
            })?;
        Ok(Recorder { thread: Some((sender, thread)) })
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            let _ = thread.join();
        }
    }
}
