//! What an asker may do with what is not everybody's.

use rustix::thread::CapabilitySet;

use super::rights::Asker;
use crate::capabilities;

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
        capabilities::of_thread(self.pid, self.uid).intersects(any)
    }
}
