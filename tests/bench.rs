//! `swapfs bench` as it is typed: real files, real processes, real mounts.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value as Json;
use tempfile::TempDir;

/// Nothing that is waited for takes longer.
const DEADLINE: Duration = Duration::from_secs(60);

/// A folder to measure in; what is mounted below it is gone at the end whatever happens.
struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn text(&self) -> &str {
        self.path().to_str().unwrap()
    }

    /// Names in it, in order.
    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names.collect::<BTreeSet<_>>().into_iter().collect()
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let mounts = swapfs::mount::swapfs_mounts().unwrap();
        let below = mounts.into_iter().map(|mount| mount.mountpoint);
        below.filter(|mountpoint| mountpoint.starts_with(self.path())).collect()
    }

    #[track_caller]
    fn is_as_before(&self) {
        assert_eq!(self.names(), [""; 0]);
        assert_eq!(self.mounts(), [""; 0].map(PathBuf::from));
    }

    /// A measurement that is over soon.
    fn bench(&self, more: &[&str]) -> Output {
        let few = ["bench", "--folder", self.text(), "--io_size", "3M", "--loops", "2"];
        swapfs(&[&few, more].concat())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        for mountpoint in self.mounts() {
            let _ = nix::mount::umount2(&mountpoint, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
    command.args(arguments);
    command
}

fn swapfs(arguments: &[&str]) -> Output {
    command(arguments).output().unwrap()
}

#[track_caller]
fn stdout(output: Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn json(output: Output) -> Json {
    serde_json::from_str(&stdout(output)).unwrap()
}

/// Exit status and the one line on standard error.
#[track_caller]
fn failure(output: &Output) -> (i32, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    let line = text.strip_suffix('\n').unwrap().to_owned();
    assert!(!line.contains('\n'), "one line: {text}");
    (output.status.code().unwrap(), line)
}

/// What DeepSpeed's `parse_nvme_stats.py` makes of a log: the last word but one of the first line that
/// begins with the metric.
fn deepspeed_metric(log: &str, metric: &str) -> Option<f64> {
    let line = log.lines().find(|line| line.starts_with(metric))?;
    let words: Vec<&str> = line.split_whitespace().collect();
    words[words.len() - 2].parse().ok()
}

#[test]
fn every_engine_moves_the_right_bytes_in_every_case() {
    for engine in ["handle", "basic", "posix", "mount"] {
        let folder = Folder::new();
        // Not a whole number of blocks, nor of pages.
        let few = ["--engine", engine, "--case", "all", "--files", "5", "--validate", "--json"];
        let size = ["--io_size", "3000001", "--block_size", "64k", "--queue_depth", "4"];
        let place = ["bench", "--folder", folder.text(), "--loops", "1"];
        let report = json(swapfs(&[&place[..], &few, &size].concat()));
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 9, "{engine}");
        for row in rows {
            assert_eq!(row["validated"], true);
            assert!(row["median"].as_f64().unwrap() > 0.0, "{engine}: {row}");
            let bytes =
                if row["files"] == 5 { 5 * (3_000_001 / 5 / 4096 * 4096) } else { 3_000_001 };
            assert_eq!(row["rounds"][0]["bytes"], bytes, "{engine}: {row}");
        }
        folder.is_as_before();
    }
}

#[test]
#[ignore = "needs python3: tests/suites/tools.sh"]
fn validation_sees_what_an_engine_got_wrong() {
    let folder = Folder::new();
    let fake = fake_deepspeed(&folder, "wrong");
    let place = folder.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let arguments =
        ["bench", "--engine", "deepspeed", "--read", "--io_size", "1M", "--validate", "--folder"];
    let output = command(&[&arguments[..], &[place.to_str().unwrap()]].concat())
        .env("PYTHONPATH", &fake)
        .output()
        .unwrap();
    let (status, line) = failure(&output);
    assert_eq!(status, 1);
    assert!(line.ends_with("file and memory differ"), "{line}");
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
}

/// A stand-in for torch and DeepSpeed, with DeepSpeed's signatures. A `wrong` one reads other bytes.
fn fake_deepspeed(folder: &Folder, behaviour: &str) -> PathBuf {
    let root = folder.path().join("python");
    let package = root.join("deepspeed/ops");
    std::fs::create_dir_all(&package).unwrap();
    for path in ["deepspeed/__init__.py", "deepspeed/ops/__init__.py"] {
        std::fs::write(root.join(path), "").unwrap();
    }
    let torch = "
import random
uint8 = 'uint8'
def empty(count, dtype): return None
class Tensor:
    def __init__(self, view): self.view = view
    def narrow(self, dimension, start, length): return Tensor(self.view[start:start + length])
    def random_(self, low, high): self.view[:] = random.Random(1).randbytes(len(self.view))
    def zero_(self): self.view[:] = bytes(len(self.view))
    def numpy(self): return self.view
";
    std::fs::write(root.join("torch.py"), torch).unwrap();
    let builder = "
import os, torch
class Handle:
    def __init__(self, block_size, queue_depth, single_submit, overlap_events, parallel):
        print('a library that prints')
        self.pending = 0
    def new_cpu_locked_tensor(self, count, example):
        return torch.Tensor(memoryview(bytearray(count)))
    def async_pwrite(self, buffer, path, offset):
        with open(path, 'r+b') as file: file.write(buffer.view)
        self.pending += 1
        return 0
    def async_pread(self, buffer, path, offset):
        with open(path, 'rb') as file: file.readinto(buffer.view)
        if BEHAVIOUR == 'wrong': buffer.view[7] ^= 1
        self.pending += 1
        return 0
    def wait(self):
        count, self.pending = self.pending, 0
        assert count > 0
        return count
class AsyncIOBuilder:
    def load(self): return self
    def aio_handle(self, *settings): return Handle(*settings)
";
    let builder = format!("BEHAVIOUR = '{behaviour}'\n{builder}");
    std::fs::write(package.join("op_builder.py"), builder).unwrap();
    root
}

#[test]
#[ignore = "needs python3: tests/suites/tools.sh"]
fn deepspeed_is_measured_where_it_is_installed() {
    let folder = Folder::new();
    let fake = fake_deepspeed(&folder, "right");
    let place = folder.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let arguments = [
        "bench",
        place.to_str().unwrap(),
        "--engine",
        "deepspeed",
        "--case",
        "first-write,cold-read,many-read",
        "--io_size",
        "1M",
        "--multi_process",
        "2",
        "--validate",
        "--json",
    ];
    let report = json(command(&arguments).env("PYTHONPATH", &fake).output().unwrap());
    assert_eq!(report["rows"].as_array().unwrap().len(), 3);
    assert_eq!(report["rows"][0]["rounds"][0]["bytes"], 2 << 20);
    assert_eq!(std::fs::read_dir(&place).unwrap().count(), 0);
}

#[test]
#[ignore = "needs python3: tests/suites/tools.sh"]
fn deepspeed_is_asked_for_plainly_where_it_is_not() {
    let folder = Folder::new();
    // Its first import fails whatever is installed.
    let fake = fake_deepspeed(&folder, "right");
    std::fs::write(fake.join("torch.py"), "raise ImportError(\"No module named 'torch'\")")
        .unwrap();
    let place = folder.path().join("place");
    std::fs::create_dir(&place).unwrap();
    let arguments = ["bench", place.to_str().unwrap(), "--engine", "deepspeed", "--io_size", "1M"];
    let (status, line) = failure(&command(&arguments).env("PYTHONPATH", &fake).output().unwrap());
    let expected = "swapfs: engine deepspeed: python3 cannot use DeepSpeed's aio handle: No module named 'torch'";
    assert_eq!((status, line.as_str()), (1, expected));
}

#[test]
#[ignore = "needs fio: tests/suites/tools.sh"]
fn fio_takes_turns_on_the_same_files() {
    let folder = Folder::new();
    let arguments = ["--engine", "handle,fio", "--case", "all", "--files", "4", "--json"];
    let report = json(folder.bench(&[&arguments[..], &["--io_parallel", "2"]].concat()));
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 18);
    for pair in rows.chunks(2) {
        let [ours, theirs] = pair else { unreachable!() };
        assert_eq!((&ours["engine"], &theirs["engine"]), (&"handle".into(), &"fio".into()));
        assert_eq!(ours["ratio"], 1.0);
        assert_eq!(theirs["validated"], false);
        assert!(theirs["ratio"].as_f64().unwrap() > 0.0);
        assert_eq!(theirs["rounds"].as_array().unwrap().len(), 2);
    }
    folder.is_as_before();
}

#[test]
fn result_lines_are_deepspeeds() {
    let folder = Folder::new();
    // As its own users type it.
    let arguments = [
        "--multi_process",
        "2",
        "--block_size",
        "1M",
        "--queue_depth",
        "8",
        "--single_submit",
        "--sequential_requests",
        "--include_warmup_time",
        "--different_file_each_iteration",
        "--io_parallel",
        "2",
    ];
    for (more, word) in [(&["--read"][..], "Read"), (&[], "Write")] {
        let log = stdout(folder.bench(&[&arguments[..], more].concat()));
        for kind in ["Task", "E2E"] {
            let speed = deepspeed_metric(&log, &format!("{kind} {word} Speed")).unwrap();
            let latency = deepspeed_metric(&log, &format!("{kind} {word} Latency")).unwrap();
            // Two processes, two rounds and the one to warm up.
            let expected = f64::from(2 * 3 * 3) / 1024.0 / latency;
            assert!((speed / expected - 1.0).abs() < 1e-9, "{log}");
        }
        assert_eq!(log.lines().filter(|line| line.contains(" = ")).count(), 4, "{log}");
        assert!(log.contains(" sec\n") && log.trim_end().ends_with(" GB/sec"), "{log}");
    }
    folder.is_as_before();
}

#[test]
fn what_the_figures_are_not_is_noted() {
    let folder = Folder(TempDir::new_in("/dev/shm").unwrap());
    let report = json(folder.bench(&["--engine", "posix", "--json", "--no_sync"]));
    let note = format!("{} is a tmpfs: nothing there is ever cold, or on a device", folder.text());
    let notes = report["notes"].as_array().unwrap();
    assert!(notes.contains(&Json::from(note)), "{notes:?}");
    folder.is_as_before();
}

#[test]
#[ignore = "needs fio: tests/suites/tools.sh"]
fn what_fio_moved_is_noted_as_not_validated() {
    let folder = Folder::new();
    let report = json(folder.bench(&["--engine", "posix,fio", "--validate", "--json"]));
    let notes = report["notes"].as_array().unwrap();
    assert!(notes.contains(&"what fio moved was not validated".into()), "{notes:?}");
    folder.is_as_before();
}

#[test]
fn json_has_every_documented_key() {
    let folder = Folder::new();
    let report = json(folder.bench(&["--json", "--no_sync"]));
    let keys =
        |value: &Json| -> Vec<String> { value.as_object().unwrap().keys().cloned().collect() };
    assert_eq!(keys(&report), ["version", "unit", "settings", "rows", "notes", "lines"]);
    let row = [
        "case",
        "engine",
        "access",
        "order",
        "files",
        "state",
        "validated",
        "min",
        "median",
        "max",
        "ratio",
        "task",
        "e2e",
        "rounds",
    ];
    assert_eq!(keys(&report["rows"][0]), row);
    assert_eq!(keys(&report["rows"][0]["task"]), ["latency", "speed"]);
    assert_eq!(keys(&report["rows"][0]["rounds"][0]), ["task", "e2e", "bytes"]);
    assert_eq!(report["settings"]["sync"], false);
    assert_eq!(report["settings"]["io_size"], 3 << 20);
    assert_eq!(report["lines"].as_array().unwrap().len(), 4);
}

/// A measurement that goes on until it is stopped.
fn endless(folder: &Folder, more: &[&str]) -> Child {
    let long = ["bench", "--folder", folder.text(), "--io_size", "8M", "--loops", "1000000"];
    let mut command = command(&[&long[..], more].concat());
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < DEADLINE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Processes that this one has started, with their command lines.
fn children(parent: u32) -> Vec<(u32, String)> {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    pids.filter_map(|pid| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let ppid: u32 = stat.rsplit_once(") ")?.1.split(' ').nth(1)?.parse().ok()?;
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        (ppid == parent).then(|| (pid, String::from_utf8_lossy(&line).replace('\0', " ")))
    })
    .collect()
}

fn interrupt(mut child: Child) -> String {
    let pid = nix::unistd::Pid::from_raw(child.id().try_into().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.signal(), Some(2), "{status}");
    std::io::read_to_string(child.stderr.take().unwrap()).unwrap()
}

#[test]
fn processes_are_processes_and_an_interrupt_leaves_nothing() {
    let folder = Folder::new();
    let child = endless(&folder, &["--multi_process", "3"]);
    let mut workers = Vec::new();
    wait_until("three processes", || {
        workers = children(child.id());
        workers.retain(|(_, line)| line.contains("bench-worker"));
        workers.len() == 3 && folder.names().len() == 3
    });
    assert_eq!(
        interrupt(child),
        "swapfs: stopped by SIGINT; what the benchmark had made is removed\n"
    );
    for (pid, line) in workers {
        assert!(!Path::new(&format!("/proc/{pid}")).exists(), "{line}");
    }
    folder.is_as_before();
}

/// Whose command line names the folder.
fn processes_about(folder: &Folder) -> Vec<String> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| std::fs::read(entry.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(folder.text())).collect()
}

