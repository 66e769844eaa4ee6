//! One HTTP exchange: the head of a request is read, one answer is written, the connection ends.
//!
//! Nothing that a client sends decides how much memory or time it gets: the head has a fixed place, a body is never
//! looked at, and each half has a time limit. Each step makes one call on the stream, so that a client that sends
//! without end gets no more than its turn. Knows no sockets: tests try any bytes in any pieces.

use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use strum::AsRefStr;

/// Largest request line and headers.
pub const HEAD_BYTES_MAX: usize = 8 << 10;

/// How long a request's head may take.
pub const REQUEST_TIME: Duration = Duration::from_secs(5);

/// How long the answer may take, until the client has closed its side.
pub const ANSWER_TIME: Duration = Duration::from_secs(10);

/// Bytes that a client may still send once it has its answer. Closing before they are taken would destroy the answer
/// on its way: the kernel resets a connection that has unread bytes.
const DISCARDED_BYTES_MAX: usize = 64 << 10;

/// What Prometheus expects of its text format.
const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Where a head is kept; used again for the next connection.
pub type Head = Box<[u8; HEAD_BYTES_MAX]>;

/// An empty [`Head`].
#[must_use]
pub fn new_head() -> Head {
    Box::new([0; HEAD_BYTES_MAX])
}

/// What an exchange needs next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// To be called again when the stream has bytes, or is at its end.
    Read,
    /// To be called again when the stream takes bytes.
    Write,
    /// It is over.
    Close,
    /// It is over, and what the client has not taken yet is not to be kept for it.
    Abort,
}

/// How a request is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, AsRefStr)]
#[strum(serialize_all = "title_case")]
#[expect(missing_docs, reason = "the names are HTTP's own")]
pub enum Status {
    #[strum(serialize = "OK")]
    Ok = 200,
    BadRequest = 400,
    NotFound = 404,
    MethodNotAllowed = 405,
    RequestTimeout = 408,
    RequestHeaderFieldsTooLarge = 431,
    ServiceUnavailable = 503,
}

impl Status {
    /// What is shown to a client that does not get what it asked for.
    fn text(self) -> &'static str {
        match self {
            Self::Ok => "swapfs: see /metrics\n",
            Self::BadRequest => "this is no request of HTTP/1.1\n",
            Self::NotFound => "not found: only /metrics is here\n",
            Self::MethodNotAllowed => "only GET and HEAD are answered\n",
            Self::RequestTimeout => "the request took more than 5 seconds\n",
            Self::RequestHeaderFieldsTooLarge => "the request's head is larger than 8 KiB\n",
            Self::ServiceUnavailable => "the metrics cannot be told now\n",
        }
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// The metrics.
    Metrics {
        /// With HEAD, only what would come before them.
        body: bool,
    },
    /// Where the metrics are.
    Root {
        /// As above.
        body: bool,
    },
    /// What gets an error.
    Refused(Status),
}

/// Reads a request's head; `None` while it can still become one. What follows the head changes nothing.
#[must_use]
pub fn parse_head(head: &[u8]) -> Option<Asked> {
    const BAD: Option<Asked> = Some(Asked::Refused(Status::BadRequest));
    let mut lines = head.split_inclusive(|byte| *byte == b'\n');
    let first = lines.next()?;
    let Some(first) = whole_line(first) else {
        let may_begin_a_line = |byte: &u8| matches!(byte, b'\r' | b' '..=b'~');
        return if first.iter().all(may_begin_a_line) { None } else { BAD };
    };
    let Some(asked) = request_line(first) else { return BAD };
    for line in lines {
        match whole_line(line) {
            Some([]) => return Some(asked),
            Some(line) if is_header(line) => {}
            Some(_) => return BAD,
            None => return None,
        }
    }
    None
}

/// The line without its end; `None` when that has not come yet.
fn whole_line(line: &[u8]) -> Option<&[u8]> {
    let line = line.strip_suffix(b"\n")?;
    Some(line.strip_suffix(b"\r").unwrap_or(line))
}

