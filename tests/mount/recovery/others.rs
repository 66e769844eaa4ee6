//! What others do to the swap folder while it is not mounted is what is read, whatever crash came before.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;

use super::tear::{Part, interrupt, torn_files};
use super::{
    Complaints, LENGTH, MODES, PAGE, PART, TICK, crash, everything, flip, holds, in_both_modes,
    is_unchanged, kill, long_ago, mounted, options, punch, start, store,
};
use crate::bytes::open;
use crate::place::{Mount, is_done, swapfs};
use crate::support::{MIB, pattern, set_xattr};

/// What others do to a file in the swap folder.
type Change = fn(&Path);

/// Others' bytes.
fn good(length: usize) -> Vec<u8> {
    pattern(777_777, length)
}

/// As cp does it: the same file, cut and written.
fn copied_over(path: &Path, length: usize) {
    fs::write(path, good(length)).unwrap();
}

/// As `cp -p` does it.
fn restored(path: &Path, length: usize) {
    copied_over(path, length);
    File::options().write(true).open(path).unwrap().set_modified(long_ago()).unwrap();
}

fn moved_over(path: &Path, length: usize) {
    let other = path.with_extension("new");
    fs::write(&other, good(length)).unwrap();
    fs::rename(other, path).unwrap();
}

fn made_again(path: &Path, length: usize) {
    fs::remove_file(path).unwrap();
    fs::write(path, good(length)).unwrap();
}

fn cut(path: &Path, length: u64) {
    File::options().write(true).open(path).unwrap().set_len(length).unwrap();
}

fn written(path: &Path, at: u64, length: usize) {
    File::options().write(true).open(path).unwrap().write_all_at(&good(length), at).unwrap();
}

/// So many of the changes leave nothing as it was.
const WHOLE: usize = 15;

/// Changes of a file of 5000 bytes.
const CHANGES: [(&str, Change); 22] = [
    ("cp of 3 MB", |path| copied_over(path, 3_000_000)),
    ("cp of 100 bytes", |path| copied_over(path, 100)),
    ("cp of as many bytes", |path| copied_over(path, 5000)),
    ("cp of a page", |path| copied_over(path, 4096)),
    ("cp of two pages", |path| copied_over(path, 8192)),
    ("cp of nothing", |path| copied_over(path, 0)),
    ("mv of 3 MB", |path| moved_over(path, 3_000_000)),
    ("mv of as many bytes", |path| moved_over(path, 5000)),
    ("mv of two pages", |path| moved_over(path, 8192)),
    ("cp -p of 3 MB", |path| restored(path, 3_000_000)),
    ("cp -p of as many bytes", |path| restored(path, 5000)),
    ("cp -p of two pages", |path| restored(path, 8192)),
    ("rm, and 3 MB made", |path| made_again(path, 3_000_000)),
    ("rm, and as many bytes made", |path| made_again(path, 5000)),
    ("rm, and two pages made", |path| made_again(path, 8192)),
    ("cut to 4100", |path| cut(path, 4100)),
    ("cut to 4999", |path| cut(path, 4999)),
    ("grown to 5100", |path| cut(path, 5100)),
    ("grown to two pages", |path| cut(path, 8192)),
    ("grown to 1 MiB", |path| cut(path, MIB)),
    ("bytes in the midst", |path| written(path, 4090, 10)),
    ("bytes appended", |path| written(path, 5000, 3192)),
];

fn names() -> Vec<String> {
    (0..CHANGES.len()).map(|number| format!("t{number}")).collect()
}

/// 5000 bytes, handed over to the swap folder by request, by a handle that stays open.
fn handed_over(mount: &Mount, name: &str) -> File {
    let file = open(&mount.at(name));
    file.write_all_at(&pattern(0, 5000), 0).unwrap();
    is_done(&swapfs(&["swap-out", "--wait", mount.at(name).to_str().unwrap()]));
    file
}

/// Does the first of them, and returns what the files are then.
fn change(mount: &Mount, count: usize) -> Vec<Vec<u8>> {
    let changed = names().into_iter().zip(CHANGES).take(count).map(|(name, (_, change))| {
        change(&mount.backing(&name));
        fs::read(mount.backing(&name)).unwrap()
    });
    changed.collect()
}

fn all_hold(mount: &Mount, expected: &[Vec<u8>], when: &str, complaints: &mut Complaints) {
    for ((name, (case, _)), expected) in names().iter().zip(CHANGES).zip(expected) {
        let case = format!("{case}, {when}");
        complaints.note(&case, holds(&mount.at(name), expected));
        let there = fs::read(mount.backing(name)).is_ok_and(|found| found == *expected);
        complaints.note(
            &format!("{case}, in the swap folder"),
            match there {
                true => Ok(()),
                false => Err("changed".to_owned()),
            },
        );
    }
}

