//! `swap-in`, `swap-out` and `release` on a real mount.

use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value as Json;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

fn swapfs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_swapfs")).args(arguments).output().unwrap()
}

/// A mount with a pool of 16 buffers of 1 MiB; gone at the end whatever happens.
struct Mount(TempDir);

impl Mount {
    fn new(options: &[&str]) -> Self {
        let mount = Self(tempfile::tempdir().unwrap());
        for name in ["swap", "mnt"] {
            std::fs::create_dir(mount.0.path().join(name)).unwrap();
        }
        mount.start(options);
        mount
    }

    fn start(&self, options: &[&str]) {
        let (swap, mnt) = (self.0.path().join("swap"), self.path(""));
        let paths = ["mount", swap.to_str().unwrap(), mnt.as_str()];
        let output = swapfs(&[&paths[..], &["--pool-size", "16m"], options].concat());
        assert!(output.status.success(), "{output:?}");
    }

    fn path(&self, name: &str) -> String {
        let path = self.0.path().join("mnt").join(name);
        path.to_str().unwrap().trim_end_matches('/').to_owned()
    }

    fn umount(&self) {
        let output = swapfs(&["umount", &self.path("")]);
        assert!(output.status.success(), "{output:?}");
    }

    /// A partition of so many bytes, each of them `byte`.
    fn write(&self, name: &str, bytes: u64, byte: u8) {
        let data = vec![byte; usize::try_from(bytes).unwrap()];
        std::fs::write(self.path(name), data).unwrap();
    }

    fn xattr(&self, name: &str, attribute: &str) -> String {
        let mut value = [0; 64];
        let length =
            rustix::fs::getxattr(self.path(name), format!("user.swap.{attribute}"), &mut value[..])
                .unwrap();
        String::from_utf8_lossy(&value[..length]).into_owned()
    }

    /// The objects that a successful command printed after waiting.
    fn wait(&self, asked: &str, names: &[&str]) -> Vec<Json> {
        let paths: Vec<String> = names.iter().map(|name| self.path(name)).collect();
        let mut arguments = vec![asked, "--wait", "--timeout", "60", "--json"];
        arguments.extend(paths.iter().map(String::as_str));
        let output = swapfs(&arguments);
        assert!(output.status.success(), "{output:?}");
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn refusal(&self, asked: &str, name: &str) -> String {
        let output = swapfs(&[asked, "--wait", &self.path(name)]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        String::from_utf8(output.stderr).unwrap().trim_end().to_owned()
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mnt = PathBuf::from(self.path(""));
        let _ = nix::mount::umount2(&mnt, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_partition_goes_out_and_comes_back() {
    let mount = Mount::new(&["-o", "open_swap_in=none"]);
    mount.write("a", 3 * MIB + 7, 1);
    let size = 3 * MIB + 7;
    let rows = mount.wait("swap-out", &["a"]);
    assert_eq!(mount.xattr("a", "dirty"), "0");
    assert_eq!(rows[0]["size"], size);
    let rows = mount.wait("release", &["a"]);
    assert_eq!(
        (rows[0]["status"].as_str(), rows[0]["resident"].as_u64()),
        (Some("not_available"), Some(0))
    );
    assert_eq!(mount.xattr("a", "status"), "not_available");
    let rows = mount.wait("swap-in", &["a"]);
    assert_eq!(
        (rows[0]["status"].as_str(), rows[0]["resident"].as_u64()),
        (Some("available"), Some(size))
    );
    assert_eq!(mount.xattr("a", "status"), "available");
    assert!(std::fs::read(mount.path("a")).unwrap().iter().all(|byte| *byte == 1));
    mount.umount();
}

#[test]
fn a_directory_means_all_below_and_a_pattern_what_matches() {
    let mount = Mount::new(&["-o", "open_swap_in=none"]);
    std::fs::create_dir_all(mount.path("layers/deep")).unwrap();
    for name in ["layers/p0", "layers/p1", "layers/deep/p2", "other"] {
        mount.write(name, MIB, 2);
    }
    mount.wait("release", &["layers", "other"]);
    let rows = mount.wait("swap-in", &["layers"]);
    assert_eq!(rows.len(), 1);
    assert_eq!(
        (rows[0]["status"].as_str(), rows[0]["resident"].as_u64()),
        (Some("available"), Some(3 * MIB))
    );
    assert_eq!(mount.xattr("other", "status"), "not_available");
    let rows = mount.wait("release", &["layers/p?"]);
    assert_eq!(rows.len(), 2);
    assert_eq!(mount.xattr("layers/deep/p2", "status"), "available");
    mount.wait("release", &[""]);
    assert_eq!(mount.xattr("layers/deep/p2", "status"), "not_available");
    mount.umount();
}

#[test]
fn ten_thousand_partitions_in_a_directory_work() {
    let mount = Mount::new(&[]);
    std::fs::create_dir(mount.path("many")).unwrap();
    for index in 0..10_000 {
        mount.write(&format!("many/{index:05}"), 16, 3);
    }
    for asked in ["swap-out", "release"] {
        let rows = mount.wait(asked, &["many"]);
        assert_eq!(rows[0]["size"], 160_000);
    }
    assert_eq!(mount.xattr("many/09999", "status"), "not_available");
    mount.umount();
}

#[test]
fn a_swap_in_beyond_the_pool_is_refused_with_figures() {
    let mount = Mount::new(&["-o", "open_swap_in=none"]);
    mount.write("big", 40 * MIB, 4);
    mount.wait("release", &["big"]);
    let line = mount.refusal("swap-in", "big");
    let path = mount.path("big");
    assert_eq!(
        line,
        format!(
            "swapfs: {path}: 40 MiB are more than the pool's free buffers hold, 16 of 1 MiB (16 \
             less 0 reserved)"
        )
    );
    assert_eq!(mount.xattr("big", "resident"), "0", "nothing changed");
    mount.umount();
}

#[test]
fn requests_need_a_mount_that_may_be_written() {
    let mount = Mount::new(&[]);
    mount.write("a", MIB, 5);
    mount.umount();
    mount.start(&["--ro"]);
    let line = mount.refusal("swap-in", "a");
    assert!(line.ends_with("Read-only file system; swap-in needs a mount without ro"), "{line}");
    mount.umount();
}
