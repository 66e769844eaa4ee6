//! Who asks, and which partitions below a folder that concerns: the kernel has only checked the folder itself.

use rustix::thread::CapabilitySet;

use crate::capabilities;
use crate::fs::{AccessCheck, Attributes, Tree};
use crate::shares::User;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Asker {
    /// User.
    pub uid: u32,
    /// Primary group.
    pub gid: u32,
    /// Thread, which waits for the answer; 0 for one in a pid namespace that cannot be seen from here.
    pub pid: u32,
}

/// What an asker's rights follow from: user, groups and capabilities, as they were when it asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Member {
    pub(super) uid: u32,
    gid: u32,
    /// Supplementary ones, in ascending order.
    groups: Vec<u32>,
    capabilities: CapabilitySet,
}

impl Asker {
    /// As somebody who takes shares.
    pub(super) fn user(self) -> User {
        User::new(self.uid, self.pid)
    }

    /// To be called while the asker waits for its answer: its groups and capabilities are its thread's.
    pub(super) fn member(self) -> Member {
        let status = capabilities::status(self.pid).unwrap_or_default();
        let mut groups = groups_of(&status, self.uid).unwrap_or_default();
        groups.sort_unstable();
        let capabilities = capabilities::in_status(&status, self.pid, self.uid);
        Member { uid: self.uid, gid: self.gid, groups, capabilities }
    }

    /// Returns true when the asker is in this group. To be called while it waits for its answer.
    pub(super) fn is_in(self, group: u32) -> bool {
        self.gid == group || self.member().groups.binary_search(&group).is_ok()
    }
}

/// The supplementary groups in a `/proc/PID/status`, if it is one of `uid`'s.
fn groups_of(status: &str, uid: u32) -> Option<Vec<u32>> {
    let numbers = |name: &str| -> Option<Vec<u32>> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().map(|number| number.parse().ok()).collect()
    };
    // Real, effective, saved, filesystem: requests carry the last.
    if numbers("Uid:")?.get(3) != Some(&uid) {
        return None;
    }
    numbers("Groups:")
}

/// What an asker may reach and write. Belongs to the thread that walks for it.
#[derive(Debug)]
pub(super) enum Rights {
    /// Of whom no permission is asked.
    All,
    /// As the kernel judges, ACLs included.
    Checked(AccessCheck),
    /// By mode bits: the kernel does not check for others where the daemon is no superuser.
    Modes(Member),
}

impl Rights {
    pub(super) fn of(member: Member) -> Self {
        let Member { uid, gid, .. } = member;
        if member.capabilities.contains(CapabilitySet::DAC_OVERRIDE) {
            return Self::All;
        }
        match AccessCheck::new(uid, gid, &member.groups, member.capabilities) {
            Ok(check) => Self::Checked(check),
            Err(errno) => {
                log::debug!("a request of user {uid} is judged by mode bits alone: {errno}");
                Self::Modes(member)
            }
        }
    }

    pub(super) fn may_write(&self, tree: &Tree, attributes: &Attributes) -> bool {
        match self {
            Self::All => true,
            Self::Checked(check) => tree.may_write(attributes.ino, check).unwrap_or(false),
            Self::Modes(member) => member.may(0o2, attributes),
        }
    }

    pub(super) fn may_read(&self, tree: &Tree, attributes: &Attributes) -> bool {
        match self {
            Self::All => true,
            Self::Checked(check) => tree.may_read(attributes.ino, check).unwrap_or(false),
            Self::Modes(member) => member.may(0o4, attributes),
        }
    }

    /// Whether who asks could find what is in a folder.
    pub(super) fn may_list(&self, tree: &Tree, attributes: &Attributes) -> bool {
        match self {
            Self::All => true,
            Self::Checked(check) => tree.may_list(attributes.ino, check).unwrap_or(false),
            Self::Modes(member) => member.may(0o5, attributes),
        }
    }
}

impl Member {
    /// Whether the mode grants all of `bits`, which are those of `others`.
    fn may(&self, bits: u32, attributes: &Attributes) -> bool {
        let Member { uid, gid, .. } = *self;
        let bits = if uid == attributes.uid {
            bits << 6
        } else if gid == attributes.gid || self.groups.contains(&attributes.gid) {
            bits << 3
        } else {
            bits
        };
        attributes.mode & bits == bits
    }
}

#[cfg(test)]
mod tests {
    use super::groups_of;

    #[test]
    fn groups_are_those_of_the_right_user() {
        let status =
            "Name:\tx\nUid:\t0\t0\t0\t1000\nGid:\t1\t1\t1\t1\nGroups:\t4 27 1000 \nNStgid:\t5\n";
        assert_eq!(groups_of(status, 1000), Some(vec![4, 27, 1000]));
        assert_eq!(groups_of(status, 0), None);
        assert_eq!(groups_of("Uid:\t7\t7\t7\t7\nGroups:\t\n", 7), Some(vec![]));
        assert_eq!(groups_of("Uid:\t7\t7\t7\t7\n", 7), None);
        assert_eq!(groups_of("", 0), None);
    }
}
