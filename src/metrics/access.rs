//! The access log: a line for each answered request, for as long as somebody reads.
//!
//! While nobody does, a request costs one relaxed load. Each reader has a buffer of its own; when it is full,
//! lines are left out and their number is told, so that no request ever waits for a reader. A read that finds
//! nothing is parked; it is answered when lines come, or with an empty comment after a second, because the
//! kernel cannot take a waiting read back.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use nix::errno::Errno;
use parking_lot::{Condvar, Mutex};

use super::requests::Note;
use crate::panics::outlive;

/// Readers at a time.
pub const READERS_MAX: usize = 8;

/// Bytes that may wait for one reader.
const BUFFER_BYTES_MAX: usize = 1 << 20;

/// How often lines that came are handed to a parked read.
const TICK: Duration = Duration::from_millis(50);

/// How long a read may wait for lines.
const PATIENCE: Duration = Duration::from_secs(1);

/// What a read gets when nothing has happened.
const NOTHING: &[u8] = b"#\n";

/// Receives the bytes of one read.
pub type LineReply = Box<dyn FnOnce(&[u8]) + Send>;

struct Parked {
    since: Instant,
    size: usize,
    reply: LineReply,
}

#[derive(Default)]
struct Reader {
    buffer: VecDeque<u8>,
    /// Lines left out since the last that was not.
    dropped: u64,
    parked: VecDeque<Parked>,
}

#[derive(Default)]
struct Readers {
    all: BTreeMap<u64, Reader>,
    next: u64,
    /// The thread that answers parked reads is there.
    served: bool,
}

/// The lines, and who reads them.
#[derive(Default)]
pub struct AccessLog {
    open: AtomicUsize,
    dropped: AtomicU64,
    readers: Mutex<Readers>,
    closed: Condvar,
}

impl std::fmt::Debug for AccessLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AccessLog").field("open", &self.open).finish_non_exhaustive()
    }
}

impl AccessLog {
    /// Whether anybody reads.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.open.load(Relaxed) != 0
    }

    /// How many read.
    #[must_use]
    pub fn readers(&self) -> usize {
        self.open.load(Relaxed)
    }

    /// Lines that were left out because a reader was too slow.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Relaxed)
    }

    /// A new reader; `None` when there are too many. To be ended with [`AccessLog::close`].
    pub fn open(self: &Arc<Self>) -> Option<u64> {
        let mut readers = self.readers.lock();
        if readers.all.len() >= READERS_MAX {
            return None;
        }
        if !readers.served {
            let log = self.clone();
            let name = "swapfs-accesslog".to_owned();
            std::thread::Builder::new().name(name).spawn(move || outlive(|| log.serve())).ok()?;
            readers.served = true;
        }
        let reader = readers.next;
        readers.next += 1;
        readers.all.insert(reader, Reader::default());
        self.open.store(readers.all.len(), Relaxed);
        Some(reader)
    }

    /// Ends a reader; what it still waits for is answered with nothing.
    pub fn close(&self, reader: u64) {
        let gone = {
            let mut readers = self.readers.lock();
            let gone = readers.all.remove(&reader);
            self.open.store(readers.all.len(), Relaxed);
            gone
        };
        self.closed.notify_all();
        for parked in gone.into_iter().flat_map(|reader| reader.parked) {
            (parked.reply)(&[]);
        }
    }

    /// Answers with at most `size` bytes: at once when there are any, else within a second.
    pub fn read(&self, reader: u64, size: usize, reply: LineReply) {
        let bytes = {
            let mut readers = self.readers.lock();
            match readers.all.get_mut(&reader) {
                Some(found) if found.buffer.is_empty() && size > 0 => {
                    found.parked.push_back(Parked { since: Instant::now(), size, reply });
                    return;
                }
                Some(found) => found.take(size),
                None => Vec::new(),
            }
        };
        reply(&bytes);
    }

    /// Adds the line of a request that was answered.
    pub fn note(
        &self, operation: &str, note: &Note, errno: i32, bytes: Option<usize>, time: Duration,
    ) {
        let mut line = String::with_capacity(160);
        let Note { uid, gid, pid, arguments } = note;
        let now = Timestamp::now();
        let _ =
            write!(line, "{now:.6} [uid:{uid},gid:{gid},pid:{pid}] {operation} ({arguments}): ");
        let _ = match (errno.abs(), bytes) {
            (0, Some(bytes)) => write!(line, "OK ({bytes})"),
            (0, None) => write!(line, "OK"),
            (errno, _) => write!(line, "{:?}", Errno::from_raw(errno)),
        };
        let _ = writeln!(line, " <{:.6}>", time.as_secs_f64());
        self.push(&line);
    }

    fn push(&self, line: &str) {
        let mut readers = self.readers.lock();
        for reader in readers.all.values_mut() {
            if !reader.push(line) {
                self.dropped.fetch_add(1, Relaxed);
            }
        }
    }

    /// Answers parked reads until nobody reads any more.
    fn serve(&self) {
        let mut readers = self.readers.lock();
        while !readers.all.is_empty() {
            let now = Instant::now();
            let mut due: Vec<(LineReply, Vec<u8>)> = Vec::new();
            for reader in readers.all.values_mut() {
                while let Some(first) = reader.parked.front() {
                    let over = now.duration_since(first.since) >= PATIENCE;
                    if reader.buffer.is_empty() && !over {
                        break;
                    }
                    let Some(parked) = reader.parked.pop_front() else { break };
                    let bytes = match reader.buffer.is_empty() {
                        true => NOTHING[..NOTHING.len().min(parked.size)].to_vec(),
                        false => reader.take(parked.size),
                    };
                    due.push((parked.reply, bytes));
                }
            }
            if !due.is_empty() {
                parking_lot::MutexGuard::unlocked(&mut readers, || {
                    due.into_iter().for_each(|(reply, bytes)| reply(&bytes));
                });
            }
            self.closed.wait_for(&mut readers, TICK);
        }
        readers.served = false;
    }
}

