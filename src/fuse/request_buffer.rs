//! The memory in which a thread receives what follows a request's headers.

use super::session::REQUEST_BYTES_MAX;
use crate::engine::{Engine, Intake};

/// Bytes of a page of memory.
const PAGE_BYTES: usize = 4096;

/// Writes that may wait in the memory they were received in: four each of eight clients. The bytes of more are copied.
const WAITING_MAX: usize = 32;

/// Threads with an intake. More threads receive into memory of their own, which the kernel gives only when it is used.
const INTAKE_THREADS_MAX: usize = 16;

/// How many of the engine's [`Intake`]s so many threads need. There are none unless a block is as long as the largest
/// request.
#[must_use]
pub fn intakes(block_size: u64, threads: usize) -> usize {
    match block_size == u64::from(REQUEST_BYTES_MAX) {
        true => threads.min(INTAKE_THREADS_MAX) + WAITING_MAX,
        false => 0,
    }
}

/// A thread's memory for the bytes of a request.
pub(super) enum RequestBuffer {
    /// Memory that a block of the pool takes over, in exchange for its own.
    Intake(Intake),
    /// The thread's own memory, whose bytes are copied.
    Own(PageAligned),
}

impl RequestBuffer {
    /// Makes the buffer of the reader with this number.
    pub(super) fn new(number: usize, engine: &Engine) -> RequestBuffer {
        match (number < INTAKE_THREADS_MAX).then(|| engine.intake()).flatten() {
            Some(intake) if intake.len() == REQUEST_BYTES_MAX as usize => {
                RequestBuffer::Intake(intake)
            }
            _ => RequestBuffer::own(),
        }
    }

    pub(super) fn own() -> RequestBuffer {
        RequestBuffer::Own(PageAligned::new())
    }

    /// Receives at this offset of a block from now on, if the memory may become a block's.
    pub(super) fn begin_at(&mut self, offset: usize) {
        if let RequestBuffer::Intake(intake) = self {
            intake.begin_at(offset);
        }
    }

    /// The whole memory, in the order in which it is filled.
    pub(super) fn parts(&mut self) -> [&mut [u8]; 2] {
        match self {
            RequestBuffer::Intake(intake) => intake.parts(),
            RequestBuffer::Own(memory) => [memory.bytes(), &mut []],
        }
    }

    /// The first `length` bytes that were received.
    pub(super) fn bytes(&mut self, length: usize) -> &[u8] {
        match self {
            RequestBuffer::Intake(intake) => intake.straighten(length),
            RequestBuffer::Own(memory) => &memory.bytes()[..length],
        }
    }
}

/// Memory for the largest request, beginning with a page.
pub(super) struct PageAligned {
    memory: Vec<u8>,
    start: usize,
}

impl PageAligned {
    pub(super) fn new() -> PageAligned {
        let memory = vec![0; REQUEST_BYTES_MAX as usize + PAGE_BYTES];
        let address = memory.as_ptr().addr();
        PageAligned { start: address.next_multiple_of(PAGE_BYTES) - address, memory }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..REQUEST_BYTES_MAX as usize]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_begin_with_a_page() {
        let mut memory = PageAligned::new();
        assert_eq!(memory.bytes().as_ptr().addr() % 4096, 0);
        assert_eq!(memory.bytes().len(), REQUEST_BYTES_MAX as usize);
    }
}
