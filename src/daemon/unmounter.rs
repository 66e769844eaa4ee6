//! The process that stays outside and unmounts.
//!
//! The daemon gives up the right to unmount, and the sight of the mountpoint, before it serves anybody. What it needs of
//! these later is done by a process that is forked before: it has no descriptor of the daemon's but what that sends, hears
//! one of six requests at a time, about this one mountpoint, and ends with the daemon. When that was is the last that it
//! tells.

use std::fs::File;
use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, PipeReader, PipeWriter, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sys::signal::SigSet;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};
use parking_lot::Mutex;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use rustix::thread::CapabilitySet;
use serde::{Deserialize, Serialize};

use super::SwapFolder;
use crate::ledger::witness;
use crate::mount::{self, Detach, UnmountError};
use crate::sandbox;
use crate::sys_process::{close_all_but, fork_single_threaded, reason};

/// How long the process may take to go, when the daemon ends.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Its name in lists of processes.
const NAME: &std::ffi::CStr = c"swapfs-unmount";

/// What it keeps of root's rights: unmounting, and reaching a mountpoint whatever is above it.
const KEPT: CapabilitySet = CapabilitySet::SYS_ADMIN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::DAC_READ_SEARCH);

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum Request {
    /// Asks the mount its first question, by a process of its own, which answers through the pipe. `device_before` is
    /// the mountpoint's `st_dev` before it was mounted on.
    FirstCall { device_before: u64 },
    /// As [`mount::unmount_or_detach`].
    Unmount,
    /// Detaches at once.
    Detach,
    /// As [`mount::abort`].
    Abort { device: Option<u64> },
    /// Takes away what is left of the mount after the session's end.
    Tidy { device: Option<u64> },
    /// Notes when the daemon ends: in the first file that comes with the request. The others are the locks on its
    /// folder, which nobody else has until that is done.
    NoteEnd { session: u32 },
}

/// Files that come with a request, at most.
const FILES_MAX: usize = 4;

#[derive(Debug, Clone, Serialize, Deserialize)]
enum Answer {
    Done,
    DoneLazily,
    Busy,
    NotMounted,
    Failed(String),
}

/// What the first call on the mount came to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
enum First {
    Device(u64),
    Errno(i32),
    /// Something else is mounted there.
    Other,
}

/// The daemon's end of it.
#[derive(Debug)]
pub(super) struct Unmounter {
    channel: Mutex<BufReader<UnixStream>>,
    first: Option<PipeReader>,
    child: Pid,
}

