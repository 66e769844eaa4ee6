//! A mount namespace with nothing in it but what serving takes.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{CWD, FileType, Mode, OFlags, StatVfsMountFlags, fstat, mkdirat, openat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount, fsopen,
    mount_change, mount_remount, move_mount, open_tree, unmount,
};
use rustix::thread::UnshareFlags;

/// Bytes that the new root may take: it has nothing but names.
const ROOT_BYTES: &str = "1m";

/// Copies a mount, without those below it.
const CLONE: OpenTreeFlags = OpenTreeFlags::OPEN_TREE_CLONE.union(OpenTreeFlags::OPEN_TREE_CLOEXEC);

/// Attributes of what is made for the namespace.
const RESTRICTED: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID
    .union(MountAttrFlags::MOUNT_ATTR_NODEV)
    .union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// This process has such a namespace.
static ENTERED: AtomicBool = AtomicBool::new(false);

/// A file or folder that is to be seen in the namespace, with all below it but for other mounts.
#[derive(Debug)]
pub(crate) struct Shown<'a> {
    /// Under which name: an absolute path.
    pub(crate) at: PathBuf,
    /// What it is.
    pub(crate) source: Source<'a>,
}

/// Where it comes from.
#[derive(Debug)]
pub(crate) enum Source<'a> {
    /// An open folder, whatever is mounted over it. Devices in it are not to be used.
    Folder(BorrowedFd<'a>),
    /// What has the same name outside.
    SameName,
    /// An empty folder, in the place of one that something is mounted on outside.
    Nothing,
}

/// Says that the only thread of this process has entered one.
pub(crate) fn entered() {
    ENTERED.store(true, Ordering::Relaxed);
}

/// Returns true when this process has entered its own namespace.
pub(crate) fn is_entered() -> bool {
    ENTERED.load(Ordering::Relaxed)
}

