//! Sizes of blocks and pages, fixed at start.

/// Bytes of the largest request of a client; its blocks must find room together.
pub(crate) const REQUEST_BYTES_MAX: u64 = 1 << 20;

/// Largest size of a partition: what off_t holds, less the largest block, so that every block of it ends
/// within what off_t holds, too.
pub(crate) const OFFSET_MAX: u64 = i64::MAX as u64 - (16 << 20) + 1;

/// Buffers of `block_size` bytes that the largest request needs to go on.
pub(crate) fn buffers_moving(block_size: u64) -> usize {
    (REQUEST_BYTES_MAX / block_size + 1).max(2) as usize
}

/// Largest slot that is not a whole buffer: what is copied under the lock when a partition outgrows it.
const SLOT_BYTES_MAX: u64 = 512 * 1024;

/// Sizes fixed at start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    /// Bytes of a page: 4096, or the device's alignment when larger.
    pub(crate) unit: u64,
    pub(crate) block_size: u64,
    /// The device's alignment in bytes.
    pub(crate) alignment: u64,
    /// Partitions of fewer bytes are small: they get slots, and are evicted after the others.
    pub(crate) min_swap_size: u64,
}

impl Shape {
    pub(crate) fn pages(&self) -> usize {
        (self.block_size / self.unit) as usize
    }

    /// Pages of the slot for block `index` of a partition of `size` bytes; `None` for one that is not small.
    pub(crate) fn slot_pages(&self, size: u64, index: u64) -> Option<usize> {
        if size >= self.min_swap_size {
            return None;
        }
        let pages = size.div_ceil(self.unit).max(1).next_power_of_two();
        let fits = index == 0 && pages * self.unit <= (self.block_size / 2).min(SLOT_BYTES_MAX);
        Some(if fits { pages as usize } else { self.pages() })
    }

    pub(crate) fn block_of(&self, offset: u64) -> u64 {
        offset / self.block_size
    }

    /// The blocks that hold bytes of a range, which is not empty.
    pub(crate) fn blocks_of(&self, bytes: &std::ops::Range<u64>) -> std::ops::RangeInclusive<u64> {
        self.block_of(bytes.start)..=self.block_of(bytes.end - 1)
    }

    /// The pages of block `index` that hold bytes of `[from, to)`.
    pub(crate) fn pages_of(&self, index: u64, from: u64, to: u64) -> std::ops::Range<usize> {
        let start = index * self.block_size;
        let first = from.saturating_sub(start).min(self.block_size) / self.unit;
        let last = to.saturating_sub(start).min(self.block_size).div_ceil(self.unit);
        first as usize..last as usize
    }

    /// Buffers that the largest request needs to go on.
    pub(crate) fn buffers_moving(&self) -> usize {
        buffers_moving(self.block_size)
    }

    pub(crate) fn round_up(&self, offset: u64) -> u64 {
        offset.next_multiple_of(self.unit)
    }
}
