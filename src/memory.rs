//! How much memory there is for a pool, by the machine and by the control groups that this process is in.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use rustix::thread::CapabilitySet;

use crate::pool::free_huge_bytes;
use crate::units::{MIB, format_exact, format_short};

/// What the daemon takes at most beside the pool, in bytes.
pub const OVERHEAD: u64 = 64 * MIB;

/// Sizes that are proposed are multiples of this many bytes.
const PROPOSED_STEP: u64 = 16 * MIB;

/// Where control groups are shown.
const GROUPS: &str = "/sys/fs/cgroup";

/// Whether a pool of some size fits into the memory that is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fit {
    /// It does.
    Fits,
    /// It leaves others less than a quarter of what is available.
    Tight,
    /// There is not enough for it.
    TooLarge,
}

/// A pool beside the memory that is available.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes of the pool.
    pub pool_size: u64,
    /// Bytes that are available; `None` when the kernel does not say.
    pub available: Option<u64>,
    /// Bytes of reserved huge pages that nobody has. They are not part of `available`.
    pub huge: u64,
}

impl Room {
    /// Compares a pool with the memory that is available now. Allocates nothing.
    #[must_use]
    pub fn look(pool_size: u64) -> Self {
        Self { pool_size, available: available(), huge: free_huge_bytes() }
    }

    /// Whether the pool fits.
    #[must_use]
    pub fn fit(&self) -> Fit {
        // The pool is taken from reserved huge pages when all of it, with what is for its own use, fits there.
        let in_huge_pages = self.huge >= self.pool_size.saturating_add(OVERHEAD);
        let pool = if in_huge_pages { 0 } else { self.pool_size };
        let needed = pool.saturating_add(OVERHEAD);
        match self.available {
            Some(available) if needed > available => Fit::TooLarge,
            Some(available) if pool > 0 && needed > available / 4 * 3 => Fit::Tight,
            _ => Fit::Fits,
        }
    }

    /// What to do about a pool that is too large; `least` is the smallest pool of the configuration.
    #[must_use]
    pub fn mend(&self, least: u64) -> String {
        let half = self.available.unwrap_or(0) / 2 / PROPOSED_STEP * PROPOSED_STEP;
        match half {
            half if half >= least && half + OVERHEAD <= self.available.unwrap_or(0) => {
                let half = format_exact(half).replace(' ', "");
                format!("give the pool less: -o pool_size={half}")
            }
            _ => "end other programs, or give this machine or control group more memory".to_owned(),
        }
    }

    /// Refuses a pool that does not fit, before anything is allocated.
    ///
    /// # Errors
    /// One line with what is available and what to give.
    pub fn refuse_too_large(&self, least: u64) -> Result<(), String> {
        match (self.fit(), self.available) {
            (Fit::TooLarge, Some(available)) => Err(format!(
                "pool_size {} and {} beside it are more than the {} of memory that are available; {}",
                format_exact(self.pool_size),
                format_exact(OVERHEAD),
                format_short(available),
                self.mend(least)
            )),
            _ => Ok(()),
        }
    }
}

/// Bytes of memory that this process could still take without swapping: the machine's, or what its control groups leave
/// if that is less. `None` when the kernel does not say.
#[must_use]
pub fn available() -> Option<u64> {
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    available_of(&meminfo(), &own, Path::new(GROUPS))
}

/// How many bytes of mapped pages may be dirty, where the control groups of this process leave it less memory than the machine:
/// an eighth of that, so that there is always something else to give back.
pub(crate) fn dirty_max() -> Option<u64> {
    const LEAST: u64 = 4 * MIB;
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let left = group_available(&own, Path::new(GROUPS))?;
    let machine = available_of(&meminfo(), "", Path::new(GROUPS));
    machine.is_none_or(|machine| left < machine).then(|| (left / 8).max(LEAST))
}

fn meminfo() -> String {
    std::fs::read_to_string("/proc/meminfo").unwrap_or_default()
}

/// The same as [`available`], of the texts of `/proc/meminfo` and `/proc/self/cgroup`, and the folder of the control groups.
fn available_of(table: &str, own: &str, groups: &Path) -> Option<u64> {
    let machine = table.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = machine.and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    let machine = kib.and_then(|kib| kib.checked_mul(1024));
    machine.into_iter().chain(group_available(own, groups)).min()
}

