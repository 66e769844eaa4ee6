//! What is read is what was written, or an error: checksums, interrupted writes, true sizes.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::bytes::open;
use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{
    KIB, MIB, Map, Random, errno, is_pattern, is_root, pattern, same, swap_xattr, sync_all,
    wait_until, write_pattern, xattr,
};

pub(crate) const OPTIONS: &str = "pool_size=16m,checksum=crc32c,open_swap_in=none";

/// The change times of two moments so far apart differ.
const TICK: Duration = Duration::from_millis(30);

/// A partition that is in the swap folder alone.
pub(crate) fn stored(mount: &Mount, name: &str, length: u64) {
    let file = File::create(mount.at(name)).unwrap();
    write_pattern(&file, length, 300_000);
    file.sync_all().unwrap();
    drop(file);
    release(&mount.at(name));
}

/// Writes a part again, by a handle that has no failed reads to report.
fn rewrite(path: &Path, offset: u64, length: usize) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&pattern(offset, length), offset).unwrap();
    file.sync_all().unwrap();
}

pub(crate) fn release(path: &Path) {
    crate::support::set_xattr(path, "user.swap.request", b"release").unwrap();
    while swap_xattr(path, "wait") == "inflight" {}
}

/// Flips one bit of a file.
fn flip(path: &Path, offset: u64) {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 8], offset).unwrap();
    file.sync_all().unwrap();
}

/// Flips a bit as a device would: the file's times stay as they were when swapfs settled it.
pub(crate) fn rot(mount: &Mount, name: &str, offset: u64) {
    flip(&mount.backing(name), offset);
}

fn stat(mount: &Mount, name: &str) -> u64 {
    let stats = fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    stats["checksum"][name].as_u64().unwrap()
}

/// "A flipped bit in the swap folder gives EIO on that range, EBADMSG in user.swap.error and one log line;
/// other ranges are as before; a rewrite mends it."
#[test]
fn a_flipped_bit_is_never_read() {
    let mount = Mount::new(OPTIONS);
    stored(&mount, "t", 3 * MIB + 100);
    rot(&mount, "t", MIB + 5000);
    let file = File::open(mount.at("t")).unwrap();
    let mut page = vec![0; 4096];
    for _ in 0..3 {
        assert_eq!(errno(file.read_at(&mut page, MIB + 4096)), Errno::IO);
    }
    assert_eq!(swap_xattr(&mount.at("t"), "error"), "EBADMSG");
    // It is written after the answer.
    wait_until("the log line", || mount.log().contains("EBADMSG"));
    let lines = mount.log().lines().filter(|line| line.contains("EBADMSG")).count();
    assert_eq!(lines, 1, "{}", mount.log());
    // All else, read from the start on, the rest of its block too.
    for (from, to) in [(0, MIB + 4096), (MIB + 8192, 3 * MIB + 100)] {
        let mut at = from;
        while at < to {
            let mut bytes = vec![0; (to - at).min(64 * KIB) as usize];
            file.read_exact_at(&mut bytes, at).unwrap();
            same(&bytes, &pattern(at, bytes.len()));
            at += bytes.len() as u64;
        }
    }
    assert!(stat(&mount, "mismatches") > 0);
    drop(file);
    rewrite(&mount.at("t"), MIB + 4096, 4096);
    assert_eq!(xattr(&mount.at("t"), "user.swap.error"), Err(Errno::NODATA));
    release(&mount.at("t"));
    is_pattern(&mount.at("t"), 3 * MIB + 100);
    mount.remount(OPTIONS);
    is_pattern(&mount.at("t"), 3 * MIB + 100);
}

/// The same for a partition of one page, and after a remount during which nothing was changed.
#[test]
fn small_partitions_have_sums_too() {
    let mount = Mount::new(OPTIONS);
    stored(&mount, "small", 1234);
    stored(&mount, "other", 40_000);
    mount.remount(OPTIONS);
    rot(&mount, "small", 1000);
    let mut bytes = vec![0; 1234];
    let file = File::open(mount.at("small")).unwrap();
    assert_eq!(errno(file.read_at(&mut bytes, 0)), Errno::IO);
    assert_eq!(swap_xattr(&mount.at("small"), "error"), "EBADMSG");
    is_pattern(&mount.at("other"), 40_000);
}

