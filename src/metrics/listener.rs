//! Metrics over HTTP, on one thread that nothing else needs. It never waits for a client, and what all clients
//! together can have of it is fixed: connections, memory, time, and how often the metrics are put together.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{listen, sockopt};
use smallvec::SmallVec;

use super::http::{self, Exchange, Head, Next, Stream};
use crate::panics::outlive;
use crate::sys_process::reason;

/// Connections at a time. One more takes the place of the oldest.
const CONNECTIONS_MAX: usize = 32;

/// Connections that wait in the kernel: a burst of them keeps nobody from getting in.
const BACKLOG: i32 = 1024;

/// Connections accepted in one turn, so that those that are here have theirs.
const ACCEPTED_MAX: usize = 16;

/// How long nothing is accepted when there is no descriptor for it.
const PAUSE: Duration = Duration::from_millis(100);

/// How often that is logged.
const COMPLAINT_PERIOD: Duration = Duration::from_secs(60);

/// Requests within this time are shown the same: however many come, the engine's lock is asked for seldom.
const SHARED: Duration = Duration::from_millis(50);

/// The largest answer. With the names of 64 directories there are about 100 KiB.
const ANSWER_BYTES_MAX: usize = 1 << 20;

/// How long the end waits for the thread: it may be reading a swap folder that hangs.
const END_TIMEOUT: Duration = Duration::from_secs(1);

/// Answers GET /metrics until it is dropped.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    stop: Arc<OwnedFd>,
    /// Its other end is dropped with the thread.
    ended: Receiver<()>,
}

impl Listener {
    /// Listens at `address`; `text` makes what is shown, on a thread of its own.
    ///
    /// # Errors
    /// When the address cannot be had, or no thread.
    pub fn start(
        address: SocketAddr, text: impl Fn() -> String + Send + 'static,
    ) -> io::Result<Listener> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        listen(&listener, BACKLOG)?;
        let address = listener.local_addr()?;
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let server = Server {
            listener,
            address,
            stop: stop.clone(),
            text,
            connections: Vec::with_capacity(CONNECTIONS_MAX),
            heads: Vec::with_capacity(CONNECTIONS_MAX),
            shown: None,
            paused_until: None,
            complained: None,
        };
        let (end, ended) = sync_channel(1);
        std::thread::Builder::new().name("swapfs-metrics".to_owned()).spawn(move || {
            let _end = end;
            // Ends first, and its socket with it.
            let mut server = server;
            outlive(|| server.serve());
        })?;
        Ok(Listener { address, stop, ended })
    }

    /// Where it listens, with the port that was chosen where none was asked for.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        let _ = self.ended.recv_timeout(END_TIMEOUT);
    }
}

impl Stream for TcpStream {
    fn finish(&mut self) -> io::Result<()> {
        self.shutdown(Shutdown::Write)
    }
}

struct Connection {
    exchange: Exchange<TcpStream>,
    peer: IpAddr,
    next: Next,
}

/// What [`Server::wait`] has found.
#[derive(Default)]
struct Ready {
    stop: bool,
    accept: bool,
    connections: SmallVec<[bool; CONNECTIONS_MAX]>,
}

struct Server<F> {
    listener: TcpListener,
    address: SocketAddr,
    stop: Arc<OwnedFd>,
    text: F,
    /// The oldest first.
    connections: Vec<Connection>,
    /// Places for the heads of as many more.
    heads: Vec<Head>,
    /// What was shown last, and when it was made; `None` when it could not be.
    shown: Option<(Instant, Option<Arc<str>>)>,
    paused_until: Option<Instant>,
    complained: Option<Instant>,
}

impl<F: Fn() -> String> Server<F> {
    /// Serves until it is told to stop.
    fn serve(&mut self) {
        // After a panic, from the beginning.
        self.connections.clear();
        self.heads.clear();
        self.heads.resize_with(CONNECTIONS_MAX, http::new_head);
        loop {
            let ready = self.wait();
            if ready.stop {
                return;
            }
            let now = Instant::now();
            self.go_on(&ready.connections, now);
            if ready.accept {
                self.accept(now);
            }
        }
    }

