//! Names, links and configuration files made to mislead.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use crate::bytes::open;
use crate::place::{Mount, complaint, swapfs};
use crate::requests::{ask, request, settled};
use crate::support::{
    MIB, as_user, errno, is_root, pattern, same, set_xattr, swap_xattr, user, wait_until,
    write_pattern, xattr,
};

/// Symlinks that lead out of the swap folder: the client follows them with its own rights, the daemon never,
/// whatever it is asked about the link or about a folder that has it.
#[test]
fn links_that_lead_outside_lead_nowhere_with_the_daemons_rights() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=16m,allow_other,open_swap_in=none");
    fs::set_permissions(mount.scratch.path(), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(&mount.mnt, Permissions::from_mode(0o777)).unwrap();
    let outside = mount.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("secret"), "secret").unwrap();
    fs::set_permissions(outside.join("secret"), Permissions::from_mode(0o600)).unwrap();
    let file = open(&mount.at("elsewhere"));
    write_pattern(&file, MIB, 1 << 20);
    file.sync_all().unwrap();
    drop(file);
    as_user(&mount.mnt, user(1234), || {
        fs::create_dir("dir").unwrap();
        for (link, target) in [
            ("file", outside.join("secret")),
            ("folder", outside.clone()),
            ("up", "../../outside/secret".into()),
            ("passwd", "/etc/shadow".into()),
            ("other", "../elsewhere".into()),
            ("loop", "loop".into()),
            ("self", ".".into()),
        ] {
            symlink(target, Path::new("dir").join(link)).unwrap();
        }
        for link in ["file", "up", "passwd", "folder/secret"] {
            let link = Path::new("dir").join(link);
            assert_eq!(errno(File::open(&link)), Errno::ACCESS, "{}", link.display());
            assert_eq!(errno(fs::write(&link, "x")), Errno::ACCESS);
            // No partition, and nobody's to ask about.
            assert_eq!(request(&link, "release"), Err(Errno::ACCESS));
        }
        assert_eq!(errno(File::open("dir/loop")), Errno::LOOP);
        for verb in ["release", "swap_out", "swap_in"] {
            ask(Path::new("dir"), verb);
        }
        // On the link itself no user attribute can be set.
        let itself = rustix::fs::lsetxattr(
            "dir/other",
            "user.swap.request",
            b"release",
            rustix::fs::XattrFlags::empty(),
        );
        assert_eq!(itself, Err(Errno::PERM));
    });
    assert_eq!(settled(&mount.mnt), "idle");
    assert_eq!(swap_xattr(&mount.at("elsewhere"), "status"), "available");
    assert_eq!(fs::read(outside.join("secret")).unwrap(), b"secret");
    // The command does not follow them either.
    let output = swapfs(&["release", mount.at("dir").to_str().unwrap(), "--wait"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(swap_xattr(&mount.at("elsewhere"), "status"), "available");
}

/// A folder that somebody replaces by a link, beneath the mount, while it is in use through the mount: what
/// the daemon does in it goes on in the folder.
#[test]
fn a_folder_replaced_by_a_link_does_not_lead_the_daemon_away() {
    let mount = Mount::new("pool_size=8m");
    let outside = mount.scratch.path().join("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("file"), "outside").unwrap();
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("dir/file"), "inside").unwrap();
    let dir = File::open(mount.at("dir")).unwrap();
    let file = open(&mount.at("dir/file"));
    fs::rename(mount.backing("dir"), mount.backing("moved")).unwrap();
    symlink(&outside, mount.backing("dir")).unwrap();
    for (name, at) in [("made", "moved/made"), ("file", "moved/file")] {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let made = openat(&dir, name, flags, Mode::from_raw_mode(0o600)).unwrap();
        File::from(made).write_all_at(b"through the folder", 0).unwrap();
        file.sync_all().unwrap();
        crate::support::sync_all(&mount.mnt);
        assert_eq!(fs::read(mount.backing(at)).unwrap(), b"through the folder");
    }
    assert!(statat(&dir, "made", AtFlags::empty()).is_ok());
    assert_eq!(fs::read(outside.join("file")).unwrap(), b"outside");
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 1);
    drop((dir, file));
}

