//! Memory to swap folder: making partitions, writing them out, giving their buffers back.

use std::sync::Arc;

use super::error::{Direction, Result, SwapError, TransferFailure};
use super::id::PartitionId;
use super::table::{Batch, Entry, Held, Place};
use super::view::{Sole, ViewMut};
use super::{Inner, Swapper, named};
use crate::engine::Access;

/// What becomes of the buffers when a write-out has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    Keep,
    /// Released when the bytes are written; kept when they could not be.
    Release,
    /// Released whatever happens.
    Force,
}

impl Swapper {
    /// Makes a partition: zeros in the pool, to be filled through the view that is returned. It is available
    /// from then on, and its file is made, its space reserved, empty until it is swapped out; a longer file of
    /// that name is cut to the partition's size at once. Takes a buffer for each block, waiting
    /// for those that are about to be released.
    ///
    /// DeepSpeed asserts that a buffer is free and that the partition fits into one.
    ///
    /// # Errors
    ///
    /// [`SwapError::NoBuffers`], [`SwapError::LargerThanPool`]; [`SwapError::Numel`], [`SwapError::BadNumel`],
    /// [`SwapError::BadName`]; [`SwapError::Status`] when it is available or in flight; [`SwapError::File`], with
    /// ENOSPC when the file's space cannot be had.
    pub fn get_buffer(&self, id: impl Into<PartitionId>, numel: u64) -> Result<ViewMut> {
        let id = id.into();
        let inner = &self.inner;
        let (bytes, aligned) = inner.bytes(&id, numel)?;
        let made = inner.make_place(&id, numel, "get_buffer")?;
        let held = inner.blank(&id, aligned).inspect_err(|_| inner.unmake_place(&id, made))?;
        let sole = Sole::new(Arc::new(held));
        let hold = match inner.claim(&id, sole.held(), Access::Fill) {
            Ok(hold) => hold,
            Err(error) => {
                drop(sole);
                inner.unmake_place(&id, made);
                return Err(error);
            }
        };
        inner.place(&id, Place::Held(sole.held().clone()));
        Ok(ViewMut::new(id, bytes, hold, sole, true, self.ending.clone()))
    }

    /// Writes available partitions to the swap folder, and keeps them. With `async_op` returns when the
    /// transfers are queued, and [`Swapper::synchronize_writes`] reports; else when they have ended. The number
    /// of partitions done, 0 with `async_op`. Unchanged ones need no transfer.
    ///
    /// # Errors
    ///
    /// [`SwapError::Transfers`]; what failed is available still, and can be swapped out again.
    /// [`SwapError::Unknown`], [`SwapError::Twice`], [`SwapError::Status`], [`SwapError::InUse`] before anything was done.
    pub fn swap_out<I: Clone + Into<PartitionId>>(
        &self, ids: &[I], async_op: bool,
    ) -> Result<usize> {
        self.inner.write_out("swap_out", &named(ids), async_op, After::Keep)
    }

    /// As [`Swapper::swap_out`], and releases each partition's buffers as soon as it is written; calls that wait
    /// for buffers go on then, before [`Swapper::synchronize_writes`]. With `force_buffer_release` the buffers
    /// of a partition that could not be written are released too, and its bytes lost; without, it stays
    /// available.
    ///
    /// DeepSpeed asserts `force_buffer_release` with `async_op`, because it gives the buffers back before they
    /// are written. Here they are always written first.
    ///
    /// # Errors
    ///
    /// As [`Swapper::swap_out`].
    pub fn swap_out_and_release<I: Clone + Into<PartitionId>>(
        &self, ids: &[I], async_op: bool, force_buffer_release: bool,
    ) -> Result<usize> {
        let after = if force_buffer_release { After::Force } else { After::Release };
        self.inner.write_out("swap_out_and_release", &named(ids), async_op, after)
    }

    /// Waits for every asynchronous write-out that has begun, and reports: the number of partitions done since
    /// the last report, 0 when there was nothing.
    ///
    /// # Errors
    ///
    /// [`SwapError::Transfers`] for those that failed, once. DeepSpeed asserts the count of completions
    /// and ignores what they say.
    pub fn synchronize_writes(&self) -> Result<usize> {
        self.inner.writes.wait()
    }

    /// Gives back the buffers of available partitions without writing; what is not available is left alone. A caller's
    /// buffer that holds one is dropped. All or none.
    ///
    /// # Errors
    ///
    /// [`SwapError::Unwritten`] for one that was changed since it was swapped in or out, where DeepSpeed drops
    /// the change; [`Swapper::discard`] does that too. [`SwapError::Unknown`], [`SwapError::Twice`], [`SwapError::Status`] when in flight, [`SwapError::InUse`].
    pub fn remove_partition_and_release_buffers<I: Clone + Into<PartitionId>>(
        &self, ids: &[I],
    ) -> Result<()> {
        self.inner.remove("remove_partition_and_release_buffers", &named(ids), false)
    }