#[track_caller]
fn is_interrupted(folder: &Folder, child: Child) {
    interrupt(child);
    folder.is_as_before();
    assert_eq!(processes_about(folder), [""; 0]);
}

#[test]
fn an_interrupt_takes_mounts_away() {
    let folder = Folder::new();
    let child = endless(&folder, &["--engine", "mount"]);
    wait_until("a mount", || !folder.mounts().is_empty());
    is_interrupted(&folder, child);
}

#[test]
#[ignore = "needs fio: tests/suites/tools.sh"]
fn an_interrupt_takes_mounts_and_peers_away() {
    let folder = Folder::new();
    let child = endless(&folder, &["--engine", "mount,fio"]);
    wait_until("a mount", || !folder.mounts().is_empty());
    wait_until("fio", || children(child.id()).iter().any(|(_, line)| line.starts_with("fio")));
    is_interrupted(&folder, child);
}

#[test]
fn files_of_others_are_never_touched() {
    let folder = Folder::new();
    let theirs = folder.path().join("theirs");
    std::fs::write(&theirs, "precious").unwrap();
    let path = theirs.to_str().unwrap();
    let output = swapfs(&["bench", "--write_file", path, "--write_size", "1M"]);
    let expected = format!(
        "swapfs: {path} exists and no benchmark made it, so it is not overwritten; remove it, or \
         choose another folder or --write-file"
    );
    assert_eq!(failure(&output), (1, expected));
    // The same under the names that are made up here, for writing and, of another size, for reading.
    for name in ["_aio_write_3145728.pt.0_0", "_aio_read_3145728.pt.0_0"] {
        std::fs::write(folder.path().join(name), "precious").unwrap();
        let read = if name.contains("read") { &["--read"][..] } else { &[] };
        let (status, line) = failure(&folder.bench(read));
        assert!(status == 1 && line.contains("no benchmark made it"), "{line}");
        assert_eq!(std::fs::read(folder.path().join(name)).unwrap(), b"precious");
        std::fs::remove_file(folder.path().join(name)).unwrap();
    }
    // A link leads to somebody's file.
    let link = folder.path().join("_aio_write_3145728.pt.0_0");
    std::os::unix::fs::symlink(&theirs, &link).unwrap();
    assert_eq!(failure(&folder.bench(&[])).0, 1);
    assert_eq!(std::fs::read(&theirs).unwrap(), b"precious");
}

