//! The control folder.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;

use rustix::io::Errno;
use serde_json::Value;

use crate::bytes::open;
use crate::place::{Mount, is_done, swapfs};
use crate::support::{MIB, errno, sync_all, write_pattern};

fn json(mount: &Mount, name: &str) -> Value {
    serde_json::from_str(&fs::read_to_string(mount.at(".swapfs").join(name)).unwrap()).unwrap()
}

/// "`stats.json` (one JSON object: `mount` with `pid`, `version`, `mountpoint`, `swap_folders`; `pool`,
/// `aio`, `cache`, `fuse`, `partitions` as counts, never names)".
#[test]
fn stats_count_and_name_nothing() {
    let mount = Mount::new("pool_size=16m");
    let file = open(&mount.at("a name nobody shall see"));
    write_pattern(&file, 5 * MIB, 1 << 20);
    file.sync_all().unwrap();
    let stats = json(&mount, "stats.json");
    let about = &stats["mount"];
    assert_eq!(about["pid"], mount.daemon().as_raw());
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["mountpoint"], mount.mnt.to_str().unwrap());
    assert_eq!(about["swap_folders"][0], mount.swap.to_str().unwrap());
    assert_eq!(stats["pool"]["buffers"], 16);
    assert_eq!(stats["pool"]["buffer_size"], MIB);
    for key in ["aio", "cache", "fuse", "partitions"] {
        assert!(stats[key].is_object(), "{key}");
    }
    assert_eq!(stats["partitions"]["handles"], 1);
    assert!(stats["fuse"]["writes"].as_u64().unwrap() >= 5);
    assert!(!stats.to_string().contains("nobody"));
}

/// "`metrics` (the same as Prometheus text, names `swapfs_*`, base units)".
#[test]
fn metrics_are_prometheus_text() {
    let mount = Mount::new("pool_size=16m");
    fs::write(mount.at("file"), "x").unwrap();
    let text = fs::read_to_string(mount.at(".swapfs/metrics")).unwrap();
    let families = crate::prometheus::parse(&text);
    for (name, family) in &families {
        assert!(name.starts_with("swapfs_"), "{name}");
        assert!(!family.samples.is_empty() || family.kind == "histogram", "{name}");
    }
    for name in ["swapfs_pool_buffers", "swapfs_pool_dirty", "swapfs_fuse_requests_total"] {
        assert!(families[name].value(&[]).is_some(), "{name}");
    }
    for name in ["swapfs_pool_buffer_size_bytes", "swapfs_fuse_operation_seconds"] {
        assert!(!families[name].help.contains('_'), "{name}: {}", families[name].help);
    }
}

/// "`config.json` (the configuration in force)".
#[test]
fn the_configuration_in_force_can_be_read() {
    let mount = Mount::new("pool_size=24m,block_size=128k,list_xattr=off");
    let config = json(&mount, "config.json");
    let value = |key: &str| (&config[key]["value"], config[key]["origin"].as_str());
    assert_eq!(value("pool_size"), (&Value::from(24 * MIB), Some("-o")));
    assert_eq!(value("block_size"), (&Value::from(131_072), Some("-o")));
    assert_eq!(value("list_xattr"), (&Value::from(false), Some("-o")));
    assert_eq!(value("queue_depth").1, Some("built-in"));
}

/// "not listed by readdir but can be opened"; and nothing in it, nor itself, can be changed.
#[test]
fn the_control_folder_is_hidden_and_fixed() {
    let mount = Mount::new("pool_size=16m");
    fs::write(mount.at("file"), "x").unwrap();
    fs::create_dir(mount.at("dir")).unwrap();
    let mut names: Vec<_> =
        fs::read_dir(&mount.mnt).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["dir", "file"]);
    let control = mount.at(".swapfs");
    let mut names: Vec<_> =
        fs::read_dir(&control).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["accesslog", "config.json", "metrics", "partitions.json", "stats.json"]);
    assert!(fs::metadata(&control).unwrap().is_dir());
    assert_eq!(fs::metadata(control.join("metrics")).unwrap().mode() & 0o222, 0);
    // What is kept there in the swap folder is nobody's business.
    assert_eq!(errno(File::open(control.join("lock"))), Errno::NOENT);
    let refused = [
        fs::create_dir(&control),
        fs::remove_dir(&control),
        fs::rename(&control, mount.at("dir/x")),
        fs::rename(mount.at("dir"), &control),
        fs::write(control.join("new"), "x"),
        fs::write(control.join("stats.json"), "x"),
        fs::remove_file(control.join("stats.json")),
        fs::rename(mount.at("file"), control.join("metrics")),
        fs::hard_link(control.join("metrics"), mount.at("linked")),
        fs::hard_link(mount.at("file"), control.join("linked")),
        std::os::unix::fs::symlink("x", control.join("link")),
    ];
    for (number, result) in refused.into_iter().enumerate() {
        let errno = errno(result);
        let fits = [Errno::PERM, Errno::ACCESS, Errno::EXIST, Errno::ROFS].contains(&errno);
        assert!(fits, "number {number}: {errno}");
    }
    // Only in the root is the name ours.
    fs::create_dir(mount.at("dir/.swapfs")).unwrap();
    fs::write(mount.at("dir/.swapfs/file"), "x").unwrap();
    sync_all(&mount.mnt);
    assert_eq!(fs::read(mount.backing("dir/.swapfs/file")).unwrap(), b"x");
}

/// Two reads through one handle belong to one moment, and a new handle shows a new one.
#[test]
fn a_control_file_is_made_when_it_is_opened() {
    let mount = Mount::new("pool_size=16m");
    let before = json(&mount, "stats.json")["fuse"]["writes"].as_u64().unwrap();
    fs::write(mount.at("file"), "x").unwrap();
    let after = json(&mount, "stats.json")["fuse"]["writes"].as_u64().unwrap();
    assert_eq!(after, before + 1);
}

/// `config show` of a mount and of what it was mounted with print the same: the same value in the same words.
#[test]
fn config_show_of_a_mount_is_that_of_its_sources() {
    for options in [
        "pool_size=64m",
        "pool_size=10.2MiB,ro,read_ahead=1MB",
        "pool_size=20MB,block_size=64KiB,min_swap_size=1000,log=warn,metrics_listen=off,pin_memory=no",
    ] {
        let mount = Mount::new(options);
        let of_mount = swapfs(&["config", "show", mount.mnt.to_str().unwrap()]);
        let of_sources = swapfs(&["config", "show", "-o", options]);
        is_done(&of_mount);
        let text = |output: std::process::Output| String::from_utf8(output.stdout).unwrap();
        assert_eq!(text(of_mount), text(of_sources), "{options}");
    }
}
