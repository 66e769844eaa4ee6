//! Whoever can connect to `metrics_listen` can send anything, and need not take what it gets: nobody else notices.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt,
};
use rustix::process::{Pid, Rlimit, prlimit};

use crate::place::Mount;
use crate::prometheus::parse;
use crate::support::{pattern, same, wait_until};

/// Connections that the listener has at a time.
const CONNECTIONS: usize = 32;

/// "a moment".
const MOMENT: Duration = Duration::from_secs(3);

/// No answer takes longer.
const PATIENCE: Duration = Duration::from_secs(20);

const WHOLE: &[u8] = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n";

fn listening() -> (Mount, SocketAddr) {
    let mount = Mount::new("pool_size=16m,metrics_listen=0");
    // A thread of its own writes the log.
    wait_until("the log", || mount.log().contains("metrics at"));
    let log = mount.log();
    let address = log.split_once("metrics at http://").unwrap().1.split_once("/metrics").unwrap().0;
    let address = address.parse().unwrap();
    (mount, address)
}

fn connected(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// What comes until the end; a reset is one, too.
fn rest(stream: &mut TcpStream) -> String {
    let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
    loop {
        match stream.read(&mut part) {
            Ok(0) => break,
            Ok(count) => bytes.extend_from_slice(&part[..count]),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => break,
            Err(error) => panic!("no end: {error}"),
        }
    }
    String::from_utf8(bytes).unwrap()
}

/// Sends the bytes and takes the answer.
fn sent(address: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = connected(address);
    // Refused while more was on its way.
    let _ = stream.write_all(bytes);
    rest(&mut stream)
}

/// The metrics, whole; `None` when the connection was given to somebody else.
fn scrape(address: SocketAddr) -> Option<()> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(WHOLE).ok()?;
    let answer = rest(&mut stream);
    let (head, body) = answer.split_once("\r\n\r\n")?;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let length = head.split_once("Content-Length: ").unwrap().1;
    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
    (body.len() == length).then(|| drop(parse(body)))
}

/// Scrapes as often as it takes, for how long that is.
fn time_to_scrape(address: SocketAddr) -> Duration {
    let start = Instant::now();
    while scrape(address).is_none() {
        assert!(start.elapsed() < PATIENCE, "shut out");
        std::thread::sleep(Duration::from_millis(10));
    }
    start.elapsed()
}

/// Writes to the mount and reads what it wrote.
fn works(mount: &Mount) {
    let bytes = pattern(11, 3_000_000);
    fs::write(mount.at("works"), &bytes).unwrap();
    same(&fs::read(mount.at("works")).unwrap(), &bytes);
}

/// Threads and descriptors of the daemon.
fn taken(mount: &Mount) -> (usize, usize) {
    let entries = |what| fs::read_dir(format!("/proc/{}/{what}", mount.daemon())).unwrap();
    // The kernel's own for io_uring come and go.
    let is_own = |comm: String| !comm.starts_with("iou-");
    let threads = entries("task").filter(|entry| {
        let comm = fs::read_to_string(entry.as_ref().unwrap().path().join("comm"));
        comm.is_ok_and(is_own)
    });
    (threads.count(), entries("fd").count())
}

/// The same daemon serves, and has nothing left of it all.
fn is_unharmed(mount: &Mount, address: SocketAddr, before: (usize, usize)) {
    works(mount);
    assert!(time_to_scrape(address) < MOMENT);
    // Files stay open for a while after their last close: a few of those are no harm.
    wait_until("the connections to go", || {
        let (threads, files) = taken(mount);
        threads <= before.0 && files <= before.1 + 4
    });
    assert!(!mount.log().contains("panicked"), "{}", mount.log());
}

fn settled(mount: &Mount, address: SocketAddr) -> (usize, usize) {
    works(mount);
    assert!(scrape(address).is_some());
    taken(mount)
}

