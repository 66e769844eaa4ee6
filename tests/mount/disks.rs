//! Disks that fail, go away, or have no room: real filesystems on loop devices.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::process::Command;

use nix::mount::{MntFlags, umount2};
use rustix::io::Errno;

use crate::bytes::open;
use crate::errors::SmallDisk;
use crate::place::{Mount, swapfs};
use crate::support::{
    MIB, as_user, errno, is_pattern, pattern, same, swap_xattr, user, wait_until, write_pattern,
    xattr,
};

/// Fills a file until the disk is full; returns how much was taken.
fn fill(file: &File) -> u64 {
    let mut at = 0;
    loop {
        match file.write_at(&pattern(at, 1 << 20), at) {
            Ok(count) => at += count as u64,
            Err(error) => {
                assert_eq!(Errno::from_io_error(&error), Some(Errno::NOSPC), "at {at}");
                return at;
            }
        }
    }
}

/// Makes the device of a disk end after so many bytes: it fails what lies beyond. What is there stays.
fn resize_device(disk: &SmallDisk, bytes: u64) {
    let image = disk.image();
    File::options().write(true).open(&image).unwrap().set_len(bytes).unwrap();
    let listed = Command::new("losetup").args(["-n", "-O", "NAME", "-j"]).arg(&image).output();
    let device = String::from_utf8(listed.unwrap().stdout).unwrap();
    let done = Command::new("losetup").arg("--set-capacity").arg(device.trim()).status();
    assert!(done.unwrap().success());
}

/// "A failed write … stays in the pool, readable, and the next fsync tries it again": with a device that really
/// fails, and later does not.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn what_a_failing_device_refuses_is_kept_and_lands_later() {
    // Without a journal, a write that fails is no reason to become read-only.
    let disk = SmallDisk::ext4_made_with(&["-m", "0", "-O", "^has_journal"]);
    let mount = Mount::within(&disk.at, "pool_size=64m");
    let (path, backing) = (mount.at("file"), mount.backing("file"));
    fs::write(mount.at("before"), pattern(0, 100_000)).unwrap();
    File::open(&mount.mnt).unwrap().sync_all().unwrap();
    let file = open(&path);
    resize_device(&disk, 32 * MIB);
    // Accepted: the filesystem has the room, and does not know that its device has not.
    write_pattern(&file, 40 * MIB, 1 << 20);
    let refused = errno(file.sync_all());
    assert!([Errno::IO, Errno::NOSPC].contains(&refused), "{refused}");
    let name = swap_xattr(&path, "error");
    assert!(["EIO", "ENOSPC"].contains(&name.as_str()), "{name}");
    is_pattern(&path, 40 * MIB);
    is_pattern(&mount.at("before"), 100_000);
    assert!(swap_xattr(&path, "dirty").parse::<u64>().unwrap() > 0);
    let asked = swapfs(&["swap-out", "--wait", path.to_str().unwrap()]);
    assert_eq!(asked.status.code(), Some(1), "{asked:?}");
    resize_device(&disk, 64 * MIB);
    // What the kernel failed to write meanwhile of what the filesystem itself knows of the file, it tells once.
    file.sync_all().or_else(|_| file.sync_all()).unwrap();
    assert_eq!(xattr(&path, "user.swap.error"), Err(Errno::NODATA));
    is_pattern(&backing, 40 * MIB);
    drop(file);
    mount.unmount();
    is_pattern(&backing, 40 * MIB);
}