/// `GET /metrics HTTP/1.1`; `None` of anything that is not three such words.
fn request_line(line: &[u8]) -> Option<Asked> {
    let mut words = line.split(|byte| *byte == b' ');
    let (method, target, version) = (words.next()?, words.next()?, words.next()?);
    let is_word = |word: &[u8]| !word.is_empty() && word.iter().all(u8::is_ascii_graphic);
    let is_whole = words.next().is_none() && is_token(method) && is_word(target);
    if !is_whole || !matches!(version, b"HTTP/1.0" | b"HTTP/1.1") {
        return None;
    }
    let body = match method {
        b"GET" => true,
        b"HEAD" => false,
        _ => return Some(Asked::Refused(Status::MethodNotAllowed)),
    };
    Some(match target.split(|byte| *byte == b'?').next()? {
        b"/metrics" => Asked::Metrics { body },
        b"/" => Asked::Root { body },
        _ => Asked::Refused(Status::NotFound),
    })
}

fn is_token(word: &[u8]) -> bool {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !word.is_empty() && word.iter().all(fits)
}

/// A name, a colon, and a value of any text.
fn is_header(line: &[u8]) -> bool {
    let Some(colon) = line.iter().position(|byte| *byte == b':') else { return false };
    let fits = |byte: &u8| !byte.is_ascii_control() || *byte == b'\t';
    is_token(&line[..colon]) && line[colon..].iter().all(fits)
}

/// A connection that never blocks: its calls fail with [`ErrorKind::WouldBlock`] instead.
pub trait Stream: Read + Write {
    /// Says that nothing more is sent.
    ///
    /// # Errors
    /// When the client is gone.
    fn finish(&mut self) -> io::Result<()>;
}

/// An answer, and how much of it was sent.
#[derive(Debug)]
struct Answer {
    head: String,
    body: Arc<str>,
    sent: usize,
}

impl Answer {
    fn new(status: Status, body: Arc<str>, shown: bool) -> Answer {
        let (code, reason, length) = (status as u16, status.as_ref(), body.len());
        let more = match status {
            Status::MethodNotAllowed => "Allow: GET, HEAD\r\n",
            _ => "",
        };
        let head = format!(
            "HTTP/1.1 {code} {reason}\r\nContent-Type: {CONTENT_TYPE}\r\nContent-Length: {length}\r\n\
             {more}Connection: close\r\n\r\n"
        );
        Answer { head, body: if shown { body } else { Arc::from("") }, sent: 0 }
    }

    fn left(&self) -> (&[u8], &[u8]) {
        let (head, body) = (self.head.as_bytes(), self.body.as_bytes());
        (&head[self.sent.min(head.len())..], &body[self.sent.saturating_sub(head.len())..])
    }
}

#[derive(Debug)]
enum State {
    /// The head comes in: so many bytes are here.
    Request(usize),
    /// The answer goes out.
    Answer(Answer),
    /// The answer was sent; so many bytes came after the head.
    End(usize),
}

/// One connection's exchange.
#[derive(Debug)]
pub struct Exchange<S> {
    stream: S,
    head: Head,
    state: State,
    deadline: Instant,
}

impl<S: Stream> Exchange<S> {
    /// Begins at `now`, with a place for the request's head, whatever is in it.
    pub fn new(stream: S, head: Head, now: Instant) -> Self {
        Self { stream, head, state: State::Request(0), deadline: now + REQUEST_TIME }
    }

    /// The stream, and the head's place for another exchange.
    pub fn into_parts(self) -> (S, Head) {
        (self.stream, self.head)
    }

    /// The stream.
    pub fn stream(&self) -> &S {
        &self.stream
    }

    /// When [`step`](Self::step) is to be called at the latest.
    pub fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Whether the request was read.
    pub fn is_answered(&self) -> bool {
        !matches!(self.state, State::Request(_))
    }

    /// Goes on as far as one call on the stream leads, or two when it answers; `metrics` gives what is shown, where it
    /// can be had.
    pub fn step(&mut self, now: Instant, metrics: &mut dyn FnMut() -> Option<Arc<str>>) -> Next {
        let went = if now < self.deadline {
            self.advance(now, metrics)
        } else if self.is_answered() {
            return Next::Abort;
        } else {
            self.answer(now, refusal(Status::RequestTimeout));
            self.send()
        };
        match (went, &self.state) {
            (Ok(next), _) => next,
            (Err(error), _) if !is_for_now(&error) => Next::Abort,
            (Err(_), State::Answer(_)) => Next::Write,
            (Err(_), State::Request(_) | State::End(_)) => Next::Read,
        }
    }

