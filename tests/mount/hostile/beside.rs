//! One user does the worst that shares are there for, all at once; beside him another one works, and root looks after
//! the mount.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::place::{Mount, is_done, swapfs};
use crate::requests::request;
use crate::support::{MIB, User, as_user, is_root, pattern, same, user, write_pattern};

const ATTACKER: User = user(1234);
const OTHER: User = user(1235);

/// Below that nobody feels a difference, and a machine with other things to do makes as much.
const FLOOR: Duration = Duration::from_millis(2);

/// How often a call may take as long as undisturbed, at the 99th percentile.
const TIMES_MAX: u32 = 10;

/// The times of calls, by what they are.
#[derive(Default)]
struct Times(BTreeMap<&'static str, Vec<Duration>>);

impl Times {
    /// Makes a call, which must not fail.
    #[track_caller]
    fn of<T, E: std::fmt::Debug>(
        &mut self, what: &'static str, call: impl FnOnce() -> Result<T, E>,
    ) -> T {
        let start = Instant::now();
        let result = call();
        self.0.entry(what).or_default().push(start.elapsed());
        result.unwrap_or_else(|error| panic!("{what}: {error:?}"))
    }

    fn percentile(&self, what: &str, percent: usize) -> Duration {
        let mut times = self.0[what].clone();
        times.sort_unstable();
        times[(times.len() * percent / 100).min(times.len() - 1)]
    }
}

/// What the other user does: files, small and large, folders and status, for so long.
fn work(for_so_long: Duration) -> Times {
    let mut times = Times::default();
    let (start, mut round) = (Instant::now(), 0_u64);
    let mut found = vec![0; 1 << 20];
    while start.elapsed() < for_so_long || round < 20 {
        let name = format!("theirs/{round}");
        let file = times
            .of("create", || File::options().create_new(true).read(true).write(true).open(&name));
        times.of("write 4 KiB", || file.write_all_at(&pattern(round, 4096), 0));
        times.of("write 1 MiB", || file.write_all_at(&pattern(round, 1 << 20), 0));
        times.of("read 4 KiB", || file.read_exact_at(&mut found[..4096], 8192));
        times.of("read 1 MiB", || file.read_exact_at(&mut found, 0));
        same(&found, &pattern(round, 1 << 20));
        times.of("close", || {
            drop(file);
            Ok::<_, ()>(())
        });
        times.of("stat", || fs::metadata(&name));
        times.of("list", || fs::read_dir("theirs").map(Iterator::count));
        times.of("open", || File::open(&name));
        times.of("rename", || fs::rename(&name, "theirs/renamed"));
        times.of("remove", || fs::remove_file("theirs/renamed"));
        round += 1;
    }
    times
}

/// Files, directories, control files and removed ones: as many as are to be had, given back and taken again.
fn take_everything(going: &dyn Fn() -> bool) {
    let directory =
        |name: &str| File::options().read(true).custom_flags(libc::O_DIRECTORY).open(name);
    let place = |name: &str| File::options().read(true).custom_flags(libc::O_PATH).open(name);
    while going() {
        let mut taken = Vec::new();
        for number in 0..20_000 {
            if !going() {
                break;
            }
            let (file, folder) =
                (format!("his/f-{}", number % 3000), format!("his/d-{}", number % 1000));
            let _ = fs::create_dir(&folder);
            taken.extend(File::options().create(true).truncate(false).write(true).open(&file));
            taken.extend(directory(&folder));
            taken.extend(File::open(".swapfs/stats.json"));
            if number % 10 == 0 {
                taken.extend(place(&folder));
                let _ = fs::remove_dir(&folder);
            }
        }
    }
}

/// A pool full of dirty blocks, with writers that wait for room.
fn write_without_end(thread: usize, going: &dyn Fn() -> bool) {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(format!("his/large-{thread}"))
        .unwrap();
    let bytes = pattern(thread as u64, 1 << 20);
    let mut at = 0;
    while going() {
        file.write_all_at(&bytes, at % (64 * MIB)).unwrap();
        at += MIB;
    }
}

/// The whole pool swapped in on request, again and again.
fn keep_the_pool(going: &dyn Fn() -> bool) {
    for name in ["his/kept-1", "his/kept-2"] {
        let file = File::options().create_new(true).write(true).open(name).unwrap();
        write_pattern(&file, 30 * MIB, 1 << 20);
    }
    while going() {
        for name in ["his/kept-1", "his/kept-2"] {
            let _ = request(Path::new(name), "swap_in");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Requests on folders without end.
fn ask_for_folders(thread: usize, going: &dyn Fn() -> bool) {
    let mut count = thread;
    while going() {
        count += 1;
        let folder = ["his".to_owned(), format!("his/tree/{}", count % 40)][count % 2].clone();
        let verb = ["swap_in", "swap_out", "release"][count % 3];
        if request(Path::new(&folder), verb).is_err() {
            std::thread::yield_now();
        }
    }
}

/// A thousand handles of one file that poll, and as many locks.
fn poll_and_lock(going: &dyn Fn() -> bool) {
    let name = "his/polled";
    File::options().create_new(true).write(true).open(name).unwrap();
    while going() {
        let files: Vec<File> = (0..1000).filter_map(|_| File::open(name).ok()).collect();
        let mut set: Vec<PollFd> = files
            .iter()
            .map(|file| PollFd::new(std::os::fd::AsFd::as_fd(file), PollFlags::POLLPRI))
            .collect();
        for file in &files {
            let _ = file.try_lock_shared();
        }
        let _ = nix::poll::poll(&mut set, PollTimeout::from(50_u16));
        let _ = fs::write(name, "changed");
    }
}

/// Something that is done as long as its argument says so.
type Harm = dyn FnOnce(&dyn Fn() -> bool) + Send;

/// Everything at once, until `going` says no.
fn attack(mount: &Mount, going: &(dyn Fn() -> bool + Sync)) {
    std::thread::scope(|scope| {
        let spawn = |what: Box<Harm>| {
            scope.spawn(move || as_user(&mount.mnt, ATTACKER, || what(&going)));
        };
        spawn(Box::new(|going| take_everything(going)));
        spawn(Box::new(|going| keep_the_pool(going)));
        spawn(Box::new(|going| poll_and_lock(going)));
        for thread in 0..8 {
            spawn(Box::new(move |going| write_without_end(thread, going)));
        }
        for thread in 0..4 {
            spawn(Box::new(move |going| ask_for_folders(thread, going)));
        }
    });
}

/// The attacker's folder, with a tree that takes long to walk.
fn prepare(mount: &Mount) {
    for (who, name) in [(ATTACKER, "his"), (OTHER, "theirs")] {
        as_user(&mount.mnt, who, || fs::create_dir(name).unwrap());
    }
    as_user(&mount.mnt, ATTACKER, || {
        for folder in 0..40 {
            fs::create_dir_all(format!("his/tree/{folder}")).unwrap();
            for number in 0..100 {
                std::os::unix::fs::symlink("x", format!("his/tree/{folder}/{number}")).unwrap();
            }
        }
    });
}

/// What root does meanwhile.
fn look_after(mount: &Mount, going: &dyn Fn() -> bool) {
    let mnt = mount.mnt.to_str().unwrap();
    let theirs = mount.at("theirs");
    while going() {
        is_done(&swapfs(&["status", mnt]));
        is_done(&swapfs(&["stats", mnt, "--count", "1", "--interval", "1"]));
        is_done(&swapfs(&["release", theirs.to_str().unwrap()]));
        is_done(&swapfs(&["swap-out", mnt]));
        fs::write(mount.at("roots"), "x").unwrap();
        assert_eq!(fs::read(mount.at("roots")).unwrap(), b"x");
        assert!(fs::read_dir(&mount.mnt).unwrap().count() > 0);
        fs::remove_file(mount.at("roots")).unwrap();
    }
}

fn beside(undisturbed: Duration, attacked: Duration) -> Option<(Times, Times)> {
    if !is_root() {
        return None;
    }
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    fs::set_permissions(&mount.swap, fs::Permissions::from_mode(0o1777)).unwrap();
    let options = "pool_size=64m,allow_other";
    is_done(&mount.mount_by(&["prlimit", "--nofile=4096:4096"], options));
    prepare(&mount);
    let before = as_user(&mount.mnt, OTHER, || work(undisturbed));
    let end = AtomicBool::new(false);
    let going = || !end.load(Ordering::SeqCst);
    let meanwhile = std::thread::scope(|scope| {
        let attacking = scope.spawn(|| attack(&mount, &going));
        // Until he has what he can have.
        std::thread::sleep(Duration::from_secs(1));
        let looking_after = scope.spawn(|| look_after(&mount, &going));
        let working = scope.spawn(|| as_user(&mount.mnt, OTHER, || work(attacked)));
        let meanwhile = working.join();
        end.store(true, Ordering::SeqCst);
        attacking.join().unwrap();
        looking_after.join().unwrap();
        meanwhile.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    });
    for what in before.0.keys() {
        let row = |times: &Times| [50, 99].map(|percent| times.percentile(what, percent));
        let calls = meanwhile.0[what].len();
        println!(
            "{what:12} {:?} undisturbed, {:?} meanwhile ({calls} calls)",
            row(&before),
            row(&meanwhile)
        );
    }
    mount.unmount();
    Some((before, meanwhile))
}

/// No call of another user's fails, and root's commands work.
#[test]
fn another_user_works_beside_the_worst_of_all() {
    beside(Duration::from_millis(500), Duration::from_secs(3));
}

/// The same for a minute: the other's calls take at most ten times as long as undisturbed, at the 99th percentile.
#[test]
#[ignore = "needs a minute of an idle machine: tests/suites/tools.sh beside"]
fn another_user_works_beside_the_worst_of_all_for_a_minute() {
    let Some((before, meanwhile)) = beside(Duration::from_secs(10), Duration::from_secs(60)) else {
        return;
    };
    for what in before.0.keys() {
        let (calm, disturbed) = (before.percentile(what, 99), meanwhile.percentile(what, 99));
        assert!(disturbed <= TIMES_MAX * calm.max(FLOOR), "{what}: {disturbed:?} after {calm:?}");
    }
}