/// "A swap folder that goes read-only": what is there stays readable, nothing is taken that cannot be kept, and the
/// command that unmounts says what is lost.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_disk_that_turns_read_only_takes_nothing_and_says_so() {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, "pool_size=16m");
    let (path, kept) = (mount.at("file"), mount.at("kept"));
    let file = open(&path);
    write_pattern(&file, 3 * MIB, 1 << 20);
    fs::write(&kept, pattern(0, 50_000)).unwrap();
    File::open(&mount.mnt).unwrap().sync_all().unwrap();
    let aborted = Command::new("mount").args(["-o", "remount,abort"]).arg(&disk.at).status();
    assert!(aborted.unwrap().success());
    // Space for more is asked of the disk, and refused.
    let refused = errno(file.write_at(&[1; 100_000], 8 * MIB));
    assert!([Errno::ROFS, Errno::IO].contains(&refused), "{refused}");
    let refused = errno(File::create(mount.at("new")));
    assert!([Errno::ROFS, Errno::IO].contains(&refused), "{refused}");
    is_pattern(&path, 3 * MIB);
    is_pattern(&kept, 50_000);
    // Over what has its space it is taken; that it does not land is told by fsync and by the attribute.
    file.write_all_at(&pattern(9, 1 << 20), 0).unwrap();
    let refused = errno(file.sync_all());
    assert!([Errno::ROFS, Errno::IO].contains(&refused), "{refused}");
    let name = swap_xattr(&path, "error");
    assert!(["EIO", "EROFS"].contains(&name.as_str()), "{name}");
    drop(file);
    let output = swapfs(&["umount", mount.mnt.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // Nobody else's word is needed to end it.
    umount2(&mount.mnt, MntFlags::MNT_DETACH).unwrap();
    mount.wait_gone();
}

/// A disk that is gone altogether: errors at once, no waiting, and another mount does not notice.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_disk_that_is_gone_answers_with_errors_and_others_go_on() {
    nix::ioctl_read!(ext4_shutdown, b'X', 125, u32);
    let disk = SmallDisk::ext4();
    let sound = Mount::new("pool_size=16m");
    let mount = Mount::within(&disk.at, "pool_size=16m");
    let path = mount.at("file");
    let file = open(&path);
    write_pattern(&file, 3 * MIB, 1 << 20);
    file.sync_all().unwrap();
    let folder = File::open(&disk.at).unwrap();
    let mut without_log = 2;
    // SAFETY: EXT4_IOC_SHUTDOWN reads one number through its pointer.
    unsafe { ext4_shutdown(folder.as_raw_fd(), &raw mut without_log) }.unwrap();
    drop(folder);
    // What is in the pool can be read still.
    is_pattern(&path, 3 * MIB);
    file.write_all_at(&pattern(9, 1 << 20), 0).unwrap();
    assert_eq!(errno(file.sync_all()), Errno::IO);
    assert_eq!(swap_xattr(&path, "error"), "EIO");
    assert_eq!(errno(file.write_at(&[1; 10], 20 * MIB)), Errno::IO);
    fs::write(sound.at("other"), pattern(0, 100_000)).unwrap();
    is_pattern(&sound.at("other"), 100_000);
    drop(file);
    umount2(&mount.mnt, MntFlags::MNT_DETACH).unwrap();
    mount.wait_gone();
}

/// "Unmounted underneath": the daemon holds on to what it has open, and loses nothing.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_disk_that_is_unmounted_underneath_is_kept_until_the_end() {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, "pool_size=16m");
    let file = open(&mount.at("file"));
    write_pattern(&file, 2 * MIB, 1 << 20);
    umount2(&disk.at, MntFlags::MNT_DETACH).unwrap();
    // The mountpoint lay on it: the mount is gone with it for those who look, but not for us.
    write_pattern(&file, 6 * MIB, 1 << 20);
    file.sync_all().unwrap();
    let mut found = vec![0; 6 << 20];
    file.read_exact_at(&mut found, 0).unwrap();
    same(&found, &pattern(0, 6 << 20));
    drop(file);
    mount.wait_gone();
}

