//! The one mapping behind all buffers.
//!
//! The mapping is allocated once, at start, and never grows. Nobody sees a reference to its bytes
//! except through a lease.

use std::ffi::c_void;
use std::fmt::Debug;
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, MremapFlags, ProtFlags};

use crate::machine;

/// Bytes of the only huge page size that is asked for.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

/// Bytes of a small page; the granularity of an [`Arena`].
const PAGE_BYTES: usize = 4096;

/// Threads that clear pages at most.
const POPULATING_MAX: usize = 8;

/// How to allocate an [`Arena`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArenaOptions {
    /// Bytes, a multiple of 4096.
    pub size: usize,
    /// Lock the memory (mlock). Refusal is reported by [`Arena::locked`], not an error.
    pub pin_memory: bool,
    /// Ask for huge pages.
    pub huge_pages: bool,
}

/// A page-aligned anonymous mapping.
#[derive(Debug)]
pub struct Arena {
    base: NonNull<u8>,
    size: usize,
    lock: Lock,
    huge: &'static str,
    /// Whether the mapping is the arena's own, to be unmapped at its end.
    owned: bool,
    /// Whether some pages have other memory than at first.
    replaced: AtomicBool,
}

/// Whether the mapping is locked.
#[derive(Debug)]
enum Lock {
    NotAsked,
    Locked,
    Refused(String),
}

// SAFETY: the mapping belongs to no thread, and `Arena` itself reads none of its bytes. They are
// reached through leases only, whose creator promises that no two conflict.
unsafe impl Send for Arena {}
// SAFETY: as above; every method of a shared `Arena` only reads its plain fields, and `replaced` is
// atomic.
unsafe impl Sync for Arena {}

impl Arena {
    /// Maps, prefaults and, if asked, locks `options.size` bytes of zeros. Blocks while the kernel
    /// clears the memory (about 0.1 to 0.3 s per GiB). Not inherited by forked children, not in
    /// core dumps.
    ///
    /// # Errors
    ///
    /// EINVAL when the size is zero or no multiple of 4096, ENOMEM when there is not enough memory.
    pub fn new(options: ArenaOptions) -> io::Result<Arc<Self>> {
        if options.size == 0 || !options.size.is_multiple_of(PAGE_BYTES) {
            return Err(Errno::INVAL.into());
        }
        let mapped = if options.huge_pages { map_hugetlb(options.size) } else { None };
        let (base, hugetlb) = match mapped {
            Some(base) => (base, true),
            None => (map_small(options.size, options.huge_pages)?, false),
        };
        // From here on dropping the arena unmaps.
        let (lock, huge) = (Lock::NotAsked, "none");
        let replaced = AtomicBool::new(false);
        let mut arena = Self { base, size: options.size, lock, huge, owned: true, replaced };
        arena.advise(Advice::LinuxDontFork)?;
        arena.advise(Advice::LinuxDontDump)?;
        if !hugetlb {
            arena.prefault()?;
        }
        if options.pin_memory {
            arena.lock = arena.pin();
        }
        if hugetlb {
            arena.huge = "hugetlb";
        } else if options.huge_pages && transparent_bytes(base, options.size) * 2 > options.size {
            arena.huge = "thp";
        }
        Ok(Arc::new(arena))
    }

    /// Memory that belongs to somebody else, for as long as the arena lives.
    ///
    /// # Safety
    ///
    /// Until the arena is dropped, which the last lease delays, the memory stays mapped and initialised, and
    /// is touched through leases of this arena only.
    pub(super) unsafe fn of_foreign(base: NonNull<u8>, size: usize) -> Arc<Self> {
        let (lock, replaced) = (Lock::NotAsked, AtomicBool::new(false));
        Arc::new(Self { base, size, lock, huge: "none", owned: false, replaced })
    }

