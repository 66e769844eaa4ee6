//! The few system calls that no safe crate offers, made safe.

use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::thread::CapabilitiesSecureBits;
use smallvec::SmallVec;

use crate::error::{Errno, Result};

/// The largest file handle the kernel makes (MAX_HANDLE_SZ), in bytes.
const HANDLE_BYTES_MAX: usize = 128;

/// The same error as [`Errno`], from rustix's type.
pub(crate) fn errno(error: rustix::io::Errno) -> Errno {
    Errno::from_raw(error.raw_os_error())
}

/// Writes a range of a file from the page cache to the device and waits, as `flags` say.
///
/// # Errors
/// EIO and ENOSPC when writing fails, here or since the file was opened.
pub(crate) fn sync_file_range(file: impl AsFd, offset: u64, length: u64, flags: u32) -> Result<()> {
    let (offset, length) = (offset.cast_signed(), length.cast_signed());
    // SAFETY: sync_file_range needs an open descriptor, which `file` borrows for the call; it takes no memory.
    let outcome = unsafe { libc::sync_file_range(file.as_fd().as_raw_fd(), offset, length, flags) };
    Errno::result(outcome).map(drop)
}

/// `struct fiemap` with room for one extent.
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extent: FiemapExtent,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved_64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `FIEMAP_EXTENT_UNKNOWN` and `FIEMAP_EXTENT_DELALLOC`: the place is not chosen yet.
const EXTENT_UNPLACED: u32 = 2 | 4;

mod ioctl {
    nix::ioctl_readwrite!(fiemap, b'f', 11, super::Fiemap);
}

/// Lets the calling thread run before all ordinary ones, when it does little and must be in time.
///
/// # Errors
/// EPERM without CAP_SYS_NICE or RLIMIT_RTPRIO.
pub(crate) fn go_first() -> Result<()> {
    let priority = libc::sched_param { sched_priority: 1 };
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: sched_setscheduler wants a parameter of the policy's kind, which lives for the call; 0 is this thread.
    let outcome = unsafe { libc::sched_setscheduler(0, policy, &raw const priority) };
    Errno::result(outcome).map(drop)
}

/// Where on its device the byte at `offset` of a file is: a number that changes when the file is cut and written again.
/// `u64::MAX` while the filesystem has not decided, 0 for a hole, and where it does not tell.
#[must_use]
pub(crate) fn place_on_device(file: impl AsFd, offset: u64) -> u64 {
    let mut map = Fiemap { start: offset, length: 1, extent_count: 1, ..Fiemap::default() };
    // SAFETY: the ioctl wants a `struct fiemap` with room for as many extents as it says, one here.
    let outcome = unsafe { ioctl::fiemap(file.as_fd().as_raw_fd(), &raw mut map) };
    let extent = &map.extent;
    match outcome {
        Ok(_) if map.mapped_extents == 0 => 0,
        Ok(_) if extent.flags & EXTENT_UNPLACED != 0 => u64::MAX,
        Ok(_) => extent.physical.wrapping_add(offset).wrapping_sub(extent.logical),
        Err(_) => 0,
    }
}

/// A filesystem's own name for an inode: it outlives every descriptor and never means another
/// inode.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct FileHandle {
    kind: i32,
    bytes: SmallVec<[u8; 16]>,
}

impl FileHandle {
    /// A number that is the same for equal handles, on every run (64 bit FNV-1a).
    #[must_use]
    pub fn hash(&self) -> u64 {
        let kind = self.kind.to_le_bytes();
        kind.iter().chain(&self.bytes).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
        })
    }
}

/// Tells apart the inodes that had one number after the other: the file handle's hash, or where the filesystem has no
/// handles (overlayfs) the time of the inode's birth; 0 where it has neither.
#[must_use]
pub fn generation(handle: Option<&FileHandle>, status: &rustix::fs::Statx) -> u64 {
    if let Some(handle) = handle {
        return handle.hash();
    }
    let has_birth = status.stx_mask & rustix::fs::StatxFlags::BTIME.bits() != 0;
    let birth = status.stx_btime;
    let seconds = birth.tv_sec.cast_unsigned();
    if has_birth {
        seconds.wrapping_mul(1_000_000_000).wrapping_add(birth.tv_nsec.into())
    } else {
        0
    }
}

