//! A second lock on a swap folder, below `/run`.
//!
//! Whoever may rename names in a swap folder can move `.swapfs` away while it is mounted. The next daemon would make a new
//! one, lock that, and serve the folder a second time. The lock below `/run` is named by the folder's device and inode, and
//! lies where nobody but the daemon's user may open it, so that nobody else can hold it either. A lock on the folder's own
//! inode would not do: everybody who may read the folder could take that one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, fstat, open, unlinkat};

use super::folder::{DaemonState, GRACE, RETRY, in_use_line, parse_state};
use crate::sys_process::reason;
use crate::trust;

/// The folder of the locks, below `/run` for root and below `/run/user/UID` for others.
const FOLDER: &str = "swapfs";

/// The lock, held until it is dropped.
#[derive(Debug)]
pub(super) struct OutsideLock {
    folder: OwnedFd,
    name: String,
    lock: File,
}

impl OutsideLock {
    pub(super) fn descriptor(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }

    /// Takes the lock of the swap folder `swap`, which is at `path`. Waits a moment for a daemon that is just ending.
    /// `None` where this user has no folder for locks.
    ///
    /// # Errors
    /// One line for the user: another daemon has the swap folder.
    pub(super) fn take(
        swap: BorrowedFd<'_>, path: &Path, state: &DaemonState,
    ) -> Result<Option<Self>, String> {
        let Some(folder) = locks_folder()? else { return Ok(None) };
        let failed = |error: io::Error| format!("/run/{FOLDER}: {}", reason(&error));
        let status = fstat(swap).map_err(|error| failed(error.into()))?;
        let name = format!("{:x}-{}", status.st_dev, status.st_ino);
        let start = Instant::now();
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE;
            let lock = trust::open_file(&folder, &name, flags).map_err(failed)?;
            match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
                // Its last holder removed the name after it was opened here: nobody else meets at this file.
                Ok(()) if !trust::is_named(&folder, &name, &lock).map_err(failed)? => continue,
                Ok(()) => {
                    let mut text = serde_json::to_vec(state).unwrap_or_default();
                    text.push(b'\n');
                    // Only for the message of a daemon that comes later.
                    let _ = lock.set_len(0).and_then(|()| lock.write_all_at(&text, 0));
                    return Ok(Some(Self { folder, name, lock }));
                }
                Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() < GRACE => {}
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(in_use_line(path, parse_state(&lock).as_ref()));
                }
                Err(error) => return Err(failed(error.into())),
            }
            std::thread::sleep(RETRY);
        }
    }
}

impl OutsideLock {
    /// The folder of the locks, with its path.
    pub(super) fn folder(&self) -> (PathBuf, BorrowedFd<'_>) {
        let (parent, name) = run_folder();
        (PathBuf::from(parent).join(name).join(FOLDER), self.folder.as_fd())
    }

    /// Opens the folder anew, as [`SwapFolder::open_anew`](super::SwapFolder::open_anew).
    pub(super) fn open_anew(&mut self) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        self.folder = open(&self.folder().0, flags, Mode::empty())?;
        Ok(())
    }
}

impl Drop for OutsideLock {
    fn drop(&mut self) {
        // While the lock is held: whoever waits for it finds that the name is gone and makes a new file.
        if trust::is_named(&self.folder, &self.name, &self.lock).unwrap_or(false) {
            let _ = unlinkat(&self.folder, self.name.as_str(), AtFlags::empty());
        }
    }
}

/// Where this user's things of the running system are: a folder, and its name in that.
fn run_folder() -> (String, String) {
    match trust::own_user() {
        0 => ("/".to_owned(), "run".to_owned()),
        user => ("/run/user".to_owned(), user.to_string()),
    }
}

/// The folder of the locks, made when there is none; `None` where the system has no place for it.
fn locks_folder() -> Result<Option<OwnedFd>, String> {
    let (parent, name) = run_folder();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(parent) = open(parent.as_str(), flags, Mode::empty()) else { return Ok(None) };
    // Where it belongs to somebody else, as in a container, there is no such place.
    let Ok(run) = trust::open_folder(&parent, &name) else { return Ok(None) };
    match trust::make_folder(&run, FOLDER) {
        Ok(folder) => Ok(Some(folder)),
        Err(error) if error.raw_os_error().is_some() => Ok(None),
        Err(error) => Err(format!("/run: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::daemon::folder::Phase;

    /// "Who has the lock is the only one, and the name is gone with the last."
    #[test]
    fn the_lock_is_of_the_folder_whatever_its_name_and_leaves_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let swap = File::open(folder.path()).unwrap();
        let state = DaemonState {
            pid: 77,
            mountpoint: "/mnt/x".into(),
            state: Phase::Starting,
            failed: Vec::new(),
        };
        let take = || OutsideLock::take(swap.as_fd(), folder.path(), &state);
        let Some(first) = take().unwrap() else {
            return eprintln!("left out: there is no /run for this user");
        };
        let line = take().unwrap_err();
        assert!(line.ends_with("is in use by swapfs pid 77 (mounted at /mnt/x)"), "{line}");
        let waiting = std::thread::scope(|scope| {
            let waiting = scope.spawn(take);
            std::thread::sleep(RETRY * 3);
            drop(first);
            waiting.join().unwrap()
        });
        let second = waiting.unwrap().expect("there is a /run");
        assert!(trust::is_named(&second.folder, &second.name, &second.lock).unwrap());
        let (locks, name) = (locks_folder().unwrap().unwrap(), second.name.clone());
        drop(second);
        assert!(trust::open_file(&locks, &name, OFlags::RDONLY).is_err());
    }
}
