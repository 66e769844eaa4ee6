//! What threads that ask may do beyond their user's and groups' rights: their capabilities.
//!
//! User 0 alone is nobody in particular: a container without capabilities has one, and so has a user namespace into which
//! root was mapped. What the kernel lets root do follows from capabilities in the first user namespace, so these are
//! looked at, in `/proc`, for the few requests that are not everybody's. The asker waits for its answer meanwhile, also
//! when it is killed: its id is given to nobody else. Where nothing can be found out it has none.

use std::os::unix::fs::MetadataExt;

use rustix::thread::CapabilitySet;

/// The capabilities of a thread that asks as user `uid`; none where that cannot be found out.
pub(crate) fn of_thread(pid: u32, uid: u32) -> CapabilitySet {
    status(pid).map_or(CapabilitySet::empty(), |status| in_status(&status, pid, uid))
}

/// `/proc/PID/status` of a thread, if it can be found.
pub(crate) fn status(pid: u32) -> Option<String> {
    if pid == 0 || !sees_own_processes() {
        return None;
    }
    std::fs::read_to_string(format!("/proc/{pid}/status")).ok()
}

/// The capabilities in such a text, where they mean anything here.
pub(crate) fn in_status(status: &str, pid: u32, uid: u32) -> CapabilitySet {
    match effective(status, uid) {
        Some(set) if !set.is_empty() && is_of_our_users(pid) => set,
        _ => CapabilitySet::empty(),
    }
}

/// Returns true when the ids in `/proc` are those that requests carry: `/proc` may be another namespace's.
fn sees_own_processes() -> bool {
    let own = std::fs::read_link("/proc/self");
    own.is_ok_and(|own| own.as_os_str() == std::process::id().to_string().as_str())
}

/// The effective capabilities in a `/proc/PID/status`, if it is one of `uid`'s.
fn effective(status: &str, uid: u32) -> Option<CapabilitySet> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    // Real, effective, saved, filesystem: requests carry the last.
    if field("Uid:")?.split_whitespace().nth(3)?.parse() != Ok(uid) {
        return None;
    }
    let bits = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
    Some(CapabilitySet::from_bits_truncate(bits))
}

/// Returns true when a thread is in the daemon's user namespace: in another one its capabilities are over others' things.
fn is_of_our_users(pid: u32) -> bool {
    let namespace = |who: &str| {
        let found = std::fs::metadata(format!("/proc/{who}/ns/user"))?;
        Ok::<_, std::io::Error>((found.dev(), found.ino()))
    };
    let pid = pid.to_string();
    match (namespace("self"), namespace(&pid)) {
        (Ok(ours), Ok(theirs)) => ours == theirs,
        // Refused where the asker has more capabilities than the daemon. One of a namespace below would not be refused
        // to root, to whom these belong; its map of ids tells for the others.
        (Ok(_), Err(error)) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            let same = |map: &str| {
                let read = |who: &str| std::fs::read(format!("/proc/{who}/{map}")).ok();
                let ours = read("self");
                ours.is_some() && ours == read(&pid)
            };
            same("uid_map") && same("gid_map")
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_those_of_the_right_user() {
        let status =
            "Name:\tCapEff: ff\nUid:\t0\t0\t0\t1000\nCapPrm:\t0f\nCapEff:\t0000000000000003\n";
        let expected = CapabilitySet::CHOWN | CapabilitySet::DAC_OVERRIDE;
        assert_eq!(effective(status, 1000), Some(expected));
        assert_eq!(effective(status, 0), None);
        assert_eq!(effective("Uid:\t0\t0\t0\t0\nCapEff:\tx\n", 0), None);
        assert_eq!(effective("Uid:\t0\t0\t0\t0\n", 0), None);
        assert_eq!(effective("", 0), None);
    }

    #[test]
    fn who_cannot_be_seen_has_none() {
        for pid in [0, u32::MAX] {
            assert!(of_thread(pid, 0).is_empty());
        }
        // Another user's number with this process's id.
        let uid = rustix::process::geteuid().as_raw();
        assert!(of_thread(std::process::id(), uid + 1).is_empty());
    }

    #[test]
    fn a_thread_is_judged_by_its_own_capabilities() {
        let uid = rustix::process::geteuid().as_raw();
        let ours = rustix::thread::capabilities(None).unwrap();
        let this =
            move || of_thread(rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned(), uid);
        assert_eq!(this(), ours.effective);
        let bare = std::thread::spawn(move || {
            let none = CapabilitySet::empty();
            let sets = rustix::thread::CapabilitySets { effective: none, ..ours };
            rustix::thread::set_capabilities(None, sets).unwrap();
            this()
        });
        assert_eq!(bare.join().unwrap(), CapabilitySet::empty());
    }
}
