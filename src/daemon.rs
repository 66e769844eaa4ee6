//! The daemon's life: lock the swap folder, mount, say that it answers, serve, and on a signal put
//! everything on stable storage, unmount and go.
//!
//! What is mounted comes from a [`Factory`]; nothing here knows about partitions.
#![doc = include_str!("daemon/DESIGN.md")]

mod confine;
mod folder;
mod logger;
mod manager;
mod nested;
mod outside;
mod process;
mod report;
mod session;
mod stats;
mod unmounter;

pub(crate) use logger::TO_THE_USER;

pub use folder::{DaemonState, Phase, SwapFolder, read_state};
pub use manager::stop_time;
pub use process::DaemonProcess;
pub use stats::MountStats;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::MsFlags;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::ForkResult;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::memory::{FirstVictim, Room};
use crate::mount::{self, Detach, MountCall};
use crate::streams::tell;
use crate::sys_process;
use manager::Manager;
use report::Reporter;
use unmounter::Unmounter;

/// The mounted filesystem, as the daemon sees it.
pub trait Service: Send + Sync {
    /// Runs the FUSE session until it ends; called once, on a thread of its own. An unmount is a
    /// success, whoever did it.
    fn serve(self: Arc<Self>) -> io::Result<()>;

    /// Puts everything on stable storage; the error names the partitions that are not. May be called
    /// while the session runs.
    fn synchronize(&self) -> Result<(), Vec<String>>;

    /// Called when the session has ended: puts the rest on stable storage and stops. The error names
    /// the partitions that are not stored.
    fn finish(&self) -> Result<(), Vec<String>>;

    /// Whether the swap folder's device has not answered for so long that it is not to be waited for: what
    /// is under way will not end, and neither will the session by itself.
    fn is_stuck(&self) -> bool {
        false
    }

    /// The number of this session in the swap folder's records; `None` where there are none.
    fn session(&self) -> Option<u32> {
        None
    }
}

/// Makes the [`Service`] of a mount.
pub trait Factory {
    /// Starts serving `swap` through the session `fuse`, which is mounted at `mountpoint` already.
    /// The error is one line for the user.
    fn start(
        &self, config: &Config, swap: &SwapFolder, mountpoint: &Path, fuse: OwnedFd,
    ) -> Result<Arc<dyn Service>, String>;

    /// Largest READ request in bytes to ask the kernel for, when it is to be limited.
    fn max_read(&self, _config: &Config) -> Option<u32> {
        None
    }
}

/// What to mount where.
#[derive(Debug, Clone)]
pub struct MountRequest {
    /// The backing directory; may equal the mountpoint.
    pub swap_folder: PathBuf,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// The checked configuration.
    pub config: Config,
    /// Clear a dead mount at the mountpoint first.
    pub replace: bool,
    /// How long to wait for the folder's last daemon when that is only finishing.
    pub timeout: Duration,
}

/// Mounts and serves. In the foreground this returns when the mount is gone; otherwise when it
/// answers, while a child process serves it. The error is one line for the user.
///
/// # Panics
/// When not in the foreground and the process has more than one thread.
pub fn run(request: &MountRequest, factory: &dyn Factory, foreground: bool) -> Result<(), String> {
    let request = resolve(request)?;
    for note in surprises(&request) {
        tell!("{note}");
    }
    if foreground {
        return start(&request, factory, Reporter::Terminal);
    }
    let (reader, writer) =
        io::pipe().map_err(|error| format!("pipe: {}", sys_process::reason(&error)))?;
    let forked = sys_process::fork_single_threaded()
        .map_err(|error| format!("fork: {}", sys_process::reason(&error)))?;
    match forked {
        ForkResult::Parent { child } => {
            drop(writer);
            let result = report::wait_until_ready(reader, child);
            if matches!(result, Err(report::StartFailure::Died(_))) {
                clear_dead_mount(&request.mountpoint);
            }
            result.map_err(|failure| failure.to_string())
        }
        ForkResult::Child => {
            drop(reader);
            let reporter = Reporter::to_parent(writer);
            let failed = start(&request, factory, reporter).is_err();
            std::process::exit(i32::from(failed));
        }
    }
}

/// What works, and may not be what was meant.
fn surprises(request: &MountRequest) -> Vec<String> {
    let MountRequest { swap_folder, mountpoint, .. } = request;
    let mut notes = Vec::new();
    // Mounted over itself, the folder shows the same.
    let has_entries =
        std::fs::read_dir(mountpoint).is_ok_and(|mut entries| entries.next().is_some());
    if has_entries && mountpoint != swap_folder {
        let shown = crate::paths::plain(mountpoint);
        notes.push(format!("{shown} is not empty: what is in it is hidden while this is mounted"));
    }
    if sys_process::is_on_tmpfs(swap_folder) {
        let shown = crate::paths::plain(swap_folder);
        notes.push(format!(
            "swap folder {shown} is on tmpfs, which is memory itself: nothing leaves it, and all is lost at the next \
             boot; use a folder on a drive"
        ));
    }
    notes
}

/// Makes the paths absolute and refuses what can never work.
fn resolve(request: &MountRequest) -> Result<MountRequest, String> {
    let mountpoint = mount::check_mountpoint(&request.mountpoint, request.replace)?;
    let shown = request.swap_folder.display();
    let swap_folder = std::fs::canonicalize(&request.swap_folder).map_err(|error| {
        let mend = match error.kind() {
            io::ErrorKind::NotFound => {
                format!("; create it: mkdir -p {}", sys_process::quoted(&request.swap_folder))
            }
            _ => String::new(),
        };
        format!("swap folder {shown}: {}{mend}", sys_process::reason(&error))
    })?;
    folder::refuse_mounted(&swap_folder)?;
    refuse_second_mount(&mountpoint, &swap_folder)?;
    nested::refuse_mountpoint(&mountpoint, &swap_folder)?;
    nested::refuse_nested(&swap_folder)?;
    Ok(MountRequest { swap_folder, mountpoint, ..request.clone() })
}

