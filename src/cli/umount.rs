//! `swapfs umount`.

use std::fs::File;
use std::io::{self, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::ProgressBar;
use nix::errno::Errno;
use nix::unistd::ForkResult;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::Failure;
use super::bar::byte_bar;
use crate::daemon::{DaemonProcess, MountStats, Phase, read_state};
use crate::mount::{self, Detach, Disbelief, MountEntry, UnmountError};
use crate::paths::plain;
use crate::streams::tell;
use crate::sys_process::{fork_single_threaded, quoted, reason, text_xattr};
use crate::trust::own_user;

/// Seconds that an unmount takes at most, when nothing else is said.
pub(super) const UMOUNT_TIMEOUT_S: u64 = 600;

/// Between two looks at the progress.
const TICK: Duration = Duration::from_millis(100);

/// How long a busy mount is tried again.
const BUSY_PATIENCE: Duration = Duration::from_secs(1);

/// Arguments of `swapfs umount`.
#[derive(Debug, Args)]
pub struct UmountArgs {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Seconds for all of it; when they have passed, what is still to do is said.
    #[arg(long, value_name = "S", default_value_t = UMOUNT_TIMEOUT_S, value_parser = super::whole::<u64>)]
    pub timeout: u64,
    /// Unmount although something cannot be stored: it is named, and lost.
    #[arg(long)]
    pub force: bool,
    /// Take the mount away from new users at once, also while it is in use: those who have something open keep it, and
    /// the daemon serves them to their end.
    #[arg(short, long)]
    pub lazy: bool,
}

impl UmountArgs {
    /// Synchronizes, unmounts, and waits for the daemon unless users may keep it.
    pub(super) fn run(self) -> Result<(), Failure> {
        let detach = if self.lazy { Detach::Lazily } else { Detach::WhenIdle };
        let deadline = Instant::now() + Duration::from_secs(self.timeout);
        let entry = mount::entry_at(&self.mountpoint).map_err(|refusal| match refusal {
            Disbelief::Io(error) => format!("{}: {}", plain(&self.mountpoint), reason(&error)),
            refusal => refusal.to_string(),
        })?;
        let at = &entry.mountpoint;
        mount::refuse_unmount(&entry).map_err(|error| refused(at, &error))?;
        if entry.check().is_err() {
            return unmount_unasked(&entry, detach);
        }
        let root = match File::open(at) {
            Ok(root) => root,
            Err(error) if mount::is_dead(&error) => return Err(clear_dead(at)),
            Err(error) => return Err(format!("{}: {}", at.display(), reason(&error)).into()),
        };
        let stats = MountStats::read(at);
        let daemon = stats.as_ref().and_then(|stats| Daemon::open(at, stats));
        let is_stored = match synchronize(at, root, deadline, self.timeout) {
            Ok(()) => true,
            Err(left) if left.holds_up && !self.force => return Err(left.failure),
            Err(_) => false,
        };
        match unmount_patiently(at, detach) {
            Ok(()) | Err(UnmountError::NotMounted) => {}
            Err(UnmountError::Busy) => {
                let shown = at.display();
                let stored = if is_stored { "everything" } else { "all that can be stored" };
                return Err(Failure::Failed(match mount::mounts_below(at).first() {
                    Some(inside) => format!(
                        "{shown} is busy; {stored} is on stable storage, but {} is mounted inside of it; unmount it \
                         first: umount {}",
                        plain(inside),
                        quoted(inside)
                    ),
                    None => format!(
                        "{shown} is busy; {stored} is on stable storage, but it stays mounted until nobody uses it \
                         (who does: fuser -vm {})",
                        quoted(at)
                    ),
                }));
            }
            Err(error) => return Err(refused(at, &error)),
        }
        match (daemon, detach) {
            (Some(daemon), Detach::WhenIdle) => Ok(daemon.wait(deadline, self.timeout)?),
            _ if is_stored => Ok(()),
            _ => Err(Failure::Failed(format!(
                "{}: unmounted, but not everything is on stable storage: the daemon's log names what is not",
                plain(at)
            ))),
        }
    }
}

fn refused(at: &Path, error: &UnmountError) -> Failure {
    Failure::Failed(format!("cannot unmount {}: {error}", plain(at)))
}

/// Why not everything is on stable storage.
struct Left {
    failure: Failure,
    /// False where nothing is left but what other users have spoilt of their own: that is never stored, and would keep the
    /// mount for ever.
    holds_up: bool,
}

/// Takes another user's mount away. It is asked nothing: it may never answer, and what it says is not believed.
fn unmount_unasked(entry: &MountEntry, detach: Detach) -> Result<(), Failure> {
    let (at, user) = (&entry.mountpoint, entry.owner.unwrap_or(u32::MAX));
    let shown = plain(at);
    unmount_patiently(at, detach).map_err(|error| refused(at, &error))?;
    tell!("{shown} was mounted by user {user}, whose daemon is not waited for");
    Ok(())
}

/// Unmounts; somebody who only looks in for a moment is no reason to give up.
fn unmount_patiently(at: &Path, detach: Detach) -> Result<(), UnmountError> {
    let deadline = Instant::now() + BUSY_PATIENCE;
    loop {
        match mount::unmount(at, detach) {
            Err(UnmountError::Busy) if Instant::now() < deadline => std::thread::sleep(TICK),
            other => return other,
        }
    }
}

/// Unmounts what no daemon serves any more; never a success, for nobody knows what was lost.
fn clear_dead(at: &Path) -> Failure {
    let shown = at.display();
    Failure::Failed(match mount::unmount(at, Detach::Lazily) {
        Ok(()) => format!(
            "{shown} was a dead mount and is unmounted now; what its daemon had not \
             synchronized is lost"
        ),
        Err(error) => format!("{shown} is a dead mount: {error}"),
    })
}

/// Puts everything on stable storage: fsync of the root directory.
///
/// A child process does it. A thread that waits for the mount cannot be ended by anything but the
/// mount's answer, and would keep this process past its timeout.
fn synchronize(at: &Path, root: File, deadline: Instant, timeout_s: u64) -> Result<(), Left> {
    let failed = |why: &str| {
        let line = format!("cannot synchronize {}: {why}; still mounted", at.display());
        Left { failure: Failure::Failed(line), holds_up: true }
    };
    let answer = start_fsync(root).map_err(|error| failed(&reason(&error)))?;
    // Not opened by name: names in the root wait for the fsync.
    let progress = Progress::new();
    while !is_readable(&answer, deadline.min(Instant::now() + TICK)) {
        progress.show(at);
        if Instant::now() >= deadline {
            progress.finish();
            let left = Progress::left(at).map_or_else(String::new, |buffers| {
                format!(", {buffers} buffers are not on stable storage yet")
            });
            return Err(failed(&format!("not done after {timeout_s} s{left}")));
        }
    }
    progress.finish();
    match read_answer(answer).map_err(|error| failed(&reason(&error)))? {
        0 => Ok(()),
        code => {
            let stats = MountStats::read(at);
            let count = match stats.as_ref().and_then(MountStats::failed_partitions) {
                Some(1) => " (1 partition is not on stable storage)".to_owned(),
                Some(count) => format!(" ({count} partitions are not on stable storage)"),
                None => String::new(),
            };
            let left = failed(&format!("{}{count}", Errno::from_raw(code).desc()));
            let unstored = stats.and_then(|stats| stats.unstored()).unwrap_or_default();
            let asker = own_user();
            let holds_up =
                unstored.is_empty() || unstored.iter().any(|unstored| unstored.holds_up(asker));
            Err(Left { holds_up, ..left })
        }
    }
}

/// Starts the fsync; the pipe gives its errno, or 0.
fn start_fsync(root: File) -> io::Result<PipeReader> {
    let (reader, mut writer) = io::pipe()?;
    match fork_single_threaded()? {
        ForkResult::Parent { .. } => Ok(reader),
        ForkResult::Child => {
            drop(reader);
            // Whoever reads our output must not wait for this process.
            if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
                let _ = rustix::stdio::dup2_stdin(&null);
                let _ = rustix::stdio::dup2_stdout(&null);
                let _ = rustix::stdio::dup2_stderr(&null);
            }
            let code = rustix::fs::fsync(&root).map_or_else(|error| error.raw_os_error(), |()| 0);
            // Before the answer, or it would keep the mount busy.
            drop(root);
            let _ = writer.write_all(&code.to_ne_bytes());
            std::process::exit(0);
        }
    }
}

