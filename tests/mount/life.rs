//! Mounts beside and over each other.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{MIB, is_pattern, swap_xattr, write_pattern};

/// "A second mount of a swap folder in use is refused with a message naming the first one's pid."
#[test]
fn a_second_mount_is_refused() {
    let mount = Mount::new("pool_size=8m");
    let other = mount.scratch.path().join("other");
    fs::create_dir(&other).unwrap();
    let output = swapfs(&["mount", mount.swap.to_str().unwrap(), other.to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let line = complaint(&output);
    let pid = format!("pid {}", mount.daemon());
    assert!(line.contains(&pid) && line.lines().count() == 1, "{line}");
    // The first is none the worse for it.
    write_pattern(&open(&mount.at("file")), MIB, 1 << 20);
    is_pattern(&mount.at("file"), MIB);
}

/// "mounts *over* `nvme_path` and keeps the directory beneath as its swap folder": `user.swap.path` is
/// "empty when it is hidden beneath the mount".
#[test]
fn a_folder_mounted_over_itself_keeps_its_files() {
    let mut mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    mount.mnt = mount.swap.clone();
    write_pattern(&open(&mount.backing("before")), 2 * MIB, 1 << 20);
    is_done(&mount.mount("pool_size=8m"));
    is_pattern(&mount.at("before"), 2 * MIB);
    write_pattern(&open(&mount.at("new")), 20 * MIB + 1, 1 << 20);
    is_pattern(&mount.at("new"), 20 * MIB + 1);
    assert_eq!(swap_xattr(&mount.at("new"), "path"), "");
    assert_eq!(swap_xattr(&mount.at("before"), "path"), "");
    mount.unmount();
    is_pattern(&mount.backing("before"), 2 * MIB);
    is_pattern(&mount.backing("new"), 20 * MIB + 1);
}

/// "`--config FILE`", "built-in < file < `-o` < flag".
#[test]
fn a_configuration_file_is_taken_and_overruled() {
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let file = mount.scratch.path().join("config.json");
    let content =
        r#"{"aio": {"block_size": 131072}, "swapfs": {"pool_size": "24m", "list_xattr": false}}"#;
    fs::write(&file, content).unwrap();
    is_done(&mount.mount(&format!("pool_size=32m --config {}", file.display())));
    assert_eq!(swap_xattr(&mount.mnt, "pool.buffer_size"), "131072");
    assert_eq!(swap_xattr(&mount.mnt, "pool.buffers"), "256");
    mount.unmount();
    let refused = mount.mount("pool_sise=32m");
    assert_eq!(refused.status.code(), Some(2), "{refused:?}");
    assert!(complaint(&refused).contains("pool_sise"), "{refused:?}");
}

/// Two mounts at the same time keep their files apart.
#[test]
fn two_mounts_do_not_meet() {
    let (first, second) = (Mount::new("pool_size=8m"), Mount::new("pool_size=8m"));
    for (mount, length) in [(&first, 3 * MIB), (&second, 5 * MIB)] {
        write_pattern(&open(&mount.at("file")), length, 1 << 20);
    }
    first.unmount();
    is_pattern(&first.backing("file"), 3 * MIB);
    is_pattern(&second.at("file"), 5 * MIB);
}

/// A mount that is taken away here and that another mount namespace still has: whoever mounts the folder again is told
/// which process it is, and not only that the folder is in use.
#[test]
fn a_mount_that_only_another_namespace_has_is_named() {
    let mount = Mount::new("pool_size=8m,allow_other");
    let mut command = Command::new("sleep");
    command.arg("60").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let apart = || {
        // SAFETY: between fork and exec there is one thread, whose mounts become its own.
        unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNS) }?;
        let (none, private) = (None::<&str>, nix::mount::MsFlags::MS_PRIVATE);
        nix::mount::mount(none, "/", none, nix::mount::MsFlags::MS_REC | private, none)?;
        Ok(())
    };
    // SAFETY: only system calls.
    let mut holder = unsafe { command.pre_exec(apart) }.spawn().unwrap();
    nix::mount::umount2(&mount.mnt, nix::mount::MntFlags::MNT_DETACH).unwrap();
    let output = mount.mount("pool_size=8m");
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let line = complaint(&output);
    let expected = format!("only in another mount namespace: that of process {}", holder.id());
    assert!(line.contains(&expected) && line.lines().count() == 1, "{line}");
    assert!(line.contains(&format!("swapfs pid {}", mount.daemon())), "{line}");
    // With the namespace the mount goes, and the folder is free.
    holder.kill().unwrap();
    holder.wait().unwrap();
    is_done(&mount.mount("pool_size=8m,default_permissions"));
}
