//! What an asker may do with what is not everybody's, and which programs' rights end with what it does.

use rustix::thread::CapabilitySet;

use super::rights::Asker;
use super::{Stale, Volume};
use crate::capabilities;
use crate::error::Result;
use crate::fs::FileKind;

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

    /// Returns true when the asker has one of these capabilities.
    pub(super) fn has(self, any: CapabilitySet) -> bool {
        capabilities::of_thread(self.pid, self.uid).intersects(any)
    }
}

const SET_USER_ID: u32 = 0o4000;
const SET_GROUP_ID: u32 = 0o2000;
const GROUP_EXECUTES: u32 = 0o010;

/// What stays of a mode when somebody without CAP_FSETID changes the file's bytes. Without the group's execute bit
/// set-group-id is no right of a program, and stays for members of the group.
fn without_set_ids(mode: u32, is_member: impl FnOnce() -> bool) -> u32 {
    let mut kept = mode & !SET_USER_ID;
    if mode & SET_GROUP_ID != 0 && (mode & GROUP_EXECUTES != 0 || !is_member()) {
        kept &= !SET_GROUP_ID;
    }
    kept
}

impl Volume {
    /// Returns true when a file that the asker makes with this mode keeps its set-group-id bit if it gets the folder's
    /// group. Only older kernels leave that to a filesystem. Looks at the asker only when there is such a bit.
    #[must_use]
    pub fn keeps_set_group_id(&self, asker: Asker, folder: u64, mode: u32) -> bool {
        let is_member = || self.tree.attributes(folder).is_ok_and(|folder| asker.is_in(folder.gid));
        mode & libc::S_ISGID != 0 && (asker.has(CapabilitySet::FSETID) || is_member())
    }

    /// Clears the set-user-id and set-group-id bits of a file that `asker`, who has not CAP_FSETID, changes. To be
    /// called before the change: nobody runs new bytes with the old rights, the kernel's cached mode included.
    ///
    /// # Errors
    /// ESTALE, and what chmod fails with.
    pub fn drop_privileges(&self, asker: Asker, id: u64) -> Result<()> {
        let attributes = self.tree.attributes(id)?;
        let mode = attributes.mode & 0o7777;
        let kept = without_set_ids(mode, || asker.is_in(attributes.gid));
        if kept == mode || attributes.kind != FileKind::Regular {
            return Ok(());
        }
        self.tree.set_mode(id, kept)?;
        self.attributes_changed(id);
        self.invalidate(id, Stale::Attributes);
        Ok(())
    }

    /// Clears the set-group-id bit, where the kernel says that an ACL's setter may not keep it.
    ///
    /// # Errors
    /// ESTALE, and what chmod fails with.
    pub fn drop_set_group_id(&self, id: u64) -> Result<()> {
        let mode = self.tree.attributes(id)?.mode & 0o7777;
        if mode & SET_GROUP_ID == 0 {
            return Ok(());
        }
        self.tree.set_mode(id, mode & !SET_GROUP_ID)?;
        self.attributes_changed(id);
        self.invalidate(id, Stale::Attributes);
        Ok(())
    }

    /// As [`Volume::drop_privileges`], for a change of which the kernel does not say whether the asker has CAP_FSETID.
    ///
    /// # Errors
    /// As [`Volume::drop_privileges`].
    pub fn drop_privileges_unless_exempt(&self, asker: Asker, id: u64) -> Result<()> {
        let mode = self.tree.attributes(id)?.mode;
        if mode & (SET_USER_ID | SET_GROUP_ID) == 0 || asker.has(CapabilitySet::FSETID) {
            return Ok(());
        }
        self.drop_privileges(asker, id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn set_ids_go_as_the_kernel_has_it() {
        for (mode, is_member, kept) in [
            (0o6777, true, 0o777),
            (0o6767, true, 0o2767),
            (0o6767, false, 0o767),
            (0o2711, true, 0o711),
            (0o2701, true, 0o2701),
            (0o5600, false, 0o1600),
            (0o777, false, 0o777),
        ] {
            assert_eq!(without_set_ids(mode, || is_member), kept, "{mode:o} {is_member}");
        }
    }
}
