//! Mounting and unmounting by hand: mount(2) as root, `fusermount3` otherwise.
//!
//! fuser's own mounting is not used because its unmount gives up on a busy mountpoint and then forgets
//! it; here the descriptor of /dev/fuse is ours, and so is the decision to detach lazily.

mod fusermount;
mod real;
mod table;
mod utab;

pub use real::{Disbelief, entry_at, open_control, read_control, refuse_foreign, topmost};
pub use table::{MountEntry, entry_of_path, mounts_below, parse_mount_table, swapfs_mounts};

use std::ffi::{OsStr, OsString};
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags};
use rustix::thread::CapabilitySet;

use crate::sys_process::{quoted, reason};

/// The filesystem type in mount tables.
pub const FS_TYPE: &str = "fuse.swapfs";

/// The control folder in the root of a mount.
const CONTROL_NAME: &str = ".swapfs";

/// The second half of [`FS_TYPE`].
const SUBTYPE: &str = "swapfs";

/// KiB that the kernel reads ahead of mapped files once raised; FUSE itself offers 128 at most.
const READ_AHEAD_KIB: u64 = 1024;

/// What to mount.
#[derive(Debug, Clone)]
pub struct MountCall<'a> {
    /// The source that mount tables show: `fsname`, or the swap folder.
    pub source: &'a OsStr,
    /// Where; an existing directory.
    pub mountpoint: &'a Path,
    /// Flags of mount(2), MS_RDONLY included.
    pub flags: MsFlags,
    /// Let other users in.
    pub allow_other: bool,
    /// Largest READ request in bytes, when it is to be limited.
    pub max_read: Option<u32>,
}

impl MountCall<'_> {
    /// The options that kernel and fusermount3 both take.
    fn common_options(&self) -> String {
        let mut options = "default_permissions".to_owned();
        if self.allow_other {
            options.push_str(",allow_other");
        }
        if let Some(bytes) = self.max_read {
            options.push_str(&format!(",max_read={bytes}"));
        }
        options
    }
}

/// Mounts and returns the session's descriptor. The mount answers only once somebody serves it.
pub fn mount(call: &MountCall<'_>) -> Result<OwnedFd, String> {
    if !rustix::process::geteuid().is_root() {
        return fusermount::mount(call);
    }
    match mount_as_root(call) {
        // Root without CAP_SYS_ADMIN, as in many containers: the set-user-ID helper may still do.
        Err(Refusal::NotPermitted(line)) => fusermount::mount(call).map_err(|_| line),
        Err(Refusal::Other(line)) => Err(line),
        Ok(fuse) => Ok(fuse),
    }
}

enum Refusal {
    NotPermitted(String),
    Other(String),
}

fn mount_as_root(call: &MountCall<'_>) -> Result<OwnedFd, Refusal> {
    let fuse = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC)
        .open("/dev/fuse")
        .map_err(|error| Refusal::Other(device_error(&error)))?;
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},{}",
        fuse.as_raw_fd(),
        rustix::process::geteuid(),
        rustix::process::getegid(),
        call.common_options(),
    );
    let result = nix::mount::mount(
        Some(call.source),
        call.mountpoint,
        Some(FS_TYPE),
        call.flags,
        Some(data.as_str()),
    );
    match result {
        Ok(()) => {
            utab::add(call.source, call.mountpoint);
            Ok(OwnedFd::from(fuse))
        }
        Err(errno) => {
            let line = format!("cannot mount at {}: {}", call.mountpoint.display(), errno.desc());
            Err(match errno {
                Errno::EPERM => Refusal::NotPermitted(line),
                _ => Refusal::Other(line),
            })
        }
    }
}

fn device_error(error: &io::Error) -> String {
    let mend = match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "; load the module: modprobe fuse (as root); in a container: docker run --device /dev/fuse"
        }
        Some(libc::EACCES) => "; give everybody the device: chmod 666 /dev/fuse (as root)",
        Some(libc::EPERM) => "; give the container the device: docker run --device /dev/fuse",
        _ => "",
    };
    format!("/dev/fuse: {}{mend}", reason(error))
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detach {
    /// Refused while something on the mount is in use.
    WhenIdle,
    /// At once for new users; those who have something open keep it.
    Lazily,
}

