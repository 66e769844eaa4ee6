//! A partition's bytes where they lie.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytemuck::{AnyBitPattern, NoUninit};

use super::error::{Result, SwapError};
use super::given::SwapInBuffer;
use super::id::PartitionId;
use super::start::Ending;
use super::table::Held;
use crate::engine::Hold;

/// The bytes of an available partition, to read: `numel` elements, without padding, in chunks that end where
/// a block does. Nobody changes them while it exists; whoever wants to waits for its end. It may outlive its
/// swapper, whose folder stays taken until then; dropped last, it waits as the swapper's own drop does.
#[derive(Debug)]
pub struct View {
    pub(super) id: PartitionId,
    pub(super) bytes: u64,
    pub(super) source: Source,
    pub(super) _ending: Arc<Ending>,
}

/// Whose memory a view shows. Claims end before the buffers they are on are given back.
#[derive(Debug)]
pub(super) enum Source {
    Pool(Hold, #[expect(dead_code, reason = "keeps the buffers")] Arc<Held>),
    Given(Arc<SwapInBuffer>),
}

impl View {
    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no partition is empty")]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// The bytes, in order.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let (mut pool, mut given) = (None, None);
        match &self.source {
            Source::Pool(hold, _) => pool = Some(hold.chunks()),
            Source::Given(buffer) => given = Some(buffer.chunks()),
        }
        cut(self.bytes, pool.into_iter().flatten().chain(given.into_iter().flatten()))
    }

    /// The elements, in chunks, without a copy.
    ///
    /// # Errors
    ///
    /// [`SwapError::Elements`] when a chunk is no whole number of such elements or not aligned to them. The
    /// pool's memory is aligned to 4096 bytes and its blocks to 64 KiB.
    pub fn elements<T: AnyBitPattern>(&self) -> Result<Vec<&[T]>> {
        self.chunks()
            .map(|chunk| bytemuck::try_cast_slice(chunk))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| SwapError::Elements { size: size_of::<T>() })
    }

    /// Copies all bytes.
    ///
    /// # Errors
    ///
    /// [`SwapError::BufferLength`] unless the destination has [`View::len`] bytes.
    pub fn copy_to(&self, destination: &mut [u8]) -> Result<()> {
        check_length(&self.id, destination.len(), self.bytes)?;
        let mut rest = destination;
        for chunk in self.chunks() {
            let (front, back) = rest.split_at_mut(chunk.len());
            front.copy_from_slice(chunk);
            rest = back;
        }
        Ok(())
    }

    /// A copy of all bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.bytes as usize);
        self.chunks().for_each(|chunk| bytes.extend_from_slice(chunk));
        bytes
    }
}

/// The bytes of an available partition, to change: as [`View`], and this view's alone. The partition counts
/// as changed, to be swapped out, from its making on. What it changes after its swapper was dropped is written too.
#[derive(Debug)]
pub struct ViewMut {
    id: PartitionId,
    bytes: u64,
    hold: Hold,
    _held: Sole,
    _ending: Arc<Ending>,
}

impl ViewMut {
    /// Zeroes what is behind the last element, and everything before it with `blank`.
    pub(super) fn new(
        id: PartitionId, bytes: u64, mut hold: Hold, held: Sole, blank: bool, ending: Arc<Ending>,
    ) -> Self {
        let mut start = 0;
        for chunk in hold.chunks_mut() {
            let end = start + chunk.len() as u64;
            let zeroed = if blank { start } else { bytes.clamp(start, end) };
            chunk[(zeroed - start) as usize..].fill(0);
            start = end;
        }
        ViewMut { id, bytes, hold, _held: held, _ending: ending }
    }

    /// Bytes.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "no partition is empty")]
    pub fn len(&self) -> u64 {
        self.bytes
    }

    /// The bytes, in order.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        cut(self.bytes, self.hold.chunks())
    }

    /// The bytes, in order, to be written to.
    pub fn chunks_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        cut_mut(self.bytes, self.hold.chunks_mut())
    }

    /// The elements, in chunks, to be written to, without a copy.
    ///
    /// # Errors
    ///
    /// As [`View::elements`].
    pub fn elements_mut<T: AnyBitPattern + NoUninit>(&mut self) -> Result<Vec<&mut [T]>> {
        self.chunks_mut()
            .map(|chunk| bytemuck::try_cast_slice_mut(chunk))
            .collect::<std::result::Result<_, _>>()
            .map_err(|_| SwapError::Elements { size: size_of::<T>() })
    }

    /// Overwrites all bytes.
    ///
    /// # Errors
    ///
    /// [`SwapError::BufferLength`] unless the source has [`ViewMut::len`] bytes.
    pub fn copy_from(&mut self, source: &[u8]) -> Result<()> {
        check_length(&self.id, source.len(), self.bytes)?;
        let mut rest = source;
        for chunk in self.chunks_mut() {
            let (front, back) = rest.split_at(chunk.len());
            chunk.copy_from_slice(front);
            rest = back;
        }
        Ok(())
    }
}

/// The right to the only view of a partition.
#[derive(Debug)]
pub(super) struct Sole(Arc<Held>);

impl Sole {
    /// Takes it; under the table's lock, where it was seen that there is no other view.
    pub(super) fn new(held: Arc<Held>) -> Sole {
        held.viewed.store(true, Ordering::Release);
        Sole(held)
    }

    pub(super) fn held(&self) -> &Arc<Held> {
        &self.0
    }
}

impl Drop for Sole {
    fn drop(&mut self) {
        self.0.viewed.store(false, Ordering::Release);
    }
}

fn check_length(id: &PartitionId, found: usize, expected: u64) -> Result<()> {
    let found = found as u64;
    match found == expected {
        true => Ok(()),
        false => Err(SwapError::BufferLength { id: id.clone(), found, expected }),
    }
}

/// The first `bytes` of consecutive chunks.
fn cut<'a>(bytes: u64, chunks: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = &'a [u8]> {
    let mut left = bytes;
    chunks.map_while(move |chunk| {
        let length = left.min(chunk.len() as u64);
        left -= length;
        (length > 0).then(|| &chunk[..length as usize])
    })
}

/// As [`cut`].
fn cut_mut<'a>(
    bytes: u64, chunks: impl Iterator<Item = &'a mut [u8]>,
) -> impl Iterator<Item = &'a mut [u8]> {
    let mut left = bytes;
    chunks.map_while(move |chunk| {
        let length = left.min(chunk.len() as u64);
        left -= length;
        (length > 0).then(|| &mut chunk[..length as usize])
    })
}
