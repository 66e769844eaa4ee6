//! Where is measured: a folder on the machine's disk, and one on a loop device over memory, each with a swap folder that is
//! mounted and a plain folder beside it.

use std::fs::{self, File};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::XattrFlags;
use swapfs::bench::{Cleanup, Made, state, swapfs};
use swapfs::mount::{Detach, swapfs_mounts, unmount};
use swapfs::units::{MIB, format_short};

use crate::Outcome;
use crate::sample::Daemon;

/// This program, which is the swapfs command under that name.
pub(crate) const PROGRAM: &str = "/proc/self/exe";

/// How a contestant gets to its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Through the mount.
    Mount,
    /// In the swap folder, past the mount: only what is read alone, so that both ways have the very same blocks.
    Behind,
    /// In a folder beside it.
    Beside,
}

/// What a file is like when a run begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Not there.
    Gone,
    /// There in full, on the disk, in no cache and no pool.
    Cold,
    /// There in full, read once just before.
    Warm,
}

/// One of the two.
#[derive(Debug)]
pub(crate) struct Place {
    /// `A` or `B`.
    pub(crate) name: char,
    /// In words.
    pub(crate) device: String,
    pub(crate) root: PathBuf,
    mount: Option<(Daemon, Made)>,
    options: Vec<String>,
    // In this order: what is inside goes before what it lies on.
    _inner: Made,
    _root: Made,
    _memory: Option<Memory>,
}

impl Place {
    /// In a folder that is there.
    pub(crate) fn on_disk(cleanup: &Cleanup, folder: &Path, options: &[String]) -> Outcome<Self> {
        let device = format!("{} ({})", folder.display(), filesystem(folder));
        Self::new(cleanup, 'A', folder, device, options, None)
    }

    /// On a loop device over memory, made for it.
    pub(crate) fn on_memory(
        cleanup: &Cleanup, folder: &Path, bytes: u64, options: &[String],
    ) -> Outcome<Self> {
        let memory = Memory::new(cleanup, folder, bytes)?;
        let fast = memory.fast.clone();
        let device = format!("ext4 on a loop device over {} of memory", format_short(bytes));
        Self::new(cleanup, 'B', &fast, device, options, Some(memory))
    }

    fn new(
        cleanup: &Cleanup, name: char, folder: &Path, device: String, options: &[String],
        memory: Option<Memory>,
    ) -> Outcome<Self> {
        let folder =
            fs::canonicalize(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
        let (root, made) = cleanup.folder(&folder)?;
        for part in ["swap", "mnt", "beside"] {
            fs::create_dir(root.join(part))?;
        }
        // A contestant may have mounts of its own, and be killed.
        let below = root.clone();
        let ((), inner) = cleanup.make_with(|| Ok(()), move || unmount_below(&below))?;
        let mut place = Self {
            name,
            device,
            root,
            mount: None,
            options: options.to_vec(),
            _inner: inner,
            _root: made,
            _memory: memory,
        };
        place.remount(cleanup, &[])?;
        Ok(place)
    }

    /// Mounts, again if it was, with these options after those for all.
    pub(crate) fn remount(&mut self, cleanup: &Cleanup, options: &[String]) -> Outcome<()> {
        self.mount = None;
        let (swap, mountpoint) = (self.root.join("swap"), self.root.join("mnt"));
        let options = self.options.iter().chain(options);
        let made = cleanup.mount(Path::new(PROGRAM), "mount", &swap, &mountpoint, options)?;
        self.mount = Some((Daemon::of(&mountpoint)?, made));
        Ok(())
    }

    /// Unmounts.
    pub(crate) fn unmount(&mut self) {
        self.mount = None;
    }

    /// The one behind the mount.
    pub(crate) fn daemon(&self) -> Outcome<Daemon> {
        Ok(self.mount.as_ref().ok_or("nothing is mounted")?.0)
    }

    /// The folder that a way goes to.
    pub(crate) fn folder(&self, way: Way) -> PathBuf {
        self.root.join(match way {
            Way::Mount => "mnt",
            Way::Behind => "swap",
            Way::Beside => "beside",
        })
    }

    /// Brings a file of `bytes` into a state.
    pub(crate) fn prepare(&self, way: Way, name: &str, bytes: u64, state: State) -> Outcome<()> {
        let path = self.folder(way).join(name);
        match state {
            State::Gone => match fs::remove_file(&path) {
                // What the removal leaves to do is done before the run, too.
                Ok(()) => rustix::fs::syncfs(File::open(self.folder(Way::Beside))?)?,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error.into()),
            },
            State::Cold | State::Warm => {
                if fs::metadata(&path).map_or(0, |found| found.len()) != bytes {
                    state::fill(File::create(&path)?, bytes)?;
                }
                self.cool(way, name)?;
                if state == State::Warm {
                    state::read_through(File::open(&path)?)?;
                }
            }
        }
        Ok(())
    }

