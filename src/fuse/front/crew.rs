//! How many threads read requests at a time.
//!
//! What carries many bytes is copied while it is read, by as many threads as there are: a *stream*. Small
//! requests cost little more than the wake-ups between client and daemon; several readers in wait would
//! only be woken in vain, so one of them, the *leader*, takes them all and looks for the next one for a
//! moment before it sleeps. The others are parked until there is a stream, or until the *watch* finds
//! that the leader is held up by a request: status calls must not wait for a slow disk.

use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::awake::Awake;

/// Bytes read or written by one request from which on it belongs to a stream.
const STREAM_BYTES: usize = 32 * 1024;

/// Small requests in a row that end a stream.
const STREAM_ENDS: u32 = 64;

/// How long the leader looks for the next request before it sleeps: some round trips of a client that
/// makes one call after the other, and a small transfer of a fast device.
const LOOKOUT: Duration = Duration::from_micros(60);

/// How long a leader may be held up, at most twice of it, before others are called.
const WATCH_TICK: Duration = Duration::from_millis(1);

/// Ticks without a request after which the watch sleeps, too.
const WATCH_TICKS_MAX: u32 = 10;

/// What a thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Wait for a request.
    Read,
    /// Look for one as long as this, then wait.
    Lead(Duration),
    /// The session has ended.
    End,
}

/// The reading threads of a session.
#[derive(Debug)]
pub(super) struct Crew {
    threads: usize,
    lookout: Duration,
    awake: Awake,
    /// All read; else one.
    stream: AtomicBool,
    /// Small requests since the last large one.
    small: AtomicU32,
    /// Threads that wait for a request, or are just being handed one.
    reading: AtomicUsize,
    /// Requests so far.
    taken: AtomicU64,
    watch_asleep: AtomicBool,
    ended: AtomicBool,
    /// Threads that are parked. Whoever goes to sleep holds it, so that no call is missed.
    parking: Mutex<usize>,
    called: Condvar,
    watch_called: Condvar,
}

impl Crew {
    pub(super) fn new(threads: usize, awake: Awake) -> Crew {
        // On one processor the client can only come once the leader sleeps.
        let processors = crate::machine::processors();
        Crew {
            threads,
            lookout: if processors > 1 { LOOKOUT } else { Duration::ZERO },
            awake,
            stream: AtomicBool::new(false),
            small: AtomicU32::new(0),
            reading: AtomicUsize::new(0),
            taken: AtomicU64::new(0),
            watch_asleep: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            parking: Mutex::new(0),
            called: Condvar::new(),
            watch_called: Condvar::new(),
        }
    }

    /// Whether somebody is called when the leader is held up.
    pub(super) fn has_others(&self) -> bool {
        self.threads > 1
    }

    /// Says whether a client is making one small call after the other.
    pub(super) fn talks(&self, talks: bool) {
        match talks {
            true => self.awake.hold(),
            false => self.awake.let_go(),
        }
    }

    /// Comes between two requests of a thread; blocks while it is not needed. After [`Turn::Read`] and
    /// [`Turn::Lead`] comes [`took`](Crew::took).
    pub(super) fn next(&self) -> Turn {
        loop {
            if let Some(turn) = self.next_at_once() {
                return turn;
            }
            let mut parked = self.parking.lock();
            let idle = !self.stream.load(Ordering::Acquire) && !self.ended.load(Ordering::Acquire);
            if idle && self.reading.load(Ordering::Acquire) > 0 {
                *parked += 1;
                self.called.wait(&mut parked);
                *parked -= 1;
            }
        }
    }

