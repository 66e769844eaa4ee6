//! Sizes that fsync promised are there after a crash, to the byte.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{FallocateFlags, fallocate};

use super::power::{After, alone};
use super::{
    Complaints, allocate, crash, holds, in_each_of, kill, mounted, options, punch, start,
    zero_range,
};
use crate::bytes::open;
use crate::errors::SmallDisk;
use crate::place::{Mount, is_done, swapfs};
use crate::support::{MIB, Map, pattern, sync_all};

/// Sizes are exact without records, too.
const ALL: [&str; 3] = ["writes", "crc32c", "none"];

/// How a file of so many bytes is changed, and the same done to what it should hold.
struct Case {
    name: &'static str,
    base: usize,
    act: fn(&File),
    same: fn(&mut Vec<u8>),
}

/// A way to synchronize.
type Way = fn(&Mount, &File);

/// A change of a size.
type Call = fn(&File);

const CASES: [Case; 21] = [
    Case {
        name: "fallocate to 1 MiB",
        base: 5000,
        act: |file| allocate(file, 0, MIB),
        same: |bytes| bytes.resize(1 << 20, 0),
    },
    Case {
        name: "ZERO_RANGE to 1 MiB",
        base: 5000,
        act: |file| zero_range(file, 4500, MIB - 4500),
        same: |bytes| {
            bytes.truncate(4500);
            bytes.resize(1 << 20, 0);
        },
    },
    Case {
        name: "ZERO_RANGE behind the end",
        base: 5000,
        act: |file| zero_range(file, 6000, 1000),
        same: |bytes| bytes.resize(7000, 0),
    },
    Case {
        name: "ZERO_RANGE in the last page",
        base: 4100,
        act: |file| zero_range(file, 4100, 1000),
        same: |bytes| bytes.resize(5100, 0),
    },
    Case {
        name: "fallocate in the last page",
        base: 4100,
        act: |file| allocate(file, 0, 5100),
        same: |bytes| bytes.resize(5100, 0),
    },
    Case {
        name: "fallocate to the end of the page",
        base: 4100,
        act: |file| allocate(file, 8000, 192),
        same: |bytes| bytes.resize(8192, 0),
    },
    Case {
        name: "ftruncate in the last page",
        base: 4100,
        act: |file| file.set_len(5100).unwrap(),
        same: |bytes| bytes.resize(5100, 0),
    },
    Case {
        name: "zeros appended in the last page",
        base: 4100,
        act: |file| file.write_all_at(&[0; 1000], 4100).unwrap(),
        same: |bytes| bytes.resize(5100, 0),
    },
    Case {
        name: "a zero appended",
        base: 4100,
        act: |file| file.write_all_at(&[0], 4100).unwrap(),
        same: |bytes| bytes.push(0),
    },
    Case {
        name: "a zero far behind",
        base: 5000,
        act: |file| file.write_all_at(&[0], 300_000).unwrap(),
        same: |bytes| bytes.resize(300_001, 0),
    },
    Case {
        name: "ftruncate over pages",
        base: 4100,
        act: |file| file.set_len(70_000).unwrap(),
        same: |bytes| bytes.resize(70_000, 0),
    },
    Case {
        name: "ftruncate to a whole page",
        base: 5000,
        act: |file| file.set_len(8192).unwrap(),
        same: |bytes| bytes.resize(8192, 0),
    },
    Case {
        name: "one byte less",
        base: 5000,
        act: |file| file.set_len(4999).unwrap(),
        same: |bytes| bytes.truncate(4999),
    },
    Case {
        name: "cut in the page",
        base: 5000,
        act: |file| file.set_len(4100).unwrap(),
        same: |bytes| bytes.truncate(4100),
    },
    Case {
        name: "cut to a whole page",
        base: 5000,
        act: |file| file.set_len(4096).unwrap(),
        same: |bytes| bytes.truncate(4096),
    },
    Case {
        name: "cut and grown",
        base: 5000,
        act: |file| {
            file.set_len(4100).unwrap();
            file.set_len(5000).unwrap();
        },
        same: |bytes| bytes[4100..].fill(0),
    },
    Case {
        name: "cut to nothing",
        base: 5000,
        act: |file| file.set_len(0).unwrap(),
        same: Vec::clear,
    },
    Case {
        name: "cut to nothing and grown",
        base: 5000,
        act: |file| {
            file.set_len(0).unwrap();
            file.set_len(100_000).unwrap();
        },
        same: |bytes| *bytes = vec![0; 100_000],
    },
    Case {
        name: "KEEP_SIZE to 1 MiB",
        base: 5000,
        act: |file| fallocate(file, FallocateFlags::KEEP_SIZE, 0, MIB).unwrap(),
        same: |_| {},
    },
    Case {
        name: "a hole over the end",
        base: 5000,
        act: |file| punch(file, 4200, 100_000),
        same: |bytes| bytes[4200..].fill(0),
    },
    Case {
        name: "a large one that grows",
        base: 2_000_001,
        act: |file| allocate(file, 0, 2_000_500),
        same: |bytes| bytes.resize(2_000_500, 0),
    },
];

