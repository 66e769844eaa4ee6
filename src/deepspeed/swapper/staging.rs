//! Rewriting partitions from single precision: what follows an optimizer step on the CPU.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;

use crossbeam_channel::{Receiver, Sender};
use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

use super::error::{Direction, Result, SwapError, TransferFailure};
use super::id::{Dtype, PartitionId};
use super::table::{Held, Open};
use super::{Inner, Swapper, named};
use crate::engine::Access;
use crate::engine::Tokens;
use crate::engine::assert_outside;

/// A staging area takes at most this fraction of the pool.
const POOL_SHARE: usize = 2;

impl Swapper {
    /// Sets buffers of the pool aside for [`Swapper::swap_out_partitioned_params`], enough to hold parameters of
    /// `numels` elements (the largest sub-group's) at once, but half of the pool at most: what is larger goes
    /// through part by part. Replaces an earlier reservation; of no elements, it makes none. The number of bytes.
    ///
    /// DeepSpeed allocates memory of that size on top of its pool.
    ///
    /// # Errors
    ///
    /// [`SwapError::NoBuffers`] (the earlier reservation is gone then), [`SwapError::BadNumel`].
    pub fn reserve_partitioned_swap_space(&self, numels: &[u64]) -> Result<u64> {
        let inner = &self.inner;
        let block_size = inner.engine.shape.block_size;
        let mut blocks = 0_u64;
        for numel in numels {
            let (_, aligned) = inner.bytes(&PartitionId::Param(0), *numel)?;
            blocks = blocks.saturating_add(aligned.div_ceil(block_size));
        }
        let most = (inner.engine.budget.total() / POOL_SHARE).max(1) as u64;
        self.release_partitioned_swap_space();
        let bytes = blocks.min(most) * block_size;
        if bytes == 0 {
            return Ok(0);
        }
        let tokens = inner.take_buffers([bytes].into_iter())?;
        let before = {
            let mut table = inner.table.lock();
            table.stagings += 1;
            table.staging.replace(tokens)
        };
        drop(before);
        Ok(bytes)
    }

    /// Gives back what [`Swapper::reserve_partitioned_swap_space`] has set aside, or, while a call uses it, lets
    /// that call give it back at its end. Never waits.
    pub fn release_partitioned_swap_space(&self) {
        let before = {
            let mut table = self.inner.table.lock();
            table.stagings += 1;
            table.staging.take()
        };
        drop(before);
    }

    /// Replaces partitions that are not available: each element of `sources` is converted to the partitions'
    /// dtype, rounded to the nearest, ties to even, block by block in the pool, and written to the
    /// swap folder. Returns when all is there; they are not available, as before. Unknown partitions become
    /// known. Uses the buffers that were set aside, or else what is free, and never more than these at once.
    ///
    /// DeepSpeed asserts that the space was reserved and is large enough, and waits for all other
    /// writes first.
    ///
    /// # Errors
    ///
    /// [`SwapError::Transfers`]: what these partitions hold then is lost. Before anything was written:
    /// [`SwapError::Count`], [`SwapError::Twice`], [`SwapError::Numel`], [`SwapError::BadNumel`], [`SwapError::Status`], [`SwapError::NoBuffers`]
    /// without a reservation. [`SwapError::File`] for a file that cannot be opened; those before it are written.
    pub fn swap_out_partitioned_params<I: Clone + Into<PartitionId>>(
        &self, ids: &[I], sources: &[&[f32]],
    ) -> Result<usize> {
        let (ids, inner) = (named(ids), &self.inner);
        let operation = "swap_out_partitioned_params";
        if ids.len() != sources.len() {
            let (partitions, buffers) = (ids.len(), sources.len());
            return Err(SwapError::Count { operation, partitions, buffers });
        }
        if ids.is_empty() {
            return Ok(0);
        }
        let made = inner.make_places(&ids, sources, operation)?;
        let outcome = inner.rewrite(&ids, sources);
        let unmade = matches!(
            outcome,
            Err(SwapError::NoBuffers { .. }
                | SwapError::LargerThanPool { .. }
                | SwapError::Stopped)
        );
        for (id, made) in ids.iter().zip(made) {
            inner.unmake_place(id, made && unmade);
        }
        outcome.map(|()| ids.len())
    }
}

