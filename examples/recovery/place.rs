//! A swap folder, its mount, and what its files hold without one.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

use crate::model::{Failure, Kind, LOOSE_SIZES, PAGE};
use crate::tracer::Daemon;

/// Nothing here takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Where the kernel lets one abort mounts.
pub(crate) const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// A killed daemon is gone before.
pub(crate) const DYING: Duration = Duration::from_secs(10);

/// What the threads of a killed daemon began may land for so long.
const SETTLING: Duration = Duration::from_millis(20);

/// Why a session does not go on.
#[derive(Debug)]
pub(crate) enum Stop {
    /// The daemon was killed.
    Gone,
    Failed(Failure),
}

impl From<Failure> for Stop {
    fn from(failure: Failure) -> Stop {
        Stop::Failed(failure)
    }
}

/// A failure of the surroundings.
pub(crate) fn trouble(text: impl Into<String>) -> Failure {
    Failure::new(Kind::Other, text)
}

/// The program in the build folder that this example is in.
pub(crate) fn built_beside() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own.ancestors().nth(2).unwrap_or(Path::new("/")).join("swapfs");
    match program.exists() {
        true => Ok(program),
        false => Err(io::Error::other(format!("{} is not there", program.display()))),
    }
}

/// Runs a program for at most a minute: its exit status and what it said.
pub(crate) fn run(program: &OsStr, arguments: &[&OsStr]) -> Result<(Option<i32>, String), Failure> {
    let shown = || {
        let words: Vec<_> = arguments.iter().map(|word| word.to_string_lossy()).collect();
        format!("{} {}", program.to_string_lossy(), words.join(" "))
    };
    let failed = |error: io::Error| trouble(format!("{}: {error}", shown()));
    let said = tempfile::tempfile().map_err(failed)?;
    let copy = || said.try_clone().map_err(failed);
    let mut child = Command::new(program)
        .args(arguments)
        .process_group(0)
        .stdout(copy()?)
        .stderr(copy()?)
        .spawn()
        .map_err(failed)?;
    let begin = Instant::now();
    let status = loop {
        match child.try_wait().map_err(failed)? {
            Some(status) => break status,
            None if begin.elapsed() > 2 * PATIENCE => {
                let _ = child.kill();
                return Err(trouble(format!("{} does not end", shown())));
            }
            None => std::thread::sleep(Duration::from_millis(2)),
        }
    };
    let mut bytes = vec![0; said.metadata().map_or(0, |metadata| metadata.len()) as usize];
    let _ = std::os::unix::fs::FileExt::read_exact_at(&said, &mut bytes, 0);
    Ok((status.code(), format!("{}: {}", shown(), String::from_utf8_lossy(&bytes).trim())))
}

/// Tells at the end of its life, after a panic too.
struct Done<'a>(&'a AtomicBool);

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Bytes of every file of a swap folder but the records, by name.
pub(crate) type Snapshot = BTreeMap<PathBuf, Vec<u8>>;

/// A swap folder and its mountpoint; both go at the end.
pub(crate) struct Place {
    program: PathBuf,
    pub(crate) swap: PathBuf,
    pub(crate) mnt: PathBuf,
    log: PathBuf,
    /// Number of the mount's connection; 0: not known.
    connection: AtomicU64,
    scratch: Option<TempDir>,
}

impl Place {
    /// A fresh one below `folder`; the swap folder is `swap` when that is given.
    pub(crate) fn new(program: &Path, folder: &Path, swap: Option<PathBuf>) -> io::Result<Place> {
        swapfs::bench::check_place(folder)?;
        let scratch = tempfile::Builder::new().prefix("swapfs-recovery-").tempdir_in(folder)?;
        let at = |name: &str| scratch.path().join(name);
        let swap = swap.unwrap_or_else(|| at("swap"));
        let (mnt, log) = (at("mnt"), at("log"));
        std::fs::create_dir_all(&swap)?;
        std::fs::create_dir(&mnt)?;
        Ok(Place {
            program: program.to_owned(),
            swap,
            mnt,
            log,
            connection: AtomicU64::new(0),
            scratch: Some(scratch),
        })
    }

    /// Whether it is mounted; as which device is remembered, by which its connection is named.
    fn is_mounted(&self) -> bool {
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut found = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let Some(line) = found.find(|line| line.get(4).copied() == self.mnt.to_str()) else {
            return false;
        };
        if let Some(minor) = line[2].split(':').nth(1).and_then(|minor| minor.parse().ok()) {
            self.connection.store(minor, Ordering::SeqCst);
        }
        true
    }

