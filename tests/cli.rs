//! The command as it is typed: exit statuses, messages, reports.

use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

fn swapfs(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_swapfs")).args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Exit status and the line on standard error.
fn failure(output: &Output) -> (Option<i32>, String) {
    assert!(output.stdout.is_empty(), "{output:?}");
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    (output.status.code(), line.trim_end().to_owned())
}

/// Each command, asking for its help.
const COMMANDS: &[&[&str]] = &[
    &["--help"],
    &["mount", "--help"],
    &["umount", "--help"],
    &["check", "--help"],
    &["tune", "--help"],
    &["status", "--help"],
    &["swap-in", "--help"],
    &["swap-out", "--help"],
    &["release", "--help"],
    &["stats", "--help"],
    &["top", "--help"],
    &["profile", "--help"],
    &["debug", "--help"],
    &["bench", "--help"],
    &["config", "--help"],
    &["config", "show", "--help"],
    &["config", "default", "--help"],
    &["config", "schema", "--help"],
    &["install", "--help"],
    &["completions", "--help"],
];

#[test]
fn help_is_there_for_each_command() {
    for command in COMMANDS {
        assert!(stdout(&swapfs(command)).contains("Usage: swapfs"), "{command:?}");
    }
    assert!(stdout(&swapfs(&["--version"])).starts_with("swapfs "));
}

#[test]
fn the_help_of_mount_names_every_option_and_default() {
    let help = stdout(&swapfs(&["mount", "--help"]));
    for option in swapfs::config::OPTIONS {
        assert!(help.contains(&format!("--{}", option.name.replace('_', "-"))), "{}", option.name);
    }
    assert!(help.contains("[default: 1 GiB]"), "{help}");
}

#[test]
fn wrong_usage_is_status_2() {
    for arguments in [
        &[][..],
        &["nonsense"],
        &["mount", "/only-one"],
        &["umount"],
        &["umount", "/", "--timeout", "soon"],
        &["swap-in"],
        &["release", "/", "--timeout", "1"],
        &["completions", "nonsense"],
    ] {
        assert_eq!(swapfs(arguments).status.code(), Some(2), "{arguments:?}");
    }
    assert_eq!(
        failure(&swapfs(&["mount", "/a", "/b", "-o", "poolsize=1g"])),
        (Some(2), "swapfs: -o poolsize: no such mount option; the nearest is pool_size".to_owned())
    );
    let (status, line) = failure(&swapfs(&["mount", "/a", "/b", "--queue-depth", "many"]));
    assert_eq!(status, Some(2));
    assert!(line.starts_with(r#"swapfs: --queue-depth: "many" is not accepted; give"#), "{line}");
}

#[test]
fn failures_are_status_1_with_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let missing = format!("{path}/missing");
    for (arguments, expected) in [
        (
            &["mount", path, missing.as_str()][..],
            format!("mountpoint {missing} does not exist; create it: mkdir -p {missing}"),
        ),
        (
            &["mount", missing.as_str(), path],
            format!(
                "swap folder {missing}: No such file or directory; create it: mkdir -p {missing}"
            ),
        ),
        (
            &["mount", "/etc/hostname", path],
            "swap folder /etc/hostname: Not a directory".to_owned(),
        ),
        (&["umount", path], format!("{path} is not a swapfs mountpoint")),
        (&["umount", missing.as_str()], format!("{missing}: No such file or directory")),
        (&["status", path], format!("{path} is not on a swapfs mount")),
        (&["swap-in", path], format!("{path} is not on a swapfs mount")),
        (&["release", missing.as_str()], format!("{missing}: No such file or directory")),
        (
            &["config", "show", "--config", missing.as_str()],
            format!("{missing}: No such file or directory"),
        ),
        (
            &["mount", path, path, "-o", "pool_size=1m"],
            "pool_size: 1 MiB holds 1 buffers of 1 MiB (block_size), at least 8 are needed; give \
             at least 8 MiB"
                .to_owned(),
        ),
    ] {
        let expected = (Some(1), format!("swapfs: {expected}"));
        assert_eq!(failure(&swapfs(arguments)), expected, "{arguments:?}");
    }
}

#[test]
fn config_show_tells_values_and_origins() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("ds.json");
    std::fs::write(&file, r#"{"aio": {"queue_depth": 32}, "fp16": {}}"#).unwrap();
    let file = file.to_str().unwrap();
    let arguments = ["config", "show", "--config", file, "-o", "pool_size=2g,ro", "--log", "warn"];
    let table = stdout(&swapfs(&arguments));
    let row = |key: &str| -> Vec<String> {
        let line = table.lines().find(|line| line.trim_start().starts_with(key)).unwrap();
        line.split_whitespace().skip(1).map(str::to_owned).collect()
    };
    assert_eq!(row("queue_depth"), ["32", "file", file]);
    assert_eq!(row("pool_size"), ["2", "GiB", "-o"]);
    assert_eq!(row("ro"), ["on", "-o"]);
    assert_eq!(row("log"), ["warn", "flag"]);
    assert_eq!(row("thread_count"), ["1", "built-in"]);
    let json = stdout(&swapfs(&[&arguments[..], &["--json"]].concat()));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["pool_size"]["value"], 2_u64 << 30);
    assert_eq!(json["read_ahead"]["value"], 32 << 20);
}

/// Variables and the file of the machine's defaults count for every command, and stand behind the command line.
#[test]
fn defaults_come_from_the_machine_and_from_variables() {
    let script = "mount -t tmpfs none /etc && mkdir /etc/swapfs && printf %s \"$1\" >/etc/swapfs/config.json && \
                  chmod \"$2\" /etc/swapfs/config.json && shift 2 && exec \"$@\"";
    let shown = |text: &str, mode: &str, arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.args([text, mode]);
        command.arg(env!("CARGO_BIN_EXE_swapfs")).args(arguments);
        command.env("SWAPFS_QUEUE_DEPTH", "5").env("SWAPFS_LOG", "").output().unwrap()
    };
    let read =
        |output: &Output| -> serde_json::Value { serde_json::from_str(&stdout(output)).unwrap() };
    // As people write it, with a comment.
    let text = "{swapfs: {pool_size: '96m', queue_depth: 3, fuse_threads: 2} // ours\n}";
    let found = read(&shown(text, "644", &["config", "show", "--json", "-o", "fuse_threads=7"]));
    for (key, value, origin) in [
        ("pool_size", 96 << 20, "file /etc/swapfs/config.json"),
        ("queue_depth", 5, "variable SWAPFS_QUEUE_DEPTH"),
        ("fuse_threads", 7, "-o"),
        ("thread_count", 1, "built-in"),
    ] {
        assert_eq!(found[key], serde_json::json!({"value": value, "origin": origin}));
    }
    assert_eq!(found["log"]["value"], "info");
    // Whoever may write it can break it too.
    for text in [text, "{swapfs: {pool_size", ""] {
        let ignored = shown(text, "666", &["config", "show", "--json"]);
        assert_eq!(read(&ignored)["pool_size"]["origin"], "built-in");
        let said = String::from_utf8_lossy(&ignored.stderr);
        assert!(
            said.starts_with("swapfs: /etc/swapfs/config.json: ignored, it has to be root's"),
            "{said}"
        );
    }
    let broken = shown("{swapfs: {pool_size", "644", &["config", "show"]);
    assert!(!broken.status.success());
}

