//! Buffers of one size, allocated and given back: DeepSpeed's `SwapBufferManager`.

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use parking_lot::Mutex;

use super::arena::ArenaOptions;
use super::lease::WriteLease;
use super::sole::SoleArena;

/// A buffer as its source gives it out.
#[derive(Debug)]
pub(crate) struct Loan {
    pub(crate) index: u32,
    pub(crate) lease: WriteLease,
    /// Dropped after the buffer was given back.
    pub(crate) token: Box<dyn Any + Send + Sync>,
}

/// Whose buffers a pool gives out.
pub(crate) trait BufferSource: Send + Sync + Debug {
    fn buffer_size(&self) -> usize;
    fn total(&self) -> usize;
    fn free(&self) -> usize;
    /// All of `count`, or none.
    fn take(&self, count: usize) -> Option<Vec<Loan>>;
    /// All that are free.
    fn take_all(&self) -> Vec<Loan>;
    fn give_back(&self, index: u32, lease: WriteLease);
}

/// A fixed number of page-aligned, zeroed buffers of one size in one mapping, locked where the system
/// allows it. Cloning gives another reference to the same buffers. Safe to use from several threads.
///
/// [`BufferPool::new`] makes one with memory of its own; [`Engine::buffer_pool`](crate::engine::Engine::buffer_pool)
/// gives out the buffers that partitions are swapped in to. DeepSpeed's `SwapBufferManager` asserts the
/// element type and count of what is asked for; here a buffer is bytes.
#[derive(Debug, Clone)]
pub struct BufferPool {
    source: Arc<dyn BufferSource>,
}

impl BufferPool {
    /// A pool of `count` buffers of `buffer_size` bytes, a multiple of 4096. Blocks while the kernel
    /// clears the memory.
    ///
    /// # Errors
    ///
    /// EINVAL for no buffers, or buffers of no whole pages; ENOMEM. That the memory could not be locked is no
    /// error but a warning in the log.
    pub fn new(count: usize, buffer_size: usize) -> io::Result<Self> {
        let invalid = || io::Error::from_raw_os_error(libc::EINVAL);
        if buffer_size == 0 || !buffer_size.is_multiple_of(4096) {
            return Err(invalid());
        }
        let size = count.checked_mul(buffer_size).ok_or_else(invalid)?;
        let options = ArenaOptions { size, pin_memory: true, huge_pages: true };
        let (sole, mut lease) = SoleArena::new(options)?;
        if let Some(refusal) = sole.arena().lock_refusal() {
            log::warn!("a pool of buffers is not locked in memory: {refusal}");
        }
        let mut free = Vec::with_capacity(count);
        for index in 0..count {
            let (buffer, rest) = lease.split_front(buffer_size);
            free.push((index as u32, buffer));
            lease = rest;
        }
        free.reverse();
        let own = Own { buffer_size, total: count, free: Mutex::new(free) };
        Ok(Self { source: Arc::new(own) })
    }

    pub(crate) fn over(source: Arc<dyn BufferSource>) -> Self {
        Self { source }
    }

    /// Bytes of one buffer.
    #[must_use]
    pub fn buffer_size(&self) -> usize {
        self.source.buffer_size()
    }

    /// Buffers there are, given out or not.
    #[must_use]
    pub fn total(&self) -> usize {
        self.source.total()
    }

    /// Buffers that could be allocated now.
    #[must_use]
    pub fn available(&self) -> usize {
        self.source.free()
    }

    /// `count` buffers of zeros, or `None` when fewer are free (DeepSpeed's answer too). Of an engine's
    /// buffers, it waits for those that a transfer is about to leave.
    #[must_use]
    pub fn allocate(&self, count: usize) -> Option<Vec<PoolBuffer>> {
        self.source.take(count).map(|loans| self.zeroed(loans))
    }