#[test]
fn what_is_there_to_be_read_is_read_and_left() {
    let folder = Folder::new();
    let bytes: Vec<u8> = (0..3_000_000_u32).map(|at| (at % 251) as u8).collect();
    let file = folder.path().join("model.bin");
    std::fs::write(&file, &bytes).unwrap();
    // One of DeepSpeed's, made by an earlier run of it.
    let made = folder.path().join("_aio_read_3145728.pt.0_0");
    std::fs::write(&made, vec![7; 3 << 20]).unwrap();
    let report = json(swapfs(&["bench", file.to_str().unwrap(), "--validate", "--json"]));
    assert_eq!(report["rows"][0]["rounds"][0]["bytes"], 3_000_000);
    stdout(folder.bench(&["--read", "--validate"]));
    assert_eq!(folder.names(), ["_aio_read_3145728.pt.0_0", "model.bin"]);
    assert_eq!(std::fs::read(&file).unwrap(), bytes);
    assert_eq!(std::fs::read(&made).unwrap(), vec![7; 3 << 20]);
}

#[test]
fn kept_files_serve_the_next_benchmark() {
    let folder = Folder::new();
    let kept = ["_aio_write_3145728.pt.0_0"];
    stdout(folder.bench(&["--keep"]));
    assert_eq!(folder.names(), kept);
    assert_eq!(std::fs::metadata(folder.path().join(kept[0])).unwrap().len(), 3 << 20);
    stdout(folder.bench(&["--keep"]));
    assert_eq!(folder.names(), kept);
    stdout(folder.bench(&[]));
    folder.is_as_before();
}