/// Buffers going round: taken for a part, back when it is written.
struct Round {
    free: Tokens,
    under_way: usize,
    ended: (Sender<Ended>, Receiver<Ended>),
    failures: Vec<TransferFailure>,
}

type Ended = (Tokens, Option<TransferFailure>);

impl Round {
    fn new(free: Tokens) -> Round {
        let ended = crossbeam_channel::unbounded();
        Round { free, under_way: 0, ended, failures: Vec::new() }
    }

    /// Waits for one part to be written.
    fn wait(&mut self) {
        assert_outside("waiting for a write-out");
        if let Ok((tokens, failure)) = self.ended.1.recv() {
            self.under_way -= 1;
            self.free.merge(tokens);
            self.failures.extend(failure);
        }
    }

    fn take(&mut self, count: usize) -> Tokens {
        while self.free.count() < count && self.under_way > 0 {
            self.wait();
        }
        self.free.split(count)
    }

    fn finish(mut self) -> (Tokens, Vec<TransferFailure>) {
        while self.under_way > 0 {
            self.wait();
        }
        (self.free, self.failures)
    }
}

impl Inner {
    /// Takes all partitions, or none; says which were unknown.
    fn make_places(
        &self, ids: &[PartitionId], sources: &[&[f32]], operation: &'static str,
    ) -> Result<Vec<bool>> {
        let (mut made, mut seen) = (Vec::with_capacity(ids.len()), HashSet::new());
        for (id, source) in ids.iter().zip(sources) {
            let numel = source.len() as u64;
            let outcome = match seen.insert(id) {
                true => self.bytes(id, numel).and_then(|_| self.make_place(id, numel, operation)),
                false => Err(SwapError::Twice { operation, id: id.clone() }),
            };
            match outcome {
                Ok(new) => made.push(new),
                Err(error) => {
                    ids.iter().zip(made).for_each(|(id, made)| self.unmake_place(id, made));
                    return Err(error);
                }
            }
        }
        Ok(made)
    }

    fn rewrite(self: &Arc<Self>, ids: &[PartitionId], sources: &[&[f32]]) -> Result<()> {
        self.running()?;
        let (reserved, stagings) = {
            let mut table = self.table.lock();
            (table.staging.take(), table.stagings)
        };
        let staged = reserved.is_some();
        let tokens = match reserved {
            Some(tokens) => tokens,
            None => self.free_buffers(ids, sources)?,
        };
        // Two parts of a partition that fills the space: one is converted while the other is written.
        let part = (tokens.count() / 2).max(1);
        let mut round = Round::new(tokens);
        let mut outcome = Ok(());
        for (id, source) in ids.iter().zip(sources) {
            outcome = self.rewrite_one(id, source, part, &mut round);
            if outcome.is_err() {
                break;
            }
        }
        let (tokens, failures) = round.finish();
        let mut table = self.table.lock();
        if staged && table.stagings == stagings {
            table.staging = Some(tokens);
            drop(table);
        } else {
            // Not set aside, or given back or reserved anew meanwhile.
            drop(table);
            drop(tokens);
        }
        match failures.is_empty() {
            true => outcome,
            false => Err(SwapError::Transfers(failures)),
        }
    }