/// What others left is read once, after another kill, and after a clean end.
fn stays_as_others_left_it(mount: &Mount, mode: &str, expected: &[Vec<u8>]) {
    let mut complaints = Complaints::default();
    start(mount, &options(mode));
    all_hold(mount, expected, "at once", &mut complaints);
    crash(mount, mode);
    all_hold(mount, expected, "after another kill", &mut complaints);
    mount.remount(&options(mode));
    all_hold(mount, expected, "after a remount", &mut complaints);
    complaints.none();
}

/// "A file that others changed in S while it was not mounted … is read exactly as they left it": one that was open
/// and handed over when the daemon was killed.
#[test]
fn what_others_put_in_place_after_a_kill_is_read() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let files: Vec<File> = names().iter().map(|name| handed_over(&mount, name)).collect();
        kill(&mount);
        drop(files);
        std::thread::sleep(TICK);
        let expected = change(&mount, CHANGES.len());
        stays_as_others_left_it(&mount, mode, &expected);
    });
}

/// The same where bytes are in the pool that no fsync has covered.
#[test]
fn what_others_put_in_place_is_read_where_bytes_were_lost() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut files = Vec::new();
        for name in names() {
            store(&mount, &name, 0, 5000);
            let file = open(&mount.at(&name));
            file.write_all_at(&[1; 300], 4900).unwrap();
            files.push(file);
        }
        kill(&mount);
        drop(files);
        // What was being written and is in place still may be refused.
        let expected = change(&mount, WHOLE);
        stays_as_others_left_it(&mount, mode, &expected);
    });
}

/// The same after a clean end, and where a crash had been recovered from before.
#[test]
fn what_others_put_in_place_after_a_clean_end_is_read() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let files: Vec<File> = names().iter().map(|name| handed_over(&mount, name)).collect();
        kill(&mount);
        drop(files);
        start(&mount, &options(mode));
        mount.unmount();
        std::thread::sleep(TICK);
        let expected = change(&mount, CHANGES.len());
        stays_as_others_left_it(&mount, mode, &expected);
    });
}

/// "A mount with checksum=none between two others never makes the others' records lie": what it wrote is read.
#[test]
fn what_a_mount_without_records_wrote_is_read() {
    without_records(true);
}

/// The same when that mount ended properly.
#[test]
fn what_a_mount_without_records_wrote_is_read_after_a_clean_end() {
    without_records(false);
}

fn without_records(killed: bool) {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let files: Vec<File> = names().iter().map(|name| handed_over(&mount, name)).collect();
        kill(&mount);
        drop(files);
        start(&mount, &options("none"));
        let mut expected = Vec::new();
        for (name, (_, change)) in names().iter().zip(CHANGES) {
            change(&mount.at(name));
            File::open(mount.at(name)).unwrap().sync_all().unwrap();
            expected.push(fs::read(mount.at(name)).unwrap());
        }
        if killed {
            kill(&mount);
        } else {
            mount.unmount();
        }
        stays_as_others_left_it(&mount, mode, &expected);
    });
}

/// Others' changes of a file that was being rewritten when the daemon was killed: of each, all bytes are theirs.
const REPLACED: [(&str, Change); 8] = [
    ("cp of as many bytes", |path| copied_over(path, LENGTH as usize)),
    ("cp of more", |path| copied_over(path, LENGTH as usize + 5000)),
    ("cp of less", |path| copied_over(path, MIB as usize + 5000)),
    ("cp -p of as many bytes", |path| restored(path, LENGTH as usize)),
    ("mv of as many bytes", |path| moved_over(path, LENGTH as usize)),
    ("rm, and as many bytes made", |path| made_again(path, LENGTH as usize)),
    ("written in place", |path| written(path, 0, LENGTH as usize)),
    ("cut below and grown", |path| {
        cut(path, PART.start);
        cut(path, LENGTH);
    }),
];

fn some(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("t{number}")).collect()
}

fn are_as_replaced(mount: &Mount, expected: &[Vec<u8>], when: &str, complaints: &mut Complaints) {
    for ((name, (case, _)), expected) in some(REPLACED.len()).iter().zip(REPLACED).zip(expected) {
        complaints.note(&format!("{case}, {when}"), holds(&mount.at(name), expected));
    }
}

fn replace_all(mount: &Mount) -> Vec<Vec<u8>> {
    let names = some(REPLACED.len());
    let replaced = names.iter().zip(REPLACED).map(|(name, (_, change))| {
        change(&mount.backing(name));
        fs::read(mount.backing(name)).unwrap()
    });
    replaced.collect()
}

