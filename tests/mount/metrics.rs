//! What a mount tells about itself: metrics in Prometheus' format, inside and outside the mount, the partitions,
//! and the access log.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rustix::io::Errno;
use serde_json::Value;

use crate::bytes::open;
use crate::place::Mount;
use crate::prometheus::{Family, parse};
use crate::support::{
    MIB, as_user, errno, is_root, set_xattr, swap_xattr, user, wait_until, write_pattern,
};

type Families = std::collections::BTreeMap<String, Family>;

fn metrics(mount: &Mount) -> Families {
    parse(&fs::read_to_string(mount.at(".swapfs/metrics")).unwrap())
}

fn value(families: &Families, name: &str, labels: &[(&str, &str)]) -> f64 {
    let family = families.get(name).unwrap_or_else(|| panic!("no {name}"));
    family.value(labels).unwrap_or_else(|| panic!("no {name} {labels:?}"))
}

/// Makes a partition that is in the swap folder alone.
fn cold(mount: &Mount, name: &str, bytes: u64) {
    let file = open(&mount.at(name));
    write_pattern(&file, bytes, 1 << 20);
    file.sync_all().unwrap();
    drop(file);
    set_xattr(&mount.at(name), "user.swap.request", b"release").unwrap();
    wait_until("the release", || swap_xattr(&mount.at(name), "resident") == "0");
}

#[test]
fn operations_bytes_errors_and_times_are_counted() {
    let mount = Mount::new("pool_size=16m");
    fs::create_dir(mount.at("params")).unwrap();
    cold(&mount, "params/a", 3 * MIB);
    let before = metrics(&mount);
    let file = open(&mount.at("params/a"));
    let mut bytes = vec![0; MIB as usize];
    for i in 0..3 {
        file.read_exact_at(&mut bytes, i * MIB).unwrap();
    }
    assert_eq!(errno(File::open(mount.at("params/none"))), Errno::NOENT);
    file.write_all_at(&bytes, 0).unwrap();
    file.sync_all().unwrap();
    let after = metrics(&mount);
    let grown = |name: &str, labels: &[(&str, &str)]| {
        value(&after, name, labels) - value(&before, name, labels)
    };
    let of = |operation| [("operation", operation)];
    assert!(grown("swapfs_fuse_operations_total", &of("read")) >= 3.0);
    assert!(grown("swapfs_fuse_operations_total", &of("write")) >= 1.0);
    assert!(grown("swapfs_fuse_operations_total", &of("fsync")) >= 1.0);
    assert!(grown("swapfs_fuse_operation_errors_total", &of("lookup")) >= 1.0);
    assert_eq!(
        grown("swapfs_directory_read_bytes_total", &[("directory", "params")]),
        3.0 * MIB as f64
    );
    assert_eq!(
        grown("swapfs_directory_written_bytes_total", &[("directory", "params")]),
        MIB as f64
    );
    assert_eq!(grown("swapfs_directory_written_bytes_total", &[("directory", "/")]), 0.0);
    assert_eq!(grown("swapfs_cache_read_bytes_total", &[]), 3.0 * MIB as f64);
    assert!(grown("swapfs_wear_written_bytes_total", &[]) >= MIB as f64);
    assert!(value(&after, "swapfs_wear_written_today_bytes", &[]) >= 4.0 * MIB as f64);
    let count = |families: &Families, name: &str, label: (&str, &str)| {
        let samples = &families[name].samples;
        let own = |sample: &&crate::prometheus::Sample| {
            sample.name.ends_with("_count")
                && sample.labels.get(label.0).is_some_and(|own| own == label.1)
        };
        samples.iter().find(own).map_or(0.0, |sample| sample.value)
    };
    let device = "swapfs_aio_transfer_seconds";
    for action in ["read", "write", "sync"] {
        let new =
            count(&after, device, ("action", action)) - count(&before, device, ("action", action));
        assert!(new >= 1.0, "{action}: {new}");
    }
    wait_until("the last answers to be timed", || {
        let families = metrics(&mount);
        let requests = value(&families, "swapfs_fuse_operations_total", &of("read"));
        count(&families, "swapfs_fuse_operation_seconds", of("read")[0]) >= requests
    });
}

