//! What somebody else may do in the swap folder, asked of the kernel.

use std::marker::PhantomData;
use std::os::fd::AsFd;

use rustix::thread::{CapabilitySet, CapabilitySets, Gid};

use super::Tree;
use crate::error::Result;
use crate::sys::{self, errno};

/// A thread's means to ask the kernel what a user may do: by mode bits, ACLs and all the user's groups. Bound to its thread, which
/// keeps the user's supplementary groups afterwards and is therefore to be one made for this.
#[derive(Debug)]
pub struct AccessCheck {
    uid: u32,
    gid: u32,
    own: CapabilitySets,
    /// The user's, as far as the daemon has them.
    theirs: CapabilitySets,
    bound_to_thread: PhantomData<*const ()>,
}

impl AccessCheck {
    /// Gives this thread the groups of a user, who has these capabilities.
    ///
    /// # Errors
    /// EPERM when the kernel refuses to check for others, as it does without CAP_SETUID and CAP_SETGID; ENOSYS
    /// before Linux 5.8.
    pub fn new(uid: u32, gid: u32, groups: &[u32], capabilities: CapabilitySet) -> Result<Self> {
        let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
        rustix::thread::set_thread_groups(&groups).map_err(errno)?;
        let own = rustix::thread::capabilities(None).map_err(errno)?;
        let effective = capabilities.intersection(own.permitted);
        let theirs = CapabilitySets { effective, ..own };
        let check = Self { uid, gid, own, theirs, bound_to_thread: PhantomData };
        // Whether the question can be asked at all.
        let anything = rustix::fs::open("/", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
        check.allows(anything.map_err(errno)?, rustix::fs::Access::EXISTS)?;
        Ok(check)
    }

    /// Whether the user has this access to the inode behind `descriptor`, which may be an O_PATH one.
    fn allows(&self, descriptor: impl AsFd, access: rustix::fs::Access) -> Result<bool> {
        let _acting = sys::act_as(self.uid, self.gid)?;
        // The daemon's own would override every permission.
        rustix::thread::set_capabilities(None, self.theirs).map_err(errno)?;
        let allowed = sys::may_access(descriptor, access);
        rustix::thread::set_capabilities(None, self.own).map_err(errno)?;
        match allowed {
            Err(crate::error::Errno::EACCES) => Ok(false),
            other => other.map(|()| true),
        }
    }
}

impl Tree {
    /// Whether a user may read the inode.
    ///
    /// # Errors
    /// ESTALE; what the kernel refuses to check with.
    pub fn may_read(&self, id: u64, check: &AccessCheck) -> Result<bool> {
        check.allows(self.descriptor(id)?, rustix::fs::Access::READ_OK)
    }

    /// Whether a user may write the inode.
    ///
    /// # Errors
    /// ESTALE; what the kernel refuses to check with.
    pub fn may_write(&self, id: u64, check: &AccessCheck) -> Result<bool> {
        check.allows(self.descriptor(id)?, rustix::fs::Access::WRITE_OK)
    }

    /// Whether a user could find what is in a folder.
    ///
    /// # Errors
    /// ESTALE; what the kernel refuses to check with.
    pub fn may_list(&self, id: u64, check: &AccessCheck) -> Result<bool> {
        use rustix::fs::Access;
        check.allows(self.descriptor(id)?, Access::READ_OK | Access::EXEC_OK)
    }
}
