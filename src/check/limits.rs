//! Limits of the process, and those of clients that use libaio.

use rustix::process::{Resource, getrlimit};

use super::{Finding, number};

/// A daemon keeps a quarter of its descriptors for idle partitions.
const FILES_MIN: u64 = 4096;

/// Requests that one DeepSpeed process may want: two handles of eight threads and depth 128.
const REQUESTS_MIN: u64 = 2 * 8 * 128;

pub(super) fn look() -> Vec<Finding> {
    vec![open_files(), libaio()]
}

fn open_files() -> Finding {
    let hard = getrlimit(Resource::Nofile).maximum;
    let shown = hard.map_or_else(|| "unlimited".to_owned(), |limit| limit.to_string());
    let finding = match hard {
        Some(limit) if limit < FILES_MIN => Finding::slow(
            "open-files",
            format!("{shown} at most: few partitions can be open at once"),
            "a line `USER - nofile 65536` in /etc/security/limits.conf, LimitNOFILE=65536 in a \
             systemd unit, docker run --ulimit nofile=65536",
        ),
        _ => Finding::ok("open-files", format!("{shown} (the hard limit, which a mount takes)")),
    };
    finding.value("limit", hard)
}

/// Clients' own limit: swapfs itself does not use libaio.
fn libaio() -> Finding {
    let item = "libaio";
    let (used, limit) = (number("/proc/sys/fs/aio-nr"), number("/proc/sys/fs/aio-max-nr"));
    let (Some(used), Some(limit)) = (used, limit) else {
        let found = "this kernel has no aio: DeepSpeed's own handle fails on it";
        return Finding::slow(item, found, "use a kernel with CONFIG_AIO, or swapfs's aio handle");
    };
    let free = limit.saturating_sub(used);
    let found = format!("{free} of {limit} requests are free for clients (fs.aio-max-nr)");
    let finding = match free < REQUESTS_MIN {
        true => {
            let enough = (used + 16 * REQUESTS_MIN).next_power_of_two().max(1 << 20);
            Finding::slow(item, found, format!("sysctl fs.aio-max-nr={enough} (as root)"))
        }
        false => Finding::ok(item, found),
    };
    finding.value("used", used).value("limit", limit)
}
