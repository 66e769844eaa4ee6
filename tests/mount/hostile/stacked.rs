//! Mounts of mounts, and daemons that want the same folder.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Output;

use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::signal::Signal;

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{MIB, is_pattern, is_root, write_pattern};

fn mount_at(swap: &Path, mnt: &Path) -> Output {
    let (swap, mnt) = (swap.to_str().unwrap(), mnt.to_str().unwrap());
    swapfs(&["mount", swap, mnt, "-o", "pool_size=8m"])
}

/// Fails with one line that has `part` in it.
#[track_caller]
fn is_refused(output: &Output, part: &str) {
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let line = complaint(output);
    assert!(line.contains(part) && line.lines().count() == 1, "{line}");
}

/// "a mount of a mount": a swap folder on a swapfs mount is refused, however it is reached; the mount beneath is
/// none the worse.
#[test]
fn a_swap_folder_on_a_mount_is_refused_by_every_way_to_it() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=8m");
    fs::create_dir(mount.at("swap")).unwrap();
    let scratch = mount.scratch.path();
    let (other, link, bound) = (scratch.join("other"), scratch.join("link"), scratch.join("bound"));
    fs::create_dir(&other).unwrap();
    fs::create_dir(&bound).unwrap();
    symlink(mount.at("swap"), &link).unwrap();
    nix::mount::mount(
        Some(&mount.at("swap")),
        &bound,
        None::<&str>,
        MsFlags::MS_BIND,
        None::<&str>,
    )
    .unwrap();
    let outcomes: Vec<Output> = [&mount.at("swap"), &mount.mnt, &link, &bound]
        .into_iter()
        .map(|swap| mount_at(swap, &other))
        .collect();
    umount2(&bound, MntFlags::empty()).unwrap();
    for output in &outcomes {
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(complaint(output).lines().count(), 1, "{output:?}");
    }
    write_pattern(&open(&mount.at("swap/file")), MIB, 1 << 20);
    is_pattern(&mount.at("swap/file"), MIB);
}

/// A mountpoint on another mount works, and both end in whatever order they are asked to.
#[test]
fn a_mountpoint_on_a_mount_works() {
    let mount = Mount::new("pool_size=8m");
    let scratch = mount.scratch.path().canonicalize().unwrap();
    let (swap, at) = (scratch.join("second"), mount.at("mnt"));
    fs::create_dir(&swap).unwrap();
    fs::create_dir(&at).unwrap();
    is_done(&mount_at(&swap, &at));
    write_pattern(&open(&at.join("file")), 3 * MIB + 1, 1 << 20);
    write_pattern(&open(&mount.at("file")), 2 * MIB, 1 << 20);
    // A request on the outer root does not reach into the inner mount, nor does it fail.
    crate::requests::ask(&mount.mnt, "release");
    is_pattern(&at.join("file"), 3 * MIB + 1);
    assert!(fs::metadata(mount.backing("mnt/file")).is_err());
    // The outer one is busy as long as the inner one stands.
    let busy = swapfs(&["umount", mount.mnt.to_str().unwrap()]);
    assert_eq!(busy.status.code(), Some(1), "{busy:?}");
    is_done(&swapfs(&["umount", at.to_str().unwrap()]));
    is_pattern(&swap.join("file"), 3 * MIB + 1);
    is_pattern(&mount.at("file"), 2 * MIB);
}