/// Gives this thread, and those that it starts, a mount namespace in which there are `/proc`, of processes alone, and
/// what is `shown`. Descriptors that are open stay what they are. Descriptors of folders still lead out, and are to be opened anew.
///
/// # Errors
/// What is missing: the right to do so, or a newer kernel. Nothing has changed then.
pub(crate) fn enter_namespace(shown: &[Shown<'_>]) -> io::Result<()> {
    // Whatever may be refused comes before the step that changes something.
    let root = make("tmpfs", &[("mode", "0755"), ("size", ROOT_BYTES)], RESTRICTED)?;
    let proc = make("proc", &[("subset", "pid")], RESTRICTED)
        // Before Linux 5.8; or in a container that may make no new one.
        .or_else(|_| make("proc", &[], RESTRICTED))
        .or_else(|_| open_tree(CWD, "/proc", CLONE).map_err(io::Error::from))?;
    let mut trees = shown.iter().map(copy).collect::<io::Result<Vec<_>>>()?;
    trees.sort_by_key(|tree| tree.at.components().count());
    let before = openat(CWD, "/proc/self/ns/mnt", OFlags::CLOEXEC, Mode::empty())?;
    // SAFETY: this thread alone gets other mounts; its descriptors stay as they are.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNS) }?;
    match assemble(&root, &proc, &trees) {
        Ok(()) => Ok(()),
        Err(error) => {
            // Else the copies of all mounts would keep them busy.
            let back = rustix::thread::move_into_link_name_space(
                before.as_fd(),
                Some(rustix::thread::LinkNameSpaceType::Mount),
            );
            if let Err(errno) = back {
                log::warn!("the mounts of this machine stay busy while this daemon runs: {errno}");
            }
            Err(error)
        }
    }
}

/// A filesystem that is mounted nowhere yet.
fn make(kind: &str, options: &[(&str, &str)], attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        fsconfig_set_string(context.as_fd(), *name, *value)?;
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// A copy of a part of the tree of mounts, mounted nowhere yet.
struct Tree {
    at: PathBuf,
    copy: OwnedFd,
    is_folder: bool,
    /// It is left out where there is no such name.
    is_cover: bool,
    /// Flags to have; those of the original where it is `None`.
    flags: Option<MountFlags>,
}

fn copy(shown: &Shown<'_>) -> io::Result<Tree> {
    let is_cover = matches!(shown.source, Source::Nothing);
    let (copy, flags) = match shown.source {
        Source::Nothing => (make("tmpfs", &[("size", ROOT_BYTES)], RESTRICTED)?, None),
        Source::SameName => (open_tree(CWD, &shown.at, CLONE)?, None),
        Source::Folder(folder) => {
            let copy = open_tree(folder, "", CLONE | OpenTreeFlags::AT_EMPTY_PATH)?;
            (copy, Some(restricted(folder)?))
        }
    };
    let status = fstat(&copy)?;
    let is_folder = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
    Ok(Tree { at: shown.at.clone(), copy, is_folder, is_cover, flags })
}

/// The flags that a folder is mounted with, less what nobody does through the copy.
fn restricted(folder: BorrowedFd<'_>) -> io::Result<MountFlags> {
    let has = rustix::fs::fstatvfs(folder)?.f_flag;
    let mut flags = MountFlags::BIND | MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    for (seen, kept) in [
        (StatVfsMountFlags::RDONLY, MountFlags::RDONLY),
        (StatVfsMountFlags::NOATIME, MountFlags::NOATIME),
        (StatVfsMountFlags::NODIRATIME, MountFlags::NODIRATIME),
        (StatVfsMountFlags::RELATIME, MountFlags::RELATIME),
    ] {
        flags.set(kept, has.contains(seen));
    }
    Ok(flags)
}

/// Puts the new root together and leaves the old one.
fn assemble(root: &OwnedFd, proc: &OwnedFd, trees: &[Tree]) -> io::Result<()> {
    // What is unmounted outside meanwhile is to go here too, should leaving fail.
    let follow = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", follow)?;
    place(root, Path::new("/"))?;
    rustix::process::fchdir(root)?;
    mkdirat(CWD, "proc", Mode::from_raw_mode(0o555))?;
    place(proc, Path::new("proc"))?;
    for tree in trees {
        // Below the working directory, which is the new root.
        let at = tree.at.strip_prefix("/").map_err(io::Error::other)?;
        if at.as_os_str().is_empty() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        if tree.is_cover {
            // Gone meanwhile, or hidden by another mount: there is nothing to be covered.
            let _ = place(&tree.copy, at);
            continue;
        }
        make_place(at, tree.is_folder)?;
        place(&tree.copy, at)?;
        if let Some(flags) = tree.flags {
            mount_remount(at, flags, "")?;
        }
    }
    rustix::process::pivot_root(".", ".")?;
    // The old root lies on the new one now; its mounts go with it.
    unmount(".", UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    let read_only = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(mount_remount("/", read_only | MountFlags::NOEXEC, "")?)
}

fn place(mount: &OwnedFd, at: &Path) -> io::Result<()> {
    Ok(move_mount(mount, "", CWD, at, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

/// Makes something to mount on, with the folders above it. What is there already will do.
fn make_place(at: &Path, is_folder: bool) -> io::Result<()> {
    let missing = |result: rustix::io::Result<()>| match result {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    };
    let mut above: Vec<&Path> = at.ancestors().skip(1).collect();
    above.reverse();
    let folders = above.into_iter().filter(|path| !path.as_os_str().is_empty());
    for path in folders.chain(is_folder.then_some(at)) {
        missing(mkdirat(CWD, path, Mode::from_raw_mode(0o755)))?;
    }
    if !is_folder {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        missing(openat(CWD, at, flags, Mode::empty()).map(drop))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::MetadataExt;

    /// In a thread: the namespace is its own.
    #[test]
    fn nothing_else_is_seen() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("left out: needs root");
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let (swap, other) = (path.join("a/swap"), path.join("a/other"));
        fs::create_dir_all(&swap).unwrap();
        fs::create_dir(&other).unwrap();
        fs::write(swap.join("x"), "x").unwrap();
        let inside = || {
            let open = File::open(&swap).unwrap();
            let before = open.metadata().unwrap();
            let shown = [
                Shown { at: swap.clone(), source: Source::Folder(open.as_fd()) },
                Shown { at: "/dev/null".into(), source: Source::SameName },
            ];
            enter_namespace(&shown).unwrap();
            let after = fs::metadata(&swap).unwrap();
            assert_eq!((before.dev(), before.ino()), (after.dev(), after.ino()));
            fs::write(swap.join("y"), "y").unwrap();
            fs::write("/dev/null", "y").unwrap();
            assert!(fs::metadata(&other).is_err() && fs::metadata("/etc").is_err());
            assert!(fs::write("/new", "").is_err(), "the root is read-only");
            let mut names: Vec<_> =
                fs::read_dir("/").unwrap().map(|entry| entry.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names.len(), 3, "{names:?}");
            assert!(
                fs::metadata("/proc/self/status").is_ok() && fs::metadata("/proc/sys").is_err()
            );
            let above = openat(File::open(&swap).unwrap(), "../other", OFlags::PATH, Mode::empty());
            assert!(above.is_err());
            fs::read_to_string("/proc/thread-self/mountinfo").unwrap().lines().count()
        };
        let mounts = std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
        assert_eq!(mounts, 4, "the root, /proc, the folder, /dev/null");
        assert!(swap.join("y").exists() && other.exists());
    }
}