    /// As [`Swapper::remove_partition_and_release_buffers`], changes and all: the partition reads as in the swap
    /// folder then.
    ///
    /// # Errors
    ///
    /// As there, but for [`SwapError::Unwritten`].
    pub fn discard<I: Clone + Into<PartitionId>>(&self, ids: &[I]) -> Result<()> {
        self.inner.remove("discard", &named(ids), true)
    }
}

impl Inner {
    /// Makes an absent partition known, and takes it. True when it was unknown.
    pub(super) fn make_place(
        &self, id: &PartitionId, numel: u64, operation: &'static str,
    ) -> Result<bool> {
        let mut table = self.table.lock();
        let made = !table.entries.contains_key(id);
        let entry =
            table.entries.entry(id.clone()).or_insert(Entry { numel, place: Place::Absent });
        if entry.numel != numel {
            let known = entry.numel;
            return Err(SwapError::Numel { id: id.clone(), known, given: numel });
        }
        table.take_absent(operation, std::slice::from_ref(id))?;
        Ok(made)
    }

    pub(super) fn unmake_place(&self, id: &PartitionId, made: bool) {
        self.place(id, Place::Absent);
        if made {
            self.table.lock().entries.remove(id);
        }
    }

    /// Buffers for a partition whose bytes are all to come from the caller.
    fn blank(&self, id: &PartitionId, aligned: u64) -> Result<Held> {
        let tokens = self.take_buffers([aligned].into_iter())?;
        let open = Arc::new(self.open_new(id, aligned)?);
        let hold = self.engine.hold_now(open.handle, 0..aligned, Access::Blank);
        let hold = hold.map_err(|errno| {
            SwapError::Transfers(vec![self.failure(id, &open, Direction::SwapOut, errno)])
        })?;
        Ok(Held::new(hold, open, tokens, true))
    }

    fn write_out(
        self: &Arc<Self>, operation: &'static str, ids: &[PartitionId], async_op: bool,
        after: After,
    ) -> Result<usize> {
        self.running()?;
        let taken = self.table.lock().take_held(operation, ids)?;
        let own = Arc::new(Batch::default());
        for (id, mut held) in taken {
            held.tokens.set_coming(after != After::Keep);
            let (inner, own) = (self.clone(), own.clone());
            let batch = if async_op { &self.writes } else { &*own };
            let number = batch.begin();
            let (engine, handle) = (self.engine.clone(), held.open.handle);
            let ended = {
                let own = own.clone();
                Box::new(move |outcome: crate::error::Result<()>| {
                    let failure = inner.written(&id, held, outcome.err(), after);
                    let batch = if async_op { &inner.writes } else { &*own };
                    batch.end(number, failure);
                })
            };
            // "close" writes all that is dirty, failed blocks again, and answers when it is in the folder.
            engine.close(handle, true, ended);
        }
        if async_op { Ok(0) } else { own.wait() }
    }

    /// A write-out has ended.
    fn written(
        &self, id: &PartitionId, mut held: Held, errno: Option<crate::error::Errno>, after: After,
    ) -> Option<TransferFailure> {
        let failure = errno.map(|errno| self.failure(id, &held.open, Direction::SwapOut, errno));
        if failure.is_none() {
            held.set_changed(false);
        }
        if after == After::Keep || (failure.is_some() && after == After::Release) {
            held.tokens.set_coming(false);
            self.place(id, Place::Held(Arc::new(held)));
            return failure;
        }
        // Whoever waits for the buffers must not find the partition in flight still.
        self.place(id, Place::Absent);
        match &failure {
            None => held.release(),
            Some(failure) => {
                log::error!("{failure}; its bytes are given up, as was asked");
                held.discard();
            }
        }
        failure
    }

    fn remove(&self, operation: &'static str, ids: &[PartitionId], discard: bool) -> Result<()> {
        let mut given = Vec::new();
        let taken = {
            let mut table = self.table.lock();
            table.check_ids(operation, ids)?;
            let mut held = Vec::new();
            for id in ids {
                match &table.entry(id)?.place {
                    Place::Held(place) if place.is_changed() && !discard => {
                        return Err(SwapError::Unwritten { operation, id: id.clone() });
                    }
                    Place::Given(buffer) if Arc::strong_count(buffer) > 1 => {
                        return Err(SwapError::InUse { operation, id: id.clone() });
                    }
                    Place::Absent | Place::Given(_) => {}
                    Place::Held(_) | Place::Busy | Place::Arrived(_) => held.push(id.clone()),
                }
            }
            let taken = table.take_held(operation, &held)?;
            for id in ids {
                if matches!(table.entry(id)?.place, Place::Given(_)) {
                    given.push(table.place(id, Place::Absent));
                }
            }
            taken
        };
        drop(given);
        for (id, held) in taken {
            let changed = held.is_changed();
            if changed {
                held.discard();
            } else {
                held.release();
            }
            self.place(&id, Place::Absent);
        }
        Ok(())
    }
}
