//! What a daemon can still do that is taken over by whoever it serves: what serving takes, and no more.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sys::signal::Signal;
use seccompiler::{SeccompAction, SeccompFilter};
use serde_json::Value;

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::requests::{ask, settled};
use crate::support::{MIB, is_pattern, is_root, swap_xattr, write_pattern};

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, IPC_LOCK, SYS_NICE, MKNOD, SETFCAP.
const CAPABILITIES: u64 = 1 << 0
    | 1 << 1
    | 1 << 2
    | 1 << 3
    | 1 << 4
    | 1 << 6
    | 1 << 7
    | 1 << 14
    | 1 << 23
    | 1 << 27
    | 1 << 31;

const SYS_ADMIN: u64 = 1 << 21;

fn process(mount: &Mount) -> PathBuf {
    PathBuf::from(format!("/proc/{}", mount.daemon()))
}

fn field(status: &str, name: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix(name)).expect(name).trim();
    u64::from_str_radix(line, 16).unwrap()
}

/// The statuses of all threads; one that ends meanwhile is left out.
fn threads(mount: &Mount) -> Vec<String> {
    let tasks = fs::read_dir(process(mount).join("task")).unwrap();
    tasks.filter_map(|task| fs::read_to_string(task.unwrap().path().join("status")).ok()).collect()
}

/// Every thread is held by everything.
fn is_shut_in(mount: &Mount) {
    let outside = fs::read_link("/proc/self/ns/mnt").unwrap();
    let threads = threads(mount);
    assert!(threads.len() > 10);
    for status in &threads {
        assert_eq!(field(status, "NoNewPrivs:"), 1, "{status}");
        assert_eq!(field(status, "Seccomp:"), 2, "{status}");
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            assert_eq!(field(status, set) & !CAPABILITIES, 0, "{status}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(field(status, set), 0, "{status}");
        }
    }
    for task in fs::read_dir(process(mount).join("task")).unwrap() {
        if let Ok(namespace) = fs::read_link(task.unwrap().path().join("ns/mnt")) {
            assert_ne!(namespace, outside);
        }
    }
}

/// Mounts that the daemon sees: identity and place.
fn mounts(mount: &Mount) -> Vec<(String, String)> {
    let table = fs::read_to_string(process(mount).join("mountinfo")).unwrap();
    let fields = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        (fields[0].to_owned(), fields[4].to_owned())
    };
    table.lines().map(fields).collect()
}

/// The daemon sees these folders, `/proc`, its devices and its locks, and has no folder open that is elsewhere.
fn sees(mount: &Mount, folders: &[&Path]) {
    let mounts = mounts(mount);
    let mut found: BTreeSet<&str> = mounts.iter().map(|(_, place)| place.as_str()).collect();
    // Where there is no such device, or only one processor.
    found.remove("/dev/cpu_dma_latency");
    let mut expected = BTreeSet::from(["/", "/proc", "/dev/fuse", "/dev/null", "/run/swapfs"]);
    expected.extend(folders.iter().map(|folder| folder.to_str().unwrap()));
    assert_eq!(found, expected);
    for link in ["root", "cwd"] {
        let folder = fs::read_dir(process(mount).join(link)).unwrap();
        let names: Vec<_> = folder.map(|entry| entry.unwrap().file_name()).collect();
        let has = |name: &str| names.iter().any(|found| found == name);
        assert!(!has("etc") && has("proc"), "{names:?}");
    }
    for entry in fs::read_dir(process(mount).join("fd")).unwrap() {
        let entry = entry.unwrap();
        if !fs::metadata(entry.path()).is_ok_and(|found| found.is_dir()) {
            continue;
        }
        let info = process(mount).join("fdinfo").join(entry.file_name());
        let Ok(info) = fs::read_to_string(info) else { continue };
        let id = info.lines().find_map(|line| line.strip_prefix("mnt_id:")).unwrap().trim();
        assert!(mounts.iter().any(|(known, _)| known == id), "{entry:?} leads out: {info}");
    }
}

fn stats(mount: &Mount) -> Value {
    serde_json::from_str(&fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap()).unwrap()
}

