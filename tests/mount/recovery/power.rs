//! The end of the machine, acted out: a disk's image is copied at one moment, and swapfs is shown another boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use rustix::thread::UnshareFlags;
use tempfile::TempDir;

use crate::errors::SmallDisk;
use crate::place::Mount;

/// Does this where the mounts are its own: nobody else sees another boot.
pub(super) fn alone<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let joined = std::thread::scope(|scope| {
        let running = scope.spawn(|| {
            // SAFETY: the thread shares no descriptors by this, only its mounts and its directory become its own.
            unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }.unwrap();
            let (none, private) = (None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
            mount(none, "/", none, private, none).unwrap();
            leave_the_others();
            work()
        });
        running.join()
    });
    joined.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// The mounts of other tests do not last longer because they have been copied to here.
fn leave_the_others() {
    let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap();
    for line in mounts.lines() {
        let mut words = line.split(' ');
        let (at, kind) = (words.nth(1).unwrap(), words.next().unwrap());
        if kind.starts_with("fuse.") || at.starts_with(env!("CARGO_TARGET_TMPDIR")) {
            let _ = umount2(at, MntFlags::MNT_DETACH);
        }
    }
}

/// A disk that is mounted from a copy of an image.
struct Copied {
    at: PathBuf,
    folder: TempDir,
}

/// The bytes of a disk at one moment: two copies are the same when nothing came between.
pub(super) fn copy(disk: &SmallDisk) -> Vec<u8> {
    let mut copy = fs::read(disk.image()).unwrap();
    for _ in 0..100 {
        let again = fs::read(disk.image()).unwrap();
        if again == copy {
            return copy;
        }
        copy = again;
    }
    panic!("the disk does not come to rest");
}

impl Copied {
    fn new(bytes: Vec<u8>) -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (at, image) = (folder.path().join("disk"), folder.path().join("image"));
        fs::create_dir(&at).unwrap();
        fs::write(&image, bytes).unwrap();
        let mut command = Command::new("mount");
        let output = command.args(["-o", "loop"]).arg(&image).arg(&at).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        Self { at, folder }
    }
}

impl Drop for Copied {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// A swap folder as a power cut left it, not mounted yet.
pub(super) struct After {
    pub(super) mount: Mount,
    /// Goes after the mount.
    _disk: Copied,
}

impl After {
    /// The power of the machine with this disk is cut now; what mounts from now on has been started after that. To
    /// be called where one is [`alone`].
    pub(super) fn power_cut(disk: &SmallDisk, before: &Mount) -> Self {
        Self::of_copy(disk, before, copy(disk))
    }

    /// The same for a cut at the moment when the disk was copied.
    pub(super) fn of_copy(disk: &SmallDisk, before: &Mount, bytes: Vec<u8>) -> Self {
        let copied = Copied::new(bytes);
        let mut mount = Mount::prepared(&copied.at);
        let base = disk.at.canonicalize().unwrap();
        mount.swap = copied.at.join(before.swap.strip_prefix(base).unwrap());
        boot_again(copied.folder.path());
        Self { mount, _disk: copied }
    }
}

/// Another boot's number.
fn boot_again(folder: &Path) {
    let number = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap();
    let file = folder.join("boot_id");
    fs::write(&file, number).unwrap();
    let (none, bind) = (None::<&str>, MsFlags::MS_BIND);
    mount(Some(&file), "/proc/sys/kernel/random/boot_id", none, bind, none).unwrap();
}
