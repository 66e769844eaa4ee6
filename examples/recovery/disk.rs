//! A disk whose every write and flush is on a log, from which it can be had as a power cut would have left it.
//!
//! Its image is a file of a small filesystem of this program's own, beneath a loop device. What was written after
//! the last flush need not have reached the disk: any part of it may have.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry,
    ReplyOpen, ReplyWrite, Request, SessionACL, WriteFlags,
};
use nix::mount::{MntFlags, MsFlags, umount2};
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::chance::Random;
use crate::model::Failure;
use crate::place::{PATIENCE, run, trouble};

/// Bytes of the disk.
const DISK_BYTES: usize = 96 << 20;

const IMAGE: u64 = 2;
const SECTOR: usize = 512;

/// How the kernel tells one start of the machine from another.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

enum Event {
    Write(u64, Box<[u8]>),
    Flush,
}

struct State {
    bytes: Vec<u8>,
    events: Vec<Event>,
}

/// Serves the image and logs what comes.
struct Server {
    state: Arc<Mutex<State>>,
    length: Arc<AtomicU64>,
}

fn attributes(ino: u64) -> FileAttr {
    let (kind, perm, size) = match ino {
        IMAGE => (FileType::RegularFile, 0o600, DISK_BYTES as u64),
        _ => (FileType::Directory, 0o700, 0),
    };
    FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size / 512,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

const FOR_EVER: Duration = Duration::from_secs(1 << 20);

impl Server {
    fn log(&self, state: &mut State, event: Event) {
        state.events.push(event);
        self.length.store(state.events.len() as u64, Ordering::SeqCst);
    }
}

impl Filesystem for Server {
    fn lookup(&self, _: &Request, _: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name.to_str() {
            Some("image") => reply.entry(&FOR_EVER, &attributes(IMAGE), Generation(0)),
            _ => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOR_EVER, &attributes(ino.0));
    }

    fn open(&self, _: &Request, _: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, size: u32, _: OpenFlags,
        _: Option<LockOwner>, reply: ReplyData,
    ) {
        let state = self.state.lock();
        let from = (offset as usize).min(DISK_BYTES);
        reply.data(&state.bytes[from..(from + size as usize).min(DISK_BYTES)]);
    }

    fn write(
        &self, _: &Request, _: INodeNo, _: FileHandle, offset: u64, data: &[u8], _: WriteFlags,
        _: OpenFlags, _: Option<LockOwner>, reply: ReplyWrite,
    ) {
        let mut state = self.state.lock();
        let from = offset as usize;
        let Some(to) = state.bytes.get_mut(from..from + data.len()) else {
            return reply.error(Errno::ENOSPC);
        };
        to.copy_from_slice(data);
        self.log(&mut state, Event::Write(offset, data.into()));
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        self.log(&mut self.state.lock(), Event::Flush);
        reply.ok();
    }
}

/// The disk, with an ext4 that is mounted.
pub(crate) struct Disk {
    state: Arc<Mutex<State>>,
    /// Events so far.
    pub(crate) length: Arc<AtomicU64>,
    session: Option<BackgroundSession>,
    served: PathBuf,
    /// Where it is mounted.
    pub(crate) mounted: PathBuf,
    _scratch: TempDir,
}

fn tool(program: &str, arguments: &[&OsStr]) -> Result<(), Failure> {
    match run(program.as_ref(), arguments)? {
        (Some(0), _) => Ok(()),
        (status, said) => Err(trouble(format!("{said} (status {status:?})"))),
    }
}

fn unmount(path: &Path) {
    let begin = Instant::now();
    while umount2(path, MntFlags::empty()) == Err(nix::errno::Errno::EBUSY) {
        if begin.elapsed() > PATIENCE / 6 {
            let _ = umount2(path, MntFlags::MNT_DETACH);
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn scratch(folder: &Path) -> Result<TempDir, Failure> {
    let made = swapfs::bench::check_place(folder)
        .and_then(|()| tempfile::Builder::new().prefix("swapfs-recovery-").tempdir_in(folder));
    made.map_err(|error| trouble(format!("a scratch folder: {error}")))
}

impl Disk {
    pub(crate) fn new(folder: &Path, random: &mut Random) -> Result<Disk, Failure> {
        let failed = |error: io::Error| trouble(format!("the disk: {error}"));
        let scratch = scratch(folder)?;
        let (served, mounted) = (scratch.path().join("served"), scratch.path().join("disk"));
        std::fs::create_dir(&served).map_err(failed)?;
        std::fs::create_dir(&mounted).map_err(failed)?;
        let state = State { bytes: vec![0; DISK_BYTES], events: Vec::new() };
        let state = Arc::new(Mutex::new(state));
        let length = Arc::new(AtomicU64::new(0));
        let server = Server { state: Arc::clone(&state), length: Arc::clone(&length) };
        let mut config = fuser::Config::default();
        config.mount_options = vec![MountOption::FSName("recovery-disk".to_owned())];
        config.acl = SessionACL::All;
        let session = fuser::spawn_mount(server, &served, &config).map_err(failed)?;
        let disk =
            Disk { state, length, session: Some(session), served, mounted, _scratch: scratch };
        let image = disk.served.join("image");
        let how = ["-q", "-F", "-E", "nodiscard,lazy_itable_init=0,lazy_journal_init=0"];
        let mut words: Vec<&OsStr> = how.iter().map(OsStr::new).collect();
        // With small blocks a page lies in several places.
        words.extend(["-b", if random.chance(25) { "1024" } else { "4096" }].map(OsStr::new));
        words.push(image.as_ref());
        tool("mkfs.ext4", &words)?;
        tool("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), disk.mounted.as_ref()])?;
        Ok(disk)
    }

    /// Moments between two events, at which the power may be cut: right behind flushes, and others.
    pub(crate) fn moments(&self, from: u64, count: usize, random: &mut Random) -> Vec<u64> {
        let state = self.state.lock();
        let end = state.events.len() as u64;
        let flushes: Vec<u64> = (from..end)
            .filter(|&at| matches!(state.events[at as usize], Event::Flush))
            .map(|at| at + 1)
            .collect();
        let mut moments: Vec<u64> = (0..count)
            .map(|_| match !flushes.is_empty() && random.chance(40) {
                true => random.pick(&flushes),
                false => from + random.below(end - from + 1),
            })
            .collect();
        moments.sort_unstable();
        moments.dedup();
        moments
    }

    /// Writes an image as a cut at this moment may have left it.
    pub(crate) fn cut(&self, moment: u64, image: &Path, random: &mut Random) -> io::Result<String> {
        let state = self.state.lock();
        let events = &state.events[..moment as usize];
        let flushed = events.iter().rposition(|event| matches!(event, Event::Flush)).unwrap_or(0);
        let (_, later) = events.split_at(flushed);
        let file = File::create(image)?;
        file.set_len(DISK_BYTES as u64)?;
        let keep = random.pick(&[0, 50, 90, 100]);
        let mut kept = 0;
        for (at, event) in events.iter().enumerate() {
            let Event::Write(offset, bytes) = event else { continue };
            if at > flushed && !random.chance(keep) {
                continue;
            }
            kept += usize::from(at > flushed);
            let whole = at <= flushed || !random.chance(10);
            let sectors = random.below((bytes.len() / SECTOR) as u64 + 1) as usize;
            let count = if whole { bytes.len() } else { sectors * SECTOR };
            file.write_all_at(&bytes[..count], *offset)?;
        }
        let after = later.len().saturating_sub(1);
        Ok(format!("power cut after event {moment}, {kept} of {after} kept behind the last flush"))
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        unmount(&self.mounted);
        if let Some(session) = self.session.take() {
            let _ = umount2(&self.served, MntFlags::MNT_DETACH);
            drop(session);
        }
    }
}

/// An image of the disk that is mounted, on a machine that was started anew.
pub(crate) struct Copy {
    pub(crate) mounted: PathBuf,
    pub(crate) image: PathBuf,
    is_mounted: bool,
    _scratch: TempDir,
}

impl Copy {
    pub(crate) fn new(folder: &Path) -> Result<Copy, Failure> {
        let scratch = scratch(folder)?;
        let (mounted, image) = (scratch.path().join("copy"), scratch.path().join("image"));
        std::fs::create_dir(&mounted).map_err(|error| trouble(format!("the copy: {error}")))?;
        Ok(Copy { mounted, image, is_mounted: false, _scratch: scratch })
    }

    pub(crate) fn mount(&mut self) -> Result<(), Failure> {
        let words = ["-o".as_ref(), "loop".as_ref(), self.image.as_os_str(), self.mounted.as_ref()];
        tool("mount", &words)?;
        self.is_mounted = true;
        Ok(())
    }

    pub(crate) fn unmount(&mut self) {
        if std::mem::take(&mut self.is_mounted) {
            unmount(&self.mounted);
        }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// As long as this lives, programs see another start of the machine.
pub(crate) struct Rebooted(TempDir);

impl Rebooted {
    pub(crate) fn new(folder: &Path, random: &mut Random) -> Result<Rebooted, Failure> {
        let scratch = scratch(folder)?;
        let file = scratch.path().join("boot_id");
        let (high, low) = (random.next(), random.next() & 0xffff_ffff_ffff);
        let id = format!("{:08x}-0000-4000-8000-{low:012x}\n", high as u32);
        let none = None::<&Path>;
        std::fs::write(&file, id)
            .and_then(|()| {
                Ok(nix::mount::mount(Some(&file), BOOT_ID, none, MsFlags::MS_BIND, none)?)
            })
            .map_err(|error| trouble(format!("another boot id: {error}")))?;
        Ok(Rebooted(scratch))
    }
}

impl Drop for Rebooted {
    fn drop(&mut self) {
        let _ = umount2(BOOT_ID, MntFlags::MNT_DETACH);
        let _ = std::fs::remove_file(self.0.path().join("boot_id"));
    }
}
