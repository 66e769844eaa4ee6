//! What belongs where.

use std::path::{Path, PathBuf};

use super::{FstabEntry, Item};
use crate::daemon::stop_time;
use crate::units::{MIB, format_exact};

const SWAPFS_8: &str = include_str!("../../man/swapfs.8");
const SWAPFS_7: &str = include_str!("../../man/swapfs.7");
const MOUNT_SWAPFS_8: &str = include_str!("../../man/mount.swapfs.8");
const UNIT: &str = include_str!("swapfs@.service");

/// The line that keeps programs which copy attributes by libattr (cp, mv, install) from copying statuses.
const XATTR_LINE: &str = "user.swap.*\t\t\tskip\t\t# swapfs: where a file is now, read-only";

/// What a daemon may use beside its pool.
const BESIDE_POOL: u64 = 64 * MIB;

/// How long `swapfs mount` waits for the folder's last daemon, and then for its own mount to answer.
const START_S: u64 = 600 + 60;

/// For whom files are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layout {
    /// For this machine: below /usr/local, with a record.
    Local,
    /// For a package: below /usr, without changes to files of other packages.
    Package,
}

/// What is to be put in place beside the program, its manual and its helpers.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// For whom.
    pub layout: Layout,
    /// The unit `swapfs@.service`.
    pub systemd: bool,
    /// A line in /etc/fstab.
    pub fstab: Option<FstabEntry>,
    /// The pool, in bytes, for which the unit's times are reckoned.
    pub pool_size: u64,
    /// The machine's memory in bytes, `None` when it is another machine's.
    pub memory: Option<u64>,
}

/// What the command line adds.
#[derive(Debug, Clone)]
pub struct Content {
    /// The program itself.
    pub program: Vec<u8>,
    /// Completion scripts for bash, zsh and fish.
    pub completions: [Vec<u8>; 3],
}

/// Everything that is wanted, each at its place.
#[must_use]
pub fn items(wanted: &Wanted, content: Content) -> Vec<Item> {
    let (base, sbin) = match wanted.layout {
        Layout::Local => ("/usr/local", "/sbin"),
        Layout::Package => ("/usr", "/usr/sbin"),
    };
    let file =
        |path: String, content: Vec<u8>| Item::File { path: path.into(), content, mode: 0o644 };
    let program = PathBuf::from(format!("{base}/bin/swapfs"));
    let mut items =
        vec![Item::File { path: program.clone(), content: content.program, mode: 0o755 }];
    // Where mount(8) and umount(8) look, wherever the program is.
    for name in ["mount.swapfs", "mount.fuse.swapfs", "umount.fuse.swapfs"] {
        let path = Path::new(sbin).join(name);
        items.push(Item::Link { path, target: program.clone() });
    }
    let see = ".so man8/mount.swapfs.8\n";
    for (page, text) in [
        ("man8/swapfs.8", SWAPFS_8),
        ("man7/swapfs.7", SWAPFS_7),
        ("man8/mount.swapfs.8", MOUNT_SWAPFS_8),
        ("man8/mount.fuse.swapfs.8", see),
        ("man8/umount.fuse.swapfs.8", see),
    ] {
        items.push(file(format!("{base}/share/man/{page}"), text.into()));
    }
    let [bash, zsh, fish] = content.completions;
    let zsh_functions = match wanted.layout {
        Layout::Local => "site-functions",
        Layout::Package => "vendor-completions",
    };
    items.push(file(format!("{base}/share/bash-completion/completions/swapfs"), bash));
    items.push(file(format!("{base}/share/zsh/{zsh_functions}/_swapfs"), zsh));
    // fish looks below /usr/local/share only where XDG_DATA_DIRS names it, as no plain login does.
    let fish_folder = match wanted.layout {
        Layout::Local => "/etc/fish/completions",
        Layout::Package => "/usr/share/fish/vendor_completions.d",
    };
    items.push(file(format!("{fish_folder}/swapfs.fish"), fish));
    if wanted.systemd {
        let path = format!("{base}/lib/systemd/system/swapfs@.service");
        items.push(file(path, unit(wanted, &program).into_bytes()));
    }
    if wanted.layout == Layout::Local {
        let path = "/etc/xattr.conf".into();
        items.push(Item::Line { path, line: XATTR_LINE.to_owned(), key: 0, create: false });
    }
    items.extend(wanted.fstab.iter().map(FstabEntry::item));
    items
}

