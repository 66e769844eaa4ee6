//! Promises that hold whatever the mode of a file, of a mount, or of a record file's bits.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use rustix::io::Errno;

use super::seen::Seen;
use super::tear::{Part, interrupt, is_of_one_moment, stop_amid, torn, torn_files, torn_parts};
use super::{
    Complaints, LENGTH, MODES, PAGE, PART, crash, everything, flip, holds, in_both_modes,
    in_each_of, is_unchanged, kill, long_ago, mounted, options, start, store,
};
use crate::bytes::open;
use crate::place::Mount;
use crate::requests::ask;
use crate::support::{MIB, Random, errno, pattern, swap_xattr, wait_until};

/// Whatever is on disk, a mount answers before this.
const TOO_LONG: Duration = Duration::from_secs(15);

/// "cp -p with an old time": a restored copy is read, over a torn file and over one that a kill interrupted.
#[test]
fn a_copy_restored_in_place_with_its_old_time_is_read() {
    let lengths = [100, 4096, 5000, MIB as usize + 777, LENGTH as usize, 4 << 20];
    let of = |kind: &str, length: usize| format!("{kind}-{length}");
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let torn = lengths.map(|length| of("torn", length));
        torn_files(&mount, mode, &torn);
        let parts: Vec<Part> =
            lengths.iter().map(|length| Part::usual(&mount, &of("cut-off", *length))).collect();
        interrupt(&mount, mode, &parts);
        for length in lengths {
            for kind in ["torn", "cut-off"] {
                let path = mount.backing(&of(kind, length));
                fs::write(&path, pattern(55_555, length)).unwrap();
                let file = File::options().write(true).open(&path).unwrap();
                file.set_modified(long_ago()).unwrap();
            }
        }
        let mut complaints = Complaints::default();
        start(&mount, &options(mode));
        for when in ["at once", "after another kill"] {
            for length in lengths {
                for name in [of("torn", length), of("cut-off", length)] {
                    let exact = holds(&mount.at(&name), &pattern(55_555, length));
                    complaints.note(&format!("{name}, {when}"), exact);
                }
            }
            crash(&mount, mode);
        }
        complaints.none();
    });
}

/// "A file with mode 0444 or 0000 is dealt with like any other", whoever changed its mode, and when.
#[test]
fn files_that_their_owner_cannot_open_are_dealt_with() {
    let bits = [0o444, 0o000, 0o200, 0o111, 0o4755];
    let closed = |path: &Path, bits| {
        chown(path, Some(1234), Some(1234)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(bits)).unwrap();
    };
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let names: Vec<String> = bits
            .iter()
            .flat_map(|bits| ["mount", "folder"].map(|by| format!("{bits:04o}-by-the-{by}")))
            .collect();
        let mut parts: Vec<Part> = names.iter().map(|name| Part::usual(&mount, name)).collect();
        for (name, bits) in names.iter().step_by(2).zip(bits) {
            closed(&mount.at(name), bits);
        }
        let whole = names.iter().map(|name| format!("whole-{name}")).collect::<Vec<_>>();
        for (name, bits) in whole.iter().zip(bits.iter().flat_map(|bits| [*bits; 2])) {
            store(&mount, name, 0, 5000);
            closed(&mount.at(name), bits);
        }
        let seen = torn_parts(&mount, mode, &parts);
        kill(&mount);
        for (name, bits) in names.iter().skip(1).step_by(2).zip(bits) {
            closed(&mount.backing(name), bits);
        }
        let mut complaints = Complaints::default();
        start(&mount, &options(mode));
        for when in ["at once", "after another kill"] {
            for (part, seen) in parts.iter_mut().zip(&seen) {
                let still = seen.is_still(&mount.at(&part.name));
                complaints.note(&format!("{}, {when}", part.name), still);
            }
            for name in &whole {
                let exact = holds(&mount.at(name), &pattern(0, 5000));
                complaints.note(&format!("{name}, {when}"), exact);
            }
            crash(&mount, mode);
        }
        complaints.none();
    });
}

/// swapfs's own folder as a kill left it.
struct Records {
    folder: PathBuf,
    files: Vec<(PathBuf, Vec<u8>)>,
}

