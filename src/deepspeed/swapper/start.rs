//! Making a swapper: its folder, its engine, its files.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags};

use super::error::{Result, SwapError};
use super::id::{Dtype, Layout};
use super::table::Open;
use crate::aio::file::{DiskFile, errno, uninterrupted};
use crate::aio::probe::probe;
use crate::aio::{AioSettings, Engine as AioEngine, open_device};
use crate::config::Config;
use crate::engine::{BuildError, Engine, EngineOptions, FileKey, OpenSwapIn};
use crate::error::{Errno, errno_of};
use crate::pool::Arena;

/// DeepSpeed's alignment of a partition, for each aio thread.
const ALIGNED_BYTES: u64 = 1024;

/// Blocks smaller than this share a request's room; the pool's size is a multiple of a block.
const BLOCK_SIZE_MIN: u64 = 64 << 10;
const BLOCK_SIZE_MAX: u64 = 16 << 20;

/// Nothing dirty goes out before it is asked to: a century.
const LINGER: Duration = Duration::from_secs(100 * 366 * 86400);

/// A folder whose last owner was killed is waited for so long, and tried so often.
const GRACE: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(10);

/// Partitions without a handle that the engine keeps descriptors for: a swapper's leave when released.
const IDLE_PARTITIONS_MAX: usize = 64;

/// What becomes of the files that are in the parameters' folder already.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Start {
    /// They stay, and can be swapped in once [`track`](super::Swapper::track) has told their sizes.
    #[default]
    Keep,
    /// They are deleted, as DeepSpeed does: everything in `zero_stage_3/<dtype>params/rank<N>`. The
    /// optimizer's folder is never emptied.
    Fresh,
}

/// The settings of a [`Swapper`](super::Swapper).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SwapperOptions {
    /// DeepSpeed's `nvme_path`: the swapper's folders are made in `zero_stage_3` below it.
    pub folder: PathBuf,
    /// Element type of parameters.
    pub dtype: Dtype,
    /// The global rank, part of the folders' names.
    pub rank: u32,
    /// What to do with files that are there.
    pub start: Start,
    /// Bytes of buffers for partitions, rounded up to whole blocks; 1 GiB by default. One or two MiB (two
    /// blocks, if these are larger) come on top, for what must move while all buffers are held.
    pub pool_size: u64,
    /// Bytes of a buffer and of the largest transfer, a power of two from 64 KiB to 16 MiB; 1 MiB by default.
    pub block_size: u64,
    /// Transfers in flight per aio thread.
    pub queue_depth: u32,
    /// Aio threads, DeepSpeed's `intra_op_parallelism`. Files are multiples of 1024 bytes for each, as in
    /// DeepSpeed: a folder is read with the number it was written with.
    pub thread_count: u32,
    /// One system call per transfer.
    pub single_submit: bool,
    /// Keep the queue topped up while completions are reaped.
    pub overlap_events: bool,
    /// Lock the pool in memory; a refusal is a warning in the log.
    pub pin_memory: bool,
}

