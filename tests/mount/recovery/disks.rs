//! Disks of their own: full ones, layered ones, and ones whose machine lost its power.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, umount2};
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use super::power::{After, alone, copy};
use super::seen::Seen;
use super::tear::{Part, interrupt, is_of_one_moment, stop_amid, torn_parts};
use super::{Complaints, PAGE, crash, holds, in_both_modes, kill, options, punch, start, store};
use crate::bytes::open;
use crate::errors::SmallDisk;
use crate::place::{Mount, is_done, swapfs};
use crate::support::{KIB, MIB, errno, pattern, swap_xattr, wait_until};

/// Dense files of these lengths lie on a disk before it is filled up.
const DENSE: [usize; 6] = [1, 5000, 70_001, 1 << 20, (4 << 20) + 77, 9 << 20];

fn name(length: usize) -> String {
    format!("of-{length}")
}

/// A disk on which nothing is left, and a mount of its swap folder with dense files.
fn full(mode: &str) -> (SmallDisk, Mount) {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, &options(mode));
    for length in DENSE {
        store(&mount, &name(length), 0, length as u64);
    }
    fill_up(&disk);
    (disk, mount)
}

/// Takes every block that is left.
fn fill_up(disk: &SmallDisk) {
    let ballast = File::options().create(true).append(true).open(disk.at.join("ballast")).unwrap();
    for piece in [1 << 20, 65_536, 4096] {
        let mut at = ballast.metadata().unwrap().len();
        // What is written is there only when it has its blocks.
        while fallocate(&ballast, FallocateFlags::empty(), at, piece).is_ok() {
            at += piece;
        }
    }
    let small = (0..1000).take_while(|number| {
        let path = disk.at.join(format!("ballast-{number}"));
        fs::write(&path, [1; 4096]).and_then(|()| File::open(&path)?.sync_all()).is_ok()
    });
    assert!(small.count() < 1000, "the disk is not full");
}

/// Writes each dense file again in pieces of so many bytes, and synchronizes it; returns the bytes of each.
fn overwrite(mount: &Mount, round: u64, piece: usize, complaints: &mut Complaints) -> Vec<Vec<u8>> {
    let written = DENSE.map(|length| {
        let bytes = pattern(round * 7919, length);
        let file = File::options().write(true).open(mount.at(&name(length))).unwrap();
        for (index, part) in bytes.chunks(piece).enumerate() {
            let wrote = file.write_all_at(part, (index * piece) as u64);
            let case = format!("a write at {} of {length} bytes", index * piece);
            complaints.note(&case, wrote.map_err(|error| error.to_string()));
        }
        let stored = file.sync_all().map_err(|error| error.to_string());
        complaints.note(&format!("fsync of {length} bytes"), stored);
        bytes
    });
    written.to_vec()
}

fn are(mount: &Mount, expected: &[Vec<u8>], when: &str, complaints: &mut Complaints) {
    for (length, expected) in DENSE.iter().zip(expected) {
        let case = format!("{length} bytes, {when}");
        complaints.note(&case, holds(&mount.at(&name(*length)), expected));
    }
}

/// "overwriting a dense existing file in place succeeds, fsync included": on a disk without a single free block.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn dense_files_on_a_full_disk_are_overwritten() {
    in_both_modes(|mode| {
        let (_disk, mount) = full(mode);
        let mut complaints = Complaints::default();
        for (round, piece) in [1 << 20, 100_001, 4096, 3000].into_iter().enumerate() {
            let expected = overwrite(&mount, round as u64 + 1, piece, &mut complaints);
            are(&mount, &expected, &format!("in pieces of {piece}"), &mut complaints);
        }
        complaints.none();
    });
}

/// The same in a mount that found the disk full, and what fsync covered is there after a kill.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_mount_on_a_full_disk_overwrites_and_survives_a_kill() {
    in_both_modes(|mode| {
        let (_disk, mount) = full(mode);
        let mut complaints = Complaints::default();
        mount.remount(&options(mode));
        let expected = overwrite(&mount, 1, 100_001, &mut complaints);
        crash(&mount, mode);
        are(&mount, &expected, "after a kill", &mut complaints);
        let expected = overwrite(&mount, 2, 65_536, &mut complaints);
        mount.remount(&options(mode));
        are(&mount, &expected, "after a remount", &mut complaints);
        complaints.none();
    });
}

