//! How many of the usual readers wait for a request at a time; see [`super`].

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use super::cpu_latency::CpuLatency;

/// Bytes read or written by one request from which on it belongs to a stream.
const STREAM_BYTES: usize = 32 * 1024;

/// Small requests in a row that end a stream.
const STREAM_ENDS: u32 = 64;

/// How long the leader polls for the next request before it sleeps: some round trips of a client that makes one call
/// after the other, and a small transfer of a fast device.
const POLL_TIME: Duration = Duration::from_micros(60);

/// How long a leader may be held up, at most twice of it, before the others are called.
const WATCH_TICK: Duration = Duration::from_millis(1);

/// Ticks without a request after which the watchdog sleeps, too.
const WATCH_TICKS_MAX: u32 = 10;

/// What a thread does next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Wait for a request.
    Wait,
    /// Poll for one as long as this, then wait.
    Lead(Duration),
    /// The session has ended.
    End,
}

/// Decides which of the usual readers read.
#[derive(Debug)]
pub(in super::super) struct Turns {
    threads: usize,
    poll_time: Duration,
    cpu_latency: CpuLatency,
    /// All threads read; else one.
    is_stream: AtomicBool,
    /// Small requests since the last large one.
    small: AtomicU32,
    /// Threads that wait for a request, or are just being handed one.
    reading: AtomicUsize,
    /// Requests so far.
    received: AtomicU64,
    watchdog_sleeps: AtomicBool,
    ended: AtomicBool,
    /// Threads that are parked. Whoever parks or calls others holds the lock, so that no call is missed.
    parked: Mutex<usize>,
    call: Condvar,
    call_watchdog: Condvar,
}

impl Turns {
    pub(super) fn new(threads: usize, cpu_latency: CpuLatency) -> Turns {
        // On one processor the client can only come once the leader sleeps.
        let processors = crate::machine::processors();
        Turns {
            threads,
            poll_time: if processors > 1 { POLL_TIME } else { Duration::ZERO },
            cpu_latency,
            is_stream: AtomicBool::new(false),
            small: AtomicU32::new(0),
            reading: AtomicUsize::new(0),
            received: AtomicU64::new(0),
            watchdog_sleeps: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            parked: Mutex::new(0),
            call: Condvar::new(),
            call_watchdog: Condvar::new(),
        }
    }

    pub(super) fn threads(&self) -> usize {
        self.threads
    }

    /// Returns true when there are threads to call when the leader is held up.
    pub(super) fn has_others(&self) -> bool {
        self.threads > 1
    }

    /// Has idle processors wake up quickly, or lets them sleep.
    pub(super) fn keep_awake(&self, awake: bool) {
        self.cpu_latency.keep_awake(awake);
    }

    /// Decides what the calling thread does next, and parks it while it is not needed. [`Turns::received`] must follow
    /// [`Turn::Wait`] and [`Turn::Lead`].
    pub(super) fn next(&self) -> Turn {
        loop {
            if let Some(turn) = self.next_at_once() {
                return turn;
            }
            let mut parked = self.parked.lock();
            let is_needed = self.is_stream.load(Ordering::Acquire)
                || self.ended.load(Ordering::Acquire)
                || self.reading.load(Ordering::Acquire) == 0;
            if !is_needed {
                *parked += 1;
                self.call.wait(&mut parked);
                *parked -= 1;
            }
        }
    }

