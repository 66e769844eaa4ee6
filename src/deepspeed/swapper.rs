//! DeepSpeed's `AsyncPartitionedParameterSwapper`, as a library over the engine that the daemon runs on.
//!
//! A [`Swapper`] keeps partitions of a model in files of a swap folder, under DeepSpeed's names, and in the
//! buffers of one pool while they are used. A partition is a number of elements under a
//! [`PartitionId`]; [`get_buffer`](Swapper::get_buffer) makes one, [`track`](Swapper::track) tells the size of
//! one that a file holds already.
//!
//! | status | meaning |
//! | --- | --- |
//! | `Available` | all its blocks are in the pool (or in a buffer of the caller's) and stay there; [`view`](Swapper::view) shows them |
//! | `Inflight` | a transfer has it; `synchronize_reads` and `synchronize_writes` end that |
//! | `NotAvailable` | it holds no buffer |
//!
//! ```text
//! get_buffer          NotAvailable -> Available          (zeros, to be filled)
//! swap_in             NotAvailable -> Inflight -> (synchronize_reads) Available
//! swap_out            Available -> Inflight -> Available
//! swap_out_and_release            Available -> Inflight -> NotAvailable
//! remove_partition_and_release_buffers     Available -> NotAvailable   (no write)
//! ```
//!
//! What DeepSpeed asserts, and ends the run with, is a typed [`SwapError`] here or simply works: a partition
//! may be larger than a buffer, and takes as many as it has blocks; a call that needs more buffers than are
//! free waits while asynchronous write-outs are about to release enough of them. What it ignores, the result of
//! every transfer, is looked at.
//!
//! Nothing promises durability: what was swapped out is in the swap folder, and reaches stable storage
//! when the system writes it there, or when the swapper and the last view of its partitions are dropped. All methods
//! may be called from several threads.

mod error;
mod given;
mod id;
mod incoming;
mod outgoing;
mod staging;
mod start;
mod table;
mod view;

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

pub use error::{Direction, Result, SwapError, TransferFailure};
pub use given::SwapInBuffer;
pub use id::{Dtype, PartitionId};
pub use start::{Start, SwapperOptions};
pub use view::{View, ViewMut};

use crate::engine::Access;
use crate::engine::Engine;
use crate::engine::PartitionStatus;
use crate::engine::assert_outside;
use crate::engine::{Shortage, Tokens};
use crate::error::Errno;
use crate::pool::{BufferPool, PoolBuffer};
use id::Layout;
use start::{Ending, open_file};
use table::{Batch, Entry, GIVEN, Held, Open, Place, Table, UNDER_WAY};
use view::{Sole, Source};

/// DeepSpeed's `MIN_AIO_BYTES`: smaller partitions are not worth swapping.
const SWAPPABLE_BYTES_MIN: u64 = 1 << 20;

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Swapper {
    inner: Arc<Inner>,
    /// Views have it too.
    ending: Arc<Ending>,
}

#[derive(Debug)]
struct Inner {
    engine: Arc<Engine>,
    layout: Layout,
    /// The engine is the swapper's own, and ends with it.
    owns_engine: bool,
    table: Mutex<Table>,
    reads: Batch,
    writes: Batch,
}

impl Swapper {
    /// A swapper with an engine of its own. Makes the folders; blocks while the pool's memory is
    /// cleared. DeepSpeed deletes the files of its folder here: see [`Start`].
    ///
    /// # Errors
    ///
    /// [`SwapError::Option`]; [`SwapError::FolderInUse`] when another swapper has the same folder, dtype and
    /// rank; [`SwapError::File`] for a folder that cannot be made or written to; [`SwapError::Start`].
    pub fn new(options: &SwapperOptions) -> Result<Self> {
        options.check()?;
        let layout = Self::layout(options);
        let folder = start::take_folder(&layout.params, options.start)?;
        let engine = start::start_engine(options, &folder)?;
        let ending = Ending::of_own(engine.clone(), folder, &layout);
        Ok(Self::assemble(layout, engine, ending, true))
    }

    /// A swapper over an engine that others use too, whose pool and aio settings are in force instead of
    /// those of `options`; `thread_count` still gives the files' alignment. The caller stops the
    /// engine, after the swapper: calls that need it fail with [`SwapError::Stopped`] then.
    ///
    /// # Errors
    ///
    /// As [`Swapper::new`]; [`SwapError::Stopped`].
    pub fn with_engine(options: &SwapperOptions, engine: Arc<Engine>) -> Result<Self> {
        options.check()?;
        if engine.stopped() {
            return Err(SwapError::Stopped);
        }
        let layout = Self::layout(options);
        let folder = start::take_folder(&layout.params, options.start)?;
        Ok(Self::assemble(layout, engine, Ending::of_others(folder), false))
    }