    /// The first byte. Unless it is foreign memory, aligned to 4096, and to 2 MiB where huge pages were asked for.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        self.size
    }

    /// Whether the memory is locked. False when that was not asked for or was refused.
    #[must_use]
    pub fn locked(&self) -> bool {
        matches!(self.lock, Lock::Locked)
    }

    /// Why locking was refused, for the daemon's warning; `None` when locked or not asked for.
    #[must_use]
    pub fn lock_refusal(&self) -> Option<&str> {
        match &self.lock {
            Lock::Refused(reason) => Some(reason),
            Lock::NotAsked | Lock::Locked => None,
        }
    }

    /// The huge pages obtained: `hugetlb`, `thp` (most of the mapping at the time of allocation), or
    /// `none`.
    #[must_use]
    pub fn huge(&self) -> &'static str {
        self.huge
    }

    /// Whether [`replace`](Self::replace) was called: what was registered of the arena before is other memory than
    /// what it shows now.
    #[must_use]
    pub(crate) fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    /// Gives the pages of these bytes other memory, in one step: with the content that they have if `keep`, else
    /// zeros. Whoever was given their memory by registration, and by that alone, reaches what is in the arena no
    /// more; it stays that one's until it lets go of it.
    ///
    /// # Errors
    /// ENOMEM; EINVAL where the arena is of reserved huge pages, or somebody else's. Nothing has changed then.
    ///
    /// # Safety
    /// The caller has a lease on the bytes, no one else has a lease for writing on any of their pages, and without
    /// `keep` nobody else has any.
    pub(crate) unsafe fn replace(
        &self, offset: usize, length: usize, keep: bool,
    ) -> io::Result<()> {
        let start = offset / PAGE_BYTES * PAGE_BYTES;
        let end = (offset + length).next_multiple_of(PAGE_BYTES);
        if !self.owned || self.huge == "hugetlb" || start >= end || end > self.size {
            return Err(Errno::INVAL.into());
        }
        let (old, size) = (self.base.as_ptr().wrapping_add(start), end - start);
        let new = map(size, MapFlags::PRIVATE)?;
        let prepared = advise(new, size, Advice::LinuxDontFork)
            .and_then(|()| advise(new, size, Advice::LinuxDontDump));
        if self.locked() {
            // SAFETY: mlock needs a mapped range. A refusal does not matter: this memory was never promised.
            let _ = unsafe { rustix::mm::mlock(new.as_ptr().cast(), size) };
        }
        if keep {
            // SAFETY: copy_nonoverlapping needs `size` bytes that can be read, which nobody writes, and as many
            // that can be written: the range lies in the mapping, the caller promises the rest, and the new
            // mapping is nobody else's.
            unsafe { std::ptr::copy_nonoverlapping(old, new.as_ptr(), size) };
        }
        self.replaced.store(true, Ordering::Release);
        let flags = MremapFlags::MAYMOVE;
        let moved = prepared.and_then(|()| {
            // SAFETY: mremap_fixed needs that nobody uses the pages that it moves, and that what it replaces
            // may go. The first were mapped above. The others are replaced by pages of the same protection, with
            // the same bytes for those who may be reading them, and nobody writes them.
            Ok(unsafe {
                rustix::mm::mremap_fixed(new.as_ptr().cast(), size, size, flags, old.cast())
            }?)
        });
        if let Err(error) = moved {
            // SAFETY: `map` returned this range above, it was not moved, and nothing else knows of it.
            unsafe { unmap(new.as_ptr(), size) };
            return Err(error);
        }
        Ok(())
    }

    fn address(&self) -> *mut c_void {
        self.base.as_ptr().cast()
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        advise(self.base, self.size, advice)
    }

    /// Gives every page its memory now, so that no transfer and no copy meets a fault later.
    fn prefault(&self) -> io::Result<()> {
        match self.populate() {
            // Linux before 5.14.
            Err(error) if error.raw_os_error() == Some(Errno::INVAL.raw_os_error()) => {
                for offset in (0..self.size).step_by(PAGE_BYTES) {
                    let page = self.base.as_ptr().wrapping_add(offset);
                    // SAFETY: write_volatile needs a pointer that is valid for writes: `offset <
                    // size`, and `map_small` mapped that much for writing. The arena is not shared
                    // yet, so nobody else touches the byte.
                    unsafe { page.write_volatile(0) };
                }
                Ok(())
            }
            result => result,
        }
    }

    /// As many threads clear pages as there are processors: one takes 0.2 seconds for a GiB, and more where a
    /// machine's host has to find the memory first.
    fn populate(&self) -> io::Result<()> {
        let threads = machine::processors();
        let share =
            self.size.div_ceil(threads.min(POPULATING_MAX)).next_multiple_of(HUGE_PAGE_BYTES);
        std::thread::scope(|scope| {
            let populating: Vec<_> = (0..self.size)
                .step_by(share)
                .map(|offset| {
                    scope.spawn(move || {
                        let length = share.min(self.size - offset);
                        // SAFETY: add needs that it stays in the mapping: `offset < size`.
                        let base = unsafe { self.base.add(offset) };
                        advise(base, length, Advice::LinuxPopulateWrite)
                    })
                })
                .collect();
            let results: Vec<_> = populating.into_iter().map(|one| one.join()).collect();
            results.into_iter().try_for_each(|one| one.expect("advise does not panic"))
        })
    }

    fn pin(&self) -> Lock {
        // SAFETY: mlock needs nothing of the range but its being mapped; it does not change its
        // contents. `self` owns the mapping until it is dropped.
        match unsafe { rustix::mm::mlock(self.address(), self.size) } {
            Ok(()) => Lock::Locked,
            Err(error) => Lock::Refused(lock_refusal(self.size, error)),
        }
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if !self.owned {
            return;
        }
        // SAFETY: munmap needs a range that nothing refers to any more. `new` mapped exactly this
        // range; every lease holds an `Arc` of the arena, so none is left, and rings that registered
        // the memory hold one as well.
        if let Err(error) = unsafe { rustix::mm::munmap(self.address(), self.size) } {
            log::error!("munmap of the buffer pool: {error}");
        }
    }
}

