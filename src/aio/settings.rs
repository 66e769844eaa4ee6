//! The aio settings, named as in DeepSpeed's `aio` section.

/// Which engine moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Engine {
    /// `io_uring` where the kernel allows it, else threads.
    #[default]
    Auto,
    /// `io_uring`, or an error.
    IoUring,
    /// Threads that block in pread(2) and pwrite(2).
    Threads,
}

/// How transfers are submitted and reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AioSettings {
    /// Transfers in flight per aio thread, 1 to [`AioSettings::QUEUE_DEPTH_MAX`].
    pub queue_depth: u32,
    /// Aio threads, each with a ring of its own, 1 to [`AioSettings::THREAD_COUNT_MAX`].
    pub thread_count: u32,
    /// One system call per transfer instead of one per batch.
    pub single_submit: bool,
    /// Keep the queue topped up while completions are reaped; otherwise submit a batch of up to
    /// `queue_depth` transfers, wait for all of it, repeat.
    pub overlap_events: bool,
    /// Bytes of a file that go to the same aio thread before the next one's turn comes: the block
    /// size.
    pub stripe: u64,
    /// Which engine.
    pub engine: Engine,
}

impl AioSettings {
    /// Largest `queue_depth`: a ring's entries are limited to 32,768 by the kernel, and one is ours.
    pub const QUEUE_DEPTH_MAX: u32 = 4096;

    /// Largest `thread_count`.
    pub const THREAD_COUNT_MAX: u32 = 64;

    /// Whether all values are within their limits.
    #[must_use]
    pub fn valid(&self) -> bool {
        (1..=Self::QUEUE_DEPTH_MAX).contains(&self.queue_depth)
            && (1..=Self::THREAD_COUNT_MAX).contains(&self.thread_count)
            && self.stripe > 0
    }
}

impl Default for AioSettings {
    fn default() -> Self {
        Self {
            queue_depth: 8,
            thread_count: 1,
            single_submit: false,
            overlap_events: true,
            stripe: 1 << 20,
            engine: Engine::Auto,
        }
    }
}