    /// The last lines that the daemon wrote.
    pub(crate) fn said(&self) -> String {
        let log = std::fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log).into_owned();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n  ")
    }

    /// Starts a daemon and waits until its mount answers.
    pub(crate) fn mount(&self, options: &str, kill_at: u64) -> Result<Daemon, Failure> {
        let failed = |error: io::Error| trouble(format!("mount -o {options}: {error}"));
        let log = File::options().create(true).append(true).open(&self.log).map_err(failed)?;
        let words = ["mount".as_ref(), self.swap.as_ref(), self.mnt.as_ref()];
        let words: Vec<&OsStr> =
            words.into_iter().chain(["-f".as_ref(), "-o".as_ref(), options.as_ref()]).collect();
        Daemon::start(&self.program, &words, log, kill_at).map_err(failed)
    }

    pub(crate) fn wait_mounted(&self, daemon: &Daemon) -> Result<(), Stop> {
        let begin = Instant::now();
        while !self.is_mounted() {
            if daemon.has_ended() {
                return Err(self.ended(daemon));
            }
            if begin.elapsed() > PATIENCE {
                return Err(trouble(format!(
                    "no mount after {PATIENCE:?}{}",
                    daemon.whereabouts()
                ))
                .into());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        match rustix::fs::statfs(&self.mnt) {
            Ok(_) => Ok(()),
            Err(_) if daemon.is_killed() => Err(Stop::Gone),
            // It may be about to say why.
            Err(_) if daemon.wait(DYING).is_some() => Err(self.ended(daemon)),
            Err(errno) => {
                let calls = daemon.calls();
                let text = format!("the mount does not answer: {errno}, after {calls} calls");
                Err(trouble(text + &daemon.whereabouts()).into())
            }
        }
    }

    /// What it means that the daemon has ended.
    pub(crate) fn ended(&self, daemon: &Daemon) -> Stop {
        match daemon.is_killed() {
            true => Stop::Gone,
            false => {
                let status = daemon.wait(PATIENCE).unwrap_or(-1);
                let text =
                    format!("the daemon ended by itself, status {status:#x}:\n  {}", self.said());
                trouble(text).into()
            }
        }
    }

    /// Ends a session by a clean unmount: whether it was one, as the daemon may be killed meanwhile.
    pub(crate) fn unmount(&self, daemon: &Daemon, strained: bool) -> Result<bool, Failure> {
        let words = ["umount".as_ref(), self.mnt.as_os_str(), "--timeout".as_ref(), "60".as_ref()];
        let (status, said) = run(self.program.as_os_str(), &words)?;
        match status {
            Some(0) => {
                let ended = daemon.wait(PATIENCE);
                if ended.is_none() {
                    return Err(trouble(format!(
                        "the daemon stays after its umount{}",
                        daemon.whereabouts()
                    )));
                }
                Ok(true)
            }
            _ if daemon.is_killed() => Ok(false),
            // Bytes that share a page with torn ones cannot be written; who wants the mount to end loses them.
            _ if strained && said.contains("not on stable storage") => Ok(false),
            status => Err(trouble(format!("{said} (status {status:?}){}", daemon.whereabouts()))),
        }
    }

    /// Kills the daemon and waits until it, its mount and its lock are gone.
    pub(crate) fn kill(&self, daemon: &Daemon) -> Result<(), Failure> {
        daemon.kill();
        self.clear();
        if daemon.wait(DYING).is_none() {
            return Err(self.force(daemon));
        }
        self.wait_unlocked()?;
        std::thread::sleep(SETTLING);
        Ok(())
    }

    /// Ends a daemon that is killed and does not end: a thread of its may wait for an answer of its own.
    pub(crate) fn force(&self, daemon: &Daemon) -> Failure {
        let text = format!("the killed daemon does not end{}", daemon.whereabouts());
        let mounts = std::fs::read_dir(CONNECTIONS);
        let number = self.connection.load(Ordering::SeqCst).to_string();
        for mount in mounts.into_iter().flatten().flatten() {
            if mount.file_name() == *number {
                let _ = std::fs::write(mount.path().join("abort"), "1");
            }
        }
        let ended = daemon.wait(DYING).is_some();
        trouble(format!("{text}\n  after an abort of its mount it has ended: {ended}"))
    }

    /// Does something at the mount in this thread, while another one ends a daemon that hangs.
    pub(crate) fn guarded<T>(
        &self, daemon: &Daemon, what: impl FnOnce() -> Result<T, Stop>,
    ) -> Result<T, Stop> {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let watcher = scope.spawn(|| self.watch(daemon, &done));
            let result = {
                let _done = Done(&done);
                what()
            };
            match watcher.join() {
                Ok(Some(failure)) => Err(failure.into()),
                _ => result,
            }
        })
    }

    fn watch(&self, daemon: &Daemon, done: &AtomicBool) -> Option<Failure> {
        let begin = Instant::now();
        let (mut killed, mut failure) = (None, None);
        while !done.load(Ordering::SeqCst) {
            if begin.elapsed() > 2 * PATIENCE && failure.is_none() {
                let text = format!("reading or mounting hangs{}", daemon.whereabouts());
                failure = Some(trouble(text));
                daemon.kill();
            }
            if daemon.is_killed() && killed.get_or_insert_with(Instant::now).elapsed() > DYING {
                let forced = self.force(daemon);
                failure.get_or_insert(forced);
                killed = Some(Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        failure
    }

    fn clear(&self) {
        while self.is_mounted() && umount2(&self.mnt, MntFlags::MNT_DETACH).is_ok() {}
    }

    fn wait_unlocked(&self) -> Result<(), Failure> {
        let Ok(lock) = File::options().read(true).write(true).open(self.swap.join(".swapfs/lock"))
        else {
            return Ok(());
        };
        let begin = Instant::now();
        while lock.try_lock().is_err() || is_range_locked(&lock) {
            if begin.elapsed() > PATIENCE {
                return Err(trouble("the killed daemon's lock stays"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Runs fsck: its exit status.
    pub(crate) fn fsck(&self, repair: bool) -> Result<i32, Failure> {
        let mut words = vec!["fsck".as_ref(), self.swap.as_os_str()];
        words.extend(repair.then_some(OsStr::new("--repair")));
        match run(self.program.as_os_str(), &words)? {
            (Some(status @ 0..=1), _) => Ok(status),
            (status, said) => Err(trouble(format!("{said} (status {status:?})"))),
        }
    }

    pub(crate) fn snapshot(&self) -> Result<Snapshot, Failure> {
        let mut snapshot = Snapshot::new();
        collect(&self.swap, &mut snapshot)
            .map_err(|error| trouble(format!("reading the swap folder: {error}")))?;
        Ok(snapshot)
    }

    /// Whether the swap folder's files are as they were.
    pub(crate) fn check_same(&self, before: &Snapshot, by: &str) -> Result<(), Failure> {
        let after = self.snapshot()?;
        for (path, bytes) in before {
            let name = path.strip_prefix(&self.swap).unwrap_or(path).display().to_string();
            let failed =
                |text: String| Failure::new(Kind::Others, format!("{name} {text} by {by}"));
            let now = after.get(path).ok_or_else(|| failed("was removed".to_owned()))?;
            let padding =
                LOOSE_SIZES.load(Ordering::Relaxed) && now.len().abs_diff(bytes.len()) < PAGE;
            if now.len() != bytes.len() && !padding {
                return Err(failed(format!("was made {} bytes of {}", now.len(), bytes.len())));
            }
            if let Some(at) = bytes.iter().zip(now).position(|(one, other)| one != other) {
                return Err(failed(format!("was changed at {at}")));
            }
        }
        match after.keys().find(|path| !before.contains_key(*path)) {
            Some(path) => {
                Err(Failure::new(Kind::Others, format!("{} was made by {by}", path.display())))
            }
            None => Ok(()),
        }
    }
}

fn collect(folder: &Path, snapshot: &mut Snapshot) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() && entry.file_name() != ".swapfs" {
            collect(&entry.path(), snapshot)?;
        } else if kind.is_file() {
            snapshot.insert(entry.path(), std::fs::read(entry.path())?);
        }
    }
    Ok(())
}

/// Whether somebody has an advisory lock of some bytes of it.
fn is_range_locked(lock: &File) -> bool {
    // SAFETY: all zeros are a lock of the whole file.
    let mut range: libc::flock = unsafe { std::mem::zeroed() };
    range.l_type = libc::F_WRLCK as libc::c_short;
    // SAFETY: the answer is written to a structure that lives here.
    let asked = unsafe { libc::fcntl(lock.as_raw_fd(), libc::F_OFD_GETLK, &raw mut range) };
    asked == 0 && range.l_type != libc::F_UNLCK as libc::c_short
}

impl Drop for Place {
    fn drop(&mut self) {
        self.clear();
        if self.is_mounted()
            && let Some(scratch) = self.scratch.take()
        {
            // Removing it would remove what is mounted there.
            let _ = scratch.keep();
        }
    }
}