/// Names that would break a line, a table, a terminal or a path.
fn names() -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = vec![
        b"new\nline".to_vec(),
        b"\n[ERROR] swapfs: all is lost".to_vec(),
        b"\x1b[2J\x1b]0;title\x07".to_vec(),
        b"\xff\xfe\x80".to_vec(),
        b"\xed\xa0\x80 surrogate".to_vec(),
        b"-rf".to_vec(),
        b" ".to_vec(),
        b"%s%n".to_vec(),
        b"a\\012b".to_vec(),
        b"name (deleted)".to_vec(),
        b"..swapfs".to_vec(),
        b".swapfs ".to_vec(),
        vec![b'n'; 255],
        vec![0xff; 255],
        "gpj.\u{202e}txt".into(),
        "zero\u{200b}width\u{feff}".into(),
        "\u{9b}2J C1 \u{85}".into(),
        "tag\u{e0041}\u{2066}".into(),
    ];
    // 255 bytes, the last letter cut off.
    names.push("ü".repeat(127).into_bytes().into_iter().chain([0xc3]).collect());
    names
}

/// Nothing steers the terminal or deceives who reads it.
#[track_caller]
fn is_shown_as_it_is(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let deceives = |letter: char| {
        (letter.is_control() && letter != '\n')
            || "\u{202e}\u{200b}\u{feff}\u{2066}\u{e0041}".contains(letter)
    };
    assert!(!text.contains(deceives), "{text:?}");
}

/// Directories of any name: the metrics, the lists of the control folder and the log show them with escapes, each
/// apart from the others.
#[test]
fn names_of_directories_reach_no_reader_as_they_are() {
    let mount = Mount::new("pool_size=16m");
    let names: Vec<Vec<u8>> =
        names().into_iter().chain([br"\u{9b}2J C1 \u{85}".to_vec(), b"plain".to_vec()]).collect();
    for name in &names {
        let folder = mount.mnt.join(OsStr::from_bytes(name));
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("file"), vec![1; 100_000]).unwrap();
    }
    for name in ["metrics", "partitions.json", "stats.json", "config.json"] {
        let text = fs::read(mount.at(".swapfs").join(name)).unwrap();
        is_shown_as_it_is(&text);
        if name != "metrics" {
            serde_json::from_slice::<serde_json::Value>(&text).unwrap();
        }
    }
    let text = fs::read_to_string(mount.at(".swapfs/metrics")).unwrap();
    let lines: Vec<_> = text
        .lines()
        .filter(|line| line.starts_with("swapfs_directory_written_bytes_total{"))
        .map(|line| line.rsplit_once(' ').unwrap().0)
        .collect();
    let different: std::collections::HashSet<_> = lines.iter().collect();
    assert_eq!(lines.len(), different.len(), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains(r#""gpj.\\u{202e}txt""#)), "{lines:#?}");
}

/// "names with newlines and invalid UTF-8, 255-byte names": bytes, attributes, requests, renames and links work
/// for each, and what the commands and the log say about them is one line without control characters.
#[test]
fn any_name_works_and_none_breaks_a_line() {
    let mount = Mount::new("pool_size=16m,open_swap_in=none");
    for name in names() {
        let path = mount.mnt.join(OsStr::from_bytes(&name));
        let bytes = pattern(name.len() as u64, 10_000);
        fs::write(&path, &bytes).unwrap();
        assert_eq!(settled(&path), "available");
        let beneath = xattr(&path, "user.swap.path").unwrap();
        assert_eq!(beneath, mount.swap.join(OsStr::from_bytes(&name)).as_os_str().as_bytes());
        ask(&path, "release");
        wait_until("the release", || settled(&path) == "not_available");
        ask(&path, "swap_in");
        assert_eq!(settled(&path), "available");
        set_xattr(&path, "user.own", &name).unwrap();
        assert_eq!(xattr(&path, "user.own").unwrap(), name);
        let dir = mount.at("dir");
        fs::create_dir(&dir).unwrap();
        let other = dir.join(OsStr::from_bytes(&name));
        fs::rename(&path, &other).unwrap();
        fs::hard_link(&other, &path).unwrap();
        fs::remove_file(&other).unwrap();
        symlink(OsStr::from_bytes(&name), &other).unwrap();
        assert_eq!(fs::read_link(&other).unwrap().as_os_str().as_bytes(), name);
        fs::remove_dir_all(&dir).unwrap();
        same(&fs::read(&path).unwrap(), &bytes);
    }
    let rows = |text: &[u8]| {
        is_shown_as_it_is(text);
        text.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count()
    };
    let status = swapfs(&["status", mount.mnt.to_str().unwrap()]);
    assert!(status.status.success(), "{status:?}");
    assert_eq!(rows(&status.stdout), names().len() + 1);
    let json = swapfs(&["status", "--json", mount.mnt.to_str().unwrap()]);
    is_shown_as_it_is(&json.stdout);
    let json: Vec<serde_json::Value> = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json.len(), names().len());
    // A failure names the file, in the log and in the command's complaint.
    for name in &names()[..4] {
        let path = mount.mnt.join(OsStr::from_bytes(name));
        ask(&path, "release");
        wait_until("the release", || settled(&path) == "not_available");
        let backing = mount.swap.join(OsStr::from_bytes(name));
        let reader = File::open(&path).unwrap();
        File::options().write(true).open(&backing).unwrap().set_len(0).unwrap();
        assert_eq!(errno(reader.read_at(&mut [0; 10], 0)), Errno::IO);
        let mut swap_in = std::process::Command::new(env!("CARGO_BIN_EXE_swapfs"));
        let output = swap_in.args(["swap-in", "--wait"]).arg(&path).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(rows(&output.stderr), 1, "{output:?}");
    }
    let log = mount.log();
    assert!(log.contains(r"new\nline"), "{log}");
    let own = |line: &str| line.starts_with('[') && line.contains(" swapfs");
    let astray = log.lines().find(|line| !line.is_empty() && !own(line));
    assert_eq!(astray, None);
    assert!(!log.contains('\x1b'));
}