    /// Waits until somebody can go on, or has taken too long.
    fn wait(&mut self) -> Ready {
        let now = Instant::now();
        self.paused_until = self.paused_until.filter(|until| *until > now);
        let deadlines = self.connections.iter().map(|one| one.exchange.deadline());
        let deadline = deadlines.chain(self.paused_until).min();
        let accepts = match self.paused_until {
            None => PollFlags::POLLIN,
            Some(_) => PollFlags::empty(),
        };
        let mut polled: SmallVec<[PollFd<'_>; CONNECTIONS_MAX + 2]> = SmallVec::new();
        polled.push(PollFd::new(self.stop.as_fd(), PollFlags::POLLIN));
        polled.push(PollFd::new(self.listener.as_fd(), accepts));
        polled.extend(self.connections.iter().map(|one| {
            let flags = match one.next {
                Next::Write => PollFlags::POLLOUT,
                Next::Read | Next::Close | Next::Abort => PollFlags::POLLIN,
            };
            PollFd::new(one.exchange.stream().as_fd(), flags)
        }));
        match poll(&mut polled, timeout(deadline, now)) {
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => return Ready::default(),
            Err(_) => {
                std::thread::sleep(PAUSE);
                return Ready::default();
            }
        }
        let mut ready = polled.iter().map(|one| one.any().unwrap_or(true));
        Ready {
            stop: ready.next().unwrap_or(true),
            accept: ready.next().unwrap_or(false),
            connections: ready.collect(),
        }
    }

    /// A step for those that can go on, and for those whose time is over.
    fn go_on(&mut self, ready: &[bool], now: Instant) {
        let mut at = 0;
        for number in 0..self.connections.len() {
            let ready = ready.get(number).copied().unwrap_or(false);
            let is_over = self.connections[at].exchange.deadline() <= now;
            if !(ready || is_over) || self.step(at, now) {
                at += 1;
            }
        }
    }

    /// Lets one go on; false when it is gone.
    fn step(&mut self, at: usize, now: Instant) -> bool {
        let (text, shown) = (&self.text, &mut self.shown);
        let connection = &mut self.connections[at];
        connection.next = connection.exchange.step(now, &mut || current(text, shown));
        match connection.next {
            Next::Read | Next::Write => return true,
            Next::Close => self.remove(at, false),
            Next::Abort => self.remove(at, true),
        }
        false
    }

    fn remove(&mut self, at: usize, abort: bool) {
        let (stream, head) = self.connections.remove(at).exchange.into_parts();
        if abort {
            // What it has not taken would stay in the kernel's memory.
            let _ = sockopt::set_socket_linger(&stream, Some(Duration::ZERO));
        }
        self.heads.push(head);
    }

    fn accept(&mut self, now: Instant) {
        for _ in 0..ACCEPTED_MAX {
            match self.listener.accept() {
                Ok((stream, address)) => self.admit(stream, peer(address.ip()), now),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // It went away before it was its turn.
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => {
                    self.paused_until = Some(now + PAUSE);
                    if self.complained.is_none_or(|last| now - last >= COMPLAINT_PERIOD) {
                        self.complained = Some(now);
                        log::warn!("metrics_listen {}: {}", self.address, reason(&error));
                    }
                    return;
                }
            }
        }
    }

    /// Begins an exchange; its request is often here already.
    fn admit(&mut self, stream: TcpStream, peer: IpAddr, now: Instant) {
        if stream.set_nonblocking(true).is_err() {
            return;
        }
        // The kernel, too, keeps an answer no longer for a client that does not take it.
        let limit = http::ANSWER_TIME.as_millis() as u32;
        let _ = sockopt::set_tcp_user_timeout(&stream, limit);
        if self.heads.is_empty() {
            self.remove(self.victim(), true);
        }
        let Some(head) = self.heads.pop() else { return };
        let exchange = Exchange::new(stream, head, now);
        self.connections.push(Connection { exchange, peer, next: Next::Read });
        self.step(self.connections.len() - 1, now);
    }

    /// Who gives its place to somebody else: of those from the address that has most places, the oldest that has not
    /// asked yet, or the oldest that does not take its answer where such have more than half of the places.
    fn victim(&self) -> usize {
        let all = || self.connections.iter().enumerate();
        let places = |peer| all().filter(|(_, one)| one.peer == peer).count();
        let most = all().map(|(_, one)| places(one.peer)).max().unwrap_or(0);
        let slow = all().filter(|(_, one)| one.exchange.is_answered()).count();
        let slow = slow > CONNECTIONS_MAX / 2;
        let from = || all().filter(|(_, one)| places(one.peer) == most);
        let found = from().find(|(_, one)| one.exchange.is_answered() == slow);
        found.or_else(|| from().next()).map_or(0, |(at, _)| at)
    }
}

/// The metrics of this moment, or of the last one; `None` when they cannot be made.
fn current(
    text: &impl Fn() -> String, shown: &mut Option<(Instant, Option<Arc<str>>)>,
) -> Option<Arc<str>> {
    if let Some((made, text)) = shown
        && made.elapsed() < SHARED
    {
        return text.clone();
    }
    let made = catch_unwind(AssertUnwindSafe(text)).ok();
    let made = made.filter(|text| text.len() <= ANSWER_BYTES_MAX).map(Arc::from);
    *shown = Some((Instant::now(), made.clone()));
    made
}

/// What counts as one client: an address, or a network of one host's.
fn peer(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        canonical => canonical,
    }
}

