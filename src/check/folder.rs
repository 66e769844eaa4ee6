//! A swap folder: there, writable, with room, and on a filesystem that transfers past the page cache.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use rustix::fs::{OFlags, fstatvfs};

use super::{Finding, Place, Verdict, device, speed};
use crate::aio::probe::{create, probe, unreservable};
use crate::config::Config;
use crate::daemon::{DaemonState, Phase, read_state};
use crate::error::errno_of;
use crate::mount::{MountEntry, entry_of_path, is_dead, parse_mount_table};
use crate::sys_process::{quoted, reason};
use crate::units::format_short;

/// Below this many free inodes a run may stop for want of names.
const INODES_MIN: u64 = 1024;

/// Filesystems that hold the bytes of other machines.
const NETWORK: [&str; 13] = [
    "nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "afs", "gfs2", "ocfs2",
    "beegfs", "gpfs",
];

/// Local filesystems that swapfs is at home on.
const LOCAL: [&str; 5] = ["ext4", "xfs", "f2fs", "ext3", "ext2"];

pub(super) fn look(
    place: &Place, config: &Config, speed_time: Duration, tell: &mut dyn FnMut(Finding),
) {
    let (path, found) = find(place);
    let works = found.verdict != Verdict::Fails;
    tell(found);
    if let Some(finding) = daemon_of(&path).and_then(|state| super::sandbox::of_daemon(state.pid)) {
        tell(finding);
    }
    let (true, Ok(folder)) = (works, File::open(&path)) else {
        return;
    };
    let entry = mount_of(&path);
    if let Some(entry) = &entry {
        tell(filesystem(entry, &folder));
    }
    let writable = writable(&path, place, &folder, entry.as_ref());
    let mut works = writable.verdict != Verdict::Fails;
    tell(writable);
    let room = match fstatvfs(&folder) {
        Ok(space) => {
            let room = space.f_bavail * space.f_frsize;
            for finding in [free_space(&path, room, config), inodes(space.f_files, space.f_favail)]
            {
                works &= finding.verdict != Verdict::Fails;
                tell(finding);
            }
            room
        }
        Err(_) => 0,
    };
    if works {
        tell(direct(&folder));
    }
    device::look(&folder, entry.as_ref(), config, tell);
    if works {
        tell(speed::look(&folder, room, config, speed_time));
    }
}

/// The folder to look at, and what is to be said about its being there.
fn find(place: &Place) -> (PathBuf, Finding) {
    let path = &place.path;
    let shown = quoted(path);
    let finding = match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_dir() => {
            Finding::fails("folder", "is not a directory", "name a directory")
        }
        Ok(_) => present(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound && place.made_by_mount => {
            let parent = path.ancestors().find(|parent| parent.is_dir()).unwrap_or(Path::new("/"));
            let found = format!("swapfs mount makes it; {} is tried", quoted(parent));
            return (parent.to_owned(), Finding::ok("folder", found));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Finding::fails("folder", reason(&error), format!("mkdir -p {shown}"))
        }
        Err(error) if is_dead(&error) => {
            let found = "a dead mount, its daemon is gone";
            Finding::fails("folder", found, format!("umount -l {shown}"))
        }
        Err(error) => Finding::fails("folder", reason(&error), access_mend(path, path)),
    };
    (path.clone(), finding)
}

fn present(path: &Path) -> Finding {
    if let Ok(Some(entry)) = entry_of_path(path) {
        let mountpoint = quoted(&entry.mountpoint);
        return Finding::fails(
            "folder",
            format!("lies on a swapfs mount itself ({mountpoint})"),
            format!("check the folder beneath: {}", quoted(&entry.source)),
        );
    }
    match daemon_of(path) {
        Some(state) => {
            let (pid, mountpoint) = (state.pid, quoted(&state.mountpoint));
            Finding::slow(
                "folder",
                format!(
                    "in use by swapfs pid {pid} (mounted at {mountpoint}); its speed is shared"
                ),
                format!("swapfs umount {mountpoint}"),
            )
        }
        None => Finding::ok("folder", "there"),
    }
}

/// The daemon that has the folder.
fn daemon_of(path: &Path) -> Option<DaemonState> {
    let running = |pid: i32| Path::new(&format!("/proc/{pid}")).exists();
    read_state(path).filter(|state| state.state != Phase::Finished && running(state.pid))
}

/// The mount that a path lies on.
fn mount_of(path: &Path) -> Option<MountEntry> {
    let path = std::fs::canonicalize(path).ok()?;
    let table = parse_mount_table(&std::fs::read("/proc/self/mountinfo").ok()?);
    let above = table.into_iter().filter(|entry| path.starts_with(&entry.mountpoint));
    // Of several at one place, the last covers the others.
    above.max_by_key(|entry| entry.mountpoint.as_os_str().len())
}

