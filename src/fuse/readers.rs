//! The threads that read requests from the kernel: which of them wait for one, and which are woken for what.
//!
//! A large request is copied while it is read, so all threads read during a *stream* of them. A small request costs
//! little more than waking its reader, so one thread, the *leader*, takes them all and polls for the next one before it
//! sleeps, while the others are parked. The leader begins small reads inline and waits for them itself.
//!
//! | decision | function |
//! | --- | --- |
//! | a thread waits, leads or is parked | `Reader::next_turn`, `Turns::next` |
//! | all threads read, or one again | `Turns::received`; `Turns::watch` when the leader is held up |
//! | the leader polls, waits for its reads, or sleeps | `Reader::receive`, `Reader::poll`, `Reader::wait` |
//! | idle processors stay awake | `Reader::receive`, `CpuLatency` |
//! | one reader more, in reserve, or one less | `start_needed_reserve`, `Readers::have_others_waiting` |
//! | the end of one reader is the end of all | `ReaderGuard` |

mod cpu_latency;
mod turns;

use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use zerocopy::FromBytes;

pub(crate) use self::cpu_latency::REQUESTS as CPU_LATENCY_REQUESTS;
pub(super) use self::turns::Turns;

use self::cpu_latency::CpuLatency;
use self::turns::Turn;
use super::abi::{InHeader, ReadIn};
use super::channel::{Channel, HEADER_BYTES, header};
use super::front::Front;
use super::inline_reads::InlineReads;
use super::reply::Reply;
use super::request_buffer::RequestBuffer;
use super::{access_note, prune};
use crate::error::Errno;
use crate::metrics::{Operation, Ticket};
use crate::opcode::{Opcode, Route};
use crate::panics::outlive;
use crate::sys_process::touch_stack;
use crate::volume::ControlNode;

/// Requests in a row, each soon after the last answer, after which more of them are expected.
const QUICK_MIN: u32 = 8;

/// Requests after which forgotten inodes are closed although the next request is already there.
const CLOSE_EACH: u32 = 64;

/// How often the thread `fuse-reserve` looks whether all readers are held up.
const RESERVE_TICK: Duration = Duration::from_millis(500);

/// Reserve readers at most: each takes the memory of a request.
const RESERVE_MAX: usize = 16;

/// What the reading threads of a session share.
#[derive(Debug)]
pub(super) struct Readers {
    pub(super) front: Arc<Front>,
    turns: Turns,
    /// Threads that have not ended, reserve readers included.
    alive: AtomicUsize,
    /// Reserve readers.
    reserve: AtomicUsize,
    /// Threads that wait for a request, reserve readers included.
    waiting: AtomicUsize,
    /// How often such a wait has ended.
    received: AtomicU64,
}

/// Starts `count` reading threads, and those that look after them. With `keep_awake` they may keep processors awake.
///
/// # Errors
/// When a thread cannot be started.
pub(super) fn start(
    front: Front, count: usize, keep_awake: bool,
) -> io::Result<Vec<JoinHandle<io::Result<()>>>> {
    let front = Arc::new(front);
    let carrier = front.clone();
    // Not waited for: it ends when the last answer that fuser still owes has been given.
    spawn("fuse-relay", move || carrier.relay.carry_back(&carrier.channel))?;
    let readers = Arc::new(Readers {
        front,
        turns: Turns::new(count, CpuLatency::new(keep_awake)),
        alive: AtomicUsize::new(count),
        reserve: AtomicUsize::new(0),
        waiting: AtomicUsize::new(0),
        received: AtomicU64::new(0),
    });
    if count > 1 {
        let readers = readers.clone();
        // Ends with the first reader.
        spawn("fuse-watchdog", move || outlive(|| readers.turns.watch()))?;
    }
    let watched = Arc::downgrade(&readers);
    spawn("fuse-reserve", move || outlive(|| start_needed_reserve(&watched)))?;
    let watched = Arc::downgrade(&readers);
    spawn("fuse-prune", move || outlive(|| prune::watch(&watched)))?;
    (0..count).map(|number| readers.start_usual(number)).collect()
}

fn spawn<T: Send + 'static>(
    name: &str, work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(|| {
        touch_stack();
        work()
    })
}