/// `struct file_handle` with room for the largest handle.
#[repr(C)]
struct RawHandle {
    bytes_count: u32,
    kind: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

/// The handle of the inode behind `descriptor` (which may be an O_PATH one).
///
/// # Errors
/// EOPNOTSUPP where the filesystem has no handles, EOVERFLOW where they are larger than the
/// kernel's limit.
pub fn name_to_handle_at(descriptor: impl AsFd) -> Result<FileHandle> {
    let mut raw =
        RawHandle { bytes_count: HANDLE_BYTES_MAX as u32, kind: 0, bytes: [0; HANDLE_BYTES_MAX] };
    let mut mount_id = 0;
    // SAFETY: name_to_handle_at wants a NUL-terminated path (a literal), a handle whose header says
    // how many bytes follow it (`raw`: HANDLE_BYTES_MAX of them, same C layout) and room for an
    // int; all outlive the call.
    let outcome = unsafe {
        libc::name_to_handle_at(
            descriptor.as_fd().as_raw_fd(),
            c"".as_ptr(),
            ptr::from_mut(&mut raw).cast(),
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    Errno::result(outcome)?;
    let count = raw.bytes_count as usize;
    assert!(count <= HANDLE_BYTES_MAX, "the kernel stays within the room it was given");
    Ok(FileHandle { kind: raw.kind, bytes: SmallVec::from_slice(&raw.bytes[..count]) })
}

/// Opens the inode that `handle` names with `flags` (O_CLOEXEC is added). `mount` is any descriptor
/// on its filesystem that is not an O_PATH one.
///
/// # Errors
/// EPERM without CAP_DAC_READ_SEARCH, ESTALE when the inode is gone.
pub fn open_by_handle_at(
    mount: impl AsFd, handle: &FileHandle, flags: rustix::fs::OFlags,
) -> Result<OwnedFd> {
    let count = handle.bytes.len();
    assert!(count <= HANDLE_BYTES_MAX, "handles come from name_to_handle_at");
    let mut raw =
        RawHandle { bytes_count: count as u32, kind: handle.kind, bytes: [0; HANDLE_BYTES_MAX] };
    raw.bytes[..count].copy_from_slice(&handle.bytes);
    // SAFETY: open_by_handle_at reads a handle whose header says how many bytes follow it: `raw`
    // has that layout, holds at least `count` bytes, and outlives the call.
    let outcome = unsafe {
        libc::open_by_handle_at(
            mount.as_fd().as_raw_fd(),
            ptr::from_mut(&mut raw).cast(),
            (flags.bits() as i32) | libc::O_CLOEXEC,
        )
    };
    let raw_descriptor: RawFd = Errno::result(outcome)?;
    // SAFETY: from_raw_fd wants an open descriptor that nobody else owns; the kernel has just made
    // this one.
    Ok(unsafe { OwnedFd::from_raw_fd(raw_descriptor) })
}

/// Asks the kernel whether this thread, with the filesystem user, the groups and the capabilities it has now, has `access` to the
/// inode behind `descriptor` (which may be an O_PATH one).
///
/// # Errors
/// EACCES, EROFS and others when it has not; ENOSYS before Linux 5.8.
pub fn may_access(descriptor: impl AsFd, access: rustix::fs::Access) -> Result<()> {
    // SAFETY: faccessat2 wants a NUL-terminated path (a literal) and three integers; glibc's faccessat takes
    // another way for some flags, and rustix's refuses AT_EMPTY_PATH.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_faccessat2,
            descriptor.as_fd().as_raw_fd(),
            c"".as_ptr(),
            access.bits(),
            libc::AT_EMPTY_PATH | libc::AT_EACCESS,
        )
    };
    Errno::result(outcome)?;
    Ok(())
}

/// getxattrat(2), of Linux 6.13: the same number on all architectures that swapfs runs on.
const SYS_GETXATTRAT: libc::c_long = 464;

/// `struct xattr_args`.
#[repr(C)]
struct XattrArgs {
    value: u64,
    size: u32,
    flags: u32,
}

/// Whether a directory (the descriptor may be an O_PATH one) has the extended attribute `name`, without the way through
/// /proc that costs several times as much.
///
/// # Errors
/// ENOSYS before Linux 6.13; EACCES and others that getxattr(2) fails with.
pub fn has_xattr(directory: impl AsFd, name: &std::ffi::CStr) -> Result<bool> {
    let arguments = XattrArgs { value: 0, size: 0, flags: 0 };
    // SAFETY: getxattrat wants a NUL-terminated path (a literal) and name (a CStr), and a structure whose length is
    // said: of no value and no room for one, so that nothing is written.
    let outcome = unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            directory.as_fd().as_raw_fd(),
            // An empty path would mean the descriptor itself, which must not be an O_PATH one then.
            c".".as_ptr(),
            0,
            name.as_ptr(),
            &raw const arguments,
            size_of::<XattrArgs>(),
        )
    };
    match Errno::result(outcome) {
        Ok(_) => Ok(true),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(false),
        Err(error) => Err(error),
    }
}