/// Why an unmount did not happen.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Something on the mount is in use.
    #[error("the mount is busy")]
    Busy,
    /// Nothing is mounted there.
    #[error("nothing is mounted there")]
    NotMounted,
    /// Another user mounted it.
    #[error("{}", may_unmount(*.0))]
    NotPermitted(u32),
    /// Anything else, in words.
    #[error("{0}")]
    Failed(String),
}

fn may_unmount(owner: u32) -> String {
    match owner {
        0 => "root mounted it, and only root may unmount it".to_owned(),
        user => format!("only root and user {user}, who mounted it, may unmount it"),
    }
}

/// Refuses early what the system would refuse: to take away another user's mount.
///
/// # Errors
/// [`UnmountError::NotPermitted`].
pub fn refuse_unmount(entry: &MountEntry) -> Result<(), UnmountError> {
    let may_all = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN));
    // The helper looks at who started this process.
    match (foreign_owner(entry, rustix::process::getuid().as_raw()), may_all) {
        (Some(owner), false) => Err(UnmountError::NotPermitted(owner)),
        _ => Ok(()),
    }
}

/// Who mounted it, when that is neither `user` nor of no importance to `user`, as to root.
fn foreign_owner(entry: &MountEntry, user: u32) -> Option<u32> {
    entry.owner.filter(|owner| user != 0 && *owner != user)
}

/// Unmounts what is mounted topmost at `mountpoint`, without following a symbolic link. Whether that happened is decided by
/// the kernel's table of mounts, not by what a helper says.
pub fn unmount(mountpoint: &Path, detach: Detach) -> Result<(), UnmountError> {
    let table = || std::fs::read("/proc/self/mountinfo").map(|text| parse_mount_table(&text)).ok();
    let before = table().and_then(|table| topmost(&table, mountpoint).cloned());
    let answer = call_unmount(mountpoint, detach);
    let (Some(before), Some(table)) = (before, table()) else { return answer };
    let stands = table.iter().any(|mount| mount.id == before.id && mount.mountpoint == mountpoint);
    judge_unmount(answer, &before, stands, rustix::process::getuid().as_raw())
}

/// What came of an unmount by `user` that was answered so, when the mount `stands` afterwards or not.
fn judge_unmount(
    answer: Result<(), UnmountError>, mount: &MountEntry, stands: bool, user: u32,
) -> Result<(), UnmountError> {
    match (answer, stands) {
        (Ok(()), false) => Ok(()),
        // Somebody else was faster.
        (Err(_), false) => Err(UnmountError::NotMounted),
        (Err(UnmountError::Busy), true) => Err(UnmountError::Busy),
        (answer, true) => Err(match (foreign_owner(mount, user), answer) {
            (Some(owner), _) => UnmountError::NotPermitted(owner),
            (None, Err(error @ UnmountError::Failed(_))) => error,
            (None, _) => UnmountError::Failed(
                "it is still mounted, although that succeeded; give the command again".to_owned(),
            ),
        }),
    }
}

fn call_unmount(mountpoint: &Path, detach: Detach) -> Result<(), UnmountError> {
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    if detach == Detach::Lazily {
        flags |= MntFlags::MNT_DETACH;
    }
    match nix::mount::umount2(mountpoint, flags) {
        Ok(()) => {
            forget(mountpoint);
            Ok(())
        }
        Err(Errno::EPERM) => fusermount::unmount(mountpoint, detach),
        Err(Errno::EBUSY) => Err(UnmountError::Busy),
        Err(Errno::EINVAL | Errno::ENOENT) => Err(UnmountError::NotMounted),
        Err(errno) => Err(UnmountError::Failed(errno.desc().to_owned())),
    }
}

/// Takes a mount that is gone out of the tables of mount(8), unless another has taken its place.
pub fn forget(mountpoint: &Path) {
    let mounts = swapfs_mounts().unwrap_or_default();
    let is_root = rustix::process::geteuid().is_root();
    if is_root && mounts.iter().all(|mount| mount.mountpoint != mountpoint) {
        utab::remove(mountpoint);
    }
}

/// Unmounts; when the mount is busy, detaches it so that new users see it gone.
pub fn unmount_or_detach(mountpoint: &Path) -> Result<Detach, UnmountError> {
    match unmount(mountpoint, Detach::WhenIdle) {
        Ok(()) => Ok(Detach::WhenIdle),
        Err(UnmountError::Busy) => unmount(mountpoint, Detach::Lazily).map(|()| Detach::Lazily),
        Err(error) => Err(error),
    }
}

