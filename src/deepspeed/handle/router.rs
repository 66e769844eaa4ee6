//! Between operations and the device: turns pieces into transfers and completions into pieces done.
//!
//! Everything here runs on whichever thread comes by: the one that asks for an operation, or a device
//! thread with completions. Locks, none held while another of them is taken but an operation's, inside
//! which `flights` may be: an operation's state, `flights`, the bounce buffers.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;

use super::bounce::{Bounce, Chunk, Request};
use super::error::{Direction, ErrorKind};
use super::operation::Op;
use super::plan::Piece;
use super::tensor::Region;
use crate::aio::device::{
    Action, BackingFile, Completion, CompletionSink, Device, Transfer, refused,
};
use crate::error::Errno;
use crate::pool::WriteLease;

/// For the thread that lends its slice to an operation.
#[derive(Debug)]
pub(super) enum Event {
    /// A bounce buffer to fill with the piece's bytes, for [`Router::fly`].
    Fill(Piece, Chunk),
    /// The piece's bytes, from this byte of the bounce buffer on.
    Arrived(Piece, Chunk, usize),
    /// The operation is done.
    Done,
}

/// A handle's device, and what is on its way there and back.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) bounce: Bounce,
    device: OnceLock<Weak<dyn Device>>,
    flights: Mutex<Flights>,
    /// Pieces of one operation under way at once.
    window: usize,
}

#[derive(Debug, Default)]
struct Flights {
    next: u64,
    flying: HashMap<u64, Flight>,
}

/// A transfer under way.
#[derive(Debug)]
struct Flight {
    op: Arc<Op>,
    piece: Piece,
    memory: Ground,
    /// The file's; 1 once the transfer was sent through the page cache instead.
    alignment: usize,
    /// Where the transfer begins in the file.
    start: u64,
}

/// Whose memory a transfer uses.
#[derive(Debug)]
enum Ground {
    /// The tensor's own.
    Tensor(Arc<Region>),
    /// A bounce buffer's, with the part of the tensor that it stands for if there is one.
    Chunk(Chunk, Option<WriteLease>),
}

impl Router {
    pub(super) fn new(bounce: Bounce, window: usize) -> Arc<Self> {
        Arc::new(Self { bounce, device: OnceLock::new(), flights: Mutex::default(), window })
    }

    /// Names the device; called once, before the first operation.
    pub(super) fn connect(self: &Arc<Self>, device: &Arc<dyn Device>) {
        device.connect(Arc::new(Sink(Arc::clone(self))));
        let set = self.device.set(Arc::downgrade(device));
        assert!(set.is_ok(), "connect is called once");
    }

    fn submit(self: &Arc<Self>, mut batch: Vec<Transfer>) {
        if batch.is_empty() {
            return;
        }
        match self.device.get().and_then(Weak::upgrade) {
            Some(device) => device.submit(&mut batch),
            // The handle waits for its operations before it lets the device go.
            None => {
                let late = batch.into_iter();
                let mut late = late.map(|transfer| refused(transfer, Errno::ENODEV)).collect();
                self.landed(&mut late);
            }
        }
    }

    /// Starts as many of the operation's pieces as the window has room for.
    pub(super) fn pump(self: &Arc<Self>, op: &Arc<Op>) {
        let mut batch = Vec::new();
        self.pump_into(op, &mut batch);
        self.submit(batch);
    }

    fn pump_into(self: &Arc<Self>, op: &Arc<Op>, batch: &mut Vec<Transfer>) {
        let mut requests = Vec::new();
        op.next_pieces(self.window, |piece, file, part| match part {
            Some((lease, region)) if piece.straight => {
                let flight = Flight {
                    op: Arc::clone(op),
                    piece,
                    memory: Ground::Tensor(region),
                    alignment: op.alignment(),
                    start: piece.start,
                };
                batch.push(self.take_off(flight, file, lease));
            }
            part => requests.push(Request {
                op: Arc::clone(op),
                piece,
                part: part.map(|(lease, _)| lease),
            }),
        });
        Bounce::request(self, requests);
    }

    /// A flight's transfer, of the bytes of `lease`.
    fn take_off(&self, flight: Flight, file: &Arc<dyn BackingFile>, lease: WriteLease) -> Transfer {
        let (offset, file) = (flight.start, Arc::clone(file));
        let action = match flight.op.direction() {
            Direction::Read => Action::Read(lease),
            Direction::Write => Action::Write(lease.downgrade()),
        };
        let mut flights = self.flights.lock();
        let token = flights.next;
        flights.next += 1;
        flights.flying.insert(token, flight);
        Transfer { token, action, file, offset }
    }

