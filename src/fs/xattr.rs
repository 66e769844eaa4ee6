//! Extended attributes, as the swap folder's filesystem has them. No name is special here.

use std::ffi::OsStr;

use rustix::fs::XattrFlags;

use super::{Tree, link_of};
use crate::error::{Errno, Result};
use crate::sys::errno;

/// Room for a first attempt, in bytes: enough for what files usually carry.
const FIRST_BYTES: usize = 4096;

/// The largest value or list of names the kernel hands out (XATTR_SIZE_MAX, XATTR_LIST_MAX), in
/// bytes.
const XATTR_BYTES_MAX: usize = 65536;

/// What [`Tree::set_xattr`] does about an attribute that exists.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum XattrMode {
    /// Replaces it.
    Any,
    /// Fails with EEXIST (XATTR_CREATE).
    Create,
    /// Replaces it; fails with ENODATA when there is none (XATTR_REPLACE).
    Replace,
}

impl XattrMode {
    /// The mode that setxattr(2) flags ask for.
    ///
    /// # Errors
    /// EINVAL for any but XATTR_CREATE or XATTR_REPLACE alone.
    pub fn from_flags(flags: u32) -> Result<Self> {
        match XattrFlags::from_bits_retain(flags) {
            XattrFlags::CREATE => Ok(Self::Create),
            XattrFlags::REPLACE => Ok(Self::Replace),
            flags if flags.is_empty() => Ok(Self::Any),
            _ => Err(Errno::EINVAL),
        }
    }
}

impl Tree {
    /// The value of an attribute.
    ///
    /// # Errors
    /// ENODATA when there is none; EOPNOTSUPP for a name the filesystem does not take; ESTALE.
    pub fn xattr(&self, id: u64, name: &OsStr) -> Result<Vec<u8>> {
        let descriptor = self.descriptor(id)?;
        let link = link_of(&descriptor);
        read_whole(|room| rustix::fs::getxattr(&link, name, room))
    }

    /// The names of all attributes, each followed by a NUL, as listxattr(2) gives them.
    ///
    /// # Errors
    /// EOPNOTSUPP; ESTALE.
    pub fn list_xattrs(&self, id: u64) -> Result<Vec<u8>> {
        let descriptor = self.descriptor(id)?;
        let link = link_of(&descriptor);
        read_whole(|room| rustix::fs::listxattr(&link, room))
    }

    /// Sets an attribute.
    ///
    /// # Errors
    /// As `mode` says; EPERM for a user attribute of anything but a file or directory; EOPNOTSUPP
    /// for a name the filesystem does not take; ENOSPC; ERANGE; E2BIG; ESTALE.
    pub fn set_xattr(&self, id: u64, name: &OsStr, value: &[u8], mode: XattrMode) -> Result<()> {
        let descriptor = self.descriptor(id)?;
        let flags = match mode {
            XattrMode::Any => XattrFlags::empty(),
            XattrMode::Create => XattrFlags::CREATE,
            XattrMode::Replace => XattrFlags::REPLACE,
        };
        rustix::fs::setxattr(link_of(&descriptor), name, value, flags).map_err(errno)
    }

    /// Removes an attribute.
    ///
    /// # Errors
    /// ENODATA when there is none; EPERM; EOPNOTSUPP; ESTALE.
    pub fn remove_xattr(&self, id: u64, name: &OsStr) -> Result<()> {
        let descriptor = self.descriptor(id)?;
        rustix::fs::removexattr(link_of(&descriptor), name).map_err(errno)
    }
}

/// What `read` gives, however long.
fn read_whole(read: impl Fn(&mut [u8]) -> rustix::io::Result<usize>) -> Result<Vec<u8>> {
    let mut first = [0; FIRST_BYTES];
    match read(&mut first) {
        Ok(count) => return Ok(first[..count].to_vec()),
        Err(rustix::io::Errno::RANGE) => {}
        Err(error) => return Err(errno(error)),
    }
    let mut whole = vec![0; XATTR_BYTES_MAX];
    let count = read(&mut whole).map_err(errno)?;
    whole.truncate(count);
    Ok(whole)
}
