//! One write(2) that the kernel sends in pieces which end within a page: no page is half of it, half from before.

use std::fs::{File, OpenOptions};
use std::io::IoSlice;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use rustix::io::pwritev;

use super::{Complaints, PAGE, crash, in_both_modes, kill, start};
use crate::place::Mount;

const LENGTH: usize = 1_638_400;

/// Bytes that lie `skew` bytes behind the beginning of a page of memory.
struct Bytes(Vec<u8>, usize);

impl Bytes {
    fn new(byte: u8, length: usize, skew: usize) -> Self {
        let bytes = vec![byte; length + 2 * PAGE as usize];
        let start = bytes.as_ptr().align_offset(PAGE as usize) + skew;
        Self(bytes, start)
    }

    fn get(&self, length: usize) -> &[u8] {
        &self.0[self.1..self.1 + length]
    }
}

/// Writes the bytes over a file, in one call.
type Rewrite = fn(&File, &Bytes);

fn whole(file: &File, bytes: &Bytes) {
    assert_eq!(file.write_at(bytes.get(LENGTH), 0).unwrap(), LENGTH);
}

/// From as many vectors as a request has pages, and more.
fn vectors(file: &File, bytes: &Bytes) {
    let bytes = bytes.get(LENGTH);
    let mut slices = Vec::new();
    let mut at = 0;
    for number in 0..900_usize {
        let length = (number * 577 % 1900 + 37).min(LENGTH - at);
        slices.push(IoSlice::new(&bytes[at..at + length]));
        at += length;
    }
    assert_eq!(pwritev(file, &slices, 0).unwrap(), at);
}

/// While another thread wants everything stored.
fn beside_syncs(file: &File, bytes: &Bytes) {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                file.sync_data().unwrap();
            }
        });
        for _ in 0..3 {
            whole(file, bytes);
        }
        done.store(true, Ordering::Relaxed);
    });
}

/// The pages that are neither all `one` nor all `other`; what cannot be read is no mixture.
fn mixtures(file: &File, one: u8, other: u8) -> Result<(), String> {
    let mut page = vec![0; PAGE as usize];
    for at in 0..LENGTH as u64 / PAGE {
        if file.read_exact_at(&mut page, at * PAGE).is_err() {
            continue;
        }
        if page.iter().any(|byte| *byte != page[0]) || ![one, other].contains(&page[0]) {
            let old = page.iter().filter(|byte| **byte == one).count();
            return Err(format!("page {at} has {old} bytes from before, and others"));
        }
    }
    Ok(())
}

const CASES: [(&str, i32, usize, Rewrite); 6] = [
    ("memory 704 bytes behind a page", 0, 704, whole),
    ("memory 1 byte behind a page", 0, 1, whole),
    ("memory 4095 bytes behind a page", 0, 4095, whole),
    ("O_DIRECT, memory 704 bytes behind a page", libc::O_DIRECT, 704, whole),
    ("many vectors", 0, 8, vectors),
    ("beside another thread's fdatasync", 0, 704, beside_syncs),
];

/// The whole file is on stable storage, open, and in the pool; a rewrite is answered in full, and the daemon is killed
/// at once or a little later.
#[test]
fn no_page_is_half_of_an_answered_write() {
    in_both_modes(|mode| {
        // The pool has room for all, and a block is as long as a request.
        let options = format!("pool_size=64m,checksum={mode}");
        let mount = Mount::lasting(
            Duration::from_secs(300),
            std::path::Path::new(env!("CARGO_TARGET_TMPDIR")),
            &options,
        );
        let mut complaints = Complaints::default();
        for (case, flags, skew, rewrite) in CASES {
            for pause_ms in [0, 5, 60] {
                let path = mount.at("f");
                let mut how = OpenOptions::new();
                let file = how.read(true).write(true).create(true).custom_flags(flags).open(&path);
                let file = file.unwrap();
                file.write_all_at(Bytes::new(1, LENGTH, 0).get(LENGTH), 0).unwrap();
                file.sync_all().unwrap();
                rewrite(&file, &Bytes::new(2, LENGTH, skew));
                thread::sleep(Duration::from_millis(pause_ms));
                kill(&mount);
                drop(file);
                start(&mount, &options);
                let found = mixtures(&File::open(&path).unwrap(), 1, 2);
                complaints.note(&format!("{case}, killed after {pause_ms} ms"), found);
                std::fs::remove_file(&path).unwrap();
            }
        }
        complaints.none();
    });
}

/// However many pieces of pages somebody writes, what they lie in goes out: for whoever wants it stored, and for whoever
/// needs the room.
#[test]
fn whoever_writes_parts_of_pages_without_end_holds_up_nobody() {
    let mount = Mount::new("pool_size=8m,block_size=1m");
    let file = crate::bytes::open(&mount.at("parts"));
    file.write_all_at(&vec![1; 8 << 20], 0).unwrap();
    file.sync_all().unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        for half in 0..2 {
            let (file, done) = (&file, &done);
            scope.spawn(move || {
                let mut at = half * 777;
                while !done.load(Ordering::Relaxed) {
                    // Another page, in another block, each time.
                    at = (at + (1 << 20) + PAGE + 1) % (8 << 20);
                    file.write_all_at(&[2], at).unwrap();
                }
            });
        }
        let (sender, ended) = std::sync::mpsc::channel();
        let (file, mount) = (&file, &mount);
        scope.spawn(move || {
            (0..20).for_each(|_| file.sync_data().unwrap());
            crate::bytes::open(&mount.at("other")).write_all_at(&vec![3; 32 << 20], 0).unwrap();
            sender.send(()).unwrap();
        });
        let end = ended.recv_timeout(Duration::from_secs(120));
        done.store(true, Ordering::Relaxed);
        end.expect("syncs and another's write end");
    });
}