#[test]
fn an_existing_mount_is_measured_and_left() {
    let folder = Folder::new();
    for name in ["swap", "mnt"] {
        std::fs::create_dir(folder.path().join(name)).unwrap();
    }
    let (swap, mnt) = (folder.path().join("swap"), folder.path().join("mnt"));
    let (swap, mnt) = (swap.to_str().unwrap(), mnt.to_str().unwrap());
    stdout(swapfs(&["mount", swap, mnt, "--pool-size", "16m"]));
    let report = json(swapfs(&["bench", mnt, "--io-size", "20M", "--validate", "--json"]));
    let cases: Vec<_> = report["rows"].as_array().unwrap().iter().map(|row| &row["case"]).collect();
    assert_eq!(cases, ["first-write", "overwrite", "cold-read", "warm-read"]);
    assert_eq!(report["rows"][2]["state"], "released from the pool");
    assert_eq!(report["settings"]["engines"][0], "mount");
    // Whatever does the reading there, the pool is warm or cold; and --folder may be a mount.
    let few = ["bench", "--folder", mnt, "--io-size", "3M", "--loops", "1", "--json"];
    let cases = ["--engine", "handle,mount", "--case", "cold-read,warm-read"];
    let report = json(swapfs(&[&few[..], &cases].concat()));
    for (row, state) in
        [(0, "released from the pool"), (2, "released, then read once through the mount")]
    {
        assert_eq!(report["rows"][row]["engine"], "handle");
        assert_eq!(report["rows"][row]["state"], state);
    }
    let (status, line) = failure(&swapfs(&["bench", "--roofline", mnt, "--io-size", "1M"]));
    let expected =
        format!("swapfs: {mnt}: lies on a swapfs mount; measure its swap folder, {swap}");
    assert_eq!((status, line), (1, expected));
    assert_eq!(std::fs::read_dir(mnt).unwrap().count(), 0);
    stdout(swapfs(&["umount", mnt]));
    let (status, line) = failure(&folder.bench(&["--engine", "mount", "--mount", swap]));
    assert_eq!((status, line), (1, format!("swapfs: {swap} is not on a swapfs mount")));
}

