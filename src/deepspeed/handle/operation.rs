//! One read or write, from the call to its last transfer.

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;
use std::sync::Arc;

use crossbeam_channel::Sender;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::bounce::Chunk;
use super::buffer::{Buffer, Memory, Owned};
use super::error::{Direction, Error, ErrorKind, FileName};
use super::files::{self, Opened, PageUser};
use super::plan::{Piece, Plan};
use super::router::Event;
use super::tensor::Region;
use crate::aio::device::BackingFile;
use crate::aio::file::DiskFile;
use crate::error::Result as ErrnoResult;
use crate::pool::WriteLease;

/// What an operation is, for its error.
#[derive(Debug, Clone)]
pub(super) struct About {
    pub(super) direction: Direction,
    pub(super) name: FileName,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl About {
    pub(super) fn error(&self, moved: u64, kind: ErrorKind) -> Error {
        Error {
            direction: self.direction,
            file: self.name.clone(),
            offset: self.offset,
            length: self.length,
            moved,
            kind,
        }
    }
}

/// An operation as the router sees it.
#[derive(Debug)]
pub(super) struct Op {
    about: About,
    alignment: usize,
    state: Mutex<State>,
    done: Condvar,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    /// Pieces begun and not done.
    inflight: usize,
    memory: Memory,
    moved: u64,
    failure: Option<ErrorKind>,
    /// Everything below is let go of when the operation is done.
    file: Option<Opened>,
    buffered: Option<Arc<dyn BackingFile>>,
    pages: Option<PageUser>,
    finished: bool,
    /// The path to compare with the memory, once.
    validate: Option<PathBuf>,
}

/// What an operation starts with.
#[derive(Debug)]
pub(super) struct Start {
    pub(super) about: About,
    pub(super) file: Opened,
    pub(super) pages: Option<PageUser>,
    pub(super) plan: Plan,
    pub(super) memory: Memory,
    /// Bytes moved before, by the edges.
    pub(super) moved: u64,
    pub(super) validate: Option<PathBuf>,
}

impl Op {
    pub(super) fn new(start: Start) -> Arc<Self> {
        let alignment = start.file.alignment;
        let state = State {
            plan: start.plan,
            inflight: 0,
            memory: start.memory,
            moved: start.moved,
            failure: None,
            file: Some(start.file),
            buffered: None,
            pages: start.pages,
            finished: false,
            validate: start.validate,
        };
        Arc::new(Self {
            about: start.about,
            alignment,
            state: Mutex::new(state),
            done: Condvar::new(),
        })
    }

    pub(super) fn direction(&self) -> Direction {
        self.about.direction
    }

    /// Bytes; 1 for a buffered file.
    pub(super) fn alignment(&self) -> usize {
        self.alignment
    }

    /// The file, while a piece is under way.
    pub(super) fn file(&self) -> Arc<dyn BackingFile> {
        self.state.lock().backing()
    }

    /// The file through the page cache, while a piece is under way.
    pub(super) fn buffered(&self) -> ErrnoResult<Arc<dyn BackingFile>> {
        let mut state = self.state.lock();
        if let Some(file) = &state.buffered {
            return Ok(Arc::clone(file));
        }
        let opened = state.file.as_ref().expect("a piece is under way");
        let file: Arc<dyn BackingFile> = Arc::new(DiskFile::new(opened.buffered()?)?);
        state.buffered = Some(Arc::clone(&file));
        Ok(file)
    }

    /// Whether a piece failed; then no more are begun.
    pub(super) fn failed(&self) -> bool {
        self.state.lock().failure.is_some()
    }