    /// A piece has got its bounce buffer.
    pub(super) fn granted(self: &Arc<Self>, request: Request, mut chunk: Chunk) {
        let Request { op, piece, part } = request;
        if op.failed() {
            drop(chunk);
            return op.piece_done(part, Ok(0));
        }
        match op.direction() {
            Direction::Read => self.fly(&op, piece, chunk, part),
            Direction::Write => match op.fill(piece, part.as_deref(), chunk.bytes()) {
                Some(caller) => {
                    // The receiver waits for the operation; were it gone, the chunk is free again.
                    if caller.send(Event::Fill(piece, chunk)).is_err() {
                        op.piece_done(None, Ok(0));
                    }
                }
                None => self.fly(&op, piece, chunk, part),
            },
        }
    }

    /// Sends a piece's transfer off, whose bounce buffer is filled if it is a write.
    pub(super) fn fly(
        self: &Arc<Self>, op: &Arc<Op>, piece: Piece, mut chunk: Chunk, part: Option<WriteLease>,
    ) {
        let alignment = op.alignment() as u64;
        let start = piece.start / alignment * alignment;
        let length = piece.end.next_multiple_of(alignment) - start;
        let lease = chunk.lend(usize::try_from(length).expect("fits a chunk"));
        let flight = Flight {
            op: Arc::clone(op),
            piece,
            memory: Ground::Chunk(chunk, part),
            alignment: op.alignment(),
            start,
        };
        let transfer = self.take_off(flight, &op.file(), lease);
        self.submit(vec![transfer]);
    }

    fn landed(self: &Arc<Self>, done: &mut Vec<Completion>) {
        let mut batch = Vec::new();
        for Completion { transfer, result } in done.drain(..) {
            let Transfer { token, action, file, .. } = transfer;
            // Now: the file is closed when its operation is done, not some time later.
            drop(file);
            let flight = self.flights.lock().flying.remove(&token);
            let flight = flight.expect("a completion for a transfer under way");
            let lease = match (action, &flight.memory) {
                (Action::Read(lease), _) => lease,
                (Action::Write(lease), Ground::Tensor(region)) => region.reclaim(lease),
                (Action::Write(lease), Ground::Chunk(..)) => self.bounce.reclaim(lease),
                (Action::Sync { .. }, _) => unreachable!("no syncs are submitted"),
            };
            let op = Arc::clone(&flight.op);
            if let Some(again) = self.land(flight, lease, result) {
                batch.push(again);
            }
            self.pump_into(&op, &mut batch);
        }
        self.submit(batch);
    }

    /// Ends a flight, unless its file takes no direct transfers: then returns one through the page cache.
    fn land(
        self: &Arc<Self>, flight: Flight, lease: WriteLease, result: Result<usize, Errno>,
    ) -> Option<Transfer> {
        let at = flight.start;
        let result = match result {
            Err(Errno::EINVAL) if flight.alignment > 1 => return self.detour(flight, lease),
            Err(errno) => Err(ErrorKind::Transfer { at, errno }),
            Ok(moved) if at + moved as u64 >= flight.piece.end => Ok(()),
            Ok(moved) => Err(ErrorKind::Short { at: at + moved as u64 }),
        };
        self.arrive(flight, lease, result);
        None
    }

    /// Sends a flight through the page cache, where anything is aligned.
    fn detour(&self, mut flight: Flight, lease: WriteLease) -> Option<Transfer> {
        match flight.op.buffered() {
            Ok(file) => {
                flight.alignment = 1;
                Some(self.take_off(flight, &file, lease))
            }
            Err(errno) => {
                self.arrive(flight, lease, Err(ErrorKind::Open(errno)));
                None
            }
        }
    }

    /// A flight is over: bytes to where they belong, memory back.
    fn arrive(&self, flight: Flight, lease: WriteLease, result: Result<(), ErrorKind>) {
        let Flight { op, piece, memory, start, .. } = flight;
        let result = result.map(|()| piece.end - piece.start);
        match memory {
            Ground::Tensor(_) => op.piece_done(Some(lease), result),
            Ground::Chunk(mut chunk, mut part) => {
                chunk.mend(lease);
                if op.direction() == Direction::Read && result.is_ok() {
                    let lead = usize::try_from(piece.start - start).expect("below the alignment");
                    op.deliver(piece, part.as_deref_mut(), chunk, lead);
                } else {
                    drop(chunk);
                }
                op.piece_done(part, result);
            }
        }
    }
}

/// The device's way back. (A type of its own, because the page cache's detour takes an `Arc` of the router.)
struct Sink(Arc<Router>);

impl CompletionSink for Sink {
    fn complete(&self, done: &mut Vec<Completion>) {
        self.0.landed(done);
    }
}