/// Ends the connection behind a mount: whoever waits for an answer, or asks for one, gets an error.
/// `device` is the mount's `st_dev`.
pub fn abort(mountpoint: &Path, device: Option<u64>) {
    let control = device
        .map(rustix::fs::minor)
        .map(|minor| format!("/sys/fs/fuse/connections/{minor}/abort"));
    let aborted = control.is_some_and(|path| std::fs::write(path, "1").is_ok());
    // Where that filesystem is not mounted. Without MNT_DETACH it aborts, and fails when somebody is there.
    let flags = MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_FORCE;
    if !aborted && let Err(errno) = nix::mount::umount2(mountpoint, flags) {
        log::debug!("forced unmount of {}: {}", mountpoint.display(), errno.desc());
    }
}

/// Whether this is the error of a mount whose daemon is gone.
#[must_use]
pub fn is_dead(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// Asks the filesystem at `path` something that the kernel never answers from its caches, as it does a
/// stat; the error of a mount whose daemon is gone [`is_dead`].
pub fn probe(path: &Path) -> io::Result<()> {
    rustix::fs::statfs(path)?;
    Ok(())
}

/// Checks that `path` can be mounted on and returns its absolute form. A dead mount there is an error
/// that names the command to clear it; with `replace` it is cleared.
pub fn check_mountpoint(path: &Path, replace: bool) -> Result<PathBuf, String> {
    let shown = path.display();
    let metadata = match probe(path).and_then(|()| std::fs::metadata(path)) {
        Err(error) if is_dead(&error) && replace => {
            unmount(&absolute(path), Detach::Lazily)
                .map_err(|error| format!("cannot clear the dead mount at {shown}: {error}"))?;
            return check_mountpoint(path, false);
        }
        other => other,
    };
    match metadata {
        Ok(metadata) if !metadata.is_dir() => {
            return Err(format!("mountpoint {shown} is not a directory"));
        }
        Ok(_) => {}
        Err(error) if is_dead(&error) => return Err(dead_mount_line(path)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let quoted = quoted(path);
            return Err(format!("mountpoint {shown} does not exist; create it: mkdir -p {quoted}"));
        }
        Err(error) => return Err(format!("mountpoint {shown}: {}", reason(&error))),
    }
    std::fs::canonicalize(path).map_err(|error| format!("mountpoint {shown}: {}", reason(&error)))
}

/// The line about a mount whose daemon is gone, with what clears it.
#[must_use]
pub fn dead_mount_line(path: &Path) -> String {
    let shown = path.display();
    let clear = match rustix::process::geteuid().is_root() {
        true => "umount -l",
        false => "fusermount3 -uz",
    };
    format!(
        "{shown} is a dead mount, its daemon is gone; clear it with `{clear} {}`, \
         or mount with --replace",
        quoted(path)
    )
}

/// The absolute form of a path whose last component may be a dead mount, which nothing can resolve.
#[must_use]
pub fn absolute(path: &Path) -> PathBuf {
    if let Ok(path) = std::fs::canonicalize(path) {
        return path;
    }
    let parent = match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return path.to_owned(),
    };
    match (std::fs::canonicalize(parent), path.file_name()) {
        (Ok(parent), Some(name)) => parent.join(name),
        _ => std::path::absolute(path).unwrap_or_else(|_| path.to_owned()),
    }
}

