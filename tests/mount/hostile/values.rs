//! Values at and beyond every limit: requests, names of attributes, offsets, lengths, times.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FallocateFlags, SeekFrom, Timespec, Timestamps, XattrFlags, fallocate,
};
use rustix::io::Errno;

use crate::bytes::open;
use crate::exchange::seed;
use crate::place::Mount;
use crate::requests::settled;
use crate::support::{
    MIB, Random, errno, pattern, same, set_xattr, swap_xattr, sync_all, write_pattern, xattr,
};

const VERBS: [&str; 8] = [
    "swap_in",
    "swap_out",
    "release",
    "discard",
    "reserve",
    "synchronize_writes",
    "reserve_buffers",
    "release_reserved_buffers",
];

/// What a request may be followed by and still be the same one.
fn is_request(value: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(value) else { return false };
    let text = text.trim_end_matches('\0');
    let verb = text.split(' ').next().unwrap_or_default();
    VERBS.contains(&verb)
}

fn random_value(random: &mut Random, length: usize) -> Vec<u8> {
    let mut value: Vec<u8> = match random.below(4) {
        0 => (0..length).map(|_| random.below(256) as u8).collect(),
        1 => vec![random.below(256) as u8; length],
        2 => (0..length).map(|_| b"rel_swapin 0\0-+kmg"[random.below(18) as usize]).collect(),
        _ => VERBS[random.below(8) as usize].bytes().cycle().take(length).collect(),
    };
    if random.below(3) == 0 && !value.is_empty() {
        let at = random.below(value.len() as u64) as usize;
        value[at] ^= 1 << random.below(8);
    }
    value
}

/// "xattr requests of every length and content": each that is none fails with EINVAL and changes nothing.
#[test]
fn requests_of_every_length_that_mean_nothing_change_nothing() {
    let mount = Mount::new("pool_size=16m,open_swap_in=none");
    fs::create_dir(mount.at("dir")).unwrap();
    let path = mount.at("dir/file");
    let file = open(&path);
    write_pattern(&file, 2 * MIB + 1, 1 << 20);
    file.sync_all().unwrap();
    assert_eq!(settled(&path), "available");
    let seed = seed();
    let mut random = Random::new(seed);
    let lengths = (0..=700).chain([1023, 1024, 4095, 4096, 4097, 65_534, 65_535, 65_536]);
    for length in lengths {
        for place in [&path, &mount.at("dir"), &mount.mnt] {
            let value = random_value(&mut random, length);
            if !is_request(&value) {
                let answer = set_xattr(place, "user.swap.request", &value);
                assert_eq!(answer, Err(Errno::INVAL), "{length} {value:?}");
            }
        }
    }
    let too_long = vec![b'x'; 65_537];
    assert_eq!(set_xattr(&path, "user.swap.request", &too_long), Err(Errno::TOOBIG));
    for (value, errno) in [
        ("reserve", Errno::INVAL),
        ("reserve ", Errno::INVAL),
        ("reserve 0", Errno::INVAL),
        ("reserve -1", Errno::INVAL),
        ("reserve 1 2", Errno::INVAL),
        ("reserve 1e9", Errno::INVAL),
        ("reserve 18446744073709551616", Errno::INVAL),
        ("reserve 18446744073709551615t", Errno::INVAL),
        ("reserve 18446744073709551615", Errno::NOSPC),
        ("reserve 9223372036854775808", Errno::NOSPC),
        ("reserve 9223372036854775807", Errno::NOSPC),
        ("Release", Errno::INVAL),
        ("release ", Errno::INVAL),
        (" release", Errno::INVAL),
        ("release\n", Errno::INVAL),
        ("swap_in all", Errno::INVAL),
    ] {
        assert_eq!(set_xattr(&path, "user.swap.request", value.as_bytes()), Err(errno), "{value}");
    }
    for (value, errno) in [
        ("reserve_buffers", Errno::INVAL),
        ("reserve_buffers -1", Errno::INVAL),
        ("reserve_buffers 18446744073709551615", Errno::NOBUFS),
        ("reserve_buffers 18446744073709551616", Errno::INVAL),
        ("reserve_buffers 17", Errno::NOBUFS),
        ("release_reserved_buffers 1", Errno::INVAL),
        ("discard", Errno::INVAL),
    ] {
        let answer = set_xattr(&mount.mnt, "user.swap.request", value.as_bytes());
        assert_eq!(answer, Err(errno), "{value}");
    }
    for flags in [XattrFlags::CREATE, XattrFlags::REPLACE] {
        let answer = rustix::fs::setxattr(&path, "user.swap.request", b"nonsense", flags);
        assert_eq!(answer, Err(Errno::INVAL));
    }
    assert_eq!(swap_xattr(&path, "status"), "available");
    assert_eq!(swap_xattr(&mount.mnt, "pool.reserved"), "0");
    assert_eq!(file.metadata().unwrap().len(), 2 * MIB + 1);
    drop(file);
}