impl Reader {
    /// Adds a line; false when there is no room.
    fn push(&mut self, line: &str) -> bool {
        let told = match self.dropped {
            0 => String::new(),
            count => format!("# {count} lines were left out: the reader is too slow\n"),
        };
        if self.buffer.len() + told.len() + line.len() > BUFFER_BYTES_MAX {
            self.dropped += 1;
            return false;
        }
        self.dropped = 0;
        self.buffer.extend(told.bytes().chain(line.bytes()));
        true
    }

    fn take(&mut self, size: usize) -> Vec<u8> {
        let count = size.min(self.buffer.len());
        self.buffer.drain(..count).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(pid: u32) -> Note {
        Note { uid: 1, gid: 2, pid, arguments: "\"a b\",5,0".to_owned() }
    }

    fn read(log: &AccessLog, reader: u64, size: usize) -> String {
        let (sender, receiver) = std::sync::mpsc::channel();
        let reply = Box::new(move |bytes: &[u8]| sender.send(bytes.to_vec()).unwrap());
        log.read(reader, size, reply);
        String::from_utf8(receiver.recv().unwrap()).unwrap()
    }

    #[test]
    fn lines_tell_who_what_and_how_long() {
        let log = Arc::new(AccessLog::default());
        assert!(!log.is_open());
        let reader = log.open().unwrap();
        log.note("read", &note(3), 0, Some(5), Duration::from_micros(12));
        log.note("open", &note(3), -libc::ENOENT, None, Duration::from_millis(1500));
        let text = read(&log, reader, 4096);
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines[0].ends_with("Z [uid:1,gid:2,pid:3] read (\"a b\",5,0): OK (5) <0.000012>"));
        assert!(lines[1].ends_with("open (\"a b\",5,0): ENOENT <1.500000>"), "{text}");
        assert_eq!(lines[0].find('T'), Some(10), "a date and a time: {text}");
        log.close(reader);
        assert!(!log.is_open());
    }

    #[test]
    fn a_reader_waits_for_lines_and_hears_when_there_are_none() {
        let log = Arc::new(AccessLog::default());
        let reader = log.open().unwrap();
        assert_eq!(read(&log, reader, 100), "#\n");
        let other = log.clone();
        let writer = std::thread::spawn(move || {
            std::thread::sleep(TICK * 3);
            other.note("flush", &note(9), 0, None, Duration::ZERO);
        });
        assert!(read(&log, reader, 20).starts_with("20"));
        writer.join().unwrap();
        log.close(reader);
        assert_eq!(read(&log, reader, 100), "", "a reader that is gone gets nothing");
    }

    #[test]
    fn slow_readers_lose_lines_and_are_told() {
        let log = Arc::new(AccessLog::default());
        let reader = log.open().unwrap();
        let line = "x".repeat(BUFFER_BYTES_MAX / 4 - 1) + "\n";
        (0..6).for_each(|_| log.push(&line));
        assert_eq!(log.dropped(), 2);
        assert_eq!(read(&log, reader, 2 * BUFFER_BYTES_MAX).len(), BUFFER_BYTES_MAX);
        log.push("new\n");
        let text = read(&log, reader, 4096);
        assert_eq!(text, "# 2 lines were left out: the reader is too slow\nnew\n");
        let others: Vec<_> = std::iter::from_fn(|| log.open()).collect();
        assert_eq!(others.len(), READERS_MAX - 1);
        others.into_iter().chain([reader]).for_each(|reader| log.close(reader));
        assert_eq!(log.readers(), 0);
    }
}
