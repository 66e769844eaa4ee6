//! Folders and mounts that only look like a mount of swapfs: no command believes what they say, opens what they lead to,
//! or waits for them.

use std::fs::{self, File, Permissions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, umount2};

use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{User, as_user, is_root, make_fifo, user};

const ATTACKER: User = user(1234);

/// Files of a control folder.
const FILES: [&str; 5] = ["stats.json", "metrics", "config.json", "partitions.json", "accesslog"];

/// No command waits as long as this for what never answers.
const PATIENCE: Duration = Duration::from_secs(20);

fn scratch() -> tempfile::TempDir {
    let scratch = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    fs::set_permissions(scratch.path(), Permissions::from_mode(0o1777)).unwrap();
    scratch
}

/// What a mount would say whose daemon is `pid`, and whose swap folder has the log.
fn stats(pid: u32, swap_folder: &Path) -> String {
    let namespace = fs::metadata("/proc/self/ns/pid").unwrap().ino();
    serde_json::json!({
        "mount": {
            "pid": pid,
            "pid_namespace": namespace,
            "swap_folders": [swap_folder],
            "mountpoint": swap_folder,
        },
    })
    .to_string()
}

/// Every command that asks the mount at `path`, with its arguments.
fn asking(path: &Path, archive: &Path) -> Vec<Vec<String>> {
    let (path, archive) = (path.to_str().unwrap(), archive.to_str().unwrap());
    let words = |line: &str| line.split(' ').map(str::to_owned).collect();
    vec![
        words(&format!("stats {path} --count 1 --interval 0.1")),
        words(&format!("top {path}")),
        words(&format!("debug {path} --interval 0.1 --output {archive}")),
        words(&format!("profile {path} --seconds 0.1")),
        words(&format!("config show {path}")),
        words(&format!("status {path}")),
        words(&format!("swap-out {path}")),
        words(&format!("release {path}")),
    ]
}

fn run(arguments: &[String]) -> Output {
    let start = Instant::now();
    let output = swapfs(&arguments.iter().map(String::as_str).collect::<Vec<_>>());
    assert!(start.elapsed() < PATIENCE, "{arguments:?}");
    output
}