/// The text of `swapfs@.service`, with the times and points that the pool asks for.
#[must_use]
pub fn unit(wanted: &Wanted, program: &Path) -> String {
    UNIT.replace("@PROGRAM@", &program.display().to_string())
        .replace("@POOL@", &format_exact(wanted.pool_size).replace(' ', ""))
        .replace("@START_S@", &START_S.to_string())
        .replace("@STOP_S@", &stop_time(wanted.pool_size).as_secs().to_string())
        .replace("@OOM@", &oom_score_adjust(wanted.pool_size, wanted.memory).to_string())
}

/// The kernel ends the process with the most points, a thousand for all of the machine's memory. The pool's
/// own are taken off, and five hundred: others with half of the machine go first. -1000 would be never, and
/// then nothing might be left to end.
fn oom_score_adjust(pool_size: u64, memory: Option<u64>) -> i64 {
    let own = memory.filter(|memory| *memory > 0).map_or(0, |memory| {
        let points = u128::from(pool_size.saturating_add(BESIDE_POOL)) * 1000 / u128::from(memory);
        i64::try_from(points).unwrap_or(i64::MAX)
    });
    (-500_i64).saturating_sub(own).max(-999)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::units::GIB;

    #[test]
    fn the_pools_own_points_are_taken_off() {
        assert_eq!(oom_score_adjust(GIB, None), -500);
        assert_eq!(oom_score_adjust(8 * GIB - BESIDE_POOL, Some(32 * GIB)), -750);
        assert_eq!(oom_score_adjust(30 * GIB, Some(32 * GIB)), -999);
    }

    #[test]
    fn the_unit_keeps_the_mount_visible_to_everybody() {
        let wanted = Wanted {
            layout: Layout::Local,
            systemd: true,
            fstab: None,
            pool_size: 4 * GIB,
            memory: None,
        };
        let unit = unit(&wanted, Path::new("/usr/local/bin/swapfs"));
        let is_placeholder = |word: &str| word.starts_with('@') && word.ends_with('@');
        assert!(!unit.split([' ', '=', ';', '\n']).any(is_placeholder), "{unit}");
        assert!(unit.contains("\nTimeoutStopSec=142\n"), "60 s and 4 GiB at 50 MiB/s: {unit}");
        assert!(unit.contains("pool_size=4GiB;"), "{unit}");
        let keys = unit.lines().filter_map(|line| line.split_once('=').map(|(key, _)| key));
        let keys: Vec<&str> = keys.collect();
        // Each of these gives a service a mount namespace of its own.
        for hides in [
            "PrivateTmp",
            "PrivateDevices",
            "PrivateMounts",
            "ProtectSystem",
            "ProtectHome",
            "ProtectKernelTunables",
            "ProtectKernelModules",
            "ProtectKernelLogs",
            "ProtectProc",
            "ProtectControlGroups",
            "ProcSubset",
            "ReadWritePaths",
            "ReadOnlyPaths",
            "MountFlags",
            "InaccessiblePaths",
            "BindPaths",
            "RootDirectory",
            "RootImage",
            "TemporaryFileSystem",
            "RuntimeDirectory",
            "StateDirectory",
            "DynamicUser",
            "PrivateIPC",
            "PrivateUsers",
        ] {
            assert!(!keys.contains(&hides), "{hides} would hide the mount");
        }
        for needed in ["LimitMEMLOCK", "OOMScoreAdjust", "Restart", "CapabilityBoundingSet"] {
            assert!(keys.contains(&needed), "{needed} is missing");
        }
    }
}
