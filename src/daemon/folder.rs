//! The swap folder, and the lock that keeps a second daemon out of it.
//!
//! `SWAP_FOLDER/.swapfs/lock` is locked with flock(2) for the life of the daemon, and contains one JSON
//! object: who holds it, and what it is doing. The kernel drops the lock with the process, so a stale
//! file never keeps anybody out. What is in `.swapfs` already is used only when it is this user's alone ([`trust`]),
//! and a second lock (`outside`) holds even when somebody moves `.swapfs` away.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, fstat, mkdirat, open, statat};
use serde::{Deserialize, Serialize};

use super::outside::OutsideLock;
use super::stats::MountStats;
use crate::mount::{FS_TYPE, MountEntry, entry_of_path, parse_mount_table, swapfs_mounts};
use crate::paths::plain;
use crate::sys_process::{is_leaving, reason};
use crate::trust::{self, Kind};

/// The folder inside the swap folder that is swapfs's own.
pub(super) const CONTROL_FOLDER: &str = ".swapfs";

/// The lock file inside the control folder.
pub(super) const LOCK_FILE: &str = "lock";

/// The names inside the control folder that swapfs opens.
const KEPT: [(&str, Kind); 10] = [
    (LOCK_FILE, Kind::File),
    ("log", Kind::File),
    ("log.1", Kind::File),
    ("ledger", Kind::File),
    ("sums", Kind::Folders),
    ("session", Kind::File),
    ("session.new", Kind::File),
    ("ended", Kind::File),
    ("wear.json", Kind::File),
    ("wear.json.new", Kind::File),
];

/// Bytes of a lock file that are read at most.
const STATE_BYTES_MAX: usize = 16 << 20;

/// Partitions that a lock file names as not stored; the others are counted.
const FAILED_MAX: usize = 1000;

/// How often a waiting mount looks again.
pub(super) const RETRY: Duration = Duration::from_millis(50);

/// How often a lock file that makes no sense is read again, and how long after.
const READ_TRIES: u32 = 4;
const READ_RETRY: Duration = Duration::from_millis(5);

/// How long writing the lock file may take.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);

/// A daemon whose mount is gone needs a moment to say that it is finishing, and the kernel one to close what a
/// killed one had open.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// What a daemon writes into its lock file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DaemonState {
    /// Its process.
    pub pid: i32,
    /// Where it mounts.
    #[serde(with = "crate::paths::exact")]
    pub mountpoint: PathBuf,
    /// What it is doing.
    pub state: Phase,
    /// Partitions that it could not put on stable storage; complete once `state` is `finished`.
    pub failed: Vec<String>,
}

/// A daemon's phases.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// Not answering yet.
    Starting,
    /// Mounted.
    Mounted,
    /// Unmounted; putting the rest on stable storage.
    Finishing,
    /// About to exit, or gone.
    Finished,
}

/// The locked swap folder of this daemon.
#[derive(Debug)]
pub struct SwapFolder {
    path: PathBuf,
    folder: OwnedFd,
    control: OwnedFd,
    lock: File,
    outside: Option<OutsideLock>,
    state: DaemonState,
}