#[test]
fn the_schema_of_a_configuration_is_printed() {
    for arguments in [&["config", "schema"][..], &["config", "schema", "--json"]] {
        let schema: serde_json::Value = serde_json::from_str(&stdout(&swapfs(arguments))).unwrap();
        assert!(schema["properties"]["swapfs"]["properties"]["pool_size"].is_object());
    }
}

#[test]
fn the_version_names_the_revision() {
    let version = stdout(&swapfs(&["--version"]));
    assert_eq!(version, format!("swapfs {}\n", swapfs::VERSION));
    let (number, revision) = swapfs::VERSION.split_once(' ').unwrap_or((swapfs::VERSION, "(none)"));
    assert_eq!(number, env!("CARGO_PKG_VERSION"));
    assert!(revision.starts_with('(') && revision.ends_with(')'), "{version}");
}

#[test]
fn a_deepspeed_file_says_where_to_mount_or_why_it_cannot() {
    let folder = tempfile::tempdir().unwrap();
    let (file, nvme) = (folder.path().join("ds.json"), folder.path().join("nvme"));
    let (file, nvme) = (file.to_str().unwrap(), nvme.to_str().unwrap());
    let write = |param: &str, optimizer: &str| {
        let text = format!(
            r#"{{"fp16": {{"enabled": true}}, "zero_optimization": {{
                "offload_param": {{"device": "nvme", "nvme_path": "{param}", "buffer_size": 1e6}},
                "offload_optimizer": {{"device": "nvme", "nvme_path": "{optimizer}"}}}}}}"#
        );
        std::fs::write(file, text).unwrap();
    };
    let mount = || failure(&swapfs(&["mount", "--config", file]));
    write(nvme, nvme);
    let line =
        format!("swapfs: {file}: the nvme_path {nvme} does not exist; create it: mkdir -p {nvme}");
    assert_eq!(mount(), (Some(1), line));
    write(nvme, "/other");
    let (status, line) = mount();
    assert_eq!(status, Some(1));
    assert!(
        line.contains(&format!("two mounts, `swapfs mount --config {file} {nvme} {nvme}` and")),
        "{line}"
    );
    std::fs::write(file, r#"{"aio": {"use_gds": "true"}}"#).unwrap();
    let (status, line) = mount();
    assert_eq!(status, Some(1));
    assert!(line.ends_with("give SWAP_FOLDER and MOUNTPOINT"), "{line}");
    let shown = swapfs(&["config", "show", "--config", file]);
    assert_eq!(
        String::from_utf8_lossy(&shown.stderr),
        format!(
            "swapfs: {file}: aio.use_gds: true is ignored, a filesystem cannot transfer from and \
             to the GPU\n"
        )
    );
    let said = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(said.contains(&format!("nothing would be mounted: {file}: neither ")), "{said}");
    write(nvme, nvme);
    let table = stdout(&swapfs(&["config", "show", "--config", file, "-o", "ro"]));
    let row = table.lines().find(|line| line.contains("pool_size")).unwrap();
    let origin = format!("file {file} (offload_param: 5 buffers of 1000000 elements of 2 bytes)");
    assert!(row.contains("10 MiB") && row.contains(&origin), "{row}");
    let row = table.lines().find(|line| line.contains("nvme_path")).unwrap();
    assert!(row.contains(nvme) && row.ends_with(&format!("file {file}")), "{row}");
    assert!(table.ends_with(&format!("{nvme} would be both: mounted over itself.\n")), "{table}");
    let json = stdout(&swapfs(&["config", "show", "--config", file, "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(
        (&json["nvme_path"]["value"], &json["nvme_path"]["refusal"]),
        (&nvme.into(), &().into())
    );
    write(nvme, "/other");
    let json = stdout(&swapfs(&["config", "show", "--config", file, "--json"]));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert!(json["nvme_path"]["value"].is_null());
    assert!(json["nvme_path"]["refusal"].as_str().unwrap().contains("two mounts"), "{json}");
}

#[test]
fn switches_take_a_value_or_none() {
    let value = |arguments: &[&str], key: &str| {
        let all = [&["config", "show", "--json"], arguments].concat();
        let json: serde_json::Value = serde_json::from_str(&stdout(&swapfs(&all))).unwrap();
        json[key]["value"].clone()
    };
    assert_eq!(value(&["--allow-other"], "allow_other"), true);
    assert_eq!(value(&["--pin-memory", "false"], "pin_memory"), false);
    assert_eq!(value(&["--pin-memory=off"], "pin_memory"), false);
    assert_eq!(value(&["-o", "close_wait", "-o", "list_xattr=off"], "close_wait"), true);
}

#[test]
fn config_default_is_a_configuration_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("template.json");
    std::fs::write(&file, stdout(&swapfs(&["config", "default"]))).unwrap();
    stdout(&swapfs(&["config", "show", "--config", file.to_str().unwrap()]));
}

#[test]
fn status_without_mounts_is_no_failure() {
    stdout(&swapfs(&["status"]));
    let json = stdout(&swapfs(&["status", "--json"]));
    assert!(serde_json::from_str::<serde_json::Value>(&json).unwrap().is_array());
}

/// What is wrong with a number is said in plain words.
#[test]
fn numbers_that_are_none_say_what_is_accepted() {
    for arguments in [
        &["stats", "/", "--count", "x"][..],
        &["stats", "/", "--count", ""],
        &["profile", "/", "--lines", "-1"],
        &["umount", "/", "--timeout", "1.5"],
        &["mount", "/a", "/b", "--timeout", "soon"],
        &["swap-in", "/", "--wait", "--timeout", "1s"],
        &["bench", "/", "--loops", "three"],
        &["bench", "/", "--queue-depth", "32x"],
        &["bench", "/", "--multi-process", "99999999999999999999"],
    ] {
        let (status, text) = failure(&swapfs(arguments));
        assert_eq!(status, Some(2), "{arguments:?}");
        let is_plain =
            text.contains("give a whole number") || text.contains("give a smaller number");
        assert!(is_plain || text.contains("unexpected argument"), "{arguments:?}: {text}");
        assert!(!text.contains("invalid digit") && !text.contains("too large"), "{text}");
    }
}

/// Commands that a message gives can be copied whatever is in the path.
#[test]
fn paths_in_commands_are_quoted() {
    let folder = tempfile::tempdir().unwrap();
    let there = folder.path().to_str().unwrap();
    let config = folder.path().join("ds.json");
    for name in ["with blank", "~", "it's", "a;b", "$HOME", "plain"] {
        let missing = format!("{there}/{name}/none");
        let quoted = match name {
            "plain" => missing.clone(),
            _ => format!("'{}'", missing.replace('\'', "'\\''")),
        };
        let offload = serde_json::json!({"device": "nvme", "nvme_path": missing});
        let text = serde_json::json!({"zero_optimization": {"offload_param": offload}});
        std::fs::write(&config, text.to_string()).unwrap();
        for arguments in [
            &["mount", there, &missing][..],
            &["mount", &missing, there],
            &["mount", "--config", config.to_str().unwrap()],
        ] {
            let (status, line) = failure(&swapfs(arguments));
            assert_eq!(status, Some(1));
            assert!(
                line.ends_with(&format!("create it: mkdir -p {quoted}")),
                "{arguments:?}: {line}"
            );
        }
        // And the shell makes of it what was meant.
        let made = Command::new("bash").args(["-c", &format!("mkdir -p {quoted}")]).status();
        assert!(made.unwrap().success() && std::path::Path::new(&missing).is_dir());
    }
}

#[test]
fn only_near_names_are_called_near() {
    for (list, end) in [
        ("poolsize=1g", "; the nearest is pool_size"),
        ("chekcsum=none", "; the nearest is checksum"),
        ("relatim", "; the nearest is relatime"),
        ("compression=zstd", ""),
        ("deduplicate", ""),
        ("umask=022", ""),
    ] {
        let (status, line) = failure(&swapfs(&["mount", "/a", "/b", "-o", list]));
        let name = list.split('=').next().unwrap();
        let expected = format!("swapfs: -o {name}: no such mount option{end}");
        assert_eq!((status, line.split("; see").next()), (Some(2), Some(expected.as_str())));
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for (engine, near) in [("fio2", true), ("moun", true), ("zzz", false), ("sendfile", false)] {
        let (status, line) = failure(&swapfs(&["bench", path, "--engine", engine]));
        assert_eq!((status, line.contains("the nearest is")), (Some(2), near), "{line}");
        assert!(line.contains("handle, "), "all are named: {line}");
    }
}

#[test]
fn blanks_in_a_list_of_options_are_no_part_of_them() {
    for list in [
        "ro, queue_depth=16",
        " ro ,queue_depth=16 ",
        "ro,\tqueue_depth=16,",
        "ro ,  queue_depth=16",
    ] {
        let shown = stdout(&swapfs(&["config", "show", "--json", "-o", list]));
        let json: serde_json::Value = serde_json::from_str(&shown).unwrap();
        assert_eq!(
            (&json["ro"]["value"], &json["queue_depth"]["value"]),
            (&true.into(), &16.into())
        );
    }
}

/// A picture is SVG whatever its name says, so that a name that says something else is refused before anything is measured.
#[test]
fn pictures_have_names_that_say_what_they_are() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for name in ["x.png", "x.pdf", "x.svg.jpg"] {
        let plot = format!("{path}/{name}");
        for arguments in [
            &["bench", path, "--io-size", "1m", "--plot", &plot][..],
            &["bench", "--roofline", path, "--plot", &plot],
            &["tune", path, "--quick", "--plot", &plot],
        ] {
            let (status, line) = failure(&swapfs(arguments));
            assert_eq!(status, Some(1), "{arguments:?}");
            assert!(line.ends_with("give a name that ends in .svg"), "{line}");
            assert!(!std::path::Path::new(&plot).exists());
        }
    }
}

/// Nothing is said to be mounted before it is.
#[test]
fn a_mount_that_fails_prints_no_success() {
    let home = tempfile::tempdir().unwrap();
    let config = home.path().join("ds.json");
    let file = home.path().join("file");
    std::fs::write(&file, "").unwrap();
    let offload = serde_json::json!({"device": "nvme", "nvme_path": file, "buffer_size": 1e6});
    let text = serde_json::json!({"zero_optimization": {"offload_param": offload}});
    std::fs::write(&config, text.to_string()).unwrap();
    let output = swapfs(&["mount", "--config", config.to_str().unwrap()]);
    assert_eq!(failure(&output).0, Some(1), "and nothing on standard output");
}

/// A pipe without a reader, for a stream of a command.
fn unread() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

/// `swapfs check 2>&1 | head -1`: a reader that goes away ends nothing and changes no exit status, on either stream.
#[test]
fn streams_that_nobody_reads_end_quietly() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let missing = format!("{path}/missing");
    let file = folder.path().join("file");
    std::fs::write(&file, vec![0; 1 << 20]).unwrap();
    let config = folder.path().join("ds.json");
    std::fs::write(&config, r#"{"aio": {"use_gds": "true"}}"#).unwrap();
    let (file, config) = (file.to_str().unwrap(), config.to_str().unwrap());
    let others: &[&[&str]] = &[
        &["--version"],
        &[],
        &["nonsense"],
        &["check", path],
        &["check", "--json", path],
        &["check", &missing],
        &["fsck", path],
        &["fsck", &missing],
        &["status"],
        &["status", "--json"],
        &["status", path],
        &["stats", path],
        &["top", path],
        &["profile", &missing],
        &["debug", path],
        &["swap-in", path],
        &["swap-out", path],
        &["release", &missing],
        &["mount", path, &missing],
        &["umount", path],
        &["tune", path, "--quick", "--io-size", "1m", "--sweep-config", &missing],
        &["bench", path, "--io-size", "1m", "--loops", "1", "--torch-legacy-save"],
        &["bench", file, "--gpu"],
        &["config", "default"],
        &["config", "show"],
        &["config", "show", "--config", config],
        &["config", "show", "-o", "nonsense"],
        &["install", "--dry-run", "--prefix", path],
        &["completions", "bash"],
    ];
    for arguments in COMMANDS.iter().chain(others) {
        let run = |out: bool, error: bool| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
            command.args(*arguments).stdin(std::process::Stdio::null());
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            if !out {
                command.stdout(unread());
            }
            if !error {
                command.stderr(unread());
            }
            command.output().unwrap()
        };
        let expected = run(true, true).status.code();
        assert!(expected.is_some_and(|status| status < 3), "{arguments:?}");
        for (out, error) in [(false, true), (true, false), (false, false)] {
            let output = run(out, error);
            assert_eq!(output.status.code(), expected, "{arguments:?}: {output:?}");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!said.contains("panicked") && !said.contains("Broken pipe"), "{said}");
        }
    }
}

