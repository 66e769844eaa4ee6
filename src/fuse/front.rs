//! Our own side of /dev/fuse.
//!
//! Several threads read requests, each from a descriptor and into memory of its own: the headers apart,
//! so that what a client writes lies at the beginning of a page. What clients do all day is answered here,
//! READ straight from the pool's memory; everything else goes through the [`relay`] to fuser.

mod abi;
mod aim;
mod answers;
mod awake;
mod change;
mod crew;
mod describe;
mod device;
mod hot;
mod names;
mod reads;
mod relay;
mod room;
mod spare;
mod unnamed;
mod xattrs;

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Instant;

use parking_lot::Mutex;
use zerocopy::FromBytes;

pub(crate) use self::awake::REQUESTS as WAKE_REQUESTS;

use self::abi::{InHeader, InitIn, MAJOR, MINOR_MIN, ReadIn};
use self::awake::Awake;
use self::crew::{Crew, Turn};
use self::device::{Device, HEADER_BYTES, Reply};
use self::reads::Reads;
use self::relay::Relay;
use self::room::{Payload, Room};
use super::session::{Agreed, REQUEST_BYTES_MAX};
use crate::fs::Forgotten;
use crate::metrics::Ticket;
use crate::opcode::{Opcode, Route};
use crate::panics::outlive;
use crate::sys_process::touch_stack;
use crate::volume::{Forgetting, Volume};

/// Writes that may wait for buffers, or for transfers, where they were received; the bytes of more are
/// copied. Enough for eight clients with four each.
const WAITING_MAX: usize = 32;

/// Threads with an intake; more receive into memory of their own, which is only there when it is used.
const LENDING_MAX: usize = 16;

/// Requests in a row, each soon after the answer to the last one, after which more of them are expected.
const QUICK_MIN: u32 = 8;

/// Requests after which what was forgotten is closed, although the next one is already there.
const TIDY_EACH: u32 = 64;

/// How many of the engine's [`Intake`](crate::engine::Intake)s the threads need; they take requests of one length.
#[must_use]
pub fn intakes(block_size: u64, threads: usize) -> usize {
    match block_size == u64::from(REQUEST_BYTES_MAX) {
        true => threads.min(LENDING_MAX) + WAITING_MAX,
        false => 0,
    }
}

/// What the reading threads share.
#[derive(Debug)]
pub(super) struct Front {
    volume: Arc<Volume>,
    relay: Relay,
    /// The descriptor that was mounted.
    device: Arc<Device>,
    readers: spare::Readers,
    aim: aim::Aim,
    /// Inodes whose descriptors are still to be closed.
    forgotten: Mutex<Vec<Forgotten>>,
    agreed: Arc<Agreed>,
}

impl Front {
    /// Takes the kernel's first request and leads it to whoever sits at the returned descriptor, before
    /// [`Front::answer_init`] brings the answer back.
    ///
    /// # Errors
    /// When the kernel's protocol is too old, or the mount is gone already.
    pub(super) fn begin(
        volume: Arc<Volume>, device: OwnedFd, agreed: Arc<Agreed>,
    ) -> io::Result<(Front, OwnedFd)> {
        let (relay, theirs) = Relay::new()?;
        let device = Device::new(device, volume.watch.clone());
        let (mut headers, mut payload) = ([0; HEADER_BYTES], Payload::new());
        let gone = || io::Error::new(io::ErrorKind::NotConnected, "unmounted while starting");
        let received = device.receive(&mut headers, [payload.bytes(), &mut []])?;
        let (header, rest) = header(&headers, received.ok_or_else(gone)?)?;
        let rest = &payload.bytes()[..rest];
        let version = InitIn::read_from_prefix(&headers[size_of::<InHeader>()..]);
        match version {
            Ok((version, _)) if Opcode::of(header.opcode) == Opcode::Init => {
                if version.major != MAJOR || version.minor < MINOR_MIN {
                    Reply::new(&device, header.unique, None).error(nix::errno::Errno::EPROTO);
                    return Err(io::Error::new(
                        io::ErrorKind::Unsupported,
                        format!(
                            "the kernel speaks FUSE {}.{}, {MAJOR}.{MINOR_MIN} at least is needed",
                            version.major, version.minor
                        ),
                    ));
                }
            }
            _ => {
                let what = format!("the kernel began with request {}", header.opcode);
                return Err(io::Error::new(io::ErrorKind::InvalidData, what));
            }
        }
        relay.pass(&device, &header, &mut headers, rest, None)?;
        let (readers, forgotten) = (spare::Readers::default(), Mutex::default());
        let aim = aim::Aim::default();
        Ok((Front { volume, relay, device, readers, aim, forgotten, agreed }, theirs))
    }

