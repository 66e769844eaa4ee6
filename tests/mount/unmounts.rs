//! Who may unmount, and unmounting what is in use.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output};

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{is_root, same, wait_until};

/// The program as another user runs it, in the folder that has the mountpoint: nothing above it need be open to them.
fn by_another(mount: &Mount, name: &str, arguments: &[&str]) -> Output {
    let folder = mount.scratch.path();
    fs::set_permissions(folder, Permissions::from_mode(0o755)).unwrap();
    let program = folder.join("swapfs");
    if !program.exists() {
        fs::copy(env!("CARGO_BIN_EXE_swapfs"), &program).unwrap();
    }
    let script = format!("exec -a {name} ./swapfs \"$@\"");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=1234", "--regid=1234", "--clear-groups", "--inh-caps=-all"]);
    command.args(["bash", "-c", &script, "bash"]).args(arguments).current_dir(folder);
    command.output().unwrap()
}

/// The mount table decides whether a mount stands, whatever a helper says: another user is told who may unmount, at once.
#[test]
fn another_user_is_told_who_may_unmount() {
    if !is_root() {
        return;
    }
    for options in ["pool_size=8m", "pool_size=8m,allow_other"] {
        let mount = Mount::new(options);
        open(&mount.at("file")).write_all_at(b"bytes", 0).unwrap();
        let refused = format!(
            "swapfs: cannot unmount {}: root mounted it, and only root may unmount it",
            mount.mnt.display()
        );
        for (name, arguments, status) in [
            ("swapfs", &["umount", "mnt", "--timeout", "5"][..], 1),
            ("swapfs", &["umount", "mnt", "--lazy"], 1),
            ("swapfs", &["umount", "./mnt/", "--force", "--timeout", "5"], 1),
            ("umount.fuse.swapfs", &["mnt", "-t", "fuse.swapfs"], 32),
            ("umount.fuse.swapfs", &["mnt", "-l"], 32),
        ] {
            let output = by_another(&mount, name, arguments);
            assert_eq!(complaint(&output), refused, "{name} {arguments:?}");
            assert_eq!(output.status.code(), Some(status), "{name} {arguments:?}");
            assert!(mount.is_mounted(), "{name} {arguments:?}");
        }
        same(&fs::read(mount.at("file")).unwrap(), b"bytes");
        mount.unmount();
    }
}

/// `swapfs umount --lazy`: gone for new users at once; who has a file open keeps it, and all of it is stored at the end.
#[test]
fn a_lazy_unmount_leaves_what_is_open_to_its_user() {
    for flag in ["--lazy", "-l"] {
        let mount = Mount::new("pool_size=8m");
        let file = open(&mount.at("open"));
        file.write_all_at(b"before", 0).unwrap();
        let mnt = mount.mnt.to_str().unwrap();
        assert!(complaint(&swapfs(&["umount", mnt])).contains("is busy"));
        is_done(&swapfs(&["umount", mnt, flag]));
        assert!(!mount.is_mounted());
        assert!(fs::read_dir(&mount.mnt).unwrap().next().is_none(), "the folder beneath");
        file.write_all_at(b"after.", 6).unwrap();
        drop(file);
        mount.wait_gone();
        same(&fs::read(mount.backing("open")).unwrap(), b"beforeafter.");
    }
}

/// The helper's name is what the process is called by, also for root.
#[test]
fn umounts_helper_detaches_lazily_too() {
    let mount = Mount::new("pool_size=8m");
    let file = open(&mount.at("open"));
    let mut helper = Command::new(env!("CARGO_BIN_EXE_swapfs"));
    is_done(&helper.arg0("umount.fuse.swapfs").arg(&mount.mnt).arg("-l").output().unwrap());
    assert!(!mount.is_mounted());
    file.write_all_at(b"bytes", 0).unwrap();
    drop(file);
    wait_until("the bytes", || fs::read(mount.backing("open")).unwrap() == b"bytes");
    mount.wait_gone();
}