fn read_answer(mut answer: PipeReader) -> io::Result<i32> {
    let mut code = [0; 4];
    answer.read_exact(&mut code)?;
    Ok(i32::from_ne_bytes(code))
}

/// Waits until there is something to read (or the end), at most until `until`.
fn is_readable(fd: &impl AsFd, until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    // A time that the kernel cannot express is as good as no limit.
    let timeout = Timespec::try_from(left).ok();
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    poll(&mut fds, timeout.as_ref()).is_ok_and(|ready| ready > 0)
}

/// A bar on a terminal, counting the bytes of dirty buffers. Those that are being written are among them.
struct Progress(ProgressBar);

impl Progress {
    fn new() -> Self {
        Self(byte_bar("synchronizing"))
    }

    /// Buffers that are not on stable storage; asked of the root itself, which never waits.
    fn left(at: &Path) -> Option<u64> {
        Self::count(at, "dirty")
    }

    fn count(at: &Path, name: &str) -> Option<u64> {
        let name = format!("user.swap.pool.{name}");
        text_xattr(at, &name).ok().flatten()?.trim().parse().ok()
    }

    fn show(&self, at: &Path) {
        let Some(left) = Self::left(at).filter(|_| !self.0.is_hidden()) else {
            return;
        };
        let left = left.saturating_mul(Self::count(at, "buffer_size").unwrap_or(1));
        let length = self.0.length().unwrap_or(0).max(left);
        self.0.set_length(length);
        self.0.set_position(length - left);
    }