fn names() -> Vec<String> {
    (0..CASES.len()).map(|number| format!("t{number}")).collect()
}

/// What close does of a handle, while another stays.
fn close_one(file: &File) {
    drop(file.try_clone().unwrap());
}

/// Makes each case's file and does `first` to it; the handles stay open.
fn made(mount: &Mount, first: impl Fn(&File, &Mount, &str)) -> Vec<File> {
    let files = names().into_iter().zip(&CASES).map(|(name, case)| {
        let file = open(&mount.at(&name));
        file.write_all_at(&pattern(0, case.base), 0).unwrap();
        first(&file, mount, &name);
        file
    });
    files.collect()
}

/// Changes each case's file and synchronizes it.
fn change(files: &[File]) {
    for (file, case) in files.iter().zip(&CASES) {
        (case.act)(file);
        file.sync_all().unwrap();
    }
}

fn opened(mount: &Mount) -> Vec<File> {
    names().iter().map(|name| open(&mount.at(name))).collect()
}

fn are_exact(mount: &Mount, when: &str, complaints: &mut Complaints) {
    for (name, case) in names().iter().zip(&CASES) {
        let mut expected = pattern(0, case.base);
        (case.same)(&mut expected);
        let exact = holds(&mount.at(name), &expected);
        complaints.note(&format!("{}, {when}", case.name), exact);
    }
}

fn sizes_survive(first: impl Fn(&File, &Mount, &str) + Sync) {
    in_each_of(&ALL, |mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        let files = made(&mount, &first);
        change(&files);
        are_exact_after_kills(&mount, mode, files, &mut complaints);
        complaints.none();
    });
}

fn are_exact_after_kills(mount: &Mount, mode: &str, files: Vec<File>, complaints: &mut Complaints) {
    kill(mount);
    drop(files);
    start(mount, &options(mode));
    are_exact(mount, "after a kill", complaints);
    crash(mount, mode);
    are_exact(mount, "after two kills", complaints);
    mount.remount(&options(mode));
    are_exact(mount, "after a remount", complaints);
}

/// The same where the first bytes are of an earlier mount, which ended properly or not.
#[test]
fn a_size_is_exact_after_a_mount_a_change_and_fsync() {
    in_each_of(&ALL, |mode| {
        for killed in [false, true] {
            let mount = mounted(mode);
            let mut complaints = Complaints::default();
            let files = made(&mount, |file, _, _| file.sync_all().unwrap());
            if killed {
                kill(&mount);
                drop(files);
                start(&mount, &options(mode));
            } else {
                drop(files);
                mount.remount(&options(mode));
            }
            let files = opened(&mount);
            change(&files);
            are_exact_after_kills(&mount, mode, files, &mut complaints);
            complaints.none();
        }
    });
}

/// "What fsync covered … is exact, in bytes and size": of a file whose first bytes had been handed over by a close.
#[test]
fn a_size_is_exact_after_a_close_a_change_and_fsync() {
    sizes_survive(|file, _, _| close_one(file));
}

/// The same where a request handed them over.
#[test]
fn a_size_is_exact_after_a_swap_out_a_change_and_fsync() {
    sizes_survive(|_, mount, name| {
        is_done(&swapfs(&["swap-out", "--wait", mount.at(name).to_str().unwrap()]));
    });
}

/// The same where an fsync had covered them.
#[test]
fn a_size_is_exact_after_an_fsync_a_change_and_fsync() {
    sizes_survive(|file, _, _| file.sync_all().unwrap());
}

/// The same where they were in the pool alone.
#[test]
fn a_size_is_exact_after_a_change_and_fsync() {
    sizes_survive(|_, _, _| {});
}

/// "fsync'd sizes are exact" after a power cut, too.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_size_is_exact_after_a_power_cut() {
    sizes_survive_a_power_cut(|file, _, _| close_one(file));
}

/// The same where an fsync had covered the first bytes.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_size_is_exact_after_an_fsync_a_change_and_a_power_cut() {
    sizes_survive_a_power_cut(|file, _, _| file.sync_all().unwrap());
}

fn sizes_survive_a_power_cut(first: impl Fn(&File, &Mount, &str) + Sync) {
    in_each_of(&ALL, |mode| {
        alone(|| {
            let disk = SmallDisk::ext4();
            let mount = Mount::within(&disk.at, &options(mode));
            let files = made(&mount, &first);
            // Their names are on stable storage, too.
            File::open(&mount.swap).unwrap().sync_all().unwrap();
            change(&files);
            let after = After::power_cut(&disk, &mount);
            start(&after.mount, &options(mode));
            let mut complaints = Complaints::default();
            are_exact(&after.mount, "after a power cut", &mut complaints);
            crash(&after.mount, mode);
            are_exact(&after.mount, "after a kill, too", &mut complaints);
            drop(files);
            complaints.none();
        });
    });
}

