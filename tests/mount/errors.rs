//! What is refused, and what a full disk comes to.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, umount2};
use rustix::io::Errno;
use tempfile::TempDir;

use crate::bytes::open;
use crate::place::{Mount, is_done};
use crate::support::{
    MIB, errno, is_pattern, is_root, pattern, set_xattr, sync_all, wait_until, write_pattern,
};

/// A filesystem of 64 MiB.
pub(crate) struct SmallDisk {
    pub(crate) at: PathBuf,
    folder: TempDir,
}

impl SmallDisk {
    fn folder() -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let at = folder.path().join("disk");
        fs::create_dir(&at).unwrap();
        (folder, at)
    }

    pub(crate) fn in_memory() -> Self {
        let (folder, at) = Self::folder();
        let (none, flags) = (None::<&str>, MsFlags::empty());
        nix::mount::mount(none, &at, Some("tmpfs"), flags, Some("size=64m")).unwrap();
        Self { at, folder }
    }

    /// On a loop device.
    pub(crate) fn ext4() -> Self {
        Self::ext4_made_with(&["-m", "0"])
    }

    /// The same with arguments of one's own for mkfs.
    pub(crate) fn ext4_made_with(more: &[&str]) -> Self {
        Self::on_loop(64 * MIB, "mkfs.ext4", &[&["-q", "-F"], more].concat())
    }

    /// XFS, whose files can share blocks; it takes no less than 300 MiB.
    pub(crate) fn xfs() -> Self {
        Self::on_loop(320 * MIB, "mkfs.xfs", &["-q", "-m", "reflink=1"])
    }

    fn on_loop(bytes: u64, mkfs: &str, arguments: &[&str]) -> Self {
        let (folder, at) = Self::folder();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(bytes).unwrap();
        done(Command::new(mkfs).args(arguments).arg(&image));
        done(Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at));
        Self { at, folder }
    }

    /// What its loop device is on.
    pub(crate) fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }
}

fn done(command: &mut Command) {
    match command.output() {
        Ok(output) => assert!(output.status.success(), "{command:?}: {output:?}"),
        Err(error) => panic!("{command:?}: {error}"),
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        if umount2(&self.at, MntFlags::empty()).is_err() {
            let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        }
    }
}

/// Fills the disk and returns how much was taken.
fn fill(file: &File) -> u64 {
    let mut at = 0;
    loop {
        let bytes = pattern(at, 700_001);
        match file.write_at(&bytes, at) {
            Ok(count) => at += count as u64,
            Err(error) => {
                assert_eq!(Errno::from_io_error(&error), Some(Errno::NOSPC));
                return at;
            }
        }
        assert!(at < 64 * MIB, "more was taken than there is room for");
    }
}

fn fill_up(disk: &SmallDisk) {
    let mount = Mount::within(&disk.at, "pool_size=16m");
    let (path, backing) = (mount.at("full"), mount.backing("full"));
    fs::write(mount.at("before"), pattern(0, 10_000)).unwrap();
    let file = open(&path);
    let taken = fill(&file);
    assert!(taken > 40 * MIB, "only {taken} bytes were taken");
    // What was taken is kept, here and in the swap folder.
    is_pattern(&path, taken);
    file.sync_all().unwrap();
    is_pattern(&backing, taken);
    // Bytes that have their space already can be rewritten.
    file.write_all_at(&pattern(5000, 100_000), 5000).unwrap();
    file.sync_all().unwrap();
    is_pattern(&backing, taken);
    let mut other = File::create(mount.at("other")).unwrap();
    let refused = (0..100).find_map(|_| other.write_all(&[1; 1 << 20]).err());
    assert_eq!(errno(Err::<(), _>(refused.unwrap())), Errno::NOSPC);
    drop(other);
    is_pattern(&mount.at("before"), 10_000);
    fs::remove_file(mount.at("other")).unwrap();
    drop(file);
    fs::remove_file(&path).unwrap();
    wait_until("space", || rustix::fs::statvfs(&mount.mnt).unwrap().f_bavail * 4096 > 45 * MIB);
    let file = open(&path);
    write_pattern(&file, 40 * MIB, 1 << 20);
    file.sync_all().unwrap();
    is_pattern(&backing, 40 * MIB);
    drop(file);
    mount.unmount();
}