    fn layout(options: &SwapperOptions) -> Layout {
        Layout::new(&options.folder, options.dtype, options.rank, options.aligned_bytes())
    }

    fn assemble(layout: Layout, engine: Arc<Engine>, ending: Ending, owns_engine: bool) -> Self {
        let table = Mutex::new(Table::default());
        let (reads, writes) = (Batch::default(), Batch::default());
        let inner = Arc::new(Inner { engine, layout, owns_engine, table, reads, writes });
        Self { inner, ending: Arc::new(ending) }
    }

    /// The engine, for its counters ([`Engine::pool`], [`Engine::device_stats`]).
    #[must_use]
    pub fn engine(&self) -> &Arc<Engine> {
        &self.inner.engine
    }

    /// The pool that partitions are swapped in to, to allocate buffers from.
    #[must_use]
    pub fn buffer_pool(&self) -> BufferPool {
        self.inner.engine.buffer_pool()
    }

    /// Buffers that are free now: neither held by a partition nor reserved. A partition takes one for every
    /// block, where DeepSpeed's takes one whatever its size.
    #[must_use]
    pub fn available_swap_in_buffers(&self) -> usize {
        let engine = &self.inner.engine;
        engine.budget.free(engine.reserved_on_request())
    }

    /// Buffers that a partition of `numel` elements takes when it is swapped in; 0 for a number that no partition
    /// can have.
    #[must_use]
    pub fn buffers_for(&self, id: impl Into<PartitionId>, numel: u64) -> u64 {
        let bytes = self.inner.layout.bytes(&id.into(), numel);
        bytes.map_or(0, |(_, aligned)| aligned.div_ceil(self.inner.engine.shape.block_size))
    }

    /// Whether a parameter of `numel` elements is worth swapping: at least 1 MiB and a block. A smaller one can be
    /// swapped all the same. DeepSpeed takes a parameter or a number and asserts that it is one of the two.
    #[must_use]
    pub fn swappable_tensor(&self, numel: u64) -> bool {
        let bytes = numel.saturating_mul(self.inner.layout.dtype.size());
        bytes >= SWAPPABLE_BYTES_MIN.max(self.inner.engine.shape.block_size)
    }

    /// Elements of parameters, rounded up to the files' alignment of 1024 bytes for each aio thread. A number so
    /// large that this overflows stays as it is.
    #[must_use]
    pub fn io_aligned_numel(&self, numel: u64) -> u64 {
        let alignment = self.inner.layout.numel_alignment(self.inner.layout.dtype);
        numel.checked_next_multiple_of(alignment).unwrap_or(numel)
    }

    /// Whether that is no rounding.
    #[must_use]
    pub fn is_io_aligned(&self, numel: u64) -> bool {
        numel.is_multiple_of(self.inner.layout.numel_alignment(self.inner.layout.dtype))
    }

    /// Where a partition's file is, or will be.
    #[must_use]
    pub fn path(&self, id: impl Into<PartitionId>) -> PathBuf {
        self.inner.layout.path(&id.into())
    }

    /// [`Swapper::path`] of each.
    ///
    /// # Errors
    ///
    /// [`SwapError::Unknown`] with `must_exist`, for a partition that is not tracked; DeepSpeed asserts it.
    /// Neither looks for the files.
    pub fn swap_paths<I: Clone + Into<PartitionId>>(
        &self, ids: &[I], must_exist: bool,
    ) -> Result<Vec<PathBuf>> {
        let ids = named(ids);
        if must_exist {
            let mut table = self.inner.table.lock();
            ids.iter().try_for_each(|id| table.entry(id).map(drop))?;
        }
        Ok(ids.iter().map(|id| self.inner.layout.path(id)).collect())
    }

    /// Tells the number of elements of a partition that a file holds, so that it can be swapped in. Asks nothing
    /// of the file.
    ///
    /// # Errors
    ///
    /// [`SwapError::Numel`] when it is known with another one; [`SwapError::BadNumel`], [`SwapError::BadName`].
    pub fn track(&self, id: impl Into<PartitionId>, numel: u64) -> Result<()> {
        let id = id.into();
        self.inner.bytes(&id, numel)?;
        let mut table = self.inner.table.lock();
        let entry = table.entries.entry(id.clone());
        let known = entry.or_insert(Entry { numel, place: Place::Absent }).numel;
        if known == numel { Ok(()) } else { Err(SwapError::Numel { id, known, given: numel }) }
    }

    /// Forgets a partition that is not available; its file stays.
    ///
    /// # Errors
    ///
    /// [`SwapError::Unknown`], [`SwapError::Status`].
    pub fn forget(&self, id: impl Into<PartitionId>) -> Result<()> {
        let id = id.into();
        let mut table = self.inner.table.lock();
        table.take_absent("forget", std::slice::from_ref(&id))?;
        table.entries.remove(&id);
        Ok(())
    }