/// The same for files of which swapfs has no record yet: others made them, or a mount without records.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn dense_files_without_a_record_are_overwritten_on_a_full_disk() {
    in_both_modes(|mode| {
        let mut complaints = Complaints::default();
        for (mounted_when_filled, by_others) in [(true, true), (false, true), (false, false)] {
            let disk = SmallDisk::ext4();
            let mount = Mount::prepared(&disk.at);
            if by_others {
                for length in DENSE {
                    fs::write(mount.backing(&name(length)), pattern(0, length)).unwrap();
                }
                File::open(&mount.swap).unwrap().sync_all().unwrap();
            } else {
                start(&mount, &options("none"));
                DENSE.iter().for_each(|length| store(&mount, &name(*length), 0, *length as u64));
                mount.unmount();
            }
            // What a mount needs for itself is there.
            start(&mount, &options(mode));
            if !mounted_when_filled {
                mount.unmount();
            }
            fill_up(&disk);
            if !mounted_when_filled {
                start(&mount, &options(mode));
            }
            let case = format!("mounted: {mounted_when_filled}, by others: {by_others}");
            let mut own = Complaints::default();
            let expected = overwrite(&mount, 1, 100_001, &mut own);
            are(&mount, &expected, "at once", &mut own);
            crash(&mount, mode);
            are(&mount, &expected, "after a kill", &mut own);
            own.0.into_iter().for_each(|what| complaints.note(&case, Err(what)));
        }
        complaints.none();
    });
}

/// The same by all files at once.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn many_writers_overwrite_on_a_full_disk() {
    in_both_modes(|mode| {
        let (_disk, mount) = full(mode);
        std::thread::scope(|scope| {
            for length in DENSE {
                let path = mount.at(&name(length));
                scope.spawn(move || {
                    for round in 1..5 {
                        let file = File::options().write(true).open(&path).unwrap();
                        file.write_all_at(&pattern(round * 7919, length), 0).unwrap();
                        file.sync_all().unwrap();
                    }
                });
            }
        });
        let mut complaints = Complaints::default();
        let expected = DENSE.map(|length| pattern(4 * 7919, length));
        are(&mount, &expected, "at the end", &mut complaints);
        crash(&mount, mode);
        are(&mount, &expected, "after a kill", &mut complaints);
        complaints.none();
    });
}

/// "ENOSPC comes from write only": what needs room is refused, and fsync of what is there succeeds.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_full_disk_is_told_by_write_and_never_by_fsync() {
    in_both_modes(|mode| {
        let disk = SmallDisk::ext4();
        let mount = Mount::within(&disk.at, &options(mode));
        let mut complaints = Complaints::default();
        for length in DENSE {
            store(&mount, &name(length), 0, length as u64);
        }
        store(&mount, "holes", 20 * MIB, MIB);
        fill_up(&disk);
        let mut expected: Vec<Vec<u8>> = DENSE.iter().map(|length| pattern(0, *length)).collect();
        for (length, expected) in DENSE.iter().zip(&mut expected) {
            let file = open(&mount.at(&name(*length)));
            let refused = errno(file.write_all_at(&[1; 2 << 20], *length as u64));
            let right = (refused == Errno::NOSPC).then_some(()).ok_or(refused.to_string());
            complaints.note(&format!("appending to {length} bytes"), right);
            file.write_all_at(&[9], 0).unwrap();
            expected[0] = 9;
            let stored = file.sync_all().map_err(|error| error.to_string());
            complaints.note(&format!("fsync of {length} bytes"), stored);
            // What was taken of it, if anything, is whole.
            file.set_len(*length as u64).unwrap();
            file.sync_all().unwrap();
        }
        let holes = open(&mount.at("holes"));
        assert_eq!(errno(holes.write_all_at(&[1; 2 << 20], 0)), Errno::NOSPC);
        complaints.note("holes", holes.sync_all().map_err(|error| error.to_string()));
        drop(holes);
        crash(&mount, mode);
        are(&mount, &expected, "after a kill", &mut complaints);
        complaints.none();
    });
}

