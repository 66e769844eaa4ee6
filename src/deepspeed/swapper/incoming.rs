//! Swap folder to memory.

use std::sync::Arc;

use parking_lot::Mutex;

use super::error::{Direction, Result, SwapError, TransferFailure};
use super::given::{Missed, Shell, SwapInBuffer, fill, too_short};
use super::id::PartitionId;
use super::table::{Batch, Held, Open, Place};
use super::{Inner, Swapper, named};
use crate::engine::Access;
use crate::engine::HandleId;
use crate::engine::Request;
use crate::engine::Tokens;
use crate::error::Errno;
use crate::pool::{WriteLease, with_lease};

/// A partition of a swap-in, ready to go.
struct Ready {
    id: PartitionId,
    open: Open,
    aligned: u64,
    into: Goal,
}

/// Where its bytes go.
enum Goal {
    Pool(Tokens),
    Buffer(SwapInBuffer),
}

impl Swapper {
    /// Reads partitions that are not available: into the pool, a buffer for each block, or into
    /// `swap_in_buffers`, one for each partition, to which the device transfers directly. With `async_op` returns
    /// when the transfers are queued, and the partitions are in flight until
    /// [`Swapper::synchronize_reads`]; else when they have ended. The number of partitions done, 0 with `async_op`.
    ///
    /// Buffers are taken for all partitions at once or for none; the call waits while write-outs that release
    /// enough of them are in flight. DeepSpeed asserts that enough are free.
    ///
    /// # Errors
    ///
    /// [`SwapError::Transfers`]: those partitions are not available, the others of the call are. Before
    /// anything was read: [`SwapError::NoBuffers`], [`SwapError::LargerThanPool`], [`SwapError::Status`],
    /// [`SwapError::Unknown`], [`SwapError::Twice`], [`SwapError::Count`], [`SwapError::BufferLength`],
    /// [`SwapError::FileSize`], [`SwapError::File`]. Callers' buffers of failed partitions are to be had from
    /// [`Swapper::take_buffer`]; with [`SwapError::Count`] they are dropped.
    pub fn swap_in<I: Clone + Into<PartitionId>>(
        &self, ids: &[I], async_op: bool, swap_in_buffers: Option<Vec<SwapInBuffer>>,
    ) -> Result<usize> {
        let (ids, inner) = (named(ids), &self.inner);
        let mut buffers = Vec::new();
        if let Some(given) = swap_in_buffers {
            if given.len() != ids.len() {
                let (partitions, buffers) = (ids.len(), given.len());
                return Err(SwapError::Count { operation: "swap_in", partitions, buffers });
            }
            buffers = given;
        }
        let ready = match inner.prepare(&ids, &mut buffers) {
            Ok(ready) => ready,
            Err(error) => {
                inner.table.lock().returned.extend(ids.into_iter().zip(buffers));
                return Err(error);
            }
        };
        let own = Arc::new(Batch::default());
        for one in ready {
            inner.begin_read(one, (!async_op).then(|| own.clone()));
        }
        if async_op { Ok(0) } else { own.wait() }
    }

    /// Waits for every asynchronous swap-in that has begun; what was read is available then. The number of
    /// partitions done since the last report, 0 when there was nothing.
    ///
    /// # Errors
    ///
    /// [`SwapError::Transfers`] for those that failed, once; they are not available. DeepSpeed asserts the
    /// count of completions and ignores what they say.
    pub fn synchronize_reads(&self) -> Result<usize> {
        let outcome = self.inner.reads.wait();
        let mut table = self.inner.table.lock();
        for id in std::mem::take(&mut table.arrived) {
            if let Some(entry) = table.entries.get_mut(&id)
                && let Place::Arrived(place) = std::mem::replace(&mut entry.place, Place::Absent)
            {
                entry.place = *place;
            }
        }
        outcome
    }

    /// Takes a buffer back that was given to [`Swapper::swap_in`]: the one with the partition's bytes in it, which
    /// is not available then; or, while there is none, one whose swap-in failed, with anything in it, the oldest
    /// first. Never waits.
    ///
    /// # Errors
    ///
    /// [`SwapError::Unknown`]; [`SwapError::Status`] when it is not in a caller's buffer;
    /// [`SwapError::InUse`] while a view of it exists.
    pub fn take_buffer(&self, id: impl Into<PartitionId>) -> Result<SwapInBuffer> {
        let id = id.into();
        let mut table = self.inner.table.lock();
        let given =
            table.entries.get(&id).is_some_and(|entry| matches!(entry.place, Place::Given(_)));
        let returned = table.returned.iter().position(|(of, _)| *of == id);
        if let Some(at) = returned.filter(|_| !given) {
            return Ok(table.returned.remove(at).1);
        }
        let entry = table.entry(&id)?;
        match std::mem::replace(&mut entry.place, Place::Absent) {
            Place::Given(buffer) => Arc::try_unwrap(buffer).map_err(|buffer| {
                entry.place = Place::Given(buffer);
                SwapError::InUse { operation: "take_buffer", id }
            }),
            place => {
                let status = place.status();
                entry.place = place;
                let hint = "only what was swapped in to a caller's buffer can be taken";
                Err(SwapError::Status { operation: "take_buffer", id, status, hint })
            }
        }
    }