/// Treats mapped files of this mount as a disk's, where permitted: more read-ahead, and dirty pages up
/// to the machine's limit instead of the hundredth of it that FUSE gets. That is for daemons that may hang
/// in their own writeback; ours is marked as one that others' writeback depends on. With `dirty_max` the limit is so
/// many bytes: where memory is short, whoever looks for some waits for such pages to be written, the daemon
/// too. The mount must answer.
pub fn map_as_a_disk(mountpoint: &Path, dirty_max: Option<u64>) -> io::Result<()> {
    let device = std::fs::metadata(mountpoint)?.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let settings = PathBuf::from(format!("/sys/class/bdi/{major}:{minor}"));
    let read_ahead = settings.join("read_ahead_kb");
    let current = std::fs::read_to_string(&read_ahead)?.trim().parse::<u64>().unwrap_or(0);
    if current < READ_AHEAD_KIB {
        std::fs::write(&read_ahead, READ_AHEAD_KIB.to_string())?;
    }
    // Linux 6.2. A strict limit is what FUSE begins with.
    let written = match dirty_max {
        Some(bytes) => std::fs::write(settings.join("max_bytes"), bytes.to_string()),
        None => std::fs::write(settings.join("strict_limit"), "0"),
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

/// A comma list's item: commas and backslashes get a backslash, as fusermount3 expects.
fn escape_commas(text: &OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut escaped = Vec::with_capacity(text.len());
    for byte in text.as_bytes() {
        if matches!(byte, b',' | b'\\') {
            escaped.push(b'\\');
        }
        escaped.push(*byte);
    }
    OsString::from_vec(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commas_and_backslashes_of_a_name_are_escaped() {
        assert_eq!(escape_commas(OsStr::new(r"/a,b\c")), OsStr::new(r"/a\,b\\c"));
    }

    #[test]
    fn mountpoints_that_cannot_be_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("missing");
        let error = check_mountpoint(&missing, false).unwrap_err();
        assert!(error.contains("does not exist; create it: mkdir -p /"), "{error}");
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = check_mountpoint(&file, false).unwrap_err();
        assert!(error.ends_with("/file is not a directory"), "{error}");
        let dotted = folder.path().join(".");
        assert_eq!(
            check_mountpoint(&dotted, false).unwrap(),
            folder.path().canonicalize().unwrap()
        );
    }

    #[test]
    fn unmounting_a_plain_directory_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let result = unmount(folder.path(), Detach::WhenIdle);
        assert!(matches!(result, Err(UnmountError::NotMounted)), "{result:?}");
    }

    #[test]
    fn the_table_of_mounts_decides_what_came_of_an_unmount() {
        let line = |owner: u32| {
            format!("36 35 0:52 / /mnt rw - fuse.swapfs /swap rw,user_id={owner},group_id=0")
        };
        let decide = |answer, owner, stands, user| {
            let mount = parse_mount_table(line(owner).as_bytes()).remove(0);
            match judge_unmount(answer, &mount, stands, user) {
                Ok(()) => "done".to_owned(),
                Err(error) => error.to_string(),
            }
        };
        let failed = |text: &str| Err(UnmountError::Failed(text.to_owned()));
        let unknown = "fusermount3: entry for /mnt not found in /etc/mtab";
        let (busy, gone) = (|| Err(UnmountError::Busy), || Err(UnmountError::NotMounted));
        let roots = "root mounted it, and only root may unmount it";
        let theirs = "only root and user 1234, who mounted it, may unmount it";
        for (answer, owner, stands, user, expected) in [
            (Ok(()), 1234, false, 1234, "done"),
            (
                Ok(()),
                1234,
                true,
                1234,
                "it is still mounted, although that succeeded; give the command again",
            ),
            (
                gone(),
                1234,
                true,
                1234,
                "it is still mounted, although that succeeded; give the command again",
            ),
            (failed(unknown), 0, true, 1234, roots),
            (failed(unknown), 1234, true, 65534, theirs),
            (gone(), 1234, true, 65534, theirs),
            (Ok(()), 0, true, 65534, roots),
            (failed(unknown), 1234, true, 1234, unknown),
            (failed("Input/output error"), 1234, true, 0, "Input/output error"),
            (busy(), 1234, true, 1234, "the mount is busy"),
            // Another process unmounts at the same time.
            (busy(), 1234, false, 1234, "nothing is mounted there"),
            (failed(unknown), 0, false, 1234, "nothing is mounted there"),
        ] {
            let shown = format!("{answer:?} of {owner}'s, {stands}, by {user}");
            assert_eq!(decide(answer, owner, stands, user), expected, "{shown}");
        }
    }

    #[test]
    fn a_dead_mount_is_named_and_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let call = MountCall {
            source: OsStr::new("dead"),
            mountpoint: folder.path(),
            flags: MsFlags::MS_NOSUID,
            allow_other: false,
            max_read: None,
        };
        drop(mount(&call).expect("the tests need root and /dev/fuse"));
        let error = check_mountpoint(folder.path(), false).unwrap_err();
        assert!(error.contains("is a dead mount"), "{error}");
        assert!(error.contains(&format!("`umount -l {}`", folder.path().display())), "{error}");
        check_mountpoint(folder.path(), true).unwrap();
        assert!(swapfs_mounts().unwrap().iter().all(|mount| mount.mountpoint != folder.path()));
    }
}
