//! `swapfs check` on folders and machines with something missing. Needs root: it hides devices, makes
//! filesystems and takes rights away, each in a process or a mount namespace of its own.

use std::io::Error;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value as Json;
use tempfile::TempDir;

const PROGRAM: &str = env!("CARGO_BIN_EXE_swapfs");

/// A user that every system has; fusermount3 wants one with a name.
const NOBODY: u32 = 65_534;

/// What is always looked at.
const ITEMS: [&str; 23] = [
    "fuse-device",
    "mount",
    "async-direct-io",
    "direct-mmap",
    "request-size",
    "passthrough",
    "fuse-io-uring",
    "io-uring",
    "memory",
    "memory-lock",
    "huge-pages",
    "open-files",
    "libaio",
    "sandbox",
    "folder",
    "filesystem",
    "write-permission",
    "free-space",
    "inodes",
    "direct-io",
    "device",
    "device-queue",
    "speed",
];

/// A swap folder on the build folder's filesystem, and a folder for temporary files.
struct Rig {
    scratch: TempDir,
    folder: PathBuf,
    temporary: PathBuf,
}

impl Rig {
    fn new() -> Self {
        let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let (folder, temporary) = (scratch.path().join("swap"), scratch.path().join("tmp"));
        for path in [&folder, &temporary] {
            std::fs::create_dir(path).unwrap();
        }
        Self { scratch, folder, temporary }
    }

    /// `swapfs check --json FOLDER`.
    fn command(&self) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(["check", "--json"]).arg(&self.folder).env("TMPDIR", &self.temporary);
        command
    }

    /// The same after a script, in a mount namespace of its own, with the folder as `$1`.
    fn after(&self, script: &str) -> Output {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-euc"]);
        command.arg(format!("{script}\nexec \"$2\" check --json \"$1\"")).arg("sh");
        command.arg(&self.folder).arg(PROGRAM).env("TMPDIR", &self.temporary);
        command.output().unwrap()
    }

    /// The program, and the way to it, for every user.
    fn program(&self) -> PathBuf {
        std::fs::set_permissions(self.scratch.path(), PermissionsExt::from_mode(0o755)).unwrap();
        let program = self.scratch.path().join("program");
        std::fs::copy(PROGRAM, &program).unwrap();
        program
    }

    /// Neither files nor mounts are left.
    #[track_caller]
    fn assert_clean(&self) {
        for path in [&self.folder, &self.temporary] {
            let left: Vec<_> =
                path.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let mounts = std::fs::read("/proc/self/mountinfo").unwrap();
        let mounts = String::from_utf8_lossy(&mounts);
        let scratch = self.scratch.path().to_str().unwrap();
        assert!(!mounts.contains(scratch), "{mounts}");
    }
}

/// The report, which is printed whatever the exit status.
#[track_caller]
fn report(output: &Output) -> Json {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// What was found about an item.
#[track_caller]
fn finding<'a>(report: &'a Json, item: &str) -> &'a Json {
    let findings = report["findings"].as_array().unwrap();
    let found = findings.iter().find(|finding| finding["item"] == item);
    found.unwrap_or_else(|| panic!("{item} is not in {report:#}"))
}

/// Exit 0: everything is `ok`, or `slow` with a mend.
#[track_caller]
fn assert_usable(output: &Output) -> Json {
    let report = report(output);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(report["usable"], true);
    for finding in report["findings"].as_array().unwrap() {
        assert_ne!(finding["verdict"], "fails", "{finding}");
        assert_eq!(finding["verdict"] == "slow", finding["mend"].is_string(), "{finding}");
    }
    for item in ITEMS {
        finding(&report, item);
    }
    report
}

/// Exit 1: exactly these items fail, each with a mend, and one line on standard error names them.
#[track_caller]
fn assert_failing(output: &Output, items: &[&str]) -> Json {
    let report = report(output);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert_eq!(report["usable"], false);
    let findings = report["findings"].as_array().unwrap();
    let failing: Vec<&Json> = findings.iter().filter(|one| one["verdict"] == "fails").collect();
    let names: Vec<&str> = failing.iter().map(|one| one["item"].as_str().unwrap()).collect();
    assert_eq!(names, items, "{report:#}");
    let line = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    for finding in failing {
        assert!(!finding["mend"].as_str().unwrap().is_empty(), "{finding}");
        assert!(line.contains(finding["item"].as_str().unwrap()), "{line}");
    }
    report
}

