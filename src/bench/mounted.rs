//! A temporary mount of the benchmark's own.

use std::io;
use std::path::{Path, PathBuf};

use super::cleanup::{Cleanup, Made};
use super::settings::Settings;
use super::{BenchError, Result};
use crate::sys_process::reason;

/// A swap folder made in a folder of the benchmark's, mounted beside it; unmounted and gone when dropped.
#[derive(Debug)]
pub(super) struct OwnMount {
    pub(super) mountpoint: PathBuf,
    // In this order: the mount goes before its folder.
    _mount: Made,
    _folder: Made,
}

impl OwnMount {
    /// Mounts in `parent` with `command`, the name of a command of `settings.program`: `mount`, or the
    /// hidden `bench-null-mount`.
    pub(super) fn new(
        cleanup: &Cleanup, settings: &Settings, parent: &Path, command: &str,
    ) -> Result<Self> {
        let failed = |error: io::Error| {
            BenchError::Failed(format!("a mount in {}: {}", parent.display(), reason(&error)))
        };
        let parent = std::fs::canonicalize(parent).map_err(failed)?;
        let (place, folder) = cleanup.folder(&parent).map_err(failed)?;
        let (swap, mountpoint) = (place.join("swap"), place.join("mnt"));
        for path in [&swap, &mountpoint] {
            std::fs::create_dir(path).map_err(failed)?;
        }
        let options = mount_options(settings);
        let made = cleanup
            .mount(&settings.program, command, &swap, &mountpoint, &options)
            .map_err(failed)?;
        Ok(Self { mountpoint, _mount: made, _folder: folder })
    }
}

/// The benchmark's aio settings, then what the user said.
pub(super) fn mount_options(settings: &Settings) -> Vec<String> {
    let mut list = vec![
        format!("queue_depth={},thread_count={}", settings.queue_depth, settings.io_parallel),
        format!(
            "single_submit={},overlap_events={}",
            settings.single_submit, settings.overlap_events
        ),
    ];
    // A call may be smaller or larger than any block.
    if (64 << 10..=16 << 20).contains(&settings.block_size) {
        list.push(format!("block_size={}", settings.block_size));
    }
    list.extend(settings.mount_options.iter().cloned());
    list
}