/// Names below `user.swap.` are swapfs's, whatever they are; all others are the swap folder's.
#[test]
fn attributes_of_any_name_are_answered() {
    let mount = Mount::new("pool_size=8m");
    fs::create_dir(mount.at("dir")).unwrap();
    fs::write(mount.at("file"), "x").unwrap();
    fs::write(mount.backing("plain"), "x").unwrap();
    let mut random = Random::new(seed());
    for round in 0..600 {
        let length = random.below(300) as usize;
        let tail: Vec<u8> = (0..length).map(|_| random.below(255) as u8 + 1).collect();
        let own = [b"user.swap.".as_slice(), &tail].concat();
        for place in ["file", "dir", ""] {
            let place = mount.at(place);
            let refused = if own.len() > 255 { Errno::RANGE } else { Errno::PERM };
            assert_eq!(
                rustix::fs::setxattr(&place, own.as_slice(), b"1", XattrFlags::empty()),
                Err(refused),
                "{own:?}"
            );
            let gone = rustix::fs::removexattr(&place, own.as_slice());
            assert_eq!(gone, Err(refused), "{own:?}");
            let missing = if own.len() > 255 { Errno::RANGE } else { Errno::NODATA };
            let mut room = [0; 64];
            let value = rustix::fs::getxattr(&place, own.as_slice(), &mut room);
            assert_eq!(value, Err(missing), "{own:?}");
        }
        // The same name and value elsewhere is answered as without swapfs, where the name passes at all.
        let prefix = ["user.", "trusted.", "user.swap", "security.x", ""][round % 5];
        let other = [prefix.as_bytes(), &tail].concat();
        if other.starts_with(b"user.swap.") {
            continue;
        }
        let value = vec![7; random.below(5000) as usize];
        let set =
            |path: &Path| rustix::fs::setxattr(path, other.as_slice(), &value, XattrFlags::empty());
        if ["trusted.", "security.x"].contains(&prefix) && other.len() <= 255 {
            assert_eq!(set(&mount.at("file")), Err(Errno::OPNOTSUPP), "{other:?}");
            continue;
        }
        let beneath = set(&mount.backing("plain"));
        assert_eq!(set(&mount.at("file")), beneath, "{other:?}, {} bytes", value.len());
        if beneath.is_ok() {
            let mut room = vec![0; 8192];
            let count = rustix::fs::getxattr(mount.at("file"), other.as_slice(), &mut room);
            assert_eq!(&room[..count.unwrap()], value);
            rustix::fs::removexattr(mount.backing("plain"), other.as_slice()).unwrap();
            rustix::fs::removexattr(mount.at("file"), other.as_slice()).unwrap();
        }
    }
    // Room of every size for a value that is longer.
    for size in 1..9 {
        let mut room = vec![0; size];
        let value = rustix::fs::getxattr(mount.at("file"), "user.swap.status", room.as_mut_slice());
        assert_eq!(value, Err(Errno::RANGE), "{size}");
    }
    assert_eq!(xattr(&mount.at("file"), "user.swap.size").unwrap(), b"1");
}

