//! The bounce buffers: a fixed number, waited for in turn.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::operation::Op;
use super::plan::Piece;
use super::router::Router;
use crate::pool::{Arena, ArenaOptions, ReadLease, SoleArena, WriteLease};

/// Bytes of one buffer at most; longer pieces are cut.
const CHUNK_BYTES_MAX: usize = 8 << 20;

/// Bytes of all together, unless two are more.
const TOTAL_BYTES: usize = 32 << 20;

const PAGE_BYTES: usize = 4096;

/// The bounce buffers of a handle.
#[derive(Debug)]
pub(super) struct Bounce {
    sole: SoleArena,
    chunk_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    free: Vec<WriteLease>,
    waiting: VecDeque<Request>,
    /// A thread hands buffers out; others leave theirs to it.
    granting: bool,
}

/// A piece that waits for a buffer, with its part of the tensor if that is its memory.
pub(super) struct Request {
    pub(super) op: Arc<Op>,
    pub(super) piece: Piece,
    pub(super) part: Option<WriteLease>,
}

impl fmt::Debug for Request {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.piece.fmt(formatter)
    }
}

impl Bounce {
    /// Buffers for blocks of `block` bytes, one for each of `transfers` as far as memory allows.
    pub(super) fn new(block: usize, transfers: usize) -> io::Result<Self> {
        let chunk_bytes = block.next_multiple_of(PAGE_BYTES).min(CHUNK_BYTES_MAX);
        let count = transfers.min(TOTAL_BYTES / chunk_bytes).max(2);
        let options =
            ArenaOptions { size: chunk_bytes * count, pin_memory: true, huge_pages: false };
        let (sole, mut rest) = SoleArena::new(options)?;
        let mut free = Vec::with_capacity(count);
        while !rest.is_empty() {
            let (chunk, back) = rest.split_front(chunk_bytes);
            free.push(chunk);
            rest = back;
        }
        let state = State { free, waiting: VecDeque::new(), granting: false };
        Ok(Self { sole, chunk_bytes, state: Mutex::new(state) })
    }

    pub(super) fn arena(&self) -> &Arc<Arena> {
        self.sole.arena()
    }

    pub(super) fn chunk_bytes(&self) -> usize {
        self.chunk_bytes
    }

    pub(super) fn reclaim(&self, lease: ReadLease) -> WriteLease {
        self.sole.reclaim(lease)
    }

    /// Queues pieces for buffers, first come first served, and hands out what is free.
    pub(super) fn request(router: &Arc<Router>, requests: Vec<Request>) {
        if requests.is_empty() {
            return;
        }
        router.bounce.state.lock().waiting.extend(requests);
        Self::grant(router);
    }

    /// Takes a buffer back.
    fn release(router: &Arc<Router>, lease: WriteLease) {
        router.bounce.state.lock().free.push(lease);
        Self::grant(router);
    }

    /// One thread at a time, and not within itself: handing out may give back.
    fn grant(router: &Arc<Router>) {
        let mut state = router.bounce.state.lock();
        if std::mem::replace(&mut state.granting, true) {
            return;
        }
        while !state.free.is_empty()
            && let Some(request) = state.waiting.pop_front()
        {
            let lease = state.free.pop();
            drop(state);
            let chunk = Chunk { lease, router: Arc::clone(router) };
            router.granted(request, chunk);
            state = router.bounce.state.lock();
        }
        state.granting = false;
    }
}

/// One bounce buffer in use. Goes back to the others when dropped.
pub(super) struct Chunk {
    /// All of it, or what a transfer under way left.
    lease: Option<WriteLease>,
    router: Arc<Router>,
}

impl fmt::Debug for Chunk {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.lease.fmt(formatter)
    }
}

impl Chunk {
    /// Its bytes, while no transfer has some.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        self.lease.as_deref_mut().expect("a chunk has its lease")
    }

    /// The first `length` bytes, for a transfer.
    pub(super) fn lend(&mut self, length: usize) -> WriteLease {
        let lease = self.lease.take().expect("a chunk has its lease");
        let (front, rest) = lease.split_front(length);
        self.lease = Some(rest);
        front
    }

    /// Undoes `lend`.
    pub(super) fn mend(&mut self, front: WriteLease) {
        let rest = self.lease.take().expect("a chunk has its lease");
        self.lease = Some(front.join(rest));
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take() {
            if lease.len() == self.router.bounce.chunk_bytes {
                Bounce::release(&self.router, lease);
            } else {
                log::error!("a bounce buffer is lost with a transfer that never completed");
            }
        }
    }
}