    /// Reads a partition into memory of the caller's and returns when it is there: `destination` has its
    /// bytes, or its aligned size. Any size, also beyond the pool's; needs no free buffer. What of
    /// the destination is aligned to the device (address and length) is transferred directly, the rest by way
    /// of the pool; what the pool has is copied from there. The partition's status stays as it is.
    ///
    /// DeepSpeed transfers directly to pinned and aligned memory only, and asserts a free buffer otherwise.
    ///
    /// # Errors
    ///
    /// [`SwapError::Unknown`], [`SwapError::BufferLength`], [`SwapError::Status`] when it is in flight,
    /// [`SwapError::InUse`] while a [`ViewMut`](super::ViewMut) of it exists, [`SwapError::FileSize`],
    /// [`SwapError::File`], [`SwapError::Transfers`]. The destination holds anything then.
    pub fn swap_into_buffer(
        &self, id: impl Into<PartitionId>, destination: &mut [u8],
    ) -> Result<()> {
        let (id, inner) = (id.into(), &self.inner);
        let (bytes, aligned) = inner.tracked(&id)?;
        let found = destination.len() as u64;
        if found != bytes && found != aligned {
            return Err(SwapError::BufferLength { id, found, expected: bytes });
        }
        let absent = matches!(inner.table.lock().entry(&id)?.place, Place::Absent);
        if !absent {
            let view = self.view_for("swap_into_buffer", id)?;
            let (front, padding) = destination.split_at_mut(bytes as usize);
            padding.fill(0);
            return view.copy_to(front);
        }
        inner.running()?;
        let open = inner.open_whole(&id, aligned)?;
        let missed = with_lease(destination, |lease| {
            let (sender, receiver) = crossbeam_channel::bounded(1);
            let filled = Box::new(move |lease: WriteLease, missed: Missed| {
                drop(lease);
                // The receiver waits below.
                let _ = sender.send(missed);
            });
            fill(&inner.engine, open.handle, 0, lease, filled);
            receiver.recv().unwrap_or(Some((0, Errno::ENODEV)))
        });
        inner.leave_nothing(&open);
        match missed {
            None => Ok(()),
            Some(missed) => Err(SwapError::Transfers(vec![inner.missed(&id, &open, missed)])),
        }
    }
}

impl Inner {
    /// Everything of a swap-in that can be refused.
    fn prepare(&self, ids: &[PartitionId], buffers: &mut Vec<SwapInBuffer>) -> Result<Vec<Ready>> {
        self.running()?;
        self.table.lock().take_absent("swap_in", ids)?;
        let ready = self.open_all(ids, buffers);
        if ready.is_err() {
            ids.iter().for_each(|id| self.place(id, Place::Absent));
        }
        ready
    }

    fn open_all(&self, ids: &[PartitionId], buffers: &mut Vec<SwapInBuffer>) -> Result<Vec<Ready>> {
        let block_size = self.engine.shape.block_size;
        let mut opened = Vec::with_capacity(ids.len());
        for (at, id) in ids.iter().enumerate() {
            let (_, aligned) = self.tracked(id)?;
            let short = buffers.get(at).and_then(|b| too_short(id, b, aligned, block_size));
            if let Some(error) = short {
                return Err(error);
            }
            opened.push((id, self.open_whole(id, aligned)?, aligned));
        }
        let pooled = if buffers.is_empty() { &opened[..] } else { &[] };
        let mut tokens = self.take_buffers(pooled.iter().map(|(_, _, aligned)| *aligned))?;
        let mut given = std::mem::take(buffers).into_iter();
        let ready = opened.into_iter().map(|(id, open, aligned)| {
            let into = match given.next() {
                Some(buffer) => Goal::Buffer(buffer),
                None => Goal::Pool(tokens.split(aligned.div_ceil(block_size) as usize)),
            };
            Ready { id: id.clone(), open, aligned, into }
        });
        Ok(ready.collect())
    }