/// Every way to synchronize promises the size.
#[test]
fn every_kind_of_fsync_promises_the_size() {
    let ways: [(&str, Way); 7] = [
        ("fsync", |_, file| file.sync_all().unwrap()),
        ("fdatasync", |_, file| file.sync_data().unwrap()),
        ("fsync of the root", |mount, _| sync_all(&mount.mnt)),
        ("fsync by another handle", |mount, _| open(&mount.at("t3")).sync_all().unwrap()),
        ("fsync for reading alone", |mount, _| {
            File::open(mount.at("t4")).unwrap().sync_all().unwrap();
        }),
        ("fsync after a close", |_, file| {
            close_one(file);
            file.sync_all().unwrap();
        }),
        ("msync", |_, file| {
            let map = Map::new(file, 100, true, true);
            map.write(0, &pattern(0, 100));
            map.sync();
            file.sync_data().unwrap();
        }),
    ];
    in_each_of(&ALL, |mode| {
        let mount = mounted(mode);
        let mut files = Vec::new();
        for (number, (_, way)) in ways.iter().enumerate() {
            let file = open(&mount.at(&format!("t{number}")));
            file.write_all_at(&pattern(0, 5000), 0).unwrap();
            close_one(&file);
            file.set_len(MIB + 1).unwrap();
            way(&mount, &file);
            files.push(file);
        }
        kill(&mount);
        drop(files);
        start(&mount, &options(mode));
        let mut expected = pattern(0, 5000);
        expected.resize((1 << 20) + 1, 0);
        let mut complaints = Complaints::default();
        for (number, (case, _)) in ways.iter().enumerate() {
            complaints.note(case, holds(&mount.at(&format!("t{number}")), &expected));
        }
        complaints.none();
    });
}

/// A file that grows by odd pieces, with a kill after each fsync.
#[test]
fn a_file_that_grows_is_exact_after_each_kill() {
    in_each_of(&ALL, |mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        let mut expected = Vec::new();
        for piece in [1, 4094, 2, 1000, 3096, 65_536, 5, 100_000, 4096] {
            let file = open(&mount.at("t"));
            let (at, zeros) = (expected.len(), piece == 1000 || piece == 5);
            let bytes = if zeros { vec![0; piece] } else { pattern(at as u64, piece) };
            file.write_all_at(&bytes, at as u64).unwrap();
            file.sync_all().unwrap();
            expected.extend(bytes);
            kill(&mount);
            drop(file);
            start(&mount, &options(mode));
            complaints.note(&format!("{piece} bytes at {at}"), holds(&mount.at("t"), &expected));
        }
        complaints.none();
    });
}

/// "Size: one of the sizes since"; what fsync covered and no call has changed is there.
#[test]
fn a_size_that_nobody_synchronized_is_one_that_it_had() {
    let calls: [(&str, Call, &[u64]); 6] = [
        ("grown", |file| file.set_len(70_000).unwrap(), &[5000, 70_000]),
        (
            "grown twice",
            |file| {
                file.set_len(6000).unwrap();
                file.set_len(7000).unwrap();
            },
            &[5000, 6000, 7000],
        ),
        ("cut", |file| file.set_len(4100).unwrap(), &[5000, 4100]),
        (
            "cut and grown",
            |file| {
                file.set_len(4100).unwrap();
                file.set_len(9000).unwrap();
            },
            &[5000, 4100, 9000],
        ),
        ("appended", |file| file.write_all_at(&[7; 10], 5000).unwrap(), &[5000, 5010]),
        ("allocated", |file| allocate(file, 0, MIB), &[5000, MIB]),
    ];
    in_each_of(&ALL, |mode| {
        let mount = mounted(mode);
        let mut files = Vec::new();
        for (number, (_, call, _)) in calls.iter().enumerate() {
            let file = open(&mount.at(&format!("t{number}")));
            file.write_all_at(&pattern(0, 5000), 0).unwrap();
            file.sync_all().unwrap();
            call(&file);
            files.push(file);
        }
        kill(&mount);
        drop(files);
        start(&mount, &options(mode));
        let mut complaints = Complaints::default();
        for (number, (case, _, sizes)) in calls.iter().enumerate() {
            let file = File::open(mount.at(&format!("t{number}"))).unwrap();
            let size = file.metadata().unwrap().len();
            let had = sizes.contains(&size).then_some(()).ok_or(format!("{size} bytes"));
            complaints.note(case, had);
            let mut first = [0; 4096];
            let read = file.read_exact_at(&mut first, 0).map_err(|error| error.to_string());
            complaints.note(&format!("{case}: its first page"), read);
            let kept = first[..] == pattern(0, 4096);
            complaints.note(case, kept.then_some(()).ok_or("other bytes".to_owned()));
        }
        complaints.none();
    });
}
