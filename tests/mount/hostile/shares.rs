//! Shares: whatever one user takes of what is bounded, others and root find theirs.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use rustix::io::Errno;

use crate::place::{Mount, is_done, swapfs};
use crate::requests::{ask, request, settled};
use crate::support::{
    KIB, MIB, as_user, is_pattern, is_root, pattern, same, swap_xattr, user, wait_until,
    write_pattern, xattr,
};

const ATTACKER: crate::support::User = user(1234);
const OTHER: crate::support::User = user(1235);

/// Descriptors of the daemon in these tests: one user may have a quarter of them.
const DESCRIPTORS: usize = 4096;

/// A mount whose daemon has few descriptors, with a folder for each of the users; `None` where not run as root.
fn shared(options: &str) -> Option<Mount> {
    if !is_root() {
        return None;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    fs::set_permissions(&mount.swap, fs::Permissions::from_mode(0o1777)).unwrap();
    let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
    is_done(&mount.mount_by(&["prlimit", &limit], &format!("{options},allow_other")));
    Some(mount)
}

fn daemons_descriptors(mount: &Mount) -> usize {
    fs::read_dir(format!("/proc/{}/fd", mount.daemon())).unwrap().count()
}

/// Bytes of memory that the daemon has now.
fn daemons_memory(mount: &Mount) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", mount.daemon())).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * KIB
}

fn code(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(0)
}

/// Everything that others do, by another user and by root.
#[track_caller]
fn others_work(mount: &Mount, round: &str) {
    let work = |who: &str| {
        let name = format!("{who}-{round}");
        let file = File::options().create_new(true).read(true).write(true).open(&name).unwrap();
        file.write_all_at(&pattern(7, 10_000), 0).unwrap();
        file.sync_all().unwrap();
        drop(file);
        same(&fs::read(&name).unwrap(), &pattern(7, 10_000));
        assert!(fs::read_dir(".").unwrap().count() > 0);
        fs::create_dir(format!("{name}-dir")).unwrap();
        assert_eq!(fs::read_dir(format!("{name}-dir")).unwrap().count(), 0);
        fs::rename(&name, format!("{name}-dir/moved")).unwrap();
        fs::remove_dir_all(format!("{name}-dir")).unwrap();
        assert!(fs::read_to_string(".swapfs/stats.json").unwrap().contains("\"pool\""));
    };
    as_user(&mount.mnt, OTHER, || work("other"));
    as_user(&mount.mnt, user(0), || work("root"));
    is_done(&swapfs(&["status", mount.mnt.to_str().unwrap()]));
    is_done(&swapfs(&["stats", mount.mnt.to_str().unwrap(), "--count", "1", "--interval", "1"]));
}

/// Opens as often as it can, `attempts` times; what refuses is one's own share.
fn take(attempts: usize, open: impl Fn(usize) -> std::io::Result<File>) -> Vec<File> {
    let mut taken = Vec::new();
    for number in 0..attempts {
        match open(number) {
            Ok(file) => taken.push(file),
            Err(error) => assert_eq!(code(&error), libc::EMFILE, "{number}: {error}"),
        }
    }
    taken
}

fn create(name: &str) -> std::io::Result<File> {
    File::options().create_new(true).read(true).write(true).open(name)
}

/// "20,000 opens of files": the attacker has a quarter of the descriptors, two for each file, and nothing is left of
/// the names that were refused. When he lets go, he has them again.
#[test]
fn whoever_opens_twenty_thousand_files_leaves_others_theirs() {
    let Some(mount) = shared("pool_size=16m,open_swap_in=none") else { return };
    for round in ["created", "again"] {
        let taken = as_user(&mount.mnt, ATTACKER, || {
            take(20_000, |number| create(&format!("{round}-{number}")))
        });
        assert_eq!(taken.len(), DESCRIPTORS / 8, "{round}");
        others_work(&mount, round);
        let names = fs::read_dir(&mount.mnt).unwrap().filter(|entry| {
            entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(round)
        });
        assert_eq!(names.count(), taken.len(), "nothing is half made");
        // What he has open works on.
        taken[3].write_all_at(b"mine", 0).unwrap();
        taken[3].sync_all().unwrap();
    }
    // Those that are there are opened no less.
    let taken = as_user(&mount.mnt, ATTACKER, || {
        let there = DESCRIPTORS / 8;
        take(5000, |number| File::open(format!("created-{}", number % there)))
    });
    assert_eq!(taken.len(), 5000, "any number of handles of what one has open");
    others_work(&mount, "opened");
}

