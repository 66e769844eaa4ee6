//! Holes, cuts and allocations: what they do not replace they do not mend.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::seen::Seen;
use super::tear::{Part, torn_files, torn_parts};
use super::{
    Complaints, LENGTH, PAGE, PART, allocate, crash, flip, in_both_modes, mounted, options, punch,
    store, zero_range,
};
use crate::bytes::open;
use crate::place::Mount;
use crate::support::{MIB, pattern};

/// Something done to a torn file, one torn page of which is named, and what is expected from then on.
type Deed = fn(&File, u64, &mut Seen);

fn names(count: usize) -> Vec<String> {
    (0..count).map(|number| format!("t{number}")).collect()
}

/// Does each deed to its file, and looks at once, after fsync and a kill, another kill, and a remount.
fn holds_out(mount: &Mount, mode: &str, deeds: &[(&str, Deed)], mut seen: Vec<Seen>) {
    let mut complaints = Complaints::default();
    let names = names(deeds.len());
    for ((name, (case, deed)), seen) in names.iter().zip(deeds).zip(&mut seen) {
        let file = open(&mount.at(name));
        let page = seen.midst();
        deed(&file, page, seen);
        let stored = file.sync_all().map_err(|error| error.to_string());
        complaints.note(&format!("fsync after {case}"), stored);
    }
    for when in ["at once", "after a kill", "after two kills", "after a remount"] {
        match when {
            "at once" => {}
            "after a remount" => mount.remount(&options(mode)),
            _ => crash(mount, mode),
        }
        for ((name, (case, _)), seen) in names.iter().zip(deeds).zip(&seen) {
            complaints.note(&format!("{case}, {when}"), seen.is_still(&mount.at(name)));
        }
    }
    complaints.none();
}

fn of_usual_files(deeds: &[(&str, Deed)]) {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let seen = torn_files(&mount, mode, &names(deeds.len()));
        holds_out(&mount, mode, deeds, seen);
    });
}

/// "punch/zero of part of it": the rest of the page is as torn as before.
#[test]
fn a_hole_in_a_part_of_a_torn_page_mends_nothing() {
    of_usual_files(&[
        ("a hole of a byte", |file, page, _| punch(file, page * PAGE + 1000, 1)),
        ("a hole of its first byte", |file, page, _| punch(file, page * PAGE, 1)),
        ("a hole of its last byte", |file, page, _| punch(file, page * PAGE + 4095, 1)),
        ("a hole of all but a byte", |file, page, _| punch(file, page * PAGE, 4095)),
        ("a hole over two halves", |file, page, _| punch(file, page * PAGE - 2048, 4096)),
        ("a zero", |file, page, _| zero_range(file, page * PAGE + 1000, 1)),
        ("zeros for all but a byte", |file, page, _| zero_range(file, page * PAGE + 1, 4095)),
        ("zeros over two halves", |file, page, _| zero_range(file, page * PAGE - 2048, 4096)),
        ("a hole of two halves and a page", |file, page, seen| {
            punch(file, page * PAGE - 100, 4096 + 200);
            seen.zero(page * PAGE, PAGE);
        }),
        ("two holes of a half", |file, page, _| {
            punch(file, page * PAGE, 2000);
            punch(file, page * PAGE + 2100, 1996);
        }),
    ]);
}

/// Allocating a part of it, too, which changes no byte.
#[test]
fn allocations_mend_nothing() {
    of_usual_files(&[
        ("fallocate of all", |file, _, _| allocate(file, 0, LENGTH)),
        ("fallocate of the page", |file, page, _| allocate(file, page * PAGE, PAGE)),
        ("KEEP_SIZE", |file, page, _| {
            fallocate(file, FallocateFlags::KEEP_SIZE, page * PAGE, 5 * MIB).unwrap();
        }),
        ("fallocate that grows", |file, _, seen| {
            allocate(file, PART.start, 4 * MIB);
            seen.resize(5 * MIB);
        }),
        ("zeros that grow, behind it", |file, _, seen| {
            zero_range(file, PART.end + 100, 4 * MIB);
            seen.resize(PART.end + 100 + 4 * MIB);
        }),
    ]);
}