    /// Where a partition's bytes are. Never waits.
    ///
    /// # Errors
    ///
    /// [`SwapError::Unknown`].
    pub fn status(&self, id: impl Into<PartitionId>) -> Result<PartitionStatus> {
        self.inner.table.lock().entry(&id.into()).map(|entry| entry.place.status())
    }

    /// The bytes of an available partition, without a copy. Any number of these may exist at once. Waits only
    /// for others who use the engine itself.
    ///
    /// # Errors
    ///
    /// [`SwapError::Unknown`]; [`SwapError::Status`] when it is not available; [`SwapError::InUse`] while a
    /// [`ViewMut`] of it exists.
    pub fn view(&self, id: impl Into<PartitionId>) -> Result<View> {
        self.view_for("view", id.into())
    }

    fn view_for(&self, operation: &'static str, id: PartitionId) -> Result<View> {
        let inner = &self.inner;
        let used = SwapError::InUse { operation, id: id.clone() };
        let (bytes, shown) = inner.available(operation, &id, |place| match place {
            Place::Held(held) if held.is_viewed() => Some(Err(used)),
            Place::Held(held) => Some(Ok(Shown::Held(held.clone()))),
            Place::Given(buffer) => Some(Ok(Shown::Given(buffer.clone()))),
            _ => None,
        })?;
        let source = match shown {
            Shown::Held(held) => Source::Pool(inner.claim(&id, &held, Access::Read)?, held),
            Shown::Given(buffer) => Source::Given(buffer),
        };
        Ok(View { id, bytes, source, _ending: self.ending.clone() })
    }

    /// The bytes of an available partition, to change them in place; they are to be swapped out then.
    /// Waits only for others who use the engine itself.
    ///
    /// # Errors
    ///
    /// [`SwapError::Unknown`]; [`SwapError::Status`] when it is not available, or in a buffer of the
    /// caller's; [`SwapError::InUse`] while another view of it exists.
    pub fn view_mut(&self, id: impl Into<PartitionId>) -> Result<ViewMut> {
        let (id, inner) = (id.into(), &self.inner);
        let used = SwapError::InUse { operation: "view_mut", id: id.clone() };
        let (bytes, sole) = inner.available("view_mut", &id, |place| match place {
            Place::Held(held) if Arc::strong_count(held) > 1 => Some(Err(used)),
            Place::Held(held) => Some(Ok(Sole::new(held.clone()))),
            _ => None,
        })?;
        let hold = inner.claim(&id, sole.held(), Access::Update)?;
        sole.held().set_changed(true);
        Ok(ViewMut::new(id, bytes, hold, sole, false, self.ending.clone()))
    }

    /// All free buffers, as plain, zeroed memory of a block each: DeepSpeed's `fast_init` swaps in to
    /// them. They count as reserved until they are dropped or given to
    /// [`Swapper::release_reserved_buffers`]. Waits for buffers that a transfer is about to leave.
    #[must_use]
    pub fn reserve_available_buffers(&self) -> Vec<PoolBuffer> {
        self.inner.engine.buffer_pool().allocate_all()
    }

    /// Puts reserved buffers back into circulation.
    ///
    /// # Errors
    ///
    /// [`SwapError::ReservedOut`] when others are still out, wherever; those given are back then all the
    /// same. DeepSpeed takes all back and lets views of them dangle.
    pub fn release_reserved_buffers(&self, buffers: Vec<PoolBuffer>) -> Result<()> {
        drop(buffers);
        match self.inner.engine.lent() {
            0 => Ok(()),
            count => Err(SwapError::ReservedOut { count }),
        }
    }
}

impl Drop for Swapper {
    /// Waits for what is under way. With an engine of its own, then writes out what is dirty, with an error in the log
    /// where that fails, and waits until everything, names included, is on stable storage; while views exist, the
    /// last of them does that when it is dropped. An engine of others writes what is dirty when it likes.
    fn drop(&mut self) {
        for outcome in [self.inner.reads.wait(), self.inner.writes.wait()] {
            if let Err(error) = outcome {
                log::error!("a swapper was dropped with failures nobody asked for: {error}");
            }
        }
        let entries = std::mem::take(&mut *self.inner.table.lock());
        drop(entries);
    }
}

/// Whose bytes a view is to show.
enum Shown {
    Held(Arc<Held>),
    Given(Arc<SwapInBuffer>),
}

impl Inner {
    /// Bytes of a partition and of its file.
    fn bytes(&self, id: &PartitionId, numel: u64) -> Result<(u64, u64)> {
        if !id.is_nameable() {
            return Err(SwapError::BadName { id: id.clone() });
        }
        let bytes = self.layout.bytes(id, numel);
        bytes.ok_or_else(|| SwapError::BadNumel { id: id.clone(), numel })
    }

