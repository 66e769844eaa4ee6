//! The kernel's request and reply structures, as far as the front reads or writes them.
//!
//! Layouts as in the kernel's `include/uapi/linux/fuse.h`; they have not changed since protocol 7.23
//! ([`MINOR_MIN`]). Numbers are in the machine's own byte order.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::error::{Errno, Result};
use crate::shares::User;
use crate::volume::Asker;

/// The only major version that Linux has ever had.
pub(super) const MAJOR: u32 = 7;

/// The oldest protocol whose structures are these, and which can clone a session's descriptor (Linux 4.2).
pub(super) const MINOR_MIN: u32 = 23;

/// FUSE_WRITE_CACHE: pages written back from the page cache.
pub(super) const WRITE_CACHE: u32 = 1 << 0;
/// FUSE_WRITE_KILL_SUIDGID: drop the set-user-id and set-group-id bits.
pub(super) const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// FUSE_OPEN_KILL_SUIDGID: drop the set-user-id and set-group-id bits of a file that is truncated by opening it.
pub(super) const OPEN_KILL_SUIDGID: u32 = 1;
/// FUSE_FSYNC_FDATASYNC: leave out attributes that are not needed to read the data back.
pub(super) const FSYNC_FDATASYNC: u32 = 1 << 0;
/// FUSE_SETXATTR_ACL_KILL_SGID: who sets the ACL may not keep the set-group-id bit.
pub(super) const SETXATTR_ACL_KILL_SGID: u32 = 1 << 0;
/// FUSE_NOTIFY_INVAL_INODE, in a notification's error field.
pub(super) const NOTIFY_INVAL_INODE: i32 = 2;
/// FUSE_NOTIFY_PRUNE (Linux 6.18).
pub(super) const NOTIFY_PRUNE: i32 = 9;

/// Decodes the structure that arguments begin with; returns what follows it, too.
pub(super) fn decode<T: FromBytes>(arguments: &[u8]) -> Result<(T, &[u8])> {
    T::read_from_prefix(arguments).map_err(|_| Errno::EINVAL)
}

/// Decodes a name, which ends with a NUL.
pub(super) fn name(bytes: &[u8]) -> Result<&OsStr> {
    match bytes.strip_suffix(&[0]) {
        Some(name) if !name.is_empty() && !name.contains(&0) => Ok(OsStr::from_bytes(name)),
        _ => Err(Errno::EINVAL),
    }
}

/// `struct fuse_in_header`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InHeader {
    pub(super) len: u32,
    pub(super) opcode: u32,
    pub(super) unique: u64,
    pub(super) nodeid: u64,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) pid: u32,
    pub(super) extensions: u16,
    pub(super) padding: u16,
}

impl InHeader {
    /// Who asks.
    pub(super) fn user(&self) -> User {
        User::new(self.uid, self.pid)
    }

    /// Who asks, as one whose rights are looked up.
    pub(super) fn asker(&self) -> Asker {
        Asker { uid: self.uid, gid: self.gid, pid: self.pid }
    }
}

/// `struct fuse_out_header`.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OutHeader {
    pub(super) len: u32,
    /// A negative errno; the kind of a notification (`unique` 0).
    pub(super) error: i32,
    pub(super) unique: u64,
}

/// The part of `struct fuse_init_in` that every version has.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InitIn {
    pub(super) major: u32,
    pub(super) minor: u32,
}

/// `struct fuse_read_in`: of READ, READDIR and READDIRPLUS.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct ReadIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) read_flags: u32,
    pub(super) lock_owner: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

/// `struct fuse_write_in`.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct WriteIn {
    pub(super) fh: u64,
    pub(super) offset: u64,
    pub(super) size: u32,
    pub(super) write_flags: u32,
    pub(super) lock_owner: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

/// `struct fuse_write_out`.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct WriteOut {
    pub(super) size: u32,
    pub(super) padding: u32,
}

/// `struct fuse_open_in`.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OpenIn {
    pub(super) flags: u32,
    pub(super) open_flags: u32,
}

/// `struct fuse_create_in`; the name follows.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct CreateIn {
    pub(super) flags: u32,
    pub(super) mode: u32,
    pub(super) umask: u32,
    pub(super) open_flags: u32,
}

/// `struct fuse_setattr_in`. Seconds are signed.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct SetAttrIn {
    /// A set of [`fattr`]'s bits.
    pub(super) valid: u32,
    pub(super) padding: u32,
    pub(super) fh: u64,
    pub(super) size: u64,
    pub(super) lock_owner: u64,
    pub(super) atime: i64,
    pub(super) mtime: i64,
    pub(super) ctime: i64,
    pub(super) atimensec: u32,
    pub(super) mtimensec: u32,
    pub(super) ctimensec: u32,
    pub(super) mode: u32,
    pub(super) unused4: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) unused5: u32,
}

