//! The process that a mount names as its daemon: believed only when it is a swapfs process of root or of whoever asks.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Dir, Mode, OFlags, open, openat, readlinkat};

use crate::sys_process::reason;
use crate::trust;

/// Bytes of a file of `/proc/PID` that are read at most.
const FILE_BYTES_MAX: u64 = 16 << 20;

/// The program's name, and how the kernel shortens those of the helpers.
const PROGRAM: &str = "swapfs";
const COMMANDS: [&str; 3] = [PROGRAM, "mount.swapfs", "mount.fuse.swap"];

/// Such a process. What is read of it is of this process, also when its id is given to another meanwhile.
#[derive(Debug)]
pub struct DaemonProcess {
    /// `/proc/PID`.
    folder: OwnedFd,
}

impl DaemonProcess {
    /// Looks at the process.
    ///
    /// # Errors
    /// One line about the process, without its id; `None` when there is no such process any more.
    pub fn open(pid: i32) -> Result<Self, Option<String>> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = open(format!("/proc/{pid}"), flags, Mode::empty()).map_err(|error| {
            let is_gone = error == rustix::io::Errno::NOENT;
            (!is_gone).then(|| reason(&error.into()))
        })?;
        let process = Self { folder };
        match process.is_swapfs() {
            Ok(true) => Ok(process),
            Ok(false) => Err(Some("is no swapfs process of root or of your own".to_owned())),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(None),
            Err(error) => Err(Some(reason(&error))),
        }
    }

    fn is_swapfs(&self) -> io::Result<bool> {
        // A set-user-ID program runs as root, but with the real id of whoever started it.
        let status = self.read("status")?;
        let users = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap_or_default();
        let mut users = users.split_whitespace().map(str::parse::<u32>).peekable();
        let owners = [0, trust::own_user()];
        if users.peek().is_none()
            || !users.all(|user| user.is_ok_and(|user| owners.contains(&user)))
        {
            return Ok(false);
        }
        Ok(match self.executable() {
            Ok(path) => {
                let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                name.trim_end_matches(" (deleted)") == PROGRAM || self.is_this_program()
            }
            // Only the name is shown to others.
            Err(_) => COMMANDS.contains(&self.read("comm")?.trim_end()),
        })
    }

    /// The program that it runs, where this user may see that.
    pub fn executable(&self) -> io::Result<PathBuf> {
        use std::os::unix::ffi::OsStringExt;
        let path = readlinkat(&self.folder, "exe", Vec::new())?;
        Ok(std::ffi::OsString::from_vec(path.into_bytes()).into())
    }

    fn is_this_program(&self) -> bool {
        let theirs = rustix::fs::statat(&self.folder, "exe", rustix::fs::AtFlags::empty());
        let ours = std::fs::metadata("/proc/self/exe");
        matches!((theirs, ours), (Ok(a), Ok(b)) if (a.st_dev, a.st_ino) == (b.dev(), b.ino()))
    }

    /// Whether it sees other mounts than this process; `None` where this user may not see that.
    pub fn has_own_mounts(&self) -> Option<bool> {
        let theirs = readlinkat(&self.folder, "ns/mnt", Vec::new()).ok()?;
        let ours = std::fs::read_link("/proc/self/ns/mnt").ok()?;
        use std::os::unix::ffi::OsStrExt;
        Some(theirs.as_bytes() != ours.as_os_str().as_bytes())
    }

    /// Reads one of its files in `/proc`.
    pub fn read(&self, name: &str) -> io::Result<String> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = File::from(openat(&self.folder, name, flags, Mode::empty())?);
        let mut bytes = Vec::new();
        file.take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The daemon's log: as the daemon has it open, for the mount may hide the folder that it lies in. Otherwise by its
    /// name, when it is a file that only root or this user could have made.
    pub fn log(&self, swap_folder: &Path) -> io::Result<File> {
        let path = swap_folder.join(".swapfs/log");
        let opened = self.open_already(&path);
        let log = match opened {
            Some(log) => log,
            None => {
                let owners = [0, trust::own_user()];
                let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                let folder = open(swap_folder, flags, Mode::empty())?;
                let control = trust::open_folder_of(&owners, folder, ".swapfs")?;
                trust::open_file_of(&owners, control, "log", OFlags::RDONLY)?
            }
        };
        Ok(log)
    }

    /// The regular file that the process has open under this very path.
    fn open_already(&self, path: &Path) -> Option<File> {
        use std::os::unix::ffi::OsStrExt;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let links = openat(&self.folder, "fd", flags, Mode::empty()).ok()?;
        let numbers: Vec<_> = Dir::read_from(&links).ok()?.flatten().collect();
        let found = numbers.iter().find(|number| {
            let link = readlinkat(&links, number.file_name(), Vec::new());
            link.is_ok_and(|link| link.as_bytes() == path.as_os_str().as_bytes())
        })?;
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = File::from(openat(&links, found.file_name(), flags, Mode::empty()).ok()?);
        let metadata = file.metadata().ok()?;
        let is_ours = [0, trust::own_user()].contains(&metadata.uid());
        (metadata.is_file() && is_ours && metadata.nlink() <= 1).then_some(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::CommandExt;
    use std::process::{Child, Command};

    struct Ended(Child);

    impl Drop for Ended {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    fn open(child: &Ended) -> Result<DaemonProcess, Option<String>> {
        DaemonProcess::open(child.0.id().cast_signed())
    }

    #[test]
    fn only_a_swapfs_process_of_root_or_the_asker_is_a_daemon() {
        let this = DaemonProcess::open(std::process::id().cast_signed()).unwrap();
        assert!(this.read("limits").unwrap().contains("Max open files"));
        let folder = tempfile::tempdir().unwrap();
        let named = folder.path().join(PROGRAM);
        std::fs::copy("/bin/sleep", &named).unwrap();
        let sleep = Ended(Command::new("/bin/sleep").arg("60").spawn().unwrap());
        assert!(open(&sleep).unwrap_err().unwrap().contains("is no swapfs process"));
        let swapfs = Ended(Command::new(&named).arg("60").spawn().unwrap());
        open(&swapfs).unwrap();
        if trust::own_user() == 0 {
            let mut another = Command::new("/bin/sleep");
            let child = another.arg0(PROGRAM).arg("60").uid(1234).gid(1234).spawn().unwrap();
            assert!(open(&Ended(child)).is_err());
        }
        let mut gone = Command::new("true").spawn().unwrap();
        gone.wait().unwrap();
        assert_eq!(DaemonProcess::open(gone.id().cast_signed()).unwrap_err(), None);
    }

    #[test]
    fn a_file_that_only_ends_like_the_log_is_not_taken_for_it() {
        let folder = tempfile::tempdir().unwrap();
        let swap = folder.path().canonicalize().unwrap();
        let below = swap.join("sub/.swapfs");
        std::fs::create_dir_all(&below).unwrap();
        std::fs::write(below.join("log"), "a partition").unwrap();
        let _open = File::open(below.join("log")).unwrap();
        let this = DaemonProcess::open(std::process::id().cast_signed()).unwrap();
        assert!(this.log(&swap).is_err());
        std::fs::create_dir(swap.join(".swapfs")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", swap.join(".swapfs/log")).unwrap();
        assert!(this.log(&swap).unwrap_err().to_string().contains("is a symbolic link"));
        std::fs::remove_file(swap.join(".swapfs/log")).unwrap();
        std::fs::write(swap.join(".swapfs/log"), "the log").unwrap();
        assert!(this.log(&swap).is_ok());
        let _open = File::open(swap.join(".swapfs/log")).unwrap();
        std::fs::rename(swap.join(".swapfs"), swap.join("moved")).unwrap();
        std::fs::create_dir(swap.join(".swapfs")).unwrap();
        assert!(this.log(&swap).is_err());
    }
}