/// What is far away from a mark does not touch it, however large it is.
#[test]
fn a_hole_of_many_megabytes_leaves_the_marks_behind_it() {
    let deeds: [(&str, Deed); 8] = [
        ("a hole of 257 MiB", |file, _, _| punch(file, 0, 257 * MIB)),
        ("zeros for 257 MiB", |file, _, _| zero_range(file, 0, 257 * MIB)),
        ("a hole up to it", |file, _, _| punch(file, 0, 300 * MIB)),
        ("a hole behind it", |file, _, _| punch(file, 301 * MIB, 600 * MIB)),
        ("a hole of an odd length", |file, _, _| punch(file, 77, 299 * MIB + 1)),
        ("1 TiB", |file, _, seen| {
            file.set_len(1 << 40).unwrap();
            seen.resize(1 << 40);
        }),
        ("a hole behind it in 1 TiB", |file, _, seen| {
            file.set_len(1 << 40).unwrap();
            punch(file, 302 * MIB, 1 << 38);
            seen.resize(1 << 40);
        }),
        ("bytes at the beginning", |file, _, _| {
            file.write_all_at(&pattern(0, MIB as usize), 0).unwrap();
        }),
    ];
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let parts: Vec<Part> = names(deeds.len())
            .into_iter()
            .map(|name| {
                store(&mount, &name, 300 * MIB, MIB);
                Part { name, range: 300 * MIB..301 * MIB }
            })
            .collect();
        let seen = torn_parts(&mount, mode, &parts);
        holds_out(&mount, mode, &deeds, seen);
    });
}

/// "failing calls": what was refused has changed nothing, the marks included.
#[test]
fn a_call_that_fails_mends_nothing() {
    of_usual_files(&[
        ("ZERO_RANGE of too much", |file, _, _| {
            fallocate(file, FallocateFlags::ZERO_RANGE, PART.start, 1 << 50).unwrap_err();
        }),
        ("ZERO_RANGE of too much from 0", |file, _, _| {
            fallocate(file, FallocateFlags::ZERO_RANGE, 0, 1 << 50).unwrap_err();
        }),
        ("fallocate of too much", |file, _, _| {
            fallocate(file, FallocateFlags::empty(), 0, 1 << 50).unwrap_err();
        }),
        ("ftruncate to too much", |file, _, _| drop(file.set_len(1 << 60).unwrap_err())),
        ("COLLAPSE_RANGE", |file, page, _| {
            let flags = FallocateFlags::COLLAPSE_RANGE;
            fallocate(file, flags, page * PAGE, PAGE).unwrap_err();
        }),
        ("INSERT_RANGE", |file, page, _| {
            fallocate(file, FallocateFlags::INSERT_RANGE, page * PAGE, PAGE).unwrap_err();
        }),
        ("a hole of nothing", |file, page, _| {
            let hole = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            fallocate(file, hole, page * PAGE, 0).unwrap_err();
        }),
    ]);
}

/// "ftruncate that does not cut it off": what is left of a torn page is torn, and stays so when the file grows again.
#[test]
fn a_cut_through_a_torn_page_leaves_it_torn() {
    of_usual_files(&[
        ("cut after 100 bytes", |file, page, seen| cut(file, page * PAGE + 100, seen)),
        ("cut after a byte", |file, page, seen| cut(file, page * PAGE + 1, seen)),
        ("cut before its last byte", |file, page, seen| cut(file, page * PAGE + 4095, seen)),
        ("cut behind it", |file, page, seen| cut(file, (page + 1) * PAGE, seen)),
        ("cut before it", |file, page, seen| cut(file, page * PAGE, seen)),
        ("cut through it and grown in it", |file, page, seen| {
            cut(file, page * PAGE + 100, seen);
            cut(file, page * PAGE + 3000, seen);
        }),
        ("cut through it and grown", |file, page, seen| {
            cut(file, page * PAGE + 100, seen);
            cut(file, LENGTH + 1, seen);
        }),
        ("cut through it twice", |file, page, seen| {
            cut(file, page * PAGE + 3000, seen);
            cut(file, page * PAGE + 100, seen);
        }),
    ]);
}

fn cut(file: &File, length: u64, seen: &mut Seen) {
    file.set_len(length).unwrap();
    seen.resize(length);
}

