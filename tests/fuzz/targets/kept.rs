//! What a swap folder's `.swapfs` holds, and folders that look like mounts: whatever is in them, they are read, or refused,
//! in good time, and no partition is changed.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::fs::{AtFlags, StatxFlags};
use swapfs::daemon::{MountStats, read_state};
use swapfs::ledger::fsck::{self, Listener};
use swapfs::metrics::Wear;
use swapfs::mount::{FS_TYPE, parse_mount_table, read_control, topmost};

use super::world::scratch_folder;

/// Bytes of a slot in the ledger, and of its header, whose last four are its crc.
const SLOT: usize = 256;
const HEADER: usize = 64;

/// A partition of more pages than a slot has entries for.
const LENGTH: usize = 80_000;

/// A swap folder with one partition.
struct Kept {
    folder: PathBuf,
    partition: PathBuf,
    generation: u64,
}

impl Kept {
    fn get(name: &'static str, cell: &'static OnceLock<Kept>) -> &'static Kept {
        cell.get_or_init(|| {
            let folder = scratch_folder(name);
            let partition = folder.join("partition");
            fs::write(&partition, vec![b'p'; LENGTH]).unwrap();
            let generation = generation(&File::open(&partition).unwrap());
            Kept { folder, partition, generation }
        })
    }

    /// Makes `.swapfs` anew, with these files.
    fn keep(&self, files: &[(&str, &[u8])]) -> File {
        let control = self.folder.join(".swapfs");
        let _ = fs::remove_dir_all(&control);
        for folder in [".swapfs", ".swapfs/sums", ".swapfs/sums/00"] {
            let folder = self.folder.join(folder);
            fs::create_dir(&folder).unwrap();
            fs::set_permissions(folder, Permissions::from_mode(0o700)).unwrap();
        }
        for (name, content) in files {
            let path = control.join(name);
            fs::write(&path, content).unwrap();
            fs::set_permissions(path, Permissions::from_mode(0o600)).unwrap();
        }
        File::open(control).unwrap()
    }

    /// Verifies the folder, then repairs it and verifies it again: the partition stays as it is.
    fn check(&self, control: &File) {
        let root: OwnedFd = File::open(&self.folder).unwrap().into();
        for repair in [false, true, false] {
            let checked = fsck::check(root.as_fd(), control.as_fd(), repair, &mut Silent);
            if let Ok(report) = &checked {
                let report = report.as_ref().expect("nobody stops it");
                assert!(report.checked + report.unknown + report.changed <= 1, "{report:?}");
                let bad = report.findings.iter().flat_map(|finding| &finding.bad);
                assert!(bad.into_iter().all(|bad| bad.length > 0 && bad.offset % 4096 == 0));
            }
        }
        assert!(fs::read(&self.partition).unwrap() == vec![b'p'; LENGTH], "it was changed");
    }
}

/// Tells the file from others that had its number, as the ledger does.
fn generation(file: &File) -> u64 {
    let mask = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let status = rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, mask).unwrap();
    let handle = swapfs::sys::name_to_handle_at(file).ok();
    swapfs::sys::generation(handle.as_ref(), &status)
}

struct Silent;

impl Listener for Silent {
    fn begin(&mut self, _bytes: u64) {}

    fn read(&mut self, _path: &Path, _bytes: u64) {}

    fn is_stopped(&mut self) -> bool {
        false
    }
}

/// The table of records and a slot's file of sums. The first byte says what is put right of each slot, so that more than its
/// first bytes is looked at: whose it is, what the file is like, its crc. The second is the share that is sums.
pub(crate) fn ledger(input: &[u8]) {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    let kept = Kept::get("ledger", &KEPT);
    let [right, share, bytes @ ..] = input else { return };
    let cut = bytes.len() * usize::from(*share) / 256;
    let (sums, table) = bytes.split_at(cut);
    let mut table = table.to_vec();
    let file = fs::metadata(&kept.partition).unwrap();
    for slot in table.chunks_mut(SLOT).filter(|slot| slot.len() >= HEADER) {
        let mut put = |at: usize, word: u64| slot[at..at + 8].copy_from_slice(&word.to_le_bytes());
        if right & 1 != 0 {
            put(8, file.ino());
            put(16, kept.generation);
        }
        if right & 2 != 0 {
            put(24, file.len());
            put(32, (file.mtime() * 1_000_000_000 + file.mtime_nsec()).cast_unsigned());
            put(40, (file.ctime() * 1_000_000_000 + file.ctime_nsec()).cast_unsigned());
        }
        if right & 4 != 0 {
            slot[..4].copy_from_slice(if right & 8 != 0 { b"SWL1" } else { b"SWL2" });
            let sum = crc(&slot[..HEADER - 4]);
            slot[HEADER - 4..HEADER].copy_from_slice(&sum.to_le_bytes());
        }
    }
    let session: &[u8] = if right & 16 != 0 { SESSION } else { b"" };
    let control =
        kept.keep(&[("ledger", &table), ("session", session), ("sums/00/00000000", sums)]);
    kept.check(&control);
}

