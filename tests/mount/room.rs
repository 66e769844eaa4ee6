//! A pool beside the memory that is there: `mount` and `check` judge alike, before anything is allocated.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use swapfs::units::parse_size;

use crate::place::{Mount, complaint, is_done, swapfs};
use crate::support::{KIB, MIB};

/// The size that a message says to give.
fn proposed(line: &str) -> u64 {
    let text = line.rsplit("-o pool_size=").next().unwrap();
    parse_size(text.trim()).unwrap_or_else(|| panic!("{line}"))
}

/// The verdict and what to do of `check`'s finding about memory.
fn judged(output: &Output) -> (String, String) {
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let findings = report["findings"].as_array().unwrap();
    let memory = findings.iter().find(|finding| finding["item"] == "memory").unwrap();
    let text = |name: &str| memory[name].as_str().unwrap_or_default().to_owned();
    (text("verdict"), text("mend"))
}

/// A pool that cannot fit is refused at once, in one line with what to give, in the background, in the foreground and by
/// mount(8)'s helper; `check` says so too.
#[test]
fn a_pool_larger_than_the_memory_is_refused_before_it_is_allocated() {
    let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
    let (swap, mnt) = (mount.swap.to_str().unwrap(), mount.mnt.to_str().unwrap());
    for size in ["64t", "9.5 TiB", "30TB"] {
        let option = format!("pool_size={size}");
        let mut helper = Command::new(env!("CARGO_BIN_EXE_swapfs"));
        helper.arg0("mount.swapfs").args([swap, mnt, "-o", &option]);
        for (output, status) in [
            (swapfs(&["mount", swap, mnt, "-o", &option]), 1),
            (swapfs(&["mount", swap, mnt, "-f", "-o", &option]), 1),
            (helper.output().unwrap(), 32),
        ] {
            let line = complaint(&output);
            assert_eq!(output.status.code(), Some(status), "{line}");
            assert_eq!(line.lines().count(), 1, "{line}");
            assert!(line.starts_with("swapfs: pool_size "), "{line}");
            assert!(line.contains("of memory that are available; give the pool less"), "{line}");
            assert!(!mount.is_mounted());
            let give = format!("pool_size={}", proposed(&line));
            let (verdict, mend) = judged(&swapfs(&["check", swap, "--json", "-o", &option]));
            assert_eq!(verdict, "fails");
            assert!(proposed(&mend) > 8 * MIB, "{mend}");
            let (verdict, _) = judged(&swapfs(&["check", swap, "--json", "-o", &give]));
            assert_ne!(verdict, "fails", "{give}");
        }
    }
    // What `check` shows people can be given as it stands.
    is_done(&mount.mount("pool_size=10.2MiB"));
}

/// The daemon is the first victim of the kernel's only while it fills its pool.
#[test]
fn a_mounted_daemon_is_no_first_victim() {
    let own = fs::read_to_string("/proc/self/oom_score_adj").unwrap();
    for options in ["pool_size=8m", "pool_size=8m,sandbox=none"] {
        let mount = Mount::new(options);
        let daemons = fs::read_to_string(format!("/proc/{}/oom_score_adj", mount.daemon()));
        assert_eq!(daemons.unwrap(), own, "{options}");
    }
}

/// A memory control group, of the version that the machine has.
struct Group(PathBuf);

impl Group {
    fn new(limit: u64) -> Self {
        let (root, file) = match Path::new("/sys/fs/cgroup/memory/memory.limit_in_bytes").exists() {
            true => ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
            false => ("/sys/fs/cgroup", "memory.max"),
        };
        let path = Path::new(root).join(format!("swapfs-test-{}", std::process::id()));
        fs::create_dir(&path).unwrap();
        let group = Self(path);
        fs::write(group.0.join(file), limit.to_string()).unwrap();
        group
    }

    /// Runs the program in the group.
    fn run(&self, arguments: &[&str]) -> Output {
        let script = format!("echo $$ >'{}/cgroup.procs' && exec \"$@\"", self.0.display());
        let mut command = Command::new("bash");
        command.args(["-c", &script, "bash", env!("CARGO_BIN_EXE_swapfs")]).args(arguments);
        command.output().unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// A control group's limit counts, less what the group uses already.
#[test]
#[ignore = "needs a memory control group of its own: tests/suites/tools.sh"]
fn a_control_groups_limit_counts() {
    let group = Group::new(400 * MIB);
    for (size, fits) in
        [(1024 * MIB, false), (399 * MIB, false), (340 * MIB, false), (64 * MIB, true)]
    {
        let mount = Mount::prepared(Path::new(env!("CARGO_TARGET_TMPDIR")));
        let (swap, mnt) = (mount.swap.to_str().unwrap(), mount.mnt.to_str().unwrap());
        let option = format!("pool_size={}k", size / KIB);
        let (verdict, _) = judged(&group.run(&["check", swap, "--json", "-o", &option]));
        assert_eq!(verdict != "fails", fits, "{option}: {verdict}");
        let output = group.run(&["mount", swap, mnt, "-o", &option]);
        assert_eq!(output.status.success(), fits, "{output:?}");
        if fits {
            is_done(&swapfs(&["umount", mnt]));
        } else {
            let line = complaint(&output);
            assert!(line.contains("of memory that are available; give the pool less"), "{line}");
            assert!(proposed(&line) <= 200 * MIB, "{line}");
        }
    }
}