/// How a version of control groups names what it says about memory.
struct Version {
    /// Below the folder of all groups; the first that exists counts.
    folders: &'static [&'static str],
    limit: &'static str,
    used: &'static str,
    /// Lines of `memory.stat` with the page cache, which makes room.
    cache: [&'static str; 2],
}

const V1: Version = Version {
    folders: &["memory"],
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    cache: ["total_inactive_file", "total_active_file"],
};

const V2: Version = Version {
    folders: &["unified", ""],
    limit: "memory.max",
    used: "memory.current",
    cache: ["inactive_file", "active_file"],
};

/// What the control groups of a process leave it, in bytes; `None` where no group has a limit.
fn group_available(own: &str, groups: &Path) -> Option<u64> {
    let mut left = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let version = match controllers {
            "" => V2,
            list if list.split(',').any(|name| name == "memory") => V1,
            _ => continue,
        };
        let mut folders = version.folders.iter().map(|name| groups.join(name));
        let Some(root) = folders.find(|folder| folder.is_dir()) else { continue };
        // A limit of a group above counts too. In a container the path may be the host's, which is not shown there: the
        // container's own group is at the top then.
        let own = Path::new(path.trim_start_matches('/'));
        let places = own.ancestors().map(|path| root.join(path));
        left.extend(places.filter_map(|place| left_in(&place, &version)));
    }
    left.into_iter().min()
}

/// What one group leaves: its limit, less what is used and cannot be given back.
fn left_in(group: &Path, version: &Version) -> Option<u64> {
    let text = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    let limit = number(version.limit)?;
    let stat = text("memory.stat").unwrap_or_default();
    let cache = |name: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|bytes| bytes.trim().parse::<u64>().ok()).unwrap_or(0)
    };
    let cache = version.cache.iter().map(|name| cache(name)).sum();
    let used = number(version.used).unwrap_or(0).saturating_sub(cache);
    Some(limit.saturating_sub(used))
}

/// While it exists, this process is the first that the kernel ends when memory runs out: while it fills its pool it is the
/// cause.
#[derive(Debug)]
pub struct FirstVictim {
    /// `/proc/self/oom_score_adj`, and what was in it.
    before: Option<(File, String)>,
}

impl FirstVictim {
    const SCORE: &str = "/proc/self/oom_score_adj";

    /// Offers this process; where that is not possible, nothing changes.
    #[must_use]
    pub fn offer() -> Self {
        let offered = || {
            let before = std::fs::read_to_string(Self::SCORE)?;
            let mut file = File::options().write(true).open(Self::SCORE)?;
            // What is written with CAP_SYS_RESOURCE is the least that may be written without, and the daemon gives that up.
            let own = rustix::thread::capabilities(None)?;
            let mut less = own;
            less.effective.remove(CapabilitySet::SYS_RESOURCE);
            rustix::thread::set_capabilities(None, less)?;
            let written = file.write_all(b"1000");
            rustix::thread::set_capabilities(None, own)?;
            written?;
            Ok::<_, std::io::Error>((file, before))
        };
        let before = offered().inspect_err(|error| log::debug!("{}: {error}", Self::SCORE)).ok();
        Self { before }
    }
}