impl Unmounter {
    /// Starts the process. The caller must have one thread only.
    pub(super) fn start(mountpoint: &Path) -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        let (first, answers) = io::pipe()?;
        match fork_single_threaded()? {
            ForkResult::Parent { child } => {
                Ok(Self { channel: Mutex::new(BufReader::new(ours)), first: Some(first), child })
            }
            ForkResult::Child => {
                drop((ours, first));
                if prepare(&theirs, &answers).is_ok() {
                    serve(mountpoint, theirs, &answers);
                }
                std::process::exit(0)
            }
        }
    }

    fn ask(&self, request: Request) -> Result<Answer, UnmountError> {
        self.ask_with(request, &[])
    }

    fn ask_with(&self, request: Request, files: &[BorrowedFd<'_>]) -> Result<Answer, UnmountError> {
        let mut channel = self.channel.lock();
        let sent = send_with(channel.get_ref(), &request, files);
        let answer = sent.and_then(|()| receive(&mut *channel));
        match answer {
            Ok(Some(answer)) => Ok(answer),
            _ => Err(UnmountError::Failed("the process that unmounts has gone".to_owned())),
        }
    }

    fn unmount_by(&self, request: Request) -> Result<Detach, UnmountError> {
        match self.ask(request)? {
            Answer::Done => Ok(Detach::WhenIdle),
            Answer::DoneLazily => Ok(Detach::Lazily),
            Answer::Busy => Err(UnmountError::Busy),
            Answer::NotMounted => Err(UnmountError::NotMounted),
            Answer::Failed(why) => Err(UnmountError::Failed(why)),
        }
    }

    /// Unmounts; when the mount is busy, detaches it so that new users see it gone.
    pub(super) fn unmount(&self) -> Result<Detach, UnmountError> {
        self.unmount_by(Request::Unmount)
    }

    /// Detaches the mount at once.
    pub(super) fn detach(&self) -> Result<(), UnmountError> {
        self.unmount_by(Request::Detach).map(drop)
    }

    /// Ends the connection behind the mount, whose `st_dev` is `device`.
    pub(super) fn abort(&self, device: Option<u64>) {
        if let Err(error) = self.ask(Request::Abort { device }) {
            log::warn!("{error}");
        }
    }

    /// Takes away a mount that its session has left behind, and what mount(8) knows of it.
    pub(super) fn tidy(&self, device: Option<u64>) -> Result<(), UnmountError> {
        self.unmount_by(Request::Tidy { device }).map(drop)
    }

    /// Has it written down when the daemon, in this session, has ended.
    pub(super) fn note_end(&self, swap: &SwapFolder, session: u32) -> io::Result<()> {
        let file = witness::open(swap.control())?;
        let locks = swap.locks();
        let files: Vec<_> = std::iter::once(file.as_fd()).chain(locks).collect();
        self.ask_with(Request::NoteEnd { session }, &files).map(drop).map_err(io::Error::other)
    }

    /// Has the first call made on the mount; the result waits for its answer, and is to be asked once.
    pub(super) fn first_call(
        &mut self, device_before: u64,
    ) -> io::Result<impl FnOnce() -> io::Result<u64> + Send + use<>> {
        let gone = || io::Error::other("the process that unmounts has gone");
        let answers = self.first.take().ok_or_else(gone)?;
        self.unmount_by(Request::FirstCall { device_before }).map_err(io::Error::other)?;
        Ok(move || match receive(&mut BufReader::new(answers))?.ok_or_else(gone)? {
            First::Device(device) => Ok(device),
            First::Errno(code) => Err(io::Error::from_raw_os_error(code)),
            First::Other => Err(io::Error::other("something else is mounted there")),
        })
    }
}

impl Drop for Unmounter {
    fn drop(&mut self) {
        let _ = self.channel.lock().get_ref().shutdown(std::net::Shutdown::Both);
        let start = Instant::now();
        while waitpid(self.child, Some(WaitPidFlag::WNOHANG)) == Ok(WaitStatus::StillAlive)
            && start.elapsed() < END_TIMEOUT
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn line(message: &impl Serialize) -> io::Result<Vec<u8>> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    Ok(line)
}

fn send(mut to: impl Write, message: &impl Serialize) -> io::Result<()> {
    to.write_all(&line(message)?)
}

fn send_with(
    to: &UnixStream, message: &impl Serialize, files: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let line = line(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(files));
    }
    let sent = sendmsg(to, &[IoSlice::new(&line)], &mut ancillary, SendFlags::NOSIGNAL)?;
    (&*to).write_all(&line[sent..])
}

/// The process's end of the channel, with the files that came last.
struct Channel {
    stream: UnixStream,
    files: Vec<OwnedFd>,
}

impl Read for Channel {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let into = &mut [IoSliceMut::new(bytes)];
        let received = recvmsg(&self.stream, into, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(files) = message {
                self.files = files.collect();
            }
        }
        Ok(received.bytes)
    }
}

/// The next message; `None` at the end.
fn receive<T: for<'a> Deserialize<'a>>(from: &mut impl BufRead) -> io::Result<Option<T>> {
    /// No message is longer.
    const BYTES_MAX: u64 = 64 << 10;
    let mut line = Vec::new();
    match from.take(BYTES_MAX).read_until(b'\n', &mut line)? {
        0 => Ok(None),
        _ => Ok(Some(serde_json::from_slice(&line)?)),
    }
}

/// What the process is before it listens: without the daemon's descriptors, its terminal and its signals, and without
/// rights that unmounting does not take.
fn prepare(channel: &UnixStream, answers: &PipeWriter) -> io::Result<()> {
    SigSet::all().thread_block()?;
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&null)?;
    nix::unistd::dup2_stdout(&null)?;
    nix::unistd::dup2_stderr(&null)?;
    drop(null);
    close_all_but([channel.as_raw_fd(), answers.as_raw_fd()])?;
    let _ = nix::unistd::setsid();
    let _ = rustix::thread::set_name(NAME);
    // When the daemon ends is to be known to the millisecond, where that may be had.
    let _ = crate::sys::go_first();
    // Whoever may not unmount himself has fusermount3 do it, which takes its rights from its file.
    let own = rustix::thread::capabilities(None)?;
    if own.effective.contains(CapabilitySet::SYS_ADMIN) {
        let _ = sandbox::give_up_capabilities(KEPT);
        let _ = sandbox::give_up_new_privileges();
    }
    Ok(())
}