    /// Brings the answer to the first request back to the kernel.
    pub(super) fn answer_init(&self) -> io::Result<()> {
        self.relay.carry_waiting(&self.device)?;
        Ok(())
    }

    /// What makes the kernel forget a node's pages and attributes.
    pub(super) fn invalidator(&self) -> Forgetting {
        let device = self.device.clone();
        Box::new(move |nodeid, what| {
            // Fails when the kernel does not know the node: then it has nothing to forget.
            let _ = device.invalidate(nodeid, what);
        })
    }

    /// Starts `count` reading threads, which `keep_awake` lets keep processors awake, and the one that carries fuser's answers back.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub(super) fn start(
        self, count: usize, keep_awake: bool,
    ) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
        let front = Arc::new(self);
        let carrier = front.clone();
        // Not waited for: it ends when the last answer that somebody still owes has been given.
        spawn("fuse-relay".to_owned(), move || carrier.relay.carry_back(&carrier.device))?;
        let left = Arc::new(AtomicUsize::new(count));
        let crew = Arc::new(Crew::new(count, Awake::new(keep_awake)));
        if count > 1 {
            let crew = crew.clone();
            // Ends with the last of the readers, as soon as it looks.
            spawn("fuse-watch".to_owned(), move || outlive(|| crew.watch()))?;
        }
        spare::start(&front, &left, count)?;
        names::start(&front, &left)?;
        let readers = (0..count).map(|number| {
            let device = match number {
                0 => front.device.clone(),
                _ => front.device.another().unwrap_or_else(|error| {
                    log::debug!("a request thread shares its descriptor: {error}");
                    front.device.clone()
                }),
            };
            let front = front.clone();
            let crew = Some(crew::Member::of(&crew));
            let ending = Ending { front: front.clone(), left: left.clone(), threads: count };
            spawn(format!("fuse-{number}"), move || {
                let _ending = ending;
                let impatient = device.impatient().ok();
                Reader {
                    patient: device.clone(),
                    impatient,
                    device,
                    crew,
                    leads: false,
                    quick: 0,
                    headers: [0; HEADER_BYTES],
                    room: Some(Room::new(number, &front.volume)),
                    joined: Vec::new(),
                    reads: Reads::default(),
                    front,
                }
                .run()
            })
        });
        readers.collect()
    }
}

fn spawn<T: Send + 'static>(
    name: String, work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name).spawn(|| {
        touch_stack();
        work()
    })
}

/// Ends fuser's session with the last reading thread, however that came to its end.
struct Ending {
    front: Arc<Front>,
    left: Arc<AtomicUsize>,
    threads: usize,
}

impl Drop for Ending {
    fn drop(&mut self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.front.relay.end(self.threads);
        }
    }
}

/// The header of a request of `length` bytes, and how many of these lie in the payload.
fn header(headers: &[u8; HEADER_BYTES], length: usize) -> io::Result<(InHeader, usize)> {
    let rest = length.saturating_sub(HEADER_BYTES);
    match InHeader::read_from_prefix(headers) {
        Ok((header, _))
            if header.len as usize == length
                && length >= size_of::<InHeader>()
                && rest <= REQUEST_BYTES_MAX as usize =>
        {
            Ok((header, rest))
        }
        _ => {
            let what = format!("a request of {length} bytes does not say so");
            Err(io::Error::new(io::ErrorKind::InvalidData, what))
        }
    }
}

