//! `stats`, `top`, `profile` and `debug` on a real mount.

#[path = "terminal/mod.rs"]
mod terminal;

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

/// What a command shows on a terminal of so many columns, without what steers it.
fn on_terminal(columns: u16, arguments: &[&str]) -> Vec<String> {
    let (ours, theirs) = terminal::pair(columns);
    let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
    command.args(arguments).stdin(Stdio::null());
    let (status, shown) = terminal::Terminal::on(ours, theirs, &mut command).finish();
    assert!(status.success(), "{arguments:?}: {shown}");
    let mut plain = String::new();
    let mut letters = shown.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '\u{1b}' => while letters.next().is_some_and(|next| !next.is_ascii_alphabetic()) {},
            // What is written over: a bar.
            '\r' if letters.peek() != Some(&'\n') => {
                let line = plain.rfind('\n').map_or(0, |at| at + 1);
                plain.truncate(line);
            }
            '\r' => {}
            other => plain.push(other),
        }
    }
    plain.lines().map(str::to_owned).collect()
}

/// Tables are as wide as the terminal, with every partition's name to be known, and fixes to be copied.
#[test]
fn tables_fit_the_terminal() {
    let mount = Mount::new();
    let long = format!("layers.0.{}.weight.swp", "very_long_name_".repeat(15));
    let deep = "a_folder_of_some_length/another_one/0_param.tensor.swp";
    std::fs::create_dir_all(mount.at(deep).parent().unwrap()).unwrap();
    for name in ["short", &long, deep, "with blank"] {
        std::fs::write(mount.at(name), vec![1; 1_500_000]).unwrap();
    }
    let (mnt, swap) = (mount.mnt(), mount.0.path().join("swap"));
    let swap = swap.to_str().unwrap();
    for columns in [80, 100, 160, 250] {
        let fits = |lines: &[String]| {
            for line in lines.iter().filter(|line| !line.trim_start().starts_with("fix: ")) {
                assert!(line.chars().count() <= usize::from(columns), "{columns}: {line}");
            }
        };
        let lines = on_terminal(columns, &["status", &mnt]);
        fits(&lines);
        for name in ["short", "with blank", "weight.swp", "m.tensor.swp"] {
            let seen = lines.iter().any(|line| line.contains(name));
            assert!(seen, "{name} at {columns}: {lines:#?}");
        }
        assert!(!lines.iter().any(|line| line.contains(&mnt)), "from the mount's root: {lines:#?}");
        let lines = on_terminal(columns, &["status"]);
        fits(&lines);
        let lines = on_terminal(columns, &["stats", &mnt, "--count", "2", "--interval", "0.1"]);
        fits(&lines);
        assert_eq!(lines.len(), 3, "{lines:#?}");
        let lines = on_terminal(columns, &["check", swap]);
        fits(&lines);
        let heading = format!("{swap}:");
        assert!(lines.contains(&heading), "{lines:#?}");
    }
    // Programs get one line for each, with whole names.
    let text = stdout(&swapfs(&["status", &mnt]));
    let rows: Vec<&str> =
        text.lines().skip(1).map(|line| line.split("  ").next().unwrap()).collect();
    assert_eq!(rows, [deep, &long, "short", "with blank"]);
    let other = Mount::new();
    std::fs::write(other.at("x"), "y").unwrap();
    let text = stdout(&swapfs(&["status", &mnt, &other.mnt()]));
    let headings: Vec<&str> = text.lines().filter(|line| line.ends_with(':')).collect();
    assert_eq!(headings, [format!("{mnt}:"), format!("{}:", other.mnt())]);
}

/// What works and may not be meant is said once, and the mount is there.
#[test]
fn surprising_mounts_say_so() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for name in ["swap", "empty", "full", "full/folder", "memory"] {
        std::fs::create_dir(at(name)).unwrap();
    }
    let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
    nix::mount::mount(Some("none"), at("memory").as_str(), Some("tmpfs"), flags, none).unwrap();
    let (hidden, memory) =
        ("is not empty: what is in it is hidden", "is on tmpfs, which is memory itself");
    for (swap, mnt, expected) in [
        ("swap", "empty", [false, false]),
        ("swap", "full", [true, false]),
        ("memory", "empty", [false, true]),
        ("memory", "full", [true, true]),
        ("swap", "swap", [false, false]),
    ] {
        let arguments = ["mount", &at(swap), &at(mnt), "--pool-size", "16m"];
        let output = swapfs(&arguments);
        stdout(&output);
        let said = String::from_utf8(output.stderr).unwrap();
        let found = [hidden, memory].map(|line| said.matches(line).count());
        assert_eq!(found, expected.map(usize::from), "{swap} on {mnt}: {said}");
        stdout(&swapfs(&["umount", &at(mnt)]));
    }
    nix::mount::umount2(at("memory").as_str(), nix::mount::MntFlags::MNT_DETACH).unwrap();
}