impl Records {
    fn of(mount: &Mount) -> Self {
        let folder = mount.swap.join(".swapfs");
        let mut found = Vec::new();
        let mut folders = vec![folder.clone()];
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
                match entry.file_type().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false => found.push((entry.path(), fs::read(entry.path()).unwrap())),
                }
            }
        }
        Self { folder, files: found }
    }

    /// As it was, in place.
    fn restore(&self) {
        for (path, bytes) in &self.files {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
    }

    /// Those whose name below the folder begins so, with their bytes.
    fn named(&self, name: &str) -> Vec<(&PathBuf, &[u8])> {
        let files = self.files.iter().filter(|(path, _)| {
            path.strip_prefix(&self.folder).unwrap().to_str().unwrap().starts_with(name)
        });
        files.map(|(path, bytes)| (path, bytes.as_slice())).collect()
    }
}

/// How often something is tried that depends on what was being written at a kill.
const TRIES: usize = 10;

/// A folder with torn pages in two files, whole files, and a kill that nothing has recovered from.
fn with_torn_files(mode: &str) -> (Mount, Vec<Part>) {
    let mount = mounted(mode);
    store(&mount, "whole", 0, LENGTH);
    store(&mount, "odd", 0, 5000);
    let parts = vec![Part::usual(&mount, "t0"), Part::usual(&mount, "t1")];
    interrupt(&mount, mode, &parts);
    (mount, parts)
}

/// Whether what is read is what the swap folder holds, or an error.
fn is_honest(mount: &Mount, name: &str) -> Result<(), String> {
    let there = fs::read(mount.backing(name)).unwrap();
    let seen = Seen::look(&mount.at(name), 0..there.len() as u64);
    if seen.length != there.len() as u64 {
        return Err(format!("{name} has {} bytes, not {}", seen.length, there.len()));
    }
    for (page, bytes) in there.chunks(PAGE as usize).enumerate() {
        if seen.page(page as u64).is_some_and(|read| read != bytes) {
            return Err(format!("page {page} of {name} is not what the swap folder holds"));
        }
    }
    Ok(())
}

/// Flips one bit of record files after another, in each of so many places, and mounts what a crash left.
fn flipped_records(record: &str, places: u64) {
    in_both_modes(|mode| {
        // Whether anything was being written at the kill is chance.
        let mut tries = (0..TRIES).map(|_| {
            let (mount, parts) = with_torn_files(mode);
            let (records, before) = (Records::of(&mount), everything(&mount.swap));
            start(&mount, &options(mode));
            let look = |part: &Part| Seen::look(&mount.at(&part.name), part.range.clone());
            let seen: Vec<Seen> = parts.iter().map(look).collect();
            kill(&mount);
            (mount, parts, records, before, seen)
        });
        let torn = |seen: &[Seen]| seen.iter().any(|seen| !seen.torn().is_empty());
        let found = tries.find(|(.., seen)| torn(seen));
        let (mount, parts, records, before, seen) = found.expect("nothing was torn");
        let mut complaints = Complaints::default();
        let files = records.named(record);
        assert!(!files.is_empty(), "there is no {record}");
        for place in places_to_flip(&files, places) {
            let (path, at, flipped) = place;
            records.restore();
            let file = File::options().read(true).write(true).open(path).unwrap();
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ flipped], at).unwrap();
            drop(file);
            start(&mount, &options(mode));
            let case = format!("{flipped:#x} in byte {at} of {}", path.display());
            for (part, seen) in parts.iter().zip(&seen) {
                complaints.note(&case, seen.is_torn_still(&mount.at(&part.name)));
            }
            for name in ["t0", "t1", "whole", "odd"] {
                complaints.note(&case, is_honest(&mount, name));
            }
            kill(&mount);
            complaints.note(&case, is_unchanged(&mount.swap, &before));
        }
        complaints.none();
    });
}

/// Places in what is used of these files: their first bytes one by one, others by chance.
fn places_to_flip<'a>(files: &[(&'a PathBuf, &[u8])], count: u64) -> Vec<(&'a PathBuf, u64, u8)> {
    let mut random = Random::new(11);
    let mut used = Vec::new();
    for (path, bytes) in files {
        let set = bytes.iter().enumerate().filter(|(_, byte)| **byte != 0);
        used.extend(set.map(|(at, _)| (*path, at as u64)));
        // What is zero now may be a flag that is not set.
        used.extend((0..bytes.len().min(256) as u64).map(|at| (*path, at)));
    }
    // First as it was.
    let mut places = vec![(files[0].0, 0, 0)];
    for _ in 0..count {
        let (path, at) = used[random.below(used.len() as u64) as usize];
        places.push((path, at, 1 << random.below(8)));
    }
    let first = files[0].0;
    let length = files[0].1.len().min(12) as u64;
    places.extend((0..length).map(|at| (first, at, 1 << (at % 8))));
    places
}

