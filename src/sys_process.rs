//! Calls about processes that the standard library and nix leave unsafe or leave out, made safe.

use std::ffi::CString;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::signal::{SigHandler, SigSet, Signal};
use nix::unistd::ForkResult;

/// Freed memory above this many bytes goes back to the kernel at once.
const MMAP_THRESHOLD: libc::c_int = 128 << 10;

/// Heaps that malloc may keep side by side; each one holds on to memory of its own.
const ARENAS_MAX: libc::c_int = 2;

/// `PR_SET_IO_FLUSHER` of Linux 5.6, which libc does not name on every target.
const PR_SET_IO_FLUSHER: libc::c_int = 57;

/// The text of an I/O error without Rust's `(os error N)`.
#[must_use]
pub fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => Errno::from_raw(code).desc().to_owned(),
        None => error.to_string(),
    }
}

/// A path as one word for a shell, in one line: bare where that will do, else in quotes, with escapes
/// (`$'\n'`) for what is not to be printed.
#[must_use]
pub fn quoted(path: &Path) -> String {
    let bytes = path.as_os_str().as_bytes();
    let is_bare = |byte: &u8| byte.is_ascii_alphanumeric() || b"_-./:,+@%=".contains(byte);
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && bytes.iter().all(is_bare) => text.to_owned(),
        Ok(text) if text.chars().all(crate::paths::is_plain) => {
            format!("'{}'", text.replace('\'', "'\\''"))
        }
        _ => format!("$'{}'", bytes.escape_ascii()),
    }
}

/// The process namespace that this process's ids are of: two processes with the same one mean the same by an id.
#[must_use]
pub fn pid_namespace() -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self/ns/pid").ok().map(|namespace| namespace.ino())
}

/// Makes this process's descriptors of files at or below `path` those of `/dev/null`, for a process that is about to
/// end: whoever still uses them reads nothing and writes nowhere.
pub(crate) fn give_up_descriptors(path: &Path) -> io::Result<()> {
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    for entry in std::fs::read_dir("/proc/self/fd")?.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
        let Some(number) = number else { continue };
        if std::fs::read_link(entry.path()).is_ok_and(|target| target.starts_with(path)) {
            // SAFETY: the number was open a moment ago and belongs to somebody in this process, who goes on owning it:
            // it is replaced in one step, never closed, and what owns it here is never dropped.
            let mut taken = ManuallyDrop::new(unsafe { OwnedFd::from_raw_fd(number) });
            rustix::io::dup2(&null, &mut taken)?;
        }
    }
    Ok(())
}

/// Whether a process is gone or about to be: nothing of it can go on, but the kernel may still be closing what it
/// had open, which takes until its transfers have ended. The id is one of this process's namespace.
pub(crate) fn is_leaving(pid: i32) -> bool {
    let process = format!("/proc/{pid}");
    let Ok(stat) = std::fs::read_to_string(format!("{process}/stat")) else {
        return !Path::new(&process).exists();
    };
    let status = std::fs::read_to_string(format!("{process}/status")).unwrap_or_default();
    is_dead_or_dying(&stat, &status)
}

/// The same, of `/proc/PID/stat` and `/proc/PID/status`.
fn is_dead_or_dying(stat: &str, status: &str) -> bool {
    /// `PF_EXITING` of the kernel's `linux/sched.h`.
    const EXITING: u64 = 0x4;
    // The name, in parentheses, may have any character in it.
    let mut fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
    let is_dead = matches!(fields.next(), Some("Z" | "X"));
    let is_exiting = fields.nth(5).and_then(|flags| flags.parse::<u64>().ok());
    let is_killed = ["SigPnd:", "ShdPnd:"].iter().any(|name| {
        let mask = status.lines().find_map(|line| line.strip_prefix(name));
        let mask = mask.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        mask.is_some_and(|mask| mask & 1 << (Signal::SIGKILL as u64 - 1) != 0)
    });
    is_dead || is_exiting.is_some_and(|flags| flags & EXITING != 0) || is_killed
}

/// Has the kernel give this thread the memory that its stack will take: later, where memory is short, it might have the
/// thread wait for pages that only the daemon can write.
#[inline(never)]
pub(crate) fn touch_stack() {
    std::hint::black_box([1_u8; 32 << 10]);
}

/// The signals that end a command which has something to do before: SIGINT, SIGTERM, and SIGHUP unless that
/// is ignored, as under nohup(1).
pub(crate) fn ending_signals() -> SigSet {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGINT);
    signals.add(Signal::SIGTERM);
    if ignored & 1 << (Signal::SIGHUP as u64 - 1) == 0 {
        signals.add(Signal::SIGHUP);
    }
    signals
}

/// Ends the process by `signal`, as its parent expects to see it, also where the process was started with the
/// signal ignored (as shells start what runs in the background). Returns only when that cannot be.
pub(crate) fn end_by(signal: Signal) {
    // SAFETY: the default action is no handler of ours, so nothing of this process runs in it.
    if unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }.is_ok() {
        let _ = nix::sys::signal::raise(signal);
    }
}