#[test]
fn this_machine_is_usable_and_nothing_is_left_behind() {
    let rig = Rig::new();
    let start = Instant::now();
    let report = assert_usable(&rig.command().output().unwrap());
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    let speed = finding(&report, "speed");
    assert!(speed["values"]["write_bytes_per_second"].as_f64().unwrap() > 0.0);
    assert!(speed["values"]["read_bytes_per_second"].as_f64().unwrap() > 0.0);
    assert!(speed["found"].as_str().unwrap().contains("verified"), "{speed}");
    assert_eq!(speed["folder"], rig.folder.to_str().unwrap());
    rig.assert_clean();
    let table = Command::new(PROGRAM).arg("check").arg(&rig.folder).output().unwrap();
    let table = String::from_utf8(table.stdout).unwrap();
    let words = table.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let rows = words.filter(|words| ["ok", "slow", "fails"].contains(&words[0]));
    assert_eq!(rows.map(|words| words[1].to_owned()).collect::<Vec<_>>(), ITEMS, "{table}");
    let folder = format!("{}:", rig.folder.display());
    assert_eq!(table.lines().filter(|line| *line == folder).count(), 1, "{table}");
}

#[test]
#[ignore = "needs mkfs.xfs: tests/suites/tools.sh"]
fn a_folder_on_xfs_is_usable() {
    let rig = Rig::new();
    let image = rig.scratch.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(400 << 20).unwrap();
    let script = format!("mkfs.xfs -q {0} && mount -o loop {0} \"$1\"", image.to_str().unwrap());
    let report = assert_usable(&rig.after(&script));
    assert_eq!(finding(&report, "filesystem")["values"]["type"], "xfs");
    assert_eq!(finding(&report, "direct-io")["verdict"], "ok");
    // Less room than the pool holds.
    assert_eq!(finding(&report, "free-space")["verdict"], "slow");
    assert!(finding(&report, "device")["found"].as_str().unwrap().starts_with("loop"));
}

#[test]
#[ignore = "needs fusermount3: tests/suites/tools.sh"]
fn without_arguments_the_default_folder_is_checked_and_not_made() {
    let rig = Rig::new();
    let (home, user) = (rig.scratch.path().join("home"), NOBODY);
    std::fs::create_dir(&home).unwrap();
    std::os::unix::fs::chown(&home, Some(user), Some(user)).unwrap();
    let program = rig.program();
    std::fs::set_permissions(&rig.temporary, PermissionsExt::from_mode(0o1777)).unwrap();
    // A device that everybody may open, as most systems have it.
    let script = format!(
        "mount -t tmpfs none /dev; mknod -m 666 /dev/fuse c 10 229; mknod -m 666 /dev/null c 1 3
        exec setpriv --reuid {user} --regid {user} --clear-groups env HOME={0} TMPDIR={1} \
        XDG_DATA_HOME= {2} check --json",
        home.display(),
        rig.temporary.display(),
        program.display()
    );
    let report = assert_usable(&rig.after(&script));
    let mount = finding(&report, "mount")["found"].as_str().unwrap();
    assert!(mount.contains("by fusermount3"), "{mount}");
    let folder = home.join(".local/share/swapfs/swap");
    assert_eq!(finding(&report, "speed")["folder"], folder.to_str().unwrap());
    assert_eq!(home.read_dir().unwrap().count(), 0);
    rig.assert_clean();
}

#[test]
fn an_ordinary_user_is_told_how_to_get_a_folder() {
    let rig = Rig::new();
    let wanted = rig.folder.join("home/.local/share/swapfs/swap");
    let mut command = Command::new("setpriv");
    let user = NOBODY.to_string();
    command.args(["--reuid", &user, "--regid", &user, "--clear-groups", "env", "XDG_DATA_HOME="]);
    command.arg(format!("HOME={}", rig.folder.join("home").display()));
    command.arg(rig.program()).args(["check", "--json"]);
    let report = report(&command.output().unwrap());
    let writable = finding(&report, "write-permission");
    assert_eq!(writable["verdict"], "fails");
    let mend = format!("install -d -o {NOBODY} {}", wanted.display());
    assert!(writable["mend"].as_str().unwrap().ends_with(&mend), "{writable}");
}