impl SwapFolder {
    /// Opens and locks the folder. A daemon that is only finishing there is waited for, for at most
    /// `timeout`; `note` is told so once.
    pub(crate) fn lock(
        path: &Path, mountpoint: &Path, timeout: Duration, note: &mut dyn FnMut(&str),
    ) -> Result<Self, String> {
        let failed = |what: &str, error: io::Error| {
            format!("swap folder {}: {what}{}", plain(path), reason(&error))
        };
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(path, flags, Mode::empty()).map_err(|error| failed("", error.into()))?;
        match mkdirat(&folder, CONTROL_FOLDER, Mode::RWXU) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(failed("cannot create .swapfs: ", error.into())),
        }
        let control =
            trust::open_folder(&folder, CONTROL_FOLDER).map_err(|error| failed("", error))?;
        let inside = |error: io::Error| failed(".swapfs/", error);
        trust::examine(control.as_fd(), &KEPT).map_err(inside)?;
        let lock =
            trust::open_file(&control, LOCK_FILE, OFlags::RDWR | OFlags::CREATE).map_err(inside)?;
        acquire(&lock, path, timeout, note)?;
        trust::check_named(&control, LOCK_FILE, &lock).map_err(inside)?;
        trust::check_named(&folder, CONTROL_FOLDER, &control).map_err(|error| failed("", error))?;
        let state = DaemonState {
            pid: nix::unistd::getpid().as_raw(),
            mountpoint: mountpoint.to_owned(),
            state: Phase::Starting,
            failed: Vec::new(),
        };
        let outside = OutsideLock::take(folder.as_fd(), path, &state)?;
        let path = path.to_owned();
        let mut swap = Self { path, folder, control, lock, outside, state };
        swap.enter(Phase::Starting)
            .map_err(|error| format!("{}/.swapfs/lock: {}", swap.path.display(), reason(&error)))?;
        Ok(swap)
    }

    /// Opens and locks a folder that is not mounted, to verify it; waits a moment for a daemon that is going.
    /// The error is one line for the user.
    pub(crate) fn lock_for_check(path: &Path) -> Result<Self, String> {
        let shown = path.display();
        let path = std::fs::canonicalize(path)
            .map_err(|error| format!("swap folder {shown}: {}", reason(&error)))?;
        refuse_mounted(&path)?;
        if !path.join(CONTROL_FOLDER).is_dir() {
            return Err(format!("{shown} is no swap folder: it has no {CONTROL_FOLDER}"));
        }
        Self::lock(&path, Path::new(""), GRACE, &mut |_| {})
    }

    /// The folder's absolute path; it may be hidden beneath the mount.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder itself (O_DIRECTORY), whatever is mounted over it.
    #[must_use]
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }

    /// Its control folder `.swapfs`.
    #[must_use]
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// The locks on it. Whoever else keeps these files open has them as well.
    pub(crate) fn locks(&self) -> Vec<BorrowedFd<'_>> {
        let outside = self.outside.as_ref().map(OutsideLock::descriptor);
        std::iter::once(self.lock.as_fd()).chain(outside).collect()
    }

    /// Whether the path still leads to this folder, or a mount hides it.
    #[must_use]
    pub fn is_hidden(&self) -> bool {
        let here = statat(&self.folder, "", AtFlags::EMPTY_PATH);
        let there = rustix::fs::stat(&self.path);
        !matches!((here, there), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
    }

    /// Opens folders anew, after the process has got another view of the filesystem: those that were open lead into the old one.
    pub(super) fn open_anew(&mut self) -> Result<(), String> {
        let failed =
            |error: io::Error| format!("swap folder {}: {}", plain(&self.path), reason(&error));
        let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder =
            open(&self.path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        let control = trust::open_folder(&folder, CONTROL_FOLDER).map_err(failed)?;
        trust::check_named(&control, LOCK_FILE, &self.lock).map_err(failed)?;
        if let Some(outside) = &mut self.outside {
            outside.open_anew().map_err(failed)?;
        }
        (self.folder, self.control) = (folder, control);
        Ok(())
    }

    /// The folder of the locks outside, with its path.
    pub(super) fn locks_folder(&self) -> Option<(PathBuf, BorrowedFd<'_>)> {
        self.outside.as_ref().map(OutsideLock::folder)
    }

    /// Records the phase for whoever looks into the lock file.
    pub(crate) fn enter(&mut self, phase: Phase) -> io::Result<()> {
        self.state.state = phase;
        let mut text = serde_json::to_vec(&self.state)?;
        text.push(b'\n');
        let lock = self.lock.try_clone()?;
        let (sender, receiver) = std::sync::mpsc::channel();
        // On a thread of its own: the device may hang, and then this file does as well.
        std::thread::Builder::new().name("swapfs-state".to_owned()).spawn(move || {
            let length = text.len() as u64;
            let _ = sender.send(lock.write_all_at(&text, 0).and_then(|()| lock.set_len(length)));
        })?;
        receiver.recv_timeout(STATE_TIMEOUT).unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }

    /// Records the partitions that are not on stable storage, for whoever waits for this daemon.
    pub(crate) fn finished(&mut self, failed: &[String]) -> io::Result<()> {
        self.state.failed = failed.iter().take(FAILED_MAX).cloned().collect();
        let more = failed.len().saturating_sub(FAILED_MAX);
        if more > 0 {
            self.state.failed.push(format!("{more} more"));
        }
        self.enter(Phase::Finished)
    }
}

/// What the last daemon of a swap folder wrote, when that was one of this user's or of root's; `None` when there was
/// none, or it is hidden.
#[must_use]
pub fn read_state(swap_folder: &Path) -> Option<DaemonState> {
    let folder = open_swap_folder(swap_folder)?;
    parse_state(&open_lock(folder.as_fd(), &[0, trust::own_user()])?)
}

/// As [`read_state`]; the owner of the swap folder is believed as well.
pub(super) fn read_any_state(swap_folder: &Path) -> Option<DaemonState> {
    parse_state(&open_any_lock(swap_folder)?)
}

/// The lock file of this user's, of root's, or of the owner of the swap folder. Anybody else's file there tells nothing.
pub(super) fn open_any_lock(swap_folder: &Path) -> Option<File> {
    let folder = open_swap_folder(swap_folder)?;
    let owner = fstat(&folder).ok()?.st_uid;
    open_lock(folder.as_fd(), &[0, trust::own_user(), owner])
}

fn open_swap_folder(path: &Path) -> Option<OwnedFd> {
    open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()
}

fn open_lock(folder: BorrowedFd<'_>, owners: &[u32]) -> Option<File> {
    let control = trust::open_folder_of(owners, folder, CONTROL_FOLDER).ok()?;
    trust::open_file_of(owners, control, LOCK_FILE, OFlags::RDONLY).ok()
}

/// The text may be caught while it changes; a moment later it is whole.
pub(super) fn parse_state(lock: &File) -> Option<DaemonState> {
    (0..READ_TRIES).find_map(|tries| {
        std::thread::sleep(READ_RETRY * tries);
        let text = read_all(lock).ok()?;
        // A longer text from before may still follow.
        serde_json::Deserializer::from_slice(&text).into_iter().next()?.ok()
    })
}

fn read_all(file: &File) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let mut part = [0; 4096];
    while text.len() < STATE_BYTES_MAX {
        match file.read_at(&mut part, text.len() as u64)? {
            0 => return Ok(text),
            length => text.extend_from_slice(&part[..length]),
        }
    }
    Ok(text)
}

