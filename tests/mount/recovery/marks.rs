//! Marks of torn pages, and checksums, outlast everything but new bytes.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::Path;
use std::time::SystemTime;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, UTIME_NOW, utimensat};

use super::power::{After, alone};
use super::seen::Seen;
use super::tear::{Part, torn, torn_files, torn_parts};
use super::{
    Complaints, LENGTH, PAGE, PART, allocate, crash, flip, in_both_modes, kill, long_ago, mounted,
    options, start, store,
};
use crate::bytes::open;
use crate::errors::SmallDisk;
use crate::place::Mount;
use crate::requests::request;
use crate::support::{KIB, MIB, is_pattern, is_root, pattern, set_xattr};

/// What is done to a file that is open, and what is expected of it from then on. The number is a torn page's.
type Deed = fn(&File, &Path, u64, &mut Seen);

/// The deed that cannot be stored: what else is in the page is not known.
const PARTIAL: &str = "a part of a torn page";

/// A table of deeds; none gives a torn page new bytes.
const DEEDS: [(&str, Deed); 24] = [
    ("nothing", |_, _, _, _| {}),
    ("touch", |_, path, _, _| touch(path)),
    ("an old time by path", |_, path, _, _| {
        File::open(path).unwrap().set_modified(long_ago()).unwrap();
    }),
    ("touch by handle", |file, _, _, _| file.set_modified(SystemTime::now()).unwrap()),
    ("chmod", |_, path, _, _| chmod(path, 0o640)),
    ("chmod by handle", |file, _, _, _| {
        file.set_permissions(fs::Permissions::from_mode(0o444)).unwrap();
    }),
    ("chown", |_, path, _, _| chown(path, Some(1234), Some(1234)).unwrap()),
    ("renamed and back", |_, path, _, _| {
        fs::rename(path, path.with_extension("other")).unwrap();
        fs::rename(path.with_extension("other"), path).unwrap();
    }),
    ("a link", |_, path, _, _| fs::hard_link(path, path.with_extension("link")).unwrap()),
    ("an attribute", |_, path, _, _| set_xattr(path, "user.note", b"value").unwrap()),
    ("reserve", |_, path, _, _| request(path, "reserve 5m").unwrap()),
    ("release", |_, path, _, _| ask_anyhow(path, "release")),
    ("swap_in", |_, path, _, _| ask_anyhow(path, "swap_in")),
    ("swap_out", |_, path, _, _| ask_anyhow(path, "swap_out")),
    ("discard", |_, path, _, _| ask_anyhow(path, "discard")),
    ("a request that fails", |_, path, _, _| assert!(request(path, "nonsense").is_err())),
    ("a write elsewhere", |file, _, _, _| file.write_all_at(&[7; 100], 5000).unwrap()),
    ("a write behind the end", |file, _, _, seen| {
        file.write_all_at(&[7; 100], LENGTH + 5000).unwrap();
        seen.resize(LENGTH + 5100);
    }),
    (PARTIAL, |file, _, page, _| {
        // Refused or not: the page is no better by it.
        let _ = file.write_all_at(&[7; 100], page * PAGE + 50);
    }),
    ("ftruncate to more", |file, _, _, seen| {
        file.set_len(LENGTH + 70_000).unwrap();
        seen.resize(LENGTH + 70_000);
    }),
    ("ftruncate behind it", |file, _, _, seen| {
        file.set_len(LENGTH - 70_001).unwrap();
        seen.resize(LENGTH - 70_001);
    }),
    ("fallocate", |file, _, _, seen| {
        allocate(file, 0, LENGTH + 5000);
        seen.resize(LENGTH + 5000);
    }),
    ("a hole elsewhere", |file, _, _, _| super::punch(file, 300_000, 300_000)),
    ("fsync", |file, _, _, _| file.sync_all().unwrap()),
];

/// Of a torn file a request may fail.
fn ask_anyhow(path: &Path, value: &str) {
    let _ = request(path, value);
}