    /// On the disk, and in no memory. Blocks until that is so.
    fn cool(&self, way: Way, name: &str) -> Outcome<()> {
        let forget = |folder: Way| state::forget(&File::open(self.folder(folder).join(name))?);
        forget(way)?;
        if way != Way::Beside && self.mount.is_some() {
            self.release()?;
            forget(Way::Behind)?;
        }
        Ok(())
    }

    /// Nothing of any partition is in the pool.
    pub(crate) fn release(&self) -> Outcome<()> {
        let root = self.folder(Way::Mount);
        rustix::fs::setxattr(&root, "user.swap.request", b"release", XattrFlags::empty())?;
        let mut value = [0; 16];
        while rustix::fs::getxattr(&root, "user.swap.wait", &mut value[..])? != "idle".len() {}
        Ok(())
    }

    /// Takes all files away, from both folders, but for those named.
    pub(crate) fn empty(&self, keep: &[&str]) -> Outcome<()> {
        for way in [Way::Mount, Way::Beside] {
            for entry in fs::read_dir(self.folder(way))? {
                let entry = entry?;
                if keep.iter().any(|name| entry.file_name() == **name) {
                    continue;
                }
                match entry.file_type()?.is_dir() {
                    true => fs::remove_dir_all(entry.path())?,
                    false => fs::remove_file(entry.path())?,
                }
            }
        }
        Ok(())
    }

    /// Bytes of a partition that the kernel's page cache holds, if fincore is there to say.
    pub(crate) fn cached(&self, name: &str) -> Option<u64> {
        let files = [Way::Mount, Way::Behind].map(|way| self.folder(way).join(name));
        let mut command = Command::new("fincore");
        command.args(["--bytes", "--noheadings", "--output", "RES"]).args(files);
        let output = command.stdin(Stdio::null()).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        text.lines().map(|line| line.trim().parse::<u64>().ok()).sum()
    }
}

/// A filesystem on a loop device over memory; gone when dropped.
#[derive(Debug)]
struct Memory {
    fast: PathBuf,
    // In this order: each lies on the next.
    _mounted: Made,
    _tmpfs: Made,
    _folder: Made,
}

impl Memory {
    fn new(cleanup: &Cleanup, folder: &Path, bytes: u64) -> Outcome<Self> {
        let folder = fs::canonicalize(folder)?;
        let (root, made) = cleanup.folder(&folder)?;
        let (tmpfs, fast) = (root.join("memory"), root.join("fast"));
        fs::create_dir(&tmpfs)?;
        fs::create_dir(&fast)?;
        let mut mount = Command::new("mount");
        let size = format!("size={},mode=0700", bytes + 16 * MIB);
        mount.args(["-t", "tmpfs", "-o", &size, "swapfs-bench"]).arg(&tmpfs);
        let target = tmpfs.clone();
        let ((), on_tmpfs) = cleanup.make_with(|| tool(mount), move || detach(&target))?;
        let image = tmpfs.join("image");
        // Written in full: no run is to pay for the first use of a page.
        state::fill(File::create(&image)?, bytes)?;
        let mut mkfs = Command::new("mkfs.ext4");
        mkfs.args(["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"])
            .arg(&image);
        tool(mkfs)?;
        let mut mount = Command::new("mount");
        mount.args(["-t", "ext4", "-o", "loop"]).arg(&image).arg(&fast);
        let target = fast.clone();
        let ((), mounted) = cleanup.make_with(|| tool(mount), move || detach(&target))?;
        Ok(Self { fast, _mounted: mounted, _tmpfs: on_tmpfs, _folder: made })
    }
}

/// Unmounts what is there.
fn detach(target: &Path) {
    let mut command = Command::new("umount");
    command.arg(target);
    if tool(command).is_err()
        && let Err(error) = unmount(target, Detach::Lazily)
    {
        eprintln!("bench_table: {}: {error}", target.display());
    }
}

/// Ends the mounts of swapfs below a folder, however they came there.
fn unmount_below(folder: &Path) {
    for entry in swapfs_mounts().unwrap_or_default() {
        if entry.mountpoint.starts_with(folder) {
            let _ = swapfs(Path::new(PROGRAM), "umount").arg(&entry.mountpoint).output();
        }
    }
}

/// Runs a program of the system's; what it complains of is the error.
pub(crate) fn tool(mut command: Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).process_group(0).output()?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr);
    let line = text.lines().last().unwrap_or("failed").trim();
    Err(io::Error::other(format!("{}: {line}", command.get_program().to_string_lossy())))
}

/// Type of the filesystem of a folder, where findmnt is there to say.
fn filesystem(folder: &Path) -> String {
    let mut command = Command::new("findmnt");
    command.args(["--noheadings", "--output", "FSTYPE", "--target"]).arg(folder);
    let output = command.output().map(|output| output.stdout).unwrap_or_default();
    let name = String::from_utf8_lossy(&output).trim().to_owned();
    if name.is_empty() { "unknown filesystem".to_owned() } else { name }
}