/// Torn pages are found, marked and kept where there is no room for anything new.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn torn_pages_on_a_full_disk_stay_torn() {
    in_both_modes(|mode| {
        let (_disk, mount) = full(mode);
        let mut complaints = Complaints::default();
        let parts = [Part { name: name(9 << 20), range: 3 * MIB..4 * MIB }];
        let seen = torn_parts(&mount, mode, &parts).remove(0);
        let path = mount.at(&parts[0].name);
        for when in ["after a touch", "after another", "after a third"] {
            open(&path).set_modified(super::long_ago()).unwrap();
            crash(&mount, mode);
            complaints.note(when, seen.is_still(&path));
        }
        mount.remount(&options(mode));
        complaints.note("after a remount", seen.is_still(&path));
        let expected = overwrite(&mount, 5, 1 << 20, &mut complaints);
        crash(&mount, mode);
        are(&mount, &expected, "overwritten and killed", &mut complaints);
        complaints.none();
    });
}

/// "A ZERO_RANGE that fails" for want of room changes no mark and no size.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn zeros_for_which_there_is_no_room_mend_nothing() {
    in_both_modes(|mode| {
        let (_disk, mount) = full(mode);
        let mut complaints = Complaints::default();
        let parts = [Part { name: name(9 << 20), range: 3 * MIB..4 * MIB }];
        let seen = torn_parts(&mount, mode, &parts).remove(0);
        let path = mount.at(&parts[0].name);
        let file = open(&path);
        for (flags, case) in
            [(FallocateFlags::ZERO_RANGE, "zeros"), (FallocateFlags::empty(), "space")]
        {
            let refused = fallocate(&file, flags, 8 * MIB, 500 * MIB).err();
            complaints.note(
                case,
                (refused == Some(Errno::NOSPC)).then_some(()).ok_or(format!("{refused:?}")),
            );
            complaints.note(case, seen.is_torn_still(&path));
        }
        // What the disk's filesystem did before it was full is its own affair; of a torn page it has made nothing.
        let _ = fallocate(&file, FallocateFlags::ZERO_RANGE, 3 * MIB + 1, 500 * MIB);
        drop(file);
        crash(&mount, mode);
        let first = Seen::look(&path, 3 * MIB..3 * MIB + PAGE);
        let torn = seen.torn().contains(&(3 * MIB / PAGE));
        let kept = !torn || first.page(3 * MIB / PAGE).is_none();
        complaints.note("its first page", kept.then_some(()).ok_or("read".to_owned()));
        complaints.none();
    });
}

/// An overlay, whose files have no handles; gone at the end.
struct Overlay(PathBuf);