fn filesystem(entry: &MountEntry, folder: &File) -> Finding {
    let item = "filesystem";
    let kind = entry.fs_type.as_str();
    let local = "use a folder on a local NVMe drive with ext4 or xfs";
    let finding = match kind {
        "overlay" => Finding::slow(
            item,
            "overlay, the container's own layer",
            "give the container a folder of the host: docker run -v /nvme/swap:/swap",
        ),
        "tmpfs" | "ramfs" => Finding::slow(item, format!("{kind}, which is memory itself"), local),
        _ if NETWORK.contains(&kind) => {
            Finding::slow(item, format!("{kind}, on the network"), local)
        }
        _ if kind.starts_with("fuse") || kind == "virtiofs" => {
            Finding::slow(item, format!("{kind}, which another program serves"), local)
        }
        _ => match unreservable(folder.as_fd()) {
            Some(why) => {
                let found =
                    format!("{kind}: {why}: a full disk may show only when data is written");
                Finding::slow(item, found, "use ext4 or xfs")
            }
            None if LOCAL.contains(&kind) => Finding::ok(item, kind),
            None => Finding::ok(item, format!("{kind}, which swapfs is not tested on")),
        },
    };
    finding.value("type", kind)
}

fn writable(path: &Path, place: &Place, folder: &File, entry: Option<&MountEntry>) -> Finding {
    let item = "write-permission";
    let errno = match create(folder.as_fd(), OFlags::empty()) {
        Ok(_) => return Finding::ok(item, "files can be made"),
        Err(errno) => Errno::from_raw(errno.raw_os_error()),
    };
    let mend = match errno {
        Errno::EROFS => {
            let mountpoint = entry.map_or(path, |entry| entry.mountpoint.as_path());
            format!("mount -o remount,rw {} (as root)", quoted(mountpoint))
        }
        Errno::ENOSPC | Errno::EDQUOT => format!("make room: df -hi {}", quoted(path)),
        Errno::EACCES | Errno::EPERM if !is_root_owner(path) => access_mend(path, &place.path),
        _ => "use a folder on a local NVMe drive with ext4 or xfs".to_owned(),
    };
    Finding::fails(item, errno.desc(), mend)
}

/// Whether root itself is refused: then no owner or mode is to blame.
fn is_root_owner(path: &Path) -> bool {
    let uid = rustix::process::geteuid();
    uid.is_root() && std::fs::metadata(path).is_ok_and(|metadata| metadata.uid() == 0)
}

/// Who may, where this user may not. `wanted` is the folder that was asked for, `path` the one tried.
fn access_mend(path: &Path, wanted: &Path) -> String {
    let uid = rustix::process::geteuid();
    let owner = std::fs::metadata(path).map_or(u32::MAX, |metadata| metadata.uid());
    match owner == uid.as_raw() && path == wanted {
        true => format!("chmod u+rwx {}", quoted(path)),
        false => {
            let own = if path == wanted { path.join("swap") } else { wanted.to_owned() };
            let own = quoted(&own);
            format!("use a folder of your own, made so by root: install -d -o {uid} {own}")
        }
    }
}

fn free_space(path: &Path, room: u64, config: &Config) -> Finding {
    let item = "free-space";
    let found = format!("{} free", format_short(room));
    let mend = format!("make room, or use a larger filesystem: df -h {}", quoted(path));
    let pool = format_short(config.pool_size);
    let finding = match room {
        room if room < config.block_size => Finding::fails(item, found, mend),
        room if room < config.pool_size => {
            Finding::slow(item, format!("{found}, less than the pool holds ({pool})"), mend)
        }
        _ => Finding::ok(item, found),
    };
    finding.value("bytes", room)
}

fn inodes(all: u64, free: u64) -> Finding {
    let item = "inodes";
    let found = format!("{free} free");
    let mend = "remove files that are not needed: each partition takes an inode";
    let finding = match free {
        _ if all == 0 => Finding::ok(item, "as many as there is room for"),
        0 => Finding::fails(item, found, mend),
        free if free < INODES_MIN => Finding::slow(item, found, mend),
        _ => Finding::ok(item, found),
    };
    finding.value("free", free)
}

fn direct(folder: &File) -> Finding {
    let item = "direct-io";
    match probe(folder.as_fd()) {
        Ok(found) if found.direct => {
            let (memory, offset) = (found.memory_alignment, found.offset_alignment);
            let source = if found.stated { "stated and tried" } else { "tried" };
            let found = format!(
                "O_DIRECT, memory aligned to {memory} bytes, offset and length to {offset} ({source})"
            );
            Finding::ok(item, found)
                .value("memory_alignment", memory)
                .value("offset_alignment", offset)
        }
        Ok(_) => Finding::slow(
            item,
            "no O_DIRECT here: transfers go through the page cache",
            "use ext4 (not with data=journal) or xfs on a local disk",
        ),
        Err(errno) => Finding::fails(item, errno.desc(), "look for errors: dmesg | tail"),
    }
}

/// Whether an error means that there is no room.
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(errno_of(error), Errno::ENOSPC | Errno::EDQUOT)
}
