//! Set-user-id and set-group-id: whoever changes a file's bytes takes its rights away, as on the swap folder.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FallocateFlags;
use rustix::thread::CapabilitySet;

use crate::place::Mount;
use crate::support::{Map, User, as_user, is_root, set_xattr, user};

/// A call that changes a file, and what it fails with.
type Change = fn(&Path) -> std::io::Result<()>;

fn written(path: &Path) -> std::io::Result<File> {
    File::options().read(true).write(true).open(path)
}

fn allocated(path: &Path, mode: FallocateFlags) -> std::io::Result<()> {
    Ok(rustix::fs::fallocate(written(path)?, mode, 4096, 8192)?)
}

const CHANGES: [(&str, Change); 19] = [
    ("write", |path| written(path)?.write_all(b"changed")),
    ("empty write", |path| written(path)?.write(b"").map(drop)),
    ("pwrite", |path| written(path)?.write_all_at(b"changed", 5000)),
    ("pwrite beyond the end", |path| written(path)?.write_all_at(b"changed", 70_000)),
    ("append", |path| File::options().append(true).open(path)?.write_all(b"changed")),
    ("stable write", |path| {
        let file = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(path)?;
        file.write_all_at(b"changed", 100)
    }),
    ("write and seek", |path| {
        let mut file = written(path)?;
        file.seek(SeekFrom::End(0))?;
        file.write_all(&[7; 5000])
    }),
    ("truncate", |path| Ok(nix::unistd::truncate(path, 100)?)),
    ("longer by truncate", |path| Ok(nix::unistd::truncate(path, 50_000)?)),
    ("ftruncate", |path| written(path)?.set_len(7)),
    ("ftruncate to its size", |path| {
        let file = written(path)?;
        file.set_len(file.metadata()?.len())
    }),
    ("O_TRUNC", |path| File::options().write(true).truncate(true).open(path).map(drop)),
    ("O_TRUNC and O_CREAT", |path| File::create(path).map(drop)),
    ("fallocate", |path| allocated(path, FallocateFlags::empty())),
    ("fallocate and keep the size", |path| allocated(path, FallocateFlags::KEEP_SIZE)),
    ("a hole", |path| allocated(path, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE)),
    ("zeros", |path| allocated(path, FallocateFlags::ZERO_RANGE)),
    ("copy_file_range", |path| {
        let file = written(path)?;
        let (mut from, mut to) = (0, 9000);
        rustix::fs::copy_file_range(&file, Some(&mut from), &file, Some(&mut to), 3000)?;
        Ok(())
    }),
    ("mapped store", |path| {
        let map = Map::new(&written(path)?, 4096, true, true);
        map.write(10, b"changed");
        map.sync();
        Ok(())
    }),
];

/// A group that a file may have and a user may be in.
const GROUP: u32 = 4321;

/// By three bits: set-user-id, set-group-id, and execute.
fn mode(bits: u32) -> u32 {
    (bits & 3) << 10 | if bits & 4 != 0 { 0o777 } else { 0o666 }
}

fn file_for(folder: &Path, number: usize, bits: u32) -> PathBuf {
    folder.join(format!("{number}-{bits}"))
}

/// One file for each change and mode. Modes come last: chown takes set-ids away.
fn prepare(folder: &Path) {
    fs::create_dir(folder).unwrap();
    fs::set_permissions(folder, Permissions::from_mode(0o777)).unwrap();
    for number in 0..CHANGES.len() {
        for bits in 0..8 {
            let path = file_for(folder, number, bits);
            fs::write(&path, [1; 20_000]).unwrap();
            chown(&path, Some(1234), Some(GROUP)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(mode(bits))).unwrap();
        }
    }
}

/// What each change made of each mode. Looked at before, too, so that the kernel remembers the mode.
fn outcomes(folder: &Path) -> Vec<(String, Option<i32>, u32)> {
    let mode_of = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    let mut found = Vec::new();
    for (number, (name, change)) in CHANGES.iter().enumerate() {
        for bits in 0..8 {
            let path = file_for(folder, number, bits);
            assert_eq!(mode_of(&path), mode(bits));
            let errno = change(&path).err().map(|error| error.raw_os_error().unwrap());
            found.push((format!("{name} of {:o}", mode(bits)), errno, mode_of(&path)));
        }
    }
    found
}