impl Readers {
    /// Returns the readers unless their session is over.
    pub(super) fn serving(readers: &Weak<Readers>) -> Option<Arc<Readers>> {
        readers.upgrade().filter(|readers| readers.alive.load(Ordering::Acquire) > 0)
    }

    fn start_usual(self: &Arc<Self>, number: usize) -> io::Result<JoinHandle<io::Result<()>>> {
        let channel = match number {
            0 => self.front.channel.clone(),
            _ => self.front.channel.duplicate().unwrap_or_else(|error| {
                log::debug!("a request thread shares its descriptor: {error}");
                self.front.channel.clone()
            }),
        };
        let guard = ReaderGuard { readers: self.clone(), is_reserve: false };
        spawn(&format!("fuse-{number}"), move || {
            let nonblocking = channel.nonblocking().ok();
            let buffer = RequestBuffer::new(number, &guard.readers.front.volume.engine);
            Reader::new(guard, channel, nonblocking, buffer).run()
        })
    }

    /// Starts a reserve reader, beside the usual ones.
    fn start_reserve(self: &Arc<Self>) -> io::Result<()> {
        let channel = self.front.channel.duplicate()?;
        self.reserve.fetch_add(1, Ordering::Relaxed);
        self.alive.fetch_add(1, Ordering::AcqRel);
        // Dropped if the thread cannot be started, and with it what was counted.
        let guard = ReaderGuard { readers: self.clone(), is_reserve: true };
        log::warn!("all request threads are held up by the swap folder; one more is started");
        let read = move || Reader::new(guard, channel, None, RequestBuffer::own()).run_as_reserve();
        spawn("fuse-reserve-n", read).map(drop)
    }

    /// Counts the thread among those that wait while it receives a request.
    fn while_waiting<T>(&self, receive: impl FnOnce() -> T) -> T {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let result = receive();
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        self.received.fetch_add(1, Ordering::Relaxed);
        result
    }

    /// Returns true when other threads wait for requests, so that a reserve reader can end.
    fn have_others_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 1
    }

    /// Threads that wait, and how often a wait has ended.
    fn progress(&self) -> (usize, u64) {
        (self.waiting.load(Ordering::Relaxed), self.received.load(Ordering::Relaxed))
    }
}

/// Starts a reserve reader whenever nobody has waited for a request, or received one, for a tick.
///
/// Requests that change names, and those that need space, call the swap folder's filesystem where they are received. A
/// device that hangs, or a frozen filesystem, keeps such a call. With one in each thread nobody would be left to answer
/// where a partition is.
fn start_needed_reserve(readers: &Weak<Readers>) {
    let mut before = (0, 0);
    loop {
        std::thread::sleep(RESERVE_TICK);
        let Some(readers) = Readers::serving(readers) else { return };
        let now = readers.progress();
        let is_held_up = now.0 == 0 && now == before;
        before = now;
        if is_held_up
            && readers.reserve.load(Ordering::Relaxed) < RESERVE_MAX
            && let Err(error) = readers.start_reserve()
        {
            log::warn!("one more request thread cannot be started: {error}");
        }
    }
}

/// Held by a reading thread. Dropped when the thread ends for whatever reason, it tells the others.
struct ReaderGuard {
    readers: Arc<Readers>,
    is_reserve: bool,
}

impl Drop for ReaderGuard {
    fn drop(&mut self) {
        let readers = &self.readers;
        match self.is_reserve {
            true => {
                readers.reserve.fetch_sub(1, Ordering::Relaxed);
            }
            // Parked readers would wait for this one to come back.
            false => readers.turns.end(),
        }
        if readers.alive.fetch_sub(1, Ordering::AcqRel) == 1 {
            readers.front.relay.end(readers.turns.threads());
        }
    }
}

/// One reading thread.
struct Reader {
    guard: ReaderGuard,
    /// The thread has taken the last request as the leader, and others can take over.
    leads: bool,
    /// Requests in a row that came while the thread polled for them.
    quick: u32,
    /// Waits for requests.
    blocking: Arc<Channel>,
    /// Polls for requests; `None` where the kernel gives no further descriptor, and for reserve readers.
    nonblocking: Option<Arc<Channel>>,
    /// Of these two the channel that the last request came from, which its answer goes to.
    channel: Arc<Channel>,
    headers: [u8; HEADER_BYTES],
    /// `None` only while a request is handled.
    buffer: Option<RequestBuffer>,
    /// The arguments of the rare small request that does not fit into `headers`.
    joined: Vec<u8>,
    reads: InlineReads,
}

