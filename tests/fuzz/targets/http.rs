//! One connection to the listener of the metrics, with any bytes in any pieces, at any pace, and taken as slowly.
//!
//! An input is a script, whose length its first byte says, and what the client sends; the last quarter of that as often
//! more as the second byte says. Each byte of the script is one call on the stream, or time that passes.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use swapfs::metrics::http::{
    ANSWER_TIME, Asked, Exchange, HEAD_BYTES_MAX, Next, REQUEST_TIME, Status, Stream, new_head,
    parse_head,
};

const METRICS: &str = "# HELP swapfs_up X.\n# TYPE swapfs_up gauge\nswapfs_up 1\n";

/// More steps take no exchange to its end: those of a client that sends byte by byte.
const STEPS_MAX: usize = 100_000;

/// What the client sees, and what it does.
#[derive(Default)]
struct Client {
    script: VecDeque<u8>,
    sends: VecDeque<u8>,
    /// Bytes that the listener took, and those that it sent.
    taken: usize,
    got: Vec<u8>,
    finished: bool,
    /// A call has failed for good.
    failed: bool,
}

impl Client {
    /// How many bytes the next call moves.
    fn count(&mut self) -> io::Result<usize> {
        match self.script.pop_front() {
            None => Ok(usize::MAX),
            Some(byte @ 1..128) => Ok(byte.into()),
            Some(128..192) => Err(ErrorKind::WouldBlock.into()),
            Some(192..224) => Err(ErrorKind::Interrupted.into()),
            Some(224..240) => Ok(usize::MAX),
            Some(0 | 240..) => {
                self.failed = true;
                Err(ErrorKind::ConnectionReset.into())
            }
        }
    }
}

struct End(Rc<RefCell<Client>>);

impl Read for End {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut client = self.0.borrow_mut();
        assert!(!buffer.is_empty(), "a read of nothing looks like the end");
        let count = client.count()?.min(buffer.len()).min(client.sends.len());
        for (place, byte) in buffer.iter_mut().zip(client.sends.drain(..count)) {
            *place = byte;
        }
        client.taken += count;
        Ok(count)
    }
}

impl Write for End {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut client = self.0.borrow_mut();
        assert!(!client.finished, "written after the end");
        let count = client.count()?.min(bytes.len());
        client.got.extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for End {
    fn finish(&mut self) -> io::Result<()> {
        self.0.borrow_mut().finished = true;
        Ok(())
    }
}

/// Cutting a request into pieces, or sending more after it, changes nothing.
fn pieces_change_nothing(sent: &[u8]) {
    let sent = &sent[..sent.len().min(HEAD_BYTES_MAX)];
    let whole = parse_head(sent);
    for count in (0..sent.len()).filter(|count| *count < 64 || count % 61 == 0) {
        let part = parse_head(&sent[..count]);
        assert!(part.is_none() || part == whole, "{part:?} became {whole:?}");
    }
}

/// What a client gets that sends these bytes in time and then closes its side.
fn expected(sent: &[u8]) -> Option<(Status, bool)> {
    let head = &sent[..sent.len().min(HEAD_BYTES_MAX)];
    Some(match parse_head(head) {
        Some(Asked::Metrics { body } | Asked::Root { body }) => (Status::Ok, body),
        Some(Asked::Refused(status)) => (status, true),
        None if head.is_empty() => return None,
        None if head.len() == HEAD_BYTES_MAX => (Status::RequestHeaderFieldsTooLarge, true),
        None => (Status::BadRequest, true),
    })
}

/// One answer with the length that it says; `None` where nothing has come.
fn is_an_answer(got: &[u8], body: bool) -> Option<u16> {
    let text = std::str::from_utf8(got).unwrap();
    let Some((head, shown)) = text.split_once("\r\n\r\n") else {
        assert!(text.is_empty(), "{text}");
        return None;
    };
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().strip_prefix("HTTP/1.1 ").unwrap();
    let header = |name: &str| lines.clone().find_map(|line| line.strip_prefix(name)).unwrap();
    assert_eq!(header("Connection: "), "close");
    let length: usize = header("Content-Length: ").parse().unwrap();
    assert_eq!(shown.len(), if body { length } else { 0 });
    Some(status[..3].parse().unwrap())
}

/// Runs an exchange to its end. Returns whether it was aborted.
fn run(client: &Rc<RefCell<Client>>, start: Instant) -> bool {
    let (mut now, mut made) = (start, 0);
    let mut exchange = Exchange::new(End(client.clone()), new_head(), start);
    for _ in 0..STEPS_MAX {
        assert!(exchange.deadline() <= start + REQUEST_TIME + ANSWER_TIME, "it has its time");
        let passes = client.borrow().script.front().is_some_and(|byte| *byte % 7 == 6);
        if passes {
            let byte = client.borrow_mut().script.pop_front().unwrap();
            now = exchange.deadline().min(now + Duration::from_millis(u64::from(byte) * 20));
        }
        let mut metrics = || {
            made += 1;
            Some(Arc::from(METRICS))
        };
        let next = exchange.step(now, &mut metrics);
        assert!(made <= 1, "the metrics are made once");
        match next {
            Next::Read => assert!(!exchange.is_answered() || client.borrow().finished),
            Next::Write => assert!(exchange.is_answered() && !client.borrow().finished),
            Next::Close => return false,
            Next::Abort => return true,
        }
    }
    panic!("it goes on for ever");
}

/// Whatever a client does, it gets one answer or none, in bounded time, and of bounded size.
pub(crate) fn http(input: &[u8]) {
    let [length, again, rest @ ..] = input else { return };
    let (script, once) = rest.split_at(usize::from(*length).min(rest.len()));
    let last = &once[once.len() - once.len() / 4..];
    let sent = [once, &last.repeat((*again).into())].concat();
    pieces_change_nothing(&sent);
    let client = Rc::new(RefCell::new(Client {
        script: script.iter().copied().collect(),
        sends: sent.iter().copied().collect(),
        ..Client::default()
    }));
    let aborted = run(&client, Instant::now());
    let client = client.borrow();
    assert!(client.taken <= 2 * HEAD_BYTES_MAX + (64 << 10), "{} bytes taken", client.taken);
    if !client.finished {
        // Cut off in its midst, or nothing was asked.
        let begins = b"HTTP/1.1 ";
        let count = begins.len().min(client.got.len());
        assert_eq!(client.got[..count], begins[..count]);
        assert!(aborted || client.got.is_empty());
        return;
    }
    let expected = expected(&sent);
    let body = expected.is_none_or(|(_, body)| body);
    // Too late there is a body, whatever was about to be asked.
    let late = client.got.starts_with(b"HTTP/1.1 408 ");
    let status = is_an_answer(&client.got, body || late);
    assert!(late || status == expected.map(|(status, _)| status as u16), "{status:?}");
    assert!(aborted || !client.failed);
}
