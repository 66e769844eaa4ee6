//! Times.

use std::fs::{self, FileTimes};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime};

use crate::bytes::open;
use crate::place::Mount;
use crate::support::{MIB, occupied, pattern, sync_all, wait_until, write_pattern};

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