/// A torn page that was written to in part can be stored by nobody, but replaced like any other: by what takes all of it,
/// or begins or ends right beside it.
#[test]
fn a_torn_page_that_waits_for_its_rest_is_replaced_as_a_whole() {
    fn part(file: &File, page: u64) {
        file.write_all_at(&[7; 100], page * PAGE + 1000).unwrap();
    }
    of_usual_files(&[
        ("zeros from it on", |file, page, seen| {
            part(file, page);
            zero_range(file, page * PAGE, 3 * PAGE - 5);
            seen.zero(page * PAGE, 3 * PAGE - 5);
        }),
        ("a hole up to its end", |file, page, seen| {
            part(file, page);
            punch(file, (page - 1) * PAGE, 2 * PAGE);
            seen.zero((page - 1) * PAGE, 2 * PAGE);
        }),
        ("a hole up to it, and then it", |file, page, seen| {
            part(file, page);
            punch(file, (page - 1) * PAGE, PAGE);
            punch(file, page * PAGE, PAGE);
            seen.zero((page - 1) * PAGE, 2 * PAGE);
        }),
        ("zeros behind it, and then it", |file, page, seen| {
            part(file, page);
            zero_range(file, (page + 1) * PAGE, PAGE);
            zero_range(file, page * PAGE, PAGE);
            seen.zero(page * PAGE, 2 * PAGE);
        }),
        ("its bytes", |file, page, seen| {
            part(file, page);
            file.write_all_at(&pattern(5, 4096), page * PAGE).unwrap();
            seen.put(page * PAGE, &pattern(5, 4096));
        }),
        ("a cut before it", |file, page, seen| {
            part(file, page);
            cut(file, page * PAGE, seen);
        }),
    ]);
}

/// Of the last page, all of it up to the file's end is a whole page; less is not.
#[test]
fn the_last_page_is_mended_by_all_of_it_alone() {
    const END: u64 = MIB + 300_001;
    const LAST: u64 = END / PAGE * PAGE;
    const TAIL: usize = (END - LAST) as usize;
    let deeds: [(&str, Deed); 7] = [
        ("all of it", |file, _, seen| {
            file.write_all_at(&pattern(5, TAIL), LAST).unwrap();
            seen.put(LAST, &pattern(5, TAIL));
        }),
        ("all of it and more", |file, _, seen| {
            file.write_all_at(&pattern(5, 5000), LAST).unwrap();
            seen.put(LAST, &pattern(5, 5000));
        }),
        ("the page, and so more", |file, _, seen| {
            file.write_all_at(&pattern(5, 4096), LAST).unwrap();
            seen.put(LAST, &pattern(5, 4096));
        }),
        ("a hole of all of it", |file, _, seen| {
            punch(file, LAST, PAGE);
            seen.zero(LAST, TAIL as u64);
        }),
        ("a hole of all but its last byte", |file, _, _| punch(file, LAST, TAIL as u64 - 1)),
        ("grown", |file, _, seen| cut(file, END + 10, seen)),
        ("grown over pages", |file, _, seen| cut(file, END + 100_000, seen)),
    ];
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let parts: Vec<Part> = names(deeds.len())
            .into_iter()
            .map(|name| {
                store(&mount, &name, 0, END);
                // The last page is the first of a block, and all of that.
                Part { name, range: LAST..END }
            })
            .collect();
        let seen = torn_parts(&mount, mode, &parts);
        holds_out(&mount, mode, &deeds, seen);
    });
}

/// Bits of a page have flipped, and nobody has read it since: what a change of shape leaves of it is still damaged.
#[test]
fn what_is_left_of_a_damaged_page_is_still_damaged() {
    type Change = fn(&File);
    const CHANGES: [(&str, Change); 5] = [
        ("a hole behind", |file| punch(file, PAGE + 2000, 10)),
        ("a hole up to it", |file| punch(file, 0, PAGE + 500)),
        ("zeros", |file| zero_range(file, PAGE + 500, 100)),
        ("a cut", |file| file.set_len(PAGE + 2500).unwrap()),
        ("cuts and growth", |file| {
            file.set_len(PAGE + 2500).unwrap();
            file.set_len(4 * PAGE).unwrap();
        }),
    ];
    let mode = "crc32c";
    let mount = mounted(mode);
    let names = names(CHANGES.len());
    names.iter().for_each(|name| store(&mount, name, 0, 4 * PAGE));
    mount.remount(&options(mode));
    let mut complaints = Complaints::default();
    for (name, (_, change)) in names.iter().zip(CHANGES) {
        flip(&mount.backing(name), PAGE + 1000);
        let file = open(&mount.at(name));
        change(&file);
        let _ = file.sync_all();
    }
    for when in ["at once", "after a kill", "after a remount"] {
        match when {
            "at once" => {}
            "after a kill" => crash(&mount, mode),
            _ => mount.remount(&options(mode)),
        }
        for (name, (case, _)) in names.iter().zip(CHANGES) {
            let file = File::open(mount.at(name)).unwrap();
            let read = file.read_at(&mut [0; 2000], PAGE + 510);
            let refused = read.is_err().then_some(()).ok_or("it is read".to_owned());
            complaints.note(&format!("{case}, {when}"), refused);
            // Its neighbour is whole.
            let first = file.read_exact_at(&mut [0; 400], 0).map_err(|error| error.to_string());
            complaints.note(&format!("beside {case}, {when}"), first);
        }
    }
    complaints.none();
}
