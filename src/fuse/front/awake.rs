//! Keeps idle processors from falling asleep while a client makes one small call after the other.
//!
//! Client and daemon take turns, and whoever has nothing to do leaves its processor idle. In a virtual machine an idle
//! processor is given back to the host, and waking it takes longer than all the rest of a small request: 35 to
//! 50 µs. The kernel lets a process say how long that may take (PM QoS, `/dev/cpu_dma_latency`); it forgets
//! what was said when the process ends.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::machine;

/// Where the kernel is told. Open to root.
pub(crate) const REQUESTS: &str = "/dev/cpu_dma_latency";

/// With more processors none is kept awake: all of them would be, for the sake of two.
const PROCESSORS_MAX: usize = 16;

/// Microseconds that waking up may take. A virtual machine's only sleep is said to take one, so there it must be none
/// at all: the idle processor looks for work. Elsewhere two leave the shortest sleep.
const GUEST_US: i32 = 0;
/// See [`GUEST_US`].
const HOST_US: i32 = 2;

/// Takes the request back (`PM_QOS_DEFAULT_VALUE`).
const ANY: i32 = -1;

/// Whether processors are to stay awake.
#[derive(Debug)]
pub(super) struct Awake {
    /// `None` where it cannot be asked for.
    requests: Option<Mutex<File>>,
    wish: i32,
    /// What was asked for last. Changed with `requests` locked.
    held: AtomicBool,
}

impl Awake {
    /// That asks for nothing where that is not `wanted`, not allowed or of no use.
    pub(super) fn new(wanted: bool) -> Awake {
        let processors = machine::processors();
        // On one processor nobody wakes another.
        let requests = match wanted && (2..=PROCESSORS_MAX).contains(&processors) {
            true => OpenOptions::new().write(true).open(REQUESTS).ok(),
            false => None,
        };
        let is_guest = machine::text(machine::IDLE_DRIVER).is_ok_and(|name| name == "haltpoll");
        Awake {
            requests: requests.map(Mutex::new),
            wish: if is_guest { GUEST_US } else { HOST_US },
            held: AtomicBool::new(false),
        }
    }

    /// From now on idle processors wake up quickly.
    pub(super) fn hold(&self) {
        self.change(true);
    }

    /// From now on they may sleep.
    pub(super) fn let_go(&self) {
        self.change(false);
    }

    fn change(&self, hold: bool) {
        let Some(requests) = &self.requests else { return };
        if self.held.load(Ordering::Relaxed) == hold {
            return;
        }
        let mut requests = requests.lock();
        if self.held.load(Ordering::Relaxed) != hold {
            let wish = if hold { self.wish } else { ANY };
            match requests.write_all(&wish.to_ne_bytes()) {
                Ok(()) => self.held.store(hold, Ordering::Relaxed),
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
        let awake = Awake {
            requests: Some(Mutex::new(requests)),
            wish: GUEST_US,
            held: AtomicBool::new(false),
        };
        awake.let_go();
        for _ in 0..3 {
            awake.hold();
        }
        awake.let_go();
        awake.let_go();
        let told = std::fs::read(file.path()).unwrap();
        assert_eq!(told, [GUEST_US.to_ne_bytes(), ANY.to_ne_bytes()].concat());
    }

    #[test]
    fn nobody_is_asked_where_it_is_not_wanted() {
        let awake = Awake::new(false);
        awake.hold();
        assert!(awake.requests.is_none() && !awake.held.load(Ordering::Relaxed));
    }
}
