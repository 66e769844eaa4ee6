//! From a call to an operation under way: opening, checking, cutting, and lending slices.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crossbeam_channel::{Receiver, unbounded};

use super::buffer::{Buffer, Memory, Owned, Source, Target};
use super::error::{Direction, Error, ErrorKind, Failure, FileName, Refused};
use super::files::{self, Opened};
use super::operation::{About, Op, Operation, Start};
use super::plan::{Middle, Plan, Shape};
use super::router::Event;
use super::tensor::LockedTensor;
use super::{Handle, Result};
use crate::error::Errno;

/// Where an operation's bytes are in the file system.
#[derive(Clone, Copy)]
pub(super) enum Place<'a> {
    Path(&'a Path),
    Descriptor(BorrowedFd<'a>),
}

impl Place<'_> {
    fn open(self, direction: Direction) -> std::result::Result<Opened, ErrorKind> {
        match self {
            Place::Path(path) => files::open_path(path, direction),
            Place::Descriptor(descriptor) => files::open_descriptor(descriptor, direction),
        }
    }

    fn name(self) -> FileName {
        match self {
            Place::Path(path) => FileName::Path(path.to_owned()),
            Place::Descriptor(descriptor) => FileName::Descriptor(descriptor.as_raw_fd()),
        }
    }
}

/// What is asked for, but for the memory.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    pub(super) direction: Direction,
    pub(super) place: Place<'a>,
    pub(super) offset: u64,
    pub(super) validate: bool,
    /// Slices to cut the operation in; 1 for the form on the calling thread.
    pub(super) slices: u32,
    /// The file must end with the buffer.
    pub(super) exact: bool,
}

/// The slice that a thread lends to its synchronous operation.
enum Lent<'a> {
    Source(&'a [u8]),
    Target(&'a mut [u8]),
}

impl Lent<'_> {
    fn bytes(&self) -> &[u8] {
        match self {
            Lent::Source(bytes) => bytes,
            Lent::Target(bytes) => bytes,
        }
    }
}

impl Request<'_> {
    fn about(&self, length: usize) -> About {
        About {
            direction: self.direction,
            name: self.place.name(),
            offset: self.offset,
            length: length as u64,
        }
    }

    fn validated(&self) -> Option<PathBuf> {
        match self.place {
            Place::Path(path) if self.validate => Some(path.to_owned()),
            _ => None,
        }
    }
}

/// What [`Handle::begin`] made of a request.
struct Begun {
    file: Opened,
    plan: Plan,
    /// Whether direct transfers may share a page with another operation's edges.
    shares_pages: bool,
    /// Bytes that the edges had.
    moved: u64,
}

impl Begun {
    fn start(self, about: About, memory: Memory, validate: Option<PathBuf>) -> Arc<Op> {
        let pages = self.shares_pages.then(|| self.file.keep_edges_off());
        Op::new(Start {
            about,
            file: self.file,
            pages,
            plan: self.plan,
            memory,
            moved: self.moved,
            validate,
        })
    }
}

/// Whether the file has what is to be read.
fn check_size(
    request: &Request<'_>, file: &Opened, about: &About,
) -> std::result::Result<(), ErrorKind> {
    // Devices and the like have no size to check; a read beyond their end is short.
    let Some(size) = file.size else { return Ok(()) };
    let needed = about.offset + about.length;
    let here = size.saturating_sub(about.offset);
    if request.exact && here != about.length {
        let buffer = about.length;
        return Err(ErrorKind::SizeMismatch { size: here, buffer });
    }
    if size < needed {
        return Err(ErrorKind::FileTooShort { size, needed });
    }
    Ok(())
}