/// "Inode exhaustion": the new name is refused, everything else works on.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_disk_without_inodes_refuses_names_and_nothing_else() {
    let disk = SmallDisk::ext4_made_with(&["-m", "0", "-N", "64"]);
    let mount = Mount::within(&disk.at, "pool_size=16m");
    let mut made = 0;
    let refused = loop {
        match fs::write(mount.at(&format!("file-{made}")), pattern(0, 5000)) {
            Ok(()) => made += 1,
            Err(error) => break Errno::from_io_error(&error).unwrap(),
        }
        assert!(made < 1000);
    };
    assert_eq!(refused, Errno::NOSPC);
    assert_eq!(errno(fs::create_dir(mount.at("folder"))), Errno::NOSPC);
    assert!(fs::metadata(mount.at(&format!("file-{made}"))).is_err(), "refused, yet there");
    let file = open(&mount.at("file-0"));
    write_pattern(&file, 4 * MIB, 1 << 20);
    file.sync_all().unwrap();
    is_pattern(&mount.backing("file-0"), 4 * MIB);
    drop(file);
    // What is there can be mounted, and transfers are direct as before.
    mount.remount("pool_size=16m");
    assert_eq!(swap_xattr(&mount.at("file-0"), "direct"), "1");
    is_pattern(&mount.at("file-0"), 4 * MIB);
    fs::remove_file(mount.at("file-1")).unwrap();
    wait_until("the inode", || fs::write(mount.at("again"), "x").is_ok());
    assert_eq!(fs::read(mount.at("again")).unwrap(), b"x");
}

/// "A root daemon ignores … reserved blocks unless it gives up CAP_SYS_RESOURCE": it does, and asks for space in the
/// name of the file's owner.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn the_blocks_reserved_for_root_are_roots() {
    let disk = SmallDisk::ext4_made_with(&["-m", "30"]);
    let mount = Mount::within(&disk.at, "pool_size=16m,allow_other");
    for folder in [&mount.mnt, mount.scratch.path()] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let (users, roots) = (mount.at("users"), mount.at("roots"));
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&users);
    chown(&users, Some(1234), Some(1234)).unwrap();
    drop(file);
    let taken = as_user(mount.scratch.path(), user(1234), || {
        let file = File::options().write(true).open("mnt/users").unwrap();
        let taken = fill(&file);
        file.sync_all().unwrap();
        taken
    });
    is_pattern(&users, taken);
    assert!(taken < 46 * MIB, "{taken} bytes of 64 MiB, of which 30 % are root's");
    assert!(taken > 30 * MIB, "{taken}");
    let file = open(&roots);
    let more = fill(&file);
    assert!(more > 12 * MIB, "{more}");
    file.sync_all().unwrap();
    is_pattern(&mount.backing("roots"), more);
}

/// "Reflinked extents … are named at mount as not guaranteeing it".
#[test]
#[ignore = "needs mkfs.xfs: tests/suites/tools.sh"]
fn a_filesystem_that_shares_blocks_is_named() {
    let disk = SmallDisk::xfs();
    let mount = Mount::within(&disk.at, "pool_size=16m");
    wait_until("the line in the log", || mount.log().contains("cp --reflink"));
    let file = open(&mount.at("file"));
    write_pattern(&file, 3 * MIB, 1 << 20);
    file.sync_all().unwrap();
    is_pattern(&mount.backing("file"), 3 * MIB);
}

/// "Reservations are not leaked": what was asked for ahead, and what was refused, leaves nothing behind.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_full_disk_has_all_its_space_back_when_the_files_are_gone() {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, "pool_size=16m");
    let free = || {
        let space = rustix::fs::statvfs(&disk.at).unwrap();
        space.f_bfree * space.f_frsize
    };
    let before = free();
    for round in 0..3 {
        let file = open(&mount.at("full"));
        let taken = fill(&file);
        assert!(taken > 40 * MIB, "round {round}: {taken}");
        file.sync_all().unwrap();
        is_pattern(&mount.backing("full"), taken);
        let other = open(&mount.at("refused"));
        assert_eq!(errno(other.write_at(&[1; 1 << 20], 0)), Errno::NOSPC);
        drop((file, other));
        mount.remount("pool_size=16m");
        assert_eq!(swap_xattr(&mount.at("full"), "direct"), "1", "on a full disk");
        for name in ["full", "refused"] {
            fs::remove_file(mount.at(name)).unwrap();
        }
        // At once, but for the daemon's log.
        wait_until("all the space", || free() + 256 * 1024 > before);
    }
}