    /// Bytes of a tracked partition and of its file.
    fn tracked(&self, id: &PartitionId) -> Result<(u64, u64)> {
        let numel = self.table.lock().entry(id)?.numel;
        self.bytes(id, numel)
    }

    /// What `pick` makes of an available partition's place, and the partition's bytes.
    fn available<T>(
        &self, operation: &'static str, id: &PartitionId,
        pick: impl FnOnce(&Place) -> Option<Result<T>>,
    ) -> Result<(u64, T)> {
        let mut table = self.table.lock();
        let entry = table.entry(id)?;
        let (bytes, _) = self.bytes(id, entry.numel)?;
        let hint = match (pick(&entry.place), &entry.place) {
            (Some(picked), _) => return picked.map(|picked| (bytes, picked)),
            (None, Place::Absent) => "call swap_in first",
            (None, Place::Busy | Place::Arrived(_)) => UNDER_WAY,
            (None, Place::Held(_) | Place::Given(_)) => GIVEN,
        };
        let status = entry.place.status();
        Err(SwapError::Status { operation, id: id.clone(), status, hint })
    }

    /// Claims the bytes of a held partition.
    fn claim(&self, id: &PartitionId, held: &Held, access: Access) -> Result<crate::engine::Hold> {
        let claimed = self.engine.hold_now(held.open.handle, held.hold.range(), access);
        claimed.map_err(|errno| {
            SwapError::Transfers(vec![self.failure(id, &held.open, Direction::SwapIn, errno)])
        })
    }

    fn failure(
        &self, id: &PartitionId, open: &Open, direction: Direction, errno: Errno,
    ) -> TransferFailure {
        let write = direction == Direction::SwapOut;
        let offset = self.engine.first_failure(open.handle, write).unwrap_or(0);
        TransferFailure { id: id.clone(), path: open.path.clone(), direction, offset, errno }
    }

    /// Refuses what an engine that was stopped cannot do.
    fn running(&self) -> Result<()> {
        if self.engine.stopped() { Err(SwapError::Stopped) } else { Ok(()) }
    }

    /// Takes buffers for `bytes` of files, each of whole blocks, all or none.
    fn take_buffers(&self, bytes: impl Iterator<Item = u64>) -> Result<Tokens> {
        let block_size = self.engine.shape.block_size;
        let needed = bytes.map(|bytes| bytes.div_ceil(block_size)).sum::<u64>();
        let needed = usize::try_from(needed).unwrap_or(usize::MAX);
        self.running()?;
        let reserved = self.engine.reserved_on_request();
        self.engine.budget.take(needed, reserved).map_err(|shortage| {
            let Shortage { needed, free, total } = shortage;
            if needed > total {
                SwapError::LargerThanPool { needed, total }
            } else {
                SwapError::NoBuffers { needed, available: free, held: total - free }
            }
        })
    }

    /// Opens the file of a partition that is to be read; it must have the partition's size.
    fn open_whole(&self, id: &PartitionId, aligned: u64) -> Result<Open> {
        let path = self.layout.path(id);
        let (open, found) = open_file(&self.engine, &path, false)?;
        match found == aligned {
            true => Ok(open),
            false => Err(SwapError::FileSize { path, found, expected: aligned }),
        }
    }

    /// Opens, and makes when there is none, the file of a partition whose bytes are all to be replaced.
    fn open_new(&self, id: &PartitionId, aligned: u64) -> Result<Open> {
        let path = self.layout.path(id);
        let (open, found) = open_file(&self.engine, &path, true)?;
        if found > aligned {
            self.ask(|reply| self.engine.truncate(open.handle, aligned, reply))
                .map_err(|errno| SwapError::File { operation: "truncate", path, errno })?;
        } else if found < aligned {
            self.ask(|reply| self.engine.reserve_space(open.handle, aligned, reply))
                .map_err(|errno| SwapError::File { operation: "reserve space for", path, errno })?;
        }
        Ok(open)
    }

    /// Asks the engine for something and waits for the answer.
    fn ask(&self, question: impl FnOnce(crate::engine::Reply)) -> crate::error::Result<()> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        question(Box::new(move |outcome| {
            // The receiver waits below.
            let _ = sender.send(outcome);
        }));
        assert_outside("waiting for the engine's answer");
        receiver.recv().unwrap_or(Err(Errno::ENODEV))
    }

    /// Puts a partition somewhere, and drops what was there before without the table's lock.
    fn place(&self, id: &PartitionId, place: Place) {
        let before = self.table.lock().place(id, place);
        drop(before);
    }
}

/// The ids of a call.
fn named<I: Clone + Into<PartitionId>>(ids: &[I]) -> Vec<PartitionId> {
    ids.iter().cloned().map(Into::into).collect()
}
