//! `swapfs mount`.

use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;

use super::{ConfigArgs, Failure, print};
use crate::daemon::{self, Factory, MountRequest};
use crate::paths::plain;
use crate::sys_process::{quoted, reason};

/// Arguments of `swapfs mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// The backing directory on NVMe; with MOUNTPOINT left out too, the nvme_path of the --config
    /// FILE is mounted over, or without one a folder of your own is used.
    #[arg(requires = "mountpoint")]
    pub swap_folder: Option<PathBuf>,
    /// Where to mount; may be the swap folder itself.
    pub mountpoint: Option<PathBuf>,
    /// Stay in the foreground and log to standard error.
    #[arg(short, long)]
    pub foreground: bool,
    /// Clear a dead mount at MOUNTPOINT first.
    #[arg(long)]
    pub replace: bool,
    /// Seconds to wait for the folder's last daemon when that is still finishing.
    #[arg(long, value_name = "S", default_value_t = 600, value_parser = super::whole::<u64>)]
    pub timeout: u64,
    /// The configuration's sources.
    #[command(flatten)]
    pub config: ConfigArgs,
}

impl MountArgs {
    pub(super) fn run(self, verbose: u8, factory: &dyn Factory) -> Result<(), Failure> {
        let config = self.config.settings(verbose)?.build()?;
        let mut lines = Vec::new();
        let (swap_folder, mountpoint) = match (self.swap_folder, self.mountpoint) {
            (Some(swap_folder), Some(mountpoint)) => (swap_folder, mountpoint),
            _ => {
                let (swap_folder, mountpoint) = match config.nvme_path()? {
                    Some(path) => over(path, self.config.config.as_deref())?,
                    None => default_paths()?,
                };
                let (from, to) = (plain(&swap_folder), plain(&mountpoint));
                match from == to {
                    true => lines.push(format!("swap folder and mountpoint: {to}")),
                    false => lines.push(format!("swap folder: {from}\nmountpoint: {to}")),
                }
                (swap_folder, mountpoint)
            }
        };
        super::config::warn(&config);
        lines.extend(config.pool_note());
        let request = MountRequest {
            swap_folder,
            mountpoint,
            config,
            replace: self.replace,
            timeout: Duration::from_secs(self.timeout),
        };
        // In the foreground the call lasts as long as the mount.
        let say = || lines.iter().try_for_each(|line| print(line));
        if self.foreground {
            say()?;
        }
        daemon::run(&request, factory, self.foreground)?;
        if self.foreground { Ok(()) } else { say() }
    }
}

/// The directory that DeepSpeed writes to is both, so that it goes on as before. `file` named it.
fn over(nvme_path: PathBuf, file: Option<&Path>) -> Result<(PathBuf, PathBuf), Failure> {
    let shown = nvme_path.display();
    if let Err(error) = std::fs::metadata(&nvme_path)
        && error.kind() == io::ErrorKind::NotFound
    {
        let file = file.unwrap_or(Path::new("--config")).display();
        return Err(Failure::Failed(format!(
            "{file}: the nvme_path {shown} does not exist; create it: mkdir -p {}",
            quoted(&nvme_path)
        )));
    }
    Ok((nvme_path.clone(), nvme_path))
}

/// The user's own swap folder and mountpoint, made when missing.
fn default_paths() -> Result<(PathBuf, PathBuf), Failure> {
    let (swap_folder, mountpoint) = default_places()?;
    create(&swap_folder)?;
    create(&mountpoint)?;
    Ok((swap_folder, mountpoint))
}

/// Where the user's own swap folder and mountpoint are, whether they exist or not.
pub(super) fn default_places() -> Result<(PathBuf, PathBuf), Failure> {
    if rustix::process::geteuid().is_root() {
        return Ok((PathBuf::from("/var/lib/swapfs/swap"), PathBuf::from("/mnt/swapfs")));
    }
    let home = std::env::home_dir()
        .filter(|home| home.is_absolute())
        .ok_or_else(|| "no home directory: give SWAP_FOLDER and MOUNTPOINT".to_owned())?;
    let data = std::env::var_os("XDG_DATA_HOME")
        .map(PathBuf::from)
        .filter(|data| data.is_absolute())
        .unwrap_or_else(|| home.join(".local/share"));
    Ok((data.join("swapfs/swap"), home.join("swapfs")))
}

fn create(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        // A dead mount, for one, exists; what is wrong with it is said later.
        _ => return Ok(()),
    }
    let created = DirBuilder::new().recursive(true).mode(0o700).create(path);
    created.map_err(|error| format!("cannot create {}: {}", path.display(), reason(&error)))
}
