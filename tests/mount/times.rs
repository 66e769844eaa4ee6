//! Times.

use std::fs::{self, File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rustix::fs::{AtFlags, CWD, FallocateFlags, StatxFlags, fallocate, statx};

use crate::bytes::open;
use crate::errors::SmallDisk;
use crate::place::Mount;
use crate::support::{
    MIB, Map, Random, occupied, pattern, set_xattr, sync_all, wait_until, write_pattern,
};

fn long_ago(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000 + seconds, 123_456_789)
}

/// "writing it out later changes no mtime that the user set".
#[test]
fn a_time_that_was_set_survives_the_write_out() {
    let mount = Mount::new("pool_size=8m");
    // Closed with everything, with a partial block, and with more than the pool holds.
    for (number, length) in [MIB, 5000, 20 * MIB + 1].into_iter().enumerate() {
        let (name, time) = (format!("file{number}"), long_ago(number as u64));
        let file = open(&mount.at(&name));
        write_pattern(&file, length, 400_000);
        let times = FileTimes::new().set_modified(time).set_accessed(long_ago(77));
        file.set_times(times).unwrap();
        assert_eq!(file.metadata().unwrap().modified().unwrap(), time);
        drop(file);
        let backing = mount.backing(&name);
        wait_until("the write-out", || {
            let metadata = fs::metadata(&backing).unwrap();
            metadata.len() == length && occupied(&backing) >= length / 2
        });
        sync_all(&mount.mnt);
        std::thread::sleep(Duration::from_millis(100));
        for path in [mount.at(&name), backing] {
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!(metadata.modified().unwrap(), time, "{}", path.display());
            assert_eq!(metadata.accessed().unwrap(), long_ago(77), "{}", path.display());
        }
    }
    mount.unmount();
    for number in 0..3 {
        let metadata = fs::metadata(mount.backing(&format!("file{number}"))).unwrap();
        assert_eq!(metadata.modified().unwrap(), long_ago(number));
    }
}

/// The same when everything was written out before, and only what was reserved ahead is left to give back.
#[test]
fn a_time_that_was_set_on_clean_bytes_survives_the_close() {
    let mount = Mount::new("pool_size=8m");
    let file = open(&mount.at("file"));
    write_pattern(&file, 3 * MIB, 400_000);
    file.sync_data().unwrap();
    file.set_times(FileTimes::new().set_modified(long_ago(5))).unwrap();
    drop(file);
    sync_all(&mount.mnt);
    mount.unmount();
    let found = fs::metadata(mount.backing("file")).unwrap();
    assert_eq!(found.modified().unwrap(), long_ago(5));
}

/// A write changes the time at once, to what it stays at when written out.
#[test]
fn a_write_sets_the_time_once() {
    let mount = Mount::new("pool_size=8m");
    let file = open(&mount.at("file"));
    file.write_all_at(&pattern(0, 10_000), 0).unwrap();
    file.set_times(FileTimes::new().set_modified(long_ago(0))).unwrap();
    let before = SystemTime::now() - Duration::from_millis(50);
    file.write_all_at(b"x", 3).unwrap();
    let modified = file.metadata().unwrap().modified().unwrap();
    assert!(modified >= before && modified <= SystemTime::now());
    std::thread::sleep(Duration::from_millis(1500));
    file.sync_all().unwrap();
    drop(file);
    sync_all(&mount.mnt);
    for path in [mount.at("file"), mount.backing("file")] {
        let found = fs::metadata(&path).unwrap().modified().unwrap();
        let apart = found.max(modified).duration_since(found.min(modified)).unwrap();
        assert!(apart < Duration::from_millis(20), "{}: {apart:?}", path.display());
    }
}

/// "same … times": a file of before keeps its own until somebody changes it.
#[test]
fn reading_changes_no_modification_time() {
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    write_pattern(&open(&path), 3 * MIB, 1 << 20);
    sync_all(&mount.mnt);
    let before = fs::metadata(&path).unwrap();
    fs::read(&path).unwrap();
    drop(open(&path));
    let after = fs::metadata(mount.backing("file")).unwrap();
    let times = |metadata: &fs::Metadata| (metadata.mtime(), metadata.mtime_nsec());
    assert_eq!(times(&before), times(&after));
}

/// Modification and change time in nanoseconds since 1970, asked of the daemon, not of the kernel's cache.
fn times(path: &Path) -> (i64, i64) {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    let found = statx(CWD, path, flags, StatxFlags::BASIC_STATS).unwrap();
    let ns =
        |time: rustix::fs::StatxTimestamp| time.tv_sec * 1_000_000_000 + i64::from(time.tv_nsec);
    (ns(found.stx_mtime), ns(found.stx_ctime))
}

/// A change of a file, or of the folder it is in.
type Change = fn(&Path);

fn beside(path: &Path, name: &str) -> PathBuf {
    path.parent().unwrap().join(name)
}