    /// As [`Turns::next`], but returns `None` when the thread is not needed.
    pub(super) fn next_at_once(&self) -> Option<Turn> {
        if self.ended.load(Ordering::Acquire) {
            return Some(Turn::End);
        }
        if self.is_stream.load(Ordering::Acquire) {
            self.reading.fetch_add(1, Ordering::AcqRel);
            return Some(Turn::Wait);
        }
        let leads = self.reading.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Acquire);
        leads.is_ok().then_some(Turn::Lead(self.poll_time))
    }

    /// Runs `work`, which may hold up the thread that is about to read. Meanwhile the thread does not count as reading, so
    /// the watchdog calls others when need be. Others may read by the time that `work` has returned.
    pub(in super::super) fn while_not_counted<T>(&self, work: impl FnOnce() -> T) -> T {
        self.reading.fetch_sub(1, Ordering::AcqRel);
        let result = work();
        self.reading.fetch_add(1, Ordering::AcqRel);
        result
    }

    /// Notes that the calling thread has received a request that moves so many bytes.
    pub(super) fn received(&self, bytes: usize) {
        self.reading.fetch_sub(1, Ordering::AcqRel);
        self.received.fetch_add(1, Ordering::Release);
        if bytes >= STREAM_BYTES {
            self.small.store(0, Ordering::Relaxed);
            if !self.is_stream.load(Ordering::Acquire) {
                let _parked = self.parked.lock();
                self.call_all();
            }
        } else if self.is_stream.load(Ordering::Acquire)
            && self.small.fetch_add(1, Ordering::Relaxed) >= STREAM_ENDS
        {
            self.is_stream.store(false, Ordering::Release);
        }
        if self.threads > 1
            && self.watchdog_sleeps.load(Ordering::Acquire)
            && !self.is_stream.load(Ordering::Acquire)
        {
            let _parked = self.parked.lock();
            self.watchdog_sleeps.store(false, Ordering::Release);
            self.call_watchdog.notify_one();
        }
    }

    /// Makes all threads read. `parked` is locked by the caller.
    fn call_all(&self) {
        self.small.store(0, Ordering::Relaxed);
        self.is_stream.store(true, Ordering::Release);
        self.call.notify_all();
    }

    /// Makes every thread end.
    pub(super) fn end(&self) {
        let _parked = self.parked.lock();
        self.ended.store(true, Ordering::Release);
        self.call.notify_all();
        self.call_watchdog.notify_all();
    }

    /// The watchdog's thread: calls all when the leader is held up. Returns at the end of the session.
    pub(super) fn watch(&self) {
        let (mut before, mut quiet) = (None, 0);
        let mut parked = self.parked.lock();
        while !self.ended.load(Ordering::Acquire) {
            if self.watchdog_sleeps.load(Ordering::Acquire) {
                self.call_watchdog.wait(&mut parked);
                (before, quiet) = (None, 0);
                continue;
            }
            self.call_watchdog.wait_for(&mut parked, WATCH_TICK);
            let received = self.received.load(Ordering::Acquire);
            let nobody_reads = self.reading.load(Ordering::Acquire) == 0;
            let is_still = before.replace(received) == Some(received);
            if is_still && nobody_reads {
                self.cpu_latency.keep_awake(false);
                self.call_all();
            }
            quiet = if is_still && !nobody_reads { quiet + 1 } else { 0 };
            // Nobody needs watching while all read, or while one waits and nothing comes. The next request that a leader
            // receives wakes the watchdog.
            if self.is_stream.load(Ordering::Acquire) || quiet >= WATCH_TICKS_MAX {
                self.watchdog_sleeps.store(true, Ordering::Release);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn turns(threads: usize) -> Arc<Turns> {
        Arc::new(Turns::new(threads, CpuLatency::new(false)))
    }

    /// Waits until `holds`, for five seconds at most.
    fn eventually(what: &str, holds: impl Fn() -> bool) {
        let end = std::time::Instant::now() + Duration::from_secs(5);
        while !holds() {
            assert!(std::time::Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn started(turns: &Arc<Turns>) -> std::thread::JoinHandle<Turn> {
        let turns = turns.clone();
        std::thread::spawn(move || turns.next())
    }

    #[test]
    fn one_leads_until_there_is_a_stream() {
        let turns = turns(2);
        assert!(matches!(turns.next(), Turn::Lead(_)));
        let second = started(&turns);
        eventually("one reader is enough", || *turns.parked.lock() == 1);
        turns.received(STREAM_BYTES);
        assert_eq!(second.join().unwrap(), Turn::Wait);
        assert_eq!(turns.next(), Turn::Wait);
        for _ in 0..=STREAM_ENDS {
            turns.received(100);
            turns.reading.fetch_add(1, Ordering::AcqRel);
        }
        turns.received(100);
        assert!(!turns.is_stream.load(Ordering::Acquire), "small requests end a stream");
    }

    #[test]
    fn a_leader_that_is_held_up_is_noticed() {
        let turns = turns(2);
        let watchdog = std::thread::spawn({
            let turns = turns.clone();
            move || turns.watch()
        });
        assert!(matches!(turns.next(), Turn::Lead(_)));
        let second = started(&turns);
        eventually("the second is parked", || *turns.parked.lock() == 1);
        turns.received(0);
        assert_eq!(second.join().unwrap(), Turn::Wait, "the watchdog calls it");
        turns.received(0);
        assert_eq!(turns.next(), Turn::Wait);
        eventually("an idle watchdog sleeps", || turns.watchdog_sleeps.load(Ordering::Acquire));
        turns.end();
        watchdog.join().unwrap();
    }

    /// A reader that waited for its own reads and was counted let all others park.
    #[test]
    fn who_is_not_counted_keeps_nobody_from_reading() {
        let turns = turns(2);
        assert!(matches!(turns.next(), Turn::Lead(_)));
        assert_eq!(turns.next_at_once(), None, "one reads");
        turns.while_not_counted(|| assert!(matches!(turns.next_at_once(), Some(Turn::Lead(_)))));
        turns.received(0);
        assert_eq!(turns.next_at_once(), None, "it is back");
        turns.received(0);
        assert!(matches!(turns.next_at_once(), Some(Turn::Lead(_))));
    }

    #[test]
    fn the_end_reaches_who_is_parked() {
        let turns = turns(3);
        assert!(matches!(turns.next(), Turn::Lead(_)));
        let (second, third) = (started(&turns), started(&turns));
        eventually("both are parked", || *turns.parked.lock() == 2);
        turns.end();
        assert_eq!((second.join().unwrap(), third.join().unwrap()), (Turn::End, Turn::End));
        assert_eq!(turns.next(), Turn::End);
    }
}
