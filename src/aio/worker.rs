//! Threads that take jobs from a queue: the null, memory and thread devices, and the completions that the fault device
//! holds back.
//!
//! [`Queue`] is what waits, and whether more may come; a ring's lane has one too. [`Workers`] is a queue with its
//! threads. The queue's mutex is of the lowest level: nothing else is locked or called back while it is held.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use super::counters::Counters;
use super::device::{Completion, CompletionSink, Device, DeviceStats, Geometry, Transfer};
use crate::concurrent::{Condvar, Mutex, thread};
use crate::error::{Errno, Result};

/// What a thread takes from its queue: a transfer, or a completion that is to be delivered.
pub trait Job: Send {
    /// Ends the job with what came of it.
    fn complete(self, result: Result<usize>) -> Completion;
}

impl Job for Transfer {
    fn complete(self, result: Result<usize>) -> Completion {
        Completion { transfer: self, result }
    }
}

/// Waiting jobs, in the order in which they are taken.
pub trait Order: Send {
    /// What waits.
    type Job: Job;

    /// Adds a job.
    fn push(&mut self, job: Self::Job);

    /// Takes the next job that may begin now.
    fn pop(&mut self) -> Option<Self::Job>;

    /// Returns true when no job waits, not even for its time.
    fn is_empty(&self) -> bool;

    /// How long until `pop` gives the next job, where that depends on time.
    fn pause(&self) -> Option<Duration> {
        None
    }

    /// Shutdown began: no job waits for its time any more.
    fn drain(&mut self) {}
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    /// Shutdown began; what waits is still done.
    Draining,
    /// No thread takes anything any more.
    Closed,
}

/// Waiting jobs, and whether more may come.
#[derive(Debug)]
pub(super) struct Queue<O: Order> {
    pub(super) waiting: O,
    /// Jobs that came after shutdown began. A thread refuses them, so that the submitter's stack does not.
    pub(super) late: Vec<O::Job>,
    phase: Phase,
}

impl<O: Order> Queue<O> {
    pub(super) fn new(waiting: O) -> Self {
        Self { waiting, late: Vec::new(), phase: Phase::Open }
    }

    /// Adds a job. Gives it back when no thread is there to take it.
    pub(super) fn push(&mut self, job: O::Job) -> std::result::Result<(), O::Job> {
        match self.phase {
            Phase::Open => self.waiting.push(job),
            Phase::Draining => self.late.push(job),
            Phase::Closed => return Err(job),
        }
        Ok(())
    }

    /// Begins the shutdown.
    pub(super) fn drain(&mut self) {
        if self.phase == Phase::Open {
            self.phase = Phase::Draining;
        }
        self.waiting.drain();
    }

    /// Returns true when shutdown began and nothing waits. More may have come too late.
    pub(super) fn is_drained(&self) -> bool {
        self.phase != Phase::Open && self.waiting.is_empty()
    }

    /// Lets nothing in any more, and returns what came too late.
    pub(super) fn close(&mut self) -> Vec<O::Job> {
        self.phase = Phase::Closed;
        std::mem::take(&mut self.late)
    }

    pub(super) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }
}

/// What [`Workers`] do with their jobs.
pub trait Work: fmt::Debug + Send + Sync + 'static {
    /// The order of the jobs.
    type Order: Order;

    /// See [`DeviceStats::engine`].
    const ENGINE: &'static str;

    /// Jobs that a thread takes at once.
    const BATCH: usize = 1;

    /// Alignment and kind.
    fn geometry(&self) -> Geometry;

    /// Does a job, and returns how many bytes it moved.
    fn perform(&self, job: &mut JobOf<Self>) -> Result<usize>;
}

type JobOf<W> = <<W as Work>::Order as Order>::Job;

/// A queue of jobs and the threads that do them; where these are transfers, a device. Dropping it waits until all are done.
pub struct Workers<W: Work> {
    pub(super) shared: Arc<Shared<W>>,
    /// Held while the threads are joined, so that a second `shutdown` waits for the first.
    threads: Mutex<Vec<thread::JoinHandle<()>>>,
}

/// What the threads of [`Workers`] share with their owner.
pub(super) struct Shared<W: Work> {
    pub(super) work: W,
    queue: Mutex<Queue<W::Order>>,
    wake: Condvar,
    sink: OnceLock<Arc<dyn CompletionSink>>,
    counters: Counters,
    inflight: AtomicU64,
}

impl<W: Work> fmt::Debug for Workers<W> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.shared.work.fmt(formatter)
    }
}

