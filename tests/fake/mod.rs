//! A filesystem of one directory and one file that answers what `umount` and `status` ask, and that
//! misbehaves on demand.

pub(crate) mod partitions;

use std::alloc::Layout;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, Generation, INodeNo, LockOwner, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyXattr, Request, Session,
    SessionACL,
};
use swapfs::Config;
use swapfs::daemon::{Factory, Service, SwapFolder};

/// The environment variable that says how to misbehave.
pub(crate) const BEHAVIOUR: &str = "SWAPFS_TEST_BEHAVIOUR";

/// How long what is slow takes.
const SLOW: Duration = Duration::from_secs(2);

pub(crate) struct FakeFactory;

struct FakeService {
    behaviour: String,
    stats: String,
    fuse: std::sync::Mutex<Option<OwnedFd>>,
    synchronized: AtomicUsize,
}

impl Factory for FakeFactory {
    fn start(
        &self, _config: &Config, swap: &SwapFolder, mountpoint: &Path, fuse: OwnedFd,
    ) -> Result<Arc<dyn Service>, String> {
        let behaviour = std::env::var(BEHAVIOUR).unwrap_or_default();
        match behaviour.as_str() {
            "refuse" => return Err("the fake refuses".to_owned()),
            "exit" => std::process::exit(7),
            "die" => {
                let own = nix::unistd::getpid();
                let _ = nix::sys::signal::kill(own, nix::sys::signal::Signal::SIGKILL);
            }
            _ => {}
        }
        let stats = serde_json::json!({
            "mount": {
                "pid": std::process::id(),
                "version": "0",
                "mountpoint": mountpoint,
                "swap_folders": [swap.path()],
            },
            "partitions": { "failed": 2 },
        });
        Ok(Arc::new(FakeService {
            behaviour,
            stats: stats.to_string(),
            fuse: std::sync::Mutex::new(Some(fuse)),
            synchronized: AtomicUsize::new(0),
        }))
    }
}

impl Service for FakeService {
    fn serve(self: Arc<Self>) -> io::Result<()> {
        let fuse = self.fuse.lock().unwrap().take().unwrap();
        match self.behaviour.as_str() {
            "serve-error" => return Err(io::Error::other("the fake's session")),
            "slow-init" => std::thread::sleep(SLOW / 4),
            _ => {}
        }
        let mut config = fuser::Config::default();
        config.n_threads = Some(2);
        if let Some(count) = self.behaviour.strip_prefix(partitions::PARTITIONS) {
            let partitions = partitions::Partitions::new(count);
            return Session::from_fd(partitions, fuse, SessionACL::All, config)?.run();
        }
        Session::from_fd(FakeFs(self), fuse, SessionACL::All, config)?.run()
    }

    fn synchronize(&self) -> Result<(), Vec<String>> {
        let before = self.synchronized.fetch_add(1, Ordering::Relaxed);
        match self.behaviour.as_str() {
            "panic-once" => assert!(before > 0, "the fake\npanics"),
            "no-memory" => {
                let much = Layout::array::<u8>(99_999_999_999_999).unwrap();
                std::alloc::handle_alloc_error(much);
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&self) -> Result<(), Vec<String>> {
        if self.behaviour == "slow-finish" {
            std::thread::sleep(SLOW);
        }
        log::info!("synchronized {} times, finished", self.synchronized.load(Ordering::Relaxed));
        match self.behaviour.as_str() {
            "finish-fails" => Err(vec!["a/b".to_owned(), "c".to_owned()]),
            _ => Ok(()),
        }
    }
}

struct FakeFs(Arc<FakeService>);

const CONTROL: INodeNo = INodeNo(2);
const STATS: INodeNo = INodeNo(3);
const PARTITION: INodeNo = INodeNo(4);

impl FakeFs {
    fn attributes(&self, ino: INodeNo) -> FileAttr {
        let is_folder = matches!(ino, INodeNo::ROOT | CONTROL);
        FileAttr {
            ino,
            size: if ino == STATS { self.0.stats.len() as u64 } else { 0 },
            blocks: 0,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_folder { FileType::Directory } else { FileType::RegularFile },
            perm: if is_folder { 0o755 } else { 0o644 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }

    fn xattr(&self, ino: INodeNo, name: &OsStr) -> Option<&'static str> {
        let pool = name.to_str()?.strip_prefix("user.swap.")?;
        Some(match (ino, pool) {
            (INodeNo::ROOT, "pool.buffers") => "16",
            (INodeNo::ROOT, "pool.available") => "11",
            (INodeNo::ROOT, "pool.reserved") => "0",
            (INodeNo::ROOT, "pool.dirty") => "3",
            (INodeNo::ROOT, "pool.inflight") => "2",
            (INodeNo::ROOT, "pool.buffer_size") => "1048576",
            (PARTITION, "status") => "inflight",
            (PARTITION, "size") => "1572864",
            (PARTITION, "resident" | "dirty" | "inflight") => "1048576",
            _ => return None,
        })
    }
}

impl Filesystem for FakeFs {
    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let ino = match (parent, name.to_str()) {
            (INodeNo::ROOT, Some(".swapfs")) => CONTROL,
            (INodeNo::ROOT, Some("partition")) => PARTITION,
            (CONTROL, Some("stats.json")) => STATS,
            _ => return reply.error(Errno::ENOENT),
        };
        reply.entry(&Duration::from_secs(1), &self.attributes(ino), Generation(0));
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&Duration::from_secs(1), &self.attributes(ino));
    }

    fn read(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, offset: u64, _size: u32,
        _flags: OpenFlags, _lock_owner: Option<LockOwner>, reply: ReplyData,
    ) {
        let from = usize::try_from(offset).unwrap().min(self.0.stats.len());
        reply.data(&self.0.stats.as_bytes()[from..]);
    }

    fn readdir(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, offset: u64,
        mut reply: ReplyDirectory,
    ) {
        if offset == 0 {
            let _ = reply.add(PARTITION, 1, FileType::RegularFile, "partition");
        }
        reply.ok();
    }

    fn fsyncdir(
        &self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty,
    ) {
        match self.0.behaviour.as_str() {
            "fsync-fails" => return reply.error(Errno::EIO),
            "fsync-hangs" => std::thread::sleep(SLOW * 2),
            _ => {}
        }
        self.0.synchronized.fetch_add(1, Ordering::Relaxed);
        reply.ok();
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        match self.xattr(ino, name) {
            None => reply.error(Errno::ENODATA),
            Some(value) if size == 0 => reply.size(u32::try_from(value.len()).unwrap()),
            Some(value) => reply.data(value.as_bytes()),
        }
    }
}
