//! The block device below a folder, and the limits of its queue.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rustix::fs::{major, minor};

use super::{Finding, number, setting};
use crate::config::Config;
use crate::mount::MountEntry;
use crate::units::{KIB, format_short};

/// Bytes of the sectors that `size` counts.
const SECTOR_BYTES: u64 = 512;

/// What the kernel says about a disk.
struct Disk {
    name: String,
    /// Its folder in /sys.
    path: PathBuf,
}

pub(super) fn look(
    folder: &File, entry: Option<&MountEntry>, config: &Config, tell: &mut dyn FnMut(Finding),
) {
    match Disk::below(folder, entry) {
        Some(disk) => {
            tell(disk.kind());
            tell(disk.queue(config));
        }
        None => tell(Finding::ok("device", "no block device of this machine")),
    }
}

impl Disk {
    fn below(folder: &File, entry: Option<&MountEntry>) -> Option<Self> {
        let device = folder.metadata().ok()?.dev();
        let device = match major(device) {
            // A number of the filesystem's own, as with btrfs; the source says more.
            0 => {
                let source = entry.map(|entry| &entry.source)?;
                std::fs::metadata(source).ok().filter(|_| source.starts_with("/dev"))?.rdev()
            }
            _ => device,
        };
        Self::at(&format!("/sys/dev/block/{}:{}", major(device), minor(device)))
    }

    fn at(link: &str) -> Option<Self> {
        let mut path = std::fs::canonicalize(link).ok()?;
        // A partition has no queue; its disk does.
        if path.join("partition").exists() {
            path.pop();
        }
        let name = path.file_name()?.to_string_lossy().into_owned();
        Some(Self { name, path })
    }

    fn setting(&self, name: &str) -> Option<String> {
        setting(self.path.join(name)).filter(|text| !text.is_empty())
    }

    fn number(&self, name: &str) -> Option<u64> {
        number(self.path.join(name))
    }

    fn kind(&self) -> Finding {
        let name = &self.name;
        let mut found = name.clone();
        if let Some(model) = self.setting("device/model") {
            found.push_str(&format!(", {model}"));
        }
        if let Some(sectors) = self.number("size") {
            found.push_str(&format!(", {}", format_short(sectors * SECTOR_BYTES)));
        }
        let slaves: Vec<String> = std::fs::read_dir(self.path.join("slaves"))
            .into_iter()
            .flatten()
            .flatten()
            .map(|slave| slave.file_name().to_string_lossy().into_owned())
            .collect();
        if !slaves.is_empty() {
            found.push_str(&format!(" on {}", slaves.join(", ")));
        }
        let finding = if self.number("queue/rotational") == Some(1) {
            Finding::slow(
                "device",
                format!("{found}; reports itself as a spinning disk"),
                format!(
                    "use an NVMe drive; if this is one: echo 0 > /sys/block/{name}/queue/rotational \
                     (as root)"
                ),
            )
        } else if self.setting("loop/dio").as_deref() == Some("0") {
            Finding::slow(
                "device",
                format!("{found}; a loop device through the page cache of its file"),
                format!("losetup --direct-io=on /dev/{name} (as root)"),
            )
        } else {
            Finding::ok("device", found)
        };
        finding.value("name", self.name.as_str())
    }

    fn queue(&self, config: &Config) -> Finding {
        let item = "device-queue";
        let name = &self.name;
        let limit = |name: &str| self.number(&format!("queue/{name}"));
        let largest = limit("max_sectors_kb").unwrap_or(0) * KIB;
        let hardware = limit("max_hw_sectors_kb").unwrap_or(0) * KIB;
        let scheduler = self.setting("queue/scheduler").unwrap_or_default();
        let (logical, physical) =
            (limit("logical_block_size").unwrap_or(0), limit("physical_block_size").unwrap_or(0));
        let (segments, requests) =
            (limit("max_segments").unwrap_or(0), limit("nr_requests").unwrap_or(0));
        let found = format!(
            "{} per request in {segments} segments, {requests} requests, sectors of {logical} \
             ({physical} physical), scheduler {}",
            format_short(largest),
            active(&scheduler),
        );
        // The largest that helps: a block moves in one request.
        let wanted = config.block_size.min(hardware);
        let finding = if largest < wanted {
            let mend =
                format!("echo {} > /sys/block/{name}/queue/max_sectors_kb (as root)", wanted / KIB);
            let block = format_short(config.block_size);
            Finding::slow(item, format!("{found}; a block of {block} is cut into several"), mend)
        } else if active(&scheduler) == "bfq" {
            let mend = format!("echo none > /sys/block/{name}/queue/scheduler (as root)");
            Finding::slow(item, format!("{found}, which costs time per request"), mend)
        } else {
            Finding::ok(item, found)
        };
        finding
            .value("max_request_bytes", largest)
            .value("max_segments", segments)
            .value("requests", requests)
            .value("logical_block_size", logical)
            .value("physical_block_size", physical)
            .value("scheduler", active(&scheduler))
    }
}

/// The scheduler in brackets.
fn active(schedulers: &str) -> &str {
    let inside = schedulers.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    inside.map_or("none", |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheduler_in_force_is_found() {
        assert_eq!(active("none [mq-deadline] kyber bfq"), "mq-deadline");
        assert_eq!(active("[none] mq-deadline"), "none");
        assert_eq!(active(""), "none");
    }

    #[test]
    fn a_partition_is_its_disk() {
        let sys = tempfile::tempdir().unwrap();
        let partition = sys.path().join("sda/sda1");
        std::fs::create_dir_all(sys.path().join("sda/queue")).unwrap();
        std::fs::create_dir_all(&partition).unwrap();
        std::fs::write(partition.join("partition"), "1\n").unwrap();
        std::fs::write(sys.path().join("sda/queue/max_sectors_kb"), "128\n").unwrap();
        std::fs::write(sys.path().join("sda/queue/max_hw_sectors_kb"), "2048\n").unwrap();
        let disk = Disk::at(partition.to_str().unwrap()).unwrap();
        assert_eq!(disk.name, "sda");
        let queue = disk.queue(&Config::default());
        assert_eq!(
            queue.mend.as_deref(),
            Some("echo 1024 > /sys/block/sda/queue/max_sectors_kb (as root)")
        );
    }
}