/// A daemon that was started by the command, one that is mounted over its folder, and one that writes elsewhere too; each
/// with threads that came later, and to its clean end.
#[test]
fn a_daemon_gives_up_all_that_serving_does_not_take() {
    if !is_root() {
        return;
    }
    let parent = Path::new(env!("CARGO_TARGET_TMPDIR"));
    for variant in ["plain", "over itself", "metrics"] {
        let mut mount = Mount::prepared(parent);
        let metrics = mount.scratch.path().canonicalize().unwrap().join("metrics");
        fs::create_dir(&metrics).unwrap();
        let mut folders = vec![mount.swap.clone()];
        let mut options = "pool_size=16m,allow_other,metrics_listen=127.0.0.1:0".to_owned();
        match variant {
            "over itself" => mount.mnt = mount.swap.clone(),
            "metrics" => {
                options.push_str(&format!(",metrics_file={}/swapfs.prom", metrics.display()));
                folders.push(metrics.clone());
            }
            _ => {}
        }
        let output = mount.mount(&options);
        is_done(&output);
        assert_eq!(complaint(&output), "");
        let folders: Vec<&Path> = folders.iter().map(PathBuf::as_path).collect();
        is_shut_in(&mount);
        sees(&mount, &folders);
        let told = &stats(&mount)["sandbox"];
        assert_eq!(told["kept"], serde_json::json!([]), "{told}");
        assert_eq!(told["given_up"].as_array().unwrap().len(), 4, "{told}");
        // Threads of a later start.
        let log = File::open(mount.at(".swapfs/accesslog")).unwrap();
        let path = mount.at("file");
        let file = open(&path);
        write_pattern(&file, 2 * MIB + 77, 1 << 20);
        file.sync_all().unwrap();
        let names: String = threads(&mount).concat();
        assert!(names.contains("swapfs-accessl"), "{names}");
        is_shut_in(&mount);
        drop(log);
        ask(&mount.mnt, "release");
        settled(&path);
        is_pattern(&path, 2 * MIB + 77);
        let beneath = if variant == "over itself" { PathBuf::new() } else { mount.backing("file") };
        assert_eq!(swap_xattr(&path, "path"), beneath.to_str().unwrap());
        drop(file);
        mount.signal(Signal::SIGTERM);
        mount.wait_gone();
        assert!(!mount.is_mounted());
        is_pattern(&mount.backing("file"), 2 * MIB + 77);
        assert_eq!(fs::read_dir(&metrics).unwrap().count(), 0, "it is gone with the daemon");
        assert!(mount.log().contains("everything is on stable storage"), "{}", mount.log());
    }
}

/// What is mounted below the swap folder is neither shown nor kept busy.
#[test]
fn mounts_below_the_swap_folder_stay_closed_and_can_go() {
    if !is_root() {
        return;
    }
    use nix::mount::{MntFlags, MsFlags, umount2};
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let (below, beside) = (mount.swap.join("below"), mount.scratch.path().join("beside"));
    for folder in [&below, &beside] {
        fs::create_dir(folder).unwrap();
        fs::write(folder.join("beneath"), "x").unwrap();
        let no = None::<&str>;
        nix::mount::mount(Some("none"), folder, Some("tmpfs"), MsFlags::empty(), no).unwrap();
    }
    is_done(&mount.mount("pool_size=8m"));
    let below = below.canonicalize().unwrap();
    sees(&mount, &[&mount.swap, &below]);
    let refused = crate::support::errno(fs::read_dir(mount.at("below")));
    assert_eq!(refused, rustix::io::Errno::XDEV);
    let refused = crate::support::errno(File::open(mount.at("below/beneath")));
    assert_eq!(refused, rustix::io::Errno::XDEV);
    for folder in [&below, &beside] {
        umount2(folder, MntFlags::empty()).unwrap();
        assert!(folder.join("beneath").exists());
    }
    let refused = crate::support::errno(File::open(mount.at("below/beneath")));
    assert_eq!(refused, rustix::io::Errno::XDEV, "it was mounted on when this mount began");
    mount.unmount();
    assert!(mount.backing("below/beneath").exists());
}

/// `swapfs mount` with a filter of system calls on it that refuses one.
fn mount_without(mount: &Mount, call: i64, options: &str) -> Output {
    let rules = [(call, Vec::new())].into_iter().collect();
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let architecture = std::env::consts::ARCH.try_into().unwrap();
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, refuse, architecture).unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"));
    command.arg("mount").args([&mount.swap, &mount.mnt]).args(["-o", options]);
    let apply = move || seccompiler::apply_filter(&program).map_err(std::io::Error::other);
    // SAFETY: the child only makes system calls.
    unsafe { command.pre_exec(apply) };
    command.stdin(Stdio::null()).output().unwrap()
}