/// Changes that give a file a new modification time and a new change time.
const WRITES: [(&str, Change); 7] = [
    ("write", |path| open(path).write_all_at(b"changed", 5).unwrap()),
    ("long write", |path| open(path).write_all_at(&[7; 200_000], 4000).unwrap()),
    ("truncate", |path| open(path).set_len(123).unwrap()),
    ("growth", |path| {
        let file = open(path);
        file.set_len(file.metadata().unwrap().len() + 5000).unwrap();
    }),
    ("touch", |path| {
        let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
        let both = rustix::fs::Timestamps { last_access: now, last_modification: now };
        rustix::fs::futimens(open(path), &both).unwrap();
    }),
    ("fallocate", |path| fallocate(open(path), FallocateFlags::empty(), 0, 300_000).unwrap()),
    ("mapped store", |path| {
        let file = open(path);
        file.set_len(8192).unwrap();
        let map = Map::new(&file, 4096, true, true);
        map.write(7, b"stored");
        map.sync();
    }),
];

/// Changes that give a file a new change time.
const ATTRIBUTES: [(&str, Change); 4] = [
    ("chmod", |path| fs::set_permissions(path, Permissions::from_mode(0o640)).unwrap()),
    ("a time of long ago", |path| open(path).set_modified(long_ago(1)).unwrap()),
    ("setxattr", |path| {
        // The same value again would be no change.
        let value = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        set_xattr(path, "user.note", value.as_nanos().to_string().as_bytes()).unwrap();
    }),
    ("link", |path| {
        let second = beside(path, "second");
        fs::hard_link(path, &second).unwrap();
        fs::remove_file(second).unwrap();
    }),
];

/// Changes that give a folder new times.
const NAMES: [(&str, Change); 4] = [
    ("mkdir", |path| {
        fs::create_dir(beside(path, "folder")).unwrap();
        fs::remove_dir(beside(path, "folder")).unwrap();
    }),
    ("create", |path| {
        File::create_new(beside(path, "another")).unwrap();
        fs::remove_file(beside(path, "another")).unwrap();
    }),
    ("rename", |path| {
        fs::rename(path, beside(path, "moved")).unwrap();
        fs::rename(beside(path, "moved"), path).unwrap();
    }),
    ("symlink", |path| {
        std::os::unix::fs::symlink("nowhere", beside(path, "link")).unwrap();
        fs::remove_file(beside(path, "link")).unwrap();
    }),
];

/// Makes changes of files in two folders, and asserts that none has older times than those before it.
fn changes_in_order(folder: &Path, seed: u64, looks: bool) {
    let mut random = Random::new(seed);
    let mut paths = Vec::new();
    for name in ["a", "b"] {
        let inner = folder.join(name);
        fs::create_dir(&inner).unwrap();
        paths.extend(["x", "y", "z"].map(|file| inner.join(file)));
    }
    for path in &paths {
        fs::write(path, b"new").unwrap();
    }
    let (mut latest, mut by) = (0, "nothing");
    let mut later = |name: &'static str, time: i64, what: &str| {
        assert!(
            time >= latest,
            "seed {seed}, {}: {what} of {name} is {} ns older than {by}",
            folder.display(),
            latest - time
        );
        (latest, by) = (time, name);
    };
    for _ in 0..600 {
        let path = &paths[random.below(paths.len() as u64) as usize];
        let inner = path.parent().unwrap();
        // Looking at an inode is what makes its next time a fine one.
        if looks || random.below(2) == 0 {
            times(path);
            times(inner);
        }
        match random.below(3) {
            0 => {
                let (name, change) = WRITES[random.below(WRITES.len() as u64) as usize];
                change(path);
                let (modified, changed) = times(path);
                later(name, modified, "mtime");
                later(name, changed, "ctime");
            }
            1 => {
                let (name, change) = ATTRIBUTES[random.below(ATTRIBUTES.len() as u64) as usize];
                change(path);
                later(name, times(path).1, "ctime");
            }
            _ => {
                let (name, change) = NAMES[random.below(NAMES.len() as u64) as usize];
                change(path);
                let (modified, changed) = times(inner);
                later(name, modified, "the folder's mtime");
                later(name, changed, "the folder's ctime");
            }
        }
    }
}

/// "Times never go backwards": what make and ninja rely on. The folder's own filesystem shows that the test is right.
#[test]
fn what_is_changed_later_never_has_older_times() {
    let mount = Mount::new("pool_size=32m");
    let seed = u64::from(std::process::id());
    println!("seed {seed}");
    for (round, looks) in [true, false, true].into_iter().enumerate() {
        for folder in
            [mount.scratch.path().join(format!("own{round}")), mount.at(&format!("r{round}"))]
        {
            fs::create_dir(&folder).unwrap();
            changes_in_order(&folder, seed + round as u64, looks);
        }
    }
}

