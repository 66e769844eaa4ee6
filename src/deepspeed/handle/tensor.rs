//! Page-aligned, locked memory that transfers use without a copy.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::{Bound, Deref, DerefMut, RangeBounds};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::pool::{ArenaOptions, HUGE_PAGE_BYTES, ReadLease, SoleArena, WriteLease};

const PAGE_BYTES: usize = 4096;

/// First address and length of every region, of the whole process as in DeepSpeed.
static REGIONS: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

/// Whether all of `bytes` lies in the memory of one tensor.
pub(super) fn is_managed(bytes: &[u8]) -> bool {
    let start = bytes.as_ptr().addr();
    let regions = REGIONS.lock();
    match regions.range(..=start).next_back() {
        Some((base, length)) => start - base < *length && bytes.len() <= base + length - start,
        None => false,
    }
}

/// The allocation behind a tensor and the parts cut from it.
#[derive(Debug)]
pub(crate) struct Region {
    sole: SoleArena,
}

impl Region {
    /// Memory that was given up to a write, for writing again.
    pub(super) fn reclaim(&self, lease: ReadLease) -> WriteLease {
        self.sole.reclaim(lease)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let base = self.sole.arena().base().as_ptr().addr();
        REGIONS.lock().remove(&base);
    }
}

/// Bytes that begin on a page (4096), in huge pages from 2 MiB on where the kernel has them
/// ([`huge`](Self::huge)), and locked in memory where RLIMIT_MEMLOCK allows it. Zeroed when
/// made, by [`Handle::new_cpu_locked_tensor`](super::Handle::new_cpu_locked_tensor); freed when dropped.
///
/// It is a `[u8]` by `Deref`. Operations move bytes between the file and this very memory, and have it to
/// themselves meanwhile: asynchronous ones take the tensor and give it back, synchronous ones borrow it
/// mutably. [`narrow`](Self::narrow) and [`split_at`](Self::split_at) make views, which copy nothing either.
/// Not inherited by forked children, not in core dumps.
pub struct LockedTensor {
    /// `None` only while a synchronous operation has the memory.
    lease: Option<WriteLease>,
    region: Arc<Region>,
}

impl LockedTensor {
    /// Blocks while the kernel clears and locks the memory.
    pub(crate) fn new(bytes: usize) -> io::Result<Self> {
        let size = bytes
            .max(1)
            .checked_next_multiple_of(PAGE_BYTES)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        // To the block layer a huge page is one segment, and small ones are 512.
        let options = ArenaOptions { size, pin_memory: true, huge_pages: size >= HUGE_PAGE_BYTES };
        let (sole, lease) = SoleArena::new(options)?;
        if let Some(refusal) = sole.arena().lock_refusal() {
            log::warn!("a tensor is not locked: {refusal}");
        }
        REGIONS.lock().insert(lease.address().addr(), bytes.max(1));
        Ok(Self { lease: Some(lease.split_front(bytes).0), region: Arc::new(Region { sole }) })
    }

    pub(crate) fn from_parts(lease: WriteLease, region: Arc<Region>) -> Self {
        Self { lease: Some(lease), region }
    }

    pub(crate) fn into_parts(self) -> (WriteLease, Arc<Region>) {
        let lease = self.lease.expect("only a synchronous operation takes it");
        (lease, self.region)
    }