    fn finish(&self) {
        self.0.finish_and_clear();
    }
}

/// The process behind a mount.
struct Daemon {
    pid: i32,
    fd: OwnedFd,
    swap_folder: Option<PathBuf>,
}

impl Daemon {
    fn open(at: &Path, stats: &MountStats) -> Option<Self> {
        let pid = stats.pid()?;
        let fd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        if let Err(why) = DaemonProcess::open(pid) {
            if let Some(why) = why {
                tell!("{}: pid {pid} {why}: not waited for", plain(at));
            }
            return None;
        }
        Some(Self { pid, fd, swap_folder: stats.swap_folder() })
    }

    /// Waits for its exit, and repeats what it could not store.
    fn wait(self, deadline: Instant, timeout_s: u64) -> Result<(), String> {
        if !is_readable(&self.fd, deadline) {
            return Err(format!(
                "unmounted, but swapfs pid {} is still finishing after {timeout_s} s",
                self.pid
            ));
        }
        let state = self.swap_folder.as_deref().and_then(read_state);
        match state.filter(|state| state.pid == self.pid) {
            Some(state) if matches!(state.state, Phase::Mounted | Phase::Finishing) => {
                Err(format!(
                    "unmounted, but swapfs pid {} ended before it was done: the next mount finds out what is missing",
                    self.pid
                ))
            }
            Some(state) if !state.failed.is_empty() => {
                Err(format!("unmounted, but not on stable storage: {}", state.failed.join(", ")))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::daemon::DaemonState;

    /// A daemon that is killed while it finishes has stored nobody knows what.
    #[test]
    fn only_a_daemon_that_has_finished_has_stored_everything() {
        let folder = tempfile::tempdir().unwrap();
        let control = folder.path().join(".swapfs");
        std::fs::create_dir(&control).unwrap();
        std::fs::set_permissions(&control, Permissions::from_mode(0o700)).unwrap();
        let ended = |phase, failed: &[&str], is_successor: bool| {
            let mut child = std::process::Command::new("true").spawn().unwrap();
            let pid = i32::try_from(child.id()).unwrap();
            let fd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
            let state = DaemonState {
                pid: pid + i32::from(is_successor),
                mountpoint: "/mnt/x".into(),
                state: phase,
                failed: failed.iter().map(|name| (*name).to_owned()).collect(),
            };
            let lock = control.join("lock");
            std::fs::write(&lock, serde_json::to_vec(&state).unwrap()).unwrap();
            std::fs::set_permissions(&lock, Permissions::from_mode(0o600)).unwrap();
            child.wait().unwrap();
            let daemon = Daemon { pid, fd, swap_folder: Some(folder.path().to_owned()) };
            daemon.wait(Instant::now() + Duration::from_secs(60), 60)
        };
        // Unmounted while it started, it had nothing to store.
        for phase in [Phase::Finished, Phase::Starting] {
            assert_eq!(ended(phase, &[], false), Ok(()));
        }
        for phase in [Phase::Mounted, Phase::Finishing] {
            let line = ended(phase, &[], false).unwrap_err();
            assert!(line.contains("ended before it was done"), "{line}");
            // Another one has the folder since: the last one's words are gone.
            assert_eq!(ended(phase, &["b"], true), Ok(()));
        }
        let line = ended(Phase::Finished, &["a", "b"], false).unwrap_err();
        assert!(line.ends_with("not on stable storage: a, b"), "{line}");
    }
}