impl Reader {
    fn new(
        guard: ReaderGuard, channel: Arc<Channel>, nonblocking: Option<Arc<Channel>>,
        buffer: RequestBuffer,
    ) -> Reader {
        Reader {
            guard,
            leads: false,
            quick: 0,
            blocking: channel.clone(),
            nonblocking,
            channel,
            headers: [0; HEADER_BYTES],
            buffer: Some(buffer),
            joined: Vec::new(),
            reads: InlineReads::default(),
        }
    }

    fn run(mut self) -> io::Result<()> {
        let ended = self.answer_all();
        let engine = &self.guard.readers.front.volume.engine;
        self.reads.drain(engine);
        if let Some(RequestBuffer::Intake(intake)) = self.buffer {
            engine.return_intake(intake);
        }
        ended
    }

    fn answer_all(&mut self) -> io::Result<()> {
        while self.answer_next()? {}
        Ok(())
    }

    /// Answers requests as long as nobody else waits for them.
    fn run_as_reserve(mut self) {
        while self.answer_next().is_ok_and(|more| more) && !self.guard.readers.have_others_waiting()
        {
        }
    }

    /// Answers one request; false when the session is over.
    fn answer_next(&mut self) -> io::Result<bool> {
        let Some(length) = self.receive()? else {
            return Ok(false);
        };
        let (header, rest) = header(&self.headers, length)?;
        let opcode = Opcode::of(header.opcode);
        if !self.guard.is_reserve {
            self.guard.readers.turns.received(self.bytes_moved(opcode, length));
        }
        self.handle(&header, opcode, rest);
        Ok(true)
    }

    /// Receives the next request. Returns its length, or `None` at the end of the session.
    fn receive(&mut self) -> io::Result<Option<usize>> {
        let turn = self.next_turn();
        let readers = &self.guard.readers;
        self.leads = matches!(turn, Turn::Lead(_)) && readers.turns.has_others();
        self.keep_awake(self.leads && self.quick >= QUICK_MIN);
        let offset = if turn == Turn::Wait { readers.front.write_offset_guess.get() } else { 0 };
        self.buffer.as_mut().expect("put back after each request").begin_at(offset);
        match turn {
            Turn::End => Ok(None),
            Turn::Wait => self.wait(),
            Turn::Lead(time) => match self.poll(time)? {
                Poll::Ready(received) => Ok(received),
                Poll::Pending => self.wait(),
            },
        }
    }

    /// Decides what the thread does next. It is not parked while it has reads under way; others read meanwhile.
    fn next_turn(&mut self) -> Turn {
        if self.guard.is_reserve {
            return Turn::Wait;
        }
        let (turns, engine) = (&self.guard.readers.turns, &self.guard.readers.front.volume.engine);
        if self.reads.is_empty() {
            return turns.next();
        }
        let turn = turns.next_at_once();
        match turn {
            Some(Turn::Lead(_)) => {}
            // The thread does not wait for requests yet. Were it counted, all others might be parked.
            Some(Turn::Wait) => turns.while_not_counted(|| self.reads.drain(engine)),
            Some(Turn::End) | None => self.reads.drain(engine),
        }
        turn.unwrap_or_else(|| turns.next())
    }

    /// Looks for the leader's next request without sleeping: between two of its reads, then for `time`.
    fn poll(&mut self, time: Duration) -> io::Result<Poll<Option<usize>>> {
        let readers = &self.guard.readers;
        let channel = match &self.nonblocking {
            Some(channel) if !(time.is_zero() && self.reads.is_empty()) => channel,
            _ => return Ok(Poll::Pending),
        };
        if !Arc::ptr_eq(&self.channel, channel) {
            self.channel.clone_from(channel);
        }
        let buffer = self.buffer.as_mut().expect("put back after each request");
        let mut received = Poll::Pending;
        while received.is_pending() && !self.reads.is_empty() {
            received = channel.poll(&mut self.headers, buffer.parts())?;
            if received.is_pending() {
                self.reads.wait(&readers.front.volume.engine, &readers.turns);
            }
        }
        if received.is_pending() && !time.is_zero() {
            let end = Instant::now() + time;
            let close = || readers.front.close_forgotten();
            received = readers.while_waiting(|| {
                channel.poll_until(&mut self.headers, buffer.parts(), end, close)
            })?;
        }
        if received.is_ready() {
            self.quick = self.quick.wrapping_add(1);
            if self.quick.is_multiple_of(CLOSE_EACH) {
                readers.front.close_forgotten();
            }
        }
        Ok(received)
    }