#[test]
fn bad_arguments_get_one_line() {
    let folder = Folder::new();
    let missing = folder.path().join("missing");
    let missing = missing.to_str().unwrap();
    let path = folder.text();
    for (arguments, status, expected) in [
        (&[][..], 2, "no folder to measure in; give one: swapfs bench FOLDER"),
        (&["--folder", missing], 1, "missing: No such file or directory"),
        (&["--read_file", missing], 1, "missing: No such file or directory"),
        (&[missing], 1, "missing: No such file or directory"),
        (
            &[path, "--io_size", "0"],
            2,
            "--io-size: 0 bytes cannot be measured; give a size such as 1G",
        ),
        (
            &[path, "--io_size", "much"],
            2,
            "\"much\" is not accepted; give a size (as in 4096, 64k, 1.5 GiB, 2 GB)",
        ),
        (
            &[path, "--block_size", "3000"],
            2,
            "--block-size: 3000 is not accepted; give a power of two from 512 to 1 GiB",
        ),
        (&[path, "--queue_depth", "0"], 2, "--queue-depth: 0 is not accepted; give 1 to 4096"),
        (&[path, "--loops", "0"], 2, "--loops: 0 is not accepted; give 1 to 1000000"),
        (&[path, "--multi_process", "0"], 2, "--multi-process: 0 is not accepted; give 1 to 4096"),
        (
            &[path, "--engine", "handel"],
            2,
            "--engine: \"handel\" is no engine; the nearest is handle, all are handle, basic, mount, \
             posix, fio, fio-huge, deepspeed",
        ),
        (
            &[path, "--case", "over-write"],
            2,
            "the nearest is overwrite, all are first-write, overwrite, \
            cold-read, warm-read, random-write, random-read, mixed, many-write, many-read, all",
        ),
        (
            &[path, "--case", "mixed", "--engine", "deepspeed"],
            2,
            "mixed: the engine deepspeed moves whole files only",
        ),
        (
            &[path, "--case", "overwrite", "--engine", "deepspeed", "--io_size", "10000000"],
            2,
            "overwrite: the engine deepspeed moves files of a multiple of 4096 bytes (4 KiB for each \
             of --io-parallel), not of 10000000; give another --io-size",
        ),
        (&["--folder_to_device_mapping", path], 2, "give FOLDER:DEVICE, such as /nvme0:0"),
        (&["/dev/null"], 1, "/dev/null: not a regular file"),
        (&[path, "-o", "queue_dept=1"], 2, "the nearest is queue_depth"),
        (&[path, "--case", "many-write", "--io_size", "4k"], 2, "is less than 4 KiB a file"),
    ] {
        let output = swapfs(&[&["bench"], arguments].concat());
        let (found, line) = failure(&output);
        assert_eq!(found, status, "{arguments:?}: {line}");
        assert!(line.starts_with("swapfs: ") && line.ends_with(expected), "{arguments:?}: {line}");
    }
    for (arguments, expected) in [
        (&["--io_size", "8T"][..], "free there; give a smaller --io-size"),
        (&["--io_size", "1G", "--multi_process", "4096"], "free there; give a smaller --io-size"),
        (&["--gpu"], "go through pinned host memory, which is what this measures without --gpu"),
    ] {
        let (status, line) = failure(&swapfs(&[&["bench", path], arguments].concat()));
        assert!(status == 1 && line.contains(expected), "{arguments:?}: {line}");
    }
    folder.is_as_before();
}