/// "With checksum=none it is not noticed."
#[test]
fn checksums_can_be_turned_off() {
    let mount = Mount::new("pool_size=16m,checksum=none");
    stored(&mount, "t", MIB);
    rot(&mount, "t", 5000);
    let mut expected = pattern(0, MIB as usize);
    expected[5000] ^= 8;
    same(&fs::read(mount.at("t")).unwrap(), &expected);
    assert_eq!(xattr(&mount.at("t"), "user.swap.error"), Err(Errno::NODATA));
}

/// "A file changed by others while not mounted is read as it is, with one log line."
#[test]
fn what_others_changed_is_read_as_it_is() {
    let mount = Mount::new(OPTIONS);
    for name in ["changed", "cut", "same"] {
        stored(&mount, name, 2 * MIB);
    }
    mount.unmount();
    std::thread::sleep(TICK);
    flip(&mount.backing("changed"), 77);
    OpenOptions::new().write(true).open(mount.backing("cut")).unwrap().set_len(5000).unwrap();
    fs::write(mount.backing("new"), pattern(0, 9000)).unwrap();
    std::thread::sleep(TICK);
    is_done(&mount.mount(OPTIONS));
    fs::set_permissions(mount.at("changed"), fs::Permissions::from_mode(0o600)).unwrap();
    for _ in 0..2 {
        let mut expected = pattern(0, 2 * MIB as usize);
        expected[77] ^= 8;
        same(&fs::read(mount.at("changed")).unwrap(), &expected);
        release(&mount.at("changed"));
    }
    is_pattern(&mount.at("cut"), 5000);
    is_pattern(&mount.at("new"), 9000);
    is_pattern(&mount.at("same"), 2 * MIB);
    let lines = mount.log().lines().filter(|line| line.contains("changed by others")).count();
    assert_eq!(lines, 2, "{}", mount.log());
    assert_eq!(stat(&mount, "dropped"), 2);
    // Written again, it is guarded again.
    stored(&mount, "changed", MIB);
    rot(&mount, "changed", 4);
    assert_eq!(errno(fs::read(mount.at("changed"))), Errno::IO);
}

