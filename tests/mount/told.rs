//! What close and fsync tell: that bytes could not be stored. What could not be read is told to who asked for it.

use std::fs::{self, File, OpenOptions};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

use crate::integrity::{OPTIONS, release, rot, stored};
use crate::place::Mount;
use crate::support::{
    KIB, MIB, errno, is_pattern, pattern, same, set_xattr, swap_xattr, wait_until,
};

/// A partition of 6 MiB in the swap folder alone, with a damaged page at 4 MiB + 8 KiB.
fn damaged() -> Mount {
    let mount = Mount::new(OPTIONS);
    stored(&mount, "t", 6 * MIB);
    rot(&mount, "t", 4 * MIB + 9000);
    mount
}

fn both(mount: &Mount) -> File {
    OpenOptions::new().read(true).write(true).open(mount.at("t")).unwrap()
}

fn close(file: File) -> nix::Result<()> {
    nix::unistd::close(file.into_raw_fd())
}

fn meets_damage(mount: &Mount) {
    wait_until("the damage to be met", || {
        crate::support::xattr(&mount.at("t"), "user.swap.error") == Ok(b"EBADMSG".to_vec())
    });
}

/// "Only what a client asked for is its error": read-ahead met a bad page, the reader did not.
#[test]
fn what_read_ahead_met_is_nobodys_error() {
    let mount = damaged();
    let (reader, writer) = (File::open(mount.at("t")).unwrap(), both(&mount));
    let mut at = 0;
    while at < 4 * MIB {
        let mut bytes = vec![0; 128 * KIB as usize];
        reader.read_exact_at(&mut bytes, at).unwrap();
        same(&bytes, &pattern(at, bytes.len()));
        at += bytes.len() as u64;
    }
    meets_damage(&mount);
    reader.sync_all().unwrap();
    close(reader).unwrap();
    writer.write_all_at(&pattern(0, 5000), 0).unwrap();
    writer.sync_all().unwrap();
    close(writer).unwrap();
}

/// The same for what a swap-in of all of it met, also one that opening began, and for who writes synchronously.
#[test]
fn what_a_swap_in_met_is_nobodys_error() {
    let mount = damaged();
    let writer = both(&mount);
    set_xattr(&mount.at("t"), "user.swap.request", b"swap_in").unwrap();
    meets_damage(&mount);
    writer.write_all_at(&pattern(MIB + 1, 300_000), MIB + 1).unwrap();
    writer.sync_data().unwrap();
    close(writer).unwrap();
    release(&mount.at("t"));
    mount.remount(&OPTIONS.replace("open_swap_in=none", "open_swap_in=all"));
    let reader = File::open(mount.at("t")).unwrap();
    meets_damage(&mount);
    close(reader).unwrap();
}

/// Who asked for it was told by read(2), and nobody again by close or fsync.
#[test]
fn a_read_that_failed_is_not_told_again() {
    let mount = damaged();
    let (reader, writer) = (both(&mount), both(&mount));
    let mut page = [0; 4096];
    for _ in 0..2 {
        assert_eq!(errno(reader.read_at(&mut page, 4 * MIB + 8192)), Errno::IO);
    }
    writer.write_all_at(&pattern(2 * MIB, 100_000), 2 * MIB).unwrap();
    for file in [reader, writer] {
        file.sync_all().unwrap();
        close(file).unwrap();
    }
    assert_eq!(swap_xattr(&mount.at("t"), "error"), "EBADMSG");
    // What replaces the page mends it.
    fs::write(mount.at("t"), pattern(0, 6 * MIB as usize)).unwrap();
    is_pattern(&mount.at("t"), 6 * MIB);
}

/// Bytes that were taken and cannot be stored are told to every handle: a damaged page of which a part was written.
#[test]
fn what_cannot_be_stored_is_told_to_every_handle() {
    let mount = damaged();
    let (other, writer) = (both(&mount), both(&mount));
    writer.write_all_at(&[7; 100], 4 * MIB + 8200).unwrap();
    assert_eq!(errno(writer.sync_all()), Errno::IO);
    assert_eq!(errno(other.sync_all()), Errno::IO);
    let late = both(&mount);
    close(late).unwrap();
    writer.write_all_at(&pattern(4 * MIB + 8192, 4096), 4 * MIB + 8192).unwrap();
    // The other's fsync had tried it again, in vain: that is told once, too.
    assert_eq!(errno(writer.sync_all()), Errno::IO);
    writer.sync_all().unwrap();
    for file in [other, writer] {
        close(file).unwrap();
    }
    is_pattern(&mount.at("t"), 6 * MIB);
}
