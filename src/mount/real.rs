//! Asking a mount: only one that really is a mount of swapfs, of root or of whoever asks, is believed.
//!
//! Anybody may make a folder with `.swapfs/stats.json` in it, and with fusermount3 a mount of any subtype. The kernel's
//! table of mounts says what is mounted where and by whom; the files are opened below the mount without following links
//! and without waiting, and belong to that mount or are refused.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fcntl_setfl, fstat, open, openat2};

use super::table::{MountEntry, parse_mount_table};
use super::{FS_TYPE, absolute};
use crate::paths::plain;

/// Bytes of a control file that are read at most. The list of a million partitions is shorter.
const CONTROL_BYTES_MAX: u64 = 512 << 20;

/// Why a mount is not asked, or does not answer.
#[derive(Debug, thiserror::Error)]
pub enum Disbelief {
    /// No swapfs mount is at this path.
    #[error("{} is not a swapfs mountpoint", plain(.0))]
    NoMount(PathBuf),
    /// Another user mounted it.
    #[error("{} was mounted by user {user}: only mounts of root and of your own are asked", plain(.mountpoint))]
    Foreign {
        /// Where.
        mountpoint: PathBuf,
        /// By whom.
        user: u32,
    },
    /// The file is not of that mount.
    #[error("{}: .swapfs has no such file", plain(.0))]
    NoFile(PathBuf),
    /// The file is longer than any of swapfs.
    #[error("{}: .swapfs has a file that is longer than any of swapfs", plain(.0))]
    TooLong(PathBuf),
    /// The system's error.
    #[error("{}", crate::sys_process::reason(.0))]
    Io(#[from] io::Error),
}

/// Returns true when `user`'s files and mounts are believed: root's, and those of whoever asks.
fn is_believed(user: u32) -> bool {
    user == 0 || user == crate::trust::own_user()
}

impl MountEntry {
    /// Makes sure that the mount may be believed.
    ///
    /// # Errors
    /// [`Disbelief::NoMount`] for another filesystem, [`Disbelief::Foreign`] for another user's mount.
    pub fn check(&self) -> Result<(), Disbelief> {
        match self.owner {
            _ if self.fs_type != FS_TYPE => Err(Disbelief::NoMount(self.mountpoint.clone())),
            Some(user) if is_believed(user) => Ok(()),
            user => Err(Disbelief::Foreign {
                mountpoint: self.mountpoint.clone(),
                user: user.unwrap_or(u32::MAX),
            }),
        }
    }
}

/// The topmost mount at exactly this path, of these.
#[must_use]
pub fn topmost<'a>(mounts: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    mounts.iter().rfind(|mount| mount.mountpoint == path)
}

/// The swapfs mount at exactly this path, whoever mounted it. Asks no filesystem.
pub fn entry_at(path: &Path) -> Result<MountEntry, Disbelief> {
    let exact = absolute(path);
    let mounts = parse_mount_table(&std::fs::read("/proc/self/mountinfo")?);
    match topmost(&mounts, &exact) {
        Some(entry) if entry.fs_type == FS_TYPE => Ok(entry.clone()),
        _ => match std::fs::symlink_metadata(path) {
            Err(error) if !super::is_dead(&error) => Err(error.into()),
            _ => Err(Disbelief::NoMount(path.to_owned())),
        },
    }
}

/// Refuses a path on another user's swapfs mount before anything is asked there: it may never answer.
pub fn refuse_foreign(path: &Path) -> Result<(), Disbelief> {
    let Ok(path) = std::path::absolute(path) else { return Ok(()) };
    let mounts = parse_mount_table(&std::fs::read("/proc/self/mountinfo")?);
    let above = mounts.iter().filter(|mount| path.starts_with(&mount.mountpoint));
    // The last one of the longest.
    let nearest = above.max_by_key(|mount| mount.mountpoint.components().count());
    match nearest.filter(|mount| mount.fs_type == FS_TYPE).map(MountEntry::check) {
        Some(Err(refusal)) => Err(refusal),
        _ => Ok(()),
    }
}

