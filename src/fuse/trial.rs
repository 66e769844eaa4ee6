//! A trial mount: tells whether mounting works, and what the kernel offers.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Config, Filesystem, InitFlags, KernelConfig, Request, Session, SessionACL};
use nix::mount::MsFlags;
use parking_lot::Mutex;

use super::session::WANTED;
use crate::mount::{self, Detach, MountCall, UnmountError};
use crate::sys_process::reason;
use crate::trust::private_folder;

/// Where the trial's folder is made when that is not possible in the user's temporary folder.
const PLACES: [&str; 2] = ["/dev/shm", "/var/tmp"];

/// What the kernel offers in its first request (FUSE_INIT).
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Major and minor number of the FUSE protocol.
    pub protocol: (u32, u32),
    /// FUSE_ASYNC_DIO.
    pub async_direct_io: bool,
    /// FUSE_DIRECT_IO_ALLOW_MMAP: shared mappings of files that bypass the page cache.
    pub direct_mmap: bool,
    /// FUSE_MAX_PAGES: requests of more than 128 KiB.
    pub max_pages: bool,
    /// FUSE_PASSTHROUGH.
    pub passthrough: bool,
    /// FUSE_OVER_IO_URING.
    pub io_uring: bool,
    /// Abilities that swapfs asks for and this kernel has not, and what is lost without them.
    pub missing: Vec<(String, &'static str)>,
}

/// Mounts an empty filesystem in a private temporary folder, sends it a request, unmounts it and removes the folder.
/// Blocks for a few milliseconds.
///
/// # Errors
/// One line that says why mounting does not work.
pub fn try_mount(allow_other: bool) -> Result<Offer, String> {
    let folder = PrivateFolder::make()?;
    let fuse = mount::mount(&MountCall {
        source: OsStr::new("swapfs-check"),
        mountpoint: &folder.path,
        flags: MsFlags::MS_NOSUID | MsFlags::MS_NODEV,
        allow_other,
        max_read: None,
    })?;
    let offer = Arc::new(Mutex::new(Offer::default()));
    let failed = |error: &io::Error| format!("FUSE session: {}", reason(error));
    let listener = Listener { offer: Arc::clone(&offer) };
    let session = Session::from_fd(listener, fuse, SessionACL::All, Config::default())
        .map_err(|error| failed(&error))?;
    let serving = std::thread::Builder::new()
        .name("swapfs-trial".to_owned())
        .spawn(move || session.run())
        .map_err(|error| failed(&error))?;
    let answered = mount::probe(&folder.path);
    // This ends the session.
    let unmounted = folder.unmount();
    if unmounted.is_ok() {
        let _ = serving.join();
    }
    answered.map_err(|error| format!("the mount does not answer: {}", reason(&error)))?;
    unmounted.map_err(|error| format!("cannot unmount {}: {error}", folder.path.display()))?;
    let offer = offer.lock().clone();
    Ok(offer)
}

/// A filesystem without files that remembers what the kernel offers.
struct Listener {
    offer: Arc<Mutex<Offer>>,
}

impl Filesystem for Listener {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let offered = config.capabilities();
        let missing = WANTED.iter().filter(|(flag, _)| !offered.contains(*flag));
        let version = config.kernel_abi();
        *self.offer.lock() = Offer {
            protocol: (version.0, version.1),
            async_direct_io: offered.contains(InitFlags::FUSE_ASYNC_DIO),
            direct_mmap: offered.contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP),
            max_pages: offered.contains(InitFlags::FUSE_MAX_PAGES),
            passthrough: offered.contains(InitFlags::FUSE_PASSTHROUGH),
            io_uring: offered.contains(InitFlags::FUSE_OVER_IO_URING),
            missing: missing.map(|(flag, loss)| (format!("{flag:?}"), *loss)).collect(),
        };
        Ok(())
    }
}

/// A folder that nobody else may enter. Dropped, it is unmounted and removed.
struct PrivateFolder {
    path: PathBuf,
}

impl PrivateFolder {
    fn make() -> Result<Self, String> {
        let chosen = std::env::temp_dir();
        let places = std::iter::once(chosen.as_path()).chain(PLACES.iter().map(Path::new));
        let made = private_folder(places, "swapfs-check-");
        made.map(|path| Self { path }).map_err(|error| reason(&error))
    }

    fn unmount(&self) -> Result<(), UnmountError> {
        mount::unmount(&self.path, Detach::Lazily)
    }
}

impl Drop for PrivateFolder {
    fn drop(&mut self) {
        // Done even after a failed mount: a helper that was killed may have mounted all the same.
        let _ = self.unmount();
        if let Err(error) = std::fs::remove_dir(&self.path) {
            log::warn!("{}: {}", self.path.display(), reason(&error));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_works_and_leaves_nothing() {
        let offer = try_mount(false).expect("the tests need /dev/fuse and the right to mount");
        println!("{offer:?}");
        assert!(offer.protocol >= (7, 23));
        let mounts = mount::swapfs_mounts().unwrap();
        assert!(mounts.iter().all(|mount| mount.source != Path::new("swapfs-check")));
    }
}
