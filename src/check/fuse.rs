//! /dev/fuse, the right to mount, and what the kernel's FUSE can do.

use std::fs::OpenOptions;

use nix::errno::Errno;

use super::{Finding, number};
use crate::config::Config;
use crate::error::errno_of;
use crate::fuse::trial::{Offer, try_mount};
use crate::sys_process::reason;

/// Bytes of a request, in pages; see `fuse::session`.
const REQUEST_PAGES: u64 = 256;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let device = device();
    if device.verdict != super::Verdict::Ok {
        return vec![device];
    }
    match try_mount(config.allow_other) {
        Err(line) => vec![device, Finding::fails("mount", line.clone(), mount_mend(&line))],
        Ok(offer) => {
            let who = match rustix::process::geteuid().is_root() {
                true => "as root",
                false => "by fusermount3",
            };
            let (major, minor) = offer.protocol;
            let found = format!("mounted and unmounted {who}, FUSE protocol {major}.{minor}");
            let mut findings = vec![device, Finding::ok("mount", found)];
            findings.extend(abilities(&offer));
            findings
        }
    }
}

fn device() -> Finding {
    let opened = OpenOptions::new().read(true).write(true).open("/dev/fuse");
    let Err(error) = opened else {
        return Finding::ok("fuse-device", "/dev/fuse can be opened");
    };
    let mend = match errno_of(&error) {
        Errno::EACCES => "chmod 666 /dev/fuse (as root)",
        Errno::EPERM => "allow the container the device: docker run --device /dev/fuse",
        _ => "modprobe fuse (as root); in a container: docker run --device /dev/fuse",
    };
    Finding::fails("fuse-device", format!("/dev/fuse: {}", reason(&error)), mend)
}

fn mount_mend(line: &str) -> String {
    let mend = if line.contains("not installed") {
        "apt install fuse3, or dnf install fuse3"
    } else if line.contains("allow_other") {
        "add the line user_allow_other to /etc/fuse.conf"
    } else if line.contains("temporary folder") {
        "set TMPDIR to a folder that you may write to"
    } else if line.contains("username") {
        "give the user a name: a line in /etc/passwd"
    } else if line.contains("too many") {
        "raise mount_max in /etc/fuse.conf, or unmount something"
    } else if rustix::process::geteuid().is_root() {
        "give the container the right: docker run --device /dev/fuse --cap-add SYS_ADMIN \
         --security-opt apparmor=unconfined"
    } else {
        "chmod u+s $(command -v fusermount3) (as root); in a container: docker run --device \
         /dev/fuse --cap-add SYS_ADMIN"
    };
    mend.to_owned()
}

fn abilities(offer: &Offer) -> Vec<Finding> {
    let offered = |there: bool, item, found: &str, lost: &str, since: &str| match there {
        true => Finding::ok(item, found),
        false => Finding::slow(item, lost, format!("use Linux {since} or newer")),
    };
    let mut findings = vec![
        offered(
            offer.async_direct_io,
            "async-direct-io",
            "offered: O_DIRECT requests of a client run side by side",
            "not offered: O_DIRECT requests run one at a time",
            "3.13",
        ),
        offered(
            offer.direct_mmap,
            "direct-mmap",
            "offered: shared mappings work",
            "not offered: shared mappings of files fail with ENODEV",
            "6.6",
        ),
        request_size(offer.max_pages),
        unused("passthrough", offer.passthrough),
        unused("fuse-io-uring", offer.io_uring),
    ];
    let named = ["FUSE_ASYNC_DIO", "FUSE_DIRECT_IO_ALLOW_MMAP"];
    let others: Vec<String> = offer
        .missing
        .iter()
        .filter(|(flag, _)| !named.iter().any(|name| flag.contains(name)))
        .map(|(flag, loss)| format!("{flag} ({loss})"))
        .collect();
    if !others.is_empty() {
        let found = format!("this kernel lacks {}", others.join(", "));
        findings.push(Finding::slow("fuse-abilities", found, "use Linux 6.6 or newer"));
    }
    findings
}

fn request_size(max_pages: bool) -> Finding {
    let item = "request-size";
    if !max_pages {
        let found = "not offered: requests have 128 KiB at most";
        return Finding::slow(item, found, "use Linux 4.20 or newer");
    }
    // Linux 6.13; before, the limit was fixed.
    let limit = number("/proc/sys/fs/fuse/max_pages_limit").unwrap_or(REQUEST_PAGES);
    let kib = limit * 4;
    match limit < REQUEST_PAGES {
        true => Finding::slow(
            item,
            format!("requests have {kib} KiB at most"),
            format!("sysctl fs.fuse.max_pages_limit={REQUEST_PAGES} (as root)"),
        ),
        false => Finding::ok(item, format!("requests of 1 MiB (the kernel allows {kib} KiB)")),
    }
}

/// What swapfs makes no use of; its absence costs nothing.
fn unused(item: &'static str, offered: bool) -> Finding {
    let found = if offered { "offered" } else { "not offered" };
    Finding::ok(item, format!("{found}; swapfs does not need it")).value("offered", offered)
}