    /// Whether the memory is locked; `false` when that was refused.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        self.region.sole.arena().locked()
    }

    /// The huge pages obtained: `hugetlb`, `thp` (for most of the memory), or `none`.
    #[must_use]
    pub fn huge(&self) -> &'static str {
        self.region.sole.arena().huge()
    }

    /// Why the memory is not locked, with the limit in force; `None` when it is.
    #[must_use]
    pub fn lock_refusal(&self) -> Option<&str> {
        self.region.sole.arena().lock_refusal()
    }

    /// Some of the bytes, for one synchronous operation; torch's name for it.
    ///
    /// # Panics
    ///
    /// When the range does not lie in the tensor.
    pub fn narrow(&mut self, range: impl RangeBounds<usize>) -> Narrow<'_> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => self.len(),
        };
        assert!(start <= end && end <= self.len(), "{start}..{end} of {} bytes", self.len());
        Narrow { tensor: self, start, end }
    }

    /// Two tensors of one memory: the first `at` bytes, and the rest. Either may be empty. A part that
    /// does not begin on the file's alignment, relative to its place in the file, is moved with a copy.
    ///
    /// # Panics
    ///
    /// When the tensor has fewer than `at` bytes.
    #[must_use]
    pub fn split_at(self, at: usize) -> (Self, Self) {
        let (lease, region) = self.into_parts();
        let (front, back) = lease.split_front(at);
        let other = Arc::clone(&region);
        (Self::from_parts(front, region), Self::from_parts(back, other))
    }

    /// Undoes [`split_at`](Self::split_at).
    ///
    /// # Errors
    ///
    /// Both again, when `back` does not begin where this one ends in one memory.
    pub fn join(self, back: Self) -> Result<Self, (Self, Self)> {
        let end = self.as_ptr().addr() + self.len();
        if !Arc::ptr_eq(&self.region, &back.region) || end != back.as_ptr().addr() {
            return Err((self, back));
        }
        let (front, region) = self.into_parts();
        let (back, _) = back.into_parts();
        Ok(Self::from_parts(front.join(back), region))
    }
}

impl Deref for LockedTensor {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.lease.as_deref().unwrap_or_default()
    }
}

impl DerefMut for LockedTensor {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.lease.as_deref_mut().unwrap_or_default()
    }
}

impl fmt::Debug for LockedTensor {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LockedTensor")
            .field("bytes", &self.len())
            .field("locked", &self.is_locked())
            .finish_non_exhaustive()
    }
}

/// A view of a [`LockedTensor`], made by [`LockedTensor::narrow`].
#[derive(Debug)]
pub struct Narrow<'a> {
    tensor: &'a mut LockedTensor,
    start: usize,
    end: usize,
}

impl Narrow<'_> {
    /// Lends the part to `work`, which gives it back.
    pub(super) fn lend<T>(self, work: impl FnOnce(LockedTensor) -> (LockedTensor, T)) -> T {
        let Some(lease) = self.tensor.lease.take() else {
            unreachable!("the tensor is borrowed mutably, no other operation has its memory");
        };
        let (front, rest) = lease.split_front(self.start);
        let (middle, back) = rest.split_front(self.end - self.start);
        let part = LockedTensor::from_parts(middle, Arc::clone(&self.tensor.region));
        let (part, outcome) = work(part);
        let (middle, _) = part.into_parts();
        self.tensor.lease = Some(front.join(middle).join(back));
        outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_tensors_are_where_huge_pages_can_be() {
        let tensor = LockedTensor::new((5 << 20) + 1).unwrap();
        assert_eq!(tensor.as_ptr().addr() % HUGE_PAGE_BYTES, 0);
        assert!(["hugetlb", "thp", "none"].contains(&tensor.huge()));
        assert_eq!((tensor.len(), tensor[5 << 20]), ((5 << 20) + 1, 0));
        assert_eq!(LockedTensor::new(4096).unwrap().huge(), "none");
    }

    #[test]
    fn tensors_are_aligned_split_and_managed() {
        let mut tensor = LockedTensor::new(5000).unwrap();
        assert_eq!(tensor.as_ptr().addr() % PAGE_BYTES, 0);
        assert_eq!((tensor.len(), tensor[4999]), (5000, 0));
        tensor.fill(7);
        assert!(is_managed(&tensor[1..4999]) && is_managed(&tensor));
        assert!(!is_managed(&[0; 16]));
        let other = LockedTensor::new(0).unwrap();
        assert!(other.is_empty());
        let (front, back) = tensor.split_at(4097);
        let (front, other) = front.join(other).unwrap_err();
        let (back, front) = back.join(front).unwrap_err();
        drop(other);
        let tensor = front.join(back).unwrap();
        assert_eq!((tensor.len(), tensor[4999]), (5000, 7));
    }
}