/// "A flipped bit in any record file … loses no mark, cuts and changes nothing, serves no wrong byte": in `session`.
#[test]
fn a_flipped_bit_in_the_session_never_skips_a_recovery() {
    flipped_records("session", 12);
}

/// The same in `ledger`.
#[test]
fn a_flipped_bit_in_the_ledger_loses_no_mark() {
    flipped_records("ledger", 16);
}

/// The same in the sums.
#[test]
fn a_flipped_bit_in_the_sums_loses_no_mark() {
    flipped_records("sums", 16);
}

/// "discard: the partition reads as in the swap folder": no padding is shown, whatever was handed over before.
#[test]
fn a_discard_shows_no_padding() {
    let lengths = [1, 100, 4095, 4097, 5000, 65_537, 100_001, 2_000_003];
    in_each_of(&["writes", "crc32c", "none"], |mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        for length in lengths {
            for handed_over in [false, true] {
                let name = format!("t-{length}-{handed_over}");
                let file = open(&mount.at(&name));
                file.write_all_at(&pattern(0, length), 0).unwrap();
                if handed_over {
                    ask(&mount.at(&name), "swap_out");
                    wait_until("the swap-out", || swap_xattr(&mount.at(&name), "dirty") == "0");
                }
                ask(&mount.at(&name), "discard");
                wait_until("rest", || swap_xattr(&mount.at(&name), "wait") != "inflight");
                let size = file.metadata().unwrap().len() as usize;
                let there = fs::read(mount.backing(&name)).unwrap();
                let kept = size == length || (!handed_over && size < length);
                let told = format!("{size} bytes, in the swap folder {}", there.len());
                complaints.note(&name, (kept && there.len() == size).then_some(()).ok_or(told));
                let exact = size > there.len() || holds(&mount.at(&name), &there[..size]).is_ok();
                complaints.note(&name, exact.then_some(()).ok_or("other bytes".to_owned()));
            }
        }
        complaints.none();
    });
}

/// "discard after a write of odd length": of what fsync covered nothing is lost, and what was written since is gone.
#[test]
fn a_discard_of_an_odd_write_shows_what_was_synchronized() {
    in_each_of(&["writes", "crc32c", "none"], |mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        for (base, more) in [(5000, 100), (4096, 1), (100, 70_000), (70_001, 333), (8191, 1)] {
            let name = format!("t-{base}-{more}");
            let file = open(&mount.at(&name));
            file.write_all_at(&pattern(0, base), 0).unwrap();
            file.sync_all().unwrap();
            file.write_all_at(&pattern(base as u64, more), base as u64).unwrap();
            ask(&mount.at(&name), "discard");
            wait_until("rest", || swap_xattr(&mount.at(&name), "wait") != "inflight");
            let size = file.metadata().unwrap().len() as usize;
            let had = (base..=base + more).contains(&size);
            complaints.note(&name, had.then_some(()).ok_or(format!("{size} bytes")));
            // Blocks that went out before are there; others are holes.
            let kept = holds(&mount.at(&name), &fs::read(mount.backing(&name)).unwrap());
            complaints.note(&format!("{name}, as in the swap folder"), kept);
            kill(&mount);
            drop(file);
            start(&mount, &options(mode));
            let size = fs::metadata(mount.at(&name)).unwrap().len() as usize;
            let had = (base..=base + more).contains(&size);
            complaints.note(&format!("{name}, killed"), had.then_some(()).ok_or(format!("{size}")));
        }
        complaints.none();
    });
}

/// Mounts; a daemon that takes too long is killed.
fn started_in_time(mount: &Mount, mode: &str) {
    let (done, waits) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            if waits.recv_timeout(TOO_LONG) == Err(mpsc::RecvTimeoutError::Timeout) {
                eprintln!("the mount takes too long");
                daemon_of(mount).map(|pid| nix::sys::signal::kill(pid, Signal::SIGKILL));
            }
        });
        start(mount, &options(mode));
        drop(done);
    });
}