/// "huge offsets": what is refused is refused as the swap folder refuses it, or with EFBIG; what is sparse
/// works; and no call takes long, whatever lies between.
fn huge_offsets(mount: &Mount) {
    let path = mount.at("file");
    let file = open(&path);
    file.write_all_at(b"begin", 0).unwrap();
    let top = i64::MAX as u64;
    for offset in [top - 1, top - 4095, top - 4096, top - 4097, top - (1 << 20)] {
        assert_eq!(errno(file.write_at(b"x", offset)), Errno::FBIG, "{offset}");
        assert_eq!(file.read_at(&mut [0; 9], offset - 9).unwrap(), 0, "{offset}");
    }
    // The kernel's own answer: it does not get here.
    assert_eq!(errno(file.write_at(b"x", top)), Errno::INVAL);
    for length in [top, top - 1, top - 4096] {
        assert_eq!(errno(file.set_len(length)), Errno::FBIG, "{length}");
    }
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    for mode in [FallocateFlags::empty(), FallocateFlags::KEEP_SIZE, FallocateFlags::ZERO_RANGE] {
        for (offset, length) in [(top - 10, 10), (top, 1), (top, top), (1, top), (0, top)] {
            let refused = fallocate(&file, mode, offset, length).unwrap_err();
            assert!(refused == Errno::FBIG || refused == Errno::NOSPC, "{mode:?}: {refused}");
        }
        assert_eq!(fallocate(&file, mode, 0, 0), Err(Errno::INVAL));
    }
    // A hole beyond the end is a hole already.
    for (offset, length) in [(top - 10, 10), (1 << 40, 1 << 40), (5, top - 5 - (32 << 20))] {
        let punched = fallocate(&file, punch, offset, length);
        assert!(punched.is_ok() || punched == Err(Errno::FBIG), "{punched:?}");
    }
    for (from, found) in [
        (SeekFrom::Data(top), Err(Errno::NXIO)),
        (SeekFrom::Hole(top), Err(Errno::NXIO)),
        (SeekFrom::Data(1 << 50), Err(Errno::NXIO)),
        (SeekFrom::Start(top), Ok(top)),
    ] {
        assert_eq!(rustix::fs::seek(file.as_fd(), from), found, "{from:?}");
    }
    assert_eq!(file.metadata().unwrap().len(), 5);
    // Sparse, as far as the filesystem goes.
    let far = [1_u64 << 33, 1 << 40, (1 << 43) + 12_345, (1 << 44) - 4096];
    for at in far {
        match file.write_at(b"far away", at) {
            Ok(count) => assert_eq!(count, 8),
            Err(error) => {
                assert_eq!(Errno::from_io_error(&error), Some(Errno::FBIG));
                continue;
            }
        }
        assert_eq!(file.metadata().unwrap().len(), at + 8);
        // A second opener: nothing of what lies between is read, or made up, ahead of it.
        let reader = File::open(&path).unwrap();
        let mut bytes = [1; 16];
        assert_eq!(reader.read_at(&mut bytes, at - 8).unwrap(), 16);
        assert_eq!(&bytes, b"\0\0\0\0\0\0\0\0far away");
        assert_eq!(reader.read_at(&mut bytes, at / 2).unwrap(), 16);
        assert_eq!(bytes, [0; 16]);
        assert_eq!(swap_xattr(&path, "size"), (at + 8).to_string());
        assert_eq!(crate::requests::request(&path, "swap_in"), Err(Errno::NOBUFS));
        // Within the first page or behind it, as the swap folder's file has it at the moment.
        let hole = rustix::fs::seek(&reader, SeekFrom::Hole(5)).unwrap();
        assert!(hole == 5 || hole == 4096, "{hole}");
        file.sync_all().unwrap();
        let mut room = [0; 8];
        File::open(mount.backing("file")).unwrap().read_exact_at(&mut room, at).unwrap();
        assert_eq!(&room, b"far away");
        file.set_len(5).unwrap();
    }
    assert!(crate::support::occupied(&path) <= 1 << 20);
    file.set_len(0).unwrap();
    drop(file);
    sync_all(&mount.mnt);
}

/// On the build folder's filesystem, and in memory, where files may have any size.
#[test]
fn offsets_at_every_limit_are_answered() {
    huge_offsets(&Mount::new("pool_size=8m"));
    huge_offsets(&Mount::new("pool_size=8m,open_swap_in=all"));
    let memory = Path::new("/dev/shm");
    if memory.is_dir() {
        huge_offsets(&Mount::within(memory, "pool_size=8m,open_swap_in=all"));
    }
}

/// Times that 64 bits hold and no filesystem does: the mount answers as long as it stands, for open files too.
#[test]
fn the_earliest_and_the_latest_times_are_answered() {
    let mut places = vec![Path::new(env!("CARGO_TARGET_TMPDIR"))];
    places.extend(Some(Path::new("/dev/shm")).filter(|memory| memory.is_dir()));
    for place in places {
        let mount = Mount::within(place, "pool_size=8m");
        let path = mount.at("file");
        let file = open(&path);
        fs::create_dir(mount.at("dir")).unwrap();
        for seconds in [i64::MIN, i64::MIN + 1, -1 << 40, -1, 0, 1 << 40, i64::MAX - 1, i64::MAX] {
            // More often than there are threads to answer.
            for round in 0..8 {
                file.write_all_at(&pattern(round, 100), round * 100).unwrap();
                let time = Timespec { tv_sec: seconds, tv_nsec: round as i64 };
                let times = Timestamps { last_access: time, last_modification: time };
                rustix::fs::futimens(&file, &times).unwrap();
                rustix::fs::utimensat(CWD, mount.at("dir"), &times, AtFlags::empty()).unwrap();
                assert_eq!(file.metadata().unwrap().len(), (round + 1) * 100);
                assert_eq!(fs::read_dir(&mount.mnt).unwrap().count(), 2);
                fs::symlink_metadata(mount.at("dir")).unwrap();
            }
            file.sync_all().unwrap();
            // What the swap folder's filesystem made of it is what the mount shows, once the kernel asks.
            let beneath = fs::metadata(mount.backing("file")).unwrap();
            crate::support::wait_until("the same time", || {
                let shown = file.metadata().unwrap();
                (shown.mtime(), shown.size()) == (beneath.mtime(), beneath.size())
            });
            file.set_len(0).unwrap();
        }
        drop(file);
        same(&fs::read(&path).unwrap(), b"");
        assert!(swap_xattr(&path, "status") == "available");
        assert_eq!(xattr(&path, "user.swap.error"), Err(Errno::NODATA));
    }
}