    fn advance(
        &mut self, now: Instant, metrics: &mut dyn FnMut() -> Option<Arc<str>>,
    ) -> io::Result<Next> {
        let filled = match self.state {
            State::Request(filled) => filled,
            State::Answer(_) => return self.send(),
            State::End(discarded) => return self.discard(discarded),
        };
        let count = self.stream.read(&mut self.head[filled..])?;
        let filled = filled + count;
        self.state = State::Request(filled);
        let answer = match parse_head(&self.head[..filled]) {
            None if count == 0 && filled == 0 => return Ok(Next::Close),
            None if count == 0 => refusal(Status::BadRequest),
            None if filled == HEAD_BYTES_MAX => refusal(Status::RequestHeaderFieldsTooLarge),
            None => return Ok(Next::Read),
            Some(Asked::Refused(status)) => refusal(status),
            Some(Asked::Root { body }) => Answer::new(Status::Ok, Status::Ok.text().into(), body),
            Some(Asked::Metrics { body }) => match metrics() {
                Some(text) => Answer::new(Status::Ok, text, body),
                None => refusal(Status::ServiceUnavailable),
            },
        };
        self.answer(now, answer);
        self.send()
    }

    fn answer(&mut self, now: Instant, answer: Answer) {
        self.state = State::Answer(answer);
        self.deadline = now + ANSWER_TIME;
    }

    fn send(&mut self) -> io::Result<Next> {
        let State::Answer(answer) = &mut self.state else { return Ok(Next::Abort) };
        let (head, body) = answer.left();
        let count = self.stream.write_vectored(&[IoSlice::new(head), IoSlice::new(body)])?;
        if count == 0 {
            return Err(ErrorKind::WriteZero.into());
        }
        answer.sent += count;
        if answer.left() != (&[], &[]) {
            return Ok(Next::Write);
        }
        self.stream.finish()?;
        self.state = State::End(0);
        Ok(Next::Read)
    }

    /// Waits for the client to close its side, so that it gets the whole answer.
    fn discard(&mut self, discarded: usize) -> io::Result<Next> {
        let count = self.stream.read(&mut self.head[..])?;
        self.state = State::End(discarded + count);
        Ok(match count {
            0 => Next::Close,
            _ if discarded + count > DISCARDED_BYTES_MAX => Next::Abort,
            _ => Next::Read,
        })
    }
}

fn refusal(status: Status) -> Answer {
    Answer::new(status, status.text().into(), true)
}

fn is_for_now(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart() {
        let longest = Status::RequestHeaderFieldsTooLarge.as_ref();
        assert_eq!((Status::Ok.as_ref(), longest), ("OK", "Request Header Fields Too Large"));
        let metrics = |body| Some(Asked::Metrics { body });
        let refused = |status| Some(Asked::Refused(status));
        let bad = refused(Status::BadRequest);
        for (head, found) in [
            ("GET /metrics HTTP/1.1\r\n\r\n", metrics(true)),
            ("GET /metrics?x=1 HTTP/1.0\nHost: x\n\nbody", metrics(true)),
            ("HEAD /metrics HTTP/1.1\r\nA: \u{e9}\tb:c\r\nB:\r\n\r\n", metrics(false)),
            ("GET / HTTP/1.1\r\n\r\n", Some(Asked::Root { body: true })),
            ("GET /metrics/ HTTP/1.1\r\n\r\n", refused(Status::NotFound)),
            ("GET http://x/metrics HTTP/1.1\r\n\r\n", refused(Status::NotFound)),
            ("POST /metrics HTTP/1.1\r\n\r\n", refused(Status::MethodNotAllowed)),
            ("get /metrics HTTP/1.1\r\n\r\n", refused(Status::MethodNotAllowed)),
            ("GET /metrics HTTP/1.1\r\nA: b\r\n", None),
            ("GET /metr", None),
            ("", None),
            ("GET /metrics\r\n", bad),
            ("GET  /metrics HTTP/1.1\r\n", bad),
            ("GET /metrics HTTP/1.1 \r\n", bad),
            ("GET /\u{e9} HTTP/1.1\r\n", bad),
            ("\r\nGET /metrics HTTP/1.1\r\n", bad),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", bad),
            ("\u{16}\u{3}\u{1}", bad),
            ("GET /metrics HTTP/1.1\r\nno colon\r\n", bad),
            ("GET /metrics HTTP/1.1\r\nA: b\r\n folded\r\n", bad),
            ("GET /metrics HTTP/1.1\r\nA: \0\r\n", bad),
            ("GET /metrics HTTP/1.1\r\n: b\r\n", bad),
        ] {
            assert_eq!(parse_head(head.as_bytes()), found, "{head:?}");
        }
    }
}