fn acquire(
    lock: &File, path: &Path, timeout: Duration, note: &mut dyn FnMut(&str),
) -> Result<(), String> {
    let start = Instant::now();
    let mut noted = false;
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) => {}
            Err(error) => return Err(format!("{}: lock: {error}", path.display())),
        }
        let shown = path.display();
        let holder = parse_state(lock);
        let waited = start.elapsed();
        match &holder {
            Some(holder) if may_finish(holder, waited) => {
                if waited >= timeout {
                    let (pid, s) = (holder.pid, timeout.as_secs());
                    return Err(format!(
                        "swap folder {shown}: swapfs pid {pid} is still finishing after {s} s"
                    ));
                }
                if !noted && holder.state == Phase::Finishing {
                    noted = true;
                    note(&format!(
                        "waiting for swapfs pid {} to finish with swap folder {shown}",
                        holder.pid
                    ));
                }
            }
            None if waited < GRACE => {}
            _ => return Err(in_use_line(path, holder.as_ref())),
        }
        std::thread::sleep(RETRY);
    }
}

/// Whether the holder is on its way out: it says so, or its mount is gone and it will say so soon, or it was killed
/// and the lock goes with the last of its transfers.
fn may_finish(holder: &DaemonState, waited: Duration) -> bool {
    let is_unmounted = || {
        let mounts = swapfs_mounts().unwrap_or_default();
        mounts.iter().all(|mount| mount.mountpoint != holder.mountpoint)
    };
    match holder.state {
        Phase::Finishing | Phase::Finished => true,
        Phase::Starting => waited < GRACE && is_leaving(holder.pid),
        Phase::Mounted => waited < GRACE && (is_leaving(holder.pid) || is_unmounted()),
    }
}