/// What cannot be written for another reason is told.
#[test]
fn a_full_disk_for_the_output_is_a_failure() {
    let full = || std::fs::File::options().write(true).open("/dev/full").unwrap();
    for arguments in [&["--help"][..], &["status"], &["config", "default"], &["completions", "zsh"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
        let output = command.args(arguments).stdout(full()).output().unwrap();
        let line = "swapfs: standard output: No space left on device".to_owned();
        assert_eq!(failure(&output), (Some(1), line), "{arguments:?}");
        let status = command.stdout(std::process::Stdio::null()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(0), "{arguments:?}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
    assert_eq!(command.arg("nonsense").stderr(full()).status().unwrap().code(), Some(2));
}

#[test]
fn completions_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        let script = stdout(&swapfs(&["completions", shell]));
        assert!(script.contains("pool-size"), "{shell}");
    }
}

#[test]
fn as_mount_helper_it_takes_mounts_arguments() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let helper = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
        command.arg0("/sbin/mount.swapfs").args(arguments).output().unwrap()
    };
    stdout(&helper(&[path, path, "-f", "-o", "rw,nosuid,_netdev,pool_size=64m"]));
    stdout(&helper(&[path, path, "-sfn", "-o", "nonsense"]));
    let (status, line) = failure(&helper(&[path, path, "-f", "-o", "nonsense"]));
    assert_eq!(status, Some(1), "mount(8): incorrect invocation");
    assert!(line.starts_with("swapfs: -o nonsense: no such mount option"), "{line}");
    assert_eq!(helper(&[path]).status.code(), Some(1));
    assert_eq!(helper(&["--help"]).status.code(), Some(0));
    let missing = format!("{path}/missing");
    assert_eq!(helper(&[&missing, path]).status.code(), Some(32), "mount(8): mount failure");
}

#[test]
fn a_remount_is_refused_also_where_unknown_options_are_skipped() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for name in ["mount.swapfs", "mount.fuse.swapfs"] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
        let output = command.arg0(name).args([path, path, "-s", "-o", "rw,remount,ro"]).output();
        let (status, line) = failure(&output.unwrap());
        assert_eq!(status, Some(32), "{name}");
        assert!(line.starts_with("swapfs: -o remount: the options of a swapfs mount"), "{line}");
    }
    let output = swapfs(&["mount", path, path, "-o", "remount"]);
    assert_eq!(failure(&output).0, Some(1));
}

#[test]
fn as_umount_helper_it_fails_with_umounts_statuses() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    let helper = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
        failure(&command.arg0("/sbin/umount.fuse.swapfs").args(arguments).output().unwrap())
    };
    let line = format!("swapfs: {path} is not a swapfs mountpoint");
    assert_eq!(helper(&[path, "-fnrv", "-t", "fuse.swapfs"]), (Some(32), line));
    assert_eq!(helper(&["-x", path]).0, Some(1));
    let (status, line) = helper(&[path, "-N", "/dev/null"]);
    assert_eq!((status, line.as_str()), (Some(32), "swapfs: -N /dev/null: Invalid argument"));
}