/// "configuration files of every kind": each is taken, or refused with one line that names the file, and the
/// exit status is 1.
#[test]
fn a_configuration_of_any_kind_is_taken_or_refused_with_one_line() {
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let folder = mount.scratch.path();
    let path = folder.join("config.json");
    let deep = format!("{}{}", "[".repeat(200_000), "]".repeat(200_000));
    let deep_objects = format!("{}1{}", "{\"swapfs\":".repeat(5000), "}".repeat(5000));
    let long_key = format!("{{\"swapfs\": {{\"{}\": 1}}}}", "k\\n".repeat(100_000));
    let many = (0..50_000).map(|i| format!("\"k{i}\": {i}")).collect::<Vec<_>>().join(",");
    let refused: Vec<Vec<u8>> = vec![
        b"\0\0\0\0".to_vec(),
        b"\xff\xfe{\0}\0".to_vec(),
        b"{".to_vec(),
        b"{}x".to_vec(),
        b"[]".to_vec(),
        b"null".to_vec(),
        b"\"swapfs\"".to_vec(),
        b"{\"swapfs\": []}".to_vec(),
        b"{\"swapfs\": {\"pool_size\": -1}}".to_vec(),
        b"{\"swapfs\": {\"pool_size\": 1e400}}".to_vec(),
        b"{\"swapfs\": {\"pool_size\": 18446744073709551615}}".to_vec(),
        b"{\"swapfs\": {\"pool_size\": 18446744073709551616}}".to_vec(),
        b"{\"swapfs\": {\"pool_size\": NaN}}".to_vec(),
        b"{\"swapfs\": {\"pool_size\": \"8m\", \"pool_size\": \"9m\"}}".to_vec(),
        b"{\"swapfs\": {\"pool_size\": {\"a\": [1]}}}".to_vec(),
        b"{\"swapfs\": {\"log\": \"a=b=c,,\"}}".to_vec(),
        b"{\"swapfs\": {\"pool\\nsize\\u001b[2J\": 1}}".to_vec(),
        b"{\"zero_optimization\": 7, \"swapfs\": {\"fuse_threads\": 0}}".to_vec(),
        deep.into_bytes(),
        deep_objects.into_bytes(),
        long_key.into_bytes(),
        format!("{{\"swapfs\": {{{many}}}}}").into_bytes(),
        vec![b' '; 17 << 20],
    ];
    for content in refused {
        fs::write(&path, &content).unwrap();
        let output = mount.mount(&format!("log=info --config {}", path.display()));
        let start = String::from_utf8_lossy(&content[..content.len().min(60)]).into_owned();
        assert_eq!(output.status.code(), Some(1), "{start}: {output:?}");
        let line = complaint(&output);
        assert!(line.starts_with("swapfs: ") && line.contains("config.json"), "{start}: {line}");
        assert!(!line.chars().any(char::is_control) && line.len() < 600, "{start}: {line:?}");
    }
    for place in
        [folder.to_path_buf(), folder.join("missing"), path.join("below"), "/dev/zero".into()]
    {
        let output = mount.mount(&format!("log=info --config {}", place.display()));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(complaint(&output).lines().count(), 1, "{output:?}");
    }
    let unread = (0..20_000).map(|i| format!("\"k{i}\": [{i}]")).collect::<Vec<_>>().join(",");
    // What DeepSpeed's own reader takes.
    let taken = [
        "{}",
        "",
        "\n\n  ",
        "\u{feff}{}",
        "{\"aio\": {\"block_size\": 65537}}",
        "{\"aio\": {\"block_size\": \"65536\", \"x\": 0}}",
    ];
    let much = format!("{{{unread}, \"swapfs\": {{\"pool_size\": \"8m\"}}}}");
    for content in taken.into_iter().chain([&*much]) {
        fs::write(&path, content).unwrap();
        let output = mount.mount(&format!("pin_memory=off --config {}", path.display()));
        crate::place::is_done(&output);
        mount.unmount();
    }
}

