//! Requests that are larger than what passes between the mount's two halves, and sessions that end while
//! both are at work.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::mount::{MntFlags, umount2};
use rustix::io::Errno;

use crate::place::Mount;
use crate::support::{set_xattr, wait_until, xattr};

const FILES: usize = 4000;

/// A listing into a buffer of a mebibyte is complete, though it is answered in smaller pieces.
#[test]
fn listings_into_large_buffers_are_complete() {
    let mount = Mount::new("pool_size=32m");
    let names: BTreeSet<String> = (0..FILES).map(|i| format!("{i:04}{}", "n".repeat(60))).collect();
    for name in &names {
        File::create(mount.at(name)).unwrap();
    }
    let folder = File::open(&mount.mnt).unwrap();
    let mut buffer = Vec::with_capacity(1 << 20);
    let mut listing = rustix::fs::RawDir::new(folder.as_fd(), buffer.spare_capacity_mut());
    let mut found = BTreeSet::new();
    while let Some(entry) = listing.next() {
        let entry = entry.unwrap();
        let name = entry.file_name().to_str().unwrap().to_owned();
        let dot = [".", ".."].contains(&name.as_str());
        assert!(dot || found.insert(name), "listed twice: {:?}", entry.file_name());
    }
    assert_eq!(found, names);
}

/// The longest values and names that the kernel passes on are answered as the swap folder answers them.
#[test]
fn the_longest_attributes_pass() {
    let mount = Mount::new("pool_size=32m");
    fs::write(mount.at("there"), "x").unwrap();
    fs::write(mount.backing("plain"), "x").unwrap();
    let name = format!("user.{}", "n".repeat(250));
    for length in [1, 2048, 65_536] {
        let value = vec![7; length];
        let expected = set_xattr(&mount.backing("plain"), &name, &value);
        assert_eq!(set_xattr(&mount.at("there"), &name, &value), expected, "{length}");
        if expected.is_ok() && length <= 8192 {
            assert_eq!(xattr(&mount.at("there"), &name), Ok(value), "{length}");
        }
    }
    assert_eq!(set_xattr(&mount.at("there"), "user.big", &vec![7; 65_537]), Err(Errno::TOOBIG));
}

/// A mount taken away under clients that read, write, create and list ends cleanly: everybody gets an
/// answer, the daemon goes.
#[test]
fn a_session_ends_under_work_of_every_kind() {
    let mount = Mount::new("pool_size=32m");
    let (mnt, done) = (&mount.mnt, AtomicU64::new(0));
    std::thread::scope(|scope| {
        for worker in 0..4 {
            let done = &done;
            scope.spawn(move || {
                let name = mnt.join(format!("{worker}"));
                let work = || -> std::io::Result<()> {
                    fs::write(&name, vec![worker; 3_000_000])?;
                    assert_eq!(fs::read(&name)?.len(), 3_000_000);
                    fs::create_dir(mnt.join(format!("folder{worker}")))?;
                    fs::read_dir(mnt)?.count();
                    fs::remove_dir(mnt.join(format!("folder{worker}")))
                };
                while work().is_ok() {
                    done.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        wait_until("some rounds", || done.load(Ordering::Relaxed) > 8);
        // Not detached: the workers would go on in the folder beneath.
        let _ = umount2(&mount.mnt, MntFlags::MNT_FORCE);
    });
    mount.wait_gone();
    assert!(mount.log().contains("everything is on stable storage"), "{}", mount.log());
}