/// As it was found: created, touched, written twice.
#[test]
fn a_write_after_a_touch_is_not_older_than_it() {
    let mount = Mount::new("pool_size=32m");
    for round in 0..200 {
        let path = mount.at(&format!("file{round}"));
        let file = open(&path);
        WRITES[4].1(&path);
        let touched = times(&path);
        file.write_all_at(b"one", 0).unwrap();
        let first = times(&path);
        file.write_all_at(b"two", 0).unwrap();
        let second = times(&path);
        assert!(
            touched <= first && first <= second,
            "round {round}: {touched:?} {first:?} {second:?}"
        );
        assert!(first.1 >= touched.1 && second.1 >= first.1, "round {round}");
    }
}

fn long(path: &Path) {
    write_pattern(&open(path), 20 * MIB + 1, 400_000);
}

/// What is written out later moves no change time: not the settling after the last close, not a fsync, not the next mount.
#[test]
fn writing_out_moves_no_change_time() {
    for options in ["pool_size=8m", "pool_size=8m,checksum=crc32c"] {
        let mount = Mount::new(options);
        let cases: [(&str, Change); 8] = [
            ("short", |path| fs::write(path, b"short").unwrap()),
            ("long", long),
            ("pages", |path| write_pattern(&open(path), 3 * MIB + 5, 5000)),
            ("cut", |path| {
                long(path);
                open(path).set_len(MIB + 3).unwrap();
            }),
            ("long ago", |path| {
                let file = open(path);
                write_pattern(&file, 2 * MIB, 70_000);
                file.set_modified(long_ago(3)).unwrap();
            }),
            ("mode", |path| {
                let file = open(path);
                write_pattern(&file, 2 * MIB, 70_000);
                ATTRIBUTES[0].1(path);
            }),
            ("synchronized", |path| {
                let file = open(path);
                write_pattern(&file, MIB, 70_000);
                file.sync_all().unwrap();
            }),
            ("hole", |path| {
                let file = open(path);
                write_pattern(&file, 3 * MIB, 70_000);
                let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                fallocate(&file, punch, 8192, MIB).unwrap();
            }),
        ];
        let mut known = Vec::new();
        for (name, change) in cases {
            let path = mount.at(name);
            change(&path);
            known.push((path.clone(), times(&path)));
        }
        let unchanged = |when: &str| {
            for (path, before) in &known {
                assert_eq!(times(path), *before, "{} {when}, {options}", path.display());
            }
        };
        unchanged("at once");
        std::thread::sleep(Duration::from_millis(1500));
        unchanged("when settled");
        sync_all(&mount.mnt);
        unchanged("when synchronized");
        for (path, _) in &known {
            fs::read(path).unwrap();
        }
        unchanged("when read");
        mount.remount(options);
        unchanged("at the next mount");
        // A change that somebody made is seen, and stays as well.
        for (path, before) in &known {
            fs::set_permissions(path, Permissions::from_mode(0o604)).unwrap();
            assert!(times(path).1 > before.1, "{}", path.display());
        }
        let after: Vec<_> = known.iter().map(|(path, _)| times(path)).collect();
        mount.remount(options);
        for ((path, _), after) in known.iter().zip(after) {
            assert_eq!(times(path), after, "{}", path.display());
        }
        mount.unmount();
    }
}

/// A modification time of the user's choice is no change time.
#[test]
fn a_time_to_come_is_no_change_time() {
    let mount = Mount::new("pool_size=8m");
    let path = mount.at("file");
    let file = open(&path);
    write_pattern(&file, 100_000, 5000);
    let future = SystemTime::now() + Duration::from_secs(1_000_000);
    file.set_modified(future).unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.modified().unwrap(), future);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert!(metadata.ctime() <= now.as_secs() as i64, "{}", metadata.ctime());
}

/// A filesystem that keeps whole seconds: what stat shows before bytes are written out is what it shows afterwards.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn times_are_no_finer_than_the_filesystems() {
    let disk = SmallDisk::ext4_made_with(&["-I", "128"]);
    let mount = Mount::within(&disk.at, "pool_size=8m");
    let mut known = Vec::new();
    for (number, set) in [None, Some(long_ago(3)), None].into_iter().enumerate() {
        let path = mount.at(&format!("file{number}"));
        let file = open(&path);
        write_pattern(&file, MIB + 5, 70_000);
        if let Some(time) = set {
            file.set_modified(time).unwrap();
        }
        std::thread::sleep(Duration::from_millis(300));
        known.push((path.clone(), times(&path)));
    }
    sync_all(&mount.mnt);
    std::thread::sleep(Duration::from_millis(1200));
    for (path, before) in &known {
        assert_eq!(times(path), *before, "{}", path.display());
        assert_eq!(before.0 % 1_000_000_000, 0);
    }
    for seed in 1..4 {
        let folder = mount.at(&format!("r{seed}"));
        fs::create_dir(&folder).unwrap();
        changes_in_order(&folder, seed, true);
    }
}
