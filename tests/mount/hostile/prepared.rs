//! Swap folders that others may write to: what they put into `.swapfs`, or in its place, is never used.

use std::fs::{self, File, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Output;

use rustix::fs::{FlockOperation, flock};

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{MIB, User, as_user, is_pattern, is_root, make_fifo, user, write_pattern};

const ATTACKER: User = user(1234);

/// What swapfs opens below `.swapfs`.
const FILES: [&str; 9] = [
    "lock",
    "log",
    "log.1",
    "ledger",
    "session",
    "session.new",
    "ended",
    "wear.json",
    "wear.json.new",
];

fn prepared() -> Mount {
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    fs::set_permissions(mount.scratch.path(), Permissions::from_mode(0o755)).unwrap();
    mount
}

fn control(mount: &Mount) -> PathBuf {
    mount.swap.join(".swapfs")
}

fn fsck(mount: &Mount) -> Output {
    swapfs(&["fsck", mount.swap.to_str().unwrap()])
}

/// The command failed with one line about the swap folder.
#[track_caller]
fn is_refused(mount: &Mount, output: &Output, why: &str) {
    let line = complaint(output);
    assert_eq!(output.status.code(), Some(1), "{why}: {output:?}");
    assert_eq!(line.lines().count(), 1, "{line}");
    let shown = mount.swap.display();
    let start = format!("swapfs: swap folder {shown}");
    assert!(line.starts_with(&start) && line.contains(why), "{why}: {line}");
}

/// Neither a mount nor fsck takes the folder.
#[track_caller]
fn both_are_refused(mount: &Mount, why: &str) {
    is_refused(mount, &mount.mount("pool_size=8m"), why);
    assert!(!mount.is_mounted());
    is_refused(mount, &fsck(mount), why);
}

/// A `.swapfs` that an ordinary user prepares in a folder like /tmp: a folder, a link to one of root's, a link to
/// nowhere, a FIFO, a file. Root does not mount, and nothing is made where a link leads.
#[test]
fn a_control_folder_that_another_user_made_is_refused() {
    if !is_root() {
        return;
    }
    let mount = prepared();
    fs::set_permissions(&mount.swap, Permissions::from_mode(0o1777)).unwrap();
    let roots = mount.scratch.path().join("roots");
    fs::create_dir(&roots).unwrap();
    let own = Path::new(".swapfs");
    let cases: [(&(dyn Fn() + Sync), &str); 5] = [
        (&|| fs::create_dir(own).unwrap(), ".swapfs belongs to user 1234, not to user 0;"),
        (&|| symlink(&roots, own).unwrap(), ".swapfs is "),
        (&|| symlink("nowhere", own).unwrap(), ".swapfs is "),
        (&|| make_fifo(own), ".swapfs is no directory;"),
        (&|| fs::write(own, "").unwrap(), ".swapfs is no directory;"),
    ];
    for (make, why) in cases {
        as_user(&mount.swap, ATTACKER, make);
        is_refused(&mount, &mount.mount("pool_size=8m"), why);
        assert!(!mount.is_mounted());
        let made = control(&mount);
        fs::remove_dir(&made).or_else(|_| fs::remove_file(&made)).unwrap();
    }
    assert_eq!(fs::read_dir(&roots).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&mount.swap).unwrap().count(), 0);
    is_done(&mount.mount("pool_size=8m"));
}

/// A folder that is the daemon's user's, but open to others, or with files of others in it: each of these is named.
#[test]
fn files_in_the_control_folder_that_others_could_have_made_are_refused() {
    if !is_root() {
        return;
    }
    let mount = prepared();
    is_done(&mount.mount("pool_size=8m"));
    write_pattern(&open(&mount.at("file")), MIB, 1 << 20);
    mount.unmount();
    let control = control(&mount);
    fs::set_permissions(&control, Permissions::from_mode(0o777)).unwrap();
    both_are_refused(&mount, ".swapfs may be written by others (mode 0777);");
    fs::set_permissions(&control, Permissions::from_mode(0o700)).unwrap();

    let target = mount.scratch.path().join("target");
    fs::write(&target, "root's").unwrap();
    for name in FILES {
        let (path, kept) = (control.join(name), control.join("kept"));
        let had = fs::rename(&path, &kept).is_ok();
        let cases: [(&dyn Fn(), &str); 6] = [
            (&|| make_fifo(&path), "is no regular file;"),
            (&|| symlink(&target, &path).unwrap(), "is a symbolic link;"),
            (&|| fs::hard_link(&target, &path).unwrap(), "has 2 hard links;"),
            (&|| fs::create_dir(&path).unwrap(), "is no regular file;"),
            (
                &|| {
                    fs::write(&path, "{}").unwrap();
                    chown(&path, Some(ATTACKER.uid), None).unwrap();
                },
                "belongs to user 1234, not to user 0;",
            ),
            (
                &|| {
                    fs::write(&path, "{}").unwrap();
                    fs::set_permissions(&path, Permissions::from_mode(0o606)).unwrap();
                },
                "may be written by others (mode 0606);",
            ),
        ];
        for (make, why) in cases {
            make();
            both_are_refused(&mount, &format!(": .swapfs/{name} {why}"));
            fs::remove_dir(&path).or_else(|_| fs::remove_file(&path)).unwrap();
        }
        if had {
            fs::rename(&kept, &path).unwrap();
        }
    }
    fs::rename(control.join("sums"), control.join("kept")).unwrap();
    symlink(mount.scratch.path(), control.join("sums")).unwrap();
    both_are_refused(&mount, ": .swapfs/sums is a symbolic link;");
    fs::remove_file(control.join("sums")).unwrap();
    fs::rename(control.join("kept"), control.join("sums")).unwrap();
    symlink(mount.scratch.path(), control.join("sums/ff")).unwrap();
    both_are_refused(&mount, ": .swapfs/sums/ff is a symbolic link;");
    fs::remove_file(control.join("sums/ff")).unwrap();

    assert_eq!(fs::read(&target).unwrap(), b"root's");
    is_done(&fsck(&mount));
    is_done(&mount.mount("pool_size=8m"));
    is_pattern(&mount.at("file"), MIB);
}