    /// Begins pieces until `window` are under way: calls `begin` with each, the file, and its part of
    /// the tensor if that is the memory. `begin` runs inside the operation's lock.
    pub(super) fn next_pieces(
        &self, window: usize,
        mut begin: impl FnMut(Piece, &Arc<dyn BackingFile>, Option<(WriteLease, Arc<Region>)>),
    ) {
        let mut state = self.state.lock();
        if state.finished {
            return;
        }
        let file = state.backing();
        while state.failure.is_none()
            && state.inflight < window
            && let Some(piece) = state.plan.next()
        {
            state.inflight += 1;
            let range = piece.range_from(self.about.offset);
            let part = match &mut state.memory {
                Memory::Tensor(parts) => {
                    Some((parts.take(range.start, range.len()), Arc::clone(parts.region())))
                }
                _ => None,
            };
            begin(piece, &file, part);
        }
        drop(file);
        self.finish_if_idle(state);
    }

    /// Copies a piece to a bounce buffer, from its part of the tensor or from the operation's memory. A
    /// sender is returned instead when that is lent by a waiting thread.
    pub(super) fn fill(
        &self, piece: Piece, part: Option<&[u8]>, chunk: &mut [u8],
    ) -> Option<Sender<Event>> {
        let range = piece.range_from(self.about.offset);
        if let Some(part) = part {
            chunk[..range.len()].copy_from_slice(part);
            return None;
        }
        match &self.state.lock().memory {
            Memory::Plain(bytes) => {
                chunk[..range.len()].copy_from_slice(&bytes[range]);
                None
            }
            Memory::Caller(sender) => Some(sender.clone()),
            Memory::None | Memory::Tensor(_) => unreachable!("tensors have parts"),
        }
    }

    /// Copies a piece from the bounce buffer, from its byte `lead` on, to where it belongs.
    pub(super) fn deliver(
        &self, piece: Piece, part: Option<&mut [u8]>, mut chunk: Chunk, lead: usize,
    ) {
        let range = piece.range_from(self.about.offset);
        if let Some(part) = part {
            part.copy_from_slice(&chunk.bytes()[lead..lead + range.len()]);
            return;
        }
        let mut state = self.state.lock();
        match &mut state.memory {
            Memory::Plain(bytes) => {
                let from = &chunk.bytes()[lead..lead + range.len()];
                bytes[range].copy_from_slice(from);
                // Before the chunk: giving that back may want the lock.
                drop(state);
                drop(chunk);
            }
            Memory::Caller(sender) => {
                let sender = sender.clone();
                drop(state);
                // The receiver waits for the operation; were it gone, the chunk is free again.
                drop(sender.send(Event::Arrived(piece, chunk, lead)));
            }
            Memory::None | Memory::Tensor(_) => unreachable!("tensors have parts"),
        }
    }

    /// One piece is over: moved, failed or never tried. Its part of the tensor comes back with it.
    pub(super) fn piece_done(&self, part: Option<WriteLease>, result: Result<u64, ErrorKind>) {
        let mut state = self.state.lock();
        state.inflight -= 1;
        if let (Some(part), Memory::Tensor(parts)) = (part, &mut state.memory) {
            parts.put(part);
        }
        match result {
            Ok(moved) => state.moved += moved,
            Err(kind) => {
                state.failure.get_or_insert(kind);
            }
        }
        self.finish_if_idle(state);
    }

    fn finish_if_idle(&self, mut state: MutexGuard<'_, State>) {
        let over = state.failure.is_some() || state.plan.is_over();
        if state.finished || state.inflight > 0 || !over {
            return;
        }
        state.file = None;
        state.buffered = None;
        state.pages = None;
        state.finished = true;
        if let Memory::Caller(sender) = &state.memory {
            // The receiver waits for it.
            drop(sender.send(Event::Done));
        }
        drop(state);
        self.done.notify_all();
    }

    pub(super) fn is_finished(&self) -> bool {
        self.state.lock().finished
    }

    /// Blocks until the last transfer is done; then validates, if that was asked for.
    pub(super) fn wait(&self) {
        let mut state = self.state.lock();
        while !state.finished {
            self.done.wait(&mut state);
        }
        let Some(path) = state.validate.take() else {
            return;
        };
        let bytes = match &state.memory {
            Memory::Tensor(parts) => parts.bytes(),
            Memory::Plain(bytes) => bytes,
            Memory::Caller(_) | Memory::None => return,
        };
        if state.failure.is_none() {
            state.failure = files::validate(&path, self.about.offset, bytes).err();
        }
    }