fn same_as_on_the_folder(who: &str, run: impl Fn(&Path) -> Vec<(String, Option<i32>, u32)>) {
    let mount = Mount::new("pool_size=32m,allow_other");
    let own = mount.scratch.path().join("own");
    prepare(&own);
    prepare(&mount.at("files"));
    let (expected, found) = (run(&own), run(&mount.at("files")));
    for (expected, found) in expected.iter().zip(&found) {
        assert_eq!(found, expected, "by {who}, modes in decimal");
    }
    for (number, (name, _)) in CHANGES.iter().enumerate() {
        for bits in 0..8 {
            let stored = fs::metadata(file_for(&mount.backing("files"), number, bits)).unwrap();
            let (_, _, mode) = found[number * 8 + bits as usize];
            assert_eq!(stored.mode() & 0o7777, mode, "{name} in the swap folder");
        }
    }
}

/// Every call, every mode, and each kind of user: what the swap folder's filesystem does.
#[test]
fn a_change_takes_set_ids_away_as_on_the_swap_folder() {
    if !is_root() {
        return;
    }
    let member = User { groups: &[77, GROUP], ..user(1235) };
    let users = [
        ("a stranger", user(1235)),
        ("a member of the group", member),
        ("one whose first group it is", User { gid: GROUP, ..user(1235) }),
        ("the owner", user(1234)),
    ];
    for (who, user) in users {
        same_as_on_the_folder(who, |folder| as_user(folder, user, || outcomes(folder)));
    }
    same_as_on_the_folder("root", outcomes);
}

/// Root without CAP_FSETID is as anybody else.
#[test]
fn root_without_the_capability_takes_set_ids_away_too() {
    if !is_root() {
        return;
    }
    same_as_on_the_folder("root without CAP_FSETID", |folder| {
        std::thread::scope(|scope| {
            let limited = scope.spawn(|| {
                let mut sets = rustix::thread::capabilities(None).unwrap();
                sets.effective -= CapabilitySet::FSETID;
                rustix::thread::set_capabilities(None, sets).unwrap();
                outcomes(folder)
            });
            limited.join().unwrap()
        })
    });
}

/// What swapfs itself offers to those who may write is a change as well.
#[test]
fn requests_that_change_a_file_take_set_ids_away() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=32m,allow_other");
    for (request, bits, expected) in [
        (&b"discard"[..], 7, 0o777),
        (b"reserve 1m", 7, 0o777),
        (b"discard", 3, 0o666),
        (b"swap_out", 7, 0o6777),
        (b"release", 7, 0o6777),
    ] {
        let path = mount.at("file");
        fs::write(&path, [1; 20_000]).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode(bits))).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, mode(bits));
        as_user(&mount.mnt, user(1235), || {
            set_xattr(Path::new("file"), "user.swap.request", request).unwrap();
        });
        let found = fs::metadata(&path).unwrap().mode() & 0o7777;
        assert_eq!(found, expected, "{} of {:o}", request.escape_ascii(), mode(bits));
        fs::remove_file(&path).unwrap();
    }
}

/// A program that somebody overwrites and runs at once runs as that user.
#[test]
fn an_overwritten_program_runs_without_its_old_rights() {
    if !is_root() {
        return;
    }
    let mount = Mount::new("pool_size=32m,allow_other,suid");
    let bytes = fs::read("/usr/bin/id").unwrap();
    for round in 0..10 {
        let name = format!("program{round}");
        let path = mount.at(&name);
        fs::write(&path, b"old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o6777);
        let output = as_user(&mount.mnt, user(1235), || {
            written(Path::new(&name)).unwrap().write_all_at(&bytes, 0).unwrap();
            // Busy while another test's child still has our descriptors.
            loop {
                match Command::new(format!("./{name}")).arg("-u").output() {
                    Err(error) if error.raw_os_error() == Some(libc::ETXTBSY) => {}
                    outcome => break outcome.unwrap(),
                }
            }
        });
        assert_eq!(String::from_utf8_lossy(&output.stdout), "1235\n", "round {round}");
    }
}