fn touch(path: &Path) {
    let now = Timespec { tv_sec: 0, tv_nsec: UTIME_NOW };
    let both = Timestamps { last_access: now, last_modification: now };
    utimensat(CWD, path, &both, AtFlags::empty()).unwrap();
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

fn names() -> Vec<String> {
    (0..DEEDS.len()).map(|number| format!("t{number}")).collect()
}

/// Does each deed to a torn file of its own; returns what is expected of each, and the handles.
fn torn_and_then(mount: &Mount, mode: &str) -> (Vec<Seen>, Vec<File>) {
    let mut seen = torn_files(mount, mode, &names());
    let mut files = Vec::new();
    for ((name, (_, deed)), seen) in names().iter().zip(DEEDS).zip(&mut seen) {
        let file = open(&mount.at(name));
        deed(&file, &mount.at(name), seen.midst(), seen);
        files.push(file);
    }
    (seen, files)
}

fn are_still(mount: &Mount, seen: &[Seen], when: &str, complaints: &mut Complaints) {
    for ((name, seen), (deed, _)) in names().iter().zip(seen).zip(DEEDS) {
        complaints.note(&format!("{deed}, {when}"), seen.is_still(&mount.at(name)));
    }
}

/// "A page that once read EIO because it was torn stays EIO …, further kills".
#[test]
fn torn_pages_stay_torn_in_a_second_crash_whatever_was_done() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        let (seen, files) = torn_and_then(&mount, mode);
        are_still(&mount, &seen, "at once", &mut complaints);
        drop(files);
        for when in ["after a kill", "after two kills"] {
            crash(&mount, mode);
            are_still(&mount, &seen, when, &mut complaints);
        }
        complaints.none();
    });
}

/// The same with a handle that was open at the moment of the kill, and an fsync.
#[test]
fn torn_pages_stay_torn_in_a_second_crash_of_an_open_file() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        let (seen, files) = torn_and_then(&mount, mode);
        for (file, (deed, _)) in files.iter().zip(DEEDS) {
            let stored = file.sync_all().map_err(|error| error.to_string());
            // The one cannot be stored; the other has told the handle that it failed.
            if ![PARTIAL, "swap_in"].contains(&deed) {
                complaints.note(&format!("fsync after {deed}"), stored);
            }
        }
        kill(&mount);
        drop(files);
        start(&mount, &options(mode));
        are_still(&mount, &seen, "after a kill", &mut complaints);
        complaints.none();
    });
}

/// "clean remounts however many", and a kill after them.
#[test]
fn torn_pages_stay_torn_over_clean_remounts() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        let mut seen = torn_files(&mount, mode, &names());
        for ((name, (case, deed)), seen) in names().iter().zip(DEEDS).zip(&mut seen) {
            if case != PARTIAL {
                deed(&open(&mount.at(name)), &mount.at(name), seen.midst(), seen);
            }
        }
        for when in ["after a remount", "after two remounts"] {
            mount.remount(&options(mode));
            are_still(&mount, &seen, when, &mut complaints);
        }
        crash(&mount, mode);
        are_still(&mount, &seen, "after remounts and a kill", &mut complaints);
        complaints.none();
    });
}

/// "a partial write into the torn page and a stop": the page is as torn as before, and the rest as it was.
#[test]
fn a_part_of_a_torn_page_mends_nothing_when_the_mount_ends() {
    let writes: [(&str, u64, usize); 5] = [
        ("its first byte", 0, 1),
        ("its last byte", 4095, 1),
        ("all but a byte", 0, 4095),
        ("the midst", 1000, 2000),
        ("half of it and half of the next", 2048, 4096),
    ];
    let names: Vec<String> = (0..writes.len()).map(|number| format!("t{number}")).collect();
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        let seen = torn_files(&mount, mode, &names);
        for ((name, (_, at, length)), seen) in names.iter().zip(writes).zip(&seen) {
            let file = open(&mount.at(name));
            let _ = file.write_all_at(&pattern(1, length), seen.midst() * PAGE + at);
            let _ = file.sync_all();
        }
        mount.signal(Signal::SIGTERM);
        mount.wait_gone();
        let _ = umount2(&mount.mnt, MntFlags::MNT_DETACH);
        start(&mount, &options(mode));
        for when in ["after a stop", "after a kill"] {
            for ((name, (case, ..)), seen) in names.iter().zip(writes).zip(&seen) {
                complaints.note(&format!("{case}, {when}"), seen.is_still(&mount.at(name)));
            }
            crash(&mount, mode);
        }
        complaints.none();
    });
}

/// "mounts with checksum=none or ro": neither forgets what is torn.
#[test]
fn mounts_in_other_modes_leave_the_marks() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        let seen = torn(&mount, mode, "t");
        for (between, killed) in [
            ("none", false),
            ("none", true),
            ("writes", false),
            ("writes", true),
            ("crc32c", false),
            ("crc32c", true),
        ] {
            for more in ["", ",ro"] {
                mount.remount(&format!("{}{more}", options(between)));
                drop(fs::read(mount.at("t")));
                if killed {
                    kill(&mount);
                    start(&mount, &options(mode));
                } else {
                    mount.remount(&options(mode));
                }
                let case = format!("after checksum={between}{more}, killed: {killed}");
                complaints.note(&case, seen.is_still(&mount.at("t")));
            }
        }
        complaints.none();
    });
}

