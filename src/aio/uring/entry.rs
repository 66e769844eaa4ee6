//! What the kernel is told of a transfer.

use std::sync::Arc;

use io_uring::{IoUring, opcode, squeue, types};

use super::super::device::Action;
use super::setup::slice_index;
use crate::pool::Arena;

/// `IORING_ENTER_GETEVENTS`, which the crate keeps to itself.
const ENTER_GETEVENTS: u32 = 1;

/// The registered buffer that holds a transfer's memory, if `arena` is the registered one.
pub(super) fn registered_buffer(arena: Option<&Arc<Arena>>, action: &Action) -> Option<u16> {
    // Another ring may have given up pages that this one has registered.
    let arena = arena.filter(|arena| !arena.is_replaced())?;
    match action {
        Action::Read(lease) if lease.is_of(arena) => slice_index(lease.offset(), lease.len()),
        Action::Write(lease) if lease.is_of(arena) => slice_index(lease.offset(), lease.len()),
        Action::Read(_) | Action::Write(_) | Action::Sync { .. } => None,
    }
}

/// The entry of a transfer at `offset` of `file`, with its memory by registration if it is in `buffer`.
pub(super) fn entry(
    action: &Action, file: types::Fd, offset: u64, buffer: Option<u16>, write_flags: i32,
) -> squeue::Entry {
    let length = u32::try_from(action.length()).expect("submit checked the length");
    match (action, buffer) {
        (Action::Read(lease), Some(buffer)) => {
            opcode::ReadFixed::new(file, lease.address(), length, buffer).offset(offset).build()
        }
        (Action::Read(lease), None) => {
            opcode::Read::new(file, lease.address(), length).offset(offset).build()
        }
        (Action::Write(lease), Some(buffer)) => {
            let write = opcode::WriteFixed::new(file, lease.address(), length, buffer);
            write.offset(offset).rw_flags(write_flags).build()
        }
        (Action::Write(lease), None) => {
            let write = opcode::Write::new(file, lease.address(), length);
            write.offset(offset).rw_flags(write_flags).build()
        }
        (Action::Sync { data_only }, _) => {
            use types::FsyncFlags as Flags;
            let flags = if *data_only { Flags::DATASYNC } else { Flags::empty() };
            opcode::Fsync::new(file).flags(flags).build()
        }
    }
}

/// Lets the kernel put completions into the queue: with deferred work it does so in this call alone. Submits
/// nothing, so that it needs no memory.
pub(super) fn fetch_events(ring: &IoUring) -> std::io::Result<usize> {
    // SAFETY: enter needs that no entry is published whose memory or descriptor is not valid, and an argument
    // that fits the flags: it is told to take no entry, and without further flags there is no argument.
    unsafe { ring.submitter().enter::<libc::sigset_t>(0, 0, ENTER_GETEVENTS, None) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_sync_of_data_leaves_attributes_out() {
        let flags = |data_only| {
            let entry = entry(&Action::Sync { data_only }, types::Fd(0), 0, None, 0);
            // SAFETY: transmute needs a type of the same size in which any bytes are a value: an entry is the kernel's
            // struct io_uring_sqe, plain numbers.
            let words: [u32; 16] = unsafe { std::mem::transmute(entry) };
            // fsync_flags, behind opcode, flags, ioprio, fd, off, addr and len.
            words[7]
        };
        assert_eq!((flags(true), flags(false)), (types::FsyncFlags::DATASYNC.bits(), 0));
    }
}