/// Does what is asked until the daemon has gone.
fn serve(mountpoint: &Path, stream: UnixStream, answers: &PipeWriter) {
    let mut channel = BufReader::new(Channel { stream, files: Vec::new() });
    let mut ending = None;
    while let Ok(Some(request)) = receive(&mut channel) {
        let answer = match request {
            Request::FirstCall { device_before } => first_call(mountpoint, device_before, answers),
            Request::Unmount => answer(mount::unmount_or_detach(mountpoint)),
            Request::Detach => answer(detach(mountpoint)),
            Request::Abort { device } => {
                mount::abort(
                    mountpoint,
                    device.filter(|device| !is_elsewhere(mountpoint, *device)),
                );
                Answer::Done
            }
            Request::Tidy { device } => answer(tidy(mountpoint, device)),
            Request::NoteEnd { session } => {
                ending = Some((session, std::mem::take(&mut channel.get_mut().files)));
                Answer::Done
            }
        };
        let _ = waitpid(Pid::from_raw(-1), Some(WaitPidFlag::WNOHANG));
        if send(&channel.get_ref().stream, &answer).is_err() {
            break;
        }
    }
    if let Some((session, files)) = ending {
        let mut files = files.into_iter();
        let _ = files.next().map(|file| witness::note(&File::from(file), session));
    }
}

fn answer(result: Result<Detach, UnmountError>) -> Answer {
    match result {
        Ok(Detach::WhenIdle) => Answer::Done,
        Ok(Detach::Lazily) => Answer::DoneLazily,
        Err(UnmountError::Busy) => Answer::Busy,
        Err(UnmountError::NotMounted) => Answer::NotMounted,
        Err(error) => Answer::Failed(error.to_string()),
    }
}

fn detach(mountpoint: &Path) -> Result<Detach, UnmountError> {
    mount::unmount(mountpoint, Detach::Lazily).map(|()| Detach::Lazily)
}

/// Returns true when the mount with this `st_dev` is at another place, and so none of this daemon's.
fn is_elsewhere(mountpoint: &Path, device: u64) -> bool {
    let mounts = mount::swapfs_mounts().unwrap_or_default();
    let mut same = mounts.iter().filter(|mount| mount.device == device).peekable();
    same.peek().is_some() && same.all(|mount| mount.mountpoint != mountpoint)
}

/// A session that ended without an unmount leaves a mount on which every call fails.
fn tidy(mountpoint: &Path, device: Option<u64>) -> Result<Detach, UnmountError> {
    let mounts = mount::swapfs_mounts().unwrap_or_default();
    let is_ours =
        |entry: &mount::MountEntry| Some(entry.device) == device && entry.mountpoint == mountpoint;
    if mounts.iter().any(is_ours) {
        return detach(mountpoint);
    }
    // Whoever unmounted may not have known that there is a helper.
    mount::forget(mountpoint);
    Ok(Detach::WhenIdle)
}

/// Makes the first call in a process of its own: it returns when the session answers. Then what needs an answering mount.
fn first_call(mountpoint: &Path, device_before: u64, answers: &PipeWriter) -> Answer {
    match fork_single_threaded() {
        Err(error) => return Answer::Failed(format!("fork: {}", reason(&error))),
        Ok(ForkResult::Parent { .. }) => return Answer::Done,
        Ok(ForkResult::Child) => {}
    }
    // The daemon's end is to be the end of the other process alone.
    let _ = close_all_but([answers.as_raw_fd()]);
    let first = match std::fs::metadata(mountpoint) {
        Ok(found) if found.dev() == device_before => First::Other,
        Ok(found) => First::Device(found.dev()),
        Err(error) => First::Errno(error.raw_os_error().unwrap_or(libc::EIO)),
    };
    let _ = send(answers, &first);
    if matches!(first, First::Device(_)) {
        let _ = mount::map_as_a_disk(mountpoint, crate::memory::dirty_max());
    }
    std::process::exit(0)
}
