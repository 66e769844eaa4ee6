//! What a benchmark has made, so that it is taken away again: at the end, after an error, and on a signal.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Arc;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use parking_lot::Mutex;
use rustix::fs::{Mode, OFlags, mkdirat};

use crate::held::Held;
use crate::mount::{Detach, unmount};
use crate::streams::tell;
use crate::sys_process::{end_by, ending_signals};
use crate::trust;

/// Refuses a folder in which somebody else could exchange what this process makes there, or which is reached through one.
///
/// # Errors
///
/// What can be exchanged, and why.
pub fn check_place(folder: &Path) -> io::Result<()> {
    trust::refuse_exchangeable(folder)
}

/// A command of swapfs, without input, in a process group of its own: what the terminal sends is not for it.
#[must_use]
pub fn swapfs(program: &Path, command: &str) -> Command {
    let mut swapfs = Command::new(program);
    swapfs.arg0("swapfs").arg(command).stdin(Stdio::null()).process_group(0);
    swapfs
}

/// How often a mount that is busy is to be unmounted.
const UNMOUNT_TRIES: u32 = 5;

#[derive(Debug)]
enum Item {
    Process(Pid),
    File(Held),
    /// With everything in it: the folder above, the name in it, and the folder itself.
    Folder(OwnedFd, OsString, OwnedFd),
    /// A mount of `program`'s.
    Mount {
        program: PathBuf,
        mountpoint: PathBuf,
    },
    /// Whatever else takes it away.
    Undo(Undo),
}

struct Undo(Box<dyn FnOnce() + Send>);

impl std::fmt::Debug for Undo {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Undo")
    }
}

#[derive(Debug, Default)]
struct Items {
    next: u64,
    list: Vec<(u64, Item)>,
}

/// The list of what is there. Cloning makes another handle to the same list.
#[derive(Debug, Clone, Default)]
pub struct Cleanup(Arc<Mutex<Items>>);

/// One thing on the list, taken away when this is dropped.
#[derive(Debug)]
pub struct Made {
    cleanup: Cleanup,
    id: u64,
    keep: bool,
}

/// A process of the benchmark: killed and reaped when dropped, unless it has ended by then.
#[derive(Debug)]
pub struct Process {
    /// The pipes, and the number.
    pub child: Child,
    made: Made,
    ended: Option<ExitStatus>,
}

impl Cleanup {
    /// An empty list.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on SIGINT, SIGTERM and SIGHUP (unless ignored) take away what is on the list before they end the process. To
    /// be called once, before other threads start: they must inherit the blocked signals.
    ///
    /// # Errors
    ///
    /// Those of blocking signals and of creating a thread.
    pub fn watch_signals(&self) -> io::Result<()> {
        let signals = ending_signals();
        signals.thread_block()?;
        let cleanup = self.clone();
        let wait = move || {
            let Ok(signal) = signals.wait() else { return };
            // Kept locked: nothing can be made any more.
            let mut items = cleanup.0.lock();
            let list = std::mem::take(&mut items.list).into_iter().rev().map(|(_, item)| item);
            // Whatever still runs would make its files again.
            let (processes, rest): (Vec<_>, Vec<_>) =
                list.partition(|item| matches!(item, Item::Process(_)));
            processes.into_iter().chain(rest).for_each(Item::remove);
            tell!("stopped by {signal}; what the benchmark had made is removed");
            // As the shell expects it: the process ends by the signal.
            let _ = signals.thread_unblock();
            end_by(signal);
            std::process::exit(1);
        };
        std::thread::Builder::new().name("swapfs-signals".to_owned()).spawn(wait).map(drop)
    }

    /// Makes something and puts it on the list, or neither.
    fn make<T>(&self, create: impl FnOnce() -> io::Result<(T, Item)>) -> io::Result<(T, Made)> {
        let mut items = self.0.lock();
        let (value, item) = create()?;
        let id = items.next;
        items.next += 1;
        items.list.push((id, item));
        drop(items);
        Ok((value, Made { cleanup: self.clone(), id, keep: false }))
    }