/// "mount of a 10 TiB sparse partition's folder after a crash": it does not go through all of it.
#[test]
fn ten_tebibytes_of_nothing_are_mounted_at_once() {
    const SPARSE: u64 = 10 << 40;
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let file = open(&mount.at("sparse"));
        file.set_len(SPARSE).unwrap();
        file.write_all_at(&pattern(0, MIB as usize), SPARSE - MIB).unwrap();
        file.sync_all().unwrap();
        drop(file);
        let part = Part { name: "sparse".to_owned(), range: SPARSE - MIB..SPARSE };
        let mut found = 0;
        for _ in 0..TRIES {
            if found > 0 {
                break;
            }
            interrupt(&mount, mode, std::slice::from_ref(&part));
            // The lock of the killed daemon is no part of it.
            std::thread::sleep(Duration::from_millis(300));
            started_in_time(&mount, mode);
            let seen = Seen::look(&mount.at("sparse"), part.range.clone());
            found += seen.torn().len();
            assert_eq!(seen.length, SPARSE);
            let first = Seen::look(&mount.at("sparse"), 0..PAGE);
            assert_eq!(first.page(0), Some(&[0; 4096][..]));
        }
        assert!(found > 0, "nothing was torn");
    });
}

/// "ro": a read-only mount after a crash shows exact sizes and refuses torn blocks, and leaves both to the next.
#[test]
fn a_read_only_mount_after_a_crash_is_exact_and_refuses_what_is_torn() {
    in_both_modes(|mode| {
        // Whether anything was being written at the kill is chance.
        assert!((0..TRIES).any(|_| read_only_after_a_crash(mode)), "nothing was torn");
    });
}

/// Returns whether anything was torn that no mount had seen before.
fn read_only_after_a_crash(mode: &str) -> bool {
    let mount = mounted(mode);
    let lengths = [1, 5000, 70_001, 2_000_003];
    let mut files = Vec::new();
    for length in lengths {
        let file = open(&mount.at(&format!("of-{length}")));
        file.write_all_at(&pattern(0, length), 0).unwrap();
        file.sync_all().unwrap();
        files.push(file);
    }
    let known = torn(&mount, mode, "known");
    let part = Part::usual(&mount, "interrupted");
    interrupt(&mount, mode, std::slice::from_ref(&part));
    drop(files);
    let before = everything(&mount.swap);
    let mut complaints = Complaints::default();
    let ro = format!("{},ro", options(mode));
    let mut interrupted: Option<Seen> = None;
    for (options, when) in [(&ro, "read-only"), (&ro, "read-only again"), (&options(mode), "later")]
    {
        start(&mount, options);
        for length in lengths {
            let name = format!("of-{length}");
            let exact = holds(&mount.at(&name), &pattern(0, length));
            complaints.note(&format!("{name}, {when}"), exact);
        }
        complaints.note(&format!("known, {when}"), known.is_still(&mount.at("known")));
        let path = mount.at("interrupted");
        match &interrupted {
            Some(seen) => complaints.note(&format!("new, {when}"), seen.is_still(&path)),
            None => interrupted = Some(Seen::look(&path, PART)),
        }
        kill(&mount);
        complaints.note(&format!("the folder, {when}"), is_unchanged(&mount.swap, &before));
    }
    complaints.none();
    !interrupted.unwrap().torn().is_empty()
}

/// "each page is wholly as it was at one of the moments since …, or reads EIO with user.swap.error=EUCLEAN": never a
/// mixture.
#[test]
fn a_page_that_was_rewritten_is_of_one_moment_or_refused() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let mut complaints = Complaints::default();
        for round in 0..4 {
            let part = Part::usual(&mount, &format!("t{round}"));
            let rounds = stop_amid(&mount, std::slice::from_ref(&part), 65_536, || {})[0];
            start(&mount, &options(mode));
            let case = format!("round {round}, {rounds} times rewritten");
            complaints.note(&case, is_of_one_moment(&mount, &part, rounds));
        }
        complaints.none();
    });
}