#[test]
fn several_folders_are_checked_each() {
    let rig = Rig::new();
    let other = rig.scratch.path().join("other");
    // A name that is no text.
    let odd = rig.scratch.path().join(std::ffi::OsStr::from_bytes(b"odd \xff"));
    std::fs::create_dir(&odd).unwrap();
    let output = rig.command().arg(&other).arg(&odd).output().unwrap();
    let report = assert_failing(&output, &["folder"]);
    let findings = report["findings"].as_array().unwrap();
    let of = |folder: &Path| {
        let folder = folder.to_str().unwrap();
        findings.iter().filter(|one| one["folder"] == folder).count()
    };
    assert_eq!((of(&rig.folder), of(&other)), (9, 1));
    // However many: what is left of the time is shared.
    let many = std::iter::repeat_n(&rig.folder, 12);
    let report = assert_usable(&rig.command().args(many).output().unwrap());
    let findings = report["findings"].as_array().unwrap();
    assert_eq!(findings.iter().filter(|one| one["item"] == "speed").count(), 13);
}

#[test]
fn a_folder_that_is_not_there_is_named() {
    let rig = Rig::new();
    std::fs::remove_dir(&rig.folder).unwrap();
    let report = assert_failing(&rig.command().output().unwrap(), &["folder"]);
    let mend = format!("mkdir -p {}", rig.folder.display());
    assert_eq!(finding(&report, "folder")["mend"], mend);
    std::fs::write(&rig.folder, "a file").unwrap();
    assert_failing(&rig.command().output().unwrap(), &["folder"]);
}

#[test]
fn a_mend_is_one_word_to_the_shell_and_one_line_to_people() {
    let rig = Rig::new();
    let missing = rig.folder.join("a b\nit's");
    let output = Command::new(PROGRAM).args(["check", "--json"]).arg(&missing).output().unwrap();
    let report = assert_failing(&output, &["folder"]);
    let mend = finding(&report, "folder")["mend"].as_str().unwrap();
    assert!(Command::new("bash").args(["-c", mend]).status().unwrap().success(), "{mend}");
    assert!(missing.is_dir(), "{mend}");
}

#[test]
fn a_read_only_folder_is_named() {
    let rig = Rig::new();
    let script = "mount --bind \"$1\" \"$1\"; mount -o remount,bind,ro \"$1\"";
    let report = assert_failing(&rig.after(script), &["write-permission"]);
    let mend = format!("mount -o remount,rw {} (as root)", rig.folder.display());
    assert_eq!(finding(&report, "write-permission")["mend"], mend);
}

#[test]
fn a_full_filesystem_is_named() {
    let rig = Rig::new();
    let script =
        "mount -t tmpfs -o size=8m none \"$1\"; head -c 16m /dev/zero 2>&- >\"$1\"/zeros || true";
    let report = assert_failing(&rig.after(script), &["free-space"]);
    assert_eq!(finding(&report, "free-space")["values"]["bytes"], 0);
    assert_eq!(finding(&report, "filesystem")["verdict"], "slow");
    // No inodes left, and still room for bytes.
    let script = "mount -t tmpfs -o size=64m,nr_inodes=2 none \"$1\"; touch \"$1\"/last";
    assert_failing(&rig.after(script), &["write-permission", "inodes"]);
}

#[test]
fn without_the_fuse_device_it_fails() {
    let rig = Rig::new();
    let report = assert_failing(
        &rig.after("mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3"),
        &["fuse-device"],
    );
    let mend = finding(&report, "fuse-device")["mend"].as_str().unwrap();
    assert!(mend.contains("modprobe fuse") && mend.contains("--device /dev/fuse"), "{mend}");
}

#[test]
fn where_io_uring_is_refused_it_fails_and_names_the_fallback() {
    let rig = Rig::new();
    let mut command = rig.command();
    // SAFETY: pre_exec needs a closure that is safe between fork and exec: system calls on memory of
    // its own stack.
    unsafe { command.pre_exec(refuse_io_uring) };
    let report = assert_failing(&command.output().unwrap(), &["io-uring"]);
    let mend = finding(&report, "io-uring")["mend"].as_str().unwrap();
    assert!(mend.contains("seccomp") && mend.contains("falls back to threads"), "{mend}");
    assert!(finding(&report, "speed")["found"].as_str().unwrap().contains("verified"));
    rig.assert_clean();
}

/// A filter that answers io_uring_setup(2) with EPERM, as containers do.
fn refuse_io_uring() -> std::io::Result<()> {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let number = std::mem::offset_of!(libc::seccomp_data, nr) as u32;
    let mut filter = [
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, number),
        libc::sock_filter {
            jf: 1,
            ..statement(
                libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
                libc::SYS_io_uring_setup as u32,
            )
        },
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers.
    let result = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    if result != 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: PR_SET_SECCOMP reads a program of `len` statements, which outlives the call.
    let result =
        unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if result == 0 { Ok(()) } else { Err(Error::last_os_error()) }
}