/// A descriptor of its own for the FUSE session that `device` belongs to, with a queue of its own for the
/// requests read from it.
///
/// # Errors
/// What opening /dev/fuse fails with; EINVAL before `device` was mounted.
pub fn clone_fuse_device(device: impl AsFd) -> Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};
    nix::ioctl_read!(fuse_dev_ioc_clone, 229, 0, u32);
    let clone = rustix::fs::open("/dev/fuse", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(errno)?;
    let mut session = device.as_fd().as_raw_fd() as u32;
    // SAFETY: FUSE_DEV_IOC_CLONE (`_IOR(229, 0, uint32_t)`) reads one number through its pointer: the
    // descriptor of the session, which `device` keeps open.
    unsafe { fuse_dev_ioc_clone(clone.as_raw_fd(), &raw mut session) }?;
    Ok(clone)
}

/// While it lives, what this thread creates in a filesystem belongs to another user and group.
/// Dropping it goes back to the owner before. Bound to its thread.
#[derive(Debug)]
#[must_use = "the owner is switched only while this lives"]
pub struct ActingAs {
    uid: u32,
    gid: u32,
    bound_to_thread: PhantomData<*const ()>,
}

/// Makes this thread create files for `uid` and `gid` until the result is dropped.
///
/// # Errors
/// EPERM when the kernel refuses the switch, as it does without CAP_SETUID and CAP_SETGID.
pub fn act_as(uid: u32, gid: u32) -> Result<ActingAs> {
    // The group first: without [`keep_capabilities`] the thread has fewer rights once it acts as
    // the user.
    let previous_gid = set_fsgid(gid);
    let previous_uid = set_fsuid(uid);
    let acting = ActingAs { uid: previous_uid, gid: previous_gid, bound_to_thread: PhantomData };
    // The calls report no failure; asking again (with an id that is never valid) shows what is in
    // force.
    if set_fsuid(u32::MAX) != uid || set_fsgid(u32::MAX) != gid {
        return Err(Errno::EPERM);
    }
    Ok(acting)
}

impl Drop for ActingAs {
    fn drop(&mut self) {
        set_fsuid(self.uid);
        set_fsgid(self.gid);
        debug_assert_eq!(set_fsuid(u32::MAX), self.uid, "a thread may go back to its own user");
    }
}

/// Sets the calling thread's filesystem user, returns the one before.
fn set_fsuid(uid: u32) -> u32 {
    // SAFETY: setfsuid has no memory arguments and is defined for every id; it changes the calling
    // thread only.
    (unsafe { libc::setfsuid(uid) }) as u32
}

/// Sets the calling thread's filesystem group, returns the one before.
fn set_fsgid(gid: u32) -> u32 {
    // SAFETY: setfsgid has no memory arguments and is defined for every id; it changes the calling
    // thread only.
    (unsafe { libc::setfsgid(gid) }) as u32
}

/// Gives up the right to take more than quotas and the space reserved for root allow, for the calling thread and
/// every thread it starts from now on. Before that, the limit on locked memory is lifted, which needs it.
///
/// # Errors
/// What the kernel refuses with.
pub fn obey_quotas() -> Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let right = rustix::thread::CapabilitySet::SYS_RESOURCE;
    let mut sets = rustix::thread::capabilities(None).map_err(errno)?;
    if !sets.permitted.contains(right) {
        return Ok(());
    }
    if let Err(error) = setrlimit(Resource::Memlock, Rlimit { current: None, maximum: None }) {
        log::debug!("RLIMIT_MEMLOCK: {error}");
    }
    sets.effective.remove(right);
    sets.permitted.remove(right);
    sets.inheritable.remove(right);
    rustix::thread::set_capabilities(None, sets).map_err(errno)
}

/// Lets the calling thread, and every thread it starts from now on, keep its capabilities while it
/// acts as another user. To be called at start, before any thread.
///
/// # Errors
/// EPERM without CAP_SETPCAP; then files for others are still created with their owner, but only
/// where that owner may write.
pub fn keep_capabilities() -> Result<()> {
    let bits = rustix::thread::capabilities_secure_bits().map_err(errno)?;
    rustix::thread::set_capabilities_secure_bits(bits | CapabilitiesSecureBits::NO_SETUID_FIXUP)
        .map_err(errno)
}