fn lock_refusal(size: usize, error: Errno) -> String {
    let limit = match rustix::process::getrlimit(rustix::process::Resource::Memlock).current {
        Some(bytes) => format!("{} KiB", bytes / 1024),
        None => "unlimited".to_owned(),
    };
    format!("mlock of {} MiB: {error} (RLIMIT_MEMLOCK is {limit})", size >> 20)
}

/// Calls madvise on a range that this module mapped. Never with an advice that discards contents.
fn advise(base: NonNull<u8>, size: usize, advice: Advice) -> io::Result<()> {
    // SAFETY: madvise needs a range that the caller owns, because some advice changes its contents.
    // Every caller here passes a mapping of its own to which no lease exists yet.
    Ok(unsafe { rustix::mm::madvise(base.as_ptr().cast(), size, advice) }?)
}

fn map(size: usize, flags: MapFlags) -> io::Result<NonNull<u8>> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: mmap needs, without MAP_FIXED, an address that is a hint only: null is none. The new
    // mapping overlaps nothing that exists.
    let address =
        unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), size, protection, flags) }?;
    Ok(NonNull::new(address.cast()).expect("mmap returns no null"))
}

/// Unmaps what `map` returned, or a part of it.
///
/// # Safety
///
/// The range belongs to a mapping of [`map`] to which no pointer or lease is used any more.
unsafe fn unmap(base: *mut u8, size: usize) {
    if size == 0 {
        return;
    }
    // SAFETY: munmap needs a range nobody uses; the caller promises it.
    if let Err(error) = unsafe { rustix::mm::munmap(base.cast(), size) } {
        log::error!("munmap: {error}");
    }
}

/// Prefaulted huge pages of the reserved kind, when the kernel has enough of them free.
fn map_hugetlb(size: usize) -> Option<NonNull<u8>> {
    if !size.is_multiple_of(HUGE_PAGE_BYTES) || free_huge_pages() < size / HUGE_PAGE_BYTES {
        return None;
    }
    let flags = MapFlags::PRIVATE | MapFlags::HUGETLB | MapFlags::HUGE_2MB;
    let base = map(size, flags).ok()?;
    // A cgroup may refuse what mmap promised; populating tells without a SIGBUS.
    match advise(base, size, Advice::LinuxPopulateWrite) {
        Ok(()) => Some(base),
        Err(error) => {
            log::info!("hugetlb pages refused ({error}), using transparent huge pages");
            // SAFETY: `map` returned this range above and nothing else knows of it.
            unsafe { unmap(base.as_ptr(), size) };
            None
        }
    }
}

/// Bytes of reserved huge pages that nobody has.
pub(crate) fn free_huge_bytes() -> u64 {
    free_huge_pages() as u64 * HUGE_PAGE_BYTES as u64
}

/// Free, unreserved huge pages of 2 MiB.
fn free_huge_pages() -> usize {
    let read = |path: &str| -> usize {
        machine::text(path).ok().and_then(|text| text.parse().ok()).unwrap_or(0)
    };
    read(machine::HUGE_PAGES_FREE).saturating_sub(read(machine::HUGE_PAGES_RESERVED))
}

/// Small pages; with `huge`, aligned so that the kernel can make them huge, and advised to.
fn map_small(size: usize, huge: bool) -> io::Result<NonNull<u8>> {
    if !huge || size < HUGE_PAGE_BYTES {
        return map(size, MapFlags::PRIVATE);
    }
    let whole = size.checked_add(HUGE_PAGE_BYTES).ok_or(Errno::NOMEM)?;
    // NORESERVE: the slack that is cut off below must not fail a strict overcommit check.
    let start = map(whole, MapFlags::PRIVATE | MapFlags::NORESERVE)?.as_ptr();
    let head = start.addr().next_multiple_of(HUGE_PAGE_BYTES) - start.addr();
    let base = start.wrapping_add(head);
    // SAFETY: the first `head` bytes of the mapping just made; nothing uses them.
    unsafe { unmap(start, head) };
    // SAFETY: the bytes behind `base + size` of the same mapping; nothing uses them.
    unsafe { unmap(base.wrapping_add(size), whole - head - size) };
    let base = NonNull::new(base).expect("inside a mapping");
    // Refused where the kernel was built without them; that is no error.
    if let Err(error) = advise(base, size, Advice::LinuxHugepage) {
        log::debug!("MADV_HUGEPAGE: {error}");
    }
    Ok(base)
}