/// Everything that a daemon makes in `.swapfs` is examined by the next one.
#[test]
fn nothing_is_made_in_the_control_folder_that_is_not_examined() {
    let mount = Mount::new("pool_size=8m,checksum=crc32c");
    write_pattern(&open(&mount.at("file")), MIB, 1 << 20);
    mount.unmount();
    for entry in fs::read_dir(control(&mount)).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(name == "sums" || FILES.contains(&name.as_str()), "{name}");
    }
}

/// "The attacker exchanges `lock` and a second daemon mounts the folder": the owner of the swap folder may move
/// `.swapfs` away and put another in its place. While the daemon runs, nobody else gets the folder.
#[test]
fn moving_the_control_folder_away_lets_no_second_daemon_in() {
    if !is_root() {
        return;
    }
    let mount = prepared();
    chown(&mount.swap, Some(ATTACKER.uid), Some(ATTACKER.gid)).unwrap();
    is_done(&mount.mount("pool_size=8m,allow_other"));
    let other = mount.scratch.path().join("other");
    fs::create_dir(&other).unwrap();
    let second = || swapfs(&["mount", mount.swap.to_str().unwrap(), other.to_str().unwrap()]);
    let in_use =
        format!("is in use by swapfs pid {} (mounted at {})", mount.daemon(), mount.mnt.display());
    is_refused(&mount, &second(), &in_use);
    as_user(&mount.swap, ATTACKER, || fs::rename(".swapfs", "moved").unwrap());
    is_refused(&mount, &second(), &in_use);
    is_refused(&mount, &fsck(&mount), &in_use);
    as_user(&mount.swap, ATTACKER, || {
        let _ = fs::rename(".swapfs", "again");
        fs::create_dir(".swapfs").unwrap();
        fs::write(".swapfs/lock", "{}").unwrap();
    });
    is_refused(&mount, &second(), "belongs to user 1234, not to user 0;");
    write_pattern(&open(&mount.at("file")), MIB, 1 << 20);
    // The daemon still has its own.
    mount.unmount();
    let state = fs::read_to_string(mount.swap.join("moved/lock")).unwrap();
    assert!(state.contains("finished"), "{state}");
    fs::remove_dir_all(control(&mount)).unwrap();
    is_done(&mount.mount("pool_size=8m"));
    is_pattern(&mount.at("file"), MIB);
}

/// An ordinary user keeps nobody from mounting: neither by a lock on the swap folder itself, nor by a `.swapfs` with a
/// lock in a folder above, as in /tmp.
#[test]
fn locks_that_others_hold_keep_nobody_from_mounting() {
    if !is_root() {
        return;
    }
    let mount = prepared();
    fs::set_permissions(mount.scratch.path(), Permissions::from_mode(0o1777)).unwrap();
    fs::set_permissions(&mount.swap, Permissions::from_mode(0o755)).unwrap();
    let held = as_user(mount.scratch.path(), ATTACKER, || {
        fs::create_dir(".swapfs").unwrap();
        let above = File::create(".swapfs/lock").unwrap();
        let within = File::open("swap").unwrap();
        for held in [&above, &within] {
            flock(held, FlockOperation::NonBlockingLockExclusive).unwrap();
        }
        [above, within]
    });
    is_done(&mount.mount("pool_size=8m"));
    mount.unmount();
    is_done(&fsck(&mount));
    drop(held);
}

/// A user's own mount, as root of a namespace of its own, works as before: there is no folder for locks below /run, and
/// `.swapfs` is the user's.
#[test]
fn a_user_in_a_namespace_of_its_own_mounts_its_own_folder() {
    if !is_root() {
        return;
    }
    let mount = prepared();
    for path in [&mount.swap, &mount.mnt] {
        chown(path, Some(ATTACKER.uid), Some(ATTACKER.gid)).unwrap();
    }
    let at = |name: &str| mount.scratch.path().join(name).display().to_string();
    let (program, fuse) = (at("swapfs"), at("fuse"));
    fs::copy(env!("CARGO_BIN_EXE_swapfs"), &program).unwrap();
    fs::create_dir(at("mnt2")).unwrap();
    let by_the_user = format!(
        "'{program}' mount swap mnt -o pool_size=8m && echo text >mnt/file && \
         ! '{program}' mount swap mnt2 && '{program}' umount mnt && '{program}' fsck swap && cat swap/file"
    );
    // A device node that everybody may open, in a mount namespace of its own.
    let script = format!(
        "mknod -m 666 '{fuse}' c 10 229 && mount --bind '{fuse}' /dev/fuse && exec setpriv --reuid=1234 \
         --regid=1234 --clear-groups --inh-caps=-all unshare --user --map-root-user --mount sh -c \"$1\""
    );
    let output = std::process::Command::new("unshare")
        .args(["--mount", "--propagation", "private", "sh", "-c", &script, "sh", &by_the_user])
        .current_dir(mount.scratch.path())
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), complaint(&output));
    if said.contains("unshare:") {
        return eprintln!("left out: users may have no namespaces here: {said}");
    }
    assert!(output.status.success() && said.contains("text\n"), "{said}");
    assert!(said.contains("is in use by swapfs pid"), "{said}");
}
