//! Puts a mount together from its configuration: arena, device, engine, tree, FUSE session.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::OFlags;

use crate::aio::device::Device;
use crate::aio::null::{NullDevice, NullOptions};
use crate::aio::probe::{Probe, create, probe};
use crate::aio::{AioSettings, Engine as AioEngine, open_device};
use crate::config::{self, Config};
use crate::daemon::{Factory, Service, SwapFolder, TO_THE_USER};
use crate::engine::{BuildError, Engine, EngineOptions, OpenSwapIn};
use crate::fs::{Options, Tree};
use crate::fuse::{Serving, serve};
use crate::ledger::{Checked, Checksum, Ledger};
use crate::metrics::{Listener, Recorder, Wear, write_textfile};
use crate::pool::Arena;
use crate::shares::descriptor_limit;
use crate::sys_process::reason;
use crate::units::format_exact;
use crate::volume::{Volume, VolumeOptions};

/// How long a partly filled block waits for more before it is written out.
const LINGER: Duration = Duration::from_secs(1);

/// Partitions that stay known after their last close, however many descriptors there are: with one block
/// each they take about 1.5 KiB of memory that is not the pool's.
const IDLE_PARTITIONS_MAX: usize = 4096;

/// The part of all descriptors that names may keep, and that of partitions which nobody has open, two for each. Half
/// of all is for what users have open ([`Bounds`](crate::shares::Bounds)), the rest for root and the daemon itself.
const NAMES_PART: usize = 8;
/// See [`NAMES_PART`].
const IDLE_PART: usize = 12;

/// How often the metrics file is written anew, and what was written to the device recorded.
const RECORD_PERIOD: Duration = Duration::from_secs(15);
/// How often somebody who waits for the device looks whether it still answers.
const PATIENCE_TICK: Duration = Duration::from_millis(200);

/// How long a start is silent.
const PATIENCE_AT_START: Duration = Duration::from_secs(2);

/// Makes real mounts.
#[derive(Debug, Clone, Copy)]
pub struct SwapFactory;

/// Makes mounts that move nothing to or from their swap folder, to measure FUSE and the pool alone. Names and
/// space are the folder's; bytes that leave the pool are lost, and what is read then is anything.
#[derive(Debug, Clone, Copy)]
pub struct NullFactory;

struct SwapService {
    volume: Arc<Volume>,
    /// See [`Service::is_stuck`]; zero for never.
    stall_timeout: Duration,
    serving: Mutex<Option<Serving>>,
    /// Ends with the session.
    publishing: Mutex<Option<Publishing>>,
}

/// What tells about the mount on its own account.
struct Publishing {
    _listener: Option<Listener>,
    recorder: Option<Recorder>,
    textfile: Option<PathBuf>,
}