#[test]
fn an_empty_file_is_named() {
    let folder = Folder::new();
    let file = folder.path().join("empty");
    std::fs::write(&file, "").unwrap();
    let (status, line) = failure(&swapfs(&["bench", file.to_str().unwrap()]));
    let shown = file.display();
    assert_eq!((status, line), (1, format!("swapfs: {shown}: an empty file, nothing to read")));
}

#[test]
fn names_that_are_no_text_are_measured_and_reported() {
    odd_names("handle,posix,mount");
}

#[test]
#[ignore = "needs fio: tests/suites/tools.sh"]
fn names_that_are_no_text_are_given_to_fio() {
    odd_names("posix,fio");
}

fn odd_names(engines: &str) {
    let folder = Folder::new();
    let odd = folder.path().join(std::ffi::OsStr::from_bytes(b"odd :\xff\n"));
    std::fs::create_dir(&odd).unwrap();
    let file = odd.join(std::ffi::OsStr::from_bytes(b"\xfe"));
    let bench = |more: &[&std::ffi::OsStr]| {
        let mut command =
            command(&["bench", "--io-size", "1M", "--loops", "1", "--validate", "--json"]);
        json(command.args(["--engine", engines]).args(more).output().unwrap())
    };
    let report = bench(&[odd.as_os_str()]);
    assert_eq!(report["settings"]["folders"][0], odd.to_string_lossy().as_ref());
    bench(&["--write-file".as_ref(), file.as_os_str()]);
    assert_eq!(std::fs::read_dir(&odd).unwrap().count(), 0);
    std::fs::write(&file, vec![3; 1 << 20]).unwrap();
    let report = bench(&["--read-file".as_ref(), file.as_os_str()]);
    assert_eq!(report["settings"]["read_file"], file.to_string_lossy().as_ref());
    assert_eq!(std::fs::read_dir(&odd).unwrap().count(), 1);
}

