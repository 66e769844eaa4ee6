//! Swap folders inside one another: each daemon would show, and keep in its pool, files of the other's.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use super::folder::{in_use_line, open_any_lock, read_any_state};
use crate::mount::swapfs_mounts;

/// Refuses a mountpoint inside its own swap folder; both are absolute. A mount over the folder itself is none.
pub(super) fn refuse_mountpoint(mountpoint: &Path, swap_folder: &Path) -> Result<(), String> {
    let identity =
        |path: &Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
    let folder = identity(swap_folder);
    // By what it is, not by its name: it may have several (bind mounts).
    let mut above = mountpoint.ancestors().skip(1);
    match folder.is_some() && above.any(|path| identity(path) == folder) {
        true => {
            let (inner, outer) = (mountpoint.display(), swap_folder.display());
            Err(format!("mountpoint {inner} lies inside the swap folder {outer}"))
        }
        false => Ok(()),
    }
}

/// Refuses a swap folder above or below which another one is in use. The path is absolute and has no symbolic
/// links. One that nobody uses now does not matter: what is changed in it meanwhile is others' doing to it.
pub(super) fn refuse_nested(swap_folder: &Path) -> Result<(), String> {
    let shown = swap_folder.display();
    if let Some(outer) = swap_folder.ancestors().skip(1).find(|path| is_locked(path)) {
        let in_use = in_use_line(outer, read_any_state(outer).as_ref());
        return Err(format!("swap folder {shown} lies inside another: {in_use}"));
    }
    // Looking for locks below would be a walk through everything that is stored. What was mounted under another name
    // (`-o fsname`) is not found; asking that mount might wait for its daemon.
    let sources = swapfs_mounts().unwrap_or_default().into_iter().map(|mount| mount.source);
    let is_inside = |inner: &Path| inner != swap_folder && inner.starts_with(swap_folder);
    match sources.into_iter().find(|source| is_inside(source) && is_locked(source)) {
        Some(inner) => {
            let in_use = in_use_line(&inner, read_any_state(&inner).as_ref());
            Err(format!("swap folder {shown} has another inside: {in_use}"))
        }
        None => Ok(()),
    }
}

/// Whether a daemon has the folder. It is not there, or not for us to know, where that cannot be told.
fn is_locked(folder: &Path) -> bool {
    // Shared, and given back at once: a daemon that starts there just then tries again.
    open_any_lock(folder).is_some_and(|lock| {
        flock(&lock, FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
    })
}