/// One reading thread.
struct Reader {
    front: Arc<Front>,
    /// With which it takes turns.
    crew: Option<crew::Member>,
    /// It has taken the last request alone, and another can take its place.
    leads: bool,
    /// Requests in a row that came while it looked out for them.
    quick: u32,
    patient: Arc<Device>,
    /// Never waits; `None` where the kernel gives no further descriptor.
    impatient: Option<Arc<Device>>,
    /// Of these two the one that the last request came from, and where its answer goes.
    device: Arc<Device>,
    headers: [u8; HEADER_BYTES],
    /// Always there between two requests.
    room: Option<Room>,
    /// Room for the rare small request that does not fit into `headers`.
    joined: Vec<u8>,
    /// Small reads that it waits for.
    reads: Reads,
}

impl Reader {
    fn run(mut self) -> io::Result<()> {
        let ended = loop {
            match self.take_one() {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.reads.finish(&self.front.volume.engine);
        if let Some(Room::Intake(intake)) = self.room {
            self.front.volume.engine.return_intake(intake);
        }
        ended
    }

    /// Answers one request; false when the session is over.
    fn take_one(&mut self) -> io::Result<bool> {
        let Some(length) = self.receive()? else {
            return Ok(false);
        };
        if let Some(crew) = &self.crew {
            crew.took(self.moves(length));
        }
        self.handle(length)?;
        Ok(true)
    }

    /// The next request's length; `None` at the end of the session.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        let turn = self.turn();
        self.leads = matches!(turn, Turn::Lead(_))
            && self.crew.as_ref().is_some_and(|crew| crew.has_others());
        if let Some(crew) = &self.crew {
            crew.talks(self.leads && self.quick >= QUICK_MIN);
        }
        let room = self.room.as_mut().expect("put back after each request");
        room.begin_at(if turn == Turn::Read { self.front.aim.start() } else { 0 });
        let (readers, headers) = (&self.front.readers, &mut self.headers);
        match (turn, &self.impatient) {
            (Turn::End, _) => return Ok(None),
            (Turn::Lead(lookout), Some(impatient))
                if !(lookout.is_zero() && self.reads.is_empty()) =>
            {
                if !Arc::ptr_eq(&self.device, impatient) {
                    self.device.clone_from(impatient);
                }
                let mut received = Some(0);
                while received == Some(0) && !self.reads.is_empty() {
                    received = impatient.look(headers, room.parts())?;
                    if let (Some(0), Some(crew)) = (received, &self.crew) {
                        self.reads.wait(&self.front.volume.engine, crew);
                    }
                }
                if received == Some(0) && !lookout.is_zero() {
                    let end = Instant::now() + lookout;
                    received = readers.reading(|| {
                        impatient.look_out(headers, room.parts(), end, || self.front.tidy())
                    })?;
                }
                if received != Some(0) {
                    self.quick = self.quick.wrapping_add(1);
                    if self.quick.is_multiple_of(TIDY_EACH) {
                        self.front.tidy();
                    }
                    return Ok(received);
                }
            }
            (Turn::Lead(_) | Turn::Read, _) => {}
        }
        self.front.tidy();
        self.quick = 0;
        if let Some(crew) = &self.crew {
            crew.talks(false);
        }
        self.device.clone_from(&self.patient);
        readers.reading(|| self.patient.receive(headers, room.parts()))
    }

    /// What the thread does next. It takes no rest while it has reads under way: others go on meanwhile.
    fn turn(&mut self) -> Turn {
        let Some(crew) = &self.crew else { return Turn::Read };
        let (engine, mut turn) = (&self.front.volume.engine, None);
        if !self.reads.is_empty() {
            turn = crew.next_at_once();
            match turn {
                Some(Turn::Lead(_)) => {}
                // It does not read yet: were it counted, the others might all stop.
                Some(Turn::Read) => crew.absent(|| self.reads.finish(engine)),
                Some(Turn::End) | None => self.reads.finish(engine),
            }
        }
        turn.unwrap_or_else(|| crew.next())
    }

    /// Bytes that a request moves, to the client or from it.
    fn moves(&self, length: usize) -> usize {
        let header = InHeader::read_from_prefix(&self.headers);
        let read = ReadIn::read_from_prefix(&self.headers[size_of::<InHeader>()..]);
        match (header, read) {
            (Ok((header, _)), Ok((read, _))) if Opcode::of(header.opcode) == Opcode::Read => {
                read.size as usize
            }
            _ => length,
        }
    }

    fn handle(&mut self, length: usize) -> io::Result<()> {
        let opcode = InHeader::read_from_prefix(&self.headers)
            .map_or(Opcode::Other, |(header, _)| Opcode::of(header.opcode));
        self.reads.make_way(&self.front.volume.engine, opcode);
        let mut room = self.room.take().expect("put back after each request");
        let (header, rest) = header(&self.headers, length)?;
        let is_write = Opcode::of(header.opcode) == Opcode::Write;
        // A write's stay where they are.
        let bytes = if is_write { &[] } else { room.bytes(rest) };
        let ticket = self.device.watch.begin(describe::operation(&header), || {
            describe::note(&self.front, &header, &self.headers, bytes)
        });
        if is_write {
            let reply = Reply::new(&self.device, header.unique, Some(ticket));
            let arguments = &self.headers[size_of::<InHeader>()..];
            room = self.front.write(&header, arguments, room, rest, reply);
        } else {
            self.handle_other(&header, bytes, length, ticket);
        }
        self.room = Some(room);
        Ok(())
    }

    fn handle_other(&mut self, header: &InHeader, rest: &[u8], length: usize, ticket: Ticket) {
        let opcode = Opcode::of(header.opcode);
        let front = &self.front;
        let ticket = Cell::new(Some(ticket));
        let reply = || Reply::new(&self.device, header.unique, ticket.take());
        let arguments = if length <= HEADER_BYTES {
            &self.headers[size_of::<InHeader>()..length]
        } else if matches!(opcode.route(), Route::Front | Route::FrontOrControl) {
            self.joined.clear();
            self.joined.extend_from_slice(&self.headers[size_of::<InHeader>()..]);
            self.joined.extend_from_slice(rest);
            &self.joined[..]
        } else {
            &[][..]
        };
        let outcome = match opcode.route() {
            Route::Refused(errno) => return reply().error(errno),
            Route::Fuser => hot::Outcome::PassOn,
            Route::Front | Route::FrontOrControl => {
                let waits = opcode == Opcode::Read && self.leads && self.impatient.is_some();
                let batch = if waits { self.reads.batch(&front.volume.engine) } else { None };
                front.answer(opcode, header, arguments, batch, &reply)
            }
        };
        if outcome == hot::Outcome::Taken {
            // Still there when the request gets no answer.
            if let Some(ticket) = ticket.take() {
                self.device.watch.answering(&ticket, 0);
                self.device.watch.answered(ticket, 0, 0);
            }
            return;
        }
        let passed = front.relay.pass(&self.device, header, &mut self.headers, rest, ticket.take());
        if let Err(errno) = passed {
            log::error!("request {} of {length} bytes cannot be passed on: {errno}", header.opcode);
            reply().error(nix::errno::Errno::EIO);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_that_lie_about_their_length_are_refused() {
        let mut headers = [0; HEADER_BYTES];
        let most = HEADER_BYTES as u32 + REQUEST_BYTES_MAX;
        for (says, length, accepted) in [
            (40, 40, true),
            (39, 39, false),
            (40, 41, false),
            (most, most as usize, true),
            (most + 1, most as usize + 1, false),
        ] {
            headers[..4].copy_from_slice(&u32::to_ne_bytes(says));
            let outcome = header(&headers, length);
            assert_eq!(outcome.is_ok(), accepted, "{says} {length}");
            if let Ok((header, rest)) = outcome {
                assert_eq!((header.len, rest), (says, length.saturating_sub(HEADER_BYTES)));
            }
        }
    }

    #[test]
    fn payloads_begin_with_a_page() {
        let mut payload = Payload::new();
        assert_eq!(payload.bytes().as_ptr().addr() % 4096, 0);
        assert_eq!(payload.bytes().len(), REQUEST_BYTES_MAX as usize);
    }
}
