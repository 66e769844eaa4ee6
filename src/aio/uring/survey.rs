//! What of io_uring this process may use.

use std::io;

use io_uring::{Probe, opcode};

use super::setup::make_ring;

/// Operations that transfers need, by their names in io_uring(7).
const NEEDED: [(&str, u8); 6] = [
    ("read", opcode::Read::CODE),
    ("write", opcode::Write::CODE),
    ("read_fixed", opcode::ReadFixed::CODE),
    ("write_fixed", opcode::WriteFixed::CODE),
    ("fsync", opcode::Fsync::CODE),
    ("poll_add", opcode::PollAdd::CODE),
];

/// Result of [`survey`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Survey {
    /// Operations that transfers need and the kernel has.
    pub supported: Vec<&'static str>,
    /// Operations that transfers need and the kernel lacks.
    pub missing: Vec<&'static str>,
    /// Whether the kernel has the newer flags (Linux 6.1) that save interrupts.
    pub single_issuer: bool,
}

/// Makes a small ring and asks it for its operations.
///
/// # Errors
///
/// The kernel's refusal: EPERM or ENOSYS where io_uring is switched off, ENOMEM where RLIMIT_MEMLOCK
/// leaves no room for a ring.
pub fn survey() -> io::Result<Survey> {
    let (ring, single_issuer) = make_ring(1)?;
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    let (supported, missing): (Vec<_>, Vec<_>) =
        NEEDED.into_iter().partition(|(_, code)| probe.is_supported(*code));
    let names = |list: Vec<(&'static str, u8)>| list.into_iter().map(|(name, _)| name).collect();
    Ok(Survey { supported: names(supported), missing: names(missing), single_issuer })
}

/// A needed operation that a ring lacks, by its probe.
pub(super) fn first_missing(probe: &Probe) -> Option<&'static str> {
    NEEDED.iter().find(|(_, code)| !probe.is_supported(*code)).map(|(name, _)| *name)
}
