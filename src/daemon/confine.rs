//! Shutting the daemon in: what it still sees, may and calls is what serving this mount takes.

use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use super::SwapFolder;
use crate::config::{Config, Sandbox};
use crate::machine;
use crate::mount::parse_mount_table;
use crate::sandbox::{self, Shown, Source};
use crate::sys_process::reason;

/// Devices that the daemon opens while it serves.
const DEVICES: [&str; 2] = ["/dev/fuse", "/dev/null"];

/// Ports below this one take a capability.
const FREE_PORTS: u16 = 1024;

/// Gives up what belongs to the one thread that there is yet: before any other is started, after the mount was made.
///
/// # Errors
/// The swap folder cannot be opened any more.
pub(super) fn confine(
    config: &Config, swap: &mut SwapFolder, mountpoint: &Path,
) -> Result<(), String> {
    keep_capabilities();
    if let Err(errno) = crate::sys::obey_quotas() {
        log::warn!("quotas and reserved blocks are not obeyed: {}", errno.desc());
    }
    if config.sandbox == Sandbox::None {
        log::warn!("sandbox=none: the daemon keeps all rights that it was started with");
        return Ok(());
    }
    machine::remember();
    let mut refused = Vec::new();
    let mut note = |what: &str, why: String| refused.push(format!("{what} ({why})"));
    match enter_namespace(config, swap, mountpoint) {
        Ok(()) => {
            sandbox::entered();
            swap.open_anew()?;
        }
        Err(why) => note("the sight of other files", why),
    }
    if let Err(error) = sandbox::give_up_capabilities(kept(config)) {
        note("capabilities", reason(&error));
    }
    if let Err(error) = sandbox::give_up_new_privileges() {
        note("new privileges", reason(&error));
    }
    // A user's daemon sees what the user sees: nothing is missing there.
    let is_root = rustix::process::geteuid().is_root();
    let level = if is_root { log::Level::Warn } else { log::Level::Info };
    if !refused.is_empty() {
        log::log!(level, "the daemon could not give up {}", refused.join(", "));
    }
    Ok(())
}

/// Refuses the system calls that serving does not take, once all threads are there.
pub(super) fn filter_calls(config: &Config) {
    if config.sandbox == Sandbox::Full
        && let Err(why) = sandbox::filter_calls()
    {
        log::warn!("the daemon could not give up system calls ({why})");
    }
}

/// Lets the daemon of root create files in the callers' names and still pass every permission check;
/// the kernel has checked theirs. Threads started from here on inherit it.
fn keep_capabilities() {
    if rustix::process::geteuid().is_root()
        && let Err(errno) = crate::sys::keep_capabilities()
    {
        log::warn!("creating files for other users may fail: securebits: {}", errno.desc());
    }
}

fn kept(config: &Config) -> CapabilitySet {
    let mut kept = sandbox::SERVING;
    if config.metrics_listen.is_some_and(|address| (1..FREE_PORTS).contains(&address.port())) {
        kept |= sandbox::LOW_PORTS;
    }
    kept
}

fn enter_namespace(config: &Config, swap: &SwapFolder, mountpoint: &Path) -> Result<(), String> {
    // Whoever enters a container, as its hooks do, enters the namespace of its first process.
    if std::process::id() == 1 {
        return Err("as the first process of a container, whose commands share it".to_owned());
    }
    let may = rustix::thread::capabilities(None).map_err(|errno| errno.to_string())?;
    if !may.effective.contains(CapabilitySet::SYS_ADMIN) {
        return Err("that takes CAP_SYS_ADMIN".to_owned());
    }
    let mut paths: Vec<PathBuf> = DEVICES.iter().map(PathBuf::from).collect();
    if config.keep_awake {
        paths.push(crate::fuse::CPU_LATENCY_REQUESTS.into());
    }
    // The daemon replaces that file, and so needs its folder.
    paths.extend(config.metrics_file.as_deref().and_then(|file| file.parent()).map(Into::into));
    // The service manager's socket; one without a path is in no filesystem.
    let socket = std::env::var_os("NOTIFY_SOCKET").map(PathBuf::from);
    paths.extend(socket.filter(|path| path.is_absolute()));
    // Nothing on the mount: nobody answers there yet.
    paths.retain(|path| !path.starts_with(mountpoint) && path.exists());
    let same = paths.into_iter().map(|at| Shown { at, source: Source::SameName });
    let mut shown: Vec<_> = same.collect();
    let folder = Source::Folder(swap.folder());
    shown.push(Shown { at: swap.path().to_owned(), source: folder });
    for at in mounts_below(swap.path()) {
        shown.push(Shown { at, source: Source::Nothing });
    }
    if let Some((at, folder)) = swap.locks_folder() {
        shown.push(Shown { at, source: Source::Folder(folder) });
    }
    sandbox::enter_namespace(&shown).map_err(|error| reason(&error))
}

/// Folders that something is mounted on below the swap folder. Names that lead to another filesystem are refused, and what
/// is beneath would be seen else.
fn mounts_below(swap_folder: &Path) -> Vec<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let places = parse_mount_table(&table).into_iter().map(|mount| mount.mountpoint);
    let is_below = |place: &PathBuf| place != swap_folder && place.starts_with(swap_folder);
    places.filter(is_below).collect()
}