/// A swap folder inside another that is in use, and one around another, are refused: two daemons would have the same
/// files. So is a mountpoint inside its own swap folder, under every name the folder has. When the other is
/// not in use any more, both can be mounted in turn.
#[test]
fn swap_folders_inside_one_another_are_refused() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=8m");
    let scratch = mount.scratch.path().canonicalize().unwrap();
    let (other, elsewhere) = (scratch.join("other"), tempfile::tempdir().unwrap());
    let (inner, deeper) = (mount.swap.join("inner"), mount.swap.join("inner/deeper"));
    [&other, &inner, &deeper].iter().for_each(|folder| fs::create_dir(folder).unwrap());
    let inside = format!(
        "lies inside another: swap folder {} is in use by swapfs pid {} (mounted at {})",
        mount.swap.display(),
        mount.daemon(),
        mount.mnt.display()
    );
    is_refused(&mount_at(&inner, &other), &inside);
    is_refused(&mount_at(&deeper, &other), &inside);
    assert!(!inner.join(".swapfs").exists(), "nothing is left there");
    write_pattern(&open(&mount.at("inner/file")), MIB, 1 << 20);
    mount.unmount();

    is_done(&mount_at(&inner, &other));
    is_pattern(&other.join("file"), MIB);
    let around = format!("has another inside: swap folder {} is in use by", inner.display());
    is_refused(&mount.mount("pool_size=8m"), &around);
    is_refused(&mount_at(&scratch, elsewhere.path()), &around);
    assert!(!scratch.join(".swapfs").exists(), "nothing is left there");
    is_done(&swapfs(&["umount", other.to_str().unwrap()]));

    let bound = scratch.join("bound");
    fs::create_dir(&bound).unwrap();
    nix::mount::mount(Some(&mount.swap), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .unwrap();
    let names = [mount_at(&mount.swap, &inner), mount_at(&mount.swap, &bound.join("inner"))];
    umount2(&bound, MntFlags::empty()).unwrap();
    names.iter().for_each(|output| is_refused(output, "lies inside the swap folder"));
    is_done(&mount.mount("pool_size=8m"));
    is_pattern(&mount.at("inner/file"), MIB);
}

/// "two daemons on one folder": of many that start at the same moment, under every name the folder has, one
/// wins; the others name its pid. When it is killed, the folder is free at once.
#[test]
fn of_many_daemons_one_gets_the_folder() {
    if !is_root() {
        return;
    }
    let place = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let scratch = place.scratch.path().canonicalize().unwrap();
    let (link, bound) = (scratch.join("link"), scratch.join("bound"));
    symlink(&place.swap, &link).unwrap();
    fs::create_dir(&bound).unwrap();
    nix::mount::mount(Some(&place.swap), &bound, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .unwrap();
    let names = [&place.swap, &link, &bound, &scratch.join("swap/.")];
    for round in 0..3 {
        let contenders: Vec<(PathBuf, &PathBuf)> = (0..6)
            .map(|number| (scratch.join(format!("mnt-{round}-{number}")), names[number % 4]))
            .collect();
        contenders.iter().for_each(|(mnt, _)| fs::create_dir(mnt).unwrap());
        let outputs: Vec<Output> = std::thread::scope(|scope| {
            let running: Vec<_> = contenders
                .iter()
                .map(|(mnt, swap)| scope.spawn(move || mount_at(swap, mnt)))
                .collect();
            running.into_iter().map(|run| run.join().unwrap()).collect()
        });
        let won: Vec<usize> =
            (0..outputs.len()).filter(|number| outputs[*number].status.success()).collect();
        let [winner] = won[..] else { panic!("{outputs:?}") };
        let mnt = &contenders[winner].0;
        let stats = fs::read_to_string(mnt.join(".swapfs/stats.json")).unwrap();
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        let pid = stats["mount"]["pid"].as_i64().unwrap() as i32;
        let losers = outputs.iter().enumerate().filter(|(number, _)| *number != winner);
        losers.for_each(|(_, output)| is_refused(output, &format!("pid {pid}")));
        let name = format!("file-{round}");
        let file = open(&mnt.join(&name));
        write_pattern(&file, MIB, 1 << 20);
        file.sync_all().unwrap();
        drop(file);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        umount2(mnt, MntFlags::MNT_DETACH).unwrap();
        is_pattern(&place.swap.join(&name), MIB);
    }
    // A killed daemon's descriptors may outlive it for a moment.
    crate::support::wait_until("the bound folder to be idle", || {
        umount2(&bound, MntFlags::empty()).is_ok()
    });
    is_done(&place.mount("pool_size=8m"));
    is_pattern(&place.at("file-2"), MIB);
    place.unmount();
}
