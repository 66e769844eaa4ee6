//! Whether io_uring is permitted, and with what.

use std::io;

use super::memory::{LOCK_MEND, Trial};
use super::{Finding, setting};
use crate::aio::{AioSettings, Engine, open_device, refusal, uring};
use crate::config::Config;

const ITEM: &str = "io-uring";

pub(super) fn look(config: &Config, trial: &Trial) -> Vec<Finding> {
    let survey = match uring::survey() {
        Ok(survey) => survey,
        Err(error) => return vec![refused(&error)],
    };
    if !survey.missing.is_empty() {
        let found = format!("this kernel lacks the operations {}", survey.missing.join(", "));
        return vec![Finding::fails(ITEM, found, fallback("use Linux 5.6 or newer"))];
    }
    let mut found = format!("permitted, with {}", survey.supported.join(", "));
    if !survey.single_issuer {
        found.push_str("; without the flags of Linux 6.1 that save interrupts");
    }
    let rings = match &trial.arena {
        Ok(arena) => {
            open_device(&settings(config), arena, 512, true, &[]).map(|(device, _)| device)
        }
        // Without memory to register, nothing is to be said about it.
        Err(_) => return vec![Finding::ok(ITEM, found)],
    };
    vec![match rings {
        Err(error) => refused(&error),
        Ok(device) => {
            let registered = device.stats().registered_buffers;
            device.shutdown();
            match registered {
                true => Finding::ok(ITEM, format!("{found}; memory can be registered")),
                false => Finding::slow(
                    ITEM,
                    format!("{found}; but the pool cannot be registered (RLIMIT_MEMLOCK)"),
                    LOCK_MEND,
                ),
            }
        }
    }]
}

/// The rings that a mount would have.
fn settings(config: &Config) -> AioSettings {
    AioSettings {
        queue_depth: config.queue_depth,
        thread_count: config.thread_count,
        engine: Engine::IoUring,
        ..AioSettings::default()
    }
}

fn refused(error: &io::Error) -> Finding {
    let why = refusal(error);
    if error.raw_os_error() == Some(libc::ENOMEM) {
        let found = format!("no room for its rings: {why}; transfers go through threads, slower");
        return Finding::slow(ITEM, found, LOCK_MEND);
    }
    let mend = match setting("/proc/sys/kernel/io_uring_disabled").as_deref() {
        Some("1") => "sysctl kernel.io_uring_disabled=0 (as root), or join kernel.io_uring_group",
        Some("2") => "sysctl kernel.io_uring_disabled=0 (as root)",
        _ => {
            "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile: \
             docker run --security-opt seccomp=PROFILE.json"
        }
    };
    Finding::fails(ITEM, why, fallback(mend))
}

/// The mend, and what happens without it.
fn fallback(mend: &str) -> String {
    format!("{mend}; until then a mount falls back to threads, which are slower")
}