impl Drop for Publishing {
    fn drop(&mut self) {
        // It writes for the last time.
        drop(self.recorder.take());
        // A file that nobody writes any more would be shown for ever.
        if let Some(path) = &self.textfile {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl Factory for SwapFactory {
    fn start(
        &self, config: &Config, swap: &SwapFolder, mountpoint: &Path, fuse: OwnedFd,
    ) -> Result<Arc<dyn Service>, String> {
        start(config, swap, mountpoint, fuse, open_aio, true)
    }
}

impl Factory for NullFactory {
    fn start(
        &self, config: &Config, swap: &SwapFolder, mountpoint: &Path, fuse: OwnedFd,
    ) -> Result<Arc<dyn Service>, String> {
        start(config, swap, mountpoint, fuse, open_null, false)
    }
}

/// The device that moves nothing.
pub(crate) fn open_null(
    _config: &Config, _arena: &Arc<Arena>, probe: &Probe, _kept: &[BorrowedFd<'_>],
) -> Result<Arc<dyn Device>, String> {
    let options = NullOptions { alignment: probe.alignment(), clear: false };
    let device = NullDevice::new(options);
    Ok(device.map_err(|error| format!("aio: {}", reason(&error)))?)
}

/// What opens the device of a mount; see [`open_device`] for the last parameter.
pub(crate) type Open =
    fn(&Config, &Arc<Arena>, &Probe, &[BorrowedFd<'_>]) -> Result<Arc<dyn Device>, String>;

fn start(
    config: &Config, swap: &SwapFolder, mountpoint: &Path, fuse: OwnedFd, open: Open, real: bool,
) -> Result<Arc<dyn Service>, String> {
    let folder = swap.path().display().to_string();
    let probe = probe(swap.folder())
        .map_err(|errno| format!("{folder}: cannot store files there: {}", errno.desc()))?;
    warn_of_limits(swap, &probe, &folder);
    // Where no file can be made, times are as fine as the clock.
    let measured = create(swap.folder(), OFlags::empty()).and_then(crate::file_clock::measure);
    if let Err(errno) = measured {
        log::debug!("how fine times are in {folder}: {errno}");
    }
    let ledger = if real { open_ledger(config, swap, &folder)? } else { None };
    let engine = start_engine(config, &probe, |config, arena, probe| {
        let device = open(config, arena, probe, &swap.locks())?;
        Ok(match &ledger {
            Some(ledger) => Arc::new(Checked::new(device, ledger.clone())),
            None => device,
        })
    })?;
    let stall_timeout = Duration::from_secs(config.stall_timeout.into());
    engine.watch_for_stalls(stall_timeout);
    let volume = make_volume(config, swap, mountpoint, &probe, engine, ledger)?;
    // What a device that moves nothing counts wears nothing out.
    if volume.engine.device_stats().engine != "null" {
        let control = swap.control().try_clone_to_owned();
        let control = control.map_err(|error| format!("{folder}/.swapfs: {}", reason(&error)))?;
        volume.set_wear(Wear::open(control));
    }
    let publishing = publish(config, mountpoint, &volume)?;
    let serving = serve(volume.clone(), fuse, config.fuse_threads as usize, config.keep_awake)
        .map_err(|error| format!("FUSE session: {}", reason(&error)))?;
    Ok(Arc::new(SwapService {
        volume,
        stall_timeout,
        serving: Mutex::new(Some(serving)),
        publishing: Mutex::new(Some(publishing)),
    }))
}

/// Starts what shows and records the metrics: the listener and the file that were asked for, and the record of
/// what was written.
fn publish(config: &Config, mountpoint: &Path, volume: &Arc<Volume>) -> Result<Publishing, String> {
    let listener = match config.metrics_listen {
        Some(address) => {
            let shown = volume.clone();
            let listener =
                Listener::start(address, move || shown.metrics(&[], shown.root_is_public()))
                    .map_err(|error| format!("metrics_listen {address}: {}", reason(&error)))?;
            log::info!("metrics at http://{}/metrics", listener.address());
            Some(listener)
        }
        None => None,
    };
    let mountpoint = mountpoint.to_string_lossy().into_owned();
    let (recorded, textfile) = (volume.clone(), config.metrics_file.clone());
    // Several mounts of a machine meet in node_exporter: there each one says which it is.
    let write = move |path: &Path| {
        let labels = [("mountpoint", mountpoint.as_str())];
        write_textfile(path, &recorded.metrics(&labels, recorded.root_is_public()))
    };
    if let Some(path) = &textfile {
        write(path)
            .map_err(|error| format!("metrics_file {}: {}", path.display(), reason(&error)))?;
    }
    let recorded = volume.clone();
    let (path, failed) = (textfile.clone(), AtomicBool::new(false));
    let recorder = Recorder::start(RECORD_PERIOD, move || {
        if let Some(wear) = recorded.wear() {
            wear.save();
        }
        if let Some(path) = &path
            && let Err(error) = write(path)
            && !failed.swap(true, Ordering::Relaxed)
        {
            log::warn!("metrics_file {}: {}", path.display(), reason(&error));
        }
    })
    .map_err(|error| format!("cannot start a thread: {}", reason(&error)))?;
    Ok(Publishing { _listener: listener, recorder: Some(recorder), textfile })
}

/// What is known of the folder's bytes; after a crash, this finds out what is whole.
fn open_ledger(
    config: &Config, swap: &SwapFolder, folder: &str,
) -> Result<Option<Arc<Ledger>>, String> {
    let checksum = match config.checksum {
        config::Checksum::Crc32c => Checksum::Crc32c,
        config::Checksum::Writes => Checksum::Writes,
        config::Checksum::None => Checksum::None,
    };
    match Ledger::open(swap.folder(), swap.control(), checksum, config.block_size, !config.ro) {
        // What is written now looks like others' doing to the next mount, and is read as it is.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            log::warn!("{folder} is full: no checksums and no record of interrupted writes");
            Ok(None)
        }
        opened => opened.map_err(|error| format!("{folder}/.swapfs: {}", reason(&error))),
    }
}

/// Says what the swap folder's filesystem cannot do.
fn warn_of_limits(swap: &SwapFolder, probe: &Probe, folder: &str) {
    if !probe.direct {
        log::warn!("{folder}: no O_DIRECT on this filesystem, transfers go through its page cache");
    }
    if let Some(why) = crate::aio::probe::unreservable(swap.folder()) {
        log::warn!("{folder}: {why}: a full disk may show only when data is written out");
    } else if crate::aio::probe::shares_blocks(swap.folder()) {
        log::info!(
            "{folder}: rewriting files that share blocks with others (cp --reflink) takes space that is not \
             reserved: for these, a full disk may show only when data is written out"
        );
    }
}

/// The engine of a mount, over the device that `open` gives.
pub(crate) fn start_engine(
    config: &Config, probe: &Probe,
    open: impl FnOnce(&Config, &Arc<Arena>, &Probe) -> Result<Arc<dyn Device>, String>,
) -> Result<Arc<Engine>, String> {
    let alignment = probe.alignment();
    let descriptors = descriptor_limit();
    let options = EngineOptions {
        pool_size: config.pool_size,
        block_size: config.block_size,
        read_ahead: config.read_ahead,
        open_swap_in: match config.open_swap_in {
            config::OpenSwapIn::None => OpenSwapIn::None,
            config::OpenSwapIn::Ahead => OpenSwapIn::Ahead,
            config::OpenSwapIn::All => OpenSwapIn::All,
        },
        linger: LINGER,
        writeback_batch: (config.queue_depth * config.thread_count) as usize,
        min_swap_size: config.min_swap_size,
        // Two descriptors each: the file, and that of its checksums.
        idle_partitions_max: (descriptors / IDLE_PART).min(IDLE_PARTITIONS_MAX),
        intakes: crate::fuse::intakes(config.block_size, config.fuse_threads as usize),
    };
    let filling = format!("filling the pool of {}", format_exact(config.pool_size));
    let tell = || log::info!(target: TO_THE_USER, "{filling}, which takes its time …");
    let build =
        || Engine::build(options, alignment, config.pin_memory, |arena| open(config, arena, probe));
    when_slow(PATIENCE_AT_START, tell, build).map_err(|failure| match failure {
        BuildError::Pool(error) => {
            format!("pool_size {}: {}", format_exact(config.pool_size), reason(&error))
        }
        BuildError::Device(text) => text,
    })
}

/// Does `work`; calls `tell` once when that takes longer than `patience`.
fn when_slow<T>(patience: Duration, tell: impl FnOnce() + Send, work: impl FnOnce() -> T) -> T {
    std::thread::scope(|scope| {
        let (done, waiting) = mpsc::channel::<()>();
        let teller = std::thread::Builder::new().name("swapfs-start".to_owned());
        // Without the thread it is done in silence.
        let _ = teller.spawn_scoped(scope, move || {
            if waiting.recv_timeout(patience) == Err(mpsc::RecvTimeoutError::Timeout) {
                tell();
            }
        });
        let worked = work();
        drop(done);
        worked
    })
}

/// The device of production.
fn open_aio(
    config: &Config, arena: &Arc<Arena>, probe: &Probe, kept: &[BorrowedFd<'_>],
) -> Result<Arc<dyn Device>, String> {
    let settings = AioSettings {
        queue_depth: config.queue_depth,
        thread_count: config.thread_count,
        single_submit: config.single_submit,
        overlap_events: config.overlap_events,
        stripe: config.block_size,
        engine: AioEngine::Auto,
    };
    let (device, fallback) = open_device(&settings, arena, probe.alignment(), probe.direct, kept)
        .map_err(|error| format!("aio: {}", reason(&error)))?;
    if let Some(why) = fallback {
        log::warn!("io_uring is not available, transfers go through threads: {why}");
    }
    Ok(device)
}

fn make_volume(
    config: &Config, swap: &SwapFolder, mountpoint: &Path, probe: &Probe, engine: Arc<Engine>,
    ledger: Option<Arc<Ledger>>,
) -> Result<Arc<Volume>, String> {
    let failed = |what: String| format!("{}: {what}", swap.path().display());
    let root =
        swap.folder().as_fd().try_clone_to_owned().map_err(|error| failed(reason(&error)))?;
    let descriptors_max = descriptor_limit() / NAMES_PART;
    let bounds = engine.bounds().clone();
    let tree = Tree::new(root, Options { descriptors_max, handles: true, bounds })
        .map_err(|errno| failed(errno.desc().to_owned()))?;
    let options = VolumeOptions {
        swap_folder: swap.path().to_path_buf(),
        mountpoint: mountpoint.to_path_buf(),
        direct: probe.direct,
        min_swap_size: config.min_swap_size,
        list_xattr: config.list_xattr,
        close_wait: config.close_wait,
        config: config.to_json(),
    };
    Ok(Volume::new(tree, engine, ledger, options))
}

impl SwapService {
    fn put_on_storage(&self) -> Result<(), Vec<String>> {
        let (sender, receiver) = mpsc::channel();
        self.volume.synchronize(Box::new(move |failed| {
            let _ = sender.send(failed);
        }));
        loop {
            match receiver.recv_timeout(PATIENCE_TICK) {
                Ok(failed) if failed.is_empty() => return Ok(()),
                Ok(failed) => return Err(failed),
                Err(mpsc::RecvTimeoutError::Timeout) if self.is_stuck() => {
                    return Err(self.given_up());
                }
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(vec!["the engine stopped before it had answered".to_owned()]);
                }
            }
        }
    }

    /// What is not stored because nothing answers.
    fn given_up(&self) -> Vec<String> {
        let seconds = self.stall_timeout.as_secs();
        let mut names = self.volume.engine.not_stored();
        if names.is_empty() {
            names.push(self.volume.swap_folder().display().to_string());
        }
        names.iter().map(|name| format!("{name}: no answer for {seconds} s")).collect()
    }
}

impl SwapService {
    /// Says that everything is recorded, unless something is not stored: then the next mount looks.
    fn end_ledger(&self, stored: bool) {
        let Some(ledger) = &self.volume.ledger else { return };
        if stored && let Err(error) = ledger.finish() {
            log::warn!(".swapfs: {}; the next mount will look at everything", reason(&error));
        }
    }
}

impl Service for SwapService {
    fn serve(self: Arc<Self>) -> io::Result<()> {
        let serving = self.serving.lock().take();
        match serving {
            Some(serving) => serving.run(),
            None => Err(io::Error::other("served already")),
        }
    }

    fn synchronize(&self) -> Result<(), Vec<String>> {
        self.put_on_storage()
    }

    fn finish(&self) -> Result<(), Vec<String>> {
        let result = self.put_on_storage();
        // Stopping waits for the transfers under way.
        if !self.is_stuck() {
            self.volume.engine.stop();
            self.end_ledger(result.is_ok());
        }
        drop(self.publishing.lock().take());
        result
    }

    fn is_stuck(&self) -> bool {
        let limit = self.stall_timeout;
        !limit.is_zero() && self.volume.engine.unanswered() >= limit
    }

    fn session(&self) -> Option<u32> {
        self.volume.ledger.as_ref().and_then(|ledger| ledger.session())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_slow_work_is_told_of() {
        let (told, heard) = mpsc::channel();
        let tell = || told.send(()).unwrap();
        assert_eq!(when_slow(Duration::ZERO, tell, || heard.recv()), Ok(()));
        let tell = || panic!("it was not slow");
        assert_eq!(when_slow(Duration::MAX, tell, || 7), 7);
    }
}