    /// Starts one partition's swap-in; `own` is told of its end, or the asynchronous ones' batch.
    fn begin_read(self: &Arc<Self>, ready: Ready, own: Option<Arc<Batch>>) {
        let Ready { id, open, aligned, into } = ready;
        let number = own.as_deref().unwrap_or(&self.reads).begin();
        let (inner, engine, handle) = (self.clone(), self.engine.clone(), open.handle);
        match into {
            Goal::Pool(tokens) => {
                let arrived = Box::new(move |hold| {
                    let outcome = match hold {
                        Ok(hold) => {
                            let held = Held::new(hold, Arc::new(open), tokens, false);
                            Ok(Place::Held(Arc::new(held)))
                        }
                        Err(errno) => {
                            let failure = inner.failure(&id, &open, Direction::SwapIn, errno);
                            // The buffers are free before anybody hears of it.
                            drop((open, tokens));
                            Err(failure)
                        }
                    };
                    inner.arrived(&id, outcome, own.as_deref(), number);
                });
                engine.hold(handle, 0..aligned, Access::Keep, arrived);
            }
            Goal::Buffer(buffer) => {
                let (shell, runs) = buffer.take(aligned);
                let arrived = move |buffer: SwapInBuffer, missed: Missed| {
                    inner.leave_nothing(&open);
                    let outcome = match missed {
                        None => Ok(Place::Given(Arc::new(buffer))),
                        Some(missed) => {
                            inner.table.lock().returned.push((id.clone(), buffer));
                            Err(inner.missed(&id, &open, missed))
                        }
                    };
                    drop(open);
                    inner.arrived(&id, outcome, own.as_deref(), number);
                };
                read_runs(&engine, handle, shell, runs, Box::new(arrived));
            }
        }
    }

    /// A swap-in has ended.
    fn arrived(
        &self, id: &PartitionId, outcome: std::result::Result<Place, TransferFailure>,
        own: Option<&Batch>, number: u64,
    ) {
        let (place, failure) = match outcome {
            Ok(place) => (place, None),
            Err(failure) => (Place::Absent, Some(failure)),
        };
        let before = {
            let mut table = self.table.lock();
            match own {
                Some(_) => table.place(id, place),
                None => {
                    table.arrived.push(id.clone());
                    table.place(id, Place::Arrived(Box::new(place)))
                }
            }
        };
        drop(before);
        own.unwrap_or(&self.reads).end(number, failure);
    }

    /// Drops what a read past the pool has left in it. Others' engines keep it for others.
    fn leave_nothing(&self, open: &Open) {
        if self.owns_engine {
            self.engine.request(open.key, Request::Release);
        }
    }

    fn missed(&self, id: &PartitionId, open: &Open, missed: (u64, Errno)) -> TransferFailure {
        let (offset, errno) = missed;
        let (path, direction) = (open.path.clone(), Direction::SwapIn);
        TransferFailure { id: id.clone(), path, direction, offset, errno }
    }
}

type RunsReply = Box<dyn FnOnce(SwapInBuffer, Missed) + Send>;

/// The runs of a caller's buffer, coming back one by one.
struct Runs {
    shell: Option<Shell>,
    back: Vec<(usize, WriteLease)>,
    left: usize,
    missed: Missed,
    reply: Option<RunsReply>,
}

/// Fills all runs of a caller's buffer.
fn read_runs(
    engine: &Arc<crate::engine::Engine>, handle: HandleId, shell: Shell,
    runs: Vec<(u64, WriteLease)>, reply: RunsReply,
) {
    let (left, back) = (runs.len(), Vec::with_capacity(runs.len()));
    let state = Runs { shell: Some(shell), back, left, missed: None, reply: Some(reply) };
    let state = Arc::new(Mutex::new(state));
    for (at, (offset, run)) in runs.into_iter().enumerate() {
        let state = state.clone();
        let filled = Box::new(move |lease: WriteLease, missed: Missed| {
            let (shell, mut back, missed, reply) = {
                let mut runs = state.lock();
                runs.back.push((at, lease));
                runs.missed = [runs.missed, missed].into_iter().flatten().min_by_key(|m| m.0);
                runs.left -= 1;
                if runs.left > 0 {
                    return;
                }
                let back = std::mem::take(&mut runs.back);
                (runs.shell.take(), back, runs.missed, runs.reply.take())
            };
            back.sort_by_key(|(at, _)| *at);
            if let (Some(shell), Some(reply)) = (shell, reply) {
                reply(shell.restore(back.into_iter().map(|(_, run)| run).collect()), missed);
            }
        });
        fill(engine, handle, offset, run, filled);
    }
}