#[test]
fn a_low_limit_of_locked_memory_is_a_warning() {
    let rig = Rig::new();
    let mut command = rig.command();
    // SAFETY: pre_exec needs a closure that is safe between fork and exec: two system calls on plain
    // numbers, no allocation.
    unsafe { command.pre_exec(limit_memory_lock) };
    let report = assert_usable(&command.output().unwrap());
    let lock = finding(&report, "memory-lock");
    assert_eq!(lock["verdict"], "slow");
    assert!(lock["found"].as_str().unwrap().contains("RLIMIT_MEMLOCK is 64 KiB"), "{lock}");
    assert!(lock["mend"].as_str().unwrap().contains("ulimit -l unlimited"), "{lock}");
    assert_eq!(lock["values"]["limit_bytes"], 64 << 10);
}

fn limit_memory_lock() -> std::io::Result<()> {
    const CAP_IPC_LOCK: libc::c_ulong = 14;
    // SAFETY: this prctl takes plain numbers.
    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0) };
    let limit = rustix::process::Rlimit { current: Some(64 << 10), maximum: Some(64 << 10) };
    rustix::process::setrlimit(rustix::process::Resource::Memlock, limit)?;
    Ok(())
}

#[test]
fn a_signal_at_any_moment_leaves_nothing_behind() {
    let rig = Rig::new();
    let mut interrupted = 0;
    for (round, signal) in
        [Signal::SIGINT, Signal::SIGTERM].into_iter().cycle().take(12).enumerate()
    {
        let child = rig.command().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // From before the mount to the middle of the transfers.
        std::thread::sleep(Duration::from_millis(1 << round));
        kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
        let output = child.wait_with_output().unwrap();
        rig.assert_clean();
        // Before its first instruction the signal simply ends it; after the last it is too late.
        if output.status.code() == Some(1) {
            let line = String::from_utf8(output.stderr).unwrap();
            assert_eq!(line.trim_end(), "swapfs: interrupted before everything was checked");
            interrupted += 1;
        }
    }
    assert!(interrupted > 0, "none of the signals came in time");
}

#[test]
fn a_folder_that_never_answers_is_named() {
    let rig = Rig::new();
    // A filesystem whose server reads nothing.
    let server = std::fs::File::options().read(true).write(true).open("/dev/fuse").unwrap();
    let data = format!("fd={},rootmode=40000,user_id=0,group_id=0", server.as_raw_fd());
    let none = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("silent"), &rig.folder, Some("fuse"), none, Some(data.as_str()))
        .unwrap();
    let output = rig.command().output();
    drop(server);
    nix::mount::umount2(&rig.folder, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let report = assert_failing(&output.unwrap(), &["folder"]);
    let found = finding(&report, "folder")["found"].as_str().unwrap();
    assert!(found.starts_with("not done within"), "{found}");
}

#[test]
fn a_mount_and_a_folder_in_use_are_told_apart() {
    let rig = Rig::new();
    let mnt = rig.scratch.path().join("mnt");
    std::fs::create_dir(&mnt).unwrap();
    let swapfs = |arguments: &[&Path]| Command::new(PROGRAM).args(arguments).output().unwrap();
    let mounted = swapfs(&[Path::new("mount"), &rig.folder, &mnt]);
    assert!(mounted.status.success(), "{mounted:?}");
    let report_of_folder = rig.command().output();
    let report_of_mount = swapfs(&[Path::new("check"), Path::new("--json"), &mnt]);
    let unmounted = swapfs(&[Path::new("umount"), &mnt]);
    assert!(unmounted.status.success(), "{unmounted:?}");
    let report = assert_usable(&report_of_folder.unwrap());
    let found = finding(&report, "folder");
    assert_eq!(found["verdict"], "slow");
    assert!(found["found"].as_str().unwrap().contains("in use by swapfs pid"), "{found}");
    let report = assert_failing(&report_of_mount, &["folder"]);
    let mend = finding(&report, "folder")["mend"].as_str().unwrap();
    assert!(mend.ends_with(rig.folder.to_str().unwrap()), "{mend}");
}

#[test]
fn wrong_usage_is_one_line_and_status_2() {
    let output = Command::new(PROGRAM).args(["check", "-o", "poolsize=1g"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let line = String::from_utf8(output.stderr).unwrap();
    assert_eq!(line.lines().count(), 1, "{line}");
    assert_eq!(
        Command::new(PROGRAM).args(["check", "--nonsense"]).status().unwrap().code(),
        Some(2)
    );
}