    /// Makes anything, with what takes it away again; the latter must not use this
    /// list, which is locked meanwhile.
    ///
    /// # Errors
    ///
    /// That of `create`; then there is nothing to take away.
    pub fn make_with<T>(
        &self, create: impl FnOnce() -> io::Result<T>, undo: impl FnOnce() + Send + 'static,
    ) -> io::Result<(T, Made)> {
        self.make(|| Ok((create()?, Item::Undo(Undo(Box::new(undo))))))
    }

    /// Creates a file, or takes one over, by what `make` does, and puts it on the list.
    ///
    /// # Errors
    ///
    /// Those of `make`.
    pub(super) fn file(
        &self, make: impl FnOnce() -> io::Result<(File, Held)>,
    ) -> io::Result<((File, Held), Made)> {
        self.make(|| {
            let (file, held) = make()?;
            Ok(((file, held.clone()), Item::File(held)))
        })
    }

    /// Creates a folder of its own in `parent`, which nobody else may enter, and nobody else may exchange.
    ///
    /// # Errors
    ///
    /// Those of mkdir(2); a parent in which others could put another folder in its place.
    pub fn folder(&self, parent: &Path) -> io::Result<(PathBuf, Made)> {
        trust::refuse_exchangeable(parent)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut number = 0;
        loop {
            let name = format!("swapfs-bench-{}-{number}", std::process::id());
            let made = self.make(|| {
                let above = rustix::fs::open(parent, flags, Mode::empty())?;
                mkdirat(&above, &*name, Mode::RWXU)?;
                let folder = trust::open_folder(&above, &name)?;
                Ok((parent.join(&name), Item::Folder(above, name.clone().into(), folder)))
            });
            match made {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1,
                other => return other,
            }
        }
    }

    /// Mounts the swap folder `swap` with `command`, the name of a command of `program`: `mount`, or the hidden
    /// `bench-null-mount`. Each of `options` is a `-o`.
    ///
    /// # Errors
    ///
    /// Those of starting a program; what the command said.
    pub fn mount<'a>(
        &self, program: &Path, command: &str, swap: &Path, mountpoint: &Path,
        options: impl IntoIterator<Item = &'a String>,
    ) -> io::Result<Made> {
        let ((), made) = self.make(|| {
            let mut mount = swapfs(program, command);
            mount.arg(swap).arg(mountpoint);
            for list in options {
                mount.arg("-o").arg(list);
            }
            let output = mount.output()?;
            if !output.status.success() {
                let text = String::from_utf8_lossy(&output.stderr);
                let line = text.lines().last().unwrap_or("the mount failed").trim();
                return Err(io::Error::other(
                    line.strip_prefix("swapfs: ").unwrap_or(line).to_owned(),
                ));
            }
            let (program, mountpoint) = (program.to_owned(), mountpoint.to_owned());
            Ok(((), Item::Mount { program, mountpoint }))
        })?;
        Ok(made)
    }

    /// Starts a process, as the leader of a process group that ends with it.
    ///
    /// # Errors
    ///
    /// Those of starting a program.
    pub fn process(&self, command: &mut Command) -> io::Result<Process> {
        let (child, made) = self.make(|| {
            // A group of its own: what the terminal sends is for this process, which ends the others.
            let child = command.process_group(0).spawn()?;
            let pid = Pid::from_raw(i32::try_from(child.id()).map_err(io::Error::other)?);
            Ok((child, Item::Process(pid)))
        })?;
        Ok(Process { child, made, ended: None })
    }

    /// Runs a program without input to its end, and gives all that it wrote.
    ///
    /// # Errors
    ///
    /// Those of starting a program, of its pipe, and of waitpid(2).
    pub fn output(&self, command: &mut Command) -> io::Result<Output> {
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = self.process(command)?;
        let errors = process.child.stderr.take();
        // Read beside the output: either pipe may fill.
        let errors = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            let _ = errors.map(|mut pipe| pipe.read_to_end(&mut bytes));
            bytes
        });
        let mut stdout = Vec::new();
        if let Some(pipe) = &mut process.child.stdout {
            pipe.read_to_end(&mut stdout)?;
        }
        let status = process.wait()?;
        let stderr = errors.join().map_err(|_| io::Error::other("a reader of a pipe ended"))?;
        Ok(Output { status, stdout, stderr })
    }
}

