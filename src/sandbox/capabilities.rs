//! Capabilities, and the way to new ones.

use std::io;

use rustix::thread::{CapabilitySet, CapabilitySets};

/// What serving takes of root's rights.
///
/// Opening files that only their owners may open, by names and by handles (DAC_OVERRIDE, DAC_READ_SEARCH); making them for
/// their owners (SETUID, SETGID) and giving them away (CHOWN); changing their modes, times, ACLs and sticky folders
/// (FOWNER), keeping set-id bits and file capabilities for those who may (FSETID, SETFCAP); device nodes (MKNOD). Locking
/// the pool where the limit could not be lifted (IPC_LOCK), and the thread that says in time that the daemon is alive
/// (SYS_NICE).
pub(crate) const SERVING: CapabilitySet = CapabilitySet::DAC_OVERRIDE
    .union(CapabilitySet::DAC_READ_SEARCH)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::CHOWN)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::IPC_LOCK)
    .union(CapabilitySet::SYS_NICE);

/// What listening at a port below 1024 takes beside it, where the metrics are to be shown at one.
pub(crate) const LOW_PORTS: CapabilitySet = CapabilitySet::NET_BIND_SERVICE;

/// Gives up all capabilities of this thread but `kept`, for good: neither it nor what it starts gets them back.
///
/// # Errors
/// What the kernel refuses with.
pub(crate) fn give_up_capabilities(kept: CapabilitySet) -> io::Result<()> {
    use rustix::thread::{
        capabilities, capability_is_in_bounding_set, clear_ambient_capability_set,
        remove_capability_from_bounding_set, set_capabilities,
    };
    let own = capabilities(None)?;
    let _ = clear_ambient_capability_set();
    // First, for it takes one itself.
    if own.effective.contains(CapabilitySet::SETPCAP) {
        let all = (0..u64::BITS).map(|number| CapabilitySet::from_bits_retain(1 << number));
        for one in all.take_while(|one| capability_is_in_bounding_set(*one).is_ok()) {
            if !kept.contains(one) {
                remove_capability_from_bounding_set(one)?;
            }
        }
    }
    let sets = CapabilitySets {
        effective: own.effective.intersection(kept),
        permitted: own.permitted.intersection(kept),
        inheritable: CapabilitySet::empty(),
    };
    Ok(set_capabilities(None, sets)?)
}

/// From now on no program that this thread, or one that it starts, might run has more rights than it.
///
/// # Errors
/// EINVAL before Linux 3.5.
pub(crate) fn give_up_new_privileges() -> io::Result<()> {
    Ok(rustix::thread::set_no_new_privs(true)?)
}
