//! "a client that is killed in the middle of every operation": this program again, doing one thing over and over
//! until it is killed. Nothing of it is left on the mount: no handle, no claim on a buffer, no lock, no file half
//! made; and what others have is whole.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout};
use rustix::fs::{CWD, FallocateFlags, FlockOperation, RenameFlags, SeekFrom, fallocate, flock};

use crate::bytes::open;
use crate::exchange::seed;
use crate::place::Mount;
use crate::requests::request;
use crate::support::{
    MIB, Map, Random, pattern, same, set_xattr, swap_xattr, sync_all, wait_until, write_pattern,
    xattr,
};

const ROLE: &str = "SWAPFS_TEST_VICTIM";
const PLACE: &str = "SWAPFS_TEST_VICTIM_MOUNT";
const SEED: &str = "SWAPFS_TEST_VICTIM_SEED";
const THIS: &str = "hostile::killed::a_client_killed_in_any_operation_leaves_nothing";

/// How often a victim of each kind is killed.
const KILLS: u64 = 3;

/// More than the pool: somebody always waits for a buffer.
const LENGTH: u64 = 12 * MIB;

/// One operation, on the file that all victims share or on names of the victim's own.
type Act = fn(&Victim, &mut Random);

struct Victim {
    mnt: PathBuf,
    file: File,
    direct: File,
}

/// Any of these may fail: another victim may have been faster. They must end.
fn may_fail<T, E>(result: Result<T, E>) {
    drop(result);
}

impl Victim {
    fn own(&self, name: &str) -> PathBuf {
        self.mnt.join(format!("victim-{}-{name}", std::process::id()))
    }
}

fn range(random: &mut Random) -> (u64, usize) {
    (random.below(LENGTH), random.below(2 * MIB) as usize + 1)
}