impl Made {
    /// Does something that takes it away and makes it again; a signal waits meanwhile.
    pub(super) fn renew<T>(&self, renew: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        // After a signal this lock is never to be had again.
        let _items = self.cleanup.0.lock();
        renew()
    }

    /// Leaves it there.
    pub(super) fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        let mut items = self.cleanup.0.lock();
        let position = items.list.iter().position(|(id, _)| *id == self.id);
        if let Some(position) = position {
            let (_, item) = items.list.remove(position);
            if !self.keep {
                // Locked until it is gone, so that a signal does not overtake it.
                item.remove();
            }
        }
    }
}

impl Process {
    /// Waits for its end. Its standard output must have been read to the end: signals wait meanwhile.
    ///
    /// # Errors
    ///
    /// Those of waitpid(2).
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        let cleanup = self.made.cleanup.clone();
        // With the number taken off the list in the same moment: it may soon be another process's.
        let mut items = cleanup.0.lock();
        let status = self.child.wait()?;
        items.list.retain(|(id, _)| *id != self.made.id);
        self.ended = Some(status);
        Ok(status)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.ended.is_none() {
            if let Ok(pid) = i32::try_from(self.child.id()) {
                let _ = killpg(Pid::from_raw(pid), Signal::SIGKILL);
            }
            let _ = self.wait();
        }
    }
}

impl Item {
    /// Whatever cannot be taken away is named in the log.
    fn remove(self) {
        let gone = |path: &Path, result: io::Result<()>| match result {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                log::warn!("cannot remove {}: {error}", path.display());
            }
            _ => {}
        };
        match self {
            Self::Process(pid) => {
                // With the processes that it has started: it leads a group.
                let _ = killpg(pid, Signal::SIGKILL);
                // Its files and mounts are next, and it must not use them any more.
                let _ = nix::sys::wait::waitpid(pid, None);
            }
            Self::Undo(Undo(undo)) => undo(),
            Self::File(held) => gone(held.name(), held.remove()),
            Self::Folder(above, name, folder) => {
                gone(name.as_ref(), trust::remove_folder(above.as_fd(), &name, folder.as_fd()));
            }
            Self::Mount { program, mountpoint } => {
                let unmounted = (0..UNMOUNT_TRIES).any(|_| {
                    // Threads that were interrupted may have files there, also ones opened since the last time.
                    if let Err(error) = crate::sys_process::give_up_descriptors(&mountpoint) {
                        log::warn!("descriptors below {}: {error}", mountpoint.display());
                    }
                    let mut command = swapfs(&program, "umount");
                    command.arg(&mountpoint).output().is_ok_and(|output| output.status.success())
                });
                if !unmounted && let Err(error) = unmount(&mountpoint, Detach::Lazily) {
                    log::warn!("cannot unmount {}: {error}", mountpoint.display());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::held::Folder;

    #[test]
    fn what_was_made_is_gone_and_nothing_else() {
        let place = tempfile::tempdir().unwrap();
        // Other tests of this program clear the umask.
        let own = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(place.path(), own).unwrap();
        let cleanup = Cleanup::new();
        let theirs = place.path().join("theirs");
        std::fs::write(&theirs, "x").unwrap();
        let create = |path: &Path| {
            let (folder, name) = Folder::of(path).unwrap();
            cleanup.file(|| Held::create(&folder, &name))
        };
        let error = create(&theirs).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        let (folder, made_folder) = cleanup.folder(place.path()).unwrap();
        let (_, made) = create(&folder.join("ours")).unwrap();
        let (_, kept) = create(&place.path().join("kept")).unwrap();
        kept.keep();
        let process = cleanup.process(Command::new("sleep").arg("1000")).unwrap();
        let pid = process.child.id();
        drop(process);
        assert!(!Path::new(&format!("/proc/{pid}")).exists());
        let marker = folder.join("marker");
        let theirs = marker.clone();
        let undo = move || std::fs::remove_file(theirs).unwrap();
        let ((), written) = cleanup.make_with(|| std::fs::write(&marker, "x"), undo).unwrap();
        drop(written);
        assert!(!marker.exists());
        drop(made);
        assert!(folder.exists());
        drop(made_folder);
        let mut left: Vec<_> =
            std::fs::read_dir(place.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["kept", "theirs"]);
        assert!(cleanup.0.lock().list.is_empty());
    }
}