/// Opens a file of the control folder of the mount at `mountpoint`.
pub fn open_control(mountpoint: &Path, name: &str) -> Result<File, Disbelief> {
    let entry = entry_at(mountpoint)?;
    entry.check()?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = |error: rustix::io::Errno| Disbelief::Io(error.into());
    let root = open(&entry.mountpoint, flags, Mode::empty()).map_err(failed)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV | ResolveFlags::BENEATH;
    let path = Path::new(super::CONTROL_NAME).join(name);
    let file = openat2(root, &path, flags, Mode::empty(), resolve).map_err(failed)?;
    if !is_of(&fstat(&file).map_err(failed)?, &entry) {
        return Err(Disbelief::NoFile(mountpoint.to_owned()));
    }
    fcntl_setfl(&file, OFlags::empty()).map_err(failed)?;
    Ok(file.into())
}

/// Returns true for a regular file on that mount, of a user who is believed.
fn is_of(status: &Stat, entry: &MountEntry) -> bool {
    FileType::from_raw_mode(status.st_mode) == FileType::RegularFile
        && status.st_dev == entry.device
        && is_believed(status.st_uid)
}

/// Reads a file of the control folder of the mount at `mountpoint`.
pub fn read_control(mountpoint: &Path, name: &str) -> Result<Vec<u8>, Disbelief> {
    let mut text = Vec::new();
    let file = open_control(mountpoint, name)?;
    file.take(CONTROL_BYTES_MAX + 1).read_to_end(&mut text)?;
    match text.len() as u64 > CONTROL_BYTES_MAX {
        true => Err(Disbelief::TooLong(mountpoint.to_owned())),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(lines: &[&str]) -> Vec<MountEntry> {
        parse_mount_table(lines.join("\n").as_bytes())
    }

    #[test]
    fn only_mounts_of_root_and_of_the_asker_are_believed() {
        let me = crate::trust::own_user();
        let line = |fs: &str, options: &str| {
            format!("36 35 0:52 / /mnt rw shared:1 - {fs} /swap {options}")
        };
        let check = |fs: &str, options: &str| table(&[&line(fs, options)])[0].check();
        check("fuse.swapfs", "rw,user_id=0,group_id=0").unwrap();
        check("fuse.swapfs", &format!("rw,user_id={me},group_id=9,allow_other")).unwrap();
        for options in ["rw,user_id=4711,group_id=0", "rw", "rw,user_id=x", "rw,xuser_id=0"] {
            let refusal = check("fuse.swapfs", options).unwrap_err();
            assert!(matches!(refusal, Disbelief::Foreign { .. }), "{options}");
        }
        assert!(matches!(check("fuse.other", "rw,user_id=0"), Err(Disbelief::NoMount(_))));
    }

    #[test]
    fn the_topmost_mount_counts() {
        let mounts = table(&[
            "36 35 0:52 / /mnt rw - fuse.swapfs /swap rw,user_id=0",
            "37 36 0:53 / /mnt rw - tmpfs none rw",
            "38 36 0:54 / /mnt/below rw - fuse.swapfs /swap rw,user_id=0",
        ]);
        assert_eq!(topmost(&mounts, Path::new("/mnt")).unwrap().fs_type, "tmpfs");
        assert!(topmost(&mounts, Path::new("/")).is_none());
    }

    #[test]
    fn a_plain_folder_is_never_asked() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join(".swapfs")).unwrap();
        std::fs::write(folder.path().join(".swapfs/stats.json"), "{}").unwrap();
        let refusal = read_control(folder.path(), "stats.json").unwrap_err();
        assert!(refusal.to_string().ends_with(" is not a swapfs mountpoint"), "{refusal}");
        let missing = read_control(&folder.path().join("missing"), "stats.json").unwrap_err();
        assert!(matches!(missing, Disbelief::Io(_)), "{missing}");
    }
}