/// What the page waits for ends: fsync after it, and a client that goes on with something else, wait for nothing.
#[test]
fn a_write_that_ends_within_a_page_is_stored_when_asked() {
    in_both_modes(|mode| {
        let mount = super::mounted(mode);
        let file = crate::bytes::open(&mount.at("f"));
        file.write_all_at(&[1; 100_000], 0).unwrap();
        file.sync_all().unwrap();
        // By the thread that wrote, by another, and without anybody who asks.
        file.write_all_at(&[2; 5000], 0).unwrap();
        file.sync_data().unwrap();
        file.write_all_at(&[3; 5000], 20_000).unwrap();
        thread::scope(|scope| scope.spawn(|| file.sync_data().unwrap()).join().unwrap());
        file.write_all_at(&[4; 5000], 60_000).unwrap();
        let backing = mount.backing("f");
        crate::support::wait_until("the last bytes in the swap folder", || {
            std::fs::read(&backing).unwrap()[60_000..65_000].iter().all(|byte| *byte == 4)
        });
        // Its end is on record a moment later.
        thread::sleep(Duration::from_millis(200));
        crash(&mount, mode);
        let expected = [(0, 2), (5000, 1), (20_000, 3), (25_000, 1), (60_000, 4), (65_000, 1)];
        let bytes = std::fs::read(mount.at("f")).unwrap();
        for (at, byte) in expected {
            assert!(bytes[at..at + 5000].iter().all(|found| *found == byte), "at {at}");
        }
    });
}

/// With O_DSYNC each piece is stored before the next one comes: a kill between the two leaves the page torn.
#[test]
fn no_page_is_half_of_a_write_that_is_stored_piece_by_piece() {
    in_both_modes(|mode| {
        let mount = super::mounted(mode);
        let mut complaints = Complaints::default();
        for round in 0..16_u64 {
            let path = mount.at("f");
            let mut how = OpenOptions::new();
            how.read(true).write(true).create(true);
            how.open(&path).unwrap().write_all_at(Bytes::new(1, LENGTH, 0).get(LENGTH), 0).unwrap();
            let file = how.custom_flags(libc::O_DSYNC).open(&path).unwrap();
            file.sync_all().unwrap();
            thread::scope(|scope| {
                let (file, mount) = (&file, &mount);
                scope.spawn(move || {
                    // Until there is no daemon any more.
                    while [2, 1].iter().all(|byte| {
                        file.write_at(Bytes::new(*byte, LENGTH, 704).get(LENGTH), 0).is_ok()
                    }) {}
                });
                thread::sleep(Duration::from_micros(300 * round + 100));
                kill(mount);
            });
            drop(file);
            start(&mount, &super::options(mode));
            let found = mixtures(&File::open(&path).unwrap(), 1, 2);
            complaints.note(&format!("killed in round {round}"), found);
            std::fs::remove_file(&path).unwrap();
        }
        complaints.none();
    });
}

/// A write that happens to be as long as a piece is whole when its thread goes on, when somebody syncs, and after a moment.
#[test]
fn a_write_as_long_as_a_piece_is_whole_in_the_end() {
    const CUT: usize = (1 << 20) - 704;
    let elsewhere = |file: &File| assert_eq!(file.write_at(b"x", LENGTH as u64).unwrap(), 1);
    type End = dyn Fn(&File) + Sync;
    let ends: [(&str, &End); 4] = [
        ("its thread goes on", &elsewhere),
        ("somebody syncs all", &|_| ()),
        ("another thread syncs", &|file| {
            thread::scope(|scope| scope.spawn(|| file.sync_data().unwrap()).join().unwrap());
        }),
        ("time passes", &|_| thread::sleep(Duration::from_millis(500))),
    ];
    in_both_modes(|mode| {
        let mount = super::mounted(mode);
        for (case, end) in ends {
            let path = mount.at("f");
            let mut how = OpenOptions::new();
            how.read(true).write(true).create(true).custom_flags(libc::O_DSYNC);
            let file = how.open(&path).unwrap();
            file.write_all_at(Bytes::new(1, LENGTH, 0).get(LENGTH), 0).unwrap();
            assert_eq!(file.write_at(Bytes::new(2, CUT, 704).get(CUT), 0).unwrap(), CUT, "{case}");
            end(&file);
            if case == "somebody syncs all" {
                File::open(&mount.mnt).unwrap().sync_all().unwrap();
            }
            crash(&mount, mode);
            drop(file);
            let bytes = std::fs::read(&path).unwrap();
            assert!(bytes[..CUT].iter().all(|byte| *byte == 2), "{case}");
            assert!(bytes[CUT..LENGTH].iter().all(|byte| *byte == 1), "{case}");
            std::fs::remove_file(&path).unwrap();
        }
    });
}