/// Until the deadline, rounded up.
fn timeout(deadline: Option<Instant>, now: Instant) -> PollTimeout {
    let Some(deadline) = deadline else { return PollTimeout::NONE };
    let left = deadline.saturating_duration_since(now) + Duration::from_millis(1);
    PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn local() -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], 0))
    }

    fn ask(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "{request} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn only_metrics_are_shown_and_only_to_readers() {
        let listener = Listener::start(local(), || "swapfs_up 1\n".to_owned()).unwrap();
        let address = listener.address();
        let shown = ask(address, "GET /metrics");
        assert!(shown.starts_with("HTTP/1.1 200 OK\r\n"), "{shown}");
        assert!(shown.contains("text/plain; version=0.0.4"), "{shown}");
        assert!(shown.contains("\r\nConnection: close\r\n"), "{shown}");
        assert!(shown.ends_with("\r\n\r\nswapfs_up 1\n"), "{shown}");
        let head = ask(address, "HEAD /metrics");
        assert_eq!(head, shown.strip_suffix("swapfs_up 1\n").unwrap());
        assert!(ask(address, "GET /").ends_with("see /metrics\n"));
        assert!(ask(address, "GET /other").starts_with("HTTP/1.1 404"));
        let refused = ask(address, "DELETE /metrics");
        assert!(
            refused.starts_with("HTTP/1.1 405") && refused.contains("\r\nAllow: GET, HEAD\r\n")
        );
        let error = Listener::start(address, String::new).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse, "{error}");
        drop(listener);
        assert!(TcpStream::connect(address).is_err(), "it goes on listening");
    }

    #[test]
    fn requests_at_one_time_share_an_answer() {
        let made = Arc::new(AtomicUsize::new(0));
        let counted = made.clone();
        let text = move || format!("{}\n", counted.fetch_add(1, Ordering::Relaxed));
        let listener = Listener::start(local(), text).unwrap();
        let start = Instant::now();
        for _ in 0..100 {
            assert!(ask(listener.address(), "GET /metrics").starts_with("HTTP/1.1 200"));
        }
        let most = start.elapsed().as_millis() / SHARED.as_millis() + 1;
        let made = made.load(Ordering::Relaxed) as u128;
        assert!(0 < made && made <= most, "{made} answers, {most} expected");
    }

    #[test]
    fn a_text_that_panics_or_is_too_large_is_an_error_and_no_more() {
        let panics = Listener::start(local(), || panic!("on purpose")).unwrap();
        let large = Listener::start(local(), || "x".repeat(ANSWER_BYTES_MAX + 1)).unwrap();
        for listener in [panics, large] {
            for _ in 0..2 {
                assert!(ask(listener.address(), "GET /metrics").starts_with("HTTP/1.1 503"));
            }
        }
    }

    #[test]
    fn an_end_does_not_wait_for_a_text_that_hangs() {
        let (_keep, never) = std::sync::mpsc::channel::<()>();
        let hang = move || {
            let _ = never.recv();
            String::new()
        };
        let listener = Listener::start(local(), hang).unwrap();
        let mut stream = TcpStream::connect(listener.address()).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").unwrap();
        std::thread::sleep(Duration::from_millis(50));
        let start = Instant::now();
        drop(listener);
        assert!(start.elapsed() < 5 * END_TIMEOUT);
    }

    #[test]
    fn the_newest_connections_stay() {
        let listener = Listener::start(local(), || "swapfs_up 1\n".to_owned()).unwrap();
        let mut all: Vec<TcpStream> = (0..CONNECTIONS_MAX + 8)
            .map(|_| {
                let mut stream = TcpStream::connect(listener.address()).unwrap();
                stream.write_all(b"GET /metr").unwrap();
                stream
            })
            .collect();
        assert!(ask(listener.address(), "GET /metrics").starts_with("HTTP/1.1 200"));
        let newest = all.last_mut().unwrap();
        newest.write_all(b"ics HTTP/1.1\r\n\r\n").unwrap();
        let mut text = String::new();
        newest.read_to_string(&mut text).unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(all[0].read(&mut [0]).is_err(), "the oldest is reset");
    }

    #[test]
    fn a_client_is_its_address_or_its_network() {
        let of = |text: &str| peer(text.parse().unwrap());
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_eq!(of("2001:db8::1"), of("2001:db8::2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