/// "only pages … whose bytes they did not replace may read EIO": all of these were replaced, after the kill that
/// interrupted them.
#[test]
fn what_others_replaced_is_not_torn() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let names = some(REPLACED.len());
        let parts: Vec<Part> = names.iter().map(|name| Part::usual(&mount, name)).collect();
        interrupt(&mount, mode, &parts);
        let expected = replace_all(&mount);
        let mut complaints = Complaints::default();
        start(&mount, &options(mode));
        are_as_replaced(&mount, &expected, "at once", &mut complaints);
        crash(&mount, mode);
        are_as_replaced(&mount, &expected, "after another kill", &mut complaints);
        complaints.none();
    });
}

/// The same for pages that were known as torn, after a kill and after a clean end.
#[test]
fn what_others_replaced_is_torn_no_more() {
    replaced(true);
}

/// The same where the marks came through a clean end.
#[test]
fn what_others_replaced_is_torn_no_more_after_a_clean_end() {
    replaced(false);
}

fn replaced(killed: bool) {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        torn_files(&mount, mode, &some(REPLACED.len()));
        if killed {
            kill(&mount);
        } else {
            mount.unmount();
        }
        let expected = replace_all(&mount);
        let mut complaints = Complaints::default();
        start(&mount, &options(mode));
        are_as_replaced(&mount, &expected, "at once", &mut complaints);
        crash(&mount, mode);
        are_as_replaced(&mount, &expected, "after another kill", &mut complaints);
        complaints.none();
    });
}

/// Others rewrite one torn page in place: it is read, the other torn ones are not.
#[test]
fn a_torn_page_that_others_rewrote_is_read_and_the_others_stay_torn() {
    let cases: [(&str, u64, usize); 6] = [
        ("the page", 0, 4096),
        ("the page and a byte more", 0, 4097),
        ("the page and a byte before", 4095, 4097),
        ("two pages", 0, 8192),
        ("a page elsewhere", 0, 4096),
        ("nothing of a torn page", 0, 100),
    ];
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut seen = torn_files(&mount, mode, &some(cases.len()));
        kill(&mount);
        std::thread::sleep(TICK);
        for ((name, (case, before, length)), seen) in some(6).iter().zip(cases).zip(&mut seen) {
            let page = if case.contains("lsewhere") || case.contains("nothing") {
                20
            } else {
                seen.midst()
            };
            let at = page * PAGE - before.min(1);
            written(&mount.backing(name), at, length);
            seen.put_by_others(at, &good(length));
        }
        let mut complaints = Complaints::default();
        start(&mount, &options(mode));
        for when in ["at once", "after another kill"] {
            for ((name, (case, ..)), seen) in some(6).iter().zip(cases).zip(&seen) {
                complaints.note(&format!("{case}, {when}"), seen.is_still(&mount.at(name)));
            }
            crash(&mount, mode);
        }
        complaints.none();
    });
}

/// What others do to a file by its name.
type ByName = fn(&Mount, &str);

/// Others' changes of everything but bytes.
const NAMELY: [(&str, ByName); 8] = [
    ("chmod", |mount, name| {
        fs::set_permissions(mount.backing(name), fs::Permissions::from_mode(0o640)).unwrap();
    }),
    ("chown", |mount, name| chown(mount.backing(name), Some(1234), Some(1234)).unwrap()),
    ("mv", |mount, name| {
        fs::rename(mount.backing(name), mount.backing("moved")).unwrap();
        fs::rename(mount.backing("moved"), mount.backing(name)).unwrap();
    }),
    ("mv into a folder", |mount, name| {
        fs::create_dir_all(mount.backing("folder")).unwrap();
        fs::rename(mount.backing(name), mount.backing("folder").join(name)).unwrap();
        std::os::unix::fs::symlink(format!("folder/{name}"), mount.backing(name)).unwrap();
    }),
    ("ln", |mount, name| {
        fs::hard_link(mount.backing(name), mount.backing(&format!("{name}-link"))).unwrap();
    }),
    ("an attribute", |mount, name| {
        set_xattr(&mount.backing(name), "user.note", b"value").unwrap();
    }),
    ("read", |mount, name| drop(fs::read(mount.backing(name)).unwrap())),
    ("chmod 0000", |mount, name| {
        fs::set_permissions(mount.backing(name), fs::Permissions::from_mode(0o000)).unwrap();
    }),
];

/// "Metadata-only changes by others … change nothing of the promises": torn pages stay torn.
#[test]
fn names_and_modes_that_others_changed_mend_nothing() {
    changed_by_name(true);
}

/// The same after a clean end.
#[test]
fn names_and_modes_that_others_changed_mend_nothing_after_a_clean_end() {
    changed_by_name(false);
}