/// The dead mount cleared by --replace instead of umount: marks, sizes and bytes are the same.
#[test]
fn a_replaced_mount_keeps_the_marks() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        store(&mount, "whole", 0, 70_001);
        let seen = torn(&mount, mode, "t");
        let mut complaints = Complaints::default();
        for when in ["at once", "again"] {
            open(&mount.at("t")).set_modified(long_ago()).unwrap();
            assert!(mount.daemon().as_raw() > 0);
            mount.signal(Signal::SIGKILL);
            mount.wait_gone();
            start(&mount, &format!("{} --replace", options(mode)));
            complaints.note(when, seen.is_still(&mount.at("t")));
            complaints.note(when, holds(&mount.at("whole"), &pattern(0, 70_001)));
        }
        complaints.none();
    });
}

/// The daemon that a mount command has started, by its lock.
fn daemon_of(mount: &Mount) -> Option<Pid> {
    let state = fs::read(mount.swap.join(".swapfs/lock")).ok()?;
    let state: serde_json::Value =
        serde_json::Deserializer::from_slice(&state).into_iter().next()?.ok()?;
    Some(Pid::from_raw(i32::try_from(state["pid"].as_i64()?).ok()?))
}

/// Begins to mount, and kills the daemon after so long.
fn killed_while_it_starts(mount: &Mount, mode: &str, after: Duration) {
    let options = options(mode);
    let before = daemon_of(mount);
    let mut command = Command::new(env!("CARGO_BIN_EXE_swapfs"))
        .args(["mount", mount.swap.to_str().unwrap(), mount.mnt.to_str().unwrap()])
        .args(["-o", &options])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while daemon_of(mount) == before && matches!(command.try_wait(), Ok(None)) {
        std::thread::yield_now();
    }
    std::thread::sleep(after);
    if let Some(pid) = daemon_of(mount).filter(|pid| Some(*pid) != before) {
        let _ = nix::sys::signal::kill(pid, Signal::SIGKILL);
    }
    wait_until("the end of the command", || {
        // Whatever its threads wait for, a killed daemon ends by itself.
        let _ = umount2(&mount.mnt, MntFlags::MNT_DETACH);
        !matches!(command.try_wait(), Ok(None))
    });
}

/// "further kills": also in the midst of a recovery, at any moment of it.
#[test]
fn a_recovery_that_is_killed_loses_no_mark_and_changes_nothing() {
    in_both_modes(|mode| {
        let mount = mounted(mode);
        let known = torn(&mount, mode, "known");
        let part = Part::usual(&mount, "interrupted");
        interrupt(&mount, mode, std::slice::from_ref(&part));
        let (records, before) = (Records::of(&mount), everything(&mount.swap));
        start(&mount, &options(mode));
        let interrupted = Seen::look(&mount.at("interrupted"), PART);
        kill(&mount);
        records.restore();
        let mut complaints = Complaints::default();
        for round in 0..12_u64 {
            let after = Duration::from_micros(round * round * 200);
            killed_while_it_starts(&mount, mode, after);
            let case = format!("killed after {after:?}");
            complaints.note(&case, is_unchanged(&mount.swap, &before));
            if round % 4 == 3 {
                start(&mount, &options(mode));
                complaints.note(&case, known.is_torn_still(&mount.at("known")));
                complaints.note(&case, interrupted.is_torn_still(&mount.at("interrupted")));
                kill(&mount);
                if round % 8 == 3 {
                    records.restore();
                }
            }
        }
        complaints.none();
    });
}

/// "bits flipped … are never read" after a torn block was found, in the same file and in others.
#[test]
fn torn_pages_cost_no_checksum() {
    in_each_of(&MODES[1..], |mode| {
        let mount = mounted(mode);
        store(&mount, "other", 0, LENGTH);
        torn(&mount, mode, "t");
        kill(&mount);
        for name in ["t", "other"] {
            flip(&mount.backing(name), 5000);
        }
        start(&mount, &options(mode));
        let mut complaints = Complaints::default();
        for name in ["t", "other"] {
            let file = File::open(mount.at(name)).unwrap();
            let noticed = errno_of(file.read_at(&mut [0; 4096], 4096)) == Some(Errno::IO);
            complaints.note(name, noticed.then_some(()).ok_or("read".to_owned()));
            let whole = file.read_at(&mut [0; 4096], 0).is_ok();
            complaints.note(name, whole.then_some(()).ok_or("refused".to_owned()));
        }
        complaints.none();
    });
}

fn errno_of(result: std::io::Result<usize>) -> Option<Errno> {
    result.is_err().then(|| errno(result))
}
