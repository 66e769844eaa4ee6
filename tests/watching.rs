//! `stats`, `top`, `profile` and `debug` on a real mount.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

fn swapfs(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
    command.args(arguments).stdin(Stdio::null()).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn refusal(arguments: &[&str]) -> String {
    let output = swapfs(arguments);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stderr).unwrap().trim_end().to_owned()
}

/// A mount with a pool of 16 buffers of 1 MiB; gone at the end whatever happens.
struct Mount(TempDir);

impl Mount {
    fn new() -> Self {
        let mount = Self(tempfile::tempdir().unwrap());
        for name in ["swap", "mnt"] {
            std::fs::create_dir(mount.0.path().join(name)).unwrap();
        }
        let (swap, mnt) = (mount.0.path().join("swap"), mount.mnt());
        stdout(&swapfs(&["mount", swap.to_str().unwrap(), &mnt, "--pool-size", "16m"]));
        mount
    }

    fn mnt(&self) -> String {
        self.0.path().join("mnt").to_str().unwrap().to_owned()
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.path().join("mnt").join(name)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        swapfs(&["umount", &self.mnt(), "--timeout", "30"]);
        let mnt = self.0.path().join("mnt");
        let _ = nix::mount::umount2(&mnt, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn stats_prints_a_line_for_each_interval() {
    let mount = Mount::new();
    let text = stdout(&swapfs(&["stats", &mount.mnt(), "--count", "3", "--interval", "0.1"]));
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 4, "one header where nobody scrolls: {text}");
    assert!(lines[0].contains("WRITE/s") && lines[1].contains("0 B"), "{text}");
    let mut busy = Command::new(env!("CARGO_BIN_EXE_swapfs"))
        .args(["stats", &mount.mnt(), "--count", "1", "--interval", "1", "--json"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    while busy.try_wait().unwrap().is_none() {
        std::fs::write(mount.at("a"), vec![1; 100_000]).unwrap();
    }
    let line: Value = serde_json::from_slice(&busy.wait_with_output().unwrap().stdout).unwrap();
    assert!(line["written_bytes"].as_f64().unwrap() > 0.0, "{line}");
    assert!(line["requests"].as_f64().unwrap() > 0.0, "{line}");
    assert_eq!(line["available"].as_u64().map(|count| count <= 16), Some(true), "{line}");
}

#[test]
fn what_is_no_mount_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let shown = folder.path().to_str().unwrap();
    for command in ["stats", "top", "debug"] {
        assert_eq!(
            refusal(&[command, shown]),
            format!("swapfs: {shown} is not a swapfs mountpoint")
        );
    }
    let line = refusal(&["stats", "/nonexistent/place"]);
    assert_eq!(line, "swapfs: /nonexistent/place: No such file or directory");
    let mount = Mount::new();
    let line = refusal(&["top", &mount.mnt()]);
    assert_eq!(line, "swapfs: top needs a terminal; stats prints lines anywhere");
    assert_eq!(swapfs(&["stats", &mount.mnt(), "--interval", "0"]).status.code(), Some(2));
}

#[test]
fn profile_sums_up_what_was_logged() {
    let mount = Mount::new();
    let mut log = std::fs::File::open(mount.at(".swapfs/accesslog")).unwrap();
    std::fs::write(mount.at("with \"quotes\""), vec![1; 5000]).unwrap();
    assert!(std::fs::read(mount.at("none")).is_err());
    let copy = mount.0.path().join("log");
    let mut text = Vec::new();
    let mut bytes = vec![0; 65536];
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !String::from_utf8_lossy(&text).contains("lookup (\"none\"): ENOENT") {
        assert!(std::time::Instant::now() < end, "{}", String::from_utf8_lossy(&text));
        let count = log.read(&mut bytes).unwrap();
        text.extend_from_slice(&bytes[..count]);
    }
    drop(log);
    std::fs::write(&copy, &text).unwrap();
    let copy = copy.to_str().unwrap();
    let all: Value = serde_json::from_str(&stdout(&swapfs(&["profile", copy, "--json"]))).unwrap();
    let row = |key: &str| {
        let rows = all["rows"].as_array().unwrap();
        rows.iter().find(|row| row["key"] == key).unwrap_or_else(|| panic!("{key}: {all}")).clone()
    };
    assert_eq!((&row("write")["bytes"], &row("write")["errors"]), (&5000.into(), &0.into()));
    assert!(row("lookup")["errors"].as_u64().unwrap() >= 1);
    assert_eq!((&all["strange"], &all["lost"]), (&0.into(), &0.into()));
    let table = stdout(&swapfs(&["profile", copy, "--by", "path"]));
    assert!(table.contains("write with \\\"quotes\\\""), "{table}");
    let one = stdout(&swapfs(&["profile", copy, "--lines", "1"]));
    assert!(one.contains("more lines: see --lines"), "{one}");
    let other = mount.0.path().join("other");
    std::fs::write(&other, "something else\n").unwrap();
    let line = refusal(&["profile", other.to_str().unwrap()]);
    assert!(line.ends_with("no access log of swapfs"), "{line}");
}

/// "no file contents (and no partition names unless asked)".
#[test]
fn debug_has_neither_contents_nor_names_unless_asked() {
    let mount = Mount::new();
    std::fs::create_dir(mount.at("clandestine")).unwrap();
    std::fs::write(mount.at("clandestine/weights"), "TOP SECRET BYTES").unwrap();
    // A line of the log that names a partition.
    let log = mount.0.path().join("swap/.swapfs/log");
    let mut text = std::fs::read_to_string(&log).unwrap();
    let named = mount.0.path().join("swap/clandestine/weights");
    text += &format!(
        "[2026-11-21T10:18:23.030Z ERROR swapfs::swap] swap out of {} failed: offset 0, length 4096: EIO (Input/output error)\n",
        named.display()
    );
    std::fs::write(&log, text).unwrap();
    let archive = |more: &[&str]| {
        let path = mount.0.path().join(format!("debug-{}.tar.gz", more.len()));
        let arguments =
            ["debug", &mount.mnt(), "--interval", "0.1", "--output", path.to_str().unwrap()];
        let told = stdout(&swapfs(&[&arguments[..], more].concat()));
        assert!(told.contains("log.txt") && told.contains("tar -xzOf"), "{told}");
        unpack(&path)
    };
    let files = archive(&[]);
    for name in [
        "about.txt",
        "machine.txt",
        "process.txt",
        "stats-1.json",
        "stats-2.json",
        "metrics.txt",
        "config.json",
        "log.txt",
        "check.txt",
    ] {
        let found = files.iter().find(|(path, _)| path.ends_with(name));
        let content = &found.unwrap_or_else(|| panic!("no {name}")).1;
        assert!(!content.is_empty(), "{name}");
        for secret in ["clandestine", "weights", "SECRET"] {
            assert!(!content.contains(secret), "{name} has {secret}: {content}");
        }
    }
    let content = |files: &[(String, String)], name: &str| {
        files.iter().find(|(path, _)| path.ends_with(name)).map(|(_, text)| text.clone()).unwrap()
    };
    assert!(content(&files, "log.txt").contains("<name 1> failed: offset 0, length 4096: EIO"));
    assert!(content(&files, "check.txt").contains("exit status"));
    assert!(content(&files, "process.txt").contains("Max locked memory"));
    serde_json::from_str::<Value>(&content(&files, "stats-2.json")).unwrap();
    let files = archive(&["--names"]);
    assert!(content(&files, "partitions.json").contains("clandestine/weights"));
    assert!(content(&files, "log.txt").contains("clandestine/weights"));
    assert!(!files.iter().any(|(_, text)| text.contains("SECRET")));
    let path = mount.0.path().join("debug-0.tar.gz");
    let line = refusal(&["debug", &mount.mnt(), "--output", path.to_str().unwrap()]);
    assert!(line.ends_with("File exists"), "nothing is replaced: {line}");
}

fn unpack(path: &Path) -> Vec<(String, String)> {
    let file = flate2::read::GzDecoder::new(std::fs::File::open(path).unwrap());
    let mut archive = tar::Archive::new(file);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (path, text)
    });
    entries.collect()
}