/// Changes of names, modes and times keep the sums; changes of shape and of content keep them right.
#[test]
#[expect(clippy::too_many_lines, reason = "one change after the other")]
fn whatever_is_done_reads_right_after_a_remount() {
    if !is_root() {
        return;
    }
    let mount = Mount::new(OPTIONS);
    let open = |name: &str| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(mount.at(name))
            .unwrap()
    };
    for name in ["mode", "old-name", "over", "link", "times"] {
        stored(&mount, name, MIB + 777);
    }
    fs::set_permissions(mount.at("mode"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::rename(mount.at("old-name"), mount.at("new-name")).unwrap();
    stored(&mount, "newer", 300_000);
    fs::rename(mount.at("newer"), mount.at("over")).unwrap();
    fs::hard_link(mount.at("link"), mount.at("link-2")).unwrap();
    let long_ago = std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    open("times").set_modified(long_ago).unwrap();
    stored(&mount, "cut", 2 * MIB);
    open("cut").set_len(MIB + 300).unwrap();
    stored(&mount, "grown", MIB + 300);
    open("grown").set_len(3 * MIB).unwrap();
    stored(&mount, "punched", 2 * MIB);
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(open("punched"), punch, 100_000, 500_000).unwrap();
    stored(&mount, "appended", MIB + 1);
    let appended = OpenOptions::new().append(true).open(mount.at("appended")).unwrap();
    appended.write_at(&pattern(MIB + 1, 5555), 0).unwrap();
    let direct = OpenOptions::new()
        .write(true)
        .create(true)
        .custom_flags(libc::O_DIRECT)
        .open(mount.at("direct"))
        .unwrap();
    direct.write_all_at(&pattern(0, 70_001), 0).unwrap();
    direct.write_all_at(&pattern(513, 99_999), 513).unwrap();
    let hole = open("holes");
    hole.write_all_at(&pattern(5 * MIB + 17, 100), 5 * MIB + 17).unwrap();
    let mapped = open("mapped");
    mapped.set_len(100_000).unwrap();
    let map = Map::new(&mapped, 100_000, true, true);
    map.write(0, &pattern(0, 100_000));
    map.sync();
    drop((map, mapped, hole, direct, appended));
    // The inode's number may be given out again at once.
    for i in 0..20 {
        stored(&mount, "gone", 100_000 + i);
        fs::remove_file(mount.at("gone")).unwrap();
    }
    stored(&mount, "reborn", 50_000);
    for round in 0..2 {
        mount.remount(OPTIONS);
        for (name, length) in [
            ("mode", MIB + 777),
            ("new-name", MIB + 777),
            ("over", 300_000),
            ("link", MIB + 777),
            ("link-2", MIB + 777),
            ("times", MIB + 777),
            ("cut", MIB + 300),
            ("appended", MIB + 5556),
            ("direct", 100_512),
            ("mapped", 100_000),
            ("reborn", 50_000),
        ] {
            is_pattern(&mount.at(name), length);
        }
        let mut grown = pattern(0, (MIB + 300) as usize);
        grown.resize(3 * MIB as usize, 0);
        same(&fs::read(mount.at("grown")).unwrap(), &grown);
        let mut punched = pattern(0, 2 * MIB as usize);
        punched[100_000..600_000].fill(0);
        same(&fs::read(mount.at("punched")).unwrap(), &punched);
        let mut holes = vec![0; 5 * MIB as usize + 17];
        holes.extend(pattern(5 * MIB + 17, 100));
        same(&fs::read(mount.at("holes")).unwrap(), &holes);
        assert_eq!((stat(&mount, "dropped"), stat(&mount, "mismatches")), (0, 0), "{round}");
        assert!(stat(&mount, "verified_pages") > 1000);
    }
    let modified = fs::metadata(mount.at("times")).unwrap().modified().unwrap();
    assert_eq!(modified, long_ago);
    // They are guarded still.
    for (name, offset) in [("mode", MIB + 700), ("new-name", 5), ("times", 5000), ("link-2", 9)] {
        release(&mount.at(name));
        rot(&mount, name, offset);
        assert_eq!(errno(fs::read(mount.at(name))), Errno::IO, "{name}");
    }
}

/// Random writes, truncations and hole punches with remounts between: always what a plain file holds.
#[test]
fn random_changes_read_right() {
    let seed = std::process::id().into();
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let mount = Mount::new(OPTIONS);
    let mut model: Vec<u8> = Vec::new();
    for _ in 0..4 {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(mount.at("t"))
            .unwrap();
        for _ in 0..60 {
            let offset = random.below(3 * MIB) as usize;
            match random.below(8) {
                0 => {
                    model.resize(offset, 0);
                    file.set_len(offset as u64).unwrap();
                }
                1 if offset < model.len() => {
                    let end = model.len().min(offset + random.below(MIB) as usize + 1);
                    model[offset..end].fill(0);
                    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE
                        | rustix::fs::FallocateFlags::KEEP_SIZE;
                    let length = (end - offset) as u64;
                    rustix::fs::fallocate(&file, punch, offset as u64, length).unwrap();
                }
                2 => file.sync_all().unwrap(),
                _ => {
                    let bytes = pattern(random.below(MIB), 1 + random.below(400_000) as usize);
                    model.resize(model.len().max(offset + bytes.len()), 0);
                    model[offset..offset + bytes.len()].copy_from_slice(&bytes);
                    file.write_all_at(&bytes, offset as u64).unwrap();
                }
            }
        }
        drop(file);
        mount.remount(OPTIONS);
        same(&fs::read(mount.at("t")).unwrap(), &model);
        assert_eq!((stat(&mount, "dropped"), stat(&mount, "mismatches")), (0, 0));
    }
    sync_all(&mount.mnt);
    mount.unmount();
    is_done(&swapfs(&["fsck", mount.swap.to_str().unwrap()]));
}

/// "What was fsynced and not overwritten since is whole after kill -9, its size exact; a dead mount answers at
/// once, says what to do, and --replace does it."
#[test]
fn a_killed_daemon_leaves_what_was_synced() {
    let mount = Mount::new(OPTIONS);
    stored(&mount, "synced", 2 * MIB + 333);
    stored(&mount, "odd", 70_001);
    let seed = std::process::id().into();
    eprintln!("seed {seed}");
    let mut random = Random::new(seed);
    let busy = File::create(mount.at("busy")).unwrap();
    busy.write_all_at(&pattern(0, 8 * MIB as usize), 0).unwrap();
    busy.sync_all().unwrap();
    for round in 0..4 {
        let rewritten = pattern(12_345, 8 * MIB as usize);
        let writer = OpenOptions::new().write(true).open(mount.at("busy")).unwrap();
        let writing = std::thread::spawn(move || {
            let pieces = rewritten.chunks(100_000).enumerate();
            for (i, piece) in pieces {
                if writer.write_all_at(piece, i as u64 * 100_000).is_err() {
                    return;
                }
            }
        });
        std::thread::sleep(Duration::from_millis(1 + random.below(25)));
        mount.signal(Signal::SIGKILL);
        mount.wait_gone();
        writing.join().unwrap();
        // Who was waiting when the connection broke gets ECONNABORTED.
        wait_until("ENOTCONN", || {
            let answer = fs::metadata(mount.at("synced")).map_err(|e| Errno::from_io_error(&e));
            matches!(answer, Err(Some(Errno::NOTCONN)))
        });
        let refused = mount.mount(OPTIONS);
        assert!(!refused.status.success());
        assert!(complaint(&refused).contains("--replace"), "{}", complaint(&refused));
        is_done(&mount.mount(&format!("{OPTIONS} --replace")));
        is_pattern(&mount.at("synced"), 2 * MIB + 333);
        is_pattern(&mount.at("odd"), 70_001);
        // Each block of the other is old or new, or says that it is neither.
        let file = File::open(mount.at("busy")).unwrap();
        assert_eq!(file.metadata().unwrap().len(), 8 * MIB, "{round}");
        let mut page = vec![0; 4096];
        for at in (0..8 * MIB).step_by(4096) {
            match file.read_exact_at(&mut page, at) {
                Ok(()) => {
                    let (old, new) = (pattern(at, 4096), pattern(12_345 + at, 4096));
                    let mixed =
                        page.iter().zip(old.iter().zip(&new)).all(|(p, (o, n))| p == o || p == n);
                    assert!(mixed, "{at}");
                }
                Err(error) => assert_eq!(Errno::from_io_error(&error), Some(Errno::IO)),
            }
        }
        drop(file);
        rewrite(&mount.at("busy"), 0, 8 * MIB as usize);
    }
    is_pattern(&mount.at("busy"), 8 * MIB);
}

/// A ledger's slot as its format is: 256 bytes, entries of eight bytes from byte 64 on.
struct Slot {
    file: File,
    at: u64,
}

impl Slot {
    fn of(mount: &Mount, name: &str) -> Self {
        use std::os::unix::fs::MetadataExt;
        let ino = fs::metadata(mount.backing(name)).unwrap().ino();
        let path = mount.swap.join(".swapfs/ledger");
        let bytes = fs::read(&path).unwrap();
        let slot = bytes.chunks(256).position(|slot| slot[8..16] == ino.to_le_bytes());
        let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
        Self { file, at: slot.expect("it has a record") as u64 * 256 }
    }

    fn entry(&self, page: u64) -> (u32, u32) {
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, self.at + 64 + page * 8).unwrap();
        let word = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
        (word(&bytes[..4]), word(&bytes[4..]))
    }

    fn set_entry(&self, page: u64, (new, previous): (u32, u32)) {
        let bytes = [new.to_le_bytes(), previous.to_le_bytes()].concat();
        self.file.write_all_at(&bytes, self.at + 64 + page * 8).unwrap();
    }

    /// Sets flags, and the true size, with the header's own sum.
    fn set_flags(&self, flags: u32, true_size: u64) {
        let mut bytes = [0; 64];
        self.file.read_exact_at(&mut bytes, self.at).unwrap();
        let before = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        bytes[4..8].copy_from_slice(&(before | flags).to_le_bytes());
        bytes[48..56].copy_from_slice(&true_size.to_le_bytes());
        let sum = crc_fast::crc32_iscsi(&bytes[..60]);
        bytes[60..].copy_from_slice(&sum.to_le_bytes());
        self.file.write_all_at(&bytes, self.at).unwrap();
    }
}

