//! The table of transfers that the kernel works on. A slot's index is the `user_data` of its entry.

use super::super::device::Transfer;
use crate::error::Errno;

/// Times a transfer is submitted again because the kernel said EINTR or EAGAIN.
const RETRIES_MAX: u16 = 1000;

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) transfer: Transfer,
    /// Its file's place in the ring's table of registered files.
    pub(super) registered: Option<u32>,
    /// Whether the kernel knows its memory by registration alone, not by its address.
    pub(super) fixed: bool,
    retries: u16,
}

/// As many slots as the queue is deep. Owns every transfer from before its entry is published until
/// its completion is reaped.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
}

impl Table {
    pub(super) fn new(depth: u32) -> Self {
        Self { slots: (0..depth).map(|_| None).collect(), free: (0..depth).rev().collect() }
    }

    pub(super) fn room(&self) -> usize {
        self.free.len()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(&mut self, transfer: Transfer, registered: Option<u32>) -> u32 {
        let index = self.free.pop().expect("the inbox holds no more than there is room for");
        let slot = &mut self.slots[index as usize];
        assert!(slot.is_none(), "slot {index} is free");
        *slot = Some(Slot { transfer, registered, fixed: false, retries: 0 });
        index
    }

    pub(super) fn get(&self, index: u32) -> &Slot {
        self.slots[index as usize].as_ref().expect("a slot in use")
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Slot {
        self.slots[index as usize].as_mut().expect("a slot in use")
    }

    /// The slots in use.
    pub(super) fn used(&self) -> Vec<u32> {
        let used = (0..).zip(&self.slots).filter(|(_, slot)| slot.is_some());
        used.map(|(index, _)| index).collect()
    }

    pub(super) fn remove(&mut self, index: u32) -> Slot {
        let slot = self.slots[index as usize].take().expect("a completion for a slot in use");
        self.free.push(index);
        slot
    }

    /// Whether the transfer should be submitted once more after this outcome.
    pub(super) fn retry(&mut self, index: u32, result: i32) -> bool {
        if !matches!(result.checked_neg().map(Errno::from_raw), Some(Errno::EINTR | Errno::EAGAIN))
        {
            return false;
        }
        let slot = self.slots[index as usize].as_mut().expect("a completion for a slot in use");
        slot.retries += 1;
        slot.retries <= RETRIES_MAX
    }
}

impl Drop for Table {
    fn drop(&mut self) {
        if self.len() == 0 {
            return;
        }
        // Those whose memory could not be replaced (`Ring::abandon`).
        // Closing a ring does not stop what the kernel has begun. Were these leases given back, a
        // late read would overwrite whatever their buffers hold by then, so they are leaked: each
        // keeps the arena mapped and its own bytes out of use for the rest of the process.
        log::error!("{} transfers without completion; their buffers are lost", self.len());
        self.slots.drain(..).flatten().for_each(std::mem::forget);
    }
}