/// More writers than the pool has room for: some wait, and the waits are timed.
#[test]
fn waits_for_buffers_are_timed() {
    let mount = Mount::new("pool_size=8m");
    let write_all = || {
        std::thread::scope(|scope| {
            for name in ["a", "b", "c", "d"] {
                let file = open(&mount.at(name));
                scope.spawn(move || write_pattern(&file, 24 * MIB, 1 << 20));
            }
        });
        let families = metrics(&mount);
        (value(&families, "swapfs_cache_buffer_waits_total", &[]), families)
    };
    // On a busy machine the device may keep up with the writers.
    let tries = (0..20).map(|_| write_all());
    let found = tries.into_iter().find(|(waited, _)| *waited > 0.0);
    let (waited, families) = found.expect("20 times 96 MiB went through 8 MiB, and nobody waited");
    let timed = families["swapfs_pool_wait_seconds"].samples.last().unwrap();
    assert_eq!((timed.name.as_str(), timed.value), ("swapfs_pool_wait_seconds_count", waited));
}

/// Names of directories are for those who can list them: metrics keep them from others, and `partitions.json`
/// and `accesslog` are their owner's.
#[test]
fn names_are_kept_from_other_users() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=16m,allow_other");
    fs::create_dir(mount.at("secret")).unwrap();
    fs::write(mount.at("secret/x"), "x").unwrap();
    let see = || {
        as_user(Path::new("/"), user(1234), || {
            fs::read_to_string(mount.at(".swapfs/metrics")).unwrap()
        })
    };
    fs::set_permissions(&mount.mnt, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    assert!(see().contains("directory=\"secret\""));
    fs::set_permissions(&mount.mnt, std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
    let seen = see();
    assert!(!seen.contains("secret"), "{seen}");
    parse(&seen);
    assert!(
        fs::read_to_string(mount.at(".swapfs/metrics")).unwrap().contains("secret"),
        "root's own"
    );
    for name in ["partitions.json", "accesslog"] {
        let path = mount.at(".swapfs").join(name);
        // Of root's mount the kernel lets those in who need no permission.
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0, "{name}");
        as_user(Path::new("/"), user(1234), || assert_eq!(errno(File::open(&path)), Errno::ACCESS));
    }
}

#[test]
fn partitions_are_listed_by_name_with_their_traffic() {
    let mount = Mount::new("pool_size=16m");
    fs::create_dir(mount.at("d")).unwrap();
    let file = open(&mount.at("d/with \"quotes\""));
    write_pattern(&file, 2 * MIB, 1 << 20);
    file.sync_all().unwrap();
    let mut bytes = vec![0; 1000];
    file.read_exact_at(&mut bytes, 0).unwrap();
    fs::rename(mount.at("d/with \"quotes\""), mount.at("d/renamed")).unwrap();
    let list: Value =
        serde_json::from_str(&fs::read_to_string(mount.at(".swapfs/partitions.json")).unwrap())
            .unwrap();
    let row = &list["partitions"][0];
    assert_eq!(list["partitions"].as_array().unwrap().len(), 1, "{list}");
    assert_eq!(
        (row["path"].as_str(), row["status"].as_str()),
        (Some("d/renamed"), Some("available"))
    );
    assert_eq!((&row["size"], &row["resident"]), (&Value::from(2 * MIB), &Value::from(2 * MIB)));
    assert_eq!(
        (&row["read_bytes"], &row["written_bytes"]),
        (&Value::from(1000), &Value::from(2 * MIB))
    );
    assert_eq!((&row["handles"], &row["error"]), (&Value::from(1), &Value::Null));
}

fn ask(address: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "GET /metrics HTTP/1.0\r\nHost: x\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn metrics_are_shown_over_http_and_in_a_file_while_mounted() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("swapfs.prom");
    let mount =
        Mount::new(&format!("pool_size=16m,metrics_listen=0,metrics_file={}", path.display()));
    fs::write(mount.at("file"), "x").unwrap();
    let log = mount.log();
    let address = log.split_once("metrics at http://").unwrap().1.split_once("/metrics").unwrap().0;
    assert!(address.starts_with("127.0.0.1:"), "{address}");
    let answer = ask(address);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(" 200 OK") && head.contains("version=0.0.4"), "{head}");
    let shown = parse(body);
    assert!(value(&shown, "swapfs_fuse_operations_total", &[("operation", "create")]) >= 1.0);
    let written = parse(&fs::read_to_string(&path).unwrap());
    let mountpoint = mount.mnt.to_str().unwrap();
    assert_eq!(value(&written, "swapfs_pool_buffers", &[("mountpoint", mountpoint)]), 16.0);
    assert!(
        written
            .values()
            .flat_map(|family| &family.samples)
            .all(|sample| { sample.labels.get("mountpoint").is_some_and(|own| own == mountpoint) })
    );
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o644);
    let address = address.to_owned();
    mount.unmount();
    assert!(TcpStream::connect(address).is_err(), "nobody listens any more");
    assert!(!path.exists(), "a file that nobody writes would be shown for ever");
}