/// The first of these killed the daemon, the second its metrics.
#[test]
fn whatever_is_asked_gets_an_answer_and_no_more() {
    let (mount, address) = listening();
    let before = settled(&mount, address);
    let post = |more: &str| format!("POST /metrics HTTP/1.1\r\nHost: x\r\n{more}\r\n\r\n");
    let get = |more: &str| format!("GET /metrics HTTP/1.1\r\nHost: x\r\n{more}\r\n\r\n");
    let chunked = "Transfer-Encoding: chunked\r\n\r\nffffffffffffffff\r\n";
    for (bytes, status) in [
        (post("Content-Length: 99999999999999"), "405"),
        (post("Content-Length: 18446744073709551615"), "405"),
        (post("Content-Length: -1"), "405"),
        (post("Content-Length: 5\r\n\r\nhello"), "405"),
        (post(chunked), "405"),
        (post("Expect: 100-continue\r\nContent-Length: 4294967296"), "405"),
        (get("Content-Length: 99999999999999"), "200"),
        (get("Content-Length: 18446744073709551615\r\nContent-Length: 0"), "200"),
        (get(chunked), "200"),
        (get("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x"), "200"),
        (format!("{0}{0}{0}", get("A: b")), "200"),
        ("GET /metrics\r\n".to_owned(), "400"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\u{4}\0\0\0\0\0".to_owned(), "400"),
        ("\u{16}\u{3}\u{1}\0\u{1}\u{1}".to_owned(), "400"),
        ("\0\0\0\0\0\0\0\0".to_owned(), "400"),
        ("GET /\0 HTTP/1.1\r\n\r\n".to_owned(), "400"),
        (get("A: \0"), "400"),
        (get("no header"), "400"),
        (format!("GET /{} HTTP/1.1\r\n\r\n", "../".repeat(2000)), "404"),
        (format!("GET /{}", "a".repeat(10_000)), "431"),
        (get(&"A: b\r\n".repeat(2000)), "431"),
        (get(&format!("A: {}", "b".repeat(9000))), "431"),
    ] {
        let answer = sent(address, bytes.as_bytes());
        let shown = &bytes[..bytes.len().min(100)];
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{shown:?}: {answer}");
        assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{shown:?}: one answer");
    }
    for bytes in [&b"GET /\xFF\xFE HTTP/1.1\r\n\r\n"[..], b"\xC0\x80 / HTTP/1.1\r\n\r\n"] {
        assert!(sent(address, bytes).starts_with("HTTP/1.1 400 "));
    }
    assert!(sent(address, b"GET / HTTP/1.1\r\nA: \xFF\xFE\r\n\r\n").starts_with("HTTP/1.1 200 "));
    is_unharmed(&mount, address, before);
}

/// A client may close its side, or go, whenever it likes.
#[test]
fn clients_come_in_pieces_and_go_in_between() {
    let (mount, address) = listening();
    let before = settled(&mount, address);
    for count in 0..WHOLE.len() {
        let mut gone = connected(address);
        gone.write_all(&WHOLE[..count]).unwrap();
        if count % 2 == 0 {
            gone.shutdown(Shutdown::Write).unwrap();
            let answer = rest(&mut gone);
            assert!(answer.is_empty() == (count == 0), "{count}: {answer}");
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{answer}");
        }
    }
    let mut closed = connected(address);
    closed.write_all(WHOLE).unwrap();
    closed.shutdown(Shutdown::Write).unwrap();
    assert!(rest(&mut closed).starts_with("HTTP/1.1 200 "));
    let mut slow = connected(address);
    for byte in WHOLE {
        slow.write_all(&[*byte]).unwrap();
        std::thread::sleep(Duration::from_millis(1));
    }
    assert!(rest(&mut slow).starts_with("HTTP/1.1 200 "));
    // Headers without end: they are cut off, not collected.
    let mut endless = connected(address);
    endless.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let start = Instant::now();
    while endless.write_all(b"A: b\r\n").is_ok() {
        assert!(start.elapsed() < PATIENCE, "still taken");
    }
    is_unharmed(&mount, address, before);
}

/// Whoever takes longer than 5 seconds for a request is told so.
#[test]
fn a_request_has_its_time() {
    let (mount, address) = listening();
    let before = settled(&mount, address);
    let start = Instant::now();
    let mut slow = connected(address);
    slow.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let answer = rest(&mut slow);
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    let took = start.elapsed().as_secs_f64();
    assert!((4.9..8.0).contains(&took), "{took} s");
    is_unharmed(&mount, address, before);
}

fn allow_files(count: u64) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    assert!(hard >= count, "{hard} descriptors are allowed, {count} needed");
    setrlimit(Resource::RLIMIT_NOFILE, soft.max(count), hard).unwrap();
}

