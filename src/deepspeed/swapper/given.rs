//! Swapping in to memory of the caller's, past the pool.

use std::sync::Arc;

use parking_lot::Mutex;

use super::id::PartitionId;
use crate::deepspeed::LockedTensor;
use crate::deepspeed::handle::Region;
use crate::engine::Engine;
use crate::engine::HandleId;
use crate::engine::Outcome;
use crate::error::Errno;
use crate::pool::{PoolBuffer, WriteLease};

/// Memory for [`Swapper::swap_in`](super::Swapper::swap_in), moved in and had back by
/// [`Swapper::take_buffer`](super::Swapper::take_buffer).
#[derive(Debug)]
pub enum SwapInBuffer {
    /// At least the partition's aligned size.
    Tensor(LockedTensor),
    /// Buffers of the pool, as from
    /// [`reserve_available_buffers`](super::Swapper::reserve_available_buffers), as many as the partition
    /// has blocks. The first holds its first bytes.
    Buffers(Vec<PoolBuffer>),
}

impl From<LockedTensor> for SwapInBuffer {
    fn from(tensor: LockedTensor) -> Self {
        SwapInBuffer::Tensor(tensor)
    }
}

impl From<Vec<PoolBuffer>> for SwapInBuffer {
    fn from(buffers: Vec<PoolBuffer>) -> Self {
        SwapInBuffer::Buffers(buffers)
    }
}

impl SwapInBuffer {
    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "one that is empty serves nobody")]
    pub fn len(&self) -> usize {
        self.chunks().map(<[u8]>::len).sum()
    }

    /// The bytes, in the partition's order.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let (tensor, buffers): (Option<&[u8]>, &[PoolBuffer]) = match self {
            SwapInBuffer::Tensor(tensor) => (Some(tensor), &[]),
            SwapInBuffer::Buffers(buffers) => (None, buffers),
        };
        tensor.into_iter().chain(buffers.iter().map(|buffer| &**buffer))
    }

    /// Takes the memory for the first `bytes` out, as runs to fill.
    pub(super) fn take(self, bytes: u64) -> (Shell, Vec<(u64, WriteLease)>) {
        match self {
            SwapInBuffer::Tensor(tensor) => {
                let (lease, region) = tensor.into_parts();
                let (lease, rest) = lease.split_front(bytes as usize);
                (Shell::Tensor { rest, region }, vec![(0, lease)])
            }
            SwapInBuffer::Buffers(mut buffers) => {
                let mut runs = Vec::with_capacity(buffers.len());
                let (mut offset, mut rests) = (0, Vec::with_capacity(buffers.len()));
                for buffer in &mut buffers {
                    let Some(lease) = buffer.take() else { continue };
                    let length = (bytes - offset).min(lease.len() as u64);
                    let (run, rest) = lease.split_front(length as usize);
                    runs.push((offset, run));
                    rests.push(rest);
                    offset += length;
                }
                (Shell::Buffers { buffers, rests }, runs)
            }
        }
    }
}

/// What is left of a [`SwapInBuffer`] while transfers have its memory.
#[derive(Debug)]
pub(super) enum Shell {
    Tensor { rest: WriteLease, region: Arc<Region> },
    Buffers { buffers: Vec<PoolBuffer>, rests: Vec<WriteLease> },
}

impl Shell {
    /// Puts the runs back, in the order they were taken.
    pub(super) fn restore(self, runs: Vec<WriteLease>) -> SwapInBuffer {
        match self {
            Shell::Tensor { rest, region } => {
                let lease = runs.into_iter().fold(None, |front: Option<WriteLease>, run| {
                    Some(match front {
                        Some(front) => front.join(run),
                        None => run,
                    })
                });
                let lease = match lease {
                    Some(lease) => lease.join(rest),
                    None => rest,
                };
                SwapInBuffer::Tensor(LockedTensor::from_parts(lease, region))
            }
            Shell::Buffers { mut buffers, rests } => {
                for ((buffer, run), rest) in buffers.iter_mut().zip(runs).zip(rests) {
                    buffer.put(run.join(rest));
                }
                SwapInBuffer::Buffers(buffers)
            }
        }
    }
}

/// The first byte that could not be read, and why.
pub(super) type Missed = Option<(u64, Errno)>;

type FillReply = Box<dyn FnOnce(WriteLease, Missed) + Send>;

/// A run of bytes being read piece by piece.
struct Gather {
    left: usize,
    pieces: Vec<(u64, WriteLease)>,
    missed: Missed,
    reply: Option<FillReply>,
}