/// What was written to the device counts on after a remount.
#[test]
fn wear_survives_a_remount() {
    let mount = Mount::new("pool_size=16m");
    let file = open(&mount.at("a"));
    write_pattern(&file, 3 * MIB, 1 << 20);
    file.sync_all().unwrap();
    drop(file);
    mount.remount("pool_size=16m");
    let families = metrics(&mount);
    assert_eq!(value(&families, "swapfs_aio_written_bytes_total", &[]), 0.0);
    assert!(value(&families, "swapfs_wear_written_bytes_total", &[]) >= 3.0 * MIB as f64);
    let stats: Value =
        serde_json::from_str(&fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap()).unwrap();
    assert!(stats["wear"]["days"][0]["written_bytes"].as_u64().unwrap() >= 3 * MIB);
}

/// Lines for as long as somebody reads, with names, numbers and results; and an unmount is not kept from
/// happening once the reader has gone.
#[test]
fn the_access_log_has_a_line_for_each_operation_while_it_is_read() {
    let mount = Mount::new("pool_size=16m");
    fs::write(mount.at("before"), "x").unwrap();
    let mut log = File::open(mount.at(".swapfs/accesslog")).unwrap();
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let (mut bytes, mut rest) = (vec![0; 65536], Vec::new());
        loop {
            let count = log.read(&mut bytes).unwrap();
            assert!(count > 0, "the log has no end");
            rest.extend_from_slice(&bytes[..count]);
            while let Some(at) = rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = rest.drain(..=at).collect();
                if sender.send(String::from_utf8(line).unwrap()).is_err() {
                    return;
                }
            }
        }
    });
    fs::create_dir(mount.at("d")).unwrap();
    let file = open(&mount.at("d/a b"));
    file.write_all_at(&[7; 5000], 100).unwrap();
    file.read_exact_at(&mut [0; 50], 200).unwrap();
    fs::rename(mount.at("d/a b"), mount.at("d/c")).unwrap();
    set_xattr(&mount.at("d/c"), "user.swap.request", b"swap_out").unwrap();
    assert_eq!(errno(File::open(mount.at("d/gone"))), Errno::NOENT);
    fs::remove_file(mount.at("d/c")).unwrap();
    let uid = rustix::process::geteuid().as_raw();
    let mut expected = vec![
        "mkdir (\"d\",".to_owned(),
        "create (\"d/a b\",".to_owned(),
        "write (\"d/a b\",5000,100): OK <".to_owned(),
        "read (\"d/a b\",50,200): OK (50) <".to_owned(),
        "(\"d/a b\",\"d/c\"): OK <".to_owned(),
        "setxattr (\"d/c\",\"user.swap.request\"): OK <".to_owned(),
        "lookup (\"d/gone\"): ENOENT <".to_owned(),
        "unlink (\"d/c\"): OK <".to_owned(),
    ];
    let mut seen = String::new();
    while !expected.is_empty() {
        let line = lines.recv_timeout(Duration::from_secs(30)).unwrap_or_else(|_| {
            panic!("no line with {expected:?} in:\n{seen}");
        });
        assert!(!line.contains("before"), "that was earlier: {line}");
        if let Some(at) = expected.iter().position(|part| line.contains(part.as_str())) {
            assert!(line.contains(&format!("[uid:{uid},gid:")), "{line}");
            expected.remove(at);
        }
        seen += &line;
    }
    drop((file, lines));
    // It reads on until it has something to send, a comment at the latest.
    reader.join().unwrap();
    assert_eq!(value(&metrics(&mount), "swapfs_accesslog_readers", &[]), 0.0);
    mount.unmount();
}