/// FATTR_*: bits that say which fields of [`SetAttrIn`] are valid.
pub(super) mod fattr {
    pub(in super::super) const MODE: u32 = 1 << 0;
    pub(in super::super) const UID: u32 = 1 << 1;
    pub(in super::super) const GID: u32 = 1 << 2;
    pub(in super::super) const SIZE: u32 = 1 << 3;
    pub(in super::super) const ATIME: u32 = 1 << 4;
    pub(in super::super) const MTIME: u32 = 1 << 5;
    pub(in super::super) const FH: u32 = 1 << 6;
    pub(in super::super) const ATIME_NOW: u32 = 1 << 7;
    pub(in super::super) const MTIME_NOW: u32 = 1 << 8;
    /// Drop the set-user-id and set-group-id bits: the asker has not CAP_FSETID.
    pub(in super::super) const KILL_SUIDGID: u32 = 1 << 11;
}

/// `struct fuse_open_out`.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct OpenOut {
    pub(super) fh: u64,
    pub(super) open_flags: u32,
    pub(super) backing_id: u32,
}

/// The beginning of `fuse_release_in`, `fuse_flush_in` and `fuse_fsync_in`. The second number holds the flags of open,
/// nothing, and the flags of the sync.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct HandleIn {
    pub(super) fh: u64,
    pub(super) flags: u32,
    pub(super) padding: u32,
}

/// `struct fuse_setxattr_in` as it is where the kernel has no FUSE_SETXATTR_EXT; name and value follow.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct SetXattrIn {
    pub(super) size: u32,
    pub(super) flags: u32,
}

/// What follows [`SetXattrIn`] where the kernel has FUSE_SETXATTR_EXT.
#[derive(Debug, Clone, Copy, Default, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct SetXattrExt {
    pub(super) setxattr_flags: u32,
    pub(super) padding: u32,
}

/// `struct fuse_getxattr_in`; the name follows.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct GetXattrIn {
    pub(super) size: u32,
    pub(super) padding: u32,
}

/// `struct fuse_getxattr_out`.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct GetXattrOut {
    pub(super) size: u32,
    pub(super) padding: u32,
}

/// `struct fuse_forget_in`.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct ForgetIn {
    pub(super) lookups: u64,
}

/// `struct fuse_batch_forget_in`; `count` [`ForgetOne`] follow.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct BatchForgetIn {
    pub(super) count: u32,
    pub(super) padding: u32,
}

/// `struct fuse_forget_one`.
#[derive(Debug, Clone, Copy, FromBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct ForgetOne {
    pub(super) nodeid: u64,
    pub(super) lookups: u64,
}

/// `struct fuse_attr`. Seconds are signed.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Attr {
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) atime: i64,
    pub(super) mtime: i64,
    pub(super) ctime: i64,
    pub(super) atimensec: u32,
    pub(super) mtimensec: u32,
    pub(super) ctimensec: u32,
    pub(super) mode: u32,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) rdev: u32,
    pub(super) blksize: u32,
    pub(super) flags: u32,
}

/// `struct fuse_attr_out`.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct AttrOut {
    pub(super) attr_valid: u64,
    pub(super) attr_valid_nsec: u32,
    pub(super) padding: u32,
    pub(super) attr: Attr,
}

/// `struct fuse_entry_out`.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct EntryOut {
    pub(super) nodeid: u64,
    pub(super) generation: u64,
    pub(super) entry_valid: u64,
    pub(super) attr_valid: u64,
    pub(super) entry_valid_nsec: u32,
    pub(super) attr_valid_nsec: u32,
    pub(super) attr: Attr,
}

/// `struct fuse_sx_time`.
#[derive(Debug, Clone, Copy, Default, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct StatxTime {
    pub(super) seconds: i64,
    pub(super) nanoseconds: u32,
    pub(super) reserved: i32,
}

/// `struct fuse_statx`.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct Statx {
    pub(super) mask: u32,
    pub(super) blksize: u32,
    pub(super) attributes: u64,
    pub(super) nlink: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mode: u16,
    pub(super) spare: u16,
    pub(super) ino: u64,
    pub(super) size: u64,
    pub(super) blocks: u64,
    pub(super) attributes_mask: u64,
    pub(super) atime: StatxTime,
    pub(super) btime: StatxTime,
    pub(super) ctime: StatxTime,
    pub(super) mtime: StatxTime,
    pub(super) rdev_major: u32,
    pub(super) rdev_minor: u32,
    pub(super) dev_major: u32,
    pub(super) dev_minor: u32,
    pub(super) spare2: [u64; 14],
}

