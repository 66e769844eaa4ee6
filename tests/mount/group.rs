//! A daemon and its clients together in a control group with little memory: what one of them needs is what the others
//! have dirty, and nobody waits for ever.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::bytes::open;
use crate::place::Mount;
use crate::support::{MIB, Map, pattern, swap_xattr};

/// What the group may have. The pool takes 128 MiB of it.
const LIMIT: u64 = 600 * MIB;

const LENGTH: u64 = 1024 * MIB;

/// No call takes longer.
const PATIENCE: Duration = Duration::from_secs(2);

/// The client's role and file; unset where the test itself runs.
const ROLE: &str = "SWAPFS_TEST_GROUP_ROLE";

/// A group for memory, of whichever version the machine has; it goes when its processes have gone.
struct Group(PathBuf);

impl Group {
    fn new() -> Self {
        let root = Path::new("/sys/fs/cgroup");
        let (root, limit) = match root.join("memory").is_dir() {
            true => (root.join("memory"), "memory.limit_in_bytes"),
            false => {
                let _ = fs::write(root.join("cgroup.subtree_control"), "+memory");
                (root.to_owned(), "memory.max")
            }
        };
        let group = Self(root.join(format!("swapfs-test-{}", std::process::id())));
        fs::create_dir(&group.0).unwrap();
        fs::write(group.0.join(limit), LIMIT.to_string()).unwrap();
        group
    }

    /// A command that runs a program in the group.
    fn enter(&self) -> Vec<String> {
        let procs = self.0.join("cgroup.procs");
        let text = format!("echo $$ > {}; exec \"$0\" \"$@\"", procs.display());
        vec!["sh".into(), "-c".into(), text]
    }

    fn client(&self, role: &str, file: &Path) -> Child {
        let enter = self.enter();
        Command::new(&enter[0])
            .args(&enter[1..])
            .arg(std::env::current_exe().unwrap())
            .args([
                "group::a_daemon_and_its_clients_share_little_memory",
                "--exact",
                "--ignored",
                "--nocapture",
            ])
            .env(ROLE, format!("{role} {}", file.display()))
            .stdin(Stdio::null())
            .spawn()
            .unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..500 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        eprintln!("{} stays", self.0.display());
    }
}

/// How long the longest took.
#[derive(Default)]
struct Longest(Duration);

impl Longest {
    fn time<T>(&mut self, call: impl FnOnce() -> T) -> T {
        let start = Instant::now();
        let result = call();
        self.0 = self.0.max(start.elapsed());
        result
    }
}

fn fill_a_mapping(file: &File, longest: &mut Longest) {
    file.set_len(LENGTH).unwrap();
    let map = Map::new(file, LENGTH as usize, true, true);
    for at in (0..LENGTH as usize).step_by(4096) {
        longest.time(|| map.write(at, &[7; 4096]));
    }
}

fn write_and_read(file: &File, longest: &mut Longest) {
    let bytes = pattern(1, MIB as usize);
    for at in (0..LENGTH).step_by(MIB as usize) {
        longest.time(|| file.write_all_at(&bytes, at).unwrap());
    }
    let mut found = vec![0; MIB as usize];
    for at in (0..LENGTH).step_by(MIB as usize) {
        longest.time(|| file.read_exact_at(&mut found, at).unwrap());
        assert_eq!(found, bytes, "at {at}");
    }
}

/// What this process does as a client.
fn act(role: &str) {
    let (role, path) = role.split_once(' ').unwrap();
    let file = open(Path::new(path));
    let mut longest = Longest::default();
    match role {
        "map" => fill_a_mapping(&file, &mut longest),
        _ => write_and_read(&file, &mut longest),
    }
    println!("{role}: the longest call took {:?}", longest.0);
    assert!(longest.0 < PATIENCE, "{role}: {:?}", longest.0);
}

/// Asks for the status of a partition until both clients have ended.
fn look_meanwhile(path: &Path, clients: &mut [Child]) {
    let mut longest = Longest::default();
    let start = Instant::now();
    while clients.iter_mut().any(|client| client.try_wait().unwrap().is_none()) {
        longest.time(|| swap_xattr(path, "status"));
        std::thread::sleep(Duration::from_millis(5));
        assert!(start.elapsed() < Duration::from_secs(300), "the clients take too long");
    }
    assert!(longest.0 < PATIENCE, "a status took {:?}", longest.0);
}

#[test]
#[ignore = "needs a control group of its own: tests/suites/tools.sh"]
fn a_daemon_and_its_clients_share_little_memory() {
    if let Ok(role) = std::env::var(ROLE) {
        return act(&role);
    }
    let group = Group::new();
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let enter = group.enter();
    let enter: Vec<&str> = enter.iter().map(String::as_str).collect();
    crate::place::is_done(&mount.mount_by(&enter, "pool_size=128m"));
    for roles in [&["map"][..], &["write"], &["map", "write"]] {
        let mut clients: Vec<Child> =
            roles.iter().map(|role| group.client(role, &mount.at(role))).collect();
        std::thread::sleep(Duration::from_millis(200));
        look_meanwhile(&mount.at(roles[0]), &mut clients);
        for (client, role) in clients.iter_mut().zip(roles) {
            assert!(client.wait().unwrap().success(), "{role}, of {roles:?}");
        }
    }
    let mut byte = [0];
    File::open(mount.at("map")).unwrap().read_exact(&mut byte).unwrap();
    assert_eq!(byte, [7]);
    std::io::stdout().flush().unwrap();
    mount.unmount();
}