/// Users who do it together leave others less, but something; and root all.
#[test]
fn users_who_collude_leave_others_something() {
    let Some(mount) = shared("pool_size=16m,open_swap_in=none") else { return };
    let mut taken = Vec::new();
    for uid in 2000..2004 {
        let files = as_user(&mount.mnt, user(uid), || {
            take(2000, |number| create(&format!("{uid}-{number}")))
        });
        assert!(!files.is_empty(), "user {uid}");
        taken.push(files);
    }
    others_work(&mount, "collusion");
    let roots: Vec<File> = (0..400)
        .map(|number| create(mount.at(&format!("r-{number}")).to_str().unwrap()).unwrap())
        .collect();
    drop((roots, taken));
    others_work(&mount, "afterwards");
}

fn open_directory(path: &str) -> std::io::Result<File> {
    File::options().read(true).custom_flags(libc::O_DIRECTORY).open(path)
}

/// "or directories": one descriptor for each, however often it is open.
#[test]
fn whoever_opens_twenty_thousand_directories_leaves_others_theirs() {
    let Some(mount) = shared("pool_size=16m") else { return };
    let before = daemons_descriptors(&mount);
    let one = as_user(&mount.mnt, ATTACKER, || {
        fs::create_dir("one").unwrap();
        (0..300).for_each(|number| fs::write(format!("one/{number}"), "").unwrap());
        take(8000, |_| open_directory("one"))
    });
    assert_eq!(one.len(), 8000, "any number of handles");
    assert!(daemons_descriptors(&mount) < before + 1000, "{}", daemons_descriptors(&mount));
    // Each is read for itself, in turns with the others.
    let mut readers: Vec<_> =
        one[..50].iter().map(|file| rustix::fs::Dir::read_from(file).unwrap()).collect();
    let mut names = vec![std::collections::BTreeSet::new(); readers.len()];
    loop {
        let mut found = 0;
        for (reader, names) in readers.iter_mut().zip(&mut names) {
            for _ in 0..7 {
                let Some(entry) = reader.next() else { break };
                assert!(names.insert(entry.unwrap().file_name().to_owned()), "none comes twice");
                found += 1;
            }
        }
        if found == 0 {
            break;
        }
    }
    assert!(names.iter().all(|names| names.len() == 302), "each finds all");
    drop((readers, one));
    let many = as_user(&mount.mnt, ATTACKER, || {
        let count = DESCRIPTORS / 2;
        (0..count).for_each(|number| fs::create_dir(format!("d-{number}")).unwrap());
        take(20_000, |number| open_directory(&format!("d-{}", number % count)))
    });
    let last = many.len();
    assert!(last >= DESCRIPTORS / 4, "{last}");
    let refused =
        as_user(&mount.mnt, ATTACKER, || open_directory(&format!("d-{}", DESCRIPTORS / 2 - 1)));
    assert_eq!(code(&refused.unwrap_err()), libc::EMFILE);
    others_work(&mount, "directories");
}

/// "of .swapfs control files": what each held when it was opened is remembered for a few.
#[test]
fn whoever_opens_twenty_thousand_control_files_leaves_others_theirs() {
    let Some(mount) = shared("pool_size=16m") else { return };
    let before = daemons_memory(&mount);
    let taken = as_user(&mount.mnt, ATTACKER, || {
        let names = ["stats.json", "metrics", "config.json"];
        take(20_000, |number| File::open(format!(".swapfs/{}", names[number % 3])))
    });
    assert!((1..100).contains(&taken.len()), "{}", taken.len());
    let more = daemons_memory(&mount).saturating_sub(before);
    assert!(more < 24 * MIB, "{} KiB more", more / KIB);
    others_work(&mount, "control");
    let mut text = vec![0; 4096];
    assert!(taken[0].read_at(&mut text, 0).unwrap() > 0, "what is open is read");
    drop(taken);
    as_user(&mount.mnt, ATTACKER, || {
        wait_until("the share's return", || fs::read(".swapfs/metrics").is_ok());
    });
}