/// The process of another mount namespace that holds a mount which is none in this one, when there is such a process.
/// The daemon serves it until the last of these namespaces is gone.
fn holder_elsewhere(holder: &DaemonState) -> Option<i32> {
    let is_here = |mounts: Vec<MountEntry>| {
        let mut ours = mounts.iter().filter(|mount| mount.fs_type == FS_TYPE);
        ours.any(|mount| mount.mountpoint.ends_with(below_root(&holder.mountpoint)))
    };
    if holder.state != Phase::Mounted || is_here(swapfs_mounts().ok()?) {
        return None;
    }
    let processes = std::fs::read_dir("/proc").ok()?.flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let mut others = pids.filter(|pid| *pid != holder.pid);
    others.find(|pid| {
        let table = std::fs::read(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
        is_here(parse_mount_table(&table))
    })
}

/// A container may see the mountpoint below another root.
fn below_root(path: &Path) -> &Path {
    path.strip_prefix("/").unwrap_or(path)
}

pub(super) fn in_use_line(path: &Path, holder: Option<&DaemonState>) -> String {
    let shown = plain(path);
    match holder {
        Some(DaemonState { pid, mountpoint, .. }) if mountpoint.as_os_str().is_empty() => {
            format!("swap folder {shown} is being verified by swapfs pid {pid}")
        }
        Some(DaemonState { pid, mountpoint, .. }) => {
            let mountpoint = plain(mountpoint);
            let elsewhere = holder.and_then(holder_elsewhere).map(|other| {
                format!(", now only in another mount namespace: that of process {other}")
            });
            let elsewhere = elsewhere.unwrap_or_default();
            format!(
                "swap folder {shown} is in use by swapfs pid {pid} (mounted at {mountpoint}{elsewhere})"
            )
        }
        None => format!("swap folder {shown} is in use by another process"),
    }
}

/// Refuses a swap folder that lies on a swapfs mount; most often it is mounted over itself.
pub(super) fn refuse_mounted(path: &Path) -> Result<(), String> {
    let Ok(Some(entry)) = entry_of_path(path) else {
        return Ok(());
    };
    let (shown, mountpoint) = (path.display(), entry.mountpoint.display());
    let pid = MountStats::read(&entry.mountpoint).and_then(|stats| stats.pid());
    let holder = pid.map_or_else(|| "swapfs".to_owned(), |pid| format!("swapfs pid {pid}"));
    Err(match entry.mountpoint == path {
        true => format!("swap folder {shown} is in use by {holder} (mounted at {mountpoint})"),
        false => format!("swap folder {shown} lies on a swapfs mount itself ({mountpoint})"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lock(path: &Path, timeout: Duration) -> Result<(SwapFolder, Vec<String>), String> {
        let mut notes = Vec::new();
        SwapFolder::lock(path, Path::new("/mnt/x"), timeout, &mut |line| {
            notes.push(line.to_owned());
        })
        .map(|swap| (swap, notes))
    }

    #[test]
    fn the_control_folder_is_private_and_the_lock_says_who() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let (swap, notes) = lock(folder.path(), Duration::ZERO).unwrap();
        assert!(notes.is_empty() && !swap.is_hidden());
        let mode = folder.path().join(".swapfs").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        let state = read_state(folder.path()).unwrap();
        assert_eq!(state.pid, std::process::id().cast_signed());
        assert_eq!(
            (state.mountpoint.as_path(), state.state),
            (Path::new("/mnt/x"), Phase::Starting)
        );
    }

    #[test]
    fn a_folder_in_use_is_refused_with_the_first_ones_pid() {
        let folder = tempfile::tempdir().unwrap();
        let _first = lock(folder.path(), Duration::ZERO).unwrap();
        let error = lock(folder.path(), Duration::ZERO).unwrap_err();
        let pid = std::process::id();
        let expected = format!(
            "swap folder {} is in use by swapfs pid {pid} (mounted at /mnt/x)",
            folder.path().display()
        );
        assert_eq!(error, expected);
    }

    #[test]
    fn a_finishing_daemon_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let (mut first, _) = lock(folder.path(), Duration::ZERO).unwrap();
        first.enter(Phase::Finishing).unwrap();
        let error = lock(folder.path(), RETRY).unwrap_err();
        assert!(error.contains("is still finishing after 0 s"), "{error}");
        let path = folder.path().to_owned();
        let second = std::thread::spawn(move || lock(&path, Duration::from_secs(30)));
        std::thread::sleep(RETRY * 3);
        first.finished(&["a".to_owned()]).unwrap();
        drop(first);
        let (_second, notes) = second.join().unwrap().unwrap();
        let pid = std::process::id();
        assert_eq!(notes.len(), 1);
        assert!(notes[0].starts_with(&format!("waiting for swapfs pid {pid} to finish")));
    }

    /// What a killed process had open is closed after it has gone: by the kernel, when its transfers have ended.
    #[test]
    fn the_lock_of_a_process_that_is_gone_is_waited_for() {
        let mut gone = std::process::Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let (mut first, _) = lock(folder.path(), Duration::ZERO).unwrap();
        let error = SwapFolder::lock_for_check(folder.path()).unwrap_err();
        assert!(error.contains("is in use by swapfs pid"), "{error}");
        first.state.pid = gone.id().cast_signed();
        first.enter(Phase::Starting).unwrap();
        let path = folder.path().to_owned();
        let second = std::thread::spawn(move || SwapFolder::lock_for_check(&path));
        std::thread::sleep(RETRY * 3);
        drop(first);
        let second = second.join().unwrap().unwrap();
        assert_eq!(second.state.pid, std::process::id().cast_signed());
    }

    #[test]
    fn a_symbolic_link_in_place_of_the_control_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let elsewhere = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(elsewhere.path(), folder.path().join(".swapfs")).unwrap();
        assert!(lock(folder.path(), Duration::ZERO).is_err());
        assert_eq!(elsewhere.path().read_dir().unwrap().count(), 0);
    }
}