/// Bytes of the range that transparent huge pages hold, as `/proc/self/smaps` counts them.
fn transparent_bytes(base: NonNull<u8>, size: usize) -> usize {
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let range = base.as_ptr().addr()..base.as_ptr().addr() + size;
    let mut inside = false;
    let mut kibibytes = 0;
    for line in smaps.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some(first) = words.next() else { continue };
        if first == "AnonHugePages:" && inside {
            kibibytes += words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
        } else if let Some((start, end)) = first.split_once('-') {
            let parse = |text| usize::from_str_radix(text, 16);
            if let (Ok(start), Ok(end)) = (parse(start), parse(end)) {
                inside = start < range.end && end > range.start;
            }
        }
    }
    kibibytes * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arena(size: usize, pin_memory: bool, huge_pages: bool) -> Arc<Arena> {
        Arena::new(ArenaOptions { size, pin_memory, huge_pages }).unwrap()
    }

    #[test]
    fn memory_is_zeroed_aligned_and_locked() {
        let arena = arena(8 << 20, true, true);
        assert_eq!(arena.base().as_ptr().addr() % HUGE_PAGE_BYTES, 0);
        assert_eq!(arena.size(), 8 << 20);
        assert_eq!(arena.locked(), arena.lock_refusal().is_none());
        assert!(["hugetlb", "thp", "none"].contains(&arena.huge()));
        // SAFETY: the only lease of this arena.
        let lease = unsafe { arena.read_lease(0, 8 << 20) };
        assert!(lease.iter().all(|byte| *byte == 0));
    }

    #[test]
    fn small_arena_works_without_huge_pages() {
        let arena = arena(12288, false, false);
        assert!(!arena.locked());
        assert_eq!(arena.lock_refusal(), None);
        assert_eq!(arena.huge(), "none");
        // SAFETY: the only lease of this arena.
        let mut lease = unsafe { arena.write_lease(4096, 8192) };
        lease.fill(7);
        assert_eq!((lease.offset(), lease.len()), (4096, 8192));
        let read = lease.downgrade();
        assert!(read.iter().all(|byte| *byte == 7));
        assert!(read.is_of(&arena));
    }

    /// What was registered before keeps its memory, and neither sees nor changes what the arena shows now.
    #[test]
    fn replaced_memory_is_out_of_reach_of_a_registration() {
        use io_uring::{IoUring, opcode, types};
        use std::os::fd::AsRawFd;
        use std::os::unix::fs::FileExt;
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(&[9; 16384], 0).unwrap();
        for huge_pages in [false, true] {
            let arena = arena(4 << 20, true, huge_pages);
            if arena.huge() == "hugetlb" {
                // SAFETY: no lease exists.
                assert!(unsafe { arena.replace(4096, 4096, true) }.is_err());
                continue;
            }
            // SAFETY: the only lease of this arena, but for its parts.
            let mut lease = unsafe { arena.write_lease(0, 16384) };
            lease.fill(1);
            let address = lease.address();
            let mut ring = IoUring::new(4).unwrap();
            let slice = libc::iovec { iov_base: arena.address(), iov_len: arena.size() };
            // SAFETY: register_buffers needs memory that stays until the ring is gone: the arena is dropped later.
            unsafe { ring.submitter().register_buffers(&[slice]) }.unwrap();
            assert!(!arena.is_replaced());
            let rest = lease.split_front(4096).1;
            let (middle, last) = rest.split_front(8192);
            // SAFETY: `middle` is a lease on them, and no other overlaps it.
            unsafe { arena.replace(middle.offset(), middle.len(), true) }.unwrap();
            // SAFETY: as above, of `last`; a part of a page means all of it.
            unsafe { arena.replace(last.offset() + 512, 512, false) }.unwrap();
            assert!(arena.is_replaced());
            assert!(middle.iter().all(|byte| *byte == 1) && last.iter().all(|byte| *byte == 0));
            let entry = opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), address, 16384, 0);
            // SAFETY: push needs memory and a descriptor that stay until the completion, which is waited for. The
            // memory of the leases is not what was registered; the first page, which is, has no lease.
            unsafe { ring.submission().push(&entry.build()) }.unwrap();
            ring.submit_and_wait(1).unwrap();
            assert_eq!(ring.completion().next().unwrap().result(), 16384);
            // SAFETY: the first page's lease is gone.
            let first = unsafe { arena.read_lease(0, 4096) };
            assert!(first.iter().all(|byte| *byte == 9), "still the registered memory");
            assert!(middle.iter().all(|byte| *byte == 1) && last.iter().all(|byte| *byte == 0));
            drop(ring);
        }
    }

    #[test]
    fn sizes_that_are_no_pages_are_refused() {
        for size in [0, 1, 4095, 4097] {
            let options = ArenaOptions { size, pin_memory: false, huge_pages: false };
            assert!(Arena::new(options).is_err(), "{size}");
        }
    }
}