/// Removed directories and files that somebody still refers to take a descriptor each, within a share; what is open is
/// not forgotten for that.
#[test]
fn whoever_refers_to_what_is_removed_leaves_others_theirs() {
    let Some(mount) = shared("pool_size=16m,open_swap_in=none") else { return };
    let before = daemons_descriptors(&mount);
    let place = |name: &str| File::options().read(true).custom_flags(libc::O_PATH).open(name);
    let (kept, open) = as_user(&mount.mnt, ATTACKER, || {
        let open = create("open").unwrap();
        open.write_all_at(b"still here", 0).unwrap();
        let mut kept = Vec::new();
        for number in 0..3000 {
            let name = format!("gone-{number}");
            if number % 2 == 0 {
                fs::create_dir(&name).unwrap();
                kept.push(place(&name).unwrap());
                fs::remove_dir(&name).unwrap();
            } else {
                fs::write(&name, "").unwrap();
                kept.push(place(&name).unwrap());
                fs::remove_file(&name).unwrap();
            }
        }
        fs::remove_file("open").unwrap();
        (kept, open)
    });
    let more = daemons_descriptors(&mount).saturating_sub(before);
    // Beside the share: names that are remembered, and partitions that were closed just now.
    assert!(more < DESCRIPTORS / 2, "{more}");
    others_work(&mount, "removed");
    assert_eq!(open.metadata().unwrap().len(), 10);
    let mut found = [0; 10];
    open.read_exact_at(&mut found, 0).unwrap();
    assert_eq!(&found, b"still here");
    drop(kept);
    others_work(&mount, "let go");
}

/// Polling asks the daemon nothing, however many handles do it: every file is ready, and stays so.
#[test]
fn whoever_polls_with_a_thousand_handles_asks_the_daemon_nothing() {
    let Some(mount) = shared("pool_size=32m,open_swap_in=none") else { return };
    as_user(&mount.mnt, ATTACKER, || {
        write_pattern(&create("file").unwrap(), 4 * MIB, 1 << 20);
    });
    let handles = as_user(&mount.mnt, ATTACKER, || take(1000, |_| File::open("file")));
    let ready = |events: PollFlags| {
        let mut set: Vec<PollFd> = handles
            .iter()
            .map(|file| PollFd::new(std::os::fd::AsFd::as_fd(file), events))
            .collect();
        nix::poll::poll(&mut set, PollTimeout::from(100_u16)).unwrap();
        set.iter().filter(|one| one.revents() == Some(PollFlags::POLLIN)).count()
    };
    assert_eq!(ready(PollFlags::POLLIN | PollFlags::POLLPRI), handles.len());
    assert_eq!(ready(PollFlags::POLLPRI), 0);
    assert!(crate::polls::polls_asked(&mount) <= 1);
    others_work(&mount, "polls");
}

/// Locks are the kernel's: thousands of them are nothing to the daemon.
#[test]
fn whoever_takes_thousands_of_locks_leaves_others_theirs() {
    let Some(mount) = shared("pool_size=16m") else { return };
    let before = daemons_memory(&mount);
    let lock = |file: &File, start: i64| {
        let mut lock = libc::flock {
            l_type: libc::F_WRLCK as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: start,
            l_len: 1,
            l_pid: 0,
        };
        // SAFETY: an open descriptor, and a lock that outlives the call.
        let taken = unsafe {
            libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(file), libc::F_OFD_SETLK, &raw mut lock)
        };
        assert_eq!(taken, 0);
    };
    let file = as_user(&mount.mnt, ATTACKER, || {
        let file = create("locked").unwrap();
        (0..5000).for_each(|number| lock(&file, 2 * number));
        file
    });
    as_user(&mount.mnt, OTHER, || {
        let file = create("others").unwrap();
        (0..10).for_each(|number| lock(&file, 2 * number));
        assert!(File::open("others").unwrap().try_lock_shared().is_ok());
    });
    others_work(&mount, "locks");
    let more = daemons_memory(&mount).saturating_sub(before);
    assert!(more < 16 * MIB, "{} KiB more", more / KIB);
    drop(file);
}

