//! A swap folder and a mountpoint for one test, and the command run on them.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::fake;

/// Marks the process that is to be the command; its arguments, one a line.
pub(crate) const ARGUMENTS: &str = "SWAPFS_TEST_ARGUMENTS";

/// Nothing here takes longer, on however slow a machine.
const DEADLINE: Duration = Duration::from_secs(30);

/// The command with a fake filesystem that behaves as `behaviour` says.
pub(crate) fn command(behaviour: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.env(ARGUMENTS, arguments.join("\n")).env(fake::BEHAVIOUR, behaviour);
    command
}

/// A swap folder and a mountpoint; unmounted and gone at the end whatever happens.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
}

impl Place {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["swap", "mnt"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        Self { folder }
    }

    pub(crate) fn swap(&self) -> PathBuf {
        self.folder.path().join("swap")
    }

    pub(crate) fn mnt(&self) -> PathBuf {
        self.folder.path().join("mnt")
    }

    pub(crate) fn mount(&self, behaviour: &str, more: &[&str]) -> Output {
        let (swap, mnt) = (self.swap(), self.mnt());
        let mut arguments = vec!["mount", swap.to_str().unwrap(), mnt.to_str().unwrap()];
        arguments.extend(more);
        command(behaviour, &arguments).output().unwrap()
    }

    pub(crate) fn umount(&self) -> Output {
        command("", &["umount", self.mnt().to_str().unwrap()]).output().unwrap()
    }

    pub(crate) fn is_mounted(&self) -> bool {
        let mounts = swapfs::mount::swapfs_mounts().unwrap();
        mounts.iter().any(|mount| mount.mountpoint == self.mnt())
    }

    pub(crate) fn state(&self) -> swapfs::daemon::DaemonState {
        swapfs::daemon::read_state(&self.swap()).expect("a lock file")
    }

    /// The daemon's log, or what it has written of it so far.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.swap().join(".swapfs/log")).unwrap_or_default()
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.state().pid), signal).unwrap();
    }

    /// Waits for the daemon's process to go.
    pub(crate) fn wait_gone(&self) {
        let process = PathBuf::from(format!("/proc/{}/stat", self.state().pid));
        wait_until("the daemon's exit", || {
            match std::fs::read_to_string(&process) {
                // Nobody may be there to reap it.
                Ok(stat) => stat.contains(") Z "),
                Err(_) => true,
            }
        });
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.mnt(), nix::mount::MntFlags::MNT_DETACH);
        if let Some(state) = swapfs::daemon::read_state(&self.swap())
            && state.state != swapfs::daemon::Phase::Finished
        {
            let pid = nix::unistd::Pid::from_raw(state.pid);
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

pub(crate) fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What the command said on standard error.
pub(crate) fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

pub(crate) fn assert_done(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

pub(crate) fn assert_failed(output: &Output, line: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(complaint(output), format!("swapfs: {line}"));
}