fn changed_by_name(killed: bool) {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let names = some(NAMELY.len());
        let seen = torn_files(&mount, mode, &names);
        if killed {
            kill(&mount);
        } else {
            mount.unmount();
        }
        std::thread::sleep(TICK);
        names.iter().zip(NAMELY).for_each(|(name, (_, change))| change(&mount, name));
        let mut complaints = Complaints::default();
        start(&mount, &options(mode));
        for when in ["at once", "after another kill"] {
            for ((name, (case, _)), seen) in names.iter().zip(NAMELY).zip(&seen) {
                let still = seen.is_still(&mount.at(name));
                complaints.note(&format!("{case}, {when}, killed: {killed}"), still);
            }
            crash(&mount, mode);
        }
        complaints.none();
    });
}

/// The same for checksums: a bit that is flipped later is noticed.
#[test]
fn names_and_modes_that_others_changed_cost_no_checksum() {
    changed_by_name_with_sums(true);
}

/// The same after a clean end.
#[test]
fn names_and_modes_that_others_changed_cost_no_checksum_after_a_clean_end() {
    changed_by_name_with_sums(false);
}

fn changed_by_name_with_sums(killed: bool) {
    if !crate::support::is_root() {
        return;
    }
    let mount = mounted("crc32c");
    let names = some(NAMELY.len());
    names.iter().for_each(|name| store(&mount, name, 0, LENGTH));
    if killed {
        kill(&mount);
    } else {
        mount.unmount();
    }
    std::thread::sleep(TICK);
    names.iter().zip(NAMELY).for_each(|(name, (_, change))| change(&mount, name));
    start(&mount, &options("crc32c"));
    let mut complaints = Complaints::default();
    for (name, (case, _)) in names.iter().zip(NAMELY) {
        flip(&mount.backing(name).canonicalize().unwrap(), MIB + 5000);
        let read = File::open(mount.at(name)).unwrap().read_at(&mut [0; 4096], MIB + 4096);
        let noticed = read.is_err().then_some(()).ok_or("the flipped bit was read".to_owned());
        complaints.note(&format!("{case}, killed: {killed}"), noticed);
    }
    complaints.none();
}

/// A swap folder with something in every state, and nothing mounted.
fn mixed_states(mode: &str) -> Mount {
    let mount = mounted(mode);
    torn_files(&mount, mode, &["torn".to_owned()]);
    let files: Vec<File> =
        ["odd", "copied", "moved"].iter().map(|name| handed_over(&mount, name)).collect();
    for length in [1, 100, 4095, 4096, 4097, 70_001] {
        store(&mount, &format!("of-{length}"), 0, length);
    }
    store(&mount, "holes", 5 * MIB + 17, 100);
    punch(&open(&mount.at("torn")), 5000, 5000);
    interrupt(&mount, mode, &[Part::usual(&mount, "interrupted")]);
    drop(files);
    copied_over(&mount.backing("copied"), 3_000_000);
    moved_over(&mount.backing("moved"), 8192);
    fs::write(mount.backing("new"), good(8192)).unwrap();
    mount
}

/// "fsck and fsck --repair never change the bytes or the size of any file".
#[test]
fn fsck_changes_no_file() {
    in_both_modes(|mode| {
        let mount = mixed_states(mode);
        let before = everything(&mount.swap);
        let folder = mount.swap.to_str().unwrap();
        let mut complaints = Complaints::default();
        for arguments in [&["fsck", folder][..], &["fsck", folder, "--repair"], &["fsck", folder]] {
            swapfs(arguments);
            complaints.note(&arguments.join(" "), is_unchanged(&mount.swap, &before));
        }
        start(&mount, &options(mode));
        complaints.note("mounted after it", is_unchanged(&mount.swap, &before));
        for (name, length) in [("copied", 3_000_000), ("moved", 8192), ("new", 8192)] {
            complaints.note(name, holds(&mount.at(name), &good(length)));
        }
        complaints.none();
    });
}

/// "Opening, mounting (any mode, ro too), recovering … never change the bytes or the size of any file".
#[test]
fn mounts_and_recoveries_change_no_file() {
    in_both_modes(|mode| {
        let mount = mixed_states(mode);
        let before = everything(&mount.swap);
        let mut complaints = Complaints::default();
        let modes = MODES.iter().chain(&["none"]);
        let all: Vec<String> =
            modes.flat_map(|mode| [format!("{},ro", options(mode)), options(mode)]).collect();
        for options in &all {
            for killed in [true, false] {
                start(&mount, options);
                for path in before.keys() {
                    let name = path.strip_prefix(&mount.swap).unwrap().to_str().unwrap();
                    drop(fs::read(mount.at(name)));
                }
                if killed {
                    kill(&mount);
                } else {
                    mount.unmount();
                }
                let unchanged = is_unchanged(&mount.swap, &before);
                complaints.note(&format!("mounted with {options}, killed: {killed}"), unchanged);
            }
        }
        complaints.none();
    });
}
