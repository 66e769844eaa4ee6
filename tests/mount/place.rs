//! A swap folder, a mountpoint and the command on them.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::support::wait_until;

/// One command's time.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// A mount's whole time: after it, whoever still waits for the mount gets an error.
const MOUNT_LIMIT: Duration = Duration::from_secs(100);

/// Runs `swapfs` with these arguments; one that takes too long is killed.
pub(crate) fn swapfs(arguments: &[&str]) -> Output {
    by(&[env!("CARGO_BIN_EXE_swapfs")], arguments)
}

/// As [`swapfs`], with a program in front that starts it in its own way.
fn by(program: &[&str], arguments: &[&str]) -> Output {
    let child = Command::new(program[0])
        .args(&program[1..])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(child.id().cast_signed());
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || sender.send(child.wait_with_output()));
    match receiver.recv_timeout(COMMAND_LIMIT) {
        Ok(output) => output.unwrap(),
        Err(_) => {
            let _ = kill(pid, Signal::SIGKILL);
            panic!("swapfs {arguments:?} takes too long");
        }
    }
}

/// `swapfs umount`, again as long as the mount is busy: another test that starts a command has our descriptors until
/// its exec.
fn umount(mnt: &Path) -> Output {
    let mut output = swapfs(&["umount", mnt.to_str().unwrap(), "--timeout", "30"]);
    for _ in 0..50 {
        if !complaint(&output).contains("is busy") {
            break;
        }
        std::thread::sleep(Duration::from_millis(100));
        output = swapfs(&["umount", mnt.to_str().unwrap(), "--timeout", "30"]);
    }
    output
}

/// What the command said on standard error.
pub(crate) fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).trim_end().to_owned()
}

pub(crate) fn is_done(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// A swap folder mounted for one test. Unmounted and gone at the end, whatever happens.
pub(crate) struct Mount {
    /// Scratch of the test's own, on the filesystem of the swap folder.
    pub(crate) scratch: TempDir,
    pub(crate) swap: PathBuf,
    pub(crate) mnt: PathBuf,
    /// The daemon's process; 0 while there is none.
    pid: Arc<AtomicI32>,
    /// Dropped, it calls the watchdog off.
    _watchdog: Sender<()>,
}

impl Mount {
    /// A fresh swap folder on the build folder's filesystem, mounted with these options.
    pub(crate) fn new(options: &str) -> Self {
        Self::within(Path::new(env!("CARGO_TARGET_TMPDIR")), options)
    }

    /// As [`Mount::new`], below another folder.
    pub(crate) fn within(parent: &Path, options: &str) -> Self {
        Self::lasting(Duration::ZERO, parent, options)
    }

    /// As [`Mount::within`], for a test that works so long.
    pub(crate) fn lasting(work: Duration, parent: &Path, options: &str) -> Self {
        let mount = Self::limited(MOUNT_LIMIT + work, parent);
        is_done(&mount.mount(options));
        mount
    }

    /// A swap folder and a mountpoint, not mounted yet.
    pub(crate) fn prepared(parent: &Path) -> Self {
        Self::limited(MOUNT_LIMIT, parent)
    }

    fn limited(limit: Duration, parent: &Path) -> Self {
        let scratch = tempfile::tempdir_in(parent).unwrap();
        let path = scratch.path().canonicalize().unwrap();
        let (swap, mnt) = (path.join("swap"), path.join("mnt"));
        fs::create_dir(&swap).unwrap();
        fs::create_dir(&mnt).unwrap();
        let pid = Arc::new(AtomicI32::new(0));
        let (watchdog, called_off) = mpsc::channel::<()>();
        let (at, daemon) = (mnt.clone(), pid.clone());
        std::thread::spawn(move || {
            if called_off.recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("{} takes too long and is taken away", at.display());
                take_away(&at, &daemon);
            }
        });
        Self { scratch, swap, mnt, pid, _watchdog: watchdog }
    }

    /// `swapfs mount` with these `-o` options; more arguments after a blank.
    pub(crate) fn mount(&self, options: &str) -> Output {
        self.mount_by(&[], options)
    }

    /// As [`Mount::mount`], with a program in front that starts it in its own way.
    pub(crate) fn mount_by(&self, program: &[&str], options: &str) -> Output {
        let (options, more) = options.split_once(' ').unwrap_or((options, ""));
        let (swap, mnt) = (self.swap.to_str().unwrap(), self.mnt.to_str().unwrap());
        let mut arguments = vec!["mount", swap, mnt];
        if !options.is_empty() {
            arguments.extend(["-o", options]);
        }
        arguments.extend(more.split_whitespace());
        let output = by(&[program, &[env!("CARGO_BIN_EXE_swapfs")]].concat(), &arguments);
        if output.status.success() {
            self.pid.store(self.stats_pid(), Ordering::SeqCst);
        }
        output
    }

    fn stats_pid(&self) -> i32 {
        let stats = fs::read_to_string(self.mnt.join(".swapfs/stats.json")).unwrap();
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        stats["mount"]["pid"].as_i64().unwrap() as i32
    }

    /// The path of a file on the mount.
    pub(crate) fn at(&self, name: &str) -> PathBuf {
        self.mnt.join(name)
    }

    /// The path of the same file in the swap folder.
    pub(crate) fn backing(&self, name: &str) -> PathBuf {
        self.swap.join(name)
    }

    /// Processor time of the daemon so far, in ticks of a hundredth of a second.
    pub(crate) fn processor_ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon())).unwrap();
        let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }

    pub(crate) fn daemon(&self) -> Pid {
        Pid::from_raw(self.pid.load(Ordering::SeqCst))
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.daemon(), signal).unwrap();
    }

    /// Waits for the daemon's process to go.
    pub(crate) fn wait_gone(&self) {
        let stat = format!("/proc/{}/stat", self.daemon());
        wait_until("the daemon's exit", || {
            // Nobody may be there to reap it.
            fs::read_to_string(&stat).map_or(true, |stat| stat.contains(") Z "))
        });
    }

    /// `swapfs umount`, which must succeed.
    pub(crate) fn unmount(&self) {
        is_done(&umount(&self.mnt));
        self.pid.store(0, Ordering::SeqCst);
    }

    /// Unmounts and mounts again: nothing is resident afterwards.
    pub(crate) fn remount(&self, options: &str) {
        self.unmount();
        is_done(&self.mount(options));
    }

    pub(crate) fn is_mounted(&self) -> bool {
        let mounts = swapfs::mount::swapfs_mounts().unwrap();
        mounts.iter().any(|mount| mount.mountpoint == self.mnt)
    }

    /// What the daemon logged, where the swap folder is not hidden.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.swap.join(".swapfs/log")).unwrap_or_default()
    }
}

/// Ends a mount with all that wait for it, and its daemon.
fn take_away(mnt: &Path, daemon: &AtomicI32) {
    let pid = daemon.swap(0, Ordering::SeqCst);
    if pid > 0 {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = umount2(mnt, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
}

impl Drop for Mount {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        if failed {
            eprintln!("the daemon's log:\n{}", self.log());
        } else if self.daemon().as_raw() > 0 && self.is_mounted() {
            let output = umount(&self.mnt);
            if !output.status.success() {
                take_away(&self.mnt, &self.pid);
                panic!("{output:?}");
            }
        }
        take_away(&self.mnt, &AtomicI32::new(if failed { self.daemon().as_raw() } else { 0 }));
        assert!(failed || !self.log().contains("panicked"), "{}", self.log());
    }
}
