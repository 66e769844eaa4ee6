//! A swap folder, its mount, and a disk that can be cloned.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// Nothing here takes longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// The disk, and the one that its image and the clone lie on, in bytes.
const DISK_BYTES: u64 = 192 << 20;
const OUTER_BYTES: u64 = 1 << 30;

/// The program in the build folder that this example is in.
pub(crate) fn built_beside() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    let program = own.ancestors().nth(2).unwrap_or(Path::new("/")).join("swapfs");
    match program.exists() {
        true => Ok(program),
        false => Err(io::Error::other(format!("{} is not there", program.display()))),
    }
}

fn run(program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(&program).args(arguments).output();
    let shown = program.as_ref().display();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            Err(format!("{shown} {}: {}", arguments.join(" "), said.trim()))
        }
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("scratch folders have plain names")
}

/// A swap folder and its mountpoint; both go at the end.
pub(crate) struct Place {
    program: PathBuf,
    _scratch: TempDir,
    pub(crate) swap: PathBuf,
    pub(crate) mnt: PathBuf,
}

impl Place {
    /// A fresh one below `folder`.
    pub(crate) fn new(program: &Path, folder: &Path) -> Result<Place, String> {
        Place::with_swap(program, folder.join("swap"), folder)
    }

    /// Of the clone of a disk.
    pub(crate) fn within_clone(program: &Path, image: &Image) -> Result<Place, String> {
        Place::with_swap(program, image.copy.join("swap"), &image.copy)
    }

    fn with_swap(program: &Path, swap: PathBuf, folder: &Path) -> Result<Place, String> {
        let scratch = scratch(folder)?;
        // On a disk of its own the swap folder outlives this place; elsewhere it is part of it.
        let own_disk = swap.parent().is_some_and(|disk| disk.join("lost+found").is_dir());
        let swap = if own_disk { swap } else { scratch.path().join("swap") };
        let mnt = scratch.path().join("mnt");
        for folder in [&swap, &mnt] {
            std::fs::create_dir_all(folder)
                .map_err(|error| format!("{}: {error}", folder.display()))?;
        }
        Ok(Place { program: program.to_owned(), _scratch: scratch, swap, mnt })
    }

    pub(crate) fn mount(&self, options: &str) -> Result<(), String> {
        let (swap, mnt) = (text(&self.swap), text(&self.mnt));
        run(&self.program, &["mount", swap, mnt, "-o", options, "--replace"])
    }

    pub(crate) fn unmount(&self) -> Result<(), String> {
        run(&self.program, &["umount", text(&self.mnt), "--timeout", "60"])
    }

    fn daemon(&self) -> Option<Pid> {
        let state = std::fs::read(self.swap.join(".swapfs/lock")).ok()?;
        let state: serde_json::Value =
            serde_json::Deserializer::from_slice(&state).into_iter().next()?.ok()?;
        Some(Pid::from_raw(state["pid"].as_i64()?.try_into().ok()?))
    }

    /// Kills the daemon and waits until it is gone.
    pub(crate) fn kill(&self) -> Result<(), String> {
        let pid = self.daemon().ok_or("the lock file names no daemon")?;
        kill(pid, Signal::SIGKILL).map_err(|errno| format!("kill {pid}: {errno}"))?;
        let begin = Instant::now();
        let stat = format!("/proc/{pid}/stat");
        // Nobody may be there to reap it.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            if begin.elapsed() > PATIENCE {
                return Err(format!("the killed daemon {pid} does not end"));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if umount2(&self.mnt, MntFlags::MNT_DETACH).is_ok() {
            let _ = self.kill();
        }
    }
}

/// A disk whose image can be cloned in one moment: a file on a filesystem that shares blocks.
pub(crate) struct Image {
    _scratch: TempDir,
    outer: PathBuf,
    /// Where the disk is mounted.
    pub(crate) disk: PathBuf,
    /// Where the clone is.
    pub(crate) copy: PathBuf,
}

/// A folder that nobody else can exchange.
fn scratch(folder: &Path) -> Result<TempDir, String> {
    let made = swapfs::bench::check_place(folder)
        .and_then(|()| tempfile::Builder::new().prefix("swapfs-crash-").tempdir_in(folder));
    made.map_err(|error| format!("{}: {error}", folder.display()))
}

impl Image {
    pub(crate) fn new(folder: &Path) -> Result<Image, String> {
        let scratch = scratch(folder)?;
        let at = |name: &str| scratch.path().join(name);
        let image =
            Image { outer: at("outer"), disk: at("disk"), copy: at("copy"), _scratch: scratch };
        for folder in [&image.outer, &image.disk, &image.copy] {
            std::fs::create_dir(folder).map_err(|error| error.to_string())?;
        }
        let sparse = |path: &Path, bytes| {
            let made = std::fs::File::create(path).and_then(|file| file.set_len(bytes));
            made.map_err(|error| format!("{}: {error}", path.display()))
        };
        let outer_image = image._scratch.path().join("outer.image");
        sparse(&outer_image, OUTER_BYTES)?;
        run("mkfs.xfs", &["-q", "-m", "reflink=1", text(&outer_image)])?;
        run("mount", &["-o", "loop", text(&outer_image), text(&image.outer)])?;
        let inner = image.outer.join("image");
        sparse(&inner, DISK_BYTES)?;
        run("mkfs.ext4", &["-q", "-F", text(&inner)])?;
        run("mount", &["-o", "loop", text(&inner), text(&image.disk)])?;
        Ok(image)
    }

    /// The image as it is at this moment.
    pub(crate) fn clone_now(&self) -> Result<(), String> {
        let open = |name: &str, new: bool| {
            let mut options = std::fs::File::options();
            options.read(true).write(new).create(new);
            options.open(self.outer.join(name)).map_err(|error| format!("{name}: {error}"))
        };
        let (image, clone) = (open("image", false)?, open("clone", true)?);
        rustix::fs::ioctl_ficlone(&clone, &image).map_err(|error| format!("clone: {error}"))
    }

    pub(crate) fn mount_clone(&self) -> Result<(), String> {
        run("mount", &["-o", "loop", text(&self.outer.join("clone")), text(&self.copy)])
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        for mounted in [&self.copy, &self.disk, &self.outer] {
            let _ = umount2(mounted, MntFlags::MNT_DETACH);
        }
    }
}