/// Marks hold wherever the torn pages are, and however small the file is.
#[test]
fn torn_pages_stay_torn_wherever_they_are() {
    let places = [
        ("one-page", 0..3000),
        ("two-pages", 0..5000),
        ("ten-pages", 0..40_000),
        ("sixteen-pages", 0..64 * KIB),
        ("seventeen-pages", 0..64 * KIB + 1),
        ("the-sixteenth", 60 * KIB..72 * KIB),
        ("at-the-end", MIB..MIB + 300_001),
        ("far-away", 300 * MIB..301 * MIB),
        ("farther-away", 5000 * MIB..5001 * MIB + 77),
    ];
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        let parts: Vec<Part> = places
            .iter()
            .map(|(name, range)| {
                store(&mount, name, range.start, range.end - range.start);
                Part { name: (*name).to_owned(), range: range.clone() }
            })
            .collect();
        let seen = torn_parts(&mount, mode, &parts);
        for (part, seen) in parts.iter().zip(&seen) {
            touch(&mount.at(&part.name));
            complaints.note(&part.name, seen.is_still(&mount.at(&part.name)));
        }
        for when in ["after a kill", "after two kills"] {
            crash(&mount, mode);
            for (part, seen) in parts.iter().zip(&seen) {
                let still = seen.is_still(&mount.at(&part.name));
                complaints.note(&format!("{} {when}", part.name), still);
            }
        }
        complaints.none();
    });
}

/// Bytes heal: each way to give a torn page new ones, before another crash.
#[test]
fn new_bytes_make_torn_pages_whole_for_good() {
    let deeds: [(&str, Deed); 6] = [
        ("the page written", |file, _, page, seen| {
            file.write_all_at(&pattern(3, 4096), page * PAGE).unwrap();
            seen.put(page * PAGE, &pattern(3, 4096));
        }),
        ("three pages written", |file, _, page, seen| {
            file.write_all_at(&pattern(3, 3 * 4096), (page - 1) * PAGE).unwrap();
            seen.put((page - 1) * PAGE, &pattern(3, 3 * 4096));
        }),
        ("all of it written", |file, _, _, seen| {
            file.write_all_at(&pattern(3, MIB as usize), PART.start).unwrap();
            seen.put(PART.start, &pattern(3, MIB as usize));
        }),
        ("a hole of the page", |file, _, page, seen| {
            super::punch(file, page * PAGE, PAGE);
            seen.zero(page * PAGE, PAGE);
        }),
        ("zeros for all of it", |file, _, _, seen| {
            super::zero_range(file, PART.start, MIB);
            seen.zero(PART.start, MIB);
        }),
        ("cut below it and grown", |file, _, _, seen| {
            file.set_len(PART.start).unwrap();
            file.set_len(LENGTH).unwrap();
            seen.zero(PART.start, MIB);
        }),
    ];
    let names: Vec<String> = (0..deeds.len()).map(|number| format!("t{number}")).collect();
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        let mut seen = torn_files(&mount, mode, &names);
        for ((name, (case, deed)), seen) in names.iter().zip(deeds).zip(&mut seen) {
            let file = open(&mount.at(name));
            let page = seen.midst();
            deed(&file, &mount.at(name), page, seen);
            let stored = file.sync_all().map_err(|error| error.to_string());
            complaints.note(&format!("fsync after {case}"), stored);
            complaints.note(&format!("{case}, at once"), seen.is_still(&mount.at(name)));
        }
        for when in ["after a kill", "after two kills"] {
            crash(&mount, mode);
            for ((name, (case, _)), seen) in names.iter().zip(deeds).zip(&seen) {
                complaints.note(&format!("{case}, {when}"), seen.is_still(&mount.at(name)));
            }
        }
        complaints.none();
    });
}

/// Where the device flips a bit, away from what the deeds change.
const FLIPPED: u64 = PART.start + 40 * PAGE + 77;

/// Whether the flipped bit is noticed, and nothing else refused.
fn is_noticed(path: &Path) -> Result<(), String> {
    let seen = Seen::look(path, PART.start..PART.start + 80 * PAGE);
    let refused: Vec<u64> =
        (0..80).filter(|n| seen.page(PART.start / PAGE + n).is_none()).collect();
    match refused[..] {
        [40] => Ok(()),
        [] => Err("the flipped bit was read".to_owned()),
        _ => Err(format!("pages {refused:?} are refused, not 40 alone")),
    }
}

/// Whole files with checksums, one for each deed.
fn stored_and_then(mount: &Mount) -> Vec<File> {
    for name in names() {
        store(mount, &name, 0, LENGTH);
    }
    let files = names().into_iter().zip(DEEDS).map(|(name, (_, deed))| {
        let file = open(&mount.at(&name));
        let mut seen = Seen::look(&mount.at(&name), PART);
        deed(&file, &mount.at(&name), PART.start / PAGE + 5, &mut seen);
        file
    });
    files.collect()
}