/// Refuses a mountpoint that a swapfs mount has already.
fn refuse_second_mount(mountpoint: &Path, swap_folder: &Path) -> Result<(), String> {
    let mounts = mount::swapfs_mounts().unwrap_or_default();
    let Some(entry) = mounts.into_iter().rfind(|mount| mount.mountpoint == mountpoint) else {
        return Ok(());
    };
    if let Some(holder) = read_state(swap_folder).filter(|state| state.mountpoint == mountpoint) {
        return Err(folder::in_use_line(swap_folder, Some(&holder)));
    }
    let (shown, folder) = (mountpoint.display(), entry.source.display());
    Err(format!("{shown} is a swapfs mount already (of {folder}); unmount it first"))
}

/// Takes away the mount of a daemon that died while starting.
fn clear_dead_mount(mountpoint: &Path) {
    let dead = mount::probe(mountpoint).is_err_and(|error| mount::is_dead(&error));
    if dead && let Err(error) = mount::unmount(mountpoint, Detach::Lazily) {
        log::warn!("{}: {error}", mountpoint.display());
    }
}

/// The daemon itself, from the lock to the exit.
fn start(
    request: &MountRequest, factory: &dyn Factory, mut reporter: Reporter,
) -> Result<(), String> {
    let result = lock_and_serve(request, factory, &mut reporter);
    if let Err(line) = &result {
        reporter.failed(line);
    }
    logger::finish();
    result
}

fn lock_and_serve(
    request: &MountRequest, factory: &dyn Factory, reporter: &mut Reporter,
) -> Result<(), String> {
    prepare_process();
    let unmounter = Unmounter::start(&request.mountpoint)
        .map_err(|error| format!("fork: {}", sys_process::reason(&error)))?;
    let mut swap = SwapFolder::lock(
        &request.swap_folder,
        &request.mountpoint,
        request.timeout,
        &mut |line| reporter.note(line),
    )?;
    logger::start(&request.config.log, &swap, reporter.is_terminal())?;
    if let Err(error) = sys_process::set_io_flusher() {
        log::debug!("PR_SET_IO_FLUSHER: {}", sys_process::reason(&error));
    }
    // Here, because the folder's last daemon, which was waited for, has given its memory back.
    let room = Room::look(request.config.pool_size);
    room.refuse_too_large(request.config.pool_size_min())?;
    // From before /proc is out of sight until the pool has its memory.
    let first_victim = FirstVictim::offer();
    let signals = block_signals().map_err(|errno| format!("signals: {}", errno.desc()))?;
    let device_before = std::fs::metadata(&request.mountpoint)
        .map_err(|error| {
            format!("{}: {}", request.mountpoint.display(), sys_process::reason(&error))
        })?
        .dev();
    let fuse = mount_folder(request, factory)?;
    let started = confine::confine(&request.config, &mut swap, &request.mountpoint)
        .and_then(|()| logger::start_writer(Some(&swap)))
        .and_then(|()| factory.start(&request.config, &swap, &request.mountpoint, fuse));
    drop(first_victim);
    let service = match started {
        Ok(service) => service,
        Err(line) => {
            if let Err(error) = unmounter.detach() {
                log::warn!("{}: {error}", request.mountpoint.display());
            }
            return Err(line);
        }
    };
    if let Some(number) = service.session()
        && let Err(error) = unmounter.note_end(&swap, number)
    {
        log::debug!(".swapfs/ended: {}", sys_process::reason(&error));
    }
    let manager = Manager::new(reporter.is_terminal(), request.config.pool_size);
    let shell = session::Shell { unmounter, signals, manager, device_before };
    session::Session::new(service, &mut swap, request, shell).run(reporter)
}

fn mount_folder(request: &MountRequest, factory: &dyn Factory) -> Result<OwnedFd, String> {
    let config = &request.config;
    let mut flags = config.mount.flags;
    flags.set(MsFlags::MS_RDONLY, config.ro);
    let source = match &config.mount.fsname {
        Some(name) => name.as_ref(),
        None => request.swap_folder.as_os_str(),
    };
    mount::mount(&MountCall {
        source,
        mountpoint: &request.mountpoint,
        flags,
        allow_other: config.allow_other,
        max_read: factory.max_read(config),
    })
}

/// What a daemon sets about itself before anything else.
fn prepare_process() {
    // Modes come from the requests, already masked by their callers.
    rustix::process::umask(rustix::fs::Mode::empty());
    // The working directory would keep a filesystem busy, perhaps the very mountpoint.
    if let Err(error) = std::env::set_current_dir("/") {
        log::debug!("chdir /: {error}");
    }
    sys_process::return_freed_memory();
    // A core file would have clients' bytes in it, the whole pool.
    let most = getrlimit(Resource::Nofile).maximum;
    for (name, resource, limit) in
        [("RLIMIT_CORE", Resource::Core, Some(0)), ("RLIMIT_NOFILE", Resource::Nofile, most)]
    {
        let limit = Rlimit { current: limit, maximum: limit };
        if let Err(error) = setrlimit(resource, limit) {
            log::debug!("{name}: {}", sys_process::reason(&error.into()));
        }
    }
}

/// Blocks the signals that end the daemon, before threads inherit the mask.
fn block_signals() -> nix::Result<SigSet> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    Ok(signals)
}