impl SwapperOptions {
    /// The defaults: DeepSpeed's for aio, float16, rank 0, files kept.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        let aio = AioSettings::default();
        Self {
            folder: folder.into(),
            dtype: Dtype::Float16,
            rank: 0,
            start: Start::Keep,
            pool_size: 1 << 30,
            block_size: 1 << 20,
            queue_depth: aio.queue_depth,
            thread_count: aio.thread_count,
            single_submit: aio.single_submit,
            overlap_events: aio.overlap_events,
            pin_memory: true,
        }
    }

    /// As [`SwapperOptions::new`], with what a configuration says of the pool and of aio: `pool_size`, `block_size`,
    /// `queue_depth`, `thread_count`, `single_submit`, `overlap_events` and `pin_memory`. A DeepSpeed
    /// configuration's own folder is [`Config::nvme_path`]; its element type is to be told, as to DeepSpeed.
    #[must_use]
    pub fn from_config(folder: impl Into<PathBuf>, config: &Config) -> Self {
        Self {
            pool_size: config.pool_size,
            block_size: config.block_size,
            queue_depth: config.queue_depth,
            thread_count: config.thread_count,
            single_submit: config.single_submit,
            overlap_events: config.overlap_events,
            pin_memory: config.pin_memory,
            ..Self::new(folder)
        }
    }

    /// Bytes that files are multiples of.
    pub(super) fn aligned_bytes(&self) -> u64 {
        ALIGNED_BYTES * u64::from(self.thread_count)
    }

    pub(super) fn check(&self) -> Result<()> {
        let checks = [
            (
                "block_size",
                self.block_size,
                self.block_size.is_power_of_two()
                    && (BLOCK_SIZE_MIN..=BLOCK_SIZE_MAX).contains(&self.block_size),
                "a power of two from 64 KiB to 16 MiB",
            ),
            (
                "pool_size",
                self.pool_size,
                self.pool_size > 0 && self.pool_size <= 1 << 46,
                "1 byte to 64 TiB",
            ),
            (
                "queue_depth",
                self.queue_depth.into(),
                (1..=AioSettings::QUEUE_DEPTH_MAX).contains(&self.queue_depth),
                "1 to 4096",
            ),
            (
                "thread_count",
                self.thread_count.into(),
                (1..=AioSettings::THREAD_COUNT_MAX).contains(&self.thread_count),
                "1 to 64",
            ),
        ];
        match checks.into_iter().find(|check| !check.2) {
            Some((name, value, _, accepted)) => Err(SwapError::Option { name, value, accepted }),
            None => Ok(()),
        }
    }

    /// What the engine is to be like, its pool with what keeps requests moving.
    pub(super) fn engine_options(&self) -> EngineOptions {
        let moving = crate::engine::buffers_moving(self.block_size) as u64;
        EngineOptions {
            pool_size: self.pool_size.next_multiple_of(self.block_size) + moving * self.block_size,
            block_size: self.block_size,
            read_ahead: u64::from(self.queue_depth) * self.block_size,
            open_swap_in: OpenSwapIn::None,
            // What is in the pool is held, and so has whole buffers anyhow.
            min_swap_size: 0,
            linger: LINGER,
            writeback_batch: (self.queue_depth * self.thread_count) as usize,
            idle_partitions_max: IDLE_PARTITIONS_MAX,
            intakes: 0,
        }
    }
}

/// Makes the folder, tells it apart from other swappers', and empties it if that was chosen. The lock lasts
/// as long as what is returned.
pub(super) fn take_folder(path: &Path, start: Start) -> Result<OwnedFd> {
    let failed = |operation, path: &Path, errno| SwapError::File {
        operation,
        path: path.to_path_buf(),
        errno,
    };
    std::fs::create_dir_all(path).map_err(|error| failed("mkdir", path, errno_of(&error)))?;
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::RDONLY;
    let folder = uninterrupted(|| rustix::fs::open(path, flags, Mode::empty()))
        .map_err(|errno| failed("open", path, errno))?;
    let lock = || rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive);
    let start_of_wait = Instant::now();
    loop {
        match uninterrupted(lock) {
            Ok(()) => break,
            // The last transfers of a process that was killed hold it a moment longer.
            Err(Errno::EWOULDBLOCK) if start_of_wait.elapsed() < GRACE => {
                std::thread::sleep(RETRY);
            }
            Err(Errno::EWOULDBLOCK) => return Err(SwapError::FolderInUse(path.to_path_buf())),
            Err(errno) => return Err(failed("lock", path, errno)),
        }
    }
    if start == Start::Fresh {
        let entries =
            std::fs::read_dir(path).map_err(|error| failed("read", path, errno_of(&error)))?;
        for entry in entries {
            let entry = entry.map_err(|error| failed("read", path, errno_of(&error)))?;
            let at = entry.path();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let removed =
                if is_folder { std::fs::remove_dir_all(&at) } else { std::fs::remove_file(&at) };
            removed.map_err(|error| failed("remove", &at, errno_of(&error)))?;
        }
    }
    Ok(folder)
}

/// What ends with the last of a swapper and its views: the right to the folder, and the engine where it is the
/// swapper's own. Views may change partitions until they are dropped, and nothing of that may be lost.
#[derive(Debug)]
pub(super) struct Ending {
    own: Option<Own>,
    /// Locked.
    _folder: OwnedFd,
}

#[derive(Debug)]
struct Own {
    engine: Arc<Engine>,
    /// Where names were made, innermost first.
    folders: Vec<PathBuf>,
}