/// Whether a path lies on a tmpfs, which is memory whatever is done there.
pub(crate) fn is_on_tmpfs(path: &Path) -> bool {
    /// `TMPFS_MAGIC` of `linux/magic.h`.
    const TMPFS: rustix::fs::FsWord = 0x0102_1994;
    rustix::fs::statfs(path).is_ok_and(|found| found.f_type == TMPFS)
}

/// Forks a process that has one thread only.
pub(crate) fn fork_single_threaded() -> io::Result<ForkResult> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    assert_eq!(threads, 1, "the daemon forks before any thread exists");
    // SAFETY: fork(2) asks that the child of a process with several threads call only async-signal-safe
    // functions; the assertion above leaves this thread as the only one.
    Ok(unsafe { nix::unistd::fork() }?)
}

/// Closes all descriptors but the three standard ones and `kept`. For a process that was just forked and returns to nobody
/// who owns one of the others.
pub(crate) fn close_all_but<const N: usize>(mut kept: [RawFd; N]) -> io::Result<()> {
    kept.sort_unstable();
    let mut from: u32 = 3;
    for end in kept.into_iter().map(Some).chain([None]) {
        let (last, next) = match end.map(i32::cast_unsigned) {
            Some(kept) => (kept.checked_sub(1), kept.saturating_add(1)),
            None => (Some(u32::MAX), u32::MAX),
        };
        if let Some(last) = last.filter(|last| *last >= from) {
            // SAFETY: close_range takes numbers alone; the caller makes sure that nobody uses what they stand for.
            let closed = unsafe { libc::syscall(libc::SYS_close_range, from, last, 0) };
            Errno::result(closed)?;
        }
        from = next.max(3);
    }
    Ok(())
}

/// Tells malloc to give large freed blocks back and to keep few heaps. Call before threads start.
pub(crate) fn return_freed_memory() {
    // SAFETY: mallopt takes two integers and has no memory of ours; an unknown parameter is refused.
    let threshold = unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD) };
    // SAFETY: as above.
    let arenas = unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS_MAX) };
    if (threshold, arenas) != (1, 1) {
        log::debug!("mallopt refused: freed memory may stay with the daemon");
    }
}

/// Marks this process as one that writes the kernel's dirty pages, so that its own allocations never
/// wait for that; needs CAP_SYS_RESOURCE.
pub(crate) fn set_io_flusher() -> io::Result<()> {
    // SAFETY: PR_SET_IO_FLUSHER takes integers only.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    Errno::result(result)?;
    Ok(())
}

/// Clears close-on-exec, so that a program started next inherits the descriptor.
pub(crate) fn inherit(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

/// Receives one descriptor that the peer of a Unix socket sends; `None` when it closes without.
pub(crate) fn receive_descriptor(socket: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut byte = [0_u8; 1];
    let mut parts = [io::IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags) {
            Err(Errno::EINTR) => {}
            other => break other?,
        }
    };
    let received = message.cmsgs()?.find_map(|control| match control {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel made this descriptor for us with this message; the control buffer has room
    // for one, so there is no other, and nobody else in this process knows its number.
    Ok(received.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Reads an extended attribute as text; `None` when the file has none of that name.
pub(crate) fn text_xattr(path: &Path, name: &str) -> io::Result<Option<String>> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut value = [0_u8; 4096];
    match rustix::fs::lgetxattr(path.as_c_str(), name, &mut value[..]) {
        Ok(length) => Ok(Some(String::from_utf8_lossy(&value[..length]).into_owned())),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_the_quoted_path_as_it_was() {
        for bytes in
            [&b"/nvme/swap-1"[..], b"/a b/it's \"$HOME\"", b"new\nline'\\", b"\xffodd \t\x01", b""]
        {
            let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
            let word = quoted(path);
            assert_eq!(word.lines().count().max(1), 1, "{word}");
            let shell = std::process::Command::new("bash")
                .args(["-c", &format!("printf %s {word}")])
                .output()
                .unwrap();
            assert_eq!(shell.stdout, bytes, "{word}");
        }
        assert_eq!(quoted(Path::new("/nvme/swap-1")), "/nvme/swap-1");
    }

    #[test]
    fn who_is_about_to_go_is_known() {
        let fields = |state, flags| format!("7 (a) S b) {state} 1 7 7 0 -1 {flags} 0 0\n");
        let status = |mask| format!("Name:\ta\nSigPnd:\t{:016x}\nShdPnd:\t{mask:016x}\n", 0);
        assert!(!is_dead_or_dying(&fields('S', 4_194_560), &status(1 << 14)));
        assert!(
            is_dead_or_dying(&fields('S', 4_194_560), &status(1 << 8)),
            "SIGKILL is on its way"
        );
        assert!(is_dead_or_dying(&fields('S', 4_194_564), &status(0)), "it is exiting");
        assert!(is_dead_or_dying(&fields('Z', 4_194_560), &status(0)), "nobody has reaped it");
        assert!(!is_dead_or_dying("", ""));

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id().cast_signed();
        assert!(!is_leaving(pid) && !is_leaving(std::process::id().cast_signed()));
        child.kill().unwrap();
        assert!(is_leaving(pid), "killed, not reaped");
        child.wait().unwrap();
        assert!(is_leaving(pid), "gone");
    }
}