    /// Every buffer that is free, zeroed; maybe none.
    #[must_use]
    pub fn allocate_all(&self) -> Vec<PoolBuffer> {
        self.zeroed(self.source.take_all())
    }

    /// Gives buffers back, which dropping them does too. DeepSpeed's `free` asserts that it knows them; a
    /// [`PoolBuffer`] always finds back to where it came from.
    pub fn free(&self, buffers: Vec<PoolBuffer>) {
        drop(buffers);
    }

    fn zeroed(&self, loans: Vec<Loan>) -> Vec<PoolBuffer> {
        let buffer = |loan: Loan| {
            let Loan { index, mut lease, token } = loan;
            lease.fill(0);
            let source = self.source.clone();
            PoolBuffer { lease: Some(lease), index, source, _token: token }
        };
        loans.into_iter().map(buffer).collect()
    }
}

/// A buffer of a [`BufferPool`]: page-aligned bytes, by `Deref`. Given back when dropped.
#[derive(Debug)]
pub struct PoolBuffer {
    /// `None` while a transfer has it.
    lease: Option<WriteLease>,
    index: u32,
    source: Arc<dyn BufferSource>,
    _token: Box<dyn Any + Send + Sync>,
}

impl PoolBuffer {
    /// The memory, for a transfer, which brings it back with [`PoolBuffer::put`].
    pub(crate) fn take(&mut self) -> Option<WriteLease> {
        self.lease.take()
    }

    pub(crate) fn put(&mut self, lease: WriteLease) {
        self.lease = Some(lease);
    }
}

impl Drop for PoolBuffer {
    fn drop(&mut self) {
        match self.lease.take() {
            Some(lease) => self.source.give_back(self.index, lease),
            None => log::error!("buffer {} was dropped while a transfer had it", self.index),
        }
    }
}

impl Deref for PoolBuffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.lease.as_deref().unwrap_or_default()
    }
}

impl DerefMut for PoolBuffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.lease.as_deref_mut().unwrap_or_default()
    }
}

/// Buffers with memory of their own. Last given back, first given out.
#[derive(Debug)]
struct Own {
    buffer_size: usize,
    total: usize,
    free: Mutex<Vec<(u32, WriteLease)>>,
}

fn loan((index, lease): (u32, WriteLease)) -> Loan {
    Loan { index, lease, token: Box::new(()) }
}

impl BufferSource for Own {
    fn buffer_size(&self) -> usize {
        self.buffer_size
    }

    fn total(&self) -> usize {
        self.total
    }

    fn free(&self) -> usize {
        self.free.lock().len()
    }

    fn take(&self, count: usize) -> Option<Vec<Loan>> {
        let mut free = self.free.lock();
        let from = free.len().checked_sub(count)?;
        Some(free.drain(from..).rev().map(loan).collect())
    }

    fn take_all(&self) -> Vec<Loan> {
        self.free.lock().drain(..).rev().map(loan).collect()
    }

    fn give_back(&self, index: u32, lease: WriteLease) {
        self.free.lock().push((index, lease));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_counted_zeroed_and_come_back() {
        let pool = BufferPool::new(3, 8192).unwrap();
        assert_eq!((pool.total(), pool.available(), pool.buffer_size()), (3, 3, 8192));
        let mut two = pool.allocate(2).unwrap();
        assert!(pool.allocate(2).is_none(), "all or none");
        two[0].fill(9);
        let rest = pool.allocate_all();
        assert_eq!((rest.len(), pool.available()), (1, 0));
        pool.free(two);
        drop(rest);
        assert_eq!(pool.available(), 3);
        for buffer in pool.allocate_all() {
            assert_eq!(buffer.as_ptr().addr() % 4096, 0);
            assert!(buffer.iter().all(|byte| *byte == 0));
        }
        for (count, size) in [(0, 4096), (1, 0), (1, 4095), (usize::MAX, 4096)] {
            assert!(BufferPool::new(count, size).is_err());
        }
    }
}
