//! The mount under test, and what it says about itself.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use serde_json::Value;
use tempfile::TempDir;

/// What the daemon may use beside the pool, in KiB.
const BESIDE_POOL_KIB: u64 = 64 * 1024;

/// How long everything may take to come to rest.
const REST_TIMEOUT: Duration = Duration::from_secs(30);

pub(crate) struct Mount {
    program: PathBuf,
    folder: TempDir,
    pub(crate) swap: PathBuf,
    pub(crate) mnt: PathBuf,
    pid: i64,
    limit_kib: u64,
}

impl Mount {
    pub(crate) fn new(
        program: Option<&Path>, folder: &Path, pool_mib: u64,
    ) -> Result<Mount, String> {
        let own = std::env::current_exe().map_err(|error| error.to_string())?;
        let beside = own.ancestors().nth(2).unwrap_or(Path::new("/")).join("swapfs");
        let program = program.map_or(beside, Path::to_owned);
        let scratch = swapfs::bench::check_place(folder)
            .and_then(|()| tempfile::Builder::new().prefix("swapfs-soak-").tempdir_in(folder));
        let scratch = scratch.map_err(|error| format!("{}: {error}", folder.display()))?;
        let (swap, mnt) = (scratch.path().join("swap"), scratch.path().join("mnt"));
        for folder in [&swap, &mnt] {
            std::fs::create_dir(folder).map_err(|error| error.to_string())?;
        }
        let limit_kib = pool_mib * 1024 + BESIDE_POOL_KIB;
        let mut mount = Mount { program, folder: scratch, swap, mnt, pid: 0, limit_kib };
        mount.run(&["mount", "SWAP", "MNT", "-o", &format!("pool_size={pool_mib}m")])?;
        mount.pid = mount.stats()?["mount"]["pid"].as_i64().ok_or("stats.json has no pid")?;
        Ok(mount)
    }

    /// Beside the swap folder.
    pub(crate) fn scratch(&self) -> &Path {
        self.folder.path()
    }

    fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let mut command = Command::new(&self.program);
        for argument in arguments {
            match *argument {
                "SWAP" => command.arg(&self.swap),
                "MNT" => command.arg(&self.mnt),
                other => command.arg(other),
            };
        }
        let output =
            command.output().map_err(|error| format!("{}: {error}", self.program.display()))?;
        match output.status.success() {
            true => Ok(()),
            false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        }
    }

    fn stats(&self) -> Result<Value, String> {
        let text = std::fs::read_to_string(self.mnt.join(".swapfs/stats.json"));
        let text = text.map_err(|error| format!("stats.json: {error}"))?;
        serde_json::from_str(&text).map_err(|error| format!("stats.json: {error}"))
    }

    /// The daemon's largest memory so far, huge pages included, in KiB.
    fn peak_kib(&self) -> Result<u64, String> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid));
        let status = status.map_err(|error| format!("the daemon is gone: {error}"))?;
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()
        };
        Ok(field("VmHWM:").unwrap_or(0) + field("HugetlbPages:").unwrap_or(0))
    }

    /// Looks at the daemon every second until it is over; returns its peak memory in KiB.
    pub(crate) fn watch(&self, over: impl Fn() -> bool) -> Result<u64, String> {
        let mut next = Instant::now();
        loop {
            if Instant::now() >= next {
                next += Duration::from_secs(1);
                let peak_kib = self.peak_kib()?;
                if peak_kib > self.limit_kib {
                    return Err(format!(
                        "{peak_kib} KiB of memory, allowed are {}",
                        self.limit_kib
                    ));
                }
                let stats = self.stats()?;
                for name in ["failed", "stalled"] {
                    if stats["partitions"][name] != 0 {
                        return Err(format!("partitions {name}: {}", stats["partitions"][name]));
                    }
                }
            }
            if over() {
                return self.peak_kib();
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Waits until everything is written and released, and checks that nothing stays behind; returns how many
    /// transfers there were.
    pub(crate) fn nothing_is_left(&self) -> Result<u64, String> {
        let root = std::fs::File::open(&self.mnt).and_then(|root| root.sync_all());
        root.map_err(|error| format!("fsync of the root: {error}"))?;
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::setxattr(&self.mnt, "user.swap.request", b"release", flags)
            .map_err(|error| format!("release: {error}"))?;
        let begin = Instant::now();
        loop {
            let stats = self.stats()?;
            let (pool, aio, parts) = (&stats["pool"], &stats["aio"], &stats["partitions"]);
            let zero = [
                &pool["dirty"],
                &pool["inflight"],
                &pool["reserved"],
                &parts["dirty"],
                &parts["inflight"],
                &parts["failed"],
                &parts["stalled"],
                &parts["handles"],
                &parts["resting"],
                &aio["failed"],
            ];
            let quiet = zero.iter().all(|count| **count == 0)
                && pool["available"] == pool["buffers"]
                && aio["submitted"] == aio["completed"];
            if quiet {
                return aio["completed"].as_u64().ok_or_else(|| "no count of transfers".to_owned());
            }
            if begin.elapsed() > REST_TIMEOUT {
                return Err(format!("after {REST_TIMEOUT:?} this is left: {pool} {aio} {parts}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it; returns the daemon's log.
    pub(crate) fn unmount(&self) -> Result<String, String> {
        self.run(&["umount", "MNT", "--timeout", "60"])?;
        std::fs::read_to_string(self.swap.join(".swapfs/log")).map_err(|error| error.to_string())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if umount2(&self.mnt, MntFlags::MNT_DETACH).is_ok() {
            eprintln!("soak: {} was taken away", self.mnt.display());
        }
    }
}