impl Overlay {
    fn over(folder: &Path) -> Self {
        let of = |name: &str| {
            let path = folder.join(name);
            fs::create_dir(&path).unwrap();
            path
        };
        let (lower, upper, work, at) = (of("lower"), of("upper"), of("work"), of("merged"));
        fs::write(lower.join("below"), pattern(0, 5000)).unwrap();
        let data = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let flags = MsFlags::empty();
        nix::mount::mount(Some("overlay"), &at, Some("overlay"), flags, Some(data.as_str()))
            .unwrap();
        Self(at)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A filesystem in memory; gone at the end.
struct Memory(tempfile::TempDir);

impl Memory {
    fn new() -> Self {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (flags, size) = (MsFlags::empty(), Some("size=64m"));
        nix::mount::mount(None::<&str>, folder.path(), Some("tmpfs"), flags, size).unwrap();
        Self(folder)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// Removes a file that was handed over in part of a page, and makes new ones until one has its number, as far as one
/// gets; all of them are read as they were made.
fn new_files_after_a_kill(mount: &Mount, mode: &str, must: bool) {
    let mut complaints = Complaints::default();
    for round in 0..3 {
        let (old, gone) = (format!("old-{round}"), format!("gone-{round}"));
        store(mount, &old, 0, 5000);
        let file = open(&mount.at(&gone));
        file.write_all_at(&pattern(0, 5000), 0).unwrap();
        is_done(&swapfs(&["swap-out", "--wait", mount.at(&gone).to_str().unwrap()]));
        kill(mount);
        drop(file);
        let number = fs::metadata(mount.backing(&gone)).unwrap().ino();
        fs::remove_file(mount.backing(&gone)).unwrap();
        let bytes = pattern(99_999, 3_000_000 + round);
        let made: Vec<String> = (0..4).map(|file| format!("new-{round}-{file}")).collect();
        let make = || {
            made.iter().for_each(|name| fs::write(mount.backing(name), &bytes).unwrap());
            made.iter().any(|name| fs::metadata(mount.backing(name)).unwrap().ino() == number)
        };
        if !make() && must {
            // The kernel gives it away when nothing of the killed daemon's is left.
            wait_until("the old number", || {
                made.iter().for_each(|name| fs::remove_file(mount.backing(name)).unwrap());
                make()
            });
        }
        start(mount, &options(mode));
        for name in &made {
            complaints.note(name, holds(&mount.at(name), &bytes));
        }
        complaints.note(&old, holds(&mount.at(&old), &pattern(0, 5000)));
        mount.remount(&options(mode));
        for name in &made {
            complaints.note(&format!("{name}, later"), holds(&mount.at(name), &bytes));
            fs::remove_file(mount.at(name)).unwrap();
        }
    }
    complaints.none();
}

/// "new file on a reused inode number": it has nothing of the file that had it before.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_new_file_with_an_old_number_is_read_as_it_was_made() {
    in_both_modes(|mode| {
        let disk = SmallDisk::ext4();
        let mount = Mount::within(&disk.at, &options(mode));
        new_files_after_a_kill(&mount, mode, true);
    });
}

/// The same where files have no handles by which one could tell them apart.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_new_file_with_an_old_number_is_read_on_an_overlay() {
    in_both_modes(|mode| {
        let disk = SmallDisk::ext4();
        let overlay = Overlay::over(&disk.at);
        let mount = Mount::within(&overlay.0, &options(mode));
        new_files_after_a_kill(&mount, mode, true);
    });
}

/// The same on an overlay in memory, where numbers are new.
#[test]
fn new_files_after_a_kill_are_read_on_an_overlay_in_memory() {
    in_both_modes(|mode| {
        let memory = Memory::new();
        let overlay = Overlay::over(memory.0.path());
        let mount = Mount::within(&overlay.0, &options(mode));
        new_files_after_a_kill(&mount, mode, false);
    });
}

/// Torn pages of a file on an overlay stay torn, also when others have moved it.
#[test]
fn torn_pages_on_an_overlay_stay_torn() {
    in_both_modes(|mode| {
        let memory = Memory::new();
        let overlay = Overlay::over(memory.0.path());
        let mount = Mount::within(&overlay.0, &options(mode));
        let mut complaints = Complaints::default();
        let parts: Vec<Part> =
            ["stays", "moved"].iter().map(|name| Part::usual(&mount, name)).collect();
        let seen = torn_parts(&mount, mode, &parts);
        for when in ["after a touch", "after another"] {
            for part in &parts {
                open(&mount.at(&part.name)).set_modified(super::long_ago()).unwrap();
            }
            crash(&mount, mode);
            for (part, seen) in parts.iter().zip(&seen) {
                let still = seen.is_still(&mount.at(&part.name));
                complaints.note(&format!("{} {when}", part.name), still);
            }
        }
        kill(&mount);
        fs::rename(mount.backing("moved"), mount.backing("away")).unwrap();
        start(&mount, &options(mode));
        complaints.note("moved by others", seen[1].is_still(&mount.at("away")));
        complaints.none();
    });
}

/// After a power cut "what fsync covered is exact", while another file was being rewritten: of that one, with checksums,
/// each page is of one moment or refused.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_power_cut_leaves_what_fsync_covered_and_no_mixture() {
    in_both_modes(|mode| {
        alone(|| {
            let disk = SmallDisk::ext4();
            let mount = Mount::within(&disk.at, &options(mode));
            let lengths = [1, 5000, 70_001, 2_000_003];
            lengths.iter().for_each(|length| store(&mount, &name(*length), 0, *length as u64));
            let part = Part::usual(&mount, "busy");
            let mut at_once = Vec::new();
            let rounds = stop_amid(&mount, std::slice::from_ref(&part), 65_536, || {
                at_once = copy(&disk);
            })[0];
            let after = After::of_copy(&disk, &mount, at_once);
            start(&after.mount, &options(mode));
            let mut complaints = Complaints::default();
            for when in ["after a power cut", "after a kill, too"] {
                for length in lengths {
                    let exact = holds(&after.mount.at(&name(length)), &pattern(0, length));
                    complaints.note(&format!("{length} bytes, {when}"), exact);
                }
                complaints.note(when, is_of_one_moment(&after.mount, &part, rounds));
                crash(&after.mount, mode);
            }
            complaints.none();
        });
    });
}

/// What a power cut leaves of a file that an earlier mount had recorded, and that was rewritten since without a fsync, is
/// torn, not damaged: its bytes may have come to the device without their record.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn what_a_power_cut_leaves_of_earlier_records_is_torn() {
    alone(|| {
        let disk = SmallDisk::ext4();
        let mount = Mount::within(&disk.at, &options("crc32c"));
        let names = ["whole", "piece", "cut", "kept"];
        names.iter().for_each(|name| store(&mount, name, 0, 4 * MIB));
        for _ in 0..2 {
            mount.remount(&options("crc32c"));
        }
        for (name, range) in [("whole", 0..4 * MIB), ("piece", MIB..3 * MIB), ("cut", 0..2 * MIB)] {
            let file = open(&mount.at(name));
            file.write_all_at(&pattern(7, (range.end - range.start) as usize), range.start)
                .unwrap();
            while swap_xattr(&mount.at(name), "wait") == "inflight" {}
        }
        let after = After::power_cut(&disk, &mount);
        start(&after.mount, &options("crc32c"));
        let mut refused = 0;
        for name in names {
            let path = after.mount.at(name);
            let file = fs::File::open(&path).unwrap();
            let mut page = [0; PAGE as usize];
            let mut bad = 0;
            for at in (0..4 * MIB).step_by(PAGE as usize) {
                match file.read_at(&mut page, at) {
                    Ok(_) => {
                        let (old, new) = (pattern(at, page.len()), pattern(7 + at, page.len()));
                        let piece = pattern(7 + at.wrapping_sub(MIB), page.len());
                        assert!(
                            [old, new, piece].iter().any(|whole| page[..] == whole[..]),
                            "{name} at {at}"
                        );
                    }
                    Err(_) => bad += 1,
                }
            }
            let error = rustix::fs::getxattr(&path, "user.swap.error", &mut page[..]);
            let error = error.map(|length| String::from_utf8_lossy(&page[..length]).into_owned());
            let expected =
                if bad > 0 { Ok("EUCLEAN".to_owned()) } else { Err(rustix::io::Errno::NODATA) };
            assert_eq!(error, expected, "{name}, {bad} pages");
            refused += bad;
        }
        assert!(refused > 0, "nothing of it had come to the device");
    });
}