    /// What is free, as much as serves; at least one buffer, waiting for that.
    fn free_buffers(&self, ids: &[PartitionId], sources: &[&[f32]]) -> Result<Tokens> {
        let block_size = self.engine.shape.block_size;
        let mut tokens = self.take_buffers([block_size].into_iter())?;
        let sizes = ids.iter().zip(sources).filter_map(|(id, source)| {
            self.layout.bytes(id, source.len() as u64).map(|(_, a)| a.div_ceil(block_size))
        });
        let wanted = usize::try_from(sizes.sum::<u64>()).unwrap_or(usize::MAX);
        let reserved = self.engine.reserved_on_request();
        tokens.merge(self.engine.budget.take_free(wanted - 1, reserved));
        Ok(tokens)
    }

    fn rewrite_one(
        self: &Arc<Self>, id: &PartitionId, source: &[f32], part: usize, round: &mut Round,
    ) -> Result<()> {
        let (bytes, aligned) = self.bytes(id, source.len() as u64)?;
        let open = Arc::new(self.open_new(id, aligned)?);
        let (block_size, mut at) = (self.engine.shape.block_size, 0);
        while at < aligned {
            let end = aligned.min(at + part as u64 * block_size);
            let tokens = round.take((end - at).div_ceil(block_size) as usize);
            let held = self.converted(id, &open, at..end, bytes, source, tokens)?;
            at = end;
            let (inner, id, sender) = (self.clone(), id.clone(), round.ended.0.clone());
            round.under_way += 1;
            let ended = Box::new(move |outcome: crate::error::Result<()>| {
                let failure = outcome
                    .err()
                    .map(|errno| inner.failure(&id, &held.open, Direction::SwapOut, errno));
                let Held { mut hold, open, tokens, .. } = held;
                hold.release_after(true);
                drop(hold);
                let (engine, key) = (inner.engine.clone(), open.key);
                let failed = failure.is_some();
                let done: crate::engine::Reply = Box::new(move |_| {
                    drop(open);
                    // The receiver waits for all parts.
                    let _ = sender.send((tokens, failure));
                });
                if failed {
                    engine.discard(key, done);
                } else {
                    done(Ok(()));
                }
            });
            self.engine.close(open.handle, true, ended);
        }
        Ok(())
    }

    /// Puts the converted bytes of a part into the pool, the file's padding zeroed.
    fn converted(
        &self, id: &PartitionId, open: &Arc<Open>, part: Range<u64>, bytes: u64, source: &[f32],
        tokens: Tokens,
    ) -> Result<Held> {
        let failed =
            |errno| SwapError::Transfers(vec![self.failure(id, open, Direction::SwapOut, errno)]);
        let keep =
            self.engine.hold_now(open.handle, part.clone(), Access::Blank).map_err(failed)?;
        let mut hold =
            self.engine.hold_now(open.handle, part.clone(), Access::Fill).map_err(failed)?;
        let dtype = self.layout.dtype(id);
        // A last part may be padding alone.
        let first = (part.start / dtype.size()) as usize;
        let mut rest = source.get(first..).unwrap_or_default();
        for chunk in hold.chunks_mut() {
            let length = (rest.len() as u64 * dtype.size()).min(chunk.len() as u64) as usize;
            let (front, padding) = chunk.split_at_mut(length);
            let (now, later) = rest.split_at(length / dtype.size() as usize);
            convert(dtype, now, front);
            padding.fill(0);
            rest = later;
        }
        debug_assert!(part.end < bytes || rest.is_empty());
        drop(hold);
        Ok(Held::new(keep, open.clone(), tokens, true))
    }
}

/// Writes elements in `dtype`, in the machine's byte order as torch does. The pool's chunks are aligned to
/// 4096 bytes.
fn convert(dtype: Dtype, source: &[f32], destination: &mut [u8]) {
    match dtype {
        Dtype::Float16 => {
            let elements: &mut [f16] = bytemuck::cast_slice_mut(destination);
            elements.convert_from_f32_slice(source);
        }
        Dtype::BFloat16 => {
            let elements: &mut [bf16] = bytemuck::cast_slice_mut(destination);
            elements.convert_from_f32_slice(source);
        }
        Dtype::Float32 => destination.copy_from_slice(bytemuck::cast_slice(source)),
    }
}