#[track_caller]
fn is_refused(arguments: &[String], why: &str) {
    let output = run(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    let line = complaint(&output);
    assert!(line.lines().count() == 1 && line.contains(why), "{arguments:?}: {line}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
}

/// A folder of an ordinary user's with everything that a mount has: files, links to files of root's, FIFOs, and a link
/// to the control folder of a real mount.
#[test]
fn a_folder_that_looks_like_a_mount_is_none() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=8m");
    let scratch = scratch();
    let secret = scratch.path().join("secret");
    fs::write(&secret, "the secret").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let said = stats(std::process::id(), scratch.path());
    let control = mount.at(".swapfs");
    let make = |folder: &str, file: &(dyn Fn(&Path) + Sync)| {
        as_user(scratch.path(), ATTACKER, || {
            fs::create_dir_all(Path::new(folder).join(".swapfs")).unwrap();
            for name in FILES.iter().chain(&["log", "lock"]) {
                file(&Path::new(folder).join(".swapfs").join(name));
            }
        });
    };
    make("plain", &|file| fs::write(file, &said).unwrap());
    make("links", &|file| symlink(&secret, file).unwrap());
    make("fifos", &|file| make_fifo(file));
    make("mounts", &|file| {
        symlink(control.join(file.file_name().unwrap()), file).unwrap();
    });
    as_user(scratch.path(), ATTACKER, || {
        fs::create_dir("linked").unwrap();
        symlink(&control, "linked/.swapfs").unwrap();
    });
    for folder in ["plain", "links", "fifos", "mounts", "linked"] {
        let (folder, archive) = (scratch.path().join(folder), scratch.path().join("archive"));
        for arguments in asking(&folder, &archive) {
            is_refused(&arguments, "is not ");
        }
        assert!(!archive.exists());
        let umount = ["umount".to_owned(), folder.to_str().unwrap().to_owned()];
        is_refused(&umount, " is not a swapfs mountpoint");
    }
    // A copy of a log that never comes to an end, or never begins.
    let fifo = scratch.path().join("fifos/.swapfs/log").to_str().unwrap().to_owned();
    is_refused(&["profile".to_owned(), fifo], "not a regular file; give -");
    is_refused(&["profile".to_owned(), "/dev/zero".to_owned()], "not a regular file; give -");
}

/// A FUSE mount of an ordinary user's that says it is swapfs, as fusermount3 allows, and never answers.
struct Forged {
    at: PathBuf,
    /// While it is open, whoever asks the mount waits.
    fuse: Option<File>,
}

impl Forged {
    fn new(at: PathBuf) -> Self {
        fs::create_dir(&at).unwrap();
        let fuse = File::options().read(true).write(true).open("/dev/fuse").unwrap();
        let data = format!(
            "fd={},rootmode=40000,user_id=1234,group_id=1234,default_permissions,allow_other",
            fuse.as_raw_fd()
        );
        let (none, flags) = (Some("/nvme/swap"), MsFlags::MS_NOSUID | MsFlags::MS_NODEV);
        nix::mount::mount(none, &at, Some("fuse.swapfs"), flags, Some(data.as_str())).unwrap();
        Self { at, fuse: Some(fuse) }
    }
}

impl Drop for Forged {
    fn drop(&mut self) {
        drop(self.fuse.take());
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

/// Root's commands neither wait for such a mount nor ask it, name its user, and take it away when they are told to.
#[test]
fn another_users_mount_that_never_answers_is_not_asked() {
    if !is_root() {
        return;
    }
    let scratch = scratch();
    let forged = Forged::new(scratch.path().canonicalize().unwrap().join("forged"));
    let archive = scratch.path().join("archive");
    let why = "was mounted by user 1234: only mounts of root and of your own are asked";
    for arguments in asking(&forged.at, &archive) {
        is_refused(&arguments, why);
    }
    assert!(!archive.exists());
    let below = forged.at.join("a/partition").to_str().unwrap().to_owned();
    is_refused(&["status".to_owned(), below.clone()], why);
    is_refused(&["swap-in".to_owned(), below], why);
    // The table of all mounts has it, and goes on.
    let output = run(&["status".to_owned()]);
    is_done(&output);
    let (table, lines) = (String::from_utf8_lossy(&output.stdout), complaint(&output));
    assert!(table.contains(forged.at.to_str().unwrap()) && lines.contains(why), "{output:?}");
    let output = run(&["umount".to_owned(), forged.at.to_str().unwrap().to_owned()]);
    is_done(&output);
    assert!(complaint(&output).contains("whose daemon is not waited for"), "{output:?}");
    let mounts = swapfs::mount::swapfs_mounts().unwrap();
    assert!(mounts.iter().all(|mount| mount.mountpoint != forged.at));
}

/// The owner of a swap folder exchanges its `.swapfs` while root's daemon serves it: `debug` takes the log that the
/// daemon writes or none. The archive is for whoever made it alone, and replaces nothing.
#[test]
fn an_archive_has_the_daemons_log_or_none_and_is_nobody_elses() {
    if !is_root() {
        return;
    }
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    fs::set_permissions(mount.scratch.path(), Permissions::from_mode(0o755)).unwrap();
    chown(&mount.swap, Some(ATTACKER.uid), Some(ATTACKER.gid)).unwrap();
    is_done(&mount.mount("pool_size=8m,allow_other"));
    let secret = mount.scratch.path().join("secret");
    fs::write(&secret, "the secret\n").unwrap();
    fs::set_permissions(&secret, Permissions::from_mode(0o600)).unwrap();
    let scratch = scratch();
    let debug = |name: &str| {
        let archive = scratch.path().join(name);
        let arguments = ["debug", mount.mnt.to_str().unwrap(), "--interval", "0.1", "--output"];
        let output = swapfs(&[&arguments[..], &[archive.to_str().unwrap()]].concat());
        (archive, output)
    };
    let (archive, output) = debug("first");
    is_done(&output);
    assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(text_of(&archive).contains("mounted at"), "the daemon's log");

    as_user(&mount.swap, ATTACKER, || {
        fs::rename(".swapfs", "moved").unwrap();
        fs::create_dir(".swapfs").unwrap();
        symlink(&secret, ".swapfs/log").unwrap();
    });
    let (archive, output) = debug("second");
    is_done(&output);
    let text = text_of(&archive);
    assert!(!text.contains("the secret"), "{text}");
    assert!(text.contains("the log cannot be read: .swapfs belongs to user 1234"), "{text}");

    as_user(scratch.path(), ATTACKER, || {
        symlink(&secret, "third").unwrap();
        symlink("nowhere", "fourth").unwrap();
        make_fifo(Path::new("fifth"));
    });
    for name in ["third", "fourth", "fifth"] {
        let (archive, output) = debug(name);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(complaint(&output).ends_with(": File exists"), "{output:?}");
        assert!(fs::symlink_metadata(&archive).is_ok(), "{name} is gone");
    }
    assert_eq!(fs::read(&secret).unwrap(), b"the secret\n");
    assert!(!scratch.path().join("nowhere").exists());
    as_user(&mount.swap, ATTACKER, || {
        fs::remove_dir_all(".swapfs").unwrap();
        fs::rename("moved", ".swapfs").unwrap();
    });
}

/// All that an archive holds.
fn text_of(archive: &Path) -> String {
    let file = File::open(archive).unwrap();
    let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(file));
    let mut text = Vec::new();
    for entry in archive.entries().unwrap() {
        entry.unwrap().read_to_end(&mut text).unwrap();
    }
    String::from_utf8_lossy(&text).into_owned()
}