/// A power cut right after fsync, of holes, overwritten pages and torn ones: all of it is there.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn what_mended_torn_pages_survives_a_power_cut_when_fsync_covered_it() {
    in_both_modes(|mode| {
        alone(|| {
            let disk = SmallDisk::ext4();
            let mount = Mount::within(&disk.at, &options(mode));
            let names = ["written", "hole", "cut", "touched"];
            let parts: Vec<Part> = names
                .iter()
                .map(|name| {
                    store(&mount, name, 0, 2 * MIB);
                    Part { name: (*name).to_owned(), range: 64 * KIB..MIB }
                })
                .collect();
            let mut seen = torn_parts(&mount, mode, &parts);
            for (name, seen) in names.iter().zip(&mut seen) {
                let (file, at) = (open(&mount.at(name)), seen.midst() * PAGE);
                match *name {
                    "written" => {
                        file.write_all_at(&pattern(3, 4096), at).unwrap();
                        seen.put(at, &pattern(3, 4096));
                    }
                    "hole" => {
                        punch(&file, at, PAGE);
                        seen.zero(at, PAGE);
                    }
                    "cut" => {
                        file.set_len(at).unwrap();
                        seen.resize(at);
                    }
                    _ => file.set_modified(super::long_ago()).unwrap(),
                }
                file.sync_all().unwrap();
            }
            let after = After::power_cut(&disk, &mount);
            start(&after.mount, &options(mode));
            let mut complaints = Complaints::default();
            for (name, seen) in names.iter().zip(&seen) {
                complaints.note(name, seen.is_still(&after.mount.at(name)));
            }
            complaints.none();
        });
    });
}

/// A disk that is full when the daemon is killed amid a rewrite: the next mount recovers, and changes nothing.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_recovery_on_a_full_disk_changes_nothing() {
    in_both_modes(|mode| {
        let (_disk, mount) = full(mode);
        let part = Part { name: name(9 << 20), range: 0..MIB };
        interrupt(&mount, mode, std::slice::from_ref(&part));
        let before = super::everything(&mount.swap);
        let mut complaints = Complaints::default();
        for when in ["at once", "again"] {
            start(&mount, &options(mode));
            for length in &DENSE[..5] {
                let exact = holds(&mount.at(&name(*length)), &pattern(0, *length));
                complaints.note(&format!("{length} bytes, {when}"), exact);
            }
            kill(&mount);
            complaints.note(when, super::is_unchanged(&mount.swap, &before));
        }
        complaints.none();
    });
}
