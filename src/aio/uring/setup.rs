//! Making a ring, with what the kernel has to offer, and registering memory and files with it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::{Builder, IoUring, Probe, Submitter};

use super::survey::first_missing;
use super::table::SYNCS_MAX;
use crate::pool::Arena;

/// Bytes of one registered buffer at most (a limit of the kernel).
const SLICE_BYTES: usize = 1 << 30;

/// Registered files of a ring at most; few in unit tests, so that they are replaced.
const FILES_MAX: u32 = if cfg!(test) { 4 } else { 1024 };

/// A ring that nobody has submitted to yet.
pub(super) struct NewRing {
    pub(super) ring: IoUring,
    /// To be enabled by the thread that will be its only submitter.
    pub(super) disabled: bool,
    /// Holds the memory registered with the ring; `None` when refused. Dropped after the ring.
    pub(super) arena: Option<Arc<Arena>>,
    /// Size of the registered file table; 0 when refused.
    pub(super) files: u32,
}

impl NewRing {
    /// One more descriptor of the ring, which keeps what is registered with it.
    pub(super) fn another(&self) -> Option<OwnedFd> {
        // SAFETY: borrow_raw needs a descriptor that stays open while it is borrowed: the ring's, which `self` has.
        let descriptor = unsafe { BorrowedFd::borrow_raw(self.ring.as_raw_fd()) };
        rustix::io::fcntl_dupfd_cloexec(descriptor, 0).ok()
    }
}

/// Makes `count` rings for `depth` transfers each, and a few syncs, and registers the arena with them, the memory
/// counted once where the kernel lets rings share it, and the files `kept` until the last transfer has ended.
pub(super) fn make_rings(
    count: u32, depth: u32, arena: Option<&Arc<Arena>>, kept: &[BorrowedFd<'_>],
) -> io::Result<Vec<NewRing>> {
    let mut rings: Vec<NewRing> = Vec::new();
    for _ in 0..count {
        let (ring, disabled) = make_ring(depth + SYNCS_MAX)?;
        check_operations(&ring)?;
        let files = register_files(&ring.submitter(), kept);
        rings.push(NewRing { ring, disabled, arena: None, files });
    }
    if let Some(arena) = arena
        && let Err(error) = register_arena(&mut rings, arena)
    {
        log::warn!(
            "the pool is not registered with io_uring, transfers cost a little more: {error}"
        );
        for NewRing { ring, arena, .. } in &mut rings {
            if arena.is_some() {
                ring.submitter().unregister_buffers()?;
                *arena = None;
            }
        }
    }
    Ok(rings)
}

/// One ring, and whether it starts disabled. The kernel's newer flags first.
pub(super) fn make_ring(depth: u32) -> io::Result<(IoUring, bool)> {
    // One entry more for the poll of the wake.
    let entries = depth + 1;
    let mut single = IoUring::builder();
    // Disabled: its one issuer is then the thread that enables it, not this one. Linux 6.1.
    single.setup_r_disabled().setup_single_issuer().setup_defer_taskrun().setup_submit_all();
    let mut cooperative = IoUring::builder();
    cooperative.setup_coop_taskrun().setup_submit_all();
    let plain: Builder = IoUring::builder();
    let mut result = Err(io::Error::from_raw_os_error(libc::ENOSYS));
    for (mut builder, disabled) in [(single, true), (cooperative, false), (plain, false)] {
        match builder.dontfork().build(entries) {
            Ok(ring) => return Ok((ring, disabled)),
            // EINVAL: a flag is unknown. Anything else is refused without the flag as well.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => result = Err(error),
            Err(error) => return Err(error),
        }
    }
    result
}

fn check_operations(ring: &IoUring) -> io::Result<()> {
    let mut probe = Probe::new();
    ring.submitter().register_probe(&mut probe)?;
    match first_missing(&probe) {
        Some(name) => Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("this kernel's io_uring lacks the operation {name}"),
        )),
        None => Ok(()),
    }
}

/// Registers an empty file table, behind which are the files that are kept; returns its size without these.
fn register_files(submitter: &Submitter<'_>, kept: &[BorrowedFd<'_>]) -> u32 {
    // The kernel takes no larger table than the process may have descriptors.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let limit = limit.and_then(|limit| u32::try_from(limit).ok()).unwrap_or(u32::MAX);
    let size = FILES_MAX.min(limit);
    let size = size.saturating_sub(kept.len() as u32);
    let all = size as usize + kept.len();
    let sparse = submitter.register_files_sparse(all as u32);
    let kept: Vec<i32> = kept.iter().map(AsRawFd::as_raw_fd).collect();
    // Before Linux 5.19.
    let registered = sparse.or_else(|_| submitter.register_files(&vec![-1; all])).and_then(|()| {
        match kept.is_empty() {
            true => Ok(0),
            false => submitter.register_files_update(size, &kept),
        }
    });
    match registered {
        Ok(_) => size,
        Err(error) => {
            log::warn!("no files are registered with io_uring: {error}");
            0
        }
    }
}

/// Registers the arena with every ring; the rings that have it hold it in `arena`.
fn register_arena(rings: &mut [NewRing], arena: &Arc<Arena>) -> io::Result<()> {
    let base = arena.base().as_ptr();
    let slices: Vec<libc::iovec> = (0..arena.size())
        .step_by(SLICE_BYTES)
        .map(|offset| libc::iovec {
            iov_base: base.wrapping_add(offset).cast(),
            iov_len: SLICE_BYTES.min(arena.size() - offset),
        })
        .collect();
    let first = rings.first().map(|first| first.ring.as_raw_fd());
    for new in rings {
        // Set before, so that a ring with registered memory never exists without its arena.
        new.arena = Some(Arc::clone(arena));
        let submitter = new.ring.submitter();
        let first = first.filter(|first| *first != new.ring.as_raw_fd());
        // Cloning (Linux 6.12) shares the first ring's pinned pages, which are counted once.
        if first.is_some_and(|first| submitter.register_buffers_clone(first).is_ok()) {
            continue;
        }
        // SAFETY: register_buffers needs memory that stays valid until it is unregistered or the ring
        // is gone. The slices lie in the arena's mapping; `new` holds the arena in a field that is
        // dropped after the ring, and `Ring` keeps both in that order.
        if let Err(error) = unsafe { submitter.register_buffers(&slices) } {
            new.arena = None;
            return Err(error);
        }
    }
    Ok(())
}

/// The registered buffer that holds `length` bytes at `offset` of the arena; `None` when they lie in
/// two.
pub(super) fn slice_index(offset: usize, length: usize) -> Option<u16> {
    let first = offset / SLICE_BYTES;
    let last = (offset + length - 1) / SLICE_BYTES;
    if first == last { u16::try_from(first).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_across_slices_are_not_fixed() {
        assert_eq!(slice_index(0, SLICE_BYTES), Some(0));
        assert_eq!(slice_index(SLICE_BYTES, 512), Some(1));
        assert_eq!(slice_index(SLICE_BYTES - 512, 1024), None);
        assert_eq!(slice_index(SLICE_BYTES - 512, 512), Some(0));
    }
}