/// Where a part cannot be had, the mount works without, and whoever looks is told.
#[test]
fn what_cannot_be_given_up_is_told() {
    if !is_root() {
        return;
    }
    for call in [libc::SYS_unshare, libc::SYS_pivot_root, libc::SYS_open_tree] {
        let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
        let output = mount_without(&mount, call, "pool_size=8m");
        is_done(&output);
        let line = "swapfs: warn: the daemon could not give up the sight of other files (Operation not permitted)";
        assert!(complaint(&output).contains(line), "{output:?}");
        fs::write(mount.at("x"), "x").unwrap();
        assert_eq!(stats(&mount)["sandbox"]["kept"], serde_json::json!(["other_files"]));
        let pid = stats(&mount)["mount"]["pid"].as_i64().unwrap();
        // It is where it was, and nothing is kept busy by it.
        let namespace = fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
        assert_eq!(namespace, fs::read_link("/proc/self/ns/mnt").unwrap());
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert_eq!(field(&status, "CapEff:") & !CAPABILITIES, 0);
        let shown = String::from_utf8(swapfs(&["status"]).stdout).unwrap();
        let line = format!("{}: the daemon has not given up other files", mount.mnt.display());
        assert!(shown.contains(&line), "{shown}");
        let report = swapfs(&["check", "--json", mount.swap.to_str().unwrap()]);
        let report: Value = serde_json::from_slice(&report.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        let found = findings.iter().find(|found| found["item"] == "daemon-sandbox").unwrap();
        assert_eq!(
            (&found["verdict"], &found["values"]["kept"][0]),
            (&"slow".into(), &"other_files".into())
        );
        mount.unmount();
    }
}

/// By choice a daemon keeps everything, says so, and works.
#[test]
fn a_daemon_may_be_told_to_keep_its_rights() {
    if !is_root() {
        return;
    }
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let output = mount.mount("pool_size=8m,sandbox=none");
    is_done(&output);
    assert!(complaint(&output).contains("sandbox=none: the daemon keeps all rights"), "{output:?}");
    open(&mount.at("x")).write_all_at(b"x", 0).unwrap();
    let status = &threads(&mount)[0];
    assert_eq!((field(status, "NoNewPrivs:"), field(status, "Seccomp:")), (0, 0));
    assert_ne!(field(status, "CapEff:") & SYS_ADMIN, 0);
    assert_eq!(stats(&mount)["sandbox"]["given_up"], serde_json::json!([]));
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let refused = mount.mount("sandbox=some");
    let line = complaint(&refused);
    assert!(
        line.contains("-o sandbox: \"some\" is not accepted; give one of full, none"),
        "{line}"
    );
}

/// What would be written through the mount itself is refused before anybody waits for it.
#[test]
fn a_metrics_file_on_the_mount_itself_is_refused() {
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let file = mount.mnt.canonicalize().unwrap().join("swapfs.prom");
    let output = mount.mount(&format!("pool_size=8m,metrics_file={}", file.display()));
    if !is_root() {
        return;
    }
    let line = complaint(&output);
    assert!(line.contains(&format!("metrics_file {}: No such file", file.display())), "{line}");
    assert!(!output.status.success() && !mount.is_mounted());
}

/// The process that unmounts is no way out either: no descriptor, no rights but unmounting, and it goes with the daemon.
#[test]
fn the_process_that_unmounts_has_little_and_goes_with_the_daemon() {
    if !is_root() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mount = Mount::new("pool_size=8m");
        fs::write(mount.at("x"), "x").unwrap();
        let children = process(&mount).join(format!("task/{}/children", mount.daemon()));
        let child = fs::read_to_string(children).unwrap().trim().to_owned();
        let status = fs::read_to_string(format!("/proc/{child}/status")).unwrap();
        assert!(status.starts_with("Name:\tswapfs-unmount\n"), "{status}");
        assert_eq!(field(&status, "NoNewPrivs:"), 1);
        // SYS_ADMIN, DAC_OVERRIDE, DAC_READ_SEARCH.
        assert_eq!(field(&status, "CapEff:") & !(SYS_ADMIN | 0b110), 0);
        let open = fs::read_dir(format!("/proc/{child}/fd")).unwrap();
        let links: Vec<_> =
            open.map(|entry| fs::read_link(entry.unwrap().path()).unwrap()).collect();
        // The daemon's files among them: where it notes its end, and the two locks that last until then.
        let (theirs, others): (Vec<_>, Vec<_>) = links.iter().partition(|link| {
            let link = link.to_str().unwrap();
            ["/dev/null", "socket:", "pipe:"].iter().any(|kind| link.starts_with(kind))
        });
        assert_eq!((theirs.len(), others.len()), (5, 3), "{links:?}");
        let control = mount.swap.join(".swapfs");
        for name in ["ended", "lock"] {
            assert!(others.contains(&&control.join(name)), "{links:?}");
        }
        mount.signal(signal);
        mount.wait_gone();
        crate::support::wait_until("the end of the process that unmounts", || {
            let stat = fs::read_to_string(format!("/proc/{child}/stat"));
            stat.map_or(true, |stat| stat.contains(") Z "))
        });
        assert_eq!(mount.is_mounted(), signal == Signal::SIGKILL);
        // The dead mount of one that was killed.
        let _ = nix::mount::umount2(&mount.mnt, nix::mount::MntFlags::MNT_DETACH);
    }
}