/// "ENOSPC comes from here, at once": nothing that was acknowledged is lost on a full disk.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_full_disk_refuses_the_write_itself() {
    fill_up(&SmallDisk::ext4());
}

/// The same in memory.
#[test]
fn a_full_tmpfs_refuses_the_write_itself() {
    if is_root() {
        fill_up(&SmallDisk::in_memory());
    }
}

/// "unless the swap folder's filesystem has no O_DIRECT: then … `user.swap.direct` reads `0`".
#[test]
fn a_swap_folder_in_memory_works() {
    let memory = Path::new("/dev/shm");
    if !memory.is_dir() {
        eprintln!("left out: no /dev/shm");
        return;
    }
    let mount = Mount::within(memory, "pool_size=8m");
    let path = mount.at("file");
    write_pattern(&open(&path), 20 * MIB + 3, 100_001);
    is_pattern(&path, 20 * MIB + 3);
    sync_all(&mount.mnt);
    is_pattern(&mount.backing("file"), 20 * MIB + 3);
    let flags = rustix::fs::OFlags::DIRECT | rustix::fs::OFlags::CLOEXEC;
    let direct = rustix::fs::open(mount.backing("file"), flags, rustix::fs::Mode::empty()).is_ok();
    let expected = if direct { "1" } else { "0" };
    assert_eq!(crate::support::swap_xattr(&path, "direct"), expected);
    assert_eq!(mount.log().contains("no O_DIRECT"), !direct, "{}", mount.log());
    mount.unmount();
    is_pattern(&mount.backing("file"), 20 * MIB + 3);
}

/// "`ro`": everything can be read and nothing changed.
#[test]
fn a_read_only_mount_changes_nothing() {
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    write_pattern(&open(&mount.backing("file")), 3 * MIB, 1 << 20);
    fs::create_dir(mount.backing("dir")).unwrap();
    is_done(&mount.mount("ro,pool_size=8m"));
    let path = mount.at("file");
    is_pattern(&path, 3 * MIB);
    assert_eq!(errno(File::options().write(true).open(&path)), Errno::ROFS);
    assert_eq!(errno(File::create(mount.at("new"))), Errno::ROFS);
    assert_eq!(errno(fs::create_dir(mount.at("new"))), Errno::ROFS);
    assert_eq!(errno(fs::remove_file(&path)), Errno::ROFS);
    assert_eq!(errno(fs::remove_dir(mount.at("dir"))), Errno::ROFS);
    assert_eq!(errno(fs::rename(&path, mount.at("dir/x"))), Errno::ROFS);
    assert_eq!(set_xattr(&path, "user.foo", b"x"), Err(Errno::ROFS));
    assert_eq!(crate::support::swap_xattr(&path, "size"), (3 * MIB).to_string());
    mount.unmount();
    is_pattern(&mount.backing("file"), 3 * MIB);
}

/// Descriptors say what they may be used for.
#[test]
fn a_handle_does_what_it_was_opened_for() {
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    fs::write(&path, "x").unwrap();
    assert_eq!(errno(File::open(&path).unwrap().write_at(b"y", 0)), Errno::BADF);
    let writer = File::options().write(true).open(&path).unwrap();
    assert_eq!(errno(writer.read_at(&mut [0], 0)), Errno::BADF);
    assert_eq!(errno(File::open(mount.at("missing"))), Errno::NOENT);
    assert_eq!(errno(fs::read_dir(&path)), Errno::NOTDIR);
    assert_eq!(errno(File::open(path.join("below"))), Errno::NOTDIR);
    assert_eq!(errno(File::options().write(true).open(&mount.mnt)), Errno::ISDIR);
    assert_eq!(errno(writer.write_at(b"x", i64::MAX as u64 - 1)), Errno::FBIG);
}
