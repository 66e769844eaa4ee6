//! Memory for the pool: enough of it, the right to lock it, huge pages.

use std::io;
use std::sync::Arc;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::{Finding, setting};
use crate::config::Config;
use crate::memory::{self, Fit, Room};
use crate::pool::{Arena, ArenaOptions};
use crate::sys_process::reason;
use crate::units::{GIB, MIB, format_short};

/// What to do where memory may not be locked.
pub(super) const LOCK_MEND: &str = "ulimit -l unlimited; for good: a line `USER - memlock unlimited` in \
    /etc/security/limits.conf, LimitMEMLOCK=infinity in a systemd unit, docker run --ulimit memlock=-1";

/// Bytes tried at most; a whole pool may take seconds.
const TRIAL_BYTES_MAX: u64 = 256 * MIB;

const HUGE_PAGE_BYTES: u64 = 2 * MIB;

const THP_SETTING: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

/// A piece of a pool.
pub(super) struct Trial {
    /// Locked where permitted, in huge pages where there are any.
    pub(super) arena: io::Result<Arc<Arena>>,
    /// What there was before the piece was taken.
    room: Room,
}

impl Trial {
    pub(super) fn new(config: &Config) -> Self {
        let most = memory::available().unwrap_or(GIB) / 4;
        let size = config.pool_size.min(TRIAL_BYTES_MAX).min(most) / HUGE_PAGE_BYTES;
        let size = usize::try_from(size.max(1) * HUGE_PAGE_BYTES).expect("below the maximum");
        let options = ArenaOptions { size, pin_memory: config.pin_memory, huge_pages: true };
        let room = Room::look(config.pool_size);
        Self { arena: Arena::new(options), room }
    }
}

pub(super) fn look(config: &Config, trial: &Trial) -> Vec<Finding> {
    let arena = match &trial.arena {
        Ok(arena) => arena,
        Err(error) => {
            let found = format!("no memory to be had: {}", reason(error));
            return vec![Finding::fails("memory", found, "end other programs, or add memory")];
        }
    };
    vec![enough(config, &trial.room), lock(config, arena), huge_pages(config, arena)]
}

fn enough(config: &Config, room: &Room) -> Finding {
    let pool = format_short(config.pool_size);
    let Some(available) = room.available else {
        return Finding::ok("memory", format!("{pool} for the pool; what is free is not known"));
    };
    let found = format!("{pool} for the pool, {} available", format_short(available));
    let mend = room.mend(config.pool_size_min());
    let finding = match room.fit() {
        Fit::TooLarge => Finding::fails("memory", found, mend),
        Fit::Tight => Finding::slow("memory", found, mend),
        Fit::Fits => Finding::ok("memory", found),
    };
    finding.value("pool_bytes", config.pool_size).value("available_bytes", available)
}

fn lock(config: &Config, arena: &Arena) -> Finding {
    let item = "memory-lock";
    if !config.pin_memory {
        return Finding::ok(item, "not asked for (pin_memory is off)");
    }
    let limit = getrlimit(Resource::Memlock).current;
    let shown = limit.map_or_else(|| "unlimited".to_owned(), format_short);
    let privileged =
        capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::IPC_LOCK));
    let enough = privileged || limit.is_none_or(|limit| limit >= config.pool_size);
    let pool = format_short(config.pool_size);
    let finding = match (arena.locked(), enough) {
        (true, true) if privileged => {
            Finding::ok(item, format!("the pool of {pool} can be locked (CAP_IPC_LOCK)"))
        }
        (true, true) => {
            Finding::ok(item, format!("the pool of {pool} can be locked (RLIMIT_MEMLOCK {shown})"))
        }
        (false, true) => {
            let why = arena.lock_refusal().unwrap_or("refused");
            Finding::slow(item, format!("the pool would not be locked: {why}"), LOCK_MEND)
        }
        (_, false) => {
            let found =
                format!("RLIMIT_MEMLOCK is {shown}: the pool of {pool} would not be locked");
            Finding::slow(item, found, LOCK_MEND)
        }
    };
    finding.value("limit_bytes", limit).value("pool_bytes", config.pool_size)
}

fn huge_pages(config: &Config, arena: &Arena) -> Finding {
    let item = "huge-pages";
    let huge = arena.huge();
    match huge {
        "hugetlb" => return Finding::ok(item, "reserved ones (hugetlb)").value("kind", huge),
        "thp" => return Finding::ok(item, "transparent ones").value("kind", huge),
        _ => {}
    }
    let pages = config.pool_size.div_ceil(HUGE_PAGE_BYTES);
    let reserve = format!("sysctl vm.nr_hugepages={pages} (as root)");
    let switch = setting(THP_SETTING);
    let (why, mend) = match switch.as_deref() {
        Some(text) if text.contains("[never]") => (
            "transparent ones are switched off".to_owned(),
            format!("echo madvise > {THP_SETTING} (as root)"),
        ),
        Some(_) => (
            "memory is too fragmented for them".to_owned(),
            format!("echo 1 > /proc/sys/vm/compact_memory (as root), or {reserve}"),
        ),
        None => ("this kernel has no transparent ones".to_owned(), reserve),
    };
    Finding::slow(item, format!("none: {why}; transfers are cut into small pages"), mend)
        .value("kind", huge)
}