/// What one user has swapped in does not take the pool from others: beyond a share it gives way.
#[test]
fn whoever_swaps_in_the_whole_pool_leaves_others_room() {
    let Some(mount) = shared("pool_size=64m,open_swap_in=none,read_ahead=1m") else { return };
    let make = |name: &str, length: u64| {
        let file = create(name).unwrap();
        write_pattern(&file, length, 1 << 20);
        file.sync_all().unwrap();
        drop(file);
        ask(Path::new(name), "release");
        settled(Path::new(name));
    };
    let resident = |name: &str| swap_xattr(&mount.at(name), "resident").parse::<u64>().unwrap();
    as_user(&mount.mnt, ATTACKER, || {
        make("one", 30 * MIB);
        make("two", 30 * MIB);
        for name in ["one", "two"] {
            ask(Path::new(name), "swap_in");
            settled(Path::new(name));
        }
    });
    assert_eq!(resident("one") + resident("two"), 60 * MIB, "while nobody else needs it");
    as_user(&mount.mnt, OTHER, || {
        make("theirs", 36 * MIB);
        is_pattern(Path::new("theirs"), 36 * MIB);
    });
    assert_eq!(resident("theirs"), 36 * MIB, "others' reads find room");
    let stays = resident("one") + resident("two");
    assert!((20 * MIB..=28 * MIB).contains(&stays), "{} MiB", stays / MIB);
    // Small ones, many to a buffer, are no other way.
    as_user(&mount.mnt, ATTACKER, || {
        fs::create_dir("small").unwrap();
        for number in 0..400 {
            fs::write(format!("small/{number}"), pattern(number, 40_000)).unwrap();
        }
        ask(Path::new("small"), "swap_in");
    });
    wait_until("all to come in", || swap_xattr(&mount.mnt, "wait") == "idle");
    as_user(&mount.mnt, OTHER, || is_pattern(Path::new("theirs"), 36 * MIB));
    // Released, the share is there again; and root's has no bound.
    as_user(&mount.mnt, ATTACKER, || {
        for name in ["one", "two", "small"] {
            ask(Path::new(name), "release");
        }
    });
    wait_until("the release", || resident("one") + resident("two") == 0);
    ask(&mount.at("one"), "swap_in");
    ask(&mount.at("two"), "swap_in");
    wait_until("root's swap-in", || resident("one") + resident("two") == 60 * MIB);
    as_user(&mount.mnt, OTHER, || is_pattern(Path::new("theirs"), 36 * MIB));
    let stays = resident("one") + resident("two");
    assert!(stays > 48 * MIB, "{} MiB", stays / MIB);
}

/// A folder that takes long to walk.
fn large_folder(name: &str, folders: usize) {
    fs::create_dir(name).unwrap();
    for folder in 0..folders {
        fs::create_dir(format!("{name}/{folder}")).unwrap();
        (0..100).for_each(|number| {
            std::os::unix::fs::symlink("x", format!("{name}/{folder}/{number}")).unwrap();
        });
    }
}

