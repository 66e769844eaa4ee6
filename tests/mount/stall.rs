//! A device that stops answering: a frozen filesystem, made for real.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rustix::io::Errno;

use crate::bytes::open;
use crate::errors::SmallDisk;
use crate::place::{Mount, swapfs};
use crate::support::{
    MIB, is_pattern, pattern, same, swap_xattr, wait_until, write_pattern, xattr, xattr_names,
};
use crate::terminal::Terminal;

/// A disk that takes no writes until this is dropped.
struct Frozen(PathBuf);

impl Frozen {
    fn new(disk: &Path) -> Frozen {
        let done = Command::new("fsfreeze").arg("--freeze").arg(disk).status();
        assert!(done.is_ok_and(|status| status.success()), "fsfreeze");
        Frozen(disk.to_owned())
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        let _ = Command::new("fsfreeze").arg("--unfreeze").arg(&self.0).status();
    }
}

/// Pieces of pages: no page is written twice, which would wait for its transfer.
fn write_pieces(file: &fs::File, bytes: &[u8]) {
    for (index, piece) in bytes.chunks(65_536).enumerate() {
        file.write_all_at(piece, index as u64 * 65_536).unwrap();
    }
}

fn stats(mount: &Mount) -> serde_json::Value {
    let text = fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// "A transfer older than `stall_timeout`": the partition says so, others do not, nobody has to wait to be told,
/// and all goes on when the device does.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_device_that_does_not_answer_is_named_where_one_looks() {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, "pool_size=16m,stall_timeout=1,list_xattr");
    let (path, other) = (mount.at("waits"), mount.at("other"));
    let (file, idle) = (open(&path), open(&other));
    write_pattern(&file, 3 * MIB, 1 << 20);
    write_pattern(&idle, 2 * MIB, 1 << 20);
    file.sync_all().unwrap();
    idle.sync_all().unwrap();
    assert_eq!(xattr(&path, "user.swap.stalled"), Err(Errno::NODATA));
    let frozen = Frozen::new(&disk.at);
    // Over what has its space: taken at once.
    write_pieces(&file, &pattern(7, 2 << 20));
    wait_until("the stall", || xattr(&path, "user.swap.stalled").is_ok());
    assert!(swap_xattr(&path, "stalled").parse::<u64>().unwrap() >= 1);
    assert!(xattr_names(&path).contains(&"user.swap.stalled".to_owned()));
    assert_eq!(swap_xattr(&path, "status"), "inflight");
    assert_eq!(xattr(&other, "user.swap.stalled"), Err(Errno::NODATA));
    assert!(!xattr_names(&other).contains(&"user.swap.stalled".to_owned()));
    assert_eq!(stats(&mount)["partitions"]["stalled"], 1);
    let metrics = fs::read_to_string(mount.at(".swapfs/metrics")).unwrap();
    assert!(metrics.contains("\nswapfs_partitions_stalled 1\n"), "{metrics}");
    let shown = swapfs(&["status", path.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains("stalled"), "{shown:?}");
    // Others go on: what is in the pool is read, and what has its space is written.
    let begin = Instant::now();
    is_pattern(&other, 2 * MIB);
    idle.write_all_at(&pattern(0, 4096), 0).unwrap();
    assert_eq!(swap_xattr(&path, "wait"), "inflight");
    assert!(begin.elapsed() < Duration::from_secs(5));
    drop(frozen);
    file.sync_all().unwrap();
    wait_until("the end of the stall", || xattr(&path, "user.swap.stalled").is_err());
    let mut expected = pattern(0, 3 << 20);
    expected[..2 << 20].copy_from_slice(&pattern(7, 2 << 20));
    same(&fs::read(mount.backing("waits")).unwrap(), &expected);
    drop((file, idle));
    mount.unmount();
    let log = mount.log();
    assert!(log.contains("waits: the device has not answered for 1 s"), "{log}");
    assert!(log.contains("waits: the device answers again"), "{log}");
}

/// SIGTERM while the device does not answer: after `stall_timeout` the mount goes, and who waits gets an error.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_signal_does_not_wait_for_a_dead_device() {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, "pool_size=16m,stall_timeout=1,list_xattr");
    let file = open(&mount.at("waits"));
    write_pattern(&file, 2 * MIB, 1 << 20);
    file.sync_all().unwrap();
    let frozen = Frozen::new(&disk.at);
    write_pieces(&file, &pattern(7, 1 << 20));
    let client = std::thread::spawn(move || file.sync_all());
    mount.signal(Signal::SIGTERM);
    wait_until("the unmount", || !mount.is_mounted());
    let met = client.join().unwrap().unwrap_err();
    let met = Errno::from_io_error(&met).unwrap();
    assert!([Errno::NOTCONN, Errno::CONNABORTED].contains(&met), "{met}");
    drop(frozen);
    mount.wait_gone();
    // What was on stable storage before is.
    let found = fs::read(mount.backing("waits")).unwrap();
    same(&found[1 << 20..], &pattern(1 << 20, 1 << 20));
}

/// "`swapfs umount` … synchronizes with a progress bar": what is dirty, once, and no time left while nothing moves.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn the_bar_of_an_unmount_counts_what_is_dirty() {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, "pool_size=32m");
    let path = mount.at("file");
    let file = open(&path);
    write_pattern(&file, 20 * MIB, 1 << 20);
    file.sync_all().unwrap();
    let frozen = Frozen::new(&disk.at);
    // Over what has its space: taken at once, and not written before the disk thaws.
    write_pieces(&file, &pattern(7, 20 << 20));
    drop(file);
    let mut umount = Command::new(env!("CARGO_BIN_EXE_swapfs"));
    let umount = Terminal::new(umount.arg("umount").arg(&mount.mnt).args(["--timeout", "60"]));
    wait_until("the bar", || umount.shown().contains(" 0 B/20.00 MiB, 0 B/s, ? left"));
    drop(frozen);
    let (status, shown) = umount.finish();
    assert!(status.success(), "{shown}");
    assert!(!mount.is_mounted());
    same(&fs::read(mount.backing("file")).unwrap(), &pattern(7, 20 << 20));
}

/// "No FUSE thread waits … while it is the last one that could answer a status call": more clients than threads make
/// names and ask for space on a disk that does not answer, each in a folder of its own.
#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn status_is_told_while_every_thread_is_held_up() {
    let disk = SmallDisk::ext4();
    let mount = Mount::within(&disk.at, "pool_size=16m,stall_timeout=1,fuse_threads=2");
    let path = mount.at("file");
    let file = open(&path);
    write_pattern(&file, MIB, 1 << 20);
    file.sync_all().unwrap();
    let folders: Vec<PathBuf> =
        (0..4).map(|number| mount.at(&format!("folder-{number}"))).collect();
    folders.iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let frozen = Frozen::new(&disk.at);
    let makers: Vec<_> = folders
        .into_iter()
        .map(|folder| std::thread::spawn(move || fs::write(folder.join("new"), pattern(0, 5000))))
        .collect();
    std::thread::sleep(Duration::from_millis(300));
    let begin = Instant::now();
    assert_eq!(swap_xattr(&path, "status"), "available");
    is_pattern(&path, MIB);
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?}", begin.elapsed());
    drop(frozen);
    for maker in makers {
        maker.join().unwrap().unwrap();
    }
    is_pattern(&mount.backing("file"), MIB);
}