impl Drop for FirstVictim {
    fn drop(&mut self) {
        if let Some((file, before)) = &mut self.before
            && let Err(error) = file.write_all(before.trim().as_bytes())
        {
            log::debug!("{}: {error}", Self::SCORE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    fn room(pool_size: u64, available: u64, huge: u64) -> Room {
        Room { pool_size, available: Some(available), huge }
    }

    #[test]
    fn a_pool_that_does_not_fit_is_told_what_to_give() {
        for (pool_size, available, huge, fit) in [
            (GIB, 8 * GIB, 0, Fit::Fits),
            (6 * GIB, 8 * GIB, 0, Fit::Tight),
            (8 * GIB, 8 * GIB, 0, Fit::TooLarge),
            (8 * GIB - OVERHEAD, 8 * GIB, 0, Fit::Tight),
            (8 * GIB - OVERHEAD + 1, 8 * GIB, 0, Fit::TooLarge),
            (u64::MAX, 8 * GIB, 0, Fit::TooLarge),
            // From reserved huge pages, which are nobody else's.
            (6 * GIB, GIB, 7 * GIB, Fit::Fits),
            (6 * GIB, GIB, 6 * GIB, Fit::TooLarge),
            (GIB, OVERHEAD - 1, 2 * GIB, Fit::TooLarge),
        ] {
            let room = room(pool_size, available, huge);
            assert_eq!(room.fit(), fit, "{room:?}");
            assert_eq!(room.refuse_too_large(MIB).is_err(), fit == Fit::TooLarge, "{room:?}");
        }
        let unknown = Room { pool_size: u64::MAX, available: None, huge: 0 };
        assert_eq!(unknown.fit(), Fit::Fits);
        assert_eq!(
            room(200 * GIB, 24 * GIB, 0).refuse_too_large(8 * MIB).unwrap_err(),
            "pool_size 200 GiB and 64 MiB beside it are more than the 24 GiB of memory that are available; give the \
             pool less: -o pool_size=12GiB"
        );
    }

    #[test]
    fn what_is_proposed_is_taken() {
        for available in [129 * MIB, 200 * MIB, 1_000_000_007, 10 * GIB + 12345, 3 * 1024 * GIB] {
            let mend = room(4096 * GIB, available, 0).mend(8 * MIB);
            let size = mend.rsplit('=').next().and_then(crate::units::parse_size);
            let proposed = size.unwrap_or_else(|| panic!("{mend}"));
            assert_ne!(room(proposed, available, 0).fit(), Fit::TooLarge, "{mend}");
        }
        for available in [0, OVERHEAD, 100 * MIB] {
            let mend = room(GIB, available, 0).mend(64 * MIB);
            assert!(mend.starts_with("end other programs"), "{mend}");
        }
    }

    type Files = &'static [(&'static str, &'static str)];

    /// A folder of control groups with these files.
    fn groups(files: Files) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn the_tightest_control_group_counts() {
        const TABLE: &str = "MemTotal: 9000 kB\nMemFree: 10 kB\nMemAvailable:    8000 kB\n";
        let machine = 8000 * 1024;
        let cases: [(&str, Files, u64); 9] = [
            ("0::/a/b\n", &[("a/b/memory.max", "max\n"), ("a/memory.max", "max\n")], machine),
            ("0::/a/b\n", &[("a/b/memory.max", "5000000\n")], 5_000_000),
            // The group above has less.
            (
                "0::/a/b\n",
                &[("a/b/memory.max", "5000000\n"), ("a/memory.max", "4000000\n")],
                4_000_000,
            ),
            // What is used counts, but for the page cache.
            (
                "0::/a\n",
                &[
                    ("a/memory.max", "5000000\n"),
                    ("a/memory.current", "3000000\n"),
                    ("a/memory.stat", "anon 1\nfile 7\ninactive_file 500000\nactive_file 300000\n"),
                ],
                2_800_000,
            ),
            ("0::/a\n", &[("a/memory.max", "5000000"), ("a/memory.current", "6000000")], 0),
            // In a container the group's own files are at the top, whatever the path is.
            ("0::/host/path\n", &[("memory.max", "3000000\n")], 3_000_000),
            // Version 1, and both at once.
            (
                "5:cpu:/x\n4:memory:/c\n",
                &[
                    ("memory/c/memory.limit_in_bytes", "2000000\n"),
                    ("memory/c/memory.usage_in_bytes", "1500000\n"),
                    ("memory/c/memory.stat", "total_inactive_file 1000000\ninactive_file 5\n"),
                ],
                1_500_000,
            ),
            (
                "4:cpu,memory:/c\n0::/\n",
                &[
                    ("memory/memory.limit_in_bytes", "9223372036854771712\n"),
                    ("unified/memory.max", "700000\n"),
                ],
                700_000,
            ),
            ("", &[], machine),
        ];
        for (own, files, expected) in cases {
            let folder = groups(files);
            let found = available_of(TABLE, own, folder.path());
            assert_eq!(found, Some(expected), "{own:?} {files:?}");
        }
        assert_eq!(available_of("", "", Path::new("/nonexistent")), None);
    }

    #[test]
    fn the_first_victim_is_offered_and_taken_back() {
        let score = || std::fs::read_to_string(FirstVictim::SCORE).unwrap().trim().to_owned();
        let before = score();
        let offered = FirstVictim::offer();
        assert_eq!(score(), "1000");
        drop(offered);
        assert_eq!(score(), before);
    }
}
