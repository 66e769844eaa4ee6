//! What an asker may do beyond its user's and groups' rights: its capabilities.
//!
//! User 0 alone is nobody in particular: a container without capabilities has one, and so has a user namespace into which
//! root was mapped. What the kernel lets root do follows from capabilities in the first user namespace, so these are
//! looked at, in `/proc`, for the few requests that are not everybody's. The asker waits for its answer meanwhile, also
//! when it is killed: its id is given to nobody else. Where nothing can be found out it has none.

use std::os::unix::fs::MetadataExt;

use rustix::thread::CapabilitySet;

use super::rights::Asker;

/// Any of them overrides what a file's mode denies to readers.
const READS_ALL: CapabilitySet = CapabilitySet::DAC_OVERRIDE.union(CapabilitySet::DAC_READ_SEARCH);

impl Asker {
    /// Returns true when the asker may decide for the whole mount: as the user whose mount it is, or with the capability
    /// that unmounting takes. Root's mount is owned by its capabilities alone.
    pub(super) fn owns_mount(self) -> bool {
        let owner = rustix::process::geteuid();
        (self.uid == owner.as_raw() && !owner.is_root()) || self.has(CapabilitySet::SYS_ADMIN)
    }

    /// Returns true when the asker may read what names other users' partitions.
    pub(super) fn reads_all(self) -> bool {
        let owner = rustix::process::geteuid();
        (self.uid == owner.as_raw() && !owner.is_root()) || self.has(READS_ALL)
    }

    /// Returns true when the asker may open the control files that name partitions. The mode of these leaves it to the
    /// kernel where the asker's process cannot be seen from here.
    #[must_use]
    pub fn may_open_private(self) -> bool {
        (self.pid == 0 && self.uid == 0) || self.reads_all()
    }

    /// Returns true when the asker may make set-group-id files of any group. Only older kernels leave that to a
    /// filesystem.
    #[must_use]
    pub fn keeps_set_group_id(self) -> bool {
        self.has(CapabilitySet::FSETID)
    }

    /// Returns true when the asker has one of these capabilities.
    pub(super) fn has(self, any: CapabilitySet) -> bool {
        self.capabilities().intersects(any)
    }

    fn capabilities(self) -> CapabilitySet {
        let status = self.status();
        status.map_or(CapabilitySet::empty(), |status| self.capabilities_in(&status))
    }

    /// `/proc/PID/status` of the asker's thread, if it can be found.
    pub(super) fn status(self) -> Option<String> {
        if self.pid == 0 || !sees_own_processes() {
            return None;
        }
        std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok()
    }

    /// The capabilities in such a text, where they mean anything here.
    pub(super) fn capabilities_in(self, status: &str) -> CapabilitySet {
        match effective(status, self.uid) {
            Some(set) if !set.is_empty() && is_of_our_users(self.pid) => set,
            _ => CapabilitySet::empty(),
        }
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

    fn asker(uid: u32, pid: u32) -> Asker {
        Asker { uid, gid: 0, pid }
    }

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
            assert!(!asker(0, pid).has(CapabilitySet::all()));
        }
        // Another user's number with this process's id.
        let uid = rustix::process::geteuid().as_raw();
        assert!(!asker(uid + 1, std::process::id()).has(CapabilitySet::all()));
    }

    #[test]
    fn a_thread_is_judged_by_its_own_capabilities() {
        let uid = rustix::process::geteuid().as_raw();
        let ours = rustix::thread::capabilities(None).unwrap();
        let this =
            move || asker(uid, rustix::thread::gettid().as_raw_nonzero().get().cast_unsigned());
        assert_eq!(this().capabilities(), ours.effective);
        let bare = std::thread::spawn(move || {
            let none = CapabilitySet::empty();
            let sets = rustix::thread::CapabilitySets { effective: none, ..ours };
            rustix::thread::set_capabilities(None, sets).unwrap();
            this().capabilities()
        });
        assert_eq!(bare.join().unwrap(), CapabilitySet::empty());
    }
}