    /// After `wait`: bytes moved, or what failed.
    pub(super) fn outcome(&self) -> Result<u64, Error> {
        let state = self.state.lock();
        match &state.failure {
            Some(kind) => Err(self.about.error(state.moved, kind.clone())),
            None => Ok(state.moved),
        }
    }

    /// After `wait`: the memory; once.
    pub(super) fn take_memory(&self) -> Option<Owned> {
        match std::mem::replace(&mut self.state.lock().memory, Memory::None) {
            Memory::Tensor(parts) => Some(Owned::Tensor(parts.whole())),
            Memory::Plain(bytes) => Some(Owned::Plain(bytes)),
            Memory::Caller(_) | Memory::None => None,
        }
    }
}

impl State {
    fn backing(&self) -> Arc<dyn BackingFile> {
        self.file.as_ref().expect("not finished").backing()
    }
}

/// The asynchronous operations of a handle that no wait has reported.
#[derive(Debug, Default)]
pub(super) struct Ledger(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    next: u64,
    pending: BTreeMap<u64, Arc<Op>>,
    /// Operations that were finished one by one.
    finished: usize,
}

impl Ledger {
    pub(super) fn enter(&self, op: &Arc<Op>) -> u64 {
        let mut entries = self.0.lock();
        let id = entries.next;
        entries.next += 1;
        entries.pending.insert(id, Arc::clone(op));
        id
    }

    fn finish(&self, id: u64) {
        let mut entries = self.0.lock();
        if entries.pending.remove(&id).is_some() {
            entries.finished += 1;
        }
    }

    /// All operations, in order, and how many more were finished one by one.
    pub(super) fn take(&self) -> (Vec<Arc<Op>>, usize) {
        let mut entries = self.0.lock();
        let pending = std::mem::take(&mut entries.pending);
        let finished = std::mem::take(&mut entries.finished);
        (pending.into_values().collect(), finished)
    }
}

/// An asynchronous read or write under way, with the buffer it was given. Dropping it does not stop it:
/// the buffer is freed when it is done.
#[must_use = "the buffer comes back from it"]
pub struct Operation<B> {
    op: Arc<Op>,
    ledger: Arc<Ledger>,
    id: u64,
    buffer: PhantomData<fn() -> B>,
}

/// An asynchronous operation that is done.
#[must_use]
pub struct Finished<B> {
    /// The buffer; when the operation failed, with any part of a read's bytes in it.
    pub buffer: B,
    /// Bytes moved: always the buffer's length, less is an error.
    pub result: Result<u64, Error>,
}

impl<B: Buffer> Operation<B> {
    pub(super) fn new(op: Arc<Op>, ledger: Arc<Ledger>) -> Self {
        let id = ledger.enter(&op);
        Self { op, ledger, id, buffer: PhantomData }
    }

    /// Whether all its transfers are done. Never blocks.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.op.is_finished()
    }

    /// Blocks until it is done. The next [`Handle::wait`](super::Handle::wait) counts it, but leaves its
    /// error to the result here.
    pub fn finish(self) -> Finished<B> {
        self.op.wait();
        self.ledger.finish(self.id);
        let result = self.op.outcome();
        Finished { buffer: self.take(), result }
    }

    /// The buffer alone; blocks until the operation is done. [`Handle::wait`](super::Handle::wait),
    /// before or after, counts the operation and reports its error.
    #[must_use]
    pub fn into_buffer(self) -> B {
        self.op.wait();
        self.take()
    }

    fn take(self) -> B {
        let memory = self.op.take_memory();
        memory
            .and_then(B::from_owned)
            .expect("the operation was given a buffer of this type, and only this takes it")
    }
}

/// Without the buffer, which may be large.
impl<B> fmt::Debug for Finished<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Finished").field("result", &self.result).finish_non_exhaustive()
    }
}

impl<B> fmt::Debug for Operation<B> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Operation").field("about", &self.op.about).finish_non_exhaustive()
    }
}