impl Ending {
    pub(super) fn of_own(engine: Arc<Engine>, folder: OwnedFd, layout: &Layout) -> Ending {
        let within = |path: &Path| path.ancestors().take(4).map(Path::to_path_buf).collect();
        let mut folders: Vec<PathBuf> = within(&layout.optimizer);
        folders.extend(within(&layout.params));
        folders.sort_by_key(|path| std::cmp::Reverse(path.components().count()));
        folders.dedup();
        Ending { own: Some(Own { engine, folders }), _folder: folder }
    }

    pub(super) fn of_others(folder: OwnedFd) -> Ending {
        Ending { own: None, _folder: folder }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let Some(Own { engine, folders }) = &self.own else { return };
        let (sender, receiver) = crossbeam_channel::bounded(1);
        engine.sync_all(Box::new(move |failed| {
            // The receiver waits below.
            let _ = sender.send(failed);
        }));
        let unanswered = || vec!["everything: the engine did not answer".to_owned()];
        for failed in receiver.recv().unwrap_or_else(|_| unanswered()) {
            log::error!("not written when its swapper was dropped: {failed}");
        }
        engine.stop();
        for folder in folders {
            // Syncing a file does not promise its name.
            match std::fs::File::open(folder).and_then(|folder| folder.sync_all()) {
                // The optimizer's is made with its first file.
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    log::error!("names in {} may be lost: {error}", folder.display());
                }
                _ => {}
            }
        }
    }
}

/// An engine for a folder, as the daemon has one.
pub(super) fn start_engine(options: &SwapperOptions, folder: &OwnedFd) -> Result<Arc<Engine>> {
    let path = || options.folder.clone();
    let found = probe(folder.as_fd()).map_err(|errno| SwapError::File {
        operation: "probe",
        path: path(),
        errno,
    })?;
    if !found.direct {
        log::warn!("{}: no O_DIRECT there, transfers use its page cache", path().display());
    }
    let settings = AioSettings {
        queue_depth: options.queue_depth,
        thread_count: options.thread_count,
        single_submit: options.single_submit,
        overlap_events: options.overlap_events,
        stripe: options.block_size,
        engine: AioEngine::Auto,
    };
    let open = |arena: &Arc<Arena>| {
        let kept = [folder.as_fd()];
        let opened = open_device(&settings, arena, found.alignment(), found.direct, &kept);
        let (device, fallback) = opened?;
        if let Some(why) = fallback {
            log::warn!("io_uring is not available, transfers go through threads: {why}");
        }
        Ok(device)
    };
    let built =
        Engine::build(options.engine_options(), found.alignment(), options.pin_memory, open);
    built.map_err(|failure| match failure {
        BuildError::Pool(source) => {
            SwapError::Start { what: "the buffer pool (pool_size)", source }
        }
        BuildError::Device(source) => SwapError::Start { what: "aio", source },
    })
}

/// Opens a partition's file, for transfers past the page cache where the engine's device does that; with
/// `create`, makes it and its folder.
pub(super) fn open_file(engine: &Arc<Engine>, path: &Path, create: bool) -> Result<(Open, u64)> {
    let failed = |operation, errno| SwapError::File { operation, path: path.to_path_buf(), errno };
    if create && let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|error| failed("mkdir", errno_of(&error)))?;
    }
    let direct = if engine.device_geometry().direct { OFlags::DIRECT } else { OFlags::empty() };
    let created = if create { OFlags::CREATE } else { OFlags::empty() };
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW | direct | created;
    let file = uninterrupted(|| rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR))
        .map_err(|errno| failed("open", errno))?;
    let status = rustix::fs::fstat(&file).map_err(|error| failed("stat", errno(error)))?;
    // As the mount's tree tells files apart; 0 where the filesystem has no handles.
    let generation = crate::sys::name_to_handle_at(&file).map_or(0, |handle| handle.hash());
    let key = FileKey { dev: status.st_dev, ino: status.st_ino, generation };
    let handle = engine
        .open(key, false, true, || Ok(Arc::new(DiskFile::new(file)?)))
        .map_err(|errno| failed("open", errno))?;
    let open = Open { engine: engine.clone(), handle, key, path: path.to_path_buf() };
    let on_disk = status.st_size.cast_unsigned();
    let size = match engine.info(key) {
        // Somebody else's bytes may not have gone out yet.
        Some(info) if info.resident > 0 => info.size,
        // Somebody may have cut it while the engine remembered it.
        Some(info) => info.size.min(on_disk),
        None => on_disk,
    };
    Ok((open, size))
}