    /// Sleeps until there is a request.
    fn wait(&mut self) -> io::Result<Option<usize>> {
        self.guard.readers.front.close_forgotten();
        self.quick = 0;
        self.keep_awake(false);
        self.channel.clone_from(&self.blocking);
        let buffer = self.buffer.as_mut().expect("put back after each request");
        let receive = || self.blocking.wait(&mut self.headers, buffer.parts());
        self.guard.readers.while_waiting(receive)
    }

    /// Has idle processors wake up quickly, or lets them sleep. Reserve readers change nothing.
    fn keep_awake(&self, awake: bool) {
        if !self.guard.is_reserve {
            self.guard.readers.turns.keep_awake(awake);
        }
    }

    /// How many bytes the request in `headers` moves, to the client or from it.
    fn bytes_moved(&self, opcode: Opcode, length: usize) -> usize {
        match ReadIn::read_from_prefix(&self.headers[size_of::<InHeader>()..]) {
            Ok((read, _)) if opcode == Opcode::Read => read.size as usize,
            _ => length,
        }
    }

    /// Handles the request in `headers`, of which `rest` bytes lie in the buffer.
    fn handle(&mut self, header: &InHeader, opcode: Opcode, rest: usize) {
        let front = &self.guard.readers.front;
        self.reads.drain_before(&front.volume.engine, opcode);
        let mut buffer = self.buffer.take().expect("put back after each request");
        let is_control = ControlNode::of_id(header.nodeid).is_some();
        let is_write = opcode == Opcode::Write;
        // The bytes of a WRITE stay where they were received.
        let bytes = if is_write { &[] } else { buffer.bytes(rest) };
        let operation = if is_control { Operation::CONTROL } else { Operation::of(opcode) };
        let ticket = self.channel.watch.begin(operation, || {
            (!is_control).then(|| access_note::note(front, header, &self.headers, bytes))
        });
        if is_write {
            let reply = Reply::new(&self.channel, header.unique, Some(ticket));
            let arguments = &self.headers[size_of::<InHeader>()..];
            buffer = front.write(header, arguments, buffer, rest, reply);
        } else {
            self.handle_other(header, opcode.route(is_control), bytes, ticket);
        }
        self.buffer = Some(buffer);
    }

    fn handle_other(&mut self, header: &InHeader, route: Route, rest: &[u8], ticket: Ticket) {
        let (front, length) = (&self.guard.readers.front, header.len as usize);
        let ticket = Cell::new(Some(ticket));
        let reply = || Reply::new(&self.channel, header.unique, ticket.take());
        match route {
            Route::Refused(errno) => reply().error(errno),
            Route::Front => {
                let arguments = &self.headers[size_of::<InHeader>()..length.min(HEADER_BYTES)];
                let arguments = match rest.is_empty() {
                    true => arguments,
                    false => {
                        self.joined.clear();
                        self.joined.extend_from_slice(arguments);
                        self.joined.extend_from_slice(rest);
                        &self.joined[..]
                    }
                };
                let is_read = header.opcode == Opcode::Read.number();
                let batch = match is_read && self.leads && self.nonblocking.is_some() {
                    true => self.reads.batch(&front.volume.engine),
                    false => None,
                };
                front.answer(header, arguments, batch, &reply);
                // A request without an answer (FORGET) still has its ticket.
                if let Some(ticket) = ticket.take() {
                    self.channel.watch.answering(&ticket, 0);
                    self.channel.watch.answered(ticket, 0, 0);
                }
            }
            Route::Fuser => {
                let ticket = ticket.take();
                let passed =
                    front.relay.pass(&self.channel, header, &mut self.headers, rest, ticket);
                if let Err(errno) = passed {
                    let opcode = header.opcode;
                    log::error!("request {opcode} of {length} bytes cannot be passed on: {errno}");
                    reply().error(Errno::EIO);
                }
            }
        }
    }
}
