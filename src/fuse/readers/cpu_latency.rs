//! Keeps idle processors from falling asleep while a client makes one small call after the other (PM QoS).
//!
//! Client and daemon take turns, and whoever has nothing to do leaves its processor idle. A virtual machine gives an idle
//! processor back to its host, and waking it takes 35 to 50 µs: longer than all the rest of a small request. The kernel
//! lets a process limit that time (`/dev/cpu_dma_latency`), and forgets the limit when the process ends.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::machine;

/// The kernel's file of limits. Open to root.
pub(crate) const REQUESTS: &str = "/dev/cpu_dma_latency";

/// On larger machines the limit is not set: it would keep all processors awake for the sake of two.
const PROCESSORS_MAX: usize = 16;

/// Microseconds that waking up may take in a virtual machine. Its only idle state claims to take one, so only 0 keeps the
/// processor from entering it.
const GUEST_US: i32 = 0;
/// Microseconds that waking up may take elsewhere: the shortest idle state stays allowed.
const HOST_US: i32 = 2;

/// Takes the limit back (`PM_QOS_DEFAULT_VALUE`).
const ANY_US: i32 = -1;

/// The daemon's limit on how long an idle processor may take to wake up.
#[derive(Debug)]
pub(super) struct CpuLatency {
    /// `None` where no limit can be set.
    requests: Option<Mutex<File>>,
    limit_us: i32,
    /// The limit is set. Changed with `requests` locked.
    is_set: AtomicBool,
}

impl CpuLatency {
    /// A limit that is not set yet. It never is unless `wanted`, allowed and of use.
    pub(super) fn new(wanted: bool) -> CpuLatency {
        let processors = machine::processors();
        // On one processor nobody wakes another.
        let requests = match wanted && (2..=PROCESSORS_MAX).contains(&processors) {
            true => OpenOptions::new().write(true).open(REQUESTS).ok(),
            false => None,
        };
        let is_guest = machine::text(machine::IDLE_DRIVER).is_ok_and(|name| name == "haltpoll");
        CpuLatency {
            requests: requests.map(Mutex::new),
            limit_us: if is_guest { GUEST_US } else { HOST_US },
            is_set: AtomicBool::new(false),
        }
    }

    /// Sets the limit, or takes it back. Asks the kernel only for a change.
    pub(super) fn keep_awake(&self, awake: bool) {
        let Some(requests) = &self.requests else { return };
        if self.is_set.load(Ordering::Relaxed) == awake {
            return;
        }
        let mut requests = requests.lock();
        if self.is_set.load(Ordering::Relaxed) != awake {
            let limit_us = if awake { self.limit_us } else { ANY_US };
            match requests.write_all(&limit_us.to_ne_bytes()) {
                Ok(()) => self.is_set.store(awake, Ordering::Relaxed),
                Err(error) => log::debug!("{REQUESTS}: {error}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_told_of_each_change_once() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let requests = OpenOptions::new().append(true).open(file.path()).unwrap();
        let latency = CpuLatency {
            requests: Some(Mutex::new(requests)),
            limit_us: GUEST_US,
            is_set: AtomicBool::new(false),
        };
        for awake in [false, true, true, true, false, false] {
            latency.keep_awake(awake);
        }
        let told = std::fs::read(file.path()).unwrap();
        assert_eq!(told, [GUEST_US.to_ne_bytes(), ANY_US.to_ne_bytes()].concat());
    }

    #[test]
    fn nobody_is_asked_where_it_is_not_wanted() {
        let latency = CpuLatency::new(false);
        latency.keep_awake(true);
        assert!(latency.requests.is_none() && !latency.is_set.load(Ordering::Relaxed));
    }
}