/// A mount inside keeps the outer one busy, and is named with the command for it.
#[test]
fn what_keeps_a_mount_busy_is_named() {
    let mount = Mount::new();
    let mnt = mount.mnt();
    for name in ["inside", "with blank", "it's"] {
        std::fs::create_dir(mount.at(name)).unwrap();
        let inside = mount.at(name);
        let (none, flags) = (None::<&str>, nix::mount::MsFlags::empty());
        nix::mount::mount(Some("none"), &inside, Some("tmpfs"), flags, none).unwrap();
        let line = refusal(&["umount", &mnt, "--timeout", "5"]);
        let shown = inside.to_str().unwrap();
        let expected = format!("but {shown} is mounted inside of it; unmount it first: umount ");
        assert!(line.contains(&expected), "{line}");
        let command = line.rsplit("first: ").next().unwrap();
        let status = Command::new("bash").args(["-c", command]).status();
        assert!(status.unwrap().success(), "{command}");
    }
    let file = std::fs::File::create(mount.at("file")).unwrap();
    let line = refusal(&["umount", &mnt, "--timeout", "5"]);
    assert!(line.ends_with(&format!("(who does: fuser -vm {mnt})")), "{line}");
    drop(file);
}

/// Failures of many files are some lines and a count.
#[test]
fn failures_of_many_files_end() {
    let mount = Mount::new();
    let missing: Vec<String> = (0..40).map(|i| format!("{}/missing{i}", mount.mnt())).collect();
    for (count, lines) in [(1, 1), (10, 10), (11, 11), (40, 11)] {
        let paths = missing.iter().take(count).map(String::as_str);
        let arguments: Vec<&str> = std::iter::once("swap-in").chain(paths).collect();
        let said = refusal(&arguments);
        assert_eq!(said.lines().count(), lines, "{said}");
        let more = format!("swapfs: {} more failed;", count.saturating_sub(10));
        assert_eq!(said.lines().last().unwrap().starts_with(&more), count > 10, "{said}");
    }
}

/// A reader that goes away ends `stats` quietly, and neither a mount nor an unmount, whose notes it would have read.
#[test]
fn a_mount_lives_and_ends_without_readers() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (swap, mnt, file, debug) = (at("swap"), at("mnt"), at("mnt/file"), at("debug.tar.gz"));
    for folder in [&swap, &mnt] {
        std::fs::create_dir(folder).unwrap();
    }
    let run = |arguments: &[&str]| {
        let unread = || std::io::pipe().unwrap().1;
        let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
        let command =
            command.args(arguments).stdin(Stdio::null()).stdout(unread()).stderr(unread());
        command.status().unwrap().code()
    };
    // Locked memory that is not to be had is a note of the mount.
    let mount = format!(
        "ulimit -l 64; exec \"$0\" -vv mount {swap} {mnt} --pool-size 16m 2>&1 | exec true"
    );
    let shell = Command::new("bash").args(["-c", &mount, env!("CARGO_BIN_EXE_swapfs")]).status();
    assert!(shell.unwrap().success());
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while run(&["stats", &mnt, "--count", "1", "--interval", "0.1"]) != Some(0) {
        assert!(std::time::Instant::now() < end, "it was not mounted");
    }
    std::fs::write(&file, "bytes").unwrap();
    assert_eq!(run(&["stats", &mnt, "--interval", "0.1"]), Some(0), "ends with its reader");
    assert_eq!(run(&["stats", &mnt, "--interval", "0.1", "--json"]), Some(0));
    for arguments in [
        &["status", &mnt][..],
        &["status"],
        &["swap-in", "--wait", &file],
        &["swap-out", "--wait", &mnt],
        &["release", "--wait", &file],
        &["config", "show", &mnt],
        &["profile", &mnt, "--seconds", "0.1"],
        &["debug", &mnt, "--interval", "0.1", "--output", &debug],
    ] {
        assert_eq!(run(arguments), Some(0), "{arguments:?}");
    }
    let open = std::fs::File::open(&file).unwrap();
    assert_eq!(run(&["umount", &mnt, "--timeout", "1"]), Some(1));
    assert_eq!(run(&["mount", &swap, &mnt]), Some(1));
    drop(open);
    assert_eq!(run(&["umount", &mnt, "--timeout", "30"]), Some(0));
    assert_eq!(std::fs::read(at("swap/file")).unwrap(), b"bytes");
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
        "[2026-11-21T10:18:23.030Z ERROR swapfs::engine] swap out of {} failed: offset 0, length 4096: EIO (Input/output error)\n",
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
