//! Mounting as a user, with the set-user-ID helper `fusermount3`.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::mount::MsFlags;

use super::{Detach, MountCall, SUBTYPE, UnmountError, escape_commas};
use crate::sys_process::{inherit, reason, receive_descriptor};
use crate::trust::is_own;

/// The helper's names: that of libfuse 3, then that of libfuse 2.
const HELPERS: [&str; 2] = ["fusermount3", "fusermount"];

/// How a complaint about a busy mount ends, in the C locale.
const BUSY: &str = "Device or resource busy";

/// Where root looks for the helper.
const SYSTEM_FOLDERS: [&str; 6] =
    ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/run/wrappers/bin"];

/// Flags of mount(2) that the helper takes, by its names for them.
const FLAG_NAMES: [(MsFlags, &str); 7] = [
    (MsFlags::MS_RDONLY, "ro"),
    (MsFlags::MS_NOSUID, "nosuid"),
    (MsFlags::MS_NODEV, "nodev"),
    (MsFlags::MS_NOEXEC, "noexec"),
    (MsFlags::MS_SYNCHRONOUS, "sync"),
    (MsFlags::MS_NOATIME, "noatime"),
    (MsFlags::MS_NODIRATIME, "nodiratime"),
];

pub(super) fn mount(call: &MountCall<'_>) -> Result<OwnedFd, String> {
    let failed = |why: &str| format!("cannot mount at {}: {why}", call.mountpoint.display());
    let (ours, theirs) = UnixStream::pair().map_err(|error| failed(&reason(&error)))?;
    inherit(theirs.as_fd()).map_err(|error| failed(&reason(&error)))?;
    let number = theirs.as_raw_fd().to_string();
    let arguments =
        [OsStr::new("-o"), &options(call), OsStr::new("--"), call.mountpoint.as_os_str()];
    let output = run(&arguments, Some(&number)).map_err(|line| failed(&line))?;
    drop(theirs);
    if !output.status.success() {
        return Err(failed(&complaint(&output)));
    }
    match receive_descriptor(ours.as_fd()) {
        Ok(Some(fuse)) => Ok(fuse),
        Ok(None) => Err(failed("fusermount3 sent no descriptor")),
        Err(error) => Err(failed(&reason(&error))),
    }
}

pub(super) fn unmount(mountpoint: &Path, detach: Detach) -> Result<(), UnmountError> {
    let how = match detach {
        Detach::WhenIdle => "-u",
        Detach::Lazily => "-uz",
    };
    let arguments = [OsStr::new(how), OsStr::new("--"), mountpoint.as_os_str()];
    let output = run(&arguments, None).map_err(UnmountError::Failed)?;
    if output.status.success() {
        return Ok(());
    }
    // The path stands in the complaint too, and may have any words in it. Whether the mount stands, the table of mounts says.
    let complaint = complaint(&output);
    Err(match complaint.ends_with(BUSY) {
        true => UnmountError::Busy,
        false => UnmountError::Failed(complaint),
    })
}

fn options(call: &MountCall<'_>) -> OsString {
    let mut options = OsString::from(format!("subtype={SUBTYPE},{}", call.common_options()));
    for (flag, name) in FLAG_NAMES {
        if call.flags.contains(flag) {
            options.push(",");
            options.push(name);
        }
    }
    options.push(",fsname=");
    options.push(escape_commas(call.source));
    options
}

/// Runs the helper in the C locale, its complaints caught.
fn run(arguments: &[&OsStr], socket: Option<&str>) -> Result<Output, String> {
    for helper in HELPERS {
        let Some(program) = program(helper) else { continue };
        let mut command = Command::new(program);
        command.args(arguments).env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::null());
        if let Some(number) = socket {
            command.env("_FUSE_COMMFD", number);
        }
        match command.output() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{helper}: {}", reason(&error))),
            Ok(output) => return Ok(output),
        }
    }
    Err("fusermount3 is not installed (package fuse3), and only root mounts without it".to_owned())
}

/// The helper's program. Root does not look for it along PATH: only where the system's programs are, and a file that
/// nobody but root may write.
fn program(helper: &str) -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return Some(helper.into());
    }
    let places = SYSTEM_FOLDERS.iter().map(|folder| Path::new(folder).join(helper));
    places.into_iter().find(|path| std::fs::metadata(path).is_ok_and(|found| is_own(&found)))
}

/// The helper's first line of complaint, or its exit status.
fn complaint(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    match text.lines().find(|line| !line.trim().is_empty()) {
        Some(line) => line.trim().to_owned(),
        None => format!("fusermount3 failed ({})", output.status),
    }
}
