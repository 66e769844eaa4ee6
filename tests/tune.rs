//! `swapfs tune` on real folders. Needs root, for the mounts.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value as Json, json};
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_swapfs");

/// A folder to tune for, and one for results.
struct Rig {
    scratch: TempDir,
    folder: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let folder = scratch.path().join("swap");
        std::fs::create_dir(&folder).unwrap();
        Self { scratch, folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    /// Writes a sweep file.
    fn sweep(&self, sweep: &Json) -> PathBuf {
        let path = self.path("sweep.json");
        std::fs::write(&path, sweep.to_string()).unwrap();
        path
    }

    /// `swapfs tune FOLDER`, with little to do.
    fn tune(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.arg("tune").arg(&self.folder).args(["--io-size", "8M"]).args(arguments);
        command
    }

    /// The folder is as it was.
    #[track_caller]
    fn assert_clean(&self) {
        assert_eq!(self.folder.read_dir().unwrap().count(), 0);
    }
}

#[track_caller]
fn done(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Exit status and the one line on standard error.
#[track_caller]
fn failure(output: &Output) -> (Option<i32>, String) {
    let lines = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(lines.lines().count(), 1, "{lines}");
    (output.status.code(), lines.trim_end().to_owned())
}

fn read_json(path: &Path) -> Json {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Two block sizes, two depths, each once.
fn small_sweep() -> Json {
    json!({ "block_size": ["128K", "256K"], "queue_depth": [2, 4], "io_parallel": [1, 2],
            "sequential_requests": [true, false], "single_submit": [true] })
}

#[test]
fn the_result_goes_straight_into_a_mount() {
    let rig = Rig::new();
    let (sweep, tuned) = (rig.sweep(&small_sweep()), rig.path("tuned.json"));
    let mut command = rig.tune(&["--no_read"]);
    command.arg("--sweep_config").arg(&sweep).arg(format!("--output={}", tuned.display()));
    let told = done(&command.output().unwrap());
    rig.assert_clean();
    assert!(told.contains("16 of 16 combinations"), "{told}");
    assert!(told.contains("best for write:") && !told.contains("best for read:"), "{told}");
    let json = read_json(&tuned);
    let aio = json["aio"].as_object().unwrap();
    let keys: Vec<&str> = aio.keys().map(String::as_str).collect();
    assert_eq!(
        keys,
        ["block_size", "queue_depth", "intra_op_parallelism", "single_submit", "overlap_events"]
    );
    assert!([128 << 10, 256 << 10].contains(&aio["block_size"].as_u64().unwrap()), "{json}");
    assert!([2, 4].contains(&aio["queue_depth"].as_u64().unwrap()), "{json}");
    assert!([1, 2].contains(&aio["intra_op_parallelism"].as_u64().unwrap()), "{json}");
    assert_eq!(aio["single_submit"], true);
    assert!(aio["overlap_events"].is_boolean(), "{json}");
    assert!(json["swapfs_tune"]["best"]["write_bytes_per_second"].as_u64().unwrap() > 0);
    assert_eq!(json["swapfs_tune"]["best"]["read_bytes_per_second"], Json::Null);

    let mnt = rig.path("mnt");
    std::fs::create_dir(&mnt).unwrap();
    let swapfs = |arguments: &[&Path]| Command::new(PROGRAM).args(arguments).output().unwrap();
    done(&swapfs(&[Path::new("mount"), &rig.folder, &mnt, Path::new("--config"), &tuned]));
    let in_force = std::fs::read(mnt.join(".swapfs/config.json"));
    let written = std::fs::write(mnt.join("partition"), [7; 300_000]);
    let through_mount = rig.path("mnt");
    let refused = Command::new(PROGRAM).arg("tune").arg(&through_mount).output().unwrap();
    done(&swapfs(&[Path::new("umount"), &mnt]));
    written.unwrap();
    assert_eq!(std::fs::read(rig.folder.join("partition")).unwrap(), [7; 300_000]);
    let in_force: Json = serde_json::from_slice(&in_force.unwrap()).unwrap();
    for (option, key) in [
        ("block_size", "block_size"),
        ("queue_depth", "queue_depth"),
        ("thread_count", "intra_op_parallelism"),
        ("single_submit", "single_submit"),
        ("overlap_events", "overlap_events"),
    ] {
        assert_eq!(in_force[option]["value"], aio[key], "{option}");
    }
    let (status, line) = failure(&refused);
    assert_eq!(status, Some(1));
    assert!(line.contains("lies on a swapfs mount"), "{line}");
}

#[test]
fn figures_of_every_combination_are_printed_drawn_and_logged() {
    let rig = Rig::new();
    let sweep = rig.sweep(&small_sweep());
    let (plot, logs) = (rig.path("map.svg"), rig.path("logs"));
    let mut command = rig.tune(&["--json", "--loops", "2"]);
    command.arg("--sweep-config").arg(&sweep).arg("--plot").arg(&plot);
    command.arg("--log-dir").arg(&logs);
    let json: Json = serde_json::from_str(&done(&command.output().unwrap())).unwrap();
    let tune = &json["swapfs_tune"];
    assert_eq!((&tune["complete"], &tune["measured"]), (&json!(true), &json!(16)));
    let results = tune["results"].as_array().unwrap();
    assert_eq!(results.len(), 16);
    let speed = |one: &Json, key: &str| one[key].as_u64().unwrap();
    let both =
        |one: &Json| speed(one, "read_bytes_per_second") + speed(one, "write_bytes_per_second");
    let most = results.iter().map(both).max().unwrap();
    assert!(both(&tune["best"]).abs_diff(most) <= 1, "{json:#}");
    let reads = results.iter().map(|one| speed(one, "read_bytes_per_second"));
    assert_eq!(reads.max(), Some(speed(&tune["best_read"], "read_bytes_per_second")));
    let svg = std::fs::read_to_string(&plot).unwrap();
    assert!(svg.starts_with("<svg"), "{svg}");
    // A rectangle for each figure, the background, and the steps of the scale.
    assert_eq!(svg.matches("<rect").count(), 16 * 2 + 1 + 16);
    for operation in ["read", "write"] {
        let folder = logs.join(format!("_aio_bench_{operation}_logs"));
        assert_eq!(folder.read_dir().unwrap().count(), 16);
        let name = format!("{operation}_single_overlap_ftd1_d4_bs256K_p2.txt");
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let line = text.lines().find(|line| line.starts_with("E2E") && line.contains("Speed"));
        let words: Vec<&str> = line.unwrap().split_whitespace().collect();
        assert_eq!((words[3], words[5]), ("=", "GB/sec"));
        assert!(words[4].parse::<f64>().unwrap() > 0.0);
    }
    rig.assert_clean();
}

#[test]
fn without_output_the_configuration_is_printed() {
    let rig = Rig::new();
    let sweep = rig.sweep(&json!({ "block_size": ["128K"], "queue_depth": [2] }));
    let mut command = rig.tune(&["--quick", "--no-write"]);
    let told = done(&command.arg("--sweep-config").arg(&sweep).output().unwrap());
    let printed: Json = serde_json::from_str(&told[told.find("{\n").unwrap()..]).unwrap();
    let aio = json!({ "block_size": 128 << 10, "queue_depth": 2, "intra_op_parallelism": 1,
                      "single_submit": false, "overlap_events": true });
    assert_eq!(printed, json!({ "aio": aio }));
    rig.assert_clean();
}

#[test]
fn stopped_half_way_it_keeps_what_was_measured() {
    let rig = Rig::new();
    let tuned = rig.path("tuned.json");
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        let mut command = rig.tune(&["--loops", "1000", "--output"]);
        let child = command.arg(&tuned).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.unwrap();
        // Some of the 64,000 measurements are done then, and not all.
        std::thread::sleep(Duration::from_secs(3));
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        rig.assert_clean();
        let (status, line) = failure(&output);
        assert_eq!(status, Some(1));
        let json = read_json(&tuned);
        let measured = json["swapfs_tune"]["measured"].as_u64().unwrap();
        assert!(measured > 0);
        let expected = format!(
            "stopped: {measured} of 64 combinations were measured, kept in {}",
            tuned.display()
        );
        assert_eq!(line, format!("swapfs: {expected}"));
        assert_eq!(json["swapfs_tune"]["complete"], false);
        assert!(json["aio"]["block_size"].is_u64());
    }
}

#[test]
fn a_hangup_that_is_ignored_stops_nothing() {
    let rig = Rig::new();
    let sweep = rig.sweep(&small_sweep());
    let output = rig.path("tuned.json");
    // As nohup(1) does it.
    let script = "trap '' HUP; (sleep 0.3; kill -HUP $$) & exec \"$@\"";
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash", PROGRAM, "tune", "--io-size", "16M", "--loops", "9"]);
    command.arg("--sweep-config").arg(sweep).arg("--output").arg(&output).arg(&rig.folder);
    done(&command.output().unwrap());
    assert_eq!(read_json(&output)["swapfs_tune"]["complete"], true);
}

#[test]
fn files_of_others_are_never_replaced() {
    let rig = Rig::new();
    let sweep = rig.sweep(&json!({ "block_size": ["128K"], "queue_depth": [2] }));
    let run = |option: &str, path: &Path| {
        let mut command = rig.tune(&["--sweep-config", sweep.to_str().unwrap(), option]);
        command.arg(path).output().unwrap()
    };
    let (theirs, ours) = (rig.path("theirs"), rig.path("ours"));
    std::fs::write(&theirs, r#"{"aio": {}}"#).unwrap();
    for option in ["--output", "--plot"] {
        let (status, line) = failure(&run(option, &theirs));
        assert_eq!(status, Some(1));
        assert!(line.ends_with("that swapfs made; name another"), "{line}");
        done(&run(option, &ours));
        let inode = ours.metadata().unwrap().ino();
        done(&run(option, &ours));
        assert_ne!(ours.metadata().unwrap().ino(), inode, "replaced as a whole");
        // A result of the other kind is as dear as anybody's.
        let other = if option == "--plot" { "--output" } else { "--plot" };
        let (status, line) = failure(&run(other, &ours));
        assert_eq!(status, Some(1), "{line}");
        std::fs::remove_file(&ours).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&theirs).unwrap(), r#"{"aio": {}}"#);
    let (status, line) = failure(&run("--log-dir", rig.scratch.path()));
    assert_eq!(status, Some(1));
    assert!(line.ends_with("the log folder is not empty; name another"), "{line}");
}

#[test]
fn values_that_cannot_run_are_left_out_and_said() {
    let rig = Rig::new();
    let sweep = rig.sweep(&json!({ "block_size": ["3M", "128K"], "queue_depth": [2, 10_000] }));
    let mut command = rig.tune(&["--json"]);
    let output = command.arg("--sweep-config").arg(&sweep).output().unwrap();
    let json: Json = serde_json::from_str(&done(&output)).unwrap();
    assert_eq!(json["swapfs_tune"]["combinations"], 1);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(
        said.contains("block_size 3145728 is left out: a mount takes a power of two"),
        "{said}"
    );
    assert!(said.contains("queue_depth 10000 is left out: a mount takes"), "{said}");
    let sweep = rig.sweep(&json!({ "block_size": ["3M"] }));
    let (status, line) =
        failure(&rig.tune(&["--sweep-config", sweep.to_str().unwrap()]).output().unwrap());
    assert_eq!(status, Some(1));
    assert!(line.contains("nothing is left to measure"), "{line}");
}

#[test]
#[ignore = "needs mkfs.ext4: tests/suites/tools.sh"]
fn a_folder_without_direct_io_is_refused() {
    let rig = Rig::new();
    let image = rig.path("image");
    std::fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let script = "mkfs.ext4 -q \"$2\"; mount -o loop,data=journal \"$2\" \"$1\"
        exec \"$3\" tune --io-size 1M \"$1\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-euc", script, "sh"]);
    command.arg(&rig.folder).arg(&image).arg(PROGRAM);
    let (status, line) = failure(&command.output().unwrap());
    assert_eq!(status, Some(1));
    assert!(line.contains("no O_DIRECT there"), "{line}");
}

#[test]
fn bad_arguments_are_one_line_each() {
    let rig = Rig::new();
    let folder = rig.folder.to_str().unwrap();
    let missing = rig.path("missing");
    let missing = missing.to_str().unwrap();
    let garbage = rig.sweep(&json!({ "block_size": [0] }));
    let garbage = garbage.to_str().unwrap();
    for (arguments, status, expected) in [
        (&[folder, "--io-size", "0"][..], 2, r#"--io-size: "0" is not accepted; give"#),
        (&[folder, "--io_size", "1000000"], 2, "give a multiple of 4 KiB"),
        (&[folder, "--io_size=many"], 2, r#""many" is not accepted"#),
        (&[folder, "--loops", "0"], 2, "give a whole number from 1 to 1000"),
        (&[folder, "--no-read", "--no_write"], 2, "leave nothing to measure"),
        (&[folder, "--gpu"], 2, "pinned host memory"),
        (&[missing], 1, "missing: No such file or directory"),
        (&[garbage], 1, "sweep.json: Not a directory"),
        (&["--nvme_dir", missing], 1, "missing: No such file or directory"),
        (&[folder, "--sweep-config", missing], 1, "missing: No such file or directory"),
        (&[folder, "--sweep-config", garbage], 1, "block_size: 0 is not accepted"),
        (&[folder, "--io-size", "1T"], 1, "give less --io-size"),
        (&[folder, "--output", folder], 1, "Is a directory"),
        (&[folder, "--output", "x.svg", "--plot", "./x.svg"], 2, "are the same file"),
        (&[folder, "--plot", "/nonexistent/map.svg"], 1, "No such file or directory"),
    ] {
        let output = Command::new(PROGRAM).arg("tune").args(arguments).output().unwrap();
        let (found, line) = failure(&output);
        assert_eq!(found, Some(status), "{arguments:?}: {line}");
        assert!(line.contains(expected), "{arguments:?}: {line}");
    }
    rig.assert_clean();
    assert_eq!(Command::new(PROGRAM).arg("tune").output().unwrap().status.code(), Some(2));
}