/// "64 walks by the attacker, and everybody's request fails": his own third one does, with EBUSY; others' and root's
/// never.
#[test]
fn whoever_asks_for_folders_without_end_holds_up_himself() {
    let Some(mount) = shared("pool_size=16m,open_swap_in=none") else { return };
    as_user(&mount.mnt, ATTACKER, || large_folder("his", 60));
    as_user(&mount.mnt, OTHER, || {
        fs::create_dir("theirs").unwrap();
        fs::write("theirs/file", "x").unwrap();
    });
    let end = std::sync::atomic::AtomicBool::new(false);
    let (mount, going) = (&mount, || !end.load(std::sync::atomic::Ordering::SeqCst));
    std::thread::scope(|scope| {
        let attackers: Vec<_> = (0..8)
            .map(|thread| {
                scope.spawn(move || {
                    as_user(&mount.mnt, ATTACKER, || {
                        let (mut done, mut refused) = (0, 0);
                        while going() {
                            let verb = ["swap_in", "swap_out", "release"][thread % 3];
                            // Whole, and in part: each is a request of its own.
                            let folder = match thread {
                                0..3 => "his".to_owned(),
                                _ => format!("his/{}", (done + refused) % 60),
                            };
                            match request(Path::new(&folder), verb) {
                                Ok(()) => done += 1,
                                Err(errno) => {
                                    assert_eq!(errno, Errno::BUSY, "{folder} {verb}");
                                    refused += 1;
                                }
                            }
                        }
                        (done, refused)
                    })
                })
            })
            .collect();
        for _ in 0..20 {
            as_user(&mount.mnt, OTHER, || {
                for verb in ["swap_out", "swap_in", "release"] {
                    // One that was answered may still be going: two at a time.
                    let asked = || request(Path::new("theirs"), verb);
                    wait_until("one's own to end", || asked() != Err(Errno::BUSY));
                    assert_eq!(swap_xattr(Path::new("theirs/file"), "size"), "1");
                }
            });
            for verb in ["swap_out", "swap_in", "release"] {
                assert_eq!(request(&mount.at("theirs"), verb), Ok(()));
                assert_eq!(request(&mount.mnt, verb), Ok(()));
            }
        }
        others_work(mount, "walks");
        end.store(true, std::sync::atomic::Ordering::SeqCst);
        let counts: Vec<(usize, usize)> =
            attackers.into_iter().map(|attacker| attacker.join().unwrap()).collect();
        let (done, refused) = counts.iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1));
        assert!(done > 0 && refused > 0, "{counts:?}");
    });
}

/// What is asked twice is done for both: what the second one means may have been passed by the first one's walk.
#[test]
fn equal_requests_are_joined_and_miss_nothing() {
    let Some(mount) = shared("pool_size=64m,open_swap_in=none") else { return };
    as_user(&mount.mnt, ATTACKER, || {
        large_folder("his", 30);
        let files: Vec<String> = (0..30).map(|folder| format!("his/{folder}/file")).collect();
        for round in 0..5 {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let _ = request(Path::new("his"), "release");
                });
                for file in &files {
                    fs::write(file, pattern(round, 10_000)).unwrap();
                }
                // While the first one goes, or after it.
                wait_until("no more than two", || {
                    request(Path::new("his"), "release") != Err(Errno::BUSY)
                });
            });
            for file in &files {
                let path = Path::new(file);
                wait_until(file, || xattr(path, "user.swap.resident") == Ok(b"0".to_vec()));
            }
        }
    });
}

/// Names that somebody has looked at are remembered until there are too many: then the kernel is asked to forget some,
/// and they are looked up again.
#[test]
fn whoever_looks_at_names_without_end_does_not_fill_the_memory() {
    const NAMES: usize = 140_000;
    let Some(mount) = shared("pool_size=16m") else { return };
    // Beneath, as somebody would whose folder is full already.
    for number in 0..NAMES {
        let folder = mount.backing(&format!("{}", number / 10_000));
        if number % 10_000 == 0 {
            fs::create_dir(&folder).unwrap();
        }
        std::os::unix::fs::symlink("x", folder.join(format!("{number}"))).unwrap();
    }
    let names = || {
        let stats = fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
        stats["fuse"]["names"].as_u64().unwrap()
    };
    as_user(&mount.mnt, ATTACKER, || {
        let mut seen = 0;
        for folder in 0..NAMES / 10_000 {
            for entry in fs::read_dir(format!("{folder}")).unwrap() {
                assert!(entry.unwrap().metadata().unwrap().is_symlink());
                seen += 1;
            }
        }
        assert_eq!(seen, NAMES);
    });
    wait_until("the kernel to forget", || names() <= 1 << 17);
    assert!(names() > 1 << 16, "not all of them");
    others_work(&mount, "names");
    for number in (0..NAMES).step_by(997) {
        let path = mount.at(&format!("{}/{number}", number / 10_000));
        assert_eq!(fs::read_link(path).unwrap(), Path::new("x"));
    }
}