impl Gather {
    /// Takes some pieces; answers when the last is there.
    fn put(gather: &Mutex<Gather>, offset: u64, lease: WriteLease, missed: Missed) {
        let (reply, mut pieces, missed) = {
            let mut gather = gather.lock();
            gather.pieces.push((offset, lease));
            gather.missed = [gather.missed, missed].into_iter().flatten().min_by_key(|m| m.0);
            gather.left -= 1;
            if gather.left > 0 {
                return;
            }
            (gather.reply.take(), std::mem::take(&mut gather.pieces), gather.missed)
        };
        pieces.sort_by_key(|(offset, _)| *offset);
        let whole = pieces.into_iter().map(|(_, lease)| lease).reduce(WriteLease::join);
        if let (Some(reply), Some(whole)) = (reply, whole) {
            reply(whole, missed);
        }
    }
}

/// Fills `lease` with the partition's bytes from `offset` on: directly what is
/// aligned and not in the pool, by way of the pool what is not. `reply` is called once, on any thread.
pub(super) fn fill(
    engine: &Arc<Engine>, handle: HandleId, offset: u64, lease: WriteLease, reply: FillReply,
) {
    let alignment = engine.device_geometry().alignment;
    let place = lease.address().addr() | offset as usize;
    let aligned = place.is_multiple_of(alignment);
    let direct = if aligned { lease.len() / alignment * alignment } else { 0 };
    let (front, back) = lease.split_front(direct);
    let parts = usize::from(!front.is_empty()) + usize::from(!back.is_empty());
    let gather = Gather { left: parts, pieces: Vec::new(), missed: None, reply: Some(reply) };
    let gather = Arc::new(Mutex::new(gather));
    let back_at = offset + direct as u64;
    if !back.is_empty() {
        bounce(engine, handle, back_at, back, &gather);
    }
    if front.is_empty() {
        return;
    }
    let (target, reader) = (gather, engine.clone());
    let taken = Box::new(move |pieces: Vec<crate::engine::Piece>| {
        // As one part they count once; one more for each that goes on.
        target.lock().left += pieces.len() - 1;
        for piece in pieces {
            match piece.outcome {
                Outcome::Done => Gather::put(&target, piece.offset, piece.lease, None),
                Outcome::Failed(errno) => {
                    let missed = Some((piece.offset, errno));
                    Gather::put(&target, piece.offset, piece.lease, missed);
                }
                Outcome::Resident => {
                    bounce(&reader, handle, piece.offset, piece.lease, &target);
                }
            }
        }
    });
    engine.read_direct(handle, offset, front, taken);
}

/// Copies bytes from the pool, block by block, each read in when it is not there. Counts as one part.
fn bounce(
    engine: &Arc<Engine>, handle: HandleId, offset: u64, lease: WriteLease,
    gather: &Arc<Mutex<Gather>>,
) {
    let block_size = engine.options.block_size;
    let (mut offset, mut lease) = (offset, lease);
    let end = offset + lease.len() as u64;
    let blocks = (end - 1) / block_size - offset / block_size;
    gather.lock().left += blocks as usize;
    while !lease.is_empty() {
        let length = ((offset / block_size + 1) * block_size - offset).min(end - offset);
        let (mut piece, rest) = lease.split_front(length as usize);
        let (at, target) = (offset, gather.clone());
        let copy = Box::new(move |outcome: crate::error::Result<&[&[u8]]>| {
            let missed = match outcome {
                Ok(runs) => {
                    let mut done = 0;
                    for run in runs {
                        piece[done..done + run.len()].copy_from_slice(run);
                        done += run.len();
                    }
                    (done < piece.len()).then_some((at + done as u64, Errno::ENODATA))
                }
                Err(errno) => Some((at, errno)),
            };
            Gather::put(&target, at, piece, missed);
        });
        engine.read(handle, offset, length, copy);
        lease = rest;
        offset += length;
    }
}

/// A caller's buffer that is short of what a partition needs, when it is.
pub(super) fn too_short(
    id: &PartitionId, buffer: &SwapInBuffer, aligned: u64, block_size: u64,
) -> Option<super::SwapError> {
    let found = buffer.len() as u64;
    let expected = match buffer {
        SwapInBuffer::Tensor(_) => aligned,
        SwapInBuffer::Buffers(buffers) => {
            let blocks = aligned.div_ceil(block_size);
            if buffers.len() as u64 == blocks && found == blocks * block_size {
                return None;
            }
            blocks * block_size
        }
    };
    let fits = matches!(buffer, SwapInBuffer::Tensor(_)) && found >= expected;
    (!fits).then(|| super::SwapError::BufferLength { id: id.clone(), found, expected })
}