#[test]
fn more_processes_than_the_memory_holds_are_refused() {
    let folder = Folder::new();
    // Sparse, so that space is no question.
    let file = folder.path().join("large");
    std::fs::File::create(&file).unwrap().set_len(1 << 40).unwrap();
    let file = file.to_str().unwrap();
    let (status, line) = failure(&swapfs(&["bench", file, "--multi_process", "4"]));
    assert_eq!(status, 1);
    assert!(line.starts_with("swapfs: 4 processes of 1 TiB each do not fit in the"), "{line}");
    assert!(line.ends_with("give a smaller --io-size or fewer with --multi-process"), "{line}");
}

#[test]
fn folders_for_each_process_are_all_used() {
    let (first, second) = (Folder::new(), Folder::new());
    let (one, two) = (format!("{}:0", first.text()), format!("{}:1", second.text()));
    let arguments =
        ["bench", "--folder_to_device_mapping", &one, &two, "--io_size", "1M", "--keep"];
    stdout(swapfs(&[&arguments[..], &["--engine", "posix"]].concat()));
    assert_eq!(first.names(), ["_aio_write_1048576.pt.0_0"]);
    assert_eq!(second.names(), ["_aio_write_1048576.pt.1_0"]);
}

#[test]
fn any_benchmark_is_drawn() {
    let folder = Folder::new();
    let drawing = Folder::new();
    let plot = drawing.path().join("rows.svg");
    let options = ["--engine", "posix,handle", "--read", "--plot", plot.to_str().unwrap()];
    stdout(folder.bench(&options));
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("cold-read, posix\n"), "{svg}");
    assert!(svg.contains("cold-read, handle\n") && svg.contains(" of the first)"), "{svg}");
    // Cold and warm, by each.
    assert_eq!(svg.matches("-read, ").count(), 4, "{svg}");
    folder.is_as_before();
}

#[test]
fn the_roofline_names_a_layer_and_is_drawn() {
    let folder = Folder::new();
    let drawing = Folder::new();
    let plot = drawing.path().join("layers.svg");
    let arguments = ["bench", "--roofline", folder.text(), "--io_size", "4M", "--loops", "1"];
    let options = ["-o", "pool_size=16m", "--plot", plot.to_str().unwrap(), "--json"];
    // Without fio, whatever is installed: there is no program in that folder.
    let mut bench = command(&[&arguments[..], &options].concat());
    let report = json(bench.env("PATH", folder.path()).output().unwrap());
    let layers = report["layers"].as_array().unwrap();
    let names: BTreeSet<&str> = layers.iter().map(|row| row["layer"].as_str().unwrap()).collect();
    assert_eq!(names, BTreeSet::from(["ring", "pool", "fuse", "full"]));
    assert_eq!(layers.len(), 8);
    let limits = report["limits"].as_str().unwrap();
    // On a machine that is busy with other things the whole can come out faster than a part.
    let named = |word: &str| {
        limits.contains(&format!("{word} are limited by "))
            || limits.contains(&format!("{word}: too noisy"))
    };
    assert!(named("Writes") && named("reads"), "{limits}");
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg") && svg.contains("full path, read"));
    folder.is_as_before();
    // Its own picture is replaced, anybody else's is not.
    stdout(swapfs(&[&arguments[..], &options].concat()));
    std::fs::write(&plot, "<svg>precious</svg>").unwrap();
    let (status, line) = failure(&swapfs(&[&arguments[..], &options].concat()));
    assert!(status == 1 && line.ends_with("is no plot that swapfs made; name another"), "{line}");
    assert_eq!(std::fs::read_to_string(&plot).unwrap(), "<svg>precious</svg>");
}

#[test]
#[ignore = "needs fio: tests/suites/tools.sh"]
fn the_roofline_has_fio_as_its_lowest_layer() {
    let folder = Folder::new();
    let arguments = ["bench", "--roofline", folder.text(), "--io_size", "4M", "--loops", "1"];
    let report = json(swapfs(&[&arguments[..], &["-o", "pool_size=16m", "--json"]].concat()));
    let layers = report["layers"].as_array().unwrap();
    assert_eq!(layers.len(), 10);
    assert_eq!((&layers[0]["layer"], &layers[5]["layer"]), (&"fio".into(), &"fio".into()));
    folder.is_as_before();
}
