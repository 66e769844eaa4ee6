//! Bounds how many names the kernel remembers: each costs the daemon a node for as long. Beyond the bound the kernel is
//! asked to forget names that nobody uses (FUSE_NOTIFY_PRUNE).

use std::sync::Weak;
use std::time::Duration;

use nix::errno::Errno;

use super::readers::Readers;

/// Names that the kernel may remember: some 50 MiB of nodes.
const NAMES_MAX: usize = 1 << 17;

/// How often the names are counted.
const TICK: Duration = Duration::from_millis(500);

/// Names that the kernel is asked to forget at each tick, at most.
const TICK_NAMES: usize = 1 << 15;
/// Names in one message to the kernel.
const MESSAGE_NAMES: usize = 512;

/// The thread `fuse-prune`. Returns after the readers have ended.
pub(super) fn watch(readers: &Weak<Readers>) {
    loop {
        std::thread::sleep(TICK);
        let Some(readers) = Readers::serving(readers) else { return };
        let front = &readers.front;
        let tree = &front.volume.tree;
        let excess = tree.known_count().saturating_sub(NAMES_MAX).min(TICK_NAMES);
        for names in tree.some(excess).chunks(MESSAGE_NAMES) {
            match front.channel.prune(names) {
                Ok(()) => {}
                // A kernel before Linux 6.18.
                Err(Errno::EINVAL) => {
                    return log::debug!("this kernel forgets names by itself alone");
                }
                Err(_) => break,
            }
        }
    }
}