const ACTIVE: u32 = 1;
const PADDED: u32 = 2;

/// Entries that say that a page is being written, or was, without a sum.
const WRITING: u32 = 0x3333_3333;
const WRITTEN: u32 = 0x5555_5555;

/// What a daemon that was killed while it wrote pages 2 to 5 of a partition leaves: of these, `landed`
/// have the new bytes.
fn interrupted(mount: &Mount, name: &str, landed: &[u64]) {
    let slot = Slot::of(mount, name);
    let new = pattern(500_000, 65_536);
    let file = OpenOptions::new().write(true).open(mount.backing(name)).unwrap();
    for page in 2..6 {
        let bytes = &new[page as usize * 4096..][..4096];
        let (old, _) = slot.entry(page);
        slot.set_entry(page, (crc_fast::crc32_iscsi(bytes), old));
        if landed.contains(&page) {
            file.write_all_at(bytes, page * 4096).unwrap();
        }
    }
    slot.set_flags(ACTIVE, 0);
}

/// "A partition that was being written is known as torn after a remount: its torn blocks read EIO until they
/// are written again, with EUCLEAN in user.swap.error; never is a mixture passed off as whole."
#[test]
fn torn_blocks_are_known() {
    let mount = Mount::new(OPTIONS);
    for name in ["mixed", "old", "new"] {
        stored(&mount, name, 65_536);
    }
    stored(&mount, "padded", 10_000);
    // With the daemon stopped, the folder is made as a crash at another moment would leave it.
    mount.signal(Signal::SIGSTOP);
    interrupted(&mount, "mixed", &[2, 4]);
    interrupted(&mount, "old", &[]);
    interrupted(&mount, "new", &[2, 3, 4, 5]);
    Slot::of(&mount, "padded").set_flags(ACTIVE | PADDED, 10_000);
    OpenOptions::new().write(true).open(mount.backing("padded")).unwrap().set_len(12_288).unwrap();
    mount.signal(Signal::SIGKILL);
    mount.wait_gone();

    // Offline, first only looked at.
    let fsck =
        |arguments: &[&str]| swapfs(&[&["fsck", mount.swap.to_str().unwrap()], arguments].concat());
    let mut looked = fsck(&["--json"]);
    // A killed process lets go of its lock only when its transfers have ended.
    wait_until("the lock", || {
        let locked = complaint(&looked).contains("is in use");
        if locked {
            looked = fsck(&["--json"]);
        }
        !locked
    });
    assert_eq!(looked.status.code(), Some(1), "{looked:?}");
    let report: serde_json::Value = serde_json::from_slice(&looked.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let of = |name: &str| findings.iter().find(|finding| finding["path"] == name);
    assert_eq!(of("mixed").unwrap()["bad"][0]["damage"], "torn");
    assert_eq!(of("mixed").unwrap()["bad"][0]["offset"], 2 * 4096);
    assert_eq!(of("mixed").unwrap()["bad"][0]["length"], 4 * 4096);
    assert_eq!(of("padded").unwrap()["padding"], 2288);
    assert!(of("old").is_none() && of("new").is_none());

    is_done(&mount.mount(&format!("{OPTIONS} --replace")));
    let mixed = File::open(mount.at("mixed")).unwrap();
    let mut page = vec![0; 4096];
    for torn in 2..6 {
        assert_eq!(errno(mixed.read_at(&mut page, torn * 4096)), Errno::IO, "{torn}");
    }
    assert_eq!(swap_xattr(&mount.at("mixed"), "error"), "EUCLEAN");
    for whole in [0, 1, 6, 15] {
        mixed.read_exact_at(&mut page, whole * 4096).unwrap();
        same(&page, &pattern(whole * 4096, 4096));
    }
    is_pattern(&mount.at("old"), 65_536);
    is_pattern(&mount.at("padded"), 10_000);
    let mut expected = pattern(0, 65_536);
    expected[8192..24_576].copy_from_slice(&pattern(500_000, 65_536)[8192..24_576]);
    same(&fs::read(mount.at("new")).unwrap(), &expected);
    drop(mixed);
    rewrite(&mount.at("mixed"), 8192, 16_384);
    assert_eq!(xattr(&mount.at("mixed"), "user.swap.error"), Err(Errno::NODATA));
    mount.remount(OPTIONS);
    is_pattern(&mount.at("mixed"), 65_536);
    mount.unmount();
    is_done(&fsck(&[]));
}

/// "With checksum=writes, without checksums, what was being written is torn, and padding is cut."
#[test]
fn without_checksums_interrupted_writes_are_torn() {
    let options = "pool_size=16m,checksum=writes";
    let mount = Mount::new(options);
    for name in ["t", "untouched"] {
        stored(&mount, name, 10_000);
    }
    mount.signal(Signal::SIGSTOP);
    for name in ["t", "untouched"] {
        let slot = Slot::of(&mount, name);
        assert_eq!(slot.entry(0), (WRITTEN, WRITTEN), "written, without a sum");
        slot.set_entry(1, (WRITING, WRITTEN));
        slot.set_flags(ACTIVE, 0);
    }
    // The kernel stamps it as when the first byte of the write had come.
    let begun = File::options().write(true).open(mount.backing("t")).unwrap();
    begun.write_all_at(&pattern(0, 1), 0).unwrap();
    mount.signal(Signal::SIGKILL);
    mount.wait_gone();
    is_done(&mount.mount(&format!("{options} --replace")));
    let file = File::open(mount.at("t")).unwrap();
    let mut page = vec![0; 4096];
    file.read_exact_at(&mut page, 0).unwrap();
    same(&page, &pattern(0, 4096));
    assert_eq!(errno(file.read_at(&mut page, 4096)), Errno::IO);
    assert_eq!(swap_xattr(&mount.at("t"), "error"), "EUCLEAN");
    // No write of the daemon's has reached it: it has its time, which every write changes where times are fine.
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let version: Vec<u32> = kernel.split(['.', '-']).take(2).flat_map(str::parse).collect();
    if version >= vec![6, 13] {
        is_pattern(&mount.at("untouched"), 10_000);
    }
}

/// What others have changed is named, not only counted.
#[test]
fn fsck_names_what_others_have_changed() {
    let mount = Mount::new(OPTIONS);
    fs::create_dir(mount.at("folder")).unwrap();
    for name in ["longer", "folder/shorter", "new bytes", "same"] {
        stored(&mount, name, 50_000);
    }
    mount.unmount();
    fs::write(mount.backing("longer"), vec![1; 60_000]).unwrap();
    fs::write(mount.backing("folder/shorter"), "x").unwrap();
    fs::write(mount.backing("new bytes"), vec![2; 50_000]).unwrap();
    let folder = mount.swap.to_str().unwrap();
    for (arguments, counted) in [
        (&["fsck", folder][..], true),
        (&["fsck", folder, "--repair"], true),
        (&["fsck", folder], false),
    ] {
        let output = swapfs(arguments);
        is_done(&output);
        let text = String::from_utf8(output.stdout).unwrap();
        for name in ["longer", "folder/shorter", "'new bytes'"] {
            let line = format!("changed by others: {name}");
            assert_eq!(text.lines().any(|shown| shown == line), counted, "{arguments:?}: {text}");
        }
        assert_eq!(text.contains("3 changed by others"), counted, "{text}");
        assert!(!text.contains("same"), "{text}");
        let repaired =
            text.lines().last().unwrap() == "repaired: 3 records were removed; no file was changed";
        assert_eq!(repaired, arguments.len() == 3, "{text}");
    }
}

/// "swapfs fsck verifies a folder that is not mounted, lists what is damaged and exits 1; --repair accepts it as
/// it is; a mounted folder is refused."
#[test]
fn fsck_finds_and_repairs() {
    let mount = Mount::new(OPTIONS);
    stored(&mount, "good", 3 * MIB + 5);
    stored(&mount, "bad", 3 * MIB + 5);
    stored(&mount, "gone", 5000);
    let folder = mount.swap.to_str().unwrap();
    let refused = swapfs(&["fsck", folder]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(complaint(&refused).contains("is in use by swapfs pid"), "{}", complaint(&refused));
    rot(&mount, "bad", 2 * MIB + 4097);
    mount.unmount();
    fs::remove_file(mount.backing("gone")).unwrap();
    let found = swapfs(&["fsck", folder]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let text = String::from_utf8(found.stdout).unwrap();
    let row = text.lines().find(|line| line.contains("bad")).expect("it is listed");
    let words: Vec<&str> = row.split_whitespace().collect();
    assert_eq!(words[1..], ["damaged", "2052", "KiB", "4", "KiB"], "{text}");
    assert!(!text.contains("good") && text.contains("files that are gone"), "{text}");
    assert_eq!(String::from_utf8(found.stderr).unwrap(), "swapfs: 1 partition is damaged\n");
    let before = fs::read(mount.backing("bad")).unwrap();
    let repaired = swapfs(&["fsck", folder, "--repair"]);
    is_done(&repaired);
    let text = String::from_utf8(repaired.stdout).unwrap();
    let line = "repaired: 4 KiB in 1 damaged or torn range read as they are now, 1 record was removed; no file was changed";
    assert!(text.lines().any(|shown| shown == line), "{text}");
    same(&fs::read(mount.backing("bad")).unwrap(), &before);
    let clean = swapfs(&["fsck", folder, "--json"]);
    is_done(&clean);
    let report: serde_json::Value = serde_json::from_slice(&clean.stdout).unwrap();
    assert_eq!((&report["checked"], &report["gone"]), (&2.into(), &0.into()));
    is_done(&mount.mount(OPTIONS));
    same(&fs::read(mount.at("bad")).unwrap(), &before);
    is_pattern(&mount.at("good"), 3 * MIB + 5);
    let no_folder = swapfs(&["fsck", mount.scratch.path().to_str().unwrap()]);
    assert!(complaint(&no_folder).contains("is no swap folder"), "{no_folder:?}");
}

/// Holes are not read: a file of a tebibyte with little in it takes no longer than what is in it, whichever program made
/// it. What is wrong within is found.
#[test]
fn fsck_reads_no_holes() {
    const TIB: u64 = 1 << 40;
    let mount = Mount::new(OPTIONS);
    let places = [100, 5 * MIB - 3, 700 * MIB, TIB / 2 + 4096, TIB - 70_000];
    let file = open(&mount.at("sparse"));
    file.set_len(TIB).unwrap();
    for at in places {
        file.write_all_at(&pattern(at, 60_000), at).unwrap();
    }
    drop(file);
    open(&mount.at("empty")).set_len(TIB - 1).unwrap();
    stored(&mount, "dense", 3 * MIB + 5);
    let folder = mount.swap.to_str().unwrap();
    mount.unmount();
    let report = |expected: i32| {
        let output = swapfs(&["fsck", folder, "--json"]);
        assert_eq!(output.status.code(), Some(expected), "{output:?}");
        serde_json::from_slice::<serde_json::Value>(&output.stdout).unwrap()
    };
    let clean = report(0);
    assert!(clean["bytes"].as_u64().unwrap() < 8 * MIB, "{clean}");
    assert_eq!(clean["findings"], serde_json::json!([]), "{clean}");
    // A byte that flips, zeros in place of bytes, and a hole in place of others, with the time that the file had.
    let backing = File::options().write(true).open(mount.backing("sparse")).unwrap();
    let time = backing.metadata().unwrap().modified().unwrap();
    backing.write_all_at(b"\0", 700 * MIB + 5).unwrap();
    backing.write_all_at(&[0; 4096], TIB / 2 + 8192).unwrap();
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    fallocate(&backing, punch, 5 * MIB, 8192).unwrap();
    backing.set_modified(time).unwrap();
    drop(backing);
    let found = report(1);
    let bad = &found["findings"][0]["bad"];
    let offsets: Vec<u64> =
        bad.as_array().unwrap().iter().map(|bad| bad["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, [5 * MIB, 700 * MIB, TIB / 2 + 8192], "{found}");
}
