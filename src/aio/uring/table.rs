//! The table of transfers that the kernel works on. A slot's index is the `user_data` of its entry.

use std::os::fd::OwnedFd;

use super::super::device::{Action, Transfer};
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
    /// How far the storing of a file's end has come.
    pub(super) tail: Option<Tail>,
    /// The counters show it as submitted: a second step, or another attempt, is no other transfer.
    is_counted: bool,
    retries: u16,
}

/// The end of a file is stored through the page cache and then pushed to the device (`aio::tail`).
#[derive(Debug)]
pub(super) struct Tail {
    /// The file, without O_DIRECT.
    pub(super) buffered: OwnedFd,
    pub(super) is_stored: bool,
}

/// Slots beyond the queue's depth, so that a sync need not wait until a transfer ends.
pub(super) const SYNCS_MAX: u32 = 4;

/// What may be taken from the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Room {
    /// Reads and writes.
    pub(super) transfers: usize,
    /// Those and syncs together.
    pub(super) slots: usize,
}

impl Room {
    pub(super) const NONE: Self = Self { transfers: 0, slots: 0 };
    pub(super) const ENDLESS: Self = Self { transfers: usize::MAX, slots: usize::MAX };
}

/// As many slots as the queue is deep, and a few for syncs. Owns every transfer from before its entry is published until
/// its completion is reaped.
#[derive(Debug)]
pub(super) struct Table {
    slots: Vec<Option<Slot>>,
    free: Vec<u32>,
    /// Reads and writes that may be in it.
    depth: usize,
    /// Syncs that are.
    syncs: usize,
}

impl Table {
    pub(super) fn new(depth: u32) -> Self {
        let slots = depth + SYNCS_MAX;
        Self {
            slots: (0..slots).map(|_| None).collect(),
            free: (0..slots).rev().collect(),
            depth: depth as usize,
            syncs: 0,
        }
    }

    pub(super) fn room(&self) -> Room {
        Room { transfers: self.depth - self.transfers(), slots: self.free.len() }
    }

    /// Reads and writes in it.
    pub(super) fn transfers(&self) -> usize {
        self.len() - self.syncs
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    pub(super) fn insert(
        &mut self, transfer: Transfer, registered: Option<u32>, tail: Option<Tail>,
    ) -> u32 {
        let index = self.free.pop().expect("the inbox holds no more than there is room for");
        let slot = &mut self.slots[index as usize];
        assert!(slot.is_none(), "slot {index} is free");
        self.syncs += usize::from(is_sync(&transfer));
        *slot =
            Some(Slot { transfer, registered, fixed: false, tail, is_counted: false, retries: 0 });
        index
    }

    pub(super) fn get(&self, index: u32) -> &Slot {
        self.slots[index as usize].as_ref().expect("a slot in use")
    }

    pub(super) fn get_mut(&mut self, index: u32) -> &mut Slot {
        self.slots[index as usize].as_mut().expect("a slot in use")
    }

    /// Whether the counters do not show it as submitted yet; from here on they do.
    pub(super) fn is_new(&mut self, index: u32) -> bool {
        !std::mem::replace(&mut self.get_mut(index).is_counted, true)
    }

    /// The slots in use.
    pub(super) fn used(&self) -> Vec<u32> {
        let used = (0..).zip(&self.slots).filter(|(_, slot)| slot.is_some());
        used.map(|(index, _)| index).collect()
    }

    pub(super) fn remove(&mut self, index: u32) -> Slot {
        let slot = self.slots[index as usize].take().expect("a completion for a slot in use");
        self.free.push(index);
        self.syncs -= usize::from(is_sync(&slot.transfer));
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

fn is_sync(transfer: &Transfer) -> bool {
    matches!(transfer.action, Action::Sync { .. })
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
