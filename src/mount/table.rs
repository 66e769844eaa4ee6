//! The kernel's table of mounts, `/proc/self/mountinfo`.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::FS_TYPE;

/// One line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// The kernel's number of this mount.
    pub id: u64,
    /// `st_dev` of the files on it.
    pub device: u64,
    /// Where it is mounted.
    pub mountpoint: PathBuf,
    /// The filesystem's type, `fuse.swapfs` for ours.
    pub fs_type: String,
    /// The source: for ours `fsname`, or the swap folder.
    pub source: PathBuf,
    /// The user who mounted it, where the filesystem says so, as FUSE does.
    pub owner: Option<u32>,
}

/// The mounts of swapfs that this process sees, oldest first.
pub fn swapfs_mounts() -> io::Result<Vec<MountEntry>> {
    let mut mounts = parse_mount_table(&std::fs::read("/proc/self/mountinfo")?);
    mounts.retain(|mount| mount.fs_type == FS_TYPE);
    Ok(mounts)
}

/// What is mounted below a mountpoint, and keeps it busy; oldest first.
#[must_use]
pub fn mounts_below(mountpoint: &Path) -> Vec<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    let below = |path: &PathBuf| path != mountpoint && path.starts_with(mountpoint);
    parse_mount_table(&table).into_iter().map(|mount| mount.mountpoint).filter(below).collect()
}

/// The swapfs mount that `path` lies on, `None` when it lies on another filesystem. The path may be a
/// dead mount.
pub fn entry_of_path(path: &Path) -> io::Result<Option<MountEntry>> {
    let mounts = swapfs_mounts()?;
    match std::fs::metadata(path) {
        Ok(metadata) => {
            let device = metadata.dev();
            Ok(mounts.into_iter().rfind(|mount| mount.device == device))
        }
        Err(error) if super::is_dead(&error) => {
            let path = super::absolute(path);
            Ok(mounts.into_iter().rfind(|mount| path.starts_with(&mount.mountpoint)))
        }
        Err(error) => Err(error),
    }
}

/// Reads the table's text; lines that are not understood are skipped.
#[must_use]
pub fn parse_mount_table(text: &[u8]) -> Vec<MountEntry> {
    text.split(|byte| *byte == b'\n').filter_map(parse_line).collect()
}

/// `ID PARENT MAJOR:MINOR ROOT MOUNTPOINT OPTIONS [TAG…] - TYPE SOURCE SUPEROPTIONS`
fn parse_line(line: &[u8]) -> Option<MountEntry> {
    let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
    let (major, minor) = std::str::from_utf8(fields.get(2)?).ok()?.split_once(':')?;
    let tags_end = 6 + fields.get(6..)?.iter().position(|field| *field == b"-")?;
    Some(MountEntry {
        id: std::str::from_utf8(fields[0]).ok()?.parse().ok()?,
        device: rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?),
        mountpoint: unescape(fields[4]),
        fs_type: String::from_utf8_lossy(fields.get(tags_end + 1)?).into_owned(),
        source: unescape(fields.get(tags_end + 2)?),
        owner: fields.get(tags_end + 3).and_then(|options| owner(options)),
    })
}

/// The first `user_id` of a mount's own options: FUSE writes it before anything that a user has chosen.
fn owner(options: &[u8]) -> Option<u32> {
    let mut options = options.split(|byte| *byte == b',');
    let id = options.find_map(|option| option.strip_prefix(b"user_id="))?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// Takes off the octal escapes (`\040` for a space) of the table's names.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).filter(|_| *first == b'\\').and_then(octal);
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &tail[3..] } else { tail };
    }
    PathBuf::from(OsString::from_vec(bytes))
}

fn octal(digits: &[u8]) -> Option<u8> {
    u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_octal_escapes_are_read() {
        let text = b"36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue\n\
            60 36 0:52 / /mnt/a\\040b\\011c\\134d\\012e rw shared:7 master:2 - fuse.swapfs /swap\\040folder rw\n\
            61 36 0:53 / /mnt/plain rw - fuse.swapfs x\\y rw\n\
            nonsense\n";
        let mounts = parse_mount_table(text);
        assert_eq!(mounts.len(), 3);
        assert_eq!(mounts[0].fs_type, "ext3");
        assert_eq!(mounts[0].id, 36);
        assert_eq!(mounts[0].device, rustix::fs::makedev(98, 0));
        assert_eq!(mounts[1].mountpoint, Path::new("/mnt/a b\tc\\d\ne"));
        assert_eq!(mounts[1].source, Path::new("/swap folder"));
        assert_eq!(mounts[1].fs_type, FS_TYPE);
        assert_eq!(mounts[2].source, Path::new("x\\y"), "a backslash alone is one");
    }

    #[test]
    fn a_path_on_another_filesystem_is_on_no_swapfs_mount() {
        assert_eq!(entry_of_path(Path::new("/proc")).unwrap(), None);
        assert!(entry_of_path(Path::new("/nonexistent")).is_err());
    }
}
