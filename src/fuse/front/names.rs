//! Names that the kernel remembers: each has a node here for as long. Of more than there should be, it is asked to
//! forget those that nobody uses.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use nix::errno::Errno;

use super::{Front, spawn};
use crate::panics::outlive;

/// Nodes beyond which the kernel is asked: some 50 MiB.
const NAMES_MAX: usize = 1 << 17;

/// How often is looked how many there are.
const LOOK: Duration = Duration::from_millis(500);

/// Names that the kernel is asked to forget each time, at most, and with one message.
const ASKED_MAX: usize = 1 << 15;
/// See [`ASKED_MAX`].
const MESSAGE_NAMES: usize = 512;

/// Starts the thread that looks. It ends after the readers.
///
/// # Errors
/// When it cannot be started.
pub(super) fn start(front: &Arc<Front>, left: &Arc<AtomicUsize>) -> std::io::Result<()> {
    let (front, left) = (Arc::downgrade(front), left.clone());
    spawn("fuse-names".to_owned(), move || outlive(|| look_after(&front, &left)))?;
    Ok(())
}

fn look_after(front: &Weak<Front>, left: &AtomicUsize) {
    loop {
        std::thread::sleep(LOOK);
        let Some(front) = front.upgrade().filter(|_| left.load(Ordering::Acquire) > 0) else {
            return;
        };
        let tree = &front.volume.tree;
        let excess = tree.known_count().saturating_sub(NAMES_MAX).min(ASKED_MAX);
        for names in tree.some(excess).chunks(MESSAGE_NAMES) {
            match front.device.prune(names) {
                Ok(()) => {}
                // Before Linux 6.18.
                Err(Errno::EINVAL) => {
                    return log::debug!("this kernel forgets names by itself alone");
                }
                Err(_) => break,
            }
        }
    }
}
