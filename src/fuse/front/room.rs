//! The memory in which requests are received.

use super::LENDING_MAX;
use crate::engine::Intake;
use crate::fuse::session::REQUEST_BYTES_MAX;
use crate::volume::Volume;

/// Bytes of a page of memory.
const PAGE_BYTES: usize = 4096;

/// Where a thread receives what comes after the headers.
pub(super) enum Room {
    /// Memory that the pool takes in exchange for other.
    Intake(Intake),
    /// Where blocks have another size than requests.
    Own(Payload),
}

impl Room {
    /// Of the thread with this number.
    pub(super) fn new(number: usize, volume: &Volume) -> Room {
        match (number < LENDING_MAX).then(|| volume.engine.intake()).flatten() {
            Some(intake) if intake.len() == REQUEST_BYTES_MAX as usize => Room::Intake(intake),
            _ => Room::Own(Payload::new()),
        }
    }

    /// Makes what is received begin there, so far into a block, if it is to become one's memory.
    pub(super) fn begin_at(&mut self, start: usize) {
        if let Room::Intake(intake) = self {
            intake.begin_at(start);
        }
    }

    /// All of it, in the order in which it is filled.
    pub(super) fn parts(&mut self) -> [&mut [u8]; 2] {
        match self {
            Room::Intake(intake) => intake.parts(),
            Room::Own(payload) => [payload.bytes(), &mut []],
        }
    }

    /// The first `length` bytes that were received.
    pub(super) fn bytes(&mut self, length: usize) -> &[u8] {
        match self {
            Room::Intake(intake) => intake.straighten(length),
            Room::Own(payload) => &payload.bytes()[..length],
        }
    }
}

/// Memory for the largest payload, beginning with a page.
pub(super) struct Payload {
    memory: Vec<u8>,
    start: usize,
}

impl Payload {
    pub(super) fn new() -> Payload {
        let memory = vec![0; REQUEST_BYTES_MAX as usize + PAGE_BYTES];
        let address = memory.as_ptr().addr();
        Payload { start: address.next_multiple_of(PAGE_BYTES) - address, memory }
    }

    pub(super) fn bytes(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..REQUEST_BYTES_MAX as usize]
    }
}