    /// As [`next`](Crew::next), but `None` when the thread is not needed.
    pub(super) fn next_at_once(&self) -> Option<Turn> {
        if self.ended.load(Ordering::Acquire) {
            return Some(Turn::End);
        }
        if self.stream.load(Ordering::Acquire) {
            self.reading.fetch_add(1, Ordering::AcqRel);
            return Some(Turn::Read);
        }
        let leads = self.reading.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire);
        leads.is_ok().then_some(Turn::Lead(self.lookout))
    }

    /// Does something that may hold up a thread that is to read: it counts as one that does not meanwhile, so that the
    /// watch sees it. Others may have begun to read when it comes back.
    pub(super) fn absent<T>(&self, work: impl FnOnce() -> T) -> T {
        self.reading.fetch_sub(1, Ordering::AcqRel);
        let result = work();
        self.reading.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// The thread has a request that moves so many bytes.
    pub(super) fn took(&self, bytes: usize) {
        self.reading.fetch_sub(1, Ordering::AcqRel);
        self.taken.fetch_add(1, Ordering::Release);
        if bytes >= STREAM_BYTES {
            self.small.store(0, Ordering::Relaxed);
            if !self.stream.load(Ordering::Acquire) {
                self.all_read();
            }
        } else if self.stream.load(Ordering::Acquire)
            && self.small.fetch_add(1, Ordering::Relaxed) >= STREAM_ENDS
        {
            self.stream.store(false, Ordering::Release);
        }
        if self.threads > 1
            && self.watch_asleep.load(Ordering::Acquire)
            && !self.stream.load(Ordering::Acquire)
        {
            let _parking = self.parking.lock();
            self.watch_asleep.store(false, Ordering::Release);
            self.watch_called.notify_one();
        }
    }

    fn all_read(&self) {
        let _parking = self.parking.lock();
        self.small.store(0, Ordering::Relaxed);
        self.stream.store(true, Ordering::Release);
        self.called.notify_all();
    }

    /// Lets every thread end.
    pub(super) fn end(&self) {
        let _parking = self.parking.lock();
        self.ended.store(true, Ordering::Release);
        self.called.notify_all();
        self.watch_called.notify_all();
    }

    /// The watch's thread. Returns when the crew ends.
    pub(super) fn watch(&self) {
        let (mut before, mut quiet) = (None, 0);
        let mut parking = self.parking.lock();
        while !self.ended.load(Ordering::Acquire) {
            if self.watch_asleep.load(Ordering::Acquire) {
                self.watch_called.wait(&mut parking);
                (before, quiet) = (None, 0);
                continue;
            }
            self.watch_called.wait_for(&mut parking, WATCH_TICK);
            let taken = self.taken.load(Ordering::Acquire);
            let nobody_reads = self.reading.load(Ordering::Acquire) == 0;
            let still = before.replace(taken) == Some(taken);
            if still && nobody_reads {
                self.awake.let_go();
                self.small.store(0, Ordering::Relaxed);
                self.stream.store(true, Ordering::Release);
                self.called.notify_all();
            }
            quiet = if still && !nobody_reads { quiet + 1 } else { 0 };
            // While all read, nobody needs watching; while one waits in vain, neither. The next request
            // that one takes alone wakes the watch.
            if self.stream.load(Ordering::Acquire) || quiet >= WATCH_TICKS_MAX {
                self.watch_asleep.store(true, Ordering::Release);
            }
        }
    }
}

/// A reading thread's place among the others. When it goes, for whatever reason, all of them end: those that
/// are parked would wait for it to come back.
#[derive(Debug)]
pub(super) struct Member(Arc<Crew>);

impl Member {
    pub(super) fn of(crew: &Arc<Crew>) -> Member {
        Member(crew.clone())
    }
}

impl Deref for Member {
    type Target = Crew;

    fn deref(&self) -> &Crew {
        &self.0
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until `holds`, for five seconds at most.
    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while !holds() {
            assert!(std::time::Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn started(crew: &Arc<Crew>) -> std::thread::JoinHandle<Turn> {
        let crew = crew.clone();
        std::thread::spawn(move || crew.next())
    }

    #[test]
    fn one_leads_until_there_is_a_stream() {
        let crew = Arc::new(Crew::new(2, Awake::new(false)));
        assert!(matches!(crew.next(), Turn::Lead(_)));
        let second = started(&crew);
        eventually("one reader is enough", || *crew.parking.lock() == 1);
        crew.took(STREAM_BYTES);
        assert_eq!(second.join().unwrap(), Turn::Read);
        assert_eq!(crew.next(), Turn::Read);
        for _ in 0..=STREAM_ENDS {
            crew.took(100);
            crew.reading.fetch_add(1, Ordering::AcqRel);
        }
        crew.took(100);
        assert!(!crew.stream.load(Ordering::Acquire), "small requests end a stream");
    }

    #[test]
    fn a_leader_that_is_held_up_is_noticed() {
        let crew = Arc::new(Crew::new(2, Awake::new(false)));
        let watch = std::thread::spawn({
            let crew = crew.clone();
            move || crew.watch()
        });
        assert!(matches!(crew.next(), Turn::Lead(_)));
        let second = started(&crew);
        eventually("the second is parked", || *crew.parking.lock() == 1);
        crew.took(0);
        assert_eq!(second.join().unwrap(), Turn::Read, "the watch calls it");
        crew.took(0);
        assert_eq!(crew.next(), Turn::Read);
        eventually("an idle watch sleeps", || crew.watch_asleep.load(Ordering::Acquire));
        crew.end();
        watch.join().unwrap();
    }

    /// A reader that waited for its own reads and was counted let all others park.
    #[test]
    fn who_is_absent_keeps_nobody_from_reading() {
        let crew = Crew::new(2, Awake::new(false));
        assert!(matches!(crew.next(), Turn::Lead(_)));
        assert_eq!(crew.next_at_once(), None, "one reads");
        crew.absent(|| assert!(matches!(crew.next_at_once(), Some(Turn::Lead(_)))));
        crew.took(0);
        assert_eq!(crew.next_at_once(), None, "it is back");
        crew.took(0);
        assert!(matches!(crew.next_at_once(), Some(Turn::Lead(_))));
    }

    #[test]
    fn the_end_reaches_who_is_parked() {
        let crew = Arc::new(Crew::new(3, Awake::new(false)));
        assert!(matches!(crew.next(), Turn::Lead(_)));
        let (second, third) = (started(&crew), started(&crew));
        eventually("both are parked", || *crew.parking.lock() == 2);
        crew.end();
        assert_eq!((second.join().unwrap(), third.join().unwrap()), (Turn::End, Turn::End));
        assert_eq!(crew.next(), Turn::End);
    }
}