/// What the daemon has at most while `attack` goes on, and the longest that a scrape took meanwhile.
fn meanwhile(
    mount: &Mount, address: SocketAddr, attack: impl FnOnce() + Send,
) -> ((usize, usize), Duration) {
    let ended = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let attacking = scope.spawn(|| {
            attack();
            ended.store(true, Ordering::Relaxed);
        });
        let (mut most, mut longest, mut scrapes) = ((0, 0), Duration::ZERO, 0);
        while !ended.load(Ordering::Relaxed) || scrapes < 3 {
            longest = longest.max(time_to_scrape(address));
            scrapes += 1;
            works(mount);
            let now = taken(mount);
            most = (most.0.max(now.0), most.1.max(now.1));
            assert!(!attacking.is_finished() || ended.load(Ordering::Relaxed), "the attack failed");
        }
        eprintln!("{scrapes} scrapes, the longest {longest:?}; {most:?} threads and descriptors");
        (most, longest)
    })
}

/// 3,000 of these were 3,025 threads, 6,032 descriptors and 50 MiB.
#[test]
fn half_requests_shut_nobody_out() {
    allow_files(4000);
    let (mount, address) = listening();
    let before = settled(&mount, address);
    let (most, longest) = meanwhile(&mount, address, || {
        let half = |number: usize| {
            let mut stream = connected(address);
            // A few say nothing at all.
            let _ = stream.write_all(&WHOLE[..number % WHOLE.len()]);
            stream
        };
        let held: Vec<TcpStream> = (0..3000).map(half).collect();
        // And on, as fast as they come.
        let (start, mut count) = (Instant::now(), 0);
        while start.elapsed() < MOMENT {
            drop(half(count));
            count += 1;
        }
        eprintln!("{} half requests, then {count}", held.len());
    });
    assert!(most.0 <= before.0, "{most:?} threads and descriptors of {before:?}");
    assert!(most.1 <= before.1 + CONNECTIONS + 8, "{most:?} threads and descriptors of {before:?}");
    assert!(longest < MOMENT, "a scrape took {longest:?}");
    is_unharmed(&mount, address, before);
}

/// One with as little room for an answer as the kernel allows.
fn narrow(address: SocketAddr) -> TcpStream {
    let SocketAddr::V4(address) = address else { panic!("{address}") };
    let end = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    setsockopt(&end, sockopt::RcvBuf, &1).unwrap();
    connect(end.as_raw_fd(), &SockaddrIn::from(address)).unwrap();
    end.into()
}

#[test]
fn slow_readers_shut_nobody_out() {
    let (mount, address) = listening();
    let before = settled(&mount, address);
    let (most, longest) = meanwhile(&mount, address, || {
        let slow = |_| {
            let mut stream = narrow(address);
            let _ = stream.write_all(WHOLE);
            stream
        };
        let mut held: Vec<TcpStream> = (0..3 * CONNECTIONS).map(slow).collect();
        let start = Instant::now();
        while start.elapsed() < MOMENT {
            held.iter_mut().for_each(|stream| drop(stream.read(&mut [0])));
            std::thread::sleep(Duration::from_millis(100));
        }
    });
    assert!(most.0 <= before.0, "{most:?} threads and descriptors of {before:?}");
    assert!(most.1 <= before.1 + CONNECTIONS + 8, "{most:?} threads and descriptors of {before:?}");
    assert!(longest < MOMENT, "a scrape took {longest:?}");
    is_unharmed(&mount, address, before);
}

/// Without a descriptor for one more connection the listener waits, and does not try without end.
#[test]
fn a_daemon_without_descriptors_does_not_spin() {
    let (mount, address) = listening();
    let before = settled(&mount, address);
    let daemon = Pid::from_raw(mount.daemon().as_raw());
    let files = rustix::process::Resource::Nofile;
    let maximum = rustix::process::getrlimit(files).maximum;
    let old = prlimit(daemon, files, Rlimit { current: Some(3), maximum }).unwrap();
    let waiting: Vec<TcpStream> = (0..10).map(|_| connected(address)).collect();
    let start = mount.processor_ticks();
    std::thread::sleep(Duration::from_secs(2));
    let spent = mount.processor_ticks() - start;
    prlimit(daemon, files, old).unwrap();
    assert!(spent < 50, "{spent} hundredths of 2 s");
    drop(waiting);
    is_unharmed(&mount, address, before);
    let said = format!("metrics_listen {address}: Too many open files");
    assert_eq!(mount.log().matches(&said).count(), 1, "{}", mount.log());
}