/// A session in the first format, which has no sum of its own, and no end.
const SESSION: &[u8] =
    br#"{"boot_id":"x","start_ns":5,"end_ns":null,"block_size":4096,"earlier":[[1,2]]}"#;

/// The session's file, beside one record.
pub(crate) fn sessions(input: &[u8]) {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    let kept = Kept::get("sessions", &KEPT);
    let file = fs::metadata(&kept.partition).unwrap();
    let mut slot = vec![0; SLOT];
    slot[..4].copy_from_slice(b"SWL1");
    slot[4..8].copy_from_slice(&1_u32.to_le_bytes());
    slot[8..16].copy_from_slice(&file.ino().to_le_bytes());
    slot[16..24].copy_from_slice(&kept.generation.to_le_bytes());
    slot[24..32].copy_from_slice(&file.len().to_le_bytes());
    let sum = crc(&slot[..HEADER - 4]);
    slot[HEADER - 4..HEADER].copy_from_slice(&sum.to_le_bytes());
    let control = kept.keep(&[("ledger", &slot), ("session", input)]);
    kept.check(&control);
}

/// What a daemon wrote into its lock file.
pub(crate) fn state(input: &[u8]) {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    let kept = Kept::get("state", &KEPT);
    kept.keep(&[("lock", input)]);
    if let Some(state) = read_state(&kept.folder) {
        let again = serde_json::to_vec(&state).unwrap();
        kept.keep(&[("lock", &again)]);
        assert_eq!(read_state(&kept.folder), Some(state));
    }
}

/// What was written by day.
pub(crate) fn wear(input: &[u8]) {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    let kept = Kept::get("wear", &KEPT);
    let open = |control: File| Wear::open(control.into());
    let wear = open(kept.keep(&[("wear.json", input)]));
    let (before, _) = wear.total_and_today();
    wear.note(7);
    wear.save();
    let again = open(File::open(kept.folder.join(".swapfs")).unwrap());
    assert_eq!(again.total_and_today().0, before.saturating_add(7));
    assert!(again.days(usize::MAX).len() <= 366);
}

/// A folder with whatever a mount has, as somebody else would make it: nothing of it is read. The table of mounts is the
/// rest of the input: whoever is believed is a swapfs mount of root or of this user.
pub(crate) fn pretended(input: &[u8]) {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| scratch_folder("pretended"));
    let (kinds, rest) = input.split_at(input.len().min(6));
    let control = folder.join(".swapfs");
    let _ = fs::remove_file(&control).or_else(|_| fs::remove_dir_all(&control));
    make(&control, kinds.first().copied().unwrap_or(0), rest);
    let names = ["stats.json", "metrics", "config.json", "partitions.json", "accesslog"];
    for (name, kind) in names.iter().zip(kinds.iter().skip(1)) {
        if control.is_dir() && fs::symlink_metadata(&control).unwrap().is_dir() {
            make(&control.join(name), *kind, rest);
        }
    }
    for name in names {
        assert!(read_control(folder, name).is_err(), "{name} is believed");
    }
    assert!(MountStats::read(folder).is_none());
    if let Some(stats) = MountStats::parse(rest) {
        let _ = (stats.pid(), stats.swap_folder(), stats.pool("dirty"), stats.failed_partitions());
    }
    let mounts = parse_mount_table(rest);
    let me = rustix::process::geteuid().as_raw();
    for mount in &mounts {
        let top = topmost(&mounts, &mount.mountpoint).expect("there is this one");
        assert_eq!(top.mountpoint, mount.mountpoint);
        if mount.check().is_ok() {
            assert_eq!(mount.fs_type, FS_TYPE);
            assert!(mount.owner == Some(0) || mount.owner == Some(me), "{mount:?}");
        }
    }
}

/// Something under this name: what it is, the byte says.
fn make(path: &Path, kind: u8, content: &[u8]) {
    let made = match kind % 6 {
        0 => fs::create_dir(path),
        1 => fs::write(path, content),
        2 => symlink("/etc/passwd", path),
        3 => symlink("/", path),
        4 => nix::unistd::mkfifo(path, nix::sys::stat::Mode::S_IRWXU).map_err(io::Error::from),
        _ => symlink(path, path),
    };
    made.unwrap();
}

fn crc(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}