impl Handle {
    pub(super) fn by_path<'a>(
        &self, direction: Direction, path: &'a Path, validate: bool, offset: u64,
    ) -> Request<'a> {
        Request {
            direction,
            place: Place::Path(path),
            offset,
            validate,
            slices: self.options.intra_op_parallelism,
            exact: false,
        }
    }

    pub(super) fn by_descriptor<'a>(
        &self, direction: Direction, descriptor: BorrowedFd<'a>, offset: u64,
    ) -> Request<'a> {
        Request {
            place: Place::Descriptor(descriptor),
            ..self.by_path(direction, Path::new(""), false, offset)
        }
    }

    pub(super) fn later<B: Buffer>(
        &self, request: Request<'_>, buffer: B,
    ) -> std::result::Result<Operation<B>, Refused<B>> {
        match self.begin_owned(request, buffer.into_owned()) {
            Ok(op) => {
                let operation = Operation::new(Arc::clone(&op), Arc::clone(&self.ledger));
                self.router.pump(&op);
                Ok(operation)
            }
            Err((error, owned)) => Err(Refused {
                error,
                buffer: B::from_owned(owned).expect("the buffer that came in"),
            }),
        }
    }

    pub(super) fn read_now(&self, request: Request<'_>, target: Target<'_>) -> Result<()> {
        match target {
            Target::Tensor(narrow) => narrow.lend(|tensor| self.tensor_now(request, tensor)),
            Target::Bytes(bytes) => self.slice_now(request, Lent::Target(bytes)),
        }
    }

    pub(super) fn write_now(&self, request: Request<'_>, source: Source<'_>) -> Result<()> {
        match source {
            Source::Tensor(narrow) => narrow.lend(|tensor| self.tensor_now(request, tensor)),
            Source::Bytes(bytes) => self.slice_now(request, Lent::Source(bytes)),
        }
    }

    fn tensor_now(&self, request: Request<'_>, tensor: LockedTensor) -> (LockedTensor, Result<()>) {
        let (owned, result) = match self.begin_owned(request, Owned::Tensor(tensor)) {
            Err((error, owned)) => (owned, Err(*error)),
            Ok(op) => {
                self.router.pump(&op);
                op.wait();
                let owned = op.take_memory().expect("taken once");
                (owned, op.outcome().map(drop))
            }
        };
        match owned {
            Owned::Tensor(tensor) => (tensor, result),
            Owned::Plain(_) => unreachable!("a tensor went in"),
        }
    }

    /// An operation on memory that this thread lends, and copies to and from bounce buffers.
    fn slice_now(&self, request: Request<'_>, mut lent: Lent<'_>) -> Result<()> {
        let (sender, events) = unbounded();
        let about = request.about(lent.bytes().len());
        let begun = self
            .begin(&request, &about, lent.bytes(), None)
            .map_err(|failure| about.error(failure.moved, failure.kind))?;
        let op = begun.start(about.clone(), Memory::Caller(sender), None);
        self.router.pump(&op);
        self.attend(&op, &events, request.offset, &mut lent);
        op.wait();
        let moved = op.outcome()?;
        if let Some(path) = request.validated() {
            files::validate(&path, request.offset, lent.bytes())
                .map_err(|kind| about.error(moved, kind))?;
        }
        Ok(())
    }

    /// Copies until the operation is done.
    fn attend(&self, op: &Arc<Op>, events: &Receiver<Event>, offset: u64, lent: &mut Lent<'_>) {
        // Never disconnected before `Done`: the operation has the sender.
        while let Ok(event) = events.recv() {
            match (event, &mut *lent) {
                (Event::Fill(piece, mut chunk), Lent::Source(bytes)) => {
                    let range = piece.range_from(offset);
                    chunk.bytes()[..range.len()].copy_from_slice(&bytes[range]);
                    self.router.fly(op, piece, chunk, None);
                }
                (Event::Arrived(piece, mut chunk, lead), Lent::Target(bytes)) => {
                    let range = piece.range_from(offset);
                    let from = &chunk.bytes()[lead..lead + range.len()];
                    bytes[range].copy_from_slice(from);
                }
                (Event::Done, _) => return,
                (Event::Fill(..), Lent::Target(_)) | (Event::Arrived(..), Lent::Source(_)) => {
                    unreachable!("writes are filled, reads arrive")
                }
            }
        }
    }

    fn begin_owned(
        &self, request: Request<'_>, owned: Owned,
    ) -> std::result::Result<Arc<Op>, (Box<Error>, Owned)> {
        let about = request.about(owned.bytes().len());
        let address = match &owned {
            Owned::Tensor(tensor) => Some(tensor.as_ptr().addr()),
            Owned::Plain(_) => None,
        };
        match self.begin(&request, &about, owned.bytes(), address) {
            Ok(begun) => Ok(begun.start(about, Memory::of(owned), request.validated())),
            Err(Failure { moved, kind }) => Err((Box::new(about.error(moved, kind)), owned)),
        }
    }

    /// Opens, checks and cuts; writes the edges of a write, and counts their bytes. `address` is that
    /// of memory a device may use.
    fn begin(
        &self, request: &Request<'_>, about: &About, bytes: &[u8], address: Option<usize>,
    ) -> std::result::Result<Begun, Failure> {
        let (offset, length) = (about.offset, about.length);
        let end = offset.checked_add(length);
        let Some(end) = end.filter(|end| i64::try_from(*end).is_ok()) else {
            let (at, errno) = (offset, Errno::EFBIG);
            return Err(ErrorKind::Transfer { at, errno }.into());
        };
        let file = request.place.open(about.direction)?;
        let alignment = file.alignment as u64;
        let shape = Shape {
            offset,
            length,
            alignment,
            slices: request.slices.into(),
            block: self.options.block_size as u64,
            chunk: self.router.bounce.chunk_bytes() as u64,
            congruent: address
                .is_some_and(|address| (address as u64).wrapping_sub(offset) % alignment == 0),
        };
        if about.direction == Direction::Read {
            check_size(request, &file, about)?;
            let start = offset;
            return Ok(Begun {
                file,
                plan: Plan::new(shape, Middle { start, end }),
                shares_pages: false,
                moved: 0,
            });
        }
        let middle = shape.middle();
        let at = |offset: u64| usize::try_from(offset - about.offset).expect("within the memory");
        let edges = [(offset, &bytes[..at(middle.start)]), (middle.end, &bytes[at(middle.end)..])];
        let moved = file.write_edges(edges)?;
        Ok(Begun {
            file,
            plan: Plan::new(shape, middle),
            shares_pages: shape.shares_pages(),
            moved,
        })
    }
}
