//! The names under which mount(8) and umount(8) call swapfs, with the arguments that they give.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{ArgAction, Parser};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::Failure;
use super::umount::{UMOUNT_TIMEOUT_S, UmountArgs};
use crate::config::Settings;
use crate::daemon::{self, Factory, MountRequest};
use crate::sys_process::reason;

/// Installed under both for `mount -t swapfs` and /etc/fstab: the second is what mount(8) looks for when it
/// has the type from the table of mounts.
pub(super) const MOUNT_NAMES: [&str; 2] = ["mount.swapfs", "mount.fuse.swapfs"];

/// Installed as `umount.fuse.swapfs` for umount(8).
pub(super) const UMOUNT_NAME: &str = "umount.fuse.swapfs";

/// Mount a swap folder, the way mount(8) asks for it.
#[derive(Debug, Parser)]
#[command(name = "mount.swapfs", version = crate::VERSION)]
pub struct MountHelper {
    /// The backing directory.
    pub swap_folder: PathBuf,
    /// Where to mount.
    pub mountpoint: PathBuf,
    /// Skip unknown options.
    #[arg(short)]
    pub sloppy: bool,
    /// Only check, do not mount.
    #[arg(short)]
    pub fake: bool,
    /// Accepted and ignored: there is no mtab to leave alone.
    #[arg(short)]
    pub no_mtab: bool,
    /// Say more; twice for everything.
    #[arg(short, action = ArgAction::Count)]
    pub verbose: u8,
    /// Mount options, with commas between.
    #[arg(short, value_name = "OPT,...", action = ArgAction::Append)]
    pub options: Vec<String>,
    /// Mount in this mount namespace: a process id, or a file such as /proc/PID/ns/mnt.
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub namespace: Option<PathBuf>,
    /// The filesystem type; ignored.
    #[arg(short = 't', value_name = "TYPE")]
    pub fs_type: Option<String>,
}

impl MountHelper {
    pub(super) fn run(self, factory: &dyn Factory) -> Result<(), Failure> {
        let mut settings = Settings::with_defaults()?;
        for list in &self.options {
            settings.mount_options(list, self.sloppy)?;
        }
        settings.raise_log(self.verbose);
        if let Some(namespace) = &self.namespace {
            enter(namespace)?;
        }
        let config = settings.build()?;
        super::config::warn(&config);
        let request = MountRequest {
            swap_folder: self.swap_folder,
            mountpoint: self.mountpoint,
            config,
            replace: false,
            timeout: Duration::from_secs(UMOUNT_TIMEOUT_S),
        };
        match self.fake {
            true => Ok(()),
            false => Ok(daemon::run(&request, factory, false)?),
        }
    }
}

/// Unmount, the way umount(8) asks for it.
#[derive(Debug, Parser)]
#[command(name = "umount.fuse.swapfs", version = crate::VERSION)]
pub struct UmountHelper {
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// Detach at once for new users.
    #[arg(short)]
    pub lazy: bool,
    /// Unmount although something cannot be stored: it is named, and lost.
    #[arg(short)]
    pub force: bool,
    /// Accepted and ignored.
    #[arg(short)]
    pub no_mtab: bool,
    /// Accepted and ignored.
    #[arg(short)]
    pub read_only: bool,
    /// Accepted and ignored.
    #[arg(short, action = ArgAction::Count)]
    pub verbose: u8,
    /// Unmount in this mount namespace: a process id, or a file such as /proc/PID/ns/mnt.
    #[arg(short = 'N', value_name = "NAMESPACE")]
    pub namespace: Option<PathBuf>,
    /// The filesystem type; ignored.
    #[arg(short = 't', value_name = "TYPE")]
    pub fs_type: Option<String>,
}

impl UmountHelper {
    pub(super) fn run(self) -> Result<(), Failure> {
        if let Some(namespace) = &self.namespace {
            enter(namespace)?;
        }
        let Self { mountpoint, force, lazy, .. } = self;
        UmountArgs { mountpoint, timeout: UMOUNT_TIMEOUT_S, force, lazy }.run()
    }
}

/// Goes into a mount namespace, with all that follows.
fn enter(namespace: &Path) -> Result<(), String> {
    let file = match namespace.to_str().map(str::parse::<u32>) {
        Some(Ok(pid)) => PathBuf::from(format!("/proc/{pid}/ns/mnt")),
        _ => namespace.to_owned(),
    };
    let failed = |error: io::Error| format!("-N {}: {}", file.display(), reason(&error));
    let opened = File::open(&file).map_err(failed)?;
    move_into_link_name_space(opened.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(|error| failed(error.into()))
}