fn flip_all(mount: &Mount) {
    for name in names() {
        flip(&mount.backing(&name), FLIPPED);
    }
}

fn all_are_noticed(mount: &Mount, when: &str) {
    let mut complaints = Complaints::default();
    for (name, (deed, _)) in names().iter().zip(DEEDS) {
        complaints.note(&format!("{deed}, {when}"), is_noticed(&mount.at(name)));
    }
    complaints.none();
}

/// "bits flipped in the data of a file …: EIO. Also after touch + kill".
#[test]
fn checksums_outlast_a_crash_whatever_was_done() {
    if !is_root() {
        return;
    }
    let mount = mounted("crc32c");
    drop(stored_and_then(&mount));
    kill(&mount);
    flip_all(&mount);
    start(&mount, &options("crc32c"));
    all_are_noticed(&mount, "flipped after a kill");
}

/// The same with handles that were open at the moment of the kill, and an fsync of each.
#[test]
fn checksums_outlast_a_crash_of_open_files() {
    if !is_root() {
        return;
    }
    let mount = mounted("crc32c");
    let files = stored_and_then(&mount);
    files.iter().for_each(|file| file.sync_all().unwrap());
    kill(&mount);
    drop(files);
    flip_all(&mount);
    start(&mount, &options("crc32c"));
    all_are_noticed(&mount, "flipped after a kill");
}

/// The same when a mount and a clean end lie between the kill and the flip, and another kill.
#[test]
fn checksums_outlast_a_crash_and_a_remount() {
    if !is_root() {
        return;
    }
    let mount = mounted("crc32c");
    drop(stored_and_then(&mount));
    crash(&mount, "crc32c");
    names().iter().for_each(|name| is_read(&mount.at(name)));
    mount.remount(&options("crc32c"));
    crash(&mount, "crc32c");
    flip_all(&mount);
    all_are_noticed(&mount, "flipped after kills and remounts");
}

/// The same for bits that are flipped while nothing is mounted, after a clean end.
#[test]
fn checksums_notice_what_was_flipped_between_two_mounts() {
    if !is_root() {
        return;
    }
    let mount = mounted("crc32c");
    drop(stored_and_then(&mount));
    for when in ["flipped after a clean end", "after another mount", "after yet another"] {
        mount.unmount();
        if when.starts_with("flipped") {
            flip_all(&mount);
        }
        start(&mount, &options("crc32c"));
        all_are_noticed(&mount, when);
    }
}

fn is_read(path: &Path) {
    let seen = Seen::look(path, PART);
    assert!(seen.page(PART.start / PAGE).is_some(), "{}", path.display());
}

/// Checksums and marks are there after as many clean remounts as one likes, and the bytes of everything.
#[test]
fn seventy_remounts_lose_no_checksum_and_no_mark() {
    if !is_root() {
        return;
    }
    let mount = mounted("crc32c");
    let seen = torn(&mount, "crc32c", "torn");
    for name in ["whole", "small"] {
        store(&mount, name, 0, if name == "small" { 5000 } else { LENGTH });
        chmod(&mount.at(name), 0o600);
    }
    chmod(&mount.at("torn"), 0o600);
    for _ in 0..70 {
        mount.remount("pool_size=2m,block_size=64k,open_swap_in=none,checksum=crc32c");
    }
    seen.is_still(&mount.at("torn")).unwrap();
    is_pattern(&mount.at("whole"), LENGTH);
    mount.remount(&options("crc32c"));
    flip(&mount.backing("whole"), FLIPPED);
    flip(&mount.backing("small"), 4500);
    is_noticed(&mount.at("whole")).unwrap();
    let small = Seen::look(&mount.at("small"), 0..5000);
    assert!(small.page(0).is_some() && small.page(1).is_none());
}

/// Marks that a mount found are on stable storage when it answers: a power cut right after it loses none.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn marks_survive_a_power_cut_after_a_recovery() {
    in_both_modes(|mode| {
        alone(|| {
            let disk = SmallDisk::ext4();
            let mount = Mount::within(&disk.at, &options(mode));
            let mut complaints = Complaints::default();
            let parts: Vec<Part> = [("first", 0..64 * KIB), ("later", MIB..2 * MIB)]
                .into_iter()
                .map(|(name, range)| {
                    store(&mount, name, 0, 2 * MIB);
                    Part { name: name.to_owned(), range }
                })
                .collect();
            let seen = torn_parts(&mount, mode, &parts);
            let after = After::power_cut(&disk, &mount);
            start(&after.mount, &options(mode));
            for (part, seen) in parts.iter().zip(&seen) {
                // What else is unsynchronized may be refused, too.
                let still = seen.is_torn_still(&after.mount.at(&part.name));
                complaints.note(&part.name, still);
            }
            complaints.none();
        });
    });
}