const ACTS: [(&str, Act); 30] = [
    ("write", |victim, random| {
        let (at, length) = range(random);
        may_fail(victim.file.write_all_at(&pattern(at, length), at));
    }),
    ("write direct", |victim, random| {
        let (at, length) = range(random);
        may_fail(victim.direct.write_all_at(&pattern(at, length), at));
    }),
    ("write synchronously", |victim, random| {
        let (at, length) = range(random);
        let flags = libc::O_DSYNC;
        if let Ok(file) =
            File::options().write(true).custom_flags(flags).open(victim.mnt.join("shared"))
        {
            may_fail(file.write_all_at(&pattern(at, length), at));
        }
    }),
    ("read", |victim, random| {
        let (at, length) = range(random);
        may_fail(victim.file.read_at(&mut vec![0; length], at));
    }),
    ("read direct", |victim, random| {
        let (at, length) = range(random);
        may_fail(victim.direct.read_at(&mut vec![0; length], at));
    }),
    ("read all", |victim, _| may_fail(fs::read(victim.mnt.join("shared")))),
    ("append", |victim, random| {
        let file = File::options().append(true).create(true).open(victim.own("log"));
        if let Ok(file) = file {
            may_fail(rustix::io::write(&file, &pattern(0, random.below(300_000) as usize)));
        }
    }),
    ("truncate", |victim, random| may_fail(victim.file.set_len(random.below(LENGTH)))),
    ("create and truncate", |victim, random| {
        may_fail(fs::write(victim.own("new"), pattern(0, random.below(400_000) as usize)));
    }),
    ("allocate", |victim, random| {
        let (at, length) = range(random);
        may_fail(fallocate(&victim.file, FallocateFlags::KEEP_SIZE, at, length as u64));
    }),
    ("punch", |victim, random| {
        let (at, length) = range(random);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        may_fail(fallocate(&victim.file, flags, at, length as u64));
    }),
    ("zero", |victim, random| {
        let (at, length) = range(random);
        may_fail(fallocate(&victim.file, FallocateFlags::ZERO_RANGE, at, length as u64));
    }),
    ("fsync", |victim, _| {
        may_fail(victim.file.write_all_at(&pattern(7, 5000), 7));
        may_fail(victim.file.sync_all());
    }),
    ("fdatasync", |victim, _| may_fail(victim.file.sync_data())),
    ("fsync the root", |victim, _| may_fail(File::open(&victim.mnt).and_then(|f| f.sync_all()))),
    ("open and close", |victim, _| {
        may_fail(File::open(victim.mnt.join("shared")));
        may_fail(File::options().write(true).open(victim.mnt.join("whole")));
    }),
    ("create and unlink", |victim, _| {
        may_fail(File::create(victim.own("short")));
        may_fail(fs::remove_file(victim.own("short")));
    }),
    ("unlink while open", |victim, random| {
        if let Ok(file) = File::create(victim.own("gone")) {
            may_fail(file.write_all_at(&pattern(0, random.below(MIB) as usize), 0));
            may_fail(fs::remove_file(victim.own("gone")));
            may_fail(file.write_all_at(&pattern(0, 1000), 0));
        }
    }),
    ("rename", |victim, _| {
        may_fail(fs::write(victim.own("from"), "x"));
        may_fail(fs::rename(victim.own("from"), victim.own("to")));
    }),
    ("exchange", |victim, _| {
        may_fail(fs::write(victim.own("left"), "x"));
        may_fail(fs::write(victim.own("right"), "y"));
        let (left, right) = (victim.own("left"), victim.own("right"));
        may_fail(rustix::fs::renameat_with(CWD, left, CWD, right, RenameFlags::EXCHANGE));
    }),
    ("mkdir and rmdir", |victim, _| {
        may_fail(fs::create_dir(victim.own("dir")));
        may_fail(fs::remove_dir(victim.own("dir")));
    }),
    ("links", |victim, _| {
        may_fail(fs::hard_link(victim.mnt.join("whole"), victim.own("hard")));
        may_fail(symlink("whole", victim.own("soft")));
        may_fail(fs::read_link(victim.own("soft")));
        may_fail(fs::remove_file(victim.own("hard")));
        may_fail(fs::remove_file(victim.own("soft")));
    }),
    ("list", |victim, _| {
        if let Ok(listing) = fs::read_dir(victim.mnt.join("names")) {
            listing.for_each(|entry| may_fail(entry.and_then(|entry| entry.metadata())));
        }
    }),
    ("requests", |victim, random| {
        let verb = ["swap_in", "swap_out", "release", "discard", "reserve 1m"];
        may_fail(request(&victim.own("log"), "swap_out"));
        may_fail(request(&victim.mnt.join("whole"), verb[random.below(3) as usize]));
        may_fail(request(&victim.own("new"), verb[random.below(5) as usize]));
    }),
    ("requests on folders", |victim, random| {
        let verb = ["swap_in", "swap_out", "release"][random.below(3) as usize];
        may_fail(request(&victim.mnt.join("names"), verb));
        may_fail(request(&victim.mnt, ["synchronize_writes", "release"][random.below(2) as usize]));
    }),
    ("wait", |victim, _| {
        may_fail(xattr(&victim.mnt.join("shared"), "user.swap.wait"));
        may_fail(xattr(&victim.mnt, "user.swap.wait"));
    }),
    ("attributes", |victim, random| {
        let value = vec![7; random.below(2000) as usize];
        may_fail(set_xattr(&victim.mnt.join("whole"), "user.own", &value));
        may_fail(xattr(&victim.mnt.join("whole"), "user.own"));
        may_fail(fs::set_permissions(
            victim.mnt.join("names"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        ));
        may_fail(rustix::fs::statvfs(&victim.mnt));
        may_fail(fs::read(victim.mnt.join(".swapfs/stats.json")));
    }),
    ("map", |victim, random| {
        if let Ok(file) = File::options().read(true).write(true).open(victim.mnt.join("mapped")) {
            let map = Map::new(&file, MIB as usize, true, true);
            let at = random.below(MIB - 5000) as usize;
            map.write(at, &pattern(at as u64, 5000));
            map.sync();
        }
    }),
    ("locks", |victim, _| {
        may_fail(flock(&victim.file, FlockOperation::LockExclusive));
        may_fail(victim.file.read_at(&mut [0; 10], 0));
        may_fail(flock(&victim.file, FlockOperation::Unlock));
    }),
    ("poll and seek", |victim, random| {
        let mut set = [PollFd::new(victim.file.as_fd(), PollFlags::POLLPRI)];
        may_fail(nix::poll::poll(&mut set, PollTimeout::from(20_u16)));
        may_fail(rustix::fs::seek(&victim.file, SeekFrom::Data(random.below(LENGTH))));
        may_fail(rustix::fs::seek(&victim.file, SeekFrom::Hole(random.below(LENGTH))));
    }),
];

/// The life of a victim: says that it is there, then does its act until it is killed.
fn live(act: Act, mnt: PathBuf, seed: u64) {
    let shared = mnt.join("shared");
    let direct =
        File::options().read(true).write(true).custom_flags(libc::O_DIRECT).open(&shared).unwrap();
    let victim = Victim { file: open(&shared), direct, mnt };
    let mut random = Random::new(seed);
    File::create(victim.own("ready")).unwrap();
    loop {
        act(&victim, &mut random);
    }
}

fn start(number: usize, mnt: &Path, seed: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args([THIS, "--exact", "--nocapture"])
        .env(ROLE, number.to_string())
        .env(PLACE, mnt)
        .env(SEED, seed.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

fn ready(child: &Child, mnt: &Path) -> bool {
    mnt.join(format!("victim-{}-ready", child.id())).exists()
}

fn stat(mount: &Mount, object: &str, name: &str) -> u64 {
    let stats = fs::read_to_string(mount.at(".swapfs/stats.json")).unwrap();
    let stats: serde_json::Value = serde_json::from_str(&stats).unwrap();
    stats[object][name].as_u64().unwrap()
}

/// Killed one by one and together, with as many others at work.
#[test]
fn a_client_killed_in_any_operation_leaves_nothing() {
    let given = |name: &str| std::env::var(name).ok();
    if let (Some(role), Some(mnt), Some(seed)) = (given(ROLE), given(PLACE), given(SEED)) {
        let act = ACTS[role.parse::<usize>().unwrap()].1;
        return live(act, mnt.into(), seed.parse().unwrap());
    }
    let seed = seed();
    let mut random = Random::new(seed);
    let mount = Mount::lasting(
        Duration::from_secs(100),
        Path::new(env!("CARGO_TARGET_TMPDIR")),
        "pool_size=8m",
    );
    let (shared, whole) = (open(&mount.at("shared")), open(&mount.at("whole")));
    write_pattern(&shared, LENGTH, 1 << 20);
    write_pattern(&whole, 3 * MIB + 5, 1 << 20);
    drop((shared, whole));
    open(&mount.at("mapped")).set_len(MIB).unwrap();
    fs::create_dir(mount.at("names")).unwrap();
    (0..300).for_each(|i| fs::write(mount.at(&format!("names/{i}")), pattern(i, 3000)).unwrap());
    // Two acts at a time, so that the one's locks and claims are in the other's way.
    for pair in 0..ACTS.len() as u64 * KILLS / 2 {
        let acts = [2 * pair as usize % ACTS.len(), random.below(ACTS.len() as u64) as usize];
        let mut children = acts.map(|act| start(act, &mount.mnt, seed + pair));
        wait_until("the victims", || children.iter().all(|child| ready(child, &mount.mnt)));
        let second = start((2 * pair as usize + 1) % ACTS.len(), &mount.mnt, seed + pair);
        std::thread::sleep(Duration::from_micros(random.below(40_000)));
        for child in children.iter_mut().chain([&mut { second }]) {
            child.kill().unwrap();
            let names = acts.map(|act| ACTS[act].0);
            // One that waits for an answer for ever cannot be reaped.
            wait_until(&format!("the end of {names:?}"), || child.try_wait().unwrap().is_some());
        }
    }
    // Nothing holds the mount up.
    wait_until("the handles to go", || stat(&mount, "partitions", "handles") == 0);
    sync_all(&mount.mnt);
    wait_until("the mount to rest", || swap_xattr(&mount.mnt, "wait") == "idle");
    wait_until("the buffers", || {
        swap_xattr(&mount.mnt, "pool.available") == swap_xattr(&mount.mnt, "pool.buffers")
    });
    assert_eq!(stat(&mount, "partitions", "failed"), 0);
    let file = open(&mount.at("shared"));
    flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    let bytes = fs::read(mount.at("shared")).unwrap();
    let expected = pattern(0, bytes.len());
    let wrong = bytes.iter().zip(&expected).position(|(found, byte)| *found != 0 && found != byte);
    assert_eq!(wrong, None, "no byte is anybody else's");
    drop(file);
    same(&fs::read(mount.at("whole")).unwrap(), &pattern(0, 3 * MIB as usize + 5));
    for number in 0..300 {
        same(&fs::read(mount.at(&format!("names/{number}"))).unwrap(), &pattern(number, 3000));
    }
    mount.unmount();
    same(&fs::read(mount.backing("shared")).unwrap(), &bytes);
    same(&fs::read(mount.backing("whole")).unwrap(), &pattern(0, 3 * MIB as usize + 5));
}