/// `struct fuse_statx_out`.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct StatxOut {
    pub(super) attr_valid: u64,
    pub(super) attr_valid_nsec: u32,
    pub(super) flags: u32,
    pub(super) spare: [u64; 2],
    pub(super) stat: Statx,
}

/// `struct fuse_notify_prune_out`; the node ids follow.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct PruneOut {
    pub(super) count: u32,
    pub(super) padding: u32,
    pub(super) spare: u64,
}

/// `struct fuse_notify_inval_inode_out`.
#[derive(Debug, Clone, Copy, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(super) struct InvalInodeOut {
    pub(super) ino: u64,
    pub(super) offset: i64,
    pub(super) length: i64,
}

#[cfg(test)]
mod tests {
    use std::mem::{offset_of, size_of};

    use super::*;

    /// Sizes and offsets as a C compiler computes them from the kernel's header.
    #[test]
    fn structures_are_laid_out_as_the_kernels() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(offset_of!(InHeader, unique), 8);
        assert_eq!(offset_of!(InHeader, nodeid), 16);
        assert_eq!(offset_of!(InHeader, uid), 24);
        assert_eq!(offset_of!(InHeader, extensions), 36);
        assert_eq!((size_of::<OutHeader>(), offset_of!(OutHeader, unique)), (16, 8));
        assert_eq!((size_of::<ReadIn>(), offset_of!(ReadIn, size)), (40, 16));
        assert_eq!((size_of::<WriteIn>(), offset_of!(WriteIn, write_flags)), (40, 20));
        assert_eq!((offset_of!(WriteIn, size), offset_of!(WriteIn, flags)), (16, 32));
        assert_eq!((size_of::<WriteOut>(), size_of::<GetXattrOut>()), (8, 8));
        assert_eq!((size_of::<OpenIn>(), size_of::<OpenOut>()), (8, 16));
        assert_eq!(offset_of!(OpenOut, open_flags), 8);
        assert_eq!((size_of::<CreateIn>(), offset_of!(CreateIn, umask)), (16, 8));
        assert_eq!((size_of::<SetAttrIn>(), offset_of!(SetAttrIn, fh)), (88, 8));
        assert_eq!((offset_of!(SetAttrIn, size), offset_of!(SetAttrIn, atime)), (16, 32));
        assert_eq!((offset_of!(SetAttrIn, atimensec), offset_of!(SetAttrIn, mode)), (56, 68));
        assert_eq!((offset_of!(SetAttrIn, uid), offset_of!(SetAttrIn, gid)), (76, 80));
        assert_eq!((size_of::<HandleIn>(), offset_of!(HandleIn, flags)), (16, 8));
        assert_eq!((size_of::<GetXattrIn>(), size_of::<ForgetIn>()), (8, 8));
        assert_eq!((size_of::<SetXattrIn>(), offset_of!(SetXattrIn, size)), (8, 0));
        assert_eq!((size_of::<BatchForgetIn>(), size_of::<ForgetOne>()), (8, 16));
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!((offset_of!(Attr, mtime), offset_of!(Attr, ctimensec)), (32, 56));
        assert_eq!((offset_of!(Attr, mode), offset_of!(Attr, blksize)), (60, 80));
        assert_eq!((size_of::<AttrOut>(), offset_of!(AttrOut, attr)), (104, 16));
        assert_eq!((size_of::<EntryOut>(), offset_of!(EntryOut, attr)), (128, 40));
        assert_eq!(offset_of!(EntryOut, entry_valid_nsec), 32);
        assert_eq!(size_of::<InvalInodeOut>(), 24);
        assert_eq!((size_of::<SetXattrExt>(), size_of::<StatxTime>()), (8, 16));
        assert_eq!((size_of::<Statx>(), size_of::<StatxOut>()), (256, 288));
        assert_eq!((offset_of!(Statx, mode), offset_of!(Statx, ino)), (28, 32));
        assert_eq!((offset_of!(Statx, atime), offset_of!(Statx, rdev_major)), (64, 128));
        assert_eq!(offset_of!(StatxOut, stat), 32);
    }

    #[test]
    fn names_end_with_one_nul() {
        assert_eq!(name(b"a\0"), Ok(OsStr::new("a")));
        for bad in [&b""[..], b"\0", b"a", b"a\0b\0", b"a\0\0"] {
            assert_eq!(name(bad), Err(Errno::EINVAL), "{bad:?}");
        }
    }

    #[test]
    fn short_structures_are_refused() {
        assert!(decode::<ReadIn>(&[0; 39]).is_err());
        let (read, rest) = decode::<ReadIn>(&[1; 41]).unwrap();
        assert_eq!((read.size, rest), (0x0101_0101, &[1][..]));
    }
}