impl<W: Work> Workers<W> {
    /// Starts a thread for each of `names`.
    pub(super) fn start(
        work: W, order: W::Order, names: impl IntoIterator<Item = String>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            work,
            queue: Mutex::new(Queue::new(order)),
            wake: Condvar::new(),
            sink: OnceLock::new(),
            counters: Counters::default(),
            inflight: AtomicU64::new(0),
        });
        // Made first: dropping it ends the threads that started when a later one cannot.
        let workers = Self { shared, threads: Mutex::new(Vec::new()) };
        for name in names {
            let shared = Arc::clone(&workers.shared);
            let thread = thread::Builder::new().name(name).spawn(move || shared.run())?;
            workers.threads.lock().push(thread);
        }
        Ok(workers)
    }

    /// Names the receiver of all completions. Called once, before the first job.
    pub(super) fn connect(&self, sink: Arc<dyn CompletionSink>) {
        assert!(self.shared.sink.set(sink).is_ok(), "connect is called once");
    }

    /// Queues jobs for the threads.
    pub(super) fn push(&self, jobs: &mut Vec<JobOf<W>>) {
        if jobs.is_empty() {
            return;
        }
        let is_one = jobs.len() == 1;
        let closed: Vec<_> = {
            let mut queue = self.shared.queue.lock();
            jobs.drain(..).filter_map(|job| queue.push(job).err()).collect()
        };
        if is_one {
            self.shared.wake.notify_one();
        } else {
            self.shared.wake.notify_all();
        }
        self.shared.refuse(closed);
    }

    /// Waits until all jobs are done, and ends the threads. Later jobs are refused.
    pub(super) fn shutdown(&self) {
        {
            let mut threads = self.threads.lock();
            self.shared.queue.lock().drain();
            self.shared.wake.notify_all();
            join(threads.drain(..));
        }
        let late = self.shared.queue.lock().close();
        self.shared.refuse(late);
    }
}

impl<W: Work> Drop for Workers<W> {
    fn drop(&mut self) {
        self.shutdown();
    }
}

impl<W: Work> Shared<W> {
    fn run(&self) {
        let (mut jobs, mut late, mut done) = (Vec::new(), Vec::new(), Vec::new());
        while self.take(&mut jobs, &mut late) {
            let count = jobs.len() as u64;
            let inflight = self.inflight.fetch_add(count, Relaxed) + count;
            self.counters.submitted(count, inflight);
            done.extend(jobs.drain(..).map(|mut job| {
                let result = self.work.perform(&mut job);
                job.complete(result)
            }));
            done.extend(late.drain(..).map(|job: JobOf<W>| job.complete(Err(Errno::ENODEV))));
            self.inflight.fetch_sub(count, Relaxed);
            self.deliver(&mut done);
        }
    }

    /// Waits for jobs and takes them; false at the end.
    fn take(&self, jobs: &mut Vec<JobOf<W>>, late: &mut Vec<JobOf<W>>) -> bool {
        let mut queue = self.queue.lock();
        loop {
            late.append(&mut queue.late);
            while jobs.len() < W::BATCH
                && let Some(job) = queue.waiting.pop()
            {
                jobs.push(job);
            }
            if !jobs.is_empty() || !late.is_empty() {
                return true;
            }
            if queue.is_drained() {
                return false;
            }
            match queue.waiting.pause() {
                Some(pause) => {
                    self.wake.wait_for(&mut queue, pause);
                }
                None => self.wake.wait(&mut queue),
            }
        }
    }

    fn refuse(&self, jobs: Vec<JobOf<W>>) {
        let refused = jobs.into_iter().map(|job| job.complete(Err(Errno::ENODEV)));
        self.deliver(&mut refused.collect());
    }

    pub(super) fn deliver(&self, done: &mut Vec<Completion>) {
        if done.is_empty() {
            return;
        }
        done.iter().for_each(|completion| self.counters.completed(completion));
        self.sink.get().expect("connect comes before the first submission").complete(done);
        debug_assert!(done.is_empty(), "a sink takes all completions");
        done.clear();
    }
}

/// Joins device threads, except the one it runs on: the last handle of a device may be dropped from
/// inside a completion, and that thread ends by itself.
pub(super) fn join(threads: impl Iterator<Item = thread::JoinHandle<()>>) {
    for thread in threads {
        if thread.thread().id() != thread::current().id() && thread.join().is_err() {
            log::error!("an aio thread panicked");
        }
    }
}

impl<W: Work<Order: Order<Job = Transfer>>> Device for Workers<W> {
    fn geometry(&self) -> Geometry {
        self.shared.work.geometry()
    }

    fn connect(&self, sink: Arc<dyn CompletionSink>) {
        self.connect(sink);
    }

    fn submit(&self, batch: &mut Vec<Transfer>) {
        batch.iter().for_each(|transfer| transfer.check(self.geometry()));
        self.push(batch);
    }

    fn stats(&self) -> DeviceStats {
        let mut stats = DeviceStats { engine: W::ENGINE, ..DeviceStats::default() };
        self.shared.counters.add_to(&mut stats);
        stats
    }

    fn shutdown(&self) {
        self.shutdown();
    }
}