/// "`--config` from a FIFO hangs": what is no regular file is named, under every name that it has.
#[test]
fn a_configuration_that_never_comes_is_not_waited_for() {
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let at = |name: &str| mount.scratch.path().join(name);
    crate::support::make_fifo(&at("fifo"));
    symlink(at("fifo"), at("link")).unwrap();
    for path in [at("fifo"), at("link"), "/dev/zero".into(), "/dev/tty".into()] {
        let output = mount.mount(&format!("log=info --config {}", path.display()));
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let line = complaint(&output);
        let unopened = line.ends_with("No such device or address");
        assert!(unopened || line.ends_with("not a regular file; name another"), "{line}");
    }
}

/// "`metrics_file` in a DeepSpeed configuration makes root replace a file": only root's own file that nobody else may
/// write names one, and no configuration of DeepSpeed's.
#[test]
fn anothers_configuration_names_no_file_to_be_replaced() {
    if !is_root() {
        return;
    }
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let at = |name: &str| mount.scratch.path().join(name);
    let (path, victim) = (at("ds.json"), at("victim"));
    fs::write(&victim, "root's").unwrap();
    let own = serde_json::json!({"swapfs": {"metrics_file": victim, "pool_size": "8m"}});
    let mut deepspeed = own.clone();
    deepspeed["zero_optimization"] = serde_json::json!({"stage": 3});
    let mut batch = own.clone();
    batch["train_micro_batch_size_per_gpu"] = 1.into();
    let give = |content: &serde_json::Value, user: u32, mode: u32| {
        fs::write(&path, content.to_string()).unwrap();
        std::os::unix::fs::chown(&path, Some(user), None).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        mount.mount(&format!("log=info --config {}", path.display()))
    };
    for (content, user, mode) in [
        (&own, 1234, 0o644),
        (&own, 0, 0o646),
        (&own, 0, 0o664),
        (&deepspeed, 0, 0o644),
        (&batch, 0, 0o600),
    ] {
        let output = give(content, user, mode);
        assert_eq!(output.status.code(), Some(1), "{user} {mode:o}: {output:?}");
        let line = complaint(&output);
        assert!(line.contains("swapfs.metrics_file: not from a DeepSpeed configuration"), "{line}");
        assert_eq!(fs::read(&victim).unwrap(), b"root's");
    }
    // Off is nobody's file, wherever it stands.
    deepspeed["swapfs"]["metrics_file"] = "off".into();
    for (content, user) in [(&deepspeed, 1234), (&own, 0)] {
        crate::place::is_done(&give(content, user, 0o644));
        mount.unmount();
    }
    assert!(fs::read_to_string(&victim).unwrap_or_default().is_empty(), "gone with its mount");
}

/// "`fusermount3` is looked for in PATH by root": a root without the right to mount runs no program of another's.
#[test]
fn root_runs_no_helper_of_whoever_made_its_path() {
    if !is_root() {
        return;
    }
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let (bin, marker) = (mount.scratch.path().join("bin"), mount.scratch.path().join("ran"));
    fs::create_dir(&bin).unwrap();
    for name in ["fusermount3", "fusermount"] {
        let program = bin.join(name);
        fs::write(&program, format!("#!/bin/sh\necho ran >'{}'\n", marker.display())).unwrap();
        fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    }
    for arguments in [
        vec!["mount", mount.swap.to_str().unwrap(), mount.mnt.to_str().unwrap()],
        vec!["umount", mount.mnt.to_str().unwrap()],
    ] {
        let output = std::process::Command::new("/usr/bin/setpriv")
            .args(["--bounding-set=-sys_admin", "--inh-caps=-sys_admin"])
            .arg(env!("CARGO_BIN_EXE_swapfs"))
            .args(arguments)
            .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(!marker.exists(), "{output:?}");
    }
}
